/* runtime/trainer.c: pre-training, the gradients of one batch, evaluation.  Losses are summed
 * in double over micro-batches: ΣE / ΣW. */
#include "runtime/runtime.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

enum { MAX_VALIDATION_BATCHES = 50, MAX_PROBED_ELEMENTS = 8192 };
enum { MAX_TIMES_AHEAD = 1 << 20 }; /* of updates, for which there is room before the first */
/* A fast product does tens of operations in the time that the machine copies a byte; a library
 * that falls back to its reference loops does a fraction of one. */
static const double LEAST_FLOPS_A_BYTE = 1;

/* What train, run_grad and run_eval have in common: data, weights, an engine. */
typedef struct Session {
    const Compilation *compilation;
    const Module *module;
    const TrainOptions *options;
    Diagnostics *diagnostics;
    Arena *arena;
    Mapping *mapping;
    Engine *engine;
    TokenData *data, *validation; /* validation NULL: the data has no such split */
    int32_t **inputs;             /* one for each input of the module */
    double *scalars;              /* room for those of any function */
    StateId loss_sum, weight_sum;
    int64_t rows;          /* B */
    int64_t micro_batches; /* of an update */
} Session;

/* ΣE and ΣW. */
typedef struct LossSum {
    double loss, weight;
} LossSum;

static double mean_loss(LossSum sum) {
    return sum.weight != 0 ? sum.loss / sum.weight : 0;
}

/* ---- opening ------------------------------------------------------------------------ */

/* How many updates are asked for; 0 after reporting. */
static int64_t steps_of(const Session *session) {
    int64_t steps =
        session->options->steps ? session->options->steps : session->compilation->recipe.steps;
    if (steps <= 0)
        help(error_in_file(session->diagnostics, session->compilation->texts->main_path,
                           "nothing says how many updates to train for"),
             "give `--steps N`, or a `--recipe` that has `steps`");
    return steps > 0 ? steps : 0;
}

static bool open_data(Session *session, bool for_evaluation) {
    const char *path = session->options->data;
    SampleShape shape = sample_shape(session->module);
    bool split = token_data_has_validation(path);
    if (!for_evaluation) {
        session->data = token_data_open(path, SPLIT_TRAIN, shape, session->diagnostics);
        if (!session->data)
            return false;
    }
    if (!split && !for_evaluation)
        return true;
    session->validation = token_data_open(path, split ? SPLIT_VALIDATION : SPLIT_ALL, shape,
                                          session->diagnostics);
    return session->validation != NULL;
}

static void put_weight(void *context, StateId weight, StateBlock block, const double *values) {
    Engine *engine = context;
    engine->write(engine, weight, block, values);
}

static bool open_engine(Session *session, const ProgramSet *set) {
    const TrainOptions *options = session->options;
    if (options->interpreter) {
        session->engine = engine_interpreter(session->module, options->executor.check_nan,
                                             session->diagnostics);
    } else {
        Device *device = options->device.open(options->device.number, session->diagnostics);
        if (device)
            session->engine =
                engine_executor(device, set, &options->executor, session->diagnostics);
    }
    if (!session->engine)
        return false;
    session->engine->initialize(session->engine, options->seed);
    return !options->weights ||
           weights_load(session->module, session->mapping, options->weights, put_weight,
                        session->engine, session->diagnostics);
}

static void allocate_arguments(Session *session) {
    int64_t scalars = 0;
    for (int64_t i = 0; i < session->module->functions.count; i++)
        if (session->module->functions.data[i]->scalar_count > scalars)
            scalars = session->module->functions.data[i]->scalar_count;
    session->scalars = checked_alloc((size_t)scalars * sizeof *session->scalars);
    int64_t count = session->module->inputs.count;
    session->inputs = checked_alloc((size_t)count * sizeof *session->inputs);
    for (int64_t i = 0; i < count; i++) {
        const Input *input = &session->module->inputs.data[i];
        int64_t elements = axes_elements(session->module, input->axes, input->axis_count);
        session->inputs[i] = checked_alloc((size_t)elements * sizeof **session->inputs);
    }
}

