/* runtime/products.c: matrix products through oneDNN.  The one file that knows its interface
 * (2.x, Debian 12; and 3.x, which changed it).
 *
 * The library splits a product over threads as it sees fit, the summed axis included, so its
 * bits depend on the number of threads.  Here a product is cut into tiles from its extents
 * alone; every tile is a product of its own, planned for and run on one thread, with the summed
 * axis whole; our own loop hands the tiles to the threads.  Measured no slower than the
 * library's own threading, and faster where a weight's gradient is thin (128 x 512 with 2048
 * summed).
 *
 * A product in which the library has no fast implementation (no unit stride), or which is too
 * small to be worth its call (2 us), goes to a plain blocked product below.
 */
#include "runtime/runtime.h"

#include <dnnl.h>
#include <math.h>
#include <omp.h>
#include <pthread.h>

/* ---- the shape ------------------------------------------------------------------------
 * The product as it is run: C row by row (c_n == 1) where one of C's strides is 1, and strides
 * of extent-1 axes chosen so that every operand is a plain or a transposed matrix. */

static void swap_strides(int64_t *a, int64_t *b) {
    int64_t kept = *a;
    *a = *b;
    *b = kept;
}

/* C' = B' A': the same product with C's axes in the other order. */
static void transpose_product(Product *p) {
    swap_strides(&p->m, &p->n);
    swap_strides(&p->a_m, &p->b_n);
    swap_strides(&p->a_k, &p->b_k);
    swap_strides(&p->c_m, &p->c_n);
    for (int i = 0; i < p->batch_count; i++)
        swap_strides(&p->batch[i].stride_a, &p->batch[i].stride_b);
    for (int i = 0; i < p->accumulate_count; i++)
        swap_strides(&p->accumulate[i].stride_a, &p->accumulate[i].stride_b);
}

/* The stride of an axis of extent 1 is never used for an address, but the library reads the
 * operand's orientation from it: it is made 1 when the other axis has another stride, else the
 * leading dimension of a dense matrix. */
static void settle_strides(int64_t rows, int64_t columns, int64_t *row, int64_t *column) {
    if (rows == 1 && columns == 1)
        *row = *column = 1;
    else if (rows == 1)
        *row = *column == 1 ? columns : 1;
    else if (columns == 1)
        *column = *row == 1 ? rows : 1;
}

bool product_settle(Product *p) {
    settle_strides(p->m, p->n, &p->c_m, &p->c_n);
    bool transposed = p->c_n != 1 && p->c_m == 1;
    if (transposed)
        transpose_product(p);
    settle_strides(p->m, p->k, &p->a_m, &p->a_k);
    settle_strides(p->k, p->n, &p->b_k, &p->b_n);
    return transposed;
}

/* A matrix as the library takes it: one stride is 1, the other does not make lines overlap. */
static bool is_matrix(int64_t rows, int64_t columns, int64_t row, int64_t column) {
    return (column == 1 && row >= columns) || (row == 1 && column >= rows);
}

static int64_t round_up(int64_t value, int64_t multiple) {
    return value + (multiple - value % multiple) % multiple;
}

/* ---- elements -------------------------------------------------------------------------- */
/* Memory of f32 or bf16 values. */
typedef struct Elements {
    const void *memory;
    bool bf16;
} Elements;

static int64_t element_width(bool bf16) {
    return bf16 ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float);
}

static Elements elements_from(Elements elements, int64_t first) {
    const char *memory = elements.memory;
    return (Elements){memory + first * element_width(elements.bf16), elements.bf16};
}

static float element_at(Elements elements, int64_t i) {
    union {
        uint32_t bits;
        float number;
    } value;
    if (!elements.bf16)
        return ((const float *)elements.memory)[i];
    value.bits = (uint32_t)((const uint16_t *)elements.memory)[i] << 16;
    return value.number;
}

/* A and B from some element on. */
typedef struct Operands {
    Elements a, b;
} Operands;

/* Where a tile of C, or its sums, lies; strides in elements. */
typedef struct TileResult {
    void *memory;
    int64_t rows, columns, row, column;
} TileResult;

/* ---- tiles ----------------------------------------------------------------------------
 * On one thread the library copies both operands of a tile to an order of its own before it
 * multiplies: A is copied once for `columns` uses of an element, B for `rows`; and copying is
 * slower where an operand is read in short runs.  So, in units of a multiply-add at full speed,
 * an element of C costs
 *
 *     1 + COPY (1 + RUN / run of A) / columns + COPY (1 + RUN / run of B) / rows.
 *
 * The cut that is chosen keeps the time on 1, 2, 4, 8 and 16 equal workers small, fewer
 * workers counting more; how many there are must not matter.  The constants fit tiles of 64 to
 * 2048 over K = 128 to 2048 to within a few percent (bench/products.c measures the outcome). */
enum { TILE_COPY = 10, TILE_RUN = 500, TILE_WORKERS = 16 };
/* Of the library's register tile. */
enum { TILE_ROWS_MULTIPLE = 8, TILE_COLUMNS_MULTIPLE = 16 };
static const int64_t tile_sizes[] = {32, 64, 96, 128, 192, 256, 344, 512, 688, 1024, 2048};

