/* cuda/cubin.c: CUDA C -> cubins by NVRTC, kept in the cache of compiled kernels.
 *
 * An entry holds the cubin and what the compiler says of its functions: a line of figures for
 * each, taken from the log, since a cubin's own notes are no documented form. */
#include "cuda/cuda.h"

#include <ctype.h>
#include <inttypes.h>
#include <omp.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_SHOWN = 1200 }; /* of a failed compilation's log */

static const char *const option_list[] = {
    "--std=c++20", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true",
    /* The preludes' functions run on the card, without a word at each. */
    "--device-as-default-execution-space",
    /* What the compiler says of each function is in its log. */
    "--ptxas-options=-v"};

const char *cubin_options(void) {
    static char joined[256];
    for (int i = 0; i < COUNT_OF(option_list) && (i || !joined[0]); i++) {
        size_t length = strlen(joined);
        snprintf(joined + length, sizeof joined - length, "%s%s", i ? " " : "", option_list[i]);
    }
    return joined;
}

/* From release 12.9 on NVRTC takes cubins from the driver's own cache, and is then silent about
 * them. */
static const char no_cache[] = "--no-cache";

/* NVRTC has no files of the C library. */
static const char *const header_names[] = {"stdint.h", "stdbool.h"};
static const char *const headers[] = {
    "typedef signed char int8_t;\ntypedef unsigned char uint8_t;\n"
    "typedef short int16_t;\ntypedef unsigned short uint16_t;\n"
    "typedef int int32_t;\ntypedef unsigned int uint32_t;\n"
    "typedef long long int64_t;\ntypedef unsigned long long uint64_t;\n"
    "#define INT32_MAX 2147483647\n#define INT32_MIN (-INT32_MAX - 1)\n",
    ""};

CudaArchitecture cuda_architecture(const char *text) {
    if (strncmp(text, "cuda:", 5) == 0)
        text += 5;
    if (strncmp(text, "sm_", 3) != 0 || !isdigit((unsigned char)text[3]) || strlen(text) > 6)
        return 0;
    char *end;
    long number = strtol(text + 3, &end, 10);
    return *end || number < 10 ? 0 : (CudaArchitecture)number;
}

/* ---- what the compiler says ---------------------------------------------------------- */

/* The number in front of ` WORDS` in a line of the log; 0. */
static int number_before(const char *line, const char *words) {
    const char *end = strchr(line, '\n'), *found = strstr(line, words);
    if (!found || (end && found > end))
        return 0;
    while (found > line && isdigit((unsigned char)found[-1]))
        found--;
    return atoi(found);
}

static const char *next_line(const char *line) {
    const char *end = strchr(line, '\n');
    return end ? end + 1 : line + strlen(line);
}

/* Whether the line tells that a function is compiled, and which: its name. */
static bool begins_function(const char *line, char name[512]) {
    static const char words[] = "Compiling entry function '";
    const char *end = next_line(line), *found = strstr(line, words);
    if (!found || found > end)
        return false;
    found += sizeof words - 1;
    size_t length = strcspn(found, "'\n");
    snprintf(name, 512, "%.*s", (int)length, found);
    return true;
}

/* A line `NAME registers shared stack spill constant` for each function of a log.  Each figure
 * stands in one line of the function's, others have 0 for it. */
static void figures_of_log(const char *log, Text *out) {
    char name[512] = "";
    KernelResources all = {0};
    for (const char *line = log;; line = next_line(line)) {
        char next[512];
        bool begins = begins_function(line, next);
        if ((begins || !*line) && name[0])
            text_printf(out, "%s %d %d %d %d %d\n", name, all.registers, all.shared_bytes,
                        all.stack_bytes, all.spill_bytes, all.constant_bytes);
        if (!*line)
            return;
        if (begins) {
            memcpy(name, next, sizeof name);
            all = (KernelResources){0};
        }
        all.registers += number_before(line, " registers");
        all.shared_bytes += number_before(line, " bytes smem");
        all.constant_bytes += number_before(line, " bytes cmem[0]");
        all.stack_bytes += number_before(line, " bytes stack frame");
        all.spill_bytes += number_before(line, " bytes spill stores") +
                           number_before(line, " bytes spill loads");
    }
}

/* ---- compiling ----------------------------------------------------------------------- */

typedef struct Job { /* one text */
    const Text *source;
    char entry[PATH_MAX];
    bool build;
    nvrtcResult result;
    const char *failed; /* the call that failed, or NULL */
    char *cubin, *log;  /* to be freed */
    size_t cubin_bytes;
} Job;

