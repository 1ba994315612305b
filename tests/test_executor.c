/* tests/test_executor.c: programs on the CPU against the interpreter in double; poison, threads
 * and memory plans that must not change a bit; values of states in and out; initial values. */
#include "runtime/runtime.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/graph_fuzz.h"

/* A classifier with a table of embeddings, a product over two axes whose weight lies in memory
 * in another order than declared, a softmax, a mask, a product with a gradient of its own, and
 * a table of sines. */
static const char model_text[] =
    "module stage graph\n"
    "axis B 6\naxis S 5\naxis V 11\naxis D 7\naxis H 3\naxis K 4\naxis O 11\n"
    "input tokens i32[B,S] below 11 next 0\n"
    "input targets i32[B,S] below 11 next 1\n"
    "state weight embed f32 in(V) out(D) normal 0.5 offset 0\n"
    "state weight mix f32 in(D) out(H,K) normal 0.4 offset 80\n"
    "state weight head f32 in(H,K) out(O) normal 0.3 offset 176\n"
    "state metric loss_sum f32 in() out() zeros offset 0\n"
    "state metric weight_sum f32 in() out() zeros offset 16\n"
    "function micro(step, seed, sample0) {\n"
    "  %0 = input 0 to(B,S) : i32[B,S]\n"
    "  %1 = input 1 to(B,S) : i32[B,S]\n"
    "  %2 = state 0 to(V,D) : f32[V,D]\n"
    "  %3 = gather %2 %0 from(V) : f32[B,S,D]\n"
    "  %4 = state 1 to(D,H,K) : f32[D,H,K]\n"
    "  %5 = index to(S) : i32[S]\n"
    "  %6 = cast %5 : f32[S]\n"
    "  %7 = sin %6 : f32[S]\n"
    "  %8 = expand %7 to(B,D) : f32[B,S,D]\n"
    "  %9 = add %3 %8 : f32[B,S,D]\n"
    "  %10 = dot %9 %4 from(D) : f32[B,S,H,K] name \"mixed\"\n"
    "  %11 = tanh %10 : f32[B,S,H,K]\n"
    "  %12 = state 2 to(H,K,O) : f32[H,K,O]\n"
    "  %13 = dot %11 %12 from(H,K) : f32[B,S,O] name \"logits\"\n"
    "  %14 = max %13 from(O) : f32[B,S]\n"
    "  %15 = stop %14 : f32[B,S]\n"
    "  %16 = expand %15 to(O) : f32[B,S,O]\n"
    "  %17 = sub %13 %16 : f32[B,S,O]\n"
    "  %18 = exp %17 : f32[B,S,O]\n"
    "  %19 = sum %18 from(O) : f32[B,S]\n"
    "  %20 = log %19 : f32[B,S]\n"
    "  %21 = index to(O) : i32[O]\n"
    "  %22 = expand %21 to(B,S) : i32[B,S,O]\n"
    "  %23 = expand %1 to(O) : i32[B,S,O]\n"
    "  %24 = eq %22 %23 : bool[B,S,O]\n"
    "  %25 = const 0 : f32\n"
    "  %26 = expand %25 to(B,S,O) : f32[B,S,O]\n"
    "  %27 = where %24 %17 %26 : f32[B,S,O]\n"
    "  %28 = sum %27 from(O) : f32[B,S]\n"
    "  %29 = sub %20 %28 : f32[B,S]\n"
    "  %30 = sum %29 from(B,S) : f32\n"
    "  %31 = const 30 : f32\n"
    "  write metric loss_sum += %30\n"
    "  write metric weight_sum += %31\n"
    "}\n";

