/* tests/simulator/blas.c: cuBLASLt by colac's own products, so that a run on the simulated card
 * has the CPU's bits. */
#include "runtime/runtime.h"
#include "tests/emulator/emulator.h"
#include "tests/simulator/simulator.h"

#include <stdlib.h>

struct cublasLtContext {
    int live;
};
struct cublasLtMatmulDescOpaque {
    int transposed[2];
};
struct cublasLtMatrixLayoutOpaque {
    cudaDataType_t type;
    int64_t rows, columns, leading, batches, stride;
};
struct cublasLtMatmulPreferenceOpaque {
    uint32_t alignment[4];
    uint64_t workspace;
    uint32_t reductions;
};

size_t cublasLtGetVersion(void) {
    called("cublasLtGetVersion");
    return 130000;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    CALL(cublasLtCreate, CUBLAS_STATUS_ALLOC_FAILED);
    *handle = calloc(1, sizeof **handle);
    count_object(OBJECT_BLAS, 1);
    return CUBLAS_STATUS_SUCCESS;
}

static void forget_products(void);

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    free(handle);
    forget_products();
    count_object(OBJECT_BLAS, -1);
    CALL(cublasLtDestroy, CUBLAS_STATUS_NOT_SUPPORTED);
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
    bool none = called("cublasLtGetStatusString");
    return none ? NULL
           : status == CUBLAS_STATUS_NOT_SUPPORTED
               ? "the functionality requested is not supported"
           : status == CUBLAS_STATUS_ALLOC_FAILED ? "the resource allocation failed"
                                                  : "an error of the simulated library";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *operation,
                                        cublasComputeType_t computed_in,
                                        cudaDataType_t scaled_in) {
    CALL(cublasLtMatmulDescCreate, CUBLAS_STATUS_ALLOC_FAILED);
    bool tf32 = computed_in == CUBLAS_COMPUTE_32F_FAST_TF32;
    if ((computed_in != CUBLAS_COMPUTE_32F && !tf32) || scaled_in != CUDA_R_32F)
        fault("a product that is not summed in f32");
    count_tf32(tf32);
    *operation = calloc(1, sizeof **operation);
    count_object(OBJECT_BLAS, 1);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
    free(operation);
    count_object(OBJECT_BLAS, -1);
    CALL(cublasLtMatmulDescDestroy, CUBLAS_STATUS_NOT_SUPPORTED);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation, int attribute,
                                              const void *value, size_t bytes) {
    CALL(cublasLtMatmulDescSetAttribute, CUBLAS_STATUS_NOT_SUPPORTED);
    if (bytes != sizeof(cublasOperation_t))
        fault("an attribute of %zu bytes", bytes);
    operation->transposed[attribute == CUBLASLT_MATMUL_DESC_TRANSB] =
        *(const cublasOperation_t *)value == CUBLAS_OP_T;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t leading) {
    CALL(cublasLtMatrixLayoutCreate, CUBLAS_STATUS_ALLOC_FAILED);
    if (leading < (int64_t)rows)
        fault("a matrix of %lld rows with %lld elements from one column to the next",
              (long long)rows, (long long)leading);
    *layout = calloc(1, sizeof **layout);
    **layout = (struct cublasLtMatrixLayoutOpaque){.type = type,
                                                   .rows = (int64_t)rows,
                                                   .columns = (int64_t)columns,
                                                   .leading = leading,
                                                   .batches = 1};
    count_object(OBJECT_BLAS, 1);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    free(layout);
    count_object(OBJECT_BLAS, -1);
    CALL(cublasLtMatrixLayoutDestroy, CUBLAS_STATUS_NOT_SUPPORTED);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, int attribute,
                                                const void *value, size_t bytes) {
    CALL(cublasLtMatrixLayoutSetAttribute, CUBLAS_STATUS_NOT_SUPPORTED);
    if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT && bytes == sizeof(int32_t))
        layout->batches = *(const int32_t *)value;
    else if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET &&
             bytes == sizeof(int64_t))
        layout->stride = *(const int64_t *)value;
    else
        fault("attribute %d of %zu bytes", attribute, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    CALL(cublasLtMatmulPreferenceCreate, CUBLAS_STATUS_ALLOC_FAILED);
    *preference = calloc(1, sizeof **preference);
    for (int i = 0; i < 4; i++)
        (*preference)->alignment[i] = 256; /* what the library takes for granted */
    count_object(OBJECT_BLAS, 1);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    free(preference);
    count_object(OBJECT_BLAS, -1);
    CALL(cublasLtMatmulPreferenceDestroy, CUBLAS_STATUS_NOT_SUPPORTED);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    int attribute, const void *value,
                                                    size_t bytes) {
    CALL(cublasLtMatmulPreferenceSetAttribute, CUBLAS_STATUS_NOT_SUPPORTED);
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == sizeof(uint64_t))
        preference->workspace = *(const uint64_t *)value;
    else if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK &&
             bytes == sizeof(uint32_t))
        preference->reductions = *(const uint32_t *)value;
    else if (attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
             attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES &&
             bytes == sizeof(uint32_t))
        preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES] =
            *(const uint32_t *)value;
    else
        fault("preference %d of %zu bytes", attribute, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* An "algorithm" is what a call must then come with: so much workspace, operands aligned so,
 * and the shape that it was chosen for. */
enum { ALGORITHM_WORKSPACE, ALGORITHM_ALIGNMENT, ALGORITHM_SHAPE = 5 };

static uint64_t shape_number(cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                             cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t d) {
    const uint64_t numbers[] = {
        operation->transposed[0], operation->transposed[1], (uint64_t)a->rows,
        (uint64_t)a->columns,     (uint64_t)a->leading,     (uint64_t)b->leading,
        (uint64_t)d->columns,     (uint64_t)d->leading,     (uint64_t)d->batches,
        (uint64_t)a->type,        (uint64_t)d->type};
    uint64_t sum = 1;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sum = (sum ^ numbers[i]) * 0x9E3779B97F4A7C15u, sum ^= sum >> 29;
    return sum;
}

/* Nothing, all that is allowed, or less: as the shape will have it. */
static uint64_t workspace_for(uint64_t shape, uint64_t most) {
    static const unsigned parts_of_4[] = {4, 0, 1, 3};
    return most / 4 * parts_of_4[shape >> 17 & 3] & ~UINT64_C(255);
}

cublasStatus_t
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                               cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                               cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                               cublasLtMatmulPreference_t preference, int wanted,
                               cublasLtMatmulHeuristicResult_t *found, int *count) {
    CALL(cublasLtMatmulAlgoGetHeuristic, CUBLAS_STATUS_NOT_SUPPORTED);
    (void)handle;
    int64_t m = operation->transposed[0] ? a->columns : a->rows;
    int64_t k = operation->transposed[0] ? a->rows : a->columns;
    int64_t k2 = operation->transposed[1] ? b->columns : b->rows;
    int64_t n = operation->transposed[1] ? b->rows : b->columns;
    if (m != c->rows || n != c->columns || k != k2 || c != d || a->batches != b->batches ||
        a->batches != c->batches || a->type != b->type)
        fault("the matrices of a product do not fit");
    if (preference->reductions & 1)
        fault("reductions in place are allowed, whose order is that of arrival");
    *count = wanted > 0;
    uint64_t shape = shape_number(operation, a, b, d);
    found->workspaceSize = workspace_for(shape, preference->workspace);
    found->algo.data[ALGORITHM_WORKSPACE] = found->workspaceSize;
    for (int i = 0; i < 4; i++)
        found->algo.data[ALGORITHM_ALIGNMENT + i] = preference->alignment[i];
    found->algo.data[ALGORITHM_SHAPE] = shape;
    found->state = CUBLAS_STATUS_SUCCESS;
    return CUBLAS_STATUS_SUCCESS;
}

