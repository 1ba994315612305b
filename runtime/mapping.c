/* runtime/mapping.c: parameters as tensors of a file, under their own names and layout or, by
 * the rules of a .map text, under those of Hugging Face. */
#include "runtime/runtime.h"

#include <ctype.h>
#include <errno.h>

enum { MAX_MAP_BYTES = 1 << 20, MAX_INDICES = 4, MAX_NAMES = 8, MAX_MEMBERS = 8 };
enum { MAX_MISSING_SHOWN = 5 };

/* A line of a .map text.  Without braces there is one member. */
typedef struct Rule {
    Span span;
    int member_count;
    const char *members[MAX_MEMBERS]; /* path patterns */
    int name_count;
    const char *names[MAX_NAMES]; /* with {i} for the path's [i] */
    bool out_first;               /* the tensor is [out, in] */
    bool joins_out;               /* of several members: along out, else along in */
} Rule;

struct Mapping {
    Arena *arena;
    Source source;     /* name NULL: no text */
    ARRAY(Rule) rules; /* storage in the arena once loaded */
};

/* ---- reading the text --------------------------------------------------------------- */

enum { MAX_WORDS = 2 * MAX_NAMES + 4 };
typedef struct Line {
    Mapping *mapping;
    Diagnostics *diagnostics;
    bool failed;
    int count; /* of words: path, names with `|` between, two sides */
    const char *words[MAX_WORDS];
    Span spans[MAX_WORDS];
} Line;

static void line_error(Line *line, Span span, const char *what, const char *remedy) {
    help(error_at(line->diagnostics, span, "%s", what), "%s", remedy);
    line->failed = true;
}

/* Cuts a line at white space; its words go to the arena. */
static void split_words(Line *line, const char *at, const char *end) {
    const char *text = line->mapping->source.text;
    while (!line->failed) {
        while (at < end && isspace((unsigned char)*at))
            at++;
        const char *begin = at;
        while (at < end && !isspace((unsigned char)*at))
            at++;
        Span span = {&line->mapping->source, (uint32_t)(begin - text), (uint32_t)(at - text)};
        if (at == begin)
            return;
        if (line->count == MAX_WORDS) {
            line_error(
                line, span, "too many words for a line",
                "a line is: path, name (and others after `|`), and the tensor's two sides");
            return;
        }
        line->spans[line->count] = span;
        line->words[line->count++] =
            arena_strndup(line->mapping->arena, begin, (size_t)(at - begin));
    }
}

/* pattern = path | path with one {name,name,…} ; each name gives a member */
static void parse_pattern(Line *line, Rule *rule) {
    const char *pattern = line->words[0];
    const char *open = strchr(pattern, '{'), *close = open ? strchr(open, '}') : NULL;
    if (!open) {
        rule->members[rule->member_count++] = pattern;
        return;
    }
    if (!close || strchr(close, '{')) {
        line_error(line, rule->span, "a path has at most one group of names, in braces",
                   "write it as `layer[i].attn.{wq,wk,wv}`");
        return;
    }
    for (const char *name = open + 1; name <= close;) {
        int length = (int)strcspn(name, ",}");
        if (rule->member_count == MAX_MEMBERS) {
            line_error(line, rule->span, "more than 8 parameters are joined",
                       "join fewer of them in a line");
            return;
        }
        rule->members[rule->member_count++] =
            arena_printf(line->mapping->arena, "%.*s%.*s%s", (int)(open - pattern), pattern,
                         length, name, close + 1);
        name += length + 1;
    }
}

/* Every {i} of a name must be an [i] of the path. */
static void check_indices(Line *line, const Rule *rule, const char *name, Span span) {
    for (const char *open = name; (open = strchr(open, '{')); open++) {
        size_t length = strcspn(open + 1, "}");
        char *index = arena_printf(line->mapping->arena, "[%.*s]", (int)length, open + 1);
        if (!open[1 + length] || !strstr(rule->members[0], index))
            line_error(line, span, "an index in the name does not occur in the path",
                       "`layer[i]` in the path binds `{i}` in the name");
    }
}

