/* ir/verify.c: what must hold of a module at each stage.  It trusts nothing that the
 * constructor made sure of: a pass may have written to the structures since. */
#include "ir/ir.h"

static const char *const stage_names[] = {[STAGE_GRAPH] = "graph",
                                          [STAGE_LAYOUT] = "layout",
                                          [STAGE_FUSE] = "fuse",
                                          [STAGE_SCHEDULE] = "schedule",
                                          [STAGE_MEMORY] = "memory"};

const char *stage_name(Stage stage) {
    return stage_names[stage];
}

Stage stage_by_name(const char *name) {
    for (int stage = 0; stage < COUNT_OF(stage_names); stage++)
        if (strcmp(stage_names[stage], name) == 0)
            return (Stage)stage;
    return (Stage)COUNT_OF(stage_names);
}

#define TRY(check)                                                                             \
    do {                                                                                       \
        const char *sentence_ = (check);                                                       \
        if (sentence_)                                                                         \
            return sentence_;                                                                  \
    } while (0)

#define REQUIRE(module, condition, ...)                                                        \
    do {                                                                                       \
        if (!(condition))                                                                      \
            return arena_printf((module)->arena, __VA_ARGS__);                                 \
    } while (0)

/* ---- the module ---------------------------------------------------------------------- */

/* Every axis known and none twice. */
static bool valid_axes(const Module *module, const AxisId *axes, int count) {
    if (count < 0 || count > MAX_AXES)
        return false;
    for (int i = 0; i < count; i++) {
        if (axes[i] >= module->axes.count)
            return false;
        for (int j = 0; j < i; j++)
            if (axes[j] == axes[i])
                return false;
    }
    return true;
}

static bool is_order_of(const Module *module, const AxisId *order, int count, Type type) {
    return count == type.rank && valid_axes(module, order, count) &&
           type_same_axes(type_of(type.dtype, order, count), type);
}

static const char *verify_declarations(const Module *module) {
    for (int64_t i = 0; i < module->axes.count; i++) {
        const Axis *axis = &module->axes.data[i];
        REQUIRE(module, axis->size >= 1 && axis->size <= MAX_ELEMENTS,
                "axis %s: its size, %lld, is out of range", axis->name, (long long)axis->size);
        REQUIRE(module, string_map_get(&module->axis_by_name, axis->name, -1) == i,
                "axis %s: the name is not its own", axis->name);
    }
    for (int64_t i = 0; i < module->scopes.count; i++)
        REQUIRE(module,
                module->scopes.data[i].parent < i &&
                    (module->scopes.data[i].parent >= 0) == (i > 0),
                "scope %s: its parent does not come before it", module->scopes.data[i].path);
    for (int64_t i = 0; i < module->inputs.count; i++) {
        const Input *input = &module->inputs.data[i];
        REQUIRE(module,
                input->axis_count >= 1 && valid_axes(module, input->axes, input->axis_count),
                "input %s: its axes are not a list of distinct axes", input->name);
        REQUIRE(module, input->below >= 1 && input->next >= 0,
                "input %s: `below` or `next` is out of range", input->name);
    }
    return NULL;
}

/* A gradient's, moment's or copy's state goes along with its weight. */
static const char *verify_companion(const Module *module, const State *state) {
    const char *role = role_name(state->role);
    bool needs_weight =
        !state->flat && (state->role == ROLE_GRADIENT || state->role == ROLE_MOMENT ||
                         state->role == ROLE_COPY);
    if (state->weight == -1 && !needs_weight)
        return NULL;
    REQUIRE(module, state->weight >= 0 && state->weight < module->states.count,
            "%s %s has no weight", role, state->path);
    const State *weight = &module->states.data[state->weight];
    REQUIRE(module, weight->role == ROLE_WEIGHT, "%s %s belongs to a state that is no weight",
            role, state->path);
    REQUIRE(module, type_same_axes(state_type(state), state_type(weight)),
            "%s %s has other axes than its weight", role, state->path);
    REQUIRE(module,
            state->order_count < 0 || weight->order_count < 0 ||
                memcmp(state->order, weight->order,
                       (size_t)state->order_count * sizeof *state->order) == 0,
            "%s %s has another memory order than its weight", role, state->path);
    REQUIRE(module, state->offset < 0 || weight->offset < 0 || state->offset == weight->offset,
            "%s %s has another offset than its weight", role, state->path);
    return NULL;
}

