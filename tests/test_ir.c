/* tests/test_ir.c: the graph's constructor and its rules, the text form, the verifier. */
#include "tests/graph_fuzz.h"

#include <limits.h>
#include <setjmp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const Span none;

/* ---- the op table -------------------------------------------------------------------- */

static void op_table(void **state) {
    (void)state;
    for (int op = 0; op < OP_COUNT; op++) {
        assert_int_equal(op_by_name(op_info[op].name), op);
        assert_true(op_info[op].doc[0] != 0);
        assert_int_equal(op_is_map((Op)op), op_info[op].axis_rule == AXES_SAME);
    }
    assert_int_equal(op_by_name("transpose"), OP_COUNT);
    assert_int_equal(op_info[OP_CONST].attributes, USES_NUMBER);
    assert_int_equal(op_info[OP_RANDOM].attributes, USES_INTEGER | USES_TO);
    assert_int_equal(op_info[OP_ADD].attributes, 0);
    assert_int_equal(op_info[OP_SCATTER_ADD].attributes, USES_FROM | USES_TO);
    assert_int_equal(op_info[OP_STACK].arity, -1);
    Text text = {0};
    ops_print_markdown(&text);
    assert_non_null(strstr(text.data, "| `or` | 2 |"));
    assert_non_null(strstr(text.data, "`a \\|\\| b`")); /* a bar ends a cell */
    text_free(&text);
}

/* ---- a small module to build in ------------------------------------------------------ */

typedef struct Fixture {
    Module *module;
    Function *function;
    Builder b;
    AxisId A, B, C, D, E; /* sizes 2, 3, 2, 6, 4 */
    NodeId x, y, row, table, tokens, number, step;
    NodeId condition;
    ScopeId block, twin;
} Fixture;

static StateId add_weight(Module *module, const char *path, int count, const AxisId *axes) {
    State state = {.path = path,
                   .dtype = TYPE_F32,
                   .order_count = -1,
                   .weight = -1,
                   .offset = -1,
                   .in_count = count};
    memcpy(state.in, axes, (size_t)count * sizeof *axes);
    return module_state(module, state);
}

static Fixture make_fixture(void) {
    Fixture f = {.module = module_new()};
    Module *m = f.module;
    f.A = module_axis(m, "A", 2, none);
    f.B = module_axis(m, "B", 3, none);
    f.C = module_axis(m, "C", 2, none);
    f.D = module_axis(m, "D", 6, none);
    f.E = module_axis(m, "E", 4, none);
    Input input = {.name = "tokens", .axis_count = 1, .axes = {f.A}, .below = 4};
    array_push(&m->inputs, input);
    f.block = module_scope(m, 0, "layer[0]", "layer", none);
    f.twin = module_scope(m, 0, "layer[1]", "layer", none);
    f.function = module_function(m, "micro", 1, (const char *[]){"step"});
    f.b = builder(f.function);
    f.x = build_state(&f.b, add_weight(m, "x", 2, (AxisId[]){f.A, f.B}));
    f.y = build_state(&f.b, add_weight(m, "y", 2, (AxisId[]){f.B, f.A}));
    f.row = build_state(&f.b, add_weight(m, "row", 1, (AxisId[]){f.D}));
    f.table = build_state(&f.b, add_weight(m, "table", 2, (AxisId[]){f.E, f.B}));
    f.tokens = build_input(&f.b, 0);
    f.number = build_const(&f.b, TYPE_F32, 2);
    f.step = build_scalar(&f.b, 0);
    f.condition = build_2(&f.b, OP_LT, f.x, f.y);
    return f;
}

static Type type_at(const Fixture *f, NodeId id) {
    return node_at(f->function, id)->type;
}

/* ---- sharing ------------------------------------------------------------------------- */

static void equal_nodes_are_one(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Builder *b = &f.b;
    NodeId sum = build_2(b, OP_ADD, f.x, f.y);
    assert_int_equal(build_2(b, OP_ADD, f.x, f.y), sum);
    assert_int_not_equal(build_2(b, OP_ADD, f.y, f.x), sum);
    assert_int_not_equal(build_2(b, OP_SUB, f.x, f.y), sum);
    assert_int_equal(build_const(b, TYPE_F32, 2), f.number);
    assert_int_not_equal(build_const(b, TYPE_F64, 2), f.number);
    assert_int_not_equal(build_const(b, TYPE_F32, 0.), build_const(b, TYPE_F32, -0.));
    assert_int_equal(build_const(b, TYPE_F32, NAN), build_const(b, TYPE_F32, -NAN));
    AxisId ab[] = {f.A, f.B}, ba[] = {f.B, f.A};
    assert_int_equal(build_reduce(b, OP_SUM, f.x, ab, 2), build_reduce(b, OP_SUM, f.x, ba, 2));
    assert_int_not_equal(build_merge(b, f.x, ab, 2, f.D), build_merge(b, f.x, ba, 2, f.D));
    assert_int_equal(build_state(b, 0), f.x);
    module_free(f.module);
}

static void scopes_and_clones_part_nodes(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Builder *b = &f.b;
    NodeId sum = build_2(b, OP_ADD, f.x, f.y);
    b->scope = f.block;
    NodeId inner = build_2(b, OP_ADD, f.x, f.y);
    assert_int_not_equal(inner, sum);
    assert_int_equal(node_at(f.function, inner)->scope, f.block);
    b->clone = 1;
    NodeId clone = build_2(b, OP_ADD, f.x, f.y);
    assert_int_not_equal(clone, inner);
    assert_int_equal(build_2(b, OP_ADD, f.x, f.y), clone);
    b->clone = 0;
    assert_int_equal(build_2(b, OP_ADD, f.x, f.y), inner);
    /* Copies differ in an annotation. */
    assert_int_not_equal(build_1(b, OP_COPY, f.x), build_1(b, OP_COPY, f.x));
    module_free(f.module);
}

