/* base/text.c: growable strings, maps from strings to integers, names that are nearly right,
 * whole files. */
#include "base/base.h"

#include <errno.h>
#include <xxhash.h>

/* ---- growable strings ------------------------------------------------------------ */
enum { USUAL_PIECE = 80 }; /* bytes that most formatted pieces stay below */

/* Room for `more` bytes and the NUL after them. */
static void text_reserve(Text *text, size_t more) {
    if (text->capacity - text->length > more && text->data)
        return;
    size_t wanted = text->length + more + 1;
    size_t doubled = 2 * text->capacity;
    text->capacity = wanted > doubled ? wanted : doubled;
    if (text->capacity < 64)
        text->capacity = 64;
    text->data = checked_realloc(text->data, text->capacity);
}

void text_append(Text *text, const char *bytes, size_t length) {
    text_reserve(text, length);
    if (length)
        memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = 0;
}

void text_puts(Text *text, const char *string) {
    text_append(text, string, strlen(string));
}

static void append_integer(Text *text, long long value) {
    char digits[24], *begin = digits + sizeof digits;
    unsigned long long rest = (unsigned long long)value;
    rest = value < 0 ? 0 - rest : rest;
    do
        *--begin = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0)
        *--begin = '-';
    text_append(text, begin, (size_t)(digits + sizeof digits - begin));
}

/* By the C library. */
static void append_formatted(Text *text, const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    text_reserve(text, USUAL_PIECE); /* so that most pieces are formatted once */
    size_t room = text->capacity - text->length;
    int length = vsnprintf(text->data + text->length, room, format, args);
    INTERNAL_CHECK(length >= 0);
    if ((size_t)length >= room) {
        text_reserve(text, (size_t)length);
        vsnprintf(text->data + text->length, (size_t)length + 1, format, again);
    }
    va_end(again);
    text->length += (size_t)length;
}

/* A graph's text is mostly %s, %d, %lld and %%, and vsnprintf was a third of a large model's
 * compilation:  so these are printed here, and what follows any other conversion by the C
 * library. */
void text_vprintf(Text *text, const char *format, va_list args) {
    INTERNAL_CHECK(format); /* else gcc with UBSan warns of a null format */
    for (;;) {
        const char *plain = format;
        while (*format && *format != '%')
            format++;
        text_append(text, plain, (size_t)(format - plain));
        if (format[0] && format[1] == 's') {
            const char *string = va_arg(args, const char *);
            text_puts(text, string ? string : "(null)");
            format += 2;
        } else if (format[0] && format[1] == 'd') {
            append_integer(text, va_arg(args, int));
            format += 2;
        } else if (format[0] && format[1] == 'l' && format[2] == 'l' && format[3] == 'd') {
            append_integer(text, va_arg(args, long long));
            format += 4;
        } else if (format[0] && format[1] == '%') {
            text_append(text, "%", 1);
            format += 2;
        } else {
            break;
        }
    }
    if (format[0])
        append_formatted(text, format, args);
}

void text_printf(Text *text, const char *format, ...) {
    va_list args;
    va_start(args, format);
    text_vprintf(text, format, args);
    va_end(args);
}

void text_free(Text *text) {
    free(text->data);
    *text = (Text){0};
}

const char *text_string(const Text *text) {
    return text->data ? text->data : "";
}