static const char *verify_state(const Module *module, const State *state, Stage stage) {
    const char *role = role_name(state->role);
    AxisId axes[2 * MAX_AXES];
    REQUIRE(module,
            valid_axes(module, state->in, state->in_count) &&
                valid_axes(module, state->out, state->out_count),
            "%s %s: its axes are not lists of distinct axes", role, state->path);
    memcpy(axes, state->in, sizeof state->in);
    memcpy(axes + state->in_count, state->out, sizeof state->out);
    REQUIRE(module, valid_axes(module, axes, state->in_count + state->out_count),
            "%s %s has an axis twice, or more than %d", role, state->path, MAX_AXES);
    Type type = state_type(state);
    REQUIRE(module, type_elements(module, type) <= MAX_ELEMENTS, "%s %s is too large", role,
            state->path);
    REQUIRE(module,
            state->order_count < 0 ||
                is_order_of(module, state->order, state->order_count, type),
            "%s %s: its memory order is not one of its axes", role, state->path);
    REQUIRE(module, stage < STAGE_LAYOUT || state->flat || state->order_count >= 0,
            "%s %s has no memory order", role, state->path);
    REQUIRE(module, state->role != ROLE_COPY || state->dtype == TYPE_BF16,
            "%s %s: a copy is bf16", role, state->path);
    REQUIRE(module, !state->flat || (type.rank == 1 && state->offset >= 0),
            "%s %s: a flat state has one axis and an offset", role, state->path);
    return NULL;
}

static const char *verify_states(const Module *module, Stage stage) {
    for (int64_t i = 0; i < module->states.count; i++)
        TRY(verify_state(module, &module->states.data[i], stage));
    for (int64_t i = 0; i < module->states.count; i++)
        TRY(verify_companion(module, &module->states.data[i]));
    return NULL;
}

/* ---- nodes --------------------------------------------------------------------------- */

/* Something runs to make its elements: no leaf, no view, no expand, and not the host. */
static bool is_computed(const Node *node) {
    return op_info[node->op].axis_rule != AXES_LEAF && !op_is_view(node->op) &&
           node->op != OP_EXPAND && !node->on_host;
}

/* Sentences about a node begin with its function and number. */
#define REQUIRE_OF_NODE(function, id, condition, message)                                      \
    REQUIRE((function)->module, condition, "function %s, node %%%d (%s): %s",                  \
            (function)->name, id, op_info[(function)->nodes.data[id].op].name, message)

static const char *verify_type(const Function *function, NodeId id) {
    const Node *node = &function->nodes.data[id];
    REQUIRE(function->module, node->op >= 0 && node->op < OP_COUNT,
            "function %s, node %%%d: unknown op", function->name, id);
    for (int i = 0; i < node->input_count; i++)
        REQUIRE_OF_NODE(function, id, node->inputs[i] >= 0 && node->inputs[i] < id,
                        "an operand does not come before it");
    Type type;
    const char *refusal = infer_type(function, node->op, node->type.dtype, &node->attr,
                                     node->inputs, node->input_count, &type);
    REQUIRE_OF_NODE(function, id, !refusal, refusal);
    REQUIRE_OF_NODE(
        function, id, type_equal(type, node->type),
        arena_printf(function->module->arena, "its type is %s, not %s",
                     type_text(function->module, type, function->module->arena),
                     type_text(function->module, node->type, function->module->arena)));
    return NULL;
}

