/* codegen/lower.c: a group of nodes -> a kernel.
 *
 * What a group does is compute its stores; all else is evaluated on demand.  This file makes
 * the loops around.  For softmax(x; T) over rows [B,S] the row schedule gives
 *
 *     parallel row < 2048 {
 *       lanes t < 256 {
 *         x = load in_x[256 row + t]
 *         largest = reduce max x
 *       }
 *       lanes t < 256 {
 *         weight = exp (in_x[256 row + t] - largest)
 *         total = reduce sum weight
 *         store local_weight[t] weight
 *       }
 *       lanes t < 256 {
 *         store out_p[256 row + t] local_weight[t] / total
 *       }
 *     }
 */
#include "codegen/lower.h"

#include <math.h>

enum { FEW_ROWS = 64 };      /* fewer long rows than this are cut in blocks */
enum { MOST_BLOCKS = 1024 }; /* rows of more blocks are always cut */
enum { MIN_CHUNK = 64 };     /* summed positions of a chunk, at least */
enum { MAX_CHUNKS = 64 };
enum { COLUMN_BLOCK = 1024 }; /* columns that a worker sums at a time */
enum { SCATTER_BLOCK = 128 }; /* kept elements that a worker owns */

/* ---- stores -------------------------------------------------------------------------- */

/* The depth of a value in the group's reductions: the number of the sweep that can
 * compute it. */
static int level_of(Lowering *l, NodeId id) {
    int64_t begin = l->pending.count;
    array_push(&l->pending, id);
    while (l->pending.count > begin) {
        NodeId last = l->pending.data[l->pending.count - 1];
        const Node *node = graph_node(l, last);
        int64_t count = l->pending.count;
        int level = 0;
        for (int i = 0; i < node->input_count && !is_loaded(l, last); i++) {
            int below = info_of(l, node->inputs[i])->level;
            if (below < 0)
                array_push(&l->pending, node->inputs[i]);
            level = below > level ? below : level;
        }
        if (l->pending.count > count)
            continue; /* again when the operands have theirs */
        bool reduces = node->op == OP_SUM || node->op == OP_MAX;
        info_of(l, last)->level = level + (reduces && node->placement.group == l->group_number);
        l->pending.count--;
    }
    return info_of(l, id)->level;
}

static bool has_inner(const Lowering *l, Type type) {
    for (int i = 0; i < l->group->inner_count; i++)
        if (type_has(type, l->group->inner[i]))
            return true;
    return false;
}

static void add_store(Lowering *l, NodeId node, View view, BufferId buffer, bool add) {
    Store store = {.node = node,
                   .view = view,
                   .buffer = buffer,
                   .add = add,
                   .level = level_of(l, node),
                   .inner = has_inner(l, graph_node(l, node)->type)};
    array_push(&l->stores, store);
}

/* Stores of a computed value in memory of its own order; a stack part by part. */
static void add_stores(Lowering *l, NodeId id, BufferId buffer, bool add) {
    const Node *node = graph_node(l, id);
    View whole = own_view(l->function, id);
    if (node->op != OP_STACK) {
        add_store(l, id, whole, buffer, add);
        return;
    }
    for (int part = 0; part < node->input_count; part++) {
        View view = {.base = part * view_stride(&whole, node->attr.to[0])};
        for (int i = 0; i < whole.count; i++)
            if (whole.axes[i] != node->attr.to[0]) {
                view.axes[view.count] = whole.axes[i];
                view.strides[view.count++] = whole.strides[i];
            }
        add_store(l, node->inputs[part], view, buffer, add);
    }
}

static void collect(Lowering *l, const GroupIndex *index) {
    int g = l->group_number;
    for (int32_t i = index->member_begin[g]; i < index->member_begin[g + 1]; i++) {
        const Node *node = graph_node(l, index->members[i]);
        if (node->op == OP_SUM || node->op == OP_MAX)
            array_push(&l->reductions, index->members[i]);
        if (node->placement.stored)
            add_stores(l, index->members[i], node_buffer(l, index->members[i]), false);
    }
    for (int32_t i = index->write_begin[g]; i < index->write_begin[g + 1]; i++) {
        const Write *write = &l->function->writes.data[index->writes[i]];
        add_stores(l, write_source(l->function, write->value), state_buffer(l, write->state),
                   write->add);
    }
}

