/* cuda/print_cuda.c: a kernel as CUDA C, a __global__ function for each of its launches.
 *
 * Each of the n threads of a team runs every n-th vector of neighbours of a lanes loop:
 *
 *     for (int base = 4 * thread; base < 512; base += 128) {
 *         float next_x_5[4];
 *         load_f32_4(next_x_5, &in_x[512 * B_1 + base]);
 *         float next_store_9[4];
 * #pragma unroll
 *         for (int v = 0; v < 4; v++) {
 *             const int D_3 = base + v;
 *             const float x_5 = next_x_5[v];
 *             …
 *             next_store_9[v] = v8;
 *         }
 *         store_f32_4(&out_y[512 * B_1 + base], next_store_9);
 *     }
 *
 * The team's own values are computed by every thread of it; its stores are the first
 * thread's. */
#include "codegen/print.h"
#include "cuda/cuda.h"

typedef struct CudaPrinter {
    Printer print; /* first: the values' printer */
    const Launch *launch;
    int reductions; /* so far: where they exchange lanes */
} CudaPrinter;

static const char *name_of(const CudaPrinter *p, ValueId id) {
    return p->print.names.values[id];
}

static const Buffer *buffer_of(const CudaPrinter *p, const Instruction *access) {
    return &p->print.kernel->buffers.data[access->buffer];
}

static void print_wait(const CudaPrinter *p, ValueId id) {
    if (p->launch->threads > 1 && p->launch->waits[id])
        print_line(&p->print,
                   p->launch->threads > WARP_THREADS ? "__syncthreads();" : "__syncwarp();");
}

/* ---- vectors ------------------------------------------------------------------------- */

/* Does a thread reach `width` neighbours at a multiple of their size?  Arguments and shared
 * buffers begin at one. */
static bool is_vector(const CudaPrinter *p, ValueId id, const Instruction *access) {
    const Loop *loop = printed(&p->print, id)->loop;
    int width = p->launch->width;
    if (width == 1 || loop->extent % width || (loop->tile_of >= 0 && loop->total % width) ||
        access->at.base % width)
        return false;
    if (p->launch->threads == 1 && buffer_of(p, access)->argument < 0)
        return false; /* its own memory may begin anywhere */
    bool in_order = false;
    for (int i = 0; i < access->at.term_count; i++) {
        Term term = access->at.terms[i];
        if (term.value == id && term.stride != 1)
            return false;
        if (term.value != id && (term.stride % width || region_holds(&loop->body, term.value)))
            return false;
        in_order |= term.value == id;
    }
    return in_order;
}

/* `lanes`: the loop, whose index is at the first of the neighbours. */
static void print_vector_access(const CudaPrinter *p, const char *verb, ValueId lanes,
                                ValueId id) {
    const Printer *print = &p->print;
    const Instruction *access = printed(print, id);
    const char *index = print->names.values[lanes];
    print_margin(print);
    text_printf(print->out, "%s_%s_%d(", verb, dtype_name(buffer_of(p, access)->dtype),
                p->launch->width);
    if (access->kind == KERNEL_LOAD)
        text_printf(print->out, "next_%s, ", name_of(p, id));
    text_puts(print->out, "&");
    print->names.values[lanes] = "base";
    print_element(print, access);
    print->names.values[lanes] = index;
    if (access->kind == KERNEL_STORE)
        text_printf(print->out, ", next_store_%d", (int)id);
    text_puts(print->out, ");\n");
}

/* Before the neighbours: their loads, and room for what is stored. */
static void print_vector_loads(const CudaPrinter *p, ValueId id) {
    const Loop *loop = printed(&p->print, id)->loop;
    for (int64_t i = 0; i < loop->body.count; i++) {
        ValueId value = loop->body.data[i];
        const Instruction *access = printed(&p->print, value);
        if (access->kind == KERNEL_LOAD && is_vector(p, id, access)) {
            print_line(&p->print, "%s next_%s[%d];", printed_type(access->dtype),
                       name_of(p, value), p->launch->width);
            print_vector_access(p, "load", id, value);
        } else if (access->kind == KERNEL_STORE && is_vector(p, id, access)) {
            print_line(&p->print, "%s next_store_%d[%d];",
                       printed_type(buffer_of(p, access)->dtype), (int)value, p->launch->width);
        }
    }
}

