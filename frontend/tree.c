/* tree.c: nodes of the syntax tree, and the few rules that the grammar cannot say: limits of
 * depth and axes, what may stand left of `as`, which statement belongs where. */
#include "frontend/parser.h"

#include <ctype.h>
#include <math.h>

#define NEW(parser, T) ((T *)arena_alloc((parser)->arena, sizeof(T)))

/* ---- names ----------------------------------------------------------------------- */

void tree_append_name(Parser *parser, NameList *names, Name name) {
    if (names->count == names->capacity) {
        int capacity = names->capacity ? 2 * names->capacity : 4;
        Name *data = arena_alloc_array(parser->arena, (size_t)capacity, sizeof *data);
        if (names->count > 0)
            memcpy(data, names->data, (size_t)names->count * sizeof *data);
        names->data = data;
        names->capacity = capacity;
    }
    names->data[names->count++] = name;
}

NameList tree_one_name(Parser *parser, Name name) {
    NameList names = {0};
    tree_append_name(parser, &names, name);
    return names;
}

/* Copies up to MAX_AXES axis names behind those already there. */
static void copy_axes(Parser *parser, Name axes[MAX_AXES], int *count, NameList names) {
    for (int i = 0; i < names.count; i++) {
        if (*count == MAX_AXES) {
            error_at(parser->diagnostics, names.data[i].span, "more than %d axes", MAX_AXES);
            return;
        }
        axes[(*count)++] = names.data[i];
    }
}

/* ---- expressions ----------------------------------------------------------------- */

static int deepest(const Expr *list) {
    int depth = 0;
    for (; list; list = list->next)
        depth = list->depth > depth ? list->depth : depth;
    return depth;
}

/* A new expression over parts `below` levels deep. */
static Expr *new_expr(Parser *parser, ExprKind kind, int below, Span span) {
    Expr *expr = NEW(parser, Expr);
    expr->kind = kind;
    expr->arrow_at = -1;
    expr->depth = below + 1;
    expr->span = span;
    if (expr->depth > MAX_NESTING)
        parser_too_deep(parser, span);
    return expr;
}

static int max(int a, int b) {
    return a > b ? a : b;
}

Expr *tree_number(Parser *parser, Literal literal, Span span) {
    Expr *expr = new_expr(parser, EXPR_NUMBER, 0, span);
    expr->number = literal.value;
    expr->literal = literal.text;
    return expr;
}

Expr *tree_infinity(Parser *parser, Span span) {
    return tree_number(parser, (Literal){"inf", INFINITY}, span);
}

Expr *tree_bool(Parser *parser, bool value, Span span) {
    Expr *expr = new_expr(parser, EXPR_BOOL, 0, span);
    expr->number = value;
    return expr;
}

Expr *tree_name(Parser *parser, Name name) {
    Expr *expr = new_expr(parser, EXPR_NAME, 0, name.span);
    expr->name = name;
    return expr;
}

Expr *tree_unary(Parser *parser, Operator operator, Expr * a, Span span) {
    Expr *expr = new_expr(parser, EXPR_UNARY, a->depth, span);
    expr->operator= operator;
    expr->a = a;
    return expr;
}

Expr *tree_binary(Parser *parser, Operator operator, Expr * a, Expr *b, Span span) {
    Expr *expr = new_expr(parser, EXPR_BINARY, max(a->depth, b->depth), span);
    expr->operator= operator;
    expr->a = a;
    expr->b = b;
    return expr;
}

Expr *tree_if(Parser *parser, Expr *condition, Expr *yes, Expr *no, Span span) {
    int below = max(condition->depth, max(yes->depth, no->depth));
    Expr *expr = new_expr(parser, EXPR_IF, below, span);
    expr->a = condition;
    expr->b = yes;
    expr->c = no;
    return expr;
}

Expr *tree_labelled(Parser *parser, ExprKind kind, Name name, Expr *a, Span span) {
    Expr *expr = new_expr(parser, kind, a->depth, span);
    expr->name = name;
    expr->a = a;
    return expr;
}

