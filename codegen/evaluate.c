/* codegen/evaluate.c: nodes of the graph as values of a kernel.
 *
 * Everything is evaluated on demand, at an environment that gives each axis of a node a
 * position: an affine expression of loop indices.  Views change the environment, not data:
 *
 *     y = x[K as (P, Q)]    y at (b: i, P: 1, Q: j)    is x at (b: i, K: 16 + j), Q of size 16
 */
#include "codegen/lower.h"

const Node *graph_node(const Lowering *l, NodeId id) {
    return &l->function->nodes.data[id];
}

int64_t axis_extent(const Lowering *l, AxisId axis) {
    return l->module->axes.data[axis].size;
}

NodeInfo *info_of(Lowering *l, NodeId node) {
    NodeInfo ***page = &l->info_pages[node / INFO_PAGE];
    if (!*page)
        *page = arena_alloc_array(l->arena, INFO_PAGE, sizeof **page);
    NodeInfo **info = &(*page)[node % INFO_PAGE];
    if (!*info) {
        *info = arena_alloc(l->arena, sizeof **info);
        **info = (NodeInfo){.node = node,
                            .level = -1,
                            .in_sweep = -1,
                            .kept = -1,
                            .reduced = -1,
                            .results = -1};
    }
    return *info;
}

/* ---- names --------------------------------------------------------------------------- */

const char *value_name(const Lowering *l, NodeId id) {
    const Node *node = graph_node(l, id);
    if (node->name)
        return node->name;
    if (node->op == OP_STATE) {
        const char *path = l->module->states.data[node->attr.integer].path;
        const char *dot = strrchr(path, '.');
        return dot ? dot + 1 : path;
    }
    if (node->op == OP_INPUT)
        return l->module->inputs.data[node->attr.integer].name;
    if (node->adjoint_of >= 0 && graph_node(l, node->adjoint_of)->name)
        return arena_printf(l->arena, "%s_adj", graph_node(l, node->adjoint_of)->name);
    return NULL;
}

/* [B,S,D], slowest first. */
static const char *shape_text(const Lowering *l, const AxisId *axes, int count) {
    Text text = {0};
    text_puts(&text, "[");
    for (int i = 0; i < count; i++)
        text_printf(&text, "%s%s", i ? "," : "", l->module->axes.data[axes[i]].name);
    text_puts(&text, "]");
    char *shape = arena_strdup(l->arena, text_string(&text));
    text_free(&text);
    return shape;
}

/* ---- operands ------------------------------------------------------------------------ */

static BufferId new_argument(Lowering *l, KernelOperand operand, Buffer buffer) {
    buffer.argument = l->builder.kernel->argument_count++;
    operand.bytes = buffer.elements * dtype_bytes(buffer.dtype);
    array_push(&l->operands, operand);
    BufferId made = build_buffer(&l->builder, buffer);
    array_push(&l->operand_buffers, made);
    return made;
}

/* The buffer of what a kind and an id say, made at its first use. */
static BufferId argument(Lowering *l, KernelOperand operand, Buffer buffer) {
    for (int64_t i = 0; i < l->operands.count; i++)
        if (l->operands.data[i].kind == operand.kind && l->operands.data[i].id == operand.id)
            return l->operand_buffers.data[i];
    return new_argument(l, operand, buffer);
}

BufferId node_buffer(Lowering *l, NodeId id) {
    const Node *node = graph_node(l, id);
    const Placement *placement = &node->placement;
    const char *name = value_name(l, id);
    return argument(l, (KernelOperand){.kind = OPERAND_NODE, .id = id},
                    (Buffer){.dtype = node->type.dtype,
                             .elements = type_elements(l->module, node->type),
                             .name = name ? name : op_info[node->op].name,
                             .shape = shape_text(l, placement->order, placement->order_count)});
}

