/* The `memory N` solver.  Its ladder is held to brute force: on small models every set of kept
 * values is planned, and the least FLOPs that fit are compared for many bounds.  On the shipped
 * models: what is chosen fits, more memory never costs more, the same again is the same, the
 * least peak that a refusal names is accepted, FLOPs are those of the clones.  Closures and
 * points of patterns are held to enumeration. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <unistd.h>

#include "passes/passes.h"
#include "tests/graph_fuzz.h"

static int budgets_wanted(void) { /* `make test-long` asks for many */
    return getenv("COLAC_FUZZ") ? 50 : 5;
}

/* ---- the cheapest closed set ---------------------------------------------------------- */

static void closures_are_least(void **state) {
    (void)state;
    enum { MOST = 9, ROUNDS = 400 };
    uint64_t random = 7;
    CutNetwork network = {0};
    for (int round = 0; round < ROUNDS; round++) {
        int nodes = 2 + (int)(fuzz_next(&random) % (MOST - 1));
        int64_t value[MOST];
        uint32_t requires[MOST] = {0};
        closure_clear(&network, nodes);
        for (int i = 0; i < nodes; i++) {
            value[i] = (int64_t)(fuzz_next(&random) % 41) - 20;
            if (value[i] > 0)
                closure_gain(&network, i, value[i]);
            else
                closure_cost(&network, i, -value[i]);
            for (int k = 0; k < nodes; k++)
                if (k != i && fuzz_next(&random) % 5 == 0) {
                    requires[i] |= UINT32_C(1) << k;
                    closure_requires(&network, i, k);
                }
        }
        int64_t best = INT64_MIN;
        for (uint32_t set = 0; set < UINT32_C(1) << nodes; set++) {
            int64_t sum = 0;
            bool closed = true;
            for (int i = 0; i < nodes; i++)
                if (set >> i & 1) {
                    sum += value[i];
                    closed &= (requires[i] & ~set) == 0;
                }
            best = closed && sum > best ? sum : best;
        }
        bool chosen[MOST];
        closure_solve(&network, chosen);
        int64_t sum = 0;
        for (int i = 0; i < nodes; i++) {
            for (int k = 0; k < nodes && chosen[i]; k++)
                assert_true(chosen[k] || !(requires[i] >> k & 1));
            sum += chosen[i] ? value[i] : 0;
        }
        assert_int_equal(sum, best);
    }
    closure_free(&network);
}

/* ---- compiling ------------------------------------------------------------------------- */

typedef struct Case {
    const char *model;     /* a file */
    const char *plan;      /* of it */
    const char *recompute; /* a directive beside the bound, or "" */
    Define defines[8];
    int define_count;
} Case;

typedef struct Outcome {
    bool fits;
    BudgetReport report;
    int64_t peak;                   /* of the placed module */
    double clone_flops, step_flops; /* of `micro` */
    uint64_t text_hash;
    int clones, clones_watched; /* in hidden[0] and hidden[1] of these */
    uint64_t watched_hash;
    char said[4096]; /* diagnostics */
} Outcome;

enum { PATH_SIZE = 40 };

static void write_text(const char *text, char path[PATH_SIZE]) {
    strcpy(path, "/tmp/colac_budget_XXXXXX");
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), (ssize_t)strlen(text));
    close(file);
}

static void read_diagnostics(Diagnostics *diagnostics, char *to, size_t size) {
    FILE *stream = fmemopen(to, size, "w");
    assert_non_null(stream);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
}

static void watch_clone(Outcome *outcome, const Function *micro, NodeId id) {
    const Node *node = node_at(micro, id);
    const char *path = micro->module->scopes.data[node->scope].path;
    if (!node->clone)
        return;
    outcome->clones++;
    if (strncmp(path, "hidden[0]", 9) != 0 && strncmp(path, "hidden[1]", 9) != 0)
        return;
    int64_t key[] = {node->scope, node_at(micro, node->original)->ordinal};
    outcome->clones_watched++;
    outcome->watched_hash += hash_bytes(key, sizeof key, 1);
}

