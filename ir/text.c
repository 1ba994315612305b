/* ir/text.c: the text form of a module, complete at every stage, and Graphviz's.
 *
 *   module    = "module" "stage" STAGE line*
 *   line      = "axis" NAME SIZE
 *             | "scope" NUMBER ["in" NUMBER] STRING ["block" NAME]
 *             | "input" NAME TYPE "below" INTEGER "next" INTEGER
 *             | "state" ROLE PATH ["number" N] DTYPE "in" AXES "out" AXES ["order" AXES] INIT
 *               ["of" STATE] ["group" N] ["low_rank"] ["flat"] ["offset" N]
 *             | "function" NAME "(" [NAME {"," NAME}] ")" ["arena" BYTES] "{" statement* "}"
 *   statement = "%"N "=" OP {"%"N} [NUMBER] ["from" AXES] ["to" AXES] ":" TYPE
 *               ["scope" N] ["ordinal" N] ["clone" N ["of" "%"N]] ["adjoint" "%"N]
 *               ["name" STRING]
 *               ["order" AXES] ["group" N] ["stored"] ["offset" N]
 *             | "value" SCOPE STRING "%"N
 *             | "write" ROLE PATH ["number" N] ("=" | "+=") "%"N ["direct"]
 *             | "group" N KIND "rows" AXES "inner" AXES
 *   AXES      = "(" [NAME {"," NAME}] ")"        TYPE = DTYPE ["[" NAME {"," NAME} "]"]
 *
 * A line is a statement; `#` starts a comment.  A name that is no plain word is written as a
 * string.  An ordinal is left out where it is the next of its scope. */
#include "ir/ir.h"

#include <ctype.h>
#include <math.h>

/* ---- printing ------------------------------------------------------------------------ */

static bool is_name_char(char c) {
    return isalnum((unsigned char)c) || c == '_' || c == '.';
}

static bool is_path_char(char c) {
    return is_name_char(c) || c == '[' || c == ']';
}

static void print_string(Text *out, const char *string) {
    text_puts(out, "\"");
    for (; *string; string++) {
        unsigned char c = (unsigned char)*string;
        if (c == '"' || c == '\\')
            text_printf(out, "\\%c", c);
        else if (c < ' ' || c == 0x7F)
            text_printf(out, "\\x%02x", c);
        else
            text_append(out, string, 1);
    }
    text_puts(out, "\"");
}

static void print_word(Text *out, const char *word, bool (*plain)(char)) {
    bool all_plain = *word != 0;
    for (const char *c = word; *c; c++)
        all_plain &= plain(*c);
    if (all_plain)
        text_puts(out, word);
    else
        print_string(out, word);
}

static void print_axes(Text *out, const Module *module, const AxisId *axes, int count) {
    for (int i = 0; i < count; i++) {
        if (i)
            text_puts(out, ",");
        print_word(out, module->axes.data[axes[i]].name, is_name_char);
    }
}

static void print_axis_list(Text *out, const Module *module, const char *keyword,
                            const AxisId *axes, int count) {
    text_printf(out, " %s(", keyword);
    print_axes(out, module, axes, count);
    text_puts(out, ")");
}

static void print_type(Text *out, const Module *module, DataType dtype, const AxisId *axes,
                       int rank) {
    text_puts(out, dtype_name(dtype));
    if (!rank)
        return;
    text_puts(out, "[");
    print_axes(out, module, axes, rank);
    text_puts(out, "]");
}

static void print_number(Text *out, double number) {
    if (isnan(number))
        text_puts(out, "nan");
    else if (isinf(number))
        text_puts(out, number > 0 ? "inf" : "-inf");
    else
        text_printf(out, "%.17g", number);
}

static const char *const init_names[] = {[INIT_ZEROS] = "zeros",
                                         [INIT_CONSTANT] = "constant",
                                         [INIT_NORMAL] = "normal",
                                         [INIT_UNIFORM] = "uniform"};

static void print_state(Text *out, const Module *module, const State *state) {
    text_printf(out, "state %s ", role_name(state->role));
    print_word(out, state->path, is_path_char);
    if (state->number)
        text_printf(out, " number %d", state->number);
    text_printf(out, " %s", dtype_name(state->dtype));
    print_axis_list(out, module, "in", state->in, state->in_count);
    print_axis_list(out, module, "out", state->out, state->out_count);
    if (state->order_count >= 0)
        print_axis_list(out, module, "order", state->order, state->order_count);
    text_printf(out, " %s", init_names[state->init.kind]);
    if (state->init.kind != INIT_ZEROS) {
        text_puts(out, " ");
        print_number(out, state->init.scale);
    }
    if (state->weight >= 0)
        text_printf(out, " of %d", state->weight);
    if (state->group)
        text_printf(out, " group %d", state->group);
    text_puts(out, state->low_rank ? " low_rank" : "");
    text_puts(out, state->flat ? " flat" : "");
    if (state->offset >= 0)
        text_printf(out, " offset %lld", (long long)state->offset);
    text_puts(out, "\n");
}

