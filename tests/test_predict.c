/* tests/test_predict.c: predicted times against sums worked out by hand from a machine whose
 * figures the test invents; samples of products against the products themselves, and against
 * the memory that they say they reach.  Nothing here is timed. */
#include "runtime/runtime.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define assert_close(a, b) assert_true(fabs((a) - (b)) <= 1e-12 * fabs(b))

/* ---- a machine and a program set ------------------------------------------------------ */
enum { N = 1000, MOMENTS = 2 };

/* 100 bytes a second, or 400 in a small round; 50 operations a second. */
static MachineProfile invented_machine(void) {
    MachineProfile profile = {.threads = 2,
                              .region_seconds = 0.125,
                              .operations = 50,
                              .unhidden = 0.25,
                              .product_flops = 1000};
    const double around[BANDWIDTH_SIZES] = {1 << 10, 1 << 14, 1 << 18, 1 << 22};
    const double speed[BANDWIDTH_SIZES] = {400, 300, 200, 100};
    for (int i = 0; i < BANDWIDTH_SIZES; i++)
        profile.bandwidths[i] = (Bandwidth){around[i], speed[i]};
    return profile;
}

static void forget_machine(MachineProfile *profile) {
    array_free(&profile->products);
    string_map_free(&profile->product_by_shape);
}

/* to[i] = a[i] + b[i] of N elements, as a kernel of three arguments. */
static Kernel *adding_kernel(Arena *arena) {
    Kernel *kernel = kernel_new(arena);
    KernelBuilder builder = kernel_builder(kernel);
    BufferId buffers[3];
    for (int i = 0; i < 3; i++)
        buffers[i] = build_buffer(&builder, (Buffer){.dtype = TYPE_F32,
                                                     .elements = N,
                                                     .argument = i,
                                                     .reads = i > 0,
                                                     .writes = i == 0,
                                                     .name = "x"});
    kernel->argument_count = 3;
    LoopShape shape = {.extent = N, .tile_of = -1};
    ValueId at, inputs[2];
    open_loops(&builder, LOOP_LANES, &shape, 1, &at);
    for (int i = 0; i < 2; i++)
        inputs[i] = emit_load(&builder, buffers[i + 1], affine_of(arena, at), NULL);
    ValueId sum = emit_map(&builder, OP_ADD, TYPE_F32, inputs, 2, NULL);
    emit_store(&builder, buffers[0], affine_of(arena, at), sum);
    close_loops(&builder);
    kernel_builder_free(&builder);
    return kernel;
}

static Product plain_product(int64_t m, int64_t n, int64_t k) {
    return (Product){
        .m = m, .n = n, .k = k, .a_m = k, .a_k = 1, .b_k = n, .b_n = 1, .c_m = n, .c_n = 1};
}

/* A set whose `micro` has a step of every kind, and its kernel twice: apart, and in place. */
typedef struct Example {
    Arena *arena;
    Kernel *kernels[1];
    Product products[2];
    Operand operands[4][3];
    Step micro[6], update[2];
    Program programs[2];
    ProgramSet set;
} Example;

static Operand arena_operand(int64_t offset, int64_t bytes) {
    return (Operand){.space = SPACE_ARENA, .offset = offset, .bytes = bytes};
}

