/* passes/passes.h: from the expanded module to a placed and scheduled one.  Index of the
 * folder.
 *
 *   pipeline.c   the list of passes, with a reason after each; runs, verifies, dumps, times
 *   factorize.c  a weight with one use, in a dot -> the plan's block in its place
 *   simplify.c   folding and dead code that change no bit
 *   autodiff.c   reverse mode; `gradient += …`
 *   tables.c     static transcendental values become states; the function `init` fills them
 *   consume.c    gradients that need no slab: optimizers in `micro`, where the recipe allows it
 *   update.c     slab order; the function `update`: norm, clip, optimizers, zeroed gradients;
 *                the function `eval`: the loss alone
 *   clusters.c   interiors: what a chunk never stores (scores of attention, logits)
 *   precision.c  final dtypes: products in bf16, and the bf16 copies of weights
 *   recompute.c  what the backward part reads: a kept value or a clone
 *   values.c     what values are called, in the names of the text; tables of them
 *   budget.c     `memory N`: the least added FLOPs whose planned peak fits
 *   candidates.c patterns of block instances, and points: sets of values that they may keep
 *   mincut.c     the cheapest set that is closed under what its members require
 *   layout.c     memory order of every value and state; product shapes; copies where needed
 *   views.c      how a value is read: through renames, splits, merges, picks to stored memory
 *   fuse.c       groups: which nodes run as one kernel
 *   groups.c     what a group reads and stores, and what must run before it
 *   direct.c     which groups store straight into a state
 *   schedule.c   order of execution that lowers the peak
 *   lifetimes.c  from when to when a value lives; in place where legal; bytes over time
 *   bounds.c     the bytes that no order of execution can do without
 *   packing.c    offsets for intervals of time with a size
 *   memory.c     the pass: a place in one arena for every value; the memory table
 *   gaps.c       what is free of that arena while a group runs
 *   counts.c     dots, kernels, FLOPs of a finished module
 *
 * A pass is one file and one function, opens with what it needs, gives and reads from the plan
 * and one example, and rewrites the module in place.
 */
#ifndef COLAC_PASSES_H
#define COLAC_PASSES_H

#include "frontend/frontend.h"
#include "ir/ir.h"

/* ---- pipeline.c ---------------------------------------------------------------------------- */
struct MemoryTable;
typedef struct PassContext {
    Module *module;
    Compilation *compilation;  /* NULL for passes run on IR text that need none */
    Diagnostics *diagnostics;
    bool no_fuse, no_reuse;    /* --no-fuse: one group a node; --no-reuse: no memory is shared */
    bool for_training;         /* build gradients and update (else `eval` alone) */
    bool keep_gradients;       /* in their slab, whatever the recipe allows: somebody reads them */
    /* What will be held for a placed module, all things counted; NULL: memory_table. */
    struct MemoryTable (*measure)(const Module *module, void *data);
    void *measure_data;
    struct BudgetReport *budget; /* filled in where a plan has a bound; NULL: not wanted */
} PassContext;

typedef struct Pass {
    const char *name;
    bool (*run)(PassContext *context); /* false after reporting */
    Stage gives;
    bool needs_compilation;
    const char *reason;                /* why it stands where it stands */
} Pass;
extern const Pass pass_list[];
extern const int pass_count;

typedef struct PassReport { /* one a pass that ran */
    const char *name;
    double seconds;
    int64_t nodes;
} PassReport;
/* Runs the list up to and including `last` (NULL: all).  Verifies after every pass in debug
 * builds and when COLAC_VERIFY is set; a violation prints the module to a file and is an
 * internal error that names the pass.  Appends to reports when not NULL. */
typedef struct PassReports {
    PassReport *data;
    int64_t count, capacity;
} PassReports;
bool run_passes(PassContext *context, const char *last, PassReports *reports);
/* Runs the named passes, comma-separated, in the order given (`colac opt`). */
bool run_named_passes(PassContext *context, const char *names, Stage *stage);

/* What a pass says of a module that it cannot take: `NAME:1:1: error: pass …: …`. */
Diagnostic *refuse_module(const PassContext *context, const char *pass, const char *format, ...)
    PRINTF_LIKE(3, 4);

