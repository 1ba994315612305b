/* cuda/cards.c: what is known of a card, and how much of a kernel it holds at a time. */
#include "cuda/cuda.h"

enum { REGISTERS = 65536, QUARTERS = 4 }; /* of a processor; each quarter keeps whole warps */
enum { REGISTER_UNIT = 256 };             /* given to a warp at a time */
/* Of a block, from compute capability 8.0 on. */
enum { SHARED_UNIT = 128, SHARED_RESERVED = 1024 };

static const Card cards[] = {
#define CARD(name, title, architecture, processors, gib, cache, bandwidth, f32, tf32, bf16,    \
             threads, blocks, shared)                                                          \
    {name,                                                                                     \
     title,                                                                                    \
     architecture,                                                                             \
     processors,                                                                               \
     (int64_t)((double)(gib) * (1 << 30)),                                                     \
     (int64_t)(cache) << 20,                                                                   \
     (bandwidth)*1e9,                                                                          \
     (f32)*1e12,                                                                               \
     (tf32)*1e12,                                                                              \
     (bf16)*1e12,                                                                              \
     threads,                                                                                  \
     blocks,                                                                                   \
     (shared) << 10},
#include "cuda/cards.def"
#undef CARD
};

int card_count(void) {
    return COUNT_OF(cards);
}

const Card *card_at(int index) {
    return &cards[index];
}

const Card *card_find(const char *name) {
    for (int i = 0; i < COUNT_OF(cards); i++)
        if (strcmp(cards[i].name, name) == 0)
            return &cards[i];
    return NULL;
}

const Card *card_after(const Card *card, CudaArchitecture architecture) {
    for (const Card *next = card ? card + 1 : cards; next < cards + COUNT_OF(cards); next++)
        if (next->architecture == architecture)
            return next;
    return NULL;
}

const Card *card_of_architecture(CudaArchitecture architecture) {
    return card_after(NULL, architecture);
}

static int units(int amount, int unit) {
    return (amount + unit - 1) / unit * unit;
}

int card_resident_blocks(const Card *card, const Launch *launch,
                         const KernelResources *resources) {
    int warps = units(launch->threads * launch->teams, WARP_THREADS) / WARP_THREADS;
    int registers = units(resources->registers * WARP_THREADS, REGISTER_UNIT);
    int shared = units(resources->shared_bytes, SHARED_UNIT) + SHARED_RESERVED;
    int most = card->processor_blocks;
    const int limits[] = {card->processor_threads / WARP_THREADS / warps,
                          registers ? REGISTERS / QUARTERS / registers * QUARTERS / warps
                                    : most,
                          card->processor_shared_bytes / shared};
    for (int i = 0; i < COUNT_OF(limits); i++)
        most = limits[i] < most ? limits[i] : most;
    return most;
}
