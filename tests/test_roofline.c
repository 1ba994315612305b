/* tests/test_roofline.c: the model of a card by hand and in its tendencies; and against times
 * that others measured and published, of products and of whole training steps, each described
 * from its own code.
 */
#include "cuda/cuda.h"

#include <math.h>
#include <setjmp.h>

#include <cmocka.h>

#define assert_close(a, b) assert_true(fabs((a) - (b)) <= 1e-9 * fabs(b))

/* ---- products ------------------------------------------------------------------------- */
static Product dense(int64_t m, int64_t n, int64_t k, bool bf16) {
    return (Product){.m = m,
                     .n = n,
                     .k = k,
                     .a_m = k,
                     .a_k = 1,
                     .b_k = n,
                     .b_n = 1,
                     .c_m = n,
                     .c_n = 1,
                     .bf16_operands = bf16,
                     .bf16_result = bf16};
}

static double dense_seconds(const Card *card, int64_t m, int64_t n, int64_t k) {
    Product product = dense(m, n, k, true);
    return card_product_seconds(card, &product);
}

/* A share of the card's dense bf16 peak. */
static double dense_share(const Card *card, int64_t m, int64_t n, int64_t k) {
    return 2.0 * (double)m * (double)n * (double)k / dense_seconds(card, m, n, k) /
           card->bf16_flops;
}

static void test_products(void **state) {
    (void)state;
    const Card *a100 = card_find("a100"), *h100 = card_find("h100");
    /* Large ones get what cuBLAS is known for; small and thin ones less. */
    assert_true(dense_share(a100, 16384, 6912, 8192) > 0.8);
    assert_true(dense_share(a100, 16384, 6912, 8192) < 0.87);
    assert_true(dense_share(h100, 16384, 8448, 8192) > 0.7);
    assert_true(dense_share(a100, 512, 512, 512) < 0.2);
    assert_true(dense_share(a100, 16384, 2048, 256) < dense_share(a100, 16384, 2048, 2048));
    /* One tile more than a whole round of all processors costs much of a round, however it is
     * cut. */
    double whole = dense_seconds(a100, 256 * 12, 128 * 9, 8192);
    assert_true(dense_seconds(a100, 256 * 12 + 1, 128 * 9, 8192) > 1.35 * whole);
    /* Few tiles with a long sum: split, it has more of the card than its 16 tiles. */
    assert_true(dense_share(a100, 512, 512, 65536) > 3 * 16.0 / 108);
    /* By memory: 64 rows take as long as their operands. */
    double thin = dense_seconds(a100, 64, 16384, 16384);
    assert_true(thin > 16384 * 16384 * 2.0 / a100->bandwidth);
    assert_true(thin < 1.3 * card_pass_seconds(a100, 16384 * 16384 * 2.0));
    /* f32 outside tensor cores; rows that begin anywhere. */
    Product slow = dense(4096, 4096, 4096, false), odd = dense(4096, 4096, 4097, true);
    double flops = 2.0 * 4096 * 4096 * 4096;
    assert_true(flops / card_product_seconds(a100, &slow) > 0.75 * a100->f32_flops);
    assert_true(flops / card_product_seconds(a100, &slow) < 0.9 * a100->f32_flops);
    assert_true(card_product_seconds(a100, &odd) > 1.8 * dense_seconds(a100, 4096, 4096, 4096));
    /* The library runs one batch loop; each index of another is a call of its own. */
    Product batch = dense(128, 128, 64, true);
    batch.batch_count = 2;
    batch.batch[0] = batch.batch[1] = (ProductLoop){16, 8192, 8192, 16384};
    Product calls = batch;
    calls.batch[1].extent = 1;
    assert_close(card_product_seconds(a100, &batch), 16 * card_product_seconds(a100, &calls));
    calls.batch_count = 1;
    assert_close(card_product_seconds(a100, &batch), 16 * card_product_seconds(a100, &calls));
    calls.accumulate_count = 1;
    calls.accumulate[0] = (ProductLoop){4, 64, 64, 0};
    assert_true(card_product_seconds(a100, &calls) >
                3.9 / 16 * card_product_seconds(a100, &batch));
}

/* Better cards are never slower, and more is never faster. */
static void test_products_are_monotone(void **state) {
    (void)state;
    static const char *const better[] = {"a100-40", "a100", "h100", "h200", "b200"};
    static const int64_t extents[] = {1, 16, 100, 512, 768, 1000, 2048, 5472, 16384, 50304};
    for (int i = 0; i < COUNT_OF(extents); i++)
        for (int j = 0; j < COUNT_OF(extents); j++)
            for (int k = 0; k < COUNT_OF(extents); k++)
                for (int c = 0; c < COUNT_OF(better); c++) {
                    const Card *card = card_find(better[c]);
                    double seconds = dense_seconds(card, extents[i], extents[j], extents[k]);
                    assert_true(seconds > 0 && isfinite(seconds));
                    if (c > 0)
                        assert_true(seconds <= dense_seconds(card_find(better[c - 1]),
                                                             extents[i], extents[j],
                                                             extents[k]));
                    if (i > 0 && extents[i] % 8 == 0)
                        assert_true(seconds >= dense_seconds(card, extents[i - 1], extents[j],
                                                             extents[k]) *
                                                   0.999);
                }
}

