/* codegen/kernel.c: the kernel IR: construction, names, canonical text, verification. */
#include "codegen/codegen.h"

#include <ctype.h>

Kernel *kernel_new(Arena *arena) {
    Kernel *kernel = arena_alloc(arena, sizeof *kernel);
    kernel->arena = arena;
    return kernel;
}

void kernel_free(Kernel *kernel) {
    for (int64_t id = 0; id < kernel->instructions.count; id++)
        if (kernel->instructions.data[id].loop)
            array_free(&kernel->instructions.data[id].loop->body);
    array_free(&kernel->instructions);
    array_free(&kernel->buffers);
    array_free(&kernel->body);
}

static const Instruction *at(const Kernel *kernel, ValueId id) {
    return &kernel->instructions.data[id];
}

/* ---- names --------------------------------------------------------------------------- */

/* `hint` as an identifier, followed by a number where one is given. */
static const char *identifier(Arena *arena, const char *prefix, const char *hint, int number) {
    Text text = {0};
    text_puts(&text, prefix);
    for (const char *c = hint; *c; c++)
        text_append(&text, isalnum((unsigned char)*c) ? c : "_", 1);
    if (number >= 0)
        text_printf(&text, "%s%d", hint[0] ? "_" : "", number);
    char *name = arena_strdup(arena, text_string(&text));
    text_free(&text);
    return name;
}

static const char *unique(Arena *arena, StringMap *taken, const char *name) {
    while (string_map_get(taken, name, 0))
        name = arena_printf(arena, "%s_", name);
    string_map_set(taken, name, 1);
    return name;
}

typedef struct Namer {
    const Kernel *kernel;
    KernelNames names;
    StringMap taken;
    bool hints;
    int next;
} Namer;

static void name_region(Namer *namer, const Region *region) {
    Arena *arena = namer->kernel->arena;
    for (int64_t i = 0; i < region->count; i++) {
        ValueId id = region->data[i];
        const Instruction *instruction = at(namer->kernel, id);
        if (instruction->kind == KERNEL_STORE || instruction->kind == KERNEL_LOCAL)
            continue;
        const char *hint = namer->hints && instruction->name ? instruction->name : "";
        const char *prefix = hint[0] ? "" : instruction->kind == KERNEL_LOOP ? "i" : "v";
        if (hint[0] && !isalpha((unsigned char)hint[0]))
            prefix = "n"; /* a name such as `60m` */
        const char *name = identifier(arena, prefix, hint, namer->next++);
        /* Without hints they differ as they are: v0, i1, b2. */
        namer->names.values[id] = namer->hints ? unique(arena, &namer->taken, name) : name;
        if (instruction->kind == KERNEL_LOOP)
            name_region(namer, &instruction->loop->body);
    }
}

static const char *buffer_prefix(const Buffer *buffer) {
    return buffer->argument < 0 ? "local_"
           : !buffer->writes    ? "in_"
           : !buffer->reads     ? "out_"
                                : "io_";
}

KernelNames kernel_names(const Kernel *kernel, bool hints) {
    Arena *arena = kernel->arena;
    Namer namer = {.kernel = kernel, .hints = hints};
    namer.names.values =
        arena_alloc_array(arena, (size_t)kernel->instructions.count, sizeof(char *));
    namer.names.buffers =
        arena_alloc_array(arena, (size_t)kernel->buffers.count, sizeof(char *));
    for (int64_t i = 0; i < kernel->buffers.count; i++) {
        const Buffer *buffer = &kernel->buffers.data[i];
        const char *name = hints && buffer->name
                               ? identifier(arena, buffer_prefix(buffer), buffer->name, -1)
                               : identifier(arena, "b", "", (int)i);
        if (hints && string_map_get(&namer.taken, name, 0))
            name = arena_printf(arena, "%s_%d", name, (int)i);
        namer.names.buffers[i] = hints ? unique(arena, &namer.taken, name) : name;
    }
    name_region(&namer, &kernel->body);
    string_map_free(&namer.taken);
    return namer.names;
}

/* ---- questions ----------------------------------------------------------------------- */

int64_t affine_stride(const Affine *affine, ValueId value) {
    for (int i = 0; i < affine->term_count; i++)
        if (affine->terms[i].value == value)
            return affine->terms[i].stride;
    return 0;
}

