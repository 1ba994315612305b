/* syntax_error.c: the wording of syntax errors.
 *
 * The grammar says which tokens could stand where one cannot; dozens, as a rule, because every
 * word of plans and recipes is a name elsewhere.  Here they become a phrase ("a name", "an
 * expression", "`,` or `)` to close '(' at line 12"), and common slips get their remedy.
 */
#include "frontend/parser.h"

#include <ctype.h>

enum { MAX_PHRASES = 4, MAX_QUOTED = 40 };

const char *syntax_quote(Arena *arena, Span span) {
    Text quoted = {0};
    text_puts(&quoted, "`");
    const char *text = span.source->text;
    for (uint32_t i = span.begin; i < span.end && i < span.begin + MAX_QUOTED; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c < 0x7f)
            text_append(&quoted, &text[i], 1);
        else
            text_printf(&quoted, "\\x%02x", c);
    }
    text_puts(&quoted, span.end - span.begin > MAX_QUOTED ? "…`" : "`");
    char *result = arena_strdup(arena, text_string(&quoted));
    text_free(&quoted);
    return result;
}

/* ---- what was expected ----------------------------------------------------------- */

typedef struct Expected {
    const char *const *tokens; /* the grammar's names */
    int count;
} Expected;

static bool expects(Expected expected, const char *token) {
    for (int i = 0; i < expected.count; i++)
        if (!strcmp(expected.tokens[i], token))
            return true;
    return false;
}

/* What goes without saying where something else is expected as well: operators go on with any
 * expression, `;` is another end of a line … */
static const struct {
    const char *beside;
    const char *tokens[20];
} noise[] = {
    {"'+'",
     {"'+'", "'-'", "'*'", "'/'", "'%'", "'^'", "'<'", "'>'", "<=", ">=", "==", "!=", "and",
      "or", "'['", "'('", "'='", "':'", "'.'"}},
    {"')'", {"';'", "->", "as", ".."}},
    {"']'", {"';'", "->", "as", ".."}},
    {"','", {"'['", "'.'"}},
    {"the end of the line", {"end of file", "';'", "'}'", "'['", "'.'"}},
};

/* Where a whole construct may begin, its name says more than a list of first words. */
static const char *construct(Expected expected) {
    if (expects(expected, "param"))
        return "a statement";
    if (expects(expected, "model"))
        return "a definition (`dim`, `block`, `fn`, `model`, `plan` …)";
    if (expects(expected, "recompute") && !expects(expected, "keep"))
        return "a directive";
    if (expects(expected, "a number"))
        return "an expression";
    if (expects(expected, "a name") && expects(expected, "**"))
        return "a selector";
    return NULL;
}

static bool is_noise(Expected expected, const char *token, const char *construct_name) {
    bool is_word = isalpha((unsigned char)token[0]) && strcmp(token, "a name");
    if (construct_name && strcmp(token, "')'") && strcmp(token, "']'"))
        return true;
    if (is_word && expects(expected, "a name"))
        return true;
    for (int i = 0; i < COUNT_OF(noise); i++)
        for (const char *const *other = noise[i].tokens; *other; other++)
            if (!strcmp(token, *other) && expects(expected, noise[i].beside))
                return true;
    return !strcmp(token, "the end of the line") && expects(expected, "'{'") &&
           !expects(expected, "'}'");
}

static void add_phrase(Parser *parser, Text *text, const char *token) {
    bool quoted = token[0] == '\'';
    const Bracket *bracket = parser_bracket(parser);
    if (!strncmp(token, "a ", 2) || !strncmp(token, "an ", 3) || !strncmp(token, "the ", 4))
        text_puts(text, token);
    else
        text_printf(text, "`%.*s`", (int)(strlen(token) - (quoted ? 2 : 0)), token + quoted);
    bool closes = quoted && strchr(")]", token[1]);
    if (closes && bracket && bracket->line != parser->lookahead.line)
        text_printf(text, " to close '%c' at line %u",
                    bracket->span.source->text[bracket->span.begin], bracket->line);
}

static bool is_closing(const char *token) {
    return !strcmp(token, "')'") || !strcmp(token, "']'") || !strcmp(token, "'}'");
}

