/* The optimizers of std.cola, run by the interpreter over one matrix for five updates, against
 * the same rules written out in C from PyTorch's (AdamW, SGD) and the papers' (Lion, Muon)
 * text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "frontend/frontend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { IN = 6, OUT = 4, COUNT = IN * OUT, STEPS = 5 }; /* p: [A,C -> O], A = 2, C = 3 */

static const double RATE = 0.05;

/* ---- the text's side ----------------------------------------------------------------- */

static const char *const model_text =
    "use \"std.cola\"\n"
    "dim B = 1, V = 2, A = 2, C = 3, O = 4\n"
    "model m {\n"
    "    input tokens: int[B] below V\n"
    "    param p: [A,C -> O] ~ normal(1)\n"
    "    minimize sum(p) over sum(tokens)\n"
    "}\n"
    "recipe adamw { optimizer adamw(beta1 = 0.8, beta2 = 0.95, eps = 1e-3, decay = 0.1) }\n"
    "recipe sgd { optimizer sgd() }\n"
    "recipe momentum { optimizer sgd(momentum = 0.9, decay = 0.1) }\n"
    "recipe nesterov { optimizer sgd(momentum = 0.9, nesterov = true) }\n"
    "recipe lion { optimizer lion(decay = 0.1) }\n"
    "recipe muon { optimizer muon(decay = 0.1) }\n";

static Compilation *compile_recipe(const char *recipe, Diagnostics *diagnostics) {
    char path[] = "/tmp/colac_optimizer_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, model_text, strlen(model_text)), (ssize_t)strlen(model_text));
    close(file);
    Request request = {.path = path, .recipe = recipe};
    Compilation *compilation = compile_model(&request, diagnostics);
    diagnostics_print(diagnostics, stdout);
    unlink(path);
    assert_non_null(compilation);
    return compilation;
}

static double start(int i) {
    return sin(3.0 * i + 1);
}

static double gradient(int step, int i) {
    return cos(1.7 * i + step) * (i % 5 - 2);
}

static StateId add_gradient(Module *module, StateId weight) {
    State state = module->states.data[weight];
    state.role = ROLE_GRADIENT;
    state.weight = weight;
    return module_state(module, state);
}

/* p after five updates.  Elements are in order of A, C, O on both sides. */
static void run_text(const char *recipe, bool elementwise, double p[COUNT]) {
    static const char *const scalars[] = {"step", "lr"};
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile_recipe(recipe, diagnostics);
    Module *module = compilation->module;
    assert_int_equal(optimizer_is_elementwise(compilation, 0), elementwise);
    StateId weight = module_find_state(module, "p", ROLE_WEIGHT, 0);
    StateId slope = add_gradient(module, weight);
    Function *update = module_function(module, "update", 2, scalars);
    Builder b = builder(update);
    NodeId g = build_state(&b, slope), step = build_scalar(&b, 0), rate = build_scalar(&b, 1);
    assert_true(expand_optimizer(compilation, update, 0, weight, g, rate, step));
    assert_null(ir_verify(module, STAGE_GRAPH));
    Interp *interp = interp_new(module);
    for (int i = 0; i < COUNT; i++)
        interp_state(interp, weight)[i] = start(i);
    for (int t = 1; t <= STEPS; t++) {
        for (int i = 0; i < COUNT; i++)
            interp_state(interp, slope)[i] = gradient(t, i);
        interp_run(interp, update, (double[]){t, RATE}, false);
    }
    memcpy(p, interp_state(interp, weight), COUNT * sizeof *p);
    interp_free(interp);
    compilation_free(compilation);
    diagnostics_free(diagnostics);
}

static void check(const char *recipe, bool elementwise, const double wanted[COUNT]) {
    double p[COUNT];
    run_text(recipe, elementwise, p);
    for (int i = 0; i < COUNT; i++)
        if (!(fabs(p[i] - wanted[i]) <= 1e-12 * (1 + fabs(wanted[i]))))
            fail_msg("%s: element %d is %.17g, not %.17g", recipe, i, p[i], wanted[i]);
}

static void set_start(double p[COUNT]) {
    for (int i = 0; i < COUNT; i++)
        p[i] = start(i);
}

