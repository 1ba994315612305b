/* cuda/cuda.h: NVIDIA GPUs.  Index of the folder, by source file.
 *
 *   grid.c          a kernel -> launches: which threads share an iteration, where they wait
 *   print_cuda.c    a launch as CUDA C, with the expressions that print_c.c prints too
 *   prelude_cuda.h  what it calls beside codegen/prelude.h (embedded)
 *   api.h           what we use of the driver's, NVRTC's and cuBLASLt's interfaces
 *   library.c       these libraries, opened at run time; the table of symbols is library.def
 *   cubin.c         CUDA C -> cubins by NVRTC, with a cache keyed by content
 *   blas.c          matrix products through cuBLASLt
 *   choices.c       which of its kernels run them: asked once for a card, and kept
 *   device.c        a card behind the runtime's device table
 *   cards.c         what is known of a card; its rows are cards.def
 *   roofline.c      the time of a training step on a card, from the program alone: a prediction
 *
 * Nothing here is linked against CUDA, and nothing is needed to build it but a C compiler.
 */
#ifndef COLAC_CUDA_H
#define COLAC_CUDA_H

#include "cuda/api.h"
#include "runtime/runtime.h"

/* ---- grid.c --------------------------------------------------------------------------------
 * A kernel's own region is cut at its parallel nests: a nest is one launch, and what stands
 * between two nests is one, of a single team.  Launches run in order, and memory is
 * synchronized between them, as the kernel IR asks.  Values of the region itself that a later
 * launch needs are computed in it again.
 *
 *   team     the threads that share an iteration of the nest.  A block has `teams` of them
 *   lanes    thread t of a team of n runs the iterations of a lanes loop i with
 *            (i / width) mod n = t: `width` neighbours at a time, by vector loads and stores where
 *            the addresses are aligned
 *   splits   where nothing is shared between the threads of a team, its lanes loops are cut in
 *            as many parts, each another team's
 *   dealt    a serial loop that adds to rows which an index names (a scatter) would keep few
 *            threads busy: `splits` teams walk it side by side, each for the rows that are its own
 *            modulo `splits`, so that each row still takes in its terms in order
 *   shared   local buffers are in shared memory, of a team of one thread in its own
 *
 * A team in which threads exchange values is a warp or the whole block.  In a loop with
 * reductions, n * width is the number of lanes of the fixed order, so that a thread owns whole
 * lanes of it.
 *
 * Threads wait for each other before an access to memory that another thread of the team may
 * have made or may still need: known from addresses, in `waits`. */
enum { BLOCK_THREADS = 256, WARP_THREADS = 32 };
enum { RESIDENT_THREADS = 1024 }; /* of a processor, at least: so a thread has at most 64 registers */
enum { SHARED_BYTES = 48 << 10 };     /* of a block, without asking for more */
typedef struct Launch {
    const char *name;   /* of the __global__ function */
    ValueId nest;       /* the outermost parallel loop; -1: a single iteration */
    Region body;        /* instructions of the kernel's own region, in order */
    int64_t iterations; /* of the nest */
    int threads;        /* of a team */
    int teams;          /* of a block */
    int width;          /* 1, 2 or 4 */
    int64_t splits;
    ValueId dealt, row; /* the serial loop, and the index in it; -1 */
    int64_t blocks;
    int shared_bytes;   /* of a block, but for what its reductions exchange */
    bool *waits;        /* by ValueId: the team waits before this instruction */
    int argument_count;
    int *arguments;     /* the kernel's pointers that it takes, ascending */
    bool takes_scalars; /* then the last is a pointer to the kernel's scalars */
} Launch;
typedef struct LaunchList {
    int count;
    Launch *launches;
} LaunchList;
/* `name`: of the first, and with _2, _3, … of the others.  In the kernel's arena. */
LaunchList launches_of(Kernel *kernel, const char *name);

/* ---- print_cuda.c --------------------------------------------------------------------------
 * Readable, deterministic; the kernel IR stands in a comment above the first of its
 * launches. */
void print_cuda(Kernel *kernel, const char *name, const LaunchList *launches, Text *out);
/* The CUDA C of all kernels, in texts of about equal work, each after the preludes, and the
 * launches that are in it, kernel by kernel.  There are as many texts on any machine: with the
 * same NVRTC one finds what another compiled. */
enum { CUDA_TEXTS = 8 };
typedef struct CudaSource {
    int text_count; /* none is without a kernel */
    Text texts[CUDA_TEXTS];
    LaunchList *kernels; /* by kernel; their launches are in the kernels' arenas */
    int *homes;          /* by kernel: the text that defines its launches */
    int launch_count;
    const Launch **launches; /* all of them, kernel by kernel */
} CudaSource;
CudaSource cuda_source(const ProgramSet *set);
void cuda_source_free(CudaSource *source);
/* False after reporting that a launch has more blocks than a grid holds. */
enum { MOST_BLOCKS = INT32_MAX };
bool cuda_source_fits(const CudaSource *source, const Module *module, Diagnostics *diagnostics);
extern const char embedded_prelude_cuda_h[];

