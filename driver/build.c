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

/* The kernels' sources, and the shared objects that they compile to. */
static bool write_kernels(const ProgramSet *set, Staging *staging, double *compile_seconds) {
    Text sources[SOURCE_PARTS] = {{0}};
    emit_c(set, SOURCE_PARTS, sources);
    bool fine = true;
    for (int i = 0; i < SOURCE_PARTS && fine; i++) {
        char name[32];
        snprintf(name, sizeof name, "kernels_%d.c", i);
        fine = write_file(staging, name, &sources[i]);
    }
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
    text_printf(out, "C to machine code   %8.3f s\n", compile_seconds);
    text_printf(out, "compiler's flags    %s\n", jit_flags());
    text_printf(out, "distinct kernels    %8d\n", set->kernel_count);
    text_printf(out, "distinct products   %8d\n", set->product_count);
    for (int i = 0; i < set->program_count; i++)
        text_printf(out, "program %-12s%8lld steps, arena %s\n", set->programs[i].name,
                    (long long)set->programs[i].step_count,
                    bytes_text(set->programs[i].arena_bytes, buffer));
    MemoryTable memory = planned_memory(compiled, options->threads);
    text_printf(out, "peak memory         %s B\n", with_commas(memory.peak, buffer));
}

/* Everything, or, after reporting, nothing. */
static void write_build(const Options *options, const Compiled *compiled) {
    Staging staging = {.folder = options->output,
                       .is_new = access(options->output, F_OK) != 0,
                       .diagnostics = compiled->diagnostics};
    Text text = {0};
    double compile_seconds = 0;
    bool fine = make_folder(staging.folder, staging.diagnostics) &&
                write_programs(compiled->programs, &staging) &&
                write_kernels(compiled->programs, &staging, &compile_seconds);
    if (fine) {
        report(options, compiled, compile_seconds, &text);
        fine = write_file(&staging, "report.txt", &text);
    }
    if (publish(&staging, fine))
        fputs(text_string(&text), stdout);
    text_free(&text);
}

int run_build_command(Options *options) {
    if (!options->output) {
        fprintf(stderr, "colac build: `-o DIR` says where to write\n");
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
