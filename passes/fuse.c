/* passes/fuse.c: which nodes run as one kernel.
 *
 * needs   orders
 * gives   groups, which values are stored, which writes are direct
 * reads   nothing of the plan (--no-fuse: one group a node)
 *
 *   %4 = neg %3   %5 = exp %4        ->   … group 0          … group 0 stored
 *
 * Every computed node starts as a draft of a group.  Drafts are joined along edges from
 * producer to consumer, then where they read the same memory; each join keeps the graph of
 * drafts acyclic. Last, values that several drafts want are either stored or computed again by
 * each. */
#include "passes/passes.h"

enum {
    JOIN_WINDOW = 256,   /* drafts between two that are joined */
    RECOMPUTE_COST = 60, /* work on an element worth less than memory */
    BROADCAST_COST = 2,  /* the same, when each of them is computed many times */
    MAX_FRONTIER = 24    /* values that a recomputation reads */
};

typedef struct Edge {
    NodeId node; /* the other end */
    bool apart;  /* through memory, or at another index: the two ends cannot share a draft */
    bool memory; /* through memory: the producer must be stored */
    bool order;  /* nothing is read: two additions to a state keep their order */
} Edge;

typedef struct AxisOrder {
    int count;
    AxisId axes[MAX_AXES];
} AxisOrder;

typedef struct Draft {
    GroupKind kind;
    AxisOrder rows, inner;
    NodeId first, last; /* members, linked by next_member */
    int32_t size;
    int32_t position; /* in a topological order of the drafts */
    bool stacks;      /* has a stack */
    bool overwrites;  /* has the source of a plain write */
} Draft;

typedef struct Fuse {
    Module *module;
    Function *function;
    Arena *arena;
    bool no_fuse;
    int32_t count;       /* nodes */
    bool *real;          /* by node: computed, and not `free` */
    bool *late;          /* by node: belongs to the backward part */
    bool *written;       /* by node: the source of a write */
    StateId *overwrites; /* by node: the state of which it is the new value; -1 */
    bool *in_memory;     /* by node: a reader finds it through memory */
    int32_t *free_cost;  /* by free node: what computing it takes */
    int64_t *in_start, *out_start;
    Edge *in, *out;      /* between real nodes: producers and consumers */
    int32_t *draft_of;   /* by node; -1 */
    NodeId *next_member; /* by node; -1 */
    Draft *drafts;
    int32_t *at;      /* draft by position; -1: gone */
    int32_t *reached; /* by draft: the last search that came by */
    int32_t search;
    bool *recomputed;  /* by node */
    int32_t *outside;  /* by node: time of its last reader in other groups; -1: none */
    int32_t *last_use; /* by node: time of its last reader, own group included */
    int32_t *burden;   /* by node: the most that computing a reader of it again takes */
} Fuse;

static const Node *at(const Fuse *f, NodeId id) {
    return &f->function->nodes.data[id];
}

/* ---- what may be computed again for nothing ----------------------------------- */

/* Values that readers find in memory: they must be stored, whatever they cost. */
static void mark_memory_operands(Fuse *f) {
    for (NodeId id = 0; id < f->count; id++) {
        const Node *node = at(f, id);
        for (int i = 0; i < node->input_count; i++) {
            if (node->op != OP_DOT && node->op != OP_MERGE &&
                !(node->op == OP_GATHER && i == 0))
                continue;
            NodeId root = node->inputs[i];
            while (node_is_view(at(f, root)))
                root = at(f, root)->inputs[0];
            f->in_memory[root] = true;
        }
    }
}

/* Free values are made of constants, indices, random numbers and inputs by maps: masks, mostly.
 * They are never stored.  The rest of what is computed is real. */
static void find_real_nodes(Fuse *f) {
    bool *is_free = checked_alloc((size_t)f->count);
    for (NodeId id = 0; id < f->count; id++) {
        const Node *node = at(f, id);
        bool leaf = node->input_count == 0;
        bool is_map = op_is_map(node->op) && node->op != OP_COPY;
        is_free[id] = leaf ? node->op != OP_STATE : is_map || node_is_view(node);
        int64_t cost =
            node->op == OP_RANDOM || (is_map && !node->on_host) ? op_info[node->op].work : 0;
        for (int i = 0; i < node->input_count; i++) {
            is_free[id] &= is_free[node->inputs[i]];
            cost += f->free_cost[node->inputs[i]];
        }
        if (node_can_be_stored(node))
            is_free[id] &=
                !f->no_fuse && !f->in_memory[id] && !f->written[id] && cost <= RECOMPUTE_COST;
        f->real[id] = node_can_be_stored(node) && !is_free[id];
        f->free_cost[id] = is_free[id] ? (int32_t)cost : 0;
    }
    free(is_free);
}

