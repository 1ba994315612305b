/* Pictures of measurements as SVG: axes, series of points, error bars, the Pareto frontier,
 * labels that keep out of each other's way.  Coordinates are pixels, y downward. */
#include "driver/driver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 800,
    PLOT_HEIGHT = 380,
    MARGIN = 28,     /* right of the plot, and left of everything */
    BELOW = 56,      /* the plot: tick labels, the axis's title */
    LEGEND_ROW = 20, /* height */
    MAX_TICKS = 9,
    MAX_LABELS = 200,
    MAX_TEXT = 110, /* characters of a name or title; what is longer is cut */
    COLOURS = 8,
    SHAPES = 8
};
static const double CHARACTER = 6.3, LINE = 13; /* of a label: mean width, height */
static const double RADIUS = 5;                 /* of a point */
/* Values beyond are left out: their ranges could not be told apart, or overflow. */
static const double LARGEST = 1e100, SMALLEST = 1e-100;
static const double LOG_FROM = 20; /* SCALE_AUTO: largest over smallest value */

/* ---- texts -------------------------------------------------------------------------- */

/* The length of the UTF-8 character at `at`, 0 for what is none or no character of XML. */
static int character_length(const unsigned char *at) {
    if (at[0] < 0x80)
        return at[0] >= 0x20 || at[0] == '\t' || at[0] == '\n';
    int length = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
    uint32_t code = at[0] & (0x7fU >> length);
    for (int i = 1; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (at[i] & 0x3fU);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    bool good = at[0] >= 0xc2 && at[0] < 0xf5 && code >= least[length] && code < 0x110000 &&
                (code < 0xd800 || code > 0xdfff) && code != 0xfffe && code != 0xffff;
    return good ? length : 0;
}

/* At most `most` characters; 0: all. */
static void escape_some(const char *text, int most, Text *out) {
    const unsigned char *at = (const unsigned char *)text;
    for (int count = 0; *at; count++) {
        if (most && count == most) {
            text_puts(out, "…");
            return;
        }
        int length = character_length(at);
        if (!length)
            text_puts(out, "?");
        else if (*at == '&')
            text_puts(out, "&amp;");
        else if (*at == '<')
            text_puts(out, "&lt;");
        else if (*at == '>')
            text_puts(out, "&gt;");
        else if (*at == '"')
            text_puts(out, "&quot;");
        else
            text_append(out, (const char *)at, (size_t)length);
        at += length ? length : 1;
    }
}

void xml_escape(const char *text, Text *out) {
    escape_some(text, 0, out);
}

/* As shown: cut, in pixels of the labels' size. */
static double text_width(const char *text) {
    int count = 0;
    for (const char *at = text; *at && count <= MAX_TEXT; at++)
        count += ((unsigned char)*at & 0xc0) != 0x80;
    return count * CHARACTER;
}

/* ---- units -------------------------------------------------------------------------- */

typedef struct Prefix {
    const char *name;
    double factor;
} Prefix;
static const Prefix decimal[] = {{"", 1},     {"k", 1e3},  {"M", 1e6},  {"G", 1e9}, {"T", 1e12},
                                 {"P", 1e15}, {"E", 1e18}, {"Z", 1e21}, {"Y", 1e24}};
static const Prefix binary[] = {{"", 1},
                                {"Ki", 1024.0},
                                {"Mi", 1048576.0},
                                {"Gi", 1073741824.0},
                                {"Ti", 1099511627776.0},
                                {"Pi", 1125899906842624.0}};
static const Prefix small[] = {{"n", 1e-9}, {"µ", 1e-6}, {"m", 1e-3}, {"", 1}};

static const struct {
    const char *unit;
    const Prefix *prefixes;
    int count;
} unit_list[] = {
    {"FLOP", decimal, COUNT_OF(decimal)},
    {"FLOP/s", decimal, COUNT_OF(decimal)},
    {"FLOP a token", decimal, COUNT_OF(decimal)},
    {"B", binary, COUNT_OF(binary)},
    {"s", small, COUNT_OF(small)},
};

/* The largest prefix that leaves `value` at least 1; the smallest there is for less. */
static Prefix prefix_for(const Prefix *prefixes, int count, double value) {
    int best = 0;
    for (int i = 1; i < count; i++)
        if (value >= prefixes[i].factor)
            best = i;
    return prefixes[best];
}

/* Where the unit of `peak memory (B)` begins: its parenthesis; NULL without one. */
static const char *unit_of(const char *title) {
    const char *open = strrchr(title, '(');
    size_t length = strlen(title);
    return open && length && title[length - 1] == ')' ? open : NULL;
}

static Prefix prefix_of(const char *title, double value) {
    const char *open = unit_of(title);
    for (int i = 0; open && i < COUNT_OF(unit_list); i++) {
        size_t length = strlen(unit_list[i].unit);
        if (strlen(open) == length + 2 && !strncmp(open + 1, unit_list[i].unit, length))
            return prefix_for(unit_list[i].prefixes, unit_list[i].count, value);
    }
    return (Prefix){"", 1};
}

/* `peak memory (MiB)`: the title with its unit's prefix. */
static void put_title(const char *title, const char *prefix, Text *out) {
    const char *open = unit_of(title);
    Text whole = {0};
    if (open && *prefix)
        text_printf(&whole, "%.*s(%s%s", (int)(open - title), title, prefix, open + 1);
    else
        text_puts(&whole, title);
    escape_some(text_string(&whole), MAX_TEXT, out);
    text_free(&whole);
}

/* 0.25, 1500, 58M, 3e-4 */
static void put_number(double value, Text *out) {
    double size = fabs(value);
    char digits[48];
    if (size >= 1e4 && size < 1e15) {
        Prefix prefix = prefix_for(decimal, COUNT_OF(decimal), size);
        text_printf(out, "%.6g%s", value / prefix.factor, prefix.name);
        return;
    }
    snprintf(digits, sizeof digits, "%.6g", value);
    char *exponent = strchr(digits, 'e');
    if (size > 0 && size < 1e-3 && !exponent) {
        snprintf(digits, sizeof digits, "%.5e", value);
        exponent = strchr(digits, 'e');
        char *last = exponent - 1;
        while (*last == '0' || *last == '.')
            *last-- = 0;
        text_printf(out, "%s", digits);
    } else {
        text_printf(out, "%.*s", exponent ? (int)(exponent - digits) : 48, digits);
    }
    if (exponent)
        text_printf(out, "e%d", atoi(exponent + 1));
}

/* ---- axes --------------------------------------------------------------------------- */

typedef struct Scale {
    const char *title;
    bool log;
    Prefix unit;
    double low, high; /* the range, in units; logarithms of them on a log axis */
    double from, to;  /* pixels */
    double ticks[MAX_TICKS + 1];
    int tick_count;
} Scale;

static bool usable(double value, bool log) {
    return isfinite(value) && fabs(value) <= LARGEST && (!log || value >= SMALLEST);
}

static double place(const Scale *scale, double value) {
    double units = value / scale->unit.factor;
    double at = ((scale->log ? log10(units) : units) - scale->low) / (scale->high - scale->low);
    at = at < -0.5 ? -0.5 : at > 1.5 ? 1.5 : at; /* the far end of an error bar */
    return scale->from + at * (scale->to - scale->from);
}

typedef struct Range {
    double low, high;
    bool any;
} Range;

static void widen(Range *range, double value) {
    range->low = !range->any || value < range->low ? value : range->low;
    range->high = !range->any || value > range->high ? value : range->high;
    range->any = true;
}

static double value_of(const ChartPoint *point, bool vertical) {
    return vertical ? point->y : point->x;
}

static Range range_of(const Chart *chart, bool vertical, bool log) {
    Range range = {0};
    for (int64_t s = 0; s < chart->series_count; s++)
        for (int64_t i = 0; i < chart->series[s].count; i++) {
            const ChartPoint *point = &chart->series[s].points[i];
            double value = value_of(point, vertical);
            double spread = vertical ? point->y_spread : point->x_spread;
            if (!usable(value, log))
                continue;
            widen(&range, value);
            if (usable(value - spread, log) && usable(value + spread, log)) {
                widen(&range, value - spread);
                widen(&range, value + spread);
            }
        }
    return range;
}

/* 1, 2 or 5 times a power of ten, at least `least`. */
static double round_step(double least) {
    double power = pow(10, floor(log10(least)));
    static const double steps[] = {1, 2, 5, 10};
    int i = 0;
    while (i < COUNT_OF(steps) - 1 && steps[i] * power < least * (1 - 1e-9))
        i++;
    return steps[i] * power;
}

/* Round values between low and high, in units. */
static void linear_ticks(Scale *scale, double low, double high) {
    double step = round_step((high - low) / 7);
    scale->tick_count = 0;
    for (double i = ceil(low / step - 1e-9);
         i * step <= high + step * 1e-9 && scale->tick_count < MAX_TICKS; i++)
        scale->ticks[scale->tick_count++] = i * step;
}

/* Does the digit stand on the axis when there are so many of each decade? */
static bool is_marked(int digit, int density) {
    static const char *const marked[] = {"1", "1.5", "12.5", "123.57"};
    return strchr(marked[density], '0' + digit) != NULL;
}

/* The densest of 1; 1, 5; 1, 2, 5; 1, 2, 3, 5, 7 of every decade that there is room for; of
 * many
 * decades every second, third, …  Where that gives too few, round values as on a linear axis. */
static void log_ticks(Scale *scale) {
    double decades = scale->high - scale->low;
    int density = decades <= 1.5 ? 3 : decades <= 2.5 ? 2 : decades <= 4 ? 1 : 0;
    int every = 1 + (int)(decades / MAX_TICKS);
    scale->tick_count = 0;
    int first = (int)floor(scale->low), last = (int)ceil(scale->high);
    for (int power = first; power <= last; power++)
        for (int digit = 1; digit < 10; digit++) {
            double at = power + log10(digit);
            if (is_marked(digit, density) && (power - first) % every == 0 &&
                at >= scale->low - 1e-9 && at <= scale->high + 1e-9 &&
                scale->tick_count < MAX_TICKS)
                scale->ticks[scale->tick_count++] = digit * pow(10, power);
        }
    if (scale->tick_count < 3)
        linear_ticks(scale, pow(10, scale->low), pow(10, scale->high));
}

static Scale scale_of(const Chart *chart, bool vertical) {
    const ChartAxis *axis = vertical ? &chart->y : &chart->x;
    Range range = range_of(chart, vertical, false);
    Scale scale = {.title = axis->title, .log = axis->scale == SCALE_LOG};
    if (axis->scale == SCALE_AUTO)
        scale.log = range.any && range.low >= SMALLEST && range.high / range.low >= LOG_FROM;
    if (scale.log)
        range = range_of(chart, vertical, true);
    if (!range.any)
        range = (Range){1, 10, true};
    scale.unit = prefix_of(axis->title, scale.log ? sqrt(range.low) * sqrt(range.high)
                                                  : fmax(fabs(range.low), fabs(range.high)));
    scale.low = range.low / scale.unit.factor;
    scale.high = range.high / scale.unit.factor;
    if (scale.log) {
        scale.low = log10(scale.low);
        scale.high = log10(scale.high);
        double least = 0.08, missing = least - (scale.high - scale.low); /* 20% of a value */
        scale.low -= missing > 0 ? missing / 2 : 0;
        scale.high += missing > 0 ? missing / 2 : 0;
    } else if (scale.high - scale.low < 1e-6 * fmax(fabs(scale.low), fabs(scale.high)) ||
               scale.high - scale.low < SMALLEST) {
        double half = fmax(fabs(scale.low), fabs(scale.high)) / 20;
        half = half < SMALLEST ? 1 : half;
        scale.low -= half;
        scale.high += half;
    } else if (scale.low > 0 && scale.low < scale.high * 0.3) {
        scale.low = 0; /* zero is near: lengths then compare */
    }
    double pad = (scale.high - scale.low) * 0.07;
    scale.low -= scale.low == 0 && !scale.log ? 0 : pad;
    scale.high += pad;
    if (scale.log)
        log_ticks(&scale);
    else
        linear_ticks(&scale, scale.low, scale.high);
    return scale;
}

/* ---- the drawing -------------------------------------------------------------------- */

typedef struct Box {
    double left, top, right, bottom;
} Box;

typedef struct Drawing {
    const Chart *chart;
    Text *out;
    Scale x, y;
    double left, top, right, bottom; /* of the plot */
    double height;                   /* of all */
    ARRAY(Box) taken;                /* where labels must not go: points and labels */
    int64_t omitted;                 /* points that cannot be shown */
} Drawing;

/* Colours on a light and on a dark ground: the ground, text, quiet text, the grid, series.
 * Those of series contrast with the ground by a factor of 3, and any two are 23 units of L*a*b*
 * or more apart (28 but for blue weakness) to eyes that see all colours and to those that lack
 * one kind of cone. */
enum { GROUND, INK, QUIET, GRID, SERIES };
static const char *const palettes[2][SERIES + COLOURS] = {
    {"#ffffff", "#24292f", "#5b6570", "#e3e6ea", "#0072b2", "#d55e00", "#8100ff", "#642a37",
     "#a88a68", "#822200", "#2529a1", "#8990a0"},
    {"#15181d", "#e6e9ed", "#a2abb5", "#2d333b", "#4ba6e6", "#ff8a3d", "#ecc3a4", "#846157",
     "#6c668a", "#a15323", "#b21eff", "#aac0d0"},
};

/* Without custom properties, which not every program that shows SVG knows. */
static void put_colours(const char *const *palette, Text *out) {
    text_printf(out, ".cc text{fill:%s}.cc .m{fill:%s}.cc .b{fill:%s}.cc .l{stroke:%s}\n",
                palette[INK], palette[QUIET], palette[GROUND], palette[GROUND]);
    text_printf(out, ".cc .g{stroke:%s}.cc .a,.cc .f,.cc .k{stroke:%s}\n", palette[GRID],
                palette[QUIET]);
    for (int i = 0; i < COLOURS; i++)
        text_printf(out, ".cc .p%d{fill:%s;stroke:%s}.cc .s%d{stroke:%s}\n", i,
                    palette[SERIES + i], palette[GROUND], i, palette[SERIES + i]);
}

static void put_style(Text *out) {
    text_puts(out,
              "<style>\n.cc text{font:12px sans-serif}.cc .h{font-size:16px;font-weight:600}\n"
              ".cc .l{font-size:11px;paint-order:stroke;stroke-width:3px;"
              "stroke-linejoin:round}\n"
              ".cc .g,.cc .a,.cc .f,.cc .k,.cc .s{fill:none}.cc .s{stroke-width:1.6}"
              ".cc .f{stroke-width:1.5;stroke-dasharray:5 4}.cc .k{stroke-width:.7}\n");
    put_colours(palettes[0], out);
    text_puts(out, "@media(prefers-color-scheme:dark){\n");
    put_colours(palettes[1], out);
    text_puts(out, "}\n</style>\n");
}

static int colour_of(int64_t series) {
    return (int)(series % COLOURS);
}

/* Another shape when the colours come round. */
static int shape_of(int64_t series) {
    return (int)((series + series / COLOURS) % SHAPES);
}

/* A closed outline around (x, y).  Unlike in outline, not only in turn, so that small ones can
 * be told apart. */
static void put_marker(double x, double y, int64_t series, Text *out) {
    static const double outlines[SHAPES][24] = {
        {0},
        {-.9, -.9, .9, -.9, .9, .9, -.9, .9},
        {0, -1.2, 1.15, .85, -1.15, .85},
        {0, -1.3, 1.3, 0, 0, 1.3, -1.3, 0},
        {0, 1.2, 1.15, -.85, -1.15, -.85},
        {-.4, -1.2, .4,  -1.2, .4,  -.4, 1.2,  -.4, 1.2,  .4,  .4,  .4,
         .4,  1.2,  -.4, 1.2,  -.4, .4,  -1.2, .4,  -1.2, -.4, -.4, -.4},
        {-1.1, -.6, -.6, -1.1, 0, -.5, .6,  -1.1, 1.1,  -.6, .5,  0,
         1.1,  .6,  .6,  1.1,  0, .5,  -.6, 1.1,  -1.1, .6,  -.5, 0},
        {-1.2, -.6, 1.2, -.6, 1.2, .6, -1.2, .6},
    };
    static const int corners[SHAPES] = {0, 4, 3, 4, 3, 12, 12, 4};
    int shape = shape_of(series), colour = colour_of(series);
    if (!corners[shape]) {
        text_printf(out, "<circle class=\"p%d\" cx=\"%.2f\" cy=\"%.2f\" r=\"%.1f\"", colour, x,
                    y, RADIUS);
        return;
    }
    text_printf(out, "<path class=\"p%d\" d=\"", colour);
    const double *outline = outlines[shape];
    for (int i = 0; i < corners[shape]; i++, outline += 2)
        text_printf(out, "%s%.2f %.2f", i ? "L" : "M", x + RADIUS * outline[0],
                    y + RADIUS * outline[1]);
    text_puts(out, "Z\"");
}

static void put_line(Text *out, const char *class, double x1, double y1, double x2, double y2) {
    text_printf(out, "<path class=\"%s\" d=\"M%.2f %.2fL%.2f %.2f\"/>\n", class, x1, y1, x2,
                y2);
}

static void put_text(Text *out, const char *class, const char *anchor, double x, double y,
                     const char *text) {
    text_printf(out, "<text class=\"%s\" text-anchor=\"%s\" x=\"%.2f\" y=\"%.2f\">", class,
                anchor, x, y);
    escape_some(text, MAX_TEXT, out);
    text_puts(out, "</text>\n");
}

/* ---- frame and legend --------------------------------------------------------------- */

/* Lays the legend out from y on, and draws it where `out` is not NULL.  The y below it. */
static double legend(const Chart *chart, double y, Text *out) {
    double x = MARGIN;
    for (int64_t s = 0; s <= chart->series_count; s++) {
        bool frontier = s == chart->series_count;
        if (frontier && !chart->frontier)
            break;
        const char *name = frontier ? "Pareto frontier" : chart->series[s].name;
        double width = 26 + text_width(name) * 1.08 + 14;
        if (x > MARGIN && x + width > WIDTH - MARGIN) {
            x = MARGIN;
            y += LEGEND_ROW;
        }
        if (out && frontier)
            put_line(out, "f", x, y + 10, x + 20, y + 10);
        if (out && !frontier) {
            char class[16];
            snprintf(class, sizeof class, "s s%d", colour_of(s));
            if (chart->series[s].line)
                put_line(out, class, x, y + 10, x + 20, y + 10);
            put_marker(x + 10, y + 10, s, out);
            text_puts(out, "/>\n");
        }
        if (out)
            put_text(out, "n", "start", x + 26, y + 14, name);
        x += width;
    }
    return y + LEGEND_ROW + 6;
}

static double widest_tick(const Scale *scale) {
    double widest = 0;
    for (int i = 0; i < scale->tick_count; i++) {
        Text number = {0};
        put_number(scale->ticks[i], &number);
        widest = fmax(widest, text_width(text_string(&number)));
        text_free(&number);
    }
    return widest;
}

static void draw_ticks(Drawing *drawing) {
    Text *out = drawing->out;
    const Scale *x = &drawing->x, *y = &drawing->y;
    for (int i = 0; i < x->tick_count; i++) {
        double at = place(x, x->ticks[i] * x->unit.factor);
        Text number = {0};
        put_number(x->ticks[i], &number);
        put_line(out, "g", at, drawing->top, at, drawing->bottom);
        put_text(out, "m", "middle", at, drawing->bottom + 18, text_string(&number));
        text_free(&number);
    }
    for (int i = 0; i < y->tick_count; i++) {
        double at = place(y, y->ticks[i] * y->unit.factor);
        Text number = {0};
        put_number(y->ticks[i], &number);
        put_line(out, "g", drawing->left, at, drawing->right, at);
        put_text(out, "m", "end", drawing->left - 8, at + 4, text_string(&number));
        text_free(&number);
    }
    text_printf(out, "<path class=\"a\" d=\"M%.2f %.2fL%.2f %.2fL%.2f %.2f\"/>\n",
                drawing->left, drawing->top, drawing->left, drawing->bottom, drawing->right,
                drawing->bottom);
}

static void draw_axis_titles(Drawing *drawing) {
    Text *out = drawing->out;
    double middle = (drawing->top + drawing->bottom) / 2;
    text_printf(out, "<text text-anchor=\"middle\" x=\"%.2f\" y=\"%.2f\">",
                (drawing->left + drawing->right) / 2, drawing->bottom + 42);
    put_title(drawing->x.title, drawing->x.unit.name, out);
    text_printf(out,
                "%s</text>\n<text text-anchor=\"middle\" x=\"20\" y=\"%.2f\" "
                "transform=\"rotate(-90 20 %.2f)\">",
                drawing->x.log ? ", log" : "", middle, middle);
    put_title(drawing->y.title, drawing->y.unit.name, out);
    text_printf(out, "%s</text>\n", drawing->y.log ? ", log" : "");
}

/* ---- points ------------------------------------------------------------------------- */

static bool is_shown(const Drawing *drawing, const ChartPoint *point) {
    return usable(point->x, drawing->x.log) && usable(point->y, drawing->y.log);
}

static int by_place(const void *a, const void *b) {
    const ChartPoint *p = a, *q = b;
    int by_x = (p->x > q->x) - (p->x < q->x);
    return by_x ? by_x : (p->y > q->y) - (p->y < q->y);
}

/* The points of series [first, last) that are shown, ascending by x; malloc'ed. */
static ChartPoint *sorted_points(const Drawing *drawing, int64_t first, int64_t last,
                                 int64_t *count) {
    ARRAY(ChartPoint) points = {0};
    for (int64_t s = first; s < last; s++)
        for (int64_t i = 0; i < drawing->chart->series[s].count; i++)
            if (is_shown(drawing, &drawing->chart->series[s].points[i]))
                array_push(&points, drawing->chart->series[s].points[i]);
    if (points.count)
        qsort(points.data, (size_t)points.count, sizeof *points.data, by_place);
    *count = points.count;
    return points.data;
}

/* Labels keep clear of an upright or level line. */
static void take_line(Drawing *drawing, double x1, double y1, double x2, double y2) {
    array_push(&drawing->taken,
               ((Box){fmin(x1, x2) - 2, fmin(y1, y2) - 2, fmax(x1, x2) + 2, fmax(y1, y2) + 2}));
}

/* From the upper edge down to the first point that none beats, and in stairs to the right. */
static void draw_frontier(Drawing *drawing) {
    int64_t count;
    ChartPoint *points = sorted_points(drawing, 0, drawing->chart->series_count, &count);
    double best = 0, end = 0, height = drawing->top; /* end: x of the last stair */
    Text *out = drawing->out;
    for (int64_t i = 0; i < count; i++) {
        if (i && points[i].y >= best)
            continue;
        double x = place(&drawing->x, points[i].x), y = place(&drawing->y, points[i].y);
        text_printf(out, "%s%.2f %.2fL%.2f %.2f", i ? "L" : "<path class=\"f\" d=\"M", x,
                    height, x, y);
        if (i)
            take_line(drawing, end, height, x, height);
        take_line(drawing, x, height, x, y);
        best = points[i].y;
        height = y;
        end = x;
    }
    if (count) {
        text_printf(out, "L%.2f %.2f\"/>\n", drawing->right, height);
        take_line(drawing, end, height, drawing->right, height);
    }
    free(points);
}

static void draw_joined(Drawing *drawing, int64_t series) {
    int64_t count;
    ChartPoint *points = sorted_points(drawing, series, series + 1, &count);
    if (count > 1) {
        text_printf(drawing->out, "<path class=\"s s%d\" d=\"", colour_of(series));
        for (int64_t i = 0; i < count; i++)
            text_printf(drawing->out, "%s%.2f %.2f", i ? "L" : "M",
                        place(&drawing->x, points[i].x), place(&drawing->y, points[i].y));
        text_puts(drawing->out, "\"/>\n");
    }
    free(points);
}

/* Where `value` moved by `spread` is; the plot's edge where a log axis has no such value. */
static double bar_end(const Scale *scale, double value, double spread) {
    return usable(value + spread, scale->log) ? place(scale, value + spread) : scale->from;
}

static void draw_bars(Drawing *drawing, int64_t series, const ChartPoint *point) {
    double x = place(&drawing->x, point->x), y = place(&drawing->y, point->y), cap = 4;
    char class[16];
    snprintf(class, sizeof class, "s s%d", colour_of(series));
    if (point->y_spread > 0) {
        double low = bar_end(&drawing->y, point->y, -point->y_spread);
        double high = bar_end(&drawing->y, point->y, point->y_spread);
        put_line(drawing->out, class, x, low, x, high);
        take_line(drawing, x, low, x, high);
        put_line(drawing->out, class, x - cap, low, x + cap, low);
        put_line(drawing->out, class, x - cap, high, x + cap, high);
    }
    if (point->x_spread > 0) {
        double low = bar_end(&drawing->x, point->x, -point->x_spread);
        double high = bar_end(&drawing->x, point->x, point->x_spread);
        put_line(drawing->out, class, low, y, high, y);
        take_line(drawing, low, y, high, y);
        put_line(drawing->out, class, low, y - cap, low, y + cap);
        put_line(drawing->out, class, high, y - cap, high, y + cap);
    }
}

static void put_value(const Scale *scale, double value, double spread, Text *out) {
    text_puts(out, "\n");
    put_title(scale->title, scale->unit.name, out);
    text_printf(out, ": %.5g", value / scale->unit.factor);
    if (spread > 0)
        text_printf(out, " ± %.3g", spread / scale->unit.factor);
}

static void draw_point(Drawing *drawing, int64_t series, const ChartPoint *point) {
    double x = place(&drawing->x, point->x), y = place(&drawing->y, point->y);
    Text *out = drawing->out;
    put_marker(x, y, series, out);
    text_puts(out, "><title>");
    if (point->note) {
        xml_escape(point->note, out);
    } else {
        const ChartSeries *owner = &drawing->chart->series[series];
        escape_some(point->label ? point->label : owner->name, MAX_TEXT, out);
        put_value(&drawing->x, point->x, point->x_spread, out);
        put_value(&drawing->y, point->y, point->y_spread, out);
    }
    text_printf(out, "</title></%s>\n", shape_of(series) ? "path" : "circle");
    array_push(&drawing->taken,
               ((Box){x - RADIUS - 1, y - RADIUS - 1, x + RADIUS + 1, y + RADIUS + 1}));
}

/* ---- labels ------------------------------------------------------------------------- */

static double overlap(Box a, Box b) {
    double width = fmin(a.right, b.right) - fmax(a.left, b.left);
    double height = fmin(a.bottom, b.bottom) - fmax(a.top, b.top);
    return width > 0 && height > 0 ? width * height : 0;
}

/* How bad a place is: what it covers, and how much of it is outside. */
static double cost_of(const Drawing *drawing, Box box) {
    Box whole = {drawing->left + 2, drawing->top - 8, WIDTH - 4, drawing->bottom - 2};
    double area = (box.right - box.left) * (box.bottom - box.top);
    double cost = 4 * (area - overlap(box, whole));
    for (int64_t i = 0; i < drawing->taken.count; i++)
        cost += overlap(box, drawing->taken.data[i]);
    return cost;
}

/* Right, above, below, left, then the corners; then the same further off. */
static Box nearest_free(const Drawing *drawing, double x, double y, double width) {
    static const int sides[][2] = {{1, 0},  {0, -1},  {0, 1}, {-1, 0},
                                   {1, -1}, {-1, -1}, {1, 1}, {-1, 1}};
    Box best = {0};
    double least = INFINITY;
    for (int ring = 0; ring < 4; ring++)
        for (int i = 0; i < COUNT_OF(sides); i++) {
            double gap = RADIUS + 3 + ring * 12, half = width / 2;
            double middle = x + sides[i][0] * (gap + half);
            double center = y + sides[i][1] * (gap + LINE / 2);
            Box box = {middle - half, center - LINE / 2, middle + half, center + LINE / 2};
            double cost = cost_of(drawing, box) + ring * 2 + i * 0.1;
            if (cost < least) {
                least = cost;
                best = box;
            }
        }
    return best;
}

static void draw_label(Drawing *drawing, const ChartPoint *point) {
    double x = place(&drawing->x, point->x), y = place(&drawing->y, point->y);
    Box box = nearest_free(drawing, x, y, text_width(point->label));
    double nearest_x = fmin(fmax(x, box.left), box.right);
    double nearest_y = fmin(fmax(y, box.top), box.bottom);
    if (hypot(nearest_x - x, nearest_y - y) > 2.5 * RADIUS)
        put_line(drawing->out, "k", x, y, nearest_x, nearest_y);
    put_text(drawing->out, "l", "middle", (box.left + box.right) / 2, box.bottom - 3,
             point->label);
    array_push(&drawing->taken, box);
}

/* ---- all ---------------------------------------------------------------------------- */

/* Labels come last: they keep clear of every point. */
static void draw_series(Drawing *drawing) {
    const Chart *chart = drawing->chart;
    for (int64_t s = 0; s < chart->series_count; s++)
        if (chart->series[s].line)
            draw_joined(drawing, s);
    for (int layer = 0; layer < 3; layer++) {
        int labels = 0;
        for (int64_t s = 0; s < chart->series_count; s++)
            for (int64_t i = 0; i < chart->series[s].count; i++) {
                const ChartPoint *point = &chart->series[s].points[i];
                if (!is_shown(drawing, point))
                    drawing->omitted += layer == 0;
                else if (layer == 0)
                    draw_bars(drawing, s, point);
                else if (layer == 1)
                    draw_point(drawing, s, point);
                else if (point->label && labels++ < MAX_LABELS)
                    draw_label(drawing, point);
            }
    }
}

static void lay_out(Drawing *drawing) {
    const Chart *chart = drawing->chart;
    double y = chart->title ? 36 : 12;
    y += chart->subtitle ? 18 : 0;
    drawing->x = scale_of(chart, false);
    drawing->y = scale_of(chart, true);
    drawing->left = 44 + widest_tick(&drawing->y);
    drawing->right = WIDTH - MARGIN;
    drawing->top = legend(chart, y, NULL) + 4;
    drawing->bottom = drawing->top + PLOT_HEIGHT;
    drawing->height = drawing->bottom + BELOW + 16; /* a line for what is left out */
    drawing->x.from = drawing->left;
    drawing->x.to = drawing->right;
    drawing->y.from = drawing->bottom;
    drawing->y.to = drawing->top;
}

static void put_head(const Drawing *drawing) {
    Text *out = drawing->out;
    const Chart *chart = drawing->chart;
    text_printf(out,
                "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"cc\" role=\"img\" "
                "viewBox=\"0 0 %d %.0f\" width=\"%d\" height=\"%.0f\">\n<title>",
                WIDTH, drawing->height, WIDTH, drawing->height);
    escape_some(chart->title ? chart->title : chart->y.title, MAX_TEXT, out);
    text_puts(out, "</title>\n");
    put_style(out);
    text_printf(out, "<rect class=\"b\" width=\"%d\" height=\"%.0f\"/>\n", WIDTH,
                drawing->height);
    if (chart->title)
        put_text(out, "h", "start", MARGIN, 28, chart->title);
    if (chart->subtitle)
        put_text(out, "m", "start", MARGIN, chart->title ? 47 : 22, chart->subtitle);
    legend(chart, (chart->title ? 36 : 12) + (chart->subtitle ? 18 : 0), out);
}

void chart_svg(const Chart *chart, Text *out) {
    Drawing drawing = {.chart = chart, .out = out};
    lay_out(&drawing);
    put_head(&drawing);
    draw_ticks(&drawing);
    draw_axis_titles(&drawing);
    if (chart->frontier)
        draw_frontier(&drawing);
    draw_series(&drawing);
    if (drawing.omitted) {
        char line[128];
        snprintf(line, sizeof line, "%lld %s no place on these axes and %s not shown",
                 (long long)drawing.omitted, drawing.omitted == 1 ? "point has" : "points have",
                 drawing.omitted == 1 ? "is" : "are");
        put_text(out, "m", "end", WIDTH - MARGIN, drawing.height - 8, line);
    }
    text_puts(out, "</svg>\n");
    array_free(&drawing.taken);
}
