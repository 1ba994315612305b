/* frontend/builtins.c: the functions that are not text: one row each, primitives or nearly so.
 */
#include "frontend/expand.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Builtin Builtin;
struct Builtin {
    const char *name;
    int least, most; /* arguments */
    bool grouped;    /* may have a group of axes after `;` */
    bool local;      /* element by element: may run over a flat slab */
    Op op;
    double (*fold)(double); /* of a compile-time number; NULL */
    Value (*apply)(Expander *x, Frame *f, const Expr *e, const Builtin *builtin);
    const char *form; /* how it is written */
};

enum { MAX_ARGS = 3 };

/* ---- arguments ----------------------------------------------------------------------- */

static int count_args(const Expr *e) {
    int count = 0;
    for (const Expr *arg = e->args; arg; arg = arg->next)
        count++;
    return count;
}

/* Evaluates all arguments (so that all their errors show); false when one is poison. */
static bool eval_args(Expander *x, Frame *f, const Expr *e, Value *values,
                      const Expr **operands) {
    int count = 0;
    bool fine = true;
    for (const Expr *arg = e->args; arg; arg = arg->next) {
        INTERNAL_CHECK(count < MAX_ARGS);
        operands[count] = arg;
        values[count] = eval(x, f, arg);
        fine &= values[count++].kind != VALUE_POISON;
    }
    return fine;
}

static bool all_numbers(const Value *values, int count) {
    for (int i = 0; i < count; i++)
        if (values[i].kind != VALUE_NUMBER)
            return false;
    return true;
}

static bool want_tensor(Expander *x, Frame *f, const Expr *e, Value value) {
    if (value.kind == VALUE_TENSOR)
        return true;
    if (value.kind == VALUE_NUMBER)
        complain(x, f, e->span, "%s is a number, where a tensor is wanted",
                 excerpt(x, e->span));
    return false;
}

static bool want_graph(Expander *x, Frame *f, const Expr *e) {
    if (!f->compile_time)
        return true;
    complain(x, f, e->span, "`%s` gives a tensor, and this must be known before the model runs",
             e->name.text);
    return false;
}

/* ---- maps ---------------------------------------------------------------------------- */

static Value fold_number(Expander *x, Frame *f, const Expr *e, const Builtin *builtin,
                         Number number) {
    double result = builtin->fold(number.real);
    if (isnan(result)) {
        complain(x, f, e->span, "%s has no value: `%s` of %s", excerpt(x, e->span),
                 builtin->name, number_text(x, number));
        return poison;
    }
    bool whole = number.kind == NUMBER_INTEGER &&
                 (builtin->op == OP_ABS || builtin->op == OP_FLOOR || builtin->op == OP_SIGN);
    if (builtin->op == OP_FLOOR && fabs(result) <= (double)MAX_INTEGER)
        whole = true;
    return number_value(whole ? number_integer((int64_t)result) : number_real(result));
}

static Value apply_map(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    Value values[MAX_ARGS];
    const Expr *operands[MAX_ARGS];
    if (!eval_args(x, f, e, values, operands))
        return poison;
    if (builtin->fold && all_numbers(values, 1))
        return fold_number(x, f, e, builtin, values[0].number);
    bool keeps_int = builtin->op == OP_ABS || builtin->op == OP_SIGN;
    return eval_map(x, f, e, builtin->op, keeps_int ? MAP_ARITHMETIC : MAP_FLOAT, values,
                    operands, count_args(e));
}

static Value apply_stop(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    Value value = eval(x, f, e->args);
    if (value.kind != VALUE_TENSOR)
        return value;
    if (!affordable(x, f, e->span, value_type(x, value)))
        return poison;
    Builder b = builder_at(x, f, e->span);
    value.node = build_1(&b, builtin->op, value.node);
    return value;
}

static Value apply_where(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    Value values[MAX_ARGS];
    const Expr *operands[MAX_ARGS];
    (void)builtin;
    return eval_args(x, f, e, values, operands) ? eval_where(x, f, e, values, operands)
                                                : poison;
}

/* ---- sums and products --------------------------------------------------------------- */