/* `(a)` is a itself; `(a, b)` a list. */
Expr *tree_parenthesized(Parser *parser, ExprList list, Span span) {
    if (list.count == 1) {
        list.first->span = span;
        return list.first;
    }
    Expr *expr = new_expr(parser, EXPR_LIST, deepest(list.first), span);
    expr->args = list.first;
    return expr;
}

Expr *tree_arrow_list(Parser *parser, ExprList left, ExprList right, Span span) {
    int arrow_at = left.count;
    LIST_CONCAT(left, right);
    Expr *expr = new_expr(parser, EXPR_LIST, deepest(left.first), span);
    expr->args = left.first;
    expr->arrow_at = arrow_at;
    return expr;
}

ArgGroup *tree_group(Parser *parser, ExprList left, const ExprList *right, Span span) {
    ArgGroup *group = NEW(parser, ArgGroup);
    group->arrow_at = right ? left.count : -1;
    if (right)
        LIST_CONCAT(left, *right);
    group->args = left.first;
    group->arg_count = left.count;
    group->span = span;
    return group;
}

/* The first group is the arguments proper, the others follow a `;` each. */
Expr *tree_call(Parser *parser, Name name, ArgGroupList groups, Span span) {
    int below = 0;
    for (const ArgGroup *group = groups.first; group; group = group->next)
        below = max(below, deepest(group->args));
    Expr *expr = new_expr(parser, EXPR_CALL, below, span);
    expr->name = name;
    expr->args = groups.first->args;
    expr->arrow_at = groups.first->arrow_at;
    expr->groups = groups.first->next;
    return expr;
}

Expr *tree_index(Parser *parser, Expr *a, IndexItemList items, Span span) {
    int below = a->depth;
    for (const IndexItem *item = items.first; item; item = item->next)
        below = max(below, item->value ? item->value->depth : 0);
    Expr *expr = new_expr(parser, EXPR_INDEX, below, span);
    expr->a = a;
    expr->items = items.first;
    return expr;
}

IndexItem *tree_gather(Parser *parser, Expr *index, Span span) {
    IndexItem *item = NEW(parser, IndexItem);
    item->kind = ITEM_GATHER;
    item->value = index;
    item->span = span;
    return item;
}

IndexItem *tree_pick(Parser *parser, Name axis, Expr *position, Span span) {
    IndexItem *item = NEW(parser, IndexItem);
    item->kind = ITEM_PICK;
    item->from[0] = axis;
    item->from_count = 1;
    item->value = position;
    item->span = span;
    return item;
}

/* The names that `J` or `(J, G)` lists; false when it is anything else. */
static bool names_of(Parser *parser, const Expr *expr, NameList *names) {
    bool is_list = expr->kind == EXPR_LIST && expr->arrow_at < 0;
    for (const Expr *part = is_list ? expr->args : expr; part; part = part->next) {
        if (part->kind != EXPR_NAME)
            return false;
        tree_append_name(parser, names, part->name);
    }
    return names->count > 0;
}

IndexItem *tree_rename(Parser *parser, const Expr *from, NameList to, bool to_list, Span span) {
    IndexItem *item = NEW(parser, IndexItem);
    item->kind = ITEM_AS;
    item->span = span;
    item->from_list = from->span.source->text[from->span.begin] == '(';
    item->to_list = to_list;
    NameList names = {0};
    if (!names_of(parser, from, &names)) {
        Diagnostic *error = error_at(parser->diagnostics, from->span,
                                     "what stands before `as` must be the name of an axis");
        help(error, "rename: `x[S as T]`; split: `x[H as (J, G)]`; merge: `x[(J, G) as H]`");
    } else if (names.count > 1 && to.count > 1) {
        Diagnostic *error =
            error_at(parser->diagnostics, span,
                     "`as` renames, splits or merges: one side must be one axis");
        help(error, "merge first, then split: `x[(J, G) as H][H as (K, M)]`");
    }
    copy_axes(parser, item->from, &item->from_count, names);
    copy_axes(parser, item->to, &item->to_count, to);
    return item;
}

