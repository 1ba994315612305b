/* frontend/syntax.h: what the files of the syntax half share.  parser.h, which bison writes,
 * includes this file after its own tokens and values; nobody else should.
 *
 *   lexer.l          characters to tokens
 *   tokens.c         tokens to the parser's tokens: newlines, brackets, recovery
 *   tree.c           nodes of the tree, and what the grammar cannot say about them
 *   syntax_error.c   the wording of "expected …, found …"
 */
#ifndef COLAC_FRONTEND_SYNTAX_H
#define COLAC_FRONTEND_SYNTAX_H

#include <stdlib.h>
#include <string.h>

/* ---- lexer.l --------------------------------------------------------------------------------
 */
typedef struct Token {
    int kind; /* TOKEN_…, or the character itself */
    YYSTYPE value;
    Span span;
    uint32_t line;      /* from 1 */
    bool first_on_line; /* set by tokens.c */
} Token;

typedef struct Lexer {
    const Source *source;
    Arena *arena;
    Diagnostics *diagnostics;
    void *scanner;   /* flex's own state */
    StringMap names; /* interned: to their texts */
    uint32_t offset, line;
    bool quiet;      /* recovering from an error: bad characters are not reported */
    bool broken_off; /* at a NUL byte */
} Lexer;

void lexer_start(Lexer *lexer, const Source *source, Arena *arena, Diagnostics *diagnostics);
void lexer_finish(Lexer *lexer);
/* Every token, comments and newlines too.  TOKEN_YYerror stands for what was reported as no
 * token; TOKEN_YYEOF ends the text. */
Token lexer_next(Lexer *lexer);

/* ---- tokens.c -------------------------------------------------------------------------------
 */
typedef struct Bracket {
    enum { BRACKET_ROUND, BRACKET_SQUARE, BRACKET_BODY, BRACKET_CHOICE } kind;
    Span span;
    uint32_t line;
} Bracket;

struct Parser {
    const Source *source;
    Arena *arena;
    Diagnostics *diagnostics;
    Lexer lexer;
    ItemList items; /* so far */

    /* The newline rule. */
    Bracket brackets[MAX_NESTING];
    int depth;               /* open brackets */
    int previous;            /* kind of the last token */
    bool previous_continues; /* an operator, `,` or `->`: no statement ends after it */
    bool in_plan;            /* inside a plan or recipe, where words open selectors */

    /* Tokens to come before the lexer's next: ready ones, then one that is yet to be looked at.
     */
    Token ready[MAX_NESTING + 4];
    int ready_begin, ready_end;
    Token held;
    bool holding;

    /* Errors. */
    Token lookahead;   /* what the grammar got last */
    Token before;      /* and before that */
    Token first;       /* the first of its statement */
    bool choice_closed; /* by the last closing bracket: it was a selector's brace */
    bool recovering;   /* skipping the rest of a statement */
    int floor;         /* brackets open around that statement */
    bool stopped;      /* too deep or too many errors: the text ends here */
    int errors_before; /* this text */
};

/* The next token for the grammar. */
int yylex(YYSTYPE *value, Span *place, Parser *parser);
/* Begins to skip a broken statement.  True: the grammar must drop its lookahead, which belongs
 * to what is skipped, or begins the next statement and has been put back behind a newline. */
bool parser_recover(Parser *parser);
void parser_recovered(Parser *parser);
/* Reports nesting beyond MAX_NESTING and ends the text. */
void parser_too_deep(Parser *parser, Span place);
/* The innermost open bracket, or NULL. */
const Bracket *parser_bracket(const Parser *parser);
/* Of a definition, which stands in no other: block, fn, model, plan, recipe. */
bool begins_definition(int kind);
/* Does a selector begin after this kind of token, so that `*` and `{` belong to it?
 * `in_choice`: the innermost bracket is a selector's brace; `in_plan`: inside a plan or recipe.
 */
bool selector_begins_after(int previous, bool in_choice, bool in_plan);
/* Does no newline end a statement after this kind of token?  A `*` in a selector is no
 * operator. */
bool statement_goes_on_after(int kind, bool in_selector);

/* ---- tree.c ---------------------------------------------------------------------------------
 */
#define LIST_APPEND(list, node)                                                                \
    ((list).last ? ((list).last->next = (node)) : ((list).first = (node)),                     \
     (list).last = (node), (list).count++)
#define LIST_CONCAT(list, other)                                                               \
    ((other).first ? (void)(((list).last ? ((list).last->next = (other).first)                 \
                                         : ((list).first = (other).first)),                    \
                            (list).last = (other).last, (list).count += (other).count)         \
                   : (void)0)

NameList tree_one_name(Parser *parser, Name name);
void tree_append_name(Parser *parser, NameList *names, Name name);

