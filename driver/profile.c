/* colac profile: what each step of the program takes, beside what the machine can do.
 *
 * One micro-batch of random tokens and one update are run again and again: first without clocks
 * inside (the step's time is the median of these), then with a clock around every step. */
#include "driver/driver.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { WARM_UP_ROUNDS = 2, DEFAULT_ROUNDS = 7 };

typedef struct Row { /* all steps that share a label once indices are dropped */
    char *label;
    double seconds, predicted, flops, bytes;
    int64_t steps;
} Row;
typedef struct Rows {
    ARRAY(Row) rows;
    StringMap by_label;
} Rows;

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

/* layer[3].attn.wq -> layer.attn.wq, with the kind of step before it */
static char *row_label(const Program *program, const Step *step) {
    static const char *const kinds[] = {"kernel", "product", "copy", "zero"};
    Text text = {0};
    text_printf(&text, "%s %-7s ", program->name, kinds[step->kind]);
    int depth = 0;
    for (const char *at = step->label ? step->label : ""; *at; at++) {
        depth += *at == '[' ? 1 : 0;
        if (!depth)
            text_append(&text, at, 1);
        depth -= *at == ']' ? 1 : 0;
    }
    return text.data;
}

static void collect(Rows *rows, const Program *program, const double *seconds,
                    const double *predicted) {
    for (int64_t i = 0; i < program->step_count; i++) {
        const Step *step = &program->steps[i];
        char *label = row_label(program, step);
        int64_t at = string_map_get(&rows->by_label, label, -1);
        if (at < 0) {
            at = rows->rows.count;
            string_map_set(&rows->by_label, label, at);
            array_push(&rows->rows, ((Row){.label = label}));
        } else {
            free(label);
        }
        Row *row = &rows->rows.data[at];
        row->seconds += seconds[i];
        row->predicted += predicted[i];
        row->flops += step->flops;
        row->bytes += step->bytes;
        row->steps++;
    }
}

static int compare_rows(const void *a, const void *b) {
    double x = ((const Row *)a)->seconds, y = ((const Row *)b)->seconds;
    return (x < y) - (x > y);
}

/* The function's runtime scalars by name; what is not named here is 0. */
static double *scalar_values(const Function *function, double rate) {
    static const char *const ones[] = {"step", "micro_batches", "training"};
    double *values = checked_alloc((size_t)(function->scalar_count + 1) * sizeof *values);
    for (int64_t i = 0; i < function->scalar_count; i++) {
        const char *name = function->scalars[i];
        values[i] = strncmp(name, "lr", 2) ? 0 : rate;
        for (int one = 0; one < COUNT_OF(ones); one++)
            values[i] = strcmp(name, ones[one]) ? values[i] : 1;
    }
    return values;
}

static void fill_inputs(Executor *executor, const Module *module, uint64_t seed) {
    for (int i = 0; i < module->inputs.count; i++) {
        const Input *input = &module->inputs.data[i];
        int64_t count = axes_elements(module, input->axes, input->axis_count);
        int32_t *values = checked_alloc((size_t)count * sizeof *values);
        for (int64_t j = 0; j < count; j++)
            values[j] = (int32_t)(random_uniform(seed, 0, (uint64_t)i, 0, (uint64_t)j) *
                                  (double)input->below);
        executor_set_input(executor, i, values);
        free(values);
    }
}

/* What steps are compared with. */
typedef struct Peak {
    char title[256];
    double flops, bytes; /* a second; 0: not known */
} Peak;

typedef struct Measured {
    Peak peak;
    double step_s, compile_s;
    Prediction predicted; /* of a step of one micro-batch */
    Rows rows;
    int rounds;
    int64_t bytes;
    bool failed;
} Measured;

/* A training step: these in turn. */
static const char *const program_names[] = {"micro", "update"};

static bool run_step(Executor *executor, const ProgramSet *set, double rate,
                     Diagnostics *diagnostics) {
    bool fine = true;
    for (int i = 0; i < COUNT_OF(program_names) && fine; i++) {
        double *scalars = scalar_values(program_find(set, program_names[i])->function, rate);
        fine = executor_run(executor, program_names[i], scalars, diagnostics);
        free(scalars);
    }
    return fine && executor_settle(executor, diagnostics);
}

