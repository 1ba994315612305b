/* ir/interp.c: evaluates a graph in double precision, one op at a time, in the plainest way
 * that is not absurdly slow.  It is the oracle of all tests, so nothing here is shared with the
 * kernels. */
#include "ir/ir.h"

#include <math.h>

struct Interp {
    const Module *module;
    bool round;
    int64_t state_count;
    double **states; /* by state id, in type order; NULL: not touched yet, or flat */
    const int32_t **inputs;

    /* Of the last run. */
    const Function *function;
    const double *scalars;
    int64_t value_count;
    double **values; /* by node id, in type order; NULL: not evaluated or freed */
};

Interp *interp_new(const Module *module) {
    Interp *interp = checked_alloc(sizeof *interp);
    interp->module = module;
    interp->inputs = checked_alloc((size_t)module->inputs.count * sizeof *interp->inputs);
    return interp;
}

static void free_values(Interp *interp) {
    for (int64_t id = 0; id < interp->value_count; id++)
        free(interp->values[id]);
    free(interp->values);
    interp->values = NULL;
    interp->value_count = 0;
}

void interp_free(Interp *interp) {
    if (!interp)
        return;
    free_values(interp);
    for (int64_t i = 0; i < interp->state_count; i++)
        free(interp->states[i]);
    free(interp->states);
    free(interp->inputs);
    free(interp);
}

static double *alloc_elements(const Module *module, Type type) {
    int64_t elements = type_elements(module, type);
    INTERNAL_CHECK(elements <= MAX_ELEMENTS);
    return checked_alloc((size_t)elements * sizeof(double));
}

double *interp_state(Interp *interp, StateId state) {
    const Module *module = interp->module;
    INTERNAL_CHECK(state >= 0 && state < module->states.count);
    if (module->states.data[state].flat)
        return NULL;
    if (module->states.count > interp->state_count) { /* a pass may have added states */
        size_t old = (size_t)interp->state_count, count = (size_t)module->states.count;
        interp->states = checked_realloc(interp->states, count * sizeof *interp->states);
        memset(interp->states + old, 0, (count - old) * sizeof *interp->states);
        interp->state_count = module->states.count;
    }
    if (!interp->states[state])
        interp->states[state] = alloc_elements(module, state_type(&module->states.data[state]));
    return interp->states[state];
}

void interp_set_input(Interp *interp, int input, const int32_t *data) {
    INTERNAL_CHECK(input >= 0 && input < interp->module->inputs.count);
    interp->inputs[input] = data;
}

void interp_set_round(Interp *interp, bool round) {
    interp->round = round;
}

/* ---- walking over axes --------------------------------------------------------------- */

/* A nest of loops, slowest first, with up to three offsets that move along. */
enum { TRACKS = 3, MAX_LOOPS = 2 * MAX_AXES };
typedef struct Walk {
    int rank;
    int64_t size[MAX_LOOPS], position[MAX_LOOPS];
    int64_t stride[MAX_LOOPS][TRACKS];
    int64_t offset[TRACKS];
} Walk;

static void walk_loop(Walk *walk, int64_t size, int64_t stride0, int64_t stride1,
                      int64_t stride2) {
    INTERNAL_CHECK(walk->rank < MAX_LOOPS);
    int64_t strides[TRACKS] = {stride0, stride1, stride2};
    walk->size[walk->rank] = size;
    memcpy(walk->stride[walk->rank++], strides, sizeof strides);
}

/* Steps the fastest loop that has a next position; false after the last. */
static bool walk_next(Walk *walk) {
    for (int loop = walk->rank - 1; loop >= 0; loop--) {
        for (int track = 0; track < TRACKS; track++)
            walk->offset[track] += walk->stride[loop][track];
        if (++walk->position[loop] < walk->size[loop])
            return true;
        for (int track = 0; track < TRACKS; track++)
            walk->offset[track] -= walk->size[loop] * walk->stride[loop][track];
        walk->position[loop] = 0;
    }
    return false;
}

