/* runtime/runtime.h: what runs a program.  Index of the folder, by source file.
 *
 *   jit.c          cc + dlopen with a cache keyed by content
 *   products.c     matrix products through oneDNN: the one file that knows its interface
 *   device_cpu.c   the CPU behind the device table
 *   executor.c     slabs, arena, initial values; runs programs
 *   safetensors.c  reading and writing weights
 *   mapping.c      Hugging Face names and layouts, from a .map text beside the model
 *   shards.c       token data: llm.c, nanoGPT and raw layouts, memory-mapped; the order of samples
 *   pack.c         `colac data pack`: text (plain, .gz, .dz) to shards
 *   machine.c      measured peak of products and memory; process memory
 *   trainer.c      a run: micro-batches, updates, validation, progress, logs
 */
#ifndef COLAC_RUNTIME_H
#define COLAC_RUNTIME_H

#include "codegen/codegen.h"

/* ---- jit.c --------------------------------------------------------------------------------- */
typedef void (*KernelFunction)(void *const *buffers, const double *scalars);
typedef struct JitResult {
    int count;
    KernelFunction *functions; /* in the order of `names` */
    double seconds;            /* compiling; about 0 when cached */
    bool cached;
} JitResult;
/* Compiles C texts (one translation unit each, in parallel) to shared objects and looks up
 * `names`.  Cache: $COLAC_CACHE, else $XDG_CACHE_HOME/colac, else ~/.cache/colac, else a temporary
 * folder; the key covers sources, flags, compiler version and processor; files appear by rename,
 * so that two processes may build the same thing.  NULL after reporting: no compiler (says which
 * package to install), a full disk, or a failed compilation (our bug: the source is kept). */
JitResult *jit_compile(const Text *sources, int source_count, const char *const *names,
                       int name_count, Diagnostics *diagnostics);
void jit_free(JitResult *result);
const char *jit_flags(void); /* as passed to cc */

/* ---- products.c ---------------------------------------------------------------------------- */
typedef struct PreparedProduct PreparedProduct;
/* Cuts the product into tiles from its extents alone, and prepares one-thread primitives for them;
 * a plain blocked loop where the library has no fast implementation.  Never NULL. */
PreparedProduct *product_prepare(const Product *product);
/* Runs on the calling team's default number of threads.  scratch: product_scratch_bytes() for each
 * thread, 64-byte aligned.  Same bits for every number of threads. */
void product_run(const PreparedProduct *prepared, const float *a, const float *b, float *c,
                 char *scratch);
int64_t product_scratch_bytes(const PreparedProduct *prepared); /* of one thread */
const char *product_implementation(const PreparedProduct *prepared); /* the library's own name */
void product_free(PreparedProduct *prepared);

/* ---- device table -------------------------------------------------------------------------- */
/* All that the executor asks of a device.  Buffers are addresses in the device's memory. */
typedef struct Device Device;
struct Device {
    const char *name;
    void *(*allocate)(Device *device, int64_t bytes);            /* zeroed; NULL: no memory */
    void (*release)(Device *device, void *buffer);
    bool (*load)(Device *device, const ProgramSet *set, Diagnostics *diagnostics); /* compiles */
    void (*launch)(Device *device, int kernel, void *const *buffers, const double *scalars);
    void (*product)(Device *device, int product, void *a, void *b, void *c);
    void (*copy_in)(Device *device, void *to, const void *from, int64_t bytes);
    void (*copy_out)(Device *device, void *to, const void *from, int64_t bytes);
    void (*zero)(Device *device, void *at, int64_t bytes);
    void (*synchronize)(Device *device);
    int64_t (*scratch_bytes)(Device *device);                    /* held beside slabs and arena */
    double compile_seconds;
    bool compile_cached;
    void (*close)(Device *device);
};
Device *device_cpu_open(int threads, Diagnostics *diagnostics); /* threads 0: OMP_NUM_THREADS */

