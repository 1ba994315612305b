/* tests/simulator/memory.c: the card's memory.  Its addresses are no addresses of the process:
 * who follows one on the host crashes. */
#include "tests/emulator/emulator.h"
#include "tests/simulator/simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const CUdeviceptr card_base = 1ull << 60;
enum { CARD_ALIGNMENT = 512, MAX_BLOCKS = 256 };

typedef struct Block {
    char *memory;
    size_t bytes;
    uint64_t number;
} Block;
static Block blocks[MAX_BLOCKS], pinned[MAX_BLOCKS];
static int block_count, pinned_count;
static MemoryFigures figures;
static uint64_t last_number;

MemoryFigures memory_figures(void) {
    return figures;
}

static const Block *find(CUdeviceptr address, size_t bytes) {
    uintptr_t at = (uintptr_t)(address - card_base);
    for (int i = 0; i < block_count; i++) {
        uintptr_t begin = (uintptr_t)blocks[i].memory;
        if (at >= begin && at < begin + blocks[i].bytes &&
            bytes <= begin + blocks[i].bytes - at)
            return &blocks[i];
    }
    return NULL;
}

void *host_of(CUdeviceptr address, size_t bytes, const char *what) {
    if (!find(address, bytes))
        fault("%s reaches %zu bytes at %#llx, which are not of one allocation", what, bytes,
              address);
    return (void *)(uintptr_t)(address - card_base);
}

uint64_t allocation_of(CUdeviceptr address) {
    const Block *block = find(address, 1);
    return block ? block->number : 0;
}

bool is_pinned(const void *memory, size_t bytes) {
    const char *at = memory;
    for (int i = 0; i < pinned_count; i++)
        if (at >= pinned[i].memory && at + bytes <= pinned[i].memory + pinned[i].bytes)
            return true;
    return false;
}

static size_t available_bytes(void) {
    size_t taken = figures.live + settings()->code * (size_t)live_modules();
    return taken < settings()->memory ? settings()->memory - taken : 0;
}

CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    CALL(cuMemGetInfo_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
    *total = settings()->memory;
    *available = available_bytes();
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    CALL(cuMemAlloc_v2, CUDA_ERROR_OUT_OF_MEMORY);
    REFUSE_WHILE_CAPTURING();
    if (bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > available_bytes())
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (block_count == MAX_BLOCKS)
        fault("more than %d allocations", MAX_BLOCKS);
    char *memory = aligned_alloc(CARD_ALIGNMENT, (bytes + CARD_ALIGNMENT - 1) / CARD_ALIGNMENT *
                                                     CARD_ALIGNMENT);
    if (!memory)
        fault("the host has no %zu bytes", bytes);
    memset(memory, 0xA7, bytes);
    emulator_register(memory, bytes);
    emulator_poison(memory, bytes);
    blocks[block_count++] = (Block){memory, bytes, ++last_number};
    figures.live += bytes;
    figures.peak = figures.live > figures.peak ? figures.live : figures.peak;
    figures.allocations++;
    figures.after_replay += phase() == PHASE_REPLAY;
    *address = card_base + (uintptr_t)memory;
    return CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    REFUSE_WHILE_CAPTURING();
    work_off_all(); /* as CUDA does */
    for (int i = 0; i < block_count; i++) {
        if (card_base + (uintptr_t)blocks[i].memory != address)
            continue;
        figures.live -= blocks[i].bytes;
        emulator_unregister(blocks[i].memory);
        free(blocks[i].memory);
        blocks[i] = blocks[--block_count];
        CALL(cuMemFree_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
        return CUDA_SUCCESS;
    }
    fault("cuMemFree_v2 of %#llx, which is no allocation", address);
}

CUresult cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    (void)flags;
    CALL(cuMemHostAlloc, CUDA_ERROR_OUT_OF_MEMORY);
    REFUSE_WHILE_CAPTURING();
    if (pinned_count == MAX_BLOCKS)
        fault("more than %d pinned blocks", MAX_BLOCKS);
    *memory = malloc(bytes);
    if (!*memory)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memset(*memory, 0x5A, bytes);
    pinned[pinned_count++] = (Block){.memory = *memory, .bytes = bytes};
    count_object(OBJECT_PINNED, 1);
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *memory) {
    REFUSE_WHILE_CAPTURING();
    for (int i = 0; i < pinned_count; i++) {
        if (pinned[i].memory != memory)
            continue;
        free(memory);
        pinned[i] = pinned[--pinned_count];
        count_object(OBJECT_PINNED, -1);
        CALL(cuMemFreeHost, CUDA_ERROR_ILLEGAL_ADDRESS);
        return CUDA_SUCCESS;
    }
    fault("cuMemFreeHost of what is not pinned");
}
