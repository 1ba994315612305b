/* ir/graph.c: modules, axes, types, states, functions, and the one constructor of nodes.
 *
 * Every node is made by build(), which infers its type from the op's rules and shares equal
 * nodes: an ill-formed graph cannot be built, and common subexpressions never exist. */
#include "ir/ir.h"

#include <math.h>

/* ---- modules ------------------------------------------------------------------------- */

Module *module_new(void) {
    Module *module = checked_alloc(sizeof *module);
    module->arena = arena_new();
    module->name = "module";
    module_scope(module, -1, "", "", (Span){0});
    return module;
}

/* Open addressing over the nodes of one function, and what numbers new ones. */
typedef struct Slot {
    uint32_t hash;
    NodeId node; /* -1: free */
} Slot;
typedef struct InternTable {
    Slot *slots;
    int64_t count, capacity;     /* capacity: a power of two */
    ARRAY(int32_t) next_ordinal; /* by scope */
} InternTable;

static void function_clear(Function *function) {
    array_free(&function->nodes);
    array_free(&function->writes);
    array_free(&function->groups);
    array_free(&function->names);
    free(function->interned->slots);
    array_free(&function->interned->next_ordinal);
    free(function->interned);
    function->interned = NULL;
}

void module_free(Module *module) {
    if (!module)
        return;
    for (int64_t i = 0; i < module->functions.count; i++)
        function_clear(module->functions.data[i]);
    array_free(&module->functions);
    array_free(&module->axes);
    array_free(&module->scopes);
    array_free(&module->states);
    array_free(&module->inputs);
    string_map_free(&module->axis_by_name);
    string_map_free(&module->state_by_key);
    arena_free(module->arena);
    free(module);
}

AxisId module_axis(Module *module, const char *name, int64_t size, Span declared) {
    INTERNAL_CHECK(size >= 1 && size <= MAX_ELEMENTS);
    const char *tried = name;
    int64_t known;
    while ((known = string_map_get(&module->axis_by_name, tried, -1)) >= 0) {
        if (module->axes.data[known].size == size)
            return (AxisId)known;
        tried = arena_printf(module->arena, "%s.%lld", tried, (long long)size);
    }
    if (module->axes.count >= MAX_MODULE_AXES)
        internal_error("a module has at most %d axes", MAX_MODULE_AXES);
    Axis axis = {arena_strdup(module->arena, tried), size, declared};
    array_push(&module->axes, axis);
    string_map_set(&module->axis_by_name, axis.name, module->axes.count - 1);
    return (AxisId)(module->axes.count - 1);
}

ScopeId module_scope(Module *module, ScopeId parent, const char *path, const char *block,
                     Span call) {
    INTERNAL_CHECK(parent < module->scopes.count &&
                   (parent >= 0) == (module->scopes.count > 0));
    Scope scope = {parent, arena_strdup(module->arena, path),
                   arena_strdup(module->arena, block), call};
    array_push(&module->scopes, scope);
    return (ScopeId)(module->scopes.count - 1);
}

static void print_state_key(Text *key, const char *path, Role role, int number) {
    text_printf(key, "%d %d %s", (int)role, number, path);
}

bool scope_is_within(const Module *module, ScopeId inner, ScopeId outer) {
    while (inner > outer) /* a scope comes after the one around it */
        inner = module->scopes.data[inner].parent;
    return inner == outer;
}

StateId module_state(Module *module, State state) {
    Text key = {0};
    print_state_key(&key, state.path, state.role, state.number);
    if (string_map_get(&module->state_by_key, text_string(&key), -1) >= 0)
        internal_error("two states are called %s %s", role_name(state.role), state.path);
    string_map_set(&module->state_by_key, text_string(&key), module->states.count);
    text_free(&key);
    state.path = arena_strdup(module->arena, state.path);
    array_push(&module->states, state);
    return (StateId)(module->states.count - 1);
}

StateId module_find_state(const Module *module, const char *path, Role role, int number) {
    Text key = {0};
    print_state_key(&key, path, role, number);
    int64_t found = string_map_get(&module->state_by_key, text_string(&key), -1);
    text_free(&key);
    return (StateId)found;
}

/* A function that no module lists yet. */
static Function *function_new(Module *module, const char *name, int64_t scalar_count,
                              const char *const *scalars) {
    Function *function = arena_alloc(module->arena, sizeof *function);
    function->name = arena_strdup(module->arena, name);
    function->module = module;
    function->arena_bytes = -1;
    function->scalar_count = scalar_count;
    function->scalars =
        arena_alloc_array(module->arena, (size_t)scalar_count, sizeof *function->scalars);
    for (int64_t i = 0; i < scalar_count; i++)
        function->scalars[i] = arena_strdup(module->arena, scalars[i]);
    function->interned = checked_alloc(sizeof *function->interned);
    return function;
}

Function *module_function(Module *module, const char *name, int scalar_count,
                          const char *const *scalars) {
    Function *function = function_new(module, name, scalar_count, scalars);
    array_push(&module->functions, function);
    return function;
}

int64_t function_scalar(Function *function, const char *name) {
    int64_t count = function->scalar_count;
    for (int64_t i = 0; i < count; i++)
        if (strcmp(function->scalars[i], name) == 0)
            return i;
    Arena *arena = function->module->arena;
    const char **scalars = arena_alloc_array(arena, (size_t)count + 1, sizeof *scalars);
    for (int64_t i = 0; i < count; i++)
        scalars[i] = function->scalars[i];
    scalars[count] = arena_strdup(arena, name);
    function->scalars = scalars;
    return function->scalar_count++;
}

Function *module_find_function(const Module *module, const char *name) {
    for (int64_t i = 0; i < module->functions.count; i++)
        if (strcmp(module->functions.data[i]->name, name) == 0)
            return module->functions.data[i];
    return NULL;
}

int64_t module_bytes(const Module *module) {
    int64_t bytes = (int64_t)(sizeof *module + arena_bytes(module->arena));
    bytes += module->axes.capacity * (int64_t)sizeof(Axis);
    bytes += module->scopes.capacity * (int64_t)sizeof(Scope);
    bytes += module->states.capacity * (int64_t)sizeof(State);
    bytes += module->inputs.capacity * (int64_t)sizeof(Input);
    for (int64_t i = 0; i < module->functions.count; i++) {
        const Function *function = module->functions.data[i];
        bytes += function->nodes.capacity * (int64_t)sizeof(Node);
        bytes += function->writes.capacity * (int64_t)sizeof(Write);
        bytes += function->groups.capacity * (int64_t)sizeof(Group);
        bytes += function->interned->capacity * (int64_t)sizeof(Slot);
    }
    return bytes;
}

