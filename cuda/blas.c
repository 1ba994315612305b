/* cuda/blas.c: matrix products through cuBLASLt, which takes matrices column by column: a
 * product C = A B with C row by row is to it C' = B' A'. */
#include "cuda/cuda.h"

typedef struct Matrix {
    int64_t rows, columns, leading; /* as it lies in memory, column by column */
    bool transposed;                /* is the operand its transpose? */
} Matrix;

struct CudaProduct {
    const CudaTable *blas;
    cublasLtHandle_t handle;
    Product shape;
    bool exchanged; /* A and B, in `shape` */
    int strided;    /* the batch loop that the library runs; -1 */
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t first, second, result; /* B', A', C' */
    BlasChoice choice;
};

/* ---- calls ------------------------------------------------------------------------------ */

/* Remembers the first call that failed; later ones are not made. */
typedef struct Calls {
    BlasFault fault;
} Calls;

static void called(Calls *calls, const char *function, cublasStatus_t status) {
    if (!calls->fault.function && status != CUBLAS_STATUS_SUCCESS)
        calls->fault = (BlasFault){function, (int)status};
}
#define CALL(calls, table, name, ...)                                                          \
    do {                                                                                       \
        if (!(calls)->fault.function)                                                          \
            called(calls, #name, (table)->name(__VA_ARGS__));                                  \
    } while (0)

/* ---- operands --------------------------------------------------------------------------- */

/* An operand of the library's [rows,columns] with the given strides, of which one is 1. */
static Matrix matrix_of(int64_t rows, int64_t columns, int64_t row, int64_t column) {
    if (row == 1)
        return (Matrix){rows, columns, column, false};
    return (Matrix){columns, rows, row, true};
}

static void make_layout(Calls *calls, const CudaProduct *p, cublasLtMatrixLayout_t *layout,
                        cudaDataType_t type, Matrix matrix, int64_t batch_stride) {
    CALL(calls, p->blas, cublasLtMatrixLayoutCreate, layout, type, (uint64_t)matrix.rows,
         (uint64_t)matrix.columns, matrix.leading);
    if (p->strided < 0)
        return;
    int32_t count = (int32_t)p->shape.batch[p->strided].extent;
    CALL(calls, p->blas, cublasLtMatrixLayoutSetAttribute, *layout,
         CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count);
    CALL(calls, p->blas, cublasLtMatrixLayoutSetAttribute, *layout,
         CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride, sizeof batch_stride);
}

/* The longest batch loop: fewest calls. */
static int longest_batch(const Product *p) {
    int longest = -1;
    for (int i = 0; i < p->batch_count; i++)
        if (p->batch[i].extent > 1 && p->batch[i].extent <= INT32_MAX &&
            (longest < 0 || p->batch[i].extent > p->batch[longest].extent))
            longest = i;
    return longest;
}

static void describe(Calls *calls, CudaProduct *p) {
    const Product *shape = &p->shape;
    Matrix first = matrix_of(shape->n, shape->k, shape->b_n, shape->b_k);
    Matrix second = matrix_of(shape->k, shape->m, shape->a_k, shape->a_m);
    Matrix result = {shape->n, shape->m, shape->c_m, false};
    ProductLoop batch = {0};
    if (p->strided >= 0)
        batch = shape->batch[p->strided];
    cudaDataType_t operands = shape->bf16_operands ? CUDA_R_16BF : CUDA_R_32F;
    CALL(calls, p->blas, cublasLtMatmulDescCreate, &p->operation,
         shape->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasOperation_t transpose[2] = {first.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                                      second.transposed ? CUBLAS_OP_T : CUBLAS_OP_N};
    CALL(calls, p->blas, cublasLtMatmulDescSetAttribute, p->operation,
         CUBLASLT_MATMUL_DESC_TRANSA, &transpose[0], sizeof transpose[0]);
    CALL(calls, p->blas, cublasLtMatmulDescSetAttribute, p->operation,
         CUBLASLT_MATMUL_DESC_TRANSB, &transpose[1], sizeof transpose[1]);
    make_layout(calls, p, &p->first, operands, first, batch.stride_b);
    make_layout(calls, p, &p->second, operands, second, batch.stride_a);
    make_layout(calls, p, &p->result, shape->bf16_result ? CUDA_R_16BF : CUDA_R_32F, result,
                batch.stride_c);
}

/* The largest power of two that divides both; `a` is one. */
static int64_t common_alignment(int64_t a, int64_t b) {
    while (b % a)
        a /= 2;
    return a;
}

/* Calls begin where the loops lead to. */
static void align_to_loops(const ProductLoop *loops, int count, int64_t width,
                           int64_t result_width, int64_t alignment[3]) {
    for (int i = 0; i < count; i++) {
        alignment[0] = common_alignment(alignment[0], loops[i].stride_a * width);
        alignment[1] = common_alignment(alignment[1], loops[i].stride_b * width);
        alignment[2] = common_alignment(alignment[2], loops[i].stride_c * result_width);
    }
}

/* As the library counts its operands: its A is B', its B is A'. */
static void prefer_alignment(Calls *calls, const CudaProduct *p,
                             cublasLtMatmulPreference_t preference, const int64_t given[3]) {
    const Product *shape = &p->shape;
    int64_t width = shape->bf16_operands ? 2 : 4, result_width = shape->bf16_result ? 2 : 4;
    int64_t alignment[3] = {given[p->exchanged ? 1 : 0], given[p->exchanged ? 0 : 1], given[2]};
    align_to_loops(shape->batch, shape->batch_count, width, result_width, alignment);
    align_to_loops(shape->accumulate, shape->accumulate_count, width, result_width, alignment);
    const struct {
        int attribute;
        uint32_t bytes;
    } all[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)alignment[1]},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)alignment[0]},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)alignment[2]},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)alignment[2]}};
    for (int i = 0; i < COUNT_OF(all); i++)
        CALL(calls, p->blas, cublasLtMatmulPreferenceSetAttribute, preference, all[i].attribute,
             &all[i].bytes, sizeof all[i].bytes);
}

