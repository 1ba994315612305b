/* Plans of the shipped models, against what is printed of them: every arena is used to its last
 * byte, nothing is allocated after the first update, a run stays resident within its printed
 * peak, and parameters and FLOPs are those of the published formulas, worked out here by
 * hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define WATCHES_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WATCHES_MALLOC 0
#endif
#endif
#ifndef WATCHES_MALLOC
#define WATCHES_MALLOC 1
#endif

/* ---- compiling --------------------------------------------------------------------- */

enum { MAX_DEFINES = 10 };
typedef struct Sized {         /* a model, small */
    const char *path, *recipe; /* recipe NULL: none */
    Define defines[MAX_DEFINES];
} Sized;
static const Sized models[] = {
    {"models/llama.cola",
     NULL,
     {{"B", "3"},
      {"S", "24"},
      {"V", "101"},
      {"D", "48"},
      {"F", "112"},
      {"L", "3"},
      {"H", "4"},
      {"J", "2"}}},
    {"models/gpt2.cola",
     NULL,
     {{"B", "3"}, {"S", "24"}, {"V", "101"}, {"D", "48"}, {"L", "3"}, {"H", "4"}}},
    {"models/bert.cola",
     NULL,
     {{"B", "3"},
      {"S", "24"},
      {"V", "101"},
      {"D", "48"},
      {"L", "3"},
      {"H", "4"},
      {"MASK", "100"}}},
    {"models/mlp.cola",
     NULL,
     {{"B", "40"}, {"C", "6"}, {"E", "8"}, {"N", "48"}, {"L", "3"}, {"V", "101"}}},
    {"models/llama.cola",
     "tests/at_once.cola:at_once",
     {{"B", "3"},
      {"S", "24"},
      {"V", "101"},
      {"D", "48"},
      {"F", "112"},
      {"L", "3"},
      {"H", "4"}}},
};

static int define_count(const Define *defines) {
    int count = 0;
    while (count < MAX_DEFINES && defines[count].name)
        count++;
    return count;
}

typedef struct Planned {
    Diagnostics *diagnostics;
    Compilation *compilation;
    const Module *module;
    ProgramSet *set;
} Planned;

static Planned compile_graph(const Request *request, const char *last) {
    Planned planned = {.diagnostics = diagnostics_new()};
    planned.compilation = compile_model(request, planned.diagnostics);
    if (planned.compilation) {
        PassContext context = {.module = planned.compilation->module,
                               .compilation = planned.compilation,
                               .diagnostics = planned.diagnostics,
                               .for_training = true};
        assert_true(run_passes(&context, last, NULL));
        planned.module = planned.compilation->module = context.module;
    }
    diagnostics_print(planned.diagnostics, stdout);
    assert_non_null(planned.compilation);
    return planned;
}

static void planned_free(Planned *planned) {
    if (planned->set)
        program_set_free(planned->set);
    compilation_free(planned->compilation);
    diagnostics_free(planned->diagnostics);
}

/* The names of a model's plans, in the order of its text; the caller frees the list. */
typedef ARRAY(char *) Names;
static Names plan_names(const char *path) {
    Names names = {0};
    Diagnostics *diagnostics = diagnostics_new();
    Texts *texts = texts_load(path, diagnostics);
    assert_non_null(texts);
    for (const Item *item = texts->items; item; item = item->next)
        if (item->kind == ITEM_PLAN)
            array_push(&names, strdup(item->name.text));
    texts_free(texts);
    diagnostics_free(diagnostics);
    return names;
}

static void names_free(Names *names) {
    for (int64_t i = 0; i < names->count; i++)
        free(names->data[i]);
    array_free(names);
}

static Planned compile_sized(const Sized *model, const char *plan) {
    Request request = {.path = model->path,
                       .plan = plan,
                       .recipe = model->recipe,
                       .defines = model->defines,
                       .define_count = define_count(model->defines)};
    Planned planned = compile_graph(&request, NULL);
    planned.set = emit_programs(planned.module, &host_room, false);
    return planned;
}

static char folder[64];