/* Evaluates and stores what is at a level, has (or has not) the inner axes; level -1: all. */
static void emit_stores(Lowering *l, int level, bool inner) {
    int64_t count = l->stores.count;
    ValueId *values = arena_alloc_array(l->arena, (size_t)count, sizeof *values);
    Affine *places = arena_alloc_array(l->arena, (size_t)count, sizeof *places);
    for (int64_t i = 0; i < count; i++) {
        const Store *store = &l->stores.data[i];
        values[i] = -1;
        if ((level >= 0 && store->level != level) || store->inner != inner)
            continue;
        const Node *node = graph_node(l, store->node);
        int32_t positions[MAX_AXES];
        natural_positions(l, node->type, positions);
        values[i] = value_at(l, store->node, positions);
        places[i] = view_address(l, &store->view, node->type, positions);
        if (store->add) {
            ValueId old = emit_load(&l->builder, store->buffer, places[i], NULL);
            values[i] = emit_map2(l, OP_ADD, node->type.dtype, old, values[i]);
        }
    }
    for (int64_t i = 0; i < count; i++)
        if (values[i] >= 0)
            emit_store(&l->builder, l->stores.data[i].buffer, places[i], values[i]);
}

static bool has_stores(const Lowering *l, int level, bool inner) {
    for (int64_t i = 0; i < l->stores.count; i++)
        if (l->stores.data[i].level == level && l->stores.data[i].inner == inner)
            return true;
    return false;
}

/* ---- nests --------------------------------------------------------------------------- */

/* Opens a nest over axes, slowest first, and then over `more` loops; what has one position
 * needs no loop.  False when that leaves none.  `indices` gets the values of `more`, or -1. */
static bool open_nest(Lowering *l, LoopKind kind, const AxisId *axes, int count,
                      const LoopShape *more, int more_count, ValueId *indices) {
    LoopShape shapes[2 * MAX_AXES];
    ValueId opened[2 * MAX_AXES];
    int loops = 0;
    for (int i = 0; i < count; i++)
        if (axis_extent(l, axes[i]) > 1)
            shapes[loops++] =
                (LoopShape){axis_extent(l, axes[i]), -1, 0, l->module->axes.data[axes[i]].name};
    for (int i = 0; i < more_count; i++)
        if (more[i].extent > 1)
            shapes[loops++] = more[i];
    if (loops)
        open_loops(&l->builder, kind, shapes, loops, opened);
    int loop = 0;
    for (int i = 0; i < count; i++)
        place_axis(l, axes[i],
                   axis_extent(l, axes[i]) > 1 ? affine_of(l->arena, opened[loop++])
                                               : affine_constant(0));
    for (int i = 0; i < more_count; i++)
        indices[i] = more[i].extent > 1 ? opened[loop++] : -1;
    return loops > 0;
}

static bool open_rows(Lowering *l) {
    return open_nest(l, LOOP_PARALLEL, l->group->rows, l->group->row_count, NULL, 0, NULL);
}

static void close_nest(Lowering *l, bool opened) {
    if (opened)
        close_loops(&l->builder);
}

/* A loop of lanes over one of `blocks` blocks of `total` positions; its position in
 * the whole. */
typedef struct Lanes {
    ValueId loop;
    Affine position;
} Lanes;
static Lanes open_lanes(Lowering *l, int64_t total, int64_t block, ValueId block_loop,
                        const char *name) {
    bool tiled = block_loop >= 0;
    LoopShape shape = {tiled ? block : total, block_loop, tiled ? total : 0, name};
    Lanes lanes;
    open_loops(&l->builder, LOOP_LANES, &shape, 1, &lanes.loop);
    lanes.position = affine_of(l->arena, lanes.loop);
    if (tiled)
        lanes.position = affine_plus(l, lanes.position, affine_of(l->arena, block_loop), block);
    return lanes;
}

static int64_t blocks_of(int64_t total, int64_t block) {
    return (total + block - 1) / block;
}

/* ---- flat ---------------------------------------------------------------------------- */

static void lower_flat(Lowering *l) {
    const Group *group = l->group;
    int last = group->row_count - 1;
    while (last >= 0 && axis_extent(l, group->rows[last]) == 1)
        last--;
    int outer = last < 0 ? 0 : last;
    bool parallel = open_nest(l, LOOP_PARALLEL, group->rows, outer, NULL, 0, NULL);
    bool lanes =
        open_nest(l, LOOP_LANES, group->rows + outer, group->row_count - outer, NULL, 0, NULL);
    emit_stores(l, -1, false);
    close_nest(l, lanes);
    close_nest(l, parallel);
}

/* ---- rows ---------------------------------------------------------------------------- */

static const char *inner_name(const Lowering *l) {
    return l->group->inner_count == 1 ? l->module->axes.data[l->group->inner[0]].name : "inner";
}

