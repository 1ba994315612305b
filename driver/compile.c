/* Model text to a scheduled module and its programs. */
#include "driver/driver.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

int finish(Diagnostics *diagnostics) {
    int errors = diagnostics_errors(diagnostics);
    diagnostics_print(diagnostics, stderr);
    return errors ? 1 : 0;
}

bool compile(Compiled *compiled, const Options *options, const char *last, bool for_training) {
    memset(compiled, 0, sizeof *compiled);
    double started = now_seconds();
    compiled->diagnostics = diagnostics_new();
    compiled->compilation = compile_model(&options->request, compiled->diagnostics);
    if (compiled->compilation && (!last || strcmp(last, "expand"))) {
        PassContext context = {
            .module = compiled->compilation->module,
            .compilation = compiled->compilation,
            .diagnostics = compiled->diagnostics,
            .no_fuse = options->no_fuse,
            .no_reuse = options->no_reuse,
            .for_training = for_training,
            .budget = &compiled->budget,
        };
        run_passes(&context, last, &compiled->reports);
        compiled->compilation->module = context.module;
    }
    compiled->seconds = now_seconds() - started;
    return finish(compiled->diagnostics) == 0 && compiled->compilation;
}

bool compile_programs(Compiled *compiled, const Options *options, bool for_training) {
    if (!compile(compiled, options, NULL, for_training))
        return false;
    double started = now_seconds();
    compiled->programs = emit_programs(compiled->compilation->module);
    compiled->seconds += now_seconds() - started;
    return true;
}

MemoryTable planned_memory(const Compiled *compiled, int threads) {
    const ProgramSet *set = compiled->programs;
    MemoryTable table = program_memory(set);
    int64_t largest = 0;
    for (int i = 0; i < set->product_count; i++) {
        PreparedProduct *prepared = product_prepare(&set->products[i]);
        int64_t bytes = product_scratch_bytes(prepared);
        largest = bytes > largest ? bytes : largest;
        product_free(prepared);
    }
    int64_t scratch = largest * (threads ? threads : omp_get_max_threads());
    table.workspace += scratch;
    table.peak += scratch;
    return table;
}

void compiled_free(Compiled *compiled) {
    if (compiled->programs)
        program_set_free(compiled->programs);
    if (compiled->compilation)
        compilation_free(compiled->compilation);
    if (compiled->diagnostics)
        diagnostics_free(compiled->diagnostics);
    array_free(&compiled->reports);
}

const char *with_commas(int64_t number, char buffer[32]) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)number), at = 0;
    for (int i = 0; i < length; i++) {
        buffer[at++] = digits[i];
        int left = length - 1 - i;
        if (left && left % 3 == 0 && digits[i] != '-')
            buffer[at++] = ',';
    }
    buffer[at] = 0;
    return buffer;
}
