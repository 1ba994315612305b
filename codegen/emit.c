/* codegen/emit.c: scheduled and placed functions -> programs: flat lists of steps.
 *
 * Every group becomes a launch of a kernel or a product, in execution order; groups that do the
 * same share the kernel, products of one shape share the product.  Writes that no group makes
 * directly follow as copies. */
#include "codegen/codegen.h"

#include <ctype.h>
#include <math.h>

typedef ARRAY(Step) StepList;
typedef ARRAY(NodeId) ScalarList;

typedef struct Emitter {
    ProgramSet *set;
    Arena *arena;
    StringMap kernel_by_text, product_by_text;
    ARRAY(Kernel *) kernels;
    ARRAY(const char *) kernel_names;
    ARRAY(Product) products;
    /* Of the program at hand. */
    const Function *function;
    GroupIndex index;
    StepList steps;
    ScalarList scalars;
    ArenaGaps *gaps;
    int64_t arena_bytes; /* so far: as far as scratch reaches, or the planned ones */
} Emitter;

/* On a thread's stack, and in its cache.  Products have workspace of the device's own. */
const Room host_room = {.local_bytes = 256 << 10, .workspace_alignment = SCRATCH_ALIGNMENT};

static void *arena_copy(Arena *arena, const void *from, int64_t count, size_t size) {
    void *to = arena_alloc_array(arena, (size_t)count, size);
    return count ? memcpy(to, from, (size_t)count * size) : to;
}

/* ---- operands ------------------------------------------------------------------------ */

const char *space_name(Space space) {
    static const char *const names[] = {"weight", "gradient", "moment", "copy",
                                        "table",  "metric",   "input",  "arena"};
    return names[space];
}

static Operand state_operand(const Emitter *e, StateId id) {
    const Module *module = e->set->module;
    const State *state = &module->states.data[id];
    INTERNAL_CHECK(state->offset >= 0);
    const Slab *slab =
        &e->set->slabs.data[slab_index(&e->set->slabs, state->role, state->number)];
    int width = dtype_bytes(state->dtype);
    return (Operand){.space = (Space)state->role,
                     .number = state->number,
                     .offset = (state->offset - slab->begin) * width,
                     .bytes = type_elements(module, state_type(state)) * width};
}

static Operand node_operand(const Emitter *e, NodeId id) {
    const Function *function = e->function;
    const Node *node = node_at(function, id);
    int64_t bytes = type_elements(function->module, node->type) * dtype_bytes(node->type.dtype);
    if (node->op == OP_STATE)
        return state_operand(e, (StateId)node->attr.integer);
    if (node->op == OP_INPUT)
        return (Operand){
            .space = SPACE_INPUT, .number = (int32_t)node->attr.integer, .bytes = bytes};
    INTERNAL_CHECK(node->placement.stored && node->placement.offset >= 0);
    return (Operand){.space = SPACE_ARENA, .offset = node->placement.offset, .bytes = bytes};
}

/* `scratch`: where the next one of the kernel's is. */
static Operand kernel_operand(const Emitter *e, const KernelOperand *operand,
                              int64_t *scratch) {
    Operand result = {0};
    switch (operand->kind) {
    case OPERAND_NODE:
        return node_operand(e, operand->id);
    case OPERAND_STATE:
        return state_operand(e, operand->id);
    case OPERAND_INPUT:
        return (Operand){.space = SPACE_INPUT, .number = operand->id, .bytes = operand->bytes};
    case OPERAND_SCRATCH:
        result = (Operand){
            .space = SPACE_ARENA, .offset = *scratch, .bytes = operand->bytes, .scratch = true};
        *scratch += scratch_aligned(operand->bytes);
        return result;
    }
    internal_error("an operand of no kind");
}

/* ---- scratch ------------------------------------------------------------------------- */

static void begin_scratch(Emitter *e, const Function *function, Arena *arena) {
    e->gaps = e->set->apart ? NULL : arena_gaps(function, arena);
    e->arena_bytes = scratch_aligned(function->arena_bytes);
}