static void print_placement(Text *out, const Module *module, const Placement *placement) {
    if (placement->order_count >= 0)
        print_axis_list(out, module, "order", placement->order, placement->order_count);
    if (placement->group >= 0)
        text_printf(out, " group %d", placement->group);
    if (placement->stored)
        text_puts(out, " stored");
    if (placement->offset >= 0)
        text_printf(out, " offset %lld", (long long)placement->offset);
}

/* Operands and attributes: `dot %3 %5 from(D)`. */
static void print_operation(Text *out, const Module *module, const Node *node) {
    const OpInfo *info = &op_info[node->op];
    text_puts(out, info->name);
    for (int i = 0; i < node->input_count; i++)
        text_printf(out, " %%%d", node->inputs[i]);
    if (info->attributes & USES_NUMBER) {
        text_puts(out, " ");
        print_number(out, node->attr.number);
    }
    if (info->attributes & USES_INTEGER)
        text_printf(out, " %lld", (long long)node->attr.integer);
    if (info->attributes & USES_FROM)
        print_axis_list(out, module, "from", node->attr.from, node->attr.from_count);
    if (info->attributes & USES_TO)
        print_axis_list(out, module, "to", node->attr.to, node->attr.to_count);
}

/* `next_ordinal` is the ordinal that the parser would give the node. */
static void print_node(Text *out, const Function *function, NodeId id, int32_t next_ordinal) {
    const Module *module = function->module;
    const Node *node = node_at(function, id);
    text_printf(out, "  %%%d = ", id);
    print_operation(out, module, node);
    text_puts(out, " : ");
    print_type(out, module, node->type.dtype, node->type.axes, node->type.rank);
    if (node->scope)
        text_printf(out, " scope %d", node->scope);
    if (node->ordinal != next_ordinal)
        text_printf(out, " ordinal %d", node->ordinal);
    if (node->clone)
        text_printf(out, " clone %d", node->clone);
    if (node->original >= 0)
        text_printf(out, " of %%%d", node->original);
    if (node->adjoint_of >= 0)
        text_printf(out, " adjoint %%%d", node->adjoint_of);
    if (node->name) {
        text_puts(out, " name ");
        print_string(out, node->name);
    }
    print_placement(out, module, &node->placement);
    if (node->op == OP_STATE) { /* for the reader */
        const State *state = &module->states.data[node->attr.integer];
        text_printf(out, "  # %s ", role_name(state->role));
        print_word(out, state->path, is_path_char);
    }
    text_puts(out, "\n");
}

static void print_write(Text *out, const Module *module, const Write *write) {
    const State *state = &module->states.data[write->state];
    text_printf(out, "  write %s ", role_name(state->role));
    print_word(out, state->path, is_path_char);
    if (state->number)
        text_printf(out, " number %d", state->number);
    text_printf(out, " %s %%%d%s\n", write->add ? "+=" : "=", write->value,
                write->direct ? " direct" : "");
}

static void print_function(Text *out, const Function *function) {
    const Module *module = function->module;
    text_puts(out, "function ");
    print_word(out, function->name, is_name_char);
    for (int64_t i = 0; i < function->scalar_count; i++) {
        text_puts(out, i ? ", " : "(");
        print_word(out, function->scalars[i], is_name_char);
    }
    text_puts(out, function->scalar_count ? ")" : "()");
    if (function->arena_bytes >= 0)
        text_printf(out, " arena %lld", (long long)function->arena_bytes);
    text_puts(out, " {\n");
    int32_t *next = checked_alloc((size_t)module->scopes.count * sizeof *next);
    for (NodeId id = 0; id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        print_node(out, function, id, next[node->scope]);
        if (node->ordinal >= next[node->scope])
            next[node->scope] = node->ordinal + 1;
    }
    free(next);
    for (int64_t i = 0; i < function->names.count; i++) {
        const NamedValue *value = &function->names.data[i];
        text_printf(out, "  value %d ", value->scope);
        print_string(out, value->name);
        text_printf(out, " %%%d\n", value->node);
    }
    for (int64_t i = 0; i < function->writes.count; i++)
        print_write(out, module, &function->writes.data[i]);
    for (int64_t i = 0; i < function->groups.count; i++) {
        const Group *group = &function->groups.data[i];
        text_printf(out, "  group %lld %s", (long long)i, group_kind_name(group->kind));
        print_axis_list(out, module, "rows", group->rows, group->row_count);
        print_axis_list(out, module, "inner", group->inner, group->inner_count);
        text_puts(out, "\n");
    }
    text_puts(out, "}\n");
}

static void print_scope(Text *out, const Module *module, ScopeId id) {
    const Scope *scope = &module->scopes.data[id];
    text_printf(out, "scope %d ", id);
    if (id)
        text_printf(out, "in %d ", scope->parent);
    print_string(out, scope->path);
    if (scope->block[0]) {
        text_puts(out, " block ");
        print_word(out, scope->block, is_name_char);
    }
    text_puts(out, "\n");
}

