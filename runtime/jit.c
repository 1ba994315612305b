/* runtime/jit.c: generated C to functions that can be called, by the system's C compiler, with
 * a cache keyed by content.
 *
 * Every text becomes a shared object in the cache (cache.c).  Its key covers the text, the
 * flags, the compiler (its file, size and time: asking for --version would cost a warm start
 * more than all else), and the processor, since the flags say -march=native.
 */
#include "runtime/runtime.h"

#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static const char *const flag_list[] = {
    "-std=c17", "-O3", "-march=native",
#if defined(__x86_64__)
    /* gcc takes half of a register by itself: twice as many instructions round to bf16. */
    "-mprefer-vector-width=512",
#endif
    "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
    "-shared"};

const char *jit_flags(void) {
    static char joined[256];
    if (!joined[0]) {
        for (int i = 0; i < COUNT_OF(flag_list); i++) {
            size_t length = strlen(joined);
            snprintf(joined + length, sizeof joined - length, "%s%s", i ? " " : "",
                     flag_list[i]);
        }
    }
    return joined;
}

/* ---- the compiler ------------------------------------------------------------------ */
enum { MAX_COMPILER_WORDS = 16 };

/* $CC may hold arguments after the name ("ccache gcc", "gcc -m64"); no shell sees them. */
typedef struct Compiler {
    char *words; /* the storage of `word` */
    int word_count;
    char *word[MAX_COMPILER_WORDS];
    char path[PATH_MAX]; /* of word[0] */
    uint64_t identity;
} Compiler;

/* Where PATH has an executable file of that name. */
static bool find_executable(const char *name, char *path) {
    if (strchr(name, '/')) {
        snprintf(path, PATH_MAX, "%s", name);
        return access(path, X_OK) == 0;
    }
    const char *folders = getenv("PATH");
    if (!folders || !*folders)
        folders = "/usr/bin:/bin";
    while (*folders) {
        int length = (int)strcspn(folders, ":");
        snprintf(path, PATH_MAX, "%.*s/%s", length ? length : 1, length ? folders : ".", name);
        struct stat info;
        if (access(path, X_OK) == 0 && stat(path, &info) == 0 && S_ISREG(info.st_mode))
            return true;
        folders += length;
        folders += *folders == ':';
    }
    return false;
}

static bool compiler_from(Compiler *compiler, const char *command) {
    compiler->words = checked_alloc(strlen(command) + 1);
    strcpy(compiler->words, command);
    char *rest = NULL;
    for (char *word = strtok_r(compiler->words, " \t", &rest);
         word && compiler->word_count < MAX_COMPILER_WORDS; word = strtok_r(NULL, " \t", &rest))
        compiler->word[compiler->word_count++] = word;
    if (compiler->word_count && find_executable(compiler->word[0], compiler->path))
        return true;
    free(compiler->words);
    *compiler = (Compiler){0};
    return false;
}

/* Every word that names a program: its file, size and time of change. */
static void compiler_identify(Compiler *compiler) {
    Text text = {0};
    for (int i = 0; i < compiler->word_count; i++) {
        char path[PATH_MAX];
        struct stat info;
        text_printf(&text, "%s\n", compiler->word[i]);
        if (find_executable(compiler->word[i], path) && stat(path, &info) == 0)
            text_printf(&text, "%s %jd %jd.%09ld\n", path, (intmax_t)info.st_size,
                        (intmax_t)info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
    }
    compiler->identity = hash_bytes(text_string(&text), text.length, 0);
    text_free(&text);
}

/* $CC, else cc, gcc, clang.  False after reporting. */
static bool compiler_find(Compiler *compiler, Diagnostics *diagnostics) {
    static const char *const usual[] = {"cc", "gcc", "clang"};
    const char *chosen = getenv("CC");
    bool found = false;
    if (chosen && *chosen) {
        found = compiler_from(compiler, chosen);
        if (!found)
            help(error_in_file(diagnostics, chosen,
                               "there is no such program, and `CC` names it as the C compiler"),
                 "unset `CC`, or install the compiler: `apt-get install gcc`");
    } else {
        for (int i = 0; i < COUNT_OF(usual) && !found; i++)
            found = compiler_from(compiler, usual[i]);
        if (!found)
            help(error_in_file(
                     diagnostics, "cc",
                     "there is no C compiler on this machine; kernels are compiled when "
                     "a model is run"),
                 "`apt-get install gcc`, or name a compiler in `CC`");
    }
    if (found)
        compiler_identify(compiler);
    return found;
}

/* The first processor's name and features: what -march=native looks at. */
static uint64_t processor_identity(void) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    char *line = NULL;
    size_t capacity = 0;
    Text text = {0};
    struct utsname machine;
    if (uname(&machine) == 0)
        text_puts(&text, machine.machine);
    while (file && getline(&line, &capacity, file) > 1) { /* an empty line ends a processor */
        static const char *const keys[] = {"vendor_id", "cpu family", "model", "stepping",
                                           "flags",     "Features",   "CPU "};
        for (int i = 0; i < COUNT_OF(keys); i++)
            if (strncmp(line, keys[i], strlen(keys[i])) == 0)
                text_puts(&text, line);
    }
    if (file)
        fclose(file);
    free(line);
    uint64_t identity = hash_bytes(text_string(&text), text.length, 0);
    text_free(&text);
    return identity;
}

