/* runtime/executor.c: the memory of a model and the running of its programs.
 *
 * All memory is had at once: a slab for each role (one for each moment), one buffer an input,
 * the arena.  A program is bound to it once: every step's operands become addresses, so that
 * running is a loop over calls.  Nothing is allocated in the training loop.
 */
#include "runtime/runtime.h"

#include <math.h>

/* Values that no run should read: signalling NaNs in f32 and in bf16, no index of anything in
 * i32. */
static const uint32_t poison_word = 0x7FA07FA0;
enum { POISON_GUARD = 1 << 16 }; /* bytes after a poisoned arena, so that an overrun is seen */

typedef struct BoundStep {
    const Step *step;
    void **buffers;  /* an address for each operand */
    double *scalars; /* filled before a run */
    const double *device_scalars;
    void *workspace; /* of a product; NULL */
} BoundStep;

typedef struct BoundProgram {
    const Program *program;
    BoundStep *steps;
    void **buffers;         /* the storage of all steps' */
    double *scalars;        /* likewise */
    double *device_scalars; /* the same in the device's memory */
    int64_t scalar_count;
    bool has_run; /* before anything is recorded: libraries load their kernels at first use */
    void *recording; /* NULL: not recorded yet */
    void *timed;     /* the same, with a mark before each step and after the last */
    double *host;    /* values of Program.host_scalars */
    int64_t host_step_count;
    NodeId *host_steps;  /* what these follow from, inputs first */
    double *host_values; /* by node of the function */
    double *seconds;     /* of each step in the last run */
} BoundProgram;

struct Executor {
    Device *device;
    const ProgramSet *set;
    ExecutorOptions options;
    bool timing;
    char **slabs;  /* [set->slabs.count] */
    char **inputs; /* [module->inputs.count] */
    char *arena;
    char *scalars;        /* in the device's memory, unless that is the host's: all programs' */
    int64_t scalar_bytes; /* so far */
    struct Mirror {
        const State *state; /* whose values it has; NULL */
        float *values;
        int64_t capacity; /* elements */
        bool changed;     /* the device has other values */
    } * mirror;
    int64_t bytes;
    BoundProgram *programs; /* [set->program_count] */
    struct Fetched {
        float *metrics; /* the slab of metrics, as it was */
        bool arrived;
    } fetched[FETCH_PLACES];
};

/* ---- sizes ----------------------------------------------------------------------------
 * Sizes are asked for by texts: sums and products saturate, so that an absurd one is refused
 * like any other that is too large. */

static int64_t saturated_sum(int64_t a, int64_t b) {
    return a > INT64_MAX - b ? INT64_MAX : a + b;
}

static int64_t element_bytes(int64_t elements) {
    const int64_t width = sizeof(float);
    return elements > INT64_MAX / width ? INT64_MAX : elements * width;
}

static int64_t input_bytes(const Module *module, int input) {
    const Input *declared = &module->inputs.data[input];
    return element_bytes(axes_elements(module, declared->axes, declared->axis_count));
}

static int64_t arena_size(const ProgramSet *set, const ExecutorOptions *options) {
    return saturated_sum(set->arena_bytes, options->poison ? POISON_GUARD : 0);
}

/* What there is to hold, row by row. */
typedef struct MemoryNeed {
    int64_t weights, gradients, optimizer, others, inputs, arena, own, total;
} MemoryNeed;

int64_t device_scalar_bytes(const ProgramSet *set) {
    const int64_t least = 1 << 20;
    int64_t bytes = 0;
    for (int i = 0; i < set->program_count; i++)
        for (int64_t k = 0; k < set->programs[i].step_count; k++)
            bytes += set->programs[i].steps[k].scalar_count * (int64_t)sizeof(double);
    return bytes > least ? bytes : least;
}

static MemoryNeed memory_need(const Device *device, const ProgramSet *set,
                              const ExecutorOptions *options) {
    MemoryNeed need = {.arena = arena_size(set, options)};
    int64_t *rows_of_roles[] = {
        [ROLE_WEIGHT] = &need.weights,     [ROLE_COPY] = &need.weights,
        [ROLE_GRADIENT] = &need.gradients, [ROLE_MOMENT] = &need.optimizer,
        [ROLE_TABLE] = &need.others,       [ROLE_METRIC] = &need.others};
    for (int i = 0; i < set->slabs.count; i++) {
        int64_t *row = rows_of_roles[set->slabs.data[i].role];
        *row = saturated_sum(*row, slab_bytes(&set->slabs.data[i]));
    }
    for (int i = 0; i < set->module->inputs.count; i++)
        need.inputs = saturated_sum(need.inputs, input_bytes(set->module, i));
    need.own = device->on_host ? 0 : device_scalar_bytes(set);
    int64_t rows[] = {need.weights, need.gradients, need.optimizer, need.others,
                      need.inputs,  need.arena,     need.own};
    for (int i = 0; i < COUNT_OF(rows); i++)
        need.total = saturated_sum(need.total, rows[i]);
    return need;
}

