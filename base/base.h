/* base/base.h: what every other folder stands on.  Index of the folder, by source file.
 *
 *   arena.c   memory named by its lifetime; growable arrays
 *   text.c    growable strings, string interning maps, reading whole files
 *   diag.c    sources, spans, diagnostics: the user's fault; and internal_error: ours
 */
#ifndef COLAC_BASE_H
#define COLAC_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))

/* ---- arena.c --------------------------------------------------------------------------------
 * An arena hands out zeroed memory that lives until the arena does.  Allocation never returns
 * NULL: when the system has no memory left, or the arena passes its limit, the process prints
 * one sentence and exits 1. */
typedef struct Arena Arena;

Arena *arena_new(void);
void arena_free(Arena *arena); /* NULL is fine */
/* `size` bytes, zeroed, aligned to 16.  `size` 0 gives a valid pointer. */
void *arena_alloc(Arena *arena, size_t size);
/* count * size bytes, zeroed; an overflow of the product counts as being out of memory. */
void *arena_alloc_array(Arena *arena, size_t count, size_t size);
char *arena_strdup(Arena *arena, const char *string);
char *arena_strndup(Arena *arena, const char *string, size_t length); /* NUL-terminated */
char *arena_printf(Arena *arena, const char *format, ...) PRINTF_LIKE(2, 3);
size_t arena_bytes(const Arena *arena); /* bytes handed out so far */

/* malloc and realloc that exit with a sentence instead of returning NULL (zeroed on alloc). */
void *checked_alloc(size_t size);
void *checked_realloc(void *pointer, size_t size);

/* Room for floats, on the stack while they are few: what every update does allocates
 * nothing. */
typedef struct Floats {
    float *data; /* not zeroed */
    float few[8192];
} Floats;

float *floats_begin(Floats *floats, int64_t count); /* `floats->data` */
void floats_end(Floats *floats);

/* A growable array.  Storage is malloc'ed; free with array_free.
 *   ARRAY(int) xs = {0};  array_push(&xs, 3);  xs.data[0];  array_free(&xs); */
#define ARRAY(T)                                                                                 \
    struct {                                                                                     \
        T *data;                                                                                 \
        int64_t count, capacity;                                                                 \
    }
#define array_reserve(array, wanted)                                                             \
    ((array)->capacity >= (wanted)                                                               \
         ? (void)0                                                                               \
         : (void)((array)->capacity =                                                            \
                      (wanted) > 2 * (array)->capacity ? (wanted) : 2 * (array)->capacity,       \
                  (array)->data = checked_realloc(                                               \
                      (array)->data, (size_t)(array)->capacity * sizeof *(array)->data)))
#define array_push(array, value)                                                                 \
    (array_reserve(array, (array)->count + 1), (void)((array)->data[(array)->count++] = (value)))
#define array_free(array) (free((array)->data), memset((array), 0, sizeof *(array)))

/* ---- text.c -------------------------------------------------------------------------------- */
/* A growable, always NUL-terminated string.  Start from {0}. */
typedef struct Text {
    char *data;
    size_t length, capacity;
} Text;

void text_append(Text *text, const char *bytes, size_t length);
void text_puts(Text *text, const char *string);
void text_printf(Text *text, const char *format, ...) PRINTF_LIKE(2, 3);
void text_vprintf(Text *text, const char *format, va_list args) PRINTF_LIKE(2, 0);
void text_free(Text *text);
const char *text_string(const Text *text); /* "" for an empty one */
/* 163.2 MiB */
const char *bytes_text(int64_t bytes, char buffer[32]);

/* A map from strings to integers (xxhash, open addressing).  Start from {0}; keys are
 * copied. */
typedef struct StringMap {
    struct StringMapEntry *entries;
    int64_t count, capacity;
} StringMap;

/* The value stored under key, or `otherwise`. */
int64_t string_map_get(const StringMap *map, const char *key, int64_t otherwise);
void string_map_set(StringMap *map, const char *key, int64_t value);
void string_map_free(StringMap *map);

uint64_t hash_bytes(const void *bytes, size_t length, uint64_t seed); /* xxh3, 64 bits */

