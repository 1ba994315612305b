/* runtime/shards.c: token data, memory-mapped; which tokens are which sample. */
#include "runtime/runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LLMC_HEADER_BYTES = 1024, LLMC_MAGIC = 20240520, LLAMA3_MAGIC = 20240801 };
enum { MEGATRON_HEADER_BYTES = 34 };
/* Files up to this size are checked whole when they are opened. */
#define CHECKED_AT_OPEN (INT64_C(16) << 20)

typedef enum TokenType { TOKEN_U8, TOKEN_U16, TOKEN_I16, TOKEN_I32, TOKEN_I64 } TokenType;
static const int token_bytes[] = {1, 2, 2, 4, 8};

typedef struct Shard {
    const char *path;
    const unsigned char *bytes; /* the file, mapped */
    int64_t size;
    int64_t data; /* where the tokens begin */
    int64_t tokens;
    TokenType type;
    int64_t first_sample, samples; /* counted through all shards */
    int64_t first_token;
} Shard;

struct TokenData {
    Arena *arena;
    SampleShape shape;
    ARRAY(Shard) shards;
    int64_t tokens, samples;
};

SampleShape sample_shape(const Module *module) {
    SampleShape shape = {.positions = 1, .span = 1, .below = INT64_MAX};
    for (int64_t i = 0; i < module->inputs.count; i++) {
        const Input *input = &module->inputs.data[i];
        int64_t width = axes_elements(module, input->axes + 1, input->axis_count - 1);
        if (i == 0)
            shape.positions = width;
        if (input->next + width > shape.span)
            shape.span = input->next + width;
        if (input->below < shape.below)
            shape.below = input->below;
    }
    return shape;
}

/* ---- files -------------------------------------------------------------------------- */

static bool refuse(const char *path, Diagnostics *diagnostics, const char *remedy,
                   const char *format, ...) PRINTF_LIKE(4, 5);
static bool refuse(const char *path, Diagnostics *diagnostics, const char *remedy,
                   const char *format, ...) {
    Text text = {0};
    va_list args;
    va_start(args, format);
    text_vprintf(&text, format, args);
    va_end(args);
    help(error_in_file(diagnostics, path, "%s", text.data), "%s", remedy);
    text_free(&text);
    return false;
}

static const unsigned char *map_file(const char *path, int64_t *size,
                                     Diagnostics *diagnostics) {
    static const char remedy[] = "`--data` takes a shard, a folder of shards or a raw uint16 "
                                 "file; `colac data pack` makes "
                                 "shards of text";
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    int error = descriptor < 0 || fstat(descriptor, &status) ? errno : 0;
    if (!error && !S_ISREG(status.st_mode))
        error = ESPIPE;
    const unsigned char *bytes = NULL;
    if (!error && status.st_size > 0) {
        void *mapped =
            mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        error = mapped == MAP_FAILED ? errno : 0;
        bytes = error ? NULL : mapped;
    }
    if (descriptor >= 0)
        close(descriptor);
    if (error)
        refuse(path, diagnostics, remedy, "cannot be read as token data: %s", strerror(error));
    else if (!bytes)
        refuse(path, diagnostics, remedy, "the file is empty");
    *size = bytes ? status.st_size : 0;
    return bytes;
}

/* munmap takes a pointer that may be written through; the mapping itself is read-only. */
static void unmap(const unsigned char *bytes, int64_t size) {
    union {
        const unsigned char *constant;
        void *pointer;
    } at = {bytes};
    if (bytes)
        munmap(at.pointer, (size_t)size);
}

static int64_t read_integer(const unsigned char *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << 8 * i;
    int unused = 64 - 8 * bytes;
    return (int64_t)(value << unused) >> unused; /* sign of the highest byte */
}

static int64_t token_at(const Shard *shard, int64_t index) {
    const unsigned char *at = shard->bytes + shard->data + index * token_bytes[shard->type];
    switch (shard->type) {
    case TOKEN_U8:
        return *at;
    case TOKEN_U16:
        return at[0] | at[1] << 8;
    case TOKEN_I16:
    case TOKEN_I32:
    case TOKEN_I64:
        return read_integer(at, token_bytes[shard->type]);
    }
    internal_error("token type %d", (int)shard->type);
}

static bool ends_with(const char *string, const char *end) {
    size_t length = strlen(string), end_length = strlen(end);
    return length >= end_length && strcmp(string + length - end_length, end) == 0;
}

/* ---- layouts ------------------------------------------------------------------------ */

