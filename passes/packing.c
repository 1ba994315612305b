/* passes/packing.c: offsets for slots, which are intervals of time with a size.
 *
 * They are packed one by one into the least gap that fits; the best of a few orders of packing
 * wins.  Long-lived ones first makes of kept activations the stack that they are. */
#include "passes/passes.h"

enum { PACKINGS_BELOW = 6000 }; /* more slots than that are packed once only */
enum { MAX_PACKED = 20000 };    /* those packings are quadratic; more are packed in time */
enum { MAX_GAPS = 1024 };

/* ---- packing ------------------------------------------------------------------ */

static int64_t duration(const ArenaSlot *slot) {
    return slot->end - slot->begin + 1;
}

static int compare_numbers(int64_t a, int64_t b) {
    return (a > b) - (a < b);
}

static int compare_begin(const ArenaSlot *a, const ArenaSlot *b) {
    if (a->begin != b->begin)
        return compare_numbers(a->begin, b->begin);
    return a < b ? -1 : 1; /* in one array */
}

static int by_size(const void *left, const void *right) {
    const ArenaSlot *a = *(ArenaSlot *const *)left, *b = *(ArenaSlot *const *)right;
    int order = compare_numbers(b->bytes, a->bytes);
    order = order ? order : compare_numbers(duration(b), duration(a));
    return order ? order : compare_begin(a, b);
}

static int by_duration(const void *left, const void *right) {
    const ArenaSlot *a = *(ArenaSlot *const *)left, *b = *(ArenaSlot *const *)right;
    int order = compare_numbers(duration(b), duration(a));
    order = order ? order : compare_numbers(b->bytes, a->bytes);
    return order ? order : compare_begin(a, b);
}

static int by_area(const void *left, const void *right) {
    const ArenaSlot *a = *(ArenaSlot *const *)left, *b = *(ArenaSlot *const *)right;
    double area_a = (double)a->bytes * (double)duration(a);
    double area_b = (double)b->bytes * (double)duration(b);
    int order = (area_b > area_a) - (area_b < area_a);
    return order ? order : compare_begin(a, b);
}

static bool live_together(const ArenaSlot *a, const ArenaSlot *b) {
    return a->begin <= b->end && b->begin <= a->end;
}

/* The least gap that fits among the placed ones, which ascend by offset. */
static int64_t find_gap(ArenaSlot *const *placed, int64_t count, const ArenaSlot *slot) {
    int64_t top = 0, best = -1, best_size = INT64_MAX;
    for (int64_t i = 0; i < count; i++) {
        if (!live_together(placed[i], slot))
            continue;
        int64_t gap = placed[i]->offset - top;
        if (gap >= slot->bytes && gap < best_size) {
            best = top;
            best_size = gap;
        }
        int64_t end = placed[i]->offset + placed[i]->bytes;
        top = end > top ? end : top;
    }
    return best >= 0 ? best : top;
}

/* Packs in the given order; the arena's size. */
static int64_t pack(SlotList *slots, int (*compare)(const void *, const void *)) {
    size_t count = (size_t)slots->count;
    ArenaSlot **order = checked_alloc(count * sizeof(ArenaSlot *));
    ArenaSlot **placed = checked_alloc(count * sizeof(ArenaSlot *));
    for (size_t i = 0; i < count; i++)
        order[i] = &slots->data[i];
    if (count)
        qsort(order, count, sizeof *order, compare);
    int64_t size = 0;
    for (int64_t i = 0; i < (int64_t)count; i++) {
        ArenaSlot *slot = order[i];
        slot->offset = find_gap(placed, i, slot);
        int64_t low = 0, high = i; /* the first placed one beyond its offset */
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (placed[middle]->offset <= slot->offset)
                low = middle + 1;
            else
                high = middle;
        }
        memmove(placed + low + 1, placed + low, (size_t)(i - low) * sizeof *placed);
        placed[low] = slot;
        int64_t end = slot->offset + slot->bytes;
        size = end > size ? end : size;
    }
    free(order);
    free(placed);
    return size;
}