static const char *verify_dependence(const Function *function, NodeId id) {
    const Node *node = &function->nodes.data[id];
    REQUIRE_OF_NODE(function, id,
                    node->scope >= 0 && node->scope < function->module->scopes.count,
                    "its scope is out of range");
    bool is_static = node->input_count > 0 || node->op == OP_CONST || node->op == OP_SCALAR ||
                     node->op == OP_INDEX;
    for (int i = 0; i < node->input_count; i++)
        is_static &= function->nodes.data[node->inputs[i]].is_static;
    REQUIRE_OF_NODE(function, id, node->is_static == is_static,
                    "is_static does not say what it depends on");
    REQUIRE_OF_NODE(function, id, !is_static || (node->scope == 0 && node->clone == 0),
                    "a static value belongs to the root scope");
    return NULL;
}

static const char *verify_adjoint(const Function *function, NodeId id) {
    const Node *node = &function->nodes.data[id];
    if (node->adjoint_of == -1)
        return NULL;
    REQUIRE_OF_NODE(function, id, node->adjoint_of >= 0 && node->adjoint_of < id,
                    "the node it is an adjoint of does not come before it");
    REQUIRE_OF_NODE(function, id,
                    type_same_axes(node->type, function->nodes.data[node->adjoint_of].type),
                    "an adjoint has not exactly the axes of its primal");
    return NULL;
}

static const char *verify_clone(const Function *function, NodeId id) {
    const Node *node = &function->nodes.data[id];
    if (node->original == -1)
        return NULL;
    REQUIRE_OF_NODE(function, id, node->original >= 0 && node->original < id,
                    "the node it computes again does not come before it");
    const Node *original = &function->nodes.data[node->original];
    REQUIRE_OF_NODE(function, id,
                    node->clone && original->op == node->op &&
                        type_equal(original->type, node->type),
                    "it is no clone of the node it computes again");
    return NULL;
}

static const char *verify_placement(const Function *function, NodeId id, Stage stage) {
    const Node *node = &function->nodes.data[id];
    const Placement *placement = &node->placement;
    bool computed = is_computed(node);
    REQUIRE_OF_NODE(
        function, id,
        placement->order_count < 0 ||
            is_order_of(function->module, placement->order, placement->order_count, node->type),
        "its memory order is not one of its axes");
    REQUIRE_OF_NODE(function, id,
                    placement->group >= -1 && placement->group < function->groups.count,
                    "its group is out of range");
    if (stage < STAGE_LAYOUT)
        REQUIRE_OF_NODE(function, id, placement->order_count < 0,
                        "a memory order before the layout pass");
    else
        REQUIRE_OF_NODE(function, id,
                        placement->order_count >= 0 || !computed || node->is_static,
                        "no memory order");
    if (stage < STAGE_FUSE)
        REQUIRE_OF_NODE(function, id, placement->group < 0 && !placement->stored,
                        "a group or memory before the fuse pass");
    else
        REQUIRE_OF_NODE(function, id, placement->group >= 0 || !computed || op_is_map(node->op),
                        "no group computes it");
    REQUIRE_OF_NODE(function, id,
                    !placement->stored ||
                        (placement->group >= 0 && placement->order_count >= 0),
                    "stored, but without a group or a memory order");
    return NULL;
}

static const char *verify_memory(const Function *function, NodeId id, Stage stage) {
    const Node *node = &function->nodes.data[id];
    const Placement *placement = &node->placement;
    if (stage < STAGE_MEMORY) {
        REQUIRE_OF_NODE(function, id, placement->offset == -1,
                        "an offset before the memory pass");
        return NULL;
    }
    REQUIRE_OF_NODE(function, id, placement->stored == (placement->offset >= 0),
                    "stored without an offset, or the other way round");
    if (!placement->stored)
        return NULL;
    int64_t end;
    bool overflow = __builtin_mul_overflow(type_elements(function->module, node->type),
                                           dtype_bytes(node->type.dtype), &end) ||
                    __builtin_add_overflow(end, placement->offset, &end);
    REQUIRE_OF_NODE(function, id, !overflow && end <= function->arena_bytes,
                    "its memory ends past the arena");
    return NULL;
}

/* ---- writes and groups --------------------------------------------------------------- */

/* Is there a group that can store the value, or what it is a rename, split or merge of? */
static bool is_stored_by_group(const Function *function, const Node *value) {
    while (value->op == OP_RENAME || value->op == OP_SPLIT || value->op == OP_MERGE)
        value = &function->nodes.data[value->inputs[0]];
    return value->placement.group >= 0;
}

