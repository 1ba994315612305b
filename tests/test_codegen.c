/* Generated kernels: every op of the table against the interpreter, with guarded buffers and
 * poisoned results; reductions bit for bit against the stated order; the same bits for every
 * number of threads, fused or not; what the compiler vectorizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <omp.h>
#include <unistd.h>

#include "runtime/runtime.h"
#include "tests/graph_fuzz.h"

/* The functions of kernels, which tests/test_prelude.c holds to the C library. */
#include "codegen/prelude.h"

static float prelude_exp(float x) {
    return f32_exp(x);
}

static const double scalars[] = {3, 7, 11}; /* step, seed, sample0 */
static const char *const scalar_names[] = {"step", "seed", "sample0"};

/* ---- running programs ---------------------------------------------------------------- */

/* Every space of a program, in plain memory. */
typedef struct Machine {
    const Module *module;
    ProgramSet *set;
    JitResult *kernels;
    PreparedProduct **products;
    char **slabs; /* [set->slabs.count] */
    const int32_t **inputs;
    char *arena;
} Machine;

enum { GUARD = 512 };
static const uint32_t poison = 0x7FA07FA0; /* a signalling NaN */

static void fill_poison(char *memory, int64_t bytes) {
    for (int64_t i = 0; i + 4 <= bytes; i += 4)
        memcpy(memory + i, &poison, 4);
}

static bool is_poison(const char *memory, int64_t bytes) {
    for (int64_t i = 0; i + 4 <= bytes; i += 4)
        if (memcmp(memory + i, &poison, 4) != 0)
            return false;
    return true;
}

static int64_t element_in_memory(const Module *module, StateId state, int64_t element) {
    Type type = state_type(&module->states.data[state]);
    View view = state_view(module, state);
    int64_t at = 0;
    for (int i = type.rank - 1; i >= 0; i--) {
        int64_t size = module->axes.data[type.axes[i]].size;
        at += element % size * view_stride(&view, type.axes[i]);
        element /= size;
    }
    return at;
}

static float *state_memory(const Machine *m, StateId id) {
    const State *state = &m->module->states.data[id];
    int slab = slab_index(&m->set->slabs, state->role, state->number);
    return (float *)(void *)m->slabs[slab] + (state->offset - m->set->slabs.data[slab].begin);
}

/* Values of inputs: the interpreter's and the program's; freed at the end of all tests. */
static ARRAY(int32_t *) inputs_made;

static const int32_t *shared_input(const Module *module, int number) {
    array_push(&inputs_made, fuzz_input(module, number, 5));
    return inputs_made.data[inputs_made.count - 1];
}

static void free_inputs(void) {
    for (int64_t i = 0; i < inputs_made.count; i++)
        free(inputs_made.data[i]);
    array_free(&inputs_made);
}

static Machine machine_new(ProgramSet *set, Interp *interp) {
    Machine m = {.module = set->module, .set = set};
    m.slabs = checked_alloc((size_t)set->slabs.count * sizeof(char *));
    for (int i = 0; i < set->slabs.count; i++)
        m.slabs[i] = checked_alloc((size_t)slab_bytes(&set->slabs.data[i]));
    m.inputs = checked_alloc((size_t)m.module->inputs.count * sizeof *m.inputs);
    for (int i = 0; i < m.module->inputs.count; i++)
        m.inputs[i] = shared_input(m.module, i);
    m.arena = checked_alloc((size_t)set->arena_bytes);
    m.products = checked_alloc((size_t)set->product_count * sizeof(void *));
    for (int i = 0; i < set->product_count; i++)
        m.products[i] = product_prepare(&set->products[i]);
    for (StateId id = 0; id < m.module->states.count; id++) {
        int64_t count = type_elements(m.module, state_type(&m.module->states.data[id]));
        for (int64_t i = 0; i < count; i++)
            state_memory(&m, id)[element_in_memory(m.module, id, i)] =
                (float)interp_state(interp, id)[i];
    }
    return m;
}

static void machine_free(Machine *m) {
    for (int i = 0; i < m->set->slabs.count; i++)
        free(m->slabs[i]);
    free(m->slabs);
    for (int i = 0; i < m->set->product_count; i++)
        product_free(m->products[i]);
    free(m->products);
    free(m->inputs);
    free(m->arena);
}

