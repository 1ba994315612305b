/* frontend/plan.c: plans.  A plan gives its own dims, sets the model's, and says what is done
 * to the expanded model: here it is held against what is there, and `factorize` is carried out
 * on the factorize pass's behalf. */
#include "frontend/expand.h"

#include <math.h>

#include <stdlib.h>
#include <string.h>

/* ---- dims, presets, set ---------------------------------------------------------- */

void declare_own(Expander *x, DimTable *table, const Directive *d, const char *owner) {
    Dim *dim = arena_alloc(x->arena, sizeof *dim);
    *dim = *dim_new(x, d->name.text, d->name.span);
    dim->owner = owner;
    dim->is_flag = d->kind == DIRECTIVE_FLAG;
    dim->value = d->value;
    dim->home = table;
    int64_t at = string_map_get(&table->by_name, dim->name, -1);
    if (at >= 0 && table->dims.data[at]->owner != owner)
        table->dims.data[at] = dim;
    else
        table_add(x, table, dim);
}

static void apply_set(Expander *x, DimTable *table, const Directive *d, const char *setter) {
    Dim *dim = table_find(table, d->name.text);
    if (dim) {
        dim_set(dim, SET_PLAN, setter, d->name.span, d->value, table);
        return;
    }
    Diagnostic *diagnostic = complain(
        x, NULL, d->name.span, "`set` is about `%s`, which is no dim or flag", d->name.text);
    Frame frame = frame_begin(NULL, NULL, table);
    const char *nearest = nearest_visible(&frame, d->name.text);
    frame_end(&frame);
    if (nearest)
        help(diagnostic, "did you mean `%s`?", nearest);
    else
        help(diagnostic, "a value of the plan's own is declared: `dim %s = …`", d->name.text);
}

static void declare_plan_item(Expander *x, const Item *item) {
    const char *owner = arena_printf(x->arena, "plan `%s`", item->name.text);
    for (const Directive *d = item->directives; d; d = d->next)
        if (d->kind == DIRECTIVE_DIM || d->kind == DIRECTIVE_FLAG)
            declare_own(x, &x->plan_dims, d, owner);
    for (const Directive *d = item->directives; d; d = d->next)
        if (d->kind == DIRECTIVE_PRESET)
            apply_preset(x, d->preset, &x->plan_dims, owner);
    for (const Directive *d = item->directives; d; d = d->next)
        if (d->kind == DIRECTIVE_SET)
            apply_set(x, &x->plan_dims, d, item->name.text);
}

void declare_plan(Expander *x) {
    x->plan_dims.owner = "the plan";
    if (!x->request->plan)
        return;
    x->compilation->plan = requested_item(x, ITEM_PLAN, x->request->plan);
    if (!x->compilation->plan)
        return;
    extension_chain(x, x->compilation->plan, &x->plan_chain);
    for (int64_t i = 0; i < x->plan_chain.count; i++)
        declare_plan_item(x, x->plan_chain.data[i]);
}

int64_t compilation_plans(const Compilation *compilation, const Item *const **plans) {
    *plans = compilation->expander->plan_chain.data;
    return compilation->expander->plan_chain.count;
}

/* ---- paths ----------------------------------------------------------------------- */

void weight_paths(const Expander *x, Paths *paths) {
    for (int64_t i = 0; i < x->module->states.count; i++)
        if (x->module->states.data[i].role == ROLE_WEIGHT)
            array_push(paths, x->module->states.data[i].path);
}

static const Item *placed_block(const Expander *x, const Factorize *factorize) {
    const Expr *call = factorize->directive->call;
    return find_item(x, call->name.text, call->span.source);
}

/* Names that a body gives: of parameters or of values. */
static void body_names(Expander *x, const Statement *s, const char *path, bool values,
                       Paths *paths) {
    for (; s; s = s->next) {
        if (s->kind == (values ? STATEMENT_BIND : STATEMENT_PARAM))
            for (int i = 0; i < s->name_count; i++)
                array_push(paths, path_join(x, path, s->names[i].text));
        body_names(x, s->body, path, values, paths);
        body_names(x, s->otherwise, path, values, paths);
    }
}

