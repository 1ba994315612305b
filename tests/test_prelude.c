/* The functions that generated kernels call, against the C library in double precision.
 * GOLDEN=write rewrites docs/accuracy.md. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "codegen/prelude_c.h"
#include "codegen/prelude.h"
#include "ir/ir.h"

/* ---- accuracy ------------------------------------------------------------------------ */

static double reference_sigmoid(double x) {
    double e = exp(-fabs(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

static float call_exp(float x) {
    return f32_exp(x);
}
static float call_log(float x) {
    return f32_log(x);
}
static float call_tanh(float x) {
    return f32_tanh(x);
}
static float call_sigmoid(float x) {
    return f32_sigmoid(x);
}
static float call_erf(float x) {
    return f32_erf(x);
}
static float call_sin(float x) {
    return f32_sin(x);
}
static float call_cos(float x) {
    return f32_cos(x);
}
static float call_sqrt(float x) {
    return f32_sqrt(x);
}

typedef struct Function1 {
    const char *name;
    float (*ours)(float);
    double (*reference)(double);
    double low, high; /* where its accuracy is stated */
    double allowed;   /* ulp */
    const char *where;
} Function1;

static const Function1 functions[] = {
    {"exp", call_exp, exp, -INFINITY, INFINITY, 1.0, "everywhere"},
    {"log", call_log, log, -INFINITY, INFINITY, 0.8, "everywhere"},
    {"tanh", call_tanh, tanh, -INFINITY, INFINITY, 1.4, "everywhere"},
    {"sigmoid", call_sigmoid, reference_sigmoid, -INFINITY, INFINITY, 2.3, "everywhere"},
    {"erf", call_erf, erf, -INFINITY, INFINITY, 1.1, "everywhere"},
    {"sin", call_sin, sin, -1e4, 1e4, 1.6, "\\|x\\| <= 10,000"},
    {"cos", call_cos, cos, -1e4, 1e4, 1.6, "\\|x\\| <= 10,000"},
    {"sqrt", call_sqrt, sqrt, -INFINITY, INFINITY, 0.5, "everywhere"},
};

/* The distance in units of the last place that an f32 near the exact result has. */
static double ulp_error(float got, double exact) {
    if (isnan(exact))
        return isnan(got) ? 0 : INFINITY;
    if (isinf(got) || isinf((float)exact))
        return got == (float)exact || fabs(exact) > 0x1.fffffefp+127 ? 0 : INFINITY;
    int exponent;
    frexp(exact, &exponent);
    double unit = ldexp(1, exponent - 24 < -149 ? -149 : exponent - 24);
    return fabs((double)got - exact) / unit;
}

/* Over the bit patterns of all floats, a large odd step apart. */
static double largest_error(const Function1 *function) {
    double worst = 0;
    float at = 0;
    for (uint64_t bits = 0; bits < UINT64_C(1) << 32; bits += 4099) {
        float x = f32_from_bits((uint32_t)bits);
        if (!((double)x >= function->low && (double)x <= function->high))
            continue;
        double error = ulp_error(function->ours(x), function->reference((double)x));
        if (error > worst) {
            worst = error;
            at = x;
        }
    }
    if (worst > function->allowed)
        print_error("%s is off by %.3f ulp at %a\n", function->name, worst, (double)at);
    return worst;
}

static void accuracy_is_as_stated(void **state) {
    (void)state;
    Text page = {0};
    text_puts(
        &page,
        "# Accuracy of the functions in kernels\n\n"
        "Generated kernels call no mathematics library: `codegen/prelude.h` has every\n"
        "function as a polynomial, so that results have the same bits on every machine.\n"
        "The largest error against the C library in double precision, over about a million\n"
        "of the 2^32 floats, in units of the last place; `tests/test_prelude.c` measures it\n"
        "and holds it to the bound.\n\n"
        "| function | largest error | bound | where |\n|---|---|---|---|\n");
    for (int i = 0; i < COUNT_OF(functions); i++) {
        double error = largest_error(&functions[i]);
        assert_true(error <= functions[i].allowed);
        text_printf(&page, "| `%s` | %.2f | %.1f | %s |\n", functions[i].name, error,
                    functions[i].allowed, functions[i].where);
    }
    text_puts(&page,
              "\nAddition, subtraction, multiplication, division and `fma` are rounded\n"
              "correctly, as IEEE 754 says; no compiler flag lets them be reassociated or\n"
              "contracted.\n");
    const char *mode = getenv("GOLDEN"), *path = "docs/accuracy.md";
    if (mode && strcmp(mode, "write") == 0) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(text_string(&page), file);
        assert_int_equal(fclose(file), 0);
    } else {
        size_t length;
        char *written = read_file(path, 1 << 20, &length);
        assert_non_null(written);
        assert_string_equal(written, text_string(&page));
        free(written);
    }
    text_free(&page);
}

/* ---- special values ------------------------------------------------------------------ */

static void assert_same(float got, float expected) {
    if (isnan(expected))
        assert_true(isnan(got));
    else if (f32_bits(got) != f32_bits(expected))
        fail_msg("got %a, expected %a", (double)got, (double)expected);
}

static void special_values(void **state) {
    (void)state;
    const float least = 0x1p-149f;
    assert_same(f32_exp(-INFINITY), 0);
    assert_same(f32_exp(INFINITY), INFINITY);
    assert_same(f32_exp(1000), INFINITY);
    assert_same(f32_exp(-1000), 0);
    assert_same(f32_exp(0), 1);
    assert_same(f32_exp(-0.0f), 1);
    assert_same(f32_exp(NAN), NAN);
    assert_same(f32_exp(-103.2f), least); /* 1.5 times the least denormal, rounded */
    assert_same(f32_log(0), -INFINITY);
    assert_same(f32_log(-0.0f), -INFINITY);
    assert_same(f32_log(1), 0);
    assert_same(f32_log(-1), NAN);
    assert_same(f32_log(-least), NAN);
    assert_same(f32_log(-INFINITY), NAN);
    assert_same(f32_log(INFINITY), INFINITY);
    assert_same(f32_log(NAN), NAN);
    assert_same(f32_log(least), -103.27893f);
    assert_same(f32_tanh(INFINITY), 1);
    assert_same(f32_tanh(-INFINITY), -1);
    assert_same(f32_tanh(-0.0f), -0.0f);
    assert_same(f32_tanh(least), least);
    assert_same(f32_tanh(NAN), NAN);
    assert_same(f32_sigmoid(-INFINITY), 0);
    assert_same(f32_sigmoid(INFINITY), 1);
    assert_same(f32_sigmoid(0), 0.5f);
    assert_same(f32_sigmoid(NAN), NAN);
    assert_same(f32_erf(INFINITY), 1);
    assert_same(f32_erf(-INFINITY), -1);
    assert_same(f32_erf(-0.0f), -0.0f);
    assert_same(f32_erf(NAN), NAN);
    assert_same(f32_sin(INFINITY), NAN);
    assert_same(f32_sin(-0.0f), -0.0f);
    assert_same(f32_sin(NAN), NAN);
    assert_same(f32_sin(least), least);
    assert_same(f32_cos(0), 1);
    assert_same(f32_cos(-INFINITY), NAN);
    assert_same(f32_fabs(-0.0f), 0);
    assert_same(f32_floor(-0.5f), -1);
}

/* ---- integers, remainders, bf16 ------------------------------------------------------ */

static void integers(void **state) {
    (void)state;
    static const int32_t some[] = {0, 1, -1, 2, -3, 7, -8, 100, INT32_MAX, INT32_MIN, 65537};
    for (int i = 0; i < COUNT_OF(some); i++)
        for (int j = 0; j < COUNT_OF(some); j++) {
            int64_t a = some[i], b = some[j];
            int64_t quotient = b ? (int64_t)floor((double)a / (double)b) : 0;
            assert_int_equal(i32_div(some[i], some[j]), (int32_t)quotient);
            assert_int_equal(i32_mod(some[i], some[j]), b ? (int32_t)(a - quotient * b) : 0);
            assert_int_equal(i32_add(some[i], some[j]), (int32_t)(uint32_t)(a + b));
            assert_int_equal(i32_sub(some[i], some[j]), (int32_t)(uint32_t)(a - b));
            assert_int_equal(i32_mul(some[i], some[j]),
                             (int32_t)((uint32_t)some[i] * (uint32_t)some[j]));
        }
    assert_int_equal(i32_from_f32(-2.75f), -2);
    assert_int_equal(i32_from_f32(3e9f), INT32_MAX);
    assert_int_equal(i32_from_f32(-INFINITY), INT32_MIN);
    assert_int_equal(i32_from_f32(NAN), 0);
    assert_int_equal(i32_from_f32(-0x1p+31f), INT32_MIN);
}

static void remainders(void **state) {
    (void)state;
    static const float some[] = {0, 0.5f, -0.5f, 1, -1, 3, -3, 2.25f, 7.5f, -100.125f, 65536};
    for (int i = 0; i < COUNT_OF(some); i++)
        for (int j = 1; j < COUNT_OF(some); j++) {
            double a = some[i], b = some[j], remainder = fmod(a, b);
            if (remainder != 0 && (remainder < 0) != (b < 0))
                remainder += b;
            assert_true((double)f32_mod(some[i], some[j]) == remainder);
        }
}

/* Against the definition: the nearer of the two neighbours, the even one where both
 * are near. */
static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint64_t bits = 0; bits < UINT64_C(1) << 32; bits += 65521) {
        float x = f32_from_bits((uint32_t)bits);
        float got = bf16_round(x);
        assert_int_equal(f32_bits(got) & 0xFFFF, 0);
        if (isnan(x)) {
            assert_true(isnan(got));
            continue;
        }
        uint32_t truncated = (uint32_t)bits & 0xFFFF0000u;
        double below = f32_from_bits(truncated), above = f32_from_bits(truncated + 0x10000u);
        if (isinf(above))
            continue;
        double to_below = fabs((double)x - below), to_above = fabs(above - (double)x);
        bool even = (truncated >> 16 & 1) == 0;
        double expected = to_below < to_above || (to_below == to_above && even) ? below : above;
        assert_true((double)got == expected);
    }
    assert_int_equal(bf16_bits(1.0f), 0x3F80);
    assert_int_equal(bf16_bits(INFINITY), 0x7F80);
    assert_int_equal(bf16_bits(bf16_round(0x1.fffffep+127f)), 0x7F80);
    assert_int_equal(bf16_bits(bf16_round(f32_from_bits(0x7F800001u))), 0x7FC0); /* quiet */
}