/* It knows its own algorithms alone. */
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algorithm,
                                       cublasLtMatmulHeuristicResult_t *result) {
    CALL(cublasLtMatmulAlgoCheck, CUBLAS_STATUS_NOT_SUPPORTED);
    (void)handle, (void)c;
    result->algo = *algorithm;
    result->workspaceSize = algorithm->data[ALGORITHM_WORKSPACE];
    result->state = algorithm->data[ALGORITHM_SHAPE] == shape_number(operation, a, b, d)
                        ? CUBLAS_STATUS_SUCCESS
                        : CUBLAS_STATUS_NOT_SUPPORTED;
    return result->state;
}

/* ---- products ------------------------------------------------------------------------------- */

static struct Known {
    Product shape;
    PreparedProduct *prepared;
} * products;
static int product_count;

static void forget_products(void) {
    for (int i = 0; i < product_count; i++)
        product_free(products[i].prepared);
    free(products);
    products = NULL;
    product_count = 0;
}

static const PreparedProduct *prepared_for(const Product *shape) {
    for (int i = 0; i < product_count; i++)
        if (memcmp(&products[i].shape, shape, sizeof *shape) == 0)
            return products[i].prepared;
    products = realloc(products, (size_t)(product_count + 1) * sizeof *products);
    products[product_count] = (struct Known){*shape, product_prepare(shape)};
    return products[product_count++].prepared;
}

