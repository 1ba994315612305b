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
#include "codegen/codegen.h"

#include <ctype.h>
#include <math.h>

enum { SMALL_WORK = 65536 }; /* below this a nest runs on one thread: about 10 microseconds */

typedef struct CPrinter {
    const Kernel *kernel;
    KernelNames names;
    int64_t hidden_strides; /* a bit for each power of two that is a variable */
    Text *out;
    int indent;
} CPrinter;

static const Instruction *at(const CPrinter *p, ValueId id) {
    return &p->kernel->instructions.data[id];
}

static void line(const CPrinter *p, const char *format, ...) PRINTF_LIKE(2, 3);
static void line(const CPrinter *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    text_printf(p->out, "%*s", 4 * p->indent, "");
    text_vprintf(p->out, format, args);
    text_puts(p->out, "\n");
    va_end(args);
}

/* ---- types and operands -------------------------------------------------------------- */

static const char *value_type(DataType dtype) {
    static const char *const types[] = {[TYPE_BOOL] = "bool",
                                        [TYPE_I32] = "int32_t",
                                        [TYPE_BF16] = "float",
                                        [TYPE_F32] = "float",
                                        [TYPE_F64] = "double"};
    return types[dtype];
}

/* Of elements in memory: the prelude's types that may share memory with others. */
static const char *memory_type(DataType dtype) {
    static const char *const types[] = {[TYPE_BOOL] = "bool_memory",
                                        [TYPE_I32] = "i32_memory",
                                        [TYPE_BF16] = "bf16_memory",
                                        [TYPE_F32] = "f32_memory"};
    return types[dtype];
}

/* The prefix of the prelude's functions on values of a type. */
static const char *function_prefix(DataType dtype) {
    return dtype == TYPE_I32 ? "i32" : "f32";
}

/* A literal that reads back as exactly this number. */
static void print_number(Text *out, DataType dtype, double number) {
    char digits[64];
    if (dtype == TYPE_BOOL) {
        text_puts(out, number != 0 ? "true" : "false");
        return;
    }
    if (dtype == TYPE_I32) {
        if (number <= INT32_MIN)
            text_puts(out, "INT32_MIN");
        else
            text_printf(out, number < 0 ? "(%.0f)" : "%.0f", number);
        return;
    }
    if (isnan(number)) {
        text_puts(out, "COLAC_NAN");
        return;
    }
    const char *suffix = dtype == TYPE_F64 ? "" : "f";
    if (dtype != TYPE_F64 && !isinf((float)number))
        snprintf(digits, sizeof digits, "%.9g", (double)(float)number);
    else
        snprintf(digits, sizeof digits, "%.17g", number);
    if (isinf(number) || (dtype != TYPE_F64 && isinf((float)number))) {
        snprintf(digits, sizeof digits, "%sCOLAC_INFINITY", number < 0 ? "-" : "");
        suffix = "";
    }
    bool plain = !strpbrk(digits, ".eI");
    text_printf(out, signbit(number) ? "(%s%s%s)" : "%s%s%s", digits, plain ? ".0" : "",
                suffix);
}

static void print_operand(const CPrinter *p, ValueId id) {
    const Instruction *value = at(p, id);
    bool rounds = value->kind == KERNEL_CONSTANT && value->dtype == TYPE_BF16;
    text_puts(p->out, rounds ? "bf16_round(" : "");
    if (value->kind == KERNEL_CONSTANT)
        print_number(p->out, value->dtype, value->number);
    else
        text_puts(p->out, p->names.values[id]);
    text_puts(p->out, rounds ? ")" : "");
}

/* Whether stride * value may leave the range of int, as positions below `positions` are added
 * up: then the product is made in 64 bits. */
static bool is_wide(const CPrinter *p, Term term, int64_t positions) {
    const Instruction *value = at(p, term.value);
    int64_t bound = value->kind == KERNEL_LOOP    ? value->loop->extent
                    : value->kind == KERNEL_DIGIT ? value->modulus
                                                  : INT32_MAX;
    if (value->kind == KERNEL_LOOP && (value->loop->kind != LOOP_LANES || bound > INT32_MAX))
        return false; /* its index has 64 bits */
    int64_t stride = term.stride < 0 ? -term.stride : term.stride;
    return positions > INT32_MAX || stride > INT32_MAX / bound;
}

