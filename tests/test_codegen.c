/* Generated kernels: every op of the table against the interpreter, with guarded buffers and
 * poisoned results; reductions bit for bit against the stated order; the same bits for every
 * number of threads, fused or not; what the compiler vectorizes. */
#include <dirent.h>
#include <unistd.h>

#include "cuda/cuda.h"
#include "tests/op_cases.h"

/* The functions of kernels, which tests/test_prelude.c holds to the C library. */
#include "codegen/prelude_c.h"
#include "codegen/prelude.h"

static float prelude_exp(float x) {
    return f32_exp(x);
}

/* ---- every op ------------------------------------------------------------------------ */

static void every_op(void **state) {
    (void)state;
    for (int no_fuse = 0; no_fuse < 2; no_fuse++) {
        Cases cases = make_cases();
        cases.seen[OP_COPY] = true; /* the layout pass makes them */
        for (int op = 0; op < OP_COUNT; op++)
            if (!cases.seen[op])
                fail_msg("no case has the op %s", op_info[op].name);
        ProgramSet *set = emit_module(cases.module, no_fuse, no_fuse);
        JitResult *kernels = compile_set(set);
        Interp *interp = filled_interpreter(cases.module);
        Machine machine = machine_new(set, interp);
        machine.kernels = kernels;
        for (int i = 0; i < set->program_count; i++) {
            const Program *program = &set->programs[i];
            interp_run(interp, program->function, scalars, false);
            run_program(&machine, program, true);
            compare_states(&machine, interp, program->name, 2e-6);
        }
        machine_free(&machine);
        interp_free(interp);
        jit_free(kernels);
        program_set_free(set);
        module_free(cases.module);
    }
}

/* ---- the order of reductions --------------------------------------------------------- */

/* The fixed order as codegen.h states it, written down plainly. */
static float reduce_in_order(bool sum, const float *terms, int64_t n) {
    float lanes[128];
    if (n > 32768) {
        int64_t blocks = (n + 32767) / 32768;
        float *partials = checked_alloc((size_t)blocks * sizeof *partials);
        for (int64_t i = 0; i < blocks; i++)
            partials[i] = reduce_in_order(sum, terms + 32768 * i,
                                          n - 32768 * i < 32768 ? n - 32768 * i : 32768);
        float result = reduce_in_order(sum, partials, blocks);
        free(partials);
        return result;
    }
    for (int j = 0; j < 128; j++)
        lanes[j] = sum ? 0 : -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        float *lane = &lanes[i % 128];
        *lane = sum ? *lane + terms[i] : *lane > terms[i] ? *lane : terms[i];
    }
    for (int w = 64; w >= 1; w /= 2)
        for (int j = 0; j < w; j++)
            lanes[j] = sum                       ? lanes[j] + lanes[j + w]
                       : lanes[j] > lanes[j + w] ? lanes[j]
                                                 : lanes[j + w];
    return lanes[0];
}

/* A column: chunks of at least 64 rows, at most 64 of them, each summed in order. */
static float sum_column(const float *terms, int64_t rows, int64_t stride) {
    int64_t chunk = (rows + 63) / 64 < 64 ? 64 : (rows + 63) / 64;
    float total = 0;
    for (int64_t begin = 0; begin < rows; begin += chunk) {
        float sum = 0;
        for (int64_t i = begin; i < rows && i < begin + chunk; i++)
            sum = sum + terms[i * stride];
        total = total + sum;
    }
    return total;
}

static void expect_case(const OrderCase *oc, const float *in, float *out) {
    int64_t rows = oc->rows, n = oc->columns;
    for (int64_t i = 0; oc->kind == ROWS_SUM && i < rows; i++)
        out[i] = reduce_in_order(true, in + i * n, n);
    for (int64_t i = 0; oc->kind == ROWS_SOFTMAX && i < rows; i++) {
        float largest = reduce_in_order(false, in + i * n, n);
        for (int64_t j = 0; j < n; j++)
            out[i * n + j] = prelude_exp(in[i * n + j] - largest);
        float total = reduce_in_order(true, out + i * n, n);
        for (int64_t j = 0; j < n; j++)
            out[i * n + j] = out[i * n + j] / total;
    }
    for (int64_t j = 0; oc->kind == COLUMNS_SUM && j < n; j++)
        out[j] = sum_column(in + j, rows, n);
    for (int64_t i = 0; oc->kind == SCATTER && i < rows; i++)
        for (int64_t j = 0; j < n; j++)
            out[i % SCATTER_ROWS * n + j] += in[i * n + j];
}

