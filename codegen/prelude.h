/* codegen/prelude.h: what generated kernels call, and all that they call.  It stands at the
 * head of every generated text, after what differs between targets: prelude_c.h or
 * cuda/prelude_cuda.h.  No libm: the functions are polynomials with selects for the special
 * values, so that a kernel gives the same bits wherever it runs and compilers vectorize it.
 * Written in the part of C that is also CUDA C.  Errors are measured against double precision
 * by tests/test_prelude.c, which also writes them to docs/accuracy.md. */

/* ---- bits and selects -----------------------------------------------------------------------
 */
COLAC_FUNCTION uint32_t f32_bits(float x) {
    union {
        float number;
        uint32_t bits;
    } both = {.number = x};
    return both.bits;
}

COLAC_FUNCTION float f32_from_bits(uint32_t bits) {
    union {
        uint32_t bits;
        float number;
    } both = {.bits = bits};
    return both.number;
}

/* a * b + c, rounded once. */
COLAC_FUNCTION float f32_fma(float a, float b, float c) {
    return COLAC_FMA(a, b, c);
}

COLAC_FUNCTION float f32_fabs(float x) {
    return f32_from_bits(f32_bits(x) & 0x7FFFFFFFu);
}

COLAC_FUNCTION float f32_sqrt(float x) {
    return COLAC_SQRT(x);
}

COLAC_FUNCTION float f32_floor(float x) {
    return COLAC_FLOOR(x);
}

/* x with the sign of y. */
COLAC_FUNCTION float f32_with_sign(float x, float y) {
    return f32_from_bits((f32_bits(x) & 0x7FFFFFFFu) | (f32_bits(y) & 0x80000000u));
}

/* The remainder of the floored quotient: it has the divisor's sign.  Exact while |a / b| <
 * 2^24. */
