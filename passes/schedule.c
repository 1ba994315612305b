/* passes/schedule.c: the order in which groups run.
 *
 * needs   groups
 * gives   groups in execution order, chosen to lower the peak of live memory
 * reads   nothing of the plan
 *
 * A list scheduler, run from the beginning and from the end; the order with the lower peak is
 * taken, the first where they are equal.  From the beginning, groups that are ready run in the
 * order of the graph, the forward part before the backward part; but one that frees as much as
 * it allocates runs at once.  So the products that add to gradients, which allocate nothing,
 * stand right behind the value they wait for.  From the end, the same with time reversed: the
 * last place is taken by the last group of the graph, but by one that wants no more memory
 * before it than after it where there is one.  So a value stands right before what needs it,
 * and a recomputed one before its first use. */
#include "passes/passes.h"

/* Pairs of a result and an operand whose place it may take; orders are compared without
 * more. */
enum { MAX_IN_PLACE = 1 << 22 };

typedef struct Candidate {
    int64_t growth; /* bytes that become live less bytes that die, when it was entered */
    int32_t number; /* of the group; from the end: its opposite */
} Candidate;
/* A binary heap, least first. */
typedef ARRAY(Candidate) Heap;

/* A result that may be computed into the place of an operand. */
typedef struct InPlace {
    NodeId value, operand;
} InPlace;

typedef struct Schedule {
    const Function *function;
    GroupGraph graph;
    int64_t *after_start; /* by group: those that wait for it */
    int32_t *after;
    int64_t *user_start; /* by node: the groups that read it */
    int32_t *users;
    bool *copied;            /* by node: lives to the end, to be copied to a state */
    bool *late;              /* by group: of the backward part */
    int64_t *in_place_start; /* by group */
    ARRAY(InPlace) in_place;

    bool from_end;
    int32_t *readers; /* by node: that have no place yet; from the end: that have */
    int32_t *waits;   /* by group: neighbours that must have a place first */
    int64_t *growth;  /* by group */
    bool *done;       /* by group: has its place */
    Heap by_growth[2], by_number[2]; /* ready, by part: those that free memory; all */
} Schedule;

static bool candidate_less(const Candidate *a, const Candidate *b) {
    return a->growth != b->growth ? a->growth < b->growth : a->number < b->number;
}

static void heap_push(Heap *heap, Candidate candidate) {
    array_push(heap, candidate);
    int64_t i = heap->count - 1;
    for (; i > 0 && candidate_less(&candidate, &heap->data[(i - 1) / 2]); i = (i - 1) / 2)
        heap->data[i] = heap->data[(i - 1) / 2];
    heap->data[i] = candidate;
}

static Candidate heap_pop(Heap *heap) {
    Candidate least = heap->data[0], moved = heap->data[--heap->count];
    int64_t i = 0;
    for (int64_t child = 1; child < heap->count; child = 2 * i + 1) {
        if (child + 1 < heap->count &&
            candidate_less(&heap->data[child + 1], &heap->data[child]))
            child++;
        if (!candidate_less(&heap->data[child], &moved))
            break;
        heap->data[i] = heap->data[child];
        i = child;
    }
    heap->data[i] = moved;
    return least;
}

/* Cut off where sums of it could overflow: such values are refused by the memory pass. */
static int64_t bytes_of(const Function *function, NodeId id) {
    const int64_t limit = INT64_MAX / MAX_NODES / 2;
    const Node *node = node_at(function, id);
    int64_t elements = type_elements(function->module, node->type);
    return elements > limit / 8 - SLOT_ALIGNMENT ? limit : slot_bytes(function, id);
}

static bool is_arena_value(const Function *function, NodeId id) {
    return node_at(function, id)->placement.stored;
}

/* The backward part begins at the first adjoint; recomputed clones belong to it. */
static void mark_late_groups(Schedule *s) {
    bool backward = false;
    for (int64_t id = 0; id < s->function->nodes.count; id++) {
        const Node *node = &s->function->nodes.data[id];
        backward |= node->adjoint_of >= 0;
        if (node->placement.group >= 0)
            s->late[node->placement.group] |= backward || node->clone != 0;
    }
}

