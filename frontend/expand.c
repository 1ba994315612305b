/* frontend/expand.c: from checked texts to a module.  A model's body is executed once, at
 * compile time: loops are unrolled, calls expanded, and what is left is a graph of primitives.
 */
#include "frontend/expand.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- work ---------------------------------------------------------------------------- */

Builder builder_at(Expander *x, const Frame *f, Span span) {
    Builder b = builder(x->function);
    b.scope = f->scope;
    b.span = span;
    return b;
}

const char *path_join(Expander *x, const char *path, const char *name) {
    return *path ? arena_printf(x->arena, "%s.%s", path, name) : name;
}

bool spend_steps(Expander *x, const Frame *f, Span span, int64_t steps) {
    if (x->exhausted)
        return false;
    x->steps += steps;
    if (x->steps <= MAX_STEPS)
        return true;
    x->exhausted = true;
    for (; f && f->caller && f->caller->item; f = f->caller)
        span = f->caller->item->kind == ITEM_MODEL ? f->call : span; /* where it all began */
    complain(x, NULL, span, "the model takes more than %d steps to expand", MAX_STEPS);
    return false;
}

bool spend_step(Expander *x, const Frame *f, Span span) {
    return spend_steps(x, f, span, 1);
}

/* ---- names --------------------------------------------------------------------------- */

void record_name(Expander *x, const Frame *f, NodeId value, Name name) {
    NamedValue named = {f->scope, arena_strdup(x->module->arena, name.text), value, name.span};
    array_push(&x->function->names, named);
}

/* A value takes the name it is bound to, when it has none and belongs to this block. */
static void name_node(Expander *x, const Frame *f, Value value, Name name) {
    if (value.kind != VALUE_TENSOR || frame_is_fn(f))
        return;
    record_name(x, f, value.node, name);
    Node *node = &x->function->nodes.data[value.node];
    if (!node->name && node->input_count > 0 && (node->scope == f->scope || node->scope == 0))
        node->name = name.text;
}

/* Binds a name in this body.  A loop's body may rebind what it finds outside; otherwise a name
 * has one value. */
static void bind_name(Expander *x, Frame *f, Name name, Value value) {
    Binding *found = frame_find(f, name.text);
    if (!found) {
        bind_value(f, name, value);
    } else if (found->kind == BIND_VALUE && found->epoch < f->epoch) {
        found->value = value;
        found->epoch = f->epoch;
        found->span = name.span;
    } else {
        Diagnostic *d = complain(x, f, name.span, "`%s` already has a value here", name.text);
        note_at(d, found->span, "it gets it here");
        help(d,
             "choose another name; only a `for` gives a new value to a name from outside it");
        return;
    }
    name_node(x, f, value, name);
}

static void execute_bind(Expander *x, Frame *f, const Statement *s) {
    Value value = eval(x, f, s->value);
    if (s->type)
        value = check_type(x, f, f, s->type, value, s->value,
                           arena_printf(x->arena, "`%s`", s->names[0].text));
    bind_name(x, f, s->names[0], value);
}

static void execute_dim(Expander *x, Frame *f, const Statement *s) {
    for (int i = 0; i < s->name_count; i++) {
        const char *quoted = arena_printf(x->arena, "`%s`", s->names[i].text);
        Number number = eval_number(x, f, s->value, quoted);
        const Binding *found = frame_find(f, s->names[i].text);
        if (found) {
            Diagnostic *d = complain(x, f, s->names[i].span, "`%s` already has a value here",
                                     s->names[i].text);
            note_at(d, found->span, "it gets it here");
            continue;
        }
        if (number.kind == NUMBER_POISON) {
            bind_value(f, s->names[i], poison);
            continue;
        }
        Dim *dim = bind_number(x, f, s->names[i], number, s->names[i].span)->dim;
        dim->set_by = SET_DEFAULT;
        dim->value = s->value;
    }
}

/* ---- control ------------------------------------------------------------------------- */

static void execute_if(Expander *x, Frame *f, const Statement *s) {
    Value value = eval(x, f, s->value);
    if (value.kind == VALUE_TENSOR)
        help(complain(x, f, s->value->span,
                      "the condition of an `if` must be known before the model runs, and %s is "
                      "a tensor",
                      excerpt(x, s->value->span)),
             "to choose element by element, write `where(condition, a, b)`");
    if (value.kind != VALUE_NUMBER)
        return;
    Number condition = value.number;
    if (condition.kind != NUMBER_BOOL) {
        complain(x, f, s->value->span, "%s is %s, and a condition is true or false",
                 excerpt(x, s->value->span), number_text(x, condition));
        return;
    }
    execute_body(x, f, condition.integer ? s->body : s->otherwise);
}

