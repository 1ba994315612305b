/* bench/products.c: what cutting products into tiles costs.  For every product of a training
 * step of a LLaMA (60M's sizes, 8 x 256 tokens), full rank and CoLA: GFLOP/s of
 * runtime/products.c, of the library's whole product with its own threads on the same operands,
 * and of the whole product with weights the other way round, as bench/limit/dots.c has them.
 * Interleaved rounds; operands are cold, as in a step.  The last lines sum each step up.
 *
 *     make bench   or   build/bench/products [ROUNDS]
 */
#include "runtime/runtime.h"

#include <dnnl.h>
#include <inttypes.h>
#include <omp.h>

enum { BATCH = 8, POSITIONS = 256, TOKENS = BATCH * POSITIONS, HEADS = 8, HEAD_WIDTH = 64 };
enum { WIDTH = 512, FFN = 1376, RANK = 128, VOCABULARY = 32000, LAYERS = 8 };
enum { MAX_ROUNDS = 101 };
static const int64_t pool_bytes = INT64_C(2) << 30; /* more than any cache */

static dnnl_engine_t engine;
static dnnl_stream_t stream;
static char *pool;
static int64_t pool_at;

static float *cold_operand(int64_t elements) {
    int64_t bytes = (elements * (int64_t)sizeof(float) + 63) / 64 * 64;
    if (pool_at + bytes > pool_bytes)
        pool_at = 0;
    float *operand = (float *)(void *)(pool + pool_at);
    pool_at += bytes;
    return operand;
}

static void check(dnnl_status_t status, const char *what) {
    if (status == dnnl_success)
        return;
    fprintf(stderr, "%s: oneDNN status %d\n", what, (int)status);
    exit(1);
}

/* One kind of product of the step. */
typedef struct Case {
    const char *name;
    Product product;
    int64_t elements_a, elements_b, elements_c;
    int64_t dots_a[3], dots_b[3], dots_c[3]; /* strides batch, row, column in dots.c */
    int full, cola;                          /* how often in a step of each variant */
} Case;

/* ---- the library alone ------------------------------------------------------------- */
typedef struct Whole {
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, c;
} Whole;

/* A [batch,m,k], B [batch,k,n], C [batch,m,n] with the strides given. */
static Whole whole_prepare(const Product *p, const int64_t *a, const int64_t *b,
                           const int64_t *c) {
    int64_t batch = p->batch_count ? p->batch[0].extent * p->batch[1].extent : 1;
    int skip = batch == 1;
    dnnl_dims_t ea = {batch, p->m, p->k}, eb = {batch, p->k, p->n}, ec = {batch, p->m, p->n};
    dnnl_memory_desc_t da, db, dc;
    dnnl_primitive_desc_t description;
    Whole whole = {0};
#if DNNL_VERSION_MAJOR >= 3
    check(dnnl_memory_desc_create_with_strides(&da, 3 - skip, ea + skip, dnnl_f32, a + skip),
          "A");
    check(dnnl_memory_desc_create_with_strides(&db, 3 - skip, eb + skip, dnnl_f32, b + skip),
          "B");
    check(dnnl_memory_desc_create_with_strides(&dc, 3 - skip, ec + skip, dnnl_f32, c + skip),
          "C");
    check(dnnl_matmul_primitive_desc_create(&description, engine, da, db, NULL, dc, NULL),
          "AB");
    const_dnnl_memory_desc_t ra = da, rb = db, rc = dc;
#else
    dnnl_matmul_desc_t operation;
    check(dnnl_memory_desc_init_by_strides(&da, 3 - skip, ea + skip, dnnl_f32, a + skip), "A");
    check(dnnl_memory_desc_init_by_strides(&db, 3 - skip, eb + skip, dnnl_f32, b + skip), "B");
    check(dnnl_memory_desc_init_by_strides(&dc, 3 - skip, ec + skip, dnnl_f32, c + skip), "C");
    check(dnnl_matmul_desc_init(&operation, &da, &db, NULL, &dc), "AB");
    check(dnnl_primitive_desc_create(&description, &operation, NULL, engine, NULL), "AB");
    const dnnl_memory_desc_t *ra = &da, *rb = &db, *rc = &dc;
#endif
    check(dnnl_primitive_create(&whole.primitive, description), "AB");
    dnnl_primitive_desc_destroy(description);
    check(dnnl_memory_create(&whole.a, ra, engine, NULL), "A");
    check(dnnl_memory_create(&whole.b, rb, engine, NULL), "B");
    check(dnnl_memory_create(&whole.c, rc, engine, NULL), "C");
    return whole;
}

