/* driver/driver.h: the command line.  Index of the folder, by source file.
 *
 *   main.c      the table of commands
 *   options.c   the table of options; what each command takes
 *   compile.c   model text to a scheduled module and its programs, as every command needs it
 *   figures.c   what check, plan and others say of a compiled model: parameters, FLOPs, bytes
 *   directives.c which directives of a plan change the model, and which are exact
 *   check.c     colac check
 *   timeline.c  the memory of a step over its course
 *   plan.c      colac plan
 *   ir.c        colac ir, colac opt
 *   build.c     colac build
 *   profile.c   colac profile
 *   run.c       colac train, grad, eval
 *   texts.c     colac fmt, colac data pack
 *   rows.c      rows of measurements: what stands under a key; means
 *   chart.c     pictures of measurements: series of points as a self-contained SVG
 *   draw.c      colac chart
 *   sweep.c     colac sweep
 *   sweep_page.c its table, its picture, its page
 *
 * Exit codes: 0 success, 1 the input is wrong, 2 wrong argument syntax, 3 our bug.
 */
#ifndef COLAC_DRIVER_H
#define COLAC_DRIVER_H

#include "cuda/cuda.h"

struct json_t;

/* ---- options.c ----------------------------------------------------------------------------- */
enum { MAX_DEFINES = 64, MAX_OVER = 8, MAX_SEEDS = 64 };
typedef enum DeviceKind { DEVICE_CPU, DEVICE_CUDA, DEVICE_INTERPRETER } DeviceKind;

typedef struct Options {
    const struct Command *command;
    int file_count;
    const char **files;      /* positional arguments */
    Request request;
    Define defines[MAX_DEFINES];
    DeviceKind device;
    CudaArchitecture architecture; /* cuda:sm_NN; 0: the card's */
    int threads;             /* 0: OMP_NUM_THREADS */
    uint64_t seed;
    const char *data, *out, *output, *weights, *stage, *passes, *function, *model;
    bool their_names;        /* --names hf */
    SampleOrder order;
    int64_t steps;           /* 0: the recipe's */
    bool json, dot, check_only, list_parameters;
    bool list_layers, list_directives, timeline, explain, no_predict;
    bool no_fuse, no_reuse, keep_gradients, poison, check_nan;
    /* sweep */
    const char *over[MAX_OVER]; /* NAME=V1,V2,… in the order given */
    int over_count;
    const char *rank;           /* values of R */
    uint64_t seeds[MAX_SEEDS];
    int seed_count;
    bool keep_runs;
    int argument_count;         /* the command line, as it was given */
    char **arguments;
    struct {
        const char *x, *y, *series, *label, *error, *lines; /* keys; lines: names of series */
        const char *title, *subtitle, *x_title, *y_title;
        bool log_x, log_y, frontier, mean;
    } chart;
} Options;

typedef struct Command {
    const char *name, *arguments, *summary;
    int (*run)(Options *options);
    int least_files, most_files; /* most -1: any number */
    bool computes;               /* runs kernels */
} Command;
extern const Command command_list[];
extern const int command_count;

/* Parses argv[2…] for a command.  False after printing what is wrong (exit 2). */
bool options_parse(Options *options, const Command *command, int argc, char **argv);
void print_usage(FILE *stream);
void print_command_usage(const Command *command, FILE *stream);
void options_free(Options *options);

/* ---- compile.c ----------------------------------------------------------------------------- */
typedef struct Compiled {
    Diagnostics *diagnostics;
    Compilation *compilation;
    PassReports reports;
    ProgramSet *programs; /* NULL until compile_programs */
    BudgetReport budget;  /* of a plan with a bound */
    double seconds;
} Compiled;
/* Expands the model and runs the passes up to `last` (NULL: all).  False after printing what is
 * wrong; call compiled_free in either case. */
bool compile(Compiled *compiled, const Options *options, const char *last, bool for_training);
/* compile, then emit. */
bool compile_programs(Compiled *compiled, const Options *options, bool for_training);
void compiled_free(Compiled *compiled);
/* What an executor with that many threads (0: all) will hold, after compile_programs: the plan,
 * the kernels' scratch and the product library's. */
MemoryTable planned_memory(const Compiled *compiled, const Options *options);
/* What opens the device that was asked for (not the interpreter). */
DeviceOpener device_opener(const Options *options);
/* False after saying so where a command is asked for a device that it has nothing for. */
bool needs_cpu(const Options *options);
/* The last pass whose module the interpreter runs. */
#define LAST_GRAPH_PASS "recompute"
/* Prints pending diagnostics; the exit code they ask for (0 or 1). */
int finish(Diagnostics *diagnostics);

