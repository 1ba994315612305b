/* passes/mincut.c: the least cut of a directed network, by Dinic's method.
 *
 * Capacities are whole numbers, so the result is the same everywhere.  Paths are walked without
 * recursion: the depth of a block has no bound. */
#include "passes/passes.h"

enum { SOURCE, SINK, FIRST };

void closure_clear(CutNetwork *network, int64_t nodes) {
    network->edges.count = 0;
    network->first.count = 0;
    for (int64_t i = 0; i < nodes + FIRST; i++)
        array_push(&network->first, -1);
}

void closure_free(CutNetwork *network) {
    array_free(&network->edges);
    array_free(&network->first);
}

static void add_edge(CutNetwork *network, int64_t from, int64_t to, int64_t capacity) {
    CutEdge there = {(int32_t)to, network->first.data[from], capacity};
    network->first.data[from] = (int32_t)network->edges.count;
    array_push(&network->edges, there);
    CutEdge back = {(int32_t)from, network->first.data[to], 0};
    network->first.data[to] = (int32_t)network->edges.count;
    array_push(&network->edges, back);
}

void closure_cost(CutNetwork *network, int64_t node, int64_t cost) {
    add_edge(network, node + FIRST, SINK, cost);
}

void closure_gain(CutNetwork *network, int64_t node, int64_t gain) {
    add_edge(network, SOURCE, node + FIRST, gain);
}

void closure_requires(CutNetwork *network, int64_t node, int64_t other) {
    add_edge(network, node + FIRST, other + FIRST, CUT_ENDLESS);
}

/* Distances from the source through edges with capacity left; is the sink reached? */
static bool measure_distances(const CutNetwork *network, int32_t *distance, int32_t *queue) {
    for (int64_t i = 0; i < network->first.count; i++)
        distance[i] = -1;
    int64_t begin = 0, end = 0;
    distance[SOURCE] = 0;
    queue[end++] = SOURCE;
    while (begin < end) {
        int32_t node = queue[begin++];
        for (int32_t e = network->first.data[node]; e >= 0; e = network->edges.data[e].next) {
            const CutEdge *edge = &network->edges.data[e];
            if (edge->capacity == 0 || distance[edge->to] >= 0)
                continue;
            distance[edge->to] = distance[node] + 1;
            queue[end++] = edge->to;
        }
    }
    return distance[SINK] >= 0;
}

/* Sends what fits along the path of edges. */
static int64_t send_along(CutNetwork *network, const int32_t *path, int64_t length) {
    int64_t sent = CUT_ENDLESS;
    for (int64_t i = 0; i < length; i++)
        if (network->edges.data[path[i]].capacity < sent)
            sent = network->edges.data[path[i]].capacity;
    for (int64_t i = 0; i < length; i++) {
        network->edges.data[path[i]].capacity -= sent;
        network->edges.data[path[i] ^ 1].capacity += sent;
    }
    return sent;
}

/* The first edge of the path without capacity left. */
static int64_t first_full(const CutNetwork *network, const int32_t *path, int64_t length) {
    int64_t i = 0;
    while (i < length && network->edges.data[path[i]].capacity > 0)
        i++;
    return i;
}

/* Sends along shortest paths until none is left.  next[node]: the edge to try. */
static void fill_shortest(CutNetwork *network, int32_t *distance, int32_t *next,
                          int32_t *path) {
    int64_t length = 0;
    int32_t node = SOURCE;
    for (;;) {
        if (node == SINK) {
            send_along(network, path, length);
            length = first_full(network, path, length);
            node = network->edges.data[path[length] ^ 1].to;
        }
        int32_t e = next[node];
        while (e >= 0 && (network->edges.data[e].capacity == 0 ||
                          distance[network->edges.data[e].to] != distance[node] + 1))
            e = network->edges.data[e].next;
        next[node] = e;
        if (e >= 0) {
            path[length++] = e;
            node = network->edges.data[e].to;
            continue;
        }
        distance[node] = -1; /* a dead end */
        if (length == 0)
            return;
        node = network->edges.data[path[--length] ^ 1].to;
    }
}

void closure_solve(CutNetwork *network, bool *chosen) {
    size_t nodes = (size_t)network->first.count;
    int32_t *distance = checked_alloc(nodes * sizeof *distance);
    int32_t *next = checked_alloc(nodes * sizeof *next);
    int32_t *path = checked_alloc(nodes * sizeof *path);
    while (measure_distances(network, distance, path)) {
        memcpy(next, network->first.data, nodes * sizeof *next);
        fill_shortest(network, distance, next, path);
    }
    for (size_t i = FIRST; i < nodes; i++)
        chosen[i - FIRST] = distance[i] >= 0;
    free(distance);
    free(next);
    free(path);
}
