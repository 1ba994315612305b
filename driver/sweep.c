/* colac sweep: every combination of plans and values, compiled, and trained where there is
 * data, one after the other in this process.  What is known of a combination and seed is one
 * JSON object, a *row*; rows of an earlier sweep are taken over where everything that they
 * depend on is the same. */
#include "driver/driver.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ROWS = 10000, MAX_PLANS = 64, MAX_VALUES = 1000 };
#define MAX_TABLE_BYTES ((size_t)256 << 20)

/* ---- what is asked ------------------------------------------------------------------ */

typedef struct Sweep {
    const Options *options;
    Arena *arena;
    int plan_count;
    const char *plans[MAX_PLANS]; /* NULL: no plan */
    SweepTable table;
    uint64_t data_hash;
    json_t *earlier;          /* rows of DIR/sweep.jsonl */
    MachineProfile *machine;  /* NULL: no times are predicted */
    double measuring_seconds; /* of a combination's products, at most */
    bool failed;              /* a row or a file could not be had */
} Sweep;

static bool wrong(const char *format, ...) PRINTF_LIKE(1, 2);
static bool wrong(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "colac sweep: ");
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return false;
}

/* Splits at commas outside of parentheses; false after saying what is wrong. */
static bool split(Sweep *sweep, const char *option, const char *list, const char **parts,
                  int most, int *count) {
    *count = 0;
    for (const char *at = list;; at++) {
        const char *begin = at;
        for (int depth = 0; *at && (*at != ',' || depth > 0); at++)
            depth += (*at == '(') - (*at == ')');
        if (at == begin)
            return wrong(
                "the list `%s` of `%s` has an empty place: write values between commas", list,
                option);
        if (*count == most)
            return wrong("`%s` has more than %d values", option, most);
        const char *part = arena_strndup(sweep->arena, begin, (size_t)(at - begin));
        for (int i = 0; i < *count; i++)
            if (!strcmp(parts[i], part))
                return wrong("`%s %s` has `%s` twice", option, list, part);
        parts[(*count)++] = part;
        if (!*at)
            return true;
    }
}

static bool add_choice(Sweep *sweep, const char *option, const char *name, const char *list) {
    SweepTable *table = &sweep->table;
    for (int i = 0; i < table->choice_count; i++)
        if (!strcmp(table->choices[i].name, name))
            return wrong("the values of `%s` are given twice", name);
    for (int i = 0; i < sweep->options->request.define_count; i++)
        if (!strcmp(sweep->options->defines[i].name, name))
            return wrong("`%s` is given by `-D` and by `%s`", name, option);
    if (table->choice_count == MAX_OVER)
        return wrong("more than %d names to go through", MAX_OVER);
    SweepChoice *choice = &table->choices[table->choice_count++];
    choice->name = name;
    choice->values = arena_alloc_array(sweep->arena, MAX_VALUES, sizeof *choice->values);
    return split(sweep, option, list, choice->values, MAX_VALUES, &choice->count);
}

static bool read_request(Sweep *sweep) {
    const Options *options = sweep->options;
    sweep->plan_count = 1;
    if (options->request.plan && !split(sweep, "--plan", options->request.plan, sweep->plans,
                                        MAX_PLANS, &sweep->plan_count))
        return false;
    if (options->rank && !add_choice(sweep, "--rank", "R", options->rank))
        return false;
    for (int i = 0; i < options->over_count; i++) {
        const char *over = options->over[i], *equals = strchr(over, '=');
        const char *name = arena_strndup(sweep->arena, over, (size_t)(equals - over));
        if (!add_choice(sweep, "--over", name, equals + 1))
            return false;
    }
    double rows = sweep->plan_count * (options->seed_count ? options->seed_count : 1);
    for (int i = 0; i < sweep->table.choice_count; i++)
        rows *= sweep->table.choices[i].count;
    if (rows > MAX_ROWS)
        return wrong("these are %.0f runs; %d is the most", rows, MAX_ROWS);
    if (!options->data && (options->steps || options->seed_count))
        return wrong("`%s` is for training: `--data PATH` is needed",
                     options->steps ? "--steps" : "--seeds");
    if (options->keep_runs && (!options->output || !options->data))
        return wrong("`--keep-runs` keeps trained weights: `--data PATH` and `-o DIR` are "
                     "needed");
    return true;
}

/* ---- combinations ------------------------------------------------------------------- */

/* A plan and a value for each choice; NULL: the plan has no such name. */
typedef struct Combination {
    const char *plan;
    const char *values[MAX_OVER];
    Request request;
    Define defines[MAX_DEFINES + MAX_OVER];
    char *label;
} Combination;