/* ---- edges -------------------------------------------------------------------- */

/* Follows an operand through views to a real node; false when it ends elsewhere. */
static bool follow_operand(const Fuse *f, NodeId reader, int operand, Edge *edge) {
    const Node *node = at(f, reader);
    bool is_memory = node->op == OP_DOT || (node->op == OP_GATHER && operand == 0);
    *edge = (Edge){.node = node->inputs[operand], .apart = is_memory, .memory = is_memory};
    while (node_is_view(at(f, edge->node))) {
        Op op = at(f, edge->node)->op;
        edge->apart |= op != OP_EXPAND;
        edge->memory |= op == OP_MERGE;
        edge->node = at(f, edge->node)->inputs[0];
    }
    edge->apart |= at(f, edge->node)->op == OP_STACK;
    edge->memory |= at(f, edge->node)->op == OP_STACK;
    return f->real[edge->node];
}

/* Free values have no real operands, so that edges end at real nodes' own operands. */
static void collect_edges(Fuse *f) {
    ARRAY(Edge) in = {0};
    f->in_start = arena_alloc_array(f->arena, (size_t)f->count + 1, sizeof(int64_t));
    f->out_start = arena_alloc_array(f->arena, (size_t)f->count + 2, sizeof(int64_t));
    NodeId *last_addition =
        checked_alloc((size_t)f->module->states.count * sizeof *last_addition);
    NodeId *earlier = checked_alloc((size_t)f->count * sizeof *earlier);
    for (int64_t i = 0; i < f->function->writes.count; i++) {
        const Write *write = &f->function->writes.data[i];
        NodeId source = write_source(f->function, write->value);
        NodeId *last = &last_addition[write->state];
        if (write->add && *last && *last - 1 < source)
            earlier[source] = *last;
        *last = source + 1;
    }
    for (NodeId id = 0; id < f->count; id++) {
        Edge edge;
        for (int i = 0; f->real[id] && i < at(f, id)->input_count; i++)
            if (follow_operand(f, id, i, &edge))
                array_push(&in, edge);
        if (f->real[id] && earlier[id]) {
            edge = (Edge){.node = earlier[id] - 1, .apart = true, .order = true};
            array_push(&in, edge);
        }
        f->in_start[id + 1] = in.count;
    }
    f->in = arena_alloc_array(f->arena, (size_t)in.count, sizeof *f->in);
    f->out = arena_alloc_array(f->arena, (size_t)in.count, sizeof *f->out);
    for (int64_t i = 0; i < in.count; i++) {
        f->in[i] = in.data[i];
        f->out_start[in.data[i].node + 2]++;
    }
    for (int32_t id = 0; id < f->count; id++)
        f->out_start[id + 2] += f->out_start[id + 1];
    for (NodeId id = 0; id < f->count; id++)
        for (int64_t i = f->in_start[id]; i < f->in_start[id + 1]; i++) {
            Edge edge = f->in[i];
            NodeId producer = edge.node;
            edge.node = id;
            f->out[f->out_start[producer + 1]++] = edge;
        }
    array_free(&in);
    free(last_addition);
    free(earlier);
}

/* ---- drafts ------------------------------------------------------------------- */

static int64_t size_of(const Fuse *f, AxisId axis) {
    return f->module->axes.data[axis].size;
}

static bool order_has(const AxisOrder *order, AxisId axis) {
    for (int i = 0; i < order->count; i++)
        if (order->axes[i] == axis)
            return true;
    return false;
}

/* The same axes, in the same order where they have an extent. */
static bool same_order(const Fuse *f, const AxisOrder *a, const AxisOrder *b) {
    if (a->count != b->count)
        return false;
    for (int i = 0; i < a->count; i++)
        if (!order_has(b, a->axes[i]))
            return false;
    for (int i = 0, j = 0;; i++, j++) {
        while (i < a->count && size_of(f, a->axes[i]) == 1)
            i++;
        while (j < b->count && size_of(f, b->axes[j]) == 1)
            j++;
        if (i == a->count || j == b->count)
            return true;
        if (a->axes[i] != b->axes[j])
            return false;
    }
}

static AxisOrder placement_order(const Fuse *f, NodeId id) {
    const Placement *placement = &at(f, id)->placement;
    AxisOrder order = {.count = placement->order_count};
    INTERNAL_CHECK(placement->order_count >= 0);
    memcpy(order.axes, placement->order, sizeof order.axes);
    return order;
}

