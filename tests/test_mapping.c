/* tests/test_mapping.c: which tensor holds which parameter, and in which layout.  PyTorch wrote
 * the tensors that are read here. */
#include "runtime/runtime.h"

#include <setjmp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

static int enter_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/colac-mapping-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int leave_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static const char *message_of(Diagnostics *diagnostics) {
    static char text[16384];
    memset(text, 0, sizeof text);
    FILE *stream = fmemopen(text, sizeof text - 1, "w");
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    return text;
}

static void assert_says(Diagnostics *diagnostics, const char *what) {
    assert_int_not_equal(diagnostics_errors(diagnostics), 0);
    const char *message = message_of(diagnostics);
    if (!strstr(message, what) || !strstr(message, "help: "))
        fail_msg("wanted `%s` and a remedy, but it says: %s", what, message);
}

/* ---- what is loaded and what is saved ----------------------------------------------- */

/* The values of every weight, by state id, in declared order. */
typedef struct Weights {
    const Module *module;
    double **values;
} Weights;

static Weights weights_of(const Module *module) {
    return (Weights){module, calloc((size_t)module->states.count, sizeof(double *))};
}

static void free_weights(Weights *weights) {
    for (int64_t i = 0; i < weights->module->states.count; i++)
        free(weights->values[i]);
    free(weights->values);
}

/* Where a row of a block begins among the values of its state. */
static double *row_of(const Weights *weights, StateId state, StateBlock block, int64_t row) {
    return weights->values[state] +
           (block.first_row + row) * whole_state(weights->module, state).columns +
           block.first_column;
}

static void keep_weight(void *context, StateId state, StateBlock block, const double *values) {
    Weights *weights = context;
    StateBlock whole = whole_state(weights->module, state);
    if (!weights->values[state])
        weights->values[state] = calloc((size_t)(whole.rows * whole.columns), sizeof *values);
    for (int64_t row = 0; row < block.rows; row++)
        for (int64_t i = 0; i < block.columns; i++)
            row_of(weights, state, block, row)[i] += values[row * block.columns + i];
}

static void give_weight(void *context, StateId state, StateBlock block, double *values) {
    for (int64_t row = 0; row < block.rows; row++)
        memcpy(values + row * block.columns, row_of(context, state, block, row),
               (size_t)block.columns * sizeof *values);
}

static const double *weight(const Weights *weights, const char *path) {
    StateId id = module_find_state(weights->module, path, ROLE_WEIGHT, 0);
    if (id < 0 || !weights->values[id])
        fail_msg("there is no weight %s", path);
    return weights->values[id];
}

/* Every tensor of `expected` is in `got`, the same to the last bit. */
static void assert_same_tensors(const char *got_path, const char *expected_path) {
    Diagnostics *diagnostics = diagnostics_new();
    TensorFile *got = tensor_file_open(got_path, diagnostics);
    TensorFile *expected = tensor_file_open(expected_path, diagnostics);
    assert_non_null(got);
    assert_non_null(expected);
    assert_int_equal(tensor_file_count(got), tensor_file_count(expected));
    for (int i = 0; i < tensor_file_count(expected); i++) {
        const Tensor *want = tensor_file_at(expected, i);
        const Tensor *have = tensor_file_find(got, want->name);
        if (!have)
            fail_msg("%s was not written", want->name);
        assert_int_equal(have->rank, want->rank);
        assert_memory_equal(have->shape, want->shape, (size_t)want->rank * sizeof *want->shape);
        size_t bytes = (size_t)want->elements * sizeof(double);
        double *a = malloc(bytes), *b = malloc(bytes);
        tensor_file_read(got, have, 0, want->elements, a);
        tensor_file_read(expected, want, 0, want->elements, b);
        assert_memory_equal(a, b, bytes);
        free(a);
        free(b);
    }
    tensor_file_close(got);
    tensor_file_close(expected);
    diagnostics_free(diagnostics);
}

/* ---- the shipped mappings ----------------------------------------------------------- */

