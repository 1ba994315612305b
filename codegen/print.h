/* codegen/print.h: what the C and the CUDA printer share: values as expressions of the
 * prelude's functions.  The loops around them are each printer's own. */
#ifndef COLAC_CODEGEN_PRINT_H
#define COLAC_CODEGEN_PRINT_H

#include "codegen/codegen.h"

typedef struct Printer {
    const Kernel *kernel;
    KernelNames names;
    bool narrow_loops;      /* indices of all loops up to 2^31 are int, not of lanes loops alone */
    int64_t hidden_strides; /* a bit for each power of two that is a variable in loads */
    Text *out;
    int indent;
} Printer;

const Instruction *printed(const Printer *p, ValueId id);
/* A line of its own, indented, with its end. */
void print_line(const Printer *p, const char *format, ...) PRINTF_LIKE(2, 3);
void print_margin(const Printer *p);

const char *printed_type(DataType dtype);
/* Of elements in memory: the prelude's types that may share memory with others. */
const char *memory_type(DataType dtype);
/* The prefix of the prelude's functions on values of a type. */
const char *function_prefix(DataType dtype);

void print_operand(const Printer *p, ValueId id);
/* An address or index below `positions`. */
void print_affine(const Printer *p, const Affine *affine, int64_t positions, bool is_load);
void print_element(const Printer *p, const Instruction *access); /* x[512 * s + d] */
/* What a value is; not of constants, which stand where they are used. */
void print_expression(const Printer *p, const Instruction *instruction);
void print_store(const Printer *p, const Instruction *store);
/* The number of iterations: a number, or a variable that is declared here. */
const char *print_trip_count(const Printer *p, ValueId loop);
/* gcc 12 does not vectorize loads that it sees to be a power of two from 32 on apart. */
bool is_hidden_stride(const Printer *p, Term term);

/* ---- reductions ---------------------------------------------------------------------- */
bool has_reductions(const Kernel *kernel, const Loop *loop);
/* Of a loop with reductions: how many lanes are in use, a power of two. */
int lanes_width(const Loop *loop);
typedef struct Reduction {
    const Printer *p;
    const Instruction *reduce;
    const char *name, *type, *kind, *op; /* total_7, float, f32, sum */
    const char *start;                   /* of a lane */
} Reduction;
Reduction reduction_of(const Printer *p, ValueId id);
/* LANE = LANE + term; */
void print_take_in(const Reduction *reduction, const char *lane);
/* `body` for each reduction of a loop. */
void each_reduction(const Printer *p, const Loop *loop,
                    void (*body)(const Reduction *reduction, const Loop *loop));

#endif
