/* tests/test_interp.c: the interpreter against values worked out by hand or by a few plain
 * loops. Graphs are IR text, so that a test reads as one. */
#include "ir/ir.h"

#include <limits.h>
#include <math.h>
#include <setjmp.h>

#include <cmocka.h>

/* ---- running a text ------------------------------------------------------------------ */

typedef struct Run {
    Module *module;
    Interp *interp;
    Function *function;
} Run;

static const char *const declarations = "module stage graph\n"
                                        "axis A 2\naxis B 3\naxis C 2\naxis D 6\naxis E 4\n"
                                        "input tokens i32[B,A] below 4 next 0\n"
                                        "state weight x f32 in(A) out(B) zeros\n"
                                        "state weight y f32 in(A) out(B) zeros\n"
                                        "state weight z f32 in(D) out() zeros\n"
                                        "state weight table f32 in(E) out(A) zeros\n"
                                        "function micro(step, seed, sample0, rate) {\n"
                                        "%0 = state 0 to(A,B) : f32[A,B]\n"
                                        "%1 = state 1 to(A,B) : f32[A,B]\n"
                                        "%2 = state 2 to(D) : f32[D]\n"
                                        "%3 = state 3 to(A,E) : f32[A,E]\n"
                                        "%4 = input 0 to(A,B) : i32[A,B]\n";

/* Parses the declarations and the body, sets x, y, z and the table, and runs. */
static Run run_text(const char *body, const double scalars[4]) {
    Text text = {0};
    text_printf(&text, "%s%s}\n", declarations, body);
    Source source = {"test.ir", text.data, text.length, NULL};
    Diagnostics *diagnostics = diagnostics_new();
    Stage stage;
    Run run = {.module = ir_parse(&source, diagnostics, &stage)};
    diagnostics_print(diagnostics, stderr);
    diagnostics_free(diagnostics);
    assert_non_null(run.module);
    for (int64_t i = 0; i < run.module->functions.data[0]->nodes.count; i++)
        run.module->functions.data[0]->nodes.data[i].span = (Span){0};
    text_free(&text);
    static const double x[] = {1, -2, 3, -0.5, 0, 2}, y[] = {2, 2, -1, 4, 0, -3};
    static const double z[] = {0, 1, 2, 3, 4, 5}, table[] = {10, 11, 12, 13, 20, 21, 22, 23};
    static const int32_t tokens[] = {3, 0, 1, 1, 2, 3}; /* [B,A] */
    run.interp = interp_new(run.module);
    memcpy(interp_state(run.interp, 0), x, sizeof x);
    memcpy(interp_state(run.interp, 1), y, sizeof y);
    memcpy(interp_state(run.interp, 2), z, sizeof z);
    memcpy(interp_state(run.interp, 3), table, sizeof table);
    interp_set_input(run.interp, 0, tokens);
    run.function = run.module->functions.data[0];
    static const double none[4] = {0};
    interp_run(run.interp, run.function, scalars ? scalars : none, true);
    return run;
}

static void end_run(Run run) {
    interp_free(run.interp);
    module_free(run.module);
}

/* The value of the body's last node. */
static void assert_last(const char *body, int count, const double *expected) {
    Run run = run_text(body, NULL);
    NodeId last = (NodeId)run.function->nodes.count - 1;
    assert_int_equal(type_elements(run.module, node_at(run.function, last)->type), count);
    const double *value = interp_value(run.interp, last);
    for (int i = 0; i < count; i++)
        if (!(value[i] == expected[i] || (isnan(value[i]) && isnan(expected[i]))))
            fail_msg("%selement %d is %.17g, not %.17g", body, i, value[i], expected[i]);
    end_run(run);
}
#define ASSERT_LAST(body, ...)                                                                 \
    assert_last(body, COUNT_OF(((double[]){__VA_ARGS__})), (double[]){__VA_ARGS__})