typedef struct Case {
    const char *name, *model, *plan;
    Define defines[8];
    int define_count;
} Case;
#define SIZES                                                                                  \
    {"V", "101"}, {"D", "48"}, {"H", "4"}, {"L", "2"}, {"S", "24"}, {                          \
        "B", "3"                                                                               \
    }
static const Case llama_gqa = {
    "llama_gqa", "models/llama.cola", NULL, {SIZES, {"F", "136"}, {"J", "2"}}, 8};
static const Case llama_cola = {
    "llama_cola", "models/llama.cola", "cola", {SIZES, {"F", "136"}, {"R", "12"}}, 8};
static const Case gpt2 = {"gpt2", "models/gpt2.cola", NULL, {SIZES}, 6};

typedef struct Loaded {
    Diagnostics *diagnostics;
    Compilation *compilation;
    Mapping *mapping;
    Weights weights;
} Loaded;

static Loaded compile_case(const Case *c) {
    Loaded loaded = {.diagnostics = diagnostics_new()};
    Request request = {.path = c->model,
                       .plan = c->plan,
                       .defines = c->defines,
                       .define_count = c->define_count};
    loaded.compilation = compile_model(&request, loaded.diagnostics);
    if (!loaded.compilation)
        fail_msg("%s", message_of(loaded.diagnostics));
    PassContext context = {.module = loaded.compilation->module,
                           .compilation = loaded.compilation,
                           .diagnostics = loaded.diagnostics,
                           .for_training = true};
    assert_true(run_passes(&context, "factorize", NULL));
    loaded.mapping =
        mapping_load(c->model, loaded.compilation->texts->arena, loaded.diagnostics);
    assert_non_null(loaded.mapping);
    loaded.weights = weights_of(loaded.compilation->module);
    return loaded;
}

static void unload(Loaded *loaded) {
    free_weights(&loaded->weights);
    compilation_free(loaded->compilation);
    diagnostics_free(loaded->diagnostics);
}

static bool load(Loaded *loaded, const char *path) {
    free_weights(&loaded->weights);
    loaded->weights = weights_of(loaded->compilation->module);
    return weights_load(loaded->compilation->module, loaded->mapping, path, keep_weight,
                        &loaded->weights, loaded->diagnostics);
}

static void save(Loaded *loaded, bool theirs, bool double_precision, const char *path) {
    if (!weights_save(loaded->compilation->module, loaded->mapping, theirs, double_precision,
                      path, give_weight, &loaded->weights, loaded->diagnostics))
        fail_msg("%s", message_of(loaded->diagnostics));
}

/* Theirs, own in f64, own in f32, theirs: nothing is lost on the way. */
static void check_round_trip(const Case *c) {
    char init[128], path[3][96];
    snprintf(init, sizeof init, "tests/oracle/%s/init.safetensors", c->name);
    for (int i = 0; i < 3; i++)
        snprintf(path[i], sizeof path[i], "%s/%d.safetensors", folder, i);
    Loaded loaded = compile_case(c);
    if (!load(&loaded, init))
        fail_msg("%s", message_of(loaded.diagnostics));
    save(&loaded, false, true, path[0]);
    assert_true(load(&loaded, path[0]));
    save(&loaded, false, false, path[1]);
    assert_true(load(&loaded, path[1]));
    save(&loaded, true, false, path[2]);
    assert_same_tensors(path[2], init);
    unload(&loaded);
}

static void weights_survive_a_round_trip(void **state) {
    (void)state;
    check_round_trip(&llama_gqa);
    check_round_trip(&llama_cola);
    check_round_trip(&gpt2);
}

/* Element (i, o) of a weight is element (o, i) or (i, o) of the tensor. */
static void assert_layout(const Loaded *loaded, const char *file_path, const char *path,
                          const char *name, int64_t in, int64_t out, bool out_first) {
    Diagnostics *diagnostics = diagnostics_new();
    TensorFile *file = tensor_file_open(file_path, diagnostics);
    const Tensor *tensor = tensor_file_find(file, name);
    assert_non_null(tensor);
    assert_int_equal(tensor->elements, in * out);
    double *theirs = malloc((size_t)(in * out) * sizeof *theirs);
    tensor_file_read(file, tensor, 0, in * out, theirs);
    const double *own = weight(&loaded->weights, path);
    for (int64_t i = 0; i < in; i++)
        for (int64_t o = 0; o < out; o++)
            assert_true(own[i * out + o] == theirs[out_first ? o * in + i : i * out + o]);
    free(theirs);
    tensor_file_close(file);
    diagnostics_free(diagnostics);
}

