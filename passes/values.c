/* What values are called: by the names of the text, one row for all instances of a block.
 *
 * layer[0].attn.wq.low, layer[1].attn.wq.low, … are the row `attn.wq.low` of section
 * layer[0..7].  A value is named by what it is bound to in the instance that it belongs to,
 * else as what an instance returned (`attn.out`), else by its op and its line.  A view's name
 * is that of its memory. */
#include "passes/passes.h"

/* ---- names ---------------------------------------------------------------------------- */

struct ValueNames {
    const Function *function;
    Arena *arena;
    ScopeId *owners; /* by node */
    int64_t *best;   /* by node: which of the function's names; -1 */
};

enum { RANK_NONE = 9 };
/* How well a name says what the value is: less is better. */
static int name_rank(const ValueNames *names, const NamedValue *value, NodeId memory) {
    ScopeId owner = names->owners[memory];
    bool out = !strcmp(value->name, "out");
    if (value->scope == owner && !out)
        return value->node == memory ? 0 : 1;
    if (!scope_is_within(names->function->module, value->scope, owner))
        return 3; /* what it is called further out */
    return out ? 2 : 4 /* an input of a block inside */;
}

ValueNames *value_names(const Function *function, Arena *arena) {
    ValueNames *names = arena_alloc(arena, sizeof *names);
    size_t nodes = (size_t)function->nodes.count;
    *names = (ValueNames){function, arena, value_owners(function, arena),
                          arena_alloc_array(arena, nodes, sizeof(int64_t))};
    int *ranks = arena_alloc_array(arena, nodes, sizeof *ranks);
    for (size_t id = 0; id < nodes; id++) {
        names->best[id] = -1;
        ranks[id] = RANK_NONE;
    }
    for (int64_t i = 0; i < function->names.count; i++) {
        NodeId memory = function->names.data[i].node;
        while (node_is_view(node_at(function, memory)))
            memory = node_at(function, memory)->inputs[0];
        int rank = name_rank(names, &function->names.data[i], memory);
        if (rank >= ranks[memory])
            continue;
        ranks[memory] = rank;
        names->best[memory] = i;
    }
    return names;
}

static const char *scope_path(const ValueNames *names, ScopeId scope) {
    return names->function->module->scopes.data[scope].path;
}

/* The value that a clone, or a gradient's memory, is named after. */
static NodeId named_after(const ValueNames *names, NodeId id) {
    while (node_at(names->function, id)->original >= 0)
        id = node_at(names->function, id)->original;
    return id;
}

/* A value as it is said of a path: where it lives, and what it is. */
typedef struct Title {
    const char *path; /* layer[3].attn.wq.low; without a name, that of its instance */
    const char *what; /* "", or the op, or `gradient` */
    bool named;
    Span span; /* where the text binds its name; else where it computes it */
} Title;

/* False where the text gives it no name. */
static bool own_title(const ValueNames *names, NodeId id, Title *title) {
    if (names->best[id] < 0)
        return false;
    const NamedValue *value = &names->function->names.data[names->best[id]];
    *title =
        (Title){.path = arena_printf(names->arena, "%s%s%s", scope_path(names, value->scope),
                                     value->scope ? "." : "", value->name),
                .what = "",
                .named = true,
                .span = value->span};
    return true;
}

static Title title_of(const ValueNames *names, NodeId id) {
    NodeId source = named_after(names, id);
    const Node *node = node_at(names->function, source);
    Title title;
    if (own_title(names, source, &title))
        return title;
    NodeId primal = node->adjoint_of;
    while (primal >= 0 && node_is_view(node_at(names->function, primal)))
        primal = node_at(names->function, primal)->inputs[0];
    if (primal >= 0 && own_title(names, primal, &title)) {
        title.what = "gradient";
        return title;
    }
    return (Title){.path = scope_path(names, node->scope),
                   .what = primal >= 0 ? "gradient" : op_info[node->op].name,
                   .span = node->span};
}

