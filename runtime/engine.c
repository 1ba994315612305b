/* runtime/engine.c: two ways to compute a run behind one table: compiled programs in f32, and
 * the interpreter in double precision. */
#include "runtime/runtime.h"

#include <math.h>

void engine_read(Engine *engine, StateId state, double *values) {
    engine->read(engine, state, whole_state(engine->module, state), values);
}

void engine_write(Engine *engine, StateId state, const double *values) {
    engine->write(engine, state, whole_state(engine->module, state), values);
}

/* ---- the executor ------------------------------------------------------------------- */

typedef struct ExecutorEngine {
    Engine engine; /* first, so that one is the other */
    const ProgramSet *set;
    Device *device;
    Executor *executor;
} ExecutorEngine;

static ExecutorEngine *executor_of(Engine *engine) {
    return (ExecutorEngine *)(void *)engine;
}

static int64_t state_elements(const Module *module, StateId state) {
    return type_elements(module, state_type(&module->states.data[state]));
}

static void executor_engine_initialize(Engine *engine, uint64_t seed) {
    executor_initialize(executor_of(engine)->executor, seed);
}

static void executor_engine_set_input(Engine *engine, int input, const int32_t *values) {
    executor_set_input(executor_of(engine)->executor, input, values);
}

static bool executor_engine_run(Engine *engine, const char *function, const double *scalars,
                                Diagnostics *diagnostics) {
    return executor_run(executor_of(engine)->executor, function, scalars, diagnostics);
}

static void executor_engine_read(Engine *engine, StateId state, StateBlock block,
                                 double *values) {
    int64_t count = block.rows * block.columns;
    Floats floats;
    executor_read_block(executor_of(engine)->executor, state, block,
                        floats_begin(&floats, count));
    for (int64_t i = 0; i < count; i++)
        values[i] = (double)floats.data[i];
    floats_end(&floats);
}

static void executor_engine_write(Engine *engine, StateId state, StateBlock block,
                                  const double *values) {
    int64_t count = block.rows * block.columns;
    Floats floats;
    float *single = floats_begin(&floats, count);
    for (int64_t i = 0; i < count; i++)
        single[i] = (float)values[i];
    executor_write_block(executor_of(engine)->executor, state, block, single);
    floats_end(&floats);
}

static void executor_engine_fetch_metrics(Engine *engine, int place) {
    executor_fetch_metrics(executor_of(engine)->executor, place);
}

static double executor_engine_fetched_metric(Engine *engine, int place, StateId metric) {
    return executor_fetched_metric(executor_of(engine)->executor, place, metric);
}

static bool executor_engine_settle(Engine *engine, Diagnostics *diagnostics) {
    return executor_settle(executor_of(engine)->executor, diagnostics);
}

static void executor_engine_watch(Engine *engine) {
    executor_check_nan(executor_of(engine)->executor);
}

static int64_t executor_engine_bytes(Engine *engine) {
    return executor_bytes(executor_of(engine)->executor);
}

static double executor_engine_flops(Engine *engine, const char *function) {
    const Program *program = program_find(executor_of(engine)->set, function);
    double flops = 0;
    for (int64_t i = 0; program && i < program->step_count; i++)
        flops += program->steps[i].flops;
    return flops;
}

static void executor_engine_close(Engine *engine) {
    ExecutorEngine *self = executor_of(engine);
    if (self->executor)
        executor_free(self->executor);
    if (self->device)
        self->device->close(self->device);
    free(self);
}

Engine *engine_executor(Device *device, const ProgramSet *set, const ExecutorOptions *options,
                        Diagnostics *diagnostics) {
    ExecutorEngine *self = checked_alloc(sizeof *self);
    self->set = set;
    self->engine = (Engine){
        .module = set->module,
        .initialize = executor_engine_initialize,
        .set_input = executor_engine_set_input,
        .run = executor_engine_run,
        .read = executor_engine_read,
        .write = executor_engine_write,
        .fetch_metrics = executor_engine_fetch_metrics,
        .fetched_metric = executor_engine_fetched_metric,
        .settle = executor_engine_settle,
        .watch = executor_engine_watch,
        .bytes = executor_engine_bytes,
        .flops = executor_engine_flops,
        .close = executor_engine_close,
    };
    self->engine.device = device->title ? device->title : device->name;
    self->engine.runs_ahead = !device->on_host;
    self->device = device;
    self->executor = executor_new(device, set, options, diagnostics);
    if (self->executor) {
        self->engine.compile_seconds = self->device->compile_seconds;
        return &self->engine;
    }
    executor_engine_close(&self->engine);
    return NULL;
}

/* ---- the interpreter ---------------------------------------------------------------- */

typedef struct InterpreterEngine {
    Engine engine;
    Interp *interp;
    double *fetched[FETCH_PLACES]; /* metrics, by state */
    int32_t **inputs;              /* the interpreter does not copy them */
    bool check_nan;
} InterpreterEngine;