/* ---- maps
 * --------------------------------------------------------------------------------------------
 */

static void maps_of_one(void **state) {
    (void)state;
    ASSERT_LAST("%5 = neg %0 : f32[A,B]\n", -1, 2, -3, 0.5, 0, -2);
    ASSERT_LAST("%5 = abs %0 : f32[A,B]\n", 1, 2, 3, 0.5, 0, 2);
    ASSERT_LAST("%5 = floor %0 : f32[A,B]\n", 1, -2, 3, -1, 0, 2);
    ASSERT_LAST("%5 = sign %0 : f32[A,B]\n", 1, -1, 1, -1, 0, 1);
    ASSERT_LAST("%5 = sqrt %1 : f32[A,B]\n", sqrt(2), sqrt(2), NAN, 2, 0, NAN);
    ASSERT_LAST("%5 = exp %0 : f32[A,B]\n", exp(1), exp(-2), exp(3), exp(-.5), 1, exp(2));
    ASSERT_LAST("%5 = log %1 : f32[A,B]\n", log(2), log(2), NAN, log(4), -INFINITY, NAN);
    ASSERT_LAST("%5 = tanh %0 : f32[A,B]\n", tanh(1), tanh(-2), tanh(3), tanh(-.5), 0, tanh(2));
    ASSERT_LAST("%5 = erf %0 : f32[A,B]\n", erf(1), erf(-2), erf(3), erf(-.5), 0, erf(2));
    ASSERT_LAST("%5 = sin %0 : f32[A,B]\n", sin(1), sin(-2), sin(3), sin(-.5), 0, sin(2));
    ASSERT_LAST("%5 = cos %0 : f32[A,B]\n", cos(1), cos(-2), cos(3), cos(-.5), 1, cos(2));
    ASSERT_LAST("%5 = stop %0 : f32[A,B]\n", 1, -2, 3, -.5, 0, 2);
    ASSERT_LAST("%5 = copy %0 : f32[A,B]\n", 1, -2, 3, -.5, 0, 2);
    ASSERT_LAST("%5 = cast %0 : i32[A,B]\n", 1, -2, 3, 0, 0, 2);
    ASSERT_LAST("%5 = cast %0 : bool[A,B]\n", 1, 1, 1, 1, 0, 1);
    ASSERT_LAST("%5 = cast %0 : bool[A,B]\n%6 = not %5 : bool[A,B]\n", 0, 0, 0, 0, 1, 0);
}

static void sigmoid_does_not_overflow(void **state) {
    (void)state;
    ASSERT_LAST("%5 = const 800 : f32\n%6 = sigmoid %5 : f32\n", 1);
    ASSERT_LAST("%5 = const -700 : f32\n%6 = sigmoid %5 : f32\n", exp(-700));
    ASSERT_LAST("%5 = const 0 : f32\n%6 = sigmoid %5 : f32\n", 0.5);
    ASSERT_LAST("%5 = const -inf : f32\n%6 = sigmoid %5 : f32\n", 0);
}

