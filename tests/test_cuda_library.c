/* What colac declares of NVIDIA's interfaces against NVIDIA's own headers, where they are; the
 * sentences when a library is missing, too old or only half there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda/cuda.h"

/* ---- against the headers --------------------------------------------------------------- */

static const char *const numbers[] = {"CUDA_SUCCESS",
                                      "CUDA_ERROR_INVALID_VALUE",
                                      "CUDA_ERROR_OUT_OF_MEMORY",
                                      "CUDA_ERROR_NOT_INITIALIZED",
                                      "CUDA_ERROR_NO_DEVICE",
                                      "CUDA_ERROR_INVALID_HANDLE",
                                      "CUDA_ERROR_NOT_FOUND",
                                      "CUDA_ERROR_ILLEGAL_ADDRESS",
                                      "CUDA_ERROR_LAUNCH_FAILED",
                                      "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
                                      "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
                                      "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
                                      "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
                                      "CU_STREAM_NON_BLOCKING",
                                      "CU_EVENT_DEFAULT",
                                      "CU_EVENT_DISABLE_TIMING",
                                      "CU_EVENT_RECORD_EXTERNAL",
                                      "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL",
                                      "NVRTC_SUCCESS",
                                      "NVRTC_ERROR_INVALID_OPTION",
                                      "NVRTC_ERROR_COMPILATION",
                                      "CUBLAS_STATUS_SUCCESS",
                                      "CUBLAS_STATUS_ALLOC_FAILED",
                                      "CUBLAS_STATUS_NOT_SUPPORTED",
                                      "CUBLAS_OP_N",
                                      "CUBLAS_OP_T",
                                      "CUBLAS_COMPUTE_32F",
                                      "CUBLAS_COMPUTE_32F_FAST_TF32",
                                      "CUDA_R_32F",
                                      "CUDA_R_16BF",
                                      "CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT",
                                      "CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET",
                                      "CUBLASLT_MATMUL_DESC_TRANSA",
                                      "CUBLASLT_MATMUL_DESC_TRANSB",
                                      "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES",
                                      "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK",
                                      "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES",
                                      "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES",
                                      "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES",
                                      "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES",
                                      "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE",
                                      "CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE"};
static const char *const types[] = {"CUresult",
                                    "CUdevice",
                                    "CUdeviceptr",
                                    "CUstream",
                                    "nvrtcResult",
                                    "nvrtcProgram",
                                    "cublasStatus_t",
                                    "cublasOperation_t",
                                    "cublasComputeType_t",
                                    "cudaDataType_t",
                                    "cublasLtMatmulAlgo_t",
                                    "cublasLtMatmulHeuristicResult_t"};

static const char *const handles[] = {"CUcontext",
                                      "CUmodule",
                                      "CUfunction",
                                      "CUstream",
                                      "CUevent",
                                      "CUgraph",
                                      "CUgraphExec",
                                      "nvrtcProgram",
                                      "cublasLtHandle_t",
                                      "cublasLtMatmulDesc_t",
                                      "cublasLtMatrixLayout_t",
                                      "cublasLtMatmulPreference_t",
                                      "cublasLtMatmulAlgo_t",
                                      "cublasLtMatmulHeuristicResult_t"};

/* Handles are alike by name; pointers where what they point to is, and is as constant; numbers
 * of one size are, as enumerations are numbers here. */
static const char alike[] =
    "template <class A, class B> struct Alike { static const bool value = "
    "sizeof(A) == sizeof(B) && "
    "(std::is_arithmetic<A>::value || std::is_enum<A>::value) && "
    "(std::is_arithmetic<B>::value || std::is_enum<B>::value); };\n"
    "template <> struct Alike<void, void> : std::true_type {};\n"
    "template <class A, class B> struct Alike<const A, const B> : Alike<A, B> {};\n"
    "template <class A, class B> struct Alike<A *, B *> { static const bool value = "
    "std::is_const<A>::value == std::is_const<B>::value && Alike<A, B>::value; };\n";
static const char same_parameters[] =
    "template <class A, class B> struct Same : std::false_type {};\n"
    "template <class R, class S, class... A, class... B> struct Same<R(A...), S(B...)> {\n"
    "  template <bool enough, class Dummy> struct Each : std::false_type {};\n"
    "  template <class Dummy> struct Each<true, Dummy> { static const bool value = "
    "Alike<R, S>::value && (true && ... && Alike<A, B>::value); };\n"
    "  static const bool value = Each<sizeof...(A) == sizeof...(B), void>::value; };\n"
    "namespace ours {\n#define ROW(library, type, name, parameters) type name parameters;\n"
    "#include \"cuda/library.def\"\n#undef ROW\n}\n"
    "#define ROW(library, type, name, parameters) static_assert("
    "Same<decltype(ours::name), decltype(::name)>::value, #name);\n"
    "#include \"cuda/library.def\"\n";

/* A C++ text that is accepted only where every number, size and signature agrees: api.h in a
 * namespace of its own beside NVIDIA's headers. */
