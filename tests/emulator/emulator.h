/* tests/emulator/emulator.h: runs CUDA C on the host, and watches it.  A test tool, built only
 * by tests.
 *
 * The text is compiled as C17 by the host's compiler, unchanged, with cuda_c.h in front of it
 * (threadIdx, __shared__, __syncthreads, …) and with the compiler's instrumentation for thread
 * sanitizers, whose callbacks are ours: so every access to memory that may be shared is seen,
 * in the text that a GPU runs.  A thread of a block is a fibre; blocks run one after another.
 *
 * What is found, each with the kernel, block, thread and line of the text:
 *
 *   outside         an access that is in none of the launch's buffers, shared variables or the
 *                   thread's own stack
 *   uninitialized   a load of a shared byte that no thread of this block has stored; or of a byte of
 *                   a buffer that emulator_poison marked and nothing has stored since
 *   race            two threads of a block touch the same byte, one of them stores, and no barrier
 *                   (of the block; of the warp for threads of one warp) stands between; two blocks of
 *                   a launch touch the same byte of a buffer and one of them stores
 *   divergence      threads of a block wait at different barriers, or one has ended while others
 *                   wait; likewise the lanes of a mask in a shuffle or a warp barrier
 *   misaligned      a vector access at no multiple of its size
 *
 * An interleaving is a function of the seed: which of the threads that can run goes on,
 * switched at barriers and shuffles, and which block is next. */
#ifndef COLAC_EMULATOR_H
#define COLAC_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct EmulatorModule EmulatorModule;
/* Compiles texts that are complete (preludes included), one object each, and loads them.  NULL:
 * the compiler's message is on standard error.  Objects are kept by content in `folder`. */
EmulatorModule *emulator_compile(const char *const *sources, int count, const char *folder);
void emulator_unload(EmulatorModule *module);
/* A __global__ function, declared extern "C" in CUDA and plain in C; NULL. */
typedef void *EmulatorFunction;
EmulatorFunction emulator_function(const EmulatorModule *module, const char *name);

/* Memory that kernels may be given, with its extent; what is not registered is outside.  An
 * argument that points into a registered buffer may reach all of it, unless `extents` says how
 * far. */
void emulator_register(void *begin, size_t bytes);
void emulator_unregister(void *begin);
/* Marks bytes of a registered buffer as never stored. */
void emulator_poison(void *begin, size_t bytes);
/* The same of what the host stores there itself (a copy, a product): it is poisoned no more. */
void emulator_stored(void *begin, size_t bytes);
/* The first byte that is poisoned, for what the host loads; NULL. */
const void *emulator_find_poison(const void *begin, size_t bytes);

typedef struct EmulatorLaunch {
    EmulatorFunction function;
    const char *name;               /* for reports */
    unsigned grid[3], block[3];
    void *const *arguments;         /* pointers, all of them */
    const int64_t *extents;         /* bytes from each argument that may be touched; or NULL */
    int argument_count;
    uint64_t seed;                  /* 0: threads and blocks in order */
} EmulatorLaunch;
/* Runs it.  NULL, or a sentence about the first fault; then memory holds what was stored so
 * far.  The sentence is the emulator's and lives until the next launch. */
const char *emulator_launch(const EmulatorLaunch *launch);

#endif
