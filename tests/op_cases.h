/* tests/op_cases.h: modules that have every op of the table in small cases, and reductions of
 * every shape: each case is a function of its own that writes one state. */
#ifndef COLAC_TESTS_OP_CASES_H
#define COLAC_TESTS_OP_CASES_H

#include "tests/kernel_machine.h"

/* ---- every op ------------------------------------------------------------------------ */

/* A module in the making: each case is a function of its own that writes one state. */
typedef struct Cases {
    Module *module;
    AxisId A, B, C, D, P, Q, M, N, V, K; /* sizes 1, 3, 17, 17, 2, 3, 6, 3, 17, 1000 */
    Function *function;
    Builder b;
    int count;
    bool seen[OP_COUNT];
} Cases;

static NodeId weight_of(Cases *c, const AxisId *axes, int count, int number) {
    char path[32];
    int length = snprintf(path, sizeof path, "w%d", number);
    for (int i = 0; i < count; i++)
        length += snprintf(path + length, sizeof path - (size_t)length, "_%d", axes[i]);
    StateId found = module_find_state(c->module, path, ROLE_WEIGHT, 0);
    if (found < 0) {
        State state = {.path = path,
                       .role = ROLE_WEIGHT,
                       .dtype = TYPE_F32,
                       .out_count = count,
                       .order_count = -1,
                       .weight = -1,
                       .offset = -1};
        memcpy(state.out, axes, (size_t)count * sizeof *axes);
        found = module_state(c->module, state);
    }
    return build_state(&c->b, found);
}

static void begin_case(Cases *c) {
    char name[32];
    snprintf(name, sizeof name, "case_%d", c->count);
    c->function = module_function(c->module, name, 3, scalar_names);
    c->b = builder(c->function);
}

/* Writes the value, as f32, to a state of its own; every other case adds to it. */
static void end_case(Cases *c, NodeId value) {
    Type type = node_at(c->function, value)->type;
    for (NodeId id = 0; id < c->function->nodes.count; id++)
        c->seen[node_at(c->function, id)->op] = true;
    char path[32];
    snprintf(path, sizeof path, "out%d", c->count++);
    State state = {.path = path,
                   .role = ROLE_TABLE,
                   .dtype = TYPE_F32,
                   .out_count = type.rank,
                   .order_count = -1,
                   .weight = -1,
                   .offset = -1};
    memcpy(state.out, type.axes, sizeof type.axes);
    Write write = {.state = module_state(c->module, state),
                   .value = build_cast(&c->b, value, TYPE_F32),
                   .add = c->count % 2};
    array_push(&c->function->writes, write);
}

static NodeId build_op(Cases *c, Op op, DataType dtype, const NodeId *inputs, int count) {
    return build(&c->b, op, dtype, (Attr){0}, inputs, count);
}

static NodeId truth(Cases *c, NodeId a, NodeId b) {
    return build_op(c, OP_LT, TYPE_BOOL, (NodeId[]){a, b}, 2);
}

/* Where op's operands are bools: comparisons; i32: casts; f32: weights. */
static void map_case(Cases *c, Op op, DataType dtype, const AxisId *axes, int count) {
    begin_case(c);
    NodeId inputs[3];
    int arity = op_info[op].arity;
    for (int i = 0; i < arity; i++) {
        NodeId weight = weight_of(c, axes, count, i);
        bool logical =
            op == OP_NOT || op == OP_AND || op == OP_OR || (op == OP_WHERE && i == 0);
        if (logical)
            weight = truth(c, weight, weight_of(c, axes, count, i + 3));
        else if (dtype == TYPE_I32)
            weight = build_cast(&c->b,
                                build_2(&c->b, OP_MUL, weight, build_const(&c->b, TYPE_F32, 9)),
                                TYPE_I32);
        else if (dtype == TYPE_BF16)
            weight = build_cast(&c->b, weight, TYPE_BF16);
        inputs[i] = weight;
    }
    bool is_bool =
        op_info[op].dtype_rule == DTYPE_BOOL || op == OP_NOT || op == OP_AND || op == OP_OR;
    end_case(c, build_op(c, op, is_bool ? TYPE_BOOL : dtype, inputs, arity));
}

static bool op_takes_integers(Op op) {
    switch (op) {
    case OP_NEG:
    case OP_ABS:
    case OP_SIGN:
    case OP_ADD:
    case OP_SUB:
    case OP_MUL:
    case OP_DIV:
    case OP_MOD:
    case OP_MAXIMUM:
    case OP_MINIMUM:
    case OP_LT:
    case OP_LE:
    case OP_EQ:
    case OP_WHERE:
        return true;
    default:
        return false;
    }
}