/* ---- types and parameters -------------------------------------------------------- */

TypeExpr *tree_axes(Parser *parser, NameList left, const NameList *right) {
    TypeExpr *type = NEW(parser, TypeExpr);
    copy_axes(parser, type->axes, &type->axis_count, left);
    type->arrow_at = right ? type->axis_count : -1;
    if (right)
        copy_axes(parser, type->axes, &type->axis_count, *right);
    return type;
}

TypeExpr *tree_open_axes(Parser *parser, NameList left, const NameList *right) {
    TypeExpr *type = tree_axes(parser, left, right);
    type->open = true;
    return type;
}

Parameter *tree_parameter(Parser *parser, Name name, TypeExpr *type, Expr *fallback) {
    Parameter *parameter = NEW(parser, Parameter);
    parameter->name = name;
    parameter->type = type;
    parameter->fallback = fallback;
    return parameter;
}

/* `left -> right`, of one group. */
ParameterList tree_parameter_arrow(ParameterList left, ParameterList right) {
    for (Parameter *parameter = right.first; parameter; parameter = parameter->next)
        parameter->after_arrow = true;
    LIST_CONCAT(left, right);
    for (Parameter *parameter = left.first; parameter; parameter = parameter->next)
        parameter->group_has_arrow = true;
    return left;
}

/* Appends a group.  `count` of the result counts the groups, which may be empty. */
ParameterList tree_parameter_group(ParameterList before, ParameterList group) {
    int groups = before.count;
    for (Parameter *parameter = group.first; parameter; parameter = parameter->next)
        parameter->group = groups;
    LIST_CONCAT(before, group);
    before.count = groups + 1;
    return before;
}

/* ---- statements ------------------------------------------------------------------ */

static int deepest_statement(const Statement *list) {
    int depth = 0;
    for (; list; list = list->next)
        depth = max(depth, list->depth);
    return depth;
}

StatementList tree_statement(Parser *parser, StatementKind kind, NameList names, Expr *value,
                             Span span) {
    Statement *statement = NEW(parser, Statement);
    statement->kind = kind;
    statement->names = names.data;
    statement->name_count = names.count;
    statement->value = value;
    statement->depth = 1;
    statement->span = span;
    return (StatementList){statement, statement, 1};
}

/* One name, with its type and value. */
StatementList tree_bind(Parser *parser, Name name, TypeExpr *type, Expr *value, Span span) {
    StatementList list =
        tree_statement(parser, STATEMENT_BIND, tree_one_name(parser, name), value, span);
    list.first->type = type;
    return list;
}

static StatementList with_bodies(Parser *parser, StatementList list, StatementList body,
                                 StatementList otherwise) {
    Statement *statement = list.first;
    statement->body = body.first;
    statement->otherwise = otherwise.first;
    statement->depth =
        1 + max(deepest_statement(body.first), deepest_statement(otherwise.first));
    if (statement->depth > MAX_NESTING)
        parser_too_deep(parser, statement->span);
    return list;
}

StatementList tree_for(Parser *parser, Name index, Expr *begin, Expr *end, StatementList body,
                       Span span) {
    StatementList list =
        tree_statement(parser, STATEMENT_FOR, tree_one_name(parser, index), begin, span);
    list.first->value2 = end;
    return with_bodies(parser, list, body, (StatementList){0});
}

StatementList tree_if_statement(Parser *parser, Expr *condition, StatementList yes,
                                StatementList no, Span span) {
    StatementList list = tree_statement(parser, STATEMENT_IF, (NameList){0}, condition, span);
    return with_bodies(parser, list, yes, no);
}

StatementList tree_set_kind(StatementList list, StatementKind kind) {
    for (Statement *statement = list.first; statement; statement = statement->next)
        statement->kind = kind;
    return list;
}