/* Bound 0: the plan without a bound. */
static Outcome compile_case(const Case *c, int64_t bound) {
    char folder[1024], text[2048], plan[64], number[32];
    assert_non_null(getcwd(folder, sizeof folder));
    bool here = c->model[0] != '/';
    snprintf(text, sizeof text, "use \"%s%s%s\"\nplan fit extends %s {\n%s\n%s\n}\n",
             here ? folder : "", here ? "/" : "", c->model, c->plan, c->recompute,
             bound ? "dim BOUND = 1\nmemory BOUND" : "");
    char path[PATH_SIZE];
    write_text(text, path);
    snprintf(plan, sizeof plan, "%s:fit", path);
    snprintf(number, sizeof number, "%lld", (long long)bound);
    Define defines[9];
    memcpy(defines, c->defines, sizeof c->defines);
    defines[c->define_count] = (Define){"BOUND", number};
    Request request = {.path = c->model,
                       .plan = plan,
                       .defines = defines,
                       .define_count = c->define_count + (bound != 0)};
    Outcome outcome = {0};
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile_model(&request, diagnostics);
    if (!compilation)
        diagnostics_print(diagnostics, stdout);
    assert_non_null(compilation);
    PassContext context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .for_training = true,
                           .budget = &outcome.report};
    outcome.fits = run_passes(&context, NULL, NULL);
    read_diagnostics(diagnostics, outcome.said, sizeof outcome.said);
    if (outcome.fits) {
        outcome.peak = memory_table(context.module).peak;
        const Function *micro = module_find_function(context.module, "micro");
        for (int64_t id = 0; id < micro->nodes.count; id++) {
            double flops = node_flops(micro, node_at(micro, (NodeId)id));
            outcome.step_flops += flops;
            outcome.clone_flops += node_at(micro, (NodeId)id)->clone ? flops : 0;
            watch_clone(&outcome, micro, (NodeId)id);
        }
        Text printed = {0};
        ir_print(context.module, STAGE_MEMORY, &printed);
        outcome.text_hash = hash_bytes(printed.data, printed.length, 0);
        text_free(&printed);
    }
    compilation_free(compilation);
    diagnostics_free(diagnostics);
    unlink(path);
    return outcome;
}

/* ---- what holds for every bound ------------------------------------------------------------ */

static int64_t least_peak(const Case *c) {
    Outcome refused = compile_case(c, 1);
    assert_false(refused.fits);
    assert_non_null(strstr(refused.said, "takes at least"));
    assert_true(refused.report.minimum > 1);
    return refused.report.minimum;
}

static void expect_outcome(const Outcome *outcome, int64_t bound) {
    if (!outcome->fits)
        print_error("%s", outcome->said);
    assert_true(outcome->fits);
    assert_true(outcome->peak <= bound);
    assert_int_equal(outcome->report.peak, outcome->peak);
    assert_int_equal(outcome->report.bound, bound);
    assert_true(fabs(outcome->report.added_flops - outcome->clone_flops) <=
                1e-9 * outcome->step_flops);
}