Expr *tree_number(Parser *parser, Literal literal, Span span);
Expr *tree_infinity(Parser *parser, Span span);
Expr *tree_bool(Parser *parser, bool value, Span span);
Expr *tree_name(Parser *parser, Name name);
Expr *tree_unary(Parser *parser, Operator operator, Expr * a, Span span);
Expr *tree_binary(Parser *parser, Operator operator, Expr * a, Expr *b, Span span);
Expr *tree_if(Parser *parser, Expr *condition, Expr *yes, Expr *no, Span span);
Expr *tree_labelled(Parser *parser, ExprKind kind, Name name, Expr *a, Span span);
Expr *tree_parenthesized(Parser *parser, ExprList list, Span span);
Expr *tree_arrow_list(Parser *parser, ExprList left, ExprList right, Span span);
Expr *tree_call(Parser *parser, Name name, ArgGroupList groups, Span span);
ArgGroup *tree_group(Parser *parser, ExprList left, const ExprList *right, Span span);
Expr *tree_index(Parser *parser, Expr *a, IndexItemList items, Span span);
IndexItem *tree_gather(Parser *parser, Expr *index, Span span);
IndexItem *tree_pick(Parser *parser, Name axis, Expr *position, Span span);
/* `from as to`; `from` must be a name or names in parentheses (reported otherwise). */
IndexItem *tree_rename(Parser *parser, const Expr *from, NameList to, bool to_list, Span span);

/* `right` NULL: no arrow. */
TypeExpr *tree_axes(Parser *parser, NameList left, const NameList *right);
TypeExpr *tree_open_axes(Parser *parser, NameList left, const NameList *right);
Parameter *tree_parameter(Parser *parser, Name name, TypeExpr *type, Expr *fallback);
ParameterList tree_parameter_arrow(ParameterList left, ParameterList right);
ParameterList tree_parameter_group(ParameterList before, ParameterList group);

StatementList tree_statement(Parser *parser, StatementKind kind, NameList names, Expr *value,
                             Span span);
StatementList tree_bind(Parser *parser, Name name, TypeExpr *type, Expr *value, Span span);
StatementList tree_for(Parser *parser, Name index, Expr *begin, Expr *end, StatementList body,
                       Span span);
StatementList tree_if_statement(Parser *parser, Expr *condition, StatementList yes,
                                StatementList no, Span span);
StatementList tree_set_kind(StatementList list, StatementKind kind);

SelectorPart *tree_part(Parser *parser, int kind);
Selector *tree_selector(Parser *parser, SelectorPartList parts, Span span);
PartIndex *tree_part_index(Parser *parser, IndexRange *ranges); /* NULL: any */
IndexRange *tree_range(Parser *parser, Expr *low, Expr *high);

Setting *tree_setting(Parser *parser, Name name, Expr *value);
Preset *tree_preset(Parser *parser, Name name, SettingList settings, Span span);
DirectiveList tree_directive(Parser *parser, DirectiveKind kind, Expr *value, Span span);
DirectiveList tree_value_directives(Parser *parser, StatementList values, DirectiveKind kind);
/* `first`: said with the word `optimizer`, not one of the uses that follow it. */
DirectiveList tree_optimizer_use(Parser *parser, Expr *call, SelectorList on, bool first,
                                 Span span);
/* Appends, but adds a further optimizer use to the directive before it. */
DirectiveList tree_add_directives(Parser *parser, DirectiveList list, DirectiveList more);
/* `2 GiB`: the value times the unit, folded when it is a plain number. */
Expr *tree_bytes(Parser *parser, Expr *value, Name unit, Span span);
/* `2GiB` is one name to the lexer: taken apart.  Anything else stays as it is. */
Expr *tree_split_bytes(Parser *parser, Expr *value);

ItemList tree_item(Parser *parser, ItemKind kind, Name name, Span span);
ItemList tree_statement_items(Parser *parser, StatementList statements);
ItemList tree_definition(Parser *parser, ItemKind kind, Name name, ParameterList parameters,
                         TypeExpr *result, StatementList body, Span span);
ItemList tree_plan(Parser *parser, ItemKind kind, Name name, NameList extends,
                   DirectiveList directives, Span span);
/* Adds finished items to the text's, after checking that each statement may stand where it does
 * (no `param` in an fn, no `warmup` in a plan). */
void tree_add_items(Parser *parser, ItemList items);

/* ---- syntax_error.c -------------------------------------------------------------------------
 */
/* Reports that the lookahead cannot stand where it does; `expected` are the grammar's names of
 * all the tokens that could. */
void syntax_error_report(Parser *parser, const char *const *expected, int count);
/* The text of a span, cut and made printable, in backquotes. */
const char *syntax_quote(Arena *arena, Span span);

#endif
