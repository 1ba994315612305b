/* What expressions mean: the loss of small texts, run by the interpreter in double precision,
 * against numbers worked out by hand or by libm. */
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

/* tokens: [B,S], row by row */
static const int32_t tokens[] = {0, 1, 2, 4, 3, 1};

static const char *const preamble =
    "use \"std.cola\"\n"
    "dim B = 2, S = 3, T = S, V = 5, D = 6, P = 2, Q = 3, E = 4\n"
    "model m {\n"
    "    input tokens: int[B,S] below V\n"
    "    input later: int[B,S] below V next 1\n"
    "    i = index(D)\n"; /* 0 … 5 */

static Compilation *compile_body(const char *body, Diagnostics *diagnostics) {
    char path[] = "/tmp/colac_language_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    FILE *stream = fdopen(file, "w");
    fprintf(stream, "%s%s}\n", preamble, body);
    fclose(stream);
    Request request = {.path = path};
    Compilation *compilation = compile_model(&request, diagnostics);
    diagnostics_print(diagnostics, stdout);
    unlink(path);
    if (!compilation)
        fail_msg("refused:\n%s", body);
    return compilation;
}

/* ΣE / ΣW; the parameter `w`, if there is one, holds 1, 2, 3, … in order of its axes. */
static double loss_when(const char *body, double seed, double training) {
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile_body(body, diagnostics);
    const Module *module = compilation->module;
    assert_null(ir_verify(module, STAGE_GRAPH));
    Interp *interp = interp_new(module);
    interp_set_input(interp, 0, tokens);
    interp_set_input(interp, 1, tokens);
    StateId w = module_find_state(module, "w", ROLE_WEIGHT, 0);
    for (StateId k = 0; k < module->states.count; k++)
        if (module->states.data[k].init.kind == INIT_CONSTANT) /* gains: vectors over D */
            for (int i = 0; i < 6; i++)
                interp_state(interp, k)[i] = module->states.data[k].init.scale;
    int64_t count = w < 0 ? 0 : type_elements(module, state_type(&module->states.data[w]));
    for (int64_t k = 0; k < count; k++)
        interp_state(interp, w)[k] = (double)k + 1;
    interp_run(interp, module_find_function(module, "micro"), (double[]){1, seed, 0, training},
               false);
    StateId sum = module_find_state(module, "loss_sum", ROLE_METRIC, 0);
    StateId weight = module_find_state(module, "weight_sum", ROLE_METRIC, 0);
    double loss = *interp_state(interp, sum) / *interp_state(interp, weight);
    interp_free(interp);
    compilation_free(compilation);
    diagnostics_free(diagnostics);
    return loss;
}

static double loss_of(const char *body, double seed) {
    return loss_when(body, seed, 1);
}

static void check(const char *body, double wanted) {
    double loss = loss_of(body, 0);
    if (!(fabs(loss - wanted) <= 1e-12 * (1 + fabs(wanted))))
        fail_msg("%.17g, not %.17g:\n%s", loss, wanted, body);
}

/* ---- arithmetic ---------------------------------------------------------------------- */

static void test_compile_time(void **state) {
    (void)state;
    check("minimize mean(i * 0 + 2^10 + 7 % 4 + -7 % 4)", 1024 + 3 + 1);
    check("minimize mean(i * 0 + (if D % 4 == 2 and not (S > 3) then size(P) else 9))", 2);
    check("minimize mean(i * 0 + sqrt(2) * 4^-0.5 + floor(2.7) + max(1, 5) - min(3, 4))",
          sqrt(2) / 2 + 2 + 5 - 3);
    check("minimize mean(i * 0 + size(P, Q))", 6);
    check("dim R = size(D) / 3\n param w: [R -> Q] ~ zeros\n minimize mean(w)", 3.5);
}

static void test_int_tensors(void **state) {
    (void)state;
    check("minimize mean(i)", 2.5);
    check("minimize mean(i / 2)", 1.25); /* a division is never floored */
    check("minimize mean(i % 4)", (0 + 1 + 2 + 3 + 0 + 1) / 6.0);
    check("minimize mean(-i + 2 * i^2)", -2.5 + 2 * 55 / 6.0);
    check("minimize mean(abs(i - 2) + sign(i - 2))", (2 + 1 + 0 + 1 + 2 + 3 + 1) / 6.0);
    check("minimize sum(i) over sum(i > 1)", 15 / 4.0);
    check("minimize mean(index(S) - index(T))", 0); /* ints may cross */
}

