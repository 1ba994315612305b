/* cuda/grid.c: a kernel -> launches.
 *
 * For softmax(x; T) over rows [B,S] (see codegen/lower.c) there is one nest:
 *
 *     parallel row < 2048 { lanes t < 256 … }
 *
 * and one launch: 2048 iterations, a team of 32 threads each that own 4 of the 128 lanes of a
 * reduction, 8 teams in a block, 256 blocks. */
#include "codegen/print.h"
#include "cuda/cuda.h"

enum { LONG_ROW = 2048 };    /* rows up to this are a warp's, longer ones a block's */
enum { ROW_THREADS = 128 };  /* of a block that shares a row: a lane each */
enum { THREAD_VECTORS = 2 }; /* of a lanes loop that is split: as many for a thread */
enum { BLOCKS_ENOUGH = 1 << 16 };
enum { TEAMS_ENOUGH = 2048 }; /* of a scatter */
enum { DEALT_LEAST = 16 };    /* iterations for each of them */

typedef struct GridMaker {
    Kernel *kernel;
    const char *name;
    ARRAY(Launch) launches;
} GridMaker;

static const Instruction *at(const Kernel *kernel, ValueId id) {
    return &kernel->instructions.data[id];
}

/* ---- what a launch runs -------------------------------------------------------------- */

static bool region_has(const Kernel *kernel, const Region *region, InstructionKind kind) {
    for (int64_t i = 0; i < region->count; i++) {
        const Instruction *instruction = at(kernel, region->data[i]);
        if (instruction->kind == kind ||
            (instruction->loop && region_has(kernel, &instruction->loop->body, kind)))
            return true;
    }
    return false;
}

static void mark_operands(const Kernel *kernel, ValueId id, bool *needed) {
    const Instruction *instruction = at(kernel, id);
    for (int i = 0; i < instruction->input_count; i++)
        if (instruction->inputs[i] >= 0)
            needed[instruction->inputs[i]] = true;
    affine_mark(&instruction->at, needed);
    affine_mark(&instruction->sample, needed);
    if (!instruction->loop)
        return;
    if (instruction->loop->tile_of >= 0)
        needed[instruction->loop->tile_of] = true;
    for (int64_t i = 0; i < instruction->loop->body.count; i++)
        mark_operands(kernel, instruction->loop->body.data[i], needed);
}

static bool stores_to(const Kernel *kernel, ValueId id, BufferId buffer) {
    const Instruction *instruction = at(kernel, id);
    if (instruction->kind == KERNEL_STORE && instruction->buffer == buffer)
        return true;
    for (int64_t i = 0; instruction->loop && i < instruction->loop->body.count; i++)
        if (stores_to(kernel, instruction->loop->body.data[i], buffer))
            return true;
    return false;
}

/* A value of the kernel's own region can be computed again, later: a load when nothing is
 * stored to its buffer in between. */
static void check_again(const Kernel *kernel, int64_t place, int64_t begin) {
    const Instruction *value = at(kernel, kernel->body.data[place]);
    INTERNAL_CHECK(value->kind != KERNEL_LOOP && value->kind != KERNEL_LOCAL);
    for (int64_t i = place + 1; value->kind == KERNEL_LOAD && i < begin; i++)
        INTERNAL_CHECK(!stores_to(kernel, kernel->body.data[i], value->buffer));
}

/* The own region's instructions [begin, end) and what they need of those before. */
static Region launch_body(const Kernel *kernel, int64_t begin, int64_t end) {
    bool *needed = arena_alloc_array(kernel->arena, (size_t)kernel->instructions.count, 1);
    Region body = {0};
    body.data = arena_alloc_array(kernel->arena, (size_t)end, sizeof(ValueId));
    for (int64_t i = end - 1; i >= 0; i--) {
        ValueId id = kernel->body.data[i];
        if (i < begin && !needed[id])
            continue;
        if (i < begin)
            check_again(kernel, i, begin);
        mark_operands(kernel, id, needed);
        body.data[body.count++] = id;
    }
    for (int64_t i = 0; i < body.count / 2; i++) {
        ValueId id = body.data[i];
        body.data[i] = body.data[body.count - 1 - i];
        body.data[body.count - 1 - i] = id;
    }
    return body;
}