/* The axes of the one group; without a group, all of the value's. */
static bool reduced_axes(Expander *x, Frame *f, const Expr *e, Value value, AxisList *axes) {
    Type type = value_type(x, value);
    if (!e->groups) {
        for (int i = 0; i < type.rank; i++)
            axes->axes[axes->count++] = type.axes[i];
        return true;
    }
    if (!axes_of_args(x, f, e->groups->args, e->groups->arg_count, axes))
        return false;
    for (int i = 0; i < axes->count; i++)
        if (!type_has(type, axes->axes[i])) {
            Diagnostic *d = complain(x, f, e->groups->span,
                                     "%s has no axis `%s` to go over: it "
                                     "has %s",
                                     excerpt(x, e->args->span), axis_name(x, axes->axes[i]),
                                     axes_text(x, type));
            if (!explain_missing(x, d, e->args, value, axes->axes[i]))
                explain_axis(x, d, axes->axes[i]);
            return false;
        }
    return true;
}

static Value reduce(Expander *x, Frame *f, const Expr *e, Op op, bool divide) {
    Value value = eval(x, f, e->args);
    AxisList axes = {0};
    if (!want_tensor(x, f, e->args, value) || !reduced_axes(x, f, e, value, &axes))
        return poison;
    NodeId node = float_node(x, f, e->args->span, value);
    if (!affordable(x, f, e->span, node_at(x->function, node)->type))
        return poison;
    Builder b = builder_at(x, f, e->span);
    if (op == OP_MINIMUM)
        node = build_1(&b, OP_NEG, node);
    NodeId result =
        build_reduce(&b, op == OP_MINIMUM ? OP_MAX : op, node, axes.axes, axes.count);
    if (op == OP_MINIMUM)
        result = build_1(&b, OP_NEG, result);
    if (divide) {
        int64_t count = axes_elements(x->module, axes.axes, axes.count);
        DataType dtype = node_at(x->function, result)->type.dtype;
        result = build_2(&b, OP_DIV, result, build_const(&b, dtype, (double)count));
    }
    return tensor_value(result);
}

static Value apply_sum(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    return reduce(x, f, e, builtin->op, false);
}

static Value apply_mean(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    return reduce(x, f, e, builtin->op, true);
}

/* max(x; T) over axes, max(a, b) of two; the least is -max(-x) */
static Value apply_max(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    if (count_args(e) == 1)
        return reduce(x, f, e, builtin->op == OP_MAXIMUM ? OP_MAX : OP_MINIMUM, false);
    Value values[MAX_ARGS];
    const Expr *operands[MAX_ARGS];
    if (e->groups) {
        complain(x, f, e->span, "`%s` goes over axes of one tensor, or takes the %s of two",
                 builtin->name, builtin->op == OP_MAXIMUM ? "larger" : "smaller");
        return poison;
    }
    if (!eval_args(x, f, e, values, operands))
        return poison;
    if (all_numbers(values, 2)) {
        bool first = builtin->op == OP_MAXIMUM ? values[0].number.real >= values[1].number.real
                                               : values[0].number.real <= values[1].number.real;
        return values[first ? 0 : 1];
    }
    return eval_map(x, f, e, builtin->op, MAP_ARITHMETIC, values, operands, 2);
}

static AxisList shared_axes(Type a, Type b) {
    AxisList shared = {0};
    for (int i = 0; i < a.rank; i++)
        if (type_has(b, a.axes[i]))
            shared.axes[shared.count++] = a.axes[i];
    return shared;
}

static bool want_summed(Expander *x, Frame *f, const Expr *e, const Expr *operand, Type type,
                        const Expr *other, Type other_type, const AxisList *axes) {
    for (int i = 0; i < axes->count; i++) {
        if (type_has(type, axes->axes[i]))
            continue;
        Diagnostic *d = complain(
            x, f, e->span, "this dot sums over `%s`, which %s lacks: it has %s, and %s has %s",
            axis_name(x, axes->axes[i]), excerpt(x, operand->span), axes_text(x, type),
            excerpt(x, other->span), axes_text(x, other_type));
        explain_axis(x, d, axes->axes[i]);
        AxisList want = {1, {axes->axes[i]}}, have = axes_only_in(type, other_type);
        if (!suggest_declared(x, d, axes->axes[i], operand, type))
            suggest_rename(x, d, &want, operand, &have);
        return false;
    }
    return true;
}

