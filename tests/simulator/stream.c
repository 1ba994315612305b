/* tests/simulator/stream.c: streams, events and graphs.  What is asked for is queued, and
 * worked off when somebody waits, or at any other time. */
#include "tests/emulator/emulator.h"
#include "tests/simulator/simulator.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Queue {
    Work *works;
    int begin, end, capacity;
} Queue;

struct CUstream_st {
    struct CUstream_st *next;
    Queue queue;
    CUgraph capturing;
    bool is_void; /* the capture */
};
struct CUevent_st {
    CUstream stream; /* of the last record; NULL */
    int pending;
    bool keeps_time, passed;
    double seconds; /* when it was passed last */
};
struct CUgraph_st {
    Queue queue;
};
struct CUgraphExec_st {
    Queue queue;
};

/* ---- queues --------------------------------------------------------------------------------- */

static void append(Queue *queue, const Work *work) {
    if (queue->begin == queue->end)
        queue->begin = queue->end = 0;
    if (queue->end == queue->capacity) {
        queue->capacity = queue->capacity ? 2 * queue->capacity : 64;
        queue->works = realloc(queue->works, (size_t)queue->capacity * sizeof *queue->works);
        if (!queue->works)
            abort();
    }
    queue->works[queue->end++] = *work;
}

static Queue copy_of(const Queue *queue) {
    Queue copy = {0};
    for (int i = queue->begin; i < queue->end; i++)
        append(&copy, &queue->works[i]);
    return copy;
}

void uses(Work *work, CUdeviceptr address) {
    if (work->address_count == (int)(sizeof work->addresses / sizeof *work->addresses))
        fault("%s uses too many addresses for the simulator", work->name);
    work->addresses[work->address_count] = address;
    work->allocations[work->address_count++] = allocation_of(address);
}

static void run_work(Work *work) {
    for (int i = 0; i < work->address_count && !is_broken(); i++)
        if (!work->allocations[i] || work->allocations[i] != allocation_of(work->addresses[i]))
            fault("%s: stale pointer: %#llx is not what it was when this was asked for",
                  work->name, work->addresses[i]);
    if (!is_broken())
        work->run(work);
    if (work->release)
        work->release(work);
}

static CUstream streams;

static void run_next(CUstream stream) {
    Work work = stream->queue.works[stream->queue.begin++];
    run_work(&work);
}

void work_off(CUstream stream) {
    while (stream->queue.begin < stream->queue.end)
        run_next(stream);
}

void work_off_all(void) {
    for (CUstream stream = streams; stream; stream = stream->next)
        work_off(stream);
}

bool is_capturing(CUstream stream) {
    return stream->capturing;
}

static bool has_replayed;

Phase phase(void) {
    for (CUstream stream = streams; stream; stream = stream->next)
        if (stream->capturing)
            return PHASE_RECORD;
    return has_replayed ? PHASE_REPLAY : PHASE_FIRST;
}

bool void_capture(void) {
    bool any = false;
    for (CUstream stream = streams; stream; stream = stream->next)
        if (stream->capturing)
            stream->is_void = any = true;
    return any;
}

CUresult enqueue(CUstream stream, const Work *work) {
    if (!stream)
        fault("%s goes into the null stream", work->name);
    if (stream->capturing) {
        append(&stream->capturing->queue, work);
        return CUDA_SUCCESS;
    }
    append(&stream->queue, work);
    while (stream->queue.begin < stream->queue.end && random_bits() % 4 == 0)
        run_next(stream);
    return CUDA_SUCCESS;
}

