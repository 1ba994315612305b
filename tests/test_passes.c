/* Passes: golden tests from text, one behaviour each; values before and after a pass, bit for
 * bit.
 *
 *   tests/golden/passes/PASS/NAME.ir      a module, on which PASS alone runs
 *   tests/golden/passes/PASS/NAME.cola    a model, of which plan `p` and recipe `r`, where
 * there are such, are compiled up to PASS tests/golden/passes/PASS/NAME.expect  the module's
 * text afterwards, or the diagnostics
 *
 * GOLDEN=write rewrites the expectations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>

#include "passes/passes.h"
#include "tests/graph_fuzz.h"

/* ---- golden tests ------------------------------------------------------------------- */

static bool ends_with(const char *name, const char *suffix) {
    size_t length = strlen(name), tail = strlen(suffix);
    return length > tail && strcmp(name + length - tail, suffix) == 0;
}

static void print_diagnostics(Diagnostics *diagnostics, Text *out) {
    char *printed = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&printed, &length);
    assert_non_null(stream);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    text_append(out, printed, length);
    free(printed);
}

/* Leaves out the functions that the test is not about. */
static void keep_only(const char *source, Text *text) {
    static const char mark[] = "# only ";
    const char *asked = strstr(source, mark);
    if (!asked)
        return;
    asked += sizeof mark - 1;
    size_t length = strcspn(asked, "\n");
    Text kept = {0};
    bool keep = true;
    for (const char *line = text_string(text); *line;) {
        size_t size = strcspn(line, "\n") + 1;
        if (strncmp(line, "function ", 9) == 0)
            keep = strncmp(line + 9, asked, length) == 0 && line[9 + length] == '(';
        if (keep)
            text_append(&kept, line, size);
        keep |= strncmp(line, "}\n", 2) == 0;
        line += size;
    }
    text_free(text);
    *text = kept;
}

/* Runs one pass on a module's text. */
static void run_on_ir(const char *pass, const Source *source, Diagnostics *diagnostics,
                      Text *out) {
    Stage stage;
    Module *module = ir_parse(source, diagnostics, &stage);
    if (!module)
        return;
    PassContext context = {.module = module, .diagnostics = diagnostics, .for_training = true};
    if (run_named_passes(&context, pass, &stage)) {
        assert_null(ir_verify(context.module, stage));
        ir_print(context.module, stage, out);
    }
    module_free(context.module);
}

/* Compiles a model up to a pass.  Diagnostics point into its texts, so they are printed first.
 */
static void run_on_model(const char *pass, const Source *source, const char *path,
                         Diagnostics *diagnostics, Text *out) {
    Request request = {.path = path,
                       .plan = strstr(source->text, "plan p") ? "p" : NULL,
                       .recipe = strstr(source->text, "recipe r") ? "r" : NULL};
    Compilation *compilation = compile_model(&request, diagnostics);
    if (!compilation)
        return;
    PassContext context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .for_training = true};
    if (run_passes(&context, pass, NULL)) {
        Stage stage = STAGE_GRAPH;
        for (int i = 0; i < pass_count; i++)
            if (strcmp(pass_list[i].name, pass) == 0)
                stage = pass_list[i].gives;
        assert_null(ir_verify(context.module, stage));
        ir_print(context.module, stage, out);
        keep_only(source->text, out);
    }
    print_diagnostics(diagnostics, out);
    compilation_free(compilation);
}

/* True when the text is what the file holds; with GOLDEN=write it then is. */
static bool matches_golden(const char *path, const Text *text) {
    const char *mode = getenv("GOLDEN");
    if (mode && strcmp(mode, "write") == 0) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fwrite(text_string(text), 1, text->length, file);
        assert_int_equal(fclose(file), 0);
        return true;
    }
    size_t length;
    char *expected = read_file(path, 1 << 24, &length);
    bool same = expected && strcmp(expected, text_string(text)) == 0;
    if (!same)
        printf("%s: expected\n%s\nbut got\n%s\n", path, expected ? expected : "(no file)",
               text_string(text)); /* cmocka cuts long messages */
    free(expected);
    return same;
}

