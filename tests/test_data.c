/* tests/test_data.c: files that appear whole, weights, token data and its order, packing.  What
 * is read is written here byte by byte; what is written is read here by other means. */
#include "runtime/runtime.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

/* ---- a folder for each test --------------------------------------------------------- */

static char folder[64];
static char path_buffer[8][256];

static int enter_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/colac-data-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int leave_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

/* FOLDER/name; good for the next seven calls. */
static const char *in_folder(const char *name) {
    static int next;
    char *path = path_buffer[next++ % COUNT_OF(path_buffer)];
    snprintf(path, sizeof path_buffer[0], "%s/%s", folder, name);
    return path;
}

static const char *write_bytes(const char *name, const void *bytes, size_t length) {
    const char *path = in_folder(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    return path;
}

static int entries_of(const char *path) {
    DIR *listing = opendir(path);
    int count = -2; /* . and .. */
    assert_non_null(listing);
    while (readdir(listing))
        count++;
    closedir(listing);
    return count;
}

/* The printed diagnostics; they are forgotten. */
static const char *message_of(Diagnostics *diagnostics) {
    static char text[8192];
    memset(text, 0, sizeof text);
    FILE *stream = fmemopen(text, sizeof text - 1, "w");
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    return text;
}

static void assert_says(Diagnostics *diagnostics, const char *file, const char *what) {
    assert_int_not_equal(diagnostics_errors(diagnostics), 0);
    const char *message = message_of(diagnostics);
    if (!strstr(message, what) || (file && strncmp(message, file, strlen(file)) != 0) ||
        !strstr(message, "help: "))
        fail_msg("wanted `%s` about %s and a remedy, but it says: %s", what, file, message);
}

static void assert_silent(Diagnostics *diagnostics) {
    if (diagnostics_errors(diagnostics))
        fail_msg("%s", message_of(diagnostics));
}

/* ---- files that appear whole -------------------------------------------------------- */

static void a_new_file_appears_when_published(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    const char *path = write_bytes("note", "old", 3);
    NewFile *file = new_file_open(path, diagnostics);
    new_file_printf(file, "%s", "new text");
    assert_true(new_file_sync(file, diagnostics));
    size_t length;
    char *text = read_file(path, 100, &length);
    assert_string_equal(text, "old");
    free(text);
    assert_true(new_file_publish(file, diagnostics));
    text = read_file(path, 100, &length);
    assert_string_equal(text, "new text");
    free(text);

    file = new_file_open(path, diagnostics);
    new_file_write(file, "lost", 4);
    new_file_abandon(file);
    text = read_file(path, 100, &length);
    assert_string_equal(text, "new text");
    free(text);
    assert_int_equal(entries_of(folder), 1);
    assert_silent(diagnostics);
    diagnostics_free(diagnostics);
}

static void a_file_that_cannot_be_made_is_a_sentence(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    assert_null(new_file_open(in_folder("no/such/file"), diagnostics));
    assert_says(diagnostics, folder, "No such file");
    assert_null(new_file_open(folder, diagnostics));
    assert_says(diagnostics, folder, "Is a directory");
    write_bytes("file", "", 0);
    assert_false(make_folder(in_folder("file/below"), diagnostics));
    assert_says(diagnostics, folder, "Not a directory");
    assert_true(make_folder(in_folder("a/b/c"), diagnostics));
    assert_true(make_folder(in_folder("a/b/c/"), diagnostics));
    diagnostics_free(diagnostics);
}

static bool write_megabytes(const char *path, int count, Diagnostics *diagnostics) {
    static const unsigned char megabyte[1 << 20];
    NewFile *file = new_file_open(path, diagnostics);
    for (int i = 0; file && i < count; i++)
        new_file_write(file, megabyte, sizeof megabyte);
    return file && new_file_publish(file, diagnostics);
}

static void a_full_disk_leaves_nothing(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    assert_false(write_megabytes("/dev/full", 3, diagnostics));
    assert_says(diagnostics, "/dev/full", "No space left");
    const char *path = write_bytes("weights", "old", 3);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {2 << 20, 2 << 20};
        setrlimit(RLIMIT_FSIZE, &limit);
        bool written = write_megabytes(path, 3, diagnostics);
        _exit(written || !strstr(message_of(diagnostics), "File too large"));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    size_t length;
    char *text = read_file(path, 100, &length);
    assert_string_equal(text, "old");
    free(text);
    assert_int_equal(entries_of(folder), 1);
    diagnostics_free(diagnostics);
}

/* ---- safetensors -------------------------------------------------------------------- */

/* Length, header, data as a file. */
static const char *write_safetensors(const char *name, const char *header, const void *data,
                                     size_t bytes) {
    static unsigned char file[4096];
    uint64_t length = strlen(header);
    assert_true(8 + length + bytes <= sizeof file);
    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)(length >> 8 * i);
    memcpy(file + 8, header, length);
    if (bytes)
        memcpy(file + 8 + length, data, bytes);
    return write_bytes(name, file, 8 + length + bytes);
}

