/* From text to graph: parameters, paths, types, precedence of compile-time values; and what is
 * said of bad texts: tests/golden/expand/NAME.cola (whose first line may give `# args: …`) with
 * NAME.expect, which GOLDEN=write rewrites. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "frontend/frontend.h"
#include "passes/passes.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FOLDER "tests/golden/expand/"

static void assert_near(double got, double wanted, double tolerance) {
    if (!(fabs(got - wanted) <= tolerance))
        fail_msg("%.17g is not %.17g within %g", got, wanted, tolerance);
}

/* ---- compiling ----------------------------------------------------------------------- */

enum { MAX_DEFINES = 8, MAX_WORDS = 40 };

typedef struct Compiled {
    Diagnostics *diagnostics;
    Compilation *compilation;
    char *words;
} Compiled;

/* Splits `--plan p -D X=3` in place. */
static Request parse_words(const char *path, char *words, Define *defines) {
    Request request = {.path = path, .defines = defines};
    char *save = NULL;
    for (char *word = strtok_r(words, " \n", &save); word;
         word = strtok_r(NULL, " \n", &save)) {
        char *value = strtok_r(NULL, " \n", &save);
        assert_non_null(value);
        if (strcmp(word, "--plan") == 0)
            request.plan = value;
        else if (strcmp(word, "--preset") == 0)
            request.preset = value;
        else if (strcmp(word, "--recipe") == 0)
            request.recipe = value;
        else {
            assert_string_equal(word, "-D");
            char *equals = strchr(value, '=');
            assert_non_null(equals);
            *equals = 0;
            assert_true(request.define_count < MAX_DEFINES);
            defines[request.define_count++] = (Define){value, equals + 1};
        }
    }
    return request;
}

static Compiled compile_words(const char *path, const char *words) {
    Compiled made = {diagnostics_new(), NULL, strdup(words)};
    Define defines[MAX_DEFINES];
    Request request = parse_words(path, made.words, defines);
    made.compilation = compile_model(&request, made.diagnostics);
    return made;
}

static Compiled compile_fine(const char *path, const char *words) {
    Compiled made = compile_words(path, words);
    diagnostics_print(made.diagnostics, stdout);
    assert_non_null(made.compilation);
    const char *fault = ir_verify(made.compilation->module, STAGE_GRAPH);
    if (fault)
        fail_msg("%s", fault);
    return made;
}

static void compiled_free(Compiled *made) {
    compilation_free(made->compilation);
    diagnostics_free(made->diagnostics);
    free(made->words);
}

/* A text in a file of its own. */
static Compiled compile_text(const char *text, const char *words) {
    char path[] = "/tmp/colac_expand_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), (ssize_t)strlen(text));
    close(file);
    Compiled made = compile_fine(path, words);
    unlink(path);
    return made;
}

static int64_t elements(const Module *module, const State *state) {
    return axes_elements(module, state->in, state->in_count) *
           axes_elements(module, state->out, state->out_count);
}

static int64_t parameters(const Module *module, bool low_rank) {
    int64_t total = 0;
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        if (state->role == ROLE_WEIGHT && (!low_rank || state->low_rank))
            total += elements(module, state);
    }
    return total;
}

static const State *weight(const Compiled *made, const char *path) {
    StateId id = module_find_state(made->compilation->module, path, ROLE_WEIGHT, 0);
    if (id < 0)
        fail_msg("there is no parameter %s", path);
    return &made->compilation->module->states.data[id];
}

/* The type of the value of that name in the scope of that path, as text without the dtype. */
static char *type_of_value(const Compiled *made, const char *scope, const char *name) {
    const Module *module = made->compilation->module;
    const Function *micro = module_find_function(module, "micro");
    for (int64_t i = 0; i < micro->nodes.count; i++) {
        const Node *node = &micro->nodes.data[i];
        if (node->name && strcmp(node->name, name) == 0 &&
            strcmp(module->scopes.data[node->scope].path, scope) == 0)
            return type_text(module, node->type, module->arena);
    }
    fail_msg("no value is named %s in %s", name, scope);
    return NULL;
}

