/* frontend/frontend.h: from text to a checked graph.  Index of the folder, by source file.
 *
 *   lexer.l parser.y   text to syntax tree (reentrant, with locations); syntax.h is private to it
 *   tokens.c           between the two: where newlines end statements, brackets, recovery
 *   tree.c             nodes of the tree; which statement may stand where
 *   syntax_error.c     the wording of syntax errors
 *   source.c           loading files, `use`, the built-in library
 *   format.c           `colac fmt`: the canonical layout of a text, comments kept
 *   std.cola           the library, in the language itself (embedded in the program)
 *   compile.c          compile_model: the steps from texts to a module held against its plan
 *   compile_time.c     dims, flags, presets, plan `set`, -D: compile-time values
 *   number.c           their arithmetic: exact, or reported
 *   names.c            names, frames and what is in scope
 *   expand.c           statements; the body of the model and of a block or fn
 *   expand_call.c      calls of blocks and fns
 *   expand_expr.c      expressions
 *   expand_tensor.c    element-wise typing: axes align by name
 *   expand_index.c     x[…]
 *   builtins.c         dot, sum, exp, …
 *   explain.c          the notes of a diagnostic: where an operand and its axes come from
 *   selector.c         paths with *, **, {a,b}, [0..3]
 *   plan.c             plans: directives, `extends`, where each applies; placing a block
 *   recipe.c           recipes: how it is trained
 *   optimizer.c        an optimizer's text over one state
 *   adopt.c            a compilation takes up another module of its model, read from IR text
 */
#ifndef COLAC_FRONTEND_H
#define COLAC_FRONTEND_H

#include "ir/ir.h"

/* ---- syntax tree (lexer.l parser.y) -------------------------------------------------------- */
/* All in one arena, never changed after parsing.  Lists are linked by `next`.  Later passes may
 * recurse over expressions, statements and selectors: none is nested deeper than this. */
enum { MAX_NESTING = 500 };

typedef struct Name { /* an identifier where it stands */
    const char *text;
    Span span;
} Name;

typedef enum ExprKind {
    EXPR_NUMBER,  /* number; `inf` too */
    EXPR_BOOL,    /* number: 0 or 1 */
    EXPR_NAME,    /* name */
    EXPR_UNARY,   /* operator; a */
    EXPR_BINARY,  /* operator; a, b */
    EXPR_IF,      /* if a then b else c */
    EXPR_CALL,    /* name(args; groups…) */
    EXPR_INDEX,   /* a[items] : renames, splits, merges, picks, gathers */
    EXPR_LABEL,   /* name: a   (a component's label; stack's axis) */
    EXPR_LIST,    /* (a, b) inside an index, or `D` / `H,K` / `D -> H,K` in an argument group:
                     args; arrow_at tells where -> stands (-1: none) */
    EXPR_NAMED    /* name = a: a named argument */
} ExprKind;

typedef enum Operator {
    OPERATOR_NONE,
    OPERATOR_NEGATE, OPERATOR_NOT,
    OPERATOR_ADD, OPERATOR_SUBTRACT, OPERATOR_MULTIPLY, OPERATOR_DIVIDE, OPERATOR_MODULO,
    OPERATOR_POWER,
    OPERATOR_LESS, OPERATOR_LESS_EQUAL, OPERATOR_GREATER, OPERATOR_GREATER_EQUAL,
    OPERATOR_EQUAL, OPERATOR_NOT_EQUAL, OPERATOR_AND, OPERATOR_OR
} Operator;

typedef struct Expr Expr;

/* x[S as T], x[H as (J, G)], x[(J, G) as H], y[P = 0], embed[tokens], table[V = tokens] */
typedef struct IndexItem {
    enum { ITEM_AS, ITEM_PICK, ITEM_GATHER } kind;
    Name from[MAX_AXES], to[MAX_AXES]; /* AS: one of the two counts is 1; PICK: from[0] */
    int from_count, to_count;
    bool from_list, to_list;           /* written in parentheses */
    Expr *value;                       /* PICK: the position (or an int tensor); GATHER: the index */
    Span span;
    struct IndexItem *next;
} IndexItem;

struct Expr {
    ExprKind kind;
    Operator operator;
    double number;
    const char *literal;  /* NUMBER: as written */
    Name name;
    Expr *a, *b, *c;
    Expr *args;           /* CALL, LIST: first of a list */
    struct ArgGroup *groups; /* CALL: what follows each `;` */
    IndexItem *items;
    int arrow_at;
    int depth;            /* levels of expressions, this one included: at most MAX_NESTING */
    Span span;            /* the whole expression, its own parentheses included */
    Expr *next;           /* in a list */
};

