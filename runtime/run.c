/* runtime/run.c: the folder of a run: its weights, what was asked, and with which texts. */
#include "runtime/runtime.h"

#include <jansson.h>
#include <math.h>

enum { RUN_FORMAT = 1 };
#define MAX_RECORD_BYTES ((size_t)16 << 20)

char *run_weights_path(const char *folder, Arena *arena) {
    return arena_printf(arena, "%s/weights.safetensors", folder);
}

/* ---- writing ------------------------------------------------------------------------ */

typedef struct RunWriting {
    const char *folder;
    Arena *arena;
    Diagnostics *diagnostics;
    const char *root; /* the folder that holds all texts, with its slash */
    ARRAY(NewFile *) staged;
} RunWriting;

extern const char embedded_std_cola[];

static bool in_library(const Source *source) {
    return source->text == embedded_std_cola;
}

/* Absolute, without links; the name itself where the file is gone. */
static const char *resolved(const char *path, Arena *arena) {
    char *absolute = realpath(path, NULL);
    const char *copy = arena_strdup(arena, absolute ? absolute : path);
    free(absolute);
    return copy;
}

/* Shortens the root until it is a folder of `path` too. */
static void widen_root(RunWriting *writing, const char *path) {
    const char *whole = resolved(path, writing->arena);
    size_t length = 0;
    if (!writing->root)
        writing->root = whole;
    for (size_t i = 0; writing->root[i] && writing->root[i] == whole[i]; i++)
        if (whole[i] == '/')
            length = i + 1;
    writing->root = arena_strndup(writing->arena, writing->root, length);
}

/* Where a text lies below RUN/texts.  Texts keep their places to one another, so that `use`
 * finds them there. */
static const char *place_of(const RunWriting *writing, const char *path) {
    const char *whole = resolved(path, writing->arena);
    return arena_printf(writing->arena, "texts/%s", whole + strlen(writing->root));
}

static bool stage(RunWriting *writing, const char *place, const char *bytes, size_t length) {
    char *path = arena_printf(writing->arena, "%s/%s", writing->folder, place);
    char *folder = arena_strndup(writing->arena, path, (size_t)(strrchr(path, '/') - path));
    if (!make_folder(folder, writing->diagnostics))
        return false;
    NewFile *file = new_file_open(path, writing->diagnostics);
    if (!file)
        return false;
    array_push(&writing->staged, file);
    new_file_write(file, bytes, length);
    return new_file_sync(file, writing->diagnostics);
}

static bool stage_texts(RunWriting *writing, const Compilation *compilation,
                        const Source *map) {
    for (const Source *s = compilation->texts->sources; s; s = s->next)
        if (!in_library(s))
            widen_root(writing, s->name);
    if (map)
        widen_root(writing, map->name);
    bool good = true;
    for (const Source *s = compilation->texts->sources; s && good; s = s->next)
        if (!in_library(s))
            good = stage(writing, place_of(writing, s->name), s->text, s->length);
    if (map && good)
        good = stage(writing, place_of(writing, map->name), map->text, map->length);
    return good;
}

/* A plan or recipe by NAME or FILE:NAME, the file as its place below the run; null without one.
 */
static json_t *placed_name(const RunWriting *writing, const char *name) {
    const char *colon = name ? strrchr(name, ':') : NULL;
    if (!name)
        return json_null();
    if (colon) {
        const char *file = arena_strndup(writing->arena, name, (size_t)(colon - name));
        name = arena_printf(writing->arena, "%s%s", place_of(writing, file), colon);
    }
    return json_string(json_path(name, writing->arena));
}

static json_t *number_or_null(double number) {
    return isfinite(number) ? json_real(number) : json_null();
}

static json_t *record_of(const RunWriting *writing, const TrainOptions *options,
                         const RunEnd *end) {
    const Request *request = options->request;
    Arena *arena = writing->arena;
    json_t *defines = json_array();
    for (int i = 0; i < request->define_count; i++)
        json_array_append_new(defines,
                              json_pack("[s,s]", json_path(request->defines[i].name, arena),
                                        json_path(request->defines[i].value, arena)));
    json_t *record = json_pack(
        "{s:i, s:s, s:s?, s:o, s:o, s:s?, s:o, s:I, s:s, s:s, s:s, s:I, s:b, s:o, s:o}",
        "format", RUN_FORMAT, "model", json_path(place_of(writing, request->path), arena),
        "preset", request->preset, "plan", placed_name(writing, request->plan), "recipe",
        placed_name(writing, request->recipe), "precision", request->precision, "defines",
        defines, "seed", (json_int_t)options->seed, "names",
        options->their_names ? "hf" : "own", "data", json_path(options->data, arena), "device",
        end->device, "steps", (json_int_t)end->steps, "interrupted", end->interrupted,
        "final_loss", number_or_null(end->final_loss), "val_loss",
        number_or_null(end->validation_loss));
    INTERNAL_CHECK(record);
    return record;
}