/* What each step of the programs is predicted to take. */
typedef struct Predicted {
    double *seconds[COUNT_OF(program_names)];
    Prediction step;
} Predicted;

/* The card that stands for the device's architecture; NULL: it is the CPU, or nobody knows. */
static const Card *card_of(const Options *options, const Device *device) {
    return options->device == DEVICE_CUDA
               ? card_of_architecture(device_cuda_architecture(device))
               : NULL;
}

/* Before anything has run: as it would be without.  0 for a card that nobody knows. */
static Predicted predict(const Options *options, const Device *device, const ProgramSet *set) {
    const double product_seconds = 0.6;
    const Card *card = card_of(options, device);
    Predicted predicted = {0};
    MachineProfile *machine = options->device == DEVICE_CUDA ? NULL : machine_profile_new();
    if (machine)
        machine_profile_products(machine, set, product_seconds);
    for (int i = 0; i < COUNT_OF(program_names); i++) {
        const Program *program = program_find(set, program_names[i]);
        predicted.seconds[i] =
            checked_alloc((size_t)(program->step_count + 1) * sizeof(double));
        if (machine)
            predict_program(machine, set, program, predicted.seconds[i]);
        else if (card)
            card_predict_program(card, set, program, predicted.seconds[i]);
    }
    if (machine)
        predicted.step = predict_step(machine, set, 1);
    else if (card)
        predicted.step = card_predict_step(card, set, 1);
    if (machine)
        machine_profile_free(machine);
    return predicted;
}

/* The CPU's peaks are measured; a card's are its maker's, of products as the plan has them. */
static Peak peak_of(const Options *options, const Compiled *compiled, const Device *device) {
    Peak peak = {0};
    const Card *card = card_of(options, device);
    if (card) {
        peak.flops = compiled->compilation->precision == TYPE_BF16 ? card->bf16_flops
                     : compiled->compilation->tf32                 ? card->tf32_flops
                                                                   : card->f32_flops;
        peak.bytes = card->bandwidth;
        snprintf(peak.title, sizeof peak.title,
                 "%s; peaks of %s: products %.0f TFLOP/s, memory %.0f GB/s", device->title,
                 card->title, peak.flops / 1e12, peak.bytes / 1e9);
    } else if (options->device == DEVICE_CUDA) {
        snprintf(
            peak.title, sizeof peak.title,
            "%s, sm_%d: no figures of such a card are known, so no prediction and no shares",
            device->title, device_cuda_architecture(device));
    } else {
        MachineFigures machine = machine_measure();
        peak.flops = machine.product_flops;
        peak.bytes = machine.copy_bytes;
        snprintf(peak.title, sizeof peak.title,
                 "%s, %d threads: products %.0f GFLOP/s, copies %.0f GB/s, measured now",
                 machine.processor, machine.threads, peak.flops / 1e9, peak.bytes / 1e9);
    }
    return peak;
}

static Measured measure(const Options *options, const Compiled *compiled, Device *device,
                        Executor *executor) {
    const ProgramSet *set = compiled->programs;
    Measured measured = {.rounds = options->steps ? (int)options->steps : DEFAULT_ROUNDS};
    Predicted predicted = predict(options, device, set);
    double rate = 1e-4;
    double *seconds = checked_alloc((size_t)measured.rounds * sizeof *seconds);
    fill_inputs(executor, set->module, options->seed);
    for (int i = -WARM_UP_ROUNDS; i < measured.rounds && !measured.failed; i++) {
        double started = now_seconds();
        measured.failed = !run_step(executor, set, rate, compiled->diagnostics);
        if (i >= 0)
            seconds[i] = now_seconds() - started;
    }
    executor_set_timing(executor, true);
    for (int i = 0; i < measured.rounds && !measured.failed; i++) {
        measured.failed = !run_step(executor, set, rate, compiled->diagnostics);
        for (int p = 0; p < COUNT_OF(program_names); p++)
            collect(&measured.rows, program_find(set, program_names[p]),
                    executor_step_seconds(executor, program_names[p]), predicted.seconds[p]);
    }
    for (int p = 0; p < COUNT_OF(program_names); p++)
        free(predicted.seconds[p]);
    measured.predicted = predicted.step;
    measured.step_s = median(seconds, measured.rounds);
    measured.compile_s = device->compile_seconds;
    measured.bytes = executor_bytes(executor);
    if (!options->json)
        measured.peak = peak_of(options, compiled, device);
    free(seconds);
    return measured;
}