/* ---- packing in the order of time --------------------------------------------- */

/* Free memory below the top, ascending by offset; neighbours are joined. */
typedef struct Gap {
    int64_t offset, bytes;
} Gap;
typedef struct FreeList {
    Gap gaps[MAX_GAPS + 1];
    int count;
    int64_t top;
} FreeList;

static void remove_gap(FreeList *list, int at) {
    list->count--;
    memmove(list->gaps + at, list->gaps + at + 1, (size_t)(list->count - at) * sizeof(Gap));
}

static int64_t take_memory(FreeList *list, int64_t bytes) {
    int best = -1;
    for (int i = 0; i < list->count; i++)
        if (list->gaps[i].bytes >= bytes &&
            (best < 0 || list->gaps[i].bytes < list->gaps[best].bytes))
            best = i;
    if (best < 0) {
        list->top += bytes;
        return list->top - bytes;
    }
    Gap *gap = &list->gaps[best];
    int64_t offset = gap->offset;
    gap->offset += bytes;
    gap->bytes -= bytes;
    if (gap->bytes == 0)
        remove_gap(list, best);
    return offset;
}

static void give_back(FreeList *list, int64_t offset, int64_t bytes) {
    int low = 0, high = list->count; /* the first gap beyond it */
    while (low < high) {
        int middle = (low + high) / 2;
        if (list->gaps[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    memmove(list->gaps + low + 1, list->gaps + low, (size_t)(list->count - low) * sizeof(Gap));
    list->gaps[low] = (Gap){offset, bytes};
    list->count++;
    for (int i = low; i >= low - 1 && i >= 0; i--)
        if (i + 1 < list->count &&
            list->gaps[i].offset + list->gaps[i].bytes == list->gaps[i + 1].offset) {
            list->gaps[i].bytes += list->gaps[i + 1].bytes;
            remove_gap(list, i + 1);
        }
    Gap *last = &list->gaps[list->count - 1];
    if (last->offset + last->bytes == list->top) {
        list->top = last->offset;
        list->count--;
    } else if (list->count > MAX_GAPS) {
        list->count--; /* never used again: the price of a bounded search */
    }
}

/* Gives every slot, as it comes to life, the least gap that fits: linear in their number.
 * They ascend by begin.  Those that end with a group are a list: first[group], other[…],
 * from 1. */
static int64_t pack_in_time(SlotList *slots, int64_t groups) {
    int64_t count = slots->count, size = 0, next = 0;
    int64_t *first = checked_alloc((size_t)(groups + 2) * sizeof *first);
    int64_t *other = checked_alloc((size_t)(count + 1) * sizeof *other);
    FreeList *list = checked_alloc(sizeof *list);
    for (int64_t i = 0; i < count; i++) {
        other[i] = first[slots->data[i].end];
        first[slots->data[i].end] = i + 1;
    }
    for (int64_t g = 0; g <= groups; g++) {
        for (; next < count && slots->data[next].begin == g; next++) {
            slots->data[next].offset = take_memory(list, slots->data[next].bytes);
            size = list->top > size ? list->top : size;
        }
        for (int64_t i = first[g]; i > 0; i = other[i - 1])
            give_back(list, slots->data[i - 1].offset, slots->data[i - 1].bytes);
    }
    free(first);
    free(other);
    free(list);
    return size;
}

/* Tries the orders of packing; leaves the offsets of the best. */
int64_t pack_slots(SlotList *slots, int64_t groups, int64_t lower_bound) {
    static int (*const orders[])(const void *, const void *) = {by_duration, by_area, by_size};
    if (slots->count > MAX_PACKED)
        return pack_in_time(slots, groups);
    int best = 0, last = 0;
    int64_t size = pack(slots, orders[0]);
    int tries = slots->count < PACKINGS_BELOW ? COUNT_OF(orders) : 1;
    for (int i = 1; i < tries && size > lower_bound; i++) {
        int64_t other = pack(slots, orders[i]);
        last = i;
        if (other < size) {
            size = other;
            best = i;
        }
    }
    return last == best ? size : pack(slots, orders[best]);
}