BufferId state_buffer(Lowering *l, StateId id) {
    const State *state = &l->module->states.data[id];
    const char *dot = strrchr(state->path, '.');
    const char *name = dot ? dot + 1 : state->path;
    if (state->role != ROLE_WEIGHT && state->role != ROLE_METRIC)
        name = arena_printf(l->arena, "%s_%s%s", name, role_name(state->role),
                            state->number ? "2" : "");
    return argument(l, (KernelOperand){.kind = OPERAND_STATE, .id = id},
                    (Buffer){.dtype = state->dtype,
                             .elements = type_elements(l->module, state_type(state)),
                             .name = name,
                             .shape = shape_text(l, state->order, state->order_count)});
}

static BufferId input_buffer(Lowering *l, int32_t number) {
    const Input *input = &l->module->inputs.data[number];
    return argument(
        l, (KernelOperand){.kind = OPERAND_INPUT, .id = number},
        (Buffer){.dtype = TYPE_I32,
                 .elements = axes_elements(l->module, input->axes, input->axis_count),
                 .name = input->name,
                 .shape = shape_text(l, input->axes, input->axis_count)});
}

BufferId scratch_buffer(Lowering *l, DataType dtype, int64_t elements, const char *name) {
    return new_argument(l, (KernelOperand){.kind = OPERAND_SCRATCH},
                        (Buffer){.dtype = dtype, .elements = elements, .name = name});
}

static BufferId root_buffer(Lowering *l, NodeId root) {
    const Node *node = graph_node(l, root);
    return node->op == OP_STATE   ? state_buffer(l, (StateId)node->attr.integer)
           : node->op == OP_INPUT ? input_buffer(l, (int32_t)node->attr.integer)
                                  : node_buffer(l, root);
}

/* A scalar argument: an f64 node, or -1 - n for the function's runtime scalar n. */
static ValueId scalar_argument(Lowering *l, NodeId source) {
    int64_t number = 0;
    while (number < l->scalars.count && l->scalars.data[number] != source)
        number++;
    if (number == l->scalars.count)
        array_push(&l->scalars, source);
    return emit_scalar(&l->builder, (int)number);
}

static ValueId runtime_scalar(Lowering *l, const char *name) {
    for (int64_t i = 0; i < l->function->scalar_count; i++)
        if (strcmp(l->function->scalars[i], name) == 0)
            return scalar_argument(l, (NodeId)(-1 - i));
    return emit_constant(&l->builder, TYPE_F64, 0);
}

/* ---- positions ----------------------------------------------------------------------- */

static int32_t position_id(Lowering *l, Affine position) {
    for (int64_t i = 0; i < l->positions.count; i++)
        if (affine_equal(&l->positions.data[i], &position))
            return (int32_t)i;
    array_push(&l->positions, position);
    return (int32_t)(l->positions.count - 1);
}

Affine affine_plus(Lowering *l, Affine a, Affine b, int64_t scale) {
    return affine_add(l->arena, a, b, scale);
}

void place_axis(Lowering *l, AxisId axis, Affine position) {
    int i = 0;
    while (i < l->axis_count && l->axes[i] != axis)
        i++;
    l->axes[i] = axis;
    l->axis_positions[i] = position_id(l, position);
    if (i == l->axis_count)
        l->axis_count++;
}

static int32_t axis_place(const Lowering *l, AxisId axis) {
    for (int i = 0; i < l->axis_count; i++)
        if (l->axes[i] == axis)
            return l->axis_positions[i];
    internal_error("axis %s has no position in group %d of %s", l->module->axes.data[axis].name,
                   l->group_number, l->function->name);
}

Affine position_of(const Lowering *l, AxisId axis) {
    return l->positions.data[axis_place(l, axis)];
}

void natural_positions(const Lowering *l, Type type, int32_t *positions) {
    for (int i = 0; i < type.rank; i++)
        positions[i] = axis_place(l, type.axes[i]);
}

