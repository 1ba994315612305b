/* tests/test_emulator.c: the emulator of CUDA C.  What is right gives the host's bits, under
 * any seed; planted faults are each found, with their class, thread and line. */
#include "tests/emulator/emulator.h"
#include "tests/emulator/private.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the planted kernels ---------------------------------------------------------------- */
static char folder[64], *text;
static EmulatorModule *planted;

static EmulatorModule *compile(const char *source) {
    return emulator_compile(&source, 1, folder);
}

static int set_up(void **unused) {
    (void)unused;
    size_t length;
    snprintf(folder, sizeof folder, "/tmp/colac-test-XXXXXX");
    assert_non_null(mkdtemp(folder));
    text = read_file("tests/emulator/planted.cu", 1 << 20, &length);
    assert_non_null(text);
    planted = compile(text);
    return planted ? 0 : -1;
}

static int tear_down(void **unused) {
    (void)unused;
    char command[128];
    emulator_unload(planted);
    free(text);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

/* ---- launches --------------------------------------------------------------------------- */
enum { MAX_BUFFERS = 3, MARGIN = 64 };
/* Buffers of registered memory, each between margins that are not. */
typedef struct Buffers {
    int count;
    char *memory[MAX_BUFFERS];
    void *data[MAX_BUFFERS];
} Buffers;

static Buffers buffers_new(int count, const size_t *bytes) {
    Buffers buffers = {.count = count};
    for (int i = 0; i < count; i++) {
        buffers.memory[i] = aligned_alloc(64, (bytes[i] + 2 * MARGIN + 63) / 64 * 64);
        memset(buffers.memory[i], 0, bytes[i] + 2 * MARGIN);
        buffers.data[i] = buffers.memory[i] + MARGIN;
        emulator_register(buffers.data[i], bytes[i]);
    }
    return buffers;
}

static void buffers_free(Buffers *buffers) {
    for (int i = 0; i < buffers->count; i++) {
        emulator_unregister(buffers->data[i]);
        free(buffers->memory[i]);
    }
}

static EmulatorLaunch launch_of(const char *name, unsigned grid, unsigned block,
                                const Buffers *buffers) {
    EmulatorLaunch launch = {.function = emulator_function(planted, name),
                             .name = name,
                             .grid = {grid, 1, 1},
                             .block = {block, 1, 1},
                             .arguments = buffers->data,
                             .argument_count = buffers->count};
    assert_non_null(launch.function);
    return launch;
}

static void runs_well(const EmulatorLaunch *launch) {
    const char *sentence = emulator_launch(launch);
    if (sentence)
        fail_msg("%s", sentence);
}

/* The number of the line that says so. */
static int marked_line(const char *mark) {
    char wanted[128];
    snprintf(wanted, sizeof wanted, "/* FOUND %s */", mark);
    const char *found = strstr(text, wanted);
    assert_non_null(found);
    int line = 1;
    for (const char *c = text; c < found; c++)
        line += *c == '\n';
    return line;
}

static void expect(const char *sentence, const char *part) {
    if (!sentence || !strstr(sentence, part))
        fail_msg("no `%s` in: %s", part, sentence ? sentence : "(no fault)");
}

static void expect_line(const char *sentence, const char *mark) {
    char wanted[64];
    snprintf(wanted, sizeof wanted, "; text line %d: ", marked_line(mark));
    expect(sentence, wanted);
}

/* A launch over buffers of 256 bytes, all 0: what is told starts with the kernel and `told`,
 * and ends with the marked line. */
static void finds(const char *name, unsigned grid, unsigned block, int buffer_count,
                  const char *told) {
    char wanted[256];
    Buffers buffers = buffers_new(buffer_count, (size_t[]){256, 256, 256});
    EmulatorLaunch launch = launch_of(name, grid, block, &buffers);
    const char *sentence = emulator_launch(&launch);
    snprintf(wanted, sizeof wanted, "%s: %s", name, told);
    expect(sentence, wanted);
    expect_line(sentence, name);
    buffers_free(&buffers);
}

/* ---- what is right ---------------------------------------------------------------------- */
enum { ROWS = 2048, WIDTH = 768, LANES = 128 };

/* The order of the text: 128 lanes, then a halving tree. */
static void host_rows(const float *x, const float *gain, float *y) {
    for (int r = 0; r < ROWS; r++, x += WIDTH, y += WIDTH) {
        float lanes[LANES] = {0};
        for (int i = 0; i < WIDTH; i++)
            lanes[i % LANES] += x[i] * x[i];
        for (int w = LANES / 2; w >= 1; w /= 2)
            for (int i = 0; i < w; i++)
                lanes[i] += lanes[i + w];
        float scale = 1.0f / sqrtf(lanes[0] / WIDTH + 1e-5f);
        for (int i = 0; i < WIDTH; i++)
            y[i] = x[i] * scale * gain[i];
    }
}

static void check_rows(const char *name, unsigned grid, unsigned block) {
    size_t bytes = (size_t)ROWS * WIDTH * sizeof(float);
    Buffers buffers = buffers_new(3, (size_t[]){bytes, WIDTH * sizeof(float), bytes});
    float *x = buffers.data[0], *gain = buffers.data[1], *y = buffers.data[2];
    for (int i = 0; i < ROWS * WIDTH; i++)
        x[i] = (float)((uint32_t)i * 2654435761u >> 8) * 0x1p-23f - 1.0f;
    for (int i = 0; i < WIDTH; i++)
        gain[i] = 1.0f + (float)i / 1000;
    float *wanted = checked_alloc(bytes);
    host_rows(x, gain, wanted);
    EmulatorLaunch launch = launch_of(name, grid, block, &buffers);
    for (launch.seed = 0; launch.seed < 10; launch.seed++) {
        memset(y, 0, bytes);
        emulator_poison(y, bytes);
        runs_well(&launch);
        assert_memory_equal(y, wanted, bytes);
        assert_null(emulator_find_poison(y, bytes));
    }
    free(wanted);
    buffers_free(&buffers);
}

static void test_rows(void **unused) {
    (void)unused;
    check_rows("rows_by_block", ROWS, 128);
    check_rows("rows_by_warp", ROWS / 4, 128);
}

static int as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void test_shuffles(void **unused) {
    (void)unused;
    Buffers buffers = buffers_new(2, (size_t[]){256, 64 * 8 * sizeof(int)});
    int *x = buffers.data[0], *y = buffers.data[1];
    for (int i = 0; i < 64; i++)
        x[i] = i * i % 41;
    EmulatorLaunch launch = launch_of("exchange", 1, 64, &buffers);
    for (launch.seed = 0; launch.seed < 5; launch.seed++) {
        runs_well(&launch);
        for (int t = 0; t < 64; t++) {
            int lane = t % 32, *warp = x + (t - lane), votes = 0, *got = y + 8 * t;
            for (int i = 0; i < 32; i++)
                votes |= (int)((unsigned)(warp[i] % 3 == 0) << i);
            float real = (float)x[t] + 0.5f;
            assert_int_equal(got[0], warp[5]);
            assert_int_equal(got[1], warp[lane ^ 5]);
            assert_int_equal(got[2], warp[lane < 3 ? lane : lane - 3]);
            assert_int_equal(got[3], warp[lane > 28 ? lane : lane + 3]);
            assert_int_equal(got[4], as_int((float)warp[lane ^ 16] + 0.5f));
            assert_int_equal(got[5], votes);
            assert_int_equal(got[6], __builtin_popcount((unsigned)x[t]));
            assert_int_equal(got[7], as_int(fmaf(real, real, 1.0f)));
        }
    }
    buffers_free(&buffers);
}

static void test_positions(void **unused) {
    (void)unused;
    Buffers buffers = buffers_new(1, (size_t[]){24 * 16 * sizeof(int)});
    EmulatorLaunch launch = launch_of("positions", 2, 4, &buffers);
    memcpy(launch.grid, (unsigned[]){2, 3, 4}, sizeof launch.grid);
    memcpy(launch.block, (unsigned[]){4, 2, 2}, sizeof launch.block);
    launch.seed = 3;
    runs_well(&launch);
    const int *y = buffers.data[0];
    for (int i = 0; i < 24 * 16; i++) {
        int block = i / 16, thread = i % 16;
        assert_int_equal(y[i], 100000 * (block / 6) + 10000 * (block / 2 % 3) +
                                   1000 * (block % 2) + 100 * (thread / 8) +
                                   10 * (thread / 4 % 2) + thread % 4);
    }
    buffers_free(&buffers);
}

static void test_memory(void **unused) {
    (void)unused;
    Buffers buffers = buffers_new(3, (size_t[]){256, 256, 256});
    EmulatorLaunch launch = launch_of("narrow", 1, 64, &buffers);
    for (launch.seed = 0; launch.seed < 5; launch.seed++) {
        runs_well(&launch);
        uint16_t tile[64];
        for (int i = 0; i < 64; i++)
            tile[i] = (uint16_t)(7 * i);
        for (int i = 0; i < 16; i++) {
            uint32_t parts[3];
            memcpy(&parts[0], (char *)buffers.data[0] + 4 * i, 4);
            memcpy(&parts[1], (char *)buffers.data[1] + 4 * i, 4);
            memcpy(&parts[2], (char *)tile + 4 * i, 4);
            assert_int_equal(((uint32_t *)buffers.data[2])[i], parts[0] + parts[1] + parts[2]);
        }
    }
    buffers.count = 1; /* the others stay as they are */
    static const struct {
        const char *name;
        unsigned block;
        int first, last;
    } kernels[] = {{"own_memory", 32, 589, 589},
                   {"half_warps", 32, 16, 15},
                   {"copied_barrier", 64, 66, 1}};
    for (int k = 0; k < COUNT_OF(kernels); k++) {
        launch = launch_of(kernels[k].name, 1, kernels[k].block, &buffers);
        for (launch.seed = 0; launch.seed < 5; launch.seed++)
            runs_well(&launch);
        assert_int_equal(((int *)buffers.data[0])[0], kernels[k].first);
        assert_int_equal(((int *)buffers.data[0])[kernels[k].block - 1], kernels[k].last);
    }
    buffers.count = 3;
    buffers_free(&buffers);
}

static void test_argument_counts(void **unused) {
    (void)unused;
    int memory[100];
    void *arguments[100];
    emulator_register(memory, sizeof memory);
    for (int i = 0; i < 100; i++)
        arguments[i] = &memory[i];
    static const int counts[] = {8, 10, 30, 60, 100};
    for (int i = 0; i < COUNT_OF(counts); i++) {
        char name[32];
        for (int k = 0; k < 100; k++)
            memory[k] = 3 * k + 1;
        snprintf(name, sizeof name, "arguments_of_%d", counts[i]);
        EmulatorLaunch launch = {.function = emulator_function(planted, name),
                                 .name = name,
                                 .grid = {1, 1, 1},
                                 .block = {1, 1, 1},
                                 .arguments = arguments,
                                 .argument_count = counts[i]};
        runs_well(&launch);
        assert_int_equal(memory[counts[i] - 1], 17);
    }
    emulator_unregister(memory);
}

/* ---- races ------------------------------------------------------------------------------ */

static void test_races(void **unused) {
    (void)unused;
    finds("race_of_warps", 1, 64, 2,
          "race: block 0, thread 32 stores 4 bytes at a shared variable + 128 (of 256), which "
          "thread 0 has loaded, and no barrier stands between; ");
    finds("race_of_lanes", 1, 32, 2,
          "race: block 0, thread 0 loads 4 bytes at a shared variable + 4 (of 128), which "
          "thread 1 has stored, and no barrier stands between; ");
    finds("race_past_warp_barrier", 1, 64, 2,
          "race: block 0, thread 32 stores 4 bytes at a shared variable + 0 (of 256), which "
          "thread 0 has stored, and no barrier stands between; ");
    finds("race_of_half_warps", 1, 32, 1,
          "race: block 0, thread 20 stores 4 bytes at a shared variable + 0 (of 128), which "
          "thread 0 has loaded, and no barrier stands between; ");
    finds(
        "race_of_blocks", 4, 32, 1,
        "race: block 1, thread 3 stores 4 bytes at argument 0 + 0 (of 256), which thread 3 of "
        "block 0 has stored, and blocks have no order; ");
    finds("race_of_loading_blocks", 4, 1, 2,
          "race: block 3, thread 0 stores 4 bytes at argument 0 + 0 (of 256), which several "
          "blocks have loaded, and blocks have no order; ");
    finds(
        "race_by_order", 1, 64, 2,
        "race: block 0, thread 1 loads 4 bytes at a shared variable + 0 (of 4), which thread 0 "
        "has stored, and no barrier stands between; ");
    finds(
        "race_of_narrow", 1, 32, 2,
        "race: block 0, thread 4 loads 4 bytes at argument 0 + 0 (of 256), which thread 0 has "
        "stored, and no barrier stands between; ");
}

/* Whichever comes first of a store and a load: one of the two is found. */
static void test_races_under_seeds(void **unused) {
    (void)unused;
    Buffers buffers = buffers_new(2, (size_t[]){256, 256});
    EmulatorLaunch launch = launch_of("race_of_warps", 1, 64, &buffers);
    char early[32], late[32];
    snprintf(early, sizeof early, "text line %d: ", marked_line("race_of_warps"));
    snprintf(late, sizeof late, "text line %d: ", marked_line("race_of_warps, later"));
    int early_count = 0;
    for (launch.seed = 0; launch.seed < 20; launch.seed++) {
        const char *sentence = emulator_launch(&launch);
        expect(sentence, "race_of_warps: race: ");
        if (strstr(sentence, early))
            early_count++;
        else
            expect(sentence, late);
    }
    assert_in_range(early_count, 2, 18); /* both orders came up */
    launch = launch_of("race_of_blocks", 4, 32, &buffers);
    for (launch.seed = 1; launch.seed <= 5; launch.seed++)
        expect(emulator_launch(&launch), "race_of_blocks: race: ");
    buffers_free(&buffers);
}

/* ---- divergence ------------------------------------------------------------------------- */

static void test_divergence(void **unused) {
    (void)unused;
    finds(
        "barriers_of_two_kinds", 1, 64, 1,
        "divergence: block 0, thread 40 waits at __syncthreads, and thread 0 at __syncthreads "
        "(text line ");
    finds("barrier_after_end", 1, 64, 1,
          "divergence: block 0, thread 0 waits at __syncthreads, and thread 5 has ended; ");
    finds("barrier_and_shuffle", 1, 64, 1,
          "divergence: block 0, thread 40 waits at __syncwarp for lanes 0xffffffff, and thread "
          "32 at __syncthreads (text line ");
    finds("shuffles_of_two_kinds", 1, 32, 1,
          "divergence: block 0, thread 0 waits at a shuffle for lanes 0xffffffff, and thread 1 "
          "at a shuffle for lanes 0xffffffff (text line ");
    finds("shuffle_after_end", 1, 32, 1,
          "divergence: block 0, thread 0 waits at a shuffle for lanes 0xffffffff, and thread 9 "
          "has ended; ");
    finds(
        "masks_of_two_kinds", 1, 32, 1,
        "divergence: block 0, thread 0 waits at a shuffle for lanes 0xffffffff, and thread 16 "
        "has ended; ");
    finds("mask_past_the_block", 1, 16, 1,
          "divergence: block 0, thread 0 waits at a shuffle for lanes 0xffffffff, being lane 0 "
          "of "
          "0xffff; ");
    finds(
        "mask_without_self", 1, 32, 1,
        "divergence: block 0, thread 0 waits at __syncwarp for lanes 0xfffffffe, being lane 0 "
        "of 0xffffffff; ");
    finds(
        "source_past_the_mask", 1, 32, 1,
        "divergence: block 0, thread 15 waits at a shuffle for lanes 0xffff, to take the value "
        "of lane 16; ");
}

/* Where threads do not run in order, others are found; but always the same class. */
static void test_divergence_under_seeds(void **unused) {
    (void)unused;
    static const char *const names[] = {"barriers_of_two_kinds", "barrier_after_end",
                                        "barrier_and_shuffle", "shuffles_of_two_kinds",
                                        "shuffle_after_end"};
    Buffers buffers = buffers_new(1, (size_t[]){256});
    for (int i = 0; i < COUNT_OF(names); i++) {
        EmulatorLaunch launch = launch_of(names[i], 1, 64, &buffers);
        for (launch.seed = 1; launch.seed <= 10; launch.seed++)
            expect(emulator_launch(&launch), ": divergence: ");
    }
    buffers_free(&buffers);
}

/* ---- outside, uninitialized, misaligned ------------------------------------------------- */

static void test_outside(void **unused) {
    (void)unused;
    finds("store_past_the_end", 1, 64, 2,
          "outside: block 0, thread 63 stores 4 bytes at argument 1 + 256 (of 256), where the "
          "launch has nothing; ");
    finds(
        "load_past_the_end", 1, 64, 2,
        "outside: block 0, thread 0 loads 4 bytes at argument 0 - 4 (of 256), where the launch "
        "has nothing; ");
    finds(
        "store_past_shared", 1, 64, 2,
        "outside: block 0, thread 60 stores 4 bytes at a shared variable + 240 (of 240), where "
        "the launch has nothing; ");
    finds("load_from_nowhere", 1, 1, 1, "outside: block 0, thread 0 loads 4 bytes at 0x0, ");
}

/* Memory that is registered, but of no argument; and not all of an argument. */
static void test_extents(void **unused) {
    (void)unused;
    Buffers buffers = buffers_new(3, (size_t[]){256, 256, 256});
    int64_t extents[] = {256, 100, 256};
    EmulatorLaunch launch = launch_of("store_past_the_end", 1, 16, &buffers);
    launch.argument_count = 2;
    runs_well(&launch);
    launch.extents = extents;
    runs_well(&launch);
    launch.block[0] = 30;
    expect(emulator_launch(&launch),
           "outside: block 0, thread 24 stores 4 bytes at argument 1 + 100 (of 100), where the "
           "launch has nothing; ");
    /* A pointer into a buffer, of which all may be reached. */
    launch.extents = NULL;
    launch.arguments = (void *[]){buffers.data[0], (char *)buffers.data[1] + 16};
    launch.block[0] = 62;
    expect(emulator_launch(&launch),
           "outside: block 0, thread 59 stores 4 bytes at argument 1 + 240 (of 240), where the "
           "launch has nothing; ");
    launch.arguments = buffers.data;
    launch.argument_count = 1;
    launch.block[0] = 1;
    launch.function = emulator_function(planted, "load_from_nowhere");
    ((int *)buffers.data[0])[1] = 64;
    expect(emulator_launch(&launch), "outside: block 0, thread 0 loads 4 bytes at 0x40, ");
    extents[0] = 0; /* what has no extent need not be anywhere */
    launch.extents = extents;
    launch.arguments = (void *[]){NULL};
    expect(emulator_launch(&launch), "outside: block 0, thread 0 loads 4 bytes at 0x4, ");
    buffers_free(&buffers);
}

static void test_uninitialized(void **unused) {
    (void)unused;
    finds("shared_uninitialized", 1, 64, 2,
          "uninitialized: block 0, thread 0 loads 4 bytes at a shared variable + 252 (of 256), "
          "which no thread of the block has stored; ");
    finds("shared_of_another_block", 2, 32, 1,
          "uninitialized: block 1, thread 0 loads 4 bytes at a shared variable + 0 (of 128), "
          "which no thread of the block has stored; ");
}

static void test_poison(void **unused) {
    (void)unused;
    Buffers buffers = buffers_new(1, (size_t[]){256});
    char *y = buffers.data[0];
    EmulatorLaunch add = launch_of("add_one", 1, 64, &buffers);
    EmulatorLaunch set = launch_of("set_one", 1, 64, &buffers);
    runs_well(&add);
    emulator_poison(y + 20, 8);
    expect(emulator_launch(&add), "add_one: uninitialized: block 0, thread 5 loads 4 bytes at "
                                  "argument 0 + 20 (of 256), which nobody has stored; ");
    expect_line(emulator_launch(&add), "add_one");
    assert_ptr_equal(emulator_find_poison(y, 256), y + 20);
    runs_well(&set);
    assert_null(emulator_find_poison(y, 256));
    runs_well(&add);
    emulator_poison(y + 131, 1); /* one byte of a word */
    assert_ptr_equal(emulator_find_poison(y, 256), y + 131);
    assert_null(emulator_find_poison(y, 131));
    assert_null(emulator_find_poison(y + 132, 124));
    expect(emulator_launch(&add), "thread 32 loads 4 bytes at argument 0 + 128 ");
    emulator_stored(y + 131, 1);
    runs_well(&add);
    emulator_poison(y, 256);
    emulator_stored(y, 256);
    runs_well(&add);
    buffers_free(&buffers);
}

static void test_misaligned(void **unused) {
    (void)unused;
    finds(
        "load_odd", 1, 16, 2,
        "misaligned: block 0, thread 1 loads 16 bytes at argument 0 + 4 (of 256), which is no "
        "multiple of 16; ");
    finds(
        "store_odd", 1, 16, 2,
        "misaligned: block 0, thread 1 stores 8 bytes at argument 1 + 12 (of 256), which is no "
        "multiple of 8; ");
    finds(
        "copy_odd", 1, 8, 2,
        "misaligned: block 0, thread 1 loads 16 bytes at argument 0 + 8 (of 256), which is no "
        "multiple of 16; ");
}

static void test_endless(void **unused) {
    (void)unused;
    uint64_t limit = shadow_access_limit;
    shadow_access_limit = 100000;
    finds("endless", 1, 1, 1, "endless: block 0, thread 0 ");
    shadow_access_limit = limit;
}

/* ---- launches that cannot be ------------------------------------------------------------ */

static void test_bad_launches(void **unused) {
    (void)unused;
    Buffers buffers = buffers_new(1, (size_t[]){256});
    EmulatorLaunch launch = launch_of("set_one", 1, 65, &buffers);
    expect(emulator_launch(&launch), "set_one: outside: block 0, thread 64 stores ");
    launch.block[0] = 1025;
    expect(emulator_launch(&launch), "set_one: launch: 1 blocks of 1025 threads");
    launch.block[0] = 64;
    launch.grid[1] = 0;
    expect(emulator_launch(&launch), "set_one: launch: 0 blocks of 64 threads");
    launch.grid[1] = 1;
    runs_well(&launch);
    launch.extents = (int64_t[]){257};
    expect(emulator_launch(&launch),
           "set_one: outside: argument 0 is not in registered memory, "
           "or not all its 257 bytes");
    launch.extents = NULL;
    emulator_unregister(buffers.data[0]); /* a pointer that was good once */
    expect(emulator_launch(&launch),
           "set_one: outside: argument 0 is not in registered memory");
    emulator_register(buffers.data[0], 256);
    launch.function = NULL;
    expect(emulator_launch(&launch), "set_one: launch: there is no such function");
    assert_null(emulator_function(planted, "no_such_kernel"));
    assert_null(emulator_function(planted, "malloc"));
    buffers_free(&buffers);
}

/* ---- compiling -------------------------------------------------------------------------- */

static void test_compiling(void **unused) {
    (void)unused;
    static const char *const sources[] = {
        "__global__ void one(int *y) { *y = 1; }\n",
        "__global__ void two(int *y) { __shared__ int t[2]; t[1] = 2; *y = t[1]; }\n"};
    struct stat before, after;
    EmulatorModule *first = emulator_compile(sources, 2, folder);
    assert_non_null(first);
    assert_int_equal(stat(first->objects[0].path, &before), 0);
    EmulatorModule *second = emulator_compile(sources, 2, folder);
    assert_non_null(second);
    assert_int_equal(stat(second->objects[0].path, &after), 0);
    assert_true(before.st_ino == after.st_ino);
    Buffers buffers = buffers_new(1, (size_t[]){4});
    EmulatorLaunch launch = launch_of("set_one", 1, 1, &buffers);
    launch.function = emulator_function(first, "two");
    runs_well(&launch);
    assert_int_equal(*(int *)buffers.data[0], 2);
    emulator_unload(second);
    launch.function = emulator_function(first, "one");
    runs_well(&launch);
    assert_int_equal(*(int *)buffers.data[0], 1);
    emulator_unload(first);
    buffers_free(&buffers);
}

static void test_compile_errors(void **unused) {
    (void)unused;
    static const char *const sources[] = {"__global__ void good(int *y) { *y = 1; }\n",
                                          "__global__ void bad(int *y) { *y = unknown(1); }\n"};
    fflush(stderr);
    int kept = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY);
    dup2(null, STDERR_FILENO);
    EmulatorModule *module = emulator_compile(sources, 2, folder);
    EmulatorModule *nowhere = emulator_compile(sources, 1, "/proc/no/such/folder");
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(null);
    assert_null(module);
    assert_null(nowhere);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_shuffles),
        cmocka_unit_test(test_positions),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_argument_counts),
        cmocka_unit_test(test_races),
        cmocka_unit_test(test_races_under_seeds),
        cmocka_unit_test(test_divergence),
        cmocka_unit_test(test_divergence_under_seeds),
        cmocka_unit_test(test_outside),
        cmocka_unit_test(test_extents),
        cmocka_unit_test(test_uninitialized),
        cmocka_unit_test(test_poison),
        cmocka_unit_test(test_misaligned),
        cmocka_unit_test(test_endless),
        cmocka_unit_test(test_bad_launches),
        cmocka_unit_test(test_compiling),
        cmocka_unit_test(test_compile_errors),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
