/* Every shipped model, whole: the gradient that autodiff builds against central differences of
 * the loss along random directions, in double precision. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "runtime/runtime.h"

enum { DIRECTIONS = 3 };

typedef struct Shrunk { /* a model in a size at which the interpreter is quick */
    const char *path, *plan;
    Define defines[12];
    int define_count;
} Shrunk;

#define LLAMA_SIZES                                                                            \
    {"B", "2"}, {"S", "6"}, {"V", "17"}, {"D", "12"}, {"F", "10"}, {"L", "2"}, {               \
        "H", "2"                                                                               \
    }
static const Shrunk models[] = {
    {"models/llama.cola", NULL, {LLAMA_SIZES}, 7},
    {"models/llama.cola", NULL, {LLAMA_SIZES, {"J", "1"}}, 8},
    {"models/llama.cola", "cola", {LLAMA_SIZES, {"R", "3"}}, 8},
    {"models/llama.cola", "cola", {LLAMA_SIZES, {"R", "3"}, {"gate_silu", "0"}}, 9},
    {"models/gpt2.cola",
     NULL,
     {{"B", "2"}, {"S", "5"}, {"V", "17"}, {"D", "12"}, {"L", "2"}, {"H", "3"}},
     6},
    {"models/gpt2.cola",
     "cola",
     {{"B", "2"}, {"S", "5"}, {"V", "17"}, {"D", "12"}, {"L", "2"}, {"H", "3"}},
     6},
    {"models/bert.cola",
     NULL,
     {{"B", "3"}, {"S", "7"}, {"V", "17"}, {"D", "12"}, {"L", "2"}, {"H", "3"}, {"MASK", "16"}},
     7},
    {"models/bert.cola",
     "cola",
     {{"B", "3"}, {"S", "7"}, {"V", "17"}, {"D", "12"}, {"L", "2"}, {"H", "3"}, {"MASK", "16"}},
     7},
    {"models/mlp.cola",
     NULL,
     {{"B", "5"}, {"C", "3"}, {"E", "4"}, {"N", "12"}, {"V", "17"}},
     5},
    {"models/mlp.cola",
     "cola",
     {{"B", "5"}, {"C", "3"}, {"E", "4"}, {"N", "12"}, {"V", "17"}},
     5},
};

static double *values_of(Engine *engine, StateId state, int64_t *count) {
    *count = type_elements(engine->module, state_type(&engine->module->states.data[state]));
    double *values = checked_alloc((size_t)*count * sizeof *values);
    engine_read(engine, state, values);
    return values;
}

static double metric(Engine *engine, const char *path) {
    StateId state = module_find_state(engine->module, path, ROLE_METRIC, 0);
    assert_true(state >= 0);
    double value;
    engine_read(engine, state, &value);
    return value;
}

/* Runs a function from zeroed metrics, with step 1 and seed 7; loss_sum. */
static double loss_of(Engine *engine, const char *name) {
    const Function *function = module_find_function(engine->module, name);
    assert_non_null(function);
    double scalars[16] = {0}, zero = 0;
    for (int64_t i = 0; i < function->scalar_count; i++)
        scalars[i] = !strcmp(function->scalars[i], "seed")      ? 7
                     : !strcmp(function->scalars[i], "sample0") ? 0
                                                                : 1;
    engine_write(engine, module_find_state(engine->module, "loss_sum", ROLE_METRIC, 0), &zero);
    Diagnostics *diagnostics = diagnostics_new();
    assert_true(engine->run(engine, name, scalars, diagnostics));
    diagnostics_free(diagnostics);
    return metric(engine, "loss_sum");
}

static bool is_weight(const Module *module, int64_t i) {
    return module->states.data[i].role == ROLE_WEIGHT && !module->states.data[i].flat;
}

static double direction_at(int direction, int64_t state, int64_t element) {
    return random_uniform(11, (uint64_t)direction, (uint64_t)state, 0, (uint64_t)element) - 0.5;
}

/* weights += amount * direction */
static void move(Engine *engine, int direction, double amount) {
    for (int64_t i = 0; i < engine->module->states.count; i++) {
        if (!is_weight(engine->module, i))
            continue;
        int64_t count;
        double *values = values_of(engine, (StateId)i, &count);
        for (int64_t j = 0; j < count; j++)
            values[j] += amount * direction_at(direction, i, j);
        engine_write(engine, (StateId)i, values);
        free(values);
    }
}

static double slope_by_gradient(Engine *engine, int direction) {
    double slope = 0;
    for (int64_t i = 0; i < engine->module->states.count; i++) {
        if (!is_weight(engine->module, i))
            continue;
        StateId gradient = module_find_state(
            engine->module, engine->module->states.data[i].path, ROLE_GRADIENT, 0);
        assert_true(gradient >= 0);
        int64_t count;
        double *values = values_of(engine, gradient, &count);
        for (int64_t j = 0; j < count; j++)
            slope += values[j] * direction_at(direction, i, j);
        free(values);
    }
    return slope;
}

static void fill_inputs(Engine *engine) {
    for (int i = 0; i < engine->module->inputs.count; i++) {
        const Input *input = &engine->module->inputs.data[i];
        int64_t count = axes_elements(engine->module, input->axes, input->axis_count);
        int32_t *tokens = checked_alloc((size_t)count * sizeof *tokens);
        for (int64_t j = 0; j < count; j++)
            tokens[j] = (int32_t)((j * j + 3 * j + 5 * i) % (input->below - 1));
        engine->set_input(engine, i, tokens);
        free(tokens);
    }
}

static void check_slopes(Engine *engine, const Shrunk *model, const double *slopes) {
    for (int direction = 0; direction < DIRECTIONS; direction++) {
        double expected = slopes[direction], h = 1e-5;
        move(engine, direction, h);
        double after = loss_of(engine, "micro");
        move(engine, direction, -2 * h);
        double before = loss_of(engine, "micro");
        move(engine, direction, h);
        double got = (after - before) / (2 * h);
        if (!(fabs(got - expected) <= 1e-6 * (fabs(expected) + 1e-3 * fabs(after))))
            fail_msg("%s %s, direction %d: %.10g by differences, %.10g by the gradient",
                     model->path, model->plan ? model->plan : "", direction, got, expected);
    }
}

static void gradients_are_slopes(void **unused) {
    (void)unused;
    for (int i = 0; i < COUNT_OF(models); i++) {
        Diagnostics *diagnostics = diagnostics_new();
        Request request = {.path = models[i].path,
                           .plan = models[i].plan,
                           .defines = models[i].defines,
                           .define_count = models[i].define_count};
        Compilation *compilation = compile_model(&request, diagnostics);
        diagnostics_print(diagnostics, stdout);
        assert_non_null(compilation);
        PassContext context = {.module = compilation->module,
                               .compilation = compilation,
                               .diagnostics = diagnostics,
                               .for_training = true};
        assert_true(run_passes(&context, "update", NULL));
        Engine *engine = engine_interpreter(compilation->module, false, diagnostics);
        engine->initialize(engine, 3);
        fill_inputs(engine);
        /* Small initial weights hide mistakes in what multiplies them: begin elsewhere. */
        move(engine, 99, 0.6);
        loss_of(engine, "micro");
        /* Later runs add to the gradients, so slopes at this point are taken first. */
        double slopes[DIRECTIONS];
        for (int d = 0; d < DIRECTIONS; d++)
            slopes[d] = slope_by_gradient(engine, d);
        check_slopes(engine, &models[i], slopes);
        engine->close(engine);
        compilation_free(compilation);
        diagnostics_free(diagnostics);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(gradients_are_slopes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
