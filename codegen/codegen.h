/* codegen/codegen.h: from groups to kernels to C, and to a program.  Index of the folder.
 *
 *   lower.c      a group -> a kernel: loops over named axes, an SSA body of scalars
 *   kernel.c     the kernel IR: canonical text, hash, verification
 *   print_c.c    the C printer
 *   prelude.h    exp, log, sin, … as polynomials, in the C subset of both printers (embedded)
 *   emit.c       a scheduled, placed function -> a program: a flat list of steps
 */
#ifndef COLAC_CODEGEN_H
#define COLAC_CODEGEN_H

#include "passes/passes.h"

/* ---- kernel.c ------------------------------------------------------------------------------
 * A kernel is one or more phases run one after the other with a barrier between.  A phase is a
 * nest: parallel loops (whose iterations are independent), then a list of sections; a section is
 * a straight SSA body, run once a parallel iteration ("scalar") or for every index of the inner
 * loops ("sweep").  Addresses are affine in the loop indices.  Nothing here is particular to C or
 * CUDA.  Reductions run in the fixed order of design 7 (128 lanes, halving tree). */
typedef struct Kernel Kernel;

/* What a kernel's pointer arguments stand for in the function it was made from. */
typedef struct KernelOperand {
    enum { OPERAND_NODE, OPERAND_STATE, OPERAND_INPUT, OPERAND_SCRATCH } kind;
    int32_t id;       /* NodeId, StateId, input number; scratch: 0 */
    int64_t bytes;    /* scratch: its size */
    bool reads, writes;
} KernelOperand;

typedef struct LoweredGroup {
    Kernel *kernel;
    int operand_count;
    KernelOperand *operands;  /* the kernel's pointer arguments, in order */
    int scalar_count;
    NodeId *scalars;          /* f64 nodes whose values are the kernel's scalar arguments */
} LoweredGroup;

/* ---- lower.c ------------------------------------------------------------------------------- */
/* Lowers one flat, row, column or scatter group.  Memory in `arena`. */
LoweredGroup lower_group(const Function *function, int group, Arena *arena);
/* Two groups that do the same have the same canonical text (no node ids, no state names). */
const char *kernel_text(const Kernel *kernel);
uint64_t kernel_hash(const Kernel *kernel);
/* The path of the first value with one, indices dropped: layer_attn_softmax.  For names only. */
const char *kernel_label(const Kernel *kernel);

/* ---- print_c.c -----------------------------------------------------------------------------
 * `void NAME(void *const *buffers, const double *scalars)`: buffers in operand order.  Readable,
 * deterministic; the kernel IR stands in a comment above.  `name` is label_hash. */
void print_c(const Kernel *kernel, const char *name, Text *out);
extern const char embedded_prelude_h[];

/* ---- emit.c -------------------------------------------------------------------------------- */
typedef enum Space {
    SPACE_WEIGHT, SPACE_GRADIENT, SPACE_MOMENT, SPACE_TABLE, SPACE_METRIC, SPACE_INPUT, SPACE_ARENA
} Space;
const char *space_name(Space space);

typedef struct Operand {
    Space space;
    int32_t number;   /* which moment, which input; else 0 */
    int64_t offset;   /* bytes */
    int64_t bytes;    /* extent from offset that may be touched */
} Operand;

typedef enum StepKind { STEP_LAUNCH, STEP_PRODUCT, STEP_COPY, STEP_ZERO } StepKind;
typedef struct Step {
    StepKind kind;
    int32_t index;          /* kernel or product of the program set */
    int operand_count;
    Operand *operands;      /* product: A, B, C; copy: from, to; zero: what */
    int scalar_count;
    int32_t *scalars;       /* indices into Program.host_scalars */
    const char *label;      /* layer[3].attn.wq, for profiles */
    double flops, bytes;    /* as executed: for the share of peak */
} Step;

typedef struct Program {
    const char *name;       /* micro, update, eval */
    int64_t step_count;
    Step *steps;
    int host_scalar_count;
    NodeId *host_scalars;   /* f64 nodes, evaluated before each run by interp_scalar */
    const Function *function;
    int64_t arena_bytes;
} Program;

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
    int64_t slab_elements[5]; /* by Role; of one moment */
    int moment_count;
    int64_t arena_bytes;      /* the largest of the programs */
} ProgramSet;
ProgramSet *emit_programs(const Module *module);
void program_set_free(ProgramSet *set);
const Program *program_find(const ProgramSet *set, const char *name); /* NULL */
void program_print(const ProgramSet *set, const Program *program, Text *out);
/* The C of all kernels, cut into `parts` texts of about equal work; each begins with the prelude. */
void emit_c(const ProgramSet *set, int parts, Text *out);

#endif
