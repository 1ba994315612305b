/* tests/group_machine.h: runs scheduled and placed groups one element at a time, by the
 * contract in passes/passes.h and nothing else: what a kernel may load, from where, and in
 * which order.
 *
 * All memory is doubles: an arena with one slot a byte (a value's element i is at its offset
 * plus i times the bytes of its dtype), poisoned with NaN, and each state in its own memory
 * order.  So what comes out can be compared with the interpreter far below the precision of
 * f32; and a value that was overwritten too early, never stored or laid out differently by
 * writer and reader shows. */
#ifndef COLAC_TESTS_GROUP_MACHINE_H
#define COLAC_TESTS_GROUP_MACHINE_H

#include "passes/passes.h"

#include <math.h>

/* Positions along some axes. */
typedef struct Index {
    int count;
    AxisId axes[2 * MAX_AXES];
    int64_t at[2 * MAX_AXES];
} Index;

typedef struct Memo {
    uint64_t key;
    double value;
} Memo;

typedef struct Machine {
    const Module *module;
    const Function *function;
    const Interp *interp; /* ran the same function and kept: gives random numbers and inputs */
    const double *scalars;
    double *arena;
    double **states;      /* by state; memory order; windows share their members' memory */
    int32_t group;        /* the one at work */
    ARRAY(NodeId) stores; /* its stores */
    int32_t *last_load;   /* by node: the last group that loaded it; -1 */
    Memo *memo;           /* values computed by the group at hand */
    int64_t memo_count, memo_capacity;
    const char *broken; /* the rule that was broken, or NULL */
} Machine;

static double machine_value(Machine *m, NodeId id, const Index *index);

static int64_t index_get(const Index *index, AxisId axis) {
    for (int i = 0; i < index->count; i++)
        if (index->axes[i] == axis)
            return index->at[i];
    internal_error("axis %d has no position", axis);
}

static void index_put(Index *index, AxisId axis, int64_t at) {
    for (int i = 0; i < index->count; i++)
        if (index->axes[i] == axis) {
            index->at[i] = at;
            return;
        }
    INTERNAL_CHECK(index->count < 2 * MAX_AXES);
    index->axes[index->count] = axis;
    index->at[index->count++] = at;
}

static int64_t machine_size(const Machine *m, AxisId axis) {
    return m->module->axes.data[axis].size;
}

/* Steps through all positions along some axes, the last fastest; false after the last. */
static bool index_next(const Machine *m, Index *index, const AxisId *axes, int count) {
    for (int i = count - 1; i >= 0; i--) {
        int64_t next = index_get(index, axes[i]) + 1;
        index_put(index, axes[i], next < machine_size(m, axes[i]) ? next : 0);
        if (next < machine_size(m, axes[i]))
            return true;
    }
    return false;
}

static Index index_zero(const AxisId *axes, int count) {
    Index index = {0};
    for (int i = 0; i < count; i++)
        index_put(&index, axes[i], 0);
    return index;
}

/* ---- memory ------------------------------------------------------------------- */

static bool machine_has_memory(const Machine *m, NodeId id) {
    const Node *node = node_at(m->function, id);
    return node->op == OP_STATE || node->op == OP_INPUT ||
           (node->placement.stored && node->placement.group != m->group);
}

/* The slot of element `element` of a stored value or state read. */
static double *machine_slot(Machine *m, NodeId root, int64_t element) {
    const Node *node = node_at(m->function, root);
    if (node->op == OP_STATE)
        return &m->states[node->attr.integer][element];
    INTERNAL_CHECK(node->placement.stored && node->placement.offset >= 0);
    int64_t byte = node->placement.offset + element * dtype_bytes(node->type.dtype);
    INTERNAL_CHECK(byte < m->function->arena_bytes);
    return &m->arena[byte];
}

static double machine_interpreted(const Machine *m, NodeId id, const Index *index) {
    const Node *node = node_at(m->function, id);
    int64_t element = 0;
    for (int i = 0; i < node->type.rank; i++)
        element = element * machine_size(m, node->type.axes[i]) +
                  index_get(index, node->type.axes[i]);
    return interp_value(m->interp, id)[element];
}

