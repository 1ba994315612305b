/* codegen/lower.c: a group of nodes -> a kernel.
 *
 * What a group does is compute its stores; all else is evaluated on demand, at an environment
 * that gives each axis of a node a position: an affine expression of loop indices.  Views
 * change the environment, not data.  For softmax(x; T) over rows [B,S] the row schedule gives
 *
 *     parallel b_s < 2048 {
 *       lanes t < 256 { x = load in_x[256 b_s + t]    largest = reduce max x }
 *       lanes t < 256 { … weight = exp …   total = reduce sum weight   local_weight[t] = weight
 * } lanes t < 256 { … out_p[256 b_s + t] = local_weight[t] / total }
 *     }
 */
#include "codegen/codegen.h"

#include <math.h>

enum { ROW_BUFFER = 16384 }; /* longest row whose dear values are kept: 64 KiB of stack */
enum { FEW_ROWS = 64 };      /* fewer long rows than this are cut in blocks */
enum { MOST_BLOCKS = 1024 }; /* rows of more blocks are always cut */
enum { MIN_CHUNK = 64 };     /* summed positions of a chunk, at least */
enum { MAX_CHUNKS = 64 };
enum { COLUMN_BLOCK = 1024 }; /* columns that a worker sums at a time */
enum { SCATTER_BLOCK = 128 }; /* kept elements that a worker owns */
enum { INFO_BUCKETS = 512 };

/* A value that was computed at an environment. */
typedef struct Evaluated {
    int32_t positions[MAX_AXES]; /* of the node's axes, in its type's order */
    ValueId value;
    struct Evaluated *next;
} Evaluated;

/* What lowering knows of a node. */
typedef struct NodeInfo {
    NodeId node;
    struct NodeInfo *next_in_bucket;
    Evaluated *evaluated;
    int level;        /* the reductions of the group below it, in depth; -1: not known yet */
    ValueId in_sweep; /* its value in the sweep that made it first; -1 */
    ValueId sweep;    /* that sweep */
    BufferId kept;    /* where that is kept for later sweeps; -1 */
    bool in_memory;   /* an earlier sweep has stored it in its own memory */
    ValueId reduced;  /* a reduction's result, where it is done; -1 */
    BufferId results; /* where results of a reduction are in scratch memory; -1 */
} NodeInfo;

/* A place that a computed value is stored to. */
typedef struct Store {
    NodeId node; /* the value; of a stack: the part */
    View view;   /* of the destination, by the axes of `node` */
    BufferId buffer;
    bool add;
    int level;
    bool inner; /* has the inner axes */
} Store;

typedef struct Lowering {
    const Function *function;
    const Module *module;
    const Group *group;
    int group_number;
    Arena *arena;
    KernelBuilder builder;
    ARRAY(KernelOperand) operands;
    ARRAY(BufferId) operand_buffers;
    ARRAY(NodeId) scalars;
    ARRAY(Affine) positions; /* all that were met, each once */
    ARRAY(Store) stores;
    ARRAY(NodeId) reductions;
    /* Where the axes of the group are, in the nest that is open: indices in `positions`. */
    int axis_count;
    AxisId axes[2 * MAX_AXES];
    int32_t axis_positions[2 * MAX_AXES];
    ValueId sweep;       /* the sweep over a row's inner axes that is open; -1 */
    bool keeps;          /* dear values of one sweep are kept for the next */
    int64_t inner, rows; /* elements */
    NodeInfo *buckets[INFO_BUCKETS];
} Lowering;

static const Node *node_of(const Lowering *l, NodeId id) {
    return &l->function->nodes.data[id];
}

static int64_t axis_size(const Lowering *l, AxisId axis) {
    return l->module->axes.data[axis].size;
}

static NodeInfo *info_of(Lowering *l, NodeId node) {
    NodeInfo **bucket = &l->buckets[(uint32_t)node * 2654435761u >> 23];
    for (NodeInfo *info = *bucket; info; info = info->next_in_bucket)
        if (info->node == node)
            return info;
    NodeInfo *info = arena_alloc(l->arena, sizeof *info);
    *info = (NodeInfo){.node = node,
                       .next_in_bucket = *bucket,
                       .level = -1,
                       .in_sweep = -1,
                       .kept = -1,
                       .reduced = -1,
                       .results = -1};
    *bucket = info;
    return info;
}

/* ---- names --------------------------------------------------------------------------- */

