/* runtime/pack.c: `colac data pack`: bytes of texts to token shards in the llm.c layout. */
#include "runtime/runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { BLOCK_BYTES = 1 << 16, VALIDATION_SHARE = 20, DEFAULT_SHARD_TOKENS = 100000000 };
enum { LLMC_HEADER_BYTES = 1024, LLMC_MAGIC = 20240520, LLMC_VERSION = 1 };

/* The shards of one split, one open at a time. */
typedef struct ShardWriter {
    const char *directory, *split;
    int64_t shard_tokens; /* the most of a shard */
    int shards;           /* begun */
    NewFile *file;
    int64_t in_shard, total;
} ShardWriter;

typedef struct Packing {
    char *directory, *temporary;
    ShardWriter train, validation;
    int64_t blocks;        /* seen so far */
    int64_t pending_bytes; /* the block that is held back: it may have to be validation */
    unsigned char *pending, *block;
    json_t *sources;
    Arena *arena;
    Diagnostics *diagnostics;
} Packing;

/* ---- shards ------------------------------------------------------------------------- */

static void write_header(ShardWriter *writer, bool again) {
    int32_t header[LLMC_HEADER_BYTES / 4] = {LLMC_MAGIC, LLMC_VERSION,
                                             (int32_t)writer->in_shard};
    if (again)
        new_file_rewrite_start(writer->file, header, sizeof header);
    else
        new_file_write(writer->file, header, sizeof header);
}

static bool end_shard(ShardWriter *writer, Diagnostics *diagnostics) {
    if (!writer->file)
        return true;
    write_header(writer, true); /* now that the count is known */
    NewFile *file = writer->file;
    writer->file = NULL;
    return new_file_publish(file, diagnostics);
}

static bool begin_shard(ShardWriter *writer, Diagnostics *diagnostics) {
    Text path = {0};
    text_printf(&path, "%s/%s_%03d.bin", writer->directory, writer->split, writer->shards++);
    writer->file = new_file_open(path.data, diagnostics);
    text_free(&path);
    writer->in_shard = 0;
    if (writer->file)
        write_header(writer, false);
    return writer->file != NULL;
}

/* A byte is a token: uint16, little-endian. */
static bool write_tokens(ShardWriter *writer, const unsigned char *bytes, int64_t count,
                         Diagnostics *diagnostics) {
    while (count > 0) {
        if (writer->file && writer->in_shard == writer->shard_tokens &&
            !end_shard(writer, diagnostics))
            return false;
        if (!writer->file && !begin_shard(writer, diagnostics))
            return false;
        int64_t now = writer->shard_tokens - writer->in_shard;
        now = now < count ? now : count;
        now = now < BLOCK_BYTES ? now : BLOCK_BYTES;
        unsigned char tokens[2 * BLOCK_BYTES];
        for (int64_t i = 0; i < now; i++) {
            tokens[2 * i] = bytes[i];
            tokens[2 * i + 1] = 0;
        }
        new_file_write(writer->file, tokens, 2 * (size_t)now);
        if (new_file_failed(writer->file)) {
            new_file_publish(writer->file, diagnostics); /* reports */
            writer->file = NULL;
            return false;
        }
        writer->in_shard += now;
        writer->total += now;
        bytes += now;
        count -= now;
    }
    return true;
}

/* ---- the split ---------------------------------------------------------------------- */

/* One of every twenty in a row, which one by the hash of their number. */
static bool is_validation_block(int64_t block) {
    int64_t group = block / VALIDATION_SHARE;
    uint64_t hash = hash_bytes(&group, sizeof group, 0);
    return (uint64_t)(block % VALIDATION_SHARE) == hash % VALIDATION_SHARE;
}

/* Writes the block held back, and holds the current one back instead. */
static bool end_block(Packing *packing, int64_t bytes) {
    ShardWriter *writer =
        is_validation_block(packing->blocks - 1) ? &packing->validation : &packing->train;
    if (packing->blocks > 0 &&
        !write_tokens(writer, packing->pending, packing->pending_bytes, packing->diagnostics))
        return false;
    unsigned char *block = packing->block;
    packing->block = packing->pending;
    packing->pending = block;
    packing->pending_bytes = bytes;
    packing->blocks++;
    return true;
}

