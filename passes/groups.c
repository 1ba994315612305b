/* passes/groups.c: what a group reads and stores, and what must run before it. */
#include "passes/passes.h"

/* ---- states ------------------------------------------------------------------- */

bool states_overlap(const Module *module, StateId a, StateId b) {
    if (a == b)
        return true;
    const State *x = &module->states.data[a], *y = &module->states.data[b];
    if (x->role != y->role || x->number != y->number || !(x->flat || y->flat) ||
        x->offset < 0 || y->offset < 0)
        return false;
    const State *low = x->offset <= y->offset ? x : y, *high = low == x ? y : x;
    return high->offset - low->offset < type_elements(module, state_type(low));
}

/* ---- reads -------------------------------------------------------------------- */

/* Finds what lies in memory under the nodes that one group computes. */
typedef struct Walk {
    const Function *function;
    int32_t *seen; /* by node: the last group that came by, plus 1 */
    ARRAY(NodeId) pending;
    ARRAY(NodeId) roots; /* of the group at hand */
} Walk;

static bool has_memory(const Node *node, int32_t group) {
    return node->op == OP_STATE || node->op == OP_INPUT ||
           (node->placement.stored && node->placement.group != group);
}

static void walk_inputs(Walk *walk, NodeId id, int32_t group) {
    const Node *node = node_at(walk->function, id);
    for (int i = 0; i < node->input_count; i++) {
        NodeId input = node->inputs[i];
        if (walk->seen[input] == group + 1)
            continue;
        walk->seen[input] = group + 1;
        const Node *found = node_at(walk->function, input);
        if (has_memory(found, group))
            array_push(&walk->roots, input);
        else if (found->placement.group != group)
            array_push(&walk->pending, input); /* a view, or recomputed */
    }
}

