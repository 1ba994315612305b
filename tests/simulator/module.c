/* tests/simulator/module.c: the card itself, NVRTC and modules. */
#include "tests/emulator/emulator.h"
#include "tests/simulator/simulator.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the card ------------------------------------------------------------------------------- */

CUresult cuInit(unsigned flags) {
    (void)flags;
    CALL(cuInit, CUDA_ERROR_NO_DEVICE);
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    CALL(cuDriverGetVersion, CUDA_ERROR_INVALID_VALUE);
    *version = settings()->version;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult result, const char **name) {
    *name = result == CUDA_ERROR_OUT_OF_MEMORY     ? "CUDA_ERROR_OUT_OF_MEMORY"
            : result == CUDA_ERROR_NO_DEVICE       ? "CUDA_ERROR_NO_DEVICE"
            : result == CUDA_ERROR_ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                                   : "CUDA_ERROR_UNKNOWN";
    return called("cuGetErrorName") ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult result, const char **words) {
    *words = result == CUDA_ERROR_OUT_OF_MEMORY     ? "out of memory"
             : result == CUDA_ERROR_NO_DEVICE       ? "no CUDA-capable device is detected"
             : result == CUDA_ERROR_ILLEGAL_ADDRESS ? "an illegal memory access was encountered"
                                                    : "an error of the simulated card";
    return called("cuGetErrorString") ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    CALL(cuDeviceGetCount, CUDA_ERROR_NOT_INITIALIZED);
    *count = settings()->cards;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int number) {
    CALL(cuDeviceGet, CUDA_ERROR_INVALID_VALUE);
    *device = 7 + number;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    (void)device;
    CALL(cuDeviceGetName, CUDA_ERROR_INVALID_VALUE);
    snprintf(name, (size_t)length, "simulated card, sm_%d", settings()->architecture);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    (void)device;
    CALL(cuDeviceGetAttribute, CUDA_ERROR_INVALID_VALUE);
    int architecture = settings()->architecture;
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? architecture / 10
                                                                       : architecture % 10;
    return CUDA_SUCCESS;
}

static char last_context;

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    (void)device;
    CALL(cuDevicePrimaryCtxRetain, CUDA_ERROR_OUT_OF_MEMORY);
    *context = (CUcontext)(void *)&last_context;
    count_object(OBJECT_CONTEXT, 1);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    (void)device;
    count_object(OBJECT_CONTEXT, -1);
    CALL(cuDevicePrimaryCtxRelease_v2, CUDA_ERROR_ILLEGAL_ADDRESS);
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    CALL(cuCtxSetCurrent, CUDA_ERROR_ILLEGAL_ADDRESS);
    return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

enum { NVRTC_ERROR_INTERNAL = 11 };

/* ---- NVRTC ---------------------------------------------------------------------------------- */

static const char magic[] = "\177ELF simulated";

/* A "cubin": the magic, the architecture, the text. */
typedef struct Image {
    char magic[sizeof magic];
    int architecture;
    char text[];
} Image;

struct _nvrtcProgram {
    char *source, *log;
    int architecture;
};

const char *nvrtcGetErrorString(nvrtcResult result) {
    return result == NVRTC_SUCCESS ? "NVRTC_SUCCESS" : "NVRTC_ERROR_INTERNAL_ERROR";
}

nvrtcResult nvrtcVersion(int *major, int *minor) {
    CALL(nvrtcVersion, NVRTC_ERROR_INTERNAL);
    *major = settings()->nvrtc / 10;
    *minor = settings()->nvrtc % 10;
    return NVRTC_SUCCESS;
}

static const int known[] = {75, 80, 86, 87, 89, 90, 100, 101, 120};