static char *operand_memory(const Machine *m, const Operand *operand) {
    if (operand->space == SPACE_ARENA)
        return m->arena + operand->offset;
    if (operand->space == SPACE_INPUT) {
        union {
            const int32_t *given;
            char *bytes;
        } input = {m->inputs[operand->number]};
        return input.bytes + operand->offset;
    }
    return m->slabs[slab_index(&m->set->slabs, (Role)operand->space, operand->number)] +
           operand->offset;
}

static void call_kernel(const Machine *m, const Program *program, const Step *step,
                        void *const *buffers) {
    double arguments[32];
    assert_true(step->scalar_count <= COUNT_OF(arguments));
    for (int i = 0; i < step->scalar_count; i++)
        arguments[i] = program_scalar(program, step->scalars[i], scalars);
    m->kernels->functions[step->index](buffers, arguments);
}

/* Runs a kernel on copies of its operands with guards on both sides: what it reads outside is
 * NaN, what it writes outside is seen, what it says that it does not write stays as it is. */
static void launch_guarded(const Machine *m, const Program *program, const Step *step) {
    const Kernel *kernel = m->set->kernels[step->index];
    char *copies[64];
    void *buffers[64];
    assert_true(step->operand_count <= COUNT_OF(copies));
    assert_int_equal(step->operand_count, kernel->argument_count);
    for (int i = 0; i < step->operand_count; i++) {
        int64_t bytes = step->operands[i].bytes, whole = (bytes + 3) / 4 * 4;
        copies[i] = checked_alloc((size_t)(whole + 2 * GUARD));
        fill_poison(copies[i], whole + 2 * GUARD);
        memcpy(copies[i] + GUARD, operand_memory(m, &step->operands[i]), (size_t)bytes);
        buffers[i] = copies[i] + GUARD;
    }
    call_kernel(m, program, step, buffers);
    bool written[64] = {0};
    for (int64_t b = 0; b < kernel->buffers.count; b++)
        if (kernel->buffers.data[b].argument >= 0)
            written[kernel->buffers.data[b].argument] = kernel->buffers.data[b].writes;
    for (int i = 0; i < step->operand_count; i++) {
        int64_t bytes = step->operands[i].bytes, whole = (bytes + 3) / 4 * 4;
        assert_true(is_poison(copies[i], GUARD));
        assert_true(is_poison(copies[i] + GUARD + whole, GUARD));
        if (!written[i])
            assert_memory_equal(operand_memory(m, &step->operands[i]), buffers[i],
                                (size_t)bytes);
    }
    for (int i = 0; i < step->operand_count; i++) {
        if (written[i])
            memcpy(operand_memory(m, &step->operands[i]), buffers[i],
                   (size_t)step->operands[i].bytes);
        free(copies[i]);
    }
}

static void run_product(const Machine *m, const Step *step) {
    const PreparedProduct *product = m->products[step->index];
    int64_t scratch = product_scratch_bytes(product) * omp_get_max_threads();
    char *memory = aligned_alloc(64, (size_t)(scratch + 64) / 64 * 64);
    assert_non_null(memory);
    void *operands[3];
    for (int i = 0; i < 3; i++)
        operands[i] = operand_memory(m, &step->operands[i]);
    product_run(product, operands[0], operands[1], operands[2], memory);
    free(memory);
}

static void run_step(const Machine *m, const Program *program, const Step *step, bool guarded) {
    void *buffers[64];
    switch (step->kind) {
    case STEP_LAUNCH:
        if (guarded) {
            launch_guarded(m, program, step);
            return;
        }
        for (int i = 0; i < step->operand_count; i++)
            buffers[i] = operand_memory(m, &step->operands[i]);
        call_kernel(m, program, step, buffers);
        return;
    case STEP_PRODUCT:
        run_product(m, step);
        return;
    case STEP_COPY:
        memcpy(operand_memory(m, &step->operands[1]), operand_memory(m, &step->operands[0]),
               (size_t)step->operands[0].bytes);
        return;
    case STEP_ZERO:
        memset(operand_memory(m, &step->operands[0]), 0, (size_t)step->operands[0].bytes);
        return;
    }
}

