/* frontend/expand_expr.c: expressions.  Compile-time numbers and tensors go through the same
 * evaluator: an operation on numbers alone is done at once, any other becomes a node. */
#include "frontend/expand.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- leaves -------------------------------------------------------------------------- */

static Value eval_literal(Expander *x, Frame *f, const Expr *e) {
    size_t digits = e->literal ? strspn(e->literal, "0123456789") : 0;
    if (digits == 0 || e->literal[digits])
        return number_value(number_real(e->number));
    int64_t integer = strtoll(e->literal, NULL, 10); /* INT64_MAX where it does not fit */
    if (integer > MAX_INTEGER) {
        complain(x, f, e->span, "%s is beyond 2^60", excerpt(x, e->span));
        return poison;
    }
    return number_value(number_integer(integer));
}

static Value eval_binding(Expander *x, Frame *f, const Expr *e, const Binding *binding) {
    switch (binding->kind) {
    case BIND_VALUE:
        return binding->value;
    case BIND_PARAM: {
        Type type = state_type(&x->module->states.data[binding->state]);
        if (!affordable(x, f, e->span, type))
            return poison;
        Builder b = builder_at(x, f, e->span);
        return tensor_value(build_state(&b, binding->state));
    }
    case BIND_DIM:
        return number_value(dim_number(x, binding->dim));
    case BIND_AXES:
        break;
    }
    if (binding->axes.count == 1)
        return number_value(number_integer(axis_size(x, binding->axes.axes[0])));
    Diagnostic *d =
        complain(x, f, e->span, "`%s` stands for the axes %s, which is no number", e->name.text,
                 list_text(x, binding->axes.axes, binding->axes.count));
    help(d, "`size(%s)` is the product of their sizes", e->name.text);
    return poison;
}

static Value unknown_name(Expander *x, Frame *f, const Expr *e) {
    const char *name = e->name.text;
    const Item *item = find_item(x, name, e->span.source);
    if (item || is_builtin(name)) {
        Diagnostic *d = complain(x, f, e->span, "`%s` is a %s: it needs arguments", name,
                                 !item                      ? "function"
                                 : item->kind == ITEM_BLOCK ? "block"
                                 : item->kind == ITEM_FN    ? "fn"
                                                            : "optimizer");
        help(d, "write `%s(…)`", name);
        return poison;
    }
    Diagnostic *d = complain(x, f, e->span, "nothing here is named `%s`", name);
    const char *nearest = nearest_visible(f, name);
    if (nearest)
        help(d, "did you mean `%s`?", nearest);
    return poison;
}

/* 1 in `micro`, 0 in `eval`: a runtime scalar that any text may name. */
static Value eval_training(Expander *x, Frame *f, const Expr *e) {
    if (f->compile_time) {
        complain(x, f, e->span, "`training` is known only when the model runs");
        return poison;
    }
    Builder b = builder_at(x, f, e->span);
    return tensor_value(build_scalar(&b, function_scalar(x->function, "training")));
}

static Value eval_name(Expander *x, Frame *f, const Expr *e) {
    const Binding *binding = frame_find(f, e->name.text);
    if (binding)
        return eval_binding(x, f, e, binding);
    Dim *dim = table_find(f->table, e->name.text);
    if (dim)
        return number_value(dim_number(x, dim));
    if (strcmp(e->name.text, "training") == 0 && !f->optimizer)
        return eval_training(x, f, e);
    return unknown_name(x, f, e);
}

/* ---- if, calls, labels --------------------------------------------------------------- */

static Value eval_if(Expander *x, Frame *f, const Expr *e) {
    Value condition = eval(x, f, e->a);
    if (condition.kind == VALUE_POISON)
        return poison;
    if (condition.kind == VALUE_NUMBER && condition.number.kind == NUMBER_BOOL)
        return eval(x, f, condition.number.integer ? e->b : e->c);
    Diagnostic *d = complain(x, f, e->a->span,
                             "%s is %s; the condition of an `if` is true or "
                             "false before the model runs",
                             excerpt(x, e->a->span),
                             condition.kind == VALUE_TENSOR ? "a tensor" : "a number");
    if (condition.kind == VALUE_TENSOR)
        help(d, "to choose element by element, write `where(condition, a, b)`");
    return poison;
}