static bool sweep_has_reductions(Lowering *l, int level) {
    for (int64_t i = 0; i < l->reductions.count; i++)
        if (level_of(l, l->reductions.data[i]) == level + 1)
            return true;
    return false;
}

/* What a sweep does in its loop: terms of its level's reductions and stores.  `results` gets
 * the reductions, by their place in l->reductions. */
static void emit_sweep(Lowering *l, int level, ValueId *results) {
    for (int64_t i = 0; i < l->reductions.count; i++) {
        NodeId id = l->reductions.data[i];
        results[i] = -1;
        if (level_of(l, id) != level + 1)
            continue;
        ValueId term = value_here(l, graph_node(l, id)->inputs[0]);
        results[i] = emit_reduce(&l->builder, graph_node(l, id)->op, term, value_name(l, id));
    }
    emit_stores(l, level, true);
}

/* Later sweeps read what this one has stored. */
static void note_stored(Lowering *l, int level) {
    for (int64_t i = 0; i < l->stores.count; i++) {
        const Store *store = &l->stores.data[i];
        const Node *node = graph_node(l, store->node);
        if (store->level == level && store->inner && node->placement.stored &&
            node->placement.group == l->group_number)
            info_of(l, store->node)->in_memory = true;
    }
}

static void lower_short_rows(Lowering *l, int levels) {
    const Group *group = l->group;
    ValueId *results =
        arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *results);
    bool nest = open_rows(l);
    for (int level = 0; level <= levels; level++) {
        if (!sweep_has_reductions(l, level) && !has_stores(l, level, true))
            continue;
        Lanes lanes = open_lanes(l, l->inner, 0, -1, inner_name(l));
        l->sweep = lanes.loop;
        place_linear(l, group->inner, group->inner_count, lanes.position);
        emit_sweep(l, level, results);
        close_loops(&l->builder);
        l->sweep = -1;
        note_stored(l, level);
        for (int64_t i = 0; i < l->reductions.count; i++)
            if (results[i] >= 0)
                info_of(l, l->reductions.data[i])->reduced = results[i];
    }
    emit_stores(l, -1, false);
    close_nest(l, nest);
}

/* Whether rows are cut in blocks: few and long ones, and those too long for one
 * thread's stack. */
static bool is_cut(int64_t rows, int64_t inner) {
    return inner > REDUCE_BLOCK &&
           (rows < FEW_ROWS || inner > (int64_t)MOST_BLOCKS * REDUCE_BLOCK);
}

/* The dense address of the row that is open, in an array of one element a row. */
static Affine row_number(Lowering *l) {
    Affine number = affine_constant(0);
    for (int i = 0; i < l->group->row_count; i++)
        number = affine_plus(l, position_of(l, l->group->rows[i]), number,
                             axis_extent(l, l->group->rows[i]));
    return number;
}

/* In a nest over rows: reads the results of all reductions that earlier nests have made. */
static void load_results(Lowering *l) {
    for (int64_t i = 0; i < l->reductions.count; i++) {
        NodeInfo *info = info_of(l, l->reductions.data[i]);
        info->reduced = info->results < 0 ? -1
                                          : emit_load(&l->builder, info->results, row_number(l),
                                                      value_name(l, info->node));
    }
}

/* Reduces the partial results of a level's reductions, `blocks` for each row. */
static void combine_partials(Lowering *l, int level, const BufferId *partials, int64_t blocks) {
    bool nest = open_rows(l);
    for (int64_t i = 0; i < l->reductions.count; i++) {
        NodeId id = l->reductions.data[i];
        if (level_of(l, id) != level + 1)
            continue;
        DataType dtype = graph_node(l, id)->type.dtype;
        Affine row = row_number(l);
        Lanes lanes = open_lanes(l, blocks, 0, -1, "block");
        ValueId term = emit_load(&l->builder, partials[i],
                                 affine_plus(l, lanes.position, row, blocks), NULL);
        ValueId result =
            emit_reduce(&l->builder, graph_node(l, id)->op, term, value_name(l, id));
        close_loops(&l->builder);
        NodeInfo *info = info_of(l, id);
        info->results = scratch_buffer(l, dtype, l->rows, "result");
        emit_store(&l->builder, info->results, row, result);
    }
    close_nest(l, nest);
}

