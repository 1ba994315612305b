/* passes/update.c: one optimizer step, and the loss alone.
 *
 *   needs   `micro` with its gradient writes
 *   gives   a place in its slab for every state, the functions `update` and `eval`
 *   plan    reads the recipe: optimizers and their groups, clip
 *   example gradient w += g in micro; update: w = w - lr * (g / weight_sum), gradient w = 0
 *
 * An element-wise optimizer does not care where one weight ends and the next begins: it runs
 * over a flat window of the slab that holds its whole group, if all of it have gradients there.
 * Others see one weight at a time. */
#include "passes/passes.h"

enum { SLAB_ALIGNMENT = 16 };                   /* elements: 64 bytes of f32 */
enum { SHORTEST_ROW = 16, LONGEST_ROW = 4096 }; /* of a window when its squares are summed */

typedef struct Update {
    PassContext *context;
    Compilation *compilation;
    Module *module;
    Function *function;
    Builder b;
    NodeId step, gradient_scale; /* a gradient is multiplied by the latter; no axes */
    bool *has_gradient;          /* by weight; else `micro` updates it, or nothing does */
    int group_count;
    struct UpdateGroup {
        int64_t begin, end, row; /* elements of the slab; the window's row */
        int64_t weight_count, gradient_count;
        StateId window, window_gradient; /* -1: weights are updated one by one */
    } * groups;
} Update;
typedef struct UpdateGroup UpdateGroup;

/* ---- places in the slabs ------------------------------------------------------------ */

static int64_t round_up(int64_t number, int64_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
}

/* The largest power of two up to the square root: as many rows as elements in each. */
static int64_t row_of_window(int64_t elements) {
    int64_t row = SHORTEST_ROW;
    while (row < LONGEST_ROW && 4 * row * row <= elements)
        row *= 2;
    return row;
}

/* Gives a state the next place and moves the cursor behind it.  False: past all bounds. */
static bool place_state(const Module *module, State *state, int64_t *cursor) {
    int64_t elements = type_elements(module, state_type(state));
    if (elements > MAX_ELEMENTS - SLAB_ALIGNMENT - *cursor)
        return false;
    state->offset = *cursor;
    *cursor = round_up(*cursor + elements, SLAB_ALIGNMENT);
    return true;
}

static void find_gradients(Update *u) {
    for (int64_t id = 0; id < u->module->states.count; id++) {
        const State *state = &u->module->states.data[id];
        if (state->role == ROLE_WEIGHT)
            u->groups[state->group].weight_count++;
        if (state->role != ROLE_GRADIENT)
            continue;
        u->groups[state->group].gradient_count++;
        u->has_gradient[state->weight] = true;
    }
}

static bool has_all_gradients(const UpdateGroup *at) {
    return at->weight_count > 0 && at->gradient_count == at->weight_count;
}

/* A group's weights as declared: those that have gradients, or those that have none. */
static bool place_some(Update *u, int group, bool with_gradient, int64_t *cursor) {
    Module *module = u->module;
    for (int64_t id = 0; id < module->states.count; id++) {
        State *state = &module->states.data[id];
        if (state->role != ROLE_WEIGHT || state->group != group ||
            u->has_gradient[id] != with_gradient)
            continue;
        if (!place_state(module, state, cursor)) {
            error_at(u->context->diagnostics, state->span,
                     "with `%s` the model has more than 2^60 parameters", state->path);
            return false;
        }
    }
    return true;
}

/* A whole group.  Its end is padded to whole rows of its window. */
static bool place_group(Update *u, int group, int64_t *cursor) {
    UpdateGroup *at = &u->groups[group];
    at->begin = *cursor;
    if (!place_some(u, group, true, cursor))
        return false;
    at->row = row_of_window(*cursor - at->begin);
    at->end = *cursor = at->begin + round_up(*cursor - at->begin, at->row);
    return true;
}

/* Weights that have gradients come first: the gradients' slab then ends with them. */
static bool place_weights(Update *u) {
    int64_t cursor = 0;
    bool done = true;
    for (int group = 0; done && group < u->group_count; group++)
        if (has_all_gradients(&u->groups[group]))
            done = place_group(u, group, &cursor);
    for (int group = 0; done && group < u->group_count; group++)
        if (!has_all_gradients(&u->groups[group]))
            done = place_some(u, group, true, &cursor);
    for (int group = 0; done && group < u->group_count; group++)
        done = place_some(u, group, false, &cursor);
    return done;
}

