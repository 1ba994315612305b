/* passes/layout.c: the order of every value and state in memory.
 *
 * needs   a pure graph
 * gives   orders by rule; products with unit strides; copies where nothing else helps; writes
 * whose values lie in memory as their states do reads   nothing of the plan
 *
 *   %3 = dot %1 %2 from(D) : f32[B,D2,S]    ->    … order(B,S,D2)
 *
 * A tensor is a set of axes, so that any order is right; a good one makes a matrix product out
 * of every dot and a contiguous walk out of every map. */
#include "passes/passes.h"

typedef struct Order {
    int count;
    AxisId axes[MAX_AXES];
} Order;

/* The work on one function. */
typedef struct Layout {
    Module *module;
    Arena *arena;
    const Function *old;
    Rebuild rebuild;
    int64_t *use_start; /* by old node: its users are uses[use_start[id] … use_start[id + 1]) */
    NodeId *uses;       /* ascending */
    int32_t *use_count;   /* by old node; writes count */
    const Order **forced; /* by old node: the order of the state that it is written to; NULL */
    bool *state_is_read;  /* by state */
    ARRAY(bool) firm;     /* by new node: its order comes from memory, not from a guess */

} Layout;

/* ---- orders ------------------------------------------------------------------- */

static int order_find(const Order *order, AxisId axis) {
    for (int i = 0; i < order->count; i++)
        if (order->axes[i] == axis)
            return i;
    return -1;
}

static void order_append(Order *order, AxisId axis) {
    if (order_find(order, axis) >= 0)
        return;
    INTERNAL_CHECK(order->count < MAX_AXES);
    order->axes[order->count++] = axis;
}

static void order_append_all(Order *order, const AxisId *axes, int count) {
    for (int i = 0; i < count; i++)
        order_append(order, axes[i]);
}

static void order_remove(Order *order, AxisId axis) {
    int position = order_find(order, axis);
    if (position < 0)
        return;
    order->count--;
    for (int i = position; i < order->count; i++)
        order->axes[i] = order->axes[i + 1];
}

/* Puts `axes` in the place of the one at `position`. */
static void order_replace(Order *order, int position, const AxisId *axes, int count) {
    Order result = {0};
    order_append_all(&result, order->axes, position);
    order_append_all(&result, axes, count);
    order_append_all(&result, order->axes + position + 1, order->count - position - 1);
    *order = result;
}

/* Moves axes to the fast end, in the order given. */
static void order_move_last(Order *order, const Order *axes) {
    for (int i = 0; i < axes->count; i++) {
        if (order_find(order, axes->axes[i]) < 0)
            continue;
        order_remove(order, axes->axes[i]);
        order_append(order, axes->axes[i]);
    }
}

/* Makes `axes` neighbours, at the place of the fastest of them. */
static void order_gather(Order *order, const AxisId *axes, int count) {
    int last = order_find(order, axes[0]);
    for (int i = 1; i < count; i++) {
        int position = order_find(order, axes[i]);
        last = position > last ? position : last;
    }
    AxisId anchor = order->axes[last];
    for (int i = 0; i < count; i++)
        if (axes[i] != anchor)
            order_remove(order, axes[i]);
    order_replace(order, order_find(order, anchor), axes, count);
}

static Order order_of(const Function *function, NodeId id) {
    const Placement *placement = &node_at(function, id)->placement;
    INTERNAL_CHECK(placement->order_count >= 0);
    Order order = {placement->order_count, {0}};
    memcpy(order.axes, placement->order, sizeof order.axes);
    return order;
}

static void set_order(Function *function, NodeId id, const Order *order) {
    Node *node = &function->nodes.data[id];
    INTERNAL_CHECK(order->count == node->type.rank);
    node->placement.order_count = order->count;
    memcpy(node->placement.order, order->axes, sizeof order->axes);
}

/* ---- states ------------------------------------------------------------------- */

/* Enters the axis along which a gather picks rows of a state. */
static void note_gather(const Function *function, const Node *gather, int *rows) {
    const Node *table = node_at(function, gather->inputs[0]);
    AxisId axis = gather->attr.from[0];
    while (table->op == OP_RENAME) {
        if (table->attr.to[0] == axis)
            axis = table->attr.from[0];
        table = node_at(function, table->inputs[0]);
    }
    if (table->op != OP_STATE || !type_has(table->type, axis))
        return;
    StateId weight = function->module->states.data[table->attr.integer].weight; /* of a copy */
    rows[weight >= 0 ? weight : table->attr.integer] = axis;
}

/* Outputs first, so that a product runs along the contiguous inputs; but a state from which a
 * gather picks lies row by row. */
