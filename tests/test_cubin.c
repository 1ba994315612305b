/* CUDA C to cubins by NVRTC: what the compiler says, the cache, failures; then every kernel of
 * the shipped models, for three architectures.  Skipped where NVRTC is not to be found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/cuda.h"

static char cache[64];

static bool has_nvrtc(void) {
    Diagnostics *diagnostics = diagnostics_new();
    bool found = cuda_library(CUDA_NVRTC, diagnostics) != NULL;
    diagnostics_free(diagnostics);
    if (!found)
        print_message("NVRTC is not here\n");
    return found;
}

static int new_cache(void **state) {
    (void)state;
    snprintf(cache, sizeof cache, "/tmp/colac-cubin-XXXXXX");
    return mkdtemp(cache) && setenv("COLAC_CACHE", cache, 1) == 0 ? 0 : -1;
}

static int remove_cache(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", cache);
    return system(command);
}

static const char text_of_two[] =
    "extern \"C\" __global__ void plain(float *x) { x[threadIdx.x] = 1; }\n"
    "extern \"C\" __global__ void __launch_bounds__(128) shares(float *x) {\n"
    "  __shared__ float s[256];\n"
    "  s[threadIdx.x] = x[threadIdx.x]; __syncthreads(); x[threadIdx.x] = s[255 - "
    "threadIdx.x];\n"
    "}\n";
static const char *const two_names[] = {"plain", "shares"};

static CubinResult *compile(const char *text, const char *const *names, int count,
                            CudaArchitecture architecture, Diagnostics *diagnostics) {
    Launch launches[2] = {{0}};
    const Launch *named[2] = {&launches[0], &launches[1]};
    CudaSource source = {.text_count = 1, .launch_count = count, .launches = named};
    for (int i = 0; i < count; i++)
        launches[i].name = names[i];
    text_puts(&source.texts[0], text);
    CubinResult *result = cubin_compile(&source, architecture, false, diagnostics);
    text_free(&source.texts[0]);
    return result;
}

static void expect_words(Diagnostics *diagnostics, const char *const *words, int count) {
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    diagnostics_print(diagnostics, out);
    fclose(out);
    for (int i = 0; i < count; i++)
        if (!strstr(text, words[i]))
            fail_msg("`%s` is not in:\n%s", words[i], text);
    free(text);
}

/* ---- one text ------------------------------------------------------------------------------ */

static void resources_are_read(void **state) {
    (void)state;
    if (!has_nvrtc())
        skip();
    Diagnostics *diagnostics = diagnostics_new();
    CubinResult *result = compile(text_of_two, two_names, 2, 90, diagnostics);
    assert_non_null(result);
    assert_false(result->cached);
    assert_int_equal(result->resources[0].shared_bytes, 0);
    assert_int_equal(result->resources[1].shared_bytes, 1024);
    assert_in_range(result->resources[0].registers, 1, 32);
    assert_int_equal(result->resources[1].spill_bytes, 0);
    assert_memory_equal(result->cubins[0].bytes, "\177ELF", 4);
    cubin_free(result);
    result = compile(text_of_two, two_names, 2, 90, diagnostics);
    assert_non_null(result);
    assert_true(result->cached);
    assert_int_equal(result->resources[1].shared_bytes, 1024);
    assert_int_equal(diagnostics_errors(diagnostics), 0);
    cubin_free(result);
    diagnostics_free(diagnostics);
}

/* Many values alive at once, and 32 registers to hold them. */
static void spills_are_seen(void **state) {
    (void)state;
    if (!has_nvrtc())
        skip();
    Text text = {0};
    const char *const name[] = {"spills"};
    text_puts(&text,
              "extern \"C\" __global__ void __launch_bounds__(1024, 2) spills(float *x) {\n");
    for (int i = 0; i < 64; i++)
        text_printf(&text, "  float v%d = x[%d * 1024 + threadIdx.x];\n", i, i);
    text_puts(&text, "  __syncthreads();\n");
    for (int i = 0; i < 64; i++)
        text_printf(&text, "  x[%d * 1024 + threadIdx.x] = v%d + v%d;\n", i, i, 63 - i);
    text_puts(&text, "}\n");
    Diagnostics *diagnostics = diagnostics_new();
    CubinResult *result = compile(text_string(&text), name, 1, 80, diagnostics);
    assert_non_null(result);
    assert_true(result->resources[0].spill_bytes > 0);
    assert_true(result->resources[0].stack_bytes > 0);
    assert_int_equal(result->resources[0].registers, 32);
    cubin_free(result);
    text_free(&text);
    diagnostics_free(diagnostics);
}