/* ---- who shares an iteration --------------------------------------------------------- */

/* What matters of a launch's lanes loops. */
typedef struct LanesFacts {
    int64_t longest;         /* iterations; 0: there are none */
    int64_t longest_reduced; /* of those with reductions */
    int lanes;               /* of the fixed order, at most; 1: no reductions */
    bool fours;              /* all have whole fours of iterations */
    bool neighbours;         /* something is loaded or stored in the loop's order */
    int64_t local_bytes;     /* of local buffers */
} LanesFacts;

static bool runs_in_order(const Instruction *access, ValueId loop) {
    for (int i = 0; i < access->at.term_count; i++)
        if (access->at.terms[i].value == loop)
            return access->at.terms[i].stride == 1;
    return false;
}

static void lanes_facts(const Kernel *kernel, const Region *region, ValueId lanes,
                        LanesFacts *facts) {
    for (int64_t i = 0; i < region->count; i++) {
        ValueId id = region->data[i];
        const Instruction *instruction = at(kernel, id);
        const Loop *loop = instruction->loop;
        if (instruction->kind == KERNEL_LOCAL) {
            const Buffer *local = &kernel->buffers.data[instruction->buffer];
            facts->local_bytes += scratch_aligned(local->elements * dtype_bytes(local->dtype));
        }
        if ((instruction->kind == KERNEL_LOAD || instruction->kind == KERNEL_STORE) &&
            lanes >= 0)
            facts->neighbours |= runs_in_order(instruction, lanes);
        if (!loop)
            continue;
        if (loop->kind == LOOP_LANES) {
            facts->longest = loop->extent > facts->longest ? loop->extent : facts->longest;
            facts->fours &= loop->extent % 4 == 0 && loop->total % 4 == 0;
            if (has_reductions(kernel, loop)) {
                int width = lanes_width(loop);
                facts->lanes = width > facts->lanes ? width : facts->lanes;
                if (loop->extent > facts->longest_reduced)
                    facts->longest_reduced = loop->extent;
            }
        }
        lanes_facts(kernel, &loop->body, loop->kind == LOOP_LANES ? id : -1, facts);
    }
}

static int power_of_two(int64_t least) {
    int power = 1;
    while (power < least)
        power *= 2;
    return power;
}

static bool can_be_neighbours(const LanesFacts *facts) {
    return facts->fours && facts->neighbours;
}

/* Threads of a team, and neighbouring lanes of a thread. */
static void choose_team(Launch *launch, const LanesFacts *facts, bool waits) {
    launch->width = 1;
    launch->threads = 1;
    /* One lane alone: other threads would load, as values of the team's, what it then stores in
     * the same place (passes/lifetimes.c). */
    if (facts->longest <= 1)
        return;
    if (facts->lanes > 1 || facts->longest_reduced > 0) {
        bool block = facts->lanes == REDUCE_LANES &&
                     (!can_be_neighbours(facts) || facts->longest_reduced > LONG_ROW ||
                      facts->local_bytes > SHARED_BYTES / 4);
        launch->threads = block ? ROW_THREADS : WARP_THREADS;
        launch->width = facts->lanes > launch->threads ? facts->lanes / launch->threads : 1;
        return;
    }
    launch->width = can_be_neighbours(facts) ? 4 : 1;
    int64_t threads = (facts->longest + launch->width - 1) / launch->width;
    launch->threads = power_of_two(threads < BLOCK_THREADS ? threads : BLOCK_THREADS);
    if (waits && launch->threads < WARP_THREADS)
        launch->threads = WARP_THREADS;
}

/* ---- scatters ------------------------------------------------------------------------ */

/* The index of the row that an access reaches: the value, made in the serial loop, whose stride
 * is larger than what all other terms can add up to; -1. */