static void every_float_type_is_read(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    /* An odd header length: nothing in the data section is aligned. */
    static const char header[] =
        "{\"h\":{\"dtype\":\"F16\",\"shape\":[6],\"data_offsets\":[0,12]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[12,18]},"
        "\"f\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[18,26]},"
        "\"d\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[26,34]},"
        "\"i\":{\"dtype\":\"I64\",\"shape\":[0,5],\"data_offsets\":[34,34]},"
        "\"__metadata__\":{\"format\":\"pt\"}}  ";
    static const unsigned char data[34] = {
        0x00, 0x3c, 0x01, 0x00, 0xff, 0x7b, 0x00, 0xc0, 0x55, 0x35, 0x00, 0xfc, /* F16 */
        0x80, 0x3f, 0x49, 0xc0, 0x80, 0x7f,                                     /* BF16 */
        0x00, 0x00, 0xc0, 0x3f, 0xdb, 0x0f, 0x49, 0x40,                         /* F32 */
        0x18, 0x2d, 0x44, 0x54, 0xfb, 0x21, 0x09, 0x40};                        /* F64 */
    const char *path = write_safetensors("types", header, data, sizeof data);
    TensorFile *file = tensor_file_open(path, diagnostics);
    assert_non_null(file);
    assert_int_equal(tensor_file_count(file), 5);
    double values[6];
    tensor_file_read(file, tensor_file_find(file, "h"), 0, 6, values);
    static const double halves[] = {1, 0x1p-24, 65504, -2, 0x1.554p-2, -INFINITY};
    for (int i = 0; i < 6; i++)
        assert_true(values[i] == halves[i]);
    tensor_file_read(file, tensor_file_find(file, "b"), 0, 3, values);
    assert_true(values[0] == 1 && values[1] == -3.140625 && values[2] == INFINITY);
    tensor_file_read(file, tensor_file_find(file, "f"), 1, 1, values);
    assert_true(values[0] == (double)3.14159274f);
    tensor_file_read(file, tensor_file_find(file, "d"), 0, 1, values);
    assert_true(values[0] == 3.141592653589793);
    const Tensor *integers = tensor_file_find(file, "i");
    assert_int_equal(integers->dtype, TENSOR_OTHER);
    assert_int_equal(integers->rank, 2);
    assert_int_equal(integers->elements, 0);
    assert_null(tensor_file_find(file, "__metadata__"));
    tensor_file_close(file);
    diagnostics_free(diagnostics);
}

static void what_is_written_is_read_back(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    const char *path = in_folder("out");
    Tensor tensors[3] = {
        {.name = "a \"quoted\" name", .dtype = TENSOR_F32, .rank = 2, .shape = {3, 2000}},
        {.name = "scalar", .dtype = TENSOR_F64, .rank = 0},
        {.name = "doubles", .dtype = TENSOR_F64, .rank = 1, .shape = {5}}};
    static double values[6000];
    for (int i = 0; i < 6000; i++)
        values[i] = i / 7.0 - 300;
    TensorWriter *writer = tensor_writer_open(path, tensors, 3, diagnostics);
    tensor_writer_put(writer, values, 4500);
    tensor_writer_put(writer, values + 4500, 1500);
    tensor_writer_put(writer, values + 1, 1);
    tensor_writer_put(writer, values + 2, 5);
    assert_true(new_file_publish(tensor_writer_finish(writer, diagnostics), diagnostics));
    size_t length;
    char *bytes = read_file(path, 1 << 20, &length);
    assert_int_equal(bytes[0] % 8, 0); /* the data section is aligned */
    assert_int_equal(length, 8 + (unsigned char)bytes[0] + 256 * (unsigned char)bytes[1] +
                                 4 * 6000 + 8 + 40);
    free(bytes);
    TensorFile *file = tensor_file_open(path, diagnostics);
    assert_non_null(file);
    static double back[6000];
    const Tensor *tensor = tensor_file_find(file, tensors[0].name);
    assert_true(tensor->rank == 2 && tensor->shape[0] == 3 && tensor->shape[1] == 2000);
    tensor_file_read(file, tensor, 0, 6000, back);
    for (int i = 0; i < 6000; i++)
        assert_true(back[i] == (double)(float)values[i]);
    tensor_file_read(file, tensor_file_find(file, "scalar"), 0, 1, back);
    assert_true(back[0] == values[1]);
    tensor_file_read(file, tensor_file_find(file, "doubles"), 0, 5, back);
    assert_memory_equal(back, values + 2, 40);
    tensor_file_close(file);
    assert_silent(diagnostics);
    diagnostics_free(diagnostics);
}