static void parameters_are_found_in_their_layouts(void **state) {
    (void)state;
    const char *file = "tests/oracle/llama_gqa/init.safetensors";
    Loaded loaded = compile_case(&llama_gqa);
    assert_true(load(&loaded, file));
    assert_layout(&loaded, file, "embed", "model.embed_tokens.weight", 101, 48, false);
    assert_layout(&loaded, file, "head", "lm_head.weight", 48, 101, true);
    assert_layout(&loaded, file, "layer[1].attn.wk", "model.layers.1.self_attn.k_proj.weight",
                  48, 24, true);
    assert_layout(&loaded, file, "layer[0].ffn.down", "model.layers.0.mlp.down_proj.weight",
                  136, 48, true);
    assert_layout(&loaded, file, "layer[1].ffn_norm.gain",
                  "model.layers.1.post_attention_layernorm.weight", 1, 48, false);
    unload(&loaded);

    file = "tests/oracle/llama_cola/init.safetensors";
    loaded = compile_case(&llama_cola);
    assert_true(load(&loaded, file));
    assert_layout(&loaded, file, "layer[1].attn.wo.A", "model.layers.1.self_attn.o_proj.cola_a",
                  48, 12, false);
    assert_layout(&loaded, file, "layer[0].ffn.up.B", "model.layers.0.mlp.up_proj.cola_b", 12,
                  136, false);
    unload(&loaded);

    file = "tests/oracle/gpt2/init.safetensors";
    loaded = compile_case(&gpt2);
    assert_true(load(&loaded, file));
    assert_layout(&loaded, file, "layer[1].attn.wqkv.w", "transformer.h.1.attn.c_attn.weight",
                  48, 144, false);
    assert_layout(&loaded, file, "layer[0].attn.wqkv.b", "transformer.h.0.attn.c_attn.bias", 1,
                  144, false);
    unload(&loaded);
}

/* Every parameter of every shipped model that has a mapping is in it, plans aside. */
static void the_shipped_mappings_are_complete(void **state) {
    (void)state;
    static const char *const models[] = {"models/llama.cola", "models/gpt2.cola",
                                         "models/bert.cola"};
    for (int i = 0; i < COUNT_OF(models); i++) {
        Case c = {.model = models[i],
                  .defines = {{"L", "2"}, {"V", "300"}, {"S", "8"}},
                  .define_count = 3};
        Loaded loaded = compile_case(&c);
        char path[96];
        snprintf(path, sizeof path, "%s/theirs.safetensors", folder);
        const Module *module = loaded.compilation->module;
        for (StateId id = 0; id < module->states.count; id++)
            loaded.weights.values[id] =
                calloc((size_t)type_elements(module, state_type(&module->states.data[id])), 8);
        save(&loaded, true, false, path);
        TensorFile *file = tensor_file_open(path, loaded.diagnostics);
        for (StateId id = 0; id < module->states.count; id++)
            if (tensor_file_find(file, module->states.data[id].path))
                fail_msg("%s: no line for %s", models[i], module->states.data[id].path);
        tensor_file_close(file);
        unload(&loaded);
    }
}

/* ---- refusals ----------------------------------------------------------------------- */