static void map_cases(Cases *c) {
    const AxisId shapes[][3] = {{0},          {c->A},             {c->B}, {c->C},
                                {c->B, c->C}, {c->A, c->C, c->B}, {c->K}};
    const int ranks[] = {0, 1, 1, 1, 2, 3, 1};
    for (int op = 0; op < OP_COUNT; op++) {
        if (!op_is_map((Op)op) || op == OP_CAST || op == OP_POW || op == OP_COPY)
            continue;
        for (int s = 0; s < COUNT_OF(ranks); s++)
            map_case(c, (Op)op, TYPE_F32, shapes[s], ranks[s]);
        if (op_takes_integers((Op)op))
            map_case(c, (Op)op, TYPE_I32, shapes[4], ranks[4]);
    }
    for (int s = 0; s < COUNT_OF(ranks); s++) {
        map_case(c, OP_ADD, TYPE_BF16, shapes[s], ranks[s]);
        map_case(c, OP_SIGMOID, TYPE_BF16, shapes[s], ranks[s]);
    }
    map_case(c, OP_MUL, TYPE_BF16, shapes[3], ranks[3]);
}

static void cast_cases(Cases *c) {
    const AxisId axes[] = {c->B, c->C};
    static const DataType types[] = {TYPE_BOOL, TYPE_I32, TYPE_BF16, TYPE_F32};
    for (int from = 0; from < COUNT_OF(types); from++)
        for (int to = 0; to < COUNT_OF(types); to++) {
            begin_case(c);
            NodeId nine = build_const(&c->b, TYPE_F32, 9);
            NodeId value = build_2(&c->b, OP_MUL, weight_of(c, axes, 2, 0), nine);
            if (from == 0)
                value = truth(c, value, weight_of(c, axes, 2, 1));
            else
                value = build_cast(&c->b, value, types[from]);
            end_case(c, build_cast(&c->b, value, types[to]));
        }
    begin_case(c); /* runtime scalars: 0.9 to the step */
    NodeId rate =
        build_2(&c->b, OP_POW, build_const(&c->b, TYPE_F64, 0.9), build_scalar(&c->b, 0));
    end_case(
        c, build_2(&c->b, OP_MUL, weight_of(c, axes, 2, 0), build_cast(&c->b, rate, TYPE_F32)));
}

static void reduction_cases(Cases *c) {
    const AxisId axes[] = {c->A, c->B, c->C, c->D};
    for (int op = OP_SUM; op <= OP_MAX; op++)
        for (int mask = 1; mask < 16; mask++) {
            AxisId summed[4];
            int count = 0;
            for (int i = 0; i < 4; i++)
                if (mask >> i & 1)
                    summed[count++] = axes[i];
            begin_case(c);
            end_case(c, build_reduce(&c->b, (Op)op, weight_of(c, axes, 4, 0), summed, count));
            begin_case(c); /* integers, and a map below */
            NodeId whole = build_cast(&c->b,
                                      build_2(&c->b, OP_MUL, weight_of(c, axes, 4, 0),
                                              build_const(&c->b, TYPE_F32, 100)),
                                      TYPE_I32);
            end_case(c, build_reduce(&c->b, (Op)op, whole, summed, count));
        }
}

/* Long ones, along memory and across it, of a value that is narrower in memory too. */
static void long_reduction_cases(Cases *c) {
    const AxisId rows[] = {c->B, c->K}, columns[] = {c->K, c->B};
    for (int op = OP_SUM; op <= OP_MAX; op++)
        for (int across = 0; across < 2; across++)
            for (int narrow = 0; narrow < 2; narrow++) {
                begin_case(c);
                NodeId value = weight_of(c, across ? columns : rows, 2, 0);
                if (narrow)
                    value = build_cast(&c->b, value, TYPE_BF16);
                value = build_cast(&c->b, build_1(&c->b, OP_EXP, value), TYPE_F32);
                end_case(c, build_reduce(&c->b, (Op)op, value, &c->K, 1));
            }
}

