/* runtime/runtime.h: what runs a program.  Index of the folder, by source file.
 *
 *   cache.c        compiled kernels, kept by content
 *   jit.c          cc + dlopen, with that cache
 *   products.c     matrix products through oneDNN: the one file that knows its interface
 *   device_cpu.c   the CPU behind the device table
 *   executor.c     slabs, arena, initial values; runs programs
 *   files.c        files and folders that appear whole or not at all
 *   safetensors.c  reading and writing weights
 *   mapping.c      Hugging Face names and layouts, from a .map text beside the model
 *   shards.c       token data: llm.c, nanoGPT and raw layouts, memory-mapped; the order of samples
 *   pack.c         `colac data pack`: text (plain, .gz, .dz) to shards
 *   interrupts.c   Ctrl-C as a flag, and away from threads that compute
 *   machine.c      measured peak of products and memory; process memory
 *   predict.c      the time of a training step from measured machine figures, without running it
 *   engine.c       what a run is computed by: the executor, or the interpreter in double
 *   progress.c     the progress line and the JSON lines of a run
 *   run.c          the folder of a run: what was asked, and the texts, beside the weights
 *   trainer.c      a run: micro-batches, updates, validation; gradients of one batch; evaluation
 */
#ifndef COLAC_RUNTIME_H
#define COLAC_RUNTIME_H

#include "codegen/codegen.h"

#include <limits.h>

/* To nearest, ties to even; a NaN stays one. */
static inline uint16_t bf16_of(float number) {
    union {
        float number;
        uint32_t bits;
    } value = {.number = number};
    uint32_t rounded = (value.bits + 0x7FFFu + (value.bits >> 16 & 1u)) >> 16;
    return (uint16_t)(number == number ? rounded : (value.bits >> 16 | 0x40u));
}

/* ---- cache.c -------------------------------------------------------------------------------
 * In $COLAC_CACHE, else $XDG_CACHE_HOME/colac, else ~/.cache/colac, else nowhere. */
typedef struct KernelCache {
    char path[PATH_MAX];   /* "": nowhere */
    char folder[PATH_MAX]; /* where entries are made: inside, or a temporary one */
    bool temporary;        /* nothing can be kept: entries stay in the folder */
    Diagnostics *diagnostics;
} KernelCache;
void cache_find(KernelCache *cache, Diagnostics *diagnostics);
/* 128 bits in hexadecimal, of all parts. */
void cache_key(const void *const *parts, const size_t *lengths, int count, char key[33]);
/* The path of an entry (suffix: ".so").  True when it is there and whole. */
bool cache_look_up(const KernelCache *cache, const char *key, const char *suffix, char *entry);
/* A whole entry's own bytes, to be freed; NULL: it cannot be read. */
char *cache_read(const char *entry, size_t *length);
/* Makes the folder for making entries in; a warning where the cache cannot be written.  False
 * after reporting. */
bool cache_begin(KernelCache *cache);
/* Writes a file of the folder.  False after reporting. */
bool cache_write(const KernelCache *cache, const char *path, const char *bytes, size_t length);
/* Seals a finished file of the folder and gives it the name `entry`; where nothing can be kept,
 * `entry` becomes the file's own.  False after reporting. */
bool cache_publish(const KernelCache *cache, const char *made, char *entry);

/* ---- jit.c --------------------------------------------------------------------------------- */
typedef void (*KernelFunction)(void *const *buffers, const double *scalars);
typedef struct JitResult {
    int count;
    KernelFunction *functions; /* in the order of `names` */
    int object_count;
    const char **objects;      /* shared objects in the cache (gone where none can be kept) */
    double seconds;            /* compiling; about 0 when cached */
    bool cached;
} JitResult;
/* Compiles C texts (one translation unit each, in parallel) to shared objects and looks up
 * `names`.  NULL after reporting: no compiler (says which package to install), a full disk, or
 * a failed compilation (our bug: the source is kept). */
JitResult *jit_compile(const Text *sources, int source_count, const char *const *names,
                       int name_count, Diagnostics *diagnostics);
void jit_free(JitResult *result);
const char *jit_flags(void); /* as passed to cc */