/* ---- library.c -----------------------------------------------------------------------------
 * One table of functions, a row of library.def each.  A library is opened when it is first
 * asked for: by its name (LD_LIBRARY_PATH and the system's folders), then in $CUDA_PATH/lib64,
 * $CUDA_HOME/lib64 and /usr/local/cuda/lib64. */
typedef enum CudaLibrary { CUDA_DRIVER, CUDA_NVRTC, CUDA_BLASLT, CUDA_LIBRARY_COUNT } CudaLibrary;
typedef struct CudaTable {
#define ROW(library, type, name, parameters) type(*name) parameters;
#include "cuda/library.def"
#undef ROW
} CudaTable;
/* The table, with the functions of `library` in it; those of other libraries are NULL until
 * they were asked for.  NULL after reporting one sentence: which files were looked for, or
 * which symbol is missing and so that the library is too old, and what to do (install the
 * driver; apt-get package or PyPI wheel of NVRTC and cuBLASLt; `--device cpu`).  The driver is
 * also asked for its version: below CUDA_DRIVER_LEAST it is too old. */
const CudaTable *cuda_library(CudaLibrary library, Diagnostics *diagnostics);
const char *cuda_library_path(CudaLibrary library); /* where it was found; NULL */
/* Of the file that was found: its size and time of change, as a hash.  0: it cannot be looked
 * at. */
uint64_t cuda_library_stamp(CudaLibrary library);
/* Closes all, so that a test may look for them elsewhere. */
void cuda_library_close(void);
enum { CUDA_DRIVER_LEAST = 12000 }; /* as cuDriverGetVersion counts: 12.0 */

/* ---- cubin.c -------------------------------------------------------------------------------
 * What a GPU is, for compiling: 80 for sm_80. */
typedef int CudaArchitecture;
enum { CUDA_LEAST_BF16 = 80 }; /* the first that multiplies bf16 and TF32 */
/* "cuda:sm_90" or "sm_90" -> 90.  0: no such form. */
CudaArchitecture cuda_architecture(const char *text);
/* What the compiler says of a function. */
typedef struct KernelResources {
    int registers;    /* of a thread; -1: it said nothing, and the others are 0 */
    int shared_bytes; /* of a block */
    int stack_bytes;  /* of a thread */
    int spill_bytes;  /* of a thread: stores and loads */
    int constant_bytes; /* parameters among them */
} KernelResources;
typedef struct Cubin {
    char *bytes;
    size_t size;
} Cubin;
typedef struct CubinResult {
    int cubin_count;
    Cubin *cubins;              /* by text */
    KernelResources *resources; /* by launch */
    double seconds;             /* compiling; about 0 when cached */
    bool cached;
} CubinResult;
/* Compiles CUDA C texts by NVRTC for one architecture, in parallel.  Of the launches it takes
 * the names, of functions declared extern "C".  Cache: beside the C kernels' (jit.c), the key
 * covers the source, the options, NVRTC's version and the architecture.  An entry is the cubin,
 * and a line of figures for each of its functions, from the compiler's log; a trailer shows
 * damage; it appears by rename (cache.c).  NULL after reporting: no NVRTC, an architecture that it does
 * not know (with those that it does), or a failed compilation (our bug: the source is kept,
 * named, and the first lines of the log are in the report).
 * `or_an_older`: where NVRTC does not know the architecture, the newest before it of the same
 * generation (sm_100 for sm_103), whose cubins a card of it runs too; those of Tegra run none
 * but their own. */
CubinResult *cubin_compile(const CudaSource *source, CudaArchitecture architecture,
                           bool or_an_older, Diagnostics *diagnostics);
void cubin_free(CubinResult *result);
const char *cubin_options(void); /* as passed to NVRTC, without the architecture */

/* ---- choices.c -----------------------------------------------------------------------------
 * Which of cuBLASLt's kernels a product takes, and what that wants.  The library says that a
 * choice may be kept for as long as the library stays the same. */
typedef struct BlasChoice {
    cublasLtMatmulAlgo_t algorithm;
    int64_t workspace_bytes;
} BlasChoice;
/* Of the choices for products on a card, in the cache of compiled kernels (cache.c): by the
 * library, the card's name, shapes and alignments. */
void blas_choices_key(const CudaTable *blas, const char *card, const Product *products,
                      int64_t (*alignments)[3], int count, char key[33]);
BlasChoice *blas_choices_find(const char key[33], int count); /* to be freed; NULL: none are kept */
void blas_choices_keep(const char key[33], const BlasChoice *choices, int count);

/* ---- blas.c --------------------------------------------------------------------------------
 * A product is calls of cublasLtMatmul: one of its batch loops is the library's own strided
 * batch, other batch loops and the accumulate loops are calls each, adding (beta 1) from the
 * second on.  Which of its kernels the library takes is asked once for a product, and the same
 * for all of the same shape: with f32 accumulation, TF32 only where the plan allows it, and
 * without reductions in place, whose order is that of arrival. */
typedef struct CudaProduct CudaProduct;
/* What a product may have for computing in: room for so many parts of its sums, in f32, and for
 * what kernels of the library want in any case; at most what NVIDIA advises for an H100. */