static void report_memory(const ProgramSet *set, const MemoryNeed *need, int64_t available,
                          Diagnostics *diagnostics) {
    char total[32], left[32], size[32];
    Diagnostic *d = error_in_file(
        diagnostics, set->module->name,
        need->total > available
            ? "this needs %s of memory, and %s are available (%lld of %lld B)"
            : "this needs %s of memory in a few large pieces, and of the %s that are available "
              "not all could be had so (%lld for %lld B)",
        bytes_text(need->total, total), bytes_text(available, left), (long long)available,
        (long long)need->total);
    const struct {
        const char *name;
        int64_t bytes;
    } rows[] = {{"weights", need->weights},       {"gradients", need->gradients},
                {"optimizer", need->optimizer},   {"tables", need->others},
                {"inputs", need->inputs},         {"activations and workspace", need->arena},
                {"scalars of kernels", need->own}};
    for (int i = 0; i < COUNT_OF(rows); i++)
        if (rows[i].bytes)
            note_at(d, (Span){0}, "%s: %s", rows[i].name, bytes_text(rows[i].bytes, size));
    if (program_find(set, "micro"))
        help(d,
             "fewer sequences at a time (the first dims of the model, by `-D`), or a plan that "
             "keeps less: `memory N MiB` in it finds the cheapest that fits");
    else
        help(d, "a run is evaluated as it was trained, with as many sequences at a time: that "
                "wants a machine or card with more memory");
}

/* ---- memory ------------------------------------------------------------------------ */
static bool allocate_one(Executor *executor, int64_t bytes, char **memory) {
    if (bytes == 0)
        return true;
    *memory = executor->device->allocate(executor->device, bytes);
    executor->bytes += bytes;
    return *memory;
}

static bool allocate_all(Executor *executor) {
    const ProgramSet *set = executor->set;
    bool good = true;
    executor->slabs = checked_alloc((size_t)set->slabs.count * sizeof(char *));
    executor->inputs = checked_alloc((size_t)set->module->inputs.count * sizeof(char *));
    for (int i = 0; good && i < set->slabs.count; i++)
        good = allocate_one(executor, slab_bytes(&set->slabs.data[i]), &executor->slabs[i]);
    for (int i = 0; good && i < set->module->inputs.count; i++)
        good = allocate_one(executor, input_bytes(set->module, i), &executor->inputs[i]);
    if (good && !executor->device->on_host)
        good = allocate_one(executor, device_scalar_bytes(set), &executor->scalars);
    return good &&
           allocate_one(executor, arena_size(set, &executor->options), &executor->arena);
}

static char *space_base(const Executor *executor, const Operand *operand) {
    if (operand->space == SPACE_INPUT)
        return executor->inputs[operand->number];
    if (operand->space == SPACE_ARENA)
        return executor->arena;
    Role role = (Role)operand->space;
    return executor->slabs[slab_index(&executor->set->slabs, role, operand->number)];
}

/* What a run computes on the host is known now, so that a run allocates nothing. */
static void bind_host_scalars(BoundProgram *bound) {
    const Program *program = bound->program;
    size_t count = (size_t)program->host_scalar_count;
    bound->host = checked_alloc(count * sizeof *bound->host);
    NodeId *wanted = checked_alloc(count * sizeof *wanted);
    int64_t nodes = 0;
    for (size_t i = 0; i < count; i++)
        if (program->host_scalars[i] >= 0) /* else an argument itself */
            wanted[nodes++] = program->host_scalars[i];
    bound->host_step_count =
        interp_scalar_steps(program->function, wanted, nodes, &bound->host_steps);
    size_t values = 0;
    if (bound->host_step_count)
        values = (size_t)bound->host_steps[bound->host_step_count - 1] + 1;
    bound->host_values = checked_alloc(values * sizeof *bound->host_values);
    free(wanted);
}

/* Where kernels read their scalars. */
static void bind_device_scalars(Executor *executor, BoundProgram *bound) {
    bound->device_scalars = bound->scalars;
    if (!executor->device->on_host)
        bound->device_scalars = (double *)(void *)(executor->scalars + executor->scalar_bytes);
    executor->scalar_bytes += bound->scalar_count * (int64_t)sizeof(double);
    for (int64_t i = 0; i < bound->program->step_count; i++)
        bound->steps[i].device_scalars =
            bound->device_scalars + (bound->steps[i].scalars - bound->scalars);
}

