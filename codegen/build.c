/* codegen/build.c: kernels under construction. */
#include "codegen/codegen.h"

enum { BUCKETS = 1024 };

static Instruction *at(const KernelBuilder *b, ValueId id) {
    return &b->kernel->instructions.data[id];
}

KernelBuilder kernel_builder(Kernel *kernel) {
    KernelBuilder b = {.kernel = kernel};
    b.buckets = checked_alloc(BUCKETS * sizeof *b.buckets);
    for (int i = 0; i < BUCKETS; i++)
        b.buckets[i] = -1;
    array_push(&b.open, &kernel->body);
    return b;
}

void kernel_builder_free(KernelBuilder *b) {
    INTERNAL_CHECK(b->open.count == 1);
    array_free(&b->open);
    array_free(&b->nests);
    array_free(&b->homes);
    array_free(&b->same);
    free(b->buckets);
}

/* ---- addresses ----------------------------------------------------------------------- */

Affine affine_constant(int64_t base) {
    return (Affine){.base = base};
}

Affine affine_of(Arena *arena, ValueId value) {
    Affine affine = {.term_count = 1, .terms = arena_alloc(arena, sizeof(Term))};
    affine.terms[0] = (Term){value, 1};
    return affine;
}

Affine affine_add(Arena *arena, Affine a, Affine b, int64_t scale) {
    Affine sum = {.base = a.base + scale * b.base};
    sum.terms =
        arena_alloc_array(arena, (size_t)(a.term_count + b.term_count), sizeof *sum.terms);
    for (int i = 0, j = 0; i < a.term_count || j < b.term_count;) {
        Term term;
        if (j == b.term_count || (i < a.term_count && a.terms[i].value < b.terms[j].value)) {
            term = a.terms[i++];
        } else {
            term = (Term){b.terms[j].value, scale * b.terms[j].stride};
            if (i < a.term_count && a.terms[i].value == term.value)
                term.stride += a.terms[i++].stride;
            j++;
        }
        if (term.stride)
            sum.terms[sum.term_count++] = term;
    }
    INTERNAL_CHECK(sum.term_count <= MAX_TERMS);
    return sum;
}

bool affine_equal(const Affine *a, const Affine *b) {
    if (a->base != b->base || a->term_count != b->term_count)
        return false;
    for (int i = 0; i < a->term_count; i++)
        if (a->terms[i].value != b->terms[i].value || a->terms[i].stride != b->terms[i].stride)
            return false;
    return true;
}

/* ---- placing values ------------------------------------------------------------------ */

/* How deep a value's region is in the stack of open ones; -1: it is closed. */
static int64_t depth_of(const KernelBuilder *b, ValueId value) {
    for (int64_t depth = b->open.count - 1; depth >= 0; depth--)
        if (b->open.data[depth] == b->homes.data[value])
            return depth;
    return -1;
}

bool is_open(const KernelBuilder *b, ValueId value) {
    return depth_of(b, value) >= 0;
}

static int64_t deeper(const KernelBuilder *b, int64_t depth, ValueId value) {
    if (value < 0)
        return depth;
    int64_t own = depth_of(b, value);
    INTERNAL_CHECK(own >= 0);
    return own > depth ? own : depth;
}

/* The outermost open region where all operands of an instruction are known. */
static int64_t depth_needed(const KernelBuilder *b, const Instruction *instruction) {
    int64_t depth = 0;
    for (int i = 0; i < instruction->input_count; i++)
        depth = deeper(b, depth, instruction->inputs[i]);
    for (int i = 0; i < instruction->at.term_count; i++)
        depth = deeper(b, depth, instruction->at.terms[i].value);
    for (int i = 0; i < instruction->sample.term_count; i++)
        depth = deeper(b, depth, instruction->sample.terms[i].value);
    return depth;
}

static uint64_t affine_hash(const Affine *affine, uint64_t seed) {
    for (int i = 0; i < affine->term_count; i++) {
        int64_t term[2] = {affine->terms[i].value, affine->terms[i].stride};
        seed = hash_bytes(term, sizeof term, seed);
    }
    return hash_bytes(&affine->base, sizeof affine->base, seed);
}