static bool llmc_layout(Shard *shard, Diagnostics *diagnostics) {
    bool wide = read_integer(shard->bytes, 4) == LLAMA3_MAGIC;
    int64_t version = read_integer(shard->bytes + 4, 4);
    if (version != (wide ? 7 : 1))
        return refuse(shard->path, diagnostics,
                      "write the shard anew in a version that is read",
                      "this is an llm.c shard of version %lld; version %d is read",
                      (long long)version, wide ? 7 : 1);
    shard->data = LLMC_HEADER_BYTES;
    shard->type = wide ? TOKEN_I32 : TOKEN_U16;
    shard->tokens = read_integer(shard->bytes + 8, 4);
    int64_t there = (shard->size - LLMC_HEADER_BYTES) / token_bytes[shard->type];
    if (shard->size < LLMC_HEADER_BYTES || shard->tokens != there ||
        (shard->size - LLMC_HEADER_BYTES) % token_bytes[shard->type])
        return refuse(
            shard->path, diagnostics,
            "the file may have been cut short: copy or write it again",
            "its header counts %lld tokens, but %lld bytes follow, which is not that "
            "many",
            (long long)shard->tokens,
            (long long)(shard->size > LLMC_HEADER_BYTES ? shard->size - LLMC_HEADER_BYTES : 0));
    return true;
}

static bool raw_layout(Shard *shard, Diagnostics *diagnostics) {
    shard->type = TOKEN_U16;
    shard->tokens = shard->size / 2;
    if (shard->size % 2)
        return refuse(
            shard->path, diagnostics,
            "text becomes token shards by `colac data pack TEXT… -o DIR`",
            "it has no header that is known, and its %lld bytes are no whole number of "
            "uint16 tokens",
            (long long)shard->size);
    return true;
}

/* Checks an index against the .bin beside it, whose tokens must stand without gaps. */
static bool megatron_layout(Shard *shard, const unsigned char *index, int64_t size,
                            const char *index_path, Diagnostics *diagnostics) {
    static const char remedy[] = "copy or write the .bin and the .idx again, both";
    static const int types[] = {-1,        TOKEN_U8, -1, TOKEN_I16, TOKEN_I32,
                                TOKEN_I64, -1,       -1, TOKEN_U16};
    if (size < MEGATRON_HEADER_BYTES || memcmp(index, "MMIDIDX\0", 9) != 0)
        return refuse(index_path, diagnostics, remedy, "this is no Megatron index");
    int64_t version = read_integer(index + 9, 8), dtype = index[17];
    if (version != 1 || dtype >= COUNT_OF(types) || types[dtype] < 0)
        return refuse(index_path, diagnostics,
                      "version 1 with tokens of u8, i16, i32, i64 or u16 is read",
                      "this is a Megatron index of version %lld with dtype %lld",
                      (long long)version, (long long)dtype);
    shard->type = (TokenType)types[dtype];
    int64_t sequences = read_integer(index + 18, 8);
    if (sequences < 0 || sequences > (size - MEGATRON_HEADER_BYTES) / 12)
        return refuse(index_path, diagnostics, remedy, "it counts %lld sequences in %lld bytes",
                      (long long)sequences, (long long)size);
    const unsigned char *lengths = index + MEGATRON_HEADER_BYTES;
    const unsigned char *offsets = lengths + 4 * sequences;
    for (int64_t i = 0; i < sequences; i++) {
        int64_t length = read_integer(lengths + 4 * i, 4);
        int64_t offset = read_integer(offsets + 8 * i, 8);
        if (length < 0 || offset != shard->tokens * token_bytes[shard->type])
            return refuse(
                index_path, diagnostics, remedy,
                "sequence %lld begins at byte %lld with %lld tokens; the ones before it "
                "end at byte %lld",
                (long long)i, (long long)offset, (long long)length,
                (long long)(shard->tokens * token_bytes[shard->type]));
        shard->tokens += length;
    }
    if (shard->tokens * token_bytes[shard->type] != shard->size)
        return refuse(shard->path, diagnostics, remedy,
                      "the index counts %lld tokens of %d bytes, but the file has %lld bytes",
                      (long long)shard->tokens, token_bytes[shard->type],
                      (long long)shard->size);
    return true;
}

/* The .idx beside a .bin, or NULL where there is none. */
static char *index_beside(const char *path, Arena *arena) {
    if (!ends_with(path, ".bin"))
        return NULL;
    char *index = arena_printf(arena, "%.*s.idx", (int)strlen(path) - 4, path);
    return access(index, F_OK) == 0 ? index : NULL;
}