static void run_program(const Machine *m, const Program *program, bool guarded) {
    fill_poison(m->arena, m->set->arena_bytes);
    for (int64_t i = 0; i < program->step_count; i++)
        run_step(m, program, &program->steps[i], guarded);
}

/* ---- compiling
 * ----------------------------------------------------------------------------- */

/* Offsets in slabs, as `update` would give them. */
static void place_states(Module *module) {
    int64_t ends[ROLE_METRIC + 1] = {0};
    for (StateId id = 0; id < module->states.count; id++) {
        State *state = &module->states.data[id];
        state->offset = ends[state->role];
        ends[state->role] += (type_elements(module, state_type(state)) + 31) / 16 * 16;
    }
}

/* What is measured without programs is what they measure. */
static void expect_same_outline(const ProgramSet *set) {
    ProgramSet *outline = outline_programs(set->module);
    MemoryTable expected = program_memory(set), got = program_memory(outline);
    assert_memory_equal(&got, &expected, sizeof got);
    assert_int_equal(outline->product_count, set->product_count);
    for (int i = 0; i < set->product_count; i++)
        assert_memory_equal(&outline->products[i], &set->products[i], sizeof(Product));
    program_set_free(outline);
}

static ProgramSet *emit_module(Module *module, bool no_fuse, bool no_reuse) {
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module,
                           .diagnostics = diagnostics,
                           .no_fuse = no_fuse,
                           .no_reuse = no_reuse,
                           .for_training = true};
    static bool (*const passes[])(PassContext *) = {pass_layout, pass_fuse, pass_schedule,
                                                    pass_memory};
    place_states(module);
    for (int i = 0; i < COUNT_OF(passes); i++)
        assert_true(passes[i](&context));
    const char *violation = ir_verify(module, STAGE_MEMORY);
    if (violation)
        print_error("%s\n", violation);
    assert_null(violation);
    diagnostics_free(diagnostics);
    ProgramSet *set = emit_programs(module);
    expect_same_outline(set);
    return set;
}

static JitResult *compile_set(const ProgramSet *set) {
    enum { PARTS = 4 };
    Text sources[PARTS] = {0};
    Diagnostics *diagnostics = diagnostics_new();
    emit_c(set, PARTS, sources);
    JitResult *result =
        jit_compile(sources, PARTS, set->kernel_names, set->kernel_count, diagnostics);
    diagnostics_print(diagnostics, stderr);
    assert_non_null(result);
    for (int i = 0; i < PARTS; i++)
        text_free(&sources[i]);
    diagnostics_free(diagnostics);
    return result;
}

/* ---- every op ------------------------------------------------------------------------ */

/* A module in the making: each case is a function of its own that writes one state. */
typedef struct Cases {
    Module *module;
    AxisId A, B, C, D, P, Q, M, N, V; /* sizes 1, 3, 17, 17, 2, 3, 6, 3, 17 */
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
    const AxisId shapes[][3] = {{0}, {c->A}, {c->B}, {c->C}, {c->B, c->C}, {c->A, c->C, c->B}};
    const int ranks[] = {0, 1, 1, 1, 2, 3};
    for (int op = 0; op < OP_COUNT; op++) {
        if (!op_is_map((Op)op) || op == OP_CAST || op == OP_POW || op == OP_COPY)
            continue;
        for (int s = 0; s < COUNT_OF(ranks); s++)
            map_case(c, (Op)op, TYPE_F32, shapes[s], ranks[s]);
        if (op_takes_integers((Op)op))
            map_case(c, (Op)op, TYPE_I32, shapes[4], ranks[4]);
    }
    map_case(c, OP_ADD, TYPE_BF16, shapes[4], ranks[4]);
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

static Cases make_cases(void) {
    Cases c = {.module = module_new()};
    Span none = {0};
    struct {
        AxisId *axis;
        const char *name;
        int64_t size;
    } axes[] = {{&c.A, "A", 1},  {&c.B, "B", 3}, {&c.C, "C", 17},
                {&c.D, "D", 17}, {&c.P, "P", 2}, {&c.Q, "Q", 3},
                {&c.M, "M", 6},  {&c.N, "N", 3}, {&c.V, "V", 17}};
    for (int i = 0; i < COUNT_OF(axes); i++)
        *axes[i].axis = module_axis(c.module, axes[i].name, axes[i].size, none);
    Input input = {.name = "tokens", .axis_count = 2, .axes = {c.B, c.C}, .below = 17};
    array_push(&c.module->inputs, input);
    map_cases(&c);
    cast_cases(&c);
    reduction_cases(&c);
    move_cases(&c);
    leaf_cases(&c);
    row_cases(&c);
    dot_cases(&c);
    return c;
}

static Interp *filled_interpreter(const Module *module) {
    Interp *interp = interp_new(module);
    interp_set_round(interp, true);
    for (int i = 0; i < module->inputs.count; i++)
        interp_set_input(interp, i, shared_input(module, i));
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        uint64_t site = hash_bytes(state->path, strlen(state->path), 0);
        int64_t count = type_elements(module, state_type(state));
        for (int64_t i = 0; i < count; i++)
            interp_state(interp, id)[i] = 2 * random_uniform(1, 0, site, 0, (uint64_t)i) - 1;
    }
    return interp;
}