bool pass_simplify(PassContext *context);
bool pass_factorize(PassContext *context);
bool pass_autodiff(PassContext *context);
bool pass_tables(PassContext *context);
bool pass_consume(PassContext *context);
bool pass_update(PassContext *context);
bool pass_precision(PassContext *context);
bool pass_recompute(PassContext *context);
bool pass_layout(PassContext *context);
bool pass_fuse(PassContext *context);
bool pass_schedule(PassContext *context);
bool pass_memory(PassContext *context);

/* ---- autodiff.c ----------------------------------------------------------------------------
 * Adds to `micro` the adjoints of every weight with seed 1 on E (the value of the write
 * `loss_sum +=`), as writes `gradient W += contribution`, one a contribution, in topological
 * order of the contributions; adds a gradient state for every weight.  The gradient is of ΣE:
 * `update` divides by ΣW.  Adjoints have scope and ordinal of their primal, and name NULL. */

/* ---- tables.c ------------------------------------------------------------------------------
 * init(): values of `micro` that depend on constants and indices alone and hold a
 * transcendental op over some axis become tables (role table, f32; evaluated once in double by
 * the interpreter, rounded once), and `micro` reads the state instead.  Absent when there is
 * none.  A value larger than the transcendental op in it (an expand of a cosine) is computed
 * from the table. */

/* ---- consume.c -----------------------------------------------------------------------------
 * Where a recipe that is named has no clip, and one micro-batch makes an update, gradients of
 * one contribution have no state if their optimizer is element-wise.  `micro` then ends in
 * `weight = …` and the moments of each such weight, has the runtime scalars that optimizers
 * read, and writes GRADIENT_SQUARES, their Σ g² before any scale.  A weight's values are the
 * same bit for bit; `grad_norm` is summed in another order. */
#define GRADIENT_SQUARES "grad_squares"
bool gradients_may_be_consumed(const PassContext *context); /* says the recipe */

/* ---- update.c ------------------------------------------------------------------------------
 * Every state gets its offset in the slab of its role: weights by optimizer group, then as
 * declared, at multiples of 16 elements; a gradient and the moments have their weight's offset.
 * update(step, lr, lr_1, …, micro_batches): step counts from 1; lr_g is the rate of optimizer
 * group g (`lr`: of group 0).
 *   scale = 1 / weight_sum; norm = sqrt(Σ over groups of Σ g²) * scale (metric `grad_norm`);
 *   clip: factor = min(1, c / (norm + 1e-6)); g' = g * (scale * factor); optimizer; gradient = 0.
 *   A group whose optimizer is element-wise and whose gradients all have their place is one flat window `slabG` over axis slabG, of weights,
 *   gradients and moments; each weight has its own moment states too, the window's members.  g² is
 *   summed in rows (a view of the window), so that the f32 sum of a large slab stays accurate.
 *   Metrics: `loss` = loss_sum / weight_sum (0 where weight_sum is 0), `grad_norm`, and for every
 *   sum `observe.X` its mean over micro-batches, `observed.X`; then the sums are set to 0.
 * eval(step, seed, sample0, …): the forward part of micro, `loss_sum +=`, `weight_sum +=`.
 * Without for_training `micro` itself becomes `eval`, and there is no update. */
StateId module_metric(Module *module, const char *path); /* a new one, f32 without axes */
/* The runtime scalar that is the rate of an optimizer group: lr, lr_1, … */
const char *recipe_rate_name(Arena *arena, int group);
/* The sum of a value's squares, over `first` axes and then over the rest: one long f32 sum
 * would lose the small terms. */
NodeId build_squares_sum(Builder *b, NodeId value, const AxisId *first, int count);

/* ---- clusters.c ----------------------------------------------------------------------------
 * A cluster is a maximal connected set of values of `micro`'s forward part that depend on the
 * samples and carry a pair of axes (a, b), where the pair is made by dots and leaves through
 * dots and reductions only (not through a merge of both into one), and
 *   - no value of it goes into a dot with a weight that sums a or b: what a weight takes in is a
 *     layer's value, which users name and keep; and
 *   - it is made by a dot of two values that both depend on the samples (scores: T with S), or it
 *     leaves through reductions alone (logits: V with positions).
 * By node: is it inside of one?  An adjoint is where its primal is.  Memory in `arena`. */
