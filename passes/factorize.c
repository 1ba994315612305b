/* passes/factorize.c: the plan's block in the place of a weight's one product.
 *
 *   needs   the graph as the front end gives it, of which it checked that every weight that a
 *           directive names is read once, by a dot over exactly its inputs
 *   gives   dot(x, W; inputs of W) replaced by the block's value; the block's parameters in the
 *           place of W among the states
 *   plan    `factorize SELECTOR with BLOCK(arguments)`; a later directive wins over an earlier
 *           one
 *   example q = dot(x, wq; D) under `factorize **.wq with cola(R)`
 *           becomes q = dot(silu(dot(x, wq.A; D)), wq.B; R)
 *
 * The block's text is the front end's (expand_factorized); here it is put where it goes. */
#include "passes/passes.h"

#include <math.h>

/* What becomes of one weight. */
typedef struct Replacement {
    const Factorize *by;  /* NULL: the weight stays */
    NodeId read, product; /* its one read and the dot that reads it; -1 */
    int uses;
    StateId first, end; /* the states of its block */
} Replacement;

typedef struct Factorization {
    PassContext *context;
    Module *module;
    const Function *micro;
    Replacement *replacements; /* by state */
    int64_t state_count;       /* before any was added */
} Factorization;

/* ---- where it applies --------------------------------------------------------------- */

static void choose_directives(Factorization *f) {
    const Compilation *compilation = f->context->compilation;
    for (int i = 0; i < compilation->factorize_count; i++) {
        const Factorize *factorize = &compilation->factorizes[i];
        for (int j = 0; j < factorize->weight_count; j++)
            f->replacements[factorize->weights[j]].by = factorize;
    }
}

/* What nothing reads is no use: the front end has not taken it away. */
static void find_uses(Factorization *f) {
    bool *live = live_nodes(f->micro);
    for (int64_t id = 0; id < f->micro->nodes.count; id++) {
        const Node *node = &f->micro->nodes.data[id];
        for (int i = 0; i < node->input_count && live[id]; i++) {
            const Node *read = node_at(f->micro, node->inputs[i]);
            if (read->op != OP_STATE)
                continue;
            Replacement *replacement = &f->replacements[read->attr.integer];
            replacement->uses++;
            replacement->read = node->inputs[i];
            replacement->product = (NodeId)id;
        }
    }
    free(live);
}

static NodeId other_operand(const Replacement *replacement, const Node *product) {
    return product->inputs[product->inputs[0] == replacement->read];
}

/* Two factorized weights cannot be each other's x.  Passes that ran before, on IR text, may
 * have taken away the one use that was there. */
static bool check_operands(const Factorization *f, StateId weight) {
    const Replacement *replacement = &f->replacements[weight];
    if (replacement->uses != 1 || node_at(f->micro, replacement->product)->op != OP_DOT) {
        refuse_module(f->context, "factorize", "`%s` is not used once, in a dot",
                      f->module->states.data[weight].path);
        return false;
    }
    const Node *product = node_at(f->micro, replacement->product);
    const Node *x = node_at(f->micro, other_operand(replacement, product));
    if (x->op != OP_STATE || !f->replacements[x->attr.integer].by)
        return true;
    const State *states = f->module->states.data;
    Diagnostic *error = error_at(
        f->context->diagnostics, replacement->by->directive->span,
        "`factorize` cannot replace `%s`: it is multiplied by `%s`, which is replaced too",
        states[weight].path, states[x->attr.integer].path);
    note_at(error, product->span, "it is used here");
    return false;
}

/* ---- rewriting ---------------------------------------------------------------------- */

/* A product that is bound to a name in its block is that block's value, and what replaces it is
 * then too; renumber_states enters the node under its new scope.  (An existing value, which a
 * block may return as well, has its own name and place.) */
static void take_name(Function *fresh, NodeId value, int64_t known, const Node *product) {
    if (!product->name || value < known)
        return;
    Node *node = &fresh->nodes.data[value];
    node->name = product->name;
    node->scope = product->scope;
    node->ordinal = product->ordinal;
}

