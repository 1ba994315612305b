/* The options: one table says how each is spelled, what it takes, where it is stored and which
 * commands have it. */
#include "driver/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef enum OptionKind {
    TAKES_NOTHING, /* sets a bool */
    TAKES_TEXT,
    TAKES_COUNT, /* an integer from 1 on, into an int64_t */
    TAKES_LIST,  /* a text of several values: a second one would be lost */
    TAKES_CUSTOM /* parsed by a function */
} OptionKind;

typedef struct Option {
    const char *name, *argument;
    OptionKind kind;
    size_t offset; /* in Options */
    bool (*parse)(Options *options, const char *value);
    const char *commands; /* those that take it, between spaces; "" for all */
    const char *help;
} Option;

static bool parse_count(const char *text, int64_t *value) {
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || *end || errno || number < 0)
        return false;
    *value = number;
    return true;
}

static bool parse_define(Options *options, const char *value) {
    const char *equals = strchr(value, '=');
    if (!equals || equals == value || !equals[1]) {
        fprintf(stderr, "colac: `-D` takes `NAME=VALUE`, not `%s`\n", value);
        return false;
    }
    if (options->request.define_count == MAX_DEFINES) {
        fprintf(stderr, "colac: more than %d times `-D`\n", MAX_DEFINES);
        return false;
    }
    Define *define = &options->defines[options->request.define_count++];
    char *name = checked_alloc((size_t)(equals - value) + 1);
    memcpy(name, value, (size_t)(equals - value));
    define->name = name;
    define->value = equals + 1;
    return true;
}

static bool parse_device(Options *options, const char *value) {
    if (!strcmp(value, "cpu"))
        options->device = DEVICE_CPU;
    else if (!strcmp(value, "interpreter"))
        options->device = DEVICE_INTERPRETER;
    else if (!strcmp(value, "cuda") || cuda_architecture(value))
        options->device = DEVICE_CUDA;
    else {
        fprintf(stderr,
                "colac: `--device` takes `cpu`, `cuda`, `cuda:sm_NN` (as in `cuda:sm_90`) or "
                "`interpreter`, not `%s`\n",
                value);
        return false;
    }
    options->architecture = options->device == DEVICE_CUDA ? cuda_architecture(value) : 0;
    return true;
}

static bool parse_over(Options *options, const char *value) {
    const char *equals = strchr(value, '=');
    if (!equals || equals == value || !equals[1]) {
        fprintf(stderr, "colac: `--over` takes `NAME=V1,V2,…`, not `%s`\n", value);
        return false;
    }
    if (options->over_count == MAX_OVER) {
        fprintf(stderr, "colac: more than %d times `--over`\n", MAX_OVER);
        return false;
    }
    options->over[options->over_count++] = value;
    return true;
}

/* Numbers between commas, at least one. */
static bool is_number_list(const char *text) {
    bool digits = false;
    for (; *text; text++) {
        if (*text == ',' ? !digits : *text < '0' || *text > '9')
            return false;
        digits = *text != ',';
    }
    return digits;
}

static bool parse_rank(Options *options, const char *value) {
    if (!is_number_list(value)) {
        fprintf(stderr,
                "colac: `--rank` takes numbers, as in `--rank 32,64`, not `%s`; `--over R=%s` "
                "takes expressions\n",
                value, value);
        return false;
    }
    options->rank = value;
    return true;
}

static bool parse_seeds(Options *options, const char *value) {
    bool good = is_number_list(value);
    options->seed_count = 0;
    for (const char *at = value; good && *at; at += *at == ',') {
        errno = 0;
        char *end;
        unsigned long long seed = strtoull(at, &end, 10);
        at = end;
        good = options->seed_count < MAX_SEEDS && !errno && seed <= INT64_MAX;
        if (good)
            options->seeds[options->seed_count++] = seed;
    }
    if (!good)
        fprintf(stderr,
                "colac: `--seeds` takes at most %d numbers from 0 to 2^63-1, as in `--seeds "
                "1,2,3`, not `%s`\n",
                MAX_SEEDS, value);
    return good;
}

