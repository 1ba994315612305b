/* tests/test_products.c: matrix products against sums in double, within the bound of f32 sums
 * in any order (and one rounding of a bf16 result); the same bits for every number of threads;
 * nothing read or written outside.  f32 and bf16 operands, the latter by the library where the
 * processor has them, and by the plain loop. */
#include "runtime/runtime.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>

#include <cmocka.h>

/* ---- random numbers and operands --------------------------------------------------- */
static uint64_t random_state;

static uint64_t random_bits(void) {
    random_state += 0x9E3779B97F4A7C15;
    return hash_bytes(&random_state, sizeof random_state, 0);
}

static int64_t random_below(int64_t limit) {
    return (int64_t)(random_bits() % (uint64_t)limit);
}

static float random_value(void) {
    return (float)(random_bits() >> 40) * 0x1p-23f - 1;
}

static int64_t any_extent(void) {
    static const int64_t extents[] = {1, 1, 2, 3, 5, 16, 17, 31, 64, 100, 171, 257};
    return extents[random_below(COUNT_OF(extents))];
}

/* The memory of one operand: what the product may touch holds values, the rest NaN. */
typedef struct Memory {
    float *values;
    bool *touched;
    int64_t count;
} Memory;

static Memory memory_make(int64_t count) {
    Memory memory = {.count = count};
    memory.values = checked_alloc((size_t)count * sizeof *memory.values);
    memory.touched = checked_alloc((size_t)count * sizeof *memory.touched);
    for (int64_t i = 0; i < count; i++)
        memory.values[i] = NAN;
    return memory;
}

static void memory_free(Memory *memory) {
    free(memory->values);
    free(memory->touched);
}

/* Gives an operand's element a value unless it has one. */
static void touch(Memory *memory, int64_t at) {
    assert_in_range(at, 0, memory->count - 1);
    if (!memory->touched[at])
        memory->values[at] = random_value();
    memory->touched[at] = true;
}

typedef struct Indices { /* of one multiply-add */
    int64_t a, b, c;
} Indices;

static Indices loops_at(const ProductLoop *loops, int count, int64_t index, Indices at) {
    for (int i = count - 1; i >= 0; i--) {
        int64_t here = index % loops[i].extent;
        index /= loops[i].extent;
        at.a += here * loops[i].stride_a;
        at.b += here * loops[i].stride_b;
        at.c += here * loops[i].stride_c;
    }
    return at;
}

static int64_t loops_count(const ProductLoop *loops, int count) {
    int64_t total = 1;
    for (int i = 0; i < count; i++)
        total *= loops[i].extent;
    return total;
}

static Indices element(const Product *p, Indices base, int64_t m, int64_t n, int64_t k) {
    return (Indices){base.a + m * p->a_m + k * p->a_k, base.b + k * p->b_k + n * p->b_n,
                     base.c + m * p->c_m + n * p->c_n};
}

/* ---- a random product -------------------------------------------------------------- */
/* Strides of a matrix: one way or the other round, lines apart by more than they hold now and
 * then, and, rarely, without a unit stride.  An axis of extent 1 has a stride that means
 * nothing.  How many elements the matrix spans. */
static int64_t random_strides(int64_t rows, int64_t columns, int64_t *row, int64_t *column,
                              bool unit) {
    int64_t step = unit || random_below(10) ? 1 : 2;
    int64_t slack = random_below(3) ? 0 : random_below(20);
    bool turned = random_below(2);
    int64_t *fast = turned ? row : column, *slow = turned ? column : row;
    int64_t inner = turned ? rows : columns, outer = turned ? columns : rows;
    *fast = step;
    *slow = inner * step + slack;
    int64_t span = (outer - 1) * *slow + (inner - 1) * step + 1;
    if (rows == 1 && random_below(2))
        *row = random_below(1000);
    if (columns == 1 && random_below(2))
        *column = random_below(1000);
    return span;
}