static bool replace_product(Factorization *f, Rebuild *r, NodeId id, StateId weight) {
    Replacement *replacement = &f->replacements[weight];
    const Node *product = node_at(r->old, id);
    int64_t known = r->fresh->nodes.count;
    replacement->first = (StateId)f->module->states.count;
    NodeId value = expand_factorized(f->context->compilation, r->fresh, replacement->by, weight,
                                     r->map[other_operand(replacement, product)]);
    replacement->end = (StateId)f->module->states.count;
    if (value < 0)
        return false;
    INTERNAL_CHECK(type_equal(node_at(r->fresh, value)->type, product->type));
    r->map[id] = value;
    take_name(r->fresh, value, known, product);
    return true;
}

/* The weight whose product the node is and gives up; -1.  (Dead products are copied, and dropped
 * when the rebuilding ends.) */
static StateId replaced_weight(const Factorization *f, NodeId id) {
    const Node *node = node_at(f->micro, id);
    for (int i = 0; node->op == OP_DOT && i < 2; i++) {
        const Node *read = node_at(f->micro, node->inputs[i]);
        if (read->op == OP_STATE && read->attr.integer < f->state_count &&
            f->replacements[read->attr.integer].by &&
            f->replacements[read->attr.integer].product == id)
            return (StateId)read->attr.integer;
    }
    return -1;
}

static bool rewrite_micro(Factorization *f) {
    Rebuild r = rebuild_begin(f->module, f->micro);
    bool done = true;
    for (int64_t id = 0; id < r.old->nodes.count; id++) {
        StateId weight = done ? replaced_weight(f, (NodeId)id) : -1;
        if (weight >= 0)
            done = replace_product(f, &r, (NodeId)id, weight);
        if (r.map[id] < 0)
            rebuild_copy(&r, (NodeId)id); /* after a failure too: the module stays whole */
    }
    rebuild_finish(&r);
    return done;
}

/* ---- states ------------------------------------------------------------------------- */

/* The states that remain, each block's where its weight was. */
static int64_t order_states(const Factorization *f, StateId *order) {
    int64_t count = 0;
    for (int64_t id = 0; id < f->state_count; id++) {
        const Replacement *replacement = &f->replacements[id];
        if (!replacement->by)
            order[count++] = (StateId)id;
        else
            for (StateId added = replacement->first; added < replacement->end; added++)
                order[count++] = added;
    }
    return count;
}

static void renumber_function(Module *module, Function *function, const StateId *moved) {
    for (int64_t i = 0; i < function->writes.count; i++)
        function->writes.data[i].state = moved[function->writes.data[i].state];
    for (int64_t id = 0; id < function->nodes.count; id++) {
        Node *node = &function->nodes.data[id];
        if (node->op == OP_STATE)
            node->attr.integer = moved[node->attr.integer];
    }
    /* Hashes cover the numbers: a copy enters all nodes anew. */
    Rebuild r = rebuild_begin(module, function);
    for (int64_t id = 0; id < r.old->nodes.count; id++)
        rebuild_copy(&r, (NodeId)id);
    rebuild_finish(&r);
}

/* The compilation's own list speaks of weights by number too: what is left of it. */
static void renumber_directives(Compilation *compilation, const StateId *moved) {
    for (int i = 0; i < compilation->factorize_count; i++) {
        Factorize *factorize = &compilation->factorizes[i];
        int kept = 0;
        for (int j = 0; j < factorize->weight_count; j++)
            if (moved[factorize->weights[j]] >= 0)
                factorize->weights[kept++] = moved[factorize->weights[j]];
        factorize->weight_count = kept;
    }
}

/* Drops replaced weights and gives all others consecutive numbers. */
static void renumber_states(Factorization *f) {
    Module *module = f->module;
    int64_t old_count = module->states.count;
    StateId *order = checked_alloc((size_t)old_count * sizeof *order);
    StateId *moved = checked_alloc((size_t)old_count * sizeof *moved);
    State *old = checked_alloc((size_t)old_count * sizeof *old);
    memcpy(old, module->states.data, (size_t)old_count * sizeof *old);
    int64_t count = order_states(f, order);
    for (int64_t i = 0; i < old_count; i++)
        moved[i] = -1;
    for (int64_t i = 0; i < count; i++)
        moved[order[i]] = (StateId)i;
    string_map_free(&module->state_by_key);
    module->states.count = 0;
    for (int64_t i = 0; i < count; i++) {
        State state = old[order[i]];
        state.weight = state.weight >= 0 ? moved[state.weight] : -1;
        module_state(module, state);
    }
    /* No function reads a dropped weight any more: rewriting dropped its reads. */
    for (int64_t i = 0; i < module->functions.count; i++)
        renumber_function(module, module->functions.data[i], moved);
    renumber_directives(f->context->compilation, moved);
    free(order);
    free(moved);
    free(old);
}

