/* cuda/prelude_cuda.h: what kernels in CUDA C have for their own, before codegen/prelude.h: the
 * compiler's words, vectors of neighbours, and reductions in the lanes of a warp or a block.
 * NVRTC compiles it, and so does a C compiler, with the emulator's words of CUDA before it. */
#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC_RTC__
#define COLAC_FUNCTION static __device__ __forceinline__
#define COLAC_KERNEL   extern "C" __global__ void
#define COLAC_ALIAS
#else
#define COLAC_FUNCTION static inline __attribute__((always_inline, unused))
#define COLAC_KERNEL   __global__ void
#define COLAC_ALIAS    __attribute__((may_alias))
#endif
#define COLAC_INFINITY __int_as_float(0x7F800000)
#define COLAC_NAN      __int_as_float(0x7FC00000)
#define COLAC_FMA      fmaf
#define COLAC_SQRT     sqrtf
#define COLAC_FLOOR    floorf

/* Elements in memory.  A result may take the place of an operand of another type. */
typedef uint8_t bool_memory;
typedef int32_t COLAC_ALIAS i32_memory;
typedef uint16_t COLAC_ALIAS bf16_memory;
typedef float COLAC_ALIAS f32_memory;

/* ---- vectors ------------------------------------------------------------------------- */

/* Neighbours in memory, at a multiple of their size: one access. */
#define COLAC_VECTOR(name, memory, value, width, word, decode, encode)                         \
    COLAC_FUNCTION void load_##name##_##width(value *to, const memory *from) {                 \
        union {                                                                                \
            word whole;                                                                        \
            memory parts[width];                                                               \
        } both;                                                                                \
        both.whole = *(const word COLAC_ALIAS *)from;                                          \
        _Pragma("unroll") for (int v = 0; v < width; v++) to[v] = decode(both.parts[v]);       \
    }                                                                                          \
    COLAC_FUNCTION void store_##name##_##width(memory *to, const value *from) {                \
        union {                                                                                \
            word whole;                                                                        \
            memory parts[width];                                                               \
        } both;                                                                                \
        _Pragma("unroll") for (int v = 0; v < width; v++) both.parts[v] = encode(from[v]);     \
        *(word COLAC_ALIAS *)to = both.whole;                                                  \
    }
#define COLAC_AS_IT_IS(x)    (x)
#define COLAC_IS_TRUE(x)     ((x) != 0)
#define COLAC_BF16_FLOAT(x)  __int_as_float((int)((uint32_t)(x) << 16))
#define COLAC_BF16_BITS(x)   ((uint16_t)((uint32_t)__float_as_int(x) >> 16))
COLAC_VECTOR(f32, f32_memory, float, 2, float2, COLAC_AS_IT_IS, COLAC_AS_IT_IS)
COLAC_VECTOR(f32, f32_memory, float, 4, float4, COLAC_AS_IT_IS, COLAC_AS_IT_IS)
COLAC_VECTOR(i32, i32_memory, int32_t, 2, int2, COLAC_AS_IT_IS, COLAC_AS_IT_IS)
COLAC_VECTOR(i32, i32_memory, int32_t, 4, int4, COLAC_AS_IT_IS, COLAC_AS_IT_IS)
COLAC_VECTOR(bf16, bf16_memory, float, 2, uint32_t, COLAC_BF16_FLOAT, COLAC_BF16_BITS)
COLAC_VECTOR(bf16, bf16_memory, float, 4, uint2, COLAC_BF16_FLOAT, COLAC_BF16_BITS)
COLAC_VECTOR(bool, bool_memory, bool, 2, uint16_t, COLAC_IS_TRUE, COLAC_AS_IT_IS)
COLAC_VECTOR(bool, bool_memory, bool, 4, uint32_t, COLAC_IS_TRUE, COLAC_AS_IT_IS)

/* ---- reductions ---------------------------------------------------------------------- */

/* The halving tree over `width` lanes: lane j takes in lane j + w.  `take_in` is the meaning of
 * `x takes in y`.
 *
 *   warp   thread t owns lanes [count * t, count * t + count), in `lanes`, which are used up; all of
 *          the warp's threads call it, and all get the result
 *   block  of 128 threads, a lane each; `exchange`: shared memory that nobody uses any more */
#define COLAC_TEAM_REDUCTION(type, name, take_in)                                              \
    COLAC_FUNCTION type type##_##name##_warp(type *lanes, int count, int width) {              \
        _Pragma("unroll") for (int w = width / 2; w >= count; w /= 2) {                        \
            const int apart = w / count;                                                       \
            const bool lower = ((int)threadIdx.x & apart) == 0;                                \
            _Pragma("unroll") for (int v = 0; v < count; v++) {                                \
                const type other = __shfl_xor_sync(0xFFFFFFFFu, lanes[v], apart);              \
                const type x = lower ? lanes[v] : other, y = lower ? other : lanes[v];         \
                lanes[v] = take_in;                                                            \
            }                                                                                  \
        }                                                                                      \
        _Pragma("unroll") for (int w = (width < count ? width : count) / 2; w >= 1; w /= 2)    \
            _Pragma("unroll") for (int v = 0; v < w; v++) {                                    \
            const type x = lanes[v], y = lanes[v + w];                                         \
            lanes[v] = take_in;                                                                \
        }                                                                                      \
        return width < 32 * count ? __shfl_sync(0xFFFFFFFFu, lanes[0], 0) : lanes[0];          \
    }                                                                                          \
    COLAC_FUNCTION type type##_##name##_take_in(type x, type y) {                              \
        return take_in;                                                                        \
    }                                                                                          \
    COLAC_FUNCTION type type##_##name##_block(type *exchange, type lane, int width) {          \
        exchange[threadIdx.x] = lane;                                                          \
        __syncthreads();                                                                       \
        const int j = (int)threadIdx.x % 32;                                                   \
        type lanes[1] = {exchange[j]};                                                         \
        if (width == 128)                                                                      \
            lanes[0] = type##_##name##_take_in(                                                \
                type##_##name##_take_in(exchange[j], exchange[j + 64]),                        \
                type##_##name##_take_in(exchange[j + 32], exchange[j + 96]));                  \
        else if (width == 64)                                                                  \
            lanes[0] = type##_##name##_take_in(exchange[j], exchange[j + 32]);                 \
        return type##_##name##_warp(lanes, 1, width < 32 ? width : 32);                        \
    }
typedef float f32;
typedef int32_t i32;
COLAC_TEAM_REDUCTION(f32, sum, x + y)
COLAC_TEAM_REDUCTION(f32, max, x > y ? x : y)
COLAC_TEAM_REDUCTION(i32, sum, (i32)((uint32_t)x + (uint32_t)y))
COLAC_TEAM_REDUCTION(i32, max, x > y ? x : y)