void affine_mark(const Affine *affine, bool *used) {
    for (int i = 0; i < affine->term_count; i++)
        used[affine->terms[i].value] = true;
}

bool region_holds(const Region *region, ValueId value) {
    for (int64_t i = 0; i < region->count; i++)
        if (region->data[i] == value)
            return true;
    return false;
}

ValueId nest_below(const Kernel *kernel, ValueId loop) {
    const Region *body = &at(kernel, loop)->loop->body;
    const Loop *first = body->count ? at(kernel, body->data[0])->loop : NULL;
    return first && first->kind == LOOP_PARALLEL ? body->data[0] : -1;
}

/* ---- text ---------------------------------------------------------------------------- */

int affine_by_stride(const Affine *affine, Term terms[MAX_TERMS]) {
    int count = affine->term_count < MAX_TERMS ? affine->term_count : MAX_TERMS;
    for (int i = 0; i < count; i++) {
        int place = i;
        for (; place > 0 && terms[place - 1].stride < affine->terms[i].stride; place--)
            terms[place] = terms[place - 1];
        terms[place] = affine->terms[i];
    }
    return count;
}

static void affine_print(const Affine *affine, const char *const *value_names, Text *out) {
    Term terms[MAX_TERMS];
    int count = affine_by_stride(affine, terms);
    for (int i = 0; i < count; i++) {
        text_puts(out, i ? " + " : "");
        if (terms[i].stride != 1)
            text_printf(out, "%lld * ", (long long)terms[i].stride);
        text_puts(out, value_names[terms[i].value]);
    }
    if (affine->base || !count)
        text_printf(out, "%s%lld", count ? " + " : "", (long long)affine->base);
}

typedef struct Printer {
    const Kernel *kernel;
    KernelNames names;
    const char *margin;
    Text *out;
} Printer;

static void begin_line(const Printer *printer, int depth) {
    text_puts(printer->out, printer->margin);
    for (int i = 0; i < depth; i++)
        text_puts(printer->out, "  ");
}

static void print_operands(const Printer *printer, const Instruction *instruction) {
    for (int i = 0; i < instruction->input_count; i++)
        text_printf(printer->out, " %s",
                    instruction->inputs[i] < 0 ? "0"
                                               : printer->names.values[instruction->inputs[i]]);
}

static void print_address(const Printer *printer, const Instruction *instruction) {
    text_printf(printer->out, "%s[", printer->names.buffers[instruction->buffer]);
    affine_print(&instruction->at, printer->names.values, printer->out);
    text_puts(printer->out, "]");
}

static void print_region(const Printer *printer, const Region *region, int depth);

static void print_loop(const Printer *printer, ValueId id, int depth) {
    static const char *const kinds[] = {"parallel", "serial", "lanes"};
    const Loop *loop = at(printer->kernel, id)->loop;
    text_printf(printer->out, "%s %s < ", kinds[loop->kind], printer->names.values[id]);
    if (loop->tile_of >= 0)
        text_printf(printer->out, "min(%lld, %lld - %lld * %s)", (long long)loop->extent,
                    (long long)loop->total, (long long)loop->extent,
                    printer->names.values[loop->tile_of]);
    else
        text_printf(printer->out, "%lld", (long long)loop->extent);
    text_puts(printer->out, " {\n");
    print_region(printer, &loop->body, depth + 1);
    begin_line(printer, depth);
    text_puts(printer->out, "}\n");
}

/* The instruction that makes a value, without its name. */
static void print_value(const Printer *printer, const Instruction *instruction) {
    Text *out = printer->out;
    switch (instruction->kind) {
    case KERNEL_CONSTANT:
        text_printf(out, "constant %a", instruction->number);
        break;
    case KERNEL_SCALAR:
        text_printf(out, "scalar %lld", (long long)instruction->integer);
        break;
    case KERNEL_INDEX:
        text_puts(out, "index ");
        affine_print(&instruction->at, printer->names.values, out);
        break;
    case KERNEL_DIGIT:
        text_puts(out, "digit (");
        affine_print(&instruction->at, printer->names.values, out);
        text_printf(out, ") / %lld %% %lld", (long long)instruction->divisor,
                    (long long)instruction->modulus);
        break;
    case KERNEL_MAP:
        text_puts(out, op_info[instruction->op].name);
        print_operands(printer, instruction);
        break;
    case KERNEL_RANDOM:
        text_printf(out, "random site %lld", (long long)instruction->integer);
        print_operands(printer, instruction);
        text_puts(out, " sample ");
        affine_print(&instruction->sample, printer->names.values, out);
        text_puts(out, " index ");
        affine_print(&instruction->at, printer->names.values, out);
        break;
    case KERNEL_LOAD:
        text_puts(out, "load ");
        print_address(printer, instruction);
        break;
    case KERNEL_REDUCE:
        text_printf(out, "reduce %s", op_info[instruction->op].name);
        print_operands(printer, instruction);
        break;
    case KERNEL_STORE:
    case KERNEL_LOCAL:
    case KERNEL_LOOP:
        internal_error("no value");
    }
}