/* The fastest loop, taken out of the nest so that it can be a plain `for`. */
typedef struct InnerLoop {
    int64_t size, stride[TRACKS];
} InnerLoop;

static InnerLoop walk_pop(Walk *walk) {
    InnerLoop inner = {.size = 1};
    if (walk->rank) {
        walk->rank--;
        inner.size = walk->size[walk->rank];
        memcpy(inner.stride, walk->stride[walk->rank], sizeof inner.stride);
    }
    return inner;
}

static int64_t axis_size(const Module *module, AxisId axis) {
    return module->axes.data[axis].size;
}

/* Elements from one position of `axis` to the next in a value of that type; 0 if it lacks it.
 */
static int64_t stride_in(const Module *module, Type type, AxisId axis) {
    if (!type_has(type, axis))
        return 0;
    int64_t stride = 1;
    for (int i = type.rank - 1; type.axes[i] != axis; i--)
        stride *= axis_size(module, type.axes[i]);
    return stride;
}

/* target[offset 0] = source[offset 1] over the whole nest. */
static void copy_strided(Walk walk, double *target, const double *source) {
    InnerLoop inner = walk_pop(&walk);
    do {
        double *to = target + walk.offset[0];
        const double *from = source + walk.offset[1];
        for (int64_t i = 0; i < inner.size; i++)
            to[i * inner.stride[0]] = from[i * inner.stride[1]];
    } while (walk_next(&walk));
}

/* ---- maps
 * ----------------------------------------------------------------------------------------------
 */

static double round_to_bf16(double number) {
    float single = (float)number;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    if (isnan(single))
        return single;
    bits += 0x7FFF + (bits >> 16 & 1); /* nearest, ties to even */
    bits &= 0xFFFF0000;
    memcpy(&single, &bits, sizeof single);
    return single;
}

static double round_to(double number, DataType dtype) {
    switch (dtype) {
    case TYPE_F32:
        return (double)(float)number;
    case TYPE_BF16:
        return round_to_bf16(number);
    default:
        return number;
    }
}

/* Integers are 32 bits in two's complement, as in the kernels. */
static double wrapped(int64_t a) {
    return (double)(int32_t)(uint32_t)a;
}

/* Truncated; what lies outside is moved to the nearest end, NaN to 0. */
static double whole(double a) {
    return isnan(a) ? 0 : trunc(fmin(fmax(a, INT32_MIN), INT32_MAX));
}

static double cast(double a, DataType dtype) {
    switch (dtype) {
    case TYPE_BOOL:
        return a != 0;
    case TYPE_I32:
        return whole(a);
    default:
        return a;
    }
}

static double sigmoid(double a) {
    double e = exp(-fabs(a));
    return a >= 0 ? 1 / (1 + e) : e / (1 + e);
}

