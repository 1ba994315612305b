/* passes/schedule.c: the order in which groups run.
 *
 * needs   groups
 * gives   groups in execution order, chosen to lower the peak of live memory
 * reads   nothing of the plan
 *
 * A list scheduler.  Groups that are ready run in the order of the graph, the forward part
 * before the backward part; but one that frees as much as it allocates runs at once.  So the
 * products that add to gradients, which allocate nothing, stand right behind the value they
 * wait for. */
#include "passes/passes.h"

typedef struct Candidate {
    int64_t growth; /* bytes allocated less bytes freed, when it was entered */
    int32_t group;
} Candidate;
/* A binary heap, least first. */
typedef ARRAY(Candidate) Heap;

typedef struct Schedule {
    const Function *function;
    GroupGraph graph;
    int64_t *after_start; /* by group: those that wait for it */
    int32_t *after;
    int64_t *user_start; /* by node: the groups that read it */
    int32_t *users;
    int32_t *left;                /* by node: readers that have not run */
    int32_t *waits;               /* by group: those before it that have not run */
    int64_t *growth;              /* by group */
    bool *late, *done;            /* by group */
    Heap by_growth, by_number[2]; /* ready: those that free memory; all, by part */
} Schedule;

static bool candidate_less(const Candidate *a, const Candidate *b) {
    return a->growth != b->growth ? a->growth < b->growth : a->group < b->group;
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
    return elements > limit / 8 ? limit : elements * dtype_bytes(node->type.dtype);
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
    for (int64_t i = 0; i < graph->read_start[groups]; i++) {
        s->user_start[graph->reads[i] + 2]++;
        s->left[graph->reads[i]]++;
    }
    for (size_t g = 0; g < groups; g++)
        s->after_start[g + 2] += s->after_start[g + 1];
    for (size_t id = 0; id < nodes; id++)
        s->user_start[id + 2] += s->user_start[id + 1];
    for (int32_t g = 0; g < (int32_t)groups; g++) {
        s->waits[g] = (int32_t)(graph->before_start[g + 1] - graph->before_start[g]);
        for (int64_t i = graph->before_start[g]; i < graph->before_start[g + 1]; i++)
            s->after[s->after_start[graph->before[i] + 1]++] = g;
        for (int64_t i = graph->read_start[g]; i < graph->read_start[g + 1]; i++)
            s->users[s->user_start[graph->reads[i] + 1]++] = g;
    }
}

/* Values that are copied to a state at the end live on. */
static void pin_copied_values(Schedule *s) {
    for (int64_t i = 0; i < s->function->writes.count; i++) {
        NodeId source = write_source(s->function, s->function->writes.data[i].value);
        if (source >= 0 && !s->function->writes.data[i].direct)
            s->left[source]++;
    }
}

static void measure_growth(Schedule *s) {
    for (int32_t g = 0; g < s->function->groups.count; g++) {
        for (int64_t i = s->graph.store_start[g]; i < s->graph.store_start[g + 1]; i++)
            s->growth[g] += bytes_of(s->function, s->graph.stores[i]);
        for (int64_t i = s->graph.read_start[g]; i < s->graph.read_start[g + 1]; i++)
            if (s->left[s->graph.reads[i]] == 1 &&
                is_arena_value(s->function, s->graph.reads[i]))
                s->growth[g] -= bytes_of(s->function, s->graph.reads[i]);
    }
}

static void enter(Schedule *s, int32_t group) {
    heap_push(&s->by_number[s->late[group]], (Candidate){0, group});
    if (s->growth[group] <= 0)
        heap_push(&s->by_growth, (Candidate){s->growth[group], group});
}

/* The value's last reader but one has run: the last one frees it. */
static void credit_last_reader(Schedule *s, NodeId id) {
    for (int64_t i = s->user_start[id]; i < s->user_start[id + 1]; i++) {
        int32_t group = s->users[i];
        if (s->done[group])
            continue;
        s->growth[group] -= bytes_of(s->function, id);
        if (s->waits[group] == 0 && s->growth[group] <= 0)
            heap_push(&s->by_growth, (Candidate){s->growth[group], group});
    }
}

