/* frontend/expand.h: private to the semantic half of the front end.  Index, by source file.
 *
 *   number.c          compile-time numbers and their arithmetic
 *   compile_time.c    dims and flags: who sets them, and settling them
 *   explain.c         errors of an expansion: call chain, axes, where each number was set
 *   names.c           frames, bindings, what a name means; axis lists
 *   compile.c         compile_model: the steps, and what must hold of the result
 *   expand.c          statements
 *   expand_expr.c     expressions
 *   expand_call.c     calls of blocks and fns: binding, components, scopes
 *   expand_tensor.c   element-wise typing, conversions, type annotations
 *   expand_index.c    x[S as T], splits, merges, picks, gathers
 *   builtins.c        dot, sum, exp, where, …
 *   selector.c        path selectors
 *   plan.c            plans, and the blocks that `factorize` places
 *   recipe.c          recipes
 *   optimizer.c       expanding an optimizer's text over a weight
 */
#ifndef COLAC_FRONTEND_EXPAND_H
#define COLAC_FRONTEND_EXPAND_H

#include "frontend/frontend.h"

enum { MAX_DEPTH = 1000 };     /* of expressions and calls within each other */
enum { MAX_SCOPE_DEPTH = 60 }; /* of block instances; a selector is matched in 64 bits */
enum { MAX_STEPS = 12000000 }; /* expressions and statements evaluated for one model */
/* Of a model.  Gradients are up to three times as many, and optimizers stand behind them. */
enum { MAX_OPERATIONS = MAX_NODES / 4 };
enum { AXIS_RESERVE = 1024 };  /* axes left to the passes */
#define MAX_INTEGER       (INT64_C(1) << 60)
#define DEFAULT_OPTIMIZER "adamw" /* of a recipe that names none */

typedef struct Expander Expander;
typedef struct Frame Frame;

/* ---- number.c ------------------------------------------------------------------------ */
typedef enum NumberKind { NUMBER_POISON, NUMBER_BOOL, NUMBER_INTEGER, NUMBER_REAL } NumberKind;
typedef struct Number {
    NumberKind kind;
    int64_t integer; /* BOOL (0, 1) and INTEGER */
    double real;     /* always */
} Number;

Number number_integer(int64_t integer);
Number number_real(double real);
Number number_bool(bool truth);
const char *number_text(Expander *x, Number number);
/* The integer that a number is (1e4 too); false when it is none. */
bool number_whole(Number number, int64_t *integer);
/* Poison operands give poison; impossible operations are reported at `e`. */
Number number_unary(Expander *x, Frame *f, const Expr *e, Number a);
Number number_binary(Expander *x, Frame *f, const Expr *e, Number a, Number b);

/* ---- compile_time.c ------------------------------------------------------------------ */
typedef enum SetBy { SET_DEFAULT, SET_PRESET, SET_PLAN, SET_DEFINE, SET_ARGUMENT } SetBy;

/* A compile-time value with a name, which may serve as an axis. */
typedef struct Dim {
    const char *name;
    const char *axis_name; /* of a local one: BLOCK.NAME */
    const char *owner;     /* "" for the model's, else `plan cola`, `recipe paper`, a block */
    bool is_flag, is_local;
    Span declared;
    SetBy set_by;       /* who gave the value in force */
    const char *setter; /* the preset's or plan's name */
    Span set;
    const Expr *value;     /* the expression in force; NULL when given as a number */
    struct DimTable *home; /* where its names are looked up */
    enum { UNSETTLED, SETTLING, SETTLED } state;
    Number number;
    int32_t axis; /* -1 until it is used as one */
    bool refused; /* it was said that it is no size */
} Dim;

typedef struct DimTable {
    const char *owner;
    StringMap by_name;
    ARRAY(Dim *) dims;
    struct DimTable *outer; /* looked at next; NULL */
} DimTable;