/* Edit distance with transpositions, for "did you mean"; stops counting at `limit`. */
int edit_distance(const char *a, const char *b, int limit);
/* The candidate nearest to `name`, or NULL when none is near enough to be worth suggesting. */
const char *nearest_name(const char *name, const char *const *candidates, int count);

/* Reads a whole file into malloc'ed memory with a NUL after it.  On failure returns NULL with
 * errno set; a file above `limit` bytes fails with EFBIG. */
char *read_file(const char *path, size_t limit, size_t *length);

/* ---- diag.c --------------------------------------------------------------------------------- */
/* One text that spans point into.  `name` is what diagnostics print: the path as it was
 * given. */
typedef struct Source {
    const char *name;
    const char *text; /* NUL-terminated */
    size_t length;
    struct Source *next; /* of the same Sources */
} Source;

/* A range of bytes in a source.  source == NULL: no place ("built in"). */
typedef struct Span {
    const Source *source;
    uint32_t begin, end;
} Span;

/* Errors are collected, sorted by place and printed once; each may carry notes and help lines.
 *
 *   llama.cola:12:9: error: S is in both operands of this dot, so it is matched, not crossed
 *      12 |     s = dot(q, k; K)
 *         |         ^~~~~~~~~~~~
 *   llama.cola:3:14: note: S = 256 is declared here
 *      help: rename one: `k[S as T]`
 */
typedef struct Diagnostics Diagnostics;
typedef struct Diagnostic Diagnostic;

Diagnostics *diagnostics_new(void);
void diagnostics_free(Diagnostics *diagnostics);
/* Frees `owned` by `release` with the diagnostics: what their places point into. */
void diagnostics_own(Diagnostics *diagnostics, void *owned, void (*release)(void *));
int diagnostics_errors(const Diagnostics *diagnostics); /* errors so far */
/* The first error of all, printed or not, as `FILE:LINE:COL: MESSAGE`; "" without one. */
char *first_error(const Diagnostics *diagnostics, Arena *arena);
/* An error at a place.  The same text at the same place is recorded once.  After 50 errors the
 * rest are only counted.  Never NULL. */
Diagnostic *error_at(Diagnostics *diagnostics, Span span, const char *format, ...)
    PRINTF_LIKE(3, 4);
/* An error about a whole file (or anything named): printed as `NAME:1:1: error: …`. */
Diagnostic *error_in_file(Diagnostics *diagnostics, const char *name, const char *format, ...)
    PRINTF_LIKE(3, 4);
Diagnostic *warning_at(Diagnostics *diagnostics, Span span, const char *format, ...)
    PRINTF_LIKE(3, 4);
Diagnostic *warning_in_file(Diagnostics *diagnostics, const char *name, const char *format, ...)
    PRINTF_LIKE(3, 4);
void note_at(Diagnostic *diagnostic, Span span, const char *format, ...) PRINTF_LIKE(3, 4);
void help(Diagnostic *diagnostic, const char *format, ...) PRINTF_LIKE(2, 3);
/* Prints all, sorted by source and place, with carets (tabs kept, UTF-8 counted by code point,
 * lines over 160 columns cut around the caret), and forgets them. */
void diagnostics_print(Diagnostics *diagnostics, FILE *stream);
/* Line and column, from 1; columns count code points. */
void span_position(Span span, int *line, int *column);
const char *place_text(Span span, Arena *arena); /* models/llama.cola:46; "": no place */
Span span_join(Span a, Span b); /* from the first's beginning to the second's end */

/* The user's fault where nothing can be returned, like memory that runs out: prints one error
 * at the place and exits 1. */
_Noreturn void refuse_at(Span span, const char *format, ...) PRINTF_LIKE(2, 3);
/* Our bug: prints place and message, asks for a report, exits 3. */
_Noreturn void internal_error_at(const char *file, int line, const char *format, ...)
    PRINTF_LIKE(3, 4);
#define internal_error(...) internal_error_at(__FILE__, __LINE__, __VA_ARGS__)
#define INTERNAL_CHECK(condition)                                                                \
    ((condition) ? (void)0 : internal_error_at(__FILE__, __LINE__, "%s", #condition))

#endif
