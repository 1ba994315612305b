/* runtime/device_cpu.c: the CPU behind the device table.  Kernels are C functions, products go
 * to products.c, memory is the process's own. */
#include "runtime/runtime.h"

#include <errno.h>
#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct Allocation {
    void *address;
    size_t bytes;
} Allocation;

typedef struct CpuDevice {
    Device device; /* first: the table is this device */
    int threads, threads_before;
    JitResult *kernels;
    int product_count;
    PreparedProduct **products;
    char *scratch; /* of the product library, a part for each thread */
    int64_t scratch_bytes;
    ARRAY(Allocation) allocations;
} CpuDevice;

static CpuDevice *cpu_of(Device *device) {
    return (CpuDevice *)device;
}

/* ---- memory ---------------------------------------------------------------------------
 * Mapped once, in large pages where the system gives them: touching a page for the first time
 * is five times as dear in small ones.  Touched by all threads, so that pages lie near them. */
enum { LARGE_PAGE = 1 << 21 };

static void first_touch(char *memory, size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int64_t blocks = (int64_t)((bytes + LARGE_PAGE - 1) / LARGE_PAGE);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        size_t begin = (size_t)block * LARGE_PAGE, end = begin + LARGE_PAGE;
        for (size_t at = begin; at < end && at < bytes; at += page)
            *(volatile char *)(memory + at) = 0;
    }
}

/* Zeroed, at a multiple of LARGE_PAGE.  NULL: no memory. */
static void *cpu_allocate(Device *device, int64_t bytes) {
    CpuDevice *cpu = cpu_of(device);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t wanted = ((size_t)(bytes > 0 ? bytes : 1) + page - 1) / page * page;
    size_t mapped = wanted + LARGE_PAGE;
    char *memory =
        mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    size_t skip = (LARGE_PAGE - (uintptr_t)memory % LARGE_PAGE) % LARGE_PAGE;
    if (skip > 0)
        munmap(memory, skip);
    if (mapped - skip > wanted)
        munmap(memory + skip + wanted, mapped - skip - wanted);
    memory += skip;
    madvise(memory, wanted, MADV_HUGEPAGE); /* a wish: what is missing is speed */
    first_touch(memory, wanted);
    array_push(&cpu->allocations, ((Allocation){memory, wanted}));
    return memory;
}

static void cpu_release(Device *device, void *buffer) {
    CpuDevice *cpu = cpu_of(device);
    for (int64_t i = 0; buffer && i < cpu->allocations.count; i++) {
        Allocation *allocation = &cpu->allocations.data[i];
        if (allocation->address != buffer)
            continue;
        munmap(allocation->address, allocation->bytes);
        *allocation = cpu->allocations.data[--cpu->allocations.count];
        return;
    }
    INTERNAL_CHECK(!buffer);
}

enum { COPY_BLOCK = 1 << 20 }; /* bytes that a thread copies at a time */

static void cpu_copy(Device *device, void *to, const void *from, int64_t bytes) {
    (void)device;
    int64_t blocks = (bytes + COPY_BLOCK - 1) / COPY_BLOCK;
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t at = block * COPY_BLOCK, left = bytes - at;
        memcpy((char *)to + at, (const char *)from + at,
               (size_t)(left < COPY_BLOCK ? left : COPY_BLOCK));
    }
}

static void cpu_zero(Device *device, void *at, int64_t bytes) {
    (void)device;
    int64_t blocks = (bytes + COPY_BLOCK - 1) / COPY_BLOCK;
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t begin = block * COPY_BLOCK, left = bytes - begin;
        memset((char *)at + begin, 0, (size_t)(left < COPY_BLOCK ? left : COPY_BLOCK));
    }
}

static int64_t cpu_available_bytes(Device *device) {
    (void)device;
    return machine_available_bytes();
}

static void cpu_synchronize(Device *device) {
    (void)device; /* every call returns when its work is done */
}

/* ---- programs ---------------------------------------------------------------------- */
enum { MAX_PARTS = 16 };

