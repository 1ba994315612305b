/* tokens.c: between the lexer and the grammar.
 *
 * The newline rule: a newline ends a statement outside ( ) and [ ], unless an operator, `,` or
 * `->` stands before it, or `else`, `then` or `{` after it.
 *
 * Brackets: a closing bracket of the wrong kind, one that closes nothing, and an opening one
 * that is never closed are reported here, where both ends are known; the grammar gets what
 * balances.
 *
 * Recovery: after a syntax error the rest of the statement is skipped, bracketed parts as a
 * whole, so that the next statement is read as if nothing had happened.
 */
#include "frontend/parser.h"

#include <ctype.h>

enum { MAX_SYNTAX_ERRORS = 49 }; /* one more says that there may be more */
/* Of the trees in one arena: a million lines or so. */
#define MAX_TREE_BYTES ((size_t)512 << 20)

/* first: a token that is taken to stand before the text; kind 0: none. */
static Item *parse(const Source *source, Token first, Arena *arena, Diagnostics *diagnostics) {
    Parser *parser = checked_alloc(sizeof *parser);
    parser->source = source;
    parser->arena = arena;
    parser->diagnostics = diagnostics;
    parser->errors_before = diagnostics_errors(diagnostics);
    parser->previous = TOKEN_NEWLINE;
    lexer_start(&parser->lexer, source, arena, diagnostics);
    if (first.kind)
        parser->ready[parser->ready_end++] = first;
    yyparse(parser);
    lexer_finish(&parser->lexer);
    Item *items = parser->items.first;
    free(parser);
    return items;
}

Item *parse_source(const Source *source, Arena *arena, Diagnostics *diagnostics) {
    return parse(source, (Token){0}, arena, diagnostics);
}

Item *parse_values(const Source *source, Arena *arena, Diagnostics *diagnostics) {
    Token dim = {.kind = TOKEN_DIM, .span = {source, 0, 0}, .line = 1, .first_on_line = true};
    dim.value.name = (Name){"dim", dim.span};
    return parse(source, dim, arena, diagnostics);
}

/* ---- the newline rule ------------------------------------------------------------ */

const Bracket *parser_bracket(const Parser *parser) {
    return parser->depth > 0 ? &parser->brackets[parser->depth - 1] : NULL;
}

static bool inside_statement(const Parser *parser) {
    const Bracket *bracket = parser_bracket(parser);
    return bracket && bracket->kind != BRACKET_BODY;
}

bool selector_begins_after(int previous, bool in_choice, bool in_plan) {
    switch (previous) {
    case '.':
    case ',':
    case TOKEN_ON:
        return true;
    case '{':
        return in_choice;
    case TOKEN_FACTORIZE:
    case TOKEN_RECOMPUTE:
    case TOKEN_KEEP:
        return in_plan;
    default:
        return false;
    }
}

static bool selector_may_begin(const Parser *parser) {
    const Bracket *bracket = parser_bracket(parser);
    bool in_choice = bracket && bracket->kind == BRACKET_CHOICE;
    return selector_begins_after(parser->previous, in_choice, parser->in_plan);
}

bool statement_goes_on_after(int kind, bool in_selector) {
    switch (kind) {
    case '*':
        return !in_selector;
    case '+':
    case '-':
    case '/':
    case '%':
    case '^':
    case '<':
    case '>':
    case '=':
    case '~':
    case ':':
    case ',':
    case TOKEN_ARROW:
    case TOKEN_DOTDOT:
    case TOKEN_LESS_EQUAL:
    case TOKEN_GREATER_EQUAL:
    case TOKEN_EQUAL:
    case TOKEN_NOT_EQUAL:
    case TOKEN_AND:
    case TOKEN_OR:
    case TOKEN_NOT:
    case TOKEN_THEN:
    case TOKEN_ELSE:
        return true;
    default:
        return false;
    }
}

/* The lexer's next token that is neither a comment nor a newline; notes whether one was passed.
 */
