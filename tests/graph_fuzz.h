/* tests/graph_fuzz.h: random well-typed modules, and values for them, to fuzz passes with.
 *
 * fuzz_module(seed, size) makes a module as a front end would: axes of sizes 1, 3 and 17, some
 * of them equal, integer inputs, weights, and a function `micro` of about `size` f32 values
 * from every differentiable op and view, of attention-like pieces and of masks, which ends in
 *     loss_sum += …    weight_sum += …
 * Values stay small, so that results can be compared and differentiated numerically: logarithms
 * and quotients have their arguments away from 0, and every value knows a bound of its own. */
#ifndef COLAC_TESTS_GRAPH_FUZZ_H
#define COLAC_TESTS_GRAPH_FUZZ_H

#include "ir/ir.h"

#include <math.h>

#define FUZZ_UNUSED __attribute__((unused))
enum { FUZZ_MAX_ELEMENTS = 6000, FUZZ_MAX_RANK = 5 };

typedef struct FuzzValue {
    NodeId id;
    double bound; /* of the absolute value of any element */
    bool used;
} FuzzValue;

typedef struct Fuzz {
    uint64_t random;
    Module *module;
    Builder b;
    ARRAY(FuzzValue) values;
    AxisId B, S, T, D, E, F, V; /* sizes 3, 17, 17, 3, 3, 1, 17 */
    int scopes;
} Fuzz;