static void sweep_blocks(Lowering *l, int level, int64_t blocks) {
    const Group *group = l->group;
    ValueId *results =
        arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *results);
    BufferId *partials =
        arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *partials);
    LoopShape block = {blocks, -1, 0, "block"};
    ValueId block_loop;
    bool nest =
        open_nest(l, LOOP_PARALLEL, group->rows, group->row_count, &block, 1, &block_loop);
    load_results(l);
    Affine partial = affine_plus(l, affine_of(l->arena, block_loop), row_number(l), blocks);
    Lanes lanes = open_lanes(l, l->inner, REDUCE_BLOCK, block_loop, inner_name(l));
    place_linear(l, group->inner, group->inner_count, lanes.position);
    emit_sweep(l, level, results);
    close_loops(&l->builder);
    for (int64_t i = 0; i < l->reductions.count; i++) {
        if (results[i] < 0)
            continue;
        DataType dtype = graph_node(l, l->reductions.data[i])->type.dtype;
        partials[i] = scratch_buffer(l, dtype, l->rows * blocks, "partial");
        emit_store(&l->builder, partials[i], partial, results[i]);
    }
    close_nest(l, nest);
    if (sweep_has_reductions(l, level))
        combine_partials(l, level, partials, blocks);
}

/* Every sweep is a nest of its own, over rows and blocks of a row. */
static void lower_long_rows(Lowering *l, int levels) {
    int64_t blocks = blocks_of(l->inner, REDUCE_BLOCK);
    for (int level = 0; level <= levels; level++)
        if (sweep_has_reductions(l, level) || has_stores(l, level, true))
            sweep_blocks(l, level, blocks);
    bool nest = open_rows(l);
    load_results(l);
    emit_stores(l, -1, false);
    close_nest(l, nest);
}

static void lower_rows(Lowering *l) {
    int levels = 0;
    for (int64_t i = 0; i < l->reductions.count; i++) {
        int level = level_of(l, l->reductions.data[i]);
        levels = level > levels ? level : levels;
    }
    if (is_cut(l->rows, l->inner))
        lower_long_rows(l, levels);
    else
        lower_short_rows(l, levels);
}

/* ---- columns ------------------------------------------------------------------------- */

/* A worker of a column or scatter kernel owns a block of the fastest kept axis, at one position
 * of the others. */
typedef struct Columns {
    int outer_count, lane_count;
    AxisId outer[MAX_AXES], lanes[MAX_AXES];
    int64_t width, block; /* positions of the lane axes, and of a block of them */
    ValueId block_loop;   /* -1: one block */
} Columns;

/* With l->linear_columns the lanes run through all kept axes, else through the fastest. */
static Columns columns_of(const Lowering *l, const AxisId *kept, int count, int64_t block) {
    Columns columns = {.block_loop = -1};
    int last = count - 1;
    while (last > 0 && axis_extent(l, kept[last]) == 1)
        last--;
    for (int i = 0; i < count; i++)
        if (i == last || l->linear_columns)
            columns.lanes[columns.lane_count++] = kept[i];
        else
            columns.outer[columns.outer_count++] = kept[i];
    columns.width = axes_elements(l->module, columns.lanes, columns.lane_count);
    columns.block = columns.width < block ? columns.width : block;
    return columns;
}

static LoopShape block_shape(const Columns *columns) {
    return (LoopShape){blocks_of(columns->width, columns->block), -1, 0, "block"};
}

static Lanes open_columns(Lowering *l, const Columns *columns) {
    const char *name =
        columns->lane_count == 1 ? l->module->axes.data[columns->lanes[0]].name : "column";
    Lanes lanes = open_lanes(l, columns->width, columns->block, columns->block_loop, name);
    place_linear(l, columns->lanes, columns->lane_count, lanes.position);
    return lanes;
}

static ValueId start_of(Lowering *l, const Node *reduction) {
    double sum = 0, max = reduction->type.dtype == TYPE_I32 ? INT32_MIN : -INFINITY;
    return emit_constant(&l->builder, reduction->type.dtype,
                         reduction->op == OP_SUM ? sum : max);
}

/* A local array of a block's columns for each reduction, at its start. */
static BufferId *start_columns(Lowering *l, const Columns *columns, const char *name) {
    BufferId *sums = arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *sums);
    for (int64_t i = 0; i < l->reductions.count; i++) {
        sums[i] = build_buffer(
            &l->builder, (Buffer){.dtype = graph_node(l, l->reductions.data[i])->type.dtype,
                                  .elements = columns->block,
                                  .argument = -1,
                                  .name = name});
        emit_local(&l->builder, sums[i]);
    }
    return sums;
}

static void reset_columns(Lowering *l, const Columns *columns, const BufferId *sums) {
    Lanes lanes = open_columns(l, columns);
    for (int64_t i = 0; i < l->reductions.count; i++)
        emit_store(&l->builder, sums[i], affine_of(l->arena, lanes.loop),
                   start_of(l, graph_node(l, l->reductions.data[i])));
    close_loops(&l->builder);
}