static Product shape_of(cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t first,
                        cublasLtMatrixLayout_t second, cublasLtMatrixLayout_t result,
                        bool add) {
    bool t1 = operation->transposed[0], t2 = operation->transposed[1];
    Product p;
    memset(&p, 0, sizeof p); /* with what lies between members: shapes are compared */
    p.m = result->columns;
    p.n = result->rows;
    p.k = t1 ? first->rows : first->columns;
    p.b_n = t1 ? first->leading : 1;
    p.b_k = t1 ? 1 : first->leading;
    p.a_m = t2 ? 1 : second->leading;
    p.a_k = t2 ? second->leading : 1;
    p.c_m = result->leading;
    p.c_n = 1;
    p.add = add;
    p.bf16_operands = first->type == CUDA_R_16BF;
    p.bf16_result = result->type == CUDA_R_16BF;
    if (result->batches > 1) {
        p.batch_count = 1;
        p.batch[0] =
            (ProductLoop){result->batches, second->stride, first->stride, result->stride};
    }
    return p;
}

static void run_product(Work *work) {
    void *operands[3];
    for (int i = 0; i < 3; i++)
        operands[i] =
            host_of(work->product.operands[i], (size_t)work->product.bytes[i], work->name);
    size_t room = work->product.workspace_bytes;
    if (room) { /* what lay there is gone, and what lies there now is nobody's */
        char *workspace = host_of(work->product.workspace, room, "a product's workspace");
        memset(workspace, 0xC5, room);
        emulator_poison(workspace, room);
    }
    int64_t bytes = product_scratch_bytes(work->product.prepared) * 64;
    char *scratch = aligned_alloc(64, (size_t)(bytes + 64) / 64 * 64);
    product_run(work->product.prepared, operands[0], operands[1], operands[2], scratch);
    free(scratch);
    emulator_stored(operands[2], (size_t)work->product.bytes[2]);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                              const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout,
                              const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
                              const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, CUstream stream) {
    CALL(cublasLtMatmul, CUBLAS_STATUS_NOT_SUPPORTED);
    (void)handle;
    float scale = *(const float *)alpha, kept = *(const float *)beta;
    if (scale != 1 || (kept != 0 && kept != 1) || c != d || c_layout != d_layout)
        fault("a product that the simulator does not know");
    uint64_t wanted = algorithm->data[ALGORITHM_WORKSPACE];
    if (workspace_bytes < wanted)
        fault("a product without the workspace that it was chosen with");
    if ((uintptr_t)workspace % 256)
        fault("a workspace that is not at a multiple of 256 bytes");
    if (algorithm->data[ALGORITHM_SHAPE] !=
        shape_number(operation, a_layout, b_layout, d_layout))
        fault("a product by an algorithm that was chosen for another");
    const void *places[] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)places[i] % algorithm->data[ALGORITHM_ALIGNMENT + i])
            fault("operand %c of a product is not at a multiple of %llu bytes", "ABCD"[i],
                  (unsigned long long)algorithm -> data[ALGORITHM_ALIGNMENT + i]);
    Product shape = shape_of(operation, a_layout, b_layout, c_layout, kept == 1);
    Work work = {.run = run_product, .name = "cublasLtMatmul"};
    const PreparedProduct *prepared = prepared_for(&shape);
    work.product.prepared = prepared;
    product_operand_bytes(prepared, work.product.bytes);
    const void *operands[] = {b, a, d};
    for (int i = 0; i < 3; i++) {
        work.product.operands[i] = (CUdeviceptr)(uintptr_t)operands[i];
        uses(&work, work.product.operands[i]);
    }
    work.product.workspace = (CUdeviceptr)(uintptr_t)workspace;
    work.product.workspace_bytes = (size_t)wanted;
    if (wanted)
        uses(&work, work.product.workspace);
    return enqueue(stream, &work) == CUDA_SUCCESS ? CUBLAS_STATUS_SUCCESS
                                                  : CUBLAS_STATUS_NOT_SUPPORTED;
}
