/* Reverse mode against finite differences, in double precision through the interpreter: every
 * rule of the op table on sizes 1, 3 and 17, then fuzzed graphs along random directions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "passes/passes.h"
#include "tests/graph_fuzz.h"

/* ---- a module of one op ------------------------------------------------------------- */

/* Weights w0, w1, … go through one op; the loss is the sum of its results, each with a factor
 * of its own (a table that the test fills), so that no two elements weigh the same. */
typedef struct Bench {
    Module *module;
    Builder b;
    int weights;
    AxisId A, B, C, D; /* C is as long as A */
    bool positive;     /* weights in [0.5, 1.5), else in [-1, 1) */
} Bench;

static Bench bench_new(int64_t a, int64_t b) {
    Bench bench = {.module = module_new()};
    bench.A = module_axis(bench.module, "A", a, (Span){0});
    bench.B = module_axis(bench.module, "B", b, (Span){0});
    bench.C = module_axis(bench.module, "C", a, (Span){0});
    bench.D = module_axis(bench.module, "D", 2, (Span){0});
    Input input = {.name = "index", .axis_count = 2, .axes = {bench.B, bench.D}, .below = a};
    array_push(&bench.module->inputs, input);
    Input shared = {.name = "shared", .axis_count = 1, .axes = {bench.B}, .below = a};
    array_push(&bench.module->inputs, shared);
    Input itself = {.name = "itself", .axis_count = 1, .axes = {bench.A}, .below = a};
    array_push(&bench.module->inputs, itself);
    bench.b = builder(module_function(bench.module, "micro", 0, NULL));
    return bench;
}

static StateId add_state(Bench *bench, Role role, const char *path, Type type) {
    State state = {.path = path,
                   .role = role,
                   .dtype = TYPE_F32,
                   .out_count = type.rank,
                   .order_count = -1,
                   .weight = -1,
                   .offset = -1};
    memcpy(state.out, type.axes, sizeof state.out);
    return module_state(bench->module, state);
}

static NodeId weight(Bench *bench, const AxisId *axes, int rank) {
    const char *path = arena_printf(bench->module->arena, "w%d", bench->weights++);
    Type type = type_of(TYPE_F32, axes, rank);
    return build_state(&bench->b, add_state(bench, ROLE_WEIGHT, path, type));
}

#define WEIGHT(bench, ...)                                                                     \
    weight(bench, (const AxisId[]){__VA_ARGS__}, COUNT_OF(((const AxisId[]){__VA_ARGS__})))

/* The loss of a value: its product with the factors, summed. */
static void finish_bench(Bench *bench, NodeId value) {
    Builder *b = &bench->b;
    value = build_cast(b, value, TYPE_F32);
    Type type = node_at(b->function, value)->type;
    NodeId factors = build_state(b, add_state(bench, ROLE_TABLE, "factors", type));
    NodeId loss = build_2(b, OP_MUL, value, factors);
    loss = build_reduce(b, OP_SUM, loss, type.axes, type.rank);
    Write write = {.state = add_state(bench, ROLE_METRIC, "loss_sum", (Type){0}),
                   .value = loss,
                   .add = true};
    array_push(&b->function->writes, write);
}

/* ---- gradients against differences -------------------------------------------------- */

static double element(uint64_t site, int64_t index) {
    return random_uniform(42, 0, site, 0, (uint64_t)index);
}

static double run_loss(Interp *interp, const Module *module) {
    StateId loss = module_find_state(module, "loss_sum", ROLE_METRIC, 0);
    interp_state(interp, loss)[0] = 0;
    interp_run(interp, module_find_function(module, "micro"), NULL, false);
    return interp_state(interp, loss)[0];
}

/* The central difference by one element. */
static double difference(Interp *interp, const Module *module, double *at) {
    const double h = 1e-5, middle = *at;
    *at = middle + h;
    double above = run_loss(interp, module);
    *at = middle - h;
    double below = run_loss(interp, module);
    *at = middle;
    return (above - below) / (2 * h);
}