/* How much of what is limited has been used. */
typedef struct Usage {
    int64_t steps, things; /* nodes, states, scopes */
} Usage;

static Usage usage(const Expander *x) {
    int64_t things =
        x->function->nodes.count + x->module->states.count + x->module->scopes.count;
    return (Usage){x->steps, things};
}

/* After an iteration: would the rest of them, like this one, go beyond the limits? */
static bool foresee(Expander *x, Frame *f, const Statement *s, Usage before, int64_t done,
                    int64_t count) {
    Usage now = usage(x);
    double left = (double)(count - done);
    if ((double)now.things + left * (double)(now.things - before.things) <= MAX_OPERATIONS &&
        (double)now.steps + left * (double)(now.steps - before.steps) <= MAX_STEPS)
        return true;
    if (!x->exhausted) {
        Diagnostic *d =
            complain(x, f, s->span,
                     "this loop runs %" PRId64 " times and would make the model larger "
                     "than %d operations",
                     count, MAX_OPERATIONS);
        explain_names(x, f, d, s->value);
        explain_names(x, f, d, s->value2);
    }
    x->exhausted = true;
    return false;
}

static bool loop_range(Expander *x, Frame *f, const Statement *s, int64_t *first,
                       int64_t *count) {
    *first = 0;
    if (!s->value2)
        return eval_whole(x, f, s->value, "the count of a loop", 0, count);
    int64_t last;
    if (!eval_whole(x, f, s->value, "the first index of a loop", 0, first) ||
        !eval_whole(x, f, s->value2, "the last index of a loop", 0, &last))
        return false;
    *count = last >= *first ? last - *first + 1 : 0;
    return true;
}

static void execute_iteration(Expander *x, Frame *f, const Statement *s, const char *outer,
                              int64_t index) {
    int64_t mark = f->bindings.count;
    f->epoch = ++x->epochs;
    f->suffix = arena_printf(x->arena, "%s[%" PRId64 "]", outer, index);
    if (frame_find(f, s->names[0].text))
        complain(x, f, s->names[0].span, "`%s` already has a value here", s->names[0].text);
    else
        bind_value(f, s->names[0], number_value(number_integer(index)));
    execute_body(x, f, s->body);
    frame_truncate(f, mark);
}

static void execute_for(Expander *x, Frame *f, const Statement *s) {
    int64_t first, count, mark = f->bindings.count, outer_epoch = f->epoch;
    const char *outer_suffix = f->suffix;
    if (!loop_range(x, f, s, &first, &count))
        return;
    int64_t *epochs = checked_alloc((size_t)(mark + 1) * sizeof *epochs);
    for (int64_t i = 0; i < mark; i++)
        epochs[i] = f->bindings.data[i].epoch;
    int errors = error_count(x);
    for (int64_t i = 0; i < count && !f->returned && error_count(x) == errors; i++) {
        Usage before = usage(x);
        if (!spend_step(x, f, s->span))
            break;
        execute_iteration(x, f, s, outer_suffix, first + i);
        if (i > 0 && !foresee(x, f, s, before, i + 1, count))
            break;
    }
    for (int64_t i = 0; i < mark; i++)
        f->bindings.data[i].epoch = epochs[i];
    free(epochs);
    f->epoch = outer_epoch;
    f->suffix = outer_suffix;
}

static void execute_return(Expander *x, Frame *f, const Statement *s) {
    Value value = eval(x, f, s->value);
    if (f->item->result)
        value = check_type(x, f, f, f->item->result, value, s->value,
                           arena_printf(x->arena, "the result of `%s`", f->item->name.text));
    f->returned = true;
    f->result = value;
    f->result_span = s->value->span;
}

/* ---- parameters ---------------------------------------------------------------------- */

static bool init_number(Expander *x, Frame *f, const Expr *call, double *number) {
    if (!call->args || call->args->next || call->groups) {
        help(complain(x, f, call->span, "`%s` takes one number", call->name.text),
             "as in `%s(0.02)`", call->name.text);
        return false;
    }
    Number value = eval_number(x, f, call->args, "an initial value");
    *number = value.real;
    if (value.kind == NUMBER_POISON || (value.kind != NUMBER_BOOL && isfinite(value.real)))
        return value.kind != NUMBER_POISON;
    complain(x, f, call->args->span, "%s is no number to start from", number_text(x, value));
    return false;
}