/* ---- executor.c ---------------------------------------------------------------------------- */
typedef struct Executor Executor;
typedef struct ExecutorOptions {
    bool poison;     /* fill the arena with signalling NaNs before every run of a program */
    bool check_nan;  /* stop at the first step that writes a NaN or infinity, naming it */
} ExecutorOptions;
/* Allocates slabs, arena and inputs once.  NULL after reporting (too little memory: with the
 * table). */
Executor *executor_new(Device *device, const ProgramSet *set, const ExecutorOptions *options,
                       Diagnostics *diagnostics);
void executor_free(Executor *executor);
/* Initial values, counter-based on (seed, path, logical element in declared order); tables by the
 * interpreter. */
void executor_initialize(Executor *executor, uint64_t seed);
/* Values of a state in declared axis order (in then out axes), whatever its memory order. */
void executor_read_state(const Executor *executor, StateId state, float *values);
void executor_write_state(Executor *executor, StateId state, const float *values);
void executor_set_input(Executor *executor, int input, const int32_t *values);
double executor_metric(const Executor *executor, const char *path);
/* Runs `micro`, `update` or `eval` with the function's runtime scalars.  False after reporting
 * (check_nan). */
bool executor_run(Executor *executor, const char *program, const double *scalars,
                  Diagnostics *diagnostics);
/* Seconds by step of the last run, when timing was switched on. */
void executor_set_timing(Executor *executor, bool on);
const double *executor_step_seconds(const Executor *executor, const char *program);
/* Bytes: slabs, arena and device scratch. */
int64_t executor_bytes(const Executor *executor);
/* Highest byte of the arena touched since poisoning (a test's proof of the plan). */
int64_t executor_arena_touched(const Executor *executor);

/* ---- safetensors.c ------------------------------------------------------------------------- */
typedef struct Tensor {
    const char *name;
    enum { TENSOR_F64, TENSOR_F32, TENSOR_BF16, TENSOR_F16, TENSOR_OTHER } dtype;
    int rank;
    int64_t shape[MAX_AXES];
    int64_t elements, begin; /* begin: bytes from the data section's start */
} Tensor;
typedef struct TensorFile TensorFile;
/* Memory-maps and checks a file (header length, JSON, offsets inside the file, no overlap, shape
 * times size = extent).  NULL after reporting. */
TensorFile *tensor_file_open(const char *path, Diagnostics *diagnostics);
void tensor_file_close(TensorFile *file);
int tensor_file_count(const TensorFile *file);
const Tensor *tensor_file_at(const TensorFile *file, int index);
const Tensor *tensor_file_find(const TensorFile *file, const char *name); /* NULL */
void tensor_file_read(const TensorFile *file, const Tensor *tensor, double *values);
void tensor_file_read_f32(const TensorFile *file, const Tensor *tensor, float *values);
/* Writing: declare all tensors, then give their values in that order.  The file appears under its
 * name only when complete and synced (temporary file, fsync, rename); on failure reports, leaves
 * nothing behind, returns false. */
typedef struct TensorWriter TensorWriter;
TensorWriter *tensor_writer_open(const char *path, const Tensor *tensors, int count,
                                 Diagnostics *diagnostics);
bool tensor_writer_put_f32(TensorWriter *writer, const float *values, Diagnostics *diagnostics);
bool tensor_writer_put_f64(TensorWriter *writer, const double *values, Diagnostics *diagnostics);
bool tensor_writer_close(TensorWriter *writer, Diagnostics *diagnostics); /* false: not written */

/* ---- mapping.c -----------------------------------------------------------------------------
 * A .map text beside the model, a line each:
 *     layer[i].attn.wq      model.layers.{i}.self_attn.q_proj.weight   (H,K) D
 * path pattern, their name, their axes in memory order ((…) merged to one).  Several paths on one
 * of their tensors stand joined: `layer[i].attn.{wq,wk,wv}` with `D 3(H,K)` (concatenated along
 * that axis). */
typedef struct Mapping Mapping;
/* The mapping for a model file (models/llama.cola -> models/llama.map); an empty one when there is
 * none.  NULL after reporting. */
