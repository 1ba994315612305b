/* frontend/adopt.c: a compilation takes up another module of its model, one that was read from
 * IR text, so that passes which ask for the model's texts run on it too.  Numbers of states,
 * axes and scopes are the other module's; everything is matched by name. */
#include "frontend/expand.h"

#include <stdlib.h>
#include <string.h>

/* Axes are made anew, by name and size, when a dim is next used as one. */
static void forget_axes(Expander *x) {
    DimTable *tables[] = {&x->globals, &x->plan_dims, &x->recipe_dims};
    for (int t = 0; t < COUNT_OF(tables); t++)
        for (int64_t i = 0; i < tables[t]->dims.count; i++)
            tables[t]->dims.data[i]->axis = -1;
    x->axis_dims.count = 0;
}

/* A parameter stands in the scope that its path continues. */
static void find_state_scopes(Expander *x) {
    const Module *module = x->module;
    StringMap scopes = {0};
    for (ScopeId id = (ScopeId)module->scopes.count - 1; id >= 0; id--)
        string_map_set(&scopes, module->scopes.data[id].path, id);
    x->state_scopes.count = 0;
    for (StateId id = 0; id < module->states.count; id++) {
        const char *path = module->states.data[id].path, *dot = strrchr(path, '.');
        const char *outer = dot ? arena_strndup(x->arena, path, (size_t)(dot - path)) : "";
        array_push(&x->state_scopes, (ScopeId)string_map_get(&scopes, outer, 0));
    }
    string_map_free(&scopes);
}

/* What a plan's selectors may name. */
static void collect_paths(Expander *x) {
    const Module *module = x->module;
    x->scope_paths.count = 0;
    for (ScopeId id = 1; id < module->scopes.count; id++)
        array_push(&x->scope_paths, module->scopes.data[id].path);
}

static void forget_directives(Compilation *c) {
    for (int i = 0; i < c->factorize_count; i++)
        free(c->factorizes[i].weights);
    c->factorize_count = c->recompute_count = 0;
    c->memory = NULL;
    c->memory_bytes = 0;
}

/* Gradients and moments belong to the optimizer of their weight. */
static void group_followers(Module *module) {
    for (StateId id = 0; id < module->states.count; id++) {
        State *state = &module->states.data[id];
        if (state->weight >= 0)
            state->group = module->states.data[state->weight].group;
    }
}

bool compilation_adopt(Compilation *c, Module *module, bool factorizes, bool others) {
    Expander *x = c->expander;
    int errors = error_count(x);
    module_free(c->module);
    c->module = x->module = module;
    x->function = module_find_function(module, "micro");
    if (!x->function) {
        error_in_file(c->diagnostics, module->name, "the module has no function `micro`");
        return false;
    }
    forget_axes(x);
    forget_directives(c);
    find_state_scopes(x);
    collect_paths(x);
    if (factorizes)
        check_factorizes(x);
    if (others) {
        check_other_directives(x);
        settle_precision(c, x->request);
    }
    check_recipe(x);
    group_followers(module);
    return error_count(x) == errors;
}
