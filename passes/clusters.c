/* passes/clusters.c: interiors.
 *
 * needs   a graph with a function `micro`
 * gives   for every node, whether it lies in a cluster (passes.h says what that is)
 * example s = dot(q, k; K) : [B,J,G,S,T], p = softmax(s; T), dot(p, v; T): the pair (S, T)
 *         comes from two activations and ends in a reduction and a dot with one: s, p and what is
 *         between them are an interior.  F in dot(h, down; F) ends in a weight: h is none.
 *
 * From every dot, for every pair of axes that it brings together, the set is flooded in both
 * directions; the first exit that is not allowed ends the flood.  What a flood reached that
 * ended so is remembered, and ends the next one that comes there: every value is visited about
 * once a pair, however many dots lead to it. */
#include "passes/passes.h"

typedef struct Pair {
    AxisId a, b;
} Pair;

typedef struct Visit {
    NodeId node;
    Pair pair; /* as the node names it */
} Visit;

enum { FAILED = -1 };
typedef struct Reached {
    Visit visit;
    int64_t flood; /* which; or FAILED */
} Reached;

typedef struct Clusters {
    const Function *function;
    const bool *forward;
    bool *sampled;       /* by node: does it depend on an input? */
    int64_t *user_start; /* by node: who reads it, forward nodes alone */
    NodeId *users;
    Reached *reached; /* a hash table of what floods reached; flood 0: free */
    int64_t reached_count, reached_capacity;
    int64_t flood;       /* the number of this one, from 1 */
    ARRAY(Visit) visits; /* of this one */
    bool from_activations, reductions_alone, met_failed;
    bool *interior;
} Clusters;

static const Node *at(const Clusters *c, NodeId id) {
    return &c->function->nodes.data[id];
}

/* Where both became one axis, by a merge, there is no pair. */
static bool carries(Type type, Pair pair) {
    return pair.a != pair.b && type_has(type, pair.a) && type_has(type, pair.b);
}

static bool renames(const Node *node) {
    return op_is_view(node->op) && node->op != OP_PICK;
}

/* What a view makes of its operand's axis: of what it splits, the first part. */
static AxisId renamed(const Node *node, AxisId axis) {
    for (int i = 0; renames(node) && i < node->attr.from_count; i++)
        if (node->attr.from[i] == axis)
            return node->attr.to[0];
    return axis;
}

static void index_users(Clusters *c, Arena *arena) {
    size_t nodes = (size_t)c->function->nodes.count;
    c->user_start = arena_alloc_array(arena, nodes + 2, sizeof(int64_t));
    int64_t total = 0;
    for (size_t id = 0; id < nodes; id++)
        for (int i = 0; i < at(c, (NodeId)id)->input_count && c->forward[id]; i++, total++)
            c->user_start[at(c, (NodeId)id)->inputs[i] + 2]++;
    c->users = arena_alloc_array(arena, (size_t)total, sizeof(NodeId));
    for (size_t id = 0; id < nodes; id++)
        c->user_start[id + 2] += c->user_start[id + 1];
    for (size_t id = 0; id < nodes; id++)
        for (int i = 0; i < at(c, (NodeId)id)->input_count && c->forward[id]; i++)
            c->users[c->user_start[at(c, (NodeId)id)->inputs[i] + 1]++] = (NodeId)id;
}

/* ---- what floods reached ----------------------------------------------------------- */

static Reached *reached_slot(const Clusters *c, Visit visit) {
    uint64_t key =
        (uint64_t)(uint32_t)visit.node << 32 | (uint64_t)visit.pair.a << 16 | visit.pair.b;
    int64_t mask = c->reached_capacity - 1;
    int64_t at = (int64_t)(hash_bytes(&key, sizeof key, 0) & (uint64_t)mask);
    while (c->reached[at].flood != 0 && (c->reached[at].visit.node != visit.node ||
                                         c->reached[at].visit.pair.a != visit.pair.a ||
                                         c->reached[at].visit.pair.b != visit.pair.b))
        at = (at + 1) & mask;
    return &c->reached[at];
}

static void resize_reached(Clusters *c, int64_t capacity) {
    Reached *old = c->reached;
    int64_t old_capacity = c->reached_capacity;
    c->reached = checked_alloc((size_t)capacity * sizeof *c->reached);
    c->reached_capacity = capacity;
    for (int64_t i = 0; i < old_capacity; i++)
        if (old[i].flood != 0)
            *reached_slot(c, old[i].visit) = old[i];
    free(old);
}

/* ---- floods ------------------------------------------------------------------------ */

/* What an earlier flood marked whole is done with. */
static void reach(Clusters *c, NodeId node, Pair pair) {
    Visit visit = {node, pair};
    Reached *slot = reached_slot(c, visit);
    c->met_failed |= slot->flood == FAILED;
    if (slot->flood != 0)
        return;
    *slot = (Reached){visit, c->flood};
    array_push(&c->visits, visit);
    if (2 * ++c->reached_count > c->reached_capacity)
        resize_reached(c, 2 * c->reached_capacity);
}

