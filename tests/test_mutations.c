/* Texts that are nearly right: models of this repository with bytes, words and lines changed at
 * random go through the front end and all passes, verified after each; and modules as IR text
 * through the passes.  Whatever they are, the compiler neither crashes nor hangs nor grows, and
 * every refusal has a place.  A mutant is a function of its number: COLAC_FUZZ says how many
 * (1000), COLAC_FUZZ_FIRST where to begin.
 *
 * Mutants are compiled in child processes, many in each.  A child that ends early says by how
 * which of its mutants did it: 0 all done, 1 one was refused, anything else is a failure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codegen/codegen.h"
#include "passes/passes.h"

#include <ctype.h>
#include <glob.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of a mutant.  Larger graphs than that go through the front end alone. */
enum { MOST_SECONDS = 20, MOST_NODES = 100000, MOST_BYTES = 1 << 30 };
enum { MUTANTS_OF_A_CHILD = 500, MAX_CHANGES = 4, MAX_WORD = 40, MAX_SEEDS = 400 };

/* ---- texts to begin with ---------------------------------------------------------------- */

typedef struct Seed {
    const char *path;
    char *text;
    size_t length;
} Seed;

extern const char embedded_std_cola[];

/* Texts of one kind. */
typedef struct Corpus {
    Seed seeds[MAX_SEEDS];
    int count, favourites;     /* the favourites stand first */
    ARRAY(const char *) words; /* every token of the seeds, as often as it occurs */
} Corpus;
static Corpus models, modules;

/* The token that begins at `text`: a word, a number, an operator, or one other character. */
static size_t token_length(const char *text) {
    size_t length =
        strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789.");
    if (length == 0 && *text == '#')
        length = strcspn(text, "\n");
    if (length == 0)
        length = strspn(text, "<>=!-*");
    return length ? length : 1;
}

static void add_words(Corpus *corpus, const char *text) {
    for (size_t length; *text; text += length) {
        length = token_length(text);
        if (!isspace((unsigned char)*text) && *text != '#' && length < MAX_WORD)
            array_push(&corpus->words, strndup(text, length));
    }
}

static void add_seed(Corpus *corpus, const char *path, char *text) {
    assert_non_null(text);
    assert_true(corpus->count < MAX_SEEDS);
    corpus->seeds[corpus->count++] = (Seed){strdup(path), text, strlen(text)};
    add_words(corpus, text);
}

static void add_files(Corpus *corpus, const char *pattern) {
    glob_t found;
    size_t length;
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++)
        add_seed(corpus, found.gl_pathv[i], read_file(found.gl_pathv[i], 1 << 20, &length));
    globfree(&found);
}

/* The small form of a model, as its request says it. */
static Request small_request(const char *path, const Define *layers) {
    return (Request){.path = path,
                     .preset = "nano",
                     .plan = "cola",
                     .recipe = "demo",
                     .defines = layers,
                     .define_count = 1};
}

/* The text of a model after a pass (NULL: before any); with clones, and with copies in bf16. */
static void add_module(const char *path, const char *last, bool narrow) {
    Diagnostics *diagnostics = diagnostics_new();
    Define layers = {"L", "1"};
    Request request = small_request(path, &layers);
    request.plan = "cola_m";
    request.precision = narrow ? "bf16" : NULL;
    Compilation *compilation = compile_model(&request, diagnostics);
    assert_non_null(compilation);
    PassContext context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .for_training = true};
    Stage stage = STAGE_GRAPH;
    if (last)
        assert_true(run_passes(&context, last, NULL));
    for (int i = 0; last && i < pass_count; i++)
        if (!strcmp(pass_list[i].name, last))
            stage = pass_list[i].gives;
    Text text = {0};
    ir_print(context.module, stage, &text);
    add_seed(&modules, path, text.data);
    compilation->module = context.module;
    compilation_free(compilation);
    diagnostics_free(diagnostics);
}

static int load_seeds(void **state) {
    (void)state;
    add_files(&models, "models/*.cola");
    models.favourites = models.count;
    add_files(&models, "tests/golden/expand/*.cola");
    add_files(&models, "tests/golden/passes/*/*.cola");
    add_words(&models, embedded_std_cola);
    for (int i = 0; i < models.favourites; i++) {
        add_module(models.seeds[i].path, NULL, false);
        for (int pass = 0; pass < pass_count; pass++)
            add_module(models.seeds[i].path, pass_list[pass].name, pass % 2);
    }
    modules.favourites = modules.count;
    add_files(&modules, "tests/golden/passes/*/*.ir");
    add_files(&modules, "tests/golden/ir/*.ir");
    return 0;
}

