/* ir/ir.h: the dataflow graph.  Index of the folder, by source file.
 *
 *   ops.def    every primitive, one row each
 *   ops.c      turns the rows into tables
 *   graph.c    modules, axes, types, states, functions; the one constructor of nodes (hash-consing)
 *   verify.c   what must hold of a module at each stage
 *   text.c     the text form: print and parse; print, parse, print is the identity
 *   interp.c   an interpreter in double precision: the oracle of all tests
 *
 * A module is a set of states (weights, gradients, moments, tables, metrics) and of functions
 * (`init` fills tables, `micro` is one micro-batch and ends in `gradient += …`, `update` is one
 * optimizer step, `eval` is the loss alone).  A function is a pure graph of nodes plus writes
 * to states.  A tensor is a set of named axes: there is no transpose and no reshape; the order
 * in memory is an annotation that the layout pass makes.  Node ids are topological: inputs
 * first.
 */
#ifndef COLAC_IR_H
#define COLAC_IR_H

#include "base/base.h"

enum { MAX_AXES = 12 };              /* of one tensor */
enum { MAX_NODES = 4000000 };        /* of one function; above that a model is refused */
enum { MAX_MODULE_AXES = 65535 };    /* of one module; the front end refuses more */
#define MAX_ELEMENTS (INT64_C(1) << 60) /* of one tensor */

typedef uint16_t AxisId; /* index in Module.axes */
typedef int32_t NodeId;  /* index in Function.nodes; -1: none */
typedef int32_t StateId; /* index in Module.states */
typedef int32_t ScopeId; /* index in Module.scopes; 0 is the root */

/* ---- ops.c --------------------------------------------------------------------------------- */
typedef enum Op {
#define OP(enumerator, ...) enumerator,
#include "ir/ops.def"
#undef OP
    OP_COUNT
} Op;

typedef enum AxisRule {
    AXES_LEAF, AXES_SAME, AXES_EXPAND, AXES_REDUCE, AXES_DOT, AXES_GATHER, AXES_SCATTER,
    AXES_PICK, AXES_STACK, AXES_RENAME, AXES_SPLIT, AXES_MERGE
} AxisRule;
typedef enum DtypeRule {
    DTYPE_ATTR, DTYPE_SAME, DTYPE_BOOL, DTYPE_SECOND, DTYPE_PRODUCT
} DtypeRule;
enum { USES_NUMBER = 1, USES_INTEGER = 2, USES_FROM = 4, USES_TO = 8 }; /* attributes of an op */

/* Gradient rules, dispatched in passes/autodiff.c; a rule that is missing there is a compile
 * error of ours. */
typedef enum GradientRule {
    GRADIENT_NONE, GRADIENT_STATE, GRADIENT_NEG, GRADIENT_ABS, GRADIENT_EXP, GRADIENT_LOG,
    GRADIENT_SQRT, GRADIENT_TANH, GRADIENT_SIGMOID, GRADIENT_ERF, GRADIENT_SIN, GRADIENT_COS,
    GRADIENT_CAST, GRADIENT_COPY, GRADIENT_ADD, GRADIENT_SUB, GRADIENT_MUL, GRADIENT_DIV,
    GRADIENT_MAXIMUM, GRADIENT_MINIMUM, GRADIENT_WHERE, GRADIENT_FMA, GRADIENT_EXPAND,
    GRADIENT_RENAME, GRADIENT_SPLIT, GRADIENT_MERGE, GRADIENT_PICK, GRADIENT_STACK, GRADIENT_SUM,
    GRADIENT_MAX, GRADIENT_DOT, GRADIENT_GATHER
} GradientRule;