Dim *dim_new(Expander *x, const char *name, Span declared);
void table_add(Expander *x, DimTable *table, Dim *dim);
Dim *table_own(const DimTable *table, const char *name);  /* NULL; this table alone */
Dim *table_find(const DimTable *table, const char *name); /* outer ones too */
void table_free(DimTable *table);
/* The value, evaluated at first use; poison after reporting. */
Number dim_number(Expander *x, Dim *dim);
/* Its axis; -1 after reporting when its value is no size. */
int32_t dim_axis(Expander *x, Dim *dim, Span use);
/* Gives a value, unless a weightier voice has given one. */
void dim_set(Dim *dim, SetBy by, const char *setter, Span set, const Expr *value,
             DimTable *home);
/* Declares the global dims and flags and applies the model's presets. */
void declare_globals(Expander *x);
/* Applies one preset's settings to a table's own dims; names that are unknown are errors. */
void apply_preset(Expander *x, const Preset *preset, DimTable *table, const char *owner);
/* Parses and keeps the values of -D.  apply_defines gives them to dims (recipe.c takes its own
 * first) and reports names that nothing knows. */
void parse_defines(Expander *x);
void apply_defines(Expander *x);
/* The parsed -D of that name, or NULL; it counts as used. */
const Expr *define_for(Expander *x, const char *name);
/* A compile-time expression in a table's names. */
Number evaluate(Expander *x, const Expr *e, DimTable *table);
bool evaluate_whole(Expander *x, const Expr *e, DimTable *table, const char *what,
                    int64_t least, int64_t *value);

/* ---- values and frames (names.c) ----------------------------------------------------- */
typedef struct AxisList {
    int count;
    AxisId axes[MAX_AXES];
} AxisList;

typedef enum ValueKind { VALUE_POISON, VALUE_NUMBER, VALUE_TENSOR } ValueKind;
typedef struct Value {
    ValueKind kind;
    Number number;
    NodeId node;
    int64_t below;      /* an int tensor's values are in [0, below); 0: unknown */
    int32_t below_axis; /* the axis that `below` names; -1: none */
} Value;

static const Value poison = {.kind = VALUE_POISON};
Value number_value(Number number);
Value tensor_value(NodeId node);
Value bounded_value(NodeId node, int64_t below, int32_t below_axis);
Type value_type(const Expander *x, Value value); /* of a tensor */

typedef enum BindingKind { BIND_VALUE, BIND_PARAM, BIND_DIM, BIND_AXES } BindingKind;
typedef struct Binding {
    const char *name;
    Span span;
    int64_t epoch; /* the body in which it was bound */
    BindingKind kind;
    Value value;          /* VALUE */
    StateId state;        /* PARAM */
    Dim *dim;             /* DIM: a dim or a number, which may serve as an axis */
    AxisList axes;        /* AXES: what an axis formal stands for, when not one dim */
    const Expr *argument; /* of a formal: what the call gave; NULL */
} Binding;

/* A block instance; the model is one, with path "". */
typedef struct Instance {
    ScopeId scope;
    const char *path;
    int depth;
    StringMap names; /* by full path: twice the index into spans, 1 more for a parameter */
    ARRAY(Span) spans;
} Instance;

struct FnCalls {
    const Item *item;
    int count;
};

struct Frame {
    Frame *caller;      /* for the call chain; NULL */
    const Item *item;   /* block, fn, model, optimizer; NULL: compile time alone */
    Instance *instance; /* the block around; NULL in optimizers and at compile time */
    struct OptimizerRun *optimizer; /* NULL outside optimizers */
    DimTable *table;                /* the names around */
    bool compile_time;              /* no tensors here */
    ScopeId scope;
    Span call;
    uint64_t site;                  /* what distinguishes random's sites here from others' */
    ARRAY(struct FnCalls) fn_calls; /* how often each fn was called from here */
    const char *suffix;             /* "[3]" inside loops */
    int64_t epoch;
    ARRAY(Binding) bindings;
    StringMap index; /* name -> position in bindings, kept once there are many */
    bool returned;
    Value result;
    Span result_span;
};