static void reductions_in_the_fixed_order(void **state) {
    (void)state;
    static const int threads[] = {1, 2, 3, 8};
    Module *module = module_new();
    module_axis(module, "V", SCATTER_ROWS, (Span){0}); /* first: results are [V,N] */
    for (int i = 0; i < COUNT_OF(order_cases); i++)
        add_order_case(module, i);
    ProgramSet *set = emit_module(module, false, false);
    Interp *interp = filled_interpreter(module);
    Machine machine = machine_new(set, interp);
    machine.kernels = compile_set(set);
    for (int i = 0; i < COUNT_OF(order_cases); i++) {
        char path[32];
        snprintf(path, sizeof path, "in%d", i);
        const float *in =
            state_memory(&machine, module_find_state(module, path, ROLE_TABLE, 0));
        snprintf(path, sizeof path, "out%d", i);
        StateId id = module_find_state(module, path, ROLE_TABLE, 0);
        size_t bytes = (size_t)type_elements(module, state_type(&module->states.data[id])) * 4;
        float *expected = checked_alloc(bytes);
        expect_case(&order_cases[i], in, expected);
        for (int t = 0; t < COUNT_OF(threads); t++) {
            omp_set_num_threads(threads[t]);
            fill_poison((char *)(void *)state_memory(&machine, id), (int64_t)bytes);
            run_program(&machine, &set->programs[i], true);
            if (memcmp(state_memory(&machine, id), expected, bytes) != 0)
                fail_msg("case %d with %d threads: another order", i, threads[t]);
        }
        free(expected);
    }
    jit_free(machine.kernels);
    machine_free(&machine);
    interp_free(interp);
    program_set_free(set);
    module_free(module);
}

/* ---- random graphs ------------------------------------------------------------------- */

/* Modes: fused, fused with three threads and guards, not fused, without reuse of memory. */
static void run_fuzzed(uint64_t seed) {
    char what[64];
    Machine first = {0};
    ProgramSet *sets[4];
    Module *modules[4];
    for (int mode = 0; mode < 4; mode++) {
        Module *module = modules[mode] = fuzzed_with_gradients(seed);
        snprintf(what, sizeof what, "seed %d, mode %d", (int)seed, mode);
        ProgramSet *set = sets[mode] = emit_module(module, mode == 2, mode == 3);
        Interp *interp = filled_interpreter(module);
        Machine machine = machine_new(set, interp);
        machine.kernels = compile_set(set);
        omp_set_num_threads(mode == 1 ? 3 : 2);
        run_program(&machine, &set->programs[0], mode == 1);
        if (mode == 0) {
            interp_run(interp, set->programs[0].function, scalars, false);
            compare_states(&machine, interp, what, 1e-4);
            first = machine;
        } else {
            compare_bits(&first, &machine, what);
            jit_free(machine.kernels);
            machine_free(&machine);
        }
        interp_free(interp);
    }
    jit_free(first.kernels);
    machine_free(&first);
    for (int mode = 0; mode < 4; mode++) {
        program_set_free(sets[mode]);
        module_free(modules[mode]);
    }
}

static void random_graphs(void **state) {
    (void)state;
    const char *asked = getenv("COLAC_FUZZ");
    int seeds = asked ? atoi(asked) / 1000 : 0;
    int first = getenv("FUZZ_FIRST") ? atoi(getenv("FUZZ_FIRST")) : 0;
    for (int seed = first; seed < first + (seeds > 4 ? seeds : 4); seed++)
        run_fuzzed((uint64_t)seed);
}

/* ---- vector instructions ------------------------------------------------------------- */

static NodeId constant(Builder *b, double number) {
    return build_const(b, TYPE_F32, number);
}

static void write_table(Builder *b, const char *name, int number, NodeId value) {
    Write write = {.state = add_table(b->function->module, name, number,
                                      node_at(b->function, value)->type),
                   .value = value};
    array_push(&b->function->writes, write);
}

/* One of each kind, at sizes that are no multiple of anything: silu(x) y; a causal softmax; an
 * RMSNorm; the gradient of a bias; one step of Adam; a loss over rows of classes. */