static void constants_belong_to_the_root(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Builder *b = &f.b;
    b->scope = f.block;
    b->clone = 3;
    NodeId position = build_cast(b, build_index(b, f.A), TYPE_F32);
    NodeId angle =
        build_1(b, OP_COS, build_2(b, OP_MUL, position, build_const(b, TYPE_F32, 3)));
    const Node *node = node_at(f.function, angle);
    assert_true(node->is_static && !node->on_host);
    assert_int_equal(node->scope, 0);
    assert_int_equal(node->clone, 0);
    NodeId decay = build_2(b, OP_POW, build_const(b, TYPE_F64, 0.9), f.step);
    assert_true(node_at(f.function, decay)->is_static && node_at(f.function, decay)->on_host);
    Attr attr = {.integer = 1, .to_count = 1, .to = {f.A}};
    NodeId random = build(b, OP_RANDOM, TYPE_F32, attr, NULL, 0);
    assert_false(node_at(f.function, random)->is_static);
    assert_int_equal(node_at(f.function, random)->scope, f.block);
    assert_false(node_at(f.function, f.x)->is_static);
    module_free(f.module);
}

/* Two instances of a block count their nodes alike, whatever was built in between. */
static void ordinals_are_the_same_in_twins(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Builder *b = &f.b;
    NodeId ids[2][3];
    for (int i = 0; i < 2; i++) {
        b->scope = i ? f.twin : f.block;
        ids[i][0] = build_2(b, OP_ADD, f.x, f.y);
        ids[i][1] = build_2(b, OP_MUL, ids[i][0], build_const(b, TYPE_F32, 7));
        ids[i][2] = build_1(b, OP_TANH, ids[i][1]);
    }
    for (int i = 0; i < 3; i++) {
        assert_int_equal(node_at(f.function, ids[0][i])->ordinal, i);
        assert_int_equal(node_at(f.function, ids[1][i])->ordinal, i);
    }
    module_free(f.module);
}

static void adjoints_have_their_primals_axes(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Builder *b = &f.b;
    b->adjoint_of = f.x;
    NodeId whole = build_2(b, OP_MUL, f.x, f.y);
    NodeId part = build_reduce(b, OP_SUM, whole, &f.A, 1);
    assert_int_equal(node_at(f.function, whole)->adjoint_of, f.x);
    assert_int_equal(node_at(f.function, part)->adjoint_of, -1);
    module_free(f.module);
}

/* ---- types --------------------------------------------------------------------------- */

static void assert_type(const Fixture *f, NodeId id, const char *expected) {
    assert_string_equal(type_text(f->module, type_at(f, id), f->module->arena), expected);
}

static void types_of_every_rule(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Builder *b = &f.b;
    AxisId ab[] = {f.A, f.B};
    assert_type(&f, f.y, "f32[A,B]");
    assert_type(&f, f.condition, "bool[A,B]");
    assert_type(&f, f.step, "f64");
    assert_type(&f, build_index(b, f.E), "i32[E]");
    assert_type(&f, build_cast(b, f.x, TYPE_BF16), "bf16[A,B]");
    assert_type(&f, build_2(b, OP_ADD, f.x, f.row), "f32[A,B,D]");
    assert_type(&f, build_3(b, OP_WHERE, f.condition, f.row, f.number), "f32[A,B,D]");
    assert_type(&f, build_rename(b, f.x, f.A, f.C), "f32[B,C]");
    assert_type(&f, build_split(b, f.row, f.D, ab, 2), "f32[A,B]");
    assert_type(&f, build_merge(b, f.x, ab, 2, f.D), "f32[D]");
    assert_type(&f, build_pick(b, f.x, f.B, 2), "f32[A]");
    assert_type(&f, build_stack(b, (NodeId[]){f.x, f.y}, 2, f.C), "f32[A,B,C]");
    assert_type(&f, build_reduce(b, OP_MAX, f.x, ab, 2), "f32");
    assert_type(&f, build_dot(b, f.x, f.table, &f.B, 1), "f32[A,E]");
    assert_type(&f, build_dot(b, f.x, f.y, &f.B, 1), "f32[A]");
    assert_type(&f, build_dot(b, f.x, f.row, NULL, 0), "f32[A,B,D]");
    NodeId half_x = build_cast(b, f.x, TYPE_BF16), half_y = build_cast(b, f.y, TYPE_BF16);
    assert_type(&f, build_dot(b, half_x, half_y, &f.B, 1), "bf16[A]");
    assert_type(&f, build_dot_as(b, TYPE_F32, half_x, half_y, &f.B, 1), "f32[A]");
    assert_type(&f, build_gather(b, f.table, f.tokens, f.E), "f32[A,B]");
    assert_type(&f, build_scatter_add(b, f.tokens, f.x, f.E, &f.A, 1), "f32[B,E]");
    assert_type(&f, build_scatter_add(b, f.tokens, f.x, f.E, NULL, 0), "f32[A,B,E]");
    module_free(f.module);
}

static void assert_refused(const Fixture *f, const char *expected, Op op, Attr attr,
                           const NodeId *inputs, int count) {
    Type type;
    const char *refusal = infer_type(f->function, op, TYPE_F32, &attr, inputs, count, &type);
    if (!refusal || !strstr(refusal, expected))
        fail_msg("%s: \"%s\" where \"%s\" was expected", op_info[op].name,
                 refusal ? refusal : "accepted", expected);
}

#define INPUTS(...) (NodeId[]){__VA_ARGS__}, COUNT_OF(((NodeId[]){__VA_ARGS__}))

static void ill_typed_maps_are_refused(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Attr no = {0};
    NodeId whole = build_const(&f.b, TYPE_I32, 1), wide = build_const(&f.b, TYPE_F64, 1);
    assert_refused(&f, "2 operands", OP_NEG, no, INPUTS(f.x, f.y));
    assert_refused(&f, "different axes: f32[A,B] and f32[D]", OP_ADD, no, INPUTS(f.x, f.row));
    assert_refused(&f, "different dtypes", OP_ADD, no, INPUTS(f.number, whole));
    assert_refused(&f, "different dtypes", OP_MUL, no, INPUTS(f.number, wide));
    assert_refused(&f, "may not be bool", OP_ADD, no, INPUTS(f.condition, f.condition));
    assert_refused(&f, "may not be f32", OP_AND, no, INPUTS(f.x, f.y));
    assert_refused(&f, "may not be i32", OP_EXP, no, INPUTS(whole));
    assert_refused(&f, "may not be f32", OP_POW, no, INPUTS(f.number, f.number));
    assert_refused(&f, "operand 1 may not be f32", OP_WHERE, no, INPUTS(f.x, f.x, f.y));
    module_free(f.module);
}