static void index_graph(Schedule *s, Arena *arena) {
    const GroupGraph *graph = &s->graph;
    size_t groups = (size_t)s->function->groups.count, nodes = (size_t)s->function->nodes.count;
    s->after_start = arena_alloc_array(arena, groups + 2, sizeof(int64_t));
    s->after = arena_alloc_array(arena, (size_t)graph->before_start[groups], sizeof(int32_t));
    s->user_start = arena_alloc_array(arena, nodes + 2, sizeof(int64_t));
    s->users = arena_alloc_array(arena, (size_t)graph->read_start[groups], sizeof(int32_t));
    for (int64_t i = 0; i < graph->before_start[groups]; i++)
        s->after_start[graph->before[i] + 2]++;
    for (int64_t i = 0; i < graph->read_start[groups]; i++)
        s->user_start[graph->reads[i] + 2]++;
    for (size_t g = 0; g < groups; g++)
        s->after_start[g + 2] += s->after_start[g + 1];
    for (size_t id = 0; id < nodes; id++)
        s->user_start[id + 2] += s->user_start[id + 1];
    for (int32_t g = 0; g < (int32_t)groups; g++) {
        for (int64_t i = graph->before_start[g]; i < graph->before_start[g + 1]; i++)
            s->after[s->after_start[graph->before[i] + 1]++] = g;
        for (int64_t i = graph->read_start[g]; i < graph->read_start[g + 1]; i++)
            s->users[s->user_start[graph->reads[i] + 1]++] = g;
    }
}

/* A forward group that waits for a backward one would never run: then it counts as late too. */
static void spread_late(Schedule *s) {
    ARRAY(int32_t) pending = {0};
    for (int32_t g = 0; g < s->function->groups.count; g++)
        if (s->late[g])
            array_push(&pending, g);
    while (pending.count) {
        int32_t group = pending.data[--pending.count];
        for (int64_t i = s->after_start[group]; i < s->after_start[group + 1]; i++) {
            if (!s->late[s->after[i]])
                array_push(&pending, s->after[i]);
            s->late[s->after[i]] = true;
        }
    }
    array_free(&pending);
}

static void find_copied_values(Schedule *s) {
    for (int64_t i = 0; i < s->function->writes.count; i++) {
        NodeId source = write_source(s->function, s->function->writes.data[i].value);
        if (source >= 0 && !s->function->writes.data[i].direct)
            s->copied[source] = true;
    }
}

static void find_in_place(Schedule *s) {
    const GroupGraph *graph = &s->graph;
    for (int32_t g = 0; g < s->function->groups.count; g++) {
        for (int64_t i = graph->store_start[g]; i < graph->store_start[g + 1]; i++)
            for (int64_t k = graph->read_start[g]; k < graph->read_start[g + 1]; k++) {
                InPlace pair = {graph->stores[i], graph->reads[k]};
                if (s->in_place.count < MAX_IN_PLACE &&
                    may_take_place_of(s->function, graph, pair.value, pair.operand))
                    array_push(&s->in_place, pair);
            }
        s->in_place_start[g + 1] = s->in_place.count;
    }
}

/* ---- one order ---------------------------------------------------------------- */

static void enter(Schedule *s, int32_t group) {
    int32_t number = s->from_end ? -group : group;
    heap_push(&s->by_number[s->late[group]], (Candidate){0, number});
    if (s->growth[group] <= 0)
        heap_push(&s->by_growth[s->late[group]], (Candidate){s->growth[group], number});
}

/* Whoever of its readers comes next decides whether it lives: that frees so much more. */
static void credit_users(Schedule *s, NodeId id) {
    for (int64_t i = s->user_start[id]; i < s->user_start[id + 1]; i++) {
        int32_t group = s->users[i];
        if (s->done[group])
            continue;
        s->growth[group] -= bytes_of(s->function, id);
        if (s->waits[group] == 0 && s->growth[group] <= 0)
            heap_push(&s->by_growth[s->late[group]],
                      (Candidate){s->growth[group], s->from_end ? -group : group});
    }
}

/* Does the group that runs now decide whether the value lives: from the beginning, as its last
 * reader; from the end, as the first to want it? */