static void print_vector_stores(const CudaPrinter *p, ValueId id) {
    const Loop *loop = printed(&p->print, id)->loop;
    for (int64_t i = 0; i < loop->body.count; i++) {
        const Instruction *access = printed(&p->print, loop->body.data[i]);
        if (access->kind == KERNEL_STORE && is_vector(p, id, access))
            print_vector_access(p, "store", id, loop->body.data[i]);
    }
}

/* ---- loops of lanes ------------------------------------------------------------------ */

static void print_instruction(CudaPrinter *p, ValueId id);

/* In lanes loop `lanes`. */
static void print_lane_instruction(CudaPrinter *p, ValueId lanes, ValueId id) {
    const Printer *print = &p->print;
    const Instruction *instruction = printed(print, id);
    if (instruction->kind == KERNEL_LOAD && is_vector(p, lanes, instruction)) {
        print_line(print, "const %s %s = next_%s[v];", printed_type(instruction->dtype),
                   name_of(p, id), name_of(p, id));
    } else if (instruction->kind == KERNEL_STORE && is_vector(p, lanes, instruction)) {
        print_margin(print);
        text_printf(print->out, "next_store_%d[v] = ", (int)id);
        print_operand(print, instruction->inputs[0]);
        text_puts(print->out, ";\n");
    } else if (instruction->kind == KERNEL_STORE) {
        print_store(print, instruction);
    } else if (instruction->kind == KERNEL_REDUCE) {
        Reduction reduction = reduction_of(print, id);
        print_take_in(&reduction,
                      arena_printf(print->kernel->arena, "lanes_%s[%s]", reduction.name,
                                   p->launch->width > 1 ? "v" : "0"));
    } else {
        print_instruction(p, id);
    }
}

/* A thread's neighbours, from `base` on, one by one. */
static void print_neighbours(CudaPrinter *p, ValueId id, const char *type, const char *end) {
    const Loop *loop = printed(&p->print, id)->loop;
    int width = p->launch->width;
    bool whole = loop->extent % width == 0 && (loop->tile_of < 0 || loop->total % width == 0);
    if (width > 1) {
        text_puts(p->print.out, "#pragma unroll\n");
        print_line(&p->print, "for (int v = 0; v < %d; v++) {", width);
        p->print.indent++;
    }
    print_line(&p->print, "const %s %s = base%s;", type, name_of(p, id),
               width > 1 ? " + v" : "");
    if (!whole) {
        print_line(&p->print, "if (%s >= %s)", name_of(p, id), end);
        print_line(&p->print, "    continue;");
    }
    for (int64_t i = 0; i < loop->body.count; i++)
        print_lane_instruction(p, id, loop->body.data[i]);
    if (width > 1) {
        p->print.indent--;
        print_line(&p->print, "}");
    }
}

/* The thread's iterations from `begin` (a text; "": 0) up to `end`. */
static void print_lanes(CudaPrinter *p, ValueId id, const char *begin, const char *end) {
    const Launch *launch = p->launch;
    Arena *arena = p->print.kernel->arena;
    const char *type =
        printed(&p->print, id)->loop->extent <= INT32_MAX / 2 ? "int" : "int64_t";
    const char *first = "thread";
    int64_t parts = launch->dealt < 0 ? launch->splits : 1;
    if (parts > 1)
        first = arena_printf(arena, "(%d * part + thread)", launch->threads);
    if (launch->width > 1)
        first = arena_printf(arena, "%d * %s", launch->width, first);
    print_line(&p->print, "for (%s base = %s%s%s; base < %s; base += %lld) {", type, begin,
               begin[0] ? " + " : "", first, end,
               (long long)launch->width * launch->threads * parts);
    p->print.indent++;
    print_vector_loads(p, id);
    print_neighbours(p, id, type, end);
    print_vector_stores(p, id);
    p->print.indent--;
    print_line(&p->print, "}");
}