/* p -= lr * g, with lr computed on the host from two runtime scalars. */
static const char update_text[] = "module stage graph\n"
                                  "axis D 7\naxis O 5\n"
                                  "state weight w f32 in(D) out(O) normal 1 offset 16\n"
                                  "state gradient w f32 in(D) out(O) zeros of 0 offset 16\n"
                                  "state moment w f32 in(D) out(O) zeros of 0 offset 16\n"
                                  "function update(step, lr) {\n"
                                  "  %0 = state 0 to(D,O) : f32[D,O]\n"
                                  "  %1 = state 1 to(D,O) : f32[D,O]\n"
                                  "  %2 = scalar 1 : f64\n"
                                  "  %3 = const 0.5 : f64\n"
                                  "  %4 = scalar 0 : f64\n"
                                  "  %5 = pow %3 %4 : f64\n"
                                  "  %6 = mul %2 %5 : f64\n"
                                  "  %7 = cast %6 : f32\n"
                                  "  %8 = expand %7 to(D,O) : f32[D,O]\n"
                                  "  %9 = mul %1 %8 : f32[D,O]\n"
                                  "  %10 = sub %0 %9 : f32[D,O]\n"
                                  "  %11 = state 2 to(D,O) : f32[D,O]\n"
                                  "  %12 = add %11 %1 : f32[D,O]\n"
                                  "  write weight w = %10\n"
                                  "  write moment w = %12\n"
                                  "  write gradient w = %9\n"
                                  "}\n";

/* Much computed for each of many elements, in the place of one operand: loops in blocks that
 * ask for memory ahead, the last of them short. */
static const char long_text[] = "module stage graph\n"
                                "axis D 41\naxis O 431\n"
                                "state weight w f32 in(D) out(O) normal 1 offset 0\n"
                                "state gradient w f32 in(D) out(O) zeros of 0 offset 0\n"
                                "function update(step, lr) {\n"
                                "  %0 = state 0 to(D,O) : f32[D,O]\n"
                                "  %1 = sigmoid %0 : f32[D,O]\n"
                                "  %2 = exp %1 : f32[D,O]\n"
                                "  %3 = mul %2 %0 : f32[D,O]\n"
                                "  %4 = neg %3 : f32[D,O]\n"
                                "  write weight w = %3\n"
                                "  write gradient w = %4\n"
                                "}\n";

/* ---- from text to a program -------------------------------------------------------- */
typedef struct Fixture {
    Source *source; /* places point into it */
    Diagnostics *diagnostics;
    Module *module;
    ProgramSet *set;
    Device *device;
    Executor *executor;
} Fixture;

static void print_and_fail(Diagnostics *diagnostics) {
    diagnostics_print(diagnostics, stderr);
    fail_msg("an error was reported");
}

/* Slab offsets as pass_update would give them, for states that have none. */
static void place_states(Module *module) {
    int64_t next[ROLE_METRIC + 1] = {0};
    for (StateId id = 0; id < module->states.count; id++) {
        State *state = &module->states.data[id];
        if (state->offset < 0 && state->weight >= 0)
            state->offset = module->states.data[state->weight].offset;
        if (state->offset < 0)
            state->offset = next[state->role];
        int64_t end = state->offset + type_elements(module, state_type(state));
        end = (end + 15) / 16 * 16;
        next[state->role] = end > next[state->role] ? end : next[state->role];
    }
}

static void run_pass_list(Fixture *f, const char *passes, bool no_fuse, bool no_reuse) {
    Stage stage = STAGE_GRAPH;
    PassContext context = {.module = f->module,
                           .diagnostics = f->diagnostics,
                           .no_fuse = no_fuse,
                           .no_reuse = no_reuse,
                           .for_training = true};
    if (!run_named_passes(&context, passes, &stage))
        print_and_fail(f->diagnostics);
    f->module = context.module;
}

static void open_executor(Fixture *f, const ExecutorOptions *options, int threads,
                          bool no_reuse) {
    f->set = emit_programs(f->module, &host_room, no_reuse);
    f->device = device_cpu_open(threads, f->diagnostics);
    assert_non_null(f->device);
    f->executor = executor_new(f->device, f->set, options, f->diagnostics);
}

static Fixture parse(const char *text) {
    Fixture f = {.source = checked_alloc(sizeof *f.source)};
    *f.source = (Source){.name = "test.ir", .text = text, .length = strlen(text)};
    Stage stage;
    f.diagnostics = diagnostics_new();
    f.module = ir_parse(f.source, f.diagnostics, &stage);
    if (!f.module)
        print_and_fail(f.diagnostics);
    return f;
}

typedef struct Variant {
    bool no_fuse, no_reuse;
    ExecutorOptions options;
    int threads;
} Variant;

static const char with_gradients[] = "autodiff,tables,clean";
static const char to_memory[] = "layout,fuse,schedule,memory";