static bool run_golden(const char *pass, const char *name) {
    char path[512], expect[512];
    snprintf(path, sizeof path, "tests/golden/passes/%s/%s", pass, name);
    snprintf(expect, sizeof expect, "%.*s.expect", (int)(strrchr(path, '.') - path), path);
    Source source = {.name = name};
    char *text = read_file(path, 1 << 24, &source.length);
    assert_non_null(text);
    source.text = text;
    Diagnostics *diagnostics = diagnostics_new();
    Text out = {0};
    if (ends_with(name, ".ir"))
        run_on_ir(pass, &source, diagnostics, &out);
    else
        run_on_model(pass, &source, path, diagnostics, &out);
    print_diagnostics(diagnostics, &out);
    bool same = matches_golden(expect, &out);
    diagnostics_free(diagnostics);
    text_free(&out);
    free(text);
    return same;
}

static void golden_files(void **state) {
    (void)state;
    int ran = 0, failed = 0;
    for (int i = 0; i < pass_count; i++) {
        char folder[256];
        snprintf(folder, sizeof folder, "tests/golden/passes/%s", pass_list[i].name);
        struct dirent **entries;
        int count = scandir(folder, &entries, NULL, alphasort);
        for (int j = 0; j < count; j++) {
            const char *name = entries[j]->d_name;
            if (ends_with(name, ".ir") || ends_with(name, ".cola")) {
                failed += !run_golden(pass_list[i].name, name);
                ran++;
            }
            free(entries[j]);
        }
        if (count >= 0)
            free(entries);
    }
    assert_int_equal(failed, 0);
    assert_true(ran > 20);
}

/* ---- values stay what they were ----------------------------------------------------- */

static const double scalars[] = {3, 7, 11}; /* step, seed, sample0 of fuzzed modules */

/* Runs `init` (where there is one) and `micro`; the states afterwards, read by path. */
static Interp *run_micro(const Module *module, bool round) {
    Interp *interp = interp_new(module);
    int32_t *inputs[2] = {fuzz_input(module, 0, 5), fuzz_input(module, 1, 5)};
    for (int i = 0; i < 2; i++)
        interp_set_input(interp, i, inputs[i]);
    interp_set_round(interp, round);
    fuzz_fill_weights(interp, module, 1);
    const Function *init = module_find_function(module, "init");
    if (init)
        interp_run(interp, init, NULL, false);
    interp_run(interp, module_find_function(module, "micro"), scalars, false);
    for (int i = 0; i < 2; i++)
        free(inputs[i]);
    return interp;
}

/* Every gradient and metric of both modules has the same bits (a NaN is a NaN). */
static bool states_equal(const Module *before, Interp *a, const Module *after, Interp *b) {
    for (StateId id = 0; id < before->states.count; id++) {
        const State *state = &before->states.data[id];
        StateId other = module_find_state(after, state->path, state->role, state->number);
        assert_true(other >= 0);
        const double *x = interp_state(a, id), *y = interp_state(b, other);
        int64_t count = type_elements(before, state_type(state));
        for (int64_t i = 0; i < count; i++)
            if (memcmp(&x[i], &y[i], sizeof *x) != 0 && !(isnan(x[i]) && isnan(y[i]))) {
                print_error("%s %s[%lld]: %.17g before, %.17g after\n", role_name(state->role),
                            state->path, (long long)i, x[i], y[i]);
                return false;
            }
    }
    return true;
}

static Module *fuzz_with_gradients(uint64_t seed) {
    Module *module = fuzz_module(seed, 40);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics};
    assert_true(pass_autodiff(&context));
    assert_int_equal(diagnostics_errors(diagnostics), 0);
    diagnostics_free(diagnostics);
    return module;
}

static int64_t node_count(const Module *module) {
    return module_find_function(module, "micro")->nodes.count;
}

/* Values that `micro` computes.  (Nodes may become more: a map that is computed before an
 * expand has an expand of its own.) */
static int64_t computed_values(const Module *module) {
    const Function *micro = module_find_function(module, "micro");
    int64_t values = 0;
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        const Node *node = node_at(micro, id);
        if (node_can_be_stored(node))
            values += type_elements(module, node->type);
    }
    return values;
}