static void ill_formed_leaves_are_refused(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Attr twice = {.to_count = 2, .to = {f.A, f.A}}, far = {.integer = 99, .to_count = 1};
    assert_refused(&f, "no scalar 99", OP_SCALAR, far, NULL, 0);
    assert_refused(&f, "no input 99", OP_INPUT, far, NULL, 0);
    assert_refused(&f, "no state 99", OP_STATE, far, NULL, 0);
    assert_refused(&f, "the axes of f32[A,B]", OP_STATE, (Attr){0}, NULL, 0);
    assert_refused(&f, "the result is i32", OP_INDEX, (Attr){.to_count = 1}, NULL, 0);
    assert_refused(&f, "exactly one", OP_INDEX, (Attr){0}, NULL, 0);
    assert_refused(&f, "axis A twice", OP_RANDOM, twice, NULL, 0);
    assert_refused(&f, "the module lacks", OP_RANDOM, (Attr){.to_count = 1, .to = {77}}, NULL,
                   0);
    module_free(f.module);
}

static void ill_formed_moves_are_refused(void **state) {
    (void)state;
    Fixture f = make_fixture();
    AxisId A = f.A, B = f.B, C = f.C, D = f.D, E = f.E;
    assert_refused(&f, "has axis A already", OP_EXPAND, (Attr){.to_count = 1, .to = {A}},
                   INPUTS(f.x));
    assert_refused(&f, "at least one", OP_EXPAND, (Attr){0}, INPUTS(f.x));
    assert_refused(&f, "has no axis D", OP_SUM, (Attr){.from_count = 1, .from = {D}},
                   INPUTS(f.x));
    assert_refused(&f, "operand 2, f32[D], has no axis B", OP_DOT,
                   (Attr){.from_count = 1, .from = {B}}, INPUTS(f.x, f.row));
    assert_refused(&f, "2 elements and `to` has 4", OP_RENAME,
                   (Attr){.from_count = 1, .from = {A}, .to_count = 1, .to = {E}}, INPUTS(f.x));
    assert_refused(&f, "has axis B already", OP_RENAME,
                   (Attr){.from_count = 1, .from = {A}, .to_count = 1, .to = {B}}, INPUTS(f.x));
    assert_refused(&f, "6 elements and `to` has 4", OP_SPLIT,
                   (Attr){.from_count = 1, .from = {D}, .to_count = 2, .to = {A, C}},
                   INPUTS(f.row));
    assert_refused(&f, "needs exactly one", OP_MERGE,
                   (Attr){.from_count = 2, .from = {A, B}, .to_count = 2, .to = {A, B}},
                   INPUTS(f.x));
    assert_refused(&f, "position 3 is outside axis B of size 3", OP_PICK,
                   (Attr){.integer = 3, .from_count = 1, .from = {B}}, INPUTS(f.x));
    assert_refused(&f, "1 operands along axis C of size 2", OP_STACK,
                   (Attr){.to_count = 1, .to = {C}}, INPUTS(f.x));
    assert_refused(&f, "may not be f32", OP_GATHER, (Attr){.from_count = 1, .from = {E}},
                   INPUTS(f.table, f.x));
    assert_refused(&f, "lacks axes of the index", OP_SCATTER_ADD,
                   (Attr){.to_count = 1, .to = {E}}, INPUTS(f.tokens, f.row));
    module_free(f.module);
}

static void doubles_stay_on_the_host(void **state) {
    (void)state;
    Fixture f = make_fixture();
    assert_refused(&f, "f64 has no axes", OP_EXPAND, (Attr){.to_count = 1, .to = {f.A}},
                   INPUTS(f.step));
    NodeId sum = build_reduce(&f.b, OP_SUM, f.row, &f.D, 1);
    Type type;
    const char *refusal = infer_type(f.function, OP_CAST, TYPE_F64, &(Attr){0}, &sum, 1, &type);
    assert_non_null(strstr(refusal, "known on the host"));
    assert_null(infer_type(f.function, OP_CAST, TYPE_F64, &(Attr){0}, &f.number, 1, &type));
    module_free(f.module);
}

static void large_axes(void **state) {
    (void)state;
    Fixture f = make_fixture();
    AxisId huge = module_axis(f.module, "huge", INT64_C(1) << 59, none);
    assert_int_equal(axes_elements(f.module, (AxisId[]){huge, f.A}, 2), INT64_C(1) << 60);
    assert_int_equal(axes_elements(f.module, (AxisId[]){huge, f.B}, 2), INT64_MAX);
    assert_int_equal(axes_elements(f.module, (AxisId[]){huge, huge, huge}, 3), INT64_MAX);
    assert_refused(&f, "more than 2^60 elements", OP_EXPAND,
                   (Attr){.to_count = 1, .to = {huge}}, INPUTS(f.x));
    module_free(f.module);
}

static void axis_names_are_unique(void **state) {
    (void)state;
    Module *module = module_new();
    AxisId a = module_axis(module, "R", 8, none), b = module_axis(module, "R", 16, none);
    assert_int_equal(module_axis(module, "R", 8, none), a);
    assert_int_equal(module_axis(module, "R", 16, none), b);
    assert_string_equal(module->axes.data[b].name, "R.16");
    AxisId taken = module_axis(module, "R.32", 5, none), c = module_axis(module, "R", 32, none);
    assert_int_not_equal(taken, c);
    assert_int_equal(module->axes.data[c].size, 32);
    module_free(module);
}

