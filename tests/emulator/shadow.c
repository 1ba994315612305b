/* tests/emulator/shadow.c: every access of a text comes here, by the calls that the compiler's
 * instrumentation for thread sanitizers makes.
 *
 * An access is ordered before another of the same launch when
 *
 *   it is the same thread's;
 *   both are of one block, and a block barrier was passed between them;
 *   both are of one warp, and there is a chain of warp barriers from one to the other.
 *
 * Blocks have no order, and shuffles give none: that is CUDA's own wording for __shfl_*_sync.
 *
 * A stamp is drawn at each block's start and for each barrier that is passed, ascending for
 * ever; an access is marked with the last one of its thread.  So of a mark it is seen whether
 * it is of this launch, this block, since the block's last barrier (a phase); and for what is
 * of this phase and of the same warp, `known` has for each two lanes the last stamp of the one
 * that is ordered before what the other does now.
 *
 * A cell has the last store, and of the loads since one mark, with a run of lanes and whether
 * there were other warps, or other blocks.  That is exact where warps are synchronized whole.
 * Where they are in parts: a race is missed when of two lanes that have loaded the same, and do
 * not know of each other, only the one that came first is synchronized with; and one too many
 * is told when parts are no runs of lanes, of a lane between two that have loaded. */
#include "tests/emulator/private.h"

#include <sys/mman.h>

/* ---- marks ---------------------------------------------------------------------------- */
/* Of both: the stamp, from STAMP_SHIFT on.
 * stored: the thread, and what concerns the memory itself. */
enum { STAMP_SHIFT = 24 };
#define STAMP_ONE   ((uint64_t)1 << STAMP_SHIFT)
#define STAMP_MASK  (~(STAMP_ONE - 1))
#define THREAD_MASK ((uint64_t)(MAX_THREADS - 1))
#define SPLIT       ((uint64_t)1 << 10) /* the cells of the next level count */
#define POISON      ((uint64_t)1 << 11)
/* loaded: the first and last lane, the warp, and two flags. */
enum { LAST_SHIFT = 5, WARP_SHIFT = 10 };
#define FIRST_MASK     ((uint64_t)(WARP - 1))
#define LAST_MASK      (FIRST_MASK << LAST_SHIFT)
#define WARP_MASK      ((uint64_t)(MAX_WARPS - 1) << WARP_SHIFT)
#define SEVERAL_WARPS  ((uint64_t)1 << 15) /* of the phase have loaded */
#define SEVERAL_BLOCKS ((uint64_t)1 << 16) /* of the launch have loaded */

/* ---- regions -------------------------------------------------------------------------- */

static size_t cell_count(const Region *region, int level) {
    return (size_t)(((region->end + 3) >> 2) - (region->begin >> 2)) << level;
}

