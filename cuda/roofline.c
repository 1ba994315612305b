/* cuda/roofline.c: what a training step should take on a card, from the program and published
 * figures.
 *
 * Nothing is measured, and no constant is chosen so that a published time of a step comes out:
 * tests/test_roofline.c holds the same constants to all of them.  What a card is, is in
 * cards.def; what share of it programs get, is here.
 */
#include "cuda/cuda.h"

#include <math.h>

/* ---- constants ------------------------------------------------------------------------ */

/* What the best of many shapes of a bf16 product reaches, as a share of the dense peak: cuBLAS
 * at the clock that the card holds while it multiplies.  "Maximum Achievable Matmul FLOPS",
 * table of S.  Bekman's Machine Learning Engineering (August 2026): A100 SXM 271 of 312, H100
 * SXM 795 of 989 ("H200 is the same"), B200 SXM 1,745 of 2,250.  For others about their mean:
 * nobody measured them there. */
static double matmul_share(const Card *card) {
    switch (card->architecture) {
    case 80:
        return 0.869;
    case 90:
        return 0.803;
    case 100:
        return 0.776;
    default:
        return 0.8;
    }
}

/* Of the f32 peak, for f32 products, which run outside tensor cores: what large squares are
 * known for.  No table was at hand; nanoGPT in f32 (tests/test_roofline.c) is the one check. */
static const double vector_share = 0.9;

/* Of a product whose rows do not all begin at multiples of 16 bytes.  Tensor cores then get
 * operands by narrow loads.  A. Karpathy (3 February 2023): nanoGPT is 25% faster with 50,304
 * tokens instead of 50,257; products with the vocabulary are about a third of its products, so
 * each took twice the time.  His lecture of June 2024 gains 3 ms of 96, but torch.compile may
 * have padded them before.  So this constant has the least behind it. */
static const double unaligned_share = 0.5;
enum { ALIGNED_BYTES = 16 };

/* The first loads of a tile have nothing to hide behind, nor has its way to memory at its end:
 * a trip to memory and back (below), as much again for a block to begin, and as much for the
 * tile to leave, through shared memory, where 128 B a cycle take 0.4 us for its 64 KiB.
 * Kernels since Hopper store a tile while they compute the next ("warp-specialized persistent
 * ping-pong", CUTLASS: Efficient GEMM). */
static double tile_seconds_unhidden(const Card *card) {
    return card->architecture >= 90 ? 1e-6 : 2e-6;
}

/* Of the memory's peak.  BabelStream 5.0 on an H100 NVL: triad 3.30, add 3.28, copy 3.06 of
 * 3.94 TB/s. */
static const double memory_share = 0.84;

/* From memory and back on a card that is busy: the 0.4 us that chains of loads are known to
 * take on an A100, and half as much for queues. */
static const double memory_latency = 0.6e-6;
enum { UNDER_WAY_BYTES = 16 }; /* of a thread: one vector load */

/* What was written or read a moment ago comes from the second-level cache.  A100's gives 7.05
 * TB/s (GTC 2021, S33322), 3.5 times its memory's, but half of it is far from each processor,
 * at 1.75 times the latency, and what is fetched from there is kept twice: so twice the speed,
 * and half the size. */
static const double cache_speed = 2, cache_share = 0.5;

/* Instructions of a thread that are not arithmetic (addresses, loops, conversions of indices)
 * and warps that wait for each other.  A guess with no table behind it. */
static const double operation_share = 0.5;
enum { BUSY_THREADS = 512 }; /* of a processor: 128 lanes, each result 4 cycles late */

/* From the end of a kernel in a graph to the next one's beginning.  An addition of 1,024
 * numbers takes 1.1 to 1.3 us when it is replayed again and again (pytorch/pytorch, issue
 * 161104). */
static const double launch_cost = 1.3e-6;

/* ---- memory --------------------------------------------------------------------------- */

static double memory_speed(const Card *card) {
    return card->bandwidth * memory_share;
}

/* Bytes that go to memory, and those that the cache has. */
typedef struct Traffic {
    double far, near;
} Traffic;

static double traffic_seconds(const Card *card, Traffic traffic) {
    return (traffic.far + traffic.near / cache_speed) / memory_speed(card);
}

double card_pass_seconds(const Card *card, double bytes) {
    return traffic_seconds(card, (Traffic){.far = bytes}) + launch_cost;
}

/* When memory was last touched, counted in bytes that all steps have touched since. */
typedef struct History {
    double touched;
    StringMap places;
    ARRAY(double) when;
} History;