/* Gradients where their weights are; tables and metrics one after the other. */
static bool place_others(Module *module) {
    int64_t cursors[ROLE_METRIC + 1] = {0};
    for (int64_t id = 0; id < module->states.count; id++) {
        State *state = &module->states.data[id];
        if (state->weight >= 0)
            state->offset = module->states.data[state->weight].offset;
        else if (state->role != ROLE_WEIGHT && !state->flat &&
                 !place_state(module, state, &cursors[state->role]))
            return false;
    }
    return true;
}

/* ---- states of the update itself ---------------------------------------------------- */

StateId module_metric(Module *module, const char *path) {
    return module_state(module, (State){.path = path,
                                        .role = ROLE_METRIC,
                                        .dtype = TYPE_F32,
                                        .order_count = -1,
                                        .weight = -1,
                                        .offset = -1});
}

/* A flat state over the group's range of a slab.  `weight`: -1, or for its gradient. */
static StateId add_window(Update *u, int group, Role role, StateId weight) {
    Module *module = u->module;
    const UpdateGroup *at = &u->groups[group];
    const char *name = arena_printf(module->arena, "slab%d", group), *path = name;
    while (module_find_state(module, path, role, 0) >= 0) /* a parameter of the model's */
        path = arena_printf(module->arena, "%s_", path);
    return module_state(
        module, (State){.path = path,
                        .role = role,
                        .dtype = TYPE_F32,
                        .out_count = 1,
                        .out = {module_axis(module, name, at->end - at->begin, (Span){0})},
                        .order_count = -1,
                        .weight = weight,
                        .group = group,
                        .flat = true,
                        .offset = at->begin});
}

static void add_windows(Update *u) {
    for (int group = 0; group < u->group_count; group++) {
        UpdateGroup *at = &u->groups[group];
        at->window = at->window_gradient = -1;
        if (!has_all_gradients(at) || !optimizer_is_elementwise(u->compilation, group))
            continue;
        at->window = add_window(u, group, ROLE_WEIGHT, -1);
        at->window_gradient = add_window(u, group, ROLE_GRADIENT, at->window);
    }
}

const char *recipe_rate_name(Arena *arena, int group) {
    return group ? arena_printf(arena, "lr_%d", group) : "lr";
}

/* ---- the update's graph ------------------------------------------------------------- */

static void write_state(Update *u, StateId state, NodeId value) {
    Write write = {.state = state, .value = value};
    array_push(&u->function->writes, write);
}

static NodeId number(Update *u, double value) {
    return build_const(&u->b, TYPE_F32, value);
}

static Type type_at(const Update *u, NodeId id) {
    return node_at(u->function, id)->type;
}

static void write_zero(Update *u, StateId state) {
    Type type = state_type(&u->module->states.data[state]);
    write_state(u, state, build_expand(&u->b, number(u, 0), type));
}

NodeId build_squares_sum(Builder *b, NodeId value, const AxisId *first, int count) {
    NodeId rows = build_reduce(b, OP_SUM, build_2(b, OP_MUL, value, value), first, count);
    Type rest = node_at(b->function, rows)->type;
    return build_reduce(b, OP_SUM, rows, rest.axes, rest.rank);
}

/* Σ g² of a group's window, by rows. */
static NodeId window_squares(Update *u, int group) {
    const UpdateGroup *at = &u->groups[group];
    NodeId gradient = build_state(&u->b, at->window_gradient);
    AxisId slab = type_at(u, gradient).axes[0];
    const char *name = u->module->axes.data[slab].name;
    int64_t size = at->end - at->begin;
    AxisId split[2] = {module_axis(u->module, arena_printf(u->module->arena, "%s.rows", name),
                                   size / at->row, (Span){0}),
                       module_axis(u->module, arena_printf(u->module->arena, "%s.row", name),
                                   at->row, (Span){0})};
    return build_squares_sum(&u->b, build_split(&u->b, gradient, slab, split, 2), &split[1], 1);
}

static NodeId add_terms(Update *u, NodeId sum, NodeId term) {
    return sum < 0 ? term : build_2(&u->b, OP_ADD, sum, term);
}

static StateId find_metric(const Update *u, const char *path) {
    return module_find_state(u->module, path, ROLE_METRIC, 0);
}

/* Σ g² over all gradients: of those that micro consumed, as it says. */
static NodeId all_squares(Update *u) {
    StateId consumed = find_metric(u, GRADIENT_SQUARES);
    NodeId sum = consumed < 0 ? -1 : build_state(&u->b, consumed);
    for (int group = 0; group < u->group_count; group++)
        if (u->groups[group].window >= 0)
            sum = add_terms(u, sum, window_squares(u, group));
    for (int64_t id = 0; id < u->module->states.count; id++) {
        State state = u->module->states.data[id];
        if (state.role == ROLE_GRADIENT && !state.flat && u->groups[state.group].window < 0)
            sum = add_terms(u, sum,
                            build_squares_sum(&u->b, build_state(&u->b, (StateId)id), state.in,
                                              state.in_count));
    }
    return sum < 0 ? number(u, 0) : sum;
}