static int by_number(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void check_case(const Case *c, uint64_t seed) {
    enum { MOST = 64 };
    Outcome unbound = compile_case(c, 0);
    assert_true(unbound.fits);
    int64_t least = least_peak(c), bounds[MOST];
    int count = budgets_wanted();
    uint64_t random = seed;
    for (int i = 0; i < count; i++) {
        double share = (double)(fuzz_next(&random) >> 11) / 9007199254740992.0;
        bounds[i] = least + (int64_t)(share * (double)(unbound.peak - least + 1));
    }
    bounds[count++] = least;
    bounds[count++] = unbound.peak;
    bounds[count++] = 4 * unbound.peak;
    qsort(bounds, (size_t)count, sizeof *bounds, by_number);
    double before = INFINITY;
    for (int i = 0; i < count; i++) {
        Outcome outcome = compile_case(c, bounds[i]);
        expect_outcome(&outcome, bounds[i]);
        assert_true(outcome.clone_flops <= before);
        before = outcome.clone_flops;
        if (i == count / 2) {
            Outcome again = compile_case(c, bounds[i]);
            assert_true(again.text_hash == outcome.text_hash);
        }
        if (bounds[i] >= unbound.peak) /* all is kept, as without the line */
            assert_true(outcome.text_hash == unbound.text_hash);
    }
    Outcome below = compile_case(c, least - 1);
    assert_false(below.fits);
    assert_int_equal(below.report.minimum, least);
}

static void bounds_of_shipped_models(void **state) {
    (void)state;
    static const Case cases[] = {
        {"models/llama.cola",
         "cola",
         "",
         {{"B", "4"},
          {"S", "32"},
          {"V", "64"},
          {"D", "48"},
          {"F", "96"},
          {"H", "2"},
          {"L", "5"}},
         7},
        {"models/llama.cola",
         "full",
         "",
         {{"B", "2"},
          {"S", "24"},
          {"V", "64"},
          {"D", "32"},
          {"F", "80"},
          {"H", "2"},
          {"L", "3"}},
         7},
        {"models/gpt2.cola", "cola", "", {{"B", "2"}, {"S", "16"}, {"L", "3"}, {"V", "64"}}, 4},
        {"models/bert.cola", "full", "", {{"B", "2"}, {"S", "16"}, {"L", "3"}}, 3},
        {"models/mlp.cola", "cola", "", {{"L", "7"}}, 1},
    };
    for (int i = 0; i < COUNT_OF(cases); i++)
        check_case(&cases[i], (uint64_t)i + 1);
}

/* ---- brute force ------------------------------------------------------------------------------ */

enum { MOST_INSTANCES = 8, MOST_SETS = 256, MOST_CANDIDATES = 10 };

/* An outermost block instance: values that it could keep, and the sets that differ in
 * effect. */
typedef struct Part {
    ScopeId scope;
    int candidate_count, set_count;
    NodeId candidates[MOST_CANDIDATES];
    uint32_t sets[MOST_SETS];
} Part;

typedef struct Planned {
    double flops;
    int64_t peak;
} Planned;

typedef struct Force {
    PassContext context;
    const Function *micro;
    KeepChoice choice;
    int part_count;
    Part parts[MOST_INSTANCES];
    ARRAY(Planned) planned; /* all assignments */
    double step_flops;
} Force;

static void apply_set(Force *f, const Part *part, uint32_t set) {
    for (int i = 0; i < part->candidate_count; i++)
        f->choice.kept[part->candidates[i]] = set >> i & 1;
}

/* Everything in a part that is no candidate is computed again where it is needed. */
static void apply_nothing(Force *f, const ScopeId *owners) {
    for (int64_t id = 0; id < f->choice.count; id++)
        f->choice.kept[id] = owners[id] == 0;
}

static Module *rewritten(Force *f, uint64_t *clones, double *flops) {
    Module *module = module_copy(f->context.module);
    recompute_rewrite(module, &f->choice);
    const Function *micro = module_find_function(module, "micro");
    *clones = 0;
    *flops = 0;
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        const Node *node = node_at(micro, id);
        if (!node->clone)
            continue;
        int64_t key[] = {node->scope, node_at(micro, node->original)->ordinal};
        *clones += hash_bytes(key, sizeof key, 1); /* a set: in any order */
        *flops += node_flops(micro, node);
    }
    return module;
}

static Planned plan_fully(Force *f) {
    Planned planned;
    uint64_t clones;
    PassContext trial = f->context;
    trial.module = rewritten(f, &clones, &planned.flops);
    assert_true(pass_layout(&trial) && pass_fuse(&trial) && pass_schedule(&trial) &&
                pass_memory(&trial));
    planned.peak = memory_table(trial.module).peak;
    module_free(trial.module);
    return planned;
}

static void find_parts(Force *f, const ScopeId *owners) {
    bool *forward = forward_part(f->micro);
    for (NodeId id = 0; id < f->micro->nodes.count; id++) {
        const Node *node = node_at(f->micro, id);
        ScopeId scope = owners[id];
        if (!forward[id] || scope == 0 || !node_can_be_stored(node) || node->is_static)
            continue;
        while (f->micro->module->scopes.data[scope].parent != 0)
            scope = f->micro->module->scopes.data[scope].parent;
        int i = 0;
        while (i < f->part_count && f->parts[i].scope != scope)
            i++;
        assert_true(i < MOST_INSTANCES);
        f->part_count = i == f->part_count ? i + 1 : f->part_count;
        f->parts[i].scope = scope;
        assert_true(f->parts[i].candidate_count < MOST_CANDIDATES);
        f->parts[i].candidates[f->parts[i].candidate_count++] = id;
    }
    free(forward);
}

/* Sets that make the same clones are one. */
static void find_sets(Force *f, Part *part) {
    uint64_t seen[MOST_SETS];
    for (uint32_t set = 0; set < UINT32_C(1) << part->candidate_count; set++) {
        uint64_t clones;
        double flops;
        apply_set(f, part, set);
        module_free(rewritten(f, &clones, &flops));
        int i = 0;
        while (i < part->set_count && seen[i] != clones)
            i++;
        if (i < part->set_count)
            continue;
        assert_true(i < MOST_SETS);
        seen[part->set_count] = clones;
        part->sets[part->set_count++] = set;
    }
}