/* The remainder that has the divisor's sign: of the floored quotient. */
static double floored_mod(double a, double b) {
    double remainder = fmod(a, b);
    return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

static bool is_integer_arithmetic(Op op) {
    return op == OP_NEG || op == OP_ABS || op == OP_ADD || op == OP_SUB || op == OP_MUL ||
           op == OP_DIV || op == OP_MOD;
}

/* Both are integers.  Quotients are floored; a division by zero gives 0. */
static double apply_integer(Op op, double a, double b) {
    switch (op) {
    case OP_NEG:
        return wrapped(-(int64_t)a);
    case OP_ABS:
        return wrapped(llabs((int64_t)a));
    case OP_ADD:
        return wrapped((int64_t)a + (int64_t)b);
    case OP_SUB:
        return wrapped((int64_t)a - (int64_t)b);
    case OP_MUL:
        return wrapped((int64_t)a * (int64_t)b);
    case OP_DIV:
        return b == 0 ? 0 : wrapped((int64_t)floor(a / b));
    default:
        INTERNAL_CHECK(op == OP_MOD);
        return b == 0 ? 0 : floored_mod(a, b);
    }
}

/* `dtype` is the result's. */
static double apply(Op op, DataType dtype, double a, double b, double c) {
    if (dtype == TYPE_I32 && is_integer_arithmetic(op))
        return apply_integer(op, a, b);
    switch (op) {
    case OP_NEG:
        return -a;
    case OP_ABS:
        return fabs(a);
    case OP_EXP:
        return exp(a);
    case OP_LOG:
        return log(a);
    case OP_SQRT:
        return sqrt(a);
    case OP_TANH:
        return tanh(a);
    case OP_SIGMOID:
        return sigmoid(a);
    case OP_ERF:
        return erf(a);
    case OP_SIN:
        return sin(a);
    case OP_COS:
        return cos(a);
    case OP_FLOOR:
        return floor(a);
    case OP_SIGN:
        return (a > 0) - (a < 0);
    case OP_NOT:
        return a == 0;
    case OP_CAST:
        return cast(a, dtype);
    case OP_STOP:
    case OP_COPY:
        return a;
    case OP_ADD:
        return a + b;
    case OP_SUB:
        return a - b;
    case OP_MUL:
        return a * b;
    case OP_DIV:
        return a / b;
    case OP_MOD:
        return floored_mod(a, b);
    case OP_POW:
        return pow(a, b);
    case OP_MAXIMUM:
        return a > b ? a : b;
    case OP_MINIMUM:
        return a < b ? a : b;
    case OP_LT:
        return a < b;
    case OP_LE:
        return a <= b;
    case OP_EQ:
        return a == b;
    case OP_AND:
        return a != 0 && b != 0;
    case OP_OR:
        return a != 0 || b != 0;
    case OP_WHERE:
        return a != 0 ? b : c;
    case OP_FMA:
        return fma(a, b, c);
    default:
        internal_error("%s is no map", op_info[op].name);
    }
}

/* The same, rounded once to the result's dtype.  fma in double then f32 would round twice. */
static double apply_rounded(Op op, DataType dtype, double a, double b, double c) {
    if (op == OP_FMA && dtype == TYPE_F32)
        return (double)fmaf((float)a, (float)b, (float)c);
    return round_to(apply(op, dtype, a, b, c), dtype);
}

static void eval_map(const Interp *interp, const Node *node, int64_t elements, double *out) {
    static const double unused = 0;
    const double *operands[3] = {&unused, &unused, &unused};
    int64_t step[3] = {0};
    for (int i = 0; i < node->input_count; i++) {
        operands[i] = interp->values[node->inputs[i]];
        step[i] = 1;
    }
    double (*map)(Op, DataType, double, double, double) = interp->round ? apply_rounded : apply;
    for (int64_t i = 0; i < elements; i++)
        out[i] = map(node->op, node->type.dtype, operands[0][i * step[0]],
                     operands[1][i * step[1]], operands[2][i * step[2]]);
}

/* ---- leaves
 * ----------------------------------------------------------------------------------------------
 */

/* The counter-based generator of Salmon, Moraes, Dror and Shaw (SC 2011), four words of 32
 * bits, ten rounds. */
static void philox(uint32_t counter[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53 * counter[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57 * counter[2];
        uint32_t next[4] = {(uint32_t)(product1 >> 32) ^ counter[1] ^ key0, (uint32_t)product1,
                            (uint32_t)(product0 >> 32) ^ counter[3] ^ key1, (uint32_t)product0};
        memcpy(counter, next, sizeof next);
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

double random_uniform(uint64_t seed, uint64_t step, uint64_t site, uint64_t sample,
                      uint64_t index) {
    /* splitmix64's finalizer makes the 64 bits of key from both; the low word is key 0. */
    uint64_t key = seed * 0x9E3779B97F4A7C15 + site;
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9;
    key = (key ^ key >> 27) * 0x94D049BB133111EB;
    key ^= key >> 31;
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)step, (uint32_t)sample,
                           (uint32_t)(index >> 32 & 0xFFFF) | (uint32_t)(sample >> 32 << 16)};
    philox(counter, (uint32_t)key, (uint32_t)(key >> 32));
    return (counter[0] >> 8) * 0x1p-24;
}

/* A runtime scalar by name, as a counter; 0 where the function lacks it. */
static uint64_t counter_scalar(const Interp *interp, const char *name) {
    for (int64_t i = 0; i < interp->function->scalar_count; i++)
        if (strcmp(interp->function->scalars[i], name) == 0)
            return (uint64_t)(int64_t)interp->scalars[i];
    return 0;
}

static bool is_sample_axis(const Module *module, AxisId axis) {
    for (int64_t i = 0; i < module->inputs.count; i++)
        if (module->inputs.data[i].axis_count && module->inputs.data[i].axes[0] == axis)
            return true;
    return false;
}

/* Track 0: the element; track 1: its index within the sample; track 2: the sample. */
static void eval_random(const Interp *interp, const Node *node, double *out) {
    const Module *module = interp->module;
    Type type = node->type, within = type;
    int sample_axis = -1;
    for (int i = 0; i < type.rank && sample_axis < 0; i++)
        if (is_sample_axis(module, type.axes[i]))
            sample_axis = type.axes[i];
    if (sample_axis >= 0)
        within = type_without(type, (AxisId)sample_axis);
    Walk walk = {0};
    for (int i = 0; i < type.rank; i++)
        walk_loop(&walk, axis_size(module, type.axes[i]), stride_in(module, type, type.axes[i]),
                  stride_in(module, within, type.axes[i]), type.axes[i] == sample_axis);
    uint64_t seed = counter_scalar(interp, "seed"), step = counter_scalar(interp, "step");
    uint64_t sample0 = sample_axis >= 0 ? counter_scalar(interp, "sample0") : 0;
    do {
        out[walk.offset[0]] =
            random_uniform(seed, step, (uint64_t)node->attr.integer,
                           sample0 + (uint64_t)walk.offset[2], (uint64_t)walk.offset[1]);
    } while (walk_next(&walk));
}

static void eval_input(const Interp *interp, const Node *node, double *out) {
    const Module *module = interp->module;
    const Input *input = &module->inputs.data[node->attr.integer];
    const int32_t *data = interp->inputs[node->attr.integer];
    if (!data)
        internal_error("input %s has no data", input->name);
    Walk walk = {0};
    for (int i = 0; i < input->axis_count; i++)
        walk_loop(&walk, axis_size(module, input->axes[i]),
                  stride_in(module, node->type, input->axes[i]), 0, 0);
    do {
        out[walk.offset[0]] = *data++;
    } while (walk_next(&walk));
}

/* Calls `visit` for the elements of the slab that lie in a flat state's window: position in the
 * window, and the member's element in type order. */
static void walk_window(Interp *interp, const State *window, double *flat, int64_t size,
                        void (*visit)(double *flat, double *member)) {
    const Module *module = interp->module;
    for (int64_t id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        Type type = state_type(state);
        if (state->flat || state->role != window->role || state->number != window->number ||
            state->offset < 0 || state->offset >= window->offset + size ||
            state->offset + type_elements(module, type) <= window->offset)
            continue;
        AxisId declared[2 * MAX_AXES];
        memcpy(declared, state->in, sizeof state->in);
        memcpy(declared + state->in_count, state->out, sizeof state->out);
        const AxisId *order = state->order_count >= 0 ? state->order : declared;
        Walk walk = {0};
        for (int i = 0; i < type.rank; i++)
            walk_loop(&walk, axis_size(module, order[i]), stride_in(module, type, order[i]), 0,
                      0);
        double *member = interp_state(interp, (StateId)id);
        int64_t position = state->offset - window->offset;
        do {
            if (position >= 0 && position < size)
                visit(flat + position, member + walk.offset[0]);
            position++;
        } while (walk_next(&walk));
    }
}

static void read_member(double *flat, double *member) {
    *flat = *member;
}

static void write_member(double *flat, double *member) {
    *member = *flat;
}

/* The state's elements in a fresh array; padding between the members of a slab reads as 0. */
static void eval_state(Interp *interp, StateId id, int64_t elements, double *out) {
    const State *state = &interp->module->states.data[id];
    if (state->flat)
        walk_window(interp, state, out, elements, read_member);
    else
        memcpy(out, interp_state(interp, id), (size_t)elements * sizeof *out);
}

static void eval_leaf(Interp *interp, const Node *node, int64_t elements, double *out) {
    switch (node->op) {
    case OP_CONST:
        out[0] = node->attr.number;
        break;
    case OP_SCALAR:
        out[0] = interp->scalars[node->attr.integer];
        break;
    case OP_INPUT:
        eval_input(interp, node, out);
        break;
    case OP_STATE:
        eval_state(interp, (StateId)node->attr.integer, elements, out);
        break;
    case OP_INDEX:
        for (int64_t i = 0; i < elements; i++)
            out[i] = (double)i;
        break;
    case OP_RANDOM:
        eval_random(interp, node, out);
        break;
    default:
        internal_error("%s is no leaf", op_info[node->op].name);
    }
}

/* ---- ops that move axes -------------------------------------------------------------- */

static Type input_type(const Interp *interp, const Node *node, int position) {
    return interp->function->nodes.data[node->inputs[position]].type;
}

static const double *input_value(const Interp *interp, const Node *node, int position) {
    return interp->values[node->inputs[position]];
}

/* Loops over `axes`, with the strides of up to three types. */
static void walk_types(const Module *module, Walk *walk, const AxisId *axes, int count,
                       const Type types[TRACKS]) {
    for (int i = 0; i < count; i++)
        walk_loop(walk, axis_size(module, axes[i]), stride_in(module, types[0], axes[i]),
                  stride_in(module, types[1], axes[i]), stride_in(module, types[2], axes[i]));
}

static void eval_expand(const Interp *interp, const Node *node, double *out) {
    Walk walk = {0};
    const Type types[TRACKS] = {node->type, input_type(interp, node, 0)};
    walk_types(interp->module, &walk, node->type.axes, node->type.rank, types);
    copy_strided(walk, out, input_value(interp, node, 0));
}

/* rename, split and merge: the axes that stay, then those of the finer side, which lie within
 * one axis of the other. */
static void eval_reshape(const Interp *interp, const Node *node, double *out) {
    const Module *module = interp->module;
    const Attr *attr = &node->attr;
    Type source = input_type(interp, node, 0), target = node->type, kept = source;
    for (int i = 0; i < attr->from_count; i++)
        kept = type_without(kept, attr->from[i]);
    const Type types[TRACKS] = {target, source};
    Walk walk = {0};
    walk_types(module, &walk, kept.axes, kept.rank, types);
    bool merges = node->op == OP_MERGE;
    const AxisId *fine = merges ? attr->from : attr->to;
    int fine_count = merges ? attr->from_count : attr->to_count;
    int64_t coarse_stride = merges ? stride_in(module, target, attr->to[0])
                                   : stride_in(module, source, attr->from[0]);
    for (int i = 0; i < fine_count; i++) {
        int64_t within = axes_elements(module, fine + i + 1, fine_count - i - 1);
        int64_t fine_stride = stride_in(module, merges ? source : target, fine[i]);
        int64_t coarse = coarse_stride * within;
        walk_loop(&walk, axis_size(module, fine[i]), merges ? coarse : fine_stride,
                  merges ? fine_stride : coarse, 0);
    }
    copy_strided(walk, out, input_value(interp, node, 0));
}

static void eval_pick(const Interp *interp, const Node *node, double *out) {
    Type source = input_type(interp, node, 0);
    Walk walk = {0};
    const Type types[TRACKS] = {node->type, source};
    walk_types(interp->module, &walk, node->type.axes, node->type.rank, types);
    walk.offset[1] = node->attr.integer * stride_in(interp->module, source, node->attr.from[0]);
    copy_strided(walk, out, input_value(interp, node, 0));
}

static void eval_stack(const Interp *interp, const Node *node, double *out) {
    int64_t stride = stride_in(interp->module, node->type, node->attr.to[0]);
    for (int part = 0; part < node->input_count; part++) {
        Type source = input_type(interp, node, part);
        Walk walk = {0};
        const Type types[TRACKS] = {node->type, source};
        walk_types(interp->module, &walk, source.axes, source.rank, types);
        walk.offset[0] = part * stride;
        copy_strided(walk, out, input_value(interp, node, part));
    }
}

/* ---- sums and products --------------------------------------------------------------- */

static void eval_reduce(const Interp *interp, const Node *node, int64_t elements, double *out) {
    Type source = input_type(interp, node, 0);
    const double *in = input_value(interp, node, 0);
    if (node->op == OP_MAX)
        for (int64_t i = 0; i < elements; i++)
            out[i] = -INFINITY;
    Walk walk = {0};
    const Type types[TRACKS] = {node->type, source};
    walk_types(interp->module, &walk, source.axes, source.rank, types);
    do {
        double *sum = &out[walk.offset[0]], term = in[walk.offset[1]];
        *sum = node->op == OP_SUM ? *sum + term : *sum > term ? *sum : term;
    } while (walk_next(&walk));
}

/* Each element of the result is one sum; the last summed axis is the innermost loop. */
static void eval_dot(const Interp *interp, const Node *node, double *out) {
    const Module *module = interp->module;
    const Type types[TRACKS] = {node->type, input_type(interp, node, 0),
                                input_type(interp, node, 1)};
    const double *left = input_value(interp, node, 0), *right = input_value(interp, node, 1);
    Walk results = {0}, terms = {0};
    walk_types(module, &results, node->type.axes, node->type.rank, types);
    walk_types(module, &terms, node->attr.from, node->attr.from_count, types);
    InnerLoop inner = walk_pop(&terms);
    do {
        double sum = 0;
        do {
            const double *a = left + results.offset[1] + terms.offset[1];
            const double *b = right + results.offset[2] + terms.offset[2];
            for (int64_t i = 0; i < inner.size; i++)
                sum += a[i * inner.stride[1]] * b[i * inner.stride[2]];
        } while (walk_next(&terms));
        out[results.offset[0]] = sum;
    } while (walk_next(&results));
}

static int64_t checked_position(const Module *module, AxisId axis, double position) {
    if (!(position >= 0 && position < (double)axis_size(module, axis)))
        internal_error("position %g is outside axis %s of size %lld", position,
                       module->axes.data[axis].name, (long long)axis_size(module, axis));
    return (int64_t)position;
}

static void eval_gather(const Interp *interp, const Node *node, double *out) {
    const Module *module = interp->module;
    Type table = input_type(interp, node, 0);
    AxisId axis = node->attr.from[0];
    int64_t stride = stride_in(module, table, axis);
    const double *rows = input_value(interp, node, 0), *index = input_value(interp, node, 1);
    Walk walk = {0};
    for (int i = 0; i < node->type.rank; i++) {
        /* Where the index has the gathered axis too, the table is walked by position alone. */
        AxisId loop = node->type.axes[i];
        walk_loop(&walk, axis_size(module, loop), stride_in(module, node->type, loop),
                  loop == axis ? 0 : stride_in(module, table, loop),
                  stride_in(module, input_type(interp, node, 1), loop));
    }
    do {
        int64_t position = checked_position(module, axis, index[walk.offset[2]]);
        out[walk.offset[0]] = rows[walk.offset[1] + position * stride];
    } while (walk_next(&walk));
}

static void eval_scatter_add(const Interp *interp, const Node *node, double *out) {
    const Module *module = interp->module;
    Type value_type = input_type(interp, node, 1);
    AxisId axis = node->attr.to[0];
    int64_t stride = stride_in(module, node->type, axis);
    const double *index = input_value(interp, node, 0), *value = input_value(interp, node, 1);
    Walk walk = {0};
    for (int i = 0; i < value_type.rank; i++) {
        AxisId loop = value_type.axes[i];
        walk_loop(&walk, axis_size(module, loop),
                  loop == axis ? 0 : stride_in(module, node->type, loop),
                  stride_in(module, input_type(interp, node, 0), loop),
                  stride_in(module, value_type, loop));
    }
    do {
        int64_t position = checked_position(module, axis, index[walk.offset[1]]);
        out[walk.offset[0] + position * stride] += value[walk.offset[2]];
    } while (walk_next(&walk));
}

/* ---- running a function -------------------------------------------------------------- */

static void eval_node(Interp *interp, NodeId id) {
    const Node *node = &interp->function->nodes.data[id];
    int64_t elements = type_elements(interp->module, node->type);
    double *out = alloc_elements(interp->module, node->type);
    interp->values[id] = out;
    switch (op_info[node->op].axis_rule) {
    case AXES_LEAF:
        eval_leaf(interp, node, elements, out);
        break;
    case AXES_SAME:
        eval_map(interp, node, elements, out);
        break;
    case AXES_EXPAND:
        eval_expand(interp, node, out);
        break;
    case AXES_RENAME:
    case AXES_SPLIT:
    case AXES_MERGE:
        eval_reshape(interp, node, out);
        break;
    case AXES_PICK:
        eval_pick(interp, node, out);
        break;
    case AXES_STACK:
        eval_stack(interp, node, out);
        break;
    case AXES_REDUCE:
        eval_reduce(interp, node, elements, out);
        break;
    case AXES_DOT:
        eval_dot(interp, node, out);
        break;
    case AXES_GATHER:
        eval_gather(interp, node, out);
        break;
    case AXES_SCATTER:
        eval_scatter_add(interp, node, out);
        break;
    }
    if (interp->round)
        for (int64_t i = 0; i < elements; i++)
            out[i] = round_to(out[i], node->type.dtype);
}

/* The highest node that reads each value: its own id for one that is read by none, the number
 * of nodes for one that a write reads; -1 for a node that reaches no write. */
static NodeId *last_uses(const Function *function) {
    NodeId count = (NodeId)function->nodes.count;
    NodeId *last = checked_alloc((size_t)count * sizeof *last);
    for (NodeId id = 0; id < count; id++)
        last[id] = -1;
    for (int64_t i = 0; i < function->writes.count; i++)
        last[function->writes.data[i].value] = count;
    for (NodeId id = count - 1; id >= 0; id--) {
        const Node *node = &function->nodes.data[id];
        for (int i = 0; i < node->input_count && last[id] >= 0; i++)
            if (last[node->inputs[i]] < id)
                last[node->inputs[i]] = id;
    }
    return last;
}

static void free_value(Interp *interp, NodeId id) {
    free(interp->values[id]);
    interp->values[id] = NULL;
}

static void perform_write(Interp *interp, const Write *write, const double *value) {
    const State *state = &interp->module->states.data[write->state];
    Type type = state_type(state);
    int64_t elements = type_elements(interp->module, type);
    double *updated = alloc_elements(interp->module, type);
    eval_state(interp, write->state, elements, updated);
    for (int64_t i = 0; i < elements; i++) {
        updated[i] = write->add ? updated[i] + value[i] : value[i];
        if (interp->round)
            updated[i] = round_to(updated[i], state->dtype);
    }
    if (state->flat)
        walk_window(interp, state, updated, elements, write_member);
    else
        memcpy(interp_state(interp, write->state), updated, (size_t)elements * sizeof *updated);
    free(updated);
}

static double value_bytes(const Function *function, NodeId id) {
    return (double)type_elements(function->module, function->nodes.data[id].type) *
           sizeof(double);
}

/* The most that values of a run occupy at once. */
static double live_bytes(const Function *function) {
    NodeId *last = last_uses(function);
    double live = 0, most = 0;
    for (NodeId id = 0; id < function->nodes.count; id++) {
        if (last[id] < 0)
            continue;
        live += value_bytes(function, id);
        most = live > most ? live : most;
        const Node *node = &function->nodes.data[id];
        for (int i = 0; i < node->input_count; i++) {
            bool again = false; /* x * x frees x once */
            for (int j = 0; j < i; j++)
                again |= node->inputs[j] == node->inputs[i];
            if (last[node->inputs[i]] == id && !again)
                live -= value_bytes(function, node->inputs[i]);
        }
    }
    free(last);
    return most;
}

double interp_bytes(const Module *module) {
    double states = 0, values = 0;
    for (int64_t i = 0; i < module->states.count; i++)
        if (!module->states.data[i].flat)
            states += (double)type_elements(module, state_type(&module->states.data[i])) *
                      sizeof(double);
    for (int64_t i = 0; i < module->functions.count; i++) {
        double bytes = live_bytes(module->functions.data[i]);
        values = bytes > values ? bytes : values;
    }
    return states + values;
}

void interp_run(Interp *interp, const Function *function, const double *scalars, bool keep) {
    free_values(interp);
    interp->function = function;
    interp->scalars = scalars;
    interp->value_count = function->nodes.count;
    interp->values = checked_alloc((size_t)interp->value_count * sizeof *interp->values);
    NodeId *last = last_uses(function);
    for (NodeId id = 0; id < function->nodes.count; id++) {
        if (last[id] < 0 && !keep)
            continue;
        eval_node(interp, id);
        const Node *node = &function->nodes.data[id];
        for (int i = 0; i < node->input_count && !keep; i++)
            if (last[node->inputs[i]] == id)
                free_value(interp, node->inputs[i]);
    }
    free(last);
    for (int64_t i = 0; i < function->writes.count; i++)
        perform_write(interp, &function->writes.data[i],
                      interp->values[function->writes.data[i].value]);
    if (!keep)
        free_values(interp);
    interp->scalars = NULL;
}

const double *interp_value(const Interp *interp, NodeId node) {
    return node >= 0 && node < interp->value_count ? interp->values[node] : NULL;
}

double interp_scalar_step(const Function *function, NodeId node, const double *scalars,
                          const double *values) {
    const Node *at = node_at(function, node);
    double operands[3] = {0};
    for (int i = 0; i < at->input_count; i++)
        operands[i] = values[at->inputs[i]];
    return at->op == OP_CONST ? round_to(at->attr.number, at->type.dtype)
           : at->op == OP_SCALAR
               ? scalars[at->attr.integer]
               : apply_rounded(at->op, at->type.dtype, operands[0], operands[1], operands[2]);
}

int64_t interp_scalar_steps(const Function *function, const NodeId *wanted, int64_t count,
                            NodeId **steps) {
    size_t nodes = (size_t)function->nodes.count;
    bool *needed = checked_alloc(nodes * sizeof *needed);
    for (int64_t i = 0; i < count; i++) {
        INTERNAL_CHECK(node_at(function, wanted[i])->on_host);
        needed[wanted[i]] = true;
    }
    int64_t total = 0;
    for (NodeId id = (NodeId)nodes - 1; id >= 0; id--) {
        total += needed[id];
        for (int i = 0; needed[id] && i < function->nodes.data[id].input_count; i++)
            needed[function->nodes.data[id].inputs[i]] = true;
    }
    *steps = checked_alloc((size_t)total * sizeof **steps);
    for (NodeId id = 0, at = 0; id < (NodeId)nodes; id++)
        if (needed[id])
            (*steps)[at++] = id;
    free(needed);
    return total;
}

double interp_scalar(const Function *function, NodeId node, const double *scalars) {
    NodeId *steps;
    int64_t count = interp_scalar_steps(function, &node, 1, &steps);
    double *values = checked_alloc(((size_t)node + 1) * sizeof *values);
    for (int64_t i = 0; i < count; i++)
        values[steps[i]] = interp_scalar_step(function, steps[i], scalars, values);
    double result = values[node];
    free(values);
    free(steps);
    return result;
}
