/* codegen/codegen.h: from groups to kernels to C, and to a program.  Index of the folder.
 *
 *   lower.c      a group -> a kernel: loops over named axes, an SSA body of scalars
 *   evaluate.c   its other half (their common header is lower.h)
 *   kernel.c     the kernel IR: names, canonical text, hash, verification
 *   build.c      making kernels: open loops, emit values as far out as they can stand
 *   loops.c      merging and tiling of a kernel's loops
 *   print_c.c    the C printer
 *   print.c      values as expressions, for both printers (their common header is print.h)
 *   prelude.h    exp, log, sin, … as polynomials, in the C subset of both printers (embedded)
 *   prelude_c.h  what stands before it in C (embedded)
 *   emit.c       a scheduled, placed function -> a program: a flat list of steps
 */
#ifndef COLAC_CODEGEN_H
#define COLAC_CODEGEN_H

#include "passes/passes.h"

/* ---- kernel.c ------------------------------------------------------------------------------
 * The kernel IR: what both printers print.  A kernel is a region; a region is a list of
 * instructions, run in order; a loop is an instruction with a region of its own.  Values are
 * named by the instruction that makes them (SSA), are seen in the rest of their region and in
 * the regions within it, and are scalars.  Memory is reached by loads and stores alone, at
 * addresses that are affine in loop indices and i32 values.
 *
 *   parallel loop   iterations are independent: OpenMP threads, a grid's blocks.  Nested
 *                   ones are perfectly nested.  Between two parallel nests in a kernel's own
 *                   region all memory is synchronized; what stands in that region itself is
 *                   run once.
 *   serial loop     iterations run in order
 *   lanes loop      iterations are independent and the fastest in memory: SIMD lanes, the
 *                   threads of a block.  In each iteration all loads come before the stores,
 *                   and no iteration loads what another stores.  Lanes loops hold no loops.
 *   tile            a loop with `tile_of` runs over tile i of `total` positions, i being that
 *                   loop's index: min(extent, total - extent * i) iterations
 *   reduce          in a lanes loop: its value, seen after the loop, is the sum or maximum of
 *                   its operand over the iterations, in the *fixed order*
 *
 * The fixed order of n terms is a function of n alone.  n <= REDUCE_BLOCK: lanes start at 0
 * (sum) or -infinity (max); term i is taken in by lane i mod REDUCE_LANES, in turn; then lane j
 * takes in lane j + w, for w = 64, 32, … 1.  Larger n: blocks of REDUCE_BLOCK terms are reduced
 * so, and the partial results, in block order, are reduced in the fixed order in their turn.
 * That x takes in y means x + y, or x > y ? x : y.
 *
 * Nothing here is particular to C or CUDA. */
enum { REDUCE_LANES = 128, REDUCE_BLOCK = 32768 };

typedef int32_t ValueId;  /* index in Kernel.instructions; -1: none */
typedef int32_t BufferId; /* index in Kernel.buffers */

/* base + sum of stride * value.  Terms ascend by value; no stride is 0. */
typedef struct Term {
    ValueId value; /* a loop (its index), or an i32 value */
    int64_t stride;
} Term;
typedef struct Affine {
    int64_t base;
    int term_count; /* at most MAX_TERMS */
    Term *terms;
} Affine;

typedef enum InstructionKind {
    KERNEL_CONSTANT, /* number */
    KERNEL_SCALAR,   /* argument `integer` of the kernel's scalars; f64 */
    KERNEL_INDEX,    /* `at` as an i32 */
    KERNEL_DIGIT,    /* `at` / divisor % modulus, an i32: the position along one axis of a
                        position in [0, integer) that runs through several axes */
    KERNEL_MAP,      /* op of inputs, as in ops.def */
    KERNEL_RANDOM,   /* random_uniform of seed, step, sample0 (inputs; f64 scalars) and site
                        `integer`; the sample is sample0 + `sample`, the index in it `at`; f32 */
    KERNEL_LOAD,     /* buffer[at] */
    KERNEL_STORE,    /* buffer[at] = inputs[0] */
    KERNEL_REDUCE,   /* op (sum, max) of inputs[0] over the lanes loop it stands in */
    KERNEL_LOCAL,    /* a local buffer's life begins, to the end of this region; it starts with
                        no values */
    KERNEL_LOOP      /* value: the index, from 0 */
} InstructionKind;

typedef ARRAY(ValueId) Region; /* instructions in order */