/* splitmix64 */
static uint64_t fuzz_next(uint64_t *random) {
    uint64_t z = *random += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static int fuzz_below(Fuzz *f, int64_t bound) {
    return (int)(fuzz_next(&f->random) % (uint64_t)bound);
}

static bool fuzz_chance(Fuzz *f, int percent) {
    return fuzz_below(f, 100) < percent;
}

static Type fuzz_type(const Fuzz *f, NodeId id) {
    return node_at(f->b.function, id)->type;
}

static bool fuzz_fits(const Fuzz *f, Type type) {
    return type.rank <= FUZZ_MAX_RANK && type_elements(f->module, type) <= FUZZ_MAX_ELEMENTS;
}

static NodeId fuzz_number(Fuzz *f, double number) {
    return build_const(&f->b, TYPE_F32, number);
}

static NodeId fuzz_scale(Fuzz *f, NodeId a, double factor) {
    return build_2(&f->b, OP_MUL, a, fuzz_number(f, factor));
}

/* Enters a value; one that may have grown large is brought down first. */
static void fuzz_add(Fuzz *f, NodeId id, double bound) {
    if (bound > 4) {
        bool squash = fuzz_chance(f, 50);
        id = squash ? build_1(&f->b, OP_TANH, id) : fuzz_scale(f, id, 1 / bound);
        bound = 1;
    }
    FuzzValue value = {id, bound, false};
    array_push(&f->values, value);
}

/* A value to read, mostly a recent one. */
static FuzzValue fuzz_pick(Fuzz *f) {
    int64_t count = f->values.count;
    int64_t recent = count < 12 || fuzz_chance(f, 25) ? count : 12;
    FuzzValue *value = &f->values.data[count - 1 - fuzz_below(f, recent)];
    value->used = true;
    return *value;
}

/* A value that has the axis, or one that is expanded along it. */
static FuzzValue fuzz_pick_with(Fuzz *f, AxisId axis) {
    FuzzValue value = fuzz_pick(f);
    for (int tries = 0; tries < 20 && !type_has(fuzz_type(f, value.id), axis); tries++)
        value = fuzz_pick(f);
    Type type = type_with(fuzz_type(f, value.id), axis);
    if (!fuzz_fits(f, type)) {
        type = (Type){.dtype = TYPE_F32, .rank = 1, .axes = {axis}};
        value = (FuzzValue){fuzz_number(f, 0.25), 0.25, true};
    }
    value.id = build_expand(&f->b, value.id, type);
    return value;
}

/* 0.9 to the step, as an optimizer's bias correction has it: computed on the host. */
static NodeId fuzz_host_scalar(Fuzz *f) {
    NodeId base = build_const(&f->b, TYPE_F64, 0.9);
    return build_cast(&f->b, build_2(&f->b, OP_POW, base, build_scalar(&f->b, 0)), TYPE_F32);
}

/* Two values whose axes together make no large tensor. */
static void fuzz_pick_pair(Fuzz *f, FuzzValue *x, FuzzValue *y) {
    *x = fuzz_pick(f);
    *y = fuzz_pick(f);
    for (int tries = 0; tries < 20; tries++) {
        if (fuzz_fits(f, type_union(fuzz_type(f, x->id), fuzz_type(f, y->id))))
            return;
        *y = fuzz_pick(f);
    }
    *y = *x;
}

/* |a| + 1/2 */
static NodeId fuzz_positive(Fuzz *f, NodeId a) {
    return build_2(&f->b, OP_ADD, build_1(&f->b, OP_ABS, a), fuzz_number(f, 0.5));
}

static void fuzz_unary(Fuzz *f) {
    FuzzValue x = fuzz_pick(f);
    Builder *b = &f->b;
    switch (fuzz_below(f, 12)) {
    case 0:
        fuzz_add(f, build_1(b, OP_NEG, x.id), x.bound);
        break;
    case 1:
        fuzz_add(f, build_1(b, OP_ABS, x.id), x.bound);
        break;
    case 2:
        fuzz_add(f, build_1(b, OP_EXP, fuzz_scale(f, x.id, 0.25)), 2.8);
        break;
    case 3:
        fuzz_add(f, build_1(b, OP_LOG, fuzz_positive(f, x.id)), 2);
        break;
    case 4:
        fuzz_add(f, build_1(b, OP_SQRT, fuzz_positive(f, x.id)), 2.2);
        break;
    case 5:
        fuzz_add(f, build_1(b, OP_TANH, x.id), 1);
        break;
    case 6:
        fuzz_add(f, build_1(b, OP_SIGMOID, x.id), 1);
        break;
    case 7:
        fuzz_add(f, build_1(b, OP_ERF, x.id), 1);
        break;
    case 8:
        fuzz_add(f, build_1(b, OP_SIN, x.id), 1);
        break;
    case 9:
        fuzz_add(f, build_1(b, OP_COS, x.id), 1);
        break;
    case 10:
        fuzz_add(f, build_2(b, OP_MUL, x.id, build_1(b, OP_STOP, x.id)), 16);
        break;
    case 11:
        fuzz_add(f, build_2(b, OP_MUL, x.id, fuzz_host_scalar(f)), x.bound);
        break;
    default: /* silu */
        fuzz_add(f, build_2(b, OP_MUL, x.id, build_1(b, OP_SIGMOID, x.id)), x.bound);
    }
}

static void fuzz_binary(Fuzz *f) {
    FuzzValue x, y;
    fuzz_pick_pair(f, &x, &y);
    Builder *b = &f->b;
    double larger = x.bound > y.bound ? x.bound : y.bound;
    switch (fuzz_below(f, 7)) {
    case 0:
        fuzz_add(f, build_2(b, OP_ADD, x.id, y.id), x.bound + y.bound);
        break;
    case 1:
        fuzz_add(f, build_2(b, OP_SUB, x.id, y.id), x.bound + y.bound);
        break;
    case 2:
        fuzz_add(f, build_2(b, OP_MUL, x.id, y.id), x.bound * y.bound);
        break;
    case 3:
        fuzz_add(f, build_2(b, OP_DIV, x.id, fuzz_positive(f, y.id)), 2 * x.bound);
        break;
    case 4:
        fuzz_add(f, build_2(b, OP_MAXIMUM, x.id, y.id), larger);
        break;
    case 5:
        fuzz_add(f, build_2(b, OP_MINIMUM, x.id, y.id), larger);
        break;
    default:
        fuzz_add(f, build_3(b, OP_FMA, x.id, y.id, x.id), (y.bound + 1) * x.bound);
    }
}

/* A condition over some axes: of values, of positions, of tokens or of random numbers. */
static NodeId fuzz_condition(Fuzz *f, FuzzValue x, FuzzValue y) {
    Builder *b = &f->b;
    Type axes = fuzz_type(f, x.id);
    AxisId axis = axes.rank ? axes.axes[fuzz_below(f, axes.rank)] : f->F;
    NodeId position = build_index(b, axis);
    switch (fuzz_below(f, 6)) {
    case 0:
        return build_2(b, OP_LT, x.id, y.id);
    case 1:
        return build_1(b, OP_NOT, build_2(b, OP_LE, x.id, y.id));
    case 2: {
        NodeId two = build_const(b, TYPE_I32, 2), zero = build_const(b, TYPE_I32, 0);
        return build_2(b, OP_EQ, build_2(b, OP_MOD, position, two), zero);
    }
    case 3: {
        NodeId half = build_2(b, OP_DIV, position, build_const(b, TYPE_I32, 2));
        return build_2(b, OP_OR, build_2(b, OP_LT, half, build_const(b, TYPE_I32, 5)),
                       build_2(b, OP_LT, x.id, fuzz_number(f, 0)));
    }
    case 4: {
        NodeId sign = build_1(b, OP_SIGN, x.id), floored = build_1(b, OP_FLOOR, y.id);
        return build_2(b, OP_AND, build_2(b, OP_EQ, sign, fuzz_number(f, 1)),
                       build_2(b, OP_LE, floored, fuzz_number(f, 0)));
    }
    default: {
        Attr attr = {.integer = fuzz_below(f, 1000), .to_count = axes.rank};
        memcpy(attr.to, axes.axes, sizeof attr.to);
        NodeId random = build(b, OP_RANDOM, TYPE_F32, attr, NULL, 0);
        return build_2(b, OP_LT, random, fuzz_number(f, 0.75));
    }
    }
}

static void fuzz_where(Fuzz *f) {
    FuzzValue x, y;
    fuzz_pick_pair(f, &x, &y);
    NodeId condition = fuzz_condition(f, x, y);
    fuzz_add(f, build_3(&f->b, OP_WHERE, condition, x.id, y.id),
             x.bound > y.bound ? x.bound : y.bound);
}

static void fuzz_reduce(Fuzz *f) {
    FuzzValue x = fuzz_pick(f);
    Type type = fuzz_type(f, x.id);
    if (!type.rank)
        return;
    AxisId axes[MAX_AXES];
    int count = 0;
    for (int i = 0; i < type.rank; i++)
        if (fuzz_chance(f, 50))
            axes[count++] = type.axes[i];
    if (!count)
        axes[count++] = type.axes[fuzz_below(f, type.rank)];
    if (fuzz_chance(f, 30))
        fuzz_add(f, build_reduce(&f->b, OP_MAX, x.id, axes, count), x.bound);
    else
        fuzz_add(f, build_reduce(&f->b, OP_SUM, x.id, axes, count),
                 x.bound * (double)axes_elements(f->module, axes, count));
}

static void fuzz_dot(Fuzz *f) {
    for (int tries = 0; tries < 20; tries++) {
        FuzzValue x = fuzz_pick(f), y = fuzz_pick(f);
        Type a = fuzz_type(f, x.id), c = fuzz_type(f, y.id), result = type_union(a, c);
        AxisId shared[MAX_AXES];
        int count = 0;
        for (int i = 0; i < a.rank; i++)
            if (type_has(c, a.axes[i]) && fuzz_chance(f, 75)) {
                shared[count++] = a.axes[i];
                result = type_without(result, a.axes[i]);
            }
        if ((!count && !fuzz_chance(f, 10)) || result.rank > MAX_AXES || !fuzz_fits(f, result))
            continue;
        double terms = (double)axes_elements(f->module, shared, count);
        NodeId dot = build_dot(&f->b, x.id, y.id, shared, count);
        fuzz_add(f, fuzz_scale(f, dot, 1 / terms), x.bound * y.bound);
        return;
    }
}

/* rename, split, merge and pick of a value; expand along one more axis; stack of several */
static void fuzz_move(Fuzz *f) {
    Builder *b = &f->b;
    FuzzValue x = fuzz_pick(f);
    Type type = fuzz_type(f, x.id);
    AxisId axis = (AxisId)fuzz_below(f, f->module->axes.count);
    Type wider = type_with(type, axis);
    int choice = fuzz_below(f, 4);
    if (choice == 0 && fuzz_fits(f, wider)) {
        fuzz_add(f, build_expand(b, x.id, wider), x.bound);
    } else if (choice == 1 && !type_has(type, f->D) && fuzz_fits(f, type_with(type, f->D))) {
        NodeId parts[3] = {x.id, build_1(b, OP_NEG, x.id), build_1(b, OP_SIN, x.id)};
        fuzz_add(f, build_stack(b, parts, 3, f->D), x.bound + 1);
    } else if (type.rank) {
        AxisId from = type.axes[fuzz_below(f, type.rank)];
        int64_t size = f->module->axes.data[from].size;
        if (choice == 2)
            fuzz_add(f, build_pick(b, x.id, from, fuzz_below(f, size)), x.bound);
        else if (size == f->module->axes.data[axis].size && !type_has(type, axis))
            fuzz_add(f, build_rename(b, x.id, from, axis), x.bound);
    }
}

/* Two axes become one of their product's size, and perhaps two again in the other order. */
static void fuzz_merge(Fuzz *f) {
    FuzzValue x = fuzz_pick(f);
    Type type = fuzz_type(f, x.id);
    if (type.rank < 2)
        return;
    int first = fuzz_below(f, type.rank), second = fuzz_below(f, type.rank - 1);
    second += second >= first;
    AxisId from[2] = {type.axes[first], type.axes[second]};
    int64_t size = axes_elements(f->module, from, 2);
    AxisId merged = module_axis(f->module, "M", size, (Span){0});
    if (type_has(type, merged))
        return;
    NodeId flat = build_merge(&f->b, x.id, from, 2, merged);
    fuzz_add(f, flat, x.bound);
    AxisId swapped[2] = {from[1], from[0]};
    if (fuzz_chance(f, 60))
        fuzz_add(f, build_split(&f->b, build_1(&f->b, OP_COS, flat), merged, swapped, 2), 1);
}

/* softmax over T of a product, with the causal mask or without; then a product with another
 * value: what attention is made of */
static void fuzz_attention(Fuzz *f) {
    Builder *b = &f->b;
    FuzzValue q = fuzz_pick_with(f, f->S), k = fuzz_pick_with(f, f->T);
    Type all = type_union(fuzz_type(f, q.id), fuzz_type(f, k.id));
    if (!fuzz_fits(f, all))
        return;
    NodeId scores = build_2(b, OP_MUL, q.id, k.id);
    if (fuzz_chance(f, 60)) {
        NodeId causal = build_2(b, OP_LE, build_index(b, f->T), build_index(b, f->S));
        scores = build_3(b, OP_WHERE, causal, scores, fuzz_number(f, -INFINITY));
    }
    NodeId peak = build_1(b, OP_STOP, build_reduce(b, OP_MAX, scores, &f->T, 1));
    NodeId weights = build_1(b, OP_EXP, build_2(b, OP_SUB, scores, peak));
    NodeId p = build_2(b, OP_DIV, weights, build_reduce(b, OP_SUM, weights, &f->T, 1));
    fuzz_add(f, p, 1);
    FuzzValue v = fuzz_pick_with(f, f->T);
    Type result = type_without(type_union(fuzz_type(f, p), fuzz_type(f, v.id)), f->T);
    if (fuzz_fits(f, result))
        fuzz_add(f, build_dot(b, p, v.id, &f->T, 1), v.bound);
}

/* Root mean square norm over D: a reduction between maps of the same value. */
static void fuzz_norm(Fuzz *f) {
    Builder *b = &f->b;
    FuzzValue x = fuzz_pick_with(f, f->D);
    NodeId squares = build_reduce(b, OP_SUM, build_2(b, OP_MUL, x.id, x.id), &f->D, 1);
    NodeId root = build_1(b, OP_SQRT, build_2(b, OP_ADD, squares, fuzz_number(f, 0.125)));
    fuzz_add(f, build_2(b, OP_DIV, x.id, root), 1);
}

static void fuzz_gather(Fuzz *f) {
    FuzzValue table = fuzz_pick_with(f, f->V);
    NodeId tokens = build_input(&f->b, fuzz_below(f, f->module->inputs.count));
    Type result = type_union(type_without(fuzz_type(f, table.id), f->V), fuzz_type(f, tokens));
    if (fuzz_fits(f, result))
        fuzz_add(f, build_gather(&f->b, table.id, tokens, f->V), table.bound);
    else
        fuzz_add(f, fuzz_scale(f, build_cast(&f->b, tokens, TYPE_F32), 1. / 16), 1.0625);
}

static void fuzz_step(Fuzz *f) {
    f->b.scope = fuzz_below(f, f->scopes);
    int choice = fuzz_below(f, 100);
    if (choice < 22)
        fuzz_unary(f);
    else if (choice < 45)
        fuzz_binary(f);
    else if (choice < 52)
        fuzz_where(f);
    else if (choice < 62)
        fuzz_reduce(f);
    else if (choice < 74)
        fuzz_dot(f);
    else if (choice < 84)
        fuzz_move(f);
    else if (choice < 89)
        fuzz_merge(f);
    else if (choice < 93)
        fuzz_attention(f);
    else if (choice < 96)
        fuzz_norm(f);
    else
        fuzz_gather(f);
}

static StateId fuzz_metric(Fuzz *f, const char *path) {
    return module_state(f->module, (State){.path = path,
                                           .role = ROLE_METRIC,
                                           .dtype = TYPE_F32,
                                           .order_count = -1,
                                           .weight = -1,
                                           .offset = -1});
}

static void fuzz_declare(Fuzz *f) {
    Module *m = f->module;
    Span none = {0};
    f->B = module_axis(m, "B", 3, none);
    f->S = module_axis(m, "S", 17, none);
    f->T = module_axis(m, "T", 17, none);
    f->D = module_axis(m, "D", 3, none);
    f->E = module_axis(m, "E", 3, none);
    f->F = module_axis(m, "F", 1, none);
    f->V = module_axis(m, "V", 17, none);
    for (int64_t next = 0; next < 2; next++) {
        Input input = {.name = next ? "targets" : "tokens",
                       .axis_count = 2,
                       .axes = {f->B, f->S},
                       .below = 17,
                       .next = next};
        array_push(&m->inputs, input);
    }
    module_scope(m, 0, "layer[0]", "layer", none);
    module_scope(m, 0, "layer[1]", "layer", none);
    f->scopes = 3;
}

/* Weights: a table, a matrix, some of random axes, one without axes. */
static void fuzz_weights(Fuzz *f) {
    const AxisId all[] = {f->D, f->E, f->F, f->S, f->T, f->V};
    for (int i = 0; i < 6; i++) {
        State state = {.role = ROLE_WEIGHT,
                       .dtype = TYPE_F32,
                       .order_count = -1,
                       .weight = -1,
                       .offset = -1,
                       .init = {INIT_UNIFORM, 1}};
        state.path = arena_printf(f->module->arena, "layer[%d].w%d", i % 2, i);
        bool taken[COUNT_OF(all)] = {0};
        for (int axis = 0; axis < 3 && i < 5; axis++) {
            int chosen = i == 0 ? (axis ? 0 : 5) : i == 1 ? axis : fuzz_below(f, COUNT_OF(all));
            if (taken[chosen])
                continue;
            taken[chosen] = true;
            if (axis == 0)
                state.in[state.in_count++] = all[chosen];
            else
                state.out[state.out_count++] = all[chosen];
        }
        fuzz_add(f, build_state(&f->b, module_state(f->module, state)), 1);
    }
}

/* The sum of all that nothing reads. */
static NodeId fuzz_total(Fuzz *f) {
    NodeId total = fuzz_number(f, 0.5);
    for (int64_t i = 0; i < f->values.count; i++) {
        if (f->values.data[i].used)
            continue;
        NodeId id = f->values.data[i].id;
        Type type = fuzz_type(f, id);
        NodeId sum = build_reduce(&f->b, OP_SUM, id, type.axes, type.rank);
        double elements = (double)type_elements(f->module, type);
        total = build_2(&f->b, OP_ADD, total, fuzz_scale(f, sum, 1 / elements));
    }
    return total;
}

FUZZ_UNUSED static Module *fuzz_module(uint64_t seed, int size) {
    Fuzz fuzz = {.random = seed * 0x9E3779B97F4A7C15 + 1, .module = module_new()};
    Fuzz *f = &fuzz;
    fuzz_declare(f);
    const char *const scalars[] = {"step", "seed", "sample0"};
    Function *micro = module_function(f->module, "micro", 3, scalars);
    f->b = builder(micro);
    fuzz_weights(f);
    while (f->values.count < size)
        fuzz_step(f);
    f->b.scope = 0;
    Write loss = {.value = fuzz_total(f), .add = true};
    Write weight = {.value = fuzz_number(f, 3 * 17), .add = true};
    loss.state = fuzz_metric(f, "loss_sum");
    weight.state = fuzz_metric(f, "weight_sum");
    array_push(&micro->writes, loss);
    array_push(&micro->writes, weight);
    array_free(&f->values);
    return f->module;
}

/* Every weight uniform in [-1, 1), exact in f32, by its path; other states are left alone. */
FUZZ_UNUSED static void fuzz_fill_weights(Interp *interp, const Module *module, uint64_t seed) {
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role != ROLE_WEIGHT || state->flat)
            continue;
        uint64_t site = hash_bytes(state->path, strlen(state->path), 0);
        int64_t count = type_elements(module, state_type(state));
        double *data = interp_state(interp, id);
        for (int64_t i = 0; i < count; i++)
            data[i] = 2 * random_uniform(seed, 0, site, 0, (uint64_t)i) - 1;
    }
}

/* Values of an input in its declared order; the caller frees them. */
FUZZ_UNUSED static int32_t *fuzz_input(const Module *module, int number, uint64_t seed) {
    const Input *input = &module->inputs.data[number];
    int64_t count = axes_elements(module, input->axes, input->axis_count);
    int32_t *data = checked_alloc((size_t)count * sizeof *data);
    uint64_t random = seed + (uint64_t)number;
    for (int64_t i = 0; i < count; i++)
        data[i] = (int32_t)(fuzz_next(&random) % (uint64_t)input->below);
    return data;
}

#endif