COLAC_FUNCTION float f32_mod(float a, float b) {
    float remainder = f32_fma(-f32_floor(a / b), b, a);
    /* The quotient may have been rounded up to an integer. */
    return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

/* ---- exp, log -------------------------------------------------------------------------------
 */

/* 2^n for n in [-126, 127]. */
COLAC_FUNCTION float f32_power_of_two(int32_t n) {
    return f32_from_bits((uint32_t)(n + 127) << 23);
}

/* e^x.  1.0 ulp.  0 below -103.98, infinity above 88.73. */
COLAC_FUNCTION float f32_exp(float x) {
    /* What vanishes is computed as e^0: denormal numbers on the way to 0 would be slow. */
    float t = x < -103.98f ? 0.0f : x;
    t = t > 89.0f ? 89.0f : t;
    /* x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer. */
    float shifted = f32_fma(t, 0x1.715476p+0f, 0x1.8p+23f);
    float whole = shifted - 0x1.8p+23f;
    int32_t n = (int32_t)(f32_bits(shifted) - 0x4B400000u);
    float r = f32_fma(whole, -0x1.62e430p-1f, t);
    r = f32_fma(whole, 0x1.05c610p-29f, r);
    float p = 0x1.6a2252p-10f;
    p = f32_fma(p, r, 0x1.123b04p-7f);
    p = f32_fma(p, r, 0x1.5558f8p-5f);
    p = f32_fma(p, r, 0x1.555490p-3f);
    p = f32_fma(p, r, 0x1.fffffcp-2f);
    p = f32_fma(p, r * r, r) + 1.0f;
    /* In two factors, each a normal number, so that overflow and denormal results are right. */
    int32_t half = n >> 1;
    float y = p * f32_power_of_two(half) * f32_power_of_two(n - half);
    return x < -103.98f ? 0.0f : y;
}

/* Natural logarithm.  0.8 ulp.  log 0 is -infinity, of a negative number NaN. */
COLAC_FUNCTION float f32_log(float x) {
    float normal = x < 0x1p-126f ? x * 0x1p+23f : x;
    float bias = x < 0x1p-126f ? -23.0f : 0.0f;
    /* x = 2^e m with m in [sqrt(1/2), sqrt(2)) */
    int32_t offset = (int32_t)(f32_bits(normal) - 0x3F3504F3u);
    int32_t exponent = offset >> 23;
    float f = f32_from_bits(f32_bits(normal) - ((uint32_t)exponent << 23)) - 1.0f;
    float e = (float)exponent + bias;
    float p = 0x1.145812p-4f;
    p = f32_fma(p, f, -0x1.de3c6ep-4f);
    p = f32_fma(p, f, 0x1.e6f06cp-4f);
    p = f32_fma(p, f, -0x1.fc21f8p-4f);
    p = f32_fma(p, f, 0x1.233766p-3f);
    p = f32_fma(p, f, -0x1.555c4ep-3f);
    p = f32_fma(p, f, 0x1.99a4b6p-3f);
    p = f32_fma(p, f, -0x1.000006p-2f);
    p = f32_fma(p, f, 0x1.555548p-2f);
    float square = f * f;
    float tail = f32_fma(p * f, square, e * -0x1.05c610p-29f);
    tail = f32_fma(-0.5f, square, tail);
    float y = f32_fma(e, 0x1.62e430p-1f, f + tail);
    y = x == COLAC_INFINITY ? x : y;
    y = x == 0.0f ? -COLAC_INFINITY : y;
    return x >= 0.0f ? y : COLAC_NAN;
}

/* ---- tanh, sigmoid, erf ---------------------------------------------------------------------
 */

/* Hyperbolic tangent.  1.4 ulp. */
COLAC_FUNCTION float f32_tanh(float x) {
    float size = f32_fabs(x), square = x * x;
    float p = -0x1.756374p-8f;
    p = f32_fma(p, square, 0x1.520b7ap-6f);
    p = f32_fma(p, square, -0x1.b83862p-5f);
    p = f32_fma(p, square, 0x1.11070ap-3f);
    p = f32_fma(p, square, -0x1.555532p-2f);
    float small = f32_fma(p * square, x, x);
    float large = 1.0f - 2.0f / (f32_exp(2.0f * size) + 1.0f);
    return f32_with_sign(size < 0.625f ? small : large, x);
}

/* 1 / (1 + e^-x), without overflow.  2.3 ulp. */
COLAC_FUNCTION float f32_sigmoid(float x) {
    float e = f32_exp(-f32_fabs(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* Error function.  1.1 ulp. */
COLAC_FUNCTION float f32_erf(float x) {
    float size = f32_fabs(x), square = x * x;
    float p = 0x1.5c8f9cp-14f;
    p = f32_fma(p, square, -0x1.aa2a82p-11f);
    p = f32_fma(p, square, 0x1.54c5a8p-8f);
    p = f32_fma(p, square, -0x1.b80e54p-6f);
    p = f32_fma(p, square, 0x1.ce2e06p-4f);
    p = f32_fma(p, square, -0x1.812742p-2f);
    p = f32_fma(p, square, 0x1.06eba8p-3f);
    float small = f32_fma(p, x, x);
    /* 1 - erfc, where log(erfc(t)) / t is a polynomial in t up to 3.95; from there on it is 1.
     */
    float t = size > 3.95f ? 3.95f : size;
    float q = -0x1.78e110p-17f;
    q = f32_fma(q, t, 0x1.527d74p-12f);
    q = f32_fma(q, t, -0x1.dd6d56p-9f);
    q = f32_fma(q, t, 0x1.85517cp-6f);
    q = f32_fma(q, t, -0x1.b3257cp-4f);
    q = f32_fma(q, t, -0x1.45328cp-1f);
    q = f32_fma(q, t, -0x1.20ef1cp+0f);
    float large = size > 3.95f ? 1.0f : 1.0f - f32_exp(q * t);
    float y = size < 0.93f ? small : f32_with_sign(large, x);
    return x == x ? y : x;
}

/* ---- sin, cos -------------------------------------------------------------------------------
 */

/* The part of sin and cos that they share: x = n pi/2 + r, |r| <= pi/4; sine of r + quarters *
 * pi/2.  pi/2 stands in three parts. */
COLAC_FUNCTION float f32_sin_quarters(float x, uint32_t quarters) {
    float shifted = f32_fma(x, 0x1.45f306p-1f, 0x1.8p+23f);
    float n = shifted - 0x1.8p+23f;
    float r = f32_fma(n, -0x1.921fb6p+0f, x);
    r = f32_fma(n, 0x1.777a5cp-25f, r);
    r = f32_fma(n, 0x1.ee59dap-50f, r);
    float square = r * r;
    float p = 0x1.6ccf5ep-19f;
    p = f32_fma(p, square, -0x1.a00f74p-13f);
    p = f32_fma(p, square, 0x1.111108p-7f);
    p = f32_fma(p, square, -0x1.555556p-3f);
    float sine = f32_fma(p * square, r, r);
    float q = 0x1.99e86ap-16f;
    q = f32_fma(q, square, -0x1.6c0c28p-10f);
    q = f32_fma(q, square, 0x1.55554ap-5f);
    float cosine = f32_fma(q, square * square, f32_fma(-0.5f, square, 1.0f));
    uint32_t quadrant = f32_bits(shifted) + quarters;
    float y = quadrant & 1 ? cosine : sine;
    y = quadrant & 2 ? -y : y;
    return f32_fabs(x) < COLAC_INFINITY ? y : COLAC_NAN;
}

/* Sine and cosine.  1.6 ulp for |x| <= 10^4; past 10^6 the argument is no longer reduced well.
 */
COLAC_FUNCTION float f32_sin(float x) {
    return x == 0.0f ? x : f32_sin_quarters(x, 0); /* -0 stays */
}

COLAC_FUNCTION float f32_cos(float x) {
    return f32_sin_quarters(x, 1);
}

/* ---- integers: two's complement, without undefined cases ----------------------------- */

COLAC_FUNCTION int32_t i32_neg(int32_t a) {
    return (int32_t)(0u - (uint32_t)a);
}

COLAC_FUNCTION int32_t i32_abs(int32_t a) {
    return a < 0 ? i32_neg(a) : a;
}

COLAC_FUNCTION int32_t i32_sign(int32_t a) {
    return (a > 0) - (a < 0);
}

COLAC_FUNCTION int32_t i32_add(int32_t a, int32_t b) {
    return (int32_t)((uint32_t)a + (uint32_t)b);
}

COLAC_FUNCTION int32_t i32_sub(int32_t a, int32_t b) {
    return (int32_t)((uint32_t)a - (uint32_t)b);
}

COLAC_FUNCTION int32_t i32_mul(int32_t a, int32_t b) {
    return (int32_t)((uint32_t)a * (uint32_t)b);
}

/* Floored quotient; 0 where the divisor is 0. */
COLAC_FUNCTION int32_t i32_div(int32_t a, int32_t b) {
    int32_t divisor = b == 0 || b == -1 ? 1 : b;
    int32_t quotient = a / divisor - (a % divisor != 0 && (a < 0) != (divisor < 0));
    return b == 0 ? 0 : b == -1 ? i32_neg(a) : quotient;
}

/* Its remainder, with the divisor's sign; 0 where the divisor is 0. */
COLAC_FUNCTION int32_t i32_mod(int32_t a, int32_t b) {
    int32_t divisor = b == 0 || b == -1 ? 1 : b;
    int32_t remainder = a % divisor;
    return remainder != 0 && (remainder < 0) != (divisor < 0) ? remainder + divisor : remainder;
}

/* Truncated; what lies outside is moved to the nearest end, NaN to 0. */
COLAC_FUNCTION int32_t i32_from_f32(float a) {
    float inside = a >= -0x1p+31f && a < 0x1p+31f ? a : 0.0f;
    int32_t whole = (int32_t)inside;
    whole = a >= 0x1p+31f ? INT32_MAX : whole;
    return a < -0x1p+31f ? INT32_MIN : whole;
}

/* ---- bf16, in memory; in kernels a float that a bf16 holds --------------------------- */

/* Of a float that a bf16 holds: exact. */
COLAC_FUNCTION uint16_t bf16_bits(float x) {
    return (uint16_t)(f32_bits(x) >> 16);
}

COLAC_FUNCTION float bf16_float(uint16_t bits) {
    return f32_from_bits((uint32_t)bits << 16);
}

/* To nearest, ties to even; a NaN stays one, and quiet.  All in 32 bits, so that as many lanes
 * are rounded as are computed; the processor's own conversion takes denormal numbers for 0. */
COLAC_FUNCTION float bf16_round(float x) {
    uint32_t bits = f32_bits(x);
    uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
    return f32_from_bits((x == x ? rounded : (bits | 0x400000u)) & 0xFFFF0000u);
}

/* ---- random numbers ------------------------------------------------------------------ */

/* The key of Philox for a seed and a site: 64 bits of both. */
COLAC_FUNCTION uint64_t random_key(double seed, uint64_t site) {
    uint64_t key = (uint64_t)(int64_t)seed * 0x9E3779B97F4A7C15u + site;
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9u;
    key = (key ^ key >> 27) * 0x94D049BB133111EBu;
    return key ^ key >> 31;
}

/* Uniform in [0,1): 24 bits of Philox-4x32-10 (Salmon, Moraes, Dror, Shaw 2011). */
COLAC_FUNCTION float f32_random(uint64_t key, uint32_t step, uint64_t sample, uint64_t index) {
    uint32_t c0 = (uint32_t)index, c1 = step, c2 = (uint32_t)sample;
    uint32_t c3 = (uint32_t)(index >> 32 & 0xFFFFu) | (uint32_t)(sample >> 32 << 16);
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return (float)(c0 >> 8) * 0x1p-24f;
}
