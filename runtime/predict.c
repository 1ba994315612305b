/* runtime/predict.c: what a training step will take on this machine, from the program alone.
 *
 * A program is a flat list of steps.  Most of a training step's time goes to products, and
 * there are few different ones: a sample of each is timed, through the same code and tiles that
 * run it, on operands that lie in memory as a step's do (each run takes the next ones).
 * Kernels are not compiled: their time follows from the bytes that they move and the operations
 * that they do, at speeds that generic loops reach here.
 */
#include "runtime/runtime.h"

#include <math.h>
#include <omp.h>
#include <sys/mman.h>

/* ---- medians -------------------------------------------------------------------------- */
static int compare_seconds(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The lower median: of two the lesser, because a first run finds nothing ready.  Not the least
 * of all: a step has no choice of its best moment. */
static double median_seconds(double *seconds, int count) {
    qsort(seconds, (size_t)count, sizeof *seconds, compare_seconds);
    return seconds[(count - 1) / 2];
}

/* ---- the machine -------------------------------------------------------------------- */
/* In large pages where the system gives them, as a device's.  NULL: not enough memory. */
static char *profile_memory(void) {
    if (machine_available_bytes() / 2 < PROFILE_BYTES)
        return NULL;
    char *memory =
        mmap(NULL, PROFILE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    madvise(memory, PROFILE_BYTES, MADV_HUGEPAGE); /* a wish: what is missing is speed */
    float *values = (float *)(void *)memory;
#pragma omp parallel for
    for (int64_t i = 0; i < PROFILE_BYTES / (int64_t)sizeof(float); i++)
        values[i] = 0.5F;
    return memory;
}

/* The cost of starting and ending a parallel region. */
static double measure_region(void) {
    enum { REGIONS = 200 };
    double best = INFINITY;
    for (int run = 0; run < 3; run++) {
        double start = now_seconds();
        for (int i = 0; i < REGIONS; i++) {
#pragma omp parallel
            __asm__ volatile("" ::: "memory");
        }
        double seconds = (now_seconds() - start) / REGIONS;
        best = seconds < best ? seconds : best;
    }
    return best;
}

/* A kernel as the printer writes them, with one exponential: the most of what a step computes
 * outside of products is of this kind. */
enum { WORK_ELEMENTS = 4096 };
static const char work_source[] =
    "void measure_work(void *const *buffers, const double *scalars) {\n"
    "    const f32_memory *const in = buffers[0];\n"
    "    f32_memory *const out = buffers[1];\n"
    "    (void)scalars;\n"
    "    for (int i = 0; i < 4096; i++)\n"
    "        out[i] = f32_exp(in[i] - 0.5f) * in[i];\n"
    "}\n";

/* What kernel_work says of it: load, sub, exp, mul, store. */
enum { WORK_OPERATIONS = 1 + 1 + 16 + 1 + 1 };

/* The same for where there is no compiler, and so nothing else to predict for. */
static void plain_work(void *const *buffers, const double *scalars) {
    const float *in = buffers[0];
    float *out = buffers[1];
    (void)scalars;
    for (int i = 0; i < WORK_ELEMENTS; i++)
        out[i] = expf(in[i] - 0.5F) * in[i];
}

/* Seconds of all threads for an element of the loop, in the nearest cache. */
static double time_work(KernelFunction work) {
    enum { RUNS = 5, REPEATS = 400 };
    double seconds[RUNS];
    for (int run = 0; run < RUNS; run++) {
        double start = now_seconds();
#pragma omp parallel
        {
            float in[WORK_ELEMENTS] = {0}, out[WORK_ELEMENTS];
            void *buffers[] = {in, out};
            for (int i = 0; i < REPEATS; i++)
                work(buffers, NULL);
        }
        seconds[run] = now_seconds() - start;
    }
    return median_seconds(seconds, RUNS) /
           ((double)WORK_ELEMENTS * REPEATS * omp_get_max_threads());
}

/* The same going through memory from one half of it to the other. */
static double time_streamed_work(KernelFunction work, char *memory) {
    enum { RUNS = 4 };
    int64_t blocks = PROFILE_BYTES / 2 / (WORK_ELEMENTS * (int64_t)sizeof(float));
    float *in = (float *)(void *)memory, *out = in + blocks * WORK_ELEMENTS;
    double seconds[RUNS];
    for (int run = 0; run < RUNS; run++) {
        double start = now_seconds();
#pragma omp parallel for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            void *buffers[] = {in + block * WORK_ELEMENTS, out + block * WORK_ELEMENTS};
            work(buffers, NULL);
        }
        seconds[run] = now_seconds() - start;
    }
    return median_seconds(seconds, RUNS) / (double)(blocks * WORK_ELEMENTS);
}

/* Operations a second, and how much of the lesser of moving and computing is not hidden behind
 * the other. */
static void measure_work(MachineProfile *profile) {
    static const char *const name = "measure_work";
    Text source = {0};
    Diagnostics *diagnostics = diagnostics_new();
    text_puts(&source, embedded_prelude_c_h);
    text_puts(&source, embedded_prelude_h);
    text_puts(&source, work_source);
    JitResult *compiled = jit_compile(&source, 1, &name, 1, diagnostics);
    KernelFunction work = compiled ? compiled->functions[0] : plain_work;
    double computing = time_work(work);
    profile->operations = WORK_OPERATIONS / computing;
    if (profile->memory) {
        double moving =
            2 * sizeof(float) / profile->bandwidths[BANDWIDTH_SIZES - 1].bytes_per_second;
        double both = time_streamed_work(work, profile->memory);
        double shown = (both - fmax(moving, computing)) / fmin(moving, computing);
        profile->unhidden = fmin(fmax(shown, 0), 1);
    }
    jit_free(compiled);
    text_free(&source);
    diagnostics_free(diagnostics);
}

/* The sum of two arrays into a third: bytes touched a second, going round `around` bytes. */
static double measure_bandwidth(char *memory, int64_t around) {
    enum { RUNS = 5, BLOCK = 4096, ARRAYS = 3 };
    int64_t blocks = around / ARRAYS / BLOCK / (int64_t)sizeof(float);
    const float *a = (const float *)(const void *)memory, *b = a + blocks * BLOCK;
    float *to = (float *)(void *)memory + 2 * blocks * BLOCK;
    double seconds[RUNS];
    for (int run = 0; run < RUNS; run++) {
        double start = now_seconds();
#pragma omp parallel for schedule(static)
        for (int64_t block = 0; block < blocks; block++)
#pragma omp simd
            for (int64_t i = block * BLOCK; i < (block + 1) * BLOCK; i++)
                to[i] = a[i] + b[i];
        seconds[run] = now_seconds() - start;
    }
    return (double)(ARRAYS * blocks * BLOCK) * sizeof(float) / median_seconds(seconds, RUNS);
}

MachineProfile *machine_profile_new(void) {
    enum { GROWTH = 8 }; /* from one size to the next */
    MachineProfile *profile = checked_alloc(sizeof *profile);
    profile->memory = profile_memory();
    profile->threads = omp_get_max_threads();
    profile->region_seconds = measure_region();
    int64_t around = PROFILE_BYTES;
    for (int i = BANDWIDTH_SIZES - 1; i >= 0; i--, around /= GROWTH)
        profile->bandwidths[i] = (Bandwidth){
            .around = (double)around,
            .bytes_per_second =
                profile->memory ? measure_bandwidth(profile->memory, around) : 1e10};
    measure_work(profile);
    /* Until one is timed: as many multiply-adds as other operations. */
    profile->product_flops = 2 * profile->operations;
    return profile;
}

void machine_profile_free(MachineProfile *profile) {
    if (!profile)
        return;
    if (profile->memory)
        munmap(profile->memory, PROFILE_BYTES);
    array_free(&profile->products);
    string_map_free(&profile->product_by_shape);
    free(profile);
}

/* ---- products ------------------------------------------------------------------------ */
static void loops_text(const ProductLoop *loops, int count, Text *out) {
    for (int i = 0; i < count; i++)
        text_printf(out, ";%lld,%lld,%lld,%lld", (long long)loops[i].extent,
                    (long long)loops[i].stride_a, (long long)loops[i].stride_b,
                    (long long)loops[i].stride_c);
}

/* Equal for products that run alike. */
static char *product_shape(const Product *p) {
    Text text = {0};
    const int64_t numbers[] = {
        p->m,   p->n,   p->k,   p->a_m, p->a_k,           p->b_k,
        p->b_n, p->c_m, p->c_n, p->add, p->bf16_operands, p->bf16_result};
    for (int i = 0; i < COUNT_OF(numbers); i++)
        text_printf(&text, "%lld,", (long long)numbers[i]);
    loops_text(p->batch, p->batch_count, &text);
    text_puts(&text, "|");
    loops_text(p->accumulate, p->accumulate_count, &text);
    return text.data;
}

static double loops_extent(const ProductLoop *loops, int count) {
    double extent = 1;
    for (int i = 0; i < count; i++)
        extent *= (double)loops[i].extent;
    return extent;
}

double product_flops(const Product *p) {
    return 2 * (double)p->m * (double)p->n * (double)p->k *
           loops_extent(p->batch, p->batch_count) *
           loops_extent(p->accumulate, p->accumulate_count);
}

static int64_t find_product(const MachineProfile *profile, const Product *product) {
    char *shape = product_shape(product);
    int64_t found = string_map_get(&profile->product_by_shape, shape, -1);
    free(shape);
    return found;
}

void machine_profile_enter(MachineProfile *profile, const Product *product, double seconds) {
    int64_t found = find_product(profile, product);
    if (found >= 0) {
        profile->products.data[found].seconds = seconds;
        return;
    }
    char *shape = product_shape(product);
    string_map_set(&profile->product_by_shape, shape, profile->products.count);
    array_push(&profile->products, ((ProductTime){*product, seconds}));
    free(shape);
}

/* How unlike two products are: in the doublings of their extents, and in what else decides how
 * fast a tile is. */
static double unlikeness(const Product *a, const Product *b) {
    return fabs(log2((double)a->m / (double)b->m)) + fabs(log2((double)a->n / (double)b->n)) +
           fabs(log2((double)a->k / (double)b->k)) + (a->add != b->add) +
           8 * (a->bf16_operands != b->bf16_operands) + (a->bf16_result != b->bf16_result) +
           ((a->a_k == 1) != (b->a_k == 1)) + ((a->b_n == 1) != (b->b_n == 1)) +
           2 * ((a->batch_count == 0) != (b->batch_count == 0)) +
           2 * ((a->accumulate_count == 0) != (b->accumulate_count == 0));
}

double predict_product(const MachineProfile *profile, const Product *product) {
    int64_t found = find_product(profile, product);
    if (found >= 0)
        return profile->products.data[found].seconds;
    double rate = profile->product_flops, least = INFINITY;
    for (int64_t i = 0; i < profile->products.count; i++) {
        const ProductTime *known = &profile->products.data[i];
        double distance = unlikeness(&known->product, product);
        if (distance < least) {
            least = distance;
            rate = product_flops(&known->product) / known->seconds;
        }
    }
    return product_flops(product) / rate;
}

/* ---- timing products ------------------------------------------------------------------ */
/* A sample is run at least so often, while time may be overdrawn: the first run finds nothing
 * ready, and the lower median of three is none that was disturbed once. */
enum { LEAST_RUNS = 3, MAX_RUNS = 9 };
static const double profile_overdraft = 0.3;

typedef struct Sample {
    const Product *product;
    double weight; /* FLOPs of a step that are its */
    PreparedProduct *prepared;
    double share;
    double seconds[MAX_RUNS];
    int runs;
} Sample;

static int compare_samples(const void *a, const void *b) {
    double x = ((const Sample *)a)->weight, y = ((const Sample *)b)->weight;
    return (x < y) - (x > y);
}

/* Operands of the next run: behind those of the last, in a round that no core's own cache
 * holds.  Most operands of a product in a step have been made shortly before it, in memory that
 * has been used shortly before that. */
enum { SAMPLE_ROUND = 1 << 26 };
typedef struct Cursor {
    char *memory;
    int64_t at;
} Cursor;

static char *take(Cursor *cursor, int64_t bytes) {
    char *taken = cursor->memory + cursor->at;
    cursor->at += (bytes + 4095) / 4096 * 4096;
    return taken;
}

static double time_sample(Cursor *cursor, const PreparedProduct *prepared, char *scratch) {
    int64_t bytes[3];
    product_operand_bytes(prepared, bytes);
    if (cursor->at > SAMPLE_ROUND ||
        cursor->at + bytes[0] + bytes[1] + bytes[2] + (int64_t)3 * 4096 > PROFILE_BYTES)
        cursor->at = 0;
    float *operands[3];
    for (int i = 0; i < 3; i++)
        operands[i] = (float *)(void *)take(cursor, bytes[i]);
    double start = now_seconds();
    product_run(prepared, operands[0], operands[1], operands[2], scratch);
    return now_seconds() - start;
}

/* The products of a set that are not known yet, heaviest first. */
static int list_samples(const MachineProfile *profile, const ProgramSet *set, Sample *samples) {
    int count = 0;
    double *uses = checked_alloc((size_t)(set->product_count + 1) * sizeof *uses);
    for (int p = 0; p < set->program_count; p++)
        for (int64_t i = 0; i < set->programs[p].step_count; i++)
            if (set->programs[p].steps[i].kind == STEP_PRODUCT)
                uses[set->programs[p].steps[i].index]++;
    for (int i = 0; i < set->product_count; i++)
        if (find_product(profile, &set->products[i]) < 0)
            samples[count++] = (Sample){.product = &set->products[i],
                                        .weight = uses[i] * product_flops(&set->products[i])};
    qsort(samples, (size_t)count, sizeof *samples, compare_samples);
    free(uses);
    return count;
}

/* The library's scratch memory, grown to what the next sample wants and touched. */
typedef struct Scratch {
    char *memory;
    size_t bytes;
} Scratch;

static bool scratch_reserve(Scratch *scratch, size_t bytes) {
    if (scratch->memory && scratch->bytes >= bytes)
        return true;
    free(scratch->memory);
    scratch->bytes = bytes;
    scratch->memory = aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (scratch->memory)
        memset(scratch->memory, 0, bytes);
    return scratch->memory;
}

/* Runs it once, if that can be. */
static void run_sample(MachineProfile *profile, Cursor *cursor, Scratch *scratch,
                       Sample *sample) {
    if (sample->runs == 0)
        sample->prepared = product_prepare_sample(sample->product, &sample->share);
    if (!sample->prepared)
        return;
    size_t bytes = (size_t)product_scratch_bytes(sample->prepared) * (size_t)profile->threads;
    if (scratch_reserve(scratch, bytes))
        sample->seconds[sample->runs++] =
            time_sample(cursor, sample->prepared, scratch->memory);
}

void machine_profile_products(MachineProfile *profile, const ProgramSet *set, double seconds) {
    double start = now_seconds();
    if (!profile->memory)
        return;
    Cursor cursor = {.memory = profile->memory};
    Scratch scratch = {0};
    Sample *samples = checked_alloc((size_t)(set->product_count + 1) * sizeof *samples);
    int count = list_samples(profile, set, samples);
    bool more = count > 0;
    for (int run = 0; run < MAX_RUNS && more; run++) {
        double extra = run < LEAST_RUNS ? profile_overdraft - profile->overdrawn : 0;
        for (int i = 0; i < count && more; i++) {
            if (run == 0 || samples[i].runs > 0)
                run_sample(profile, &cursor, &scratch, &samples[i]);
            more = now_seconds() - start < seconds + extra;
        }
    }
    for (int i = 0; i < count; i++) {
        if (samples[i].runs > 0)
            machine_profile_enter(profile, samples[i].product,
                                  median_seconds(samples[i].seconds, samples[i].runs) /
                                      samples[i].share);
        product_free(samples[i].prepared);
    }
    free(scratch.memory);
    free(samples);
    profile->overdrawn = fmax(0, profile->overdrawn + (now_seconds() - start) - seconds);
}

/* ---- steps ---------------------------------------------------------------------------- */
double profile_bandwidth(const MachineProfile *profile, double around) {
    const Bandwidth *all = profile->bandwidths;
    int above = 0;
    while (above < BANDWIDTH_SIZES && all[above].around < around)
        above++;
    if (above == 0 || above == BANDWIDTH_SIZES)
        return all[above == 0 ? 0 : above - 1].bytes_per_second;
    /* Between two sizes by the logarithm of the size. */
    const Bandwidth *low = &all[above - 1], *high = &all[above];
    double share = log(around / low->around) / log(high->around / low->around);
    return low->bytes_per_second + share * (high->bytes_per_second - low->bytes_per_second);
}

/* What the steps of a set share, each worked out once. */
typedef struct SetTimes {
    double *work;     /* seconds of each kernel's operations */
    double *products; /* seconds of each product */
    double **touched; /* bytes of each kernel's arguments */
    double bandwidth;
} SetTimes;

static double set_bytes(const ProgramSet *set) {
    double bytes = (double)set->arena_bytes;
    for (int i = 0; i < set->slabs.count; i++)
        bytes += (double)slab_bytes(&set->slabs.data[i]);
    return bytes;
}

static SetTimes set_times(const MachineProfile *profile, const ProgramSet *set) {
    size_t kernels = (size_t)set->kernel_count + 1, products = (size_t)set->product_count + 1;
    SetTimes times = {.work = checked_alloc(kernels * sizeof *times.work),
                      .products = checked_alloc(products * sizeof *times.products),
                      .touched = checked_alloc(kernels * sizeof *times.touched),
                      .bandwidth = profile_bandwidth(profile, set_bytes(set))};
    for (int i = 0; i < set->kernel_count; i++) {
        const Kernel *kernel = set->kernels[i];
        times.work[i] = kernel_work(kernel, &kernel->body) / profile->operations;
        times.touched[i] =
            checked_alloc((size_t)(kernel->argument_count + 1) * sizeof **times.touched);
        kernel_touched(kernel, times.touched[i]);
    }
    for (int i = 0; i < set->product_count; i++)
        times.products[i] = predict_product(profile, &set->products[i]);
    return times;
}

static void set_times_free(const ProgramSet *set, SetTimes *times) {
    for (int i = 0; i < set->kernel_count; i++)
        free(times->touched[i]);
    free(times->touched);
    free(times->work);
    free(times->products);
}

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

static double launch_seconds(const MachineProfile *profile, const SetTimes *times,
                             const Step *step) {
    double bytes = 0, work = times->work[step->index];
    for (int i = 0; i < step->operand_count; i++)
        bytes += seen_before(step, i) ? 0 : times->touched[step->index][i];
    double moving = bytes / times->bandwidth;
    return fmax(moving, work) + profile->unhidden * fmin(moving, work);
}

/* Of one step, without its region. */
static double step_seconds(const MachineProfile *profile, const SetTimes *times,
                           const Step *step) {
    double bytes = 0;
    switch (step->kind) {
    case STEP_LAUNCH:
        return launch_seconds(profile, times, step);
    case STEP_PRODUCT:
        return times->products[step->index];
    case STEP_COPY:
    case STEP_ZERO:
        for (int i = 0; i < step->operand_count; i++)
            bytes += (double)step->operands[i].bytes;
        return bytes / times->bandwidth;
    }
    internal_error("a step of no kind");
}

void predict_program(const MachineProfile *profile, const ProgramSet *set,
                     const Program *program, double *seconds) {
    SetTimes times = set_times(profile, set);
    for (int64_t i = 0; i < program->step_count; i++)
        seconds[i] =
            step_seconds(profile, &times, &program->steps[i]) + profile->region_seconds;
    set_times_free(set, &times);
}

Prediction predict_step(const MachineProfile *profile, const ProgramSet *set,
                        int64_t micro_batches) {
    const Program *micro = program_find(set, "micro"), *update = program_find(set, "update");
    SetTimes times = set_times(profile, set);
    double repeat = (double)micro_batches;
    Prediction p = {0};
    for (int64_t i = 0; micro && i < micro->step_count; i++) {
        const Step *step = &micro->steps[i];
        double *part = step->kind == STEP_PRODUCT  ? &p.products
                       : step->kind == STEP_LAUNCH ? &p.kernels
                                                   : &p.copies;
        *part += repeat * step_seconds(profile, &times, step);
        p.overhead += repeat * profile->region_seconds;
    }
    for (int64_t i = 0; update && i < update->step_count; i++) {
        p.update += step_seconds(profile, &times, &update->steps[i]);
        p.overhead += profile->region_seconds;
    }
    p.seconds = p.products + p.kernels + p.copies + p.update + p.overhead;
    set_times_free(set, &times);
    return p;
}
