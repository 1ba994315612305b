/* frontend/expand_index.c: what stands in brackets after a value.  Items apply from left to
 * right.
 *
 *   x[S as T]        renames            x[H as (J, G)]   splits, the first name slowest
 *   x[(J, G) as H]   merges             y[P = 0]         picks a position
 *   embed[tokens]    gathers along the axis that bounds the tokens; embed[V = tokens] says
 * which
 */
#include "frontend/expand.h"

#include <inttypes.h>
#include <string.h>

static bool want_axis(Expander *x, Frame *f, const Expr *e, Value value, AxisId axis,
                      Span span) {
    Type type = value_type(x, value);
    if (type_has(type, axis))
        return true;
    Diagnostic *d = complain(x, f, span, "%s has no axis `%s`: it has %s", excerpt(x, e->span),
                             axis_name(x, axis), axes_text(x, type));
    explain_axis(x, d, axis);
    return false;
}

/* Axes that come in: none may be there already, but for those that leave at the same time. */
static bool want_new_axes(Expander *x, Frame *f, const Expr *e, Value value,
                          const AxisList *from, const AxisList *to, Span span) {
    Type type = value_type(x, value);
    for (int i = 0; i < to->count; i++) {
        bool leaves = axis_list_has(from, to->axes[i]) &&
                      (from->count != to->count || from->axes[i] == to->axes[i]);
        if (type_has(type, to->axes[i]) && !leaves) {
            complain(x, f, span, "%s has an axis `%s` already: it has %s", excerpt(x, e->span),
                     axis_name(x, to->axes[i]), axes_text(x, type));
            return false;
        }
    }
    return true;
}

static bool want_equal_sizes(Expander *x, Frame *f, const AxisList *from, const AxisList *to,
                             Span span) {
    int64_t before = axes_elements(x->module, from->axes, from->count);
    int64_t after = axes_elements(x->module, to->axes, to->count);
    if (before == after && before != INT64_MAX)
        return true;
    Diagnostic *d =
        complain(x, f, span, "%s of size %" PRId64 " cannot become %s of size %" PRId64,
                 list_text(x, from->axes, from->count), before,
                 list_text(x, to->axes, to->count), after);
    explain_axes(x, d, from->axes, from->count);
    explain_axes(x, d, to->axes, to->count);
    return false;
}

/* Renames one for one.  Both lists are of one length and disjoint from the rest. */
static NodeId rename_each(Builder *b, NodeId node, const AxisList *from, const AxisList *to) {
    for (int i = 0; i < from->count; i++)
        node = build_rename(b, node, from->axes[i], to->axes[i]);
    return node;
}

static Value apply_as(Expander *x, Frame *f, const Expr *e, Value value,
                      const IndexItem *item) {
    AxisList from = {0}, to = {0};
    if (!axes_of_names(x, f, item->from, item->from_count, &from) ||
        !axes_of_names(x, f, item->to, item->to_count, &to))
        return poison;
    for (int i = 0; i < from.count; i++)
        if (!want_axis(x, f, e, value, from.axes[i], item->span))
            return poison;
    if (!want_new_axes(x, f, e, value, &from, &to, item->span))
        return poison;
    bool rename = !item->from_list && !item->to_list && from.count == to.count;
    if (!rename && from.count != 1 && to.count != 1) {
        complain(x, f, item->span, "%d axes cannot become %d in one step", from.count,
                 to.count);
        return poison;
    }
    for (int i = 0; rename && i < from.count; i++) {
        AxisList one = {1, {from.axes[i]}}, other = {1, {to.axes[i]}};
        if (!want_equal_sizes(x, f, &one, &other, item->span))
            return poison;
    }
    if (!want_equal_sizes(x, f, &from, &to, item->span))
        return poison;
    int rank = value_type(x, value).rank - from.count + to.count;
    if (rank > MAX_AXES) {
        complain(x, f, item->span, "%s would have %d axes, and a tensor has at most %d",
                 excerpt(x, e->span), rank, MAX_AXES);
        return poison;
    }
    Builder b = builder_at(x, f, e->span);
    if (rename || (from.count == 1 && to.count == 1))
        value.node = rename_each(&b, value.node, &from, &to);
    else if (from.count == 1)
        value.node = build_split(&b, value.node, from.axes[0], to.axes, to.count);
    else
        value.node = build_merge(&b, value.node, from.axes, from.count, to.axes[0]);
    return value;
}

static Value apply_gather(Expander *x, Frame *f, const Expr *e, Value table, Value index,
                          AxisId axis, const Expr *index_expr, Span span) {
    int64_t rows = axis_size(x, axis);
    if (!want_axis(x, f, e, table, axis, span))
        return poison;
    if (index.below == 0 || index.below > rows) {
        const char *text = excerpt(x, index_expr->span);
        Diagnostic *d = index.below ? complain(x, f, index_expr->span, "%s goes up to %" PRId64,
                                               text, index.below - 1)
                                    : complain(x, f, index_expr->span,
                                               "nothing says how large %s gets", text);
        note_at(d, span, "axis `%s` has positions 0 to %" PRId64, axis_name(x, axis), rows - 1);
        explain_axis(x, d, axis);
        help(d, "bound it: `(…) %% %s`", axis_name(x, axis));
        return poison;
    }
    Type index_type = value_type(x, index), rest = type_without(value_type(x, table), axis);
    if (type_has(index_type, axis)) {
        complain(x, f, span, "%s has axis `%s` itself: rename it first",
                 excerpt(x, index_expr->span), axis_name(x, axis));
        return poison;
    }
    if (!union_affordable(x, f, span, index_type, rest))
        return poison;
    Builder b = builder_at(x, f, span);
    int64_t below = value_type(x, table).dtype == TYPE_I32 ? table.below : 0;
    return bounded_value(build_gather(&b, table.node, index.node, axis), below,
                         below ? table.below_axis : -1);
}

