/* Layout, fuse, schedule and memory: what groups compute, one element at a time, against the
 * interpreter; structure of what fuses; products against sums; arenas against the loads of a
 * run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <time.h>

#include "tests/graph_fuzz.h"
#include "tests/group_machine.h"

/* ---- running ------------------------------------------------------------------ */

static const double scalars[] = {3, 7, 11}; /* step, seed, sample0 */

/* Values for all states and inputs; the same for modules that declare the same. */
static Interp *interpreter_for(const Module *module, int32_t **inputs) {
    Interp *interp = interp_new(module);
    for (int i = 0; i < module->inputs.count; i++) {
        inputs[i] = fuzz_input(module, i, 5);
        interp_set_input(interp, i, inputs[i]);
    }
    fuzz_fill_weights(interp, module, 1);
    const Function *init = module_find_function(module, "init");
    if (init)
        interp_run(interp, init, NULL, false);
    return interp;
}

static void free_interpreter(Interp *interp, const Module *module, int32_t **inputs) {
    interp_free(interp);
    for (int i = 0; i < module->inputs.count; i++)
        free(inputs[i]);
}

static void must_verify(const Module *module, Stage stage) {
    const char *violation = ir_verify(module, stage);
    if (violation)
        print_error("after %s: %s\n", stage_name(stage), violation);
    assert_null(violation);
}

static void place(Module *module, bool no_fuse, bool no_reuse) {
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module,
                           .diagnostics = diagnostics,
                           .no_fuse = no_fuse,
                           .no_reuse = no_reuse,
                           .for_training = true};
    static bool (*const passes[])(PassContext *) = {pass_layout, pass_fuse, pass_schedule,
                                                    pass_memory};
    for (int i = 0; i < COUNT_OF(passes); i++) {
        assert_true(passes[i](&context));
        must_verify(module, STAGE_LAYOUT + i);
    }
    assert_int_equal(diagnostics_errors(diagnostics), 0);
    diagnostics_free(diagnostics);
}

/* Where a state's element of given position in type order is in its memory order. */
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

/* Memory of the states: slabs where they have places in one. */
typedef struct Memory {
    double **states; /* by state; memory order */
    ARRAY(double *) blocks;
} Memory;

static double *slab_of(Memory *memory, const Module *module, const State *state) {
    for (StateId id = 0; id < module->states.count; id++) {
        const State *other = &module->states.data[id];
        if (memory->states[id] && other->role == state->role &&
            other->number == state->number && other->offset >= 0)
            return memory->states[id] - other->offset;
    }
    int64_t size = 0;
    for (StateId id = 0; id < module->states.count; id++) {
        const State *other = &module->states.data[id];
        if (other->role == state->role && other->number == state->number)
            size += type_elements(module, state_type(other)) + 16;
    }
    double *slab = checked_alloc((size_t)size * sizeof *slab);
    array_push(&memory->blocks, slab);
    return slab;
}

static Memory memory_from(Interp *interp, const Module *module) {
    size_t count = (size_t)module->states.count;
    Memory memory = {.states = checked_alloc(count * sizeof(double *))};
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        int64_t elements = type_elements(module, state_type(state));
        if (state->offset >= 0) {
            memory.states[id] = slab_of(&memory, module, state) + state->offset;
        } else {
            memory.states[id] = checked_alloc((size_t)elements * sizeof(double));
            array_push(&memory.blocks, memory.states[id]);
        }
        for (int64_t i = 0; i < elements && !state->flat; i++)
            memory.states[id][element_in_memory(module, id, i)] = interp_state(interp, id)[i];
    }
    return memory;
}

static void memory_free(Memory *memory) {
    for (int64_t i = 0; i < memory->blocks.count; i++)
        free(memory->blocks.data[i]);
    array_free(&memory->blocks);
    free(memory->states);
}

/* Runs the groups of a placed function; checks rules and lifetimes.  `interp` has the memory's
 * values, and then those of the function's end. */