/* ---- plans and recipes ----------------------------------------------------------- */

SelectorPart *tree_part(Parser *parser, int kind) {
    SelectorPart *part = NEW(parser, SelectorPart);
    part->kind = kind;
    return part;
}

Selector *tree_selector(Parser *parser, SelectorPartList parts, Span span) {
    Selector *selector = NEW(parser, Selector);
    selector->parts = parts.first;
    selector->span = span;
    return selector;
}

PartIndex *tree_part_index(Parser *parser, IndexRange *ranges) {
    PartIndex *index = NEW(parser, PartIndex);
    index->any = !ranges;
    index->ranges = ranges;
    return index;
}

IndexRange *tree_range(Parser *parser, Expr *low, Expr *high) {
    IndexRange *range = NEW(parser, IndexRange);
    range->low = low;
    range->high = high;
    return range;
}

Setting *tree_setting(Parser *parser, Name name, Expr *value) {
    Setting *setting = NEW(parser, Setting);
    setting->name = name;
    setting->value = value;
    return setting;
}

/* The first of a name's places, by name. */
typedef StringMap Places;

/* Reports a name that has a place already; else notes its place. */
static void claim_name(Parser *parser, Places *places, const char *name, const Span *span,
                       const char *what) {
    const Span *first = (const Span *)(intptr_t)string_map_get(places, name, 0);
    if (!first) {
        string_map_set(places, name, (int64_t)(intptr_t)span);
        return;
    }
    Diagnostic *error = error_at(parser->diagnostics, *span, "%s is %s already",
                                 syntax_quote(parser->arena, *span), what);
    note_at(error, *first, "here");
}

Preset *tree_preset(Parser *parser, Name name, SettingList settings, Span span) {
    Places places = {0};
    for (const Setting *s = settings.first; s; s = s->next)
        claim_name(parser, &places, s->name.text, &s->name.span, "set in this preset");
    string_map_free(&places);
    Preset *preset = NEW(parser, Preset);
    preset->name = name;
    preset->settings = settings.first;
    preset->span = span;
    return preset;
}

DirectiveList tree_directive(Parser *parser, DirectiveKind kind, Expr *value, Span span) {
    Directive *directive = NEW(parser, Directive);
    directive->kind = kind;
    directive->value = value;
    directive->span = span;
    return (DirectiveList){directive, directive, 1};
}

DirectiveList tree_value_directives(Parser *parser, StatementList values, DirectiveKind kind) {
    DirectiveList list = {0};
    for (const Statement *value = values.first; value; value = value->next) {
        DirectiveList one = tree_directive(parser, kind, value->value, value->span);
        one.first->name = value->names[0];
        LIST_CONCAT(list, one);
    }
    return list;
}

/* A further use, without the word `optimizer`, has no directive of its own: kind is OPTIMIZER
 * and name is the optimizer's, which tree_add_directives looks for. */
DirectiveList tree_optimizer_use(Parser *parser, Expr *call, SelectorList on, bool first,
                                 Span span) {
    OptimizerUse *use = NEW(parser, OptimizerUse);
    use->call = call;
    use->on = on.first;
    DirectiveList list = tree_directive(parser, DIRECTIVE_OPTIMIZER, NULL, span);
    list.first->optimizers = use;
    if (!first)
        list.first->name = call->name;
    return list;
}

DirectiveList tree_add_directives(Parser *parser, DirectiveList list, DirectiveList more) {
    Directive *added = more.first;
    bool further = added && added->kind == DIRECTIVE_OPTIMIZER && added->name.text;
    if (!further) {
        LIST_CONCAT(list, more);
        return list;
    }
    if (!list.last || list.last->kind != DIRECTIVE_OPTIMIZER) {
        Diagnostic *error = error_at(parser->diagnostics, added->name.span,
                                     "`%s(…)` is no directive", added->name.text);
        help(error, "an optimizer is named after the word: `optimizer %s(…)`",
             added->name.text);
        return list;
    }
    OptimizerUse *last = list.last->optimizers;
    while (last->next)
        last = last->next;
    last->next = added->optimizers;
    list.last->span.end = added->span.end;
    return list;
}