/* Applies a pass to one of two equal fuzzed modules and compares all results. */
static void compare_fuzzed(uint64_t seed, bool (*pass)(PassContext *), bool round) {
    Module *before = fuzz_with_gradients(seed), *after = fuzz_with_gradients(seed);
    PassContext context = {.module = after};
    assert_true(pass(&context));
    const char *violation = ir_verify(after, STAGE_GRAPH);
    if (violation)
        fail_msg("seed %d: %s", (int)seed, violation);
    Interp *a = run_micro(before, round), *b = run_micro(after, round);
    if (!states_equal(before, a, after, b))
        fail_msg("seed %d", (int)seed);
    if (computed_values(after) > computed_values(before))
        fail_msg("seed %d: more is computed than before", (int)seed);
    interp_free(a);
    interp_free(b);
    module_free(before);
    module_free(after);
}

static int fuzz_count(void) {
    const char *asked = getenv("COLAC_FUZZ");
    return asked ? atoi(asked) / 100 + 60 : 60;
}

static void simplify_changes_no_bit(void **state) {
    (void)state;
    for (int seed = 0; seed < fuzz_count(); seed++) {
        compare_fuzzed((uint64_t)seed, pass_simplify, false);
        compare_fuzzed((uint64_t)seed, pass_simplify, true);
    }
}

/* In double alone: a table is rounded once, and not after every op that made it. */
static void tables_change_no_value(void **state) {
    (void)state;
    for (int seed = 0; seed < fuzz_count(); seed++)
        compare_fuzzed((uint64_t)seed, pass_tables, false);
}

/* What was simplified is not simplified further, but for what renaming by rules may uncover. */
static void simplify_reaches_an_end(void **state) {
    (void)state;
    for (int seed = 0; seed < 20; seed++) {
        Module *module = fuzz_with_gradients((uint64_t)seed);
        PassContext context = {.module = module};
        int64_t last = node_count(module), runs = 0;
        for (int64_t now = -1; now != last; runs++) {
            last = node_count(module);
            assert_true(pass_simplify(&context));
            now = node_count(module);
        }
        assert_true(runs <= 3);
        module_free(module);
    }
}

/* ---- folding of constants ----------------------------------------------------------- */

/* The loss of a module whose loss is op(a, b) of f32 constants, in f32 arithmetic by the
 * interpreter; and the number of nodes after simplify. */
static double loss_of_constants(Op op, double a, double b, bool round, bool simplify,
                                int64_t *nodes) {
    Module *module = module_new();
    Function *micro = module_function(module, "micro", 0, NULL);
    Builder builder_ = builder(micro);
    NodeId x = build_const(&builder_, TYPE_F32, a);
    NodeId y = build_const(&builder_, TYPE_F32, b);
    State metric = {
        .path = "loss_sum", .role = ROLE_METRIC, .dtype = TYPE_F32, .weight = -1, .offset = -1};
    Write write = {.add = false,
                   .value = op_info[op].arity == 1 ? build_1(&builder_, op, x)
                                                   : build_2(&builder_, op, x, y)};
    write.state = module_state(module, metric);
    array_push(&micro->writes, write);
    if (simplify)
        assert_true(pass_simplify(&(PassContext){.module = module}));
    micro = module_find_function(module, "micro");
    *nodes = micro->nodes.count;
    Interp *interp = interp_new(module);
    interp_set_round(interp, round);
    interp_run(interp, micro, NULL, false);
    double loss = interp_state(interp, write.state)[0];
    interp_free(interp);
    module_free(module);
    return loss;
}

