/* tests/kernel_machine.h: programs of kernels run step by step in plain memory, with guards
 * around what a kernel may touch, and compared with the interpreter or with each other. */
#ifndef COLAC_TESTS_KERNEL_MACHINE_H
#define COLAC_TESTS_KERNEL_MACHINE_H

#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/runtime.h"
#include "tests/graph_fuzz.h"

static const double scalars[] = {3, 7, 11}; /* step, seed, sample0 */
FUZZ_UNUSED static const char *const scalar_names[] = {"step", "seed", "sample0"};

/* ---- running programs ---------------------------------------------------------------- */

/* Every space of a program, in plain memory. */
typedef struct Machine Machine;
struct Machine {
    const Module *module;
    ProgramSet *set;
    /* Runs the kernel of a step; NULL: `kernels`. */
    void (*call)(const Machine *machine, const Step *step, void *const *buffers,
                 const double *arguments);
    JitResult *kernels;
    PreparedProduct **products;
    char **slabs; /* [set->slabs.count] */
    const int32_t **inputs;
    char *arena;
};

enum { GUARD = 512 };
static const uint32_t poison = 0x7FA07FA0; /* a signalling NaN */

FUZZ_UNUSED static void fill_poison(char *memory, int64_t bytes) {
    for (int64_t i = 0; i + 4 <= bytes; i += 4)
        memcpy(memory + i, &poison, 4);
}

FUZZ_UNUSED static bool is_poison(const char *memory, int64_t bytes) {
    for (int64_t i = 0; i + 4 <= bytes; i += 4)
        if (memcmp(memory + i, &poison, 4) != 0)
            return false;
    return true;
}

FUZZ_UNUSED static int64_t element_in_memory(const Module *module, StateId state, int64_t element) {
    Type type = state_type(&module->states.data[state]);
    View view = state_view(module, state);
    int64_t at = 0;
    for (int i = type.rank - 1; i >= 0; i--) {
        int64_t size = module->axes.data[type.axes[i]].size;
        at += element % size * view_stride(&view, type.axes[i]);
        element /= size;
    }
    return at;
}

FUZZ_UNUSED static float *state_memory(const Machine *m, StateId id) {
    const State *state = &m->module->states.data[id];
    int slab = slab_index(&m->set->slabs, state->role, state->number);
    return (float *)(void *)m->slabs[slab] + (state->offset - m->set->slabs.data[slab].begin);
}

/* Values of inputs: the interpreter's and the program's; freed at the end of all tests. */
static ARRAY(int32_t *) inputs_made;

FUZZ_UNUSED static const int32_t *shared_input(const Module *module, int number) {
    array_push(&inputs_made, fuzz_input(module, number, 5));
    return inputs_made.data[inputs_made.count - 1];
}

FUZZ_UNUSED static void free_inputs(void) {
    for (int64_t i = 0; i < inputs_made.count; i++)
        free(inputs_made.data[i]);
    array_free(&inputs_made);
}

FUZZ_UNUSED static Machine machine_new(ProgramSet *set, Interp *interp) {
    Machine m = {.module = set->module, .set = set};
    m.slabs = checked_alloc((size_t)set->slabs.count * sizeof(char *));
    for (int i = 0; i < set->slabs.count; i++)
        m.slabs[i] = checked_alloc((size_t)slab_bytes(&set->slabs.data[i]));
    m.inputs = checked_alloc((size_t)m.module->inputs.count * sizeof *m.inputs);
    for (int i = 0; i < m.module->inputs.count; i++)
        m.inputs[i] = shared_input(m.module, i);
    m.arena = checked_alloc((size_t)set->arena_bytes);
    m.products = checked_alloc((size_t)set->product_count * sizeof(void *));
    for (int i = 0; i < set->product_count; i++)
        m.products[i] = product_prepare(&set->products[i]);
    for (StateId id = 0; id < m.module->states.count; id++) {
        int64_t count = type_elements(m.module, state_type(&m.module->states.data[id]));
        for (int64_t i = 0; i < count; i++)
            state_memory(&m, id)[element_in_memory(m.module, id, i)] =
                (float)interp_state(interp, id)[i];
    }
    return m;
}

FUZZ_UNUSED static void machine_free(Machine *m) {
    for (int i = 0; i < m->set->slabs.count; i++)
        free(m->slabs[i]);
    free(m->slabs);
    for (int i = 0; i < m->set->product_count; i++)
        product_free(m->products[i]);
    free(m->products);
    free(m->inputs);
    free(m->arena);
}

FUZZ_UNUSED static char *operand_memory(const Machine *m, const Operand *operand) {
    if (operand->space == SPACE_ARENA)
        return m->arena + operand->offset;
    if (operand->space == SPACE_INPUT) {
        union {
            const int32_t *given;
            char *bytes;
        } input = {m->inputs[operand->number]};
        return input.bytes + operand->offset;
    }
    return m->slabs[slab_index(&m->set->slabs, (Role)operand->space, operand->number)] +
           operand->offset;
}

