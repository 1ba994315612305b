/* frontend/explain.c: what a diagnostic of an expansion says beyond its sentence: through which
 * calls it was reached, what the axes are, and who set their sizes. */
#include "frontend/expand.h"

#include <inttypes.h>
#include <string.h>

enum { MAX_EXCERPT = 60, MAX_CHAIN = 6, MAX_EXPLAINED = 6 };
enum { STEPS_PER_ERROR = 1000 }; /* a call repeated a million times is soon broken off */

int error_count(const Expander *x) {
    return diagnostics_errors(x->diagnostics);
}

const char *excerpt(Expander *x, Span span) {
    if (!span.source || span.end > span.source->length || span.begin >= span.end)
        return "this";
    const char *text = span.source->text + span.begin;
    size_t length = span.end - span.begin, shown = 0;
    while (shown < length && text[shown] != '\n')
        shown++;
    if (shown <= MAX_EXCERPT && shown == length)
        return arena_printf(x->arena, "`%.*s`", (int)shown, text);
    if (shown > MAX_EXCERPT)
        for (shown = MAX_EXCERPT; shown > 0 && ((unsigned char)text[shown] & 0xC0) == 0x80;)
            shown--; /* never within a character */
    return arena_printf(x->arena, "`%.*s …`", (int)shown, text);
}

static const char *frame_title(Expander *x, const Frame *f) {
    const char *kind = f->item->kind == ITEM_BLOCK       ? "block"
                       : f->item->kind == ITEM_OPTIMIZER ? "optimizer"
                                                         : "fn";
    if (f->item->kind == ITEM_BLOCK && f->instance)
        return arena_printf(x->arena, "block `%s` (`%s`)", f->item->name.text,
                            f->instance->path);
    return arena_printf(x->arena, "%s `%s`", kind, f->item->name.text);
}

static void explain_calls(Expander *x, Diagnostic *d, const Frame *f) {
    int shown = 0;
    for (; f && f->item && f->item->kind != ITEM_MODEL && shown < MAX_CHAIN; f = f->caller)
        if (f->call.source) {
            note_at(d, f->call, "in %s, called here", frame_title(x, f));
            shown++;
        }
}

Diagnostic *complain(Expander *x, const Frame *f, Span span, const char *format, ...) {
    va_list args;
    va_start(args, format);
    Text text = {0};
    text_vprintf(&text, format, args);
    va_end(args);
    x->steps += STEPS_PER_ERROR;
    Diagnostic *d = error_at(x->diagnostics, span, "%s", text_string(&text));
    text_free(&text);
    explain_calls(x, d, f);
    return d;
}

/* ---- axes ---------------------------------------------------------------------------- */

const char *axis_name(const Expander *x, AxisId axis) {
    return x->module->axes.data[axis].name;
}

int64_t axis_size(const Expander *x, AxisId axis) {
    return x->module->axes.data[axis].size;
}

const char *axes_text(Expander *x, Type type) {
    Text text = {0};
    for (int i = 0; i < type.rank; i++)
        text_printf(&text, "%s%s", i ? "," : "", axis_name(x, type.axes[i]));
    const char *result = arena_printf(x->arena, "`[%s]`", text_string(&text));
    text_free(&text);
    return result;
}

const char *list_text(Expander *x, const AxisId *axes, int count) {
    Text text = {0};
    for (int i = 0; i < count; i++)
        text_printf(&text, "%s`%s`",
                    i == 0           ? ""
                    : i == count - 1 ? " and "
                                     : ", ",
                    axis_name(x, axes[i]));
    const char *result = arena_strdup(x->arena, text_string(&text));
    text_free(&text);
    return result;
}

/* `D = 512`, or `K = D / H = 64` where the declaration computes it. */
static const char *dim_text(Expander *x, const Dim *dim) {
    const char *number = number_text(x, dim->number);
    bool literal = !dim->value || dim->value->kind == EXPR_NUMBER ||
                   dim->value->kind == EXPR_BOOL || dim->value->kind == EXPR_UNARY;
    if (literal || !dim->value->span.source)
        return arena_printf(x->arena, "`%s = %s`", dim->name, number);
    const char *source = excerpt(x, dim->value->span);
    return arena_printf(x->arena, "`%s = %.*s = %s`", dim->name, (int)strlen(source) - 2,
                        source + 1, number);
}

void explain_dim(Expander *x, Diagnostic *d, Dim *dim) {
    if (dim->state != SETTLED || dim->number.kind == NUMBER_POISON)
        return;
    const char *text = dim_text(x, dim);
    switch (dim->set_by) {
    case SET_DEFAULT:
        note_at(d, dim->declared, "%s is declared here", text);
        break;
    case SET_PRESET:
        note_at(d, dim->set, "%s is set here, by preset `%s`", text, dim->setter);
        break;
    case SET_PLAN:
        note_at(d, dim->set, "%s is set here, by plan `%s`", text, dim->setter);
        break;
    case SET_DEFINE:
        note_at(d, dim->declared, "%s is set by `-D`; it is declared here", text);
        break;
    case SET_ARGUMENT:
        note_at(d, dim->set, "%s is given here", text);
        break;
    }
}

