/* Lifetimes and bytes over time, against the graph itself; kept activations against the
 * published formulas; arenas against lower bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "passes/passes.h"
#include "tests/graph_fuzz.h"

/* ---- compiling ---------------------------------------------------------------- */

typedef struct Planned {
    Compilation *compilation;
    Diagnostics *diagnostics;
} Planned;

static Planned plan_model(const char *path, const char *preset, const char *plan,
                          const Define *defines, int count) {
    Planned planned = {.diagnostics = diagnostics_new()};
    Request request = {.path = path,
                       .preset = preset,
                       .plan = plan,
                       .defines = defines,
                       .define_count = count};
    planned.compilation = compile_model(&request, planned.diagnostics);
    diagnostics_print(planned.diagnostics, stdout);
    assert_non_null(planned.compilation);
    PassContext context = {.module = planned.compilation->module,
                           .compilation = planned.compilation,
                           .diagnostics = planned.diagnostics,
                           .for_training = true};
    assert_true(run_passes(&context, NULL, NULL));
    return planned;
}

static void planned_free(Planned *planned) {
    compilation_free(planned->compilation);
    diagnostics_free(planned->diagnostics);
}

static const char *const plans[] = {NULL, "gcp", "cola", "cola_gcp", "cola_m", "cola_lean"};
static const Define small[] = {{"B", "2"}, {"S", "8"}, {"L", "3"},
                               {"D", "8"}, {"H", "2"}, {"V", "11"}};

/* ---- lives -------------------------------------------------------------------- */

/* By stored value: the last group that loads it, found from every node that a group computes by
 * going up through whatever has no memory of its own. */
static void visit_loads(const Function *function, NodeId id, int32_t group, int32_t *last) {
    const Node *node = node_at(function, id);
    for (int i = 0; i < node->input_count; i++) {
        const Node *input = node_at(function, node->inputs[i]);
        bool loaded = input->placement.stored && input->placement.group != group;
        if (loaded && last[node->inputs[i]] < group)
            last[node->inputs[i]] = group;
        if (!loaded && input->op != OP_STATE && input->op != OP_INPUT)
            visit_loads(function, node->inputs[i], group, last);
    }
}

static int32_t *last_loads(const Function *function) {
    int32_t *last = checked_alloc((size_t)function->nodes.count * sizeof *last);
    for (NodeId id = 0; id < function->nodes.count; id++)
        last[id] = node_at(function, id)->placement.group;
    for (NodeId id = 0; id < function->nodes.count; id++)
        if (node_at(function, id)->placement.group >= 0)
            visit_loads(function, id, node_at(function, id)->placement.group, last);
    for (int64_t i = 0; i < function->writes.count; i++) {
        NodeId source = write_source(function, function->writes.data[i].value);
        if (!function->writes.data[i].direct && source >= 0)
            last[source] = (int32_t)function->groups.count;
    }
    return last;
}

static int64_t place_end(const ValueLife *life) {
    return life->offset + (life->bytes + SLOT_ALIGNMENT - 1) / SLOT_ALIGNMENT * SLOT_ALIGNMENT;
}