static double machine_load(Machine *m, const View *view, const Index *index) {
    const Node *root = node_at(m->function, view->root);
    m->last_load[view->root] = m->group;
    int64_t element = view->base;
    for (int i = 0; i < view->count; i++)
        element += view->strides[i] * index_get(index, view->axes[i]);
    if (root->op != OP_INPUT)
        return *machine_slot(m, view->root, element);
    /* inputs are in declared order, dense */
    Index at = {0};
    View own = own_view(m->function, view->root);
    for (int i = 0; i < own.count; i++) {
        index_put(&at, own.axes[i], element / own.strides[i]);
        element %= own.strides[i];
    }
    return machine_interpreted(m, view->root, &at);
}

/* ---- values ------------------------------------------------------------------- */

static double machine_round(double x, DataType dtype) {
    (void)dtype; /* the interpreter does not round either */
    return x;
}

static double machine_map(const Node *node, DataType dtype, const double *v) {
    double a = v[0], b = v[1], c = v[2];
    switch (node->op) {
    case OP_NEG:
        return -a;
    case OP_ABS:
        return fabs(a);
    case OP_EXP:
        return exp(a);
    case OP_LOG:
        return log(a);
    case OP_SQRT:
        return sqrt(a);
    case OP_TANH:
        return tanh(a);
    case OP_SIGMOID:
        return a >= 0 ? 1 / (1 + exp(-a)) : exp(a) / (1 + exp(a));
    case OP_ERF:
        return erf(a);
    case OP_SIN:
        return sin(a);
    case OP_COS:
        return cos(a);
    case OP_FLOOR:
        return floor(a);
    case OP_SIGN:
        return (a > 0) - (a < 0);
    case OP_NOT:
        return !(a != 0);
    case OP_CAST:
        return node->type.dtype == TYPE_I32    ? trunc(a)
               : node->type.dtype == TYPE_BOOL ? a != 0
                                               : machine_round(a, node->type.dtype);
    case OP_STOP:
    case OP_COPY:
        return a;
    case OP_ADD:
        return a + b;
    case OP_SUB:
        return a - b;
    case OP_MUL:
        return a * b;
    case OP_DIV:
        return dtype == TYPE_I32 ? floor(a / b) : a / b;
    case OP_MOD:
        return a - b * floor(a / b);
    case OP_POW:
        return pow(a, b);
    case OP_MAXIMUM:
        return a > b ? a : b;
    case OP_MINIMUM:
        return a < b ? a : b;
    case OP_LT:
        return a < b;
    case OP_LE:
        return a <= b;
    case OP_EQ:
        return a == b;
    case OP_AND:
        return a != 0 && b != 0;
    case OP_OR:
        return a != 0 || b != 0;
    case OP_WHERE:
        return a != 0 ? b : c;
    case OP_FMA:
        return fma(a, b, c);
    default:
        internal_error("%s is no map", op_info[node->op].name);
    }
}

/* Views as index arithmetic: the input's index.  A merge is not affine and has none. */
static bool machine_index_below(const Machine *m, const Node *node, const Index *index,
                                Index *below) {
    const Node *input = node_at(m->function, node->inputs[0]);
    *below = (Index){0};
    for (int i = 0; i < input->type.rank; i++)
        if (type_has(node->type, input->type.axes[i]))
            index_put(below, input->type.axes[i], index_get(index, input->type.axes[i]));
    if (node->op == OP_RENAME)
        index_put(below, node->attr.from[0], index_get(index, node->attr.to[0]));
    if (node->op == OP_PICK)
        index_put(below, node->attr.from[0], node->attr.integer);
    if (node->op == OP_SPLIT) {
        int64_t at = 0;
        for (int i = 0; i < node->attr.to_count; i++)
            at = at * machine_size(m, node->attr.to[i]) + index_get(index, node->attr.to[i]);
        index_put(below, node->attr.from[0], at);
    }
    return node->op != OP_MERGE;
}

static double machine_break(Machine *m, const char *rule) {
    m->broken = rule;
    return NAN;
}

static double machine_reduce(Machine *m, const Node *node, const Index *index) {
    Index at = *index;
    double result = node->op == OP_SUM ? 0 : -INFINITY;
    for (int i = 0; i < node->attr.from_count; i++)
        index_put(&at, node->attr.from[i], 0);
    do {
        double x = machine_value(m, node->inputs[0], &at);
        result = node->op == OP_SUM ? result + x : x > result || isnan(x) ? x : result;
    } while (index_next(m, &at, node->attr.from, node->attr.from_count));
    return result;
}

