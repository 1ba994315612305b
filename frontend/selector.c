/* frontend/selector.c: selectors of paths: layer[*].attn.{wq,wk}, **.low, layer[0..3], a[0][*].
 *
 * A path is at most 63 names; matching carries the set of positions reached so far as 64 bits,
 * so its cost is the product of the two lengths whatever stands in the selector. */
#include "frontend/expand.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEGMENTS = 63, MAX_LISTED = 12, MAX_EXPLAINED_ERRORS = 50 };
enum { MAX_MATCH_STEPS = 50000000 }; /* parts of selectors held against paths, for one model */

typedef struct Segment { /* layer[3] */
    const char *name;
    int length; /* of the name; its indices follow */
    int index_count;
    int64_t last_index;
} Segment;

typedef struct Matcher {
    Expander *x;
    DimTable *table;
    Segment segments[MAX_SEGMENTS];
    int count;
    const SelectorPart *narrowed; /* this choice has but one alternative */
    const Selector *alternative;
    const PartIndex *ended; /* this bracket has but the index `end` */
    int64_t end;
} Matcher;

/* ---- paths ----------------------------------------------------------------------- */

static bool split_path(Matcher *m, const char *path) {
    m->count = 0;
    while (*path) {
        if (m->count == MAX_SEGMENTS)
            return false;
        Segment *s = &m->segments[m->count++];
        size_t whole = strcspn(path, "."), name = strcspn(path, ".[");
        *s = (Segment){path, (int)name, 0, 0};
        for (size_t i = name; i < whole; i++)
            if (path[i] == '[') {
                s->index_count++;
                s->last_index = strtoll(path + i + 1, NULL, 10);
            }
        path += whole + (path[whole] == '.');
    }
    return true;
}

/* ---- matching -------------------------------------------------------------------- */

static bool range_bound(Matcher *m, const Expr *e, int64_t *bound) {
    if (e->kind == EXPR_NUMBER) {
        *bound = (int64_t)(e->number < 1e18 ? e->number : 1e18);
        return (double)*bound == e->number;
    }
    return evaluate_whole(m->x, e, m->table, "an index", 0, bound);
}

static bool range_bounds(Matcher *m, const IndexRange *range, int64_t *low, int64_t *high) {
    if (!range_bound(m, range->low, low))
        return false;
    *high = *low;
    return !range->high || range_bound(m, range->high, high);
}

static bool bracket_matches(Matcher *m, const PartIndex *bracket, int64_t index) {
    if (bracket == m->ended)
        return index == m->end;
    int64_t low, high;
    for (const IndexRange *range = bracket->ranges; range; range = range->next)
        if (range_bounds(m, range, &low, &high) && index >= low && index <= high)
            return true;
    return bracket->any;
}

/* A lone `[*]` takes the indices of all the loops around. */
static bool indices_match(Matcher *m, const SelectorPart *part, const Segment *segment) {
    const PartIndex *bracket = part->indices;
    if (bracket && bracket->any && !bracket->next)
        return segment->index_count > 0;
    const char *at = segment->name + segment->length;
    for (; bracket && *at == '['; bracket = bracket->next) {
        char *end;
        if (!bracket_matches(m, bracket, strtoll(at + 1, &end, 10)))
            return false;
        at = end + 1; /* behind the `]` */
    }
    return !bracket && *at != '[';
}

static bool name_matches(const SelectorPart *part, const Segment *segment) {
    return (int)strlen(part->name.text) == segment->length &&
           strncmp(part->name.text, segment->name, (size_t)segment->length) == 0;
}

static uint64_t match_parts(Matcher *m, const SelectorPart *parts, int limit, uint64_t starts,
                            const SelectorPart *index_of_last);

/* Positions behind one name, for those before it. */
static uint64_t match_segment(Matcher *m, const SelectorPart *part, uint64_t starts,
                              const SelectorPart *indexer) {
    uint64_t ends = 0;
    for (int i = 0; i < m->count; i++) {
        if (!(starts >> i & 1))
            continue;
        const Segment *segment = &m->segments[i];
        if (part->kind == PART_ANY || (name_matches(part, segment) &&
                                       indices_match(m, indexer ? indexer : part, segment)))
            ends |= UINT64_C(1) << (i + 1);
    }
    return ends;
}