static void fill_states(Interp *interp, const Bench *bench) {
    for (StateId id = 0; id < bench->module->states.count; id++) {
        const State *state = &bench->module->states.data[id];
        int64_t count = type_elements(bench->module, state_type(state));
        double low = bench->positive ? 0.5 : -1, width = bench->positive ? 1 : 2;
        for (int64_t i = 0; i < count && state->role != ROLE_GRADIENT; i++)
            interp_state(interp, id)[i] = state->role == ROLE_WEIGHT
                                              ? low + width * element((uint64_t)id, i)
                                              : 0.5 + element((uint64_t)id, i);
    }
}

/* Copies of all gradients at the point where the states are, by state. */
static double **copy_gradients(Interp *interp, const Module *module) {
    double **gradients = checked_alloc((size_t)module->states.count * sizeof *gradients);
    run_loss(interp, module);
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role != ROLE_GRADIENT)
            continue;
        size_t bytes = (size_t)type_elements(module, state_type(state)) * sizeof(double);
        gradients[id] = memcpy(checked_alloc(bytes), interp_state(interp, id), bytes);
    }
    return gradients;
}

/* Relative norm of the difference, over all elements of one weight. */
static double gradient_error(Interp *interp, const Module *module, StateId gradient,
                             const double *values) {
    StateId of = module->states.data[gradient].weight;
    int64_t count = type_elements(module, state_type(&module->states.data[of]));
    double error = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double expected = difference(interp, module, &interp_state(interp, of)[i]);
        error += (values[i] - expected) * (values[i] - expected);
        norm += expected * expected;
    }
    return sqrt(error) / (norm > 0 ? sqrt(norm) : 1);
}

/* Differentiates the bench's loss and compares; frees the bench. */
static void check_bench(Bench *bench, const char *what) {
    Module *module = bench->module;
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics};
    assert_true(pass_autodiff(&context));
    const char *violation = ir_verify(module, STAGE_GRAPH);
    if (violation)
        fail_msg("%s: %s", what, violation);
    Interp *interp = interp_new(module);
    fill_states(interp, bench);
    int32_t *inputs[3];
    for (int i = 0; i < 3; i++)
        interp_set_input(interp, i, inputs[i] = fuzz_input(module, i, 3));
    double **gradients = copy_gradients(interp, module);
    for (StateId id = 0; id < module->states.count; id++) {
        if (!gradients[id])
            continue;
        double error = gradient_error(interp, module, id, gradients[id]);
        if (!(error < 1e-6))
            fail_msg("%s: gradient of %s is off by %g", what, module->states.data[id].path,
                     error);
        free(gradients[id]);
    }
    free(gradients);
    for (int i = 0; i < 3; i++)
        free(inputs[i]);
    interp_free(interp);
    diagnostics_free(diagnostics);
    module_free(module);
}

/* ---- every op of the table ---------------------------------------------------------- */

static const int64_t sizes[] = {1, 3, 17};

static NodeId half_of(Bench *bench) {
    Builder *b = &bench->b;
    return build_2(b, OP_LT, build_index(b, bench->A), build_const(b, TYPE_I32, 2));
}

static NodeId map_of_weights(Bench *bench, Op op) {
    Builder *b = &bench->b;
    NodeId x = WEIGHT(bench, bench->A, bench->B);
    switch (op) {
    case OP_CAST:
        return build_cast(b, x, TYPE_BF16); /* the interpreter does not round here */
    case OP_WHERE: {
        NodeId y = WEIGHT(bench, bench->A, bench->B);
        return build_3(b, OP_WHERE, half_of(bench), x, y);
    }
    default: {
        NodeId inputs[3] = {x, -1, -1};
        for (int i = 1; i < op_info[op].arity; i++)
            inputs[i] = WEIGHT(bench, bench->A, bench->B);
        return build_map(b, op, inputs, op_info[op].arity);
    }
    }
}