/* ---- programs ------------------------------------------------------------------------- */
enum { N = 1 << 24 };

/* to[i] = a[i] + b[i]: three arguments, four operations for each element. */
static Kernel *adding_kernel(Arena *arena, int64_t elements) {
    Kernel *kernel = kernel_new(arena);
    KernelBuilder builder = kernel_builder(kernel);
    BufferId buffers[3];
    for (int i = 0; i < 3; i++)
        buffers[i] = build_buffer(&builder, (Buffer){.dtype = TYPE_F32,
                                                     .elements = elements,
                                                     .argument = i,
                                                     .reads = i > 0,
                                                     .writes = i == 0,
                                                     .name = "x"});
    kernel->argument_count = 3;
    LoopShape shape = {.extent = elements, .tile_of = -1};
    ValueId at, inputs[2];
    open_loops(&builder, LOOP_LANES, &shape, 1, &at);
    for (int i = 0; i < 2; i++)
        inputs[i] = emit_load(&builder, buffers[i + 1], affine_of(arena, at), NULL);
    ValueId sum = emit_map(&builder, OP_ADD, TYPE_F32, inputs, 2, NULL);
    emit_store(&builder, buffers[0], affine_of(arena, at), sum);
    close_loops(&builder);
    kernel_builder_free(&builder);
    kernel_simplify(kernel);
    return kernel;
}

/* A set whose `micro` has a step of every kind: a large kernel apart and in place, and a small
 * one before and after the large memory is touched. */
typedef struct Example {
    Arena *arena;
    Kernel *kernels[2];
    Product products[1];
    Operand operands[5][3];
    Step micro[8], update[2];
    Program programs[2];
    ProgramSet set;
} Example;

static Operand arena_operand(int64_t offset, int64_t bytes) {
    return (Operand){.space = SPACE_ARENA, .offset = offset, .bytes = bytes};
}

static void example_make(Example *e) {
    enum { SMALL = N / 64 };
    int64_t large = 4L * N, small = 4L * SMALL;
    *e = (Example){.arena = arena_new()};
    e->kernels[0] = adding_kernel(e->arena, N);
    e->kernels[1] = adding_kernel(e->arena, SMALL);
    e->products[0] = dense(4096, 4096, 4096, true);
    for (int i = 0; i < 3; i++) {
        e->operands[0][i] = arena_operand(large * i, large); /* three different */
        e->operands[1][i] = arena_operand(i < 2 ? 0 : large, large);
        e->operands[2][i] = arena_operand(3 * large + small * i, small);
        e->operands[3][i] = arena_operand(4 * large + large * i, large);
    }
    e->operands[4][0] = arena_operand(7 * large, large); /* copied, zeroed */
    e->operands[4][1] = arena_operand(8 * large, large);
    Step kernel = {.kind = STEP_LAUNCH, .operand_count = 3};
    static const int kernels[5] = {0, 0, 1, 1, 1}, operands[5] = {0, 1, 2, 2, 2};
    static const int places[5] = {0, 1, 2, 3, 5};
    for (int i = 0; i < 5; i++) {
        e->micro[places[i]] = kernel;
        e->micro[places[i]].index = kernels[i];
        e->micro[places[i]].operands = e->operands[operands[i]];
    }
    e->micro[4] = (Step){.kind = STEP_PRODUCT, .operand_count = 3, .operands = e->operands[3]};
    e->micro[6] = (Step){.kind = STEP_COPY, .operand_count = 2, .operands = e->operands[4]};
    e->micro[7] = (Step){.kind = STEP_ZERO, .operand_count = 1, .operands = e->operands[4]};
    e->update[0] = e->micro[1];
    e->update[1] = e->micro[7];
    e->programs[0] = (Program){.name = "micro", .step_count = 8, .steps = e->micro};
    e->programs[1] = (Program){.name = "update", .step_count = 2, .steps = e->update};
    e->set = (ProgramSet){.program_count = 2,
                          .programs = e->programs,
                          .kernel_count = 2,
                          .kernels = e->kernels,
                          .product_count = 1,
                          .products = e->products};
}

static void example_free(Example *e) {
    kernel_free(e->kernels[0]);
    kernel_free(e->kernels[1]);
    arena_free(e->arena);
}