static void run_groups(const Module *module, const char *name, const double *arguments,
                       Interp *interp, Memory *memory) {
    const Function *function = module_find_function(module, name);
    interp_run(interp, function, arguments, true);
    Machine machine = {.module = module,
                       .function = function,
                       .interp = interp,
                       .scalars = arguments,
                       .states = memory->states};
    const char *broken = machine_run(&machine);
    if (broken)
        print_error("%s: %s\n", name, broken);
    assert_null(broken);
    assert_true(lifetimes_are_apart(&machine));
    free(machine.last_load);
}

static bool close_enough(double x, double y) {
    return x == y || (isnan(x) && isnan(y)) || fabs(x - y) <= 1e-9 * (fabs(x) + fabs(y) + 1);
}

/* All states, by path, as another module's interpreter has them. */
static void compare_states(const Module *reference, Interp *expected, const Module *module,
                           const Memory *memory) {
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->flat)
            continue;
        StateId other = module_find_state(reference, state->path, state->role, state->number);
        int64_t count = type_elements(module, state_type(state));
        for (int64_t i = 0; i < count; i++) {
            double x = interp_state(expected, other)[i];
            double y = memory->states[id][element_in_memory(module, id, i)];
            if (!close_enough(x, y))
                print_error("%s %s[%lld]: %.17g expected, got %.17g\n", role_name(state->role),
                            state->path, (long long)i, x, y);
            assert_true(close_enough(x, y));
        }
    }
}

static void assert_same_bits(const Module *module, const Memory *a, const Memory *b) {
    for (StateId id = 0; id < module->states.count; id++) {
        int64_t count = type_elements(module, state_type(&module->states.data[id]));
        for (int64_t i = 0; i < count; i++)
            assert_true(memcmp(&a->states[id][i], &b->states[id][i], sizeof(double)) == 0 ||
                        (isnan(a->states[id][i]) && isnan(b->states[id][i])));
    }
}

/* ---- random graphs ------------------------------------------------------------ */

static Module *fuzz_with_gradients(uint64_t seed) {
    Module *module = fuzz_module(seed, 40);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics, .for_training = true};
    assert_true(pass_autodiff(&context));
    diagnostics_free(diagnostics);
    return module;
}

/* Fused, not fused, and without reuse of memory: the interpreter's values, and the same bits.
 */
static void check_random_graph(uint64_t seed) {
    int32_t *inputs[8], *own_inputs[8];
    Module *reference = fuzz_with_gradients(seed);
    Interp *expected = interpreter_for(reference, inputs);
    interp_run(expected, module_find_function(reference, "micro"), scalars, false);
    Memory memory[3];
    for (int mode = 0; mode < 3; mode++) {
        Module *module = fuzz_with_gradients(seed);
        place(module, mode == 1, mode == 2);
        Interp *interp = interpreter_for(module, own_inputs);
        memory[mode] = memory_from(interp, module);
        run_groups(module, "micro", scalars, interp, &memory[mode]);
        compare_states(reference, expected, module, &memory[mode]);
        if (mode)
            assert_same_bits(module, &memory[0], &memory[mode]);
        free_interpreter(interp, module, own_inputs);
        module_free(module);
    }
    for (int mode = 0; mode < 3; mode++)
        memory_free(&memory[mode]);
    free_interpreter(expected, reference, inputs);
    module_free(reference);
}

static void random_graphs(void **state) {
    (void)state;
    const char *first = getenv("FUZZ_FIRST"), *count = getenv("FUZZ_SEEDS");
    uint64_t begin = first ? strtoull(first, NULL, 10) : 0;
    uint64_t seeds = count ? strtoull(count, NULL, 10) : 60;
    for (uint64_t seed = begin; seed < begin + seeds; seed++)
        check_random_graph(seed);
}

/* How many maps that have no group are computed for one value. */
static int count_recomputed(const Function *function, NodeId value) {
    bool *wanted = checked_alloc((size_t)value + 1);
    int count = 0;
    wanted[value] = true;
    for (NodeId id = value; id >= 0; id--) {
        const Node *node = node_at(function, id);
        if (!wanted[id] || (id != value && node->placement.group >= 0))
            continue;
        count += id != value && op_is_map(node->op) && !node->on_host;
        for (int i = 0; i < node->input_count; i++)
            wanted[node->inputs[i]] = true;
    }
    free(wanted);
    return count;
}