/* ---- building ---------------------------------------------------------------------- */
static void source_key(const Compiler *compiler, uint64_t processor, const Text *source,
                       char key[33]) {
    const void *parts[] = {jit_flags(), &compiler->identity, &processor, text_string(source)};
    const size_t lengths[] = {strlen(jit_flags()), sizeof compiler->identity, sizeof processor,
                              source->length};
    cache_key(parts, lengths, COUNT_OF(parts), key);
}

typedef struct Job { /* one text */
    const Text *source;
    char key[33];
    char entry[PATH_MAX]; /* where its object is in the end */
    bool build, refused;  /* not in the cache; not accepted by the compiler */
    pid_t process;
    int status; /* of waitpid */
} Job;

typedef struct Build {
    const Compiler *compiler;
    Job *jobs;
    int job_count;
    KernelCache cache; /* temporary: objects are removed when loaded */
    Diagnostics *diagnostics;
} Build;

/* FOLDER/kernels_N SUFFIX of the job. */
static void job_path(const Build *build, const Job *job, const char *suffix, char *path) {
    snprintf(path, PATH_MAX, "%.*s/kernels_%d%s", PATH_MAX - 64, build->cache.folder,
             (int)(job - build->jobs), suffix);
}

/* Removes what building left, but for a refused kernel's source and what was said of it. */
static void build_clean(const Build *build) {
    static const char *const suffixes[] = {".so", ".c", ".log"};
    for (int i = 0; i < build->job_count; i++) {
        for (int j = 0; j < COUNT_OF(suffixes); j++) {
            char path[PATH_MAX];
            job_path(build, &build->jobs[i], suffixes[j], path);
            if (!build->jobs[i].refused || j == 0)
                unlink(path);
        }
    }
    rmdir(build->cache.folder);
}

/* The environment with messages in plain English, since one of them is looked for. */
static char **plain_environment(void) {
    int count = 0, kept = 0;
    while (environ[count])
        count++;
    char **plain = checked_alloc((size_t)(count + 2) * sizeof *plain);
    for (int i = 0; i < count; i++)
        if (strncmp(environ[i], "LC_ALL=", 7) != 0 && strncmp(environ[i], "LANGUAGE=", 9) != 0)
            plain[kept++] = environ[i];
    static char language[] = "LC_ALL=C";
    plain[kept] = language;
    return plain;
}

/* With English messages, and taking the signals that our threads hold back. */
static int spawn_plainly(Job *job, const char *path, const posix_spawn_file_actions_t *actions,
                         char **arguments) {
    char **environment = plain_environment();
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int failure =
        posix_spawn(&job->process, path, actions, &attributes, arguments, environment);
    posix_spawnattr_destroy(&attributes);
    free(environment);
    if (failure)
        job->process = 0;
    return failure;
}