bool parse_init(Expander *x, Frame *f, const Statement *s, Init *init) {
    const Expr *e = s->value;
    static const char *const names[] = {"zeros", "ones", "constant", "normal", "uniform"};
    if (!e) {
        help(complain(x, f, s->span, "nothing says how this starts"),
             "write `~ normal(0.02)`, `~ uniform(a)`, `~ constant(c)`, `~ zeros` or `~ ones` "
             "after "
             "the type");
        return false;
    }
    const char *name = e->name.text;
    bool bare = e->kind == EXPR_NAME || (!e->args && !e->groups);
    *init = (Init){.kind = INIT_CONSTANT, .scale = 1};
    if (strcmp(name, "zeros") == 0 && bare)
        init->kind = INIT_ZEROS, init->scale = 0;
    else if (strcmp(name, "ones") == 0 && bare)
        return true;
    else if (e->kind == EXPR_CALL && strcmp(name, "constant") == 0)
        return init_number(x, f, e, &init->scale);
    else if (e->kind == EXPR_CALL && strcmp(name, "normal") == 0)
        init->kind = INIT_NORMAL;
    else if (e->kind == EXPR_CALL && strcmp(name, "uniform") == 0)
        init->kind = INIT_UNIFORM;
    else {
        Diagnostic *d = complain(x, f, e->span, "%s is no way to start", excerpt(x, e->span));
        const char *nearest = nearest_name(name, names, COUNT_OF(names));
        if (nearest && strcmp(nearest, name) != 0)
            help(d, "did you mean `%s`?", nearest);
        else
            help(d,
                 "the ways are `normal(s)`, `uniform(a)`, `constant(c)`, `zeros` and `ones`");
        return false;
    }
    if (init->kind == INIT_ZEROS)
        return true;
    if (!init_number(x, f, e, &init->scale))
        return false;
    if (init->scale >= 0)
        return true;
    complain(x, f, e->args->span, "a width of %g is negative", init->scale);
    return false;
}

/* The axes of `[D -> H,K]`; an axis stands once in the whole type. */
static bool parameter_axes(Expander *x, Frame *f, const TypeExpr *type, State *state) {
    AxisList in = {0}, all = {0};
    int left = type->arrow_at < 0 ? 0 : type->arrow_at;
    if (type->is_int || type->open) {
        complain(x, f, type->span, "a parameter is a float with all its axes named");
        return false;
    }
    if (!axes_of_names(x, f, type->axes, left, &in))
        return false;
    all = in;
    if (!axes_of_names(x, f, type->axes + left, type->axis_count - left, &all))
        return false;
    if (axes_elements(x->module, all.axes, all.count) > MAX_ELEMENTS) {
        Diagnostic *d = complain(x, f, type->span, "a parameter has at most 2^60 elements");
        explain_axes(x, d, all.axes, all.count);
        return false;
    }
    state->in_count = in.count;
    state->out_count = all.count - in.count;
    memcpy(state->in, in.axes, sizeof state->in);
    memcpy(state->out, all.axes + in.count, (size_t)state->out_count * sizeof *state->out);
    return true;
}

static void declare_parameter(Expander *x, Frame *f, Name name, State state) {
    const char *path = path_join(x, f->instance->path, name.text);
    if (*f->suffix)
        path = arena_printf(x->arena, "%s%s", path, f->suffix);
    if (frame_find(f, name.text)) {
        complain(x, f, name.span, "`%s` already has a value here", name.text);
        return;
    }
    if (!claim_path(x, f, path, name.span, NULL))
        return;
    state.path = path;
    state.span = name.span;
    StateId id = module_state(x->module, state);
    while (x->state_scopes.count <= id)
        array_push(&x->state_scopes, 0);
    x->state_scopes.data[id] = f->scope;
    frame_bind(f, name, BIND_PARAM)->state = id;
}

static void execute_param(Expander *x, Frame *f, const Statement *s) {
    State state = {.role = ROLE_WEIGHT,
                   .dtype = TYPE_F32,
                   .order_count = -1,
                   .weight = -1,
                   .low_rank = x->low_rank,
                   .offset = -1};
    if (frame_is_fn(f)) {
        Diagnostic *d = complain(x, f, s->span, "only a block or the model has parameters");
        help(d, "make `%s` a block", f->item->name.text);
        return;
    }
    /* what a wrong size makes of the initializer is no second mistake */
    bool fine = parameter_axes(x, f, s->type, &state) && parse_init(x, f, s, &state.init);
    for (int i = 0; i < s->name_count; i++) {
        if (fine)
            declare_parameter(x, f, s->names[i], state);
        else if (!frame_find(f, s->names[i].text))
            bind_value(f, s->names[i], poison);
    }
}