static Token next_significant(Parser *parser) {
    if (parser->holding) {
        parser->holding = false;
        return parser->held;
    }
    bool first_on_line = parser->lexer.offset == 0;
    Token token;
    while ((token = lexer_next(&parser->lexer)).kind == TOKEN_NEWLINE ||
           token.kind == TOKEN_COMMENT)
        first_on_line |= token.kind == TOKEN_NEWLINE;
    token.first_on_line = first_on_line;
    return token;
}

static void hold(Parser *parser, Token token) {
    parser->held = token;
    parser->holding = true;
}

static bool ends_statement(const Parser *parser, Token next) {
    return next.first_on_line && parser->previous != TOKEN_NEWLINE &&
           !parser->previous_continues && !inside_statement(parser) &&
           next.kind != TOKEN_ELSE && next.kind != TOKEN_THEN && next.kind != '{';
}

/* The newline before a token, as a place: right behind what it ends. */
static Token newline_before(const Parser *parser, Token next) {
    Token newline = next;
    newline.kind = TOKEN_NEWLINE;
    uint32_t end = next.span.begin;
    const char *text = parser->source->text;
    while (end > 0 && (text[end - 1] == ' ' || text[end - 1] == '\t' || text[end - 1] == '\n' ||
                       text[end - 1] == '\r'))
        end--;
    newline.span = (Span){parser->source, end, end};
    newline.first_on_line = false;
    return newline;
}

/* ---- brackets -------------------------------------------------------------------- */

static const char closing[] = {[BRACKET_ROUND] = ')',
                               [BRACKET_SQUARE] = ']',
                               [BRACKET_BODY] = '}',
                               [BRACKET_CHOICE] = '}'};

static char opening(const Bracket *bracket) {
    return bracket->span.source->text[bracket->span.begin];
}

static void put_ready(Parser *parser, Token token) {
    parser->ready[parser->ready_end++] = token;
}

static Token as_kind(Token token, int kind) {
    token.kind = kind;
    token.span.end = token.span.begin;
    return token;
}

static void report_unclosed(Parser *parser, const Bracket *bracket, Token before) {
    if (parser->recovering && bracket->kind != BRACKET_BODY)
        return;
    const char *found = before.kind == TOKEN_YYEOF ? "the end of the file"
                                                   : syntax_quote(parser->arena, before.span);
    Diagnostic *error = error_at(
        parser->diagnostics, before.span, "expected `%c` to close '%c' at line %u, found %s",
        closing[bracket->kind], opening(bracket), bracket->line, found);
    note_at(error, bracket->span, "'%c' is opened here", opening(bracket));
    if (begins_definition(before.kind))
        help(error, "`%s` begins a definition, which stands in no other",
             before.value.name.text);
}

/* Ends all open brackets before `token`, which belongs to the outside: an unfinished statement
 * becomes an error that was reported, bodies are closed. */
static Token close_all(Parser *parser, Token token) {
    report_unclosed(parser, parser_bracket(parser), token);
    if (inside_statement(parser))
        put_ready(parser, as_kind(token, TOKEN_YYerror));
    int entered = parser->recovering ? parser->floor : parser->depth; /* by the grammar */
    for (; parser->depth > 0; parser->depth--)
        if (parser->depth <= entered && parser_bracket(parser)->kind == BRACKET_BODY)
            put_ready(parser, as_kind(token, '}'));
    put_ready(parser, as_kind(token, TOKEN_NEWLINE));
    hold(parser, token);
    return parser->ready[parser->ready_begin++];
}

static Token open_bracket(Parser *parser, Token token) {
    if (parser->depth == MAX_NESTING) {
        parser_too_deep(parser, token.span);
        token.kind = TOKEN_YYEOF;
        return token;
    }
    Bracket bracket = {.span = token.span, .line = token.line};
    bracket.kind = token.kind == '('            ? BRACKET_ROUND
                   : token.kind == '['          ? BRACKET_SQUARE
                   : selector_may_begin(parser) ? BRACKET_CHOICE
                                                : BRACKET_BODY;
    parser->brackets[parser->depth++] = bracket;
    return token;
}