/* A loop around: an operand's stride is past all it spans so far, or 0 (the same again). */
static ProductLoop random_loop(int64_t *span_a, int64_t *span_b, int64_t *span_c, bool batch) {
    ProductLoop loop = {.extent = 1 + random_below(4)};
    loop.stride_a = random_below(4) ? *span_a + random_below(5) : 0;
    loop.stride_b = random_below(4) ? *span_b + random_below(5) : 0;
    loop.stride_c = batch ? *span_c + random_below(5) : 0;
    *span_a += (loop.extent - 1) * loop.stride_a;
    *span_b += (loop.extent - 1) * loop.stride_b;
    *span_c += (loop.extent - 1) * loop.stride_c;
    return loop;
}

static Product random_product(int64_t span[3]) {
    Product p = {.m = any_extent(), .n = any_extent(), .k = any_extent()};
    bool unit = random_below(5) > 0;
    span[0] = random_strides(p.m, p.k, &p.a_m, &p.a_k, unit);
    span[1] = random_strides(p.k, p.n, &p.b_k, &p.b_n, unit);
    span[2] = random_strides(p.m, p.n, &p.c_m, &p.c_n, unit);
    p.batch_count = (int)random_below(3);
    p.accumulate_count = (int)random_below(2);
    for (int i = p.accumulate_count - 1; i >= 0; i--)
        p.accumulate[i] = random_loop(&span[0], &span[1], &span[2], false);
    for (int i = p.batch_count - 1; i >= 0; i--)
        p.batch[i] = random_loop(&span[0], &span[1], &span[2], true);
    p.add = random_below(2);
    return p;
}

typedef struct Operands {
    Memory a, b, c;
} Operands;

static Operands operands_make(const Product *p, const int64_t span[3]) {
    Operands o = {memory_make(span[0]), memory_make(span[1]), memory_make(span[2])};
    int64_t batches = loops_count(p->batch, p->batch_count);
    int64_t terms = loops_count(p->accumulate, p->accumulate_count);
    for (int64_t i = 0; i < batches * terms; i++) {
        Indices base = loops_at(p->batch, p->batch_count, i / terms, (Indices){0});
        base = loops_at(p->accumulate, p->accumulate_count, i % terms, base);
        for (int64_t m = 0; m < p->m; m++)
            for (int64_t k = 0; k < p->k; k++)
                touch(&o.a, element(p, base, m, 0, k).a);
        for (int64_t k = 0; k < p->k; k++)
            for (int64_t n = 0; n < p->n; n++)
                touch(&o.b, element(p, base, 0, n, k).b);
        for (int64_t m = 0; m < p->m; m++)
            for (int64_t n = 0; n < p->n; n++)
                touch(&o.c, element(p, base, m, n, 0).c);
    }
    return o;
}

static void operands_free(Operands *o) {
    memory_free(&o->a);
    memory_free(&o->b);
    memory_free(&o->c);
}

/* The operand in the type that the product takes. */
static void *packed(const float *values, int64_t count, bool bf16) {
    if (!bf16)
        return memcpy(checked_alloc((size_t)count * sizeof *values), values,
                      (size_t)count * sizeof *values);
    uint16_t *halves = checked_alloc((size_t)count * sizeof *halves);
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        assert_int_equal(bits & 0xFFFF, 0);
        halves[i] = (uint16_t)(bits >> 16);
    }
    return halves;
}

/* Back to f32; takes the memory over. */
static float *unpacked(void *memory, int64_t count, bool bf16) {
    if (!bf16)
        return memory;
    const uint16_t *halves = memory;
    float *values = checked_alloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)halves[i] << 16;
        memcpy(&values[i], &bits, sizeof bits);
    }
    free(memory);
    return values;
}

/* Values that a bf16 holds. */
static void truncate_values(Memory *memory, bool bf16) {
    for (int64_t i = 0; bf16 && i < memory->count; i++) {
        uint32_t bits;
        memcpy(&bits, &memory->values[i], sizeof bits);
        bits &= 0xFFFF0000u;
        memcpy(&memory->values[i], &bits, sizeof bits);
    }
}

