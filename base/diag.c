/* base/diag.c: what went wrong and where.  The user's faults are collected, sorted by place and
 * printed with the source line and a caret; our own faults end the process at once. */
#include "base/base.h"

#include <inttypes.h>

enum { MAX_RECORDED = 50, MAX_SHOWN_COLUMNS = 160, MAX_MESSAGE = 4000 };

typedef struct Note {
    struct Note *next;
    bool is_help;
    Span span;
    const char *message;
} Note;

struct Diagnostic {
    const char *name; /* of the source or file; what is sorted by first */
    Span span;
    bool is_warning;
    int file_order; /* when this file was first complained about */
    int order;      /* when this diagnostic was made */
    const char *message;
    Note *first_note, *last_note;
    Diagnostics *owner;
};

/* Something that lives as long as the diagnostics. */
typedef struct Owned {
    void *owned;
    void (*release)(void *);
} Owned;

struct Diagnostics {
    Arena *arena;
    ARRAY(Owned) owned;
    ARRAY(Diagnostic *) recorded;
    int errors, errors_recorded, warnings_recorded;
    Diagnostic *first_error;
    Diagnostic overflow; /* takes the notes of errors past the limit; never printed */
};

/* ---- recording ------------------------------------------------------------------- */

Diagnostics *diagnostics_new(void) {
    Diagnostics *diagnostics = checked_alloc(sizeof *diagnostics);
    diagnostics->arena = arena_new();
    diagnostics->overflow.owner = diagnostics;
    return diagnostics;
}

void diagnostics_free(Diagnostics *diagnostics) {
    if (!diagnostics)
        return;
    for (int64_t i = 0; i < diagnostics->owned.count; i++)
        diagnostics->owned.data[i].release(diagnostics->owned.data[i].owned);
    array_free(&diagnostics->owned);
    array_free(&diagnostics->recorded);
    arena_free(diagnostics->arena);
    free(diagnostics);
}

void diagnostics_own(Diagnostics *diagnostics, void *owned, void (*release)(void *)) {
    Owned entry = {owned, release};
    array_push(&diagnostics->owned, entry);
}

int diagnostics_errors(const Diagnostics *diagnostics) {
    return diagnostics->errors;
}

char *first_error(const Diagnostics *diagnostics, Arena *arena) {
    const Diagnostic *first = diagnostics->first_error;
    int line = 1, column = 1;
    if (first && first->span.source)
        span_position(first->span, &line, &column);
    return first
               ? arena_printf(arena, "%s:%d:%d: %s", first->name, line, column, first->message)
               : arena_strdup(arena, "");
}

/* A message cut to a length that a reader can take in: names in it may be megabytes long. */
static const char *format_message(Arena *arena, const char *format, va_list args) {
    char buffer[MAX_MESSAGE];
    int length = vsnprintf(buffer, sizeof buffer, format, args);
    INTERNAL_CHECK(length >= 0);
    return length < (int)sizeof buffer ? arena_strdup(arena, buffer)
                                       : arena_printf(arena, "%.*s…", MAX_MESSAGE - 8, buffer);
}

static Diagnostic *find_recorded(const Diagnostics *diagnostics, const Diagnostic *sought) {
    for (int64_t i = 0; i < diagnostics->recorded.count; i++) {
        Diagnostic *other = diagnostics->recorded.data[i];
        if (other->is_warning == sought->is_warning && strcmp(other->name, sought->name) == 0 &&
            other->span.source == sought->span.source &&
            other->span.begin == sought->span.begin && other->span.end == sought->span.end &&
            strcmp(other->message, sought->message) == 0)
            return other;
    }
    return NULL;
}

static int file_order(const Diagnostics *diagnostics, const char *name) {
    for (int64_t i = 0; i < diagnostics->recorded.count; i++)
        if (strcmp(diagnostics->recorded.data[i]->name, name) == 0)
            return diagnostics->recorded.data[i]->file_order;
    return (int)diagnostics->recorded.count;
}

static Diagnostic *record(Diagnostics *diagnostics, Diagnostic made) {
    Diagnostic *same = find_recorded(diagnostics, &made);
    if (same)
        return same;
    int *recorded =
        made.is_warning ? &diagnostics->warnings_recorded : &diagnostics->errors_recorded;
    if (!made.is_warning)
        diagnostics->errors++;
    if (*recorded >= MAX_RECORDED)
        return &diagnostics->overflow;
    ++*recorded;
    made.name = arena_strdup(diagnostics->arena, made.name);
    made.file_order = file_order(diagnostics, made.name);
    made.order = (int)diagnostics->recorded.count;
    made.owner = diagnostics;
    Diagnostic *kept = arena_alloc(diagnostics->arena, sizeof *kept);
    *kept = made;
    if (!made.is_warning && !diagnostics->first_error)
        diagnostics->first_error = kept;
    array_push(&diagnostics->recorded, kept);
    return kept;
}

