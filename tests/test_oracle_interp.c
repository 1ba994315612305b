/* Front end, passes and interpreter, without any generated code, against PyTorch in double
 * precision (tests/oracle): loss and gradients of the first batch before clipping, ten losses
 * and gradient norms, and the weights after ten steps, to ten digits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "runtime/runtime.h"

typedef struct Case {
    const char *name, *model, *plan;
    Define defines[2]; /* beside the sizes of expect.json */
} Case;
static Case cases[] = {
    {.name = "llama_full", .model = "models/llama.cola"},
    {.name = "llama_gqa", .model = "models/llama.cola", .defines = {{"J", "2"}}},
    {.name = "gpt2", .model = "models/gpt2.cola"},
    {.name = "llama_cola",
     .model = "models/llama.cola",
     .plan = "cola",
     .defines = {{"R", "12"}, {"gate_silu", "1"}}},
    {.name = "llama_cola_nogate",
     .model = "models/llama.cola",
     .plan = "cola",
     .defines = {{"R", "12"}, {"gate_silu", "0"}}},
};

typedef struct Run {
    const Case *of;
    json_t *expect;
    Diagnostics *diagnostics;
    Arena *arena;
    Compilation *compilation;
    Module *module;
    Engine *engine;
    Mapping *mapping;
    uint16_t *tokens;
} Run;

static const double BOUND = 1e-10;

/* ---- a compiled case ---------------------------------------------------------------- */

static void require(const Run *run, bool condition) {
    diagnostics_print(run->diagnostics, stdout);
    assert_true(condition);
}

static const char *case_file(Run *run, const char *file) {
    return arena_printf(run->arena, "tests/oracle/%s/%s", run->of->name, file);
}

static void compile_case(Run *run) {
    static const char *const sizes[] = {"V", "D", "H", "L", "F", "S", "B"};
    Define defines[COUNT_OF(sizes) + 2];
    int count = 0;
    json_t *dims = json_object_get(run->expect, "dims");
    for (int i = 0; i < COUNT_OF(sizes); i++)
        if (json_object_get(dims, sizes[i])) {
            int64_t size = json_integer_value(json_object_get(dims, sizes[i]));
            const char *value = arena_printf(run->arena, "%lld", (long long)size);
            defines[count++] = (Define){sizes[i], value};
        }
    for (int i = 0; i < 2 && run->of->defines[i].name; i++)
        defines[count++] = run->of->defines[i];
    Request request = {.path = run->of->model,
                       .plan = run->of->plan,
                       .recipe = "tests/oracle/recipe.cola:oracle",
                       .defines = defines,
                       .define_count = count};
    run->compilation = compile_model(&request, run->diagnostics);
    require(run, run->compilation);
    PassContext context = {.module = run->compilation->module,
                           .compilation = run->compilation,
                           .diagnostics = run->diagnostics,
                           .for_training = true};
    require(run, run_passes(&context, "clean", NULL));
    run->module = context.module;
    assert_null(ir_verify(run->module, STAGE_GRAPH));
}

static void put_weight(void *context, StateId weight, StateBlock block, const double *values) {
    Engine *engine = context;
    engine->write(engine, weight, block, values);
}

static Run run_new(const Case *of) {
    Run run = {.of = of, .diagnostics = diagnostics_new(), .arena = arena_new()};
    run.expect = json_load_file(case_file(&run, "expect.json"), 0, NULL);
    assert_non_null(run.expect);
    compile_case(&run);
    run.engine = engine_interpreter(run.module, false, run.diagnostics);
    run.engine->initialize(run.engine, 0);
    run.mapping = mapping_load(of->model, run.arena, run.diagnostics);
    require(&run, run.mapping);
    require(&run, weights_load(run.module, run.mapping, case_file(&run, "init.safetensors"),
                               put_weight, run.engine, run.diagnostics));
    size_t bytes;
    run.tokens = (uint16_t *)(void *)read_file(case_file(&run, "tokens.bin"), 1 << 20, &bytes);
    assert_non_null(run.tokens);
    return run;
}

static void run_free(Run *run) {
    free(run->tokens);
    run->engine->close(run->engine);
    compilation_free(run->compilation);
    json_decref(run->expect);
    diagnostics_free(run->diagnostics);
    arena_free(run->arena);
}

/* ---- steps -------------------------------------------------------------------------- */

/* Row j is the tokens from (sample0 + j) * positions on; targets are one further. */
static void set_inputs(Run *run, int64_t sample0) {
    const Module *module = run->module;
    for (int i = 0; i < module->inputs.count; i++) {
        const Input *input = &module->inputs.data[i];
        int64_t count = axes_elements(module, input->axes, input->axis_count);
        int64_t begin = sample0 * run->compilation->positions + input->next;
        int32_t *values = checked_alloc((size_t)count * sizeof *values);
        for (int64_t j = 0; j < count; j++)
            values[j] = run->tokens[begin + j];
        run->engine->set_input(run->engine, i, values);
        free(values);
    }
}

