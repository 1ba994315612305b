/* tests/emulator/private.h: what the emulator's files share.  Index of the folder.
 *
 *   cuda_c.h    CUDA C as C17: what stands in front of a text
 *   objects.c   texts -> loaded objects; addresses in them -> lines of the text
 *   fibres.c    stacks, and going from one to another
 *   shadow.c    memory: who touched what, and when; every access of a text comes here
 *   emulator.c  launches: blocks, threads, where they wait; the sentence about a fault
 *
 * One host thread at a time. */
#ifndef COLAC_EMULATOR_PRIVATE_H
#define COLAC_EMULATOR_PRIVATE_H

#include "base/base.h"
#include "tests/emulator/emulator.h"

enum { WARP = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / WARP, MAX_ARGUMENTS = 128 };
enum { GUARD_BYTES = 64 }; /* as in cuda_c.h */

/* ---- shadow.c: memory ------------------------------------------------------------------- */
/* Of each unit of memory, who has stored and loaded it last.  Units are words of 4 bytes;
 * one of which a part was touched alone is split into two of 2 bytes, and they likewise into
 * bytes. */
typedef struct Cell {
    uint64_t stored, loaded;
} Cell;
enum { LEVELS = 3 };
typedef struct Region {
    uintptr_t begin, end;
    Cell *cells[LEVELS]; /* of words, halves, bytes; the first word holds `begin` */
    bool is_shared;
} Region;

/* False: no memory for the cells. */
bool region_open(Region *region, uintptr_t begin, uintptr_t end, bool is_shared);
void region_close(Region *region);
void region_set_poison(const Region *region, uintptr_t begin, uintptr_t end, bool poisoned);
/* The first byte that is poisoned; 0. */
uintptr_t region_find_poison(const Region *region, uintptr_t begin, uintptr_t end);

/* Memory of a region that a launch may touch. */
typedef struct Range {
    uintptr_t begin, end;
    Region *region;
} Range;
/* The last that begins at or before an address; NULL. */
Range *range_before(Range *ranges, int count, uintptr_t address);

/* ---- objects.c -------------------------------------------------------------------------- */
typedef struct Object {
    char *path, *text_path;
    void *handle;
    uintptr_t begin, end; /* all that is mapped of it */
    Range *constants;     /* what may be loaded, and not be stored; ascending */
    int constant_count;
    Region shared;    /* from the first shared variable to the last */
    Range *variables; /* its shared variables, ascending */
    int variable_count;
    struct Object *next; /* of all that are loaded */
} Object;
struct EmulatorModule {
    int count;
    Object *objects;
};
/* The loaded object that has an address of code; NULL. */
Object *object_of(const void *code);
/* "text line 12: y[i] = x[i];" of a call's return address, to be freed. */
char *site_text(const void *site);
/* Are they calls of the same place in the text?  The compiler may have copied a call. */
bool is_same_site(const void *a, const void *b);

/* ---- faults: found anywhere, told by emulator.c ------------------------------------------- */
typedef enum FaultKind {
    NO_FAULT,
    /* of an access */
    OUTSIDE,
    UNINITIALIZED,
    POISONED,
    RACE_STORED, /* what another thread has stored */
    RACE_LOADED, /* stores what another thread has loaded */
    MISALIGNED,
    /* of threads that wait */
    ENDED,      /* another thread, that should have come */
    ELSEWHERE,  /* another thread waits at another place */
    OTHER_MASK, /* another thread waits at the same place, for others */
    BAD_MASK,   /* names lanes that the block does not have, or not the caller */
    BAD_SOURCE, /* a shuffle from a lane that is not of the mask */
    TOO_MANY    /* accesses */
} FaultKind;
enum { NOBODY = -1, SEVERAL = -2 };
typedef struct Fault {
    FaultKind kind;
    int thread; /* of the block that runs */
    const void *site;
    uintptr_t address; /* of an access */
    size_t size;
    bool is_store;
    int other_thread; /* NOBODY, SEVERAL, or one */
    int64_t other_block; /* in the order in which they run; NOBODY: the same */
    const void *other_site;
    uint32_t mask;
} Fault;
/* Ends the launch: the caller's stack is never gone on with. */
_Noreturn void raise_fault(const Fault *fault);
/* The thread that runs; NOBODY outside of launches. */
int running_thread(void);
/* Is this memory of the stack of the thread that runs? */
bool is_own_stack(uintptr_t address, size_t size);

/* ---- shadow.c: time ----------------------------------------------------------------------
 * A stamp is drawn when a block starts and whenever barriers are passed; an access is marked
 * with its thread's last one. */
extern uint64_t shadow_access_limit; /* of a launch: a loop that does not end is ended by it */
void shadow_begin_launch(Object *object, Range *ranges, int range_count);
void shadow_end_launch(void);
void shadow_begin_block(int thread_count);
void shadow_block_barrier(void);
void shadow_warp_barrier(int warp, uint32_t mask);
void shadow_run_thread(int thread); /* whose accesses come from now on */
/* Merges overlapping ranges of a region; they are ascending after that. */
int merge_ranges(Range *ranges, int count);

/* ---- fibres.c --------------------------------------------------------------------------- */
typedef struct Fibre Fibre;
/* One that `body` runs on, or will when it is first gone to.  `body` never returns. */
Fibre *fibre_take(void (*body)(void));
/* It is not needed before it is taken again; then it goes on where it left. */
void fibre_give(Fibre *fibre);
Fibre *fibre_host(void); /* the stack that launches */
void fibre_switch(Fibre *from, Fibre *to);
bool fibre_has(const Fibre *fibre, uintptr_t address, size_t size); /* on its stack */
/* All that is on the stacks is forgotten; each starts anew when it is taken. */
void fibres_abandon(void);

#endif
