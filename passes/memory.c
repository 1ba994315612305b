/* passes/memory.c: a place in the arena for every stored value.
 *
 * needs   groups in execution order
 * gives   offsets, 64-byte aligned; the arena's size
 * reads   nothing of the plan (--no-reuse: every value has memory of its own)
 *
 * A value lives from the group that computes it to the last that reads it.  A flat group may
 * put its result where an operand was that dies there.  What is then left are intervals of time
 * with a size, which are packed one by one into the least gap that fits; the best of a few
 * orders of packing wins.  Long-lived values first makes of kept activations the stack that
 * they are. */
#include "passes/passes.h"

enum { ALIGNMENT = 64 };
enum { PACKINGS_BELOW = 6000 }; /* more buffers than that are packed once only */
enum { MAX_PACKED = 20000 };    /* those packings are quadratic; more are packed in time */
enum { MAX_GAPS = 1024 };

/* One place in the arena and all values that take it in turn. */
typedef struct Buffer {
    int64_t bytes, offset;
    int32_t begin, end; /* first and last group during which it is in use */
} Buffer;
typedef ARRAY(Buffer) BufferList;

typedef struct Lifetimes {
    const Function *function;
    GroupGraph graph;
    int32_t *last_read; /* by node: the group; groups.count when it lives to the end; -1 */
    int32_t *buffer_of; /* by node; -1 */
    BufferList buffers;
} Lifetimes;