static const char *span_name(Span span) {
    return span.source ? span.source->name : "built-in";
}

Diagnostic *error_at(Diagnostics *diagnostics, Span span, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const char *message = format_message(diagnostics->arena, format, args);
    va_end(args);
    return record(diagnostics,
                  (Diagnostic){.name = span_name(span), .span = span, .message = message});
}

Diagnostic *error_in_file(Diagnostics *diagnostics, const char *name, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const char *message = format_message(diagnostics->arena, format, args);
    va_end(args);
    return record(diagnostics, (Diagnostic){.name = name, .message = message});
}

Diagnostic *warning_in_file(Diagnostics *diagnostics, const char *name, const char *format,
                            ...) {
    va_list args;
    va_start(args, format);
    const char *message = format_message(diagnostics->arena, format, args);
    va_end(args);
    return record(diagnostics,
                  (Diagnostic){.name = name, .is_warning = true, .message = message});
}

Diagnostic *warning_at(Diagnostics *diagnostics, Span span, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const char *message = format_message(diagnostics->arena, format, args);
    va_end(args);
    return record(diagnostics, (Diagnostic){.name = span_name(span),
                                            .span = span,
                                            .is_warning = true,
                                            .message = message});
}

static void add_note(Diagnostic *diagnostic, Note made) {
    /* The overflow diagnostic drops notes; a diagnostic met twice keeps its notes once. */
    if (diagnostic == &diagnostic->owner->overflow)
        return;
    for (Note *note = diagnostic->first_note; note; note = note->next)
        if (note->is_help == made.is_help && strcmp(note->message, made.message) == 0 &&
            note->span.source == made.span.source && note->span.begin == made.span.begin)
            return;
    Note *note = arena_alloc(diagnostic->owner->arena, sizeof *note);
    *note = made;
    if (diagnostic->last_note)
        diagnostic->last_note->next = note;
    else
        diagnostic->first_note = note;
    diagnostic->last_note = note;
}

void note_at(Diagnostic *diagnostic, Span span, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const char *message = format_message(diagnostic->owner->arena, format, args);
    va_end(args);
    add_note(diagnostic, (Note){.span = span, .message = message});
}

void help(Diagnostic *diagnostic, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const char *message = format_message(diagnostic->owner->arena, format, args);
    va_end(args);
    add_note(diagnostic, (Note){.is_help = true, .message = message});
}

/* ---- places ---------------------------------------------------------------------- */

/* Length of the code point at `p`; 1 for a byte that starts no valid one, so that any bytes can
 * be stepped over.  `valid` says which. */
static int code_point_length(const char *p, const char *end, bool *valid) {
    unsigned char lead = (unsigned char)*p;
    int length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    *valid = length > 0 && lead < 0xF5 && end - p >= length;
    for (int i = 1; *valid && i < length; i++)
        *valid = ((unsigned char)p[i] & 0xC0) == 0x80;
    return *valid ? length : 1;
}

static int count_columns(const char *begin, const char *end) {
    int columns = 0;
    bool valid;
    while (begin < end) {
        begin += code_point_length(begin, end, &valid);
        columns++;
    }
    return columns;
}

typedef struct Line {
    const char *begin, *end; /* without the line end */
} Line;

static size_t clamp_offset(Span span, uint32_t offset) {
    return offset < span.source->length ? offset : span.source->length;
}

static Line line_of(Span span) {
    const char *text = span.source->text, *text_end = text + span.source->length;
    const char *place = text + clamp_offset(span, span.begin);
    const char *before = memrchr(text, '\n', (size_t)(place - text));
    const char *begin = before ? before + 1 : text;
    const char *end = memchr(place, '\n', (size_t)(text_end - place));
    end = end ? end : text_end;
    if (end > begin && end[-1] == '\r')
        end--;
    return (Line){begin, end};
}

void span_position(Span span, int *line, int *column) {
    *line = *column = 1;
    if (!span.source)
        return;
    const char *place = span.source->text + clamp_offset(span, span.begin);
    for (const char *p = span.source->text; (p = memchr(p, '\n', (size_t)(place - p))); p++)
        ++*line;
    *column = 1 + count_columns(line_of(span).begin, place);
}

const char *place_text(Span span, Arena *arena) {
    if (!span.source)
        return "";
    int line, column;
    span_position(span, &line, &column);
    return arena_printf(arena, "%s:%d", span.source->name, line);
}

Span span_join(Span a, Span b) {
    if (!a.source || (b.source && b.source != a.source))
        return a.source ? a : b;
    if (!b.source)
        return a;
    return (Span){a.source, a.begin < b.begin ? a.begin : b.begin,
                  a.end > b.end ? a.end : b.end};
}

/* ---- printing -------------------------------------------------------------------- */

