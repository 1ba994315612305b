/* runtime/machine.c: what the machine can do, measured; what memory it has left, and what the
 * process holds. */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <omp.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- memory ------------------------------------------------------------------------ */
int64_t process_resident_bytes(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    int64_t pages = 0;
    if (file && fscanf(file, "%*d %" SCNd64, &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

/* The number in a file; -1 when it holds none ("max"), or there is no such file. */
static int64_t number_in(const char *path) {
    FILE *file = fopen(path, "r");
    int64_t number = -1;
    if (file && fscanf(file, "%" SCNd64, &number) != 1)
        number = -1;
    if (file)
        fclose(file);
    return number;
}

/* What a container's limit leaves; INT64_MAX without one. */
static int64_t container_available(void) {
    static const char *const files[][2] = {
        {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
         "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
    for (int i = 0; i < COUNT_OF(files); i++) {
        int64_t limit = number_in(files[i][0]), used = number_in(files[i][1]);
        if (limit >= 0 && used >= 0)
            return limit > used ? limit - used : 0;
    }
    return INT64_MAX;
}

/* What the process may still map; INT64_MAX without a limit. */
static int64_t address_space_available(void) {
    struct rlimit limit;
    FILE *file = fopen("/proc/self/statm", "r");
    int64_t pages = 0;
    if (file && fscanf(file, "%" SCNd64, &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY)
        return INT64_MAX;
    int64_t used = pages * sysconf(_SC_PAGESIZE), most = (int64_t)limit.rlim_cur;
    return most > used ? most - used : 0;
}

int64_t machine_available_bytes(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    int64_t available = INT64_MAX, kibibytes;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %" SCNd64, &kibibytes) == 1)
            available = kibibytes * 1024;
    if (file)
        fclose(file);
    int64_t limits[] = {container_available(), address_space_available()};
    for (int i = 0; i < COUNT_OF(limits); i++)
        available = limits[i] < available ? limits[i] : available;
    return available;
}

/* ---- speed ------------------------------------------------------------------------- */
static const char *processor_name(void) {
    static char name[128] = "unknown processor";
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "model name : %127[^\n]", name) == 1)
            break;
    if (file)
        fclose(file);
    return name;
}

static void fill_parallel(float *values, int64_t count, float value) {
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        values[i] = value;
}

/* The best of some runs of a product that is large for any number of threads. */
static double measure_products(void) {
    enum { M = 2048, N = 1024, K = 1024 };
    const double least_seconds = 0.05;
    Product product = {
        .m = M, .n = N, .k = K, .a_m = K, .a_k = 1, .b_k = N, .b_n = 1, .c_m = N, .c_n = 1};
    PreparedProduct *prepared = product_prepare(&product);
    size_t scratch = (size_t)product_scratch_bytes(prepared) * (size_t)omp_get_max_threads();
    float *a = checked_alloc(sizeof(float) * M * K);
    float *b = checked_alloc(sizeof(float) * K * N);
    float *c = checked_alloc(sizeof(float) * M * N);
    char *space = aligned_alloc(64, scratch + 64);
    double best = 0, spent = 0;
    fill_parallel(a, (int64_t)M * K, 1);
    fill_parallel(b, (int64_t)K * N, 1);
    for (int run = 0; space && (run < 3 || spent < least_seconds); run++) {
        double start = now_seconds();
        product_run(prepared, a, b, c, space);
        double seconds = now_seconds() - start;
        spent += seconds;
        if (run > 0 && (best == 0 || seconds < best))
            best = seconds;
    }
    product_free(prepared);
    free(a);
    free(b);
    free(c);
    free(space);
    return best > 0 ? 2.0 * M * N * K / best : 0;
}

/* Bytes read plus bytes written, of the best of a few copies. */
static double measure_copy(void) {
    enum { COUNT = 1 << 24 }; /* 64 MiB each */
    float *from = checked_alloc(sizeof(float) * COUNT);
    float *to = checked_alloc(sizeof(float) * COUNT);
    double best = 0;
    fill_parallel(from, COUNT, 1);
    for (int run = 0; run < 4; run++) {
        double start = now_seconds();
#pragma omp parallel for
        for (int64_t i = 0; i < COUNT; i++)
            to[i] = from[i];
        double seconds = now_seconds() - start;
        if (run > 0 && (best == 0 || seconds < best))
            best = seconds;
    }
    free(from);
    free(to);
    return 2.0 * sizeof(float) * COUNT / best;
}

MachineFigures machine_measure(void) {
    return (MachineFigures){.product_flops = measure_products(),
                            .copy_bytes = measure_copy(),
                            .threads = omp_get_max_threads(),
                            .processor = processor_name()};
}
