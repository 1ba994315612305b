/* Recomputation and interiors on random graphs, with random choices of what is kept: values by
 * the interpreter and the program's bits are what they are without it; the backward part reads
 * what is kept or a clone, each of which there is once and somebody reads; interiors are what
 * their definition gives when it is worked out in another way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/runtime.h"
#include "tests/graph_fuzz.h"

static const double scalars[] = {3, 7, 11}; /* step, seed, sample0 */

static int fuzz_count(void) {
    const char *asked = getenv("COLAC_FUZZ");
    return asked ? atoi(asked) / 100 + 60 : 60;
}

/* ---- random modules and choices ---------------------------------------------------- */

static Module *with_gradients(uint64_t seed, int size) {
    Module *module = fuzz_module(seed, size);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics};
    Stage stage = STAGE_GRAPH;
    assert_true(run_named_passes(&context, "autodiff,tables,clean", &stage));
    assert_int_equal(diagnostics_errors(diagnostics), 0);
    diagnostics_free(diagnostics);
    return context.module;
}

/* percent: how many of the values are kept. */
static bool *random_choice(const Function *micro, uint64_t seed, int percent) {
    bool *kept = checked_alloc((size_t)micro->nodes.count * sizeof *kept);
    uint64_t random = seed;
    for (int64_t id = 0; id < micro->nodes.count; id++)
        kept[id] = (int)(fuzz_next(&random) % 100) < percent;
    return kept;
}

static void rewrite(Module *module, bool *kept) {
    KeepChoice choice = {module_find_function(module, "micro")->nodes.count, kept};
    recompute_rewrite(module, &choice);
    const char *violation = ir_verify(module, STAGE_GRAPH);
    if (violation)
        fail_msg("%s", violation);
}

static int percent_of(uint64_t seed) {
    static const int percents[] = {0, 10, 30, 50, 80, 100};
    return percents[seed % COUNT_OF(percents)];
}

/* ---- values by the interpreter ------------------------------------------------------ */

static Interp *interpreted(const Module *module, int32_t *inputs[2]) {
    Interp *interp = interp_new(module);
    for (int i = 0; i < 2; i++)
        interp_set_input(interp, i, inputs[i] = fuzz_input(module, i, 5));
    fuzz_fill_weights(interp, module, 1);
    const Function *init = module_find_function(module, "init");
    if (init)
        interp_run(interp, init, NULL, false);
    interp_run(interp, module_find_function(module, "micro"), scalars, false);
    for (int i = 0; i < 2; i++)
        free(inputs[i]);
    return interp;
}

static void assert_same_states(const Module *module, Interp *a, Interp *b, uint64_t seed) {
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        const double *x = interp_state(a, id), *y = interp_state(b, id);
        for (int64_t i = 0; i < type_elements(module, state_type(state)); i++)
            if (memcmp(&x[i], &y[i], sizeof *x) != 0 && !(isnan(x[i]) && isnan(y[i])))
                fail_msg("seed %d: %s %s[%lld]: %.17g, recomputed %.17g", (int)seed,
                         role_name(state->role), state->path, (long long)i, x[i], y[i]);
    }
}

static void values_stay_what_they_were(void **state) {
    (void)state;
    int64_t clones = 0;
    for (uint64_t seed = 0; seed < (uint64_t)fuzz_count(); seed++) {
        Module *before = with_gradients(seed, 40), *after = with_gradients(seed, 40);
        Function *micro = module_find_function(after, "micro");
        bool *kept = random_choice(micro, seed, percent_of(seed));
        rewrite(after, kept);
        micro = module_find_function(after, "micro");
        for (int64_t id = 0; id < micro->nodes.count; id++)
            clones += micro->nodes.data[id].clone > 0;
        int32_t *inputs[2];
        Interp *a = interpreted(before, inputs), *b = interpreted(after, inputs);
        assert_same_states(before, a, b, seed);
        interp_free(a);
        interp_free(b);
        module_free(before);
        module_free(after);
        free(kept);
    }
    assert_true(clones > 10 * fuzz_count());
}

/* ---- the structure of clones -------------------------------------------------------- */

/* The memory that a value is had from. */
static NodeId below_views(const Function *function, NodeId id) {
    while (node_is_view(node_at(function, id)))
        id = node_at(function, id)->inputs[0];
    return id;
}