static int by_offset(const void *left, const void *right) {
    const ValueLife *a = left, *b = right;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

/* Bytes of the arena that belong to some value while the group runs. */
static int64_t bytes_in_use(const ValueLife *by_place, int64_t count, int32_t group) {
    int64_t bytes = 0, end = 0;
    for (int64_t i = 0; i < count; i++) {
        if (by_place[i].begin > group || by_place[i].end < group)
            continue;
        int64_t from = by_place[i].offset > end ? by_place[i].offset : end;
        end = place_end(&by_place[i]) > end ? place_end(&by_place[i]) : end;
        bytes += end > from ? end - from : 0;
    }
    return bytes;
}

static bool is_free(const ValueLife *by_place, int64_t count, int32_t group, int64_t begin,
                    int64_t end) {
    for (int64_t i = 0; i < count; i++)
        if (by_place[i].begin <= group && group <= by_place[i].end &&
            by_place[i].offset < end && begin < by_place[i].offset + by_place[i].bytes)
            return false;
    return true;
}

/* For every other group: a place that is free, and none before it, as far as 512 are
 * tried. */
static void check_gaps(const Function *function, const ValueLife *by_place, int64_t count) {
    static const int64_t sizes[] = {64, 1, 4096, 1 << 20};
    static const int64_t alignments[] = {64, 256};
    for (int k = 0; k < 8; k++) {
        int64_t bytes = sizes[k % 4], alignment = alignments[k / 4];
        Arena *arena = arena_new();
        ArenaGaps *gaps = arena_gaps(function, arena);
        for (int32_t group = k % 2; group < function->groups.count; group += 2) {
            int64_t place = arena_gap(gaps, group, bytes, alignment);
            assert_int_equal(place % alignment, 0);
            assert_true(place <= function->arena_bytes + alignment);
            assert_true(is_free(by_place, count, group, place, place + bytes));
            int64_t step = place / 512 / alignment * alignment + alignment;
            for (int64_t before = 0; before < place; before += step)
                assert_false(is_free(by_place, count, group, before, before + bytes));
        }
        arena_free(arena);
    }
}

static void check_lives(const Function *function) {
    Arena *arena = arena_new();
    ValueLife *lives;
    int64_t count = value_lives(function, arena, &lives), next = 0, peak = 0;
    int32_t *last = last_loads(function);
    for (NodeId id = 0; id < function->nodes.count; id++) {
        const Node *node = node_at(function, id);
        if (!node->placement.stored)
            continue;
        assert_true(next < count && lives[next].node == id);
        assert_int_equal(lives[next].begin, node->placement.group);
        assert_int_equal(lives[next].end, last[id]);
        assert_int_equal(lives[next].offset, node->placement.offset);
        assert_int_equal(lives[next].bytes, type_elements(function->module, node->type) *
                                                dtype_bytes(node->type.dtype));
        assert_true(place_end(&lives[next]) <= function->arena_bytes);
        next++;
    }
    assert_int_equal(next, count);
    int64_t *live = live_bytes(function, arena);
    if (count)
        qsort(lives, (size_t)count, sizeof *lives, by_offset);
    for (int32_t group = 0; group <= function->groups.count; group++) {
        assert_int_equal(live[group], bytes_in_use(lives, count, group));
        peak = live[group] > peak ? live[group] : peak;
    }
    assert_true(peak <= function->arena_bytes);
    check_gaps(function, lives, count);
    free(last);
    arena_free(arena);
}

static void lives_and_timelines(void **state) {
    (void)state;
    static const struct {
        const char *path, *plan;
        int count;
    } models[] = {{"models/gpt2.cola", NULL, COUNT_OF(small)},
                  {"models/bert.cola", "cola", COUNT_OF(small) - 1},
                  {"models/mlp.cola", "cola", 1}};
    for (int i = 0; i < COUNT_OF(plans) + COUNT_OF(models); i++) {
        int other = i - COUNT_OF(plans);
        Planned planned =
            other < 0 ? plan_model("models/llama.cola", NULL, plans[i], small, COUNT_OF(small))
                      : plan_model(models[other].path, NULL, models[other].plan, small,
                                   models[other].count);
        const Module *module = planned.compilation->module;
        for (int64_t f = 0; f < module->functions.count; f++)
            check_lives(module->functions.data[f]);
        planned_free(&planned);
    }
}

/* ---- kept activations --------------------------------------------------------- */

typedef struct Size { /* as published: width, layers, rank */
    const char *preset, *sequences;
    int64_t d, layers, r;
} Size;

static int64_t kept_of(const Size *size, const char *plan) {
    const Define sequences[] = {{"B", size->sequences}};
    Planned planned = plan_model("models/llama.cola", size->preset, plan, sequences, 1);
    MemoryTable table = memory_table(planned.compilation->module);
    assert_int_equal(table.kept_activations + table.workspace, table.arena);
    assert_true(table.arena >= table.lower_bound);
    planned_free(&planned);
    return table.kept_activations;
}

/* Vanilla checkpointing keeps a layer's input, CoLA-M two values of the residual stream and
 * seven of rank r: of f32, for n = B S positions. */
static void published_kept_bytes(void **state) {
    (void)state;
    static const Size sizes[] = {{"60m", "32", 512, 8, 128},
                                 {"60m", "1", 512, 8, 128},
                                 {"130m", "16", 768, 12, 256},
                                 {"7b", "8", 4096, 32, 1024}};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        const Size *s = &sizes[i];
        int64_t n = strtoll(s->sequences, NULL, 10) * 256;
        assert_int_equal(kept_of(s, "gcp"), s->layers * n * s->d * 4);
        int64_t cola_m = s->layers * n * (2 * s->d + 7 * s->r) * 4;
        assert_int_equal(kept_of(s, "cola_m"), cola_m);
        assert_int_equal(kept_of(s, "cola_lean"), cola_m);
    }
}