void factorized_paths(Expander *x, bool values, Paths *paths) {
    const Compilation *c = x->compilation;
    for (int i = 0; i < c->factorize_count; i++)
        for (int k = 0; k < c->factorizes[i].weight_count; k++) {
            const char *path = x->module->states.data[c->factorizes[i].weights[k]].path;
            body_names(x, placed_block(x, &c->factorizes[i])->body, path, values, paths);
            if (values)
                array_push(paths, path_join(x, path, "out"));
        }
}

/* ---- what factorize asks of a weight --------------------------------------------- */

/* Who reads each state, in live code. */
typedef struct Uses {
    int *count;     /* by state */
    NodeId *reader; /* by state: the last one */
    NodeId *second; /* and the one before */
} Uses;

static Uses find_uses(const Expander *x) {
    size_t states = (size_t)x->module->states.count + 1;
    Uses uses = {checked_alloc(states * sizeof(int)), checked_alloc(states * sizeof(NodeId)),
                 checked_alloc(states * sizeof(NodeId))};
    bool *live = live_nodes(x->function);
    for (NodeId id = 0; id < x->function->nodes.count; id++) {
        const Node *node = node_at(x->function, id);
        for (int i = 0; i < node->input_count && live[id]; i++) {
            const Node *input = node_at(x->function, node->inputs[i]);
            if (input->op != OP_STATE)
                continue;
            int64_t state = input->attr.integer;
            uses.count[state]++;
            uses.second[state] = uses.reader[state];
            uses.reader[state] = id;
        }
    }
    free(live);
    return uses;
}

static void uses_free(Uses *uses) {
    free(uses->count);
    free(uses->reader);
    free(uses->second);
}

static bool sums_inputs(const Node *dot, const State *weight) {
    if (dot->attr.from_count != weight->in_count)
        return false;
    Type summed = type_of(TYPE_F32, dot->attr.from, dot->attr.from_count);
    for (int i = 0; i < weight->in_count; i++)
        if (!type_has(summed, weight->in[i]))
            return false;
    return true;
}

static bool keeps_outputs(const Expander *x, const Node *dot, StateId id) {
    const State *weight = &x->module->states.data[id];
    const Node *left = node_at(x->function, dot->inputs[0]);
    bool first = left->op == OP_STATE && left->attr.integer == id;
    const Node *other = node_at(x->function, dot->inputs[first ? 1 : 0]);
    if (other->op == OP_STATE && other->attr.integer == id)
        return false;
    for (int i = 0; i < weight->out_count; i++)
        if (type_has(other->type, weight->out[i]))
            return false;
    return true;
}

/* Why no block can take the place of a weight, or NULL; its uses. */
static const char *not_factorizable(const Expander *x, const Uses *uses, StateId id,
                                    const Node **use, const Node **other) {
    const State *weight = &x->module->states.data[id];
    *use = uses->count[id] ? node_at(x->function, uses->reader[id]) : NULL;
    *other = NULL;
    if (weight->in_count == 0 || weight->out_count == 0)
        return "it has no inputs and outputs, as in [D -> F]";
    if (uses->count[id] == 0)
        return "nothing uses it";
    if (uses->count[id] > 1) {
        *other = node_at(x->function, uses->second[id]);
        return "it is used more than once";
    }
    if ((*use)->op != OP_DOT)
        return "its one use is no dot";
    if (!sums_inputs(*use, weight))
        return "its dot does not sum over exactly its inputs";
    if (!keeps_outputs(x, *use, id))
        return "what it is multiplied with has its outputs already";
    return NULL;
}

static void complain_weight(Expander *x, Span span, const State *weight, const char *why,
                            const Node *use, const Node *other, int alike) {
    Diagnostic *d =
        complain(x, NULL, span, "`factorize` cannot replace `%s`: %s", weight->path, why);
    note_at(d, weight->span, "`%s` is declared here", weight->path);
    if (other)
        note_at(d, other->span, "it is used here");
    if (use)
        note_at(d, use->span, other ? "and here" : "it is used here");
    if (alike > 1)
        help(d, "so it is with %d of the weights that this selects", alike);
    help(d, "select weights [I -> O] of which each has one use, a dot over I");
}

