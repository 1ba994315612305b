/* What a sweep shows: its table, its picture, and the page that holds both. */
#include "driver/driver.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLUMNS = 24 };

/* ---- rows --------------------------------------------------------------------------- */

static const char *string_in_row(const json_t *row, const char *key) {
    const char *string = json_string_value(json_object_get(row, key));
    return string ? string : "";
}

static bool has(const SweepTable *table, const char *key) {
    for (int64_t i = 0; i < table->rows.count; i++)
        if (!isnan(number_in_row(table->rows.data[i], key)))
            return true;
    return false;
}

static bool is_failed(const json_t *row) {
    return !strcmp(string_in_row(row, "status"), "failed");
}

static bool any_failed(const SweepTable *table) {
    for (int64_t i = 0; i < table->rows.count; i++)
        if (is_failed(table->rows.data[i]))
            return true;
    return false;
}

/* ---- columns ------------------------------------------------------------------------ */

typedef enum ColumnKind {
    COLUMN_TEXT,
    COLUMN_COUNT,  /* 58,073,600 */
    COLUMN_SCALED, /* 24.2 M */
    COLUMN_BYTES,
    COLUMN_SECONDS,
    COLUMN_LOSS
} ColumnKind;

typedef struct Column {
    const char *title, *key;
    ColumnKind kind;
} Column;

static const Column measured_columns[] = {
    {"parameters", "params", COLUMN_COUNT},
    {"low rank", "params_low_rank", COLUMN_COUNT},
    {"FLOPs a token", "flops_per_token.executed", COLUMN_SCALED},
    {"kept", "memory.kept_activations", COLUMN_BYTES},
    {"peak", "memory.peak", COLUMN_BYTES},
    {"step, predicted", "predicted_step_s", COLUMN_SECONDS},
    {"step", "step_s", COLUMN_SECONDS},
    {"tokens/s", "tokens_per_s", COLUMN_SCALED},
    {"peak, measured", "peak_bytes", COLUMN_BYTES},
    {"loss", "final_loss", COLUMN_LOSS},
    {"validation", "val_loss", COLUMN_LOSS},
};

/* Those of which some row has a figure, after the plan and the values. */
static int columns_of(const SweepTable *table, Column *columns) {
    int count = 0;
    columns[count++] = (Column){"plan", "plan", COLUMN_TEXT};
    for (int i = 0; i < table->choice_count; i++)
        columns[count++] = (Column){table->choices[i].name, NULL, COLUMN_TEXT};
    if (table->options->seed_count > 1)
        columns[count++] = (Column){"seed", "seed", COLUMN_TEXT};
    for (int i = 0; i < COUNT_OF(measured_columns); i++)
        if (has(table, measured_columns[i].key) || (i == 0 && any_failed(table)))
            columns[count++] = measured_columns[i];
    INTERNAL_CHECK(count <= MAX_COLUMNS);
    return count;
}

static void put_scaled(double number, Text *out) {
    static const char *const suffixes[] = {"", " k", " M", " G", " T", " P", " E"};
    int at = 0;
    for (; at < COUNT_OF(suffixes) - 1 && fabs(number) >= 999.5; at++)
        number /= 1000;
    text_printf(out, at ? "%.3g%s" : "%.0f%s", number, suffixes[at]);
}

static void put_seconds(double seconds, Text *out) {
    if (seconds < 0.9995)
        text_printf(out, "%.3g ms", seconds * 1e3);
    else
        text_printf(out, "%.3g s", seconds);
}

static void put_figure(ColumnKind kind, double value, Text *out) {
    char buffer[32];
    if (isnan(value))
        return;
    switch (kind) {
    case COLUMN_COUNT:
        text_puts(out, with_commas((int64_t)value, buffer));
        return;
    case COLUMN_SCALED:
        put_scaled(value, out);
        return;
    case COLUMN_BYTES:
        text_puts(out, bytes_text((int64_t)value, buffer));
        return;
    case COLUMN_SECONDS:
        put_seconds(value, out);
        return;
    case COLUMN_LOSS:
        text_printf(out, "%.4f", value);
        return;
    case COLUMN_TEXT:
        break;
    }
    internal_error("column kind %d", (int)kind);
}

