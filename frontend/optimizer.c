/* frontend/optimizer.c: an optimizer's text over one state.  `p` and `g` are the parameter and
 * its gradient; names of states give their old values; `next` writes. */
#include "frontend/expand.h"

#include <stdlib.h>
#include <string.h>

typedef struct OptimizerRun {
    StateId weight;
    AxisList in, out; /* of a matrix optimizer: one axis each, in the text's view */
    bool matrix;
    int32_t state_count; /* moments so far */
    ARRAY(Name) states;  /* by number; ids in `ids` */
    ARRAY(StateId) ids;
    ARRAY(const char *) written;
} OptimizerRun;

/* ---- the form of the text -------------------------------------------------------- */

const TypeExpr *optimizer_matrix(const Item *item) {
    return item->parameters ? item->parameters->type : NULL;
}

bool check_optimizer(Expander *x, const Item *item) {
    const Parameter *p = item->parameters, *g = p ? p->next : NULL;
    bool formed =
        g && p->group == 0 && g->group == 0 && !g->type && (!g->next || g->next->group > 0);
    bool has_rate = false;
    for (const Parameter *q = g ? g->next : NULL; q; q = q->next)
        has_rate |= strcmp(q->name.text, "lr") == 0;
    const TypeExpr *type = formed ? p->type : NULL;
    bool matrix =
        !type || (!type->is_int && !type->open && type->axis_count == 2 && type->arrow_at == 1);
    if (formed && has_rate && matrix)
        return true;
    Diagnostic *d = complain(x, NULL, item->name.span, "`%s` is not formed as an optimizer",
                             item->name.text);
    help(d, "write `optimizer %s(p, g; lr = …)`, or `p: [I -> O]` for matrices alone",
         item->name.text);
    return false;
}

bool optimizer_is_elementwise(const Compilation *compilation, int recipe_group) {
    const Item *item = compilation->recipe.groups[recipe_group].optimizer;
    return !optimizer_matrix(item) &&
           !statements_cross_elements(compilation->expander, item->body);
}

/* ---- between the state's axes and the text's ------------------------------------- */

static AxisId matrix_axis(Expander *x, Frame *f, Name name, const AxisId *axes, int count) {
    AxisId axis = axes[0];
    if (count > 1) {
        int64_t size = axes_elements(x->module, axes, count);
        Dim *dim = bind_number(x, f, name, number_integer(size), name.span)->dim;
        return (AxisId)dim_axis(x, dim, name.span);
    }
    Binding *binding = frame_bind(f, name, BIND_AXES);
    binding->axes = (AxisList){1, {axis}};
    return axis;
}

static NodeId to_matrix(Expander *x, const Frame *f, NodeId node) {
    const OptimizerRun *run = f->optimizer;
    if (!run->matrix)
        return node;
    const State *weight = &x->module->states.data[run->weight];
    Builder b = builder_at(x, f, weight->span);
    if (weight->in_count > 1)
        node = build_merge(&b, node, weight->in, weight->in_count, run->in.axes[0]);
    if (weight->out_count > 1)
        node = build_merge(&b, node, weight->out, weight->out_count, run->out.axes[0]);
    return node;
}

static NodeId from_matrix(Expander *x, const Frame *f, NodeId node) {
    const OptimizerRun *run = f->optimizer;
    if (!run->matrix)
        return node;
    const State *weight = &x->module->states.data[run->weight];
    Builder b = builder_at(x, f, weight->span);
    if (weight->in_count > 1)
        node = build_split(&b, node, run->in.axes[0], weight->in, weight->in_count);
    if (weight->out_count > 1)
        node = build_split(&b, node, run->out.axes[0], weight->out, weight->out_count);
    return node;
}

static Type text_type(const Expander *x, const OptimizerRun *run) {
    if (!run->matrix)
        return state_type(&x->module->states.data[run->weight]);
    AxisId axes[] = {run->in.axes[0], run->out.axes[0]};
    return type_of(TYPE_F32, axes, 2);
}

/* ---- state and next -------------------------------------------------------------- */

static bool in_optimizer(Expander *x, Frame *f, const Statement *s, const char *what) {
    if (f->item->kind == ITEM_OPTIMIZER && f->optimizer)
        return true;
    complain(x, f, s->span, "`%s` stands in an optimizer only", what);
    return false;
}

void optimizer_state(Expander *x, Frame *f, const Statement *s) {
    Init init;
    if (!in_optimizer(x, f, s, "state") || !parse_init(x, f, s, &init))
        return;
    OptimizerRun *run = f->optimizer;
    for (int i = 0; i < s->name_count; i++) {
        if (frame_find(f, s->names[i].text)) {
            complain(x, f, s->names[i].span, "`%s` already has a value here", s->names[i].text);
            continue;
        }
        State moment = x->module->states.data[run->weight];
        moment.role = ROLE_MOMENT;
        moment.number = run->state_count++;
        moment.weight = run->weight;
        moment.init = init;
        moment.span = s->names[i].span;
        StateId id = module_state(x->module, moment);
        array_push(&run->states, s->names[i]);
        array_push(&run->ids, id);
        Builder b = builder_at(x, f, s->names[i].span);
        bind_value(f, s->names[i], tensor_value(to_matrix(x, f, build_state(&b, id))));
    }
}