/* The weights that a line selects and no block can replace: each selector and reason is one
 * mistake. */
typedef struct Refused {
    const Selector *selector;
    const char *why;
    StateId first;
    int count;
} Refused;
typedef ARRAY(Refused) RefusedList;

static void refuse(RefusedList *list, const Selector *selector, const char *why, StateId id) {
    for (int64_t i = 0; i < list->count; i++)
        if (list->data[i].selector == selector && list->data[i].why == why) {
            list->data[i].count++;
            return;
        }
    array_push(list, ((Refused){selector, why, id, 1}));
}

static void complain_refused(Expander *x, const Uses *uses, const RefusedList *list) {
    for (int64_t i = 0; i < list->count; i++) {
        const Refused *refused = &list->data[i];
        const Node *use, *other;
        const char *why = not_factorizable(x, uses, refused->first, &use, &other);
        complain_weight(x, refused->selector->span, &x->module->states.data[refused->first],
                        why, use, other, refused->count);
    }
}

/* ---- directives ------------------------------------------------------------------ */

static const Item *wanted_block(Expander *x, const Directive *d) {
    Name name = d->call->name;
    const Item *item = find_item(x, name.text, name.span.source);
    if (item && item->kind == ITEM_BLOCK)
        return item;
    Diagnostic *diagnostic = complain(
        x, NULL, name.span, item ? "`%s` is no block" : "no block is named `%s`", name.text);
    ARRAY(const char *) names = {0};
    for (int64_t i = 0; i < x->items.count; i++)
        if (x->items.data[i].item->kind == ITEM_BLOCK)
            array_push(&names, x->items.data[i].item->name.text);
    const char *nearest = nearest_name(name.text, names.data, (int)names.count);
    if (nearest && !item)
        help(diagnostic, "did you mean `%s`?", nearest);
    if (item)
        help(diagnostic,
             "what replaces a weight is `block %s(x: [.., I]; I -> O; …) -> [.., O]`",
             name.text);
    array_free(&names);
    return NULL;
}

/* The formals of a block that stands in for a product: x; I -> O. */
typedef struct ProductFormals {
    const Parameter *x, *in, *out;
} ProductFormals;

static bool product_formals(Expander *x, const Item *block, Span span,
                            ProductFormals *formals) {
    bool fine = true;
    *formals = (ProductFormals){0};
    for (const Parameter *p = block->parameters; p; p = p->next) {
        const Parameter **slot = p->group == 0         ? &formals->x
                                 : !p->group_has_arrow ? NULL
                                 : p->after_arrow      ? &formals->out
                                                       : &formals->in;
        if (!slot || (*slot && p->fallback))
            continue;
        fine &= !*slot;
        *slot = p;
    }
    if (fine && formals->x && formals->in && formals->out)
        return true;
    Diagnostic *d = complain(x, NULL, span,
                             "block `%s` cannot stand in for a product of x and a "
                             "weight",
                             block->name.text);
    note_at(d, block->name.span, "it is declared here");
    help(d, "such a block is written `block %s(x: [.., I]; I -> O; …) -> [.., O]`",
         block->name.text);
    return false;
}

static void check_factorize(Expander *x, const Directive *d, const Uses *uses) {
    Paths paths = {0};
    const Item *block = wanted_block(x, d);
    ProductFormals formals;
    bool fine = block && product_formals(x, block, d->call->span, &formals);
    ARRAY(StateId) weights = {0};
    RefusedList refused = {0};
    weight_paths(x, &paths);
    for (const Selector *s = d->selectors; s; s = s->next)
        fine &= check_selector(x, s, &x->plan_dims, paths.data, paths.count, "parameter");
    for (StateId id = 0; id < x->module->states.count && fine; id++) {
        const State *state = &x->module->states.data[id];
        const Selector *s = state->role == ROLE_WEIGHT ? d->selectors : NULL;
        while (s && !selector_matches_path(x, s, &x->plan_dims, state->path))
            s = s->next;
        const Node *use, *other;
        const char *why = s ? not_factorizable(x, uses, id, &use, &other) : NULL;
        if (why)
            refuse(&refused, s, why, id);
        else if (s)
            array_push(&weights, id);
    }
    complain_refused(x, uses, &refused);
    array_free(&refused);
    array_free(&paths);
    Compilation *c = x->compilation;
    if (fine) {
        c->factorizes = checked_realloc(c->factorizes, (size_t)(c->factorize_count + 1) *
                                                           sizeof *c->factorizes);
        c->factorizes[c->factorize_count++] = (Factorize){d, weights.data, (int)weights.count};
    } else {
        array_free(&weights);
    }
}