static void test_steps(void **state) {
    (void)state;
    Example e;
    example_make(&e);
    const Card *a100 = card_find("a100");
    double seconds[8], launch = card_pass_seconds(a100, 0), large = 4.0 * N;
    card_predict_program(a100, &e.set, &e.programs[0], seconds);
    assert_close(seconds[0], card_pass_seconds(a100, 3 * large));
    assert_close(seconds[1], card_pass_seconds(a100, 2 * large)); /* in place */
    /* Too few threads to ask for all that the memory could bring. */
    assert_true(seconds[2] > 1.5 * card_pass_seconds(a100, 3 * large / 64));
    assert_true(seconds[2] < 3 * card_pass_seconds(a100, 3 * large / 64));
    /* 3 MiB that were just touched come from the cache: twice as fast. */
    assert_close(seconds[3] - launch, (seconds[2] - launch) / 2);
    assert_close(seconds[4], card_product_seconds(a100, &e.products[0]));
    /* The product's 96 MiB have taken their place. */
    assert_close(seconds[5], seconds[2]);
    assert_close(seconds[6], card_pass_seconds(a100, 2 * large));
    assert_close(seconds[7], card_pass_seconds(a100, large)); /* 64 MiB are never kept whole */
    example_free(&e);
}

static void test_step_is_the_sum_of_its_parts(void **state) {
    (void)state;
    Example e;
    example_make(&e);
    const Card *card = card_find("h100");
    double seconds[8], update[2], launch = card_pass_seconds(card, 0);
    card_predict_program(card, &e.set, &e.programs[0], seconds);
    card_predict_program(card, &e.set, &e.programs[1], update);
    for (int64_t n = 1; n <= 64; n *= 4) {
        Prediction p = card_predict_step(card, &e.set, n);
        double repeat = (double)n;
        assert_close(p.kernels, repeat * (seconds[0] + seconds[1] + seconds[2] + seconds[3] +
                                          seconds[5] - 5 * launch));
        assert_close(p.products, repeat * (seconds[4] - launch));
        assert_close(p.copies, repeat * (seconds[6] + seconds[7] - 2 * launch));
        assert_close(p.update, update[0] + update[1] - 2 * launch);
        assert_close(p.overhead, (8 * repeat + 2) * launch);
        assert_close(p.seconds, p.kernels + p.products + p.copies + p.update + p.overhead);
    }
    e.set.program_count = 1; /* no update, as where nothing is trained */
    assert_true(card_predict_step(card, &e.set, 1).update == 0);
    example_free(&e);
}

/* Predicted seconds of a step of a model of ours, on each card of a list. */
static void model_seconds(const char *plan, const char *precision, const char *sequences,
                          const char *const *names, int count, double *seconds) {
    const Define defines[] = {{"B", sequences}};
    Request request = {.path = "models/llama.cola",
                       .preset = "20m",
                       .plan = plan,
                       .precision = precision,
                       .defines = defines,
                       .define_count = 1};
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile_model(&request, diagnostics);
    assert_non_null(compilation);
    PassContext context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .for_training = true};
    assert_true(run_passes(&context, NULL, NULL));
    compilation->module = context.module;
    ProgramSet *set = emit_programs(context.module, &cuda_room, false);
    for (int i = 0; i < count; i++)
        seconds[i] = card_predict_step(card_find(names[i]), set, 1).seconds;
    program_set_free(set);
    compilation_free(compilation);
    diagnostics_free(diagnostics);
}

/* More tokens are never faster, a better card never slower; a token in a larger batch costs
 * less. */
static void test_models(void **state) {
    (void)state;
    static const char *const better[] = {"a100-40", "a100", "h100", "h200", "b200"};
    static const char *const plans[] = {"full", "cola_m"}, *const sequences[] = {"1", "2", "8",
                                                                                 "32"};
    enum { CARDS = COUNT_OF(better) };
    for (int precision = 0; precision < 2; precision++)
        for (int plan = 0; plan < COUNT_OF(plans); plan++) {
            double before[CARDS] = {0}, seconds[CARDS];
            for (int b = 0; b < COUNT_OF(sequences); b++) {
                model_seconds(plans[plan], precision ? "bf16" : "f32", sequences[b], better,
                              CARDS, seconds);
                for (int i = 0; i < CARDS; i++) {
                    assert_true(seconds[i] > 1e-4 && seconds[i] < 1);
                    assert_true(i == 0 || seconds[i] <= seconds[i - 1]);
                    assert_true(seconds[i] > before[i]);
                    double more = b > 0 ? atof(sequences[b]) / atof(sequences[b - 1]) : 1;
                    assert_true(b == 0 || seconds[i] < 1.02 * more * before[i]);
                    before[i] = seconds[i];
                }
            }
        }
}