static void plan_all(Force *f, int part) {
    if (part == f->part_count) {
        Planned planned = plan_fully(f);
        array_push(&f->planned, planned);
        return;
    }
    for (int i = 0; i < f->parts[part].set_count; i++) {
        apply_set(f, &f->parts[part], f->parts[part].sets[i]);
        plan_all(f, part + 1);
    }
}

/* Of sets given to all layers alike, those that no other one beats in FLOPs and planned
 * peak. */
static void drop_beaten_sets(Force *f, const ScopeId *owners) {
    Planned planned[MOST_SETS];
    Part *first = &f->parts[0];
    uint32_t left[MOST_SETS];
    int count = 0;
    for (int i = 0; i < first->set_count; i++) {
        apply_nothing(f, owners);
        for (int k = 0; k < f->part_count; k++) {
            assert_int_equal(f->parts[k].sets[i], first->sets[i]);
            apply_set(f, &f->parts[k], first->sets[i]);
        }
        planned[i] = plan_fully(f);
    }
    for (int i = 0; i < first->set_count; i++) {
        bool beaten = false;
        for (int k = 0; k < first->set_count && !beaten; k++)
            beaten = planned[k].flops <= planned[i].flops &&
                     planned[k].peak <= planned[i].peak &&
                     (planned[k].flops < planned[i].flops ||
                      planned[k].peak < planned[i].peak || k < i);
        if (!beaten)
            left[count++] = first->sets[i];
    }
    for (int k = 0; k < f->part_count; k++) {
        memcpy(f->parts[k].sets, left, sizeof left);
        f->parts[k].set_count = count;
    }
}

static Force brute_force(const Case *c, bool thin) {
    Request request = {.path = c->model,
                       .plan = c->plan,
                       .defines = c->defines,
                       .define_count = c->define_count};
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile_model(&request, diagnostics);
    diagnostics_print(diagnostics, stdout);
    assert_non_null(compilation);
    Force f = {.context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .for_training = true}};
    assert_true(run_passes(&f.context, "precision", NULL));
    f.micro = module_find_function(f.context.module, "micro");
    for (NodeId id = 0; id < f.micro->nodes.count; id++)
        f.step_flops += node_flops(f.micro, node_at(f.micro, id));
    Arena *arena = arena_new();
    const ScopeId *owners = value_owners(f.micro, arena);
    size_t nodes = (size_t)f.micro->nodes.count;
    f.choice = (KeepChoice){f.micro->nodes.count, arena_alloc(arena, nodes)};
    find_parts(&f, owners);
    for (int i = 0; i < f.part_count; i++) {
        apply_nothing(&f, owners);
        find_sets(&f, &f.parts[i]);
    }
    if (thin)
        drop_beaten_sets(&f, owners);
    apply_nothing(&f, owners);
    plan_all(&f, 0);
    arena_free(arena);
    compilation_free(compilation);
    diagnostics_free(diagnostics);
    return f;
}

/* The least FLOPs of those that fit; infinite where none does. */
static double least_flops(const Force *f, int64_t bound) {
    double least = INFINITY;
    for (int64_t i = 0; i < f->planned.count; i++)
        if (f->planned.data[i].peak <= bound && f->planned.data[i].flops < least)
            least = f->planned.data[i].flops;
    return least;
}

static const char layers_text[] =
    "use \"std.cola\"\n"
    "dim B = 1024, V = 11, D = 16, F = 44, E = 40, L = 2\n"
    "flag steep = false\n"
    "block part(x: [B,D]) -> [B,D] {\n"
    "    param gate, up: [D -> F] ~ normal(0.1)\n"
    "    param down: [F -> D] ~ normal(0.1)\n"
    "    g = dot(x, gate; D)\n"
    "    return x + dot(silu(g) * dot(x, up; D), down; F)\n"
    "}\n"
    "block stairs(x: [B,D]) -> [B,D] {\n"
    "    param one: [D -> E] ~ normal(0.1)\n"
    "    param two: [E -> F] ~ normal(0.1)\n"
    "    param three: [F -> D] ~ normal(0.1)\n"
    "    a = tanh(dot(x, one; D))\n"
    "    return x + dot(tanh(dot(a, two; E)), three; F)\n"
    "}\n"
    "model layers {\n"
    "    input context: int[B] below V\n"
    "    input target: int[B] below V next 1\n"
    "    param embed: [V -> D] ~ normal(1)\n"
    "    param head: [D -> V] ~ normal(0.1)\n"
    "    x = embed[context]\n"
    "    for i in L { x = if steep then stairs(x) else part(x) }\n"
    "    minimize mean(cross_entropy(dot(x, head; D), target; V))\n"
    "}\n"
    "plan p { }\n";

