/* frontend/expand_call.c: calls of blocks and fns.  A call binds arguments to formals and
 * expands the body on the spot; a block's call also makes a component: a scope, with a path for
 * its parameters. */
#include "frontend/expand.h"

#include <stdlib.h>
#include <string.h>

/* ---- binding one formal -------------------------------------------------------------- */

static void bind_poison(Frame *callee, const Parameter *formal) {
    bind_value(callee, formal->name, poison);
}

static void bind_tensor(Expander *x, Frame *caller, Frame *callee, const Parameter *formal,
                        const Expr *argument) {
    Value value = eval(x, caller, argument);
    bind_value(callee, formal->name, value)->argument = argument;
}

/* Passes on what one name stands for in the caller.  False: the name is no axis or number. */
static bool bind_same(Frame *caller, Frame *callee, const Parameter *formal,
                      const Expr *argument) {
    const Binding *found = frame_find(caller, argument->name.text);
    Binding given = found ? *found : (Binding){0};
    if (!found) {
        given.dim = table_find(caller->table, argument->name.text);
        given.kind = BIND_DIM;
        if (!given.dim)
            return false;
    } else if (found->kind == BIND_PARAM || found->kind == BIND_VALUE) {
        return false;
    }
    Binding *binding = frame_bind(callee, formal->name, given.kind);
    binding->dim = given.dim;
    binding->axes = given.axes;
    binding->argument = argument;
    return true;
}

static bool is_axis_list(const Expr *argument) {
    return (argument->kind == EXPR_LIST && argument->arrow_at < 0) ||
           (argument->kind == EXPR_CALL && strcmp(argument->name.text, "axes") == 0);
}

/* An axis, axes, or a number, for a formal after a `;`. */
static void bind_axes_or_number(Expander *x, Frame *caller, Frame *callee,
                                const Parameter *formal, const Expr *args, int count) {
    if (count == 1 && !is_axis_list(args)) {
        if (args->kind == EXPR_NAME && bind_same(caller, callee, formal, args))
            return;
        Value value = eval(x, caller, args);
        if (value.kind == VALUE_NUMBER) {
            bind_number(x, callee, formal->name, value.number, args->span)->argument = args;
            return;
        }
        if (value.kind == VALUE_TENSOR)
            complain(x, caller, args->span,
                     "%s is a tensor, and `%s` takes an axis or a number for `%s`",
                     excerpt(x, args->span), callee->item->name.text, formal->name.text);
        bind_poison(callee, formal);
        return;
    }
    AxisList axes = {0};
    bool number = false;
    const Expr *arg = args;
    for (int i = 0; i < count; i++, arg = arg->next)
        number |= arg->kind == EXPR_NUMBER;
    if (number && count > 1)
        complain(x, caller, args->span,
                 "`%s` takes one value here, `%s`, and this call gives %d",
                 callee->item->name.text, formal->name.text, count);
    if ((number && count > 1) || !axes_of_args(x, caller, args, count, &axes)) {
        bind_poison(callee, formal);
        return;
    }
    Binding *binding = frame_bind(callee, formal->name, BIND_AXES);
    binding->axes = axes;
    binding->argument = args;
}

static void bind_formal(Expander *x, Frame *caller, Frame *callee, const Parameter *formal,
                        const Expr *args, int count) {
    if (formal->group == 0)
        bind_tensor(x, caller, callee, formal, args);
    else
        bind_axes_or_number(x, caller, callee, formal, args, count);
}

/* ---- binding a call's arguments ------------------------------------------------------ */

typedef struct Binder {
    Expander *x;
    Frame *caller, *callee;
    const Expr *call;
    const Item *item;
    bool failed; /* something is reported; missing arguments then are no news */
} Binder;

static Diagnostic *complain_call(Binder *b, Span span, const char *sentence) {
    b->failed = true;
    Diagnostic *d = complain(b->x, b->caller, span, "%s", sentence);
    note_at(d, b->item->name.span, "`%s` is declared here", b->item->name.text);
    return d;
}

static bool is_bound(const Binder *b, const Parameter *formal) {
    return frame_find(b->callee, formal->name.text) != NULL;
}