static uint64_t match_choice(Matcher *m, const SelectorPart *part, uint64_t starts,
                             const SelectorPart *indexer) {
    uint64_t ends = 0;
    for (const Selector *choice = part->choices; choice; choice = choice->next)
        if (part != m->narrowed || choice == m->alternative)
            ends |= match_parts(m, choice->parts, INT32_MAX, starts,
                                part->indices ? part : indexer);
    return ends;
}

/* At most `limit` parts.  index_of_last: whose index the last name must satisfy; NULL: its own.
 */
static uint64_t match_parts(Matcher *m, const SelectorPart *parts, int limit, uint64_t starts,
                            const SelectorPart *index_of_last) {
    for (const SelectorPart *part = parts; part && starts && limit-- > 0; part = part->next) {
        m->x->match_steps++;
        const SelectorPart *indexer = part->next ? NULL : index_of_last;
        if (part->kind == PART_CHOICE) {
            starts = match_choice(m, part, starts, indexer);
        } else if (part->kind == PART_ANY_DEPTH) {
            for (int i = 0; i < m->count; i++)
                starts |= (starts >> i & 1) << (i + 1);
        } else {
            starts = match_segment(m, part, starts, indexer);
        }
    }
    return starts;
}

/* False, after one report, when selectors and paths are too many. */
static bool spend_match(Matcher *m, Span span) {
    Expander *x = m->x;
    if (++x->match_steps <= MAX_MATCH_STEPS || x->exhausted)
        return !x->exhausted;
    x->exhausted = true;
    complain(x, NULL, span, "the selectors take more than %d steps to match", MAX_MATCH_STEPS);
    return false;
}

static bool matches(Matcher *m, const Selector *selector, const char *path) {
    return spend_match(m, selector->span) && split_path(m, path) &&
           (match_parts(m, selector->parts, INT32_MAX, 1, NULL) >> m->count & 1);
}

bool selector_matches_path(Expander *x, const Selector *selector, DimTable *table,
                           const char *path) {
    Matcher m = {.x = x, .table = table};
    return matches(&m, selector, path);
}

bool selector_matches(const Compilation *compilation, const Selector *selector,
                      const char *path) {
    Expander *x = compilation->expander;
    return selector_matches_path(x, selector, &x->plan_dims, path);
}

static bool any_matches(const Compilation *compilation, const Selector *list,
                        const char *path) {
    for (; list; list = list->next)
        if (selector_matches(compilation, list, path))
            return true;
    return false;
}

bool recompute_matches(const Compilation *compilation, const Directive *recompute,
                       const char *path) {
    return any_matches(compilation, recompute->selectors, path);
}

bool recompute_keeps(const Compilation *compilation, const Directive *recompute,
                     const char *path) {
    return any_matches(compilation, recompute->keep, path);
}

static bool matches_any(Matcher *m, const Selector *selector, const char *const *paths,
                        int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (matches(m, selector, paths[i]))
            return true;
    return false;
}

/* ---- near misses ----------------------------------------------------------------- */

/* What could stand in the place of the first part that leads nowhere. */
typedef struct Near {
    const char *names[MAX_LISTED]; /* layer[*], wq */
    int count;
    bool more, reached;    /* reached: some path begins with the parts before */
    int64_t largest_index; /* of the failing name itself; -1 */
} Near;

static void add_near(Expander *x, Near *near, const SelectorPart *failing,
                     const Segment *segment) {
    if (failing && failing->kind == PART_NAME && name_matches(failing, segment) &&
        segment->index_count == 1 && segment->last_index > near->largest_index)
        near->largest_index = segment->last_index;
    const char *index = segment->index_count ? "[*]" : "";
    for (int i = 0; i < near->count; i++)
        if (strncmp(near->names[i], segment->name, (size_t)segment->length) == 0 &&
            strcmp(near->names[i] + segment->length, index) == 0)
            return;
    if (near->count < MAX_LISTED)
        near->names[near->count++] =
            arena_printf(x->arena, "%.*s%s", segment->length, segment->name, index);
    else
        near->more = true;
}

