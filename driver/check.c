/* colac check: what a model costs under a plan, before anything of its size is allocated. */
#include "driver/driver.h"

#include <jansson.h>

static void print_bytes(const char *what, int64_t bytes) {
    char commas[32], unit[32];
    printf("    %-20s %20s B  %11s\n", what, with_commas(bytes, commas),
           bytes_text(bytes, unit));
}

static void print_flops_row(const char *name, double value, const char *remark) {
    char buffer[32];
    printf("    %-20s %20s%s\n", name, with_commas((int64_t)value, buffer), remark);
}

static void print_flops(const Figures *figures) {
    const FlopTable *flops = &figures->flops;
    char buffer[32], remark[96] = "";
    if (figures->published > flops->recompute)
        snprintf(remark, sizeof remark, "  (of whole segments, as published: %s)",
                 with_commas((int64_t)figures->published, buffer));
    printf("  FLOPs a token\n");
    print_flops_row("forward, blocks", flops->forward, "");
    print_flops_row("backward, blocks", flops->backward, "");
    print_flops_row("recompute", flops->recompute, remark);
    print_flops_row("head, both ways", flops->head, "");
    if (figures->attention > 0) {
        snprintf(remark, sizeof remark, "  (executed: %s)",
                 with_commas((int64_t)figures->attention_executed, buffer));
        print_flops_row("of these attention", figures->attention, remark);
    }
    print_flops_row("executed, all ops", flops->executed, "");
}

static void print_memory(const MemoryTable *memory, const Module *module) {
    char bound[32], lost[32], behind[32];
    const Function *largest = largest_function(module);
    int64_t placed =
        largest ? largest->arena_bytes : 0; /* what is more, is scratch without a gap */
    printf("  memory of a training step\n");
    print_bytes("weights", memory->weights);
    print_bytes("gradients", memory->gradients);
    print_bytes("optimizer", memory->optimizer);
    if (memory->copies)
        print_bytes("bf16 copies", memory->copies);
    print_bytes("tables", memory->tables);
    print_bytes("kept activations", memory->kept_activations);
    print_bytes("workspace", memory->workspace);
    print_bytes("peak", memory->peak);
    printf("  the arena's values are at most %s at once; fragmentation loses %s (%.2f%%)\n",
           bytes_text(memory->lower_bound, bound),
           bytes_text(placed - memory->lower_bound, lost),
           placed > 0 ? 100.0 * (double)(placed - memory->lower_bound) / (double)placed : 0.0);
    if (memory->arena > placed)
        printf("  behind them %s for kernels and products to compute in\n",
               bytes_text(memory->arena - placed, behind));
    if (largest)
        printf("  no order of execution can do with less than %s of them\n",
               bytes_text(order_bound(largest), bound));
}

void print_heading(const Request *request, const Compilation *compilation) {
    printf("%s%s%s%s%s, %lld sequence%s of %lld position%s a micro-batch\n", request->path,
           request->preset ? ", preset " : "", request->preset ? request->preset : "",
           request->plan ? ", plan " : ", no plan", request->plan ? request->plan : "",
           (long long)compilation->sequences, compilation->sequences == 1 ? "" : "s",
           (long long)compilation->positions, compilation->positions == 1 ? "" : "s");
}

static void print_table(const Options *options, const Compilation *compilation,
                        const Figures *figures) {
    char buffer[32];
    print_heading(&options->request, compilation);
    printf("  parameters             %20s\n", with_commas(figures->parameters, buffer));
    if (figures->low_rank)
        printf("    in factorized blocks %20s\n", with_commas(figures->low_rank, buffer));
    print_flops(figures);
    print_memory(&figures->memory, compilation->module);
    printf("  a micro-batch and an update run %d kernels and %d matrix products",
           figures->kernels, figures->dots);
    if (figures->copies || figures->zeroes)
        printf("; %d times bytes are copied or set to 0", figures->copies + figures->zeroes);
    putchar('\n');
}

static void append_axes(const Module *module, const AxisId *axes, int count, Text *out) {
    for (int i = 0; i < count; i++)
        text_printf(out, "%s%s", i ? "," : "", module->axes.data[axes[i]].name);
}

