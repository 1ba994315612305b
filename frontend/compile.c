/* frontend/compile.c: compile_model.  Texts are loaded; every dim gets the value of its
 * weightiest voice; the model's body is expanded; then plan and recipe are held against what
 * came out. */
#include "frontend/expand.h"

#include <stdlib.h>
#include <string.h>

/* ---- the items by name --------------------------------------------------------------- */

static const Item *find_in_library(const Expander *x, const char *name) {
    for (const Item *item = x->library; item; item = item->next)
        if ((item->kind == ITEM_BLOCK || item->kind == ITEM_FN ||
             item->kind == ITEM_OPTIMIZER) &&
            strcmp(item->name.text, name) == 0)
            return item;
    return NULL;
}

const Item *find_item(const Expander *x, const char *name, const Source *from) {
    if (x->library && from == x->library->span.source)
        return find_in_library(x, name);
    int64_t at = string_map_get(&x->items_by_name, name, -1);
    const Item *latest = at < 0 ? NULL : x->items.data[at].item;
    for (; at >= 0; at = x->items.data[at].earlier)
        if (x->items.data[at].item->span.source == from)
            return x->items.data[at].item;
    return latest;
}

const Item *find_kind(const Expander *x, ItemKind kind, const char *name, const Source *from) {
    const Item *latest = NULL;
    for (const Item *item = x->texts->items; item; item = item->next)
        if (item->kind == kind && strcmp(item->name.text, name) == 0 &&
            (!from || item->span.source == from))
            latest = item;
    return latest;
}

/* A text may define what another does too, and then means its own; but nothing twice. */
static void index_item(Expander *x, const Item *item) {
    const char *name = item->name.text;
    int64_t at = string_map_get(&x->items_by_name, name, -1);
    if (is_builtin(name)) {
        complain(x, NULL, item->name.span, "`%s` is a built-in function: choose another name",
                 name);
        return;
    }
    for (int64_t i = at; i >= 0; i = x->items.data[i].earlier)
        if (x->items.data[i].item->span.source == item->span.source) {
            Diagnostic *d =
                complain(x, NULL, item->name.span, "`%s` is already declared", name);
            note_at(d, x->items.data[i].item->name.span, "it is declared here");
            return;
        }
    string_map_set(&x->items_by_name, name, x->items.count);
    array_push(&x->items, ((ItemEntry){item, at}));
}

static void index_items(Expander *x) {
    for (const Item *item = x->texts->items; item; item = item->next)
        if (item->kind == ITEM_BLOCK || item->kind == ITEM_FN || item->kind == ITEM_OPTIMIZER)
            index_item(x, item);
    const Item *adamw = find_item(x, DEFAULT_OPTIMIZER, NULL);
    if (!adamw || adamw->kind != ITEM_OPTIMIZER)
        x->library = texts_library(x->texts, "std.cola", x->diagnostics);
}

static const char *kind_name(ItemKind kind) {
    return kind == ITEM_PLAN     ? "plan"
           : kind == ITEM_RECIPE ? "recipe"
           : kind == ITEM_PRESET ? "preset"
                                 : "model";
}

/* Plans, recipes and presets: one of a name in a text. */
static void check_twins(Expander *x) {
    StringMap known = {0};
    ARRAY(const Item *) items = {0};
    for (const Item *item = x->texts->items; item; item = item->next) {
        if (item->kind != ITEM_PLAN && item->kind != ITEM_RECIPE && item->kind != ITEM_PRESET)
            continue;
        const char *key = arena_printf(x->arena, "%d %s %s", (int)item->kind, item->name.text,
                                       item->span.source->name);
        int64_t at = string_map_get(&known, key, -1);
        if (at >= 0) {
            Diagnostic *d = complain(x, NULL, item->name.span, "%s `%s` is already declared",
                                     kind_name(item->kind), item->name.text);
            note_at(d, items.data[at]->name.span, "it is declared here");
            continue;
        }
        string_map_set(&known, key, items.count);
        array_push(&items, item);
    }
    string_map_free(&known);
    array_free(&items);
}

/* ---- plans and recipes by name --------------------------------------------------- */

