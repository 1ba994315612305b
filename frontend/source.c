/* source.c: a text and all the texts it uses. */
#include "frontend/frontend.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_USE_DEPTH = 100, MAX_NEAR_FILES = 50 };
#define MAX_TEXT_BYTES ((size_t)100 << 20)

/* The library: texts that the program carries within itself. */
extern const char embedded_std_cola[];
static const struct { const char *name, *text; } library[] = {{"std.cola", embedded_std_cola}};

/* A text that is loaded or being loaded. */
typedef struct LoadedText {
    char *identity; /* its resolved path, or `library:NAME` */
    char *bytes;    /* NULL: in the library */
    struct LoadedText *next;
} LoadedText;

static bool is_loaded(const Texts *texts, const char *identity) {
    for (const LoadedText *text = texts->loaded; text; text = text->next)
        if (!strcmp(text->identity, identity))
            return true;
    return false;
}

static Source *add_source(Texts *texts, const char *name, const char *bytes, size_t length) {
    Source *source = arena_alloc(texts->arena, sizeof *source);
    source->name = arena_strdup(texts->arena, name);
    source->text = bytes;
    source->length = length;
    source->next = texts->sources;
    texts->sources = source;
    return source;
}

static LoadedText *add_loaded(Texts *texts, const char *identity, char *bytes) {
    LoadedText *text = arena_alloc(texts->arena, sizeof *text);
    text->identity = arena_strdup(texts->arena, identity);
    text->bytes = bytes;
    text->next = texts->loaded;
    texts->loaded = text;
    return text;
}

/* ---- files ----------------------------------------------------------------------- */

/* "" or the folder with its slash. */
static const char *folder_of(Arena *arena, const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? arena_strndup(arena, path, (size_t)(slash - path) + 1) : "";
}

/* A file beside `path` whose name is near to its, as a path; NULL if there is none. */
static const char *near_file(Arena *arena, const char *path) {
    const char *folder = folder_of(arena, path);
    DIR *listing = opendir(*folder ? folder : ".");
    if (!listing)
        return NULL;
    const char *name = path + strlen(folder), *ending = strrchr(name, '.');
    ending = ending ? ending : "";
    ARRAY(const char *) names = {0}; /* without the ending, which would make all look alike */
    for (const struct dirent *entry; names.count < 10000 && (entry = readdir(listing));) {
        size_t length = strlen(entry->d_name), tail = strlen(ending);
        if (entry->d_name[0] != '.' && length > tail &&
            !strcmp(entry->d_name + length - tail, ending))
            array_push(&names, arena_strndup(arena, entry->d_name, length - tail));
    }
    closedir(listing);
    name = arena_strndup(arena, name, strlen(name) - strlen(ending));
    const char *near = nearest_name(name, names.data, (int)names.count);
    array_free(&names);
    return near ? arena_printf(arena, "%s%s%s", folder, near, ending) : NULL;
}

static const char *reason(int error) {
    switch (error) {
    case ENOENT:
        return "there is no such file";
    case EISDIR:
        return "it is a directory";
    case EFBIG:
        return "it is larger than 100 MB";
    default:
        return strerror(error);
    }
}

/* Like read_file; a directory fails with EISDIR. */
static char *read_text(const char *path, size_t *length) {
    struct stat status;
    if (stat(path, &status) != 0)
        return NULL;
    if (S_ISDIR(status.st_mode)) {
        errno = EISDIR;
        return NULL;
    }
    return read_file(path, MAX_TEXT_BYTES, length);
}

/* ---- loading --------------------------------------------------------------------- */

static bool load(Texts *texts, const char *path, Span use, int depth, Diagnostics *diagnostics);

static Item **end_of(Item **items) {
    while (*items)
        items = &(*items)->next;
    return items;
}

static bool in_library(const char *name) {
    for (int i = 0; i < COUNT_OF(library); i++)
        if (!strcmp(library[i].name, name))
            return true;
    return false;
}