void explain_axis(Expander *x, Diagnostic *d, AxisId axis) {
    Dim *dim = axis < x->axis_dims.count ? x->axis_dims.data[axis] : NULL;
    if (dim)
        explain_dim(x, d, dim);
    else
        note_at(d, x->module->axes.data[axis].declared, "`%s = %" PRId64 "`",
                axis_name(x, axis), axis_size(x, axis));
}

void explain_axes(Expander *x, Diagnostic *d, const AxisId *axes, int count) {
    for (int i = 0; i < count && i < MAX_EXPLAINED; i++)
        explain_axis(x, d, axes[i]);
}

static void explain_names_below(Expander *x, Frame *f, Diagnostic *d, const Expr *e,
                                int *left) {
    if (!e || *left <= 0)
        return;
    if (e->kind == EXPR_NAME) {
        Dim *dim = visible_dim(f, e->name.text);
        if (dim) {
            explain_dim(x, d, dim);
            --*left;
        }
        return;
    }
    explain_names_below(x, f, d, e->a, left);
    explain_names_below(x, f, d, e->b, left);
    explain_names_below(x, f, d, e->c, left);
    for (const Expr *arg = e->args; arg; arg = arg->next)
        explain_names_below(x, f, d, arg, left);
}

void explain_names(Expander *x, Frame *f, Diagnostic *d, const Expr *e) {
    int left = MAX_EXPLAINED;
    if (f)
        explain_names_below(x, f, d, e, &left);
}

/* ---- two sides that do not agree ----------------------------------------------------- */

AxisList axes_only_in(Type a, Type b) {
    AxisList only = {0};
    for (int i = 0; i < a.rank; i++)
        if (!type_has(b, a.axes[i]))
            only.axes[only.count++] = a.axes[i];
    return only;
}

/* Is a name the user can write?  Local axes of a block (`rope.P`) are not. */
static bool writable(const Expander *x, AxisId axis) {
    return strchr(axis_name(x, axis), '.') == NULL;
}

/* An expression as it can stand before `[`. */
static const char *indexable(Expander *x, const Expr *e) {
    const char *source = excerpt(x, e->span);
    int length = (int)strlen(source);
    if (source[0] != '`')
        return "it";
    bool simple = e->kind == EXPR_NAME || e->kind == EXPR_CALL || e->kind == EXPR_INDEX;
    return arena_printf(x->arena, simple ? "%.*s" : "(%.*s)", length - 2, source + 1);
}

/* dim a = b */
static bool declared_as(const Dim *a, const Dim *b) {
    return a->value && a->value->kind == EXPR_NAME && strcmp(a->value->name.text, b->name) == 0;
}

bool declared_same(const Expander *x, AxisId a, AxisId b) {
    if (a >= x->axis_dims.count || b >= x->axis_dims.count)
        return false;
    const Dim *one = x->axis_dims.data[a], *other = x->axis_dims.data[b];
    return one && other && (declared_as(one, other) || declared_as(other, one));
}

bool suggest_declared(Expander *x, Diagnostic *d, AxisId want, const Expr *e, Type type) {
    for (int i = 0; i < type.rank; i++) {
        if (!declared_same(x, want, type.axes[i]))
            continue;
        const char *to = axis_name(x, want), *from = axis_name(x, type.axes[i]);
        help(d, "`%s` and `%s` are declared to be the same: write `%s[%s as %s]`", to, from,
             indexable(x, e), from, to);
        return true;
    }
    return false;
}

void suggest_rename(Expander *x, Diagnostic *d, const AxisList *want, const Expr *e,
                    const AxisList *have) {
    for (int i = 0; i < want->count; i++)
        for (int j = 0; j < have->count; j++) {
            AxisId to = want->axes[i], from = have->axes[j];
            if (axis_size(x, to) != axis_size(x, from) || !writable(x, to) ||
                !writable(x, from))
                continue;
            help(d,
                 "`%s` and `%s` are both %" PRId64 ": where they mean the same, rename one: "
                 "`%s[%s as %s]`",
                 axis_name(x, to), axis_name(x, from), axis_size(x, to), indexable(x, e),
                 axis_name(x, from), axis_name(x, to));
            return;
        }
}

void explain_difference(Expander *x, Diagnostic *d, Type a, const Expr *b_expr, Type b) {
    AxisList only_a = axes_only_in(a, b), only_b = axes_only_in(b, a);
    explain_axes(x, d, only_a.axes, only_a.count);
    explain_axes(x, d, only_b.axes, only_b.count);
    suggest_rename(x, d, &only_a, b_expr, &only_b);
}