/* ---- what `keep` may name --------------------------------------------------------- */

typedef enum Keepable {
    KEEP_VALUE,
    KEEP_OUTSIDE,  /* comes into the instance */
    KEEP_RETURNED, /* its caller's */
    KEEP_CONSTANT, /* there at any time */
    KEEP_KINDS
} Keepable;

/* Names in what is recomputed, as read within each matched instance. */
typedef struct Keepables {
    StringMap matched;    /* paths of instances */
    Paths paths, values;  /* all names; those that can be kept */
    ARRAY(Keepable) kind; /* of each path */
    ARRAY(NodeId) out;    /* by scope: what it returns; -1 */
} Keepables;

static void add_keepable(Keepables *k, const char *path, Keepable kind) {
    array_push(&k->paths, path);
    array_push(&k->kind, kind);
    if (kind == KEEP_VALUE)
        array_push(&k->values, path);
}

static Keepable keepable_within(const Expander *x, const Keepables *k, ScopeId instance,
                                NodeId value) {
    const Node *node = node_at(x->function, value);
    if (node->is_static || node->on_host || (node->input_count == 0 && node->op != OP_INPUT))
        return KEEP_CONSTANT;
    if (!scope_is_within(x->module, node->scope, instance))
        return KEEP_OUTSIDE;
    return k->out.data[instance] == value ? KEEP_RETURNED : KEEP_VALUE;
}

/* Names in the graph, once for every matched instance around them. */
static void add_graph_names(const Expander *x, Keepables *k) {
    const Scope *scopes = x->module->scopes.data;
    for (int64_t i = 0; i < x->module->scopes.count; i++)
        array_push(&k->out, -1);
    for (int64_t i = 0; i < x->function->names.count; i++) {
        const NamedValue *value = &x->function->names.data[i];
        if (strcmp(value->name, "out") == 0)
            k->out.data[value->scope] = value->node;
    }
    for (int64_t i = 0; i < x->function->names.count; i++) {
        const NamedValue *value = &x->function->names.data[i];
        const char *path = NULL;
        for (ScopeId s = value->scope; s > 0; s = scopes[s].parent) {
            if (!string_map_get(&k->matched, scopes[s].path, 0))
                continue;
            if (!path)
                path = arena_printf(x->arena, "%s.%s", scopes[value->scope].path, value->name);
            add_keepable(k, path + strlen(scopes[s].path) + 1,
                         keepable_within(x, k, s, value->node));
        }
    }
}

/* Names that blocks will have which `factorize` places: all their own but the result. */
static void add_factorized_names(Expander *x, Keepables *k) {
    Paths values = {0};
    factorized_paths(x, true, &values);
    for (int64_t v = 0; v < values.count; v++) {
        const char *path = values.data[v];
        char *prefix = checked_alloc(strlen(path) + 1);
        for (size_t i = 0; path[i]; i++) {
            if (path[i] == '.' && string_map_get(&k->matched, prefix, 0))
                add_keepable(k, path + i + 1,
                             strcmp(path + i, ".out") ? KEEP_VALUE : KEEP_RETURNED);
            prefix[i] = path[i];
        }
        free(prefix);
    }
    array_free(&values);
}

static Keepables find_keepables(Expander *x, const Directive *d, const Paths *scopes) {
    Keepables k = {0};
    for (int64_t i = 0; i < scopes->count; i++)
        for (const Selector *s = d->selectors; s; s = s->next)
            if (selector_matches_path(x, s, &x->plan_dims, scopes->data[i])) {
                string_map_set(&k.matched, scopes->data[i], 1);
                break;
            }
    add_graph_names(x, &k);
    add_factorized_names(x, &k);
    return k;
}

