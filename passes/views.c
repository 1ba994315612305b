/* passes/views.c: where the elements of a value are.
 *
 * A tensor is a set of named axes, so that renaming, splitting, merging and picking only change
 * the strides with which one walks through the memory of some other value.  What a reader (a
 * kernel, a product) needs is the composition of those steps. */
#include "passes/passes.h"

static int64_t axis_size(const Function *function, AxisId axis) {
    return function->module->axes.data[axis].size;
}

/* Strides of values too large to be stored stay at the largest number. */
static int64_t times(int64_t stride, int64_t size) {
    int64_t product;
    return __builtin_mul_overflow(stride, size, &product) ? INT64_MAX : product;
}

static View dense_view(const Module *module, const AxisId *order, int count) {
    View view = {.root = -1, .count = count};
    int64_t stride = 1;
    for (int i = count - 1; i >= 0; i--) {
        view.axes[i] = order[i];
        view.strides[i] = stride;
        stride = times(stride, module->axes.data[order[i]].size);
    }
    return view;
}

View own_view(const Function *function, NodeId node) {
    const Placement *placement = &node_at(function, node)->placement;
    INTERNAL_CHECK(placement->order_count >= 0);
    View view = dense_view(function->module, placement->order, placement->order_count);
    view.root = node;
    return view;
}

View state_view(const Module *module, StateId state) {
    const State *found = &module->states.data[state];
    INTERNAL_CHECK(found->order_count >= 0);
    return dense_view(module, found->order, found->order_count);
}

static int view_position(const View *view, AxisId axis) {
    for (int i = 0; i < view->count; i++)
        if (view->axes[i] == axis)
            return i;
    return -1;
}

int64_t view_stride(const View *view, AxisId axis) {
    int position = view_position(view, axis);
    return position < 0 ? 0 : view->strides[position];
}

static void view_add(View *view, AxisId axis, int64_t stride) {
    view->axes[view->count] = axis;
    view->strides[view->count++] = stride;
}

static void view_remove(View *view, AxisId axis) {
    int position = view_position(view, axis);
    if (position < 0)
        return;
    view->count--;
    for (int i = position; i < view->count; i++) {
        view->axes[i] = view->axes[i + 1];
        view->strides[i] = view->strides[i + 1];
    }
}

static void view_split(const Function *function, const Attr *attr, View *view) {
    if (view_position(view, attr->from[0]) < 0)
        return; /* broadcast: so are its parts */
    int64_t stride = view_stride(view, attr->from[0]);
    view_remove(view, attr->from[0]);
    for (int i = attr->to_count - 1; i >= 0; i--) {
        view_add(view, attr->to[i], stride);
        stride = times(stride, axis_size(function, attr->to[i]));
    }
}

/* One axis in the place of several needs them to be neighbours in memory; where an axis has
 * extent 1, its stride means nothing. */
static bool view_merge(const Function *function, const Attr *attr, View *view) {
    int64_t unit = 0,
            expected = 0; /* strides of the merged axis and of the next part to come */
    bool broadcast = false;
    for (int i = attr->from_count - 1; i >= 0; i--) {
        int64_t size = axis_size(function, attr->from[i]);
        int64_t stride = view_stride(view, attr->from[i]);
        view_remove(view, attr->from[i]);
        if (size == 1)
            continue;
        if (stride == 0 || broadcast) {
            if (stride || unit)
                return false;
            broadcast = true;
            continue;
        }
        if (unit && stride != expected)
            return false;
        unit = unit ? unit : stride;
        expected = times(stride, size);
    }
    if (!broadcast)
        view_add(view, attr->to[0], unit ? unit : 1);
    return true;
}

bool view_through(const Function *function, NodeId node, View *view) {
    const Attr *attr = &node_at(function, node)->attr;
    switch (node_at(function, node)->op) {
    case OP_RENAME: {
        int position = view_position(view, attr->from[0]);
        if (position >= 0)
            view->axes[position] = attr->to[0];
        return true;
    }
    case OP_SPLIT:
        view_split(function, attr, view);
        return true;
    case OP_MERGE:
        return view_merge(function, attr, view);
    case OP_PICK:
        view->base += times(view_stride(view, attr->from[0]), attr->integer);
        view_remove(view, attr->from[0]);
        return true;
    case OP_EXPAND:
        return true;
    default:
        return false;
    }
}

bool node_is_view(const Node *node) {
    return op_is_view(node->op) || node->op == OP_EXPAND;
}

bool node_can_be_stored(const Node *node) {
    return node->input_count > 0 && !node_is_view(node) &&
           (!node->on_host || node->op == OP_COPY);
}