static Fixture compile(const char *text, const char *graph_passes, Variant variant) {
    Fixture f = parse(text);
    if (graph_passes)
        run_pass_list(&f, graph_passes, false, false);
    place_states(f.module);
    run_pass_list(&f, to_memory, variant.no_fuse, variant.no_reuse);
    open_executor(&f, &variant.options, variant.threads, variant.no_reuse);
    if (!f.executor)
        print_and_fail(f.diagnostics);
    return f;
}

static void fixture_free(Fixture *f) {
    executor_free(f->executor);
    if (f->device)
        f->device->close(f->device);
    if (f->set)
        program_set_free(f->set);
    module_free(f->module);
    diagnostics_free(f->diagnostics);
    free(f->source);
}

/* ---- values ------------------------------------------------------------------------ */
static int64_t elements_of(const Module *module, StateId id) {
    return type_elements(module, state_type(&module->states.data[id]));
}

static float *read_state(const Fixture *f, StateId id) {
    float *values = checked_alloc((size_t)elements_of(f->module, id) * sizeof *values);
    executor_read_state(f->executor, id, values);
    return values;
}

/* The element of declared order that stands at `at` in type order. */
static int64_t declared_element(const Module *module, const State *state, int64_t at) {
    Type type = state_type(state);
    int64_t position[MAX_AXES], element = 0;
    for (int i = type.rank - 1; i >= 0; i--) {
        position[i] = at % module->axes.data[type.axes[i]].size;
        at /= module->axes.data[type.axes[i]].size;
    }
    for (int i = 0; i < type.rank; i++) {
        AxisId axis = i < state->in_count ? state->in[i] : state->out[i - state->in_count];
        int where = 0;
        while (type.axes[where] != axis)
            where++;
        element = element * module->axes.data[axis].size + position[where];
    }
    return element;
}

/* The interpreter, with the executor's weights. */
static Interp *interpreter_like(const Fixture *f) {
    Interp *interp = interp_new(f->module);
    for (StateId id = 0; id < f->module->states.count; id++) {
        const State *state = &f->module->states.data[id];
        if (state->role == ROLE_METRIC || state->flat)
            continue;
        float *values = read_state(f, id);
        double *data = interp_state(interp, id);
        for (int64_t i = 0; i < elements_of(f->module, id); i++)
            data[i] = (double)values[declared_element(f->module, state, i)];
        free(values);
    }
    return interp;
}

/* Norm of the difference between the executor's state and the interpreter's, relative to the
 * latter's, or to `floor` where that is larger: sums may cancel to nothing. */
static double difference(const Fixture *f, Interp *interp, StateId id, double floor) {
    const State *state = &f->module->states.data[id];
    float *values = read_state(f, id);
    const double *data = interp_state(interp, id);
    double apart = 0, norm = 0;
    for (int64_t i = 0; i < elements_of(f->module, id); i++) {
        double value = (double)values[declared_element(f->module, state, i)];
        apart += (value - data[i]) * (value - data[i]);
        norm += data[i] * data[i];
    }
    free(values);
    return sqrt(apart) / fmax(sqrt(norm), floor);
}

static void set_inputs(Fixture *f, Interp *interp, int32_t *kept[2]) {
    for (int i = 0; i < f->module->inputs.count; i++) {
        kept[i] = fuzz_input(f->module, i, 17);
        executor_set_input(f->executor, i, kept[i]);
        if (interp)
            interp_set_input(interp, i, kept[i]);
    }
}

static void run(Fixture *f, const char *name, const double *scalars) {
    if (!executor_run(f->executor, name, scalars, f->diagnostics))
        print_and_fail(f->diagnostics);
}

/* ---- against the interpreter ------------------------------------------------------- */
static const double micro_scalars[] = {1, 42, 0};

static void gradients_agree_with_the_interpreter(void **state) {
    (void)state;
    int32_t *inputs[2];
    Fixture f = compile(model_text, with_gradients, (Variant){.threads = 2});
    executor_initialize(f.executor, 42);
    Interp *interp = interpreter_like(&f);
    set_inputs(&f, interp, inputs);
    for (int micro_batch = 0; micro_batch < 2; micro_batch++) { /* gradients are summed */
        run(&f, "micro", micro_scalars);
        interp_run(interp, module_find_function(f.module, "micro"), micro_scalars, false);
    }
    int gradients = 0, tables = 0;
    for (StateId id = 0; id < f.module->states.count; id++) {
        gradients += f.module->states.data[id].role == ROLE_GRADIENT;
        tables += f.module->states.data[id].role == ROLE_TABLE;
        assert_true(difference(&f, interp, id, 1e-3) < 2e-6);
    }
    assert_int_equal(gradients, 3);
    assert_int_equal(tables, 1);
    double loss = executor_metric(f.executor, "loss_sum");
    assert_true(loss > 30 && loss < 300);
    assert_true(executor_metric(f.executor, "weight_sum") == 60);
    interp_free(interp);
    free(inputs[0]);
    free(inputs[1]);
    fixture_free(&f);
}

