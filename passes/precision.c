/* passes/precision.c: final dtypes.
 *
 * needs   a graph in f32 with its update
 * gives   products of bf16 operands, bf16 values in memory, bf16 copies of weights
 * plan    reads `precision` (or `--precision`)
 * example y = dot(x, W), z = x + y  ->  y = dot(x_bf16, copy of W) : bf16,
 *         z_bf16 = cast(cast(x_bf16) + cast(y)), and whoever computes with z reads cast(z_bf16)
 *
 * Maps and reductions stay f32; what is rounded is a `cast`, so that the bits are the same
 * however the graph is cut in kernels and whatever is computed again.  Rounded are
 *   - the operands of products, below the views that lead to them;
 *   - the results of products, by the product itself, where they are no interior, no gradient of
 *     a parameter, no matrix-vector product and not written to a state;
 *   - rows that a gather reads of a weight;
 *   - stacks, and what is merged: they are memory in any case;
 *   - *streams*: sums of several such values that are read more than once.
 * A rounded value is in memory in bf16 alone: whoever reads it reads it rounded, but a value
 * that is written to a state stays as it is, and products read a rounded twin. */
#include "passes/passes.h"

typedef struct Precision {
    Module *module;
    Arena *arena;
    const StateId *copies; /* by state; -1 */
    Function *old;
    bool *forward, *sampled, *interior;
    bool *written;   /* goes to a state through views */
    bool *wanted;    /* in bf16: by a product, or as memory */
    bool *rounded;   /* there is no other form of it */
    bool *read_copy; /* by state: a product or a gather reads it */
    Rebuild rebuild;
    NodeId *wide, *narrow; /* by old node: in f32, in bf16; -1 */
} Precision;

static const Node *at(const Precision *p, NodeId id) {
    return &p->old->nodes.data[id];
}

static bool is_f32(const Precision *p, NodeId id) {
    return at(p, id)->type.dtype == TYPE_F32;
}

static NodeId below_views(const Precision *p, NodeId id) {
    while (node_is_view(at(p, id)))
        id = at(p, id)->inputs[0];
    return id;
}

/* ---- which values ---------------------------------------------------------------------- */

/* A matrix product: it sums an axis, and its operands differ in their axes. */
static bool is_product(const Precision *p, NodeId id) {
    const Node *node = at(p, id);
    return node->op == OP_DOT && is_f32(p, node->inputs[0]) && node->attr.from_count > 0 &&
           !type_same_axes(at(p, node->inputs[0])->type, at(p, node->inputs[1])->type);
}

/* The adjoint of a value that does not depend on the samples: (part of) a weight's gradient. */
static bool is_gradient(const Precision *p, NodeId id) {
    NodeId primal = at(p, id)->adjoint_of;
    return primal >= 0 && !p->sampled[primal];
}

static bool has_own_axes(Type operand, Type other) {
    return !type_contains(other, operand);
}

static bool gives_bf16(const Precision *p, NodeId id) {
    if (!is_product(p, id) || p->interior[id] || p->written[id] || is_gradient(p, id))
        return false;
    Type left = at(p, at(p, id)->inputs[0])->type, right = at(p, at(p, id)->inputs[1])->type;
    return has_own_axes(left, right) && has_own_axes(right, left);
}

/* Is the value a weight's, of which a copy can be read? */
static bool is_weight(const Precision *p, NodeId id) {
    const Node *node = at(p, id);
    return node->op == OP_STATE && is_f32(p, id) &&
           p->module->states.data[node->attr.integer].role == ROLE_WEIGHT;
}

static void want(Precision *p, NodeId id) {
    NodeId root = below_views(p, id);
    p->wanted[root] = is_f32(p, root);
    if (is_weight(p, root))
        p->read_copy[at(p, root)->attr.integer] = true;
}

static void want_memory(Precision *p, NodeId id) {
    NodeId root = below_views(p, id);
    if (is_f32(p, root) && p->sampled[root] && !p->interior[root] && !p->written[root] &&
        !is_gradient(p, root))
        p->wanted[root] = true;
}