static void folding_is_exact_in_both_arithmetics(void **state) {
    (void)state;
    static const double numbers[] = {0,    -0.0, 1,     -1,     0.1,      3,        1e-30,
                                     1e30, 7e37, 1e-40, 1. / 3, 16777217, INFINITY, NAN};
    static const Op ops[] = {OP_NEG, OP_ADD, OP_SUB,  OP_MUL, OP_DIV,     OP_MAXIMUM,
                             OP_EXP, OP_MOD, OP_SQRT, OP_ABS, OP_MINIMUM, OP_FLOOR};
    int64_t folded = 0, kept = 0;
    for (int i = 0; i < COUNT_OF(ops); i++)
        for (int j = 0; j < COUNT_OF(numbers); j++)
            for (int k = 0; k < COUNT_OF(numbers); k++)
                for (int round = 0; round < 2; round++) {
                    int64_t nodes, before;
                    double x = loss_of_constants(ops[i], numbers[j], numbers[k], round, false,
                                                 &before);
                    double y =
                        loss_of_constants(ops[i], numbers[j], numbers[k], round, true, &nodes);
                    if (memcmp(&x, &y, sizeof x) != 0 && !(isnan(x) && isnan(y)))
                        fail_msg("%s(%g, %g): %.17g, folded %.17g", op_info[ops[i]].name,
                                 numbers[j], numbers[k], x, y);
                    *(nodes == 1 ? &folded : &kept) += 1;
                }
    assert_true(folded > 3 * kept); /* most are folded, and some cannot be */
    assert_true(kept > 0);
}

/* ---- one step of a small model ------------------------------------------------------ */

typedef struct Model {
    Diagnostics *diagnostics;
    Compilation *compilation;
    Module *module;
} Model;

static Model compile_text(const Request *request, bool for_training) {
    Model model = {.diagnostics = diagnostics_new()};
    model.compilation = compile_model(request, model.diagnostics);
    assert_non_null(model.compilation);
    PassContext context = {.module = model.compilation->module,
                           .compilation = model.compilation,
                           .diagnostics = model.diagnostics,
                           .for_training = for_training};
    assert_true(run_passes(&context, "clean", NULL));
    model.module = context.module;
    assert_null(ir_verify(model.module, STAGE_GRAPH));
    return model;
}

static void model_free(Model *model) {
    compilation_free(model->compilation);
    diagnostics_free(model->diagnostics);
}

static double *state_values(Interp *interp, const Model *model, const char *path, Role role) {
    StateId state = module_find_state(model->module, path, role, 0);
    assert_true(state >= 0);
    return interp_state(interp, state);
}

static double read_metric(Interp *interp, const Model *model, const char *path) {
    return *state_values(interp, model, path, ROLE_METRIC);
}

/* Three micro-batches, then an update, then one without any micro-batch. */
static void update_follows_its_formulas(void **state) {
    (void)state;
    Request request = {.path = "tests/golden/passes/update/observed_means.cola", .recipe = "r"};
    Model model = compile_text(&request, true);
    Interp *interp = interp_new(model.module);
    fuzz_fill_weights(interp, model.module, 1);
    int32_t *tokens = fuzz_input(model.module, 0, 5);
    interp_set_input(interp, 0, tokens);
    const double micro_scalars[] = {1, 0, 0}, update_scalars[] = {1, 0.25, 3};
    for (int i = 0; i < 3; i++)
        interp_run(interp, module_find_function(model.module, "micro"), micro_scalars, false);
    enum { ELEMENTS = 4 * 5, TARGETS = 2 * 3 * 5 };
    double *w = state_values(interp, &model, "w", ROLE_WEIGHT);
    double *g = state_values(interp, &model, "w", ROLE_GRADIENT);
    double *e = state_values(interp, &model, "embed", ROLE_GRADIENT);
    double expected[ELEMENTS], squares = 0, mean = 0;
    for (int i = 0; i < ELEMENTS; i++) {
        expected[i] = w[i] - 0.25 * g[i] / (3 * TARGETS);
        squares += g[i] * g[i];
        mean += w[i] * w[i] / ELEMENTS;
    }
    for (int i = 0; i < 7 * 4; i++)
        squares += e[i] * e[i];
    double loss = read_metric(interp, &model, "loss_sum") / (3 * TARGETS);
    for (int update = 0; update < 2; update++) {
        interp_run(interp, module_find_function(model.module, "update"), update_scalars, false);
        double norm = update ? 0 : sqrt(squares) / (3 * TARGETS);
        assert_true(fabs(read_metric(interp, &model, "loss") - (update ? 0 : loss)) < 1e-14);
        assert_true(fabs(read_metric(interp, &model, "grad_norm") - norm) < 1e-14);
        assert_true(fabs(read_metric(interp, &model, "observed.size") - (update ? 0 : mean)) <
                    1e-14);
        for (int i = 0; i < ELEMENTS; i++)
            assert_true(fabs(w[i] - expected[i]) < 1e-14 && g[i] == 0);
        assert_true(read_metric(interp, &model, "loss_sum") == 0);
        assert_true(read_metric(interp, &model, "weight_sum") == 0);
    }
    free(tokens);
    interp_free(interp);
    model_free(&model);
}