/* The block that looks up can make its largest value again for no FLOPs. */
static const char lookup_text[] =
    "use \"std.cola\"\n"
    "dim B = 256, V = 11, D = 16, F = 128\n"
    "block look(tokens: int[B] below V) -> [B,D] {\n"
    "    param table: [V -> F] ~ normal(0.1)\n"
    "    param down: [F -> D] ~ normal(0.1)\n"
    "    return dot(table[tokens], down; F)\n"
    "}\n"
    "block part(x: [B,D]) -> [B,D] {\n"
    "    param up: [D -> F] ~ normal(0.1)\n"
    "    param down: [F -> D] ~ normal(0.1)\n"
    "    return x + dot(dot(x, up; D), down; F)\n"
    "}\n"
    "model lookup {\n"
    "    input token: int[B] below V\n"
    "    input target: int[B] below V next 1\n"
    "    param head: [D -> V] ~ normal(0.1)\n"
    "    x = look(token)\n"
    "    for i in 2 { x = part(x) }\n"
    "    minimize mean(cross_entropy(dot(x, head; D), target; V))\n"
    "}\n"
    "plan p { }\n";

/* The largest excess of FLOPs over the least, as a share of a step, over bounds that lie
 * everywhere between the least peak and the largest. */
static double measure_excess(const Case *c, bool thin, bool *exhaustive) {
    Force f = brute_force(c, thin);
    int64_t least = INT64_MAX, most = 0;
    for (int64_t i = 0; i < f.planned.count; i++) {
        least = f.planned.data[i].peak < least ? f.planned.data[i].peak : least;
        most = f.planned.data[i].peak > most ? f.planned.data[i].peak : most;
    }
    double worst = 0, sum = 0;
    int64_t rungs = 0;
    int refused = 0, bounds = 12 + 2 * budgets_wanted();
    *exhaustive = true;
    for (int i = 0; i <= bounds; i++) {
        int64_t bound = least + (most - least) * i / bounds;
        Outcome outcome = compile_case(c, bound);
        *exhaustive &= outcome.report.exhaustive;
        rungs = outcome.report.rungs;
        if (!outcome.fits) {
            refused++;
            continue;
        }
        expect_outcome(&outcome, bound);
        double excess = (outcome.clone_flops - least_flops(&f, bound)) / f.step_flops;
        assert_true(thin || excess > -1e-12); /* or the force is not brute enough */
        worst = excess > worst ? excess : worst;
        sum += excess;
    }
    printf("  %lld assignments planned, %s ladder of %lld rungs: %d of %d bounds refused; "
           "excess %.3f%% of a "
           "step on average, %.3f%% at most\n",
           (long long)f.planned.count, *exhaustive ? "whole" : "partial", (long long)rungs,
           refused, bounds + 1, 100 * sum / (bounds + 1 - refused), 100 * worst);
    array_free(&f.planned);
    if (*exhaustive)
        assert_int_equal(refused, 0);
    return worst;
}

static void whole_ladders_have_no_excess(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_text(layers_text, path);
    Case c = {path, "p", "", {{"L", "1"}}, 1};
    for (int layers = 1; layers <= 2; layers++) {
        bool exhaustive;
        c.defines[0].value = layers == 1 ? "1" : "2";
        double excess = measure_excess(&c, false, &exhaustive);
        assert_true(exhaustive);
        assert_true(excess == 0);
    }
    unlink(path);
}

static void what_costs_no_flops_is_made_again(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_text(lookup_text, path);
    Case c = {path, "p", "", {{"B", "512"}}, 1};
    bool exhaustive;
    double excess = measure_excess(&c, false, &exhaustive);
    assert_true(exhaustive);
    assert_true(excess == 0);
    unlink(path);
}