/* Starts `compiler flags -o OBJECT SOURCE > LOG 2>&1`, in no shell.  An errno, or 0. */
static int job_start(const Build *build, Job *job) {
    char source[PATH_MAX], object[PATH_MAX], log[PATH_MAX];
    job_path(build, job, ".c", source);
    job_path(build, job, ".so", object);
    job_path(build, job, ".log", log);
    char output[] = "-o", flags[256], *rest = NULL;
    char *arguments[MAX_COMPILER_WORDS + COUNT_OF(flag_list) + 4];
    int count = 0;
    for (int i = 0; i < build->compiler->word_count; i++)
        arguments[count++] = build->compiler->word[i];
    snprintf(flags, sizeof flags, "%s", jit_flags());
    for (char *flag = strtok_r(flags, " ", &rest); flag; flag = strtok_r(NULL, " ", &rest))
        arguments[count++] = flag;
    arguments[count++] = output;
    arguments[count++] = object;
    arguments[count++] = source;
    arguments[count] = NULL;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log, O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    int failure = spawn_plainly(job, build->compiler->path, &actions, arguments);
    posix_spawn_file_actions_destroy(&actions);
    return failure;
}

static void job_wait(Job *job) {
    while (waitpid(job->process, &job->status, 0) < 0 && errno == EINTR)
        ;
    job->process = 0;
}

static bool job_write_source(const Build *build, const Job *job) {
    char path[PATH_MAX];
    job_path(build, job, ".c", path);
    return cache_write(&build->cache, path, text_string(job->source), job->source->length);
}

/* What the compiler said, in its first lines; and whose fault it is. */
static void job_report(const Build *build, Job *job) {
    char source[PATH_MAX], log[PATH_MAX];
    job_path(build, job, ".c", source);
    job_path(build, job, ".log", log);
    size_t length = 0;
    char *said = read_file(log, 1 << 24, &length);
    const char *name = build->compiler->word[0];
    if (said && strstr(said, "No space left on device")) {
        help(error_in_file(build->diagnostics, build->cache.folder,
                           "no space left on the device while compiling kernels"),
             "free some space here and in the folder of temporary files (TMPDIR)");
    } else if (WIFSIGNALED(job->status)) {
        help(error_in_file(build->diagnostics, source, "%s was ended by signal %d", name,
                           WTERMSIG(job->status)),
             "too little memory for the compiler is the usual cause");
    } else {
        job->refused = true;
        int shown = said ? (int)strnlen(said, 1200) : 0;
        while (shown > 0 && isspace((unsigned char)said[shown - 1]))
            shown--;
        help(error_in_file(build->diagnostics, source, "%s refused a generated kernel:\n%.*s",
                           name, shown, said ? said : ""),
             "this is a fault of colac or of the C compiler's installation: please report it "
             "with "
             "the file above, which is kept");
    }
    free(said);
}