const char *role_name(Role role) {
    static const char *const names[] = {
        [ROLE_WEIGHT] = "weight", [ROLE_GRADIENT] = "gradient", [ROLE_MOMENT] = "moment",
        [ROLE_COPY] = "copy",     [ROLE_TABLE] = "table",       [ROLE_METRIC] = "metric"};
    return names[role];
}

DataType role_dtype(Role role) {
    return role == ROLE_COPY ? TYPE_BF16 : TYPE_F32;
}

const char *group_kind_name(GroupKind kind) {
    static const char *const names[] = {[GROUP_FLAT] = "flat",
                                        [GROUP_ROW] = "row",
                                        [GROUP_COLUMN] = "column",
                                        [GROUP_SCATTER] = "scatter",
                                        [GROUP_PRODUCT] = "product"};
    return names[kind];
}

/* ---- types --------------------------------------------------------------------------- */

static void sort_axes(AxisId *axes, int count) {
    for (int i = 1; i < count; i++) {
        AxisId moved = axes[i];
        int j = i;
        for (; j > 0 && axes[j - 1] > moved; j--)
            axes[j] = axes[j - 1];
        axes[j] = moved;
    }
}

Type type_of(DataType dtype, const AxisId *axes, int rank) {
    INTERNAL_CHECK(rank >= 0 && rank <= MAX_AXES);
    Type type = {.dtype = dtype, .rank = rank};
    if (rank)
        memcpy(type.axes, axes, (size_t)rank * sizeof *axes);
    sort_axes(type.axes, rank);
    for (int i = 1; i < rank; i++)
        INTERNAL_CHECK(type.axes[i - 1] != type.axes[i]);
    return type;
}

Type state_type(const State *state) {
    AxisId axes[2 * MAX_AXES];
    memcpy(axes, state->in, sizeof state->in);
    memcpy(axes + state->in_count, state->out, (size_t)state->out_count * sizeof *axes);
    return type_of(state->dtype, axes, state->in_count + state->out_count);
}

bool type_same_axes(Type a, Type b) {
    return a.rank == b.rank && memcmp(a.axes, b.axes, (size_t)a.rank * sizeof *a.axes) == 0;
}

bool type_equal(Type a, Type b) {
    return a.dtype == b.dtype && type_same_axes(a, b);
}

bool type_has(Type type, AxisId axis) {
    for (int i = 0; i < type.rank; i++)
        if (type.axes[i] == axis)
            return true;
    return false;
}

Type type_without(Type type, AxisId axis) {
    Type result = {.dtype = type.dtype};
    for (int i = 0; i < type.rank; i++)
        if (type.axes[i] != axis)
            result.axes[result.rank++] = type.axes[i];
    return result;
}

Type type_with(Type type, AxisId axis) {
    return type_union(type, (Type){.rank = 1, .axes = {axis}});
}

Type type_union(Type a, Type b) {
    Type result = {.dtype = a.dtype};
    for (int i = 0, j = 0; i < a.rank || j < b.rank; result.rank++) {
        bool from_a = j == b.rank || (i < a.rank && a.axes[i] <= b.axes[j]);
        AxisId axis = from_a ? a.axes[i] : b.axes[j];
        if (result.rank < MAX_AXES)
            result.axes[result.rank] = axis;
        i += i < a.rank && a.axes[i] == axis;
        j += j < b.rank && b.axes[j] == axis;
    }
    return result;
}

bool type_contains(Type outer, Type inner) {
    for (int i = 0; i < inner.rank; i++)
        if (!type_has(outer, inner.axes[i]))
            return false;
    return true;
}

int64_t axes_elements(const Module *module, const AxisId *axes, int count) {
    int64_t elements = 1;
    for (int i = 0; i < count; i++)
        if (__builtin_mul_overflow(elements, module->axes.data[axes[i]].size, &elements) ||
            elements > MAX_ELEMENTS)
            return INT64_MAX;
    return elements;
}

int64_t type_elements(const Module *module, Type type) {
    return axes_elements(module, type.axes, type.rank);
}

char *type_text(const Module *module, Type type, Arena *arena) {
    Text text = {0};
    text_puts(&text, dtype_name(type.dtype));
    for (int i = 0; i < type.rank; i++)
        text_printf(&text, "%s%s", i ? "," : "[", module->axes.data[type.axes[i]].name);
    if (type.rank)
        text_puts(&text, "]");
    char *result = arena_strdup(arena, text_string(&text));
    text_free(&text);
    return result;
}

/* ---- the types of nodes -------------------------------------------------------------- */

/* What infer_type was asked, so that the rules below read shortly. */
typedef struct Request {
    const Function *function;
    const Module *module;
    Op op;
    DataType dtype;
    const Attr *attr;
    const NodeId *inputs;
    int count;
} Request;

static const Node *input_node(const Request *request, int position) {
    return &request->function->nodes.data[request->inputs[position]];
}

static Type input_type(const Request *request, int position) {
    return input_node(request, position)->type;
}

static const char *axis_name(const Request *request, AxisId axis) {
    return request->module->axes.data[axis].name;
}

static const char *type_name(const Request *request, Type type) {
    return type_text(request->module, type, request->module->arena);
}

/* The sentence that infer_type returns. */
#define REFUSE(request, ...)                                                                   \
    return refuse(request, arena_printf((request)->module->arena, __VA_ARGS__))
static const char *refuse(const Request *request, const char *reason) {
    return arena_printf(request->module->arena, "%s: %s", op_info[request->op].name, reason);
}

static const char *check_axis_list(const Request *request, const char *which,
                                   const AxisId *axes, int count) {
    if (count < 0 || count > MAX_AXES)
        REFUSE(request, "`%s` has more than %d axes", which, MAX_AXES);
    for (int i = 0; i < count; i++) {
        if (axes[i] >= request->module->axes.count)
            REFUSE(request, "`%s` has an axis that the module lacks", which);
        for (int j = 0; j < i; j++)
            if (axes[j] == axes[i])
                REFUSE(request, "`%s` has axis %s twice", which, axis_name(request, axes[i]));
    }
    return NULL;
}

/* Number of axes that an op's attribute holds: exactly `exactly`, or at least one for -1. */
static const char *check_axis_count(const Request *request, const char *which, int count,
                                    int exactly) {
    if (exactly < 0 ? count < 1 : count != exactly)
        REFUSE(request, "`%s` has %d axes and needs %s", which, count,
               exactly < 0 ? "at least one" : "exactly one");
    return NULL;
}

/* Removes axes from a type that must have them. */
static const char *remove_axes(const Request *request, int position, const AxisId *axes,
                               int count, Type *type) {
    for (int i = 0; i < count; i++) {
        if (!type_has(input_type(request, position), axes[i]))
            REFUSE(request, "operand %d, %s, has no axis %s", position + 1,
                   type_name(request, input_type(request, position)),
                   axis_name(request, axes[i]));
        *type = type_without(*type, axes[i]);
    }
    return NULL;
}

