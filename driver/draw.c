/* colac chart: a picture of what JSON lines say. */
#include "driver/driver.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CHART_BYTES ((size_t)256 << 20)
enum { MAX_CHART_SERIES = 64 };

typedef struct Reading {
    const Options *options;
    Arena *arena;
    Diagnostics *diagnostics;
    const char *path;
    Source source;
    ARRAY(ChartSeries) series;
    ARRAY(int64_t) capacities; /* of each series' points */
    int64_t line, unread;      /* unread: rows without x or y */
    Text keys;                 /* those of the first row, for a mistake's remedy */
    bool has_x, has_y, has_series, has_label, has_error; /* by any row */
} Reading;

/* ---- rows --------------------------------------------------------------------------- */

/* What a value reads as; NULL for none. */
static const char *words_at(Reading *reading, const json_t *row, const char *key) {
    const json_t *value = key ? value_in_row(row, key) : NULL;
    if (!value || json_is_null(value))
        return NULL;
    if (json_is_string(value))
        return arena_strdup(reading->arena, json_string_value(value));
    if (json_is_integer(value))
        return arena_printf(reading->arena, "%lld", (long long)json_integer_value(value));
    if (json_is_real(value))
        return arena_printf(reading->arena, "%.6g", json_real_value(value));
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    const char *copy = arena_strdup(reading->arena, text ? text : "");
    free(text);
    return copy;
}

/* ---- series ------------------------------------------------------------------------- */

static bool in_list(const char *list, const char *name) {
    size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (!strncmp(at, name, length) && (!at[length] || at[length] == ','))
            return true;
    }
    return false;
}

/* The series of a name; NULL after reporting that there are too many. */
static ChartSeries *series_of(Reading *reading, const char *name) {
    for (int64_t i = 0; i < reading->series.count; i++)
        if (!strcmp(reading->series.data[i].name, name))
            return &reading->series.data[i];
    if (reading->series.count == MAX_CHART_SERIES) {
        help(error_in_file(reading->diagnostics, reading->path,
                           "`%s` has more than %d different values",
                           reading->options->chart.series, MAX_CHART_SERIES),
             "name a key that takes few values: `--series KEY`");
        return NULL;
    }
    bool line = reading->options->chart.lines && in_list(reading->options->chart.lines, name);
    array_push(&reading->series, ((ChartSeries){.name = name, .line = line}));
    array_push(&reading->capacities, 0);
    return &reading->series.data[reading->series.count - 1];
}

static void add_point(Reading *reading, ChartSeries *series, ChartPoint point) {
    int64_t *capacity = &reading->capacities.data[series - reading->series.data];
    if (series->count == *capacity) {
        *capacity = *capacity ? 2 * *capacity : 16;
        series->points =
            checked_realloc(series->points, (size_t)*capacity * sizeof *series->points);
    }
    series->points[series->count++] = point;
}

static void list_keys(const json_t *row, const char *before, Text *out) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)row, key, value) {
        if (json_is_object(value) && !*before)
            list_keys(value, key, out);
        else
            text_printf(out, "%s`%s%s%s`", out->length ? ", " : "", before, *before ? "." : "",
                        key);
    }
}

/* Which of the keys that were asked for are there, as what they are for. */
static void note_keys(Reading *reading, const json_t *row) {
    const Options *options = reading->options;
    if (!reading->keys.length)
        list_keys(row, "", &reading->keys);
    reading->has_x |= !isnan(number_in_row(row, options->chart.x));
    reading->has_y |= !isnan(number_in_row(row, options->chart.y));
    reading->has_series |= options->chart.series && value_in_row(row, options->chart.series);
    reading->has_label |= options->chart.label && value_in_row(row, options->chart.label);
    reading->has_error |= !isnan(number_in_row(row, options->chart.error));
}

static bool add_row(Reading *reading, const json_t *row) {
    const Options *options = reading->options;
    double x = number_in_row(row, options->chart.x), y = number_in_row(row, options->chart.y);
    note_keys(reading, row);
    if (isnan(x) || isnan(y)) {
        reading->unread++;
        return true;
    }
    const char *name = words_at(reading, row, options->chart.series);
    ChartSeries *series = series_of(reading, name ? name : "");
    if (!series)
        return false;
    double spread = number_in_row(row, options->chart.error);
    add_point(reading, series,
              (ChartPoint){.x = x,
                           .y = y,
                           .y_spread = isnan(spread) ? 0 : spread,
                           .label = words_at(reading, row, options->chart.label)});
    return true;
}