/* Where a group has `bytes` for itself: its offset in the arena. */
static int64_t take_scratch(Emitter *e, int group, int64_t bytes, int64_t alignment) {
    if (bytes == 0)
        return 0;
    int64_t behind = e->function->arena_bytes + alignment - 1;
    int64_t place = e->set->apart ? behind / alignment * alignment
                                  : arena_gap(e->gaps, group, bytes, alignment);
    int64_t end = scratch_aligned(place + bytes);
    e->arena_bytes = end > e->arena_bytes ? end : e->arena_bytes;
    return place;
}

static int64_t kernel_scratch(Emitter *e, int group) {
    return take_scratch(e, group, group_scratch_bytes(e->function, &e->index, group),
                        SCRATCH_ALIGNMENT);
}

static Operand product_workspace(Emitter *e, int group, const Product *product) {
    const Room *room = &e->set->room;
    int64_t bytes = room->workspace_bytes ? room->workspace_bytes(product) : 0;
    return (Operand){.space = SPACE_ARENA,
                     .offset = take_scratch(e, group, bytes, room->workspace_alignment),
                     .bytes = bytes,
                     .scratch = true};
}

/* ---- labels -------------------------------------------------------------------------- */

/* The node whose name a value goes by: its own, or that which it is the adjoint of; NULL. */
static const Node *named_node(const Function *function, NodeId id) {
    const Node *node = node_at(function, id);
    if (node->name)
        return node;
    if (node->adjoint_of >= 0 && node_at(function, node->adjoint_of)->name)
        return node_at(function, node->adjoint_of);
    return NULL;
}

/* layer[3].attn.q, layer[3].attn.q_adj */
static const char *node_label(const Emitter *e, NodeId id) {
    const Node *node = node_at(e->function, id), *named = named_node(e->function, id);
    const char *path = e->function->module->scopes.data[node->scope].path;
    return arena_printf(e->arena, "%s%s%s%s", path, path[0] ? "." : "",
                        named ? named->name : op_info[node->op].name,
                        node->adjoint_of >= 0 && !node->name ? "_adj" : "");
}

/* layer[3].attn.wq gradient */
static const char *state_label(const Emitter *e, StateId id) {
    const State *state = &e->function->module->states.data[id];
    return arena_printf(e->arena, "%s %s", state->path, role_name(state->role));
}

/* What stands for a kernel in profiles: a stored value that has a name, else a state that it
 * writes (a weight rather than its gradient), else an adjoint, else what it computes last. */
static const char *group_label(const Emitter *e, int group) {
    const GroupIndex *index = &e->index;
    int32_t begin = index->member_begin[group], end = index->member_begin[group + 1];
    for (int32_t i = begin; i < end; i++) {
        const Node *node = node_at(e->function, index->members[i]);
        if (node->placement.stored && node->name)
            return node_label(e, index->members[i]);
    }
    StateId written = -1;
    for (int32_t i = index->write_begin[group]; i < index->write_begin[group + 1]; i++) {
        StateId state = e->function->writes.data[index->writes[i]].state;
        if (written < 0 || e->function->module->states.data[state].role == ROLE_WEIGHT)
            written = state;
    }
    if (written >= 0)
        return state_label(e, written);
    for (int32_t i = begin; i < end; i++)
        if (named_node(e->function, index->members[i]))
            return node_label(e, index->members[i]);
    return node_label(e, index->members[end - 1]);
}

/* Where the text says it: the value that the label names, or what is computed last. */
static Span group_span(const Emitter *e, int group) {
    const GroupIndex *index = &e->index;
    int32_t begin = index->member_begin[group], end = index->member_begin[group + 1];
    for (int32_t i = begin; i < end; i++) {
        const Node *node = node_at(e->function, index->members[i]);
        if (node->placement.stored && node->name && node->span.source)
            return node->span;
    }
    for (int32_t i = end - 1; i >= begin; i--) {
        Span span = node_at(e->function, index->members[i])->span;
        if (span.source)
            return span;
    }
    return (Span){0};
}