static double machine_gather(Machine *m, const Node *node, const Index *index) {
    View table;
    if (!view_of(m->function, node->inputs[0], &table) || !machine_has_memory(m, table.root))
        return machine_break(m, "a gather's table is not in memory");
    Index at = *index;
    index_put(&at, node->attr.from[0], (int64_t)machine_value(m, node->inputs[1], index));
    return machine_load(m, &table, &at);
}

static double machine_scatter(Machine *m, const Node *node, const Index *index) {
    Index at = *index;
    double result = 0;
    for (int i = 0; i < node->attr.from_count; i++)
        index_put(&at, node->attr.from[i], 0);
    do {
        int64_t row = (int64_t)machine_value(m, node->inputs[0], &at);
        if (row == index_get(index, node->attr.to[0]))
            result += machine_value(m, node->inputs[1], &at);
    } while (index_next(m, &at, node->attr.from, node->attr.from_count));
    return result;
}

static double machine_compute(Machine *m, NodeId id, const Index *index) {
    const Node *node = node_at(m->function, id);
    if (node->placement.group >= 0 && node->placement.group != m->group)
        return machine_break(m, "a value of another group is not stored");
    if (op_is_map(node->op)) {
        double values[3] = {0, 0, 0};
        for (int i = 0; i < node->input_count; i++)
            values[i] = machine_value(m, node->inputs[i], index);
        DataType dtype = node_at(m->function, node->inputs[0])->type.dtype;
        return machine_map(node, dtype, values);
    }
    if (node->op == OP_GATHER)
        return machine_gather(m, node, index);
    if (node->placement.group != m->group)
        return machine_break(m, "a reduction, dot, scatter or stack has no group");
    switch (node->op) {
    case OP_SUM:
    case OP_MAX:
        return machine_reduce(m, node, index);
    case OP_SCATTER_ADD:
        return machine_scatter(m, node, index);
    default:
        return machine_break(m, "a stack or dot is read in its own group");
    }
}

static double machine_leaf(const Machine *m, const Node *node, NodeId id, const Index *index) {
    switch (node->op) {
    case OP_CONST:
        return node->attr.number;
    case OP_SCALAR:
        return m->scalars[node->attr.integer];
    case OP_INDEX:
        return (double)index_get(index, node->attr.to[0]);
    default:
        return machine_interpreted(m, id, index); /* random */
    }
}

static uint64_t memo_key(const Machine *m, NodeId id, const Index *index) {
    const Node *node = node_at(m->function, id);
    int64_t at[MAX_AXES + 1] = {id};
    for (int i = 0; i < node->type.rank; i++)
        at[i + 1] = index_get(index, node->type.axes[i]);
    return hash_bytes(at, sizeof at, 0) | 1;
}

static Memo *memo_slot(const Machine *m, uint64_t key) {
    uint64_t mask = (uint64_t)m->memo_capacity - 1, i = key & mask;
    while (m->memo[i].key && m->memo[i].key != key)
        i = (i + 1) & mask;
    return &m->memo[i];
}

static void memo_reserve(Machine *m) {
    if (2 * (m->memo_count + 1) <= m->memo_capacity)
        return;
    Memo *old = m->memo;
    int64_t count = m->memo_capacity;
    m->memo_capacity = count ? 2 * count : 1024;
    m->memo = checked_alloc((size_t)m->memo_capacity * sizeof *m->memo);
    for (int64_t i = 0; i < count; i++)
        if (old[i].key)
            *memo_slot(m, old[i].key) = old[i];
    free(old);
}

static void memo_clear(Machine *m) {
    if (m->memo_count)
        memset(m->memo, 0, (size_t)m->memo_capacity * sizeof *m->memo);
    m->memo_count = 0;
}

/* The value of a node at an index, as the group at work gets it. */
static double machine_value(Machine *m, NodeId id, const Index *index) {
    const Node *node = node_at(m->function, id);
    View view;
    Index below;
    if (view_of(m->function, id, &view) && machine_has_memory(m, view.root))
        return machine_load(m, &view, index);
    if (node_is_view(node))
        return machine_index_below(m, node, index, &below)
                   ? machine_value(m, node->inputs[0], &below)
                   : machine_break(m, "a merge above what is not in memory");
    if (node->input_count == 0)
        return machine_leaf(m, node, id, index);
    uint64_t key = memo_key(m, id, index);
    memo_reserve(m);
    if (!memo_slot(m, key)->key) {
        double value = machine_compute(m, id, index);
        memo_reserve(m);
        *memo_slot(m, key) = (Memo){key, value};
        m->memo_count++;
    }
    return memo_slot(m, key)->value;
}

