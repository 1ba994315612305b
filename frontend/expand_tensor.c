/* frontend/expand_tensor.c: element-wise typing.
 *
 * Axes align by name.  Between two floats the axes of one must contain the other's; where an
 * int, a mask or a comparison takes part they may cross.  Ints and masks become floats where a
 * float is wanted, a division among them: an int tensor is never rounded silently. */
#include "frontend/expand.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { MAX_MULTIPLIED_POWER = 64, NODE_RESERVE = 1000, MAX_OPERANDS = 3 };

/* ---- limits -------------------------------------------------------------------------- */

bool affordable(Expander *x, const Frame *f, Span span, Type type) {
    if (x->function->nodes.count > x->most_nodes - NODE_RESERVE) {
        if (!x->exhausted)
            complain(x, f, span, "the model has more than %d operations", x->most_nodes);
        x->exhausted = true;
        return false;
    }
    if (type_elements(x->module, type) <= MAX_ELEMENTS)
        return true;
    Diagnostic *d = complain(x, f, span, "%s has more than 2^60 elements: axes %s",
                             excerpt(x, span), axes_text(x, type));
    explain_axes(x, d, type.axes, type.rank);
    return false;
}

bool union_affordable(Expander *x, const Frame *f, Span span, Type a, Type b) {
    int count = a.rank;
    for (int i = 0; i < b.rank; i++)
        count += !type_has(a, b.axes[i]);
    if (count <= MAX_AXES)
        return affordable(x, f, span, type_union(a, b));
    complain(x, f, span, "%s has %d axes, and a tensor has at most %d: %s and %s",
             excerpt(x, span), count, MAX_AXES, axes_text(x, a), axes_text(x, b));
    return false;
}

/* ---- conversions --------------------------------------------------------------------- */

NodeId node_of(Expander *x, Frame *f, Span span, Value value, DataType dtype) {
    Builder b = builder_at(x, f, span);
    if (value.kind == VALUE_TENSOR)
        return build_cast(&b, value.node, dtype);
    INTERNAL_CHECK(value.kind == VALUE_NUMBER);
    if (f->compile_time) {
        complain(x, f, span,
                 "%s would be a tensor, and this must be known before the model runs",
                 excerpt(x, span));
        return -1;
    }
    if (dtype == TYPE_I32 &&
        (value.number.integer > INT32_MAX || value.number.integer < -INT32_MAX)) {
        complain(x, f, span, "%s is %s, beyond the 32 bits of an int tensor", excerpt(x, span),
                 number_text(x, value.number));
        return -1;
    }
    return build_const(&b, dtype, value.number.real);
}

static bool is_dtype(const Expander *x, Value value, DataType dtype) {
    return value.kind == VALUE_TENSOR && value_type(x, value).dtype == dtype;
}

NodeId float_node(Expander *x, Frame *f, Span span, Value value) {
    if (value.kind == VALUE_POISON)
        return -1;
    return node_of(x, f, span, value, is_dtype(x, value, TYPE_F64) ? TYPE_F64 : TYPE_F32);
}

int64_t bound_of(Value value) {
    if (value.kind == VALUE_TENSOR)
        return value.below;
    bool counts = value.kind == VALUE_NUMBER && value.number.kind == NUMBER_INTEGER &&
                  value.number.integer >= 0;
    return counts ? value.number.integer + 1 : 0;
}

/* What operands are computed in: f64 for runtime scalars among themselves, f32 where any is a
 * float, a mask or a fraction, else i32. */
static DataType common_dtype(const Expander *x, const Value *values, int count) {
    bool scalar = false, other = false, whole = true;
    for (int i = 0; i < count; i++) {
        if (values[i].kind == VALUE_NUMBER) {
            whole &= values[i].number.kind == NUMBER_INTEGER;
            continue;
        }
        DataType dtype = value_type(x, values[i]).dtype;
        scalar |= dtype == TYPE_F64;
        other |= dtype != TYPE_F64;
        whole &= dtype == TYPE_I32;
    }
    return scalar && !other ? TYPE_F64 : whole ? TYPE_I32 : TYPE_F32;
}

