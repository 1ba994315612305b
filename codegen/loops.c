/* codegen/loops.c: makes a lowered kernel's loops few and long.
 *
 * Lowering makes one loop an axis, and a linear loop (with digits) over several reduced axes:
 *
 *     parallel b < 8 { parallel s < 256 { lanes d < 512 { load x[131072 b + 512 s + d] … } } }
 *
 * Where every address goes through two neighbouring loops as through one, they become one, so
 * that an element-wise kernel is one loop over memory however many axes it has; that one is
 * then cut in parallel tiles:
 *
 *     parallel t < 128 { lanes i < 8192 { load x[8192 t + i] … } }
 */
#include "codegen/codegen.h"

enum { TILE_LANES = 8192 };      /* iterations of a tile: 32 KiB of f32 */
enum { PARALLEL_ENOUGH = 1024 }; /* parallel iterations that need no more tiles */

static Instruction *at(const Kernel *kernel, ValueId id) {
    return &kernel->instructions.data[id];
}

/* ---- values that nothing uses -------------------------------------------------------- */

static bool has_effect(const Kernel *kernel, const Instruction *instruction) {
    if (instruction->kind != KERNEL_LOOP)
        return instruction->kind == KERNEL_STORE || instruction->kind == KERNEL_LOCAL;
    for (int64_t i = 0; i < instruction->loop->body.count; i++)
        if (has_effect(kernel, at(kernel, instruction->loop->body.data[i])))
            return true;
    return false;
}

/* Marks what the instructions of a region use, from the last to the first; a loop is needed
 * when something in it is. */
static bool mark_used(const Kernel *kernel, const Region *region, bool *used) {
    bool needed = false;
    for (int64_t i = region->count - 1; i >= 0; i--) {
        ValueId id = region->data[i];
        const Instruction *instruction = at(kernel, id);
        if (instruction->kind == KERNEL_LOOP) {
            if (mark_used(kernel, &instruction->loop->body, used) ||
                has_effect(kernel, instruction))
                used[id] = true;
            if (used[id] && instruction->loop->tile_of >= 0)
                used[instruction->loop->tile_of] = true;
        }
        if (!used[id] && !has_effect(kernel, instruction))
            continue;
        needed = true;
        for (int k = 0; k < instruction->input_count; k++)
            if (instruction->inputs[k] >= 0)
                used[instruction->inputs[k]] = true;
        affine_mark(&instruction->at, used);
        affine_mark(&instruction->sample, used);
    }
    return needed;
}

static void sweep_unused(Kernel *kernel, Region *region, const bool *used) {
    int64_t kept = 0;
    for (int64_t i = 0; i < region->count; i++) {
        Instruction *instruction = at(kernel, region->data[i]);
        if (!used[region->data[i]] && !has_effect(kernel, instruction))
            continue;
        region->data[kept++] = region->data[i];
        if (instruction->loop)
            sweep_unused(kernel, &instruction->loop->body, used);
    }
    region->count = kept;
}

/* Afterwards `used` tells which instructions are in the kernel. */
static void drop_unused(Kernel *kernel, bool *used) {
    memset(used, 0, (size_t)kernel->instructions.count * sizeof *used);
    mark_used(kernel, &kernel->body, used);
    sweep_unused(kernel, &kernel->body, used);
    for (ValueId id = 0; id < kernel->instructions.count; id++)
        used[id] |= at(kernel, id)->kind == KERNEL_STORE;
}

/* ---- addresses ----------------------------------------------------------------------- */

/* Calls `visit` for every address of the instructions that are in the kernel. */
typedef void VisitAffine(Kernel *kernel, Affine *affine, void *context);
static void each_affine(Kernel *kernel, const bool *used, VisitAffine *visit, void *context) {
    for (ValueId id = 0; id < kernel->instructions.count; id++)
        if (used[id]) {
            visit(kernel, &at(kernel, id)->at, context);
            visit(kernel, &at(kernel, id)->sample, context);
        }
}

/* Instructions share arrays of terms: an address changes by getting another one. */
static void drop_term(Kernel *kernel, Affine *affine, ValueId value) {
    Term *terms = arena_alloc_array(kernel->arena, (size_t)affine->term_count, sizeof *terms);
    int kept = 0;
    for (int i = 0; i < affine->term_count; i++)
        if (affine->terms[i].value != value)
            terms[kept++] = affine->terms[i];
    affine->terms = terms;
    affine->term_count = kept;
}

