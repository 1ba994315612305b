/* colac check: what a model costs under a plan, before anything of its size is allocated. */
#include "driver/driver.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct Figures {
    int64_t parameters, low_rank;
    FlopTable flops;
    MemoryTable memory;
    int kernels, dots, copies;
} Figures;

static Figures figures_of(const Compiled *compiled, int threads) {
    const Compilation *compilation = compiled->compilation;
    const Module *module = compilation->module;
    Figures figures = {0};
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        if (state->role != ROLE_WEIGHT || state->flat)
            continue;
        int64_t elements = type_elements(module, state_type(state));
        figures.parameters += elements;
        figures.low_rank += state->low_rank ? elements : 0;
    }
    figures.flops = flop_table(module, compilation->sequences * compilation->positions);
    figures.memory = planned_memory(compiled, threads);
    StructureCounts micro = structure_counts(module, "micro");
    StructureCounts update = structure_counts(module, "update");
    figures.kernels = micro.kernels + update.kernels;
    figures.dots = micro.dots + update.dots;
    figures.copies = micro.copies + update.copies;
    return figures;
}

static void print_json(const Figures *figures) {
    json_t *object = json_pack(
        "{s:I, s:I, s:{s:f, s:f, s:f, s:f, s:f}, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I}, s:i, "
        "s:i, s:i}",
        "params", (json_int_t)figures->parameters, "params_low_rank",
        (json_int_t)figures->low_rank, "flops_per_token", "forward", figures->flops.forward,
        "backward", figures->flops.backward, "recompute", figures->flops.recompute, "head",
        figures->flops.head, "executed", figures->flops.executed, "memory", "weights",
        (json_int_t)figures->memory.weights, "gradients", (json_int_t)figures->memory.gradients,
        "optimizer", (json_int_t)figures->memory.optimizer, "tables",
        (json_int_t)figures->memory.tables, "kept_activations",
        (json_int_t)figures->memory.kept_activations, "workspace",
        (json_int_t)figures->memory.workspace, "peak", (json_int_t)figures->memory.peak,
        "kernels", figures->kernels, "dots", figures->dots, "copies", figures->copies);
    INTERNAL_CHECK(object);
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(17));
    putchar('\n');
    json_decref(object);
}

static void print_bytes(const char *what, int64_t bytes) {
    char commas[32], unit[32];
    printf("    %-20s %20s B  %11s\n", what, with_commas(bytes, commas),
           bytes_text(bytes, unit));
}

static void print_table(const Options *options, const Compilation *compilation,
                        const Figures *figures) {
    char buffer[32];
    const Request *request = &options->request;
    printf("%s%s%s%s%s, %lld sequences of %lld positions a micro-batch\n", request->path,
           request->preset ? ", preset " : "", request->preset ? request->preset : "",
           request->plan ? ", plan " : ", no plan", request->plan ? request->plan : "",
           (long long)compilation->sequences, (long long)compilation->positions);
    printf("  parameters             %20s\n", with_commas(figures->parameters, buffer));
    if (figures->low_rank)
        printf("    in factorized blocks %20s\n", with_commas(figures->low_rank, buffer));
    printf("  FLOPs a token\n");
    const struct {
        const char *name;
        double value;
    } rows[] = {{"forward, blocks", figures->flops.forward},
                {"backward, blocks", figures->flops.backward},
                {"recompute", figures->flops.recompute},
                {"head, both ways", figures->flops.head},
                {"executed, all ops", figures->flops.executed}};
    for (int i = 0; i < COUNT_OF(rows); i++)
        printf("    %-20s %20s\n", rows[i].name, with_commas((int64_t)rows[i].value, buffer));
    printf("  memory of a training step\n");
    print_bytes("weights", figures->memory.weights);
    print_bytes("gradients", figures->memory.gradients);
    print_bytes("optimizer", figures->memory.optimizer);
    print_bytes("tables", figures->memory.tables);
    print_bytes("kept activations", figures->memory.kept_activations);
    print_bytes("workspace", figures->memory.workspace);
    print_bytes("peak", figures->memory.peak);
    printf("  a step runs %d kernels, %d matrix products, %d copies\n", figures->kernels,
           figures->dots, figures->copies);
}

static void append_axes(const Module *module, const AxisId *axes, int count, Text *out) {
    for (int i = 0; i < count; i++)
        text_printf(out, "%s%s", i ? "," : "", module->axes.data[axes[i]].name);
}

/* Every parameter: path, axes as declared, elements. */
static void print_parameters(const Module *module, bool json) {
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        if (state->role != ROLE_WEIGHT || state->flat)
            continue;
        Text axes = {0};
        text_puts(&axes, "[");
        append_axes(module, state->in, state->in_count, &axes);
        text_puts(&axes, state->in_count && state->out_count ? " -> " : "");
        append_axes(module, state->out, state->out_count, &axes);
        text_puts(&axes, "]");
        int64_t elements = type_elements(module, state_type(state));
        char buffer[32];
        if (json)
            printf("{\"parameter\": \"%s\", \"axes\": \"%s\", \"elements\": %lld, "
                   "\"low_rank\": %s}\n",
                   state->path, text_string(&axes), (long long)elements,
                   state->low_rank ? "true" : "false");
        else
            printf("  %-36s %-20s %15s%s\n", state->path, text_string(&axes),
                   with_commas(elements, buffer), state->low_rank ? "  low rank" : "");
        text_free(&axes);
    }
}

int run_check_command(Options *options) {
    Compiled compiled;
    if (!compile_programs(&compiled, options, true)) {
        compiled_free(&compiled);
        return 1;
    }
    Figures figures = figures_of(&compiled, options->threads);
    if (options->json)
        print_json(&figures);
    else
        print_table(options, compiled.compilation, &figures);
    if (options->list_parameters)
        print_parameters(compiled.compilation->module, options->json);
    compiled_free(&compiled);
    return 0;
}
