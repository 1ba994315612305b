/* colac build: everything that would run, as files to read: programs, kernels, a report. */
#include "driver/driver.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SOURCE_PARTS = 4 }; /* of C */

/* Files that are complete and synced, but not under their names yet: they appear together. */
typedef struct Staging {
    const char *folder;
    bool is_new; /* the folder was made for them */
    ARRAY(NewFile *) files;
    StringMap names; /* of the files */
    Diagnostics *diagnostics;
} Staging;

/* ---- the folder ----------------------------------------------------------------------
 * A folder of builds is known by its report, which appears first: so a build that was killed
 * leaves such a folder, or one with nothing but temporary files of its own. */

enum { MAX_REPORT_BYTES = 1 << 26 };
/* What every report has below its heading. */
#define REPORT_MARK "\n\ntext to programs "

static bool ends_in(const char *name, const char *end) {
    size_t length = strlen(name), most = strlen(end);
    return length > most && strcmp(name + length - most, end) == 0;
}

/* Digits at the place, at least one: where they end.  NULL. */
static const char *past_digits(const char *at) {
    const char *end = at;
    while (isdigit((unsigned char)*end))
        end++;
    return end > at ? end : NULL;
}

/* Is it, in its first `length` bytes, the name of a file that builds write? */
static bool is_of_build(const char *name, size_t length) {
    static const char *const names[] = {"report.txt", "module.ir", "micro.txt", "update.txt",
                                        "eval.txt"};
    static const char *const ends[] = {".c", ".so", ".cu", ".cubin"};
    bool found = false;
    for (int i = 0; i < COUNT_OF(names); i++)
        found |= strlen(names[i]) == length && memcmp(name, names[i], length) == 0;
    const char *end = strncmp(name, "kernels_", 8) == 0 ? past_digits(name + 8) : NULL;
    for (int i = 0; end && i < COUNT_OF(ends); i++)
        found |= strncmp(end, ends[i], strlen(ends[i])) == 0 &&
                 (size_t)(end - name) + strlen(ends[i]) == length;
    return found;
}

/* The name of a file that was not published yet when its build was killed:
 * `.NAME.PID-N.tmp`. */
static bool is_leftover(const char *name) {
    if (name[0] != '.' || !ends_in(name, ".tmp"))
        return false;
    const char *dot = name + strlen(name) - strlen(".tmp");
    do
        dot--;
    while (dot > name && *dot != '.');
    const char *end = past_digits(dot + 1);
    end = end && *end == '-' ? past_digits(end + 1) : NULL;
    return dot > name && end && strcmp(end, ".tmp") == 0 &&
           is_of_build(name + 1, (size_t)(dot - name) - 1);
}

static bool has_report(const char *folder) {
    Text path = {0};
    size_t length = 0;
    text_printf(&path, "%s/report.txt", folder);
    char *report = read_file(text_string(&path), MAX_REPORT_BYTES, &length);
    bool found = report && strstr(report, REPORT_MARK);
    free(report);
    text_free(&path);
    return found;
}

/* A folder that holds anything else is not for builds.  False after reporting. */
static bool is_for_builds(const char *path, Diagnostics *diagnostics) {
    DIR *folder = opendir(path);
    const struct dirent *entry;
    bool fine = true, built = has_report(path);
    while (folder && fine && (entry = readdir(folder))) {
        const char *name = entry->d_name;
        fine = strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || is_leftover(name) ||
               (built && is_of_build(name, strlen(name)));
        if (!fine)
            help(error_in_file(
                     diagnostics, path,
                     "there is something in the folder that no build has written: `%s`", name),
                 "name a folder that is new, empty or of an earlier build: `-o DIR`");
    }
    if (folder)
        closedir(folder);
    return fine;
}

/* What an earlier build left under names that this one does not use. */
static void remove_earlier(const Staging *staging) {
    DIR *folder = opendir(staging->folder);
    const struct dirent *entry;
    while (folder && (entry = readdir(folder)))
        if ((is_of_build(entry->d_name, strlen(entry->d_name)) &&
             !string_map_get(&staging->names, entry->d_name, 0)) ||
            is_leftover(entry->d_name))
            unlinkat(dirfd(folder), entry->d_name, 0);
    if (folder)
        closedir(folder);
}

static bool write_file(Staging *staging, const char *name, const Text *text) {
    Text path = {0};
    text_printf(&path, "%s/%s", staging->folder, name);
    NewFile *file = new_file_open(text_string(&path), staging->diagnostics);
    text_free(&path);
    if (!file)
        return false;
    new_file_write(file, text_string(text), text->length);
    array_push(&staging->files, file);
    string_map_set(&staging->names, name, 1);
    return new_file_sync(file, staging->diagnostics);
}