/* False after reporting; session_close in either case. */
static bool session_open(Session *session, Compilation *compilation, const ProgramSet *set,
                         const TrainOptions *options, bool for_evaluation,
                         Diagnostics *diagnostics) {
    *session = (Session){.compilation = compilation,
                         .module = compilation->module,
                         .options = options,
                         .diagnostics = diagnostics,
                         .arena = compilation->texts->arena};
    session->loss_sum = module_find_state(session->module, "loss_sum", ROLE_METRIC, 0);
    session->weight_sum = module_find_state(session->module, "weight_sum", ROLE_METRIC, 0);
    INTERNAL_CHECK(session->loss_sum >= 0 && session->weight_sum >= 0);
    session->rows = compilation->sequences;
    session->micro_batches = compilation->recipe.batch / session->rows;
    INTERNAL_CHECK(session->micro_batches * session->rows == compilation->recipe.batch);
    allocate_arguments(session);
    session->mapping = mapping_load(options->request->path, session->arena, diagnostics);
    bool writes = !for_evaluation; /* reading takes either names */
    if (session->mapping && writes && options->their_names &&
        mapping_is_empty(session->mapping)) {
        help(error_in_file(diagnostics, options->request->path,
                           "`--names hf`: no text says which names those are"),
             "it stands beside the model, as `llama.map` beside `llama.cola`");
        return false;
    }
    return session->mapping && open_data(session, for_evaluation) && open_engine(session, set);
}

static void session_close(Session *session) {
    for (int64_t i = 0; i < session->module->inputs.count; i++)
        free(session->inputs[i]);
    free(session->inputs);
    free(session->scalars);
    if (session->engine)
        session->engine->close(session->engine);
    token_data_close(session->data);
    token_data_close(session->validation);
}

/* ---- running functions -------------------------------------------------------------- */

typedef struct ScalarValues {
    int64_t step, sample0, update_of; /* update_of: of how many steps the rates are */
    bool evaluating;
} ScalarValues;

static double scalar_value(const Session *session, const char *name,
                           const ScalarValues *values) {
    int group = 0;
    if (strcmp(name, "step") == 0)
        return (double)values->step;
    if (strcmp(name, "seed") == 0)
        return (double)session->options->seed;
    if (strcmp(name, "sample0") == 0)
        return (double)values->sample0;
    if (strcmp(name, "training") == 0)
        return values->evaluating ? 0 : 1;
    if (strcmp(name, "micro_batches") == 0)
        return (double)session->micro_batches;
    if (strcmp(name, "lr") == 0 || sscanf(name, "lr_%d", &group) == 1)
        return recipe_rate(&session->compilation->recipe, group, values->step,
                           values->update_of);
    internal_error("no value for the runtime scalar %s", name);
}

static bool run_function(Session *session, const char *name, ScalarValues values) {
    const Function *function = module_find_function(session->module, name);
    INTERNAL_CHECK(function);
    for (int64_t i = 0; i < function->scalar_count; i++)
        session->scalars[i] = scalar_value(session, function->scalars[i], &values);
    return session->engine->run(session->engine, name, session->scalars, session->diagnostics);
}

static double read_metric(Session *session, StateId metric) {
    double value;
    engine_read(session->engine, metric, &value);
    return value;
}

static bool fill_inputs(Session *session, const TokenData *data, SampleOrder order,
                        int64_t sample0) {
    for (int64_t i = 0; i < session->module->inputs.count; i++) {
        const Input *input = &session->module->inputs.data[i];
        int64_t width = axes_elements(session->module, input->axes + 1, input->axis_count - 1);
        if (!token_data_fill(data, order, session->options->seed, sample0, session->rows, width,
                             input->next, session->inputs[i], session->diagnostics))
            return false;
        session->engine->set_input(session->engine, (int)i, session->inputs[i]);
    }
    return true;
}

static void zero_states(Session *session, Role role) {
    double *zeros = checked_alloc(BLOCK_ELEMENTS * sizeof *zeros);
    for (StateId id = 0; id < session->module->states.count; id++) {
        const State *state = &session->module->states.data[id];
        if (state->role != role || state->flat)
            continue;
        StateBlock all = whole_state(session->module, id), block = {0};
        while (next_block(all.rows, all.columns, &block))
            session->engine->write(session->engine, id, block, zeros);
    }
    free(zeros);
}