/* The size of equal pieces of `extent`, none above `wanted` by more than the rounding. */
static int64_t piece_size(int64_t extent, int64_t wanted, int64_t multiple) {
    int64_t pieces = extent / wanted + (extent % wanted != 0);
    int64_t size = extent / pieces + (extent % pieces != 0);
    size += (multiple - size % multiple) % multiple;
    return size < extent ? size : extent;
}

static int64_t piece_count(int64_t extent, int64_t size) {
    return extent / size + (extent % size != 0);
}

/* How many elements of an operand's tile [lines,k] are read in one run. */
static double run_length(int64_t lines, int64_t line_stride, int64_t k, int64_t k_stride) {
    if (line_stride != 1)
        return (double)k;
    return lines == k_stride ? (double)lines * (double)k : (double)lines;
}

/* A tile's time on one thread, in multiply-adds a step of K. */
static double tile_time(const Product *p, int64_t rows, int64_t columns) {
    double run_a = run_length(rows, p->a_m, p->k, p->a_k);
    double run_b = run_length(columns, p->b_n, p->k, p->b_k);
    double copies = TILE_COPY * (1 + TILE_RUN / run_a) / (double)columns +
                    TILE_COPY * (1 + TILE_RUN / run_b) / (double)rows;
    return (double)rows * (double)columns * (1 + copies);
}

static double cut_cost(const Product *p, double batches, int64_t rows, int64_t columns) {
    double tiles =
        batches * (double)piece_count(p->m, rows) * (double)piece_count(p->n, columns);
    double tile = tile_time(p, rows, columns), cost = 0, weight = 1;
    for (int workers = 1; workers <= TILE_WORKERS; workers *= 2, weight /= 2)
        cost += weight * workers * ceil(tiles / workers) * tile;
    return cost;
}

/* In bf16 the library's fastest implementation wants dense operands, so that A and C may be cut
 * in rows alone; 64 to 256 of them are equally good.  It is slow where the sums are long:
 * there, and for other operands, gemm takes its place. */
enum { BF16_ROWS = 128, BF16_DEEP = 8192, BF16_DEEP_ROWS = 1024, BF16_DEEP_COLUMNS = 256 };

static bool is_dense(int64_t rows, int64_t columns, int64_t row, int64_t column) {
    return column == 1 && (row == columns || rows == 1);
}

static bool choose_bf16_tile(const Product *p, int64_t *rows, int64_t *columns) {
    bool dense = is_dense(p->m, p->k, p->a_m, p->a_k) && is_dense(p->m, p->n, p->c_m, p->c_n) &&
                 (is_dense(p->k, p->n, p->b_k, p->b_n) || is_dense(p->n, p->k, p->b_n, p->b_k));
    bool deep = p->k > BF16_DEEP;
    if (!p->bf16_operands || (!dense && !deep))
        return false;
    *rows = piece_size(p->m, deep ? BF16_DEEP_ROWS : BF16_ROWS, TILE_ROWS_MULTIPLE);
    *columns = deep ? piece_size(p->n, BF16_DEEP_COLUMNS, TILE_COLUMNS_MULTIPLE) : p->n;
    return true;
}

static void choose_tile(const Product *p, int64_t batches, int64_t *rows, int64_t *columns) {
    double least = 0;
    if (choose_bf16_tile(p, rows, columns))
        return;
    for (int i = 0; i < COUNT_OF(tile_sizes); i++) {
        for (int j = 0; j < COUNT_OF(tile_sizes); j++) {
            int64_t tm = piece_size(p->m, tile_sizes[i], TILE_ROWS_MULTIPLE);
            int64_t tn = piece_size(p->n, tile_sizes[j], TILE_COLUMNS_MULTIPLE);
            double cost = cut_cost(p, (double)batches, tm, tn);
            if ((i == 0 && j == 0) || cost < least) {
                least = cost;
                *rows = tm;
                *columns = tn;
            }
        }
    }
}

/* ---- the library ------------------------------------------------------------------- */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t MatrixLayout; /* a handle */
typedef const_dnnl_memory_desc_t MatrixLayoutRef;
#define LAYOUT_REF(layout) (layout)
#else
typedef dnnl_memory_desc_t MatrixLayout;
typedef const dnnl_memory_desc_t *MatrixLayoutRef;
#define LAYOUT_REF(layout) (&(layout))
#endif

static bool processor_has_bf16(void) {
    const char *asked = getenv("COLAC_BF16");
    if (asked && *asked)
        return false; /* the plain product, the same everywhere */
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16"); /* those with AMX have it too */
#else
    return false;
#endif
}

bool products_have_bf16(void) {
    const char *asked = getenv("COLAC_BF16");
    return asked && *asked ? strcmp(asked, "0") != 0 : processor_has_bf16();
}

