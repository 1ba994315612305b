/* passes/consume.c: gradients that no slab has to hold.
 *
 *   needs   `micro` with its gradient writes
 *   gives   nothing new where an update needs all gradients at once: to clip by their norm, or to
 *           add up several micro-batches.  Else a weight's optimizer stands in `micro`, behind the
 *           weight's own gradient, which is a value like others and dies there
 *   plan    reads the recipe: that it says so; clip, batch, optimizers
 *   example gradient w += g   ->   w = w - lr * (g / W), grad_squares = sum(g²)
 *
 * A slab keeps the gradients
 *   of a recipe that no text names, which promises nothing;
 *   of several contributions: a weight that is used twice.  There each is added as it is made, where
 *     a sum at the end would keep all of them alive until then;
 *   that are forward values themselves, of which a plan may say other things than of gradients;
 *   of an optimizer of whole weights (Muon): its products are the update's, where no plan rounds or
 *     recomputes them.
 * So the weights are the same bit for bit: the gradient of a slab starts as 0, and 0 + g is g
 * (of a negative zero 0, which the optimizers of the library cannot tell). */
#include "passes/passes.h"

typedef struct Consume {
    PassContext *context;
    Module *module;
    Function *micro;
    Builder b;
    int64_t states;       /* that there were */
    NodeId *contribution; /* by state: what is written to it; -1 */
    bool *consumed;       /* by state: a gradient that needs no slab */
    NodeId scale, step, squares;
} Consume;

bool gradients_may_be_consumed(const PassContext *context) {
    const Recipe *recipe = &context->compilation->recipe;
    return context->for_training && !context->keep_gradients && recipe->is_named &&
           recipe->clip == 0 && recipe->batch == context->compilation->sequences;
}

/* ---- which ------------------------------------------------------------------------------ */

/* Finds the contributions, and sets `consumed`.  How many gradients that are. */
static int64_t choose_gradients(Consume *c) {
    int64_t found = 0;
    int32_t *contributions = checked_alloc((size_t)c->states * sizeof *contributions);
    for (int64_t i = 0; i < c->micro->writes.count; i++) {
        const Write *write = &c->micro->writes.data[i];
        contributions[write->state]++;
        c->contribution[write->state] = write->value;
    }
    for (StateId id = 0; id < c->states; id++) {
        const State *state = &c->module->states.data[id];
        NodeId root = contributions[id] ? c->contribution[id] : -1;
        while (root >= 0 && node_is_view(node_at(c->micro, root)))
            root = node_at(c->micro, root)->inputs[0];
        c->consumed[id] = state->role == ROLE_GRADIENT && contributions[id] <= 1 &&
                          (root < 0 || node_at(c->micro, root)->adjoint_of >= 0) &&
                          optimizer_is_elementwise(c->context->compilation, state->group);
        found += c->consumed[id];
    }
    free(contributions);
    return found;
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

static bool consume_gradient(Consume *c, StateId id) {
    State gradient = c->module->states.data[id]; /* a copy: moments are added to the states */
    NodeId value = c->contribution[id];
    if (value < 0) /* the loss does not depend on the weight */
        value = build_expand(&c->b, build_const(&c->b, TYPE_F32, 0), state_type(&gradient));
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
    c->scale = loss_scale(c);
    if (c->scale < 0) {
        refuse_module(c->context, "consume", "needs one write of the metric `weight_sum`");
        return false;
    }
    c->step = runtime_scalar(c, "step");
    for (StateId id = 0; id < c->states; id++)
        if (c->consumed[id] && !consume_gradient(c, id))
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
    if (!micro || !gradients_may_be_consumed(context))
        return true;
    if (module_find_function(module, "update")) {
        refuse_module(context, "consume", "the module has an update already");
        return false;
    }
    size_t states = (size_t)module->states.count;
    Consume c = {.context = context,
                 .module = module,
                 .micro = micro,
                 .b = builder(micro),
                 .states = module->states.count,
                 .contribution = checked_alloc(states * sizeof(NodeId)),
                 .consumed = checked_alloc(states * sizeof(bool)),
                 .squares = -1};
    for (size_t id = 0; id < states; id++)
        c.contribution[id] = -1;
    bool done = !choose_gradients(&c) || consume_all(&c);
    free(c.contribution);
    free(c.consumed);
    return done;
}