static void keepables_free(Keepables *k) {
    string_map_free(&k->matched);
    array_free(&k->paths);
    array_free(&k->values);
    array_free(&k->kind);
    array_free(&k->out);
}

/* The fn in whose body the last name of the selector gets a value; NULL. */
static const Item *fn_that_binds(const Expander *x, const Selector *selector) {
    const SelectorPart *last = selector->parts;
    while (last->next)
        last = last->next;
    for (int64_t i = 0; i < x->items.count && last->kind == PART_NAME; i++) {
        const Item *item = x->items.data[i].item;
        for (const Statement *s = item->kind == ITEM_FN ? item->body : NULL; s; s = s->next)
            for (int n = 0; s->kind == STATEMENT_BIND && n < s->name_count; n++)
                if (strcmp(s->names[n].text, last->name.text) == 0)
                    return item;
    }
    return NULL;
}

/* All that the selector matches is of that kind, or of other kinds that need no keeping. */
static void complain_needless(Expander *x, const Selector *selector, Keepable kind) {
    static const char *const why[KEEP_KINDS] = {
        [KEEP_OUTSIDE] = "it comes into the block from outside, and what happens to it is said "
                         "there",
        [KEEP_RETURNED] = "the block returns it, so it belongs to the block's caller",
        [KEEP_CONSTANT] = "it is at hand whenever it is needed",
    };
    Diagnostic *d = complain(x, NULL, selector->span, "`keep` has nothing to do for %s: %s",
                             excerpt(x, selector->span), why[kind]);
    help(d, "`keep` is for values that are computed inside the recomputed block");
}

static void check_keep(Expander *x, const Selector *selector, const Keepables *k) {
    int64_t found[KEEP_KINDS] = {0};
    for (int64_t i = 0; i < k->paths.count && !found[KEEP_VALUE]; i++)
        found[k->kind.data[i]] +=
            selector_matches_path(x, selector, &x->plan_dims, k->paths.data[i]);
    if (!found[KEEP_VALUE])
        for (int kind = KEEP_VALUE + 1; kind < KEEP_KINDS; kind++)
            if (found[kind]) {
                complain_needless(x, selector, (Keepable)kind);
                return;
            }
    const Item *fn = found[KEEP_VALUE] ? NULL : fn_that_binds(x, selector);
    if (!fn) {
        check_selector(x, selector, &x->plan_dims, k->values.data, k->values.count,
                       "value in what is recomputed");
        return;
    }
    Diagnostic *d =
        complain(x, NULL, selector->span, "`keep` cannot keep %s: it is inside `fn %s`",
                 excerpt(x, selector->span), fn->name.text);
    note_at(d, fn->name.span, "`%s` is declared here", fn->name.text);
    help(d, "what is inside a fn is computed anew where it is used: name the value that its "
            "call gives, or make it a block");
}

static void check_recompute(Expander *x, const Directive *d) {
    const Compilation *c = x->compilation;
    Paths scopes = {0};
    for (int64_t i = 0; i < x->scope_paths.count; i++)
        array_push(&scopes, x->scope_paths.data[i]);
    for (int i = 0; i < c->factorize_count; i++)
        for (int k = 0; k < c->factorizes[i].weight_count; k++)
            array_push(&scopes, x->module->states.data[c->factorizes[i].weights[k]].path);
    bool fine = true;
    for (const Selector *s = d->selectors; s; s = s->next)
        fine &=
            check_selector(x, s, &x->plan_dims, scopes.data, scopes.count, "block instance");
    if (fine && d->keep) {
        Keepables k = find_keepables(x, d, &scopes);
        for (const Selector *s = d->keep; s; s = s->next)
            check_keep(x, s, &k);
        keepables_free(&k);
    }
    Compilation *own = x->compilation;
    own->recomputes = checked_realloc(own->recomputes, (size_t)(own->recompute_count + 1) *
                                                           sizeof *own->recomputes);
    own->recomputes[own->recompute_count++] = d;
    array_free(&scopes);
}

/* Does a directive, other than the one that is asked about, recompute this instance or one
 * around it?  Of two that say the same of an instance, the later says it in vain. */
