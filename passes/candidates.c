/* passes/candidates.c: which values the block instances of `micro` may keep, and at what price.
 *
 * needs   a graph with gradients in `micro`
 * gives   patterns of block instances that are equal node by node, and for each pattern points:
 *         sets of values to keep, with their bytes and the FLOPs of the clones that they imply
 * plan    reads `recompute` (what it speaks of is not decided here)
 * example layer[0] … layer[7], pre = dot(x, A), low = silu(pre), y = dot(low, B), where the
 *         backward part reads pre and low: the points {pre, low}, {pre}, {}, of 0, n r and
 *         n (r + 2 d r) FLOPs; {low} alone would cost as much as {} does for pre
 *
 * A value is had by the backward part either because it is kept, which takes its bytes, or
 * because it is computed again, which takes its FLOPs and what it is computed from.  For a
 * price of a byte in FLOPs the cheapest set is a least cut; the prices at which the set changes
 * are found by cutting where two known sets cost the same. */
#include "passes/passes.h"

enum { MAX_CORNERS = 24 };    /* of the hull of a pattern */
enum { MAX_POINTS = 48 };     /* with those between */
enum { FEW_INSTANCES = 4 };   /* so many make steps of a corner to the next too coarse */
enum { LARGEST_CUT = 30000 }; /* nodes of a pattern; beyond, three points are made by rule */
enum { MAX_CANDIDATES_OF_ALL = 12 };
static const double least_price = 1.0 / 4096; /* FLOPs a byte: less than ops with FLOPs take */

/* A pattern's nodes by number, and what follows from them. */
typedef struct Cone {
    int64_t count;
    double *flops;
    int64_t *bytes;
    bool *wanted; /* the backward part reads it */
    bool *may_keep;
    bool *is_map;
    int64_t *input_start;
    int32_t *inputs; /* those in the cone */
} Cone;

typedef struct Survey {
    const PassContext *context;
    const Function *micro;
    const KeepChoice *fixed;
    Arena *arena;
    bool *forward;
    bool *settled; /* by scope: a recompute directive speaks of it */
    ScopeId *owners;
    ScopeId *unit_of_scope; /* the outermost instance around it; -1: none */
    ScopeId *unit;          /* by node: of those that can be decided or computed again; -1 */
    bool *wanted, *inside;  /* by node: read by the backward part; needed for what is */
    int32_t *number;        /* by node: its place in its instance's list */
} Survey;

/* ---- instances ----------------------------------------------------------------------- */

static bool is_in_loop(const char *path) {
    size_t length = strlen(path);
    return length && path[length - 1] == ']';
}

/* Outermost instances: the first on the way from the root that are no mere frame of a loop. */
static void find_units(Survey *s) {
    const Module *module = s->micro->module;
    int64_t scopes = module->scopes.count;
    bool *frame = arena_alloc(s->arena, (size_t)scopes);
    for (int64_t i = scopes - 1; i > 0; i--) {
        const Scope *scope = &module->scopes.data[i];
        frame[scope->parent] |= (is_in_loop(scope->path) || frame[i]) &&
                                !is_in_loop(module->scopes.data[scope->parent].path);
    }
    s->unit_of_scope = arena_alloc_array(s->arena, (size_t)scopes, sizeof(ScopeId));
    s->unit_of_scope[0] = -1;
    for (ScopeId i = 1; i < scopes; i++) {
        ScopeId above = s->unit_of_scope[module->scopes.data[i].parent];
        s->unit_of_scope[i] = above >= 0 ? above : frame[i] ? -1 : i;
    }
}

static void find_settled(Survey *s) {
    const Compilation *c = s->context->compilation;
    const Module *module = s->micro->module;
    s->settled = arena_alloc(s->arena, (size_t)module->scopes.count);
    for (int64_t i = 1; i < module->scopes.count; i++) {
        s->settled[i] = s->settled[module->scopes.data[i].parent];
        for (int d = 0; c && d < c->recompute_count && !s->settled[i]; d++)
            s->settled[i] = recompute_matches(c, c->recomputes[d], module->scopes.data[i].path);
    }
}