/* ---- the paper's table --------------------------------------------------------------- */

static void test_parameters_of_every_size(void **state) {
    (void)state;
    /* cola.md: CoLA's paper and released configurations */
    static const struct {
        const char *preset;
        double full, cola, low_rank; /* millions */
    } sizes[] = {{"60m", 58.07, 42.77, 9.99},
                 {"130m", 134.11, 94.00, 44.83},
                 {"350m", 367.97, 185.22, 119.64},
                 {"1b", 1339.08, 609.31, 478.14},
                 {"7b", 6738.42, 2820.94, 2558.53}};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        char words[100];
        snprintf(words, sizeof words, "--recipe paper --preset %s --plan full",
                 sizes[i].preset);
        Compiled made = compile_fine("models/llama.cola", words);
        assert_near(parameters(made.compilation->module, false) / 1e6, sizes[i].full, 0.00501);
        compiled_free(&made);
        snprintf(words, sizeof words, "--recipe paper --preset %s --plan cola",
                 sizes[i].preset);
        made = compile_fine("models/llama.cola", words);
        PassContext context = {.module = made.compilation->module,
                               .compilation = made.compilation,
                               .diagnostics = made.diagnostics};
        assert_true(pass_factorize(&context));
        assert_near(parameters(context.module, false) / 1e6, sizes[i].cola, 0.00501);
        assert_near(parameters(context.module, true) / 1e6, sizes[i].low_rank, 0.00501);
        compiled_free(&made);
    }
}

static void test_parameters_exactly(void **state) {
    (void)state;
    static const struct {
        const char *model, *words;
        int64_t count;
    } cases[] = {
        {"models/llama.cola", "--preset 60m", 58073600},
        {"models/llama.cola", "", 58073600},
        {"models/gpt2.cola", "--preset 124m", 124439808}, /* as published */
        {"models/gpt2.cola", "--preset 355m", 354823168},
        {"models/gpt2.cola", "--preset 774m", 774030080},
        {"models/gpt2.cola", "--preset 1558m", 1557611200},
        /* V·E + (C·E + 1)·N + L·(N + 1)·N + (N + 1)·V */
        {"models/mlp.cola", "", 256 * 32 + 513 * 256 + 2 * 257 * 256 + 257 * 256},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Compiled made = compile_fine(cases[i].model, cases[i].words);
        assert_int_equal(parameters(made.compilation->module, false), cases[i].count);
        compiled_free(&made);
    }
}

/* ---- paths and types ----------------------------------------------------------------- */

static void test_paths(void **state) {
    (void)state;
    static const char *const paths[] = {"embed",
                                        "head",
                                        "layer[0].attn.wq",
                                        "layer[7].attn.wo",
                                        "layer[3].ffn.gate",
                                        "layer[3].attn_norm.gain",
                                        "layer[3].ffn_norm.gain",
                                        "final_norm.gain"};
    Compiled made = compile_fine("models/llama.cola", "");
    for (int i = 0; i < COUNT_OF(paths); i++)
        weight(&made, paths[i]);
    const State *wo = weight(&made, "layer[0].attn.wo");
    assert_int_equal(wo->in_count, 2);
    assert_int_equal(wo->out_count, 1);
    assert_string_equal(made.compilation->module->axes.data[wo->in[0]].name, "H");
    assert_string_equal(made.compilation->module->axes.data[wo->out[0]].name, "D");
    assert_int_equal(made.compilation->sequences, 8);
    assert_int_equal(made.compilation->positions, 256);
    compiled_free(&made);
}

