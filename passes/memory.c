/* passes/memory.c: a place in the arena for every stored value.
 *
 * needs   groups in execution order
 * gives   offsets, 64-byte aligned; the arena's size
 * reads   nothing of the plan (--no-reuse: every value has memory of its own)
 *
 * Lifetimes (lifetimes.c) make of values intervals of time with a size, which are packed
 * (packing.c). */
#include "passes/passes.h"

static int64_t place_apart(SlotList *slots) {
    int64_t size = 0;
    for (int64_t i = 0; i < slots->count; i++) {
        slots->data[i].offset = size;
        size += slots->data[i].bytes;
    }
    return size;
}

static int64_t largest_of(const Function *function, const int64_t *live) {
    int64_t peak = 0;
    for (int64_t g = 0; g <= function->groups.count; g++)
        peak = live[g] > peak ? live[g] : peak;
    return peak;
}

/* ---- the pass ----------------------------------------------------------------- */

static void place_function(Function *function, bool no_reuse) {
    Arena *arena = arena_new();
    Lifetimes l = find_lifetimes(function, !no_reuse, arena);
    int64_t lower_bound = largest_of(function, slot_timeline(&l, arena));
    function->arena_bytes = no_reuse
                                ? place_apart(&l.slots)
                                : pack_slots(&l.slots, function->groups.count, lower_bound);
    for (int64_t id = 0; id < function->nodes.count; id++)
        if (l.slot_of[id] >= 0)
            function->nodes.data[id].placement.offset = l.slots.data[l.slot_of[id]].offset;
    array_free(&l.slots);
    arena_free(arena);
}

/* Sizes are at most MAX_ELEMENTS each; together they must stay countable.  Else *largest is the
 * largest of them. */
static bool fits_in_address_space(const Function *function, const Node **largest) {
    int64_t total = 0, most = -1;
    bool fits = true;
    for (int64_t id = 0; id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        int64_t elements = type_elements(function->module, node->type);
        if (!node->placement.stored)
            continue;
        fits &= elements <= MAX_ELEMENTS / 8 &&
                !__builtin_add_overflow(total, 8 * elements + SLOT_ALIGNMENT, &total);
        if (elements > most) {
            most = elements;
            *largest = node;
        }
    }
    return fits;
}

bool pass_memory(PassContext *context) {
    for (int64_t i = 0; i < context->module->functions.count; i++) {
        Function *function = context->module->functions.data[i];
        const Node *largest = NULL;
        if (!fits_in_address_space(function, &largest)) {
            Arena *arena = arena_new();
            help(error_at(context->diagnostics, largest->span,
                          "the values of `%s` do not fit in an address space of 64 bits; the "
                          "largest is this, `%s` of %.3g elements",
                          function->name, type_text(context->module, largest->type, arena),
                          (double)type_elements(context->module, largest->type)),
                 "choose smaller sizes");
            arena_free(arena);
            return false;
        }
        place_function(function, context->no_reuse);
    }
    return true;
}

/* ---- the memory table --------------------------------------------------------- */

static int64_t add_or_stay(int64_t a, int64_t b) { /* at the largest number */
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

/* Bytes of the slab of one role: to the end of its last state. */
static int64_t slab_bytes(const Module *module, Role role) {
    int64_t numbers = 1, total = 0;
    for (int64_t i = 0; i < module->states.count; i++)
        if (module->states.data[i].role == role && module->states.data[i].number >= numbers)
            numbers = module->states.data[i].number + 1;
    int64_t *ends = checked_alloc((size_t)numbers * sizeof *ends);
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        if (state->role != role || state->flat)
            continue;
        int64_t *end = &ends[state->number];
        int64_t begin = state->offset >= 0 ? state->offset : *end;
        int64_t own_end = add_or_stay(begin, type_elements(module, state_type(state)));
        *end = own_end > *end ? own_end : *end;
    }
    for (int64_t i = 0; i < numbers; i++)
        total = add_or_stay(total, ends[i] > INT64_MAX / 4
                                       ? INT64_MAX
                                       : ends[i] * dtype_bytes(role_dtype(role)));
    free(ends);
    return total;
}

const Function *largest_function(const Module *module) {
    const Function *largest = NULL;
    for (int64_t i = 0; i < module->functions.count; i++)
        if (!largest || module->functions.data[i]->arena_bytes > largest->arena_bytes)
            largest = module->functions.data[i];
    return largest && largest->arena_bytes > 0 ? largest : NULL;
}

MemoryTable memory_table(const Module *module) {
    MemoryTable table = {.weights = slab_bytes(module, ROLE_WEIGHT),
                         .copies = slab_bytes(module, ROLE_COPY),
                         .gradients = slab_bytes(module, ROLE_GRADIENT),
                         .optimizer = slab_bytes(module, ROLE_MOMENT),
                         .tables =
                             slab_bytes(module, ROLE_TABLE) + slab_bytes(module, ROLE_METRIC)};
    const Function *function = largest_function(module);
    if (function) {
        Arena *arena = arena_new();
        ValueLife *lives;
        int64_t count = value_lives(function, arena, &lives);
        table.arena = function->arena_bytes;
        table.lower_bound = largest_of(function, live_bytes(function, arena));
        for (int64_t k = 0; k < count; k++)
            table.kept_activations += lives[k].kept ? lives[k].bytes : 0;
        arena_free(arena);
    }
    table.workspace = table.arena - table.kept_activations;
    const int64_t parts[] = {table.weights,   table.copies, table.gradients,
                             table.optimizer, table.tables, table.arena};
    for (int i = 0; i < COUNT_OF(parts); i++)
        table.peak = add_or_stay(table.peak, parts[i]);
    return table;
}