static int64_t aligned(int64_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static int64_t value_bytes(const Function *function, NodeId id) {
    const Node *node = node_at(function, id);
    return type_elements(function->module, node->type) * dtype_bytes(node->type.dtype);
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

/* Does the value lie in memory as the loops of its group run? */
static bool lies_along_rows(const Function *function, NodeId id, const Group *group) {
    View own = own_view(function, id);
    int64_t stride = 1;
    for (int i = group->row_count - 1; i >= 0; i--) {
        int64_t size = function->module->axes.data[group->rows[i]].size;
        if (size > 1 && view_stride(&own, group->rows[i]) != stride)
            return false;
        stride *= size;
    }
    return own.count == group->row_count;
}

/* An operand that dies in the group, and whose place the value can take; -1. */
static NodeId find_dying_operand(const Lifetimes *l, NodeId value, int32_t group) {
    const Function *function = l->function;
    if (node_at(function, value)->op == OP_STACK ||
        !lies_along_rows(function, value, &function->groups.data[group]))
        return -1;
    for (int64_t i = l->graph.read_start[group]; i < l->graph.read_start[group + 1]; i++) {
        NodeId operand = l->graph.reads[i];
        if (node_at(function, operand)->placement.stored && l->last_read[operand] == group &&
            l->buffers.data[l->buffer_of[operand]].end == group &&
            value_bytes(function, operand) == value_bytes(function, value) &&
            group_reads_in_place(function, &l->graph, group, operand))
            return operand;
    }
    return -1;
}

static void place_value(Lifetimes *l, NodeId id, int32_t group, bool reuse) {
    NodeId operand = -1;
    if (reuse && l->function->groups.data[group].kind == GROUP_FLAT)
        operand = find_dying_operand(l, id, group);
    if (operand >= 0) {
        l->buffer_of[id] = l->buffer_of[operand];
        /* past `group`, so that no other result of the group takes the same place */
        l->buffers.data[l->buffer_of[id]].end =
            l->last_read[id] > group ? l->last_read[id] : group + 1;
        return;
    }
    Buffer buffer = {.bytes = aligned(value_bytes(l->function, id)),
                     .begin = group,
                     .end = l->last_read[id]};
    l->buffer_of[id] = (int32_t)l->buffers.count;
    array_push(&l->buffers, buffer);
}

static Lifetimes find_lifetimes(const Function *function, bool reuse, Arena *arena) {
    size_t nodes = (size_t)function->nodes.count;
    Lifetimes l = {.function = function,
                   .graph = group_graph(function, arena),
                   .last_read = arena_alloc_array(arena, nodes, sizeof(int32_t)),
                   .buffer_of = arena_alloc_array(arena, nodes, sizeof(int32_t))};
    for (size_t id = 0; id < nodes; id++)
        l.buffer_of[id] = -1;
    find_last_reads(&l);
    for (int32_t g = 0; g < function->groups.count; g++)
        for (int64_t i = l.graph.store_start[g]; i < l.graph.store_start[g + 1]; i++)
            place_value(&l, l.graph.stores[i], g, reuse);
    return l;
}

static int64_t peak_of_live_bytes(const Lifetimes *l) {
    int64_t groups = l->function->groups.count;
    int64_t *change = checked_alloc((size_t)(groups + 3) * sizeof *change);
    for (int64_t i = 0; i < l->buffers.count; i++) {
        change[l->buffers.data[i].begin] += l->buffers.data[i].bytes;
        change[l->buffers.data[i].end + 1] -= l->buffers.data[i].bytes;
    }
    int64_t live = 0, peak = 0;
    for (int64_t g = 0; g <= groups; g++) {
        live += change[g];
        peak = live > peak ? live : peak;
    }
    free(change);
    return peak;
}

/* ---- packing ------------------------------------------------------------------ */

static int64_t duration(const Buffer *buffer) {
    return buffer->end - buffer->begin + 1;
}

static int compare_numbers(int64_t a, int64_t b) {
    return (a > b) - (a < b);
}

static int compare_begin(const Buffer *a, const Buffer *b) {
    if (a->begin != b->begin)
        return compare_numbers(a->begin, b->begin);
    return a < b ? -1 : 1; /* in one array */
}

static int by_size(const void *left, const void *right) {
    const Buffer *a = *(Buffer *const *)left, *b = *(Buffer *const *)right;
    int order = compare_numbers(b->bytes, a->bytes);
    order = order ? order : compare_numbers(duration(b), duration(a));
    return order ? order : compare_begin(a, b);
}

static int by_duration(const void *left, const void *right) {
    const Buffer *a = *(Buffer *const *)left, *b = *(Buffer *const *)right;
    int order = compare_numbers(duration(b), duration(a));
    order = order ? order : compare_numbers(b->bytes, a->bytes);
    return order ? order : compare_begin(a, b);
}

static int by_area(const void *left, const void *right) {
    const Buffer *a = *(Buffer *const *)left, *b = *(Buffer *const *)right;
    double area_a = (double)a->bytes * (double)duration(a);
    double area_b = (double)b->bytes * (double)duration(b);
    int order = (area_b > area_a) - (area_b < area_a);
    return order ? order : compare_begin(a, b);
}

static bool live_together(const Buffer *a, const Buffer *b) {
    return a->begin <= b->end && b->begin <= a->end;
}

/* The least gap that fits among the placed ones, which ascend by offset. */
static int64_t find_gap(Buffer *const *placed, int64_t count, const Buffer *buffer) {
    int64_t top = 0, best = -1, best_size = INT64_MAX;
    for (int64_t i = 0; i < count; i++) {
        if (!live_together(placed[i], buffer))
            continue;
        int64_t gap = placed[i]->offset - top;
        if (gap >= buffer->bytes && gap < best_size) {
            best = top;
            best_size = gap;
        }
        int64_t end = placed[i]->offset + placed[i]->bytes;
        top = end > top ? end : top;
    }
    return best >= 0 ? best : top;
}

/* Packs in the given order; the arena's size. */
static int64_t pack(BufferList *buffers, int (*compare)(const void *, const void *)) {
    size_t count = (size_t)buffers->count;
    Buffer **order = checked_alloc(count * sizeof(Buffer *));
    Buffer **placed = checked_alloc(count * sizeof(Buffer *));
    for (size_t i = 0; i < count; i++)
        order[i] = &buffers->data[i];
    if (count)
        qsort(order, count, sizeof *order, compare);
    int64_t size = 0;
    for (int64_t i = 0; i < (int64_t)count; i++) {
        Buffer *buffer = order[i];
        buffer->offset = find_gap(placed, i, buffer);
        int64_t low = 0, high = i; /* the first placed one beyond its offset */
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (placed[middle]->offset <= buffer->offset)
                low = middle + 1;
            else
                high = middle;
        }
        memmove(placed + low + 1, placed + low, (size_t)(i - low) * sizeof *placed);
        placed[low] = buffer;
        int64_t end = buffer->offset + buffer->bytes;
        size = end > size ? end : size;
    }
    free(order);
    free(placed);
    return size;
}

/* ---- packing in the order of time --------------------------------------------- */

/* Free memory below the top, ascending by offset; neighbours are joined. */
typedef struct Gap {
    int64_t offset, bytes;
} Gap;
typedef struct FreeList {
    Gap gaps[MAX_GAPS + 1];
    int count;
    int64_t top;
} FreeList;

static void remove_gap(FreeList *list, int at) {
    list->count--;
    memmove(list->gaps + at, list->gaps + at + 1, (size_t)(list->count - at) * sizeof(Gap));
}

static int64_t take_memory(FreeList *list, int64_t bytes) {
    int best = -1;
    for (int i = 0; i < list->count; i++)
        if (list->gaps[i].bytes >= bytes &&
            (best < 0 || list->gaps[i].bytes < list->gaps[best].bytes))
            best = i;
    if (best < 0) {
        list->top += bytes;
        return list->top - bytes;
    }
    Gap *gap = &list->gaps[best];
    int64_t offset = gap->offset;
    gap->offset += bytes;
    gap->bytes -= bytes;
    if (gap->bytes == 0)
        remove_gap(list, best);
    return offset;
}

static void give_back(FreeList *list, int64_t offset, int64_t bytes) {
    int low = 0, high = list->count; /* the first gap beyond it */
    while (low < high) {
        int middle = (low + high) / 2;
        if (list->gaps[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    memmove(list->gaps + low + 1, list->gaps + low, (size_t)(list->count - low) * sizeof(Gap));
    list->gaps[low] = (Gap){offset, bytes};
    list->count++;
    for (int i = low; i >= low - 1 && i >= 0; i--)
        if (i + 1 < list->count &&
            list->gaps[i].offset + list->gaps[i].bytes == list->gaps[i + 1].offset) {
            list->gaps[i].bytes += list->gaps[i + 1].bytes;
            remove_gap(list, i + 1);
        }
    Gap *last = &list->gaps[list->count - 1];
    if (last->offset + last->bytes == list->top) {
        list->top = last->offset;
        list->count--;
    } else if (list->count > MAX_GAPS) {
        list->count--; /* never used again: the price of a bounded search */
    }
}

/* Gives every buffer, as it comes to life, the least gap that fits: linear in their number.
 * They ascend by begin.  Those that end with a group are a list: first[group], other[…],
 * from 1. */
static int64_t pack_in_time(BufferList *buffers, int64_t groups) {
    int64_t count = buffers->count, size = 0, next = 0;
    int64_t *first = checked_alloc((size_t)(groups + 2) * sizeof *first);
    int64_t *other = checked_alloc((size_t)(count + 1) * sizeof *other);
    FreeList *list = checked_alloc(sizeof *list);
    for (int64_t i = 0; i < count; i++) {
        other[i] = first[buffers->data[i].end];
        first[buffers->data[i].end] = i + 1;
    }
    for (int64_t g = 0; g <= groups; g++) {
        for (; next < count && buffers->data[next].begin == g; next++) {
            buffers->data[next].offset = take_memory(list, buffers->data[next].bytes);
            size = list->top > size ? list->top : size;
        }
        for (int64_t i = first[g]; i > 0; i = other[i - 1])
            give_back(list, buffers->data[i - 1].offset, buffers->data[i - 1].bytes);
    }
    free(first);
    free(other);
    free(list);
    return size;
}

/* Tries the orders of packing; leaves the offsets of the best. */
static int64_t pack_best(BufferList *buffers, int64_t groups, int64_t lower_bound) {
    static int (*const orders[])(const void *, const void *) = {by_duration, by_area, by_size};
    if (buffers->count > MAX_PACKED)
        return pack_in_time(buffers, groups);
    int best = 0, last = 0;
    int64_t size = pack(buffers, orders[0]);
    int tries = buffers->count < PACKINGS_BELOW ? COUNT_OF(orders) : 1;
    for (int i = 1; i < tries && size > lower_bound; i++) {
        int64_t other = pack(buffers, orders[i]);
        last = i;
        if (other < size) {
            size = other;
            best = i;
        }
    }
    return last == best ? size : pack(buffers, orders[best]);
}

static int64_t place_apart(BufferList *buffers) {
    int64_t size = 0;
    for (int64_t i = 0; i < buffers->count; i++) {
        buffers->data[i].offset = size;
        size += buffers->data[i].bytes;
    }
    return size;
}

/* ---- the pass ----------------------------------------------------------------- */

static void place_function(Function *function, bool no_reuse) {
    Arena *arena = arena_new();
    Lifetimes l = find_lifetimes(function, !no_reuse, arena);
    function->arena_bytes =
        no_reuse ? place_apart(&l.buffers)
                 : pack_best(&l.buffers, function->groups.count, peak_of_live_bytes(&l));
    for (int64_t id = 0; id < function->nodes.count; id++)
        if (l.buffer_of[id] >= 0)
            function->nodes.data[id].placement.offset = l.buffers.data[l.buffer_of[id]].offset;
    array_free(&l.buffers);
    arena_free(arena);
}

/* Sizes are at most MAX_ELEMENTS each; together they must stay countable.  Else *largest is the
 * largest of them. */
static bool fits_in_address_space(const Function *function, const Node **largest) {
    int64_t total = 0, most = -1;
    bool fits = true;
    for (int64_t id = 0; id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        int64_t elements = type_elements(function->module, node->type);
        if (!node->placement.stored)
            continue;
        fits &= elements <= MAX_ELEMENTS / 8 &&
                !__builtin_add_overflow(total, 8 * elements + ALIGNMENT, &total);
        if (elements > most) {
            most = elements;
            *largest = node;
        }
    }
    return fits;
}

bool pass_memory(PassContext *context) {
    for (int64_t i = 0; i < context->module->functions.count; i++) {
        Function *function = context->module->functions.data[i];
        const Node *largest = NULL;
        if (!fits_in_address_space(function, &largest)) {
            Arena *arena = arena_new();
            help(error_at(context->diagnostics, largest->span,
                          "the values of `%s` do not fit in an address space of 64 bits; the "
                          "largest is this, `%s` of %.3g elements",
                          function->name, type_text(context->module, largest->type, arena),
                          (double)type_elements(context->module, largest->type)),
                 "choose smaller sizes");
            arena_free(arena);
            return false;
        }
        place_function(function, context->no_reuse);
    }
    return true;
}

/* ---- the memory table --------------------------------------------------------- */

static int64_t add_or_stay(int64_t a, int64_t b) { /* at the largest number */
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

/* Bytes of the slab of one role: to the end of its last state. */
static int64_t slab_bytes(const Module *module, Role role) {
    int64_t numbers = 1, total = 0;
    for (int64_t i = 0; i < module->states.count; i++)
        if (module->states.data[i].role == role && module->states.data[i].number >= numbers)
            numbers = module->states.data[i].number + 1;
    int64_t *ends = checked_alloc((size_t)numbers * sizeof *ends);
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        if (state->role != role || state->flat)
            continue;
        int64_t *end = &ends[state->number];
        int64_t begin = state->offset >= 0 ? state->offset : *end;
        int64_t own_end = add_or_stay(begin, type_elements(module, state_type(state)));
        *end = own_end > *end ? own_end : *end;
    }
    for (int64_t i = 0; i < numbers; i++)
        total = add_or_stay(total, ends[i] > INT64_MAX / 4 ? INT64_MAX
                                                           : ends[i] * dtype_bytes(TYPE_F32));
    free(ends);
    return total;
}

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

/* Forward values that are computed before that group and read after it. */
static int64_t kept_bytes(const Lifetimes *l) {
    const Function *function = l->function;
    int32_t entry = first_gradient_group(function);
    int64_t bytes = 0;
    for (int64_t id = 0; entry >= 0 && id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        if (node->adjoint_of >= 0)
            break; /* the backward part */
        if (node->placement.stored && node->placement.group < entry && l->last_read[id] > entry)
            bytes += value_bytes(function, (NodeId)id);
    }
    return bytes;
}

MemoryTable memory_table(const Module *module) {
    MemoryTable table = {.weights = slab_bytes(module, ROLE_WEIGHT),
                         .gradients = slab_bytes(module, ROLE_GRADIENT),
                         .optimizer = slab_bytes(module, ROLE_MOMENT),
                         .tables =
                             slab_bytes(module, ROLE_TABLE) + slab_bytes(module, ROLE_METRIC)};
    for (int64_t i = 0; i < module->functions.count; i++) {
        const Function *function = module->functions.data[i];
        if (function->arena_bytes <= table.arena)
            continue;
        Arena *arena = arena_new();
        Lifetimes l = find_lifetimes(function, true, arena);
        table.arena = function->arena_bytes;
        table.lower_bound = peak_of_live_bytes(&l);
        table.kept_activations = kept_bytes(&l);
        array_free(&l.buffers);
        arena_free(arena);
    }
    table.workspace = table.arena - table.kept_activations;
    const int64_t parts[] = {table.weights, table.gradients, table.optimizer, table.tables,
                             table.arena};
    for (int i = 0; i < COUNT_OF(parts); i++)
        table.peak = add_or_stay(table.peak, parts[i]);
    return table;
}
