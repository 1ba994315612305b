/* driver/driver.h: the command line.  Index of the folder, by source file.
 *
 *   main.c      the table of commands
 *   options.c   the table of options; what each command takes
 *   compile.c   model text to a scheduled module and its programs, as every command needs it
 *   check.c     colac check
 *   ir.c        colac ir, colac opt
 *   build.c     colac build
 *   profile.c   colac profile
 *   run.c       colac train, grad, eval
 *   texts.c     colac fmt, colac data pack
 *   chart.c     pictures of measurements: series of points as a self-contained SVG
 *   draw.c      colac chart
 *   sweep.c     colac sweep
 *
 * Exit codes: 0 success, 1 the input is wrong, 2 wrong argument syntax, 3 our bug.
 */
#ifndef COLAC_DRIVER_H
#define COLAC_DRIVER_H

#include "runtime/runtime.h"

/* ---- options.c ----------------------------------------------------------------------------- */
enum { MAX_DEFINES = 64 };
typedef enum DeviceChoice { DEVICE_CPU, DEVICE_INTERPRETER } DeviceChoice;

typedef struct Options {
    const struct Command *command;
    int file_count;
    const char **files;      /* positional arguments */
    Request request;
    Define defines[MAX_DEFINES];
    DeviceChoice device;
    int threads;             /* 0: OMP_NUM_THREADS */
    uint64_t seed;
    const char *data, *out, *output, *weights, *stage, *passes, *function, *model;
    bool their_names;        /* --names hf */
    SampleOrder order;
    int64_t steps;           /* 0: the recipe's */
    bool json, dot, check_only, list_parameters;
    bool no_fuse, no_reuse, poison, check_nan;
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
    double seconds;
} Compiled;
/* Expands the model and runs the passes up to `last` (NULL: all).  False after printing what is
 * wrong; call compiled_free in either case. */
bool compile(Compiled *compiled, const Options *options, const char *last, bool for_training);
/* compile, then emit. */
bool compile_programs(Compiled *compiled, const Options *options, bool for_training);
void compiled_free(Compiled *compiled);
/* What an executor with that many threads (0: all) will hold, after compile_programs: the plan, the
 * kernels' scratch and the product library's. */
MemoryTable planned_memory(const Compiled *compiled, int threads);
/* The last pass whose module the interpreter runs. */
#define LAST_GRAPH_PASS "recompute"
/* Prints pending diagnostics; the exit code they ask for (0 or 1). */
int finish(Diagnostics *diagnostics);

/* ---- chart.c -------------------------------------------------------------------------------
 * A picture of measurements.  The SVG stands alone (no script, no font, no file beside it), reads
 * in dark and light, tells series apart by colour and by shape, and is the same bytes for the same
 * figures. */
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
/* Appends text as XML and HTML take it: & < > " escaped, what is no UTF-8 or no character of XML
 * replaced by `?`. */
void xml_escape(const char *text, Text *out);

/* ---- commands ------------------------------------------------------------------------------ */
int run_check_command(Options *options);
int run_ir_command(Options *options);
int run_opt_command(Options *options);
int run_build_command(Options *options);
int run_profile_command(Options *options);
int run_train_command(Options *options);
int run_grad_command(Options *options);
int run_eval_command(Options *options);
int run_fmt_command(Options *options);
int run_data_command(Options *options);

/* 58,073,600 */
const char *with_commas(int64_t number, char buffer[32]);

#endif