/* ---- inputs and losses --------------------------------------------------------------- */

static bool input_bound(Expander *x, Frame *f, const TypeExpr *type, Input *input,
                        int32_t *below_axis) {
    if (!type->is_int || !type->below) {
        Diagnostic *d =
            complain(x, f, type->span, "an input is token data: an int with a bound");
        help(d, "write `int[B,S] below V`");
        return false;
    }
    if (!eval_whole(x, f, type->below, "the bound of an input", 1, &input->below) ||
        (type->next_token && !eval_whole(x, f, type->next_token, "`next`", 0, &input->next)))
        return false;
    if (input->below > INT32_MAX) {
        complain(x, f, type->below->span, "the bound of an input is at most 2^31");
        return false;
    }
    Dim *dim = type->below->kind == EXPR_NAME ? visible_dim(f, type->below->name.text) : NULL;
    *below_axis = dim ? dim_axis(x, dim, type->below->span) : -1;
    return true;
}

static bool input_axes(Expander *x, Frame *f, const Statement *s, Input *input) {
    AxisList axes = {0};
    if (s->type->open || s->type->arrow_at >= 0 || s->type->axis_count == 0) {
        complain(x, f, s->type->span, "an input names its axes, the samples first: `int[B,S]`");
        return false;
    }
    if (!axes_of_names(x, f, s->type->axes, s->type->axis_count, &axes))
        return false;
    Type type = type_of(TYPE_I32, axes.axes, axes.count);
    if (!affordable(x, f, s->type->span, type))
        return false;
    const Input *first = x->module->inputs.count ? &x->module->inputs.data[0] : NULL;
    if (first && first->axes[0] != axes.axes[0]) {
        Diagnostic *d = complain(x, f, s->type->span,
                                 "the first axis of every input is the sample axis, and "
                                 "`%s` has `%s` there, not `%s`",
                                 s->names[0].text, axis_name(x, axes.axes[0]),
                                 axis_name(x, first->axes[0]));
        note_at(d, first->span, "`%s` is declared here", first->name);
        return false;
    }
    input->axis_count = axes.count;
    memcpy(input->axes, axes.axes, sizeof input->axes);
    return true;
}

static void execute_input(Expander *x, Frame *f, const Statement *s) {
    Input input = {.name = s->names[0].text, .span = s->names[0].span};
    int32_t below_axis = -1;
    bool fine = input_axes(x, f, s, &input);
    fine = input_bound(x, f, s->type, &input, &below_axis) && fine;
    if (!fine || frame_find(f, input.name)) {
        bind_name(x, f, s->names[0], poison);
        return;
    }
    array_push(&x->module->inputs, input);
    Builder b = builder_at(x, f, s->span);
    NodeId node = build_input(&b, x->module->inputs.count - 1);
    bind_value(f, s->names[0], bounded_value(node, input.below, below_axis));
}

static void add_metric(Expander *x, const char *path, NodeId value, Span span) {
    State state = {.path = path,
                   .role = ROLE_METRIC,
                   .dtype = TYPE_F32,
                   .order_count = -1,
                   .weight = -1,
                   .offset = -1,
                   .span = span};
    Write write = {.state = module_state(x->module, state), .value = value, .add = true};
    array_push(&x->function->writes, write);
}

/* The sum over all axes, in f32; -1 after reporting. */
static NodeId sum_of(Expander *x, Frame *f, const Expr *e, Value value) {
    if (value.kind == VALUE_POISON)
        return -1;
    NodeId node = node_of(x, f, e->span, value, TYPE_F32);
    if (node < 0 || !affordable(x, f, e->span, node_at(x->function, node)->type))
        return -1;
    Type type = node_at(x->function, node)->type;
    Builder b = builder_at(x, f, e->span);
    return build_reduce(&b, OP_SUM, node, type.axes, type.rank);
}

/* mean(e) alone: the loss is the sum of e over its count */
static bool is_plain_mean(const Statement *s) {
    const Expr *e = s->value;
    return !s->value2 && e->kind == EXPR_CALL && strcmp(e->name.text, "mean") == 0 && e->args &&
           !e->args->next && !e->groups;
}