bool *cluster_interiors(const Function *function, Arena *arena);
/* By node: does it depend on an input? */
bool *sampled_part(const Function *function, Arena *arena);

/* ---- precision.c ---------------------------------------------------------------------------
 * With bf16: the operands of dots are bf16, sums are f32, results bf16 where they are no
 * gradient of a weight and no interior; reductions are f32; weights, moments and gradients are
 * f32, and each weight that a dot or gather reads has a bf16 copy (role copy, its weight's
 * layout and offset), which is written in the pass that writes the weight. */

/* ---- recompute.c ---------------------------------------------------------------------------
 * A forward value of `micro` is *kept* when the backward part reads it as it is; else it reads
 * a clone (clone 1, `original` set), made of kept values, states, inputs and constants, of
 * which there is one, placed before its first use.  Values belong to the block instance that
 * made them; what an instance returns (`out`) belongs to its caller.  Nothing outside a
 * recomputed instance is cloned.  A clone has its original's layout, and so its bits. */
typedef struct KeepChoice {
    int64_t count; /* nodes of `micro` */
    bool *kept;    /* by node; of forward nodes alone is it asked */
} KeepChoice;
/* What the plan's recompute directives say.  All is kept where there are none. */
KeepChoice recompute_choice(const PassContext *context, const Function *micro, Arena *arena);
/* Makes the clones.  Views above a kept value are kept too, at no cost. */
void recompute_rewrite(Module *module, const KeepChoice *choice);
/* By node: does a metric need it?  What is not forward is the backward part.  From
 * checked_alloc. */
bool *forward_part(const Function *function);
/* By node: the block instance that a value belongs to. */
ScopeId *value_owners(const Function *function, Arena *arena);
/* FLOPs a step of the published method: every product in a recomputed instance that is not kept
 * by name, used or not.  0 without recompute. */
double published_recompute_flops(const PassContext *context, const Function *micro);

/* ---- candidates.c -------------------------------------------------------------------------- */
/* A set of values that a block instance keeps of those that its backward part needs, directly
 * or to recompute others; flops: of the clones that are then made, a micro-batch. */
typedef struct KeepPoint {
    double flops;
    int64_t bytes;
    bool *kept; /* by node of the pattern */
} KeepPoint;
/* Block instances of one structure.  Point 0 keeps all. */
typedef struct BlockPattern {
    int64_t node_count, instance_count;
    NodeId **nodes; /* by instance, in forward order: those needed by its backward part, ascending */
    ScopeId *scopes;
    int64_t candidate_count; /* nodes that can be kept */
    int64_t point_count;     /* point 0 keeps all; then flops ascend and, unless all subsets are
                                points, bytes descend */
    KeepPoint *points;
} BlockPattern;
typedef struct BlockPatterns {
    BlockPattern *data;
    int64_t count;
    bool all_subsets;
    int64_t assignments; /* of points to instances; -1: too many */
} BlockPatterns;
/* Of the outermost block instances of `micro`; an instance around a loop's instances is passed
 * through to those, as the model is.  Values that a recompute directive speaks of stay as
 * `fixed` says.  All subsets are points where these are at most max_assignments in all; else
 * the convex hull of (bytes, FLOPs) over all subsets, by cuts, and, where instances are few,
 * some between its corners. */
BlockPatterns find_block_patterns(const PassContext *context, const Function *micro,
                                  const KeepChoice *fixed, int64_t max_assignments, Arena *arena);

/* ---- mincut.c ------------------------------------------------------------------------------
 * Which nodes to choose, so that costs less gains are least, when a chosen node requires others
 * to be chosen too.  Start from {0}. */
#define CUT_ENDLESS (INT64_MAX / 4) /* a gain: the node is always chosen */
typedef struct CutEdge {
    int32_t to, next;
    int64_t capacity;
} CutEdge;
typedef struct CutNetwork {
    ARRAY(CutEdge) edges;
    ARRAY(int32_t) first; /* by node */
} CutNetwork;
void closure_clear(CutNetwork *network, int64_t nodes); /* for a new question about so many */
void closure_cost(CutNetwork *network, int64_t node, int64_t cost);
void closure_gain(CutNetwork *network, int64_t node, int64_t gain);
void closure_requires(CutNetwork *network, int64_t node, int64_t other);
void closure_solve(CutNetwork *network, bool *chosen); /* the smallest of the best sets */
void closure_free(CutNetwork *network);