typedef struct OpInfo {
    const char *name;
    int arity; /* -1: any number, at least one */
    AxisRule axis_rule;
    DtypeRule dtype_rule;
    unsigned attributes; /* USES_* */
    GradientRule gradient;
    int flops; /* of an element of the result; of a term for dot */
    int work;  /* what that takes beside an addition in a vectorized loop, roughly */
    const char *expression; /* C of a, b, c; "" where the op is no map */
    const char *doc;
} OpInfo;
extern const OpInfo op_info[OP_COUNT];
Op op_by_name(const char *name);      /* OP_COUNT when there is none */
bool op_is_map(Op op);                /* has an expression: element by element */
bool op_is_view(Op op);               /* rename, split, merge, pick: strides change, data does not */
void ops_print_markdown(Text *out);   /* the table as a page of the manual */

typedef enum DataType { TYPE_BOOL, TYPE_I32, TYPE_BF16, TYPE_F32, TYPE_F64 } DataType;
const char *dtype_name(DataType dtype); /* bool i32 bf16 f32 f64 */
int dtype_bytes(DataType dtype);        /* bool is 1 byte in memory */
bool dtype_is_float(DataType dtype);

/* ---- graph.c ------------------------------------------------------------------------------- */
typedef struct Axis {
    const char *name; /* unique in the module; a local axis is BLOCK.NAME (and .SIZE where needed) */
    int64_t size;     /* >= 1 */
    Span declared;
} Axis;

/* dtype and the sorted set of axes.  f64 has no axes: such nodes are runtime scalars, computed
 * on the host before a function runs. */
typedef struct Type {
    DataType dtype;
    int rank;
    AxisId axes[MAX_AXES]; /* ascending by id */
} Type;

/* Which fields mean something is in the op table; the others are zero. */
typedef struct Attr {
    double number;
    int64_t integer;
    int from_count, to_count;
    AxisId from[MAX_AXES], to[MAX_AXES]; /* ordered for split and merge, sorted elsewhere */
} Attr;

/* How the layout, fuse, schedule and memory passes annotate a node. */
typedef struct Placement {
    int order_count;            /* -1: no layout yet */
    AxisId order[MAX_AXES];     /* memory order, slowest first; strides follow, dense */
    int32_t group;              /* the group that computes it; -1: none (leaf, view, scalar) */
    bool stored;                /* has memory of its own in the arena */
    int64_t offset;             /* bytes from the arena's start; -1: not placed */
} Placement;

typedef struct Node {
    Op op;
    Type type;
    int32_t input_count;
    NodeId *inputs;
    Attr attr;
    ScopeId scope;
    int32_t ordinal;   /* the same in every instance of a block: counts the block's nodes */
    int32_t clone;     /* 0: the original; recompute makes others, which are not shared with it */
    NodeId original;   /* of a clone: the value it computes again, bit for bit; else -1 */
    bool is_static;    /* depends on constants, scalars and index nodes alone; scope 0, clone 0 */
    bool on_host;      /* a map of constants and scalars alone, no axes; every f64 node is one */
    NodeId adjoint_of; /* this value is (part of) the adjoint of that node; -1 */
    const char *name;  /* the name it is bound to in its block, or NULL; "out" names the result */
    Span span;
    Placement placement;
} Node;

typedef enum Role {
    ROLE_WEIGHT, ROLE_GRADIENT, ROLE_MOMENT,
    ROLE_COPY, /* of a weight, in bf16 */
    ROLE_TABLE, ROLE_METRIC
} Role;
const char *role_name(Role role); /* weight gradient moment copy table metric */
DataType role_dtype(Role role);    /* of the elements of its slab: f32; of copies bf16 */

typedef enum InitKind { INIT_ZEROS, INIT_CONSTANT, INIT_NORMAL, INIT_UNIFORM } InitKind;
typedef struct Init {
    InitKind kind;
    double scale; /* the constant; the standard deviation; uniform in [-scale, scale) */
} Init;

/* A value that outlives a function call.  A weight, its gradient, moments and copy have the
 * same axes, memory order and slab offset, each in the slab of its role (and number).  A *flat*
 * state is a window over a range of such a slab, with one axis: the optimizer runs over it in
 * one pass. */