/* Do two operands that both depend on the samples bring the pair together in this dot? */
static bool makes_from_activations(const Clusters *c, const Node *dot, Pair pair) {
    Type left = at(c, dot->inputs[0])->type, right = at(c, dot->inputs[1])->type;
    bool apart = (type_has(left, pair.a) && !type_has(right, pair.a) &&
                  type_has(right, pair.b) && !type_has(left, pair.b)) ||
                 (type_has(left, pair.b) && !type_has(right, pair.b) &&
                  type_has(right, pair.a) && !type_has(left, pair.a));
    return apart && c->sampled[dot->inputs[0]] && c->sampled[dot->inputs[1]];
}

/* The way out of a cluster: false where it is not allowed. */
static bool leaves(Clusters *c, NodeId node, NodeId user) {
    const Node *out = at(c, user);
    if (op_info[out->op].axis_rule == AXES_REDUCE)
        return true;
    if (out->op != OP_DOT)
        return false;
    c->reductions_alone = false;
    NodeId other = out->inputs[out->inputs[0] == node];
    return c->sampled[other];
}

/* Every pair of the operand's that this one is there: of a merged axis, each part. */
static bool spread_below(Clusters *c, Visit visit, NodeId operand) {
    const Node *node = at(c, visit.node);
    Type type = at(c, operand)->type;
    bool carried = false;
    for (int i = 0; i < type.rank; i++)
        for (int k = 0; k < type.rank; k++) {
            Pair below = {type.axes[i], type.axes[k]};
            if (i == k || renamed(node, below.a) != visit.pair.a ||
                renamed(node, below.b) != visit.pair.b)
                continue;
            carried = true;
            if (c->forward[operand] && c->sampled[operand])
                reach(c, operand, below);
        }
    return carried;
}

static bool spread(Clusters *c, Visit visit) {
    const Node *node = at(c, visit.node);
    bool made = node->op == OP_DOT;
    for (int i = 0; i < node->input_count; i++)
        made &= !spread_below(c, visit, node->inputs[i]);
    c->from_activations |= made && makes_from_activations(c, node, visit.pair);
    for (int64_t i = c->user_start[visit.node]; i < c->user_start[visit.node + 1]; i++) {
        NodeId user = c->users[i];
        Pair above = {renamed(at(c, user), visit.pair.a), renamed(at(c, user), visit.pair.b)};
        if (carries(at(c, user)->type, above))
            reach(c, user, above);
        else if (!leaves(c, visit.node, user))
            return false;
    }
    return true;
}

static void flood_from(Clusters *c, NodeId dot, Pair pair) {
    c->flood++;
    c->visits.count = 0;
    c->from_activations = c->met_failed = false;
    c->reductions_alone = true;
    reach(c, dot, pair);
    bool fine = !c->met_failed;
    for (int64_t i = 0; i < c->visits.count && fine; i++)
        fine = spread(c, c->visits.data[i]) && !c->met_failed;
    fine &= c->from_activations || c->reductions_alone;
    for (int64_t i = 0; i < c->visits.count; i++)
        if (fine)
            c->interior[c->visits.data[i].node] = true;
        else
            reached_slot(c, c->visits.data[i])->flood = FAILED;
}

/* All pairs of an own axis of one operand and one of the other. */
static void flood_pairs(Clusters *c, NodeId id) {
    const Node *dot = at(c, id);
    Type left = at(c, dot->inputs[0])->type, right = at(c, dot->inputs[1])->type;
    for (int i = 0; i < left.rank; i++)
        for (int k = 0; k < right.rank; k++)
            if (type_has(dot->type, left.axes[i]) && !type_has(right, left.axes[i]) &&
                type_has(dot->type, right.axes[k]) && !type_has(left, right.axes[k]))
                flood_from(c, id, (Pair){left.axes[i], right.axes[k]});
}

bool *sampled_part(const Function *function, Arena *arena) {
    bool *sampled = arena_alloc(arena, (size_t)function->nodes.count);
    for (int64_t id = 0; id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        sampled[id] = node->op == OP_INPUT;
        for (int i = 0; i < node->input_count; i++)
            sampled[id] |= sampled[node->inputs[i]];
    }
    return sampled;
}

bool *cluster_interiors(const Function *function, Arena *arena) {
    size_t nodes = (size_t)function->nodes.count;
    bool *forward = forward_part(function);
    Clusters c = {.function = function,
                  .forward = forward,
                  .sampled = sampled_part(function, arena),
                  .interior = arena_alloc(arena, nodes)};
    index_users(&c, arena);
    resize_reached(&c, 1024);
    for (size_t id = 0; id < nodes; id++)
        if (forward[id] && c.sampled[id] && at(&c, (NodeId)id)->op == OP_DOT)
            flood_pairs(&c, (NodeId)id);
    for (size_t id = 0; id < nodes; id++) {
        NodeId primal = at(&c, (NodeId)id)->adjoint_of;
        c.interior[id] |= primal >= 0 && c.interior[primal];
    }
    array_free(&c.visits);
    free(c.reached);
    free(forward);
    return c.interior;
}
