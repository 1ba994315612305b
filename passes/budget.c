/* passes/budget.c: `memory N`, the solver.
 *
 * needs   a graph with gradients in `micro`, its names
 * gives   a choice of kept values whose planned peak is at most N bytes
 * plan    reads `memory N`, and `recompute`, which stays as it is
 * example memory 2 GiB: layers 0 … 5 keep {mid, pre of every factorized weight}, layers 6 and 7
 *         {mid, pre, q, k, v}
 *
 * Each pattern of block instances has points (candidates.c).  A *rung* gives every instance a
 * point; the *ladder* is the rungs by added FLOPs.  Where all assignments are few (of all sets,
 * or else of the points on and near the convex hull), all of them are rungs; else instances go
 * from a point to the next one after the other, the first layer first (what it computes again
 * is alive when the kept values of later layers are gone), the step of all patterns that costs
 * least FLOPs a byte first.  A rung's peak is had by planning: a copy of the module goes
 * through every pass that follows, and is measured.
 *
 * What holds, whatever the planned peaks of the rungs are:
 *   - the ladder, and the order in which rungs are tried, do not depend on N;
 *   - what is chosen was planned, and fits;
 *   - more memory never costs more: where a larger bound takes another turn in the search than a
 *     smaller one, a rung did not fit the smaller one, which then takes a dearer rung, and fits
 *     the larger one, which takes this or a cheaper one;
 *   - where the rungs may all be planned (small_ladder), the first that fits is taken: none that
 *     is cheaper fits.  Else *posts*, rungs at even distances, are tried from cheap to dear;
 *     between the first that fits and the one before it, halving finds a rung that fits after
 *     one that does not; last, a few rungs below it are tried.  The rungs before the last one
 *     are tried as well: the last computes everything again, and where that work is what takes
 *     most memory, keeping a little of the block that is done last takes less. */
#include "passes/passes.h"

#include <time.h>

enum { MAX_RUNGS = 4096 };
enum { NODES_TO_PLAN = 240000 }; /* trials times nodes of `micro`: about a second */
enum { LEAST_TRIALS = 24 };
enum { WINDOW = 6 };       /* rungs tried below the one that halving finds */
enum { VALUES_SHOWN = 5 }; /* of a refusal */

typedef struct Rung {
    double flops;
    int64_t code; /* all assignments: which; else: how many moves were made */
    int64_t peak; /* -1: not planned */
} Rung;

typedef struct Move { /* an instance goes to a point from the one before */
    int32_t pattern, instance, point;
} Move;

typedef struct Ladder {
    PassContext *context;
    const Function *micro;
    const KeepChoice *fixed;
    KeepChoice choice;
    BlockPatterns patterns;
    ARRAY(Move) moves;
    ARRAY(Rung) rungs;
    int64_t planned;
} Ladder;

/* ---- rungs --------------------------------------------------------------------------- */

typedef struct LadderStep {
    double price; /* FLOPs a byte */
    int32_t pattern, point;
} LadderStep;

static int by_price(const void *left, const void *right) {
    const LadderStep *a = left, *b = right;
    if (a->price != b->price)
        return a->price < b->price ? -1 : 1;
    if (a->pattern != b->pattern)
        return a->pattern < b->pattern ? -1 : 1;
    return a->point - b->point;
}

/* From each point to the next, the cheap steps first; a pattern's own steps stay in order. */
static void make_moves(Ladder *ladder) {
    ARRAY(LadderStep) steps = {0};
    for (int32_t p = 0; p < ladder->patterns.count; p++) {
        const BlockPattern *pattern = &ladder->patterns.data[p];
        double price = 0;
        for (int32_t j = 1; j < pattern->point_count; j++) {
            double flops = pattern->points[j].flops - pattern->points[j - 1].flops;
            double bytes = (double)(pattern->points[j - 1].bytes - pattern->points[j].bytes);
            double own = bytes > 0 ? flops / bytes : 0;
            price = own > price ? own : price;
            LadderStep step = {price, p, j};
            array_push(&steps, step);
        }
    }
    if (steps.count)
        qsort(steps.data, (size_t)steps.count, sizeof *steps.data, by_price);
    for (int64_t i = 0; i < steps.count; i++) {
        const LadderStep *step = &steps.data[i];
        int64_t instances = ladder->patterns.data[step->pattern].instance_count;
        for (int32_t k = 0; k < instances; k++) {
            Move move = {step->pattern, k, step->point};
            array_push(&ladder->moves, move);
        }
    }
    array_free(&steps);
}