/* Loss and weight since the last call. */
static LossSum take_loss(Session *session) {
    LossSum sum = {read_metric(session, session->loss_sum),
                   read_metric(session, session->weight_sum)};
    const double zero = 0;
    engine_write(session->engine, session->loss_sum, &zero);
    engine_write(session->engine, session->weight_sum, &zero);
    return sum;
}

/* Runs `eval` over the first `batches` micro-batches of the validation data, in order. */
static bool evaluate(Session *session, int64_t batches, LossSum *sum) {
    *sum = (LossSum){0};
    for (int64_t i = 0; i < batches; i++) {
        int64_t sample0 = i * session->rows;
        if (!fill_inputs(session, session->validation, ORDER_SEQUENTIAL, sample0) ||
            !run_function(session, "eval",
                          (ScalarValues){.sample0 = sample0, .evaluating = true}))
            return false;
        LossSum part = take_loss(session);
        sum->loss += part.loss;
        sum->weight += part.weight;
    }
    return true;
}

/* Whole micro-batches of the validation data; a short one wraps to fill one. */
static int64_t validation_batches(const Session *session) {
    int64_t batches = token_data_samples(session->validation) / session->rows;
    return batches ? batches : 1;
}

/* ---- rates -------------------------------------------------------------------------- */

double recipe_rate(const Recipe *recipe, int group, int64_t t, int64_t steps) {
    double rate = recipe->groups[group].rate;
    if (t < recipe->warmup)
        return rate * (double)t / (double)recipe->warmup;
    double progress = steps > recipe->warmup
                          ? (double)(t - recipe->warmup) / (double)(steps - recipe->warmup)
                          : 0;
    double share = recipe->final_share;
    switch (recipe->schedule) {
    case RATE_CONSTANT:
        return rate;
    case RATE_COSINE:
        return rate * (share + (1 - share) * 0.5 * (1 + cos(acos(-1.0) * progress)));
    case RATE_LINEAR:
        return rate * (1 - (1 - share) * progress);
    }
    internal_error("schedule %d", (int)recipe->schedule);
}

/* ---- training ----------------------------------------------------------------------- */

typedef struct Training {
    Session session;
    Progress *progress;
    StepFigures figures;
    StateId loss, gradient_norm;
    ARRAY(StateId) probed; /* gradients of few elements */
    ARRAY(StateId) observed;
    ARRAY(const char *) observed_names;
    ARRAY(double) observed_values;
    ARRAY(double) step_seconds;
    int64_t steps;
    double mark; /* when the last update was done */
} Training;

/* Of this run: one whose figures go to a caller is not to be cut short. */
static int interrupted(const Training *training) {
    return training->session.options->report ? 0 : interrupt_caught();
}

static void report_stop(const Training *training, int64_t step, const char *what, double value,
                        const char *remedy) {
    const Session *session = &training->session;
    const char *out = session->options->out;
    help(error_in_file(session->diagnostics, session->compilation->texts->main_path,
                       "%s of update %lld is %s; training stopped%s%s", what, (long long)step,
                       isnan(value) ? "NaN" : "infinite",
                       out ? ", and nothing was written to " : "", out ? out : ""),
         "%s", remedy);
}

static const char divergence_remedy[] =
    "a lower rate (`-D lr=…`), a longer warm-up or a clip helps most often; `--check-nan` runs "
    "until the same place and names the first bad tensor";

/* Runs the micro-batch at hand once more, watched, so that the first bad tensor is named too;
 * but where `micro` updates weights, the old ones are gone. */
static bool report_divergence(Training *training, const char *what, double value,
                              ScalarValues values) {
    Session *session = &training->session;
    report_stop(training, values.step, what, value, divergence_remedy);
    if (module_find_state(session->module, GRADIENT_SQUARES, ROLE_METRIC, 0) >= 0)
        return false;
    zero_states(session, ROLE_METRIC);
    zero_states(session, ROLE_GRADIENT);
    session->engine->watch(session->engine);
    run_function(session, "micro", values);
    return false;
}