/* ---- chance ----------------------------------------------------------------------------- */

typedef uint64_t Chance;

static uint64_t draw(Chance *chance, uint64_t below) { /* splitmix64 */
    uint64_t z = (*chance += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return below ? (z ^ (z >> 31)) % below : 0;
}

/* ---- changes ---------------------------------------------------------------------------- */

/* Puts `by` in the place of [at, at + length). */
static void splice(Text *text, size_t at, size_t length, const char *by, size_t by_length) {
    Text made = {0};
    text_append(&made, text_string(text), at);
    text_append(&made, by, by_length);
    text_append(&made, text_string(text) + at + length, text->length - at - length);
    text_free(text);
    *text = made;
}

static void change_bytes(Text *text, Chance *chance) {
    static const char likely[] = "()[]{};,:=+-*/^.<>#\"\n \t_0123456789eDLBx\x80\xc3\x00";
    size_t at = draw(chance, text->length);
    char byte = likely[draw(chance, sizeof likely - 1)];
    switch (draw(chance, 4)) {
    case 0:
        splice(text, at, 1, &byte, 1);
        break;
    case 1:
        splice(text, at, 0, &byte, 1);
        break;
    case 2:
        splice(text, at, 1, "", 0);
        break;
    default:
        splice(text, at, draw(chance, text->length - at), "", 0);
        break;
    }
}

/* Begin and length of a token that is no space, somewhere. */
static size_t some_token(const Text *text, Chance *chance, size_t *length) {
    size_t wanted = draw(chance, text->length), at = 0;
    for (*length = 0; at < text->length; at += *length) {
        *length = token_length(text->data + at);
        if (at + *length > wanted && !isspace((unsigned char)text->data[at]))
            return at;
    }
    *length = 0;
    return text->length;
}

static const char *some_number(Chance *chance) {
    static const char *const numbers[] = {"0",
                                          "1",
                                          "2",
                                          "3",
                                          "-1",
                                          "7",
                                          "64",
                                          "0.5",
                                          "1e30",
                                          "1e400",
                                          "1e-9",
                                          "100000",
                                          "2147483648",
                                          "1152921504606846976",
                                          "inf",
                                          "true",
                                          "9223372036854775808"};
    return numbers[draw(chance, COUNT_OF(numbers))];
}

static int kind_of(char c) {
    return isdigit((unsigned char)c) ? '0' : isalpha((unsigned char)c) ? 'a' : c;
}

/* Do two tokens look like the same part of a text: their own kind, and what stands before? */
static bool alike(const char *text, size_t a, size_t b) {
    size_t before_a = a, before_b = b;
    while (before_a > 0 && text[--before_a] == ' ')
        ;
    while (before_b > 0 && text[--before_b] == ' ')
        ;
    return kind_of(text[a]) == kind_of(text[b]) &&
           kind_of(text[before_a]) == kind_of(text[before_b]);
}

/* Puts another token of this text in the place of one that looks alike. */
static void exchange_token(Text *text, Chance *chance) {
    size_t length, other_length, at = some_token(text, chance, &length);
    size_t other = some_token(text, chance, &other_length);
    for (int tries = 0; tries < 50 && !alike(text->data, at, other); tries++)
        other = some_token(text, chance, &other_length);
    char copy[MAX_WORD + 1];
    int copied = snprintf(copy, sizeof copy, "%.*s", (int)other_length, text->data + other);
    splice(text, at, length, copy, copied < MAX_WORD ? (size_t)copied : MAX_WORD);
}

/* A number where one is (or, where none is near, anywhere). */
static void change_number(Text *text, Chance *chance) {
    size_t length, at = some_token(text, chance, &length);
    for (int tries = 0; tries < 20 && kind_of(text->data[at]) != '0'; tries++)
        at = some_token(text, chance, &length);
    const char *number = some_number(chance);
    splice(text, at, length, number, strlen(number));
}

static void change_tokens(const Corpus *corpus, Text *text, Chance *chance) {
    size_t length, at = some_token(text, chance, &length);
    const char *word = corpus->words.data[draw(chance, (uint64_t)corpus->words.count)];
    char spaced[MAX_WORD + 2];
    switch (draw(chance, 8)) {
    case 0: /* a token of any text */
        splice(text, at, length, word, strlen(word));
        break;
    case 1:
        snprintf(spaced, sizeof spaced, "%s ", word);
        splice(text, at, 0, spaced, strlen(spaced));
        break;
    case 2:
        splice(text, at, length, "", 0);
        break;
    case 3:
    case 4:
        change_number(text, chance);
        break;
    default:
        exchange_token(text, chance);
        break;
    }
}

/* Begin and length of a line, its end included. */
static size_t some_line(const Text *text, Chance *chance, size_t *length) {
    size_t at = draw(chance, text->length);
    while (at > 0 && text->data[at - 1] != '\n')
        at--;
    *length = strcspn(text->data + at, "\n");
    *length += at + *length < text->length;
    return at;
}

static void change_lines(Text *text, Chance *chance) {
    size_t length, other, at = some_line(text, chance, &length);
    char *line = strndup(text->data + at, length);
    other = some_line(text, chance, &(size_t){0});
    switch (draw(chance, 3)) {
    case 0:
        splice(text, at, length, "", 0);
        break;
    case 1: /* once more, somewhere else */
        splice(text, other, 0, line, length);
        break;
    default: /* moved */
        splice(text, at, length, "", 0);
        splice(text, other < text->length ? other : 0, 0, line, length);
        break;
    }
    free(line);
}

static const Seed *make_mutant(const Corpus *corpus, uint64_t number, Text *text) {
    Chance chance = number * 2654435761u + 1;
    int among = draw(&chance, 4) ? corpus->favourites : corpus->count;
    const Seed *seed = &corpus->seeds[draw(&chance, (uint64_t)among)];
    text_append(text, seed->text, seed->length);
    /* one change more often than two, so that some mutants stay models */
    for (uint64_t left = 1 + draw(&chance, draw(&chance, MAX_CHANGES) + 1); left > 0; left--) {
        uint64_t kind = draw(&chance, 8);
        if (text->length == 0)
            return seed;
        if (kind < 1)
            change_bytes(text, &chance);
        else if (kind < 7)
            change_tokens(corpus, text, &chance);
        else
            change_lines(text, &chance);
    }
    return seed;
}

/* ---- compiling one ---------------------------------------------------------------------- */

/* Every error begins FILE:LINE:COLUMN. */
static bool has_places(const char *output) {
    bool any = false;
    for (const char *line = output; *line;) {
        size_t length = strcspn(line, "\n");
        const char *error = strstr(line, ": error: ");
        if (error && error < line + length && !isspace((unsigned char)*line)) {
            const char *at = error;
            for (int part = 0; part < 2; part++) {
                const char *digits = at;
                while (digits > line && isdigit((unsigned char)digits[-1]))
                    digits--;
                if (digits == at || digits == line || digits[-1] != ':')
                    return false;
                at = digits - 1;
            }
            if (at == line || strncmp(line, "built-in", 8) == 0)
                return false;
            any = true;
        }
        line += length + (line[length] != 0);
    }
    return any;
}

static int64_t graph_size(const Module *module) {
    return module->functions.count ? module->functions.data[0]->nodes.count : 0;
}

/* All passes and the kernels.  False where one refuses. */
static bool finish_compiling(Compilation *compilation, Diagnostics *diagnostics) {
    PassContext context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .for_training = true};
    if (graph_size(compilation->module) > MOST_NODES)
        return true;
    bool done = run_passes(&context, NULL, NULL);
    compilation->module = context.module;
    if (done)
        program_set_free(emit_programs(context.module, &host_room, false));
    return done;
}

