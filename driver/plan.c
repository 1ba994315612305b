/* colac plan: plans side by side; with --explain, what each keeps and what it makes again. */
#include "driver/driver.h"

#include <jansson.h>
#include <omp.h>

/* ---- which plans ------------------------------------------------------------------------ */

typedef struct PlanList {
    Arena *arena;
    ARRAY(const char *) names;
} PlanList;

static bool named_plans(const char *list, PlanList *plans) {
    for (const char *at = list;; at++) {
        size_t length = strcspn(at, ",");
        if (!length) {
            fprintf(stderr,
                    "colac plan: `--plan` takes names between commas, as in `--plan a,b`, "
                    "not `%s`\n",
                    list);
            return false;
        }
        array_push(&plans->names, arena_strndup(plans->arena, at, length));
        at += length;
        if (!*at)
            return true;
    }
}

/* Those that the model's own file holds, as they stand there. */
static bool all_plans(const Options *options, PlanList *plans) {
    Diagnostics *diagnostics = diagnostics_new();
    Texts *texts = texts_load(options->request.path, diagnostics);
    const char *path = options->request.path;
    for (const Item *item = texts ? texts->items : NULL; item; item = item->next)
        if (item->kind == ITEM_PLAN && !strcmp(item->span.source->name, texts->main_path))
            array_push(&plans->names, arena_strdup(plans->arena, item->name.text));
    if (texts && !diagnostics_errors(diagnostics) && !plans->names.count)
        help(error_in_file(diagnostics, path, "there is no plan in this file"),
             "write one, `plan NAME { … }`, or name one of another file: `--plan FILE:NAME`");
    bool fine = finish(diagnostics) == 0 && texts;
    if (texts)
        texts_free(texts);
    diagnostics_free(diagnostics);
    return fine;
}

/* ---- -D ---------------------------------------------------------------------------------- */

/* A value that one plan knows need not be known to another: which of the values of -D this plan
 * and its model know.  known[i] is set for those. */
static int known_defines(const Options *options, Define *kept, bool *known) {
    Request request = options->request;
    request.define_count = 0;
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile_model(&request, diagnostics);
    int count = 0;
    for (int i = 0; i < options->request.define_count; i++)
        if (!compilation || compilation_knows(compilation, options->request.defines[i].name)) {
            kept[count++] = options->request.defines[i];
            known[i] = true;
        }
    if (compilation)
        compilation_free(compilation);
    diagnostics_free(diagnostics);
    return count;
}

/* ---- what is kept and what is made again ------------------------------------------------- */

static const Function *training_function(const Compiled *compiled) {
    return module_find_function(compiled->compilation->module, "micro");
}

static int compare_flops(const void *left, const void *right) {
    const ValueRow *a = left, *b = right;
    if (a->flops != b->flops)
        return a->flops < b->flops ? 1 : -1;
    return (a->span.begin > b->span.begin) - (a->span.begin < b->span.begin);
}

static void print_section(const ValueRow *row, const char *last, const char *model) {
    if (last && !strcmp(last, row->section))
        return;
    printf("    %s\n", *row->section ? row->section : model);
}

static void print_place(const ValueRow *row, Arena *arena) {
    const char *place = place_text(row->span, arena);
    printf("%s%s\n", *place ? "  " : "", place);
}

static void print_row_json(const char *plan, const char *kind, const ValueRow *row,
                           Arena *arena) {
    print_json_object(json_pack("{s:s, s:o, s:s, s:s, s:b, s:I, s:I, s:f}", "kind", kind,
                                "plan", json_text(plan), "value", value_row_path(row, arena),
                                "place", json_path(place_text(row->span, arena), arena),
                                "named", row->named, "values", (json_int_t)row->values, "bytes",
                                (json_int_t)row->bytes, "flops", row->flops));
}