#define ENTRY(dtype, shape, offsets)                                                           \
    "{\"w\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void damaged_weights_are_sentences(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *says;
    } cases[] = {
        {"", 0, "its header would have 0 bytes"},
        {"[1]", 0, "no JSON object"},
        {"{\"w\":", 0, "no JSON object"},
        {"{} x", 0, "no JSON object"},
        {"{\"w\":1}", 0, "dtype"},
        {"{\"w\":{}}", 0, "dtype"},
        {ENTRY("\"F12\"", "[1]", "[0,4]"), 4, "`F12`, which is not known"},
        {ENTRY("7", "[1]", "[0,4]"), 4, "which is not known"},
        {ENTRY("\"F32\"", "1", "[0,4]"), 4, "no shape"},
        {ENTRY("\"F32\"", "[1.5]", "[0,4]"), 4, "a shape that is none"},
        {ENTRY("\"F32\"", "[-1]", "[0,4]"), 4, "a shape that is none"},
        {ENTRY("\"F32\"", "[4611686018427387904,8]", "[0,4]"), 4, "a shape that is none"},
        {ENTRY("\"F32\"", "[2305843009213693953]", "[0,4]"), 4, "an extent of 4 bytes"},
        {ENTRY("\"F32\"", "[1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "13 axes"},
        {ENTRY("\"F32\"", "[2]", "[0,4]"), 4, "2 elements of 4 bytes"},
        {ENTRY("\"F32\"", "[1]", "[0]"), 4, "no pair of data_offsets"},
        {ENTRY("\"F32\"", "[1]", "[0,\"4\"]"), 4, "no pair of data_offsets"},
        {ENTRY("\"F32\"", "[1]", "[0,4]"), 3, "cut short"},
        {ENTRY("\"F32\"", "[1]", "[-4,0]"), 4, "lies at bytes"},
        {ENTRY("\"F32\"", "[1]", "[4,0]"), 4, "lies at bytes"},
        {ENTRY("\"F32\"", "[1]", "[4,8]"), 8, "begins at byte 4"},
        {ENTRY("\"F32\"", "[1]", "[0,4]"), 5, "1 bytes follow"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
         3,
         "`b` begins at byte 1 of the data section, but what stands before it ends at byte 2"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
         4, "no JSON object"},
    };
    Diagnostics *diagnostics = diagnostics_new();
    static const unsigned char zeros[16];
    for (int i = 0; i < COUNT_OF(cases); i++) {
        const char *path = write_safetensors("bad", cases[i].header, zeros, cases[i].data);
        assert_null(tensor_file_open(path, diagnostics));
        assert_says(diagnostics, path, cases[i].says);
    }
    assert_null(tensor_file_open(write_bytes("short", "1234567", 7), diagnostics));
    assert_says(diagnostics, folder, "it has 7 bytes");
    assert_null(tensor_file_open(in_folder("none"), diagnostics));
    assert_says(diagnostics, folder, "No such file");
    assert_null(tensor_file_open(folder, diagnostics));
    assert_says(diagnostics, folder, "Is a directory");
    diagnostics_free(diagnostics);
}

static uint64_t random_state;
static uint64_t next_random(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 33;
}

/* Changes, cuts or repeats bytes of a sound file; what still opens is read whole. */
static void mutated_weights_never_crash(void **state) {
    (void)state;
    static const char header[] =
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}";
    enum { HEADER = sizeof header - 1, SIZE = 8 + HEADER + 32 };
    unsigned char sound[SIZE] = {HEADER}, mutant[2 * SIZE];
    memcpy(sound + 8, header, HEADER);
    random_state = 10940;
    int opened = 0;
    for (int round = 0; round < 5000; round++) {
        size_t length = SIZE;
        memcpy(mutant, sound, SIZE);
        for (uint64_t edits = next_random() % 3 + 1; edits; edits--) {
            size_t at = next_random() % length;
            switch (next_random() % 5) {
            case 0:
                mutant[at] = (unsigned char)next_random();
                break;
            case 1:
                mutant[at] ^= (unsigned char)(1 << next_random() % 8);
                break;
            case 2:
                mutant[at] = (unsigned char)"0123456789[]{},:\"-"[next_random() % 18];
                break;
            case 3:
                length = at + 1;
                break;
            case 4:
                if (length + 4 < sizeof mutant) {
                    memmove(mutant + at + 4, mutant + at, length - at);
                    length += 4;
                }
                break;
            }
        }
        Diagnostics *diagnostics = diagnostics_new();
        TensorFile *file = tensor_file_open(write_bytes("mutant", mutant, length), diagnostics);
        for (int i = 0; file && i < tensor_file_count(file); i++) {
            const Tensor *tensor = tensor_file_at(file, i);
            double values[64];
            assert_true(tensor->elements <= COUNT_OF(values));
            if (tensor->dtype != TENSOR_OTHER)
                tensor_file_read(file, tensor, 0, tensor->elements, values);
        }
        opened += file != NULL;
        assert_true(!file == (diagnostics_errors(diagnostics) > 0));
        tensor_file_close(file);
        diagnostics_free(diagnostics);
    }
    assert_in_range(opened, 100, 4900); /* both outcomes were met */
}