static bool is_decided(const Schedule *s, NodeId id) {
    return is_arena_value(s->function, id) && !s->copied[id] &&
           s->readers[id] == (s->from_end ? 0 : 1);
}

static void measure_growth(Schedule *s) {
    const GroupGraph *graph = &s->graph;
    for (int32_t g = 0; g < s->function->groups.count; g++) {
        int64_t made = 0, read = 0;
        for (int64_t i = graph->store_start[g]; i < graph->store_start[g + 1]; i++)
            made += bytes_of(s->function, graph->stores[i]);
        for (int64_t i = graph->read_start[g]; i < graph->read_start[g + 1]; i++)
            read += is_decided(s, graph->reads[i]) ? bytes_of(s->function, graph->reads[i]) : 0;
        s->growth[g] = s->from_end ? read - made : made - read;
    }
}

static void begin_order(Schedule *s, bool from_end) {
    s->from_end = from_end;
    for (int part = 0; part < 2; part++)
        s->by_growth[part].count = s->by_number[part].count = 0;
    for (int64_t id = 0; id < s->function->nodes.count; id++)
        s->readers[id] = from_end ? 0 : (int32_t)(s->user_start[id + 1] - s->user_start[id]);
    for (int64_t g = 0; g < s->function->groups.count; g++) {
        const int64_t *start = from_end ? s->after_start : s->graph.before_start;
        s->waits[g] = (int32_t)(start[g + 1] - start[g]);
        s->done[g] = false;
    }
    measure_growth(s);
}

/* The next group of a part: one that frees memory, or else the first; -1 where none is
 * ready. */
static int32_t pick(Schedule *s, int part) {
    Heap *heaps[] = {&s->by_growth[part], &s->by_number[part]};
    for (int i = 0; i < COUNT_OF(heaps); i++)
        while (heaps[i]->count) {
            Candidate candidate = heap_pop(heaps[i]);
            int32_t group = s->from_end ? -candidate.number : candidate.number;
            bool stale = i == 0 && candidate.growth != s->growth[group];
            if (!s->done[group] && !stale)
                return group;
        }
    return -1;
}

static void place_group(Schedule *s, int32_t group) {
    const int64_t *start = s->from_end ? s->graph.before_start : s->after_start;
    const int32_t *neighbours = s->from_end ? s->graph.before : s->after;
    s->done[group] = true;
    for (int64_t i = s->graph.read_start[group]; i < s->graph.read_start[group + 1]; i++) {
        NodeId id = s->graph.reads[i];
        if (s->from_end && is_decided(s, id))
            credit_users(s, id);
        s->readers[id] += s->from_end ? 1 : -1;
        if (!s->from_end && is_decided(s, id))
            credit_users(s, id);
    }
    for (int64_t i = start[group]; i < start[group + 1]; i++)
        if (--s->waits[neighbours[i]] == 0)
            enter(s, neighbours[i]);
}

/* Gives every group its place; false when some wait for each other, which only a text by hand
 * can ask for. */
static bool make_order(Schedule *s, bool from_end, int32_t *order) {
    int32_t groups = (int32_t)s->function->groups.count, waiting[2] = {0, 0};
    begin_order(s, from_end);
    for (int32_t g = 0; g < groups; g++) {
        waiting[s->late[g]]++;
        if (s->waits[g] == 0)
            enter(s, g);
    }
    for (int32_t place = 0; place < groups; place++) {
        int32_t group = pick(s, waiting[from_end] ? from_end : !from_end);
        if (group < 0)
            return false;
        order[from_end ? groups - 1 - place : place] = group;
        waiting[s->late[group]]--;
        place_group(s, group);
    }
    return true;
}

/* ---- orders compared ---------------------------------------------------------- */

/* Bytes of a group's results that take the places of operands which it is the last to read. */
static int64_t bytes_in_place(Schedule *s, int32_t group) {
    const InPlace *pairs = s->in_place.data;
    uint8_t *taken = s->graph.marks;
    int64_t bytes = 0;
    for (int64_t i = s->in_place_start[group]; i < s->in_place_start[group + 1]; i++) {
        if (taken[pairs[i].value] || taken[pairs[i].operand] ||
            !is_decided(s, pairs[i].operand))
            continue;
        taken[pairs[i].value] = taken[pairs[i].operand] = 1;
        bytes += bytes_of(s->function, pairs[i].value);
    }
    for (int64_t i = s->in_place_start[group]; i < s->in_place_start[group + 1]; i++)
        taken[pairs[i].value] = taken[pairs[i].operand] = 0;
    return bytes;
}

