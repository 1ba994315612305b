/* passes/tables.c: static values that are costly become states, computed once.
 *
 *   needs   a graph
 *   gives   states of role table, a function `init` that fills them, and `micro` reading them
 *   plan    reads nothing of it
 *   example cos(index(S) * frequency), [S,Q], in the rotation of q becomes `table cos`
 *
 * A kernel would compute a transcendental op as a polynomial, at every element of every use.  A
 * value of constants and indices alone is the same at every step, so `init` computes it in
 * double and rounds once.  A value larger than the transcendental op below it stays in `micro`:
 * reading it would cost more than computing it from the smaller table. */
#include "passes/passes.h"

enum { LEAST_WORK = 16 }; /* of an op that is worth a table: that of transcendental ones */

typedef struct Tables {
    const Function *micro;
    bool *constant;       /* depends on constants and indices alone */
    int64_t *source_size; /* elements of the largest transcendental op below; 0: none */
    bool *live, *table;
} Tables;

static void mark_constant(Tables *t) {
    for (int64_t id = 0; id < t->micro->nodes.count; id++) {
        const Node *node = &t->micro->nodes.data[id];
        t->constant[id] = node->input_count || node->op == OP_CONST || node->op == OP_INDEX;
        for (int i = 0; i < node->input_count; i++) {
            t->constant[id] &= t->constant[node->inputs[i]];
            if (t->source_size[id] < t->source_size[node->inputs[i]])
                t->source_size[id] = t->source_size[node->inputs[i]];
        }
        int64_t elements = type_elements(t->micro->module, node->type);
        if (op_info[node->op].work >= LEAST_WORK && node->type.rank &&
            t->source_size[id] < elements)
            t->source_size[id] = elements;
    }
}

static bool is_worth_a_table(const Tables *t, int64_t id) {
    const Node *node = &t->micro->nodes.data[id];
    return t->constant[id] && t->source_size[id] > 0 && node->type.dtype == TYPE_F32 &&
           type_elements(t->micro->module, node->type) <= t->source_size[id] &&
           node->op != OP_EXPAND && !op_is_view(node->op);
}

/* From the writes down, so that what only a table needs is no table of its own. */
static int64_t choose_tables(Tables *t) {
    int64_t chosen = 0;
    for (int64_t i = 0; i < t->micro->writes.count; i++)
        t->live[t->micro->writes.data[i].value] = true;
    for (int64_t id = t->micro->nodes.count - 1; id >= 0; id--) {
        if (!t->live[id])
            continue;
        const Node *node = &t->micro->nodes.data[id];
        t->table[id] = is_worth_a_table(t, id);
        chosen += t->table[id];
        for (int i = 0; i < node->input_count && !t->table[id]; i++)
            t->live[node->inputs[i]] = true;
    }
    return chosen;
}

/* A state for the values of a node, called like the node or its op. */
static StateId add_table(Module *module, const Node *node) {
    const char *stem = node->name ? node->name : op_info[node->op].name, *path = stem;
    for (int i = 1; module_find_state(module, path, ROLE_TABLE, 0) >= 0; i++)
        path = arena_printf(module->arena, "%s.%d", stem, i);
    State table = {.path = path,
                   .role = ROLE_TABLE,
                   .dtype = TYPE_F32,
                   .out_count = node->type.rank,
                   .order_count = -1,
                   .weight = -1,
                   .offset = -1,
                   .span = node->span};
    memcpy(table.out, node->type.axes, sizeof table.out);
    return module_state(module, table);
}

/* Copies into `init` what tables are computed from.  map: by node of micro, zero-filled. */
static void copy_constants(const Tables *t, Function *init, NodeId *map) {
    bool *needed = checked_alloc((size_t)t->micro->nodes.count * sizeof *needed);
    for (int64_t id = t->micro->nodes.count - 1; id >= 0; id--) {
        const Node *node = &t->micro->nodes.data[id];
        needed[id] |= t->table[id];
        for (int i = 0; i < node->input_count && needed[id]; i++)
            needed[node->inputs[i]] = true;
    }
    for (int64_t id = 0; id < t->micro->nodes.count; id++) {
        if (!needed[id])
            continue;
        Node node = t->micro->nodes.data[id];
        NodeId *inputs = checked_alloc((size_t)node.input_count * sizeof *inputs);
        for (int i = 0; i < node.input_count; i++)
            inputs[i] = map[node.inputs[i]];
        node.inputs = inputs;
        node.adjoint_of = -1;
        map[id] = function_append(init, node);
        free(inputs);
    }
    free(needed);
}

/* Makes the states and `init`, and rebuilds `micro` to read them. */
static void place_tables(const Tables *t, Module *module) {
    Function *init = module_function(module, "init", 0, NULL);
    NodeId *in_init = checked_alloc((size_t)t->micro->nodes.count * sizeof *in_init);
    copy_constants(t, init, in_init);
    Rebuild r = rebuild_begin(module, t->micro);
    Builder b = builder(r.fresh);
    for (int64_t id = 0; id < t->micro->nodes.count; id++) {
        const Node *node = &t->micro->nodes.data[id];
        if (t->table[id]) {
            StateId state = add_table(module, node);
            Write write = {.state = state, .value = in_init[id]};
            array_push(&init->writes, write);
            b.span = node->span;
            r.map[id] = build_state(&b, state);
        } else if (t->live[id]) {
            rebuild_copy(&r, (NodeId)id);
        }
    }
    rebuild_finish(&r);
    free(in_init);
}

bool pass_tables(PassContext *context) {
    Function *micro = module_find_function(context->module, "micro");
    if (!micro || module_find_function(context->module, "init"))
        return true;
    size_t count = (size_t)micro->nodes.count;
    Tables t = {.micro = micro,
                .constant = checked_alloc(count * sizeof *t.constant),
                .source_size = checked_alloc(count * sizeof *t.source_size),
                .live = checked_alloc(count * sizeof *t.live),
                .table = checked_alloc(count * sizeof *t.table)};
    mark_constant(&t);
    if (choose_tables(&t))
        place_tables(&t, context->module);
    free(t.constant);
    free(t.source_size);
    free(t.live);
    free(t.table);
    return true;
}