static bool needs_no_keeping(const Node *node) {
    return node->input_count == 0 || node->is_static || node->on_host;
}

/* By node of the rewritten function's forward part: was it kept?  Forward nodes keep their
 * order. */
static bool *kept_after(const Function *before, const Function *after, const bool *kept) {
    bool *was = forward_part(before), *is = forward_part(after);
    bool *result = checked_alloc((size_t)after->nodes.count * sizeof *result);
    NodeId at = 0;
    for (NodeId id = 0; id < after->nodes.count; id++) {
        if (!is[id])
            continue;
        while (!was[at])
            at++;
        assert_int_equal(node_at(before, at)->op, node_at(after, id)->op);
        result[id] = kept[at++];
    }
    free(was);
    free(is);
    return result;
}

static void check_clone(const Function *after, NodeId id, const bool *forward, const bool *kept,
                        int *seen) {
    const Node *node = node_at(after, id);
    assert_true(node->original >= 0 && node->original < id && forward[node->original]);
    const Node *original = node_at(after, node->original);
    assert_true(original->op == node->op && type_equal(original->type, node->type));
    assert_true(original->scope == node->scope && original->clone == 0);
    assert_false(kept[node->original]);
    assert_int_equal(seen[node->original]++, 0);
}

static void check_structure(const Function *before, const Function *after, const bool *choice) {
    bool *forward = forward_part(after), *kept = kept_after(before, after, choice);
    int *seen = checked_alloc((size_t)after->nodes.count * sizeof *seen);
    int *readers = checked_alloc((size_t)after->nodes.count * sizeof *readers);
    for (NodeId id = 0; id < after->nodes.count; id++) {
        const Node *node = node_at(after, id);
        if (node->clone)
            check_clone(after, id, forward, kept, seen);
        for (int i = 0; i < node->input_count; i++) {
            readers[node->inputs[i]]++;
            NodeId root = below_views(after, node->inputs[i]);
            bool fine = forward[id] || !forward[root] || kept[root] || kept[node->inputs[i]] ||
                        needs_no_keeping(node_at(after, root));
            /* A view that is kept by choice is had from memory that then is read too. */
            for (NodeId v = node->inputs[i]; !fine && node_is_view(node_at(after, v));
                 v = node_at(after, v)->inputs[0])
                fine = kept[v];
            if (!fine)
                fail_msg("%%%d of the backward part reads %%%d, which is not kept", (int)id,
                         (int)node->inputs[i]);
        }
    }
    for (NodeId id = 0; id < after->nodes.count; id++)
        if (node_at(after, id)->clone)
            assert_true(readers[id] > 0);
    free(forward);
    free(kept);
    free(seen);
    free(readers);
}

static void clones_are_minimal(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < (uint64_t)fuzz_count(); seed++) {
        Module *before = with_gradients(seed, 60), *after = with_gradients(seed, 60);
        const Function *old = module_find_function(before, "micro");
        bool *kept = random_choice(old, seed, percent_of(seed / 2));
        rewrite(after, kept);
        check_structure(old, module_find_function(after, "micro"), kept);
        module_free(before);
        module_free(after);
        free(kept);
    }
}

static void what_is_kept_whole_stays_as_it_is(void **state) {
    (void)state;
    Module *module = with_gradients(5, 60);
    Function *micro = module_find_function(module, "micro");
    bool *kept = random_choice(micro, 5, 100);
    rewrite(module, kept);
    assert_ptr_equal(micro, module_find_function(module, "micro"));
    free(kept);
    module_free(module);
}

/* ---- bits of programs ----------------------------------------------------------------- */