typedef struct State {
    const char *path; /* layer[3].attn.wq.A; of a gradient, moment or copy the weight's */
    Role role;
    int32_t number;   /* which moment: 0, 1, …; else 0 */
    DataType dtype;
    int in_count, out_count;      /* parameters mark inputs and outputs: [D -> H,K] */
    AxisId in[MAX_AXES], out[MAX_AXES]; /* in declared order */
    int order_count;              /* memory order, slowest first; -1 before layout */
    AxisId order[MAX_AXES];
    Init init;
    StateId weight;   /* of a gradient, moment or copy: its weight; else -1 */
    int32_t group;    /* optimizer group of a weight, from 0 */
    bool low_rank;    /* belongs to a block that `factorize` placed */
    bool flat;        /* a window over [offset, offset + size of its axis) of its slab */
    int64_t offset;   /* elements from its slab's start; -1: not placed */
    Span span;
} State;

/* An instance of a block: where a node's parameters and names live. */
typedef struct Scope {
    ScopeId parent;    /* -1 for the root */
    const char *path;  /* "" for the root; layer[3].attn */
    const char *block; /* the block's name, or "" */
    Span call;         /* where it was called */
} Scope;

/* An integer input, fed from the token data.  axes[0] is the sample axis. */
typedef struct Input {
    const char *name;
    int axis_count;
    AxisId axes[MAX_AXES]; /* declared order: samples, positions, … */
    int64_t below;         /* values are in [0, below) */
    int64_t next;          /* how many tokens further than the sample's start */
    Span span;
} Input;

typedef struct Write {
    StateId state;
    NodeId value; /* type: the state's axes and dtype */
    bool add;     /* state += value */
    bool direct;  /* fuse: the group that computes value stores straight into the state */
} Write;

/* How a group of nodes runs as one kernel (or product).  Made by fuse; in execution order after
 * schedule. */
typedef enum GroupKind {
    GROUP_FLAT,    /* maps over `rows` axes */
    GROUP_ROW,     /* for each of `rows`: sweeps over `inner` with reductions between them */
    GROUP_COLUMN,  /* reduction over `inner` axes that are outer in memory; fixed two stages */
    GROUP_SCATTER, /* scatter_add: each worker owns a slice of the row, walks the index in order */
    GROUP_PRODUCT, /* one dot, by the product library */
} GroupKind;
const char *group_kind_name(GroupKind kind); /* flat row column scatter product */
typedef struct Group {
    GroupKind kind;
    int row_count, inner_count;
    AxisId rows[MAX_AXES], inner[MAX_AXES]; /* loop order, slowest first */
} Group;

/* What a name of the text stands for: `name` in block instance `scope` is this value.  Inputs
 * of a block, bindings, and `out`, what it returns; a value may have several, or, in loops that
 * rebind a name, a name several values. */
typedef struct NamedValue {
    ScopeId scope;
    const char *name;
    NodeId node;
    Span span; /* where the text binds the name; not printed */
} NamedValue;

typedef struct Function {
    const char *name;        /* init micro update eval */
    int64_t scalar_count;
    const char **scalars;    /* names of runtime scalars; OP_SCALAR's integer indexes them */
    ARRAY(Node) nodes;
    ARRAY(Write) writes;     /* executed as if after all reads */
    ARRAY(Group) groups;     /* empty before fuse */
    ARRAY(NamedValue) names; /* of live values */
    int64_t arena_bytes;     /* -1 before memory */
    struct InternTable *interned;
    struct Module *module;
} Function;

typedef struct Module {
    Arena *arena;     /* owns all of it */
    const char *name; /* of its text: what messages name that have no better place */
    ARRAY(Axis) axes;
    ARRAY(Scope) scopes;
    ARRAY(State) states;
    ARRAY(Input) inputs;
    ARRAY(Function *) functions;
    StringMap axis_by_name;
    StringMap state_by_key; /* "ROLE NUMBER PATH" */
} Module;

Module *module_new(void); /* named `module` */
void module_free(Module *module);
/* Equal in everything, and changed apart from the original, whose texts it reads: to be freed
 * before it. */
Module *module_copy(const Module *module);
/* The axis of that name and size.  Where the name is taken with another size, NAME.SIZE is
 * used.  size must be in [1, MAX_ELEMENTS]. */