/* ---- products.c ---------------------------------------------------------------------------- */
typedef struct PreparedProduct PreparedProduct;
/* The same product with C row by row (c_n == 1) where one of C's strides is 1, and strides of
 * extent-1 axes such that every operand is a plain or a transposed matrix.  True when it is now
 * C' = B' A', with A and B changed places. */
bool product_settle(Product *product);
/* Does the processor multiply bf16 values?  COLAC_BF16=0 says no, COLAC_BF16=1 yes: then by the
 * plain loop. */
bool products_have_bf16(void);
/* Cuts the product into tiles from its extents alone, and prepares one-thread primitives for
 * them; a plain blocked loop where the library has no fast implementation.  Never NULL. */
PreparedProduct *product_prepare(const Product *product);
/* Runs on the calling team's default number of threads.  scratch: product_scratch_bytes() for
 * each thread, 64-byte aligned.  Same bits for every number of threads. */
void product_run(const PreparedProduct *prepared, const void *a, const void *b, void *c,
                 char *scratch);
int64_t product_scratch_bytes(const PreparedProduct *prepared); /* of one thread */
const char *product_implementation(const PreparedProduct *prepared); /* the library's own name */
/* A part of the product that is quick to time, run by product_run: a few of its tiles for each
 * thread, their summed axis cut where it is long.  `share`: of the whole's time, as far as
 * tiles and sums tell.  NULL where even that part wants more than PRODUCT_SAMPLE_BYTES of
 * operands. */
enum { PRODUCT_SAMPLE_BYTES = 5 << 26 };
PreparedProduct *product_prepare_sample(const Product *product, double *share);
/* How far product_run reaches from a, b and c. */
void product_operand_bytes(const PreparedProduct *prepared, int64_t bytes[3]);
void product_free(PreparedProduct *prepared);

/* ---- device table -------------------------------------------------------------------------- */
/* All that the executor asks of a device.  Buffers are addresses in the device's memory.  Calls
 * are carried out in order, but may return before; copy_out has its values when it returns.  A
 * device that cannot go on remembers why: from then on calls do nothing, and values that are
 * read mean nothing. */
enum { FETCH_PLACES = 2, FETCH_BYTES = 1 << 20 };
/* What an executor takes for the scalar arguments of kernels on a device that is not the host,
 * in bytes:  what the steps have, and at least 1 MiB, so that an outline without kernels
 * (outline_programs) has the same. */
int64_t device_scalar_bytes(const ProgramSet *set);
typedef struct Device Device;
struct Device {
    const char *name, *title; /* title: what it is; NULL: no more than the name */
    bool on_host; /* its memory is read and written as any other */
    int64_t (*available_bytes)(Device *device); /* that can be had now */
    /* A sentence about the first thing that went wrong; NULL: nothing has.  (NULL: nothing
     * can.) */
    const char *(*failure)(Device *device);
    void *(*allocate)(Device *device, int64_t bytes);            /* zeroed; NULL: no memory */
    void (*release)(Device *device, void *buffer);
    bool (*load)(Device *device, const ProgramSet *set, Diagnostics *diagnostics); /* compiles */
    /* `scalars`: in the device's memory. */
    void (*launch)(Device *device, int kernel, void *const *buffers, const double *scalars);
    void (*product)(Device *device, int product, const void *a, const void *b, void *c,
                    void *workspace); /* as wide as the step has it; NULL: it has none */
    void (*copy)(Device *device, void *to, const void *from, int64_t bytes); /* within it */
    void (*copy_in)(Device *device, void *to, const void *from, int64_t bytes);
    void (*copy_out)(Device *device, void *to, const void *from, int64_t bytes);
    void (*zero)(Device *device, void *at, int64_t bytes);
    void (*synchronize)(Device *device);
    /* A copy to the host that is not waited for, into one of FETCH_PLACES places of the
     * device's; `fetched` waits for it.  (NULL: on the host.) */
    void (*fetch)(Device *device, int place, const void *from, int64_t bytes);
    void (*fetched)(Device *device, int place, void *to, int64_t bytes);
    /* Launches, products, copies within the device and zeroes between the two calls are not
     * carried out but become a recording, which replay carries out, each time in the same
     * memory.  The recording is the device's.  (All three NULL: it cannot.) */
    void (*record)(Device *device);
    void *(*recorded)(Device *device);
    void (*replay)(Device *device, void *recording);
    /* The device's own clock.  mark: the moment at which all before it is done, in a recording
     * too; between: seconds from a mark to the one with the next number, when both have passed.
     * (Both NULL: by the host's clock, and synchronize.) */
    void (*mark)(Device *device, int64_t number);
    double (*between)(Device *device, int64_t number);
    int64_t (*scratch_bytes)(Device *device); /* held beside slabs and arena; NULL: nothing is */
    double compile_seconds;
    bool compile_cached;
    void (*close)(Device *device);
};
Device *device_cpu_open(int threads, Diagnostics *diagnostics); /* threads 0: OMP_NUM_THREADS */