const char *bytes_text(int64_t bytes, char buffer[32]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    int unit = 0;
    for (; value >= 1024 && unit < COUNT_OF(units) - 1; unit++)
        value /= 1024;
    snprintf(buffer, 32, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return buffer;
}

/* ---- maps from strings to integers ----------------------------------------------- */

struct StringMapEntry {
    char *key; /* NULL: the slot is free */
    uint64_t hash;
    int64_t value;
};

uint64_t hash_bytes(const void *bytes, size_t length, uint64_t seed) {
    return XXH3_64bits_withSeed(bytes, length, seed);
}

/* The slot that holds key, or the free one where it would go.  The map is never full. */
static struct StringMapEntry *find_slot(const StringMap *map, const char *key, uint64_t hash) {
    uint64_t mask = (uint64_t)map->capacity - 1;
    for (uint64_t i = hash & mask;; i = (i + 1) & mask) {
        struct StringMapEntry *entry = &map->entries[i];
        if (!entry->key || (entry->hash == hash && strcmp(entry->key, key) == 0))
            return entry;
    }
}

static void grow_map(StringMap *map) {
    StringMap bigger = {.count = map->count,
                        .capacity = map->capacity ? 2 * map->capacity : 16};
    bigger.entries = checked_alloc((size_t)bigger.capacity * sizeof *bigger.entries);
    for (int64_t i = 0; i < map->capacity; i++)
        if (map->entries[i].key)
            *find_slot(&bigger, map->entries[i].key, map->entries[i].hash) = map->entries[i];
    free(map->entries);
    *map = bigger;
}

int64_t string_map_get(const StringMap *map, const char *key, int64_t otherwise) {
    if (!map->count)
        return otherwise;
    struct StringMapEntry *entry = find_slot(map, key, hash_bytes(key, strlen(key), 0));
    return entry->key ? entry->value : otherwise;
}

void string_map_set(StringMap *map, const char *key, int64_t value) {
    if (4 * (map->count + 1) > 3 * map->capacity)
        grow_map(map);
    size_t length = strlen(key);
    uint64_t hash = hash_bytes(key, length, 0);
    struct StringMapEntry *entry = find_slot(map, key, hash);
    if (!entry->key) {
        entry->key = checked_alloc(length + 1);
        memcpy(entry->key, key, length);
        entry->hash = hash;
        map->count++;
    }
    entry->value = value;
}

void string_map_free(StringMap *map) {
    for (int64_t i = 0; i < map->capacity; i++)
        free(map->entries[i].key);
    free(map->entries);
    *map = (StringMap){0};
}

/* ---- names that are nearly right ------------------------------------------------- */

enum { LONGEST_COMPARED = 128 }; /* nobody mistypes one letter of a longer name */

static int smaller(int a, int b) {
    return a < b ? a : b;
}

int edit_distance(const char *a, const char *b, int limit) {
    size_t rows = strlen(a), columns = strlen(b);
    if (rows > LONGEST_COMPARED || columns > LONGEST_COMPARED)
        return strcmp(a, b) == 0 ? 0 : limit;
    /* Three rows of the dynamic program: the transposition looks two rows back. */
    int storage[3][LONGEST_COMPARED + 1];
    int *before = storage[0], *above = storage[1], *row = storage[2];
    for (size_t j = 0; j <= columns; j++)
        above[j] = (int)j;
    for (size_t i = 1; i <= rows; i++) {
        row[0] = (int)i;
        int best = row[0];
        for (size_t j = 1; j <= columns; j++) {
            int replace = above[j - 1] + (a[i - 1] != b[j - 1]);
            row[j] = smaller(replace, smaller(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = smaller(row[j], before[j - 2] + 1);
            best = smaller(best, row[j]);
        }
        if (best >= limit)
            return limit;
        int *oldest = before;
        before = above;
        above = row;
        row = oldest;
    }
    return smaller(above[columns], limit);
}

const char *nearest_name(const char *name, const char *const *candidates, int count) {
    size_t length = strlen(name);
    /* A third of the letters may be wrong: "rmsnrom" finds rmsnorm, "q" finds nothing longer.
     */
    int limit = length > LONGEST_COMPARED ? 1 : length < 6 ? 2 : (int)length / 3 + 1;
    const char *nearest = NULL;
    for (int i = 0; i < count; i++) {
        int distance = edit_distance(name, candidates[i], limit);
        if (distance < limit && distance < (int)length) {
            nearest = candidates[i];
            limit = distance;
        }
    }
    return nearest;
}

/* ---- whole files ----------------------------------------------------------------- */

char *read_file(const char *path, size_t limit, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    Text text = {0};
    int error = 0;
    for (;;) {
        char chunk[1 << 16];
        size_t got = fread(chunk, 1, sizeof chunk, file);
        text_append(&text, chunk, got);
        if (text.length > limit)
            error = EFBIG;
        else if (ferror(file))
            error = errno ? errno : EIO;
        if (got < sizeof chunk || error)
            break;
    }
    fclose(file);
    if (error) {
        text_free(&text);
        errno = error;
        return NULL;
    }
    *length = text.length;
    return text.data;
}