static bool is_natural(const Lowering *l, Type type, const int32_t *positions) {
    for (int i = 0; i < type.rank; i++) {
        int k = 0;
        while (k < l->axis_count && l->axes[k] != type.axes[i])
            k++;
        if (k == l->axis_count || l->axis_positions[k] != positions[i])
            return false;
    }
    return true;
}

void place_linear(Lowering *l, const AxisId *axes, int count, Affine position) {
    int64_t total = axes_elements(l->module, axes, count), within = 1;
    for (int i = count - 1; i >= 0; i--) {
        int64_t size = axis_extent(l, axes[i]);
        Affine place = position;
        if (size == 1)
            place = affine_constant(0);
        else if (size < total)
            place = affine_of(l->arena, emit_digit(&l->builder, position, total, within, size));
        place_axis(l, axes[i], place);
        within *= size;
    }
}

static int position_of_axis(Type type, AxisId axis) {
    for (int i = 0; i < type.rank; i++)
        if (type.axes[i] == axis)
            return i;
    return -1;
}

static Affine at_axis(const Lowering *l, Type type, const int32_t *positions, AxisId axis) {
    int i = position_of_axis(type, axis);
    INTERNAL_CHECK(i >= 0);
    return l->positions.data[positions[i]];
}

Affine view_address(Lowering *l, const View *view, Type type, const int32_t *positions) {
    Affine address = affine_constant(view->base);
    for (int i = 0; i < view->count; i++)
        address = affine_plus(l, address, at_axis(l, type, positions, view->axes[i]),
                              view->strides[i]);
    return address;
}

/* ---- evaluation ---------------------------------------------------------------------- */

ValueId emit_map2(Lowering *l, Op op, DataType dtype, ValueId a, ValueId b) {
    return emit_map(&l->builder, op, dtype, (ValueId[]){a, b}, 2, NULL);
}

static ValueId i32_constant(Lowering *l, int64_t number) {
    return emit_constant(&l->builder, TYPE_I32, (double)number);
}

bool is_loaded(const Lowering *l, NodeId id) {
    while (op_is_view(graph_node(l, id)->op) || graph_node(l, id)->op == OP_EXPAND)
        id = graph_node(l, id)->inputs[0];
    const Node *root = graph_node(l, id);
    return root->op == OP_STATE || root->op == OP_INPUT ||
           (root->placement.stored && root->placement.group != l->group_number);
}

/* Where an operand's axis is, given where the axes of a view of it are. */
static Affine through_view(Lowering *l, const Node *view, const int32_t *positions,
                           AxisId axis) {
    const Attr *attr = &view->attr;
    Affine place = affine_constant(0);
    switch (view->op) {
    case OP_PICK:
        if (axis == attr->from[0])
            return affine_constant(attr->integer);
        break;
    case OP_RENAME:
    case OP_SPLIT:
        if (axis != attr->from[0])
            break;
        for (int i = 0; i < attr->to_count; i++)
            place = affine_plus(l, at_axis(l, view->type, positions, attr->to[i]), place,
                                axis_extent(l, attr->to[i]));
        return place;
    case OP_MERGE:
        for (int i = 0; i < attr->from_count; i++) {
            if (axis != attr->from[i])
                continue;
            int64_t within =
                axes_elements(l->module, attr->from + i + 1, attr->from_count - i - 1);
            return affine_of(
                l->arena,
                emit_digit(&l->builder, at_axis(l, view->type, positions, attr->to[0]),
                           axis_extent(l, attr->to[0]), within, axis_extent(l, axis)));
        }
        break;
    default:
        break;
    }
    return at_axis(l, view->type, positions, axis);
}

static ValueId evaluate_view(Lowering *l, const Node *node, const int32_t *positions) {
    Type operand = graph_node(l, node->inputs[0])->type;
    int32_t places[MAX_AXES];
    for (int i = 0; i < operand.rank; i++)
        places[i] = position_id(l, through_view(l, node, positions, operand.axes[i]));
    return value_at(l, node->inputs[0], places);
}

