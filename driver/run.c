/* colac train, grad and eval: what runs a model on data. */
#include "driver/driver.h"

#include <stdlib.h>
#include <string.h>

static bool given(const Options *options, const char *value, const char *option) {
    if (!value)
        fprintf(stderr, "colac %s: `%s` is needed: `colac %s %s`\n", options->command->name,
                option, options->command->name, options->command->arguments);
    return value != NULL;
}

static TrainOptions train_options(const Options *options, const Compiled *compiled) {
    return (TrainOptions){
        .request = &options->request,
        .data = options->data,
        .out = options->out ? options->out : options->output,
        .weights = options->weights,
        .steps = options->steps,
        .seed = options->seed,
        .order = options->order,
        .json = options->json,
        .their_names = options->their_names,
        .interpreter = options->device == DEVICE_INTERPRETER,
        .device = device_opener(options),
        .executor = {.poison = options->poison, .check_nan = options->check_nan},
        .compile_seconds = compiled->seconds,
    };
}

typedef int (*Run)(Compilation *compilation, const ProgramSet *set, const TrainOptions *options,
                   Diagnostics *diagnostics);

/* Compiles and runs; the interpreter takes the graph as it is before layout, the CPU its
 * programs. */
static int compile_and_run(Options *options, bool for_training, Run run) {
    Compiled compiled;
    bool interpreted = options->device == DEVICE_INTERPRETER;
    bool ready = interpreted ? compile(&compiled, options, LAST_GRAPH_PASS, for_training)
                             : compile_programs(&compiled, options, for_training);
    int code = 1;
    if (ready) {
        TrainOptions train_option = train_options(options, &compiled);
        code =
            run(compiled.compilation, compiled.programs, &train_option, compiled.diagnostics);
        if (finish(compiled.diagnostics) && !code)
            code = 1;
    }
    compiled_free(&compiled);
    return code;
}

int run_train_command(Options *options) {
    if (!given(options, options->data, "--data PATH") ||
        !given(options, options->out, "--out RUN"))
        return 2;
    return compile_and_run(options, true, train);
}

int run_grad_command(Options *options) {
    if (!given(options, options->weights, "--weights FILE") ||
        !given(options, options->data, "--data PATH") ||
        !given(options, options->output, "-o OUT.safetensors"))
        return 2;
    options->keep_gradients = true;
    return compile_and_run(options, true, run_grad);
}

int run_eval_command(Options *options) {
    if (!given(options, options->data, "--data PATH"))
        return 2;
    Arena *arena = arena_new();
    Diagnostics *diagnostics = diagnostics_new();
    RunRecord *record = run_open(options->files[0], arena, diagnostics);
    int code = finish(diagnostics);
    if (record && !code) {
        record->request.no_bf16 = options->request.no_bf16; /* of the device that evaluates */
        record->request.no_tf32 = options->request.no_tf32;
        options->request = record->request;
        options->weights = record->weights;
        options->seed = record->seed;
        options->their_names = record->their_names;
        code = compile_and_run(options, false, run_eval);
        options->request = (Request){0}; /* its texts belong to the record */
    }
    diagnostics_free(diagnostics);
    arena_free(arena);
    return code;
}