static NodeId view_of_weight(Bench *bench, Op op, bool first) {
    Builder *b = &bench->b;
    AxisId parts[2] = {bench->A, bench->B};
    int64_t size = axes_elements(bench->module, parts, 2);
    AxisId whole = module_axis(bench->module, "M", size, (Span){0});
    switch (op) {
    case OP_EXPAND: {
        Type wider = type_of(TYPE_F32, parts, 2);
        return build_expand(b, WEIGHT(bench, bench->A), wider);
    }
    case OP_RENAME:
        return build_rename(b, WEIGHT(bench, bench->A, bench->B), bench->A, bench->C);
    case OP_SPLIT:
        return build_split(b, WEIGHT(bench, whole, bench->D), whole, parts, 2);
    case OP_MERGE:
        return build_merge(b, WEIGHT(bench, bench->A, bench->B, bench->D), parts, 2, whole);
    case OP_PICK: {
        NodeId x = WEIGHT(bench, bench->A, bench->B);
        return build_pick(b, x, bench->A,
                          first ? 0 : bench->module->axes.data[bench->A].size - 1);
    }
    case OP_STACK: {
        NodeId x = WEIGHT(bench, bench->A, bench->B), y = WEIGHT(bench, bench->A, bench->B);
        AxisId three = module_axis(bench->module, "three", 3, (Span){0});
        return build_stack(b, (NodeId[]){x, y, x}, 3, three);
    }
    default:
        fail_msg("no case for %s", op_info[op].name);
        return -1;
    }
}

enum { VARIANTS = 6 };

/* Products: matrices; with a batch axis; of vectors; outer; of a value with itself; with an
 * axis that is in one operand only and summed nowhere. */
static NodeId dot_of_weights(Bench *bench, int variant) {
    Builder *b = &bench->b;
    AxisId A = bench->A, B = bench->B, C = bench->C, D = bench->D;
    switch (variant) {
    case 0: {
        NodeId x = WEIGHT(bench, A, B), y = WEIGHT(bench, B, C);
        return build_dot(b, x, y, &B, 1);
    }
    case 1: {
        NodeId x = WEIGHT(bench, A, B, D), y = WEIGHT(bench, D, B, C);
        return build_dot(b, x, y, &B, 1);
    }
    case 2: {
        NodeId x = WEIGHT(bench, A, B), y = WEIGHT(bench, A, B);
        return build_dot(b, x, y, (AxisId[]){A, B}, 2);
    }
    case 3: {
        NodeId x = WEIGHT(bench, A), y = WEIGHT(bench, B);
        return build_dot(b, x, y, NULL, 0);
    }
    case 4: {
        NodeId x = WEIGHT(bench, A, B);
        return build_dot(b, x, x, &A, 1);
    }
    default: {
        NodeId x = WEIGHT(bench, A, B, D), y = WEIGHT(bench, B);
        return build_dot(b, x, y, &B, 1);
    }
    }
}

/* Rows of a table: by an index with axes of its own; with one that the table shares; both; by
 * an index over the very axis that is gathered. */
static NodeId gather_of_weight(Bench *bench, int variant) {
    AxisId A = bench->A, B = bench->B, C = bench->C;
    NodeId table = variant == 0   ? WEIGHT(bench, A, C)
                   : variant == 1 ? WEIGHT(bench, A, B)
                   : variant == 2 ? WEIGHT(bench, A, B, C)
                                  : WEIGHT(bench, A, B);
    int64_t input = variant == 1 ? 1 : variant < 3 ? 0 : 2;
    return build_gather(&bench->b, table, build_input(&bench->b, input), A);
}

static NodeId reduction_of_weight(Bench *bench, Op op, int variant) {
    NodeId x = WEIGHT(bench, bench->A, bench->B, bench->D);
    AxisId axes[2] = {bench->B, bench->D};
    return build_reduce(&bench->b, op, x, axes, 1 + variant % 2);
}