/* ---- bounds ------------------------------------------------------------------- */

static Module *fused_graph(uint64_t seed, int size) {
    Module *module = fuzz_module(seed, size);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics, .for_training = true};
    assert_true(pass_autodiff(&context) && pass_layout(&context) && pass_fuse(&context));
    diagnostics_free(diagnostics);
    return module;
}

/* Puts the groups in an order drawn from all that their dependences allow. */
static void shuffle_groups(Function *function, uint64_t *random) {
    Arena *arena = arena_new();
    GroupGraph graph = group_graph(function, arena);
    int32_t count = (int32_t)function->groups.count, ready = 0;
    int32_t *place = arena_alloc_array(arena, (size_t)count, sizeof *place);
    int32_t *candidates = arena_alloc_array(arena, (size_t)count, sizeof *candidates);
    Group *groups = arena_alloc_array(arena, (size_t)count, sizeof *groups);
    memset(place, -1, (size_t)count * sizeof *place);
    for (int32_t next = 0; next < count; next++, ready = 0) {
        for (int32_t g = 0; g < count; g++) {
            bool free_to_run = place[g] < 0;
            for (int64_t i = graph.before_start[g]; i < graph.before_start[g + 1]; i++)
                free_to_run &= place[graph.before[i]] >= 0;
            if (free_to_run)
                candidates[ready++] = g;
        }
        assert_true(ready > 0);
        int32_t group = candidates[fuzz_next(random) % (uint64_t)ready];
        groups[next] = function->groups.data[group];
        place[group] = next;
    }
    for (int32_t g = 0; g < count; g++)
        function->groups.data[g] = groups[g];
    for (int64_t id = 0; id < function->nodes.count; id++) {
        int32_t *group = &function->nodes.data[id].placement.group;
        *group = *group < 0 ? -1 : place[*group];
    }
    arena_free(arena);
}

static int64_t peak_of(const Function *function) {
    Arena *arena = arena_new();
    const int64_t *live = live_bytes(function, arena);
    int64_t peak = 0;
    for (int64_t g = 0; g <= function->groups.count; g++)
        peak = live[g] > peak ? live[g] : peak;
    arena_free(arena);
    return peak;
}

/* No order of a random graph lives in less than the bound, which is the same from each of them;
 * some order often needs no more, and ours is not far. */
static void bounds_of_all_orders(void **state) {
    (void)state;
    int attained = 0;
    double excess = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        Module *module = fused_graph(seed, 4 + (int)(seed % 12));
        Function *micro = module_find_function(module, "micro");
        PassContext context = {.module = module};
        uint64_t random = seed;
        assert_true(pass_schedule(&context));
        int64_t bound = order_bound(micro), scheduled = peak_of(micro), best = scheduled;
        assert_true(scheduled >= bound);
        for (int draw = 0; draw < 60; draw++) {
            shuffle_groups(micro, &random);
            assert_true(order_bound(micro) == bound);
            int64_t peak = peak_of(micro);
            assert_true(peak >= bound);
            best = peak < best ? peak : best;
        }
        attained += best == bound;
        excess += (double)scheduled / (double)best - 1;
        module_free(module);
    }
    assert_true(attained >= 40);
    assert_true(excess / 60 <= 0.04);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lives_and_timelines),
        cmocka_unit_test(published_kept_bytes),
        cmocka_unit_test(bounds_of_all_orders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