static void bind_program(Executor *executor, const Program *program, BoundProgram *bound) {
    int64_t buffer_count = 0, scalar_count = 0;
    for (int64_t i = 0; i < program->step_count; i++) {
        buffer_count += program->steps[i].operand_count;
        scalar_count += program->steps[i].scalar_count;
    }
    size_t steps = (size_t)program->step_count;
    bound->program = program;
    bound->steps = checked_alloc(steps * sizeof *bound->steps);
    bound->seconds = checked_alloc(steps * sizeof *bound->seconds);
    bound->buffers = checked_alloc((size_t)buffer_count * sizeof *bound->buffers);
    bound->scalars = checked_alloc((size_t)scalar_count * sizeof *bound->scalars);
    bind_host_scalars(bound);
    void **buffers = bound->buffers;
    double *scalars = bound->scalars;
    for (int64_t i = 0; i < program->step_count; i++) {
        const Step *step = &program->steps[i];
        bound->steps[i] = (BoundStep){step, buffers, scalars, NULL, NULL};
        if (step->workspace.bytes)
            bound->steps[i].workspace =
                space_base(executor, &step->workspace) + step->workspace.offset;
        for (int j = 0; j < step->operand_count; j++)
            *buffers++ = space_base(executor, &step->operands[j]) + step->operands[j].offset;
        scalars += step->scalar_count;
    }
    bound->scalar_count = scalar_count;
    bind_device_scalars(executor, bound);
}

static void unbind_program(BoundProgram *bound) {
    free(bound->steps);
    free(bound->seconds);
    free(bound->buffers);
    free(bound->scalars);
    free(bound->host);
    free(bound->host_steps);
    free(bound->host_values);
}

/* False after reporting that the device has failed. */
static bool is_well(Device *device, Diagnostics *diagnostics) {
    const char *failure = device->failure ? device->failure(device) : NULL;
    if (failure)
        error_in_file(diagnostics, device->name, "%s", failure);
    return !failure;
}

/* `available`: what there was. */
static bool fits(Device *device, const ProgramSet *set, const MemoryNeed *need,
                 int64_t *available, Diagnostics *diagnostics) {
    *available = device->available_bytes(device);
    if (!is_well(device, diagnostics))
        return false;
    if (need->total > *available)
        report_memory(set, need, *available, diagnostics);
    return need->total <= *available;
}

Executor *executor_new(Device *device, const ProgramSet *set, const ExecutorOptions *options,
                       Diagnostics *diagnostics) {
    MemoryNeed need = memory_need(device, set, options);
    int64_t available;
    if (!fits(device, set, &need, &available, diagnostics) ||
        !device->load(device, set, diagnostics))
        return NULL;
    /* Its kernels' code takes some. */
    if (!device->on_host && !fits(device, set, &need, &available, diagnostics))
        return NULL;
    Executor *executor = checked_alloc(sizeof *executor);
    executor->device = device;
    executor->set = set;
    executor->options = *options;
    executor->mirror = checked_alloc(sizeof *executor->mirror);
    executor->programs = checked_alloc((size_t)set->program_count * sizeof *executor->programs);
    bool good = allocate_all(executor);
    int64_t metric_bytes =
        slab_bytes(&set->slabs.data[slab_index(&set->slabs, ROLE_METRIC, 0)]);
    for (int i = 0; i < FETCH_PLACES; i++)
        executor->fetched[i].metrics = checked_alloc((size_t)metric_bytes);
    for (int i = 0; good && i < set->program_count; i++)
        bind_program(executor, &set->programs[i], &executor->programs[i]);
    if (good)
        return executor;
    if (is_well(device, diagnostics))
        report_memory(set, &need, available, diagnostics);
    executor_free(executor);
    return NULL;
}

void executor_free(Executor *executor) {
    if (!executor)
        return;
    const ProgramSet *set = executor->set;
    Device *device = executor->device;
    for (int i = 0; i < set->program_count; i++)
        unbind_program(&executor->programs[i]);
    for (int i = 0; i < set->slabs.count; i++)
        device->release(device, executor->slabs[i]);
    for (int i = 0; i < set->module->inputs.count; i++)
        device->release(device, executor->inputs[i]);
    device->release(device, executor->arena);
    device->release(device, executor->scalars);
    for (int i = 0; i < FETCH_PLACES; i++)
        free(executor->fetched[i].metrics);
    free(executor->mirror->values);
    free(executor->mirror);
    free(executor->slabs);
    free(executor->inputs);
    free(executor->programs);
    free(executor);
}

int64_t executor_bytes(const Executor *executor) {
    Device *device = executor->device;
    return executor->bytes + (device->scratch_bytes ? device->scratch_bytes(device) : 0);
}

/* ---- the values of states ---------------------------------------------------------- */
/* How a tensor of these axes, slowest first, is found in the memory of a state. */
typedef struct Arrangement {
    int rank;
    int64_t extents[MAX_AXES], strides[MAX_AXES];
    int64_t rows, row; /* all extents but the last, multiplied; the last (1 without axes) */
} Arrangement;

/* The stride of an axis in a state's memory. */
static int64_t memory_stride(const Module *module, const State *state, AxisId axis) {
    int64_t stride = 1;
    for (int i = state->order_count - 1; i >= 0 && state->order[i] != axis; i--)
        stride *= module->axes.data[state->order[i]].size;
    return stride;
}