/* A layer written by hand has the paths that `factorize` gives. */
static void test_paths_by_hand(void **state) {
    (void)state;
    Compiled made =
        compile_text("use \"std.cola\"\n"
                     "dim B = 2, V = 4, D = 4, F = 8, R = 2\n"
                     "block ffn(x: [B,D]) -> [B,F] { return up: cola(x; D -> F; R) }\n"
                     "model m {\n"
                     "    input tokens: int[B] below V\n"
                     "    param embed: [V -> D] ~ normal(1)\n"
                     "    x = embed[tokens]\n"
                     "    for i in 2 { x = x + sum(ffn(x); F) }\n"
                     "    minimize mean(x)\n"
                     "}\n"
                     "plan p { recompute ffn[*] keep **.low }\n",
                     "--plan p");
    assert_int_equal(elements(made.compilation->module, weight(&made, "ffn[1].up.A")), 8);
    assert_int_equal(elements(made.compilation->module, weight(&made, "ffn[0].up.B")), 16);
    assert_string_equal(type_of_value(&made, "ffn[0].up", "low"), "f32[B,R]");
    assert_string_equal(type_of_value(&made, "ffn[0].up", "out"), "f32[B,F]");
    assert_int_equal(made.compilation->recompute_count, 1);
    compiled_free(&made);
}

static void test_types_of_values(void **state) {
    (void)state;
    Compiled made = compile_fine("models/llama.cola", "-D J=2");
    assert_string_equal(type_of_value(&made, "layer[1]", "mid"), "f32[B,S,D]");
    assert_string_equal(type_of_value(&made, "layer[1].attn", "s"), "f32[B,S,J,G,T]");
    assert_string_equal(type_of_value(&made, "layer[1].ffn", "g"), "f32[B,S,F]");
    assert_string_equal(type_of_value(&made, "", "logits"), "f32[B,S,V]");
    compiled_free(&made);
}

static void test_ordinals_repeat(void **state) {
    (void)state;
    Compiled made = compile_fine("models/llama.cola", "");
    const Module *module = made.compilation->module;
    const Function *micro = module_find_function(module, "micro");
    int32_t ordinal = -1;
    int found = 0;
    for (int64_t i = 0; i < micro->nodes.count; i++) {
        const Node *node = &micro->nodes.data[i];
        if (!node->name || strcmp(node->name, "mid") != 0)
            continue;
        assert_true(ordinal < 0 || node->ordinal == ordinal);
        ordinal = node->ordinal;
        found++;
    }
    assert_int_equal(found, 8);
    compiled_free(&made);
}

/* ---- voices -------------------------------------------------------------------------- */

static const char *const voices_text =
    "dim B = 1, V = 2, N = 3\n"
    "preset big { N = 5 }\n"
    "optimizer descent(p, g; lr = 1, decay = 0) { next p = p - lr * g }\n"
    "model m {\n"
    "    input tokens: int[B] below V\n"
    "    param embed: [V -> N] ~ normal(1)\n"
    "    minimize mean(embed[tokens])\n"
    "}\n"
    "plan seven { set N = 7 }\n"
    "plan nine { dim R = 9\n preset big { R = 11 }\n set N = R }\n"
    "plan anew extends nine { dim R = 13 }\n"
    "recipe r { preset big { lr = 0.25, steps = 50 }\n optimizer descent(lr = 0.5)\n steps 20 "
    "}\n"
    "recipe s extends r { steps 30 }\n";

static int64_t width(const char *words) {
    Compiled made = compile_text(voices_text, words);
    const State *embed = weight(&made, "embed");
    int64_t size = made.compilation->module->axes.data[embed->out[0]].size;
    compiled_free(&made);
    return size;
}

static void test_precedence(void **state) {
    (void)state;
    assert_int_equal(width(""), 3);
    assert_int_equal(width("--preset big"), 5);
    assert_int_equal(width("--plan seven"), 7);
    assert_int_equal(width("--plan seven --preset big"), 7);
    assert_int_equal(width("--plan seven --preset big -D N=4"), 4);
    assert_int_equal(width("--plan nine"), 9);
    assert_int_equal(width("--plan nine --preset big"), 11);
    assert_int_equal(width("--plan nine --preset big -D R=6"), 6);
    assert_int_equal(width("--plan anew --preset big"), 13); /* presets of the old R are gone */
    assert_int_equal(width("-D N=V^3+1"), 9);
}

static void check_recipe(const char *words, double rate, int64_t steps) {
    Compiled made = compile_text(voices_text, words);
    assert_near(made.compilation->recipe.groups[0].rate, rate, 0);
    assert_int_equal(made.compilation->recipe.steps, steps);
    compiled_free(&made);
}