/* Adds axes to a type that must not have them. */
static const char *add_axes(const Request *request, const AxisId *axes, int count, Type *type) {
    for (int i = 0; i < count; i++) {
        if (type_has(*type, axes[i]))
            REFUSE(request, "%s has axis %s already", type_name(request, *type),
                   axis_name(request, axes[i]));
        if (type->rank == MAX_AXES)
            REFUSE(request, "the result has more than %d axes", MAX_AXES);
        *type = type_with(*type, axes[i]);
    }
    return NULL;
}

static const char *check_sizes(const Request *request, const AxisId *from, int from_count,
                               const AxisId *to, int to_count) {
    int64_t before = axes_elements(request->module, from, from_count);
    int64_t after = axes_elements(request->module, to, to_count);
    if (before != after || before == INT64_MAX)
        REFUSE(request, "`from` has %lld elements and `to` has %lld", (long long)before,
               (long long)after);
    return NULL;
}

#define TRY(check)                                                                             \
    do {                                                                                       \
        const char *sentence_ = (check);                                                       \
        if (sentence_)                                                                         \
            return sentence_;                                                                  \
    } while (0)

static bool number_fits(double number, DataType dtype) {
    switch (dtype) {
    case TYPE_BOOL:
        return number == 0 || number == 1;
    case TYPE_I32:
        return number == floor(number) && fabs(number) < 0x1p31;
    default:
        return true;
    }
}

static const char *infer_const(const Request *request, Type *result) {
    if (!number_fits(request->attr->number, request->dtype))
        REFUSE(request, "%g is no %s", request->attr->number, dtype_name(request->dtype));
    *result = (Type){.dtype = request->dtype};
    return NULL;
}

/* A leaf with axes: its `to` must be exactly what it reads. */
static const char *infer_read(const Request *request, Type read, Type *result) {
    const Attr *attr = request->attr;
    *result = read;
    if (request->dtype != read.dtype)
        REFUSE(request, "the result is %s, not %s", dtype_name(read.dtype),
               dtype_name(request->dtype));
    if (read.dtype == TYPE_F64 && read.rank)
        REFUSE(request, "f64 has no axes");
    if (!type_same_axes(read, type_of(read.dtype, attr->to, attr->to_count)))
        REFUSE(request, "`to` must have the axes of %s", type_name(request, read));
    return NULL;
}

static const char *infer_leaf(const Request *request, Type *result) {
    const Attr *attr = request->attr;
    const Module *module = request->module;
    switch (request->op) {
    case OP_CONST:
        return infer_const(request, result);
    case OP_SCALAR:
        if (attr->integer < 0 || attr->integer >= request->function->scalar_count)
            REFUSE(request, "the function has no scalar %lld", (long long)attr->integer);
        return infer_read(request, (Type){.dtype = TYPE_F64}, result);
    case OP_INPUT: {
        if (attr->integer < 0 || attr->integer >= module->inputs.count)
            REFUSE(request, "the module has no input %lld", (long long)attr->integer);
        const Input *input = &module->inputs.data[attr->integer];
        return infer_read(request, type_of(TYPE_I32, input->axes, input->axis_count), result);
    }
    case OP_STATE:
        if (attr->integer < 0 || attr->integer >= module->states.count)
            REFUSE(request, "the module has no state %lld", (long long)attr->integer);
        return infer_read(request, state_type(&module->states.data[attr->integer]), result);
    case OP_INDEX:
        TRY(check_axis_count(request, "to", attr->to_count, 1));
        return infer_read(request, type_of(TYPE_I32, attr->to, 1), result);
    case OP_RANDOM:
        return infer_read(request, type_of(TYPE_F32, attr->to, attr->to_count), result);
    default:
        internal_error("%s is no leaf", op_info[request->op].name);
    }
}

static const char *infer_same(const Request *request, Type *result) {
    *result = input_type(request, 0);
    for (int i = 1; i < request->count; i++)
        if (!type_same_axes(*result, input_type(request, i)))
            REFUSE(request, "operands have different axes: %s and %s",
                   type_name(request, *result), type_name(request, input_type(request, i)));
    return NULL;
}

static const char *infer_expand(const Request *request, Type *result) {
    *result = input_type(request, 0);
    TRY(check_axis_count(request, "to", request->attr->to_count, -1));
    return add_axes(request, request->attr->to, request->attr->to_count, result);
}

static const char *infer_reduce(const Request *request, Type *result) {
    *result = input_type(request, 0);
    TRY(check_axis_count(request, "from", request->attr->from_count, -1));
    return remove_axes(request, 0, request->attr->from, request->attr->from_count, result);
}

static const char *infer_dot(const Request *request, Type *result) {
    const Attr *attr = request->attr;
    Type left = input_type(request, 0), right = input_type(request, 1);
    TRY(remove_axes(request, 0, attr->from, attr->from_count, &left));
    TRY(remove_axes(request, 1, attr->from, attr->from_count, &right));
    *result = type_union(left, right);
    if (result->rank > MAX_AXES)
        REFUSE(request, "the result has more than %d axes", MAX_AXES);
    return NULL;
}

static const char *infer_gather(const Request *request, Type *result) {
    TRY(check_axis_count(request, "from", request->attr->from_count, 1));
    Type table = input_type(request, 0);
    TRY(remove_axes(request, 0, request->attr->from, 1, &table));
    *result = type_union(table, input_type(request, 1));
    if (result->rank > MAX_AXES)
        REFUSE(request, "the result has more than %d axes", MAX_AXES);
    return NULL;
}

static const char *infer_scatter(const Request *request, Type *result) {
    const Attr *attr = request->attr;
    Type index = input_type(request, 0);
    *result = input_type(request, 1);
    TRY(check_axis_count(request, "to", attr->to_count, 1));
    if (!type_contains(*result, index))
        REFUSE(request, "operand 2, %s, lacks axes of the index, %s",
               type_name(request, *result), type_name(request, index));
    TRY(remove_axes(request, 0, attr->from, attr->from_count, &index));
    TRY(remove_axes(request, 1, attr->from, attr->from_count, result));
    return add_axes(request, attr->to, 1, result);
}

static const char *infer_pick(const Request *request, Type *result) {
    const Attr *attr = request->attr;
    TRY(check_axis_count(request, "from", attr->from_count, 1));
    *result = input_type(request, 0);
    TRY(remove_axes(request, 0, attr->from, 1, result));
    const Axis *axis = &request->module->axes.data[attr->from[0]];
    if (attr->integer < 0 || attr->integer >= axis->size)
        REFUSE(request, "position %lld is outside axis %s of size %lld",
               (long long)attr->integer, axis->name, (long long)axis->size);
    return NULL;
}