static Value apply_dot(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    Value values[MAX_ARGS];
    const Expr *operands[MAX_ARGS];
    AxisList axes = {0};
    (void)builtin;
    if (!eval_args(x, f, e, values, operands) || !want_tensor(x, f, operands[0], values[0]) ||
        !want_tensor(x, f, operands[1], values[1]))
        return poison;
    Type a = value_type(x, values[0]), b_type = value_type(x, values[1]);
    if (!e->groups) {
        AxisList shared = shared_axes(a, b_type);
        Diagnostic *d =
            complain(x, f, e->span, "this dot does not say which axes it sums over");
        if (shared.count)
            help(d, "both operands have %s: write what to sum over after a `;`",
                 list_text(x, shared.axes, shared.count));
        else
            help(d, "no axis is in both: an outer product is written `dot(a, b;)`");
        return poison;
    }
    if (!axes_of_args(x, f, e->groups->args, e->groups->arg_count, &axes) ||
        !want_summed(x, f, e, operands[0], a, operands[1], b_type, &axes) ||
        !want_summed(x, f, e, operands[1], b_type, operands[0], a, &axes))
        return poison;
    for (int i = 0; i < axes.count; i++) {
        a = type_without(a, axes.axes[i]);
        b_type = type_without(b_type, axes.axes[i]);
    }
    if (!union_affordable(x, f, e->span, a, b_type))
        return poison;
    NodeId left = float_node(x, f, operands[0]->span, values[0]);
    NodeId right = float_node(x, f, operands[1]->span, values[1]);
    Builder b = builder_at(x, f, e->span);
    if (node_at(x->function, left)->type.dtype == TYPE_F64)
        left = build_cast(&b, left, TYPE_F32);
    if (node_at(x->function, right)->type.dtype == TYPE_F64)
        right = build_cast(&b, right, TYPE_F32);
    return tensor_value(build_dot(&b, left, right, axes.axes, axes.count));
}

/* ---- positions and chance -------------------------------------------------------- */

static Value apply_index(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    AxisList axes = {0};
    if (!want_graph(x, f, e) || !axes_of_args(x, f, e->args, 1, &axes))
        return poison;
    if (axes.count != 1) {
        complain(x, f, e->span, "`%s` gives positions along one axis, not %d", builtin->name,
                 axes.count);
        return poison;
    }
    AxisId axis = axes.axes[0];
    if (axis_size(x, axis) > INT32_MAX) {
        explain_axis(x, complain(x, f, e->span, "positions go up to 2^31"), axis);
        return poison;
    }
    Builder b = builder_at(x, f, e->span);
    return bounded_value(build_index(&b, axis), axis_size(x, axis), axis);
}

/* A site is a word of the reader's choice; the block instance and the chain of fns add to it.
 */
static bool site_number(Expander *x, Frame *f, const Expr *e, int64_t *site) {
    uint64_t hash = hash_bytes(f->suffix, strlen(f->suffix), f->site);
    if (e->kind == EXPR_NAME) {
        hash = hash_bytes(e->name.text, strlen(e->name.text), hash);
    } else {
        int64_t number;
        if (!eval_whole(x, f, e, "the site of `random`", 0, &number))
            return false;
        hash = hash_bytes(&number, sizeof number, hash);
    }
    *site = (int64_t)(hash >> 1);
    return true;
}