static NodeId value_of(Bench *bench, Op op, int variant) {
    switch (op_info[op].axis_rule) {
    case AXES_SAME:
        return map_of_weights(bench, op);
    case AXES_REDUCE:
        return reduction_of_weight(bench, op, variant);
    case AXES_DOT:
        return dot_of_weights(bench, variant);
    case AXES_GATHER:
        return gather_of_weight(bench, variant);
    default:
        return view_of_weight(bench, op, variant == 0);
    }
}

static int variants_of(Op op) {
    switch (op_info[op].axis_rule) {
    case AXES_DOT:
        return VARIANTS;
    case AXES_GATHER:
        return 4;
    case AXES_REDUCE:
    case AXES_PICK:
        return 2;
    default:
        return 1;
    }
}

static void every_rule_agrees_with_differences(void **state) {
    (void)state;
    int checked = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        if (op_info[op].gradient == GRADIENT_NONE || op_info[op].gradient == GRADIENT_STATE)
            continue;
        for (int i = 0; i < COUNT_OF(sizes) * COUNT_OF(sizes); i++)
            for (int variant = 0; variant < variants_of((Op)op); variant++) {
                Bench bench = bench_new(sizes[i / COUNT_OF(sizes)], sizes[i % COUNT_OF(sizes)]);
                bench.positive = op == OP_LOG || op == OP_SQRT || op == OP_DIV;
                finish_bench(&bench, value_of(&bench, (Op)op, variant));
                check_bench(&bench, op_info[op].name);
                checked++;
            }
    }
    assert_true(checked > 250);
}

/* ---- corners ------------------------------------------------------------------------ */

/* The gradients of a bench with all weights at the given values; caller frees the result. */
static double *gradient_at(Bench *bench, const double *values, int64_t count) {
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = bench->module, .diagnostics = diagnostics};
    assert_true(pass_autodiff(&context));
    Interp *interp = interp_new(bench->module);
    for (StateId id = 0; id < bench->module->states.count; id++) {
        const State *state = &bench->module->states.data[id];
        int64_t elements = type_elements(bench->module, state_type(state));
        for (int64_t i = 0; i < elements && state->role != ROLE_GRADIENT; i++)
            interp_state(interp, id)[i] = state->role == ROLE_WEIGHT ? values[i] : 1;
    }
    run_loss(interp, bench->module);
    StateId gradient = module_find_state(bench->module, "w0", ROLE_GRADIENT, 0);
    double *result = checked_alloc((size_t)count * sizeof *result);
    memcpy(result, interp_state(interp, gradient), (size_t)count * sizeof *result);
    interp_free(interp);
    diagnostics_free(diagnostics);
    module_free(bench->module);
    return result;
}

static void ties_share_the_gradient(void **state) {
    (void)state;
    Bench bench = bench_new(3, 1);
    finish_bench(&bench, build_reduce(&bench.b, OP_MAX, WEIGHT(&bench, bench.A), &bench.A, 1));
    double *g = gradient_at(&bench, (const double[]){2, -1, 2}, 3);
    assert_true(g[0] == 0.5 && g[1] == 0 && g[2] == 0.5);
    free(g);
    for (int op = OP_MAXIMUM; op <= OP_MINIMUM; op++) {
        bench = bench_new(1, 1);
        NodeId x = WEIGHT(&bench, bench.A), y = WEIGHT(&bench, bench.A);
        finish_bench(&bench, build_2(&bench.b, (Op)op, x, y));
        g = gradient_at(&bench, (const double[]){2}, 1);
        assert_true(g[0] == 0.5);
        free(g);
    }
}

static void absolute_value_has_gradient_0_at_0(void **state) {
    (void)state;
    Bench bench = bench_new(3, 1);
    finish_bench(&bench, build_1(&bench.b, OP_ABS, WEIGHT(&bench, bench.A)));
    double *g = gradient_at(&bench, (const double[]){-2, 0, 2}, 3);
    assert_true(g[0] == -1 && g[1] == 0 && g[2] == 1);
    free(g);
}