static uint64_t instruction_hash(const Instruction *i) {
    int64_t fields[] = {i->kind,      i->dtype,     i->op,        i->input_count,
                        i->inputs[0], i->inputs[1], i->inputs[2], i->integer,
                        i->divisor,   i->modulus,   i->buffer};
    uint64_t hash = hash_bytes(fields, sizeof fields, 0);
    hash = hash_bytes(&i->number, sizeof i->number, hash);
    return affine_hash(&i->sample, affine_hash(&i->at, hash));
}

static bool instruction_equal(const Instruction *a, const Instruction *b) {
    return a->kind == b->kind && a->dtype == b->dtype && a->op == b->op &&
           a->input_count == b->input_count &&
           memcmp(a->inputs, b->inputs, sizeof a->inputs) == 0 &&
           memcmp(&a->number, &b->number, sizeof a->number) == 0 && a->integer == b->integer &&
           a->divisor == b->divisor && a->modulus == b->modulus && a->buffer == b->buffer &&
           affine_equal(&a->at, &b->at) && affine_equal(&a->sample, &b->sample);
}

static ValueId append(KernelBuilder *b, Instruction instruction, Region *region) {
    ValueId id = (ValueId)b->kernel->instructions.count;
    array_push(&b->kernel->instructions, instruction);
    array_push(&b->homes, region);
    array_push(&b->same, -1);
    array_push(region, id);
    return id;
}

static Region *innermost(const KernelBuilder *b) {
    return b->open.data[b->open.count - 1];
}

/* A pure instruction: the value of an equal one that is seen here, or a new one. */
static ValueId emit_pure(KernelBuilder *b, Instruction instruction) {
    uint64_t bucket = instruction_hash(&instruction) % BUCKETS;
    for (ValueId id = b->buckets[bucket]; id >= 0; id = b->same.data[id])
        if (is_open(b, id) && instruction_equal(at(b, id), &instruction)) {
            if (!at(b, id)->name)
                at(b, id)->name = instruction.name;
            return id;
        }
    ValueId id = append(b, instruction, b->open.data[depth_needed(b, &instruction)]);
    b->same.data[id] = b->buckets[bucket];
    b->buckets[bucket] = id;
    return id;
}

/* ---- instructions -------------------------------------------------------------------- */

BufferId build_buffer(KernelBuilder *b, Buffer buffer) {
    array_push(&b->kernel->buffers, buffer);
    return (BufferId)(b->kernel->buffers.count - 1);
}

ValueId emit_constant(KernelBuilder *b, DataType dtype, double number) {
    return emit_pure(b,
                     (Instruction){.kind = KERNEL_CONSTANT, .dtype = dtype, .number = number});
}

ValueId emit_scalar(KernelBuilder *b, int number) {
    return emit_pure(
        b, (Instruction){.kind = KERNEL_SCALAR, .dtype = TYPE_F64, .integer = number});
}

ValueId emit_index(KernelBuilder *b, Affine position, const char *name) {
    if (position.term_count == 0)
        return emit_constant(b, TYPE_I32, (double)position.base);
    return emit_pure(
        b,
        (Instruction){.kind = KERNEL_INDEX, .dtype = TYPE_I32, .at = position, .name = name});
}

ValueId emit_digit(KernelBuilder *b, Affine position, int64_t positions, int64_t divisor,
                   int64_t modulus) {
    return emit_pure(b, (Instruction){.kind = KERNEL_DIGIT,
                                      .dtype = TYPE_I32,
                                      .at = position,
                                      .integer = positions,
                                      .divisor = divisor,
                                      .modulus = modulus});
}

ValueId emit_map(KernelBuilder *b, Op op, DataType dtype, const ValueId *inputs, int count,
                 const char *name) {
    Instruction map = {
        .kind = KERNEL_MAP, .dtype = dtype, .op = op, .input_count = count, .name = name};
    memcpy(map.inputs, inputs, (size_t)count * sizeof *inputs);
    return emit_pure(b, map);
}

ValueId emit_random(KernelBuilder *b, int64_t site, const ValueId seed_step_sample0[3],
                    Affine sample, Affine position) {
    Instruction random = {.kind = KERNEL_RANDOM,
                          .dtype = TYPE_F32,
                          .input_count = 3,
                          .integer = site,
                          .at = position,
                          .sample = sample};
    memcpy(random.inputs, seed_step_sample0, sizeof random.inputs);
    return emit_pure(b, random);
}