static void in_bf16(Product *p, Operands *o, bool result) {
    p->bf16_operands = true;
    p->bf16_result = result;
    truncate_values(&o->a, true);
    truncate_values(&o->b, true);
    truncate_values(&o->c, result);
}

static float *run_product(const Product *p, const Operands *o, int threads) {
    omp_set_num_threads(threads);
    PreparedProduct *prepared = product_prepare(p);
    assert_null(strstr(product_implementation(prepared), "ref"));
    char *scratch = aligned_alloc(64, (size_t)(product_scratch_bytes(prepared) * threads + 64));
    void *a = packed(o->a.values, o->a.count, p->bf16_operands);
    void *b = packed(o->b.values, o->b.count, p->bf16_operands);
    void *c = packed(o->c.values, o->c.count, p->bf16_result);
    product_run(prepared, a, b, c, scratch);
    free(a);
    free(b);
    free(scratch);
    product_free(prepared);
    return unpacked(c, o->c.count, p->bf16_result);
}

/* One element in double, and the sum of the terms' magnitudes. */
static void reference(const Product *p, const Operands *o, Indices batch, int64_t m, int64_t n,
                      double *sum, double *magnitude) {
    int64_t terms = loops_count(p->accumulate, p->accumulate_count);
    float before = o->c.values[element(p, batch, m, n, 0).c];
    *sum = p->add ? (double)before : 0;
    *magnitude = fabs(*sum);
    for (int64_t term = 0; term < terms; term++) {
        Indices base = loops_at(p->accumulate, p->accumulate_count, term, batch);
        for (int64_t k = 0; k < p->k; k++) {
            Indices at = element(p, base, m, n, k);
            double product = (double)o->a.values[at.a] * (double)o->b.values[at.b];
            *sum += product;
            *magnitude += fabs(product);
        }
    }
}

static void check_result(const Product *p, const Operands *o, const float *c) {
    int64_t batches = loops_count(p->batch, p->batch_count);
    int64_t terms = loops_count(p->accumulate, p->accumulate_count);
    double rounding = 0x1p-24 * (double)(p->k * terms + 2);
    for (int64_t i = 0; i < batches; i++) {
        Indices base = loops_at(p->batch, p->batch_count, i, (Indices){0});
        for (int64_t m = 0; m < p->m; m++) {
            for (int64_t n = 0; n < p->n; n++) {
                double sum, magnitude;
                reference(p, o, base, m, n, &sum, &magnitude);
                double result = (double)c[element(p, base, m, n, 0).c];
                double bound = rounding * magnitude;
                if (p->bf16_result) /* half of a bf16's last place, of the f32 sum */
                    bound += 0x1p-8 * (fabs(sum) + bound);
                if (!(fabs(result - sum) <= bound))
                    fail_msg("[%d,%d] of batch %d is %.9g, not %.9g (%d x %d x %d)", (int)m,
                             (int)n, (int)i, result, sum, (int)p->m, (int)p->n, (int)p->k);
            }
        }
    }
    for (int64_t i = 0; i < o->c.count; i++)
        if (!o->c.touched[i])
            assert_true(isnan(c[i]));
}

/* ---- tests ------------------------------------------------------------------------- */
static void random_products_are_right(void **state) {
    (void)state;
    int plain = 0, library = 0;
    random_state = 1;
    for (int trial = 0; trial < 300; trial++) {
        int64_t span[3];
        Product p = random_product(span);
        double work = (double)(p.m * p.n * p.k * loops_count(p.batch, p.batch_count) *
                               loops_count(p.accumulate, p.accumulate_count));
        if (work > 2e6)
            continue;
        Operands o = operands_make(&p, span);
        float *c = run_product(&p, &o, 2);
        check_result(&p, &o, c);
        PreparedProduct *prepared = product_prepare(&p);
        bool is_plain = strcmp(product_implementation(prepared), "plain") == 0;
        *(is_plain ? &plain : &library) += 1;
        product_free(prepared);
        free(c);
        operands_free(&o);
    }
    assert_true(plain > 20 && library > 20); /* both ways were taken */
}

