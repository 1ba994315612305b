/* tests/test_base.c: arenas, texts, maps, names that are nearly right, files and diagnostics.
 */
#include "base/base.h"

#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- arenas ------------------------------------------------------------------------- */

static void arena_memory_is_zeroed_aligned_and_apart(void **state) {
    (void)state;
    Arena *arena = arena_new();
    unsigned char *pieces[500];
    size_t sizes[500], total = 0;
    for (int i = 0; i < 500; i++) {
        sizes[i] = i % 50 == 49 ? 300000 : (size_t)(i * 7 % 201);
        total += sizes[i];
        pieces[i] = arena_alloc(arena, sizes[i]);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(pieces[i][j], 0);
        memset(pieces[i], i % 255 + 1, sizes[i]);
    }
    for (int i = 0; i < 500; i++)
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(pieces[i][j], i % 255 + 1);
    assert_int_equal(arena_bytes(arena), total);
    arena_free(arena);
    arena_free(NULL);
}

static void arena_strings(void **state) {
    (void)state;
    Arena *arena = arena_new();
    char *cut = arena_strndup(arena, "rank-r", 4);
    assert_string_equal(cut, "rank");
    assert_string_equal(arena_strdup(arena, ""), "");
    assert_string_equal(arena_printf(arena, "%s[%d]", cut, 12), "rank[12]");
    arena_free(arena);
}

/* Runs `act` in a child; its exit status, and what it wrote to standard error. */
static int run_in_child(void (*act)(void), char *output, size_t size) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], 2);
        act();
        _exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    for (ssize_t got; (got = read(ends[0], output + length, size - 1 - length)) > 0;)
        length += (size_t)got;
    output[length] = 0;
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void ask_for_too_much(void) {
    arena_alloc_array(arena_new(), SIZE_MAX / 4, 16);
}

static void ask_past_the_limit(void) {
    Arena *arena = arena_new();
    arena_alloc(arena, (size_t)1 << 50);
}

static void no_memory_is_a_sentence(void **state) {
    (void)state;
    char output[1000];
    assert_int_equal(run_in_child(ask_for_too_much, output, sizeof output), 1);
    assert_non_null(strstr(output, "colac: error: out of memory"));
    assert_int_equal(run_in_child(ask_past_the_limit, output, sizeof output), 1);
    assert_non_null(strstr(output, "1125899906842624 bytes"));
}

static void break_an_invariant(void) {
    INTERNAL_CHECK(1 + 1 == 3);
}

static void our_bug_exits_3(void **state) {
    (void)state;
    char output[1000];
    assert_int_equal(run_in_child(break_an_invariant, output, sizeof output), 3);
    assert_non_null(strstr(output, "internal error at tests/test_base.c:"));
    assert_non_null(strstr(output, "1 + 1 == 3"));
    assert_non_null(strstr(output, "report it"));
}

/* ---- arrays, texts, maps ------------------------------------------------------------- */

