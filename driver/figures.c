/* The figures of a compiled model: what check, plan and their JSON say of it. */
#include "driver/driver.h"

#include <jansson.h>

/* ---- products between two values ------------------------------------------------------ */

NodeId below_views(const Function *function, NodeId id) {
    while (node_is_view(node_at(function, id)) || node_at(function, id)->op == OP_CAST)
        id = node_at(function, id)->inputs[0];
    return id;
}

/* Is it a weight, or weights side by side? */
static bool is_weight(const Function *function, NodeId id) {
    id = below_views(function, id);
    const Node *node = node_at(function, id);
    return node->op == OP_STATE ||
           (node->op == OP_STACK && is_weight(function, node->inputs[0]));
}

/* Products have a weight as operand, give a weight's gradient, or are between two values, as in
 * attention.  By node: is it one of the last kind? */
static bool *products_of_values(const Function *function) {
    bool *between = checked_alloc((size_t)function->nodes.count * sizeof *between);
    for (NodeId id = 0; id < function->nodes.count; id++) {
        const Node *node = node_at(function, id);
        between[id] = node->op == OP_DOT && !is_weight(function, node->inputs[0]) &&
                      !is_weight(function, node->inputs[1]) &&
                      !(node->adjoint_of >= 0 && is_weight(function, node->adjoint_of));
    }
    for (int64_t i = 0; i < function->writes.count; i++) {
        NodeId source = write_source(function, function->writes.data[i].value);
        if (source >= 0)
            between[source] = false;
    }
    return between;
}

static void attention_flops(const Compiled *compiled, double tokens, Figures *figures) {
    const Program *program = program_find(compiled->programs, "micro");
    if (!program)
        return;
    const Function *function = program->function;
    bool *between = products_of_values(function);
    for (NodeId id = 0; id < function->nodes.count; id++)
        if (between[id])
            figures->attention += node_flops(function, node_at(function, id)) / tokens;
    for (int64_t i = 0; i < program->step_count; i++)
        if (program->steps[i].dot >= 0 && between[program->steps[i].dot])
            figures->attention_executed += program->steps[i].flops / tokens;
    free(between);
}

/* ---- all of them ---------------------------------------------------------------------- */

int64_t module_parameters(const Module *module, int64_t *low_rank) {
    int64_t all = 0;
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        if (state->role != ROLE_WEIGHT || state->flat)
            continue;
        int64_t elements = type_elements(module, state_type(state));
        all += elements;
        if (low_rank && state->low_rank)
            *low_rank += elements;
    }
    return all;
}

static double published_flops(const Compiled *compiled, double tokens) {
    Module *module = compiled->compilation->module;
    PassContext context = {.module = module,
                           .compilation = compiled->compilation,
                           .diagnostics = compiled->diagnostics};
    const Function *micro = module_find_function(module, "micro");
    bool asked = micro && compiled->compilation->recompute_count;
    return asked ? published_recompute_flops(&context, micro) / tokens : 0;
}

/* What a micro-batch or an update runs. */
static void count_steps(const Program *program, Figures *figures) {
    for (int64_t i = 0; program && i < program->step_count; i++) {
        StepKind kind = program->steps[i].kind;
        figures->kernels += kind == STEP_LAUNCH;
        figures->dots += kind == STEP_PRODUCT;
        figures->copies += kind == STEP_COPY;
        figures->zeroes += kind == STEP_ZERO;
    }
}

Figures figures_of(const Compiled *compiled, const Options *options) {
    const Compilation *compilation = compiled->compilation;
    const Module *module = compilation->module;
    int64_t tokens = compilation->sequences * compilation->positions;
    Figures figures = {0};
    figures.parameters = module_parameters(module, &figures.low_rank);
    figures.flops = flop_table(module, tokens);
    figures.published = published_flops(compiled, (double)tokens);
    attention_flops(compiled, (double)tokens, &figures);
    figures.memory = planned_memory(compiled, options);
    count_steps(program_find(compiled->programs, "micro"), &figures);
    count_steps(program_find(compiled->programs, "update"), &figures);
    return figures;
}

double figures_products(const Figures *figures) {
    const FlopTable *f = &figures->flops;
    return f->forward + f->backward + f->recompute + f->head;
}

bool figures_fit(const Figures *figures, const Card *card) {
    return figures->memory.peak <= card->memory_bytes;
}

/* ---- in print ------------------------------------------------------------------------- */

void print_json_object(json_t *object) {
    INTERNAL_CHECK(object);
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(17));
    putchar('\n');
    json_decref(object);
}

json_t *json_text(const char *text) {
    Arena *arena = arena_new();
    json_t *string = json_string(json_path(text, arena));
    arena_free(arena);
    return string;
}

json_t *figures_json(const Figures *figures) {
    const FlopTable *flops = &figures->flops;
    const MemoryTable *memory = &figures->memory;
    json_t *object = json_pack(
        "{s:I, s:I, s:{s:f, s:f, s:f, s:f, s:f}, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}}",
        "params", (json_int_t)figures->parameters, "params_low_rank",
        (json_int_t)figures->low_rank, "flops_per_token", "forward", flops->forward, "backward",
        flops->backward, "recompute", flops->recompute, "head", flops->head, "executed",
        flops->executed, "memory", "weights", (json_int_t)memory->weights, "gradients",
        (json_int_t)memory->gradients, "optimizer", (json_int_t)memory->optimizer, "copies",
        (json_int_t)memory->copies, "tables", (json_int_t)memory->tables, "kept_activations",
        (json_int_t)memory->kept_activations, "workspace", (json_int_t)memory->workspace,
        "peak", (json_int_t)memory->peak);
    INTERNAL_CHECK(object);
    return object;
}

void print_figures_json(const Figures *figures, const char *plan) {
    json_t *object = json_object();
    if (plan)
        json_object_set_new(object, "plan", json_text(plan));
    json_object_update_new(object, figures_json(figures));
    json_object_update_new(object, json_pack("{s:i, s:i, s:i, s:i}", "kernels",
                                             figures->kernels, "dots", figures->dots, "copies",
                                             figures->copies, "zeroes", figures->zeroes));
    if (figures->predicted > 0)
        json_object_set_new(object, "predicted_step_s", json_real(figures->predicted));
    if (figures->card_count) {
        json_t *cards = json_object(), *too_small = json_array();
        for (int i = 0; i < figures->card_count; i++) {
            const Card *card = figures->cards[i];
            json_object_set_new(cards, card->name, json_real(figures->on_card[i]));
            if (!figures_fit(figures, card))
                json_array_append_new(too_small, json_string(card->name));
        }
        json_object_set_new(object, "predicted_step_s_on", cards);
        json_object_set_new(object, "does_not_fit_on", too_small);
    }
    print_json_object(object);
}

const char *scaled_text(double number, char buffer[32]) {
    static const char *const units[] = {"", " k", " M", " G", " T", " P", " E"};
    int unit = 0;
    for (; number >= 999.995 && unit < COUNT_OF(units) - 1; unit++)
        number /= 1000;
    snprintf(buffer, 32, unit ? "%.2f%s" : "%.0f%s", number, units[unit]);
    return buffer;
}