static void order_states(Module *module) {
    int *rows = checked_alloc((size_t)module->states.count * sizeof *rows);
    for (int64_t i = 0; i < module->states.count; i++)
        rows[i] = -1;
    for (int64_t f = 0; f < module->functions.count; f++) {
        const Function *function = module->functions.data[f];
        for (int64_t id = 0; id < function->nodes.count; id++)
            if (function->nodes.data[id].op == OP_GATHER)
                note_gather(function, &function->nodes.data[id], rows);
    }
    for (int64_t i = 0; i < module->states.count; i++) {
        State *state = &module->states.data[i];
        Order order = {0};
        int row = rows[state->weight >= 0 ? state->weight : i];
        if (row >= 0)
            order_append(&order, (AxisId)row);
        order_append_all(&order, state->out, state->out_count);
        order_append_all(&order, state->in, state->in_count);
        state->order_count = order.count;
        memcpy(state->order, order.axes, sizeof state->order);
    }
    free(rows);
}

/* ---- what consumers want ------------------------------------------------------ */

static void index_uses(Layout *l) {
    const Function *old = l->old;
    size_t count = (size_t)old->nodes.count;
    l->use_start = arena_alloc_array(l->arena, count + 2, sizeof *l->use_start);
    l->use_count = arena_alloc_array(l->arena, count + 1, sizeof *l->use_count);
    for (int64_t id = 0; id < old->nodes.count; id++)
        for (int i = 0; i < old->nodes.data[id].input_count; i++)
            l->use_start[old->nodes.data[id].inputs[i] + 2]++;
    for (int64_t id = 0; id < old->nodes.count; id++) {
        l->use_count[id] = (int32_t)l->use_start[id + 2];
        l->use_start[id + 2] += l->use_start[id + 1];
    }
    l->uses = arena_alloc_array(l->arena, (size_t)l->use_start[count + 1], sizeof *l->uses);
    for (int64_t id = 0; id < old->nodes.count; id++)
        for (int i = 0; i < old->nodes.data[id].input_count; i++)
            l->uses[l->use_start[old->nodes.data[id].inputs[i] + 1]++] = (NodeId)id;
    for (int64_t i = 0; i < old->writes.count; i++)
        l->use_count[old->writes.data[i].value]++;
}

static NodeId first_use(const Layout *l, NodeId id) {
    return l->use_start[id] < l->use_start[id + 1] ? l->uses[l->use_start[id]] : -1;
}

/* The axes of `node`'s input that `axes` of the node come from. */
static void axes_before(const Node *node, Order *axes) {
    const Attr *attr = &node->attr;
    Order before = {0};
    for (int i = 0; i < axes->count; i++) {
        AxisId axis = axes->axes[i];
        bool made = false;
        for (int j = 0; j < attr->to_count; j++)
            made |= attr->to[j] == axis;
        if (!made)
            order_append(&before, axis);
        else if (node->op == OP_RENAME || node->op == OP_SPLIT || node->op == OP_MERGE)
            for (int j = 0; j < attr->from_count; j++)
                order_append(&before, attr->from[j]); /* expand and stack: none */
    }
    *axes = before;
}

/* The axes that a dot sums, in the memory order of its other operand where that is known. */
static Order summed_order(const Layout *l, const Node *dot, NodeId operand) {
    NodeId other = dot->inputs[0] == operand ? dot->inputs[1] : dot->inputs[0];
    NodeId fresh = l->rebuild.map[other];
    Order order = {0}, result = {0};
    if (l->old->nodes.data[other].op == OP_STATE) {
        const State *state = &l->module->states.data[l->old->nodes.data[other].attr.integer];
        order_append_all(&order, state->order, state->order_count);
    } else if (fresh >= 0 && node_at(l->rebuild.fresh, fresh)->placement.order_count >= 0) {
        order = order_of(l->rebuild.fresh, fresh); /* else it is made later, or right now */
    }
    order_append_all(&result, dot->attr.from, dot->attr.from_count);
    if (order.count)
        order_move_last(&result, &order);
    return result;
}

/* The axes of `id` that its first consumer, found through maps and views, sums over. */
static Order summed_later(const Layout *l, NodeId id, bool *by_dot) {
    enum { REACH = 32 };
    const Node *path[REACH];
    int length = 0;
    NodeId at = id;
    for (NodeId user; length < REACH && (user = first_use(l, at)) >= 0; at = user) {
        const Node *node = &l->old->nodes.data[user];
        bool reduces = node->op == OP_SUM || node->op == OP_MAX;
        if (node->op == OP_DOT || reduces) {
            Order axes = {node->attr.from_count, {0}};
            memcpy(axes.axes, node->attr.from, sizeof axes.axes);
            if (node->op == OP_DOT)
                axes = summed_order(l, node, at);
            while (length > 0)
                axes_before(path[--length], &axes);
            *by_dot = !reduces;
            return axes;
        }
        if (!op_is_map(node->op) && !node_is_view(node) && node->op != OP_STACK)
            break;
        path[length++] = node;
    }
    return (Order){0};
}