/* All of them, the report first, or, where one of them failed, none, and no empty folder. */
static bool publish(Staging *staging, bool fine) {
    for (int64_t i = staging->files.count - 1; i >= 0; i--)
        if (fine)
            fine = new_file_publish(staging->files.data[i], staging->diagnostics);
        else
            new_file_abandon(staging->files.data[i]);
    array_free(&staging->files);
    if (fine)
        remove_earlier(staging);
    string_map_free(&staging->names);
    if (!fine && staging->is_new)
        rmdir(staging->folder); /* succeeds where it is empty */
    return fine;
}

static bool write_programs(const ProgramSet *set, Staging *staging) {
    bool fine = true;
    for (int i = 0; i < set->program_count && fine; i++) {
        Text text = {0}, name = {0};
        program_print(set, &set->programs[i], &text);
        text_printf(&name, "%s.txt", set->programs[i].name);
        fine = write_file(staging, text_string(&name), &text);
        text_free(&text);
        text_free(&name);
    }
    Text module = {0};
    ir_print(set->module, STAGE_MEMORY, &module);
    fine = fine && write_file(staging, "module.ir", &module);
    text_free(&module);
    return fine;
}

static bool write_sources(Text *sources, int count, const char *suffix, Staging *staging) {
    bool fine = true;
    for (int i = 0; i < count && fine; i++) {
        char name[32];
        snprintf(name, sizeof name, "kernels_%d%s", i, suffix);
        fine = write_file(staging, name, &sources[i]);
    }
    return fine;
}

/* Percent, of the threads that a processor can hold, that it does. */
static int occupancy_of(const Card *card, const Launch *launch, const KernelResources *r) {
    INTERNAL_CHECK(card && r->registers >= 0);
    return 100 * launch->threads * launch->teams * card_resident_blocks(card, launch, r) /
           card->processor_threads;
}

static void report_launches(const CudaSource *source, const CubinResult *result,
                            CudaArchitecture architecture, Text *out) {
    const Card *card = card_of_architecture(architecture);
    if (card)
        text_printf(out, "\noccupancy: of a processor of %s\n", card->title);
    else
        text_printf(out,
                    "\nno figures of a card of architecture sm_%d are known: so no occupancy, "
                    "and no predicted time\n",
                    architecture);
    text_printf(out, "\n%9s %7s %9s %9s %7s %9s  %s\n", "blocks", "threads", "registers",
                "shared B", "spill B", "occupancy", "kernel");
    for (int i = 0; i < source->launch_count; i++) {
        const Launch *launch = source->launches[i];
        const KernelResources *r = &result->resources[i];
        int threads = launch->threads * launch->teams;
        char occupancy[16] = "";
        if (r->registers < 0) {
            text_printf(out, "%9lld %7d %9s %9s %7s %9s  %s\n", (long long)launch->blocks,
                        threads, "?", "?", "?", "?", launch->name);
            continue;
        }
        if (card)
            snprintf(occupancy, sizeof occupancy, "%d%%", occupancy_of(card, launch, r));
        text_printf(out, "%9lld %7d %9d %9d %7d %9s  %s\n", (long long)launch->blocks, threads,
                    r->registers, r->shared_bytes, r->spill_bytes, occupancy, launch->name);
    }
}

static json_t *launches_json(const CudaSource *source, const CubinResult *result,
                             CudaArchitecture architecture) {
    const Card *card = card_of_architecture(architecture);
    json_t *array = json_array();
    for (int i = 0; i < source->launch_count; i++) {
        const Launch *launch = source->launches[i];
        const KernelResources *r = &result->resources[i];
        json_t *object =
            json_pack("{s:s, s:I, s:i}", "name", launch->name, "blocks",
                      (json_int_t)launch->blocks, "threads", launch->threads * launch->teams);
        if (r->registers >= 0)
            json_object_update_new(
                object, json_pack("{s:i, s:i, s:i}", "registers", r->registers, "shared_bytes",
                                  r->shared_bytes, "spill_bytes", r->spill_bytes));
        if (card && r->registers >= 0)
            json_object_set_new(object, "occupancy_percent",
                                json_integer(occupancy_of(card, launch, r)));
        json_array_append_new(array, object);
    }
    return array;
}

/* What the compiler made of the kernels. */
typedef struct Compiling {
    double seconds;
    bool cached;
    int64_t launch_count; /* CUDA */
    Text table;           /* of them */
    json_t *launches;
} Compiling;