/* ---- axes of operands ---------------------------------------------------------------- */

static bool is_float_tensor(const Expander *x, Value value) {
    return value.kind == VALUE_TENSOR && dtype_is_float(value_type(x, value).dtype);
}

static void complain_crossing(Expander *x, Frame *f, const Expr *e, Value a, const Expr *a_expr,
                              Value b, const Expr *b_expr) {
    Type type_a = value_type(x, a), type_b = value_type(x, b);
    Diagnostic *d =
        complain(x, f, e->span, "%s has axes %s and %s has %s: neither contains the other",
                 excerpt(x, a_expr->span), axes_text(x, type_a), excerpt(x, b_expr->span),
                 axes_text(x, type_b));
    explain_difference(x, d, type_a, b_expr, type_b);
    if (e->kind == EXPR_BINARY && e->operator== OPERATOR_MULTIPLY)
        help(d, "an outer product is written `dot(a, b;)`");
}

/* Floats: one must contain all the others. */
static bool axes_agree(Expander *x, Frame *f, const Expr *e, const Value *values,
                       const Expr *const *operands, int count) {
    int widest = -1;
    for (int i = 0; i < count; i++)
        if (is_float_tensor(x, values[i]) &&
            (widest < 0 || value_type(x, values[i]).rank > value_type(x, values[widest]).rank))
            widest = i;
    for (int i = 0; i < count; i++) {
        if (i == widest || !is_float_tensor(x, values[i]) ||
            type_contains(value_type(x, values[widest]), value_type(x, values[i])))
            continue;
        int first = i < widest ? i : widest, second = i < widest ? widest : i;
        complain_crossing(x, f, e, values[first], operands[first], values[second],
                          operands[second]);
        return false;
    }
    return true;
}

static bool union_fits(Expander *x, Frame *f, const Expr *e, const Value *values, int count) {
    Type all = {0};
    for (int i = 0; i < count; i++) {
        if (values[i].kind != VALUE_TENSOR)
            continue;
        Type type = value_type(x, values[i]);
        if (!union_affordable(x, f, e->span, all, type))
            return false;
        all = type_union(all, type);
    }
    return true;
}

/* Nodes of the operands in `dtype`; false after reporting. */
static bool operand_nodes(Expander *x, Frame *f, const Expr *e, const Value *values,
                          const Expr *const *operands, int count, DataType dtype,
                          NodeId *nodes) {
    if (!union_fits(x, f, e, values, count))
        return false;
    for (int i = 0; i < count; i++) {
        nodes[i] = node_of(x, f, operands[i]->span, values[i], dtype);
        if (nodes[i] < 0)
            return false;
    }
    return true;
}

static NodeId build_n(Builder *b, Op op, const NodeId *nodes, int count) {
    return count == 1   ? build_1(b, op, nodes[0])
           : count == 2 ? build_2(b, op, nodes[0], nodes[1])
                        : build_3(b, op, nodes[0], nodes[1], nodes[2]);
}

Value eval_map(Expander *x, Frame *f, const Expr *e, Op op, MapTyping typing,
               const Value *values, const Expr *const *operands, int count) {
    for (int i = 0; i < count; i++)
        if (values[i].kind == VALUE_POISON)
            return poison;
    DataType dtype = common_dtype(x, values, count);
    if (typing == MAP_FLOAT && dtype == TYPE_I32)
        dtype = TYPE_F32;
    NodeId nodes[MAX_OPERANDS];
    INTERNAL_CHECK(count <= MAX_OPERANDS);
    if (!axes_agree(x, f, e, values, operands, count) ||
        !operand_nodes(x, f, e, values, operands, count, dtype, nodes))
        return poison;
    Builder b = builder_at(x, f, e->span);
    return tensor_value(build_n(&b, op, nodes, count));
}

/* ---- comparisons and logic ----------------------------------------------------------- */

static bool all_masks(const Expander *x, const Value *values, int count) {
    for (int i = 0; i < count; i++)
        if (!is_dtype(x, values[i], TYPE_BOOL) &&
            !(values[i].kind == VALUE_NUMBER && values[i].number.kind == NUMBER_BOOL))
            return false;
    return true;
}

