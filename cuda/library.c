/* cuda/library.c: the driver, NVRTC and cuBLASLt, opened at run time. */
#include "cuda/cuda.h"

#include <dlfcn.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a library is called, newest first of those in one place, and how one gets it. */
typedef struct LibraryFile {
    const char *name;
    int release; /* of CUDA, which the driver must be for, or for a later one; 0: none */
} LibraryFile;
typedef struct LibraryKind {
    const char *what;
    const LibraryFile *files;
    const char *remedy;
} LibraryKind;

static const LibraryFile driver_files[] = {{"libcuda.so.1", 0}, {NULL, 0}};
static const LibraryFile nvrtc_files[] = {
    {"libnvrtc.so.13", 13}, {"libnvrtc.so.12", 12}, {NULL, 0}};
static const LibraryFile blas_files[] = {
    {"libcublasLt.so.13", 13}, {"libcublasLt.so.12", 12}, {NULL, 0}};
static const LibraryKind kinds[CUDA_LIBRARY_COUNT] = {
    [CUDA_DRIVER] =
        {"the CUDA driver", driver_files,
         "it comes with NVIDIA's driver (Debian: nvidia-driver); `--device cpu` needs "
         "none"},
    [CUDA_NVRTC] = {"NVRTC", nvrtc_files,
                    "it is in the CUDA toolkit (CUDA_PATH says where) and in the PyPI package "
                    "nvidia-cuda-nvrtc (LD_LIBRARY_PATH says where)"},
    [CUDA_BLASLT] = {"cuBLASLt", blas_files,
                     "it is in the CUDA toolkit (CUDA_PATH says where) and in the PyPI package "
                     "nvidia-cublas (LD_LIBRARY_PATH says where)"},
};

static CudaTable table;
static struct Opened {
    void *handle;
    char path[PATH_MAX];
} opened[CUDA_LIBRARY_COUNT];

/* ---- finding ------------------------------------------------------------------------- */

/* Folders to look in after the system's own search, each once, ending in a slash. */
static int search_folders(char folders[3][PATH_MAX]) {
    static const char *const variables[] = {"CUDA_PATH", "CUDA_HOME"};
    int count = 0;
    for (int i = 0; i < COUNT_OF(variables); i++) {
        const char *toolkit = getenv(variables[i]);
        if (toolkit && *toolkit)
            snprintf(folders[count++], PATH_MAX, "%s/lib64/", toolkit);
    }
    snprintf(folders[count++], PATH_MAX, "/usr/local/cuda/lib64/");
    int kept = 0;
    for (int i = 0; i < count; i++) {
        bool again = false;
        for (int k = 0; k < kept; k++)
            again |= strcmp(folders[i], folders[k]) == 0;
        if (!again && i != kept)
            memcpy(folders[kept], folders[i], PATH_MAX);
        kept += !again;
    }
    return kept;
}

/* Where the loader found what it opened. */
static void note_path(struct Opened *library, const char *asked, void *symbol) {
    Dl_info info;
    snprintf(library->path, PATH_MAX, "%s",
             symbol && dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : asked);
}

/* The release of CUDA that the driver is for, where it is open; else one later than all. */
static int driver_release(void) {
    int version = 0;
    bool known = opened[CUDA_DRIVER].handle && table.cuDriverGetVersion &&
                 table.cuDriverGetVersion(&version) == CUDA_SUCCESS;
    return known ? version / 1000 : INT_MAX;
}

static bool open_library(CudaLibrary library, Text *looked_for) {
    char folders[3][PATH_MAX];
    int count = search_folders(folders), newest = library == CUDA_DRIVER ? 0 : driver_release();
    for (int i = -1; i < count; i++)
        for (const LibraryFile *file = kinds[library].files; file->name; file++) {
            char path[PATH_MAX + 64];
            if (file->release > newest)
                continue;
            snprintf(path, sizeof path, "%s%s", i < 0 ? "" : folders[i], file->name);
            opened[library].handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (opened[library].handle) {
                snprintf(opened[library].path, PATH_MAX, "%.*s", PATH_MAX - 1, path);
                return true;
            }
            text_printf(looked_for, "%s%s", looked_for->length ? ", " : "", path);
        }
    return false;
}