Expr *tree_bytes(Parser *parser, Expr *value, Name unit, Span span) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    Literal factor = {.text = unit.text, .value = 1024};
    for (int i = 0; i < COUNT_OF(units); i++, factor.value *= 1024)
        if (!strcmp(units[i], unit.text)) {
            if (value->kind != EXPR_NUMBER)
                return tree_binary(parser, OPERATOR_MULTIPLY, value,
                                   tree_number(parser, factor, unit.span), span);
            value->number *= factor.value;
            value->literal = arena_printf(parser->arena, "%s %s", value->literal, unit.text);
            value->span = span;
            return value;
        }
    Diagnostic *error =
        error_at(parser->diagnostics, unit.span, "unknown unit of memory `%s`", unit.text);
    const char *near = NULL; /* GB, gib: the letter says what was meant */
    for (int i = 0; i < COUNT_OF(units); i++)
        if (toupper((unsigned char)unit.text[0]) == units[i][0] && strlen(unit.text) <= 3)
            near = units[i];
    help(error, "%s",
         near ? arena_printf(parser->arena, "write `%s`", near)
              : "bytes have no unit; others are `KiB`, `MiB`, `GiB` and `TiB`");
    return value;
}

Expr *tree_split_bytes(Parser *parser, Expr *value) {
    const char *text = value->kind == EXPR_NAME ? value->name.text : "";
    size_t digits = strspn(text, "0123456789");
    if (digits == 0)
        return value;
    uint32_t middle = value->name.span.begin + (uint32_t)digits;
    Span left = value->name.span, right = left;
    left.end = right.begin = middle;
    Literal literal = {arena_strndup(parser->arena, text, digits), strtod(text, NULL)};
    return tree_bytes(parser, tree_number(parser, literal, left), (Name){text + digits, right},
                      value->span);
}

/* ---- items ----------------------------------------------------------------------- */

ItemList tree_item(Parser *parser, ItemKind kind, Name name, Span span) {
    Item *item = NEW(parser, Item);
    item->kind = kind;
    item->name = name;
    item->span = span;
    return (ItemList){item, item, 1};
}

ItemList tree_statement_items(Parser *parser, StatementList statements) {
    ItemList list = {0};
    for (Statement *statement = statements.first, *next; statement; statement = next) {
        next = statement->next;
        statement->next = NULL;
        ItemList one = tree_item(parser, ITEM_STATEMENT, statement->names[0], statement->span);
        one.first->statement = statement;
        LIST_CONCAT(list, one);
    }
    return list;
}

ItemList tree_definition(Parser *parser, ItemKind kind, Name name, ParameterList parameters,
                         TypeExpr *result, StatementList body, Span span) {
    ItemList list = tree_item(parser, kind, name, span);
    list.first->parameters = parameters.first;
    list.first->result = result;
    list.first->body = body.first;
    return list;
}

ItemList tree_plan(Parser *parser, ItemKind kind, Name name, NameList extends,
                   DirectiveList directives, Span span) {
    ItemList list = tree_item(parser, kind, name, span);
    list.first->extends = extends.data;
    list.first->extends_count = extends.count;
    list.first->directives = directives.first;
    return list;
}

/* ---- what belongs where ---------------------------------------------------------- */

#define IN(kind)  (1u << (kind))
#define IN_BODIES (IN(ITEM_BLOCK) | IN(ITEM_FN) | IN(ITEM_OPTIMIZER) | IN(ITEM_MODEL))