static Value eval_comparison(Expander *x, Frame *f, const Expr *e, const Value *values,
                             const Expr *const *operands) {
    bool equality = e->operator== OPERATOR_EQUAL || e->operator== OPERATOR_NOT_EQUAL;
    DataType dtype = common_dtype(x, values, 2);
    if (dtype == TYPE_F64)
        dtype = TYPE_F32; /* masks live in the graph, runtime scalars beside it */
    if (equality && all_masks(x, values, 2))
        dtype = TYPE_BOOL;
    NodeId nodes[2];
    if (!operand_nodes(x, f, e, values, operands, 2, dtype, nodes))
        return poison;
    Builder b = builder_at(x, f, e->span);
    switch (e->operator) {
    case OPERATOR_LESS:
        return tensor_value(build_2(&b, OP_LT, nodes[0], nodes[1]));
    case OPERATOR_LESS_EQUAL:
        return tensor_value(build_2(&b, OP_LE, nodes[0], nodes[1]));
    case OPERATOR_GREATER:
        return tensor_value(build_2(&b, OP_LT, nodes[1], nodes[0]));
    case OPERATOR_GREATER_EQUAL:
        return tensor_value(build_2(&b, OP_LE, nodes[1], nodes[0]));
    case OPERATOR_EQUAL:
        return tensor_value(build_2(&b, OP_EQ, nodes[0], nodes[1]));
    default:
        return tensor_value(build_1(&b, OP_NOT, build_2(&b, OP_EQ, nodes[0], nodes[1])));
    }
}

static bool want_mask(Expander *x, Frame *f, const Expr *e, Value value) {
    if (all_masks(x, &value, 1))
        return true;
    Diagnostic *d = complain(x, f, e->span, "%s is %s, where a mask (true or false) is wanted",
                             excerpt(x, e->span),
                             value.kind == VALUE_NUMBER ? "a number" : "a tensor of numbers");
    help(d, "compare it: `… != 0`");
    return false;
}

static Value eval_logic(Expander *x, Frame *f, const Expr *e, const Value *values,
                        const Expr *const *operands) {
    NodeId nodes[2];
    if (!want_mask(x, f, operands[0], values[0]) || !want_mask(x, f, operands[1], values[1]) ||
        !operand_nodes(x, f, e, values, operands, 2, TYPE_BOOL, nodes))
        return poison;
    Builder b = builder_at(x, f, e->span);
    return tensor_value(
        build_2(&b, e->operator== OPERATOR_AND ? OP_AND : OP_OR, nodes[0], nodes[1]));
}

Value eval_where(Expander *x, Frame *f, const Expr *e, const Value *values,
                 const Expr *const *operands) {
    for (int i = 0; i < 3; i++)
        if (values[i].kind == VALUE_POISON)
            return poison;
    if (!want_mask(x, f, operands[0], values[0]))
        return poison;
    if (values[0].kind == VALUE_NUMBER)
        return values[0].number.integer ? values[1] : values[2];
    DataType dtype = all_masks(x, values + 1, 2) ? TYPE_BOOL : common_dtype(x, values + 1, 2);
    if (dtype == TYPE_F64)
        dtype = TYPE_F32;
    NodeId nodes[2];
    if (!axes_agree(x, f, e, values + 1, operands + 1, 2) || !union_fits(x, f, e, values, 3) ||
        !operand_nodes(x, f, e, values + 1, operands + 1, 2, dtype, nodes))
        return poison;
    Builder b = builder_at(x, f, e->span);
    NodeId chosen = build_3(&b, OP_WHERE, values[0].node, nodes[0], nodes[1]);
    int64_t one = bound_of(values[1]), other = bound_of(values[2]);
    if (dtype != TYPE_I32 || one == 0 || other == 0)
        return tensor_value(chosen);
    int64_t below = one > other ? one : other;
    int32_t axis = one == below && values[1].kind == VALUE_TENSOR ? values[1].below_axis : -1;
    if (axis < 0 && other == below && values[2].kind == VALUE_TENSOR)
        axis = values[2].below_axis;
    return bounded_value(chosen, below, axis);
}

