/* codegen/prelude_c.h: what kernels in C have for their own, before prelude.h: the compiler's
 * words, and reductions in lanes of SIMD. */
#include <stdbool.h>
#include <stdint.h>

#define COLAC_FUNCTION static inline __attribute__((always_inline, unused))
/* Called once a row; in line it would be a third of the time that a kernel takes to compile. */
#define COLAC_CALL static __attribute__((noinline, unused))
#define COLAC_ALIGNED  _Alignas(64)

#define COLAC_INFINITY  __builtin_inff()
#define COLAC_NAN       __builtin_nanf("")
#define COLAC_FMA       __builtin_fmaf
#define COLAC_SQRT      __builtin_sqrtf
#define COLAC_FLOOR     __builtin_floorf

/* Elements in memory.  A result may take the place of an operand of another type. */
typedef uint8_t bool_memory;
typedef int32_t __attribute__((may_alias)) i32_memory;
typedef uint16_t __attribute__((may_alias)) bf16_memory;
typedef float __attribute__((may_alias)) f32_memory;

/* A number that the compiler cannot see. */
COLAC_FUNCTION int64_t hidden(int64_t number) {
    __asm__("" : "+r"(number));
    return number;
}

/* Asks for memory that will be written: `bytes` of it, from AHEAD bytes on.  A loop that writes
 * where it has read is not helped by the processor's own prefetching when it computes much
 * between the two: measured three times slower than one that writes elsewhere, or asks.  Past
 * the end of memory asking does nothing. */
enum { AHEAD = 4096 };
COLAC_FUNCTION void ask_ahead(const void *memory, int bytes) {
    for (int at = 0; at < bytes; at += 64)
        __builtin_prefetch((const char *)memory + AHEAD + at, 1);
}

/* ---- reductions ---------------------------------------------------------------------- */

/* The halving tree over `width` lanes, a power of two: lane j takes in lane j + w.  `take_in`
 * is the meaning of `x takes in y`; the array is used up.  The fixed-order reduction of n terms
 * in memory: lanes in turn, then the tree. */
#define COLAC_REDUCTION(type, name, start, take_in)                                            \
    COLAC_CALL type type##_##name##_tree(type *lanes, int width) {                             \
        for (int w = width / 2; w >= 1; w /= 2) {                                              \
            _Pragma("omp simd") for (int j = 0; j < w; j++) {                                  \
                const type x = lanes[j], y = lanes[j + w];                                     \
                lanes[j] = take_in;                                                            \
            }                                                                                  \
        }                                                                                      \
        return lanes[0];                                                                       \
    }                                                                                          \
    COLAC_FUNCTION type type##_##name##_terms(const type *terms, int n) {                      \
        type lanes[128];                                                                       \
        for (int j = 0; j < 128; j++)                                                          \
            lanes[j] = start;                                                                  \
        for (int i = 0; i < n; i += 128) {                                                     \
            const int count = n - i < 128 ? n - i : 128;                                       \
            _Pragma("omp simd") for (int j = 0; j < count; j++) {                              \
                const type x = lanes[j], y = terms[i + j];                                     \
                lanes[j] = take_in;                                                            \
            }                                                                                  \
        }                                                                                      \
        return type##_##name##_tree(lanes, 128);                                               \
    }

typedef float f32;
typedef int32_t i32;
COLAC_REDUCTION(f32, sum, 0.0f, x + y)
COLAC_REDUCTION(f32, max, -COLAC_INFINITY, x > y ? x : y)
COLAC_REDUCTION(i32, sum, 0, (i32)((uint32_t)x + (uint32_t)y))
COLAC_REDUCTION(i32, max, INT32_MIN, x > y ? x : y)