static Module *sample_module(void) {
    Module *module = module_new();
    Span none = {0};
    AxisId B = module_axis(module, "B", 4, none), S = module_axis(module, "S", 100, none);
    AxisId T = module_axis(module, "T", 100, none), D = module_axis(module, "D", 333, none);
    Function *function = module_function(module, "samples", 3, scalar_names);
    Builder sample = builder(function), *b = &sample;
    Input tokens = {.name = "tokens", .axis_count = 2, .axes = {B, S}, .below = 333};
    array_push(&module->inputs, tokens);
    const AxisId bsd[] = {B, S, D}, bst[] = {B, S, T}, bs[] = {B, S};
    Type wide = type_of(TYPE_F32, bsd, 3), square = type_of(TYPE_F32, bst, 3);
    NodeId x = build_state(b, add_table(module, "x", 0, wide));
    NodeId y = build_state(b, add_table(module, "y", 0, wide));
    NodeId s = build_state(b, add_table(module, "s", 0, square));
    NodeId gain = build_state(b, add_table(module, "gain", 0, type_of(TYPE_F32, &D, 1)));
    write_table(b, "out", 0,
                build_2(b, OP_MUL, build_2(b, OP_MUL, x, build_1(b, OP_SIGMOID, x)), y));
    NodeId causal = build_2(b, OP_LE, build_index(b, T), build_index(b, S));
    write_table(b, "out", 1,
                build_softmax(b, build_3(b, OP_WHERE, causal, s, constant(b, -INFINITY)), T));
    NodeId mean = build_2(b, OP_MUL, build_reduce(b, OP_SUM, build_2(b, OP_MUL, x, x), &D, 1),
                          constant(b, 1.0 / 333));
    NodeId scale = build_1(b, OP_SQRT, build_2(b, OP_ADD, mean, constant(b, 1e-6)));
    write_table(b, "out", 2, build_2(b, OP_MUL, build_2(b, OP_DIV, x, scale), gain));
    write_table(b, "out", 3, build_reduce(b, OP_SUM, build_2(b, OP_MUL, x, y), bs, 2));
    NodeId moment = build_2(b, OP_ADD, build_2(b, OP_MUL, x, constant(b, 0.9)),
                            build_2(b, OP_MUL, y, constant(b, 0.1)));
    NodeId root = build_1(b, OP_SQRT, build_1(b, OP_ABS, moment));
    write_table(b, "out", 4, moment);
    write_table(b, "out", 5,
                build_2(b, OP_DIV, moment, build_2(b, OP_ADD, root, constant(b, 1e-8))));
    NodeId own = build_2(b, OP_EQ, build_index(b, D), build_input(b, 0));
    NodeId picked =
        build_reduce(b, OP_SUM, build_3(b, OP_WHERE, own, x, constant(b, 0)), &D, 1);
    NodeId total = build_reduce(b, OP_SUM, build_1(b, OP_EXP, x), &D, 1);
    write_table(b, "out", 6, build_2(b, OP_SUB, build_1(b, OP_LOG, total), picked));
    return module;
}

/* The line at which a loop that begins at `line` ends, and how many lines of it compute. */
static int loop_end(char **lines, int line, int *computations) {
    size_t indent = strspn(lines[line], " ");
    int end = line + 1;
    *computations = 0;
    while (strspn(lines[end], " ") != indent) {
        bool stores = strchr(lines[end], '[') && !strstr(lines[end], "const ");
        *computations +=
            !stores && !strstr(lines[end], "base +") && strpbrk(lines[end], "*/+(?");
        end++;
    }
    return end;
}

/* The compiler's report on a C text, of loops that it made vectors of; false: it makes none. */
static bool vectorized_lines(const Text *source, bool *vectorized, int line_count) {
    char path[] = "/tmp/colac-test-XXXXXX", command[512], message[512];
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, source->data, source->length), (ssize_t)source->length);
    close(file);
    snprintf(command, sizeof command,
             "cc %s -fopt-info-vec-optimized -x c -o /dev/null %s 2>&1", jit_flags(), path);
    FILE *report = popen(command, "r");
    assert_non_null(report);
    while (fgets(message, sizeof message, report)) {
        char *number = strchr(message, ':');
        int line = number ? atoi(number + 1) : 0;
        if (strstr(message, "loop vectorized") && line > 0 && line <= line_count)
            vectorized[line - 1] = true;
    }
    bool understood = pclose(report) == 0;
    unlink(path);
    return understood;
}