static void add_rung(Ladder *ladder, double flops, int64_t code) {
    Rung rung = {flops, code, -1};
    array_push(&ladder->rungs, rung);
}

/* At most MAX_RUNGS of the states that the moves pass through, the first and the last too. */
static void chain_rungs(Ladder *ladder) {
    make_moves(ladder);
    double flops = 0;
    int64_t moves = ladder->moves.count, next = 0;
    int64_t rungs = moves + 1 < MAX_RUNGS ? moves + 1 : MAX_RUNGS;
    for (int64_t made = 0; made <= moves; made++) {
        if (made > 0) {
            const Move *move = &ladder->moves.data[made - 1];
            const KeepPoint *points = ladder->patterns.data[move->pattern].points;
            flops += points[move->point].flops - points[move->point - 1].flops;
        }
        if (made != (rungs > 1 ? next * moves / (rungs - 1) : 0))
            continue;
        add_rung(ladder, flops, made);
        next++;
    }
}

static int by_flops(const void *left, const void *right) {
    const Rung *a = left, *b = right;
    if (a->flops != b->flops)
        return a->flops < b->flops ? -1 : 1;
    return (a->code > b->code) - (a->code < b->code);
}

static void all_rungs(Ladder *ladder) {
    for (int64_t code = 0; code < ladder->patterns.assignments; code++) {
        int64_t rest = code;
        double flops = 0;
        for (int64_t p = 0; p < ladder->patterns.count; p++) {
            const BlockPattern *pattern = &ladder->patterns.data[p];
            for (int64_t k = 0; k < pattern->instance_count; k++) {
                flops += pattern->points[rest % pattern->point_count].flops;
                rest /= pattern->point_count;
            }
        }
        add_rung(ladder, flops, code);
    }
    qsort(ladder->rungs.data, (size_t)ladder->rungs.count, sizeof(Rung), by_flops);
}

/* ---- a rung's choice -------------------------------------------------------------------- */

static void keep_point(Ladder *ladder, int64_t pattern_number, int64_t instance,
                       int64_t point) {
    const BlockPattern *pattern = &ladder->patterns.data[pattern_number];
    for (int64_t i = 0; i < pattern->node_count && point > 0; i++)
        ladder->choice.kept[pattern->nodes[instance][i]] = pattern->points[point].kept[i];
}

static void choose(Ladder *ladder, const Rung *rung) {
    memcpy(ladder->choice.kept, ladder->fixed->kept, (size_t)ladder->fixed->count);
    if (ladder->patterns.assignments >= 0) {
        int64_t rest = rung->code;
        for (int64_t p = 0; p < ladder->patterns.count; p++) {
            const BlockPattern *pattern = &ladder->patterns.data[p];
            for (int64_t k = 0; k < pattern->instance_count; k++) {
                keep_point(ladder, p, k, rest % pattern->point_count);
                rest /= pattern->point_count;
            }
        }
        return;
    }
    for (int64_t i = 0; i < rung->code; i++) {
        const Move *move = &ladder->moves.data[i];
        keep_point(ladder, move->pattern, move->instance, move->point);
    }
}

/* ---- planning ------------------------------------------------------------------------- */

/* The module under the rung's choice, through all that follows.  NULL: no address space holds
 * it. */
static Module *plan_module(Ladder *ladder, const Rung *rung) {
    PassContext trial = *ladder->context;
    trial.module = module_copy(ladder->context->module);
    trial.diagnostics = diagnostics_new();
    trial.budget = NULL;
    choose(ladder, rung);
    recompute_rewrite(trial.module, &ladder->choice);
    int first = 0;
    while (pass_list[first].run != pass_recompute)
        first++;
    bool planned = true;
    for (int i = first + 1; i < pass_count && planned; i++)
        planned = pass_list[i].run(&trial);
    diagnostics_free(trial.diagnostics);
    if (planned)
        return trial.module;
    module_free(trial.module);
    return NULL;
}

static int64_t peak_of(const Ladder *ladder, const Module *module) {
    const PassContext *context = ladder->context;
    MemoryTable table = context->measure ? context->measure(module, context->measure_data)
                                         : memory_table(module);
    return table.peak;
}

