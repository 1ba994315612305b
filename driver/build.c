/* colac build: everything that would run, as files to read: programs, kernels, a report. */
#include "driver/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SOURCE_PARTS = 4 };

/* Files that are complete and synced, but not under their names yet: they appear together. */
typedef struct Staging {
    const char *folder;
    bool is_new; /* the folder was made for them */
    ARRAY(NewFile *) files;
    Diagnostics *diagnostics;
} Staging;

static bool write_file(Staging *staging, const char *name, const Text *text) {
    Text path = {0};
    text_printf(&path, "%s/%s", staging->folder, name);
    NewFile *file = new_file_open(text_string(&path), staging->diagnostics);
    text_free(&path);
    if (!file)
        return false;
    new_file_write(file, text_string(text), text->length);
    array_push(&staging->files, file);
    return new_file_sync(file, staging->diagnostics);
}

/* All of them, or, where one of them failed, none, and no empty folder. */
static bool publish(Staging *staging, bool fine) {
    for (int64_t i = 0; i < staging->files.count; i++)
        if (fine)
            fine = new_file_publish(staging->files.data[i], staging->diagnostics);
        else
            new_file_abandon(staging->files.data[i]);
    array_free(&staging->files);
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

/* The launches of all kernels, as the compiler has made them. */
typedef ARRAY(Launch) Launches;
typedef ARRAY(const char *) Names;
static void list_launches(const ProgramSet *set, Launches *launches, Names *names) {
    for (int i = 0; i < set->kernel_count; i++) {
        LaunchList list = launches_of(set->kernels[i], set->kernel_names[i]);
        for (int k = 0; k < list.count; k++) {
            array_push(launches, list.launches[k]);
            array_push(names, list.launches[k].name);
        }
    }
}

/* Occupancy: of the threads that a processor can hold, those that it does. */
static void report_launches(const Launches *launches, const CubinResult *result,
                            CudaArchitecture architecture, Text *out) {
    const Card *card = card_of_architecture(architecture);
    if (card)
        text_printf(out, "\noccupancy: of a processor of %s\n", card->title);
    text_printf(out, "\n%9s %7s %9s %9s %7s %9s  %s\n", "blocks", "threads", "registers",
                "shared B", "spill B", "occupancy", "kernel");
    for (int64_t i = 0; i < launches->count; i++) {
        const Launch *launch = &launches->data[i];
        const KernelResources *r = &result->resources[i];
        int threads = launch->threads * launch->teams;
        char occupancy[16] = "";
        if (card)
            snprintf(occupancy, sizeof occupancy, "%d%%",
                     100 * threads * card_resident_blocks(card, launch, r) /
                         card->processor_threads);
        text_printf(out, "%9lld %7d %9d %9d %7d %9s  %s\n", (long long)launch->blocks, threads,
                    r->registers, r->shared_bytes, r->spill_bytes, occupancy, launch->name);
    }
}

/* The kernels' sources, and the cubins that they compile to.  A part has some tens of kernels: each
 * costs the preludes' compilation. */
static bool write_cubins(const ProgramSet *set, CudaArchitecture architecture, Staging *staging,
                         double *compile_seconds, Text *table) {
    Text sources[SOURCE_PARTS] = {{0}};
    Launches launches = {0};
    Names names = {0};
    list_launches(set, &launches, &names);
    emit_cuda(set, SOURCE_PARTS, sources);
    bool fine = write_sources(sources, SOURCE_PARTS, ".cu", staging);
    CubinResult *result =
        fine ? cubin_compile(sources, SOURCE_PARTS, names.data, (int)names.count, architecture,
                             staging->diagnostics)
             : NULL;
    for (int i = 0; result && i < result->cubin_count && fine; i++) {
        char name[32];
        Text cubin = {0};
        text_append(&cubin, result->cubins[i].bytes, result->cubins[i].size);
        snprintf(name, sizeof name, "kernels_%d.cubin", i);
        fine = write_file(staging, name, &cubin);
        text_free(&cubin);
    }
    *compile_seconds = result ? result->seconds : 0;
    if (result)
        report_launches(&launches, result, architecture, table);
    fine = fine && result;
    cubin_free(result);
    for (int i = 0; i < SOURCE_PARTS; i++)
        text_free(&sources[i]);
    array_free(&launches);
    array_free(&names);
    return fine;
}

/* The kernels' sources, and the shared objects that they compile to. */
static bool write_kernels(const ProgramSet *set, Staging *staging, double *compile_seconds) {
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
    *compile_seconds = result ? result->seconds : 0;
    if (result)
        jit_free(result);
    for (int i = 0; i < SOURCE_PARTS; i++)
        text_free(&sources[i]);
    return fine;
}

static void report(const Options *options, const Compiled *compiled, double compile_seconds,
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
    text_printf(out, "C to machine code   %8.3f s\n", compile_seconds);
    if (cuda)
        text_printf(out, "NVRTC's options     --gpu-architecture=sm_%d %s\n",
                    options->architecture, cubin_options());
    else
        text_printf(out, "compiler's flags    %s\n", jit_flags());
    text_printf(out, "distinct kernels    %8d\n", set->kernel_count);
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

/* Everything, or, after reporting, nothing. */
static void write_build(const Options *options, const Compiled *compiled) {
    Staging staging = {.folder = options->output,
                       .is_new = access(options->output, F_OK) != 0,
                       .diagnostics = compiled->diagnostics};
    Text text = {0}, table = {0};
    double compile_seconds = 0;
    bool fine = make_folder(staging.folder, staging.diagnostics) &&
                write_programs(compiled->programs, &staging) &&
                (options->device == DEVICE_CUDA
                     ? write_cubins(compiled->programs, options->architecture, &staging,
                                    &compile_seconds, &table)
                     : write_kernels(compiled->programs, &staging, &compile_seconds));
    if (fine) {
        report(options, compiled, compile_seconds, &text);
        text_puts(&text, text_string(&table));
        fine = write_file(&staging, "report.txt", &text);
    }
    if (publish(&staging, fine))
        fputs(text_string(&text), stdout);
    text_free(&text);
    text_free(&table);
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
    Compiled compiled;
    int code = 1;
    if (compile_programs(&compiled, options, true)) {
        write_build(options, &compiled);
        code = finish(compiled.diagnostics);
    }
    compiled_free(&compiled);
    return code;
}
