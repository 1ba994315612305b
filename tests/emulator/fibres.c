/* tests/emulator/fibres.c: stacks, and going from one to another.  swapcontext would ask the
 * kernel for the signal mask each time, and take a hundred times as long. */
#include "tests/emulator/private.h"

#include <sys/mman.h>

#ifndef __has_feature
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { STACK_BYTES = 64 << 10 };

struct Fibre {
    void *saved; /* stack pointer, while it does not run; NULL: it has nothing to go on with */
    char *stack;
    size_t bytes;
#ifdef UNDER_ASAN
    void *shadow;
#endif
    Fibre *next_made, *next_free;
};

static Fibre host, *made, *free_ones, *came_from;
static void (*fibre_body)(void);

/* ---- switches ------------------------------------------------------------------------- */
/* Saves what a call preserves on the stack, and the stack's pointer at `save`; goes on with
 * what was so saved, and has its stack's pointer at `load`. */
void emulator_switch(void **save, void *load);

#if defined(__x86_64__)
__asm__(".text\n"
        ".globl emulator_switch\n"
        ".hidden emulator_switch\n"
        ".type emulator_switch, @function\n"
        "emulator_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size emulator_switch, .-emulator_switch\n");
/* Six registers, where to go, and the return address of that: the stack is then aligned as
 * functions expect it. */
enum { FRAME_WORDS = 8, FRAME_ENTRY = 6 };
#elif defined(__aarch64__)
__asm__(".text\n"
        ".globl emulator_switch\n"
        ".hidden emulator_switch\n"
        ".type emulator_switch, %function\n"
        "emulator_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size emulator_switch, .-emulator_switch\n");
enum { FRAME_WORDS = 20, FRAME_ENTRY = 11 };
#else
#error "emulator_switch is written for x86-64 and aarch64"
#endif

/* The address sanitizer knows the bounds of the stack that it is on, and follows. */
static void leave(Fibre *from, const Fibre *to) {
    came_from = from;
#ifdef UNDER_ASAN
    __sanitizer_start_switch_fiber(&from->shadow, to->stack, to->bytes);
#else
    (void)to;
#endif
}

/* What is known of the host's stack is learnt on the way from it. */
static void arrive(Fibre *here) {
#ifdef UNDER_ASAN
    const void *stack = NULL;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(here->shadow, &stack, &bytes);
    if (came_from == &host) {
        host.stack = (char *)(uintptr_t)stack;
        host.bytes = bytes;
    }
#else
    (void)here;
#endif
}

static Fibre *entered; /* for the first time */

static void fibre_entry(void) {
    arrive(entered);
    fibre_body();
    internal_error("a fibre's body has returned");
}

static void prepare(Fibre *fibre) {
    uintptr_t *frame = (uintptr_t *)(void *)(fibre->stack + fibre->bytes) - FRAME_WORDS;
    memset(frame, 0, FRAME_WORDS * sizeof *frame);
    frame[FRAME_ENTRY] = (uintptr_t)fibre_entry;
    fibre->saved = frame;
#ifdef UNDER_ASAN
    fibre->shadow = NULL;
#endif
}

void fibre_switch(Fibre *from, Fibre *to) {
    entered = to;
    leave(from, to);
    emulator_switch(&from->saved, to->saved);
    arrive(from);
}

/* ---- the pool ------------------------------------------------------------------------- */

/* Below a stack is a page that nothing may touch. */
static Fibre *fibre_new(void) {
    enum { GUARD_PAGE = 64 << 10 }; /* the largest page of the usual machines */
    Fibre *fibre = checked_alloc(sizeof *fibre);
    char *memory = mmap(NULL, GUARD_PAGE + STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD_PAGE, PROT_NONE) != 0) {
        fprintf(stderr, "emulator: no memory for a stack\n");
        exit(1);
    }
    fibre->stack = memory + GUARD_PAGE;
    fibre->bytes = STACK_BYTES;
    fibre->next_made = made;
    made = fibre;
    return fibre;
}

Fibre *fibre_take(void (*body)(void)) {
    fibre_body = body;
    Fibre *fibre = free_ones;
    if (fibre)
        free_ones = fibre->next_free;
    else
        fibre = fibre_new();
    if (!fibre->saved)
        prepare(fibre);
    return fibre;
}

void fibre_give(Fibre *fibre) {
    fibre->next_free = free_ones;
    free_ones = fibre;
}

Fibre *fibre_host(void) {
    return &host;
}

bool fibre_has(const Fibre *fibre, uintptr_t address, size_t size) {
    uintptr_t begin = (uintptr_t)fibre->stack;
    return address >= begin && address + size <= begin + fibre->bytes;
}

void fibres_abandon(void) {
    free_ones = NULL;
    for (Fibre *fibre = made; fibre; fibre = fibre->next_made) {
#ifdef UNDER_ASAN
        __asan_unpoison_memory_region(fibre->stack, fibre->bytes);
#endif
        fibre->saved = NULL;
        fibre_give(fibre);
    }
}