/* `value` must not be in the address yet. */
static void add_term(Kernel *kernel, Affine *affine, ValueId value, int64_t stride) {
    Term *terms =
        arena_alloc_array(kernel->arena, (size_t)affine->term_count + 1, sizeof *terms);
    int place = 0;
    for (; place < affine->term_count && affine->terms[place].value < value; place++)
        terms[place] = affine->terms[place];
    terms[place] = (Term){value, stride};
    for (int i = place; i < affine->term_count; i++)
        terms[i + 1] = affine->terms[i];
    affine->terms = terms;
    affine->term_count++;
}

/* ---- digits -------------------------------------------------------------------------- */

static bool is_digit_of(const Instruction *value, const Affine *position) {
    return value->kind == KERNEL_DIGIT && affine_equal(&value->at, position);
}

/* The stride s such that the address goes through the digits of a position as s * position; 0:
 * no such. */
static int64_t linear_stride(const Kernel *kernel, const Affine *affine,
                             const Instruction *first) {
    int64_t stride = 0, covered = 1;
    for (int i = 0; i < affine->term_count; i++) {
        const Instruction *digit = at(kernel, affine->terms[i].value);
        if (!is_digit_of(digit, &first->at))
            continue;
        int64_t own = affine->terms[i].stride / digit->divisor;
        if (affine->terms[i].stride != own * digit->divisor || (stride && own != stride))
            return 0;
        stride = own;
        covered += (digit->modulus - 1) * digit->divisor;
    }
    return covered == first->integer ? stride : 0;
}

static void fold_digits(Kernel *kernel, Affine *affine, void *unused) {
    (void)unused;
    for (int i = 0; i < affine->term_count; i++) {
        const Instruction *digit = at(kernel, affine->terms[i].value);
        int64_t stride = digit->kind == KERNEL_DIGIT ? linear_stride(kernel, affine, digit) : 0;
        if (!stride)
            continue;
        for (int j = affine->term_count - 1; j >= 0; j--)
            if (is_digit_of(at(kernel, affine->terms[j].value), &digit->at))
                drop_term(kernel, affine, affine->terms[j].value);
        for (int j = 0; j < digit->at.term_count; j++)
            add_term(kernel, affine, digit->at.terms[j].value,
                     stride * digit->at.terms[j].stride);
        affine->base += stride * digit->at.base;
        i = -1; /* the address has changed */
    }
}

/* ---- merging ------------------------------------------------------------------------- */

typedef struct Pair {
    ValueId outer, inner;
    int64_t extent; /* of the inner */
    bool one;       /* every address goes through both as through one */
} Pair;

static void check_pair(Kernel *kernel, Affine *affine, void *context) {
    (void)kernel;
    Pair *pair = context;
    pair->one &=
        affine_stride(affine, pair->outer) == pair->extent * affine_stride(affine, pair->inner);
}

static void forget_outer(Kernel *kernel, Affine *affine, void *context) {
    drop_term(kernel, affine, ((Pair *)context)->outer);
}

static bool is_tiled(const Kernel *kernel, const bool *used, ValueId loop) {
    for (ValueId id = 0; id < kernel->instructions.count; id++)
        if (used[id] && at(kernel, id)->loop && at(kernel, id)->loop->tile_of == loop)
            return true;
    return false;
}

static bool holds(const Kernel *kernel, const Loop *loop, InstructionKind kind) {
    for (int64_t i = 0; i < loop->body.count; i++)
        if (at(kernel, loop->body.data[i])->kind == kind)
            return true;
    return false;
}

/* Whether the loop `outer` and the only thing in it may be one loop. */
static bool mergeable(Kernel *kernel, const bool *used, ValueId outer_id) {
    const Loop *outer = at(kernel, outer_id)->loop;
    if (outer->body.count != 1 || !at(kernel, outer->body.data[0])->loop)
        return false;
    ValueId inner_id = outer->body.data[0];
    const Loop *inner = at(kernel, inner_id)->loop;
    if (outer->tile_of >= 0 || inner->tile_of >= 0 || holds(kernel, inner, KERNEL_REDUCE) ||
        (outer->kind != inner->kind &&
         !(outer->kind == LOOP_PARALLEL && inner->kind == LOOP_LANES)) ||
        is_tiled(kernel, used, outer_id) || is_tiled(kernel, used, inner_id))
        return false;
    Pair pair = {outer_id, inner_id, inner->extent, true};
    each_affine(kernel, used, check_pair, &pair);
    return pair.one;
}