static void weights_that_do_not_fit_are_sentences(void **state) {
    (void)state;
    Case wide = llama_gqa;
    wide.defines[1] = (Define){"D", "64"};
    Loaded loaded = compile_case(&wide);
    assert_false(load(&loaded, "tests/oracle/llama_gqa/init.safetensors"));
    assert_says(loaded.diagnostics,
                "`model.layers.0.self_attn.k_proj.weight` has the shape [24, 48], but "
                "`layer[0].attn.wk` (D = 64 -> J = 2, K = 16) needs [32, 64]");
    for (int64_t i = 0; i < loaded.compilation->module->states.count; i++)
        assert_null(loaded.weights.values[i]); /* none of them was put */
    unload(&loaded);

    loaded = compile_case(&llama_cola);
    assert_false(load(&loaded, "tests/oracle/llama_full/init.safetensors"));
    assert_int_equal(diagnostics_errors(loaded.diagnostics), 6); /* five and the count */
    const char *message = message_of(loaded.diagnostics);
    assert_non_null(strstr(message, "holds neither `layer[0].attn.wq.A` nor "
                                    "`model.layers.0.self_attn.q_proj.cola_a`"));
    assert_non_null(strstr(message, "28 weights of the model are missing"));
    unload(&loaded);
}

static const char *write_text(const char *name, const char *text) {
    static char path[96];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    fputs(text, file);
    fclose(file);
    return path;
}

static void damaged_mappings_are_placed(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"w", "m.map:1:1: error: the tensor's name is missing"},
        {"\n  w x", "m.map:2:3: error: the tensor's two sides are missing"},
        {"w x in", "two sides are missing"},
        {"w x in in", "m.map:1:8: error: this is no layout"},
        {"w x in out out", "m.map:1:12: error: this is no layout"},
        {"w x down out", "this is no layout"},
        {"w x in join(out)", "join(…) needs several parameters"},
        {"{v,w} x in out", "need one join(…)"},
        {"{v,w} x join(in) join(out)", "need one join(…)"},
        {"{v,w x in out", "at most one group of names"},
        {"{v,w}.{a,b} x in out", "at most one group of names"},
        {"{a,b,c,d,e,f,g,h,i} x in out", "more than 8 parameters"},
        {"w[i] x.{j} in out", "m.map:1:6: error: an index in the name does not occur"},
        {"w[i] x.{i in out", "an index in the name does not occur"},
        {"w x | in out", "two sides are missing"},
        {"a b c d e f g h i j k l m n o p q r s t u v w x y z", "too many words"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Arena *arena = arena_new();
        Diagnostics *diagnostics = diagnostics_new();
        write_text("m.map", cases[i].text);
        char model[96];
        snprintf(model, sizeof model, "%s/m.cola", folder);
        assert_null(mapping_load(model, arena, diagnostics));
        assert_says(diagnostics, cases[i].says);
        diagnostics_free(diagnostics);
        arena_free(arena);
    }
}

/* ---- joined tensors ----------------------------------------------------------------- */

/* p[0..1].{q,k}: [D -> H,K] and [D -> J,K]; p[0..1].{b,c}: [H,K] and [J,K] without inputs. */
static Module *joined_module(int64_t outputs) {
    Module *module = module_new();
    AxisId d = module_axis(module, "D", 3, (Span){0}),
           h = module_axis(module, "H", 2, (Span){0});
    AxisId j = module_axis(module, "J", 1, (Span){0}),
           k = module_axis(module, "K", outputs, (Span){0});
    for (int i = 0; i < 2; i++)
        for (int which = 0; which < 4; which++) {
            State made = {.path = arena_printf(module->arena, "p[%d].%c", i, "qkbc"[which]),
                          .role = ROLE_WEIGHT,
                          .dtype = TYPE_F32,
                          .in_count = which < 2 ? 1 : 0,
                          .in = {d},
                          .out_count = 2,
                          .out = {which % 2 ? j : h, k},
                          .order_count = -1,
                          .weight = -1,
                          .offset = -1};
            module_state(module, made);
        }
    return module;
}