static int32_t pick(Schedule *s, const int32_t waiting[2]) {
    int part = waiting[0] == 0;
    ARRAY(Candidate) postponed = {0};
    int32_t picked = -1;
    while (s->by_growth.count && picked < 0) {
        Candidate candidate = heap_pop(&s->by_growth);
        if (s->done[candidate.group] || candidate.growth != s->growth[candidate.group])
            continue;
        if (s->late[candidate.group] > part)
            array_push(&postponed, candidate);
        else
            picked = candidate.group;
    }
    for (int64_t i = 0; i < postponed.count; i++)
        heap_push(&s->by_growth, postponed.data[i]);
    array_free(&postponed);
    while (picked < 0 && s->by_number[part].count) {
        Candidate candidate = heap_pop(&s->by_number[part]);
        picked = s->done[candidate.group] ? -1 : candidate.group;
    }
    return picked;
}

static void run_group(Schedule *s, int32_t group) {
    s->done[group] = true;
    for (int64_t i = s->graph.read_start[group]; i < s->graph.read_start[group + 1]; i++) {
        NodeId id = s->graph.reads[i];
        if (--s->left[id] == 1 && is_arena_value(s->function, id))
            credit_last_reader(s, id);
    }
    for (int64_t i = s->after_start[group]; i < s->after_start[group + 1]; i++)
        if (--s->waits[s->after[i]] == 0)
            enter(s, s->after[i]);
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

/* new_number[g] is the place of group g in execution order. */
static void renumber(Function *function, const int32_t *new_number, Arena *arena) {
    size_t count = (size_t)function->groups.count;
    Group *groups = arena_alloc_array(arena, count, sizeof *groups);
    for (size_t g = 0; g < count; g++)
        groups[new_number[g]] = function->groups.data[g];
    for (size_t g = 0; g < count; g++)
        function->groups.data[g] = groups[g];
    for (int64_t id = 0; id < function->nodes.count; id++) {
        int32_t *group = &function->nodes.data[id].placement.group;
        *group = *group < 0 ? -1 : new_number[*group];
    }
}

/* Runs all groups; false when some wait for each other, which only a text by hand can ask for.
 */
static bool place_groups(Schedule *s, int32_t *new_number) {
    int32_t groups = (int32_t)s->function->groups.count, waiting[2] = {0, 0};
    for (int32_t g = 0; g < groups; g++) {
        waiting[s->late[g]]++;
        if (s->waits[g] == 0)
            enter(s, g);
    }
    for (int32_t place = 0; place < groups; place++) {
        int32_t group = pick(s, waiting);
        if (group < 0)
            return false;
        new_number[group] = place;
        waiting[s->late[group]]--;
        run_group(s, group);
    }
    return true;
}

static bool schedule_function(Function *function) {
    Arena *arena = arena_new();
    size_t groups = (size_t)function->groups.count, nodes = (size_t)function->nodes.count;
    Schedule s = {.function = function,
                  .graph = group_graph(function, arena),
                  .left = arena_alloc_array(arena, nodes, sizeof(int32_t)),
                  .waits = arena_alloc_array(arena, groups, sizeof(int32_t)),
                  .growth = arena_alloc_array(arena, groups, sizeof(int64_t)),
                  .late = arena_alloc(arena, groups),
                  .done = arena_alloc(arena, groups)};
    mark_late_groups(&s);
    index_graph(&s, arena);
    spread_late(&s);
    pin_copied_values(&s);
    measure_growth(&s);
    int32_t *new_number = arena_alloc_array(arena, groups, sizeof *new_number);
    bool done = place_groups(&s, new_number);
    if (done)
        renumber(function, new_number, arena);
    array_free(&s.by_growth);
    array_free(&s.by_number[0]);
    array_free(&s.by_number[1]);
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