/* ---- published times of products ------------------------------------------------------- */
/* BOOST (arXiv 2512.12131), its repository at 06f1d48: .logging/computation_efficiency,
 * measured by its scripts under benchmarking/computation, on an A100 80 GB: products of LLaMA
 * 3b, 7b and 13b cut for four cards, full rank and of rank d/4, 16,384 tokens, bf16;
 * milliseconds.  `mlp 1` and `qkv 1`: of 4,096 tokens, where PyTorch may not keep the card
 * busy. */
typedef struct MeasuredProducts {
    const char *name;
    double milliseconds;
    int64_t tokens;
    int64_t shapes[2][2]; /* n, k */
    int times;
} MeasuredProducts;
static const MeasuredProducts measured_products[] = {
    {"full 3b attention", 0.345, 16384, {{768, 3072}}, 1},
    {"full 7b attention", 0.566, 16384, {{1024, 4096}}, 1},
    {"full 13b attention", 0.791, 16384, {{1280, 5120}}, 1},
    {"full 3b mlp", 0.849, 16384, {{2048, 3072}}, 1},
    {"full 7b mlp", 1.488, 16384, {{2752, 4096}}, 1},
    {"full 13b mlp", 2.202, 16384, {{3456, 5120}}, 1},
    {"vanilla 3b attention", 0.281, 16384, {{192, 3072}, {3072, 192}}, 1},
    {"vanilla 7b attention", 0.358, 16384, {{256, 4096}, {4096, 256}}, 1},
    {"vanilla 13b attention", 0.543, 16384, {{320, 5120}, {5120, 320}}, 1},
    {"vanilla 3b mlp", 0.487, 16384, {{192, 3072}, {8192, 192}}, 1},
    {"vanilla 7b mlp", 0.654, 16384, {{256, 4096}, {11008, 256}}, 1},
    {"vanilla 13b mlp", 0.978, 16384, {{320, 5120}, {13824, 320}}, 1},
    {"btp 3b attention", 0.207, 16384, {{768, 768}, {768, 768}}, 1},
    {"btp 7b attention", 0.303, 16384, {{1024, 1024}, {1024, 1024}}, 1},
    {"btp 13b attention", 0.447, 16384, {{1280, 1280}, {1280, 1280}}, 1},
    {"btp 3b mlp", 0.338, 16384, {{768, 768}, {2048, 768}}, 1},
    {"btp 7b mlp", 0.539, 16384, {{1024, 1024}, {2752, 1024}}, 1},
    {"btp 13b mlp", 0.839, 16384, {{1280, 1280}, {3456, 1280}}, 1},
    {"qkv 1", 0.401, 4096, {{1024, 1024}, {1024, 1024}}, 3},
    {"mlp 1", 0.362, 4096, {{1024, 1024}, {2752, 1024}}, 2},
    {"qkv 4", 0.893, 16384, {{1024, 1024}, {1024, 1024}}, 3},
    {"mlp 4", 1.064, 16384, {{1024, 1024}, {2752, 1024}}, 2},
};

static void test_published_products(void **state) {
    (void)state;
    const Card *a100 = card_find("a100");
    double sum = 0, squares = 0, most = 0;
    for (int i = 0; i < COUNT_OF(measured_products); i++) {
        const MeasuredProducts *measured = &measured_products[i];
        double seconds = 0;
        for (int j = 0; j < 2 && measured->shapes[j][0]; j++)
            seconds +=
                measured->times * dense_seconds(a100, measured->tokens, measured->shapes[j][0],
                                                measured->shapes[j][1]);
        double error = 1e3 * seconds / measured->milliseconds - 1;
        sum += error;
        squares += error * error;
        most = fmax(most, fabs(error));
    }
    double count = COUNT_OF(measured_products);
    print_message(
        "products on A100: %+.1f%% on average, %.1f%% root mean square, %.0f%% at most\n",
        100 * sum / count, 100 * sqrt(squares / count), 100 * most);
    assert_true(fabs(sum / count) < 0.10);
    assert_true(sqrt(squares / count) < 0.15);
}

/* ---- a published training step, from its parts ------------------------------------------ */
/* What its code runs on one card: products, passes over memory, attention that never stores
 * scores. */
typedef struct Published {
    const Card *card;
    bool bf16;
    double products, passes, attention;
} Published;

static void multiply(Published *p, double times, int64_t m, int64_t n, int64_t k) {
    Product product = dense(m, n, k, p->bf16);
    p->products += times * card_product_seconds(p->card, &product);
}

/* Forward, and backward to its input and its weight. */
static void linear(Published *p, double times, int64_t tokens, int64_t from, int64_t to) {
    multiply(p, times, tokens, to, from);
    multiply(p, times, tokens, from, to);
    multiply(p, times, to, from, tokens);
}

static void pass(Published *p, double times, double bytes) {
    p->passes += times * card_pass_seconds(p->card, bytes);
}

/* A kernel for each of `count` passes over `bytes` in sum. */
static void passes(Published *p, double times, int count, double bytes) {
    pass(p, times * count, bytes / count);
}