/* How a device is opened. */
typedef struct DeviceOpener {
    Device *(*open)(int number, Diagnostics *diagnostics); /* device_cpu_open, … */
    int number;                                            /* the CPU's threads, … */
} DeviceOpener;

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
/* Initial values, counter-based on (seed, path, logical element in declared order); tables by
 * the interpreter. */
void executor_initialize(Executor *executor, uint64_t seed);
/* The same initial values of one weight, in declared order; the interpreter starts from them
 * too. */
void initial_values(const Module *module, StateId weight, uint64_t seed, float *values);
/* From now on every run checks for NaN, as with ExecutorOptions.check_nan. */
void executor_check_nan(Executor *executor);
/* Part of a matrix.  A state is the matrix of its in axes, merged, by its out axes, merged: its
 * values in declared order, whatever the order in memory. */
typedef struct StateBlock {
    int64_t first_row, rows, first_column, columns;
} StateBlock;
StateBlock whole_state(const Module *module, StateId state);
enum { BLOCK_ELEMENTS = 1 << 18 };
/* The block after `block` (of zeros: the first) of a matrix that is taken row by row, at most
 * BLOCK_ELEMENTS at a time; false when there is none. */
bool next_block(int64_t rows, int64_t columns, StateBlock *block);
/* Values [rows,columns] of a block, or of all.  What is written to a weight goes to its bf16
 * copy too, rounded. */
void executor_read_block(const Executor *executor, StateId state, StateBlock block, float *values);
void executor_write_block(Executor *executor, StateId state, StateBlock block,
                          const float *values);
void executor_read_state(const Executor *executor, StateId state, float *values);
void executor_write_state(Executor *executor, StateId state, const float *values);
void executor_set_input(Executor *executor, int input, const int32_t *values);
double executor_metric(const Executor *executor, const char *path);
/* All metrics as they are when what was run so far is done, into a place, without waiting; then
 * one of them, which waits. */
void executor_fetch_metrics(Executor *executor, int place);
double executor_fetched_metric(Executor *executor, int place, StateId metric);
/* Runs `micro`, `update` or `eval` with the function's runtime scalars; the device may still be
 * at it when this returns.  False after reporting (check_nan; the device failed). */
bool executor_run(Executor *executor, const char *program, const double *scalars,
                  Diagnostics *diagnostics);
/* Waits until all is done.  False after reporting that the device failed: what was read of it
 * since it was last asked means nothing. */
bool executor_settle(Executor *executor, Diagnostics *diagnostics);
/* Seconds by step of the last run, when timing was switched on. */
void executor_set_timing(Executor *executor, bool on);
const double *executor_step_seconds(const Executor *executor, const char *program);
/* Bytes: slabs, arena and device scratch. */
int64_t executor_bytes(const Executor *executor);
/* Highest byte of the arena touched since poisoning (a test's proof of the plan). */
int64_t executor_arena_touched(const Executor *executor);

/* ---- files.c -------------------------------------------------------------------------------
 * A new file is written under a temporary name in the folder of its path and gets its own name
 * when it is complete and synced, so that a reader sees the old content or the new one.  A path
 * that is no regular file (a pipe, a terminal, /dev/full) is written in place. */