/* Is a bracket that `kind` closes open in this statement, its own body included? */
static bool closes_some(const Parser *parser, int kind) {
    for (int i = parser->depth - 1; i >= 0; i--) {
        if (closing[parser->brackets[i].kind] == kind)
            return true;
        if (parser->brackets[i].kind == BRACKET_BODY)
            return false;
    }
    return false;
}

/* A closing bracket.  False: it closes nothing and is dropped, after reporting. */
static bool close_bracket(Parser *parser, Token *token) {
    const Bracket *bracket = parser_bracket(parser);
    if (bracket && closing[bracket->kind] == token->kind) {
        parser->choice_closed = bracket->kind == BRACKET_CHOICE;
        parser->depth--;
        return true;
    }
    bool matches = closes_some(parser, token->kind);
    if (!inside_statement(parser) || (token->kind == '}' && !matches)) {
        if (!parser->recovering)
            error_at(parser->diagnostics, token->span, "this '%c' closes nothing", token->kind);
        return false;
    }
    report_unclosed(parser, bracket, *token);
    if (token->kind == '}') { /* the statement is unfinished; its body ends */
        while (closing[parser_bracket(parser)->kind] != '}')
            parser->depth--;
        parser->depth--;
        put_ready(parser, *token);
        *token = as_kind(*token, TOKEN_YYerror);
        return true;
    }
    parser->depth--;
    if (matches) /* one was forgotten before this one, which is still to come */
        hold(parser, *token);
    *token = as_kind(*token, closing[bracket->kind]);
    return true;
}

bool begins_definition(int kind) {
    return kind == TOKEN_BLOCK || kind == TOKEN_FN || kind == TOKEN_MODEL ||
           kind == TOKEN_PLAN || kind == TOKEN_RECIPE;
}

/* ---- the grammar's tokens -------------------------------------------------------- */

/* Nothing more is said about a text that ends early: broken off at a NUL byte, after too many
 * errors, or where its tree is too large. */
static bool is_stopped(Parser *parser, Span place) {
    int errors = diagnostics_errors(parser->diagnostics) - parser->errors_before;
    if (!parser->stopped && errors >= MAX_SYNTAX_ERRORS)
        error_at(parser->diagnostics, place,
                 "after so many errors the text is read no further");
    parser->stopped |= parser->lexer.broken_off || errors >= MAX_SYNTAX_ERRORS;
    if (!parser->stopped && arena_bytes(parser->arena) > MAX_TREE_BYTES) {
        error_at(parser->diagnostics, place,
                 "the text is too large: up to here its syntax tree takes %d MiB already",
                 (int)(MAX_TREE_BYTES >> 20));
        parser->stopped = true;
    }
    return parser->stopped;
}

/* Balanced, with the newlines that end statements. */
static Token next_balanced(Parser *parser) {
    for (;;) {
        if (parser->ready_begin < parser->ready_end)
            return parser->ready[parser->ready_begin++];
        parser->ready_begin = parser->ready_end = 0;

        Token token = next_significant(parser);
        if (is_stopped(parser, token.span))
            return as_kind(token, TOKEN_YYEOF);
        if (ends_statement(parser, token)) {
            hold(parser, token);
            parser->previous = TOKEN_NEWLINE;
            return newline_before(parser, token);
        }
        bool ends_items =
            token.kind == TOKEN_YYEOF || (begins_definition(token.kind) && token.first_on_line);
        if (ends_items && parser->depth > 0)
            return close_all(parser, token);
        if (parser->depth == 0 &&
            (begins_definition(token.kind) || token.kind == TOKEN_OPTIMIZER))
            parser->in_plan = token.kind == TOKEN_PLAN || token.kind == TOKEN_RECIPE;

        bool continues = statement_goes_on_after(token.kind, selector_may_begin(parser));
        switch (token.kind) {
        case '(':
        case '[':
        case '{':
            token = open_bracket(parser, token);
            break;
        case ')':
        case ']':
        case '}':
            if (!close_bracket(parser, &token))
                continue;
            break;
        }
        parser->previous = token.kind;
        parser->previous_continues = continues;
        return token;
    }
}