/* Nodes that are there for the backward part without being kept have no unit; nor have those
 * that must stay, and values that another instance reads: so instances can be judged apart. */
static void assign_nodes(Survey *s) {
    const Function *micro = s->micro;
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        const Node *node = node_at(micro, id);
        bool there = !s->forward[id] || !node->input_count || node->is_static ||
                     node->on_host || (s->settled[s->owners[id]] && s->fixed->kept[id]);
        s->unit[id] = there ? -1 : s->unit_of_scope[s->owners[id]];
    }
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        const Node *node = node_at(micro, id);
        for (int i = 0; i < node->input_count; i++) {
            NodeId input = node->inputs[i];
            if (s->unit[input] < 0)
                continue;
            if (!s->forward[id])
                s->wanted[input] = true;
            else if (s->unit[id] >= 0 && s->unit[id] != s->unit[input])
                s->unit[input] = -1;
        }
    }
    for (NodeId id = (NodeId)micro->nodes.count - 1; id >= 0; id--) {
        const Node *node = node_at(micro, id);
        s->inside[id] = s->unit[id] >= 0 && (s->inside[id] || s->wanted[id]);
        for (int i = 0; i < node->input_count && s->inside[id]; i++)
            s->inside[node->inputs[i]] = true;
    }
}

/* ---- patterns ------------------------------------------------------------------------ */

typedef struct Instance {
    ScopeId scope;
    int64_t count, next;
    NodeId *nodes;
    uint64_t hash;
} Instance;

static uint64_t hash_number(uint64_t hash, int64_t number) {
    return hash_bytes(&number, sizeof number, hash);
}

/* What makes two instances' nodes the same: all but the names of axes and the instance. */
static uint64_t hash_instance_node(const Survey *s, const Instance *instance, NodeId id,
                                   uint64_t hash) {
    const Module *module = s->micro->module;
    const Node *node = node_at(s->micro, id);
    const char *path = module->scopes.data[node->scope].path;
    size_t own = strlen(module->scopes.data[instance->scope].path);
    if (s->unit_of_scope[node->scope] == instance->scope && strlen(path) >= own)
        hash = hash_bytes(path + own, strlen(path + own), hash);
    hash = hash_number(hash, node->op);
    hash = hash_number(hash, node->type.dtype);
    hash = hash_number(hash, node->ordinal);
    hash = hash_number(hash, s->wanted[id] + 2 * s->settled[s->owners[id]]);
    for (int i = 0; i < node->type.rank; i++)
        hash = hash_number(hash, module->axes.data[node->type.axes[i]].size);
    double flops = node_flops(s->micro, node);
    hash = hash_bytes(&flops, sizeof flops, hash);
    for (int i = 0; i < node->input_count; i++) {
        NodeId input = node->inputs[i];
        hash = hash_number(hash, s->unit[input] >= 0 ? s->number[input] : -1);
    }
    return hash;
}

/* Instances with something to decide or to compute again, in the order of their first nodes. */
static Instance *list_instances(Survey *s, int64_t *count) {
    int64_t nodes = s->micro->nodes.count, scopes = s->micro->module->scopes.count;
    int64_t *place = arena_alloc_array(s->arena, (size_t)scopes, sizeof *place);
    Instance *list = arena_alloc_array(s->arena, (size_t)scopes, sizeof *list);
    *count = 0;
    for (NodeId id = 0; id < nodes; id++) {
        if (!s->inside[id])
            continue;
        ScopeId unit = s->unit[id];
        if (!place[unit]) {
            list[(*count)++] = (Instance){.scope = unit};
            place[unit] = *count;
        }
        s->number[id] = (int32_t)list[place[unit] - 1].count++;
    }
    for (int64_t i = 0; i < *count; i++)
        list[i].nodes =
            arena_alloc_array(s->arena, (size_t)list[i].count, sizeof *list[i].nodes);
    for (NodeId id = 0; id < nodes; id++) {
        if (!s->inside[id])
            continue;
        Instance *instance = &list[place[s->unit[id]] - 1];
        instance->nodes[instance->next++] = id;
        instance->hash = hash_instance_node(s, instance, id, instance->hash);
    }
    return list;
}