/* ---- groups ------------------------------------------------------------------- */

typedef struct Pending {
    double *slot, value;
    bool add;
} Pending;
typedef ARRAY(Pending) PendingStores;

static void machine_put(PendingStores *pending, double *slot, double value, bool add) {
    Pending store = {slot, value, add};
    array_push(pending, store);
}

static void machine_flush(PendingStores *pending) {
    for (int64_t i = 0; i < pending->count; i++) {
        Pending *store = &pending->data[i];
        *store->slot = store->add ? *store->slot + store->value : store->value;
    }
    pending->count = 0;
}

static int64_t element_at(const View *view, const Index *index) {
    int64_t element = view->base;
    for (int i = 0; i < view->count; i++)
        element += view->strides[i] * index_get(index, view->axes[i]);
    return element;
}

/* Stores one value at one index: in the arena, and in the states it is directly written to. */
static void machine_store(Machine *m, NodeId id, const Index *index, double value,
                          PendingStores *pending) {
    const Node *node = node_at(m->function, id);
    View own = own_view(m->function, id);
    int64_t element = element_at(&own, index);
    if (node->placement.stored)
        machine_put(pending, machine_slot(m, id, element), value, false);
    for (int64_t i = 0; i < m->function->writes.count; i++) {
        const Write *write = &m->function->writes.data[i];
        if (write->direct && write_source(m->function, write->value) == id)
            machine_put(pending, &m->states[write->state][element], value, write->add);
    }
}

static bool is_store(const Machine *m, NodeId id) {
    const Node *node = node_at(m->function, id);
    bool store = node->placement.stored;
    if (node->placement.group != m->group)
        return false;
    for (int64_t i = 0; i < m->function->writes.count; i++)
        store |= m->function->writes.data[i].direct &&
                 write_source(m->function, m->function->writes.data[i].value) == id;
    return store;
}

static bool same_axis_set(Type type, const AxisId *rows, int row_count, const AxisId *inner,
                          int inner_count) {
    AxisId all[2 * MAX_AXES];
    if (row_count + inner_count != type.rank)
        return false;
    for (int i = 0; i < row_count; i++)
        all[i] = rows[i];
    for (int i = 0; i < inner_count; i++)
        all[row_count + i] = inner[i];
    return type_same_axes(type, type_of(type.dtype, all, type.rank));
}

/* Stores everything whose (parts') axes are exactly those given, at one index of them. */
static void store_all_at(Machine *m, const AxisId *axes, int count, const Index *index,
                         PendingStores *pending) {
    for (int64_t i = 0; i < m->stores.count; i++) {
        NodeId id = m->stores.data[i];
        const Node *node = node_at(m->function, id);
        Type type =
            node->op == OP_STACK ? type_without(node->type, node->attr.to[0]) : node->type;
        if (!same_axis_set(type, axes, count, NULL, 0))
            continue;
        Index at = *index;
        for (int part = 0; part < (node->op == OP_STACK ? node->input_count : 1); part++) {
            if (node->op == OP_STACK)
                index_put(&at, node->attr.to[0], part);
            NodeId value = node->op == OP_STACK ? node->inputs[part] : id;
            double x = node->op == OP_STACK ? machine_value(m, value, &at)
                                            : machine_compute(m, value, &at);
            machine_store(m, id, &at, x, pending);
        }
    }
}

