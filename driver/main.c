/* The table of commands, and the way in. */
#include "driver/driver.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const Command command_list[] = {
    {"check", "MODEL", "shapes, parameters, FLOPs and memory of a model under a plan",
     run_check_command, 1, 1, false},
    {"plan", "MODEL [--plan A,B,C]",
     "plans side by side: parameters, FLOPs, bytes, predicted time of a step", run_plan_command,
     1, 1, true},
    {"train", "MODEL --data PATH --out RUN", "pre-train", run_train_command, 1, 1, true},
    {"eval", "RUN --data PATH", "the loss of a trained run on other data", run_eval_command, 1,
     1, true},
    {"grad", "MODEL --weights FILE --data PATH -o OUT.safetensors",
     "the loss and every gradient of the first batch, before clipping", run_grad_command, 1, 1,
     true},
    {"data", "pack TEXT... -o DIR", "texts (plain, .gz, .dz) to token shards", run_data_command,
     2, -1, false},
    {"profile", "MODEL", "time, GFLOP/s and GB/s of every step of the program",
     run_profile_command, 1, 1, true},
    {"build", "MODEL -o DIR",
     "programs, kernels and a report, without running anything, in a folder of their own",
     run_build_command, 1, 1, false},
    {"ir", "MODEL --stage PASS", "the module after a pass, as text", run_ir_command, 1, 1,
     false},
    {"opt", "FILE.ir --passes A,B", "passes on IR text (none: print it back)", run_opt_command,
     1, 1, false},
    {"sweep", "MODEL --rank R1,R2 --plan A,B [--data PATH --steps N] [-o DIR]",
     "a table and a picture over ranks and plans; with data, each is trained",
     run_sweep_command, 1, 1, true},
    {"chart", "FILE.jsonl --x KEY --y KEY -o FILE.svg", "a picture of JSON lines",
     run_chart_command, 1, 1, false},
    {"fmt", "FILE...", "rewrite model texts in the canonical layout", run_fmt_command, 1, -1,
     false},
};
const int command_count = COUNT_OF(command_list);

/* GNU OpenMP's threads wait for each other by spinning, by default for longer than a
 * scheduler's time slice: on a machine that does anything else, a step then takes ten times as
 * long.  A thousand turns (some 50 us) cover the uneven ends of parallel loops.  The library
 * reads the variable before main, so the program begins again with it set; where it cannot, it
 * goes on. */
static void shorten_spinning(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") ||
        setenv("GOMP_SPINCOUNT", "1000", 1))
        return;
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0)
        return;
    path[length] = 0;
    execv(path, argv);
}

static const Command *find_command(const char *name) {
    for (int i = 0; i < command_count; i++)
        if (!strcmp(command_list[i].name, name))
            return &command_list[i];
    return NULL;
}

static int unknown_command(const char *name) {
    const char *names[COUNT_OF(command_list)];
    for (int i = 0; i < command_count; i++)
        names[i] = command_list[i].name;
    const char *near = nearest_name(name, names, command_count);
    fprintf(stderr, "colac: there is no command `%s`", name);
    fprintf(stderr, near ? "; did you mean `%s`?\n" : "\n", near);
    print_usage(stderr);
    return 2;
}

/* The op table as Markdown: docs/ops.md. */
static int print_ops(void) {
    Text text = {0};
    ops_print_markdown(&text);
    fputs(text_string(&text), stdout);
    text_free(&text);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (argc == 3 && !strcmp(argv[1], "help") && !strcmp(argv[2], "ops"))
        return print_ops();
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        const Command *about = argc > 2 ? find_command(argv[2]) : NULL;
        if (argc > 2 && !about)
            return unknown_command(argv[2]);
        about ? print_command_usage(about, stdout) : print_usage(stdout);
        return 0;
    }
    const Command *command = find_command(argv[1]);
    if (!command)
        return unknown_command(argv[1]);
    for (int i = 2; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            print_command_usage(command, stdout);
            return 0;
        }
    if (command->computes)
        shorten_spinning(argv);
    interrupts_guard();
    Options options;
    if (!options_parse(&options, command, argc, argv)) {
        options_free(&options);
        return 2;
    }
    int code = command->run(&options);
    options_free(&options);
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "colac: standard output could not be written\n");
        return code ? code : 1;
    }
    return code;
}