/* ---- streams and events --------------------------------------------------------------------- */

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    CALL(cuStreamCreate, CUDA_ERROR_ILLEGAL_ADDRESS);
    if (flags != CU_STREAM_NON_BLOCKING)
        fault("a stream that waits for the null stream");
    *stream = calloc(1, sizeof **stream);
    (*stream)->next = streams;
    streams = *stream;
    count_object(OBJECT_STREAM, 1);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream stream) {
    work_off(stream);
    CUstream *place = &streams;
    while (*place != stream)
        place = &(*place)->next;
    *place = stream->next;
    free(stream->queue.works);
    if (stream->capturing) { /* nobody gets the graph, and it stays among the live objects */
        free(stream->capturing->queue.works);
        free(stream->capturing);
    }
    free(stream);
    count_object(OBJECT_STREAM, -1);
    CALL(cuStreamDestroy_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
    CALL(cuStreamSynchronize, CUDA_ERROR_ILLEGAL_ADDRESS);
    if (is_capturing(stream))
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    work_off(stream);
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned flags) {
    CALL(cuEventCreate, CUDA_ERROR_ILLEGAL_ADDRESS);
    *event = calloc(1, sizeof **event);
    (*event)->keeps_time = !(flags & CU_EVENT_DISABLE_TIMING);
    count_object(OBJECT_EVENT, 1);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event) {
    if (event->pending)
        work_off(event->stream);
    free(event);
    count_object(OBJECT_EVENT, -1);
    CALL(cuEventDestroy_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
    return CUDA_SUCCESS;
}

static void run_event(Work *work) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    work->event->seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    work->event->passed = true;
}

static void release_event(Work *work) {
    work->event->pending--;
}

static CUresult record_event(CUevent event, CUstream stream) {
    Work work = {
        .run = run_event, .release = release_event, .name = "cuEventRecord", .event = event};
    if (!stream->capturing) {
        event->stream = stream;
        event->pending++;
    }
    return enqueue(stream, &work);
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    CALL(cuEventRecord, CUDA_ERROR_ILLEGAL_ADDRESS);
    if (stream->capturing)
        fault("an event that orders the nodes of a graph, where all are in one stream");
    return record_event(event, stream);
}

CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
    CALL(cuEventRecordWithFlags, CUDA_ERROR_ILLEGAL_ADDRESS);
    if ((flags == CU_EVENT_RECORD_EXTERNAL) != is_capturing(stream))
        return CUDA_ERROR_INVALID_VALUE;
    return record_event(event, stream);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to) {
    CALL(cuEventElapsedTime, CUDA_ERROR_ILLEGAL_ADDRESS);
    if (!from->keeps_time || !to->keeps_time)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!from->passed || !to->passed || from->pending || to->pending)
        fault("the time between events that have not passed yet");
    *milliseconds = (float)(1e3 * (to->seconds - from->seconds));
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event) {
    CALL(cuEventSynchronize, CUDA_ERROR_ILLEGAL_ADDRESS);
    while (event->pending)
        run_next(event->stream);
    return CUDA_SUCCESS;
}

/* ---- copies --------------------------------------------------------------------------------- */

static uint64_t sum_of(const void *memory, size_t bytes) {
    const unsigned char *at = memory;
    uint64_t sum = bytes;
    for (size_t i = 0; i < bytes; i++)
        sum = (sum ^ at[i]) * 0x100000001B3u;
    return sum;
}

static void run_copy_in(Work *work) {
    void *to = host_of(work->copy.to_card, work->copy.bytes, work->name);
    if (work->copy.pinned && sum_of(work->copy.from, work->copy.bytes) != work->copy.sum)
        fault("pinned memory was written again before it was copied to the card");
    memcpy(to, work->copy.from, work->copy.bytes);
    emulator_stored(to, work->copy.bytes);
}

static void release_staged(Work *work) {
    if (!work->copy.pinned)
        free((void *)(uintptr_t)work->copy.from);
}

/* Pageable memory is staged at once, as CUDA does. */
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    CALL(cuMemcpyHtoDAsync_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
    Work work = {.run = run_copy_in, .release = release_staged, .name = "cuMemcpyHtoDAsync_v2"};
    work.copy.pinned = is_pinned(from, bytes);
    work.copy.from = from;
    if (!work.copy.pinned) {
        void *staged = malloc(bytes ? bytes : 1);
        memcpy(staged, from, bytes);
        work.copy.from = staged;
    }
    work.copy.sum = sum_of(from, bytes);
    work.copy.to_card = to;
    work.copy.bytes = bytes;
    uses(&work, to);
    return enqueue(stream, &work);
}