static void sets_of_axes(void **state) {
    (void)state;
    Type a = type_of(TYPE_F32, (AxisId[]){9, 2, 5}, 3),
         c = type_of(TYPE_I32, (AxisId[]){7, 2}, 2);
    Type both = type_union(a, c);
    assert_int_equal(both.rank, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(both.axes[i], ((AxisId[]){2, 5, 7, 9})[i]);
    assert_int_equal(both.dtype, TYPE_F32);
    assert_true(type_contains(both, a) && type_contains(both, c) && !type_contains(a, c));
    assert_true(type_same_axes(type_without(type_with(c, 5), 5), c));
    assert_false(type_equal(a, type_of(TYPE_BF16, a.axes, 3)));
    AxisId many[MAX_AXES], others[MAX_AXES];
    for (int i = 0; i < MAX_AXES; i++) {
        many[i] = (AxisId)(2 * i);
        others[i] = (AxisId)(2 * i + 1);
    }
    Type left = type_of(TYPE_F32, many, MAX_AXES), right = type_of(TYPE_F32, others, MAX_AXES);
    assert_int_equal(type_union(left, right).rank, 2 * MAX_AXES);
}

/* ---- our own bugs -------------------------------------------------------------------- */

static int exit_of_child(void (*act)(void)) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        fclose(stderr);
        act();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void build_an_ill_typed_node(void) {
    Fixture f = make_fixture();
    build_map(&f.b, OP_ADD, INPUTS(f.x, f.row));
}

static void build_from_nowhere(void) {
    Fixture f = make_fixture();
    build_1(&f.b, OP_NEG, 1000);
}

static void declare_a_state_twice(void) {
    Fixture f = make_fixture();
    add_weight(f.module, "x", 1, &f.A);
}

static void ill_formed_requests_are_our_bugs(void **state) {
    (void)state;
    assert_int_equal(exit_of_child(build_an_ill_typed_node), 3);
    assert_int_equal(exit_of_child(build_from_nowhere), 3);
    assert_int_equal(exit_of_child(declare_a_state_twice), 3);
}

/* ---- rebuilding ---------------------------------------------------------------------- */

static void rebuilding_drops_the_dead(void **state) {
    (void)state;
    Fixture f = make_fixture();
    Builder *b = &f.b;
    b->scope = f.block;
    NodeId dead = build_2(b, OP_SUB, f.x, f.y);
    NodeId kept = build_2(b, OP_ADD, f.x, f.y);
    f.function->nodes.data[kept].name = "mid";
    b->adjoint_of = kept;
    NodeId adjoint = build_1(b, OP_NEG, kept);
    Write write = {0, adjoint, true, false};
    array_push(&f.function->writes, write);
    Rebuild r = rebuild_begin(f.module, f.function);
    for (NodeId id = 0; id < f.function->nodes.count; id++)
        rebuild_copy(&r, id);
    assert_true(r.map[dead] >= 0);
    Builder fresh = builder(r.fresh);
    fresh.scope = f.block;
    NodeId added = build_1(&fresh, OP_TANH, r.map[adjoint]);
    assert_int_equal(node_at(r.fresh, added)->ordinal, 3);
    Function *function = rebuild_finish(&r);
    assert_ptr_equal(module_find_function(f.module, "micro"), function);
    assert_int_equal(function->nodes.count, 4); /* x, y, sum, neg */
    const Node *last = node_at(function, 3);
    assert_int_equal(last->op, OP_NEG);
    assert_int_equal(last->ordinal, 2);
    assert_int_equal(last->adjoint_of, 2);
    assert_string_equal(node_at(function, 2)->name, "mid");
    assert_int_equal(function->writes.data[0].value, 3);
    /* sharing still works after nodes moved */
    Builder again = builder(function);
    again.scope = f.block;
    assert_int_equal(build_1(&again, OP_NEG, 2), 3);
    assert_null(ir_verify(f.module, STAGE_GRAPH));
    module_free(f.module);
}

static void print_to(const Module *module, Stage stage, Text *text) {
    ir_print(module, stage, text);
}

/* Copying every node of a graph without dead nodes changes nothing. */
static void rebuilding_is_the_identity(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        Module *module = fuzz_module(seed, 40);
        for (int round = 0; round < 2; round++) {
            Function *function = module_find_function(module, "micro");
            Rebuild r = rebuild_begin(module, function);
            for (NodeId id = 0; id < function->nodes.count; id++)
                rebuild_copy(&r, id);
            Text before = {0}, after = {0};
            print_to(module, STAGE_GRAPH, &before);
            rebuild_finish(&r);
            print_to(module, STAGE_GRAPH, &after);
            if (round) /* the first round removed what was dead */
                assert_string_equal(before.data, after.data);
            text_free(&before);
            text_free(&after);
        }
        assert_null(ir_verify(module, STAGE_GRAPH));
        module_free(module);
    }
}

/* A copy prints as the original does, finds its nodes, and is changed apart from it. */
static void copies_are_equal_and_apart(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        Module *module = fuzz_module(seed, 40);
        Module *copy = module_copy(module);
        Text before = {0}, copied = {0}, after = {0};
        print_to(module, STAGE_GRAPH, &before);
        print_to(copy, STAGE_GRAPH, &copied);
        assert_string_equal(before.data, copied.data);
        assert_null(ir_verify(copy, STAGE_GRAPH));
        const State *first = &module->states.data[0];
        assert_int_equal(module_find_state(copy, first->path, first->role, first->number), 0);
        const Axis *axis = &module->axes.data[0];
        assert_int_equal(module_axis(copy, axis->name, axis->size, none), 0);
        Function *function = module_find_function(copy, "micro");
        assert_ptr_equal(function->module, copy);
        int64_t nodes = function->nodes.count;
        for (NodeId id = 0; id < nodes; id++) {
            const Node *node = node_at(function, id);
            Builder b = builder(function);
            b.scope = node->scope;
            b.clone = node->clone;
            if (node->op != OP_COPY)
                assert_int_equal(build(&b, node->op, node->type.dtype, node->attr, node->inputs,
                                       node->input_count),
                                 id);
        }
        Rebuild r = rebuild_begin(copy, function);
        for (NodeId id = 0; id < nodes; id++)
            rebuild_copy(&r, id);
        function = rebuild_finish(&r);
        for (int64_t id = 0; id < function->nodes.count; id++)
            if (function->nodes.data[id].input_count)
                function->nodes.data[id].inputs[0] = 0;
        module_axis(copy, "fresh", 5, none);
        copy->states.data[0].offset = 64;
        module_free(copy);
        print_to(module, STAGE_GRAPH, &after);
        assert_string_equal(before.data, after.data);
        module_free(module);
        text_free(&before);
        text_free(&copied);
        text_free(&after);
    }
}