/* Cuts an order in the axes that a type has (rows) and the rest (inner). */
static void cut_order(const AxisOrder *order, Type kept, Draft *draft) {
    for (int i = 0; i < order->count; i++) {
        AxisOrder *part = type_has(kept, order->axes[i]) ? &draft->rows : &draft->inner;
        part->axes[part->count++] = order->axes[i];
    }
}

/* Are the summed axes the fastest of the input, leaving aside those of extent 1? */
static bool sums_fastest(const Fuse *f, const AxisOrder *input, Type kept) {
    bool kept_behind = false;
    for (int i = input->count - 1; i >= 0; i--) {
        if (size_of(f, input->axes[i]) == 1)
            continue;
        bool is_kept = type_has(kept, input->axes[i]);
        if (!is_kept && kept_behind)
            return false;
        kept_behind |= is_kept;
    }
    return true;
}

static Draft draft_for(const Fuse *f, NodeId id) {
    const Node *node = at(f, id);
    Draft draft = {.kind = GROUP_FLAT,
                   .first = id,
                   .last = id,
                   .size = 1,
                   .stacks = node->op == OP_STACK,
                   .overwrites = f->overwrites[id] >= 0};
    AxisOrder own = placement_order(f, id);
    if (node->op == OP_SUM || node->op == OP_MAX) {
        AxisOrder input = placement_order(f, node->inputs[0]);
        draft.kind = sums_fastest(f, &input, node->type) ? GROUP_ROW : GROUP_COLUMN;
        cut_order(&input, node->type, &draft);
    } else if (node->op == OP_DOT ||
               (node->op == OP_SCATTER_ADD && node->attr.from_count > 0)) {
        draft.kind = node->op == OP_DOT ? GROUP_PRODUCT : GROUP_SCATTER;
        AxisOrder input = placement_order(f, node->inputs[0]);
        for (int i = 0; i < input.count; i++) {
            bool summed = false;
            for (int j = 0; j < node->attr.from_count; j++)
                summed |= node->attr.from[j] == input.axes[i];
            if (summed)
                draft.inner.axes[draft.inner.count++] = input.axes[i];
        }
        draft.rows = own;
    } else {
        for (int i = 0; i < own.count; i++)
            if (node->op != OP_STACK || own.axes[i] != node->attr.to[0])
                draft.rows.axes[draft.rows.count++] = own.axes[i];
    }
    return draft;
}

static void start_drafts(Fuse *f) {
    size_t count = (size_t)f->count + 1;
    f->draft_of = arena_alloc_array(f->arena, count, sizeof *f->draft_of);
    f->next_member = arena_alloc_array(f->arena, count, sizeof *f->next_member);
    f->drafts = arena_alloc_array(f->arena, count, sizeof *f->drafts);
    f->at = arena_alloc_array(f->arena, count, sizeof *f->at);
    f->reached = arena_alloc_array(f->arena, count, sizeof *f->reached);
    int32_t drafts = 0;
    for (NodeId id = 0; id < f->count; id++) {
        f->next_member[id] = -1;
        f->draft_of[id] = -1;
        if (!f->real[id])
            continue;
        f->drafts[drafts] = draft_for(f, id);
        f->drafts[drafts].position = drafts;
        f->at[drafts] = drafts;
        f->draft_of[id] = drafts++;
    }
    f->at[drafts] = -1;
}

/* Moves the members of `from` into `into`. */
static void absorb(Fuse *f, int32_t into, int32_t from) {
    Draft *to = &f->drafts[into], *gone = &f->drafts[from];
    for (NodeId id = gone->first; id >= 0; id = f->next_member[id])
        f->draft_of[id] = into;
    f->next_member[to->last] = gone->first;
    to->last = gone->last;
    to->size += gone->size;
    to->stacks |= gone->stacks;
    to->overwrites |= gone->overwrites;
    gone->first = -1;
    f->at[gone->position] = -1;
}

/* ---- joining ------------------------------------------------------------------ */

static AxisOrder rows_then_inner(const Draft *draft) {
    AxisOrder order = draft->rows;
    for (int i = 0; i < draft->inner.count; i++)
        order.axes[order.count++] = draft->inner.axes[i];
    return order;
}

static bool has_edge(const Fuse *f, const Draft *from, int32_t to) {
    for (NodeId id = from->first; id >= 0; id = f->next_member[id])
        for (int64_t i = f->out_start[id]; i < f->out_start[id + 1]; i++)
            if (f->draft_of[f->out[i].node] == to)
                return true;
    return false;
}

