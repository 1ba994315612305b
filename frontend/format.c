/* format.c: the canonical layout of a text.  Works on tokens, so that comments stay.
 *
 *   classify   each token: its bracket, whether it begins a statement, ends an operand …
 *   lay_out    tokens to lines: where a line breaks, its indentation, one space or none between
 *   align      in runs of neighbouring lines: types of params and inputs, braces of presets,
 *              trailing comments
 *
 * The text's own line breaks are kept; a body that was on one line stays on one line, any other
 * gets a line for each of its braces.  Nothing here depends on columns of the input, hence
 * formatting twice is formatting once.
 */
#include "frontend/parser.h"

enum { INDENT = 4, COMMENT_GAP = 2 };

typedef enum TokenRole {
    AS_OTHER,
    AS_OPERAND, /* ends an operand: a name, a number, a closing bracket */
    AS_WORD,    /* a keyword */
    AS_BINARY,  /* an operator with a space on both sides */
    AS_TIGHT,   /* `^`, `.`, `..`: no space on either side */
    AS_PREFIX   /* the minus before an operand */
} TokenRole;

typedef enum Enclosure { /* what a token's innermost bracket is, the token's own not counted */
                         IN_TEXT,
                         IN_BODY,
                         IN_ROUND,
                         IN_SQUARE,
                         IN_TYPE,
                         IN_CHOICE
} Enclosure;

typedef struct FormatToken {
    int kind;
    Span span;
    int breaks; /* newlines before it */
    TokenRole role;
    Enclosure enclosure;
    int match; /* of a bracket: the other one */
    bool begins_statement;
    bool is_body;     /* a brace of a body */
    bool is_choice;   /* a brace of a selector */
    bool opens_lines; /* the brace of a body on several lines */
    bool is_tight;    /* a comma without a space: `[B,S,D]`, `D -> H,K`, `{wq,wk}` */
} FormatToken;

typedef struct Line {
    Text text;     /* with its indentation, without its comment */
    int head;      /* column of the cell to align, 0: none */
    int head_kind; /* lines align with neighbours of the same kind */
    int indent;
    Span comment; /* trailing; empty: none */
    bool blank_before;
    bool continued; /* the next line continues its statement */
} Line;

typedef struct Open { /* a bracket that is open while lines are laid out */
    int token;
    int column; /* behind it */
    int indent; /* of its line */
    bool ends_line;
} Open;

typedef struct Formatter {
    const Source *source;
    ARRAY(FormatToken) tokens;
    ARRAY(Line) lines;
    Open open[MAX_NESTING];
    int depth;
    int statement_indent;
    bool in_plan;
} Formatter;

/* ---- reading --------------------------------------------------------------------- */

static void read_tokens(Formatter *f, Arena *arena, Diagnostics *diagnostics) {
    Lexer lexer;
    lexer_start(&lexer, f->source, arena, diagnostics);
    int breaks = 0;
    for (Token token; (token = lexer_next(&lexer)).kind != TOKEN_YYEOF;) {
        if (token.kind == TOKEN_NEWLINE) {
            breaks++;
            continue;
        }
        FormatToken read = {
            .kind = token.kind, .span = token.span, .breaks = breaks, .match = -1};
        array_push(&f->tokens, read);
        breaks = 0;
    }
    lexer_finish(&lexer);
}

static bool is_opening(int kind) {
    return kind == '(' || kind == '[' || kind == '{';
}
static bool is_closing(int kind) {
    return kind == ')' || kind == ']' || kind == '}';
}

/* ---- classifying ----------------------------------------------------------------- */

static bool is_reserved_word(int kind) {
    return kind >= TOKEN_AND && kind <= TOKEN_TRUE;
}
static bool is_other_word(int kind) {
    return kind >= TOKEN_BATCH && kind <= TOKEN_WITH;
}

/* A word of plans, recipes or optimizers acts as one where a statement begins and where no name
 * may stand: behind an operand, or another such word. */