/* One `; …` group of a call.  `D`, `H, K`, `D -> H,K`, `lr = 1e-3, decay = 0.01`. */
typedef struct ArgGroup {
    Expr *args;
    int arg_count;
    int arrow_at; /* args before index arrow_at stand left of `->`; -1: no arrow */
    Span span;
    struct ArgGroup *next;
} ArgGroup;

/* [B,S,D], [.., D], [D -> H,K], int[B,S] below V next 1 */
typedef struct TypeExpr {
    bool is_int;
    bool open;             /* begins with `..`: any other axes */
    int axis_count;
    Name axes[MAX_AXES];
    int arrow_at;          /* as in ArgGroup */
    Expr *below, *next_token;
    Span span;
} TypeExpr;

typedef enum ParamKind { PARAM_TENSOR, PARAM_GROUP } ParamKind;
/* A formal parameter.  Group 0 is tensors; later groups are axes (lists) and values. */
typedef struct Parameter {
    Name name;
    TypeExpr *type;      /* may be NULL */
    Expr *fallback;      /* `= default`, or NULL */
    int group;           /* 0, 1, 2, … */
    bool after_arrow;    /* stands right of `->` in its group */
    bool group_has_arrow;
    struct Parameter *next;
} Parameter;

typedef enum StatementKind {
    STATEMENT_PARAM,    /* param names: type ~ init */
    STATEMENT_DIM,      /* dim name = value (local or global) */
    STATEMENT_FLAG,     /* flag name = value */
    STATEMENT_BIND,     /* names[0] [: type] = value */
    STATEMENT_FOR,      /* for name in value [.. value2] { body } */
    STATEMENT_IF,       /* if value { body } else { otherwise } — compile time */
    STATEMENT_RETURN,   /* return value */
    STATEMENT_INPUT,    /* input name: type */
    STATEMENT_MINIMIZE, /* minimize value [over value2] */
    STATEMENT_OBSERVE,  /* observe name = value */
    STATEMENT_STATE,    /* state names ~ init   (optimizer) */
    STATEMENT_NEXT      /* next name = value    (optimizer) */
} StatementKind;

typedef struct Statement {
    StatementKind kind;
    Name *names;
    int name_count;
    TypeExpr *type;
    Expr *value, *value2;   /* init: `~ normal(0.02)` is value, an EXPR_CALL or EXPR_NAME */
    struct Statement *body, *otherwise;
    int depth;              /* levels of statements, this one included: at most MAX_NESTING */
    Span span;
    struct Statement *next;
} Statement;

/* path selectors: layer[*].attn.{wq,wk}, **.low, layer[0..3], layer[0, 2, 5..7] */
typedef struct IndexRange {
    Expr *low, *high;       /* high NULL: one index */
    struct IndexRange *next;
} IndexRange;
/* One bracket of a part: `[*]` or ranges. */
typedef struct PartIndex {
    bool any;
    IndexRange *ranges;
    struct PartIndex *next; /* of the loop inside: step[0][1] */
} PartIndex;
typedef struct SelectorPart {
    enum { PART_NAME, PART_ANY, PART_ANY_DEPTH, PART_CHOICE } kind; /* name, *, **, {a,b} */
    Name name;
    struct Selector *choices;   /* CHOICE: each a (sub)path */
    PartIndex *indices;         /* NAME, CHOICE; NULL: none */
    struct SelectorPart *next;
} SelectorPart;
typedef struct Selector {
    SelectorPart *parts;
    Span span;
    struct Selector *next;
} Selector;

/* name = value, in a preset */
typedef struct Setting {
    Name name;
    Expr *value;
    struct Setting *next;
} Setting;
typedef struct Preset {
    Name name;
    Setting *settings;
    Span span;
    struct Preset *next;
} Preset;

