/* passes/consume.c: gradients that no slab has to hold.
 *
 *   needs   `micro` with its gradient writes
 *   gives   nothing new where an update needs all gradients at once: to clip by their norm, or to
 *           add up several micro-batches.  Else a weight's optimizer stands in `micro`, behind the
 *           weight's own gradient, which is a value like others and dies there
 *   plan    reads the recipe: that it says so; clip, batch, optimizers
 *   example gradient w += g   ->   w = w - lr * (g / W), grad_squares = sum(g²)
 *
 * The weights are the same bit for bit: the gradient of a slab starts as 0, and 0 + g is g.  A
 * recipe that no text names promises nothing, so its gradients have their slab.  Nor does an
 * optimizer of whole weights (Muon) give up its slab: its products are the update's, where no plan
 * rounds or recomputes them. */
#include "passes/passes.h"

typedef struct Consume {
    PassContext *context;
    Module *module;
    Function *micro;
    Builder b;
    bool *consumed; /* by state: a gradient that needs no slab */
    int64_t states; /* that there were */
    NodeId scale, step, squares;
} Consume;

bool gradients_are_consumed(const PassContext *context, int group) {
    const Recipe *recipe = &context->compilation->recipe;
    return context->for_training && !context->keep_gradients && recipe->is_named &&
           recipe->clip == 0 && recipe->batch == context->compilation->sequences &&
           optimizer_is_elementwise(context->compilation, group);
}

/* ---- what gradients are scaled by ------------------------------------------------------- */

/* 1 / ΣW of the micro-batch, or 1 where nothing is weighed; -1: no one write says what W is. */
static NodeId loss_scale(Consume *c) {
    NodeId weight = -1;
    for (int64_t i = 0; i < c->micro->writes.count; i++) {
        Write write = c->micro->writes.data[i];
        const State *state = &c->module->states.data[write.state];
        if (state->role != ROLE_METRIC || strcmp(state->path, "weight_sum") != 0)
            continue;
        if (weight >= 0)
            return -1;
        weight = write.value;
    }
    if (weight < 0)
        return -1;
    NodeId one = build_const(&c->b, TYPE_F32, 1);
    NodeId nothing = build_2(&c->b, OP_EQ, weight, build_const(&c->b, TYPE_F32, 0));
    return build_2(&c->b, OP_DIV, one, build_3(&c->b, OP_WHERE, nothing, one, weight));
}

static NodeId runtime_scalar(Consume *c, const char *name) {
    return build_scalar(&c->b, function_scalar(c->micro, name));
}

/* ---- one weight ------------------------------------------------------------------------- */

/* The sum of its contributions, in the order of their writes; 0 where the loss does not depend on
 * the weight. */
static NodeId whole_gradient(Consume *c, StateId gradient) {
    const State *state = &c->module->states.data[gradient];
    Builder b = c->b;
    b.adjoint_of = build_state(&c->b, state->weight);
    NodeId sum = -1;
    for (int64_t i = 0; i < c->micro->writes.count; i++) {
        Write write = c->micro->writes.data[i];
        if (write.state == gradient)
            sum = sum < 0 ? write.value : build_2(&b, OP_ADD, sum, write.value);
    }
    return sum >= 0 ? sum : build_expand(&b, build_const(&b, TYPE_F32, 0), state_type(state));
}

static bool consume_gradient(Consume *c, StateId id) {
    State gradient = c->module->states.data[id];
    NodeId value = whole_gradient(c, id);
    NodeId squares = build_squares_sum(&c->b, value, gradient.in, gradient.in_count);
    c->squares = c->squares < 0 ? squares : build_2(&c->b, OP_ADD, c->squares, squares);
    NodeId rate = runtime_scalar(c, recipe_rate_name(c->module->arena, gradient.group));
    NodeId scaled = build_2(&c->b, OP_MUL, value, c->scale);
    return expand_optimizer(c->context->compilation, c->micro, gradient.group, gradient.weight,
                            scaled, rate, c->step);
}

/* ---- the pass --------------------------------------------------------------------------- */

static void drop_consumed_writes(Consume *c) {
    int64_t kept = 0;
    for (int64_t i = 0; i < c->micro->writes.count; i++) {
        Write write = c->micro->writes.data[i];
        if (write.state >= c->states || !c->consumed[write.state])
            c->micro->writes.data[kept++] = write;
    }
    c->micro->writes.count = kept;
}

static bool consume_all(Consume *c) {
    bool done = true;
    c->scale = loss_scale(c);
    if (c->scale < 0) {
        refuse_module(c->context, "consume", "needs one write of the metric `weight_sum`");
        return false;
    }
    c->step = runtime_scalar(c, "step");
    for (StateId id = 0; id < c->states; id++)
        if (c->consumed[id])
            done &= consume_gradient(c, id);
    if (!done)
        return false;
    drop_consumed_writes(c);
    Write write = {.state = module_metric(c->module, GRADIENT_SQUARES), .value = c->squares};
    array_push(&c->micro->writes, write);
    module_drop_states(c->module, c->consumed, c->states);
    return true;
}

bool pass_consume(PassContext *context) {
    Module *module = context->module;
    Function *micro = module_find_function(module, "micro");
    int64_t found = 0;
    if (!micro || !context->for_training)
        return true;
    Consume c = {.context = context,
                 .module = module,
                 .micro = micro,
                 .b = builder(micro),
                 .states = module->states.count,
                 .consumed = checked_alloc((size_t)module->states.count * sizeof(bool)),
                 .squares = -1};
    for (int64_t id = 0; id < c.states; id++) {
        const State *state = &module->states.data[id];
        c.consumed[id] =
            state->role == ROLE_GRADIENT && gradients_are_consumed(context, state->group);
        found += c.consumed[id];
    }
    bool done = !found || consume_all(&c);
    free(c.consumed);
    return done;
}