static int64_t peak_of(const Sized *model, const char *plan) {
    Planned planned = compile_sized(model, plan);
    int64_t peak = memory_table(planned.module).peak;
    planned_free(&planned);
    return peak;
}

/* The same with a random budget between the peaks of two plans. */
static Planned compile_in_budget(const Sized *model, const char *plan, const char *least,
                                 uint64_t number) {
    int64_t low = peak_of(model, least), high = peak_of(model, plan);
    double share = random_uniform(1, 0, 0, 0, number);
    int64_t bytes = low + (int64_t)((double)(high - low) * share);
    char path[128], request[160];
    snprintf(path, sizeof path, "%s/budget.cola", folder);
    snprintf(request, sizeof request, "%s:budget", path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "plan budget extends %s { memory %lld }\n", plan, (long long)bytes);
    assert_int_equal(fclose(file), 0);
    Planned planned = compile_sized(model, request);
    assert_in_range(memory_table(planned.module).peak, 1, bytes);
    return planned;
}

/* ---- running ----------------------------------------------------------------------- */

typedef struct Running {
    Device *device;
    Executor *executor;
} Running;

static void fill_inputs(const Running *running, const Module *module) {
    for (int i = 0; i < module->inputs.count; i++) {
        const Input *input = &module->inputs.data[i];
        int64_t count = axes_elements(module, input->axes, input->axis_count);
        int32_t *tokens = checked_alloc((size_t)count * sizeof *tokens);
        for (int64_t j = 0; j < count; j++)
            tokens[j] = (int32_t)((j * j + 3 * j + 5 * i) % input->below);
        executor_set_input(running->executor, i, tokens);
        free(tokens);
    }
}

static Running start(const Planned *planned, bool poison, int threads) {
    Running running = {.device = device_cpu_open(threads, planned->diagnostics)};
    ExecutorOptions options = {.poison = poison};
    running.executor =
        executor_new(running.device, planned->set, &options, planned->diagnostics);
    diagnostics_print(planned->diagnostics, stdout);
    assert_non_null(running.executor);
    executor_initialize(running.executor, 3);
    fill_inputs(&running, planned->module);
    return running;
}

static void stop(Running *running) {
    executor_free(running->executor);
    running->device->close(running->device);
}

static void run_program(const Planned *planned, const Running *running, const char *name) {
    static const double arguments[16] = {1, 1e-3, 1, 1, 1, 1, 1, 1};
    const Function *function = module_find_function(planned->module, name);
    assert_in_range(function->scalar_count, 0, COUNT_OF(arguments));
    assert_true(executor_run(running->executor, name, arguments, planned->diagnostics));
}

/* ---- the arena --------------------------------------------------------------------- */

/* The last value of an arena may end with the padding of its place, and be no whole word. */
static void check_touched(const Planned *planned, const Running *running, const char *what,
                          const char *plan) {
    int64_t highest = 0;
    for (int i = 0; i < planned->set->program_count; i++) {
        const Program *program = &planned->set->programs[i];
        run_program(planned, running, program->name);
        int64_t touched = executor_arena_touched(running->executor);
        if (touched > program->arena_bytes || touched <= program->arena_bytes - SLOT_ALIGNMENT)
            fail_msg("%s, plan %s, %s: %lld bytes of the arena were touched, %lld planned",
                     what, plan, program->name, (long long)touched,
                     (long long)program->arena_bytes);
        highest = touched > highest ? touched : highest;
    }
    assert_true(highest > planned->set->arena_bytes - SLOT_ALIGNMENT);
}

/* Random tokens, in the plainest of layouts. */
static void write_tokens(const char *path, int64_t count, int below) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int64_t i = 0; i < count; i++) {
        uint16_t token = (uint16_t)(random_uniform(1, 0, 0, 0, (uint64_t)i) * below);
        fwrite(&token, sizeof token, 1, file);
    }
    assert_int_equal(fclose(file), 0);
}

/* ---- no allocation after the first update ------------------------------------------- */
#if WATCHES_MALLOC