typedef struct Build {
    const CudaTable *nvrtc;
    CudaArchitecture architecture;
    bool has_cache; /* NVRTC, of its own */
    KernelCache cache;
    Job *jobs;
    int job_count;
    Diagnostics *diagnostics;
} Build;

/* Remembers the first call that failed. */
static bool succeeded(Job *job, const char *name, nvrtcResult result) {
    if (result != NVRTC_SUCCESS && !job->failed) {
        job->failed = name;
        job->result = result;
    }
    return result == NVRTC_SUCCESS;
}
#define NVRTC(name, ...) succeeded(job, #name, nvrtc->name(__VA_ARGS__))

static void take_log(const CudaTable *nvrtc, nvrtcProgram program, Job *job) {
    size_t bytes = 0;
    if (!NVRTC(nvrtcGetProgramLogSize, program, &bytes))
        return;
    job->log = checked_alloc(bytes + 1);
    if (bytes)
        NVRTC(nvrtcGetProgramLog, program, job->log);
}

static void take_cubin(const CudaTable *nvrtc, nvrtcProgram program, Job *job) {
    if (!NVRTC(nvrtcGetCUBINSize, program, &job->cubin_bytes))
        return;
    job->cubin = checked_alloc(job->cubin_bytes + 1);
    NVRTC(nvrtcGetCUBIN, program, job->cubin);
}

static void job_run(const Build *build, Job *job) {
    const CudaTable *nvrtc = build->nvrtc;
    const char *options[COUNT_OF(option_list) + 2];
    int option_count = 0;
    char architecture[64];
    snprintf(architecture, sizeof architecture, "--gpu-architecture=sm_%d",
             build->architecture);
    options[option_count++] = architecture;
    for (int i = 0; i < COUNT_OF(option_list); i++)
        options[option_count++] = option_list[i];
    if (build->has_cache)
        options[option_count++] = no_cache;
    nvrtcProgram program = NULL;
    if (!NVRTC(nvrtcCreateProgram, &program, text_string(job->source), "kernels.cu",
               COUNT_OF(headers), headers, header_names))
        return;
    bool compiled = NVRTC(nvrtcCompileProgram, program, option_count, options);
    take_log(nvrtc, program, job);
    if (compiled)
        take_cubin(nvrtc, program, job);
    NVRTC(nvrtcDestroyProgram, &program);
}

static void report_call(const Build *build, const char *name, nvrtcResult result) {
    error_in_file(build->diagnostics, cuda_library_path(CUDA_NVRTC), "`%s` failed: %s", name,
                  build->nvrtc->nvrtcGetErrorString(result));
}

/* Keeps the source where the report says, and gives the log's first lines. */
static void job_report(Build *build, Job *job) {
    char source[PATH_MAX];
    if (job->result != NVRTC_ERROR_COMPILATION) {
        report_call(build, job->failed, job->result);
        return;
    }
    snprintf(source, sizeof source, "%.*s/kernels_%d.cu", PATH_MAX - 64, build->cache.folder,
             (int)(job - build->jobs));
    if (!cache_write(&build->cache, source, text_string(job->source), job->source->length))
        return;
    const char *said =
        job->log && job->log[0] ? job->log : build->nvrtc->nvrtcGetErrorString(job->result);
    int shown = (int)strnlen(said, MAX_SHOWN);
    while (shown > 0 && isspace((unsigned char)said[shown - 1]))
        shown--;
    help(error_in_file(build->diagnostics, source, "NVRTC refused a generated kernel:\n%.*s",
                       shown, said),
         "this is a fault of colac or of NVRTC: please report it with the file above, which is "
         "kept");
}

/* An entry's bytes: how long the cubin is, the cubin, the figures. */
static bool job_publish(Build *build, Job *job) {
    Text text = {0};
    char made[PATH_MAX];
    uint64_t bytes = job->cubin_bytes;
    snprintf(made, sizeof made, "%.*s/kernels_%d.entry", PATH_MAX - 64, build->cache.folder,
             (int)(job - build->jobs));
    text_append(&text, (const char *)&bytes, sizeof bytes);
    text_append(&text, job->cubin, job->cubin_bytes);
    figures_of_log(job->log, &text);
    bool good = cache_write(&build->cache, made, text_string(&text), text.length) &&
                cache_publish(&build->cache, made, job->entry);
    text_free(&text);
    return good;
}