static StateId written_state(const Frame *f, const char *name) {
    const OptimizerRun *run = f->optimizer;
    if (strcmp(name, f->item->parameters->name.text) == 0)
        return run->weight;
    for (int64_t i = 0; i < run->states.count; i++)
        if (strcmp(run->states.data[i].text, name) == 0)
            return run->ids.data[i];
    return -1;
}

static bool claim_next(Expander *x, Frame *f, const Statement *s) {
    OptimizerRun *run = f->optimizer;
    for (int64_t i = 0; i < run->written.count; i++)
        if (strcmp(run->written.data[i], s->names[0].text) == 0) {
            complain(x, f, s->names[0].span, "the next `%s` is given twice", s->names[0].text);
            return false;
        }
    array_push(&run->written, s->names[0].text);
    return true;
}

void optimizer_next(Expander *x, Frame *f, const Statement *s) {
    if (!in_optimizer(x, f, s, "next"))
        return;
    StateId state = written_state(f, s->names[0].text);
    Value value = eval(x, f, s->value);
    if (state < 0) {
        Diagnostic *d = complain(x, f, s->names[0].span, "`%s` is no state of `%s`",
                                 s->names[0].text, f->item->name.text);
        help(d, "declare it: `state %s ~ zeros`", s->names[0].text);
        return;
    }
    if (!claim_next(x, f, s) || value.kind == VALUE_POISON)
        return;
    Type wanted = text_type(x, f->optimizer);
    NodeId node = node_of(x, f, s->value->span, value, TYPE_F32);
    Type type = node_at(x->function, node)->type;
    if (!type_contains(wanted, type)) {
        Diagnostic *d = complain(x, f, s->value->span,
                                 "the next `%s` has axes %s, and `%s` has %s", s->names[0].text,
                                 axes_text(x, type), s->names[0].text, axes_text(x, wanted));
        explain_difference(x, d, wanted, s->value, type);
        return;
    }
    Builder b = builder_at(x, f, s->span);
    node = from_matrix(x, f, build_expand(&b, node, wanted));
    Write write = {.state = state, .value = node};
    array_push(&x->function->writes, write);
}

/* ---- one run --------------------------------------------------------------------- */

static void bind_hyperparameters(Expander *x, Frame *f, const Item *item, int group,
                                 NodeId rate) {
    const Number *values = recipe_hyperparameters(x, group);
    for (const Parameter *p = item->parameters; p; p = p->next, values++) {
        if (p->group == 0)
            continue;
        if (strcmp(p->name.text, "lr") == 0)
            bind_value(f, p->name, tensor_value(rate));
        else
            bind_number(x, f, p->name, *values, p->name.span);
    }
}

static void bind_parameter(Expander *x, Frame *f, const Item *item, NodeId gradient) {
    OptimizerRun *run = f->optimizer;
    const TypeExpr *type = optimizer_matrix(item);
    State weight = x->module->states.data[run->weight];
    run->matrix = type != NULL;
    if (type) {
        INTERNAL_CHECK(weight.in_count > 0 && weight.out_count > 0);
        run->in = (AxisList){1, {matrix_axis(x, f, type->axes[0], weight.in, weight.in_count)}};
        run->out =
            (AxisList){1, {matrix_axis(x, f, type->axes[1], weight.out, weight.out_count)}};
    }
    Builder b = builder_at(x, f, item->name.span);
    const Parameter *p = item->parameters, *g = p->next;
    bind_value(f, p->name, tensor_value(to_matrix(x, f, build_state(&b, run->weight))));
    bind_value(f, g->name, tensor_value(to_matrix(x, f, gradient)));
}

bool expand_optimizer(Compilation *compilation, Function *function, int recipe_group,
                      StateId weight, NodeId gradient, NodeId rate, NodeId step) {
    Expander *x = compilation->expander;
    const Item *item = compilation->recipe.groups[recipe_group].optimizer;
    int errors = error_count(x);

    x->function = function;
    x->most_nodes = MAX_NODES;
    OptimizerRun run = {.weight = weight};
    Frame frame = frame_begin(NULL, item, &x->globals);
    frame.optimizer = &run;
    bind_parameter(x, &frame, item, gradient);
    bind_hyperparameters(x, &frame, item, recipe_group, rate);
    if (!frame_find(&frame, "step"))
        bind_value(&frame, (Name){.text = "step"}, tensor_value(step));
    execute_body(x, &frame, item->body);
    bool moved = false;
    for (int64_t i = 0; i < run.written.count; i++)
        moved |= strcmp(run.written.data[i], item->parameters->name.text) == 0;
    if (!moved && error_count(x) == errors && !x->exhausted)
        complain(x, NULL, item->name.span, "`%s` never gives the next `%s`", item->name.text,
                 item->parameters->name.text);
    array_free(&run.states);
    array_free(&run.ids);
    array_free(&run.written);
    frame_end(&frame);
    return error_count(x) == errors && !x->exhausted;
}