/* The value of host scalar `index`, given the function's runtime scalars. */
FUZZ_UNUSED static double program_scalar(const Program *program, int index, const double *arguments) {
    NodeId source = program->host_scalars[index];
    return source < 0 ? arguments[-1 - source]
                      : interp_scalar(program->function, source, arguments);
}

FUZZ_UNUSED static void call_kernel(const Machine *m, const Program *program, const Step *step,
                        void *const *buffers) {
    double arguments[32];
    assert_true(step->scalar_count <= COUNT_OF(arguments));
    for (int i = 0; i < step->scalar_count; i++)
        arguments[i] = program_scalar(program, step->scalars[i], scalars);
    if (m->call)
        m->call(m, step, buffers, arguments);
    else
        m->kernels->functions[step->index](buffers, arguments);
}

/* Runs a kernel on copies of its operands with guards on both sides: what it reads outside is
 * NaN, what it writes outside is seen, what it says that it does not write stays as it is. */
FUZZ_UNUSED static void launch_guarded(const Machine *m, const Program *program, const Step *step) {
    const Kernel *kernel = m->set->kernels[step->index];
    char *copies[64];
    void *buffers[64];
    assert_true(step->operand_count <= COUNT_OF(copies));
    assert_int_equal(step->operand_count, kernel->argument_count);
    for (int i = 0; i < step->operand_count; i++) {
        int64_t bytes = step->operands[i].bytes, whole = (bytes + 3) / 4 * 4;
        copies[i] = checked_alloc((size_t)(whole + 2 * GUARD));
        fill_poison(copies[i], whole + 2 * GUARD);
        memcpy(copies[i] + GUARD, operand_memory(m, &step->operands[i]), (size_t)bytes);
        buffers[i] = copies[i] + GUARD;
    }
    call_kernel(m, program, step, buffers);
    bool written[64] = {0};
    for (int64_t b = 0; b < kernel->buffers.count; b++)
        if (kernel->buffers.data[b].argument >= 0)
            written[kernel->buffers.data[b].argument] = kernel->buffers.data[b].writes;
    for (int i = 0; i < step->operand_count; i++) {
        int64_t bytes = step->operands[i].bytes, whole = (bytes + 3) / 4 * 4;
        assert_true(is_poison(copies[i], GUARD));
        assert_true(is_poison(copies[i] + GUARD + whole, GUARD));
        if (!written[i])
            assert_memory_equal(operand_memory(m, &step->operands[i]), buffers[i],
                                (size_t)bytes);
    }
    for (int i = 0; i < step->operand_count; i++) {
        if (written[i])
            memcpy(operand_memory(m, &step->operands[i]), buffers[i],
                   (size_t)step->operands[i].bytes);
        free(copies[i]);
    }
}

FUZZ_UNUSED static void run_product(const Machine *m, const Step *step) {
    const PreparedProduct *product = m->products[step->index];
    int64_t scratch = product_scratch_bytes(product) * omp_get_max_threads();
    char *memory = aligned_alloc(64, (size_t)(scratch + 64) / 64 * 64);
    assert_non_null(memory);
    void *operands[3];
    for (int i = 0; i < 3; i++)
        operands[i] = operand_memory(m, &step->operands[i]);
    product_run(product, operands[0], operands[1], operands[2], memory);
    free(memory);
}

FUZZ_UNUSED static void run_step(const Machine *m, const Program *program, const Step *step, bool guarded) {
    void *buffers[64];
    switch (step->kind) {
    case STEP_LAUNCH:
        if (guarded) {
            launch_guarded(m, program, step);
            return;
        }
        for (int i = 0; i < step->operand_count; i++)
            buffers[i] = operand_memory(m, &step->operands[i]);
        call_kernel(m, program, step, buffers);
        return;
    case STEP_PRODUCT:
        run_product(m, step);
        return;
    case STEP_COPY:
        memcpy(operand_memory(m, &step->operands[1]), operand_memory(m, &step->operands[0]),
               (size_t)step->operands[0].bytes);
        return;
    case STEP_ZERO:
        memset(operand_memory(m, &step->operands[0]), 0, (size_t)step->operands[0].bytes);
        return;
    }
}

FUZZ_UNUSED static void run_program(const Machine *m, const Program *program, bool guarded) {
    fill_poison(m->arena, m->set->arena_bytes);
    for (int64_t i = 0; i < program->step_count; i++)
        run_step(m, program, &program->steps[i], guarded);
}

/* ---- compiling ----------------------------------------------------------------------- */

/* Offsets in slabs, as `update` would give them. */
FUZZ_UNUSED static void place_states(Module *module) {
    int64_t ends[ROLE_METRIC + 1] = {0};
    for (StateId id = 0; id < module->states.count; id++) {
        State *state = &module->states.data[id];
        state->offset = ends[state->role];
        ends[state->role] += (type_elements(module, state_type(state)) + 31) / 16 * 16;
    }
}