static int compare_nodes(const void *left, const void *right) {
    const NodeId *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

/* Nodes by group, ascending. */
static void list_members(const Function *function, Arena *arena, int64_t **start,
                         NodeId **members) {
    size_t count = (size_t)function->groups.count;
    *start = arena_alloc_array(arena, count + 2, sizeof **start);
    for (int64_t id = 0; id < function->nodes.count; id++)
        if (function->nodes.data[id].placement.group >= 0)
            (*start)[function->nodes.data[id].placement.group + 2]++;
    for (size_t g = 0; g < count; g++)
        (*start)[g + 2] += (*start)[g + 1];
    *members = arena_alloc_array(arena, (size_t)(*start)[count + 1], sizeof **members);
    for (int64_t id = 0; id < function->nodes.count; id++)
        if (function->nodes.data[id].placement.group >= 0)
            (*members)[(*start)[function->nodes.data[id].placement.group + 1]++] = (NodeId)id;
}

static void *arena_copy(Arena *arena, const void *from, int64_t count, size_t size) {
    void *to = arena_alloc_array(arena, (size_t)count, size);
    return count ? memcpy(to, from, (size_t)count * size) : to;
}

static void collect_reads(const Function *function, Arena *arena, GroupGraph *graph) {
    int64_t groups = function->groups.count;
    Walk walk = {.function = function,
                 .seen = checked_alloc((size_t)function->nodes.count * sizeof *walk.seen)};
    ARRAY(NodeId) reads = {0}, stores = {0};
    graph->read_start = arena_alloc_array(arena, (size_t)groups + 1, sizeof(int64_t));
    graph->store_start = arena_alloc_array(arena, (size_t)groups + 1, sizeof(int64_t));
    for (int32_t group = 0; group < groups; group++) {
        walk.roots.count = 0;
        for (int64_t i = graph->member_start[group]; i < graph->member_start[group + 1]; i++) {
            NodeId member = graph->members[i];
            if (function->nodes.data[member].placement.stored)
                array_push(&stores, member);
            walk_inputs(&walk, member, group);
            while (walk.pending.count)
                walk_inputs(&walk, walk.pending.data[--walk.pending.count], group);
        }
        if (walk.roots.count)
            qsort(walk.roots.data, (size_t)walk.roots.count, sizeof(NodeId), compare_nodes);
        for (int64_t i = 0; i < walk.roots.count; i++)
            array_push(&reads, walk.roots.data[i]);
        graph->read_start[group + 1] = reads.count;
        graph->store_start[group + 1] = stores.count;
    }
    graph->reads = arena_copy(arena, reads.data, reads.count, sizeof(NodeId));
    graph->stores = arena_copy(arena, stores.data, stores.count, sizeof(NodeId));
    array_free(&reads);
    array_free(&stores);
    array_free(&walk.pending);
    array_free(&walk.roots);
    free(walk.seen);
}

/* ---- order -------------------------------------------------------------------- */

typedef struct GroupEdge {
    int32_t after, before;
} GroupEdge;
typedef ARRAY(GroupEdge) GroupEdges;

static int compare_edges(const void *left, const void *right) {
    const GroupEdge *a = left, *b = right;
    if (a->after != b->after)
        return a->after < b->after ? -1 : 1;
    return (a->before > b->before) - (a->before < b->before);
}

static void add_edge(GroupEdges *edges, int32_t before, int32_t after) {
    GroupEdge edge = {after, before};
    if (before >= 0 && after >= 0 && before != after)
        array_push(edges, edge);
}

static int32_t source_group(const Function *function, const Write *write) {
    NodeId source = write_source(function, write->value);
    return source < 0 ? -1 : node_at(function, source)->placement.group;
}

/* The last direct write to each state, plus 1; the states that are windows among those written.
 */
typedef struct Overwritten {
    int64_t *last_write;
    ARRAY(StateId) windows;
} Overwritten;

static void add_reader_edge(const Function *function, const Overwritten *overwritten,
                            StateId read, StateId written, int32_t reader, GroupEdges *edges) {
    int64_t write = overwritten->last_write[written];
    if (write && states_overlap(function->module, read, written))
        add_edge(edges, reader, source_group(function, &function->writes.data[write - 1]));
}

/* The group reads a state: it runs before whatever overwrites any of it. */
static void add_reader_edges(const Function *function, const Overwritten *overwritten,
                             StateId read, int32_t reader, GroupEdges *edges) {
    const Module *module = function->module;
    if (module->states.data[read].flat) {
        for (StateId state = 0; state < module->states.count; state++)
            add_reader_edge(function, overwritten, read, state, reader, edges);
        return;
    }
    add_reader_edge(function, overwritten, read, read, reader, edges);
    for (int64_t i = 0; i < overwritten->windows.count; i++)
        add_reader_edge(function, overwritten, read, overwritten->windows.data[i], reader,
                        edges);
}

/* Whoever reads a state reads its old value.  Additions to one state are made in the order of
 * the writes. */
static void add_write_edges(const Function *function, const GroupGraph *graph,
                            GroupEdges *edges) {
    size_t states = (size_t)function->module->states.count;
    Overwritten overwritten = {.last_write = checked_alloc(states * sizeof(int64_t))};
    for (int64_t i = 0; i < function->writes.count; i++) {
        const Write *write = &function->writes.data[i];
        if (!write->direct)
            continue;
        int64_t *last = &overwritten.last_write[write->state];
        if (*last)
            add_edge(edges, source_group(function, &function->writes.data[*last - 1]),
                     source_group(function, write));
        else if (function->module->states.data[write->state].flat)
            array_push(&overwritten.windows, write->state);
        *last = i + 1;
    }
    for (int32_t group = 0; group < function->groups.count; group++)
        for (int64_t i = graph->read_start[group]; i < graph->read_start[group + 1]; i++)
            if (node_at(function, graph->reads[i])->op == OP_STATE)
                add_reader_edges(function, &overwritten,
                                 (StateId)node_at(function, graph->reads[i])->attr.integer,
                                 group, edges);
    array_free(&overwritten.windows);
    free(overwritten.last_write);
}

static void collect_edges(const Function *function, Arena *arena, GroupGraph *graph) {
    GroupEdges edges = {0};
    int64_t groups = function->groups.count;
    for (int32_t group = 0; group < groups; group++)
        for (int64_t i = graph->read_start[group]; i < graph->read_start[group + 1]; i++)
            add_edge(&edges, node_at(function, graph->reads[i])->placement.group, group);
    add_write_edges(function, graph, &edges);
    if (edges.count)
        qsort(edges.data, (size_t)edges.count, sizeof *edges.data, compare_edges);
    graph->before_start = arena_alloc_array(arena, (size_t)groups + 1, sizeof(int64_t));
    graph->before = arena_alloc_array(arena, (size_t)edges.count, sizeof(int32_t));
    int64_t kept = 0;
    for (int64_t i = 0; i < edges.count; i++) {
        if (i && compare_edges(&edges.data[i - 1], &edges.data[i]) == 0)
            continue;
        graph->before[kept++] = edges.data[i].before;
        graph->before_start[edges.data[i].after + 1] = kept;
    }
    for (int64_t g = 0; g < groups; g++)
        if (graph->before_start[g + 1] < graph->before_start[g])
            graph->before_start[g + 1] = graph->before_start[g];
    array_free(&edges);
}

GroupGraph group_graph(const Function *function, Arena *arena) {
    size_t groups = (size_t)function->groups.count, nodes = (size_t)function->nodes.count;
    GroupGraph graph = {.marks = arena_alloc(arena, nodes),
                        .walked = arena_alloc(arena, groups),
                        .last_sweep = arena_alloc(arena, nodes)};
    list_members(function, arena, &graph.member_start, &graph.members);
    collect_reads(function, arena, &graph);
    graph.elsewhere = arena_alloc(arena, (size_t)graph.read_start[groups]);
    collect_edges(function, arena, &graph);
    return graph;
}

/* ---- in place ----------------------------------------------------------------- */

static bool same_memory(const Function *function, NodeId a, NodeId b) {
    const Node *x = node_at(function, a), *y = node_at(function, b);
    return a == b ||
           (x->op == OP_STATE && y->op == OP_STATE && x->attr.integer == y->attr.integer);
}

static bool share_memory(const Function *function, NodeId a, NodeId b) {
    const Node *x = node_at(function, a), *y = node_at(function, b);
    return a == b || (x->op == OP_STATE && y->op == OP_STATE &&
                      states_overlap(function->module, (StateId)x->attr.integer,
                                     (StateId)y->attr.integer));
}

/* The axes that the loops of a flat or row group run over, slowest first; their number. */
static int loop_axes(const Group *group, AxisId *axes) {
    memcpy(axes, group->rows, (size_t)group->row_count * sizeof *axes);
    if (group->kind == GROUP_FLAT)
        return group->row_count;
    memcpy(axes + group->row_count, group->inner, (size_t)group->inner_count * sizeof *axes);
    return group->row_count + group->inner_count;
}

/* Does a view run along the loops as their own dense memory does? */
static bool runs_along_loops(const Module *module, const Group *group, const View *view) {
    AxisId axes[2 * MAX_AXES];
    int64_t stride = 1;
    for (int i = loop_axes(group, axes) - 1; i >= 0; i--) {
        int64_t size = module->axes.data[axes[i]].size;
        if (size > 1 && view_stride(view, axes[i]) != stride)
            return false;
        stride *= size;
    }
    return view->base == 0;
}

/* A computed node together with where it is wanted: at the loops' own index or at another. */
typedef struct Visit {
    NodeId node;
    bool at_index;
} Visit;
typedef struct PlaceWalk {
    const Function *function;
    int32_t group;
    NodeId root; /* -1: every stored value that it reads */
    const GroupGraph *graph;
    uint8_t *seen; /* by node: 1 at another index, 2 at the index */
    ARRAY(Visit) pending;
    ARRAY(NodeId) touched;
} PlaceWalk;

static void want(PlaceWalk *walk, NodeId id, bool at_index) {
    uint8_t bit = at_index ? 2 : 1;
    if (walk->seen[id] & bit)
        return;
    walk->seen[id] |= bit;
    Visit visit = {id, at_index};
    array_push(&walk->pending, visit);
    array_push(&walk->touched, id);
}

/* The place of a value among what the group reads; -1. */
static int64_t find_read(const GroupGraph *graph, int32_t group, NodeId id) {
    int64_t low = graph->read_start[group], end = graph->read_start[group + 1], high = end;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (graph->reads[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && graph->reads[low] == id ? low : -1;
}

static bool is_at_loops(const PlaceWalk *walk, NodeId operand) {
    View view;
    return view_of(walk->function, operand, &view) &&
           runs_along_loops(walk->function->module, &walk->function->groups.data[walk->group],
                            &view);
}

/* Looks at one operand; false when it reads the root elsewhere than in place. */
static bool visit_operand(PlaceWalk *walk, NodeId operand, bool at_index) {
    const Function *function = walk->function;
    bool same_index = at_index;
    NodeId id = operand;
    while (!has_memory(node_at(function, id), walk->group) &&
           node_is_view(node_at(function, id))) {
        same_index &= node_at(function, id)->op == OP_EXPAND;
        id = node_at(function, id)->inputs[0];
    }
    if (!has_memory(node_at(function, id), walk->group)) {
        want(walk, id, same_index);
        return true;
    }
    if (walk->root < 0) {
        int64_t read = find_read(walk->graph, walk->group, id);
        if (read >= 0 && !walk->graph->elsewhere[read])
            walk->graph->elsewhere[read] = !at_index || !is_at_loops(walk, operand);
        return true;
    }
    return !share_memory(function, id, walk->root) ||
           (at_index && same_memory(function, id, walk->root) && is_at_loops(walk, operand));
}

static bool visit_inputs(PlaceWalk *walk, Visit visit) {
    const Node *node = node_at(walk->function, visit.node);
    for (int i = 0; i < node->input_count; i++) {
        bool is_table = node->op == OP_GATHER && i == 0;
        if (!visit_operand(walk, node->inputs[i], visit.at_index && !is_table))
            return false;
    }
    return true;
}

/* Does the group read the root only where its loops are?  Of root -1: notes it of all. */
static bool reads_at_loops(const Function *function, const GroupGraph *graph, int32_t group,
                           NodeId root) {
    PlaceWalk walk = {.function = function,
                      .group = group,
                      .root = root,
                      .graph = graph,
                      .seen = graph->marks};
    bool in_place = true;
    for (int64_t i = graph->member_start[group]; i < graph->member_start[group + 1]; i++)
        want(&walk, graph->members[i], true);
    while (in_place && walk.pending.count)
        in_place = visit_inputs(&walk, walk.pending.data[--walk.pending.count]);
    for (int64_t i = 0; i < walk.touched.count; i++)
        walk.seen[walk.touched.data[i]] = 0;
    array_free(&walk.pending);
    array_free(&walk.touched);
    return in_place;
}

bool group_reads_in_place(const Function *function, const GroupGraph *graph, int group,
                          NodeId root) {
    return function->groups.data[group].kind == GROUP_FLAT &&
           reads_at_loops(function, graph, group, root);
}

/* The same of a stored value, by one walk for all that the group reads: it may read
 * thousands. */
static bool stored_is_read_at_loops(const Function *function, const GroupGraph *graph,
                                    int32_t group, NodeId value) {
    if (!graph->walked[group])
        reads_at_loops(function, graph, group, -1);
    graph->walked[group] = 1;
    int64_t read = find_read(graph, group, value);
    return read < 0 || !graph->elsewhere[read];
}

/* Does the value depend on every reduction of its group?  Then it is made in the last sweep. */
static bool follows_reductions(const Function *function, const GroupGraph *graph,
                               NodeId value) {
    int32_t group = node_at(function, value)->placement.group;
    if (graph->last_sweep[value])
        return graph->last_sweep[value] == 1;
    ARRAY(NodeId) above = {0};
    array_push(&above, value);
    graph->marks[value] = 1;
    for (int64_t next = 0; next < above.count; next++) {
        const Node *node = node_at(function, above.data[next]);
        for (int i = 0; i < node->input_count; i++) {
            NodeId input = node->inputs[i];
            if (graph->marks[input] || has_memory(node_at(function, input), group))
                continue;
            graph->marks[input] = 1;
            array_push(&above, input);
        }
    }
    bool follows = true;
    for (int64_t i = graph->member_start[group]; i < graph->member_start[group + 1]; i++) {
        Op op = node_at(function, graph->members[i])->op;
        follows &= (op != OP_SUM && op != OP_MAX) || graph->marks[graph->members[i]];
    }
    for (int64_t i = 0; i < above.count; i++)
        graph->marks[above.data[i]] = 0;
    array_free(&above);
    graph->last_sweep[value] = follows ? 1 : 2;
    return follows;
}

bool may_take_place_of(const Function *function, const GroupGraph *graph, NodeId value,
                       NodeId operand) {
    const Node *node = node_at(function, value), *taken = node_at(function, operand);
    const Module *module = function->module;
    const Group *group = &function->groups.data[node->placement.group];
    if ((group->kind != GROUP_FLAT && group->kind != GROUP_ROW) || node->op == OP_STACK ||
        !taken->placement.stored ||
        dtype_bytes(taken->type.dtype) != dtype_bytes(node->type.dtype) ||
        type_elements(module, taken->type) != type_elements(module, node->type))
        return false;
    AxisId axes[2 * MAX_AXES];
    View own = own_view(function, value);
    return own.count == loop_axes(group, axes) && runs_along_loops(module, group, &own) &&
           (group->kind == GROUP_FLAT || follows_reductions(function, graph, value)) &&
           stored_is_read_at_loops(function, graph, node->placement.group, operand);
}