bool view_of(const Function *function, NodeId node, View *view) {
    ARRAY(NodeId) path = {0}; /* the views above memory, outermost first */
    NodeId root = node;
    while (node_is_view(node_at(function, root))) {
        array_push(&path, root);
        root = node_at(function, root)->inputs[0];
    }
    const Node *memory = node_at(function, root);
    bool found = memory->op == OP_STATE || memory->op == OP_INPUT ||
                 (node_can_be_stored(memory) && memory->placement.stored);
    if (found)
        *view = own_view(function, root);
    for (int64_t i = path.count - 1; found && i >= 0; i--)
        found = view_through(function, path.data[i], view);
    array_free(&path);
    return found;
}

/* ---- products ----------------------------------------------------------------- */

/* A loop of a product, with its stride in each operand: 0 the first input, 1 the second, 2 the
 * result.  A *class* is the loops that run over the same operands: batch all three, M the first
 * and the result, N the second and the result, K the first and the second. */
typedef struct Loop {
    int64_t extent, stride[3];
} Loop;
typedef struct LoopClass {
    int count;
    Loop loops[MAX_AXES];
} LoopClass;
enum { CLASS_M, CLASS_N, CLASS_K, CLASS_BATCH, CLASS_COUNT };
/* The operand whose order a class follows. */
static const int leading_operand[CLASS_COUNT] = {2, 2, 0, 2};

/* Collects the axes, less those of extent 1, in the order of the leading operand's memory. */
static void class_add(LoopClass *class, int lead, Loop loop) {
    if (loop.extent == 1)
        return;
    int place = class->count++;
    for (; place > 0 && class->loops[place - 1].stride[lead] < loop.stride[lead]; place--)
        class->loops[place] = class->loops[place - 1];
    class->loops[place] = loop;
}

static bool loops_join(const Loop *outer, const Loop *inner) {
    for (int i = 0; i < 3; i++)
        if (outer->stride[i] != times(inner->stride[i], inner->extent))
            return false;
    return true;
}

/* Joins loops that are neighbours in every operand. */
static void class_merge(LoopClass *class) {
    for (int outer = 0; outer < class->count; outer++) {
        for (int inner = 0; inner < class->count; inner++) {
            if (inner == outer || !loops_join(&class->loops[outer], &class->loops[inner]))
                continue;
            class->loops[inner].extent =
                times(class->loops[inner].extent, class->loops[outer].extent);
            class->count--;
            for (int i = outer; i < class->count; i++)
                class->loops[i] = class->loops[i + 1];
            outer = -1; /* start over: the joined loop may join others */
            break;
        }
    }
}

static void classify_loops(const Function *function, const Node *dot,
                           const View *const views[3], LoopClass classes[CLASS_COUNT]) {
    Type a = node_at(function, dot->inputs[0])->type,
         b = node_at(function, dot->inputs[1])->type;
    for (int i = 0; i < a.rank + b.rank; i++) {
        AxisId axis = i < a.rank ? a.axes[i] : b.axes[i - a.rank];
        if (i >= a.rank && type_has(a, axis))
            continue;
        Loop loop = {.extent = axis_size(function, axis)};
        for (int j = 0; j < 3; j++)
            loop.stride[j] = view_stride(views[j], axis);
        int class = !type_has(dot->type, axis) ? CLASS_K
                    : !type_has(b, axis)       ? CLASS_M
                    : !type_has(a, axis)       ? CLASS_N
                                               : CLASS_BATCH;
        class_add(&classes[class], leading_operand[class], loop);
    }
    for (int class = 0; class < CLASS_COUNT; class ++)
        class_merge(&classes[class]);
}

/* May this loop be one of the three that a matrix product runs?  A broadcast one may not: its
 * stride is 0. */
static bool may_be_main(const Loop *loop, int class) {
    static const int operands[3][2] = {{0, 2}, {1, 2}, {0, 1}};
    return loop->stride[operands[class][0]] != 0 && loop->stride[operands[class][1]] != 0;
}

/* Is the matrix of an operand, whose two loops are given (NULL: extent 1), without gaps in one
 * of its directions? */
static bool has_unit_stride(const Loop *x, const Loop *y, int operand) {
    return !x || !y || x->stride[operand] == 1 || y->stride[operand] == 1;
}

/* The loops to try for a class: all that may be main, or just "none" (NULL). */
static int main_choices(LoopClass *class, int which, Loop *choices[MAX_AXES]) {
    int count = 0;
    for (int i = 0; i < class->count; i++)
        if (may_be_main(&class->loops[i], which))
            choices[count++] = &class->loops[i];
    if (count == 0)
        choices[count++] = NULL;
    return count;
}

static int64_t loop_extent(const Loop *loop) {
    return loop ? loop->extent : 1;
}

/* Picks the largest main loops that give each operand a unit stride.  Where there are none,
 * *blocking is the operand to be copied: the result if it alone is at fault, else an input. */