static void print_measured_json(const Measured *measured, int64_t tokens) {
    bool predicted = measured->predicted.seconds > 0;
    json_t *object =
        json_pack("{s:f, s:f, s:f, s:I, s:[]}", "step_s", measured->step_s, "tokens_per_s",
                  (double)tokens / measured->step_s, "compile_s", measured->compile_s,
                  "peak_bytes", (json_int_t)measured->bytes, "rows");
    INTERNAL_CHECK(object);
    if (predicted)
        json_object_set_new(object, "predicted_step_s", json_real(measured->predicted.seconds));
    for (int64_t i = 0; i < measured->rows.rows.count; i++) {
        const Row *row = &measured->rows.rows.data[i];
        json_t *part =
            json_pack("{s:s, s:f, s:f, s:f}", "label", row->label, "seconds",
                      row->seconds / measured->rounds, "flops", row->flops / measured->rounds,
                      "bytes", row->bytes / measured->rounds);
        if (predicted)
            json_object_set_new(part, "predicted_seconds",
                                json_real(row->predicted / measured->rounds));
        json_array_append_new(json_object_get(object, "rows"), part);
    }
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(object);
}

static double share(double part, double whole) {
    return whole > 0 ? 100 * part / whole : 0;
}

static void print_measured(const Measured *measured, int64_t tokens) {
    const Peak *peak = &measured->peak;
    printf("%s\n", peak->title);
    printf("a step of one micro-batch: %.4f s, %.0f tokens/s (median of %d)\n",
           measured->step_s, (double)tokens / measured->step_s, measured->rounds);
    if (measured->predicted.seconds > 0)
        printf("predicted: %.4f s\n", measured->predicted.seconds);
    putchar('\n');
    printf("%9s %9s %6s %5s %9s %6s %8s %6s  %s\n", "ms", "predicted", "share", "steps",
           "GFLOP/s", "peak", "GB/s", "copy", "step");
    double total = 0;
    for (int64_t i = 0; i < measured->rows.rows.count; i++)
        total += measured->rows.rows.data[i].seconds;
    for (int64_t i = 0; i < measured->rows.rows.count; i++) {
        const Row *row = &measured->rows.rows.data[i];
        double seconds = row->seconds > 0 ? row->seconds : 1e-12;
        printf("%9.3f %9.3f %5.1f%% %5lld %9.1f %5.0f%% %8.1f %5.0f%%  %s\n",
               1e3 * row->seconds / measured->rounds, 1e3 * row->predicted / measured->rounds,
               100 * row->seconds / total, (long long)(row->steps / measured->rounds),
               row->flops / seconds / 1e9, share(row->flops / seconds, peak->flops),
               row->bytes / seconds / 1e9, share(row->bytes / seconds, peak->bytes),
               row->label);
    }
}

static void rows_free(Rows *rows) {
    for (int64_t i = 0; i < rows->rows.count; i++)
        free(rows->rows.data[i].label);
    array_free(&rows->rows);
    string_map_free(&rows->by_label);
}

int run_profile_command(Options *options) {
    Compiled compiled;
    if (!compile_programs(&compiled, options, true)) {
        compiled_free(&compiled);
        return 1;
    }
    ExecutorOptions executor_options = {0};
    int code = 1;
    DeviceOpener opener = device_opener(options);
    Device *device = opener.open(opener.number, compiled.diagnostics);
    Executor *executor = device ? executor_new(device, compiled.programs, &executor_options,
                                               compiled.diagnostics)
                                : NULL;
    if (executor) {
        executor_initialize(executor, options->seed);
        Measured measured = measure(options, &compiled, device, executor);
        int64_t tokens = compiled.compilation->sequences * compiled.compilation->positions;
        qsort(measured.rows.rows.data, (size_t)measured.rows.rows.count, sizeof(Row),
              compare_rows);
        if (!measured.failed) {
            options->json ? print_measured_json(&measured, tokens)
                          : print_measured(&measured, tokens);
            code = 0;
        }
        rows_free(&measured.rows);
        executor_free(executor);
    }
    if (device)
        device->close(device);
    if (finish(compiled.diagnostics))
        code = 1;
    compiled_free(&compiled);
    return code;
}