/* A merge above a value, and a stack's part in it, want their axes to be neighbours. */
static void gather_for_merge(const Layout *l, NodeId id, Order *order) {
    for (int64_t i = l->use_start[id]; i < l->use_start[id + 1]; i++) {
        const Node *user = &l->old->nodes.data[l->uses[i]];
        if (user->op != OP_MERGE)
            continue;
        order_gather(order, user->attr.from, user->attr.from_count);
        return;
    }
}

/* ---- the order of a node ------------------------------------------------------ */

static bool is_sample_axis(const Module *module, AxisId axis) {
    for (int64_t i = 0; i < module->inputs.count; i++)
        if (module->inputs.data[i].axis_count && module->inputs.data[i].axes[0] == axis)
            return true;
    return false;
}

static bool has_sample_axis(const Module *module, const Order *order) {
    for (int i = 0; i < order->count; i++)
        if (is_sample_axis(module, order->axes[i]))
            return true;
    return false;
}

/* The axes of an operand that the other lacks.  Those behind the last batch axis come first:
 * queries [B,S,J,G,K] and keys [B,T,J,K] give scores [B,J,G,S,T], a dense [S,T] for each head.
 */
static Order own_axes(const Module *module, const Order *operand, Type other, Type result) {
    int last_batch = -1;
    for (int i = 0; i < operand->count; i++)
        if (type_has(other, operand->axes[i]) && type_has(result, operand->axes[i]) &&
            module->axes.data[operand->axes[i]].size > 1)
            last_batch = i;
    Order own = {0};
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < operand->count; i++)
            if (!type_has(other, operand->axes[i]) && (i > last_batch) == (pass == 0))
                order_append(&own, operand->axes[i]);
    return own;
}

/* Batch, rows, columns; the operand with the samples gives the rows. */
static Order plain_dot_order(const Layout *l, const Node *dot) {
    const Function *fresh = l->rebuild.fresh;
    Order a = order_of(fresh, dot->inputs[0]), b = order_of(fresh, dot->inputs[1]);
    Type type_a = node_at(fresh, dot->inputs[0])->type;
    Type type_b = node_at(fresh, dot->inputs[1])->type;
    Order own[2] = {own_axes(l->module, &a, type_b, dot->type),
                    own_axes(l->module, &b, type_a, dot->type)};
    bool swapped = has_sample_axis(l->module, &own[1]) && !has_sample_axis(l->module, &a);
    Order order = {0};
    const Order *lead = swapped ? &b : &a;
    for (int i = 0; i < lead->count; i++)
        if (type_has(dot->type, lead->axes[i]) && type_has(type_a, lead->axes[i]) &&
            type_has(type_b, lead->axes[i]))
            order_append(&order, lead->axes[i]);
    order_append_all(&order, own[swapped].axes, own[swapped].count);
    order_append_all(&order, own[!swapped].axes, own[!swapped].count);
    return order;
}

/* Does a product's result need to run along another axis than it does? */
static bool batch_is_fastest(const Layout *l, const Node *dot, const Order *order) {
    bool other_extent = false, batch = false;
    for (int i = 0; i < order->count; i++) {
        if (l->module->axes.data[order->axes[i]].size == 1)
            continue;
        batch = type_has(node_at(l->rebuild.fresh, dot->inputs[0])->type, order->axes[i]) &&
                type_has(node_at(l->rebuild.fresh, dot->inputs[1])->type, order->axes[i]);
        other_extent |= !batch;
    }
    return batch && other_extent;
}

/* What the consumer sums over goes last when it is several axes of a dot (they become one) or a
 * whole side of a reduction. */
static Order dot_order(const Layout *l, NodeId old_id, const Node *dot) {
    Order plain = plain_dot_order(l, dot), order = plain;
    Type type_a = node_at(l->rebuild.fresh, dot->inputs[0])->type;
    bool by_dot = false, whole_side = true;
    Order summed = summed_later(l, old_id, &by_dot);
    for (int i = 0; i < order.count; i++) {
        /* the side of the first of them has no other axis */
        bool same_side =
            summed.count && type_has(type_a, order.axes[i]) == type_has(type_a, summed.axes[0]);
        whole_side &= !same_side || order_find(&summed, order.axes[i]) >= 0;
    }
    if (by_dot ? summed.count > 1 : summed.count && whole_side)
        order_move_last(&order, &summed);
    return batch_is_fastest(l, dot, &order) ? plain : order;
}