/* Written through a map that wants another order: a copy, strided. */
static void move_cases(Cases *c) {
    const AxisId m[] = {c->B, c->M}, pq[] = {c->B, c->P, c->Q};
    begin_case(c);
    end_case(c, build_rename(&c->b, weight_of(c, m, 2, 0), c->B, c->N));
    begin_case(c);
    const AxisId parts[] = {c->P, c->Q};
    end_case(c,
             build_split(&c->b, build_1(&c->b, OP_NEG, weight_of(c, m, 2, 0)), c->M, parts, 2));
    begin_case(c);
    end_case(
        c, build_merge(&c->b, build_1(&c->b, OP_NEG, weight_of(c, pq, 3, 0)), parts, 2, c->M));
    begin_case(c);
    const AxisId swapped[] = {c->Q, c->P};
    end_case(c, build_merge(&c->b, build_1(&c->b, OP_NEG, weight_of(c, pq, 3, 0)), swapped, 2,
                            c->M));
    for (int64_t place = 0; place < 2; place++) {
        begin_case(c);
        end_case(c, build_pick(&c->b, weight_of(c, pq, 3, 0), c->P, place));
    }
    begin_case(c);
    NodeId whole[] = {weight_of(c, m, 2, 0), build_1(&c->b, OP_EXP, weight_of(c, m, 2, 1))};
    end_case(c, build_stack(&c->b, whole, 2, c->P));
    begin_case(c); /* a stack that is read at every position */
    NodeId three[] = {weight_of(c, m, 2, 0), weight_of(c, m, 2, 1), weight_of(c, m, 2, 2)};
    NodeId stacked = build_stack(&c->b, three, 3, c->Q);
    const AxisId both[] = {c->M, c->Q};
    end_case(c, build_reduce(&c->b, OP_SUM, build_1(&c->b, OP_EXP, stacked), both, 2));
    begin_case(c);
    Type wide = type_of(TYPE_F32, (AxisId[]){c->B, c->C, c->M}, 3);
    end_case(c, build_expand(&c->b, weight_of(c, m, 2, 0), wide));
    begin_case(c);
    end_case(c, build_expand(&c->b, build_const(&c->b, TYPE_F32, 0.75), wide));
    begin_case(c); /* across: one operand along each axis */
    end_case(c, build_2(&c->b, OP_ADD, weight_of(c, &c->C, 1, 0), weight_of(c, &c->D, 1, 0)));
}

static void leaf_cases(Cases *c) {
    const AxisId shape[] = {c->B, c->C, c->D};
    begin_case(c);
    NodeId random =
        build(&c->b, OP_RANDOM, TYPE_F32,
              (Attr){.integer = 5, .to_count = 3, .to = {c->B, c->C, c->D}}, NULL, 0);
    end_case(c, build_2(&c->b, OP_ADD, random, weight_of(c, shape, 3, 0)));
    begin_case(c);
    random = build(&c->b, OP_RANDOM, TYPE_F32,
                   (Attr){.integer = 6, .to_count = 1, .to = {c->D}}, NULL, 0);
    end_case(c, random);
    begin_case(c);
    NodeId below =
        build_op(c, OP_LE, TYPE_BOOL,
                 (NodeId[]){build_expand(&c->b, build_index(&c->b, c->C),
                                         type_of(TYPE_I32, (AxisId[]){c->C, c->D}, 2)),
                            build_expand(&c->b, build_index(&c->b, c->D),
                                         type_of(TYPE_I32, (AxisId[]){c->C, c->D}, 2))},
                 2);
    end_case(c, below);
    begin_case(c);
    end_case(c, build_input(&c->b, 0));
}

static void row_cases(Cases *c) {
    const AxisId table[] = {c->V, c->D}, value[] = {c->B, c->C, c->D}, wide[] = {c->B, c->V};
    begin_case(c);
    end_case(c, build_gather(&c->b, weight_of(c, table, 2, 0), build_input(&c->b, 0), c->V));
    begin_case(c); /* an axis that table and index share */
    end_case(c, build_gather(&c->b, weight_of(c, wide, 2, 0), build_input(&c->b, 0), c->V));
    begin_case(c); /* a computed index */
    NodeId computed =
        build_2(&c->b, OP_MOD,
                build_2(&c->b, OP_ADD, build_input(&c->b, 0), build_const(&c->b, TYPE_I32, 5)),
                build_const(&c->b, TYPE_I32, 17));
    end_case(c, build_gather(&c->b, weight_of(c, table, 2, 0), computed, c->V));
    const AxisId summed[] = {c->B, c->C};
    for (int count = 0; count <= 2; count++)
        for (int twice = 0; twice < 2; twice++) {
            begin_case(c);
            NodeId scattered = build_scatter_add(
                &c->b, build_input(&c->b, 0), weight_of(c, value, 3, 0), c->V, summed, count);
            end_case(c, twice ? build_1(&c->b, OP_EXP, scattered) : scattered);
        }
    begin_case(c); /* no kept axis */
    end_case(c, build_scatter_add(&c->b, build_input(&c->b, 0), weight_of(c, value, 2, 0), c->V,
                                  summed, 2));
}

static void dot_cases(Cases *c) {
    const AxisId left[] = {c->B, c->C, c->D}, right[] = {c->M, c->D};
    begin_case(c);
    end_case(c,
             build_dot(&c->b, weight_of(c, left, 3, 0), weight_of(c, right, 2, 0), &c->D, 1));
    begin_case(c);
    end_case(c, build_dot(&c->b, weight_of(c, left, 3, 0), weight_of(c, left, 3, 1),
                          (AxisId[]){c->B, c->C}, 2));
}