static Arrangement arrange(const Module *module, const State *state, const AxisId *axes,
                           int rank) {
    Arrangement a = {.rank = rank, .rows = 1, .row = 1};
    INTERNAL_CHECK(state->order_count == rank && state->dtype == TYPE_F32);
    for (int i = 0; i < rank; i++) {
        a.extents[i] = module->axes.data[axes[i]].size;
        a.strides[i] = memory_stride(module, state, axes[i]);
        a.rows *= i < rank - 1 ? a.extents[i] : 1;
    }
    if (rank > 0)
        a.row = a.extents[rank - 1];
    return a;
}

/* In declared order: in axes, then out axes. */
static Arrangement arrange_declared(const Module *module, const State *state) {
    AxisId axes[2 * MAX_AXES];
    memcpy(axes, state->in, (size_t)state->in_count * sizeof *axes);
    memcpy(axes + state->in_count, state->out, (size_t)state->out_count * sizeof *axes);
    return arrange(module, state, axes, state->in_count + state->out_count);
}

/* Where row `row` begins in the state's memory. */
static int64_t row_offset(const Arrangement *a, int64_t row) {
    int64_t offset = 0;
    for (int i = a->rank - 2; i >= 0; i--) {
        offset += row % a->extents[i] * a->strides[i];
        row /= a->extents[i];
    }
    return offset;
}

static int64_t last_stride(const Arrangement *a) {
    return a->rank ? a->strides[a->rank - 1] : 0;
}

static char *state_memory(const Executor *executor, const State *state) {
    INTERNAL_CHECK(state->offset >= 0 && !state->flat);
    int slab = slab_index(&executor->set->slabs, state->role, state->number);
    int64_t place = state->offset - executor->set->slabs.data[slab].begin;
    return executor->slabs[slab] + place * dtype_bytes(state->dtype);
}

/* A state's memory where the host can reach it: itself, or the executor's mirror of it. */
typedef struct StateMemory {
    float *values;
    uint16_t *copy; /* of a weight that has one: its values rounded; NULL */
} StateMemory;

/* Where the copy of a weight lies; NULL where it has none. */
static char *copy_memory(const Executor *executor, const State *weight) {
    if (weight->role != ROLE_WEIGHT)
        return NULL;
    StateId id = module_find_state(executor->set->module, weight->path, ROLE_COPY, 0);
    if (id < 0)
        return NULL;
    const State *copy = &executor->set->module->states.data[id];
    INTERNAL_CHECK(copy->offset == weight->offset && !copy->flat && copy->dtype == TYPE_BF16);
    return state_memory(executor, copy);
}

static int64_t memory_elements(const Executor *executor, const State *state) {
    return type_elements(executor->set->module, state_type(state));
}

/* Gives a changed mirror's values back to the device, and to the weight's copy there. */
static void flush_mirror(const Executor *executor) {
    struct Mirror *mirror = executor->mirror;
    Device *device = executor->device;
    if (!mirror->changed)
        return;
    int64_t count = memory_elements(executor, mirror->state);
    char *copy = copy_memory(executor, mirror->state);
    device->copy_in(device, state_memory(executor, mirror->state), mirror->values,
                    element_bytes(count));
    mirror->changed = false;
    if (!copy)
        return;
    uint16_t *rounded = checked_alloc((size_t)count * sizeof *rounded);
    for (int64_t i = 0; i < count; i++)
        rounded[i] = bf16_of(mirror->values[i]);
    device->copy_in(device, copy, rounded, count * (int64_t)sizeof *rounded);
    free(rounded);
}

/* From here on the device's values may be others. */
static void leave_mirror(const Executor *executor) {
    flush_mirror(executor);
    executor->mirror->state = NULL;
}

/* What is done with a state's values.  BLANK: they are 0 and will be changed. */
typedef enum MemoryUse { MEMORY_READ, MEMORY_CHANGED, MEMORY_BLANK } MemoryUse;

/* States are read and written in blocks, but copied from and to a device whole: once for all
 * blocks that follow each other. */
static void load_mirror(const Executor *executor, const State *state, MemoryUse use) {
    struct Mirror *mirror = executor->mirror;
    Device *device = executor->device;
    if (mirror->state == state)
        return;
    leave_mirror(executor);
    int64_t count = memory_elements(executor, state);
    if (count > mirror->capacity) {
        free(mirror->values);
        mirror->values = checked_alloc((size_t)count * sizeof *mirror->values);
        mirror->capacity = count;
    }
    if (use == MEMORY_BLANK)
        memset(mirror->values, 0, (size_t)element_bytes(count));
    else
        device->copy_out(device, mirror->values, state_memory(executor, state),
                         element_bytes(count));
    mirror->state = state;
}

static StateMemory open_memory(const Executor *executor, const State *state, MemoryUse use) {
    if (executor->device->on_host)
        return (StateMemory){(float *)(void *)state_memory(executor, state),
                             (uint16_t *)(void *)copy_memory(executor, state)};
    load_mirror(executor, state, use);
    executor->mirror->changed |= use != MEMORY_READ;
    return (StateMemory){executor->mirror->values, NULL};
}

/* Of the arrangement's elements from `first` on, those of one row, at most `left`: how many,
 * and where the first lies. */