static bool is_blank(const char *line, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!strchr(" \t\r", line[i]))
            return false;
    return true;
}

/* A JSON object a line. */
static bool read_rows(Reading *reading) {
    const Source *source = &reading->source;
    for (const char *at = source->text, *end = at + source->length; at < end;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t size = (size_t)((stop ? stop : end) - at);
        reading->line++;
        json_error_t error;
        json_t *row = NULL;
        bool good = is_blank(at, size);
        if (!good && (row = json_loadb(at, size, 0, &error)) && json_is_object(row))
            good = add_row(reading, row);
        else if (!good)
            help(error_at(reading->diagnostics,
                          (Span){source, (uint32_t)(at - source->text),
                                 (uint32_t)(at - source->text + size)},
                          "this line is no JSON object: %s",
                          row ? "it is another JSON value" : error.text),
                 "`colac chart` reads an object a line, as `--json` writes them");
        json_decref(row);
        if (!good)
            return false;
        at += size + 1;
    }
    return true;
}

/* ---- means -------------------------------------------------------------------------- */

/* Which group each point is in, counted in order of first occurrence: those of one label
 * (without labels: of one x).  The number of groups. */
static int64_t group_points(const ChartSeries *series, int64_t *group) {
    StringMap known = {0};
    int64_t groups = 0;
    for (int64_t i = 0; i < series->count; i++) {
        const ChartPoint *point = &series->points[i];
        Text key = {0};
        if (point->label)
            text_printf(&key, "label %s", point->label);
        else
            text_printf(&key, "x %.17g", point->x);
        group[i] = string_map_get(&known, text_string(&key), groups);
        if (group[i] == groups)
            string_map_set(&known, text_string(&key), groups++);
        text_free(&key);
    }
    string_map_free(&known);
    return groups;
}

/* Each group becomes one point at its mean, with bars of its standard deviation. */
static void take_means(ChartSeries *series) {
    size_t count = (size_t)series->count;
    int64_t *group = checked_alloc(count * sizeof *group);
    int64_t groups = group_points(series, group);
    int64_t *begin = checked_alloc(((size_t)groups + 1) * sizeof *begin);
    double *x = checked_alloc(count * sizeof *x), *y = checked_alloc(count * sizeof *y);
    ChartPoint *means = checked_alloc((size_t)groups * sizeof *means);
    for (size_t i = 0; i < count; i++)
        begin[group[i] + 1]++;
    for (int64_t g = 0; g < groups; g++)
        begin[g + 1] += begin[g];
    for (size_t i = count; i-- > 0;) { /* the first of a group is seen last */
        int64_t at = --begin[group[i] + 1];
        x[at] = series->points[i].x;
        y[at] = series->points[i].y;
        means[group[i]] = series->points[i];
    }
    for (int64_t g = 0; g < groups; g++) { /* now group g begins at begin[g + 1] */
        int64_t first = begin[g + 1], end = g + 1 < groups ? begin[g + 2] : series->count;
        Mean mean_x = mean_of(x + first, end - first), mean_y = mean_of(y + first, end - first);
        means[g].x = mean_x.value;
        means[g].y = mean_y.value;
        means[g].x_spread = mean_x.spread;
        means[g].y_spread = mean_y.spread;
    }
    free(series->points);
    series->points = means;
    series->count = groups;
    free(group);
    free(begin);
    free(x);
    free(y);
}

/* ---- the command -------------------------------------------------------------------- */

static bool draw(Reading *reading) {
    const Options *options = reading->options;
    for (int64_t i = 0; i < reading->series.count && options->chart.mean; i++)
        take_means(&reading->series.data[i]);
    bool named = reading->series.count > 1 ||
                 (reading->series.count == 1 && *reading->series.data[0].name);
    if (!named && reading->series.count)
        reading->series.data[0].name = options->chart.y;
    Chart chart = {
        .title = options->chart.title,
        .subtitle = options->chart.subtitle,
        .x = {options->chart.x_title ? options->chart.x_title : options->chart.x,
              options->chart.log_x ? SCALE_LOG : SCALE_AUTO},
        .y = {options->chart.y_title ? options->chart.y_title : options->chart.y,
              options->chart.log_y ? SCALE_LOG : SCALE_AUTO},
        .frontier = options->chart.frontier,
        .series = reading->series.data,
        .series_count = reading->series.count,
    };
    Text svg = {0};
    chart_svg(&chart, &svg);
    NewFile *file = new_file_open(options->output, reading->diagnostics);
    if (file)
        new_file_write(file, svg.data, svg.length);
    text_free(&svg);
    return file && new_file_publish(file, reading->diagnostics);
}