static void explain_kept(const Options *options, const Compiled *compiled,
                         const Figures *figures, Arena *arena) {
    const Function *micro = training_function(compiled);
    ValueTable *table = value_table_new(value_names(micro, arena), false);
    ValueLife *lives;
    int64_t count = value_lives(micro, arena, &lives), sum = 0;
    for (int64_t i = 0; i < count; i++)
        if (lives[i].kept)
            value_table_add(table, lives[i].node, lives[i].bytes, 0);
    ValueRow *rows = value_table_rows(table, &count);
    char unit[32], each[32], commas[32];
    if (!options->json)
        printf("  kept for the backward part\n");
    for (int64_t i = 0; i < count; i++) {
        sum += rows[i].bytes;
        if (options->json) {
            print_row_json(options->request.plan, "kept", &rows[i], arena);
            continue;
        }
        print_section(&rows[i], i ? rows[i - 1].section : NULL,
                      compiled->compilation->model->name.text);
        printf("      %11s = %4lld x %-11s %s", bytes_text(rows[i].bytes, unit),
               (long long)rows[i].values, bytes_text(rows[i].bytes / rows[i].values, each),
               rows[i].name);
        print_place(&rows[i], arena);
    }
    INTERNAL_CHECK(sum == figures->memory.kept_activations);
    if (!options->json)
        printf("    in sum %s B (%s)\n", with_commas(sum, commas), bytes_text(sum, unit));
    value_table_free(table);
}

/* Text leaves out what is less than this share of all that is made again. */
static const double LEAST_SHARE = 0.005;

static void print_recomputed(const Options *options, const Compiled *compiled, ValueRow *rows,
                             int64_t count, double executed, double sum, Arena *arena) {
    double tokens =
        (double)(compiled->compilation->sequences * compiled->compilation->positions);
    char each[32];
    double small = 0;
    int64_t small_count = 0;
    for (int64_t i = 0, next; i < count; i = next) {
        for (next = i; next < count && !strcmp(rows[next].section, rows[i].section);)
            next++;
        qsort(rows + i, (size_t)(next - i), sizeof *rows, compare_flops);
        for (int64_t k = i; k < next; k++) {
            rows[k].flops /= tokens;
            if (options->json) {
                print_row_json(options->request.plan, "recomputed", &rows[k], arena);
                continue;
            }
            if (rows[k].flops < LEAST_SHARE * sum) {
                small += rows[k].flops;
                small_count++;
                continue;
            }
            print_section(&rows[k], k > i ? rows[i].section : NULL,
                          compiled->compilation->model->name.text);
            printf("      %9s %5.1f%%  %s", scaled_text(rows[k].flops, each),
                   100 * rows[k].flops / executed, rows[k].name);
            print_place(&rows[k], arena);
        }
    }
    if (small_count)
        printf("    %11s %5.1f%%  in %lld smaller values\n", scaled_text(small, each),
               100 * small / executed, (long long)small_count);
}

static void explain_recomputed(const Options *options, const Compiled *compiled,
                               const Figures *figures, Arena *arena) {
    const Function *micro = training_function(compiled);
    double tokens =
        (double)(compiled->compilation->sequences * compiled->compilation->positions);
    ValueTable *table = value_table_new(value_names(micro, arena), true);
    double sum = 0;
    for (NodeId id = 0; id < micro->nodes.count; id++) {
        const Node *node = node_at(micro, id);
        double flops = node->clone ? node_flops(micro, node) : 0;
        if (flops > 0)
            value_table_add(table, id, 0, flops);
        sum += flops / tokens;
    }
    int64_t count;
    ValueRow *rows = value_table_rows(table, &count);
    char all[32], products[32];
    if (!options->json && !count)
        printf("  nothing is made again\n");
    if (!options->json && count)
        printf("  made again in the backward part: FLOPs a token, share of the step's %s\n",
               scaled_text(figures->flops.executed, all));
    print_recomputed(options, compiled, rows, count, figures->flops.executed, sum, arena);
    if (!options->json && count) {
        printf("    in sum %s, %.1f%% of the step; products %s", scaled_text(sum, all),
               100 * sum / figures->flops.executed,
               scaled_text(figures->flops.recompute, products));
        if (figures->published > figures->flops.recompute)
            printf(", of whole segments, as published, %s",
                   scaled_text(figures->published, all));
        putchar('\n');
    }
    value_table_free(table);
}