static void bind_named(Binder *b, const Expr *argument) {
    Expander *x = b->x;
    const char *names[64];
    int count = 0;
    for (const Parameter *p = b->item->parameters; p; p = p->next) {
        if (strcmp(p->name.text, argument->name.text) == 0) {
            if (is_bound(b, p))
                complain_call(b, argument->span,
                              arena_printf(x->arena, "`%s` already has its `%s`",
                                           b->item->name.text, p->name.text));
            else
                bind_formal(x, b->caller, b->callee, p, argument->a, 1);
            return;
        }
        if (count < COUNT_OF(names))
            names[count++] = p->name.text;
    }
    Diagnostic *d = complain_call(b, argument->name.span,
                                  arena_printf(x->arena, "`%s` has no parameter `%s`",
                                               b->item->name.text, argument->name.text));
    const char *nearest = nearest_name(argument->name.text, names, count);
    if (nearest)
        help(d, "did you mean `%s`?", nearest);
}

/* Skips named arguments, which are bound already. */
static const Expr *next_positional(const Expr *argument) {
    while (argument && argument->kind == EXPR_NAMED)
        argument = argument->next;
    return argument;
}

/* Formals of one side of one group, those without a default first. */
typedef ARRAY(const Parameter *) Formals;

static void collect_formals(const Binder *b, int group, bool after_arrow, Formals *formals,
                            int *required) {
    for (int pass = 0; pass < 2; pass++) {
        for (const Parameter *p = b->item->parameters; p; p = p->next)
            if (p->group == group && p->after_arrow == after_arrow &&
                (p->fallback != NULL) == (pass == 1) && !is_bound(b, p))
                array_push(formals, p);
        if (pass == 0)
            *required = (int)formals->count;
    }
}

/* Positional arguments of one side.  A lone axis formal takes all of them: `; H,K`. */
static void bind_side(Binder *b, int group, bool after_arrow, const Expr *args, int count) {
    Formals formals = {0};
    int required = 0, positional = 0;
    collect_formals(b, group, after_arrow, &formals, &required);
    const Expr *arg = args;
    for (int i = 0; i < count; i++, arg = arg->next)
        positional += arg->kind != EXPR_NAMED;
    if (group > 0 && required == 1 && positional == count && count > 0) {
        bind_formal(b->x, b->caller, b->callee, formals.data[0], args, count);
    } else if (positional > formals.count) {
        complain_call(b, b->call->span,
                      arena_printf(b->x->arena,
                                   "`%s` takes %d argument%s here, and this call "
                                   "gives %d",
                                   b->item->name.text, (int)formals.count,
                                   formals.count == 1 ? "" : "s", positional));
    } else {
        const Expr *end = arg;
        int i = 0;
        for (arg = next_positional(args); arg && arg != end && i < positional;
             arg = next_positional(arg->next))
            bind_formal(b->x, b->caller, b->callee, formals.data[i++], arg, 1);
    }
    array_free(&formals);
}

static bool group_has_arrow(const Item *item, int group, bool *exists) {
    for (const Parameter *p = item->parameters; p; p = p->next)
        if (p->group == group) {
            *exists = true;
            return p->group_has_arrow;
        }
    *exists = false;
    return false;
}

/* How the formals of a group are written, for a message: `I -> O`. */
static const char *group_text(Binder *b, int group) {
    Text text = {0};
    bool arrow = false;
    for (const Parameter *p = b->item->parameters; p; p = p->next)
        if (p->group == group) {
            bool turn = p->after_arrow && !arrow;
            text_printf(&text, "%s%s", turn ? " -> " : text.length ? ", " : "", p->name.text);
            arrow |= p->after_arrow;
        }
    const char *result = arena_strdup(b->x->arena, text_string(&text));
    text_free(&text);
    return result;
}

static void bind_group(Binder *b, int group, const Expr *args, int count, int arrow_at,
                       Span span) {
    bool exists, wants_arrow = group_has_arrow(b->item, group, &exists);
    bool any = next_positional(args) != NULL || arrow_at >= 0;
    if (!any)
        return;
    if (!exists) {
        complain_call(b, span,
                      arena_printf(b->x->arena, "`%s` takes no arguments in this place",
                                   b->item->name.text));
        return;
    }
    if (wants_arrow != (arrow_at >= 0)) {
        Diagnostic *d =
            complain_call(b, span,
                          arena_printf(b->x->arena,
                                       wants_arrow ? "`%s` wants `->` between these axes"
                                                   : "`%s` wants no `->` here",
                                       b->item->name.text));
        help(d, "its parameters are `%s`", group_text(b, group));
        return;
    }
    int left = arrow_at >= 0 ? arrow_at : count;
    const Expr *right = args;
    for (int i = 0; i < left; i++)
        right = right->next;
    bind_side(b, group, false, args, left);
    if (arrow_at >= 0)
        bind_side(b, group, true, right, count - left);
}

/* The groups of formals that a call's groups stand for: all, or those that the compiler has not
 * bound itself.  -1 past the last. */