/* ---- reductions ---------------------------------------------------------------------- */

/* TYPE KIND_NAME[width] = {start, …}; */
static void declare_lanes(const CudaPrinter *p, const Reduction *r, const char *kind) {
    print_margin(&p->print);
    text_printf(p->print.out, "%s %s_%s[%d] = {", r->type, kind, r->name, p->launch->width);
    for (int v = 0; v < p->launch->width; v++)
        text_printf(p->print.out, "%s%s", v ? ", " : "", r->start);
    text_puts(p->print.out, "};\n");
}

/* The tree over the lanes of a team, in KIND_NAME, as the value `name`: the reduction's result, or that
 * of a block. */
static void print_tree(CudaPrinter *p, ValueId id, const char *kind, int width,
                       const char *name, bool is_result) {
    Reduction r = reduction_of(&p->print, id);
    bool rounds = is_result && r.reduce->dtype == TYPE_BF16;
    print_wait(p, id);
    print_margin(&p->print);
    text_printf(p->print.out, "const %s %s = %s", r.type, name, rounds ? "bf16_round(" : "");
    if (p->launch->threads == 1)
        text_printf(p->print.out, "%s_%s[0]", kind, r.name);
    else if (p->launch->threads > WARP_THREADS)
        text_printf(p->print.out, "%s_%s_block(exchange_%s[%d], %s_%s[0], %d)", r.kind, r.op,
                    r.kind, p->reductions++ % 2, kind, r.name, width);
    else
        text_printf(p->print.out, "%s_%s_warp(%s_%s, %d, %d)", r.kind, r.op, kind, r.name,
                    p->launch->width, width);
    text_printf(p->print.out, "%s;\n", rounds ? ")" : "");
}

static void each_tree(CudaPrinter *p, const Loop *loop, const char *kind, int width,
                      const char *prefix) {
    for (int64_t i = 0; i < loop->body.count; i++) {
        ValueId id = loop->body.data[i];
        if (printed(&p->print, id)->kind == KERNEL_REDUCE)
            print_tree(p, id, kind, width,
                       arena_printf(p->print.kernel->arena, "%s%s", prefix, name_of(p, id)),
                       !*prefix);
    }
}

static void each_lanes(const CudaPrinter *p, const Loop *loop, const char *kind) {
    for (int64_t i = 0; i < loop->body.count; i++)
        if (printed(&p->print, loop->body.data[i])->kind == KERNEL_REDUCE) {
            Reduction r = reduction_of(&p->print, loop->body.data[i]);
            declare_lanes(p, &r, kind);
        }
}

/* The thread that owns the lane of the partial result of the block takes it in. */
static void take_in_partials(const CudaPrinter *p, const Loop *loop) {
    for (int64_t i = 0; i < loop->body.count; i++) {
        if (printed(&p->print, loop->body.data[i])->kind != KERNEL_REDUCE)
            continue;
        Reduction r = reduction_of(&p->print, loop->body.data[i]);
        for (int v = 0; v < p->launch->width; v++) {
            print_line(&p->print, "if (begin / %d %% %d == %d * thread + %d)", REDUCE_BLOCK,
                       REDUCE_LANES, p->launch->width, v);
            print_line(&p->print,
                       "    partial_%s[%d] = %s_%s_take_in(partial_%s[%d], block_%s);", r.name,
                       v, r.kind, r.op, r.name, v, r.name);
        }
    }
}

