/* Layout, fuse, schedule and memory: what groups compute, one element at a time, against the
 * interpreter; structure of what fuses; products against sums; arenas against the loads of a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/graph_fuzz.h"
#include "tests/group_machine.h"

/* ---- running ------------------------------------------------------------------------------- */

static const double scalars[] = {3, 7, 11}; /* step, seed, sample0 of fuzzed modules */

static Interp *interpreter_for(const Module *module) {
    Interp *interp = interp_new(module);
    for (int i = 0; i < module->inputs.count; i++)
        interp_set_input(interp, i, fuzz_input(module, i, 5));
    fuzz_fill_weights(interp, module, 1);
    return interp;
}

static void must_verify(const Module *module, Stage stage) {
    const char *violation = ir_verify(module, stage);
    if (violation)
        print_error("after %s: %s\n", stage_name(stage), violation);
    assert_null(violation);
}

static void place(Module *module, bool no_fuse, bool no_reuse) {
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module,
                           .diagnostics = diagnostics,
                           .no_fuse = no_fuse,
                           .no_reuse = no_reuse,
                           .for_training = true};
    static bool (*const passes[])(PassContext *) = {pass_layout, pass_fuse, pass_schedule,
                                                    pass_memory};
    for (int i = 0; i < COUNT_OF(passes); i++) {
        assert_true(passes[i](&context));
        must_verify(module, STAGE_LAYOUT + i);
    }
    assert_int_equal(diagnostics_errors(diagnostics), 0);
    diagnostics_free(diagnostics);
}

/* Where a state's element of given position in type order is in its memory order. */
static int64_t element_in_memory(const Module *module, StateId state, int64_t element) {
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

/* The states of a machine, with the interpreter's values. */
static double **states_from(Interp *interp, const Module *module) {
    double **states = checked_alloc((size_t)module->states.count * sizeof(double *));
    for (StateId id = 0; id < module->states.count; id++) {
        int64_t count = type_elements(module, state_type(&module->states.data[id]));
        states[id] = checked_alloc((size_t)count * sizeof(double));
        for (int64_t i = 0; i < count; i++)
            states[id][element_in_memory(module, id, i)] = interp_state(interp, id)[i];
    }
    return states;
}

static void free_states(double **states, const Module *module) {
    for (StateId id = 0; id < module->states.count; id++)
        free(states[id]);
    free(states);
}

/* The placed function's states after a run of its groups; checks rules and lifetimes. */
static double **run_groups(const Module *module, const char *name) {
    const Function *function = module_find_function(module, name);
    Interp *interp = interpreter_for(module);
    double **states = states_from(interp, module);
    interp_run(interp, function, scalars, true);
    Machine machine = {.module = module,
                       .function = function,
                       .interp = interp,
                       .scalars = scalars,
                       .states = states};
    const char *broken = machine_run(&machine);
    if (broken)
        print_error("%s\n", broken);
    assert_null(broken);
    assert_true(lifetimes_are_apart(&machine));
    free(machine.last_load);
    interp_free(interp);
    return states;
}

static bool close_enough(double x, double y) {
    return x == y || (isnan(x) && isnan(y)) || fabs(x - y) <= 1e-9 * (fabs(x) + fabs(y) + 1);
}

static void compare_states(const Module *module, Interp *expected, double **states) {
    for (StateId id = 0; id < module->states.count; id++) {
        int64_t count = type_elements(module, state_type(&module->states.data[id]));
        for (int64_t i = 0; i < count; i++) {
            double x = interp_state(expected, id)[i];
            double y = states[id][element_in_memory(module, id, i)];
            if (!close_enough(x, y))
                print_error("%s %s[%lld]: %.17g expected, got %.17g\n",
                            role_name(module->states.data[id].role),
                            module->states.data[id].path, (long long)i, x, y);
            assert_true(close_enough(x, y));
        }
    }
}

/* ---- random graphs ------------------------------------------------------------------------- */

static Module *fuzz_with_gradients(uint64_t seed) {
    Module *module = fuzz_module(seed, 40);
    Diagnostics *diagnostics = diagnostics_new();
    PassContext context = {.module = module, .diagnostics = diagnostics, .for_training = true};
    assert_true(pass_autodiff(&context));
    diagnostics_free(diagnostics);
    return module;
}

static void random_graphs(void **state) {
    (void)state;
    int seeds = getenv("FUZZ_SEEDS") ? atoi(getenv("FUZZ_SEEDS")) : 60;
    int first = getenv("FUZZ_FIRST") ? atoi(getenv("FUZZ_FIRST")) : 0;
    for (int seed = first; seed < first + seeds; seed++) {
        Module *module = fuzz_with_gradients((uint64_t)seed);
        Interp *expected = interpreter_for(module);
        interp_run(expected, module_find_function(module, "micro"), scalars, false);
        double **fused = NULL;
        for (int mode = 0; mode < 3; mode++) {
            Module *placed = fuzz_with_gradients((uint64_t)seed);
            place(placed, mode == 1, mode == 2);
            double **states = run_groups(placed, "micro");
            compare_states(placed, expected, states);
            for (StateId id = 0; fused && id < placed->states.count; id++)
                assert_memory_equal(fused[id], states[id],
                                    (size_t)type_elements(
                                        placed, state_type(&placed->states.data[id])) *
                                        sizeof(double));
            if (mode == 0)
                fused = states;
            else
                free_states(states, placed);
            if (mode == 2)
                free_states(fused, placed);
            module_free(placed);
        }
        interp_free(expected);
        module_free(module);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
