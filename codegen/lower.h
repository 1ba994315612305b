/* codegen/lower.h: what lowering a group shares between its two files.
 *
 *   evaluate.c   a node at an environment -> values of the kernel
 *   lower.c      the loops around: flat, row, column and scatter groups
 */
#ifndef COLAC_CODEGEN_LOWER_H
#define COLAC_CODEGEN_LOWER_H

#include "codegen/codegen.h"

enum { INFO_PAGE = 64 };

/* A value that was computed at an environment. */
typedef struct Evaluated {
    int32_t positions[MAX_AXES]; /* of the node's axes, in its type's order */
    ValueId value;
    struct Evaluated *next;
} Evaluated;

/* What lowering knows of a node. */
typedef struct NodeInfo {
    NodeId node;
    Evaluated *evaluated;
    int level;        /* the reductions of the group below it, in depth; -1: not known yet */
    ValueId in_sweep; /* its value in the sweep that made it first; -1 */
    ValueId sweep;    /* that sweep */
    BufferId kept;    /* where that is kept for later sweeps; -1 */
    bool in_memory;   /* an earlier sweep has stored it in its own memory */
    ValueId reduced;  /* a reduction's result, where it is done; -1 */
    BufferId results; /* where results of a reduction are in scratch memory; -1 */
} NodeInfo;

/* A place that a computed value is stored to. */
typedef struct Store {
    NodeId node; /* the value; of a stack: the part */
    View view;   /* of the destination, by the axes of `node` */
    BufferId buffer;
    bool add;
    int level;
    bool inner; /* has the inner axes */
} Store;

typedef struct Lowering {
    const Function *function;
    const Module *module;
    const Group *group;
    int group_number;
    Arena *arena;
    KernelBuilder builder;
    ARRAY(KernelOperand) operands;
    ARRAY(BufferId) operand_buffers;
    ARRAY(NodeId) scalars;
    ARRAY(Affine) positions; /* all that were met, each once */
    ARRAY(Store) stores;
    ARRAY(NodeId) reductions;
    ARRAY(NodeId) pending; /* nodes that wait for their operands */
    /* Where the axes of the group are, in the nest that is open: indices in `positions`. */
    int axis_count;
    AxisId axes[2 * MAX_AXES];
    int32_t axis_positions[2 * MAX_AXES];
    ValueId sweep;          /* the sweep over a row's inner axes that is open; -1 */
    int64_t local_bytes;    /* that an iteration may have of its own */
    int64_t kept_bytes;     /* of a row, in buffers: from one sweep for later ones */
    bool linear_columns;    /* a worker's columns run through all kept axes */
    int64_t inner, rows;    /* elements */
    NodeInfo ***info_pages; /* by node / INFO_PAGE; NULL where no node is known */
} Lowering;

const Node *graph_node(const Lowering *l, NodeId id);
int64_t axis_extent(const Lowering *l, AxisId axis);
NodeInfo *info_of(Lowering *l, NodeId node); /* made at the first call */
/* The name of a value or of what it is the adjoint of; NULL where there is none. */
const char *value_name(const Lowering *l, NodeId id);
/* Whether a value, or what it is a view of, is in memory that this group does not write. */
bool is_loaded(const Lowering *l, NodeId id);

/* Buffers of the kernel's arguments, made at their first use; scratch: a new one each time. */
BufferId node_buffer(Lowering *l, NodeId id);
BufferId state_buffer(Lowering *l, StateId id);
BufferId scratch_buffer(Lowering *l, DataType dtype, int64_t elements, const char *name);

Affine affine_plus(Lowering *l, Affine a, Affine b, int64_t scale); /* a + scale * b */
/* Says where an axis is from now on. */
void place_axis(Lowering *l, AxisId axis, Affine position);
/* Axes, slowest first, as the digits of one position in [0, product of their sizes). */
void place_linear(Lowering *l, const AxisId *axes, int count, Affine position);
Affine position_of(const Lowering *l, AxisId axis);
/* Each axis of a type where it is now. */
void natural_positions(const Lowering *l, Type type, int32_t *positions);
/* An index as a position on an axis.  An input's values are known to be below its bound; others
 * are held within the axis, so that no kernel touches foreign memory. */
Affine dynamic_position(Lowering *l, NodeId index, ValueId value, AxisId axis);
Affine view_address(Lowering *l, const View *view, Type type, const int32_t *positions);

ValueId emit_map2(Lowering *l, Op op, DataType dtype, ValueId a, ValueId b);
/* The value of a node with its axes, in its type's order, at the given positions. */
ValueId value_at(Lowering *l, NodeId id, const int32_t *positions);
ValueId value_here(Lowering *l, NodeId id); /* where they are now */

#endif