static Order view_order(const Function *function, const Node *node) {
    Order order = order_of(function, node->inputs[0]), result = {0};
    const Attr *attr = &node->attr;
    switch (node->op) {
    case OP_PICK:
        order_remove(&order, attr->from[0]);
        return order;
    case OP_EXPAND:
        order_append_all(&result, attr->to, attr->to_count);
        order_append_all(&result, order.axes, order.count);
        return result;
    case OP_MERGE:
        order_gather(&order, attr->from, attr->from_count);
        for (int i = 1; i < attr->from_count; i++)
            order_remove(&order, attr->from[i]);
        break;
    default: /* rename, split */
        break;
    }
    order_replace(&order, order_find(&order, attr->from[0]), attr->to, attr->to_count);
    return order;
}

/* A map whose operands are all broadcast: the axes of the operand with the samples, or with the
 * most axes, then the others'. */
static Order crossed_order(const Layout *l, const Node *node) {
    const Function *fresh = l->rebuild.fresh;
    Order order = {0}, best = {0};
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < node->input_count; i++) {
            NodeId input = node->inputs[i];
            while (node_at(fresh, input)->op == OP_EXPAND)
                input = node_at(fresh, input)->inputs[0];
            Order own = order_of(fresh, input);
            bool better = own.count > best.count && !has_sample_axis(l->module, &best);
            if (pass == 0 && (better || (has_sample_axis(l->module, &own) &&
                                         !has_sample_axis(l->module, &best))))
                best = own;
            if (pass == 1)
                order_append_all(&order, own.axes, own.count);
        }
        if (pass == 0)
            order = best;
    }
    order_append_all(&order, node->type.axes, node->type.rank);
    return order;
}

static Order map_order(const Layout *l, const Node *node, bool *firm) {
    for (int i = 0; i < node->input_count; i++) {
        NodeId input = node->inputs[i];
        *firm = l->firm.data[input] && node_at(l->rebuild.fresh, input)->op != OP_EXPAND;
        if (*firm)
            return order_of(l->rebuild.fresh, input);
    }
    return crossed_order(l, node);
}

static Order leaf_order(const Layout *l, const Node *node, bool *firm) {
    Order order = {0};
    *firm = node->op == OP_INPUT || node->op == OP_STATE;
    if (node->op == OP_INPUT) {
        const Input *input = &l->module->inputs.data[node->attr.integer];
        order_append_all(&order, input->axes, input->axis_count);
    } else if (node->op == OP_STATE) {
        const State *state = &l->module->states.data[node->attr.integer];
        order_append_all(&order, state->order, state->order_count);
    } else {
        order_append_all(&order, node->type.axes, node->type.rank);
    }
    return order;
}

/* By the op's own rule. */
static Order natural_order(const Layout *l, NodeId old_id, NodeId id, bool *firm) {
    const Function *fresh = l->rebuild.fresh;
    const Node *node = node_at(fresh, id);
    *firm = true;
    if (node->input_count == 0)
        return leaf_order(l, node, firm);
    *firm = l->firm.data[node->inputs[0]];
    if (node_is_view(node)) {
        *firm &= node->op != OP_EXPAND;
        return view_order(fresh, node);
    }
    Order order = {0};
    switch (node->op) {
    case OP_DOT:
        *firm = true;
        return dot_order(l, old_id, node);
    case OP_STACK:
        order_append(&order, node->attr.to[0]);
        break;
    case OP_SCATTER_ADD: {
        Order value = order_of(fresh, node->inputs[1]);
        *firm = true;
        if (node->attr.from_count)
            order_append(&order, node->attr.to[0]);
        for (int i = 0; i < value.count; i++)
            if (type_has(node->type, value.axes[i]))
                order_append(&order, value.axes[i]);
        order_append(&order, node->attr.to[0]);
        return order;
    }
    case OP_GATHER: {
        Order index = order_of(fresh, node->inputs[1]);
        *firm = true;
        order_append_all(&order, index.axes, index.count);
        break;
    }
    case OP_SUM:
    case OP_MAX:
        break;
    default:
        return map_order(l, node, firm);
    }
    Order input = order_of(fresh, node->inputs[0]);
    for (int i = 0; i < input.count; i++)
        if (type_has(node->type, input.axes[i]))
            order_append(&order, input.axes[i]);
    return order;
}

static void note_firm(Layout *l, NodeId id, bool firm) {
    while (l->firm.count <= id)
        array_push(&l->firm, true);
    l->firm.data[id] = firm;
}

/* Broadcast operands run as the map that reads them first does. */
static void order_expands(Layout *l, NodeId map, const Order *order) {
    Function *fresh = l->rebuild.fresh;
    const Node *node = node_at(fresh, map);
    for (int i = 0; i < node->input_count; i++) {
        NodeId input = node->inputs[i];
        if (node_at(fresh, input)->op != OP_EXPAND || l->firm.data[input])
            continue;
        set_order(fresh, input, order);
        note_firm(l, input, true);
    }
}

