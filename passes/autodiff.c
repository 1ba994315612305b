/* passes/autodiff.c: reverse mode.
 *
 *   needs   a graph with a function `micro` that writes `loss_sum +=` (E, the sum of losses)
 *   gives   a gradient state for every weight, and `gradient W += …` in `micro`, one write a
 *           contribution
 *   plan    reads nothing of it
 *   example y = dot x w from(D); loss_sum += sum(y)
 *           gives gradient w += dot(y_adj, x; B,S), with y_adj = expand(1)
 *
 * x_adj is the adjoint of x: the derivative of E by x, with exactly x's axes and dtype.  Nodes
 * are visited from E backwards; when one is reached, its adjoint is complete, and its op's rule
 * hands contributions to its inputs.  Only nodes that lie between a weight and E take part. The
 * rules are dispatched through the op table: an op whose rule is missing does not compile. */
#include "passes/passes.h"

/* What a pick contributes to the value it was taken from: nothing but at one position. */
typedef struct Slice {
    AxisId axis;
    int64_t position;
    NodeId adjoint;
    int64_t next; /* of the same value; -1 */
} Slice;

typedef struct Reverse {
    Function *function;
    Builder b;
    NodeId *adjoint; /* by primal: the sum of what was contributed so far; -1 */
    bool *active;    /* by primal: lies between a weight and E */
    ARRAY(Slice) slices;
    int64_t *first_slice; /* by primal; -1 */
} Reverse;

static Type type_at(const Reverse *r, NodeId id) {
    return node_at(r->function, id)->type;
}

/* ---- what rules are written with ---------------------------------------------------- */

/* Does input i take part?  Nodes made next are (part of) its adjoint. */
static bool toward(Reverse *r, const Node *node, int i) {
    r->b.adjoint_of = node->inputs[i];
    return r->active[node->inputs[i]];
}

static StateId gradient_of(const Reverse *r, NodeId weight_read) {
    const Module *module = r->function->module;
    const State *weight = &module->states.data[node_at(r->function, weight_read)->attr.integer];
    return module_find_state(module, weight->path, ROLE_GRADIENT, 0);
}

static NodeId add_adjoints(Reverse *r, NodeId primal, NodeId sum, NodeId value) {
    const Node *target = node_at(r->function, primal);
    Builder b = r->b;
    b.scope = target->scope;
    b.span = target->span;
    b.adjoint_of = primal;
    return build_2(&b, OP_ADD, sum, value);
}

/* Adds a contribution to the adjoint of a value: a write of its own where that is a weight. */
static void contribute(Reverse *r, NodeId primal, NodeId value) {
    const Node *target = node_at(r->function, primal);
    if (!type_equal(target->type, type_at(r, value)))
        internal_error("a contribution to the adjoint of %%%d, a %s, has another type", primal,
                       op_info[target->op].name);
    if (target->op == OP_STATE) {
        StateId gradient = gradient_of(r, primal);
        Write write = {gradient, build_cast(&r->b, value, TYPE_F32), .add = true};
        array_push(&r->function->writes, write);
    } else {
        NodeId sum = r->adjoint[primal];
        r->adjoint[primal] = sum < 0 ? value : add_adjoints(r, primal, sum, value);
    }
}

/* The same for input i of a node. */
static void give(Reverse *r, const Node *node, int i, NodeId value) {
    contribute(r, node->inputs[i], value);
}

/* A constant of the dtype of value `like`. */
static NodeId number(Reverse *r, double value, NodeId like) {
    return build_const(&r->b, type_at(r, like).dtype, value);
}

static NodeId mul(Reverse *r, NodeId x, NodeId y) {
    return build_2(&r->b, OP_MUL, x, y);
}

static NodeId map(Reverse *r, Op op, NodeId x) {
    return build_1(&r->b, op, x);
}

/* value where the condition holds, else 0: also where the value is infinite or no number. */
static NodeId only_where(Reverse *r, NodeId condition, NodeId value) {
    return build_3(&r->b, OP_WHERE, condition, value, number(r, 0, value));
}

static NodeId elsewhere(Reverse *r, NodeId condition, NodeId value) {
    return build_3(&r->b, OP_WHERE, condition, number(r, 0, value), value);
}