static const char *infer_stack(const Request *request, Type *result) {
    TRY(check_axis_count(request, "to", request->attr->to_count, 1));
    TRY(infer_same(request, result));
    const Axis *axis = &request->module->axes.data[request->attr->to[0]];
    if (axis->size != request->count)
        REFUSE(request, "%d operands along axis %s of size %lld", request->count, axis->name,
               (long long)axis->size);
    return add_axes(request, request->attr->to, 1, result);
}

/* rename (one to one), split (one to several), merge (several to one) */
static const char *infer_reshape(const Request *request, Type *result) {
    const Attr *attr = request->attr;
    AxisRule rule = op_info[request->op].axis_rule;
    TRY(check_axis_count(request, "from", attr->from_count, rule == AXES_MERGE ? -1 : 1));
    TRY(check_axis_count(request, "to", attr->to_count, rule == AXES_SPLIT ? -1 : 1));
    *result = input_type(request, 0);
    TRY(remove_axes(request, 0, attr->from, attr->from_count, result));
    TRY(add_axes(request, attr->to, attr->to_count, result));
    return check_sizes(request, attr->from, attr->from_count, attr->to, attr->to_count);
}

/* Whether operand `position` of the op may have that dtype. */
static bool accepts(Op op, int position, DataType dtype) {
    switch (op) {
    case OP_NOT:
    case OP_AND:
    case OP_OR:
        return dtype == TYPE_BOOL;
    case OP_WHERE:
        return position > 0 || dtype == TYPE_BOOL;
    case OP_EQ:
    case OP_CAST:
    case OP_STOP:
    case OP_COPY:
    case OP_RENAME:
    case OP_SPLIT:
    case OP_MERGE:
    case OP_PICK:
    case OP_STACK:
    case OP_EXPAND:
        return true;
    case OP_POW:
        return dtype == TYPE_F64;
    case OP_GATHER:
        return position == 0 || dtype == TYPE_I32;
    case OP_SCATTER_ADD:
        return position == 0 ? dtype == TYPE_I32 : dtype_is_float(dtype);
    case OP_EXP:
    case OP_LOG:
    case OP_SQRT:
    case OP_TANH:
    case OP_SIGMOID:
    case OP_ERF:
    case OP_SIN:
    case OP_COS:
    case OP_FLOOR:
    case OP_FMA:
    case OP_DOT:
        return dtype_is_float(dtype);
    default:
        return dtype != TYPE_BOOL;
    }
}

/* The result's dtype; result->dtype is still that of the operand that the axes came from. */
static const char *infer_dtype(const Request *request, Type *result) {
    const OpInfo *info = &op_info[request->op];
    for (int i = 0; i < request->count; i++)
        if (!accepts(request->op, i, input_type(request, i).dtype))
            REFUSE(request, "operand %d may not be %s", i + 1,
                   dtype_name(input_type(request, i).dtype));
    /* Conditions and positions have a dtype of their own; all other operands agree. */
    int first = request->op == OP_WHERE || request->op == OP_SCATTER_ADD ? 1 : 0;
    int end = request->op == OP_GATHER ? 1 : request->count;
    for (int i = first + 1; i < end; i++)
        if (input_type(request, i).dtype != input_type(request, first).dtype)
            REFUSE(request, "operands have different dtypes: %s and %s",
                   type_name(request, input_type(request, first)),
                   type_name(request, input_type(request, i)));
    switch (info->dtype_rule) {
    case DTYPE_ATTR:
        result->dtype = request->dtype;
        break;
    case DTYPE_SAME:
        result->dtype = input_type(request, 0).dtype;
        break;
    case DTYPE_BOOL:
        result->dtype = TYPE_BOOL;
        break;
    case DTYPE_SECOND:
        result->dtype = input_type(request, 1).dtype;
        break;
    case DTYPE_PRODUCT:
        result->dtype = input_type(request, 0).dtype;
        if (result->dtype == TYPE_BF16 && request->dtype != TYPE_BF16) {
            if (request->dtype != TYPE_F32)
                REFUSE(request, "of bf16 operands the result is bf16 or f32, not %s",
                       dtype_name(request->dtype));
            result->dtype = TYPE_F32;
        }
        break;
    }
    return NULL;
}

/* f64 exists on the host only: constants, scalars and maps of them, without axes. */
static const char *check_host(const Request *request, Type result) {
    if (result.dtype != TYPE_F64)
        return NULL;
    if (result.rank || (request->count && !op_is_map(request->op)))
        REFUSE(request, "f64 has no axes: cast to f32 first");
    for (int i = 0; i < request->count; i++)
        if (!input_node(request, i)->on_host)
            REFUSE(request, "f64 is for scalars known on the host, and operand %d is not one",
                   i + 1);
    return request->op == OP_STATE ? refuse(request, "an f64 state cannot be read") : NULL;
}

const char *infer_type(const Function *function, Op op, DataType dtype, const Attr *attr,
                       const NodeId *inputs, int count, Type *result) {
    static const char *(*const rules[])(const Request *, Type *) = {
        [AXES_LEAF] = infer_leaf,       [AXES_SAME] = infer_same,
        [AXES_EXPAND] = infer_expand,   [AXES_REDUCE] = infer_reduce,
        [AXES_DOT] = infer_dot,         [AXES_GATHER] = infer_gather,
        [AXES_SCATTER] = infer_scatter, [AXES_PICK] = infer_pick,
        [AXES_STACK] = infer_stack,     [AXES_RENAME] = infer_reshape,
        [AXES_SPLIT] = infer_reshape,   [AXES_MERGE] = infer_reshape,
    };
    const OpInfo *info = &op_info[op];
    Request request = {function, function->module, op, dtype, attr, inputs, count};
    const Request *asked = &request;
    if (info->arity < 0 ? count < 1 : count != info->arity)
        REFUSE(asked, "%d operands, and the op takes %s%d", count,
               info->arity < 0 ? "at least " : "", info->arity < 0 ? 1 : info->arity);
    TRY(check_axis_list(asked, "from", attr->from, attr->from_count));
    TRY(check_axis_list(asked, "to", attr->to, attr->to_count));
    TRY(rules[info->axis_rule](asked, result));
    if (info->axis_rule != AXES_LEAF)
        TRY(infer_dtype(asked, result));
    TRY(check_host(asked, *result));
    if (type_elements(request.module, *result) > MAX_ELEMENTS)
        REFUSE(asked, "%s has more than 2^60 elements", type_name(asked, *result));
    return NULL;
}

/* ---- the one constructor ------------------------------------------------------------- */

Builder builder(Function *function) {
    return (Builder){.function = function, .adjoint_of = -1};
}