void ir_print(const Module *module, Stage stage, Text *out) {
    text_printf(out, "module stage %s\n", stage_name(stage));
    for (int64_t i = 0; i < module->axes.count; i++) {
        text_puts(out, "axis ");
        print_word(out, module->axes.data[i].name, is_name_char);
        text_printf(out, " %lld\n", (long long)module->axes.data[i].size);
    }
    for (ScopeId id = 0; id < module->scopes.count; id++)
        if (id || module->scopes.data[id].path[0] || module->scopes.data[id].block[0])
            print_scope(out, module, id);
    for (int64_t i = 0; i < module->inputs.count; i++) {
        const Input *input = &module->inputs.data[i];
        text_puts(out, "input ");
        print_word(out, input->name, is_name_char);
        text_puts(out, " ");
        print_type(out, module, TYPE_I32, input->axes, input->axis_count);
        text_printf(out, " below %lld next %lld\n", (long long)input->below,
                    (long long)input->next);
    }
    for (int64_t i = 0; i < module->states.count; i++)
        print_state(out, module, &module->states.data[i]);
    for (int64_t i = 0; i < module->functions.count; i++)
        print_function(out, module->functions.data[i]);
}

/* ---- Graphviz ------------------------------------------------------------------------ */

static void print_dot_node(Text *out, const Function *function, NodeId id) {
    const Node *node = node_at(function, id);
    Text label = {0};
    text_printf(&label, "%%%d ", id);
    print_operation(&label, function->module, node);
    if (node->name)
        text_printf(&label, " (%s)", node->name);
    text_puts(&label, " : ");
    print_type(&label, function->module, node->type.dtype, node->type.axes, node->type.rank);
    text_printf(out, "    n%d [label=", id);
    print_string(out, text_string(&label));
    text_printf(out, "%s];\n", node->op == OP_DOT ? ", shape=box, style=bold" : "");
    text_free(&label);
}

void ir_print_dot(const Module *module, const Function *function, Text *out) {
    text_puts(out, "digraph ");
    print_string(out, function->name);
    text_puts(out, " {\n  node [shape=plaintext, fontname=monospace];\n");
    /* The nodes of each scope as a list, so that a scope is a cluster. */
    NodeId *first = checked_alloc((size_t)module->scopes.count * sizeof *first);
    NodeId *next = checked_alloc((size_t)function->nodes.count * sizeof *next);
    for (ScopeId scope = 0; scope < module->scopes.count; scope++)
        first[scope] = -1;
    for (NodeId id = (NodeId)function->nodes.count - 1; id >= 0; id--) {
        next[id] = first[function->nodes.data[id].scope];
        first[function->nodes.data[id].scope] = id;
    }
    for (ScopeId scope = 0; scope < module->scopes.count; scope++) {
        if (first[scope] < 0)
            continue;
        text_printf(out, "  subgraph cluster%d {\n    label=", scope);
        print_string(out, module->scopes.data[scope].path);
        text_puts(out, ";\n");
        for (NodeId id = first[scope]; id >= 0; id = next[id])
            print_dot_node(out, function, id);
        text_puts(out, "  }\n");
    }
    free(first);
    free(next);
    for (NodeId id = 0; id < function->nodes.count; id++)
        for (int i = 0; i < function->nodes.data[id].input_count; i++)
            text_printf(out, "  n%d -> n%d;\n", function->nodes.data[id].inputs[i], id);
    for (int64_t i = 0; i < function->writes.count; i++) {
        const Write *write = &function->writes.data[i];
        const State *state = &module->states.data[write->state];
        text_printf(out, "  w%lld [shape=box, label=", (long long)i);
        print_string(out, state->path);
        text_printf(out, "];\n  n%d -> w%lld [label=\"%s\"];\n", write->value, (long long)i,
                    write->add ? "+=" : "=");
    }
    text_puts(out, "}\n");
}

/* ---- reading words ------------------------------------------------------------------- */

/* After the first error `at` stands at the end of the text, so that every loop comes to its
 * end; what the functions below return then means nothing. */
typedef struct Parser {
    const Source *source;
    Diagnostics *diagnostics;
    Arena *scratch; /* words, until the parse ends */
    Module *module;
    Function *function; /* the one being read */
    size_t at;
    bool failed;
} Parser;