Mapping *mapping_load(const char *model_path, Diagnostics *diagnostics);
void mapping_free(Mapping *mapping);
/* Loads weights (own names, or theirs through the mapping; a file may hold more tensors than
 * needed, a missing or wrongly shaped one is reported with both shapes). `put` gets each weight in
 * declared order. */
typedef void (*PutWeight)(void *context, StateId state, const double *values, int64_t count);
bool weights_load(const Module *module, const Mapping *mapping, const char *path,
                  PutWeight put, void *context, Diagnostics *diagnostics);
/* Writes values of a role (weights or gradients) under own or their names, own or their layout.
 * `get` fills values in declared order. */
typedef void (*GetWeight)(void *context, StateId weight, double *values, int64_t count);
bool weights_save(const Module *module, const Mapping *mapping, bool theirs, bool double_precision,
                  const char *path, GetWeight get, void *context, Diagnostics *diagnostics);

/* ---- shards.c ------------------------------------------------------------------------------ */
typedef struct TokenData TokenData;
/* `path`: a shard, a folder of shards, or a raw uint16 file.  `split` picks files of a folder that
 * `data pack` wrote (train, val) when there are both; NULL: all.  `below`: ids must be below it
 * (which shard, which offset).  NULL after reporting (empty, missing, truncated, too short for one
 * sequence). */
TokenData *token_data_open(const char *path, const char *split, int64_t below,
                           Diagnostics *diagnostics);
void token_data_close(TokenData *data);
int64_t token_data_count(const TokenData *data); /* tokens */
typedef enum SampleOrder { ORDER_SEQUENTIAL, ORDER_SHUFFLED } SampleOrder;
/* Where global sample g (a sequence of `positions` tokens plus the furthest `next`) begins.
 * Sequential: token g * positions, wrapping.  Shuffled: a permutation of the sequences by
 * (seed, epoch), a function of the global sample index alone, O(1) memory. */
int64_t token_data_start(const TokenData *data, SampleOrder order, uint64_t seed,
                         int64_t sample, int64_t positions, int64_t furthest_next);
/* Fills a [rows, positions] input: row j is tokens [start(sample0 + j) + next, … + positions).
 * False after reporting: an id not below the vocabulary. */
bool token_data_fill(const TokenData *data, SampleOrder order, uint64_t seed, int64_t sample0,
                     int64_t rows, int64_t positions, int64_t next, int64_t furthest_next,
                     int32_t *values, Diagnostics *diagnostics);

/* ---- pack.c -------------------------------------------------------------------------------- */
/* Bytes of the texts (plain, .gz, .dz; `-`: standard input) as uint16 tokens in llm.c shards
 * DIR/train_000.bin …, and DIR/val_000.bin: every 20th block of 64 KiB of text (by hash of its
 * index).  The folder appears whole or not at all. */
typedef struct PackReport {
    int64_t train_tokens, validation_tokens;
    int files;
} PackReport;
bool data_pack(const char *const *paths, int count, const char *directory, PackReport *report,
               Diagnostics *diagnostics);

/* ---- machine.c ----------------------------------------------------------------------------- */
typedef struct MachineFigures {
    double product_flops;  /* FLOP/s of a large f32 product, measured in about 50 ms */
    double copy_bytes;     /* B/s of a large copy */
    int threads;
    const char *processor;
} MachineFigures;
MachineFigures machine_measure(void);
int64_t process_resident_bytes(void);
double now_seconds(void); /* monotonic */

/* ---- trainer.c ----------------------------------------------------------------------------- */
typedef struct TrainOptions {
    const char *data, *out;
    const char *weights;        /* initial weights, or NULL */
    int64_t steps;              /* 0: the recipe's */
    uint64_t seed;
    SampleOrder order;
    bool json, their_names, interpreter;
    int threads;
    ExecutorOptions executor;
} TrainOptions;
/* Trains; writes OUT/weights.safetensors (and OUT/run.json: what was asked, to evaluate it later).
 * Returns the exit code. */
int train(Compilation *compilation, const ProgramSet *set, const TrainOptions *options,
          Diagnostics *diagnostics);

#endif