/* Only the fields that the op uses, sorted where their order means nothing. */
static Attr canonical_attr(Op op, const Attr *attr) {
    unsigned uses = op_info[op].attributes;
    Attr result = {0};
    if (uses & USES_NUMBER)
        result.number = isnan(attr->number) ? (double)NAN : attr->number;
    if (uses & USES_INTEGER)
        result.integer = attr->integer;
    if (uses & USES_FROM) {
        result.from_count = attr->from_count;
        memcpy(result.from, attr->from, sizeof result.from);
        if (op != OP_MERGE)
            sort_axes(result.from, result.from_count);
    }
    if (uses & USES_TO) {
        result.to_count = attr->to_count;
        memcpy(result.to, attr->to, sizeof result.to);
        if (op != OP_SPLIT)
            sort_axes(result.to, result.to_count);
    }
    memset(result.from + result.from_count, 0,
           (size_t)(MAX_AXES - result.from_count) * sizeof *result.from);
    memset(result.to + result.to_count, 0,
           (size_t)(MAX_AXES - result.to_count) * sizeof *result.to);
    return result;
}

static uint64_t bits_of(double number) {
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static uint32_t hash_node(const Node *node) {
    struct {
        uint64_t number;
        int64_t integer;
        int32_t op, dtype, scope, clone, from_count, to_count;
        AxisId from[MAX_AXES], to[MAX_AXES];
    } key = {bits_of(node->attr.number),
             node->attr.integer,
             (int32_t)node->op,
             (int32_t)node->type.dtype,
             node->scope,
             node->clone,
             node->attr.from_count,
             node->attr.to_count,
             {0},
             {0}};
    memcpy(key.from, node->attr.from, sizeof key.from);
    memcpy(key.to, node->attr.to, sizeof key.to);
    uint64_t hash = hash_bytes(&key, sizeof key, 0);
    return (uint32_t)hash_bytes(node->inputs, (size_t)node->input_count * sizeof *node->inputs,
                                hash);
}

static bool same_node(const Node *a, const Node *b) {
    return a->op == b->op && a->type.dtype == b->type.dtype && a->scope == b->scope &&
           a->clone == b->clone && a->input_count == b->input_count &&
           bits_of(a->attr.number) == bits_of(b->attr.number) &&
           a->attr.integer == b->attr.integer && a->attr.from_count == b->attr.from_count &&
           a->attr.to_count == b->attr.to_count &&
           memcmp(a->attr.from, b->attr.from, sizeof a->attr.from) == 0 &&
           memcmp(a->attr.to, b->attr.to, sizeof a->attr.to) == 0 &&
           (!a->input_count ||
            memcmp(a->inputs, b->inputs, (size_t)a->input_count * sizeof *a->inputs) == 0);
}

/* The slot of an equal node, or the free one where `node` would go. */
static Slot *find_slot(const Function *function, const Node *node, uint32_t hash) {
    const InternTable *table = function->interned;
    uint64_t mask = (uint64_t)table->capacity - 1;
    for (uint64_t i = hash & mask;; i = (i + 1) & mask) {
        Slot *slot = &table->slots[i];
        if (slot->node < 0 ||
            (slot->hash == hash && same_node(&function->nodes.data[slot->node], node)))
            return slot;
    }
}

static void resize_table(InternTable *table, int64_t capacity) {
    Slot *old = table->slots;
    int64_t old_capacity = table->capacity;
    table->capacity = capacity;
    table->slots = checked_alloc((size_t)capacity * sizeof *table->slots);
    for (int64_t i = 0; i < capacity; i++)
        table->slots[i].node = -1;
    uint64_t mask = (uint64_t)capacity - 1;
    for (int64_t i = 0; i < old_capacity; i++) {
        if (old[i].node < 0)
            continue;
        uint64_t place = old[i].hash & mask;
        while (table->slots[place].node >= 0)
            place = (place + 1) & mask;
        table->slots[place] = old[i];
    }
    free(old);
}

/* Where an equal node is, or where the node would go, until the next append; NULL for a copy,
 * which is never shared. */
static Slot *slot_of(Function *function, const Node *node, uint32_t *hash) {
    if (node->op == OP_COPY)
        return NULL;
    InternTable *table = function->interned;
    if (2 * (table->count + 1) > table->capacity)
        resize_table(table, table->capacity ? 2 * table->capacity : 64);
    *hash = hash_node(node);
    return find_slot(function, node, *hash);
}

/* The node is to be found there, unless an equal one is. */
static void take_slot(Function *function, Slot *slot, uint32_t hash, NodeId id) {
    if (!slot || slot->node >= 0)
        return;
    *slot = (Slot){hash, id};
    function->interned->count++;
}

/* The counter of a scope's nodes. */
static int32_t *scope_counter(Function *function, ScopeId scope) {
    InternTable *table = function->interned;
    while (table->next_ordinal.count <= scope)
        array_push(&table->next_ordinal, 0);
    return &table->next_ordinal.data[scope];
}

/* Fills the fields that follow from op and inputs: what a node depends on, and so its scope. */
static void set_dependence(const Function *function, Node *node) {
    bool leaf = node->input_count == 0;
    node->is_static =
        !leaf || node->op == OP_CONST || node->op == OP_SCALAR || node->op == OP_INDEX;
    node->on_host = leaf ? node->op == OP_CONST || node->op == OP_SCALAR : op_is_map(node->op);
    for (int i = 0; i < node->input_count; i++) {
        const Node *input = &function->nodes.data[node->inputs[i]];
        node->is_static &= input->is_static;
        node->on_host &= input->on_host;
    }
    if (node->is_static)
        node->scope = node->clone = 0;
}

/* A node that is complete but for its place in its scope, with its slot. */
static NodeId append_at(Function *function, Node node, Slot *slot, uint32_t hash) {
    if (function->nodes.count >= MAX_NODES)
        refuse_at(node.span, "here the graph of `%s` passes %d nodes: the model is too large",
                  function->name, MAX_NODES);
    if (node.input_count) {
        size_t bytes = (size_t)node.input_count * sizeof *node.inputs;
        NodeId *inputs = arena_alloc(function->module->arena, bytes);
        node.inputs = memcpy(inputs, node.inputs, bytes);
    } else {
        node.inputs = NULL;
    }
    int32_t *counter = scope_counter(function, node.scope);
    if (node.ordinal < 0)
        node.ordinal = *counter;
    if (*counter <= node.ordinal)
        *counter = node.ordinal + 1;
    array_push(&function->nodes, node);
    NodeId id = (NodeId)(function->nodes.count - 1);
    take_slot(function, slot, hash, id);
    return id;
}

NodeId function_append(Function *function, Node node) {
    uint32_t hash = 0;
    node.attr = canonical_attr(node.op, &node.attr);
    set_dependence(function, &node);
    Slot *slot = slot_of(function, &node, &hash);
    return append_at(function, node, slot, hash);
}

static const Placement no_placement = {.order_count = -1, .group = -1, .offset = -1};

NodeId build(Builder *b, Op op, DataType dtype, Attr attr, const NodeId *inputs, int count) {
    Function *function = b->function;
    for (int i = 0; i < count; i++)
        INTERNAL_CHECK(inputs[i] >= 0 && inputs[i] < function->nodes.count);
    INTERNAL_CHECK(b->scope >= 0 && b->scope < function->module->scopes.count);
    Type type;
    const char *refusal = infer_type(function, op, dtype, &attr, inputs, count, &type);
    if (refusal)
        internal_error("function %s, scope %s: %s", function->name,
                       function->module->scopes.data[b->scope].path, refusal);
    /* Neither lookup nor append writes through `inputs`; the field is not const for passes. */
    NodeId few[8];
    NodeId *own = count <= COUNT_OF(few) ? few : checked_alloc((size_t)count * sizeof *own);
    if (count)
        memcpy(own, inputs, (size_t)count * sizeof *own);
    Node node = {.op = op,
                 .type = type,
                 .input_count = count,
                 .inputs = own,
                 .attr = canonical_attr(op, &attr),
                 .scope = b->scope,
                 .ordinal = -1,
                 .clone = b->clone,
                 .original = -1,
                 .adjoint_of = -1,
                 .span = b->span,
                 .placement = no_placement};
    set_dependence(function, &node);
    uint32_t hash = 0;
    Slot *slot = slot_of(function, &node, &hash);
    NodeId id = slot ? slot->node : -1;
    if (id < 0) {
        if (b->adjoint_of >= 0 && type_same_axes(node_at(function, b->adjoint_of)->type, type))
            node.adjoint_of = b->adjoint_of;
        id = append_at(function, node, slot, hash);
    }
    if (own != few)
        free(own);
    return id;
}

const Node *node_at(const Function *function, NodeId id) {
    INTERNAL_CHECK(id >= 0 && id < function->nodes.count);
    return &function->nodes.data[id];
}

/* ---- short forms --------------------------------------------------------------------- */

static Type type_at(const Builder *b, NodeId id) {
    return node_at(b->function, id)->type;
}

static Attr attr_to(const AxisId *axes, int count) {
    INTERNAL_CHECK(count >= 0 && count <= MAX_AXES);
    Attr attr = {.to_count = count};
    if (count)
        memcpy(attr.to, axes, (size_t)count * sizeof *axes);
    return attr;
}

static Attr attr_from(const AxisId *axes, int count) {
    INTERNAL_CHECK(count >= 0 && count <= MAX_AXES);
    Attr attr = {.from_count = count};
    if (count)
        memcpy(attr.from, axes, (size_t)count * sizeof *axes);
    return attr;
}

NodeId build_const(Builder *b, DataType dtype, double number) {
    return build(b, OP_CONST, dtype, (Attr){.number = number}, NULL, 0);
}

NodeId build_scalar(Builder *b, int64_t number) {
    return build(b, OP_SCALAR, TYPE_F64, (Attr){.integer = number}, NULL, 0);
}

NodeId build_input(Builder *b, int64_t number) {
    const Module *module = b->function->module;
    INTERNAL_CHECK(number >= 0 && number < module->inputs.count);
    const Input *input = &module->inputs.data[number];
    Attr attr = attr_to(input->axes, input->axis_count);
    attr.integer = number;
    return build(b, OP_INPUT, TYPE_I32, attr, NULL, 0);
}

NodeId build_state(Builder *b, StateId state) {
    const Module *module = b->function->module;
    INTERNAL_CHECK(state >= 0 && state < module->states.count);
    Type type = state_type(&module->states.data[state]);
    Attr attr = attr_to(type.axes, type.rank);
    attr.integer = state;
    return build(b, OP_STATE, type.dtype, attr, NULL, 0);
}

NodeId build_index(Builder *b, AxisId axis) {
    return build(b, OP_INDEX, TYPE_I32, attr_to(&axis, 1), NULL, 0);
}

NodeId build_map(Builder *b, Op op, const NodeId *inputs, int count) {
    INTERNAL_CHECK(op_is_map(op) && op != OP_CAST);
    return build(b, op, TYPE_F32, (Attr){0}, inputs, count);
}

NodeId build_1(Builder *b, Op op, NodeId a) {
    return build_map(b, op, &a, 1);
}

/* A map whose operands are first expanded to the union of their axes. */
static NodeId build_crossed(Builder *b, Op op, NodeId *inputs, int count) {
    Type all = type_at(b, inputs[0]);
    for (int i = 1; i < count; i++) {
        all = type_union(all, type_at(b, inputs[i]));
        if (all.rank > MAX_AXES)
            internal_error("%s of operands that have more than %d axes together",
                           op_info[op].name, MAX_AXES);
    }
    for (int i = 0; i < count; i++)
        inputs[i] = build_expand(b, inputs[i], all);
    return build_map(b, op, inputs, count);
}

NodeId build_2(Builder *b, Op op, NodeId x, NodeId y) {
    return build_crossed(b, op, (NodeId[]){x, y}, 2);
}

NodeId build_3(Builder *b, Op op, NodeId x, NodeId y, NodeId z) {
    return build_crossed(b, op, (NodeId[]){x, y, z}, 3);
}

NodeId build_cast(Builder *b, NodeId a, DataType dtype) {
    if (type_at(b, a).dtype == dtype)
        return a;
    return build(b, OP_CAST, dtype, (Attr){0}, &a, 1);
}

NodeId build_expand(Builder *b, NodeId a, Type to) {
    Type have = type_at(b, a);
    INTERNAL_CHECK(type_contains(to, have));
    Attr attr = {0};
    for (int i = 0; i < to.rank; i++)
        if (!type_has(have, to.axes[i]))
            attr.to[attr.to_count++] = to.axes[i];
    return attr.to_count ? build(b, OP_EXPAND, have.dtype, attr, &a, 1) : a;
}

NodeId build_rename(Builder *b, NodeId a, AxisId from, AxisId to) {
    Attr attr = attr_from(&from, 1);
    attr.to_count = 1;
    attr.to[0] = to;
    return from == to ? a : build(b, OP_RENAME, TYPE_F32, attr, &a, 1);
}

NodeId build_split(Builder *b, NodeId a, AxisId from, const AxisId *to, int count) {
    Attr attr = attr_to(to, count);
    attr.from_count = 1;
    attr.from[0] = from;
    return build(b, OP_SPLIT, TYPE_F32, attr, &a, 1);
}

NodeId build_merge(Builder *b, NodeId a, const AxisId *from, int count, AxisId to) {
    Attr attr = attr_from(from, count);
    attr.to_count = 1;
    attr.to[0] = to;
    return build(b, OP_MERGE, TYPE_F32, attr, &a, 1);
}

NodeId build_pick(Builder *b, NodeId a, AxisId axis, int64_t position) {
    Attr attr = attr_from(&axis, 1);
    attr.integer = position;
    return build(b, OP_PICK, TYPE_F32, attr, &a, 1);
}

NodeId build_stack(Builder *b, const NodeId *parts, int count, AxisId axis) {
    return build(b, OP_STACK, TYPE_F32, attr_to(&axis, 1), parts, count);
}

NodeId build_reduce(Builder *b, Op op, NodeId a, const AxisId *axes, int count) {
    INTERNAL_CHECK(op == OP_SUM || op == OP_MAX);
    return count ? build(b, op, TYPE_F32, attr_from(axes, count), &a, 1) : a;
}

NodeId build_dot(Builder *b, NodeId a, NodeId c, const AxisId *axes, int count) {
    return build_dot_as(b, type_at(b, a).dtype, a, c, axes, count);
}

NodeId build_dot_as(Builder *b, DataType dtype, NodeId a, NodeId c, const AxisId *axes,
                    int count) {
    return build(b, OP_DOT, dtype, attr_from(axes, count), (NodeId[]){a, c}, 2);
}

NodeId build_gather(Builder *b, NodeId table, NodeId index, AxisId axis) {
    return build(b, OP_GATHER, TYPE_F32, attr_from(&axis, 1), (NodeId[]){table, index}, 2);
}

NodeId build_scatter_add(Builder *b, NodeId index, NodeId value, AxisId to,
                         const AxisId *summed, int count) {
    Attr attr = attr_from(summed, count);
    attr.to_count = 1;
    attr.to[0] = to;
    return build(b, OP_SCATTER_ADD, TYPE_F32, attr, (NodeId[]){index, value}, 2);
}

/* ---- what is live ---------------------------------------------------------------------- */

void mark_inputs(const Function *function, bool *marked) {
    for (int64_t id = function->nodes.count - 1; id >= 0; id--) {
        const Node *node = &function->nodes.data[id];
        for (int i = 0; i < node->input_count && marked[id]; i++)
            marked[node->inputs[i]] = true; /* ids are topological: one sweep is enough */
    }
}

bool *live_nodes(const Function *function) {
    bool *live = checked_alloc((size_t)function->nodes.count + 1);
    for (int64_t i = 0; i < function->writes.count; i++)
        live[function->writes.data[i].value] = true;
    mark_inputs(function, live);
    return live;
}

/* ---- rebuilding ---------------------------------------------------------------------- */

Rebuild rebuild_begin(Module *module, const Function *old) {
    Rebuild r = {.old = old};
    r.fresh = function_new(module, old->name, old->scalar_count, old->scalars);
    array_reserve(&r.fresh->nodes, old->nodes.count);
    if (old->interned->capacity)
        resize_table(r.fresh->interned, old->interned->capacity);
    /* New nodes of a scope are numbered after all that the old function numbered. */
    for (int64_t i = 0; i < old->interned->next_ordinal.count; i++)
        array_push(&r.fresh->interned->next_ordinal, old->interned->next_ordinal.data[i]);
    r.map = checked_alloc((size_t)old->nodes.count * sizeof *r.map);
    for (int64_t i = 0; i < old->nodes.count; i++)
        r.map[i] = -1;
    return r;
}

/* An equal node that is there already, or the given one appended. */
static NodeId append_shared(Function *function, Node node) {
    uint32_t hash = 0;
    set_dependence(function, &node);
    Slot *slot = slot_of(function, &node, &hash);
    return slot && slot->node >= 0 ? slot->node : append_at(function, node, slot, hash);
}

NodeId rebuild_copy(Rebuild *r, NodeId id) {
    Node node = *node_at(r->old, id);
    NodeId few[8];
    NodeId *inputs = node.input_count <= COUNT_OF(few)
                         ? few
                         : checked_alloc((size_t)node.input_count * sizeof *inputs);
    for (int i = 0; i < node.input_count; i++) {
        inputs[i] = r->map[node.inputs[i]];
        INTERNAL_CHECK(inputs[i] >= 0);
    }
    node.inputs = inputs;
    node.adjoint_of = node.adjoint_of >= 0 ? r->map[node.adjoint_of] : -1;
    node.original = node.original >= 0 ? r->map[node.original] : -1;
    Type type;
    const char *refusal = infer_type(r->fresh, node.op, node.type.dtype, &node.attr, inputs,
                                     node.input_count, &type);
    if (refusal || !type_equal(type, node.type))
        internal_error("function %s: copying %%%d: %s", r->old->name, id,
                       refusal ? refusal : "an operand's type changed the result's");
    r->map[id] = append_shared(r->fresh, node);
    if (inputs != few)
        free(inputs);
    return r->map[id];
}

static void reset_interned(Function *function) {
    InternTable *table = function->interned;
    for (int64_t i = 0; i < table->capacity; i++)
        table->slots[i].node = -1;
    table->count = 0;
    for (int64_t id = 0; id < function->nodes.count; id++) {
        uint32_t hash = 0;
        Slot *slot = slot_of(function, &function->nodes.data[id], &hash);
        take_slot(function, slot, hash, (NodeId)id);
    }
}

/* Gives live nodes consecutive ids.  An adjoint whose primal is dropped forgets it. */
static void compact(Function *function, const bool *live) {
    int64_t count = function->nodes.count;
    NodeId *moved = checked_alloc((size_t)count * sizeof *moved);
    NodeId next = 0;
    for (int64_t id = 0; id < count; id++)
        moved[id] = live[id] ? next++ : -1;
    for (int64_t id = 0; id < count; id++) {
        if (!live[id])
            continue;
        Node node = function->nodes.data[id];
        for (int i = 0; i < node.input_count; i++)
            node.inputs[i] = moved[node.inputs[i]];
        if (node.adjoint_of >= 0)
            node.adjoint_of = moved[node.adjoint_of];
        if (node.original >= 0)
            node.original = moved[node.original];
        function->nodes.data[moved[id]] = node;
    }
    for (int64_t i = 0; i < function->writes.count; i++)
        function->writes.data[i].value = moved[function->writes.data[i].value];
    int64_t named = 0;
    for (int64_t i = 0; i < function->names.count; i++) {
        NamedValue value = function->names.data[i];
        value.node = moved[value.node];
        if (value.node >= 0)
            function->names.data[named++] = value;
    }
    function->names.count = named;
    function->nodes.count = next;
    free(moved);
    reset_interned(function);
}

/* Drops nodes that reach no write. */
static void drop_dead(Function *function) {
    bool *live = live_nodes(function);
    if (function->nodes.count && memchr(live, 0, (size_t)function->nodes.count))
        compact(function, live);
    free(live);
}

/* The old function's writes, then the pass's own. */
static void join_writes(Rebuild *r) {
    int64_t own = r->fresh->writes.count, old = r->old->writes.count;
    array_reserve(&r->fresh->writes, own + old);
    Write *writes = r->fresh->writes.data;
    if (own)
        memmove(writes + old, writes, (size_t)own * sizeof *writes);
    for (int64_t i = 0; i < old; i++) {
        writes[i] = r->old->writes.data[i];
        writes[i].value = r->map[writes[i].value];
        INTERNAL_CHECK(writes[i].value >= 0);
    }
    r->fresh->writes.count = own + old;
}

/* The old function's names, then the pass's own. */
static void join_names(Rebuild *r) {
    int64_t own = r->fresh->names.count;
    array_reserve(&r->fresh->names, own + r->old->names.count);
    NamedValue *names = r->fresh->names.data;
    int64_t count = 0;
    for (int64_t i = 0; i < r->old->names.count; i++)
        count += r->map[r->old->names.data[i].node] >= 0;
    if (own)
        memmove(names + count, names, (size_t)own * sizeof *names);
    int64_t at = 0;
    for (int64_t i = 0; i < r->old->names.count; i++) {
        NamedValue value = r->old->names.data[i];
        value.node = r->map[value.node];
        if (value.node >= 0)
            names[at++] = value;
    }
    r->fresh->names.count = own + count;
}

Function *rebuild_finish(Rebuild *r) {
    Function *fresh = r->fresh;
    Module *module = fresh->module;
    join_writes(r);
    join_names(r);
    drop_dead(fresh);
    if (!fresh->groups.count) {
        for (int64_t i = 0; i < r->old->groups.count; i++)
            array_push(&fresh->groups, r->old->groups.data[i]);
        fresh->arena_bytes = r->old->arena_bytes;
    }
    int64_t place = 0;
    while (place < module->functions.count && module->functions.data[place] != r->old)
        place++;
    INTERNAL_CHECK(place < module->functions.count);
    function_clear(module->functions.data[place]);
    module->functions.data[place] = fresh;
    free(r->map);
    *r = (Rebuild){0};
    return fresh;
}

/* ---- dropping states ---------------------------------------------------------------- */

static void index_states(Module *module) {
    Text key = {0};
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        key.length = 0;
        print_state_key(&key, state->path, state->role, state->number);
        string_map_set(&module->state_by_key, text_string(&key), i);
    }
    text_free(&key);
}