/* where(x > 0, log(x), 0): the side not taken is -inf or no number, and its gradient 0/0. */
static void the_side_not_taken_gets_nothing(void **state) {
    (void)state;
    Bench bench = bench_new(3, 1);
    Builder *b = &bench.b;
    NodeId x = WEIGHT(&bench, bench.A), zero = build_const(b, TYPE_F32, 0);
    NodeId positive = build_2(b, OP_LT, zero, x);
    NodeId safe = build_3(b, OP_WHERE, positive, x, build_const(b, TYPE_F32, 1));
    NodeId logarithm = build_1(b, OP_LOG, safe);
    NodeId ratio = build_2(b, OP_DIV, logarithm, build_3(b, OP_WHERE, positive, x, zero));
    finish_bench(&bench, build_3(b, OP_WHERE, positive, ratio, zero));
    double *g = gradient_at(&bench, (const double[]){1, 0, -1}, 3);
    assert_true(g[0] == 1 && isnan(g[1]) == false && g[1] == 0 && g[2] == 0);
    free(g);
}

static void stop_lets_nothing_through(void **state) {
    (void)state;
    Bench bench = bench_new(3, 1);
    NodeId x = WEIGHT(&bench, bench.A);
    finish_bench(&bench, build_2(&bench.b, OP_MUL, x, build_1(&bench.b, OP_STOP, x)));
    double *g = gradient_at(&bench, (const double[]){2, 3, 5}, 3);
    assert_true(g[0] == 2 && g[1] == 3 && g[2] == 5);
    free(g);
}

/* ---- fuzzed graphs ------------------------------------------------------------------ */

static const double scalars[] = {3, 7, 11}; /* step, seed, sample0 */

static double fuzz_loss(Interp *interp, const Module *module) {
    StateId loss = module_find_state(module, "loss_sum", ROLE_METRIC, 0);
    interp_state(interp, loss)[0] = 0;
    interp_run(interp, module_find_function(module, "micro"), scalars, false);
    return interp_state(interp, loss)[0];
}

/* `stop` makes a gradient differ from the derivative on purpose.  So its values become tables,
 * which fill_stops fills: differences are then taken of what autodiff differentiates. */
static void freeze_stops(Module *module) {
    Function *micro = module_find_function(module, "micro");
    Rebuild r = rebuild_begin(module, micro);
    Builder b = builder(r.fresh);
    for (int64_t id = 0; id < micro->nodes.count; id++) {
        const Node *node = &micro->nodes.data[id];
        if (node->op != OP_STOP || !dtype_is_float(node->type.dtype)) {
            rebuild_copy(&r, (NodeId)id);
            continue;
        }
        State state = {.path = arena_printf(module->arena, "stop%d", (int)id),
                       .role = ROLE_TABLE,
                       .dtype = node->type.dtype,
                       .out_count = node->type.rank,
                       .order_count = -1,
                       .weight = -1,
                       .offset = -1};
        memcpy(state.out, node->type.axes, sizeof state.out);
        r.map[id] = build_state(&b, module_state(module, state));
    }
    rebuild_finish(&r);
}

/* A fuzzed module with its gradients, at one point. */
typedef struct Point {
    uint64_t seed, weights; /* of the module; of the weights' values */
    Module *module;
    Interp *interp;
    int32_t *inputs[2];
    double **gradients; /* by gradient state */
} Point;

/* The values of `stop` nodes at this point, from a module that still has them. */
static void fill_stops(Point *point) {
    Module *original = fuzz_module(point->seed, 40);
    Interp *values = interp_new(original);
    for (int i = 0; i < 2; i++)
        interp_set_input(values, i, point->inputs[i]);
    fuzz_fill_weights(values, original, point->weights);
    interp_run(values, module_find_function(original, "micro"), scalars, true);
    for (StateId id = 0; id < point->module->states.count; id++) {
        const State *state = &point->module->states.data[id];
        int node;
        if (state->role != ROLE_TABLE || sscanf(state->path, "stop%d", &node) != 1)
            continue;
        size_t bytes = (size_t)type_elements(point->module, state_type(state)) * sizeof(double);
        memcpy(interp_state(point->interp, id), interp_value(values, node), bytes);
    }
    interp_free(values);
    module_free(original);
}