static void a_wrong_text_is_our_fault_and_kept(void **state) {
    (void)state;
    if (!has_nvrtc())
        skip();
    Diagnostics *diagnostics = diagnostics_new();
    assert_null(compile("extern \"C\" __global__ void plain(float *x) { x[0] = y; }\n",
                        two_names, 1, 90, diagnostics));
    const char *const words[] = {"NVRTC refused a generated kernel", "identifier \"y\"",
                                 "kernels_0.cu", "please report"};
    expect_words(diagnostics, words, COUNT_OF(words));
    diagnostics_free(diagnostics);
    char command[256];
    snprintf(command, sizeof command, "test -s %s/build-*/kernels_0.cu", cache);
    assert_int_equal(system(command), 0);
}

static void an_unknown_architecture_is_told(void **state) {
    (void)state;
    if (!has_nvrtc())
        skip();
    Diagnostics *diagnostics = diagnostics_new();
    assert_null(compile(text_of_two, two_names, 2, 42, diagnostics));
    const char *const words[] = {"does not know the architecture sm_42", "sm_90"};
    expect_words(diagnostics, words, COUNT_OF(words));
    diagnostics_free(diagnostics);
    assert_int_equal(cuda_architecture("cuda:sm_90"), 90);
    assert_int_equal(cuda_architecture("sm_100"), 100);
    assert_int_equal(cuda_architecture("sm_9x"), 0);
    assert_int_equal(cuda_architecture("sm_99999"), 0);
}

/* The path of the one entry. */
static void find_entry(char path[512]) {
    DIR *folder = opendir(cache);
    struct dirent *entry;
    path[0] = 0;
    while ((entry = readdir(folder)))
        if (strstr(entry->d_name, ".cubin"))
            snprintf(path, 512, "%s/%s", cache, entry->d_name);
    closedir(folder);
    assert_true(path[0]);
}

static void a_damaged_entry_is_made_anew(void **state) {
    (void)state;
    if (!has_nvrtc())
        skip();
    Diagnostics *diagnostics = diagnostics_new();
    cubin_free(compile(text_of_two, two_names, 2, 90, diagnostics));
    char path[512];
    find_entry(path);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    fseek(file, 100, SEEK_SET);
    fputs("damage", file);
    fclose(file);
    CubinResult *result = compile(text_of_two, two_names, 2, 90, diagnostics);
    assert_non_null(result);
    assert_false(result->cached);
    cubin_free(result);
    result = compile(text_of_two, two_names, 2, 90, diagnostics);
    assert_true(result && result->cached);
    cubin_free(result);
    diagnostics_free(diagnostics);
}

static void two_processes_make_the_same(void **state) {
    (void)state;
    if (!has_nvrtc())
        skip();
    pid_t child[2];
    for (int i = 0; i < 2; i++) {
        child[i] = fork();
        if (child[i] == 0) {
            Diagnostics *diagnostics = diagnostics_new();
            _exit(compile(text_of_two, two_names, 2, 100, diagnostics) ? 0 : 1);
        }
    }
    for (int i = 0; i < 2; i++) {
        int status = 0;
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_int_equal(status, 0);
    }
}

/* ---- every kernel of the shipped models ---------------------------------------------------- */

enum { MOST_REGISTERS = 64 };
typedef struct Shipped {
    const char *path, *preset;
} Shipped;
static const Shipped shipped[] = {{"models/llama.cola", "60m"},
                                  {"models/gpt2.cola", NULL},
                                  {"models/bert.cola", NULL},
                                  {"models/mlp.cola", NULL}};
static const char *const plans[] = {"full", "gcp", "cola", "cola_gcp", "cola_m", "cola_lean"};