/* More than one block of the fixed order: its partial results are terms in their turn. */
static void print_reduction_blocks(CudaPrinter *p, ValueId id) {
    const Loop *loop = printed(&p->print, id)->loop;
    long long total = (long long)loop->extent;
    int64_t blocks = (loop->extent + REDUCE_BLOCK - 1) / REDUCE_BLOCK;
    bool exchanges = p->launch->threads > WARP_THREADS;
    int reductions = p->reductions;
    INTERNAL_CHECK(blocks <= REDUCE_BLOCK &&
                   p->launch->width * p->launch->threads == REDUCE_LANES);
    each_lanes(p, loop, "partial");
    print_line(&p->print, "for (int begin = 0; begin < %lld; begin += %d) {", total,
               REDUCE_BLOCK);
    p->print.indent++;
    print_line(&p->print, "const int end = %lld - begin < %d ? (int)%lld : begin + %d;", total,
               REDUCE_BLOCK, total, REDUCE_BLOCK);
    if (exchanges)
        print_line(&p->print, "__syncthreads();");
    each_lanes(p, loop, "lanes");
    print_lanes(p, id, "begin", "end");
    each_tree(p, loop, "lanes", REDUCE_LANES, "block_");
    take_in_partials(p, loop);
    p->print.indent--;
    print_line(&p->print, "}");
    if (exchanges)
        print_line(&p->print, "__syncthreads();");
    p->reductions = reductions;
    Loop of_blocks = {.extent = blocks};
    each_tree(p, loop, "partial", lanes_width(&of_blocks), "");
}

static void print_lanes_loop(CudaPrinter *p, ValueId id) {
    const Loop *loop = printed(&p->print, id)->loop;
    bool reduces = has_reductions(p->print.kernel, loop);
    if (reduces && loop->extent > REDUCE_BLOCK) {
        print_reduction_blocks(p, id);
        return;
    }
    if (reduces)
        each_lanes(p, loop, "lanes");
    print_lanes(p, id, "", print_trip_count(&p->print, id));
    if (reduces)
        each_tree(p, loop, "lanes", lanes_width(loop), "");
}

/* ---- regions ------------------------------------------------------------------------- */

/* A store of the team's: by its first thread. */
static void print_team_store(const CudaPrinter *p, const Instruction *store) {
    const Launch *launch = p->launch;
    if (launch->threads == 1 && launch->splits == 1) {
        print_store(&p->print, store);
        return;
    }
    print_line(&p->print,
               launch->splits > 1 ? "if (part == 0 && thread == 0)" : "if (thread == 0)");
    Printer inner = p->print;
    inner.indent++;
    print_store(&inner, store);
}

static void print_local(const CudaPrinter *p, const Instruction *local) {
    if (p->launch->threads == 1)
        print_line(&p->print, "%s %s[%lld];", memory_type(buffer_of(p, local)->dtype),
                   p->print.names.buffers[local->buffer],
                   (long long)buffer_of(p, local)->elements);
}

static void print_region(CudaPrinter *p, const Region *region) {
    for (int64_t i = 0; i < region->count; i++)
        print_instruction(p, region->data[i]);
}

static void print_serial_loop(CudaPrinter *p, ValueId id) {
    const Loop *loop = printed(&p->print, id)->loop;
    const char *type = loop->extent <= INT32_MAX ? "int" : "int64_t";
    const char *count = print_trip_count(&p->print, id), *name = name_of(p, id);
    print_line(&p->print, "for (%s %s = 0; %s < %s; %s++) {", type, name, name, count, name);
    p->print.indent++;
    print_region(p, &loop->body);
    p->print.indent--;
    print_line(&p->print, "}");
}

/* Marks what a value of a region is computed from, there. */
static void mark_needed(const CudaPrinter *p, ValueId id, bool *needed) {
    const Instruction *instruction = printed(&p->print, id);
    if (needed[id])
        return;
    needed[id] = true;
    for (int i = 0; i < instruction->input_count; i++)
        if (instruction->inputs[i] >= 0)
            mark_needed(p, instruction->inputs[i], needed);
    for (int i = 0; i < instruction->at.term_count; i++)
        mark_needed(p, instruction->at.terms[i].value, needed);
    for (int i = 0; i < instruction->sample.term_count; i++)
        mark_needed(p, instruction->sample.terms[i].value, needed);
}