static int64_t run_of(const Arrangement *a, int64_t first, int64_t left, int64_t *offset) {
    int64_t column = first % a->row, count = a->row - column;
    *offset = row_offset(a, first / a->row) + column * last_stride(a);
    return count < left ? count : left;
}

/* Elements [first, first + count) of an arrangement. */
static void gather(const StateMemory *memory, const Arrangement *a, int64_t first,
                   int64_t count, float *values) {
    int64_t stride = last_stride(a), offset;
    for (int64_t done = 0, run; done < count; done += run) {
        run = run_of(a, first + done, count - done, &offset);
        for (int64_t i = 0; i < run; i++)
            values[done + i] = memory->values[offset + i * stride];
    }
}

static void scatter(StateMemory *memory, const Arrangement *a, int64_t first, int64_t count,
                    const float *values) {
    int64_t stride = last_stride(a), offset;
    for (int64_t done = 0, run; done < count; done += run) {
        run = run_of(a, first + done, count - done, &offset);
        for (int64_t i = 0; i < run; i++)
            memory->values[offset + i * stride] = values[done + i];
        for (int64_t i = 0; i < run && memory->copy; i++)
            memory->copy[offset + i * stride] = bf16_of(values[done + i]);
    }
}

StateBlock whole_state(const Module *module, StateId id) {
    const State *state = &module->states.data[id];
    return (StateBlock){.rows = axes_elements(module, state->in, state->in_count),
                        .columns = axes_elements(module, state->out, state->out_count)};
}

bool next_block(int64_t rows, int64_t columns, StateBlock *block) {
    bool whole_rows = columns <= BLOCK_ELEMENTS;
    block->first_column += block->columns;
    if (whole_rows || block->first_column == columns) {
        block->first_column = 0;
        block->first_row += block->rows;
    }
    int64_t left = rows - block->first_row, right = columns - block->first_column;
    block->rows = !whole_rows                       ? 1
                  : left < BLOCK_ELEMENTS / columns ? left
                                                    : BLOCK_ELEMENTS / columns;
    block->columns = right < BLOCK_ELEMENTS ? right : BLOCK_ELEMENTS;
    return left > 0;
}

void executor_read_block(const Executor *executor, StateId id, StateBlock block,
                         float *values) {
    const Module *module = executor->set->module;
    Arrangement a = arrange_declared(module, &module->states.data[id]);
    int64_t width = whole_state(module, id).columns;
    StateMemory memory = open_memory(executor, &module->states.data[id], MEMORY_READ);
#pragma omp parallel for if (block.rows > 1)
    for (int64_t row = 0; row < block.rows; row++)
        gather(&memory, &a, (block.first_row + row) * width + block.first_column, block.columns,
               values + row * block.columns);
}

void executor_write_block(Executor *executor, StateId id, StateBlock block,
                          const float *values) {
    const Module *module = executor->set->module;
    Arrangement a = arrange_declared(module, &module->states.data[id]);
    int64_t width = whole_state(module, id).columns;
    StateMemory memory = open_memory(executor, &module->states.data[id], MEMORY_CHANGED);
#pragma omp parallel for if (block.rows > 1)
    for (int64_t row = 0; row < block.rows; row++)
        scatter(&memory, &a, (block.first_row + row) * width + block.first_column,
                block.columns, values + row * block.columns);
}

void executor_read_state(const Executor *executor, StateId id, float *values) {
    executor_read_block(executor, id, whole_state(executor->set->module, id), values);
}

void executor_write_state(Executor *executor, StateId id, const float *values) {
    executor_write_block(executor, id, whole_state(executor->set->module, id), values);
}

/* ---- initial values -------------------------------------------------------------------
 * Element i of a state is a function of seed, path and i alone (i counts in declared order), so
 * that no plan and no layout changes where another parameter starts. */
enum { INITIAL_BLOCK = 4096 }; /* elements made at a time; even */

/* Two independent standard normal values: Box-Muller.  Pair j makes elements 2j and 2j + 1. */
static void normal_pair(uint64_t seed, uint64_t site, int64_t pair, double values[2]) {
    const double two_pi = 6.283185307179586476925286766559;
    double radius = sqrt(-2 * log(1 - random_uniform(seed, 0, site, 0, (uint64_t)pair)));
    double angle = two_pi * random_uniform(seed, 0, site, 1, (uint64_t)pair);
    values[0] = radius * cos(angle);
    values[1] = radius * sin(angle);
}

/* Elements begin … begin + count - 1; `begin` is even. */
static void initial_block(const State *state, uint64_t seed, int64_t begin, int64_t count,
                          float *values) {
    uint64_t site = hash_bytes(state->path, strlen(state->path), (uint64_t)state->number);
    double scale = state->init.scale, two[2] = {0};
    for (int64_t i = 0; i < count; i++) {
        switch (state->init.kind) {
        case INIT_ZEROS:
            values[i] = 0;
            break;
        case INIT_CONSTANT:
            values[i] = (float)scale;
            break;
        case INIT_NORMAL:
            if (i % 2 == 0)
                normal_pair(seed, site, (begin + i) / 2, two);
            values[i] = (float)(scale * two[i % 2]);
            break;
        case INIT_UNIFORM:
            values[i] =
                (float)(scale *
                        (2 * random_uniform(seed, 0, site, 0, (uint64_t)(begin + i)) - 1));
            break;
        }
    }
}