/* A long chain of cheap maps, of which every link is summed by columns: computing a link again
 * from the state at the chain's end would be cheap for the first few alone. */
static void recomputation_is_bounded(void **state) {
    (void)state;
    Module *module = module_new();
    AxisId axes[] = {module_axis(module, "S", 50, (Span){0}),
                     module_axis(module, "D", 60, (Span){0})};
    State table = {.path = "x", .role = ROLE_TABLE, .weight = -1, .offset = -1, .out_count = 2};
    memcpy(table.out, axes, sizeof axes);
    table.dtype = TYPE_F32;
    Builder b = builder(module_function(module, "micro", 0, NULL));
    NodeId link = build_state(&b, module_state(module, table)), sum = -1;
    for (int i = 0; i < 100; i++) {
        link = build_1(&b, i % 2 ? OP_NEG : OP_ABS, link);
        link = build_2(&b, OP_ADD, link, build_const(&b, TYPE_F32, i));
        NodeId column = build_reduce(&b, OP_SUM, link, &axes[0], 1);
        sum = sum < 0 ? column : build_2(&b, OP_ADD, build_1(&b, OP_SIN, sum), column);
    }
    State result = {
        .path = "y", .role = ROLE_TABLE, .weight = -1, .offset = -1, .out_count = 1};
    result.out[0] = axes[1];
    result.dtype = TYPE_F32;
    Write write = {.state = module_state(module, result), .value = sum};
    array_push(&b.function->writes, write);
    place(module, false, false);
    const Function *function = module_find_function(module, "micro");
    int most = 0;
    for (NodeId id = 0; id < function->nodes.count; id++) {
        int count = count_recomputed(function, id);
        most = node_at(function, id)->op == OP_SUM && count > most ? count : most;
    }
    assert_in_range(most, 2, 60); /* additions: the limit of work that the pass gives itself */
    module_free(module);
}

/* ---- models ------------------------------------------------------------------- */

static const Define small_sizes[] = {{"B", "2"}, {"S", "4"}, {"L", "2"},  {"D", "8"},
                                     {"H", "4"}, {"F", "6"}, {"V", "11"}, {"MASK", "10"}};

static Compilation *compile(const char *path, const char *plan, const Define *defines,
                            int count, Diagnostics *diagnostics) {
    Request request = {.path = path, .plan = plan, .defines = defines, .define_count = count};
    Compilation *compilation = compile_model(&request, diagnostics);
    diagnostics_print(diagnostics, stdout);
    assert_non_null(compilation);
    return compilation;
}

static void run_to(Compilation *compilation, const char *pass, bool no_fuse) {
    PassContext context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = compilation->diagnostics,
                           .no_fuse = no_fuse,
                           .for_training = true};
    assert_true(run_passes(&context, pass, NULL));
}

/* Two micro-batches, an update over the slab, and an evaluation. */
static void check_training_step(const char *path, const char *plan, bool no_fuse,
                                const Define *sizes, int count) {
    static const double update[] = {1, 0.125, 2};
    static const char *const functions[] = {"micro", "micro", "update", "eval"};
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *plain = compile(path, plan, sizes, count, diagnostics);
    Compilation *placed = compile(path, plan, sizes, count, diagnostics);
    run_to(plain, "clean", false);
    run_to(placed, NULL, no_fuse);
    must_verify(placed->module, STAGE_MEMORY);
    int32_t *inputs[8], *own_inputs[8];
    Interp *expected = interpreter_for(plain->module, inputs);
    Interp *interp = interpreter_for(placed->module, own_inputs);
    Memory memory = memory_from(interp, placed->module);
    for (int i = 0; i < COUNT_OF(functions); i++) {
        const double *arguments = strcmp(functions[i], "update") == 0 ? update : scalars;
        interp_run(expected, module_find_function(plain->module, functions[i]), arguments,
                   false);
        run_groups(placed->module, functions[i], arguments, interp, &memory);
        compare_states(plain->module, expected, placed->module, &memory);
    }
    memory_free(&memory);
    free_interpreter(expected, plain->module, inputs);
    free_interpreter(interp, placed->module, own_inputs);
    compilation_free(plain);
    compilation_free(placed);
    diagnostics_free(diagnostics);
}

