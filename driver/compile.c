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

typedef struct Scratchpad {
    Product product;
    int64_t bytes;
} Scratchpad;
typedef ARRAY(Scratchpad) Scratchpads;

/* Preparing a product takes a millisecond, and many plans of a model have the same ones. */
static int64_t product_scratch(Scratchpads *known, const Product *product) {
    for (int64_t i = 0; i < known->count; i++)
        if (memcmp(&known->data[i].product, product, sizeof *product) == 0)
            return known->data[i].bytes;
    PreparedProduct *prepared = product_prepare(product);
    Scratchpad scratchpad = {*product, product_scratch_bytes(prepared)};
    product_free(prepared);
    array_push(known, scratchpad);
    return scratchpad.bytes;
}

static int64_t cpu_extra_bytes(const ProgramSet *set, int threads, Scratchpads *known) {
    int64_t largest = 0;
    for (int i = 0; i < set->product_count; i++) {
        int64_t bytes = product_scratch(known, &set->products[i]);
        largest = bytes > largest ? bytes : largest;
    }
    return largest * (threads ? threads : omp_get_max_threads());
}

static MemoryTable held_memory(const ProgramSet *set, const Options *options,
                               Scratchpads *known) {
    MemoryTable table = program_memory(set);
    int64_t extra = options->device == DEVICE_CUDA
                        ? device_scalar_bytes(set)
                        : cpu_extra_bytes(set, options->threads, known);
    table.workspace += extra;
    table.peak += extra;
    return table;
}

static const Room *room_of(const Options *options) {
    return options->device == DEVICE_CUDA ? &cuda_room : &host_room;
}

/* What the solver asks of a module that it tries. */
typedef struct Measuring {
    const Options *options;
    Scratchpads *known;
} Measuring;

static MemoryTable measure_module(const Module *module, void *data) {
    Measuring *measuring = data;
    ProgramSet *set =
        outline_programs(module, room_of(measuring->options), measuring->options->no_reuse);
    MemoryTable table = held_memory(set, measuring->options, measuring->known);
    program_set_free(set);
    return table;
}

bool compile(Compiled *compiled, const Options *options, const char *last, bool for_training) {
    memset(compiled, 0, sizeof *compiled);
    double started = now_seconds();
    compiled->diagnostics = diagnostics_new();
    compiled->compilation = compile_model(&options->request, compiled->diagnostics);
    if (compiled->compilation && (!last || strcmp(last, "expand"))) {
        Scratchpads known = {0};
        Measuring measuring = {options, &known};
        PassContext context = {
            .module = compiled->compilation->module,
            .compilation = compiled->compilation,
            .diagnostics = compiled->diagnostics,
            .no_fuse = options->no_fuse,
            .no_reuse = options->no_reuse,
            .keep_gradients = options->keep_gradients,
            .for_training = for_training,
            .measure = measure_module,
            .measure_data = &measuring,
            .budget = &compiled->budget,
        };
        run_passes(&context, last, &compiled->reports);
        array_free(&known);
        compiled->compilation->module = context.module;
    }
    compiled->seconds = now_seconds() - started;
    return finish(compiled->diagnostics) == 0 && compiled->compilation;
}

bool compile_programs(Compiled *compiled, const Options *options, bool for_training) {
    if (!compile(compiled, options, NULL, for_training))
        return false;
    double started = now_seconds();
    compiled->programs =
        emit_programs(compiled->compilation->module, room_of(options), options->no_reuse);
    for (int i = 0; i < compiled->programs->product_count; i++) {
        Product *product = &compiled->programs->products[i];
        product->tf32 = compiled->compilation->tf32 && !product->bf16_operands;
    }
    compiled->seconds += now_seconds() - started;
    return true;
}

MemoryTable planned_memory(const Compiled *compiled, const Options *options) {
    Scratchpads known = {0};
    MemoryTable table = held_memory(compiled->programs, options, &known);
    array_free(&known);
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

bool needs_cpu(const Options *options) {
    if (options->device == DEVICE_CUDA)
        fprintf(stderr, "colac %s: there is nothing for `--device cuda` yet; leave it out\n",
                options->command->name);
    return options->device != DEVICE_CUDA;
}

DeviceOpener device_opener(const Options *options) {
    return options->device == DEVICE_CUDA
               ? (DeviceOpener){device_cuda_open, options->architecture}
               : (DeviceOpener){device_cpu_open, options->threads};
}