static bool stage_record(RunWriting *writing, const TrainOptions *options, const RunEnd *end) {
    json_t *record = record_of(writing, options, end);
    char *text = json_dumps(record, JSON_INDENT(1));
    INTERNAL_CHECK(text);
    bool good = stage(writing, "run.json", text, strlen(text));
    free(text);
    json_decref(record);
    return good;
}

bool run_write(const Compilation *compilation, const Mapping *mapping,
               const TrainOptions *options, const RunEnd *end, NewFile *weights,
               Diagnostics *diagnostics) {
    RunWriting writing = {
        .folder = options->out, .arena = arena_new(), .diagnostics = diagnostics};
    bool good = new_file_sync(weights, diagnostics) &&
                stage_texts(&writing, compilation, mapping_source(mapping)) &&
                stage_record(&writing, options, end);
    array_push(&writing.staged, weights);
    for (int64_t i = 0; i < writing.staged.count; i++) {
        if (good)
            good = new_file_publish(writing.staged.data[i], diagnostics);
        else
            new_file_abandon(writing.staged.data[i]);
    }
    array_free(&writing.staged);
    arena_free(writing.arena);
    return good;
}

/* ---- reading ------------------------------------------------------------------------ */

static RunRecord *damaged(const char *path, Diagnostics *diagnostics, const char *what) {
    help(error_in_file(diagnostics, path, "this is not the record of a run: %s", what),
         "a run is a folder that `colac train … --out RUN` wrote");
    return NULL;
}

/* Optional strings are null or absent.  A path in the record is below the run's folder. */
static const char *string_of(const json_t *record, const char *key, Arena *arena) {
    const char *value = json_string_value(json_object_get(record, key));
    return value ? arena_strdup(arena, value) : NULL;
}

static const char *plan_of(const json_t *record, const char *key, const char *folder,
                           Arena *arena) {
    const char *name = string_of(record, key, arena);
    return name && strchr(name, ':') ? arena_printf(arena, "%s/%s", folder, name) : name;
}

static bool read_defines(const json_t *record, Request *request, Arena *arena) {
    const json_t *list = json_object_get(record, "defines");
    size_t count = json_array_size(list); /* 0 for what is no array */
    Define *defines = arena_alloc_array(arena, count, sizeof *defines);
    for (size_t i = 0; i < count; i++) {
        const json_t *pair = json_array_get(list, i);
        const char *name = json_string_value(json_array_get(pair, 0));
        const char *value = json_string_value(json_array_get(pair, 1));
        if (!name || !value)
            return false;
        defines[i] = (Define){arena_strdup(arena, name), arena_strdup(arena, value)};
    }
    request->defines = defines;
    request->define_count = (int)count;
    return true;
}

static RunRecord *read_record(const json_t *json, const char *folder, const char *path,
                              Arena *arena, Diagnostics *diagnostics) {
    if (json_integer_value(json_object_get(json, "format")) != RUN_FORMAT)
        return damaged(path, diagnostics, "its format is not 1");
    RunRecord *record = arena_alloc(arena, sizeof *record);
    const char *model = string_of(json, "model", arena),
               *names = string_of(json, "names", arena);
    if (!model || !names)
        return damaged(path, diagnostics, "it names no model");
    record->request.path = arena_printf(arena, "%s/%s", folder, model);
    record->request.preset = string_of(json, "preset", arena);
    record->request.plan = plan_of(json, "plan", folder, arena);
    record->request.recipe = plan_of(json, "recipe", folder, arena);
    record->request.precision = string_of(json, "precision", arena);
    if (!read_defines(json, &record->request, arena))
        return damaged(path, diagnostics, "its defines are no list of names and values");
    record->weights = run_weights_path(folder, arena);
    record->seed = (uint64_t)json_integer_value(json_object_get(json, "seed"));
    record->their_names = strcmp(names, "hf") == 0;
    return record;
}

RunRecord *run_open(const char *folder, Arena *arena, Diagnostics *diagnostics) {
    char *path = arena_printf(arena, "%s/run.json", folder);
    size_t length;
    char *text = read_file(path, MAX_RECORD_BYTES, &length);
    if (!text)
        return damaged(path, diagnostics, "it cannot be read");
    json_error_t error;
    json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    RunRecord *record = NULL;
    if (json)
        record = read_record(json, folder, path, arena, diagnostics);
    else
        damaged(path, diagnostics, "it is no JSON text");
    json_decref(json);
    free(text);
    return record;
}