/* 126 layers are some 50,000 nodes: building must not be quadratic. */
static void large_functions(void **state) {
    (void)state;
    Fixture f = make_fixture();
    NodeId x = f.x;
    for (int i = 0; i < 100000; i++) {
        f.b.scope = i % 3;
        x = build_2(&f.b, i % 2 ? OP_ADD : OP_MUL, x, f.y);
    }
    Write write = {0, x, false, false};
    array_push(&f.function->writes, write);
    assert_int_equal(f.function->nodes.count, x + 1);
    assert_null(ir_verify(f.module, STAGE_GRAPH));
    assert_true(module_bytes(f.module) < 100 << 20);
    module_free(f.module);
}

/* ---- the text form ------------------------------------------------------------------- */

static char *read_golden(const char *path, size_t *length) {
    char *text = read_file(path, 1 << 20, length);
    if (!text)
        fail_msg("%s cannot be read; tests run from the repository's root", path);
    return text;
}

/* Parses; where that fails, `*message` is what was printed (to be freed), else NULL. */
static Module *parse_text(const char *text, size_t length, Stage *stage, char **message) {
    static Source source; /* spans point to it */
    source = (Source){"t.ir", text, length, NULL};
    Diagnostics *diagnostics = diagnostics_new();
    Module *module = ir_parse(&source, diagnostics, stage);
    size_t size;
    FILE *stream = open_memstream(message, &size);
    assert_int_equal(module == NULL, diagnostics_errors(diagnostics) > 0);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    diagnostics_free(diagnostics);
    return module;
}

static void assert_round_trip(const char *text, size_t length) {
    Stage stage;
    char *message;
    Module *module = parse_text(text, length, &stage, &message);
    if (!module)
        fail_msg("%s", message);
    Text printed = {0};
    ir_print(module, stage, &printed);
    assert_string_equal(printed.data, text);
    text_free(&printed);
    free(message);
    module_free(module);
}

static void goldens_print_as_they_are(void **state) {
    (void)state;
    const char *const paths[] = {"tests/golden/ir/every_op.ir", "tests/golden/ir/placed.ir"};
    for (int i = 0; i < COUNT_OF(paths); i++) {
        size_t length;
        char *text = read_golden(paths[i], &length);
        assert_round_trip(text, length);
        if (i == 0)
            for (int op = 0; op < OP_COUNT; op++) {
                char use[40];
                snprintf(use, sizeof use, "= %s ", op_info[op].name);
                if (!strstr(text, use))
                    fail_msg("%s lacks the op %s", paths[i], op_info[op].name);
            }
        free(text);
    }
}

static void fuzzed_modules_print_as_they_are(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        Module *module = fuzz_module(seed, 30);
        Text text = {0};
        ir_print(module, STAGE_GRAPH, &text);
        assert_round_trip(text.data, text.length);
        text_free(&text);
        module_free(module);
    }
}

static void hand_written_text(void **state) {
    (void)state;
    const char *text = "# a comment\n\n  module   stage graph # another\r\n"
                       "axis \"A\" 2\naxis B 3\n"
                       "state weight w f32 in(B) out(A) zeros\n"
                       "function f( ) {\n\n"
                       "%0=state 0 to( B , A ):f32[B,A]\n"
                       "\t%1 = sum %0 from(B,A) : f32 scope 0 ordinal 1\n}";
    Stage stage;
    char *message;
    Module *module = parse_text(text, strlen(text), &stage, &message);
    assert_non_null(module);
    Text printed = {0};
    ir_print(module, stage, &printed);
    assert_string_equal(printed.data, "module stage graph\naxis A 2\naxis B 3\n"
                                      "state weight w f32 in(B) out(A) zeros\n"
                                      "function f() {\n"
                                      "  %0 = state 0 to(A,B) : f32[A,B]  # weight w\n"
                                      "  %1 = sum %0 from(A,B) : f32\n}\n");
    int line, column;
    span_position(module->functions.data[0]->nodes.data[1].span, &line, &column);
    assert_int_equal(line, 10);
    assert_int_equal(column, 2);
    text_free(&printed);
    free(message);
    module_free(module);
}

static void numbers_keep_their_bits(void **state) {
    (void)state;
    uint64_t random = 3;
    for (int i = 0; i < 2000; i++) {
        uint64_t bits = fuzz_next(&random);
        double number;
        memcpy(&number, &bits, sizeof number);
        Module *module = module_new();
        Function *function = module_function(module, "f", 0, NULL);
        Builder b = builder(function);
        build_const(&b, TYPE_F64, number);
        Text text = {0};
        ir_print(module, STAGE_GRAPH, &text);
        Stage stage;
        char *message;
        Module *again = parse_text(text.data, text.length, &stage, &message);
        assert_non_null(again);
        double got = again->functions.data[0]->nodes.data[0].attr.number;
        assert_true(memcmp(&got, &number, sizeof got) == 0 || (isnan(got) && isnan(number)));
        free(message);
        text_free(&text);
        module_free(module);
        module_free(again);
    }
}

#define HEAD                                                                                   \
    "module stage graph\naxis A 2\naxis B 3\n"                                                 \
    "state weight w f32 in(A) out(B) zeros\nfunction f(step) {\n"                              \
    "%0 = state 0 to(A,B) : f32[A,B]\n"