static bool close_enough(double got, double expected, double tolerance) {
    return got == expected || (isnan(got) && isnan(expected)) ||
           fabs(got - expected) <= tolerance * (fabs(expected) + 1);
}

static void compare_states(const Machine *m, Interp *expected, const char *what,
                           double tolerance) {
    for (StateId id = 0; id < m->module->states.count; id++) {
        const State *state = &m->module->states.data[id];
        int64_t count = type_elements(m->module, state_type(state));
        for (int64_t i = 0; i < count; i++) {
            double x = interp_state(expected, id)[i];
            double y = (double)state_memory(m, id)[element_in_memory(m->module, id, i)];
            if (!close_enough(y, x, tolerance))
                fail_msg("%s: %s[%lld] is %.9g, not %.9g", what, state->path, (long long)i, y,
                         x);
        }
    }
}

static void every_op(void **state) {
    (void)state;
    for (int no_fuse = 0; no_fuse < 2; no_fuse++) {
        Cases cases = make_cases();
        cases.seen[OP_COPY] = true; /* the layout pass makes them */
        for (int op = 0; op < OP_COUNT; op++)
            if (!cases.seen[op])
                fail_msg("no case has the op %s", op_info[op].name);
        ProgramSet *set = emit_module(cases.module, no_fuse, no_fuse);
        JitResult *kernels = compile_set(set);
        Interp *interp = filled_interpreter(cases.module);
        Machine machine = machine_new(set, interp);
        machine.kernels = kernels;
        for (int i = 0; i < set->program_count; i++) {
            const Program *program = &set->programs[i];
            interp_run(interp, program->function, scalars, false);
            run_program(&machine, program, true);
            compare_states(&machine, interp, program->name, 2e-6);
        }
        machine_free(&machine);
        interp_free(interp);
        jit_free(kernels);
        program_set_free(set);
        module_free(cases.module);
    }
}

/* ---- the order of reductions
 * ---------------------------------------------------------------- */

/* The fixed order as codegen.h states it, written down plainly. */
static float reduce_in_order(bool sum, const float *terms, int64_t n) {
    float lanes[128];
    if (n > 32768) {
        int64_t blocks = (n + 32767) / 32768;
        float *partials = checked_alloc((size_t)blocks * sizeof *partials);
        for (int64_t i = 0; i < blocks; i++)
            partials[i] = reduce_in_order(sum, terms + 32768 * i,
                                          n - 32768 * i < 32768 ? n - 32768 * i : 32768);
        float result = reduce_in_order(sum, partials, blocks);
        free(partials);
        return result;
    }
    for (int j = 0; j < 128; j++)
        lanes[j] = sum ? 0 : -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        float *lane = &lanes[i % 128];
        *lane = sum ? *lane + terms[i] : *lane > terms[i] ? *lane : terms[i];
    }
    for (int w = 64; w >= 1; w /= 2)
        for (int j = 0; j < w; j++)
            lanes[j] = sum                       ? lanes[j] + lanes[j + w]
                       : lanes[j] > lanes[j + w] ? lanes[j]
                                                 : lanes[j + w];
    return lanes[0];
}