AxisId module_axis(Module *module, const char *name, int64_t size, Span declared);
ScopeId module_scope(Module *module, ScopeId parent, const char *path, const char *block, Span call);
bool scope_is_within(const Module *module, ScopeId inner, ScopeId outer); /* or the same */
StateId module_state(Module *module, State state); /* copies; path is interned */
StateId module_find_state(const Module *module, const char *path, Role role, int number); /* -1 */
/* Forgets the marked ones of the first `count` states, which nothing live reads or writes; the
 * others get new numbers. */
void module_drop_states(Module *module, const bool *marked, int64_t count);
Function *module_function(Module *module, const char *name, int scalar_count,
                          const char *const *scalars); /* a new, empty one, appended */
Function *module_find_function(const Module *module, const char *name); /* NULL */
/* The number of the runtime scalar of that name; one that is new comes after the others. */
int64_t function_scalar(Function *function, const char *name);
/* Marks all that marked nodes are computed from. */
void mark_inputs(const Function *function, bool *marked);
/* By node: does it reach a write?  To be freed. */
bool *live_nodes(const Function *function);
int64_t module_bytes(const Module *module); /* the compiler's own memory for it */

Type type_of(DataType dtype, const AxisId *axes, int rank); /* sorts; axes must be distinct */
Type state_type(const State *state);                        /* its axes as a type */
bool type_equal(Type a, Type b);
bool type_same_axes(Type a, Type b);
bool type_has(Type type, AxisId axis);
Type type_without(Type type, AxisId axis);
Type type_with(Type type, AxisId axis);
Type type_union(Type a, Type b); /* a's dtype; rank may exceed MAX_AXES - check first */
bool type_contains(Type outer, Type inner); /* axes of inner are all in outer */
/* Number of elements; INT64_MAX where it exceeds MAX_ELEMENTS. */
int64_t type_elements(const Module *module, Type type);
int64_t axes_elements(const Module *module, const AxisId *axes, int count);
char *type_text(const Module *module, Type type, Arena *arena); /* f32[B,S,D] */

/* The context in which nodes are made: scope, span, name hints. */
typedef struct Builder {
    Function *function;
    ScopeId scope;
    int32_t clone;
    NodeId adjoint_of; /* -1 outside autodiff */
    Span span;
} Builder;
Builder builder(Function *function);

/* The type that a node of this kind has in `function`, in *result; NULL, or, where the op's
 * rules are broken, one sentence about it (in the module's arena).  `inputs` must be node
 * ids. */
const char *infer_type(const Function *function, Op op, DataType dtype, const Attr *attr,
                       const NodeId *inputs, int count, Type *result);

/* The only way to make a node.  Computes the result type from the op's rules, aborts (internal
 * error) on an ill-formed request, and returns the existing node when the same op, inputs,
 * attributes, scope and clone were asked for before (random and states too: reads are pure).
 * A copy is never shared: two copies of a value differ in their memory order, an annotation.
 * adjoint_of is recorded where the result has that node's axes; it is not part of the identity.
 * Nodes whose inputs are all constants, scalars, index nodes or such values belong to scope 0.
 * Performs no algebra. */
NodeId build(Builder *b, Op op, DataType dtype, Attr attr, const NodeId *inputs, int count);