/* ---- the rules ----------------------------------------------------------------------- */

static void test_adamw(void **state) {
    (void)state;
    double p[COUNT], m[COUNT] = {0}, v[COUNT] = {0};
    set_start(p);
    for (int t = 1; t <= STEPS; t++)
        for (int i = 0; i < COUNT; i++) {
            double g = gradient(t, i);
            p[i] *= 1 - RATE * 0.1;
            m[i] = 0.8 * m[i] + 0.2 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            double denominator = sqrt(v[i]) / sqrt(1 - pow(0.95, t)) + 1e-3;
            p[i] -= RATE / (1 - pow(0.8, t)) * m[i] / denominator;
        }
    check("adamw", true, p);
}

static void sgd(const char *recipe, double momentum, bool nesterov, double decay) {
    double p[COUNT], buffer[COUNT] = {0};
    set_start(p);
    for (int t = 1; t <= STEPS; t++)
        for (int i = 0; i < COUNT; i++) {
            double g = gradient(t, i) + decay * p[i];
            buffer[i] = momentum * buffer[i] + g;
            p[i] -= RATE * (nesterov ? g + momentum * buffer[i] : buffer[i]);
        }
    check(recipe, true, p);
}

static void test_sgd(void **state) {
    (void)state;
    sgd("sgd", 0, false, 0);
    sgd("momentum", 0.9, false, 0.1);
    sgd("nesterov", 0.9, true, 0);
}

static void test_lion(void **state) {
    (void)state;
    double p[COUNT], m[COUNT] = {0};
    set_start(p);
    for (int t = 1; t <= STEPS; t++)
        for (int i = 0; i < COUNT; i++) {
            double g = gradient(t, i), blend = 0.9 * m[i] + 0.1 * g;
            p[i] = p[i] * (1 - RATE * 0.1) - RATE * ((blend > 0) - (blend < 0));
            m[i] = 0.99 * m[i] + 0.01 * g;
        }
    check("lion", true, p);
}

/* Five steps of X = aX + (bXXᵀ + c(XXᵀ)²)X from X = G / |G|.  x: [OUT,IN], as PyTorch stores
 * it. */
static void newton_schulz(double x[OUT][IN]) {
    double norm = 0;
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i++)
            norm += x[o][i] * x[o][i];
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i++)
            x[o][i] /= sqrt(norm) + 1e-7;
    for (int round = 0; round < 5; round++) {
        double a[OUT][OUT] = {{0}}, b[OUT][OUT] = {{0}}, y[OUT][IN] = {{0}};
        for (int o = 0; o < OUT; o++)
            for (int q = 0; q < OUT; q++)
                for (int i = 0; i < IN; i++)
                    a[o][q] += x[o][i] * x[q][i];
        for (int o = 0; o < OUT; o++)
            for (int q = 0; q < OUT; q++) {
                b[o][q] = -4.7750 * a[o][q];
                for (int r = 0; r < OUT; r++)
                    b[o][q] += 2.0315 * a[o][r] * a[r][q];
            }
        for (int o = 0; o < OUT; o++)
            for (int i = 0; i < IN; i++) {
                y[o][i] = 3.4445 * x[o][i];
                for (int q = 0; q < OUT; q++)
                    y[o][i] += b[o][q] * x[q][i];
            }
        memcpy(x, y, sizeof y);
    }
}

static void test_muon(void **state) {
    (void)state;
    double p[COUNT], m[COUNT] = {0};
    set_start(p);
    for (int t = 1; t <= STEPS; t++) {
        double x[OUT][IN];
        for (int k = 0; k < COUNT; k++) { /* element k is (input k / OUT, output k % OUT) */
            m[k] = 0.95 * m[k] + gradient(t, k);
            x[k % OUT][k / OUT] = gradient(t, k) + 0.95 * m[k];
        }
        newton_schulz(x);
        for (int k = 0; k < COUNT; k++) /* max(1, rows / columns) is 1 here */
            p[k] = p[k] * (1 - RATE * 0.1) - RATE * x[k % OUT][k / OUT];
    }
    check("muon", false, p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_sgd),
        cmocka_unit_test(test_lion),
        cmocka_unit_test(test_muon),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