/* FILE:NAME; without a colon the file is NULL. */
static const char *split_request(Expander *x, const char *request, const char **name) {
    const char *colon = strrchr(request, ':');
    *name = colon ? colon + 1 : request;
    return colon ? arena_strndup(x->arena, request, (size_t)(colon - request)) : NULL;
}

/* What a name may have meant, and what items there are (but for the one that asks). */
static void suggest_items(Expander *x, Diagnostic *d, ItemKind kind, const char *name,
                          const Item *asking) {
    ARRAY(const char *) names = {0};
    Text all = {0};
    for (const Item *item = x->texts->items; item; item = item->next)
        if (item != asking && item->kind == kind) {
            text_printf(&all, "%s`%s`", all.length ? ", " : "", item->name.text);
            array_push(&names, item->name.text);
        }
    const char *nearest = nearest_name(name, names.data, (int)names.count);
    if (nearest)
        help(d, "did you mean `%s`?", nearest);
    if (all.length)
        help(d, "there is %s", text_string(&all));
    else
        help(d, asking ? "there is no other in this text and those it uses"
                       : "there is none in this text and those it uses");
    text_free(&all);
    array_free(&names);
}

static const Source *source_of(const Expander *x, const char *file) {
    for (const Source *source = x->texts->sources; source; source = source->next)
        if (strcmp(source->name, file) == 0)
            return source;
    return NULL;
}

const Item *requested_item(Expander *x, ItemKind kind, const char *request) {
    const char *name, *file = split_request(x, request, &name);
    const Source *source = file ? source_of(x, file) : NULL;
    const Item *item = source ? find_kind(x, kind, name, source) : NULL;
    if (!item && !source)
        item = find_kind(x, kind, name, NULL);
    if (!item)
        suggest_items(x,
                      error_in_file(x->diagnostics, file ? file : x->request->path,
                                    "no %s is named `%s`", kind_name(kind), name),
                      kind, name, NULL);
    return item;
}

static void extend(Expander *x, const Item *item, Chain *chain, Chain *path) {
    for (int64_t i = 0; i < path->count; i++)
        if (path->data[i] == item) {
            const Item *last = path->data[path->count - 1];
            Diagnostic *d = complain(x, NULL, last->name.span, "%s `%s` extends itself",
                                     kind_name(item->kind), item->name.text);
            if (last != item)
                note_at(d, item->name.span, "by way of `%s`", last->name.text);
            return;
        }
    for (int64_t i = 0; i < chain->count; i++)
        if (chain->data[i] == item)
            return;
    array_push(path, item);
    for (int i = 0; i < item->extends_count; i++) {
        Name name = item->extends[i];
        const Item *base = find_kind(x, item->kind, name.text, item->span.source);
        base = base ? base : find_kind(x, item->kind, name.text, NULL);
        if (base && path->count < MAX_NESTING) {
            extend(x, base, chain, path);
        } else if (base) {
            complain(x, NULL, name.span, "more than %d %ss extend each other", MAX_NESTING,
                     kind_name(item->kind));
        } else {
            Diagnostic *d = complain(x, NULL, name.span, "no %s is named `%s`",
                                     kind_name(item->kind), name.text);
            suggest_items(x, d, item->kind, name.text, item);
        }
    }
    path->count--;
    array_push(chain, item);
}

void extension_chain(Expander *x, const Item *item, Chain *chain) {
    Chain path = {0};
    extend(x, item, chain, &path);
    array_free(&path);
}

/* ---- the model ------------------------------------------------------------------- */

static const Item *find_model(Expander *x) {
    const Item *model = NULL;
    for (const Item *item = x->texts->items; item; item = item->next) {
        if (item->kind != ITEM_MODEL)
            continue;
        if (model) {
            Diagnostic *d = complain(x, NULL, item->name.span,
                                     "a second model: a text and all it uses have one");
            note_at(d, model->name.span, "the first is here");
            help(d, "plans and recipes for several models stand in a text without a model");
            return NULL;
        }
        model = item;
    }
    if (!model)
        error_in_file(x->diagnostics, x->request->path, "there is no model in this text");
    return model;
}