/* Short forms.  Each gives a node of the obvious type. */
NodeId build_const(Builder *b, DataType dtype, double number);
NodeId build_scalar(Builder *b, int64_t number);
NodeId build_input(Builder *b, int64_t number);
NodeId build_state(Builder *b, StateId state);
NodeId build_index(Builder *b, AxisId axis);
NodeId build_map(Builder *b, Op op, const NodeId *inputs, int count); /* same-axes maps */
NodeId build_1(Builder *b, Op op, NodeId a);
/* Two- and three-operand maps that expand their operands to the union of axes first. */
NodeId build_2(Builder *b, Op op, NodeId x, NodeId y);
NodeId build_3(Builder *b, Op op, NodeId x, NodeId y, NodeId z);
NodeId build_cast(Builder *b, NodeId a, DataType dtype); /* `a` itself when it has that dtype */
NodeId build_expand(Builder *b, NodeId a, Type to); /* to ⊇ a's axes; `a` itself when equal */
NodeId build_rename(Builder *b, NodeId a, AxisId from, AxisId to);
NodeId build_split(Builder *b, NodeId a, AxisId from, const AxisId *to, int count);
NodeId build_merge(Builder *b, NodeId a, const AxisId *from, int count, AxisId to);
NodeId build_pick(Builder *b, NodeId a, AxisId axis, int64_t position);
NodeId build_stack(Builder *b, const NodeId *parts, int count, AxisId axis);
NodeId build_reduce(Builder *b, Op op, NodeId a, const AxisId *axes, int count); /* none: a */
NodeId build_dot(Builder *b, NodeId a, NodeId c, const AxisId *axes, int count); /* none: outer */
/* The same with a result of another dtype than the operands': f32 of bf16. */
NodeId build_dot_as(Builder *b, DataType dtype, NodeId a, NodeId c, const AxisId *axes, int count);
NodeId build_gather(Builder *b, NodeId table, NodeId index, AxisId axis);
NodeId build_scatter_add(Builder *b, NodeId index, NodeId value, AxisId to, const AxisId *summed,
                         int count);

const Node *node_at(const Function *function, NodeId id);
/* Appends a node as the text form gives it, without sharing: numbering, scope, ordinal and
 * annotations are kept; an ordinal of -1 asks for the next of its scope.  `node.type` must be
 * what infer_type says. */
NodeId function_append(Function *function, Node node);

/* Rebuilding: passes make a new function and swap it in.  `map` has a new id for each old one
 * that was copied (-1 otherwise). */
typedef struct Rebuild {
    const Function *old;
    Function *fresh;
    NodeId *map;
} Rebuild;
Rebuild rebuild_begin(Module *module, const Function *old);
/* Copies node `id` (its inputs must have been mapped) with scope, clone, name, span, ordinal,
 * placement, adjoint_of and original kept (the latter two mapped; -1 where their node was not);
 * sets map[id] and returns it. */
NodeId rebuild_copy(Rebuild *r, NodeId id);
/* Maps the old function's names and writes (whose values must be mapped; writes already in the
 * new function come after them), drops nodes that reach no write, keeps groups and arena size
 * where the pass made none, and puts the new function in the old one's place in the module.
 * Returns the new function; the old one and `map` are gone. */
Function *rebuild_finish(Rebuild *r);

/* ---- verify.c ------------------------------------------------------------------------------ */
/* A stage is the name of the last pass that ran ("" before any). */
typedef enum Stage {
    STAGE_GRAPH,    /* pure graph; no placements */
    STAGE_LAYOUT,   /* every value that may be stored has an order; every state has one */
    STAGE_FUSE,     /* every computed node is in a group or is a view, leaf or host scalar */
    STAGE_SCHEDULE, /* groups in execution order */
    STAGE_MEMORY    /* stored values have offsets; arena_bytes set */
} Stage;
Stage stage_by_name(const char *name); /* of the text form: graph layout fuse schedule memory */
const char *stage_name(Stage stage);
/* NULL when all invariants of the stage hold, else one sentence (in the module's arena) that
 * names function, node and invariant.  Among them: ids topological, types as the op's rules
 * give, an adjoint has exactly its primal's axes, attributes in range, writes of the right
 * type, f64 has no axes, no axis twice.  "Computed" below: no leaf, view or expand, and not on
 * the host; a static value may stay without order and group, made anew where it is read.
 *   graph     no memory orders of nodes, no groups
 *   layout    every state and every computed node has an order
 *   fuse      every computed node has a group, except maps that are computed again by each group
 *             that reads them; no group is empty; groups are acyclic; stored values have a group
 *             and an order; what another group reads is stored
 *   schedule  no group reads from a later one
 *   memory    stored values, and only they, have offsets, and end within the arena */