typedef struct NewFile NewFile;
/* NULL after reporting (no such folder, no permission, the path is a folder). */
NewFile *new_file_open(const char *path, Diagnostics *diagnostics);
/* A failure is remembered and reported by new_file_sync; later writes then do nothing. */
void new_file_write(NewFile *file, const void *bytes, size_t length);
void new_file_printf(NewFile *file, const char *format, ...) PRINTF_LIKE(2, 3);
/* Replaces the first `length` bytes, which were written before (a header with a count in
 * it). */
void new_file_rewrite_start(NewFile *file, const void *bytes, size_t length);
bool new_file_failed(const NewFile *file);
/* Flushes and syncs under the temporary name; several files can so be made certain to fit
 * before the first of them appears.  False after reporting; then only new_file_abandon is
 * left. */
bool new_file_sync(NewFile *file, Diagnostics *diagnostics);
/* Syncs (if not done) and renames.  The file is gone from memory in either case; false after
 * reporting, with nothing left behind. */
bool new_file_publish(NewFile *file, Diagnostics *diagnostics);
void new_file_abandon(NewFile *file); /* NULL is fine */
/* A path as JSON can hold it: itself, or, where it is not UTF-8, with ? for its bytes above
 * 127. */
char *json_path(const char *path, Arena *arena);
/* Creates a folder and those above it that are missing.  False after reporting. */
bool make_folder(const char *path, Diagnostics *diagnostics);

/* ---- safetensors.c ------------------------------------------------------------------------- */
typedef struct Tensor {
    const char *name;
    enum { TENSOR_F64, TENSOR_F32, TENSOR_BF16, TENSOR_F16, TENSOR_OTHER } dtype;
    int rank;
    int64_t shape[MAX_AXES];
    int64_t elements, begin; /* begin: bytes from the data section's start */
} Tensor;
typedef struct TensorFile TensorFile;
/* Memory-maps and checks a file (header length, JSON, extents that tile the data section, shape
 * times size = extent).  NULL after reporting. */
TensorFile *tensor_file_open(const char *path, Diagnostics *diagnostics);
void tensor_file_close(TensorFile *file);
int tensor_file_count(const TensorFile *file);
const Tensor *tensor_file_at(const TensorFile *file, int index);
const Tensor *tensor_file_find(const TensorFile *file, const char *name); /* NULL */
/* Elements [first, first + count) of a tensor whose dtype is not TENSOR_OTHER. */
void tensor_file_read(const TensorFile *file, const Tensor *tensor, int64_t first, int64_t count,
                      double *values);
/* Writing: declare all tensors (f32 or f64; `elements` and `begin` are computed), then give
 * their values in that order, in pieces of which none reaches into the next tensor.  NULL after
 * reporting. */
typedef struct TensorWriter TensorWriter;
TensorWriter *tensor_writer_open(const char *path, const Tensor *tensors, int count,
                                 Diagnostics *diagnostics);
void tensor_writer_put(TensorWriter *writer, const double *values, int64_t count);
/* The complete file, ready to be published; NULL after reporting (a full disk), with nothing
 * left behind.  The writer is gone. */
NewFile *tensor_writer_finish(TensorWriter *writer, Diagnostics *diagnostics);

/* ---- mapping.c -----------------------------------------------------------------------------
 * Which tensors of Hugging Face hold a model's parameters: a .map text beside the model, a line
 * each, comments after #:
 *
 *     layer[i].attn.wq           model.layers.{i}.self_attn.q_proj.weight   out in
 *     layer[i].attn.wq.A         model.layers.{i}.self_attn.q_proj.cola_a   in out
 *     layer[i].attn.{wq,wk,wv}   transformer.h.{i}.attn.c_attn.weight       in join(out)
 *
 * A parameter's path, where [i] stands for any index; their name; their axes, slowest first.
 * `in` and `out` are the parameter's marked axes ([D -> H,K]), each side merged to one (and
 * absent where it has no axes).  join(…): the paths of the braces stand side by side along that
 * axis.  Other names that occur for the same tensor follow after `|`; the first is the one
 * written.  A parameter that no line names keeps its own name and layout: its declared axes, in
 * then out. */