/* errors: how many there were before this text. */
static void expand_model(Expander *x, const Item *model, int errors) {
    static const char *const scalars[] = {"step", "seed", "sample0"};
    x->function = module_function(x->module, "micro", COUNT_OF(scalars), scalars);
    Instance root = {.scope = 0, .path = ""};
    Frame frame = frame_begin(NULL, model, &x->globals);
    frame.instance = &root;
    execute_body(x, &frame, model->body);
    frame_end(&frame);
    string_map_free(&root.names);
    array_free(&root.spans);
    if (!x->minimized.source && !x->exhausted) {
        Diagnostic *d = complain(x, NULL, model->name.span, "model `%s` minimizes nothing",
                                 model->name.text);
        help(d, "end it with `minimize mean(…)`");
    }
    if (x->module->inputs.count == 0 && error_count(x) == errors)
        complain(x, NULL, model->name.span, "model `%s` has no input", model->name.text);
}

/* ---- what must hold of the result ------------------------------------------------ */

static const State *weight_read(const Expander *x, NodeId id) {
    const Node *node = node_at(x->function, id);
    if (node->op != OP_STATE)
        return NULL;
    const State *state = &x->module->states.data[node->attr.integer];
    return state->role == ROLE_WEIGHT ? state : NULL;
}

/* The gradient is that of the sum over the weights: these must not move with the parameters. */
static void check_weight_sum(Expander *x) {
    int64_t count = x->function->nodes.count;
    bool *marked = checked_alloc((size_t)count + 1);
    marked[x->weight_sum] = true;
    mark_inputs(x->function, marked);
    for (NodeId id = 0; id < count; id++) {
        const State *state = marked[id] ? weight_read(x, id) : NULL;
        if (state) {
            Diagnostic *d =
                complain(x, NULL, x->minimized,
                         "what the loss is divided by depends on parameter `%s`", state->path);
            note_at(d, state->span, "`%s` is declared here", state->path);
            break;
        }
    }
    free(marked);
}

static void check_preset(Expander *x) {
    if (!x->request->preset || x->preset_known)
        return;
    ARRAY(const char *) names = {0};
    for (const Item *item = x->texts->items; item; item = item->next)
        if (item->kind == ITEM_PRESET)
            array_push(&names, item->name.text);
    Diagnostic *d = error_in_file(x->diagnostics, x->request->path, "no preset is named `%s`",
                                  x->request->preset);
    const char *nearest = nearest_name(x->request->preset, names.data, (int)names.count);
    if (nearest)
        help(d, "did you mean `%s`?", nearest);
    Text all = {0};
    for (int64_t i = 0; i < names.count; i++)
        text_printf(&all, "%s`%s`", i ? ", " : "", names.data[i]);
    if (all.length)
        help(d, "there is %s", text_string(&all));
    text_free(&all);
    array_free(&names);
}

static void settle_dims(Expander *x) {
    DimTable *tables[] = {&x->globals, &x->plan_dims, &x->recipe_dims};
    for (int t = 0; t < COUNT_OF(tables); t++)
        for (int64_t i = 0; i < tables[t]->dims.count; i++)
            dim_number(x, tables[t]->dims.data[i]);
}

static void note_sequences(Compilation *c) {
    if (c->module->inputs.count == 0)
        return;
    const Input *first = &c->module->inputs.data[0];
    c->sequences = c->module->axes.data[first->axes[0]].size;
    c->positions = first->axis_count > 1 ? c->module->axes.data[first->axes[1]].size : 1;
}

/* ---- compile_model --------------------------------------------------------------- */

static Texts *load_texts(const Request *request, Diagnostics *diagnostics) {
    Texts *texts = texts_load(request->path, diagnostics);
    const char *others[] = {request->plan, request->recipe};
    for (int i = 0; i < COUNT_OF(others) && texts; i++) {
        const char *colon = others[i] ? strrchr(others[i], ':') : NULL;
        if (colon && (colon == others[i] || !colon[1]))
            help(error_in_file(diagnostics, request->path, "`%s` is no FILE:NAME", others[i]),
                 "write the name alone where it is in the model's own texts");
        else if (colon)
            texts_add(texts,
                      arena_strndup(texts->arena, others[i], (size_t)(colon - others[i])),
                      diagnostics);
    }
    return texts;
}

