/* cuda/device.c: a card behind the runtime's device table.
 *
 * Everything goes into one stream, in order.  Values from the host are copied to pinned memory,
 * a slot at a time, and from there by the card; a slot is used again when the card is done with
 * it.  So the host waits for the card in three places alone: when all slots are under way, when
 * values are read, and when it is asked to. */
#include "cuda/cuda.h"

#include <stdarg.h>

enum { SLOTS = 4, SLOT_BYTES = 4 << 20 };
enum { MAX_FAILURE = 512 };

typedef struct Slot {
    void *memory; /* pinned */
    CUevent done; /* the card is done with it */
} Slot;

typedef struct CudaKernel {
    LaunchList list;
    CUfunction *functions; /* by launch */
    void **parameters;     /* room for the addresses of one launch's arguments */
    void **arguments;      /* room for the arguments */
} CudaKernel;

typedef struct CudaDevice {
    Device device; /* first: the table is this device */
    const CudaTable *cuda;
    char name[32], title[128];
    char failure[MAX_FAILURE]; /* "": none */
    bool told;                 /* somebody has asked for it, or it is in `diagnostics` */
    Diagnostics *diagnostics;  /* of who opened it: for what fails when it is closed */
    CudaArchitecture architecture;
    CUdevice card;
    bool retained;  /* the card's primary context */
    bool capturing; /* the stream */
    CUstream stream;
    Slot slots[SLOTS + FETCH_PLACES];
    int next_slot;
    CubinResult *cubins;
    CUmodule *modules; /* by cubin */
    int kernel_count;
    CudaKernel *kernels;
    cublasLtHandle_t blas;
    int product_count;
    CudaProduct **products;
    const Product *shapes; /* theirs, of the program set */
    ARRAY(CUgraphExec) recordings;
    ARRAY(CUevent) marks; /* by number */
} CudaDevice;

/* Of the 48 KiB of shared memory that a block may have unasked, 4 are for its reductions
 * (print_cuda.c), which want half of that. */
const Room cuda_room = {.local_bytes = 44 << 10,
                        .workspace_bytes = cuda_product_workspace,
                        .workspace_alignment = BLAS_WORKSPACE_ALIGNMENT};

static CudaDevice *cuda_of(Device *device) {
    return (CudaDevice *)(void *)device;
}

/* ---- failures ------------------------------------------------------------------------ */

static bool is_well(const CudaDevice *d) {
    return !d->failure[0];
}

static void fail(CudaDevice *d, const char *format, ...) PRINTF_LIKE(2, 3);
static void fail(CudaDevice *d, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (is_well(d))
        vsnprintf(d->failure, sizeof d->failure, format, args);
    va_end(args);
}