/* A column: chunks of at least 64 rows, at most 64 of them, each summed in order. */
static float sum_column(const float *terms, int64_t rows, int64_t stride) {
    int64_t chunk = (rows + 63) / 64 < 64 ? 64 : (rows + 63) / 64;
    float total = 0;
    for (int64_t begin = 0; begin < rows; begin += chunk) {
        float sum = 0;
        for (int64_t i = begin; i < rows && i < begin + chunk; i++)
            sum = sum + terms[i * stride];
        total = total + sum;
    }
    return total;
}

typedef struct OrderCase {
    enum { ROWS_SUM, ROWS_SOFTMAX, COLUMNS_SUM, SCATTER } kind;
    int64_t rows, columns;
} OrderCase;
static const OrderCase order_cases[] = {
    {ROWS_SUM, 1, 1},          {ROWS_SUM, 1, 129},         {ROWS_SUM, 5, 300},
    {ROWS_SUM, 200, 513},      {ROWS_SUM, 1, 100000},      {ROWS_SUM, 3, 40001},
    {ROWS_SUM, 70, 40000},     {ROWS_SOFTMAX, 300, 257},   {ROWS_SOFTMAX, 2, 70000},
    {ROWS_SOFTMAX, 65, 33000}, {ROWS_SOFTMAX, 100, 17000}, {COLUMNS_SUM, 5000, 40},
    {COLUMNS_SUM, 65, 66000},  {COLUMNS_SUM, 64, 33},      {COLUMNS_SUM, 2, 7},
    {COLUMNS_SUM, 129, 2100},  {SCATTER, 3000, 300},       {SCATTER, 3000, 1}};
enum { SCATTER_ROWS = 50 };

static NodeId build_softmax(Builder *b, NodeId x, AxisId axis) {
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
static void add_order_case(Module *module, int number) {
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

static void expect_case(const OrderCase *oc, const float *in, float *out) {
    int64_t rows = oc->rows, n = oc->columns;
    for (int64_t i = 0; oc->kind == ROWS_SUM && i < rows; i++)
        out[i] = reduce_in_order(true, in + i * n, n);
    for (int64_t i = 0; oc->kind == ROWS_SOFTMAX && i < rows; i++) {
        float largest = reduce_in_order(false, in + i * n, n);
        for (int64_t j = 0; j < n; j++)
            out[i * n + j] = prelude_exp(in[i * n + j] - largest);
        float total = reduce_in_order(true, out + i * n, n);
        for (int64_t j = 0; j < n; j++)
            out[i * n + j] = out[i * n + j] / total;
    }
    for (int64_t j = 0; oc->kind == COLUMNS_SUM && j < n; j++)
        out[j] = sum_column(in + j, rows, n);
    for (int64_t i = 0; oc->kind == SCATTER && i < rows; i++)
        for (int64_t j = 0; j < n; j++)
            out[i % SCATTER_ROWS * n + j] += in[i * n + j];
}

static void reductions_in_the_fixed_order(void **state) {
    (void)state;
    static const int threads[] = {1, 2, 3, 8};
    Module *module = module_new();
    module_axis(module, "V", SCATTER_ROWS, (Span){0}); /* first: results are [V,N] */
    for (int i = 0; i < COUNT_OF(order_cases); i++)
        add_order_case(module, i);
    ProgramSet *set = emit_module(module, false, false);
    Interp *interp = filled_interpreter(module);
    Machine machine = machine_new(set, interp);
    machine.kernels = compile_set(set);
    for (int i = 0; i < COUNT_OF(order_cases); i++) {
        char path[32];
        snprintf(path, sizeof path, "in%d", i);
        const float *in =
            state_memory(&machine, module_find_state(module, path, ROLE_TABLE, 0));
        snprintf(path, sizeof path, "out%d", i);
        StateId id = module_find_state(module, path, ROLE_TABLE, 0);
        size_t bytes = (size_t)type_elements(module, state_type(&module->states.data[id])) * 4;
        float *expected = checked_alloc(bytes);
        expect_case(&order_cases[i], in, expected);
        for (int t = 0; t < COUNT_OF(threads); t++) {
            omp_set_num_threads(threads[t]);
            fill_poison((char *)(void *)state_memory(&machine, id), (int64_t)bytes);
            run_program(&machine, &set->programs[i], true);
            if (memcmp(state_memory(&machine, id), expected, bytes) != 0)
                fail_msg("case %d with %d threads: another order", i, threads[t]);
        }
        free(expected);
    }
    jit_free(machine.kernels);
    machine_free(&machine);
    interp_free(interp);
    program_set_free(set);
    module_free(module);
}

/* ---- random graphs ------------------------------------------------------------------- */

static Module *fuzzed_with_gradients(uint64_t seed) {
    Module *module = fuzz_module(seed, 40);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics, .for_training = true};
    assert_true(pass_autodiff(&context));
    diagnostics_free(diagnostics);
    return module;
}

/* NaNs are alike: which operand's payload a sum of two has is the compiler's choice. */
static bool same_bits(const float *x, const float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&x[i], &y[i], 4) != 0 && !(isnan(x[i]) && isnan(y[i])))
            return false;
    return true;
}

