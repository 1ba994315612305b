/* frontend/names.c: what a name means.  A frame is one call of a block or fn (or the model, or
 * an optimizer); its bindings come first, then the dims around it. */
#include "frontend/expand.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { FEW_BINDINGS = 24 }; /* searched one by one; more are indexed */

/* ---- values -------------------------------------------------------------------------- */

Value number_value(Number number) {
    if (number.kind == NUMBER_POISON)
        return poison;
    return (Value){.kind = VALUE_NUMBER, .number = number, .node = -1, .below_axis = -1};
}

Value tensor_value(NodeId node) {
    return bounded_value(node, 0, -1);
}

Value bounded_value(NodeId node, int64_t below, int32_t below_axis) {
    if (node < 0)
        return poison;
    return (Value){
        .kind = VALUE_TENSOR, .node = node, .below = below, .below_axis = below_axis};
}

Type value_type(const Expander *x, Value value) {
    INTERNAL_CHECK(value.kind == VALUE_TENSOR);
    return node_at(x->function, value.node)->type;
}

/* ---- frames -------------------------------------------------------------------------- */

Frame frame_begin(Frame *caller, const Item *item, DimTable *table) {
    return (Frame){.caller = caller,
                   .item = item,
                   .table = table,
                   .compile_time = !item || (caller && caller->compile_time),
                   .suffix = ""};
}

void frame_end(Frame *f) {
    array_free(&f->bindings);
    array_free(&f->fn_calls);
    string_map_free(&f->index);
}

bool frame_is_fn(const Frame *f) {
    return !f->item || f->item->kind == ITEM_FN || f->item->kind == ITEM_OPTIMIZER;
}

Binding *frame_find(Frame *f, const char *name) {
    if (f->bindings.count <= FEW_BINDINGS) {
        for (int64_t i = f->bindings.count - 1; i >= 0; i--)
            if (strcmp(f->bindings.data[i].name, name) == 0)
                return &f->bindings.data[i];
        return NULL;
    }
    int64_t at = string_map_get(&f->index, name, -1);
    bool valid =
        at >= 0 && at < f->bindings.count && strcmp(f->bindings.data[at].name, name) == 0;
    return valid ? &f->bindings.data[at] : NULL;
}

Binding *frame_bind(Frame *f, Name name, BindingKind kind) {
    Binding made = {.name = name.text, .span = name.span, .epoch = f->epoch, .kind = kind};
    array_push(&f->bindings, made);
    int64_t count = f->bindings.count;
    if (count == FEW_BINDINGS + 1)
        for (int64_t i = 0; i < count; i++)
            string_map_set(&f->index, f->bindings.data[i].name, i);
    else if (count > FEW_BINDINGS + 1)
        string_map_set(&f->index, name.text, count - 1);
    return &f->bindings.data[count - 1];
}

Binding *bind_value(Frame *f, Name name, Value value) {
    Binding *binding = frame_bind(f, name, BIND_VALUE);
    binding->value = value;
    return binding;
}

/* A number given for a formal: it may serve as an axis, of a name that no text can write. */
Binding *bind_number(Expander *x, Frame *callee, Name formal, Number number, Span span) {
    Dim *dim = dim_new(x, formal.text, formal.span);
    dim->axis_name = arena_printf(x->arena, "%s.%s", callee->item->name.text, formal.text);
    dim->is_local = true;
    dim->is_flag = number.kind == NUMBER_BOOL;
    dim->set_by = SET_ARGUMENT;
    dim->set = span;
    dim->state = SETTLED;
    dim->number = number;
    Binding *binding = frame_bind(callee, formal, BIND_DIM);
    binding->dim = dim;
    return binding;
}

void frame_truncate(Frame *f, int64_t count) {
    f->bindings.count = count; /* stale entries of the index are checked at each look */
}

Dim *visible_dim(Frame *f, const char *name) {
    Binding *binding = frame_find(f, name);
    if (binding)
        return binding->kind == BIND_DIM ? binding->dim : NULL;
    return table_find(f->table, name);
}

const char *nearest_visible(Frame *f, const char *name) {
    ARRAY(const char *) names = {0};
    for (int64_t i = 0; i < f->bindings.count; i++)
        array_push(&names, f->bindings.data[i].name);
    for (const DimTable *table = f->table; table; table = table->outer)
        for (int64_t i = 0; i < table->dims.count; i++)
            array_push(&names, table->dims.data[i]->name);
    const char *nearest = nearest_name(name, names.data, (int)names.count);
    array_free(&names);
    return nearest;
}

/* ---- axes ---------------------------------------------------------------------------- */