static void add_instance(BlockPattern *pattern, const Instance *instance, int64_t room,
                         Arena *arena) {
    if (!pattern->nodes) {
        pattern->nodes = arena_alloc_array(arena, (size_t)room, sizeof *pattern->nodes);
        pattern->scopes = arena_alloc_array(arena, (size_t)room, sizeof *pattern->scopes);
        pattern->node_count = instance->count;
    }
    pattern->nodes[pattern->instance_count] = instance->nodes;
    pattern->scopes[pattern->instance_count++] = instance->scope;
}

static int by_pattern(const void *left, const void *right) {
    const Instance *a = *(Instance *const *)left, *b = *(Instance *const *)right;
    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    if (a->count != b->count)
        return a->count < b->count ? -1 : 1;
    return (a->nodes[0] > b->nodes[0]) - (a->nodes[0] < b->nodes[0]);
}

static int by_first_node(const void *left, const void *right) {
    const BlockPattern *a = left, *b = right;
    return (a->nodes[0][0] > b->nodes[0][0]) - (a->nodes[0][0] < b->nodes[0][0]);
}

static BlockPatterns group_instances(Survey *s) {
    int64_t count;
    Instance *list = list_instances(s, &count);
    Instance **order = arena_alloc_array(s->arena, (size_t)count, sizeof *order);
    for (int64_t i = 0; i < count; i++)
        order[i] = &list[i];
    if (count)
        qsort(order, (size_t)count, sizeof *order, by_pattern);
    BlockPatterns patterns = {
        .data = arena_alloc_array(s->arena, (size_t)count, sizeof(BlockPattern))};
    for (int64_t begin = 0, end; begin < count; begin = end) {
        for (end = begin; end < count && order[end]->hash == order[begin]->hash &&
                          order[end]->count == order[begin]->count;)
            end++;
        BlockPattern *pattern = &patterns.data[patterns.count++];
        for (int64_t i = begin; i < end; i++)
            add_instance(pattern, order[i], end - begin, s->arena);
    }
    if (patterns.count)
        qsort(patterns.data, (size_t)patterns.count, sizeof *patterns.data, by_first_node);
    return patterns;
}

/* ---- the price of a set ---------------------------------------------------------------- */

static Cone cone_of(const Survey *s, const BlockPattern *pattern) {
    const int64_t most = INT64_MAX / MAX_NODES; /* sums stay countable; no memory holds it */
    size_t count = (size_t)pattern->node_count;
    Cone cone = {.count = pattern->node_count,
                 .flops = arena_alloc_array(s->arena, count, sizeof(double)),
                 .bytes = arena_alloc_array(s->arena, count, sizeof(int64_t)),
                 .wanted = arena_alloc(s->arena, count),
                 .may_keep = arena_alloc(s->arena, count),
                 .is_map = arena_alloc(s->arena, count),
                 .input_start = arena_alloc_array(s->arena, count + 1, sizeof(int64_t))};
    int64_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += node_at(s->micro, pattern->nodes[0][i])->input_count;
    cone.inputs = arena_alloc_array(s->arena, (size_t)total, sizeof *cone.inputs);
    total = 0;
    for (size_t i = 0; i < count; i++) {
        NodeId id = pattern->nodes[0][i];
        const Node *node = node_at(s->micro, id);
        cone.flops[i] = node_flops(s->micro, node);
        int64_t bytes = type_elements(s->micro->module, node->type);
        bytes = bytes > most / 8 ? most : bytes * dtype_bytes(node->type.dtype);
        cone.bytes[i] = bytes;
        cone.wanted[i] = s->wanted[id];
        cone.may_keep[i] = node_can_be_stored(node) && !s->settled[s->owners[id]];
        cone.is_map[i] = op_is_map(node->op);
        cone.input_start[i] = total;
        for (int k = 0; k < node->input_count; k++)
            if (s->unit[node->inputs[k]] >= 0)
                cone.inputs[total++] = s->number[node->inputs[k]];
    }
    cone.input_start[count] = total;
    return cone;
}