static void find_wanted(Precision *p) {
    for (NodeId id = 0; id < p->old->nodes.count; id++) {
        const Node *node = at(p, id);
        if (is_product(p, id)) {
            want(p, node->inputs[0]);
            want(p, node->inputs[1]);
        } else if (node->op == OP_GATHER && is_weight(p, below_views(p, node->inputs[0]))) {
            want(p, node->inputs[0]);
        } else if (node->op == OP_STACK || node->op == OP_MERGE) {
            want_memory(p, node->op == OP_STACK ? id : node->inputs[0]);
        }
    }
}

/* The bf16 values of which a value is a map: none, one, or several. */
typedef struct Sources {
    NodeId one; /* -1: none */
    bool several;
} Sources;

static Sources join_sources(Sources a, Sources b) {
    if (a.one < 0 || b.one < 0)
        return a.one < 0 ? b : a;
    a.several |= b.several || a.one != b.one;
    return a;
}

static Sources sources_of(const Precision *p, const Sources *sources, NodeId id) {
    const Node *node = at(p, id);
    Sources result = {.one = -1};
    bool is_map = op_is_map(node->op) || op_is_view(node->op);
    for (int i = 0; i < node->input_count && is_map; i++)
        result = join_sources(result, sources[node->inputs[i]]);
    return result;
}

/* Readers of a value: of a forward value those of the forward part, so that an evaluation
 * rounds what training rounds. */
static int32_t *count_readers(const Precision *p) {
    int32_t *readers =
        arena_alloc_array(p->arena, (size_t)p->old->nodes.count, sizeof *readers);
    for (NodeId id = 0; id < p->old->nodes.count; id++) {
        const Node *node = at(p, id);
        for (int i = 0; i < node->input_count; i++)
            readers[node->inputs[i]] += p->forward[id] || !p->forward[node->inputs[i]];
    }
    return readers;
}

static bool is_stream(const Precision *p, NodeId id, Sources sources, int32_t readers) {
    Op op = at(p, id)->op;
    return (op == OP_ADD || op == OP_SUB) && is_f32(p, id) && sources.several && readers > 1 &&
           !p->interior[id] && !p->written[id] && !is_gradient(p, id);
}

static void find_rounded(Precision *p) {
    int32_t *readers = count_readers(p);
    Sources *sources =
        arena_alloc_array(p->arena, (size_t)p->old->nodes.count, sizeof *sources);
    for (NodeId id = 0; id < p->old->nodes.count; id++) {
        const Node *node = at(p, id);
        sources[id] = sources_of(p, sources, id);
        p->wanted[id] |= is_stream(p, id, sources[id], readers[id]);
        bool is_row = node->op == OP_GATHER && p->wanted[below_views(p, node->inputs[0])] &&
                      is_f32(p, id);
        p->rounded[id] = (p->wanted[id] && node->input_count > 0 && !p->written[id]) ||
                         gives_bf16(p, id) || is_row;
        if (p->rounded[id])
            sources[id] = (Sources){.one = id};
    }
}

static void analyze(Precision *p, Function *function) {
    size_t nodes = (size_t)function->nodes.count;
    p->old = function;
    p->interior = cluster_interiors(function, p->arena);
    p->forward = forward_part(function);
    p->sampled = sampled_part(function, p->arena);
    p->written = arena_alloc(p->arena, nodes);
    p->wanted = arena_alloc(p->arena, nodes);
    p->rounded = arena_alloc(p->arena, nodes);
    for (int64_t i = 0; i < function->writes.count; i++)
        p->written[below_views(p, function->writes.data[i].value)] = true;
    find_wanted(p);
    find_rounded(p);
}

/* ---- rewriting ------------------------------------------------------------------------- */

/* Where a value's casts and its bf16 form belong. */
static Builder builder_for(Precision *p, NodeId id) {
    const Node *node = at(p, id);
    Builder b = builder(p->rebuild.fresh);
    b.scope = node->scope;
    b.clone = node->clone;
    b.span = node->span;
    b.adjoint_of = node->adjoint_of >= 0 ? p->rebuild.map[node->adjoint_of] : -1;
    return b;
}

