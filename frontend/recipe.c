/* frontend/recipe.c: recipes: how a model is trained.  Values have the four voices of dims:
 * what the recipe says, its presets, its `set`, and -D; a recipe that extends another speaks
 * after it. */
#include "frontend/expand.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_STEPS = 1000 };

/* A value that a preset or `set` gives. */
typedef struct RecipeSetting {
    const char *name;
    const Expr *value;
    SetBy by;
} RecipeSetting;

struct RecipeState {
    ARRAY(RecipeSetting) settings;
    ARRAY(const OptimizerUse *) uses; /* by group; of the last recipe that names any */
    Number **hyperparameters;         /* by group, then formal */
    OptimizerUse fallback;            /* DEFAULT_OPTIMIZER(), when no recipe names any */
    bool told;                        /* that a parameter that a plan made has no optimizer */
};

typedef struct ValueName {
    const char *name;
    DirectiveKind kind;
} ValueName;

static const ValueName value_names[] = {
    {"steps", DIRECTIVE_STEPS},       {"warmup", DIRECTIVE_WARMUP}, {"batch", DIRECTIVE_BATCH},
    {"clip", DIRECTIVE_CLIP},         {"final", DIRECTIVE_COSINE},  {"final", DIRECTIVE_LINEAR},
    {"validate", DIRECTIVE_VALIDATE},
};

/* ---- names ----------------------------------------------------------------------- */

static const Item *use_optimizer(const Expander *x, const OptimizerUse *use) {
    const Item *item = find_item(x, use->call->name.text, use->call->span.source);
    return item && item->kind == ITEM_OPTIMIZER ? item : NULL;
}

int recipe_names(Expander *x, const char **names, int limit) {
    int count = 0;
    for (int i = 0; i < COUNT_OF(value_names) && count < limit; i++)
        names[count++] = value_names[i].name;
    for (int64_t u = 0; u < x->recipe->uses.count; u++) {
        const Item *item = use_optimizer(x, x->recipe->uses.data[u]);
        for (const Parameter *p = item ? item->parameters : NULL; p && count < limit;
             p = p->next)
            if (p->group > 0)
                names[count++] = p->name.text;
    }
    return count;
}