static void example_make(Example *e, int64_t arena_bytes) {
    *e = (Example){.arena = arena_new()};
    e->kernels[0] = adding_kernel(e->arena);
    e->products[0] = plain_product(10, 20, 30);
    e->products[1] = plain_product(20, 20, 30);
    for (int i = 0; i < 3; i++) {
        e->operands[0][i] = arena_operand(4L * N * i, 4L * N); /* three different */
        e->operands[1][i] = arena_operand(i < 2 ? 0 : 4L * N, 4L * N);
    }
    e->operands[2][0] = arena_operand(0, 700); /* copied */
    e->operands[2][1] = arena_operand(700, 700);
    e->operands[3][0] = arena_operand(0, 500); /* zeroed */
    e->micro[0] = (Step){.kind = STEP_LAUNCH, .operand_count = 3, .operands = e->operands[0]};
    e->micro[1] = (Step){.kind = STEP_LAUNCH, .operand_count = 3, .operands = e->operands[1]};
    e->micro[2] = (Step){.kind = STEP_PRODUCT, .index = 0};
    e->micro[3] = (Step){.kind = STEP_PRODUCT, .index = 1};
    e->micro[4] = (Step){.kind = STEP_COPY, .operand_count = 2, .operands = e->operands[2]};
    e->micro[5] = (Step){.kind = STEP_ZERO, .operand_count = 1, .operands = e->operands[3]};
    e->update[0] = e->micro[1];
    e->update[1] = e->micro[5];
    e->programs[0] = (Program){.name = "micro", .step_count = 6, .steps = e->micro};
    e->programs[1] = (Program){.name = "update", .step_count = 2, .steps = e->update};
    e->set = (ProgramSet){.program_count = 2,
                          .programs = e->programs,
                          .kernel_count = 1,
                          .kernels = e->kernels,
                          .product_count = 2,
                          .products = e->products,
                          .arena_bytes = arena_bytes};
}

static void example_free(Example *e) {
    kernel_free(e->kernels[0]);
    arena_free(e->arena);
}

/* ---- steps ---------------------------------------------------------------------------- */
static void test_steps_by_formula(void **state) {
    (void)state;
    Example e;
    example_make(&e, 1 << 24); /* beyond the largest round: 100 bytes a second */
    MachineProfile machine = invented_machine();
    machine_profile_enter(&machine, &e.products[0], 7);
    double seconds[6], update[2], region = 0.125;
    predict_program(&machine, &e.set, &e.programs[0], seconds);
    predict_program(&machine, &e.set, &e.programs[1], update);
    /* Two loads, an addition and a store for each of N elements. */
    double work = 4.0 * N / 50;
    double apart = 3 * 4.0 * N / 100, in_place = 2 * 4.0 * N / 100;
    assert_true(apart > work && in_place == work);
    assert_close(seconds[0], apart + 0.25 * work + region);
    assert_close(seconds[1], in_place + 0.25 * work + region);
    assert_close(seconds[2], 7 + region);
    /* Not timed: at the rate of the other, of which it is the double. */
    assert_close(seconds[3], 14 + region);
    assert_close(seconds[4], (700 + 700) / 100.0 + region);
    assert_close(seconds[5], 500 / 100.0 + region);
    assert_close(update[0], seconds[1]);
    assert_close(update[1], seconds[5]);
    forget_machine(&machine);
    example_free(&e);
}

static void test_step_is_the_sum_of_its_parts(void **state) {
    (void)state;
    Example e;
    example_make(&e, 1 << 24);
    MachineProfile machine = invented_machine();
    double seconds[6], update[2], region = machine.region_seconds;
    predict_program(&machine, &e.set, &e.programs[0], seconds);
    predict_program(&machine, &e.set, &e.programs[1], update);
    for (int64_t n = 1; n <= 64; n *= 4) {
        Prediction p = predict_step(&machine, &e.set, n);
        double repeat = (double)n;
        assert_close(p.kernels, repeat * (seconds[0] + seconds[1] - 2 * region));
        assert_close(p.products, repeat * (seconds[2] + seconds[3] - 2 * region));
        assert_close(p.copies, repeat * (seconds[4] + seconds[5] - 2 * region));
        assert_close(p.update, update[0] + update[1] - 2 * region);
        assert_close(p.overhead, (6 * repeat + 2) * region);
        assert_close(p.seconds, p.kernels + p.products + p.copies + p.update + p.overhead);
    }
    e.set.program_count = 1; /* no update, as where nothing is trained */
    assert_true(predict_step(&machine, &e.set, 1).update == 0);
    forget_machine(&machine);
    example_free(&e);
}