static Value apply_random(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    AxisList axes = {0};
    int64_t site;
    if (!want_graph(x, f, e))
        return poison;
    if (f->optimizer) {
        complain(x, f, e->span, "`%s` has no place in an optimizer", builtin->name);
        return poison;
    }
    if (!e->groups) {
        Diagnostic *d = complain(x, f, e->span, "`random` does not say which axes it has");
        help(d, "write `%s`", builtin->form);
        return poison;
    }
    if (!site_number(x, f, e->args, &site) ||
        !axes_of_args(x, f, e->groups->args, e->groups->arg_count, &axes))
        return poison;
    Type type = type_of(TYPE_F32, axes.axes, axes.count);
    if (!affordable(x, f, e->span, type))
        return poison;
    Attr attr = {.integer = site, .to_count = type.rank};
    memcpy(attr.to, type.axes, sizeof attr.to);
    Builder b = builder_at(x, f, e->span);
    return tensor_value(build(&b, OP_RANDOM, TYPE_F32, attr, NULL, 0));
}

/* bucket(u; V): which of size(V) equal parts of [0,1) u lies in; an int below V */
static Value apply_bucket(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    AxisList axes = {0};
    Value value = eval(x, f, e->args);
    if (!want_tensor(x, f, e->args, value) || !e->groups ||
        !axes_of_args(x, f, e->groups->args, e->groups->arg_count, &axes) || axes.count != 1) {
        if (value.kind == VALUE_TENSOR && axes.count != 1)
            help(complain(x, f, e->span, "`bucket` wants one axis"), "write `%s`",
                 builtin->form);
        return poison;
    }
    int64_t size = axis_size(x, axes.axes[0]);
    NodeId u = node_of(x, f, e->args->span, value, TYPE_F32);
    if (!affordable(x, f, e->span, node_at(x->function, u)->type))
        return poison;
    if (size > 1 << 24) {
        complain(x, f, e->span, "`bucket` tells at most 2^24 parts from each other");
        return poison;
    }
    Builder b = builder_at(x, f, e->span);
    NodeId scaled = build_2(&b, OP_MUL, u, build_const(&b, TYPE_F32, (double)size));
    NodeId part = build_1(&b, OP_FLOOR, scaled);
    part = build_2(&b, OP_MINIMUM, part, build_const(&b, TYPE_F32, (double)(size - 1)));
    part = build_2(&b, OP_MAXIMUM, part, build_const(&b, TYPE_F32, 0));
    return bounded_value(build_cast(&b, part, TYPE_I32), size, axes.axes[0]);
}

/* ---- stack and size -------------------------------------------------------------- */

static bool stack_part(Expander *x, Frame *f, const Expr *e, const Expr *first, Value value,
                       Type *all) {
    if (!want_tensor(x, f, e, value))
        return false;
    Type type = value_type(x, value);
    if (e == first) {
        *all = type;
        return true;
    }
    if (type_same_axes(*all, type))
        return true;
    Diagnostic *d = complain(x, f, e->span,
                             "the parts of a `stack` have the same axes, and %s is "
                             "%s where the first is %s",
                             excerpt(x, e->span), axes_text(x, type), axes_text(x, *all));
    explain_difference(x, d, *all, e, type);
    return false;
}

static Value stack_along(Expander *x, Frame *f, const Expr *e, AxisId axis, const NodeId *parts,
                         int count, Type type) {
    if (axis_size(x, axis) != count) {
        Diagnostic *d = complain(
            x, f, e->span, "axis `%s` has %" PRId64 " positions, and %d part%s here",
            axis_name(x, axis), axis_size(x, axis), count, count == 1 ? " stands" : "s stand");
        explain_axis(x, d, axis);
        return poison;
    }
    if (type_has(type, axis)) {
        complain(x, f, e->span, "the parts have axis `%s` already", axis_name(x, axis));
        return poison;
    }
    if (!union_affordable(x, f, e->span, type, type_of(TYPE_F32, &axis, 1)))
        return poison;
    Builder b = builder_at(x, f, e->span);
    return tensor_value(build_stack(&b, parts, count, axis));
}