static TokenRole role_of_word(const FormatToken *token, const FormatToken *previous) {
    if (token->begins_statement)
        return AS_WORD;
    return previous && (previous->role == AS_OPERAND ||
                        (token->kind == TOKEN_TO && previous->role == AS_WORD))
               ? AS_WORD
               : AS_OPERAND;
}

static TokenRole role_of(const FormatToken *token, const FormatToken *previous,
                         bool in_selector) {
    switch (token->kind) {
    case TOKEN_NAME:
    case TOKEN_NUMBER:
    case TOKEN_STRING:
    case TOKEN_TRUE:
    case TOKEN_FALSE:
    case TOKEN_INF:
    case TOKEN_ANY_DEPTH:
    case ')':
    case ']':
    case '}':
        return AS_OPERAND;
    case '*':
        return in_selector || previous->kind == '[' ? AS_OPERAND : AS_BINARY;
    case '-':
        return previous && previous->role == AS_OPERAND ? AS_BINARY : AS_PREFIX;
    case '^':
    case '.':
    case TOKEN_DOTDOT:
        return AS_TIGHT;
    case '+':
    case '/':
    case '%':
    case '<':
    case '>':
    case '=':
    case '~':
    case TOKEN_LESS_EQUAL:
    case TOKEN_GREATER_EQUAL:
    case TOKEN_EQUAL:
    case TOKEN_NOT_EQUAL:
    case TOKEN_ARROW:
        return AS_BINARY;
    default:
        return is_reserved_word(token->kind) ? AS_WORD
               : is_other_word(token->kind)  ? role_of_word(token, previous)
                                             : AS_OTHER;
    }
}

static Enclosure enclosure_of(const FormatToken *bracket, const FormatToken *before) {
    switch (bracket->kind) {
    case '(':
        return IN_ROUND;
    case '{':
        return bracket->is_body ? IN_BODY : IN_CHOICE;
    default:
        return before->kind == ':' || before->kind == TOKEN_ARROW || before->kind == TOKEN_INT
                   ? IN_TYPE
                   : IN_SQUARE;
    }
}

/* Does the token, after `breaks` newlines, begin a statement?  `previous` is not a comment. */
static bool begins_statement(const FormatToken *token, const FormatToken *previous, int breaks,
                             bool goes_on) {
    if (token->enclosure != IN_TEXT && token->enclosure != IN_BODY)
        return false;
    if (!previous || (previous->kind == '{' && previous->is_body) || previous->kind == ';')
        return true;
    return breaks > 0 && !goes_on && token->kind != TOKEN_ELSE && token->kind != TOKEN_THEN &&
           !(token->kind == '}');
}

/* Are there line breaks or comments between the braces of a body that is not empty? */
static bool spans_lines(const Formatter *f, int begin, int end) {
    for (int i = begin + 1; i <= end && end > begin + 1; i++)
        if (f->tokens.data[i].breaks > 0 || f->tokens.data[i].kind == TOKEN_COMMENT)
            return true;
    return false;
}

static void close_token(Formatter *f, int index, const int *open) {
    FormatToken *token = &f->tokens.data[index], *begin = &f->tokens.data[*open];
    token->match = *open;
    begin->match = index;
    token->is_body = begin->is_body;
    token->is_choice = begin->is_choice;
    if (begin->is_body)
        begin->opens_lines = token->opens_lines = spans_lines(f, *open, index);
}

/* The commas of one side of an arrow, from `index` on in steps of `step`. */
static void tighten_side(Formatter *f, int index, int step) {
    for (int i = index + step; i >= 0 && i < f->tokens.count; i += step) {
        FormatToken *token = &f->tokens.data[i];
        bool enters = step > 0 ? is_opening(token->kind) : is_closing(token->kind);
        bool leaves = step > 0 ? is_closing(token->kind) : is_opening(token->kind);
        if (leaves || token->kind == ';')
            return;
        if (enters)
            i = token->match;
        else if (token->kind == ',')
            token->is_tight = true;
    }
}