/* Forward and backward, at a published speed, whose makers count 2 products of half a square
 * forward and 5 backward. */
static void flash(Published *p, double times, int64_t sequences, int64_t positions,
                  int64_t width, double flops) {
    double of_all = 7.0 * (double)positions * (double)positions * (double)width;
    p->attention += times * (double)sequences * of_all / flops;
}

/* Causal attention forward and backward, FLOP/s: the figures of FlashAttention-2's repository
 * (assets/flash2_a100_fwd_bwd_benchmark.png and …_h100_…), by width of a head and positions. */
static const double FLASH2_A100_64_1K = 119e12, FLASH2_A100_64_4K = 156e12,
                    FLASH2_H100_64_1K = 192e12, TRITON_A100_64_1K = 75e12,
                    TRITON_A100_64_2K = 79e12, TRITON_A100_128_2K = 68e12,
                    FLASH1_H100_128_2K = 108e12;

static double total(const Published *p) {
    return p->products + p->passes + p->attention;
}

/* ---- BOOST: LLaMA 1b on one A100 80 GB ---------------------------------------------------- */
/* arXiv 2512.12131, Fig. 5, and the repository's README: 0.85 s full rank, 0.56 s CoLA
 * ("Vanilla TP" on one card), A100 80 GB, 4 sequences of 4,096, one micro-batch, bf16, no
 * recomputation, PyTorch without compilation; a step is forward, backward, clipping and AdamW.
 * d 2048, d_ff 5472, 24 layers, 32 heads, rank 512, 32,000 tokens, tied head.  Passes as in
 * src/nanotron/models/llama.py and examples/cola/vanilla_cola_llama.py, in units of tokens x d
 * x 2 bytes. */
enum { BOOST_D = 2048, BOOST_F = 5472, BOOST_R = 512, BOOST_V = 32000, BOOST_L = 24 };
enum { BOOST_B = 4, BOOST_S = 4096, BOOST_N = BOOST_B * BOOST_S };

/* What both have: norms, residual sums, copies of q, k, v into the kernel's order and back,
 * rotary positions, attention, the head and its loss in f32. */
static void boost_shared(Published *p) {
    double e = 2.0 * BOOST_N * BOOST_D, logits = (double)BOOST_N * BOOST_V;
    passes(p, BOOST_L, 2, 4 * e); /* forward: norms */
    passes(p, BOOST_L, 3, 6 * e); /* q, k, v made contiguous */
    passes(p, BOOST_L, 2, 8 * e); /* k and v to one tensor, its axes exchanged */
    passes(p, BOOST_L, 2, 4 * e); /* rotary, in place */
    passes(p, BOOST_L, 1, 2 * e); /* attention's result in the order of the residuals */
    passes(p, BOOST_L, 2, 6 * e); /* residual sums */
    passes(p, BOOST_L, 2, 6 * e); /* backward: norms */
    passes(p, BOOST_L, 2, 6 * e); /* two gradients meet at a residual */
    passes(p, BOOST_L, 4, 8 * e); /* gradients of attention's result, q, k, v back in order */
    passes(p, BOOST_L, 2, 4 * e); /* rotary */
    flash(p, BOOST_L, BOOST_B, BOOST_S, BOOST_D, FLASH2_A100_64_4K);
    passes(p, 1, 3, 6 * e); /* embedding and its gradient; last norm */
    linear(p, 1, BOOST_N, BOOST_D, BOOST_V);
    /* To f32; maximum; difference; exp; sum; quotient; backward: times a scalar; to bf16. */
    passes(p, 1, 8, logits * (6 + 4 + 8 + 8 + 4 + 8 + 8 + 6));
}

static double boost_full(void) {
    Published p = {.card = card_find("a100"), .bf16 = true};
    double e = 2.0 * BOOST_N * BOOST_D, f = 2.0 * BOOST_N * BOOST_F;
    boost_shared(&p);
    linear(&p, 4 * BOOST_L, BOOST_N, BOOST_D, BOOST_D); /* q, k, v, o */
    linear(&p, 2 * BOOST_L, BOOST_N, BOOST_D, BOOST_F);
    linear(&p, BOOST_L, BOOST_N, BOOST_F, BOOST_D);
    passes(&p, BOOST_L, 3, 9 * e); /* gradients of q, k, v meet, of gate and up */
    passes(&p, BOOST_L, 2, 5 * f); /* silu; product */
    passes(&p, BOOST_L, 3, 9 * f); /* their gradients */
    double parameters = BOOST_L * (4.0 * BOOST_D * BOOST_D + 3.0 * BOOST_D * BOOST_F) +
                        (double)BOOST_V * BOOST_D;
    passes(&p, 1, 3, parameters * (2 + 4 + 14)); /* norm, clipping, fused AdamW, all in bf16 */
    return total(&p);
}

