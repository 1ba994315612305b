/* tests/emulator/cuda_c.h: CUDA C as C17, for texts that the emulator runs.  It is put in front
 * of them by -include; what it declares is in emulator.c, and found when the object is loaded.
 *
 * Nothing here touches memory but by the registers of calls: the compiler's instrumentation
 * would report it as an access of the text. */
#ifndef COLAC_CUDA_C_H
#define COLAC_CUDA_C_H

/* ---- the execution space -------------------------------------------------------------- */
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__    __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

#define EMULATOR_FUNCTION static inline __attribute__((always_inline, unused))

typedef struct __align__(4) uint3 {
    unsigned x, y, z;
} uint3;

/* A kernel's call is one thread's, for which they are constants. */
uint3 emulator_thread_index(void) __attribute__((const));
uint3 emulator_block_index(void) __attribute__((const));
uint3 emulator_block_extent(void) __attribute__((const));
uint3 emulator_grid_extent(void) __attribute__((const));
#define threadIdx (emulator_thread_index())
#define blockIdx  (emulator_block_index())
#define blockDim  (emulator_block_extent())
#define gridDim   (emulator_grid_extent())
#define warpSize  32

/* ---- shared variables -----------------------------------------------------------------
 * All of an object are in one section, whose ends the linker knows, each after a guard that
 * nothing may touch: so what reaches past a variable does not fall into the next.  The emulator
 * finds the guards by the table of their addresses.  A declaration starts with __shared__. */
#if defined(__clang__)
#define EMULATOR_IN_ORDER
#else
#define EMULATOR_IN_ORDER , no_reorder
#endif
enum { EMULATOR_GUARD_BYTES = 64 };
#define EMULATOR_PLACED(bytes)                                                                   \
    __attribute__((section("colac_shared"), used, aligned(bytes) EMULATOR_IN_ORDER))
#define EMULATOR_GUARD(number)                                                                   \
    static char emulator_guard_##number[EMULATOR_GUARD_BYTES] EMULATOR_PLACED(1);                \
    static void *emulator_guard_at_##number                                                      \
        __attribute__((section("colac_guards"), used)) = emulator_guard_##number;
#define EMULATOR_GUARD_OF(number) EMULATOR_GUARD(number)
#define __shared__ EMULATOR_GUARD_OF(__COUNTER__) static EMULATOR_PLACED(16)

/* So that both sections exist. */
EMULATOR_GUARD(first)

#define EMULATOR_SECTION_END(name) extern char name[] __attribute__((visibility("hidden")));
EMULATOR_SECTION_END(__start_colac_shared)
EMULATOR_SECTION_END(__stop_colac_shared)
EMULATOR_SECTION_END(__start_colac_guards)
EMULATOR_SECTION_END(__stop_colac_guards)
void *const emulator_sections[4] = {__start_colac_shared, __stop_colac_shared,
                                    __start_colac_guards, __stop_colac_guards};

/* ---- barriers and shuffles ------------------------------------------------------------
 * A call is known by its return address: two calls must stay two.  (gcc has no word for this,
 * and at -O1 no pass that would make one of them.) */
#if defined(__clang__)
#define EMULATOR_MEETING __attribute__((convergent, nomerge))
#else
#define EMULATOR_MEETING
#endif
typedef enum EmulatorSource { /* the lane that a lane takes its value from, by its argument */
    EMULATOR_FROM_LANE,
    EMULATOR_FROM_XOR,
    EMULATOR_FROM_BELOW,
    EMULATOR_FROM_ABOVE
} EmulatorSource;
void emulator_block_barrier(void) EMULATOR_MEETING;
void emulator_warp_barrier(unsigned mask) EMULATOR_MEETING;
unsigned emulator_shuffle(EmulatorSource source, unsigned mask, unsigned value,
                          int argument) EMULATOR_MEETING;
unsigned emulator_ballot(unsigned mask, int predicate) EMULATOR_MEETING;

#define __syncthreads() emulator_block_barrier()
/* Without an argument: all lanes. */
#define __syncwarp(...) emulator_warp_barrier(0xFFFFFFFFu __VA_OPT__(&(__VA_ARGS__)))
#define __ballot_sync(mask, predicate) emulator_ballot(mask, (predicate) != 0)