/* Replaces a loop in its region by the one in it, innermost pairs first. */
static void merge_loops(Kernel *kernel, bool *used, Region *region) {
    for (int64_t i = 0; i < region->count; i++) {
        ValueId id = region->data[i];
        Loop *outer = at(kernel, id)->loop;
        if (!outer)
            continue;
        merge_loops(kernel, used, &outer->body);
        if (!mergeable(kernel, used, id))
            continue;
        ValueId inner_id = outer->body.data[0];
        Pair pair = {.outer = id, .inner = inner_id};
        each_affine(kernel, used, forget_outer, &pair);
        Instruction *inner = at(kernel, inner_id);
        inner->loop->extent *= outer->extent;
        if (at(kernel, id)->name && inner->name)
            inner->name =
                arena_printf(kernel->arena, "%s_%s", at(kernel, id)->name, inner->name);
        used[id] = false;
        region->data[i] = inner_id;
    }
}

/* ---- tiling -------------------------------------------------------------------------- */

typedef struct Tiling {
    ValueId tile, lanes;
} Tiling;

static void tile_affine(Kernel *kernel, Affine *affine, void *context) {
    const Tiling *tiling = context;
    int64_t stride = affine_stride(affine, tiling->lanes);
    if (stride)
        add_term(kernel, affine, tiling->tile, stride * TILE_LANES);
}

/* Puts a parallel loop over tiles around what is in `region` from `place` on (a lanes loop,
 * last, and values that it uses). */
static void tile_lanes(Kernel *kernel, bool **used, Region *region, int64_t place) {
    ValueId lanes_id = region->data[region->count - 1], tile_id;
    Loop *tile = arena_alloc(kernel->arena, sizeof *tile);
    Loop *lanes = at(kernel, lanes_id)->loop;
    *tile = (Loop){.kind = LOOP_PARALLEL,
                   .extent = (lanes->extent + TILE_LANES - 1) / TILE_LANES,
                   .tile_of = -1};
    tile_id = (ValueId)kernel->instructions.count;
    array_push(
        &kernel->instructions,
        ((Instruction){.kind = KERNEL_LOOP, .dtype = TYPE_I32, .loop = tile, .name = "tile"}));
    *used = checked_realloc(*used, (size_t)kernel->instructions.count * sizeof **used);
    (*used)[tile_id] = true;
    Tiling tiling = {tile_id, lanes_id};
    each_affine(kernel, *used, tile_affine, &tiling);
    lanes->total = lanes->extent;
    lanes->extent = TILE_LANES;
    lanes->tile_of = tile_id;
    for (int64_t i = place; i < region->count; i++)
        array_push(&tile->body, region->data[i]);
    region->count = place;
    array_push(region, tile_id);
}

static bool is_long(const Kernel *kernel, ValueId id) {
    const Loop *loop = at(kernel, id)->loop;
    return loop && loop->kind == LOOP_LANES && loop->tile_of < 0 &&
           loop->extent >= INT64_C(2) * TILE_LANES && !holds(kernel, loop, KERNEL_REDUCE);
}

/* Cuts a long lanes loop that is all that a parallel nest of few iterations does. */
static void tile_nest(Kernel *kernel, bool **used, Loop *nest, int64_t iterations) {
    iterations *= nest->extent;
    Region *body = &nest->body;
    if (body->count == 1 && at(kernel, body->data[0])->loop &&
        at(kernel, body->data[0])->loop->kind == LOOP_PARALLEL) {
        tile_nest(kernel, used, at(kernel, body->data[0])->loop, iterations);
        return;
    }
    for (int64_t i = 0; i < body->count; i++)
        if (i < body->count - 1 && has_effect(kernel, at(kernel, body->data[i])))
            return;
    ValueId last = body->count ? body->data[body->count - 1] : -1;
    if (last >= 0 && is_long(kernel, last) && iterations < PARALLEL_ENOUGH)
        tile_lanes(kernel, used, body, 0);
}

static void tile_region(Kernel *kernel, bool **used) {
    Region whole = kernel->body;
    kernel->body = (Region){0};
    for (int64_t i = 0; i < whole.count; i++) {
        array_push(&kernel->body, whole.data[i]);
        Loop *loop = at(kernel, whole.data[i])->loop;
        if (loop && loop->kind == LOOP_PARALLEL)
            tile_nest(kernel, used, loop, 1);
        else if (is_long(kernel, whole.data[i]))
            tile_lanes(kernel, used, &kernel->body, kernel->body.count - 1);
    }
    array_free(&whole);
}

void kernel_simplify(Kernel *kernel) {
    bool *used = checked_alloc((size_t)kernel->instructions.count * sizeof *used);
    drop_unused(kernel, used);
    each_affine(kernel, used, fold_digits, NULL);
    drop_unused(kernel, used);
    merge_loops(kernel, used, &kernel->body);
    tile_region(kernel, &used);
    free(used);
    kernel->text = NULL;
}