static void write_comparison(FILE *file) {
    fputs("#include <cublasLt.h>\n#include <cuda.h>\n#include <nvrtc.h>\n#include <stddef.h>\n"
          "#include <type_traits>\nnamespace ours {\n#include \"cuda/api.h\"\n}\n",
          file);
    for (int i = 0; i < COUNT_OF(numbers); i++)
        fprintf(file, "static_assert((long)ours::%s == (long)::%s, \"%s\");\n", numbers[i],
                numbers[i], numbers[i]);
    for (int i = 0; i < COUNT_OF(types); i++)
        fprintf(file, "static_assert(sizeof(ours::%s) == sizeof(::%s), \"%s\");\n", types[i],
                types[i], types[i]);
    fputs("static_assert(offsetof(ours::cublasLtMatmulHeuristicResult_t, state) == "
          "offsetof(::cublasLtMatmulHeuristicResult_t, state), \"state\");\n",
          file);
    fputs(alike, file);
    for (int i = 0; i < COUNT_OF(handles); i++)
        fprintf(file, "template <> struct Alike<ours::%s, ::%s> : std::true_type {};\n",
                handles[i], handles[i]);
    fputs(same_parameters, file);
}

static void agrees_with_the_headers(void **state) {
    (void)state;
    const char *folder = "/usr/local/cuda/include";
    char path[] = "/tmp/colac-headers-XXXXXX.cc", command[512];
    if (access("/usr/local/cuda/include/cublasLt.h", R_OK) != 0 ||
        system("c++ --version >/dev/null 2>&1") != 0) {
        print_message("no CUDA headers in %s, or no C++ compiler: nothing to compare with\n",
                      folder);
        skip();
    }
    int descriptor = mkstemps(path, 3);
    assert_true(descriptor >= 0);
    FILE *file = fdopen(descriptor, "w");
    write_comparison(file);
    fclose(file);
    snprintf(command, sizeof command, "c++ -std=c++17 -fsyntax-only -w -I. -I%s %s", folder,
             path);
    int code = system(command);
    unlink(path);
    assert_int_equal(code, 0);
}

/* ---- sentences --------------------------------------------------------------------------- */

typedef struct Place {
    char folder[64];
} Place;

static Place make_place(void) {
    Place place;
    snprintf(place.folder, sizeof place.folder, "/tmp/colac-library-XXXXXX");
    assert_non_null(mkdtemp(place.folder));
    return place;
}

/* A library PLACE/lib64/FILE with the given functions. */
static void make_library(const Place *place, const char *file, const char *text) {
    char command[1024], path[128];
    snprintf(command, sizeof command, "mkdir -p %s/lib64", place->folder);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof path, "%s/library.c", place->folder);
    FILE *source = fopen(path, "w");
    assert_non_null(source);
    fputs(text, source);
    fclose(source);
    snprintf(command, sizeof command, "cc -shared -fPIC -w -o %s/lib64/%s %s", place->folder,
             file, path);
    assert_int_equal(system(command), 0);
}

static void remove_place(const Place *place) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", place->folder);
    assert_int_equal(system(command), 0);
}

/* Opens a library and expects no table and one error with these words. */
static void expect_sentence(CudaLibrary library, const char *const *words, int count) {
    Diagnostics *diagnostics = diagnostics_new();
    assert_null(cuda_library(library, diagnostics));
    assert_int_equal(diagnostics_errors(diagnostics), 1);
    assert_null(cuda_library_path(library));
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    diagnostics_print(diagnostics, out);
    fclose(out);
    for (int i = 0; i < count; i++)
        if (!strstr(text, words[i]))
            fail_msg("`%s` is not in:\n%s", words[i], text);
    free(text);
    diagnostics_free(diagnostics);
}

/* A driver of the machine's own is found before all that the tests make. */
static void skip_where_a_driver_is(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
    if (!driver)
        return;
    dlclose(driver);
    print_message("this machine has a driver\n");
    skip();
}

/* The toolkit of this machine would be found: only a driver's absence can be had everywhere. */
static void a_missing_driver_is_one_sentence(void **state) {
    (void)state;
    skip_where_a_driver_is();
    cuda_library_close();
    unsetenv("CUDA_PATH");
    const char *const words[] = {"the CUDA driver was not found", "libcuda.so.1",
                                 "/usr/local/cuda/lib64/libcuda.so.1", "--device cpu"};
    expect_sentence(CUDA_DRIVER, words, COUNT_OF(words));
}

static void half_a_library_is_one_sentence(void **state) {
    (void)state;
    skip_where_a_driver_is();
    Place place = make_place();
    make_library(&place, "libcuda.so.1", "int cuInit(unsigned f) { return 0; }\n");
    cuda_library_close();
    setenv("CUDA_PATH", place.folder, 1);
    const char *const words[] = {"has no function `cuDriverGetVersion`", "too old",
                                 place.folder};
    expect_sentence(CUDA_DRIVER, words, COUNT_OF(words));
    unsetenv("CUDA_PATH");
    remove_place(&place);
}

static void an_old_driver_is_one_sentence(void **state) {
    (void)state;
    skip_where_a_driver_is();
    Place place = make_place();
    Text text = {0};
    text_puts(&text, "int cuDriverGetVersion(int *v) { *v = 11080; return 0; }\n");
#define ROW(library, type, name, parameters)                                                   \
    if (library == CUDA_DRIVER && strcmp(#name, "cuDriverGetVersion"))                         \
        text_puts(&text, "int " #name "(void) { return 0; }\n");
#include "cuda/library.def"
#undef ROW
    make_library(&place, "libcuda.so.1", text_string(&text));
    text_free(&text);
    cuda_library_close();
    setenv("CUDA_PATH", place.folder, 1);
    const char *const words[] = {"for CUDA 11.8", "needs one for 12.0"};
    expect_sentence(CUDA_DRIVER, words, COUNT_OF(words));
    unsetenv("CUDA_PATH");
    remove_place(&place);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_headers),
        cmocka_unit_test(a_missing_driver_is_one_sentence),
        cmocka_unit_test(half_a_library_is_one_sentence),
        cmocka_unit_test(an_old_driver_is_one_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