/* What is known of the mutants so far; shared with the parent. */
typedef struct Progress {
    uint64_t number; /* being compiled */
    uint64_t accepted, refused;
    bool without_place;
} Progress;

/* A compilation came to its end: was every refusal said, and with a place? */
static void judge_mutant(bool accepted, Diagnostics *diagnostics, Progress *progress) {
    int errors = diagnostics_errors(diagnostics);
    char *output = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&output, &length);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    if (accepted != (errors == 0) || (!accepted && !has_places(output))) {
        fprintf(stderr, "%s", output);
        progress->without_place = true;
        _exit(2);
    }
    ++*(accepted ? &progress->accepted : &progress->refused);
    free(output);
}

/* The name behind one of the text's words `plan`, or NULL.  In a buffer of its own. */
static const char *some_plan(const char *text, size_t length, uint64_t number) {
    static char name[MAX_WORD];
    const char *found[64];
    int count = 0;
    for (size_t i = 0; i + 5 < length && count < COUNT_OF(found); i++)
        if (memcmp(text + i, "plan ", 5) == 0 &&
            (i == 0 || isspace((unsigned char)text[i - 1])))
            found[count++] = text + i + 5;
    if (!count)
        return NULL;
    const char *begin = found[number % (uint64_t)count];
    size_t size = 0;
    while (size < MAX_WORD - 1 && begin + size < text + length &&
           (isalnum((unsigned char)begin[size]) || begin[size] == '_'))
        size++;
    memcpy(name, begin, size);
    name[size] = 0;
    return size ? name : NULL;
}