static void refusals_have_a_place(void **state) {
    (void)state;
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"", "t.ir:1:1: error: expected `module`"},
        {"module stage tiles", "t.ir:1:14: error: unknown stage `tiles`"},
        {"module stage graph axis", "t.ir:1:20: error: expected the end of the line"},
        {"module stage graph\naxis A 0", "2:8: error: the size of an axis must be in [1, "},
        {"module stage graph\naxis A 99999999999999999999",
         "must be in [1, 1152921504606846976]"},
        {"module stage graph\naxis A 2\naxis A 3", "3:6: error: axis A is here twice"},
        {"module stage graph\nscope 2 in 0 \"x\"", "must be in [0, 1]"},
        {"module stage graph\nscope 1 in 1 \"x\"", "must be in [0, 0]"},
        {"module stage graph\nscope 1 in 0 \"x", "does not end in its line"},
        {"module stage graph\nscope 1 in 0 \"\\q\"", "a string knows"},
        {"module stage graph\naxis B 2\ninput t i32 below 2 next 0", "an input is i32"},
        {"module stage graph\naxis A 2\nstate weight w f32 in(A) out(A) zeros",
         "axis A is here"},
        {"module stage graph\nstate wieght w f32 in() out() zeros", "did you mean `weight`?"},
        {"module stage graph\nstate gradient w f32 in() out() zeros", "has no weight"},
        {"module stage graph\naxis A 2\nstate moment w f32 in() out(A) zeros of 6 flat offset "
         "0",
         "has no weight"},
        {"function f() {\n", "expected `module`"},
        {"module stage graph\nfunction f() {\n%0 = const 1 : f32\n",
         "4:1: error: expected `}`\n    4 | \n      | ^\nt.ir:2:10: note: to close this "
         "function"},
        {HEAD "}\nfunction f() {\n}", "8:10: error: function f is here twice"},
        {HEAD "%2 = neg %0 : f32[A,B]\n}", "7:1: error: the next node is %1"},
        {HEAD "%1 = neg %1 : f32[A,B]\n}", "7:10: error: node %1 is not defined above"},
        {HEAD "%1 = negg %0 : f32[A,B]\n}", "did you mean `neg`?"},
        {HEAD "%1 = neg %0 : f32[A]\n}", "7:15: error: the type of this node is f32[A,B]"},
        {HEAD "%1 = neg %0 : f32[A,Z]\n}", "7:21: error: unknown axis `Z`"},
        {HEAD "%1 = add %0 : f32[A,B]\n}", "7:1: error: add: 1 operands"},
        {HEAD "%1 = sum %0 from(A,A) : f32[B]\n}", "axis A is here twice"},
        {HEAD "%1 = const 1e : f32\n}", "expected a number"},
        {HEAD "%1 = const 0x10 : f32\n}", "expected a number"},
        {HEAD "%1 = const 2 : bool\n}", "const: 2 is no bool"},
        {HEAD "%1 = scalar 1 : f64\n}", "scalar: the function has no scalar 1"},
        {HEAD "%1 = neg %0 : f32[A,B] scope 4\n}", "must be in [0, 0]"},
        {HEAD "%1 = neg %0 : f32[A,B] group 0\n}", "its group is out of range"},
        {HEAD "%1 = neg %0 : f32[A,B] order(A,B)\n}", "a memory order before the layout pass"},
        {HEAD "write weight v = %0\n}", "7:7: error: the module has no such state"},
        {HEAD "write weight w = %9\n}", "not defined above"},
        {HEAD "%1 = sum %0 from(A) : f32[B]\nwrite weight w = %1\n}", "not the state's type"},
        {HEAD "write weight w = %0\nwrite weight w += %0\n}", "written with `=` and again"},
        {HEAD "group 0 flat rows() inner()\n}", "groups before the fuse pass"},
        {HEAD "value 0 \"x\" %9\n}", "not defined above"},
        {HEAD "value 4 \"x\" %0\n}", "must be in [0, 0]"},
        {HEAD "%1 = neg %0 : f32[A,B]\n%2 = abs %0 : f32[A,B] clone 1 of %1\n}",
         "it is no clone of the node it computes again"},
        {HEAD "groop\n}", "expected a node, `value`, `write`, `group` or `}`"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Stage stage;
        char *message;
        Module *module = parse_text(cases[i].text, strlen(cases[i].text), &stage, &message);
        if (module || !strstr(message, cases[i].expected) || strncmp(message, "t.ir:", 5) != 0)
            fail_msg("%s\n--- gave\n%s--- and not\n%s", cases[i].text, message,
                     cases[i].expected);
        free(message);
    }
}

/* One mutation: a byte changed, a piece cut out, doubled or moved. */
static void mutate(Text *text, uint64_t *random) {
    static const char bytes[] = "%()[]{}:,=+-\"\\ \n#.0123456789abcdefinorstx\0\xFF";
    size_t at = fuzz_next(random) % text->length;
    size_t length = 1 + fuzz_next(random) % 12;
    if (at + length > text->length)
        length = text->length - at;
    Text result = {0};
    text_append(&result, text->data, at);
    switch (fuzz_next(random) % 4) {
    case 0: {
        char byte = bytes[fuzz_next(random) % (sizeof bytes - 1)];
        if (text->data[at] >= '0' && text->data[at] <= '9') /* likelier to be accepted */
            byte = (char)('0' + fuzz_next(random) % 10);
        text_append(&result, &byte, 1);
        text_append(&result, text->data + at + 1, text->length - at - 1);
        break;
    }
    case 1:
        text_append(&result, text->data + at + length, text->length - at - length);
        break;
    case 2:
        text_append(&result, text->data + at, length); /* fall through */
    default: {
        size_t from = fuzz_next(random) % text->length;
        text_append(&result, text->data + from,
                    from + length > text->length ? text->length - from : length);
        text_append(&result, text->data + at, text->length - at);
    }
    }
    text_free(text);
    *text = result;
}

/* No mutated text crashes the parser; what it accepts is a module that verifies and prints to a
 * text that it accepts too. */