bool recipe_knows(Expander *x, const char *name) {
    const char *names[256];
    int count = recipe_names(x, names, COUNT_OF(names));
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

/* ---- declaration ----------------------------------------------------------------- */

/* A recipe's preset or `set`: about its dims, or about its values. */
static void apply_setting(Expander *x, Name name, const Expr *value, SetBy by,
                          const char *setter, bool active) {
    Dim *dim = table_own(&x->recipe_dims, name.text);
    if (dim) {
        if (active)
            dim_set(dim, by, setter, name.span, value, &x->recipe_dims);
        return;
    }
    if (recipe_knows(x, name.text)) {
        RecipeSetting setting = {name.text, value, by};
        if (active)
            array_push(&x->recipe->settings, setting);
        return;
    }
    Diagnostic *d = complain(x, NULL, name.span, "`%s` is no value of this recipe", name.text);
    const char *names[256];
    int count = recipe_names(x, names, COUNT_OF(names));
    const char *nearest = nearest_name(name.text, names, count);
    if (table_find(&x->recipe_dims, name.text))
        help(d,
             "it is one of the model: a plan gives it with `set`, the command line with `-D`");
    else if (nearest)
        help(d, "did you mean `%s`?", nearest);
}

static void collect_uses(Expander *x) {
    struct RecipeState *recipe = x->recipe;
    for (int64_t i = 0; i < x->recipe_chain.count; i++) {
        int64_t before = recipe->uses.count;
        for (const Directive *d = x->recipe_chain.data[i]->directives; d; d = d->next)
            for (const OptimizerUse *use = d->kind == DIRECTIVE_OPTIMIZER ? d->optimizers
                                                                          : NULL;
                 use; use = use->next)
                array_push(&recipe->uses, use);
        if (recipe->uses.count > before) { /* replaces what the base uses */
            int64_t count = recipe->uses.count - before;
            memmove(recipe->uses.data, recipe->uses.data + before,
                    (size_t)count * sizeof *recipe->uses.data);
            recipe->uses.count = count;
        }
    }
    if (recipe->uses.count == 0) {
        Expr *call = arena_alloc(x->arena, sizeof *call);
        *call = (Expr){.kind = EXPR_CALL, .name = {.text = DEFAULT_OPTIMIZER}, .arrow_at = -1};
        if (x->library)
            call->span.source = x->library->span.source; /* where the name is looked up */
        recipe->fallback.call = call;
        array_push(&recipe->uses, &recipe->fallback);
    }
}

static void declare_recipe_item(Expander *x, const Item *item) {
    const char *owner = arena_printf(x->arena, "recipe `%s`", item->name.text);
    for (const Directive *d = item->directives; d; d = d->next)
        if (d->kind == DIRECTIVE_DIM || d->kind == DIRECTIVE_FLAG)
            declare_own(x, &x->recipe_dims, d, owner);
    for (const Directive *d = item->directives; d; d = d->next) {
        if (d->kind == DIRECTIVE_SET)
            apply_setting(x, d->name, d->value, SET_PLAN, item->name.text, true);
        if (d->kind != DIRECTIVE_PRESET)
            continue;
        const char *name = d->preset->name.text;
        bool active = x->request->preset && strcmp(name, x->request->preset) == 0;
        x->preset_known |= active;
        for (const Setting *s = d->preset->settings; s; s = s->next)
            apply_setting(x, s->name, s->value, SET_PRESET, name, active);
    }
}

void declare_recipe(Expander *x) {
    x->recipe = checked_alloc(sizeof *x->recipe);
    x->recipe_dims.owner = "the recipe";
    const Item *item =
        x->request->recipe ? requested_item(x, ITEM_RECIPE, x->request->recipe) : NULL;
    if (item)
        extension_chain(x, item, &x->recipe_chain);
    x->compilation->recipe.name = item ? item->name.text : "default";
    x->compilation->recipe.is_named = item != NULL;
    collect_uses(x);
    for (int64_t i = 0; i < x->recipe_chain.count; i++)
        declare_recipe_item(x, x->recipe_chain.data[i]);
}

void recipe_free(Expander *x) {
    if (!x->recipe)
        return;
    array_free(&x->recipe->settings);
    array_free(&x->recipe->uses);
    free(x->recipe);
    free(x->compilation->recipe.groups);
}

/* ---- values ---------------------------------------------------------------------- */

static const Expr *directive_value(const Expander *x, const char *name) {
    const Expr *value = NULL;
    for (int64_t i = 0; i < x->recipe_chain.count; i++)
        for (const Directive *d = x->recipe_chain.data[i]->directives; d; d = d->next)
            for (int k = 0; k < COUNT_OF(value_names); k++)
                if (d->kind == value_names[k].kind && strcmp(value_names[k].name, name) == 0)
                    value = d->value;
    return value;
}

static bool is_dim(const Expander *x, const char *name) {
    return table_own(&x->globals, name) || table_own(&x->plan_dims, name) ||
           table_own(&x->recipe_dims, name);
}

/* The weightiest voice on a value, or `otherwise`. */
static const Expr *voiced(Expander *x, const char *name, const Expr *otherwise) {
    const Expr *value = define_for(x, name);
    if (value && !is_dim(x, name))
        return value;
    SetBy by = SET_DEFAULT;
    value = otherwise;
    for (int64_t i = 0; i < x->recipe->settings.count; i++) {
        const RecipeSetting *setting = &x->recipe->settings.data[i];
        if (strcmp(setting->name, name) == 0 && setting->by >= by) {
            value = setting->value;
            by = setting->by;
        }
    }
    return value;
}

static void settle_whole(Expander *x, const char *name, int64_t least, int64_t *value) {
    const Expr *e = voiced(x, name, directive_value(x, name));
    if (e)
        evaluate_whole(x, e, &x->recipe_dims, arena_printf(x->arena, "`%s`", name), least,
                       value);
}

static void settle_real(Expander *x, const char *name, const char *what, double most,
                        double *value) {
    const Expr *e = voiced(x, name, directive_value(x, name));
    if (!e)
        return;
    Number number = evaluate(x, e, &x->recipe_dims);
    if (number.kind == NUMBER_POISON)
        return;
    if (number.kind != NUMBER_BOOL && number.real >= 0 && number.real <= most)
        *value = number.real;
    else if (most == HUGE_VAL)
        complain(x, NULL, e->span, "%s is %s, and must be 0 (none) or above", what,
                 number_text(x, number));
    else
        complain(x, NULL, e->span, "%s is %s, and must be between 0 and %g", what,
                 number_text(x, number), most);
}

static void settle_schedule(Expander *x, Recipe *recipe) {
    for (int64_t i = 0; i < x->recipe_chain.count; i++)
        for (const Directive *d = x->recipe_chain.data[i]->directives; d; d = d->next)
            if (d->kind == DIRECTIVE_COSINE || d->kind == DIRECTIVE_LINEAR)
                recipe->schedule = d->kind == DIRECTIVE_COSINE ? RATE_COSINE : RATE_LINEAR;
    recipe->final_share = 1;
    settle_real(x, "final", "the share that the rate falls to", 1, &recipe->final_share);
}

/* ---- optimizers ------------------------------------------------------------------ */

static const Expr *named_argument(const Expr *call, const char *name) {
    const Expr *args = call->args;
    const ArgGroup *group = call->groups;
    for (;; args = group->args, group = group->next) {
        for (const Expr *arg = args; arg; arg = arg->next)
            if (arg->kind == EXPR_NAMED && strcmp(arg->name.text, name) == 0)
                return arg->a;
        if (!group)
            return NULL;
    }
}

static bool has_formal(const Item *item, const char *name) {
    for (const Parameter *p = item->parameters; p; p = p->next)
        if (p->group > 0 && strcmp(p->name.text, name) == 0)
            return true;
    return false;
}

static void check_arguments(Expander *x, const Item *item, const Expr *list) {
    for (const Expr *arg = list; arg; arg = arg->next) {
        if (arg->kind == EXPR_NAMED && has_formal(item, arg->name.text))
            continue;
        const char *names[64];
        int count = 0;
        for (const Parameter *p = item->parameters; p && count < COUNT_OF(names); p = p->next)
            if (p->group > 0)
                names[count++] = p->name.text;
        if (arg->kind != EXPR_NAMED) {
            Diagnostic *d =
                complain(x, NULL, arg->span, "the values of an optimizer are named");
            help(d, "write `%s(%s = %s)`", item->name.text, count ? names[0] : "lr", "…");
            continue;
        }
        Diagnostic *d = complain(x, NULL, arg->name.span, "`%s` has no value `%s`",
                                 item->name.text, arg->name.text);
        note_at(d, item->name.span, "`%s` is declared here", item->name.text);
        const char *nearest = nearest_name(arg->name.text, names, count);
        if (nearest)
            help(d, "did you mean `%s`?", nearest);
    }
}

/* `defaults`: the values before this one, which a default may be computed from. */
static Number settle_hyperparameter(Expander *x, const Item *item, const Expr *call,
                                    const Parameter *p, Frame *defaults) {
    const Expr *argument = named_argument(call, p->name.text);
    const Expr *e = voiced(x, p->name.text, argument ? argument : p->fallback);
    if (e)
        return e == p->fallback ? eval_number(x, defaults, e, "a default")
                                : evaluate(x, e, &x->recipe_dims);
    Diagnostic *d = complain(x, NULL, call->span, "this use of `%s` gives no `%s`",
                             item->name.text, p->name.text);
    note_at(d, p->name.span, "it has no default");
    return (Number){0};
}

static void settle_use(Expander *x, const Item *item, const OptimizerUse *use, int group) {
    struct RecipeGroup *made = &x->compilation->recipe.groups[group];
    *made = (struct RecipeGroup){.optimizer = item, .call = use->call};
    check_arguments(x, item, use->call->args);
    for (const ArgGroup *g = use->call->groups; g; g = g->next)
        check_arguments(x, item, g->args);
    int count = 0;
    for (const Parameter *p = item->parameters; p; p = p->next)
        count++;
    Number *values = arena_alloc_array(x->arena, (size_t)count, sizeof *values);
    x->recipe->hyperparameters[group] = values;
    Frame defaults = frame_begin(NULL, item, &x->globals);
    defaults.compile_time = true;
    for (const Parameter *p = item->parameters; p; p = p->next, values++) {
        if (p->group == 0)
            continue;
        *values = settle_hyperparameter(x, item, use->call, p, &defaults);
        if (strcmp(p->name.text, "lr") == 0)
            made->rate = values->real;
        bind_value(&defaults, p->name, number_value(*values));
    }
    frame_end(&defaults);
}

static const Item *wanted_optimizer(Expander *x, const OptimizerUse *use) {
    const Item *item = use_optimizer(x, use);
    if (item)
        return check_optimizer(x, item) ? item : NULL;

    Diagnostic *d = complain(x, NULL, use->call->name.span, "no optimizer is named `%s`",
                             use->call->name.text);
    ARRAY(const char *) names = {0};
    for (int64_t i = 0; i < x->items.count; i++)
        if (x->items.data[i].item->kind == ITEM_OPTIMIZER)
            array_push(&names, x->items.data[i].item->name.text);
    const char *nearest = nearest_name(use->call->name.text, names.data, (int)names.count);
    if (nearest)
        help(d, "did you mean `%s`?", nearest);
    array_free(&names);
    return NULL;
}

static void settle_optimizers(Expander *x, Recipe *recipe) {
    size_t count = (size_t)x->recipe->uses.count;
    recipe->groups = checked_alloc(count * sizeof *recipe->groups);
    x->recipe->hyperparameters = arena_alloc_array(x->arena, count, sizeof(Number *));
    recipe->group_count = (int)count;
    const OptimizerUse *rest = NULL;
    for (size_t i = 0; i < count; i++) {
        const OptimizerUse *use = x->recipe->uses.data[i];
        if (!use->on && rest) {
            Diagnostic *d =
                complain(x, NULL, use->call->span, "two optimizers are for everything else");
            note_at(d, rest->call->span, "this is the other");
            help(d, "say which parameters one is for: `%s(…) on SELECTOR`",
                 use->call->name.text);
        }
        rest = use->on ? rest : use;
        const Item *item = wanted_optimizer(x, use);
        if (item)
            settle_use(x, item, use, (int)i);
    }
}

void settle_recipe(Expander *x) {
    Recipe *recipe = &x->compilation->recipe;
    recipe->steps = DEFAULT_STEPS;
    settle_whole(x, "steps", 1, &recipe->steps);
    settle_whole(x, "warmup", 0, &recipe->warmup);
    settle_whole(x, "validate", 0, &recipe->validate_every);
    settle_whole(x, "batch", 1, &recipe->batch);
    settle_real(x, "clip", "`clip`", HUGE_VAL, &recipe->clip);
    const Expr *warmup = voiced(x, "warmup", directive_value(x, "warmup"));
    if (warmup && recipe->warmup > recipe->steps)
        warning_at(x->diagnostics, warmup->span,
                   "the rate climbs for %" PRId64 " updates, and training ends after %" PRId64,
                   recipe->warmup, recipe->steps);
    settle_schedule(x, recipe);
    settle_optimizers(x, recipe);
}

const Number *recipe_hyperparameters(const Expander *x, int group) {
    return x->recipe->hyperparameters[group];
}

/* ---- after expansion ------------------------------------------------------------- */

static int32_t find_group(Expander *x, const char *path) {
    int32_t rest = -1;
    for (int64_t i = 0; i < x->recipe->uses.count; i++) {
        const OptimizerUse *use = x->recipe->uses.data[i];
        if (!use->on)
            rest = (int32_t)i;
        for (const Selector *s = use->on; s; s = s->next)
            if (selector_matches_path(x, s, &x->recipe_dims, path))
                return (int32_t)i;
    }
    return rest;
}

/* The first of some parameters that are all refused for one reason, and how many they are. */
typedef struct Refused {
    const State *first;
    int64_t count;
} Refused;

static void refuse_too(Refused *refused, const State *state) {
    if (refused->count++ == 0)
        refused->first = state;
}

static void say_where_and_others(Diagnostic *d, const Refused *refused) {
    note_at(d, refused->first->span, "`%s` is declared here", refused->first->path);
    if (refused->count > 1)
        note_at(d, (Span){0}, "so it is with %" PRId64 " other parameter%s", refused->count - 1,
                refused->count > 2 ? "s" : "");
}

static void report_left_out(Expander *x, const Refused *refused) {
    const Item *recipe = x->recipe_chain.data[x->recipe_chain.count - 1];
    Diagnostic *d =
        complain(x, NULL, recipe->name.span, "recipe `%s` has no optimizer for parameter `%s`",
                 recipe->name.text, refused->first->path);
    say_where_and_others(d, refused);
    help(d, "add one without `on`: it is for everything else");
}

int32_t recipe_group_of(Expander *x, const State *state) {
    int32_t group = find_group(x, state->path);
    if (group < 0 && !x->recipe->told)
        report_left_out(x, &(Refused){state, 1});
    x->recipe->told |= group < 0;
    return group;
}

/* Which states a plan replaces; one byte each. */
static unsigned char *factorized_states(const Compilation *c) {
    unsigned char *replaced = checked_alloc((size_t)c->module->states.count + 1);
    for (int i = 0; i < c->factorize_count; i++)
        for (int k = 0; k < c->factorizes[i].weight_count; k++)
            replaced[c->factorizes[i].weights[k]] = 1;
    return replaced;
}

static void report_no_matrices(Expander *x, int32_t group, const Refused *refused) {
    const Recipe *recipe = &x->compilation->recipe;
    Diagnostic *d =
        complain(x, NULL, recipe->groups[group].call->span,
                 "`%s` is for matrices, and parameter `%s` has no inputs and outputs",
                 recipe->groups[group].optimizer->name.text, refused->first->path);
    say_where_and_others(d, refused);
    help(d, "give it to another optimizer with `on`");
}

static void group_weights(Expander *x) {
    const Compilation *c = x->compilation;
    unsigned char *replaced = factorized_states(c);
    size_t group_count = (size_t)c->recipe.group_count;
    Refused left_out = {0}, *no_matrices = checked_alloc(group_count * sizeof *no_matrices);
    for (StateId id = 0; id < x->module->states.count; id++) {
        State *state = &x->module->states.data[id];
        if (state->role != ROLE_WEIGHT)
            continue;
        int32_t group = find_group(x, state->path);
        state->group = group < 0 ? 0 : group;
        if (replaced[id])
            continue;
        const Item *optimizer = c->recipe.groups[state->group].optimizer;
        if (group < 0)
            refuse_too(&left_out, state);
        else if (optimizer && optimizer_matrix(optimizer) &&
                 !(state->in_count && state->out_count))
            refuse_too(&no_matrices[group], state);
    }
    for (int32_t group = 0; group < c->recipe.group_count; group++)
        if (no_matrices[group].count)
            report_no_matrices(x, group, &no_matrices[group]);
    if (left_out.count)
        report_left_out(x, &left_out);
    free(no_matrices);
    free(replaced);
}

/* An optimizer is for what is trained: what a plan places, not what it replaces. */
static void check_selectors(Expander *x) {
    Paths paths = {0};
    unsigned char *replaced = factorized_states(x->compilation);
    for (StateId id = 0; id < x->module->states.count; id++)
        if (x->module->states.data[id].role == ROLE_WEIGHT && !replaced[id])
            array_push(&paths, x->module->states.data[id].path);
    free(replaced);
    factorized_paths(x, false, &paths);
    for (int64_t i = 0; i < x->recipe->uses.count; i++)
        for (const Selector *s = x->recipe->uses.data[i]->on; s; s = s->next)
            check_selector(x, s, &x->recipe_dims, paths.data, paths.count, "parameter");
    array_free(&paths);
}

static void check_batch(Expander *x, Recipe *recipe) {
    int64_t sequences = x->compilation->sequences;
    if (recipe->batch == 0)
        recipe->batch = sequences;
    if (sequences == 0 || recipe->batch % sequences == 0)
        return;
    const Expr *e = voiced(x, "batch", directive_value(x, "batch"));
    AxisId axis = x->module->inputs.data[0].axes[0];
    Diagnostic *d = complain(
        x, NULL, e->span, "a batch of %" PRId64 " is no multiple of a micro-batch of %" PRId64,
        recipe->batch, sequences);
    explain_axis(x, d, axis);
    help(d, "choose `%s` so that it divides the batch, as in `-D %s=%d`", axis_name(x, axis),
         axis_name(x, axis), 1);
}

void check_recipe(Expander *x) {
    check_selectors(x);
    group_weights(x);
    check_batch(x, &x->compilation->recipe);
}