static void maps_of_two(void **state) {
    (void)state;
    ASSERT_LAST("%5 = add %0 %1 : f32[A,B]\n", 3, 0, 2, 3.5, 0, -1);
    ASSERT_LAST("%5 = sub %0 %1 : f32[A,B]\n", -1, -4, 4, -4.5, 0, 5);
    ASSERT_LAST("%5 = mul %0 %1 : f32[A,B]\n", 2, -4, -3, -2, 0, -6);
    ASSERT_LAST("%5 = div %0 %1 : f32[A,B]\n", .5, -1, -3, -.125, NAN, 2. / -3);
    ASSERT_LAST("%5 = maximum %0 %1 : f32[A,B]\n", 2, 2, 3, 4, 0, 2);
    ASSERT_LAST("%5 = minimum %0 %1 : f32[A,B]\n", 1, -2, -1, -.5, 0, -3);
    ASSERT_LAST("%5 = lt %0 %1 : bool[A,B]\n", 1, 1, 0, 1, 0, 0);
    ASSERT_LAST("%5 = le %0 %1 : bool[A,B]\n", 1, 1, 0, 1, 1, 0);
    ASSERT_LAST("%5 = eq %0 %1 : bool[A,B]\n", 0, 0, 0, 0, 1, 0);
    ASSERT_LAST("%5 = mod %0 %1 : f32[A,B]\n", 1, 0, -0., 3.5, NAN, -1);
    ASSERT_LAST("%5 = const 2 : f64\n%6 = const 10 : f64\n%7 = pow %5 %6 : f64\n", 1024);
    ASSERT_LAST("%5 = lt %0 %1 : bool[A,B]\n%6 = cast %0 : bool[A,B]\n"
                "%7 = and %5 %6 : bool[A,B]\n",
                1, 1, 0, 1, 0, 0);
    ASSERT_LAST("%5 = lt %0 %1 : bool[A,B]\n%6 = cast %0 : bool[A,B]\n"
                "%7 = or %5 %6 : bool[A,B]\n",
                1, 1, 1, 1, 0, 1);
}

static void integers_divide_downward(void **state) {
    (void)state;
    const char *body = "%%5 = cast %%0 : i32[A,B]\n%%6 = const %d : i32\n"
                       "%%7 = expand %%6 to(A,B) : i32[A,B]\n%%8 = %s %%5 %%7 : i32[A,B]\n";
    char text[300];
    snprintf(text, sizeof text, body, 2, "div");
    ASSERT_LAST(text, 0, -1, 1, 0, 0, 1);
    snprintf(text, sizeof text, body, 2, "mod");
    ASSERT_LAST(text, 1, 0, 1, 0, 0, 0);
    snprintf(text, sizeof text, body, -3, "div");
    ASSERT_LAST(text, -1, 0, -1, 0, 0, -1);
    snprintf(text, sizeof text, body, -3, "mod");
    ASSERT_LAST(text, -2, -2, 0, 0, 0, -1);
    snprintf(text, sizeof text, body, 0, "div");
    ASSERT_LAST(text, 0, 0, 0, 0, 0, 0);
    snprintf(text, sizeof text, body, 0, "mod");
    ASSERT_LAST(text, 0, 0, 0, 0, 0, 0);
}

static void maps_of_three(void **state) {
    (void)state;
    ASSERT_LAST("%5 = fma %0 %1 %0 : f32[A,B]\n", 3, -6, 0, -2.5, 0, -4);
    ASSERT_LAST("%5 = lt %0 %1 : bool[A,B]\n%6 = where %5 %0 %1 : f32[A,B]\n", 1, -2, -1, -.5,
                0, -3);
}

/* A row that is masked out whole: where, max, exp and sum keep to -inf and 0 without a NaN. */
static void masks_of_minus_infinity(void **state) {
    (void)state;
    ASSERT_LAST("%5 = const 0 : f32\n%6 = expand %5 to(A,B) : f32[A,B]\n"
                "%7 = lt %0 %6 : bool[A,B]\n%8 = const -inf : f32\n"
                "%9 = expand %8 to(A,B) : f32[A,B]\n%10 = where %7 %0 %9 : f32[A,B]\n"
                "%11 = exp %10 : f32[A,B]\n%12 = sum %11 from(A) : f32[B]\n",
                exp(-.5), exp(-2), 0);
    ASSERT_LAST("%5 = const -inf : f32\n%6 = expand %5 to(A,B) : f32[A,B]\n"
                "%7 = max %6 from(A,B) : f32\n",
                -INFINITY);
}

/* ---- leaves
 * ---------------------------------------------------------------------------------------------
 */