/* 100 MB whose header is one long nest of what costs a parser most memory. */
static void large_garbage_is_refused_in_little_memory(void **state) {
    (void)state;
    static const char *const patterns[] = {"[", "{\"\":", "0,", "\"a\","};
    Diagnostics *diagnostics = diagnostics_new();
    for (int i = 0; i < COUNT_OF(patterns); i++) {
        const char *path = in_folder("garbage");
        FILE *file = fopen(path, "wb");
        uint64_t length = 31 << 20;
        fwrite(&length, sizeof length, 1, file);
        fputc('[', file);
        for (size_t at = 0; at < length; at += strlen(patterns[i]))
            fputs(patterns[i], file);
        fclose(file);
        assert_int_equal(truncate(path, 100000000), 0);
        assert_null(tensor_file_open(path, diagnostics));
        assert_says(diagnostics, path, "its header");
    }
    uint64_t length = 99000000;
    const char *path = write_bytes("garbage", &length, sizeof length);
    assert_int_equal(truncate(path, 100000000), 0);
    assert_null(tensor_file_open(path, diagnostics));
    assert_says(diagnostics, path, "at most");
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    assert_in_range(usage.ru_maxrss, 1, 512 * 1024); /* KiB */
    diagnostics_free(diagnostics);
}

/* ---- token data --------------------------------------------------------------------- */

static const SampleShape shape4 = {.positions = 4, .span = 5, .below = 1000};

static const char *write_raw(const char *name, int first, int count) {
    static uint16_t tokens[1 << 16];
    for (int i = 0; i < count; i++)
        tokens[i] = (uint16_t)(first + i);
    return write_bytes(name, tokens, (size_t)count * 2);
}

static const char *write_llmc(const char *name, int32_t magic, int32_t version, int32_t stated,
                              int first, int count) {
    static unsigned char file[1024 + 4096];
    int width = magic == 20240801 ? 4 : 2;
    memset(file, 0, sizeof file);
    int32_t header[3] = {magic, version, stated};
    memcpy(file, header, sizeof header);
    for (int i = 0; i < count; i++) {
        int32_t token = first + i;
        memcpy(file + 1024 + i * width, &token, (size_t)width);
    }
    return write_bytes(name, file, 1024 + (size_t)(count * width));
}

static void assert_rows(TokenData *data, SampleOrder order, int64_t sample0, int64_t rows,
                        int64_t next, const int32_t *wanted) {
    int32_t values[64];
    Diagnostics *diagnostics = diagnostics_new();
    assert_true(token_data_fill(data, order, 7, sample0, rows, 4, next, values, diagnostics));
    assert_memory_equal(values, wanted, (size_t)(rows * 4) * sizeof *values);
    diagnostics_free(diagnostics);
}

static void sequential_rows_follow_each_other(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    /* 13 tokens: (13 - 1) / 4 samples, as in batch i, row j: token (i*B + j) * S. */
    TokenData *data =
        token_data_open(write_raw("raw", 100, 13), SPLIT_ALL, shape4, diagnostics);
    assert_non_null(data);
    assert_int_equal(token_data_tokens(data), 13);
    assert_int_equal(token_data_samples(data), 3);
    for (int64_t g = 0; g < 7; g++)
        assert_int_equal(token_data_start(data, ORDER_SEQUENTIAL, 0, g), g % 3 * 4);
    assert_rows(data, ORDER_SEQUENTIAL, 0, 2, 0,
                (int32_t[]){100, 101, 102, 103, 104, 105, 106, 107});
    assert_rows(data, ORDER_SEQUENTIAL, 2, 2, 1,
                (int32_t[]){109, 110, 111, 112, 101, 102, 103, 104}); /* wraps */
    token_data_close(data);
    diagnostics_free(diagnostics);
}

/* The .idx of one .bin: sequences of the given lengths. */
static void write_megatron_index(const char *name, int dtype, int width, const int32_t *lengths,
                                 int64_t count) {
    unsigned char file[512] = "MMIDIDX";
    int64_t version = 1, documents = count + 1, offset = 0;
    size_t at = 34;
    memcpy(file + 9, &version, 8);
    file[17] = (unsigned char)dtype;
    memcpy(file + 18, &count, 8);
    memcpy(file + 26, &documents, 8);
    for (int64_t i = 0; i < count; i++, at += 4)
        memcpy(file + at, &lengths[i], 4);
    for (int64_t i = 0; i < count; i++, at += 8) {
        memcpy(file + at, &offset, 8);
        offset += lengths[i] * width;
    }
    for (int64_t i = 0; i <= count; i++, at += 8)
        memcpy(file + at, &i, 8);
    write_bytes(name, file, at);
}