static void history_free(History *history) {
    string_map_free(&history->places);
    array_free(&history->when);
}

/* Touches an operand; adds to `traffic`. */
static void touch(History *history, const Card *card, const Operand *operand, double bytes,
                  Traffic *traffic) {
    char key[64];
    snprintf(key, sizeof key, "%d,%d,%lld", (int)operand->space, (int)operand->number,
             (long long)operand->offset);
    int64_t place = string_map_get(&history->places, key, -1);
    double room = (double)card->cache_bytes * cache_share;
    bool near = place >= 0 && history->touched - history->when.data[place] + bytes <= room;
    if (place < 0) {
        place = history->when.count;
        array_push(&history->when, 0);
        string_map_set(&history->places, key, place);
    }
    *(near ? &traffic->near : &traffic->far) += bytes;
    history->touched += bytes;
    history->when.data[place] = history->touched;
}

/* ---- products ------------------------------------------------------------------------- */

/* Tiles of cuBLAS's kernels ("Matrix Multiplication Background", NVIDIA's guide on
 * performance), and the share of the arithmetic for which shared memory can feed them: 128 B a
 * cycle against 2,048 FLOP of a processor.  A warp of a large tile computes 64 x 64, for which
 * it loads 64 B a cycle; of a small tile 64 x 32 or 32 x 32, for which it loads 96 or 128; and
 * the tile itself must come in. */
static const struct Tile {
    int rows, columns;
    double share;
} tiles[] = {{256, 128, 1},   {128, 256, 1},   {128, 128, 1},   {256, 64, 0.94},
             {64, 256, 0.94}, {128, 64, 0.89}, {64, 128, 0.89}, {64, 64, 0.67}};
enum { TILE_DEPTH = 32 };   /* of one step along the summed axis */
enum { SPLIT_DEPTH = 256 }; /* of the summed axis that a part has, at least */

static double whole_parts(int64_t number, int64_t part) {
    int64_t parts = (number + part - 1) / part;
    return (double)parts;
}

static bool is_aligned(int64_t extent, int64_t stride, int bytes) {
    return extent == 1 || stride == 1 || stride * bytes % ALIGNED_BYTES == 0;
}

/* FLOP/s of a processor. */
static double processor_flops(const Card *card, const Product *p) {
    if (!p->bf16_operands && !p->tf32)
        return card->f32_flops * vector_share / card->processors;
    int width = p->bf16_operands ? 2 : 4;
    double peak =
        (p->tf32 ? card->tf32_flops : card->bf16_flops) * matmul_share(card) / card->processors;
    bool aligned = is_aligned(p->m, p->a_m, width) && is_aligned(p->k, p->a_k, width) &&
                   is_aligned(p->k, p->b_k, width) && is_aligned(p->n, p->b_n, width) &&
                   is_aligned(p->m, p->c_m, p->bf16_result ? 2 : 4) &&
                   is_aligned(p->n, p->c_n, p->bf16_result ? 2 : 4);
    return aligned ? peak : peak * unaligned_share;
}

/* One call of the library: `batch` matrices, whose bytes take `moving`.  The summed axis is
 * split in parts, which are summed by a kernel of its own, where there are too few tiles. */
static double call_seconds(const Card *card, const Product *p, int64_t batch, double moving) {
    double best = INFINITY, flops = processor_flops(card, p);
    double sums = (double)p->m * (double)p->n * (double)batch * sizeof(float);
    for (int t = 0; t < COUNT_OF(tiles); t++) {
        const struct Tile *tile = &tiles[t];
        for (int splits = 1; splits <= BLAS_PARTS; splits++) {
            if (splits > 1 && (p->k / splits < SPLIT_DEPTH ||
                               sums * splits > (double)cuda_product_workspace(p)))
                break;
            double depth = whole_parts((p->k + splits - 1) / splits, TILE_DEPTH) * TILE_DEPTH;
            double one = 2.0 * tile->rows * tile->columns * depth / (flops * tile->share) +
                         tile_seconds_unhidden(card);
            double all = whole_parts(p->m, tile->rows) * whole_parts(p->n, tile->columns) *
                         (double)batch * splits;
            double seconds = fmax(ceil(all / card->processors) * one, moving);
            if (splits > 1)
                seconds += 2 * sums * splits / memory_speed(card) + launch_cost;
            best = fmin(best, seconds);
        }
    }
    return best;
}