static void compare_bits(const Machine *m, const Machine *other, const char *what) {
    for (StateId id = 0; id < m->module->states.count; id++) {
        const State *state = &m->module->states.data[id];
        int64_t count = type_elements(m->module, state_type(state));
        if (!same_bits(state_memory(m, id), state_memory(other, id), count))
            fail_msg("%s: other bits in %s %s", what, role_name(state->role), state->path);
    }
}

/* Modes: fused, fused with three threads and guards, not fused, without reuse of memory. */
static void run_fuzzed(uint64_t seed) {
    char what[64];
    Machine first = {0};
    ProgramSet *sets[4];
    Module *modules[4];
    for (int mode = 0; mode < 4; mode++) {
        Module *module = modules[mode] = fuzzed_with_gradients(seed);
        snprintf(what, sizeof what, "seed %d, mode %d", (int)seed, mode);
        ProgramSet *set = sets[mode] = emit_module(module, mode == 2, mode == 3);
        Interp *interp = filled_interpreter(module);
        Machine machine = machine_new(set, interp);
        machine.kernels = compile_set(set);
        omp_set_num_threads(mode == 1 ? 3 : 2);
        run_program(&machine, &set->programs[0], mode == 1);
        if (mode == 0) {
            interp_run(interp, set->programs[0].function, scalars, false);
            compare_states(&machine, interp, what, 1e-4);
            first = machine;
        } else {
            compare_bits(&first, &machine, what);
            jit_free(machine.kernels);
            machine_free(&machine);
        }
        interp_free(interp);
    }
    jit_free(first.kernels);
    machine_free(&first);
    for (int mode = 0; mode < 4; mode++) {
        program_set_free(sets[mode]);
        module_free(modules[mode]);
    }
}

static void random_graphs(void **state) {
    (void)state;
    const char *asked = getenv("COLAC_FUZZ");
    int seeds = asked ? atoi(asked) / 1000 : 0;
    int first = getenv("FUZZ_FIRST") ? atoi(getenv("FUZZ_FIRST")) : 0;
    for (int seed = first; seed < first + (seeds > 4 ? seeds : 4); seed++)
        run_fuzzed((uint64_t)seed);
}

/* ---- vector instructions ------------------------------------------------------------- */

static NodeId constant(Builder *b, double number) {
    return build_const(b, TYPE_F32, number);
}

static void write_table(Builder *b, const char *name, int number, NodeId value) {
    Write write = {.state = add_table(b->function->module, name, number,
                                      node_at(b->function, value)->type),
                   .value = value};
    array_push(&b->function->writes, write);
}

/* One of each kind, at sizes that are no multiple of anything: silu(x) y; a causal softmax; an
 * RMSNorm; the gradient of a bias; one step of Adam; a loss over rows of classes. */
