/* passes/simplify.c: folding that changes no bit.
 *
 *   needs   a graph
 *   gives   an equal graph: constants folded, identities and dead code gone, maps of expanded
 *           values computed before the expansion
 *   plan    reads nothing of it
 *   example %2 = mul %0 %1, where %1 is 1 everywhere, becomes %0
 *
 * A constant's number is a double: the program rounds it to the constant's dtype, and the
 * interpreter computes with it as it stands.  An op on constants is folded only when both
 * meanings stay what they were, so neither changes by a bit.  (x + 0 stays: it turns -0 into 0.
 * So does x * 0, which is NaN where x is infinite.)  Common subexpressions do not occur: nodes
 * are hash-consed.  `stop` stays as long as gradients may be asked for. */
#include "passes/passes.h"

#include <math.h>

typedef struct Simplifier {
    Rebuild rebuild;
    Builder b;
    bool has_gradients; /* `stop` has done its work */
} Simplifier;

/* A node that may be made: what the rules below look at. */
typedef struct Wanted {
    Op op;
    Type type;
    const Attr *attr;
    const NodeId *inputs;
    int count;
} Wanted;

static NodeId make(Simplifier *s, Op op, DataType dtype, Attr attr, const NodeId *inputs,
                   int count);

static const Node *at(const Simplifier *s, NodeId id) {
    return node_at(s->rebuild.fresh, id);
}

/* ---- constants ---------------------------------------------------------------------- */

/* Is the value one number everywhere?  Expands of expands do not occur: see simplify_expand. */
static bool is_constant(const Simplifier *s, NodeId id, double *number) {
    const Node *node = at(s, id);
    if (node->op == OP_EXPAND)
        node = at(s, node->inputs[0]);
    *number = node->attr.number;
    return node->op == OP_CONST;
}

static bool is_number(const Simplifier *s, NodeId id, double wanted) {
    double number;
    return is_constant(s, id, &number) && number == wanted &&
           signbit(number) == signbit(wanted);
}

static double floored_quotient(double a, double b) {
    return b == 0 ? 0 : floor(a / b);
}