/* ---- figures.c ----------------------------------------------------------------------------- */
enum { MAX_CARDS = 3 };
typedef struct Figures {
    int64_t parameters, low_rank; /* low_rank: of blocks that `factorize` placed */
    FlopTable flops;              /* a token */
    double published;             /* recomputed as published, a token; 0: the plan recomputes nothing */
    double attention;             /* products between two values, a token: whole squares; in all of
                                     forward, backward and recompute */
    double attention_executed;    /* the same as the program runs them */
    MemoryTable memory;
    double predicted;             /* seconds of a training step; 0: not predicted */
    int card_count;               /* cards that it is predicted for, and for each */
    const Card *cards[MAX_CARDS];
    double on_card[MAX_CARDS];    /* seconds of a training step, which nobody has measured */
    int kernels, dots, copies, zeroes; /* steps of a micro-batch and an update; memory set to 0 */
} Figures;
NodeId below_views(const Function *function, NodeId id); /* what it is a view, expand or cast of */
Figures figures_of(const Compiled *compiled, const Options *options);
bool figures_fit(const Figures *figures, const Card *card); /* the peak, in its memory */
double figures_products(const Figures *figures); /* FLOPs a token of all products */
/* Elements of all weights; *low_rank (or NULL) grows by those of factorized blocks. */
int64_t module_parameters(const Module *module, int64_t *low_rank);
/* Parameters, FLOPs a token and memory: what rows of check, plan and sweep have in common. */
struct json_t *figures_json(const Figures *figures);
/* The object of `check --json`; with a plan's name and what is predicted, of `plan --json`. */
void print_figures_json(const Figures *figures, const char *plan);
/* FILE, preset P, plan Q, … */
void print_heading(const Request *request, const Compilation *compilation);
/* One object, a line; it is gone then. */
void print_json_object(struct json_t *object);
/* A string from outside: bytes above 127 become `?` where the whole is not UTF-8. */
struct json_t *json_text(const char *text);
const char *scaled_text(double number, char buffer[32]); /* 24.18 M */

/* ---- directives.c -------------------------------------------------------------------------- */
typedef enum ReportClass {
    CLASS_MODEL_CHANGING, /* another model: other parameters or another function */
    CLASS_EXACT,          /* the same bits */
    CLASS_TOLERANT,       /* the same mathematics, other roundings */
    CLASS_UNUSED          /* nothing reads it, or a later directive replaces it */
} ReportClass;
const char *report_class_name(ReportClass report_class);
/* Every directive of the plan, a line each: place, text, class, what it does to the
 * parameters. */
void print_directives(const Options *options, const Compiled *compiled, bool json);

/* ---- timeline.c ---------------------------------------------------------------------------- */
/* Live bytes over the groups of the function that needs the largest arena, where they are most,
 * and what is live there. */
void print_timeline(const Compiled *compiled, bool json);

/* ---- rows.c -------------------------------------------------------------------------------- */
/* `memory.peak`: the key itself, or a way through objects.  NULL; NaN where there is no
 * number. */
const struct json_t *value_in_row(const struct json_t *row, const char *key);
double number_in_row(const struct json_t *row, const char *key);
void put_row(const struct json_t *row, Text *out); /* a line */
typedef struct Mean {
    double value, spread; /* spread: the standard deviation of a sample; 0 of one value */
    int64_t count;
} Mean;
Mean mean_of(const double *values, int64_t count);

/* ---- chart.c -------------------------------------------------------------------------------
 * A picture of measurements.  The SVG stands alone (no script, no font, no file beside it),
 * reads in dark and light, tells series apart by colour and by shape, and is the same bytes for
 * the same figures. */
typedef enum AxisScale { SCALE_AUTO, SCALE_LINEAR, SCALE_LOG } AxisScale; /* AUTO: log where the
                                           values are positive and span a factor of twenty */
typedef struct ChartAxis {
    const char *title;   /* `peak memory (B)`: a unit in parentheses at the end.  FLOP, FLOP/s, s
                            get a prefix that suits the values, B a binary one */
    AxisScale scale;
} ChartAxis;
typedef struct ChartPoint {
    double x, y;         /* a point that is not finite, or below 0 on a log axis, is left out, and
                            the picture says how many are */
    double x_spread, y_spread; /* half the length of an error bar; 0: none */
    const char *label;   /* beside the point; NULL: none */
    const char *note;    /* what a pointer that rests on the point shows; NULL: label and values */
} ChartPoint;
typedef struct ChartSeries {
    const char *name;    /* in the legend */
    bool line;           /* the points are joined in order of x */
    ChartPoint *points;  /* [count] */
    int64_t count;
} ChartSeries;
typedef struct Chart {
    const char *title, *subtitle; /* NULL: none */
    ChartAxis x, y;
    bool frontier;       /* draw the stairs below and left of which no point lies */
    ChartSeries *series; /* [series_count] */
    int64_t series_count;
} Chart;
void chart_svg(const Chart *chart, Text *out);
/* Appends text as XML and HTML take it: & < > " escaped, what is no UTF-8 or no character of
 * XML replaced by `?`. */
void xml_escape(const char *text, Text *out);

/* ---- sweep.c sweep_page.c ------------------------------------------------------------------ */
/* A name to go through, and its values as they were written. */
typedef struct SweepChoice {
    const char *name, **values; /* [count] */
    int count;
} SweepChoice;
typedef struct SweepTable {
    const Options *options;
    int choice_count;
    SweepChoice choices[MAX_OVER];
    ARRAY(struct json_t *) rows; /* a combination's seeds are neighbours, so are a plan's rows */
    ARRAY(Source) texts;         /* all that were compiled */
} SweepTable;
void sweep_print(const SweepTable *table); /* the table, on standard output */
void sweep_picture(const SweepTable *table, Text *out);                /* SVG */
void sweep_page(const SweepTable *table, const char *svg, Text *out);  /* HTML that holds it */
void sweep_add_texts(SweepTable *table, const Texts *texts, Arena *arena);

/* ---- commands ------------------------------------------------------------------------------ */
int run_check_command(Options *options);
int run_plan_command(Options *options);
int run_ir_command(Options *options);
int run_opt_command(Options *options);
int run_build_command(Options *options);
int run_profile_command(Options *options);
int run_train_command(Options *options);
int run_grad_command(Options *options);
int run_eval_command(Options *options);
int run_sweep_command(Options *options);
int run_chart_command(Options *options);
int run_fmt_command(Options *options);
int run_data_command(Options *options);

/* 58,073,600 */
const char *with_commas(int64_t number, char buffer[32]);

#endif