/* names = name { | name }.  Returns the number of the word after them. */
static int parse_names(Line *line, Rule *rule) {
    int at = 1;
    for (;; at += 2) {
        if (at >= line->count || rule->name_count == MAX_NAMES) {
            line_error(
                line, rule->span, "the tensor's name is missing, or there are more than 8",
                "a line is: path, name (and others after `|`), and the tensor's two sides");
            return at;
        }
        rule->names[rule->name_count++] = line->words[at];
        check_indices(line, rule, line->words[at], line->spans[at]);
        if (at + 1 >= line->count || strcmp(line->words[at + 1], "|") != 0)
            return at + 1;
    }
}

/* layout = (in | join(in)) (out | join(out)), in either order */
static void parse_layout(Line *line, Rule *rule, int at) {
    static const char remedy[] = "the last two words of a line are the tensor's axes, slowest "
                                 "first: `out in` or `in out`, or join(…) around one of them";
    bool joins[2] = {false, false}, seen[2] = {false, false}; /* in, out */
    for (int i = at; i < line->count; i++) {
        const char *word = line->words[i];
        bool join = strncmp(word, "join(", 5) == 0;
        bool is_out = strcmp(word, "out") == 0 || strcmp(word, "join(out)") == 0;
        bool is_in = strcmp(word, "in") == 0 || strcmp(word, "join(in)") == 0;
        if ((!is_in && !is_out) || seen[is_out]) {
            line_error(line, line->spans[i], "this is no layout", remedy);
            return;
        }
        seen[is_out] = true;
        joins[is_out] = join;
        if (i == at)
            rule->out_first = is_out;
    }
    rule->joins_out = joins[true];
    if (!seen[false] || !seen[true])
        line_error(line, rule->span, "the tensor's two sides are missing", remedy);
    else if (joins[false] + joins[true] != (rule->member_count > 1))
        line_error(line, rule->span,
                   rule->member_count > 1 ? "parameters on one tensor need one join(…)"
                                          : "join(…) needs several parameters, in braces",
                   "write `layer[i].attn.{wq,wk,wv}  NAME  in join(out)`");
}

static void parse_line(Mapping *mapping, const char *begin, const char *end,
                       Diagnostics *diagnostics) {
    Line line = {.mapping = mapping, .diagnostics = diagnostics};
    split_words(&line, begin, end);
    if (line.failed || !line.count)
        return;
    Rule rule = {.span = line.spans[0]};
    parse_pattern(&line, &rule);
    int sides = line.failed ? 0 : parse_names(&line, &rule);
    if (!line.failed)
        parse_layout(&line, &rule, sides);
    if (!line.failed)
        array_push(&mapping->rules, rule);
}

/* models/llama.cola -> models/llama.map */
static char *map_path(const char *model_path, Arena *arena) {
    size_t length = strlen(model_path);
    if (length > 5 && strcmp(model_path + length - 5, ".cola") == 0)
        length -= 5;
    return arena_printf(arena, "%.*s.map", (int)length, model_path);
}

/* The rules move to the arena, so that a mapping needs no other end than the arena's. */
static void keep_rules(Mapping *mapping) {
    Rule *kept = arena_alloc_array(mapping->arena, (size_t)mapping->rules.count, sizeof *kept);
    if (mapping->rules.count)
        memcpy(kept, mapping->rules.data, (size_t)mapping->rules.count * sizeof *kept);
    free(mapping->rules.data);
    mapping->rules.data = kept;
    mapping->rules.capacity = mapping->rules.count;
}

bool mapping_is_empty(const Mapping *mapping) {
    return mapping->rules.count == 0;
}