typedef struct Mapping Mapping;
/* The mapping for a model file (models/llama.cola -> models/llama.map); an empty one when there
 * is none.  Memory in `arena`, which must outlive `diagnostics`.  NULL after reporting. */
Mapping *mapping_load(const char *model_path, Arena *arena, Diagnostics *diagnostics);
bool mapping_is_empty(const Mapping *mapping);
const Source *mapping_source(const Mapping *mapping); /* NULL for an empty one */
/* Loads weights under own names or, through the mapping, theirs, as each weight's is found in
 * the file, which may hold more tensors than needed; what is missing or of a wrong shape is
 * reported with both shapes.  `put` gets each weight block by block, [rows,columns]. */
typedef void (*PutWeight)(void *context, StateId weight, StateBlock block, const double *values);
bool weights_load(const Module *module, const Mapping *mapping, const char *path,
                  PutWeight put, void *context, Diagnostics *diagnostics);
/* Writes a value for every weight (the weight itself or its gradient) under own or their names
 * and layouts, in f64 or f32.  `get` fills the values of a block, [rows,columns]. */
typedef void (*GetWeight)(void *context, StateId weight, StateBlock block, double *values);
bool weights_save(const Module *module, const Mapping *mapping, bool theirs, bool double_precision,
                  const char *path, GetWeight get, void *context, Diagnostics *diagnostics);
/* The same, complete and synced but not yet under its name.  NULL after reporting. */
NewFile *weights_stage(const Module *module, const Mapping *mapping, bool theirs,
                       bool double_precision, const char *path, GetWeight get, void *context,
                       Diagnostics *diagnostics);

/* ---- shards.c ------------------------------------------------------------------------------
 * Tokens in files: llm.c (uint16 and uint32), Megatron (.bin beside .idx), nanoGPT or any raw
 * uint16.  A *sample* is `span` consecutive tokens of one file; the samples of a file begin
 * `positions` apart, so that one's last token is the next one's first.  No sample crosses from
 * a file into the next: what is left at a file's end is not used. */
typedef struct TokenData TokenData;
typedef struct SampleShape {
    int64_t positions; /* of the model's first input: how far apart samples begin */
    int64_t span;      /* tokens that a sample's inputs reach over: positions + 1 as a rule */
    int64_t below;     /* ids must be below it */
} SampleShape;
/* The shape that a module's inputs ask for. */
SampleShape sample_shape(const Module *module);
typedef enum DataSplit { SPLIT_ALL, SPLIT_TRAIN, SPLIT_VALIDATION } DataSplit;
/* `path`: a file, or a folder of .bin files in order of name.  A file is of the validation
 * split when `val` or `validation` is a word of its name; where a folder has both kinds,
 * `split` picks.  Files of up to 16 MiB are checked for ids that are too large at once, others
 * as they are read.  NULL after reporting (empty, missing, truncated, too short for one
 * sample). */
TokenData *token_data_open(const char *path, DataSplit split, SampleShape shape,
                           Diagnostics *diagnostics);
/* Does the path hold files of both splits?  (No: SPLIT_VALIDATION would open all of it.) */
bool token_data_has_validation(const char *path);
void token_data_close(TokenData *data);
int64_t token_data_tokens(const TokenData *data);
uint64_t token_data_hash(const TokenData *data); /* of its bytes; of a large file's, a sample */
int64_t token_data_samples(const TokenData *data); /* of one epoch */
typedef enum SampleOrder { ORDER_SEQUENTIAL, ORDER_SHUFFLED } SampleOrder;
/* The token at which global sample g (from 0) begins, counted through all files: a function of
 * the arguments alone, in O(1) memory.  Sequential: sample g mod samples (in a single file
 * token g * positions).  Shuffled: every epoch is a permutation of the samples by (seed,
 * epoch). */
int64_t token_data_start(const TokenData *data, SampleOrder order, uint64_t seed, int64_t sample);
/* Fills an input [rows, width]: row j is `width` tokens from start(sample0 + j) + next on.
 * False after reporting an id that is not below the vocabulary: which file, which token. */