static int64_t peak_of_order(Schedule *s, const int32_t *order) {
    const GroupGraph *graph = &s->graph;
    int64_t live = 0, peak = 0;
    begin_order(s, false);
    for (int64_t place = 0; place < s->function->groups.count; place++) {
        int32_t g = order[place];
        for (int64_t i = graph->store_start[g]; i < graph->store_start[g + 1]; i++)
            live += bytes_of(s->function, graph->stores[i]);
        int64_t during = live - bytes_in_place(s, g);
        peak = during > peak ? during : peak;
        for (int64_t i = graph->read_start[g]; i < graph->read_start[g + 1]; i++) {
            live -= is_decided(s, graph->reads[i]) ? bytes_of(s->function, graph->reads[i]) : 0;
            s->readers[graph->reads[i]]--;
        }
        for (int64_t i = graph->store_start[g]; i < graph->store_start[g + 1]; i++)
            if (s->readers[graph->stores[i]] == 0 && !s->copied[graph->stores[i]])
                live -= bytes_of(s->function, graph->stores[i]); /* nobody reads it */
    }
    return peak;
}

/* order[place] is a group. */
static void renumber(Function *function, const int32_t *order, Arena *arena) {
    size_t count = (size_t)function->groups.count;
    Group *groups = arena_alloc_array(arena, count, sizeof *groups);
    int32_t *place = arena_alloc_array(arena, count, sizeof *place);
    for (size_t i = 0; i < count; i++) {
        groups[i] = function->groups.data[order[i]];
        place[order[i]] = (int32_t)i;
    }
    for (size_t i = 0; i < count; i++)
        function->groups.data[i] = groups[i];
    for (int64_t id = 0; id < function->nodes.count; id++) {
        int32_t *group = &function->nodes.data[id].placement.group;
        *group = *group < 0 ? -1 : place[*group];
    }
}

static Schedule schedule_new(const Function *function, Arena *arena) {
    size_t groups = (size_t)function->groups.count, nodes = (size_t)function->nodes.count;
    Schedule s = {.function = function,
                  .graph = group_graph(function, arena),
                  .copied = arena_alloc(arena, nodes),
                  .late = arena_alloc(arena, groups),
                  .in_place_start = arena_alloc_array(arena, groups + 1, sizeof(int64_t)),
                  .readers = arena_alloc_array(arena, nodes, sizeof(int32_t)),
                  .waits = arena_alloc_array(arena, groups, sizeof(int32_t)),
                  .growth = arena_alloc_array(arena, groups, sizeof(int64_t)),
                  .done = arena_alloc(arena, groups)};
    mark_late_groups(&s);
    index_graph(&s, arena);
    spread_late(&s);
    find_copied_values(&s);
    find_in_place(&s);
    return s;
}

static bool schedule_function(Function *function) {
    Arena *arena = arena_new();
    Schedule s = schedule_new(function, arena);
    size_t groups = (size_t)function->groups.count;
    int32_t *order = arena_alloc_array(arena, groups, sizeof *order);
    int32_t *other = arena_alloc_array(arena, groups, sizeof *other);
    bool done = make_order(&s, false, order);
    if (done) {
        bool better =
            make_order(&s, true, other) && peak_of_order(&s, other) < peak_of_order(&s, order);
        renumber(function, better ? other : order, arena);
    }
    array_free(&s.in_place);
    for (int part = 0; part < 2; part++) {
        array_free(&s.by_growth[part]);
        array_free(&s.by_number[part]);
    }
    arena_free(arena);
    return done;
}

bool pass_schedule(PassContext *context) {
    for (int64_t i = 0; i < context->module->functions.count; i++) {
        if (schedule_function(context->module->functions.data[i]))
            continue;
        refuse_module(context, "schedule",
                      "groups of function `%s` wait for each other: for values, or to read a "
                      "state before it is overwritten",
                      context->module->functions.data[i]->name);
        return false;
    }
    return true;
}