/* What the two would be together (`early` runs first); false when no kernel is like that. */
static bool join_shapes(const Fuse *f, int32_t early, int32_t later, Draft *joined) {
    const Draft *a = &f->drafts[early], *b = &f->drafts[later];
    const Draft *flat = a->kind == GROUP_FLAT ? a : b, *other = flat == a ? b : a;
    *joined = *other;
    if (flat->kind == GROUP_FLAT && other->kind == GROUP_FLAT)
        return same_order(f, &a->rows, &b->rows);
    if (flat->kind == GROUP_FLAT && other->kind == GROUP_ROW) {
        AxisOrder full = rows_then_inner(other);
        return same_order(f, &flat->rows, &full) || same_order(f, &flat->rows, &other->rows);
    }
    if (flat->kind == GROUP_FLAT && other->kind == GROUP_COLUMN)
        return other == a && !flat->stacks && same_order(f, &flat->rows, &other->rows) &&
               has_edge(f, a, later);
    if (a->kind != b->kind || (a->kind != GROUP_ROW && a->kind != GROUP_COLUMN))
        return false;
    return same_order(f, &a->rows, &b->rows) && same_order(f, &a->inner, &b->inner) &&
           (a->kind == GROUP_ROW || !has_edge(f, a, later));
}

static bool reads_state(const Fuse *f, const Draft *draft, StateId state) {
    for (NodeId id = draft->first; id >= 0; id = f->next_member[id])
        for (int i = 0; i < at(f, id)->input_count; i++) {
            NodeId input = at(f, id)->inputs[i];
            while (node_is_view(at(f, input)))
                input = at(f, input)->inputs[0];
            if (at(f, input)->op == OP_STATE && at(f, input)->attr.integer == state)
                return true;
        }
    return false;
}

/* Does a draft overwrite a state that it or the other reads?  Only a flat kernel may, element
 * by element; in another the new value would take a copy. */
static bool overwrites_operand(const Fuse *f, const Draft *writer, const Draft *other) {
    for (NodeId id = writer->overwrites ? writer->first : -1; id >= 0; id = f->next_member[id])
        if (f->overwrites[id] >= 0 && (reads_state(f, writer, f->overwrites[id]) ||
                                       reads_state(f, other, f->overwrites[id])))
            return true;
    return false;
}

static bool comes_from(const Fuse *f, int32_t draft, int32_t early, bool direct_counts) {
    for (NodeId id = f->drafts[draft].first; id >= 0; id = f->next_member[id]) {
        for (int64_t i = f->in_start[id]; i < f->in_start[id + 1]; i++) {
            int32_t producer = f->draft_of[f->in[i].node];
            if (producer == early ? direct_counts || f->in[i].apart
                                  : f->reached[producer] == f->search)
                return true;
        }
    }
    return false;
}

/* Marks the drafts between two positions that lead from `early`; false when one of them, or an
 * edge that keeps the two apart, leads to `later`. */
static bool search_between(Fuse *f, int32_t early, int32_t later) {
    f->search++;
    for (int32_t p = f->drafts[early].position + 1; p <= f->drafts[later].position; p++) {
        int32_t draft = f->at[p];
        if (draft >= 0 && comes_from(f, draft, early, draft != later)) {
            if (draft == later)
                return false;
            f->reached[draft] = f->search;
        }
    }
    return true;
}

/* Closes up after a search: what does not lead from `early`, then the joined one, then the
 * rest. */
static void reorder_between(Fuse *f, int32_t begin, int32_t end, int32_t joined) {
    int32_t drafts[JOIN_WINDOW + 1], count = 0;
    for (int32_t p = begin; p <= end; p++)
        if (f->at[p] >= 0)
            drafts[count++] = f->at[p];
    int32_t place = begin;
    for (int pass = 0; pass < 3; pass++) {
        for (int32_t i = 0; i < count; i++) {
            bool is_joined = drafts[i] == joined;
            bool behind = !is_joined && f->reached[drafts[i]] == f->search;
            if ((pass == 0 && (is_joined || behind)) || (pass == 1 && !is_joined) ||
                (pass == 2 && !behind))
                continue;
            f->drafts[drafts[i]].position = place;
            f->at[place++] = drafts[i];
        }
    }
    while (place <= end)
        f->at[place++] = -1;
}