/* ---- powers -------------------------------------------------------------------------- */

/* a^n by squaring, n >= 1 */
static NodeId multiply_out(Builder *b, NodeId a, int64_t n) {
    NodeId result = -1;
    for (NodeId square = a; n > 0; n /= 2) {
        if (n % 2)
            result = result < 0 ? square : build_2(b, OP_MUL, result, square);
        if (n > 1)
            square = build_2(b, OP_MUL, square, square);
    }
    return result;
}

/* a^exponent, where twice the exponent is whole and not 0 */
static NodeId half_power(Builder *b, NodeId a, double exponent, DataType dtype) {
    double size = fabs(exponent);
    int64_t whole = (int64_t)size;
    NodeId root = size != (double)whole ? build_1(b, OP_SQRT, a) : -1;
    NodeId power = whole ? multiply_out(b, a, whole) : -1;
    NodeId result = root < 0 ? power : power < 0 ? root : build_2(b, OP_MUL, power, root);
    return exponent > 0 ? result : build_2(b, OP_DIV, build_const(b, dtype, 1), result);
}

static Value constant_power(Expander *x, Frame *f, const Expr *e, Value base, double exponent) {
    bool whole = exponent == floor(exponent);
    bool stays_int = is_dtype(x, base, TYPE_I32) && whole && exponent >= 0;
    NodeId a = stays_int ? base.node : float_node(x, f, e->a->span, base);
    DataType dtype = node_at(x->function, a)->type.dtype;
    Builder b = builder_at(x, f, e->span);
    if (!affordable(x, f, e->span, node_at(x->function, a)->type))
        return poison;
    if (exponent == 0)
        return tensor_value(
            build_expand(&b, build_const(&b, dtype, 1), node_at(x->function, a)->type));
    if (fabs(exponent) <= MAX_MULTIPLIED_POWER && 2 * exponent == floor(2 * exponent))
        return tensor_value(half_power(&b, a, exponent, dtype));
    Diagnostic *d = complain(x, f, e->span,
                             "the power %.10g of a tensor is neither whole nor "
                             "half, or too large",
                             exponent);
    help(d, "for a positive x, write `exp(%.10g * log(x))`", exponent);
    return poison;
}

/* base^y of a number and a tensor: exp(y * log(base)) */
static Value exponential(Expander *x, Frame *f, const Expr *e, double base, Value exponent) {
    if (!(base > 0)) {
        complain(x, f, e->a->span,
                 "%s is %.10g: only a positive number has a power that is a "
                 "tensor",
                 excerpt(x, e->a->span), base);
        return poison;
    }
    NodeId y = float_node(x, f, e->b->span, exponent);
    if (!affordable(x, f, e->span, node_at(x->function, y)->type))
        return poison;
    DataType dtype = node_at(x->function, y)->type.dtype;
    Builder b = builder_at(x, f, e->span);
    NodeId scaled = build_2(&b, OP_MUL, y, build_const(&b, dtype, log(base)));
    return tensor_value(build_1(&b, OP_EXP, scaled));
}

static Value eval_power(Expander *x, Frame *f, const Expr *e, const Value *values,
                        const Expr *const *operands) {
    if (common_dtype(x, values, 2) == TYPE_F64)
        return eval_map(x, f, e, OP_POW, MAP_FLOAT, values, operands, 2);
    if (values[1].kind == VALUE_NUMBER)
        return constant_power(x, f, e, values[0], values[1].number.real);
    if (values[0].kind == VALUE_NUMBER)
        return exponential(x, f, e, values[0].number.real, values[1]);
    Diagnostic *d =
        complain(x, f, e->span, "%s: both sides of `^` are tensors", excerpt(x, e->span));
    help(d, "for a positive x, write `exp(y * log(x))`");
    return poison;
}

/* ---- operators ----------------------------------------------------------------------- */