/* The node with inputs in f32. */
static NodeId copy_wide(Precision *p, NodeId id) {
    const Node *node = at(p, id);
    NodeId *map = p->rebuild.map;
    NodeId *saved = checked_alloc((size_t)node->input_count * sizeof *saved);
    for (int i = 0; i < node->input_count; i++)
        saved[i] = map[node->inputs[i]];
    for (int i = 0; i < node->input_count; i++)
        map[node->inputs[i]] = p->wide[node->inputs[i]];
    NodeId copy = rebuild_copy(&p->rebuild, id);
    for (int i = node->input_count - 1; i >= 0; i--)
        map[node->inputs[i]] = saved[i];
    free(saved);
    return copy;
}

static NodeId narrow_of(Precision *p, NodeId id) {
    if (p->narrow[id] < 0) {
        Builder b = builder_for(p, id);
        p->narrow[id] = build_cast(&b, p->wide[id], TYPE_BF16);
    }
    return p->narrow[id];
}

/* The node with inputs in bf16 and a result of that dtype. */
static NodeId copy_narrow(Precision *p, NodeId id, DataType dtype) {
    const Node *node = at(p, id);
    NodeId *inputs = checked_alloc((size_t)node->input_count * sizeof *inputs);
    for (int i = 0; i < node->input_count; i++) {
        bool is_index = node->op == OP_GATHER && i == 1;
        inputs[i] = is_index ? p->wide[node->inputs[i]] : narrow_of(p, node->inputs[i]);
    }
    Builder b = builder_for(p, id);
    NodeId copy = build(&b, node->op, dtype, node->attr, inputs, node->input_count);
    free(inputs);
    return copy;
}

static void take_name(Precision *p, NodeId fresh, const Node *old) {
    Node *node = &p->rebuild.fresh->nodes.data[fresh];
    if (!node->name && node->scope == old->scope)
        node->name = old->name;
}

/* The value exists in bf16: f32 readers widen it. */
static void settle_narrow(Precision *p, NodeId id, NodeId narrow) {
    Builder b = builder_for(p, id);
    p->narrow[id] = narrow;
    p->wide[id] = build_cast(&b, narrow, TYPE_F32);
    p->rebuild.map[id] = narrow;
    take_name(p, narrow, at(p, id));
}

/* A view of both forms.  A broadcast is cheaper below a cast than above it. */
static void visit_view(Precision *p, NodeId id) {
    NodeId input = at(p, id)->inputs[0];
    bool twin = p->narrow[input] >= 0;
    bool is_narrow = twin && p->rebuild.map[input] == p->narrow[input];
    if (twin && is_f32(p, id))
        settle_narrow(p, id, copy_narrow(p, id, TYPE_BF16));
    if (!is_narrow || at(p, id)->op == OP_EXPAND)
        p->rebuild.map[id] = p->wide[id] = copy_wide(p, id);
}

static void visit_rounded(Precision *p, NodeId id) {
    const Node *node = at(p, id);
    bool is_row = node->op == OP_GATHER && p->narrow[node->inputs[0]] >= 0;
    if (is_product(p, id) ? gives_bf16(p, id) : node->op == OP_STACK || is_row) {
        settle_narrow(p, id, copy_narrow(p, id, TYPE_BF16));
        return;
    }
    NodeId value = p->wide[id] =
        is_product(p, id) ? copy_narrow(p, id, TYPE_F32) : copy_wide(p, id);
    p->narrow[id] = -1;
    Node *fresh = &p->rebuild.fresh->nodes.data[value];
    fresh->name = NULL; /* the rounded value has it */
    settle_narrow(p, id, narrow_of(p, id));
}