static StateId moved_state(const StateId *moved, int64_t id) {
    INTERNAL_CHECK(moved[id] >= 0);
    return moved[id];
}

static void renumber_states(Function *function, const StateId *moved) {
    for (int64_t id = 0; id < function->nodes.count; id++)
        if (function->nodes.data[id].op == OP_STATE)
            function->nodes.data[id].attr.integer =
                moved_state(moved, function->nodes.data[id].attr.integer);
    for (int64_t i = 0; i < function->writes.count; i++)
        function->writes.data[i].state = moved_state(moved, function->writes.data[i].state);
    reset_interned(function);
}

void module_drop_states(Module *module, const bool *marked, int64_t count) {
    StateId *moved = checked_alloc((size_t)module->states.count * sizeof *moved);
    StateId next = 0;
    for (int64_t id = 0; id < module->states.count; id++) {
        moved[id] = id < count && marked[id] ? -1 : next++;
        if (moved[id] >= 0)
            module->states.data[moved[id]] = module->states.data[id];
    }
    module->states.count = next;
    for (int64_t id = 0; id < next; id++)
        if (module->states.data[id].weight >= 0)
            module->states.data[id].weight = moved_state(moved, module->states.data[id].weight);
    string_map_free(&module->state_by_key);
    index_states(module);
    for (int64_t i = 0; i < module->functions.count; i++)
        renumber_states(module->functions.data[i], moved);
    free(moved);
}

