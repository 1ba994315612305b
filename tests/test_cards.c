/* The table of cards, and how many blocks of a kernel a processor holds, against figures worked
 * out by hand from the limits in NVIDIA's programming guide. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/cuda.h"

static void cards_are_sane(void **state) {
    (void)state;
    for (int i = 0; i < card_count(); i++) {
        const Card *card = card_at(i);
        assert_ptr_equal(card_find(card->name), card);
        assert_true(card->bf16_flops >= card->tf32_flops &&
                    card->tf32_flops >= card->f32_flops);
        assert_true(card->bandwidth > 5e11 && card->bandwidth < 1e13);
        assert_int_equal(card_of_architecture(card->architecture)->architecture,
                         card->architecture);
        assert_true(card->memory_bytes > (int64_t)20 << 30 && card->cache_bytes < 1 << 28);
        /* The clock that the f32 peak says: 64 lanes in a processor of A100, 128 in the
         * others. */
        double lanes = card->architecture == 80 ? 64 : 128;
        double clock = card->f32_flops / 2 / lanes / card->processors;
        assert_true(clock > 1.3e9 && clock < 2.7e9);
    }
    assert_null(card_find("voodoo"));
    assert_null(card_of_architecture(42));
    assert_string_equal(card_of_architecture(90)->name, "h100");
}

typedef struct Case {
    const char *card;
    int threads, registers, shared_bytes, blocks;
} Case;

static void blocks_at_a_time(void **state) {
    (void)state;
    static const Case cases[] = {
        {"a100", 256, 32, 0, 8},  /* 8 x 256 x 32 registers: all of them, and all threads */
        {"a100", 256, 64, 0, 4},  /* registers */
        {"a100", 256, 40, 0, 6},  /* 10,240 registers a block */
        {"a100", 128, 33, 0, 12}, /* a warp gets 5 x 256 registers, not 4.1 */
        {"a100", 32, 16, 0, 32},  /* blocks */
        {"a100", 256, 16, 48 << 10, 3},                           /* 3 x 49 KiB of 164 */
        {"h100", 256, 16, 48 << 10, 4},                           /* 4 x 49 KiB of 228 */
        {"rtx4090", 256, 32, 0, 6},                               /* 1,536 threads */
        {"rtx4090", 32, 16, 0, 24},                               /* its blocks */
        {"a6000", 32, 16, 0, 16},       {"a100", 1024, 64, 0, 1}, /* a block is all of it */
        {"a100", 256, 65, 0, 3},                                  /* 72 a thread: 28 warps */
        {"a100", 128, 255, 0, 2},                                 /* 8 warps */
        {"a100", 64, 40, 0, 24}, /* 12 warps in each quarter: 48, though there are registers for 51 */
        {"a100", 256, 32, 40 << 10, 4}, /* 41 KiB each: exactly */
        {"l40s", 256, 32, 48 << 10, 2}, /* of 100 KiB */
        {"a100", 20, 16, 0, 32},        /* a warp that is not full is one */
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Launch launch = {.threads = cases[i].threads, .teams = 1};
        KernelResources resources = {.registers = cases[i].registers,
                                     .shared_bytes = cases[i].shared_bytes};
        assert_int_equal(card_resident_blocks(card_find(cases[i].card), &launch, &resources),
                         cases[i].blocks);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cards_are_sane),
        cmocka_unit_test(blocks_at_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
