/* passes/recompute.c: what the backward part reads of the forward part.
 *
 * needs   a graph with gradients in `micro`, its names
 * gives   a clone for every forward value that the backward part needs and that is not kept
 * plan    reads `recompute SCOPE keep NAMES` and `memory N`
 * example recompute layer[*] keep low, where dB = dot(low, y_adj) and pre_adj = low_adj *
 *         silu'(pre): pre_adj reads a clone of pre = dot(x, A), and x, which the caller owns;
 *         dot(low, B) is needed by nobody and is not made again
 *
 * A value belongs to the innermost block instance that made it and did not return it. */
#include "passes/passes.h"

bool *forward_part(const Function *function) {
    size_t count = (size_t)function->nodes.count;
    bool *forward = checked_alloc(count * sizeof *forward);
    bool *behind = checked_alloc(count * sizeof *behind); /* computed from an adjoint */
    for (size_t id = 0; id < count; id++) {
        const Node *node = &function->nodes.data[id];
        behind[id] = node->adjoint_of >= 0;
        for (int i = 0; i < node->input_count; i++)
            behind[id] |= behind[node->inputs[i]];
    }
    for (int64_t i = 0; i < function->writes.count; i++) {
        const Write *write = &function->writes.data[i];
        if (function->module->states.data[write->state].role == ROLE_METRIC &&
            !behind[write->value])
            forward[write->value] = true;
    }
    for (int64_t id = function->nodes.count - 1; id >= 0; id--) {
        const Node *node = &function->nodes.data[id];
        for (int i = 0; i < node->input_count && forward[id]; i++)
            forward[node->inputs[i]] = true;
    }
    free(behind);
    return forward;
}

/* ---- whose a value is ---------------------------------------------------------------- */

ScopeId *value_owners(const Function *function, Arena *arena) {
    size_t nodes = (size_t)function->nodes.count;
    ScopeId *owners = arena_alloc_array(arena, nodes, sizeof *owners);
    for (size_t id = 0; id < nodes; id++)
        owners[id] = function->nodes.data[id].scope;
    for (bool changed = true;
         changed;) { /* an inner instance may be listed behind an outer one */
        changed = false;
        for (int64_t i = 0; i < function->names.count; i++) {
            const NamedValue *value = &function->names.data[i];
            if (strcmp(value->name, "out") != 0 || owners[value->node] != value->scope)
                continue;
            owners[value->node] = function->module->scopes.data[value->scope].parent;
            changed = true;
        }
    }
    return owners;
}

/* ---- what the plan says --------------------------------------------------------------- */

typedef struct Selection {
    const Compilation *compilation;
    const Module *module;
    bool **matched;   /* by directive, by scope: is it a matched instance? */
    bool *recomputed; /* by scope: is it inside one, of any directive? */
} Selection;

/* A scope comes after the one around it. */
static Selection select_scopes(const PassContext *context, Arena *arena) {
    const Compilation *c = context->compilation;
    Selection s = {.compilation = c, .module = context->module};
    size_t scopes = (size_t)s.module->scopes.count;
    s.recomputed = arena_alloc(arena, scopes);
    s.matched = arena_alloc_array(arena, (size_t)c->recompute_count, sizeof *s.matched);
    for (int d = 0; d < c->recompute_count; d++) {
        s.matched[d] = arena_alloc(arena, scopes);
        for (size_t i = 1; i < scopes; i++) {
            s.matched[d][i] =
                recompute_matches(c, c->recomputes[d], s.module->scopes.data[i].path);
            s.recomputed[i] |= s.matched[d][i];
        }
    }
    for (size_t i = 1; i < scopes; i++)
        s.recomputed[i] |= s.recomputed[s.module->scopes.data[i].parent];
    return s;
}