int64_t cuda_product_workspace(const Product *p) {
    double elements = (double)p->m * (double)p->n;
    for (int i = 0; i < p->batch_count; i++)
        elements *= (double)p->batch[i].extent;
    double bytes = BLAS_WORKSPACE_LEAST + BLAS_PARTS * (double)sizeof(float) * elements;
    return bytes < BLAS_WORKSPACE_MOST ? (int64_t)bytes : BLAS_WORKSPACE_MOST;
}

/* Asks the library which of its kernels it would take. */
static void ask(Calls *calls, CudaProduct *p, const int64_t alignment[3]) {
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found = {0};
    int count = 0;
    uint64_t workspace = (uint64_t)cuda_product_workspace(&p->shape);
    uint32_t reductions =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    CALL(calls, p->blas, cublasLtMatmulPreferenceCreate, &preference);
    CALL(calls, p->blas, cublasLtMatmulPreferenceSetAttribute, preference,
         CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    CALL(calls, p->blas, cublasLtMatmulPreferenceSetAttribute, preference,
         CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
    prefer_alignment(calls, p, preference, alignment);
    CALL(calls, p->blas, cublasLtMatmulAlgoGetHeuristic, p->handle, p->operation, p->first,
         p->second, p->result, p->result, preference, 1, &found, &count);
    bool usable =
        count > 0 && found.state == CUBLAS_STATUS_SUCCESS && found.workspaceSize <= workspace;
    if (!calls->fault.function && !usable)
        called(calls, "cublasLtMatmulAlgoGetHeuristic", CUBLAS_STATUS_NOT_SUPPORTED);
    p->choice = (BlasChoice){found.algo, (int64_t)found.workspaceSize};
    if (preference)
        called(calls, "cublasLtMatmulPreferenceDestroy",
               p->blas->cublasLtMatmulPreferenceDestroy(preference));
}

/* Does the library still know a choice of before?  What it says of one that it does not is no
 * failure:  it is asked then. */
static bool is_known(const Calls *calls, const CudaProduct *p, const BlasChoice *choice) {
    cublasLtMatmulHeuristicResult_t found = {0};
    if (calls->fault.function)
        return false;
    cublasStatus_t status =
        p->blas->cublasLtMatmulAlgoCheck(p->handle, p->operation, p->first, p->second,
                                         p->result, p->result, &choice->algorithm, &found);
    return status == CUBLAS_STATUS_SUCCESS && found.state == CUBLAS_STATUS_SUCCESS &&
           (int64_t)found.workspaceSize == choice->workspace_bytes &&
           choice->workspace_bytes <= cuda_product_workspace(&p->shape);
}

CudaProduct *cuda_product_prepare(const CudaTable *blas, cublasLtHandle_t handle,
                                  const Product *product, const int64_t alignment[3],
                                  const BlasChoice *known, BlasFault *fault) {
    CudaProduct *p = checked_alloc(sizeof *p);
    *p = (CudaProduct){.blas = blas, .handle = handle, .shape = *product};
    p->exchanged = product_settle(&p->shape);
    p->strided = longest_batch(&p->shape);
    Calls calls = {0};
    describe(&calls, p);
    if (known && is_known(&calls, p, known))
        p->choice = *known;
    else
        ask(&calls, p, alignment);
    *fault = calls.fault;
    if (!fault->function)
        return p;
    cuda_product_free(p);
    return NULL;
}

BlasChoice cuda_product_choice(const CudaProduct *p) {
    return p->choice;
}

BlasFault cuda_product_free(CudaProduct *p) {
    Calls calls = {0};
    if (!p)
        return calls.fault;
    cublasLtMatrixLayout_t layouts[] = {p->first, p->second, p->result};
    for (int i = 0; i < COUNT_OF(layouts); i++)
        if (layouts[i])
            called(&calls, "cublasLtMatrixLayoutDestroy",
                   p->blas->cublasLtMatrixLayoutDestroy(layouts[i]));
    if (p->operation)
        called(&calls, "cublasLtMatmulDescDestroy",
               p->blas->cublasLtMatmulDescDestroy(p->operation));
    free(p);
    return calls.fault;
}

/* ---- running ---------------------------------------------------------------------------- */

/* Elements to a call's operands: of the batch loops that are calls, and of the accumulate
 * loops. */
typedef struct Offsets {
    int64_t a, b, c;
} Offsets;

static Offsets add_loops(Offsets at, const ProductLoop *loops, int count, int skipped,
                         int64_t index) {
    for (int i = count - 1; i >= 0; i--) {
        if (i == skipped)
            continue;
        int64_t here = index % loops[i].extent;
        index /= loops[i].extent;
        at.a += here * loops[i].stride_a;
        at.b += here * loops[i].stride_b;
        at.c += here * loops[i].stride_c;
    }
    return at;
}

static int64_t loop_calls(const ProductLoop *loops, int count, int skipped) {
    int64_t calls = 1;
    for (int i = 0; i < count; i++)
        calls *= i == skipped ? 1 : loops[i].extent;
    return calls;
}

int64_t cuda_product_calls(const Product *product, int64_t *batch) {
    int strided = longest_batch(product);
    *batch = strided < 0 ? 1 : product->batch[strided].extent;
    return loop_calls(product->batch, product->batch_count, strided) *
           loop_calls(product->accumulate, product->accumulate_count, -1);
}

BlasFault cuda_product_run(const CudaProduct *p, const void *a, const void *b, void *c,
                           void *workspace, CUstream stream) {
    const Product *shape = &p->shape;
    int64_t width = shape->bf16_operands ? 2 : 4, result_width = shape->bf16_result ? 2 : 4;
    int64_t batches = loop_calls(shape->batch, shape->batch_count, p->strided);
    int64_t sums = loop_calls(shape->accumulate, shape->accumulate_count, -1);
    const float one = 1, zero = 0;
    const char *left = p->exchanged ? b : a, *right = p->exchanged ? a : b;
    Calls calls = {0};
    for (int64_t batch = 0; batch < batches; batch++)
        for (int64_t sum = 0; sum < sums; sum++) {
            Offsets at =
                add_loops((Offsets){0}, shape->batch, shape->batch_count, p->strided, batch);
            at = add_loops(at, shape->accumulate, shape->accumulate_count, -1, sum);
            char *result = (char *)c + at.c * result_width;
            CALL(&calls, p->blas, cublasLtMatmul, p->handle, p->operation, &one,
                 right + at.b * width, p->first, left + at.a * width, p->second,
                 shape->add || sum > 0 ? &one : &zero, result, p->result, result, p->result,
                 &p->choice.algorithm, workspace, (size_t)p->choice.workspace_bytes, stream);
        }
    return calls.fault;
}
