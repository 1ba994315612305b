/* The program, as a user runs it, against PyTorch in double precision (tests/oracle): the loss
 * and every gradient of the first batch through `colac grad`, ten losses through `colac train`,
 * and through the interpreter gradients and final weights to ten digits; all of it under every
 * plan of the model that computes the same.  With `--precision bf16` ten losses to 2e-2, by the
 * library's products and by the plain ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/runtime.h"

static char folder[64];

enum { MAX_PLANS = 5 };
typedef struct Case {
    const char *name, *model, *options;
    const char *plans[MAX_PLANS]; /* that compute the same; "": none */
} Case;
#define FULL_RANK                                                                              \
    { "", "full", "gcp" }
#define LOW_RANK                                                                               \
    { "cola", "cola_gcp", "cola_m", "cola_lean" }
static const Case llama_full = {"llama_full", "llama", "", FULL_RANK};
static const Case llama_gqa = {"llama_gqa", "llama", "-D J=2", FULL_RANK};
static const Case gpt2 = {"gpt2", "gpt2", "", FULL_RANK};
static const Case llama_cola = {"llama_cola", "llama", "-D R=12 -D gate_silu=1", LOW_RANK};
static const Case llama_cola_nogate = {"llama_cola_nogate", "llama", "-D R=12 -D gate_silu=0",
                                       LOW_RANK};

static const char *colac(void) {
    const char *path = getenv("COLAC");
    return path ? path : "build/colac";
}

static json_t *expectation(const Case *c) {
    char path[256];
    snprintf(path, sizeof path, "tests/oracle/%s/expect.json", c->name);
    json_error_t error;
    json_t *expect = json_load_file(path, 0, &error);
    assert_non_null(expect);
    return expect;
}

/* Standard output of a command line that must succeed. */
static void run_line(const char *line, Text *output) {
    FILE *pipe = popen(line, "r");
    assert_non_null(pipe);
    char buffer[4096];
    for (size_t got; (got = fread(buffer, 1, sizeof buffer, pipe)) > 0;)
        text_append(output, buffer, got);
    int code = pclose(pipe);
    if (code)
        print_error("%s\n", line);
    assert_int_equal(code, 0);
}

/* `colac COMMAND models/…` on the case, with its sizes. */
static void begin_line(const Case *c, const char *plan, const char *command, Text *line) {
    json_t *expect = expectation(c), *dims = json_object_get(expect, "dims");
    text_printf(line, "%s %s models/%s.cola %s %s %s --json", colac(), command, c->model,
                *plan ? "--plan" : "", plan, c->options);
    static const char *const sizes[] = {"V", "D", "H", "L", "F", "S", "B"};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        if (json_object_get(dims, sizes[i]))
            text_printf(line, " -D %s=%lld", sizes[i],
                        (long long)json_integer_value(json_object_get(dims, sizes[i])));
    json_decref(expect);
}

/* Runs `colac COMMAND models/…` on the case; standard output into `output`. */
static void run_case(const Case *c, const char *plan, const char *command, const char *more,
                     Text *output) {
    Text line = {0};
    begin_line(c, plan, command, &line);
    text_printf(&line,
                " --weights tests/oracle/%s/init.safetensors --data tests/oracle/%s/tokens.bin "
                "--order sequential --names hf %s",
                c->name, c->name, more);
    run_line(text_string(&line), output);
    text_free(&line);
}

/* Of a plan in a file, its name. */
static const char *name_of(const char *plan) {
    return strrchr(plan, ':') ? strrchr(plan, ':') + 1 : plan;
}