static void request_combination(Sweep *sweep, Combination *c) {
    const Options *options = sweep->options;
    int count = options->request.define_count;
    memcpy(c->defines, options->defines, (size_t)count * sizeof *c->defines);
    Text label = {0};
    text_puts(&label, c->plan ? c->plan : sweep->table.choice_count ? "" : "no plan");
    for (int i = 0; i < sweep->table.choice_count; i++) {
        if (!c->values[i])
            continue;
        const char *name = sweep->table.choices[i].name;
        c->defines[count++] = (Define){name, c->values[i]};
        text_printf(&label, "%s%s=%s", label.length ? " " : "", name, c->values[i]);
    }
    c->label = arena_strdup(sweep->arena, text_string(&label));
    text_free(&label);
    c->request = options->request;
    c->request.plan = c->plan;
    c->request.defines = c->defines;
    c->request.define_count = count;
}

/* Which of the choices are names that the texts know under each plan: known[plan][choice].  A
 * plan that does not compile knows all, and its rows say what is wrong; so does everyone what
 * no one knows. */
static void find_known(Sweep *sweep, bool (*known)[MAX_OVER]) {
    int choices = sweep->table.choice_count;
    bool anyone[MAX_OVER] = {0};
    for (int p = 0; p < sweep->plan_count; p++) {
        Request request = sweep->options->request;
        request.plan = sweep->plans[p];
        Diagnostics *diagnostics = diagnostics_new();
        Compilation *compilation = compile_model(&request, diagnostics);
        for (int i = 0; i < choices; i++) {
            known[p][i] =
                !compilation || compilation_knows(compilation, sweep->table.choices[i].name);
            anyone[i] |= known[p][i];
        }
        compilation_free(compilation);
        diagnostics_free(diagnostics);
    }
    for (int p = 0; p < sweep->plan_count; p++)
        for (int i = 0; i < choices; i++) {
            if (anyone[i] && !known[p][i])
                fprintf(stderr, "colac sweep: %s%s has no `%s`: it runs without\n",
                        sweep->plans[p] ? "plan " : "the model without a plan",
                        sweep->plans[p] ? sweep->plans[p] : "", sweep->table.choices[i].name);
            known[p][i] |= !anyone[i];
        }
}

typedef ARRAY(Combination) Combinations;

/* Those of one plan, the last choice going round fastest. */
static void add_combinations(Sweep *sweep, int plan, const bool *known, Combinations *all) {
    int at[MAX_OVER] = {0}, choices = sweep->table.choice_count;
    for (bool more = true; more;) {
        Combination c = {.plan = sweep->plans[plan]};
        for (int i = 0; i < choices; i++)
            c.values[i] = known[i] ? sweep->table.choices[i].values[at[i]] : NULL;
        array_push(all, c);
        more = false;
        for (int i = choices - 1; i >= 0 && !more; i--) {
            at[i] = known[i] ? (at[i] + 1) % sweep->table.choices[i].count : 0;
            more = at[i] > 0;
        }
    }
}

/* ---- rows --------------------------------------------------------------------------- */

static void set_number(json_t *row, const char *key, double value) {
    json_object_set_new(row, key, isfinite(value) ? json_real(value) : json_null());
}

static void set_integer(json_t *row, const char *key, int64_t value) {
    json_object_set_new(row, key, json_integer((json_int_t)value));
}

/* As JSON holds it: a number where the text is one. */
static json_t *value_json(const char *text) {
    char *end;
    errno = 0;
    long long integer = strtoll(text, &end, 10);
    if (!*end && !errno)
        return json_integer(integer);
    double real = strtod(text, &end);
    return !*end && isfinite(real) ? json_real(real) : json_text(text);
}

static json_t *row_new(Sweep *sweep, const Combination *c, uint64_t seed) {
    json_t *row = json_object(), *over = json_object();
    json_object_set_new(row, "label", json_text(c->label));
    json_object_set_new(row, "plan", c->plan ? json_text(c->plan) : json_null());
    for (int i = 0; i < sweep->table.choice_count; i++)
        if (c->values[i])
            json_object_set_new(over, json_path(sweep->table.choices[i].name, sweep->arena),
                                value_json(c->values[i]));
    json_object_set_new(row, "over", over);
    if (sweep->options->data)
        set_integer(row, "seed", (int64_t)seed);
    return row;
}

static void set_status(json_t *row, const char *status) {
    json_object_set_new(row, "status", json_string(status));
}

