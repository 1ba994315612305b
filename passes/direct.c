/* passes/direct.c: which writes go straight into their states (the fuse pass's last step).
 *
 * A kernel that computes a state's new value may store it over the old one, if all who read the
 * old one run before.  That is one more edge for each of them, from reader to writer; direct
 * are as many writes as leave the groups an order.  Nearly always that is all of them, so that
 * is tried first; else each is tried beside those before it.  A write that is not direct costs
 * a place in the arena and a copy when all groups have run. */
#include "passes/passes.h"

enum { MAX_WORK = 100000000 }; /* steps of the search; what is left then costs copies */

/* A group that must run before another: it waits in no list of the graph's. */
typedef struct ExtraEdge {
    int32_t after;
    int64_t next; /* of the same group's; -1 */
} ExtraEdge;

/* Of a state by a group. */
typedef struct StateRead {
    NodeId root;
    int32_t group;
    int64_t next; /* of the same state; -1 */
} StateRead;

typedef struct DirectWrites {
    const Function *function;
    GroupGraph graph;
    ARRAY(StateRead) reads;
    int64_t *reads_of; /* by state: the first; -1 */
    ARRAY(int64_t) window_reads, found;
    int64_t *after_start;
    int32_t *after;         /* by group: the groups that wait for it */
    ARRAY(ExtraEdge) extra; /* from a reader of a state to the group that overwrites it */
    int64_t *first_extra;   /* by group; -1 */
    bool extra_backward;    /* does one of them lead to a lower number? */
    int64_t work;           /* steps of the search so far */
} DirectWrites;

static void index_waiting(DirectWrites *d, Arena *arena) {
    int64_t groups = d->function->groups.count;
    const GroupGraph *graph = &d->graph;
    d->after_start = arena_alloc_array(arena, (size_t)groups + 2, sizeof(int64_t));
    d->after = arena_alloc_array(arena, (size_t)graph->before_start[groups], sizeof(int32_t));
    d->first_extra = arena_alloc_array(arena, (size_t)groups + 1, sizeof(int64_t));
    for (int64_t i = 0; i < graph->before_start[groups]; i++)
        d->after_start[graph->before[i] + 2]++;
    for (int64_t g = 0; g < groups; g++) {
        d->after_start[g + 2] += d->after_start[g + 1];
        d->first_extra[g] = -1;
    }
    for (int32_t g = 0; g < groups; g++)
        for (int64_t i = graph->before_start[g]; i < graph->before_start[g + 1]; i++)
            d->after[d->after_start[graph->before[i] + 1]++] = g;
}

static void index_reads(DirectWrites *d, Arena *arena) {
    const Module *module = d->function->module;
    const GroupGraph *graph = &d->graph;
    size_t states = (size_t)module->states.count;
    d->reads_of = arena_alloc_array(arena, states + 1, sizeof(int64_t));
    for (size_t id = 0; id < states; id++)
        d->reads_of[id] = -1;
    for (int32_t g = 0; g < d->function->groups.count; g++)
        for (int64_t i = graph->read_start[g]; i < graph->read_start[g + 1]; i++) {
            const Node *root = node_at(d->function, graph->reads[i]);
            if (root->op != OP_STATE)
                continue;
            StateRead read = {graph->reads[i], g, d->reads_of[root->attr.integer]};
            if (module->states.data[root->attr.integer].flat)
                array_push(&d->window_reads, d->reads.count);
            d->reads_of[root->attr.integer] = d->reads.count;
            array_push(&d->reads, read);
        }
}

static void find_reads_among(DirectWrites *d, StateId written, int64_t read) {
    StateId state = (StateId)node_at(d->function, d->reads.data[read].root)->attr.integer;
    d->work++;
    if (states_overlap(d->function->module, state, written))
        array_push(&d->found, read);
}

/* The reads of memory that a write overwrites, in d->found: of the state itself and of windows
 * over it; where it is a window, of what it is over. */
static void find_reads(DirectWrites *d, StateId written) {
    d->found.count = 0;
    if (d->function->module->states.data[written].flat) {
        for (int64_t i = 0; i < d->reads.count; i++)
            find_reads_among(d, written, i);
        return;
    }
    for (int64_t i = d->reads_of[written]; i >= 0; i = d->reads.data[i].next)
        array_push(&d->found, i);
    for (int64_t i = 0; i < d->window_reads.count; i++)
        find_reads_among(d, written, d->window_reads.data[i]);
}

static void add_extra(DirectWrites *d, int32_t reader, int32_t writer) {
    ExtraEdge edge = {writer, d->first_extra[reader]};
    d->first_extra[reader] = d->extra.count;
    d->extra_backward |= reader > writer;
    array_push(&d->extra, edge);
}

static void forget_extra(DirectWrites *d) {
    for (int64_t g = 0; g < d->function->groups.count; g++)
        d->first_extra[g] = -1;
    d->extra.count = 0;
    d->extra_backward = false;
}

/* May the group itself read what it overwrites?  Element by element. */
static bool reads_allow(const DirectWrites *d, StateId written, int32_t group) {
    for (int64_t i = 0; i < d->found.count; i++) {
        StateRead read = d->reads.data[d->found.data[i]];
        if (read.group == group &&
            (node_at(d->function, read.root)->attr.integer != written ||
             !group_reads_in_place(d->function, &d->graph, group, read.root)))
            return false;
    }
    return true;
}