/* Is iteration `ahead` this team's?  As `mine`. */
static void print_whose(CudaPrinter *p, const char *count) {
    const Launch *launch = p->launch;
    const Loop *loop = printed(&p->print, launch->dealt)->loop;
    bool *needed = arena_alloc_array(p->print.kernel->arena,
                                     (size_t)p->print.kernel->instructions.count, 1);
    mark_needed(p, launch->row, needed);
    print_line(&p->print, "bool mine = false;");
    print_line(&p->print, "if (ahead < %s) {", count);
    p->print.indent++;
    print_line(&p->print, "const int %s = ahead;", name_of(p, launch->dealt));
    for (int64_t i = 0; i < loop->body.count; i++)
        if (needed[loop->body.data[i]])
            print_instruction(p, loop->body.data[i]);
    print_line(&p->print, "mine = (uint32_t)%s %% %lldu == (uint32_t)part;",
               name_of(p, launch->row), (long long)launch->splits);
    p->print.indent--;
    print_line(&p->print, "}");
}

/* The threads of a warp look at 32 iterations together; the team's own ones follow in order. */
static void print_dealt_loop(CudaPrinter *p, ValueId id) {
    const Loop *loop = printed(&p->print, id)->loop;
    const char *count = print_trip_count(&p->print, id), *name = name_of(p, id);
    INTERNAL_CHECK(loop->extent <= INT32_MAX - WARP_THREADS);
    print_line(&p->print, "for (int first = 0; first < %s; first += %d) {", count,
               WARP_THREADS);
    p->print.indent++;
    print_line(&p->print, "const int ahead = first + (int)threadIdx.x %% %d;", WARP_THREADS);
    print_whose(p, count);
    print_line(
        &p->print,
        "for (uint32_t left = __ballot_sync(0xFFFFFFFFu, mine); left; left &= left - 1) {");
    p->print.indent++;
    print_line(&p->print, "const int %s = first + __ffs((int)left) - 1;", name);
    print_region(p, &loop->body);
    for (int i = 0; i < 2; i++) {
        p->print.indent--;
        print_line(&p->print, "}");
    }
}

static void print_loop(CudaPrinter *p, ValueId id) {
    switch (printed(&p->print, id)->loop->kind) {
    case LOOP_PARALLEL: /* its index is known: see print_nest */
        print_region(p, &printed(&p->print, id)->loop->body);
        return;
    case LOOP_SERIAL:
        if (id == p->launch->dealt && p->launch->splits > 1)
            print_dealt_loop(p, id);
        else
            print_serial_loop(p, id);
        return;
    case LOOP_LANES:
        print_lanes_loop(p, id);
        return;
    }
}

static void print_instruction(CudaPrinter *p, ValueId id) {
    const Instruction *instruction = printed(&p->print, id);
    if (instruction->kind == KERNEL_CONSTANT)
        return; /* printed where it is used */
    if (instruction->kind != KERNEL_LOOP || instruction->loop->kind == LOOP_LANES)
        print_wait(p, id);
    switch (instruction->kind) {
    case KERNEL_STORE:
        print_team_store(p, instruction);
        return;
    case KERNEL_LOCAL:
        print_local(p, instruction);
        return;
    case KERNEL_LOOP:
        print_loop(p, id);
        return;
    default:
        print_margin(&p->print);
        text_printf(p->print.out, "const %s %s = ", printed_type(instruction->dtype),
                    name_of(p, id));
        print_expression(&p->print, instruction);
        text_puts(p->print.out, ";\n");
    }
}

/* ---- functions ----------------------------------------------------------------------- */

/* const int b_1 = iteration / 256 % 8; for each loop of the nest. */
static void print_nest(const CudaPrinter *p) {
    int64_t inner = p->launch->iterations;
    for (ValueId id = p->launch->nest; id >= 0; id = nest_below(p->print.kernel, id)) {
        const Loop *loop = printed(&p->print, id)->loop;
        inner /= loop->extent;
        print_margin(&p->print);
        text_printf(p->print.out, "const %s %s = iteration",
                    loop->extent <= INT32_MAX ? "int" : "int64_t", name_of(p, id));
        if (inner > 1)
            text_printf(p->print.out, " / %lld", (long long)inner);
        if (id != p->launch->nest)
            text_printf(p->print.out, " %% %lld", (long long)loop->extent);
        text_puts(p->print.out, ";\n");
        const char *end = print_trip_count(&p->print, id);
        if (loop->tile_of >= 0 && loop->total % loop->extent) {
            print_line(&p->print, "if (%s >= %s)", name_of(p, id), end);
            print_line(&p->print, "    return;");
        }
    }
}

