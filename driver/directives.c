/* What kind of promise each directive of a plan keeps: model-changing, exact or tolerant.
 *
 * A dim or flag of the plan is of the kind of the first directive that reads it. */
#include "driver/driver.h"

#include <jansson.h>

const char *report_class_name(ReportClass report_class) {
    static const char *const names[] = {"model-changing", "exact", "tolerant", "unused"};
    return names[report_class];
}

/* ---- who reads a name ------------------------------------------------------------------ */

static bool expr_reads(const Expr *e, const char *name);

static bool any_reads(const Expr *e, const char *name) {
    for (; e; e = e->next)
        if (expr_reads(e, name))
            return true;
    return false;
}

static bool expr_reads(const Expr *e, const char *name) {
    if (!e)
        return false;
    if (e->kind == EXPR_NAME && !strcmp(e->name.text, name))
        return true;
    for (const ArgGroup *group = e->groups; group; group = group->next)
        if (any_reads(group->args, name))
            return true;
    return expr_reads(e->a, name) || expr_reads(e->b, name) || expr_reads(e->c, name) ||
           any_reads(e->args, name);
}

static bool selector_reads(const Selector *selector, const char *name) {
    for (; selector; selector = selector->next)
        for (const SelectorPart *part = selector->parts; part; part = part->next) {
            for (const PartIndex *index = part->indices; index; index = index->next)
                for (const IndexRange *range = index->ranges; range; range = range->next)
                    if (expr_reads(range->low, name) || expr_reads(range->high, name))
                        return true;
            if (selector_reads(part->choices, name))
                return true;
        }
    return false;
}

/* By a directive that does something; presets and dims only pass it on. */
static bool directive_reads(const Directive *d, const char *name) {
    return expr_reads(d->value, name) || expr_reads(d->call, name) ||
           selector_reads(d->selectors, name) || selector_reads(d->keep, name);
}

/* ---- classes --------------------------------------------------------------------------- */

typedef struct Line {
    const Directive *directive;
    const Item *plan;
    ReportClass report_class;
} Line;
typedef ARRAY(Line) Lines;

static const char *declared_name(const Directive *d) {
    return d->kind == DIRECTIVE_DIM || d->kind == DIRECTIVE_FLAG ? d->name.text : NULL;
}

static ReportClass class_of(const Compilation *compilation, const Directive *d) {
    switch (d->kind) {
    case DIRECTIVE_SET:
    case DIRECTIVE_FACTORIZE:
        return CLASS_MODEL_CHANGING;
    case DIRECTIVE_RECOMPUTE:
        return CLASS_EXACT;
    case DIRECTIVE_MEMORY:
        return d == compilation->memory ? CLASS_EXACT : CLASS_UNUSED;
    case DIRECTIVE_PRECISION:
        if (d != compilation->precision_directive)
            return CLASS_UNUSED;
        return compilation->precision != TYPE_F32 || compilation->tf32 ? CLASS_TOLERANT
                                                                       : CLASS_EXACT;
    default:
        return CLASS_UNUSED; /* until something that reads it is found */
    }
}

/* One round of handing classes down from readers to what they read.  Was there any? */
static bool hand_down(Lines *lines) {
    bool changed = false;
    for (int64_t i = 0; i < lines->count; i++) {
        Line *line = &lines->data[i];
        const char *name = declared_name(line->directive);
        for (int64_t k = 0; name && k < lines->count; k++) {
            const Line *reader = &lines->data[k];
            if (k == i || reader->report_class >= line->report_class ||
                !directive_reads(reader->directive, name))
                continue;
            line->report_class = reader->report_class;
            changed = true;
        }
    }
    return changed;
}

/* A dim that a later plan declares anew is gone, presets included. */
static bool is_replaced(const Lines *lines, int64_t at) {
    const char *name = declared_name(lines->data[at].directive);
    for (int64_t k = at + 1; name && k < lines->count; k++) {
        const char *other = declared_name(lines->data[k].directive);
        if (other && !strcmp(other, name) && lines->data[k].plan != lines->data[at].plan)
            return true;
    }
    return false;
}

/* A preset is of the class of what it gives values to. */
static void class_presets(const Options *options, Lines *lines) {
    const char *asked = options->request.preset;
    for (int64_t i = 0; i < lines->count; i++) {
        const Preset *preset = lines->data[i].directive->preset;
        if (!preset || !asked || strcmp(preset->name.text, asked) != 0)
            continue;
        for (const Setting *s = preset->settings; s; s = s->next)
            for (int64_t k = 0; k < lines->count; k++) {
                const char *name = declared_name(lines->data[k].directive);
                if (name && !strcmp(name, s->name.text) && !is_replaced(lines, k) &&
                    lines->data[k].report_class < lines->data[i].report_class)
                    lines->data[i].report_class = lines->data[k].report_class;
            }
    }
}

