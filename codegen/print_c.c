/* codegen/print_c.c: a kernel as C.
 *
 * Parallel loops become OpenMP loops, lanes loops `omp simd` ones.  A reduction has an array of
 * REDUCE_LANES lanes that the simd loop adds to, and the tree of the prelude at the end:
 *
 *     float lanes_total_7[128];
 *     …
 *     for (int base = 0; base < 512; base += 128) {
 *     #pragma omp simd
 *         for (int lane = 0; lane < 128; lane++) {
 *             const int t_3 = base + lane;
 *             …
 *             lanes_total_7[lane] = lanes_total_7[lane] + v6;
 *         }
 *     }
 *     const float total_7 = f32_sum_tree(lanes_total_7, 128);
 */
#include "codegen/print.h"

enum { SMALL_WORK = 65536 }; /* below this a nest runs on one thread: about 10 microseconds */

static void declare_hidden_strides(Printer *p) {
    for (int64_t id = 0; id < p->kernel->instructions.count; id++) {
        const Instruction *load = &p->kernel->instructions.data[id];
        if (load->kind != KERNEL_LOAD || !p->names.values[id])
            continue;
        for (int i = 0; i < load->at.term_count; i++) {
            int64_t stride = load->at.terms[i].stride;
            if (!is_hidden_stride(p, load->at.terms[i]) || (p->hidden_strides & stride))
                continue;
            p->hidden_strides |= stride;
            print_line(p, "const int64_t stride_%lld = hidden(%lld);", (long long)stride,
                       (long long)stride);
        }
    }
}

/* ---- loops --------------------------------------------------------------------------- */

static void print_region(Printer *p, const Region *region);

static void print_for(const Printer *p, ValueId id, const char *count) {
    const Loop *loop = printed(p, id)->loop;
    const char *name = p->names.values[id];
    bool narrow = loop->kind == LOOP_LANES && loop->extent <= INT32_MAX;
    print_line(p, "for (%s %s = 0; %s < %s; %s++) {", narrow ? "int" : "int64_t", name, name,
               count, name);
}

static void print_parallel(Printer *p, ValueId id) {
    ValueId innermost = id;
    int depth = 1;
    for (;; depth++) {
        const Region *body = &printed(p, innermost)->loop->body;
        const Loop *next = body->count == 1 ? printed(p, body->data[0])->loop : NULL;
        if (!next || next->kind != LOOP_PARALLEL)
            break;
        innermost = body->data[0];
    }
    Region nest = {.data = &id, .count = 1};
    if (kernel_work(p->kernel, &nest) >= SMALL_WORK) {
        text_puts(p->out, "#pragma omp parallel for schedule(static)");
        if (depth > 1)
            text_printf(p->out, " collapse(%d)", depth);
        text_puts(p->out, "\n");
    }
    int indent = p->indent;
    for (ValueId loop = id;; loop = printed(p, loop)->loop->body.data[0]) {
        print_for(p, loop, print_trip_count(p, loop));
        p->indent++;
        if (loop == innermost)
            break;
    }
    print_region(p, &printed(p, innermost)->loop->body);
    while (p->indent > indent) {
        p->indent--;
        print_line(p, "}");
    }
}

/* Long loops that compute much are cut in blocks, and each asks for the memory that the next
 * ones write (ask_ahead in the prelude). */
enum { AHEAD_BLOCK = 1024, AHEAD_EXTENT = 4 * AHEAD_BLOCK, AHEAD_WORK = 16 };

/* Does it store to memory in the order of the loop, at an address that is known before it? */
static bool stores_in_order(const Printer *p, const Instruction *store, ValueId loop) {
    if (store->kind != KERNEL_STORE || p->kernel->buffers.data[store->buffer].argument < 0)
        return false;
    bool in_order = false;
    for (int i = 0; i < store->at.term_count; i++) {
        const Term *term = &store->at.terms[i];
        in_order |= term->value == loop && term->stride == 1;
        if (region_holds(&printed(p, loop)->loop->body, term->value))
            return false;
    }
    return in_order;
}

static bool asks_ahead(const Printer *p, ValueId id) {
    const Loop *loop = printed(p, id)->loop;
    if (loop->kind != LOOP_LANES || loop->extent < AHEAD_EXTENT ||
        loop->extent > INT32_MAX / 2 || kernel_work(p->kernel, &loop->body) < AHEAD_WORK)
        return false;
    for (int64_t i = 0; i < loop->body.count; i++)
        if (stores_in_order(p, printed(p, loop->body.data[i]), id))
            return true;
    return false;
}

