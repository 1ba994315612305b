/* passes/pipeline.c: the passes in order, with a reason each.  `--stage`, `--passes`, dumps and
 * timings all come from the list.
 *
 *   COLAC_VERIFY=1    verify the module after every pass (debug builds always do), and check
 *                     that its text parses back to the same text
 *   COLAC_DUMP=DIR    write the module after every pass that changed it to DIR/NN-pass.ir */
#include "passes/passes.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#if defined(COLAC_DEBUG) || defined(__SANITIZE_ADDRESS__)
enum { DEBUG_BUILD = 1 };
#else
enum { DEBUG_BUILD = 0 };
#endif

const Pass pass_list[] = {
    {"factorize", pass_factorize, STAGE_GRAPH, true,
     "first: it takes the graph as the front end checked it, where a weight has its forward "
     "use "
     "alone; the block in its place needs no gradient rule of its own"},
    {"simplify", pass_simplify, STAGE_GRAPH, false,
     "before autodiff: gradients are made only of what is really computed"},
    {"autodiff", pass_autodiff, STAGE_GRAPH, false,
     "on primitives, before anything is placed: whatever follows treats gradients like values"},
    {"tables", pass_tables, STAGE_GRAPH, false,
     "after autodiff, so that values shared with gradients become one table; before update, "
     "whose eval then reads the tables too"},
    {"consume", pass_consume, STAGE_GRAPH, true,
     "when gradients are complete, and before update, which makes slabs for those that are "
     "left"},
    {"update", pass_update, STAGE_GRAPH, true,
     "when all states of training exist: gives them their places in the slabs"},
    {"clean", pass_simplify, STAGE_GRAPH, false,
     "again: gradients multiply by one, optimizers by rates that are constants, and stop has "
     "done its work"},
    {"precision", pass_precision, STAGE_GRAPH, true,
     "when all values exist: final dtypes, so that clones have their originals' and bytes are "
     "what they will be"},
    {"recompute", pass_recompute, STAGE_GRAPH, true,
     "on the final graph, before anything is placed: what follows treats clones like values"},
    {"layout", pass_layout, STAGE_LAYOUT, false,
     "on the final graph: an order of axes for every value that kernels will agree on"},
    {"fuse", pass_fuse, STAGE_FUSE, false,
     "after layout: what runs as one kernel follows from how its operands lie in memory"},
    {"schedule", pass_schedule, STAGE_SCHEDULE, false,
     "orders whole kernels, so after fuse; lifetimes follow from it"},
    {"memory", pass_memory, STAGE_MEMORY, false,
     "last: offsets need the lifetimes that only a final order has"},
};
const int pass_count = COUNT_OF(pass_list);

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int64_t module_nodes(const Module *module) {
    int64_t nodes = 0;
    for (int64_t i = 0; i < module->functions.count; i++)
        nodes += module->functions.data[i]->nodes.count;
    return nodes;
}

/* ---- checks and dumps --------------------------------------------------------------- */

static bool write_module(const Module *module, Stage stage, const char *path) {
    FILE *file = fopen(path, "w");
    if (!file)
        return false;
    Text text = {0};
    ir_print(module, stage, &text);
    bool written = fwrite(text_string(&text), 1, text.length, file) == text.length;
    written &= fclose(file) == 0;
    text_free(&text);
    return written;
}

static _Noreturn void report_broken(const Module *module, const Pass *pass, const char *what) {
    const char *folder = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/colac-%s-%ld.ir", folder ? folder : "/tmp", pass->name,
             (long)getpid());
    bool written = write_module(module, pass->gives, path);
    internal_error("pass %s: %s (the module %s %s)", pass->name, what,
                   written ? "was written to" : "could not be written to", path);
}

/* Print, parse, print must be the identity. */
static void check_text_form(const Module *module, const Pass *pass) {
    Text first = {0}, second = {0};
    ir_print(module, pass->gives, &first);
    Source source = {.name = pass->name, .text = text_string(&first), .length = first.length};
    Diagnostics *diagnostics = diagnostics_new();
    Stage stage;
    Module *parsed = ir_parse(&source, diagnostics, &stage);
    if (parsed)
        ir_print(parsed, stage, &second);
    else
        diagnostics_print(diagnostics, stderr);
    if (!parsed || strcmp(text_string(&first), text_string(&second)) != 0)
        report_broken(module, pass, "its text does not parse back to itself");
    module_free(parsed);
    diagnostics_free(diagnostics);
    text_free(&first);
    text_free(&second);
}