static bool fits(Ladder *ladder, int64_t number) {
    Rung *rung = &ladder->rungs.data[number];
    if (rung->peak < 0) {
        Module *module = plan_module(ladder, rung);
        rung->peak = module ? peak_of(ladder, module) : INT64_MAX;
        module_free(module);
        ladder->planned++;
    }
    return rung->peak <= ladder->context->compilation->memory_bytes;
}

/* ---- the search ------------------------------------------------------------------------ */

static int64_t trials_allowed(const Ladder *ladder) {
    int64_t trials = NODES_TO_PLAN / (ladder->micro->nodes.count + 1);
    return trials > LEAST_TRIALS ? trials : LEAST_TRIALS;
}

static bool small_ladder(const Ladder *ladder) {
    return ladder->rungs.count <= trials_allowed(ladder);
}

/* The first of them that fits; -1. */
static int64_t scan(Ladder *ladder, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
        if (fits(ladder, i))
            return i;
    return -1;
}

/* Between posts; the number of a rung that fits, -1. */
static int64_t search_posts(Ladder *ladder) {
    int64_t rungs = ladder->rungs.count, posts = trials_allowed(ladder) * 5 / 8;
    int64_t low = -1, high = -1, first = 0;
    for (int64_t i = 0; i < posts && high < 0; i++) {
        int64_t post = i * (rungs - 1) / (posts - 1);
        if (fits(ladder, post))
            high = post;
        else
            low = post;
    }
    if (high < 0)
        return -1;
    first = low + 1; /* the window stays between two posts */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (fits(ladder, middle))
            high = middle;
        else
            low = middle;
    }
    int64_t below = scan(ladder, high - WINDOW > first ? high - WINDOW : first, high);
    return below >= 0 ? below : high;
}

/* The number of a rung that fits; -1. */
static int64_t search(Ladder *ladder) {
    int64_t rungs = ladder->rungs.count;
    if (small_ladder(ladder))
        return scan(ladder, 0, rungs);
    int64_t found = search_posts(ladder), end = found >= 0 ? found : rungs;
    int64_t before_last = scan(ladder, rungs - 1 - WINDOW, end);
    return before_last >= 0 ? before_last : found;
}

static int64_t least_planned(const Ladder *ladder) {
    int64_t least = -1;
    for (int64_t i = 0; i < ladder->rungs.count; i++) {
        int64_t peak = ladder->rungs.data[i].peak;
        if (peak >= 0 && (least < 0 || peak < ladder->rungs.data[least].peak))
            least = i;
    }
    return least;
}

/* ---- refusals -------------------------------------------------------------------------- */

static void note_live_row(Diagnostic *error, const ValueRow *row, Arena *arena) {
    char unit[32];
    Text several = {0};
    if (row->values > 1)
        text_printf(&several, ", %lld values", (long long)row->values);
    note_at(error, row->span, "%s at its peak: `%s`%s", bytes_text(row->bytes, unit),
            value_row_path(row, arena), text_string(&several));
    text_free(&several);
}

/* What lives when most does, the largest first. */
static void note_live_values(Diagnostic *error, const Module *module, Arena *arena) {
    const Function *function = largest_function(module);
    if (!function)
        return;
    int64_t *live = live_bytes(function, arena), peak = 0, count;
    for (int64_t g = 1; g <= function->groups.count; g++)
        peak = live[g] > live[peak] ? g : peak;
    ValueTable *table = live_values(function, peak, arena);
    ValueRow *rows = value_table_largest(table, &count);
    for (int64_t i = 0; i < count && i < VALUES_SHOWN; i++)
        note_live_row(error, &rows[i], arena);
    value_table_free(table);
}

/* `in_micro`: the peak is one of `micro`, which shrinks with the micro-batch. */
static void advise(Diagnostic *error, const Module *module, int64_t peak, bool in_micro) {
    char size[64];
    if (peak >= 1 << 20)
        snprintf(size, sizeof size, "%lld MiB", (long long)((peak >> 20) + 1));
    else
        snprintf(size, sizeof size, "%lld", (long long)peak);
    const Input *input = module->inputs.count ? &module->inputs.data[0] : NULL;
    const char *samples =
        in_micro && input && input->axis_count ? module->axes.data[input->axes[0]].name : NULL;
    if (samples)
        help(error, "allow `memory %s`, or make micro-batches smaller (`%s`)", size, samples);
    else
        help(error, "allow `memory %s`", size);
}

