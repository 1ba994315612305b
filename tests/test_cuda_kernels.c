/* CUDA C kernels, run by the emulator, against the same kernels in C: bit for bit, for every op
 * of the table, for reductions of every shape and for random graphs with their gradients;
 * threads and blocks in three orders.  The emulator watches for races, divergence and accesses
 * outside. */
#include "cuda/cuda.h"
#include "tests/emulator/emulator.h"
#include "tests/op_cases.h"

enum { SEEDS = 3 };

/* The kernels of a program set in the emulator. */
typedef struct Emulated {
    const ProgramSet *set;
    EmulatorModule *module;
    LaunchList *launches; /* by kernel */
    uint64_t seed;
} Emulated;

static Emulated emulated;

static void emulate(const ProgramSet *set) {
    const char *sources[CUDA_TEXTS];
    char folder[] = "/tmp/colac-emulated-XXXXXX";
    assert_non_null(mkdtemp(folder));
    CudaSource source = cuda_source(set);
    for (int i = 0; i < source.text_count; i++)
        sources[i] = text_string(&source.texts[i]);
    emulated =
        (Emulated){.set = set, .module = emulator_compile(sources, source.text_count, folder)};
    assert_non_null(emulated.module);
    emulated.launches =
        arena_alloc_array(set->arena, (size_t)set->kernel_count, sizeof(LaunchList));
    for (int i = 0; i < set->kernel_count; i++)
        emulated.launches[i] = source.kernels[i];
    cuda_source_free(&source);
}

static void stop_emulating(void) {
    emulator_unload(emulated.module);
    emulated = (Emulated){0};
}

static void launch_emulated(const Launch *launch, void *const *buffers,
                            const double *arguments) {
    union {
        const double *given;
        void *pointer;
    } scalars_at = {arguments};
    void *pointers[65];
    assert_true(launch->argument_count <= COUNT_OF(pointers));
    for (int i = 0; i < launch->argument_count; i++)
        pointers[i] = launch->takes_scalars && i == launch->argument_count - 1
                          ? scalars_at.pointer
                          : buffers[launch->arguments[i]];
    EmulatorLaunch run = {.function = emulator_function(emulated.module, launch->name),
                          .name = launch->name,
                          .grid = {(unsigned)launch->blocks, 1, 1},
                          .block = {(unsigned)(launch->threads * launch->teams), 1, 1},
                          .arguments = pointers,
                          .argument_count = launch->argument_count,
                          .seed = emulated.seed};
    assert_non_null(run.function);
    const char *fault = emulator_launch(&run);
    if (fault)
        fail_msg("%s", fault);
}

/* As Machine.call. */
static void call_emulated(const Machine *machine, const Step *step, void *const *buffers,
                          const double *arguments) {
    (void)machine;
    const LaunchList *list = &emulated.launches[step->index];
    double given[32] = {0};
    memcpy(given, arguments, (size_t)step->scalar_count * sizeof *given);
    emulator_register(given, sizeof given);
    for (int i = 0; i < step->operand_count; i++)
        emulator_register(buffers[i], (size_t)step->operands[i].bytes);
    for (int i = 0; i < list->count; i++)
        launch_emulated(&list->launches[i], buffers, given);
    for (int i = 0; i < step->operand_count; i++)
        emulator_unregister(buffers[i]);
    emulator_unregister(given);
}

/* All programs of a set, in C and emulated, from the same values. */
static void compare_programs(ProgramSet *set, const char *what) {
    Interp *interp = filled_interpreter(set->module);
    emulate(set);
    JitResult *kernels = compile_set(set);
    for (int seed = 0; seed < SEEDS; seed++) {
        Machine in_c = machine_new(set, interp), on_gpu = machine_new(set, interp);
        memcpy(on_gpu.inputs, in_c.inputs,
               (size_t)set->module->inputs.count * sizeof *on_gpu.inputs);
        in_c.kernels = kernels;
        on_gpu.call = call_emulated;
        emulated.seed = (uint64_t)seed;
        for (int i = 0; i < set->program_count; i++) {
            run_program(&in_c, &set->programs[i], true);
            run_program(&on_gpu, &set->programs[i], true);
            compare_bits(
                &in_c, &on_gpu,
                arena_printf(set->arena, "%s, %s, seed %d", what, set->programs[i].name, seed));
        }
        machine_free(&in_c);
        machine_free(&on_gpu);
    }
    jit_free(kernels);
    stop_emulating();
    interp_free(interp);
}

static void every_op(void **state) {
    (void)state;
    for (int no_fuse = 0; no_fuse < 2; no_fuse++) {
        Cases cases = make_cases();
        ProgramSet *set = emit_module(cases.module, no_fuse, no_fuse);
        compare_programs(set, no_fuse ? "not fused" : "fused");
        program_set_free(set);
        module_free(cases.module);
    }
}

static void reductions_in_the_fixed_order(void **state) {
    (void)state;
    Module *module = module_new();
    module_axis(module, "V", SCATTER_ROWS, (Span){0}); /* first: results are [V,N] */
    for (int i = 0; i < COUNT_OF(order_cases); i++)
        add_order_case(module, i);
    ProgramSet *set = emit_module(module, false, false);
    compare_programs(set, "reductions");
    program_set_free(set);
    module_free(module);
}

static void random_graphs(void **state) {
    (void)state;
    const char *asked = getenv("COLAC_FUZZ");
    int seeds = asked ? atoi(asked) / 1000 : 0;
    for (int seed = 0; seed < (seeds > 3 ? seeds : 3); seed++) {
        Module *module = fuzzed_with_gradients((uint64_t)seed);
        ProgramSet *set = emit_module(module, false, false);
        char what[32];
        snprintf(what, sizeof what, "random %d", seed);
        compare_programs(set, what);
        program_set_free(set);
        module_free(module);
    }
}

int main(void) {
    room = &cuda_room;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op),
        cmocka_unit_test(reductions_in_the_fixed_order),
        cmocka_unit_test(random_graphs),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free_inputs();
    return failed;
}