static void run_copy_out(Work *work) {
    const void *from = host_of(work->copy.from_card, work->copy.bytes, work->name);
    const void *never = emulator_find_poison(from, work->copy.bytes);
    if (never)
        fault("byte %zd of %zu that are copied to the host was never stored",
              (const char *)never - (const char *)from, work->copy.bytes);
    memcpy(work->copy.to, from, work->copy.bytes);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CALL(cuMemcpyDtoHAsync_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
    Work work = {.run = run_copy_out, .name = "cuMemcpyDtoHAsync_v2"};
    work.copy.to = to;
    work.copy.from_card = from;
    work.copy.bytes = bytes;
    uses(&work, from);
    bool later = is_pinned(to, bytes);
    memset(to, 0xA5, bytes); /* who reads it too early reads nonsense */
    CUresult result = enqueue(stream, &work);
    if (!later && !is_capturing(stream))
        work_off(stream);
    return result;
}

static void run_copy(Work *work) {
    const char *from = host_of(work->copy.from_card, work->copy.bytes, work->name);
    char *to = host_of(work->copy.to_card, work->copy.bytes, work->name);
    if (from < to + work->copy.bytes && to < from + work->copy.bytes)
        fault("a copy within the card overlaps itself");
    const void *never = emulator_find_poison(from, work->copy.bytes);
    if (never)
        fault("a copy within the card reads what was never stored");
    memcpy(to, from, work->copy.bytes);
    emulator_stored(to, work->copy.bytes);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CALL(cuMemcpyDtoDAsync_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
    Work work = {.run = run_copy, .name = "cuMemcpyDtoDAsync_v2"};
    work.copy.to_card = to;
    work.copy.from_card = from;
    work.copy.bytes = bytes;
    uses(&work, to);
    uses(&work, from);
    return enqueue(stream, &work);
}

static void run_set(Work *work) {
    void *to = host_of(work->copy.to_card, work->copy.bytes, work->name);
    memset(to, work->copy.value, work->copy.bytes);
    emulator_stored(to, work->copy.bytes);
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
    CALL(cuMemsetD8Async, CUDA_ERROR_ILLEGAL_ADDRESS);
    Work work = {.run = run_set, .name = "cuMemsetD8Async"};
    work.copy.to_card = at;
    work.copy.bytes = bytes;
    work.copy.value = value;
    uses(&work, at);
    return enqueue(stream, &work);
}

/* ---- graphs --------------------------------------------------------------------------------- */

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    (void)mode;
    CALL(cuStreamBeginCapture_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
    if (stream->capturing)
        fault("a stream captures already");
    stream->capturing = calloc(1, sizeof *stream->capturing);
    count_object(OBJECT_GRAPH, 1);
    return CUDA_SUCCESS;
}

/* Whatever failed in between, the capture ends; there is no graph then. */
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    if (!stream->capturing)
        fault("a stream does not capture");
    bool fails = called("cuStreamEndCapture"), is_void = stream->is_void;
    stream->is_void = false;
    *graph = stream->capturing;
    stream->capturing = NULL;
    if (fails || is_void) {
        free((*graph)->queue.works);
        free(*graph);
        *graph = NULL;
        count_object(OBJECT_GRAPH, -1);
        return fails ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    count_recorded();
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *recording, CUgraph graph,
                                     unsigned long long flags) {
    (void)flags;
    CALL(cuGraphInstantiateWithFlags, CUDA_ERROR_ILLEGAL_ADDRESS);
    *recording = calloc(1, sizeof **recording);
    (*recording)->queue = copy_of(&graph->queue);
    count_object(OBJECT_RECORDING, 1);
    return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec recording, CUstream stream) {
    CALL(cuGraphLaunch, CUDA_ERROR_ILLEGAL_ADDRESS);
    has_replayed = true;
    count_replayed();
    for (int i = recording->queue.begin; i < recording->queue.end; i++) {
        CUevent event = recording->queue.works[i].event;
        if (event) {
            event->stream = stream;
            event->pending++;
        }
        enqueue(stream, &recording->queue.works[i]);
    }
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
    free(graph->queue.works);
    free(graph);
    count_object(OBJECT_GRAPH, -1);
    CALL(cuGraphDestroy, CUDA_ERROR_ILLEGAL_ADDRESS);
    return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec recording) {
    free(recording->queue.works);
    free(recording);
    count_object(OBJECT_RECORDING, -1);
    CALL(cuGraphExecDestroy, CUDA_ERROR_ILLEGAL_ADDRESS);
    return CUDA_SUCCESS;
}