static const struct {
    const char *word;
    unsigned items; /* where it may stand */
    const char *remedy;
} statement_places[] = {
    [STATEMENT_PARAM] = {"param", IN(ITEM_BLOCK) | IN(ITEM_MODEL),
                         "parameters belong to a block or a model; make the fn a block"},
    [STATEMENT_DIM] = {"dim", IN_BODIES, NULL},
    [STATEMENT_FLAG] = {"flag", 0, "flags belong to the text itself or to a plan"},
    [STATEMENT_BIND] = {"=", IN_BODIES, NULL},
    [STATEMENT_FOR] = {"for", IN_BODIES, NULL},
    [STATEMENT_IF] = {"if", IN_BODIES, NULL},
    [STATEMENT_RETURN] =
        {"return", IN(ITEM_BLOCK) | IN(ITEM_FN),
         "a block or an fn returns; a model says `minimize`, an optimizer `next`"},
    [STATEMENT_INPUT] = {"input", IN(ITEM_MODEL),
                         "inputs are a model's; a block is given tensors in parentheses"},
    [STATEMENT_MINIMIZE] = {"minimize", IN(ITEM_MODEL), "the loss is a model's"},
    [STATEMENT_OBSERVE] = {"observe", IN(ITEM_BLOCK) | IN(ITEM_MODEL),
                           "observed values belong to a block or a model"},
    [STATEMENT_STATE] = {"state", IN(ITEM_OPTIMIZER), "states belong to an optimizer"},
    [STATEMENT_NEXT] = {"next", IN(ITEM_OPTIMIZER),
                        "the next value of a state belongs to an optimizer"},
};

static const struct {
    const char *word;
    unsigned items;
} directive_places[] = {
    [DIRECTIVE_DIM] = {"dim", IN(ITEM_PLAN) | IN(ITEM_RECIPE)},
    [DIRECTIVE_FLAG] = {"flag", IN(ITEM_PLAN) | IN(ITEM_RECIPE)},
    [DIRECTIVE_PRESET] = {"preset", IN(ITEM_PLAN) | IN(ITEM_RECIPE)},
    [DIRECTIVE_SET] = {"set", IN(ITEM_PLAN) | IN(ITEM_RECIPE)},
    [DIRECTIVE_FACTORIZE] = {"factorize", IN(ITEM_PLAN)},
    [DIRECTIVE_RECOMPUTE] = {"recompute", IN(ITEM_PLAN)},
    [DIRECTIVE_MEMORY] = {"memory", IN(ITEM_PLAN)},
    [DIRECTIVE_PRECISION] = {"precision", IN(ITEM_PLAN)},
    [DIRECTIVE_OPTIMIZER] = {"optimizer", IN(ITEM_RECIPE)},
    [DIRECTIVE_WARMUP] = {"warmup", IN(ITEM_RECIPE)},
    [DIRECTIVE_COSINE] = {"cosine", IN(ITEM_RECIPE)},
    [DIRECTIVE_LINEAR] = {"linear", IN(ITEM_RECIPE)},
    [DIRECTIVE_CLIP] = {"clip", IN(ITEM_RECIPE)},
    [DIRECTIVE_BATCH] = {"batch", IN(ITEM_RECIPE)},
    [DIRECTIVE_STEPS] = {"steps", IN(ITEM_RECIPE)},
    [DIRECTIVE_VALIDATE] = {"validate", IN(ITEM_RECIPE)},
};

static const char *item_word(ItemKind kind) {
    static const char *const words[] = {
        [ITEM_USE] = "use",       [ITEM_STATEMENT] = "dim", [ITEM_PRESET] = "preset",
        [ITEM_BLOCK] = "a block", [ITEM_FN] = "an fn",      [ITEM_OPTIMIZER] = "an optimizer",
        [ITEM_MODEL] = "a model", [ITEM_PLAN] = "a plan",   [ITEM_RECIPE] = "a recipe"};
    return words[kind];
}

/* The axes of a value are a set: only those of a parameter have a direction. */
static void check_no_arrow(Parser *parser, const TypeExpr *type) {
    if (!type || type->arrow_at < 0)
        return;
    Diagnostic *error = error_at(parser->diagnostics, type->span,
                                 "the type of a value has no `->`: only a parameter has inputs "
                                 "and outputs");
    help(error, "write a comma in its place");
}