static void leaves(void **state) {
    (void)state;
    ASSERT_LAST("%5 = index to(E) : i32[E]\n", 0, 1, 2, 3);
    /* declared [B,A]: {3,0},{1,1},{2,3}; in type order [A,B] */
    ASSERT_LAST("%5 = copy %4 : i32[A,B]\n", 3, 1, 2, 0, 1, 3);
    Run run = run_text("%5 = scalar 3 : f64\n%6 = const 0.5 : f64\n%7 = mul %5 %6 : f64\n"
                       "%8 = cast %7 : f32\n",
                       (double[]){1, 2, 3, 0.2});
    assert_true(interp_value(run.interp, 7)[0] == 0.1);
    assert_true(interp_scalar(run.function, 7, (double[]){1, 2, 3, 0.2}) == 0.1);
    assert_true(interp_scalar(run.function, 8, (double[]){1, 2, 3, 0.2}) == (double)0.1f);
    end_run(run);
}

/* The generator written down once more, from its paper. */
static double philox_again(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        uint64_t m0 = (uint64_t)c0 * 0xD2511F53u, m1 = (uint64_t)c2 * 0xCD9E8D57u;
        uint32_t n0 = (uint32_t)(m1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(m0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)m1;
        c3 = (uint32_t)m0;
        c0 = n0;
        c2 = n2;
    }
    return c0 / 256 / 16777216.;
}

static uint64_t mix_again(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static void random_numbers(void **state) {
    (void)state;
    /* Random123's known answer: a counter and a key of zeros give 6627e8d5 first. */
    assert_true(philox_again(0, 0, 0, 0, 0) == (0x6627E8D5u >> 8) / 16777216.);
    assert_true(random_uniform(0, 0, 0, 0, 0) == (0x6627E8D5u >> 8) / 16777216.);
    assert_true(random_uniform(7, 5, 9, 3, 11) ==
                philox_again(mix_again(7 * 0x9E3779B97F4A7C15u + 9), 11, 5, 3, 0));
    assert_true(random_uniform(1, 2, 3, 0x400000005, 0x700000006) ==
                philox_again(mix_again(0x9E3779B97F4A7C15u + 3), 6, 2, 5, 0x00040007));
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        double u = random_uniform(42, 0, 1, 0, i);
        assert_true(u >= 0 && u < 1);
        sum += u;
        squares += u * u;
    }
    assert_true(fabs(sum / 1e5 - 0.5) < 5 * sqrt(1. / 12 / 1e5));
    assert_true(fabs(squares / 1e5 - 1. / 3) < 5 * sqrt(4. / 45 / 1e5));
}

/* B is the sample axis of `tokens`; the index runs over the rest, here A and E, in type order.
 */
static void random_tensors(void **state) {
    (void)state;
    Run run =
        run_text("%5 = random 77 to(A,B,E) : f32[A,B,E]\n%6 = random 8 to(A,E) : f32[A,E]\n",
                 (double[]){5, 6, 70, 0});
    const double *with = interp_value(run.interp, 5), *without = interp_value(run.interp, 6);
    for (uint64_t a = 0; a < 2; a++)
        for (uint64_t e = 0; e < 4; e++) {
            for (uint64_t b = 0; b < 3; b++)
                assert_true(with[(a * 3 + b) * 4 + e] ==
                            random_uniform(6, 5, 77, 70 + b, a * 4 + e));
            assert_true(without[a * 4 + e] == random_uniform(6, 5, 8, 0, a * 4 + e));
        }
    end_run(run);
}

/* ---- axes
 * -------------------------------------------------------------------------------------------------
 */