static void assign_order(Layout *l, NodeId old_id, NodeId id) {
    Function *fresh = l->rebuild.fresh;
    const Node *node = node_at(fresh, id);
    bool firm;
    Order order = natural_order(l, old_id, id, &firm);
    if (node->original >= 0) {
        order = order_of(fresh, node->original);
        firm = true;
    } else if (node_can_be_stored(node)) {
        bool last = l->rebuild.map[old_id] == id;
        if (last && l->forced[old_id]) {
            order = *l->forced[old_id];
            firm = true;
        } else if (node->adjoint_of >= 0) {
            order = order_of(fresh, node->adjoint_of);
            firm = true;
        }
        if (last && !l->forced[old_id])
            gather_for_merge(l, old_id, &order);
    }
    set_order(fresh, id, &order);
    note_firm(l, id, firm);
    if (op_is_map(node->op))
        order_expands(l, id, &order);
    fresh->nodes.data[id].placement.stored = node_can_be_stored(node);
}

/* ---- copies ------------------------------------------------------------------- */

static Builder builder_at(Layout *l, const Node *node) {
    Builder b = builder(l->rebuild.fresh);
    b.scope = node->scope;
    b.clone = node->clone;
    b.span = node->span;
    return b;
}

static NodeId put_copy(Layout *l, NodeId id, const Order *order) {
    Function *fresh = l->rebuild.fresh;
    Builder b = builder_at(l, node_at(fresh, id));
    NodeId copy = build_1(&b, OP_COPY, id);
    set_order(fresh, copy, order);
    note_firm(l, copy, true);
    fresh->nodes.data[copy].placement.stored = true;
    return copy;
}

/* The value itself where it is a view of memory, else a copy.  `dense`: no axis may be
 * broadcast. */
static NodeId in_memory(Layout *l, NodeId id, bool dense) {
    const Function *fresh = l->rebuild.fresh;
    const Node *node = node_at(fresh, id);
    View view;
    bool found = view_of(fresh, id, &view);
    for (int i = 0; found && dense && i < node->type.rank; i++)
        found = view_stride(&view, node->type.axes[i]) != 0 ||
                l->module->axes.data[node->type.axes[i]].size == 1;
    if (found)
        return id;
    Order order = order_of(fresh, id);
    return put_copy(l, id, &order);
}

/* ---- dots --------------------------------------------------------------------- */

/* A dot without summed axes, or whose operands have the same axes, is no matrix product. */
static bool is_elementwise(const Layout *l, const Node *dot) {
    Type a = l->old->nodes.data[dot->inputs[0]].type,
         b = l->old->nodes.data[dot->inputs[1]].type;
    return dot->attr.from_count == 0 || type_same_axes(a, b);
}

/* dot(a, b; K) = sum(a * b; K), in f32 whatever the operands are. */
static void visit_elementwise_dot(Layout *l, NodeId id, const Node *dot) {
    Builder b = builder_at(l, dot);
    b.adjoint_of = dot->adjoint_of >= 0 ? l->rebuild.map[dot->adjoint_of] : -1;
    NodeId factors[2];
    for (int i = 0; i < 2; i++)
        factors[i] = build_cast(&b, l->rebuild.map[dot->inputs[i]], TYPE_F32);
    NodeId product = build_2(&b, OP_MUL, factors[0], factors[1]);
    NodeId result = build_reduce(&b, OP_SUM, product, dot->attr.from, dot->attr.from_count);
    result = build_cast(&b, result, dot->type.dtype);
    Node *node = &l->rebuild.fresh->nodes.data[result];
    node->name = node->name ? node->name : dot->name;
    l->rebuild.map[id] = result;
}

static bool product_fits(const Layout *l, NodeId dot, Product *product, int *blocking) {
    const Function *fresh = l->rebuild.fresh;
    const Node *node = node_at(fresh, dot);
    View a, b, result = own_view(fresh, dot);
    INTERNAL_CHECK(view_of(fresh, node->inputs[0], &a) && view_of(fresh, node->inputs[1], &b));
    return product_of(fresh, dot, &a, &b, &result, product, blocking);
}

/* An operand's order that suits any result: batch and own axes as there, summed ones last. */
static Order operand_order(const Layout *l, const Node *dot, int side) {
    const Function *fresh = l->rebuild.fresh;
    Type type = node_at(fresh, dot->inputs[side])->type;
    Order other = order_of(fresh, dot->inputs[!side]), order = {0};
    for (int i = 0; i < dot->placement.order_count; i++)
        if (type_has(type, dot->placement.order[i]))
            order_append(&order, dot->placement.order[i]);
    for (int i = 0; i < other.count; i++)
        if (type_has(type, other.axes[i]) && !type_has(dot->type, other.axes[i]))
            order_append(&order, other.axes[i]);
    return order;
}