static InterpreterEngine *interpreter_of(Engine *engine) {
    return (InterpreterEngine *)(void *)engine;
}

/* How declared order is found in the interpreter's, which is that of ascending axis ids. */
typedef struct DeclaredOrder {
    int rank;
    int64_t columns;                                  /* of all out axes */
    int64_t size[2 * MAX_AXES], stride[2 * MAX_AXES]; /* by declared axis */
} DeclaredOrder;

static DeclaredOrder declared_order(const Module *module, StateId id) {
    const State *state = &module->states.data[id];
    Type type = state_type(state);
    DeclaredOrder order = {.rank = type.rank, .columns = whole_state(module, id).columns};
    for (int i = 0; i < type.rank; i++) {
        AxisId axis = i < state->in_count ? state->in[i] : state->out[i - state->in_count];
        order.size[i] = module->axes.data[axis].size;
        order.stride[i] = 1;
        for (int other = type.rank - 1; type.axes[other] != axis; other--)
            order.stride[i] *= module->axes.data[type.axes[other]].size;
    }
    return order;
}

/* Where value `i` of a block is. */
static int64_t place_of(const DeclaredOrder *order, StateBlock block, int64_t i) {
    int64_t row = block.first_row + i / block.columns, place = 0;
    int64_t element = row * order->columns + block.first_column + i % block.columns;
    for (int axis = order->rank - 1; axis >= 0; axis--) {
        place += element % order->size[axis] * order->stride[axis];
        element /= order->size[axis];
    }
    return place;
}

static void interpreter_engine_read(Engine *engine, StateId state, StateBlock block,
                                    double *values) {
    DeclaredOrder order = declared_order(engine->module, state);
    const double *memory = interp_state(interpreter_of(engine)->interp, state);
    for (int64_t i = 0; i < block.rows * block.columns; i++)
        values[i] = memory[place_of(&order, block, i)];
}

/* A weight's copy gets the values too: an update would write them there, not rounded either. */
static void interpreter_engine_write(Engine *engine, StateId id, StateBlock block,
                                     const double *values) {
    const Module *module = engine->module;
    const State *state = &module->states.data[id];
    Interp *interp = interpreter_of(engine)->interp;
    StateId copy =
        state->role == ROLE_WEIGHT ? module_find_state(module, state->path, ROLE_COPY, 0) : -1;
    DeclaredOrder order = declared_order(module, id);
    double *memory = interp_state(interp, id);
    double *copied = copy >= 0 ? interp_state(interp, copy) : NULL;
    for (int64_t i = 0; i < block.rows * block.columns; i++) {
        int64_t place = place_of(&order, block, i);
        memory[place] = values[i];
        if (copied)
            copied[place] = values[i];
    }
}

/* Zeroes what is no weight, copy or table: those get their own values. */
static void interpreter_engine_initialize(Engine *engine, uint64_t seed) {
    const Module *module = engine->module;
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->flat || state->role == ROLE_COPY)
            continue;
        int64_t count = state_elements(module, id);
        double *values = checked_alloc((size_t)count * sizeof *values);
        if (state->role == ROLE_WEIGHT) {
            float *single = checked_alloc((size_t)count * sizeof *single);
            initial_values(module, id, seed, single);
            for (int64_t i = 0; i < count; i++)
                values[i] = (double)single[i];
            free(single);
        }
        interpreter_engine_write(engine, id, whole_state(module, id), values);
        free(values);
    }
    const Function *init = module_find_function(module, "init");
    if (init)
        interp_run(interpreter_of(engine)->interp, init, NULL, false);
}

static void interpreter_engine_set_input(Engine *engine, int input, const int32_t *values) {
    InterpreterEngine *self = interpreter_of(engine);
    const Input *declared = &engine->module->inputs.data[input];
    size_t count = (size_t)axes_elements(engine->module, declared->axes, declared->axis_count);
    if (!self->inputs[input])
        self->inputs[input] = checked_alloc(count * sizeof **self->inputs);
    memcpy(self->inputs[input], values, count * sizeof *values);
    interp_set_input(self->interp, input, self->inputs[input]);
}

/* 0: finite; 1: an infinity; 2: a NaN. */
static int badness(const double *values, int64_t count) {
    int worst = 0;
    for (int64_t i = 0; i < count && worst < 2; i++)
        if (!isfinite(values[i]))
            worst = isnan(values[i]) ? 2 : 1;
    return worst;
}

static int badness_of(const Interp *interp, const Function *function, NodeId id) {
    const double *values = interp_value(interp, id);
    return values
               ? badness(values, type_elements(function->module, node_at(function, id)->type))
               : 0;
}

/* The first value that is worse than all it was computed from.  Infinities that the text asks
 * for (the -inf of a mask) come from constants and are no fault. */