/* Loss and gradient norm, their states; what gradients are scaled by. */
static bool build_scale(Update *u) {
    StateId loss_sum = find_metric(u, "loss_sum"), weight_sum = find_metric(u, "weight_sum");
    if (loss_sum < 0 || weight_sum < 0) {
        refuse_module(u->context, "update", "needs the metrics `loss_sum` and `weight_sum`");
        return false;
    }
    Builder *b = &u->b;
    NodeId one = number(u, 1), weight = build_state(b, weight_sum);
    /* Nothing weighed (all targets masked): a loss of 0 and no step, not 0/0. */
    NodeId nothing = build_2(b, OP_EQ, weight, number(u, 0));
    weight = build_3(b, OP_WHERE, nothing, one, weight);
    NodeId scale = build_2(b, OP_DIV, one, weight);
    NodeId norm = build_2(b, OP_MUL, build_1(b, OP_SQRT, all_squares(u)), scale);
    NodeId loss = build_2(b, OP_DIV, build_state(b, loss_sum), weight);
    write_state(u, module_metric(u->module, "loss"), loss);
    write_state(u, module_metric(u->module, "grad_norm"), norm);
    write_zero(u, loss_sum);
    write_zero(u, weight_sum);
    double clip = u->compilation->recipe.clip;
    if (clip > 0) {
        NodeId safe = build_2(b, OP_ADD, norm, number(u, 1e-6));
        NodeId factor = build_2(b, OP_DIV, number(u, clip), safe);
        scale = build_2(b, OP_MUL, scale, build_2(b, OP_MINIMUM, one, factor));
    }
    u->gradient_scale = scale;
    return true;
}

/* The means over micro-batches of what the model observes. */
static void build_observed(Update *u, NodeId micro_batches) {
    static const char prefix[] = "observe.";
    int64_t count = u->module->states.count;
    for (int64_t id = 0; id < count; id++) {
        State state = u->module->states.data[id];
        if (state.role != ROLE_METRIC || strncmp(state.path, prefix, sizeof prefix - 1) != 0)
            continue;
        const char *name = state.path + sizeof prefix - 1;
        NodeId mean = build_2(&u->b, OP_DIV, build_state(&u->b, (StateId)id), micro_batches);
        write_state(
            u, module_metric(u->module, arena_printf(u->module->arena, "observed.%s", name)),
            mean);
        write_zero(u, (StateId)id);
    }
}

/* The moments of a window are those of its weights: each weight's own, as checkpoints and the
 * interpreter know them. */
static void add_window_moments(Update *u, StateId window_moment) {
    Module *module = u->module;
    State window = module->states.data[window_moment];
    int64_t count = module->states.count;
    for (int64_t id = 0; id < count; id++) {
        State moment = module->states.data[id];
        if (moment.role != ROLE_WEIGHT || moment.flat || moment.group != window.group)
            continue;
        moment.role = ROLE_MOMENT;
        moment.number = window.number;
        moment.init = window.init;
        moment.weight = (StateId)id;
        module_state(module, moment);
    }
}

/* The optimizer over one state; its moments lie where the state does. */
static bool optimize(Update *u, int group, StateId weight, StateId gradient) {
    int64_t known = u->module->states.count;
    NodeId scaled = build_2(&u->b, OP_MUL, build_state(&u->b, gradient), u->gradient_scale);
    NodeId rate = build_scalar(&u->b, 1 + group);
    if (!expand_optimizer(u->compilation, u->function, group, weight, scaled, rate, u->step))
        return false;
    State at = u->module->states.data[weight];
    int64_t end = u->module->states.count;
    for (int64_t id = known; id < end; id++) {
        State *moment = &u->module->states.data[id];
        moment->offset = at.offset;
        moment->flat = at.flat;
        moment->group = group;
        if (at.flat)
            add_window_moments(u, (StateId)id);
    }
    write_zero(u, gradient);
    return true;
}

static bool optimize_group(Update *u, int group) {
    const UpdateGroup *at = &u->groups[group];
    if (at->window >= 0)
        return optimize(u, group, at->window, at->window_gradient);
    bool done = true;
    int64_t count = u->module->states.count;
    for (int64_t id = 0; id < count; id++) {
        State state = u->module->states.data[id];
        if (state.role == ROLE_GRADIENT && !state.flat && state.group == group)
            done &= optimize(u, group, state.weight, (StateId)id);
    }
    return done;
}

