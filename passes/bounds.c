/* passes/bounds.c: what no order of execution can do without.
 *
 * While a group runs, a value is live in every order when the group that computes it must run
 * before and some group that reads it must run after, or is the group at hand.  The largest sum
 * of such values over all groups is a lower bound of every arena, whatever the schedule.  In
 * the order at hand no group can have more of them than there are live bytes while it runs: so
 * groups are looked at from the largest of those sums downwards, until that is no more than the
 * bound which is found; mostly the first one says it all. */
#include "passes/passes.h"

/* Nodes and groups visited before it ends; groups left out can only make the bound less. */
enum { MAX_VISITS = 50000000 };

typedef struct Bounds {
    const Function *function;
    GroupGraph graph;
    const int64_t *live; /* by group, in the order at hand */
    bool *copied;        /* by node: lives to the end, to be copied to a state */
    bool *above, *below; /* by group: must run before, after the one at hand */
    int32_t *counted;    /* by node: the look that counted it last */
    int32_t looks;
} Bounds;

/* Groups are in an order of execution: whoever must run before has the smaller number. */
static void find_neighbours(Bounds *b, int32_t group) {
    const GroupGraph *graph = &b->graph;
    int64_t groups = b->function->groups.count;
    memset(b->above, 0, (size_t)groups * sizeof *b->above);
    memset(b->below, 0, (size_t)groups * sizeof *b->below);
    for (int64_t g = group; g >= 0; g--)
        for (int64_t i = graph->before_start[g];
             i < graph->before_start[g + 1] && (g == group || b->above[g]); i++)
            b->above[graph->before[i]] = true;
    for (int64_t g = group + 1; g < groups; g++)
        for (int64_t i = graph->before_start[g]; i < graph->before_start[g + 1]; i++)
            b->below[g] |= graph->before[i] == group || b->below[graph->before[i]];
}

/* Bytes of the value, once a look, where the group at hand stands behind the one that makes
 * it. */
static int64_t count_value(Bounds *b, NodeId value) {
    const Placement *placement = &node_at(b->function, value)->placement;
    if (!placement->stored || !b->above[placement->group] || b->counted[value] == b->looks)
        return 0;
    b->counted[value] = b->looks;
    return slot_bytes(b->function, value);
}

/* Can the value lie where some operand of its group lies? */
static bool may_be_in_place(const Bounds *b, NodeId value, int32_t group) {
    for (int64_t i = b->graph.read_start[group]; i < b->graph.read_start[group + 1]; i++)
        if (may_take_place_of(b->function, &b->graph, value, b->graph.reads[i]))
            return true;
    return false;
}

/* Bytes that are live while the group runs, in every order. */
static int64_t look_at(Bounds *b, int32_t group) {
    const GroupGraph *graph = &b->graph;
    int64_t through = 0, operands = 0, results = 0, new_places = 0;
    b->looks++;
    find_neighbours(b, group);
    for (int32_t g = group + 1; g < b->function->groups.count; g++)
        for (int64_t i = graph->read_start[g]; i < graph->read_start[g + 1] && b->below[g]; i++)
            through += count_value(b, graph->reads[i]);
    for (NodeId id = 0; id < b->function->nodes.count; id++)
        through += b->copied[id] ? count_value(b, id) : 0;
    for (int64_t i = graph->read_start[group]; i < graph->read_start[group + 1]; i++)
        operands += count_value(b, graph->reads[i]);
    for (int64_t i = graph->store_start[group]; i < graph->store_start[group + 1]; i++) {
        int64_t bytes = slot_bytes(b->function, graph->stores[i]);
        results += bytes;
        new_places += may_be_in_place(b, graph->stores[i], group) ? 0 : bytes;
    }
    return through + (operands + new_places > results ? operands + new_places : results);
}

static void find_copied(Bounds *b) {
    for (int64_t i = 0; i < b->function->writes.count; i++) {
        NodeId source = write_source(b->function, b->function->writes.data[i].value);
        if (source >= 0 && !b->function->writes.data[i].direct)
            b->copied[source] = true;
    }
}

typedef struct Look {
    int64_t live;
    int32_t group;
} Look;

static int by_live_bytes(const void *left, const void *right) {
    const Look *a = left, *b = right;
    if (a->live != b->live)
        return a->live > b->live ? -1 : 1;
    return (a->group > b->group) - (a->group < b->group);
}

int64_t order_bound(const Function *function) {
    Arena *arena = arena_new();
    size_t groups = (size_t)function->groups.count, nodes = (size_t)function->nodes.count;
    Bounds b = {.function = function,
                .graph = group_graph(function, arena),
                .live = live_bytes(function, arena),
                .copied = arena_alloc(arena, nodes),
                .above = arena_alloc(arena, groups),
                .below = arena_alloc(arena, groups),
                .counted = arena_alloc_array(arena, nodes, sizeof(int32_t))};
    Look *looks = arena_alloc_array(arena, groups, sizeof *looks);
    for (size_t g = 0; g < groups; g++)
        looks[g] = (Look){b.live[g], (int32_t)g};
    if (groups)
        qsort(looks, groups, sizeof *looks, by_live_bytes);
    find_copied(&b);
    int64_t bound = 0;
    for (size_t i = 0; i < groups && looks[i].live > bound; i++) {
        if (i && i * (nodes + groups) > MAX_VISITS)
            break;
        int64_t bytes = look_at(&b, looks[i].group);
        bound = bytes > bound ? bytes : bound;
    }
    arena_free(arena);
    return bound;
}