static Lines plan_lines(const Options *options, const Compilation *compilation) {
    Lines lines = {0};
    const Item *const *plans;
    int64_t count = compilation_plans(compilation, &plans);
    for (int64_t i = 0; i < count; i++)
        for (const Directive *d = plans[i]->directives; d; d = d->next) {
            Line line = {d, plans[i], class_of(compilation, d)};
            array_push(&lines, line);
        }
    for (int64_t round = 0; round <= lines.count && hand_down(&lines); round++) {
    }
    for (int64_t i = 0; i < lines.count; i++)
        if (is_replaced(&lines, i))
            lines.data[i].report_class = CLASS_UNUSED;
    class_presets(options, &lines);
    return lines;
}

/* ---- parameters before and after ------------------------------------------------------- */

/* The model as it is before anything is factorized, compiled beside the one in question. */
typedef struct Expanded {
    Diagnostics *diagnostics;
    Compilation *compilation; /* NULL where it does not stand alone */
} Expanded;

static Expanded expand(const Request *request) {
    Expanded expanded = {.diagnostics = diagnostics_new()};
    expanded.compilation = compile_model(request, expanded.diagnostics);
    return expanded;
}

static void expanded_free(Expanded *expanded) {
    if (expanded->compilation)
        compilation_free(expanded->compilation);
    diagnostics_free(expanded->diagnostics);
}

/* Parameters of the model without its plan, with those values of -D that it knows then; -1
 * where it does not stand without. */
static int64_t parameters_without_plan(const Options *options) {
    Request request = options->request;
    Define *kept = checked_alloc(((size_t)request.define_count + 1) * sizeof *kept);
    request.plan = NULL;
    request.define_count = 0;
    Expanded bare = expand(&request);
    for (int i = 0; bare.compilation && i < options->request.define_count; i++)
        if (compilation_knows(bare.compilation, options->request.defines[i].name))
            kept[request.define_count++] = options->request.defines[i];
    request.defines = kept;
    if (request.define_count) {
        expanded_free(&bare);
        bare = expand(&request);
    }
    int64_t parameters =
        bare.compilation ? module_parameters(bare.compilation->module, NULL) : -1;
    expanded_free(&bare);
    free(kept);
    return parameters;
}

/* What one `factorize` takes away and puts there. */
typedef struct Exchange {
    int64_t weights, before, after;
} Exchange;

/* The exchange of the directive that a weight of the final module stands in the place of: of
 * the one whose path is its path's beginning. */
static void count_placed(const Module *module, const StringMap *replaced, Exchange *exchanges) {
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role != ROLE_WEIGHT || state->flat || !state->low_rank)
            continue;
        char *prefix = checked_alloc(strlen(state->path) + 1);
        int64_t by = -1;
        for (size_t i = 0; state->path[i] && by < 0; i++) {
            if (state->path[i] == '.')
                by = string_map_get(replaced, prefix, -1);
            prefix[i] = state->path[i];
        }
        if (by >= 0)
            exchanges[by].after += type_elements(module, state_type(state));
        free(prefix);
    }
}

/* By factorize directive, in the order of the compilation's list. */
static Exchange *exchanges_of(const Compilation *before, const Module *after) {
    Exchange *exchanges =
        checked_alloc(((size_t)before->factorize_count + 1) * sizeof *exchanges);
    StringMap replaced = {0};
    for (int i = 0; i < before->factorize_count; i++)
        for (int k = 0; k < before->factorizes[i].weight_count; k++)
            string_map_set(&replaced,
                           before->module->states.data[before->factorizes[i].weights[k]].path,
                           i); /* the last one wins */
    for (int i = 0; i < before->factorize_count; i++)
        for (int k = 0; k < before->factorizes[i].weight_count; k++) {
            const State *weight =
                &before->module->states.data[before->factorizes[i].weights[k]];
            if (string_map_get(&replaced, weight->path, -1) != i)
                continue;
            exchanges[i].weights++;
            exchanges[i].before += type_elements(before->module, state_type(weight));
        }
    count_placed(after, &replaced, exchanges);
    string_map_free(&replaced);
    return exchanges;
}

/* ---- in print -------------------------------------------------------------------------- */