static void partial_ladders_have_little(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_text(layers_text, path);
    Case c = {path, "p", "", {{"L", "4"}, {"steep", "1"}}, 2};
    bool exhaustive;
    double excess = measure_excess(&c, false, &exhaustive);
    assert_false(exhaustive);
    assert_true(excess < 0.01);
    if (getenv("COLAC_FUZZ")) { /* more layers than all assignments are planned of: a chain */
        c.defines[0].value = "7";
        excess = measure_excess(&c, true, &exhaustive);
        assert_true(excess < 0.01);
    }
    unlink(path);
}

/* ---- directives beside it ---------------------------------------------------------------------- */

static void directives_are_obeyed(void **state) {
    (void)state;
    Case c = {"models/mlp.cola",
              "cola",
              "recompute hidden[0], hidden[1] keep **.pre",
              {{"L", "6"}},
              1};
    Outcome unbound = compile_case(&c, 0);
    assert_true(unbound.clones_watched > 0 && unbound.clones == unbound.clones_watched);
    int64_t least = least_peak(&c);
    for (int i = 0; i <= 4; i++) {
        int64_t bound = least + (unbound.peak - least) * i / 4;
        Outcome outcome = compile_case(&c, bound);
        assert_true(outcome.fits && outcome.peak <= bound);
        assert_int_equal(outcome.clones_watched, unbound.clones_watched);
        assert_true(outcome.watched_hash == unbound.watched_hash);
        assert_true(i > 0 || outcome.clones > outcome.clones_watched);
    }
    c.recompute = "recompute hidden[*], first, head keep **.pre";
    unbound = compile_case(&c, 0);
    Outcome fits = compile_case(&c, unbound.peak), refused = compile_case(&c, unbound.peak - 1);
    assert_true(fits.fits && fits.text_hash == unbound.text_hash);
    assert_false(refused.fits);
    assert_non_null(strstr(refused.said, "there is nothing to choose"));
}

/* ---- long ones ---------------------------------------------------------------------------------- */

static void compile_long(const char *blocks, const char *calls, const char *size, bool fits) {
    char text[2048], path[PATH_SIZE];
    snprintf(text, sizeof text,
             "use \"std.cola\"\ndim B = 4, S = 2, V = 16, N = 32, M = N, L = 1\n"
             "%s\nmodel long {\n    input c: int[B,S] below V\n"
             "    input t: int[B,S] below V next S\n    param embed: [V -> N] ~ normal(1)\n"
             "    z = embed[c]\n%s\n    logits = head: linear(x; N -> V; 1)\n"
             "    minimize mean(cross_entropy(logits, t; V))\n}\nplan full { }\n",
             blocks, calls);
    write_text(text, path);
    Case c = {path, "full", "", {{"L", size}}, 1};
    int64_t least = least_peak(&c);
    Outcome outcome = compile_case(&c, fits ? least : 1);
    assert_int_equal(outcome.fits, fits);
    unlink(path);
}

/* One block of thousands of values, and as many blocks: a kernel that reads thousands of
 * operands is looked at once, not once an operand and result; a refusal finds names as fast as
 * values. */
static void long_blocks_take_seconds(void **state) {
    (void)state;
    alarm(120); /* seconds where they were minutes: far from both */
    compile_long("block b(y: [B,S,N]) -> [B,S,N] {\n    x = linear(y; N -> M; 1)[M as N]\n"
                 "    for i in L { x = tanh(x * x + y) }\n    return x\n}",
                 "    x = b(z)", "3000", true);
    alarm(120);
    compile_long("block b(y: [B,S,N]) -> [B,S,N] {\n    a = tanh(y)\n    b = exp(a)\n"
                 "    return y + a * b\n}",
                 "    x = z\n    for i in L { x = b(x) }", "8000", false);
    alarm(0);
}

static void sizes_that_no_memory_holds(void **state) {
    (void)state;
    Case c = {"models/mlp.cola", "full", "", {{"B", "1073741824"}, {"N", "134217728"}}, 2};
    Outcome outcome = compile_case(&c, 1024);
    assert_false(outcome.fits);
    assert_non_null(strstr(outcome.said, "does not fit in an address space of 64 bits"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_that_no_memory_holds),
        cmocka_unit_test(closures_are_least),
        cmocka_unit_test(whole_ladders_have_no_excess),
        cmocka_unit_test(what_costs_no_flops_is_made_again),
        cmocka_unit_test(partial_ladders_have_little),
        cmocka_unit_test(directives_are_obeyed),
        cmocka_unit_test(long_blocks_take_seconds),
        cmocka_unit_test(bounds_of_shipped_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