static void test_bandwidth_is_that_of_the_programs_round(void **state) {
    (void)state;
    MachineProfile machine = invented_machine();
    assert_close(profile_bandwidth(&machine, 1), 400.0);
    assert_close(profile_bandwidth(&machine, 1 << 10), 400.0);
    assert_close(profile_bandwidth(&machine, 1 << 12), 350.0); /* halfway in doublings */
    assert_close(profile_bandwidth(&machine, 1 << 14), 300.0);
    assert_close(profile_bandwidth(&machine, 1 << 20), 150.0);
    assert_close(profile_bandwidth(&machine, 1e12), 100.0);
    /* A program's round: its arena and its slabs. */
    Example e;
    example_make(&e, 1 << 13);
    Slab slabs[MOMENTS];
    for (int i = 0; i < MOMENTS; i++)
        slabs[i] = (Slab){.role = ROLE_MOMENT, .elements = (1 << 13) / 4 / MOMENTS};
    e.set.slabs = (SlabList){MOMENTS, MOMENTS, slabs};
    double seconds[6];
    predict_program(&machine, &e.set, &e.programs[0], seconds);
    assert_close(seconds[5], 500 / 300.0 + machine.region_seconds);
    example_free(&e);
}

/* ---- products ------------------------------------------------------------------------- */
static void test_products_by_similarity(void **state) {
    (void)state;
    MachineProfile machine = invented_machine();
    Product wide = plain_product(64, 1024, 64), deep = plain_product(64, 64, 1024);
    /* Nothing is known: the machine's rate. */
    assert_close(product_flops(&wide), 2.0 * 64 * 1024 * 64);
    assert_close(predict_product(&machine, &wide), product_flops(&wide) / 1000);
    machine_profile_enter(&machine, &wide, 2);
    machine_profile_enter(&machine, &deep, 3);
    assert_close(predict_product(&machine, &wide), 2.0);
    Product wider = plain_product(64, 4096, 64), deeper = plain_product(64, 64, 2048);
    assert_close(predict_product(&machine, &wider), 8.0);
    assert_close(predict_product(&machine, &deeper), 6.0);
    /* Another stride or another sum is another product, of the same rate here. */
    Product other = wide;
    other.c_m = 2048;
    machine_profile_enter(&machine, &other, 5);
    assert_close(predict_product(&machine, &other), 5.0);
    assert_close(predict_product(&machine, &wide), 2.0);
    Product narrow = wide; /* in bf16, of which nothing is known: the other's rate again */
    narrow.bf16_operands = true;
    assert_close(predict_product(&machine, &narrow), 2.0);
    machine_profile_enter(&machine, &narrow, 1);
    assert_close(predict_product(&machine, &narrow), 1.0);
    assert_close(predict_product(&machine, &wide), 2.0);
    machine_profile_enter(&machine, &wide, 4); /* a later time replaces it */
    assert_close(predict_product(&machine, &wide), 4.0);
    /* Loops multiply the work. */
    Product batch = wide;
    batch.batch_count = batch.accumulate_count = 1;
    batch.batch[0] = (ProductLoop){.extent = 3, .stride_a = 1, .stride_b = 1, .stride_c = 1};
    batch.accumulate[0] = (ProductLoop){.extent = 5, .stride_a = 1, .stride_b = 1};
    assert_close(product_flops(&batch), 15 * product_flops(&wide));
    forget_machine(&machine);
}

/* Memory that ends at a page which must not be touched. */
typedef struct Guarded {
    char *pages;
    size_t size, guard;
    float *values;
} Guarded;