static void every_layout_is_read(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    static const int32_t wanted[] = {304, 305, 306, 307};
    const char *paths[4] = {write_raw("raw", 300, 9),
                            write_llmc("llmc", 20240520, 1, 9, 300, 9),
                            write_llmc("llama3", 20240801, 7, 9, 300, 9)};
    int32_t tokens[9], lengths[] = {2, 0, 7};
    for (int i = 0; i < 9; i++)
        tokens[i] = 300 + i;
    paths[3] = write_bytes("megatron.bin", tokens, sizeof tokens);
    write_megatron_index("megatron.idx", 4, 4, lengths, 3);
    for (int i = 0; i < COUNT_OF(paths); i++) {
        TokenData *data = token_data_open(paths[i], SPLIT_ALL, shape4, diagnostics);
        assert_silent(diagnostics);
        assert_int_equal(token_data_tokens(data), 9);
        assert_int_equal(token_data_samples(data), 2);
        assert_rows(data, ORDER_SEQUENTIAL, 1, 1, 0, wanted);
        token_data_close(data);
    }
    TokenData *data = /* the pair by its other name */
        token_data_open(in_folder("megatron.idx"), SPLIT_ALL, shape4, diagnostics);
    assert_non_null(data);
    token_data_close(data);
    diagnostics_free(diagnostics);
}

static void assert_refused(const char *path, const char *says) {
    Diagnostics *diagnostics = diagnostics_new();
    assert_null(token_data_open(path, SPLIT_ALL, shape4, diagnostics));
    assert_says(diagnostics, folder, says);
    diagnostics_free(diagnostics);
}

static void damaged_shards_are_sentences(void **state) {
    (void)state;
    assert_refused(in_folder("none.bin"), "No such file");
    assert_refused(write_bytes("empty.bin", "", 0), "the file is empty");
    assert_refused(write_bytes("odd", "abc", 3), "no whole number of uint16 tokens");
    assert_refused(write_raw("short", 0, 4), "it has 4 tokens and no place for one sample");
    assert_refused(write_llmc("version", 20240520, 2, 9, 0, 9),
                   "of version 2; version 1 is read");
    assert_refused(write_llmc("cut", 20240520, 1, 10, 0, 9), "its header counts 10 tokens");
    assert_refused(write_llmc("long", 20240520, 1, 8, 0, 9), "its header counts 8 tokens");
    assert_refused(write_llmc("negative", 20240520, 1, -1, 0, 9),
                   "its header counts -1 tokens");
    int32_t magic[3] = {20240520, 1, 2};
    assert_refused(write_bytes("stub", magic, sizeof magic), "its header counts 2 tokens");
    assert_refused(write_llmc("none", 20240520, 1, 0, 0, 0), "it has 0 tokens");
    assert_int_equal(mkdir(in_folder("folder"), 0777), 0);
    assert_refused(in_folder("folder"), "no .bin file");
}

static void damaged_megatron_pairs_are_sentences(void **state) {
    (void)state;
    int32_t lengths[] = {4, 5}, negative[] = {-4, 13};
    write_raw("m.bin", 0, 9);
    const char *path = in_folder("m.bin");
    write_bytes("m.idx", "MMIDIDX", 7);
    assert_refused(path, "no Megatron index");
    write_megatron_index("m.idx", 7, 4, lengths, 2);
    assert_refused(path, "with dtype 7");
    write_megatron_index("m.idx", 4, 4, lengths, 2);
    assert_refused(path, "counts 9 tokens of 4 bytes, but the file has 18 bytes");
    write_megatron_index("m.idx", 8, 4, lengths, 2); /* offsets of another width */
    assert_refused(path, "sequence 1 begins at byte 16");
    write_megatron_index("m.idx", 8, 2, negative, 2);
    assert_refused(path, "-4 tokens");
    write_megatron_index("m.idx", 8, 2, lengths, 2);
    assert_int_equal(truncate(in_folder("m.idx"), 50), 0);
    assert_refused(path, "it counts 2 sequences in 50 bytes");
}

static void ids_past_the_vocabulary_are_placed(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    assert_null(token_data_open(write_raw("ids", 994, 9), SPLIT_ALL, shape4, diagnostics));
    assert_says(diagnostics, in_folder("ids"),
                "token 6 (at byte 12) is 1000, which is not in the vocabulary of 1000");

    /* Too large to be checked at once: found when a batch holds it. */
    const char *path = in_folder("large");
    FILE *file = fopen(path, "wb");
    fseek(file, 10000000 * 2, SEEK_SET);
    fwrite("\xe8\x03", 1, 2, file);
    fclose(file);
    TokenData *data = token_data_open(path, SPLIT_ALL, shape4, diagnostics);
    assert_non_null(data);
    int32_t values[8];
    assert_true(
        token_data_fill(data, ORDER_SEQUENTIAL, 0, 2499998, 2, 4, 0, values, diagnostics));
    assert_false(
        token_data_fill(data, ORDER_SEQUENTIAL, 0, 2499998, 2, 4, 1, values, diagnostics));
    assert_says(diagnostics, path, "token 10000000 (at byte 20000000) is 1000");
    token_data_close(data);
    diagnostics_free(diagnostics);
}