static dnnl_engine_t engine;
static dnnl_stream_t stream; /* has no state on a CPU, so that all threads share it */
static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void library_open(void) {
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) != dnnl_success)
        engine = NULL;
}

/* C = AB or C += AB of one tile shape, planned for one thread. */
typedef struct TileCall {
    dnnl_primitive_t primitive; /* NULL where not needed */
    MatrixLayout scratch;
    int64_t scratch_bytes;
} TileCall;

typedef struct TileShape {
    MatrixLayout a, b, c; /* [tm,k], [k,tn], [tm,tn] */
    TileCall store, add;
} TileShape;

static bool layout_make(MatrixLayout *layout, bool bf16, int64_t rows, int64_t columns,
                        int64_t row_stride, int64_t column_stride) {
    dnnl_dims_t extents = {rows, columns}, strides = {row_stride, column_stride};
    dnnl_data_type_t type = bf16 ? dnnl_bf16 : dnnl_f32;
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_strides(layout, 2, extents, type, strides) ==
           dnnl_success;
#else
    return dnnl_memory_desc_init_by_strides(layout, 2, extents, type, strides) == dnnl_success;
#endif
}

static void layout_free(MatrixLayout *layout) {
#if DNNL_VERSION_MAJOR >= 3
    if (*layout)
        dnnl_memory_desc_destroy(*layout);
#endif
    memset(layout, 0, sizeof *layout);
}

static bool layout_copy(MatrixLayout *copy, MatrixLayoutRef layout) {
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_clone(copy, layout) == dnnl_success;
#else
    *copy = *layout;
    return true;
#endif
}

/* Attributes: scratchpad given by the caller; C += AB as a sum post-op, which is free. */
static dnnl_primitive_attr_t attributes_make(bool add) {
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t post = NULL;
    bool good = dnnl_primitive_attr_create(&attributes) == dnnl_success &&
                dnnl_primitive_attr_set_scratchpad_mode(
                    attributes, dnnl_scratchpad_mode_user) == dnnl_success;
    if (good && add) {
        good = dnnl_post_ops_create(&post) == dnnl_success;
#if DNNL_VERSION_MAJOR >= 3
        good = good && dnnl_post_ops_append_sum(post, 1.0f, 0, dnnl_f32) == dnnl_success;
#else
        good = good && dnnl_post_ops_append_sum(post, 1.0f) == dnnl_success;
#endif
        good = good && dnnl_primitive_attr_set_post_ops(attributes, post) == dnnl_success;
    }
    if (post)
        dnnl_post_ops_destroy(post);
    if (!good && attributes) {
        dnnl_primitive_attr_destroy(attributes);
        attributes = NULL;
    }
    return attributes;
}

static const char *implementation_name(dnnl_primitive_desc_t description) {
    const char *name = NULL;
    dnnl_primitive_desc_query(description, dnnl_query_impl_info_str, 0, (void *)&name);
    return name ? name : "ref";
}

/* How much we want an implementation; 0: not at all.  The library lists brg first for dense
 * operands; on one thread it copies B again for every few rows and reaches half of gemm's speed
 * in f32.  With the processor's bf16 tiles (AMX) it is the faster one, by a factor of 1.2 to 4;
 * without them it is, in bf16, several times slower than gemm. */
enum { BEST_RANK = 3 };
static int implementation_rank(const char *name) {
    if (strstr(name, "ref"))
        return 0;
    return strstr(name, "amx_bf16") ? 3 : strstr(name, "gemm:jit") ? 2 : 1;
}

#if DNNL_VERSION_MAJOR >= 3
static dnnl_primitive_desc_t first_at_rank(const TileShape *shape,
                                           dnnl_primitive_attr_t attributes, int rank) {
    dnnl_primitive_desc_t description = NULL;
    if (dnnl_matmul_primitive_desc_create(&description, engine, shape->a, shape->b, NULL,
                                          shape->c, attributes) != dnnl_success)
        return NULL;
    while (implementation_rank(implementation_name(description)) != rank) {
        if (dnnl_primitive_desc_next_impl(description) != dnnl_success) {
            dnnl_primitive_desc_destroy(description);
            return NULL;
        }
    }
    return description;
}
#else
static dnnl_primitive_desc_t first_at_rank(const TileShape *shape,
                                           dnnl_primitive_attr_t attributes, int rank) {
    dnnl_matmul_desc_t operation;
    dnnl_primitive_desc_iterator_t iterator;
    if (dnnl_matmul_desc_init(&operation, &shape->a, &shape->b, NULL, &shape->c) !=
            dnnl_success ||
        dnnl_primitive_desc_iterator_create(&iterator, &operation, attributes, engine, NULL) !=
            dnnl_success)
        return NULL;
    dnnl_primitive_desc_t description = NULL;
    do {
        description = dnnl_primitive_desc_iterator_fetch(iterator);
        if (!description || implementation_rank(implementation_name(description)) == rank)
            break;
        dnnl_primitive_desc_destroy(description);
        description = NULL;
    } while (dnnl_primitive_desc_iterator_next(iterator) == dnnl_success);
    dnnl_primitive_desc_iterator_destroy(iterator);
    return description;
}
#endif