/* Bytes that the operands of a product have: A, B, and C as often as it is read or written. */
static void product_bytes(const Product *p, double bytes[3]) {
    double a = (double)p->m * (double)p->k, b = (double)p->k * (double)p->n, again = 1;
    double c = (double)p->m * (double)p->n;
    const ProductLoop *loops[2] = {p->batch, p->accumulate};
    const int counts[2] = {p->batch_count, p->accumulate_count};
    for (int list = 0; list < 2; list++)
        for (int i = 0; i < counts[list]; i++) {
            const ProductLoop *loop = &loops[list][i];
            a *= loop->stride_a ? (double)loop->extent : 1;
            b *= loop->stride_b ? (double)loop->extent : 1;
            c *= list == 0 ? (double)loop->extent : 1;
            again *= list == 1 ? (double)loop->extent : 1;
        }
    bytes[0] = a * (p->bf16_operands ? 2 : 4);
    bytes[1] = b * (p->bf16_operands ? 2 : 4);
    bytes[2] = c * (p->bf16_result ? 2 : 4) * (2 * again - 1 + p->add);
}

static double product_seconds(const Card *card, const Product *p, Traffic traffic) {
    int64_t batch;
    double calls = (double)cuda_product_calls(p, &batch);
    return calls * call_seconds(card, p, batch, traffic_seconds(card, traffic) / calls);
}

/* What the host or a graph takes to begin all calls of a product. */
static double launch_seconds(const Product *product) {
    int64_t batch;
    return launch_cost * (double)cuda_product_calls(product, &batch);
}

double card_product_seconds(const Card *card, const Product *product) {
    double bytes[3];
    product_bytes(product, bytes);
    return product_seconds(card, product, (Traffic){.far = bytes[0] + bytes[1] + bytes[2]}) +
           launch_seconds(product);
}

/* ---- kernels -------------------------------------------------------------------------- */

/* Of a kernel, worked out once a set. */
typedef struct KernelFacts {
    LaunchList launches;
    double *work;    /* by launch: operations */
    double sum;      /* of them */
    double *touched; /* bytes, by argument */
} KernelFacts;

static KernelFacts kernel_facts(Kernel *kernel) {
    KernelFacts facts = {.launches = launches_of(kernel, "k")};
    facts.work = checked_alloc((size_t)(facts.launches.count + 1) * sizeof *facts.work);
    facts.touched = checked_alloc((size_t)(kernel->argument_count + 1) * sizeof *facts.touched);
    kernel_touched(kernel, facts.touched);
    for (int i = 0; i < facts.launches.count; i++) {
        facts.work[i] = kernel_work(kernel, &facts.launches.launches[i].body);
        facts.sum += facts.work[i];
    }
    return facts;
}

/* Threads that run at a time, on average: the last blocks do not fill the card.  A thread that
 * is not compiled yet has the registers that ours may have at most. */
static double running_threads(const Card *card, const Launch *launch) {
    enum { REGISTERS = 65536 }; /* of a processor */
    KernelResources resources = {.registers = REGISTERS / RESIDENT_THREADS,
                                 .shared_bytes = launch->shared_bytes};
    double held = (double)card->processors * card_resident_blocks(card, launch, &resources);
    double rounds = ceil((double)launch->blocks / held);
    return (double)launch->blocks / rounds * launch->threads * launch->teams;
}

/* A scatter's team looks at every index, and waits for memory at those that are its own. */
static double dealt_seconds(const Kernel *kernel, const Launch *launch) {
    if (launch->dealt < 0)
        return 0;
    const Loop *loop = kernel->instructions.data[launch->dealt].loop;
    return (double)loop->extent / (double)launch->splits * memory_latency;
}

/* Without what it costs to launch them. */
static double kernel_seconds(const Card *card, const Kernel *kernel, const KernelFacts *facts,
                             Traffic traffic) {
    double needed = memory_speed(card) * memory_latency / UNDER_WAY_BYTES; /* threads */
    double operations = card->f32_flops / 2 * operation_share, seconds = 0;
    for (int i = 0; i < facts->launches.count; i++) {
        const Launch *launch = &facts->launches.launches[i];
        double threads = running_threads(card, launch);
        double share = facts->sum > 0 ? facts->work[i] / facts->sum : 0;
        double moving = traffic_seconds(card, traffic) * share / fmin(1, threads / needed);
        double busy = fmin(1, threads / ((double)card->processors * BUSY_THREADS));
        double computing = facts->work[i] / (operations * busy);
        seconds += fmax(fmax(moving, computing), dealt_seconds(kernel, launch));
    }
    return seconds;
}