static NodeId copy_dot(Layout *l, NodeId id, const NodeId operands[2]) {
    const Node *old = &l->old->nodes.data[id];
    NodeId saved[2];
    for (int i = 0; i < 2; i++)
        saved[i] = l->rebuild.map[old->inputs[i]];
    for (int i = 0; i < 2; i++)
        l->rebuild.map[old->inputs[i]] = operands[i];
    NodeId dot = rebuild_copy(&l->rebuild, id);
    for (int i = 0; i < 2; i++)
        l->rebuild.map[old->inputs[i]] = saved[i];
    return dot;
}

/* Copies operands until the product, which is given, has unit strides; at most both need it. */
static NodeId copy_operands(Layout *l, NodeId id, NodeId dot, Product *product, int blocking) {
    bool copied[2] = {false, false};
    do {
        const Node *node = node_at(l->rebuild.fresh, dot);
        int side = blocking == 1 ? 1 : 0;
        side = copied[side] ? !side : side;
        INTERNAL_CHECK(!copied[side]);
        copied[side] = true;
        Order order = operand_order(l, node, side);
        Order result = order_of(l->rebuild.fresh, dot);
        NodeId operands[2] = {node->inputs[0], node->inputs[1]};
        operands[side] = put_copy(l, operands[side], &order);
        dot = copy_dot(l, id, operands);
        set_order(l->rebuild.fresh, dot, &result);
        l->rebuild.fresh->nodes.data[dot].placement.stored = true;
        note_firm(l, dot, true);
    } while (!product_fits(l, dot, product, &blocking));
    return dot;
}

/* A result in bf16 that is a sum of several products is summed in f32 and rounded after: a
 * library that runs them one by one would round each. */
static NodeId round_after(Layout *l, NodeId dot, const Product *product) {
    Function *fresh = l->rebuild.fresh;
    const Node *node = node_at(fresh, dot);
    if (!product->bf16_result || product->accumulate_count == 0)
        return dot;
    Order order = order_of(fresh, dot);
    Builder builder = builder_at(l, node);
    builder.adjoint_of = node->adjoint_of;
    const char *name = node->name;
    Node *sum = &fresh->nodes.data[dot];
    sum->type.dtype = TYPE_F32;
    sum->name = NULL;
    NodeId rounded = build_cast(&builder, dot, TYPE_BF16);
    set_order(fresh, rounded, &order);
    note_firm(l, rounded, true);
    fresh->nodes.data[rounded].placement.stored = true;
    fresh->nodes.data[rounded].name = name;
    return rounded;
}

static void visit_dot(Layout *l, NodeId id) {
    const Node *old = &l->old->nodes.data[id];
    Function *fresh = l->rebuild.fresh;
    NodeId operands[2];
    for (int i = 0; i < 2; i++)
        operands[i] = in_memory(l, l->rebuild.map[old->inputs[i]], true);
    NodeId dot = copy_dot(l, id, operands);
    assign_order(l, id, dot);
    Product product;
    int blocking;
    if (product_fits(l, dot, &product, &blocking)) {
        l->rebuild.map[id] = round_after(l, dot, &product);
        return;
    }
    Order wanted = order_of(fresh, dot), natural = plain_dot_order(l, node_at(fresh, dot));
    int64_t size = type_elements(l->module, old->type);
    bool small =
        size <= type_elements(l->module, node_at(fresh, operands[blocking == 1])->type);
    if (blocking == 2 || !l->forced[id] || small)
        set_order(fresh, dot, &natural);
    if (!product_fits(l, dot, &product, &blocking))
        dot = copy_operands(l, id, dot, &product, blocking);
    Order got = order_of(fresh, dot);
    bool as_wanted = memcmp(&got, &wanted, sizeof got) == 0;
    dot = round_after(l, dot, &product);
    l->rebuild.map[id] = l->forced[id] && !as_wanted ? put_copy(l, dot, &wanted) : dot;
}

/* ---- writes ------------------------------------------------------------------- */

NodeId write_source(const Function *function, NodeId value) {
    const Node *node = node_at(function, value);
    while (node->op == OP_RENAME || node->op == OP_SPLIT || node->op == OP_MERGE) {
        value = node->inputs[0];
        node = node_at(function, value);
    }
    return node_can_be_stored(node) ? value : -1;
}

/* Translates a state's order down to the source of the value written to it; false where the
 * axes of a split are not neighbours there. */
