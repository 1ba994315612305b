/* Texts that are nearly right: models of this repository with bytes, words and lines changed at
 * random go through the front end and all passes, verified after each.  Whatever they are, the
 * compiler neither crashes nor hangs nor grows, and every refusal has a place.  A mutant is a
 * function of its number: COLAC_FUZZ says how many (1000), COLAC_FUZZ_FIRST where to begin.
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
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_SECONDS = 20, MOST_PASSES_NODES = 400000 };
enum { MOST_BYTES = 1 << 30 };
enum { MAX_CHANGES = 4, MAX_WORD = 40, MAX_SEEDS = 400 };

/* ---- texts to begin with ---------------------------------------------------------------- */

typedef struct Seed {
    const char *path;
    char *text;
    size_t length;
} Seed;

extern const char embedded_std_cola[];

static Seed seeds[MAX_SEEDS];
static int seed_count, model_count; /* the models stand first */

typedef ARRAY(const char *) Words;
static Words words; /* every token of the seeds, as often as it occurs */

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

static void add_words(const char *text) {
    for (size_t length; *text; text += length) {
        length = token_length(text);
        if (!isspace((unsigned char)*text) && *text != '#' && length < MAX_WORD)
            array_push(&words, strndup(text, length));
    }
}

static void add_seeds(const char *pattern) {
    glob_t found;
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc && seed_count < MAX_SEEDS; i++) {
        Seed *seed = &seeds[seed_count++];
        seed->path = strdup(found.gl_pathv[i]);
        seed->text = read_file(seed->path, 1 << 20, &seed->length);
        assert_non_null(seed->text);
        add_words(seed->text);
    }
    globfree(&found);
}

static int load_seeds(void **state) {
    (void)state;
    add_seeds("models/*.cola");
    model_count = seed_count;
    add_seeds("tests/golden/expand/*.cola");
    add_seeds("tests/golden/passes/*/*.cola");
    add_words(embedded_std_cola);
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

static void change_tokens(Text *text, Chance *chance) {
    size_t length, other_length, at = some_token(text, chance, &length);
    const char *word = words.data[draw(chance, (uint64_t)words.count)];
    char copy[MAX_WORD + 2];
    switch (draw(chance, 6)) {
    case 0: /* another token of any text */
        splice(text, at, length, word, strlen(word));
        break;
    case 1:
        snprintf(copy, sizeof copy, "%s ", word);
        splice(text, at, 0, copy, strlen(copy));
        break;
    case 2:
        splice(text, at, length, "", 0);
        break;
    case 3: /* another token of this text */
        word = text->data + some_token(text, chance, &other_length);
        snprintf(copy, sizeof copy, "%.*s", (int)other_length, word);
        splice(text, at, length, copy, strlen(copy));
        break;
    default: /* a number where one is, or anywhere */
        for (int tries = 0; tries < 20 && !isdigit((unsigned char)text->data[at]); tries++)
            at = some_token(text, chance, &length);
        word = some_number(chance);
        splice(text, at, length, word, strlen(word));
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

static const Seed *make_mutant(uint64_t number, Text *text) {
    Chance chance = number * 2654435761u + 1;
    bool is_model = draw(&chance, 4) > 0;
    const Seed *seed = &seeds[draw(&chance, (uint64_t)(is_model ? model_count : seed_count))];
    text_append(text, seed->text, seed->length);
    /* one change more often than two, so that some mutants stay models */
    for (uint64_t left = 1 + draw(&chance, draw(&chance, MAX_CHANGES) + 1); left > 0; left--) {
        uint64_t kind = draw(&chance, 8);
        if (text->length == 0)
            return seed;
        if (kind < 1)
            change_bytes(text, &chance);
        else if (kind < 7)
            change_tokens(text, &chance);
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
static bool finish_compiling(Compilation *compilation, Diagnostics *diagnostics,
                             const char *path) {
    PassContext context = {.module = compilation->module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .name = path,
                           .for_training = true};
    if (graph_size(compilation->module) > MOST_PASSES_NODES)
        return true;
    bool done = run_passes(&context, NULL, NULL);
    compilation->module = context.module;
    if (done)
        program_set_free(emit_programs(context.module));
    return done;
}

/* What is known of a mutant whose compilation ended; shared with the parent. */
typedef struct Progress {
    uint64_t number; /* being compiled */
    uint64_t accepted, refused;
    bool without_place;
} Progress;

static void compile_mutant(const char *path, const Seed *seed, Progress *progress) {
    Define layers = {"L", "2"};
    bool is_model = seed < seeds + model_count;
    Request request = {.path = path,
                       .defines = &layers,
                       .define_count = is_model ? 1 : 0,
                       .preset = is_model && progress->number % 2 ? "nano" : NULL,
                       .plan = is_model && progress->number % 3 ? "cola" : NULL,
                       .recipe = is_model && progress->number % 5 ? "demo" : NULL};
    Diagnostics *diagnostics = diagnostics_new();
    Compilation *compilation = compile_model(&request, diagnostics);
    bool accepted = compilation && finish_compiling(compilation, diagnostics, path);
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
    compilation_free(compilation);
    diagnostics_free(diagnostics);
}

/* ---- children --------------------------------------------------------------------------- */

static void limit_child(void) {
#ifndef __SANITIZE_ADDRESS__
    struct rlimit memory = {MOST_BYTES, MOST_BYTES};
    setrlimit(RLIMIT_AS, &memory);
#endif
    setenv("COLAC_VERIFY", "1", 1);
}

/* Compiles mutants from progress->number on; never returns. */
static _Noreturn void run_child(const char *path, const char *errors, uint64_t end,
                                Progress *progress) {
    limit_child();
    for (; progress->number < end; progress->number++) {
        Text text = {0};
        const Seed *seed = make_mutant(progress->number, &text);
        FILE *file = fopen(path, "w");
        if (!file || fwrite(text_string(&text), 1, text.length, file) != text.length ||
            fclose(file) || !freopen(errors, "w", stderr))
            _exit(4);
        text_free(&text);
        alarm(MOST_SECONDS);
        compile_mutant(path, seed, progress);
    }
    _exit(0);
}

static const char *how_it_ended(int status, const Progress *progress) {
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
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

static void test_mutants(void **state) {
    (void)state;
    char folder[] = "/tmp/colac_mutants_XXXXXX", path[64], errors[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/mutant.cola", folder);
    snprintf(errors, sizeof errors, "%s/errors", folder);
    Progress *progress =
        mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(progress != MAP_FAILED);
    uint64_t first = number_of("COLAC_FUZZ_FIRST", 0), count = number_of("COLAC_FUZZ", 1000);
    progress->number = first;
    while (progress->number < first + count) {
        uint64_t end = progress->number + 500;
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            run_child(path, errors, end < first + count ? end : first + count, progress);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            judge_end(status, path, errors, progress);
    }
    print_message("%llu accepted, %llu refused\n", (unsigned long long)progress->accepted,
                  (unsigned long long)progress->refused);
    /* Mutants go deep: a good part of them is still a model. */
    assert_true(progress->accepted > count / 20 && progress->refused > count / 20);
    unlink(path);
    unlink(errors);
    rmdir(folder);
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
                                       cmocka_unit_test(test_mutants)};
    return cmocka_run_group_tests(tests, load_seeds, NULL);
}