/* ---- symbols ------------------------------------------------------------------------- */

typedef struct Symbol {
    CudaLibrary library;
    const char *name;
    void **place; /* in the table */
} Symbol;

static const Symbol symbols[] = {
#define ROW(library, type, name, parameters) {library, #name, (void **)(void *)&table.name},
#include "cuda/library.def"
#undef ROW
};

static void forget(CudaLibrary library) {
    for (int i = 0; i < COUNT_OF(symbols); i++)
        if (symbols[i].library == library)
            *symbols[i].place = NULL;
    if (opened[library].handle)
        dlclose(opened[library].handle);
    opened[library] = (struct Opened){0};
}

/* The name of a function that the library lacks; NULL. */
static const char *find_symbols(CudaLibrary library) {
    for (int i = 0; i < COUNT_OF(symbols); i++) {
        if (symbols[i].library != library)
            continue;
        *symbols[i].place = dlsym(opened[library].handle, symbols[i].name);
        if (!*symbols[i].place)
            return symbols[i].name;
        note_path(&opened[library], opened[library].path, *symbols[i].place);
    }
    return NULL;
}

/* False after reporting. */
static bool driver_is_new_enough(Diagnostics *diagnostics) {
    int version = 0;
    CUresult result = table.cuDriverGetVersion(&version);
    if (result == CUDA_SUCCESS && version >= CUDA_DRIVER_LEAST)
        return true;
    Diagnostic *d =
        error_in_file(diagnostics, opened[CUDA_DRIVER].path,
                      result == CUDA_SUCCESS
                          ? "the CUDA driver is for CUDA %d.%d, and colac needs one for %d.%d"
                          : "the CUDA driver does not tell its version",
                      version / 1000, version % 1000 / 10, CUDA_DRIVER_LEAST / 1000,
                      CUDA_DRIVER_LEAST % 1000 / 10);
    help(d,
         "a newer one comes with NVIDIA's driver (Debian: nvidia-driver); `--device cpu` needs "
         "none");
    return false;
}

const CudaTable *cuda_library(CudaLibrary library, Diagnostics *diagnostics) {
    if (opened[library].handle)
        return &table;
    const LibraryKind *kind = &kinds[library];
    Text looked_for = {0};
    const char *missing = NULL;
    bool good = open_library(library, &looked_for);
    if (!good) {
        Diagnostic *d =
            error_in_file(diagnostics, kind->files->name, "%s was not found: looked for %s",
                          kind->what, text_string(&looked_for));
        if (library != CUDA_DRIVER && kind->files->release > driver_release())
            note_at(d, (Span){0}, "the driver is for CUDA %d, so `%s` was not looked for",
                    driver_release(), kind->files->name);
        help(d, "%s", kind->remedy);
    } else if ((missing = find_symbols(library))) {
        help(error_in_file(diagnostics, opened[library].path,
                           "%s that was found has no function `%s`: it is too old", kind->what,
                           missing),
             "%s", kind->remedy);
        good = false;
    } else if (library == CUDA_DRIVER) {
        good = driver_is_new_enough(diagnostics);
    }
    text_free(&looked_for);
    if (!good)
        forget(library);
    return good ? &table : NULL;
}

const char *cuda_library_path(CudaLibrary library) {
    return opened[library].handle ? opened[library].path : NULL;
}

uint64_t cuda_library_stamp(CudaLibrary library) {
    struct stat info;
    char text[128];
    if (!opened[library].handle || stat(opened[library].path, &info) != 0)
        return 0;
    int length = snprintf(text, sizeof text, "%jd %jd.%09ld", (intmax_t)info.st_size,
                          (intmax_t)info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
    return hash_bytes(text, (size_t)length, 0);
}

void cuda_library_close(void) {
    for (CudaLibrary library = CUDA_DRIVER; library < CUDA_LIBRARY_COUNT; library++)
        forget(library);
}