/* ---- copying ------------------------------------------------------------------------- */

#define COPY_ARRAY(to, from)                                                                   \
    do {                                                                                       \
        array_reserve(to, (from)->count);                                                      \
        if ((from)->count)                                                                     \
            memcpy((to)->data, (from)->data, (size_t)(from)->count * sizeof *(from)->data);    \
        (to)->count = (from)->count;                                                           \
    } while (0)

static InternTable *copy_interned(const InternTable *old) {
    InternTable *table = checked_alloc(sizeof *table);
    table->count = old->count;
    table->capacity = old->capacity;
    if (old->capacity) {
        table->slots = checked_alloc((size_t)old->capacity * sizeof *table->slots);
        memcpy(table->slots, old->slots, (size_t)old->capacity * sizeof *table->slots);
    }
    COPY_ARRAY(&table->next_ordinal, &old->next_ordinal);
    return table;
}

static Function *copy_function(Module *module, const Function *old) {
    Function *function = arena_alloc(module->arena, sizeof *function);
    function->name = old->name;
    function->scalar_count = old->scalar_count;
    function->scalars = old->scalars; /* a new scalar makes a new list */
    function->arena_bytes = old->arena_bytes;
    function->module = module;
    function->interned = copy_interned(old->interned);
    COPY_ARRAY(&function->nodes, &old->nodes);
    COPY_ARRAY(&function->writes, &old->writes);
    COPY_ARRAY(&function->groups, &old->groups);
    COPY_ARRAY(&function->names, &old->names);
    int64_t total = 0, next = 0;
    for (int64_t id = 0; id < old->nodes.count; id++)
        total += old->nodes.data[id].input_count;
    NodeId *inputs = arena_alloc_array(module->arena, (size_t)total, sizeof *inputs);
    for (int64_t id = 0; id < old->nodes.count; id++) {
        Node *node = &function->nodes.data[id];
        if (!node->input_count)
            continue;
        memcpy(inputs + next, node->inputs, (size_t)node->input_count * sizeof *inputs);
        node->inputs = inputs + next;
        next += node->input_count;
    }
    return function;
}

Module *module_copy(const Module *module) {
    Module *copy = checked_alloc(sizeof *copy);
    copy->arena = arena_new();
    copy->name = module->name;
    COPY_ARRAY(&copy->axes, &module->axes);
    COPY_ARRAY(&copy->scopes, &module->scopes);
    COPY_ARRAY(&copy->states, &module->states);
    COPY_ARRAY(&copy->inputs, &module->inputs);
    for (int64_t i = 0; i < module->functions.count; i++)
        array_push(&copy->functions, copy_function(copy, module->functions.data[i]));
    for (int64_t i = 0; i < copy->axes.count; i++)
        string_map_set(&copy->axis_by_name, copy->axes.data[i].name, i);
    index_states(copy);
    return copy;
}