static bool parse_precision(Options *options, const char *value) {
    options->request.precision = value;
    if (!strcmp(value, "f32") || !strcmp(value, "tf32") || !strcmp(value, "bf16"))
        return true;
    fprintf(stderr, "colac: `--precision` takes `f32`, `tf32` or `bf16`, not `%s`\n", value);
    return false;
}

static bool parse_names(Options *options, const char *value) {
    options->their_names = !strcmp(value, "hf");
    if (options->their_names || !strcmp(value, "own"))
        return true;
    fprintf(stderr, "colac: `--names` takes `own` or `hf`, not `%s`\n", value);
    return false;
}

static bool parse_order(Options *options, const char *value) {
    options->order = !strcmp(value, "sequential") ? ORDER_SEQUENTIAL : ORDER_SHUFFLED;
    if (!strcmp(value, "sequential") || !strcmp(value, "shuffled"))
        return true;
    fprintf(stderr, "colac: `--order` takes `sequential` or `shuffled`, not `%s`\n", value);
    return false;
}

static bool parse_threads(Options *options, const char *value) {
    int64_t count;
    if (!parse_count(value, &count) || count < 1 || count > 4096) {
        fprintf(stderr, "colac: `--threads` takes a number from 1 to 4096, not `%s`\n", value);
        return false;
    }
    options->threads = (int)count;
    return true;
}

static bool parse_seed(Options *options, const char *value) {
    int64_t seed;
    if (!parse_count(value, &seed)) {
        fprintf(stderr, "colac: `--seed` takes a number from 0 to 2^63-1, not `%s`\n", value);
        return false;
    }
    options->seed = (uint64_t)seed;
    return true;
}