static const char *verify_writes(const Function *function, Stage stage) {
    const Module *module = function->module;
    /* 1: some `+=`; 2: an `=` */
    char *written = checked_alloc((size_t)module->states.count);
    const char *violation = NULL;
    for (int64_t i = 0; i < function->writes.count && !violation; i++) {
        const Write *write = &function->writes.data[i];
        if (write->state < 0 || write->state >= module->states.count || write->value < 0 ||
            write->value >= function->nodes.count) {
            violation = "a state or value out of range";
            break;
        }
        const Node *value = &function->nodes.data[write->value];
        if (!type_equal(value->type, state_type(&module->states.data[write->state])))
            violation = "the value has not the state's type";
        else if (written[write->state] == 2 || (written[write->state] && !write->add))
            violation = "the state is written with `=` and again";
        else if (write->direct && (stage < STAGE_FUSE || !is_stored_by_group(function, value)))
            violation = "direct, but no group computes the value";
        written[write->state] = write->add ? 1 : 2;
    }
    free(written);
    REQUIRE(module, !violation, "function %s, writes: %s", function->name, violation);
    return NULL;
}

/* Which group's run a value waits for: its own, or its operand's where it is a view or an
 * expand; -1 for what is there from the start. */
static int32_t *producing_groups(const Function *function) {
    int32_t *producer = checked_alloc((size_t)function->nodes.count * sizeof *producer);
    for (NodeId id = 0; id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        producer[id] = node->placement.group;
        for (int i = 0; node->placement.group < 0 && i < node->input_count; i++)
            if (producer[node->inputs[i]] > producer[id])
                producer[id] = producer[node->inputs[i]];
    }
    return producer;
}

typedef struct GroupEdge {
    int32_t from, to;
} GroupEdge;

static int compare_edges(const void *left, const void *right) {
    const GroupEdge *a = left, *b = right;
    return a->from != b->from ? (a->from < b->from ? -1 : 1)
                              : (a->to > b->to) - (a->to < b->to);
}

/* Removes groups that wait for none, one by one; what is left over lies on or behind a cycle.
 * Edges are sorted by `from`.  The number of groups removed. */
static int64_t count_orderable(int64_t group_count, const GroupEdge *edges,
                               int64_t edge_count) {
    int64_t *first = checked_alloc((size_t)(group_count + 1) * sizeof *first);
    int32_t *waits = checked_alloc((size_t)group_count * sizeof *waits);
    int32_t *ready = checked_alloc((size_t)group_count * sizeof *ready);
    for (int64_t i = 0; i < edge_count; i++) {
        first[edges[i].from + 1]++;
        waits[edges[i].to]++;
    }
    int64_t ready_count = 0;
    for (int32_t group = 0; group < group_count; group++) {
        first[group + 1] += first[group];
        if (!waits[group])
            ready[ready_count++] = group;
    }
    for (int64_t done = 0; done < ready_count; done++)
        for (int64_t i = first[ready[done]]; i < first[ready[done] + 1]; i++)
            if (--waits[edges[i].to] == 0)
                ready[ready_count++] = edges[i].to;
    free(first);
    free(waits);
    free(ready);
    return ready_count;
}

static const char *verify_group_order(const Function *function, Stage stage) {
    ARRAY(GroupEdge) edges = {0};
    int32_t *producer = producing_groups(function);
    const char *violation = NULL;
    for (NodeId id = 0; id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        for (int i = 0; node->placement.group >= 0 && i < node->input_count; i++) {
            GroupEdge edge = {producer[node->inputs[i]], node->placement.group};
            if (edge.from < 0 || edge.from == edge.to)
                continue;
            array_push(&edges, edge);
            if (stage >= STAGE_SCHEDULE && edge.from > edge.to)
                violation = "a group runs before one that it reads from";
        }
    }
    free(producer);
    if (edges.count)
        qsort(edges.data, (size_t)edges.count, sizeof *edges.data, compare_edges);
    if (count_orderable(function->groups.count, edges.data, edges.count) <
        function->groups.count)
        violation = "groups wait for each other in a cycle";
    array_free(&edges);
    REQUIRE(function->module, !violation, "function %s: %s", function->name, violation);
    return NULL;
}

