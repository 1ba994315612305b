/* runtime/safetensors.c: reading and writing weights in the safetensors layout: the header's
 * length (u64, little-endian), a JSON header, the tensors' bytes.  Whatever the bytes of a
 * file, a bad one ends in a sentence, in memory proportional to the number of tensors it could
 * hold. */
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The largest header known in practice is a tenth of this. */
#define MAX_HEADER_BYTES (INT64_C(32) << 20)
enum { MAX_TENSORS = 200000 };

struct TensorFile {
    Arena *arena;
    const char *path;
    const unsigned char *bytes; /* the whole file, mapped */
    int64_t size, data;         /* data: where the data section begins */
    int count;
    Tensor *tensors;
    StringMap by_name;
};

/* ---- data types --------------------------------------------------------------------- */

static const struct {
    const char *name;
    int dtype, bytes;
} data_types[] = {
    {"F64", TENSOR_F64, 8},    {"F32", TENSOR_F32, 4},       {"BF16", TENSOR_BF16, 2},
    {"F16", TENSOR_F16, 2},    {"I64", TENSOR_OTHER, 8},     {"I32", TENSOR_OTHER, 4},
    {"I16", TENSOR_OTHER, 2},  {"I8", TENSOR_OTHER, 1},      {"U64", TENSOR_OTHER, 8},
    {"U32", TENSOR_OTHER, 4},  {"U16", TENSOR_OTHER, 2},     {"U8", TENSOR_OTHER, 1},
    {"C64", TENSOR_OTHER, 8},  {"F8_E4M3", TENSOR_OTHER, 1}, {"F8_E5M2", TENSOR_OTHER, 1},
    {"BOOL", TENSOR_OTHER, 1},
};