/* sums[lane] takes in a term, in the lanes loop that is open. */
static void take_in(Lowering *l, int64_t reduction, BufferId sum, ValueId loop, ValueId term) {
    const Node *node = graph_node(l, l->reductions.data[reduction]);
    Affine lane = affine_of(l->arena, loop);
    ValueId old = emit_load(&l->builder, sum, lane, NULL);
    Op op = node->op == OP_SUM ? OP_ADD : OP_MAXIMUM;
    emit_store(&l->builder, sum, lane, emit_map2(l, op, node->type.dtype, old, term));
}

/* The chunks of a column reduction: a function of the summed positions alone. */
typedef struct Chunks {
    int64_t size, count;
    ValueId loop; /* -1: one chunk */
} Chunks;

static Chunks chunks_of(int64_t positions) {
    int64_t size = blocks_of(positions, MAX_CHUNKS);
    size = size < MIN_CHUNK ? MIN_CHUNK : size;
    return (Chunks){.size = size, .count = blocks_of(positions, size), .loop = -1};
}

/* Whether chunks are summed side by side: there are several, and few workers without. */
static bool is_tall(int64_t columns, const Chunks *chunks) {
    return chunks->count > 1 && columns < (int64_t)MAX_CHUNKS * COLUMN_BLOCK;
}

/* Sums the rows of a chunk, in order, into fresh `sums`. */
static void sum_chunk(Lowering *l, const Columns *columns, const Chunks *chunks,
                      const BufferId *sums) {
    const Group *group = l->group;
    bool tiled = chunks->loop >= 0;
    reset_columns(l, columns, sums);
    LoopShape shape = {tiled ? chunks->size : l->inner, chunks->loop, tiled ? l->inner : 0,
                       inner_name(l)};
    ValueId row;
    open_loops(&l->builder, LOOP_SERIAL, &shape, 1, &row);
    Affine position = affine_of(l->arena, row);
    if (tiled)
        position = affine_plus(l, position, affine_of(l->arena, chunks->loop), chunks->size);
    place_linear(l, group->inner, group->inner_count, position);
    Lanes lanes = open_columns(l, columns);
    for (int64_t i = 0; i < l->reductions.count; i++)
        take_in(l, i, sums[i], lanes.loop,
                value_here(l, graph_node(l, l->reductions.data[i])->inputs[0]));
    close_loops(&l->builder);
    close_loops(&l->builder);
}

/* What is computed from the sums, column by column. */
static void finish_columns(Lowering *l, const Columns *columns, const BufferId *sums) {
    Lanes lanes = open_columns(l, columns);
    for (int64_t i = 0; i < l->reductions.count; i++)
        info_of(l, l->reductions.data[i])->reduced =
            emit_load(&l->builder, sums[i], affine_of(l->arena, lanes.loop),
                      value_name(l, l->reductions.data[i]));
    emit_stores(l, -1, false);
    close_loops(&l->builder);
}

static void open_chunks(Lowering *l, Chunks *chunks) {
    LoopShape shape = {chunks->count, -1, 0, "chunk"};
    open_loops(&l->builder, LOOP_SERIAL, &shape, 1, &chunks->loop);
}

/* One nest: a worker sums all chunks of its columns. */
static void lower_wide_columns(Lowering *l, Columns columns, Chunks chunks) {
    LoopShape block = block_shape(&columns);
    bool nest = open_nest(l, LOOP_PARALLEL, columns.outer, columns.outer_count, &block, 1,
                          &columns.block_loop);
    BufferId *sums = start_columns(l, &columns, "sum"), *totals = sums;
    if (chunks.count > 1) {
        totals = start_columns(l, &columns, "total");
        reset_columns(l, &columns, totals);
        open_chunks(l, &chunks);
    }
    sum_chunk(l, &columns, &chunks, sums);
    if (chunks.count > 1) {
        Lanes lanes = open_columns(l, &columns);
        for (int64_t i = 0; i < l->reductions.count; i++)
            take_in(l, i, totals[i], lanes.loop,
                    emit_load(&l->builder, sums[i], affine_of(l->arena, lanes.loop), NULL));
        close_loops(&l->builder);
        close_loops(&l->builder);
    }
    finish_columns(l, &columns, totals);
    close_nest(l, nest);
}

/* A nest over chunks and columns leaves partial sums, [chunk][column]; another
 * combines them. */