static bool order_at_source(const Function *function, NodeId value, Order *order) {
    for (const Node *node = node_at(function, value);
         node->op == OP_RENAME || node->op == OP_SPLIT || node->op == OP_MERGE;
         node = node_at(function, node->inputs[0])) {
        const Attr *attr = &node->attr;
        int position = order_find(order, attr->to[0]);
        for (int i = 1; i < attr->to_count; i++) {
            if (position + i >= order->count || order->axes[position + i] != attr->to[i])
                return false;
        }
        for (int i = 1; i < attr->to_count; i++)
            order_remove(order, attr->to[i]);
        order_replace(order, position, attr->from, attr->from_count);
    }
    return true;
}

static void force_orders(Layout *l) {
    const Function *old = l->old;
    for (int64_t i = 0; i < old->writes.count; i++) {
        const Write *write = &old->writes.data[i];
        const State *state = &l->module->states.data[write->state];
        NodeId source = write_source(old, write->value);
        Order *order = arena_alloc(l->arena, sizeof *order);
        order_append_all(order, state->order, state->order_count);
        if (source >= 0 && !l->forced[source] && order_at_source(old, write->value, order))
            l->forced[source] = order;
    }
}

/* Does the source's memory hold the elements of the state in the state's order? */
static bool lies_as_state(const Function *function, NodeId value, StateId state) {
    View view, wanted = state_view(function->module, state);
    if (write_source(function, value) < 0 || !view_of(function, value, &view))
        return false;
    for (int i = 0; i < wanted.count; i++)
        if (view_stride(&view, wanted.axes[i]) != wanted.strides[i] &&
            function->module->axes.data[wanted.axes[i]].size > 1)
            return false;
    return true;
}

/* A product can store its result in one place alone: is the value one that others read too? */
static bool product_has_other_uses(const Layout *l, NodeId old_value) {
    NodeId source = write_source(l->rebuild.fresh, l->rebuild.map[old_value]);
    bool shared = l->use_count[old_value] > 1;
    for (NodeId id = old_value; node_is_view(&l->old->nodes.data[id]);) {
        id = l->old->nodes.data[id].inputs[0];
        shared |= l->use_count[id] > 1;
    }
    return shared && source >= 0 && node_at(l->rebuild.fresh, source)->op == OP_DOT;
}

static NodeId copy_as_state(Layout *l, NodeId value, StateId state) {
    const State *found = &l->module->states.data[state];
    Order order = {0};
    order_append_all(&order, found->order, found->order_count);
    return put_copy(l, value, &order);
}

static void put_write(Layout *l, const Write *write, NodeId value) {
    Write fresh = {.state = write->state, .value = value, .add = write->add};
    array_push(&l->rebuild.fresh->writes, fresh);
}

/* The writes to one state: indices into the old function's, in order. */
typedef ARRAY(int64_t) WriteList;

typedef struct Addition {
    NodeId source, value;
    int64_t write;
} Addition;

static int compare_additions(const void *left, const void *right) {
    const Addition *a = left, *b = right;
    if (a->source != b->source)
        return a->source < b->source ? -1 : 1;
    return (a->write > b->write) - (a->write < b->write);
}

/* `+=` alone, to a state that nobody reads: stay as they are, in the order of their sources, of
 * which each is another node. */
static void put_additions(Layout *l, const WriteList *list) {
    Function *fresh = l->rebuild.fresh;
    Addition *additions = checked_alloc((size_t)list->count * sizeof *additions);
    for (int64_t i = 0; i < list->count; i++) {
        const Write *write = &l->old->writes.data[list->data[i]];
        NodeId value = l->rebuild.map[write->value];
        if (!lies_as_state(fresh, value, write->state) ||
            product_has_other_uses(l, write->value))
            value = copy_as_state(l, value, write->state);
        additions[i] = (Addition){write_source(fresh, value), value, list->data[i]};
    }
    qsort(additions, (size_t)list->count, sizeof *additions, compare_additions);
    for (int64_t i = 1; i < list->count; i++)
        if (additions[i].source == additions[i - 1].source)
            additions[i].value =
                copy_as_state(l, additions[i].value, l->old->writes.data[list->data[0]].state);
    for (int64_t i = 0; i < list->count; i++)
        additions[i].source = write_source(fresh, additions[i].value);
    qsort(additions, (size_t)list->count, sizeof *additions, compare_additions);
    for (int64_t i = 0; i < list->count; i++)
        put_write(l, &l->old->writes.data[additions[i].write], additions[i].value);
    free(additions);
}