/* Joins two drafts if a kernel can be like that and no path leaves them and comes back. */
static bool join(Fuse *f, int32_t a, int32_t b) {
    if (a == b)
        return false;
    int32_t early = f->drafts[a].position < f->drafts[b].position ? a : b;
    int32_t later = early == a ? b : a;
    int32_t begin = f->drafts[early].position, end = f->drafts[later].position;
    Draft joined;
    if (end - begin > JOIN_WINDOW ||
        f->late[f->drafts[a].first] != f->late[f->drafts[b].first] ||
        !join_shapes(f, early, later, &joined) ||
        (joined.kind != GROUP_FLAT && (overwrites_operand(f, &f->drafts[a], &f->drafts[b]) ||
                                       overwrites_operand(f, &f->drafts[b], &f->drafts[a]))) ||
        !search_between(f, early, later))
        return false;
    bool early_is_larger = f->drafts[early].size >= f->drafts[later].size;
    int32_t into = early_is_larger ? early : later;
    absorb(f, into, early_is_larger ? later : early);
    f->drafts[into].kind = joined.kind;
    f->drafts[into].rows = joined.rows;
    f->drafts[into].inner = joined.inner;
    reorder_between(f, begin, end, into);
    return true;
}

/* ---- what is joined ----------------------------------------------------------- */

/* Is every consumer in the draft? */
static bool wanted_only_by(const Fuse *f, NodeId id, int32_t draft) {
    for (int64_t i = f->out_start[id]; i < f->out_start[id + 1]; i++)
        if (f->draft_of[f->out[i].node] != draft || f->out[i].apart)
            return false;
    return true;
}

/* A column or scatter kernel computes maps of its input itself when nobody else wants them. */
static void pull_in_operands(Fuse *f, NodeId root) {
    int32_t draft = f->draft_of[root];
    const Node *node = at(f, root);
    Type full = at(f, node->inputs[node->op == OP_SCATTER_ADD ? 1 : 0])->type;
    ARRAY(NodeId) pending = {0};
    array_push(&pending, root);
    while (pending.count) {
        NodeId reader = pending.data[--pending.count];
        for (int64_t i = f->in_start[reader]; i < f->in_start[reader + 1]; i++) {
            NodeId id = f->in[i].node;
            if (f->draft_of[id] == draft || !op_is_map(at(f, id)->op) ||
                at(f, id)->op == OP_COPY || f->written[id] || f->late[id] != f->late[root] ||
                !type_same_axes(at(f, id)->type, full) || !wanted_only_by(f, id, draft))
                continue;
            absorb(f, draft, f->draft_of[id]);
            array_push(&pending, id);
        }
    }
    array_free(&pending);
}

static void join_along_edges(Fuse *f) {
    for (NodeId id = 0; id < f->count; id++) {
        GroupKind kind = f->real[id] ? f->drafts[f->draft_of[id]].kind : GROUP_PRODUCT;
        Op op = at(f, id)->op;
        if ((kind == GROUP_COLUMN && (op == OP_SUM || op == OP_MAX)) ||
            (kind == GROUP_SCATTER && op == OP_SCATTER_ADD))
            pull_in_operands(f, id);
    }
    for (NodeId id = 0; id < f->count; id++)
        for (int64_t i = f->real[id] ? f->in_start[id] : 0;
             f->real[id] && i < f->in_start[id + 1]; i++)
            if (!f->in[i].apart)
                join(f, f->draft_of[f->in[i].node], f->draft_of[id]);
}

/* A draft that reads (or overwrites) some memory at every index of the memory's own axes. */
typedef struct Reader {
    int64_t memory; /* a node, or past all nodes: a state */
    NodeId reader;
} Reader;

typedef ARRAY(Reader) ReaderList;

static int compare_readers(const void *left, const void *right) {
    const Reader *a = left, *b = right;
    if (a->memory != b->memory)
        return a->memory < b->memory ? -1 : 1;
    return (a->reader > b->reader) - (a->reader < b->reader);
}

static void collect_readers(const Fuse *f, NodeId id, int operand, ReaderList *readers) {
    NodeId input = at(f, id)->inputs[operand];
    Reader reader = {input, id};
    Edge edge;
    if (at(f, input)->op == OP_STATE)
        reader.memory = f->count + at(f, input)->attr.integer;
    else if (!follow_operand(f, id, operand, &edge) || edge.apart || edge.node != input)
        return;
    array_push(readers, reader);
}

/* Kernels that stream over the same memory become one. */
static void join_siblings(Fuse *f) {
    enum { NEAR = 4 };
    ReaderList readers = {0};
    for (NodeId id = 0; id < f->count; id++)
        for (int i = 0; f->real[id] && i < at(f, id)->input_count; i++)
            collect_readers(f, id, i, &readers);
    for (int64_t i = 0; i < f->function->writes.count; i++) {
        const Write *write = &f->function->writes.data[i];
        Reader writer = {f->count + write->state, write_source(f->function, write->value)};
        array_push(&readers, writer);
    }
    if (readers.count)
        qsort(readers.data, (size_t)readers.count, sizeof *readers.data, compare_readers);
    for (int64_t i = 1; i < readers.count; i++)
        for (int64_t j = i - 1; j >= 0 && j >= i - NEAR; j--)
            if (readers.data[i].memory == readers.data[j].memory)
                join(f, f->draft_of[readers.data[j].reader],
                     f->draft_of[readers.data[i].reader]);
    array_free(&readers);
}