/* ---- values.c ------------------------------------------------------------------------------ */
/* layer[3].attn.wq: the instance 3 of loop `layer`, and attn.wq within it.  A path with no
 * index is all `rest`, with loop "" and index -1. */
typedef struct PathParts {
    const char *loop;
    int64_t index;
    const char *rest; /* further indices as [*] */
} PathParts;
PathParts split_path(const char *path, Arena *arena);
typedef ARRAY(int64_t) IndexList;
const char *loop_text(const char *loop, IndexList *indices, Arena *arena); /* layer[0..6, 9] */

/* What the text calls the values of a function.  Memory in `arena`. */
typedef struct ValueNames ValueNames;
ValueNames *value_names(const Function *function, Arena *arena);
typedef struct ValueRow { /* one value of a block, in all its instances */
    const char *section;  /* layer[0..7]; "": outside of loops */
    const char *name;     /* attn.wq.low; without a name: attn_norm: div */
    bool named;
    Span span;
    int64_t values, bytes; /* their number; bytes and FLOPs in sum */
    double flops;
} ValueRow;
/* by_line: values without a name are one row for a line of the text, else one for each op. */
typedef struct ValueTable ValueTable;
ValueTable *value_table_new(const ValueNames *names, bool by_line);
void value_table_add(ValueTable *table, NodeId id, int64_t bytes, double flops);
ValueRow *value_table_rows(ValueTable *table, int64_t *count); /* once; the table's own */
ValueRow *value_table_largest(ValueTable *table, int64_t *count); /* the same, most bytes first */
/* The values of a scheduled function that live while group `slot` runs. */
ValueTable *live_values(const Function *function, int64_t slot, Arena *arena);
void value_table_free(ValueTable *table);
const char *value_row_path(const ValueRow *row, Arena *arena); /* layer[0..7].attn.wq.low */

/* ---- budget.c ------------------------------------------------------------------------------
 * `memory N`: the least added FLOPs that the search knows, whose really planned peak (context's
 * measure) is at most N bytes.  More memory never costs more.  Recompute directives beside it
 * are obeyed as they are: the solver decides for other values.  False after reporting the least
 * planned peak and the largest values that are live there. */
bool budget_choose(PassContext *context, KeepChoice *choice, Arena *arena);
typedef struct BudgetReport {
    int64_t bound, peak, minimum;  /* bytes; minimum: the ladder's least peak, -1 where not planned */
    double added_flops;            /* of the clones, a micro-batch */
    int64_t rungs, planned;        /* assignments on the ladder; of these, planned in full */
    int64_t candidates, points;    /* of all block patterns */
    bool exhaustive;               /* the ladder holds all assignments of all sets */
    bool first;                    /* no cheaper rung of the ladder fits */
    double seconds;
} BudgetReport;

/* ---- layout.c ------------------------------------------------------------------------------
 * Every node gets an order, views and leaves too (the order in which they run through memory).
 *   inputs        as declared
 *   states        outputs first, then inputs, each as declared, but the axis along which a gather
 *                 picks rows before all; gradients, moments like the weight
 *   dot           batch axes, the own axes of the operand that has the samples (else of the first),
 *                 those of the other, in their operand's order; own axes that lie behind the batch
 *                 axes come first (scores [B,J,G,S,T]).  What the first consumer, through maps and
 *                 views, sums over moves last, in that consumer's order, when it is several axes of
 *                 a dot (they become one K) or a whole side of a reduction
 *   maps          like the first operand that has all axes; expands follow their use
 *   stack         like its first part, the new axis where the merge above it wants it
 *   adjoints      like their primal
 *   written       like the state, through renames, splits and merges
 * A product needs a unit stride in each operand; where none is had by swapping operands, a
 * `copy` node is put in its way (counted in `check`).  After this pass also holds:
 *   - the operands of a dot and the table of a gather are views of values that can be stored
 *     (maps, dots, reductions, gathers, scatters, stacks), states or inputs;
 *   - a dot with a bf16 result is one product: sums of several are f32, and a cast rounds them;
 *   - a write's value is a chain of renames, splits and merges (often none) over such a node, its
 *     *source*, whose dense memory is exactly the state's; write_source gives it;
 *   - a state with a plain write has no other write; a state with `+=` writes is not read. */