bool token_data_fill(const TokenData *data, SampleOrder order, uint64_t seed, int64_t sample0,
                     int64_t rows, int64_t width, int64_t next, int32_t *values,
                     Diagnostics *diagnostics);

/* ---- pack.c -------------------------------------------------------------------------------- */
/* Bytes of the texts (plain, .gz, .dz; `-`: standard input) as uint16 tokens in llm.c shards
 * DIR/train_000.bin … and DIR/val_000.bin …, with DIR/data.json saying what made them.  Of
 * every 20 blocks of 64 KiB one, by a hash, is for validation; where that hits none, the last
 * twentieth of the text (at most its last block).  The folder appears whole or not at all; one
 * that exists and is not empty is refused. */
typedef struct PackReport {
    int64_t train_tokens, validation_tokens;
    int files;
} PackReport;
bool data_pack(const char *const *paths, int count, const char *directory, PackReport *report,
               Diagnostics *diagnostics);
/* The same with at most `shard_tokens` tokens in a file (data_pack: 100 million). */
bool data_pack_shards(const char *const *paths, int count, const char *directory,
                      int64_t shard_tokens, PackReport *report, Diagnostics *diagnostics);

/* ---- interrupts.c -------------------------------------------------------------------------- */
/* Once, before there are other threads: those that come after do not take SIGINT and
 * SIGTERM. */
void interrupts_guard(void);
/* From now on the first of them is remembered; a second one ends the process.  Not nested. */
void interrupts_catch(void);
void interrupts_release(void); /* as before */
int interrupt_caught(void);    /* its number; 0: none since interrupts_catch */

/* ---- machine.c ----------------------------------------------------------------------------- */
typedef struct MachineFigures {
    double product_flops;  /* FLOP/s of a large f32 product, measured in about 50 ms */
    double copy_bytes;     /* B/s of a large copy */
    int threads;
    const char *processor;
} MachineFigures;
MachineFigures machine_measure(void);
int64_t machine_available_bytes(void); /* that can be had without swapping; containers' limits too */
int64_t process_resident_bytes(void);
double now_seconds(void); /* monotonic */

/* ---- predict.c -----------------------------------------------------------------------------
 * What a step of the program will take on this machine, without running or compiling it.
 *
 *   product   the time of a sample of it (product_prepare_sample) over the sample's share; where
 *             there was no time for that, its FLOPs at the rate of the most similar timed one
 *   kernel    the larger of bytes touched / bandwidth and kernel_work / operations, and the share
 *             of the other that it does not hide
 *   copy, zero   bytes touched / bandwidth
 *
 * and each the cost of a parallel region.  A step's operands were last used about a step
 * ago, so the bandwidth is that of going round and round in as many bytes as the program has.
 * Memory that is read and written counts once: a line that is there is written for free, and
 * one that is not is read first.  All figures are measured by generic loops on the team's
 * default number of threads; a test fills in its own. */
enum { BANDWIDTH_SIZES = 4 };
typedef struct Bandwidth {
    double around;           /* going round so many bytes … */
    double bytes_per_second; /* … so many are touched */
} Bandwidth;
typedef struct ProductTime {
    Product product;
    double seconds;
} ProductTime;
typedef struct MachineProfile {
    int threads;
    double region_seconds;                 /* to start and end a parallel region */
    double operations;                     /* a second, in the units of kernel_work */
    double unhidden;                       /* share of the lesser of moving and computing that the
                                              greater does not hide */
    Bandwidth bandwidths[BANDWIDTH_SIZES]; /* ascending */
    double product_flops;                  /* FLOP/s of a product when none was timed */
    ARRAY(ProductTime) products;           /* those that were */
    StringMap product_by_shape;            /* index in it */
    char *memory;                          /* operands of what is timed; NULL: nothing is */
    double overdrawn;                      /* seconds */
} MachineProfile;
enum { PROFILE_BYTES = 6 << 26 }; /* of memory: more than a cache holds */
/* Measures all but products, in about 0.2 s. */
MachineProfile *machine_profile_new(void);
void machine_profile_free(MachineProfile *profile);
/* Times the products of a program set that are not known yet, those that weigh most in a step
 * first, and again and again (the median counts) for `seconds`.  What has been run less than
 * three times may take some more, which later calls make up for: the first of several plans has
 * the most to time.  All calls for n sets take at most n times `seconds` and 0.3 s. */