/* Makes the primitive for C = AB or C += AB.  Must run where the library counts one thread.
 * False where it has nothing fast. */
static bool call_make(const TileShape *shape, bool add, TileCall *call, const char **name) {
    dnnl_primitive_attr_t attributes = attributes_make(add);
    if (!attributes)
        return false;
    dnnl_primitive_desc_t description = NULL;
    for (int rank = BEST_RANK; rank > 0 && !description; rank--)
        description = first_at_rank(shape, attributes, rank);
    dnnl_primitive_attr_destroy(attributes);
    if (!description)
        return false;
    MatrixLayoutRef scratch =
        dnnl_primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0);
    bool good = dnnl_primitive_create(&call->primitive, description) == dnnl_success;
    if (good && scratch && dnnl_memory_desc_get_size(scratch) > 0) {
        call->scratch_bytes = (int64_t)dnnl_memory_desc_get_size(scratch);
        good = layout_copy(&call->scratch, scratch);
    }
    *name = implementation_name(description); /* a literal of the library's */
    dnnl_primitive_desc_destroy(description);
    return good;
}

static void call_free(TileCall *call) {
    if (call->primitive)
        dnnl_primitive_destroy(call->primitive);
    layout_free(&call->scratch);
}

static void shape_free(TileShape *shape) {
    call_free(&shape->store);
    call_free(&shape->add);
    layout_free(&shape->a);
    layout_free(&shape->b);
    layout_free(&shape->c);
}

/* ---- the plain product ----------------------------------------------------------------
 * Blocks of K are packed, PLAIN_LINES rows of A and columns of B at a time, A in panels of
 * PLAIN_ROWS rows and B in panels of PLAIN_COLUMNS columns; sums run in k order within a block,
 * blocks are added in order. */
enum { PLAIN_K = 256, PLAIN_LINES = 256, PLAIN_ROWS = 4, PLAIN_COLUMNS = 16 };

static int64_t plain_scratch_bytes(int64_t rows, int64_t columns, int64_t k) {
    int64_t depth = k < PLAIN_K ? k : PLAIN_K;
    rows = rows < PLAIN_LINES ? rows : PLAIN_LINES;
    columns = columns < PLAIN_LINES ? columns : PLAIN_LINES;
    int64_t lines = round_up(rows, PLAIN_ROWS) + round_up(columns, PLAIN_COLUMNS);
    return lines * depth * (int64_t)sizeof(float);
}

/* packed[line / width][k][line % width] = matrix[line, k]; lines past the last are 0. */
static void plain_pack(Elements matrix, int64_t lines, int64_t line_stride, int64_t depth,
                       int64_t k_stride, int width, float *packed) {
    for (int64_t first = 0; first < lines; first += width) {
        for (int64_t k = 0; k < depth; k++) {
            for (int i = 0; i < width; i++)
                *packed++ = first + i < lines
                                ? element_at(matrix, (first + i) * line_stride + k * k_stride)
                                : 0.0f;
        }
    }
}

/* sums[i][j] = Σ_k a[k][i] b[k][j] */
static void plain_register_tile(int64_t depth, const float *a, const float *b,
                                float sums[PLAIN_ROWS][PLAIN_COLUMNS]) {
    float local[PLAIN_ROWS][PLAIN_COLUMNS] = {{0}};
    for (int64_t k = 0; k < depth; k++, a += PLAIN_ROWS, b += PLAIN_COLUMNS)
        for (int i = 0; i < PLAIN_ROWS; i++)
            for (int j = 0; j < PLAIN_COLUMNS; j++)
                local[i][j] += a[i] * b[j];
    memcpy(sums, local, sizeof local);
}

/* C [rows,columns] (+)= packed A, packed B of one block of K. */
static void plain_block(const TileResult *c, int64_t depth, const float *packed_a,
                        const float *packed_b, bool add) {
    float *memory = c->memory;
    for (int64_t m = 0; m < c->rows; m += PLAIN_ROWS) {
        for (int64_t n = 0; n < c->columns; n += PLAIN_COLUMNS) {
            float sums[PLAIN_ROWS][PLAIN_COLUMNS];
            plain_register_tile(depth, packed_a + m * depth, packed_b + n * depth, sums);
            for (int i = 0; i < PLAIN_ROWS && m + i < c->rows; i++) {
                for (int j = 0; j < PLAIN_COLUMNS && n + j < c->columns; j++) {
                    float *at = memory + (m + i) * c->row + (n + j) * c->column;
                    *at = add ? *at + sums[i][j] : sums[i][j];
                }
            }
        }
    }
}