static ValueId row_of(const Kernel *kernel, const Region *serial, const Instruction *access) {
    ValueId row = -1;
    int64_t stride = 0, others = 1;
    for (int i = 0; i < access->at.term_count; i++) {
        Term term = access->at.terms[i];
        const Loop *loop = at(kernel, term.value)->loop;
        bool here = false;
        for (int64_t k = 0; k < serial->count; k++)
            here |= serial->data[k] == term.value;
        if (loop)
            others += term.stride * (loop->extent - 1);
        else if (row < 0 && here)
            row = term.value, stride = term.stride;
        else
            return -1;
    }
    return stride >= others ? row : -1;
}

/* The one row that all stores of a serial loop go to, and all loads from what is stored; -1. */
static ValueId row_of_loop(const Kernel *kernel, const Region *serial) {
    ValueId row = -1;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < serial->count; i++) {
            const Instruction *lanes = at(kernel, serial->data[i]);
            if (lanes->kind == KERNEL_STORE || lanes->kind == KERNEL_LOCAL ||
                (lanes->loop &&
                 (lanes->loop->kind != LOOP_LANES || has_reductions(kernel, lanes->loop))))
                return -1;
            for (int64_t k = 0; lanes->loop && k < lanes->loop->body.count; k++) {
                const Instruction *access = at(kernel, lanes->loop->body.data[k]);
                bool stores = access->kind == KERNEL_STORE;
                if (!stores && (access->kind != KERNEL_LOAD ||
                                !kernel->buffers.data[access->buffer].writes))
                    continue;
                ValueId found = row_of(kernel, serial, access);
                if (found < 0 || (row >= 0 && row != found))
                    return -1;
                row = found;
            }
        }
    return row;
}

/* A launch whose iterations are one such loop, after values. */
static void find_dealt(const Kernel *kernel, Launch *launch) {
    const Region *body = &launch->body;
    for (int64_t i = 0; i < body->count; i++) {
        const Instruction *instruction = at(kernel, body->data[i]);
        const Loop *loop = instruction->loop;
        if (instruction->kind == KERNEL_STORE || instruction->kind == KERNEL_LOCAL)
            return;
        if (loop && loop->kind == LOOP_PARALLEL) {
            INTERNAL_CHECK(i == body->count - 1);
            body = &loop->body;
            i = -1;
        } else if (loop) {
            launch->dealt =
                i == body->count - 1 && loop->kind == LOOP_SERIAL ? body->data[i] : -1;
            launch->row = launch->dealt < 0 ? -1 : row_of_loop(kernel, &loop->body);
            if (launch->row < 0 || loop->extent > INT32_MAX - WARP_THREADS)
                launch->dealt = -1;
            return;
        }
    }
}

/* As many teams as keep a card busy, and no more than there are iterations for. */
static int64_t dealt_parts(const Kernel *kernel, const Launch *launch) {
    int64_t parts = TEAMS_ENOUGH / launch->iterations;
    int64_t most = at(kernel, launch->dealt)->loop->extent / DEALT_LEAST;
    parts = parts < most ? parts : most;
    return parts < 1 ? 1 : parts;
}

static void choose_blocks(const Kernel *kernel, Launch *launch, const LanesFacts *facts,
                          bool waits, bool exchanges) {
    bool shares = waits || exchanges;
    launch->teams =
        shares && launch->threads > WARP_THREADS ? 1 : BLOCK_THREADS / launch->threads;
    int64_t bytes = launch->threads > 1 ? facts->local_bytes : 0;
    while (launch->teams > 1 && launch->teams * bytes > SHARED_BYTES)
        launch->teams /= 2;
    INTERNAL_CHECK(launch->teams * bytes <= SHARED_BYTES);
    launch->shared_bytes = (int)(launch->teams * bytes);
    launch->splits = 1;
    int64_t done = (int64_t)launch->threads * launch->width * THREAD_VECTORS;
    if (launch->dealt >= 0)
        launch->splits = dealt_parts(kernel, launch);
    else if (!shares && !facts->local_bytes && launch->threads == BLOCK_THREADS &&
             facts->longest > done && launch->iterations < BLOCKS_ENOUGH)
        launch->splits = (facts->longest + done - 1) / done;
    int64_t teams = launch->iterations * launch->splits;
    launch->blocks = (teams + launch->teams - 1) / launch->teams;
}