void machine_profile_products(MachineProfile *profile, const ProgramSet *set, double seconds);
/* Enters a time; a later one replaces it. */
void machine_profile_enter(MachineProfile *profile, const Product *product, double seconds);
double product_flops(const Product *product);
double predict_product(const MachineProfile *profile, const Product *product);
/* Bytes per second of a program that goes round so many bytes. */
double profile_bandwidth(const MachineProfile *profile, double around);
typedef struct Prediction {
    double products, kernels, copies; /* of all micro-batches; copies and zeroes */
    double update;                    /* clip and optimizer */
    double overhead;                  /* of the regions of all steps; in none of the others */
    double seconds;                   /* of the training step: their sum */
} Prediction;
/* One training step: `micro_batches` times the program `micro`, then `update` (where the set
 * has them). */
Prediction predict_step(const MachineProfile *profile, const ProgramSet *set,
                        int64_t micro_batches);
/* Of each step of a program, its region included, into seconds[step_count]. */
void predict_program(const MachineProfile *profile, const ProgramSet *set,
                     const Program *program, double *seconds);

/* ---- engine.c ------------------------------------------------------------------------------
 * What a run asks of whatever computes it.  Values of states are in declared axis order. */
typedef struct Engine Engine;
struct Engine {
    const Module *module;
    const char *device; /* what computes: "cpu", "interpreter", a card's title */
    bool double_precision;
    double compile_seconds; /* of kernels */
    void (*initialize)(Engine *engine, uint64_t seed); /* weights, moments, tables */
    void (*set_input)(Engine *engine, int input, const int32_t *values); /* copied */
    /* `scalars`: one for each of the function's.  False after reporting (check_nan). */
    bool (*run)(Engine *engine, const char *function, const double *scalars,
                Diagnostics *diagnostics);
    void (*read)(Engine *engine, StateId state, StateBlock block, double *values);
    void (*write)(Engine *engine, StateId state, StateBlock block, const double *values);
    /* Does `run` return while it is still computed?  Then a run is best asked about later. */
    bool runs_ahead;
    /* executor_fetch_metrics, executor_fetched_metric, executor_settle */
    void (*fetch_metrics)(Engine *engine, int place);
    double (*fetched_metric)(Engine *engine, int place, StateId metric);
    bool (*settle)(Engine *engine, Diagnostics *diagnostics);
    /* From now on a run stops at the first tensor that holds a NaN or an infinity, and names
     * it. */
    void (*watch)(Engine *engine);
    int64_t (*bytes)(Engine *engine);
    double (*flops)(Engine *engine, const char *function); /* as executed; 0: not known */
    void (*close)(Engine *engine);
};
/* NULL after reporting: no compiler, too little memory. */
Engine *engine_executor(Device *device, const ProgramSet *set, const ExecutorOptions *options,
                        Diagnostics *diagnostics); /* takes the device over, in any case */
Engine *engine_interpreter(const Module *module, bool check_nan, Diagnostics *diagnostics);
/* All values of a state. */
void engine_read(Engine *engine, StateId state, double *values);
void engine_write(Engine *engine, StateId state, const double *values);

/* ---- trainer.c ----------------------------------------------------------------------------- */
/* What a run came to. */
typedef struct TrainReport {
    int64_t steps, tokens;      /* done */
    double final_loss;          /* of the last update */
    double validation_loss;     /* NaN: the data has no such split */
    double seconds;             /* of all updates */
    double step_seconds;        /* of one: the median */
    double flops;               /* of all updates, as executed; 0: not known */
    int64_t peak_bytes;
    double compile_seconds;     /* text to kernels */
} TrainReport;
typedef struct TrainOptions {
    const Request *request;     /* what was compiled: recorded in run.json */
    const char *data;
    const char *out;            /* train: the run's folder (NULL, with a report: weights are not
                                   kept); grad: the file of gradients */
    const char *weights;        /* initial weights, or NULL */
    int64_t steps;              /* 0: the recipe's */
    uint64_t seed;
    SampleOrder order;
    bool json, their_names, interpreter;
    DeviceOpener device;        /* unless the interpreter computes */
    ExecutorOptions executor;
    double compile_seconds;     /* so far: text to program */
    TrainReport *report;        /* train: where the figures go; then interrupts are left to the caller,
                                   and nothing but the progress line is printed.  NULL: printed */
    bool quiet;                 /* with a report: no progress line either */
} TrainOptions;
/* All three take a compiled module and its programs (NULL with `interpreter`), report to
 * `diagnostics` without printing them, and return the exit code.
 *
 * Trains.  OUT/weights.safetensors, OUT/run.json and OUT/texts appear together at the end; a
 * run that fails leaves what was there.  An interrupt (SIGINT, SIGTERM) ends the run after the
 * update at hand: its weights are written and the code is 128 + the signal's number. */