#define MODELS       " plan sweep check train grad profile build ir opt "
#define AT(field)    offsetof(Options, field), NULL
#define BY(function) 0, function
static const Option option_list[] = {
    {"--preset", "NAME", TAKES_TEXT, AT(request.preset), MODELS, "a preset of the model"},
    {"--plan", "NAME", TAKES_TEXT, AT(request.plan), " check train grad profile build ir opt ",
     "a plan, by NAME or FILE:NAME; without it nothing is rewritten"},
    {"--plan", "A,B,C", TAKES_LIST, AT(request.plan), " plan ",
     "plans, each by NAME or FILE:NAME; without it all of the text's"},
    {"--plan", "A,B,C", TAKES_LIST, AT(request.plan), " sweep ",
     "plans, each by NAME or FILE:NAME; without it nothing is rewritten"},
    {"--recipe", "NAME", TAKES_TEXT, AT(request.recipe), MODELS,
     "a recipe, by NAME or FILE:NAME; without it AdamW at a constant rate, batch = B"},
    {"-D", "X=V", TAKES_CUSTOM, BY(parse_define), MODELS,
     "a dim or flag of model or plan, a value of the recipe"},
    {"--params", NULL, TAKES_NOTHING, AT(list_parameters), " check ",
     "list every parameter: its path, axes and number of elements"},
    {"--explain", NULL, TAKES_NOTHING, AT(explain), " plan ",
     "what each plan keeps and what it makes again, by name and line"},
    {"--no-predict", NULL, TAKES_NOTHING, AT(no_predict), " plan ",
     "time nothing: leave the predicted time of a step out"},
    {"--layers", NULL, TAKES_NOTHING, AT(list_layers), " check ",
     "parameters, FLOPs and kept bytes by layer"},
    {"--timeline", NULL, TAKES_NOTHING, AT(timeline), " check ",
     "memory over the steps of a micro-batch, and what is live at the peak"},
    {"--directives", NULL, TAKES_NOTHING, AT(list_directives), " check ",
     "with --json too: the plan's directives, their class and what they change"},
    {"--precision", "f32|tf32|bf16", TAKES_CUSTOM, BY(parse_precision), MODELS,
     "of products; wins over the plan's"},
    {"--device", "cpu|cuda|interpreter", TAKES_CUSTOM, BY(parse_device), MODELS " eval ",
     "where to run (cuda:sm_NN names an architecture); the interpreter is in double precision"},
    {"--threads", "N", TAKES_CUSTOM, BY(parse_threads),
     " plan sweep check build train grad eval profile ",
     "threads; else OMP_NUM_THREADS, else all processors"},
    {"--seed", "N", TAKES_CUSTOM, BY(parse_seed), " sweep train grad profile ",
     "of initial values, data order and random(...)"},
    {"--data", "PATH", TAKES_TEXT, AT(data), " sweep train grad eval ",
     "a shard, a folder of shards or a raw uint16 file"},
    {"--order", "sequential|shuffled", TAKES_CUSTOM, BY(parse_order), " sweep train grad ",
     "order of the samples (shuffled; grad: sequential)"},
    {"--weights", "FILE", TAKES_TEXT, AT(weights), " train grad ",
     "initial weights: safetensors under own or Hugging Face names"},
    {"--names", "own|hf", TAKES_CUSTOM, BY(parse_names), " train grad ", "names to write"},
    {"--out", "RUN", TAKES_TEXT, AT(out), " train ", "the run's folder"},
    {"--steps", "N", TAKES_COUNT, AT(steps), " sweep train profile ",
     "updates, else the recipe's; profile: measured rounds"},
    {"-o", "PATH", TAKES_TEXT, AT(output), " sweep chart grad build data ir opt ",
     "where to write"},
    {"--stage", "PASS", TAKES_TEXT, AT(stage), " ir ", "after which pass; else the last"},
    {"--function", "NAME", TAKES_TEXT, AT(function), " ir ",
     "which function --dot draws (micro)"},
    {"--dot", NULL, TAKES_NOTHING, AT(dot), " ir ", "as a Graphviz drawing"},
    {"--passes", "A,B", TAKES_TEXT, AT(passes), " opt ", "passes to run, in this order"},
    {"--model", "FILE", TAKES_TEXT, AT(model), " opt ",
     "the model that the module is of: for passes that ask for its plan or recipe"},
    {"--check", NULL, TAKES_NOTHING, AT(check_only), " fmt ",
     "write nothing; exit 1 when a text is not in canonical layout"},
    {"--rank", "R1,R2", TAKES_CUSTOM, BY(parse_rank), " sweep ",
     "the same as `--over R=R1,R2`, for numbers"},
    {"--over", "X=V1,V2", TAKES_CUSTOM, BY(parse_over), " sweep ",
     "values to go through of what -D could give; several times: all combinations"},
    {"--seeds", "N1,N2", TAKES_CUSTOM, BY(parse_seeds), " sweep ",
     "train once with each, and show means"},
    {"--keep-runs", NULL, TAKES_NOTHING, AT(keep_runs), " sweep ",
     "keep the trained weights, in DIR/runs"},
    {"--x", "KEY", TAKES_TEXT, AT(chart.x), " chart ", "what is drawn to the right"},
    {"--y", "KEY", TAKES_TEXT, AT(chart.y), " chart ", "what is drawn upward"},
    {"--series", "KEY", TAKES_TEXT, AT(chart.series), " chart ",
     "rows that have one value there look alike"},
    {"--label", "KEY", TAKES_TEXT, AT(chart.label), " chart ", "what stands beside a point"},
    {"--error", "KEY", TAKES_TEXT, AT(chart.error), " chart ",
     "half the length of an upright error bar"},
    {"--mean", NULL, TAKES_NOTHING, AT(chart.mean), " chart ",
     "rows of one series and label (else: x) become a point at their mean"},
    {"--line-through", "A,B", TAKES_TEXT, AT(chart.lines), " chart ",
     "series whose points are joined"},
    {"--frontier", NULL, TAKES_NOTHING, AT(chart.frontier), " chart ",
     "draw the Pareto frontier: nothing lies below and left of it"},
    {"--log-x", NULL, TAKES_NOTHING, AT(chart.log_x), " chart ",
     "also where the values do not span a factor of 20"},
    {"--log-y", NULL, TAKES_NOTHING, AT(chart.log_y), " chart ", "likewise"},
    {"--title", "TEXT", TAKES_TEXT, AT(chart.title), " chart ", "above the picture"},
    {"--subtitle", "TEXT", TAKES_TEXT, AT(chart.subtitle), " chart ", "below the title"},
    {"--x-title", "TEXT", TAKES_TEXT, AT(chart.x_title), " chart ",
     "of the axis, its unit last: `compute (FLOP)`; else the key"},
    {"--y-title", "TEXT", TAKES_TEXT, AT(chart.y_title), " chart ", "likewise"},
    {"--json", NULL, TAKES_NOTHING, AT(json), "", "JSON objects, one a line"},
    {"--no-fuse", NULL, TAKES_NOTHING, AT(no_fuse), MODELS, "one kernel a node"},
    {"--no-reuse", NULL, TAKES_NOTHING, AT(no_reuse), MODELS, "every value its own memory"},
    {"--keep-gradients", NULL, TAKES_NOTHING, AT(keep_gradients), MODELS,
     "all at once, though the recipe lets each be used and forgotten"},
    {"--poison", NULL, TAKES_NOTHING, AT(poison), " train grad ",
     "fill the arena with NaN first"},
    {"--check-nan", NULL, TAKES_NOTHING, AT(check_nan), " train grad ",
     "stop at the first tensor with a NaN"},
};