static void compile_mutant(const char *path, const Seed *seed, Progress *progress) {
    Define layers = {"L", "2"};
    bool is_model = seed < models.seeds + models.favourites;
    Request request = small_request(path, &layers);
    if (!is_model)
        request = (Request){.path = path};
    request.preset = progress->number % 2 ? request.preset : NULL;
    size_t size = 0;
    char *text = read_file(path, 1 << 24, &size);
    request.plan =
        progress->number % 3 && text ? some_plan(text, size, progress->number / 3) : NULL;
    request.precision = progress->number % 4 ? NULL : "bf16";
    free(text);
    request.recipe = progress->number % 5 ? request.recipe : NULL;
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile_model(&request, diagnostics);
    bool accepted = compilation && finish_compiling(compilation, diagnostics);
    judge_mutant(accepted, diagnostics, progress);
    compilation_free(compilation);
    diagnostics_free(diagnostics);
}

/* The passes that take a module of this stage, one after the other; factorize and update with
 * the texts of the model that the module was once of. */
static bool transform_module(Module **module, Compilation *compilation, Stage stage,
                             Diagnostics *diagnostics, uint64_t number) {
    PassContext context = {.module = *module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .no_fuse = number % 7 == 0,
                           .for_training = true};
    bool done = true;
    int pass = 0;
    while (pass < pass_count && (pass ? pass_list[pass - 1].gives : STAGE_GRAPH) != stage)
        pass++;
    int graph_passes = 0;
    while (pass_list[graph_passes].gives == STAGE_GRAPH)
        graph_passes++;
    if (stage == STAGE_GRAPH) /* any of them, and the one behind, may be the next */
        pass = (int)(number / 7 % (uint64_t)(graph_passes + 1));
    for (; done && pass < pass_count; pass++)
        if (compilation || !pass_list[pass].needs_compilation)
            done = run_named_passes(&context, pass_list[pass].name, &stage);
    *module = context.module;
    return done;
}

static void transform_mutant(const char *path, const Seed *seed, Progress *progress) {
    Diagnostics *diagnostics = diagnostics_new();
    Source source = {.name = path};
    char *text = read_file(path, 1 << 24, &source.length);
    source.text = text;
    Stage stage;
    Module *module = ir_parse(&source, diagnostics, &stage);
    bool accepted = module != NULL;
    bool of_model = seed < modules.seeds + modules.favourites;
    Compilation *compilation = NULL;
    if (accepted && of_model && progress->number % 2) {
        Define layers = {"L", "1"};
        Request request = small_request(seed->path, &layers);
        compilation = compile_model(&request, diagnostics);
        bool with_plan = progress->number / 7 % 7 == 0;
        accepted = compilation_adopt(compilation, module, with_plan, with_plan);
    }
    accepted = accepted &&
               transform_module(&module, compilation, stage, diagnostics, progress->number);
    judge_mutant(accepted, diagnostics, progress);
    if (compilation)
        compilation->module = module;
    else
        module_free(module);
    compilation_free(compilation);
    diagnostics_free(diagnostics);
    free(text);
}

/* ---- children --------------------------------------------------------------------------- */

static void limit_child(void) {
#ifndef __SANITIZE_ADDRESS__
    struct rlimit memory = {MOST_BYTES, MOST_BYTES};
    setrlimit(RLIMIT_AS, &memory);
#endif
    setenv("COLAC_VERIFY", "1", 1);
}