static int formal_group(const Binder *b, int call_group, bool implicit) {
    if (!implicit)
        return call_group;
    int last = -1;
    for (const Parameter *p = b->item->parameters; p; p = p->next)
        if (!is_bound(b, p) && p->group != last) {
            last = p->group;
            if (call_group-- == 0)
                return last;
        }
    return INT32_MAX;
}

static int list_length(const Expr *list) {
    int count = 0;
    for (; list; list = list->next)
        count++;
    return count;
}

static void bind_defaults(Binder *b) {
    for (const Parameter *p = b->item->parameters; p; p = p->next) {
        if (is_bound(b, p))
            continue;
        if (p->fallback) {
            bind_formal(b->x, b->callee, b->callee, p, p->fallback, 1);
            continue;
        }
        if (!b->failed) {
            Diagnostic *d =
                complain_call(b, b->call->span,
                              arena_printf(b->x->arena, "this call of `%s` gives no `%s`",
                                           b->item->name.text, p->name.text));
            note_at(d, p->name.span, "`%s` is a parameter without a default", p->name.text);
            b->failed = false; /* name every one that is missing */
        }
        bind_poison(b->callee, p);
    }
}

static void check_formal_types(Binder *b) {
    for (const Parameter *p = b->item->parameters; p; p = p->next) {
        Binding *binding = p->type ? frame_find(b->callee, p->name.text) : NULL;
        if (!binding || binding->kind != BIND_VALUE || !binding->argument)
            continue;
        Value value = binding->value;
        const char *what =
            arena_printf(b->x->arena, "`%s` of `%s`", p->name.text, b->item->name.text);
        value = check_type(b->x, b->callee, b->caller, p->type, value, binding->argument, what);
        binding = frame_find(b->callee, p->name.text);
        binding->value = value;
    }
}

void bind_arguments(Expander *x, Frame *caller, const Expr *call, const Item *item,
                    Frame *callee) {
    Binder b = {x, caller, callee, call, item, false};
    bool implicit = callee->bindings.count > 0;
    int groups[16], count = 1;
    for (const ArgGroup *g = call->groups; g; g = g->next)
        count++;
    if (count > COUNT_OF(groups)) {
        complain_call(&b, call->span, "a call has at most 16 groups of arguments");
        count = COUNT_OF(groups);
    }
    for (int i = 0; i < count; i++)
        groups[i] = formal_group(&b, i, implicit);
    const ArgGroup *rest = call->groups;
    for (const Expr *args = call->args;; args = rest->args, rest = rest->next) {
        for (const Expr *arg = args; arg; arg = arg->next)
            if (arg->kind == EXPR_NAMED)
                bind_named(&b, arg);
        if (!rest)
            break;
    }
    bind_group(&b, groups[0], call->args, list_length(call->args), call->arrow_at, call->span);
    int i = 1;
    for (const ArgGroup *g = call->groups; g && i < count; g = g->next)
        bind_group(&b, groups[i++], g->args, g->arg_count, g->arrow_at, g->span);
    bind_defaults(&b);
    check_formal_types(&b);
}

/* ---- components ---------------------------------------------------------------------- */

bool claim_path(Expander *x, Frame *f, const char *path, Span span, const char *component) {
    Instance *instance = f->instance;
    int64_t taken = string_map_get(&instance->names, path, -1);
    if (taken < 0) {
        string_map_set(&instance->names, path, 2 * instance->spans.count + !component);
        array_push(&instance->spans, span);
        return true;
    }
    Diagnostic *d =
        complain(x, f, span,
                 !component  ? "`%s` is the path of something else already"
                 : taken % 2 ? "this component would be called `%s`, like a parameter"
                             : "two components would be called `%s`",
                 path);
    note_at(d, instance->spans.data[taken / 2], "the other is here");
    if (component)
        help(d, "label one, as in `first: %s(…)`", component);
    return false;
}

static bool recursion(Expander *x, Frame *f, const Expr *e, const Item *item) {
    for (Frame *caller = f; caller; caller = caller->caller) {
        if (caller->item != item)
            continue;
        Diagnostic *d = complain(
            x, f, e->span, "`%s` calls itself: the expansion would never end", item->name.text);
        note_at(d, item->name.span, "`%s` is declared here", item->name.text);
        return true;
    }
    return false;
}