/* The name of a value or of what it is the adjoint of; NULL where there is none. */
static const char *value_name(const Lowering *l, NodeId id) {
    const Node *node = node_of(l, id);
    if (node->name)
        return node->name;
    if (node->op == OP_STATE) {
        const char *path = l->module->states.data[node->attr.integer].path;
        const char *dot = strrchr(path, '.');
        return dot ? dot + 1 : path;
    }
    if (node->op == OP_INPUT)
        return l->module->inputs.data[node->attr.integer].name;
    if (node->adjoint_of >= 0 && node_of(l, node->adjoint_of)->name)
        return arena_printf(l->arena, "%s_adj", node_of(l, node->adjoint_of)->name);
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

/* A path without its indices, as an identifier: layer[3].attn.wq -> layer_attn_wq. */
static void append_path(Text *out, const char *path) {
    for (const char *c = path; *c; c++) {
        if (*c == '[')
            while (c[1] && *c != ']')
                c++;
        else if (out->length || (*c >= 'A' && *c <= 'Z') || (*c >= 'a' && *c <= 'z'))
            text_append(out, *c == '.' || *c == '-' ? "_" : c, 1);
    }
}

/* layer_attn_softmax: for the one name of all kernels that do the same. */
static const char *group_label(const Lowering *l, NodeId id) {
    const Node *node = node_of(l, id);
    const char *name = value_name(l, id);
    Text text = {0};
    append_path(&text, l->module->scopes.data[node->scope].path);
    if (!name || strcmp(name, "out") != 0) {
        if (text.length)
            text_puts(&text, "_");
        append_path(&text, name ? name : op_info[node->op].name);
    }
    for (char *c = text.data; c && *c; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9')))
            *c = '_';
    char *label = arena_strdup(l->arena, text.length ? text.data : "kernel");
    text_free(&text);
    return label;
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

static BufferId node_buffer(Lowering *l, NodeId id) {
    const Node *node = node_of(l, id);
    const Placement *placement = &node->placement;
    const char *name = value_name(l, id);
    return argument(l, (KernelOperand){.kind = OPERAND_NODE, .id = id},
                    (Buffer){.dtype = node->type.dtype,
                             .elements = type_elements(l->module, node->type),
                             .name = name ? name : op_info[node->op].name,
                             .shape = shape_text(l, placement->order, placement->order_count)});
}

static BufferId state_buffer(Lowering *l, StateId id) {
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

static BufferId scratch_buffer(Lowering *l, DataType dtype, int64_t elements,
                               const char *name) {
    return new_argument(l, (KernelOperand){.kind = OPERAND_SCRATCH},
                        (Buffer){.dtype = dtype, .elements = elements, .name = name});
}

static BufferId root_buffer(Lowering *l, NodeId root) {
    const Node *node = node_of(l, root);
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

static Affine plus(Lowering *l, Affine a, Affine b, int64_t scale) {
    return affine_add(l->arena, a, b, scale);
}

static void place_axis(Lowering *l, AxisId axis, Affine position) {
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

/* Each axis of a type at the position of the nest that is open. */
static void natural_positions(const Lowering *l, Type type, int32_t *positions) {
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

/* Axes, slowest first, as the digits of one position in [0, total). */
static void place_linear(Lowering *l, const AxisId *axes, int count, Affine position) {
    int64_t total = axes_elements(l->module, axes, count), within = 1;
    for (int i = count - 1; i >= 0; i--) {
        int64_t size = axis_size(l, axes[i]);
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

static Affine view_address(Lowering *l, const View *view, Type type, const int32_t *positions) {
    Affine address = affine_constant(view->base);
    for (int i = 0; i < view->count; i++)
        address =
            plus(l, address, at_axis(l, type, positions, view->axes[i]), view->strides[i]);
    return address;
}

/* ---- evaluation ---------------------------------------------------------------------- */

static ValueId evaluate(Lowering *l, NodeId id, const int32_t *positions);

static ValueId map2(Lowering *l, Op op, DataType dtype, ValueId a, ValueId b) {
    return emit_map(&l->builder, op, dtype, (ValueId[]){a, b}, 2, NULL);
}

static ValueId i32_constant(Lowering *l, int64_t number) {
    return emit_constant(&l->builder, TYPE_I32, (double)number);
}

/* Whether a value, or what it is a view of, is in memory that this group does not write. */
static bool is_loaded(const Lowering *l, NodeId id) {
    while (op_is_view(node_of(l, id)->op) || node_of(l, id)->op == OP_EXPAND)
        id = node_of(l, id)->inputs[0];
    const Node *root = node_of(l, id);
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
            place = plus(l, at_axis(l, view->type, positions, attr->to[i]), place,
                         axis_size(l, attr->to[i]));
        return place;
    case OP_MERGE:
        for (int i = 0; i < attr->from_count; i++) {
            if (axis != attr->from[i])
                continue;
            int64_t within =
                axes_elements(l->module, attr->from + i + 1, attr->from_count - i - 1);
            return affine_of(l->arena,
                             emit_digit(&l->builder,
                                        at_axis(l, view->type, positions, attr->to[0]),
                                        axis_size(l, attr->to[0]), within, axis_size(l, axis)));
        }
        break;
    default:
        break;
    }
    return at_axis(l, view->type, positions, axis);
}

static ValueId evaluate_view(Lowering *l, const Node *node, const int32_t *positions) {
    Type operand = node_of(l, node->inputs[0])->type;
    int32_t places[MAX_AXES];
    for (int i = 0; i < operand.rank; i++)
        places[i] = position_id(l, through_view(l, node, positions, operand.axes[i]));
    return evaluate(l, node->inputs[0], places);
}

/* Positions of an operand all whose axes the result has. */
static ValueId evaluate_aligned(Lowering *l, NodeId operand, Type result,
                                const int32_t *positions) {
    Type type = node_of(l, operand)->type;
    int32_t places[MAX_AXES];
    for (int i = 0; i < type.rank; i++)
        places[i] = positions[position_of_axis(result, type.axes[i])];
    return evaluate(l, operand, places);
}

static ValueId evaluate_map(Lowering *l, NodeId id, const int32_t *positions) {
    const Node *node = node_of(l, id);
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
        ValueId here = map2(l, OP_EQ, TYPE_BOOL, index, i32_constant(l, i));
        ValueId part = evaluate_aligned(l, node->inputs[i], node->type, positions);
        value = emit_map(&l->builder, OP_WHERE, node->type.dtype,
                         (ValueId[]){here, part, value}, 3, NULL);
    }
    return value;
}

/* An index as a position on an axis.  An input's values are known to be below its bound; others
 * are held within the axis, so that no kernel touches foreign memory. */
static Affine dynamic_position(Lowering *l, NodeId index, ValueId value, AxisId axis) {
    while (op_is_view(node_of(l, index)->op) || node_of(l, index)->op == OP_EXPAND)
        index = node_of(l, index)->inputs[0];
    const Node *root = node_of(l, index);
    int64_t size = axis_size(l, axis);
    if (root->op != OP_INPUT || l->module->inputs.data[root->attr.integer].below > size) {
        value = map2(l, OP_MAXIMUM, TYPE_I32, value, i32_constant(l, 0));
        value = map2(l, OP_MINIMUM, TYPE_I32, value, i32_constant(l, size - 1));
    }
    return affine_of(l->arena, value);
}

static ValueId load_view(Lowering *l, NodeId id, const int32_t *positions) {
    View view;
    if (!view_of(l->function, id, &view))
        internal_error("node %d of %s is not a view of memory", id, l->function->name);
    return emit_load(&l->builder, root_buffer(l, view.root),
                     view_address(l, &view, node_of(l, id)->type, positions),
                     value_name(l, id));
}

static ValueId evaluate_gather(Lowering *l, const Node *node, const int32_t *positions) {
    NodeId table = node->inputs[0], index = node->inputs[1];
    Type type = node_of(l, table)->type;
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

/* A scatter_add that sums nothing: each element has one value, in the row where its index says.
 */
static ValueId evaluate_placement(Lowering *l, const Node *node, const int32_t *positions) {
    INTERNAL_CHECK(node->attr.from_count == 0);
    ValueId own =
        emit_index(&l->builder, at_axis(l, node->type, positions, node->attr.to[0]), NULL);
    ValueId index = evaluate_aligned(l, node->inputs[0], node->type, positions);
    ValueId here = map2(l, OP_EQ, TYPE_BOOL, own, index);
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
            index = plus(l, place, index, axis_size(l, axis));
        }
    }
    ValueId counters[3] = {runtime_scalar(l, "seed"), runtime_scalar(l, "step"),
                           has_sample ? runtime_scalar(l, "sample0")
                                      : emit_constant(&l->builder, TYPE_F64, 0)};
    return emit_random(&l->builder, node->attr.integer, counters, sample, index);
}

static ValueId compute(Lowering *l, NodeId id, const int32_t *positions) {
    const Node *node = node_of(l, id);
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
    switch (node->op) {
    case OP_EXP:
    case OP_LOG:
    case OP_SQRT:
    case OP_TANH:
    case OP_SIGMOID:
    case OP_ERF:
    case OP_SIN:
    case OP_COS:
    case OP_DIV:
    case OP_RANDOM:
    case OP_GATHER:
        return node->type.dtype == TYPE_F32;
    default:
        return false;
    }
}

/* A value that an earlier sweep over the row has made, read where it was kept; -1: none. */
static ValueId recall(Lowering *l, NodeInfo *info, const int32_t *positions) {
    const Node *node = node_of(l, info->node);
    const char *name = value_name(l, info->node);
    if (l->sweep < 0 || !is_natural(l, node->type, positions))
        return -1;
    if (info->in_memory) {
        View view = own_view(l->function, info->node);
        return emit_load(&l->builder, node_buffer(l, info->node),
                         view_address(l, &view, node->type, positions), name);
    }
    if (!l->keeps || info->in_sweep < 0 || is_open(&l->builder, info->in_sweep) ||
        !is_dear(node))
        return -1;
    if (info->kept < 0)
        info->kept =
            keep_value(&l->builder, info->in_sweep, affine_of(l->arena, info->sweep), l->inner);
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

/* The value of a node with its axes (in its type's order) at the given positions. */
static ValueId evaluate(Lowering *l, NodeId id, const int32_t *positions) {
    const Node *node = node_of(l, id);
    if (node->type.dtype == TYPE_F64 && node->op != OP_CONST)
        return scalar_argument(l, id);
    NodeInfo *info = info_of(l, id);
    ValueId value = find_evaluated(l, info, node->type.rank, positions);
    if (value >= 0)
        return value;
    View view;
    if (is_loaded(l, id) && view_of(l->function, id, &view))
        value = load_view(l, id, positions);
    else
        value = recall(l, info, positions);
    if (value < 0)
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

static ValueId evaluate_here(Lowering *l, NodeId id) {
    int32_t positions[MAX_AXES];
    natural_positions(l, node_of(l, id)->type, positions);
    return evaluate(l, id, positions);
}

/* ---- stores -------------------------------------------------------------------------- */

/* The depth of a value in the group's reductions: the number of the sweep that can compute it.
 */
static int level_of(Lowering *l, NodeId id) {
    const Node *node = node_of(l, id);
    NodeInfo *info = info_of(l, id);
    if (info->level >= 0)
        return info->level;
    int level = 0;
    if (!is_loaded(l, id))
        for (int i = 0; i < node->input_count; i++) {
            int below = level_of(l, node->inputs[i]);
            level = below > level ? below : level;
        }
    bool reduces = node->op == OP_SUM || node->op == OP_MAX;
    info = info_of(l, id);
    info->level = level + (reduces && node->placement.group == l->group_number);
    return info->level;
}

static bool has_inner(const Lowering *l, Type type) {
    for (int i = 0; i < l->group->inner_count; i++)
        if (type_has(type, l->group->inner[i]))
            return true;
    return false;
}

static void add_store(Lowering *l, NodeId node, View view, BufferId buffer, bool add) {
    Store store = {.node = node,
                   .view = view,
                   .buffer = buffer,
                   .add = add,
                   .level = level_of(l, node),
                   .inner = has_inner(l, node_of(l, node)->type)};
    array_push(&l->stores, store);
}

/* Stores of a computed value in memory of its own order; a stack part by part. */
static void add_stores(Lowering *l, NodeId id, BufferId buffer, bool add) {
    const Node *node = node_of(l, id);
    View whole = own_view(l->function, id);
    if (node->op != OP_STACK) {
        add_store(l, id, whole, buffer, add);
        return;
    }
    for (int part = 0; part < node->input_count; part++) {
        View view = {.base = part * view_stride(&whole, node->attr.to[0])};
        for (int i = 0; i < whole.count; i++)
            if (whole.axes[i] != node->attr.to[0]) {
                view.axes[view.count] = whole.axes[i];
                view.strides[view.count++] = whole.strides[i];
            }
        add_store(l, node->inputs[part], view, buffer, add);
    }
}

static void collect(Lowering *l, const GroupIndex *index) {
    int g = l->group_number;
    for (int32_t i = index->member_begin[g]; i < index->member_begin[g + 1]; i++) {
        const Node *node = node_of(l, index->members[i]);
        if (node->op == OP_SUM || node->op == OP_MAX)
            array_push(&l->reductions, index->members[i]);
        if (node->placement.stored)
            add_stores(l, index->members[i], node_buffer(l, index->members[i]), false);
    }
    for (int32_t i = index->write_begin[g]; i < index->write_begin[g + 1]; i++) {
        const Write *write = &l->function->writes.data[index->writes[i]];
        add_stores(l, write_source(l->function, write->value), state_buffer(l, write->state),
                   write->add);
    }
}

/* Evaluates and stores what is at a level, has (or has not) the inner axes; level -1: all. */
static void emit_stores(Lowering *l, int level, bool inner) {
    int64_t count = l->stores.count;
    ValueId *values = arena_alloc_array(l->arena, (size_t)count, sizeof *values);
    Affine *places = arena_alloc_array(l->arena, (size_t)count, sizeof *places);
    for (int64_t i = 0; i < count; i++) {
        const Store *store = &l->stores.data[i];
        values[i] = -1;
        if ((level >= 0 && store->level != level) || store->inner != inner)
            continue;
        const Node *node = node_of(l, store->node);
        int32_t positions[MAX_AXES];
        natural_positions(l, node->type, positions);
        values[i] = evaluate(l, store->node, positions);
        places[i] = view_address(l, &store->view, node->type, positions);
        if (store->add) {
            ValueId old = emit_load(&l->builder, store->buffer, places[i], NULL);
            values[i] = map2(l, OP_ADD, node->type.dtype, old, values[i]);
        }
    }
    for (int64_t i = 0; i < count; i++)
        if (values[i] >= 0)
            emit_store(&l->builder, l->stores.data[i].buffer, places[i], values[i]);
}

static bool has_stores(const Lowering *l, int level, bool inner) {
    for (int64_t i = 0; i < l->stores.count; i++)
        if (l->stores.data[i].level == level && l->stores.data[i].inner == inner)
            return true;
    return false;
}

/* ---- nests --------------------------------------------------------------------------- */

/* Opens a nest over axes, slowest first, and then over `more` loops; what has one position
 * needs no loop.  False when that leaves none.  `indices` gets the values of `more`, or -1. */
static bool open_nest(Lowering *l, LoopKind kind, const AxisId *axes, int count,
                      const LoopShape *more, int more_count, ValueId *indices) {
    LoopShape shapes[2 * MAX_AXES];
    ValueId opened[2 * MAX_AXES];
    int loops = 0;
    for (int i = 0; i < count; i++)
        if (axis_size(l, axes[i]) > 1)
            shapes[loops++] =
                (LoopShape){axis_size(l, axes[i]), -1, 0, l->module->axes.data[axes[i]].name};
    for (int i = 0; i < more_count; i++)
        if (more[i].extent > 1)
            shapes[loops++] = more[i];
    if (loops)
        open_loops(&l->builder, kind, shapes, loops, opened);
    int loop = 0;
    for (int i = 0; i < count; i++)
        place_axis(l, axes[i],
                   axis_size(l, axes[i]) > 1 ? affine_of(l->arena, opened[loop++])
                                             : affine_constant(0));
    for (int i = 0; i < more_count; i++)
        indices[i] = more[i].extent > 1 ? opened[loop++] : -1;
    return loops > 0;
}

static bool open_rows(Lowering *l) {
    return open_nest(l, LOOP_PARALLEL, l->group->rows, l->group->row_count, NULL, 0, NULL);
}

static void close_nest(Lowering *l, bool opened) {
    if (opened)
        close_loops(&l->builder);
}

/* A loop of lanes over one of `blocks` blocks of `total` positions; its position in the whole.
 */
typedef struct Lanes {
    ValueId loop;
    Affine position;
} Lanes;
static Lanes open_lanes(Lowering *l, int64_t total, int64_t block, ValueId block_loop,
                        const char *name) {
    bool tiled = block_loop >= 0;
    LoopShape shape = {tiled ? block : total, block_loop, tiled ? total : 0, name};
    Lanes lanes;
    open_loops(&l->builder, LOOP_LANES, &shape, 1, &lanes.loop);
    lanes.position = affine_of(l->arena, lanes.loop);
    if (tiled)
        lanes.position = plus(l, lanes.position, affine_of(l->arena, block_loop), block);
    return lanes;
}

static int64_t blocks_of(int64_t total, int64_t block) {
    return (total + block - 1) / block;
}

/* ---- flat ----------------------------------------------------------------------------------
 *
 */

static void lower_flat(Lowering *l) {
    const Group *group = l->group;
    int last = group->row_count - 1;
    while (last >= 0 && axis_size(l, group->rows[last]) == 1)
        last--;
    int outer = last < 0 ? 0 : last;
    bool parallel = open_nest(l, LOOP_PARALLEL, group->rows, outer, NULL, 0, NULL);
    bool lanes =
        open_nest(l, LOOP_LANES, group->rows + outer, group->row_count - outer, NULL, 0, NULL);
    emit_stores(l, -1, false);
    close_nest(l, lanes);
    close_nest(l, parallel);
}

/* ---- rows ----------------------------------------------------------------------------------
 *
 */

static const char *inner_name(const Lowering *l) {
    return l->group->inner_count == 1 ? l->module->axes.data[l->group->inner[0]].name : "inner";
}

static bool sweep_has_reductions(Lowering *l, int level) {
    for (int64_t i = 0; i < l->reductions.count; i++)
        if (level_of(l, l->reductions.data[i]) == level + 1)
            return true;
    return false;
}

/* What a sweep does in its loop: terms of its level's reductions and stores.  `results` gets
 * the reductions, by their place in l->reductions. */
static void emit_sweep(Lowering *l, int level, ValueId *results) {
    for (int64_t i = 0; i < l->reductions.count; i++) {
        NodeId id = l->reductions.data[i];
        results[i] = -1;
        if (level_of(l, id) != level + 1)
            continue;
        ValueId term = evaluate_here(l, node_of(l, id)->inputs[0]);
        results[i] = emit_reduce(&l->builder, node_of(l, id)->op, term, value_name(l, id));
    }
    emit_stores(l, level, true);
}

/* Later sweeps read what this one has stored. */
static void note_stored(Lowering *l, int level) {
    for (int64_t i = 0; i < l->stores.count; i++) {
        const Store *store = &l->stores.data[i];
        const Node *node = node_of(l, store->node);
        if (store->level == level && store->inner && node->placement.stored &&
            node->placement.group == l->group_number)
            info_of(l, store->node)->in_memory = true;
    }
}

static void lower_short_rows(Lowering *l, int levels) {
    const Group *group = l->group;
    ValueId *results =
        arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *results);
    bool nest = open_rows(l);
    l->keeps = l->inner <= ROW_BUFFER;
    for (int level = 0; level <= levels; level++) {
        if (!sweep_has_reductions(l, level) && !has_stores(l, level, true))
            continue;
        Lanes lanes = open_lanes(l, l->inner, 0, -1, inner_name(l));
        l->sweep = lanes.loop;
        place_linear(l, group->inner, group->inner_count, lanes.position);
        emit_sweep(l, level, results);
        close_loops(&l->builder);
        l->sweep = -1;
        note_stored(l, level);
        for (int64_t i = 0; i < l->reductions.count; i++)
            if (results[i] >= 0)
                info_of(l, l->reductions.data[i])->reduced = results[i];
    }
    emit_stores(l, -1, false);
    close_nest(l, nest);
}

/* The dense address of the row that is open, in an array of one element a row. */
static Affine row_number(Lowering *l) {
    Affine number = affine_constant(0);
    for (int i = 0; i < l->group->row_count; i++)
        number = plus(l, l->positions.data[axis_place(l, l->group->rows[i])], number,
                      axis_size(l, l->group->rows[i]));
    return number;
}

/* In a nest over rows: reads the results of all reductions that earlier nests have made. */
static void load_results(Lowering *l) {
    for (int64_t i = 0; i < l->reductions.count; i++) {
        NodeInfo *info = info_of(l, l->reductions.data[i]);
        info->reduced = info->results < 0 ? -1
                                          : emit_load(&l->builder, info->results, row_number(l),
                                                      value_name(l, info->node));
    }
}

/* Reduces the partial results of a level's reductions, `blocks` for each row. */
static void combine_partials(Lowering *l, int level, const BufferId *partials, int64_t blocks) {
    bool nest = open_rows(l);
    for (int64_t i = 0; i < l->reductions.count; i++) {
        NodeId id = l->reductions.data[i];
        if (level_of(l, id) != level + 1)
            continue;
        DataType dtype = node_of(l, id)->type.dtype;
        Affine row = row_number(l);
        Lanes lanes = open_lanes(l, blocks, 0, -1, "block");
        ValueId term =
            emit_load(&l->builder, partials[i], plus(l, lanes.position, row, blocks), NULL);
        ValueId result = emit_reduce(&l->builder, node_of(l, id)->op, term, value_name(l, id));
        close_loops(&l->builder);
        NodeInfo *info = info_of(l, id);
        info->results = scratch_buffer(l, dtype, l->rows, "result");
        emit_store(&l->builder, info->results, row, result);
    }
    close_nest(l, nest);
}

static void sweep_blocks(Lowering *l, int level, int64_t blocks) {
    const Group *group = l->group;
    ValueId *results =
        arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *results);
    BufferId *partials =
        arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *partials);
    LoopShape block = {blocks, -1, 0, "block"};
    ValueId block_loop;
    bool nest =
        open_nest(l, LOOP_PARALLEL, group->rows, group->row_count, &block, 1, &block_loop);
    load_results(l);
    Affine partial = plus(l, affine_of(l->arena, block_loop), row_number(l), blocks);
    Lanes lanes = open_lanes(l, l->inner, REDUCE_BLOCK, block_loop, inner_name(l));
    place_linear(l, group->inner, group->inner_count, lanes.position);
    emit_sweep(l, level, results);
    close_loops(&l->builder);
    for (int64_t i = 0; i < l->reductions.count; i++) {
        if (results[i] < 0)
            continue;
        DataType dtype = node_of(l, l->reductions.data[i])->type.dtype;
        partials[i] = scratch_buffer(l, dtype, l->rows * blocks, "partial");
        emit_store(&l->builder, partials[i], partial, results[i]);
    }
    close_nest(l, nest);
    if (sweep_has_reductions(l, level))
        combine_partials(l, level, partials, blocks);
}

/* Every sweep is a nest of its own, over rows and blocks of a row. */
static void lower_long_rows(Lowering *l, int levels) {
    int64_t blocks = blocks_of(l->inner, REDUCE_BLOCK);
    for (int level = 0; level <= levels; level++)
        if (sweep_has_reductions(l, level) || has_stores(l, level, true))
            sweep_blocks(l, level, blocks);
    bool nest = open_rows(l);
    load_results(l);
    emit_stores(l, -1, false);
    close_nest(l, nest);
}

static void lower_rows(Lowering *l) {
    int levels = 0;
    for (int64_t i = 0; i < l->reductions.count; i++) {
        int level = level_of(l, l->reductions.data[i]);
        levels = level > levels ? level : levels;
    }
    bool cut = l->inner > REDUCE_BLOCK &&
               (l->rows < FEW_ROWS || l->inner > (int64_t)MOST_BLOCKS * REDUCE_BLOCK);
    if (cut)
        lower_long_rows(l, levels);
    else
        lower_short_rows(l, levels);
}

/* ---- columns ------------------------------------------------------------------------- */

/* A worker of a column or scatter kernel owns a block of the fastest kept axis, at one position
 * of the others. */
typedef struct Columns {
    int outer_count; /* the other axes */
    AxisId outer[MAX_AXES], last;
    int64_t width, block; /* positions of the last axis, and of a block of it */
    ValueId block_loop;   /* -1: one block */
} Columns;

static Columns columns_of(const Lowering *l, const AxisId *kept, int count, int64_t block) {
    Columns columns = {.width = 1, .block = 1, .block_loop = -1};
    int last = count - 1;
    while (last > 0 && axis_size(l, kept[last]) == 1)
        last--;
    for (int i = 0; i < count; i++)
        if (i != last)
            columns.outer[columns.outer_count++] = kept[i];
    if (last >= 0) {
        columns.last = kept[last];
        columns.width = axis_size(l, columns.last);
        columns.block = columns.width < block ? columns.width : block;
    } else {
        columns.width = 0; /* no kept axis */
    }
    return columns;
}

static LoopShape block_shape(const Columns *columns) {
    return (LoopShape){columns->width ? blocks_of(columns->width, columns->block) : 1, -1, 0,
                       "block"};
}

static Lanes open_columns(Lowering *l, const Columns *columns) {
    int64_t width = columns->width ? columns->width : 1;
    Lanes lanes = open_lanes(l, width, columns->block, columns->block_loop,
                             columns->width ? l->module->axes.data[columns->last].name : "one");
    if (columns->width)
        place_axis(l, columns->last, lanes.position);
    return lanes;
}

static ValueId start_of(Lowering *l, const Node *reduction) {
    double sum = 0, max = reduction->type.dtype == TYPE_I32 ? INT32_MIN : -INFINITY;
    return emit_constant(&l->builder, reduction->type.dtype,
                         reduction->op == OP_SUM ? sum : max);
}

/* A local array of a block's columns for each reduction, at its start. */
static BufferId *start_columns(Lowering *l, const Columns *columns, const char *name) {
    BufferId *sums = arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *sums);
    for (int64_t i = 0; i < l->reductions.count; i++) {
        sums[i] = build_buffer(&l->builder,
                               (Buffer){.dtype = node_of(l, l->reductions.data[i])->type.dtype,
                                        .elements = columns->block,
                                        .argument = -1,
                                        .name = name});
        emit_local(&l->builder, sums[i]);
    }
    return sums;
}

static void reset_columns(Lowering *l, const Columns *columns, const BufferId *sums) {
    Lanes lanes = open_columns(l, columns);
    for (int64_t i = 0; i < l->reductions.count; i++)
        emit_store(&l->builder, sums[i], affine_of(l->arena, lanes.loop),
                   start_of(l, node_of(l, l->reductions.data[i])));
    close_loops(&l->builder);
}

/* sums[lane] takes in a term, in the lanes loop that is open. */
static void take_in(Lowering *l, int64_t reduction, BufferId sum, ValueId loop, ValueId term) {
    const Node *node = node_of(l, l->reductions.data[reduction]);
    Affine lane = affine_of(l->arena, loop);
    ValueId old = emit_load(&l->builder, sum, lane, NULL);
    Op op = node->op == OP_SUM ? OP_ADD : OP_MAXIMUM;
    emit_store(&l->builder, sum, lane, map2(l, op, node->type.dtype, old, term));
}

/* The chunks of a column reduction: a function of the summed positions alone. */
typedef struct Chunks {
    int64_t size, count;
    ValueId loop; /* -1: one chunk */
} Chunks;

static Chunks chunks_of(int64_t positions) {
    int64_t size = blocks_of(positions, MAX_CHUNKS);
    size = size < MIN_CHUNK ? MIN_CHUNK : size;
    return (Chunks){.size = size, .count = blocks_of(positions, size), .loop = -1};
}

/* Sums the rows of a chunk, in order, into fresh `sums`. */
static void sum_chunk(Lowering *l, const Columns *columns, const Chunks *chunks,
                      const BufferId *sums) {
    const Group *group = l->group;
    bool tiled = chunks->loop >= 0;
    reset_columns(l, columns, sums);
    LoopShape shape = {tiled ? chunks->size : l->inner, chunks->loop, tiled ? l->inner : 0,
                       inner_name(l)};
    ValueId row;
    open_loops(&l->builder, LOOP_SERIAL, &shape, 1, &row);
    Affine position = affine_of(l->arena, row);
    if (tiled)
        position = plus(l, position, affine_of(l->arena, chunks->loop), chunks->size);
    place_linear(l, group->inner, group->inner_count, position);
    Lanes lanes = open_columns(l, columns);
    for (int64_t i = 0; i < l->reductions.count; i++)
        take_in(l, i, sums[i], lanes.loop,
                evaluate_here(l, node_of(l, l->reductions.data[i])->inputs[0]));
    close_loops(&l->builder);
    close_loops(&l->builder);
}

/* What is computed from the sums, column by column. */
static void finish_columns(Lowering *l, const Columns *columns, const BufferId *sums) {
    Lanes lanes = open_columns(l, columns);
    for (int64_t i = 0; i < l->reductions.count; i++)
        info_of(l, l->reductions.data[i])->reduced =
            emit_load(&l->builder, sums[i], affine_of(l->arena, lanes.loop),
                      value_name(l, l->reductions.data[i]));
    emit_stores(l, -1, false);
    close_loops(&l->builder);
}

static void open_chunks(Lowering *l, Chunks *chunks) {
    LoopShape shape = {chunks->count, -1, 0, "chunk"};
    open_loops(&l->builder, LOOP_SERIAL, &shape, 1, &chunks->loop);
}

/* One nest: a worker sums all chunks of its columns. */
static void lower_wide_columns(Lowering *l, Columns columns, Chunks chunks) {
    LoopShape block = block_shape(&columns);
    bool nest = open_nest(l, LOOP_PARALLEL, columns.outer, columns.outer_count, &block, 1,
                          &columns.block_loop);
    BufferId *sums = start_columns(l, &columns, "sum"), *totals = sums;
    if (chunks.count > 1) {
        totals = start_columns(l, &columns, "total");
        reset_columns(l, &columns, totals);
        open_chunks(l, &chunks);
    }
    sum_chunk(l, &columns, &chunks, sums);
    if (chunks.count > 1) {
        Lanes lanes = open_columns(l, &columns);
        for (int64_t i = 0; i < l->reductions.count; i++)
            take_in(l, i, totals[i], lanes.loop,
                    emit_load(&l->builder, sums[i], affine_of(l->arena, lanes.loop), NULL));
        close_loops(&l->builder);
        close_loops(&l->builder);
    }
    finish_columns(l, &columns, totals);
    close_nest(l, nest);
}

/* A nest over chunks and columns leaves partial sums, [chunk][column]; another combines them.
 */
static void lower_tall_columns(Lowering *l, Columns columns, Chunks chunks) {
    BufferId *partials =
        arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *partials);
    LoopShape more[2] = {{chunks.count, -1, 0, "chunk"}, block_shape(&columns)};
    ValueId loops[2];
    bool nest = open_nest(l, LOOP_PARALLEL, columns.outer, columns.outer_count, more, 2, loops);
    Chunks parallel = chunks;
    parallel.loop = loops[0];
    columns.block_loop = loops[1];
    BufferId *sums = start_columns(l, &columns, "sum");
    sum_chunk(l, &columns, &parallel, sums);
    Lanes lanes = open_columns(l, &columns);
    Affine partial = plus(l, row_number(l), affine_of(l->arena, parallel.loop), l->rows);
    for (int64_t i = 0; i < l->reductions.count; i++) {
        ValueId sum = emit_load(&l->builder, sums[i], affine_of(l->arena, lanes.loop), NULL);
        partials[i] = scratch_buffer(l, node_of(l, l->reductions.data[i])->type.dtype,
                                     l->rows * chunks.count, "partial");
        emit_store(&l->builder, partials[i], partial, sum);
    }
    close_loops(&l->builder);
    close_nest(l, nest);

    nest = open_nest(l, LOOP_PARALLEL, columns.outer, columns.outer_count, &more[1], 1,
                     &columns.block_loop);
    BufferId *totals = start_columns(l, &columns, "total");
    reset_columns(l, &columns, totals);
    open_chunks(l, &chunks);
    lanes = open_columns(l, &columns);
    partial = plus(l, row_number(l), affine_of(l->arena, chunks.loop), l->rows);
    for (int64_t i = 0; i < l->reductions.count; i++)
        take_in(l, i, totals[i], lanes.loop,
                emit_load(&l->builder, partials[i], partial, NULL));
    close_loops(&l->builder);
    close_loops(&l->builder);
    finish_columns(l, &columns, totals);
    close_nest(l, nest);
}

static void lower_columns(Lowering *l) {
    Columns columns = columns_of(l, l->group->rows, l->group->row_count, COLUMN_BLOCK);
    Chunks chunks = chunks_of(l->inner);
    int64_t workers = block_shape(&columns).extent *
                      axes_elements(l->module, columns.outer, columns.outer_count);
    if (chunks.count == 1 || workers >= MAX_CHUNKS)
        lower_wide_columns(l, columns, chunks);
    else
        lower_tall_columns(l, columns, chunks);
}

/* ---- scatter ------------------------------------------------------------------------- */

/* A loop over all of a buffer, in memory order. */
static Affine open_memory(Lowering *l, int64_t elements) {
    LoopShape shape = {elements, -1, 0, "element"};
    ValueId loop;
    open_loops(&l->builder, LOOP_LANES, &shape, 1, &loop);
    return affine_of(l->arena, loop);
}

static void zero_memory(Lowering *l, const Store *store) {
    Type type = node_of(l, store->node)->type;
    Affine element = open_memory(l, type_elements(l->module, type));
    emit_store(&l->builder, store->buffer, element, emit_constant(&l->builder, type.dtype, 0));
    close_loops(&l->builder);
}

/* For every position of the index, in order: the row that it names takes in the value. */
static void add_rows(Lowering *l, const Store *store) {
    const Group *group = l->group;
    const Node *node = node_of(l, store->node);
    AxisId to = node->attr.to[0], kept[MAX_AXES];
    int kept_count = 0;
    for (int i = 0; i < group->row_count; i++)
        if (group->rows[i] != to)
            kept[kept_count++] = group->rows[i];
    Columns columns = columns_of(l, kept, kept_count, SCATTER_BLOCK);
    LoopShape block = block_shape(&columns);
    bool nest = open_nest(l, LOOP_PARALLEL, columns.outer, columns.outer_count, &block, 1,
                          &columns.block_loop);
    bool walk = open_nest(l, LOOP_SERIAL, group->inner, group->inner_count, NULL, 0, NULL);
    Lanes lanes = open_columns(l, &columns);
    (void)lanes;
    ValueId index = evaluate_here(l, node->inputs[0]);
    Affine row = dynamic_position(l, node->inputs[0], index, to);
    Affine place = affine_constant(store->view.base);
    for (int i = 0; i < store->view.count; i++) {
        AxisId axis = store->view.axes[i];
        Affine at = axis == to ? row : l->positions.data[axis_place(l, axis)];
        place = plus(l, place, at, store->view.strides[i]);
    }
    ValueId value = evaluate_here(l, node->inputs[1]);
    l->builder.kernel->buffers.data[store->buffer].writes = true; /* its loads stay here */
    ValueId old = emit_load(&l->builder, store->buffer, place, NULL);
    emit_store(&l->builder, store->buffer, place,
               map2(l, OP_ADD, node->type.dtype, old, value));
    close_loops(&l->builder);
    close_nest(l, walk);
    close_nest(l, nest);
}

/* Where the result goes to several places, the first is made and the others take it from there.
 */
static void copy_memory(Lowering *l, const Store *from, const Store *to) {
    Type type = node_of(l, to->node)->type;
    Affine element = open_memory(l, type_elements(l->module, type));
    ValueId value = emit_load(&l->builder, from->buffer, element, NULL);
    if (to->add)
        value = map2(l, OP_ADD, type.dtype, emit_load(&l->builder, to->buffer, element, NULL),
                     value);
    emit_store(&l->builder, to->buffer, element, value);
    close_loops(&l->builder);
}

static void lower_scatter(Lowering *l) {
    INTERNAL_CHECK(l->stores.count >= 1);
    const Store *first = &l->stores.data[0];
    if (!first->add)
        zero_memory(l, first);
    add_rows(l, first);
    for (int64_t i = 1; i < l->stores.count; i++)
        copy_memory(l, first, &l->stores.data[i]);
}

/* ---- groups -------------------------------------------------------------------------- */

GroupIndex group_index(const Function *function, Arena *arena) {
    int64_t groups = function->groups.count;
    GroupIndex index;
    index.member_begin = arena_alloc_array(arena, (size_t)groups + 2, sizeof(int32_t));
    index.write_begin = arena_alloc_array(arena, (size_t)groups + 2, sizeof(int32_t));
    index.members = arena_alloc_array(arena, (size_t)function->nodes.count, sizeof(NodeId));
    index.writes = arena_alloc_array(arena, (size_t)function->writes.count, sizeof(int32_t));
    int32_t *write_group =
        arena_alloc_array(arena, (size_t)function->writes.count, sizeof(int32_t));
    for (NodeId id = 0; id < function->nodes.count; id++)
        if (node_at(function, id)->placement.group >= 0)
            index.member_begin[node_at(function, id)->placement.group + 2]++;
    for (int32_t i = 0; i < function->writes.count; i++) {
        const Write *write = &function->writes.data[i];
        write_group[i] = -1;
        if (write->direct)
            write_group[i] =
                node_at(function, write_source(function, write->value))->placement.group;
        if (write_group[i] >= 0)
            index.write_begin[write_group[i] + 2]++;
    }
    for (int64_t g = 2; g < groups + 2; g++) {
        index.member_begin[g] += index.member_begin[g - 1];
        index.write_begin[g] += index.write_begin[g - 1];
    }
    /* begin[g + 1] is where the next member of g goes, and in the end where g ends. */
    for (NodeId id = 0; id < function->nodes.count; id++)
        if (node_at(function, id)->placement.group >= 0)
            index.members[index.member_begin[node_at(function, id)->placement.group + 1]++] =
                id;
    for (int32_t i = 0; i < function->writes.count; i++)
        if (write_group[i] >= 0)
            index.writes[index.write_begin[write_group[i] + 1]++] = i;
    return index;
}

/* The first member with a name of its own, else the last. */
static NodeId label_node(const Lowering *l, const GroupIndex *index) {
    int32_t begin = index->member_begin[l->group_number];
    int32_t end = index->member_begin[l->group_number + 1];
    INTERNAL_CHECK(begin < end);
    for (int32_t i = begin; i < end; i++)
        if (value_name(l, index->members[i]))
            return index->members[i];
    return index->members[end - 1];
}

static void lower_kind(Lowering *l) {
    switch (l->group->kind) {
    case GROUP_FLAT:
        lower_flat(l);
        return;
    case GROUP_ROW:
        lower_rows(l);
        return;
    case GROUP_COLUMN:
        lower_columns(l);
        return;
    case GROUP_SCATTER:
        lower_scatter(l);
        return;
    case GROUP_PRODUCT:
        break;
    }
    internal_error("a product is no kernel");
}

LoweredGroup lower_group(const Function *function, const GroupIndex *index, int group,
                         Arena *arena) {
    Lowering l = {.function = function,
                  .module = function->module,
                  .group = &function->groups.data[group],
                  .group_number = group,
                  .arena = arena,
                  .sweep = -1};
    l.inner = axes_elements(l.module, l.group->inner, l.group->inner_count);
    l.rows = axes_elements(l.module, l.group->rows, l.group->row_count);
    Kernel *kernel = kernel_new(arena);
    l.builder = kernel_builder(kernel);
    NodeId labelled = label_node(&l, index);
    kernel->label = group_label(&l, labelled);
    collect(&l, index);
    lower_kind(&l);
    kernel_builder_free(&l.builder);
    kernel_simplify(kernel);
    const char *fault = kernel_verify(kernel);
    if (fault)
        internal_error("kernel %s: %s\n%s", kernel->label, fault, kernel_text(kernel));
    kernel->scalar_count = (int)l.scalars.count;
    LoweredGroup lowered = {.kernel = kernel,
                            .label_node = labelled,
                            .operand_count = (int)l.operands.count,
                            .scalar_count = (int)l.scalars.count};
    lowered.operands =
        arena_alloc_array(arena, (size_t)l.operands.count, sizeof *lowered.operands);
    lowered.scalars = arena_alloc_array(arena, (size_t)l.scalars.count, sizeof(NodeId));
    for (int i = 0; i < lowered.operand_count; i++) {
        const Buffer *buffer = &kernel->buffers.data[l.operand_buffers.data[i]];
        lowered.operands[i] = l.operands.data[i];
        lowered.operands[i].reads = buffer->reads;
        lowered.operands[i].writes = buffer->writes;
    }
    if (l.scalars.count)
        memcpy(lowered.scalars, l.scalars.data, (size_t)l.scalars.count * sizeof(NodeId));
    array_free(&l.operands);
    array_free(&l.operand_buffers);
    array_free(&l.scalars);
    array_free(&l.positions);
    array_free(&l.stores);
    array_free(&l.reductions);
    return lowered;
}