Value eval_unary(Expander *x, Frame *f, const Expr *e) {
    Value a = eval(x, f, e->a);
    if (a.kind == VALUE_POISON)
        return poison;
    if (a.kind == VALUE_NUMBER)
        return number_value(number_unary(x, f, e, a.number));
    const Expr *operands[] = {e->a};
    if (e->operator== OPERATOR_NEGATE)
        return eval_map(x, f, e, OP_NEG, MAP_ARITHMETIC, &a, operands, 1);
    if (!want_mask(x, f, e->a, a) || !affordable(x, f, e->span, value_type(x, a)))
        return poison;
    Builder b = builder_at(x, f, e->span);
    return tensor_value(build_1(&b, OP_NOT, a.node));
}

/* a % n is in [0, n); n may name an axis. */
static Value eval_modulo(Expander *x, Frame *f, const Expr *e, const Value *values,
                         const Expr *const *operands) {
    Value result = eval_map(x, f, e, OP_MOD, MAP_ARITHMETIC, values, operands, 2);
    if (!is_dtype(x, result, TYPE_I32) || values[1].kind != VALUE_NUMBER ||
        values[1].number.integer <= 0)
        return result;
    result.below = values[1].number.integer;
    Dim *dim = e->b->kind == EXPR_NAME ? visible_dim(f, e->b->name.text) : NULL;
    if (dim && !dim->is_flag)
        result.below_axis = dim_axis(x, dim, e->b->span);
    return result;
}

Value eval_binary(Expander *x, Frame *f, const Expr *e) {
    Value values[] = {eval(x, f, e->a), eval(x, f, e->b)};
    const Expr *operands[] = {e->a, e->b};
    if (values[0].kind == VALUE_POISON || values[1].kind == VALUE_POISON)
        return poison;
    if (values[0].kind == VALUE_NUMBER && values[1].kind == VALUE_NUMBER)
        return number_value(number_binary(x, f, e, values[0].number, values[1].number));
    switch (e->operator) {
    case OPERATOR_ADD:
        return eval_map(x, f, e, OP_ADD, MAP_ARITHMETIC, values, operands, 2);
    case OPERATOR_SUBTRACT:
        return eval_map(x, f, e, OP_SUB, MAP_ARITHMETIC, values, operands, 2);
    case OPERATOR_MULTIPLY:
        return eval_map(x, f, e, OP_MUL, MAP_ARITHMETIC, values, operands, 2);
    case OPERATOR_DIVIDE:
        return eval_map(x, f, e, OP_DIV, MAP_FLOAT, values, operands, 2);
    case OPERATOR_MODULO:
        return eval_modulo(x, f, e, values, operands);
    case OPERATOR_POWER:
        return eval_power(x, f, e, values, operands);
    case OPERATOR_AND:
    case OPERATOR_OR:
        return eval_logic(x, f, e, values, operands);
    default:
        return eval_comparison(x, f, e, values, operands);
    }
}

/* ---- annotations --------------------------------------------------------------------- */

/* The dot that a value comes from through maps, or -1. */
static NodeId dot_behind(const Expander *x, NodeId node) {
    for (int i = 0; i < 16; i++) {
        const Node *n = node_at(x->function, node);
        if (n->op == OP_DOT)
            return node;
        if (!op_is_map(n->op) || n->input_count == 0)
            return -1;
        int widest = 0;
        for (int k = 1; k < n->input_count; k++)
            if (node_at(x->function, n->inputs[k])->op != OP_EXPAND)
                widest = k;
        node = n->inputs[widest];
    }
    return -1;
}

/* The call within `e` that made a node, or NULL. */
static const Expr *call_at(const Expr *e, Span span) {
    if (!e || e->span.begin > span.begin || e->span.end < span.end)
        return NULL;
    if (e->kind == EXPR_CALL && e->span.begin == span.begin && e->span.end == span.end)
        return e;
    const Expr *found = NULL;
    const Expr *parts[] = {e->a, e->b, e->c};
    for (int i = 0; i < COUNT_OF(parts) && !found; i++)
        found = call_at(parts[i], span);
    for (const Expr *arg = e->args; arg && !found; arg = arg->next)
        found = call_at(arg, span);
    return found;
}