static void plain_tile(const Product *p, Elements a, Elements b, const TileResult *c, bool add,
                       char *scratch) {
    float *packed_b = (float *)(void *)scratch;
    for (int64_t k = 0; k < p->k; k += PLAIN_K)
        for (int64_t n = 0; n < c->columns; n += PLAIN_LINES) {
            int64_t depth = p->k - k < PLAIN_K ? p->k - k : PLAIN_K;
            TileResult part = *c;
            part.columns = c->columns - n < PLAIN_LINES ? c->columns - n : PLAIN_LINES;
            plain_pack(elements_from(b, k * p->b_k + n * p->b_n), part.columns, p->b_n, depth,
                       p->b_k, PLAIN_COLUMNS, packed_b);
            float *packed_a = packed_b + round_up(part.columns, PLAIN_COLUMNS) * depth;
            for (int64_t m = 0; m < c->rows; m += PLAIN_LINES) {
                part.rows = c->rows - m < PLAIN_LINES ? c->rows - m : PLAIN_LINES;
                part.memory = (float *)c->memory + m * c->row + n * c->column;
                plain_pack(elements_from(a, k * p->a_k + m * p->a_m), part.rows, p->a_m, depth,
                           p->a_k, PLAIN_ROWS, packed_a);
                plain_block(&part, depth, packed_a, packed_b, add || k > 0);
            }
        }
}

/* Below this many multiply-adds a tile costs less in plain C than the library's call. */
enum { PLAIN_LIMIT = 4096 };

/* ---- prepared products ------------------------------------------------------------- */
struct PreparedProduct {
    Product shape;
    bool transposed; /* shape is that of the transposed product: a and b change places */
    int64_t batches, terms, tiles_m, tiles_n, tile_m, tile_n;
    int64_t units; /* tiles to run: all of them but in a sample */
    bool plain;
    bool sums_apart;       /* a bf16 tile is summed in f32 in scratch memory, then rounded */
    TileShape tiles[2][2]; /* [the last of rows?][of columns?]; only those that occur */
    int64_t sums_bytes, scratch_bytes; /* the former: of that memory, part of the latter */
    const char *implementation;
};

static int64_t loops_count(const ProductLoop *loops, int count) {
    int64_t total = 1;
    for (int i = 0; i < count; i++)
        total *= loops[i].extent;
    return total;
}

/* Element offsets of the index-th iteration of a loop nest, the last loop fastest. */
static void loops_offsets(const ProductLoop *loops, int count, int64_t index, int64_t *a,
                          int64_t *b, int64_t *c) {
    for (int i = count - 1; i >= 0; i--) {
        int64_t at = index % loops[i].extent;
        index /= loops[i].extent;
        *a += at * loops[i].stride_a;
        *b += at * loops[i].stride_b;
        *c += at * loops[i].stride_c;
    }
}

static int64_t tile_extent(int64_t extent, int64_t tile, bool last) {
    return last ? extent - (piece_count(extent, tile) - 1) * tile : tile;
}

static bool shape_make(PreparedProduct *prepared, TileShape *shape, int64_t rows,
                       int64_t columns) {
    const Product *p = &prepared->shape;
    bool apart = prepared->sums_apart;
    if (!layout_make(&shape->a, p->bf16_operands, rows, p->k, p->a_m, p->a_k) ||
        !layout_make(&shape->b, p->bf16_operands, p->k, columns, p->b_k, p->b_n) ||
        !layout_make(&shape->c, p->bf16_result && !apart, rows, columns,
                     apart ? columns : p->c_m, p->c_n))
        return false;
    if (!p->add && !call_make(shape, false, &shape->store, &prepared->implementation))
        return false;
    if ((p->add || prepared->terms > 1) &&
        !call_make(shape, true, &shape->add, &prepared->implementation))
        return false;
    int64_t bytes = shape->store.scratch_bytes > shape->add.scratch_bytes
                        ? shape->store.scratch_bytes
                        : shape->add.scratch_bytes;
    if (bytes + prepared->sums_bytes > prepared->scratch_bytes)
        prepared->scratch_bytes = bytes + prepared->sums_bytes;
    return true;
}

/* The library's primitives for every tile shape that occurs.  They are planned for the number
 * of threads in force, which is therefore set to one meanwhile. */
static bool tiles_make(PreparedProduct *prepared) {
    const Product *p = &prepared->shape;
    if (!is_matrix(p->m, p->k, p->a_m, p->a_k) || !is_matrix(p->k, p->n, p->b_k, p->b_n) ||
        p->c_n != 1 || p->c_m < p->n || (p->bf16_operands && !processor_has_bf16()))
        return false;
    pthread_once(&library_once, library_open);
    if (!engine)
        return false;
    bool good = true;
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    for (int last_m = 0; last_m < 2; last_m++) {
        for (int last_n = 0; last_n < 2; last_n++) {
            bool occurs =
                (last_m || prepared->tiles_m > 1) && (last_n || prepared->tiles_n > 1);
            good = good && (!occurs || shape_make(prepared, &prepared->tiles[last_m][last_n],
                                                  tile_extent(p->m, prepared->tile_m, last_m),
                                                  tile_extent(p->n, prepared->tile_n, last_n)));
        }
    }
    omp_set_num_threads(threads);
    return good;
}

static void tiles_free(PreparedProduct *prepared) {
    for (int i = 0; i < 4; i++)
        shape_free(&prepared->tiles[i / 2][i % 2]);
    memset(prepared->tiles, 0, sizeof prepared->tiles);
}