static void training_steps(void **state) {
    (void)state;
    static const Define mlp[] = {{"B", "3"}, {"C", "4"}, {"V", "11"}, {"E", "2"}, {"N", "4"}};
    enum { BERT = COUNT_OF(small_sizes), SIZES = BERT - 1 }; /* MASK is BERT's alone */
    check_training_step("models/llama.cola", NULL, false, small_sizes, SIZES);
    check_training_step("models/llama.cola", NULL, true, small_sizes, SIZES);
    check_training_step("models/llama.cola", "cola", false, small_sizes, SIZES);
    check_training_step("models/gpt2.cola", NULL, false, small_sizes, SIZES);
    check_training_step("models/bert.cola", NULL, false, small_sizes, BERT);
    check_training_step("models/mlp.cola", NULL, false, mlp, COUNT_OF(mlp));
}

typedef struct KindCounts {
    int kinds[GROUP_PRODUCT + 1], copies;
} KindCounts;

static KindCounts count_kinds(const Module *module, const char *name) {
    const Function *function = module_find_function(module, name);
    KindCounts counts = {0};
    for (int64_t i = 0; i < function->groups.count; i++)
        counts.kinds[function->groups.data[i].kind]++;
    for (NodeId id = 0; id < function->nodes.count; id++)
        counts.copies +=
            node_at(function, id)->op == OP_COPY && node_at(function, id)->type.rank;
    return counts;
}

/* What one layer more takes, forward and backward. */
static void check_layer(const char *plan, int row, int flat, int column, int product) {
    KindCounts counts[2];
    for (int i = 0; i < 2; i++) {
        Define defines[] = {{"L", i ? "4" : "3"}};
        Diagnostics *diagnostics = diagnostics_new();
        Compilation *compilation =
            compile("models/llama.cola", plan, defines, COUNT_OF(defines), diagnostics);
        run_to(compilation, "fuse", false);
        counts[i] = count_kinds(compilation->module, "micro");
        KindCounts update = count_kinds(compilation->module, "update");
        assert_int_equal(update.kinds[GROUP_ROW], 2); /* the norm, in two levels */
        compilation_free(compilation);
        diagnostics_free(diagnostics);
    }
    assert_int_equal(counts[1].copies, 0);
    assert_int_equal(counts[1].kinds[GROUP_ROW] - counts[0].kinds[GROUP_ROW], row);
    assert_int_equal(counts[1].kinds[GROUP_FLAT] - counts[0].kinds[GROUP_FLAT], flat);
    assert_int_equal(counts[1].kinds[GROUP_COLUMN] - counts[0].kinds[GROUP_COLUMN], column);
    assert_int_equal(counts[1].kinds[GROUP_PRODUCT] - counts[0].kinds[GROUP_PRODUCT], product);
    assert_int_equal(counts[1].kinds[GROUP_SCATTER], 1);
}

/* Forward: two norms (each with the residual sum before it) and softmax; rope of q and k,
 * SwiGLU. Backward the same again, and two gains' gradients. */
static void kernels_of_a_layer(void **state) {
    (void)state;
    check_layer(NULL, 3 + 3, 3 + 3, 2, 3 * 9);
    /* seven silu more; seven products more */
    check_layer("cola", 3 + 3, 10 + 10, 2, 3 * 16);
}

/* All products of a model, forward and backward: whole matrices, no copies. */
static void check_products(const char *path, const Define *defines, int count,
                           int64_t accumulated) {
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile(path, NULL, defines, count, diagnostics);
    run_to(compilation, NULL, false);
    const Function *micro = module_find_function(compilation->module, "micro");
    assert_int_equal(count_kinds(compilation->module, "micro").copies, 0);
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        const Node *node = node_at(micro, id);
        if (node->op != OP_DOT)
            continue;
        View a, b, c = own_view(micro, id);
        Product product;
        int blocking;
        assert_true(view_of(micro, node->inputs[0], &a));
        assert_true(view_of(micro, node->inputs[1], &b));
        assert_true(product_of(micro, id, &a, &b, &c, &product, &blocking));
        bool attention = product.batch_count > 0;
        int64_t rounds = 1;
        for (int i = 0; i < product.accumulate_count; i++)
            rounds *= product.accumulate[i].extent;
        assert_true(rounds == 1 || (attention && rounds == accumulated));
        assert_true(product.batch_count <= (accumulated > 1 ? 3 : 2));
    }
    MemoryTable table = memory_table(compilation->module);
    assert_true(table.arena >= table.lower_bound);
    assert_true((double)table.arena <= 1.02 * (double)table.lower_bound);
    assert_true(table.kept_activations > 0 && table.kept_activations < table.arena);
    compilation_free(compilation);
    diagnostics_free(diagnostics);
}