static void put_value(const json_t *value, Text *out) {
    if (json_is_string(value))
        text_puts(out, json_string_value(value));
    else if (json_is_integer(value))
        text_printf(out, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        text_printf(out, "%.6g", json_real_value(value));
}

/* ---- groups: the rows of one combination -------------------------------------------- */

static bool is_trained(const json_t *row) {
    return !strcmp(string_in_row(row, "status"), "trained");
}

/* One past the last row of the combination that begins at `first`. */
static int64_t group_end(const SweepTable *table, int64_t first) {
    int64_t end = first + 1;
    while (end < table->rows.count && !strcmp(string_in_row(table->rows.data[first], "label"),
                                              string_in_row(table->rows.data[end], "label")))
        end++;
    return end;
}

/* Over the rows of [first, end) that have the figure. */
static Mean group_mean(const SweepTable *table, int64_t first, int64_t end, const char *key) {
    double *values = checked_alloc((size_t)(end - first) * sizeof *values);
    int64_t count = 0;
    for (int64_t i = first; i < end; i++) {
        double value = number_in_row(table->rows.data[i], key);
        if (!isnan(value))
            values[count++] = value;
    }
    Mean mean = mean_of(values, count);
    if (!count)
        mean.value = (double)NAN;
    free(values);
    return mean;
}

/* ---- cells -------------------------------------------------------------------------- */

/* Rows of cells; the first holds the titles.  Memory in `arena`. */
typedef struct Grid {
    Arena *arena;
    int columns;
    Column column[MAX_COLUMNS];
    ARRAY(const char **) rows; /* [columns] */
} Grid;

static const char **grid_row(Grid *grid) {
    const char **cells = arena_alloc_array(grid->arena, (size_t)grid->columns, sizeof *cells);
    for (int i = 0; i < grid->columns; i++)
        cells[i] = "";
    array_push(&grid->rows, cells);
    return cells;
}

static const char *cell(Grid *grid, Text *text) {
    const char *copy = arena_strdup(grid->arena, text_string(text));
    text_free(text);
    return copy;
}

static void put_words(const SweepTable *table, const json_t *row, const Column *column,
                      int index, Text *out) {
    if (column->key) {
        put_value(json_object_get(row, column->key), out);
        return;
    }
    const json_t *over = json_object_get(row, "over");
    const json_t *value = json_object_get(over, table->choices[index].name);
    value ? put_value(value, out) : text_puts(out, "-");
}

static void add_row(Grid *grid, const SweepTable *table, const json_t *row) {
    const char **cells = grid_row(grid);
    bool failed = is_failed(row);
    for (int i = 0; i < grid->columns; i++) {
        const Column *column = &grid->column[i];
        Text text = {0};
        if (column->kind == COLUMN_TEXT)
            put_words(table, row, column, i - 1, &text);
        else if (failed && column->key == measured_columns[0].key)
            text_puts(&text, "failed");
        else
            put_figure(column->kind, number_in_row(row, column->key), &text);
        cells[i] = cell(grid, &text);
    }
    if (json_is_null(json_object_get(row, "plan")))
        cells[0] = "none";
}

/* What the seeds measured: mean ± standard deviation. */
static void add_mean(Grid *grid, const SweepTable *table, int64_t first, int64_t end) {
    const char **cells = grid_row(grid);
    for (int i = 0; i < grid->columns; i++) {
        const Column *column = &grid->column[i];
        Text text = {0};
        if (column->key && !strcmp(column->key, "seed"))
            text_puts(&text, "mean");
        if (column->kind == COLUMN_LOSS || column->kind == COLUMN_SECONDS) {
            Mean mean = group_mean(table, first, end, column->key);
            put_figure(column->kind, mean.value, &text);
            if (mean.count > 1 && column->kind == COLUMN_LOSS)
                text_printf(&text, " ± %.4f", mean.spread);
        }
        cells[i] = cell(grid, &text);
    }
}

static Grid grid_of(const SweepTable *table) {
    Grid grid = {.arena = arena_new()};
    grid.columns = columns_of(table, grid.column);
    const char **titles = grid_row(&grid);
    for (int i = 0; i < grid.columns; i++)
        titles[i] = grid.column[i].title;
    for (int64_t first = 0, end; first < table->rows.count; first = end) {
        end = group_end(table, first);
        int trained = 0;
        for (int64_t i = first; i < end; i++) {
            add_row(&grid, table, table->rows.data[i]);
            trained += is_trained(table->rows.data[i]);
        }
        if (trained > 1)
            add_mean(&grid, table, first, end);
    }
    return grid;
}

static void grid_free(Grid *grid) {
    array_free(&grid->rows);
    arena_free(grid->arena);
}

/* ---- the table as text -------------------------------------------------------------- */

static int characters(const char *text) {
    int count = 0;
    for (; *text; text++)
        count += ((unsigned char)*text & 0xc0) != 0x80;
    return count;
}

void sweep_print(const SweepTable *table) {
    Grid grid = grid_of(table);
    int width[MAX_COLUMNS] = {0};
    for (int64_t r = 0; r < grid.rows.count; r++)
        for (int i = 0; i < grid.columns; i++) {
            int length = characters(grid.rows.data[r][i]);
            width[i] = length > width[i] ? length : width[i];
        }
    for (int64_t r = 0; r < grid.rows.count; r++) {
        Text line = {0};
        for (int i = 0; i < grid.columns; i++) {
            const char *text = grid.rows.data[r][i];
            int space = width[i] - characters(text);
            bool left = i == 0;
            text_printf(&line, "%s%*s%s%*s", i ? "  " : "", left ? 0 : space, "", text,
                        left ? space : 0, "");
        }
        while (line.length && line.data[line.length - 1] == ' ')
            line.data[--line.length] = 0;
        puts(text_string(&line));
        text_free(&line);
    }
    grid_free(&grid);
}

/* ---- the picture -------------------------------------------------------------------- */

typedef struct Axes {
    const char *x, *y; /* keys */
    const char *title, *x_title, *y_title;
} Axes;

static Axes axes_of(const SweepTable *table) {
    if (has(table, "val_loss"))
        return (Axes){"training_flops", "val_loss", "Validation loss against training compute",
                      "training compute, as executed (FLOP)",
                      "validation loss (the model's own unit)"};
    if (has(table, "final_loss"))
        return (Axes){"training_flops", "final_loss",
                      "Loss of the last update against training compute",
                      "training compute, as executed (FLOP)", "loss (the model's own unit)"};
    if (has(table, "predicted_step_s"))
        return (Axes){"predicted_step_s", "memory.peak", "Peak memory against predicted time",
                      "predicted time of a step (s)", "peak memory (B)"};
    return (Axes){"flops_per_token.executed", "memory.peak", "Peak memory against work",
                  "work, as executed (FLOP a token)", "peak memory (B)"};
}

/* The series of a plan; a new one at the end. */
static ChartSeries *series_of(Chart *chart, const char *plan) {
    for (int64_t i = 0; i < chart->series_count; i++)
        if (!strcmp(chart->series[i].name, plan))
            return &chart->series[i];
    chart->series[chart->series_count] = (ChartSeries){.name = plan};
    return &chart->series[chart->series_count++];
}

/* Rows of a plan are neighbours: its points lie one behind the other in `points`. */
static void add_point(Chart *chart, const SweepTable *table, const Axes *axes, int64_t first,
                      int64_t end, ChartPoint *point) {
    const json_t *row = table->rows.data[first];
    Mean x = group_mean(table, first, end, axes->x), y = group_mean(table, first, end, axes->y);
    if (!x.count || !y.count)
        return;
    bool planless = json_is_null(json_object_get(row, "plan"));
    ChartSeries *series = series_of(chart, planless ? "no plan" : string_in_row(row, "plan"));
    if (!series->count)
        series->points = point;
    series->points[series->count++] = (ChartPoint){.x = x.value,
                                                   .y = y.value,
                                                   .x_spread = x.spread,
                                                   .y_spread = y.spread,
                                                   .label = string_in_row(row, "label")};
}

static void put_subtitle(const SweepTable *table, Text *out) {
    const Request *request = &table->options->request;
    if (table->options->seed_count > 1)
        text_printf(out, "means of %d seeds, bars of one standard deviation; ",
                    table->options->seed_count);
    text_puts(out, request->path);
    if (request->preset)
        text_printf(out, ", preset %s", request->preset);
    if (request->recipe)
        text_printf(out, ", recipe %s", request->recipe);
    for (int i = 0; i < request->define_count; i++)
        text_printf(out, ", %s=%s", request->defines[i].name, request->defines[i].value);
}

void sweep_picture(const SweepTable *table, Text *out) {
    Axes axes = axes_of(table);
    size_t most = (size_t)table->rows.count + 1;
    ChartPoint *points = checked_alloc(most * sizeof *points);
    Text subtitle = {0};
    put_subtitle(table, &subtitle);
    Chart chart = {
        .title = axes.title,
        .subtitle = text_string(&subtitle),
        .x = {axes.x_title, SCALE_AUTO},
        .y = {axes.y_title, SCALE_AUTO},
        .frontier = true,
        .series = checked_alloc(most * sizeof *chart.series),
    };
    for (int64_t first = 0, end, at = 0; first < table->rows.count; first = end, at++) {
        end = group_end(table, first);
        add_point(&chart, table, &axes, first, end, &points[at]);
    }
    chart_svg(&chart, out);
    free(chart.series);
    free(points);
    text_free(&subtitle);
}

/* ---- the page ----------------------------------------------------------------------- */

static const char page_style[] =
    "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;"
    "background:#fff;color:#24292f}\n"
    "h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}\n"
    "pre{overflow-x:auto;padding:.8em;background:#f4f6f8;font-size:13px}\n"
    ".t{overflow-x:auto}table{border-collapse:collapse;font-size:13px;"
    "font-variant-numeric:tabular-nums}\n"
    "th,td{padding:.25em .8em;text-align:right;border-bottom:1px solid #e3e6ea;"
    "white-space:nowrap}th:first-child,td:first-child{text-align:left}\n"
    "svg{max-width:100%;height:auto}summary{cursor:pointer}\n"
    "@media(prefers-color-scheme:dark){body{background:#15181d;color:#e6e9ed}"
    "pre{background:#1f242b}th,td{border-color:#2d333b}}\n";

static bool is_plain_word(const char *word) {
    for (const char *at = word; *at; at++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                    "_-./,=:+@%",
                    *at))
            return false;
    return *word != 0;
}