nvrtcResult nvrtcGetNumSupportedArchs(int *count) {
    CALL(nvrtcGetNumSupportedArchs, NVRTC_ERROR_INTERNAL);
    *count = (int)(sizeof known / sizeof *known);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetSupportedArchs(int *architectures) {
    CALL(nvrtcGetSupportedArchs, NVRTC_ERROR_INTERNAL);
    memcpy(architectures, known, sizeof known);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *source, const char *name,
                               int header_count, const char *const *headers,
                               const char *const *header_names) {
    CALL(nvrtcCreateProgram, NVRTC_ERROR_INTERNAL);
    (void)name;
    (void)header_count;
    (void)headers;
    (void)header_names;
    *program = calloc(1, sizeof **program);
    (*program)->source = strdup(source);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    free((*program)->source);
    free((*program)->log);
    free(*program);
    *program = NULL;
    CALL(nvrtcDestroyProgram, NVRTC_ERROR_INTERNAL);
    return NVRTC_SUCCESS;
}

/* The name of the __global__ function that is declared after `at`; where its parameters begin;
 * NULL:  no more. */
static const char *next_function(const char *at, char name[512]) {
    at = strstr(at, "\nCOLAC_KERNEL __launch_bounds__(");
    if (!at)
        return NULL;
    at = strchr(at, ')');
    while (*at == ')' || *at == '\n')
        at++;
    size_t length = strcspn(at, "(");
    snprintf(name, 512, "%.*s", (int)length, at);
    return at + length + 1;
}

/* The log has the form of ptxas's. */
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int option_count,
                                const char *const *options) {
    char name[512];
    size_t length;
    CALL(nvrtcCompileProgram, NVRTC_ERROR_COMPILATION);
    for (int i = 0; i < option_count; i++)
        if (strncmp(options[i], "--gpu-architecture=sm_", 22) == 0)
            program->architecture = atoi(options[i] + 22);
    for (int i = 0; i < option_count; i++)
        if (strcmp(options[i], "--no-cache") == 0 && settings()->nvrtc < 129)
            return NVRTC_ERROR_INVALID_OPTION;
    FILE *log = open_memstream(&program->log, &length);
    for (const char *at = program->source;
         !settings()->silent && (at = next_function(at, name));)
        fprintf(log,
                "ptxas info    : Compiling entry function '%s' for 'sm_%d'\n"
                "ptxas info    : Function properties for %s\n"
                "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
                "ptxas info    : Used 32 registers, used 0 barriers, 384 bytes cmem[0]\n",
                name, program->architecture, name);
    fclose(log);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t *bytes) {
    CALL(nvrtcGetProgramLogSize, NVRTC_ERROR_INTERNAL);
    *bytes = program->log ? strlen(program->log) + 1 : 0;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char *log) {
    CALL(nvrtcGetProgramLog, NVRTC_ERROR_INTERNAL);
    strcpy(log, program->log);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t *bytes) {
    CALL(nvrtcGetCUBINSize, NVRTC_ERROR_INTERNAL);
    *bytes = sizeof(Image) + strlen(program->source) + 1;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char *cubin) {
    CALL(nvrtcGetCUBIN, NVRTC_ERROR_INTERNAL);
    Image *image = (Image *)(void *)cubin;
    memcpy(image->magic, magic, sizeof magic);
    image->architecture = program->architecture;
    strcpy(image->text, program->source);
    return NVRTC_SUCCESS;
}

/* ---- modules -------------------------------------------------------------------------------- */

enum { NO_BINARY_FOR_GPU = 209, MAX_PARAMETERS = 72 };

struct CUfunc_st {
    EmulatorFunction function;
    char name[512];
    int parameters;
    struct CUfunc_st *next;
};
struct CUmod_st {
    EmulatorModule *compiled;
    char *text;
    struct CUfunc_st *functions;
};

/* Compiled kernels call the emulator, which is in this object: its symbols become
 * everyone's. */
static void become_global(void) {
    static bool done;
    Dl_info info;
    if (!done && dladdr(magic, &info) &&
        !dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL))
        fault("cannot make %s global: %s", info.dli_fname, dlerror());
    done = true;
}

static const char *object_folder(void) {
    static char folder[128];
    const char *asked = getenv("COLAC_SIMULATE_OBJECTS");
    if (asked)
        return asked;
    snprintf(folder, sizeof folder, "/tmp/colac-simulated-%u", (unsigned)getuid());
    mkdir(folder, 0700);
    return folder;
}