/* The part behind the first `at`, or NULL; of a narrowed choice the alternative's own first. */
static const SelectorPart *part_at(const Matcher *m, const Selector *selector, int at) {
    const SelectorPart *part = selector->parts;
    while (at-- > 0)
        part = part->next;
    return part && part == m->narrowed ? m->alternative->parts : part;
}

/* The names that follow the first `taken` parts in the paths. */
static void collect_near(Matcher *m, const Selector *selector, int taken,
                         const char *const *paths, int64_t count, Near *near) {
    *near = (Near){.largest_index = -1};
    for (int64_t i = 0; i < count; i++) {
        if (!spend_match(m, selector->span) || !split_path(m, paths[i]))
            continue;
        uint64_t ends = match_parts(m, selector->parts, taken, 1, NULL);
        near->reached |= ends != 0;
        for (int k = 0; k < m->count; k++)
            if (ends >> k & 1)
                add_near(m->x, near, part_at(m, selector, taken), &m->segments[k]);
    }
}

/* `failing` NULL: all parts lead on, to what is inside.  what: "parameter". */
static void explain_near(Diagnostic *d, const Selector *selector, const SelectorPart *failing,
                         const Near *near, const char *what) {
    Text all = {0};
    for (int i = 0; i < near->count; i++)
        text_printf(&all, "%s`%s`", i ? ", " : "", near->names[i]);
    if (!failing) {
        const char *text = selector->span.source->text + selector->span.begin;
        help(d, "inside it there is %s%s: write `%.*s.**` for all of them", text_string(&all),
             near->more ? ", …" : "", (int)(selector->span.end - selector->span.begin), text);
    } else if (near->count == 0 && failing->kind == PART_NAME) {
        help(d, "no %s stands in the place of `%s`", what, failing->name.text);
    } else if (near->count == 0) {
        help(d, "no %s stands in its place", what);
    } else if (failing->kind != PART_NAME) {
        help(d, "in that place there is %s%s", text_string(&all), near->more ? ", …" : "");
    } else if (near->largest_index >= 0) {
        help(d,
             "`%s` has indices 0 to %" PRId64 ": write `%s[*]`, `%s[0]` or `%s[0..%" PRId64
             "]`",
             failing->name.text, near->largest_index, failing->name.text, failing->name.text,
             failing->name.text, near->largest_index);
    } else {
        const char *nearest = nearest_name(failing->name.text, near->names, near->count);
        if (nearest)
            help(d, "did you mean `%s`?", nearest);
        help(d, "in the place of `%s` there is %s%s", failing->name.text, text_string(&all),
             near->more ? ", …" : "");
    }
    text_free(&all);
}

/* Is what was written the end of a path? */
static bool explain_longer(Matcher *m, Diagnostic *d, const Selector *selector,
                           const char *const *paths, int64_t count) {
    const char *text = selector->span.source->text + selector->span.begin;
    int length = (int)(selector->span.end - selector->span.begin);
    for (int64_t i = 0; i < count && !m->narrowed && !m->ended; i++) {
        if (!spend_match(m, selector->span) || !split_path(m, paths[i]))
            continue;
        uint64_t anywhere = (UINT64_C(1) << m->count) - 1;
        if (!(match_parts(m, selector->parts, INT32_MAX, anywhere, NULL) >> m->count & 1))
            continue;
        help(d, "paths begin outside, as in `%s`: write `**.%.*s` for all that end so",
             paths[i], length, text);
        return true;
    }
    return false;
}

static void explain_no_match(Matcher *m, Diagnostic *d, const Selector *selector,
                             const char *const *paths, int64_t count, const char *what) {
    if (error_count(m->x) > MAX_EXPLAINED_ERRORS) /* it is not shown: no need to search */
        return;
    if (explain_longer(m, d, selector, paths, count))
        return;
    int taken = 0;
    for (const SelectorPart *part = selector->parts; part; part = part->next)
        taken++;
    Near near;
    for (; taken >= 0; taken--) {
        collect_near(m, selector, taken, paths, count, &near);
        if (!near.reached)
            continue;
        explain_near(d, selector, part_at(m, selector, taken), &near, what);
        return;
    }
}