/* These stand before the C library's own for everything in this process. */
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);
extern void __libc_free(void *memory);
extern char __executable_start, etext;

static atomic_bool watching;
static atomic_long own_calls, library_calls, frees, maps, largest;

/* From our code and the kernels, or from a library, whose bookkeeping we cannot choose? */
static void note(const void *caller, size_t bytes) {
    if (!watching)
        return;
    bool own = (const char *)caller >= &__executable_start && (const char *)caller < &etext;
    atomic_fetch_add(own ? &own_calls : &library_calls, 1);
    long size = (long)bytes, before = largest;
    while (before < size && !atomic_compare_exchange_weak(&largest, &before, size)) {
    }
}
/* Not inlined: a caller in this file would be taken for its own caller. */
#define APART __attribute__((noinline))
APART void *malloc(size_t bytes) {
    note(__builtin_return_address(0), bytes);
    return __libc_malloc(bytes);
}
APART void *calloc(size_t count, size_t bytes) {
    note(__builtin_return_address(0), count * bytes);
    return __libc_calloc(count, bytes);
}
APART void *realloc(void *old, size_t bytes) {
    note(__builtin_return_address(0), bytes);
    return __libc_realloc(old, bytes);
}
void *memalign(size_t alignment, size_t bytes);
APART void *memalign(size_t alignment, size_t bytes) {
    note(__builtin_return_address(0), bytes);
    return __libc_memalign(alignment, bytes);
}
APART void *aligned_alloc(size_t alignment, size_t bytes) {
    note(__builtin_return_address(0), bytes);
    return __libc_memalign(alignment, bytes);
}
APART int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    note(__builtin_return_address(0), bytes);
    *memory = __libc_memalign(alignment, bytes);
    return *memory ? 0 : 12;
}
APART void free(void *memory) {
    if (watching && memory)
        atomic_fetch_add(&frees, 1);
    __libc_free(memory);
}
APART void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    if (watching)
        atomic_fetch_add(&maps, 1);
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
}

/* Pages of address space: what mmap and brk gave, whoever asked. */
static long address_space(void) {
    char text[64] = "";
    int file = open("/proc/self/statm", O_RDONLY);
    assert_true(file >= 0 && read(file, text, sizeof text - 1) > 0);
    close(file);
    return atol(text);
}

static void watch(bool on) {
    if (on)
        own_calls = library_calls = frees = maps = largest = 0;
    watching = on;
}

static void update_once(const Planned *planned, const Running *running) {
    run_program(planned, running, "micro");
    run_program(planned, running, "micro");
    run_program(planned, running, "update");
}

/* While a product runs, the library keeps its books, and where it packs operands their tiles,
 * on the heap, and gives all of it back. */
enum { LIBRARY_LARGEST = 4 << 20 };

static void check_no_allocation(const Planned *planned, const char *what, const char *plan) {
    Running running = start(planned, false, 2);
    update_once(planned, &running);
    long before = address_space();
    watch(true);
    for (int i = 0; i < 3; i++)
        update_once(planned, &running);
    watch(false);
    long grown = address_space() - before;
    if (own_calls || maps || largest > LIBRARY_LARGEST || frees != library_calls || grown)
        fail_msg("%s, plan %s, after the first update: %ld allocations of ours, %ld of "
                 "libraries (%ld freed, the largest %ld bytes), %ld maps, %ld pages more",
                 what, plan, (long)own_calls, (long)library_calls, (long)frees, (long)largest,
                 (long)maps, grown);
    stop(&running);
}