/* Positions of an operand all whose axes the result has. */
static ValueId evaluate_aligned(Lowering *l, NodeId operand, Type result,
                                const int32_t *positions) {
    Type type = graph_node(l, operand)->type;
    int32_t places[MAX_AXES];
    for (int i = 0; i < type.rank; i++)
        places[i] = positions[position_of_axis(result, type.axes[i])];
    return value_at(l, operand, places);
}

static ValueId evaluate_map(Lowering *l, NodeId id, const int32_t *positions) {
    const Node *node = graph_node(l, id);
    ValueId inputs[3];
    INTERNAL_CHECK(node->input_count <= COUNT_OF(inputs));
    for (int i = 0; i < node->input_count; i++)
        inputs[i] = evaluate_aligned(l, node->inputs[i], node->type, positions);
    if (node->op == OP_STOP || node->op == OP_COPY)
        return inputs[0];
    return emit_map(&l->builder, node->op, node->type.dtype, inputs, node->input_count,
                    value_name(l, id));
}

/* At a constant position a stack is that part; elsewhere the parts are selected from. */
static ValueId evaluate_stack(Lowering *l, const Node *node, const int32_t *positions) {
    Affine place = at_axis(l, node->type, positions, node->attr.to[0]);
    if (place.term_count == 0)
        return evaluate_aligned(l, node->inputs[place.base], node->type, positions);
    ValueId index = emit_index(&l->builder, place, NULL);
    ValueId value = evaluate_aligned(l, node->inputs[0], node->type, positions);
    for (int i = 1; i < node->input_count; i++) {
        ValueId here = emit_map2(l, OP_EQ, TYPE_BOOL, index, i32_constant(l, i));
        ValueId part = evaluate_aligned(l, node->inputs[i], node->type, positions);
        value = emit_map(&l->builder, OP_WHERE, node->type.dtype,
                         (ValueId[]){here, part, value}, 3, NULL);
    }
    return value;
}

Affine dynamic_position(Lowering *l, NodeId index, ValueId value, AxisId axis) {
    while (op_is_view(graph_node(l, index)->op) || graph_node(l, index)->op == OP_EXPAND)
        index = graph_node(l, index)->inputs[0];
    const Node *root = graph_node(l, index);
    int64_t size = axis_extent(l, axis);
    if (root->op != OP_INPUT || l->module->inputs.data[root->attr.integer].below > size) {
        value = emit_map2(l, OP_MAXIMUM, TYPE_I32, value, i32_constant(l, 0));
        value = emit_map2(l, OP_MINIMUM, TYPE_I32, value, i32_constant(l, size - 1));
    }
    return affine_of(l->arena, value);
}

static ValueId load_view(Lowering *l, NodeId id, const int32_t *positions) {
    View view;
    if (!view_of(l->function, id, &view))
        internal_error("node %d of %s is not a view of memory", id, l->function->name);
    return emit_load(&l->builder, root_buffer(l, view.root),
                     view_address(l, &view, graph_node(l, id)->type, positions),
                     value_name(l, id));
}

static ValueId evaluate_gather(Lowering *l, const Node *node, const int32_t *positions) {
    NodeId table = node->inputs[0], index = node->inputs[1];
    Type type = graph_node(l, table)->type;
    AxisId axis = node->attr.from[0];
    ValueId row = evaluate_aligned(l, index, node->type, positions);
    Affine place = dynamic_position(l, index, row, axis);
    int32_t places[MAX_AXES];
    for (int i = 0; i < type.rank; i++)
        places[i] = type.axes[i] == axis
                        ? position_id(l, place)
                        : positions[position_of_axis(node->type, type.axes[i])];
    return load_view(l, table, places);
}

/* A scatter_add that sums nothing: each element has one value, in the row where its
 * index says. */
