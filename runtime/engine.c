/* runtime/engine.c: two ways to compute a run behind one table: compiled programs in f32, and
 * the interpreter in double precision. */
#include "runtime/runtime.h"

#include <math.h>

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

static void executor_engine_read(Engine *engine, StateId state, double *values) {
    int64_t count = state_elements(engine->module, state);
    Floats floats;
    float *single = floats_begin(&floats, count);
    executor_read_state(executor_of(engine)->executor, state, single);
    for (int64_t i = 0; i < count; i++)
        values[i] = (double)single[i];
    floats_end(&floats);
}

static void executor_engine_write(Engine *engine, StateId state, const double *values) {
    int64_t count = state_elements(engine->module, state);
    Floats floats;
    float *single = floats_begin(&floats, count);
    for (int64_t i = 0; i < count; i++)
        single[i] = (float)values[i];
    executor_write_state(executor_of(engine)->executor, state, single);
    floats_end(&floats);
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

Engine *engine_executor(const ProgramSet *set, int threads, const ExecutorOptions *options,
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
        .watch = executor_engine_watch,
        .bytes = executor_engine_bytes,
        .flops = executor_engine_flops,
        .close = executor_engine_close,
    };
    self->device = device_cpu_open(threads, diagnostics);
    if (self->device)
        self->executor = executor_new(self->device, set, options, diagnostics);
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
    int32_t **inputs; /* the interpreter does not copy them */
    bool check_nan;
} InterpreterEngine;

static InterpreterEngine *interpreter_of(Engine *engine) {
    return (InterpreterEngine *)(void *)engine;
}

/* Copies between declared order (in, then out axes) and the interpreter's (ascending axis ids).
 */
static void reorder(const Module *module, const State *state, const double *from, double *to,
                    bool from_declared) {
    Type type = state_type(state);
    int64_t size[2 * MAX_AXES], stride[2 * MAX_AXES], position[2 * MAX_AXES] = {0};
    for (int i = 0; i < type.rank; i++) {
        AxisId axis = i < state->in_count ? state->in[i] : state->out[i - state->in_count];
        size[i] = module->axes.data[axis].size;
        stride[i] = 1; /* of the axis in type order */
        for (int other = type.rank - 1; type.axes[other] != axis; other--)
            stride[i] *= module->axes.data[type.axes[other]].size;
    }
    int64_t count = type_elements(module, type), offset = 0;
    for (int64_t element = 0; element < count; element++) {
        if (from_declared)
            to[offset] = from[element];
        else
            to[element] = from[offset];
        for (int i = type.rank - 1; i >= 0; i--) {
            offset += stride[i];
            if (++position[i] < size[i])
                break;
            offset -= size[i] * stride[i];
            position[i] = 0;
        }
    }
}

static void interpreter_engine_read(Engine *engine, StateId state, double *values) {
    reorder(engine->module, &engine->module->states.data[state],
            interp_state(interpreter_of(engine)->interp, state), values, false);
}

/* A weight's copy gets the values too: an update would write them there, not rounded either. */
static void interpreter_engine_write(Engine *engine, StateId id, const double *values) {
    const Module *module = engine->module;
    const State *state = &module->states.data[id];
    Interp *interp = interpreter_of(engine)->interp;
    reorder(module, state, values, interp_state(interp, id), true);
    StateId copy =
        state->role == ROLE_WEIGHT ? module_find_state(module, state->path, ROLE_COPY, 0) : -1;
    if (copy >= 0)
        reorder(module, &module->states.data[copy], values, interp_state(interp, copy), true);
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
        interpreter_engine_write(engine, id, values);
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

static void interpreter_engine_close(Engine *engine) {
    InterpreterEngine *self = interpreter_of(engine);
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
        .double_precision = true,
        .initialize = interpreter_engine_initialize,
        .set_input = interpreter_engine_set_input,
        .run = interpreter_engine_run,
        .read = interpreter_engine_read,
        .write = interpreter_engine_write,
        .watch = interpreter_engine_watch,
        .bytes = interpreter_engine_bytes,
        .flops = interpreter_engine_flops,
        .close = interpreter_engine_close,
    };
    self->interp = interp_new(module);
    self->inputs = checked_alloc((size_t)module->inputs.count * sizeof *self->inputs);
    self->check_nan = check_nan;
    return &self->engine;
}