static bool build_update(Update *u) {
    Arena *arena = u->module->arena;
    int scalar_count = u->group_count + 2;
    const char **scalars = arena_alloc_array(arena, (size_t)scalar_count, sizeof *scalars);
    scalars[0] = "step";
    for (int group = 0; group < u->group_count; group++)
        scalars[1 + group] = recipe_rate_name(arena, group);
    scalars[scalar_count - 1] = "micro_batches";
    u->function = module_function(u->module, "update", scalar_count, scalars);
    u->b = builder(u->function);
    u->step = build_scalar(&u->b, 0);
    if (!build_scale(u))
        return false;
    NodeId micro_batches = build_scalar(&u->b, scalar_count - 1);
    build_observed(u, build_cast(&u->b, micro_batches, TYPE_F32));
    bool done = true;
    for (int group = 0; group < u->group_count; group++)
        done &= optimize_group(u, group);
    return done;
}

/* ---- the loss alone ----------------------------------------------------------------- */

static bool is_loss_write(const Module *module, const Write *write) {
    const State *state = &module->states.data[write->state];
    return state->role == ROLE_METRIC &&
           (strcmp(state->path, "loss_sum") == 0 || strcmp(state->path, "weight_sum") == 0);
}

/* A copy of what the loss needs of `micro`. */
static void build_eval(Module *module, const Function *micro) {
    Function *eval = module_function(module, "eval", (int)micro->scalar_count, micro->scalars);
    size_t count = (size_t)micro->nodes.count;
    bool *needed = checked_alloc(count * sizeof *needed);
    NodeId *map = checked_alloc(count * sizeof *map);
    for (int64_t i = 0; i < micro->writes.count; i++)
        if (is_loss_write(module, &micro->writes.data[i]))
            needed[micro->writes.data[i].value] = true;
    for (int64_t id = micro->nodes.count - 1; id >= 0; id--)
        for (int i = 0; needed[id] && i < micro->nodes.data[id].input_count; i++)
            needed[micro->nodes.data[id].inputs[i]] = true;
    for (int64_t id = 0; id < micro->nodes.count; id++) {
        if (!needed[id])
            continue;
        Node node = micro->nodes.data[id];
        NodeId *inputs = checked_alloc((size_t)node.input_count * sizeof *inputs);
        for (int i = 0; i < node.input_count; i++)
            inputs[i] = map[node.inputs[i]];
        node.inputs = inputs;
        node.adjoint_of = -1;
        map[id] = function_append(eval, node);
        free(inputs);
    }
    for (int64_t i = 0; i < micro->writes.count; i++) {
        Write write = micro->writes.data[i];
        write.value = map[write.value];
        if (is_loss_write(module, &micro->writes.data[i]))
            array_push(&eval->writes, write);
    }
    free(needed);
    free(map);
}

/* `micro` as the whole program of an evaluation.  The next pass drops what no write reaches. */
static void turn_into_eval(Module *module, Function *micro) {
    int64_t kept = 0;
    for (int64_t i = 0; i < micro->writes.count; i++)
        if (is_loss_write(module, &micro->writes.data[i]))
            micro->writes.data[kept++] = micro->writes.data[i];
    micro->writes.count = kept;
    micro->name = "eval";
}

/* ---- the pass ----------------------------------------------------------------------- */

bool pass_update(PassContext *context) {
    Module *module = context->module;
    Function *micro = module_find_function(module, "micro");
    if (!micro || module_find_function(module, "update")) {
        refuse_module(context, "update", "%s",
                      micro ? "the module has an update already" : "needs a function `micro`");
        return false;
    }
    if (context->for_training && !gradients_may_be_consumed(context) &&
        module_find_state(module, GRADIENT_SQUARES, ROLE_METRIC, 0) >= 0) {
        refuse_module(context, "update",
                      "gradients are consumed in `micro`, where the recipe wants to have them");
        return false;
    }
    Update u = {.context = context, .compilation = context->compilation, .module = module};
    u.group_count = u.compilation->recipe.group_count;
    u.groups = checked_alloc((size_t)u.group_count * sizeof *u.groups);
    u.has_gradient = checked_alloc((size_t)module->states.count);
    find_gradients(&u);
    bool done = place_weights(&u);
    if (done && context->for_training) {
        add_windows(&u);
        done = build_update(&u);
        build_eval(module, micro);
    } else if (done) {
        turn_into_eval(module, micro);
    }
    if (done && !place_others(module)) {
        refuse_module(context, "update", "the tables have more than 2^60 elements");
        done = false;
    }
    free(u.groups);
    free(u.has_gradient);
    return done;
}