/* Where a value can be read: a group's number, or */
enum { IN_ALL_GROUPS = -1, IN_NO_GROUP = -2 };

/* What a group computes and does not store is read in that group alone; what has no group is a
 * part of each that reads it, so it can be read where all its operands can. */
static int32_t readable_in(const Function *function, NodeId id, const int32_t *readable) {
    const Node *node = &function->nodes.data[id];
    int32_t group = node->placement.group;
    for (int i = 0; i < node->input_count; i++) {
        int32_t operand = readable[node->inputs[i]];
        if (operand >= 0 && group >= 0 && operand != group)
            return IN_NO_GROUP;
        if (operand >= 0)
            group = operand;
    }
    return node->placement.stored || group < 0 ? IN_ALL_GROUPS : group;
}

static const char *verify_group_reads(const Function *function) {
    int32_t *readable = checked_alloc((size_t)function->nodes.count * sizeof *readable);
    NodeId id = 0;
    for (; id < function->nodes.count; id++)
        if ((readable[id] = readable_in(function, id, readable)) == IN_NO_GROUP)
            break;
    free(readable);
    REQUIRE_OF_NODE(function, id, id == function->nodes.count,
                    "reads what another group computes and does not store");
    return NULL;
}

static const char *verify_groups(const Function *function, Stage stage) {
    const Module *module = function->module;
    REQUIRE(module, stage >= STAGE_FUSE || !function->groups.count,
            "function %s: groups before the fuse pass", function->name);
    bool *used = checked_alloc((size_t)function->groups.count * sizeof *used);
    for (int64_t id = 0; id < function->nodes.count; id++)
        if (function->nodes.data[id].placement.group >= 0)
            used[function->nodes.data[id].placement.group] = true;
    int64_t empty = 0;
    while (empty < function->groups.count && used[empty])
        empty++;
    free(used);
    REQUIRE(module, empty == function->groups.count, "function %s: group %lld computes nothing",
            function->name, (long long)empty);
    for (int64_t i = 0; i < function->groups.count; i++) {
        const Group *group = &function->groups.data[i];
        REQUIRE(module,
                valid_axes(module, group->rows, group->row_count) &&
                    valid_axes(module, group->inner, group->inner_count),
                "function %s: group %lld: its axes are not lists of distinct axes",
                function->name, (long long)i);
    }
    TRY(verify_group_reads(function));
    return verify_group_order(function, stage);
}

static const char *verify_function(const Function *function, Stage stage) {
    REQUIRE(function->module,
            module_find_function(function->module, function->name) == function,
            "two functions are called %s", function->name);
    for (NodeId id = 0; id < function->nodes.count; id++) {
        TRY(verify_type(function, id));
        TRY(verify_dependence(function, id));
        TRY(verify_adjoint(function, id));
        TRY(verify_clone(function, id));
        TRY(verify_placement(function, id, stage));
        TRY(verify_memory(function, id, stage));
    }
    REQUIRE(function->module, (stage >= STAGE_MEMORY) == (function->arena_bytes >= 0),
            "function %s: the arena's size is known from the memory pass on", function->name);
    for (int64_t i = 0; i < function->names.count; i++) {
        const NamedValue *value = &function->names.data[i];
        REQUIRE(function->module,
                value->node >= 0 && value->node < function->nodes.count && value->scope >= 0 &&
                    value->scope < function->module->scopes.count,
                "function %s: the name `%s` stands for no value", function->name, value->name);
    }
    TRY(verify_writes(function, stage));
    return verify_groups(function, stage);
}

const char *ir_verify(const Module *module, Stage stage) {
    TRY(verify_declarations(module));
    TRY(verify_states(module, stage));
    for (int64_t i = 0; i < module->functions.count; i++)
        TRY(verify_function(module->functions.data[i], stage));
    return NULL;
}