/* gcc 12 does not vectorize loads that it sees to be a power of two from 32 on apart. */
static bool is_hidden_stride(const CPrinter *p, Term term) {
    const Loop *loop = at(p, term.value)->loop;
    return loop && loop->kind == LOOP_LANES && term.stride >= 32 &&
           (term.stride & (term.stride - 1)) == 0;
}

static void print_term(const CPrinter *p, Term term, int64_t positions, bool is_load) {
    bool wide = is_wide(p, term, positions);
    if (is_load && is_hidden_stride(p, term))
        text_printf(p->out, "stride_%lld * ", (long long)term.stride);
    else if (term.stride != 1 || wide)
        text_printf(p->out, "%lld%s * ", (long long)term.stride, wide ? "LL" : "");
    text_puts(p->out, p->names.values[term.value]);
}

/* An address or index below `positions`. */
static void print_affine(const CPrinter *p, const Affine *affine, int64_t positions,
                         bool is_load) {
    Term terms[MAX_TERMS];
    int count = affine_by_stride(affine, terms);
    for (int i = 0; i < count; i++) {
        text_puts(p->out, i ? " + " : "");
        print_term(p, terms[i], positions, is_load);
    }
    if (affine->base || !count)
        text_printf(p->out, "%s%lld", count ? " + " : "", (long long)affine->base);
}

static void declare_hidden_strides(CPrinter *p) {
    for (int64_t id = 0; id < p->kernel->instructions.count; id++) {
        const Instruction *load = &p->kernel->instructions.data[id];
        if (load->kind != KERNEL_LOAD || !p->names.values[id])
            continue;
        for (int i = 0; i < load->at.term_count; i++) {
            int64_t stride = load->at.terms[i].stride;
            if (!is_hidden_stride(p, load->at.terms[i]) || (p->hidden_strides & stride))
                continue;
            p->hidden_strides |= stride;
            line(p, "const int64_t stride_%lld = hidden(%lld);", (long long)stride,
                 (long long)stride);
        }
    }
}

static void print_element(const CPrinter *p, const Instruction *access) {
    text_printf(p->out, "%s[", p->names.buffers[access->buffer]);
    print_affine(p, &access->at, p->kernel->buffers.data[access->buffer].elements,
                 access->kind == KERNEL_LOAD);
    text_puts(p->out, "]");
}

/* ---- values -------------------------------------------------------------------------- */

/* The op table's expression with operands for a, b, c and the prelude's functions. */
static void print_table_expression(const CPrinter *p, const Instruction *map,
                                   const char *prefix) {
    const char *c = op_info[map->op].expression;
    while (*c) {
        size_t length = 1;
        while (isalpha((unsigned char)c[0]) && isalnum((unsigned char)c[length]))
            length++;
        if (!isalpha((unsigned char)c[0]))
            text_append(p->out, c, 1);
        else if (length == 1 && c[0] - 'a' < map->input_count)
            print_operand(p, map->inputs[c[0] - 'a']);
        else
            text_printf(p->out, "%s_%.*s", prefix, (int)length, c);
        c += length;
    }
}

static void print_cast(const CPrinter *p, const Instruction *map) {
    DataType from = at(p, map->inputs[0])->dtype, to = map->dtype;
    const char *before = "", *after = "";
    if (to == TYPE_BOOL)
        after = " != 0";
    else if (to == TYPE_I32 && from == TYPE_F64)
        before = "i32_from_f32((float)", after = ")";
    else if (to == TYPE_I32 && dtype_is_float(from))
        before = "i32_from_f32(", after = ")";
    else if (to == TYPE_BF16 && from != TYPE_BF16)
        before = "bf16_round((float)", after = ")";
    else if (to == TYPE_F32 && from != TYPE_BF16)
        before = "(float)";
    text_puts(p->out, before);
    print_operand(p, map->inputs[0]);
    text_puts(p->out, after);
}

/* Integers do not overflow, and their quotients are floored: by functions of the prelude. */
static bool is_integer_function(const Instruction *map) {
    switch (map->op) {
    case OP_NEG:
    case OP_ABS:
    case OP_SIGN:
    case OP_ADD:
    case OP_SUB:
    case OP_MUL:
    case OP_DIV:
    case OP_MOD:
        return map->dtype == TYPE_I32;
    default:
        return false;
    }
}