static bool check_lines(Reading *reading) {
    const char *at = reading->options->chart.lines;
    while (at && *at) {
        size_t length = strcspn(at, ",");
        const char *name = arena_strndup(reading->arena, at, length);
        bool found = false;
        ARRAY(const char *) names = {0};
        for (int64_t i = 0; i < reading->series.count; i++) {
            found |= !strcmp(reading->series.data[i].name, name);
            array_push(&names, reading->series.data[i].name);
        }
        const char *nearest = nearest_name(name, names.data, (int)names.count);
        array_free(&names);
        if (!found) {
            Diagnostic *d = error_in_file(reading->diagnostics, reading->path,
                                          "`--line-through %s`: no series is named so", name);
            if (nearest)
                help(d, "did you mean `%s`?", nearest);
            help(d, "name values of the key that `--series KEY` gives");
            return false;
        }
        at += length + (at[length] == ',');
    }
    return true;
}

static bool complain_key(Reading *reading, const char *option, const char *key,
                         const char *what) {
    Diagnostic *d = error_in_file(reading->diagnostics, reading->path,
                                  "`%s %s`: no row has %s under this key", option, key, what);
    if (reading->keys.length)
        help(d, "the first row has %s", text_string(&reading->keys));
    help(d, "a key inside an object is written `memory.peak`");
    return false;
}

/* Each key stands in some row, and some row has both numbers. */
static bool check_keys(Reading *reading) {
    const Options *options = reading->options;
    if (!reading->keys.length) {
        error_in_file(reading->diagnostics, reading->path, "there is no row in it");
        return false;
    }
    if (!reading->has_x)
        return complain_key(reading, "--x", options->chart.x, "a number");
    if (!reading->has_y)
        return complain_key(reading, "--y", options->chart.y, "a number");
    if (options->chart.series && !reading->has_series)
        return complain_key(reading, "--series", options->chart.series, "a value");
    if (options->chart.label && !reading->has_label)
        return complain_key(reading, "--label", options->chart.label, "a value");
    if (options->chart.error && !reading->has_error)
        return complain_key(reading, "--error", options->chart.error, "a number");
    if (reading->series.count)
        return true;
    help(error_in_file(reading->diagnostics, reading->path,
                       "no row has numbers under both `%s` and `%s`", options->chart.x,
                       options->chart.y),
         "name two keys that stand in one row");
    return false;
}

/* The text stays: diagnostics quote it. */
static bool chart_file(Reading *reading, char **kept) {
    size_t length;
    char *text = *kept = read_file(reading->path, MAX_CHART_BYTES, &length);
    if (!text) {
        help(error_in_file(reading->diagnostics, reading->path, "cannot be read: %s",
                           strerror(errno)),
             "name a file of JSON lines, as `colac sweep -o DIR` writes `DIR/sweep.jsonl`");
        return false;
    }
    reading->source = (Source){.name = reading->path, .text = text, .length = length};
    return read_rows(reading) && check_keys(reading) && check_lines(reading) && draw(reading);
}

int run_chart_command(Options *options) {
    if (!options->chart.x || !options->chart.y || !options->output) {
        fprintf(stderr,
                "colac chart: `--x KEY`, `--y KEY` and `-o FILE.svg` are needed: "
                "`colac chart %s`\n",
                options->command->arguments);
        return 2;
    }
    Reading reading = {.options = options,
                       .arena = arena_new(),
                       .diagnostics = diagnostics_new(),
                       .path =
                           strcmp(options->files[0], "-") ? options->files[0] : "/dev/stdin"};
    char *text = NULL;
    bool good = chart_file(&reading, &text);
    if (good && reading.unread)
        fprintf(stderr,
                "colac chart: %lld of %lld lines have no number under `%s` or `%s` and are "
                "left out\n",
                (long long)reading.unread, (long long)reading.line, options->chart.x,
                options->chart.y);
    int code = finish(reading.diagnostics);
    for (int64_t i = 0; i < reading.series.count; i++)
        free(reading.series.data[i].points);
    array_free(&reading.series);
    array_free(&reading.capacities);
    text_free(&reading.keys);
    diagnostics_free(reading.diagnostics);
    arena_free(reading.arena);
    free(text);
    return good ? code : 1;
}