NodeId write_source(const Function *function, NodeId value);

/* A dot as the product library runs it: for every batch index, and every accumulate index in
 * order, C[m,n] (+)= Σ_k A[m,k] B[k,n].  Strides in elements. */
typedef struct ProductLoop {
    int64_t extent, stride_a, stride_b, stride_c;
} ProductLoop;
typedef struct Product {
    int64_t m, n, k;
    int64_t a_m, a_k, b_k, b_n, c_m, c_n; /* strides; each operand has one that is 1 (or extent 1) */
    int batch_count, accumulate_count;
    ProductLoop batch[MAX_AXES], accumulate[MAX_AXES]; /* accumulate: stride_c is 0 */
    bool swapped;                         /* A is the node's second input */
    bool add;                             /* C += (beta 1) */
    bool bf16_operands, bf16_result;      /* else f32; sums are f32 in any case */
    bool tf32;                            /* f32 operands may be rounded to TF32 */
} Product;

/* ---- views.c ------------------------------------------------------------------------------- */
/* How a value is found in memory: element (i…) of `node` is at base + Σ i_axis * stride, in
 * elements, of the memory of `root` (a stored node, an input or a state read). */
typedef struct View {
    NodeId root;
    int64_t base;
    int count;
    AxisId axes[MAX_AXES]; /* of the viewed node; an axis absent here is broadcast */
    int64_t strides[MAX_AXES];
} View;
/* False when the value has no such form (it is computed inside a group, or is a merge whose
 * parts are not neighbours in memory). */
bool view_of(const Function *function, NodeId node, View *view);
/* One step of it: turns the view of a rename's, split's, merge's, pick's or expand's input into
 * that of the node.  False where there is none. */
bool view_through(const Function *function, NodeId node, View *view);
bool node_is_view(const Node *node);       /* index arithmetic: the four views and expand */
bool node_can_be_stored(const Node *node); /* neither leaf nor view nor host scalar; copies are */
int64_t view_stride(const View *view, AxisId axis); /* 0 where absent */
/* The product shape of a dot from the views of its operands and the given view of its result.
 * False when an operand has no unit stride, in which case *blocking is 0, 1 or 2 (the
 * result). */
bool product_of(const Function *function, NodeId dot, const View *a, const View *b,
                const View *result, Product *product, int *blocking);
/* The view of a node's own memory in its order. */
View own_view(const Function *function, NodeId node);
/* The view of a state's memory (its order; flat: one axis). */
View state_view(const Module *module, StateId state);