/* ---- what is stored ----------------------------------------------------------- */

/* When a draft is expected to run: drafts run in the order of their positions. */
static int32_t time_of(const Fuse *f, NodeId id) {
    return f->drafts[f->draft_of[id]].position;
}

static int64_t bytes_of(const Fuse *f, NodeId id) {
    int64_t elements = type_elements(f->module, at(f, id)->type);
    int64_t bytes = dtype_bytes(at(f, id)->type.dtype);
    return elements > INT64_MAX / 64 ? INT64_MAX / 8 : elements * bytes;
}

/* Memory is paid for by size and time: what keeping `bytes` from one time to another takes. */
static double memory_time(int64_t bytes, int32_t from, int32_t until) {
    return from < until ? (double)bytes * (until - from) : 0;
}

/* What computing a value again would take: FLOPs an element, and memory that would have to be
 * kept, or kept for longer, for that. */
typedef struct Recompute {
    int64_t bytes; /* of the value */
    int32_t until; /* when it is read last */
    double stored; /* what storing it would take */
    int cost;
    double kept;
    int large_count; /* values of its own size that are read in its place */
    int frontier_count;
    NodeId frontier[MAX_FRONTIER];
} Recompute;

static bool may_recompute(const Fuse *f, NodeId id) {
    return op_is_map(at(f, id)->op) && at(f, id)->op != OP_COPY && !f->written[id] &&
           !f->in_memory[id];
}

static double keeping(const Fuse *f, NodeId id, const Recompute *plan) {
    return memory_time(bytes_of(f, id), f->last_use[id], plan->until);
}

/* A value of which the recomputation reads the memory. */
static bool add_frontier(const Fuse *f, NodeId id, Recompute *plan) {
    for (int i = 0; i < plan->frontier_count; i++)
        if (plan->frontier[i] == id)
            return true;
    if (plan->frontier_count == MAX_FRONTIER)
        return false;
    plan->frontier[plan->frontier_count++] = id;
    plan->kept += keeping(f, id, plan);
    plan->large_count += bytes_of(f, id) > plan->bytes / 2;
    return true;
}

/* A bf16 value as f32, for those who compute with it: in a register, never in memory, where it
 * would be twice as large as what it is made of. */
static bool is_widening(const Fuse *f, NodeId id) {
    return at(f, id)->op == OP_CAST && at(f, at(f, id)->inputs[0])->type.dtype == TYPE_BF16 &&
           !f->in_memory[id] && !f->written[id];
}

/* Walks the operands of a value that would be computed again.  Recursion ends with the cost. */
static bool plan_recompute(const Fuse *f, NodeId id, Recompute *plan) {
    const Node *node = at(f, id);
    plan->cost += op_info[node->op].work;
    for (int i = 0; i < node->input_count && plan->cost <= RECOMPUTE_COST; i++) {
        NodeId input = node->inputs[i];
        while (node_is_view(at(f, input)) || is_widening(f, input))
            input = at(f, input)->inputs[0];
        bool further = f->real[input] && may_recompute(f, input) &&
                       keeping(f, input, plan) > plan->stored / 8;
        if (!f->real[input])
            plan->cost += f->free_cost[input];
        else if (further ? !plan_recompute(f, input, plan) : !add_frontier(f, input, plan))
            return false;
    }
    return plan->cost <= RECOMPUTE_COST;
}

/* Is the value read at indices of which several see the same element, so that each computes it?
 */
static bool is_broadcast(const Fuse *f, NodeId id) {
    int64_t elements = type_elements(f->module, at(f, id)->type);
    AxisOrder own = placement_order(f, id);
    for (int64_t i = f->out_start[id]; i < f->out_start[id + 1]; i++) {
        NodeId reader = f->out[i].node;
        const Draft *draft = &f->drafts[f->draft_of[reader]];
        bool is_row_value = draft->kind == GROUP_ROW && same_order(f, &own, &draft->rows);
        if (!is_row_value && type_elements(f->module, at(f, reader)->type) / 2 > elements)
            return true;
    }
    return false;
}

/* Is memory for the value dearer than computing it in every group that reads it?  What it reads
 * may be computed again in its turn, as long as both together do not take too much.  Where
 * memory is about equal, reading one value in its place is fine, since it need not be written;
 * two are not. */