static void test_recipe_values(void **state) {
    (void)state;
    check_recipe("--recipe r", 0.5, 20);
    check_recipe("--recipe r --preset big", 0.25, 50);
    check_recipe("--recipe s", 0.5, 30);
    check_recipe("--recipe r --preset big -D lr=1e-3 -D steps=7", 1e-3, 7);
    Compiled made = compile_fine("models/llama.cola", "--recipe paper --preset 130m");
    const Recipe *recipe = &made.compilation->recipe;
    assert_near(recipe->groups[0].rate, 3e-3, 0);
    assert_int_equal(recipe->steps, 20000);
    assert_int_equal(recipe->warmup, 2000);
    assert_int_equal(recipe->batch, 512);
    assert_near(recipe->clip, 0.5, 0);
    assert_near(recipe->final_share, 0.1, 0);
    assert_int_equal(recipe->schedule, RATE_COSINE);
    compiled_free(&made);
    made = compile_fine("models/llama.cola", "");
    recipe = &made.compilation->recipe;
    assert_near(recipe->groups[0].rate, 1e-3, 0);
    assert_int_equal(recipe->batch, 8);
    assert_near(recipe->clip, 0, 0);
    assert_int_equal(recipe->schedule, RATE_CONSTANT);
    assert_true(optimizer_is_elementwise(made.compilation, 0));
    compiled_free(&made);
}

/* ---- hygiene ------------------------------------------------------------------------- */

static void test_hygiene(void **state) {
    (void)state;
    /* P, Q and angle of the library's rope are its own; the model's have other sizes. */
    Compiled made = compile_text("use \"std.cola\"\n"
                                 "dim B = 1, V = 2, S = 3, K = 8, P = 5, Q = 7, base = 3\n"
                                 "model m {\n"
                                 "    input tokens: int[B,S] below V\n"
                                 "    param embed: [V -> K] ~ normal(1)\n"
                                 "    param other: [P -> Q] ~ normal(1)\n"
                                 "    x = rope(embed[tokens]; S, K)\n"
                                 "    minimize mean(x) + mean(other)\n"
                                 "}\n",
                                 "");
    assert_string_equal(type_of_value(&made, "", "x"), "f32[B,S,K]");
    const State *other = weight(&made, "other");
    assert_int_equal(elements(made.compilation->module, other), 35);
    compiled_free(&made);
}

/* A block of the text's own stands before the library's of the same name, and not for it. */
static void test_own_block_of_a_library_name(void **state) {
    (void)state;
    Compiled made = compile_text("use \"std.cola\"\n"
                                 "dim B = 1, V = 2, D = 4\n"
                                 "fn sigmoidal(x) { return x }\n"
                                 "fn silu(x) { return x * 3 }\n"
                                 "model m {\n"
                                 "    input tokens: int[B] below V\n"
                                 "    param embed: [V -> D] ~ normal(1)\n"
                                 "    y = silu(embed[tokens])\n"
                                 "    minimize mean(y)\n"
                                 "}\n",
                                 "");
    const Function *micro = module_find_function(made.compilation->module, "micro");
    for (int64_t i = 0; i < micro->nodes.count; i++)
        assert_int_not_equal(micro->nodes.data[i].op, OP_SIGMOID);
    compiled_free(&made);
}

/* ---- golden files -------------------------------------------------------------------- */

/* Everything that is printed, without the folder in it. */
static char *outcome(const char *path, const char *text) {
    char words[200] = "";
    const char *args = strncmp(text, "# args:", 7) == 0 ? text + 7 : "";
    snprintf(words, sizeof words, "%.*s", (int)strcspn(args, "\n"), args);
    Compiled made = compile_words(path, words);
    char *printed = NULL;
    size_t size;
    FILE *stream = open_memstream(&printed, &size);
    diagnostics_print(made.diagnostics, stream);
    fprintf(stream, "%s\n", made.compilation ? "accepted" : "refused");
    fclose(stream);
    compiled_free(&made);
    char *out = printed;
    for (char *in = printed; *in;) {
        if (strncmp(in, FOLDER, strlen(FOLDER)) == 0)
            in += strlen(FOLDER);
        else
            *out++ = *in++;
    }
    *out = 0;
    return printed;
}

