/* tests/emulator/emulator.c: launches.  Which thread runs, where threads wait for each other,
 * and the sentence about a fault.
 *
 * A thread that waits chooses the next itself, and goes to its fibre; a fibre whose thread has
 * ended runs the next thread that has not begun.  So a kernel without barriers runs on a single
 * stack, and no more stacks are in use than threads of a block wait. */
#include "tests/emulator/private.h"

/* ---- registered memory ---------------------------------------------------------------- */
/* Ascending; regions stay where they are while ranges point to them. */
static ARRAY(Region *) registered;

/* How many begin at or before an address. */
static int64_t registered_until(uintptr_t address) {
    int64_t low = 0, high = registered.count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (registered.data[middle]->begin <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* That has an address, or ends there; NULL. */
static Region *registered_at(uintptr_t address) {
    int64_t place = registered_until(address);
    Region *region = place ? registered.data[place - 1] : NULL;
    return region && address <= region->end ? region : NULL;
}

void emulator_register(void *begin, size_t bytes) {
    uintptr_t address = (uintptr_t)begin;
    int64_t place = registered_until(address);
    INTERNAL_CHECK(place == 0 || registered.data[place - 1]->end <= address);
    INTERNAL_CHECK(place == registered.count ||
                   address + bytes <= registered.data[place]->begin);
    Region *region = checked_alloc(sizeof *region);
    if (!region_open(region, address, address + bytes, false)) {
        fprintf(stderr, "emulator: no memory for the shadow of %zu bytes\n", bytes);
        exit(1);
    }
    array_push(&registered, region);
    memmove(registered.data + place + 1, registered.data + place,
            (size_t)(registered.count - 1 - place) * sizeof(Region *));
    registered.data[place] = region;
}

void emulator_unregister(void *begin) {
    int64_t place = registered_until((uintptr_t)begin) - 1;
    INTERNAL_CHECK(place >= 0 && registered.data[place]->begin == (uintptr_t)begin);
    region_close(registered.data[place]);
    free(registered.data[place]);
    registered.count--;
    memmove(registered.data + place, registered.data + place + 1,
            (size_t)(registered.count - place) * sizeof(Region *));
    if (registered.count == 0)
        array_free(&registered);
}

/* All of [begin, begin + bytes) has to be in one buffer. */
static Region *registered_range(const void *begin, size_t bytes) {
    Region *region = registered_at((uintptr_t)begin);
    INTERNAL_CHECK(region && bytes <= region->end - (uintptr_t)begin);
    return region;
}

void emulator_poison(void *begin, size_t bytes) {
    uintptr_t address = (uintptr_t)begin;
    region_set_poison(registered_range(begin, bytes), address, address + bytes, true);
}

void emulator_stored(void *begin, size_t bytes) {
    uintptr_t address = (uintptr_t)begin;
    region_set_poison(registered_range(begin, bytes), address, address + bytes, false);
}

const void *emulator_find_poison(const void *begin, size_t bytes) {
    uintptr_t address = (uintptr_t)begin;
    uintptr_t found =
        region_find_poison(registered_range(begin, bytes), address, address + bytes);
    return found ? (const char *)begin + (found - address) : NULL;
}

/* ---- a launch ------------------------------------------------------------------------- */
typedef enum Waiting {
    AT_NOTHING,
    AT_BLOCK_BARRIER,
    AT_WARP_BARRIER,
    AT_SHUFFLE,
    AT_BALLOT
} Waiting;
static const char *const waiting_names[] = {"", "__syncthreads", "__syncwarp", "a shuffle",
                                            "__ballot_sync"};

typedef struct Thread {
    Fibre *fibre; /* NULL: not begun, or ended */
    Waiting waiting;
    const void *site; /* where it waits */
    uint32_t mask;    /* for whom, in its warp */
    uint32_t given, taken;
    int lane; /* that it takes from */
} Thread;

typedef struct Warp { /* a bit for each lane */
    uint32_t lanes;   /* that the block has */
    uint32_t waiting; /* at what lanes of a warp wait at */
    uint32_t ended;
} Warp;

typedef struct Extent3 { /* as uint3 in cuda_c.h */
    unsigned x, y, z;
} Extent3;

enum { SET_WORDS = MAX_THREADS / 64 };
static struct State {
    const EmulatorLaunch *launch;
    void *arguments[MAX_ARGUMENTS];
    Range reach[MAX_ARGUMENTS]; /* by argument */
    Range ranges[MAX_ARGUMENTS];
    Object *object;
    uint32_t *blocks; /* in the order in which they run */
    uint64_t random;
    uint32_t block;
    Extent3 block_extent, grid_extent, block_index, thread_index;
    bool has_order; /* else any thread may be next */
    int order_start;
    Thread threads[MAX_THREADS];
    Warp warps[MAX_WARPS];
    int thread_count, ended_count, waiting_count; /* the last: at the block's barrier */
    int first_waiting;
    uint64_t ready[SET_WORDS]; /* a bit for each thread that can go on */
    Fault fault;
    Text sentence;
} state;

_Noreturn void raise_fault(const Fault *fault) {
    state.fault = *fault;
    Fibre *fibre = state.threads[running_thread()].fibre;
    fibre_switch(fibre, fibre_host());
    internal_error("a thread went on after a fault");
}

bool is_own_stack(uintptr_t address, size_t size) {
    return fibre_has(state.threads[running_thread()].fibre, address, size);
}

/* splitmix64 */
static uint64_t random_next(void) {
    uint64_t x = state.random += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

/* x, y, z of the index-th. */
static Extent3 position(uint32_t index, Extent3 extent) {
    if (index < extent.x)
        return (Extent3){index, 0, 0};
    return (Extent3){index % extent.x, index / extent.x % extent.y,
                     index / extent.x / extent.y};
}

/* ---- which thread is next ------------------------------------------------------------- */

static void set_ready(int thread) {
    state.ready[thread / 64] |= (uint64_t)1 << thread % 64;
}

/* The first that is ready, from a thread on; NOBODY. */
static int ready_from(int thread) {
    uint64_t above = ~(uint64_t)0 << thread % 64;
    for (int word = thread / 64; word < SET_WORDS; word++, above = ~(uint64_t)0)
        if (state.ready[word] & above)
            return word * 64 + __builtin_ctzll(state.ready[word] & above);
    return NOBODY;
}

/* Takes one of those that are ready: the first from a place on.  That is of the block, so that
 * some warps get far ahead of others, or of each choice, so that none does. */
static int choose_thread(void) {
    int from = state.has_order ? state.order_start
                               : (int)(random_next() % (unsigned)state.thread_count);
    int next = ready_from(from);
    if (next == NOBODY && from)
        next = ready_from(0);
    if (next != NOBODY)
        state.ready[next / 64] &= ~((uint64_t)1 << next % 64);
    return next;
}

static void become(int thread) {
    state.thread_index = position((uint32_t)thread, state.block_extent);
    shadow_run_thread(thread);
}

/* ---- calls of the kernel -------------------------------------------------------------- */
/* A function is called with at least as many arguments as it has parameters.  What is beyond is
 * harmless: under System V's x86-64 ABI and AAPCS64 alike the caller puts arguments in place,
 * and takes them away. */
#define PASS4(i)  a[i], a[(i) + 1], a[(i) + 2], a[(i) + 3]
#define PASS8(i)  PASS4(i), PASS4((i) + 4)
#define PASS16(i) PASS8(i), PASS8((i) + 8)
#define PASS32(i) PASS16(i), PASS16((i) + 16)
#define PASS64(i) PASS32(i), PASS32((i) + 32)
#define TAKE4     void *, void *, void *, void *
#define TAKE8     TAKE4, TAKE4
#define TAKE16    TAKE8, TAKE8
#define TAKE32    TAKE16, TAKE16
#define TAKE64    TAKE32, TAKE32
typedef union Kernel {
    EmulatorFunction pointer;
    void (*of8)(TAKE8);
    void (*of16)(TAKE16);
    void (*of32)(TAKE32);
    void (*of64)(TAKE64);
    void (*of128)(TAKE64, TAKE64);
} Kernel;

static void call_kernel(void) {
    void **a = state.arguments;
    int count = state.launch->argument_count;
    Kernel kernel = {state.launch->function};
    if (count <= 8)
        kernel.of8(PASS8(0));
    else if (count <= 16)
        kernel.of16(PASS16(0));
    else if (count <= 32)
        kernel.of32(PASS32(0));
    else if (count <= 64)
        kernel.of64(PASS64(0));
    else
        kernel.of128(PASS64(0), PASS64(64));
}

/* ---- where threads wait --------------------------------------------------------------- */

/* A thread waits, and `other` will not come. */
static _Noreturn void diverge(FaultKind kind, int thread, int other) {
    const Thread *waits = &state.threads[thread];
    raise_fault(&(Fault){.kind = kind,
                         .thread = thread,
                         .site = waits->site,
                         .other_thread = other,
                         .other_block = NOBODY,
                         .other_site = other == NOBODY ? NULL : state.threads[other].site,
                         .mask = waits->mask});
}

/* Nobody can go on, and not all have ended: who waits for whom in vain? */
static _Noreturn void tell_stuck(void) {
    for (int i = 0; i < state.thread_count; i++) {
        const Thread *thread = &state.threads[i];
        if (thread->waiting <= AT_BLOCK_BARRIER)
            continue;
        for (int lane = 0; lane < WARP; lane++) {
            int other = i / WARP * WARP + lane;
            const Thread *its = &state.threads[other];
            if (!(thread->mask >> lane & 1) || other == i)
                continue;
            if (its->waiting != thread->waiting || !is_same_site(its->site, thread->site))
                diverge(ELSEWHERE, i, other);
            if (its->mask != thread->mask)
                diverge(OTHER_MASK, i, other);
        }
    }
    internal_error("all threads of a block wait, and for nobody");
}

static void run_threads(void);

/* The running thread waits: another one runs until it may go on. */
static void let_others_run(int thread) {
    int next = choose_thread();
    if (next == NOBODY)
        tell_stuck();
    if (next == thread) {
        become(next);
        return;
    }
    if (!state.threads[next].fibre)
        state.threads[next].fibre = fibre_take(run_threads);
    become(next);
    fibre_switch(state.threads[thread].fibre, state.threads[next].fibre);
}

static void release(int thread) {
    state.threads[thread].waiting = AT_NOTHING;
    set_ready(thread);
}

/* ---- barriers and shuffles: what cuda_c.h calls ----------------------------------------- */
/* The site of a call is its return address: none of these may be in line. */
#define MEETING __attribute__((noinline))
void emulator_block_barrier(void);
void emulator_warp_barrier(uint32_t mask);
uint32_t emulator_shuffle(unsigned source, uint32_t mask, uint32_t value, int argument);
uint32_t emulator_ballot(uint32_t mask, int predicate);

static int first_ended(void) {
    for (int warp = 0; warp < MAX_WARPS; warp++)
        if (state.warps[warp].ended)
            return warp * WARP + __builtin_ctz(state.warps[warp].ended);
    return NOBODY;
}

MEETING void emulator_block_barrier(void) {
    int self = running_thread();
    Thread *thread = &state.threads[self];
    thread->waiting = AT_BLOCK_BARRIER;
    thread->site = __builtin_return_address(0);
    if (state.ended_count)
        diverge(ENDED, self, first_ended());
    if (state.waiting_count++ == 0)
        state.first_waiting = self;
    else if (!is_same_site(thread->site, state.threads[state.first_waiting].site))
        diverge(ELSEWHERE, self, state.first_waiting);
    if (state.waiting_count == state.thread_count) {
        state.waiting_count = 0;
        shadow_block_barrier();
        for (int i = 0; i < state.thread_count; i++)
            release(i);
    }
    let_others_run(self);
}

/* Are all lanes of the caller's mask where it is? */
static bool have_met(int self) {
    const Thread *thread = &state.threads[self];
    if ((state.warps[self / WARP].waiting & thread->mask) != thread->mask)
        return false;
    for (int lane = 0; lane < WARP; lane++) {
        const Thread *other = &state.threads[self / WARP * WARP + lane];
        if (thread->mask >> lane & 1 &&
            (other->waiting != thread->waiting || other->mask != thread->mask ||
             !is_same_site(other->site, thread->site)))
            return false;
    }
    return true;
}

/* The caller has come to where the lanes of `mask` meet.  True: it is the last of them. */
static bool meet(Waiting waiting, uint32_t mask, const void *site) {
    int self = running_thread(), lane = self % WARP;
    Warp *warp = &state.warps[self / WARP];
    Thread *thread = &state.threads[self];
    thread->waiting = waiting;
    thread->mask = mask;
    thread->site = site;
    if (mask & ~warp->lanes || !(mask >> lane & 1))
        diverge(BAD_MASK, self, NOBODY);
    if (mask & warp->ended)
        diverge(ENDED, self, self / WARP * WARP + __builtin_ctz(mask & warp->ended));
    warp->waiting |= (uint32_t)1 << lane;
    return have_met(self);
}

static void part(uint32_t mask) {
    int first = running_thread() / WARP * WARP;
    state.warps[first / WARP].waiting &= ~mask;
    for (int lane = 0; lane < WARP; lane++)
        if (mask >> lane & 1)
            release(first + lane);
}

MEETING void emulator_warp_barrier(uint32_t mask) {
    int self = running_thread();
    if (meet(AT_WARP_BARRIER, mask, __builtin_return_address(0))) {
        shadow_warp_barrier(self / WARP, mask);
        part(mask);
    }
    let_others_run(self);
}

/* EmulatorSource of cuda_c.h. */
enum { FROM_LANE, FROM_XOR, FROM_BELOW, FROM_ABOVE };

/* Where there is no such lane, a lane takes its own value. */
static int source_lane(unsigned source, int lane, int argument) {
    int64_t from = source == FROM_LANE    ? argument & (WARP - 1)
                   : source == FROM_XOR   ? lane ^ argument
                   : source == FROM_BELOW ? (int64_t)lane - argument
                                          : (int64_t)lane + argument;
    return from < 0 || from >= WARP ? lane : (int)from;
}

/* The last that comes hands out the values, since the first to go on may give another one
 * before the others have run. */
MEETING uint32_t emulator_shuffle(unsigned source, uint32_t mask, uint32_t value,
                                  int argument) {
    int self = running_thread();
    Thread *thread = &state.threads[self], *lanes = &state.threads[self / WARP * WARP];
    thread->given = value;
    thread->lane = source_lane(source, self % WARP, argument);
    if (meet(AT_SHUFFLE, mask, __builtin_return_address(0))) {
        for (int lane = 0; lane < WARP; lane++) {
            if (!(mask >> lane & 1))
                continue;
            if (!(mask >> lanes[lane].lane & 1))
                diverge(BAD_SOURCE, self / WARP * WARP + lane, NOBODY);
            lanes[lane].taken = lanes[lanes[lane].lane].given;
        }
        part(mask);
    }
    let_others_run(self);
    return thread->taken;
}

MEETING uint32_t emulator_ballot(uint32_t mask, int predicate) {
    int self = running_thread();
    Thread *thread = &state.threads[self], *lanes = &state.threads[self / WARP * WARP];
    thread->given = predicate != 0;
    if (meet(AT_BALLOT, mask, __builtin_return_address(0))) {
        uint32_t votes = 0;
        for (int lane = 0; lane < WARP; lane++)
            if (mask >> lane & 1)
                votes |= lanes[lane].given << lane;
        for (int lane = 0; lane < WARP; lane++)
            if (mask >> lane & 1)
                lanes[lane].taken = votes;
        part(mask);
    }
    let_others_run(self);
    return thread->taken;
}

Extent3 emulator_thread_index(void);
Extent3 emulator_block_index(void);
Extent3 emulator_block_extent(void);
Extent3 emulator_grid_extent(void);

Extent3 emulator_thread_index(void) {
    return state.thread_index;
}
Extent3 emulator_block_index(void) {
    return state.block_index;
}
Extent3 emulator_block_extent(void) {
    return state.block_extent;
}
Extent3 emulator_grid_extent(void) {
    return state.grid_extent;
}

/* ---- threads and blocks --------------------------------------------------------------- */

/* Nobody may wait for a thread that has ended. */
static void end_thread(int self) {
    Warp *warp = &state.warps[self / WARP];
    if (state.waiting_count)
        diverge(ENDED, state.first_waiting, self);
    for (uint32_t left = warp->waiting; left; left &= left - 1) {
        int other = self / WARP * WARP + __builtin_ctz(left);
        if (state.threads[other].mask >> self % WARP & 1)
            diverge(ENDED, other, self);
    }
    warp->ended |= (uint32_t)1 << self % WARP;
    state.ended_count++;
}

/* What a fibre does: runs a thread, and another one, … */
static void run_threads(void) {
    for (;;) {
        call_kernel();
        int self = running_thread();
        end_thread(self);
        int next = choose_thread();
        if (next == NOBODY && state.ended_count < state.thread_count)
            tell_stuck();
        Fibre *own = state.threads[self].fibre;
        state.threads[self].fibre = NULL;
        if (next != NOBODY) {
            become(next);
            if (!state.threads[next].fibre) {
                state.threads[next].fibre = own;
                continue;
            }
        }
        fibre_give(own);
        fibre_switch(own, next == NOBODY ? fibre_host() : state.threads[next].fibre);
    }
}

static void run_block(void) {
    memset(state.threads, 0, (size_t)state.thread_count * sizeof *state.threads);
    memset(state.warps, 0, sizeof state.warps);
    state.ended_count = state.waiting_count = 0;
    for (int i = 0; i < state.thread_count; i++) {
        state.warps[i / WARP].lanes |= (uint32_t)1 << i % WARP;
        set_ready(i);
    }
    bool has_seed = state.launch->seed != 0;
    state.has_order = !has_seed || random_next() % 2;
    state.order_start = has_seed ? (int)(random_next() % (unsigned)state.thread_count) : 0;
    state.order_start &= ~(WARP - 1);
    shadow_begin_block(state.thread_count);
    int first = choose_thread();
    become(first);
    state.threads[first].fibre = fibre_take(run_threads);
    fibre_switch(fibre_host(), state.threads[first].fibre);
}

/* The blocks' indices in the order in which they run; NULL: that of the indices. */
static uint32_t *block_order(uint32_t count) {
    if (!state.launch->seed)
        return NULL;
    uint32_t *order = checked_alloc(count * sizeof *order);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t place = (uint32_t)(random_next() % (i + 1));
        order[i] = order[place];
        order[place] = i;
    }
    return order;
}

static uint32_t block_at(uint32_t place) {
    return state.blocks ? state.blocks[place] : place;
}

/* ---- the sentence --------------------------------------------------------------------- */
/* 5, or (5,1,0) where there is more than one row. */
static void tell_index(Text *out, uint32_t index, Extent3 extent) {
    Extent3 at = position(index, extent);
    if (extent.y == 1 && extent.z == 1)
        text_printf(out, "%u", at.x);
    else
        text_printf(out, "(%u,%u,%u)", at.x, at.y, at.z);
}

/* How far an address is from a range. */
static uintptr_t distance(const Range *range, uintptr_t address) {
    if (address < range->begin)
        return range->begin - address;
    return address < range->end ? 0 : address - range->end + 1;
}

typedef struct Place {
    const Range *range;
    int argument;    /* NOBODY: a shared variable */
    uintptr_t begin; /* where offsets count from */
} Place;

/* The nearest range counts, and of several that have the address the one that begins last. */
static void consider(Place *best, Place place, uintptr_t address) {
    if (place.range->begin == place.range->end)
        return;
    if (best->range) {
        uintptr_t now = distance(best->range, address), then = distance(place.range, address);
        if (now < then || (now == then && address - best->begin <= address - place.begin))
            return;
    }
    *best = place;
}

/* An address by the argument or shared variable that it is in, or near to. */
static void tell_place(Text *out, uintptr_t address) {
    enum { NEAR = 1 << 20 };
    const Object *object = state.object;
    Place place = {0};
    for (int i = 0; i < state.launch->argument_count; i++)
        consider(&place, (Place){&state.reach[i], i, (uintptr_t)state.arguments[i]}, address);
    for (int i = 0; i < object->variable_count; i++) {
        const Range *range = &object->variables[i];
        consider(&place, (Place){range, NOBODY, range->begin}, address);
    }
    if (!place.range || distance(place.range, address) > NEAR) {
        text_printf(out, "0x%jx", (uintmax_t)address);
        return;
    }
    if (place.argument == NOBODY)
        text_puts(out, "a shared variable");
    else
        text_printf(out, "argument %d", place.argument);
    bool before = address < place.begin;
    text_printf(out, " %c %ju (of %ju)", before ? '-' : '+',
                (uintmax_t)(before ? place.begin - address : address - place.begin),
                (uintmax_t)(place.range->end - place.begin));
}

/* "thread 4", "several threads", … and of which block. */
static void tell_other(Text *out, const Fault *fault) {
    if (fault->other_block == SEVERAL) {
        text_puts(out, "several blocks");
        return;
    }
    if (fault->other_thread == SEVERAL) {
        text_puts(out, "several threads");
        return;
    }
    text_puts(out, "thread ");
    tell_index(out, (uint32_t)fault->other_thread, state.block_extent);
    if (fault->other_block != NOBODY) {
        text_puts(out, " of block ");
        tell_index(out, block_at((uint32_t)fault->other_block), state.grid_extent);
    }
}

static void tell_access(Text *out, const Fault *fault) {
    bool several;
    text_printf(out, "%s %zu bytes at ", fault->is_store ? "stores" : "loads", fault->size);
    tell_place(out, fault->address);
    switch (fault->kind) {
    case UNINITIALIZED:
        text_puts(out, ", which no thread of the block has stored");
        break;
    case POISONED:
        text_puts(out, ", which nobody has stored");
        break;
    case MISALIGNED:
        text_printf(out, ", which is no multiple of %zu", fault->size);
        break;
    case RACE_STORED:
    case RACE_LOADED:
        text_puts(out, ", which ");
        tell_other(out, fault);
        several = fault->other_block == SEVERAL || fault->other_thread == SEVERAL;
        text_printf(out, " %s %s, and %s", several ? "have" : "has",
                    fault->kind == RACE_STORED ? "stored" : "loaded",
                    fault->other_block == NOBODY ? "no barrier stands between"
                                                 : "blocks have no order");
        break;
    case TOO_MANY:
        text_puts(out, ", after more accesses than a launch may make: does a loop not end?");
        break;
    default:
        text_puts(out, ", where the launch has nothing");
    }
}

static void tell_waiting(Text *out, const Fault *fault) {
    const Thread *thread = &state.threads[fault->thread];
    text_printf(out, "waits at %s", waiting_names[thread->waiting]);
    if (thread->waiting != AT_BLOCK_BARRIER)
        text_printf(out, " for lanes 0x%x", fault->mask);
    if (fault->kind == BAD_MASK) {
        text_printf(out, ", being lane %d of 0x%x", fault->thread % WARP,
                    state.warps[fault->thread / WARP].lanes);
    } else if (fault->kind == BAD_SOURCE) {
        text_printf(out, ", to take the value of lane %d", thread->lane);
    } else {
        const Thread *other = &state.threads[fault->other_thread];
        text_puts(out, ", and ");
        tell_other(out, fault);
        if (fault->kind == ENDED)
            text_puts(out, " has ended");
        else
            text_printf(out, " at %s", waiting_names[other->waiting]);
        if (fault->kind != ENDED && other->waiting != AT_BLOCK_BARRIER)
            text_printf(out, " for lanes 0x%x", other->mask);
        if (fault->kind == ELSEWHERE) {
            char *place = site_text(fault->other_site);
            text_printf(out, " (%s)", place);
            free(place);
        }
    }
}

static void tell_fault(Text *out) {
    static const char *const classes[] = {
        [OUTSIDE] = "outside",        [UNINITIALIZED] = "uninitialized",
        [POISONED] = "uninitialized", [RACE_STORED] = "race",
        [RACE_LOADED] = "race",       [MISALIGNED] = "misaligned",
        [ENDED] = "divergence",       [ELSEWHERE] = "divergence",
        [OTHER_MASK] = "divergence",  [BAD_MASK] = "divergence",
        [BAD_SOURCE] = "divergence",  [TOO_MANY] = "endless"};
    const Fault *fault = &state.fault;
    text_printf(out, "%s: %s: block ", state.launch->name, classes[fault->kind]);
    tell_index(out, state.block, state.grid_extent);
    text_puts(out, ", thread ");
    tell_index(out, (uint32_t)fault->thread, state.block_extent);
    text_puts(out, " ");
    if (fault->kind >= ENDED && fault->kind <= BAD_SOURCE)
        tell_waiting(out, fault);
    else
        tell_access(out, fault);
    char *place = site_text(fault->site);
    text_printf(out, "; %s", place);
    free(place);
}

/* ---- launches ------------------------------------------------------------------------- */

/* What each argument may reach.  False with a sentence. */
static bool find_reach(const EmulatorLaunch *launch, Text *out) {
    for (int i = 0; i < launch->argument_count; i++) {
        uintptr_t address = (uintptr_t)launch->arguments[i];
        int64_t wanted = launch->extents ? launch->extents[i] : -1;
        state.arguments[i] = launch->arguments[i];
        state.reach[i] = (Range){address, address, NULL};
        if (wanted == 0 || (wanted < 0 && !address))
            continue;
        Region *region = registered_at(address);
        if (!region || (wanted > 0 && (uint64_t)wanted > region->end - address)) {
            text_printf(out, "%s: outside: argument %d is not in registered memory",
                        launch->name, i);
            if (wanted > 0)
                text_printf(out, ", or not all its %jd bytes", (intmax_t)wanted);
            return false;
        }
        uintptr_t end = wanted > 0 ? address + (uintptr_t)wanted : region->end;
        state.reach[i] = (Range){wanted > 0 ? address : region->begin, end, region};
    }
    return true;
}

/* False with a sentence. */
static bool begin_launch(const EmulatorLaunch *launch, Text *out) {
    const unsigned *grid = launch->grid, *block = launch->block;
    double threads = (double)block[0] * block[1] * block[2];
    double blocks = (double)grid[0] * grid[1] * grid[2];
    state.launch = launch;
    state.object = launch->function ? object_of(launch->function) : NULL;
    if (!state.object || launch->argument_count < 0 || launch->argument_count > MAX_ARGUMENTS) {
        text_printf(out, "%s: launch: there is no such function, or it has too many arguments",
                    launch->name);
        return false;
    }
    if (threads < 1 || threads > MAX_THREADS || blocks < 1 || blocks > INT32_MAX) {
        text_printf(out, "%s: launch: %.0f blocks of %.0f threads", launch->name, blocks,
                    threads);
        return false;
    }
    if (!find_reach(launch, out))
        return false;
    state.thread_count = (int)threads;
    state.grid_extent = (Extent3){grid[0], grid[1], grid[2]};
    state.block_extent = (Extent3){block[0], block[1], block[2]};
    state.random = launch->seed;
    state.fault.kind = NO_FAULT;
    int count = 0;
    for (int i = 0; i < launch->argument_count; i++)
        if (state.reach[i].begin < state.reach[i].end)
            state.ranges[count++] = state.reach[i];
    shadow_begin_launch(state.object, state.ranges, merge_ranges(state.ranges, count));
    return true;
}

const char *emulator_launch(const EmulatorLaunch *launch) {
    Text *out = &state.sentence;
    text_free(out);
    if (!begin_launch(launch, out))
        return text_string(out);
    uint32_t count = launch->grid[0] * launch->grid[1] * launch->grid[2];
    state.blocks = block_order(count);
    for (uint32_t i = 0; i < count && state.fault.kind == NO_FAULT; i++) {
        state.block = block_at(i);
        state.block_index = position(state.block, state.grid_extent);
        run_block();
    }
    shadow_end_launch();
    bool failed = state.fault.kind != NO_FAULT;
    if (failed) {
        fibres_abandon();
        memset(state.ready, 0, sizeof state.ready);
        tell_fault(out);
    }
    free(state.blocks);
    state.blocks = NULL;
    return failed ? text_string(out) : NULL;
}