/* A load from memory that this kernel writes in another loop stays where it is asked for. */
ValueId emit_load(KernelBuilder *b, BufferId buffer, Affine position, const char *name) {
    Buffer *from = &b->kernel->buffers.data[buffer];
    Instruction load = {.kind = KERNEL_LOAD,
                        .dtype = from->dtype,
                        .buffer = buffer,
                        .at = position,
                        .name = name};
    from->reads = true;
    return from->writes ? append(b, load, innermost(b)) : emit_pure(b, load);
}

void emit_store(KernelBuilder *b, BufferId buffer, Affine position, ValueId value) {
    b->kernel->buffers.data[buffer].writes = true;
    append(b,
           (Instruction){.kind = KERNEL_STORE,
                         .buffer = buffer,
                         .at = position,
                         .input_count = 1,
                         .inputs = {value}},
           innermost(b));
}

ValueId emit_reduce(KernelBuilder *b, Op op, ValueId term, const char *name) {
    INTERNAL_CHECK(b->open.count >= 2);
    ValueId id = append(b,
                        (Instruction){.kind = KERNEL_REDUCE,
                                      .dtype = at(b, term)->dtype,
                                      .op = op,
                                      .input_count = 1,
                                      .inputs = {term},
                                      .name = name},
                        innermost(b));
    b->homes.data[id] = b->open.data[b->open.count - 2];
    return id;
}

void emit_local(KernelBuilder *b, BufferId buffer) {
    append(b, (Instruction){.kind = KERNEL_LOCAL, .buffer = buffer}, innermost(b));
}

/* Moves the last instruction of a region to its head. */
static void move_to_head(Region *region) {
    ValueId last = region->data[region->count - 1];
    memmove(region->data + 1, region->data, (size_t)(region->count - 1) * sizeof last);
    region->data[0] = last;
}

BufferId keep_value(KernelBuilder *b, ValueId value, Affine position, int64_t elements) {
    INTERNAL_CHECK(b->open.count >= 2);
    BufferId buffer = build_buffer(b, (Buffer){.dtype = at(b, value)->dtype,
                                               .elements = elements,
                                               .argument = -1,
                                               .writes = true,
                                               .name = at(b, value)->name});
    Region *around = b->open.data[b->open.count - 2];
    append(b, (Instruction){.kind = KERNEL_LOCAL, .buffer = buffer}, around);
    move_to_head(around);
    append(b,
           (Instruction){.kind = KERNEL_STORE,
                         .buffer = buffer,
                         .at = position,
                         .input_count = 1,
                         .inputs = {value}},
           b->homes.data[value]);
    return buffer;
}

/* ---- loops --------------------------------------------------------------------------- */

void open_loops(KernelBuilder *b, LoopKind kind, const LoopShape *shapes, int count,
                ValueId *indices) {
    ValueId first = (ValueId)b->kernel->instructions.count;
    INTERNAL_CHECK(count >= 1);
    for (int i = 0; i < count; i++) {
        Loop *loop = arena_alloc(b->kernel->arena, sizeof *loop);
        *loop = (Loop){.kind = kind,
                       .extent = shapes[i].extent,
                       .tile_of = shapes[i].tile_of,
                       .total = shapes[i].total};
        indices[i] = first + i;
        array_push(
            &b->kernel->instructions,
            ((Instruction){
                .kind = KERNEL_LOOP, .dtype = TYPE_I32, .loop = loop, .name = shapes[i].name}));
        array_push(&b->same, -1);
        if (i > 0)
            array_push(&at(b, first + i - 1)->loop->body, first + i);
    }
    Region *body = &at(b, first + count - 1)->loop->body;
    for (int i = 0; i < count; i++)
        array_push(&b->homes, body);
    array_push(&b->open, body);
    array_push(&b->nests, first);
}

void close_loops(KernelBuilder *b) {
    ValueId nest = b->nests.data[--b->nests.count];
    b->open.count--;
    array_push(innermost(b), nest);
}