/* Every text that the cache lacks, as many at a time as there are processors. */
static bool jobs_run(Build *build) {
    bool good = true;
#pragma omp parallel for schedule(dynamic, 1) num_threads(omp_get_num_procs())
    for (int i = 0; i < build->job_count; i++)
        if (build->jobs[i].build)
            job_run(build, &build->jobs[i]);
    for (int i = 0; i < build->job_count && good; i++) {
        Job *job = &build->jobs[i];
        if (!job->build)
            continue;
        good = !job->failed;
        if (good)
            good = job_publish(build, job);
        else
            job_report(build, job);
    }
    return good;
}

/* ---- the cache ----------------------------------------------------------------------- */

/* What compiles: the library's version, and its file.  False after reporting. */
static bool library_identity(Build *build, uint64_t *identity) {
    int major = 0, minor = 0;
    nvrtcResult result = build->nvrtc->nvrtcVersion(&major, &minor);
    if (result != NVRTC_SUCCESS)
        report_call(build, "nvrtcVersion", result);
    build->has_cache = major > 12 || (major == 12 && minor >= 9);
    const uint64_t parts[] = {(uint64_t)major, (uint64_t)minor, cuda_library_stamp(CUDA_NVRTC)};
    *identity = hash_bytes(parts, sizeof parts, 0);
    return result == NVRTC_SUCCESS;
}

/* Which entries the cache has.  The number that must be made. */
static int jobs_look_up(Build *build, const Text *sources, uint64_t identity) {
    int missing = 0;
    for (int i = 0; i < build->job_count; i++) {
        Job *job = &build->jobs[i];
        char key[33];
        job->source = &sources[i];
        const void *parts[] = {cubin_options(), headers[0], &identity, &build->architecture,
                               text_string(job->source)};
        const size_t lengths[] = {strlen(cubin_options()), strlen(headers[0]), sizeof identity,
                                  sizeof build->architecture, job->source->length};
        cache_key(parts, lengths, COUNT_OF(parts), key);
        job->build = !cache_look_up(&build->cache, key, ".cubin", job->entry);
        missing += job->build;
    }
    return missing;
}

static void build_clean(Build *build) {
    for (int i = 0; i < build->job_count; i++) {
        free(build->jobs[i].cubin);
        free(build->jobs[i].log);
        if (build->cache.temporary && build->jobs[i].build)
            unlink(build->jobs[i].entry);
    }
    if (build->cache.folder[0])
        rmdir(build->cache.folder); /* stays where a refused source is kept in it */
    free(build->jobs);
}

/* ---- results ------------------------------------------------------------------------- */

/* The figures after a cubin: those of all names that are its functions. */
static void read_figures(CubinResult *result, const char *lines, size_t length,
                         const StringMap *numbers) {
    const char *end = lines + length;
    while (lines < end) {
        char name[512];
        KernelResources r;
        int fields = sscanf(lines, "%511s %d %d %d %d %d", name, &r.registers, &r.shared_bytes,
                            &r.stack_bytes, &r.spill_bytes, &r.constant_bytes);
        int number = fields == 6 ? (int)string_map_get(numbers, name, 0) - 1 : -1;
        if (number >= 0)
            result->resources[number] = r;
        lines = next_line(lines);
    }
}

static bool read_entry(CubinResult *result, int cubin, const char *path,
                       const StringMap *numbers) {
    size_t length = 0;
    char *bytes = cache_read(path, &length);
    uint64_t cubin_bytes = 0;
    if (bytes && length >= sizeof cubin_bytes)
        memcpy(&cubin_bytes, bytes, sizeof cubin_bytes);
    if (!bytes || length < sizeof cubin_bytes || cubin_bytes > length - sizeof cubin_bytes) {
        free(bytes);
        return false;
    }
    size_t begin = sizeof cubin_bytes + (size_t)cubin_bytes;
    Text figures = {0};
    text_append(&figures, bytes + begin, length - begin);
    read_figures(result, text_string(&figures), figures.length, numbers);
    text_free(&figures);
    Cubin *at = &result->cubins[cubin];
    at->size = (size_t)cubin_bytes;
    at->bytes = checked_alloc(at->size + 1);
    memcpy(at->bytes, bytes + sizeof cubin_bytes, at->size);
    free(bytes);
    return true;
}