static void updates_agree_with_the_interpreter(void **state) {
    (void)state;
    Fixture f = compile(update_text, NULL, (Variant){.threads = 2});
    executor_initialize(f.executor, 1);
    float gradient[35];
    for (int i = 0; i < 35; i++)
        gradient[i] = (float)(i - 10);
    executor_write_state(f.executor, 1, gradient);
    Interp *interp = interpreter_like(&f);
    for (int step = 1; step <= 3; step++) {
        double scalars[] = {step, 0.25};
        run(&f, "update", scalars);
        interp_run(interp, module_find_function(f.module, "update"), scalars, false);
        for (StateId id = 0; id < 3; id++)
            assert_true(difference(&f, interp, id, 1e-3) < 1e-6);
    }
    interp_free(interp);
    fixture_free(&f);
}

static void long_loops_agree_with_the_interpreter(void **state) {
    (void)state;
    Fixture f = compile(long_text, NULL, (Variant){.threads = 2});
    executor_initialize(f.executor, 1);
    Interp *interp = interpreter_like(&f);
    double scalars[] = {1, 0.25};
    Text source = {0};
    emit_c(f.set, 1, &source);
    assert_non_null(strstr(source.data, "ask_ahead(&"));
    text_free(&source);
    for (int step = 0; step < 2; step++) {
        run(&f, "update", scalars);
        interp_run(interp, module_find_function(f.module, "update"), scalars, false);
        for (StateId id = 0; id < 2; id++)
            assert_true(difference(&f, interp, id, 1e-3) < 1e-6);
    }
    interp_free(interp);
    fixture_free(&f);
}

/* ---- bits -------------------------------------------------------------------------- */
/* All states after two micro-batches, one after the other. */
static float *states_after_run(Variant variant, int64_t *count) {
    int32_t *inputs[2];
    Fixture f = compile(model_text, with_gradients, variant);
    executor_initialize(f.executor, 42);
    set_inputs(&f, NULL, inputs);
    run(&f, "micro", micro_scalars);
    run(&f, "micro", micro_scalars);
    if (variant.options.poison) {
        int64_t touched = executor_arena_touched(f.executor);
        assert_in_range(touched, 1, f.set->arena_bytes);
    }
    *count = 0;
    for (StateId id = 0; id < f.module->states.count; id++)
        *count += elements_of(f.module, id);
    float *all = checked_alloc((size_t)*count * sizeof *all), *at = all;
    for (StateId id = 0; id < f.module->states.count; id++) {
        executor_read_state(f.executor, id, at);
        at += elements_of(f.module, id);
    }
    free(inputs[0]);
    free(inputs[1]);
    fixture_free(&f);
    return all;
}

static void nothing_but_the_graph_decides_bits(void **state) {
    (void)state;
    static const Variant variants[] = {
        {.threads = 1},
        {.threads = 2},
        {.threads = 3},
        {.threads = 8},
        {.threads = 2, .options = {.poison = true}},
        {.threads = 2, .options = {.check_nan = true}},
        {.threads = 2, .no_reuse = true, .options = {.poison = true}},
        {.threads = 2, .no_fuse = true, .options = {.poison = true}},
    };
    int64_t count, other_count;
    float *first = states_after_run(variants[0], &count);
    for (int i = 1; i < COUNT_OF(variants); i++) {
        float *other = states_after_run(variants[i], &other_count);
        assert_int_equal(count, other_count);
        assert_memory_equal(first, other, (size_t)count * sizeof *first);
        free(other);
    }
    free(first);
}

/* ---- states in and out ------------------------------------------------------------- */
/* A block that leaves out the first and last row and column: read, negated, and read with
 * all. */