/* Axes of `outer` that `inner` lacks. */
static int missing_axes(Type outer, Type inner, AxisId *axes) {
    int count = 0;
    for (int i = 0; i < outer.rank; i++)
        if (!type_has(inner, outer.axes[i]))
            axes[count++] = outer.axes[i];
    return count;
}

/* ---- rules: maps of one --------------------------------------------------------------------
 * In each, y = op(a, b, c) is the primal, `result` its id, and g its adjoint.  C leaves the
 * order of arguments open: no call below makes nodes in two of them, so that all compilers
 * number nodes alike. */
#define RULE(name)                                                                             \
    static void adjoint_##name(Reverse *r, const Node *y, NodeId result, NodeId g)
#define UNUSED(parameter) ((void)(parameter))

/* a += -g */
RULE(NEG) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, map(r, OP_NEG, g));
}

/* a += g sign(a) */
RULE(ABS) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, mul(r, g, map(r, OP_SIGN, y->inputs[0])));
}

/* a += g y */
RULE(EXP) {
    if (toward(r, y, 0))
        give(r, y, 0, mul(r, g, result));
}

/* a += g / a */
RULE(LOG) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, build_2(&r->b, OP_DIV, g, y->inputs[0]));
}

/* a += g / 2 / y */
RULE(SQRT) {
    if (toward(r, y, 0))
        give(r, y, 0, build_2(&r->b, OP_DIV, mul(r, g, number(r, 0.5, g)), result));
}

/* a += g (1 - y²) */
RULE(TANH) {
    if (toward(r, y, 0)) {
        NodeId square = mul(r, result, result);
        give(r, y, 0, mul(r, g, build_2(&r->b, OP_SUB, number(r, 1, g), square)));
    }
}

/* a += g y (1 - y) */
RULE(SIGMOID) {
    if (toward(r, y, 0)) {
        NodeId rest = build_2(&r->b, OP_SUB, number(r, 1, g), result);
        give(r, y, 0, mul(r, g, mul(r, result, rest)));
    }
}

/* a += g 2/sqrt(pi) exp(-a²) */
RULE(ERF) {
    UNUSED(result);
    if (toward(r, y, 0)) {
        NodeId bell = map(r, OP_EXP, map(r, OP_NEG, mul(r, y->inputs[0], y->inputs[0])));
        give(r, y, 0, mul(r, g, mul(r, bell, number(r, 1.1283791670955125739, g))));
    }
}

/* a += g cos(a) */
RULE(SIN) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, mul(r, g, map(r, OP_COS, y->inputs[0])));
}

/* a += -g sin(a) */
RULE(COS) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, map(r, OP_NEG, mul(r, g, map(r, OP_SIN, y->inputs[0]))));
}

/* a += g, in a's dtype */
RULE(CAST) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, build_cast(&r->b, g, type_at(r, y->inputs[0]).dtype));
}

/* a += g */
RULE(COPY) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, g);
}

/* ---- rules: maps of two and three --------------------------------------------------- */

/* a += g; b += g */
RULE(ADD) {
    UNUSED(result);
    for (int i = 0; i < 2; i++)
        if (toward(r, y, i))
            give(r, y, i, g);
}

/* a += g; b += -g */
RULE(SUB) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, g);
    if (toward(r, y, 1))
        give(r, y, 1, map(r, OP_NEG, g));
}

/* a += g b; b += g a */
RULE(MUL) {
    UNUSED(result);
    for (int i = 0; i < 2; i++)
        if (toward(r, y, i))
            give(r, y, i, mul(r, g, y->inputs[1 - i]));
}

/* a += g / b; b += -(g / b) y */
RULE(DIV) {
    if (toward(r, y, 0))
        give(r, y, 0, build_2(&r->b, OP_DIV, g, y->inputs[1]));
    if (toward(r, y, 1)) {
        NodeId quotient = build_2(&r->b, OP_DIV, g, y->inputs[1]);
        give(r, y, 1, map(r, OP_NEG, mul(r, quotient, result)));
    }
}