typedef enum LoopKind { LOOP_PARALLEL, LOOP_SERIAL, LOOP_LANES } LoopKind;
typedef struct Loop {
    LoopKind kind;
    int64_t extent;
    ValueId tile_of; /* -1: none */
    int64_t total;   /* of a tile */
    Region body;
} Loop;

typedef struct Instruction {
    InstructionKind kind;
    DataType dtype; /* of the value */
    Op op;
    int input_count;
    ValueId inputs[3];
    double number;
    int64_t integer, divisor, modulus;
    BufferId buffer;
    Affine at, sample;
    Loop *loop;
    const char *name; /* a name to read it by, or NULL; no part of the canonical text */
} Instruction;

typedef struct Buffer {
    DataType dtype;
    int64_t elements;
    int argument; /* which of the kernel's pointers; -1: local, memory private to an iteration
                     of the parallel loops around its KERNEL_LOCAL */
    bool reads, writes;
    const char *name, *shape; /* x, [B,S,D]: to read it by; no part of the canonical text */
} Buffer;

typedef struct Kernel {
    Arena *arena;
    ARRAY(Buffer) buffers;
    int argument_count, scalar_count;
    ARRAY(Instruction) instructions;
    Region body;
    const char *label; /* layer_attn_softmax */
    char *text;        /* canonical; NULL before it is asked for */
} Kernel;

Kernel *kernel_new(Arena *arena);
void kernel_free(Kernel *kernel); /* its arrays; the rest is the arena's */
/* NULL, or a sentence about a broken rule: scopes, nesting, types, addresses past a buffer. */
const char *kernel_verify(const Kernel *kernel);
/* Two groups that do the same have the same canonical text (no node ids, no names). */
const char *kernel_text(Kernel *kernel);
uint64_t kernel_hash(Kernel *kernel);
/* What to call each value and each buffer: all different, and identifiers of C that no keyword
 * and nothing of the prelude is.  Without `hints` by number alone.  In the kernel's arena. */
typedef struct KernelNames {
    const char **values, **buffers;
} KernelNames;
KernelNames kernel_names(const Kernel *kernel, bool hints);
/* The terms of an address, largest stride first: how it is printed.  Returns their number. */
enum { MAX_TERMS = 3 * MAX_AXES };
int affine_by_stride(const Affine *affine, Term terms[MAX_TERMS]);
int64_t affine_stride(const Affine *affine, ValueId value); /* 0: it does not depend on it */
void affine_mark(const Affine *affine, bool *used);         /* by ValueId */
bool region_holds(const Region *region, ValueId value);     /* itself, not a loop in it */
ValueId nest_below(const Kernel *kernel, ValueId loop); /* the parallel loop that is its body; -1 */
/* The text with given names, every line after `margin`. */
void kernel_print(const Kernel *kernel, KernelNames names, const char *margin, Text *out);
/* Roughly what the instructions of a region cost, all iterations counted, in vector additions
 * of one element: for balancing and for deciding on threads. */
double kernel_work(const Kernel *kernel, const Region *region);
/* Bytes of its arguments that a kernel moves: each read and written at most once. */
double kernel_traffic(const Kernel *kernel);
/* How much of each argument it touches, read and written parts counted once, into
 * bytes[argument_count]. */
void kernel_touched(const Kernel *kernel, double *bytes);

/* ---- build.c -------------------------------------------------------------------------------
 * A kernel under construction: a stack of open regions, innermost last.  A value goes into the
 * outermost open region in which all that it depends on is known (so what does not depend on a
 * loop leaves it), and one that is there already is not made again. */
typedef struct KernelBuilder {
    Kernel *kernel;
    ARRAY(Region *) open;  /* the first is the kernel's body */
    ARRAY(ValueId) nests;  /* for each open region but the first: the outermost loop to close */
    ARRAY(Region *) homes; /* by value: the region from which on it is seen */
    ARRAY(ValueId) same;   /* by value: the next one in its bucket */
    ValueId *buckets;
} KernelBuilder;
KernelBuilder kernel_builder(Kernel *kernel);
void kernel_builder_free(KernelBuilder *builder); /* all loops must be closed */

Affine affine_constant(int64_t base);
Affine affine_of(Arena *arena, ValueId value);
Affine affine_add(Arena *arena, Affine a, Affine b, int64_t scale); /* a + scale * b */
bool affine_equal(const Affine *a, const Affine *b);