/* Of q and b, twice as long as of k and c. */
static void check_joined(bool out_first, int64_t outputs) {
    Module *module = joined_module(outputs);
    Diagnostics *diagnostics = diagnostics_new();
    char text[200], model[96], path[96];
    snprintf(text, sizeof text,
             "p[i].{q,k} w.{i} %s # matrices\np[i].{b,c} b.{i} join(in) out\n",
             out_first ? "join(out) in" : "in join(out)");
    write_text("j.map", text);
    snprintf(model, sizeof model, "%s/j.cola", folder);
    snprintf(path, sizeof path, "%s/j.safetensors", folder);
    Mapping *mapping = mapping_load(model, module->arena, diagnostics);
    assert_non_null(mapping);
    Weights weights = weights_of(module);
    for (StateId id = 0; id < module->states.count; id++) {
        int64_t count = type_elements(module, state_type(&module->states.data[id]));
        weights.values[id] = calloc((size_t)count, sizeof(double));
        for (int64_t e = 0; e < count; e++)
            weights.values[id][e] = 1e8 * id + (double)e;
    }
    assert_true(
        weights_save(module, mapping, true, true, path, give_weight, &weights, diagnostics));
    TensorFile *file = tensor_file_open(path, diagnostics);
    assert_int_equal(tensor_file_count(file), 4);
    int64_t all = 3 * outputs, of_q = 2 * outputs;
    double *values = calloc((size_t)(3 * all), sizeof *values);
    const Tensor *tensor = tensor_file_find(file, "w.1");
    assert_int_equal(tensor->shape[out_first], 3);
    assert_int_equal(tensor->shape[1 - out_first], all);
    tensor_file_read(file, tensor, 0, 3 * all, values);
    for (int64_t i = 0; i < 3; i++)
        for (int64_t o = 0; o < all; o++) /* q is state 4, k state 5 */
            assert_true(values[out_first ? o * 3 + i : i * all + o] ==
                        (o < of_q ? 4e8 + (double)(i * of_q + o)
                                  : 5e8 + (double)(i * outputs + o - of_q)));
    tensor = tensor_file_find(file, "b.0");
    assert_int_equal(tensor->rank, 1);
    tensor_file_read(file, tensor, 0, all, values);
    for (int64_t o = 0; o < all; o++)
        assert_true(values[o] == (o < of_q ? 2e8 + (double)o : 3e8 + (double)(o - of_q)));
    free(values);
    tensor_file_close(file);
    Weights back = weights_of(module);
    assert_true(weights_load(module, mapping, path, keep_weight, &back, diagnostics));
    for (StateId id = 0; id < module->states.count; id++)
        assert_memory_equal(
            back.values[id], weights.values[id],
            8 * (size_t)type_elements(module, state_type(&module->states.data[id])));
    free_weights(&back);
    free_weights(&weights);
    diagnostics_free(diagnostics);
    module_free(module);
}

static void joined_parameters_stand_side_by_side(void **state) {
    (void)state;
    /* In one block, and in several: of whole rows, and of parts of rows. */
    for (int64_t outputs = 5; outputs <= BLOCK_ELEMENTS; outputs *= 20000)
        for (int out_first = 0; out_first < 2; out_first++)
            check_joined(out_first, outputs);
}

static void two_parameters_of_one_name_are_refused(void **state) {
    (void)state;
    Module *module = joined_module(5);
    Diagnostics *diagnostics = diagnostics_new();
    char model[96], path[96];
    write_text("j.map", "p[i].q w in out\n");
    snprintf(model, sizeof model, "%s/j.cola", folder);
    snprintf(path, sizeof path, "%s/j.safetensors", folder);
    Mapping *mapping = mapping_load(model, module->arena, diagnostics);
    Weights weights = weights_of(module);
    assert_false(
        weights_save(module, mapping, true, true, path, give_weight, &weights, diagnostics));
    assert_says(diagnostics,
                "j.map:1:1: error: `p[0].q` and `p[1].q` would both be written as `w`");
    assert_int_equal(access(path, F_OK), -1);
    free_weights(&weights);
    diagnostics_free(diagnostics);
    module_free(module);
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, enter_folder, leave_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(weights_survive_a_round_trip),
        cmocka_unit_test(parameters_are_found_in_their_layouts),
        IN_FOLDER(the_shipped_mappings_are_complete),
        cmocka_unit_test(weights_that_do_not_fit_are_sentences),
        IN_FOLDER(damaged_mappings_are_placed),
        IN_FOLDER(joined_parameters_stand_side_by_side),
        IN_FOLDER(two_parameters_of_one_name_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