/* A finite number, or the first that is none among the gradients of few elements: a NaN in the
 * backward part reaches the gains and biases of the layers before it. */
static double probe_gradients(Training *training) {
    Session *session = &training->session;
    double values[MAX_PROBED_ELEMENTS];
    for (int64_t i = 0; i < training->probed.count; i++) {
        StateId gradient = training->probed.data[i];
        int64_t count =
            type_elements(session->module, state_type(&session->module->states.data[gradient]));
        engine_read(session->engine, gradient, values);
        for (int64_t j = 0; j < count; j++)
            if (!isfinite(values[j]))
                return values[j];
    }
    return 0;
}

/* Where an engine runs ahead, nobody waits to look: what is wrong is seen in the update's
 * figures. */
static bool check_micro_batch(Training *training, ScalarValues values) {
    Session *session = &training->session;
    if (session->engine->runs_ahead)
        return true;
    double loss = read_metric(session, session->loss_sum);
    double gradient = probe_gradients(training);
    if (!isfinite(loss))
        return report_divergence(training, "the loss", loss, values);
    if (!isfinite(gradient))
        return report_divergence(training, "a gradient", gradient, values);
    return true;
}

/* Before `update` makes the weights what the gradients are. */
static bool run_micro_batches(Training *training, int64_t step) {
    Session *session = &training->session;
    for (int64_t micro = 0; micro < session->micro_batches; micro++) {
        int64_t sample0 = ((step - 1) * session->micro_batches + micro) * session->rows;
        ScalarValues values = {.step = step, .sample0 = sample0, .update_of = training->steps};
        if (!fill_inputs(session, session->data, session->options->order, sample0))
            return false;
        if (!run_function(session, "micro", values)) {
            if (session->options->executor.check_nan)
                report_stop(training, step, "a value", (double)NAN,
                            "the first one is named below");
            return false;
        }
        if (!check_micro_batch(training, values))
            return false;
    }
    return true;
}

static bool launch_update(Training *training, int64_t step) {
    Session *session = &training->session;
    if (!run_micro_batches(training, step) ||
        !run_function(session, "update",
                      (ScalarValues){.step = step, .update_of = training->steps}))
        return false;
    session->engine->fetch_metrics(session->engine, (int)(step % FETCH_PLACES));
    return true;
}

static double metric_of(const Training *training, int64_t step, StateId metric) {
    Engine *engine = training->session.engine;
    return engine->fetched_metric(engine, (int)(step % FETCH_PLACES), metric);
}

/* The figures of an update that was launched; waits for it. */
static bool collect_update(Training *training, int64_t step) {
    Session *session = &training->session;
    StepFigures *figures = &training->figures;
    figures->step = step;
    figures->loss = metric_of(training, step, training->loss);
    figures->gradient_norm = metric_of(training, step, training->gradient_norm);
    figures->rate = recipe_rate(&session->compilation->recipe, 0, step, training->steps);
    for (int64_t i = 0; i < training->observed.count; i++)
        training->observed_values.data[i] =
            metric_of(training, step, training->observed.data[i]);
    figures->peak_bytes = session->engine->bytes(session->engine);
    figures->seconds = now_seconds() - training->mark;
    figures->validated = false;
    if (isfinite(figures->loss) && isfinite(figures->gradient_norm))
        return true;
    if (session->engine->settle(session->engine, session->diagnostics)) {
        bool loss = !isfinite(figures->loss);
        report_stop(training, step, loss ? "the loss" : "the gradient norm",
                    loss ? figures->loss : figures->gradient_norm, divergence_remedy);
    }
    return false;
}

static bool validate(Training *training) {
    Session *session = &training->session;
    int64_t batches = validation_batches(session);
    LossSum sum;
    if (!evaluate(session, batches < MAX_VALIDATION_BATCHES ? batches : MAX_VALIDATION_BATCHES,
                  &sum))
        return false;
    training->figures.validation_loss = mean_loss(sum);
    training->figures.validated = true;
    return true;
}