/* Who this thread is: its team, its place in it, the iteration of the nest. */
static void print_place(const CudaPrinter *p) {
    const Launch *launch = p->launch;
    int64_t teams = launch->iterations * launch->splits;
    const char *type = launch->blocks * launch->teams <= INT32_MAX ? "int" : "int64_t";
    Arena *arena = p->print.kernel->arena;
    const char *thread = "(int)threadIdx.x", *team = "(int)blockIdx.x";
    if (launch->threads == 1)
        thread = "0";
    else if (launch->teams > 1)
        thread = arena_printf(arena, "(int)threadIdx.x %% %d", launch->threads);
    if (launch->teams > 1)
        team = arena_printf(
            arena, "%d * (%s)blockIdx.x + (int)threadIdx.x%s", launch->teams, type,
            launch->threads == 1 ? "" : arena_printf(arena, " / %d", launch->threads));
    print_line(&p->print, "const int thread = %s;", thread);
    print_line(&p->print, "const %s team = %s;", type, team);
    if (teams < launch->blocks * launch->teams) {
        print_line(&p->print, "if (team >= %lld)", (long long)teams);
        print_line(&p->print, "    return;");
    }
    if (launch->splits > 1)
        print_line(&p->print, "const int part = (int)(team %% %lld);",
                   (long long)launch->splits);
    if (launch->nest < 0)
        return;
    print_line(&p->print, "const %s iteration = team%s;", type,
               launch->splits > 1
                   ? arena_printf(p->print.kernel->arena, " / %lld", (long long)launch->splits)
                   : "");
    print_nest(p);
}

static void declare_shared(const CudaPrinter *p, const Region *region) {
    for (int64_t i = 0; i < region->count; i++) {
        const Instruction *instruction = printed(&p->print, region->data[i]);
        if (instruction->loop)
            declare_shared(p, &instruction->loop->body);
        if (instruction->kind != KERNEL_LOCAL)
            continue;
        const Buffer *local = buffer_of(p, instruction);
        const char *name = p->print.names.buffers[instruction->buffer];
        const char *type = memory_type(local->dtype);
        int64_t width = dtype_bytes(local->dtype);
        print_line(&p->print, "__shared__ __align__(16) %s teams_%s[%d][%lld];", type, name,
                   p->launch->teams,
                   (long long)(scratch_aligned(local->elements * width) / width));
        print_line(&p->print, "%s *const %s = teams_%s[%s];", type, name, name,
                   p->launch->teams > 1 ? arena_printf(p->print.kernel->arena,
                                                       "threadIdx.x / %d", p->launch->threads)
                                        : "0");
    }
}

static bool reduces_type(const CudaPrinter *p, const Region *region, bool integers) {
    for (int64_t i = 0; i < region->count; i++) {
        const Instruction *instruction = printed(&p->print, region->data[i]);
        if ((instruction->kind == KERNEL_REDUCE &&
             (instruction->dtype == TYPE_I32) == integers) ||
            (instruction->loop && reduces_type(p, &instruction->loop->body, integers)))
            return true;
    }
    return false;
}

static void print_memory(const CudaPrinter *p) {
    if (p->launch->threads == 1)
        return;
    declare_shared(p, &p->launch->body);
    if (p->launch->threads <= WARP_THREADS)
        return;
    if (reduces_type(p, &p->launch->body, false))
        print_line(&p->print, "__shared__ float exchange_f32[2][%d];", REDUCE_LANES);
    if (reduces_type(p, &p->launch->body, true))
        print_line(&p->print, "__shared__ int32_t exchange_i32[2][%d];", REDUCE_LANES);
}