static void set_failure(Sweep *sweep, json_t *row, const Diagnostics *diagnostics) {
    char *message = first_error(diagnostics, sweep->arena);
    message[strcspn(message, "\n")] = 0;
    set_status(row, "failed");
    json_object_set_new(row, "error", json_text(message));
    sweep->failed = true;
}

static void set_plan(json_t *row, const Compiled *compiled, const Options *options) {
    Figures figures = figures_of(compiled, options);
    json_object_update_new(row, figures_json(&figures));
}

/* The time of a step, before any has run. */
static void set_prediction(json_t *row, const Sweep *sweep, const Compiled *compiled) {
    const Compilation *compilation = compiled->compilation;
    if (!sweep->machine)
        return;
    machine_profile_products(sweep->machine, compiled->programs, sweep->measuring_seconds);
    Prediction prediction = predict_step(sweep->machine, compiled->programs,
                                         compilation->recipe.batch / compilation->sequences);
    set_number(row, "predicted_step_s", prediction.seconds);
}

static void set_training(json_t *row, const TrainReport *report) {
    double executed = number_in_row(row, "flops_per_token.executed");
    set_integer(row, "steps", report->steps);
    set_integer(row, "tokens", report->tokens);
    set_number(row, "training_flops",
               report->flops > 0 ? report->flops : executed * (double)report->tokens);
    set_number(row, "final_loss", report->final_loss);
    set_number(row, "val_loss", report->validation_loss);
    set_number(row, "tokens_per_s", (double)report->tokens / report->seconds);
    set_number(row, "step_s", report->step_seconds);
    set_number(row, "train_s", report->seconds);
    set_number(row, "compile_s", report->compile_seconds);
    set_integer(row, "peak_bytes", report->peak_bytes);
}

/* ---- rows of an earlier sweep ------------------------------------------------------- */

/* Everything that a trained row depends on, its seconds and bytes too (of threads, which are set). */
static char *key_of(const Sweep *sweep, const Combination *c, const Compiled *compiled,
                    uint64_t seed) {
    const Options *options = sweep->options;
    Text asked = {0};
    for (const Source *s = compiled->compilation->texts->sources; s; s = s->next)
        text_printf(&asked, "%zu %016" PRIx64 "\n", s->length,
                    hash_bytes(s->text, s->length, 0));
    const char *names[] = {c->request.preset, c->request.plan, c->request.recipe,
                           c->request.precision};
    for (int i = 0; i < COUNT_OF(names); i++)
        text_printf(&asked, "%s\n", names[i] ? names[i] : "");
    for (int i = 0; i < c->request.define_count; i++)
        text_printf(&asked, "%s=%s\n", c->defines[i].name, c->defines[i].value);
    text_printf(&asked, "%" PRIu64 " %" PRId64 " %d %d %016" PRIx64, seed, options->steps,
                (int)options->order, (int)options->device, sweep->data_hash);
    text_printf(&asked, " %d %d %d %d", options->no_fuse, options->no_reuse,
                options->keep_gradients, omp_get_max_threads());
    char *key =
        arena_printf(sweep->arena, "%016" PRIx64, hash_bytes(asked.data, asked.length, 0));
    text_free(&asked);
    return key;
}

static bool is_trained(const json_t *row) {
    const char *status = json_string_value(json_object_get(row, "status"));
    return status && !strcmp(status, "trained");
}

static bool has_key(const json_t *row, const char *key) {
    const char *its = json_string_value(json_object_get(row, "key"));
    return its && !strcmp(its, key);
}

static json_t *earlier_row(const Sweep *sweep, const char *key) {
    for (size_t i = 0; i < json_array_size(sweep->earlier); i++) {
        json_t *row = json_array_get(sweep->earlier, i);
        if (is_trained(row) && has_key(row, key))
            return row;
    }
    return NULL;
}

static bool read_earlier(Sweep *sweep, Diagnostics *diagnostics) {
    sweep->earlier = json_array();
    if (!sweep->options->output)
        return true;
    if (!make_folder(sweep->options->output, diagnostics))
        return false;
    char *path = arena_printf(sweep->arena, "%s/sweep.jsonl", sweep->options->output);
    size_t length;
    char *text = read_file(path, MAX_TABLE_BYTES, &length);
    if (!text && errno == ENOENT)
        return true;
    if (!text)
        error_in_file(diagnostics, path, "cannot be read: %s", strerror(errno));
    bool good = text != NULL;
    for (char *at = text; good && *at;) {
        size_t size = strcspn(at, "\n");
        json_t *row = json_loadb(at, size, 0, NULL);
        good = json_is_object(row);
        if (good)
            json_array_append(sweep->earlier, row);
        else
            help(error_in_file(diagnostics, path, "a line of it is no JSON object"),
                 "name another folder, or remove the file: it is not a table that a sweep "
                 "wrote");
        json_decref(row);
        at += size + (at[size] == '\n');
    }
    free(text);
    return good;
}