static double boost_cola(void) {
    Published p = {.card = card_find("a100"), .bf16 = true};
    double f = 2.0 * BOOST_N * BOOST_F, r = 2.0 * BOOST_N * BOOST_R;
    boost_shared(&p);
    linear(&p, BOOST_L, BOOST_N, BOOST_D, 3 * BOOST_R); /* the A's of q, k, v are one */
    linear(&p, 4 * BOOST_L, BOOST_N, BOOST_R, BOOST_D); /* B's of q, k, v, o */
    linear(&p, BOOST_L, BOOST_N, BOOST_D, BOOST_R);     /* A of o */
    linear(&p, BOOST_L, BOOST_N, BOOST_D, 2 * BOOST_R); /* A's of gate and up */
    linear(&p, 2 * BOOST_L, BOOST_N, BOOST_R, BOOST_F);
    linear(&p, BOOST_L, BOOST_N, BOOST_F, BOOST_R);
    linear(&p, BOOST_L, BOOST_N, BOOST_R, BOOST_D);
    passes(&p, BOOST_L, 4, 7 * 2 * r); /* silu between A and B */
    passes(&p, BOOST_L, 4, 7 * 3 * r);
    passes(&p, BOOST_L, 2, 5 * 2 * r); /* gradients of the parts of a grouped A become one */
    passes(&p, BOOST_L, 1, 3 * f);     /* gate times up */
    passes(&p, BOOST_L, 2, 6 * f);
    double parameters =
        BOOST_L * (4.0 * BOOST_R * 2 * BOOST_D + 3.0 * BOOST_R * (BOOST_D + BOOST_F)) +
        (double)BOOST_V * BOOST_D;
    /* Gradients are added up in f32, beside an f32 copy of the weights: added, norm, clipping,
     * AdamW, to bf16. */
    passes(&p, 1, 5, parameters * (10 + 4 + 8 + 28 + 6));
    return total(&p);
}

/* ---- llm.c: GPT-2 and FineWeb -------------------------------------------------------------- */
/* karpathy/llm.c, scripts/run_gpt2_*.sh ("steps in ~300ms/iter" and so on) and discussion 481:
 * 8 cards, each with its part of 524,288 (1558M: 1,048,576) tokens, bf16 with f32 masters,
 * cuDNN's flash attention.  Kernels as in train_gpt2.cu at a7f0108.  What the cards tell each
 * other over NVLink, some 0.5 GB a step of the smallest, is left out. */
typedef struct LlmC {
    const char *card;
    int64_t layers, width, sequences;
    double micro_batches;
    bool fused_gelu; /* -ge 1: in the product */
    double attention;
} LlmC;

static double llmc(LlmC run) {
    enum { POSITIONS = 1024, VOCABULARY = 50304, CARDS = 8 };
    Published p = {.card = card_find(run.card), .bf16 = true};
    int64_t n = run.sequences * POSITIONS, c = run.width;
    double e = 2.0 * (double)(n * c), layers = (double)run.layers;
    linear(&p, layers, n, c, 3 * c);
    linear(&p, layers, n, c, c);
    linear(&p, layers, n, c, 4 * c);
    linear(&p, layers, n, 4 * c, c);
    linear(&p, 1, n, c, VOCABULARY);
    flash(&p, layers, run.sequences, POSITIONS, c, run.attention);
    passes(&p, 1, 2, 4 * e);      /* encoder; first norm */
    passes(&p, layers, 2, 8 * e); /* residual sum and norm at once */
    passes(&p, layers, 1, run.fused_gelu ? 4 * e : 8 * e);
    pass(&p, 1,
         4.0 * (double)n * VOCABULARY); /* softmax, loss and gradient: read, overwritten */
    passes(&p, layers, 1, run.fused_gelu ? 4 * e : 12 * e); /* backward: gelu */
    passes(&p, layers, 4, 9 * e);                           /* biases */
    passes(&p, layers, 2, 8 * e); /* norms, added to the residuals' gradient */
    passes(&p, 1, 4, 7 * e);      /* last norm, encoder, zeroes */
    double step = run.micro_batches * total(&p);
    double parameters = layers * 12.0 * (double)(c * c) + VOCABULARY * (double)c;
    Published update = {.card = p.card};
    pass(&update, 1, 2 * parameters); /* norm */
    pass(&update, 1, (2 + 2 + 8 + 8 + 8) * parameters / CARDS);
    return step + total(&update);
}

/* ---- llm-foundry: MPT --------------------------------------------------------------------- */
/* mosaicml/llm-foundry, scripts/train/benchmarking/README.md (tokens a second of one card), and
 * its submit_benchmarks.py: PyTorch 2.1 without compilation, amp_bf16, FSDP over 8 cards of one
 * machine, LayerNorm in bf16, FlashAttention 1 in Triton, no recomputation; two metrics of
 * every micro-batch, each a cross-entropy in f32 (mosaicml/composer, trainer.py:
 * _eval_train_metrics).  The optimizer has an eighth of the weights, once in several
 * micro-batches; that and what the cards tell each other is left out. */