Mapping *mapping_load(const char *model_path, Arena *arena, Diagnostics *diagnostics) {
    Mapping *mapping = arena_alloc(arena, sizeof *mapping);
    mapping->arena = arena;
    char *path = map_path(model_path, arena);
    size_t length;
    char *text = read_file(path, MAX_MAP_BYTES, &length);
    if (!text && errno == ENOENT)
        return mapping;
    if (!text) {
        help(error_in_file(diagnostics, path, "cannot be read: %s", strerror(errno)),
             "this text maps the model's parameters to names of Hugging Face");
        return NULL;
    }
    mapping->source = (Source){path, arena_strndup(arena, text, length), length, NULL};
    free(text);
    int errors = diagnostics_errors(diagnostics);
    const char *end = mapping->source.text + length;
    for (const char *line = mapping->source.text; line < end;) {
        const char *line_end = memchr(line, '\n', (size_t)(end - line));
        if (!line_end)
            line_end = end;
        const char *comment = memchr(line, '#', (size_t)(line_end - line));
        parse_line(mapping, line, comment ? comment : line_end, diagnostics);
        line = line_end + 1;
    }
    keep_rules(mapping);
    return diagnostics_errors(diagnostics) == errors ? mapping : NULL;
}

const Source *mapping_source(const Mapping *mapping) {
    return mapping->source.name ? &mapping->source : NULL;
}

/* ---- from paths to names ------------------------------------------------------------ */

typedef struct Index { /* layer[i] against layer[17]: name `i`, value `17` */
    const char *name, *value;
    int name_length, value_length;
} Index;
typedef struct Match {
    const Rule *rule;
    int member;
    int index_count;
    Index indices[MAX_INDICES];
} Match;

static bool match_path(const char *pattern, const char *path, Match *match) {
    match->index_count = 0;
    while (*pattern && *path) {
        if (*pattern != *path)
            return false;
        pattern++;
        if (*path++ != '[')
            continue;
        Index index = {pattern, path, (int)strcspn(pattern, "]"), (int)strcspn(path, "]")};
        bool literal = isdigit((unsigned char)*pattern);
        if (literal && (index.name_length != index.value_length ||
                        strncmp(index.name, index.value, (size_t)index.name_length) != 0))
            return false;
        if (!literal) {
            if (match->index_count == MAX_INDICES)
                return false;
            match->indices[match->index_count++] = index;
        }
        pattern += index.name_length;
        path += index.value_length;
    }
    return !*pattern && !*path;
}

/* `template` with the indices of a match in it, wherever their names stand between `open` and
 * `close`: [i] becomes [17], {i} becomes 17. */
static char *fill_indices(const Match *match, const char *template, char open, char close,
                          Arena *arena) {
    Text text = {0};
    for (const char *p = template; *p; p++) {
        const Index *index = NULL;
        for (int i = 0; i < match->index_count && *p == open; i++) {
            const Index *candidate = &match->indices[i];
            if (strncmp(candidate->name, p + 1, (size_t)candidate->name_length) == 0 &&
                p[1 + candidate->name_length] == close)
                index = candidate;
        }
        if (!index) {
            text_append(&text, p, 1);
            continue;
        }
        text_printf(&text, open == '[' ? "[%.*s]" : "%.*s", index->value_length, index->value);
        p += index->name_length + 1;
    }
    char *filled = arena_strdup(arena, text_string(&text));
    text_free(&text);
    return filled;
}

static bool find_rule(const Mapping *mapping, const char *path, Match *match) {
    for (int64_t i = 0; i < mapping->rules.count; i++) {
        const Rule *rule = match->rule = &mapping->rules.data[i];
        for (match->member = 0; match->member < rule->member_count; match->member++)
            if (match_path(rule->members[match->member], path, match))
                return true;
    }
    return false;
}

/* ---- where a weight lies in a tensor ------------------------------------------------ */

/* A weight as a block of a tensor of one or two axes. */
typedef struct Slot {
    StateId weight;
    Match match;                                    /* rule NULL: own name and layout */
    int64_t in, out;                                /* the weight's sides, 1 where absent */
    bool out_first;                                 /* the tensor's rows run over out */
    int64_t rows, columns, first_row, first_column; /* of the tensor; where the block begins */
    int rank;
    int64_t shape[MAX_AXES];
} Slot;

static bool is_weight(const State *state) {
    return state->role == ROLE_WEIGHT && !state->flat;
}