static void print_map(const CPrinter *p, const Instruction *map) {
    if (map->op == OP_CAST) {
        print_cast(p, map);
        return;
    }
    if (is_integer_function(map)) {
        text_printf(p->out, "i32_%s(", op_info[map->op].name);
        for (int i = 0; i < map->input_count; i++) {
            text_puts(p->out, i ? ", " : "");
            print_operand(p, map->inputs[i]);
        }
        text_puts(p->out, ")");
        return;
    }
    bool rounds = map->dtype == TYPE_BF16;
    text_puts(p->out, rounds ? "bf16_round(" : "");
    print_table_expression(p, map, function_prefix(map->dtype));
    text_puts(p->out, rounds ? ")" : "");
}

static void print_random(const CPrinter *p, const Instruction *random) {
    text_puts(p->out, "f32_random(random_key(");
    print_operand(p, random->inputs[0]);
    text_printf(p->out, ", %lldu), (uint32_t)(int64_t)", (long long)random->integer);
    print_operand(p, random->inputs[1]);
    text_puts(p->out, ", (uint64_t)((int64_t)");
    print_operand(p, random->inputs[2]);
    text_puts(p->out, " + ");
    print_affine(p, &random->sample, INT64_MAX, false);
    text_puts(p->out, "), (uint64_t)(");
    print_affine(p, &random->at, INT64_MAX, false);
    text_puts(p->out, "))");
}

static void print_digit(const CPrinter *p, const Instruction *digit) {
    text_puts(p->out, "(int32_t)((");
    print_affine(p, &digit->at, digit->integer, false);
    text_puts(p->out, ")");
    if (digit->divisor > 1)
        text_printf(p->out, " / %lld", (long long)digit->divisor);
    if (digit->divisor * digit->modulus < digit->integer)
        text_printf(p->out, " %% %lld", (long long)digit->modulus);
    text_puts(p->out, ")");
}

static void print_load(const CPrinter *p, const Instruction *load) {
    DataType dtype = load->dtype;
    text_puts(p->out, dtype == TYPE_BF16 ? "bf16_float(" : "");
    print_element(p, load);
    text_puts(p->out, dtype == TYPE_BF16 ? ")" : dtype == TYPE_BOOL ? " != 0" : "");
}

static void print_expression(const CPrinter *p, const Instruction *instruction) {
    switch (instruction->kind) {
    case KERNEL_SCALAR:
        text_printf(p->out, "scalars[%lld]", (long long)instruction->integer);
        break;
    case KERNEL_INDEX:
        text_puts(p->out, "(int32_t)(");
        print_affine(p, &instruction->at, 0, false);
        text_puts(p->out, ")");
        break;
    case KERNEL_DIGIT:
        print_digit(p, instruction);
        break;
    case KERNEL_MAP:
        print_map(p, instruction);
        break;
    case KERNEL_RANDOM:
        print_random(p, instruction);
        break;
    case KERNEL_LOAD:
        print_load(p, instruction);
        break;
    default:
        internal_error("no expression");
    }
}

static void print_store(const CPrinter *p, const Instruction *store) {
    bool narrows = p->kernel->buffers.data[store->buffer].dtype == TYPE_BF16;
    text_printf(p->out, "%*s", 4 * p->indent, "");
    print_element(p, store);
    text_puts(p->out, narrows ? " = bf16_bits(" : " = ");
    print_operand(p, store->inputs[0]);
    text_puts(p->out, narrows ? ");\n" : ";\n");
}

/* ---- loops --------------------------------------------------------------------------- */

static void print_region(CPrinter *p, const Region *region);

static bool has_reductions(const CPrinter *p, const Loop *loop) {
    for (int64_t i = 0; i < loop->body.count; i++)
        if (at(p, loop->body.data[i])->kind == KERNEL_REDUCE)
            return true;
    return false;
}

/* The number of iterations in C: a number, or a variable that is declared here. */
static const char *trip_count(const CPrinter *p, ValueId id) {
    const Loop *loop = at(p, id)->loop;
    Arena *arena = p->kernel->arena;
    if (loop->tile_of < 0 || loop->total % loop->extent == 0)
        return arena_printf(arena, "%lld", (long long)loop->extent);
    const char *end = arena_printf(arena, "end_of_%s", p->names.values[id]);
    const char *rest = arena_printf(arena, "%lld - %lld * %s", (long long)loop->total,
                                    (long long)loop->extent, p->names.values[loop->tile_of]);
    line(p, "const int %s = (int)(%s < %lld ? %s : %lld);", end, rest, (long long)loop->extent,
         rest, (long long)loop->extent);
    return end;
}