/* A label without its indices, as an identifier: layer[3].attn.q -> layer_attn_q. */
static const char *label_identifier(const Emitter *e, const char *label) {
    Text text = {0};
    for (const char *c = label; *c; c++) {
        if (*c == '[')
            while (c[1] && *c != ']')
                c++;
        else if (isalpha((unsigned char)*c) || (text.length && isdigit((unsigned char)*c)))
            text_append(&text, c, 1);
        else
            text_puts(&text, text.length ? "_" : "k_");
    }
    const char *identifier = arena_strdup(e->arena, text_string(&text));
    text_free(&text);
    return identifier;
}

/* A product by the parameter that it multiplies with or makes the gradient of, else by its
 * value. */
static const char *product_label(const Emitter *e, NodeId dot, const Write *write) {
    const Module *module = e->function->module;
    const Node *node = node_at(e->function, dot);
    if (write)
        return state_label(e, write->state);
    for (int i = 0; i < node->input_count; i++) {
        View view;
        if (!view_of(e->function, node->inputs[i], &view))
            continue;
        const Node *root = node_at(e->function, view.root);
        if (root->op == OP_STATE)
            return arena_printf(e->arena, "%s%s", module->states.data[root->attr.integer].path,
                                node->adjoint_of >= 0 ? " input_adj" : "");
    }
    return node_label(e, dot);
}

/* ---- kernels ------------------------------------------------------------------------- */

/* Every kernel is made in an arena of its own. */
static void free_kernel_and_arena(Kernel *kernel) {
    Arena *arena = kernel->arena;
    kernel_free(kernel);
    arena_free(arena);
}

/* The number of an equal kernel; only a new one is kept. */
static int32_t share_kernel(Emitter *e, Kernel *kernel, const char *label) {
    const char *text = kernel_text(kernel);
    int64_t found = string_map_get(&e->kernel_by_text, text, -1);
    if (found >= 0) {
        free_kernel_and_arena(kernel);
        return (int32_t)found;
    }
    string_map_set(&e->kernel_by_text, text, e->kernels.count);
    kernel->label = label_identifier(e, label);
    array_push(&e->kernels, kernel);
    array_push(&e->kernel_names,
               (const char *)arena_printf(e->arena, "%s_%016llx", kernel->label,
                                          (unsigned long long)kernel_hash(kernel)));
    return (int32_t)(e->kernels.count - 1);
}

static int32_t host_scalar(Emitter *e, NodeId source) {
    for (int64_t i = 0; i < e->scalars.count; i++)
        if (e->scalars.data[i] == source)
            return (int32_t)i;
    array_push(&e->scalars, source);
    return (int32_t)(e->scalars.count - 1);
}

/* FLOPs of the members of a group, each computed once. */
static double group_flops(const Emitter *e, int group) {
    double flops = 0;
    for (int32_t i = e->index.member_begin[group]; i < e->index.member_begin[group + 1]; i++) {
        const Node *node = node_at(e->function, e->index.members[i]);
        Type type = node->type;
        if (node->op == OP_SUM || node->op == OP_MAX)
            type = node_at(e->function, node->inputs[0])->type;
        else if (node->op == OP_SCATTER_ADD)
            type = node_at(e->function, node->inputs[1])->type;
        flops += op_info[node->op].flops * (double)type_elements(e->function->module, type);
    }
    return flops;
}

/* A group that only sets memory to 0: gradients after an update that is not one pass. */
static bool is_zero_group(const Emitter *e, int group) {
    const GroupIndex *index = &e->index;
    int32_t member = index->member_begin[group], write = index->write_begin[group];
    if (index->member_begin[group + 1] != member + 1 ||
        index->write_begin[group + 1] != write + 1 ||
        e->function->writes.data[index->writes[write]].add)
        return false;
    const Node *node = node_at(e->function, index->members[member]);
    if (node->placement.stored || node->op != OP_COPY)
        return false;
    while (node->op == OP_COPY || node_is_view(node))
        node = node_at(e->function, node->inputs[0]);
    return node->op == OP_CONST && node->attr.number == 0 && !signbit(node->attr.number);
}

static Step emit_zero(Emitter *e, int group) {
    const Write *write =
        &e->function->writes.data[e->index.writes[e->index.write_begin[group]]];
    Step step = {.kind = STEP_ZERO, .operand_count = 1, .dot = -1};
    step.operands = arena_alloc(e->arena, sizeof *step.operands);
    step.operands[0] = state_operand(e, write->state);
    step.label = state_label(e, write->state);
    step.bytes = (double)step.operands[0].bytes;
    return step;
}