/* stack(P: a, b): the axis stands as a label before the first part */
static Value apply_stack(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    AxisList axes = {0};
    if (e->args->kind != EXPR_LABEL) {
        help(complain(x, f, e->span, "`stack` does not say along which axis"), "write `%s`",
             builtin->form);
        return poison;
    }
    bool fine = axes_of_name(x, f, e->args->name, &axes) && axes.count == 1;
    ARRAY(NodeId) parts = {0};
    ARRAY(Value) values = {0};
    Type type = {0};
    const Expr *first = NULL; /* part that is no number: numbers are spread over its axes */
    for (const Expr *arg = e->args; arg; arg = arg->next) {
        const Expr *part = arg == e->args ? e->args->a : arg;
        Value value = eval(x, f, part);
        array_push(&values, value);
        fine &= value.kind != VALUE_POISON;
        if (value.kind != VALUE_TENSOR)
            continue;
        first = first ? first : part;
        fine = stack_part(x, f, part, first, value, &type) && fine;
    }
    fine = fine && (first || want_tensor(x, f, e->args->a, values.data[0]));
    Builder b = builder_at(x, f, e->span);
    const Expr *arg = e->args;
    for (int64_t i = 0; fine && i < values.count; i++, arg = arg->next)
        array_push(&parts,
                   build_expand(&b, node_of(x, f, arg->span, values.data[i], TYPE_F32), type));
    array_free(&values);
    Value result =
        fine ? stack_along(x, f, e, axes.axes[0], parts.data, (int)parts.count, type) : poison;
    array_free(&parts);
    return result;
}

static Value apply_size(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    AxisList axes = {0};
    (void)builtin;
    if (!axes_of_args(x, f, e->args, count_args(e), &axes))
        return poison;
    int64_t size = axes_elements(x->module, axes.axes, axes.count);
    if (size == INT64_MAX) {
        complain(x, f, e->span, "%s is beyond 2^60", excerpt(x, e->span));
        return poison;
    }
    return number_value(number_integer(size));
}

static Value apply_axes(Expander *x, Frame *f, const Expr *e, const Builtin *builtin) {
    Diagnostic *d =
        complain(x, f, e->span, "`%s(…)` is a list of axes, not a value", builtin->name);
    help(d, "it stands where axes do, as in `random(site; axes(x))` or `size(axes(x))`");
    return poison;
}

/* ---- the table ------------------------------------------------------------------- */

static double fold_sigmoid(double a) {
    return 1 / (1 + exp(-a));
}

static double fold_sign(double a) {
    return (a > 0) - (a < 0);
}

static const Builtin builtins[] = {
    {"dot", 2, 2, true, false, OP_DOT, NULL, apply_dot, "dot(a, b; D)"},
    {"sum", 1, 1, true, false, OP_SUM, NULL, apply_sum, "sum(x; D)"},
    {"mean", 1, 1, true, false, OP_SUM, NULL, apply_mean, "mean(x; D)"},
    {"max", 1, 2, true, false, OP_MAXIMUM, NULL, apply_max, "max(x; D) or max(a, b)"},
    {"min", 1, 2, true, false, OP_MINIMUM, NULL, apply_max, "min(x; D) or min(a, b)"},
    {"exp", 1, 1, false, true, OP_EXP, exp, apply_map, "exp(x)"},
    {"log", 1, 1, false, true, OP_LOG, log, apply_map, "log(x)"},
    {"sqrt", 1, 1, false, true, OP_SQRT, sqrt, apply_map, "sqrt(x)"},
    {"tanh", 1, 1, false, true, OP_TANH, tanh, apply_map, "tanh(x)"},
    {"sigmoid", 1, 1, false, true, OP_SIGMOID, fold_sigmoid, apply_map, "sigmoid(x)"},
    {"erf", 1, 1, false, true, OP_ERF, erf, apply_map, "erf(x)"},
    {"sin", 1, 1, false, true, OP_SIN, sin, apply_map, "sin(x)"},
    {"cos", 1, 1, false, true, OP_COS, cos, apply_map, "cos(x)"},
    {"abs", 1, 1, false, true, OP_ABS, fabs, apply_map, "abs(x)"},
    {"floor", 1, 1, false, true, OP_FLOOR, floor, apply_map, "floor(x)"},
    {"sign", 1, 1, false, true, OP_SIGN, fold_sign, apply_map, "sign(x)"},
    {"fma", 3, 3, false, true, OP_FMA, NULL, apply_map, "fma(a, b, c)"},
    {"where", 3, 3, false, true, OP_WHERE, NULL, apply_where, "where(mask, a, b)"},
    {"stop", 1, 1, false, true, OP_STOP, NULL, apply_stop, "stop(x)"},
    {"index", 1, 1, false, false, OP_INDEX, NULL, apply_index, "index(T)"},
    {"random", 1, 1, true, false, OP_RANDOM, NULL, apply_random, "random(site; B, S)"},
    {"bucket", 1, 1, true, false, OP_CAST, NULL, apply_bucket, "bucket(u; V)"},
    {"stack", 1, 1 << 20, false, false, OP_STACK, NULL, apply_stack, "stack(P: a, b)"},
    {"size", 1, MAX_AXES, false, false, OP_CONST, NULL, apply_size, "size(D)"},
    {"axes", 1, 1, false, false, OP_CONST, NULL, apply_axes, "axes(x)"},
};