/* The kernels that no earlier set had, by name: a name holds the hash of the kernel's text. */
static ProgramSet *programs_of(const Shipped *model, const char *plan, const char *precision,
                               StringMap *seen, Compilation **compilation,
                               Diagnostics *diagnostics) {
    Request request = {
        .path = model->path, .preset = model->preset, .plan = plan, .precision = precision};
    *compilation = compile_model(&request, diagnostics);
    assert_non_null(*compilation);
    PassContext context = {.module = (*compilation)->module,
                           .compilation = *compilation,
                           .diagnostics = diagnostics,
                           .for_training = true};
    PassReports reports = {0};
    assert_true(run_passes(&context, NULL, &reports));
    array_free(&reports);
    (*compilation)->module = context.module;
    ProgramSet *set = emit_programs(context.module, &cuda_room, false);
    int kept = 0;
    for (int i = 0; i < set->kernel_count; i++) {
        if (string_map_get(seen, set->kernel_names[i], 0))
            continue;
        string_map_set(seen, set->kernel_names[i], 1);
        set->kernels[kept] = set->kernels[i];
        set->kernel_names[kept++] = set->kernel_names[i];
    }
    set->kernel_count = kept;
    return set;
}

static void check_launch(const Launch *launch, const KernelResources *r) {
    if (r->spill_bytes)
        fail_msg("%s spills %d bytes", launch->name, r->spill_bytes);
    if (r->registers < 1 || r->registers > MOST_REGISTERS)
        fail_msg("%s has %d registers", launch->name, r->registers);
    if (launch->shared_bytes > r->shared_bytes || r->shared_bytes > SHARED_BYTES)
        fail_msg("%s has %d bytes of shared memory, %d planned", launch->name, r->shared_bytes,
                 launch->shared_bytes);
}

static void check_set(const ProgramSet *set, CudaArchitecture architecture,
                      Diagnostics *diagnostics) {
    CudaSource source = cuda_source(set);
    CubinResult *result = cubin_compile(&source, architecture, false, diagnostics);
    if (!result)
        diagnostics_print(diagnostics, stderr);
    assert_non_null(result);
    for (int i = 0; i < source.launch_count; i++)
        check_launch(source.launches[i], &result->resources[i]);
    cubin_free(result);
    cuda_source_free(&source);
}

static void every_kernel_compiles_without_spills(void **state) {
    (void)state;
    static const CudaArchitecture architectures[] = {80, 90, 100};
    static const char *const precisions[] = {"f32", "bf16"};
    if (!has_nvrtc())
        skip();
    StringMap seen = {0};
    int kernels = 0;
    for (int m = 0; m < COUNT_OF(shipped); m++)
        for (int plan = 0; plan < COUNT_OF(plans); plan++)
            for (int p = 0; p < COUNT_OF(precisions); p++) {
                Diagnostics *diagnostics = diagnostics_new();
                Compilation *compilation;
                ProgramSet *set = programs_of(&shipped[m], plans[plan], precisions[p], &seen,
                                              &compilation, diagnostics);
                kernels += set->kernel_count;
                for (int a = 0; a < COUNT_OF(architectures) && set->kernel_count; a++)
                    check_set(set, architectures[a], diagnostics);
                program_set_free(set);
                compilation_free(compilation);
                diagnostics_free(diagnostics);
            }
    print_message("%d kernels\n", kernels);
    string_map_free(&seen);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        /* First: a process that has threads of OpenMP cannot fork one that wants some. */
        cmocka_unit_test_setup_teardown(two_processes_make_the_same, new_cache, remove_cache),
        cmocka_unit_test_setup_teardown(resources_are_read, new_cache, remove_cache),
        cmocka_unit_test_setup_teardown(spills_are_seen, new_cache, remove_cache),
        cmocka_unit_test_setup_teardown(a_wrong_text_is_our_fault_and_kept, new_cache,
                                        remove_cache),
        cmocka_unit_test_setup_teardown(an_unknown_architecture_is_told, new_cache,
                                        remove_cache),
        cmocka_unit_test_setup_teardown(a_damaged_entry_is_made_anew, new_cache, remove_cache),
        cmocka_unit_test_setup_teardown(every_kernel_compiles_without_spills, new_cache,
                                        remove_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