static int64_t tile_count(const PreparedProduct *prepared) {
    return prepared->batches * prepared->tiles_m * prepared->tiles_n;
}

/* Orientation and tiles. */
static PreparedProduct *product_cut(const Product *product) {
    PreparedProduct *prepared = checked_alloc(sizeof *prepared);
    Product *p = &prepared->shape;
    *p = *product;
    INTERNAL_CHECK(p->m > 0 && p->n > 0 && p->k > 0);
    prepared->transposed = product_settle(p);
    prepared->batches = loops_count(p->batch, p->batch_count);
    prepared->terms = loops_count(p->accumulate, p->accumulate_count);
    choose_tile(p, prepared->batches, &prepared->tile_m, &prepared->tile_n);
    prepared->tiles_m = piece_count(p->m, prepared->tile_m);
    prepared->tiles_n = piece_count(p->n, prepared->tile_n);
    prepared->units = tile_count(prepared);
    return prepared;
}

/* Each of several terms, and each block of the plain product, would round a bf16 result. */
static void sum_apart(PreparedProduct *prepared, bool several) {
    prepared->sums_apart = prepared->shape.bf16_result && several;
    prepared->sums_bytes = 0;
    if (prepared->sums_apart)
        prepared->sums_bytes =
            round_up(prepared->tile_m * prepared->tile_n * (int64_t)sizeof(float), 64);
    prepared->scratch_bytes = prepared->sums_bytes;
}

/* What runs a tile. */
static void product_plan(PreparedProduct *prepared) {
    const Product *p = &prepared->shape;
    double work = (double)prepared->tile_m * (double)prepared->tile_n * (double)p->k;
    sum_apart(prepared, prepared->terms > 1);
    prepared->plain = work < PLAIN_LIMIT || !tiles_make(prepared);
    if (prepared->plain) {
        tiles_free(prepared);
        sum_apart(prepared, true);
        prepared->implementation = "plain";
        prepared->scratch_bytes = prepared->sums_bytes +
                                  plain_scratch_bytes(prepared->tile_m, prepared->tile_n, p->k);
    }
}

PreparedProduct *product_prepare(const Product *product) {
    PreparedProduct *prepared = product_cut(product);
    product_plan(prepared);
    return prepared;
}

/* ---- samples --------------------------------------------------------------------------
 * The first tiles of a product, for timing it: run as they would be in the whole of it, with
 * its strides where memory allows. */
enum { SAMPLE_K = 1024 };                  /* the sums of a tile are not cut below it */
enum { SAMPLE_LINE = 4096 + 16 };          /* lines of a large operand are brought so near */
static const double sample_terms = 0x1p27; /* multiply-adds of a thread, about */

/* Makes the shape that of its first tiles: the rows and columns that these lie in.  Of several
 * batches all are kept, and the first of them are run. */
static void keep_first(PreparedProduct *prepared, int64_t units) {
    Product *p = &prepared->shape;
    int64_t wide = piece_count(units, prepared->tiles_m);
    prepared->units = units;
    if (units < prepared->tiles_m) {
        prepared->tiles_m = units;
        p->m = units * prepared->tile_m;
    }
    if (wide < prepared->tiles_n) {
        prepared->tiles_n = wide;
        p->n = wide * prepared->tile_n;
    }
}

/* Adds how far the first `count` iterations of a loop nest reach. */
static void loops_reach(const ProductLoop *loops, int depth, int64_t count, double reach[3]) {
    for (int i = depth - 1; i >= 0; i--) {
        double steps = (double)((count < loops[i].extent ? count : loops[i].extent) - 1);
        count = piece_count(count, loops[i].extent);
        reach[0] += steps * (double)loops[i].stride_a;
        reach[1] += steps * (double)loops[i].stride_b;
        reach[2] += steps * (double)loops[i].stride_c;
    }
}

/* Of a matrix, from its first element to its last. */
static double matrix_reach(int64_t rows, int64_t columns, int64_t row, int64_t column) {
    return 1 + (double)(rows - 1) * (double)row + (double)(columns - 1) * (double)column;
}

/* What the tiles to run may touch, in bytes: A, B, C as they are given to product_run.  In
 * double, because extents may be absurd. */
static double operand_reach(const PreparedProduct *prepared, double bytes[3]) {
    const Product *p = &prepared->shape;
    double elements[3] = {matrix_reach(p->m, p->k, p->a_m, p->a_k),
                          matrix_reach(p->k, p->n, p->b_k, p->b_n),
                          matrix_reach(p->m, p->n, p->c_m, p->c_n)};
    double all = 0;
    int64_t batches = piece_count(prepared->units, prepared->tiles_m * prepared->tiles_n);
    loops_reach(p->batch, p->batch_count, batches, elements);
    loops_reach(p->accumulate, p->accumulate_count, prepared->terms, elements);
    for (int i = 0; i < 3; i++) {
        int given = prepared->transposed && i < 2 ? 1 - i : i;
        bytes[given] =
            elements[i] * (double)element_width(i < 2 ? p->bf16_operands : p->bf16_result);
        all += bytes[given];
    }
    return all;
}