static bool is_validation_step(const Training *training, int64_t step) {
    int64_t every = training->session.compilation->recipe.validate_every;
    return training->session.validation && !interrupted(training) &&
           (step == training->steps || (every > 0 && step % every == 0));
}

static bool finish_update(Training *training, int64_t step) {
    if (!collect_update(training, step) ||
        (is_validation_step(training, step) && !validate(training)))
        return false;
    array_push(&training->step_seconds, training->figures.seconds);
    if (training->progress)
        progress_step(training->progress, &training->figures);
    training->mark = now_seconds();
    return true;
}

/* False after reporting.  The figures are those of the last update.  An engine that runs ahead
 * is at the next update while the figures of one are collected. */
static bool run_updates(Training *training) {
    int64_t launched = 0, finished = 0;
    training->mark = now_seconds();
    while (launched < training->steps && !interrupted(training)) {
        if (!launch_update(training, ++launched))
            return false;
        bool all =
            !training->session.engine->runs_ahead || is_validation_step(training, launched);
        while (finished < (all ? launched : launched - 1))
            if (!finish_update(training, ++finished))
                return false;
    }
    while (finished < launched)
        if (!finish_update(training, ++finished))
            return false;
    return true;
}

static void get_weight(void *context, StateId weight, StateBlock block, double *values) {
    Engine *engine = context;
    engine->read(engine, weight, block, values);
}

/* What was read of a device that failed meanwhile is not published. */
static bool staged_is_true(const Session *session, NewFile *file) {
    if (session->engine->settle(session->engine, session->diagnostics))
        return true;
    new_file_abandon(file);
    return false;
}

static bool write_run(Training *training) {
    Session *session = &training->session;
    const TrainOptions *options = session->options;
    NewFile *weights = weights_stage(session->module, session->mapping, options->their_names,
                                     session->engine->double_precision,
                                     run_weights_path(options->out, session->arena), get_weight,
                                     session->engine, session->diagnostics);
    RunEnd end = {.device = session->engine->device,
                  .steps = training->figures.step,
                  .interrupted = interrupted(training) != 0,
                  .final_loss = training->figures.loss,
                  .validation_loss = training->figures.validation_loss};
    return weights && staged_is_true(session, weights) &&
           run_write(session->compilation, session->mapping, options, &end, weights,
                     session->diagnostics);
}

static void find_states(Training *training) {
    static const char prefix[] = "observed.";
    const Module *module = training->session.module;
    training->loss = module_find_state(module, "loss", ROLE_METRIC, 0);
    training->gradient_norm = module_find_state(module, "grad_norm", ROLE_METRIC, 0);
    INTERNAL_CHECK(training->loss >= 0 && training->gradient_norm >= 0);
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role == ROLE_GRADIENT && !state->flat &&
            type_elements(module, state_type(state)) <= MAX_PROBED_ELEMENTS)
            array_push(&training->probed, id);
        if (state->role != ROLE_METRIC || strncmp(state->path, prefix, sizeof prefix - 1) != 0)
            continue;
        array_push(&training->observed, id);
        array_push(&training->observed_names, state->path + sizeof prefix - 1);
        array_push(&training->observed_values, 0);
    }
}

/* The machine's peak of products; 0 where something else computes. */
static double measured_peak(const Training *training) {
    const TrainOptions *options = training->session.options;
    if (options->interpreter || options->device.open != device_cpu_open)
        return 0;
    MachineFigures machine = machine_measure();
    if (!options->json && !options->report)
        fprintf(stderr, "%s, %d threads: products at %.0f GFLOP/s, copies at %.1f GB/s\n",
                machine.processor, machine.threads, machine.product_flops / 1e9,
                machine.copy_bytes / 1e9);
    if (machine.product_flops < LEAST_FLOPS_A_BYTE * machine.copy_bytes)
        fprintf(stderr,
                "colac: warning: matrix products are slow on this machine; is the library "
                "built for this processor?\n");
    return machine.product_flops;
}