/* Slab offsets as pass_update would give them. */
static void place_states(Module *module) {
    int64_t next[ROLE_METRIC + 2] = {0};
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

/* All states after a micro-batch, one after the other; the caller frees them. */
static float *run_program(uint64_t seed, int percent, bool no_fuse, int64_t *count) {
    Module *module = with_gradients(seed, 30);
    place_states(module);
    bool *kept = random_choice(module_find_function(module, "micro"), seed, percent);
    rewrite(module, kept);
    free(kept);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics, .no_fuse = no_fuse};
    Stage stage = STAGE_GRAPH;
    assert_true(run_named_passes(&context, "layout,fuse,schedule,memory", &stage));
    module = context.module;
    ProgramSet *set = emit_programs(module, &host_room, false);
    Device *device = device_cpu_open(2, diagnostics);
    Executor *executor =
        executor_new(device, set, &(ExecutorOptions){.poison = true}, diagnostics);
    diagnostics_print(diagnostics, stdout);
    assert_non_null(executor);
    executor_initialize(executor, seed);
    for (int i = 0; i < 2; i++) {
        int32_t *input = fuzz_input(module, i, 5);
        executor_set_input(executor, i, input);
        free(input);
    }
    assert_true(executor_run(executor, "micro", scalars, diagnostics));
    *count = 0;
    for (StateId id = 0; id < module->states.count; id++)
        *count += type_elements(module, state_type(&module->states.data[id]));
    float *all = checked_alloc((size_t)*count * sizeof *all), *at = all;
    for (StateId id = 0; id < module->states.count; id++) {
        executor_read_state(executor, id, at);
        at += type_elements(module, state_type(&module->states.data[id]));
    }
    executor_free(executor);
    device->close(device);
    program_set_free(set);
    module_free(module);
    diagnostics_free(diagnostics);
    return all;
}

static void bits_stay_what_they_were(void **state) {
    (void)state;
    uint64_t last = getenv("COLAC_FUZZ") ? 40 : 3;
    for (uint64_t seed = 1; seed <= last; seed++) {
        int64_t count, other_count;
        float *first = run_program(seed, 100, false, &count);
        static const int percents[] = {0, 40};
        for (int i = 0; i < COUNT_OF(percents); i++) {
            float *other = run_program(seed, percents[i], i == 1, &other_count);
            assert_int_equal(count, other_count);
            if (memcmp(first, other, (size_t)count * sizeof *first) != 0)
                fail_msg("seed %d: other bits with %d of 100 values kept", (int)seed,
                         percents[i]);
            free(other);
        }
        free(first);
    }
}

/* ---- interiors ------------------------------------------------------------------------ */

/* Sets of (value, pair of axes), joined wherever one is the other's operand. */
typedef struct Sets {
    const Function *function;
    bool *forward, *sampled;
    int64_t axes;
    int64_t *parent;                  /* by (node, a, b) */
    bool *spoilt, *through_dot, *own; /* by set */
} Sets;

static int64_t set_of(const Sets *s, int64_t member) {
    while (s->parent[member] != member)
        member = s->parent[member] = s->parent[s->parent[member]];
    return member;
}

static int64_t member_of(const Sets *s, NodeId id, AxisId a, AxisId b) {
    return ((int64_t)id * s->axes + a) * s->axes + b;
}

/* What an axis of one side of a view is called on the other; splits go on with their first. */
static AxisId through_view(const Node *view, AxisId axis, bool upwards) {
    bool moves = op_is_view(view->op) && view->op != OP_PICK;
    int from_count = upwards ? view->attr.to_count : view->attr.from_count;
    const AxisId *from = upwards ? view->attr.to : view->attr.from;
    const AxisId *to = upwards ? view->attr.from : view->attr.to;
    for (int i = 0; moves && i < from_count; i++)
        if (from[i] == axis)
            return to[0];
    return axis;
}

static bool has_pair(const Sets *s, NodeId id, AxisId a, AxisId b) {
    return a != b && type_has(node_at(s->function, id)->type, a) &&
           type_has(node_at(s->function, id)->type, b);
}

/* Joins or judges every place where `user` reads its input i. */
static void follow_use(const Sets *s, NodeId user, int i, bool judge) {
    const Node *node = node_at(s->function, user);
    NodeId input = node->inputs[i];
    Type type = node_at(s->function, input)->type;
    for (int x = 0; s->sampled[input] && x < type.rank * type.rank; x++) {
        AxisId a = type.axes[x / type.rank], b = type.axes[x % type.rank];
        AxisId above_a = through_view(node, a, false), above_b = through_view(node, b, false);
        int64_t below = member_of(s, input, a, b);
        if (a == b)
            continue;
        if (has_pair(s, user, above_a, above_b)) {
            if (!judge)
                s->parent[set_of(s, below)] = set_of(s, member_of(s, user, above_a, above_b));
        } else if (judge && node->op == OP_DOT) {
            s->through_dot[set_of(s, below)] = true;
            s->spoilt[set_of(s, below)] |= !s->sampled[node->inputs[1 - i]];
        } else if (judge) {
            s->spoilt[set_of(s, below)] |= op_info[node->op].axis_rule != AXES_REDUCE;
        }
    }
}