static Module *sample_module(void) {
    Module *module = module_new();
    Span none = {0};
    AxisId B = module_axis(module, "B", 4, none), S = module_axis(module, "S", 100, none);
    AxisId T = module_axis(module, "T", 100, none), D = module_axis(module, "D", 333, none);
    Function *function = module_function(module, "samples", 3, scalar_names);
    Builder sample = builder(function), *b = &sample;
    Input tokens = {.name = "tokens", .axis_count = 2, .axes = {B, S}, .below = 333};
    array_push(&module->inputs, tokens);
    const AxisId bsd[] = {B, S, D}, bst[] = {B, S, T}, bs[] = {B, S};
    Type wide = type_of(TYPE_F32, bsd, 3), square = type_of(TYPE_F32, bst, 3);
    NodeId x = build_state(b, add_table(module, "x", 0, wide));
    NodeId y = build_state(b, add_table(module, "y", 0, wide));
    NodeId s = build_state(b, add_table(module, "s", 0, square));
    NodeId gain = build_state(b, add_table(module, "gain", 0, type_of(TYPE_F32, &D, 1)));
    write_table(b, "out", 0,
                build_2(b, OP_MUL, build_2(b, OP_MUL, x, build_1(b, OP_SIGMOID, x)), y));
    NodeId causal = build_2(b, OP_LE, build_index(b, T), build_index(b, S));
    write_table(b, "out", 1,
                build_softmax(b, build_3(b, OP_WHERE, causal, s, constant(b, -INFINITY)), T));
    NodeId mean = build_2(b, OP_MUL, build_reduce(b, OP_SUM, build_2(b, OP_MUL, x, x), &D, 1),
                          constant(b, 1.0 / 333));
    NodeId scale = build_1(b, OP_SQRT, build_2(b, OP_ADD, mean, constant(b, 1e-6)));
    write_table(b, "out", 2, build_2(b, OP_MUL, build_2(b, OP_DIV, x, scale), gain));
    write_table(b, "out", 3, build_reduce(b, OP_SUM, build_2(b, OP_MUL, x, y), bs, 2));
    NodeId moment = build_2(b, OP_ADD, build_2(b, OP_MUL, x, constant(b, 0.9)),
                            build_2(b, OP_MUL, y, constant(b, 0.1)));
    NodeId root = build_1(b, OP_SQRT, build_1(b, OP_ABS, moment));
    write_table(b, "out", 4, moment);
    write_table(b, "out", 5,
                build_2(b, OP_DIV, moment, build_2(b, OP_ADD, root, constant(b, 1e-8))));
    NodeId own = build_2(b, OP_EQ, build_index(b, D), build_input(b, 0));
    NodeId picked =
        build_reduce(b, OP_SUM, build_3(b, OP_WHERE, own, x, constant(b, 0)), &D, 1);
    NodeId total = build_reduce(b, OP_SUM, build_1(b, OP_EXP, x), &D, 1);
    write_table(b, "out", 6, build_2(b, OP_SUB, build_1(b, OP_LOG, total), picked));
    return module;
}

/* The line at which a loop that begins at `line` ends, and how many lines of it compute. */
static int loop_end(char **lines, int line, int *computations) {
    size_t indent = strspn(lines[line], " ");
    int end = line + 1;
    *computations = 0;
    while (strspn(lines[end], " ") != indent) {
        bool stores = strchr(lines[end], '[') && !strstr(lines[end], "const ");
        *computations +=
            !stores && !strstr(lines[end], "base +") && strpbrk(lines[end], "*/+(?");
        end++;
    }
    return end;
}

/* The compiler's report on a C text, of loops that it made vectors of; false: it makes none. */
static bool vectorized_lines(const Text *source, bool *vectorized, int line_count) {
    char path[] = "/tmp/colac-test-XXXXXX", command[512], message[512];
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, source->data, source->length), (ssize_t)source->length);
    close(file);
    snprintf(command, sizeof command,
             "cc %s -fopt-info-vec-optimized -x c -o /dev/null %s 2>&1", jit_flags(), path);
    FILE *report = popen(command, "r");
    assert_non_null(report);
    while (fgets(message, sizeof message, report)) {
        char *number = strchr(message, ':');
        int line = number ? atoi(number + 1) : 0;
        if (strstr(message, "loop vectorized") && line > 0 && line <= line_count)
            vectorized[line - 1] = true;
    }
    bool understood = pclose(report) == 0;
    unlink(path);
    return understood;
}