static void check_inner_block(const Fixture *f, StateId id) {
    StateBlock whole = whole_state(f->module, id);
    StateBlock inner = {1, whole.rows - 2, 1, whole.columns - 2};
    if (inner.rows < 1 || inner.columns < 1)
        return;
    float *values = checked_alloc((size_t)(inner.rows * inner.columns) * sizeof *values);
    float *before = read_state(f, id);
    executor_read_block(f->executor, id, inner, values);
    for (int64_t i = 0; i < inner.rows * inner.columns; i++) {
        int64_t row = 1 + i / inner.columns, column = 1 + i % inner.columns;
        assert_true(values[i] == before[row * whole.columns + column]);
        values[i] = -values[i];
    }
    executor_write_block(f->executor, id, inner, values);
    float *after = read_state(f, id);
    for (int64_t i = 0; i < whole.rows * whole.columns; i++) {
        int64_t row = i / whole.columns, column = i % whole.columns;
        bool inside =
            row > 0 && row < whole.rows - 1 && column > 0 && column < whole.columns - 1;
        assert_true(after[i] == (inside ? -before[i] : before[i]));
    }
    free(values);
    free(before);
    free(after);
}

static void states_keep_their_values(void **state) {
    (void)state;
    Fixture f = compile(model_text, NULL, (Variant){.threads = 2});
    executor_initialize(f.executor, 1);
    for (StateId id = 0; id < 3; id++) {
        int64_t count = elements_of(f.module, id);
        float *values = checked_alloc((size_t)count * sizeof *values);
        for (int64_t i = 0; i < count; i++)
            values[i] = (float)(1000 * id + i);
        executor_write_state(f.executor, id, values);
        free(values);
    }
    bool moved = false;
    for (StateId id = 0; id < 3; id++) {
        const State *written = &f.module->states.data[id];
        float *values = read_state(&f, id);
        for (int64_t i = 0; i < elements_of(f.module, id); i++)
            assert_true(values[i] == (float)(1000 * id + i));
        free(values);
        moved = moved || written->order[0] != written->in[0];
        for (int on_host = 0; on_host < 2; on_host++) {
            f.device->on_host = on_host; /* else through copies */
            check_inner_block(&f, id);
        }
    }
    assert_true(moved); /* some memory order was not the declared one */
    fixture_free(&f);
}

/* ---- initial values ---------------------------------------------------------------- */
static const char init_text[] = "module stage graph\n"
                                "axis N 300\naxis M 501\n"
                                "state weight a.w f32 in(N) out(M) normal 0.02\n"
                                "state weight b.w f32 in(N) out(M) uniform 0.5\n"
                                "state weight c.w f32 in(M) out() constant 1.5\n"
                                "state weight d.w f32 in(N) out(M) normal 1\n"
                                "function eval() {\n}\n";

typedef struct Moments {
    double mean, deviation, skewness, kurtosis, least, most;
} Moments;

static Moments moments_of(const float *values, int64_t count) {
    Moments m = {.least = INFINITY, .most = -INFINITY};
    double power[5] = {0};
    for (int64_t i = 0; i < count; i++)
        m.mean += (double)values[i] / (double)count;
    for (int64_t i = 0; i < count; i++) {
        double apart = (double)values[i] - m.mean;
        for (int p = 2; p <= 4; p++)
            power[p] += pow(apart, p) / (double)count;
        m.least = fmin(m.least, (double)values[i]);
        m.most = fmax(m.most, (double)values[i]);
    }
    m.deviation = sqrt(power[2]);
    m.skewness = power[3] / pow(m.deviation, 3);
    m.kurtosis = power[4] / (power[2] * power[2]);
    return m;
}

static float *initial_of(const Module *module, StateId id, uint64_t seed) {
    float *values = checked_alloc((size_t)elements_of(module, id) * sizeof *values);
    initial_values(module, id, seed, values);
    return values;
}