const char *ir_verify(const Module *module, Stage stage);

/* ---- text.c -------------------------------------------------------------------------------- */
/*  module stage fuse
 *  axis B 8
 *  scope 1 in 0 "layer[0]" block layer
 *  input tokens i32[B,S] below 32000 next 0
 *  state weight layer[0].attn.wq f32 in(D) out(H,K) order(H,K,D) normal 0.02 offset 0
 *  function micro(step, seed, sample0) {
 *    %0 = input 0 to(B,S) : i32[B,S]
 *    %7 = dot %3 %5 from(D) : f32[B,S,H,K] scope 2 name "q" order(B,S,H,K) group 3 stored
 *    …
 *    value 2 "q" %7
 *    write gradient layer[0].attn.wq += %90
 *    group 3 product rows(B,S,H,K) inner(D)
 *  }
 * The grammar opens text.c.  Spans are not printed. */
void ir_print(const Module *module, Stage stage, Text *out);
/* Parses text printed by ir_print or written by hand.  What it returns passes ir_verify at the
 * stage that the text names.  Nodes keep their numbers; their spans point into the source,
 * which must live as long.  On failure reports in `diagnostics` and returns NULL.  Never
 * crashes on any bytes. */
Module *ir_parse(const Source *source, Diagnostics *diagnostics, Stage *stage);
/* Graphviz form of one function. */
void ir_print_dot(const Module *module, const Function *function, Text *out);

/* ---- interp.c ------------------------------------------------------------------------------ */
/* Values in double; integers and bools are doubles too.  bf16 and f32 casts round only when
 * `round` is set (then every f32 result is rounded to f32: a reference of the program's bits in
 * maps, not in sums).  Elements are in the type's axis order, slowest first (ascending axis
 * ids). */
typedef struct Interp Interp;
/* state_data[id]: the state's elements as doubles in its type's order (flat states included:
 * NULL, they are assembled from and written back to the slab's members in offset order).
 * input_data[i]:  as ints in the input's declared axis order. */
Interp *interp_new(const Module *module);
/* Bytes that states and, at most, the values of one run will occupy. */
double interp_bytes(const Module *module);
void interp_free(Interp *interp);
double *interp_state(Interp *interp, StateId state); /* in type order; allocated, zero at first */
void interp_set_input(Interp *interp, int input, const int32_t *data); /* not copied */
void interp_set_round(Interp *interp, bool round);
/* Runs the function: evaluates, then performs the writes.  scalars: one per function scalar.
 * The value of any node can be read afterwards until the next run when keep is set. */
void interp_run(Interp *interp, const Function *function, const double *scalars, bool keep);
const double *interp_value(const Interp *interp, NodeId node);
/* The host's runtime scalars: evaluates one f64 node (of constants and scalars only). */
double interp_scalar(const Function *function, NodeId node, const double *scalars);
/* Its parts, for who runs often: the nodes that `wanted` need, inputs first, in memory to be
 * freed; and the value of one of them, from those of its inputs, by node. */
int64_t interp_scalar_steps(const Function *function, const NodeId *wanted, int64_t count,
                            NodeId **steps);
double interp_scalar_step(const Function *function, NodeId node, const double *scalars,
                          const double *values);
/* The value of OP_RANDOM at one element, in [0,1).  Philox-4x32-10, first word, its upper 24
 * bits times 2^-24.  Key: the halves (low first) of splitmix64's finalizer of seed *
 * 0x9E3779B97F4A7C15 + site.  Counter: low words of index, step and sample, then 16 bits each
 * of the high words of index and sample.  The sample is `sample0` plus the position along the
 * axis of OP_RANDOM's `to` that is some input's sample axis, and the index runs over the other
 * axes in type order; without such an axis the sample is 0.  seed, step and sample0 are the
 * function's scalars of those names, or 0.  Kernels compute the same function. */
double random_uniform(uint64_t seed, uint64_t step, uint64_t site, uint64_t sample, uint64_t index);

#endif