static const char *keyword(const Directive *d) {
    return d->kind == DIRECTIVE_DIM    ? "dim "
           : d->kind == DIRECTIVE_FLAG ? "flag "
           : d->kind == DIRECTIVE_SET  ? "set "
                                       : "";
}

/* The directive as it stands, on one line, its comments and surplus blanks left out. */
static void directive_text(const Directive *d, size_t most, Text *out) {
    const char *text = d->span.source->text;
    bool blank = false;
    if (strncmp(text + d->span.begin, keyword(d), strlen(keyword(d))) != 0)
        text_puts(out, keyword(d)); /* of several in one statement */
    for (uint32_t i = d->span.begin; i < d->span.end; i++) {
        while (i < d->span.end && text[i] == '#')
            i += (uint32_t)strcspn(text + i, "\n");
        if (i >= d->span.end)
            break;
        bool space = strchr(" \t\r\n", text[i]) != NULL;
        if (!space && blank)
            text_puts(out, " ");
        if (!space)
            text_append(out, text + i, 1);
        blank = space;
    }
    if (out->length <= most)
        return;
    size_t cut = most - 3;
    while (cut && ((unsigned char)out->data[cut] & 0xC0) == 0x80)
        cut--; /* at the beginning of a character */
    out->length = cut;
    out->data[cut] = 0;
    text_puts(out, "...");
}

static void print_line_json(const Line *line, const char *place, const char *text,
                            const Exchange *exchange) {
    json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:s}", "kind", "directive", "plan",
                               line->plan->name.text, "place", place, "text", text, "class",
                               report_class_name(line->report_class));
    if (object && exchange)
        json_object_update_new(object, json_pack("{s:I, s:I, s:I}", "weights",
                                                 (json_int_t)exchange->weights, "params_before",
                                                 (json_int_t)exchange->before, "params_after",
                                                 (json_int_t)exchange->after));
    print_json_object(object);
}

static void print_line(const Line *line, const Exchange *exchange, bool json, Arena *arena) {
    enum { WIDEST = 88 };
    Text text = {0};
    char before[32], after[32];
    const char *place = place_text(line->directive->span, arena);
    directive_text(line->directive, json ? SIZE_MAX : WIDEST, &text);
    if (json) {
        print_line_json(line, json_path(place, arena), json_path(text_string(&text), arena),
                        exchange);
    } else {
        printf("    %s  %s\n      %s", place, text_string(&text),
               report_class_name(line->report_class));
        if (exchange && exchange->weights)
            printf(": %lld weight%s of %s parameters become%s %s", (long long)exchange->weights,
                   exchange->weights == 1 ? "" : "s", with_commas(exchange->before, before),
                   exchange->weights == 1 ? "s" : "", with_commas(exchange->after, after));
        else if (exchange)
            printf(": later directives replace all its weights");
        else if (line->report_class == CLASS_EXACT)
            printf(": the same bits");
        else if (line->report_class == CLASS_TOLERANT)
            printf(": other roundings");
        putchar('\n');
    }
    text_free(&text);
}

static void print_change(int64_t before, int64_t after, bool json) {
    char first[32], second[32];
    if (json) {
        json_t *object =
            json_pack("{s:s, s:I}", "kind", "parameters", "after", (json_int_t)after);
        json_object_set_new(object, "before", before >= 0 ? json_integer(before) : json_null());
        print_json_object(object);
    } else if (before < 0)
        printf("  directives (the model does not stand without its plan)\n");
    else if (before == after)
        printf("  directives (%s parameters before and after)\n", with_commas(after, second));
    else
        printf("  directives (%s parameters become %s)\n", with_commas(before, first),
               with_commas(after, second));
}

void print_directives(const Options *options, const Compiled *compiled, bool json) {
    const Compilation *compilation = compiled->compilation;
    Lines lines = plan_lines(options, compilation);
    Arena *arena = arena_new();
    Expanded before = expand(&options->request);
    INTERNAL_CHECK(before.compilation);
    Exchange *exchanges = exchanges_of(before.compilation, compilation->module);
    if (lines.count)
        print_change(parameters_without_plan(options),
                     module_parameters(compilation->module, NULL), json);
    int factorize = 0; /* both lists are in the plan's order */
    for (int64_t i = 0; i < lines.count; i++) {
        const Exchange *exchange = NULL;
        if (lines.data[i].directive->kind == DIRECTIVE_FACTORIZE)
            exchange = &exchanges[factorize++];
        print_line(&lines.data[i], exchange, json, arena);
    }
    INTERNAL_CHECK(factorize == before.compilation->factorize_count);
    free(exchanges);
    expanded_free(&before);
    arena_free(arena);
    array_free(&lines);
}