/* ---- fuse.c --------------------------------------------------------------------------------
 * A group is what becomes one kernel.  Fusion decides nothing about values: results are equal
 * bit for bit with --no-fuse.  A node is one of
 *   leaf         const, scalar, input, state, index, random: read or made in place; group -1
 *   view         rename, split, merge, pick, and expand: index arithmetic; group -1
 *   host scalar  on_host: f64 ones are kernel arguments, others are computed from those in place;
 *                a copy of one (a constant written to a state) is computed like other copies
 *   computed     group >= 0; `stored`: has memory of its own in the arena
 *   recomputed   a map with group -1, never stored: every group that reads it computes it again
 * What a group does: it computes its *stores*, which are its members that are `stored` and the
 * sources (write_source) of its direct writes, once for every index.  All else is evaluated on
 * demand, at an index environment that gives each axis of a node as an affine expression of
 * loop indices; so a member that is neither a store nor a reduction needs no attention of its
 * own.  Evaluating a node N for group g:
 *   - N is a view: substitute in the environment.  A merge occurs only above memory (view_of holds);
 *   - N has memory and N.group != g (or N is a state or an input): load through view_of;
 *   - N.group == g or N is recomputed: from its inputs;
 *   - a gather loads its table through view_of (the table is never computed in g) with the value
 *     of its index in the place of axis from[0];
 *   - a scatter_add that sums no axis (from_count 0) is a map: index(to) == index ? value : 0.
 * Memory is only loaded that another group wrote (views of a stack are never read in the group
 * that stores it).  In a loop body all loads come before the stores: a flat group may read, at
 * the very index it writes, a state it writes or a value whose memory it takes over; a row
 * group may take over memory too (may_take_place_of).
 * What each kind holds (axes as sets; rows and inner are in loop order, slowest first):
 *   flat     stores with axes `rows`; or stacks, whose *parts* have the axes `rows`: each part is
 *            stored at its position of the stack's memory.  No reductions.
 *   row      reductions with `from` = inner and result axes = rows; one may feed another; stores
 *            with axes rows, or rows + inner (stacks: their parts).  Few rows with a long inner (a
 *            norm over a slab: no rows at all) are this kind too.  At least one reduction.
 *   column   reductions with `from` = inner and result axes = rows, none feeding another; stores
 *            with axes rows.
 *   scatter  one scatter_add with summed axes: rows = the result's axes, inner = the summed axes,
 *            in the index's order; the one store is the scatter_add.
 *   product  one dot; reads and stores through views alone (see product_of).
 * Row or column is decided by the order of the reduction's input alone, never by what is fused:
 * row when the reduced axes are its fastest (or all of them, or of extent 1).
 * Maps are recomputed where that is cheaper than storing (casts, comparisons, masks: always);
 * never one with a reduction, dot, gather or scatter in its recomputed part.  A write is
 * `direct` when the group of its source stores straight into the state's memory, adding when
 * `add` (a product: beta 1).  Its source may be stored too, when others read it (not of
 * products).  All `add` writes are direct; no group has two writes to one state.  A write that
 * is not direct has a stored source, and is a copy at the end of the program, in the order of
 * writes.  RMSNorm forward, softmax, SwiGLU, cross-entropy, AdamW over a slab: one group each.
 * With no_fuse every store is a group of its own, and every map is stored. */

/* ---- groups.c ------------------------------------------------------------------------------ */
/* Lists by group: those of group g are at [start[g], start[g + 1]), ascending, each once. */
typedef struct GroupGraph {
    int64_t *member_start, *read_start, *store_start, *before_start;
    NodeId *members;
    NodeId *reads;   /* memory it loads: stored values of other groups, states, inputs */
    NodeId *stores;  /* its members that are stored */
    int32_t *before; /* groups that must run earlier: they compute what it reads, or read the state
                        that it overwrites, or add to the same state in an earlier write */
    uint8_t *marks;  /* by node; zero between calls */
    /* What may_take_place_of has found out; each is looked for once. */
    uint8_t *walked;     /* by group: are its reads looked at? */
    uint8_t *elsewhere;  /* by read: is it read elsewhere than at the loops' index? */
    uint8_t *last_sweep; /* by node: 1 where it follows all its group's reductions, 2 where not */
} GroupGraph;
/* Uses placements and writes as fuse makes them.  Memory in `arena`. */
GroupGraph group_graph(const Function *function, Arena *arena);
/* Does a flat group read `root` (a stored value or state) only at the very place, in root's
 * memory, that it computes: element by element along its rows?  Then it may overwrite it. */
bool group_reads_in_place(const Function *function, const GroupGraph *graph, int group,
                          NodeId root);
/* May `value` be computed into the place of `operand`, a stored value that nobody reads after
 * value's group?  So a flat group may do, and a row group in its last sweep, where both lie in
 * memory as its loops run, rows and then inner axes, and the operand is read at the loops'
 * index alone. */
bool may_take_place_of(const Function *function, const GroupGraph *graph, NodeId value,
                       NodeId operand);
/* Do two states share memory: are they one, or one a window over the other? */
bool states_overlap(const Module *module, StateId a, StateId b);

/* ---- direct.c ------------------------------------------------------------------------------ */
/* Sets `direct` of every write, and `stored` of the values of those that are not. */
void choose_direct_writes(Function *function, Arena *scratch);