static void print_parameter(const CudaPrinter *p, int argument) {
    const Kernel *kernel = p->print.kernel;
    if (argument == kernel->argument_count) {
        text_puts(p->print.out, "const double *scalars");
        return;
    }
    for (int64_t i = 0; i < kernel->buffers.count; i++) {
        const Buffer *buffer = &kernel->buffers.data[i];
        if (buffer->argument != argument)
            continue;
        text_printf(p->print.out, "%s%s *%s", buffer->writes ? "" : "const ",
                    memory_type(buffer->dtype), p->print.names.buffers[i]);
        if (buffer->shape)
            text_printf(p->print.out, " /* %s */", buffer->shape);
    }
}

static void print_launch(CudaPrinter *p) {
    const Launch *launch = p->launch;
    Text *out = p->print.out;
    int threads = launch->threads * launch->teams;
    text_printf(out, "COLAC_KERNEL __launch_bounds__(%d, %d)\n%s(", threads,
                RESIDENT_THREADS / threads, launch->name);
    for (int i = 0; i < launch->argument_count; i++) {
        text_puts(out, i ? ",\n    " : "");
        print_parameter(p, launch->arguments[i]);
    }
    text_puts(out, ") {\n");
    print_place(p);
    print_memory(p);
    print_region(p, &launch->body);
    text_puts(out, "}\n");
}

void print_cuda(Kernel *kernel, const char *name, const LaunchList *launches, Text *out) {
    CudaPrinter printer = {.print = {.kernel = kernel,
                                     .names = kernel_names(kernel, true),
                                     .narrow_loops = true,
                                     .out = out,
                                     .indent = 1}};
    text_printf(out, "/* %s\n", name);
    kernel_print(kernel, printer.print.names, " * ", out);
    text_puts(out, " */\n");
    for (int i = 0; i < launches->count; i++) {
        printer.launch = &launches->launches[i];
        printer.reductions = 0;
        text_puts(out, i ? "\n" : "");
        print_launch(&printer);
    }
}

static void print_kernel(const ProgramSet *set, int kernel, const void *data, Text *out) {
    const LaunchList *launches = data;
    print_cuda(set->kernels[kernel], set->kernel_names[kernel], &launches[kernel], out);
}

CudaSource cuda_source(const ProgramSet *set) {
    int count = set->kernel_count;
    CudaSource source = {.text_count = count < CUDA_TEXTS ? count : CUDA_TEXTS};
    source.kernels = checked_alloc((size_t)count * sizeof *source.kernels);
    source.homes = checked_alloc((size_t)count * sizeof *source.homes);
    for (int i = 0; i < count; i++) {
        source.kernels[i] = launches_of(set->kernels[i], set->kernel_names[i]);
        source.launch_count += source.kernels[i].count;
    }
    source.launches = checked_alloc((size_t)source.launch_count * sizeof *source.launches);
    for (int i = 0, at = 0; i < count; i++)
        for (int k = 0; k < source.kernels[i].count; k++)
            source.launches[at++] = &source.kernels[i].launches[k];
    for (int i = 0; i < source.text_count; i++)
        text_puts(&source.texts[i], embedded_prelude_cuda_h);
    emit_kernels(set, print_kernel, source.kernels, source.text_count, source.texts,
                 source.homes);
    return source;
}

bool cuda_source_fits(const CudaSource *source, const Module *module,
                      Diagnostics *diagnostics) {
    for (int i = 0; i < source->launch_count; i++) {
        const Launch *launch = source->launches[i];
        if (launch->blocks <= MOST_BLOCKS)
            continue;
        help(error_in_file(
                 diagnostics, module->name,
                 "kernel `%s` would be of %lld blocks, and a card's grid has at most %d",
                 launch->name, (long long)launch->blocks, MOST_BLOCKS),
             "fewer sequences at a time (the first dims of the model, by `-D`)");
        return false;
    }
    return true;
}

void cuda_source_free(CudaSource *source) {
    for (int i = 0; i < source->text_count; i++)
        text_free(&source->texts[i]);
    free(source->kernels);
    free(source->homes);
    free(source->launches);
    *source = (CudaSource){0};
}
