/* passes/bounds.c: what no order of execution can do without.
 *
 * While a group runs, a value is live in every order when the group that computes it must run
 * before and some group that reads it must run after, or is the group at hand.  The largest sum
 * of such values over all groups is a lower bound of every arena, whatever the schedule.
 *
 * Sets of groups are rows of bits, 64 to a word: of n groups, n² / 32 bytes. */
#include "passes/passes.h"

enum {
    MAX_BOUNDED = 20000
}; /* more groups than that: by their own operands and results alone */

typedef struct Bounds {
    const Function *function;
    GroupGraph graph;
    int64_t groups, words;
    uint64_t *above, *below; /* by group: those that must run before it; after it */
    int64_t *before,
        *after; /* by group: bytes live in any order, just before and after it runs */
} Bounds;

static uint64_t *row_of(const Bounds *b, uint64_t *sets, int64_t group) {
    return sets + group * b->words;
}

static void set_bit(uint64_t *set, int64_t group) {
    set[group / 64] |= UINT64_C(1) << (group % 64);
}

static void unite(uint64_t *into, const uint64_t *from, int64_t words) {
    for (int64_t i = 0; i < words; i++)
        into[i] |= from[i];
}

/* Groups are in execution order: whoever must run before has the smaller number. */
static void find_order(Bounds *b) {
    const GroupGraph *graph = &b->graph;
    for (int64_t g = 0; g < b->groups; g++)
        for (int64_t i = graph->before_start[g]; i < graph->before_start[g + 1]; i++) {
            unite(row_of(b, b->above, g), row_of(b, b->above, graph->before[i]), b->words);
            set_bit(row_of(b, b->above, g), graph->before[i]);
        }
    for (int64_t g = b->groups - 1; g >= 0; g--)
        for (int64_t i = graph->before_start[g]; i < graph->before_start[g + 1]; i++) {
            unite(row_of(b, b->below, graph->before[i]), row_of(b, b->below, g), b->words);
            set_bit(row_of(b, b->below, graph->before[i]), g);
        }
}

static void add_to(int64_t *bytes, const uint64_t *set, int64_t words, int64_t added) {
    for (int64_t w = 0; w < words; w++)
        for (uint64_t bits = set[w]; bits; bits &= bits - 1)
            bytes[64 * w + __builtin_ctzll(bits)] += added;
}

/* A value of group p that `readers` read: live before g when p is above g, and g is a reader or
 * above one; live after g when p is g or above it, and g is above a reader. */
static void add_value(Bounds *b, NodeId value, const int32_t *readers, int64_t count,
                      bool to_the_end, uint64_t *scratch) {
    uint64_t *earlier = scratch, *set = scratch + b->words;
    int64_t bytes = slot_bytes(b->function, value);
    int32_t maker = node_at(b->function, value)->placement.group;
    memset(earlier, to_the_end ? 0xff : 0, (size_t)b->words * sizeof *earlier);
    for (int64_t i = 0; i < count && !to_the_end && b->words; i++)
        unite(earlier, row_of(b, b->above, readers[i]), b->words);
    for (int64_t w = 0; w < b->words; w++)
        set[w] = earlier[w] & row_of(b, b->below, maker)[w];
    add_to(b->before, set, b->words, bytes);
    add_to(b->after, set, b->words, bytes);
    b->after[maker] += bytes;
    for (int64_t i = 0; i < count; i++)
        if (!b->words || !(set[readers[i] / 64] >> (readers[i] % 64) & 1))
            b->before[readers[i]] += bytes;
}

/* Bytes of the group's results that can never lie where an operand lies. */
static int64_t bytes_of_new_places(const Bounds *b, int32_t group) {
    int64_t bytes = 0;
    for (int64_t i = b->graph.store_start[group]; i < b->graph.store_start[group + 1]; i++) {
        NodeId value = b->graph.stores[i];
        bool in_place = false;
        for (int64_t k = b->graph.read_start[group]; k < b->graph.read_start[group + 1]; k++)
            in_place |= may_take_place_of(b->function, &b->graph, value, b->graph.reads[k]);
        bytes += in_place ? 0 : slot_bytes(b->function, value);
    }
    return bytes;
}

static int64_t largest(const Bounds *b) {
    int64_t most = 0;
    for (int32_t g = 0; g < b->groups; g++) {
        int64_t during = b->before[g] + bytes_of_new_places(b, g);
        int64_t bytes = during > b->after[g] ? during : b->after[g];
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* By value: is it copied to a state at the end? */
static bool *copied_values(const Function *function, Arena *arena) {
    bool *copied = arena_alloc(arena, (size_t)function->nodes.count);
    for (int64_t i = 0; i < function->writes.count; i++) {
        NodeId source = write_source(function, function->writes.data[i].value);
        if (source >= 0 && !function->writes.data[i].direct)
            copied[source] = true;
    }
    return copied;
}

/* Calls add_value for all stored values, with their readers. */
static void add_values(Bounds *b, Arena *arena) {
    const GroupGraph *graph = &b->graph;
    size_t nodes = (size_t)b->function->nodes.count;
    int64_t *start = arena_alloc_array(arena, nodes + 2, sizeof *start);
    int64_t reads = graph->read_start[b->groups];
    int32_t *readers = arena_alloc_array(arena, (size_t)reads, sizeof *readers);
    uint64_t *scratch = arena_alloc_array(arena, 2 * (size_t)b->words, sizeof *scratch);
    const bool *copied = copied_values(b->function, arena);
    for (int64_t i = 0; i < reads; i++)
        start[graph->reads[i] + 2]++;
    for (size_t id = 0; id < nodes; id++)
        start[id + 2] += start[id + 1];
    for (int32_t g = 0; g < b->groups; g++)
        for (int64_t i = graph->read_start[g]; i < graph->read_start[g + 1]; i++)
            readers[start[graph->reads[i] + 1]++] = g;
    for (NodeId id = 0; id < b->function->nodes.count; id++)
        if (node_at(b->function, id)->placement.stored)
            add_value(b, id, readers + start[id], start[id + 1] - start[id], copied[id],
                      scratch);
}

int64_t order_bound(const Function *function) {
    Arena *arena = arena_new();
    Bounds b = {.function = function,
                .graph = group_graph(function, arena),
                .groups = function->groups.count};
    size_t sets = b.groups > MAX_BOUNDED ? 0 : (size_t)b.groups;
    b.words = ((int64_t)sets + 63) / 64;
    b.above = arena_alloc_array(arena, sets * (size_t)b.words, sizeof *b.above);
    b.below = arena_alloc_array(arena, sets * (size_t)b.words, sizeof *b.below);
    b.before = arena_alloc_array(arena, (size_t)b.words * 64 + (size_t)b.groups, 8);
    b.after = arena_alloc_array(arena, (size_t)b.words * 64 + (size_t)b.groups, 8);
    if (sets)
        find_order(&b);
    add_values(&b, arena);
    int64_t bound = largest(&b);
    arena_free(arena);
    return bound;
}