/* "`,` or `)` to close '(' at line 3"; an empty text when nothing short can be said. */
static void describe_expected(Parser *parser, Expected expected, Text *text) {
    const char *phrases[MAX_PHRASES];
    int count = 0;
    const char *name = construct(expected);
    if (name)
        phrases[count++] = name;
    for (int closing = 0; closing < 2; closing++) /* closing brackets come last */
        for (int i = 0; i < expected.count; i++) {
            const char *token = expected.tokens[i];
            if (is_closing(token) != closing || is_noise(expected, token, name))
                continue;
            if (count == MAX_PHRASES)
                return;
            phrases[count++] = token;
        }
    for (int i = 0; i < count; i++) {
        text_puts(text, i == 0 ? "" : i == count - 1 ? " or " : ", ");
        add_phrase(parser, text, phrases[i]);
    }
}

static const char *describe_found(Parser *parser) {
    Token token = parser->lookahead;
    switch (token.kind) {
    case TOKEN_YYEOF:
        return "the end of the file";
    case TOKEN_NEWLINE:
        return "the end of the line";
    default:
        return syntax_quote(parser->arena, token.span);
    }
}

/* ---- remedies -------------------------------------------------------------------- */

static bool is_reserved(int kind) {
    return kind >= TOKEN_AND && kind <= TOKEN_TRUE;
}

static bool is_word(int kind) {
    return kind >= TOKEN_AND && kind <= TOKEN_NAME;
}

static bool is_comparison(int kind) {
    return kind == '<' || kind == '>' || kind == TOKEN_LESS_EQUAL ||
           kind == TOKEN_GREATER_EQUAL || kind == TOKEN_EQUAL || kind == TOKEN_NOT_EQUAL;
}

static bool is_operator(int kind) {
    return is_comparison(kind) || strchr("+-*/%^", kind < 0x80 ? kind : 'x') ||
           kind == TOKEN_AND || kind == TOKEN_OR;
}

/* The word that a statement's first name was meant to be: `retrun x`, `warmpu 2000`. */
static const char *meant_word(const Parser *parser) {
    static const char *const items[] = {"use", "dim",   "flag", "preset", "block",
                                        "fn",  "model", "plan", "recipe", "optimizer"};
    static const char *const statements[] = {"param", "dim",      "for",     "if",    "return",
                                             "input", "minimize", "observe", "state", "next"};
    static const char *const directives[] = {"dim",       "flag",      "preset", "set",
                                             "factorize", "recompute", "memory", "precision",
                                             "optimizer", "warmup",    "cosine", "linear",
                                             "clip",      "batch",     "steps",  "validate"};
    if (parser->first.kind != TOKEN_NAME)
        return NULL;
    const char *name = parser->first.value.name.text;
    if (parser->depth == 0 || (parser->depth == 1 && parser->lookahead.kind == '{'))
        return nearest_name(name, items, COUNT_OF(items));
    return parser->in_plan ? nearest_name(name, directives, COUNT_OF(directives))
                           : nearest_name(name, statements, COUNT_OF(statements));
}

static bool is_first(const Parser *parser, Token token) {
    return token.span.begin == parser->first.span.begin;
}

/* Where a token is taken for what it is in other languages. */
static const char *remedy_for_token(const Parser *parser, Expected expected) {
    Token token = parser->lookahead, before = parser->before;
    bool expects_operator = expects(expected, "'+'");
    if (expects(expected, "a string"))
        return "the name of a text stands in double quotes: `use \"std.cola\"`";
    if (token.first_on_line && is_operator(token.kind) && before.kind == TOKEN_NEWLINE)
        return "an operator stands at the end of the line that goes on, not before the next";

    if (token.kind == TOKEN_EQUAL && expects(expected, "'='"))
        return "a name is given its value by `=`";
    bool goes_on = expects_operator && before.first_on_line && !is_first(parser, before);
    if (goes_on && (token.kind == '=' || is_word(token.kind)))
        return "the line before ends in an operator or a comma, so its statement goes on here";
    if (token.kind == '=' && expects_operator)
        return "equality is written `==`; a statement gives one name a value";
    if (token.kind == TOKEN_ANY_DEPTH && expects_operator)
        return "a power is written `^`";
    if (is_comparison(token.kind) && !expects(expected, "=="))
        return "comparisons do not chain: write `a < b and b < c`";
    if (token.kind == '{' && expects(expected, "then"))
        return "an `if` inside an expression is `if a then b else c`";
    if (token.kind == '.' && expects(expected, "a number"))
        return "a number begins with a digit: `0.5`";
    if (token.kind == '.' && expects_operator && before.kind == TOKEN_NAME)
        return "paths with `.` select in plans; here a value is named alone";
    if (token.kind == TOKEN_NUMBER && before.kind == '.')
        return "an index of a path stands in brackets: `layer[0]`";
    if (token.kind == TOKEN_DOTDOT && expects(expected, "a name"))
        return "`..`, any other axes, stands first: `[.., D]`";
    if (token.kind == TOKEN_NAME && expects(expected, "int"))
        return "a type is the axes in brackets: `[B,S]` for floats, `int[B,S]` for integers";
    if (token.kind == ':' && expects(expected, "'{'"))
        return "a body stands in braces";
    if (token.kind == ':' && expects_operator)
        return "a label stands right after `(`, `,`, `=` or `return`: put the call in "
               "parentheses";
    return NULL;
}