/* Stores and reductions must have the axes that the group's kind says. */
static void check_group(Machine *m, const Group *group) {
    for (NodeId id = 0; id < m->function->nodes.count; id++) {
        const Node *node = node_at(m->function, id);
        if (node->placement.group != m->group)
            continue;
        bool reduces = node->op == OP_SUM || node->op == OP_MAX;
        bool at_rows = same_axis_set(node->type, group->rows, group->row_count, NULL, 0);
        if (reduces && (!at_rows || (group->kind != GROUP_ROW && group->kind != GROUP_COLUMN)))
            m->broken = "a reduction's result has not the group's rows";
        AxisId from[MAX_AXES];
        memcpy(from, node->attr.from, sizeof from);
        if (reduces && !same_axis_set(type_of(TYPE_F32, from, node->attr.from_count),
                                      group->inner, group->inner_count, NULL, 0))
            m->broken = "a reduction is not over the group's inner axes";
        if (!is_store(m, id))
            continue;
        Type type =
            node->op == OP_STACK ? type_without(node->type, node->attr.to[0]) : node->type;
        bool at_all = same_axis_set(type, group->rows, group->row_count, group->inner,
                                    group->inner_count);
        if (!same_axis_set(type, group->rows, group->row_count, NULL, 0) &&
            !(group->kind == GROUP_ROW && at_all))
            m->broken = "a store has not the group's axes";
        if (node->op == OP_STACK && group->kind != GROUP_FLAT && group->kind != GROUP_ROW)
            m->broken = "a stack in a group of the wrong kind";
    }
}

static double *product_memory(Machine *m, NodeId dot, bool *add) {
    const Node *node = node_at(m->function, dot);
    *add = false;
    if (node->placement.stored)
        return machine_slot(m, dot, 0);
    for (int64_t i = 0; i < m->function->writes.count; i++) {
        const Write *write = &m->function->writes.data[i];
        if (write->direct && write_source(m->function, write->value) == dot) {
            *add = write->add;
            return m->states[write->state];
        }
    }
    m->broken = "a product stores nowhere";
    return NULL;
}

/* How many slots lie between two neighbouring elements. */
static int64_t slots_per_element(const Node *node) {
    return node->op == OP_STATE ? 1 : dtype_bytes(node->type.dtype);
}

static void run_product(Machine *m, NodeId dot) {
    const Function *f = m->function;
    const Node *node = node_at(f, dot);
    View a, b, c = own_view(f, dot);
    Product p;
    int blocking;
    if (!view_of(f, node->inputs[0], &a) || !view_of(f, node->inputs[1], &b) ||
        !product_of(f, dot, &a, &b, &c, &p, &blocking)) {
        m->broken = "a dot is no product";
        return;
    }
    bool add;
    double *result = product_memory(m, dot, &add);
    if (!result)
        return;
    int64_t scale = node->placement.stored ? dtype_bytes(node->type.dtype) : 1;
    const View *first = p.swapped ? &b : &a, *second = p.swapped ? &a : &b;
    m->last_load[first->root] = m->last_load[second->root] = m->group;
    const double *x = machine_slot(m, first->root, first->base);
    const double *y = machine_slot(m, second->root, second->base);
    int64_t scale_x = slots_per_element(node_at(f, first->root));
    int64_t scale_y = slots_per_element(node_at(f, second->root));
    int64_t batches = 1, rounds = 1;
    for (int i = 0; i < p.batch_count; i++)
        batches *= p.batch[i].extent;
    for (int i = 0; i < p.accumulate_count; i++)
        rounds *= p.accumulate[i].extent;
    for (int64_t batch = 0; batch < batches; batch++) {
        for (int64_t round = 0; round < rounds; round++) {
            int64_t at_x = 0, at_y = 0, at_c = 0, left = batch;
            for (int i = p.batch_count - 1; i >= 0; left /= p.batch[i--].extent) {
                int64_t at = left % p.batch[i].extent;
                at_x += at * p.batch[i].stride_a;
                at_y += at * p.batch[i].stride_b;
                at_c += at * p.batch[i].stride_c;
            }
            left = round;
            for (int i = p.accumulate_count - 1; i >= 0; left /= p.accumulate[i--].extent) {
                at_x += left % p.accumulate[i].extent * p.accumulate[i].stride_a;
                at_y += left % p.accumulate[i].extent * p.accumulate[i].stride_b;
            }
            for (int64_t i = 0; i < p.m; i++)
                for (int64_t j = 0; j < p.n; j++) {
                    double sum = 0;
                    for (int64_t k = 0; k < p.k; k++)
                        sum += x[scale_x * (at_x + i * p.a_m + k * p.a_k)] *
                               y[scale_y * (at_y + k * p.b_k + j * p.b_n)];
                    double *slot = &result[scale * (at_c + i * p.c_m + j * p.c_n)];
                    *slot = add || round ? *slot + sum : sum;
                }
        }
    }
}

