/* tests/test_precision.c: a program in bf16 against the interpreter in double that rounds where
 * the graph says so: loss and gradients of two micro-batches.  Between them runs an update,
 * which writes the copies of weights; the interpreter then takes the weights and rounds them
 * itself.
 *
 * Maps are computed alike to an ulp of f32, sums to k 2^-24 of their terms: a value that is
 * rounded to bf16 comes out another way only where the exact one lies that near to the middle
 * of two bf16 values, of which it happens to one in some hundred, and then by 2^-7 of it.
 * Independent, these add up to 2^-7 / sqrt(100) of a tensor's norm for each rounding on the
 * way; with some twenty of them 2^-8 is allowed.  What rounding as such changes is more:
 * asserted too, so that the bound tells one from the other. */
#include "runtime/runtime.h"

#include <math.h>
#include <setjmp.h>

#include <cmocka.h>

static const double bound = 0x1p-8;

typedef struct Fixture {
    Diagnostics *diagnostics;
    Compilation *compilation;
    const Module *module;
    ProgramSet *set;
    Device *device;
    Executor *executor;
    Interp *rounding, *exact;
    int32_t *inputs[2];
} Fixture;

static int32_t *tokens_of(const Module *module, int input, int32_t shift) {
    const Input *declared = &module->inputs.data[input];
    int64_t count = axes_elements(module, declared->axes, declared->axis_count);
    int32_t *tokens = checked_alloc((size_t)count * sizeof *tokens);
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((7919 * i + 31 * shift + i * i) % declared->below);
    return tokens;
}

/* Where element i of a state, counted in declared order, is in its type's order. */
static int64_t in_type_order(const Module *module, const State *state, int64_t i) {
    AxisId declared[2 * MAX_AXES];
    memcpy(declared, state->in, sizeof state->in);
    memcpy(declared + state->in_count, state->out, sizeof state->out);
    Type type = state_type(state);
    int64_t result = 0;
    for (int d = type.rank - 1; d >= 0; d--) {
        int64_t size = module->axes.data[declared[d]].size, stride = 1;
        for (int t = type.rank - 1; type.axes[t] != declared[d]; t--)
            stride *= module->axes.data[type.axes[t]].size;
        result += i % size * stride;
        i /= size;
    }
    return result;
}

/* The executor's values of a state in an interpreter's order. */
static double *values_of(const Fixture *f, StateId id) {
    const State *state = &f->module->states.data[id];
    int64_t count = type_elements(f->module, state_type(state));
    float *declared = checked_alloc((size_t)count * sizeof *declared);
    double *values = checked_alloc((size_t)count * sizeof *values);
    executor_read_state(f->executor, id, declared);
    for (int64_t i = 0; i < count; i++)
        values[in_type_order(f->module, state, i)] = (double)declared[i];
    free(declared);
    return values;
}