static void refuse(Ladder *ladder) {
    const Compilation *compilation = ladder->context->compilation;
    const Rung *least = &ladder->rungs.data[least_planned(ladder)];
    if (least->peak == INT64_MAX) {
        help(error_at(ladder->context->diagnostics, compilation->memory->span,
                      "a training step of `%s` does not fit in an address space of 64 bits",
                      compilation->model->name.text),
             "choose smaller sizes");
        return;
    }
    Arena *arena = arena_new();
    char bound[32], minimum[32], states[32];
    Diagnostic *error = error_at(
        ladder->context->diagnostics, compilation->memory->span,
        "a training step of `%s` takes at least %s (%lld bytes), and the bound is %s "
        "(%lld)",
        compilation->model->name.text, bytes_text(least->peak, minimum), (long long)least->peak,
        bytes_text(compilation->memory_bytes, bound), (long long)compilation->memory_bytes);
    Module *module = plan_module(ladder, least);
    if (module) {
        MemoryTable table = memory_table(module);
        int64_t arena_bytes = table.arena;
        note_at(error, (Span){0}, "%s of it are weights, gradients, moments and other states",
                bytes_text(table.peak - arena_bytes, states));
        note_live_values(error, module, arena);
    }
    if (!small_ladder(ladder))
        note_at(error, (Span){0},
                "that is the least of %lld placements that were planned; others may take a "
                "little less",
                (long long)ladder->planned);
    if (ladder->rungs.count <= 1)
        note_at(error, compilation->memory->span,
                "there is nothing to choose: no block holds a value that could be kept or "
                "computed again, or directives speak of all");
    const Function *largest = module ? largest_function(module) : NULL;
    advise(error, ladder->context->module, least->peak,
           !largest || strcmp(largest->name, "micro") == 0);
    module_free(module);
    arena_free(arena);
}

/* ---- the choice ------------------------------------------------------------------------ */

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void report(const Ladder *ladder, int64_t chosen, double started) {
    BudgetReport *budget = ladder->context->budget;
    if (!budget)
        return;
    bool all_planned = ladder->planned == ladder->rungs.count;
    bool refused = chosen < 0;
    int64_t least = least_planned(ladder);
    *budget =
        (BudgetReport){.bound = ladder->context->compilation->memory_bytes,
                       .peak = ladder->rungs.data[refused ? least : chosen].peak,
                       .minimum = refused || all_planned ? ladder->rungs.data[least].peak : -1,
                       .added_flops = ladder->rungs.data[refused ? least : chosen].flops,
                       .rungs = ladder->rungs.count,
                       .planned = ladder->planned,
                       .exhaustive = ladder->patterns.all_subsets,
                       .first = small_ladder(ladder),
                       .seconds = seconds_now() - started};
    for (int64_t i = 0; i < ladder->patterns.count; i++) {
        budget->candidates += ladder->patterns.data[i].candidate_count;
        budget->points += ladder->patterns.data[i].point_count;
    }
}

bool budget_choose(PassContext *context, KeepChoice *choice, Arena *arena) {
    double started = seconds_now();
    const Function *micro = module_find_function(context->module, "micro");
    KeepChoice fixed = {choice->count, arena_alloc(arena, (size_t)choice->count)};
    memcpy(fixed.kept, choice->kept, (size_t)choice->count);
    Ladder ladder = {.context = context, .micro = micro, .fixed = &fixed, .choice = *choice};
    int64_t limit = trials_allowed(&ladder);
    ladder.patterns = find_block_patterns(context, micro, &fixed,
                                          limit < MAX_RUNGS ? limit : MAX_RUNGS, arena);
    if (ladder.patterns.assignments >= 0)
        all_rungs(&ladder);
    else
        chain_rungs(&ladder);
    int64_t chosen = search(&ladder);
    report(&ladder, chosen, started);
    if (chosen < 0)
        refuse(&ladder);
    else
        choose(&ladder, &ladder.rungs.data[chosen]); /* in choice->kept */
    array_free(&ladder.moves);
    array_free(&ladder.rungs);
    return chosen >= 0;
}