/* Norm of the difference over norm, for every tensor of `expected_path`. */
static void compare_tensors(const char *got_path, const char *expected_path, double bound) {
    Diagnostics *diagnostics = diagnostics_new();
    TensorFile *got = tensor_file_open(got_path, diagnostics);
    TensorFile *expected = tensor_file_open(expected_path, diagnostics);
    diagnostics_print(diagnostics, stdout);
    assert_non_null(got);
    assert_non_null(expected);
    double worst = 0;
    for (int i = 0; i < tensor_file_count(expected); i++) {
        const Tensor *want = tensor_file_at(expected, i),
                     *have = tensor_file_find(got, want->name);
        if (!have)
            print_error("%s: no tensor %s\n", got_path, want->name);
        assert_non_null(have);
        assert_int_equal(want->rank, have->rank);
        for (int axis = 0; axis < want->rank; axis++)
            assert_int_equal(want->shape[axis], have->shape[axis]);
        double *a = checked_alloc((size_t)want->elements * sizeof *a);
        double *b = checked_alloc((size_t)want->elements * sizeof *b);
        tensor_file_read(expected, want, 0, want->elements, a);
        tensor_file_read(got, have, 0, have->elements, b);
        double difference = 0, norm = 0;
        for (int64_t j = 0; j < want->elements; j++) {
            difference += (a[j] - b[j]) * (a[j] - b[j]);
            norm += a[j] * a[j];
        }
        double relative = sqrt(difference) / sqrt(norm);
        if (!(relative <= bound))
            print_error("%s: %s differs by %g, more than %g\n", got_path, want->name, relative,
                        bound);
        assert_true(relative <= bound);
        worst = relative > worst ? relative : worst;
        free(a);
        free(b);
    }
    print_message("%s: worst tensor %.2g (bound %.0g)\n", expected_path, worst, bound);
    tensor_file_close(got);
    tensor_file_close(expected);
    diagnostics_free(diagnostics);
}

static void close_to(double got, double expected, double bound, const char *what, int step) {
    if (!(fabs(got - expected) <= bound * fabs(expected)))
        print_error("%s at step %d: %.12g, expected %.12g\n", what, step, got, expected);
    assert_true(fabs(got - expected) <= bound * fabs(expected));
}

static void check_grad(const Case *c, const char *plan, const char *device, double loss_bound,
                       double bound) {
    char more[256], got[128], expected[128];
    snprintf(got, sizeof got, "%s/grad_%s_%s.safetensors", folder, c->name, name_of(plan));
    snprintf(expected, sizeof expected, "tests/oracle/%s/grads.safetensors", c->name);
    snprintf(more, sizeof more, "--device %s -o %s", device, got);
    Text output = {0};
    run_case(c, plan, "grad", more, &output);
    json_t *object = json_loads(text_string(&output), JSON_DISABLE_EOF_CHECK, NULL);
    json_t *expect = expectation(c);
    close_to(json_number_value(json_object_get(object, "loss")),
             json_real_value(json_array_get(json_object_get(expect, "loss"), 0)), loss_bound,
             "loss", 1);
    compare_tensors(got, expected, bound);
    json_decref(object);
    json_decref(expect);
    text_free(&output);
}

/* `how`: where and in which precision. */
static void check_train(const Case *c, const char *plan, const char *how, double bound,
                        double weight_bound) {
    static int runs;
    char more[256], got[128], expected[128];
    snprintf(more, sizeof more,
             "%s --recipe tests/oracle/recipe.cola:oracle --steps 10 --out %s/run%d", how,
             folder, ++runs);
    snprintf(got, sizeof got, "%s/run%d/weights.safetensors", folder, runs);
    snprintf(expected, sizeof expected, "tests/oracle/%s/final.safetensors", c->name);
    Text output = {0};
    run_case(c, plan, "train", more, &output);
    json_t *expect = expectation(c);
    int steps = 0;
    for (char *line = strtok(output.data, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *object = json_loads(line, 0, NULL);
        assert_non_null(object);
        if (json_object_get(object, "step")) {
            int step = (int)json_integer_value(json_object_get(object, "step"));
            assert_int_equal(step, ++steps);
            close_to(json_number_value(json_object_get(object, "loss")),
                     json_real_value(
                         json_array_get(json_object_get(expect, "loss"), (size_t)step - 1)),
                     bound, "loss", step);
            close_to(json_number_value(json_object_get(object, "grad_norm")),
                     json_real_value(json_array_get(json_object_get(expect, "grad_norm"),
                                                    (size_t)step - 1)),
                     bound < 1e-9   ? bound
                     : bound < 1e-3 ? 1e-3
                                    : 0.1,
                     "gradient norm", step);
        }
        json_decref(object);
    }
    assert_int_equal(steps, 10);
    if (weight_bound > 0)
        compare_tensors(got, expected, weight_bound);
    json_decref(expect);
    text_free(&output);
}

static int64_t printed_peak(const Case *c, const char *plan) {
    Text line = {0}, output = {0};
    begin_line(c, plan, "check", &line);
    run_line(text_string(&line), &output);
    json_t *object = json_loads(text_string(&output), JSON_DISABLE_EOF_CHECK, NULL);
    json_t *peak = json_object_get(json_object_get(object, "memory"), "peak");
    int64_t bytes = json_integer_value(peak);
    assert_true(bytes > 0);
    json_decref(object);
    text_free(&line);
    text_free(&output);
    return bytes;
}

/* A plan that is the case's first or second (the first may be none at all) within so many
 * thirds of the way from the least peak of its plans to that one's. */
static void write_budget(const Case *c, int thirds, char plan[128]) {
    const char *base = *c->plans[0] ? c->plans[0] : c->plans[1];
    int64_t most = printed_peak(c, base), least = most;
    for (int i = 0; i < MAX_PLANS && c->plans[i]; i++) {
        int64_t peak = printed_peak(c, c->plans[i]);
        least = peak < least ? peak : least;
    }
    assert_true(least < most);
    char path[96];
    snprintf(path, sizeof path, "%s/%s_%d.cola", folder, c->name, thirds);
    snprintf(plan, 128, "%s:budget_%d", path, thirds);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "plan budget_%d extends %s { memory %lld }\n", thirds, base,
            (long long)(least + (most - least) * thirds / 3));
    assert_int_equal(fclose(file), 0);
}