static double rounded_to_bf16(double value) {
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    bits = (bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u;
    memcpy(&single, &bits, sizeof bits);
    return (double)single;
}

/* Sets an interpreter's states to the executor's; copies are what weights round to. */
static void take_states(const Fixture *f, Interp *interp, bool round) {
    for (StateId id = 0; id < f->module->states.count; id++) {
        const State *state = &f->module->states.data[id];
        if (state->flat || state->role == ROLE_METRIC)
            continue;
        StateId source = state->role == ROLE_COPY ? state->weight : id;
        int64_t count = type_elements(f->module, state_type(state));
        double *values = values_of(f, source), *to = interp_state(interp, id);
        for (int64_t i = 0; i < count; i++)
            to[i] = state->role == ROLE_COPY && round ? rounded_to_bf16(values[i]) : values[i];
        free(values);
    }
}

static Interp *interpreter(const Fixture *f, bool round) {
    Interp *interp = interp_new(f->module);
    interp_set_round(interp, round);
    for (int i = 0; i < 2; i++)
        interp_set_input(interp, i, f->inputs[i]);
    return interp;
}

static void begin(Fixture *f, const char *model, const char *plan, const Define *defines,
                  int count) {
    *f = (Fixture){.diagnostics = diagnostics_new()};
    Request request = {.path = model,
                       .plan = plan,
                       .precision = "bf16",
                       .defines = defines,
                       .define_count = count};
    f->compilation = compile_model(&request, f->diagnostics);
    assert_non_null(f->compilation);
    PassContext context = {.module = f->compilation->module,
                           .compilation = f->compilation,
                           .diagnostics = f->diagnostics,
                           .for_training = true};
    assert_true(run_passes(&context, NULL, NULL));
    f->module = context.module;
    f->set = emit_programs(f->module, &host_room, false);
    f->device = device_cpu_open(2, f->diagnostics);
    ExecutorOptions options = {.poison = true};
    f->executor = executor_new(f->device, f->set, &options, f->diagnostics);
    assert_non_null(f->executor);
    executor_initialize(f->executor, 5);
    for (int i = 0; i < 2; i++) {
        f->inputs[i] = tokens_of(f->module, i, i);
        executor_set_input(f->executor, i, f->inputs[i]);
    }
    f->rounding = interpreter(f, true);
    f->exact = interpreter(f, false);
}

static void end(Fixture *f) {
    interp_free(f->rounding);
    interp_free(f->exact);
    executor_free(f->executor);
    f->device->close(f->device);
    program_set_free(f->set);
    compilation_free(f->compilation);
    diagnostics_free(f->diagnostics);
    free(f->inputs[0]);
    free(f->inputs[1]);
}

static void run_all(Fixture *f, const char *name, const double *scalars) {
    assert_true(executor_run(f->executor, name, scalars, f->diagnostics));
    const Function *function = module_find_function(f->module, name);
    interp_run(f->rounding, function, scalars, false);
    interp_run(f->exact, function, scalars, false);
}

static double distance(const double *a, const double *b, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return sqrt(difference / norm);
}

/* All gradients: near those that are rounded alike, far from those that are not. */
static void compare_gradients(const Fixture *f) {
    double worst = 0, rounded = 0, unrounded = 0;
    for (StateId id = 0; id < f->module->states.count; id++) {
        const State *state = &f->module->states.data[id];
        if (state->flat || state->role != ROLE_GRADIENT)
            continue;
        int64_t count = type_elements(f->module, state_type(state));
        double *got = values_of(f, id);
        double apart = distance(got, interp_state(f->rounding, id), count);
        if (!(apart <= bound))
            print_error("the gradient of %s differs by %g\n", state->path, apart);
        assert_true(apart <= bound);
        worst = apart > worst ? apart : worst;
        rounded += apart;
        unrounded += distance(got, interp_state(f->exact, id), count);
        free(got);
    }
    print_message("worst %.2g; without rounding %.2g times as far\n", worst,
                  unrounded / rounded);
    assert_true(unrounded > 2 * rounded);
    double loss = executor_metric(f->executor, "loss_sum");
    StateId sum = module_find_state(f->module, "loss_sum", ROLE_METRIC, 0);
    double expected = *interp_state(f->rounding, sum);
    assert_true(fabs(loss - expected) <= bound * fabs(expected));
}

static void check_model(const char *model, const char *plan, const Define *defines, int count) {
    Fixture f;
    begin(&f, model, plan, defines, count);
    const double micro[3] = {1, 5, 0}, update[3] = {1, 1e-2, 1};
    for (int round = 0; round < 2; round++) {
        take_states(&f, f.rounding, true);
        take_states(&f, f.exact, false);
        run_all(&f, "micro", micro);
        compare_gradients(&f);
        run_all(&f, "update", update);
    }
    end(&f);
}

static void low_rank_llama(void **state) {
    (void)state;
    static const Define defines[] = {{"V", "61"}, {"D", "48"}, {"H", "4"}, {"L", "2"},
                                     {"F", "96"}, {"S", "20"}, {"B", "4"}, {"R", "16"}};
    check_model("models/llama.cola", "cola", defines, COUNT_OF(defines));
    check_model("models/llama.cola", "cola_m", defines, COUNT_OF(defines));
}

static void full_rank_gpt2(void **state) {
    (void)state;
    static const Define defines[] = {{"V", "61"}, {"D", "48"}, {"H", "4"},
                                     {"L", "2"},  {"S", "20"}, {"B", "4"}};
    check_model("models/gpt2.cola", NULL, defines, COUNT_OF(defines));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(low_rank_llama),
        cmocka_unit_test(full_rank_gpt2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
