/* ir/ops.c: the rows of ops.def as a table, and the table as a page of the manual. */
#include "ir/ir.h"

/* `(INTEGER, TO)` becomes USES_INTEGER | USES_TO, and `()` becomes USES_ | USES_. */
enum { USES_ = 0 };
#define ATTRIBUTE_BITS(...)                   ATTRIBUTE_BITS_OF(__VA_ARGS__, , )
#define ATTRIBUTE_BITS_OF(first, second, ...) (USES_##first | USES_##second)

const OpInfo op_info[OP_COUNT] = {
#define OP(enumerator, op_name, op_arity, axes, dtype, uses, gradient_rule, op_flops, op_work, \
           c_text, description)                                                                \
    [enumerator] = {.name = op_name,                                                           \
                    .arity = op_arity,                                                         \
                    .axis_rule = AXES_##axes,                                                  \
                    .dtype_rule = DTYPE_##dtype,                                               \
                    .attributes = ATTRIBUTE_BITS uses,                                         \
                    .gradient = GRADIENT_##gradient_rule,                                      \
                    .flops = op_flops,                                                         \
                    .work = op_work,                                                           \
                    .expression = c_text,                                                      \
                    .doc = description},
#include "ir/ops.def"
#undef OP
};

Op op_by_name(const char *name) {
    for (int op = 0; op < OP_COUNT; op++)
        if (strcmp(op_info[op].name, name) == 0)
            return (Op)op;
    return OP_COUNT;
}

bool op_is_map(Op op) {
    return op_info[op].expression[0] != 0;
}

bool op_is_view(Op op) {
    return op == OP_RENAME || op == OP_SPLIT || op == OP_MERGE || op == OP_PICK;
}

static const struct {
    const char *name;
    int bytes;
} dtype_info[] = {
    [TYPE_BOOL] = {"bool", 1}, [TYPE_I32] = {"i32", 4}, [TYPE_BF16] = {"bf16", 2},
    [TYPE_F32] = {"f32", 4},   [TYPE_F64] = {"f64", 8},
};

const char *dtype_name(DataType dtype) {
    return dtype_info[dtype].name;
}

int dtype_bytes(DataType dtype) {
    return dtype_info[dtype].bytes;
}

bool dtype_is_float(DataType dtype) {
    return dtype >= TYPE_BF16;
}

/* ---- the manual's table -------------------------------------------------------------- */

/* A cell of a Markdown table: a bar would end it. */
static void print_cell(Text *out, const char *text) {
    for (; *text; text++) {
        if (*text == '|')
            text_puts(out, "\\");
        text_append(out, text, 1);
    }
}

static const char *axis_rule_name(AxisRule rule) {
    static const char *const names[] = {
        [AXES_LEAF] = "from the attributes",
        [AXES_SAME] = "those of every operand",
        [AXES_EXPAND] = "the operand's and `to`",
        [AXES_REDUCE] = "less `from`",
        [AXES_DOT] = "union less `from`",
        [AXES_GATHER] = "the index's, and the table's less `from`",
        [AXES_SCATTER] = "less `from`, and `to`",
        [AXES_PICK] = "less `from`",
        [AXES_STACK] = "the operands' and `to`",
        [AXES_RENAME] = "`from` becomes `to`",
        [AXES_SPLIT] = "`from` becomes `to…`",
        [AXES_MERGE] = "`from…` become `to`",
    };
    return names[rule];
}

void ops_print_markdown(Text *out) {
    text_puts(out, "# The primitives\n\n"
                   "Generated from `ir/ops.def` by `ops_print_markdown`; do not edit.\n\n"
                   "| op | operands | axes of the result | meaning | C | FLOPs | gradient |\n"
                   "|---|---|---|---|---|---|---|\n");
    for (int op = 0; op < OP_COUNT; op++) {
        const OpInfo *info = &op_info[op];
        text_printf(out, "| `%s` | ", info->name);
        if (info->arity < 0)
            text_puts(out, "1…");
        else
            text_printf(out, "%d", info->arity);
        text_printf(out, " | %s | ", axis_rule_name(info->axis_rule));
        print_cell(out, info->doc);
        text_puts(out, " | ");
        if (op_is_map((Op)op)) {
            text_puts(out, "`");
            print_cell(out, info->expression);
            text_puts(out, "`");
        }
        text_printf(out, " | %d | %s |\n", info->flops,
                    info->gradient == GRADIENT_NONE ? "none flows" : "yes");
    }
}