enum { BLAS_WORKSPACE_ALIGNMENT = 256 };
enum { BLAS_PARTS = 32, BLAS_WORKSPACE_LEAST = 1 << 20, BLAS_WORKSPACE_MOST = 32 << 20 };
int64_t cuda_product_workspace(const Product *product);
/* How many calls of the library a product is, and of how many matrices each: `batch`. */
int64_t cuda_product_calls(const Product *product, int64_t *batch);
/* A failed call: what was called and its result; all 0 where none failed. */
typedef struct BlasFault {
    const char *function; /* cublasLtMatmul; cublasLtMatmulAlgoGetHeuristic: it knows no kernel */
    int status;
} BlasFault;
enum { BLAS_ALIGNMENT = 16 }; /* bytes: the widest load of a kernel */
/* `alignment`: of A, B and C, in bytes, wherever the product is run: a power of two up to
 * BLAS_ALIGNMENT.  `known`: a choice of before, taken if the library still knows it; NULL.  The
 * library is asked otherwise.  NULL with `fault` set. */
CudaProduct *cuda_product_prepare(const CudaTable *blas, cublasLtHandle_t handle,
                                  const Product *product, const int64_t alignment[3],
                                  const BlasChoice *known, BlasFault *fault);
BlasChoice cuda_product_choice(const CudaProduct *product);
/* Into `stream`; operands and workspace in the card's memory. */
BlasFault cuda_product_run(const CudaProduct *product, const void *a, const void *b, void *c,
                           void *workspace, CUstream stream);
BlasFault cuda_product_free(CudaProduct *product); /* NULL is fine */

/* ---- device.c ------------------------------------------------------------------------------
 * For emit_programs: local buffers of a team that always fit in a block, and cuBLASLt's
 * workspace. */
extern const Room cuda_room;
/* The first card that the driver shows (CUDA_VISIBLE_DEVICES), with one stream.  Values from
 * the host go through pinned memory, piece by piece, without stopping the stream; a program is
 * a CUDA graph, captured at its second run.  The first call that fails is remembered with its
 * name and the driver's words.
 * `architecture`: 0, or what the user asked for, which must be the card's.  NULL after
 * reporting: no driver, no card, another architecture. */
Device *device_cuda_open(CudaArchitecture architecture, Diagnostics *diagnostics);
CudaArchitecture device_cuda_architecture(const Device *device); /* of one that it opened */

/* ---- cards.c -------------------------------------------------------------------------------
 * Figures that the makers publish, and where they stand, in cards.def. */
typedef struct Card {
    const char *name;  /* a100 */
    const char *title; /* NVIDIA A100 SXM 80 GB */
    CudaArchitecture architecture;
    int processors;           /* streaming multiprocessors */
    int64_t memory_bytes;     /* that a program can have */
    int64_t cache_bytes;      /* second level */
    double bandwidth;         /* of the memory, B/s */
    double f32_flops;         /* outside tensor cores, FLOP/s */
    double tf32_flops, bf16_flops; /* of tensor cores, dense, FLOP/s */
    int processor_threads, processor_blocks; /* that one holds at a time */
    int processor_shared_bytes;
} Card;
int card_count(void);
const Card *card_at(int index);
const Card *card_find(const char *name); /* NULL */
/* The first of an architecture; NULL. */
const Card *card_of_architecture(CudaArchitecture architecture);
/* The next of that architecture after `card` (NULL: the first); NULL: there are no more. */
const Card *card_after(const Card *card, CudaArchitecture architecture);
/* Blocks of a launch that a processor holds at a time, given what the compiler says. */
int card_resident_blocks(const Card *card, const Launch *launch, const KernelResources *resources);

/* ---- roofline.c ----------------------------------------------------------------------------
 * A *prediction*: nobody has measured it.  What the time of a step is made of, and with which
 * constants (the share of a peak that a good kernel gets, the cost of a launch in a graph, …),
 * is said at their place, each with its source; none is fitted to the published times that
 * tests/test_roofline.c holds the model to.
 *
 *   product   the larger of arithmetic, in whole rounds of output tiles over the processors, and memory
 *             traffic; for each call of the library
 *   kernel    for each launch the larger of bytes moved / bandwidth, where there are threads enough to
 *             ask for them, and arithmetic
 *   copy, zero   bytes / bandwidth
 *
 * and for each launch what a kernel of a graph costs.  Memory that was touched a moment ago,
 * and fits the cache with all that was touched since, is faster. */
/* As predict_step (runtime.h), on a card; `set` was emitted for cuda_room. */
Prediction card_predict_step(const Card *card, const ProgramSet *set, int64_t micro_batches);
/* Of each step of a program, into seconds[step_count]. */
void card_predict_program(const Card *card, const ProgramSet *set, const Program *program,
                          double *seconds);
/* What the steps of a program that is not ours are made of: a product, and a kernel that does
 * little but move so many bytes; from memory, and with its launch. */
double card_product_seconds(const Card *card, const Product *product);
double card_pass_seconds(const Card *card, double bytes);

#endif