/* As this processor multiplies bf16, and by the plain loop. */
static void random_bf16_products_are_right(void **state) {
    (void)state;
    for (int way = 0; way < 2; way++) {
        if (way)
            setenv("COLAC_BF16", "1", 1);
        random_state = 5;
        for (int trial = 0; trial < 300; trial++) {
            int64_t span[3];
            Product p = random_product(span);
            double work = (double)(p.m * p.n * p.k * loops_count(p.batch, p.batch_count) *
                                   loops_count(p.accumulate, p.accumulate_count));
            if (work > 1e6)
                continue;
            Operands o = operands_make(&p, span);
            in_bf16(&p, &o, trial % 2);
            float *c = run_product(&p, &o, 2);
            check_result(&p, &o, c);
            free(c);
            operands_free(&o);
        }
        unsetenv("COLAC_BF16");
    }
}

static Operands dense_operands(const Product *p) {
    int64_t batches = loops_count(p->batch, p->batch_count);
    int64_t terms = loops_count(p->accumulate, p->accumulate_count);
    Operands o = {memory_make(p->m * p->k * batches * terms),
                  memory_make(p->k * p->n * batches * terms),
                  memory_make(p->m * p->n * batches)};
    Memory *all[] = {&o.a, &o.b, &o.c};
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < all[i]->count; j++)
            touch(all[i], j);
    return o;
}

/* Shapes whose summed axis the library would split over threads, unaligned ones, and many tiles
 * with odd edges. */
static const Product bit_cases[] = {
    {.m = 128,
     .n = 512,
     .k = 2048,
     .a_m = 1,
     .a_k = 128,
     .b_k = 512,
     .b_n = 1,
     .c_m = 512,
     .c_n = 1,
     .add = true},
    {.m = 33,
     .n = 17,
     .k = 5461,
     .a_m = 5461,
     .a_k = 1,
     .b_k = 1,
     .b_n = 5461,
     .c_m = 17,
     .c_n = 1},
    {.m = 1,
     .n = 1000,
     .k = 3000,
     .a_m = 3000,
     .a_k = 1,
     .b_k = 1,
     .b_n = 3000,
     .c_m = 1000,
     .c_n = 1},
    {.m = 1000,
     .n = 1,
     .k = 3000,
     .a_m = 1,
     .a_k = 1000,
     .b_k = 1,
     .b_n = 1,
     .c_m = 1,
     .c_n = 1},
    {.m = 701,
     .n = 1093,
     .k = 37,
     .a_m = 37,
     .a_k = 1,
     .b_k = 1093,
     .b_n = 1,
     .c_m = 1,
     .c_n = 701},
    {.m = 100,
     .n = 100,
     .k = 900,
     .a_m = 1800,
     .a_k = 2,
     .b_k = 100,
     .b_n = 1,
     .c_m = 100,
     .c_n = 1}, /* no unit stride: A is read as every other column of a wider one */
    /* one tile alone: no team of ours keeps the library from making its own */
    {.m = 24,
     .n = 32,
     .k = 20000,
     .a_m = 1,
     .a_k = 24,
     .b_k = 32,
     .b_n = 1,
     .c_m = 32,
     .c_n = 1},
    {.m = 16,
     .n = 16,
     .k = 9000,
     .a_m = 9000,
     .a_k = 1,
     .b_k = 1,
     .b_n = 9000,
     .c_m = 16,
     .c_n = 1,
     .add = true},
};

static void bits_do_not_depend_on_threads(void **state) {
    (void)state;
    static const int threads[] = {1, 2, 3, 8};
    random_state = 2;
    for (int i = 0; i < COUNT_OF(bit_cases); i++) {
        Product p = bit_cases[i];
        Product sized = p;
        sized.k *= 2; /* room for the strides of the last */
        Operands o = dense_operands(&sized);
        for (int kind = 0; kind < 3; kind++) { /* f32, bf16 to f32, bf16 */
            if (kind)
                in_bf16(&p, &o, kind == 2);
            float *first = run_product(&p, &o, threads[0]);
            for (int j = 1; j < COUNT_OF(threads); j++) {
                float *other = run_product(&p, &o, threads[j]);
                assert_memory_equal(first, other, (size_t)o.c.count * sizeof(float));
                free(other);
            }
            free(first);
        }
        operands_free(&o);
    }
}