static Slot own_slot(const Module *module, StateId weight) {
    const State *state = &module->states.data[weight];
    Slot slot = {.weight = weight,
                 .in = axes_elements(module, state->in, state->in_count),
                 .out = axes_elements(module, state->out, state->out_count)};
    for (int i = 0; i < state->in_count; i++)
        slot.shape[slot.rank++] = module->axes.data[state->in[i]].size;
    for (int i = 0; i < state->out_count; i++)
        slot.shape[slot.rank++] = module->axes.data[state->out[i]].size;
    slot.rows = slot.in;
    slot.columns = slot.out;
    return slot;
}

static StateId member_weight(const Module *module, const Match *match, int member,
                             Arena *arena) {
    const char *path = fill_indices(match, match->rule->members[member], '[', ']', arena);
    return module_find_state(module, path, ROLE_WEIGHT, 0);
}

/* The slot in the rule's tensor: the members before this one stand before it on the joined
 * side. False where the module lacks a member or the other sides differ. */
static bool their_slot(const Module *module, StateId weight, const Match *match, Arena *arena,
                       Slot *slot) {
    const State *state = &module->states.data[weight];
    *slot = own_slot(module, weight);
    slot->match = *match;
    slot->out_first = match->rule->out_first;
    /* A parameter of one side has one axis to stand on, whatever the line calls it. */
    bool joins_out = state->out_count && (match->rule->joins_out || !state->in_count);
    int64_t before = 0, total = 0;
    for (int i = 0; i < match->rule->member_count; i++) {
        StateId member = member_weight(module, match, i, arena);
        if (member < 0)
            return false;
        Slot other = own_slot(module, member);
        if (joins_out ? other.in != slot->in : other.out != slot->out)
            return false;
        before += i < match->member ? (joins_out ? other.out : other.in) : 0;
        total += joins_out ? other.out : other.in;
    }
    int64_t in = joins_out ? slot->in : total, out = joins_out ? total : slot->out;
    slot->rows = slot->out_first ? out : in;
    slot->columns = slot->out_first ? in : out;
    *(joins_out == slot->out_first ? &slot->first_row : &slot->first_column) = before;
    slot->rank = 0;
    if (slot->out_first ? state->out_count : state->in_count)
        slot->shape[slot->rank++] = slot->rows;
    if (slot->out_first ? state->in_count : state->out_count)
        slot->shape[slot->rank++] = slot->columns;
    return true;
}

static int64_t slot_rows(const Slot *slot) {
    return slot->out_first ? slot->out : slot->in;
}

static int64_t slot_columns(const Slot *slot) {
    return slot->out_first ? slot->in : slot->out;
}

/* A block of the slot as one of the weight, whose rows are in axes. */
static StateBlock declared_block(const Slot *slot, StateBlock block) {
    if (!slot->out_first)
        return block;
    return (StateBlock){block.first_column, block.columns, block.first_row, block.rows};
}

/* to[j,i] = from[i,j], of `rows` by `columns` values; `stride`: between rows of `to`. */
static void transpose(const double *from, int64_t rows, int64_t columns, double *to,
                      int64_t stride) {
    enum { TILE = 8 }; /* values of a cache line */
    for (int64_t first = 0; first < columns; first += TILE)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t column = first; column < columns && column < first + TILE; column++)
                to[column * stride + row] = from[row * columns + column];
}

/* ---- loading ------------------------------------------------------------------------ */

typedef struct Loading {
    const Module *module;
    const Mapping *mapping;
    const char *path;
    const TensorFile *file;
    Arena *arena;
    Diagnostics *diagnostics;
    int missing;
} Loading;

static char *shape_text(const int64_t *shape, int rank, Arena *arena) {
    char *text = arena_strdup(arena, "[");
    for (int i = 0; i < rank; i++)
        text = arena_printf(arena, "%s%s%lld", text, i ? ", " : "", (long long)shape[i]);
    return arena_printf(arena, "%s]", text);
}

