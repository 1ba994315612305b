/* passes/lifetimes.c: how long values live, and which of them take one place in turn.
 *
 * A value lives from the group that computes it to the last that reads it.  A group may put its
 * result where an operand was that dies there: the two are then one slot. */
#include "passes/passes.h"

static int64_t value_bytes(const Function *function, NodeId id) {
    const Node *node = node_at(function, id);
    return type_elements(function->module, node->type) * dtype_bytes(node->type.dtype);
}

int64_t slot_bytes(const Function *function, NodeId value) {
    int64_t bytes = value_bytes(function, value);
    return (bytes + SLOT_ALIGNMENT - 1) / SLOT_ALIGNMENT * SLOT_ALIGNMENT;
}

/* ---- lifetimes ---------------------------------------------------------------- */

static void find_last_reads(Lifetimes *l) {
    const Function *function = l->function;
    for (int64_t id = 0; id < function->nodes.count; id++)
        l->last_read[id] = function->nodes.data[id].placement.group;
    for (int32_t g = 0; g < function->groups.count; g++)
        for (int64_t i = l->graph.read_start[g]; i < l->graph.read_start[g + 1]; i++)
            if (l->last_read[l->graph.reads[i]] < g)
                l->last_read[l->graph.reads[i]] = g;
    for (int64_t i = 0; i < function->writes.count; i++) {
        NodeId source = write_source(function, function->writes.data[i].value);
        if (source >= 0 && !function->writes.data[i].direct)
            l->last_read[source] = (int32_t)function->groups.count;
    }
}

/* An operand that dies in the group, and whose place the value can take; -1. */
static NodeId find_dying_operand(const Lifetimes *l, NodeId value, int32_t group) {
    for (int64_t i = l->graph.read_start[group]; i < l->graph.read_start[group + 1]; i++) {
        NodeId operand = l->graph.reads[i];
        if (l->last_read[operand] == group && l->slot_of[operand] >= 0 &&
            l->slots.data[l->slot_of[operand]].end == group &&
            may_take_place_of(l->function, &l->graph, value, operand))
            return operand;
    }
    return -1;
}

static void place_value(Lifetimes *l, NodeId id, int32_t group, bool reuse) {
    NodeId operand = -1;
    if (reuse)
        operand = find_dying_operand(l, id, group);
    if (operand >= 0) {
        l->slot_of[id] = l->slot_of[operand];
        /* past `group`, so that no other result of the group takes the same place */
        l->slots.data[l->slot_of[id]].end =
            l->last_read[id] > group ? l->last_read[id] : group + 1;
        return;
    }
    ArenaSlot slot = {
        .bytes = slot_bytes(l->function, id), .begin = group, .end = l->last_read[id]};
    l->slot_of[id] = (int32_t)l->slots.count;
    array_push(&l->slots, slot);
}

Lifetimes find_lifetimes(const Function *function, bool reuse, Arena *arena) {
    size_t nodes = (size_t)function->nodes.count;
    Lifetimes l = {.function = function,
                   .graph = group_graph(function, arena),
                   .last_read = arena_alloc_array(arena, nodes, sizeof(int32_t)),
                   .slot_of = arena_alloc_array(arena, nodes, sizeof(int32_t))};
    for (size_t id = 0; id < nodes; id++)
        l.slot_of[id] = -1;
    find_last_reads(&l);
    for (int32_t g = 0; g < function->groups.count; g++)
        for (int64_t i = l.graph.store_start[g]; i < l.graph.store_start[g + 1]; i++)
            place_value(&l, l.graph.stores[i], g, reuse);
    return l;
}

int64_t *slot_timeline(const Lifetimes *l, Arena *arena) {
    int64_t groups = l->function->groups.count;
    int64_t *live = arena_alloc_array(arena, (size_t)groups + 2, sizeof *live);
    for (int64_t i = 0; i < l->slots.count; i++) {
        live[l->slots.data[i].begin] += l->slots.data[i].bytes;
        live[l->slots.data[i].end + 1] -= l->slots.data[i].bytes;
    }
    for (int64_t g = 1; g <= groups; g++)
        live[g] += live[g - 1];
    return live;
}

int64_t *live_bytes(const Function *function, Arena *arena) {
    Lifetimes l = find_lifetimes(function, true, arena);
    int64_t *live = slot_timeline(&l, arena);
    array_free(&l.slots);
    return live;
}

/* ---- what the backward part reads --------------------------------------------- */

/* A block in a loop is a layer: its path ends in an index, or a scope around it has one. */
static bool is_in_layer(const Module *module, ScopeId scope) {
    return strchr(module->scopes.data[scope].path, '[') != NULL;
}

/* The group in which the first gradient enters the last layer: the first that computes an
 * adjoint of a value inside a layer (of a block, where there are no layers).  -1 without
 * gradients. */
static int32_t first_gradient_group(const Function *function) {
    int32_t first = -1;
    int best = 0; /* 3: in a layer, 2: in a block, 1: anywhere */
    for (int64_t id = 0; id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        if (node->adjoint_of < 0 || node->placement.group < 0)
            continue;
        ScopeId scope = node_at(function, node->adjoint_of)->scope;
        int rank = is_in_layer(function->module, scope) ? 3 : scope != 0 ? 2 : 1;
        if (rank > best || (rank == best && node->placement.group < first)) {
            best = rank;
            first = node->placement.group;
        }
    }
    return first;
}

/* A forward value that is computed before that group and read after it. */
static bool is_kept(const Lifetimes *l, NodeId id, int32_t entry) {
    const Node *node = node_at(l->function, id);
    return node->placement.stored && node->clone == 0 && node->placement.group < entry &&
           l->last_read[id] > entry;
}

int64_t value_lives(const Function *function, Arena *arena, ValueLife **lives) {
    Lifetimes l = find_lifetimes(function, true, arena);
    int32_t entry = first_gradient_group(function);
    bool forward = true;
    int64_t count = 0;
    *lives = arena_alloc_array(arena, (size_t)function->nodes.count, sizeof **lives);
    for (NodeId id = 0; id < function->nodes.count; id++) {
        const Node *node = node_at(function, id);
        forward &= node->adjoint_of < 0;
        if (node->placement.stored)
            (*lives)[count++] = (ValueLife){.node = id,
                                            .begin = node->placement.group,
                                            .end = l.last_read[id],
                                            .bytes = value_bytes(function, id),
                                            .offset = node->placement.offset,
                                            .kept = forward && is_kept(&l, id, entry)};
    }
    array_free(&l.slots);
    return count;
}