static void run_group(Machine *m, int32_t number) {
    const Group *group = &m->function->groups.data[number];
    PendingStores pending = {0};
    m->group = number;
    memo_clear(m);
    m->stores.count = 0;
    for (NodeId id = 0; id < m->function->nodes.count; id++)
        if (is_store(m, id))
            array_push(&m->stores, id);
    check_group(m, group);
    if (group->kind == GROUP_PRODUCT) {
        for (NodeId id = 0; id < m->function->nodes.count; id++)
            if (node_at(m->function, id)->placement.group == number)
                run_product(m, id);
        return;
    }
    Index index = index_zero(group->rows, group->row_count);
    do {
        if (group->kind == GROUP_ROW) {
            AxisId all[2 * MAX_AXES];
            memcpy(all, group->rows, sizeof group->rows);
            memcpy(all + group->row_count, group->inner, sizeof group->inner);
            for (int i = 0; i < group->inner_count; i++)
                index_put(&index, group->inner[i], 0);
            do {
                if (group->inner_count)
                    store_all_at(m, all, group->row_count + group->inner_count, &index,
                                 &pending);
                machine_flush(&pending);
            } while (index_next(m, &index, group->inner, group->inner_count));
        }
        store_all_at(m, group->rows, group->row_count, &index, &pending);
        machine_flush(&pending);
    } while (index_next(m, &index, group->rows, group->row_count));
    array_free(&pending);
}

/* Writes that are not direct: copies at the end. */
static void run_copies(Machine *m) {
    for (int64_t i = 0; i < m->function->writes.count; i++) {
        const Write *write = &m->function->writes.data[i];
        if (write->direct)
            continue;
        NodeId source = write_source(m->function, write->value);
        int64_t count = type_elements(m->module, node_at(m->function, source)->type);
        m->group = (int32_t)m->function->groups.count;
        m->last_load[source] = m->group;
        for (int64_t j = 0; j < count; j++)
            m->states[write->state][j] = *machine_slot(m, source, j);
        if (write->add)
            m->broken = "an addition that is not direct";
    }
}

/* Runs the whole function.  The rule that was broken, or NULL. */
static const char *machine_run(Machine *m) {
    size_t slots = (size_t)m->function->arena_bytes + 1,
           nodes = (size_t)m->function->nodes.count;
    m->arena = checked_alloc(slots * sizeof *m->arena);
    m->last_load = checked_alloc(nodes * sizeof *m->last_load);
    for (size_t i = 0; i < slots; i++)
        m->arena[i] = NAN;
    for (size_t i = 0; i < nodes; i++)
        m->last_load[i] = -1;
    for (int32_t group = 0; group < m->function->groups.count && !m->broken; group++)
        run_group(m, group);
    if (!m->broken)
        run_copies(m);
    free(m->arena);
    free(m->memo);
    array_free(&m->stores);
    return m->broken;
}

/* No two stored values share a byte while both are wanted, as the loads of a run showed; but a
 * result of a flat or row group may lie exactly on an operand that the group is the last to
 * load. */
static bool lifetimes_are_apart(const Machine *m) {
    const Function *f = m->function;
    for (NodeId a = 0; a < f->nodes.count; a++)
        for (NodeId b = 0; b < f->nodes.count; b++) {
            const Placement *x = &node_at(f, a)->placement, *y = &node_at(f, b)->placement;
            if (a == b || !x->stored || !y->stored || x->group > y->group)
                continue;
            int64_t end_x = x->offset + type_elements(m->module, node_at(f, a)->type) *
                                            dtype_bytes(node_at(f, a)->type.dtype);
            int64_t end_y = y->offset + type_elements(m->module, node_at(f, b)->type) *
                                            dtype_bytes(node_at(f, b)->type.dtype);
            bool overlap = x->offset < end_y && y->offset < end_x;
            int32_t last = m->last_load[a] > x->group ? m->last_load[a] : x->group;
            bool in_place = x->group < y->group && last == y->group && x->offset == y->offset &&
                            end_x == end_y && f->groups.data[y->group].kind <= GROUP_ROW;
            if (overlap && last >= y->group && !in_place)
                return false;
        }
    return true;
}

#endif