static void mutated_text_is_refused_or_read(void **state) {
    (void)state;
    const char *const paths[] = {"tests/golden/ir/every_op.ir", "tests/golden/ir/placed.ir"};
    uint64_t random = 1;
    int accepted = 0;
    for (int round = 0; round < 6000; round++) {
        size_t length;
        char *golden = read_golden(paths[round % 2], &length);
        Text text = {0};
        text_append(&text, golden, length);
        free(golden);
        for (int i = round % 4 / 3; i >= 0; i--)
            mutate(&text, &random);
        Stage stage;
        char *message;
        Module *module = parse_text(text.data, text.length, &stage, &message);
        if (module) {
            accepted++;
            assert_null(ir_verify(module, stage));
            Text printed = {0};
            ir_print(module, stage, &printed);
            assert_round_trip(printed.data, printed.length);
            text_free(&printed);
        } else {
            int line, column;
            assert_int_equal(sscanf(message, "t.ir:%d:%d: error:", &line, &column), 2);
        }
        free(message);
        text_free(&text);
        module_free(module);
    }
    assert_in_range(accepted, 100, 3000);
}

static void graphviz(void **state) {
    (void)state;
    size_t length;
    char *text = read_golden("tests/golden/ir/every_op.ir", &length), *message;
    Stage stage;
    Module *module = parse_text(text, length, &stage, &message);
    Text dot = {0};
    ir_print_dot(module, module->functions.data[0], &dot);
    assert_non_null(strstr(dot.data, "n48 [label=\"%48 dot %44 %4 from(D) (q \\\"so\\\")"));
    assert_non_null(strstr(dot.data, "n44 -> n48;"));
    assert_non_null(strstr(dot.data, "label=\"layer[0].attn\""));
    text_free(&dot);
    free(text);
    free(message);
    module_free(module);
}

/* ---- the verifier -------------------------------------------------------------------- */

static Node *node_of(Module *module, NodeId id) {
    return &module->functions.data[0]->nodes.data[id];
}

/* Faults planted in placed.ir: %4 cast, %5 expand, %7 mul in group 0; %8 dot in 1; %9 sum in 2;
 * %10 dot in 3, an adjoint of %1. */
static void type_fault(Module *m) {
    node_of(m, 7)->type.rank = 1;
}
static void dtype_fault(Module *m) {
    node_of(m, 4)->type.dtype = TYPE_I32;
}
static void order_of_ids_fault(Module *m) {
    node_of(m, 7)->inputs[0] = 8;
}
static void negative_input_fault(Module *m) {
    node_of(m, 7)->inputs[0] = -1;
}
static void attr_fault(Module *m) {
    node_of(m, 8)->attr.from[0] = 2;
}
static void attr_count_fault(Module *m) {
    node_of(m, 8)->attr.from_count = 99;
}
static void op_fault(Module *m) {
    node_of(m, 7)->op = OP_COUNT;
}
static void scope_fault(Module *m) {
    node_of(m, 7)->scope = 7;
}
static void static_fault(Module *m) {
    node_of(m, 7)->is_static = true;
}
static void static_scope_fault(Module *m) {
    node_of(m, 2)->scope = 1;
}
static void adjoint_fault(Module *m) {
    node_of(m, 10)->adjoint_of = 0;
}
static void adjoint_range_fault(Module *m) {
    node_of(m, 10)->adjoint_of = 11;
}
static void node_order_fault(Module *m) {
    node_of(m, 7)->placement.order[0] = 2;
}
static void no_order_fault(Module *m) {
    node_of(m, 4)->placement.order_count = -1;
}
static void no_group_fault(Module *m) {
    node_of(m, 10)->placement.group = -1;
}
static void group_range_fault(Module *m) {
    node_of(m, 7)->placement.group = 4;
}
static void not_stored_fault(Module *m) {
    node_of(m, 4)->placement.group = 3;
}
static void cycle_fault(Module *m) {
    node_of(m, 4)->placement.group = 3;
    node_of(m, 4)->placement.stored = true;
    node_of(m, 4)->placement.offset = 0;
}
static void late_fault(Module *m) {
    node_of(m, 8)->placement.group = 2;
    node_of(m, 9)->placement.group = 1;
}
static void empty_group_fault(Module *m) {
    Group group = {.kind = GROUP_FLAT};
    array_push(&m->functions.data[0]->groups, group);
}
static void group_axes_fault(Module *m) {
    m->functions.data[0]->groups.data[0].rows[1] = 0;
}
static void no_offset_fault(Module *m) {
    node_of(m, 7)->placement.offset = -1;
}
static void arena_fault(Module *m) {
    m->functions.data[0]->arena_bytes = 131;
}
static void no_arena_fault(Module *m) {
    m->functions.data[0]->arena_bytes = -1;
}
static void write_type_fault(Module *m) {
    m->functions.data[0]->writes.data[0].value = 8;
}
static void write_state_fault(Module *m) {
    m->functions.data[0]->writes.data[0].state = 4;
}
static void state_axes_fault(Module *m) {
    m->states.data[0].out[0] = m->states.data[0].in[0];
}
static void state_order_fault(Module *m) {
    m->states.data[0].order[0] = 0;
}
static void state_no_order_fault(Module *m) {
    m->states.data[3].order_count = -1;
}
static void companion_order_fault(Module *m) {
    m->states.data[1].order[0] = 1;
    m->states.data[1].order[1] = 2;
}
static void companion_offset_fault(Module *m) {
    m->states.data[1].offset = 16;
}
static void companion_weight_fault(Module *m) {
    m->states.data[1].weight = 3;
}
static void flat_fault(Module *m) {
    m->states.data[2].offset = -1;
}
static void axis_fault(Module *m) {
    m->axes.data[1].size = 0;
}
static void input_fault(Module *m) {
    m->inputs.data[0].axes[0] = 55;
}
static void name_fault(Module *m) {
    module_function(m, "micro", 0, NULL)->arena_bytes = 0;
}