EMULATOR_FUNCTION unsigned __float_as_uint(float x) {
    union {
        float number;
        unsigned bits;
    } both = {.number = x};
    return both.bits;
}

EMULATOR_FUNCTION float __uint_as_float(unsigned bits) {
    union {
        unsigned bits;
        float number;
    } both = {.bits = bits};
    return both.number;
}

EMULATOR_FUNCTION int __float_as_int(float x) {
    return (int)__float_as_uint(x);
}

EMULATOR_FUNCTION float __int_as_float(int bits) {
    return __uint_as_float((unsigned)bits);
}

EMULATOR_FUNCTION float emulator_shuffle_float(EmulatorSource source, unsigned mask, float value,
                                               int argument) {
    return __uint_as_float(emulator_shuffle(source, mask, __float_as_uint(value), argument));
}

EMULATOR_FUNCTION int emulator_shuffle_int(EmulatorSource source, unsigned mask, int value,
                                           int argument) {
    return (int)emulator_shuffle(source, mask, (unsigned)value, argument);
}

#define EMULATOR_SHUFFLE(source, mask, value, argument)                                          \
    _Generic((value),                                                                            \
        float: emulator_shuffle_float,                                                           \
        int: emulator_shuffle_int,                                                               \
        unsigned: emulator_shuffle)(source, mask, value, argument)
#define __shfl_sync(mask, value, lane) EMULATOR_SHUFFLE(EMULATOR_FROM_LANE, mask, value, lane)
#define __shfl_xor_sync(mask, value, bits) EMULATOR_SHUFFLE(EMULATOR_FROM_XOR, mask, value, bits)
#define __shfl_up_sync(mask, value, by)    EMULATOR_SHUFFLE(EMULATOR_FROM_BELOW, mask, value, by)
#define __shfl_down_sync(mask, value, by)  EMULATOR_SHUFFLE(EMULATOR_FROM_ABOVE, mask, value, by)

/* ---- numbers -------------------------------------------------------------------------- */
#define fmaf(a, b, c) __builtin_fmaf(a, b, c)
#define sqrtf(x)      __builtin_sqrtf(x)
#define floorf(x)     __builtin_floorf(x)
#define __popc(bits)  __builtin_popcount(bits)
#define __ffs(bits)   __builtin_ffs(bits)

/* ---- vectors --------------------------------------------------------------------------
 * Structures, which gcc takes apart after it has put in the checks of alignment.  clang checks
 * none that is loaded whole, but has vectors whose elements are called x, y, z, w. */
#if defined(__clang__)
#define EMULATOR_VECTOR(name, type, count, ...)                                                  \
    typedef type name __attribute__((ext_vector_type(count)));
#else
#define EMULATOR_VECTOR(name, type, count, ...)                                                  \
    typedef struct __align__(count * sizeof(type)) name {                                        \
        type __VA_ARGS__;                                                                        \
    } name;
#endif
#define EMULATOR_VECTOR2(name, type)                                                             \
    EMULATOR_VECTOR(name, type, 2, x, y)                                                         \
    EMULATOR_FUNCTION name make_##name(type x, type y) {                                         \
        return (name){x, y};                                                                     \
    }
#define EMULATOR_VECTOR4(name, type)                                                             \
    EMULATOR_VECTOR(name, type, 4, x, y, z, w)                                                   \
    EMULATOR_FUNCTION name make_##name(type x, type y, type z, type w) {                         \
        return (name){x, y, z, w};                                                               \
    }
EMULATOR_VECTOR2(uchar2, unsigned char)
EMULATOR_VECTOR4(uchar4, unsigned char)
EMULATOR_VECTOR2(ushort2, unsigned short)
EMULATOR_VECTOR4(ushort4, unsigned short)
EMULATOR_VECTOR2(int2, int)
EMULATOR_VECTOR4(int4, int)
EMULATOR_VECTOR2(uint2, unsigned)
EMULATOR_VECTOR4(uint4, unsigned)
EMULATOR_VECTOR2(float2, float)
EMULATOR_VECTOR4(float4, float)

#endif