static ValueId evaluate_placement(Lowering *l, const Node *node, const int32_t *positions) {
    INTERNAL_CHECK(node->attr.from_count == 0);
    ValueId own =
        emit_index(&l->builder, at_axis(l, node->type, positions, node->attr.to[0]), NULL);
    ValueId index = evaluate_aligned(l, node->inputs[0], node->type, positions);
    ValueId here = emit_map2(l, OP_EQ, TYPE_BOOL, own, index);
    ValueId value = evaluate_aligned(l, node->inputs[1], node->type, positions);
    ValueId zero = emit_constant(&l->builder, node->type.dtype, 0);
    return emit_map(&l->builder, OP_WHERE, node->type.dtype, (ValueId[]){here, value, zero}, 3,
                    NULL);
}

static bool is_sample_axis(const Lowering *l, AxisId axis) {
    for (int64_t i = 0; i < l->module->inputs.count; i++)
        if (l->module->inputs.data[i].axis_count && l->module->inputs.data[i].axes[0] == axis)
            return true;
    return false;
}

/* As in random_uniform: the sample, and the index in ascending order of the other axes. */
static ValueId evaluate_random(Lowering *l, const Node *node, const int32_t *positions) {
    Affine sample = affine_constant(0), index = affine_constant(0);
    bool has_sample = false;
    for (int i = 0; i < node->type.rank; i++) {
        AxisId axis = node->type.axes[i];
        Affine place = l->positions.data[positions[i]];
        if (!has_sample && is_sample_axis(l, axis)) {
            has_sample = true;
            sample = place;
        } else {
            index = affine_plus(l, place, index, axis_extent(l, axis));
        }
    }
    ValueId counters[3] = {runtime_scalar(l, "seed"), runtime_scalar(l, "step"),
                           has_sample ? runtime_scalar(l, "sample0")
                                      : emit_constant(&l->builder, TYPE_F64, 0)};
    return emit_random(&l->builder, node->attr.integer, counters, sample, index);
}

static ValueId compute(Lowering *l, NodeId id, const int32_t *positions) {
    const Node *node = graph_node(l, id);
    switch (op_info[node->op].axis_rule) {
    case AXES_LEAF:
        if (node->op == OP_CONST)
            return emit_constant(&l->builder, node->type.dtype, node->attr.number);
        if (node->op == OP_INDEX)
            return emit_index(&l->builder, l->positions.data[positions[0]], NULL);
        INTERNAL_CHECK(node->op == OP_RANDOM);
        return evaluate_random(l, node, positions);
    case AXES_SAME:
        return evaluate_map(l, id, positions);
    case AXES_EXPAND:
    case AXES_RENAME:
    case AXES_SPLIT:
    case AXES_MERGE:
    case AXES_PICK:
        return evaluate_view(l, node, positions);
    case AXES_STACK:
        return evaluate_stack(l, node, positions);
    case AXES_GATHER:
        return evaluate_gather(l, node, positions);
    case AXES_SCATTER:
        return evaluate_placement(l, node, positions);
    case AXES_REDUCE:
        INTERNAL_CHECK(info_of(l, id)->reduced >= 0 && is_natural(l, node->type, positions));
        return info_of(l, id)->reduced;
    case AXES_DOT:
        break;
    }
    internal_error("%s in a generated kernel (group %d of %s)", op_info[node->op].name,
                   l->group_number, l->function->name);
}

/* Whether computing it again costs more than keeping it in a buffer that stays in cache. */
static bool is_dear(const Node *node) {
    return node->type.dtype == TYPE_F32 &&
           (op_info[node->op].work > 1 || node->op == OP_GATHER);
}

/* Whether an earlier sweep over the row has made a value that can be read where it was kept. */
static bool can_recall(const Lowering *l, const NodeInfo *info, const int32_t *positions) {
    const Node *node = graph_node(l, info->node);
    if (l->sweep < 0 || !is_natural(l, node->type, positions))
        return false;
    if (info->in_memory || info->kept >= 0)
        return true;
    return l->kept_bytes + l->inner * 4 <= l->local_bytes && info->in_sweep >= 0 &&
           !is_open(&l->builder, info->in_sweep) && is_dear(node);
}