/* ---- where threads wait -------------------------------------------------------------- */

/* An access to memory that the threads of a team share, since they last waited. */
typedef struct Access {
    BufferId buffer; /* or EXCHANGE - n, of the prelude's reductions */
    bool stores;
    /* The lanes loop that it stands in: each thread has its own; -1: all load, and the first
     * thread stores. */
    ValueId lanes;
    const Affine *at;
} Access;
enum { EXCHANGE = -2 };

typedef struct Waiter {
    const Kernel *kernel;
    Launch *launch;
    bool blocks; /* a team is a block: its reductions exchange lanes through shared memory */
    bool any;
    int reductions;
    ARRAY(Access) since;
} Waiter;

static int64_t greatest_divisor(int64_t a, int64_t b) {
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a < 0 ? -a : a;
}

static bool is_parallel_index(const Kernel *kernel, ValueId value) {
    const Loop *loop = at(kernel, value)->loop;
    return loop && loop->kind == LOOP_PARALLEL;
}

/* Is every element that both accesses reach reached in one iteration of their lanes loops, so
 * by one thread?  Terms of parallel loops are the same numbers for the whole team; others may
 * have had another value at the earlier access, but move an element by multiples of `step`. */
static bool same_thread(const Kernel *kernel, const Access *a, const Access *b) {
    if (a->lanes < 0 || b->lanes < 0)
        return false;
    int64_t stride = affine_stride(a->at, a->lanes), step = 0;
    if (stride <= 0 || stride != affine_stride(b->at, b->lanes) || a->at->base != b->at->base)
        return false;
    for (int side = 0; side < 2; side++) {
        const Access *one = side ? b : a, *other = side ? a : b;
        for (int i = 0; i < one->at->term_count; i++) {
            Term term = one->at->terms[i];
            if (term.value == one->lanes)
                continue;
            if (!is_parallel_index(kernel, term.value))
                step = greatest_divisor(step, term.stride);
            else if (affine_stride(other->at, term.value) != term.stride)
                return false;
        }
    }
    int64_t ea = at(kernel, a->lanes)->loop->extent, eb = at(kernel, b->lanes)->loop->extent;
    int64_t extent = ea > eb ? ea : eb;
    return step == 0 || (step % stride == 0 && step / stride >= extent);
}

/* A value that is made within its lanes loop moves the address by no rule that is known
 * here. */
static bool is_regular(const Kernel *kernel, const Access *access) {
    if (access->lanes < 0)
        return true;
    const Region *body = &at(kernel, access->lanes)->loop->body;
    for (int i = 0; i < access->at->term_count; i++)
        for (int64_t k = 0; k < body->count; k++)
            if (body->data[k] == access->at->terms[i].value)
                return false;
    return true;
}

static bool conflict(const Kernel *kernel, const Access *a, const Access *b) {
    if (a->buffer != b->buffer || (!a->stores && !b->stores))
        return false;
    if (a->buffer <= EXCHANGE)
        return true;
    if (a->stores && b->stores && a->lanes < 0 && b->lanes < 0)
        return false; /* both by the first thread */
    return !is_regular(kernel, a) || !is_regular(kernel, b) || !same_thread(kernel, a, b);
}

static bool conflicts(const Waiter *w, const Access *access) {
    for (int64_t i = 0; i < w->since.count; i++)
        if (conflict(w->kernel, &w->since.data[i], access))
            return true;
    return false;
}

static void wait_before(Waiter *w, ValueId id) {
    w->launch->waits[id] = true;
    w->any = true;
    w->since.count = 0;
}