static int worker_count(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* Compiles what the cache lacks, as many texts at a time as there are processors.  False after
 * reporting the first failure. */
static bool jobs_run(Build *build) {
    int limit = worker_count(), oldest = 0, running = 0;
    bool good = true;
    for (int i = 0; i < build->job_count; i++)
        good = good && (!build->jobs[i].build || job_write_source(build, &build->jobs[i]));
    for (int i = 0; good && i < build->job_count; i++) {
        if (!build->jobs[i].build)
            continue;
        for (; running == limit; oldest++) {
            if (build->jobs[oldest].process) {
                job_wait(&build->jobs[oldest]);
                running--;
            }
        }
        int failure = job_start(build, &build->jobs[i]);
        running += failure == 0;
        good = failure == 0;
        if (failure)
            error_in_file(build->diagnostics, build->compiler->path, "cannot be run: %s",
                          strerror(failure));
    }
    for (int i = 0; i < build->job_count; i++)
        if (build->jobs[i].process)
            job_wait(&build->jobs[i]);
    for (int i = 0; good && i < build->job_count; i++) {
        if (build->jobs[i].build && build->jobs[i].status != 0) {
            job_report(build, &build->jobs[i]);
            good = false;
        }
    }
    return good;
}

/* Seals the finished objects and moves them to the cache.  False after reporting. */
static bool jobs_publish(Build *build) {
    for (int i = 0; i < build->job_count; i++) {
        Job *job = &build->jobs[i];
        if (!job->build)
            continue;
        char object[PATH_MAX];
        job_path(build, job, ".so", object);
        if (!cache_publish(&build->cache, object, job->entry))
            return false;
    }
    return true;
}

/* ---- loading ----------------------------------------------------------------------- */
typedef struct Loaded {
    JitResult result;
    int handle_count;
    void **handles;
    Arena *arena; /* of result.objects */
} Loaded;

static KernelFunction find_function(const Loaded *loaded, const char *name) {
    union {
        void *address;
        KernelFunction function;
    } symbol; /* POSIX makes the two interchangeable; C has no cast for it */
    for (int i = 0; i < loaded->handle_count; i++)
        if ((symbol.address = dlsym(loaded->handles[i], name)))
            return symbol.function;
    internal_error("no compiled text defines %s", name);
}

/* NULL after reporting. */
static Loaded *load(const Build *build, const char *const *names, int name_count) {
    Loaded *loaded = checked_alloc(sizeof *loaded);
    loaded->handles = checked_alloc((size_t)build->job_count * sizeof *loaded->handles);
    loaded->arena = arena_new();
    loaded->result.objects = arena_alloc_array(loaded->arena, (size_t)build->job_count,
                                               sizeof *loaded->result.objects);
    for (int i = 0; i < build->job_count; i++) {
        void *handle = dlopen(build->jobs[i].entry, RTLD_NOW | RTLD_LOCAL);
        if (!handle) {
            help(error_in_file(build->diagnostics, build->jobs[i].entry,
                               "cannot load compiled kernels: %s", dlerror()),
                 "the folder must allow execution; name another in `COLAC_CACHE`");
            jit_free(&loaded->result);
            return NULL;
        }
        loaded->handles[loaded->handle_count++] = handle;
        loaded->result.objects[loaded->result.object_count++] =
            arena_strdup(loaded->arena, build->jobs[i].entry);
    }
    loaded->result.count = name_count;
    loaded->result.functions =
        checked_alloc((size_t)name_count * sizeof *loaded->result.functions);
    for (int i = 0; i < name_count; i++)
        loaded->result.functions[i] = find_function(loaded, names[i]);
    return loaded;
}

void jit_free(JitResult *result) {
    if (!result)
        return;
    Loaded *loaded = (Loaded *)result; /* its first member */
    for (int i = 0; i < loaded->handle_count; i++)
        dlclose(loaded->handles[i]);
    free(loaded->handles);
    arena_free(loaded->arena);
    free(loaded->result.functions);
    free(loaded);
}

/* Which entries the cache has.  The number that must be built. */
static int jobs_look_up(Build *build, const Text *sources) {
    uint64_t processor = processor_identity();
    int missing = 0;
    for (int i = 0; i < build->job_count; i++) {
        Job *job = &build->jobs[i];
        job->source = &sources[i];
        source_key(build->compiler, processor, &sources[i], job->key);
        job->build = !cache_look_up(&build->cache, job->key, ".so", job->entry);
        missing += job->build;
    }
    return missing;
}

JitResult *jit_compile(const Text *sources, int source_count, const char *const *names,
                       int name_count, Diagnostics *diagnostics) {
    double start = now_seconds();
    Compiler compiler = {0};
    if (!compiler_find(&compiler, diagnostics))
        return NULL;
    Build build = {
        .compiler = &compiler, .job_count = source_count, .diagnostics = diagnostics};
    build.jobs = checked_alloc((size_t)source_count * sizeof *build.jobs);
    cache_find(&build.cache, diagnostics);
    int missing = jobs_look_up(&build, sources);
    Loaded *loaded = NULL;
    if (missing == 0) {
        loaded = load(&build, names, name_count);
    } else if (cache_begin(&build.cache)) {
        if (jobs_run(&build) && jobs_publish(&build))
            loaded = load(&build, names, name_count);
        build_clean(&build);
    }
    free(build.jobs);
    free(compiler.words);
    if (!loaded)
        return NULL;
    loaded->result.cached = missing == 0;
    loaded->result.seconds = now_seconds() - start;
    return &loaded->result;
}