static void visit(Precision *p, NodeId id) {
    const Node *node = at(p, id);
    if (node_is_view(node)) {
        visit_view(p, id);
        return;
    }
    if (p->rounded[id]) {
        visit_rounded(p, id);
        return;
    }
    p->wide[id] = is_product(p, id) ? copy_narrow(p, id, TYPE_F32) : copy_wide(p, id);
    p->rebuild.map[id] = p->wide[id];
    take_name(p, p->wide[id], node);
    if (!p->wanted[id])
        return;
    Builder b = builder_for(p, id);
    StateId copy = is_weight(p, id) ? p->copies[node->attr.integer] : -1;
    p->narrow[id] = copy >= 0 ? build_state(&b, copy) : narrow_of(p, id);
}

static void rewrite(Precision *p, Function *function) {
    size_t nodes = (size_t)function->nodes.count;
    p->wide = arena_alloc_array(p->arena, nodes, sizeof *p->wide);
    p->narrow = arena_alloc_array(p->arena, nodes, sizeof *p->narrow);
    p->rebuild = rebuild_begin(p->module, function);
    for (NodeId id = 0; id < (NodeId)nodes; id++) {
        p->wide[id] = p->narrow[id] = -1;
        visit(p, id);
    }
    for (int64_t i = 0; i < function->writes.count; i++) {
        NodeId value = function->writes.data[i].value;
        p->rebuild.map[value] = p->wide[value];
    }
    rebuild_finish(&p->rebuild);
}

/* ---- copies ---------------------------------------------------------------------------- */

static StateId add_copy(Module *module, StateId weight) {
    State copy = module->states.data[weight];
    copy.role = ROLE_COPY;
    copy.dtype = TYPE_BF16;
    copy.init = (Init){.kind = INIT_ZEROS};
    copy.weight = weight;
    return module_state(module, copy);
}

/* Copies of the weights that are read, and of the windows that hold such. */
static StateId *add_copies(Module *module, const bool *read, Arena *arena) {
    int64_t count = module->states.count;
    StateId *copies = arena_alloc_array(arena, (size_t)count, sizeof *copies);
    bool *group_has = arena_alloc(arena, (size_t)count + 1);
    for (StateId id = 0; id < count; id++) {
        State weight = module->states.data[id];
        copies[id] = read[id] && !weight.flat ? add_copy(module, id) : -1;
        if (copies[id] >= 0)
            group_has[weight.group] = true;
    }
    for (StateId id = 0; id < count; id++) {
        State window = module->states.data[id];
        if (window.role == ROLE_WEIGHT && window.flat && group_has[window.group])
            copies[id] = add_copy(module, id);
    }
    return copies;
}

/* Beside every new value of a weight, its copy's. */
static void write_copies(Function *function, const StateId *copies) {
    int64_t writes = function->writes.count;
    for (int64_t i = 0; i < writes; i++) {
        Write write = function->writes.data[i];
        if (copies[write.state] < 0)
            continue;
        const Node *value = node_at(function, write.value);
        Builder b = builder(function);
        b.scope = value->scope;
        b.span = value->span;
        Write copy = {.state = copies[write.state],
                      .value = build_cast(&b, write.value, TYPE_BF16)};
        array_push(&function->writes, copy);
    }
}

/* ---- the pass -------------------------------------------------------------------------- */

bool pass_precision(PassContext *context) {
    Module *module = context->module;
    if (context->compilation->precision != TYPE_BF16)
        return true;
    static const char *const names[] = {"micro", "eval"};
    Arena *arena = arena_new();
    Precision parts[COUNT_OF(names)] = {{0}};
    bool *read_copy = arena_alloc(arena, (size_t)module->states.count + 1);
    for (int i = 0; i < COUNT_OF(names); i++) {
        parts[i] = (Precision){.module = module, .arena = arena, .read_copy = read_copy};
        Function *function = module_find_function(module, names[i]);
        if (function)
            analyze(&parts[i], function);
    }
    const StateId *copies = add_copies(module, read_copy, arena);
    for (int i = 0; i < COUNT_OF(names); i++) {
        parts[i].copies = copies;
        if (parts[i].old)
            rewrite(&parts[i], parts[i].old);
        free(parts[i].forward);
    }
    for (int64_t i = 0; i < module->functions.count; i++)
        write_copies(module->functions.data[i], copies);
    arena_free(arena);
    return true;
}
