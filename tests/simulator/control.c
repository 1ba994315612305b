/* tests/simulator/control.c: what COLAC_SIMULATE asks for, and the report. */
#include "tests/simulator/simulator.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAMES = 128 };
static struct Count {
    const char *name;
    long calls, in_phase[PHASE_COUNT];
} counts[MAX_NAMES];
static int count_count;
static bool broken;
static long objects[OBJECT_COUNT], recorded, replayed, tf32_products;
static const char *const object_names[OBJECT_COUNT] = {"modules",  "streams",    "events",
                                                       "graphs",   "recordings", "pinned",
                                                       "contexts", "blas",       "programs"};

/* `phase`: PHASE_COUNT: all. */
static void write_calls(FILE *file, const char *name, Phase phase) {
    fprintf(file, "\"%s\":{", name);
    const char *comma = "";
    for (int i = 0; i < count_count; i++) {
        long calls = phase == PHASE_COUNT ? counts[i].calls : counts[i].in_phase[phase];
        if (calls)
            fprintf(file, "%s\"%s\":%ld", comma, counts[i].name, calls);
        if (calls)
            comma = ",";
    }
    fputs("}", file);
}

static void write_report(void) {
    const Settings *s = settings();
    FILE *file = s->report ? fopen(s->report, "w") : NULL;
    if (!file)
        return;
    MemoryFigures memory = memory_figures();
    fprintf(file, "{\"peak_bytes\":%zu,\"live_bytes\":%zu,\"allocations\":%ld,", memory.peak,
            memory.live, memory.allocations);
    fprintf(file, "\"tf32_products\":%ld,", tf32_products);
    fprintf(file, "\"allocations_after_replay\":%ld,\"recorded\":%ld,\"replayed\":%ld,",
            memory.after_replay, recorded, replayed);
    for (int i = 0; i < OBJECT_COUNT; i++)
        fprintf(file, "\"%s\":%ld,", object_names[i], objects[i]);
    write_calls(file, "calls_of_record", PHASE_RECORD);
    fputs(",", file);
    write_calls(file, "calls_of_replay", PHASE_REPLAY);
    fputs(",", file);
    write_calls(file, "calls", PHASE_COUNT);
    fputs("}\n", file);
    fclose(file);
}

/* The value of KEY=VALUE in the list, as a text of its own; NULL. */
static char *setting(const char *list, const char *key) {
    size_t length = strlen(key);
    for (const char *at = list; at && *at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (strncmp(at, key, length) == 0 && at[length] == '=')
            return strndup(at + length + 1, strcspn(at + length + 1, ","));
    return NULL;
}

static long number_setting(const char *list, const char *key, long otherwise) {
    char *value = setting(list, key);
    long number = value ? strtol(value, NULL, 10) : otherwise;
    free(value);
    return number;
}

const Settings *settings(void) {
    static Settings all;
    static bool known;
    if (known)
        return &all;
    known = true;
    const char *list = getenv("COLAC_SIMULATE");
    all = (Settings){.memory = (size_t)number_setting(list, "memory", 1L << 30),
                     .code = (size_t)number_setting(list, "code", 0),
                     .architecture = 90,
                     .nvrtc = (int)number_setting(list, "nvrtc", 130),
                     .cards = (int)number_setting(list, "cards", 1),
                     .version = (int)number_setting(list, "version", 13000),
                     .seed = (uint64_t)number_setting(list, "seed", 0),
                     .report = setting(list, "report")};
    char *log = setting(list, "log");
    all.silent = log && strcmp(log, "empty") == 0;
    free(log);
    char *card = setting(list, "card");
    if (card)
        all.architecture = atoi(card + 3);
    free(card);
    static const char *const keys[] = {"fail", "also"};
    for (int i = 0; i < 2; i++) {
        char *fail = setting(list, keys[i]), *colon = fail ? strchr(fail, ':') : NULL;
        all.failing[i] = fail;
        all.failing_phase[i] = colon && strcmp(colon + 1, "record") == 0   ? PHASE_RECORD
                               : colon && strcmp(colon + 1, "replay") == 0 ? PHASE_REPLAY
                                                                           : PHASE_COUNT;
        bool counted = colon && all.failing_phase[i] == PHASE_COUNT;
        all.failing_call[i] = counted ? strtol(colon + 1, NULL, 10) : 1;
        if (colon)
            *colon = 0;
    }
    atexit(write_report);
    return &all;
}

/* What answers even when the card is lost: giving back, and asking what happened. */
static bool needs_the_card(const char *name) {
    static const char *const words[] = {"Destroy", "Free",     "Unload",
                                        "Release", "GetError", "nvrtc"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(name, words[i]))
            return false;
    return true;
}

/* NVRTC is called by several threads. */
static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;

/* Is this call of a function one of those that have to fail? */
static bool has_to_fail(const struct Count *count, Phase now) {
    const Settings *s = settings();
    for (int k = 0; k < 2; k++) {
        Phase asked = s->failing_phase[k];
        long call = asked == PHASE_COUNT ? count->calls : count->in_phase[asked];
        if (s->failing[k] && strcmp(s->failing[k], count->name) == 0 &&
            (asked == PHASE_COUNT || asked == now) && call == s->failing_call[k])
            return true;
    }
    return false;
}

static bool count_call(const char *name) {
    int i = 0;
    while (i < count_count && strcmp(counts[i].name, name) != 0)
        i++;
    if (i == count_count)
        counts[count_count++].name = name;
    counts[i].calls++;
    counts[i].in_phase[phase()]++;
    bool fails = has_to_fail(&counts[i], phase());
    if (!fails && broken && needs_the_card(name))
        return true;
    bool of_driver = strncmp(name, "cu", 2) == 0 && strncmp(name, "cublas", 6) != 0;
    broken |= fails && of_driver && strcmp(name, "cuMemAlloc_v2") != 0 &&
              strcmp(name, "cuMemHostAlloc") != 0;
    return fails;
}

bool called(const char *name) {
    pthread_mutex_lock(&counting);
    bool fails = count_call(name);
    pthread_mutex_unlock(&counting);
    return fails;
}

bool is_broken(void) {
    return broken;
}

void fault(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("simulated card: fault: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    _Exit(99);
}

uint64_t random_bits(void) {
    static uint64_t state;
    uint64_t z = state += 0x9E3779B97F4A7C15u + settings()->seed * 2;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

void count_object(enum Object object, int by) {
    objects[object] += by;
}

long live_modules(void) {
    return objects[OBJECT_MODULE];
}

void count_recorded(void) {
    recorded++;
}

void count_tf32(bool allowed) {
    tf32_products += allowed;
}

void count_replayed(void) {
    replayed++;
}