/* FLOPs and bytes of a set; what of it is not used leaves it. */
static void price(const Cone *cone, KeepPoint *point, bool *needed) {
    memcpy(needed, cone->wanted, (size_t)cone->count);
    point->flops = 0;
    point->bytes = 0;
    for (int64_t i = cone->count - 1; i >= 0; i--) {
        point->kept[i] &= needed[i] && cone->may_keep[i];
        if (!needed[i])
            continue;
        if (point->kept[i]) {
            point->bytes += cone->bytes[i];
            continue;
        }
        point->flops += cone->flops[i];
        for (int64_t k = cone->input_start[i]; k < cone->input_start[i + 1]; k++)
            needed[cone->inputs[k]] = true;
    }
}

/* ---- sets by cuts ---------------------------------------------------------------------- */

typedef ARRAY(KeepPoint) PointList;

typedef struct Pricing {
    const Cone *cone;
    CutNetwork network;
    bool *chosen, *needed;
    PointList points;
    Arena *arena;
} Pricing;

/* Cheapest for FLOPs + price * bytes.  Node 2i of the network: value i is had; 2i + 1: it is
 * computed again, which gains the price of its bytes, at its FLOPs. */
static KeepPoint cut_at(Pricing *p, double price_of_byte) {
    const Cone *cone = p->cone;
    double total = 1;
    for (int64_t i = 0; i < cone->count; i++)
        total += cone->flops[i] + price_of_byte * (double)cone->bytes[i];
    double scale = (double)(INT64_C(1) << 52) / total;
    closure_clear(&p->network, 2 * cone->count);
    for (int64_t i = 0; i < cone->count; i++) {
        int64_t kept = (int64_t)(scale * price_of_byte * (double)cone->bytes[i]);
        int64_t again = (int64_t)(scale * cone->flops[i]);
        if (cone->wanted[i])
            closure_gain(&p->network, 2 * i, CUT_ENDLESS);
        int64_t maker = 2 * i;
        if (cone->may_keep[i]) {
            closure_cost(&p->network, 2 * i, kept);
            if (again >= kept)
                continue; /* never computed again */
            maker = 2 * i + 1;
            closure_gain(&p->network, maker, kept - again);
            closure_requires(&p->network, maker, 2 * i);
        } else {
            closure_cost(&p->network, maker, again);
        }
        for (int64_t k = cone->input_start[i]; k < cone->input_start[i + 1]; k++)
            closure_requires(&p->network, maker, 2 * (int64_t)cone->inputs[k]);
    }
    closure_solve(&p->network, p->chosen);
    KeepPoint point = {.kept = arena_alloc(p->arena, (size_t)cone->count)};
    for (int64_t i = 0; i < cone->count; i++)
        point.kept[i] = cone->may_keep[i] && p->chosen[2 * i] && !p->chosen[2 * i + 1];
    price(cone, &point, p->needed);
    return point;
}