static void check_golden(const char *name) {
    char path[300], expect_path[300];
    snprintf(path, sizeof path, FOLDER "%s", name);
    snprintf(expect_path, sizeof expect_path, FOLDER "%.*s.expect", (int)strlen(name) - 5,
             name);
    size_t length;
    char *text = read_file(path, 1 << 20, &length);
    assert_non_null(text);
    char *printed = outcome(path, text);
    const char *golden = getenv("GOLDEN");
    if (golden && strcmp(golden, "write") == 0) {
        FILE *file = fopen(expect_path, "w");
        assert_non_null(file);
        fputs(printed, file);
        fclose(file);
    }
    char *expected = read_file(expect_path, 1 << 20, &length);
    if (!expected || strcmp(expected, printed) != 0)
        fail_msg("%s gives\n%s\ninstead of\n%s", path, printed, expected ? expected : "(none)");
    free(expected);
    free(printed);
    free(text);
}

static void test_without_the_library(void **state) {
    (void)state;
    Compiled made = compile_text("dim B = 2, V = 3\nmodel m {\n input t: int[B] below V\n"
                                 " param w: [V] ~ zeros\n minimize mean(w[t])\n}\n",
                                 "-D lr=0.5");
    const Recipe *recipe = &made.compilation->recipe;
    assert_string_equal(recipe->groups[0].optimizer->name.text, "adamw");
    assert_near(recipe->groups[0].rate, 0.5, 0);
    assert_true(optimizer_is_elementwise(made.compilation, 0));
    compiled_free(&made);
}

static void test_observed_in_blocks(void **state) {
    (void)state;
    Compiled made = compile_text("dim B = 2, V = 3\n"
                                 "block b(x: [B]) -> [B] { observe size = mean(x); return x }\n"
                                 "model m {\n input t: int[B] below V\n param w: [V] ~ zeros\n"
                                 " x = w[t]\n for i in 2 { x = b(x) }\n minimize mean(x)\n}\n",
                                 "");
    const Module *module = made.compilation->module;
    assert_true(module_find_state(module, "observe.b[0].size", ROLE_METRIC, 0) >= 0);
    assert_true(module_find_state(module, "observe.b[1].size", ROLE_METRIC, 0) >= 0);
    compiled_free(&made);
}

static void test_defaults_of_an_optimizer(void **state) {
    (void)state;
    Compiled made = compile_text("dim B = 2, V = 3\nmodel m {\n input t: int[B] below V\n"
                                 " param w: [V] ~ zeros\n minimize mean(w[t])\n}\n"
                                 "recipe r { optimizer o(half = 0.5) }\n"
                                 "optimizer o(p, g; half = 0.1, lr = half / 2) {\n"
                                 " next p = p - lr * g\n}\n",
                                 "--recipe r");
    assert_near(made.compilation->recipe.groups[0].rate, 0.25, 0);
    compiled_free(&made);
}

static void test_golden(void **state) {
    (void)state;
    DIR *folder = opendir(FOLDER);
    assert_non_null(folder);
    int checked = 0;
    for (const struct dirent *entry; (entry = readdir(folder));) {
        size_t length = strlen(entry->d_name);
        if (length > 5 && strcmp(entry->d_name + length - 5, ".cola") == 0) {
            check_golden(entry->d_name);
            checked++;
        }
    }
    closedir(folder);
    assert_true(checked >= 60);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parameters_of_every_size),
        cmocka_unit_test(test_parameters_exactly),
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_paths_by_hand),
        cmocka_unit_test(test_types_of_values),
        cmocka_unit_test(test_ordinals_repeat),
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_recipe_values),
        cmocka_unit_test(test_without_the_library),
        cmocka_unit_test(test_observed_in_blocks),
        cmocka_unit_test(test_defaults_of_an_optimizer),
        cmocka_unit_test(test_hygiene),
        cmocka_unit_test(test_own_block_of_a_library_name),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