static const Builtin *find_builtin(const char *name) {
    for (int i = 0; i < COUNT_OF(builtins); i++)
        if (strcmp(builtins[i].name, name) == 0)
            return &builtins[i];
    return NULL;
}

bool is_builtin(const char *name) {
    return find_builtin(name) != NULL;
}

int builtin_names(const char **names, int limit) {
    int count = 0;
    for (; count < COUNT_OF(builtins) && count < limit; count++)
        names[count] = builtins[count].name;
    return count;
}

Value eval_builtin(Expander *x, Frame *f, const Expr *e) {
    const Builtin *builtin = find_builtin(e->name.text);
    int count = count_args(e);
    bool fits = count >= builtin->least && count <= builtin->most &&
                (builtin->grouped || !e->groups) && (!e->groups || !e->groups->next) &&
                e->arrow_at < 0 && (!e->groups || e->groups->arrow_at < 0);
    for (const Expr *arg = e->args; arg; arg = arg->next)
        fits &= arg->kind != EXPR_NAMED;
    if (fits)
        return builtin->apply(x, f, e, builtin);
    Diagnostic *d = complain(x, f, e->span, "%s is not how `%s` is written",
                             excerpt(x, e->span), builtin->name);
    help(d, "write `%s`", builtin->form);
    return poison;
}

/* ---- optimizers: element by element? --------------------------------------------- */

typedef struct CrossWalk {
    const Expander *x;
    ARRAY(const Item *) seen; /* fns whose bodies were looked at */
} CrossWalk;

static bool expr_crosses(CrossWalk *walk, const Expr *e);

static bool statements_cross(CrossWalk *walk, const Statement *s) {
    for (; s; s = s->next)
        if (expr_crosses(walk, s->value) || expr_crosses(walk, s->value2) ||
            statements_cross(walk, s->body) || statements_cross(walk, s->otherwise))
            return true;
    return false;
}

static bool call_crosses(CrossWalk *walk, const Expr *e) {
    const Builtin *builtin = find_builtin(e->name.text);
    if (builtin)
        return !builtin->local && !(builtin->apply == apply_max && count_args(e) == 2);
    if (e->groups)
        return true; /* axes may be among them */
    const Item *item = find_item(walk->x, e->name.text, e->span.source);
    if (!item)
        return false;
    for (int64_t i = 0; i < walk->seen.count; i++)
        if (walk->seen.data[i] == item)
            return false;
    array_push(&walk->seen, item);
    return statements_cross(walk, item->body);
}

static bool expr_crosses(CrossWalk *walk, const Expr *e) {
    if (!e)
        return false;
    if (e->kind == EXPR_INDEX || (e->kind == EXPR_CALL && call_crosses(walk, e)))
        return true;
    if (expr_crosses(walk, e->a) || expr_crosses(walk, e->b) || expr_crosses(walk, e->c))
        return true;
    for (const Expr *arg = e->args; arg; arg = arg->next)
        if (expr_crosses(walk, arg))
            return true;
    return false;
}

bool statements_cross_elements(const Expander *x, const Statement *body) {
    CrossWalk walk = {.x = x};
    bool crosses = statements_cross(&walk, body);
    array_free(&walk.seen);
    return crosses;
}
