/* tests/simulator/simulator.h: a CUDA driver, NVRTC and cuBLASLt without a card, behind the
 * same symbols.  One shared object under the names of all three; LD_LIBRARY_PATH leads the
 * unmodified colac to it.
 *
 *   memory.c    the card's memory and pinned memory; what is read before it was stored, stale pointers
 *   stream.c    streams, events, graphs: queues that are worked off later than they are filled
 *   module.c    NVRTC and modules: CUDA C for the emulator (tests/emulator); launches
 *   blas.c      cuBLASLt: products by colac's own library, whose symbols are in the program
 *   control.c   what COLAC_SIMULATE asks for: failing calls, sizes, a report at exit
 *
 * A fault of ours (a race, a stale pointer, pinned memory that is used again too early, …) is
 * told on standard error and ends the process with code 99, so that no test misses it.
 *
 * COLAC_SIMULATE: any of, separated by commas
 *   fail=NAME:N    the N-th call of that function fails (memory calls for want of memory, others as
 *                  after an illegal address); from then on every call of the driver fails that waits.
 *                  N may be `record` or `replay`: the first call while a stream captures, or after a
 *                  graph was launched
 *   also=NAME:N    another one
 *   memory=BYTES   of the card (1 GiB)
 *   code=BYTES     of it that each module takes (0)
 *   card=sm_NN     its architecture (sm_90)
 *   cards=N        how many the driver shows (1)
 *   version=N      of the driver, as cuDriverGetVersion counts (13000)
 *   nvrtc=NNN      NVRTC's release, ten times (130)
 *   log=empty      NVRTC says nothing of what it compiles, as where it takes it from a cache
 *   seed=N         of when queues are worked off, and in which order threads run (0)
 *   report=PATH    JSON, at exit: calls, bytes, what was not given back */
#ifndef COLAC_SIMULATOR_H
#define COLAC_SIMULATOR_H

#include "cuda/api.h"

#include <stdbool.h>

#define ROW(library, type, name, parameters) type name parameters;
#include "cuda/library.def"
#undef ROW

/* ---- control.c ---------------------------------------------------------------------------- */
/* Of a process: until a stream captures, while one does, since a graph was launched. */
typedef enum Phase { PHASE_FIRST, PHASE_RECORD, PHASE_REPLAY, PHASE_COUNT } Phase;
typedef struct Settings {
    const char *failing[2]; /* functions' names; NULL */
    long failing_call[2];
    Phase failing_phase[2]; /* in which it is that call; PHASE_COUNT: any */
    size_t memory, code;
    int architecture, cards, version, nvrtc;
    bool silent; /* NVRTC */
    uint64_t seed;
    const char *report;
} Settings;
const Settings *settings(void);
/* Counts a call.  True where it has to fail. */
bool called(const char *name);
/* Giving memory and taking it back, which a thread must not ask for while its stream captures:
 * the capture is void then. */
#define REFUSE_WHILE_CAPTURING()                                                               \
    do {                                                                                       \
        if (void_capture())                                                                    \
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;                                      \
    } while (0)
/* CALL(cuInit) at a function's head: counts, and fails with `result` where that is asked
 * for. */
#define CALL(name, result)                                                                     \
    do {                                                                                       \
        if (called(#name))                                                                     \
            return result;                                                                     \
    } while (0)
/* Has a call failed that leaves the card unusable? */
bool is_broken(void);
void fault(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
uint64_t random_bits(void);
/* Live objects, for the report. */
enum Object { OBJECT_MODULE, OBJECT_STREAM, OBJECT_EVENT, OBJECT_GRAPH, OBJECT_RECORDING,
              OBJECT_PINNED, OBJECT_CONTEXT, OBJECT_BLAS, OBJECT_PROGRAM, OBJECT_COUNT };
void count_object(enum Object object, int by);
void count_recorded(void);
void count_replayed(void);
void count_tf32(bool allowed); /* products that may round to TF32; they are not rounded here */

/* ---- memory.c ----------------------------------------------------------------------------- */
/* Where the card's memory is in ours.  `bytes` from there must be of one allocation; else a
 * fault, which names `what` reads or writes. */
void *host_of(CUdeviceptr address, size_t bytes, const char *what);
/* Of the allocation that has the address: its number, counted from 1; 0: there is none. */
uint64_t allocation_of(CUdeviceptr address);
bool is_pinned(const void *memory, size_t bytes);
typedef struct MemoryFigures {
    size_t live, peak; /* of allocations */
    long allocations, after_replay; /* the latter: since a graph was launched first */
} MemoryFigures;
MemoryFigures memory_figures(void);
long live_modules(void);

/* ---- stream.c ----------------------------------------------------------------------------- */
typedef struct Work Work;
struct Work {
    void (*run)(Work *work);
    void (*release)(Work *work); /* what it owns; NULL */
    const char *name;
    CUdeviceptr addresses[80];   /* of the card's memory that it uses, and … */
    uint64_t allocations[80];    /* … whose it was */
    int address_count;
    CUevent event;
    union {
        struct { void *to; const void *from; CUdeviceptr to_card, from_card; size_t bytes;
                 uint64_t sum; bool pinned; unsigned char value; } copy;
        struct { CUfunction function; unsigned grid[3], block[3]; } launch;
        struct { const void *prepared; CUdeviceptr operands[3], workspace; int64_t bytes[3];
                 size_t workspace_bytes; } product;
    };
};
/* Appends a copy of the work to a stream, or to the graph that it captures. */
CUresult enqueue(CUstream stream, const Work *work);
/* Notes an address that the work uses. */
void uses(Work *work, CUdeviceptr address);
bool is_capturing(CUstream stream);
Phase phase(void);
bool void_capture(void); /* true: there was one */
/* Works off everything in a stream. */
void work_off(CUstream stream);
void work_off_all(void);

#endif