/* What is measured without programs is what they measure. */
FUZZ_UNUSED static void expect_same_outline(const ProgramSet *set) {
    ProgramSet *outline = outline_programs(set->module, &set->room, set->apart);
    MemoryTable expected = program_memory(set), got = program_memory(outline);
    assert_memory_equal(&got, &expected, sizeof got);
    assert_int_equal(outline->product_count, set->product_count);
    for (int i = 0; i < set->product_count; i++)
        assert_memory_equal(&outline->products[i], &set->products[i], sizeof(Product));
    program_set_free(outline);
}

static const Room *room = &host_room; /* of the programs that emit_module makes */

FUZZ_UNUSED static ProgramSet *emit_module(Module *module, bool no_fuse, bool no_reuse) {
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module,
                           .diagnostics = diagnostics,
                           .no_fuse = no_fuse,
                           .no_reuse = no_reuse,
                           .for_training = true};
    static bool (*const passes[])(PassContext *) = {pass_layout, pass_fuse, pass_schedule,
                                                    pass_memory};
    place_states(module);
    for (int i = 0; i < COUNT_OF(passes); i++)
        assert_true(passes[i](&context));
    const char *violation = ir_verify(module, STAGE_MEMORY);
    if (violation)
        print_error("%s\n", violation);
    assert_null(violation);
    diagnostics_free(diagnostics);
    ProgramSet *set = emit_programs(module, room, no_reuse);
    expect_same_outline(set);
    return set;
}

FUZZ_UNUSED static JitResult *compile_set(const ProgramSet *set) {
    enum { PARTS = 4 };
    Text sources[PARTS] = {0};
    Diagnostics *diagnostics = diagnostics_new();
    emit_c(set, PARTS, sources);
    JitResult *result =
        jit_compile(sources, PARTS, set->kernel_names, set->kernel_count, diagnostics);
    diagnostics_print(diagnostics, stderr);
    assert_non_null(result);
    for (int i = 0; i < PARTS; i++)
        text_free(&sources[i]);
    diagnostics_free(diagnostics);
    return result;
}

/* ---- values and their comparison ----------------------------------------------------- */

FUZZ_UNUSED static Interp *filled_interpreter(const Module *module) {
    Interp *interp = interp_new(module);
    interp_set_round(interp, true);
    for (int i = 0; i < module->inputs.count; i++)
        interp_set_input(interp, i, shared_input(module, i));
    for (StateId id = 0; id < module->states.count; id++) {
        const State *state = &module->states.data[id];
        uint64_t site = hash_bytes(state->path, strlen(state->path), 0);
        int64_t count = type_elements(module, state_type(state));
        for (int64_t i = 0; i < count; i++)
            interp_state(interp, id)[i] = 2 * random_uniform(1, 0, site, 0, (uint64_t)i) - 1;
    }
    return interp;
}

FUZZ_UNUSED static bool close_enough(double got, double expected, double tolerance) {
    return got == expected || (isnan(got) && isnan(expected)) ||
           fabs(got - expected) <= tolerance * (fabs(expected) + 1);
}

FUZZ_UNUSED static void compare_states(const Machine *m, Interp *expected, const char *what,
                           double tolerance) {
    for (StateId id = 0; id < m->module->states.count; id++) {
        const State *state = &m->module->states.data[id];
        int64_t count = type_elements(m->module, state_type(state));
        for (int64_t i = 0; i < count; i++) {
            double x = interp_state(expected, id)[i];
            double y = (double)state_memory(m, id)[element_in_memory(m->module, id, i)];
            if (!close_enough(y, x, tolerance))
                fail_msg("%s: %s[%lld] is %.9g, not %.9g", what, state->path, (long long)i, y,
                         x);
        }
    }
}

FUZZ_UNUSED static Module *fuzzed_with_gradients(uint64_t seed) {
    Module *module = fuzz_module(seed, 40);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics, .for_training = true};
    assert_true(pass_autodiff(&context));
    diagnostics_free(diagnostics);
    return module;
}

/* NaNs are alike: which operand's payload a sum of two has is the compiler's choice. */
FUZZ_UNUSED static bool same_bits(const float *x, const float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&x[i], &y[i], 4) != 0 && !(isnan(x[i]) && isnan(y[i])))
            return false;
    return true;
}

FUZZ_UNUSED static void compare_bits(const Machine *m, const Machine *other, const char *what) {
    for (StateId id = 0; id < m->module->states.count; id++) {
        const State *state = &m->module->states.data[id];
        int64_t count = type_elements(m->module, state_type(state));
        if (!same_bits(state_memory(m, id), state_memory(other, id), count))
            fail_msg("%s: other bits in %s %s", what, role_name(state->role), state->path);
    }
}

#endif