static bool compile_kernels(CpuDevice *cpu, const ProgramSet *set, Diagnostics *diagnostics) {
    int parts = omp_get_num_procs();
    parts = parts > MAX_PARTS ? MAX_PARTS : parts;
    parts = parts > set->kernel_count ? set->kernel_count : parts;
    if (parts == 0)
        return true;
    Text texts[MAX_PARTS] = {{0}};
    emit_c(set, parts, texts);
    cpu->kernels = jit_compile(texts, parts, set->kernel_names, set->kernel_count, diagnostics);
    for (int i = 0; i < parts; i++)
        text_free(&texts[i]);
    if (!cpu->kernels)
        return false;
    cpu->device.compile_seconds = cpu->kernels->seconds;
    cpu->device.compile_cached = cpu->kernels->cached;
    return true;
}

static bool prepare_products(CpuDevice *cpu, const ProgramSet *set, Diagnostics *diagnostics) {
    int64_t largest = 0;
    cpu->product_count = set->product_count;
    cpu->products = checked_alloc((size_t)(set->product_count + 1) * sizeof *cpu->products);
    for (int i = 0; i < set->product_count; i++) {
        cpu->products[i] = product_prepare(&set->products[i]);
        int64_t bytes = product_scratch_bytes(cpu->products[i]);
        largest = bytes > largest ? bytes : largest;
    }
    cpu->scratch_bytes = largest * cpu->threads;
    cpu->scratch = cpu_allocate(&cpu->device, cpu->scratch_bytes);
    if (!cpu->scratch)
        error_in_file(diagnostics, set->module->name,
                      "no %.1f MiB of memory for the product library's scratchpad",
                      (double)cpu->scratch_bytes / 1048576);
    return cpu->scratch;
}

static bool cpu_load(Device *device, const ProgramSet *set, Diagnostics *diagnostics) {
    CpuDevice *cpu = cpu_of(device);
    INTERNAL_CHECK(!cpu->products);
    return compile_kernels(cpu, set, diagnostics) && prepare_products(cpu, set, diagnostics);
}

static void cpu_launch(Device *device, int kernel, void *const *buffers,
                       const double *scalars) {
    cpu_of(device)->kernels->functions[kernel](buffers, scalars);
}

/* Threads have scratch of their own, which no plan knows: how many they are is told last. */
static void cpu_product(Device *device, int product, const void *a, const void *b, void *c,
                        void *workspace) {
    CpuDevice *cpu = cpu_of(device);
    (void)workspace;
    product_run(cpu->products[product], a, b, c, cpu->scratch);
}

static int64_t cpu_scratch_bytes(Device *device) {
    return cpu_of(device)->scratch_bytes;
}

static void cpu_close(Device *device) {
    CpuDevice *cpu = cpu_of(device);
    for (int i = 0; i < cpu->product_count; i++)
        product_free(cpu->products[i]);
    free(cpu->products);
    jit_free(cpu->kernels);
    while (cpu->allocations.count)
        cpu_release(device, cpu->allocations.data[0].address);
    array_free(&cpu->allocations);
    omp_set_num_threads(cpu->threads_before);
    free(cpu);
}

Device *device_cpu_open(int threads, Diagnostics *diagnostics) {
    enum { MAX_THREADS = 4096 };
    if (threads < 0 || threads > MAX_THREADS) {
        error_in_file(diagnostics, "--threads", "%d is not in 1 … %d", threads, MAX_THREADS);
        return NULL;
    }
    CpuDevice *cpu = checked_alloc(sizeof *cpu);
    cpu->threads_before = omp_get_max_threads();
    cpu->threads = threads ? threads : cpu->threads_before;
    omp_set_num_threads(cpu->threads);
    cpu->device = (Device){
        .name = "cpu",
        .on_host = true,
        .available_bytes = cpu_available_bytes,
        .allocate = cpu_allocate,
        .release = cpu_release,
        .load = cpu_load,
        .launch = cpu_launch,
        .product = cpu_product,
        .copy = cpu_copy,
        .copy_in = cpu_copy,
        .copy_out = cpu_copy,
        .zero = cpu_zero,
        .synchronize = cpu_synchronize,
        .scratch_bytes = cpu_scratch_bytes,
        .close = cpu_close,
    };
    return &cpu->device;
}