static NodeId first_bad_value(const Interp *interp, const Function *function) {
    for (NodeId id = 0; id < function->nodes.count; id++) {
        const Node *node = node_at(function, id);
        int bad = node->op == OP_CONST ? 0 : badness_of(interp, function, id);
        for (int i = 0; bad && i < node->input_count; i++)
            if (badness_of(interp, function, node->inputs[i]) >= bad)
                bad = 0;
        if (bad)
            return id;
    }
    return -1;
}

static void report_bad_value(const Function *function, NodeId id, int bad,
                             Diagnostics *diagnostics) {
    const Node *node = node_at(function, id);
    const char *path = function->module->scopes.data[node->scope].path;
    Arena *arena = arena_new();
    Diagnostic *d = error_at(
        diagnostics, node->span, "in `%s` the first value to become %s is%s %s%s%s (op %s, %s)",
        function->name, bad == 2 ? "NaN" : "infinite",
        node->adjoint_of >= 0 ? " the gradient of a value in" : "", *path ? path : "the model",
        node->name ? "." : "", node->name ? node->name : "", op_info[node->op].name,
        type_text(function->module, node->type, arena));
    if (node->op == OP_STATE)
        help(d, "a weight was not finite before: look at `--weights`, or lower the rate");
    arena_free(arena);
}

static bool interpreter_engine_run(Engine *engine, const char *name, const double *scalars,
                                   Diagnostics *diagnostics) {
    InterpreterEngine *self = interpreter_of(engine);
    const Function *function = module_find_function(engine->module, name);
    interp_run(self->interp, function, scalars, self->check_nan);
    if (!self->check_nan)
        return true;
    NodeId id = first_bad_value(self->interp, function);
    if (id >= 0)
        report_bad_value(function, id, badness_of(self->interp, function, id), diagnostics);
    return id < 0;
}

static void interpreter_engine_watch(Engine *engine) {
    interpreter_of(engine)->check_nan = true;
}

static int64_t interpreter_engine_bytes(Engine *engine) {
    (void)engine;
    return process_resident_bytes();
}

/* Its share of any peak would say nothing. */
static double interpreter_engine_flops(Engine *engine, const char *function) {
    (void)engine, (void)function;
    return 0;
}

static void interpreter_engine_fetch_metrics(Engine *engine, int place) {
    InterpreterEngine *self = interpreter_of(engine);
    for (StateId id = 0; id < engine->module->states.count; id++)
        if (engine->module->states.data[id].role == ROLE_METRIC)
            self->fetched[place][id] = interp_state(self->interp, id)[0];
}

static double interpreter_engine_fetched_metric(Engine *engine, int place, StateId metric) {
    return interpreter_of(engine)->fetched[place][metric];
}

static bool interpreter_engine_settle(Engine *engine, Diagnostics *diagnostics) {
    (void)engine; /* nothing is under way, and nothing can fail */
    (void)diagnostics;
    return true;
}

static void interpreter_engine_close(Engine *engine) {
    InterpreterEngine *self = interpreter_of(engine);
    for (int i = 0; i < FETCH_PLACES; i++)
        free(self->fetched[i]);
    for (int64_t i = 0; i < engine->module->inputs.count; i++)
        free(self->inputs[i]);
    free(self->inputs);
    interp_free(self->interp);
    free(self);
}

Engine *engine_interpreter(const Module *module, bool check_nan, Diagnostics *diagnostics) {
    double needed = interp_bytes(module), available = (double)machine_available_bytes();
    if (needed > available) {
        help(
            error_in_file(diagnostics, module->name,
                          "in double precision this needs %.1f MiB of memory, and %.1f MiB are "
                          "available",
                          needed / 1048576, available / 1048576),
            "the interpreter is for small models: choose a smaller preset, fewer sequences "
            "(the first dims of the model, by `-D`), or `--device cpu`");
        return NULL;
    }
    InterpreterEngine *self = checked_alloc(sizeof *self);
    self->engine = (Engine){
        .module = module,
        .device = "interpreter",
        .double_precision = true,
        .initialize = interpreter_engine_initialize,
        .set_input = interpreter_engine_set_input,
        .run = interpreter_engine_run,
        .read = interpreter_engine_read,
        .write = interpreter_engine_write,
        .fetch_metrics = interpreter_engine_fetch_metrics,
        .fetched_metric = interpreter_engine_fetched_metric,
        .settle = interpreter_engine_settle,
        .watch = interpreter_engine_watch,
        .bytes = interpreter_engine_bytes,
        .flops = interpreter_engine_flops,
        .close = interpreter_engine_close,
    };
    self->interp = interp_new(module);
    for (int i = 0; i < FETCH_PLACES; i++)
        self->fetched[i] =
            checked_alloc((size_t)module->states.count * sizeof *self->fetched[i]);
    self->inputs = checked_alloc((size_t)module->inputs.count * sizeof *self->inputs);
    self->check_nan = check_nan;
    return &self->engine;
}
