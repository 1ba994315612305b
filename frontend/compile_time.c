/* frontend/compile_time.c: dims and flags.  Four voices may give one a value: its declaration,
 * a preset, a plan's `set`, and -D, in rising order of weight.  Values are expressions, settled
 * when first asked for, so that `K = D / H` follows whatever D and H became. */
#include "frontend/expand.h"

#include <inttypes.h>
#include <string.h>

/* ---- tables -------------------------------------------------------------------------- */

Dim *dim_new(Expander *x, const char *name, Span declared) {
    Dim *dim = arena_alloc(x->arena, sizeof *dim);
    *dim = (Dim){.name = name,
                 .axis_name = name,
                 .owner = "",
                 .declared = declared,
                 .set = declared,
                 .axis = -1};
    return dim;
}

void table_add(Expander *x, DimTable *table, Dim *dim) {
    Dim *other = table_find(table, dim->name);
    if (strcmp(dim->name, "training") == 0) { /* the library's texts mean the built-in one */
        complain(x, NULL, dim->declared, "`training` is a built-in value: choose another name");
        return;
    }
    if (other) {
        Diagnostic *d = complain(x, NULL, dim->declared, "`%s` is already declared", dim->name);
        note_at(d, other->declared, "it is declared here%s%s", *other->owner ? ", by " : "",
                other->owner);
        if (table != &x->globals)
            help(d, "to give it another value here, write `set %s = …`", dim->name);
        return;
    }
    string_map_set(&table->by_name, dim->name, table->dims.count);
    array_push(&table->dims, dim);
}

Dim *table_own(const DimTable *table, const char *name) {
    int64_t found = string_map_get(&table->by_name, name, -1);
    return found < 0 ? NULL : table->dims.data[found];
}

Dim *table_find(const DimTable *table, const char *name) {
    for (; table; table = table->outer) {
        Dim *dim = table_own(table, name);
        if (dim)
            return dim;
    }
    return NULL;
}

void table_free(DimTable *table) {
    string_map_free(&table->by_name);
    array_free(&table->dims);
}

/* ---- settling ------------------------------------------------------------------------ */

void dim_set(Dim *dim, SetBy by, const char *setter, Span set, const Expr *value,
             DimTable *home) {
    INTERNAL_CHECK(dim->state == UNSETTLED);
    if (by < dim->set_by)
        return;
    dim->set_by = by;
    dim->setter = setter;
    dim->set = set;
    dim->value = value;
    dim->home = home;
}

/* A flag is true or false (1 and 0 from a command line will do), a dim any other number. */
static Number fit_number(Expander *x, const Dim *dim, Number number) {
    if (number.kind == NUMBER_POISON || dim->is_flag == (number.kind == NUMBER_BOOL))
        return number;
    if (dim->is_flag && number.kind == NUMBER_INTEGER && (number.integer & ~INT64_C(1)) == 0)
        return number_bool(number.integer);
    Span place = dim->value ? dim->value->span : dim->set;
    Diagnostic *d = complain(x, NULL, place, "`%s` is a %s, and %s is %s", dim->name,
                             dim->is_flag ? "flag: true or false" : "dim: a number",
                             number_text(x, number), dim->is_flag ? "neither" : "none");
    note_at(d, dim->declared, "`%s` is declared here", dim->name);
    return (Number){0};
}

static void complain_cycle(Expander *x, const Dim *dim) {
    Diagnostic *d = complain(x, NULL, dim->declared, "`%s` depends on itself", dim->name);
    const DimTable *tables[] = {&x->globals, &x->plan_dims, &x->recipe_dims};
    for (int t = 0; t < COUNT_OF(tables); t++)
        for (int64_t i = 0; i < tables[t]->dims.count; i++) {
            const Dim *other = tables[t]->dims.data[i];
            if (other->state == SETTLING && other != dim)
                note_at(d, other->set, "by way of `%s`", other->name);
        }
}

Number evaluate(Expander *x, const Expr *e, DimTable *table) {
    Frame frame = frame_begin(NULL, NULL, table);
    Number number = eval_number(x, &frame, e, "this");
    frame_end(&frame);
    return number;
}