/* ---- steps ---------------------------------------------------------------------------- */

typedef struct StepTime {
    double seconds, overhead; /* launches are in the second alone */
} StepTime;

/* Has an operand before this one the same memory? */
static bool seen_before(const Step *step, int operand) {
    const Operand *this = &step->operands[operand];
    for (int i = 0; i < operand; i++) {
        const Operand *other = &step->operands[i];
        if (other->space == this->space && other->number == this->number &&
            other->offset == this->offset)
            return true;
    }
    return false;
}

static StepTime step_time(const Card *card, const ProgramSet *set, const KernelFacts *facts,
                          const Step *step, History *history) {
    Traffic traffic = {0};
    double bytes[3];
    if (step->kind == STEP_PRODUCT)
        product_bytes(&set->products[step->index], bytes);
    for (int i = 0; i < step->operand_count; i++) {
        const Operand *operand = &step->operands[i];
        double touched = step->kind == STEP_LAUNCH    ? facts[step->index].touched[i]
                         : step->kind == STEP_PRODUCT ? bytes[i]
                                                      : (double)operand->bytes;
        if (!seen_before(step, i))
            touch(history, card, operand, touched, &traffic);
    }
    switch (step->kind) {
    case STEP_LAUNCH: {
        const KernelFacts *kernel = &facts[step->index];
        return (StepTime){kernel_seconds(card, set->kernels[step->index], kernel, traffic),
                          launch_cost * kernel->launches.count};
    }
    case STEP_PRODUCT: {
        const Product *product = &set->products[step->index];
        return (StepTime){product_seconds(card, product, traffic), launch_seconds(product)};
    }
    case STEP_COPY:
    case STEP_ZERO:
        return (StepTime){traffic_seconds(card, traffic), launch_cost};
    }
    internal_error("a step of no kind");
}

static KernelFacts *set_facts(const ProgramSet *set) {
    KernelFacts *facts = checked_alloc((size_t)(set->kernel_count + 1) * sizeof *facts);
    for (int i = 0; i < set->kernel_count; i++)
        facts[i] = kernel_facts(set->kernels[i]);
    return facts;
}

static void set_facts_free(const ProgramSet *set, KernelFacts *facts) {
    for (int i = 0; i < set->kernel_count; i++) {
        free(facts[i].work);
        free(facts[i].touched);
    }
    free(facts);
}

/* By step; to be freed.  What an earlier run of the program left in the cache is not
 * counted. */
static StepTime *program_times(const Card *card, const ProgramSet *set,
                               const KernelFacts *facts, const Program *program) {
    StepTime *times = checked_alloc((size_t)(program->step_count + 1) * sizeof *times);
    History history = {0};
    for (int64_t i = 0; i < program->step_count; i++)
        times[i] = step_time(card, set, facts, &program->steps[i], &history);
    history_free(&history);
    return times;
}

void card_predict_program(const Card *card, const ProgramSet *set, const Program *program,
                          double *seconds) {
    KernelFacts *facts = set_facts(set);
    StepTime *times = program_times(card, set, facts, program);
    for (int64_t i = 0; i < program->step_count; i++)
        seconds[i] = times[i].seconds + times[i].overhead;
    free(times);
    set_facts_free(set, facts);
}

Prediction card_predict_step(const Card *card, const ProgramSet *set, int64_t micro_batches) {
    const Program *micro = program_find(set, "micro"), *update = program_find(set, "update");
    KernelFacts *facts = set_facts(set);
    Prediction p = {0};
    StepTime *times = micro ? program_times(card, set, facts, micro) : NULL;
    double repeat = (double)micro_batches;
    for (int64_t i = 0; micro && i < micro->step_count; i++) {
        StepKind kind = micro->steps[i].kind;
        double *part = kind == STEP_PRODUCT  ? &p.products
                       : kind == STEP_LAUNCH ? &p.kernels
                                             : &p.copies;
        *part += repeat * times[i].seconds;
        p.overhead += repeat * times[i].overhead;
    }
    free(times);
    times = update ? program_times(card, set, facts, update) : NULL;
    for (int64_t i = 0; update && i < update->step_count; i++) {
        p.update += times[i].seconds;
        p.overhead += times[i].overhead;
    }
    free(times);
    p.seconds = p.products + p.kernels + p.copies + p.update + p.overhead;
    set_facts_free(set, facts);
    return p;
}