static double whole_seconds(const Whole *whole, const Case *it) {
    check(dnnl_memory_set_data_handle(whole->a, cold_operand(it->elements_a)), "A");
    check(dnnl_memory_set_data_handle(whole->b, cold_operand(it->elements_b)), "B");
    check(dnnl_memory_set_data_handle(whole->c, cold_operand(it->elements_c)), "C");
    dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, whole->a}, {DNNL_ARG_WEIGHTS, whole->b}, {DNNL_ARG_DST, whole->c}};
    double start = now_seconds();
    check(dnnl_primitive_execute(whole->primitive, stream, 3, arguments), "execute");
    return now_seconds() - start;
}

/* ---- the products of a step -------------------------------------------------------- */
static void set3(int64_t *strides, int64_t batch, int64_t row, int64_t column) {
    strides[0] = batch;
    strides[1] = row;
    strides[2] = column;
}

/* y = x W', dx = dy W, dW += dy' x with W [out,in]; dots.c has W [in,out]. */
static int linear(Case *cases, const char *name, int64_t in, int64_t out, int full, int cola) {
    enum { FORWARD, INPUT, WEIGHT };
    static char names[64][40];
    static int made;
    for (int kind = 0; kind < 3; kind++) {
        Case *it = &cases[kind];
        Product *p = &it->product;
        *it = (Case){.full = full, .cola = cola, .name = names[made]};
        static const char *const what[] = {"y", "dx", "dW"};
        snprintf(names[made++], sizeof names[0], "%s %s", name, what[kind]);
        if (kind == FORWARD)
            *p = (Product){.m = TOKENS,
                           .n = out,
                           .k = in,
                           .a_m = in,
                           .a_k = 1,
                           .b_k = 1,
                           .b_n = in,
                           .c_m = out,
                           .c_n = 1};
        else if (kind == INPUT)
            *p = (Product){.m = TOKENS,
                           .n = in,
                           .k = out,
                           .a_m = out,
                           .a_k = 1,
                           .b_k = in,
                           .b_n = 1,
                           .c_m = in,
                           .c_n = 1};
        else
            *p = (Product){.m = out,
                           .n = in,
                           .k = TOKENS,
                           .a_m = 1,
                           .a_k = out,
                           .b_k = in,
                           .b_n = 1,
                           .c_m = in,
                           .c_n = 1,
                           .add = true};
        it->elements_a = p->m * p->k;
        it->elements_b = p->k * p->n;
        it->elements_c = p->m * p->n;
        set3(it->dots_a, 0, p->a_m, p->a_k);
        set3(it->dots_b, 0, kind == INPUT ? 1 : p->n, kind == INPUT ? p->k : 1);
        set3(it->dots_c, 0, p->n, 1);
    }
    return 3;
}

/* A product of attention: [b,m,h,k] and such stand with the head inside, [b,h,s,t] with it
 * outside.  dots.c has every operand dense. */
static void attention(Case *it, const char *name, int64_t m, int64_t n, int64_t k,
                      const int64_t *a, const int64_t *b, const int64_t *c) {
    *it = (Case){.name = name, .full = LAYERS, .cola = LAYERS};
    it->product = (Product){.m = m,
                            .n = n,
                            .k = k,
                            .a_m = a[2],
                            .a_k = a[3],
                            .b_k = b[2],
                            .b_n = b[3],
                            .c_m = c[2],
                            .c_n = c[3],
                            .batch_count = 2,
                            .batch = {{BATCH, a[0], b[0], c[0]}, {HEADS, a[1], b[1], c[1]}}};
    const int64_t batches = (int64_t)BATCH * HEADS;
    it->elements_a = batches * m * k;
    it->elements_b = batches * k * n;
    it->elements_c = batches * m * n;
    bool a_transposed = a[3] != 1, b_transposed = b[3] != 1;
    set3(it->dots_a, m * k, a_transposed ? 1 : k, a_transposed ? m : 1);
    set3(it->dots_b, k * n, b_transposed ? 1 : n, b_transposed ? k : 1);
    set3(it->dots_c, m * n, n, 1);
}

static int attention_cases(Case *cases) {
    const int64_t S = POSITIONS, K = HEAD_WIDTH, D = (int64_t)HEADS * HEAD_WIDTH;
    const int64_t rows[] = {S * D, K, D, 1};    /* [b,s,h,k] as [b,h][s,k] */
    const int64_t columns[] = {S * D, K, 1, D}; /* the same as [b,h][k,s] */
    const int64_t square[] = {HEADS * S * S, S * S, S, 1};
    const int64_t turned[] = {HEADS * S * S, S * S, 1, S};
    attention(&cases[0], "scores", S, S, K, rows, columns, square);
    attention(&cases[1], "values", S, K, S, square, rows, rows);
    attention(&cases[2], "dp", S, S, K, rows, columns, square);
    attention(&cases[3], "dv", S, K, S, turned, rows, rows);
    attention(&cases[4], "dq", S, K, S, square, rows, rows);
    attention(&cases[5], "dk", S, K, S, turned, rows, rows);
    return 6;
}