static void axes_move(void **state) {
    (void)state;
    ASSERT_LAST("%5 = expand %2 to(A) : f32[A,D]\n", 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5);
    /* the new axis C comes after B in a type */
    ASSERT_LAST("%5 = rename %0 from(A) to(C) : f32[B,C]\n", 1, -.5, -2, 0, 3, 2);
    ASSERT_LAST("%5 = split %2 from(D) to(A,B) : f32[A,B]\n", 0, 1, 2, 3, 4, 5);
    ASSERT_LAST("%5 = split %2 from(D) to(B,A) : f32[A,B]\n", 0, 2, 4, 1, 3, 5);
    ASSERT_LAST("%5 = merge %0 from(A,B) to(D) : f32[D]\n", 1, -2, 3, -.5, 0, 2);
    ASSERT_LAST("%5 = merge %0 from(B,A) to(D) : f32[D]\n", 1, -.5, -2, 0, 3, 2);
    ASSERT_LAST("%5 = pick %0 2 from(B) : f32[A]\n", 3, 2);
    ASSERT_LAST("%5 = pick %0 1 from(A) : f32[B]\n", -.5, 0, 2);
    ASSERT_LAST("%5 = pick %0 0 from(A) : f32[B]\n%6 = pick %1 1 from(A) : f32[B]\n"
                "%7 = stack %5 %6 to(A) : f32[A,B]\n",
                1, -2, 3, 4, 0, -3);
    ASSERT_LAST("%5 = pick %0 0 from(A) : f32[B]\n%6 = pick %1 1 from(A) : f32[B]\n"
                "%7 = stack %5 %6 to(C) : f32[B,C]\n",
                1, 4, -2, 0, 3, -3);
}

/* ---- sums and products --------------------------------------------------------------- */

static void reductions(void **state) {
    (void)state;
    ASSERT_LAST("%5 = sum %0 from(A) : f32[B]\n", .5, -2, 5);
    ASSERT_LAST("%5 = sum %0 from(B) : f32[A]\n", 2, 1.5);
    ASSERT_LAST("%5 = sum %0 from(A,B) : f32\n", 3.5);
    ASSERT_LAST("%5 = max %0 from(A) : f32[B]\n", 1, 0, 3);
    ASSERT_LAST("%5 = max %1 from(B) : f32[A]\n", 2, 4);
}

static void small_dots(void **state) {
    (void)state;
    ASSERT_LAST("%5 = dot %0 %1 from(A,B) : f32\n", 2 - 4 - 3 - 2 + 0 - 6);
    /* batched over A */
    ASSERT_LAST("%5 = dot %0 %1 from(B) : f32[A]\n", 2 - 4 - 3, -2 + 0 - 6);
    ASSERT_LAST("%5 = rename %1 from(A) to(C) : f32[B,C]\n%6 = dot %0 %5 from(B) : f32[A,C]\n",
                2 - 4 - 3, 4 + 0 - 9, -1 + 0 - 2, -2 + 0 - 6);
    /* an outer product, and an element-wise one */
    ASSERT_LAST("%5 = pick %0 0 from(B) : f32[A]\n%6 = pick %0 0 from(A) : f32[B]\n"
                "%7 = dot %5 %6 from() : f32[A,B]\n",
                1, -2, 3, -.5, 1, -1.5);
    ASSERT_LAST("%5 = dot %0 %1 from() : f32[A,B]\n", 2, -4, -3, -2, 0, -6);
}