/* Pages of the system, zero, which cost nothing before they are touched. */
bool region_open(Region *region, uintptr_t begin, uintptr_t end, bool is_shared) {
    *region = (Region){.begin = begin, .end = end, .is_shared = is_shared};
    for (int level = 0; level < LEVELS && end > begin; level++) {
        void *cells =
            mmap(NULL, cell_count(region, level) * sizeof(Cell), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (cells == MAP_FAILED) {
            region_close(region);
            return false;
        }
        region->cells[level] = cells;
    }
    return true;
}

void region_close(Region *region) {
    for (int level = 0; level < LEVELS; level++)
        if (region->cells[level])
            munmap(region->cells[level], cell_count(region, level) * sizeof(Cell));
    *region = (Region){0};
}

/* The cell at `level` that has an address. */
static inline Cell *cell_at(const Region *region, int level, uintptr_t address) {
    size_t word = (address >> 2) - (region->begin >> 2);
    return region->cells[level] + (word << level) + ((address & 3) >> (2 - level));
}

/* What is known of the whole is from now on known of its halves. */
static void split(const Region *region, int level, uintptr_t address) {
    Cell *cell = cell_at(region, level, address);
    if (cell->stored & SPLIT)
        return;
    Cell *halves = cell_at(region, level + 1, address & ~(uintptr_t)((4 >> level) - 1));
    halves[0] = halves[1] = *cell;
    cell->stored |= SPLIT;
}

/* Calls `act` for the largest units that make up [begin, end), splitting at its ends. */
static void each_unit(const Region *region, uintptr_t begin, uintptr_t end, void *data,
                      void (*act)(const Region *region, int level, uintptr_t address,
                                  void *data)) {
    while (begin < end) {
        int level = 0;
        for (; level < LEVELS - 1; level++) {
            uintptr_t bytes = (uintptr_t)(4 >> level);
            if ((begin & (bytes - 1)) == 0 && begin + bytes <= end)
                break;
            split(region, level, begin);
        }
        act(region, level, begin, data);
        begin += (uintptr_t)(4 >> level);
    }
}

/* ---- poison --------------------------------------------------------------------------- */
/* Between launches: who has touched what before is of no account. */
static void set_unit(const Region *region, int level, uintptr_t address, void *poison) {
    Cell *cell = cell_at(region, level, address);
    *cell = (Cell){.stored = *(uint64_t *)poison};
}

void region_set_poison(const Region *region, uintptr_t begin, uintptr_t end, bool poisoned) {
    uint64_t mark = poisoned ? POISON : 0;
    each_unit(region, begin, end, &mark, set_unit);
}

uintptr_t region_find_poison(const Region *region, uintptr_t begin, uintptr_t end) {
    for (; begin < end; begin++) {
        int level = 0;
        while (cell_at(region, level, begin)->stored & SPLIT)
            level++;
        if (cell_at(region, level, begin)->stored & POISON)
            return begin;
    }
    return 0;
}

/* ---- time ----------------------------------------------------------------------------- */
uint64_t shadow_access_limit = (uint64_t)1 << 36;

enum { RECENT = 256 };

static struct Now {
    uint64_t stamp;                 /* the last drawn */
    uint64_t launch, block, phase;  /* of the first access of each */
    uint64_t store_mark, load_mark; /* of the thread that runs */
    const uint64_t *known;          /* of its lane */
    int thread;
    uint64_t accesses_left;
    Range *recent[RECENT]; /* where the calls of a site have been last */
    Object *object;
    Range *ranges; /* of the arguments */
    int range_count;
    int thread_count;
} now = {.thread = NOBODY};

/* known[warp][lane][other]; of a lane itself: its own stamp. */
static uint64_t known[MAX_WARPS][WARP][WARP];

static ARRAY(uint64_t) block_starts; /* the blocks' first stamps, as they run */

static Range nowhere; /* so that `recent` needs no check */

static void forget_recent(void) {
    for (int i = 0; i < RECENT; i++)
        now.recent[i] = &nowhere;
}

void shadow_begin_launch(Object *object, Range *ranges, int range_count) {
    now.object = object;
    now.ranges = ranges;
    now.range_count = range_count;
    now.accesses_left = shadow_access_limit;
    now.launch = now.stamp + STAMP_ONE;
    block_starts.count = 0;
    forget_recent();
}

void shadow_end_launch(void) {
    now.thread = NOBODY;
    array_free(&block_starts);
    forget_recent();
}

static void set_stamps(int thread_count) {
    for (int i = 0; i < thread_count; i++)
        known[i / WARP][i % WARP][i % WARP] = now.stamp;
}

void shadow_begin_block(int thread_count) {
    now.thread_count = thread_count;
    now.block = now.phase = now.stamp += STAMP_ONE;
    array_push(&block_starts, now.block);
    set_stamps(thread_count);
}

/* What `known` has of other lanes is of an earlier phase, and so says nothing of this one. */
void shadow_block_barrier(void) {
    now.phase = now.stamp += STAMP_ONE;
    set_stamps(now.thread_count);
}

/* Each lane of the mask knows what any of them knew, and what they did. */
void shadow_warp_barrier(int warp, uint32_t mask) {
    uint64_t joined[WARP];
    for (int other = 0; other < WARP; other++) {
        joined[other] = known[warp][other][other]; /* nobody knows more of it */
        if (mask >> other & 1)
            continue;
        joined[other] = 0;
        for (int lane = 0; lane < WARP; lane++)
            if (mask >> lane & 1 && joined[other] < known[warp][lane][other])
                joined[other] = known[warp][lane][other];
    }
    now.stamp += STAMP_ONE;
    for (int lane = 0; lane < WARP; lane++) {
        if (mask >> lane & 1) {
            memcpy(known[warp][lane], joined, sizeof joined);
            known[warp][lane][lane] = now.stamp;
        }
    }
}

void shadow_run_thread(int thread) {
    int warp = thread / WARP, lane = thread % WARP;
    now.thread = thread;
    now.known = known[warp][lane];
    now.store_mark = now.known[lane] | (uint64_t)thread;
    now.load_mark = now.known[lane] | (uint64_t)warp << WARP_SHIFT |
                    (uint64_t)lane << LAST_SHIFT | (uint64_t)lane;
}

int running_thread(void) {
    return now.thread;
}

/* How many blocks of this launch ran before the one that left a mark; NOBODY: it runs now. */
static int64_t block_of(uint64_t mark) {
    if (mark >= now.block)
        return NOBODY;
    int64_t low = 0, high = block_starts.count; /* it began at `low` or later, before `high` */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (block_starts.data[middle] <= mark)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* ---- one unit ------------------------------------------------------------------------- */
typedef struct Access {
    uintptr_t address;
    size_t size;
    bool is_store;
    const void *site;
} Access;

static _Noreturn void fault(const Access *access, FaultKind kind, int other_thread,
                            int64_t other_block) {
    raise_fault(&(Fault){.kind = kind,
                         .thread = now.thread,
                         .site = access->site,
                         .address = access->address,
                         .size = access->size,
                         .is_store = access->is_store,
                         .other_thread = other_thread,
                         .other_block = other_block});
}

/* The marks of an earlier launch, and in shared memory of an earlier block, mean nothing. */
static inline uint64_t first_stamp(const Region *region) {
    return region->is_shared ? now.block : now.launch;
}

/* Is a store of this launch ordered before what the thread does now? */
static inline bool is_store_ordered(uint64_t stored) {
    if (stored < now.phase)
        return stored >= now.block;
    int other = (int)(stored & THREAD_MASK);
    return other == now.thread || (other / WARP == now.thread / WARP &&
                                   now.known[other % WARP] >= (stored & STAMP_MASK));
}

/* Likewise the loads of a phase by lanes of the thread's own warp. */
static inline bool are_loads_ordered(uint64_t loaded) {
    int first = (int)(loaded & FIRST_MASK), last = (int)((loaded & LAST_MASK) >> LAST_SHIFT);
    for (int lane = first; lane <= last; lane++)
        if (lane != now.thread % WARP && now.known[lane] < (loaded & STAMP_MASK))
            return false;
    return true;
}

static void check_stored(const Access *access, uint64_t stored) {
    if (!is_store_ordered(stored))
        fault(access, RACE_STORED, (int)(stored & THREAD_MASK), block_of(stored));
}

/* Before a store. */
static void check_loaded(const Access *access, uint64_t loaded) {
    int warp = (int)((loaded & WARP_MASK) >> WARP_SHIFT);
    int thread = warp * WARP + (int)(loaded & FIRST_MASK);
    if (loaded & SEVERAL_BLOCKS)
        fault(access, RACE_LOADED, NOBODY, SEVERAL);
    if (loaded < now.block)
        fault(access, RACE_LOADED, thread, block_of(loaded));
    if (loaded < now.phase)
        return;
    if (loaded & SEVERAL_WARPS)
        fault(access, RACE_LOADED, SEVERAL, NOBODY);
    if (warp == now.thread / WARP && are_loads_ordered(loaded))
        return;
    if (thread == now.thread) /* the first of several: another one is meant */
        thread = warp * WARP + (int)((loaded & LAST_MASK) >> LAST_SHIFT);
    fault(access, RACE_LOADED, thread, NOBODY);
}

/* The mark of loads after one more by the thread that runs, where there were some in this
 * launch.  A load that is ordered before this one need not be kept: what comes after this one
 * comes after both. */
static uint64_t joined_loads(uint64_t loaded) {
    uint64_t flags = loaded < now.block ? SEVERAL_BLOCKS : loaded & SEVERAL_BLOCKS;
    if (loaded < now.phase)
        return now.load_mark | flags;
    if (loaded & SEVERAL_WARPS || (loaded ^ now.load_mark) & WARP_MASK)
        return loaded | SEVERAL_WARPS;
    if (are_loads_ordered(loaded))
        return now.load_mark | flags;
    uint64_t first = loaded & FIRST_MASK, last = loaded & LAST_MASK;
    uint64_t mine = now.load_mark & FIRST_MASK;
    first = mine < first ? mine : first;
    last = mine << LAST_SHIFT > last ? mine << LAST_SHIFT : last;
    return (loaded & ~(FIRST_MASK | LAST_MASK)) | last | first;
}

static inline void load_unit(const Access *access, const Region *region, Cell *cell) {
    uint64_t stored = cell->stored, loaded = cell->loaded, first = first_stamp(region);
    if (stored >= first)
        check_stored(access, stored);
    else if (region->is_shared)
        fault(access, UNINITIALIZED, NOBODY, NOBODY);
    else if (stored & POISON)
        fault(access, POISONED, NOBODY, NOBODY);
    if (loaded != now.load_mark)
        cell->loaded = loaded < first ? now.load_mark : joined_loads(loaded);
}

static inline void store_unit(const Access *access, const Region *region, Cell *cell) {
    uint64_t stored = cell->stored, loaded = cell->loaded, first = first_stamp(region);
    if (stored >= first)
        check_stored(access, stored);
    if (loaded >= first)
        check_loaded(access, loaded);
    *cell = (Cell){.stored = now.store_mark}; /* of the loads all are ordered before it */
}

/* A unit that may be split.  A store to all of it makes it whole. */
static void touch_unit(const Region *region, int level, uintptr_t address, void *data) {
    const Access *access = data;
    Cell *cell = cell_at(region, level, address);
    if (cell->stored & SPLIT) {
        uintptr_t half = (uintptr_t)(2 >> level);
        touch_unit(region, level + 1, address, data);
        touch_unit(region, level + 1, address + half, data);
        if (access->is_store)
            *cell = (Cell){.stored = now.store_mark};
    } else if (access->is_store) {
        store_unit(access, region, cell);
    } else {
        load_unit(access, region, cell);
    }
}

/* ---- an access ------------------------------------------------------------------------ */

Range *range_before(Range *ranges, int count, uintptr_t address) {
    int low = 0, high = count; /* all before `low` begin at or before it, none from `high` on */
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (ranges[middle].begin <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? &ranges[low - 1] : NULL;
}

int merge_ranges(Range *ranges, int count) {
    int kept = 0;
    for (int i = 1; i < count; i++) /* few, and mostly in order */
        for (int j = i; j > 0 && ranges[j].begin < ranges[j - 1].begin; j--) {
            Range swapped = ranges[j];
            ranges[j] = ranges[j - 1];
            ranges[j - 1] = swapped;
        }
    for (int i = 0; i < count; i++) {
        if (kept && ranges[i].begin < ranges[kept - 1].end) {
            if (ranges[kept - 1].end < ranges[i].end)
                ranges[kept - 1].end = ranges[i].end;
        } else {
            ranges[kept++] = ranges[i];
        }
    }
    return kept;
}

static inline bool has(const Range *range, uintptr_t address, size_t size) {
    return address >= range->begin && address < range->end && size <= range->end - address;
}

/* NULL: the thread's own stack or a constant, which nobody else can change. */
static Range *range_of(const Access *access) {
    uintptr_t address = access->address;
    if (is_own_stack(address, access->size))
        return NULL;
    Object *object = now.object;
    Range *range = range_before(now.ranges, now.range_count, address);
    if (!range || !has(range, address, access->size))
        range = range_before(object->variables, object->variable_count, address);
    if (range && has(range, address, access->size))
        return range;
    range = range_before(object->constants, object->constant_count, address);
    if (access->is_store || !range || !has(range, address, access->size))
        fault(access, OUTSIDE, NOBODY, NOBODY);
    return NULL;
}

static inline __attribute__((always_inline)) void touch(const void *pointer, size_t size,
                                                        bool is_store, const void *site) {
    if (now.thread == NOBODY || size == 0)
        return;
    Access access = {(uintptr_t)pointer, size, is_store, site};
    if (now.accesses_left-- == 0)
        fault(&access, TOO_MANY, NOBODY, NOBODY);
    Range **recent = &now.recent[((uintptr_t)site ^ (uintptr_t)site >> 8) % RECENT];
    if (!has(*recent, access.address, size)) {
        Range *range = range_of(&access);
        if (!range)
            return;
        *recent = range;
    }
    const Region *region = (*recent)->region;
    if (size % 4 == 0 && access.address % 4 == 0) {
        Cell *cell = cell_at(region, 0, access.address);
        for (size_t i = 0; i < size / 4; i++, cell++) {
            if (cell->stored & SPLIT)
                touch_unit(region, 0, access.address + 4 * i, &access);
            else if (is_store)
                store_unit(&access, region, cell);
            else
                load_unit(&access, region, cell);
        }
    } else {
        each_unit(region, access.address, access.address + size, &access, touch_unit);
    }
}

/* ---- what instrumented code calls ----------------------------------------------------- */
#define SITE __builtin_return_address(0)

/* `unaligned`: of memory whose type says so. */
#define CALLBACK(name, size, is_store, may_be_odd)                                             \
    void name(void *pointer);                                                                  \
    void name(void *pointer) {                                                                 \
        if (!(may_be_odd) && (uintptr_t)pointer % (size))                                      \
            misaligned(pointer, size, is_store, SITE);                                         \
        touch(pointer, size, is_store, SITE);                                                  \
    }

static void misaligned(const void *pointer, size_t size, bool is_store, const void *site) {
    if (now.thread != NOBODY)
        fault(&(Access){(uintptr_t)pointer, size, is_store, site}, MISALIGNED, NOBODY, NOBODY);
}

CALLBACK(__tsan_read1, 1, false, true)
CALLBACK(__tsan_read2, 2, false, false)
CALLBACK(__tsan_read4, 4, false, false)
CALLBACK(__tsan_read8, 8, false, false)
CALLBACK(__tsan_read16, 16, false, false)
CALLBACK(__tsan_write1, 1, true, true)
CALLBACK(__tsan_write2, 2, true, false)
CALLBACK(__tsan_write4, 4, true, false)
CALLBACK(__tsan_write8, 8, true, false)
CALLBACK(__tsan_write16, 16, true, false)
CALLBACK(__tsan_unaligned_read2, 2, false, true)
CALLBACK(__tsan_unaligned_read4, 4, false, true)
CALLBACK(__tsan_unaligned_read8, 8, false, true)
CALLBACK(__tsan_unaligned_read16, 16, false, true)
CALLBACK(__tsan_unaligned_write2, 2, true, true)
CALLBACK(__tsan_unaligned_write4, 4, true, true)
CALLBACK(__tsan_unaligned_write8, 8, true, true)
CALLBACK(__tsan_unaligned_write16, 16, true, true)

void __tsan_init(void);
void __tsan_func_entry(void *site);
void __tsan_func_exit(void);
void __tsan_read_range(void *pointer, size_t size);
void __tsan_write_range(void *pointer, size_t size);
void *__wrap_memcpy(void *to, const void *from, size_t size);
void *__wrap_memmove(void *to, const void *from, size_t size);
void *__wrap_memset(void *to, int byte, size_t size);
void __wrap___ubsan_handle_type_mismatch_v1(void *place, void *pointer);

void __tsan_init(void) {}
void __tsan_func_entry(void *site) {
    (void)site;
}
void __tsan_func_exit(void) {}

void __tsan_read_range(void *pointer, size_t size) {
    touch(pointer, size, false, SITE);
}

void __tsan_write_range(void *pointer, size_t size) {
    touch(pointer, size, true, SITE);
}

/* Aggregates are copied by calls of these, which objects.c turns here. */
void *__wrap_memcpy(void *to, const void *from, size_t size) {
    touch(from, size, false, SITE);
    touch(to, size, true, SITE);
    return memcpy(to, from, size);
}

void *__wrap_memmove(void *to, const void *from, size_t size) {
    touch(from, size, false, SITE);
    touch(to, size, true, SITE);
    return memmove(to, from, size);
}

void *__wrap_memset(void *to, int byte, size_t size) {
    touch(to, size, true, SITE);
    return memset(to, byte, size);
}

/* Compilers take vectors apart before accesses are instrumented; the check of alignment comes
 * earlier still. */
void __wrap___ubsan_handle_type_mismatch_v1(void *place, void *pointer) {
    struct {
        struct {
            const char *file;
            uint32_t line, column;
        } place;
        const void *type;
        unsigned char log_alignment, what;
    } mismatch;
    enum { STORE = 1 };
    memcpy(&mismatch, place, sizeof mismatch);
    misaligned(pointer, (size_t)1 << mismatch.log_alignment, mismatch.what == STORE, SITE);
}