static void minimize_mean(Expander *x, Frame *f, const Expr *e) {
    Value value = eval(x, f, e);
    x->loss_sum = sum_of(x, f, e, value);
    if (x->loss_sum < 0)
        return;
    int64_t count =
        value.kind == VALUE_TENSOR ? type_elements(x->module, value_type(x, value)) : 1;
    Builder b = builder_at(x, f, e->span);
    x->weight_sum = build_const(&b, TYPE_F32, (double)count);
}

static void minimize_over(Expander *x, Frame *f, const Statement *s) {
    Value value = eval(x, f, s->value);
    if (s->value2) {
        x->weight_sum = sum_of(x, f, s->value2, eval(x, f, s->value2));
    } else {
        Builder b = builder_at(x, f, s->span);
        x->weight_sum = build_const(&b, TYPE_F32, 1);
        if (value.kind == VALUE_TENSOR && value_type(x, value).rank > 0) {
            Diagnostic *d =
                complain(x, f, s->value->span, "%s is no single number: it has axes %s",
                         excerpt(x, s->value->span), axes_text(x, value_type(x, value)));
            help(d, "write `minimize mean(…)`, or say what to divide its sum by: "
                    "`minimize … over …`");
            return;
        }
    }
    x->loss_sum = sum_of(x, f, s->value, value);
}

static void execute_minimize(Expander *x, Frame *f, const Statement *s) {
    if (x->minimized.source) {
        Diagnostic *d = complain(x, f, s->span, "a model minimizes one loss");
        note_at(d, x->minimized, "this one; add the two with `+`");
        return;
    }
    x->minimized = s->span;
    if (is_plain_mean(s))
        minimize_mean(x, f, s->value->args);
    else
        minimize_over(x, f, s);
    if (x->loss_sum < 0 || x->weight_sum < 0)
        return;
    add_metric(x, "loss_sum", x->loss_sum, s->span);
    add_metric(x, "weight_sum", x->weight_sum, s->span);
}

static void execute_observe(Expander *x, Frame *f, const Statement *s) {
    const char *name = path_join(x, f->instance->path, s->names[0].text);
    const char *path = arena_printf(x->arena, "observe.%s%s", name, f->suffix);
    Value value = eval(x, f, s->value);
    if (value.kind == VALUE_POISON)
        return;
    if (value.kind == VALUE_TENSOR && value_type(x, value).rank > 0) {
        Diagnostic *d =
            complain(x, f, s->value->span, "%s is no single number: it has axes %s",
                     excerpt(x, s->value->span), axes_text(x, value_type(x, value)));
        help(d, "observe its `mean(…)`");
        return;
    }
    if (module_find_state(x->module, path, ROLE_METRIC, 0) >= 0) {
        complain(x, f, s->names[0].span, "`%s` is already observed", name);
        return;
    }
    add_metric(x, path, node_of(x, f, s->value->span, value, TYPE_F32), s->names[0].span);
}

/* ---- statements ---------------------------------------------------------------------- */

static void execute_statement(Expander *x, Frame *f, const Statement *s) {
    switch (s->kind) {
    case STATEMENT_PARAM:
        execute_param(x, f, s);
        break;
    case STATEMENT_DIM:
    case STATEMENT_FLAG:
        execute_dim(x, f, s);
        break;
    case STATEMENT_BIND:
        execute_bind(x, f, s);
        break;
    case STATEMENT_FOR:
        execute_for(x, f, s);
        break;
    case STATEMENT_IF:
        execute_if(x, f, s);
        break;
    case STATEMENT_RETURN:
        execute_return(x, f, s);
        break;
    case STATEMENT_INPUT:
        execute_input(x, f, s);
        break;
    case STATEMENT_MINIMIZE:
        execute_minimize(x, f, s);
        break;
    case STATEMENT_OBSERVE:
        execute_observe(x, f, s);
        break;
    case STATEMENT_STATE:
        optimizer_state(x, f, s);
        break;
    case STATEMENT_NEXT:
        optimizer_next(x, f, s);
        break;
    }
}

void execute_body(Expander *x, Frame *f, const Statement *body) {
    for (const Statement *s = body; s; s = s->next) {
        if (!spend_step(x, f, s->span))
            return;
        execute_statement(x, f, s);
        if (!f->returned)
            continue;
        if (s->kind == STATEMENT_RETURN && s->next)
            complain(x, f, s->next->span, "nothing after a `return` is reached");
        return;
    }
}