/* Does a directive keep the value by this name, read within one of its instances? */
static bool is_kept_by_name(const Selection *s, const NamedValue *value) {
    const Scope *scopes = s->module->scopes.data;
    Text path = {0};
    text_printf(&path, "%s%s%s", scopes[value->scope].path, value->scope ? "." : "",
                value->name);
    bool kept = false;
    for (int d = 0; d < s->compilation->recompute_count; d++)
        for (ScopeId scope = value->scope; scope > 0 && !kept; scope = scopes[scope].parent)
            kept = s->matched[d][scope] &&
                   recompute_keeps(s->compilation, s->compilation->recomputes[d],
                                   text_string(&path) + strlen(scopes[scope].path) + 1);
    text_free(&path);
    return kept;
}

/* A view is had from what lies below it. */
static void keep_with_its_memory(const Function *micro, bool *kept, NodeId id) {
    while (!kept[id]) {
        kept[id] = true;
        const Node *node = node_at(micro, id);
        if (node_is_view(node))
            id = node->inputs[0];
    }
}

KeepChoice recompute_choice(const PassContext *context, const Function *micro, Arena *arena) {
    size_t nodes = (size_t)micro->nodes.count;
    KeepChoice choice = {micro->nodes.count, arena_alloc(arena, nodes)};
    Selection s = select_scopes(context, arena);
    ScopeId *owners = value_owners(micro, arena);
    bool *forward = forward_part(micro);
    for (size_t id = 0; id < nodes; id++)
        if (forward[id] && !s.recomputed[owners[id]])
            keep_with_its_memory(micro, choice.kept, (NodeId)id);
    free(forward);
    for (int64_t i = 0; i < micro->names.count; i++)
        if (s.recomputed[micro->names.data[i].scope] &&
            is_kept_by_name(&s, &micro->names.data[i]))
            keep_with_its_memory(micro, choice.kept, micro->names.data[i].node);
    return choice;
}

double published_recompute_flops(const PassContext *context, const Function *micro) {
    Arena *arena = arena_new();
    bool *forward = forward_part(micro);
    KeepChoice choice = recompute_choice(context, micro, arena);
    double flops = 0;
    for (int64_t id = 0; id < micro->nodes.count; id++)
        if (micro->nodes.data[id].op == OP_DOT && forward[id] && !choice.kept[id])
            flops += node_flops(micro, &micro->nodes.data[id]);
    free(forward);
    arena_free(arena);
    return flops;
}

/* ---- clones --------------------------------------------------------------------------- */

typedef struct Cloning {
    Rebuild rebuild;
    const KeepChoice *choice;
    const bool *forward;
    NodeId *available; /* by forward node: what the backward part reads for it; -1: not known */
    ARRAY(NodeId) pending;
} Cloning;

/* Leaves are read where they are; constants and what follows from them are made anew there. */
static bool is_always_available(const Cloning *c, NodeId id) {
    const Node *node = node_at(c->rebuild.old, id);
    return !c->forward[id] || node->input_count == 0 || node->is_static || node->on_host ||
           c->choice->kept[id];
}

/* Copies the node with what is available of its inputs. */
static NodeId copy_with_available(Cloning *c, NodeId id) {
    const Node *node = node_at(c->rebuild.old, id);
    NodeId few[8], *saved = node->input_count <= COUNT_OF(few)
                                ? few
                                : checked_alloc((size_t)node->input_count * sizeof *saved);
    NodeId *map = c->rebuild.map, before = map[id];
    for (int i = 0; i < node->input_count; i++)
        saved[i] = map[node->inputs[i]];
    for (int i = 0; i < node->input_count; i++)
        if (c->forward[node->inputs[i]])
            map[node->inputs[i]] = c->available[node->inputs[i]];
    NodeId copy = rebuild_copy(&c->rebuild, id);
    map[id] = before;
    for (int i = node->input_count - 1; i >= 0; i--)
        map[node->inputs[i]] = saved[i];
    if (saved != few)
        free(saved);
    return copy;
}