/* ---- what is written ---------------------------------------------------------------- */

/* Earlier rows that this sweep has not got, then its own. */
static void put_rows(const Sweep *sweep, Text *out) {
    for (size_t i = 0; i < json_array_size(sweep->earlier); i++) {
        const json_t *row = json_array_get(sweep->earlier, i);
        bool again = false;
        for (int64_t j = 0; j < sweep->table.rows.count && !again; j++)
            again = has_key(sweep->table.rows.data[j],
                            json_string_value(json_object_get(row, "key")));
        if (is_trained(row) && !again)
            put_row(row, out);
    }
    for (int64_t i = 0; i < sweep->table.rows.count; i++)
        put_row(sweep->table.rows.data[i], out);
}

static void write_files(Sweep *sweep) {
    if (!sweep->options->output)
        return;
    static const char *const names[] = {"sweep.jsonl", "sweep.svg", "sweep.html"};
    NewFile *files[COUNT_OF(names)];
    Text texts[COUNT_OF(names)] = {0};
    put_rows(sweep, &texts[0]);
    sweep_picture(&sweep->table, &texts[1]);
    sweep_page(&sweep->table, text_string(&texts[1]), &texts[2]);
    Diagnostics *diagnostics = diagnostics_new();
    bool good = true;
    for (int i = 0; i < COUNT_OF(names); i++) {
        char *path = arena_printf(sweep->arena, "%s/%s", sweep->options->output, names[i]);
        files[i] = good ? new_file_open(path, diagnostics) : NULL;
        if (files[i])
            new_file_write(files[i], texts[i].data, texts[i].length);
        good = files[i] && new_file_sync(files[i], diagnostics);
        text_free(&texts[i]);
    }
    for (int i = 0; i < COUNT_OF(names); i++) {
        if (good)
            good = new_file_publish(files[i], diagnostics);
        else
            new_file_abandon(files[i]);
    }
    sweep->failed |= finish(diagnostics) != 0;
    diagnostics_free(diagnostics);
}

/* Takes the row over. */
static void add_row(Sweep *sweep, json_t *row) {
    array_push(&sweep->table.rows, row);
    if (sweep->options->json) {
        Text line = {0};
        put_row(row, &line);
        fputs(text_string(&line), stdout);
        fflush(stdout);
        text_free(&line);
    }
    write_files(sweep);
}

/* ---- running ------------------------------------------------------------------------ */