static void print_for(const CPrinter *p, ValueId id, const char *count) {
    const Loop *loop = at(p, id)->loop;
    const char *name = p->names.values[id];
    bool narrow = loop->kind == LOOP_LANES && loop->extent <= INT32_MAX;
    line(p, "for (%s %s = 0; %s < %s; %s++) {", narrow ? "int" : "int64_t", name, name, count,
         name);
}

static void print_parallel(CPrinter *p, ValueId id) {
    ValueId innermost = id;
    int depth = 1;
    for (;; depth++) {
        const Region *body = &at(p, innermost)->loop->body;
        const Loop *next = body->count == 1 ? at(p, body->data[0])->loop : NULL;
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
    for (ValueId loop = id;; loop = at(p, loop)->loop->body.data[0]) {
        print_for(p, loop, trip_count(p, loop));
        p->indent++;
        if (loop == innermost)
            break;
    }
    print_region(p, &at(p, innermost)->loop->body);
    while (p->indent > indent) {
        p->indent--;
        line(p, "}");
    }
}

/* Long loops that compute much are cut in blocks, and each asks for the memory that the next
 * ones write (ask_ahead in the prelude). */
enum { AHEAD_BLOCK = 1024, AHEAD_EXTENT = 4 * AHEAD_BLOCK, AHEAD_WORK = 16 };

static bool is_made_in(const Region *region, ValueId value) {
    for (int64_t i = 0; i < region->count; i++)
        if (region->data[i] == value)
            return true;
    return false;
}

/* Does it store to memory in the order of the loop, at an address that is known before it? */
static bool stores_in_order(const CPrinter *p, const Instruction *store, ValueId loop) {
    if (store->kind != KERNEL_STORE || p->kernel->buffers.data[store->buffer].argument < 0)
        return false;
    bool in_order = false;
    for (int i = 0; i < store->at.term_count; i++) {
        const Term *term = &store->at.terms[i];
        in_order |= term->value == loop && term->stride == 1;
        if (is_made_in(&at(p, loop)->loop->body, term->value))
            return false;
    }
    return in_order;
}

static bool asks_ahead(const CPrinter *p, ValueId id) {
    const Loop *loop = at(p, id)->loop;
    if (loop->kind != LOOP_LANES || loop->extent < AHEAD_EXTENT ||
        loop->extent > INT32_MAX / 2 || kernel_work(p->kernel, &loop->body) < AHEAD_WORK)
        return false;
    for (int64_t i = 0; i < loop->body.count; i++)
        if (stores_in_order(p, at(p, loop->body.data[i]), id))
            return true;
    return false;
}

static void print_blocks_of_loop(CPrinter *p, ValueId id) {
    const Loop *loop = at(p, id)->loop;
    const char *count = trip_count(p, id), *name = p->names.values[id];
    line(p, "for (int block = 0; block < %s; block += %d) {", count, AHEAD_BLOCK);
    p->indent++;
    line(p, "const int end = %s - block < %d ? %s : block + %d;", count, AHEAD_BLOCK, count,
         AHEAD_BLOCK);
    for (int64_t i = 0; i < loop->body.count; i++) {
        const Instruction *store = at(p, loop->body.data[i]);
        if (!stores_in_order(p, store, id))
            continue;
        int width = dtype_bytes(p->kernel->buffers.data[store->buffer].dtype);
        line(p, "for (int %s = block; %s == block; %s++)", name, name, name);
        text_printf(p->out, "%*sask_ahead(&", 4 * (p->indent + 1), "");
        print_element(p, store);
        text_printf(p->out, ", %d);\n", AHEAD_BLOCK * width);
    }
    text_puts(p->out, "#pragma omp simd\n");
    line(p, "for (int %s = block; %s < end; %s++) {", name, name, name);
    p->indent++;
    print_region(p, &loop->body);
    p->indent--;
    line(p, "}");
    p->indent--;
    line(p, "}");
}

static void print_plain_loop(CPrinter *p, ValueId id) {
    const Loop *loop = at(p, id)->loop;
    if (asks_ahead(p, id)) {
        print_blocks_of_loop(p, id);
        return;
    }
    const char *count = trip_count(p, id);
    if (loop->kind == LOOP_LANES && loop->extent > 1)
        text_puts(p->out, "#pragma omp simd\n");
    print_for(p, id, count);
    p->indent++;
    print_region(p, &loop->body);
    p->indent--;
    line(p, "}");
}

/* ---- reductions ---------------------------------------------------------------------- */

/* Of a loop with reductions: how many lanes are in use, a power of two. */
static int lanes_width(const Loop *loop) {
    int width = 1;
    while (width < REDUCE_LANES && width < loop->extent)
        width *= 2;
    return width;
}

typedef struct Reduction {
    const CPrinter *p;
    const Instruction *reduce;
    const char *name, *type, *kind, *op; /* total_7, float, f32, sum */
} Reduction;

static Reduction reduction_of(const CPrinter *p, ValueId id) {
    const Instruction *reduce = at(p, id);
    return (Reduction){p,
                       reduce,
                       p->names.values[id],
                       value_type(reduce->dtype),
                       function_prefix(reduce->dtype),
                       op_info[reduce->op].name};
}

static const char *start_value(const Reduction *r) {
    bool integer = r->reduce->dtype == TYPE_I32;
    if (r->reduce->op == OP_SUM)
        return integer ? "0" : "0.0f";
    return integer ? "INT32_MIN" : "-COLAC_INFINITY";
}

/* In the lanes loop: lane takes in the term. */
static void print_take_in(const CPrinter *p, ValueId id) {
    Reduction r = reduction_of(p, id);
    text_printf(p->out, "%*slanes_%s[lane] = ", 4 * p->indent, "", r.name);
    if (r.reduce->op == OP_MAX)
        text_printf(p->out, "lanes_%s[lane] > ", r.name);
    else
        text_printf(p->out,
                    r.reduce->dtype == TYPE_I32 ? "i32_add(lanes_%s[lane], "
                                                : "lanes_%s[lane] + ",
                    r.name);
    print_operand(p, r.reduce->inputs[0]);
    if (r.reduce->op == OP_MAX) {
        text_printf(p->out, " ? lanes_%s[lane] : ", r.name);
        print_operand(p, r.reduce->inputs[0]);
    } else if (r.reduce->dtype == TYPE_I32) {
        text_puts(p->out, ")");
    }
    text_puts(p->out, ";\n");
}

/* `body` for each reduction of a loop. */
static void each_reduction(const CPrinter *p, const Loop *loop,
                           void (*body)(const Reduction *r, const Loop *loop)) {
    for (int64_t i = 0; i < loop->body.count; i++)
        if (at(p, loop->body.data[i])->kind == KERNEL_REDUCE) {
            Reduction r = reduction_of(p, loop->body.data[i]);
            body(&r, loop);
        }
}

static void declare_lanes(const Reduction *r, const Loop *loop) {
    line(r->p, "COLAC_ALIGNED %s lanes_%s[%d];", r->type, r->name, lanes_width(loop));
}

static void start_lanes(const Reduction *r, const Loop *loop) {
    line(r->p, "for (int lane = 0; lane < %d; lane++)", lanes_width(loop));
    line(r->p, "    lanes_%s[lane] = %s;", r->name, start_value(r));
}

static void finish_lanes(const Reduction *r, const Loop *loop) {
    bool rounds = r->reduce->dtype == TYPE_BF16;
    line(r->p, "const %s %s = %s%s_%s_tree(lanes_%s, %d)%s;", r->type, r->name,
         rounds ? "bf16_round(" : "", r->kind, r->op, r->name, lanes_width(loop),
         rounds ? ")" : "");
}

static void print_lanes_loop(CPrinter *p, ValueId id, const char *base, const char *count) {
    const Loop *loop = at(p, id)->loop;
    text_puts(p->out, "#pragma omp simd\n");
    line(p, "for (int lane = 0; lane < %s; lane++) {", count);
    p->indent++;
    line(p, "const int %s = %s + lane;", p->names.values[id], base);
    print_region(p, &loop->body);
    p->indent--;
    line(p, "}");
}

/* The positions [begin, begin + count), whole groups of lanes and then the rest. */
static void print_groups_of_lanes(CPrinter *p, ValueId id, const char *begin,
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
        line(p, "for (int base = %s%s0; base < %s%s%s; base += %d) {", begin, plus, begin, plus,
             whole, REDUCE_LANES);
        p->indent++;
        print_lanes_loop(p, id, "base", arena_printf(arena, "%d", REDUCE_LANES));
        p->indent--;
        line(p, "}");
    }
    if (!constant || known % REDUCE_LANES)
        print_lanes_loop(p, id, arena_printf(arena, "%s%s%s", begin, plus, whole), rest);
}