static int64_t block_size(int64_t count, int64_t block) {
    int64_t left = count - block * INITIAL_BLOCK;
    return left < INITIAL_BLOCK ? left : INITIAL_BLOCK;
}

void initial_values(const Module *module, StateId id, uint64_t seed, float *values) {
    const State *state = &module->states.data[id];
    int64_t count = type_elements(module, state_type(state));
#pragma omp parallel for
    for (int64_t block = 0; block <= (count - 1) / INITIAL_BLOCK; block++)
        initial_block(state, seed, block * INITIAL_BLOCK, block_size(count, block),
                      values + block * INITIAL_BLOCK);
}

/* The same, block by block to where they lie in memory: no more than one copy is held. */
static void initialize_state(Executor *executor, StateId id, uint64_t seed) {
    const Module *module = executor->set->module;
    const State *state = &module->states.data[id];
    Arrangement a = arrange_declared(module, state);
    int64_t count = a.rows * a.row;
    StateMemory memory = open_memory(executor, state, MEMORY_BLANK);
#pragma omp parallel for
    for (int64_t block = 0; block <= (count - 1) / INITIAL_BLOCK; block++) {
        float values[INITIAL_BLOCK];
        int64_t begin = block * INITIAL_BLOCK, size = block_size(count, block);
        initial_block(state, seed, begin, size, values);
        scatter(&memory, &a, begin, size, values);
    }
}

/* Tables: `init` in double, each value rounded once. */
static void initialize_tables(Executor *executor) {
    const Module *module = executor->set->module;
    const Function *init = module_find_function(module, "init");
    if (!init)
        return;
    Interp *interp = interp_new(module);
    interp_run(interp, init, NULL, false);
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        if (state->role != ROLE_TABLE || state->flat)
            continue;
        Type type = state_type(state);
        Arrangement a = arrange(module, state, type.axes, type.rank);
        const double *computed = interp_state(interp, id);
        StateMemory memory = open_memory(executor, state, MEMORY_BLANK);
        for (int64_t i = 0; i < a.rows * a.row; i++) {
            float value = (float)computed[i];
            scatter(&memory, &a, i, 1, &value);
        }
    }
    interp_free(interp);
}

/* What lies between states stays zero, so that sums over a slab see the states alone. */
void executor_initialize(Executor *executor, uint64_t seed) {
    const ProgramSet *set = executor->set;
    Device *device = executor->device;
    leave_mirror(executor);
    for (int i = 0; i < set->slabs.count; i++)
        device->zero(device, executor->slabs[i], slab_bytes(&set->slabs.data[i]));
    for (StateId id = 0; id < set->module->states.count; id++) {
        const State *state = &set->module->states.data[id];
        if ((state->role == ROLE_WEIGHT || state->role == ROLE_MOMENT) && !state->flat &&
            state->init.kind != INIT_ZEROS)
            initialize_state(executor, id, seed);
    }
    initialize_tables(executor);
}

void executor_set_input(Executor *executor, int input, const int32_t *values) {
    executor->device->copy_in(executor->device, executor->inputs[input], values,
                              input_bytes(executor->set->module, input));
}

double executor_metric(const Executor *executor, const char *path) {
    const Module *module = executor->set->module;
    StateId id = module_find_state(module, path, ROLE_METRIC, 0);
    if (id < 0)
        internal_error("no metric is named %s", path);
    float value = 0;
    flush_mirror(executor);
    executor->device->copy_out(executor->device, &value,
                               state_memory(executor, &module->states.data[id]), sizeof value);
    return (double)value;
}

static const Slab *metric_slab(const Executor *executor, char **memory) {
    int slab = slab_index(&executor->set->slabs, ROLE_METRIC, 0);
    *memory = executor->slabs[slab];
    return &executor->set->slabs.data[slab];
}

void executor_fetch_metrics(Executor *executor, int place) {
    Device *device = executor->device;
    struct Fetched *fetched = &executor->fetched[place];
    char *memory;
    int64_t bytes = slab_bytes(metric_slab(executor, &memory));
    INTERNAL_CHECK(bytes <= FETCH_BYTES);
    flush_mirror(executor);
    fetched->arrived = device->on_host;
    if (device->on_host)
        memcpy(fetched->metrics, memory, (size_t)bytes);
    else
        device->fetch(device, place, memory, bytes);
}

double executor_fetched_metric(Executor *executor, int place, StateId metric) {
    struct Fetched *fetched = &executor->fetched[place];
    char *memory;
    const Slab *slab = metric_slab(executor, &memory);
    if (!fetched->arrived)
        executor->device->fetched(executor->device, place, fetched->metrics, slab_bytes(slab));
    fetched->arrived = true;
    return (double)
        fetched->metrics[executor->set->module->states.data[metric].offset - slab->begin];
}

