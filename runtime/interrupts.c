/* runtime/interrupts.c: an interrupt (SIGINT, SIGTERM) is a flag that is looked at between
 * updates.
 *
 * oneDNN's products for AVX2 use the stack pointer of their thread for memory of their own: a
 * handler that ran there would write over the heap.  So all threads but one, which does nothing
 * else, hold these signals back. */
#include "runtime/runtime.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

static const int numbers[] = {SIGINT, SIGTERM};
static struct sigaction before[COUNT_OF(numbers)];
static volatile sig_atomic_t caught;

static void remember(int number) {
    caught = number;
}

static void *take_signals(void *unused) {
    for (;;)
        pause();
    return unused;
}

void interrupts_guard(void) {
    pthread_t thread;
    sigset_t held;
    if (pthread_create(&thread, NULL, take_signals, NULL) != 0)
        return;
    pthread_detach(thread);
    sigemptyset(&held);
    for (int i = 0; i < COUNT_OF(numbers); i++)
        sigaddset(&held, numbers[i]);
    pthread_sigmask(SIG_BLOCK, &held, NULL);
}

void interrupts_catch(void) {
    /* The handler serves once. */
    struct sigaction action = {.sa_handler = remember, .sa_flags = (int)SA_RESETHAND};
    caught = 0;
    for (int i = 0; i < COUNT_OF(numbers); i++)
        sigaction(numbers[i], &action, &before[i]);
}

void interrupts_release(void) {
    for (int i = 0; i < COUNT_OF(numbers); i++)
        sigaction(numbers[i], &before[i], NULL);
}

int interrupt_caught(void) {
    return caught;
}