/* A local axis means nothing outside: no text there can name it. */
static Value check_leak(Expander *x, Frame *callee, Value value) {
    if (value.kind != VALUE_TENSOR)
        return value;
    Type type = value_type(x, value);
    size_t length = strlen(callee->item->name.text);
    for (int i = 0; i < type.rank; i++) {
        const char *name = axis_name(x, type.axes[i]);
        if (strncmp(name, callee->item->name.text, length) != 0 || name[length] != '.')
            continue;
        Diagnostic *d = complain(
            x, callee, callee->result_span,
            "the result of `%s` has axis `%s`, which is local and cannot be named outside",
            callee->item->name.text, name + length + 1);
        help(d, "sum over it, or declare a `dim` outside and give it to `%s` as an axis",
             callee->item->name.text);
        return poison;
    }
    return value;
}

static Value run_body(Expander *x, Frame *callee) {
    int errors = error_count(x);
    execute_body(x, callee, callee->item->body);
    if (!callee->returned) {
        if (error_count(x) == errors && !x->exhausted)
            help(complain(x, NULL, callee->item->name.span, "`%s` returns nothing",
                          callee->item->name.text),
                 "end its body with `return …`");
        return poison;
    }
    return check_leak(x, callee, callee->result);
}

Value expand_block(Expander *x, Frame *callee, ScopeId parent, const char *path, int depth) {
    Instance instance = {.path = path, .depth = depth};
    instance.scope =
        module_scope(x->module, parent, path, callee->item->name.text, callee->call);
    array_push(&x->scope_paths, x->module->scopes.data[instance.scope].path);
    callee->instance = &instance;
    callee->scope = instance.scope;
    callee->site = hash_bytes(path, strlen(path), 0);
    for (const Parameter *p = callee->item->parameters; p && p->group == 0; p = p->next) {
        const Binding *bound = frame_find(callee, p->name.text);
        if (bound && bound->kind == BIND_VALUE && bound->value.kind == VALUE_TENSOR)
            record_name(x, callee, bound->value.node, p->name);
    }
    Value result = run_body(x, callee);
    if (result.kind == VALUE_TENSOR) {
        Node *node = &x->function->nodes.data[result.node];
        if (!node->name && node->scope == instance.scope)
            node->name = "out";
        record_name(x, callee, result.node, (Name){"out", node->span});
    }
    string_map_free(&instance.names);
    array_free(&instance.spans);
    return result;
}

static Value call_block(Expander *x, Frame *f, const Expr *e, const Name *label,
                        Frame *callee) {
    const char *name = label ? label->text : e->name.text;
    const char *path = path_join(x, f->instance->path, name);
    if (*f->suffix)
        path = arena_printf(x->arena, "%s%s", path, f->suffix);
    if (!claim_path(x, f, path, label ? label->span : e->span, e->name.text))
        return poison;
    if (f->instance->depth >= MAX_SCOPE_DEPTH) {
        complain(x, f, e->span, "blocks are nested more than %d deep", MAX_SCOPE_DEPTH);
        return poison;
    }
    return expand_block(x, callee, f->scope, path, f->instance->depth + 1);
}

/* The same fn called twice draws different random numbers. */
static uint64_t fn_site(Frame *f, const Item *item) {
    int64_t at = 0;
    while (at < f->fn_calls.count && f->fn_calls.data[at].item != item)
        at++;
    if (at == f->fn_calls.count)
        array_push(&f->fn_calls, ((struct FnCalls){item, 0}));
    int count = f->fn_calls.data[at].count++;
    uint64_t site = hash_bytes(&count, sizeof count, f->site);
    return hash_bytes(item->name.text, strlen(item->name.text), site);
}

static bool may_call(Expander *x, Frame *f, const Expr *e, const Item *item) {
    if (item->kind == ITEM_BLOCK && (frame_is_fn(f) || f->compile_time)) {
        Diagnostic *d = complain(x, f, e->span,
                                 "`%s` is a block, and only a block or the model may call one",
                                 item->name.text);
        if (f->item && f->item->kind == ITEM_FN)
            help(d, "make `%s` a block", f->item->name.text);
        return false;
    }
    return !recursion(x, f, e, item);
}

Value eval_item_call(Expander *x, Frame *f, const Expr *e, const Item *item,
                     const Name *label) {
    if (!may_call(x, f, e, item))
        return poison;
    Frame callee = frame_begin(f, item, &x->globals);
    callee.call = e->span;
    bind_arguments(x, f, e, item, &callee);
    Value result;
    if (item->kind == ITEM_BLOCK) {
        result = call_block(x, f, e, label, &callee);
    } else {
        callee.instance = f->instance;
        callee.scope = f->scope;
        callee.optimizer = f->optimizer;
        callee.site = fn_site(f, item);
        result = run_body(x, &callee);
    }
    frame_end(&callee);
    return result;
}
