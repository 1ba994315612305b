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
    char said[4096]; /* diagnostics */
} Outcome;

static char *write_text(const char *text) {
    static char paths[4][40];
    static int next;
    char *path = paths[next++ % 4];
    strcpy(path, "/tmp/colac_budget_XXXXXX");
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), (ssize_t)strlen(text));
    close(file);
    return path;
}

static void read_diagnostics(Diagnostics *diagnostics, char *to, size_t size) {
    FILE *stream = fmemopen(to, size, "w");
    assert_non_null(stream);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
}

/* Bound 0: the plan without a bound. */
static Outcome compile_case(const Case *c, int64_t bound) {
    char folder[1024], text[2048], plan[64], number[32];
    assert_non_null(getcwd(folder, sizeof folder));
    bool here = c->model[0] != '/';
    snprintf(text, sizeof text, "use \"%s%s%s\"\nplan fit extends %s {\n%s\n%s\n}\n",
             here ? folder : "", here ? "/" : "", c->model, c->plan, c->recompute,
             bound ? "dim BOUND = 1\nmemory BOUND" : "");
    char *path = write_text(text);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(closures_are_least),
        cmocka_unit_test(bounds_of_shipped_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