/* Commas are tight in selectors' braces, in types unless they begin with `..`, around an arrow.
 */
static void tighten_commas(Formatter *f) {
    bool open_type = false;
    for (int i = 0; i < f->tokens.count; i++) {
        FormatToken *token = &f->tokens.data[i];
        if (token->kind == '[')
            open_type = token[1].kind == TOKEN_DOTDOT;
        if (token->kind == TOKEN_ARROW && token->enclosure == IN_ROUND) {
            tighten_side(f, i, -1);
            tighten_side(f, i, 1);
        } else if (token->kind == ',' && !token->is_tight) {
            token->is_tight =
                token->enclosure == IN_CHOICE || (token->enclosure == IN_TYPE && !open_type);
        }
    }
}

/* Fills in everything but kind, span and breaks. */
static void classify(Formatter *f) {
    int open[MAX_NESTING], depth = 0, breaks = 0;
    Enclosure enclosures[MAX_NESTING + 1] = {IN_TEXT};
    const FormatToken *previous = NULL;
    bool goes_on = false;
    for (int i = 0; i < f->tokens.count; i++) {
        FormatToken *token = &f->tokens.data[i];
        breaks += token->breaks;
        token->enclosure = enclosures[depth];
        if (token->kind == TOKEN_COMMENT) {
            token->begins_statement = begins_statement(token, previous, breaks, goes_on);
            continue;
        }
        token->begins_statement = begins_statement(token, previous, breaks, goes_on);
        if (token->begins_statement && depth == 0)
            f->in_plan = token->kind == TOKEN_PLAN || token->kind == TOKEN_RECIPE;
        bool in_selector =
            previous &&
            selector_begins_after(previous->kind, token->enclosure == IN_CHOICE, f->in_plan);
        token->role = role_of(token, previous, in_selector);
        goes_on = statement_goes_on_after(token->kind, in_selector);
        if (is_opening(token->kind)) {
            token->is_choice = token->kind == '{' && in_selector;
            token->is_body = token->kind == '{' && !in_selector;
            open[depth++] = i;
            enclosures[depth] = enclosure_of(token, previous);
        } else if (is_closing(token->kind)) {
            close_token(f, i, &open[--depth]);
            token->enclosure = enclosures[depth];
        }
        previous = token;
        breaks = 0;
    }
    tighten_commas(f);
}

/* ---- spaces ---------------------------------------------------------------------- */

/* Between two neighbours on one line; neither is a comment. */
static bool space_between(const Formatter *f, int index) {
    const FormatToken *a = &f->tokens.data[index - 1], *b = &f->tokens.data[index];
    if (a->is_body || b->is_body)
        return true;
    if (is_opening(a->kind) || is_closing(b->kind) || b->kind == ',' || b->kind == ';' ||
        b->kind == ':' || a->role == AS_PREFIX)
        return false;
    if (a->kind == ',')
        return !a->is_tight;
    if (a->kind == ';' || a->kind == ':')
        return true;
    if (a->role == AS_BINARY || b->role == AS_BINARY)
        return true;
    if (a->role == AS_TIGHT || b->role == AS_TIGHT)
        return a->role == AS_WORD;
    if (b->kind == '(' || b->kind == '[')
        return a->role == AS_WORD;
    return true;
}

/* ---- lines ----------------------------------------------------------------------- */

/* Does a new line begin before this token? */
static bool breaks_before(const Formatter *f, int index) {
    if (index == 0)
        return true;
    const FormatToken *a = &f->tokens.data[index - 1], *b = &f->tokens.data[index];
    if (a->kind == TOKEN_COMMENT)
        return true;
    if (a->kind == '{' && a->opens_lines)
        return b->kind != TOKEN_COMMENT || b->breaks > 0;
    if (b->kind == '}' && b->is_body)
        return b->opens_lines;
    if ((b->kind == TOKEN_ELSE && a->kind == '}') || (b->kind == '{' && b->is_body))
        return false;
    return b->breaks > 0;
}