static char *axis_list(const Module *module, const AxisId *axes, int count, Arena *arena) {
    char *text = arena_strdup(arena, "");
    for (int i = 0; i < count; i++) {
        const Axis *axis = &module->axes.data[axes[i]];
        text = arena_printf(arena, "%s%s%s = %lld", text, i ? ", " : "", axis->name,
                            (long long)axis->size);
    }
    return text;
}

/* D = 48 -> H = 4, K = 12 */
static char *declared_text(const Module *module, const State *state, Arena *arena) {
    char *in = axis_list(module, state->in, state->in_count, arena);
    char *out = axis_list(module, state->out, state->out_count, arena);
    return arena_printf(arena, "%s%s%s", in, *in && *out ? " -> " : "", out);
}

static void note_declaration(Diagnostic *diagnostic, const State *state) {
    if (state->span.source)
        note_at(diagnostic, state->span, "`%s` is declared here", state->path);
}

static void report_missing(Loading *loading, const State *state, const char *their_name) {
    if (loading->missing++ >= MAX_MISSING_SHOWN)
        return;
    Diagnostic *d =
        their_name
            ? error_in_file(loading->diagnostics, loading->path, "holds neither `%s` nor `%s`",
                            state->path, their_name)
            : error_in_file(loading->diagnostics, loading->path, "holds no `%s`", state->path);
    note_declaration(d, state);
    int count = tensor_file_count(loading->file);
    const char **names = checked_alloc((size_t)count * sizeof *names);
    for (int i = 0; i < count; i++)
        names[i] = tensor_file_at(loading->file, i)->name;
    const char *near = nearest_name(their_name ? their_name : state->path, names, count);
    free(names);
    if (near)
        help(d, "did the file mean `%s`?", near);
    help(d, "weights fit the model, preset and plan that they were written with%s",
         their_name || mapping_source(loading->mapping)
             ? ""
             : "; Hugging Face names are known where a .map text stands beside the model");
}

static bool check_tensor(const Loading *loading, const Tensor *tensor, const Slot *slot) {
    const State *state = &loading->module->states.data[slot->weight];
    if (tensor->dtype == TENSOR_OTHER) {
        help(error_in_file(loading->diagnostics, loading->path,
                           "`%s` is of a dtype that weights cannot have", tensor->name),
             "weights are F64, F32, BF16 or F16");
        return false;
    }
    if (tensor->rank == slot->rank &&
        memcmp(tensor->shape, slot->shape, (size_t)slot->rank * sizeof *slot->shape) == 0)
        return true;
    Diagnostic *d = error_in_file(
        loading->diagnostics, loading->path, "`%s` has the shape %s, but `%s` (%s) needs %s",
        tensor->name, shape_text(tensor->shape, tensor->rank, loading->arena), state->path,
        declared_text(loading->module, state, loading->arena),
        shape_text(slot->shape, slot->rank, loading->arena));
    note_declaration(d, state);
    help(d, "choose the preset (or `-D` sizes) and the plan that the file was made with");
    return false;
}

/* The tensor that holds a weight, under its own name or theirs, and its slot there; NULL after
 * reporting. */
static const Tensor *locate(Loading *loading, StateId weight, Slot *slot) {
    const State *state = &loading->module->states.data[weight];
    const Tensor *tensor = tensor_file_find(loading->file, state->path);
    const char *first_name = NULL;
    Match match = {0};
    *slot = own_slot(loading->module, weight);
    if (!tensor && find_rule(loading->mapping, state->path, &match)) {
        for (int i = 0; i < match.rule->name_count && !tensor; i++) {
            const char *name =
                fill_indices(&match, match.rule->names[i], '{', '}', loading->arena);
            first_name = first_name ? first_name : name;
            tensor = tensor_file_find(loading->file, name);
        }
        if (tensor && !their_slot(loading->module, weight, &match, loading->arena, slot))
            tensor = NULL;
    }
    if (!tensor)
        report_missing(loading, state, first_name);
    return tensor && check_tensor(loading, tensor, slot) ? tensor : NULL;
}