/* [M,K] x [K,N] with an axis of batch on both sides, against four loops. */
static void a_larger_dot(void **state) {
    (void)state;
    enum { P = 2, M = 72, N = 136, K = 48 };
    Module *module = module_new();
    Span none = {0};
    AxisId n = module_axis(module, "N", N, none), p = module_axis(module, "P", P, none);
    AxisId k = module_axis(module, "K", K, none), m = module_axis(module, "M", M, none);
    State left = {
        .path = "left", .dtype = TYPE_F32, .in_count = 3, .in = {p, m, k}, .weight = -1};
    State right = {
        .path = "right", .dtype = TYPE_F32, .in_count = 3, .in = {p, k, n}, .weight = -1};
    StateId l = module_state(module, left), r = module_state(module, right);
    Function *function = module_function(module, "micro", 0, NULL);
    Builder b = builder(function);
    NodeId dot = build_dot(&b, build_state(&b, l), build_state(&b, r), &k, 1);
    Interp *interp = interp_new(module);
    /* types: left [P,K,M], right [N,P,K], result [N,P,M] */
    double *x = interp_state(interp, l), *y = interp_state(interp, r);
    for (int i = 0; i < P * K * M; i++)
        x[i] = (i * 37 % 101 - 50) / 8.;
    for (int i = 0; i < N * P * K; i++)
        y[i] = (i * 53 % 97 - 48) / 4.;
    interp_run(interp, function, NULL, true);
    const double *z = interp_value(interp, dot);
    for (int in = 0; in < N; in++)
        for (int ip = 0; ip < P; ip++)
            for (int im = 0; im < M; im++) {
                double sum = 0; /* exact: all terms are multiples of 1/32 */
                for (int ik = 0; ik < K; ik++)
                    sum += x[(ip * K + ik) * M + im] * y[(in * P + ip) * K + ik];
                assert_true(z[(in * P + ip) * M + im] == sum);
            }
    interp_free(interp);
    module_free(module);
}

static void rows_by_position(void **state) {
    (void)state;
    /* table [A,E]: row e of column a is 10(a+1)+e; tokens [A,B] = 3,1,2 / 0,1,3; A is shared */
    ASSERT_LAST("%5 = gather %3 %4 from(E) : f32[A,B]\n", 13, 11, 12, 20, 21, 23);
    /* not shared: the table's A renamed */
    ASSERT_LAST("%5 = rename %3 from(A) to(C) : f32[C,E]\n"
                "%6 = gather %5 %4 from(E) : f32[A,B,C]\n",
                13, 23, 11, 21, 12, 22, 10, 20, 11, 21, 13, 23);
    ASSERT_LAST("%5 = scatter_add %4 %0 from(A,B) to(E) : f32[E]\n", -.5, -2 + 0, 3, 1 + 2);
    ASSERT_LAST("%5 = scatter_add %4 %0 from(B) to(E) : f32[A,E]\n", 0, -2, 3, 1, -.5, 0, 0, 2);
    ASSERT_LAST("%5 = expand %0 to(C) : f32[A,B,C]\n"
                "%6 = scatter_add %4 %5 from(A,B) to(E) : f32[C,E]\n",
                -.5, -2, 3, 3, -.5, -2, 3, 3);
}

/* ---- rounding, writes, flat states --------------------------------------------------- */

static void rounding(void **state) {
    (void)state;
    const char *body = "%5 = const 0.1 : f32\n%6 = mul %5 %5 : f32\n%7 = cast %6 : bf16\n"
                       "%8 = const 1.00390625 : f32\n%9 = cast %8 : bf16\n"
                       "%10 = const 1.01171875 : f32\n%11 = cast %10 : bf16\n"
                       "%12 = fma %5 %5 %6 : f32\n";
    Run run = run_text(body, NULL);
    assert_true(interp_value(run.interp, 7)[0] == 0.1 * 0.1);
    assert_true(interp_value(run.interp, 9)[0] == 1.00390625);
    interp_set_round(run.interp, true);
    interp_run(run.interp, run.function, (double[4]){0}, true);
    float tenth = 0.1f, product = tenth * tenth;
    assert_true(interp_value(run.interp, 6)[0] == (double)product);
    assert_true(interp_value(run.interp, 7)[0] == 0x1.48p-7); /* bf16 has 8 bits */
    assert_true(interp_value(run.interp, 9)[0] == 1);         /* ties to even, down and up */
    assert_true(interp_value(run.interp, 11)[0] == 1.015625);
    assert_true(interp_value(run.interp, 12)[0] == (double)fmaf(tenth, tenth, product));
    end_run(run);
}