/* ---- looking for NaN and infinity -------------------------------------------------- */
/* Element i of an array of f32 or bf16. */
static float float_at(const char *memory, DataType dtype, int64_t i) {
    uint32_t bits = 0;
    uint16_t half;
    if (dtype == TYPE_BF16) {
        memcpy(&half, memory + i * (int64_t)sizeof half, sizeof half);
        bits = (uint32_t)half << 16;
    } else {
        memcpy(&bits, memory + i * (int64_t)sizeof bits, sizeof bits);
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The first element that is NaN or infinite; -1: none.  Minus infinity is what masks are made
 * of: `masks` lets it pass. */
static int64_t first_bad(const Executor *executor, const void *at, DataType dtype,
                         int64_t bytes, bool masks) {
    char *memory = checked_alloc((size_t)bytes);
    int64_t first = INT64_MAX, count = bytes / dtype_bytes(dtype);
    executor->device->copy_out(executor->device, memory, at, bytes);
#pragma omp parallel for reduction(min : first)
    for (int64_t i = 0; i < count; i++) {
        float value = float_at(memory, dtype, i);
        bool bad = !isfinite(value) && !(masks && isinf(value) && value < 0);
        if (bad && i < first)
            first = i;
    }
    free(memory);
    return first == INT64_MAX ? -1 : first;
}

/* A kernel's buffers are its pointers and others that are local to it. */
static const Buffer *argument_buffer(const Kernel *kernel, int argument) {
    for (int64_t i = 0; i < kernel->buffers.count; i++)
        if (kernel->buffers.data[i].argument == argument)
            return &kernel->buffers.data[i];
    internal_error("a kernel without a pointer %d", argument);
}

/* Does the step write floats of its own through this operand, and which?  (Scratch may hold
 * anything.) */
static bool operand_is_written(const ProgramSet *set, const Step *step, int operand,
                               DataType *dtype) {
    const Operand *o = &step->operands[operand];
    *dtype = o->space == SPACE_COPY ? TYPE_BF16 : TYPE_F32;
    if (o->scratch)
        return false;
    if (step->kind == STEP_PRODUCT) {
        *dtype = set->products[step->index].bf16_result ? TYPE_BF16 : TYPE_F32;
        return operand == 2;
    }
    if (step->kind == STEP_COPY)
        return operand == 1 && o->space != SPACE_ARENA;
    if (step->kind == STEP_ZERO)
        return false;
    const Buffer *buffer = argument_buffer(set->kernels[step->index], operand);
    *dtype = buffer->dtype;
    return buffer->writes && dtype_is_float(buffer->dtype);
}

/* Is the operand a weight, or its copy, with a value that is not finite? */
static bool weight_is_bad(const Executor *executor, const Operand *operand, const void *at) {
    if (operand->space != SPACE_WEIGHT && operand->space != SPACE_COPY)
        return false;
    DataType dtype = operand->space == SPACE_COPY ? TYPE_BF16 : TYPE_F32;
    return first_bad(executor, at, dtype, operand->bytes, false) >= 0;
}

/* True when all that the step wrote is finite. */
static bool check_step(const Executor *executor, const Program *program, const BoundStep *bound,
                       Diagnostics *diagnostics) {
    const Step *step = bound->step;
    for (int i = 0; i < step->operand_count; i++) {
        DataType dtype;
        if (!operand_is_written(executor->set, step, i, &dtype))
            continue;
        const Operand *operand = &step->operands[i];
        int64_t bad = first_bad(executor, bound->buffers[i], dtype, operand->bytes,
                                operand->space == SPACE_ARENA);
        if (bad < 0)
            continue;
        Diagnostic *d = error_at(
            diagnostics, step->span,
            "in `%s`, step %lld (`%s`) wrote a value that is no finite number: element %lld of "
            "%lld, %s",
            program->name, (long long)(step - program->steps),
            step->label ? step->label : "unnamed", (long long)bad,
            (long long)(operand->bytes / dtype_bytes(dtype)), space_name(operand->space));
        for (int j = 0; j < step->operand_count; j++)
            if (j != i && weight_is_bad(executor, &step->operands[j], bound->buffers[j]))
                help(d, "a weight that it reads was not finite before: look at `--weights`, or "
                        "lower the rate");
        return false;
    }
    return true;
}

void executor_check_nan(Executor *executor) {
    executor->options.check_nan = true;
}

/* ---- poison ------------------------------------------------------------------------ */
static void poison_arena(Executor *executor) {
    int64_t bytes = arena_size(executor->set, &executor->options);
    int64_t words = bytes / (int64_t)sizeof poison_word;
    uint32_t *poison = checked_alloc((size_t)bytes + sizeof *poison);
    for (int64_t i = 0; i < words; i++)
        poison[i] = poison_word;
    executor->device->copy_in(executor->device, executor->arena, poison, bytes);
    free(poison);
}

int64_t executor_arena_touched(const Executor *executor) {
    if (!executor->options.poison)
        return 0;
    int64_t bytes = arena_size(executor->set, &executor->options);
    int64_t words = bytes / (int64_t)sizeof poison_word;
    uint32_t *memory = checked_alloc((size_t)bytes + sizeof *memory);
    executor->device->copy_out(executor->device, memory, executor->arena, bytes);
    while (words > 0 && memory[words - 1] == poison_word)
        words--;
    free(memory);
    return words * (int64_t)sizeof poison_word;
}

/* ---- running ----------------------------------------------------------------------- */
static BoundProgram *find_bound(const Executor *executor, const char *name) {
    for (int i = 0; i < executor->set->program_count; i++)
        if (strcmp(executor->set->programs[i].name, name) == 0)
            return &executor->programs[i];
    internal_error("there is no program %s", name);
}

/* The host's scalars, and each step's arguments from them. */
static void compute_scalars(BoundProgram *bound, const double *arguments) {
    const Program *program = bound->program;
    for (int64_t i = 0; i < bound->host_step_count; i++) {
        NodeId id = bound->host_steps[i];
        bound->host_values[id] =
            interp_scalar_step(program->function, id, arguments, bound->host_values);
    }
    for (int i = 0; i < program->host_scalar_count; i++) {
        NodeId source = program->host_scalars[i];
        bound->host[i] = source < 0 ? arguments[-1 - source] : bound->host_values[source];
    }
    for (int64_t i = 0; i < program->step_count; i++)
        for (int j = 0; j < program->steps[i].scalar_count; j++)
            bound->steps[i].scalars[j] = bound->host[program->steps[i].scalars[j]];
}

static void run_step(Device *device, const BoundStep *bound) {
    const Step *step = bound->step;
    void *const *buffers = bound->buffers;
    switch (step->kind) {
    case STEP_LAUNCH:
        device->launch(device, step->index, buffers, bound->device_scalars);
        return;
    case STEP_PRODUCT:
        device->product(device, step->index, buffers[0], buffers[1], buffers[2],
                        bound->workspace);
        return;
    case STEP_COPY:
        device->copy(device, buffers[1], buffers[0], step->operands[1].bytes);
        return;
    case STEP_ZERO:
        device->zero(device, buffers[0], step->operands[0].bytes);
        return;
    }
}

static bool run_steps(Executor *executor, BoundProgram *bound, Diagnostics *diagnostics) {
    Device *device = executor->device;
    for (int64_t i = 0; i < bound->program->step_count; i++) {
        double start = executor->timing ? now_seconds() : 0;
        run_step(device, &bound->steps[i]);
        if (executor->timing) {
            device->synchronize(device);
            bound->seconds[i] = now_seconds() - start;
        }
        if (executor->options.check_nan &&
            !check_step(executor, bound->program, &bound->steps[i], diagnostics))
            return false;
    }
    return true;
}

static void *record_steps(Device *device, const BoundProgram *bound, bool timing) {
    int64_t count = bound->program->step_count;
    device->record(device);
    for (int64_t i = 0; i < count; i++) {
        if (timing)
            device->mark(device, i);
        run_step(device, &bound->steps[i]);
    }
    if (timing)
        device->mark(device, count);
    return device->recorded(device);
}

/* All addresses and scalars' places are the same in every run, so that a recording never
 * changes. */
static void run_recorded(const Executor *executor, BoundProgram *bound) {
    Device *device = executor->device;
    void **recording = executor->timing ? &bound->timed : &bound->recording;
    if (!*recording)
        *recording = record_steps(device, bound, executor->timing);
    device->replay(device, *recording);
    if (!executor->timing)
        return;
    device->synchronize(device);
    for (int64_t i = 0; i < bound->program->step_count; i++)
        bound->seconds[i] = device->between(device, i);
}

bool executor_settle(Executor *executor, Diagnostics *diagnostics) {
    flush_mirror(executor);
    executor->device->synchronize(executor->device);
    return is_well(executor->device, diagnostics);
}

bool executor_run(Executor *executor, const char *name, const double *scalars,
                  Diagnostics *diagnostics) {
    Device *device = executor->device;
    BoundProgram *bound = find_bound(executor, name);
    leave_mirror(executor);
    if (executor->options.poison)
        poison_arena(executor);
    compute_scalars(bound, scalars);
    if (!device->on_host && bound->scalar_count)
        device->copy_in(device, bound->device_scalars, bound->scalars,
                        bound->scalar_count * (int64_t)sizeof(double));
    bool by_steps = (executor->timing && !device->mark) || executor->options.check_nan ||
                    !device->record || !bound->has_run;
    bound->has_run = true;
    if (!by_steps)
        run_recorded(executor, bound);
    else if (!run_steps(executor, bound, diagnostics))
        return false;
    return is_well(device, diagnostics);
}

void executor_set_timing(Executor *executor, bool on) {
    executor->timing = on;
}

const double *executor_step_seconds(const Executor *executor, const char *program) {
    return find_bound(executor, program)->seconds;
}
