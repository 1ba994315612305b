/* tests/emulator/planted.cu: kernels of tests/test_emulator.c, in the part of CUDA C that colac
 * prints.  Where one has a fault, the line at which it is found says so. */
#ifdef __CUDACC_RTC__
#define KERNEL extern "C" __global__ void
typedef unsigned short uint16_t;
typedef unsigned char uint8_t;
#else
#include <stdint.h>
#define KERNEL __global__ void
#endif
#define ALL 0xFFFFFFFFu

/* ---- without a fault ------------------------------------------------------------------ */
enum { WIDTH = 768 };

/* Root mean square norm of a row of 768, summed in the order of 128 lanes. */
KERNEL __launch_bounds__(128)
rows_by_block(const float *__restrict__ x, const float *__restrict__ gain, float *__restrict__ y) {
    __shared__ float lanes[128];
    const int t = (int)threadIdx.x;
    const float *row = x + (long)blockIdx.x * WIDTH;
    float sum = 0.0f;
    for (int i = t; i < WIDTH; i += 128)
        sum = sum + row[i] * row[i];
    lanes[t] = sum;
    for (int w = 64; w >= 1; w /= 2) {
        __syncthreads();
        if (t < w)
            lanes[t] = lanes[t] + lanes[t + w];
    }
    __syncthreads();
    const float scale = 1.0f / sqrtf(lanes[0] / WIDTH + 1e-5f);
    for (int i = t; i < WIDTH; i += 128)
        y[(long)blockIdx.x * WIDTH + i] = row[i] * scale * gain[i];
}

__device__ static __forceinline__ float4 take_in(float4 a, int lanes) {
    a.x = a.x + __shfl_xor_sync(ALL, a.x, lanes);
    a.y = a.y + __shfl_xor_sync(ALL, a.y, lanes);
    a.z = a.z + __shfl_xor_sync(ALL, a.z, lanes);
    a.w = a.w + __shfl_xor_sync(ALL, a.w, lanes);
    return a;
}

/* The same bits by a warp a row: a thread has four neighbouring lanes of the 128. */
KERNEL __launch_bounds__(128)
rows_by_warp(const float *__restrict__ x, const float *__restrict__ gain, float *__restrict__ y) {
    const int lane = (int)threadIdx.x % 32;
    const long row = (long)blockIdx.x * 4 + (int)threadIdx.x / 32;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int i = 4 * lane; i < WIDTH; i += 128) {
        const float4 v = *(const float4 *)(x + row * WIDTH + i);
        sum.x = sum.x + v.x * v.x;
        sum.y = sum.y + v.y * v.y;
        sum.z = sum.z + v.z * v.z;
        sum.w = sum.w + v.w * v.w;
    }
    for (int lanes = 16; lanes >= 1; lanes /= 2)
        sum = take_in(sum, lanes);
    const float total = (sum.x + sum.z) + (sum.y + sum.w);
    const float scale = 1.0f / sqrtf(total / WIDTH + 1e-5f);
    for (int i = 4 * lane; i < WIDTH; i += 128) {
        const float4 v = *(const float4 *)(x + row * WIDTH + i);
        const float4 g = *(const float4 *)(gain + i);
        *(float4 *)(y + row * WIDTH + i) = make_float4(v.x * scale * g.x, v.y * scale * g.y,
                                                       v.z * scale * g.z, v.w * scale * g.w);
    }
}

/* Eight values a lane. */
KERNEL exchange(const int *x, int *y) {
    const int t = (int)threadIdx.x;
    int *out = y + 8 * t;
    const float real = (float)x[t] + 0.5f;
    out[0] = __shfl_sync(ALL, x[t], 37);
    out[1] = __shfl_xor_sync(ALL, x[t], 5);
    out[2] = __shfl_up_sync(ALL, x[t], 3);
    out[3] = __shfl_down_sync(ALL, x[t], 3);
    out[4] = __float_as_int(__shfl_xor_sync(ALL, real, 16));
    out[5] = (int)__ballot_sync(ALL, x[t] % 3 == 0);
    out[6] = __popc((unsigned)x[t]);
    out[7] = __float_as_int(fmaf(real, real, floorf(__int_as_float(0x3FC00000))));
}