/* Peaks that differ by little are told apart. */
static const char *memory_text(int64_t bytes, char buffer[32]) {
    double gib = (double)bytes / (1 << 30);
    if (gib < 1)
        return bytes_text(bytes, buffer);
    snprintf(buffer, 32, gib < 10000 ? "%.2f GiB" : "%.0f GiB", gib);
    return buffer;
}

static void explain_budget(const Options *options, const Compiled *compiled) {
    const BudgetReport *budget = &compiled->budget;
    const Compilation *compilation = compiled->compilation;
    char bound[32], peak[32], flops[32];
    if (!compilation->memory)
        return;
    double tokens = (double)(compilation->sequences * compilation->positions);
    if (options->json) {
        print_json_object(json_pack(
            "{s:s, s:o, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:b, s:b}", "kind", "budget", "plan",
            json_text(options->request.plan), "bound", (json_int_t)budget->bound, "peak",
            (json_int_t)budget->peak, "added_flops_per_token", budget->added_flops / tokens,
            "rungs", (json_int_t)budget->rungs, "planned", (json_int_t)budget->planned,
            "candidates", (json_int_t)budget->candidates, "points", (json_int_t)budget->points,
            "exhaustive", budget->exhaustive, "first", budget->first));
        return;
    }
    printf("  memory bound %s, peak %s: %s FLOPs a token are added\n",
           memory_text(budget->bound, bound), memory_text(budget->peak, peak),
           scaled_text(budget->added_flops / tokens, flops));
    printf("    %lld values could be kept or not; %lld sets of them are worth trying\n",
           (long long)budget->candidates, (long long)budget->points);
    printf("    the ladder holds %s%lld assignments of sets to blocks; %lld were planned in "
           "full\n",
           budget->exhaustive ? "all " : "", (long long)budget->rungs,
           (long long)budget->planned);
    printf("    %s\n", !budget->first
                           ? "a cheaper one on it may fit: not all of them were planned"
                       : budget->exhaustive
                           ? "no other adds fewer FLOPs and fits"
                           : "no other on it adds fewer FLOPs and fits; one beside it might");
}

static void explain(const Options *options, const Compiled *compiled, const Figures *figures) {
    Arena *arena = arena_new();
    if (!options->json)
        print_heading(&options->request, compiled->compilation);
    explain_budget(options, compiled);
    explain_kept(options, compiled, figures, arena);
    explain_recomputed(options, compiled, figures, arena);
    arena_free(arena);
}

/* ---- predicted time ----------------------------------------------------------------------- */

/* Seconds to time products in: those of all plans together, and of one at most. */
static const double SECONDS_OF_ALL = 0.6, SECONDS_OF_ONE = 0.3;

typedef struct Predictor {
    MachineProfile *machine; /* NULL: nothing is predicted for this machine */
    int card_count;
    const Card *cards[MAX_CARDS];
    double seconds; /* to time the products of one plan */
} Predictor;

/* The cards of an architecture, or where none is named, those that most have. */
static void find_cards(Predictor *predictor, CudaArchitecture architecture) {
    static const char *const usual[MAX_CARDS] = {"a100", "h100", "b200"};
    for (int i = 0; i < MAX_CARDS && !architecture; i++)
        predictor->cards[predictor->card_count++] = card_find(usual[i]);
    const Card *card = architecture ? card_of_architecture(architecture) : NULL;
    for (; card && predictor->card_count < MAX_CARDS; card = card_after(card, architecture))
        predictor->cards[predictor->card_count++] = card;
    if (architecture && !predictor->card_count)
        fprintf(
            stderr,
            "--device cuda:sm_%d:1:1: warning: no figures of a card of this architecture are "
            "known, so no time is predicted\n",
            architecture);
}