static bool check_all(Loading *loading) {
    int errors = diagnostics_errors(loading->diagnostics);
    Slot slot;
    for (StateId id = 0; id < loading->module->states.count; id++)
        if (is_weight(&loading->module->states.data[id]))
            locate(loading, id, &slot);
    if (loading->missing > MAX_MISSING_SHOWN)
        error_in_file(loading->diagnostics, loading->path,
                      "%d weights of the model are missing", loading->missing);
    return diagnostics_errors(loading->diagnostics) == errors;
}

/* Block by block of the slot, row by row of the file. */
static void load_slot(const TensorFile *file, const Tensor *tensor, const Slot *slot,
                      PutWeight put, void *context) {
    double *read = checked_alloc(BLOCK_ELEMENTS * sizeof *read);
    double *turned = slot->out_first ? checked_alloc(BLOCK_ELEMENTS * sizeof *read) : NULL;
    StateBlock block = {0};
    while (next_block(slot_rows(slot), slot_columns(slot), &block)) {
        for (int64_t row = 0; row < block.rows; row++)
            tensor_file_read(file, tensor,
                             (slot->first_row + block.first_row + row) * slot->columns +
                                 slot->first_column + block.first_column,
                             block.columns, read + row * block.columns);
        if (turned)
            transpose(read, block.rows, block.columns, turned, block.rows);
        put(context, slot->weight, declared_block(slot, block), turned ? turned : read);
    }
    free(read);
    free(turned);
}

bool weights_load(const Module *module, const Mapping *mapping, const char *path, PutWeight put,
                  void *context, Diagnostics *diagnostics) {
    TensorFile *file = tensor_file_open(path, diagnostics);
    if (!file)
        return false;
    Loading loading = {module, mapping, path, file, arena_new(), diagnostics, 0};
    bool good = check_all(&loading);
    for (StateId id = 0; good && id < module->states.count; id++) {
        Slot slot;
        if (is_weight(&module->states.data[id]))
            load_slot(file, locate(&loading, id, &slot), &slot, put, context);
    }
    arena_free(loading.arena);
    tensor_file_close(file);
    return good;
}

/* ---- saving ------------------------------------------------------------------------- */

typedef struct Saving {
    const Module *module;
    const Mapping *mapping;
    bool theirs;
    GetWeight get;
    void *context;
    Arena *arena;
    ARRAY(Slot) slots; /* one a tensor: that of its first member */
    ARRAY(Tensor) tensors;
} Saving;

static Slot slot_to_write(const Saving *saving, StateId weight) {
    const char *path = saving->module->states.data[weight].path;
    Match match = {0};
    Slot slot;
    if (saving->theirs && find_rule(saving->mapping, path, &match) &&
        their_slot(saving->module, weight, &match, saving->arena, &slot))
        return slot;
    return own_slot(saving->module, weight);
}

/* Lists the tensors of the file.  False after reporting two that would have one name. */
static bool list_tensors(Saving *saving, bool double_precision, Diagnostics *diagnostics) {
    StringMap names = {0};
    bool good = true;
    for (StateId id = 0; id < saving->module->states.count; id++) {
        const State *state = &saving->module->states.data[id];
        if (!is_weight(state))
            continue;
        Slot slot = slot_to_write(saving, id);
        if (slot.match.member > 0)
            continue;
        const Rule *rule = slot.match.rule;
        const char *name =
            rule ? fill_indices(&slot.match, rule->names[0], '{', '}', saving->arena)
                 : state->path;
        int64_t other = string_map_get(&names, name, -1);
        if (other >= 0) {
            const char *other_path = saving->module->states.data[other].path;
            help(error_at(diagnostics, rule ? rule->span : state->span,
                          "`%s` and `%s` would both be written as `%s`", other_path,
                          state->path, name),
                 "name the path's index in the tensor's name: {i}");
            good = false;
        }
        string_map_set(&names, name, id);
        Tensor tensor = {.name = name,
                         .dtype = double_precision ? TENSOR_F64 : TENSOR_F32,
                         .rank = slot.rank};
        memcpy(tensor.shape, slot.shape, sizeof tensor.shape);
        array_push(&saving->tensors, tensor);
        array_push(&saving->slots, slot);
    }
    string_map_free(&names);
    return good;
}