static int body_depth(const Formatter *f) {
    int bodies = 0;
    for (int i = 0; i < f->depth; i++)
        bodies += f->tokens.data[f->open[i].token].is_body;
    return bodies;
}

/* The `else` of statements, which follows a brace; not of an expression. */
static bool is_else_of_bodies(const Formatter *f, int index) {
    const FormatToken *token = &f->tokens.data[index], *before = token - 1;
    while (before > f->tokens.data && before->kind == TOKEN_COMMENT)
        before--;
    return token->kind == TOKEN_ELSE && before->kind == '}';
}

/* Of a line that begins with this token. */
static int indent_of(const Formatter *f, int index) {
    const FormatToken *token = &f->tokens.data[index];
    const Open *open = f->depth > 0 ? &f->open[f->depth - 1] : NULL;
    if (token->kind == '}' && token->is_body)
        return INDENT * (body_depth(f) - 1);
    if (open && !f->tokens.data[open->token].is_body) {
        bool closes = f->tokens.data[open->token].match == index;
        return !open->ends_line ? open->column : closes ? open->indent : open->indent + INDENT;
    }
    bool at_margin = token->begins_statement || is_else_of_bodies(f, index);
    return at_margin ? INDENT * body_depth(f) : f->statement_indent + INDENT;
}

/* Is the token right behind the opening brace of a body, or behind its comment? */
static bool follows_brace(const Formatter *f, int index) {
    const FormatToken *tokens = f->tokens.data;
    int before = index - 1;
    if (before > 0 && tokens[before].kind == TOKEN_COMMENT && tokens[before].breaks == 0)
        before--;
    return before >= 0 && tokens[before].kind == '{' && tokens[before].opens_lines;
}

static Line *begin_line(Formatter *f, int index) {
    const FormatToken *token = &f->tokens.data[index];
    Line line = {.indent = indent_of(f, index)};
    bool before_brace = token->kind == '}' && token->is_body;
    line.blank_before =
        index > 0 && token->breaks > 1 && !follows_brace(f, index) && !before_brace;
    if (token->begins_statement || before_brace)
        f->statement_indent = line.indent;
    else if (f->lines.count > 0)
        f->lines.data[f->lines.count - 1].continued = true;
    text_printf(&line.text, "%*s", line.indent, "");
    array_push(&f->lines, line);
    return &f->lines.data[f->lines.count - 1];
}

static void track_brackets(Formatter *f, int index, const Line *line) {
    const FormatToken *token = &f->tokens.data[index];
    if (is_closing(token->kind))
        f->depth--;
    if (!is_opening(token->kind))
        return;
    const FormatToken *next = token + 1;
    f->open[f->depth++] = (Open){.token = index,
                                 .column = (int)line->text.length,
                                 .indent = line->indent,
                                 .ends_line = next->breaks > 0 || next->kind == TOKEN_COMMENT};
}

/* Cells that align with the neighbours': a type after `param a:`, a preset's brace. */
static void mark_head(const Formatter *f, int index, Line *line) {
    const FormatToken *token = &f->tokens.data[index];
    if (line->head || token->enclosure == IN_ROUND)
        return;
    bool typed = index > 0 &&
                 (line->head_kind == TOKEN_PARAM || line->head_kind == TOKEN_INPUT) &&
                 token[-1].kind == ':';
    bool preset = line->head_kind == TOKEN_PRESET && token->kind == '{' && !token->opens_lines;
    if (typed || preset)
        line->head = (int)line->text.length;
}

static void append_comment(const Formatter *f, const FormatToken *token, Text *out) {
    uint32_t end = token->span.end;
    const char *text = f->source->text;
    while (end > token->span.begin && strchr(" \t\r\f", text[end - 1]))
        end--;
    text_append(out, text + token->span.begin, end - token->span.begin);
}