Number dim_number(Expander *x, Dim *dim) {
    if (dim->state == SETTLED)
        return dim->number;
    if (dim->state == SETTLING) {
        complain_cycle(x, dim);
        return (Number){0};
    }
    dim->state = SETTLING;
    dim->number = fit_number(x, dim, evaluate(x, dim->value, dim->home));
    dim->state = SETTLED;
    return dim->number;
}

int32_t dim_axis(Expander *x, Dim *dim, Span use) {
    if (dim->axis >= 0)
        return dim->axis;
    Number number = dim_number(x, dim);
    int64_t size;
    if (number.kind == NUMBER_POISON || dim->refused)
        return -1;
    if (number.kind == NUMBER_BOOL || !number_whole(number, &size) || size < 1) {
        Diagnostic *d = complain(x, NULL, use, "`%s` is %s, which is no size of an axis",
                                 dim->name, number_text(x, number));
        explain_dim(x, d, dim);
        help(d, "a size is a whole number from 1 on");
        dim->refused = true;
        return -1;
    }
    if (size > MAX_ELEMENTS || x->module->axes.count >= MAX_MODULE_AXES - AXIS_RESERVE) {
        Diagnostic *d = complain(x, NULL, use,
                                 size > MAX_ELEMENTS ? "axis `%s` has more than 2^60 elements"
                                                     : "`%s` would be one axis too many",
                                 dim->name);
        explain_dim(x, d, dim);
        return -1;
    }
    return dim->axis = new_axis(x, dim, size);
}

bool evaluate_whole(Expander *x, const Expr *e, DimTable *table, const char *what,
                    int64_t least, int64_t *value) {
    Frame frame = frame_begin(NULL, NULL, table);
    bool fine = eval_whole(x, &frame, e, what, least, value);
    frame_end(&frame);
    return fine;
}

/* ---- declarations and presets -------------------------------------------------------- */

static const char *nearest_in(const DimTable *table, const char *name) {
    ARRAY(const char *) names = {0};
    for (; table; table = table->outer)
        for (int64_t i = 0; i < table->dims.count; i++)
            array_push(&names, table->dims.data[i]->name);
    const char *nearest = nearest_name(name, names.data, (int)names.count);
    array_free(&names);
    return nearest;
}

void apply_preset(Expander *x, const Preset *preset, DimTable *table, const char *owner) {
    bool selected = x->request->preset && strcmp(preset->name.text, x->request->preset) == 0;
    x->preset_known |= selected;
    for (const Setting *s = preset->settings; s; s = s->next) {
        Dim *dim = table_own(table, s->name.text);
        if (!dim) {
            Diagnostic *d = complain(x, NULL, s->name.span,
                                     "preset `%s` sets `%s`, which is no dim or flag of %s",
                                     preset->name.text, s->name.text, owner);
            const char *nearest = nearest_in(table, s->name.text);
            if (table_find(table, s->name.text))
                help(d,
                     "a preset in a plan is about the plan's own values; for the model's, "
                     "write `set %s = …`",
                     s->name.text);
            else if (nearest)
                help(d, "did you mean `%s`?", nearest);
            else
                help(d, "declare it: `dim %s = …`", s->name.text);
        } else if (selected) {
            dim_set(dim, SET_PRESET, preset->name.text, s->name.span, s->value, table);
        }
    }
}

static void declare_global(Expander *x, const Statement *s) {
    for (int i = 0; i < s->name_count; i++) {
        Dim *dim = dim_new(x, s->names[i].text, s->names[i].span);
        dim->is_flag = s->kind == STATEMENT_FLAG;
        dim->value = s->value;
        dim->home = &x->globals;
        table_add(x, &x->globals, dim);
    }
}

void declare_globals(Expander *x) {
    x->globals.owner = "the model";
    for (const Item *item = x->texts->items; item; item = item->next)
        if (item->kind == ITEM_STATEMENT)
            declare_global(x, item->statement);
    for (const Item *item = x->texts->items; item; item = item->next)
        if (item->kind == ITEM_PRESET)
            apply_preset(x, item->preset, &x->globals, "the model");
}

/* ---- -D ------------------------------------------------------------------------------ */

struct ParsedDefine {
    const char *name;
    const Expr *value;
    struct ParsedDefine *next;
};