void set_precision(Compilation *c, const char *name) {
    c->precision = !strcmp(name, "bf16") ? TYPE_BF16 : TYPE_F32;
    c->tf32 = !strcmp(name, "tf32");
}

/* The command line's word on precision, then the machine's. */
void settle_precision(Compilation *c, const Request *request) {
    if (request->precision) {
        set_precision(c, request->precision);
        c->precision_directive = NULL;
    }
    bool lacks_bf16 = c->precision == TYPE_BF16 && request->no_bf16;
    if (!lacks_bf16 && !(c->tf32 && request->no_tf32))
        return;
    const char *name = c->tf32 ? "tf32" : "bf16";
    if (c->precision_directive)
        warning_at(c->diagnostics, c->precision_directive->span,
                   "this device does not multiply %s values: products are computed in f32",
                   name);
    else
        warning_in_file(c->diagnostics, request->path,
                        "`--precision %s`: this device does not multiply %s values: products "
                        "are computed in f32",
                        name, name);
    set_precision(c, "f32");
}

static void compile(Expander *x) {
    Compilation *c = x->compilation;
    int errors = error_count(x);
    c->model = find_model(x);
    if (!c->model)
        return;
    index_items(x);
    check_twins(x);
    x->globals.owner = "the model";
    x->plan_dims.outer = x->recipe_dims.outer = &x->globals;
    parse_defines(x);
    declare_globals(x);
    declare_plan(x);
    declare_recipe(x);
    check_preset(x);
    apply_defines(x);
    settle_dims(x);
    settle_recipe(x);
    expand_model(x, c->model, errors);
    note_sequences(c);
    if (error_count(x) > errors)
        return;
    check_weight_sum(x);
    check_factorizes(x);
    check_other_directives(x);
    settle_precision(c, x->request);
    check_recipe(x);
}

static Expander *expander_new(Compilation *c, const Request *request) {
    Expander *x = checked_alloc(sizeof *x);
    x->arena = arena_new();
    x->texts = c->texts;
    x->diagnostics = c->diagnostics;
    x->compilation = c;
    x->request = request;
    x->module = c->module;
    x->most_nodes = MAX_OPERATIONS;
    x->loss_sum = x->weight_sum = -1;
    c->expander = x;
    return x;
}

static void expander_free(Expander *x) {
    DimTable *tables[] = {&x->globals, &x->plan_dims, &x->recipe_dims};
    for (int t = 0; t < COUNT_OF(tables); t++)
        table_free(tables[t]);
    string_map_free(&x->items_by_name);
    array_free(&x->items);
    array_free(&x->axis_dims);
    array_free(&x->state_scopes);
    array_free(&x->scope_paths);
    array_free(&x->plan_chain);
    array_free(&x->recipe_chain);
    recipe_free(x);
    arena_free(x->arena);
    free(x);
}

void compilation_free(Compilation *c) {
    if (!c)
        return;
    for (int i = 0; i < c->factorize_count; i++)
        free(c->factorizes[i].weights);
    free(c->factorizes);
    free(c->recomputes);
    if (c->expander)
        expander_free(c->expander);
    module_free(c->module);
    texts_free(c->texts);
    free(c);
}

static void release_compilation(void *compilation) {
    compilation_free(compilation);
}

Compilation *compile_model(const Request *request, Diagnostics *diagnostics) {
    int errors = diagnostics_errors(diagnostics);
    Compilation *c = checked_alloc(sizeof *c);
    c->diagnostics = diagnostics;
    c->precision = TYPE_F32;
    c->module = module_new();
    c->module->name = arena_strdup(c->module->arena, request->path);
    c->texts = load_texts(request, diagnostics);
    if (diagnostics_errors(diagnostics) == errors)
        compile(expander_new(c, request));
    if (diagnostics_errors(diagnostics) == errors)
        return c;
    diagnostics_own(diagnostics, c, release_compilation); /* places point into its texts */
    return NULL;
}