static void print_region(const Printer *printer, const Region *region, int depth) {
    for (int64_t i = 0; i < region->count; i++) {
        ValueId id = region->data[i];
        const Instruction *instruction = at(printer->kernel, id);
        begin_line(printer, depth);
        if (instruction->kind == KERNEL_LOOP) {
            print_loop(printer, id, depth);
        } else if (instruction->kind == KERNEL_STORE) {
            text_puts(printer->out, "store ");
            print_address(printer, instruction);
            print_operands(printer, instruction);
            text_puts(printer->out, "\n");
        } else if (instruction->kind == KERNEL_LOCAL) {
            text_printf(printer->out, "local %s\n",
                        printer->names.buffers[instruction->buffer]);
        } else {
            text_printf(printer->out, "%s = ", printer->names.values[id]);
            print_value(printer, instruction);
            text_printf(printer->out, " : %s\n", dtype_name(instruction->dtype));
        }
    }
}

void kernel_print(const Kernel *kernel, KernelNames names, const char *margin, Text *out) {
    Printer printer = {kernel, names, margin, out};
    begin_line(&printer, 0);
    text_printf(out, "kernel of %d scalars and\n", kernel->scalar_count);
    for (int64_t i = 0; i < kernel->buffers.count; i++) {
        const Buffer *buffer = &kernel->buffers.data[i];
        begin_line(&printer, 1);
        text_printf(out, "%s %s[%lld]%s%s%s\n", names.buffers[i], dtype_name(buffer->dtype),
                    (long long)buffer->elements, buffer->argument < 0 ? " local" : "",
                    buffer->reads ? " read" : "", buffer->writes ? " written" : "");
    }
    print_region(&printer, &kernel->body, 0);
}

const char *kernel_text(Kernel *kernel) {
    if (!kernel->text) {
        Text text = {0};
        kernel_print(kernel, kernel_names(kernel, false), "", &text);
        kernel->text = arena_strdup(kernel->arena, text_string(&text));
        text_free(&text);
    }
    return kernel->text;
}

uint64_t kernel_hash(Kernel *kernel) {
    const char *text = kernel_text(kernel);
    return hash_bytes(text, strlen(text), 0);
}

/* ---- work ---------------------------------------------------------------------------- */

static double instruction_work(const Instruction *instruction) {
    switch (instruction->kind) {
    case KERNEL_RANDOM:
        return op_info[OP_RANDOM].work;
    case KERNEL_MAP:
        return op_info[instruction->op].work;
    case KERNEL_CONSTANT:
        return 0;
    default:
        return 1;
    }
}

/* Iterations of a loop, on average over the tiles. */
static double mean_trips(const Kernel *kernel, const Loop *loop) {
    return loop->tile_of < 0
               ? (double)loop->extent
               : (double)loop->total / (double)at(kernel, loop->tile_of)->loop->extent;
}

double kernel_work(const Kernel *kernel, const Region *region) {
    double work = 0;
    for (int64_t i = 0; i < region->count; i++) {
        const Instruction *instruction = at(kernel, region->data[i]);
        const Loop *loop = instruction->loop;
        work += loop ? mean_trips(kernel, loop) * kernel_work(kernel, &loop->body)
                     : instruction_work(instruction);
    }
    return work;
}

/* Adds what a region loads from and stores to each buffer, in elements; all its iterations. */
static void count_accesses(const Kernel *kernel, const Region *region, double iterations,
                           double *loads, double *stores) {
    for (int64_t i = 0; i < region->count; i++) {
        const Instruction *instruction = at(kernel, region->data[i]);
        const Loop *loop = instruction->loop;
        if (instruction->kind == KERNEL_LOAD)
            loads[instruction->buffer] += iterations;
        else if (instruction->kind == KERNEL_STORE)
            stores[instruction->buffer] += iterations;
        else if (loop)
            count_accesses(kernel, &loop->body, iterations * mean_trips(kernel, loop), loads,
                           stores);
    }
}