static bool is_shared(const Waiter *w, const Instruction *access) {
    const Buffer *buffer = &w->kernel->buffers.data[access->buffer];
    return buffer->argument < 0 || buffer->writes;
}

static void note(Waiter *w, Access access) {
    for (int64_t i = 0; i < w->since.count; i++)
        if (memcmp(&w->since.data[i], &access, sizeof access) == 0)
            return;
    array_push(&w->since, access);
}

static Access access_of(const Instruction *instruction, ValueId lanes) {
    Access access;
    memset(&access, 0, sizeof access); /* with what lies between members: they are compared */
    access.buffer = instruction->buffer;
    access.stores = instruction->kind == KERNEL_STORE;
    access.lanes = lanes;
    access.at = &instruction->at;
    return access;
}

/* The accesses of a lanes loop come at one time: no iteration touches another's. */
static void wait_for_lanes(Waiter *w, ValueId id) {
    const Region *body = &at(w->kernel, id)->loop->body;
    bool wanted = w->launch->waits[id];
    for (int64_t i = 0; i < body->count && !wanted; i++) {
        const Instruction *instruction = at(w->kernel, body->data[i]);
        if (instruction->kind != KERNEL_LOAD && instruction->kind != KERNEL_STORE)
            continue;
        Access access = access_of(instruction, id);
        wanted = is_shared(w, instruction) && conflicts(w, &access);
    }
    if (wanted)
        wait_before(w, id);
    for (int64_t i = 0; i < body->count; i++) {
        const Instruction *instruction = at(w->kernel, body->data[i]);
        if ((instruction->kind == KERNEL_LOAD || instruction->kind == KERNEL_STORE) &&
            is_shared(w, instruction))
            note(w, access_of(instruction, id));
    }
}

/* Where a team is a block, a reduction stores lanes, waits, and loads them; every other one in
 * other memory. */
static void wait_for_exchange(Waiter *w, ValueId id) {
    Access access;
    memset(&access, 0, sizeof access);
    access.buffer = EXCHANGE - w->reductions++ % 2;
    access.stores = true;
    access.lanes = -1;
    if (w->launch->waits[id] || conflicts(w, &access))
        wait_before(w, id);
    w->since.count = 0;
    access.stores = false;
    note(w, access);
}

static void wait_in_region(Waiter *w, const Region *region);

static void wait_for_loop(Waiter *w, ValueId id) {
    const Loop *loop = at(w->kernel, id)->loop;
    if (loop->kind == LOOP_LANES) {
        wait_for_lanes(w, id);
        for (int64_t i = 0; w->blocks && i < loop->body.count; i++)
            if (at(w->kernel, loop->body.data[i])->kind == KERNEL_REDUCE)
                wait_for_exchange(w, loop->body.data[i]);
        return;
    }
    int reductions = w->reductions;
    wait_in_region(w, &loop->body);
    if (loop->kind != LOOP_SERIAL)
        return;
    w->reductions = reductions; /* the next time round the same ones meet what was left */
    wait_in_region(w, &loop->body);
}

static void wait_in_region(Waiter *w, const Region *region) {
    for (int64_t i = 0; i < region->count; i++) {
        ValueId id = region->data[i];
        const Instruction *instruction = at(w->kernel, id);
        if (instruction->kind == KERNEL_LOOP) {
            wait_for_loop(w, id);
            continue;
        }
        if ((instruction->kind != KERNEL_LOAD && instruction->kind != KERNEL_STORE) ||
            !is_shared(w, instruction))
            continue;
        Access access = access_of(instruction, -1);
        if (w->launch->waits[id] || conflicts(w, &access))
            wait_before(w, id);
        note(w, access);
    }
}

/* True where a team of several threads has to wait at all. */
static bool find_waits(const Kernel *kernel, Launch *launch, bool blocks) {
    Waiter waiter = {.kernel = kernel, .launch = launch, .blocks = blocks};
    launch->waits = arena_alloc_array(kernel->arena, (size_t)kernel->instructions.count, 1);
    wait_in_region(&waiter, &launch->body);
    array_free(&waiter.since);
    return waiter.any;
}