/* While recovering: does the token end the broken statement? */
static bool ends_broken(const Parser *parser, Token token) {
    if (token.kind == TOKEN_YYEOF)
        return true;
    if (token.kind == '}')
        return parser->depth < parser->floor;
    return parser->depth == parser->floor && (token.kind == TOKEN_NEWLINE || token.kind == ';');
}

int yylex(YYSTYPE *value, Span *place, Parser *parser) {
    parser->lexer.quiet = parser->recovering;
    Token token;
    do
        token = next_balanced(parser);
    while (parser->recovering && !ends_broken(parser, token));
    if (is_stopped(parser, token.span))
        token = as_kind(token, TOKEN_YYEOF);

    parser->before = parser->lookahead;
    parser->lookahead = token;
    bool begins = parser->before.kind == TOKEN_NEWLINE || parser->before.kind == ';' ||
                  parser->before.kind == '{' || parser->before.kind == TOKEN_YYEOF;
    if (begins)
        parser->first = token;
    *value = token.value;
    *place = token.span;
    return token.kind;
}

/* ---- errors ---------------------------------------------------------------------- */

/* Brackets open around the statement that is broken: up to the innermost body that the grammar
 * has entered.  Bodies whose `}` is still to come to the grammar count as open. */
static int statement_floor(const Parser *parser) {
    int floor = parser->depth, to_close = 0;
    for (int i = parser->ready_begin; i < parser->ready_end; i++)
        to_close += parser->ready[i].kind == '}';
    if (to_close > 0)
        return floor + to_close;
    if (parser->lookahead.kind == '{' && floor > 0)
        floor--;
    while (floor > 0 && parser->brackets[floor - 1].kind != BRACKET_BODY)
        floor--;
    return floor;
}

/* Does the word, first on its line but inside brackets, look like a statement's beginning? */
static bool looks_like_statement(const Parser *parser, Token token) {
    const char *text = parser->source->text, *after = text + token.span.end;
    after += strspn(after, " \t");
    switch (token.kind) {
    case TOKEN_DIM:
    case TOKEN_FOR:
    case TOKEN_IF:
    case TOKEN_PARAM:
    case TOKEN_RETURN:
        return true;
    case TOKEN_NAME: /* in a plan or recipe it is a named argument */
        return !parser->in_plan && (*after == ':' || (*after == '=' && after[1] != '='));
    default: /* no two names stand side by side within an expression */
        return token.kind >= TOKEN_BATCH && token.kind <= TOKEN_WITH &&
               (*after == ':' || *after == '=' || *after == '_' ||
                isalpha((unsigned char)*after));
    }
}

bool parser_recover(Parser *parser) {
    parser->recovering = true;
    parser->floor = statement_floor(parser);
    Token token = parser->lookahead;
    if (token.kind == '}' && parser->choice_closed)
        return true; /* of the broken statement itself, not of the body around */
    if (!token.first_on_line || parser->depth == parser->floor || parser->holding ||
        !looks_like_statement(parser, token))
        return false;
    /* A bracket was left open on an earlier line: a statement begins here. */
    parser->depth = parser->floor;
    parser->previous = TOKEN_NEWLINE;
    hold(parser, token);
    put_ready(parser, newline_before(parser, token));
    return true;
}

void parser_recovered(Parser *parser) {
    parser->recovering = false;
}

void parser_too_deep(Parser *parser, Span place) {
    if (parser->stopped)
        return;
    parser->stopped = true;
    Diagnostic *error =
        error_at(parser->diagnostics, place,
                 "nested more than %d levels deep; the text is read no further", MAX_NESTING);
    help(error, "give a part of it a name of its own");
}