/* ---- paths in loops ------------------------------------------------------------------- */

PathParts split_path(const char *path, Arena *arena) {
    const char *open = strchr(path, '[');
    PathParts parts = {"", -1, path};
    if (open) {
        char *end;
        parts.index = strtoll(open + 1, &end, 10);
        parts.loop = arena_strndup(arena, path, (size_t)(open - path));
        parts.rest = *end == ']' ? end + 1 : end;
    }
    Text rest = {0};
    const char *at = parts.rest + (*parts.rest == '.');
    for (int depth = 0; *at; at++) { /* step[4].x -> step[*].x */
        depth -= *at == ']';
        if (!depth)
            text_append(&rest, at, 1);
        if (*at == '[' && !depth++)
            text_puts(&rest, "*");
    }
    parts.rest = arena_strdup(arena, text_string(&rest));
    text_free(&rest);
    return parts;
}

static int compare_indices(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

const char *loop_text(const char *loop, IndexList *indices, Arena *arena) {
    if (!*loop)
        return "";
    Text text = {0};
    text_printf(&text, "%s[", loop);
    if (indices->count)
        qsort(indices->data, (size_t)indices->count, sizeof *indices->data, compare_indices);
    for (int64_t i = 0, next; i < indices->count; i = next) {
        for (next = i + 1;
             next < indices->count && indices->data[next] - indices->data[next - 1] <= 1;)
            next++;
        int64_t first = indices->data[i], last = indices->data[next - 1];
        text_printf(&text, last > first ? "%s%lld..%lld" : "%s%lld", i ? ", " : "",
                    (long long)first, (long long)last);
    }
    text_puts(&text, "]");
    const char *copy = arena_strdup(arena, text_string(&text));
    text_free(&text);
    return copy;
}

/* ---- rows ----------------------------------------------------------------------------- */

typedef struct RowInProgress {
    ValueRow row;
    PathParts parts;
    IndexList indices;
    unsigned char ops[OP_COUNT]; /* of values without a name: which of them it has */
} RowInProgress;

struct ValueTable {
    const ValueNames *names;
    Arena *arena;
    bool by_line;
    StringMap by_key;
    ARRAY(RowInProgress) rows;
    ARRAY(ValueRow) finished;
};

ValueTable *value_table_new(const ValueNames *names, bool by_line) {
    ValueTable *table = checked_alloc(sizeof *table);
    table->names = names;
    table->arena = names->arena;
    table->by_line = by_line;
    return table;
}

void value_table_free(ValueTable *table) {
    for (int64_t i = 0; i < table->rows.count; i++)
        array_free(&table->rows.data[i].indices);
    array_free(&table->rows);
    array_free(&table->finished);
    string_map_free(&table->by_key);
    free(table);
}

static RowInProgress *find_row(ValueTable *table, const char *key) {
    int64_t at = string_map_get(&table->by_key, key, -1);
    if (at >= 0)
        return &table->rows.data[at];
    string_map_set(&table->by_key, key, table->rows.count);
    RowInProgress fresh = {0};
    array_push(&table->rows, fresh);
    return &table->rows.data[table->rows.count - 1];
}

void value_table_add(ValueTable *table, NodeId id, int64_t bytes, double flops) {
    NodeId source = named_after(table->names, id);
    const Node *node = node_at(table->names->function, source);
    Title title = title_of(table->names, id);
    PathParts parts = split_path(title.path, table->arena);
    bool merge = table->by_line && !title.named;
    Text key = {0};
    text_printf(&key, "%s|%s|%s|%lld|%g|%s|%u", parts.loop, parts.rest, merge ? "" : title.what,
                (long long)bytes, merge ? 0 : flops,
                merge ? place_text(node->span, table->arena) : "",
                title.named ? 0 : node->span.begin * !merge);
    RowInProgress *row = find_row(table, text_string(&key));
    text_free(&key);
    if (!row->row.values++) {
        row->parts = parts;
        row->row.span = title.span.source ? title.span : node->span;
        row->row.named = title.named;
        row->row.name = title.what;
    }
    row->ops[node->op] = 1;
    row->row.bytes += bytes;
    row->row.flops += flops;
    if (parts.index >= 0 &&
        (!row->indices.count || row->indices.data[row->indices.count - 1] != parts.index))
        array_push(&row->indices, parts.index);
}

/* attn_norm: div, sqrt; attn.q; attn.q: gradient */
static const char *row_name(const ValueTable *table, const RowInProgress *row) {
    enum { MOST_OPS = 4 };
    Text what = {0};
    if (row->row.named) {
        text_puts(&what, row->row.name);
    } else {
        int ops = 0;
        bool gradient = !strcmp(row->row.name, "gradient");
        for (int op = 0; op < OP_COUNT && !gradient; op++)
            if (row->ops[op] && ops++ <= MOST_OPS)
                text_printf(&what, "%s%s", ops > 1 ? ", " : "",
                            ops > MOST_OPS ? "…" : op_info[op].name);
        if (gradient)
            text_puts(&what, "gradient");
    }
    const char *rest = row->parts.rest, *sign = *rest && what.length ? ": " : "";
    const char *name = arena_printf(table->arena, "%s%s%s", rest, sign, text_string(&what));
    text_free(&what);
    return name;
}

typedef struct RowOrder {
    int64_t section, row;
} RowOrder;

static int compare_row_orders(const void *left, const void *right) {
    const RowOrder *a = left, *b = right;
    if (a->section != b->section)
        return a->section < b->section ? -1 : 1;
    return (a->row > b->row) - (a->row < b->row);
}

/* Rows of one section stand together, sections in order of their first rows. */
ValueRow *value_table_rows(ValueTable *table, int64_t *count) {
    StringMap sections = {0};
    RowOrder *order = checked_alloc((size_t)(table->rows.count + 1) * sizeof *order);
    for (int64_t i = 0; i < table->rows.count; i++) {
        RowInProgress *row = &table->rows.data[i];
        row->row.section = loop_text(row->parts.loop, &row->indices, table->arena);
        row->row.name = row_name(table, row);
        int64_t section = string_map_get(&sections, row->row.section, sections.count);
        string_map_set(&sections, row->row.section, section);
        order[i] = (RowOrder){section, i};
    }
    if (table->rows.count)
        qsort(order, (size_t)table->rows.count, sizeof *order, compare_row_orders);
    for (int64_t i = 0; i < table->rows.count; i++)
        array_push(&table->finished, table->rows.data[order[i].row].row);
    free(order);
    string_map_free(&sections);
    *count = table->finished.count;
    return table->finished.data;
}

static int compare_bytes(const void *left, const void *right) {
    const ValueRow *a = left, *b = right;
    if (a->bytes != b->bytes)
        return a->bytes > b->bytes ? -1 : 1;
    int order = strcmp(a->section, b->section);
    return order ? order : strcmp(a->name, b->name);
}

ValueRow *value_table_largest(ValueTable *table, int64_t *count) {
    ValueRow *rows = value_table_rows(table, count);
    if (*count)
        qsort(rows, (size_t)*count, sizeof *rows, compare_bytes);
    return rows;
}

ValueTable *live_values(const Function *function, int64_t slot, Arena *arena) {
    ValueTable *table = value_table_new(value_names(function, arena), false);
    ValueLife *lives;
    int64_t count = value_lives(function, arena, &lives);
    for (int64_t i = 0; i < count; i++)
        if (lives[i].begin <= slot && slot <= lives[i].end)
            value_table_add(table, lives[i].node, lives[i].bytes, 0);
    return table;
}

const char *value_row_path(const ValueRow *row, Arena *arena) {
    const char *dot = *row->section && *row->name ? "." : "";
    return arena_printf(arena, "%s%s%s", row->section, dot, row->name);
}