static void check_module(const Module *module, const Pass *pass) {
    const char *asked = getenv("COLAC_VERIFY");
    if (!DEBUG_BUILD && !(asked && *asked && strcmp(asked, "0") != 0))
        return;
    const char *violation = ir_verify(module, pass->gives);
    if (violation)
        report_broken(module, pass, violation);
    check_text_form(module, pass);
}

/* Writes the module's text when it differs from what was dumped last. */
static void dump_changes(const PassContext *context, int position, uint64_t *last_hash) {
    const char *folder = getenv("COLAC_DUMP");
    if (!folder || !*folder)
        return;
    const Pass *pass = &pass_list[position];
    Text text = {0};
    ir_print(context->module, pass->gives, &text);
    uint64_t hash = hash_bytes(text_string(&text), text.length, 0);
    text_free(&text);
    if (hash == *last_hash)
        return;
    *last_hash = hash;
    char path[512];
    snprintf(path, sizeof path, "%s/%02d-%s.ir", folder, position, pass->name);
    if (!write_module(context->module, pass->gives, path))
        fprintf(stderr, "colac: warning: %s: %s\n", path, strerror(errno));
}

Diagnostic *refuse_module(const PassContext *context, const char *pass, const char *format,
                          ...) {
    Text text = {0};
    va_list args;
    va_start(args, format);
    text_vprintf(&text, format, args);
    va_end(args);
    Diagnostic *error = error_in_file(context->diagnostics, context->module->name,
                                      "pass `%s`: %s", pass, text_string(&text));
    text_free(&text);
    return error;
}

/* ---- running ------------------------------------------------------------------------ */

/* -1 after reporting an unknown name. */
static int find_pass(const PassContext *context, const char *name) {
    const char *names[COUNT_OF(pass_list)];
    for (int i = 0; i < pass_count; i++) {
        if (strcmp(pass_list[i].name, name) == 0)
            return i;
        names[i] = pass_list[i].name;
    }
    Diagnostic *error = error_in_file(context->diagnostics, context->module->name,
                                      "there is no pass `%s`", name);
    const char *near = nearest_name(name, names, pass_count);
    Text list = {0};
    for (int i = 0; i < pass_count; i++)
        text_printf(&list, "%s%s", i ? ", " : "", names[i]);
    if (near)
        help(error, "did you mean `%s`?", near);
    else
        help(error, "there are %s", text_string(&list));
    text_free(&list);
    return -1;
}

/* A compilation speaks of its own module's states. */
static bool has_compilation(const PassContext *context) {
    return context->compilation && context->compilation->module == context->module;
}

static bool run_pass(PassContext *context, int position, PassReports *reports) {
    const Pass *pass = &pass_list[position];
    if (pass->needs_compilation && !has_compilation(context)) {
        Diagnostic *error =
            refuse_module(context, pass->name, "it asks for a model's plan and recipe");
        help(error, "name the model: `--model FILE.cola --plan NAME --recipe NAME`");
        return false;
    }
    double started = seconds_now();
    bool done = pass->run(context);
    PassReport report = {pass->name, seconds_now() - started, module_nodes(context->module)};
    if (reports)
        array_push(reports, report);
    if (done)
        check_module(context->module, pass);
    return done;
}

bool run_passes(PassContext *context, const char *last, PassReports *reports) {
    int end = last ? find_pass(context, last) : pass_count - 1;
    uint64_t dumped = 0;
    for (int i = 0; i <= end; i++) {
        if (!run_pass(context, i, reports))
            return false;
        dump_changes(context, i, &dumped);
    }
    return end >= 0;
}

/* A pass takes what the one before it in the list gives. */
static bool stage_fits(const PassContext *context, int position, Stage stage) {
    Stage needed = position ? pass_list[position - 1].gives : STAGE_GRAPH;
    if (stage == needed)
        return true;
    refuse_module(context, pass_list[position].name,
                  "it takes a module at stage %s, and this one is at stage %s",
                  stage_name(needed), stage_name(stage));
    return false;
}

bool run_named_passes(PassContext *context, const char *names, Stage *stage) {
    const char *violation = ir_verify(context->module, *stage);
    if (violation) {
        error_in_file(context->diagnostics, context->module->name,
                      "the module is malformed: %s", violation);
        return false;
    }
    Arena *arena = arena_new();
    bool done = true;
    for (const char *name = names; done && *name;) {
        size_t length = strcspn(name, ",");
        int position = find_pass(context, arena_strndup(arena, name, length));
        done = position >= 0 && stage_fits(context, position, *stage) &&
               run_pass(context, position, NULL);
        if (done)
            *stage = pass_list[position].gives;
        name += length + (name[length] == ',');
    }
    arena_free(arena);
    return done;
}