static void lower_tall_columns(Lowering *l, Columns columns, Chunks chunks) {
    BufferId *partials =
        arena_alloc_array(l->arena, (size_t)l->reductions.count, sizeof *partials);
    LoopShape more[2] = {{chunks.count, -1, 0, "chunk"}, block_shape(&columns)};
    ValueId loops[2];
    bool nest = open_nest(l, LOOP_PARALLEL, columns.outer, columns.outer_count, more, 2, loops);
    Chunks parallel = chunks;
    parallel.loop = loops[0];
    columns.block_loop = loops[1];
    BufferId *sums = start_columns(l, &columns, "sum");
    sum_chunk(l, &columns, &parallel, sums);
    Lanes lanes = open_columns(l, &columns);
    Affine partial = affine_plus(l, row_number(l), affine_of(l->arena, parallel.loop), l->rows);
    for (int64_t i = 0; i < l->reductions.count; i++) {
        ValueId sum = emit_load(&l->builder, sums[i], affine_of(l->arena, lanes.loop), NULL);
        partials[i] = scratch_buffer(l, graph_node(l, l->reductions.data[i])->type.dtype,
                                     l->rows * chunks.count, "partial");
        emit_store(&l->builder, partials[i], partial, sum);
    }
    close_loops(&l->builder);
    close_nest(l, nest);

    nest = open_nest(l, LOOP_PARALLEL, columns.outer, columns.outer_count, &more[1], 1,
                     &columns.block_loop);
    BufferId *totals = start_columns(l, &columns, "total");
    reset_columns(l, &columns, totals);
    open_chunks(l, &chunks);
    lanes = open_columns(l, &columns);
    partial = affine_plus(l, row_number(l), affine_of(l->arena, chunks.loop), l->rows);
    for (int64_t i = 0; i < l->reductions.count; i++)
        take_in(l, i, totals[i], lanes.loop,
                emit_load(&l->builder, partials[i], partial, NULL));
    close_loops(&l->builder);
    close_loops(&l->builder);
    finish_columns(l, &columns, totals);
    close_nest(l, nest);
}

/* A worker has a sum of each column for each reduction, and a total beside it where it sums
 * several chunks. */
static int64_t column_block(const Lowering *l, const Chunks *chunks) {
    bool totals = chunks->count > 1 && !is_tall(l->rows, chunks);
    int64_t block = COLUMN_BLOCK, arrays = l->reductions.count * (totals ? 2 : 1);
    while (block > 1 &&
           arrays * scratch_aligned(block * (int64_t)sizeof(float)) > l->local_bytes)
        block /= 2;
    return block;
}

static void lower_columns(Lowering *l) {
    Chunks chunks = chunks_of(l->inner);
    Columns columns =
        columns_of(l, l->group->rows, l->group->row_count, column_block(l, &chunks));
    if (is_tall(l->rows, &chunks))
        lower_tall_columns(l, columns, chunks);
    else
        lower_wide_columns(l, columns, chunks);
}

/* ---- scatter ------------------------------------------------------------------------- */

/* A loop over all of a buffer, in memory order. */
static Affine open_memory(Lowering *l, int64_t elements) {
    LoopShape shape = {elements, -1, 0, "element"};
    ValueId loop;
    open_loops(&l->builder, LOOP_LANES, &shape, 1, &loop);
    return affine_of(l->arena, loop);
}

static void zero_memory(Lowering *l, const Store *store) {
    Type type = graph_node(l, store->node)->type;
    Affine element = open_memory(l, type_elements(l->module, type));
    emit_store(&l->builder, store->buffer, element, emit_constant(&l->builder, type.dtype, 0));
    close_loops(&l->builder);
}

/* For every position of the index, in order: the row that it names takes in the value. */
static void add_rows(Lowering *l, const Store *store) {
    const Group *group = l->group;
    const Node *node = graph_node(l, store->node);
    AxisId to = node->attr.to[0], kept[MAX_AXES];
    int kept_count = 0;
    for (int i = 0; i < group->row_count; i++)
        if (group->rows[i] != to)
            kept[kept_count++] = group->rows[i];
    Columns columns = columns_of(l, kept, kept_count, SCATTER_BLOCK);
    LoopShape block = block_shape(&columns);
    bool nest = open_nest(l, LOOP_PARALLEL, columns.outer, columns.outer_count, &block, 1,
                          &columns.block_loop);
    bool walk = open_nest(l, LOOP_SERIAL, group->inner, group->inner_count, NULL, 0, NULL);
    open_columns(l, &columns);
    ValueId index = value_here(l, node->inputs[0]);
    Affine row = dynamic_position(l, node->inputs[0], index, to);
    Affine place = affine_constant(store->view.base);
    for (int i = 0; i < store->view.count; i++) {
        AxisId axis = store->view.axes[i];
        Affine at = axis == to ? row : position_of(l, axis);
        place = affine_plus(l, place, at, store->view.strides[i]);
    }
    ValueId value = value_here(l, node->inputs[1]);
    l->builder.kernel->buffers.data[store->buffer].writes = true; /* its loads stay here */
    ValueId old = emit_load(&l->builder, store->buffer, place, NULL);
    emit_store(&l->builder, store->buffer, place,
               emit_map2(l, OP_ADD, node->type.dtype, old, value));
    close_loops(&l->builder);
    close_nest(l, walk);
    close_nest(l, nest);
}