static void products_of_models(void **state) {
    (void)state;
    static const Define grouped[] = {{"J", "2"}};
    check_products("models/llama.cola", NULL, 0, 1);
    check_products("models/llama.cola", grouped, 1, 4); /* 8 query heads for 2 key heads */
    check_products("models/gpt2.cola", NULL, 0, 1);
    check_products("models/bert.cola", NULL, 0, 1);
    check_products("models/mlp.cola", NULL, 0, 1);
}

/* Ten thousand nodes take a tenth of a second of the processor: 7b has about as many. */
static void time_of_passes(void **state) {
    (void)state;
    Define defines[] = {{"L", "40"}};
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile("models/llama.cola", "cola", defines, 1, diagnostics);
    run_to(compilation, "clean", false);
    PassContext context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .for_training = true};
    clock_t begin = clock();
    assert_true(pass_layout(&context) && pass_fuse(&context) && pass_schedule(&context) &&
                pass_memory(&context));
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    int64_t nodes = 0;
    for (int64_t i = 0; i < context.module->functions.count; i++)
        nodes += context.module->functions.data[i]->nodes.count;
    assert_true(nodes > 10000);
#ifdef __SANITIZE_ADDRESS__
    seconds /= 10;
#endif
    assert_true(seconds < 0.1 * (double)nodes / 10000);
    compilation_free(compilation);
    diagnostics_free(diagnostics);
}

/* ---- products ----------------------------------------------------------------- */

/* A dot of two states and a result, of random axes, sizes and orders. */
typedef struct RandomDot {
    Module *module;
    Function *function;
    NodeId dot;
    int axis_count;
    AxisId axes[6];
} RandomDot;

static void shuffle(uint64_t *random, AxisId *axes, int count) {
    for (int i = count - 1; i > 0; i--) {
        int j = (int)(fuzz_next(random) % (uint64_t)(i + 1));
        AxisId axis = axes[i];
        axes[i] = axes[j];
        axes[j] = axis;
    }
}

static RandomDot random_dot(uint64_t *random) {
    RandomDot d = {.module = module_new(), .axis_count = 1 + (int)(fuzz_next(random) % 6)};
    State operands[2] = {{.path = "a", .role = ROLE_TABLE, .weight = -1, .offset = -1},
                         {.path = "b", .role = ROLE_TABLE, .weight = -1, .offset = -1}};
    AxisId summed[6];
    int summed_count = 0;
    for (int i = 0; i < d.axis_count; i++) {
        char name[2] = {(char)('A' + i), 0};
        static const int64_t sizes[] = {1, 2, 3, 4};
        d.axes[i] = module_axis(d.module, name, sizes[fuzz_next(random) % 4], (Span){0});
        int kind = (int)(fuzz_next(random) % 4); /* batch, first's, second's, summed */
        for (int side = 0; side < 2; side++)
            if (kind == 0 || kind == 3 || kind == 1 + side)
                operands[side].out[operands[side].out_count++] = d.axes[i];
        if (kind == 3)
            summed[summed_count++] = d.axes[i];
    }
    d.function = module_function(d.module, "micro", 0, NULL);
    Builder b = builder(d.function);
    NodeId inputs[2];
    for (int side = 0; side < 2; side++) {
        shuffle(random, operands[side].out, operands[side].out_count);
        operands[side].dtype = TYPE_F32;
        operands[side].order_count = operands[side].out_count;
        memcpy(operands[side].order, operands[side].out, sizeof operands[side].order);
        inputs[side] = build_state(&b, module_state(d.module, operands[side]));
        Placement *placement = &d.function->nodes.data[inputs[side]].placement;
        placement->order_count = operands[side].order_count;
        memcpy(placement->order, operands[side].order, sizeof placement->order);
    }
    d.dot = build_dot(&b, inputs[0], inputs[1], summed, summed_count);
    Node *dot = &d.function->nodes.data[d.dot];
    dot->placement.order_count = dot->type.rank;
    memcpy(dot->placement.order, dot->type.axes, sizeof dot->placement.order);
    shuffle(random, dot->placement.order, dot->type.rank);
    return d;
}