/* A dot of two sampled values, each of which has one of the two axes. */
static void find_makers(const Sets *s, NodeId id, bool *begins) {
    const Node *dot = node_at(s->function, id);
    Type left = node_at(s->function, dot->inputs[0])->type;
    Type right = node_at(s->function, dot->inputs[1])->type;
    for (int x = 0; x < left.rank; x++)
        for (int y = 0; y < right.rank; y++) {
            AxisId a = left.axes[x], b = right.axes[y];
            if (type_has(right, a) || type_has(left, b))
                continue;
            int64_t set = set_of(s, member_of(s, id, a, b));
            begins[set] = true;
            s->own[set] |= s->sampled[dot->inputs[0]] && s->sampled[dot->inputs[1]];
            int64_t turned = set_of(s, member_of(s, id, b, a));
            s->own[turned] |= s->own[set];
        }
}

static bool *interiors_by_sets(const Function *f) {
    size_t nodes = (size_t)f->nodes.count;
    Sets s = {.function = f, .forward = forward_part(f), .axes = f->module->axes.count};
    size_t members = nodes * (size_t)(s.axes * s.axes);
    s.sampled = checked_alloc(nodes);
    s.parent = checked_alloc(members * sizeof *s.parent);
    s.spoilt = checked_alloc(members);
    s.through_dot = checked_alloc(members);
    s.own = checked_alloc(members);
    bool *begins = checked_alloc(members), *result = checked_alloc(nodes);
    for (size_t i = 0; i < members; i++)
        s.parent[i] = (int64_t)i;
    for (size_t id = 0; id < nodes; id++) {
        const Node *node = node_at(f, (NodeId)id);
        s.sampled[id] = node->op == OP_INPUT;
        for (int i = 0; i < node->input_count; i++)
            s.sampled[id] |= s.sampled[node->inputs[i]];
    }
    for (int judge = 0; judge < 2; judge++)
        for (size_t id = 0; id < nodes; id++)
            for (int i = 0; s.forward[id] && i < node_at(f, (NodeId)id)->input_count; i++)
                follow_use(&s, (NodeId)id, i, judge);
    for (size_t id = 0; id < nodes; id++)
        if (s.forward[id] && s.sampled[id] && node_at(f, (NodeId)id)->op == OP_DOT)
            find_makers(&s, (NodeId)id, begins);
    for (size_t i = 0; i < members; i++) {
        int64_t set = set_of(&s, (int64_t)i);
        if (begins[set] && !s.spoilt[set] && (s.own[set] || !s.through_dot[set]))
            result[i / (size_t)(s.axes * s.axes)] = true;
    }
    free(s.forward);
    free(s.sampled);
    free(s.parent);
    free(s.spoilt);
    free(s.through_dot);
    free(s.own);
    free(begins);
    return result;
}

static void interiors_are_what_they_are_said_to_be(void **state) {
    (void)state;
    int64_t inside = 0, outside = 0;
    for (uint64_t seed = 0; seed < (uint64_t)fuzz_count(); seed++) {
        Module *module = fuzz_module(seed, 50);
        const Function *micro = module_find_function(module, "micro");
        Arena *arena = arena_new();
        bool *got = cluster_interiors(micro, arena), *wanted = interiors_by_sets(micro);
        for (NodeId id = 0; id < micro->nodes.count; id++) {
            if (got[id] != wanted[id])
                fail_msg("seed %d: %%%d is%s inside", (int)seed, (int)id,
                         wanted[id] ? "" : " not");
            *(got[id] ? &inside : &outside) += 1;
        }
        free(wanted);
        arena_free(arena);
        module_free(module);
    }
    assert_true(inside > fuzz_count() && outside > inside);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_stay_what_they_were),
        cmocka_unit_test(clones_are_minimal),
        cmocka_unit_test(what_is_kept_whole_stays_as_it_is),
        cmocka_unit_test(bits_stay_what_they_were),
        cmocka_unit_test(interiors_are_what_they_are_said_to_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