static int by_flops(const void *left, const void *right) {
    const KeepPoint *a = left, *b = right;
    if (a->flops != b->flops)
        return a->flops < b->flops ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

/* Sorts, and drops what costs more FLOPs than another without taking fewer bytes. */
static void keep_undominated(PointList *points) {
    if (points->count)
        qsort(points->data, (size_t)points->count, sizeof *points->data, by_flops);
    int64_t count = 0;
    for (int64_t i = 0; i < points->count; i++)
        if (!count || points->data[i].bytes < points->data[count - 1].bytes)
            points->data[count++] = points->data[i];
    points->count = count;
}

/* Cuts where two neighbours cost the same, until no set is cheaper there. */
static void find_corners(Pricing *p) {
    array_push(&p->points, cut_at(p, least_price));
    KeepPoint nothing = {.kept = arena_alloc(p->arena, (size_t)p->cone->count)};
    price(p->cone, &nothing, p->needed);
    array_push(&p->points, nothing);
    keep_undominated(&p->points);
    for (int64_t i = 0; i + 1 < p->points.count && p->points.count < MAX_CORNERS;) {
        KeepPoint a = p->points.data[i], b = p->points.data[i + 1];
        double price_of_byte = (b.flops - a.flops) / (double)(a.bytes - b.bytes);
        KeepPoint middle = cut_at(p, price_of_byte);
        double chord = a.flops + price_of_byte * (double)a.bytes;
        double value = middle.flops + price_of_byte * (double)middle.bytes;
        if (value < chord * (1 - 1e-9) && middle.bytes < a.bytes && middle.bytes > b.bytes) {
            array_push(&p->points, middle);
            keep_undominated(&p->points);
        } else {
            i++;
        }
    }
}

/* Sets between two corners: one value after the other, the one that saves most bytes for its
 * FLOPs. */
static void walk_between(Pricing *p, KeepPoint from, KeepPoint to) {
    int64_t count = p->cone->count;
    KeepPoint best = {0}, tried = {.kept = arena_alloc(p->arena, (size_t)count)};
    for (bool moved = true; moved && p->points.count < MAX_POINTS;) {
        moved = false;
        double best_ratio = 0;
        for (int64_t i = 0; i < count; i++) {
            if (from.kept[i] == to.kept[i])
                continue;
            memcpy(tried.kept, from.kept, (size_t)count);
            tried.kept[i] = to.kept[i];
            price(p->cone, &tried, p->needed);
            if (tried.bytes >= from.bytes || tried.bytes <= to.bytes ||
                tried.flops < from.flops || tried.flops >= to.flops)
                continue;
            double ratio = (double)(from.bytes - tried.bytes) / (tried.flops - from.flops + 1);
            if (ratio <= best_ratio)
                continue;
            best_ratio = ratio;
            best = tried;
            tried.kept = arena_alloc(p->arena, (size_t)count);
            moved = true;
        }
        if (moved) {
            array_push(&p->points, best);
            from = best;
        }
    }
}

/* Patterns too large for cuts: products and reductions alone are kept, or nothing is. */
static void make_plain_points(Pricing *p) {
    for (int round = 0; round < 2; round++) {
        KeepPoint point = {.kept = arena_alloc(p->arena, (size_t)p->cone->count)};
        for (int64_t i = 0; i < p->cone->count; i++)
            point.kept[i] = round == 0 && !p->cone->is_map[i];
        price(p->cone, &point, p->needed);
        array_push(&p->points, point);
    }
    keep_undominated(&p->points);
}

/* ---- all subsets ------------------------------------------------------------------------ */

/* Sets of which nothing is unused: others are the same as one of these. */
static void make_all_subsets(Pricing *p) {
    ARRAY(int32_t) candidates = {0};
    for (int32_t i = 0; i < p->cone->count; i++)
        if (p->cone->may_keep[i])
            array_push(&candidates, i);
    INTERNAL_CHECK(candidates.count <= MAX_CANDIDATES_OF_ALL);
    bool *kept = arena_alloc(p->arena, (size_t)p->cone->count);
    for (uint32_t mask = 0; mask < UINT32_C(1) << candidates.count; mask++) {
        for (int64_t i = 0; i < candidates.count; i++)
            kept[candidates.data[i]] = mask >> i & 1;
        KeepPoint point = {.kept = arena_alloc(p->arena, (size_t)p->cone->count)};
        memcpy(point.kept, kept, (size_t)p->cone->count);
        price(p->cone, &point, p->needed);
        if (memcmp(point.kept, kept, (size_t)p->cone->count) == 0)
            array_push(&p->points, point);
    }
    array_free(&candidates);
    qsort(p->points.data, (size_t)p->points.count, sizeof *p->points.data, by_flops);
}

/* ---- points of all patterns --------------------------------------------------------------- */

/* Point 0 keeps everything, though others may take no more FLOPs (a gather takes none) and fewer
 * bytes; those follow, without what is point 0 again or is no better. */
static void list_points(Pricing *p, BlockPattern *pattern, const KeepPoint *everything,
                        bool all) {
    pattern->points =
        arena_alloc_array(p->arena, (size_t)p->points.count + 1, sizeof *pattern->points);
    pattern->points[0] = *everything;
    pattern->point_count = 1;
    for (int64_t i = 0; i < p->points.count; i++) {
        const KeepPoint *point = &p->points.data[i];
        bool known =
            all ? memcmp(point->kept, everything->kept, (size_t)p->cone->count) == 0
                : point->flops <= everything->flops && point->bytes >= everything->bytes;
        if (!known)
            pattern->points[pattern->point_count++] = *point;
    }
}

static void find_points(Pricing *p, BlockPattern *pattern, bool all) {
    KeepPoint everything = {.kept = arena_alloc(p->arena, (size_t)p->cone->count)};
    memset(everything.kept, true, (size_t)p->cone->count);
    price(p->cone, &everything, p->needed);
    if (all) {
        make_all_subsets(p);
    } else if (pattern->node_count > LARGEST_CUT) {
        make_plain_points(p);
    } else {
        find_corners(p);
        int64_t corners = p->points.count;
        for (int64_t i = 0; i + 1 < corners && pattern->instance_count <= FEW_INSTANCES; i++)
            walk_between(p, p->points.data[i], p->points.data[i + 1]);
        keep_undominated(&p->points);
    }
    list_points(p, pattern, &everything, all);
}

static void price_pattern(Survey *s, BlockPattern *pattern, const Cone *cone, bool all) {
    Pricing p = {.cone = cone,
                 .chosen = arena_alloc(s->arena, 2 * (size_t)cone->count),
                 .needed = arena_alloc(s->arena, (size_t)cone->count),
                 .arena = s->arena};
    find_points(&p, pattern, all);
    array_free(&p.points);
    closure_free(&p.network);
}

/* The number of assignments of points to instances of the first patterns; -1 above the
 * limit. */
static int64_t count_assignments(const BlockPatterns *patterns, int64_t count, int64_t limit) {
    int64_t product = 1;
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < patterns->data[i].instance_count; k++) {
            product *= patterns->data[i].point_count;
            if (product > limit)
                return -1;
        }
    return product;
}