static void a_folder_has_splits(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    assert_int_equal(mkdir(in_folder("set"), 0777), 0);
    write_llmc("set/x_train_001.bin", 20240520, 1, 9, 200, 9);
    write_llmc("set/x_train_000.bin", 20240520, 1, 7, 100, 7);
    write_bytes("set/notes.txt", "no shard", 8);
    const char *path = in_folder("set");
    assert_false(token_data_has_validation(path));
    write_llmc("set/x_val_000.bin", 20240520, 1, 5, 900, 5);
    assert_true(token_data_has_validation(path));
    assert_false(token_data_has_validation(in_folder("set/x_val_000.bin")));

    TokenData *data = token_data_open(path, SPLIT_TRAIN, shape4, diagnostics);
    assert_int_equal(token_data_tokens(data), 16);
    assert_int_equal(token_data_samples(data), 3); /* none crosses from file to file */
    assert_int_equal(token_data_start(data, ORDER_SEQUENTIAL, 0, 1), 7);
    assert_rows(data, ORDER_SEQUENTIAL, 0, 3, 1,
                (int32_t[]){101, 102, 103, 104, 201, 202, 203, 204, 205, 206, 207, 208});
    token_data_close(data);
    data = token_data_open(path, SPLIT_VALIDATION, shape4, diagnostics);
    assert_int_equal(token_data_tokens(data), 5);
    token_data_close(data);
    data = token_data_open(path, SPLIT_ALL, shape4, diagnostics);
    assert_int_equal(token_data_tokens(data), 21);
    token_data_close(data);
    assert_silent(diagnostics);
    diagnostics_free(diagnostics);
}

static void shuffled_epochs_are_permutations(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 3, 4, 5, 16, 17, 64, 1000, 4097, 16000};
    static unsigned char seen[16000];
    Diagnostics *diagnostics = diagnostics_new();
    for (int i = 0; i < COUNT_OF(counts); i++) {
        int count = counts[i], same = 0, in_place = 0;
        SampleShape shape = {.positions = 4, .span = 5, .below = 1 << 16};
        TokenData *data =
            token_data_open(write_raw("raw", 0, 4 * count + 1), SPLIT_ALL, shape, diagnostics);
        for (int epoch = 0; epoch < 3; epoch++) {
            memset(seen, 0, sizeof seen);
            for (int g = 0; g < count; g++) {
                int64_t start =
                    token_data_start(data, ORDER_SHUFFLED, 42, (int64_t)epoch * count + g);
                assert_int_equal(start % 4, 0);
                assert_in_range(start / 4, 0, count - 1);
                assert_int_equal(seen[start / 4]++, 0);
                same += epoch > 0 && start == token_data_start(data, ORDER_SHUFFLED, 42, g);
                in_place += start / 4 == g;
            }
        }
        if (count >= 64) { /* of a random permutation about one element is in place */
            assert_in_range(same, 0, 20);
            assert_in_range(in_place, 0, 20);
        }
        token_data_close(data);
    }
    diagnostics_free(diagnostics);
}

/* A sample is a function of its global index: not of B, nor of what was read before. */
static void samples_do_not_depend_on_the_batch(void **state) {
    (void)state;
    Diagnostics *diagnostics = diagnostics_new();
    SampleShape shape = {.positions = 4, .span = 5, .below = 1 << 16};
    TokenData *data = token_data_open(write_raw("raw", 0, 4001), SPLIT_ALL, shape, diagnostics);
    int32_t by_one[24][4], by_eight[24][4];
    int differs = 0;
    for (int order = ORDER_SEQUENTIAL; order <= ORDER_SHUFFLED; order++) {
        for (int g = 23; g >= 0; g--)
            token_data_fill(data, (SampleOrder)order, 5, 990 + g, 1, 4, 1, by_one[g],
                            diagnostics);
        for (int g = 0; g < 24; g += 8)
            token_data_fill(data, (SampleOrder)order, 5, 990 + g, 8, 4, 1, by_eight[g],
                            diagnostics);
        assert_memory_equal(by_one, by_eight, sizeof by_one);
    }
    for (int g = 0; g < 24; g++)
        differs += token_data_start(data, ORDER_SHUFFLED, 5, g) !=
                   token_data_start(data, ORDER_SHUFFLED, 6, g);
    assert_in_range(differs, 20, 24); /* another seed, another order */
    token_data_close(data);
    diagnostics_free(diagnostics);
}