static bool better_recomputed(Fuse *f, NodeId id) {
    Recompute plan = {.bytes = bytes_of(f, id), .until = f->outside[id], .cost = f->burden[id]};
    plan.stored = memory_time(plan.bytes, time_of(f, id), plan.until);
    if (f->no_fuse || !may_recompute(f, id) || !plan_recompute(f, id, &plan) ||
        plan.kept > (plan.large_count > 1 ? 0.5 : 1.25) * plan.stored ||
        (plan.cost - f->burden[id] > BROADCAST_COST && is_broadcast(f, id)))
        return false;
    for (int i = 0; i < plan.frontier_count; i++) {
        NodeId read = plan.frontier[i];
        if (f->last_use[read] < plan.until)
            f->last_use[read] = plan.until;
        if (f->burden[read] < plan.cost)
            f->burden[read] = plan.cost;
    }
    return true;
}

/* Whoever reads a widened value reads the bf16 one. */
static bool widen_again(Fuse *f, NodeId id) {
    NodeId read = at(f, id)->inputs[0];
    while (node_is_view(at(f, read)))
        read = at(f, read)->inputs[0];
    if (f->no_fuse || !is_widening(f, id))
        return false;
    if (f->last_use[read] < f->outside[id])
        f->last_use[read] = f->outside[id];
    if (f->burden[read] < f->burden[id])
        f->burden[read] = f->burden[id];
    return true;
}

/* When the value is last read by other drafts than its own: by its consumers there, and
 * wherever a consumer is computed again. */
static int32_t outside_time(const Fuse *f, NodeId id) {
    int32_t last = -1;
    for (int64_t i = f->out_start[id]; i < f->out_start[id + 1]; i++) {
        NodeId reader = f->out[i].node;
        if (f->out[i].order)
            continue;
        int32_t time = f->recomputed[reader] ? f->outside[reader] : -1;
        if (f->draft_of[reader] != f->draft_of[id] && time_of(f, reader) > time)
            time = time_of(f, reader);
        last = time > last ? time : last;
    }
    return last;
}

/* From the last value to the first, so that readers are settled before what they read. */
static void choose_stores(Fuse *f) {
    for (NodeId id = f->count - 1; id >= 0; id--) {
        f->last_use[id] = f->real[id] ? time_of(f, id) : -1;
        for (int64_t i = f->out_start[id]; i < f->out_start[id + 1]; i++) {
            NodeId reader = f->out[i].node;
            int32_t time = is_widening(f, reader) ? f->last_use[reader] : time_of(f, reader);
            if (!f->out[i].order && time > f->last_use[id])
                f->last_use[id] = time;
        }
    }
    for (NodeId id = f->count - 1; id >= 0; id--) {
        if (!f->real[id])
            continue;
        f->outside[id] = outside_time(f, id);
        bool dead = f->out_start[id] == f->out_start[id + 1] && !f->written[id];
        f->recomputed[id] =
            f->outside[id] >= 0 && (widen_again(f, id) || better_recomputed(f, id));
        f->function->nodes.data[id].placement.stored =
            dead || (f->outside[id] >= 0 && !f->recomputed[id]);
    }
}

/* ---- groups ------------------------------------------------------------------- */

static bool draft_stores(const Fuse *f, const Draft *draft) {
    for (NodeId id = draft->first; id >= 0; id = f->next_member[id])
        if (at(f, id)->placement.stored || f->written[id])
            return true;
    return false;
}

static void put_axes(const AxisOrder *order, AxisId *axes, int *count) {
    *count = order->count;
    memcpy(axes, order->axes, sizeof order->axes);
}

/* Numbers the drafts that store something, in a topological order. */
static void make_groups(Fuse *f) {
    Function *function = f->function;
    function->groups.count = 0;
    for (int64_t id = 0; id < function->nodes.count; id++)
        function->nodes.data[id].placement.group = -1;
    int32_t drafts = 0;
    for (int32_t id = 0; id < f->count; id++)
        drafts += f->real[id];
    for (int32_t p = 0; p < drafts; p++) {
        if (f->at[p] < 0 || !draft_stores(f, &f->drafts[f->at[p]]))
            continue;
        const Draft *draft = &f->drafts[f->at[p]];
        Group group = {.kind = draft->kind};
        put_axes(&draft->rows, group.rows, &group.row_count);
        put_axes(&draft->inner, group.inner, &group.inner_count);
        for (NodeId id = draft->first; id >= 0; id = f->next_member[id])
            if (!f->recomputed[id])
                function->nodes.data[id].placement.group = (int32_t)function->groups.count;
        array_push(&function->groups, group);
    }
}

/* ---- the pass ----------------------------------------------------------------- */