/* Every parameter: path, axes as declared, elements. */
static void print_parameters(const Module *module, bool json) {
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        if (state->role != ROLE_WEIGHT || state->flat)
            continue;
        Text axes = {0};
        text_puts(&axes, "[");
        append_axes(module, state->in, state->in_count, &axes);
        text_puts(&axes, state->in_count && state->out_count ? " -> " : "");
        append_axes(module, state->out, state->out_count, &axes);
        text_puts(&axes, "]");
        int64_t elements = type_elements(module, state_type(state));
        char buffer[32];
        if (json)
            printf("{\"parameter\": \"%s\", \"axes\": \"%s\", \"elements\": %lld, "
                   "\"low_rank\": %s}\n",
                   state->path, text_string(&axes), (long long)elements,
                   state->low_rank ? "true" : "false");
        else
            printf("  %-36s %-20s %15s%s\n", state->path, text_string(&axes),
                   with_commas(elements, buffer), state->low_rank ? "  low rank" : "");
        text_free(&axes);
    }
}

/* ---- by layer --------------------------------------------------------------------------- */

/* What one instance of a loop's block, or one parameter or block outside of loops, amounts
 * to. */
typedef struct Layer {
    const char *loop, *name; /* in a loop: loop, ""; else "", name */
    int64_t parameters, low_rank, kept;
    double forward, backward, recompute; /* products, a token */
    IndexList indices;                   /* all instances that amount to the same */
} Layer;
typedef struct Layers {
    Arena *arena;
    StringMap by_key;
    ARRAY(Layer) layers;
} Layers;

static Layer *layer_of(Layers *layers, const char *path) {
    PathParts parts = split_path(path, layers->arena);
    const char *name =
        *parts.loop ? "" : arena_strndup(layers->arena, parts.rest, strcspn(parts.rest, "."));
    const char *key =
        arena_printf(layers->arena, "%s|%lld|%s", parts.loop, (long long)parts.index, name);
    int64_t at = string_map_get(&layers->by_key, key, -1);
    if (at < 0) {
        Layer fresh = {.loop = parts.loop, .name = name};
        if (parts.index >= 0)
            array_push(&fresh.indices, parts.index);
        at = layers->layers.count;
        array_push(&layers->layers, fresh);
        string_map_set(&layers->by_key, key, at);
    }
    return &layers->layers.data[at];
}

/* The weight that a product is of, as operand, as what it is the adjoint of, or by where its
 * result is written (`written`, by node); NULL where it is of none. */
static const char *weight_of_product(const Function *function, const StateId *written,
                                     NodeId dot) {
    const Node *node = node_at(function, dot);
    const NodeId candidates[] = {node->inputs[0], node->inputs[1], node->adjoint_of};
    StateId state = written[dot];
    for (int i = 0; i < COUNT_OF(candidates) && state < 0; i++) {
        NodeId id = candidates[i] >= 0 ? below_views(function, candidates[i]) : -1;
        if (id >= 0 && node_at(function, id)->op == OP_STATE)
            state = (StateId)node_at(function, id)->attr.integer;
    }
    return state < 0 ? NULL : function->module->states.data[state].path;
}

/* By node: the state that its value is written to; -1. */
static StateId *written_states(const Function *function, Arena *arena) {
    size_t nodes = (size_t)function->nodes.count;
    StateId *written = arena_alloc_array(arena, nodes, sizeof *written);
    for (size_t id = 0; id < nodes; id++)
        written[id] = -1;
    for (int64_t i = 0; i < function->writes.count; i++) {
        NodeId source = write_source(function, function->writes.data[i].value);
        if (source >= 0)
            written[source] = function->writes.data[i].state;
    }
    return written;
}

static void add_products(Layers *layers, const Function *micro, double tokens) {
    bool *forward = forward_part(micro);
    StateId *written = written_states(micro, layers->arena);
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        const Node *node = node_at(micro, id);
        if (node->op != OP_DOT)
            continue;
        const char *path = micro->module->scopes.data[node->scope].path;
        if (!node->scope)
            path = weight_of_product(micro, written, id);
        Layer *layer = layer_of(layers, path ? path : "");
        double *part = node->clone   ? &layer->recompute
                       : forward[id] ? &layer->forward
                                     : &layer->backward;
        *part += node_flops(micro, node) / tokens;
    }
    free(forward);
}

static void add_kept(Layers *layers, const Function *micro) {
    ScopeId *owners = value_owners(micro, layers->arena);
    ValueLife *lives;
    int64_t count = value_lives(micro, layers->arena, &lives);
    for (int64_t i = 0; i < count; i++)
        if (lives[i].kept)
            layer_of(layers, micro->module->scopes.data[owners[lives[i].node]].path)->kept +=
                lives[i].bytes;
}