static Point point_new(uint64_t seed, uint64_t weights) {
    Point point = {.seed = seed, .weights = weights, .module = fuzz_module(seed, 40)};
    Module *module = point.module;
    freeze_stops(module);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics};
    assert_true(pass_autodiff(&context));
    diagnostics_free(diagnostics);
    const char *violation = ir_verify(module, STAGE_GRAPH);
    if (violation)
        fail_msg("seed %d: %s", (int)seed, violation);
    point.interp = interp_new(module);
    for (int i = 0; i < 2; i++)
        interp_set_input(point.interp, i, point.inputs[i] = fuzz_input(module, i, 5));
    fill_stops(&point);
    fuzz_fill_weights(point.interp, module, weights);
    fuzz_loss(point.interp, module);
    point.gradients = checked_alloc((size_t)module->states.count * sizeof *point.gradients);
    for (StateId id = 0; id < module->states.count; id++)
        if (module->states.data[id].role == ROLE_GRADIENT) {
            size_t bytes = sizeof(double) *
                           (size_t)type_elements(module, state_type(&module->states.data[id]));
            point.gradients[id] = checked_alloc(bytes);
            memcpy(point.gradients[id], interp_state(point.interp, id), bytes);
        }
    return point;
}

static void point_free(Point *point) {
    for (StateId id = 0; id < point->module->states.count; id++)
        free(point->gradients[id]);
    free(point->gradients);
    for (int i = 0; i < 2; i++)
        free(point->inputs[i]);
    interp_free(point->interp);
    module_free(point->module);
}

/* The loss h times a random direction away from the point; *slope: the derivative along it by
 * the gradients. */
static double loss_along(Point *point, double h, double *slope) {
    const Module *module = point->module;
    fuzz_fill_weights(point->interp, module, point->weights);
    *slope = 0;
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role != ROLE_GRADIENT)
            continue;
        int64_t count = type_elements(module, state_type(state));
        double *weights = interp_state(point->interp, state->weight);
        for (int64_t i = 0; i < count; i++) {
            double d = 2 * random_uniform(point->weights, 1, (uint64_t)id, 0, (uint64_t)i) - 1;
            weights[i] += h * d;
            *slope += point->gradients[id][i] * d;
        }
    }
    return fuzz_loss(point->interp, module);
}

/* How far the difference along a direction is from the gradient, relative. */
static double direction_error(uint64_t seed, uint64_t weights) {
    const double h = 1e-5;
    Point point = point_new(seed, weights);
    double slope, above = loss_along(&point, h, &slope), below = loss_along(&point, -h, &slope);
    point_free(&point);
    double expected = (above - below) / (2 * h);
    return fabs(slope - expected) / (fabs(expected) + 1e-3);
}

/* A point may lie at a kink (a maximum, a comparison): the best of a few counts. */
static void check_fuzzed(uint64_t seed) {
    double best = INFINITY;
    for (uint64_t weights = 1; weights <= 6 && !(best < 1e-6); weights++)
        best = fmin(best, direction_error(seed, weights));
    if (!(best < 1e-6))
        fail_msg("seed %d: the gradient is off by %g at every point", (int)seed, best);
}

static void fuzzed_graphs_agree_with_differences(void **state) {
    (void)state;
    const char *asked = getenv("COLAC_FUZZ");
    int count = asked ? atoi(asked) / 100 + 100 : 100;
    for (int seed = 0; seed < count; seed++)
        check_fuzzed((uint64_t)seed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rule_agrees_with_differences),
        cmocka_unit_test(ties_share_the_gradient),
        cmocka_unit_test(absolute_value_has_gradient_0_at_0),
        cmocka_unit_test(the_side_not_taken_gets_nothing),
        cmocka_unit_test(stop_lets_nothing_through),
        cmocka_unit_test(fuzzed_graphs_agree_with_differences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