Frame frame_begin(Frame *caller, const Item *item, DimTable *table);
void frame_end(Frame *f);
bool frame_is_fn(const Frame *f);
Binding *frame_find(Frame *f, const char *name); /* NULL */
Binding *frame_bind(Frame *f, Name name, BindingKind kind);
void frame_truncate(Frame *f, int64_t count);
/* A dim known by this name here (bindings, then tables), or NULL. */
Dim *visible_dim(Frame *f, const char *name);
/* An axis list that one name stands for.  False after reporting. */
bool axes_of_name(Expander *x, Frame *f, Name name, AxisList *axes);
bool axes_of_names(Expander *x, Frame *f, const Name *names, int count, AxisList *axes);
/* Axis arguments: names, parenthesized lists, axes(tensor). */
bool axes_of_args(Expander *x, Frame *f, const Expr *args, int count, AxisList *axes);
bool axis_list_add(Expander *x, Frame *f, AxisList *axes, AxisId axis, Span span);
bool axis_list_has(const AxisList *axes, AxisId axis);
const char *nearest_visible(Frame *f, const char *name);
AxisId new_axis(Expander *x, Dim *dim, int64_t size); /* and remembers who set it */

/* ---- explain.c ----------------------------------------------------------------------- */
/* An error at a place; notes of the call chain are added when a frame is given. */
Diagnostic *complain(Expander *x, const Frame *f, Span span, const char *format, ...)
    PRINTF_LIKE(4, 5);
int error_count(const Expander *x);
const char *excerpt(Expander *x, Span span); /* `text`, cut when long */
void explain_dim(Expander *x, Diagnostic *d, Dim *dim);
void explain_axis(Expander *x, Diagnostic *d, AxisId axis);
void explain_axes(Expander *x, Diagnostic *d, const AxisId *axes, int count);
void explain_names(Expander *x, Frame *f, Diagnostic *d, const Expr *e); /* its dims */
const char *axes_text(Expander *x, Type type);                           /* [B,S,D] */
const char *list_text(Expander *x, const AxisId *axes, int count);       /* B, S and D */
const char *axis_name(const Expander *x, AxisId axis);
int64_t axis_size(const Expander *x, AxisId axis);
/* Two values whose axes do not agree: axes on one side only, and a rename that would help. */
void explain_difference(Expander *x, Diagnostic *d, Type a, const Expr *b_expr, Type b);
/* Suggests to rename one of `have`, axes of `e`, as one of `want` of the same size. */
void suggest_rename(Expander *x, Diagnostic *d, const AxisList *want, const Expr *e,
                    const AxisList *have);
/* Is one declared to be the other (`dim T = S`)? */
bool declared_same(const Expander *x, AxisId a, AxisId b);
/* Suggests to rename an axis of `e`, which has `type`, that is declared as `want` (`dim T =
 * S`).  False: there is none. */
bool suggest_declared(Expander *x, Diagnostic *d, AxisId want, const Expr *e, Type type);
AxisList axes_only_in(Type a, Type b);

/* ---- expand.c ------------------------------------------------------------------------ */
/* In block instance f->scope, `name` stands for the value. */
void record_name(Expander *x, const Frame *f, NodeId value, Name name);
typedef ARRAY(const Item *) Chain;
typedef struct ItemEntry {
    const Item *item;
    int64_t earlier; /* of the same name; -1 */
} ItemEntry;

