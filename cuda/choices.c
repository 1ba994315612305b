/* cuda/choices.c: which of cuBLASLt's kernels run the products of a program, kept for a card.
 *
 * An entry of the cache holds the choices for all products of a program set, in their order.
 * Its key covers what the library looks at when it is asked: itself, the card, shapes and
 * alignments. */
#include "cuda/cuda.h"

#include <unistd.h>

/* What decides a choice, as numbers without gaps between them. */
enum { LOOP_NUMBERS = 4, SHAPE_NUMBERS = 17 + 2 * MAX_AXES * LOOP_NUMBERS };

static int put_loops(const ProductLoop *loops, int count, int64_t *numbers) {
    for (int i = 0; i < count; i++) {
        const int64_t of_loop[LOOP_NUMBERS] = {loops[i].extent, loops[i].stride_a,
                                               loops[i].stride_b, loops[i].stride_c};
        memcpy(numbers, of_loop, sizeof of_loop);
        numbers += LOOP_NUMBERS;
    }
    return LOOP_NUMBERS * count;
}

static void put_shape(const Product *p, const int64_t alignment[3],
                      int64_t numbers[SHAPE_NUMBERS]) {
    const int64_t plain[] = {p->m,
                             p->n,
                             p->k,
                             p->a_m,
                             p->a_k,
                             p->b_k,
                             p->b_n,
                             p->c_m,
                             p->c_n,
                             alignment[0],
                             alignment[1],
                             alignment[2],
                             p->add | p->tf32 << 1 | p->bf16_operands << 2 |
                                 p->bf16_result << 3,
                             p->batch_count,
                             p->accumulate_count};
    int at = COUNT_OF(plain);
    memset(numbers, 0, SHAPE_NUMBERS * sizeof *numbers);
    memcpy(numbers, plain, sizeof plain);
    at += put_loops(p->batch, p->batch_count, numbers + at);
    at += put_loops(p->accumulate, p->accumulate_count, numbers + at);
    INTERNAL_CHECK(at <= SHAPE_NUMBERS);
}

void blas_choices_key(const CudaTable *blas, const char *card, const Product *products,
                      int64_t (*alignments)[3], int count, char key[33]) {
    const uint64_t library[] = {blas->cublasLtGetVersion(), cuda_library_stamp(CUDA_BLASLT),
                                BLAS_PARTS, BLAS_WORKSPACE_LEAST, BLAS_WORKSPACE_MOST};
    size_t bytes = (size_t)count * SHAPE_NUMBERS * sizeof(int64_t);
    int64_t *shapes = checked_alloc(bytes);
    for (int i = 0; i < count; i++)
        put_shape(&products[i], alignments[i], shapes + (size_t)i * SHAPE_NUMBERS);
    const void *parts[] = {"choices", library, card, shapes};
    const size_t lengths[] = {strlen("choices"), sizeof library, strlen(card), bytes};
    cache_key(parts, lengths, COUNT_OF(parts), key);
    free(shapes);
}

BlasChoice *blas_choices_find(const char key[33], int count) {
    Diagnostics *unheard = diagnostics_new();
    KernelCache cache;
    char entry[PATH_MAX];
    size_t length = 0;
    cache_find(&cache, unheard);
    char *bytes =
        cache_look_up(&cache, key, ".choices", entry) ? cache_read(entry, &length) : NULL;
    diagnostics_free(unheard);
    if (bytes && length == (size_t)count * sizeof(BlasChoice))
        return (BlasChoice *)(void *)bytes;
    free(bytes);
    return NULL;
}

/* Nobody is told where they cannot be kept: who compiles kernels was. */
void blas_choices_keep(const char key[33], const BlasChoice *choices, int count) {
    Diagnostics *unheard = diagnostics_new();
    KernelCache cache;
    char made[PATH_MAX], entry[PATH_MAX];
    cache_find(&cache, unheard);
    bool begun = cache_begin(&cache);
    if (begun) {
        snprintf(made, sizeof made, "%.*s/choices", PATH_MAX - 16, cache.folder);
        cache_look_up(&cache, key, ".choices", entry);
        if (cache.temporary ||
            !cache_write(&cache, made, (const char *)choices,
                         (size_t)count * sizeof *choices) ||
            !cache_publish(&cache, made, entry))
            unlink(made);
        rmdir(cache.folder);
    }
    diagnostics_free(unheard);
}