static Predictor predictor_new(const Options *options, int64_t plans) {
    Predictor predictor = {.seconds = SECONDS_OF_ALL / (double)plans};
    if (options->no_predict || options->explain)
        return predictor;
    if (options->device == DEVICE_CUDA) {
        find_cards(&predictor, options->architecture);
        return predictor;
    }
    if (options->threads)
        omp_set_num_threads(options->threads);
    predictor.machine = machine_profile_new();
    if (predictor.seconds > SECONDS_OF_ONE)
        predictor.seconds = SECONDS_OF_ONE;
    return predictor;
}

/* Of a training step: the recipe's micro-batches and the update. */
static void predict(const Predictor *predictor, const Compiled *compiled, Figures *figures) {
    const Compilation *compilation = compiled->compilation;
    const ProgramSet *set = compiled->programs;
    int64_t micro_batches = compilation->recipe.batch / compilation->sequences;
    micro_batches = micro_batches > 1 ? micro_batches : 1;
    if (predictor->machine) {
        machine_profile_products(predictor->machine, set, predictor->seconds);
        figures->predicted = predict_step(predictor->machine, set, micro_batches).seconds;
    }
    figures->card_count = predictor->card_count;
    for (int i = 0; i < predictor->card_count; i++) {
        figures->cards[i] = predictor->cards[i];
        figures->on_card[i] =
            card_predict_step(predictor->cards[i], set, micro_batches).seconds;
    }
}

static const char *seconds_text(double seconds, char buffer[32]) {
    bool small = seconds < 0.9995;
    double value = small ? 1000 * seconds : seconds;
    snprintf(buffer, 32, value < 99.95 ? "%.3g %s" : "%.0f %s", value, small ? "ms" : "s");
    return buffer;
}

/* ---- the table --------------------------------------------------------------------------- */

typedef struct Table {
    int name_width;
    Predictor predictor;
    Figures first;  /* the plan that ratios are of; no parameters: none yet */
    bool too_large; /* for a card, some plan */
    bool known[MAX_DEFINES];
} Table;

static void print_head(const Options *options, const Table *table) {
    const Request *request = &options->request;
    const Predictor *predictor = &table->predictor;
    bool predicted = predictor->machine != NULL;
    printf("%s%s%s: FLOPs a token, products; bytes%s of a training step%s\n", request->path,
           request->preset ? ", preset " : "", request->preset ? request->preset : "",
           predicted ? " and predicted time" : "",
           predictor->card_count ? "; its time on cards: a prediction, nobody has measured it"
                                 : "");
    printf("  %-*s %10s %9s %9s %9s %9s %9s %9s %5s %10s %10s%s", table->name_width, "plan",
           "parameters", "low rank", "forward", "backward", "recompute", "head", "all", "ratio",
           "kept", "peak", predicted ? "  predicted" : "");
    for (int i = 0; i < predictor->card_count; i++)
        printf(" %10s", predictor->cards[i]->name);
    putchar('\n');
}

static void print_row(const Table *table, const char *name, const Figures *figures) {
    char parameters[32], low[32], texts[5][32], ratio[32] = "", kept[32], peak[32], seconds[32];
    const FlopTable *flops = &figures->flops;
    if (figures_products(&table->first) > 0)
        snprintf(ratio, sizeof ratio, "%.3f",
                 figures_products(figures) / figures_products(&table->first));
    printf("  %-*s %10s %9s %9s %9s %9s %9s %9s %5s %10s %10s", table->name_width, name,
           scaled_text((double)figures->parameters, parameters),
           scaled_text((double)figures->low_rank, low), scaled_text(flops->forward, texts[0]),
           scaled_text(flops->backward, texts[1]), scaled_text(flops->recompute, texts[2]),
           scaled_text(flops->head, texts[3]), scaled_text(figures_products(figures), texts[4]),
           ratio, memory_text(figures->memory.kept_activations, kept),
           memory_text(figures->memory.peak, peak));
    if (figures->predicted > 0)
        printf(" %10s", seconds_text(figures->predicted, seconds));
    for (int i = 0; i < figures->card_count; i++) {
        bool fits = figures_fit(figures, figures->cards[i]);
        printf(" %*s%s", fits ? 10 : 9, seconds_text(figures->on_card[i], seconds),
               fits ? "" : "*");
    }
    putchar('\n');
}