/* The kernels' sources, and the cubins that they compile to. */
static bool write_cubins(const ProgramSet *set, CudaArchitecture architecture, Staging *staging,
                         Compiling *compiling) {
    CudaSource source = cuda_source(set);
    bool fine = cuda_source_fits(&source, set->module, staging->diagnostics) &&
                write_sources(source.texts, source.text_count, ".cu", staging);
    CubinResult *result =
        fine ? cubin_compile(&source, architecture, false, staging->diagnostics) : NULL;
    for (int i = 0; result && i < result->cubin_count && fine; i++) {
        char name[32];
        Text cubin = {0};
        text_append(&cubin, result->cubins[i].bytes, result->cubins[i].size);
        snprintf(name, sizeof name, "kernels_%d.cubin", i);
        fine = write_file(staging, name, &cubin);
        text_free(&cubin);
    }
    if (result) {
        compiling->seconds = result->seconds;
        compiling->cached = result->cached;
        compiling->launch_count = source.launch_count;
        report_launches(&source, result, architecture, &compiling->table);
        compiling->launches = launches_json(&source, result, architecture);
    }
    fine = fine && result;
    cubin_free(result);
    cuda_source_free(&source);
    return fine;
}

/* The kernels' sources, and the shared objects that they compile to. */
static bool write_kernels(const ProgramSet *set, Staging *staging, Compiling *compiling) {
    Text sources[SOURCE_PARTS] = {{0}};
    emit_c(set, SOURCE_PARTS, sources);
    bool fine = write_sources(sources, SOURCE_PARTS, ".c", staging);
    JitResult *result = fine ? jit_compile(sources, SOURCE_PARTS, set->kernel_names,
                                           set->kernel_count, staging->diagnostics)
                             : NULL;
    for (int i = 0; result && i < result->object_count && fine; i++) {
        size_t length;
        Text object = {0};
        char name[32];
        char *bytes = read_file(result->objects[i], SIZE_MAX / 2, &length);
        if (bytes)
            text_append(&object, bytes, length);
        else
            error_in_file(staging->diagnostics, result->objects[i], "cannot be read: %s",
                          strerror(errno));
        snprintf(name, sizeof name, "kernels_%d.so", i);
        fine = bytes && write_file(staging, name, &object);
        free(bytes);
        text_free(&object);
    }
    fine = fine && result;
    if (result) {
        compiling->seconds = result->seconds;
        compiling->cached = result->cached;
        jit_free(result);
    }
    for (int i = 0; i < SOURCE_PARTS; i++)
        text_free(&sources[i]);
    return fine;
}

static void report(const Options *options, const Compiled *compiled, const Compiling *compiling,
                   Text *out) {
    const ProgramSet *set = compiled->programs;
    char buffer[32];
    const Card *card = card_of_architecture(options->architecture);
    text_printf(out, "%s%s%s%s%s\n\n", options->request.path,
                options->request.preset ? ", preset " : "",
                options->request.preset ? options->request.preset : "",
                options->request.plan ? ", plan " : "",
                options->request.plan ? options->request.plan : "");
    text_printf(out, "text to programs    %8.3f s\n", compiled->seconds);
    for (int64_t i = 0; i < compiled->reports.count; i++)
        text_printf(out, "    %-16s%8.3f s %9lld nodes\n", compiled->reports.data[i].name,
                    compiled->reports.data[i].seconds,
                    (long long)compiled->reports.data[i].nodes);
    bool cuda = options->device == DEVICE_CUDA;
    text_printf(out, "%s   %8.3f s%s\n", cuda ? "CUDA C to cubins " : "C to machine code",
                compiling->seconds, compiling->cached ? ": all were in the cache" : "");
    if (cuda)
        text_printf(out, "NVRTC's options     --gpu-architecture=sm_%d %s\n",
                    options->architecture, cubin_options());
    else
        text_printf(out, "compiler's flags    %s\n", jit_flags());
    text_printf(out, "distinct kernels    %8d", set->kernel_count);
    if (cuda)
        text_printf(out, ", launched as %lld functions", (long long)compiling->launch_count);
    text_puts(out, "\n");
    text_printf(out, "distinct products   %8d\n", set->product_count);
    for (int i = 0; i < set->program_count; i++)
        text_printf(out, "program %-12s%8lld steps, arena %s\n", set->programs[i].name,
                    (long long)set->programs[i].step_count,
                    bytes_text(set->programs[i].arena_bytes, buffer));
    MemoryTable memory = planned_memory(compiled, options);
    text_printf(out, "peak memory         %s B\n", with_commas(memory.peak, buffer));
    if (cuda && card)
        text_printf(out,
                    "one micro-batch and update on %s: %.4g s, a prediction that nobody has "
                    "measured\n",
                    card->title, card_predict_step(card, set, 1).seconds);
}