static void planted_faults_are_found(void **state) {
    (void)state;
    static const struct {
        void (*plant)(Module *);
        const char *expected;
    } faults[] = {
        {type_fault, "micro, node %7 (mul): its type is f32[B,D], not f32[B]"},
        {dtype_fault, "node %5 (expand): its type is i32[B,D]"},
        {order_of_ids_fault, "node %7 (mul): an operand does not come before it"},
        {negative_input_fault, "node %7 (mul): an operand does not come before it"},
        {attr_fault, "node %8 (dot): dot: operand 1, f32[B,D], has no axis R"},
        {attr_count_fault, "more than 12 axes"},
        {op_fault, "node %7: unknown op"},
        {scope_fault, "its scope is out of range"},
        {static_fault, "is_static does not say"},
        {static_scope_fault, "node %2 (index): a static value belongs to the root"},
        {adjoint_fault, "node %10 (dot): an adjoint has not exactly the axes"},
        {adjoint_range_fault, "does not come before it"},
        {node_order_fault, "node %7 (mul): its memory order is not one of its axes"},
        {no_order_fault, "node %4 (cast): no memory order"},
        {no_group_fault, "node %10 (dot): no group computes it"},
        {group_range_fault, "its group is out of range"},
        {not_stored_fault, "node %7 (mul): reads what another group computes"},
        {cycle_fault, "groups wait for each other in a cycle"},
        {late_fault, "a group runs before one that it reads from"},
        {empty_group_fault, "group 4 computes nothing"},
        {group_axes_fault, "group 0: its axes are not lists of distinct axes"},
        {no_offset_fault, "stored without an offset"},
        {arena_fault, "node %9 (sum): its memory ends past the arena"},
        {no_arena_fault, "its memory ends past the arena"},
        {write_type_fault, "the value has not the state's type"},
        {write_state_fault, "a state or value out of range"},
        {state_axes_fault, "has an axis twice"},
        {state_order_fault, "weight ffn.A: its memory order is not one of its axes"},
        {state_no_order_fault, "metric loss_sum has no memory order"},
        {companion_order_fault, "another memory order than its weight"},
        {companion_offset_fault, "another offset than its weight"},
        {companion_weight_fault, "belongs to a state that is no weight"},
        {flat_fault, "a flat state has one axis and an offset"},
        {axis_fault, "axis D: its size, 0, is out of range"},
        {input_fault, "input tokens: its axes"},
        {name_fault, "two functions are called micro"},
    };
    size_t length;
    char *text = read_golden("tests/golden/ir/placed.ir", &length);
    for (int i = 0; i < COUNT_OF(faults); i++) {
        Stage stage;
        char *message;
        Module *module = parse_text(text, length, &stage, &message);
        assert_non_null(module);
        assert_null(ir_verify(module, stage));
        faults[i].plant(module);
        const char *found = ir_verify(module, stage);
        if (!found || !strstr(found, faults[i].expected))
            fail_msg("fault %d: \"%s\" where \"%s\" was expected", i,
                     found ? found : "no fault", faults[i].expected);
        free(message);
        module_free(module);
    }
    free(text);
}

/* Each stage asks for what its pass made, and earlier ones for its absence. */
static void stages(void **state) {
    (void)state;
    size_t length;
    char *text = read_golden("tests/golden/ir/placed.ir", &length), *message;
    Stage stage;
    Module *module = parse_text(text, length, &stage, &message);
    assert_int_equal(stage, STAGE_MEMORY);
    Function *function = module->functions.data[0];
    assert_non_null(strstr(ir_verify(module, STAGE_SCHEDULE), "an offset before the memory"));
    for (NodeId id = 0; id < function->nodes.count; id++)
        function->nodes.data[id].placement.offset = -1;
    function->arena_bytes = -1;
    assert_null(ir_verify(module, STAGE_SCHEDULE));
    assert_null(ir_verify(module, STAGE_FUSE));
    assert_non_null(strstr(ir_verify(module, STAGE_LAYOUT), "before the fuse pass"));
    for (NodeId id = 0; id < function->nodes.count; id++) {
        function->nodes.data[id].placement.group = -1;
        function->nodes.data[id].placement.stored = false;
    }
    function->groups.count = 0;
    function->writes.data[1].direct = false;
    assert_null(ir_verify(module, STAGE_LAYOUT));
    assert_non_null(strstr(ir_verify(module, STAGE_GRAPH), "before the layout pass"));
    for (int i = 0; i <= STAGE_MEMORY; i++)
        assert_int_equal(stage_by_name(stage_name((Stage)i)), i);
    free(text);
    free(message);
    module_free(module);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(op_table),
        cmocka_unit_test(equal_nodes_are_one),
        cmocka_unit_test(scopes_and_clones_part_nodes),
        cmocka_unit_test(constants_belong_to_the_root),
        cmocka_unit_test(ordinals_are_the_same_in_twins),
        cmocka_unit_test(adjoints_have_their_primals_axes),
        cmocka_unit_test(types_of_every_rule),
        cmocka_unit_test(ill_typed_maps_are_refused),
        cmocka_unit_test(ill_formed_leaves_are_refused),
        cmocka_unit_test(ill_formed_moves_are_refused),
        cmocka_unit_test(doubles_stay_on_the_host),
        cmocka_unit_test(large_axes),
        cmocka_unit_test(axis_names_are_unique),
        cmocka_unit_test(sets_of_axes),
        cmocka_unit_test(ill_formed_requests_are_our_bugs),
        cmocka_unit_test(rebuilding_drops_the_dead),
        cmocka_unit_test(rebuilding_is_the_identity),
        cmocka_unit_test(copies_are_equal_and_apart),
        cmocka_unit_test(large_functions),
        cmocka_unit_test(goldens_print_as_they_are),
        cmocka_unit_test(fuzzed_modules_print_as_they_are),
        cmocka_unit_test(hand_written_text),
        cmocka_unit_test(numbers_keep_their_bits),
        cmocka_unit_test(refusals_have_a_place),
        cmocka_unit_test(mutated_text_is_refused_or_read),
        cmocka_unit_test(graphviz),
        cmocka_unit_test(planted_faults_are_found),
        cmocka_unit_test(stages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
