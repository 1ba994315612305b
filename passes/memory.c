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

int slab_index(const SlabList *list, Role role, int number) {
    return role < ROLE_MOMENT    ? (int)role
           : role == ROLE_MOMENT ? ROLE_MOMENT + number
                                 : (int)role + list->moment_count - 1;
}

int64_t slab_bytes(const Slab *slab) {
    int64_t width = dtype_bytes(role_dtype(slab->role));
    return slab->elements > INT64_MAX / width ? INT64_MAX : slab->elements * width;
}

/* Makes room for elements [begin, end). */
static void extend_slab(Slab *slab, int64_t begin, int64_t end) {
    int64_t old_end = add_or_stay(slab->begin, slab->elements);
    if (slab->elements == 0 || begin < slab->begin)
        slab->begin = begin;
    slab->elements = (end > old_end ? end : old_end) - slab->begin;
}

SlabList module_slabs(const Module *module, bool with_windows, Arena *arena) {
    SlabList list = {0};
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        if (state->role == ROLE_MOMENT && state->number >= list.moment_count)
            list.moment_count = state->number + 1;
    }
    list.count = slab_index(&list, ROLE_METRIC, 0) + 1;
    list.data = arena_alloc_array(arena, (size_t)list.count, sizeof(Slab));
    for (Role role = ROLE_WEIGHT; role <= ROLE_METRIC; role++)
        for (int number = 0; number < (role == ROLE_MOMENT ? list.moment_count : 1); number++)
            list.data[slab_index(&list, role, number)] = (Slab){.role = role, .number = number};
    for (int64_t i = 0; i < module->states.count; i++) {
        const State *state = &module->states.data[i];
        Slab *slab = &list.data[slab_index(&list, state->role, state->number)];
        int64_t begin = state->offset >= 0 ? state->offset : slab->elements;
        if (with_windows || !state->flat)
            extend_slab(slab, begin,
                        add_or_stay(begin, type_elements(module, state_type(state))));
    }
    return list;
}

const Function *largest_function(const Module *module) {
    const Function *largest = NULL;
    for (int64_t i = 0; i < module->functions.count; i++)
        if (!largest || module->functions.data[i]->arena_bytes > largest->arena_bytes)
            largest = module->functions.data[i];
    return largest && largest->arena_bytes > 0 ? largest : NULL;
}

/* What the backward part finds in memory; `function` may be NULL: 0. */
static int64_t kept_bytes(const Function *function, Arena *arena) {
    ValueLife *lives;
    int64_t count = function ? value_lives(function, arena, &lives) : 0, kept = 0;
    for (int64_t k = 0; k < count; k++)
        kept += lives[k].kept ? lives[k].bytes : 0;
    return kept;
}

MemoryTable memory_table(const Module *module) {
    MemoryTable table = {0};
    int64_t *const rows[] = {
        [ROLE_WEIGHT] = &table.weights,     [ROLE_COPY] = &table.copies,
        [ROLE_GRADIENT] = &table.gradients, [ROLE_MOMENT] = &table.optimizer,
        [ROLE_TABLE] = &table.tables,       [ROLE_METRIC] = &table.tables};
    Arena *scratch = arena_new();
    SlabList slabs = module_slabs(module, false, scratch);
    for (int i = 0; i < slabs.count; i++) {
        int64_t *row = rows[slabs.data[i].role];
        *row = add_or_stay(*row, slab_bytes(&slabs.data[i]));
    }
    arena_free(scratch);
    const Function *largest = largest_function(module);
    if (largest) {
        Arena *arena = arena_new();
        table.arena = largest->arena_bytes;
        table.lower_bound = largest_of(largest, live_bytes(largest, arena));
        table.kept_activations = kept_bytes(module_find_function(module, "micro"), arena);
        arena_free(arena);
    }
    table.workspace = table.arena - table.kept_activations;
    const int64_t parts[] = {table.weights,   table.copies, table.gradients,
                             table.optimizer, table.tables, table.arena};
    for (int i = 0; i < COUNT_OF(parts); i++)
        table.peak = add_or_stay(table.peak, parts[i]);
    return table;
}