static void declare_partials(const Reduction *r, const Loop *loop) {
    long long blocks = (long long)((loop->extent + REDUCE_BLOCK - 1) / REDUCE_BLOCK);
    line(r->p, "%s partial_%s[%lld];", r->type, r->name, blocks);
}

static void finish_block(const Reduction *r, const Loop *loop) {
    line(r->p, "partial_%s[begin / %d] = %s_%s_tree(lanes_%s, %d);", r->name, REDUCE_BLOCK,
         r->kind, r->op, r->name, lanes_width(loop));
}

static void finish_partials(const Reduction *r, const Loop *loop) {
    long long blocks = (long long)((loop->extent + REDUCE_BLOCK - 1) / REDUCE_BLOCK);
    bool rounds = r->reduce->dtype == TYPE_BF16;
    line(r->p, "const %s %s = %s%s_%s_terms(partial_%s, %lld)%s;", r->type, r->name,
         rounds ? "bf16_round(" : "", r->kind, r->op, r->name, blocks, rounds ? ")" : "");
}

/* More than one block: its partial results are terms in their turn. */
static void print_reduction_blocks(CPrinter *p, ValueId id) {
    const Loop *loop = at(p, id)->loop;
    long long total = (long long)loop->extent;
    INTERNAL_CHECK(total <= (long long)REDUCE_BLOCK * REDUCE_BLOCK);
    each_reduction(p, loop, declare_partials);
    line(p, "for (int begin = 0; begin < %lld; begin += %d) {", total, REDUCE_BLOCK);
    p->indent++;
    const char *count = arena_printf(p->kernel->arena, "%d", REDUCE_BLOCK);
    if (total % REDUCE_BLOCK) {
        line(p, "const int count = %lld - begin < %d ? (int)(%lld - begin) : %d;", total,
             REDUCE_BLOCK, total, REDUCE_BLOCK);
        count = "count";
    }
    each_reduction(p, loop, start_lanes);
    print_groups_of_lanes(p, id, "begin", count);
    each_reduction(p, loop, finish_block);
    p->indent--;
    line(p, "}");
    each_reduction(p, loop, finish_partials);
}