static bool find_layout(Shard *shard, Arena *arena, Diagnostics *diagnostics) {
    const char *index_path = index_beside(shard->path, arena);
    if (index_path) {
        int64_t size;
        const unsigned char *index = map_file(index_path, &size, diagnostics);
        bool good = index && megatron_layout(shard, index, size, index_path, diagnostics);
        unmap(index, size);
        return good;
    }
    int64_t magic = shard->size >= 12 ? read_integer(shard->bytes, 4) : 0;
    return magic == LLMC_MAGIC || magic == LLAMA3_MAGIC ? llmc_layout(shard, diagnostics)
                                                        : raw_layout(shard, diagnostics);
}

static bool refuse_token(const TokenData *data, const Shard *shard, int64_t index,
                         Diagnostics *diagnostics) {
    return refuse(shard->path, diagnostics,
                  "the data was made with a larger vocabulary than the model's (its input is "
                  "`below` that size): use other data, or another size",
                  "token %lld (at byte %lld) is %lld, which is not in the vocabulary of %lld",
                  (long long)index, (long long)(shard->data + index * token_bytes[shard->type]),
                  (long long)token_at(shard, index), (long long)data->shape.below);
}

static bool add_shard(TokenData *data, const char *path, Diagnostics *diagnostics) {
    Shard shard = {.path = arena_strdup(data->arena, path)};
    if (ends_with(path, ".idx")) /* the pair may be named by either */
        shard.path = arena_printf(data->arena, "%.*s.bin", (int)strlen(path) - 4, path);
    shard.bytes = map_file(shard.path, &shard.size, diagnostics);
    if (!shard.bytes)
        return false;
    array_push(&data->shards, shard);
    Shard *added = &data->shards.data[data->shards.count - 1];
    if (!find_layout(added, data->arena, diagnostics))
        return false;
    for (int64_t i = 0; added->size <= CHECKED_AT_OPEN && i < added->tokens; i++)
        if (token_at(added, i) < 0 || token_at(added, i) >= data->shape.below)
            return refuse_token(data, added, i, diagnostics);
    added->first_token = data->tokens;
    added->first_sample = data->samples;
    if (added->tokens >= data->shape.span)
        added->samples = (added->tokens - data->shape.span) / data->shape.positions + 1;
    data->tokens += added->tokens;
    data->samples += added->samples;
    return true;
}

/* ---- folders ------------------------------------------------------------------------ */

/* The type is scandir's. */
static int is_shard_name(const struct dirent *entry) {
    return entry->d_name[0] != '.' && ends_with(entry->d_name, ".bin");
}

/* Is `val` or `validation` a word of the file's name? */
static bool is_validation_name(const char *name) {
    static const char *const words[] = {"val", "valid", "validation"};
    for (const char *at = name; *at;) {
        size_t length = strcspn(at, "_-. 0123456789");
        for (int i = 0; i < COUNT_OF(words); i++)
            if (strlen(words[i]) == length && strncmp(at, words[i], length) == 0)
                return true;
        at += length + (at[length] != 0);
    }
    return false;
}

static void free_entries(struct dirent **entries, int count) {
    for (int i = 0; i < count; i++)
        free(entries[i]);
    free(entries);
}

static bool has_both_splits(struct dirent **entries, int count) {
    int validation = 0;
    for (int i = 0; i < count; i++)
        validation += is_validation_name(entries[i]->d_name);
    return validation > 0 && validation < count;
}

bool token_data_has_validation(const char *path) {
    struct dirent **entries;
    int count = scandir(path, &entries, is_shard_name, alphasort);
    if (count < 0)
        return false;
    bool both = has_both_splits(entries, count);
    free_entries(entries, count);
    return both;
}

static bool add_folder(TokenData *data, const char *path, DataSplit split,
                       Diagnostics *diagnostics) {
    struct dirent **entries;
    int count = scandir(path, &entries, is_shard_name, alphasort);
    if (count <= 0) {
        if (count == 0)
            free(entries);
        return refuse(path, diagnostics, "`colac data pack TEXT… -o DIR` fills a folder",
                      "there is no .bin file in this folder");
    }
    bool both = has_both_splits(entries, count), good = true;
    for (int i = 0; i < count && good; i++) {
        DataSplit has = is_validation_name(entries[i]->d_name) ? SPLIT_VALIDATION : SPLIT_TRAIN;
        if (!both || split == SPLIT_ALL || split == has)
            good = add_shard(data, arena_printf(data->arena, "%s/%s", path, entries[i]->d_name),
                             diagnostics);
    }
    free_entries(entries, count);
    return good;
}