/* g to the side that was chosen, half of it to each at a tie */
static void adjoint_choice(Reverse *r, const Node *y, NodeId g) {
    for (int i = 0; i < 2; i++) {
        if (!toward(r, y, i))
            continue;
        NodeId mine = y->inputs[i], other = y->inputs[1 - i];
        NodeId chosen = y->op == OP_MAXIMUM ? build_2(&r->b, OP_LT, other, mine)
                                            : build_2(&r->b, OP_LT, mine, other);
        NodeId tie = build_2(&r->b, OP_EQ, y->inputs[0], y->inputs[1]);
        NodeId half = only_where(r, tie, mul(r, g, number(r, 0.5, g)));
        give(r, y, i, build_3(&r->b, OP_WHERE, chosen, g, half));
    }
}

RULE(MAXIMUM) {
    UNUSED(result);
    adjoint_choice(r, y, g);
}

RULE(MINIMUM) {
    UNUSED(result);
    adjoint_choice(r, y, g);
}

/* b += where(a, g, 0); c += where(a, 0, g) */
RULE(WHERE) {
    UNUSED(result);
    if (toward(r, y, 1))
        give(r, y, 1, only_where(r, y->inputs[0], g));
    if (toward(r, y, 2))
        give(r, y, 2, elsewhere(r, y->inputs[0], g));
}

/* a += g b; b += g a; c += g */
RULE(FMA) {
    UNUSED(result);
    for (int i = 0; i < 2; i++)
        if (toward(r, y, i))
            give(r, y, i, mul(r, g, y->inputs[1 - i]));
    if (toward(r, y, 2))
        give(r, y, 2, g);
}

/* ---- rules: axes -------------------------------------------------------------------- */

/* a += sum(g) over the axes that the expansion added */
RULE(EXPAND) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, build_reduce(&r->b, OP_SUM, g, y->attr.to, y->attr.to_count));
}

RULE(RENAME) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, build_rename(&r->b, g, y->attr.to[0], y->attr.from[0]));
}

RULE(SPLIT) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, build_merge(&r->b, g, y->attr.to, y->attr.to_count, y->attr.from[0]));
}

RULE(MERGE) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, build_split(&r->b, g, y->attr.to[0], y->attr.from, y->attr.from_count));
}

/* a[position] += g: collected until all of a's uses were visited */
RULE(PICK) {
    UNUSED(result);
    NodeId a = y->inputs[0];
    if (!r->active[a])
        return;
    Slice slice = {y->attr.from[0], y->attr.integer, g, r->first_slice[a]};
    r->first_slice[a] = r->slices.count;
    array_push(&r->slices, slice);
}

/* each part += its slice of g */
RULE(STACK) {
    UNUSED(result);
    for (int i = 0; i < y->input_count; i++)
        if (toward(r, y, i))
            give(r, y, i, build_pick(&r->b, g, y->attr.to[0], i));
}

/* ---- rules: sums and products ------------------------------------------------------- */

/* a += g along the summed axes */
RULE(SUM) {
    UNUSED(result);
    if (toward(r, y, 0))
        give(r, y, 0, build_expand(&r->b, g, type_at(r, y->inputs[0])));
}

/* a += g / (number of maxima) at the maxima, 0 elsewhere */
RULE(MAX) {
    if (!toward(r, y, 0))
        return;
    NodeId a = y->inputs[0];
    NodeId is_largest = build_2(&r->b, OP_EQ, a, result);
    NodeId ones = build_cast(&r->b, is_largest, type_at(r, a).dtype);
    NodeId count = build_reduce(&r->b, OP_SUM, ones, y->attr.from, y->attr.from_count);
    give(r, y, 0, only_where(r, is_largest, build_2(&r->b, OP_DIV, g, count)));
}

/* a += dot(g, b) over the axes that only b brought to y; for b likewise.  Where there are none
 * that product sums nothing: it is a map.  A product of bf16 values takes g in bf16 too. */
RULE(DOT) {
    r->b.adjoint_of = result;
    g = build_cast(&r->b, g, type_at(r, y->inputs[0]).dtype);
    for (int i = 0; i < 2; i++) {
        if (!toward(r, y, i))
            continue;
        NodeId other = y->inputs[1 - i];
        AxisId summed[MAX_AXES];
        int count = missing_axes(type_at(r, other), type_at(r, y->inputs[i]), summed);
        give(r, y, i, count ? build_dot(&r->b, g, other, summed, count) : mul(r, g, other));
    }
}