/* DIR/runs/cola-R=64-seed-1-0123abcd */
static char *run_folder(const Sweep *sweep, const Combination *c, uint64_t seed,
                        const char *key) {
    char *name = arena_strdup(sweep->arena, c->label);
    for (char *at = name; *at; at++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_=.", *at))
            *at = '-';
    return arena_printf(sweep->arena, "%s/runs/%.100s-seed-%" PRIu64 "-%.8s",
                        sweep->options->output, name, seed, key);
}

static void train_row(Sweep *sweep, const Combination *c, Compiled *compiled, json_t *row,
                      uint64_t seed, const char *folder) {
    const Options *options = sweep->options;
    TrainReport report = {0};
    TrainOptions train_options = {
        .request = &c->request,
        .data = options->data,
        .out = folder,
        .steps = options->steps,
        .seed = seed,
        .order = options->order,
        .interpreter = options->device == DEVICE_INTERPRETER,
        .device = {device_cpu_open, options->threads},
        .compile_seconds = compiled->seconds,
        .report = &report,
        .quiet = options->json,
    };
    int code =
        train(compiled->compilation, compiled->programs, &train_options, compiled->diagnostics);
    finish(compiled->diagnostics);
    if (code == 0) {
        set_training(row, &report);
        set_status(row, "trained");
    } else {
        set_failure(sweep, row, compiled->diagnostics);
    }
}

/* A row of a combination that compiles. */
static void run_row(Sweep *sweep, const Combination *c, Compiled *compiled, uint64_t seed) {
    const Options *options = sweep->options;
    char *key = key_of(sweep, c, compiled, seed);
    char *folder = options->keep_runs ? run_folder(sweep, c, seed, key) : NULL;
    json_t *earlier = options->data ? earlier_row(sweep, key) : NULL;
    if (folder && access(arena_printf(sweep->arena, "%s/run.json", folder), F_OK))
        earlier = NULL;
    if (earlier) {
        if (!options->json)
            fprintf(stderr, "  it is in %s/sweep.jsonl\n", options->output);
        add_row(sweep, json_incref(earlier));
        return;
    }
    json_t *row = row_new(sweep, c, seed);
    json_object_set_new(row, "key", json_string(key));
    set_plan(row, compiled, options);
    set_prediction(row, sweep, compiled);
    set_status(row, "planned");
    if (options->data)
        train_row(sweep, c, compiled, row, seed, folder);
    add_row(sweep, row);
}

static bool compile_combination(Sweep *sweep, const Combination *c, Compiled *compiled) {
    Options options = *sweep->options;
    options.request = c->request;
    return compile_programs(compiled, &options, true);
}

static void run_combination(Sweep *sweep, Combination *c, int64_t at, int64_t count) {
    const Options *options = sweep->options;
    request_combination(sweep, c);
    Compiled compiled;
    bool ready = compile_combination(sweep, c, &compiled);
    if (ready)
        sweep_add_texts(&sweep->table, compiled.compilation->texts, sweep->arena);
    int seeds = options->seed_count ? options->seed_count : 1;
    for (int s = 0; s < seeds && !interrupt_caught(); s++) {
        uint64_t seed = options->seed_count ? options->seeds[s] : options->seed;
        if (options->data && !options->json)
            fprintf(stderr, "[%lld/%lld] %s, seed %" PRIu64 "\n",
                    (long long)(at * seeds + s + 1), (long long)(count * seeds), c->label,
                    seed);
        if (ready) {
            run_row(sweep, c, &compiled, seed);
        } else {
            json_t *row = row_new(sweep, c, seed);
            set_failure(sweep, row, compiled.diagnostics);
            add_row(sweep, row);
        }
    }
    compiled_free(&compiled);
}

static void run_all(Sweep *sweep) {
    interrupts_catch();
    bool(*known)[MAX_OVER] = checked_alloc(MAX_PLANS * sizeof *known);
    Combinations all = {0};
    find_known(sweep, known);
    for (int p = 0; p < sweep->plan_count; p++)
        add_combinations(sweep, p, known[p], &all);
    if (sweep->options->threads)
        omp_set_num_threads(sweep->options->threads);
    if (sweep->options->device == DEVICE_CPU)
        sweep->machine = machine_profile_new();
    sweep->measuring_seconds = fmin(0.25, 3.0 / (double)all.count);
    for (int64_t i = 0; i < all.count && !interrupt_caught(); i++)
        run_combination(sweep, &all.data[i], i, all.count);
    if (sweep->machine)
        machine_profile_free(sweep->machine);
    array_free(&all);
    free(known);
    interrupts_release();
}

/* Opens the data: before anything is compiled, so that a wrong path is said at once. */
static bool read_data(Sweep *sweep, Diagnostics *diagnostics) {
    if (!sweep->options->data)
        return true;
    SampleShape shape = {.positions = 1, .span = 1, .below = INT64_MAX};
    TokenData *data = token_data_open(sweep->options->data, SPLIT_ALL, shape, diagnostics);
    if (data)
        sweep->data_hash = token_data_hash(data);
    token_data_close(data);
    return data != NULL;
}

int run_sweep_command(Options *options) {
    if (!needs_cpu(options))
        return 2;
    Sweep *sweep = checked_alloc(sizeof *sweep);
    sweep->options = options;
    sweep->arena = arena_new();
    sweep->table.options = options;
    int code = 2;
    if (read_request(sweep)) {
        Diagnostics *diagnostics = diagnostics_new();
        bool ready = read_data(sweep, diagnostics) && read_earlier(sweep, diagnostics);
        code = finish(diagnostics);
        diagnostics_free(diagnostics);
        if (ready) {
            run_all(sweep);
            if (!options->json)
                sweep_print(&sweep->table);
            code = interrupt_caught() ? 128 + interrupt_caught() : sweep->failed;
        }
    }
    for (int64_t i = 0; i < sweep->table.rows.count; i++)
        json_decref(sweep->table.rows.data[i]);
    array_free(&sweep->table.rows);
    array_free(&sweep->table.texts);
    json_decref(sweep->earlier);
    arena_free(sweep->arena);
    free(sweep);
    return code;
}