static void lay_out(Formatter *f) {
    Line *line = NULL;
    for (int i = 0; i < f->tokens.count; i++) {
        const FormatToken *token = &f->tokens.data[i];
        bool breaks = breaks_before(f, i);
        if (breaks) {
            line = begin_line(f, i);
            line->head_kind = token->role == AS_WORD ? token->kind : 0;
        } else if (token->kind == TOKEN_COMMENT) {
            line->comment = token->span;
            continue;
        } else if (space_between(f, i)) {
            text_puts(&line->text, " ");
        }
        mark_head(f, i, line);
        if (token->kind == TOKEN_COMMENT)
            append_comment(f, token, &line->text);
        else
            text_append(&line->text, f->source->text + token->span.begin,
                        token->span.end - token->span.begin);
        track_brackets(f, i, line);
    }
}

/* ---- aligning -------------------------------------------------------------------- */

static void pad_to(Line *line, int from, int to) {
    Text padded = {0};
    text_append(&padded, line->text.data, (size_t)from);
    text_printf(&padded, "%*s", to - from, "");
    text_append(&padded, line->text.data + from, line->text.length - (size_t)from);
    text_free(&line->text);
    line->text = padded;
}

static bool heads_align(const Line *a, const Line *b) {
    return a->head && b->head && a->head_kind == b->head_kind && a->indent == b->indent &&
           !b->blank_before && !a->continued && !b->continued;
}

static bool comments_align(const Line *a, const Line *b) {
    return a->comment.source && b->comment.source && a->indent == b->indent && !b->blank_before;
}

/* In each run of lines that align, pads all cells to the widest. */
static void align_heads(Formatter *f) {
    for (int begin = 0, end; begin < f->lines.count; begin = end) {
        int widest = f->lines.data[begin].head;
        for (end = begin + 1; end < f->lines.count; end++) {
            if (!heads_align(&f->lines.data[end - 1], &f->lines.data[end]))
                break;
            widest = f->lines.data[end].head > widest ? f->lines.data[end].head : widest;
        }
        for (int i = begin; i < end && end > begin + 1; i++)
            pad_to(&f->lines.data[i], f->lines.data[i].head, widest);
    }
}

static void append_comments(Formatter *f) {
    for (int begin = 0, end; begin < f->lines.count; begin = end) {
        size_t widest = f->lines.data[begin].text.length;
        for (end = begin + 1; end < f->lines.count; end++) {
            if (!comments_align(&f->lines.data[end - 1], &f->lines.data[end]))
                break;
            size_t length = f->lines.data[end].text.length;
            widest = length > widest ? length : widest;
        }
        for (int i = begin; i < end; i++) {
            Line *line = &f->lines.data[i];
            if (!line->comment.source)
                continue;
            text_printf(&line->text, "%*s", (int)(widest - line->text.length) + COMMENT_GAP,
                        "");
            append_comment(f, &(FormatToken){.span = line->comment}, &line->text);
        }
    }
}

/* ---- the whole ------------------------------------------------------------------- */

static void write_lines(Formatter *f, Text *out) {
    for (int i = 0; i < f->lines.count; i++) {
        Line *line = &f->lines.data[i];
        if (line->blank_before)
            text_puts(out, "\n");
        text_append(out, line->text.data, line->text.length);
        text_puts(out, "\n");
        text_free(&line->text);
    }
}

bool format_source(const Source *source, Text *out, Diagnostics *diagnostics) {
    Arena *arena = arena_new();
    int errors = diagnostics_errors(diagnostics);
    parse_source(source, arena, diagnostics);
    bool parses = diagnostics_errors(diagnostics) == errors;
    if (parses) {
        Formatter *f = checked_alloc(sizeof *f);
        f->source = source;
        read_tokens(f, arena, diagnostics);
        classify(f);
        lay_out(f);
        align_heads(f);
        append_comments(f);
        write_lines(f, out);
        array_free(&f->tokens);
        array_free(&f->lines);
        free(f);
    }
    arena_free(arena);
    return parses;
}
