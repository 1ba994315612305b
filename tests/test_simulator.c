/* The simulated card sees what a real one would let pass, sometimes: each of these mistakes,
 * made on purpose in a child process, ends it with code 99 and a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/cuda.h"

/* The simulator's cuBLASLt calls these in the program that loads it. */
static const void *const needed[] = {(const void *)(uintptr_t)product_prepare,
                                     (const void *)(uintptr_t)product_run,
                                     (const void *)(uintptr_t)product_operand_bytes};

static CudaTable cuda;
static CUstream stream;

static void open_card(const char *how) {
    char path[4096];
    const char *build = getenv("BUILD");
    assert_non_null(needed[0]);
    setenv("COLAC_SIMULATE", how, 1);
    snprintf(path, sizeof path, "%s/tests/simulated/libcuda.so.1", build ? build : "build");
    void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (!library)
        fail_msg("%s", dlerror());
#define ROW(library_kind, type, name, parameters)                                              \
    *(void **)(void *)&cuda.name = dlsym(library, #name);                                      \
    assert_non_null(*(void **)(void *)&cuda.name);
#include "cuda/library.def"
#undef ROW
    assert_int_equal(cuda.cuInit(0), CUDA_SUCCESS);
    assert_int_equal(cuda.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
}

static CUdeviceptr allocate(size_t bytes, bool zero) {
    CUdeviceptr address = 0;
    assert_int_equal(cuda.cuMemAlloc_v2(&address, bytes), CUDA_SUCCESS);
    if (zero)
        assert_int_equal(cuda.cuMemsetD8Async(address, 0, bytes, stream), CUDA_SUCCESS);
    return address;
}

static char *pinned(size_t bytes) {
    void *memory = NULL;
    assert_int_equal(cuda.cuMemHostAlloc(&memory, bytes, 0), CUDA_SUCCESS);
    return memory;
}

/* The exit code of `mistake` in a process of its own, and what it says. */
static int outcome(void (*mistake)(void), char said[512]) {
    int ends[2], status = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        mistake();
        _exit(0);
    }
    close(ends[1]);
    ssize_t length = 0, more;
    while ((more = read(ends[0], said + length, (size_t)(511 - length))) > 0)
        length += more;
    said[length] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect_fault(void (*mistake)(void), const char *words) {
    char said[512];
    int code = outcome(mistake, said);
    if (code != 99 || !strstr(said, words))
        fail_msg("exit %d, not 99, or no `%s` in: %s", code, words, said);
}

/* ---- mistakes ------------------------------------------------------------------------------- */

enum { BYTES = 4096 };

/* The buffer is filled again without waiting for its event. */
static void no_event_before_writing(void) {
    open_card("seed=1");
    CUdeviceptr card = allocate(BYTES, true);
    char *buffer = pinned(BYTES);
    for (int i = 0; i < 20; i++) {
        memset(buffer, i, BYTES);
        cuda.cuMemcpyHtoDAsync_v2(card, buffer, BYTES, stream);
    }
    cuda.cuStreamSynchronize(stream);
}

static void freed_memory_in_a_graph(void) {
    open_card("seed=1");
    CUdeviceptr card = allocate(BYTES, true);
    CUgraph graph = NULL;
    CUgraphExec recording = NULL;
    cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    cuda.cuMemsetD8Async(card, 1, BYTES, stream);
    cuda.cuStreamEndCapture(stream, &graph);
    cuda.cuGraphInstantiateWithFlags(&recording, graph, 0);
    cuda.cuMemFree_v2(card);
    allocate(BYTES, true); /* perhaps at the same address */
    cuda.cuGraphLaunch(recording, stream);
    cuda.cuStreamSynchronize(stream);
}

static void never_stored(void) {
    open_card("seed=1");
    cuda.cuMemcpyDtoHAsync_v2(pinned(BYTES), allocate(BYTES, false), BYTES, stream);
    cuda.cuStreamSynchronize(stream);
}

static void past_the_end(void) {
    open_card("seed=1");
    cuda.cuMemsetD8Async(allocate(BYTES, false), 0, BYTES + 1, stream);
    cuda.cuStreamSynchronize(stream);
}

static void mistakes_are_seen(void **state) {
    (void)state;
    expect_fault(no_event_before_writing, "written again before it was copied");
    expect_fault(freed_memory_in_a_graph, "stale pointer");
    expect_fault(never_stored, "was never stored");
    expect_fault(past_the_end, "not of one allocation");
}

/* ---- what is answered ------------------------------------------------------------------------ */

/* Exit code: the number of the first thing that is not as it should be. */
static void check_answers(void) {
    open_card("seed=2,memory=1000000,card=sm_80");
    CUdeviceptr address;
    int major = 0;
    if (cuda.cuMemAlloc_v2(&address, 1000001) != CUDA_ERROR_OUT_OF_MEMORY)
        _exit(1);
    cuda.cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 7);
    if (major != 8)
        _exit(2);
    cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    if (cuda.cuStreamSynchronize(stream) != CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        _exit(3);
    CUgraph graph = NULL;
    cuda.cuStreamEndCapture(stream, &graph);
    cuda.cuGraphDestroy(graph);
    CUdeviceptr card = allocate(BYTES, true);
    char *buffer = pinned(BYTES);
    bool early = false;
    for (int i = 0; i < 20; i++) { /* read before the card is done: nonsense, sooner or later */
        cuda.cuMemcpyDtoHAsync_v2(buffer, card, BYTES, stream);
        early |= buffer[0] != 0;
    }
    cuda.cuStreamSynchronize(stream);
    if (!early || buffer[0] != 0)
        _exit(4);
    cuda.cuMemFree_v2(card);
    cuda.cuMemFreeHost(buffer);
    cuda.cuStreamDestroy_v2(stream);
}

static void answers(void **state) {
    (void)state;
    char said[512];
    int code = outcome(check_answers, said);
    if (code != 0)
        fail_msg("exit %d: %s", code, said);
}

static void check_failure(void) {
    open_card("fail=cuStreamSynchronize:2");
    if (cuda.cuStreamSynchronize(stream) != CUDA_SUCCESS)
        _exit(1);
    if (cuda.cuStreamSynchronize(stream) != CUDA_ERROR_ILLEGAL_ADDRESS)
        _exit(2);
    if (cuda.cuMemsetD8Async(0, 0, 1, stream) != CUDA_ERROR_ILLEGAL_ADDRESS)
        _exit(3); /* the card is lost */
    if (cuda.cuStreamDestroy_v2(stream) != CUDA_SUCCESS)
        _exit(4);
}

static void failures_are_as_asked_for(void **state) {
    (void)state;
    char said[512];
    int code = outcome(check_failure, said);
    if (code != 0)
        fail_msg("exit %d: %s", code, said);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_are_seen),
        cmocka_unit_test(answers),
        cmocka_unit_test(failures_are_as_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