static void test_powers(void **state) {
    (void)state;
    check("x = i + 1.5\n minimize mean(x^3 - x * x * x)", 0);
    double half = 0, minus = 0, base = 0, one_and_half = 0;
    for (int k = 0; k < 6; k++) {
        half += sqrt(k + 1.5) / 6;
        minus += 1 / sqrt(k + 1.5) / 6;
        one_and_half += pow(k + 1.5, -1.5) / 6;
        base += pow(3, -k / 6.0) / 6;
    }
    check("minimize mean((i + 1.5)^0.5)", half);
    check("minimize mean((i + 1.5)^-0.5)", minus);
    check("minimize mean((i + 1.5)^-1.5)", one_and_half);
    check("minimize mean(3^(-i / 6))", base);
    check("minimize mean((i + 1.5)^0)", 1);
}

static void test_masks(void **state) {
    (void)state;
    check("minimize mean(where(i > 2 or i == 0, i, -1))", (0 - 1 - 1 + 3 + 4 + 5) / 6.0);
    check("minimize mean(where(index(T) <= index(S), 1, 0))", 6 / 9.0); /* masks cross */
    check("minimize mean(where(not (i != 3), 6, 0))", 1);
    check("minimize mean((i >= 3) * 2)", 1);
}

/* ---- axes ---------------------------------------------------------------------------- */

static void test_axes(void **state) {
    (void)state;
    check("h = i[D as (P, Q)]\n minimize mean(h[P = 1])", 4); /* first name slowest: 3 4 5 */
    check("h = i[D as (P, Q)]\n minimize mean(h[Q = 1])", 2.5);
    check("h = i[D as (P, Q)][(Q, P) as D]\n minimize mean(h * i)",
          (0 * 0 + 3 * 1 + 1 * 2 + 4 * 3 + 2 * 4 + 5 * 5) / 6.0);
    check("h = stack(P: index(Q), index(Q) + 10)\n minimize mean(h[(P, Q) as D] * i)",
          (0 + 1 + 4 + 30 + 44 + 60) / 6.0);
    check("param w: [D -> E] ~ zeros\n minimize mean(dot(w, w; D, E))", 24 * 25 * 49 / 6.0);
    check("dim F = D\n param w: [D] ~ zeros\n minimize mean(dot(w, w[D as F];))",
          21 * 21 / 36.0);
}

static void test_gather(void **state) {
    (void)state;
    /* w[v] = v + 1 at the tokens 0 1 2 4 3 1 */
    check("param w: [V] ~ zeros\n minimize mean(w[tokens])", (1 + 2 + 3 + 5 + 4 + 2) / 6.0);
    check("param w: [V] ~ zeros\n minimize mean(w[V = (tokens + 1) % V])",
          (2 + 3 + 4 + 1 + 5 + 3) / 6.0);
    check("param w: [V] ~ zeros\n minimize mean(w[where(tokens == 0, 4, tokens)])",
          (5 + 2 + 3 + 5 + 4 + 2) / 6.0);
    check("param w: [V] ~ zeros\n minimize mean(w[where(tokens == 4, 0, tokens)])",
          (1 + 2 + 3 + 1 + 4 + 2) / 6.0);
}

static void test_reductions(void **state) {
    (void)state;
    check(
        "param w: [P -> Q] ~ zeros\n minimize mean(max(w; P) - sum(w; P) + mean(w; Q)[P = 0])",
        5 - 7 + 2);
    check("param w: [D] ~ zeros\n minimize sum(max(w, 3.5)) over 2", (3.5 * 3 + 4 + 5 + 6) / 2);
    check("param w: [D] ~ zeros\n minimize min(w - 4; D) + max(w; D) * 0", -3);
    check("minimize mean(max(stack(P: 2.5, 1.0 * i); P))", (2.5 * 3 + 3 + 4 + 5) / 6);
    check("minimize mean(fma(i, i, 1))", 55 / 6.0 + 1);
}

/* ---- blocks, fns, loops -------------------------------------------------------------- */

static void test_loops(void **state) {
    (void)state;
    check("a = 1.0 * i\n b = 0.0 * i\n for k in 3 { c = a + b\n b = a\n a = c }\n"
          " minimize mean(a - 3 * i)",
          0); /* Fibonacci: i, i, 2i, 3i */
    check("a = 0 * i\n for k in 2..4 { a = a + k }\n minimize mean(a)", 9); /* both ends */
    check("a = 0 * i\n for k in 3 { for l in k { a = a + 1 } }\n minimize mean(a)", 3);
    check("a = 0 * i\n for k in 4 { if k % 2 == 1 { a = a + k } else { a = a - 10 } }\n"
          " minimize mean(a)",
          4 - 20);
}

/* ---- the library --------------------------------------------------------------------- */