/* Otherwise one plain write of what the state holds in the end. */
static void put_final_value(Layout *l, const WriteList *list) {
    Function *fresh = l->rebuild.fresh;
    NodeId value = -1;
    bool built = false;
    const Write *write = &l->old->writes.data[list->data[0]];
    for (int64_t i = 0; i < list->count; i++) {
        write = &l->old->writes.data[list->data[i]];
        NodeId next = l->rebuild.map[write->value];
        if (write->add) {
            Builder b = builder_at(l, node_at(fresh, next));
            NodeId first_new = (NodeId)fresh->nodes.count;
            NodeId before = value < 0 ? build_state(&b, write->state) : value;
            value = build_2(&b, OP_ADD, before, next);
            for (NodeId id = first_new; id < fresh->nodes.count; id++)
                assign_order(l, write->value, id);
            built = true;
        } else {
            value = next;
            built = false;
        }
    }
    bool copy = !lies_as_state(fresh, value, write->state) ||
                (!built && product_has_other_uses(l, write->value));
    Write plain = {.state = write->state};
    put_write(l, &plain, copy ? copy_as_state(l, value, write->state) : value);
}

static void rewrite_writes(Layout *l) {
    const Function *old = l->old;
    size_t states = (size_t)l->module->states.count;
    WriteList *lists = arena_alloc_array(l->arena, states, sizeof *lists);
    for (int64_t i = 0; i < old->writes.count; i++)
        array_push(&lists[old->writes.data[i].state], i);
    for (int64_t i = 0; i < old->writes.count; i++) {
        WriteList *list = &lists[old->writes.data[i].state];
        if (!list->count)
            continue;
        bool all_add = true;
        for (int64_t j = 0; j < list->count; j++)
            all_add &= old->writes.data[list->data[j]].add;
        if (all_add && !l->state_is_read[old->writes.data[i].state])
            put_additions(l, list);
        else
            put_final_value(l, list);
        array_free(list);
    }
}

/* ---- the pass ----------------------------------------------------------------- */

/* Merges stand above memory whose parts are neighbours. */
static void visit_merge(Layout *l, NodeId id) {
    const Node *old = &l->old->nodes.data[id];
    NodeId merge = rebuild_copy(&l->rebuild, id);
    View view;
    if (view_of(l->rebuild.fresh, merge, &view))
        return;
    NodeId input = l->rebuild.map[old->inputs[0]];
    Order order = order_of(l->rebuild.fresh, input);
    order_gather(&order, old->attr.from, old->attr.from_count);
    l->rebuild.map[old->inputs[0]] = put_copy(l, input, &order);
    rebuild_copy(&l->rebuild, id);
    l->rebuild.map[old->inputs[0]] = input;
}

static void visit_gather(Layout *l, NodeId id) {
    NodeId table = l->old->nodes.data[id].inputs[0], saved = l->rebuild.map[table];
    l->rebuild.map[table] = in_memory(l, saved, false);
    rebuild_copy(&l->rebuild, id);
    l->rebuild.map[table] = saved;
}

static void visit(Layout *l, NodeId id) {
    const Node *node = &l->old->nodes.data[id];
    int64_t first_new = l->rebuild.fresh->nodes.count;
    if (node->op == OP_DOT && is_elementwise(l, node))
        visit_elementwise_dot(l, id, node);
    else if (node->op == OP_DOT)
        visit_dot(l, id);
    else if (node->op == OP_MERGE)
        visit_merge(l, id);
    else if (node->op == OP_GATHER)
        visit_gather(l, id);
    else
        rebuild_copy(&l->rebuild, id);
    for (int64_t fresh = first_new; fresh < l->rebuild.fresh->nodes.count; fresh++)
        if (l->rebuild.fresh->nodes.data[fresh].placement.order_count < 0)
            assign_order(l, id, (NodeId)fresh);
}

static void layout_function(Module *module, Function *function) {
    Layout l = {.module = module, .arena = arena_new(), .old = function};
    index_uses(&l);
    l.forced = arena_alloc_array(l.arena, (size_t)function->nodes.count + 1, sizeof *l.forced);
    l.state_is_read =
        arena_alloc_array(l.arena, (size_t)module->states.count + 1, sizeof(bool));
    for (int64_t id = 0; id < function->nodes.count; id++) {
        Node *node = &function->nodes.data[id];
        node->placement.order_count = -1;
        if (node->op == OP_STATE)
            l.state_is_read[node->attr.integer] = true;
    }
    force_orders(&l);
    l.rebuild = rebuild_begin(module, function);
    for (int64_t id = 0; id < function->nodes.count; id++)
        visit(&l, (NodeId)id);
    rewrite_writes(&l);
    function->writes.count = 0; /* replaced by those just made */
    Function *fresh = rebuild_finish(&l.rebuild);
    for (int64_t id = 0; id < fresh->nodes.count; id++)
        fresh->nodes.data[id].placement.stored = false;
    array_free(&l.firm);
    arena_free(l.arena);
}

bool pass_layout(PassContext *context) {
    Module *module = context->module;
    order_states(module);
    for (int64_t i = 0; i < module->functions.count; i++)
        layout_function(module, module->functions.data[i]);
    return true;
}