static bool same_figures(const Layer *a, const Layer *b) {
    return !strcmp(a->loop, b->loop) && a->parameters == b->parameters &&
           a->low_rank == b->low_rank && a->kept == b->kept && a->forward == b->forward &&
           a->backward == b->backward && a->recompute == b->recompute;
}

/* Instances of one loop that amount to the same become one row: the first takes in the
 * others. */
static void merge_instances(Layers *layers) {
    StringMap firsts = {0};
    int64_t kept = 0;
    for (int64_t i = 0; i < layers->layers.count; i++) {
        Layer *layer = &layers->layers.data[i];
        const char *key = arena_printf(layers->arena, "%s|%s|%lld %lld %lld %a %a %a",
                                       layer->loop, layer->name, (long long)layer->parameters,
                                       (long long)layer->low_rank, (long long)layer->kept,
                                       layer->forward, layer->backward, layer->recompute);
        int64_t first = string_map_get(&firsts, key, -1);
        if (first >= 0 && *layer->loop) {
            INTERNAL_CHECK(same_figures(&layers->layers.data[first], layer));
            array_push(&layers->layers.data[first].indices, layer->indices.data[0]);
            array_free(&layer->indices);
            continue;
        }
        string_map_set(&firsts, key, kept);
        layers->layers.data[kept++] = *layer;
    }
    layers->layers.count = kept;
    string_map_free(&firsts);
}

static void print_layer(const Layer *layer, const char *name, bool json) {
    int64_t count = *layer->loop ? layer->indices.count : 1;
    char parameters[32], forward[32], backward[32], recompute[32], each[32], sum[32];
    if (json)
        print_json_object(json_pack("{s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:I}", "kind",
                                    "layer", "path", name, "count", (json_int_t)count, "params",
                                    (json_int_t)layer->parameters, "params_low_rank",
                                    (json_int_t)layer->low_rank, "forward", layer->forward,
                                    "backward", layer->backward, "recompute", layer->recompute,
                                    "kept_activations", (json_int_t)layer->kept));
    else
        printf("    %-20s %5lld %13s %10s %10s %10s %10s %10s\n", name, (long long)count,
               with_commas(layer->parameters, parameters), scaled_text(layer->forward, forward),
               scaled_text(layer->backward, backward), scaled_text(layer->recompute, recompute),
               bytes_text(layer->kept, each), bytes_text(layer->kept * count, sum));
}

static void print_layers(const Compiled *compiled, bool json) {
    const Compilation *compilation = compiled->compilation;
    const Module *module = compilation->module;
    const Function *micro = module_find_function(module, "micro");
    Layers layers = {.arena = arena_new()};
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role != ROLE_WEIGHT || state->flat)
            continue;
        int64_t elements = type_elements(module, state_type(state));
        Layer *layer = layer_of(&layers, state->path);
        layer->parameters += elements;
        layer->low_rank += state->low_rank ? elements : 0;
    }
    add_products(&layers, micro, (double)(compilation->sequences * compilation->positions));
    add_kept(&layers, micro);
    merge_instances(&layers);
    if (!json)
        printf("  by layer, an instance            FLOPs a token, products             kept\n"
               "    %-20s %5s %13s %10s %10s %10s %10s %10s\n",
               "", "count", "parameters", "forward", "backward", "recompute", "each", "in sum");
    for (int64_t i = 0; i < layers.layers.count; i++) {
        Layer *layer = &layers.layers.data[i];
        const char *name = *layer->loop ? loop_text(layer->loop, &layer->indices, layers.arena)
                           : *layer->name ? layer->name
                                          : "(the model's own)";
        print_layer(layer, name, json);
        array_free(&layer->indices);
    }
    array_free(&layers.layers);
    string_map_free(&layers.by_key);
    arena_free(layers.arena);
}

int run_check_command(Options *options) {
    Compiled compiled;
    if (!compile_programs(&compiled, options, true)) {
        compiled_free(&compiled);
        return 1;
    }
    Figures figures = figures_of(&compiled, options);
    if (options->json)
        print_figures_json(&figures, NULL);
    else
        print_table(options, compiled.compilation, &figures);
    if (options->list_layers)
        print_layers(&compiled, options->json);
    if (options->timeline)
        print_timeline(&compiled, options->json);
    if (options->list_directives || (!options->json && options->request.plan))
        print_directives(options, &compiled, options->json);
    if (options->list_parameters)
        print_parameters(compiled.compilation->module, options->json);
    compiled_free(&compiled);
    return 0;
}