static ValueId recall(Lowering *l, NodeInfo *info, const int32_t *positions) {
    const Node *node = graph_node(l, info->node);
    const char *name = value_name(l, info->node);
    if (info->in_memory) {
        View view = own_view(l->function, info->node);
        return emit_load(&l->builder, node_buffer(l, info->node),
                         view_address(l, &view, node->type, positions), name);
    }
    if (info->kept < 0) {
        info->kept =
            keep_value(&l->builder, info->in_sweep, affine_of(l->arena, info->sweep), l->inner);
        l->kept_bytes += l->inner * 4;
    }
    return emit_load(&l->builder, info->kept, affine_of(l->arena, l->sweep), name);
}

static ValueId find_evaluated(const Lowering *l, const NodeInfo *info, int rank,
                              const int32_t *positions) {
    for (const Evaluated *at = info->evaluated; at; at = at->next)
        if (memcmp(at->positions, positions, (size_t)rank * sizeof *positions) == 0 &&
            is_open(&l->builder, at->value))
            return at->value;
    return -1;
}

static bool is_argument(const Node *node) {
    return node->type.dtype == TYPE_F64 && node->op != OP_CONST;
}

/* An operand of a map that has no value yet; -1. */
static NodeId missing_operand(Lowering *l, NodeId id, const int32_t *positions) {
    const Node *node = graph_node(l, id);
    if (!op_is_map(node->op) || is_argument(node) || is_loaded(l, id) ||
        find_evaluated(l, info_of(l, id), node->type.rank, positions) >= 0 ||
        can_recall(l, info_of(l, id), positions))
        return -1;
    for (int i = 0; i < node->input_count; i++) {
        NodeId input = node->inputs[i];
        if (!is_argument(graph_node(l, input)) &&
            find_evaluated(l, info_of(l, input), node->type.rank, positions) < 0)
            return input;
    }
    return -1;
}

/* The operands of a map have values, or are no maps. */
static ValueId value_of_one(Lowering *l, NodeId id, const int32_t *positions) {
    const Node *node = graph_node(l, id);
    if (is_argument(node))
        return scalar_argument(l, id);
    NodeInfo *info = info_of(l, id);
    ValueId value = find_evaluated(l, info, node->type.rank, positions);
    if (value >= 0)
        return value;
    View view;
    if (is_loaded(l, id) && view_of(l->function, id, &view))
        value = load_view(l, id, positions);
    else if (can_recall(l, info, positions))
        value = recall(l, info, positions);
    else
        value = compute(l, id, positions);
    Evaluated *entry = arena_alloc(l->arena, sizeof *entry);
    *entry = (Evaluated){.value = value, .next = info->evaluated};
    memcpy(entry->positions, positions, (size_t)node->type.rank * sizeof *positions);
    info->evaluated = entry;
    const KernelBuilder *b = &l->builder;
    if (l->sweep >= 0 && info->in_sweep < 0 && is_natural(l, node->type, positions) &&
        b->homes.data[value] == b->open.data[b->open.count - 1]) {
        info->in_sweep = value;
        info->sweep = l->sweep;
    }
    return value;
}

/* Chains of maps, whose positions are all the same, may be long: they are not walked by
 * recursion. */
ValueId value_at(Lowering *l, NodeId id, const int32_t *positions) {
    int64_t begin = l->pending.count;
    ValueId value = -1;
    array_push(&l->pending, id);
    while (l->pending.count > begin) {
        NodeId last = l->pending.data[l->pending.count - 1];
        NodeId operand = missing_operand(l, last, positions);
        if (operand >= 0) {
            array_push(&l->pending, operand);
        } else {
            value = value_of_one(l, last, positions);
            l->pending.count--;
        }
    }
    return value;
}

ValueId value_here(Lowering *l, NodeId id) {
    int32_t positions[MAX_AXES];
    natural_positions(l, graph_node(l, id)->type, positions);
    return value_at(l, id, positions);
}