KERNEL positions(int *y) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    y[block * blockDim.x * blockDim.y * blockDim.z + thread] =
        (int)(100000 * blockIdx.z + 10000 * blockIdx.y + 1000 * blockIdx.x + 100 * threadIdx.z +
              10 * threadIdx.y + threadIdx.x);
}

/* Constants, and an array of the thread's own, that another function fills. */
__device__ static const int primes[8] = {2, 3, 5, 7, 11, 13, 17, 19};
__device__ static __noinline__ void fill(int *squares, int count) {
    for (int i = 0; i < count; i++)
        squares[i] = i * primes[i % 8];
}
KERNEL own_memory(int *y) {
    int squares[32];
    fill(squares, 32);
    y[threadIdx.x] = squares[threadIdx.x] + squares[31 - threadIdx.x];
}

/* Neighbours store bytes and halves of the same words; then words are loaded. */
KERNEL narrow(uint16_t *halves, uint8_t *bytes, uint32_t *words) {
    __shared__ uint16_t tile[64];
    const int t = (int)threadIdx.x;
    halves[t] = (uint16_t)(3 * t);
    bytes[t] = (uint8_t)(5 * t);
    tile[t] = (uint16_t)(7 * t);
    __syncthreads();
    if (t < 16)
        words[t] = ((const uint32_t *)halves)[t] + ((const uint32_t *)bytes)[t] +
                   ((const uint32_t *)tile)[t];
}

/* Halves of a warp synchronize each for itself; then all of it. */
KERNEL half_warps(int *y) {
    __shared__ int tile[32];
    const int t = (int)threadIdx.x;
    const unsigned mask = t < 16 ? 0xFFFFu : 0xFFFF0000u;
    tile[t] = t;
    __syncwarp(mask);
    const int near = tile[t ^ 15];
    __syncwarp(mask);
    tile[t] = near;
    __syncwarp();
    y[t] = tile[31 - t];
}

/* One line, two calls: what a compiler may make of one. */
KERNEL copied_barrier(int *y) {
    __shared__ int tile[64];
    const int t = (int)threadIdx.x;
    tile[t] = t;
    if (t % 2) { y[t] = 1; __syncthreads(); } else { y[t] = 2; y[t] = 3; __syncthreads(); }
    y[t] = y[t] + tile[63 - t];
}

#define TEN(name)                                                                                \
    int *name##0, int *name##1, int *name##2, int *name##3, int *name##4, int *name##5,          \
        int *name##6, int *name##7, int *name##8, int *name##9
KERNEL arguments_of_8(int *a, int *b, int *c, int *d, int *e, int *f, int *g, int *last) {
    *last = *a + *f;
}
KERNEL arguments_of_10(TEN(a)) {
    *a9 = *a0 + *a5;
}
KERNEL arguments_of_30(TEN(a), TEN(b), TEN(c)) {
    *c9 = *a0 + *a5;
}
KERNEL arguments_of_60(TEN(a), TEN(b), TEN(c), TEN(d), TEN(e), TEN(f)) {
    *f9 = *a0 + *a5;
}
KERNEL arguments_of_100(TEN(a), TEN(b), TEN(c), TEN(d), TEN(e), TEN(f), TEN(g), TEN(h), TEN(i),
                        TEN(j)) {
    *j9 = *a0 + *a5;
}

/* ---- races ---------------------------------------------------------------------------- */

KERNEL race_of_warps(const float *x, float *y) {
    __shared__ float tile[64];
    const int t = (int)threadIdx.x;
    tile[t] = 0.0f;
    __syncthreads();
    tile[t] = x[t]; /* FOUND race_of_warps */
    __syncwarp();           /* a barrier of the block should stand here */
    y[t] = tile[t ^ 32]; /* FOUND race_of_warps, later */
}