/* Steps over the code point at *p; what it prints takes exactly one column (a tab: a tab). */
static void print_code_point(FILE *stream, const char **p, const char *end) {
    bool valid;
    int length = code_point_length(*p, end, &valid);
    unsigned char byte = (unsigned char)**p;
    if (!valid || (byte < ' ' && byte != '\t') || byte == 0x7F)
        fputc('?', stream);
    else
        fwrite(*p, 1, (size_t)length, stream);
    *p += length;
}

/* The source line and, below it, the caret and tildes under the span.  A long line shows only
 * the columns around the caret. */
static void print_caret(FILE *stream, Span span) {
    Line line = line_of(span);
    int number, column;
    span_position(span, &number, &column);
    const char *span_end = span.source->text + clamp_offset(span, span.end);
    if (span_end > line.end)
        span_end = line.end;
    int first = column > MAX_SHOWN_COLUMNS / 2 ? column - MAX_SHOWN_COLUMNS / 2 : 1;
    const char *begin = line.begin, *shown_end;
    bool may_fit = line.end - line.begin <= 4L * MAX_SHOWN_COLUMNS; /* bytes of a code point */
    if (may_fit && count_columns(line.begin, line.end) <= MAX_SHOWN_COLUMNS)
        first = 1;
    bool valid;
    for (int i = 1; i < first && begin < line.end; i++)
        begin += code_point_length(begin, line.end, &valid);

    fprintf(stream, "%5d | %s", number, first > 1 ? "…" : "");
    shown_end = begin;
    for (int i = 0; i < MAX_SHOWN_COLUMNS && shown_end < line.end; i++)
        print_code_point(stream, &shown_end, line.end);
    fprintf(stream, "%s\n      | %s", shown_end < line.end ? "…" : "", first > 1 ? " " : "");

    const char *place = span.source->text + clamp_offset(span, span.begin);
    for (const char *p = begin; p < place && p < shown_end;) {
        fputc(*p == '\t' ? '\t' : ' ', stream);
        p += code_point_length(p, line.end, &valid);
    }
    fputc('^', stream);
    if (span_end > shown_end)
        span_end = shown_end;
    int tildes = span_end > place ? count_columns(place, span_end) - 1 : 0;
    for (int i = 0; i < tildes; i++)
        fputc('~', stream);
    fputc('\n', stream);
}

static void print_note(FILE *stream, const Note *note) {
    if (note->is_help || !note->span.source) {
        fprintf(stream, "      %s: %s\n", note->is_help ? "help" : "note", note->message);
        return;
    }
    int line, column;
    span_position(note->span, &line, &column);
    fprintf(stream, "%s:%d:%d: note: %s\n", note->span.source->name, line, column,
            note->message);
}

static void print_diagnostic(FILE *stream, const Diagnostic *diagnostic) {
    int line, column;
    span_position(diagnostic->span, &line, &column);
    fprintf(stream, "%s:%d:%d: %s: %s\n", diagnostic->name, line, column,
            diagnostic->is_warning ? "warning" : "error", diagnostic->message);
    if (diagnostic->span.source)
        print_caret(stream, diagnostic->span);
    for (const Note *note = diagnostic->first_note; note; note = note->next)
        print_note(stream, note);
}

static int compare_places(const void *left, const void *right) {
    const Diagnostic *a = *(Diagnostic *const *)left, *b = *(Diagnostic *const *)right;
    if (a->file_order != b->file_order)
        return a->file_order < b->file_order ? -1 : 1;
    if (a->span.begin != b->span.begin)
        return a->span.begin < b->span.begin ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

void diagnostics_print(Diagnostics *diagnostics, FILE *stream) {
    if (diagnostics->recorded.count)
        qsort(diagnostics->recorded.data, (size_t)diagnostics->recorded.count,
              sizeof *diagnostics->recorded.data, compare_places);
    for (int64_t i = 0; i < diagnostics->recorded.count; i++)
        print_diagnostic(stream, diagnostics->recorded.data[i]);
    int more = diagnostics->errors - diagnostics->errors_recorded;
    if (more > 0)
        fprintf(stream, "… and %d more error%s\n", more, more == 1 ? "" : "s");
    array_free(&diagnostics->recorded);
    diagnostics->errors = diagnostics->errors_recorded = diagnostics->warnings_recorded = 0;
}

/* ---- ends of the process ------------------------------------------------------------- */

_Noreturn void refuse_at(Span span, const char *format, ...) {
    Diagnostics *diagnostics = diagnostics_new();
    va_list args;
    va_start(args, format);
    const char *message = format_message(diagnostics->arena, format, args);
    va_end(args);
    record(diagnostics,
           (Diagnostic){.name = span_name(span), .span = span, .message = message});
    diagnostics_print(diagnostics, stderr);
    exit(1);
}

_Noreturn void internal_error_at(const char *file, int line, const char *format, ...) {
    fprintf(stderr, "colac: internal error at %s:%d: ", file, line);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr,
            "\nThis is a bug in colac, not in your model.  Please report it together with "
            "the command line and the model text.\n");
    exit(3);
}