typedef enum DirectiveKind {
    DIRECTIVE_DIM, DIRECTIVE_FLAG, DIRECTIVE_PRESET, DIRECTIVE_SET, /* plan and recipe */
    DIRECTIVE_FACTORIZE,  /* selectors with call */
    DIRECTIVE_RECOMPUTE,  /* selectors keep keep */
    DIRECTIVE_MEMORY,     /* value: bytes (the unit is folded in) */
    DIRECTIVE_PRECISION,  /* name */
    DIRECTIVE_OPTIMIZER,  /* calls: call on selectors; call on selectors … */
    DIRECTIVE_WARMUP,     /* value: updates */
    DIRECTIVE_COSINE,     /* value: final share of the rate (cosine to 0.1) */
    DIRECTIVE_LINEAR,     /* value: likewise */
    DIRECTIVE_CLIP, DIRECTIVE_BATCH, DIRECTIVE_STEPS, DIRECTIVE_VALIDATE /* value */
} DirectiveKind;
typedef struct OptimizerUse {
    Expr *call;             /* adamw(lr = 6e-3) */
    Selector *on;           /* NULL: everything else */
    struct OptimizerUse *next;
} OptimizerUse;
typedef struct Directive {
    DirectiveKind kind;
    Name name;              /* DIM, FLAG, SET, PRECISION */
    Expr *value;
    Preset *preset;
    Selector *selectors, *keep;
    Expr *call;             /* FACTORIZE */
    OptimizerUse *optimizers;
    Span span;
    struct Directive *next;
} Directive;

typedef enum ItemKind {
    ITEM_USE, ITEM_STATEMENT, ITEM_PRESET, ITEM_BLOCK, ITEM_FN, ITEM_OPTIMIZER, ITEM_MODEL,
    ITEM_PLAN, ITEM_RECIPE
} ItemKind;
typedef struct Item {
    ItemKind kind;
    Name name;               /* USE: the path */
    Statement *statement;    /* STATEMENT: a global dim or flag */
    Preset *preset;
    Parameter *parameters;   /* BLOCK, FN, OPTIMIZER */
    TypeExpr *result;
    Statement *body;         /* BLOCK, FN, OPTIMIZER, MODEL */
    Name *extends;           /* PLAN, RECIPE */
    int extends_count;
    Directive *directives;
    Span span;
    struct Item *next;
} Item;

/* Parses one text.  Syntax errors are reported (the parser recovers at statement and item
 * level, so that several show in one run) and the items that parsed are returned all the
 * same. */
Item *parse_source(const Source *source, Arena *arena, Diagnostics *diagnostics);
/* Parses `NAME = VALUE`, as it stands after `dim`. */
Item *parse_values(const Source *source, Arena *arena, Diagnostics *diagnostics);

/* ---- source.c ------------------------------------------------------------------------------ */
/* A main file and all it uses, in order of first use, each once.  `use "x"` looks beside the
 * file that says it, then in the built-in library (std.cola).  NULL after reporting when the
 * main file cannot be read or is above 100 MB.  After syntax errors, and when a used file
 * cannot be read, the items that parsed are returned: ask diagnostics_errors.  Diagnostics
 * point into the sources: print them before texts_free. */
typedef struct Texts {
    Arena *arena;
    Item *items;   /* of all files, used ones first */
    Source *sources;
    const char *main_path;
    struct LoadedText *loaded; /* source.c's own */
} Texts;
Texts *texts_load(const char *path, Diagnostics *diagnostics);
/* Adds another file (`--plan FILE:NAME`, `--recipe FILE:NAME`) to the same set. */
bool texts_add(Texts *texts, const char *path, Diagnostics *diagnostics);
/* The items of a text of the built-in library, which are not added to the set. */
const Item *texts_library(Texts *texts, const char *name, Diagnostics *diagnostics);
void texts_free(Texts *texts);

/* ---- format.c ------------------------------------------------------------------------------ */
/* The canonical layout of a text: indentation by 4, one space around binary operators, aligned
 * continuation, comments and single blank lines kept.  Formatting is idempotent and changes no
 * token.  False after reporting when the text does not parse. */
bool format_source(const Source *source, Text *out, Diagnostics *diagnostics);

/* ---- compile.c plan.c optimizer.c selector.c ----------------------------------------------- */
typedef struct Define { /* -D name=value */
    const char *name, *value;
} Define;

/* What the command line asks for. */
typedef struct Request {
    const char *path;          /* MODEL */
    const char *preset;        /* or NULL */
    const char *plan;          /* NAME or FILE:NAME, or NULL: nothing is rewritten */
    const char *recipe;        /* NAME or FILE:NAME, or NULL: AdamW at a constant rate, batch = B */
    const char *precision;     /* f32, tf32, bf16; NULL: what the plan says, else f32.  Wins over the plan */
    bool no_bf16, no_tf32;     /* the processor lacks it: f32 instead, with a warning */
    const Define *defines;
    int define_count;
} Request;

/* One factorize directive as it applies. */
typedef struct Factorize {
    const struct Directive *directive;
    StateId *weights;          /* matched, in module order */
    int weight_count;
} Factorize;