/* ---- what it came to ---------------------------------------------------------------- */

static int64_t state_elements(const Module *module, StateId state) {
    return type_elements(module, state_type(&module->states.data[state]));
}

/* In double: exact where it matters, and no sum is too large. */
static double made_elements(const Factorization *f, StateId weight) {
    double made = 0;
    for (StateId s = f->replacements[weight].first; s < f->replacements[weight].end; s++)
        made += (double)state_elements(f->module, s);
    return made;
}

/* Where the block is two matrices, in x r and r x out: r, and the r at which they are as large
 * as the weight, in * out / (in + out).  So are their FLOPs, which are two a parameter and
 * token. */
static bool find_rank(const Factorization *f, StateId weight, int64_t *rank, double *even) {
    const State *w = &f->module->states.data[weight];
    const Replacement *replacement = &f->replacements[weight];
    int64_t in = axes_elements(f->module, w->in, w->in_count);
    int64_t out = axes_elements(f->module, w->out, w->out_count);
    if (replacement->end - replacement->first != 2)
        return false;
    int64_t a = state_elements(f->module, replacement->first);
    int64_t b = state_elements(f->module, replacement->first + 1);
    *rank = a / in;
    *even = (double)in * (double)out / ((double)in + (double)out);
    return a % in == 0 && b == *rank * out;
}

/* Of `count` weights, the first is `weight`. */
static void warn_of_rank(const Factorization *f, const Factorize *by, StateId weight,
                         int64_t count) {
    Diagnostics *diagnostics = f->context->diagnostics;
    Span call = by->directive->call->span;
    const char *path = f->module->states.data[weight].path;
    Diagnostic *d = warning_at(
        diagnostics, call, "in the place of `%s`, %lld parameters, this block has %.0f", path,
        (long long)state_elements(f->module, weight), made_elements(f, weight));
    int64_t rank;
    double even;
    if (find_rank(f, weight, &rank, &even))
        help(
            d,
            "rank %lld is above the break-even, %.10g: below it the block has fewer parameters "
            "and FLOPs than the weight",
            (long long)rank, floor(even * 100) / 100);
    if (count > 1)
        help(d, "so it is with %lld of the weights that the line selects", (long long)count);
}

static void warn_of_growth(const Factorization *f, double made, double replaced) {
    const Item *plan = f->context->compilation->plan;
    if (made > replaced)
        warning_at(f->context->diagnostics, plan->name.span,
                   "plan `%s` makes the model bigger: %.0f parameters in the place of %.0f",
                   plan->name.text, made, replaced);
}

static void tally_directives(const Factorization *f) {
    const Compilation *c = f->context->compilation;
    double all_made = 0, all_replaced = 0;
    for (int d = 0; d < c->factorize_count; d++) {
        int64_t larger = 0;
        StateId first = -1;
        for (StateId id = 0; id < f->state_count; id++) {
            if (f->replacements[id].by != &c->factorizes[d])
                continue;
            double replaced = (double)state_elements(f->module, id);
            double made = made_elements(f, id);
            all_replaced += replaced;
            all_made += made;
            larger += made > replaced;
            if (made > replaced && first < 0)
                first = id;
        }
        if (larger)
            warn_of_rank(f, &c->factorizes[d], first, larger);
    }
    warn_of_growth(f, all_made, all_replaced);
}

/* ---- the pass ----------------------------------------------------------------------- */

bool pass_factorize(PassContext *context) {
    Module *module = context->module;
    if (context->compilation->factorize_count == 0)
        return true;
    Factorization f = {.context = context,
                       .module = module,
                       .micro = module_find_function(module, "micro"),
                       .state_count = module->states.count};
    INTERNAL_CHECK(f.micro);
    f.replacements = checked_alloc((size_t)f.state_count * sizeof *f.replacements);
    for (int64_t id = 0; id < f.state_count; id++)
        f.replacements[id].read = f.replacements[id].product = -1;
    choose_directives(&f);
    find_uses(&f);
    bool done = true;
    for (int64_t id = 0; id < f.state_count; id++)
        if (f.replacements[id].by)
            done &= check_operands(&f, (StateId)id);
    if (done && (done = rewrite_micro(&f))) {
        tally_directives(&f);
        renumber_states(&f);
    }
    free(f.replacements);
    return done;
}