/* NULL after reporting. */
static CubinResult *read_entries(const Build *build, const CudaSource *source) {
    CubinResult *result = checked_alloc(sizeof *result);
    StringMap numbers = {0};
    bool good = true;
    result->cubin_count = build->job_count;
    result->cubins = checked_alloc((size_t)build->job_count * sizeof *result->cubins);
    result->resources = checked_alloc((size_t)source->launch_count * sizeof *result->resources);
    for (int i = 0; i < source->launch_count; i++) {
        result->resources[i].registers = -1;
        string_map_set(&numbers, source->launches[i]->name, i + 1);
    }
    for (int i = 0; i < build->job_count && good; i++) {
        good = read_entry(result, i, build->jobs[i].entry, &numbers);
        if (!good)
            error_in_file(build->diagnostics, build->jobs[i].entry,
                          "cannot read a compiled kernel");
    }
    string_map_free(&numbers);
    if (good)
        return result;
    cubin_free(result);
    return NULL;
}

void cubin_free(CubinResult *result) {
    if (!result)
        return;
    for (int i = 0; i < result->cubin_count; i++)
        free(result->cubins[i].bytes);
    free(result->cubins);
    free(result->resources);
    free(result);
}

/* What the library knows, to be freed; NULL after reporting. */
static int *known_architectures(const Build *build, int *count) {
    nvrtcResult result = build->nvrtc->nvrtcGetNumSupportedArchs(count);
    if (result != NVRTC_SUCCESS) {
        report_call(build, "nvrtcGetNumSupportedArchs", result);
        return NULL;
    }
    int *known = checked_alloc((size_t)(*count + 1) * sizeof *known);
    result = build->nvrtc->nvrtcGetSupportedArchs(known);
    if (result == NVRTC_SUCCESS)
        return known;
    report_call(build, "nvrtcGetSupportedArchs", result);
    free(known);
    return NULL;
}

/* Those of Tegra run no cubins but their own, and no others run theirs (CUDA programming guide,
 * "Binary compatibility"). */
static bool is_tegra(CudaArchitecture architecture) {
    static const CudaArchitecture tegra[] = {53, 62, 72, 87, 101, 110};
    for (int i = 0; i < COUNT_OF(tegra); i++)
        if (tegra[i] == architecture)
            return true;
    return false;
}

/* What to compile for: the architecture asked for, or where NVRTC does not know it and that
 * will do, an older one.  False after reporting, with those that it knows. */
static bool settle_architecture(Build *build, bool or_an_older) {
    int count = 0, *known = known_architectures(build, &count);
    if (!known)
        return false;
    bool found = false;
    CudaArchitecture wanted = build->architecture, older = 0;
    Text list = {0};
    for (int i = 0; i < count; i++) {
        found |= known[i] == wanted;
        if (known[i] / 10 == wanted / 10 && known[i] < wanted && known[i] > older &&
            !is_tegra(known[i]) && !is_tegra(wanted))
            older = known[i];
        text_printf(&list, "%ssm_%d", i ? ", " : "", known[i]);
    }
    if (!found && or_an_older && older) {
        build->architecture = older;
        found = true;
    }
    if (!found)
        error_in_file(build->diagnostics, "--device",
                      "NVRTC (%s) does not know the architecture sm_%d; it knows %s",
                      cuda_library_path(CUDA_NVRTC), wanted, text_string(&list));
    text_free(&list);
    free(known);
    return found;
}

CubinResult *cubin_compile(const CudaSource *source, CudaArchitecture architecture,
                           bool or_an_older, Diagnostics *diagnostics) {
    double start = now_seconds();
    Build build = {.nvrtc = cuda_library(CUDA_NVRTC, diagnostics),
                   .architecture = architecture,
                   .job_count = source->text_count,
                   .diagnostics = diagnostics};
    uint64_t identity = 0;
    if (!build.nvrtc || !settle_architecture(&build, or_an_older) ||
        !library_identity(&build, &identity))
        return NULL;
    build.jobs = checked_alloc((size_t)build.job_count * sizeof *build.jobs);
    cache_find(&build.cache, diagnostics);
    int missing = jobs_look_up(&build, source->texts, identity);
    CubinResult *result = NULL;
    if (missing == 0 || (cache_begin(&build.cache) && jobs_run(&build)))
        result = read_entries(&build, source);
    build_clean(&build);
    if (!result)
        return NULL;
    result->cached = missing == 0;
    result->seconds = now_seconds() - start;
    return result;
}