typedef void (*Check)(const Case *c, const char *plan);
static void under_every_plan(const Case *c, Check check) {
    for (int i = 0; i < MAX_PLANS && c->plans[i]; i++) {
        print_message("%s, plan `%s`\n", c->name, c->plans[i]);
        check(c, c->plans[i]);
    }
}

static void under_budgets(const Case *c, Check check) {
    for (int thirds = 0; thirds < 2; thirds++) {
        char plan[128];
        write_budget(c, thirds, plan);
        print_message("%s, plan `%s`\n", c->name, plan);
        check(c, plan);
    }
}

static void grad_in_f32(const Case *c, const char *plan) {
    check_grad(c, plan, "cpu", 1e-6, 1e-5);
}
static void gradients_in_f32(void **state) {
    under_every_plan(*state, grad_in_f32);
    under_budgets(*state, grad_in_f32);
}
static void train_in_f32(const Case *c, const char *plan) {
    check_train(c, plan, "--device cpu", 1e-5, 0);
}
static void ten_losses_in_f32(void **state) {
    under_every_plan(*state, train_in_f32);
    under_budgets(*state, train_in_f32);
}
static void train_in_bf16(const Case *c, const char *plan) {
    check_train(c, plan, "--precision bf16", 2e-2, 0);
}
static void ten_losses_in_bf16(void **state) {
    const Case *c = *state;
    under_every_plan(c, train_in_bf16); /* as this processor multiplies, f32 where it cannot */
    setenv("COLAC_BF16", "1", 1);
    train_in_bf16(c, c->plans[0]);
    unsetenv("COLAC_BF16");
}
static void grad_by_interpreter(const Case *c, const char *plan) {
    check_grad(c, plan, "interpreter", 1e-10, 1e-10);
}
static void gradients_by_interpreter(void **state) {
    under_every_plan(*state, grad_by_interpreter);
}
static void train_by_interpreter(const Case *c, const char *plan) {
    check_train(c, plan, "--device interpreter", 1e-10, 1e-10);
}
static void ten_steps_by_interpreter(void **state) {
    under_every_plan(*state, train_by_interpreter);
}

static int begin(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/colac_oracle_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}
static int end(void **state) {
    (void)state;
    char line[128];
    snprintf(line, sizeof line, "rm -rf %s", folder);
    return system(line);
}

#define FIVE_TESTS(c)                                                                          \
    {#c "_gradients_by_interpreter", gradients_by_interpreter, NULL, NULL,                     \
     (void *)(intptr_t)&c},                                                                    \
        {#c "_ten_steps_by_interpreter", ten_steps_by_interpreter, NULL, NULL,                 \
         (void *)(intptr_t)&c},                                                                \
        {#c "_gradients_in_f32", gradients_in_f32, NULL, NULL, (void *)(intptr_t)&c},          \
        {#c "_ten_losses_in_f32", ten_losses_in_f32, NULL, NULL, (void *)(intptr_t)&c}, {      \
#c "_ten_losses_in_bf16", ten_losses_in_bf16, NULL, NULL, (void *)(intptr_t)&c         \
    }

int main(void) {
    const struct CMUnitTest tests[] = {FIVE_TESTS(llama_full), FIVE_TESTS(llama_gqa),
                                       FIVE_TESTS(gpt2), FIVE_TESTS(llama_cola),
                                       FIVE_TESTS(llama_cola_nogate)};
    return cmocka_run_group_tests(tests, begin, end);
}