/* The value is an expression of the language: parsed as the declaration it would be. */
static void parse_define(Expander *x, const Define *define) {
    Source *source = arena_alloc(x->arena, sizeof *source);
    const char *text = arena_printf(x->arena, "%s=%s", define->name, define->value);
    *source = (Source){.name = "-D", .text = text, .length = strlen(text)};
    int errors = error_count(x);
    const Item *item = parse_values(source, x->arena, x->diagnostics);
    if (error_count(x) > errors)
        return;
    if (!item || item->next || item->kind != ITEM_STATEMENT ||
        strcmp(item->statement->names[0].text, define->name) != 0) {
        Diagnostic *d = error_in_file(x->diagnostics, "-D", "`-D %s=%s` names no value",
                                      define->name, define->value);
        help(d, "write `-D NAME=VALUE`, as in `-D L=4`");
        return;
    }
    struct ParsedDefine *parsed = arena_alloc(x->arena, sizeof *parsed);
    *parsed = (struct ParsedDefine){define->name, item->statement->value, NULL};
    struct ParsedDefine **last = &x->defines;
    while (*last)
        last = &(*last)->next;
    *last = parsed;
}

void parse_defines(Expander *x) {
    for (int i = 0; i < x->request->define_count; i++)
        parse_define(x, &x->request->defines[i]);
}

const Expr *define_for(Expander *x, const char *name) {
    const Expr *value = NULL;
    for (const struct ParsedDefine *p = x->defines; p; p = p->next)
        if (strcmp(p->name, name) == 0)
            value = p->value;
    return value;
}

/* The plan or recipe, not asked for, that declares a name; NULL. */
static const Item *unused_owner(const Expander *x, const char *name) {
    for (const Item *item = x->texts->items; item; item = item->next)
        if (item->kind == ITEM_PLAN || item->kind == ITEM_RECIPE)
            for (const Directive *d = item->directives; d; d = d->next)
                if ((d->kind == DIRECTIVE_DIM || d->kind == DIRECTIVE_FLAG) &&
                    strcmp(d->name.text, name) == 0)
                    return item;
    return NULL;
}

static void complain_unknown_define(Expander *x, const char *name) {
    Diagnostic *d = error_in_file(x->diagnostics, x->request->path,
                                  "`-D %s`: no dim, flag or recipe value has this name", name);
    const Item *owner = unused_owner(x, name);
    if (owner) {
        help(d, "it is declared by %s `%s`: ask for it with `--%s %s`",
             owner->kind == ITEM_PLAN ? "plan" : "recipe", owner->name.text,
             owner->kind == ITEM_PLAN ? "plan" : "recipe", owner->name.text);
        return;
    }
    ARRAY(const char *) names = {0};
    const DimTable *tables[] = {&x->globals, &x->plan_dims, &x->recipe_dims};
    for (int t = 0; t < COUNT_OF(tables); t++)
        for (int64_t i = 0; i < tables[t]->dims.count; i++)
            array_push(&names, tables[t]->dims.data[i]->name);
    const char *others[64];
    int count = recipe_names(x, others, COUNT_OF(others));
    for (int i = 0; i < count; i++)
        array_push(&names, others[i]);
    const char *nearest = nearest_name(name, names.data, (int)names.count);
    if (nearest)
        help(d, "did you mean `%s`?", nearest);
    array_free(&names);
}

bool compilation_knows(const Compilation *compilation, const char *name) {
    Expander *x = compilation->expander;
    return table_own(&x->plan_dims, name) || table_own(&x->recipe_dims, name) ||
           table_own(&x->globals, name) || recipe_knows(x, name);
}

void apply_defines(Expander *x) {
    DimTable *tables[] = {&x->plan_dims, &x->recipe_dims, &x->globals};
    for (const struct ParsedDefine *p = x->defines; p; p = p->next) {
        Dim *dim = NULL;
        for (int t = 0; t < COUNT_OF(tables) && !dim; t++)
            if ((dim = table_own(tables[t], p->name)))
                dim_set(dim, SET_DEFINE, "-D", p->value->span, p->value, tables[t]);
        if (!dim && !recipe_knows(x, p->name))
            complain_unknown_define(x, p->name);
    }
}