BufferId build_buffer(KernelBuilder *b, Buffer buffer);
bool is_open(const KernelBuilder *b, ValueId value); /* seen from where we stand */
ValueId emit_constant(KernelBuilder *b, DataType dtype, double number);
ValueId emit_scalar(KernelBuilder *b, int number);
ValueId emit_index(KernelBuilder *b, Affine at, const char *name);
ValueId emit_digit(KernelBuilder *b, Affine at, int64_t positions, int64_t divisor,
                   int64_t modulus);
ValueId emit_map(KernelBuilder *b, Op op, DataType dtype, const ValueId *inputs, int count,
                 const char *name);
ValueId emit_random(KernelBuilder *b, int64_t site, const ValueId seed_step_sample0[3],
                    Affine sample, Affine at);
ValueId emit_load(KernelBuilder *b, BufferId buffer, Affine at, const char *name);
void emit_store(KernelBuilder *b, BufferId buffer, Affine at, ValueId value);
ValueId emit_reduce(KernelBuilder *b, Op op, ValueId term, const char *name);
void emit_local(KernelBuilder *b, BufferId buffer);
/* For the values of a lanes loop that is closed already, asked for in another one: keeps them
 * in a new local buffer, indexed by `position`, whose life begins at the head of the region
 * around. */
BufferId keep_value(KernelBuilder *b, ValueId value, Affine position, int64_t elements);
/* Opens loops, outermost first, those but the last perfectly nested; `indices` are their
 * values. */
typedef struct LoopShape {
    int64_t extent;
    ValueId tile_of; /* -1: none */
    int64_t total;
    const char *name;
} LoopShape;
void open_loops(KernelBuilder *b, LoopKind kind, const LoopShape *shapes, int count,
                ValueId *indices);
void close_loops(KernelBuilder *b); /* what one call of open_loops opened */

/* ---- loops.c ---------------------------------------------------------------------------- */
/* Drops values that nothing uses, turns digits back to plain strides where they make one,
 * merges neighbouring loops where every address goes through both as through one, and cuts long
 * lanes loops in parallel tiles.  Changes no value and no order of a reduction. */
void kernel_simplify(Kernel *kernel);

/* ---- lower.c ---------------------------------------------------------------------------- */
/* What a kernel's pointer arguments stand for in the function it was made from. */
typedef struct KernelOperand {
    enum { OPERAND_NODE, OPERAND_STATE, OPERAND_INPUT, OPERAND_SCRATCH } kind;
    int32_t id;    /* NodeId, StateId, input number; scratch: 0 */
    int64_t bytes; /* its extent */
    bool reads, writes;
} KernelOperand;

typedef struct LoweredGroup {
    Kernel *kernel;
    int operand_count;
    KernelOperand *operands; /* the kernel's pointer arguments, in order */
    int scalar_count;
    NodeId *scalars; /* the kernel's scalar arguments: f64 nodes; -1 - n: runtime scalar n
                        of the function */
} LoweredGroup;

/* The members of each group, and the writes that its kernel makes: made once a function. */
typedef struct GroupIndex {
    int32_t *member_begin, *write_begin; /* of group g: [begin[g], begin[g + 1]) */
    NodeId *members;                     /* ascending */
    int32_t *writes;                     /* the direct ones, by their source's group */
} GroupIndex;
GroupIndex group_index(const Function *function, Arena *arena);

/* Lowers one flat, row, column or scatter group.  Memory in `arena`, but for the kernel's
 * arrays.
 *   row      for each row: sweeps over the inner axes, one for each depth of reductions, then one
 *            for what depends on the last; row values between them.  A value that is dear to compute
 *            and wanted in several sweeps is kept in a buffer of the row, as far as those fit in
 *            `local_bytes`.  Few and long rows are cut in blocks of REDUCE_BLOCK that run side by
 *            side
 *   column   the summed positions are cut in chunks (a function of their number alone), each summed
 *            in order; the partial sums are summed in chunk order
 *   scatter  a worker owns a block of the kept axes and walks the index in order
 * The stores of a flat group, and those of a row group's last sweep, may take over the memory
 * of an operand (may_take_place_of). */
LoweredGroup lower_group(const Function *function, const GroupIndex *index, int group,
                         int64_t local_bytes, Arena *arena);
/* Bytes of scratch memory that its kernel wants, each array aligned: a function of extents. */
int64_t group_scratch_bytes(const Function *function, const GroupIndex *index, int group);
enum { SCRATCH_ALIGNMENT = 64 };
int64_t scratch_aligned(int64_t bytes); /* rounded up to it */

/* ---- print_c.c -----------------------------------------------------------------------------
 * `void NAME(void *const *buffers, const double *scalars)`: buffers in operand order. Readable,
 * deterministic; the kernel IR stands in a comment above.  `name` is label_hash. */