/* A result that stands in memory by itself goes to the other places from there. */
static void copy_memory(Lowering *l, const Store *from, const Store *to) {
    Type type = graph_node(l, to->node)->type;
    Affine element = open_memory(l, type_elements(l->module, type));
    ValueId value = emit_load(&l->builder, from->buffer, element, NULL);
    if (to->add)
        value = emit_map2(l, OP_ADD, type.dtype,
                          emit_load(&l->builder, to->buffer, element, NULL), value);
    emit_store(&l->builder, to->buffer, element, value);
    close_loops(&l->builder);
}

/* Additions to states are made row by row, unless the result stands by itself before. */
static void lower_scatter(Lowering *l) {
    INTERNAL_CHECK(l->stores.count >= 1);
    const Store *made = NULL;
    for (int64_t i = 0; i < l->stores.count; i++) {
        const Store *store = &l->stores.data[i];
        if (made) {
            copy_memory(l, made, store);
            continue;
        }
        if (!store->add) {
            zero_memory(l, store);
            made = store;
        }
        add_rows(l, store);
    }
}

/* ---- groups -------------------------------------------------------------------------- */

GroupIndex group_index(const Function *function, Arena *arena) {
    int64_t groups = function->groups.count;
    GroupIndex index;
    index.member_begin = arena_alloc_array(arena, (size_t)groups + 2, sizeof(int32_t));
    index.write_begin = arena_alloc_array(arena, (size_t)groups + 2, sizeof(int32_t));
    index.members = arena_alloc_array(arena, (size_t)function->nodes.count, sizeof(NodeId));
    index.writes = arena_alloc_array(arena, (size_t)function->writes.count, sizeof(int32_t));
    int32_t *write_group =
        arena_alloc_array(arena, (size_t)function->writes.count, sizeof(int32_t));
    for (NodeId id = 0; id < function->nodes.count; id++)
        if (node_at(function, id)->placement.group >= 0)
            index.member_begin[node_at(function, id)->placement.group + 2]++;
    for (int32_t i = 0; i < function->writes.count; i++) {
        const Write *write = &function->writes.data[i];
        write_group[i] = -1;
        if (write->direct)
            write_group[i] =
                node_at(function, write_source(function, write->value))->placement.group;
        if (write_group[i] >= 0)
            index.write_begin[write_group[i] + 2]++;
    }
    for (int64_t g = 2; g < groups + 2; g++) {
        index.member_begin[g] += index.member_begin[g - 1];
        index.write_begin[g] += index.write_begin[g - 1];
    }
    /* begin[g + 1] is where the next member of g goes, and in the end where g ends. */
    for (NodeId id = 0; id < function->nodes.count; id++)
        if (node_at(function, id)->placement.group >= 0)
            index.members[index.member_begin[node_at(function, id)->placement.group + 1]++] =
                id;
    for (int32_t i = 0; i < function->writes.count; i++)
        if (write_group[i] >= 0)
            index.writes[index.write_begin[write_group[i] + 1]++] = i;
    return index;
}

static void lower_kind(Lowering *l) {
    switch (l->group->kind) {
    case GROUP_FLAT:
        lower_flat(l);
        return;
    case GROUP_ROW:
        lower_rows(l);
        return;
    case GROUP_COLUMN:
        lower_columns(l);
        return;
    case GROUP_SCATTER:
        lower_scatter(l);
        return;
    case GROUP_PRODUCT:
        break;
    }
    internal_error("a product is no kernel");
}

/* Whether a lanes loop computes digits: then its loads are not from neighbours in memory. */
static bool has_digits_in_lanes(const Kernel *kernel, const Region *region, bool in_lanes) {
    for (int64_t i = 0; i < region->count; i++) {
        const Instruction *instruction = &kernel->instructions.data[region->data[i]];
        const Loop *loop = instruction->loop;
        if ((in_lanes && instruction->kind == KERNEL_DIGIT) ||
            (loop && has_digits_in_lanes(kernel, &loop->body, loop->kind == LOOP_LANES)))
            return true;
    }
    return false;
}