typedef enum ScheduleKind { RATE_CONSTANT, RATE_COSINE, RATE_LINEAR } ScheduleKind;
/* A recipe with every value settled. */
typedef struct Recipe {
    const char *name;
    bool is_named;             /* a text says it; else all of it is the default */
    int64_t steps, warmup, batch /* sequences an update */, validate_every;
    double clip;               /* 0: none */
    ScheduleKind schedule;
    double final_share;        /* of the rate, at the last step */
    int group_count;           /* optimizers; each weight belongs to one */
    struct RecipeGroup {
        const Item *optimizer;
        const Expr *call;
        double rate;           /* the value of its `lr` */
    } *groups;
} Recipe;

/* A model expanded and checked against a request.  The module has the weights, metrics
 * (`loss_sum`, `weight_sum`, `observe.NAME` as role metric, f32, no axes) and one function,
 * `micro(step, seed, sample0)` (and `training` where the texts name it), whose writes are
 * `loss_sum += E`, `weight_sum += W` and the observed sums.  Later passes complete it. */
typedef struct Compilation {
    Texts *texts;
    Module *module;
    Diagnostics *diagnostics;
    const Item *model, *plan;  /* plan: NULL without one */
    Recipe recipe;
    Factorize *factorizes;     /* in plan order; a later one wins where two match a weight */
    int factorize_count;
    const Directive **recomputes; /* in plan order; scopes and values by path, when the pass runs */
    int recompute_count;
    const Directive *memory;      /* the bound in force, or NULL */
    int64_t memory_bytes;         /* its value; 0: none */
    DataType precision;           /* of products: f32, or bf16 with f32 accumulation */
    bool tf32;                    /* f32 products may round their operands to TF32 (10 bits) */
    const Directive *precision_directive; /* NULL: the default, or the command line */
    int64_t sequences, positions; /* sizes of the first input's first two axes (B, S) */
    struct Expander *expander; /* compile-time environment, kept for the functions below */
} Compilation;

/* NULL after reporting to `diagnostics`.  All shape errors of a text are reported in one
 * run. */
Compilation *compile_model(const Request *request, Diagnostics *diagnostics);
/* May `-D name=…` be given for it: is it a dim or flag of its model or plan, or a value of its
 * recipe? */
bool compilation_knows(const Compilation *compilation, const char *name);
void compilation_free(Compilation *compilation);

/* For the factorize pass: builds the directive's block in `function` in the place of
 * dot(x, weight; weight's inputs), in the scope of `weight`'s path, and returns its value,
 * which has the product's type.  Adds the block's parameters as states (low_rank set) and names
 * its values.  -1 after reporting (in compilation->diagnostics). */
NodeId expand_factorized(Compilation *compilation, Function *function, const Factorize *factorize,
                         StateId weight, NodeId x);

/* For the update pass: expands an optimizer's text over one state (flat or not).  `g` is the
 * gradient it sees (scaled and clipped, of p's type), `rate` the f64 runtime scalar node.
 * Adds moments (role moment, numbered in order of declaration), writes `next …`.  `p: [I -> O]`
 * optimizers get the weight's inputs and outputs merged to two axes.  False after reporting. */
bool expand_optimizer(Compilation *compilation, Function *function, int recipe_group,
                      StateId weight, NodeId gradient, NodeId rate, NodeId step);
/* Does the optimizer of this group run element by element (so over flat states)? */
bool optimizer_is_elementwise(const Compilation *compilation, int recipe_group);

/* For passes on IR text: from now on the compilation speaks of `module`, which it takes over,
 * in the place of its own.  Its recipe is held against it anew, and of its plan what is yet to
 * be carried out: `factorize`, and the other directives.  False after reporting. */
bool compilation_adopt(Compilation *compilation, Module *module, bool factorizes, bool others);

/* The plan in force and those that it extends, bases first: whose directives apply, in this
 * order.  Their number. */
int64_t compilation_plans(const Compilation *compilation, const Item *const **plans);

/* Does the selector match this path?  Indices are compile-time values, settled before. */
bool selector_matches(const Compilation *compilation, const Selector *selector, const char *path);
/* Does one of the directive's selectors match the path of a block instance? */
bool recompute_matches(const Compilation *compilation, const Directive *recompute, const char *path);
/* Does one of its `keep` patterns match a value's path, read within a matched instance? */
bool recompute_keeps(const Compilation *compilation, const Directive *recompute, const char *path);

#endif