static NodeId clone_of(Cloning *c, NodeId id) {
    const Node *node = node_at(c->rebuild.old, id);
    bool moved = !node_is_view(node); /* a view of what is there is there */
    for (int i = 0; i < node->input_count; i++)
        moved |= c->available[node->inputs[i]] != c->rebuild.map[node->inputs[i]];
    if (!moved)
        return c->rebuild.map[id];
    Function *fresh = c->rebuild.fresh;
    NodeId few[8], *inputs = node->input_count <= COUNT_OF(few)
                                 ? few
                                 : checked_alloc((size_t)node->input_count * sizeof *inputs);
    for (int i = 0; i < node->input_count; i++)
        inputs[i] = c->available[node->inputs[i]];
    Builder b = builder(fresh);
    b.scope = node->scope;
    b.clone = 1;
    b.span = node->span;
    NodeId clone = build(&b, node->op, node->type.dtype, node->attr, inputs, node->input_count);
    fresh->nodes.data[clone].original = c->rebuild.map[id];
    fresh->nodes.data[clone].name = node->name;
    if (inputs != few)
        free(inputs);
    return clone;
}

/* What the backward part reads for a forward value, with all that this takes.  The depth of a
 * block has no bound, so the values to be made wait on a list. */
static void make_available(Cloning *c, NodeId wanted) {
    array_push(&c->pending, wanted);
    while (c->pending.count) {
        NodeId id = c->pending.data[c->pending.count - 1];
        if (c->available[id] < 0 && is_always_available(c, id))
            c->available[id] = c->rebuild.map[id];
        const Node *node = node_at(c->rebuild.old, id);
        int64_t waiting = c->pending.count;
        for (int i = 0; i < node->input_count && c->available[id] < 0; i++)
            if (c->available[node->inputs[i]] < 0)
                array_push(&c->pending, node->inputs[i]);
        if (c->pending.count > waiting)
            continue;
        if (c->available[id] < 0)
            c->available[id] = clone_of(c, id);
        c->pending.count--;
    }
}

static bool needs_clones(const Function *micro, const KeepChoice *choice, const bool *forward) {
    for (int64_t id = 0; id < micro->nodes.count; id++)
        if (forward[id] && !choice->kept[id])
            return true;
    return false;
}

void recompute_rewrite(Module *module, const KeepChoice *choice) {
    Function *micro = module_find_function(module, "micro");
    INTERNAL_CHECK(choice->count == micro->nodes.count);
    bool *forward = forward_part(micro);
    if (!needs_clones(micro, choice, forward)) {
        free(forward);
        return;
    }
    Cloning c = {.rebuild = rebuild_begin(module, micro), .choice = choice, .forward = forward};
    c.available = checked_alloc((size_t)micro->nodes.count * sizeof *c.available);
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        c.available[id] = -1;
        if (forward[id])
            rebuild_copy(&c.rebuild, id);
    }
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        if (forward[id])
            continue;
        const Node *node = node_at(micro, id);
        for (int i = 0; i < node->input_count; i++)
            if (forward[node->inputs[i]])
                make_available(&c, node->inputs[i]);
        NodeId copy = copy_with_available(&c, id);
        if (node->adjoint_of >= 0) /* of the original, also where its clone is an operand */
            c.rebuild.fresh->nodes.data[copy].adjoint_of = c.rebuild.map[node->adjoint_of];
        c.rebuild.map[id] = copy;
    }
    rebuild_finish(&c.rebuild);
    array_free(&c.pending);
    free(c.available);
    free(forward);
}

/* ---- the pass ------------------------------------------------------------------------- */

bool pass_recompute(PassContext *context) {
    const Compilation *compilation = context->compilation;
    const Function *micro = module_find_function(context->module, "micro");
    if (!micro || (!compilation->recompute_count && !compilation->memory_bytes))
        return true; /* an evaluation keeps nothing */
    Arena *arena = arena_new();
    KeepChoice choice = recompute_choice(context, micro, arena);
    bool fine = !compilation->memory_bytes || budget_choose(context, &choice, arena);
    if (fine)
        recompute_rewrite(context->module, &choice);
    arena_free(arena);
    return fine;
}