/* As a shell reads it back. */
static void put_argument(const char *argument, Text *out) {
    if (is_plain_word(argument)) {
        text_puts(out, argument);
        return;
    }
    text_puts(out, "'");
    for (const char *at = argument; *at; at++)
        *at == '\'' ? text_puts(out, "'\\''") : text_append(out, at, 1);
    text_puts(out, "'");
}

static void put_command(const Options *options, Text *out) {
    Text command = {0};
    text_puts(&command, "colac");
    for (int i = 1; i < options->argument_count; i++) {
        text_puts(&command, " ");
        put_argument(options->arguments[i], &command);
    }
    text_puts(out, "<h2>Command</h2>\n<pre>");
    xml_escape(text_string(&command), out);
    text_puts(out, "</pre>\n");
    text_free(&command);
}

static void put_table(const SweepTable *table, Text *out) {
    Grid grid = grid_of(table);
    text_puts(out, "<div class=\"t\"><table>\n");
    for (int64_t r = 0; r < grid.rows.count; r++) {
        text_puts(out, "<tr>");
        for (int i = 0; i < grid.columns; i++) {
            text_puts(out, r ? "<td>" : "<th>");
            xml_escape(grid.rows.data[r][i], out);
            text_puts(out, r ? "</td>" : "</th>");
        }
        text_puts(out, "</tr>\n");
    }
    text_puts(out, "</table></div>\n");
    grid_free(&grid);
}

