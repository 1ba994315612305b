/* codegen/print.c: values as expressions, for both printers. */
#include "codegen/print.h"

#include <ctype.h>
#include <math.h>

const Instruction *printed(const Printer *p, ValueId id) {
    return &p->kernel->instructions.data[id];
}

void print_margin(const Printer *p) {
    text_printf(p->out, "%*s", 4 * p->indent, "");
}

void print_line(const Printer *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    print_margin(p);
    text_vprintf(p->out, format, args);
    text_puts(p->out, "\n");
    va_end(args);
}

/* ---- types and operands -------------------------------------------------------------- */

const char *printed_type(DataType dtype) {
    static const char *const types[] = {[TYPE_BOOL] = "bool",
                                        [TYPE_I32] = "int32_t",
                                        [TYPE_BF16] = "float",
                                        [TYPE_F32] = "float",
                                        [TYPE_F64] = "double"};
    return types[dtype];
}

const char *memory_type(DataType dtype) {
    static const char *const types[] = {[TYPE_BOOL] = "bool_memory",
                                        [TYPE_I32] = "i32_memory",
                                        [TYPE_BF16] = "bf16_memory",
                                        [TYPE_F32] = "f32_memory"};
    return types[dtype];
}

const char *function_prefix(DataType dtype) {
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

void print_operand(const Printer *p, ValueId id) {
    const Instruction *value = printed(p, id);
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
static bool is_wide(const Printer *p, Term term, int64_t positions) {
    const Instruction *value = printed(p, term.value);
    int64_t bound = value->kind == KERNEL_LOOP    ? value->loop->extent
                    : value->kind == KERNEL_DIGIT ? value->modulus
                                                  : INT32_MAX;
    bool narrow =
        p->narrow_loops || (value->kind == KERNEL_LOOP && value->loop->kind == LOOP_LANES);
    if (value->kind == KERNEL_LOOP && (!narrow || bound > INT32_MAX))
        return false; /* its index has 64 bits */
    int64_t stride = term.stride < 0 ? -term.stride : term.stride;
    return positions > INT32_MAX || stride > INT32_MAX / bound;
}

bool is_hidden_stride(const Printer *p, Term term) {
    const Loop *loop = printed(p, term.value)->loop;
    return loop && loop->kind == LOOP_LANES && term.stride >= 32 &&
           (term.stride & (term.stride - 1)) == 0;
}

static void print_term(const Printer *p, Term term, int64_t positions, bool is_load) {
    bool wide = is_wide(p, term, positions);
    if (is_load && (p->hidden_strides & term.stride) && is_hidden_stride(p, term))
        text_printf(p->out, "stride_%lld * ", (long long)term.stride);
    else if (term.stride != 1 || wide)
        text_printf(p->out, "%lld%s * ", (long long)term.stride, wide ? "LL" : "");
    text_puts(p->out, p->names.values[term.value]);
}

void print_affine(const Printer *p, const Affine *affine, int64_t positions, bool is_load) {
    Term terms[MAX_TERMS];
    int count = affine_by_stride(affine, terms);
    for (int i = 0; i < count; i++) {
        text_puts(p->out, i ? " + " : "");
        print_term(p, terms[i], positions, is_load);
    }
    if (affine->base || !count)
        text_printf(p->out, "%s%lld", count ? " + " : "", (long long)affine->base);
}

void print_element(const Printer *p, const Instruction *access) {
    text_printf(p->out, "%s[", p->names.buffers[access->buffer]);
    print_affine(p, &access->at, p->kernel->buffers.data[access->buffer].elements,
                 access->kind == KERNEL_LOAD);
    text_puts(p->out, "]");
}

/* ---- values -------------------------------------------------------------------------- */

/* The op table's expression with operands for a, b, c and the prelude's functions. */
static void print_table_expression(const Printer *p, const Instruction *map,
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

static void print_cast(const Printer *p, const Instruction *map) {
    DataType from = printed(p, map->inputs[0])->dtype, to = map->dtype;
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

static void print_map(const Printer *p, const Instruction *map) {
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

static void print_random(const Printer *p, const Instruction *random) {
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

static void print_digit(const Printer *p, const Instruction *digit) {
    text_puts(p->out, "(int32_t)((");
    print_affine(p, &digit->at, digit->integer, false);
    text_puts(p->out, ")");
    if (digit->divisor > 1)
        text_printf(p->out, " / %lld", (long long)digit->divisor);
    if (digit->divisor * digit->modulus < digit->integer)
        text_printf(p->out, " %% %lld", (long long)digit->modulus);
    text_puts(p->out, ")");
}

static void print_load(const Printer *p, const Instruction *load) {
    DataType dtype = load->dtype;
    text_puts(p->out, dtype == TYPE_BF16 ? "bf16_float(" : "");
    print_element(p, load);
    text_puts(p->out, dtype == TYPE_BF16 ? ")" : dtype == TYPE_BOOL ? " != 0" : "");
}

void print_expression(const Printer *p, const Instruction *instruction) {
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

void print_store(const Printer *p, const Instruction *store) {
    bool narrows = p->kernel->buffers.data[store->buffer].dtype == TYPE_BF16;
    text_printf(p->out, "%*s", 4 * p->indent, "");
    print_element(p, store);
    text_puts(p->out, narrows ? " = bf16_bits(" : " = ");
    print_operand(p, store->inputs[0]);
    text_puts(p->out, narrows ? ");\n" : ";\n");
}

/* ---- loops --------------------------------------------------------------------------- */

const char *print_trip_count(const Printer *p, ValueId id) {
    const Loop *loop = printed(p, id)->loop;
    Arena *arena = p->kernel->arena;
    if (loop->tile_of < 0 || loop->total % loop->extent == 0)
        return arena_printf(arena, "%lld", (long long)loop->extent);
    const char *end = arena_printf(arena, "end_of_%s", p->names.values[id]);
    const char *wide = p->narrow_loops && loop->total > INT32_MAX ? "LL" : "";
    const char *rest =
        arena_printf(arena, "%lld - %lld%s * %s", (long long)loop->total,
                     (long long)loop->extent, wide, p->names.values[loop->tile_of]);
    print_line(p, "const int %s = (int)(%s < %lld ? %s : %lld);", end, rest,
               (long long)loop->extent, rest, (long long)loop->extent);
    return end;
}

/* ---- reductions ---------------------------------------------------------------------- */

bool has_reductions(const Kernel *kernel, const Loop *loop) {
    for (int64_t i = 0; i < loop->body.count; i++)
        if (kernel->instructions.data[loop->body.data[i]].kind == KERNEL_REDUCE)
            return true;
    return false;
}

int lanes_width(const Loop *loop) {
    int width = 1;
    while (width < REDUCE_LANES && width < loop->extent)
        width *= 2;
    return width;
}

static const char *start_value(const Instruction *reduce) {
    bool integer = reduce->dtype == TYPE_I32;
    if (reduce->op == OP_SUM)
        return integer ? "0" : "0.0f";
    return integer ? "INT32_MIN" : "-COLAC_INFINITY";
}

Reduction reduction_of(const Printer *p, ValueId id) {
    const Instruction *reduce = printed(p, id);
    return (Reduction){p,
                       reduce,
                       p->names.values[id],
                       printed_type(reduce->dtype),
                       function_prefix(reduce->dtype),
                       op_info[reduce->op].name,
                       start_value(reduce)};
}

void print_take_in(const Reduction *r, const char *lane) {
    const Printer *p = r->p;
    bool integer = r->reduce->dtype == TYPE_I32;
    print_margin(p);
    if (r->reduce->op == OP_MAX)
        text_printf(p->out, "%s = %s > ", lane, lane);
    else
        text_printf(p->out, integer ? "%s = i32_add(%s, " : "%s = %s + ", lane, lane);
    print_operand(p, r->reduce->inputs[0]);
    if (r->reduce->op == OP_MAX) {
        text_printf(p->out, " ? %s : ", lane);
        print_operand(p, r->reduce->inputs[0]);
    } else if (integer) {
        text_puts(p->out, ")");
    }
    text_puts(p->out, ";\n");
}

void each_reduction(const Printer *p, const Loop *loop,
                    void (*body)(const Reduction *reduction, const Loop *loop)) {
    for (int64_t i = 0; i < loop->body.count; i++)
        if (printed(p, loop->body.data[i])->kind == KERNEL_REDUCE) {
            Reduction reduction = reduction_of(p, loop->body.data[i]);
            body(&reduction, loop);
        }
}