/* Parses a source and loads what it uses; the used items come first. */
static void add_items(Texts *texts, const Source *source, int depth, Diagnostics *diagnostics) {
    Item *items = parse_source(source, texts->arena, diagnostics);
    const char *folder = folder_of(texts->arena, source->name);
    for (const Item *item = items; item; item = item->next) {
        if (item->kind != ITEM_USE)
            continue;
        bool absolute = item->name.text[0] == '/';
        const char *path =
            arena_printf(texts->arena, "%s%s", absolute ? "" : folder, item->name.text);
        if (depth == MAX_USE_DEPTH)
            error_at(diagnostics, item->name.span, "`use` within `use`, %d levels deep", depth);
        else
            load(texts, path, item->name.span, depth + 1, diagnostics);
    }
    *end_of(&texts->items) = items;
}

static void load_library(Texts *texts, const char *name, int depth, Diagnostics *diagnostics) {
    const char *identity = arena_printf(texts->arena, "library:%s", name);
    if (is_loaded(texts, identity))
        return;
    add_loaded(texts, identity, NULL);
    for (int i = 0; i < COUNT_OF(library); i++)
        if (!strcmp(library[i].name, name))
            add_items(texts, add_source(texts, name, library[i].text, strlen(library[i].text)),
                      depth, diagnostics);
}

const Item *texts_library(Texts *texts, const char *name, Diagnostics *diagnostics) {
    for (int i = 0; i < COUNT_OF(library); i++)
        if (!strcmp(library[i].name, name)) {
            const char *text = library[i].text;
            const Source *source = add_source(texts, name, text, strlen(text));
            return parse_source(source, texts->arena, diagnostics);
        }
    return NULL;
}

/* Says why `path` cannot be read: at the `use` (use.source set), or about the file itself. */
static void report_unreadable(Arena *arena, const char *path, Span use, int error,
                              Diagnostics *diagnostics) {
    Diagnostic *diagnostic =
        use.source ? error_at(diagnostics, use, "cannot read `%s`: %s", path, reason(error))
                   : error_in_file(diagnostics, path, "cannot read it: %s", reason(error));
    bool first_errors = diagnostics_errors(diagnostics) <= MAX_NEAR_FILES;
    const char *near = error == ENOENT && first_errors ? near_file(arena, path) : NULL;
    if (near)
        help(diagnostic, "did you mean `%s`?", near);
    if (use.source && error == ENOENT)
        help(diagnostic,
             "`use` looks beside the file that says it, then in the built-in library: %s",
             library[0].name);
    else if (!near && error == ENOENT)
        help(diagnostic, "name a text that is there, by its path from this folder or from `/`");
    else if (error == EISDIR)
        help(diagnostic, "name a text in it");
}

/* Loads a file, or the library's text of that name when a `use` finds no file. */
static bool load(Texts *texts, const char *path, Span use, int depth,
                 Diagnostics *diagnostics) {
    size_t length = 0;
    char *identity = realpath(path, NULL);
    if (identity && is_loaded(texts, identity)) {
        free(identity);
        return true;
    }
    char *bytes = read_text(path, &length);
    int error = errno;
    if (bytes) {
        add_loaded(texts, identity ? identity : path, bytes);
        add_items(texts, add_source(texts, path, bytes, length), depth, diagnostics);
    }
    free(identity);
    if (bytes)
        return true;
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    bool used_by_name = use.source && strlen(name) == use.end - use.begin - 2;
    if (used_by_name && error == ENOENT && in_library(name)) {
        load_library(texts, name, depth, diagnostics);
        return true;
    }
    report_unreadable(texts->arena, path, use, error, diagnostics);
    return false;
}

bool texts_add(Texts *texts, const char *path, Diagnostics *diagnostics) {
    return load(texts, path, (Span){0}, 0, diagnostics);
}

Texts *texts_load(const char *path, Diagnostics *diagnostics) {
    Texts *texts = checked_alloc(sizeof *texts);
    texts->arena = arena_new();
    texts->main_path = arena_strdup(texts->arena, path);
    if (texts_add(texts, path, diagnostics))
        return texts;
    texts_free(texts);
    return NULL;
}

void texts_free(Texts *texts) {
    if (!texts)
        return;
    for (LoadedText *text = texts->loaded; text; text = text->next)
        free(text->bytes);
    arena_free(texts->arena);
    free(texts);
}