/* The last block.  There is to be validation data, and training data too, however short the
 * text: where no block came to be validation, the end of the last one is, a twentieth of all.
 */
static bool end_blocks(Packing *packing) {
    int64_t bytes = packing->pending_bytes, held_out = 0;
    int64_t twentieth = (packing->train.total + bytes) / VALIDATION_SHARE;
    if (packing->validation.total == 0)
        held_out = twentieth < bytes ? twentieth : bytes;
    else if (packing->train.total > 0 && is_validation_block(packing->blocks - 1))
        held_out = bytes;
    return write_tokens(&packing->train, packing->pending, bytes - held_out,
                        packing->diagnostics) &&
           write_tokens(&packing->validation, packing->pending + (bytes - held_out), held_out,
                        packing->diagnostics) &&
           end_shard(&packing->train, packing->diagnostics) &&
           end_shard(&packing->validation, packing->diagnostics);
}

/* ---- texts -------------------------------------------------------------------------- */

static void report_text(const Packing *packing, const char *path, const char *what) {
    help(error_in_file(packing->diagnostics, path, "the text cannot be read: %s", what),
         "give plain text, or text compressed as .gz or .dz; `-` is standard input");
}

/* zlib reads what is not compressed as it is.  NULL after reporting. */
static gzFile open_text(const Packing *packing, const char *path) {
    bool input = strcmp(path, "-") == 0;
    int descriptor = input ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    int error = descriptor < 0 || fstat(descriptor, &status) ? errno : 0;
    if (!error && S_ISDIR(status.st_mode))
        error = EISDIR;
    gzFile text = error ? NULL : gzdopen(descriptor, "rb");
    if (text) {
        gzbuffer(text, 1 << 18);
        return text;
    }
    if (descriptor >= 0)
        close(descriptor);
    report_text(packing, path, strerror(error ? error : ENOMEM));
    return NULL;
}

/* Adds a text to the stream of blocks, which run on from one text into the next. *filled: bytes
 * of the current block. */
static bool read_text(Packing *packing, const char *path, int64_t *filled) {
    gzFile text = open_text(packing, path);
    if (!text)
        return false;
    int64_t bytes = 0;
    bool good = true;
    while (good) {
        int got = gzread(text, packing->block + *filled, (unsigned)(BLOCK_BYTES - *filled));
        if (got <= 0)
            break;
        bytes += got;
        *filled += got;
        if (*filled == BLOCK_BYTES) {
            good = end_block(packing, BLOCK_BYTES);
            *filled = 0;
        }
    }
    int error;
    const char *what = gzerror(text, &error);
    if (good && error != Z_OK && error != Z_STREAM_END) {
        report_text(packing, path,
                    error == Z_ERRNO       ? strerror(errno)
                    : error == Z_BUF_ERROR ? "the compressed text is cut short"
                                           : what);
        good = false;
    }
    gzclose_r(text);
    json_array_append_new(packing->sources,
                          json_pack("{s:o, s:I}", "path",
                                    json_string(json_path(path, packing->arena)), "bytes",
                                    (json_int_t)bytes));
    return good;
}

static bool read_texts(Packing *packing, const char *const *paths, int count) {
    int64_t filled = 0;
    for (int i = 0; i < count; i++)
        if (!read_text(packing, paths[i], &filled))
            return false;
    if (filled && packing->blocks) { /* the rest joins the last block, so that none is tiny */
        memcpy(packing->pending + packing->pending_bytes, packing->block, (size_t)filled);
        packing->pending_bytes += filled;
    } else if (filled && !end_block(packing, filled)) {
        return false;
    }
    if (packing->blocks)
        return end_blocks(packing);
    help(error_in_file(packing->diagnostics, paths[0], "there is no text in the file%s",
                       count > 1 ? "s" : ""),
         "an empty text makes no data");
    return false;
}

/* ---- the folder --------------------------------------------------------------------- */