static int64_t parameters_of(const Module *module) {
    int64_t parameters = 0;
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role == ROLE_WEIGHT && !state->flat)
            parameters += type_elements(module, state_type(state));
    }
    return parameters;
}

static void print_plan(const Training *training) {
    const Session *session = &training->session;
    int64_t batch = session->rows * session->micro_batches;
    int64_t samples = training->steps * batch;
    fprintf(
        stderr,
        "%lld parameters; %lld update%s of %lld sequence%s of %lld tokens: %.2f passes over "
        "%lld tokens\n",
        (long long)parameters_of(session->module), (long long)training->steps,
        training->steps == 1 ? "" : "s", (long long)batch, batch == 1 ? "" : "s",
        (long long)session->compilation->positions,
        (double)samples / (double)token_data_samples(session->data),
        (long long)token_data_tokens(session->data));
}

static void training_begin(Training *training) {
    Session *session = &training->session;
    const TrainOptions *options = session->options;
    find_states(training);
    if (!options->json && !options->report)
        print_plan(training);
    if (!options->quiet)
        training->progress = progress_new(options->json, measured_peak(training));
    array_reserve(&training->step_seconds,
                  training->steps < MAX_TIMES_AHEAD ? training->steps : MAX_TIMES_AHEAD);
    Engine *engine = session->engine;
    training->figures = (StepFigures){
        .steps = training->steps,
        .loss = (double)NAN,
        .validation_loss = (double)NAN,
        .tokens = session->micro_batches * session->rows * session->compilation->positions,
        .flops = (double)session->micro_batches * engine->flops(engine, "micro") +
                 engine->flops(engine, "update"),
        .observed_count = (int)training->observed.count,
        .observed_names = training->observed_names.data,
        .observed = training->observed_values.data,
    };
}

static void print_result(const Training *training) {
    const StepFigures *figures = &training->figures;
    printf("%s after %lld updates: loss %.4f",
           interrupted(training) ? "interrupted" : "trained", (long long)figures->step,
           figures->loss);
    if (!isnan(figures->validation_loss))
        printf(", validation loss %.4f", figures->validation_loss);
    printf("; weights in %s/weights.safetensors\n", training->session.options->out);
}

static bool is_writable_folder(const char *path, Diagnostics *diagnostics) {
    if (!make_folder(path, diagnostics))
        return false;
    if (access(path, W_OK) == 0)
        return true;
    help(error_in_file(diagnostics, path, "the folder cannot be written to: %s",
                       strerror(errno)),
         "name another folder: `--out RUN`");
    return false;
}