static void add_readers(DirectWrites *d, int32_t group) {
    for (int64_t i = 0; i < d->found.count; i++)
        if (d->reads.data[d->found.data[i]].group != group)
            add_extra(d, d->reads.data[d->found.data[i]].group, group);
}

/* Is there an order in which every group runs after all that it waits for? */
static bool has_order(const DirectWrites *d, Arena *arena) {
    int64_t groups = d->function->groups.count, done = 0, ready = 0;
    int32_t *waits = arena_alloc_array(arena, (size_t)groups + 1, sizeof *waits);
    int32_t *order = arena_alloc_array(arena, (size_t)groups + 1, sizeof *order);
    for (int64_t g = 0; g < groups; g++)
        waits[g] = (int32_t)(d->graph.before_start[g + 1] - d->graph.before_start[g]);
    for (int64_t i = 0; i < d->extra.count; i++)
        waits[d->extra.data[i].after]++;
    for (int32_t g = 0; g < groups; g++)
        if (!waits[g])
            order[ready++] = g;
    for (; done < ready; done++) {
        int32_t group = order[done];
        for (int64_t i = d->after_start[group]; i < d->after_start[group + 1]; i++)
            if (!--waits[d->after[i]])
                order[ready++] = d->after[i];
        for (int64_t i = d->first_extra[group]; i >= 0; i = d->extra.data[i].next)
            if (!--waits[d->extra.data[i].after])
                order[ready++] = d->extra.data[i].after;
    }
    return ready == groups;
}

/* Does `to` wait for `from`? */
static bool waits_for(DirectWrites *d, int32_t to, int32_t from) {
    if (from > to && !d->extra_backward)
        return false; /* numbers are topological */
    bool *seen = checked_alloc((size_t)d->function->groups.count);
    ARRAY(int32_t) pending = {0};
    d->work += d->function->groups.count;
    array_push(&pending, from);
    seen[from] = true;
    while (pending.count && !seen[to]) {
        int32_t group = pending.data[--pending.count];
        for (int64_t i = d->after_start[group]; i < d->after_start[group + 1]; i++) {
            d->work++;
            if (!seen[d->after[i]])
                array_push(&pending, d->after[i]);
            seen[d->after[i]] = true;
        }
        for (int64_t i = d->first_extra[group]; i >= 0; i = d->extra.data[i].next) {
            int32_t after = d->extra.data[i].after;
            d->work++;
            if (!seen[after])
                array_push(&pending, after);
            seen[after] = true;
        }
    }
    bool found = seen[to];
    array_free(&pending);
    free(seen);
    return found;
}

/* Can all who read the old value run before the group? */
static bool readers_can_precede(DirectWrites *d, int32_t group) {
    for (int64_t i = 0; i < d->found.count; i++) {
        int32_t reader = d->reads.data[d->found.data[i]].group;
        if (reader != group && waits_for(d, reader, group))
            return false;
    }
    return true;
}

static int32_t writing_group(const Function *function, const Write *write) {
    return node_at(function, write_source(function, write->value))->placement.group;
}

/* All at once: sets `direct` of every write that its own group allows, and says whether the
 * groups still have an order. */
static bool all_are_direct(DirectWrites *d, Function *function, Arena *arena) {
    for (int64_t i = 0; i < function->writes.count; i++) {
        Write *write = &function->writes.data[i];
        const Node *source = node_at(function, write_source(function, write->value));
        if (write->add || (source->op == OP_DOT && source->placement.stored))
            continue;
        find_reads(d, write->state);
        write->direct = reads_allow(d, write->state, source->placement.group);
        if (write->direct)
            add_readers(d, source->placement.group);
    }
    return has_order(d, arena);
}

/* Each that can be beside those before it. */
static void choose_one_by_one(DirectWrites *d, Function *function) {
    forget_extra(d);
    for (int64_t i = 0; i < function->writes.count; i++) {
        Write *write = &function->writes.data[i];
        int32_t group = writing_group(function, write);
        if (!write->direct || write->add)
            continue;
        find_reads(d, write->state);
        write->direct = d->work < MAX_WORK && readers_can_precede(d, group);
        if (write->direct)
            add_readers(d, group);
    }
}

void choose_direct_writes(Function *function, Arena *scratch) {
    for (int64_t i = 0; i < function->writes.count; i++)
        function->writes.data[i].direct = function->writes.data[i].add;
    DirectWrites d = {.function = function, .graph = group_graph(function, scratch)};
    index_waiting(&d, scratch);
    index_reads(&d, scratch);
    if (!all_are_direct(&d, function, scratch))
        choose_one_by_one(&d, function);
    for (int64_t i = 0; i < function->writes.count; i++) {
        const Write *write = &function->writes.data[i];
        if (!write->direct)
            function->nodes.data[write_source(function, write->value)].placement.stored = true;
    }
    array_free(&d.reads);
    array_free(&d.window_reads);
    array_free(&d.found);
    array_free(&d.extra);
}