static void complain_no_match(Matcher *m, const Selector *selector, Span span,
                              const char *const *paths, int64_t count, const char *what) {
    if (m->x->exhausted)
        return;
    Diagnostic *d = complain(m->x, NULL, span, "%s matches no %s", excerpt(m->x, span), what);
    explain_no_match(m, d, selector, paths, count, what);
}

/* Is the lower end of every range the first?  Complains where it is not. */
static bool ranges_ascend(Matcher *m, const SelectorPart *part) {
    bool fine = true;
    int64_t low, high;
    for (; part; part = part->next) {
        for (const PartIndex *bracket = part->indices; bracket; bracket = bracket->next)
            for (const IndexRange *range = bracket->ranges; range; range = range->next) {
                if (!range->high || !range_bounds(m, range, &low, &high) || low <= high)
                    continue;
                Span span = span_join(range->low->span, range->high->span);
                fine = false;
                help(complain(m->x, NULL, span,
                              "%s holds no index: it goes from %" PRId64 " to %" PRId64,
                              excerpt(m->x, span), low, high),
                     "the lower index comes first");
            }
        for (const Selector *choice = part->choices; choice; choice = choice->next)
            fine &= ranges_ascend(m, choice->parts);
    }
    return fine;
}

/* Both ends of a range must be there. */
static bool check_range(Matcher *m, const Selector *selector, const IndexRange *range,
                        const char *const *paths, int64_t count, const char *what) {
    int64_t ends[2];
    if (!range_bounds(m, range, &ends[0], &ends[1]))
        return true; /* reported */
    for (int i = 0; i < 2; i++) {
        m->end = ends[i];
        if (matches_any(m, selector, paths, count) || m->x->exhausted)
            continue;
        Span span =
            range->high ? span_join(range->low->span, range->high->span) : range->low->span;
        Diagnostic *d =
            complain(m->x, NULL, span, "with the index %" PRId64 " %s matches no %s", ends[i],
                     excerpt(m->x, selector->span), what);
        explain_no_match(m, d, selector, paths, count, what);
        return false;
    }
    return true;
}

static bool check_ranges(Matcher *m, const Selector *selector, const SelectorPart *part,
                         const char *const *paths, int64_t count, const char *what) {
    bool fine = true;
    for (; part; part = part->next) {
        for (const PartIndex *bracket = part->indices; bracket; bracket = bracket->next)
            for (const IndexRange *range = bracket->ranges; range; range = range->next) {
                m->ended = bracket;
                fine &= check_range(m, selector, range, paths, count, what);
                m->ended = NULL;
            }
        for (const Selector *choice = part->choices; choice; choice = choice->next)
            fine &= check_ranges(m, selector, choice->parts, paths, count, what);
    }
    return fine;
}

bool check_selector(Expander *x, const Selector *selector, DimTable *table,
                    const char *const *paths, int64_t count, const char *what) {
    Matcher m = {.x = x, .table = table};
    int errors = error_count(x);
    if (!ranges_ascend(&m, selector->parts) || error_count(x) > errors)
        return false;
    if (!matches_any(&m, selector, paths, count)) {
        if (error_count(x) == errors) /* else an index has no value */
            complain_no_match(&m, selector, selector->span, paths, count, what);
        return false;
    }
    if (!check_ranges(&m, selector, selector->parts, paths, count, what))
        return false;
    bool fine = true;
    for (const SelectorPart *part = selector->parts; part; part = part->next) {
        if (part->kind != PART_CHOICE)
            continue;
        m.narrowed = part;
        for (m.alternative = part->choices; m.alternative; m.alternative = m.alternative->next)
            if (!matches_any(&m, selector, paths, count)) {
                complain_no_match(&m, selector, m.alternative->span, paths, count, what);
                fine = false;
            }
    }
    return fine;
}