/* The product's loops give the sum over all axes of a * b, and each operand has a unit stride.
 */
static void check_product(const RandomDot *d, const Product *p, const View views[3]) {
    static double a[5000], b[5000], c[5000], expected[5000];
    for (int i = 0; i < COUNT_OF(a); i++) {
        a[i] = (i * 37 % 101) - 50;
        b[i] = (i * 53 % 97) - 48;
        expected[i] = 0;
        c[i] = 0;
    }
    assert_true(p->m == 1 || p->k == 1 || p->a_m == 1 || p->a_k == 1);
    assert_true(p->k == 1 || p->n == 1 || p->b_k == 1 || p->b_n == 1);
    assert_true(p->c_n == 1 || p->n == 1);
    Machine machine = {.module = d->module};
    Index index = index_zero(d->axes, d->axis_count);
    do {
        int64_t at[3] = {0, 0, 0};
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < views[i].count; j++)
                at[i] += views[i].strides[j] * index_get(&index, views[i].axes[j]);
        expected[at[2]] += a[at[0]] * b[at[1]];
    } while (index_next(&machine, &index, d->axes, d->axis_count));
    const double *x = p->swapped ? b : a, *y = p->swapped ? a : b;
    int64_t batches = 1, rounds = 1;
    for (int i = 0; i < p->batch_count; i++)
        batches *= p->batch[i].extent;
    for (int i = 0; i < p->accumulate_count; i++)
        rounds *= p->accumulate[i].extent;
    for (int64_t run = 0; run < batches * rounds; run++) {
        int64_t at_x = 0, at_y = 0, at_c = 0, left = run;
        for (int i = 0; i < p->batch_count + p->accumulate_count; i++) {
            const ProductLoop *loop =
                i < p->batch_count ? &p->batch[i] : &p->accumulate[i - p->batch_count];
            int64_t at = left % loop->extent;
            left /= loop->extent;
            at_x += at * loop->stride_a;
            at_y += at * loop->stride_b;
            at_c += at * loop->stride_c;
        }
        for (int64_t i = 0; i < p->m; i++)
            for (int64_t j = 0; j < p->n; j++)
                for (int64_t k = 0; k < p->k; k++)
                    c[at_c + i * p->c_m + j * p->c_n] +=
                        x[at_x + i * p->a_m + k * p->a_k] * y[at_y + k * p->b_k + j * p->b_n];
    }
    assert_memory_equal(c, expected, sizeof c);
}

/* A product is refused only for an operand whose fastest axis is a batch axis, or where two
 * operands want different axes; then `blocking` names one. */
static void random_products(void **state) {
    (void)state;
    uint64_t random = 1;
    int refused = 0, made = 0;
    for (int round = 0; round < 20000; round++) {
        RandomDot d = random_dot(&random);
        const Node *dot = node_at(d.function, d.dot);
        View views[3] = {own_view(d.function, dot->inputs[0]),
                         own_view(d.function, dot->inputs[1]), own_view(d.function, d.dot)};
        Product product;
        int blocking = -1;
        if (product_of(d.function, d.dot, &views[0], &views[1], &views[2], &product,
                       &blocking)) {
            check_product(&d, &product, views);
            made++;
        } else {
            assert_in_range(blocking, 0, 2);
            refused++;
        }
        module_free(d.module);
    }
    assert_true(made > 10000 && refused > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_products),          cmocka_unit_test(random_graphs),
        cmocka_unit_test(recomputation_is_bounded), cmocka_unit_test(training_steps),
        cmocka_unit_test(kernels_of_a_layer),       cmocka_unit_test(products_of_models),
        cmocka_unit_test(time_of_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