/* Uses by nodes, and by writes, of every node. */
static int32_t *count_uses(const Function *function) {
    int32_t *uses = checked_alloc((size_t)function->nodes.count * sizeof *uses);
    for (int64_t id = 0; id < function->nodes.count; id++)
        for (int i = 0; i < function->nodes.data[id].input_count; i++)
            uses[function->nodes.data[id].inputs[i]]++;
    for (int64_t i = 0; i < function->writes.count; i++)
        uses[function->writes.data[i].value]++;
    return uses;
}

/* What the layout pass promises of writes; a text given to `colac opt` may not keep it. */
static const char *check_writes(const Function *function) {
    bool *added = checked_alloc((size_t)function->module->states.count);
    int32_t *uses = count_uses(function);
    const char *broken = NULL;
    for (int64_t i = 0; i < function->writes.count; i++) {
        const Write *write = &function->writes.data[i];
        NodeId source = write_source(function, write->value);
        added[write->state] |= write->add;
        if (source < 0)
            broken = "a write's value is not computed";
        for (NodeId id = write->value;
             source >= 0 && write->add && node_at(function, source)->op == OP_DOT;
             id = node_at(function, id)->inputs[0]) {
            if (uses[id] > 1)
                broken = "a product that is added to a state has other uses";
            if (id == source)
                break;
        }
    }
    for (int64_t id = 0; id < function->nodes.count; id++)
        if (function->nodes.data[id].op == OP_STATE &&
            added[function->nodes.data[id].attr.integer])
            broken = "a state is both read and added to";
    free(added);
    free(uses);
    return broken;
}

/* Hand-written texts may leave out the order of leaves, views and masks. */
static void fill_orders(Function *function) {
    for (NodeId id = 0; id < function->nodes.count; id++) {
        Node *node = &function->nodes.data[id];
        Placement *placement = &node->placement;
        if (placement->order_count >= 0)
            continue;
        placement->order_count = node->type.rank;
        memcpy(placement->order, node->type.axes, sizeof placement->order);
        if (node->op == OP_INPUT)
            memcpy(placement->order, function->module->inputs.data[node->attr.integer].axes,
                   sizeof placement->order);
        if (node->op == OP_STATE)
            memcpy(placement->order, function->module->states.data[node->attr.integer].order,
                   sizeof placement->order);
    }
}

static void fuse_function(Module *module, Function *function, bool no_fuse) {
    Arena *arena = arena_new();
    size_t count = (size_t)function->nodes.count + 1;
    Fuse f = {.module = module,
              .function = function,
              .arena = arena,
              .no_fuse = no_fuse,
              .count = (int32_t)function->nodes.count,
              .real = arena_alloc(arena, count),
              .late = arena_alloc(arena, count),
              .written = arena_alloc(arena, count),
              .overwrites = arena_alloc_array(arena, count, sizeof(StateId)),
              .in_memory = arena_alloc(arena, count),
              .free_cost = arena_alloc_array(arena, count, sizeof(int32_t)),
              .recomputed = arena_alloc(arena, count),
              .outside = arena_alloc_array(arena, count, sizeof(int32_t)),
              .last_use = arena_alloc_array(arena, count, sizeof(int32_t)),
              .burden = arena_alloc_array(arena, count, sizeof(int32_t))};
    bool backward = false;
    for (NodeId id = 0; id < f.count; id++) {
        backward |= at(&f, id)->adjoint_of >= 0;
        f.late[id] = backward || at(&f, id)->clone != 0;
        f.overwrites[id] = -1;
    }
    for (int64_t i = 0; i < function->writes.count; i++) {
        NodeId source = write_source(function, function->writes.data[i].value);
        f.written[source] = true;
        if (!function->writes.data[i].add)
            f.overwrites[source] = function->writes.data[i].state;
    }
    mark_memory_operands(&f);
    find_real_nodes(&f);
    collect_edges(&f);
    start_drafts(&f);
    if (!no_fuse) {
        join_along_edges(&f);
        join_siblings(&f);
    }
    choose_stores(&f);
    make_groups(&f);
    choose_direct_writes(function, arena);
    arena_free(arena);
}

bool pass_fuse(PassContext *context) {
    Module *module = context->module;
    for (int64_t i = 0; i < module->functions.count; i++) {
        const char *broken = check_writes(module->functions.data[i]);
        if (broken) {
            refuse_module(context, "fuse",
                          "function `%s` is not as the layout pass gives it: %s",
                          module->functions.data[i]->name, broken);
            return false;
        }
        fill_orders(module->functions.data[i]);
        fuse_function(module, module->functions.data[i], context->no_fuse);
    }
    return true;
}