FUZZ_UNUSED static Cases make_cases(void) {
    Cases c = {.module = module_new()};
    Span none = {0};
    struct {
        AxisId *axis;
        const char *name;
        int64_t size;
    } axes[] = {{&c.A, "A", 1},  {&c.B, "B", 3}, {&c.C, "C", 17},
                {&c.D, "D", 17}, {&c.P, "P", 2}, {&c.Q, "Q", 3},
                {&c.M, "M", 6},  {&c.N, "N", 3}, {&c.V, "V", 17},
                {&c.K, "K", 1000}};
    for (int i = 0; i < COUNT_OF(axes); i++)
        *axes[i].axis = module_axis(c.module, axes[i].name, axes[i].size, none);
    Input input = {.name = "tokens", .axis_count = 2, .axes = {c.B, c.C}, .below = 17};
    array_push(&c.module->inputs, input);
    map_cases(&c);
    cast_cases(&c);
    reduction_cases(&c);
    long_reduction_cases(&c);
    move_cases(&c);
    leaf_cases(&c);
    row_cases(&c);
    dot_cases(&c);
    return c;
}

/* ---- the order of reductions --------------------------------------------------------- */

typedef struct OrderCase {
    enum { ROWS_SUM, ROWS_SOFTMAX, COLUMNS_SUM, SCATTER } kind;
    int64_t rows, columns;
} OrderCase;
FUZZ_UNUSED static const OrderCase order_cases[] = {
    {ROWS_SUM, 1, 1},          {ROWS_SUM, 1, 129},         {ROWS_SUM, 5, 300},
    {ROWS_SUM, 200, 513},      {ROWS_SUM, 1, 100000},      {ROWS_SUM, 3, 40001},
    {ROWS_SUM, 70, 40000},     {ROWS_SOFTMAX, 300, 257},   {ROWS_SOFTMAX, 2, 70000},
    {ROWS_SOFTMAX, 65, 33000}, {ROWS_SOFTMAX, 100, 17000}, {COLUMNS_SUM, 5000, 40},
    {COLUMNS_SUM, 65, 66000},  {COLUMNS_SUM, 64, 33},      {COLUMNS_SUM, 2, 7},
    {COLUMNS_SUM, 129, 2100},  {SCATTER, 3000, 300},       {SCATTER, 3000, 1}};
enum { SCATTER_ROWS = 50 };

FUZZ_UNUSED static NodeId build_softmax(Builder *b, NodeId x, AxisId axis) {
    Type type = node_at(b->function, x)->type;
    NodeId largest = build_reduce(b, OP_MAX, x, &axis, 1);
    NodeId weight = build_1(b, OP_EXP, build_2(b, OP_SUB, x, build_expand(b, largest, type)));
    return build_2(b, OP_DIV, weight,
                   build_expand(b, build_reduce(b, OP_SUM, weight, &axis, 1), type));
}

static StateId add_table(Module *module, const char *prefix, int number, Type type) {
    State state = {.path = arena_printf(module->arena, "%s%d", prefix, number),
                   .role = ROLE_TABLE,
                   .dtype = TYPE_F32,
                   .out_count = type.rank,
                   .order_count = -1,
                   .weight = -1,
                   .offset = -1};
    memcpy(state.out, type.axes, sizeof type.axes);
    return module_state(module, state);
}

/* Case i reads state in_i [rows, columns] and writes state out_i. */
FUZZ_UNUSED static void add_order_case(Module *module, int number) {
    const OrderCase *oc = &order_cases[number];
    char name[2][32];
    snprintf(name[0], sizeof name[0], "R%d", number);
    snprintf(name[1], sizeof name[1], "N%d", number);
    Span none = {0};
    AxisId r = module_axis(module, name[0], oc->rows, none);
    AxisId n = module_axis(module, name[1], oc->columns, none);
    Function *function = module_function(module, arena_printf(module->arena, "case_%d", number),
                                         3, scalar_names);
    Builder b = builder(function);
    NodeId x = build_state(
        &b, add_table(module, "in", number, type_of(TYPE_F32, (AxisId[]){r, n}, 2)));
    NodeId value = -1;
    if (oc->kind == ROWS_SUM) {
        value = build_reduce(&b, OP_SUM, x, &n, 1);
    } else if (oc->kind == ROWS_SOFTMAX) {
        value = build_softmax(&b, x, n);
    } else if (oc->kind == COLUMNS_SUM) {
        value = build_reduce(&b, OP_SUM, x, &r, 1);
    } else {
        NodeId index =
            build_2(&b, OP_MOD, build_index(&b, r), build_const(&b, TYPE_I32, SCATTER_ROWS));
        AxisId to = module_axis(module, "V", SCATTER_ROWS, none);
        value = build_scatter_add(&b, index, x, to, &r, 1);
    }
    Write write = {.state = add_table(module, "out", number, node_at(function, value)->type),
                   .value = value};
    array_push(&function->writes, write);
}

#endif