static void inputs_give_the_sample_shape(void **state) {
    (void)state;
    Module *module = module_new();
    AxisId b = module_axis(module, "B", 2, (Span){0}),
           c = module_axis(module, "C", 8, (Span){0});
    Input context = {.name = "context", .axis_count = 2, .axes = {b, c}, .below = 300};
    Input target = {.name = "target", .axis_count = 1, .axes = {b}, .below = 256, .next = 8};
    array_push(&module->inputs, context);
    array_push(&module->inputs, target);
    SampleShape shape = sample_shape(module);
    assert_int_equal(shape.positions, 8);
    assert_int_equal(shape.span, 9);
    assert_int_equal(shape.below, 256);
    array_free(&module->inputs);
    module_free(module);
}

/* ---- packing ------------------------------------------------------------------------ */

/* Words that all differ, so that every block is known wherever it went. */
static unsigned char *unique_text(size_t bytes) {
    unsigned char *text = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        text[i] = (unsigned char)(i / 4 >> i % 4 * 8);
    return text;
}

/* All tokens of DIR/split_*.bin, checked against their headers. */
static unsigned char *read_split(const char *directory, const char *split, int64_t most,
                                 size_t *count) {
    unsigned char *all = malloc(1);
    *count = 0;
    for (int shard = 0;; shard++) {
        char path[300];
        snprintf(path, sizeof path, "%s/%s_%03d.bin", directory, split, shard);
        size_t length;
        char *bytes = read_file(path, 1 << 26, &length);
        if (!bytes)
            return all;
        int32_t header[3];
        memcpy(header, bytes, sizeof header);
        assert_int_equal(header[0], 20240520);
        assert_int_equal(header[1], 1);
        assert_int_equal((size_t)header[2] * 2 + 1024, length);
        assert_in_range(header[2], 1, most);
        all = realloc(all, *count + (size_t)header[2]);
        for (int32_t i = 0; i < header[2]; i++) {
            assert_int_equal(bytes[1024 + 2 * i + 1], 0);
            all[(*count)++] = (unsigned char)bytes[1024 + 2 * i];
        }
        free(bytes);
    }
}

/* Train and validation together are the text, in order. */
static void assert_split_of(const char *directory, const unsigned char *text, size_t bytes,
                            int64_t most, const PackReport *report) {
    size_t trained, held_out, at = 0, other = 0;
    unsigned char *train = read_split(directory, "train", most, &trained);
    unsigned char *validation = read_split(directory, "val", most, &held_out);
    assert_int_equal(trained, report->train_tokens);
    assert_int_equal(held_out, report->validation_tokens);
    assert_int_equal(trained + held_out, bytes);
    assert_true(bytes < 20 || held_out > 0);
    while (at + other < bytes) { /* words differ: the next word says which of the two it is */
        const unsigned char *next = text + at + other;
        size_t word = trained - at < 4 ? trained - at : 4;
        bool trains = word && memcmp(train + at, next, word) == 0;
        if (!trains)
            word = held_out - other < 4 ? held_out - other : 4;
        if (!trains && (!word || memcmp(validation + other, next, word) != 0))
            fail_msg("byte %zu of the text is in neither split", at + other);
        *(trains ? &at : &other) += word;
    }
    free(train);
    free(validation);
}

static void packed_bytes_are_the_text(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 100, 65536, 65540, 200000, 4 << 20};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        Diagnostics *diagnostics = diagnostics_new();
        unsigned char *text = unique_text(sizes[i]);
        const char *source = write_bytes("text", text, sizes[i]);
        char name[32];
        snprintf(name, sizeof name, "set%d", i);
        const char *directory = in_folder(name);
        PackReport report;
        assert_true(data_pack_shards(&source, 1, directory, 1 << 20, &report, diagnostics));
        assert_silent(diagnostics);
        assert_split_of(directory, text, sizes[i], 1 << 20, &report);
        if (sizes[i] >= 65536) /* about a twentieth, as far as blocks allow */
            assert_in_range(report.validation_tokens, sizes[i] / 50, sizes[i] / 8);
        assert_int_equal(entries_of(directory), report.files + 1); /* and data.json */
        free(text);
        diagnostics_free(diagnostics);
    }
}

static void append_gzip(const char *path, const unsigned char *bytes, size_t length) {
    gzFile file = gzopen(path, "ab");
    assert_int_equal(gzwrite(file, bytes, (unsigned)length), length);
    gzclose(file);
}