static void allocations_are_seen(void **state) {
    (void)state;
    /* What is watched is seen. */
    watch(true);
    void *volatile some = malloc(64), *volatile map = mmap(NULL, 4096, PROT_READ,
                                                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    free(some);
    watch(false);
    munmap(map, 4096);
    assert_int_equal(own_calls, 1);
    assert_int_equal(frees, 1);
    assert_int_equal(maps, 1);
    assert_int_equal(largest, 64);
}

/* Our allocations while a run of so many updates goes from its weights to its weights' file. */
static long run_allocations(const Sized *model, const char *data, const char *out, int steps) {
    Planned planned = compile_sized(model, "cola_m"); /* anew: arenas grow at the same places */
    Request request = {.path = model->path};
    TrainOptions options = {.request = &request,
                            .data = data,
                            .out = out,
                            .steps = steps,
                            .order = ORDER_SHUFFLED,
                            .json = true,
                            .device = {device_cpu_open, 1}};
    watch(true);
    int code = train(planned.compilation, planned.set, &options, planned.diagnostics);
    watch(false);
    assert_int_equal(code, 0);
    planned_free(&planned);
    return own_calls;
}

static void updates_of_a_run_allocate_nothing(void **state) {
    (void)state;
    char data[128], out[128];
    snprintf(data, sizeof data, "%s/tokens.bin", folder);
    snprintf(out, sizeof out, "%s/run", folder);
    write_tokens(data, 40000, 100);
    for (int m = 0; m < COUNT_OF(models); m++) {
        run_allocations(&models[m], data, out, 1); /* compiles kernels for those to come */
        long few = run_allocations(&models[m], data, out, 2);
        long many = run_allocations(&models[m], data, out, 7);
        assert_true(few > 0);
        if (many != few)
            fail_msg("%s: %ld allocations of ours in five updates", models[m].path, many - few);
    }
}
#else
static void updates_of_a_run_allocate_nothing(void **state) {
    (void)state;
    skip();
}
static void check_no_allocation(const Planned *planned, const char *what, const char *plan) {
    (void)planned, (void)what, (void)plan;
}
static void allocations_are_seen(void **state) {
    (void)state;
    skip();
}
#endif

static void check_memory(Planned *planned, const char *what, const char *plan) {
    Running running = start(planned, true, 2);
    check_touched(planned, &running, what, plan);
    stop(&running);
    check_no_allocation(planned, what, plan);
    planned_free(planned);
}

/* Also that nothing is allocated after the first update. */
static void arenas_are_used_to_the_last_byte(void **state) {
    (void)state;
    int ran = 0;
    for (int m = 0; m < COUNT_OF(models); m++) {
        Names plans = plan_names(models[m].path);
        for (int64_t i = 0; i < plans.count; i++, ran++) {
            Planned planned = compile_sized(&models[m], plans.data[i]);
            check_memory(&planned, models[m].path, plans.data[i]);
        }
        names_free(&plans);
    }
    assert_true(ran >= 24);
}

/* Five budgets, and many of every model in a long run. */
static void so_they_are_within_budgets(void **state) {
    (void)state;
    bool all = getenv("COLAC_FUZZ");
    for (int m = 0; m < (all ? COUNT_OF(models) : 1); m++)
        for (uint64_t i = 0; i < (all ? 100 : 5); i++) {
            const char *plan = i % 2 ? "full" : "cola", *least = i % 2 ? "gcp" : "cola_gcp";
            Planned planned = compile_in_budget(&models[m], plan, least, i);
            check_memory(&planned, models[m].path, plan);
        }
}

/* ---- resident memory ---------------------------------------------------------------- */

static const char *colac(void) {
    const char *path = getenv("COLAC");
    return path ? path : "build/colac";
}

/* Runs a line of words with its standard output in a file; the most that was resident, of it or
 * of a process that it waited for. */
static int64_t run_process(const char *line, const char *output) {
    char *words[64], *copy = strdup(line), *save = NULL;
    int count = 0;
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        assert_in_range(count, 0, COUNT_OF(words) - 2);
        words[count++] = word;
    }
    words[count] = NULL;
    extern char **environ;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    pid_t child;
    assert_int_equal(posix_spawn(&child, words[0], &actions, NULL, words, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    free(copy);
    int status;
    struct rusage usage;
    assert_int_equal(wait4(child, &status, 0, &usage), child);
    if (status)
        print_error("%s\n", line);
    assert_int_equal(status, 0);
    return (int64_t)usage.ru_maxrss * 1024;
}

static int64_t printed_peak(const char *options, int threads) {
    char line[512], output[128];
    snprintf(output, sizeof output, "%s/check.json", folder);
    snprintf(line, sizeof line, "%s check %s --json --threads %d", colac(), options, threads);
    run_process(line, output);
    json_error_t error;
    json_t *object = json_load_file(output, JSON_DISABLE_EOF_CHECK, &error);
    assert_non_null(object);
    int64_t peak =
        json_integer_value(json_object_get(json_object_get(object, "memory"), "peak"));
    json_decref(object);
    return peak;
}

static void check_resident(const char *options) {
    char line[512], output[128], data[128];
    snprintf(data, sizeof data, "%s/tokens.bin", folder);
    snprintf(output, sizeof output, "%s/train.json", folder);
    write_tokens(data, 40000, 250);
    int64_t peak = printed_peak(options, 2);
    snprintf(line, sizeof line,
             "%s train %s --data %s --out %s/run --steps 3 --threads 2 --json --order "
             "sequential",
             colac(), options, data, folder);
    int64_t resident = run_process(line, output);
    double bound = 1.08 * ((double)peak + 150e6);
    print_message("%s: peak %lld, resident %lld: %.3f of the bound\n", options, (long long)peak,
                  (long long)resident, (double)resident / bound);
    if (!((double)resident <= bound))
        fail_msg("%s: %lld bytes were resident, and the printed peak is %lld", options,
                 (long long)resident, (long long)peak);
    assert_true(resident > peak / 2); /* it is the run that was measured */
}

static void a_run_is_resident_within_its_printed_peak(void **state) {
    (void)state;
#if !WATCHES_MALLOC
    skip(); /* a sanitizer's own memory is in the figure */
#endif
    check_resident("models/llama.cola --preset 20m -D B=2 -D S=128 --plan cola_m");
    check_resident("models/llama.cola --preset 20m -D B=8 -D S=128 -D V=4000 --plan full");
    if (!getenv("COLAC_FUZZ"))
        return;
    static const char *const long_ones[] = {
        "models/llama.cola --preset 20m --plan gcp",
        "models/llama.cola --preset 60m --plan cola",
        "models/llama.cola --preset 60m --plan cola_lean",
        "models/llama.cola --preset 130m -D B=2 --plan cola_m",
        "models/gpt2.cola --preset 124m -D B=1 -D S=512 --plan cola_m",
        "models/gpt2.cola --preset nano --plan gcp",
        "models/bert.cola --preset base -D B=2 --plan cola_lean",
        "models/mlp.cola -D B=8192 -D N=1024 --plan cola_m",
    };
    for (int i = 0; i < COUNT_OF(long_ones); i++)
        check_resident(long_ones[i]);
}

/* ---- the published formulas ----------------------------------------------------------- */

/* A layer's FLOPs, of n tokens in sequences of n: cola.md's letters.  A multiply-add is two. */
typedef struct Letters {
    double n, d, r, f;
} Letters;
static double full_training(Letters x) {
    return 24 * x.n * x.d * x.d + 12 * x.n * x.n * x.d + 18 * x.n * x.d * x.f;
}
static double cola_training(Letters x) {
    return 48 * x.n * x.d * x.r + 12 * x.n * x.n * x.d + 18 * x.n * x.r * (x.d + x.f);
}
static double full_forward(Letters x) {
    return 8 * x.n * x.d * x.d + 6 * x.n * x.d * x.f + 4 * x.n * x.n * x.d;
}
static double cola_m_as_published(Letters x) {
    return 22 * x.n * x.d * x.r + 6 * x.n * x.r * x.f + 4 * x.n * x.n * x.d;
}
static double cola_m_needed(Letters x) { /* B of wo and of down feed sums alone */
    return 18 * x.n * x.d * x.r + 6 * x.n * x.r * x.f + 4 * x.n * x.n * x.d;
}
static double cola_lean_needed(Letters x) { /* B of q, k, v, gate, up, and attention */
    return 6 * x.n * x.d * x.r + 4 * x.n * x.r * x.f + 4 * x.n * x.n * x.d;
}
static double gcp_needed(Letters x) { /* all but down, which feeds a sum alone */
    return full_forward(x) - 2 * x.n * x.d * x.f;
}
/* All seven A and the five B that are needed: wo's B too, since `mid` is not kept. */
static double cola_gcp_needed(Letters x) {
    return cola_m_needed(x) + 2 * x.n * x.d * x.r;
}
static double cola_forward(Letters x) {
    return cola_training(x) / 3;
}
static double nothing(Letters x) {
    (void)x;
    return 0;
}

static const struct {
    const char *preset;
    double d, f, r, layers;
} paper_sizes[] = {{"60m", 512, 1376, 128, 8},
                   {"130m", 768, 2048, 256, 12},
                   {"350m", 1024, 2736, 256, 24},
                   {"1b", 2048, 5461, 512, 24},
                   {"7b", 4096, 11008, 1024, 32}};
static const struct {
    const char *plan;
    double (*training)(Letters), (*needed)(Letters), (*published)(Letters);
} paper_plans[] = {{"full", full_training, nothing, nothing},
                   {"gcp", full_training, gcp_needed, full_forward},
                   {"cola", cola_training, nothing, nothing},
                   {"cola_gcp", cola_training, cola_gcp_needed, cola_forward},
                   {"cola_m", cola_training, cola_m_needed, cola_m_as_published},
                   {"cola_lean", cola_training, cola_lean_needed, NULL}};

/* A figure is a whole number of FLOPs: to the last digit. */
static void assert_figure(double got, double wanted, const char *preset, const char *plan,
                          const char *what) {
    if (got != wanted)
        fail_msg("%s, %s: %s is %.17g, and by hand %.17g", preset, plan, what, got, wanted);
}

static void check_paper_figures(int size, int plan) {
    const char *preset = paper_sizes[size].preset, *name = paper_plans[plan].plan;
    Request request = {.path = "models/llama.cola", .preset = preset, .plan = name};
    Planned planned = compile_graph(&request, "precision");
    const Compilation *c = planned.compilation;
    double tokens = (double)(c->sequences * c->positions), layers = paper_sizes[size].layers;
    Letters x = {(double)c->positions, paper_sizes[size].d, paper_sizes[size].r,
                 paper_sizes[size].f};
    double sequences = layers * (double)c->sequences;
    PassContext context = {.module = planned.compilation->module,
                           .compilation = planned.compilation,
                           .diagnostics = planned.diagnostics,
                           .for_training = true};
    if (paper_plans[plan].published)
        assert_figure(
            published_recompute_flops(&context, module_find_function(context.module, "micro")),
            sequences * paper_plans[plan].published(x), preset, name,
            "the published recomputation");
    assert_true(pass_recompute(&context));
    planned.compilation->module = context.module;
    FlopTable table = flop_table(context.module, (int64_t)tokens);
    assert_figure((table.forward + table.backward) * tokens,
                  sequences * paper_plans[plan].training(x), preset, name, "training");
    assert_figure(table.recompute * tokens, sequences * paper_plans[plan].needed(x), preset,
                  name, "recomputation");
    assert_figure(table.head * tokens, 6 * tokens * x.d * 32000, preset, name, "the head");
    planned_free(&planned);
}

static void flops_are_the_published_ones(void **state) {
    (void)state;
    for (int size = 0; size < COUNT_OF(paper_sizes); size++)
        for (int plan = 0; plan < COUNT_OF(paper_plans); plan++)
            check_paper_figures(size, plan);
}

static int begin(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/colac_plans_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}
static int end(void **state) {
    (void)state;
    char line[128];
    snprintf(line, sizeof line, "rm -rf %s", folder);
    return system(line);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocations_are_seen),
        cmocka_unit_test(updates_of_a_run_allocate_nothing),
        cmocka_unit_test(arenas_are_used_to_the_last_byte),
        cmocka_unit_test(so_they_are_within_budgets),
        cmocka_unit_test(a_run_is_resident_within_its_printed_peak),
        cmocka_unit_test(flops_are_the_published_ones),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