/* Loads and stores of each buffer: two arrays in one, for the caller to free. */
static double *accesses_of(const Kernel *kernel) {
    size_t count = (size_t)kernel->buffers.count;
    double *accesses = checked_alloc((2 * count + 1) * sizeof *accesses);
    count_accesses(kernel, &kernel->body, 1, accesses, accesses + count);
    for (size_t i = 0; i < 2 * count; i++) {
        double most = (double)kernel->buffers.data[i % count].elements;
        accesses[i] = accesses[i] < most ? accesses[i] : most;
    }
    return accesses;
}

double kernel_traffic(const Kernel *kernel) {
    int64_t count = kernel->buffers.count;
    double *accesses = accesses_of(kernel), bytes = 0;
    for (int64_t i = 0; i < 2 * count; i++) {
        const Buffer *buffer = &kernel->buffers.data[i % count];
        if (buffer->argument >= 0)
            bytes += accesses[i] * dtype_bytes(buffer->dtype);
    }
    free(accesses);
    return bytes;
}

void kernel_touched(const Kernel *kernel, double *bytes) {
    int64_t count = kernel->buffers.count;
    double *accesses = accesses_of(kernel);
    for (int64_t i = 0; i < count; i++) {
        const Buffer *buffer = &kernel->buffers.data[i];
        double loads = accesses[i], stores = accesses[count + i];
        if (buffer->argument >= 0)
            bytes[buffer->argument] =
                (loads > stores ? loads : stores) * dtype_bytes(buffer->dtype);
    }
    free(accesses);
}

/* ---- verification -------------------------------------------------------------------- */

typedef struct Verifier {
    const Kernel *kernel;
    bool *visible; /* by value: defined, and in scope */
    const char *fault;
    const Instruction *at_fault;
} Verifier;

static void fail(Verifier *verifier, const Instruction *instruction, const char *fault) {
    if (!verifier->fault) {
        verifier->fault = fault;
        verifier->at_fault = instruction;
    }
}

/* The range of a value where it has one that is known before the kernel runs. */
static bool value_maximum(const Instruction *value, int64_t *maximum) {
    if (value->kind == KERNEL_LOOP)
        *maximum = value->loop->extent - 1;
    else if (value->kind == KERNEL_DIGIT)
        *maximum = value->modulus - 1;
    else
        return false;
    return true;
}

/* Whether the address lies in [0, elements) for all indices.  The terms of a tile and of the
 * loop that it is a tile of are one when they go through memory as one. */
static bool in_range(const Kernel *kernel, const Affine *affine, int64_t elements) {
    int64_t low = affine->base, high = low;
    for (int i = 0; i < affine->term_count; i++) {
        Term term = affine->terms[i];
        const Instruction *value = at(kernel, term.value);
        int64_t maximum;
        if (!value_maximum(value, &maximum))
            return true; /* such as a gather's row */
        for (int j = 0; j < affine->term_count; j++) {
            const Loop *tile = at(kernel, affine->terms[j].value)->loop;
            if (tile && tile->tile_of == term.value &&
                term.stride == affine->terms[j].stride * tile->extent)
                maximum = 0; /* counted with the tile */
        }
        const Loop *loop = value->loop;
        if (loop && loop->tile_of >= 0 &&
            affine_stride(affine, loop->tile_of) == term.stride * loop->extent)
            maximum = loop->total - 1;
        *(term.stride < 0 ? &low : &high) += term.stride * maximum;
    }
    return low >= 0 && high < elements;
}

static void verify_affine(Verifier *verifier, const Instruction *instruction,
                          const Affine *affine) {
    for (int i = 0; i < affine->term_count; i++) {
        ValueId value = affine->terms[i].value;
        if (value < 0 || value >= verifier->kernel->instructions.count ||
            !verifier->visible[value])
            fail(verifier, instruction, "an address uses a value that is out of scope");
        else if (at(verifier->kernel, value)->dtype != TYPE_I32)
            fail(verifier, instruction, "an address uses a value that is no integer");
        if (affine->terms[i].stride == 0 || (i && affine->terms[i - 1].value >= value))
            fail(verifier, instruction, "the terms of an address are not in order");
    }
}