int train(Compilation *compilation, const ProgramSet *set, const TrainOptions *options,
          Diagnostics *diagnostics);
/* The loss and the gradient of every weight on the recipe's first batch, before clipping, in
 * options->out. */
int run_grad(Compilation *compilation, const ProgramSet *set, const TrainOptions *options,
             Diagnostics *diagnostics);
/* The mean loss of options->weights over the validation split of options->data (all of it where
 * it is not split): whole micro-batches in order. */
int run_eval(Compilation *compilation, const ProgramSet *set, const TrainOptions *options,
             Diagnostics *diagnostics);
/* The rate of recipe group `group` at update t, from 1, of `steps`: warm-up, then the
 * schedule. */
double recipe_rate(const Recipe *recipe, int group, int64_t t, int64_t steps);

/* ---- run.c ---------------------------------------------------------------------------------
 * RUN/run.json says what was asked; RUN/texts holds every text that it was asked with (model,
 * what it uses, plan and recipe files, the mapping), so that the run can be compiled again. */
typedef struct RunRecord {
    Request request;     /* path, plan and recipe inside RUN/texts */
    const char *weights; /* RUN/weights.safetensors */
    uint64_t seed;
    bool their_names;
} RunRecord;
/* How a run ended. */
typedef struct RunEnd {
    const char *device; /* the engine's */
    int64_t steps; /* done */
    bool interrupted;
    double final_loss, validation_loss; /* NaN: none */
} RunEnd;
/* Writes the folder of a run: everything is complete and synced under temporary names before
 * the first file appears; the staged weights, which it takes over, appear last.  False after
 * reporting. */
bool run_write(const Compilation *compilation, const Mapping *mapping, const TrainOptions *options,
               const RunEnd *end, NewFile *weights, Diagnostics *diagnostics);
/* RUN/weights.safetensors */
char *run_weights_path(const char *folder, Arena *arena);
/* Memory in `arena`.  NULL after reporting: no such folder, no run in it, a damaged
 * run.json. */
RunRecord *run_open(const char *folder, Arena *arena, Diagnostics *diagnostics);

/* ---- progress.c ----------------------------------------------------------------------------- */
/* What is known after an update. */
typedef struct StepFigures {
    int64_t step, steps;
    double loss, rate, gradient_norm;
    double validation_loss;      /* the latest; NaN: none yet */
    bool validated;              /* it was measured after this update */
    int64_t tokens;              /* of this update */
    double seconds;              /* of this update */
    double flops;                /* of this update, as executed; 0: not known */
    int64_t peak_bytes;
    int observed_count;
    const char *const *observed_names;
    const double *observed;
} StepFigures;
typedef struct Progress Progress;
/* product_flops: the measured peak (0: no share is shown).  `json`: an object an update on
 * standard output; else one live line on a terminal, or a line every few seconds, on standard
 * error. */
Progress *progress_new(bool json, double product_flops);
void progress_step(Progress *progress, const StepFigures *figures);
/* Shows what has not been shown, and ends the live line. */
void progress_end(Progress *progress);
/* The same, and with `json` the last object: final_loss, val_loss (NaN: null), compile_s. */
void progress_summary(Progress *progress, double final_loss, double validation_loss,
                      double compile_seconds);
void progress_free(Progress *progress);

#endif