TokenData *token_data_open(const char *path, DataSplit split, SampleShape shape,
                           Diagnostics *diagnostics) {
    TokenData *data = checked_alloc(sizeof *data);
    data->arena = arena_new();
    data->shape = shape;
    if (shape.below > INT64_C(1) << 31) /* ids are handed over as int32 */
        data->shape.below = INT64_C(1) << 31;
    struct stat status;
    bool folder = stat(path, &status) == 0 && S_ISDIR(status.st_mode);
    bool good = folder ? add_folder(data, path, split, diagnostics)
                       : add_shard(data, path, diagnostics);
    if (good && data->samples == 0)
        good = refuse(
            path, diagnostics, "use more data, or a model with fewer positions (`-D S=…`)",
            "%s %lld tokens and no place for one sample, which takes %lld in one file",
            split == SPLIT_VALIDATION ? "held out for validation are" : "it has",
            (long long)data->tokens, (long long)shape.span);
    if (good)
        return data;
    token_data_close(data);
    return NULL;
}

void token_data_close(TokenData *data) {
    if (!data)
        return;
    for (int64_t i = 0; i < data->shards.count; i++)
        unmap(data->shards.data[i].bytes, data->shards.data[i].size);
    array_free(&data->shards);
    arena_free(data->arena);
    free(data);
}

int64_t token_data_tokens(const TokenData *data) {
    return data->tokens;
}

uint64_t token_data_hash(const TokenData *data) {
    enum { PIECES = 64, PIECE = 1 << 20 };
    uint64_t hash = 0;
    for (int64_t i = 0; i < data->shards.count; i++) {
        const Shard *shard = &data->shards.data[i];
        bool whole = shard->size <= (int64_t)PIECES * PIECE;
        hash = hash_bytes(&shard->size, sizeof shard->size, hash);
        if (whole)
            hash = hash_bytes(shard->bytes, (size_t)shard->size, hash);
        for (int64_t p = 0; !whole && p < PIECES; p++)
            hash = hash_bytes(shard->bytes + (shard->size - PIECE) / (PIECES - 1) * p, PIECE,
                              hash);
    }
    return hash;
}

int64_t token_data_samples(const TokenData *data) {
    return data->samples;
}

/* ---- order -------------------------------------------------------------------------- */

/* A bijection of 64-bit words (the finalizer of splitmix64). */
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* A permutation of [0, count): a Feistel network on the smallest even number of bits that holds
 * count, walked until it lands below count (at most some four times on average). */
static uint64_t permute(uint64_t index, uint64_t count, uint64_t key) {
    int half = 1;
    while (half < 32 && (UINT64_C(1) << 2 * half) < count)
        half++;
    uint64_t mask = (UINT64_C(1) << half) - 1;
    do {
        uint64_t left = index >> half, right = index & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (mix(right + mix(key + round)) & mask);
            left = right;
            right = next;
        }
        index = left << half | right;
    } while (index >= count);
    return index;
}

/* Which of the samples, counted through all shards, global sample g is. */
static int64_t sample_index(const TokenData *data, SampleOrder order, uint64_t seed,
                            int64_t sample) {
    int64_t epoch = sample / data->samples, index = sample % data->samples;
    if (order == ORDER_SEQUENTIAL)
        return index;
    uint64_t key = mix(mix(seed + 0x9e3779b97f4a7c15u) + (uint64_t)epoch);
    return (int64_t)permute((uint64_t)index, (uint64_t)data->samples, key);
}

static const Shard *shard_of_sample(const TokenData *data, int64_t index) {
    int64_t low = 0, high = data->shards.count - 1;
    while (low < high) { /* the last shard that begins at or before it */
        int64_t middle = (low + high + 1) / 2;
        if (data->shards.data[middle].first_sample <= index)
            low = middle;
        else
            high = middle - 1;
    }
    return &data->shards.data[low];
}

int64_t token_data_start(const TokenData *data, SampleOrder order, uint64_t seed,
                         int64_t sample) {
    int64_t index = sample_index(data, order, seed, sample);
    const Shard *shard = shard_of_sample(data, index);
    return shard->first_token + (index - shard->first_sample) * data->shape.positions;
}

bool token_data_fill(const TokenData *data, SampleOrder order, uint64_t seed, int64_t sample0,
                     int64_t rows, int64_t width, int64_t next, int32_t *values,
                     Diagnostics *diagnostics) {
    INTERNAL_CHECK(next >= 0 && next + width <= data->shape.span);
    for (int64_t row = 0; row < rows; row++) {
        int64_t index = sample_index(data, order, seed, sample0 + row);
        const Shard *shard = shard_of_sample(data, index);
        int64_t first = (index - shard->first_sample) * data->shape.positions + next;
        for (int64_t i = 0; i < width; i++) {
            int64_t token = token_at(shard, first + i);
            if (token < 0 || token >= data->shape.below)
                return refuse_token(data, shard, first + i, diagnostics);
            values[row * width + i] = (int32_t)token;
        }
    }
    return true;
}