static bool write_record(Packing *packing, int64_t shard_tokens) {
    json_t *record = json_pack(
        "{s:s, s:i, s:s, s:O, s:i, s:I, s:I, s:I, s:i, s:i}", "tokenizer", "bytes",
        "vocabulary", 256, "layout", "llm.c uint16", "texts", packing->sources, "block_bytes",
        BLOCK_BYTES, "shard_tokens", (json_int_t)shard_tokens, "train_tokens",
        (json_int_t)packing->train.total, "val_tokens", (json_int_t)packing->validation.total,
        "train_shards", packing->train.shards, "val_shards", packing->validation.shards);
    INTERNAL_CHECK(record);
    char *json = json_dumps(record, JSON_INDENT(1));
    json_decref(record);
    Text path = {0};
    text_printf(&path, "%s/data.json", packing->temporary);
    NewFile *file = new_file_open(path.data, packing->diagnostics);
    text_free(&path);
    if (file)
        new_file_printf(file, "%s\n", json);
    free(json);
    return file && new_file_publish(file, packing->diagnostics);
}

static void remove_folder(const char *path) {
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        unlinkat(dirfd(folder), entry->d_name, 0); /* . and .. are refused */
    if (folder)
        closedir(folder);
    rmdir(path);
}

static bool report_folder(const Packing *packing, int error) {
    bool taken = error == ENOTEMPTY || error == EEXIST || error == ENOTDIR;
    help(error_in_file(packing->diagnostics, packing->directory,
                       "the folder cannot be made: %s",
                       taken ? "there is something there" : strerror(error)),
         "%s",
         taken ? "remove it, or give another name to -o"
               : "`-o` names a folder in one that exists and that you may write to");
    return false;
}

/* Is the place free: nothing there, or an empty folder? */
static bool is_free(const char *path) {
    struct stat status;
    if (lstat(path, &status))
        return errno == ENOENT;
    DIR *folder = S_ISDIR(status.st_mode) ? opendir(path) : NULL;
    int entries = 0;
    while (folder && readdir(folder))
        entries++;
    if (folder)
        closedir(folder);
    return folder && entries <= 2; /* . and .. */
}

static bool begin_folder(Packing *packing, const char *directory) {
    size_t length = strlen(directory);
    while (length > 1 && directory[length - 1] == '/')
        length--;
    Text text = {0};
    text_append(&text, directory, length);
    packing->directory = text.data;
    text = (Text){0};
    text_printf(&text, "%s.%ld.tmp", packing->directory, (long)getpid());
    packing->temporary = text.data;
    if (!is_free(packing->directory))
        return report_folder(packing, EEXIST);
    return !mkdir(packing->temporary, 0777) || report_folder(packing, errno);
}

static bool publish_folder(Packing *packing) {
    int folder = open(packing->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
        fsync(folder);
        close(folder);
    }
    return !rename(packing->temporary, packing->directory) || report_folder(packing, errno);
}

bool data_pack_shards(const char *const *paths, int count, const char *directory,
                      int64_t shard_tokens, PackReport *report, Diagnostics *diagnostics) {
    Packing packing = {.diagnostics = diagnostics, .arena = arena_new()};
    bool begun = begin_folder(&packing, directory), good = begun;
    packing.pending = checked_alloc((size_t)2 * BLOCK_BYTES);
    packing.block = checked_alloc((size_t)2 * BLOCK_BYTES);
    packing.sources = json_array();
    packing.train = (ShardWriter){packing.temporary, "train", shard_tokens, 0, NULL, 0, 0};
    packing.validation = (ShardWriter){packing.temporary, "val", shard_tokens, 0, NULL, 0, 0};
    good = good && read_texts(&packing, paths, count) && write_record(&packing, shard_tokens) &&
           publish_folder(&packing);
    new_file_abandon(packing.train.file);
    new_file_abandon(packing.validation.file);
    if (begun && !good)
        remove_folder(packing.temporary);
    *report = (PackReport){packing.train.total, packing.validation.total,
                           packing.train.shards + packing.validation.shards};
    json_decref(packing.sources);
    arena_free(packing.arena);
    free(packing.pending);
    free(packing.block);
    free(packing.temporary);
    free(packing.directory);
    return good;
}

bool data_pack(const char *const *paths, int count, const char *directory, PackReport *report,
               Diagnostics *diagnostics) {
    return data_pack_shards(paths, count, directory, DEFAULT_SHARD_TOKENS, report, diagnostics);
}