static void print_blocks_of_loop(Printer *p, ValueId id) {
    const Loop *loop = printed(p, id)->loop;
    const char *count = print_trip_count(p, id), *name = p->names.values[id];
    print_line(p, "for (int block = 0; block < %s; block += %d) {", count, AHEAD_BLOCK);
    p->indent++;
    print_line(p, "const int end = %s - block < %d ? %s : block + %d;", count, AHEAD_BLOCK,
               count, AHEAD_BLOCK);
    for (int64_t i = 0; i < loop->body.count; i++) {
        const Instruction *store = printed(p, loop->body.data[i]);
        if (!stores_in_order(p, store, id))
            continue;
        int width = dtype_bytes(p->kernel->buffers.data[store->buffer].dtype);
        print_line(p, "for (int %s = block; %s == block; %s++)", name, name, name);
        text_printf(p->out, "%*sask_ahead(&", 4 * (p->indent + 1), "");
        print_element(p, store);
        text_printf(p->out, ", %d);\n", AHEAD_BLOCK * width);
    }
    text_puts(p->out, "#pragma omp simd\n");
    print_line(p, "for (int %s = block; %s < end; %s++) {", name, name, name);
    p->indent++;
    print_region(p, &loop->body);
    p->indent--;
    print_line(p, "}");
    p->indent--;
    print_line(p, "}");
}

static void print_plain_loop(Printer *p, ValueId id) {
    const Loop *loop = printed(p, id)->loop;
    if (asks_ahead(p, id)) {
        print_blocks_of_loop(p, id);
        return;
    }
    const char *count = print_trip_count(p, id);
    if (loop->kind == LOOP_LANES && loop->extent > 1)
        text_puts(p->out, "#pragma omp simd\n");
    print_for(p, id, count);
    p->indent++;
    print_region(p, &loop->body);
    p->indent--;
    print_line(p, "}");
}

/* ---- reductions ---------------------------------------------------------------------- */

static void declare_lanes(const Reduction *r, const Loop *loop) {
    print_line(r->p, "COLAC_ALIGNED %s lanes_%s[%d];", r->type, r->name, lanes_width(loop));
}

static void start_lanes(const Reduction *r, const Loop *loop) {
    print_line(r->p, "for (int lane = 0; lane < %d; lane++)", lanes_width(loop));
    print_line(r->p, "    lanes_%s[lane] = %s;", r->name, r->start);
}

static void finish_lanes(const Reduction *r, const Loop *loop) {
    bool rounds = r->reduce->dtype == TYPE_BF16;
    print_line(r->p, "const %s %s = %s%s_%s_tree(lanes_%s, %d)%s;", r->type, r->name,
               rounds ? "bf16_round(" : "", r->kind, r->op, r->name, lanes_width(loop),
               rounds ? ")" : "");
}

/* In the lanes loop: lane takes in the term. */
static void print_lane(const Printer *p, ValueId id) {
    Reduction reduction = reduction_of(p, id);
    print_take_in(&reduction, arena_printf(p->kernel->arena, "lanes_%s[lane]", reduction.name));
}

static void print_lanes_loop(Printer *p, ValueId id, const char *base, const char *count) {
    const Loop *loop = printed(p, id)->loop;
    text_puts(p->out, "#pragma omp simd\n");
    print_line(p, "for (int lane = 0; lane < %s; lane++) {", count);
    p->indent++;
    print_line(p, "const int %s = %s + lane;", p->names.values[id], base);
    print_region(p, &loop->body);
    p->indent--;
    print_line(p, "}");
}

/* The positions [begin, begin + count), whole groups of lanes and then the rest. */
static void print_groups_of_lanes(Printer *p, ValueId id, const char *begin,
                                  const char *count) {
    Arena *arena = p->kernel->arena;
    char *end;
    long long known = strtoll(count, &end, 10);
    bool constant = *end == 0;
    const char *whole =
        constant ? arena_printf(arena, "%lld", known - known % REDUCE_LANES)
                 : arena_printf(arena, "(%s - %s %% %d)", count, count, REDUCE_LANES);
    const char *rest = constant ? arena_printf(arena, "%lld", known % REDUCE_LANES)
                                : arena_printf(arena, "%s %% %d", count, REDUCE_LANES);
    const char *plus = begin[0] ? " + " : "";
    if (!constant || known >= REDUCE_LANES) {
        print_line(p, "for (int base = %s%s0; base < %s%s%s; base += %d) {", begin, plus, begin,
                   plus, whole, REDUCE_LANES);
        p->indent++;
        print_lanes_loop(p, id, "base", arena_printf(arena, "%d", REDUCE_LANES));
        p->indent--;
        print_line(p, "}");
    }
    if (!constant || known % REDUCE_LANES)
        print_lanes_loop(p, id, arena_printf(arena, "%s%s%s", begin, plus, whole), rest);
}

static void declare_partials(const Reduction *r, const Loop *loop) {
    long long blocks = (long long)((loop->extent + REDUCE_BLOCK - 1) / REDUCE_BLOCK);
    print_line(r->p, "%s partial_%s[%lld];", r->type, r->name, blocks);
}

static void finish_block(const Reduction *r, const Loop *loop) {
    print_line(r->p, "partial_%s[begin / %d] = %s_%s_tree(lanes_%s, %d);", r->name,
               REDUCE_BLOCK, r->kind, r->op, r->name, lanes_width(loop));
}