void product_operand_bytes(const PreparedProduct *prepared, int64_t bytes[3]) {
    double reach[3];
    operand_reach(prepared, reach);
    for (int i = 0; i < 3; i++)
        bytes[i] = (int64_t)reach[i];
}

static bool fits_sample(const PreparedProduct *prepared) {
    double bytes[3];
    return operand_reach(prepared, bytes) <= (double)PRODUCT_SAMPLE_BYTES;
}

/* Lines of `length` elements, `stride` apart, brought nearer. */
static void shorten(int64_t *stride, int64_t length) {
    int64_t least = length > SAMPLE_LINE ? length : SAMPLE_LINE;
    *stride = *stride > least ? least : *stride;
}

static void shorten_lines(PreparedProduct *prepared) {
    Product *p = &prepared->shape;
    if (p->batch_count + p->accumulate_count > 0 || p->c_n != 1 ||
        !is_matrix(p->m, p->k, p->a_m, p->a_k) || !is_matrix(p->k, p->n, p->b_k, p->b_n))
        return;
    shorten(p->a_m == 1 ? &p->a_k : &p->a_m, p->a_m == 1 ? p->m : p->k);
    shorten(p->b_n == 1 ? &p->b_k : &p->b_n, p->b_n == 1 ? p->n : p->k);
    shorten(&p->c_m, p->n);
}

/* Sums of `depth` terms.  Dense operands in bf16 stay dense: what runs them depends on it. */
static void cut_depth(Product *p, int64_t depth) {
    bool dense_a = is_dense(p->m, p->k, p->a_m, p->a_k);
    bool dense_b = is_dense(p->n, p->k, p->b_n, p->b_k);
    if (p->bf16_operands && dense_a)
        p->a_m = depth;
    if (p->bf16_operands && dense_b)
        p->b_n = depth;
    p->k = depth;
}

PreparedProduct *product_prepare_sample(const Product *product, double *share) {
    PreparedProduct *prepared = product_cut(product);
    Product *p = &prepared->shape;
    int64_t team = omp_get_max_threads(), all = prepared->units;
    double area = (double)prepared->tile_m * (double)prepared->tile_n * (double)prepared->terms;
    double depth = fmin((double)p->k, fmax(floor(sample_terms / area), SAMPLE_K));
    double rounds = ceil(sample_terms / (area * depth));
    if (rounds * (double)team < (double)all) {
        /* All threads do the same number of tiles; in the whole some may do one more. */
        keep_first(prepared, (int64_t)rounds * team);
        *share = rounds / (double)piece_count(all, team);
    } else {
        *share = 1;
    }
    *share *= depth / (double)p->k;
    cut_depth(p, (int64_t)depth);
    if (!fits_sample(prepared))
        shorten_lines(prepared);
    if (!fits_sample(prepared)) {
        product_free(prepared);
        return NULL;
    }
    product_plan(prepared);
    return prepared;
}

void product_free(PreparedProduct *prepared) {
    if (!prepared)
        return;
    tiles_free(prepared);
    free(prepared);
}

int64_t product_scratch_bytes(const PreparedProduct *prepared) {
    return round_up(prepared->scratch_bytes, 64);
}

const char *product_implementation(const PreparedProduct *prepared) {
    return prepared->implementation;
}

/* ---- running ----------------------------------------------------------------------- */
/* A thread's memory objects of one tile shape; the library wants addresses in such. */
typedef struct TileMemory {
    dnnl_memory_t a, b, c, scratch[2]; /* scratch: of store, of add */
} TileMemory;

static void library_check(dnnl_status_t status) {
    if (status == dnnl_out_of_memory) {
        fprintf(stderr, "colac: out of memory in a matrix product\n");
        exit(1);
    }
    if (status != dnnl_success)
        internal_error("the product library failed with status %d", (int)status);
}

static void memory_at(dnnl_memory_t *memory, MatrixLayoutRef layout, const void *address) {
    union {
        const void *constant;
        void *plain;
    } handle = {.constant = address}; /* the library's interface has no const */
    if (*memory)
        library_check(dnnl_memory_set_data_handle(*memory, handle.plain));
    else
        library_check(dnnl_memory_create(memory, layout, engine, handle.plain));
}

static void memory_free(TileMemory *memory) {
    dnnl_memory_t all[] = {memory->a, memory->b, memory->c, memory->scratch[0],
                           memory->scratch[1]};
    for (int i = 0; i < COUNT_OF(all); i++)
        if (all[i])
            dnnl_memory_destroy(all[i]);
}