/* A shuffle is no barrier for memory. */
KERNEL race_of_lanes(const float *x, float *y) {
    __shared__ float tile[32];
    const int t = (int)threadIdx.x;
    tile[t] = x[t];
    const float other = __shfl_xor_sync(ALL, x[t], 1);
    y[t] = other + tile[t ^ 1]; /* FOUND race_of_lanes */
}

/* Warps are not synchronized with each other by their own barriers. */
KERNEL race_past_warp_barrier(const float *x, float *y) {
    __shared__ float tile[64];
    const int t = (int)threadIdx.x;
    tile[t] = x[t];
    __syncwarp();
    y[t] = tile[t ^ 1];
    __syncwarp();
    if (t >= 32)
        tile[t - 32] = 1.0f; /* FOUND race_past_warp_barrier */
}

/* Lanes of one half load what a lane of the other stores later. */
KERNEL race_of_half_warps(int *y) {
    __shared__ int tile[32];
    const int t = (int)threadIdx.x;
    tile[t] = t;
    __syncwarp();
    y[t] = tile[t / 16];
    __syncwarp(t < 16 ? 0xFFFFu : 0xFFFF0000u);
    if (t == 20)
        tile[0] = 5; /* FOUND race_of_half_warps */
}

KERNEL race_of_blocks(int *y) {
    if (threadIdx.x == 3)
        y[blockIdx.x / 2] = (int)blockIdx.x; /* FOUND race_of_blocks */
}

KERNEL race_of_loading_blocks(int *x, int *y) {
    y[blockIdx.x] = x[0];
    if (blockIdx.x == 3)
        x[0] = 7; /* FOUND race_of_loading_blocks */
}

/* With threads in order y is right: thread 0 stores before others load. */
KERNEL race_by_order(const float *x, float *y) {
    __shared__ float first[1];
    if (threadIdx.x == 0)
        first[0] = x[0];
    y[threadIdx.x] = first[0]; /* FOUND race_by_order */
}

/* The halves of a word are stored apart, and one of them is loaded with it. */
KERNEL race_of_narrow(uint16_t *halves, uint32_t *y) {
    const int t = (int)threadIdx.x;
    halves[t] = (uint16_t)t;
    __syncwarp(t < 2 ? 0x3u : ~0x3u);
    if (t == 1)
        y[0] = *(const uint32_t *)halves;
    if (t == 3)
        y[1] = *(const uint32_t *)(halves + 2);
    if (t == 4)
        y[2] = *(const uint32_t *)halves; /* FOUND race_of_narrow */
}

/* ---- divergence ----------------------------------------------------------------------- */

KERNEL barriers_of_two_kinds(int *y) {
    if (threadIdx.x < 40) {
        __syncthreads();
        y[threadIdx.x] = 1;
    } else {
        __syncthreads(); /* FOUND barriers_of_two_kinds */
        y[threadIdx.x] = 2;
    }
}

KERNEL barrier_after_end(int *y) {
    if (threadIdx.x == 5)
        return;
    y[threadIdx.x] = 1;
    __syncthreads(); /* FOUND barrier_after_end */
    y[threadIdx.x] = 2;
}

KERNEL barrier_and_shuffle(int *y) {
    if (threadIdx.x < 32)
        y[threadIdx.x] = __shfl_sync(ALL, y[threadIdx.x], 0);
    if (threadIdx.x != 40)
        __syncthreads();
    else
        __syncwarp(); /* FOUND barrier_and_shuffle */
}

KERNEL shuffles_of_two_kinds(int *y) {
    const int t = (int)threadIdx.x;
    if (t % 2)
        y[t] = __shfl_xor_sync(ALL, t, 2);
    else
        y[t] = __shfl_xor_sync(ALL, t, 4); /* FOUND shuffles_of_two_kinds */
}