/* A dictzip file is a gzip file with a table in an extra field of its header. */
static void write_dictzip(const char *path, unsigned char *bytes, size_t length) {
    unsigned char extra[] = {'R', 'A', 6, 0, 1, 0, 0, 64, 0, 0};
    z_stream stream = {0};
    gz_header header = {.extra = extra, .extra_len = sizeof extra, .os = 3};
    assert_int_equal(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY),
                     Z_OK);
    deflateSetHeader(&stream, &header);
    size_t room = length + 1000;
    unsigned char *packed = malloc(room);
    stream.next_in = bytes;
    stream.avail_in = (unsigned)length;
    stream.next_out = packed;
    stream.avail_out = (unsigned)room;
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    FILE *file = fopen(path, "wb");
    fwrite(packed, 1, room - stream.avail_out, file);
    fclose(file);
    deflateEnd(&stream);
    free(packed);
}

static void compressed_texts_are_the_same_text(void **state) {
    (void)state;
    enum { PIECE = 100000 };
    Diagnostics *diagnostics = diagnostics_new();
    unsigned char *text = unique_text(4 * PIECE);
    append_gzip(in_folder("a.gz"), text, PIECE); /* two members */
    append_gzip(in_folder("a.gz"), text + PIECE, PIECE);
    write_dictzip(in_folder("b.dz"), text + 2 * PIECE, PIECE);
    write_bytes("c", text + 3 * PIECE, PIECE);
    const char *paths[3] = {in_folder("a.gz"), in_folder("b.dz"), in_folder("c")};
    PackReport report;
    assert_true(data_pack(paths, 3, in_folder("set/"), &report, diagnostics));
    assert_split_of(in_folder("set"), text, 4 * PIECE, 1 << 20, &report);
    assert_silent(diagnostics);
    diagnostics_free(diagnostics);
    free(text);
}

static void assert_pack_refused(const char *const *paths, int count, const char *directory,
                                const char *says) {
    Diagnostics *diagnostics = diagnostics_new();
    PackReport report;
    int before = entries_of(folder);
    assert_false(data_pack(paths, count, directory, &report, diagnostics));
    assert_says(diagnostics, folder, says);
    assert_int_equal(entries_of(folder), before); /* nothing is left, temporary or not */
    diagnostics_free(diagnostics);
}

static void what_cannot_be_packed_leaves_nothing(void **state) {
    (void)state;
    unsigned char *text = unique_text(300000);
    const char *good = write_bytes("good", text, 300000);
    const char *set = in_folder("set");
    const char *missing[] = {good, in_folder("missing")};
    assert_pack_refused(missing, 2, set, "No such file");
    const char *directory = folder;
    assert_pack_refused(&directory, 1, set, "Is a directory");
    const char *empty = write_bytes("empty", "", 0);
    assert_pack_refused(&empty, 1, set, "there is no text");
    append_gzip(in_folder("cut.gz"), text, 300000);
    assert_int_equal(truncate(in_folder("cut.gz"), 20000), 0);
    const char *cut = in_folder("cut.gz");
    assert_pack_refused(&cut, 1, set, "the compressed text is cut short");
    FILE *file = fopen(in_folder("cut.gz"), "r+b");
    fseek(file, 10, SEEK_SET);
    fwrite("\xff\xff\xff\xff\xff\xff", 1, 6, file);
    fclose(file);
    assert_pack_refused(&cut, 1, set, "the text cannot be read");
    assert_pack_refused(&good, 1, in_folder("good"), "there is something there");
    assert_pack_refused(&good, 1, in_folder("no/place"), "the folder cannot be made");
    set = in_folder("set");
    assert_int_equal(mkdir(set, 0777), 0);
    write_bytes("set/mine", "keep", 4);
    assert_pack_refused(&good, 1, set, "there is something there");
    free(text);
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, enter_folder, leave_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(a_new_file_appears_when_published),
        IN_FOLDER(a_file_that_cannot_be_made_is_a_sentence),
        IN_FOLDER(a_full_disk_leaves_nothing),
        IN_FOLDER(every_float_type_is_read),
        IN_FOLDER(what_is_written_is_read_back),
        IN_FOLDER(damaged_weights_are_sentences),
        IN_FOLDER(mutated_weights_never_crash),
        IN_FOLDER(large_garbage_is_refused_in_little_memory),
        IN_FOLDER(sequential_rows_follow_each_other),
        IN_FOLDER(every_layout_is_read),
        IN_FOLDER(damaged_shards_are_sentences),
        IN_FOLDER(damaged_megatron_pairs_are_sentences),
        IN_FOLDER(ids_past_the_vocabulary_are_placed),
        IN_FOLDER(a_folder_has_splits),
        IN_FOLDER(shuffled_epochs_are_permutations),
        IN_FOLDER(samples_do_not_depend_on_the_batch),
        cmocka_unit_test(inputs_give_the_sample_shape),
        IN_FOLDER(packed_bytes_are_the_text),
        IN_FOLDER(compressed_texts_are_the_same_text),
        IN_FOLDER(what_cannot_be_packed_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