static bool may_hold_all(const BlockPatterns *patterns) {
    for (int64_t i = 0; i < patterns->count; i++)
        if (patterns->data[i].candidate_count > MAX_CANDIDATES_OF_ALL)
            return false;
    return true;
}

BlockPatterns find_block_patterns(const PassContext *context, const Function *micro,
                                  const KeepChoice *fixed, int64_t max_assignments,
                                  Arena *arena) {
    size_t nodes = (size_t)micro->nodes.count;
    Survey s = {.context = context,
                .micro = micro,
                .fixed = fixed,
                .arena = arena,
                .forward = forward_part(micro),
                .owners = value_owners(micro, arena),
                .unit = arena_alloc_array(arena, nodes, sizeof(ScopeId)),
                .wanted = arena_alloc(arena, nodes),
                .inside = arena_alloc(arena, nodes),
                .number = arena_alloc_array(arena, nodes, sizeof(int32_t))};
    find_settled(&s);
    find_units(&s);
    assign_nodes(&s);
    BlockPatterns patterns = group_instances(&s);
    Cone *cones = arena_alloc_array(arena, (size_t)patterns.count, sizeof *cones);
    for (int64_t i = 0; i < patterns.count; i++) {
        cones[i] = cone_of(&s, &patterns.data[i]);
        for (int64_t k = 0; k < cones[i].count; k++)
            patterns.data[i].candidate_count += cones[i].may_keep[k];
    }
    patterns.assignments = -1;
    for (int round = may_hold_all(&patterns) ? 0 : 1; round < 2 && patterns.assignments < 0;
         round++) {
        patterns.all_subsets = round == 0;
        bool few = true; /* else subsets are in vain, which take much time and memory */
        for (int64_t i = 0; i < patterns.count && (few || round == 1); i++) {
            price_pattern(&s, &patterns.data[i], &cones[i], patterns.all_subsets);
            few = few && count_assignments(&patterns, i + 1, max_assignments) >= 0;
        }
        patterns.assignments =
            few ? count_assignments(&patterns, patterns.count, max_assignments) : -1;
    }
    patterns.all_subsets &= patterns.assignments >= 0;
    free(s.forward);
    return patterns;
}
