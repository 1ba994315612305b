/* base/arena.c: memory named by its lifetime.  Blocks double in size up to a megabyte, so that
 * a small arena stays small and a large one makes few calls of malloc. */
#include "base/base.h"

/* The hostile build sets a tiny first block so that every allocation crosses a block's end. */
#ifndef ARENA_FIRST_BLOCK
#define ARENA_FIRST_BLOCK 4096
#endif
enum { ARENA_ALIGNMENT = 16, ARENA_LARGEST_BLOCK = 1 << 20 };
/* A runaway input must end in a sentence, not in a machine that swaps. */
#define ARENA_LIMIT ((size_t)8 << 30)

typedef struct Block {
    struct Block *previous;
    size_t used, capacity;
    _Alignas(ARENA_ALIGNMENT) unsigned char bytes[];
} Block;

struct Arena {
    Block *block; /* the one being filled */
    size_t next_capacity;
    size_t handed_out;
};

static _Noreturn void out_of_memory(size_t wanted) {
    fprintf(stderr, "colac: error: out of memory (%zu bytes more were needed)\n", wanted);
    exit(1);
}

void *checked_alloc(size_t size) {
    void *pointer = calloc(1, size ? size : 1);
    if (!pointer)
        out_of_memory(size);
    return pointer;
}

void *checked_realloc(void *pointer, size_t size) {
    void *moved = realloc(pointer, size ? size : 1);
    if (!moved)
        out_of_memory(size);
    return moved;
}

float *floats_begin(Floats *floats, int64_t count) {
    bool few = count <= (int64_t)(sizeof floats->few / sizeof *floats->few);
    floats->data = few ? floats->few : checked_alloc((size_t)count * sizeof *floats->data);
    return floats->data;
}

void floats_end(Floats *floats) {
    if (floats->data != floats->few)
        free(floats->data);
}

Arena *arena_new(void) {
    Arena *arena = checked_alloc(sizeof *arena);
    arena->next_capacity = ARENA_FIRST_BLOCK;
    return arena;
}

void arena_free(Arena *arena) {
    if (!arena)
        return;
    for (Block *block = arena->block; block;) {
        Block *previous = block->previous;
        free(block);
        block = previous;
    }
    free(arena);
}

/* A new block with room for `size` bytes becomes the one being filled; what was left of the old
 * one is lost.  A block larger than usual goes behind the current one, whose rest stays usable.
 */
static Block *add_block(Arena *arena, size_t size) {
    bool oversized = size > arena->next_capacity / 2 && arena->block;
    size_t capacity = size > arena->next_capacity || oversized ? size : arena->next_capacity;
    Block *block = checked_alloc(sizeof *block + capacity);
    block->capacity = capacity;
    if (oversized) {
        block->previous = arena->block->previous;
        arena->block->previous = block;
        return block;
    }
    block->previous = arena->block;
    arena->block = block;
    if (arena->next_capacity < ARENA_LARGEST_BLOCK)
        arena->next_capacity *= 2;
    return block;
}

void *arena_alloc(Arena *arena, size_t size) {
    if (size > ARENA_LIMIT || arena->handed_out > ARENA_LIMIT - size)
        out_of_memory(size);
    size_t rounded = (size + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    Block *block = arena->block;
    if (!block || block->capacity - block->used < rounded)
        block = add_block(arena, rounded);
    void *pointer = block->bytes + block->used;
    block->used += rounded;
    arena->handed_out += size;
    return pointer;
}

void *arena_alloc_array(Arena *arena, size_t count, size_t size) {
    size_t product;
    if (__builtin_mul_overflow(count, size, &product))
        out_of_memory(SIZE_MAX);
    return arena_alloc(arena, product);
}

char *arena_strndup(Arena *arena, const char *string, size_t length) {
    char *copy = arena_alloc(arena, length + 1);
    if (length)
        memcpy(copy, string, length);
    return copy;
}

char *arena_strdup(Arena *arena, const char *string) {
    return arena_strndup(arena, string, strlen(string));
}

char *arena_printf(Arena *arena, const char *format, ...) {
    Text text = {0};
    va_list args;
    va_start(args, format);
    text_vprintf(&text, format, args);
    va_end(args);
    char *string = arena_strndup(arena, text_string(&text), text.length);
    text_free(&text);
    return string;
}

size_t arena_bytes(const Arena *arena) {
    return arena->handed_out;
}