static const Directive *recomputed_by_another(Expander *x, int own, const char *path) {
    const Compilation *c = x->compilation;
    char *prefix = checked_alloc(strlen(path) + 1);
    const Directive *found = NULL;
    for (size_t i = 0; i <= strlen(path) && !found; i++) {
        for (int d = 0; (path[i] == '.' || !path[i]) && d < c->recompute_count && !found; d++)
            if (d != own && (path[i] || d < own) &&
                recompute_matches(c, c->recomputes[d], prefix))
                found = c->recomputes[d];
        prefix[i] = path[i];
    }
    free(prefix);
    return found;
}

/* All `keep` lists apply, so that a directive which keeps nothing and whose instances others
 * recompute does nothing. */
static void warn_of_needless_recompute(Expander *x, int own) {
    const Compilation *c = x->compilation;
    const Directive *d = c->recomputes[own], *other = NULL;
    for (int64_t i = 0; i < x->scope_paths.count && !d->keep; i++) {
        const char *path = x->scope_paths.data[i];
        if (!recompute_matches(c, d, path))
            continue;
        other = recomputed_by_another(x, own, path);
        if (!other)
            return;
    }
    if (other)
        note_at(warning_at(x->diagnostics, d->span,
                           "this changes nothing: what it is about is recomputed already"),
                other->span, "here");
}

static void check_precision(Expander *x, const Directive *d) {
    static const char *const names[] = {"f32", "tf32", "bf16"};
    for (int i = 0; i < COUNT_OF(names); i++)
        if (strcmp(d->name.text, names[i]) == 0) {
            set_precision(x->compilation, names[i]);
            x->compilation->precision_directive = d;
            return;
        }
    Diagnostic *diagnostic =
        complain(x, NULL, d->name.span, "`%s` is no precision", d->name.text);
    const char *nearest = nearest_name(d->name.text, names, COUNT_OF(names));
    if (nearest)
        help(diagnostic, "did you mean `%s`?", nearest);
    else
        help(diagnostic, "it is `f32`, `tf32` or `bf16`");
}

static void check_memory(Expander *x, const Directive *d) {
    int64_t bytes;
    Number number = evaluate(x, d->value, &x->plan_dims);
    if (number.kind == NUMBER_POISON)
        return;
    if (number.kind == NUMBER_REAL && number.real >= 1 && number.real < 9007199254740992.0)
        number.real = floor(number.real); /* 1.3 GiB is no whole number of bytes */
    if (number.kind == NUMBER_BOOL || !number_whole(number, &bytes) || bytes < 1) {
        Frame frame = frame_begin(NULL, NULL, &x->plan_dims);
        Diagnostic *said =
            complain(x, NULL, d->value->span, "%s is %s, which is no bound on bytes",
                     excerpt(x, d->value->span), number_text(x, number));
        explain_names(x, &frame, said, d->value);
        help(said, "a bound is a whole number of bytes from 1 on, as in `memory 6 GiB`");
        frame_end(&frame);
        return;
    }
    x->compilation->memory = d;
    x->compilation->memory_bytes = bytes;
}

/* Later lines win.  A plan that extends another does so on purpose; of lines of one plan, one
 * of which nothing is left is a slip.  `last`: by weight, the line that wins. */
static void warn_of_needless_factorize(Expander *x, const Factorize *f,
                                       const Directive *const *last) {
    const Directive *winner = NULL;
    for (int k = 0; k < f->weight_count; k++) {
        winner = last[f->weights[k]];
        if (winner == f->directive)
            return;
    }
    for (const Directive *d = f->directive->next; d; d = d->next)
        if (d == winner)
            note_at(warning_at(x->diagnostics, f->directive->span,
                               "this changes nothing: later lines say what becomes of all its "
                               "weights"),
                    winner->span, "here");
}

static void warn_of_needless_factorizes(Expander *x) {
    const Compilation *c = x->compilation;
    const Directive **last =
        checked_alloc((size_t)x->module->states.count * sizeof(const Directive *));
    for (int i = 0; i < c->factorize_count; i++)
        for (int k = 0; k < c->factorizes[i].weight_count; k++)
            last[c->factorizes[i].weights[k]] = c->factorizes[i].directive;
    for (int i = 0; i < c->factorize_count; i++)
        warn_of_needless_factorize(x, &c->factorizes[i], last);
    free(last);
}