static bool option_applies(const Option *option, const Command *command) {
    if (!*option->commands)
        return true;
    char padded[32];
    snprintf(padded, sizeof padded, " %s ", command->name);
    return strstr(option->commands, padded) != NULL;
}

/* The option of that name, the command's if it has one; NULL. */
static const Option *find_option(const char *name, size_t length, const Command *command) {
    const Option *found = NULL;
    for (int i = 0; i < COUNT_OF(option_list); i++) {
        const Option *option = &option_list[i];
        if (strlen(option->name) == length && !strncmp(option->name, name, length) &&
            (!found || option_applies(option, command)))
            found = option;
    }
    return found;
}

/* `train`, `grad` and `eval` */
static void print_commands(const Option *option, FILE *stream) {
    const char *at = option->commands + 1;
    for (int i = 0; *at; i++) {
        size_t length = strcspn(at, " ");
        const char *next = at + length + strspn(at + length, " ");
        fprintf(stream, "%s`%.*s`", i == 0 ? "" : *next ? ", " : " and ", (int)length, at);
        at = next;
    }
}

static bool unknown_option(const char *name, const Command *command) {
    const char *names[COUNT_OF(option_list)];
    int count = 0;
    for (int i = 0; i < COUNT_OF(option_list); i++)
        if (option_applies(&option_list[i], command))
            names[count++] = option_list[i].name;
    const Option *elsewhere = find_option(name, strcspn(name, "="), command);
    if (elsewhere) {
        fprintf(stderr, "colac %s: `%s` is an option of ", command->name, elsewhere->name);
        print_commands(elsewhere, stderr);
        fprintf(stderr, " (see `colac help %s`)\n", command->name);
        return false;
    }
    const char *near = nearest_name(name, names, count);
    fprintf(stderr, "colac %s: there is no option `%s`", command->name, name);
    fprintf(stderr, near ? "; did you mean `%s`?\n" : " (see `colac help %s`)\n",
            near ? near : command->name);
    return false;
}

static bool store_option(Options *options, const Option *option, const char *value) {
    char *field = (char *)options + option->offset;
    const char **text = (const char **)(void *)field;
    switch (option->kind) {
    case TAKES_NOTHING:
        *(bool *)(void *)field = true;
        return true;
    case TAKES_LIST:
    case TAKES_TEXT:
        if (option->kind == TAKES_LIST && *text) {
            fprintf(stderr, "colac: `%s` is given twice: `%s %s,%s` has both\n", option->name,
                    option->name, *text, value);
            return false;
        }
        *text = value;
        if (!*value)
            fprintf(stderr, "colac: the value of `%s` is empty\n", option->name);
        return *value != 0;
    case TAKES_COUNT:
        if (parse_count(value, (int64_t *)(void *)field) && *(int64_t *)(void *)field > 0)
            return true;
        fprintf(stderr, "colac: `%s` takes a number from 1 on, not `%s`\n", option->name,
                value);
        return false;
    case TAKES_CUSTOM:
        return option->parse(options, value);
    }
    internal_error("option kind %d", (int)option->kind);
}