static Step emit_launch(Emitter *e, int group) {
    LoweredGroup lowered =
        lower_group(e->function, &e->index, group, e->set->room.local_bytes, arena_new());
    Step step = {.kind = STEP_LAUNCH,
                 .operand_count = lowered.operand_count,
                 .scalar_count = lowered.scalar_count,
                 .flops = group_flops(e, group),
                 .dot = -1};
    int64_t begin = kernel_scratch(e, group), scratch = begin;
    step.operands =
        arena_alloc_array(e->arena, (size_t)step.operand_count, sizeof *step.operands);
    for (int i = 0; i < step.operand_count; i++)
        step.operands[i] = kernel_operand(e, &lowered.operands[i], &scratch);
    step.scalars = arena_alloc_array(e->arena, (size_t)step.scalar_count, sizeof *step.scalars);
    for (int i = 0; i < step.scalar_count; i++)
        step.scalars[i] = host_scalar(e, lowered.scalars[i]);
    INTERNAL_CHECK(scratch - begin == group_scratch_bytes(e->function, &e->index, group));
    step.bytes = kernel_traffic(lowered.kernel);
    step.label = group_label(e, group);
    step.index = share_kernel(e, lowered.kernel, step.label);
    return step;
}

/* ---- products ------------------------------------------------------------------------ */

static void print_loops(const char *name, const ProductLoop *loops, int count, Text *out) {
    for (int i = 0; i < count; i++)
        text_printf(out, " %s %lld(%lld,%lld,%lld)", name, (long long)loops[i].extent,
                    (long long)loops[i].stride_a, (long long)loops[i].stride_b,
                    (long long)loops[i].stride_c);
}

void print_product(const Product *product, Text *out) {
    text_printf(out, "%lldx%lldx%lld a(%lld,%lld) b(%lld,%lld) c(%lld,%lld)",
                (long long)product->m, (long long)product->n, (long long)product->k,
                (long long)product->a_m, (long long)product->a_k, (long long)product->b_k,
                (long long)product->b_n, (long long)product->c_m, (long long)product->c_n);
    print_loops("batch", product->batch, product->batch_count, out);
    print_loops("accumulate", product->accumulate, product->accumulate_count, out);
    text_puts(out, product->add ? " add" : "");
    if (product->bf16_operands || product->bf16_result)
        text_puts(out, product->bf16_result ? " bf16" : " bf16->f32");
}

static int32_t share_product(Emitter *e, const Product *product) {
    Text text = {0};
    print_product(product, &text);
    int64_t found = string_map_get(&e->product_by_text, text_string(&text), -1);
    if (found < 0) {
        found = e->products.count;
        string_map_set(&e->product_by_text, text_string(&text), found);
        array_push(&e->products, *product);
    }
    text_free(&text);
    return (int32_t)found;
}

static double product_terms(const Product *product) {
    double terms = (double)product->m * (double)product->n * (double)product->k;
    for (int i = 0; i < product->batch_count; i++)
        terms *= (double)product->batch[i].extent;
    for (int i = 0; i < product->accumulate_count; i++)
        terms *= (double)product->accumulate[i].extent;
    return terms;
}

/* The memory of a view, from its first element on. */
static Operand view_operand(const Emitter *e, const View *view) {
    Operand operand = node_operand(e, view->root);
    int width = dtype_bytes(node_at(e->function, view->root)->type.dtype);
    operand.offset += view->base * width;
    operand.bytes -= view->base * width;
    return operand;
}

static double view_elements(const Function *function, const View *view) {
    double elements = 1;
    for (int i = 0; i < view->count; i++)
        if (view->strides[i])
            elements *= (double)function->module->axes.data[view->axes[i]].size;
    return elements;
}