/* Bounds are five standard errors of 150,300 samples. */
static void initial_values_have_their_distribution(void **state) {
    (void)state;
    Fixture f = parse(init_text);
    float *normal = initial_of(f.module, 0, 5), *uniform = initial_of(f.module, 1, 5);
    float *constant = initial_of(f.module, 2, 5), *other = initial_of(f.module, 3, 5);
    int64_t count = elements_of(f.module, 0);
    Moments m = moments_of(normal, count);
    double error = 5 / sqrt((double)count);
    assert_true(fabs(m.mean) < 0.02 * error);
    assert_true(fabs(m.deviation / 0.02 - 1) < error);
    assert_true(fabs(m.skewness) < sqrt(6) * error);
    assert_true(fabs(m.kurtosis - 3) < sqrt(24) * error);
    assert_true(m.most > 4 * 0.02 && m.least < -4 * 0.02);
    m = moments_of(uniform, count);
    assert_true(fabs(m.mean) < 0.5 * error);
    assert_true(fabs(m.deviation * sqrt(12) - 1) < error);
    assert_true(m.least >= -0.5 && m.least < -0.4999 && m.most < 0.5 && m.most > 0.4999);
    for (int64_t i = 0; i < elements_of(f.module, 2); i++)
        assert_true(constant[i] == 1.5f);
    double together = 0; /* elements next to each other, and states, are independent */
    double neighbours = 0;
    for (int64_t i = 0; i + 1 < count; i++) {
        together += (double)normal[i] / 0.02 * (double)other[i] / (double)count;
        neighbours += (double)other[i] * (double)other[i + 1] / (double)count;
    }
    assert_true(fabs(together) < error && fabs(neighbours) < error);
    free(normal);
    free(uniform);
    free(constant);
    free(other);
    fixture_free(&f);
}

/* A parameter starts the same whatever else there is, wherever it lies, in whatever order; and
 * the executor's are those of initial_values. */
static void initial_values_depend_on_seed_path_and_element(void **state) {
    (void)state;
    static const char alone[] = "module stage graph\n"
                                "axis M 501\naxis N 300\n"
                                "state weight d.w f32 in(N) out(M) normal 1\n"
                                "function eval() {\n}\n";
    Fixture many = parse(init_text), one = parse(alone);
    float *expected = initial_of(many.module, 3, 9), *got = initial_of(one.module, 0, 9);
    size_t bytes = (size_t)elements_of(one.module, 0) * sizeof(float);
    assert_memory_equal(expected, got, bytes);
    free(got);
    got = initial_of(one.module, 0, 10);
    assert_memory_not_equal(expected, got, bytes);
    free(expected);
    free(got);
    fixture_free(&many);
    fixture_free(&one);
    Fixture f = compile(model_text, NULL, (Variant){.threads = 3});
    executor_initialize(f.executor, 42);
    for (StateId id = 0; id < 3; id++) {
        expected = initial_of(f.module, id, 42);
        got = read_state(&f, id);
        assert_memory_equal(expected, got, (size_t)elements_of(f.module, id) * sizeof(float));
        free(expected);
        free(got);
    }
    fixture_free(&f);
}

/* ---- refusals ---------------------------------------------------------------------- */
static void expect_message(Diagnostics *diagnostics, const char *const *parts, int count) {
    char message[4096] = "";
    FILE *stream = fmemopen(message, sizeof message, "w");
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    for (int i = 0; i < count; i++)
        if (!strstr(message, parts[i]))
            fail_msg("no \"%s\" in: %s", parts[i], message);
}

static void the_first_nan_is_named(void **state) {
    (void)state;
    static const char *const parts[] = {"test.ir:", "micro", "mix", "no finite number",
                                        "a weight"};
    int32_t *inputs[2];
    Fixture f = compile(model_text, with_gradients,
                        (Variant){.threads = 2, .options = {.check_nan = true}});
    executor_initialize(f.executor, 1);
    set_inputs(&f, NULL, inputs);
    run(&f, "micro", micro_scalars);
    float *mix = read_state(&f, 1);
    mix[20] = NAN;
    executor_write_state(f.executor, 1, mix);
    assert_false(executor_run(f.executor, "micro", micro_scalars, f.diagnostics));
    expect_message(f.diagnostics, parts, COUNT_OF(parts));
    free(mix);
    free(inputs[0]);
    free(inputs[1]);
    fixture_free(&f);
}

/* 2^40 elements of a weight are refused before anything is allocated or compiled. */
static void too_large_a_model_is_refused(void **state) {
    (void)state;
    static const char text[] = "module stage graph\n"
                               "axis N 1048576\naxis M 1048576\n"
                               "state weight w f32 in(N) out(M) zeros\n"
                               "state metric loss f32 in() out() zeros\n"
                               "function eval() {\n"
                               "  %0 = state 0 to(N,M) : f32[N,M]\n"
                               "  %1 = sum %0 from(N,M) : f32\n"
                               "  write metric loss = %1\n"
                               "}\n";
    static const char *const parts[] = {"of memory, and", "are available", "weights: 4.0 TiB"};
    Fixture f = parse(text);
    place_states(f.module);
    run_pass_list(&f, to_memory, false, false);
    open_executor(&f, &(ExecutorOptions){0}, 2, false);
    assert_null(f.executor);
    expect_message(f.diagnostics, parts, COUNT_OF(parts));
    fixture_free(&f);
}