static void loops_are_vectorized(void **state) {
    (void)state;
    Module *module = sample_module();
    ProgramSet *set = emit_module(module, false, false);
    Text source = {0};
    emit_c(set, 1, &source);
    char *copy = checked_alloc(source.length + 1);
    memcpy(copy, text_string(&source), source.length);
    ARRAY(char *) lines = {0};
    for (char *line = copy, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        array_push(&lines, line);
    }
    bool *vectorized = checked_alloc((size_t)lines.count);
    bool understood = vectorized_lines(&source, vectorized, (int)lines.count);
    int loops = 0;
    for (int i = 0; understood && i < lines.count; i++) {
        if (strcmp(lines.data[i], "#pragma omp simd") != 0)
            continue;
        int computations, end = loop_end(lines.data, i + 1, &computations);
        bool found = false;
        for (int k = i; k <= end; k++)
            found |= vectorized[k];
        if (!found && computations > 0)
            fail_msg("not vectorized, line %d: %s", i + 2, lines.data[i + 1]);
        loops += found;
    }
    if (understood)
        assert_true(loops >= 6);
    free(vectorized);
    array_free(&lines);
    free(copy);
    text_free(&source);
    program_set_free(set);
    module_free(module);
    if (!understood)
        skip(); /* no gcc */
}

/* ---- golden tests -------------------------------------------------------------------- */

/* Programs, then kernels; with `# print c` in the source the kernels as C. */
static void print_cuda_kernel(Kernel *kernel, const char *name, Text *out) {
    LaunchList launches = launches_of(kernel, name);
    for (int i = 0; i < launches.count; i++) {
        const Launch *l = &launches.launches[i];
        text_printf(out, "%s: %lld blocks of %d teams of %d threads, width %d, splits %lld\n",
                    l->name, (long long)l->blocks, l->teams, l->threads, l->width,
                    (long long)l->splits);
    }
    print_cuda(kernel, name, &launches, out);
}

/* As the text asks for: `# print cuda`, `# print c`, or the kernel IR alone. */
static void print_set(const ProgramSet *set, const char *text, Text *out) {
    bool cuda_text = strstr(text, "# print cuda"), c_text = strstr(text, "# print c");
    for (int i = 0; i < set->program_count; i++)
        program_print(set, &set->programs[i], out);
    for (int i = 0; i < set->kernel_count; i++) {
        if (cuda_text) {
            print_cuda_kernel(set->kernels[i], set->kernel_names[i], out);
        } else if (c_text) {
            print_c(set->kernels[i], set->kernel_names[i], out);
        } else {
            text_printf(out, "%s\n", set->kernel_names[i]);
            kernel_print(set->kernels[i], kernel_names(set->kernels[i], true), "  ", out);
        }
    }
}

static bool run_golden(const char *name) {
    char path[512], expect[512];
    snprintf(path, sizeof path, "tests/golden/codegen/%s", name);
    snprintf(expect, sizeof expect, "%.*s.expect", (int)strlen(path) - 3, path);
    Source source = {.name = name};
    char *text = read_file(path, 1 << 20, &source.length);
    assert_non_null(text);
    source.text = text;
    Diagnostics *diagnostics = diagnostics_new();
    Stage stage;
    Module *module = ir_parse(&source, diagnostics, &stage);
    diagnostics_print(diagnostics, stderr);
    assert_non_null(module);
    ProgramSet *set = emit_module(module, false, false);
    Text out = {0};
    print_set(set, text, &out);
    const char *mode = getenv("GOLDEN");
    bool same = true;
    if (mode && strcmp(mode, "write") == 0) {
        FILE *file = fopen(expect, "w");
        assert_non_null(file);
        fputs(text_string(&out), file);
        assert_int_equal(fclose(file), 0);
    } else {
        size_t length;
        char *expected = read_file(expect, 1 << 20, &length);
        same = expected && strcmp(expected, text_string(&out)) == 0;
        if (!same)
            print_error("%s: expected\n%s\nbut got\n%s\n", path,
                        expected ? expected : "(no file)", text_string(&out));
        free(expected);
    }
    text_free(&out);
    program_set_free(set);
    module_free(module);
    diagnostics_free(diagnostics);
    free(text);
    return same;
}

static void golden(void **state) {
    (void)state;
    DIR *folder = opendir("tests/golden/codegen");
    assert_non_null(folder);
    int found = 0, failed = 0;
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        size_t length = strlen(entry->d_name);
        if (length < 4 || strcmp(entry->d_name + length - 3, ".ir") != 0)
            continue;
        found++;
        failed += !run_golden(entry->d_name);
    }
    closedir(folder);
    assert_true(found > 0);
    assert_int_equal(failed, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(every_op),
        cmocka_unit_test(reductions_in_the_fixed_order),
        cmocka_unit_test(random_graphs),
        cmocka_unit_test(loops_are_vectorized),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free_inputs();
    return failed;
}