struct Expander {
    Arena *arena;
    Texts *texts;
    Diagnostics *diagnostics;
    Compilation *compilation;
    const Request *request;
    Module *module;
    Function *function;      /* being built */
    int most_nodes;          /* that it may have */
    StringMap items_by_name; /* blocks, fns, optimizers */
    ARRAY(ItemEntry) items;
    const Item *library; /* of a text that does not use it: where the default optimizer is from */
    DimTable globals, plan_dims, recipe_dims;
    ARRAY(Dim *) axis_dims;      /* by axis; NULL where none made it */
    ARRAY(ScopeId) state_scopes; /* the scope that a parameter was declared in */
    ARRAY(const char *) scope_paths; /* for selectors */
    struct ParsedDefine *defines;
    bool preset_known;
    Chain plan_chain, recipe_chain;
    int64_t steps, match_steps;
    bool exhausted; /* too large: reported, and nothing more is expanded */
    int depth;
    int64_t epochs;
    bool low_rank;               /* parameters made now belong to a factorize */
    NodeId loss_sum, weight_sum; /* -1: none yet */
    Span minimized;
    struct RecipeState *recipe;
};

Builder builder_at(Expander *x, const Frame *f, Span span);
/* An item by name as seen from a text: its own first, else the latest loaded. */
const Item *find_item(const Expander *x, const char *name, const Source *from);
const Item *find_kind(const Expander *x, ItemKind kind, const char *name, const Source *from);
void execute_body(Expander *x, Frame *f, const Statement *body);
const char *path_join(Expander *x, const char *path, const char *name);
/* Counts work; false (after one report) when a model asks for too much. */
bool spend_step(Expander *x, const Frame *f, Span span);
bool spend_steps(Expander *x, const Frame *f, Span span, int64_t steps);
bool parse_init(Expander *x, Frame *f, const Statement *s, Init *init);

/* ---- expand_expr.c ------------------------------------------------------------------- */
Value eval(Expander *x, Frame *f, const Expr *e);
/* A compile-time number; poison after reporting that `what` must be one. */
Number eval_number(Expander *x, Frame *f, const Expr *e, const char *what);
bool eval_whole(Expander *x, Frame *f, const Expr *e, const char *what, int64_t least,
                int64_t *value);

/* ---- expand_call.c ------------------------------------------------------------------- */
/* A call of a block or fn.  label: NULL or the component's name. */
Value eval_item_call(Expander *x, Frame *f, const Expr *e, const Item *item, const Name *label);
/* Binds a call's arguments to an item's formals in `callee`; formals that are bound already are
 * given by the compiler (factorize) and take no argument. */
void bind_arguments(Expander *x, Frame *caller, const Expr *call, const Item *item,
                    Frame *callee);
/* Enters an instance of a block whose formals are bound, expands its body, gives its result. */
Value expand_block(Expander *x, Frame *callee, ScopeId parent, const char *path, int depth);
/* Is the path new in the instance around?  Else reports twins. */
bool claim_path(Expander *x, Frame *f, const char *path, Span span, const char *component);
Binding *bind_value(Frame *f, Name name, Value value);
Binding *bind_number(Expander *x, Frame *callee, Name formal, Number number, Span span);

/* ---- expand_tensor.c ----------------------------------------------------------------- */
/* Would a tensor of this type be too large, or one node more too many?  False after reporting.
 */
bool affordable(Expander *x, const Frame *f, Span span, Type type);
bool union_affordable(Expander *x, const Frame *f, Span span, Type a, Type b);
Value eval_unary(Expander *x, Frame *f, const Expr *e);
Value eval_binary(Expander *x, Frame *f, const Expr *e);
/* The node of a value in a dtype (numbers become constants); -1 after reporting. */
NodeId node_of(Expander *x, Frame *f, Span span, Value value, DataType dtype);
/* An element-wise op over values; operands are converted by the rules of the language. */
typedef enum MapTyping { MAP_ARITHMETIC, MAP_FLOAT } MapTyping;
Value eval_map(Expander *x, Frame *f, const Expr *e, Op op, MapTyping typing,
               const Value *values, const Expr *const *operands, int count);
Value eval_where(Expander *x, Frame *f, const Expr *e, const Value *values,
                 const Expr *const *operands);
/* Checks the value of `e` against an annotation whose names are those of `types`; returns it,
 * converted to a float where the type asks for one. */