static void check_statements(Parser *parser, ItemKind item, const Statement *statement) {
    for (; statement; statement = statement->next) {
        if (!(statement_places[statement->kind].items & IN(item))) {
            Diagnostic *error =
                error_at(parser->diagnostics, statement->span, "%s has no `%s`",
                         item_word(item), statement_places[statement->kind].word);
            help(error, "%s", statement_places[statement->kind].remedy);
        }
        if (statement->kind == STATEMENT_BIND)
            check_no_arrow(parser, statement->type);
        check_statements(parser, item, statement->body);
        check_statements(parser, item, statement->otherwise);
    }
}

static void check_loops(Parser *parser, const Statement *statement, bool in_loop) {
    for (; statement; statement = statement->next) {
        StatementKind kind = statement->kind;
        check_loops(parser, statement->body, in_loop || kind == STATEMENT_FOR);
        check_loops(parser, statement->otherwise, in_loop);
        if (!in_loop ||
            (kind != STATEMENT_RETURN && kind != STATEMENT_INPUT && kind != STATEMENT_MINIMIZE))
            continue;
        Diagnostic *error = error_at(parser->diagnostics, statement->span,
                                     "`%s` stands outside loops", statement_places[kind].word);
        if (kind == STATEMENT_RETURN)
            help(error, "carry the value in a name from outside the loop, and return that");
    }
}

static void check_parameters(Parser *parser, const Item *item) {
    Places places = {0};
    for (const Parameter *p = item->parameters; p; p = p->next) {
        claim_name(parser, &places, p->name.text, &p->name.span, "a parameter");
        if (item->kind != ITEM_OPTIMIZER)
            check_no_arrow(parser, p->type);
    }
    check_no_arrow(parser, item->result);
    string_map_free(&places);
}

/* What a plan or recipe says once: the rate's two schedules count as one. */
static const char *said_once(const Directive *directive) {
    switch (directive->kind) {
    case DIRECTIVE_SET:
        return directive->name.text;
    case DIRECTIVE_COSINE:
    case DIRECTIVE_LINEAR:
        return "cosine";
    case DIRECTIVE_MEMORY:
    case DIRECTIVE_PRECISION:
    case DIRECTIVE_WARMUP:
    case DIRECTIVE_CLIP:
    case DIRECTIVE_BATCH:
    case DIRECTIVE_STEPS:
    case DIRECTIVE_VALIDATE:
        return directive_places[directive->kind].word;
    default:
        return NULL;
    }
}

static void check_directives(Parser *parser, ItemKind item, const Directive *directive) {
    ItemKind other = item == ITEM_PLAN ? ITEM_RECIPE : ITEM_PLAN;
    Places values = {0}, settings = {0};
    for (; directive; directive = directive->next) {
        const char *word = directive_places[directive->kind].word, *once = said_once(directive);
        if (!(directive_places[directive->kind].items & IN(item)))
            error_at(parser->diagnostics, directive->span, "`%s` belongs in %s, not in %s",
                     word, item_word(other), item_word(item));
        else if (once && directive->kind == DIRECTIVE_SET)
            claim_name(parser, &settings, once, &directive->name.span, "set");
        else if (once)
            claim_name(parser, &values, once, &directive->span, "given");
    }
    string_map_free(&values);
    string_map_free(&settings);
}

void tree_add_items(Parser *parser, ItemList items) {
    /* A brace that is missing makes a loop of what was to follow it. */
    bool whole = diagnostics_errors(parser->diagnostics) == parser->errors_before;
    for (const Item *item = items.first; item && !parser->stopped; item = item->next) {
        check_parameters(parser, item);
        check_statements(parser, item->kind, item->body);
        if (whole)
            check_loops(parser, item->body, false);
        check_directives(parser, item->kind, item->directives);
    }
    LIST_CONCAT(parser->items, items);
}