/* a - b * floor(a / b), exactly. */
static double floored_remainder(double a, double b) {
    double remainder = fmod(a, b);
    return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

static double sigmoid(double a) {
    double e = exp(-fabs(a));
    return a >= 0 ? 1 / (1 + e) : e / (1 + e);
}

/* The op in double arithmetic.  False for ops that are not folded. */
static bool evaluate(Op op, DataType dtype, const double v[3], double *result) {
    bool is_int = dtype == TYPE_I32;
    switch (op) {
#define CASE(enumerator, value)                                                                \
    case enumerator:                                                                           \
        *result = (value);                                                                     \
        return true;
        CASE(OP_NEG, -v[0])
        CASE(OP_ABS, fabs(v[0]))
        CASE(OP_EXP, exp(v[0]))
        CASE(OP_LOG, log(v[0]))
        CASE(OP_SQRT, sqrt(v[0]))
        CASE(OP_TANH, tanh(v[0]))
        CASE(OP_SIGMOID, sigmoid(v[0]))
        CASE(OP_ERF, erf(v[0]))
        CASE(OP_SIN, sin(v[0]))
        CASE(OP_COS, cos(v[0]))
        CASE(OP_FLOOR, floor(v[0]))
        CASE(OP_SIGN, (v[0] > 0) - (v[0] < 0))
        CASE(OP_NOT, v[0] == 0)
        CASE(OP_CAST, dtype == TYPE_BOOL ? v[0] != 0 : is_int ? trunc(v[0]) : v[0])
        CASE(OP_STOP, v[0])
        CASE(OP_ADD, v[0] + v[1])
        CASE(OP_SUB, v[0] - v[1])
        CASE(OP_MUL, v[0] * v[1])
        CASE(OP_DIV, is_int ? floored_quotient(v[0], v[1]) : v[0] / v[1])
        CASE(OP_MOD, is_int && v[1] == 0 ? 0 : floored_remainder(v[0], v[1]))
        CASE(OP_POW, pow(v[0], v[1]))
        CASE(OP_MAXIMUM, v[0] > v[1] ? v[0] : v[1])
        CASE(OP_MINIMUM, v[0] < v[1] ? v[0] : v[1])
        CASE(OP_LT, v[0] < v[1])
        CASE(OP_LE, v[0] <= v[1])
        CASE(OP_EQ, v[0] == v[1])
        CASE(OP_AND, v[0] != 0 && v[1] != 0)
        CASE(OP_OR, v[0] != 0 || v[1] != 0)
        CASE(OP_WHERE, v[0] != 0 ? v[1] : v[2])
#undef CASE
    default:
        return false;
    }
}

/* The number that a constant of this dtype has in the program. */
static double rounded(double number, DataType dtype) {
    return dtype == TYPE_F32 ? (double)(float)number : number;
}

static bool same_bits(double a, double b) {
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

/* Is the number one that a value of this dtype can have, exactly as the program computes it? */
static bool is_representable(double number, DataType dtype) {
    switch (dtype) {
    case TYPE_BOOL:
        return true;
    case TYPE_I32:
        return number == floor(number) && fabs(number) < 0x1p31;
    case TYPE_BF16: /* rounded twice on the way: left to the program */
        return false;
    default:
        return true;
    }
}

/* Operands in double and rounded once to f32 must agree with operands that were f32 before:
 * double has more than twice the digits of f32, so that +, -, *, / and sqrt in double, then
 * rounded, are f32's own. */
static NodeId fold(Simplifier *s, const Wanted *w) {
    double exact[3] = {0}, single[3] = {0}, in_double, in_single;
    for (int i = 0; i < w->count; i++) {
        const Node *input = at(s, w->inputs[i]);
        if (input->op != OP_CONST || input->type.dtype == TYPE_BF16)
            return -1;
        exact[i] = input->attr.number;
        single[i] = rounded(exact[i], input->type.dtype);
    }
    if (!evaluate(w->op, w->type.dtype, exact, &in_double) ||
        !evaluate(w->op, w->type.dtype, single, &in_single) ||
        !is_representable(in_double, w->type.dtype) ||
        !same_bits(rounded(in_double, w->type.dtype), rounded(in_single, w->type.dtype)))
        return -1;
    return build_const(&s->b, w->type.dtype, in_double);
}

/* ---- maps --------------------------------------------------------------------------- */

static bool is_made_by(const Simplifier *s, NodeId id, Op op) {
    return at(s, id)->op == op;
}

/* Adding this changes nothing: -0 for floats, 0 for integers. */
static bool is_additive_identity(const Simplifier *s, NodeId id) {
    bool is_float = dtype_is_float(at(s, id)->type.dtype);
    return is_number(s, id, is_float ? -0.0 : 0.0);
}

/* x / 2^k is x * 2^-k, rounded alike, while neither power leaves the normal numbers. */
static NodeId simplify_division(Simplifier *s, const Wanted *w) {
    double number;
    if (is_number(s, w->inputs[1], 1))
        return w->inputs[0];
    if (!dtype_is_float(w->type.dtype) || !is_constant(s, w->inputs[1], &number))
        return -1;
    int exponent, limit = w->type.dtype == TYPE_F64 ? 1000 : 120;
    double mantissa = frexp(number, &exponent);
    if (fabs(mantissa) != 0.5 || exponent < -limit || exponent > limit)
        return -1;
    NodeId inverse = build_const(&s->b, w->type.dtype, 1 / number);
    return make(s, OP_MUL, w->type.dtype, (Attr){0},
                (NodeId[]){w->inputs[0], build_expand(&s->b, inverse, w->type)}, 2);
}

static NodeId simplify_where(Simplifier *s, const Wanted *w) {
    double condition;
    if (is_constant(s, w->inputs[0], &condition))
        return w->inputs[condition != 0 ? 1 : 2];
    if (w->inputs[1] == w->inputs[2])
        return w->inputs[1];
    const Node *negated = at(s, w->inputs[0]);
    if (negated->op == OP_NOT)
        return make(s, OP_WHERE, w->type.dtype, (Attr){0},
                    (NodeId[]){negated->inputs[0], w->inputs[2], w->inputs[1]}, 3);
    return -1;
}

/* `and` with true, `or` with false: the other operand; with the opposite: that constant. */
static NodeId simplify_logic(Simplifier *s, const Wanted *w) {
    for (int i = 0; i < 2; i++) {
        double number;
        if (is_constant(s, w->inputs[i], &number))
            return w->inputs[(number != 0) == (w->op == OP_AND) ? 1 - i : i];
    }
    return w->inputs[0] == w->inputs[1] ? w->inputs[0] : -1;
}

static NodeId simplify_identity(Simplifier *s, const Wanted *w) {
    NodeId a = w->inputs[0], b = w->count > 1 ? w->inputs[1] : -1;
    switch (w->op) {
    case OP_NEG:
    case OP_NOT:
        return is_made_by(s, a, w->op) ? at(s, a)->inputs[0] : -1;
    case OP_ABS:
        if (is_made_by(s, a, OP_NEG))
            return make(s, OP_ABS, w->type.dtype, (Attr){0}, at(s, a)->inputs, 1);
        return is_made_by(s, a, OP_ABS) ? a : -1;
    case OP_CAST:
        return at(s, a)->type.dtype == w->type.dtype ? a : -1;
    case OP_STOP:
        return s->has_gradients || at(s, a)->is_static ? a : -1;
    case OP_ADD:
        return is_additive_identity(s, b) ? a : is_additive_identity(s, a) ? b : -1;
    case OP_SUB:
        return is_number(s, b, 0) ? a : -1;
    case OP_MUL:
        return is_number(s, b, 1) ? a : is_number(s, a, 1) ? b : -1;
    case OP_DIV:
        return simplify_division(s, w);
    case OP_MAXIMUM:
    case OP_MINIMUM:
        return a == b ? a : -1;
    case OP_AND:
    case OP_OR:
        return simplify_logic(s, w);
    case OP_WHERE:
        return simplify_where(s, w);
    default:
        return -1;
    }
}

/* The value before its expansion. */
static NodeId unexpanded(const Simplifier *s, NodeId id) {
    const Node *node = at(s, id);
    return node->op == OP_EXPAND ? node->inputs[0] : id;
}

/* A map of expanded values is the expansion of a smaller map. */
static NodeId hoist_expands(Simplifier *s, const Wanted *w) {
    NodeId inputs[3];
    Type axes = {.dtype = w->type.dtype};
    for (int i = 0; i < w->count; i++) {
        inputs[i] = unexpanded(s, w->inputs[i]);
        axes = type_union(axes, at(s, inputs[i])->type);
    }
    if (axes.rank == w->type.rank || w->op == OP_COPY)
        return -1;
    for (int i = 0; i < w->count; i++)
        inputs[i] = build_expand(&s->b, inputs[i], axes);
    NodeId small = make(s, w->op, w->type.dtype, *w->attr, inputs, w->count);
    return build_expand(&s->b, small, w->type);
}

static NodeId simplify_map(Simplifier *s, const Wanted *w) {
    NodeId result = fold(s, w);
    if (result < 0)
        result = simplify_identity(s, w);
    return result < 0 ? hoist_expands(s, w) : result;
}

/* ---- axes --------------------------------------------------------------------------- */

static bool same_axis_list(const AxisId *a, int a_count, const AxisId *b, int b_count) {
    return a_count == b_count && memcmp(a, b, (size_t)a_count * sizeof *a) == 0;
}

static NodeId simplify_expand(Simplifier *s, const Wanted *w) {
    NodeId inner = unexpanded(s, w->inputs[0]);
    return inner == w->inputs[0] ? -1 : build_expand(&s->b, inner, w->type);
}

/* A view, or a maximum, of an expanded value: of the value, then expanded. */
static NodeId hoist_view(Simplifier *s, const Wanted *w) {
    NodeId inner = unexpanded(s, w->inputs[0]);
    if (inner == w->inputs[0])
        return -1;
    int present = 0;
    for (int i = 0; i < w->attr->from_count; i++)
        present += type_has(at(s, inner)->type, w->attr->from[i]);
    if (present == w->attr->from_count)
        inner = make(s, w->op, w->type.dtype, *w->attr, &inner, 1);
    else if (present > 0)
        return -1;
    return build_expand(&s->b, inner, w->type);
}

static NodeId simplify_rename(Simplifier *s, const Wanted *w) {
    const Node *input = at(s, w->inputs[0]);
    if (input->op == OP_INDEX)
        return build_index(&s->b, w->attr->to[0]);
    if (input->op == OP_RENAME && input->attr.to[0] == w->attr->from[0])
        return build_rename(&s->b, input->inputs[0], input->attr.from[0], w->attr->to[0]);
    return -1;
}

/* A split or merge of one axis into one is a rename; one that undoes the other is nothing. */
static NodeId simplify_reshape(Simplifier *s, const Wanted *w) {
    const Node *input = at(s, w->inputs[0]);
    if (w->attr->from_count == 1 && w->attr->to_count == 1)
        return make(s, OP_RENAME, w->type.dtype, *w->attr, w->inputs, 1);
    if (input->op == (w->op == OP_SPLIT ? OP_MERGE : OP_SPLIT) &&
        same_axis_list(input->attr.to, input->attr.to_count, w->attr->from,
                       w->attr->from_count) &&
        same_axis_list(input->attr.from, input->attr.from_count, w->attr->to,
                       w->attr->to_count))
        return input->inputs[0];
    return -1;
}

static NodeId simplify_pick(Simplifier *s, const Wanted *w) {
    const Node *input = at(s, w->inputs[0]);
    if (input->op == OP_INDEX)
        return build_const(&s->b, TYPE_I32, (double)w->attr->integer);
    if (input->op == OP_STACK && input->attr.to[0] == w->attr->from[0])
        return input->inputs[w->attr->integer];
    return -1;
}

/* All slices of a value side by side are the value. */
static NodeId simplify_stack(Simplifier *s, const Wanted *w) {
    NodeId whole = -1;
    for (int i = 0; i < w->count; i++) {
        const Node *part = at(s, w->inputs[i]);
        if (part->op != OP_PICK || part->attr.integer != i ||
            part->attr.from[0] != w->attr->to[0] || (i > 0 && part->inputs[0] != whole))
            return -1;
        whole = part->inputs[0];
    }
    return whole;
}

/* ---- the pass ----------------------------------------------------------------------- */

/* An existing or smaller value that equals the wanted one; -1: none is known. */
static NodeId simplify_node(Simplifier *s, const Wanted *w) {
    NodeId result = -1;
    switch (w->op) {
    case OP_EXPAND:
        return simplify_expand(s, w);
    case OP_RENAME:
        result = simplify_rename(s, w);
        break;
    case OP_SPLIT:
    case OP_MERGE:
        result = simplify_reshape(s, w);
        break;
    case OP_PICK:
        result = simplify_pick(s, w);
        break;
    case OP_STACK:
        return simplify_stack(s, w);
    case OP_MAX:
        break;
    default:
        return op_is_map(w->op) ? simplify_map(s, w) : -1;
    }
    return result < 0 ? hoist_view(s, w) : result;
}

/* A node for a rule's result, simplified in its turn. */
static NodeId make(Simplifier *s, Op op, DataType dtype, Attr attr, const NodeId *inputs,
                   int count) {
    Wanted wanted = {.op = op, .attr = &attr, .inputs = inputs, .count = count};
    const char *refusal =
        infer_type(s->rebuild.fresh, op, dtype, &attr, inputs, count, &wanted.type);
    if (refusal)
        internal_error("simplify: %s", refusal);
    NodeId result = simplify_node(s, &wanted);
    return result >= 0 ? result : build(&s->b, op, dtype, attr, inputs, count);
}

/* The value that replaces a node takes its name, and its number when it was made for it. */
static void keep_identity(Simplifier *s, const Node *old, NodeId fresh, int64_t known) {
    Node *node = &s->rebuild.fresh->nodes.data[fresh];
    if (fresh >= known) {
        node->ordinal = old->ordinal;
        node->name = old->name;
    } else if (!node->name && node->scope == old->scope) {
        node->name = old->name;
    }
}

static void rebuild_simplified(Simplifier *s, NodeId id) {
    Rebuild *r = &s->rebuild;
    const Node *node = node_at(r->old, id);
    NodeId few[8];
    NodeId *inputs = node->input_count <= COUNT_OF(few)
                         ? few
                         : checked_alloc((size_t)node->input_count * sizeof *inputs);
    for (int i = 0; i < node->input_count; i++)
        inputs[i] = r->map[node->inputs[i]];
    s->b.scope = node->scope;
    s->b.clone = node->clone;
    s->b.span = node->span;
    s->b.adjoint_of = node->adjoint_of >= 0 ? r->map[node->adjoint_of] : -1;
    Wanted wanted = {node->op, node->type, &node->attr, inputs, node->input_count};
    int64_t known = r->fresh->nodes.count;
    NodeId fresh = simplify_node(s, &wanted);
    if (fresh < 0)
        fresh = rebuild_copy(r, id);
    INTERNAL_CHECK(type_equal(node_at(r->fresh, fresh)->type, node->type));
    r->map[id] = fresh;
    keep_identity(s, node, fresh, known);
    if (inputs != few)
        free(inputs);
}

/* Is autodiff done?  Gradients may be gone already, consumed where they were computed. */
static bool module_has_gradients(const Module *module) {
    if (module_find_function(module, "update"))
        return true;
    for (int64_t i = 0; i < module->states.count; i++)
        if (module->states.data[i].role == ROLE_GRADIENT)
            return true;
    return false;
}

bool pass_simplify(PassContext *context) {
    Module *module = context->module;
    for (int64_t i = 0; i < module->functions.count; i++) {
        const Function *old = module->functions.data[i];
        Simplifier s = {.rebuild = rebuild_begin(module, old),
                        .has_gradients = module_has_gradients(module)};
        s.b = builder(s.rebuild.fresh);
        for (int64_t id = 0; id < old->nodes.count; id++)
            rebuild_simplified(&s, (NodeId)id);
        rebuild_finish(&s.rebuild);
    }
    return true;
}
