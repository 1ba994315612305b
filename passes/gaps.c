/* passes/gaps.c: memory of a placed arena that nothing lives in while a group runs.
 *
 * Values that live are kept ascending by offset while the groups go by.  A value that took the
 * place of an operand lives where that did, so two of them may overlap. */
#include "passes/passes.h"

struct ArenaGaps {
    int64_t value_count,
        next; /* of `values`, ascending by begin: the first that is not yet alive */
    ValueLife *values;
    int64_t live_count;
    const ValueLife **live; /* ascending by offset */
};

static int by_begin(const void *left, const void *right) {
    const ValueLife *a = left, *b = right;
    return a->begin != b->begin ? (a->begin > b->begin) - (a->begin < b->begin)
                                : a->node - b->node;
}

ArenaGaps *arena_gaps(const Function *function, Arena *arena) {
    ArenaGaps *gaps = arena_alloc(arena, sizeof *gaps);
    gaps->value_count = value_lives(function, arena, &gaps->values);
    gaps->live = arena_alloc_array(arena, (size_t)gaps->value_count, sizeof *gaps->live);
    if (gaps->value_count)
        qsort(gaps->values, (size_t)gaps->value_count, sizeof *gaps->values, by_begin);
    return gaps;
}

static void forget_dead(ArenaGaps *gaps, int32_t group) {
    int64_t kept = 0;
    for (int64_t i = 0; i < gaps->live_count; i++)
        if (gaps->live[i]->end >= group)
            gaps->live[kept++] = gaps->live[i];
    gaps->live_count = kept;
}

static void add_live(ArenaGaps *gaps, const ValueLife *value) {
    int64_t place = gaps->live_count++;
    for (; place > 0 && gaps->live[place - 1]->offset > value->offset; place--)
        gaps->live[place] = gaps->live[place - 1];
    gaps->live[place] = value;
}

static int64_t rounded_up(int64_t bytes, int64_t alignment) {
    return (bytes + alignment - 1) / alignment * alignment;
}

int64_t arena_gap(ArenaGaps *gaps, int32_t group, int64_t bytes, int64_t alignment) {
    forget_dead(gaps, group);
    while (gaps->next < gaps->value_count && gaps->values[gaps->next].begin <= group) {
        const ValueLife *value = &gaps->values[gaps->next++];
        if (value->end >= group)
            add_live(gaps, value);
    }
    int64_t place = 0;
    for (int64_t i = 0; i < gaps->live_count; i++) {
        const ValueLife *value = gaps->live[i];
        if (value->offset - place >= bytes)
            break;
        int64_t end = rounded_up(value->offset + value->bytes, alignment);
        place = end > place ? end : place;
    }
    return place;
}