static bool pick_main(LoopClass classes[CLASS_COUNT], Loop *chosen[3], int *blocking) {
    Loop *choices[3][MAX_AXES];
    int counts[3];
    for (int class = 0; class < 3; class ++)
        counts[class] = main_choices(&classes[class], class, choices[class]);
    double best = 0;
    bool possible[3] = {false, false, false};
    for (int i = 0; i < counts[CLASS_M] * counts[CLASS_N] * counts[CLASS_K]; i++) {
        Loop *m = choices[CLASS_M][i % counts[CLASS_M]];
        Loop *n = choices[CLASS_N][i / counts[CLASS_M] % counts[CLASS_N]];
        Loop *k = choices[CLASS_K][i / counts[CLASS_M] / counts[CLASS_N]];
        bool units[3] = {has_unit_stride(m, k, 0), has_unit_stride(k, n, 1),
                         has_unit_stride(m, n, 2)};
        for (int j = 0; j < 3; j++)
            possible[j] |= units[j];
        double size = (double)loop_extent(m) * (double)loop_extent(n) * (double)loop_extent(k);
        if (units[0] && units[1] && units[2] && size > best) {
            best = size;
            chosen[CLASS_M] = m;
            chosen[CLASS_N] = n;
            chosen[CLASS_K] = k;
        }
    }
    *blocking = !possible[2] ? 2 : !possible[0] ? 0 : !possible[1] ? 1 : 0;
    return best > 0;
}

/* The strides of one operand's matrix.  A direction of extent 1 gets a stride that fits. */
static void matrix_strides(const Loop *x, const Loop *y, int operand, int64_t *stride_x,
                           int64_t *stride_y) {
    *stride_x = x ? x->stride[operand] : 1;
    *stride_y = y ? y->stride[operand] : 1;
    if (!x && *stride_y == 1)
        *stride_x = loop_extent(y);
    else if (!y && *stride_x == 1)
        *stride_y = loop_extent(x);
}

static void add_loops(const LoopClass *class, const Loop *except, ProductLoop *loops,
                      int *count) {
    for (int i = 0; i < class->count; i++) {
        const Loop *loop = &class->loops[i];
        if (loop == except)
            continue;
        INTERNAL_CHECK(*count < MAX_AXES);
        loops[(*count)++] =
            (ProductLoop){loop->extent, loop->stride[0], loop->stride[1], loop->stride[2]};
    }
}

/* C' = B' A': the result's unit stride belongs to its columns. */
static void swap_operands(Product *product) {
    Product old = *product;
    product->m = old.n;
    product->n = old.m;
    product->a_m = old.b_n;
    product->a_k = old.b_k;
    product->b_k = old.a_k;
    product->b_n = old.a_m;
    product->c_m = old.c_n;
    product->c_n = old.c_m;
    product->swapped = !old.swapped;
    for (int i = 0; i < old.batch_count; i++) {
        product->batch[i].stride_a = old.batch[i].stride_b;
        product->batch[i].stride_b = old.batch[i].stride_a;
    }
    for (int i = 0; i < old.accumulate_count; i++) {
        product->accumulate[i].stride_a = old.accumulate[i].stride_b;
        product->accumulate[i].stride_b = old.accumulate[i].stride_a;
    }
}

bool product_of(const Function *function, NodeId dot, const View *a, const View *b,
                const View *result, Product *product, int *blocking) {
    const Node *node = node_at(function, dot);
    INTERNAL_CHECK(node->op == OP_DOT);
    const View *views[3] = {a, b, result};
    LoopClass classes[CLASS_COUNT] = {0};
    classify_loops(function, node, views, classes);
    Loop *chosen[3] = {NULL, NULL, NULL};
    if (!pick_main(classes, chosen, blocking))
        return false;
    Loop *m = chosen[CLASS_M], *n = chosen[CLASS_N], *k = chosen[CLASS_K];
    *product =
        (Product){.m = loop_extent(m),
                  .n = loop_extent(n),
                  .k = loop_extent(k),
                  .bf16_operands = node_at(function, node->inputs[0])->type.dtype == TYPE_BF16,
                  .bf16_result = node->type.dtype == TYPE_BF16};
    matrix_strides(m, k, 0, &product->a_m, &product->a_k);
    matrix_strides(k, n, 1, &product->b_k, &product->b_n);
    matrix_strides(m, n, 2, &product->c_m, &product->c_n);
    add_loops(&classes[CLASS_BATCH], NULL, product->batch, &product->batch_count);
    add_loops(&classes[CLASS_M], m, product->batch, &product->batch_count);
    add_loops(&classes[CLASS_N], n, product->batch, &product->batch_count);
    add_loops(&classes[CLASS_K], k, product->accumulate, &product->accumulate_count);
    if (product->c_n != 1)
        swap_operands(product);
    return true;
}