static void finish_partials(const Reduction *r, const Loop *loop) {
    long long blocks = (long long)((loop->extent + REDUCE_BLOCK - 1) / REDUCE_BLOCK);
    bool rounds = r->reduce->dtype == TYPE_BF16;
    print_line(r->p, "const %s %s = %s%s_%s_terms(partial_%s, %lld)%s;", r->type, r->name,
               rounds ? "bf16_round(" : "", r->kind, r->op, r->name, blocks, rounds ? ")" : "");
}

/* More than one block: its partial results are terms in their turn. */
static void print_reduction_blocks(Printer *p, ValueId id) {
    const Loop *loop = printed(p, id)->loop;
    long long total = (long long)loop->extent;
    INTERNAL_CHECK(total <= (long long)REDUCE_BLOCK * REDUCE_BLOCK);
    each_reduction(p, loop, declare_partials);
    print_line(p, "for (int begin = 0; begin < %lld; begin += %d) {", total, REDUCE_BLOCK);
    p->indent++;
    const char *count = arena_printf(p->kernel->arena, "%d", REDUCE_BLOCK);
    if (total % REDUCE_BLOCK) {
        print_line(p, "const int count = %lld - begin < %d ? (int)(%lld - begin) : %d;", total,
                   REDUCE_BLOCK, total, REDUCE_BLOCK);
        count = "count";
    }
    each_reduction(p, loop, start_lanes);
    print_groups_of_lanes(p, id, "begin", count);
    each_reduction(p, loop, finish_block);
    p->indent--;
    print_line(p, "}");
    each_reduction(p, loop, finish_partials);
}

static void print_reduction_loop(Printer *p, ValueId id) {
    const Loop *loop = printed(p, id)->loop;
    each_reduction(p, loop, declare_lanes);
    if (loop->extent > REDUCE_BLOCK) {
        print_reduction_blocks(p, id);
        return;
    }
    const char *count = print_trip_count(p, id);
    each_reduction(p, loop, start_lanes);
    print_groups_of_lanes(p, id, "", count);
    each_reduction(p, loop, finish_lanes);
}

/* ---- regions ------------------------------------------------------------------------- */

static void print_instruction(Printer *p, ValueId id) {
    const Instruction *instruction = printed(p, id);
    switch (instruction->kind) {
    case KERNEL_CONSTANT:
        return; /* printed where it is used */
    case KERNEL_STORE:
        print_store(p, instruction);
        return;
    case KERNEL_REDUCE:
        print_lane(p, id);
        return;
    case KERNEL_LOCAL:
        print_line(p, "COLAC_ALIGNED %s %s[%lld];",
                   memory_type(p->kernel->buffers.data[instruction->buffer].dtype),
                   p->names.buffers[instruction->buffer],
                   (long long)p->kernel->buffers.data[instruction->buffer].elements);
        return;
    case KERNEL_LOOP:
        if (instruction->loop->kind == LOOP_PARALLEL)
            print_parallel(p, id);
        else if (has_reductions(p->kernel, instruction->loop))
            print_reduction_loop(p, id);
        else
            print_plain_loop(p, id);
        return;
    default:
        text_printf(p->out, "%*sconst %s %s = ", 4 * p->indent, "",
                    printed_type(instruction->dtype), p->names.values[id]);
        print_expression(p, instruction);
        text_puts(p->out, ";\n");
    }
}

static void print_region(Printer *p, const Region *region) {
    for (int64_t i = 0; i < region->count; i++)
        print_instruction(p, region->data[i]);
}

static void print_arguments(const Printer *p) {
    for (int64_t i = 0; i < p->kernel->buffers.count; i++) {
        const Buffer *buffer = &p->kernel->buffers.data[i];
        if (buffer->argument < 0)
            continue;
        text_printf(p->out, "    %s%s *const %s = buffers[%d];", buffer->writes ? "" : "const ",
                    memory_type(buffer->dtype), p->names.buffers[i], buffer->argument);
        if (buffer->shape)
            text_printf(p->out, " // %s", buffer->shape);
        text_puts(p->out, "\n");
    }
    if (!p->kernel->scalar_count)
        print_line(p, "(void)scalars;");
}

void print_c(Kernel *kernel, const char *name, Text *out) {
    Printer printer = {
        .kernel = kernel, .names = kernel_names(kernel, true), .out = out, .indent = 1};
    text_printf(out, "/* %s\n", name);
    kernel_print(kernel, printer.names, " * ", out);
    text_printf(out, " */\nvoid %s(void *const *buffers, const double *scalars);\n", name);
    text_printf(out, "void %s(void *const *buffers, const double *scalars) {\n", name);
    print_arguments(&printer);
    declare_hidden_strides(&printer);
    print_region(&printer, &kernel->body);
    text_puts(out, "}\n");
}