static void verify_access(Verifier *verifier, const Instruction *instruction) {
    const Kernel *kernel = verifier->kernel;
    if (instruction->buffer < 0 || instruction->buffer >= kernel->buffers.count) {
        fail(verifier, instruction, "no such buffer");
        return;
    }
    const Buffer *buffer = &kernel->buffers.data[instruction->buffer];
    bool store = instruction->kind == KERNEL_STORE;
    if (!(store ? buffer->writes : buffer->reads))
        fail(verifier, instruction, "an access that the buffer does not declare");
    DataType dtype = store ? at(kernel, instruction->inputs[0])->dtype : instruction->dtype;
    if (dtype != buffer->dtype)
        fail(verifier, instruction, "an access of another type than the buffer's");
    if (!verifier->fault && !in_range(kernel, &instruction->at, buffer->elements))
        fail(verifier, instruction, "an address past its buffer");
}

static void verify_region(Verifier *verifier, const Region *region, const Loop *around);

static void verify_loop(Verifier *verifier, ValueId id, const Loop *around) {
    const Instruction *instruction = at(verifier->kernel, id);
    const Loop *loop = instruction->loop;
    if (around && (around->kind == LOOP_LANES ||
                   (loop->kind == LOOP_PARALLEL &&
                    (around->kind != LOOP_PARALLEL || around->body.count != 1))))
        fail(verifier, instruction, "loops that may not be nested so");
    if (loop->extent < 1 || (loop->tile_of >= 0 && !verifier->visible[loop->tile_of]))
        fail(verifier, instruction, "a loop without a proper extent");
    verifier->visible[id] = true;
    verify_region(verifier, &loop->body, loop);
    verifier->visible[id] = false;
    /* A reduction's value is seen after its loop. */
    for (int64_t i = 0; i < loop->body.count; i++)
        if (at(verifier->kernel, loop->body.data[i])->kind == KERNEL_REDUCE)
            verifier->visible[loop->body.data[i]] = true;
}

static void verify_instruction(Verifier *verifier, const Instruction *instruction,
                               const Loop *around) {
    for (int i = 0; i < instruction->input_count; i++)
        if (instruction->inputs[i] >= 0 ? !verifier->visible[instruction->inputs[i]]
                                        : instruction->kind != KERNEL_RANDOM)
            fail(verifier, instruction, "an operand that is out of scope");
    verify_affine(verifier, instruction, &instruction->at);
    verify_affine(verifier, instruction, &instruction->sample);
    if (instruction->kind == KERNEL_LOAD || instruction->kind == KERNEL_STORE)
        verify_access(verifier, instruction);
    if (instruction->kind == KERNEL_REDUCE && (!around || around->kind != LOOP_LANES))
        fail(verifier, instruction, "a reduction outside a lanes loop");
}

static void verify_region(Verifier *verifier, const Region *region, const Loop *around) {
    for (int64_t i = 0; i < region->count && !verifier->fault; i++) {
        ValueId id = region->data[i];
        const Instruction *instruction = at(verifier->kernel, id);
        verify_instruction(verifier, instruction, around);
        if (verifier->fault)
            return;
        if (instruction->loop)
            verify_loop(verifier, id, around);
        else if (instruction->kind != KERNEL_STORE && instruction->kind != KERNEL_LOCAL)
            verifier->visible[id] = true;
    }
    for (int64_t i = 0; i < region->count; i++) {
        const Loop *loop = at(verifier->kernel, region->data[i])->loop;
        verifier->visible[region->data[i]] = false;
        for (int64_t j = 0; loop && j < loop->body.count; j++) /* its reductions */
            verifier->visible[loop->body.data[j]] = false;
    }
}

const char *kernel_verify(const Kernel *kernel) {
    Verifier verifier = {.kernel = kernel};
    verifier.visible =
        arena_alloc_array(kernel->arena, (size_t)kernel->instructions.count, sizeof(bool));
    verify_region(&verifier, &kernel->body, NULL);
    if (!verifier.fault)
        return NULL;
    KernelNames names = kernel_names(kernel, true);
    ValueId id = (ValueId)(verifier.at_fault - kernel->instructions.data);
    return arena_printf(kernel->arena, "%s: instruction %d%s%s", verifier.fault, id,
                        names.values[id] ? ", " : "", names.values[id] ? names.values[id] : "");
}