KERNEL shuffle_after_end(int *y) {
    const int t = (int)threadIdx.x;
    if (t == 9)
        return;
    y[t] = __shfl_xor_sync(ALL, t, 1); /* FOUND shuffle_after_end */
}

KERNEL masks_of_two_kinds(int *y) {
    const int t = (int)threadIdx.x;
    const unsigned mask = t < 16 ? ALL : 0xFFFF0000u;
    y[t] = __shfl_xor_sync(mask, t, 1); /* FOUND masks_of_two_kinds */
}

KERNEL mask_past_the_block(int *y) {
    y[threadIdx.x] = __shfl_xor_sync(ALL, y[threadIdx.x], 1); /* FOUND mask_past_the_block */
}

KERNEL mask_without_self(int *y) {
    y[threadIdx.x] = 1;
    __syncwarp(ALL << 1); /* FOUND mask_without_self */
}

KERNEL source_past_the_mask(int *y) {
    const int t = (int)threadIdx.x;
    if (t < 16)
        y[t] = __shfl_down_sync(0xFFFFu, t, 1); /* FOUND source_past_the_mask */
}

/* ---- outside, uninitialized, misaligned ------------------------------------------------- */

KERNEL store_past_the_end(const float *x, float *y) {
    y[threadIdx.x + 1] = x[threadIdx.x]; /* FOUND store_past_the_end */
}

KERNEL load_past_the_end(const float *x, float *y) {
    y[threadIdx.x] = x[(int)threadIdx.x - 1]; /* FOUND load_past_the_end */
}

KERNEL store_past_shared(const float *x, float *y) {
    __shared__ float before[4];
    __shared__ float tile[60];
    __shared__ float after[4];
    tile[threadIdx.x] = x[threadIdx.x]; /* FOUND store_past_shared */
    if (threadIdx.x == 0)
        before[0] = after[0] = 1.0f;
    y[threadIdx.x] = threadIdx.x == 0 ? before[0] + after[0] : tile[threadIdx.x];
}

KERNEL load_from_nowhere(int *y) {
    const int *nowhere = (const int *)(long)y[1];
    y[0] = *nowhere; /* FOUND load_from_nowhere */
}

/* One thread too few stores. */
KERNEL shared_uninitialized(const float *x, float *y) {
    __shared__ float tile[64];
    const int t = (int)threadIdx.x;
    if (t < 63)
        tile[t] = x[t];
    __syncthreads();
    y[t] = tile[63 - t]; /* FOUND shared_uninitialized */
}

/* What the block before has stored is no longer there. */
KERNEL shared_of_another_block(int *y) {
    __shared__ int tile[32];
    if (blockIdx.x == 0)
        tile[threadIdx.x] = 1;
    y[32 * blockIdx.x + threadIdx.x] = tile[threadIdx.x]; /* FOUND shared_of_another_block */
}

KERNEL add_one(float *y) {
    y[threadIdx.x] += 1.0f; /* FOUND add_one */
}

KERNEL set_one(float *y) {
    y[threadIdx.x] = 1.0f;
}

KERNEL load_odd(const float *x, float *y) {
    const float4 v = *(const float4 *)(x + threadIdx.x); /* FOUND load_odd */
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

KERNEL store_odd(const float *x, float *y) {
    const float v = x[threadIdx.x];
    *(float2 *)(y + 3 * threadIdx.x) = make_float2(v, v); /* FOUND store_odd */
}

KERNEL copy_odd(const float *x, float *y) {
    const float4 *from = (const float4 *)(x + 2 * threadIdx.x);
    *(float4 *)(y + 4 * threadIdx.x) = *from; /* FOUND copy_odd */
}

KERNEL endless(int *y) {
    for (unsigned i = 0; y[i % 2] < 7; i++) y[(i + 1) % 2] = (int)(i % 3); /* FOUND endless */
}
