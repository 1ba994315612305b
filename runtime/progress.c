/* runtime/progress.c: what a run shows while it goes: one live line, or JSON lines. */
#include "runtime/runtime.h"

#include <math.h>
#include <unistd.h>

/* Rates are means over some twenty updates, later ones weighing more. */
static const double FORGET = 0.95;
static const double SECONDS_BETWEEN_LINES = 5, SECONDS_BETWEEN_REDRAWS = 0.1;

struct Progress {
    bool json, terminal, drawn; /* drawn: the live line stands on the screen */
    double product_flops;
    double started, shown; /* when */
    int64_t first_step;
    double tokens, seconds, flops; /* faded sums over updates */
    StepFigures last;
    bool pending; /* `last` has not been shown */
    Text line;    /* what is printed next: its memory serves again */
};

Progress *progress_new(bool json, double product_flops) {
    Progress *progress = checked_alloc(sizeof *progress);
    progress->json = json;
    progress->terminal = isatty(STDERR_FILENO);
    progress->product_flops = product_flops;
    progress->started = now_seconds();
    return progress;
}

void progress_free(Progress *progress) {
    if (progress)
        text_free(&progress->line);
    free(progress);
}

/* ---- JSON --------------------------------------------------------------------------- */

/* The shortest decimal that reads back as the same double. */
static void put_number(Text *out, const char *name, double value) {
    char digits[32];
    for (int precision = 6; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    text_printf(out, "%s\"%s\":%s", out->length > 1 ? "," : "", name,
                isfinite(value) ? digits : "null");
}

static void put_integer(Text *out, const char *name, int64_t value) {
    text_printf(out, "%s\"%s\":%lld", out->length > 1 ? "," : "", name, (long long)value);
}

static void put_json(Text *out, const StepFigures *figures) {
    out->length = 0;
    text_puts(out, "{");
    put_integer(out, "step", figures->step);
    put_number(out, "loss", figures->loss);
    put_number(out, "lr", figures->rate);
    put_number(out, "grad_norm", figures->gradient_norm);
    put_number(out, "tokens_per_s", (double)figures->tokens / figures->seconds);
    put_integer(out, "peak_bytes", figures->peak_bytes);
    if (figures->validated)
        put_number(out, "val_loss", figures->validation_loss);
    for (int i = 0; i < figures->observed_count; i++)
        put_number(out, figures->observed_names[i], figures->observed[i]);
    printf("%s}\n", text_string(out));
    fflush(stdout);
}

void progress_summary(Progress *progress, double final_loss, double validation_loss,
                      double compile_seconds) {
    progress_end(progress);
    if (!progress->json)
        return;
    Text out = {0};
    text_puts(&out, "{");
    put_number(&out, "final_loss", final_loss);
    put_number(&out, "val_loss", validation_loss);
    put_number(&out, "compile_s", compile_seconds);
    printf("%s}\n", text_string(&out));
    fflush(stdout);
    text_free(&out);
}

/* ---- the line ----------------------------------------------------------------------- */

/* 950, 12.3k, 4.56M */
static void put_count(Text *out, double count) {
    if (count < 1e4)
        text_printf(out, "%.0f", count);
    else if (count < 1e6)
        text_printf(out, "%.1fk", count / 1e3);
    else
        text_printf(out, "%.2fM", count / 1e6);
}

static void put_bytes(Text *out, int64_t bytes) {
    if (bytes < INT64_C(1) << 30)
        text_printf(out, "%.1f MiB", (double)bytes / (1 << 20));
    else
        text_printf(out, "%.2f GiB", (double)bytes / (1 << 30));
}

/* 0:07, 12:30, 3:05:00 */
static void put_duration(Text *out, double seconds) {
    int64_t s = seconds < 1e9 ? (int64_t)(seconds + 0.5) : 1000000000;
    if (s >= 3600)
        text_printf(out, "%lld:%02lld:%02lld", (long long)s / 3600, (long long)s / 60 % 60,
                    (long long)s % 60);
    else
        text_printf(out, "%lld:%02lld", (long long)s / 60, (long long)s % 60);
}

static void put_line(const Progress *progress, Text *out) {
    const StepFigures *figures = &progress->last;
    text_printf(out, "step %lld/%lld  loss %.4f", (long long)figures->step,
                (long long)figures->steps, figures->loss);
    if (!isnan(figures->validation_loss))
        text_printf(out, "  val %.4f", figures->validation_loss);
    for (int i = 0; i < figures->observed_count; i++)
        text_printf(out, "  %s %.4g", figures->observed_names[i], figures->observed[i]);
    text_puts(out, "  ");
    put_count(out, progress->tokens / progress->seconds);
    text_puts(out, " tok/s");
    if (progress->product_flops > 0 && progress->flops > 0)
        text_printf(out, "  %.0f%% of peak",
                    100 * progress->flops / progress->seconds / progress->product_flops);
    text_puts(out, "  ");
    put_bytes(out, figures->peak_bytes);
    int64_t done = figures->step - progress->first_step + 1;
    double elapsed = now_seconds() - progress->started;
    text_puts(out, "  ");
    put_duration(out, elapsed / (double)done * (double)(figures->steps - figures->step));
    text_puts(out, " left");
}

static void show(Progress *progress) {
    Text *line = &progress->line;
    line->length = 0;
    put_line(progress, line);
    if (progress->terminal)
        fprintf(stderr, "\r%s\033[K", text_string(line));
    else
        fprintf(stderr, "%s\n", text_string(line));
    fflush(stderr);
    progress->drawn = progress->terminal;
    progress->pending = false;
    progress->shown = now_seconds();
}

void progress_step(Progress *progress, const StepFigures *figures) {
    if (!progress->first_step)
        progress->first_step = figures->step;
    progress->last = *figures;
    progress->tokens = FORGET * progress->tokens + (double)figures->tokens;
    progress->seconds = FORGET * progress->seconds + figures->seconds;
    progress->flops = FORGET * progress->flops + figures->flops;
    progress->pending = true;
    if (progress->json)
        put_json(&progress->line, figures);
    else if (now_seconds() - progress->shown >=
             (progress->terminal ? SECONDS_BETWEEN_REDRAWS : SECONDS_BETWEEN_LINES))
        show(progress);
}

void progress_end(Progress *progress) {
    if (progress->pending && !progress->json)
        show(progress);
    if (progress->drawn)
        fputc('\n', stderr);
    progress->drawn = progress->pending = false;
}