static Guarded guarded_make(int64_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    Guarded g = {.size = ((size_t)bytes + page - 1) / page * page, .guard = page};
    g.pages = mmap(NULL, g.size + g.guard, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(g.pages != MAP_FAILED);
    assert_int_equal(mprotect(g.pages + g.size, g.guard, PROT_NONE), 0);
    g.values = (float *)(void *)(g.pages + g.size - bytes);
    return g;
}

static void guarded_free(Guarded *g) {
    munmap(g->pages, g->size + g->guard);
}

/* Runs a sample on operands that are exactly as large as it says. */
static void run_guarded(const PreparedProduct *sample) {
    int64_t bytes[3];
    product_operand_bytes(sample, bytes);
    int64_t scratch_bytes = product_scratch_bytes(sample) * omp_get_max_threads();
    char *scratch = aligned_alloc(64, (size_t)scratch_bytes + 64);
    Guarded operands[3];
    for (int i = 0; i < 3; i++) {
        assert_true(bytes[i] > 0 && bytes[i] <= PRODUCT_SAMPLE_BYTES);
        operands[i] = guarded_make(bytes[i]);
    }
    assert_non_null(scratch);
    product_run(sample, operands[0].values, operands[1].values, operands[2].values, scratch);
    for (int i = 0; i < 3; i++)
        guarded_free(&operands[i]);
    free(scratch);
}

static uint64_t random_state;

static int64_t random_below(int64_t limit) {
    random_state += 0x9E3779B97F4A7C15;
    return (int64_t)(hash_bytes(&random_state, sizeof random_state, 0) % (uint64_t)limit);
}

/* Any orientation of the operands, a batch perhaps. */
static Product random_product(void) {
    static const int64_t extents[] = {1, 3, 17, 64, 200, 700, 3000, 7000};
    int64_t m = extents[random_below(COUNT_OF(extents))];
    int64_t n = extents[random_below(COUNT_OF(extents))];
    int64_t k = extents[random_below(COUNT_OF(extents))];
    Product p = plain_product(m, n, k);
    if (random_below(2)) {
        p.a_m = 1;
        p.a_k = m;
    }
    if (random_below(2)) {
        p.b_k = 1;
        p.b_n = k;
    }
    if (random_below(2)) {
        p.c_m = 1;
        p.c_n = m;
    }
    if (random_below(3) == 0) {
        p.batch_count = 1;
        p.batch[0] = (ProductLoop){1 + random_below(6), m * k, k * n, m * n};
    }
    p.add = random_below(2);
    p.bf16_operands = random_below(2);
    p.bf16_result = p.bf16_operands && random_below(2);
    return p;
}

static void test_samples_reach_what_they_say(void **state) {
    (void)state;
    int partial = 0, whole = 0, threads = omp_get_max_threads();
    omp_set_num_threads(
        2); /* a sample has tiles for each: how many are partial depends on it */
    for (int i = 0; i < 60; i++) {
        random_state = (uint64_t)i;
        Product product = random_product();
        double share = 0;
        PreparedProduct *sample = product_prepare_sample(&product, &share);
        assert_non_null(sample);
        assert_true(share > 0 && share <= 1);
        share < 1 ? partial++ : whole++;
        run_guarded(sample);
        product_free(sample);
    }
    omp_set_num_threads(threads);
    assert_true(partial > 5 && whole > 5);
}

/* Shorter sums must not bring another implementation: dense operands in bf16 have one of their
 * own. */
static void test_samples_run_as_the_product(void **state) {
    (void)state;
    int shortened = 0, threads = omp_get_max_threads();
    omp_set_num_threads(2);
    for (int i = 0; i < 16; i++) {
        int64_t k = i & 1 ? 4096 : 320;
        Product product = plain_product(512, i & 2 ? 1376 : 128, k);
        if (i & 4) {
            product.b_k = 1;
            product.b_n = k;
        }
        product.bf16_operands = true;
        product.bf16_result = !(i & 8);
        double share = 0;
        PreparedProduct *sample = product_prepare_sample(&product, &share);
        PreparedProduct *prepared = product_prepare(&product);
        assert_non_null(sample);
        assert_string_equal(product_implementation(sample), product_implementation(prepared));
        run_guarded(sample);
        shortened += share < 0.2;
        product_free(sample);
        product_free(prepared);
    }
    omp_set_num_threads(threads);
    assert_true(shortened > 0);
}

/* A sample that is the whole product computes it; a smaller one, its first tiles. */
static void test_samples_compute_the_product(void **state) {
    (void)state;
    enum { M = 96, COLUMNS = 80, K = 50 };
    Product product = plain_product(M, COLUMNS, K);
    double share;
    PreparedProduct *sample = product_prepare_sample(&product, &share);
    PreparedProduct *prepared = product_prepare(&product);
    int64_t bytes[3], scratch_bytes = product_scratch_bytes(prepared) * omp_get_max_threads();
    assert_true(share == 1);
    assert_int_equal(product_scratch_bytes(sample), product_scratch_bytes(prepared));
    product_operand_bytes(sample, bytes);
    assert_int_equal(bytes[0], 4 * M * K);
    assert_int_equal(bytes[1], 4 * K * COLUMNS);
    assert_int_equal(bytes[2], 4 * M * COLUMNS);
    float *a = checked_alloc((size_t)bytes[0]), *b = checked_alloc((size_t)bytes[1]);
    float *c = checked_alloc((size_t)bytes[2]), *d = checked_alloc((size_t)bytes[2]);
    char *scratch = aligned_alloc(64, (size_t)scratch_bytes + 64);
    for (int i = 0; i < M * K; i++)
        a[i] = (float)random_below(1000) * 1e-3F;
    for (int i = 0; i < K * COLUMNS; i++)
        b[i] = (float)random_below(1000) * 1e-3F;
    product_run(sample, a, b, c, scratch);
    product_run(prepared, a, b, d, scratch);
    assert_memory_equal(c, d, (size_t)bytes[2]);
    free(a);
    free(b);
    free(c);
    free(d);
    free(scratch);
    product_free(sample);
    product_free(prepared);
}

/* Operands that no memory holds: brought near, or not sampled at all. */
static void test_samples_of_absurd_products(void **state) {
    (void)state;
    double share;
    Product far = plain_product(2048, 1 << 26, 64); /* lines of C 256 MiB apart */
    PreparedProduct *sample = product_prepare_sample(&far, &share);
    assert_non_null(sample);
    assert_true(share < 0.01);
    run_guarded(sample);
    product_free(sample);
    Product absurd = plain_product(64, 64, 64);
    absurd.batch_count = 1;
    absurd.batch[0] = (ProductLoop){4, INT64_MAX / 4, INT64_MAX / 4, INT64_MAX / 4};
    assert_null(product_prepare_sample(&absurd, &share));
}

/* ---- this machine --------------------------------------------------------------------- */
static void test_measured_profile(void **state) {
    (void)state;
    Example e;
    example_make(&e, 1 << 20);
    MachineProfile *machine = machine_profile_new();
    assert_int_equal(machine->threads, omp_get_max_threads());
    assert_true(machine->region_seconds > 0 && machine->operations > 0);
    assert_true(machine->unhidden >= 0 && machine->unhidden <= 1);
    for (int i = 0; i < BANDWIDTH_SIZES; i++) {
        assert_true(machine->bandwidths[i].bytes_per_second > 0);
        assert_true(i == 0 ||
                    machine->bandwidths[i].around > machine->bandwidths[i - 1].around);
    }
    machine_profile_products(machine, &e.set, 0.01);
    assert_true(!machine->memory || machine->products.count > 0);
    int64_t known = machine->products.count;
    machine_profile_products(machine, &e.set, 1); /* what is known is not timed again */
    assert_true(machine->products.count == e.set.product_count || known == 0);
    Prediction p = predict_step(machine, &e.set, 1);
    assert_true(p.products > 0 && isfinite(p.seconds));
    machine_profile_free(machine);
    example_free(&e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_by_formula),
        cmocka_unit_test(test_step_is_the_sum_of_its_parts),
        cmocka_unit_test(test_bandwidth_is_that_of_the_programs_round),
        cmocka_unit_test(test_products_by_similarity),
        cmocka_unit_test(test_samples_reach_what_they_say),
        cmocka_unit_test(test_samples_run_as_the_product),
        cmocka_unit_test(test_samples_compute_the_product),
        cmocka_unit_test(test_samples_of_absurd_products),
        cmocka_unit_test(test_measured_profile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