/* ---- random numbers, reductions ------------------------------------------------------ */

static void random_numbers_are_the_graphs(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 10000; i++) {
        uint64_t seed = i % 7 * 12345678901, step = i / 3, site = i % 5;
        uint64_t sample = i * i * 77777, index = i * UINT64_C(1000000007);
        float got = f32_random(random_key((double)seed, site), (uint32_t)step, sample, index);
        assert_true((double)got == random_uniform(seed, step, site, sample, index));
    }
}

/* The fixed order, as design and codegen.h state it, written down plainly. */
static float sum_in_order(const float *terms, int n) {
    float lanes[128] = {0};
    for (int i = 0; i < n; i++)
        lanes[i % 128] = lanes[i % 128] + terms[i];
    for (int w = 64; w >= 1; w /= 2)
        for (int j = 0; j < w; j++)
            lanes[j] = lanes[j] + lanes[j + w];
    return lanes[0];
}

static void sums_in_the_fixed_order(void **state) {
    (void)state;
    static float terms[3000];
    for (int i = 0; i < COUNT_OF(terms); i++)
        terms[i] = (float)random_uniform(1, 2, 3, 4, (uint64_t)i) - 0.5f;
    static const int sizes[] = {1, 2, 3, 17, 127, 128, 129, 255, 256, 1000, 3000};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        float largest = terms[0];
        for (int j = 0; j < sizes[i]; j++)
            largest = largest > terms[j] ? largest : terms[j];
        assert_same(f32_sum_terms(terms, sizes[i]), sum_in_order(terms, sizes[i]));
        assert_same(f32_max_terms(terms, sizes[i]), largest);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accuracy_is_as_stated),
        cmocka_unit_test(special_values),
        cmocka_unit_test(integers),
        cmocka_unit_test(remainders),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(random_numbers_are_the_graphs),
        cmocka_unit_test(sums_in_the_fixed_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