static int compare_numbers(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts them. */
static double median(double *values, int64_t count) {
    if (!count)
        return 0;
    qsort(values, (size_t)count, sizeof *values, compare_numbers);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

static TrainReport report_of(Training *training) {
    const Session *session = &training->session;
    const StepFigures *figures = &training->figures;
    double seconds = 0;
    for (int64_t i = 0; i < training->step_seconds.count; i++)
        seconds += training->step_seconds.data[i];
    return (TrainReport){
        .steps = figures->step,
        .tokens = figures->step * figures->tokens,
        .final_loss = figures->loss,
        .validation_loss = figures->validation_loss,
        .seconds = seconds,
        .step_seconds = median(training->step_seconds.data, training->step_seconds.count),
        .flops = (double)figures->step * figures->flops,
        .peak_bytes = figures->peak_bytes,
        .compile_seconds = session->options->compile_seconds + session->engine->compile_seconds,
    };
}

static void print_report(const Training *training, const TrainReport *report) {
    progress_summary(training->progress, report->final_loss, report->validation_loss,
                     report->compile_seconds);
    if (!training->session.options->json)
        print_result(training);
}

static int run_training(Training *training) {
    const TrainOptions *options = training->session.options;
    training_begin(training);
    if (!options->report)
        interrupts_catch();
    bool good = run_updates(training);
    if (training->progress)
        progress_end(training->progress);
    good = good && (!options->out || write_run(training));
    if (!options->report)
        interrupts_release();
    if (good) {
        TrainReport report = report_of(training);
        if (options->report)
            *options->report = report;
        else
            print_report(training, &report);
    }
    progress_free(training->progress);
    int signal_number = interrupted(training);
    return !good ? 1 : signal_number ? 128 + signal_number : 0;
}

int train(Compilation *compilation, const ProgramSet *set, const TrainOptions *options,
          Diagnostics *diagnostics) {
    Training training = {0};
    int code = 1;
    bool is_new = options->out && access(options->out, F_OK) != 0;
    INTERNAL_CHECK(options->out || options->report);
    INTERNAL_CHECK(!options->quiet || options->report);
    if (session_open(&training.session, compilation, set, options, false, diagnostics) &&
        (training.steps = steps_of(&training.session)) > 0 &&
        (!options->out || is_writable_folder(options->out, diagnostics)))
        code = run_training(&training);
    if (code == 1 && is_new)
        rmdir(options->out); /* succeeds where it is empty */
    array_free(&training.probed);
    array_free(&training.observed);
    array_free(&training.observed_names);
    array_free(&training.observed_values);
    array_free(&training.step_seconds);
    session_close(&training.session);
    return code;
}

/* ---- gradients ---------------------------------------------------------------------- */

typedef struct Gradients {
    Session session;
    LossSum sum;
} Gradients;

static void get_gradient(void *context, StateId weight, StateBlock block, double *values) {
    Gradients *gradients = context;
    const Module *module = gradients->session.module;
    StateId gradient =
        module_find_state(module, module->states.data[weight].path, ROLE_GRADIENT, 0);
    INTERNAL_CHECK(gradient >= 0);
    gradients->session.engine->read(gradients->session.engine, gradient, block, values);
    for (int64_t i = 0; i < block.rows * block.columns && gradients->sum.weight != 0; i++)
        values[i] /= gradients->sum.weight;
}

static bool compute_gradients(Gradients *gradients) {
    Session *session = &gradients->session;
    for (int64_t micro = 0; micro < session->micro_batches; micro++) {
        int64_t sample0 = micro * session->rows;
        if (!fill_inputs(session, session->data, session->options->order, sample0) ||
            !run_function(session, "micro", (ScalarValues){.step = 1, .sample0 = sample0}))
            return false;
        LossSum part = take_loss(session);
        gradients->sum.loss += part.loss;
        gradients->sum.weight += part.weight;
    }
    return true;
}

/* The loss as a number, in full. */
static void print_loss(const TrainOptions *options, double loss, int64_t sequences) {
    if (options->json && isfinite(loss))
        printf("{\"loss\":%.17g,\"sequences\":%lld}\n", loss, (long long)sequences);
    else if (options->json)
        printf("{\"loss\":null,\"sequences\":%lld}\n", (long long)sequences);
    else
        printf("loss %.9g over %lld sequences\n", loss, (long long)sequences);
}

int run_grad(Compilation *compilation, const ProgramSet *set, const TrainOptions *options,
             Diagnostics *diagnostics) {
    Gradients gradients = {0};
    Session *session = &gradients.session;
    NewFile *file = NULL;
    bool good = session_open(session, compilation, set, options, false, diagnostics) &&
                compute_gradients(&gradients) &&
                (file = weights_stage(session->module, session->mapping, options->their_names,
                                      session->engine->double_precision, options->out,
                                      get_gradient, &gradients, diagnostics)) &&
                staged_is_true(session, file) && new_file_publish(file, diagnostics);
    if (good)
        print_loss(options, mean_loss(gradients.sum), session->micro_batches * session->rows);
    session_close(session);
    return good ? 0 : 1;
}

/* ---- evaluation --------------------------------------------------------------------- */

int run_eval(Compilation *compilation, const ProgramSet *set, const TrainOptions *options,
             Diagnostics *diagnostics) {
    Session session;
    LossSum sum;
    bool good = session_open(&session, compilation, set, options, true, diagnostics) &&
                evaluate(&session, validation_batches(&session), &sum) &&
                session.engine->settle(session.engine, diagnostics);
    if (good)
        print_loss(options, mean_loss(sum), validation_batches(&session) * session.rows);
    session_close(&session);
    return good ? 0 : 1;
}
