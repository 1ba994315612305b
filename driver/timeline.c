/* The memory of a training step over its course, as a plot in plain text.
 *
 * Columns are groups in execution order, each the most of those it stands for. */
#include "driver/driver.h"

#include <jansson.h>

enum { PLOT_WIDTH = 60, PLOT_HEIGHT = 8, LARGEST = 8 };

typedef struct Timeline {
    const Program *program;
    const Function *function;
    Arena *arena;
    int64_t steps;   /* groups, and one for the copies at the end where there are any */
    int64_t *live;   /* by step */
    int64_t peak_at; /* the first step that holds the most */
    int64_t turn;    /* the first step that computes a gradient; -1 */
} Timeline;

static Timeline timeline_of(const Program *program, Arena *arena) {
    const Function *function = program->function;
    Timeline t = {program, function, arena, program->step_count, live_bytes(function, arena),
                  0,       -1};
    if (t.steps > function->groups.count + 1)
        t.steps = function->groups.count + 1;
    for (int64_t i = 1; i < t.steps; i++)
        if (t.live[i] > t.live[t.peak_at])
            t.peak_at = i;
    for (NodeId id = 0; id < function->nodes.count; id++) {
        const Node *node = node_at(function, id);
        int32_t group = node->placement.group;
        if (node->adjoint_of >= 0 && group >= 0 && (t.turn < 0 || group < t.turn))
            t.turn = group;
    }
    return t;
}

static int column_of(const Timeline *t, int64_t step) {
    return (int)(step * PLOT_WIDTH / t->steps);
}

/* ---- the plot --------------------------------------------------------------------------- */

static void print_mark(const Timeline *t, int64_t step, const char *what) {
    printf("    %11s  %*s %s\n", "", column_of(t, step) + 1, "^", what);
}

static void print_plot(const Timeline *t) {
    int64_t most[PLOT_WIDTH] = {0}, peak = t->live[t->peak_at];
    char unit[32];
    for (int column = 0; column < PLOT_WIDTH; column++) {
        int64_t first = column * t->steps / PLOT_WIDTH;
        int64_t end = (column + 1) * t->steps / PLOT_WIDTH;
        for (int64_t step = first; step < end || step == first; step++)
            most[column] = t->live[step] > most[column] ? t->live[step] : most[column];
    }
    for (int row = PLOT_HEIGHT; row > 0; row--) {
        char line[PLOT_WIDTH + 1] = {0};
        for (int column = 0; column < PLOT_WIDTH; column++)
            line[column] =
                (double)most[column] * PLOT_HEIGHT > (double)peak * (row - 0.5) ? '#' : ' ';
        printf("    %11s |%s\n", bytes_text((int64_t)((double)peak * row / PLOT_HEIGHT), unit),
               line);
    }
    printf("    %11s +", "0 B");
    for (int column = 0; column < PLOT_WIDTH; column++)
        putchar('-');
    putchar('\n');
    print_mark(t, t->peak_at, "peak");
    if (t->turn >= 0)
        print_mark(t, t->turn, "gradients begin");
}

/* ---- what is live at the peak ----------------------------------------------------------- */

static void print_live(const Timeline *t, bool json) {
    int64_t count;
    ValueTable *table = live_values(t->function, t->peak_at, t->arena);
    ValueRow *rows = value_table_largest(table, &count);
    for (int64_t i = 0; i < count && i < LARGEST; i++) {
        char unit[32];
        const char *path = value_row_path(&rows[i], t->arena);
        const char *place = json_path(place_text(rows[i].span, t->arena), t->arena);
        if (json)
            print_json_object(json_pack("{s:s, s:s, s:s, s:I, s:I}", "kind", "live_at_peak",
                                        "value", path, "place", place, "values",
                                        (json_int_t)rows[i].values, "bytes",
                                        (json_int_t)rows[i].bytes));
        else
            printf("      %11s  %s%s  %s\n", bytes_text(rows[i].bytes, unit), path,
                   rows[i].values > 1
                       ? arena_printf(t->arena, " (%lld values)", (long long)rows[i].values)
                       : "",
                   place);
    }
    if (count > LARGEST && !json)
        printf("      and %lld kinds of smaller values\n", (long long)(count - LARGEST));
    value_table_free(table);
}

/* ---- all ------------------------------------------------------------------------------- */

static void print_timeline_json(const Timeline *t) {
    for (int64_t i = 0; i < t->steps; i++) {
        const Step *step = &t->program->steps[i];
        print_json_object(json_pack("{s:s, s:s, s:I, s:s, s:I}", "kind", "step", "function",
                                    t->function->name, "step", (json_int_t)i, "label",
                                    step->label ? step->label : "", "live_bytes",
                                    (json_int_t)t->live[i]));
    }
}

void print_timeline(const Compiled *compiled, bool json) {
    Arena *arena = arena_new();
    const ProgramSet *set = compiled->programs;
    const Function *largest = largest_function(set->module);
    const Program *program = largest ? program_find(set, largest->name) : NULL;
    Timeline t = timeline_of(program ? program : &set->programs[0], arena);
    const Step *peak = t.steps ? &t.program->steps[t.peak_at] : NULL;
    if (json && peak)
        print_timeline_json(&t);
    if (!json)
        printf("  arena over the %lld steps of `%s`\n", (long long)t.steps, t.function->name);
    if (!json && peak) {
        print_plot(&t);
        printf("    the peak is at step %lld, `%s`  %s\n", (long long)t.peak_at,
               peak->label ? peak->label : "", place_text(peak->span, arena));
        printf("    where the largest values are\n");
    }
    if (peak)
        print_live(&t, json);
    arena_free(arena);
}