/* The driver's words for a result, and its name. */
static void driver_called(CudaDevice *d, const char *function, CUresult result) {
    const char *name = NULL, *words = NULL;
    if (result == CUDA_SUCCESS || !is_well(d))
        return;
    d->cuda->cuGetErrorName(result, &name);
    d->cuda->cuGetErrorString(result, &words);
    fail(d, "`%s` failed: %s (%s, %d)", function, words ? words : "an error without words",
         name ? name : "unknown", (int)result);
}
/* Calls the driver unless something has failed before. */
#define DRIVER(d, name, ...)                                                                   \
    do {                                                                                       \
        if (is_well(d))                                                                        \
            driver_called(d, #name, (d)->cuda->name(__VA_ARGS__));                             \
    } while (0)

/* The same for what gives something back: it is called in any case. */
#define GIVE_BACK(d, name, ...) driver_called(d, #name, (d)->cuda->name(__VA_ARGS__))

static const char *cuda_failure(Device *device) {
    CudaDevice *d = cuda_of(device);
    d->told |= !is_well(d);
    return is_well(d) ? NULL : d->failure;
}

/* ---- memory -------------------------------------------------------------------------- */

static CUdeviceptr address_of(const void *pointer) {
    return (CUdeviceptr)(uintptr_t)pointer;
}

static int64_t cuda_available_bytes(Device *device) {
    CudaDevice *d = cuda_of(device);
    size_t available = 0, total = 0;
    DRIVER(d, cuMemGetInfo_v2, &available, &total);
    return (int64_t)available;
}

/* Zeroed.  No memory is no failure of the device: the caller tells what did not fit. */
static void *cuda_allocate(Device *device, int64_t bytes) {
    CudaDevice *d = cuda_of(device);
    CUdeviceptr address = 0;
    if (!is_well(d))
        return NULL;
    CUresult result = d->cuda->cuMemAlloc_v2(&address, (size_t)bytes);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return NULL;
    driver_called(d, "cuMemAlloc_v2", result);
    DRIVER(d, cuMemsetD8Async, address, 0, (size_t)bytes, d->stream);
    return is_well(d) ? (void *)(uintptr_t)address : NULL;
}

static void cuda_release(Device *device, void *buffer) {
    CudaDevice *d = cuda_of(device);
    if (buffer)
        GIVE_BACK(d, cuMemFree_v2, address_of(buffer));
}

static Slot *take_slot(CudaDevice *d) {
    Slot *slot = &d->slots[d->next_slot];
    d->next_slot = (d->next_slot + 1) % SLOTS;
    DRIVER(d, cuEventSynchronize, slot->done);
    return slot;
}

static int64_t piece_of(int64_t bytes, int64_t done) {
    return bytes - done < SLOT_BYTES ? bytes - done : SLOT_BYTES;
}

static void cuda_copy_in(Device *device, void *to, const void *from, int64_t bytes) {
    CudaDevice *d = cuda_of(device);
    for (int64_t done = 0; is_well(d) && done < bytes; done += SLOT_BYTES) {
        size_t piece = (size_t)piece_of(bytes, done);
        Slot *slot = take_slot(d);
        if (!is_well(d))
            return;
        memcpy(slot->memory, (const char *)from + done, piece);
        DRIVER(d, cuMemcpyHtoDAsync_v2, address_of(to) + (CUdeviceptr)done, slot->memory, piece,
               d->stream);
        DRIVER(d, cuEventRecord, slot->done, d->stream);
    }
}

static void cuda_copy_out(Device *device, void *to, const void *from, int64_t bytes) {
    CudaDevice *d = cuda_of(device);
    for (int64_t done = 0; is_well(d) && done < bytes; done += SLOT_BYTES) {
        size_t piece = (size_t)piece_of(bytes, done);
        Slot *slot = take_slot(d);
        DRIVER(d, cuMemcpyDtoHAsync_v2, slot->memory, address_of(from) + (CUdeviceptr)done,
               piece, d->stream);
        DRIVER(d, cuEventRecord, slot->done, d->stream);
        DRIVER(d, cuEventSynchronize, slot->done);
        if (is_well(d))
            memcpy((char *)to + done, slot->memory, piece);
    }
}

/* Fetched values have slots of their own, after those of copies. */
static void cuda_fetch(Device *device, int place, const void *from, int64_t bytes) {
    CudaDevice *d = cuda_of(device);
    Slot *slot = &d->slots[SLOTS + place];
    INTERNAL_CHECK(place < FETCH_PLACES && bytes <= FETCH_BYTES);
    DRIVER(d, cuMemcpyDtoHAsync_v2, slot->memory, address_of(from), (size_t)bytes, d->stream);
    DRIVER(d, cuEventRecord, slot->done, d->stream);
}

static void cuda_fetched(Device *device, int place, void *to, int64_t bytes) {
    CudaDevice *d = cuda_of(device);
    Slot *slot = &d->slots[SLOTS + place];
    DRIVER(d, cuEventSynchronize, slot->done);
    if (is_well(d))
        memcpy(to, slot->memory, (size_t)bytes);
}

static void cuda_copy(Device *device, void *to, const void *from, int64_t bytes) {
    CudaDevice *d = cuda_of(device);
    DRIVER(d, cuMemcpyDtoDAsync_v2, address_of(to), address_of(from), (size_t)bytes, d->stream);
}

static void cuda_zero(Device *device, void *at, int64_t bytes) {
    CudaDevice *d = cuda_of(device);
    if (bytes)
        DRIVER(d, cuMemsetD8Async, address_of(at), 0, (size_t)bytes, d->stream);
}

static void cuda_synchronize(Device *device) {
    CudaDevice *d = cuda_of(device);
    DRIVER(d, cuStreamSynchronize, d->stream);
}

/* ---- loading ------------------------------------------------------------------------- */

static bool compile_kernels(CudaDevice *d, const CudaSource *source, Diagnostics *diagnostics) {
    d->cubins = cubin_compile(source, d->architecture, true, diagnostics);
    if (!d->cubins)
        return false;
    d->device.compile_seconds = d->cubins->seconds;
    d->device.compile_cached = d->cubins->cached;
    return true;
}

static void load_kernel(CudaDevice *d, CudaKernel *kernel, CUmodule module) {
    size_t launches = (size_t)kernel->list.count, most = 0;
    kernel->functions = checked_alloc(launches * sizeof *kernel->functions);
    for (size_t k = 0; k < launches; k++) {
        const Launch *launch = &kernel->list.launches[k];
        most = (size_t)launch->argument_count > most ? (size_t)launch->argument_count : most;
        DRIVER(d, cuModuleGetFunction, &kernel->functions[k], module, launch->name);
    }
    kernel->parameters = checked_alloc(most * sizeof *kernel->parameters);
    kernel->arguments = checked_alloc(most * sizeof *kernel->arguments);
    for (size_t k = 0; k < most; k++)
        kernel->parameters[k] = &kernel->arguments[k];
}

static void load_kernels(CudaDevice *d, const ProgramSet *set, const CudaSource *source) {
    d->modules = checked_alloc((size_t)d->cubins->cubin_count * sizeof *d->modules);
    for (int i = 0; i < d->cubins->cubin_count; i++)
        DRIVER(d, cuModuleLoadData, &d->modules[i], d->cubins->cubins[i].bytes);
    d->kernel_count = set->kernel_count;
    d->kernels = checked_alloc((size_t)set->kernel_count * sizeof *d->kernels);
    for (int i = 0; i < set->kernel_count; i++) {
        d->kernels[i].list = source->kernels[i];
        load_kernel(d, &d->kernels[i], d->modules[source->homes[i]]);
    }
}

/* `product`: whose call it was; NULL. */
static void blas_called(CudaDevice *d, BlasFault fault, const Product *product) {
    if (!fault.function || !is_well(d))
        return;
    const char *words = d->cuda->cublasLtGetStatusString((cublasStatus_t)fault.status);
    Text shape = {0};
    if (product)
        print_product(product, &shape);
    fail(d, "`%s` failed: %s (status %d)%s%s", fault.function,
         words ? words : "an error without words", fault.status, product ? ", product " : "",
         product ? text_string(&shape) : "");
    text_free(&shape);
}

/* Slabs, inputs and the arena are allocations of their own; what lies in them begins at its
 * offset, in every step that runs the product.  No more than BLAS_ALIGNMENT is told: how the
 * arena is packed must not decide which kernel runs. */
static void product_alignment(const ProgramSet *set, int product, int64_t alignment[3]) {
    for (int i = 0; i < 3; i++)
        alignment[i] = BLAS_ALIGNMENT;
    for (int p = 0; p < set->program_count; p++)
        for (int64_t s = 0; s < set->programs[p].step_count; s++) {
            const Step *step = &set->programs[p].steps[s];
            if (step->kind != STEP_PRODUCT || step->index != product)
                continue;
            for (int i = 0; i < 3; i++)
                while (step->operands[i].offset % alignment[i])
                    alignment[i] /= 2;
        }
}

/* Each with the choice of before, if there is one; what is chosen now is kept. */
static void choose_products(CudaDevice *d, const ProgramSet *set, const CudaTable *blas) {
    int count = set->product_count;
    int64_t(*alignments)[3] = checked_alloc((size_t)count * sizeof *alignments);
    char key[33];
    for (int i = 0; i < count; i++)
        product_alignment(set, i, alignments[i]);
    blas_choices_key(blas, d->title, set->products, alignments, count, key);
    BlasChoice *known = blas_choices_find(key, count);
    BlasChoice *chosen = checked_alloc((size_t)count * sizeof *chosen);
    for (int i = 0; i < count && is_well(d); i++) {
        BlasFault fault = {0};
        d->products[i] = cuda_product_prepare(blas, d->blas, &set->products[i], alignments[i],
                                              known ? &known[i] : NULL, &fault);
        blas_called(d, fault, &d->shapes[i]);
        if (!d->products[i])
            break;
        chosen[i] = cuda_product_choice(d->products[i]);
    }
    if (is_well(d) && (!known || memcmp(known, chosen, (size_t)count * sizeof *chosen) != 0))
        blas_choices_keep(key, chosen, count);
    free(known);
    free(chosen);
    free(alignments);
}

static bool prepare_products(CudaDevice *d, const ProgramSet *set, Diagnostics *diagnostics) {
    if (!set->product_count)
        return true;
    const CudaTable *blas = cuda_library(CUDA_BLASLT, diagnostics);
    if (!blas)
        return false;
    cublasStatus_t status = blas->cublasLtCreate(&d->blas);
    if (status != CUBLAS_STATUS_SUCCESS)
        blas_called(d, (BlasFault){"cublasLtCreate", (int)status}, NULL);
    d->products = checked_alloc((size_t)set->product_count * sizeof(CudaProduct *));
    d->product_count = set->product_count;
    d->shapes = set->products;
    if (is_well(d))
        choose_products(d, set, blas);
    return true;
}

static bool report(CudaDevice *d, Diagnostics *diagnostics) {
    if (!is_well(d) && !d->told)
        error_in_file(diagnostics, d->name, "%s", d->failure);
    d->told |= !is_well(d);
    return is_well(d);
}

static bool cuda_load(Device *device, const ProgramSet *set, Diagnostics *diagnostics) {
    CudaDevice *d = cuda_of(device);
    INTERNAL_CHECK(!d->kernels);
    CudaSource source = cuda_source(set);
    bool compiled = cuda_source_fits(&source, set->module, diagnostics) &&
                    compile_kernels(d, &source, diagnostics);
    if (compiled)
        load_kernels(d, set, &source);
    cuda_source_free(&source);
    if (!compiled)
        return false;
    if (is_well(d) && !prepare_products(d, set, diagnostics))
        return false;
    return report(d, diagnostics);
}

/* ---- running ------------------------------------------------------------------------- */

static void cuda_launch(Device *device, int index, void *const *buffers,
                        const double *scalars) {
    CudaDevice *d = cuda_of(device);
    CudaKernel *kernel = &d->kernels[index];
    union {
        const double *given;
        void *pointer;
    } scalars_at = {scalars};
    for (int k = 0; k < kernel->list.count; k++) {
        const Launch *launch = &kernel->list.launches[k];
        for (int i = 0; i < launch->argument_count; i++)
            kernel->arguments[i] = launch->takes_scalars && i == launch->argument_count - 1
                                       ? scalars_at.pointer
                                       : buffers[launch->arguments[i]];
        DRIVER(d, cuLaunchKernel, kernel->functions[k], (unsigned)launch->blocks, 1, 1,
               (unsigned)(launch->threads * launch->teams), 1, 1, 0, d->stream,
               kernel->parameters, NULL);
    }
}

static void cuda_product(Device *device, int product, const void *a, const void *b, void *c,
                         void *workspace) {
    CudaDevice *d = cuda_of(device);
    INTERNAL_CHECK(workspace); /* of cuda_room */
    if (is_well(d))
        blas_called(d, cuda_product_run(d->products[product], a, b, c, workspace, d->stream),
                    &d->shapes[product]);
}

static void cuda_record(Device *device) {
    CudaDevice *d = cuda_of(device);
    DRIVER(d, cuStreamBeginCapture_v2, d->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    d->capturing = is_well(d);
}

/* The capture ends whatever has failed: while it lasts, nothing can be given back. */
static void *cuda_recorded(Device *device) {
    CudaDevice *d = cuda_of(device);
    CUgraph graph = NULL;
    CUgraphExec recording = NULL;
    if (d->capturing)
        GIVE_BACK(d, cuStreamEndCapture, d->stream, &graph);
    d->capturing = false;
    DRIVER(d, cuGraphInstantiateWithFlags, &recording, graph, 0);
    if (graph)
        GIVE_BACK(d, cuGraphDestroy, graph);
    if (recording)
        array_push(&d->recordings, recording);
    return recording;
}

static void cuda_replay(Device *device, void *recording) {
    CudaDevice *d = cuda_of(device);
    DRIVER(d, cuGraphLaunch, (CUgraphExec)recording, d->stream);
}

/* ---- the card's clock ----------------------------------------------------------------- */

/* External: a node of the graph, which is passed at each replay. */
static void cuda_mark(Device *device, int64_t number) {
    CudaDevice *d = cuda_of(device);
    while (d->marks.count <= number) {
        CUevent event = NULL;
        DRIVER(d, cuEventCreate, &event, CU_EVENT_DEFAULT);
        array_push(&d->marks, event);
    }
    DRIVER(d, cuEventRecordWithFlags, d->marks.data[number], d->stream,
           d->capturing ? CU_EVENT_RECORD_EXTERNAL : 0);
}

static double cuda_between(Device *device, int64_t number) {
    CudaDevice *d = cuda_of(device);
    float milliseconds = 0;
    DRIVER(d, cuEventElapsedTime, &milliseconds, d->marks.data[number],
           d->marks.data[number + 1]);
    return milliseconds * 1e-3;
}

/* ---- opening and closing ------------------------------------------------------------- */

static void free_kernels(CudaDevice *d) {
    for (int i = 0; d->modules && i < d->cubins->cubin_count; i++)
        if (d->modules[i])
            GIVE_BACK(d, cuModuleUnload, d->modules[i]);
    for (int i = 0; i < d->kernel_count; i++) {
        free(d->kernels[i].functions);
        free(d->kernels[i].parameters);
        free(d->kernels[i].arguments);
    }
    free(d->modules);
    free(d->kernels);
    if (d->cubins)
        cubin_free(d->cubins);
}

static void free_products(CudaDevice *d) {
    for (int i = 0; i < d->product_count; i++)
        blas_called(d, cuda_product_free(d->products[i]), NULL);
    free(d->products);
    if (!d->blas)
        return;
    cublasStatus_t status = d->cuda->cublasLtDestroy(d->blas);
    if (status != CUBLAS_STATUS_SUCCESS)
        blas_called(d, (BlasFault){"cublasLtDestroy", (int)status}, NULL);
}

/* A failure that nobody has heard of, here at the latest. */
static void cuda_close(Device *device) {
    CudaDevice *d = cuda_of(device);
    if (d->stream)
        GIVE_BACK(d, cuStreamSynchronize, d->stream);
    for (int64_t i = 0; i < d->recordings.count; i++)
        GIVE_BACK(d, cuGraphExecDestroy, d->recordings.data[i]);
    array_free(&d->recordings);
    for (int64_t i = 0; i < d->marks.count; i++)
        if (d->marks.data[i])
            GIVE_BACK(d, cuEventDestroy_v2, d->marks.data[i]);
    array_free(&d->marks);
    free_kernels(d);
    free_products(d);
    for (int i = 0; i < COUNT_OF(d->slots); i++) {
        if (d->slots[i].done)
            GIVE_BACK(d, cuEventDestroy_v2, d->slots[i].done);
        if (d->slots[i].memory)
            GIVE_BACK(d, cuMemFreeHost, d->slots[i].memory);
    }
    if (d->stream)
        GIVE_BACK(d, cuStreamDestroy_v2, d->stream);
    if (d->retained)
        GIVE_BACK(d, cuDevicePrimaryCtxRelease_v2, d->card);
    report(d, d->diagnostics);
    free(d);
}

static void open_card(CudaDevice *d) {
    CUcontext context = NULL;
    int major = 0, minor = 0;
    DRIVER(d, cuInit, 0);
    int count = 0;
    DRIVER(d, cuDeviceGetCount, &count);
    if (is_well(d) && count == 0)
        fail(d, "the driver shows no card (CUDA_VISIBLE_DEVICES may hide them)");
    DRIVER(d, cuDeviceGet, &d->card, 0);
    DRIVER(d, cuDeviceGetAttribute, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
           d->card);
    DRIVER(d, cuDeviceGetAttribute, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
           d->card);
    d->architecture = 10 * major + minor;
    DRIVER(d, cuDeviceGetName, d->title, sizeof d->title, d->card);
    DRIVER(d, cuDevicePrimaryCtxRetain, &context, d->card);
    d->retained = is_well(d);
    DRIVER(d, cuCtxSetCurrent, context);
    DRIVER(d, cuStreamCreate, &d->stream, CU_STREAM_NON_BLOCKING);
    for (int i = 0; i < COUNT_OF(d->slots); i++) {
        DRIVER(d, cuMemHostAlloc, &d->slots[i].memory, i < SLOTS ? SLOT_BYTES : FETCH_BYTES, 0);
        DRIVER(d, cuEventCreate, &d->slots[i].done, CU_EVENT_DISABLE_TIMING);
    }
}

CudaArchitecture device_cuda_architecture(const Device *device) {
    return ((const CudaDevice *)(const void *)device)->architecture;
}

static const Device cuda_table = {
    .available_bytes = cuda_available_bytes,
    .failure = cuda_failure,
    .allocate = cuda_allocate,
    .release = cuda_release,
    .load = cuda_load,
    .launch = cuda_launch,
    .product = cuda_product,
    .copy = cuda_copy,
    .copy_in = cuda_copy_in,
    .copy_out = cuda_copy_out,
    .zero = cuda_zero,
    .synchronize = cuda_synchronize,
    .fetch = cuda_fetch,
    .fetched = cuda_fetched,
    .record = cuda_record,
    .recorded = cuda_recorded,
    .replay = cuda_replay,
    .mark = cuda_mark,
    .between = cuda_between,
    .close = cuda_close,
};

Device *device_cuda_open(CudaArchitecture architecture, Diagnostics *diagnostics) {
    const CudaTable *cuda = cuda_library(CUDA_DRIVER, diagnostics);
    if (!cuda)
        return NULL;
    CudaDevice *d = checked_alloc(sizeof *d);
    d->device = cuda_table;
    d->cuda = cuda;
    d->diagnostics = diagnostics;
    snprintf(d->name, sizeof d->name, "--device cuda");
    d->device.name = d->name;
    d->device.title = d->title;
    open_card(d);
    bool good = report(d, diagnostics);
    if (good && architecture && architecture != d->architecture) {
        error_in_file(diagnostics, d->name,
                      "the card is of architecture sm_%d, not sm_%d as asked for",
                      d->architecture, architecture);
        good = false;
    }
    if (good)
        return &d->device;
    cuda_close(&d->device);
    return NULL;
}