typedef struct Mpt {
    const char *card;
    int64_t layers, width, sequences, positions;
    double attention, tokens_per_second;
} Mpt;

static double mpt(Mpt run) {
    enum { VOCABULARY = 50368 };
    Published p = {.card = card_find(run.card), .bf16 = true};
    int64_t n = run.sequences * run.positions, d = run.width;
    double e = 2.0 * (double)(n * d), layers = (double)run.layers;
    linear(&p, layers, n, d, 3 * d);
    linear(&p, layers, n, d, d);
    linear(&p, layers, n, d, 4 * d);
    linear(&p, layers, n, 4 * d, d);
    linear(&p, 1, n, d, VOCABULARY);
    flash(&p, layers, run.sequences, run.positions, d, run.attention);
    passes(&p, layers, 2, 4 * e);                    /* norms */
    passes(&p, layers, 2, 6 * e);                    /* residual sums */
    passes(&p, layers, 1, 8 * e);                    /* gelu */
    passes(&p, layers, 4, 10 * e);                   /* backward: norms, and their weights */
    passes(&p, layers, 2, 6 * e);                    /* two gradients meet */
    passes(&p, layers, 1, 12 * e);                   /* gelu */
    passes(&p, layers, 4, 9 * e);                    /* biases */
    passes(&p, layers, 1, 6 * e);                    /* gradients of q, k, v become one */
    passes(&p, 1, 2, 6.0 * (double)n * VOCABULARY);  /* fused loss; its gradient */
    passes(&p, 2, 2, 14.0 * (double)n * VOCABULARY); /* metrics: to f32; softmax */
    passes(&p, 1, 4, 10 * e); /* embedding, last norm and their gradients */
    return total(&p);
}

/* ---- nanoGPT on one A100 80 GB -------------------------------------------------------------- */
/* A. Karpathy, "Let's reproduce GPT-2 (124M)" (June 2024), whose chapters are named after the
 * times:  16 sequences of 1,024, one A100 SXM 80 GB, PyTorch: 1,000 ms in f32, 130 ms in bf16
 * by torch.compile with scores stored, 96 ms with FlashAttention, 93 ms with 50,304 tokens;
 * AdamW not fused. */
enum { NANO_B = 16, NANO_S = 1024, NANO_C = 768, NANO_L = 12, NANO_H = 12 };
enum { NANO_N = NANO_B * NANO_S, NANO_K = NANO_C / NANO_H };

static void nano_linears(Published *p, int64_t vocabulary) {
    linear(p, NANO_L, NANO_N, NANO_C, 3 * NANO_C);
    linear(p, NANO_L, NANO_N, NANO_C, NANO_C);
    linear(p, NANO_L, NANO_N, NANO_C, 4 * NANO_C);
    linear(p, NANO_L, NANO_N, 4 * NANO_C, NANO_C);
    linear(p, 1, NANO_N, NANO_C, vocabulary);
    double parameters = NANO_L * 12.0 * NANO_C * NANO_C + (double)vocabulary * NANO_C;
    /* Norm, clipping; AdamW: decay, both moments, root, quotient, step as kernels over all. */
    passes(p, 1, 10, parameters * (4 + 8 + 8 + 12 + 16 + 8 + 12));
}

/* Scores of all heads, kept: six products, of which two make scores and four read them. */
static void nano_scores(Published *p, double bytes) {
    Product made = dense(NANO_S, NANO_S, NANO_K, p->bf16),
            read = dense(NANO_S, NANO_K, NANO_S, p->bf16);
    made.batch_count = read.batch_count = 1;
    made.batch[0] =
        (ProductLoop){NANO_B * NANO_H, NANO_S * NANO_K, NANO_S * NANO_K, NANO_S * NANO_S};
    read.batch[0] =
        (ProductLoop){NANO_B * NANO_H, NANO_S * NANO_S, NANO_S * NANO_K, NANO_S * NANO_K};
    p->products += NANO_L * (2 * card_product_seconds(p->card, &made) +
                             4 * card_product_seconds(p->card, &read));
    pass(p, NANO_L, bytes);
}

/* What torch.compile makes of the rest: a residual stream in f32, each norm with the sum before
 * it. */