/* The write that the group's product makes, or NULL. */
static const Write *product_write(const Emitter *e, int group) {
    int32_t writes = e->index.write_begin[group + 1] - e->index.write_begin[group];
    NodeId dot = e->index.members[e->index.member_begin[group]];
    INTERNAL_CHECK(e->index.member_begin[group + 1] == e->index.member_begin[group] + 1);
    INTERNAL_CHECK(writes + node_at(e->function, dot)->placement.stored == 1);
    return writes ? &e->function->writes.data[e->index.writes[e->index.write_begin[group]]]
                  : NULL;
}

/* And the views of its operands. */
static Product group_product(const Emitter *e, int group, View *a, View *b, View *result) {
    const Function *function = e->function;
    NodeId dot = e->index.members[e->index.member_begin[group]];
    const Node *node = node_at(function, dot);
    const Write *write = product_write(e, group);
    Product product;
    int blocking;
    *result = own_view(function, dot);
    if (!view_of(function, node->inputs[0], a) || !view_of(function, node->inputs[1], b) ||
        !product_of(function, dot, a, b, result, &product, &blocking))
        internal_error("group %d of %s is no product", group, function->name);
    product.add = write && write->add;
    return product;
}

static Step emit_product(Emitter *e, int group) {
    const Function *function = e->function;
    NodeId dot = e->index.members[e->index.member_begin[group]];
    const Node *node = node_at(function, dot);
    const Write *write = product_write(e, group);
    View a, b, result;
    Product product = group_product(e, group, &a, &b, &result);
    INTERNAL_CHECK(!product.bf16_result || product.accumulate_count == 0);
    Step step = {.kind = STEP_PRODUCT, .operand_count = 3, .dot = dot};
    step.operands = arena_alloc_array(e->arena, 3, sizeof *step.operands);
    step.operands[product.swapped] = view_operand(e, &a);
    step.operands[!product.swapped] = view_operand(e, &b);
    step.operands[2] = write ? state_operand(e, write->state) : node_operand(e, dot);
    step.workspace = product_workspace(e, group, &product);
    step.index = share_product(e, &product);
    step.label = product_label(e, dot, write);
    step.flops = 2 * product_terms(&product);
    step.bytes = dtype_bytes(product.bf16_operands ? TYPE_BF16 : TYPE_F32) *
                     (view_elements(function, &a) + view_elements(function, &b)) +
                 dtype_bytes(node->type.dtype) * (product.add ? 2 : 1) *
                     view_elements(function, &result);
    return step;
}

/* ---- programs ------------------------------------------------------------------------ */

static Step emit_copy(Emitter *e, const Write *write) {
    NodeId source = write_source(e->function, write->value);
    INTERNAL_CHECK(!write->add);
    Step step = {.kind = STEP_COPY, .operand_count = 2, .dot = -1};
    step.operands = arena_alloc_array(e->arena, 2, sizeof *step.operands);
    step.operands[0] = node_operand(e, source);
    step.operands[1] = state_operand(e, write->state);
    INTERNAL_CHECK(step.operands[0].bytes == step.operands[1].bytes);
    step.label = state_label(e, write->state);
    step.span = node_at(e->function, source)->span;
    step.bytes = 2 * (double)step.operands[0].bytes;
    return step;
}

static Program emit_program(Emitter *e, const Function *function) {
    INTERNAL_CHECK(function->arena_bytes >= 0);
    e->function = function;
    e->index = group_index(function, e->arena);
    e->steps = (StepList){0};
    e->scalars = (ScalarList){0};
    begin_scratch(e, function, e->arena);
    for (int group = 0; group < function->groups.count; group++) {
        bool product = function->groups.data[group].kind == GROUP_PRODUCT;
        Step step = product                   ? emit_product(e, group)
                    : is_zero_group(e, group) ? emit_zero(e, group)
                                              : emit_launch(e, group);
        step.span = group_span(e, group);
        array_push(&e->steps, step);
    }
    for (int64_t i = 0; i < function->writes.count; i++)
        if (!function->writes.data[i].direct)
            array_push(&e->steps, emit_copy(e, &function->writes.data[i]));
    Program program = {
        .name = function->name,
        .step_count = e->steps.count,
        .steps = arena_copy(e->arena, e->steps.data, e->steps.count, sizeof(Step)),
        .host_scalar_count = (int)e->scalars.count,
        .host_scalars = arena_copy(e->arena, e->scalars.data, e->scalars.count, sizeof(NodeId)),
        .function = function,
        .arena_bytes = e->arena_bytes};
    array_free(&e->steps);
    array_free(&e->scalars);
    return program;
}