/* What a star in a row says. */
static void print_foot(const Table *table) {
    const Predictor *predictor = &table->predictor;
    char memory[32];
    if (!table->too_large)
        return;
    fputs("* does not fit in the card's memory:", stdout);
    for (int i = 0; i < predictor->card_count; i++)
        printf("%s %s %s", i ? "," : "", predictor->cards[i]->name,
               memory_text(predictor->cards[i]->memory_bytes, memory));
    putchar('\n');
}

static void print_failed(const Table *table, const char *name, bool json) {
    if (json)
        print_json_object(json_pack("{s:o, s:b}", "plan", json_text(name), "refused", 1));
    else
        printf("  %-*s is refused: see the diagnostics\n", table->name_width, name);
}

/* One plan: its row or explanation.  False where it was refused. */
static bool show_plan(const Options *options, const char *name, Table *table) {
    Options own = *options;
    Define kept[MAX_DEFINES];
    own.request.plan = name;
    if (options->request.define_count) {
        own.request.define_count = known_defines(&own, kept, table->known);
        own.request.defines = kept;
    }
    Compiled compiled;
    fflush(stdout); /* before diagnostics */
    bool fine = compile_programs(&compiled, &own, true);
    if (fine) {
        Figures figures = figures_of(&compiled, options);
        predict(&table->predictor, &compiled, &figures);
        if (table->first.parameters == 0)
            table->first = figures;
        for (int i = 0; i < figures.card_count; i++)
            table->too_large |= !figures_fit(&figures, figures.cards[i]);
        if (options->explain)
            explain(&own, &compiled, &figures);
        else if (options->json)
            print_figures_json(&figures, name);
        else
            print_row(table, name, &figures);
    } else {
        print_failed(table, name, options->json);
    }
    compiled_free(&compiled);
    return fine;
}

/* Every value of -D must be known to one plan.  Of one that is not the compiler says what is near, as it
 * would with `plan` alone. */
static bool check_defines(Options options, const char *plan, const bool *known) {
    bool fine = true;
    Request *request = &options.request;
    Define *defines = options.defines;
    int count = request->define_count;
    request->plan = plan;
    request->define_count = 1;
    for (int i = 0; i < count; i++) {
        if (known[i])
            continue;
        Diagnostics *diagnostics = diagnostics_new();
        request->defines = &defines[i];
        compilation_free(compile_model(request, diagnostics));
        fine &= finish(diagnostics) == 0;
        diagnostics_free(diagnostics);
    }
    return fine;
}

static bool show_plans(const Options *options, const PlanList *plans) {
    Table table = {.name_width = 4, .predictor = predictor_new(options, plans->names.count)};
    bool fine = true;
    for (int64_t i = 0; i < plans->names.count; i++) {
        int width = (int)strnlen(plans->names.data[i], 60);
        table.name_width = width > table.name_width ? width : table.name_width;
    }
    if (!options->json && !options->explain)
        print_head(options, &table);
    for (int64_t i = 0; i < plans->names.count; i++)
        fine &= show_plan(options, plans->names.data[i], &table); /* all show */
    if (!options->json)
        print_foot(&table);
    fine &= check_defines(*options, plans->names.data[plans->names.count - 1], table.known);
    if (table.predictor.machine)
        machine_profile_free(table.predictor.machine);
    return fine;
}

int run_plan_command(Options *options) {
    PlanList plans = {.arena = arena_new()};
    int code = 0;
    if (options->request.plan)
        code = named_plans(options->request.plan, &plans) ? 0 : 2;
    else
        code = all_plans(options, &plans) ? 0 : 1;
    if (!code)
        code = show_plans(options, &plans) ? 0 : 1;
    array_free(&plans.names);
    arena_free(plans.arena);
    return code;
}