static bool want_positions(Expander *x, Frame *f, const Expr *e, Value index) {
    if (index.kind == VALUE_TENSOR && value_type(x, index).dtype == TYPE_I32)
        return true;
    complain(x, f, e->span, "%s gives no positions: an int tensor is wanted",
             excerpt(x, e->span));
    return false;
}

/* P = 0, or V = tokens */
static Value apply_pick(Expander *x, Frame *f, const Expr *e, Value value,
                        const IndexItem *item) {
    AxisList axes = {0};
    Value position = eval(x, f, item->value);
    if (!axes_of_name(x, f, item->from[0], &axes) || position.kind == VALUE_POISON)
        return poison;
    if (axes.count != 1) {
        complain(x, f, item->span, "`%s` stands for %d axes, and a position is along one",
                 item->from[0].text, axes.count);
        return poison;
    }
    AxisId axis = axes.axes[0];
    if (!want_axis(x, f, e, value, axis, item->span))
        return poison;
    if (position.kind == VALUE_TENSOR)
        return want_positions(x, f, item->value, position)
                   ? apply_gather(x, f, e, value, position, axis, item->value, item->span)
                   : poison;
    int64_t at;
    if (!number_whole(position.number, &at) || at < 0 || at >= axis_size(x, axis)) {
        Diagnostic *d = complain(
            x, f, item->value->span, "%s is no position along `%s`: those are 0 to %" PRId64,
            number_text(x, position.number), axis_name(x, axis), axis_size(x, axis) - 1);
        explain_axis(x, d, axis);
        return poison;
    }
    Builder b = builder_at(x, f, e->span);
    value.node = build_pick(&b, value.node, axis, at);
    return value;
}

/* The axis of a table that an index was likely meant for; -1: none. */
static int32_t likely_axis(const Expander *x, Value table_value, Value index) {
    Type table = value_type(x, table_value), type = value_type(x, index);
    const Node *node = node_at(x->function, table_value.node);
    const State *state =
        node->op == OP_STATE ? &x->module->states.data[node->attr.integer] : NULL;
    int32_t likely = state && state->in_count ? (int32_t)state->in[0] : -1;
    for (int i = 0; i < table.rank; i++) {
        if (declared_same(x, table.axes[i], (AxisId)index.below_axis))
            return (int32_t)table.axes[i];
        if (likely < 0 && !type_has(type, table.axes[i]))
            likely = (int32_t)table.axes[i];
    }
    return likely;
}

/* Has the table the axis that the index is below? */
static bool want_looked_up(Expander *x, Frame *f, const Expr *e, Value table, Value index,
                           const IndexItem *item) {
    Type type = value_type(x, table);
    AxisId axis = (AxisId)index.below_axis;
    if (type_has(type, axis))
        return true;
    const char *text = excerpt(x, item->value->span);
    Diagnostic *d =
        complain(x, f, item->span, "%s has no axis `%s`, which %s is below: it has %s",
                 excerpt(x, e->span), axis_name(x, axis), text, axes_text(x, type));
    explain_axis(x, d, axis);
    int32_t likely = likely_axis(x, table, index);
    bool fits = likely >= 0 && axis_size(x, (AxisId)likely) >= index.below;
    const char *table_text = excerpt(x, e->span);
    if (likely >= 0)
        help(d, "to look up along another axis, name it: `%.*s[%s = %.*s]`",
             (int)strlen(table_text) - 2, table_text + 1, axis_name(x, (AxisId)likely),
             fits ? (int)strlen(text) - 2 : (int)strlen("…"), fits ? text + 1 : "…");
    return false;
}

/* embed[tokens]: along the axis that the tokens are below. */
static Value apply_lookup(Expander *x, Frame *f, const Expr *e, Value table,
                          const IndexItem *item) {
    Value index = eval(x, f, item->value);
    if (index.kind == VALUE_POISON)
        return poison;
    if (index.kind == VALUE_NUMBER) {
        Diagnostic *d = complain(x, f, item->span, "%s does not say along which axis",
                                 excerpt(x, item->span));
        help(d, "write %.*s[AXIS = %s]`", (int)strlen(excerpt(x, e->span)) - 1,
             excerpt(x, e->span), number_text(x, index.number));
        return poison;
    }
    if (!want_positions(x, f, item->value, index))
        return poison;
    if (index.below_axis < 0) {
        Diagnostic *d = complain(x, f, item->value->span,
                                 "%s is not bounded by an axis, so the axis must be named",
                                 excerpt(x, item->value->span));
        const char *text = excerpt(x, item->value->span);
        help(d, "write `[AXIS = %.*s]`", (int)strlen(text) - 2, text + 1);
        return poison;
    }
    return want_looked_up(x, f, e, table, index, item)
               ? apply_gather(x, f, e, table, index, (AxisId)index.below_axis, item->value,
                              item->span)
               : poison;
}

Value eval_index(Expander *x, Frame *f, const Expr *e) {
    Value value = eval(x, f, e->a);
    if (value.kind == VALUE_NUMBER) {
        complain(x, f, e->a->span, "%s is a number and has no axes", excerpt(x, e->a->span));
        return poison;
    }
    for (const IndexItem *item = e->items; item && value.kind == VALUE_TENSOR;
         item = item->next) {
        if (!affordable(x, f, e->span, value_type(x, value)))
            return poison;
        const Expr *named = item == e->items ? e->a : e;
        if (item->kind == ITEM_AS)
            value = apply_as(x, f, named, value, item);
        else if (item->kind == ITEM_PICK)
            value = apply_pick(x, f, named, value, item);
        else
            value = apply_lookup(x, f, named, value, item);
    }
    return value;
}