static Diagnostic *fail_at(Parser *p, Span span, const char *format, ...) PRINTF_LIKE(3, 4);
/* Records the first error; NULL after it. */
static Diagnostic *fail_at(Parser *p, Span span, const char *format, ...) {
    if (p->failed)
        return NULL;
    char message[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    p->failed = true;
    p->at = p->source->length;
    return error_at(p->diagnostics, span, "%s", message);
}

static char peek(const Parser *p) {
    if (p->at < p->source->length)
        return p->source->text[p->at];
    return '\n';
}

/* Blanks and a comment, up to the line's end. */
static void skip_blanks(Parser *p) {
    while (p->at < p->source->length && (peek(p) == ' ' || peek(p) == '\t' || peek(p) == '\r'))
        p->at++;
    if (peek(p) == '#')
        while (p->at < p->source->length && peek(p) != '\n')
            p->at++;
}

static bool at_end(const Parser *p) {
    return p->at >= p->source->length;
}

static Span span_from(const Parser *p, size_t begin) {
    return (Span){p->source, (uint32_t)begin, (uint32_t)p->at};
}

/* The word, or else the character, at the cursor: what a message points at. */
static Span span_here(const Parser *p) {
    size_t end = p->at;
    while (end < p->source->length && is_path_char(p->source->text[end]))
        end++;
    if (end == p->at && end < p->source->length)
        end++;
    return (Span){p->source, (uint32_t)p->at, (uint32_t)end};
}

static void skip_empty_lines(Parser *p) {
    for (skip_blanks(p); !at_end(p) && peek(p) == '\n'; skip_blanks(p))
        p->at++;
}

static void expect_line_end(Parser *p) {
    skip_blanks(p);
    if (!p->failed && peek(p) != '\n')
        fail_at(p, span_here(p), "expected the end of the line");
}

static bool accept(Parser *p, const char *mark) {
    skip_blanks(p);
    size_t length = strlen(mark);
    if (p->source->length - p->at < length ||
        memcmp(p->source->text + p->at, mark, length) != 0)
        return false;
    p->at += length;
    return true;
}

static void expect(Parser *p, const char *mark) {
    if (!accept(p, mark))
        fail_at(p, span_here(p), "expected `%s`", mark);
}

/* The whole word, not a beginning of a longer one. */
static bool accept_keyword(Parser *p, const char *keyword) {
    size_t before = p->at;
    if (accept(p, keyword) && (at_end(p) || !is_name_char(peek(p))))
        return true;
    p->at = before;
    return false;
}

static void expect_keyword(Parser *p, const char *keyword) {
    if (!accept_keyword(p, keyword))
        fail_at(p, span_here(p), "expected `%s`", keyword);
}

static int hex_digit(char c) {
    return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

/* The rest of a string whose opening quote has been read. */
static const char *parse_string_rest(Parser *p) {
    size_t begin = p->at - 1;
    Text text = {0};
    while (!p->failed && peek(p) != '"') {
        char c = peek(p);
        const char *rest = p->source->text + p->at;
        size_t left = p->source->length - p->at;
        if (c == '\n' || c == 0) {
            fail_at(p, span_from(p, begin), "this string does not end in its line");
        } else if (c != '\\') {
            text_append(&text, &c, 1);
            p->at++;
        } else if (left > 1 && (rest[1] == '"' || rest[1] == '\\')) {
            text_append(&text, rest + 1, 1);
            p->at += 2;
        } else if (left > 3 && rest[1] == 'x' && isxdigit((unsigned char)rest[2]) &&
                   isxdigit((unsigned char)rest[3]) && (rest[2] != '0' || rest[3] != '0')) {
            c = (char)(16 * hex_digit(rest[2]) + hex_digit(rest[3]));
            text_append(&text, &c, 1);
            p->at += 4;
        } else {
            fail_at(p, span_here(p), "a string knows \\\", \\\\ and \\xNN alone");
        }
    }
    if (!p->failed)
        p->at++;
    const char *result = arena_strdup(p->scratch, text_string(&text));
    text_free(&text);
    return result;
}

static const char *parse_string(Parser *p) {
    if (!accept(p, "\"")) {
        fail_at(p, span_here(p), "expected a string");
        return "";
    }
    return parse_string_rest(p);
}

static const char *parse_word(Parser *p, const char *what, bool (*plain)(char)) {
    if (accept(p, "\""))
        return parse_string_rest(p);
    size_t begin = p->at;
    while (!at_end(p) && plain(peek(p)))
        p->at++;
    if (p->at == begin)
        fail_at(p, span_here(p), "expected %s", what);
    return arena_strndup(p->scratch, p->source->text + begin, p->at - begin);
}

static const char *parse_name(Parser *p, const char *what) {
    return parse_word(p, what, is_name_char);
}

/* An integer in [low, high]. */
static int64_t parse_integer(Parser *p, const char *what, int64_t low, int64_t high) {
    skip_blanks(p);
    size_t begin = p->at;
    bool negative = accept(p, "-"), overflow = false;
    size_t digits = p->at;
    int64_t value = 0;
    for (; !at_end(p) && isdigit((unsigned char)peek(p)); p->at++) {
        int digit = peek(p) - '0';
        overflow |= __builtin_mul_overflow(value, 10, &value) ||
                    __builtin_sub_overflow(value, digit, &value); /* downward: reaches -2^63 */
    }
    if (p->at == digits) {
        fail_at(p, span_here(p), "expected %s", what);
        return low;
    }
    overflow |= !negative && value == INT64_MIN;
    if (!negative && !overflow)
        value = -value;
    if (overflow || value < low || value > high) {
        fail_at(p, span_from(p, begin), "%s must be in [%lld, %lld]", what, (long long)low,
                (long long)high);
        return low;
    }
    return value;
}

static double parse_number(Parser *p) {
    skip_blanks(p);
    char word[64];
    size_t begin = p->at, length = 0;
    while (!at_end(p) && length + 1 < sizeof word &&
           (isalnum((unsigned char)peek(p)) || strchr("+-.", peek(p))) && peek(p))
        word[length++] = p->source->text[p->at++];
    word[length] = 0;
    char *end;
    double number = strtod(word, &end);
    if (!length || *end || strpbrk(word, "xXpP"))
        fail_at(p, length ? span_from(p, begin) : span_here(p), "expected a number");
    return number;
}

/* ---- reading axes, types and names of enumerators ------------------------------------ */

static const char *axis_name_at(const void *table, int i) {
    const Module *module = table;
    return module->axes.data[i].name;
}
static const char *op_name_at(const void *table, int i) {
    (void)table;
    return op_info[i].name;
}
static const char *dtype_name_at(const void *table, int i) {
    (void)table;
    return dtype_name((DataType)i);
}
static const char *role_name_at(const void *table, int i) {
    (void)table;
    return role_name((Role)i);
}
static const char *group_kind_name_at(const void *table, int i) {
    (void)table;
    return group_kind_name((GroupKind)i);
}
static const char *init_name_at(const void *table, int i) {
    (void)table;
    return init_names[i];
}
static const char *stage_name_at(const void *table, int i) {
    (void)table;
    return stage_name((Stage)i);
}

/* "unknown axis X", and the name that was perhaps meant. */
static void fail_unknown(Parser *p, size_t begin, const char *what, const char *word,
                         const char *(*name)(const void *, int), const void *table, int count) {
    Diagnostic *diagnostic = fail_at(p, span_from(p, begin), "unknown %s `%s`", what, word);
    if (!diagnostic)
        return;
    const char **names = arena_alloc_array(p->scratch, (size_t)count, sizeof *names);
    for (int i = 0; i < count; i++)
        names[i] = name(table, i);
    const char *nearest = nearest_name(word, names, count);
    if (nearest)
        help(diagnostic, "did you mean `%s`?", nearest);
}

/* One of a small table of names: its index; 0 after a failure. */
static int parse_choice(Parser *p, const char *what, const char *(*name)(const void *, int),
                        int count) {
    skip_blanks(p);
    size_t begin = p->at;
    const char *word = parse_name(p, what);
    for (int i = 0; i < count; i++)
        if (strcmp(name(NULL, i), word) == 0)
            return i;
    fail_unknown(p, begin, what, word, name, NULL, count);
    return 0;
}

static Op parse_op(Parser *p) {
    return (Op)parse_choice(p, "op", op_name_at, OP_COUNT);
}

static DataType parse_dtype(Parser *p) {
    return (DataType)parse_choice(p, "dtype", dtype_name_at, TYPE_F64 + 1);
}

static Role parse_role(Parser *p) {
    return (Role)parse_choice(p, "role", role_name_at, ROLE_METRIC + 1);
}

static AxisId parse_axis(Parser *p) {
    skip_blanks(p);
    size_t begin = p->at;
    const char *name = parse_name(p, "the name of an axis");
    int64_t axis = p->failed ? 0 : string_map_get(&p->module->axis_by_name, name, -1);
    if (axis < 0)
        fail_unknown(p, begin, "axis", name, axis_name_at, p->module,
                     (int)p->module->axes.count);
    return axis < 0 ? 0 : (AxisId)axis;
}

/* Distinct axes up to the closing mark; their number. */
static int parse_axes(Parser *p, const char *close, AxisId axes[MAX_AXES]) {
    int count = 0;
    if (accept(p, close))
        return 0;
    do {
        skip_blanks(p);
        size_t begin = p->at;
        AxisId axis = parse_axis(p);
        for (int i = 0; i < count && !p->failed; i++)
            if (axes[i] == axis)
                fail_at(p, span_from(p, begin), "axis %s is here twice",
                        p->module->axes.data[axis].name);
        if (count == MAX_AXES)
            fail_at(p, span_from(p, begin), "more than %d axes", MAX_AXES);
        if (!p->failed)
            axes[count++] = axis;
    } while (!p->failed && accept(p, ","));
    expect(p, close);
    return p->failed ? 0 : count;
}

static int parse_axis_list(Parser *p, AxisId axes[MAX_AXES]) {
    expect(p, "(");
    return parse_axes(p, ")", axes);
}

/* The axes stay in the written order. */
static DataType parse_type(Parser *p, AxisId axes[MAX_AXES], int *rank) {
    DataType dtype = parse_dtype(p);
    *rank = !at_end(p) && peek(p) == '[' && accept(p, "[") ? parse_axes(p, "]", axes) : 0;
    return dtype;
}

/* ---- reading lines of the module ----------------------------------------------------- */

static void parse_axis_line(Parser *p) {
    skip_blanks(p);
    size_t begin = p->at;
    const char *name = parse_name(p, "the name of an axis");
    Span span = span_from(p, begin);
    int64_t size = parse_integer(p, "the size of an axis", 1, MAX_ELEMENTS);
    if (p->failed)
        return;
    if (string_map_get(&p->module->axis_by_name, name, -1) >= 0)
        fail_at(p, span, "axis %s is here twice", name);
    else if (p->module->axes.count >= MAX_MODULE_AXES)
        fail_at(p, span, "a module has at most %d axes", MAX_MODULE_AXES);
    else
        module_axis(p->module, name, size, span);
}

static void parse_scope_line(Parser *p) {
    skip_blanks(p);
    size_t begin = p->at;
    int64_t number = parse_integer(p, "the number of a scope", 0, p->module->scopes.count);
    Span span = span_from(p, begin);
    ScopeId parent = -1;
    if (number) {
        expect_keyword(p, "in");
        parent = (ScopeId)parse_integer(p, "the number of an outer scope", 0, number - 1);
    }
    const char *path = parse_string(p);
    const char *block = accept_keyword(p, "block") ? parse_name(p, "the name of a block") : "";
    if (p->failed)
        return;
    if (!number) {
        p->module->scopes.data[0].path = arena_strdup(p->module->arena, path);
        p->module->scopes.data[0].block = arena_strdup(p->module->arena, block);
    } else if (number != p->module->scopes.count) {
        fail_at(p, span, "the next scope is number %lld", (long long)p->module->scopes.count);
    } else {
        module_scope(p->module, parent, path, block, span);
    }
}

static void parse_input_line(Parser *p) {
    Input input = {0};
    skip_blanks(p);
    size_t begin = p->at;
    input.name = parse_name(p, "the name of an input");
    DataType dtype = parse_type(p, input.axes, &input.axis_count);
    input.span = span_from(p, begin);
    if (!p->failed && (dtype != TYPE_I32 || !input.axis_count))
        fail_at(p, input.span, "an input is i32 and has axes, the first of samples");
    expect_keyword(p, "below");
    input.below = parse_integer(p, "the bound of the values", 1, INT64_MAX);
    expect_keyword(p, "next");
    input.next = parse_integer(p, "the shift of an input", 0, INT64_MAX);
    if (p->failed)
        return;
    input.name = arena_strdup(p->module->arena, input.name);
    array_push(&p->module->inputs, input);
}

static void check_state(Parser *p, const State *state) {
    AxisId axes[2 * MAX_AXES];
    memcpy(axes, state->in, sizeof state->in);
    memcpy(axes + state->in_count, state->out, sizeof state->out);
    int rank = state->in_count + state->out_count;
    if (rank > MAX_AXES) {
        fail_at(p, state->span, "more than %d axes", MAX_AXES);
        return;
    }
    for (int i = 0; i < rank; i++)
        for (int j = 0; j < i; j++)
            if (axes[i] == axes[j])
                fail_at(p, state->span, "axis %s is here twice",
                        p->module->axes.data[axes[i]].name);
    if (!p->failed && axes_elements(p->module, axes, rank) == INT64_MAX)
        fail_at(p, state->span, "more than 2^60 elements");
    if (!p->failed &&
        module_find_state(p->module, state->path, state->role, state->number) >= 0)
        fail_at(p, state->span, "this state is here twice");
}

/* "state" has been read. */
static void parse_state_line(Parser *p) {
    State state = {.order_count = -1, .weight = -1, .offset = -1};
    skip_blanks(p);
    size_t begin = p->at;
    state.role = parse_role(p);
    state.path = parse_word(p, "the path of a state", is_path_char);
    state.span = span_from(p, begin);
    if (accept_keyword(p, "number"))
        state.number = (int32_t)parse_integer(p, "the number of a moment", 0, INT32_MAX);
    state.dtype = parse_dtype(p);
    expect_keyword(p, "in");
    state.in_count = parse_axis_list(p, state.in);
    expect_keyword(p, "out");
    state.out_count = parse_axis_list(p, state.out);
    if (accept_keyword(p, "order"))
        state.order_count = parse_axis_list(p, state.order);
    state.init.kind =
        (InitKind)parse_choice(p, "initialization", init_name_at, COUNT_OF(init_names));
    if (state.init.kind != INIT_ZEROS)
        state.init.scale = parse_number(p);
    if (accept_keyword(p, "of"))
        state.weight = (StateId)parse_integer(p, "the number of a state", 0, INT32_MAX);
    if (accept_keyword(p, "group"))
        state.group = (int32_t)parse_integer(p, "an optimizer group", 0, INT32_MAX);
    state.low_rank = accept_keyword(p, "low_rank");
    state.flat = accept_keyword(p, "flat");
    if (accept_keyword(p, "offset"))
        state.offset = parse_integer(p, "an offset", 0, MAX_ELEMENTS);
    if (!p->failed)
        check_state(p, &state);
    if (!p->failed)
        module_state(p->module, state);
}

/* ---- reading functions
 * ----------------------------------------------------------------------------------------------
 */

/* `%N`, of a node that is there already. */
static NodeId parse_node_id(Parser *p) {
    skip_blanks(p);
    size_t begin = p->at;
    expect(p, "%");
    NodeId id = (NodeId)parse_integer(p, "the number of a node", 0, INT32_MAX);
    if (!p->failed && id >= p->function->nodes.count)
        fail_at(p, span_from(p, begin), "node %%%d is not defined above", id);
    return id;
}

static void parse_placement(Parser *p, Placement *placement) {
    *placement = (Placement){.order_count = -1, .group = -1, .offset = -1};
    if (accept_keyword(p, "order"))
        placement->order_count = parse_axis_list(p, placement->order);
    if (accept_keyword(p, "group"))
        placement->group = (int32_t)parse_integer(p, "a group", 0, INT32_MAX);
    placement->stored = accept_keyword(p, "stored");
    if (accept_keyword(p, "offset"))
        placement->offset = parse_integer(p, "an offset", 0, INT64_MAX);
}

static void parse_attributes(Parser *p, Node *node) {
    unsigned uses = op_info[node->op].attributes;
    if (uses & USES_NUMBER)
        node->attr.number = parse_number(p);
    if (uses & USES_INTEGER)
        node->attr.integer = parse_integer(p, "an integer", INT64_MIN, INT64_MAX);
    if (uses & USES_FROM) {
        expect_keyword(p, "from");
        node->attr.from_count = parse_axis_list(p, node->attr.from);
    }
    if (uses & USES_TO) {
        expect_keyword(p, "to");
        node->attr.to_count = parse_axis_list(p, node->attr.to);
    }
}

/* What follows the type. */
static void parse_annotations(Parser *p, Node *node) {
    node->adjoint_of = node->original = -1;
    node->ordinal = -1;
    if (accept_keyword(p, "scope"))
        node->scope =
            (ScopeId)parse_integer(p, "a scope of the module", 0, p->module->scopes.count - 1);
    if (accept_keyword(p, "ordinal"))
        node->ordinal = (int32_t)parse_integer(p, "an ordinal", 0, INT32_MAX - 1);
    if (accept_keyword(p, "clone"))
        node->clone = (int32_t)parse_integer(p, "a clone", 0, INT32_MAX);
    if (node->clone && accept_keyword(p, "of"))
        node->original = parse_node_id(p);
    if (accept_keyword(p, "adjoint"))
        node->adjoint_of = parse_node_id(p);
    if (accept_keyword(p, "name"))
        node->name = arena_strdup(p->module->arena, parse_string(p));
    parse_placement(p, &node->placement);
}

/* The written type must be what the op's rules give; it supplies the dtype where they leave it
 * open. */
static void check_node_type(Parser *p, Node *node, Type written, Span type_span) {
    Type inferred;
    const char *refusal = infer_type(p->function, node->op, written.dtype, &node->attr,
                                     node->inputs, node->input_count, &inferred);
    if (refusal)
        fail_at(p, node->span, "%s", refusal);
    else if (!type_equal(written, inferred))
        fail_at(p, type_span, "the type of this node is %s",
                type_text(p->module, inferred, p->scratch));
    node->type = written;
}

/* `%N = OP …` */
static void parse_node(Parser *p) {
    skip_blanks(p);
    size_t begin = p->at;
    expect(p, "%");
    int64_t number = parse_integer(p, "the number of a node", 0, INT32_MAX);
    if (!p->failed && number != p->function->nodes.count)
        fail_at(p, span_from(p, begin), "the next node is %%%lld",
                (long long)p->function->nodes.count);
    if (!p->failed && number >= MAX_NODES)
        fail_at(p, span_from(p, begin), "a function has at most %d nodes", MAX_NODES);
    expect(p, "=");
    Node node = {.op = parse_op(p)};
    ARRAY(NodeId) inputs = {0};
    for (skip_blanks(p); !at_end(p) && peek(p) == '%'; skip_blanks(p))
        array_push(&inputs, parse_node_id(p));
    node.inputs = inputs.data;
    node.input_count = (int32_t)inputs.count;
    parse_attributes(p, &node);
    expect(p, ":");
    skip_blanks(p);
    size_t type_begin = p->at;
    AxisId axes[MAX_AXES];
    int rank;
    DataType dtype = parse_type(p, axes, &rank);
    Span type_span = span_from(p, type_begin);
    node.span = span_from(p, begin);
    parse_annotations(p, &node);
    if (!p->failed)
        check_node_type(p, &node, type_of(dtype, axes, rank), type_span);
    if (!p->failed)
        function_append(p->function, node);
    array_free(&inputs);
}

/* "write" has been read. */
static void parse_write(Parser *p) {
    skip_blanks(p);
    size_t begin = p->at;
    Role role = parse_role(p);
    const char *path = parse_word(p, "the path of a state", is_path_char);
    Span span = span_from(p, begin);
    int64_t number = accept_keyword(p, "number")
                         ? parse_integer(p, "the number of a moment", 0, INT32_MAX)
                         : 0;
    Write write = {0};
    write.add = accept(p, "+=");
    if (!write.add)
        expect(p, "=");
    write.value = parse_node_id(p);
    write.direct = accept_keyword(p, "direct");
    if (p->failed)
        return;
    write.state = module_find_state(p->module, path, role, (int)number);
    if (write.state < 0)
        fail_at(p, span, "the module has no such state");
    else
        array_push(&p->function->writes, write);
}

/* "value" has been read. */
static void parse_named_value(Parser *p) {
    NamedValue value = {0};
    value.scope =
        (ScopeId)parse_integer(p, "a scope of the module", 0, p->module->scopes.count - 1);
    value.name = arena_strdup(p->module->arena, parse_string(p));
    value.node = parse_node_id(p);
    if (!p->failed)
        array_push(&p->function->names, value);
}

/* "group" has been read. */
static void parse_group(Parser *p) {
    Group group = {0};
    skip_blanks(p);
    size_t begin = p->at;
    int64_t number = parse_integer(p, "the number of a group", 0, INT32_MAX);
    if (!p->failed && number != p->function->groups.count)
        fail_at(p, span_from(p, begin), "the next group is number %lld",
                (long long)p->function->groups.count);
    group.kind =
        (GroupKind)parse_choice(p, "kind of group", group_kind_name_at, GROUP_PRODUCT + 1);
    expect_keyword(p, "rows");
    group.row_count = parse_axis_list(p, group.rows);
    expect_keyword(p, "inner");
    group.inner_count = parse_axis_list(p, group.inner);
    if (!p->failed)
        array_push(&p->function->groups, group);
}

static void parse_statement(Parser *p) {
    if (peek(p) == '%')
        parse_node(p);
    else if (accept_keyword(p, "write"))
        parse_write(p);
    else if (accept_keyword(p, "group"))
        parse_group(p);
    else if (accept_keyword(p, "value"))
        parse_named_value(p);
    else
        fail_at(p, span_here(p), "expected a node, `value`, `write`, `group` or `}`");
    expect_line_end(p);
}

/* "function" has been read. */
static void parse_function(Parser *p) {
    skip_blanks(p);
    size_t begin = p->at;
    const char *name = parse_name(p, "the name of a function");
    Span span = span_from(p, begin);
    ARRAY(const char *) scalars = {0};
    expect(p, "(");
    if (!accept(p, ")")) {
        do
            array_push(&scalars, parse_name(p, "the name of a runtime scalar"));
        while (!p->failed && accept(p, ","));
        expect(p, ")");
    }
    int64_t arena_size =
        accept_keyword(p, "arena") ? parse_integer(p, "a number of bytes", 0, INT64_MAX) : -1;
    expect(p, "{");
    expect_line_end(p);
    if (!p->failed && module_find_function(p->module, name))
        fail_at(p, span, "function %s is here twice", name);
    if (!p->failed) {
        p->function = module_function(p->module, name, (int)scalars.count, scalars.data);
        p->function->arena_bytes = arena_size;
    }
    array_free(&scalars);
    for (skip_empty_lines(p); !p->failed && !accept(p, "}"); skip_empty_lines(p)) {
        if (at_end(p)) {
            Diagnostic *diagnostic = fail_at(p, span_here(p), "expected `}`");
            if (diagnostic)
                note_at(diagnostic, span, "to close this function");
            return;
        }
        parse_statement(p);
    }
}

/* ---- reading a module
 * ---------------------------------------------------------------------------------------------------
 */

static void parse_line(Parser *p) {
    if (accept_keyword(p, "axis"))
        parse_axis_line(p);
    else if (accept_keyword(p, "scope"))
        parse_scope_line(p);
    else if (accept_keyword(p, "input"))
        parse_input_line(p);
    else if (accept_keyword(p, "state"))
        parse_state_line(p);
    else if (accept_keyword(p, "function"))
        parse_function(p);
    else
        fail_at(p, span_here(p), "expected `axis`, `scope`, `input`, `state` or `function`");
    expect_line_end(p);
}

static void parse_module(Parser *p, Stage *stage) {
    skip_empty_lines(p);
    expect_keyword(p, "module");
    expect_keyword(p, "stage");
    *stage = (Stage)parse_choice(p, "stage", stage_name_at, STAGE_MEMORY + 1);
    expect_line_end(p);
    for (skip_empty_lines(p); !p->failed && !at_end(p); skip_empty_lines(p))
        parse_line(p);
    if (p->failed)
        return;
    const char *violation = ir_verify(p->module, *stage);
    if (violation) {
        error_in_file(p->diagnostics, p->source->name, "%s", violation);
        p->failed = true;
    }
}

Module *ir_parse(const Source *source, Diagnostics *diagnostics, Stage *stage) {
    if (source->length > UINT32_MAX / 2) {
        error_in_file(diagnostics, source->name, "the text is too long");
        return NULL;
    }
    Parser parser = {.source = source, .diagnostics = diagnostics};
    parser.scratch = arena_new();
    parser.module = module_new();
    parser.module->name = arena_strdup(parser.module->arena, source->name);
    parse_module(&parser, stage);
    arena_free(parser.scratch);
    if (!parser.failed)
        return parser.module;
    module_free(parser.module);
    return NULL;
}