/* The table's row at every position += g there: a scatter over the axes that only the index
 * brought; where it brought none, each row meets one position, and that is a map. */
RULE(GATHER) {
    UNUSED(result);
    if (!toward(r, y, 0))
        return;
    AxisId rows = y->attr.from[0], summed[MAX_AXES];
    Type rest = type_without(type_at(r, y->inputs[0]), rows);
    int count = missing_axes(type_at(r, y->inputs[1]), rest, summed);
    if (count) {
        /* The scatter wants the value along all axes of the index, as g is. */
        give(r, y, 0, build_scatter_add(&r->b, y->inputs[1], g, rows, summed, count));
    } else {
        NodeId met = build_2(&r->b, OP_EQ, build_index(&r->b, rows), y->inputs[1]);
        give(r, y, 0, only_where(r, met, g));
    }
}

/* A weight's contributions were written when they were given. */
RULE(STATE) {
    UNUSED(r), UNUSED(y), UNUSED(result), UNUSED(g);
}

/* Spelled out in the op table: nothing flows through. */
RULE(NONE) {
    UNUSED(r), UNUSED(y), UNUSED(result), UNUSED(g);
}

typedef void (*AdjointRule)(Reverse *r, const Node *y, NodeId result, NodeId g);
static const AdjointRule rules[OP_COUNT] = {
#define OP(enumerator, name, arity, axes, dtype, attributes, gradient, ...)                    \
    [enumerator] = adjoint_##gradient,
#include "ir/ops.def"
#undef OP
};

/* ---- which nodes take part ---------------------------------------------------------- */

/* Integers may be states of any role, but have no gradient. */
static bool is_learned(const State *state) {
    return state->role == ROLE_WEIGHT && dtype_is_float(state->dtype);
}

/* Depends on a weight through ops that have a gradient, and reaches E. */
static void mark_active(Reverse *r, NodeId loss) {
    const Module *module = r->function->module;
    for (NodeId id = 0; id <= loss; id++) {
        const Node *node = node_at(r->function, id);
        if (node->op == OP_STATE)
            r->active[id] = is_learned(&module->states.data[node->attr.integer]);
        else if (op_info[node->op].gradient != GRADIENT_NONE &&
                 dtype_is_float(node->type.dtype))
            for (int i = 0; i < node->input_count; i++)
                r->active[id] |= r->active[node->inputs[i]];
    }
    bool *reaches = checked_alloc((size_t)loss + 1);
    reaches[loss] = true;
    for (NodeId id = loss; id >= 0; id--) {
        r->active[id] &= reaches[id];
        const Node *node = node_at(r->function, id);
        for (int i = 0; r->active[id] && i < node->input_count; i++)
            reaches[node->inputs[i]] = true;
    }
    free(reaches);
}

static void add_gradient_states(Module *module) {
    int64_t count = module->states.count;
    for (int64_t id = 0; id < count; id++) {
        State gradient = module->states.data[id];
        if (!is_learned(&gradient))
            continue;
        gradient.role = ROLE_GRADIENT;
        gradient.dtype = TYPE_F32;
        gradient.init = (Init){.kind = INIT_ZEROS};
        gradient.weight = (StateId)id;
        module_state(module, gradient);
    }
}

/* ---- slices ------------------------------------------------------------------------- */

/* Every position of one axis, each once: what was picked apart is put together.  -1 if not so.
 */
static NodeId stack_slices(Reverse *r, NodeId primal) {
    const Slice *first = &r->slices.data[r->first_slice[primal]];
    AxisId axis = first->axis;
    int64_t size = r->function->module->axes.data[axis].size, found = 0;
    for (int64_t i = r->first_slice[primal]; i >= 0; i = r->slices.data[i].next)
        found++;
    if (found != size)
        return -1;
    NodeId *parts = checked_alloc((size_t)size * sizeof *parts);
    memset(parts, -1, (size_t)size * sizeof *parts);
    for (int64_t i = r->first_slice[primal]; i >= 0; i = r->slices.data[i].next) {
        const Slice *slice = &r->slices.data[i];
        if (slice->axis == axis && parts[slice->position] < 0) {
            parts[slice->position] = slice->adjoint;
            found--;
        }
    }
    NodeId stack = found ? -1 : build_stack(&r->b, parts, (int)size, axis);
    free(parts);
    return stack;
}