/* ---- lifetimes.c --------------------------------------------------------------------------- */
enum { SLOT_ALIGNMENT = 64 };
/* One place in the arena and all values that take it in turn. */
typedef struct ArenaSlot {
    int64_t bytes, offset;
    int32_t begin, end; /* first and last group during which it is in use */
} ArenaSlot;
typedef ARRAY(ArenaSlot) SlotList;
typedef struct Lifetimes {
    const Function *function;
    GroupGraph graph;
    int32_t *last_read; /* by node: the group; groups.count when it lives to the end; -1 */
    int32_t *slot_of;   /* by node; -1 */
    SlotList slots;     /* ascending by begin; to be freed */
} Lifetimes;
/* Of a scheduled function.  reuse: results take the place of operands that die.  In `arena`. */
Lifetimes find_lifetimes(const Function *function, bool reuse, Arena *arena);
/* Bytes of the place that a value takes: whole alignments. */
int64_t slot_bytes(const Function *function, NodeId value);
/* By group, and one more for the copies at the end: bytes of the slots in use. */
int64_t *slot_timeline(const Lifetimes *lifetimes, Arena *arena);
/* A stored value's life in a scheduled function: from the group that computes it to the last
 * that reads it (the number of groups: it is copied to a state when all have run); its bytes;
 * where (-1:  not placed). */
typedef struct ValueLife {
    NodeId node;
    int32_t begin, end; /* groups */
    int64_t bytes, offset;
    bool kept;          /* counted in kept_activations */
} ValueLife;
/* All of a function, ascending by node; their number.  Memory in `arena`. */
int64_t value_lives(const Function *function, Arena *arena, ValueLife **lives);
/* Bytes that are live while group g runs, by group, and one more for the copies at the end.
 * Values that take one place in turn are counted once; every value is as large as its aligned
 * place. */
int64_t *live_bytes(const Function *function, Arena *arena);

/* ---- bounds.c ------------------------------------------------------------------------------ */
/* Bytes of live values that no order of the function's groups can do without, and no arena. */
int64_t order_bound(const Function *function);

/* ---- packing.c ----------------------------------------------------------------------------- */
/* Gives every slot an offset; the size of the arena that holds them. */
int64_t pack_slots(SlotList *slots, int64_t groups, int64_t lower_bound);

/* ---- memory.c ------------------------------------------------------------------------------ */
/* The memory of the states of a role, or of one moment: what they take of its places, elements
 * [begin, begin + elements). */
typedef struct Slab {
    Role role;
    int number; /* of the moment */
    int64_t begin, elements;
} Slab;
typedef struct SlabList {
    int count, moment_count;
    Slab *data; /* by role and number: slab_index */
} SlabList;
/* In `arena`.  with_windows: also the padding of the windows that optimizers run over. */
SlabList module_slabs(const Module *module, bool with_windows, Arena *arena);
int slab_index(const SlabList *list, Role role, int number);
int64_t slab_bytes(const Slab *slab); /* INT64_MAX where they are more */
/* Bytes by class, of one training step.  Kept are values of `micro`; the arena is the largest of
 * all functions', with a recipe's matrices perhaps the update's; workspace is its rest. */
typedef struct MemoryTable { /* lower_bound: no arena can be smaller with this order */
    int64_t weights, gradients, optimizer, tables, kept_activations, workspace, arena, peak;
    int64_t copies;      /* of weights, in bf16 */
    int64_t lower_bound; /* the largest sum of live bytes at one step */
} MemoryTable;
MemoryTable memory_table(const Module *module);
/* The placed function with the largest arena, of which memory_table speaks; NULL: none has
 * one. */
const Function *largest_function(const Module *module);

/* ---- gaps.c -------------------------------------------------------------------------------- */
typedef struct ArenaGaps ArenaGaps;
/* Of a function that memory has placed.  In `arena`. */
ArenaGaps *arena_gaps(const Function *function, Arena *arena);
/* Where `bytes` are free while the group runs, a multiple of `alignment`: the first such place,
 * which may reach beyond function->arena_bytes.  Groups are asked for in ascending order. */
int64_t arena_gap(ArenaGaps *gaps, int32_t group, int64_t bytes, int64_t alignment);

/* ---- counts.c ------------------------------------------------------------------------------ */
/* FLOPs a token of `micro` (of `eval` where there is no micro), design 9.  forward, backward,
 * recompute: products inside blocks with whole squares; head: products in the model's own
 * scope, forward and backward; executed: all ops of the function, each once. */
typedef struct FlopTable {
    double forward, backward, recompute, head, executed;
} FlopTable;
/* FLOPs of one node: a term of a sum or product is a unit of it, an element of anything
 * else. */
double node_flops(const Function *function, const Node *node);
FlopTable flop_table(const Module *module, int64_t tokens);

#endif