void check_factorizes(Expander *x) {
    if (x->plan_chain.count == 0)
        return;
    Uses uses = find_uses(x);
    for (int64_t i = 0; i < x->plan_chain.count; i++)
        for (const Directive *d = x->plan_chain.data[i]->directives; d; d = d->next)
            if (d->kind == DIRECTIVE_FACTORIZE)
                check_factorize(x, d, &uses);
    uses_free(&uses);
    warn_of_needless_factorizes(x);
}

void check_other_directives(Expander *x) {
    for (int64_t i = 0; i < x->plan_chain.count; i++)
        for (const Directive *d = x->plan_chain.data[i]->directives; d; d = d->next) {
            if (d->kind == DIRECTIVE_RECOMPUTE)
                check_recompute(x, d);
            else if (d->kind == DIRECTIVE_MEMORY)
                check_memory(x, d);
            else if (d->kind == DIRECTIVE_PRECISION)
                check_precision(x, d);
        }
    for (int d = 0; d < x->compilation->recompute_count; d++)
        warn_of_needless_recompute(x, d);
}

/* ---- placing a block ------------------------------------------------------------- */

static void bind_axes(Frame *f, Name name, const AxisId *axes, int count) {
    AxisList list = {.count = count};
    memcpy(list.axes, axes, (size_t)count * sizeof *axes);
    frame_bind(f, name, BIND_AXES)->axes = list;
}

static Type product_type(const State *weight, Type type) {
    for (int i = 0; i < weight->in_count; i++)
        type = type_without(type, weight->in[i]);
    return type_union(type, type_of(type.dtype, weight->out, weight->out_count));
}

static int path_depth(const char *path) {
    int depth = 1;
    for (; *path; path++)
        depth += *path == '.';
    return depth;
}

static NodeId check_product(Expander *x, const Factorize *factorize, const char *path,
                            Type wanted, Value result) {
    if (result.kind != VALUE_TENSOR)
        return -1;
    Type type = value_type(x, result);
    if (type_equal(type, wanted))
        return result.node;
    Diagnostic *d = complain(x, NULL, factorize->directive->call->span,
                             "in the place of `%s`, %s gives %s, where the product is %s", path,
                             excerpt(x, factorize->directive->call->span), axes_text(x, type),
                             axes_text(x, wanted));
    explain_difference(x, d, wanted, factorize->directive->call, type);
    return -1;
}

NodeId expand_factorized(Compilation *compilation, Function *function,
                         const Factorize *factorize, StateId weight, NodeId input) {
    Expander *x = compilation->expander;
    const Expr *call = factorize->directive->call;
    const Item *block = placed_block(x, factorize);
    State replaced = compilation->module->states.data[weight];
    ProductFormals formals;
    int64_t first_new = compilation->module->states.count;
    int errors = error_count(x);
    if (!product_formals(x, block, call->span, &formals))
        return -1;
    x->function = function;
    Frame plan = frame_begin(NULL, NULL, &x->plan_dims);
    Frame callee = frame_begin(&plan, block, &x->globals);
    callee.compile_time = false;
    callee.call = factorize->directive->span;
    bind_value(&callee, formals.x->name, tensor_value(input));
    bind_axes(&callee, formals.in->name, replaced.in, replaced.in_count);
    bind_axes(&callee, formals.out->name, replaced.out, replaced.out_count);
    bind_arguments(x, &plan, call, block, &callee);
    Type wanted = product_type(&replaced, node_at(function, input)->type);
    x->low_rank = true;
    Value result = poison;
    if (error_count(x) == errors)
        result = expand_block(x, &callee, x->state_scopes.data[weight], replaced.path,
                              path_depth(replaced.path));
    x->low_rank = false;
    for (int64_t i = first_new; i < x->module->states.count; i++) {
        State *made = &x->module->states.data[i];
        made->group = recipe_group_of(x, made);
    }
    frame_end(&callee);
    frame_end(&plan);
    NodeId node = check_product(x, factorize, replaced.path, wanted, result);
    return error_count(x) == errors ? node : -1;
}