static Emitter emitter_new(const Module *module, const Room *room, bool apart) {
    Arena *arena = arena_new();
    ProgramSet *set = arena_alloc(arena, sizeof *set);
    set->arena = arena;
    set->module = module;
    set->programs =
        arena_alloc_array(arena, (size_t)module->functions.count, sizeof *set->programs);
    set->slabs = module_slabs(module, true, arena);
    set->room = *room;
    set->apart = apart;
    return (Emitter){.set = set, .arena = arena};
}

static ProgramSet *emitter_finish(Emitter *e) {
    ProgramSet *set = e->set;
    set->kernel_count = (int)e->kernels.count;
    set->kernels = arena_copy(e->arena, e->kernels.data, set->kernel_count, sizeof(Kernel *));
    set->kernel_names =
        arena_copy(e->arena, e->kernel_names.data, set->kernel_count, sizeof(char *));
    set->product_count = (int)e->products.count;
    set->products = arena_copy(e->arena, e->products.data, set->product_count, sizeof(Product));
    array_free(&e->kernels);
    array_free(&e->kernel_names);
    array_free(&e->products);
    string_map_free(&e->kernel_by_text);
    string_map_free(&e->product_by_text);
    return set;
}

ProgramSet *emit_programs(const Module *module, const Room *room, bool apart) {
    Emitter emitter = emitter_new(module, room, apart);
    ProgramSet *set = emitter.set;
    for (int64_t i = 0; i < module->functions.count; i++) {
        const Function *function = module->functions.data[i];
        if (strcmp(function->name, "init") == 0)
            continue; /* the interpreter runs it, once, in double */
        Program program = emit_program(&emitter, function);
        set->programs[set->program_count++] = program;
        if (program.arena_bytes > set->arena_bytes)
            set->arena_bytes = program.arena_bytes;
    }
    return emitter_finish(&emitter);
}

/* Shares the function's products; the bytes of its arena with scratch. */
static int64_t outline_function(Emitter *e, const Function *function) {
    Arena *arena = arena_new();
    e->function = function;
    e->index = group_index(function, arena);
    begin_scratch(e, function, arena);
    for (int group = 0; group < function->groups.count; group++) {
        if (function->groups.data[group].kind == GROUP_PRODUCT) {
            View a, b, result;
            Product product = group_product(e, group, &a, &b, &result);
            share_product(e, &product);
            product_workspace(e, group, &product);
        } else {
            kernel_scratch(e, group);
        }
    }
    arena_free(arena);
    return e->arena_bytes;
}

ProgramSet *outline_programs(const Module *module, const Room *room, bool apart) {
    Emitter emitter = emitter_new(module, room, apart);
    for (int64_t i = 0; i < module->functions.count; i++) {
        if (strcmp(module->functions.data[i]->name, "init") == 0)
            continue;
        int64_t bytes = outline_function(&emitter, module->functions.data[i]);
        if (bytes > emitter.set->arena_bytes)
            emitter.set->arena_bytes = bytes;
    }
    return emitter_finish(&emitter);
}

MemoryTable program_memory(const ProgramSet *set) {
    const Module *module = set->module;
    MemoryTable table = memory_table(module);
    int64_t slabs = 0;
    for (int i = 0; i < set->slabs.count; i++)
        slabs += slab_bytes(&set->slabs.data[i]);
    int64_t added = set->arena_bytes - table.arena + slabs - table.weights - table.copies -
                    table.gradients - table.optimizer - table.tables;
    for (int i = 0; i < module->inputs.count; i++) {
        const Input *input = &module->inputs.data[i];
        added += axes_elements(module, input->axes, input->axis_count) * dtype_bytes(TYPE_I32);
    }
    table.arena = set->arena_bytes;
    table.workspace += added;
    table.peak += added;
    return table;
}