/* ---- launches ------------------------------------------------------------------------ */

static int64_t nest_iterations(const Kernel *kernel, ValueId nest) {
    int64_t iterations = 1;
    for (ValueId id = nest; id >= 0; id = nest_below(kernel, id))
        iterations *= at(kernel, id)->loop->extent;
    return iterations;
}

static void mark_arguments(const Kernel *kernel, const Region *region, bool *used) {
    for (int64_t i = 0; i < region->count; i++) {
        const Instruction *instruction = at(kernel, region->data[i]);
        if (instruction->kind == KERNEL_LOAD || instruction->kind == KERNEL_STORE) {
            int argument = kernel->buffers.data[instruction->buffer].argument;
            if (argument >= 0)
                used[argument] = true;
        }
        if (instruction->kind == KERNEL_SCALAR)
            used[kernel->argument_count] = true;
        if (instruction->loop)
            mark_arguments(kernel, &instruction->loop->body, used);
    }
}

static void find_arguments(const Kernel *kernel, Launch *launch) {
    size_t most = (size_t)kernel->argument_count + 1;
    bool *used = arena_alloc_array(kernel->arena, most, sizeof *used);
    launch->arguments = arena_alloc_array(kernel->arena, most, sizeof *launch->arguments);
    mark_arguments(kernel, &launch->body, used);
    for (int i = 0; i <= kernel->argument_count; i++)
        if (used[i])
            launch->arguments[launch->argument_count++] = i;
    launch->takes_scalars = used[kernel->argument_count];
}

static void add_launch(GridMaker *m, int64_t begin, int64_t end, ValueId nest) {
    Kernel *kernel = m->kernel;
    Launch launch = {
        .nest = nest, .dealt = -1, .row = -1, .body = launch_body(kernel, begin, end)};
    LanesFacts facts = {.lanes = 1, .fours = true};
    launch.name = m->launches.count ? arena_printf(kernel->arena, "%s_%d", m->name,
                                                   (int)m->launches.count + 1)
                                    : m->name;
    launch.iterations = nest < 0 ? 1 : nest_iterations(kernel, nest);
    lanes_facts(kernel, &launch.body, -1, &facts);
    bool waits = find_waits(kernel, &launch, false);
    if (!waits)
        find_dealt(kernel, &launch);
    choose_team(&launch, &facts, waits || launch.dealt >= 0);
    INTERNAL_CHECK(launch.dealt < 0 || launch.threads >= WARP_THREADS); /* it votes */
    bool exchanges = launch.threads == ROW_THREADS && facts.longest_reduced > 0;
    if (exchanges)
        waits = find_waits(kernel, &launch, true);
    choose_blocks(kernel, &launch, &facts, waits && launch.threads > 1, exchanges);
    find_arguments(kernel, &launch);
    array_push(&m->launches, launch);
}

LaunchList launches_of(Kernel *kernel, const char *name) {
    GridMaker maker = {.kernel = kernel, .name = name};
    int64_t begin = 0, count = kernel->body.count;
    for (int64_t i = 0; i <= count; i++) {
        bool nest = i < count && is_parallel_index(kernel, kernel->body.data[i]);
        if (i < count && !nest)
            continue;
        Region run = {.data = kernel->body.data + begin, .count = i - begin};
        if (region_has(kernel, &run, KERNEL_STORE))
            add_launch(&maker, begin, i, -1);
        if (nest)
            add_launch(&maker, i, i + 1, kernel->body.data[i]);
        begin = i + 1;
    }
    LaunchList list = {.count = (int)maker.launches.count};
    list.launches = arena_alloc_array(kernel->arena, (size_t)list.count, sizeof *list.launches);
    memcpy(list.launches, maker.launches.data, (size_t)list.count * sizeof *list.launches);
    array_free(&maker.launches);
    return list;
}