/* The slice at its position, 0 at the others. */
static NodeId spread_slice(Reverse *r, const Slice *slice) {
    NodeId position = build_const(&r->b, TYPE_I32, (double)slice->position);
    NodeId index = build_index(&r->b, slice->axis);
    return only_where(r, build_2(&r->b, OP_EQ, index, position), slice->adjoint);
}

/* All uses of the primal were visited: contributes what was picked from it. */
static void contribute_slices(Reverse *r, NodeId primal) {
    if (r->first_slice[primal] < 0)
        return;
    r->b.adjoint_of = primal;
    NodeId stack = stack_slices(r, primal);
    if (stack >= 0) {
        contribute(r, primal, stack);
        return;
    }
    for (int64_t i = r->first_slice[primal]; i >= 0; i = r->slices.data[i].next) {
        Slice slice = r->slices.data[i];
        contribute(r, primal, spread_slice(r, &slice));
    }
}

/* ---- the pass ----------------------------------------------------------------------- */

static void propagate(Reverse *r, NodeId loss) {
    if (r->active[loss])
        contribute(r, loss, build_const(&r->b, TYPE_F32, 1));
    for (NodeId id = loss; id >= 0; id--) {
        if (!r->active[id])
            continue;
        Node node = *node_at(r->function, id); /* a copy: the rules add nodes */
        r->b.scope = node.scope;
        r->b.span = node.span;
        contribute_slices(r, id);
        if (r->adjoint[id] >= 0)
            rules[node.op](r, &node, id, r->adjoint[id]);
    }
}

/* E: the value of the one write `loss_sum +=`; -1. */
static NodeId find_loss(const Function *micro) {
    NodeId loss = -1;
    for (int64_t i = 0; micro && i < micro->writes.count; i++) {
        const Write *write = &micro->writes.data[i];
        const State *state = &micro->module->states.data[write->state];
        if (state->role != ROLE_METRIC || strcmp(state->path, "loss_sum") != 0)
            continue;
        if (!write->add || loss >= 0 || state->dtype != TYPE_F32 || state_type(state).rank)
            return -1;
        loss = write->value;
    }
    return loss;
}

/* A weight that E does not depend on is most likely a mistake in the model. */
static void warn_of_idle_weights(const PassContext *context, const Reverse *r) {
    const Module *module = context->module;
    bool *reached = checked_alloc((size_t)module->states.count);
    for (int64_t i = 0; i < r->function->writes.count; i++)
        reached[r->function->writes.data[i].state] = true;
    for (int64_t id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role == ROLE_GRADIENT && !reached[id])
            warning_at(context->diagnostics, state->span,
                       "the loss does not depend on `%s`: it will not learn", state->path);
    }
    free(reached);
}

bool pass_autodiff(PassContext *context) {
    if (context->compilation && !context->for_training)
        return true;
    Module *module = context->module;
    Function *micro = module_find_function(module, "micro");
    NodeId loss = find_loss(micro);
    if (loss < 0) {
        refuse_module(context, "autodiff",
                      "needs a function `micro` that adds one f32 value to metric `loss_sum`");
        return false;
    }
    for (int64_t id = 0; id < module->states.count; id++)
        if (module->states.data[id].role == ROLE_GRADIENT) {
            refuse_module(context, "autodiff", "the module has gradients already");
            return false;
        }
    add_gradient_states(module);
    size_t count = (size_t)micro->nodes.count;
    Reverse r = {.function = micro,
                 .b = builder(micro),
                 .adjoint = checked_alloc(count * sizeof *r.adjoint),
                 .active = checked_alloc(count * sizeof *r.active),
                 .first_slice = checked_alloc(count * sizeof *r.first_slice)};
    for (size_t i = 0; i < count; i++)
        r.adjoint[i] = (NodeId)(r.first_slice[i] = -1);
    mark_active(&r, loss);
    propagate(&r, loss);
    warn_of_idle_weights(context, &r);
    free(r.adjoint);
    free(r.active);
    free(r.first_slice);
    array_free(&r.slices);
    return true;
}