static void timing_has_a_figure_for_each_step(void **state) {
    (void)state;
    int32_t *inputs[2];
    Fixture f = compile(model_text, with_gradients, (Variant){.threads = 2});
    executor_initialize(f.executor, 1);
    set_inputs(&f, NULL, inputs);
    executor_set_timing(f.executor, true);
    double start = now_seconds(), sum = 0;
    run(&f, "micro", micro_scalars);
    double all = now_seconds() - start;
    const double *seconds = executor_step_seconds(f.executor, "micro");
    for (int64_t i = 0; i < program_find(f.set, "micro")->step_count; i++) {
        assert_true(seconds[i] > 0);
        sum += seconds[i];
    }
    assert_true(sum <= all);
    assert_true(executor_bytes(f.executor) >= f.set->arena_bytes);
    free(inputs[0]);
    free(inputs[1]);
    fixture_free(&f);
}

/* ---- random graphs ----------------------------------------------------------------- */
static void fuzzed_graph_agrees(uint64_t seed) {
    int32_t *inputs[8];
    Fixture f = {.diagnostics = diagnostics_new(), .module = fuzz_module(seed, 30)};
    run_pass_list(&f, with_gradients, false, false);
    place_states(f.module);
    run_pass_list(&f, to_memory, false, false);
    open_executor(&f, &(ExecutorOptions){.poison = true}, 2, false);
    if (!f.executor)
        print_and_fail(f.diagnostics);
    assert_true(f.module->inputs.count <= COUNT_OF(inputs));
    executor_initialize(f.executor, seed);
    Interp *weights = interp_new(f.module);
    fuzz_fill_weights(weights, f.module, seed);
    for (StateId id = 0; id < f.module->states.count; id++) {
        const State *state = &f.module->states.data[id];
        if (state->role != ROLE_WEIGHT || state->flat)
            continue;
        float *values = checked_alloc((size_t)elements_of(f.module, id) * sizeof *values);
        for (int64_t i = 0; i < elements_of(f.module, id); i++)
            values[declared_element(f.module, state, i)] = (float)interp_state(weights, id)[i];
        executor_write_state(f.executor, id, values);
        free(values);
    }
    interp_free(weights);
    Interp *interp = interpreter_like(&f);
    set_inputs(&f, interp, inputs);
    run(&f, "micro", micro_scalars);
    interp_run(interp, module_find_function(f.module, "micro"), micro_scalars, false);
    for (StateId id = 0; id < f.module->states.count; id++) {
        if (f.module->states.data[id].flat)
            continue;
        double apart = difference(&f, interp, id, 1e-3);
        if (!(apart < 1e-4))
            fail_msg("seed %d: %s %s is %g away", (int)seed,
                     role_name(f.module->states.data[id].role), f.module->states.data[id].path,
                     apart);
    }
    assert_true(executor_arena_touched(f.executor) <= f.set->arena_bytes);
    for (int i = 0; i < f.module->inputs.count; i++)
        free(inputs[i]);
    interp_free(interp);
    fixture_free(&f);
}

static void fuzzed_graphs_agree_with_the_interpreter(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        fuzzed_graph_agrees(seed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_agree_with_the_interpreter),
        cmocka_unit_test(updates_agree_with_the_interpreter),
        cmocka_unit_test(long_loops_agree_with_the_interpreter),
        cmocka_unit_test(nothing_but_the_graph_decides_bits),
        cmocka_unit_test(states_keep_their_values),
        cmocka_unit_test(initial_values_have_their_distribution),
        cmocka_unit_test(initial_values_depend_on_seed_path_and_element),
        cmocka_unit_test(the_first_nan_is_named),
        cmocka_unit_test(too_large_a_model_is_refused),
        cmocka_unit_test(timing_has_a_figure_for_each_step),
        cmocka_unit_test(fuzzed_graphs_agree_with_the_interpreter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