static void library_tile(const TileShape *shape, TileMemory *memory, const void *a,
                         const void *b, const void *c, bool add, char *scratch) {
    const TileCall *call = add ? &shape->add : &shape->store;
    memory_at(&memory->a, LAYOUT_REF(shape->a), a);
    memory_at(&memory->b, LAYOUT_REF(shape->b), b);
    memory_at(&memory->c, LAYOUT_REF(shape->c), c);
    dnnl_exec_arg_t arguments[4] = {
        {DNNL_ARG_SRC, memory->a}, {DNNL_ARG_WEIGHTS, memory->b}, {DNNL_ARG_DST, memory->c}};
    int count = 3;
    if (call->scratch_bytes > 0) {
        memory_at(&memory->scratch[add], LAYOUT_REF(call->scratch), scratch);
        arguments[count++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, memory->scratch[add]};
    }
    library_check(dnnl_primitive_execute(call->primitive, stream, count, arguments));
}

/* A tile's sums [rows,columns] to C in bf16, or C to them (`from`). */
static void round_tile(const Product *p, const TileResult *tile, float *sums, bool from) {
    uint16_t *c = tile->memory;
    Elements old = {c, true};
    for (int64_t m = 0; m < tile->rows; m++)
        for (int64_t n = 0; n < tile->columns; n++) {
            int64_t at = m * p->c_m + n * p->c_n;
            float *sum = &sums[m * tile->columns + n];
            if (from)
                *sum = element_at(old, at);
            else
                c[at] = bf16_of(*sum);
        }
}

/* One term of a tile. */
static void run_term(const PreparedProduct *prepared, const TileShape *shape,
                     TileMemory *memory, const Operands *at, const TileResult *tile, bool add,
                     char *scratch) {
    const Product *p = &prepared->shape;
    if (prepared->plain)
        plain_tile(p, at->a, at->b, tile, add, scratch);
    else
        library_tile(shape, memory, at->a.memory, at->b.memory, tile->memory, add, scratch);
}

/* The unit-th tile: batches outermost, then columns, then rows, so that neighbours in time
 * share the same columns of B.  Terms of the accumulate loops are added in order. */
static void run_unit(const PreparedProduct *prepared, int64_t unit, TileMemory memory[2][2],
                     const Operands *operands, void *c, char *scratch) {
    const Product *p = &prepared->shape;
    int64_t tiles = prepared->tiles_m * prepared->tiles_n;
    int64_t i = unit % tiles % prepared->tiles_m, j = unit % tiles / prepared->tiles_m;
    bool last_m = i == prepared->tiles_m - 1, last_n = j == prepared->tiles_n - 1;
    int64_t rows = tile_extent(p->m, prepared->tile_m, last_m);
    int64_t columns = tile_extent(p->n, prepared->tile_n, last_n);
    int64_t at_a = i * prepared->tile_m * p->a_m, at_b = j * prepared->tile_n * p->b_n;
    int64_t at_c = i * prepared->tile_m * p->c_m + j * prepared->tile_n * p->c_n;
    loops_offsets(p->batch, p->batch_count, unit / tiles, &at_a, &at_b, &at_c);
    TileResult tile = {(char *)c + at_c * element_width(p->bf16_result), rows, columns, p->c_m,
                       p->c_n};
    TileResult sums = tile;
    if (prepared->sums_apart)
        sums = (TileResult){scratch, rows, columns, columns, 1};
    if (prepared->sums_apart && p->add)
        round_tile(p, &tile, sums.memory, true);
    for (int64_t term = 0; term < prepared->terms; term++) {
        int64_t term_a = at_a, term_b = at_b, none = 0;
        loops_offsets(p->accumulate, p->accumulate_count, term, &term_a, &term_b, &none);
        Operands at = {elements_from(operands->a, term_a), elements_from(operands->b, term_b)};
        run_term(prepared, &prepared->tiles[last_m][last_n], &memory[last_m][last_n], &at,
                 &sums, p->add || term > 0, scratch + prepared->sums_bytes);
    }
    if (prepared->sums_apart)
        round_tile(p, &tile, sums.memory, false);
}

void product_run(const PreparedProduct *prepared, const void *a, const void *b, void *c,
                 char *scratch) {
    if (prepared->transposed) {
        const void *kept = a;
        a = b;
        b = kept;
    }
    bool bf16 = prepared->shape.bf16_operands;
    Operands operands = {{a, bf16}, {b, bf16}};
    int64_t units = prepared->units, scratch_bytes = product_scratch_bytes(prepared);
    int team = units > 1 ? omp_get_max_threads() : 1;
    int64_t chunk = units / (16 * (int64_t)team) + 1; // NOLINT: the schedule clause reads it
    /* A team of one or of all: for other sizes the OpenMP runtime ends and starts threads. */
#pragma omp parallel num_threads(team)
    {
        TileMemory memory[2][2] = {{{0}}};
        char *own = scratch + omp_get_thread_num() * scratch_bytes;
        /* Of this task alone: the library must not make a team where ours is of one. */
        omp_set_num_threads(1);
#pragma omp for schedule(dynamic, chunk) nowait
        for (int64_t unit = 0; unit < units; unit++)
            run_unit(prepared, unit, memory, &operands, c, own);
        for (int i = 0; i < 4; i++)
            memory_free(&memory[i / 2][i % 2]);
    }
}