/* Micro-batch and update number `step`, from 1, at the constant rate. */
static void run_micro(Run *run, int64_t step) {
    int64_t rows = run->compilation->sequences;
    set_inputs(run, (step - 1) * rows);
    double scalars[] = {(double)step, 0, (double)((step - 1) * rows)};
    require(run, run->engine->run(run->engine, "micro", scalars, run->diagnostics));
}

static void run_update(Run *run, int64_t step) {
    double scalars[] = {(double)step, run->compilation->recipe.groups[0].rate, 1};
    require(run, run->engine->run(run->engine, "update", scalars, run->diagnostics));
}

static double metric(Run *run, const char *path) {
    StateId state = module_find_state(run->module, path, ROLE_METRIC, 0);
    assert_true(state >= 0);
    double value;
    engine_read(run->engine, state, &value);
    return value;
}

static double expected(const Run *run, const char *list, int64_t step) {
    json_t *values = json_object_get(run->expect, list);
    return json_real_value(json_array_get(values, (size_t)step - 1));
}

static void check_close(const Run *run, const char *what, int64_t step, double got,
                        double want) {
    if (!(fabs(got - want) <= BOUND * fabs(want)))
        fail_msg("%s: %s at step %d is %.15g, not %.15g", run->of->name, what, (int)step, got,
                 want);
}

/* ---- tensors ------------------------------------------------------------------------ */

static double relative_difference(const TensorFile *file, const Tensor *want,
                                  const TensorFile *other) {
    const Tensor *have = tensor_file_find(other, want->name);
    if (!have || have->elements != want->elements)
        return INFINITY;
    double *a = checked_alloc((size_t)want->elements * sizeof *a);
    double *b = checked_alloc((size_t)want->elements * sizeof *b);
    tensor_file_read(file, want, 0, want->elements, a);
    tensor_file_read(other, have, 0, have->elements, b);
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < want->elements; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += a[i] * a[i];
    }
    free(a);
    free(b);
    return sqrt(difference / norm);
}

typedef struct TensorContext {
    Run *run;
    double scale;
} TensorContext;

/* The values of `get`, under Hugging Face's names, against a file of the case. */
static void check_tensors(Run *run, GetWeight get, double scale, const char *file) {
    char path[] = "/tmp/colac_oracle_XXXXXX";
    int handle = mkstemp(path);
    assert_true(handle >= 0);
    close(handle);
    TensorContext context = {run, scale};
    require(run, weights_save(run->module, run->mapping, true, true, path, get, &context,
                              run->diagnostics));
    TensorFile *want = tensor_file_open(case_file(run, file), run->diagnostics);
    TensorFile *have = tensor_file_open(path, run->diagnostics);
    require(run, want && have);
    unlink(path);
    assert_int_equal(tensor_file_count(want), tensor_file_count(have));
    for (int i = 0; i < tensor_file_count(want); i++) {
        const Tensor *tensor = tensor_file_at(want, i);
        double difference = relative_difference(want, tensor, have);
        if (!(difference <= BOUND))
            fail_msg("%s: %s of %s differs by %g", run->of->name, tensor->name, file,
                     difference);
    }
    tensor_file_close(want);
    tensor_file_close(have);
}

static void get_weight(void *context, StateId weight, StateBlock block, double *values) {
    TensorContext *of = context;
    of->run->engine->read(of->run->engine, weight, block, values);
}

/* `micro` sums over targets; PyTorch takes the mean. */
static void get_gradient(void *context, StateId weight, StateBlock block, double *values) {
    TensorContext *of = context;
    const char *path = of->run->module->states.data[weight].path;
    StateId gradient = module_find_state(of->run->module, path, ROLE_GRADIENT, 0);
    assert_true(gradient >= 0);
    of->run->engine->read(of->run->engine, gradient, block, values);
    for (int64_t i = 0; i < block.rows * block.columns; i++)
        values[i] *= of->scale;
}

/* ---- the tests ---------------------------------------------------------------------- */

static void trains_as_pytorch_does(void **state) {
    Run run = run_new(*state);
    for (int64_t step = 1; step <= 10; step++) {
        run_micro(&run, step);
        if (step == 1)
            check_tensors(&run, get_gradient, 1 / metric(&run, "weight_sum"),
                          "grads.safetensors");
        run_update(&run, step);
        check_close(&run, "loss", step, metric(&run, "loss"), expected(&run, "loss", step));
        check_close(&run, "gradient norm", step, metric(&run, "grad_norm"),
                    expected(&run, "grad_norm", step));
    }
    check_tensors(&run, get_weight, 1, "final.safetensors");
    run_free(&run);
}

int main(void) {
    struct CMUnitTest tests[COUNT_OF(cases)];
    for (int i = 0; i < COUNT_OF(cases); i++)
        tests[i] = (struct CMUnitTest){.name = cases[i].name,
                                       .test_func = trains_as_pytorch_does,
                                       .initial_state = &cases[i]};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