static void test_softmax(void **state) {
    (void)state;
    double total = 0, expected = 0;
    for (int k = 0; k < 6; k++)
        total += exp(k);
    for (int k = 0; k < 6; k++)
        expected += k * exp(k) / total / 6;
    check("minimize mean(i * softmax(1.0 * i; D))", expected);
    check("minimize mean(softmax(1000.0 * i; D) * i)", 5 / 6.0);
    check("minimize mean(softmax(where(i >= 0, -inf, 1.0 * i); D))", 0); /* wholly masked */
    check("minimize mean(softmax(where(i > 3, -inf, 0.0 * i); D) * i)", (0 + 1 + 2 + 3) / 24.0);
    check("minimize logsumexp(1000.0 + i; D)", 1000 + log(total));
    check("minimize mean(max(logsumexp(where(i >= 0, -inf, 1.0 * i); D), -7.0))", -7);
}

static void test_activations(void **state) {
    (void)state;
    double silu = 0, gelu = 0, gelu_exact = 0, relu = 0;
    for (int k = 0; k < 6; k++) {
        double x = k - 2.5;
        silu += x / (1 + exp(-x)) / 6;
        gelu += 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 6;
        gelu_exact += 0.5 * x * (1 + erf(x / sqrt(2))) / 6;
        relu += fmax(x, 0) / 6;
    }
    check("minimize mean(silu(i - 2.5))", silu);
    check("minimize mean(gelu(i - 2.5))", gelu);
    check("minimize mean(gelu_exact(i - 2.5))", gelu_exact);
    check("minimize mean(relu(i - 2.5))", relu);
}

static void test_norms(void **state) {
    (void)state;
    double square = 55 / 6.0, variance = square - 2.5 * 2.5, rms = 0;
    for (int k = 0; k < 6; k++)
        rms += k * k / sqrt(square + 1e-6) / 6;
    check("minimize mean(i * rmsnorm(1.0 * i; D))", rms);
    check("minimize mean(i * layernorm(1.0 * i; D))", variance / sqrt(variance + 1e-5));
    check("minimize mean(i * layernorm(1.0 * i; D; eps = 1))", variance / sqrt(variance + 1));
}

static void test_cross_entropy(void **state) {
    (void)state;
    double expected = 0;
    for (int k = 0; k < 6; k++) {
        double total = 0;
        for (int v = 0; v < 5; v++)
            total += exp(0.5 * v);
        expected += (log(total) - 0.5 * tokens[k]) / 6;
    }
    check("minimize mean(cross_entropy(0.5 * (index(V) + 0 * tokens), tokens; V))", expected);
    check("minimize masked_cross_entropy(0.0 * (index(V) + tokens), tokens, tokens > 2; V) "
          "over tokens > 2",
          log(5));
}

/* ---- chance -------------------------------------------------------------------------- */

static const char *const draw = "minimize mean(random(a; B, S, D))";

static void test_random(void **state) {
    (void)state;
    double one = loss_of(draw, 1);
    assert_true(one > 0.3 && one < 0.7);
    assert_true(loss_of(draw, 1) == one);
    assert_true(loss_of(draw, 2) != one);
    assert_true(loss_of("minimize mean(random(b; B, S, D))", 1) != one);
    /* one site, one draw; two calls of a fn, two */
    assert_true(loss_of("minimize mean(abs(random(a; D) - random(a; D)))", 1) == 0);
    assert_true(loss_of("x = 1.0 * i + 1\n"
                        "minimize mean(abs(dropout(x; 0.5) - dropout(x; 0.5)))",
                        1) > 0);
    check("minimize mean(dropout(1.0 * i; 0) - i)", 0);
    double kept = loss_of("x = 1.0 + 0 * tokens\n minimize mean(dropout(x; 0.25) * 0.75)", 3);
    assert_true(fabs(kept * 6 - round(kept * 6)) < 1e-12);
    check("minimize mean(bucket((i + 0.5) / 6; E))", (0 + 1 + 1 + 2 + 3 + 3) / 6.0);
}

/* dropout is of the training alone; a model's own chance is not. */
static void test_training(void **state) {
    (void)state;
    const char *dropped = "x = 1.5 * i + 1\n minimize mean(abs(dropout(x; 0.5) - x))";
    assert_true(loss_when(dropped, 1, 1) > 0);
    assert_true(loss_when(dropped, 1, 0) == 0);
    assert_true(loss_when(draw, 1, 0) == loss_when(draw, 1, 1));
    check("minimize mean(i + 3 * training)", 5.5);
    assert_true(loss_when("minimize mean(i + 3 * training)", 1, 0) == 2.5);
    check("training = 7\n minimize mean(i * 0 + training)", 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compile_time), cmocka_unit_test(test_int_tensors),
        cmocka_unit_test(test_powers),       cmocka_unit_test(test_masks),
        cmocka_unit_test(test_axes),         cmocka_unit_test(test_gather),
        cmocka_unit_test(test_reductions),   cmocka_unit_test(test_loops),
        cmocka_unit_test(test_softmax),      cmocka_unit_test(test_activations),
        cmocka_unit_test(test_norms),        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_random),       cmocka_unit_test(test_training),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