/* Rows of a product do not depend on how many others there are (chunks of M keep bits only when
 * their tiles are the same; but a batch of products is so many single ones). */
static void a_batch_is_so_many_products(void **state) {
    (void)state;
    enum { B = 6, M = 65, N = 70, K = 33 };
    Product p = {.m = M,
                 .n = N,
                 .k = K,
                 .a_m = B * K,
                 .a_k = 1,
                 .b_k = N,
                 .b_n = 1,
                 .c_m = N,
                 .c_n = 1,
                 .batch_count = 1,
                 .batch = {{B, K, K * N, M * N}}};
    random_state = 3;
    Operands o = dense_operands(&p);
    float *whole = run_product(&p, &o, 2);
    check_result(&p, &o, whole);
    free(whole);
    operands_free(&o);
}

/* Accumulated terms are added in order, to what was there or to nothing. */
static void terms_are_accumulated(void **state) {
    (void)state;
    enum { T = 5, M = 40, N = 48, K = 64 };
    for (int add = 0; add < 2; add++) {
        Product p = {.m = M,
                     .n = N,
                     .k = K,
                     .a_m = K,
                     .a_k = 1,
                     .b_k = N,
                     .b_n = 1,
                     .c_m = N,
                     .c_n = 1,
                     .accumulate_count = 1,
                     .accumulate = {{T, M * K, K * N, 0}},
                     .add = add};
        random_state = 4;
        Operands o = dense_operands(&p);
        float *c = run_product(&p, &o, 2);
        check_result(&p, &o, c);
        free(c);
        in_bf16(&p, &o, true); /* rounded once, after the last term */
        c = run_product(&p, &o, 2);
        check_result(&p, &o, c);
        free(c);
        operands_free(&o);
    }
}

/* The products of a LLaMA's step, CoLA's too, all have a fast implementation. */
static void products_of_a_step_are_fast(void **state) {
    (void)state;
    static const int64_t widths[][2] = {{512, 512},  {512, 1376}, {512, 128},
                                        {128, 1376}, {512, 5461}, {512, 32000}};
    const int64_t tokens = 2048;
    for (int i = 0; i < COUNT_OF(widths); i++) {
        int64_t in = widths[i][0], out = widths[i][1];
        Product shapes[] = {{.m = tokens,
                             .n = out,
                             .k = in,
                             .a_m = in,
                             .a_k = 1,
                             .b_k = 1,
                             .b_n = in,
                             .c_m = out,
                             .c_n = 1},
                            {.m = tokens,
                             .n = in,
                             .k = out,
                             .a_m = out,
                             .a_k = 1,
                             .b_k = in,
                             .b_n = 1,
                             .c_m = in,
                             .c_n = 1},
                            {.m = out,
                             .n = in,
                             .k = tokens,
                             .a_m = 1,
                             .a_k = out,
                             .b_k = in,
                             .b_n = 1,
                             .c_m = in,
                             .c_n = 1,
                             .add = true}};
        for (int j = 0; j < 2 * COUNT_OF(shapes); j++) {
            Product p = shapes[j / 2];
            p.bf16_operands = j % 2;
            p.bf16_result = p.bf16_operands && !p.add;
            if (p.bf16_operands && !products_have_bf16())
                continue;
            PreparedProduct *prepared = product_prepare(&p);
            assert_string_not_equal(product_implementation(prepared), "plain");
            assert_null(strstr(product_implementation(prepared), "ref"));
            product_free(prepared);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_products_are_right),
        cmocka_unit_test(random_bf16_products_are_right),
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(a_batch_is_so_many_products),
        cmocka_unit_test(terms_are_accumulated),
        cmocka_unit_test(products_of_a_step_are_fast),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