AxisId new_axis(Expander *x, Dim *dim, int64_t size) {
    Span declared = dim->set_by == SET_ARGUMENT ? dim->set : dim->declared;
    AxisId axis = module_axis(x->module, dim->axis_name, size, declared);
    while (x->axis_dims.count <= axis)
        array_push(&x->axis_dims, NULL);
    if (!x->axis_dims.data[axis])
        x->axis_dims.data[axis] = dim;
    return axis;
}

bool axis_list_has(const AxisList *axes, AxisId axis) {
    for (int i = 0; i < axes->count; i++)
        if (axes->axes[i] == axis)
            return true;
    return false;
}

bool axis_list_add(Expander *x, Frame *f, AxisList *axes, AxisId axis, Span span) {
    if (axis_list_has(axes, axis)) {
        Diagnostic *d =
            complain(x, f, span, "axis `%s` is here twice, and a tensor has an axis once",
                     axis_name(x, axis));
        help(d, "give the axis a second name of the same size: `dim %s2 = %s`",
             axis_name(x, axis), axis_name(x, axis));
        return false;
    }
    if (axes->count == MAX_AXES) {
        complain(x, f, span, "more than %d axes", MAX_AXES);
        return false;
    }
    axes->axes[axes->count++] = axis;
    return true;
}

static bool unknown_axis(Expander *x, Frame *f, Name name) {
    Diagnostic *d =
        complain(x, f, name.span, "nothing here is named `%s`, so it is no axis", name.text);
    const char *nearest = nearest_visible(f, name.text);
    if (nearest)
        help(d, "did you mean `%s`?", nearest);
    else
        help(d, "declare it: `dim %s = …`", name.text);
    return false;
}

bool axes_of_name(Expander *x, Frame *f, Name name, AxisList *axes) {
    Binding *binding = frame_find(f, name.text);
    if (binding && binding->kind == BIND_AXES) {
        for (int i = 0; i < binding->axes.count; i++)
            if (!axis_list_add(x, f, axes, binding->axes.axes[i], name.span))
                return false;
        return true;
    }
    if (binding && binding->kind != BIND_DIM) {
        if (binding->kind == BIND_VALUE && binding->value.kind == VALUE_POISON)
            return false;
        Diagnostic *d =
            complain(x, f, name.span, "`%s` is a value here, not an axis", name.text);
        note_at(d, binding->span, "it gets its value here");
        return false;
    }
    Dim *dim = binding ? binding->dim : table_find(f->table, name.text);
    if (!dim)
        return unknown_axis(x, f, name);
    if (dim->is_flag) {
        Diagnostic *d = complain(x, f, name.span, "`%s` is a flag, not an axis", name.text);
        note_at(d, dim->declared, "it is declared here");
        return false;
    }
    int32_t axis = dim_axis(x, dim, name.span);
    return axis >= 0 && axis_list_add(x, f, axes, (AxisId)axis, name.span);
}

bool axes_of_names(Expander *x, Frame *f, const Name *names, int count, AxisList *axes) {
    bool fine = true;
    for (int i = 0; i < count; i++)
        fine &= axes_of_name(x, f, names[i], axes);
    return fine;
}

/* axes(tensor) */
static bool axes_of_tensor(Expander *x, Frame *f, const Expr *e, AxisList *axes) {
    if (!e->args || e->args->next || e->groups) {
        complain(x, f, e->span, "axes(…) takes one tensor");
        return false;
    }
    Value value = eval(x, f, e->args);
    if (value.kind != VALUE_TENSOR)
        return value.kind == VALUE_NUMBER; /* a number has no axes */
    Type type = value_type(x, value);
    for (int i = 0; i < type.rank; i++)
        if (!axis_list_add(x, f, axes, type.axes[i], e->span))
            return false;
    return true;
}

static bool axes_of_arg(Expander *x, Frame *f, const Expr *e, AxisList *axes) {
    if (e->kind == EXPR_NAME)
        return axes_of_name(x, f, e->name, axes);
    if (e->kind == EXPR_CALL && strcmp(e->name.text, "axes") == 0)
        return axes_of_tensor(x, f, e, axes);
    if (e->kind == EXPR_LIST && e->arrow_at < 0) {
        bool fine = true;
        for (const Expr *part = e->args; part; part = part->next)
            fine &= axes_of_arg(x, f, part, axes);
        return fine;
    }
    complain(x, f, e->span, "%s is no axis: an axis is written by its name",
             excerpt(x, e->span));
    return false;
}

bool axes_of_args(Expander *x, Frame *f, const Expr *args, int count, AxisList *axes) {
    bool fine = true;
    for (int i = 0; i < count; i++, args = args->next)
        fine &= axes_of_arg(x, f, args, axes);
    return fine;
}