static void nano_fused(Published *p, int64_t vocabulary) {
    double e = 2.0 * NANO_N * NANO_C;
    passes(p, NANO_L, 2, 12 * e); /* sum and norm: x and its part in, x and the norm out */
    passes(p, NANO_L, 1, 8 * e);  /* gelu */
    passes(p, NANO_L, 2, 16 * e); /* backward: norm and sum */
    passes(p, NANO_L, 1, 12 * e);
    passes(p, NANO_L, 4, 9 * e);                        /* biases */
    passes(p, NANO_L, 2, 12 * e);                       /* q, k, v apart and together */
    passes(p, 1, 3, 8.0 * NANO_N * (double)vocabulary); /* maximum; sum; gradient */
    passes(p, 1, 4, 14 * e);
}

static double nano_flash(void) {
    Published p = {.card = card_find("a100"), .bf16 = true};
    nano_linears(&p, 50304);
    nano_fused(&p, 50304);
    flash(&p, NANO_L, NANO_B, NANO_S, NANO_C, FLASH2_A100_64_1K);
    return total(&p);
}

static double nano_stored(void) {
    Published p = {.card = card_find("a100"), .bf16 = true};
    double scores = 2.0 * NANO_B * NANO_H * NANO_S * NANO_S;
    nano_linears(&p, 50304); /* 50,257, which torch.compile pads for the products */
    nano_fused(&p, 50257);
    nano_scores(&p, 5 * scores); /* softmax 2, its gradient 3 */
    return total(&p);
}

static double nano_f32(void) {
    Published p = {.card = card_find("a100")};
    double e = 4.0 * NANO_N * NANO_C, scores = 4.0 * NANO_B * NANO_H * NANO_S * NANO_S;
    double logits = 4.0 * NANO_N * 50257;
    nano_linears(&p, 50257);
    passes(&p, NANO_L, 14, 67 * e); /* as MPT's, with copies of q, k, v for the products */
    /* Scaled, masked, softmax; the gradients of these: 2 each, softmax's 3. */
    nano_scores(&p, (6 + 7) * scores);
    passes(&p, 1, 6, 8 * logits); /* softmax, loss, their gradients */
    return total(&p);
}

/* ---- published against predicted --------------------------------------------------------- */
typedef struct Row {
    const char *name;
    double published, predicted;
} Row;

/* The criterion, of issue 5. */
static const double allowed = 0.20;

static void test_published_steps(void **state) {
    (void)state;
    const Mpt mpts[] = {{"a100", 24, 2048, 14, 2048, TRITON_A100_128_2K, 20513},
                        {"a100", 24, 1024, 32, 2048, TRITON_A100_64_2K, 58782},
                        {"a100", 12, 768, 64, 1024, TRITON_A100_64_1K, 156468},
                        {"h100", 24, 2048, 14, 2048, FLASH1_H100_128_2K, 45455}};
    const char *const mpt_names[] = {"MPT 1b, A100", "MPT 350m, A100", "MPT 125m, A100",
                                     "MPT 1b, H100"};
    Row rows[16] = {
        {"BOOST LLaMA 1b, full rank", 0.85, boost_full()},
        {"BOOST LLaMA 1b, CoLA", 0.56, boost_cola()},
        {"llm.c GPT-2 124M, A100", 0.300,
         llmc((LlmC){"a100", 12, 768, 64, 1, false, FLASH2_A100_64_1K})},
        {"llm.c GPT-2 350M, A100", 0.820,
         llmc((LlmC){"a100", 24, 1024, 64, 1, false, FLASH2_A100_64_1K})},
        {"llm.c GPT-2 774M, A100", 1.7,
         llmc((LlmC){"a100", 36, 1280, 32, 2, false, FLASH2_A100_64_1K})},
        {"llm.c GPT-2 1558M, H100", 2.80,
         llmc((LlmC){"h100", 48, 1600, 16, 8, true, FLASH2_H100_64_1K})},
        {"nanoGPT 124M, compiled, flash", 0.093, nano_flash()},
        {"nanoGPT 124M, compiled, scores stored", 0.130, nano_stored()},
        {"nanoGPT 124M, f32", 1.000, nano_f32()},
    };
    int count = 9;
    for (int i = 0; i < COUNT_OF(mpts); i++)
        rows[count++] =
            (Row){mpt_names[i],
                  (double)(mpts[i].sequences * mpts[i].positions) / mpts[i].tokens_per_second,
                  mpt(mpts[i])};
    for (int i = 0; i < count; i++)
        print_message("%-38s published %6.3f s, predicted %6.3f s, %+5.1f%%\n", rows[i].name,
                      rows[i].published, rows[i].predicted,
                      100 * (rows[i].predicted / rows[i].published - 1));
    print_message("CoLA over full rank: published %.2f, predicted %.2f\n", 0.85 / 0.56,
                  rows[0].predicted / rows[1].predicted);
    for (int i = 0; i < count; i++)
        assert_true(fabs(rows[i].predicted / rows[i].published - 1) <= allowed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_products_are_monotone),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_step_is_the_sum_of_its_parts),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_published_products),
        cmocka_unit_test(test_published_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