/* Consumes argv[*at] (and its value: next, after `=`, or, for -D and -o, attached). */
static bool parse_option(Options *options, int argc, char **argv, int *at) {
    const char *text = argv[*at];
    const char *equals = text[1] == '-' ? strchr(text, '=') : NULL;
    size_t length = equals ? (size_t)(equals - text) : text[1] == '-' ? strlen(text) : 2;
    const Option *option = find_option(text, length, options->command);
    if (!option || !option_applies(option, options->command))
        return unknown_option(text, options->command);
    const char *attached = equals ? equals + 1 : text[length] ? text + length : NULL;
    if (option->kind == TAKES_NOTHING) {
        if (attached) {
            fprintf(stderr, "colac: `%s` takes no value\n", option->name);
            return false;
        }
        return store_option(options, option, NULL);
    }
    if (!attached && *at + 1 >= argc) {
        fprintf(stderr, "colac: `%s` needs a value: `%s %s`\n", option->name, option->name,
                option->argument);
        return false;
    }
    return store_option(options, option, attached ? attached : argv[++*at]);
}

static bool empty_name(const Command *command) {
    fprintf(stderr, "colac %s: the name of a file is empty\n", command->name);
    return false;
}

bool options_parse(Options *options, const Command *command, int argc, char **argv) {
    memset(options, 0, sizeof *options);
    options->command = command;
    options->request.defines = options->defines;
    options->seed = 1;
    options->order = strcmp(command->name, "grad") ? ORDER_SHUFFLED : ORDER_SEQUENTIAL;
    options->files = checked_alloc((size_t)argc * sizeof *options->files);
    bool only_files = false;
    for (int at = 2; at < argc; at++) {
        if (!only_files && !strcmp(argv[at], "--"))
            only_files = true;
        else if (!argv[at][0])
            return empty_name(command);
        else if (only_files || argv[at][0] != '-' || !argv[at][1])
            options->files[options->file_count++] = argv[at];
        else if (!parse_option(options, argc, argv, &at))
            return false;
    }
    if (options->file_count < command->least_files ||
        (command->most_files >= 0 && options->file_count > command->most_files)) {
        fprintf(stderr, "usage: colac %s %s\n", command->name, command->arguments);
        return false;
    }
    bool cuda = options->device == DEVICE_CUDA;
    bool old = cuda && options->architecture && options->architecture < CUDA_LEAST_BF16;
    options->request.no_bf16 = cuda ? old : !products_have_bf16();
    options->request.no_tf32 = !cuda || old;
    options->argument_count = argc;
    options->arguments = argv;
    options->request.path = options->file_count ? options->files[0] : NULL;
    return true;
}

void options_free(Options *options) {
    for (int i = 0; i < options->request.define_count; i++) {
        union { /* parse_define allocated it */
            const char *constant;
            char *owned;
        } name = {options->defines[i].name};
        free(name.owned);
    }
    free(options->files);
}

void print_usage(FILE *stream) {
    fprintf(stream, "colac: a compiler for low-rank pre-training\n\n");
    for (int i = 0; i < command_count; i++) {
        const Command *command = &command_list[i];
        fprintf(stream, "  colac %s %s\n      %s\n", command->name, command->arguments,
                command->summary);
    }
    fprintf(stream, "\n`colac help COMMAND` lists a command's options.\n");
}

void print_command_usage(const Command *command, FILE *stream) {
    fprintf(stream, "colac %s %s\n    %s\n\n", command->name, command->arguments,
            command->summary);
    for (int i = 0; i < COUNT_OF(option_list); i++) {
        const Option *option = &option_list[i];
        if (!option_applies(option, command))
            continue;
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", option->name, option->argument ? " " : "",
                 option->argument ? option->argument : "");
        fprintf(stream, "  %-28s %s\n", left, option->help);
    }
}