static void loops_are_vectorized(void **state) {
    (void)state;
    Module *module = sample_module();
    ProgramSet *set = emit_module(module, false, false);
    Text source = {0};
    emit_c(set, 1, &source);
    char *copy = checked_alloc(source.length + 1);
    memcpy(copy, text_string(&source), source.length);
    ARRAY(char *) lines = {0};
    for (char *line = copy, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        array_push(&lines, line);
    }
    bool *vectorized = checked_alloc((size_t)lines.count);
    bool understood = vectorized_lines(&source, vectorized, (int)lines.count);
    int loops = 0;
    for (int i = 0; understood && i < lines.count; i++) {
        if (strcmp(lines.data[i], "#pragma omp simd") != 0)
            continue;
        int computations, end = loop_end(lines.data, i + 1, &computations);
        bool found = false;
        for (int k = i; k <= end; k++)
            found |= vectorized[k];
        if (!found && computations > 0)
            fail_msg("not vectorized, line %d: %s", i + 2, lines.data[i + 1]);
        loops += found;
    }
    if (understood)
        assert_true(loops >= 6);
    free(vectorized);
    array_free(&lines);
    free(copy);
    text_free(&source);
    program_set_free(set);
    module_free(module);
    if (!understood)
        skip(); /* no gcc */
}

/* ---- golden tests -------------------------------------------------------------------- */

/* Programs, then kernels; with `# print c` in the source the kernels as C. */
static void print_set(const ProgramSet *set, bool c_text, Text *out) {
    for (int i = 0; i < set->program_count; i++)
        program_print(set, &set->programs[i], out);
    for (int i = 0; i < set->kernel_count; i++) {
        if (c_text) {
            print_c(set->kernels[i], set->kernel_names[i], out);
        } else {
            text_printf(out, "%s\n", set->kernel_names[i]);
            kernel_print(set->kernels[i], kernel_names(set->kernels[i], true), "  ", out);
        }
    }
}

static bool run_golden(const char *name) {
    char path[512], expect[512];
    snprintf(path, sizeof path, "tests/golden/codegen/%s", name);
    snprintf(expect, sizeof expect, "%.*s.expect", (int)strlen(path) - 3, path);
    Source source = {.name = name};
    char *text = read_file(path, 1 << 20, &source.length);
    assert_non_null(text);
    source.text = text;
    Diagnostics *diagnostics = diagnostics_new();
    Stage stage;
    Module *module = ir_parse(&source, diagnostics, &stage);
    diagnostics_print(diagnostics, stderr);
    assert_non_null(module);
    ProgramSet *set = emit_module(module, false, false);
    Text out = {0};
    print_set(set, strstr(text, "# print c"), &out);
    const char *mode = getenv("GOLDEN");
    bool same = true;
    if (mode && strcmp(mode, "write") == 0) {
        FILE *file = fopen(expect, "w");
        assert_non_null(file);
        fputs(text_string(&out), file);
        assert_int_equal(fclose(file), 0);
    } else {
        size_t length;
        char *expected = read_file(expect, 1 << 20, &length);
        same = expected && strcmp(expected, text_string(&out)) == 0;
        if (!same)
            print_error("%s: expected\n%s\nbut got\n%s\n", path,
                        expected ? expected : "(no file)", text_string(&out));
        free(expected);
    }
    text_free(&out);
    program_set_free(set);
    module_free(module);
    diagnostics_free(diagnostics);
    free(text);
    return same;
}

static void golden(void **state) {
    (void)state;
    DIR *folder = opendir("tests/golden/codegen");
    assert_non_null(folder);
    int found = 0, failed = 0;
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        size_t length = strlen(entry->d_name);
        if (length < 4 || strcmp(entry->d_name + length - 3, ".ir") != 0)
            continue;
        found++;
        failed += !run_golden(entry->d_name);
    }
    closedir(folder);
    assert_true(found > 0);
    assert_int_equal(failed, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(every_op),
        cmocka_unit_test(reductions_in_the_fixed_order),
        cmocka_unit_test(random_graphs),
        cmocka_unit_test(loops_are_vectorized),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free_inputs();
    return failed;
}