/* The part of a slot that lies in a block of its tensor, as a block of the slot; false:
 * none. */
static bool slot_in_block(const Slot *slot, StateBlock block, StateBlock *part) {
    int64_t row = block.first_row - slot->first_row;
    int64_t column = block.first_column - slot->first_column;
    int64_t last_row = row + block.rows < slot_rows(slot) ? row + block.rows : slot_rows(slot);
    int64_t last_column = column + block.columns < slot_columns(slot) ? column + block.columns
                                                                      : slot_columns(slot);
    row = row > 0 ? row : 0;
    column = column > 0 ? column : 0;
    *part = (StateBlock){row, last_row - row, column, last_column - column};
    return part->rows > 0 && part->columns > 0;
}

/* Gets a slot's part of a block; `values` are the block's, `part_values` room for the
 * part's. */
static void get_part(const Saving *saving, const Slot *slot, StateBlock block, double *values,
                     double *part_values) {
    StateBlock part;
    if (!slot_in_block(slot, block, &part))
        return;
    saving->get(saving->context, slot->weight, declared_block(slot, part), part_values);
    double *to = values + (slot->first_row + part.first_row - block.first_row) * block.columns +
                 slot->first_column + part.first_column - block.first_column;
    if (slot->out_first)
        transpose(part_values, part.columns, part.rows, to, block.columns);
    for (int64_t row = 0; row < part.rows && !slot->out_first; row++)
        memcpy(to + row * block.columns, part_values + row * part.columns,
               (size_t)part.columns * sizeof *to);
}

/* Assembles a tensor from all its members, block by block. */
static void put_tensor(const Saving *saving, TensorWriter *writer, const Slot *slot) {
    int count = slot->match.rule ? slot->match.rule->member_count : 1;
    Slot *members = checked_alloc((size_t)count * sizeof *members);
    members[0] = *slot;
    for (int i = 1; i < count; i++)
        members[i] = slot_to_write(
            saving, member_weight(saving->module, &slot->match, i, saving->arena));
    double *values = checked_alloc((size_t)2 * BLOCK_ELEMENTS * sizeof *values);
    StateBlock block = {0};
    while (next_block(slot->rows, slot->columns, &block)) {
        for (int i = 0; i < count; i++)
            get_part(saving, &members[i], block, values, values + BLOCK_ELEMENTS);
        tensor_writer_put(writer, values, block.rows * block.columns);
    }
    free(values);
    free(members);
}

NewFile *weights_stage(const Module *module, const Mapping *mapping, bool theirs,
                       bool double_precision, const char *path, GetWeight get, void *context,
                       Diagnostics *diagnostics) {
    Saving saving = {.module = module,
                     .mapping = mapping,
                     .theirs = theirs,
                     .get = get,
                     .context = context,
                     .arena = arena_new()};
    NewFile *staged = NULL;
    TensorWriter *writer = NULL;
    if (list_tensors(&saving, double_precision, diagnostics))
        writer = tensor_writer_open(path, saving.tensors.data, (int)saving.tensors.count,
                                    diagnostics);
    if (writer) {
        for (int64_t i = 0; i < saving.slots.count; i++)
            put_tensor(&saving, writer, &saving.slots.data[i]);
        staged = tensor_writer_finish(writer, diagnostics);
    }
    array_free(&saving.slots);
    array_free(&saving.tensors);
    arena_free(saving.arena);
    return staged;
}

bool weights_save(const Module *module, const Mapping *mapping, bool theirs,
                  bool double_precision, const char *path, GetWeight get, void *context,
                  Diagnostics *diagnostics) {
    NewFile *staged = weights_stage(module, mapping, theirs, double_precision, path, get,
                                    context, diagnostics);
    return staged && new_file_publish(staged, diagnostics);
}