CUresult cuModuleLoadData(CUmodule *module, const void *bytes) {
    CALL(cuModuleLoadData, CUDA_ERROR_OUT_OF_MEMORY);
    REFUSE_WHILE_CAPTURING();
    const Image *image = bytes;
    if (memcmp(image->magic, magic, sizeof magic) != 0)
        fault("this is no cubin of the simulated NVRTC");
    /* A card runs cubins of its own generation, and no newer ones; Tegra's (87, 101) are
     * apart. */
    int card = settings()->architecture, made_for = image->architecture;
    bool apart = made_for == 87 || made_for == 101 || card == 87 || card == 101;
    if (made_for / 10 != card / 10 || made_for > card || (apart && made_for != card))
        return NO_BINARY_FOR_GPU;
    become_global();
    const char *sources[] = {image->text};
    CUmodule loaded = calloc(1, sizeof *loaded);
    loaded->text = strdup(image->text);
    loaded->compiled = emulator_compile(sources, 1, object_folder());
    if (!loaded->compiled)
        fault("the emulator's compiler refuses a kernel");
    *module = loaded;
    count_object(OBJECT_MODULE, 1);
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
    REFUSE_WHILE_CAPTURING();
    emulator_unload(module->compiled);
    while (module->functions) {
        struct CUfunc_st *function = module->functions;
        module->functions = function->next;
        free(function);
    }
    free(module->text);
    free(module);
    count_object(OBJECT_MODULE, -1);
    CALL(cuModuleUnload, CUDA_ERROR_ILLEGAL_ADDRESS);
    return CUDA_SUCCESS;
}

/* Commas between the parameters, outside of comments. */
static int count_parameters(const char *at) {
    int count = 1;
    bool comment = false;
    for (; comment || *at != ')'; at++) {
        if (at[0] == '/' && at[1] == '*')
            comment = true;
        if (at[0] == '*' && at[1] == '/')
            comment = false;
        count += !comment && *at == ',';
    }
    return count;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    CALL(cuModuleGetFunction, CUDA_ERROR_NOT_FOUND);
    char found[512];
    const char *at = module->text;
    while ((at = next_function(at, found)) && strcmp(found, name) != 0)
        ;
    if (!at)
        return CUDA_ERROR_NOT_FOUND;
    CUfunction made = calloc(1, sizeof *made);
    snprintf(made->name, sizeof made->name, "%s", name);
    made->function = emulator_function(module->compiled, name);
    made->parameters = count_parameters(at);
    made->next = module->functions;
    module->functions = made;
    *function = made;
    return CUDA_SUCCESS;
}

static void run_launch(Work *work) {
    void *arguments[MAX_PARAMETERS];
    for (int i = 0; i < work->address_count; i++)
        arguments[i] = host_of(work->addresses[i], 1, work->launch.function->name);
    EmulatorLaunch launch = {.function = work->launch.function->function,
                             .name = work->launch.function->name,
                             .arguments = arguments,
                             .argument_count = work->address_count,
                             .seed = settings()->seed};
    memcpy(launch.grid, work->launch.grid, sizeof launch.grid);
    memcpy(launch.block, work->launch.block, sizeof launch.block);
    const char *found = emulator_launch(&launch);
    if (found)
        fault("%s", found);
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z,
                        unsigned shared_bytes, CUstream stream, void **parameters,
                        void **extra) {
    CALL(cuLaunchKernel, CUDA_ERROR_LAUNCH_FAILED);
    if (extra || shared_bytes || !grid_x || block_x * block_y * block_z > 1024 ||
        function->parameters > MAX_PARAMETERS)
        fault("%s is launched in a way that the simulator does not know", function->name);
    Work work = {.run = run_launch, .name = function->name};
    work.launch.function = function;
    memcpy(work.launch.grid, (unsigned[]){grid_x, grid_y, grid_z}, sizeof work.launch.grid);
    memcpy(work.launch.block, (unsigned[]){block_x, block_y, block_z},
           sizeof work.launch.block);
    for (int i = 0; i < function->parameters; i++)
        uses(&work, *(CUdeviceptr *)parameters[i]);
    return enqueue(stream, &work);
}