void print_c(Kernel *kernel, const char *name, Text *out);
extern const char embedded_prelude_h[], embedded_prelude_c_h[];

/* ---- emit.c ----------------------------------------------------------------------------- */
typedef enum Space { /* of states as their roles */
    SPACE_WEIGHT = ROLE_WEIGHT,
    SPACE_GRADIENT = ROLE_GRADIENT,
    SPACE_MOMENT = ROLE_MOMENT,
    SPACE_COPY = ROLE_COPY,
    SPACE_TABLE = ROLE_TABLE,
    SPACE_METRIC = ROLE_METRIC,
    SPACE_INPUT,
    SPACE_ARENA
} Space;
const char *space_name(Space space);
/* 512x2048x128 a(128,1) b(1,128) c(2048,1) batch 8(…) add bf16->f32 */
void print_product(const Product *product, Text *out);

typedef struct Operand {
    Space space;
    int32_t number; /* which moment, which input; else 0 */
    int64_t offset; /* bytes */
    int64_t bytes;  /* extent from offset that may be touched */
    bool scratch;   /* no value of the program, but a place to compute in */
} Operand;

typedef enum StepKind { STEP_LAUNCH, STEP_PRODUCT, STEP_COPY, STEP_ZERO } StepKind;
typedef struct Step {
    StepKind kind;
    int32_t index; /* kernel or product of the program set */
    int operand_count;
    Operand *operands; /* product: A, B, C; copy: from, to; zero: what */
    Operand workspace; /* of a product; 0 bytes where the device asks for none */
    int scalar_count;
    int32_t *scalars;    /* indices into Program.host_scalars */
    const char *label;   /* layer[3].attn.wq, for profiles */
    Span span;           /* of the value that the label names, or of what it computes last */
    double flops, bytes; /* as executed: for the share of peak */
    NodeId dot;          /* of a product: its node; else -1 */
} Step;

typedef struct Program {
    const char *name; /* micro, update, eval */
    int64_t step_count;
    Step *steps;
    int host_scalar_count;
    NodeId *host_scalars; /* evaluated before each run; -1 - i: the function's i-th scalar */
    const Function *function;
    int64_t arena_bytes; /* the plan's, or more where scratch finds no gap in it */
} Program;

/* What a device gives programs.  The bits are the same for any. */
typedef struct Room {
    int64_t local_bytes; /* of local buffers, for an iteration of a kernel's parallel loops */
    /* Of the arena, for a product while it runs.  NULL: the device has its own. */
    int64_t (*workspace_bytes)(const Product *product);
    int64_t workspace_alignment;
} Room;
extern const Room host_room;

/* All programs of a module; kernels and products are shared among them. */
typedef struct ProgramSet {
    Arena *arena;
    const Module *module;
    int program_count;
    Program *programs;
    int kernel_count;
    Kernel **kernels;
    const char **kernel_names;
    int product_count;
    Product *products;
    SlabList slabs;
    int64_t arena_bytes; /* the largest of the programs */
    Room room; /* with which, and how, it was emitted */
    bool apart;
} ProgramSet;
/* Emits every function but `init`.  Kernels' scratch and products' workspace lie in gaps of
 * the arena, or behind it (`apart`: always, so that values stay there that nobody reads any
 * more). */
ProgramSet *emit_programs(const Module *module, const Room *room, bool apart);
/* What program_memory and products need of it alone: no programs, no kernels.  A quarter of the
 * time. */
ProgramSet *outline_programs(const Module *module, const Room *room, bool apart);
void program_set_free(ProgramSet *set);
/* memory_table with what only programs know: kernels' scratch, the inputs and what slabs are
 * padded by, in `workspace`, so that `peak` is what an executor holds. */
MemoryTable program_memory(const ProgramSet *set);
const Program *program_find(const ProgramSet *set, const char *name); /* NULL */
void program_print(const ProgramSet *set, const Program *program, Text *out);
/* Adds the prelude and the text of all kernels, as `print` prints one, to `parts` texts, all of
 * about equal length.  `homes`: by kernel, the text that has it; or NULL. */
typedef void KernelPrinter(const ProgramSet *set, int kernel, const void *data, Text *out);
void emit_kernels(const ProgramSet *set, KernelPrinter *print, const void *data, int parts,
                  Text *out, int *homes);
/* The C of all kernels so; each text begins with both preludes. */
void emit_c(const ProgramSet *set, int parts, Text *out);

#endif