static int step_cases(Case *cases) {
    int count = 0;
    count += linear(cases + count, "attn D D", WIDTH, WIDTH, 4 * LAYERS, 0);
    count += linear(cases + count, "ffn D F", WIDTH, FFN, 2 * LAYERS, 0);
    count += linear(cases + count, "ffn F D", FFN, WIDTH, LAYERS, 0);
    count += linear(cases + count, "cola D R", WIDTH, RANK, 0, 6 * LAYERS);
    count += linear(cases + count, "cola R D", RANK, WIDTH, 0, 5 * LAYERS);
    count += linear(cases + count, "cola R F", RANK, FFN, 0, 2 * LAYERS);
    count += linear(cases + count, "cola F R", FFN, RANK, 0, LAYERS);
    count += linear(cases + count, "head", WIDTH, VOCABULARY, 1, 1);
    count += attention_cases(cases + count);
    return count;
}

/* ---- measuring --------------------------------------------------------------------- */
typedef struct Figures { /* median seconds */
    double tiled, whole, dots;
} Figures;

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return values[count / 2];
}

static double case_flops(const Case *it) {
    const Product *p = &it->product;
    double batch = p->batch_count ? BATCH * HEADS : 1;
    return 2 * batch * (double)p->m * (double)p->n * (double)p->k;
}

static Figures measure(const Case *it, int rounds) {
    double seconds[3][MAX_ROUNDS];
    const Product *p = &it->product;
    PreparedProduct *prepared = product_prepare(p);
    char *scratch = aligned_alloc(64, 64 + (size_t)product_scratch_bytes(prepared) *
                                               (size_t)omp_get_max_threads());
    int64_t a[3] = {0, p->a_m, p->a_k}, b[3] = {0, p->b_k, p->b_n}, c[3] = {0, p->c_m, p->c_n};
    Whole whole = {0};
    if (!p->batch_count) /* [b,h] is no single stride */
        whole = whole_prepare(p, a, b, c);
    Whole dots = whole_prepare(p, it->dots_a, it->dots_b, it->dots_c);
    for (int round = -1; round < rounds; round++) { /* the first warms up */
        int at = round < 0 ? 0 : round;
        float *x = cold_operand(it->elements_a), *y = cold_operand(it->elements_b);
        float *z = cold_operand(it->elements_c);
        double start = now_seconds();
        product_run(prepared, x, y, z, scratch);
        seconds[0][at] = now_seconds() - start;
        seconds[1][at] = whole.primitive ? whole_seconds(&whole, it) : 0;
        seconds[2][at] = whole_seconds(&dots, it);
    }
    Figures figures = {median(seconds[0], rounds), median(seconds[1], rounds),
                       median(seconds[2], rounds)};
    double gflop = case_flops(it) / 1e9;
    printf("%-12s %6" PRId64 " %6" PRId64 " %6" PRId64 "  %6.0f", it->name, p->m, p->n, p->k,
           gflop / figures.tiled);
    if (whole.primitive)
        printf("  %6.0f", gflop / figures.whole);
    else
        printf("  %6s", "");
    printf("  %6.0f  %5.2f  %s\n", gflop / figures.dots, figures.dots / figures.tiled,
           product_implementation(prepared));
    product_free(prepared);
    free(scratch);
    return figures;
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 9;
    rounds = rounds < 1 ? 1 : rounds > MAX_ROUNDS ? MAX_ROUNDS : rounds;
    check(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine");
    check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream");
    pool = aligned_alloc(64, (size_t)pool_bytes);
    if (!pool)
        return fprintf(stderr, "too little memory\n"), 1;
    memset(pool, 0, (size_t)pool_bytes);
    Case cases[64];
    int count = step_cases(cases);
    Figures full = {0}, cola = {0};
    printf("GFLOP/s           m      n      k   tiled   whole    dots  tiled/dots\n");
    for (int i = 0; i < count; i++) {
        Figures one = measure(&cases[i], rounds);
        full.tiled += cases[i].full * one.tiled;
        full.dots += cases[i].full * one.dots;
        cola.tiled += cases[i].cola * one.tiled;
        cola.dots += cases[i].cola * one.dots;
    }
    printf("full step: tiled %.3f s, dots %.3f s, ratio %.3f\n", full.tiled, full.dots,
           full.tiled / full.dots);
    printf("CoLA step: tiled %.3f s, dots %.3f s, ratio %.3f\n", cola.tiled, cola.dots,
           cola.tiled / cola.dots);
    return 0;
}