static void writes_follow_reads(void **state) {
    (void)state;
    Run run = run_text("%5 = add %0 %1 : f32[A,B]\n"
                       "write weight x = %1\nwrite weight y += %0\n",
                       NULL);
    const double *x = interp_state(run.interp, 0), *y = interp_state(run.interp, 1);
    const double old_x[] = {1, -2, 3, -0.5, 0, 2}, old_y[] = {2, 2, -1, 4, 0, -3};
    for (int i = 0; i < 6; i++) {
        assert_true(x[i] == old_y[i]);
        assert_true(y[i] == old_y[i] + old_x[i]);
    }
    interp_run(run.interp, run.function, (double[4]){0}, false);
    assert_null(interp_value(run.interp, 0));
    for (int i = 0; i < 6; i++)
        assert_true(x[i] == old_y[i] + old_x[i]);
    end_run(run);
}

/* A window over a slab with a laid-out member, a hole of padding, and a member in declared
 * order. */
static void flat_states(void **state) {
    (void)state;
    const char *text = "module stage graph\naxis A 2\naxis B 3\naxis W 9\n"
                       "state weight a f32 in(A) out(B) order(B,A) zeros offset 0\n"
                       "state weight b f32 in(B) out() zeros offset 8\n"
                       "state weight c f32 in(A) out() zeros offset 100\n"
                       "state gradient b f32 in(B) out() zeros of 1 offset 8\n"
                       "state weight slab f32 in(W) out() zeros flat offset 1\n"
                       "function update() {\n"
                       "%0 = state 4 to(W) : f32[W]\n%1 = add %0 %0 : f32[W]\n"
                       "write weight slab += %1\n}\n";
    Source source = {"flat.ir", text, strlen(text), NULL};
    Diagnostics *diagnostics = diagnostics_new();
    Stage stage;
    Module *module = ir_parse(&source, diagnostics, &stage);
    diagnostics_print(diagnostics, stderr);
    assert_non_null(module);
    Interp *interp = interp_new(module);
    double *a = interp_state(interp, 0), *b = interp_state(interp, 1);
    double *c = interp_state(interp, 2), *g = interp_state(interp, 3);
    for (int i = 0; i < 6; i++)
        a[i] = i + 1; /* [A,B]; in memory 1 4 2 5 3 6 */
    for (int i = 0; i < 3; i++)
        b[i] = 10 * (i + 1);
    c[0] = g[0] = 7;
    assert_null(interp_state(interp, 4));
    interp_run(interp, module->functions.data[0], NULL, true);
    const double *window = interp_value(interp, 0);
    const double seen[] = {4, 2, 5, 3, 6, 0, 0, 10, 20};
    for (int i = 0; i < 9; i++)
        assert_true(window[i] == seen[i]);
    const double new_a[] = {1, 6, 9, 12, 15, 18}, new_b[] = {30, 60, 30};
    for (int i = 0; i < 6; i++)
        assert_true(a[i] == new_a[i]);
    for (int i = 0; i < 3; i++)
        assert_true(b[i] == new_b[i]);
    assert_true(c[0] == 7 && g[0] == 7);
    interp_free(interp);
    module_free(module);
    diagnostics_free(diagnostics);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_of_one),    cmocka_unit_test(sigmoid_does_not_overflow),
        cmocka_unit_test(maps_of_two),    cmocka_unit_test(integers_divide_downward),
        cmocka_unit_test(maps_of_three),  cmocka_unit_test(masks_of_minus_infinity),
        cmocka_unit_test(leaves),         cmocka_unit_test(random_numbers),
        cmocka_unit_test(random_tensors), cmocka_unit_test(axes_move),
        cmocka_unit_test(reductions),     cmocka_unit_test(small_dots),
        cmocka_unit_test(a_larger_dot),   cmocka_unit_test(rows_by_position),
        cmocka_unit_test(rounding),       cmocka_unit_test(writes_follow_reads),
        cmocka_unit_test(flat_states),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