static void finish_kernel(Lowering *l) {
    Kernel *kernel = l->builder.kernel;
    kernel_builder_free(&l->builder);
    kernel->scalar_count = (int)l->scalars.count;
    kernel_simplify(kernel);
    const char *fault = kernel_verify(kernel);
    if (fault)
        internal_error("group %d of %s: %s\n%s", l->group_number, l->function->name, fault,
                       kernel_text(kernel));
}

static LoweredGroup lowered_group(const Lowering *l) {
    LoweredGroup lowered = {.kernel = l->builder.kernel,
                            .operand_count = (int)l->operands.count,
                            .scalar_count = (int)l->scalars.count};
    lowered.operands =
        arena_alloc_array(l->arena, (size_t)l->operands.count, sizeof *lowered.operands);
    lowered.scalars = arena_alloc_array(l->arena, (size_t)l->scalars.count, sizeof(NodeId));
    for (int i = 0; i < lowered.operand_count; i++) {
        const Buffer *buffer = &lowered.kernel->buffers.data[l->operand_buffers.data[i]];
        lowered.operands[i] = l->operands.data[i];
        lowered.operands[i].reads = buffer->reads;
        lowered.operands[i].writes = buffer->writes;
    }
    for (int i = 0; i < lowered.scalar_count; i++)
        lowered.scalars[i] = l->scalars.data[i];
    return lowered;
}

static void free_lowering(Lowering *l) {
    array_free(&l->operands);
    array_free(&l->operand_buffers);
    array_free(&l->scalars);
    array_free(&l->positions);
    array_free(&l->stores);
    array_free(&l->reductions);
    array_free(&l->pending);
}

static LoweredGroup lower(const Function *function, const GroupIndex *index, int group,
                          int64_t local_bytes, bool linear_columns, Arena *arena) {
    Lowering l = {.function = function,
                  .module = function->module,
                  .group = &function->groups.data[group],
                  .group_number = group,
                  .arena = arena,
                  .sweep = -1,
                  .local_bytes = local_bytes,
                  .linear_columns = linear_columns};
    l.info_pages = arena_alloc_array(arena, (size_t)(function->nodes.count / INFO_PAGE + 1),
                                     sizeof *l.info_pages);
    l.inner = axes_elements(l.module, l.group->inner, l.group->inner_count);
    l.rows = axes_elements(l.module, l.group->rows, l.group->row_count);
    l.builder = kernel_builder(kernel_new(arena));
    collect(&l, index);
    lower_kind(&l);
    finish_kernel(&l);
    LoweredGroup lowered = lowered_group(&l);
    free_lowering(&l);
    return lowered;
}

/* Columns and scattered rows are first taken as one axis, however many there are. */
LoweredGroup lower_group(const Function *function, const GroupIndex *index, int group,
                         int64_t local_bytes, Arena *arena) {
    LoweredGroup lowered = lower(function, index, group, local_bytes, true, arena);
    GroupKind kind = function->groups.data[group].kind;
    if ((kind == GROUP_COLUMN || kind == GROUP_SCATTER) &&
        has_digits_in_lanes(lowered.kernel, &lowered.kernel->body, false)) {
        kernel_free(lowered.kernel);
        lowered = lower(function, index, group, local_bytes, false, arena);
    }
    return lowered;
}

int64_t scratch_aligned(int64_t bytes) {
    return (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
}

int64_t group_scratch_bytes(const Function *function, const GroupIndex *index, int group) {
    const Group *g = &function->groups.data[group];
    int64_t rows = axes_elements(function->module, g->rows, g->row_count);
    int64_t inner = axes_elements(function->module, g->inner, g->inner_count);
    Chunks chunks = chunks_of(inner);
    int64_t elements[2] = {0};
    if (g->kind == GROUP_ROW && is_cut(rows, inner)) {
        elements[0] = rows * blocks_of(inner, REDUCE_BLOCK);
        elements[1] = rows;
    } else if (g->kind == GROUP_COLUMN && is_tall(rows, &chunks)) {
        elements[0] = rows * chunks.count;
    }
    int64_t bytes = 0;
    for (int32_t i = index->member_begin[group]; i < index->member_begin[group + 1]; i++) {
        const Node *node = node_at(function, index->members[i]);
        if (node->op == OP_SUM || node->op == OP_MAX)
            for (int k = 0; k < 2; k++)
                bytes += scratch_aligned(elements[k] * dtype_bytes(node->type.dtype));
    }
    return bytes;
}