static json_t *passes_json(const PassReports *reports) {
    json_t *passes = json_array();
    for (int64_t i = 0; i < reports->count; i++) {
        const PassReport *pass = &reports->data[i];
        json_array_append_new(passes,
                              json_pack("{s:s, s:f, s:I}", "name", pass->name, "seconds",
                                        pass->seconds, "nodes", (json_int_t)pass->nodes));
    }
    return passes;
}

static json_t *programs_json(const ProgramSet *set) {
    json_t *programs = json_array();
    for (int i = 0; i < set->program_count; i++)
        json_array_append_new(
            programs, json_pack("{s:s, s:I, s:I}", "name", set->programs[i].name, "steps",
                                (json_int_t)set->programs[i].step_count, "arena_bytes",
                                (json_int_t)set->programs[i].arena_bytes));
    return programs;
}

/* What the report says of a card; `card`: null where none of the architecture is known. */
static void add_card(json_t *object, const Options *options, const ProgramSet *set) {
    const Card *card = card_of_architecture(options->architecture);
    json_object_set_new(object, "architecture", json_sprintf("sm_%d", options->architecture));
    json_object_set_new(object, "card", card ? json_string(card->title) : json_null());
    if (card)
        json_object_set_new(
            object, "predicted_step_s_on",
            json_pack("{s:f}", card->name, card_predict_step(card, set, 1).seconds));
}

/* The report for programs. */
static void print_report_json(const Options *options, const Compiled *compiled,
                              const Compiling *compiling) {
    const ProgramSet *set = compiled->programs;
    const Request *request = &options->request;
    bool cuda = options->device == DEVICE_CUDA;
    Arena *arena = arena_new();
    json_t *object = json_pack(
        "{s:s, s:s?, s:s?, s:s, s:s, s:f, s:o, s:f, s:b, s:s, s:i, s:i, s:o, s:I}", "model",
        json_path(request->path, arena), "preset", request->preset, "plan",
        request->plan ? json_path(request->plan, arena) : NULL, "device", cuda ? "cuda" : "cpu",
        "folder", json_path(options->output, arena), "text_to_programs_s", compiled->seconds,
        "passes", passes_json(&compiled->reports), "compile_s", compiling->seconds,
        "compile_cached", (int)compiling->cached, "compiler_options",
        cuda ? cubin_options() : jit_flags(), "kernels", set->kernel_count, "products",
        set->product_count, "programs", programs_json(set), "peak_bytes",
        (json_int_t)planned_memory(compiled, options).peak);
    INTERNAL_CHECK(object);
    if (cuda)
        add_card(object, options, set);
    if (compiling->launches)
        json_object_set(object, "launches", compiling->launches);
    print_json_object(object);
    arena_free(arena);
}

/* Everything, or, after reporting, nothing. */
static void write_build(const Options *options, const Compiled *compiled) {
    Staging staging = {.folder = options->output,
                       .is_new = access(options->output, F_OK) != 0,
                       .diagnostics = compiled->diagnostics};
    Text text = {0};
    Compiling compiling = {0};
    bool fine =
        make_folder(staging.folder, staging.diagnostics) &&
        is_for_builds(staging.folder, staging.diagnostics) &&
        write_programs(compiled->programs, &staging) &&
        (options->device == DEVICE_CUDA
             ? write_cubins(compiled->programs, options->architecture, &staging, &compiling)
             : write_kernels(compiled->programs, &staging, &compiling));
    if (fine) {
        report(options, compiled, &compiling, &text);
        text_puts(&text, text_string(&compiling.table));
        fine = write_file(&staging, "report.txt", &text);
    }
    if (publish(&staging, fine)) {
        if (options->json)
            print_report_json(options, compiled, &compiling);
        else
            fputs(text_string(&text), stdout);
    }
    text_free(&text);
    text_free(&compiling.table);
    json_decref(compiling.launches);
}

int run_build_command(Options *options) {
    if (!options->output) {
        fprintf(stderr, "colac build: `-o DIR` says where to write\n");
        return 2;
    }
    if (options->device == DEVICE_CUDA && !options->architecture) {
        fprintf(stderr, "colac build: for which architecture?  `--device cuda:sm_80` (A100), "
                        "`cuda:sm_90` (H100), `cuda:sm_100` (B200)\n");
        return 2;
    }
    if (options->device == DEVICE_INTERPRETER) {
        fprintf(stderr,
                "colac build: the interpreter has no programs to write: `--device cpu`\n");
        return 2;
    }
    Compiled compiled;
    int code = 1;
    if (compile_programs(&compiled, options, true)) {
        write_build(options, &compiled);
        code = finish(compiled.diagnostics);
    }
    compiled_free(&compiled);
    return code;
}