/* What to write instead, or NULL. */
static const char *remedy(const Parser *parser, Expected expected) {
    Token token = parser->lookahead, before = parser->before;
    bool at_first = is_first(parser, before) || is_first(parser, token);
    const char *meant = at_first ? meant_word(parser) : NULL;
    if (meant)
        return arena_printf(parser->arena, "did you mean `%s`?", meant);
    if (begins_definition(token.kind) && expects(expected, "param"))
        return "blocks, fns, models, plans and recipes stand outside each other";
    if (expects(expected, "a name") && is_reserved(token.kind))
        return arena_printf(parser->arena, "`%s` is a reserved word; choose another name",
                            token.value.name.text);
    const char *slip = remedy_for_token(parser, expected);
    if (slip)
        return slip;
    if (parser->in_plan && at_first && token.kind == TOKEN_KEEP)
        return "`keep` follows what is recomputed: `recompute layer[*] keep mid`";
    if (at_first && expects(expected, "recompute") && !expects(expected, "keep"))
        return "a plan has `factorize`, `set`, `recompute`, `memory`, `precision`, `dim`, "
               "`flag` and `preset`";
    if (is_first(parser, before) && before.kind == TOKEN_NAME &&
        (token.kind == '(' || token.kind == '['))
        return "a statement gives a name a value: `y = …`";
    bool same_line = !token.first_on_line && !is_first(parser, token);
    bool statement_could_end =
        expects(expected, "the end of the line") && !expects(expected, "','");
    if (statement_could_end && is_word(token.kind) && same_line)
        return "statements on one line are parted by `;`";
    return NULL;
}

/* `warmpu 2000` was read as the further use of an optimizer, `warmpu(…)`. */
static bool is_unknown_directive(const Parser *parser, Expected expected) {
    return parser->in_plan && parser->depth == 1 && is_first(parser, parser->before) &&
           parser->first.kind == TOKEN_NAME && expects(expected, "'('");
}

static Diagnostic *report(Parser *parser, Expected expected) {
    if (is_unknown_directive(parser, expected))
        return error_at(parser->diagnostics, parser->first.span,
                        "expected a directive, found %s",
                        syntax_quote(parser->arena, parser->first.span));
    Text text = {0};
    describe_expected(parser, expected, &text);
    const char *found = describe_found(parser);
    Diagnostic *error =
        text.length > 0
            ? error_at(parser->diagnostics, parser->lookahead.span, "expected %s, found %s",
                       text_string(&text), found)
            : error_at(parser->diagnostics, parser->lookahead.span, "unexpected %s", found);
    text_free(&text);
    return error;
}

void syntax_error_report(Parser *parser, const char *const *tokens, int count) {
    if (parser->stopped)
        return;
    Expected expected = {tokens, count};
    Diagnostic *error = report(parser, expected);
    const Bracket *bracket = parser_bracket(parser);
    if (bracket && bracket->kind != BRACKET_BODY && bracket->line != parser->lookahead.line)
        note_at(error, bracket->span, "'%c' is opened here",
                bracket->span.source->text[bracket->span.begin]);
    const char *help_text = remedy(parser, expected);
    if (help_text)
        help(error, "%s", help_text);
}