void program_set_free(ProgramSet *set) {
    if (!set)
        return;
    for (int i = 0; i < set->kernel_count; i++)
        free_kernel_and_arena(set->kernels[i]);
    arena_free(set->arena);
}

const Program *program_find(const ProgramSet *set, const char *name) {
    for (int i = 0; i < set->program_count; i++)
        if (strcmp(set->programs[i].name, name) == 0)
            return &set->programs[i];
    return NULL;
}

/* ---- text ---------------------------------------------------------------------------- */

static void print_operand(const Operand *operand, Text *out) {
    text_printf(out, " %s", space_name(operand->space));
    if (operand->number)
        text_printf(out, "%d", operand->number);
    text_printf(out, "[%lld+%lld]", (long long)operand->offset, (long long)operand->bytes);
}

static void print_step(const ProgramSet *set, const Step *step, Text *out) {
    switch (step->kind) {
    case STEP_LAUNCH:
        text_printf(out, "launch %s", set->kernel_names[step->index]);
        break;
    case STEP_PRODUCT:
        text_puts(out, "product ");
        print_product(&set->products[step->index], out);
        break;
    case STEP_COPY:
        text_puts(out, "copy");
        break;
    case STEP_ZERO:
        text_puts(out, "zero");
        break;
    }
    for (int i = 0; i < step->operand_count; i++)
        print_operand(&step->operands[i], out);
    if (step->workspace.bytes)
        print_operand(&step->workspace, out);
    for (int i = 0; i < step->scalar_count; i++)
        text_printf(out, " s%d", step->scalars[i]);
    text_printf(out, " # %s\n", step->label);
}

void program_print(const ProgramSet *set, const Program *program, Text *out) {
    text_printf(out, "program %s arena %lld\n", program->name, (long long)program->arena_bytes);
    for (int i = 0; i < program->host_scalar_count; i++) {
        NodeId source = program->host_scalars[i];
        if (source < 0)
            text_printf(out, "  s%d = %s\n", i, program->function->scalars[-1 - source]);
        else
            text_printf(out, "  s%d = %%%d\n", i, source);
    }
    for (int64_t i = 0; i < program->step_count; i++) {
        text_printf(out, "  %lld ", (long long)i);
        print_step(set, &program->steps[i], out);
    }
}

/* ---- translation units --------------------------------------------------------------- */

typedef struct KernelText {
    Text text;
    int number;
} KernelText;

static int by_length(const void *left, const void *right) {
    const KernelText *a = left, *b = right;
    if (a->text.length != b->text.length)
        return a->text.length < b->text.length ? 1 : -1;
    return a->number - b->number;
}

/* The longest first, each to the text that is shortest by then. */
void emit_kernels(const ProgramSet *set, KernelPrinter *print, const void *data, int parts,
                  Text *out, int *homes) {
    KernelText *kernels = checked_alloc((size_t)set->kernel_count * sizeof *kernels);
    for (int i = 0; i < set->kernel_count; i++) {
        kernels[i].number = i;
        print(set, i, data, &kernels[i].text);
    }
    if (set->kernel_count)
        qsort(kernels, (size_t)set->kernel_count, sizeof *kernels, by_length);
    for (int part = 0; part < parts; part++)
        text_puts(&out[part], embedded_prelude_h);
    for (int i = 0; i < set->kernel_count; i++) {
        int shortest = 0;
        for (int part = 1; part < parts; part++)
            if (out[part].length < out[shortest].length)
                shortest = part;
        text_puts(&out[shortest], "\n");
        text_append(&out[shortest], text_string(&kernels[i].text), kernels[i].text.length);
        if (homes)
            homes[kernels[i].number] = shortest;
        text_free(&kernels[i].text);
    }
    free(kernels);
}

static void print_kernel(const ProgramSet *set, int kernel, const void *unused, Text *out) {
    (void)unused;
    print_c(set->kernels[kernel], set->kernel_names[kernel], out);
}

void emit_c(const ProgramSet *set, int parts, Text *out) {
    for (int part = 0; part < parts; part++)
        text_puts(&out[part], embedded_prelude_c_h);
    emit_kernels(set, print_kernel, NULL, parts, out, NULL);
}