Value check_type(Expander *x, Frame *types, Frame *place, const TypeExpr *type, Value value,
                 const Expr *e, const char *what);
/* As f32 (f64 stays); numbers become constants.  -1 after reporting. */
NodeId float_node(Expander *x, Frame *f, Span span, Value value);
/* The bound of an int: [0, below); 0 where none is known. */
int64_t bound_of(Value value);
/* Says why `axis` is not in the value of `e`, where that can be told. */
bool explain_missing(Expander *x, Diagnostic *d, const Expr *e, Value value, AxisId axis);

/* ---- expand_index.c ------------------------------------------------------------------ */
Value eval_index(Expander *x, Frame *f, const Expr *e);

/* ---- builtins.c ---------------------------------------------------------------------- */
bool is_builtin(const char *name);
Value eval_builtin(Expander *x, Frame *f, const Expr *e);
int builtin_names(const char **names, int limit);
/* May a value depend on other elements than its own?  (dot, sum, x[…] …) */
bool statements_cross_elements(const Expander *x, const Statement *body);

/* ---- selector.c ---------------------------------------------------------------------- */
bool selector_matches_path(Expander *x, const Selector *selector, DimTable *table,
                           const char *path);
/* Reports a selector (or one of its {a,b}, or an end of its ranges) that matches none of the
 * paths.  what: "parameter". */
bool check_selector(Expander *x, const Selector *selector, DimTable *table,
                    const char *const *paths, int64_t count, const char *what);

/* ---- plan.c -------------------------------------------------------------------------- */
typedef ARRAY(const char *) Paths;
void declare_plan(Expander *x); /* its chain, dims, presets and `set` */
/* A dim of a plan or recipe.  One that a base declared is replaced, with all that was said of
 * it. */
void declare_own(Expander *x, DimTable *table, const Directive *d, const char *owner);
/* After expansion, in this order: which weights are replaced; scopes, kept values, the rest. */
void check_factorizes(Expander *x);
void check_other_directives(Expander *x);
void set_precision(Compilation *c, const char *name); /* f32, tf32 or bf16 */
void settle_precision(Compilation *c, const Request *request); /* after these */
void weight_paths(const Expander *x, Paths *paths);
/* Paths of the parameters that factorize will make (or, values: of the values it names). */
void factorized_paths(Expander *x, bool values, Paths *paths);

/* ---- recipe.c ------------------------------------------------------------------------ */
void declare_recipe(Expander *x); /* chain, dims, presets */
void settle_recipe(Expander *x);  /* values; after all dims have their voices */
void check_recipe(Expander *x);   /* after expansion: every weight has an optimizer */
/* The optimizer group of a parameter that a plan has made; -1 where it has none, and the first
 * time after reporting that. */
int32_t recipe_group_of(Expander *x, const State *state);
/* The settled hyperparameters of a group, in order of the optimizer's formals. */
const Number *recipe_hyperparameters(const Expander *x, int group);
bool recipe_knows(Expander *x, const char *name); /* may -D give it? */
int recipe_names(Expander *x, const char **names, int limit);
void recipe_free(Expander *x);

/* ---- compile.c ----------------------------------------------------------------------- */
/* The plan or recipe asked for by NAME or FILE:NAME; NULL after reporting. */
const Item *requested_item(Expander *x, ItemKind kind, const char *request);
/* The item and what it extends, bases first, each once.  Cycles are reported. */
void extension_chain(Expander *x, const Item *item, Chain *chain);

/* ---- optimizer.c --------------------------------------------------------------------- */
void optimizer_state(Expander *x, Frame *f, const Statement *s);
void optimizer_next(Expander *x, Frame *f, const Statement *s);
/* Is its text well formed (p, g, an lr; p untyped or [I -> O])?  Reports. */
bool check_optimizer(Expander *x, const Item *item);
/* The type of p, or NULL when it runs over anything. */
const TypeExpr *optimizer_matrix(const Item *item);

#endif