static void print_reduction_loop(CPrinter *p, ValueId id) {
    const Loop *loop = at(p, id)->loop;
    each_reduction(p, loop, declare_lanes);
    if (loop->extent > REDUCE_BLOCK) {
        print_reduction_blocks(p, id);
        return;
    }
    const char *count = trip_count(p, id);
    each_reduction(p, loop, start_lanes);
    print_groups_of_lanes(p, id, "", count);
    each_reduction(p, loop, finish_lanes);
}

/* ---- regions ------------------------------------------------------------------------- */

static void print_instruction(CPrinter *p, ValueId id) {
    const Instruction *instruction = at(p, id);
    switch (instruction->kind) {
    case KERNEL_CONSTANT:
        return; /* printed where it is used */
    case KERNEL_STORE:
        print_store(p, instruction);
        return;
    case KERNEL_REDUCE:
        print_take_in(p, id);
        return;
    case KERNEL_LOCAL:
        line(p, "COLAC_ALIGNED %s %s[%lld];",
             memory_type(p->kernel->buffers.data[instruction->buffer].dtype),
             p->names.buffers[instruction->buffer],
             (long long)p->kernel->buffers.data[instruction->buffer].elements);
        return;
    case KERNEL_LOOP:
        if (instruction->loop->kind == LOOP_PARALLEL)
            print_parallel(p, id);
        else if (has_reductions(p, instruction->loop))
            print_reduction_loop(p, id);
        else
            print_plain_loop(p, id);
        return;
    default:
        text_printf(p->out, "%*sconst %s %s = ", 4 * p->indent, "",
                    value_type(instruction->dtype), p->names.values[id]);
        print_expression(p, instruction);
        text_puts(p->out, ";\n");
    }
}

static void print_region(CPrinter *p, const Region *region) {
    for (int64_t i = 0; i < region->count; i++)
        print_instruction(p, region->data[i]);
}

static void print_arguments(const CPrinter *p) {
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
        line(p, "(void)scalars;");
}

void print_c(Kernel *kernel, const char *name, Text *out) {
    CPrinter printer = {
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