bool explain_missing(Expander *x, Diagnostic *d, const Expr *e, Value value, AxisId axis) {
    NodeId dot = value.kind == VALUE_TENSOR ? dot_behind(x, value.node) : -1;
    if (dot < 0)
        return false;
    const Node *n = node_at(x->function, dot);
    Type a = node_at(x->function, n->inputs[0])->type;
    Type b = node_at(x->function, n->inputs[1])->type;
    for (int i = 0; i < a.rank; i++) {
        AxisId shared = a.axes[i];
        if (!type_has(b, shared) || !type_has(n->type, shared) ||
            axis_size(x, shared) != axis_size(x, axis))
            continue;
        const Expr *call = call_at(e, n->span);
        const char *second =
            call && call->args && call->args->next ? excerpt(x, call->args->next->span) : "`…`";
        if (!call)
            note_at(d, n->span, "%s comes from this dot", excerpt(x, e->span));
        help(d,
             "`%s` is in both operands of the dot, so it is matched, not crossed: write "
             "%.*s[%s as %s]`",
             axis_name(x, shared), (int)strlen(second) - 1, second, axis_name(x, shared),
             axis_name(x, axis));
        explain_axes(x, d, (AxisId[]){axis, shared}, 2);
        return true;
    }
    return false;
}

static Type annotated_type(const AxisList *axes) {
    return type_of(TYPE_F32, axes->axes, axes->count);
}

/* Names of a type that stand for axes which a call gives: `D` for `T` in rmsnorm(x; T). */
static void explain_formals(Expander *x, Frame *types, const TypeExpr *type, Diagnostic *d) {
    for (int i = 0; i < type->axis_count; i++) {
        const char *name = type->axes[i].text;
        const Binding *binding = frame_find(types, name);
        AxisList axes = {0};
        if (!binding || !binding->argument || !axes_of_name(x, types, type->axes[i], &axes) ||
            (axes.count == 1 && strcmp(axis_name(x, axes.axes[0]), name) == 0))
            continue;
        note_at(d, binding->argument->span, "`%s` stands for %s in this call", name,
                axes.count ? list_text(x, axes.axes, axes.count) : "no axis");
    }
}

static Value complain_type(Expander *x, Frame *types, Frame *place, const TypeExpr *type,
                           Type want, Type have, Value value, const Expr *e, const char *what) {
    Diagnostic *d = complain(x, place, e->span, "%s is declared %s%s, and %s is %s", what,
                             excerpt(x, type->span), type->open ? " (any axes and these)" : "",
                             excerpt(x, e->span), axes_text(x, have));
    note_at(d, type->span, "the type is stated here");
    for (int i = 0; i < want.rank; i++)
        if (!type_has(have, want.axes[i]) && explain_missing(x, d, e, value, want.axes[i]))
            return poison;
    explain_formals(x, types, type, d);
    AxisList missing = axes_only_in(want, have), other = axes_only_in(have, want);
    explain_axes(x, d, missing.axes, missing.count);
    if (!type->open)
        explain_axes(x, d, other.axes, other.count);
    suggest_rename(x, d, &missing, e, &other);
    return poison;
}

Value check_type(Expander *x, Frame *types, Frame *place, const TypeExpr *type, Value value,
                 const Expr *e, const char *what) {
    AxisList axes = {0};
    if (!axes_of_names(x, types, type->axes, type->axis_count, &axes) ||
        value.kind == VALUE_POISON)
        return poison;
    Type want = annotated_type(&axes);
    Type have = value.kind == VALUE_TENSOR ? value_type(x, value) : (Type){0};
    if (!type_contains(have, want) || (!type->open && have.rank != want.rank))
        return complain_type(x, types, place, type, want, have, value, e, what);
    if (type->is_int) {
        if (is_dtype(x, value, TYPE_I32) ||
            (value.kind == VALUE_NUMBER && value.number.kind == NUMBER_INTEGER))
            return value;
        Diagnostic *d = complain(x, place, e->span, "%s is declared an int, and %s is none",
                                 what, excerpt(x, e->span));
        note_at(d, type->span, "the type is stated here");
        return poison;
    }
    return tensor_value(float_node(x, place, e->span, value));
}