static void without_training_there_is_eval_alone(void **state) {
    (void)state;
    Request request = {.path = "tests/golden/passes/update/observed_means.cola", .recipe = "r"};
    Model model = compile_text(&request, false);
    assert_int_equal(model.module->functions.count, 1);
    assert_string_equal(model.module->functions.data[0]->name, "eval");
    assert_int_equal(model.module->functions.data[0]->writes.count, 2);
    for (int64_t i = 0; i < model.module->states.count; i++) {
        assert_true(model.module->states.data[i].role != ROLE_GRADIENT);
        assert_true(model.module->states.data[i].offset >= 0);
    }
    model_free(&model);
}

/* The paper's counts (forward and backward, a block and a token, n positions): full rank
 * 24 d² + 12 n d + 18 d f, CoLA 48 d r + 12 n d + 18 r (d + f); the head is whole: 6 d v. */
static void flops_are_those_of_the_paper(void **state) {
    (void)state;
    static const struct {
        const char *preset;
        double d, f, r, layers;
    } of[] = {{"60m", 512, 1376, 128, 8},
              {"130m", 768, 2048, 256, 12},
              {"350m", 1024, 2736, 256, 24},
              {"7b", 4096, 11008, 1024, 32}};
    for (int i = 0; i < 2 * COUNT_OF(of); i++) {
        double d = of[i / 2].d, f = of[i / 2].f, r = of[i / 2].r, n = 256;
        bool low = i % 2;
        Request request = {.path = "models/llama.cola",
                           .preset = of[i / 2].preset,
                           .plan = low ? "cola" : NULL};
        Model model = compile_text(&request, true);
        const Compilation *c = model.compilation;
        FlopTable table = flop_table(model.module, c->sequences * c->positions);
        double block = low ? 48 * d * r + 18 * r * (d + f) : 24 * d * d + 18 * d * f;
        double expected = of[i / 2].layers * (block + 12 * n * d);
        assert_true(fabs(table.forward + table.backward - expected) < 1e-9 * expected);
        assert_true(fabs(2 * table.forward - table.backward) < 1e-9 * expected);
        assert_true(fabs(table.head - 6 * d * 32000) < 1);
        assert_true(table.executed > expected + table.head && table.recompute == 0);
        model_free(&model);
    }
}

/* ---- the pipeline ------------------------------------------------------------------- */

static void names_of_passes_are_checked(void **state) {
    (void)state;
    Module *module = fuzz_module(1, 10);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics};
    Stage stage = STAGE_GRAPH;
    assert_false(run_named_passes(&context, "simplfy", &stage));
    assert_false(run_named_passes(&context, "simplify,factorize", &stage));
    assert_false(run_named_passes(&context, "fuse", &stage));
    Text text = {0};
    print_diagnostics(diagnostics, &text);
    assert_non_null(strstr(text_string(&text), "did you mean `simplify`?"));
    assert_non_null(
        strstr(text_string(&text), "pass `factorize`: it asks for a model's plan and recipe"));
    assert_non_null(
        strstr(text_string(&text), "pass `fuse`: it takes a module at stage layout"));
    assert_int_equal(stage, STAGE_GRAPH);
    text_free(&text);
    diagnostics_free(diagnostics);
    module_free(module);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_files),
        cmocka_unit_test(simplify_changes_no_bit),
        cmocka_unit_test(tables_change_no_value),
        cmocka_unit_test(simplify_reaches_an_end),
        cmocka_unit_test(folding_is_exact_in_both_arithmetics),
        cmocka_unit_test(update_follows_its_formulas),
        cmocka_unit_test(without_training_there_is_eval_alone),
        cmocka_unit_test(flops_are_those_of_the_paper),
        cmocka_unit_test(names_of_passes_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