static Value unknown_call(Expander *x, Frame *f, const Expr *e) {
    const char *name = e->name.text;
    if (frame_find(f, name) || table_find(f->table, name)) {
        Diagnostic *d = complain(x, f, e->name.span, "`%s` is a value, not a function", name);
        help(d, "to multiply, write `%s * (…)`", name);
        return poison;
    }
    const char *names[256];
    int count = builtin_names(names, COUNT_OF(names));
    for (int64_t i = 0; i < x->items.count && count < COUNT_OF(names); i++)
        if (x->items.data[i].item->kind != ITEM_OPTIMIZER)
            names[count++] = x->items.data[i].item->name.text;
    Diagnostic *d =
        complain(x, f, e->name.span, "no block, fn or built-in function is named `%s`", name);
    const char *nearest = nearest_name(name, names, count);
    if (strcmp(name, "matmul") == 0 || strcmp(name, "einsum") == 0)
        help(d, "a product that sums over an axis K of both is `dot(a, b; K)`");
    else if (nearest)
        help(d, "did you mean `%s`?", nearest);
    else if (x->items.count == 0 || !find_item(x, "softmax", NULL))
        help(d, "the library's functions come with `use \"std.cola\"`");
    return poison;
}

static Value eval_call(Expander *x, Frame *f, const Expr *e, const Name *label) {
    const char *name = e->name.text;
    const Item *item = is_builtin(name) ? NULL : find_item(x, name, e->span.source);
    if (item && item->kind == ITEM_OPTIMIZER) {
        Diagnostic *d =
            complain(x, f, e->name.span, "`%s` is an optimizer, not a function", name);
        help(d, "optimizers are named in a recipe: `optimizer %s(…)`", name);
        return poison;
    }
    if (label && (!item || item->kind != ITEM_BLOCK)) {
        Diagnostic *d =
            complain(x, f, label->span,
                     "`%s` labels a call of `%s`, which is no block and makes no component",
                     label->text, name);
        help(d, "leave the label out");
        return poison;
    }
    if (item)
        return eval_item_call(x, f, e, item, label);
    return is_builtin(name) ? eval_builtin(x, f, e) : unknown_call(x, f, e);
}

static Value eval_label(Expander *x, Frame *f, const Expr *e) {
    if (e->a->kind == EXPR_CALL)
        return eval_call(x, f, e->a, &e->name);
    Diagnostic *d = complain(x, f, e->name.span, "`%s` labels %s, which is no call of a block",
                             e->name.text, excerpt(x, e->a->span));
    help(d, "a label names a component and stands right before the block's name");
    return poison;
}

/* ---- any expression ------------------------------------------------------------------ */

static Value eval_kind(Expander *x, Frame *f, const Expr *e) {
    switch (e->kind) {
    case EXPR_NUMBER:
        return eval_literal(x, f, e);
    case EXPR_BOOL:
        return number_value(number_bool(e->number != 0));
    case EXPR_NAME:
        return eval_name(x, f, e);
    case EXPR_UNARY:
        return eval_unary(x, f, e);
    case EXPR_BINARY:
        return eval_binary(x, f, e);
    case EXPR_IF:
        return eval_if(x, f, e);
    case EXPR_CALL:
        return eval_call(x, f, e, NULL);
    case EXPR_INDEX:
        return eval_index(x, f, e);
    case EXPR_LABEL:
        return eval_label(x, f, e);
    case EXPR_LIST:
        complain(x, f, e->span, "%s is a list, where one value is wanted", excerpt(x, e->span));
        return poison;
    case EXPR_NAMED:
        complain(x, f, e->span, "%s names an argument, which has no place here",
                 excerpt(x, e->span));
        return poison;
    }
    return poison;
}

Value eval(Expander *x, Frame *f, const Expr *e) {
    if (!spend_step(x, f, e->span))
        return poison;
    if (x->depth >= MAX_DEPTH) {
        complain(x, NULL, e->span, "expressions and calls are nested more than %d deep",
                 MAX_DEPTH);
        return poison;
    }
    x->depth++;
    Value value = eval_kind(x, f, e);
    x->depth--;
    return value;
}

Number eval_number(Expander *x, Frame *f, const Expr *e, const char *what) {
    Value value = eval(x, f, e);
    if (value.kind == VALUE_NUMBER)
        return value.number;
    if (value.kind == VALUE_TENSOR)
        complain(x, f, e->span, "%s must be known before the model runs, and %s is a tensor",
                 what, excerpt(x, e->span));
    return (Number){0};
}

bool eval_whole(Expander *x, Frame *f, const Expr *e, const char *what, int64_t least,
                int64_t *value) {
    Number number = eval_number(x, f, e, what);
    if (number.kind == NUMBER_POISON)
        return false;
    if (number.kind != NUMBER_BOOL && number_whole(number, value) && *value >= least)
        return true;
    Diagnostic *d =
        complain(x, f, e->span, "%s must be a whole number from %" PRId64 " on, and %s is %s",
                 what, least, excerpt(x, e->span), number_text(x, number));
    explain_names(x, f, d, e);
    return false;
}