/* What is done with the mutants of a corpus. */
typedef void (*Trial)(const char *path, const Seed *seed, Progress *progress);

/* Tries mutants from progress->number on; never returns. */
static _Noreturn void run_child(const Corpus *corpus, Trial trial, const char *path,
                                const char *errors, uint64_t end, Progress *progress) {
    limit_child();
    for (; progress->number < end; progress->number++) {
        Text text = {0};
        const Seed *seed = make_mutant(corpus, progress->number, &text);
        FILE *file = fopen(path, "w");
        if (!file || fwrite(text_string(&text), 1, text.length, file) != text.length ||
            fclose(file) || !freopen(errors, "w", stderr))
            _exit(4);
        text_free(&text);
        struct itimerval limit = {.it_value.tv_sec = MOST_SECONDS}; /* of computing */
        setitimer(ITIMER_PROF, &limit, NULL);
        trial(path, seed, progress);
    }
    _exit(0);
}

static const char *how_it_ended(int status, const Progress *progress) {
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF)
        return "takes more than 20 seconds";
    if (WIFSIGNALED(status))
        return strsignal(WTERMSIG(status));
    if (progress->without_place)
        return "is refused without a place, or accepted with errors";
    return WEXITSTATUS(status) == 3 ? "finds a bug of ours" : "ends the process";
}

/* A child ended before its last mutant: by a refusal with a place (exit 1), or by a failure. */
static void judge_end(int status, const char *path, const char *errors, Progress *progress) {
    size_t length;
    char *said = read_file(errors, 1 << 20, &length);
    bool refused = WIFEXITED(status) && WEXITSTATUS(status) == 1 && said && has_places(said);
    if (!refused)
        fail_msg("mutant %llu %s; its text is in %s\n%.2000s",
                 (unsigned long long)progress->number, how_it_ended(status, progress), path,
                 said ? said : "");
    progress->refused++;
    progress->number++;
    free(said);
}

static uint64_t number_of(const char *variable, uint64_t otherwise) {
    const char *text = getenv(variable);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

/* Tries `count` mutants; *progress says how it went. */
static void try_mutants(const Corpus *corpus, Trial trial, uint64_t count, Progress *progress) {
    char folder[] = "/tmp/colac_mutants_XXXXXX", path[64], errors[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/mutant", folder);
    snprintf(errors, sizeof errors, "%s/errors", folder);
    uint64_t first = number_of("COLAC_FUZZ_FIRST", 0), end = first + count;
    progress->number = first;
    while (progress->number < end) {
        uint64_t last = progress->number + MUTANTS_OF_A_CHILD;
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            run_child(corpus, trial, path, errors, last < end ? last : end, progress);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            judge_end(status, path, errors, progress);
    }
    print_message("%llu accepted, %llu refused\n", (unsigned long long)progress->accepted,
                  (unsigned long long)progress->refused);
    /* Mutants go deep: a good part of them is still sound. */
    assert_true(progress->accepted > count / 20 && progress->refused > count / 20);
    unlink(path);
    unlink(errors);
    rmdir(folder);
}

static void try_all(const Corpus *corpus, Trial trial, uint64_t count) {
    Progress *progress =
        mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(progress != MAP_FAILED);
    try_mutants(corpus, trial, count, progress);
    munmap(progress, sizeof *progress);
}

static void test_mutated_models(void **state) {
    (void)state;
    try_all(&models, compile_mutant, number_of("COLAC_FUZZ", 1000));
}

static void test_mutated_modules(void **state) {
    (void)state;
    try_all(&modules, transform_mutant, number_of("COLAC_FUZZ", 1000) / 2);
}

/* What counts as a place. */
static void test_places(void **state) {
    (void)state;
    assert_true(has_places("m.cola:3:14: error: no\n    3 | : error: x\n      | ^\n"));
    assert_true(has_places("-D:1:9: error: no\n"));
    assert_false(has_places("built-in:1:1: error: no\n"));
    assert_false(has_places("m.cola:3: error: no\n"));
    assert_false(has_places("m.cola:1:1: error: no\ncolac: error: no place\n"));
    assert_false(has_places("m.cola:1:1: warning: no error\n"));
    assert_false(has_places(""));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_places),
                                       cmocka_unit_test(test_mutated_models),
                                       cmocka_unit_test(test_mutated_modules)};
    return cmocka_run_group_tests(tests, load_seeds, NULL);
}