static double from_bf16(const unsigned char *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

static double from_f16(const unsigned char *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent == 31  ? (fraction ? __builtin_nan("") : __builtin_inf())
                       : exponent == 0 ? __builtin_ldexp(fraction, -24)
                                       : __builtin_ldexp(1024 + fraction, exponent - 25);
    return half >> 15 ? -magnitude : magnitude;
}

/* ---- reading ------------------------------------------------------------------------ */

static bool refuse(const TensorFile *file, Diagnostics *diagnostics, const char *format, ...)
    PRINTF_LIKE(3, 4);
static bool refuse(const TensorFile *file, Diagnostics *diagnostics, const char *format, ...) {
    Text text = {0};
    va_list args;
    va_start(args, format);
    text_vprintf(&text, format, args);
    va_end(args);
    help(error_in_file(diagnostics, file->path, "not a sound safetensors file: %s", text.data),
         "copy or write the file again");
    text_free(&text);
    return false;
}

static bool refuse_system(const TensorFile *file, Diagnostics *diagnostics, int error) {
    help(error_in_file(diagnostics, file->path, "cannot be read: %s", strerror(error)),
         "name a file of weights in the safetensors layout");
    return false;
}

static bool map_file(TensorFile *file, Diagnostics *diagnostics) {
    int descriptor = open(file->path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (descriptor < 0)
        return refuse_system(file, diagnostics, errno);
    int error = fstat(descriptor, &status) ? errno : 0;
    if (!error && !S_ISREG(status.st_mode))
        error = S_ISDIR(status.st_mode) ? EISDIR : ESPIPE;
    if (!error && status.st_size >= 8) {
        void *mapped =
            mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (mapped == MAP_FAILED) {
            error = errno;
        } else {
            file->bytes = mapped;
            file->size = status.st_size;
        }
    }
    close(descriptor);
    if (error)
        return refuse_system(file, diagnostics, error);
    if (!file->bytes)
        return refuse(file, diagnostics,
                      "it has %lld bytes, fewer than the header's length takes",
                      (long long)status.st_size);
    return true;
}

/* The parsed header, or NULL after reporting.  A JSON text takes some thirty times its size as
 * values: the number of them is bounded before it is parsed. */
static json_t *parse_header(TensorFile *file, Diagnostics *diagnostics) {
    uint64_t length = 0;
    for (int i = 0; i < 8; i++)
        length |= (uint64_t)file->bytes[i] << 8 * i;
    if (length < 2 || length > (uint64_t)(file->size - 8)) {
        refuse(file, diagnostics, "its header would have %llu bytes, but %lld follow",
               (unsigned long long)length, (long long)file->size - 8);
        return NULL;
    }
    if (length > (uint64_t)MAX_HEADER_BYTES) {
        refuse(file, diagnostics, "its header has %llu bytes; at most %lld are read",
               (unsigned long long)length, (long long)MAX_HEADER_BYTES);
        return NULL;
    }
    const char *text = (const char *)file->bytes + 8;
    int64_t values = 0;
    for (uint64_t i = 0; i < length; i++)
        values += text[i] == '{' || text[i] == '[' || text[i] == ',';
    if (values >
        (int64_t)MAX_TENSORS * (MAX_AXES + 6)) { /* an object, two arrays, their parts */
        refuse(file, diagnostics, "its header describes more than %d tensors",
               (int)MAX_TENSORS);
        return NULL;
    }
    json_error_t error;
    json_t *header = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!header || !json_is_object(header)) {
        refuse(file, diagnostics, "its header is no JSON object (%s at byte %d)",
               header ? "another value" : error.text, header ? 8 : 8 + error.position);
        json_decref(header);
        return NULL;
    }
    file->data = 8 + (int64_t)length;
    return header;
}

/* Shape and elements of a tensor from the header's array of sizes. */
static bool parse_shape(const TensorFile *file, Tensor *tensor, const json_t *shape,
                        Diagnostics *diagnostics) {
    if (!json_is_array(shape))
        return refuse(file, diagnostics, "tensor `%s` has no shape", tensor->name);
    if (json_array_size(shape) > MAX_AXES)
        return refuse(file, diagnostics, "tensor `%s` has %zu axes; at most %d are read",
                      tensor->name, json_array_size(shape), (int)MAX_AXES);
    tensor->rank = (int)json_array_size(shape);
    tensor->elements = 1;
    for (int i = 0; i < tensor->rank; i++) {
        const json_t *size = json_array_get(shape, (size_t)i);
        tensor->shape[i] = json_is_integer(size) ? json_integer_value(size) : -1;
        if (tensor->shape[i] < 0 ||
            __builtin_mul_overflow(tensor->elements, tensor->shape[i], &tensor->elements))
            return refuse(file, diagnostics, "tensor `%s` has a shape that is none",
                          tensor->name);
    }
    return true;
}

/* *end: where the tensor's bytes end, from the data section's start. */
static bool parse_tensor(const TensorFile *file, Tensor *tensor, const json_t *entry,
                         int64_t *end, Diagnostics *diagnostics) {
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    int bytes = 0;
    for (int i = 0; dtype && i < COUNT_OF(data_types); i++)
        if (strcmp(data_types[i].name, dtype) == 0) {
            bytes = data_types[i].bytes;
            tensor->dtype = data_types[i].dtype;
        }
    if (!bytes)
        return refuse(file, diagnostics, "tensor `%s` has dtype `%s`, which is not known",
                      tensor->name, dtype ? dtype : "");
    if (!parse_shape(file, tensor, json_object_get(entry, "shape"), diagnostics))
        return false;
    const json_t *extent = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(extent, 0), *last = json_array_get(extent, 1);
    if (json_array_size(extent) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return refuse(file, diagnostics, "tensor `%s` has no pair of data_offsets",
                      tensor->name);
    tensor->begin = json_integer_value(first);
    *end = json_integer_value(last);
    if (tensor->begin < 0 || *end < tensor->begin || *end > file->size - file->data)
        return refuse(file, diagnostics,
                      "tensor `%s` lies at bytes %lld to %lld of a data section of %lld bytes "
                      "(the file may have been cut short)",
                      tensor->name, (long long)tensor->begin, (long long)*end,
                      (long long)(file->size - file->data));
    int64_t needed;
    if (__builtin_mul_overflow(tensor->elements, (int64_t)bytes, &needed) ||
        needed != *end - tensor->begin)
        return refuse(file, diagnostics,
                      "tensor `%s` has %lld elements of %d bytes, but an extent of %lld bytes",
                      tensor->name, (long long)tensor->elements, bytes,
                      (long long)(*end - tensor->begin));
    return true;
}

typedef struct Extent {
    int64_t begin, end;
    const char *name;
} Extent;

static int compare_extents(const void *left, const void *right) {
    const Extent *a = left, *b = right;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end;
}

/* The extents must tile the data section: no overlap, no hole, nothing after the last. */
static bool check_tiling(const TensorFile *file, Extent *extents, Diagnostics *diagnostics) {
    int64_t end = 0;
    if (file->count)
        qsort(extents, (size_t)file->count, sizeof *extents, compare_extents);
    for (int i = 0; i < file->count; end = extents[i++].end)
        if (extents[i].begin != end)
            return refuse(
                file, diagnostics,
                "tensor `%s` begins at byte %lld of the data section, but what stands "
                "before it ends at byte %lld",
                extents[i].name, (long long)extents[i].begin, (long long)end);
    if (end != file->size - file->data)
        return refuse(file, diagnostics, "%lld bytes follow after its last tensor",
                      (long long)(file->size - file->data - end));
    return true;
}

static bool parse_tensors(TensorFile *file, json_t *header, Diagnostics *diagnostics) {
    size_t most = json_object_size(header);
    file->tensors = arena_alloc_array(file->arena, most, sizeof *file->tensors);
    Extent *extents = checked_alloc(most * sizeof *extents);
    bool good = true;
    const char *name;
    json_t *entry;
    json_object_foreach(header, name, entry) {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        Tensor *tensor = &file->tensors[file->count];
        tensor->name = arena_strdup(file->arena, name);
        Extent *extent = &extents[file->count];
        good = parse_tensor(file, tensor, entry, &extent->end, diagnostics);
        if (!good)
            break;
        extent->begin = tensor->begin;
        extent->name = tensor->name;
        string_map_set(&file->by_name, name, file->count++);
    }
    good = good && check_tiling(file, extents, diagnostics);
    free(extents);
    return good;
}

TensorFile *tensor_file_open(const char *path, Diagnostics *diagnostics) {
    Arena *arena = arena_new();
    TensorFile *file = arena_alloc(arena, sizeof *file);
    file->arena = arena;
    file->path = arena_strdup(arena, path);
    json_t *header = map_file(file, diagnostics) ? parse_header(file, diagnostics) : NULL;
    bool good = header && parse_tensors(file, header, diagnostics);
    json_decref(header);
    if (good)
        return file;
    tensor_file_close(file);
    return NULL;
}

/* munmap takes a pointer that may be written through; the mapping itself is read-only. */
static void unmap(const unsigned char *bytes, int64_t size) {
    union {
        const unsigned char *constant;
        void *pointer;
    } at = {bytes};
    munmap(at.pointer, (size_t)size);
}

void tensor_file_close(TensorFile *file) {
    if (!file)
        return;
    if (file->bytes)
        unmap(file->bytes, file->size);
    string_map_free(&file->by_name);
    arena_free(file->arena);
}

int tensor_file_count(const TensorFile *file) {
    return file->count;
}

const Tensor *tensor_file_at(const TensorFile *file, int index) {
    INTERNAL_CHECK(index >= 0 && index < file->count);
    return &file->tensors[index];
}

const Tensor *tensor_file_find(const TensorFile *file, const char *name) {
    int64_t index = string_map_get(&file->by_name, name, -1);
    return index < 0 ? NULL : &file->tensors[index];
}

void tensor_file_read(const TensorFile *file, const Tensor *tensor, int64_t first,
                      int64_t count, double *values) {
    INTERNAL_CHECK(first >= 0 && count >= 0 && first + count <= tensor->elements);
    const unsigned char *at = file->bytes + file->data + tensor->begin;
    switch (tensor->dtype) {
    case TENSOR_F64:
        memcpy(values, at + 8 * first, 8 * (size_t)count);
        return;
    case TENSOR_F32:
        for (int64_t i = 0; i < count; i++) {
            float value; /* not aligned in the file */
            memcpy(&value, at + 4 * (first + i), sizeof value);
            values[i] = (double)value;
        }
        return;
    case TENSOR_BF16:
        for (int64_t i = 0; i < count; i++)
            values[i] = from_bf16(at + 2 * (first + i));
        return;
    case TENSOR_F16:
        for (int64_t i = 0; i < count; i++)
            values[i] = from_f16(at + 2 * (first + i));
        return;
    case TENSOR_OTHER:
        break;
    }
    internal_error("tensor %s is not of a float dtype", tensor->name);
}

/* ---- writing ------------------------------------------------------------------------ */

struct TensorWriter {
    NewFile *file;
    int count, next; /* tensors; the one that is put next */
    int64_t put;     /* elements of that one so far */
    Tensor *tensors; /* names are not kept */
};

static json_t *header_entry(const Tensor *tensor, int64_t bytes) {
    json_t *shape = json_array();
    for (int i = 0; i < tensor->rank; i++)
        json_array_append_new(shape, json_integer(tensor->shape[i]));
    return json_pack(
        "{s:s, s:o, s:[I,I]}", "dtype", tensor->dtype == TENSOR_F64 ? "F64" : "F32", "shape",
        shape, "data_offsets", (json_int_t)tensor->begin, (json_int_t)(tensor->begin + bytes));
}

/* Length and header; spaces make the data section begin at a multiple of 8. */
static void write_header(NewFile *file, const json_t *header) {
    char *text = json_dumps(header, JSON_COMPACT);
    INTERNAL_CHECK(text);
    uint64_t length = strlen(text), padded = (length + 7) / 8 * 8;
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)(padded >> 8 * i);
    new_file_write(file, prefix, sizeof prefix);
    new_file_write(file, text, length);
    new_file_write(file, "       ", padded - length);
    free(text);
}

TensorWriter *tensor_writer_open(const char *path, const Tensor *tensors, int count,
                                 Diagnostics *diagnostics) {
    NewFile *file = new_file_open(path, diagnostics);
    if (!file)
        return NULL;
    TensorWriter *writer = checked_alloc(sizeof *writer);
    writer->file = file;
    writer->count = count;
    writer->tensors = checked_alloc((size_t)count * sizeof *tensors);
    /* Hugging Face's loader wants to be told whose layout this is. */
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    int64_t begin = 0;
    for (int i = 0; i < count; i++) {
        Tensor *tensor = &writer->tensors[i];
        *tensor = tensors[i];
        INTERNAL_CHECK(tensor->dtype == TENSOR_F64 || tensor->dtype == TENSOR_F32);
        tensor->begin = begin;
        tensor->elements = 1;
        for (int axis = 0; axis < tensor->rank; axis++)
            tensor->elements *= tensor->shape[axis];
        int64_t bytes = tensor->elements * (tensor->dtype == TENSOR_F64 ? 8 : 4);
        INTERNAL_CHECK(!json_object_get(header, tensor->name));
        json_object_set_new(header, tensor->name, header_entry(tensor, bytes));
        begin += bytes;
    }
    write_header(file, header);
    json_decref(header);
    return writer;
}

void tensor_writer_put(TensorWriter *writer, const double *values, int64_t count) {
    INTERNAL_CHECK(writer->next < writer->count);
    const Tensor *tensor = &writer->tensors[writer->next];
    writer->put += count;
    INTERNAL_CHECK(writer->put <= tensor->elements);
    if (writer->put == tensor->elements) {
        writer->next++;
        writer->put = 0;
    }
    if (tensor->dtype == TENSOR_F64) {
        new_file_write(writer->file, values, sizeof *values * (size_t)count);
        return;
    }
    float chunk[4096];
    for (int64_t done = 0, some; done < count; done += some) {
        some = count - done < COUNT_OF(chunk) ? count - done : COUNT_OF(chunk);
        for (int64_t i = 0; i < some; i++)
            chunk[i] = (float)values[done + i];
        new_file_write(writer->file, chunk, sizeof *chunk * (size_t)some);
    }
}

NewFile *tensor_writer_finish(TensorWriter *writer, Diagnostics *diagnostics) {
    NewFile *file = writer->file;
    INTERNAL_CHECK(writer->next == writer->count);
    free(writer->tensors);
    free(writer);
    if (new_file_sync(file, diagnostics))
        return file;
    new_file_abandon(file);
    return NULL;
}