static void put_failures(const SweepTable *table, Text *out) {
    for (int64_t i = 0; i < table->rows.count; i++) {
        const json_t *row = table->rows.data[i];
        if (strcmp(string_in_row(row, "status"), "failed"))
            continue;
        text_puts(out, "<p>");
        xml_escape(string_in_row(row, "label"), out);
        text_puts(out, ": ");
        xml_escape(string_in_row(row, "error"), out);
        text_puts(out, "</p>\n");
    }
}

void sweep_add_texts(SweepTable *table, const Texts *texts, Arena *arena) {
    for (const Source *s = texts->sources; s; s = s->next) {
        bool known = false;
        for (int64_t i = 0; i < table->texts.count && !known; i++)
            known = !strcmp(table->texts.data[i].name, s->name);
        if (!known)
            array_push(&table->texts,
                       ((Source){.name = arena_strdup(arena, s->name),
                                 .text = arena_strndup(arena, s->text, s->length),
                                 .length = s->length}));
    }
}

static void put_texts(const SweepTable *table, Text *out) {
    text_puts(out, "<h2>Texts</h2>\n");
    for (int64_t i = 0; i < table->texts.count; i++) {
        text_puts(out, "<details><summary>");
        xml_escape(table->texts.data[i].name, out);
        text_puts(out, "</summary>\n<pre>");
        xml_escape(table->texts.data[i].text, out);
        text_puts(out, "</pre></details>\n");
    }
}

void sweep_page(const SweepTable *table, const char *svg, Text *out) {
    text_puts(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
                   "<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>");
    xml_escape(table->options->request.path, out);
    text_printf(out, ": sweep</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>Sweep of ",
                page_style);
    xml_escape(table->options->request.path, out);
    text_printf(out, "</h1>\n%s", svg);
    put_table(table, out);
    put_failures(table, out);
    put_command(table->options, out);
    put_texts(table, out);
    text_puts(out, "</body>\n</html>\n");
}