static void arrays_grow(void **state) {
    (void)state;
    ARRAY(int) numbers = {0};
    for (int i = 0; i < 1000; i++)
        array_push(&numbers, i * i);
    assert_int_equal(numbers.count, 1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(numbers.data[i], i * i);
    array_free(&numbers);
    assert_null(numbers.data);
}

static void texts_grow(void **state) {
    (void)state;
    Text text = {0};
    assert_string_equal(text_string(&text), "");
    for (int i = 0; i < 300; i++)
        text_printf(&text, "%d,", i);
    text_puts(&text, "end");
    text_append(&text, "\0!", 2);
    assert_int_equal(text.length, 10 * 2 + 90 * 3 + 200 * 4 + 5);
    assert_memory_equal(text.data + text.length - 7, "9,end", 6);
    assert_int_equal(text.data[text.length], 0);
    text_free(&text);
    assert_null(text.data);
}

/* What the C library makes of the same. */
#define ASSERT_PRINTED(...)                                                                    \
    do {                                                                                       \
        char expected[512];                                                                    \
        Text text = {0};                                                                       \
        int length = snprintf(expected, sizeof expected, __VA_ARGS__);                         \
        text_printf(&text, __VA_ARGS__);                                                       \
        assert_string_equal(text_string(&text), expected);                                     \
        assert_int_equal(text.length, length);                                                 \
        text_free(&text);                                                                      \
    } while (0)

static void texts_print_what_printf_prints(void **state) {
    (void)state;
    ASSERT_PRINTED("%s", "");
    ASSERT_PRINTED("no conversion");
    ASSERT_PRINTED("%d %d %d %d", 0, -1, INT_MAX, INT_MIN);
    ASSERT_PRINTED("%lld,%lld,%lld", 0LL, LLONG_MAX, LLONG_MIN);
    ASSERT_PRINTED("%s[%d] = %lld of 100%%, %s", "layer", 31, 1LL << 40, "mixed");
    ASSERT_PRINTED("%d%c%5d|%-5s|%05lld", 7, '!', 8, "ab", 9LL);
    ASSERT_PRINTED("%s %.17g %a %zu %s", "then", 0.1, 0.1, sizeof(Text), "after");
    ASSERT_PRINTED("%d %.*s %d", 1, 2, "abcdef", 3);
    ASSERT_PRINTED("%s %300s", "a piece that is longer than most", "x");
    ASSERT_PRINTED("%ld %u %x %02x", -5L, 4000000000U, 255U, 7U);
}

static void maps_keep_what_they_are_told(void **state) {
    (void)state;
    StringMap map = {0};
    char key[32];
    assert_int_equal(string_map_get(&map, "none", -7), -7);
    for (int i = 0; i < 5000; i++) {
        snprintf(key, sizeof key, "layer[%d].w", i * 31 % 5003);
        string_map_set(&map, key, i);
    }
    string_map_set(&map, "layer[31].w", 999999);
    string_map_set(&map, "", 5);
    assert_int_equal(map.count, 5001);
    for (int i = 0; i < 5000; i++) {
        snprintf(key, sizeof key, "layer[%d].w", i * 31 % 5003);
        assert_int_equal(string_map_get(&map, key, -1), i == 1 ? 999999 : i);
    }
    assert_int_equal(string_map_get(&map, "", -1), 5);
    assert_int_equal(string_map_get(&map, "layer", -1), -1);
    string_map_free(&map);
}

/* ---- names that are nearly right ----------------------------------------------------- */

static void distances(void **state) {
    (void)state;
    assert_int_equal(edit_distance("", "", 9), 0);
    assert_int_equal(edit_distance("kitten", "sitting", 9), 3);
    assert_int_equal(edit_distance("abcd", "abdc", 9), 1);
    assert_int_equal(edit_distance("", "abc", 9), 3);
    assert_int_equal(edit_distance("flaw", "lawn", 9), 2);
    assert_int_equal(edit_distance("aaaaaaa", "bbbbbbb", 3), 3);
}

static void suggestions(void **state) {
    (void)state;
    const char *const names[] = {"softmax", "rmsnorm", "layernorm", "silu", "gelu"};
    assert_string_equal(nearest_name("rmsnrom", names, 5), "rmsnorm");
    assert_string_equal(nearest_name("sofmax", names, 5), "softmax");
    assert_string_equal(nearest_name("gelu", names, 5), "gelu");
    assert_null(nearest_name("attention", names, 5));
    assert_null(nearest_name("", names, 5));
    assert_null(nearest_name("x", names, 0));
}

/* ---- files --------------------------------------------------------------------------- */

static void files(void **state) {
    (void)state;
    char path[] = "/tmp/colac-test-base-XXXXXX";
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    char *bytes = malloc(200000);
    for (int i = 0; i < 200000; i++)
        bytes[i] = (char)(i * 7);
    assert_int_equal(write(descriptor, bytes, 200000), 200000);
    close(descriptor);
    size_t length;
    char *got = read_file(path, 200000, &length);
    assert_non_null(got);
    assert_int_equal(length, 200000);
    assert_memory_equal(got, bytes, 200000);
    assert_int_equal(got[length], 0);
    free(got);
    assert_null(read_file(path, 199999, &length));
    assert_int_equal(errno, EFBIG);
    assert_int_equal(unlink(path), 0);
    assert_null(read_file(path, 1000, &length));
    assert_int_equal(errno, ENOENT);
    assert_null(read_file("/tmp", 1000, &length));
    assert_int_equal(errno, EISDIR);
    free(bytes);
}

/* ---- diagnostics --------------------------------------------------------------------- */

static Source source_of(const char *name, const char *text) {
    return (Source){name, text, strlen(text), NULL};
}

/* The span of `word` in the source. */
static Span find(const Source *source, const char *word) {
    const char *place = strstr(source->text, word);
    uint32_t begin = (uint32_t)(place - source->text);
    return (Span){source, begin, begin + (uint32_t)strlen(word)};
}

static void assert_prints(Diagnostics *diagnostics, const char *expected) {
    char *printed;
    size_t size;
    FILE *stream = open_memstream(&printed, &size);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    assert_string_equal(printed, expected);
    free(printed);
}

static void carets_notes_and_help(void **state) {
    (void)state;
    Source source =
        source_of("m.cola", "dim S = 256\n\nblock f() {\n    s = dot(q, k; K)\n}\n");
    Diagnostics *diagnostics = diagnostics_new();
    Diagnostic *made = error_at(diagnostics, find(&source, "dot(q, k; K)"),
                                "S is in both operands of this %s", "dot");
    note_at(made, find(&source, "S = 256"), "S = 256 is declared here");
    note_at(made, (Span){0}, "and set by -D");
    help(made, "rename one: `k[S as T]`");
    assert_int_equal(diagnostics_errors(diagnostics), 1);
    assert_prints(diagnostics, "m.cola:4:9: error: S is in both operands of this dot\n"
                               "    4 |     s = dot(q, k; K)\n"
                               "      |         ^~~~~~~~~~~~\n"
                               "m.cola:1:5: note: S = 256 is declared here\n"
                               "      note: and set by -D\n"
                               "      help: rename one: `k[S as T]`\n");
    assert_int_equal(diagnostics_errors(diagnostics), 0);
    assert_prints(diagnostics, "");
    diagnostics_free(diagnostics);
}

static void sorted_by_place_and_said_once(void **state) {
    (void)state;
    Source first = source_of("a", "one\ntwo\n"), second = source_of("b", "three");
    Diagnostics *diagnostics = diagnostics_new();
    error_at(diagnostics, find(&first, "two"), "late");
    error_at(diagnostics, find(&second, "three"), "other file");
    warning_at(diagnostics, find(&first, "one"), "early");
    help(error_at(diagnostics, find(&first, "two"), "late"), "once");
    help(error_at(diagnostics, find(&first, "two"), "late"), "once");
    error_in_file(diagnostics, "data.bin", "empty");
    assert_int_equal(diagnostics_errors(diagnostics), 3);
    assert_prints(diagnostics, "a:1:1: warning: early\n    1 | one\n      | ^~~\n"
                               "a:2:1: error: late\n    2 | two\n      | ^~~\n"
                               "      help: once\n"
                               "b:1:1: error: other file\n    1 | three\n      | ^~~~~\n"
                               "data.bin:1:1: error: empty\n");
    diagnostics_free(diagnostics);
}

static void columns_are_code_points(void **state) {
    (void)state;
    Source source = source_of("u", "\tβ₁ = \xFF\x01 x\r\n");
    Diagnostics *diagnostics = diagnostics_new();
    error_at(diagnostics, find(&source, "x"), "here");
    error_at(diagnostics, find(&source, "₁"), "subscript");
    assert_prints(diagnostics,
                  "u:1:3: error: subscript\n    1 | \tβ₁ = ?? x\n      | \t ^\n"
                  "u:1:10: error: here\n    1 | \tβ₁ = ?? x\n      | \t        ^\n");
    diagnostics_free(diagnostics);
}

static void long_lines_are_cut(void **state) {
    (void)state;
    Text text = {0};
    for (int i = 0; i < 100; i++)
        text_puts(&text, "abcde");
    Source source = source_of("l", text_string(&text));
    Diagnostics *diagnostics = diagnostics_new();
    error_at(diagnostics, (Span){&source, 250, 490}, "long");
    char *printed;
    size_t size;
    FILE *stream = open_memstream(&printed, &size);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    const char *shown = strstr(printed, "    1 | …");
    assert_non_null(shown);
    /* 80 columns before the caret, 80 with it and after it, an ellipsis at both ends */
    assert_memory_equal(shown + strlen("    1 | …"), "abcde", 5);
    const char *caret = strchr(strchr(shown, '\n') + 1, '^');
    assert_int_equal(caret - (strchr(shown, '\n') + 1), strlen("      | ") + 1 + 80);
    assert_int_equal(strspn(caret + 1, "~"), 79);
    assert_string_equal(caret + 80, "\n");
    free(printed);
    text_free(&text);
    diagnostics_free(diagnostics);
}

static void the_end_of_a_text_has_a_place(void **state) {
    (void)state;
    Source source = source_of("e", "a {\n"), empty = source_of("n", "");
    Diagnostics *diagnostics = diagnostics_new();
    error_at(diagnostics, (Span){&source, 4, 4}, "expected }");
    error_at(diagnostics, (Span){&empty, 0, 900}, "nothing here");
    error_at(diagnostics, (Span){0}, "no place");
    assert_prints(diagnostics, "e:2:1: error: expected }\n    2 | \n      | ^\n"
                               "n:1:1: error: nothing here\n    1 | \n      | ^\n"
                               "built-in:1:1: error: no place\n");
    diagnostics_free(diagnostics);
}

static void fifty_are_enough(void **state) {
    (void)state;
    Source source = source_of("m", "0123456789");
    Diagnostics *diagnostics = diagnostics_new();
    for (uint32_t i = 0; i < 60; i++)
        help(error_at(diagnostics, (Span){&source, i % 10, i % 10 + 1}, "number %u", i), "h");
    assert_int_equal(diagnostics_errors(diagnostics), 60);
    char *printed;
    size_t size;
    FILE *stream = open_memstream(&printed, &size);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    assert_non_null(strstr(printed, "number 49\n"));
    assert_null(strstr(printed, "number 50\n"));
    assert_non_null(strstr(printed, "\n… and 10 more errors\n"));
    free(printed);
    diagnostics_free(diagnostics);
}

/* Any span in any bytes prints something that starts with a place. */
static void any_bytes_can_be_pointed_at(void **state) {
    (void)state;
    uint32_t random = 1;
    for (int round = 0; round < 500; round++) {
        char bytes[64];
        for (int i = 0; i < COUNT_OF(bytes); i++) {
            random = random * 1664525 + 1013904223;
            bytes[i] = (char)(random >> 24);
        }
        Source source = {"r", bytes, sizeof bytes - 1, NULL};
        bytes[sizeof bytes - 1] = 0;
        Diagnostics *diagnostics = diagnostics_new();
        uint32_t begin = random >> 8 & 127;
        error_at(diagnostics, (Span){&source, begin, begin + (random >> 16 & 31)}, "x");
        char *printed;
        size_t size;
        FILE *stream = open_memstream(&printed, &size);
        diagnostics_print(diagnostics, stream);
        fclose(stream);
        int line, column, consumed = 0;
        assert_int_equal(sscanf(printed, "r:%d:%d: error: x%n", &line, &column, &consumed), 2);
        assert_true(consumed > 0 && line >= 1 && column >= 1);
        free(printed);
        diagnostics_free(diagnostics);
    }
}

static void joined_spans(void **state) {
    (void)state;
    Source source = source_of("j", "a + b"), other = source_of("k", "x");
    Span a = find(&source, "a"), b = find(&source, "b");
    Span joined = span_join(b, a);
    assert_int_equal(joined.begin, 0);
    assert_int_equal(joined.end, 5);
    assert_ptr_equal(span_join((Span){0}, b).source, &source);
    assert_int_equal(span_join(a, find(&other, "x")).end, 1);
    assert_ptr_equal(span_join(a, find(&other, "x")).source, &source);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arena_memory_is_zeroed_aligned_and_apart),
        cmocka_unit_test(arena_strings),
        cmocka_unit_test(no_memory_is_a_sentence),
        cmocka_unit_test(our_bug_exits_3),
        cmocka_unit_test(arrays_grow),
        cmocka_unit_test(texts_grow),
        cmocka_unit_test(texts_print_what_printf_prints),
        cmocka_unit_test(maps_keep_what_they_are_told),
        cmocka_unit_test(distances),
        cmocka_unit_test(suggestions),
        cmocka_unit_test(files),
        cmocka_unit_test(carets_notes_and_help),
        cmocka_unit_test(sorted_by_place_and_said_once),
        cmocka_unit_test(columns_are_code_points),
        cmocka_unit_test(long_lines_are_cut),
        cmocka_unit_test(the_end_of_a_text_has_a_place),
        cmocka_unit_test(fifty_are_enough),
        cmocka_unit_test(any_bytes_can_be_pointed_at),
        cmocka_unit_test(joined_spans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
