/* tests/emulator/objects.c: texts -> loaded objects, by the host's compiler; and from addresses
 * in them back to lines of the text, by binutils' addr2line, which is there where gcc is.
 * It is asked when a fault is told, or where the compiler has copied a call at which threads
 * meet. */
#include "tests/emulator/private.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

static const char prefix_path[] = "tests/emulator/cuda_c.h"; /* tests run in the root */

/* -fsanitize=thread calls shadow.c before every access; =alignment where an address is odd.  The
 * sanitizers' own libraries are kept out by -nostdlib, and calls that could be meant for them,
 * or for the C library, get names of ours.  No pass may make one call of two: -O1.  Of what
 * clang says in DWARF 5 binutils 2.40 misses which call a function is in line of. */
static const char flags[] =
    "-std=c17 -O1 -gdwarf-4 -fPIC -shared -fsanitize=thread,alignment -ffp-contract=off "
    "-fno-math-errno -fno-strict-aliasing -fno-optimize-sibling-calls "
    "-fno-builtin-memcpy -fno-builtin-memmove -fno-builtin-memset "
    "-Werror=implicit-function-declaration -Wno-attributes";
static const char link_flags[] = "-nostdlib -Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset,"
                                 "--wrap=__ubsan_handle_type_mismatch_v1 -lm -lc -lgcc";
/* Else clang leaves out the loads of what the same stretch of code stores after. */
static const char clang_flags[] = "-mllvm -tsan-instrument-read-before-write=1";

static Object *loaded;

/* Of is_same_site: copies of a call meet often, and addr2line takes long. */
enum { MAX_ANSWERS = 64 };
static struct Answer {
    const void *a, *b;
    bool same;
} answers[MAX_ANSWERS];

/* ---- compiling ------------------------------------------------------------------------ */

static const char *compiler_name(void) {
    const char *chosen = getenv("CC");
    return chosen && *chosen ? chosen : "cc";
}

/* What `--version` says; to be freed. */
static char *compiler_version(void) {
    char command[512], line[512];
    Text version = {0};
    snprintf(command, sizeof command, "%s --version", compiler_name());
    FILE *pipe = popen(command, "r");
    while (pipe && fgets(line, sizeof line, pipe))
        text_puts(&version, line);
    if (pipe)
        pclose(pipe);
    return version.data ? version.data : strdup("");
}

static uint64_t hash_string(const char *string, uint64_t seed) {
    return hash_bytes(string, strlen(string), seed);
}

/* Writes the text beside the object's path, and starts the compiler.  NULL after telling. */
static FILE *compile_start(const Object *object, const char *source, int number,
                           const char *more_flags) {
    FILE *file = fopen(object->text_path, "w");
    if (!file || fputs(source, file) < 0 || fclose(file) != 0) {
        fprintf(stderr, "emulator: %s: %s\n", object->text_path, strerror(errno));
        return NULL;
    }
    /* Its name comes by rename: the same text may be compiled twice at once. */
    Text command = {0}, new_path = {0};
    text_printf(&new_path, "%s.%d.%d", object->path, (int)getpid(), number);
    text_printf(&command, "%s %s %s -include %s -o '%s' '%s' %s && mv '%s' '%s'",
                compiler_name(), flags, more_flags, prefix_path, new_path.data,
                object->text_path, link_flags, new_path.data, object->path);
    text_free(&new_path);
    FILE *pipe = popen(command.data, "r");
    text_free(&command);
    return pipe;
}

/* Objects whose compilers run side by side. */
static void wait_for(FILE **pipes, int count) {
    for (int i = 0; i < count; i++)
        if (pipes[i])
            pclose(pipes[i]);
}

static void compile_all(Object *objects, const char *const *sources, int count,
                        const char *more_flags) {
    enum { AT_ONCE = 64 };
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int limit = processors < 1 ? 1 : processors > AT_ONCE ? AT_ONCE : (int)processors;
    FILE *pipes[AT_ONCE];
    int running = 0;
    for (int i = 0; i < count; i++) {
        if (access(objects[i].path, R_OK) == 0)
            continue;
        if (running == limit) {
            wait_for(pipes, running);
            running = 0;
        }
        pipes[running++] = compile_start(&objects[i], sources[i], i, more_flags);
    }
    wait_for(pipes, running);
}

/* ---- loading -------------------------------------------------------------------------- */

static int compare_addresses(const void *a, const void *b) {
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
    return (x > y) - (x < y);
}

/* The shared variables are what lies between guards. */
static bool find_variables(Object *object, void *const sections[4]) {
    uintptr_t begin = (uintptr_t)sections[0], end = (uintptr_t)sections[1];
    if (!region_open(&object->shared, begin, end, true))
        return false;
    size_t count = ((uintptr_t)sections[3] - (uintptr_t)sections[2]) / sizeof(void *);
    uintptr_t *guards = checked_alloc((count + 1) * sizeof *guards);
    memcpy(guards, sections[2], count * sizeof *guards);
    qsort(guards, count, sizeof *guards, compare_addresses);
    guards[count] = end;
    object->variables = checked_alloc((count + 1) * sizeof *object->variables);
    for (size_t i = 0; i <= count; i++) {
        Range between = {i ? guards[i - 1] + GUARD_BYTES : begin, guards[i], &object->shared};
        if (between.begin < between.end)
            object->variables[object->variable_count++] = between;
    }
    free(guards);
    return true;
}

static int find_segments(struct dl_phdr_info *info, size_t size, void *data) {
    Object *object = data;
    (void)size;
    if (!info->dlpi_name || strcmp(info->dlpi_name, object->path) != 0)
        return 0;
    object->constants = checked_alloc((size_t)info->dlpi_phnum * sizeof *object->constants);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD)
            continue;
        uintptr_t begin = info->dlpi_addr + segment->p_vaddr, end = begin + segment->p_memsz;
        if (!object->begin || begin < object->begin)
            object->begin = begin;
        if (end > object->end)
            object->end = end;
        if (!(segment->p_flags & PF_W))
            object->constants[object->constant_count++] = (Range){begin, end, NULL};
    }
    return 1;
}

static bool object_load(Object *object) {
    if (access(object->path, R_OK) != 0)
        return false; /* the compiler has told why */
    object->handle = dlopen(object->path, RTLD_NOW | RTLD_LOCAL);
    void *const *sections = object->handle ? dlsym(object->handle, "emulator_sections") : NULL;
    if (!sections) {
        fprintf(stderr, "emulator: %s\n", dlerror());
        return false;
    }
    dl_iterate_phdr(find_segments, object);
    if (!find_variables(object, sections)) {
        fprintf(stderr, "emulator: no memory for the shadow of shared variables\n");
        return false;
    }
    object->next = loaded;
    loaded = object;
    return true;
}

static void object_unload(Object *object) {
    for (Object **link = &loaded; *link; link = &(*link)->next) {
        if (*link == object) {
            *link = object->next;
            break;
        }
    }
    memset(answers, 0, sizeof answers); /* others may come to the same addresses */
    region_close(&object->shared);
    if (object->handle)
        dlclose(object->handle);
    free(object->variables);
    free(object->constants);
    free(object->path);
    free(object->text_path);
}

/* FOLDER/HASH.c and .so: of the text, and of all else that decides the object's bytes. */
static void name_object(Object *object, const char *folder, const char *source, uint64_t seed) {
    Text path = {0};
    text_printf(&path, "%s/%016" PRIx64 "%016" PRIx64, folder, hash_string(source, seed),
                hash_string(source, ~seed));
    Text text_path = {0};
    text_printf(&text_path, "%s.c", path.data);
    text_puts(&path, ".so");
    object->path = path.data;
    object->text_path = text_path.data;
}

EmulatorModule *emulator_compile(const char *const *sources, int count, const char *folder) {
    char *version = compiler_version();
    size_t length = 0;
    char *prefix = read_file(prefix_path, 1 << 20, &length);
    char *whole_folder =
        mkdir(folder, 0777) == 0 || errno == EEXIST ? realpath(folder, NULL) : NULL;
    EmulatorModule *module = NULL;
    if (!prefix || !whole_folder) {
        fprintf(stderr, "emulator: %s: %s\n", prefix ? folder : prefix_path, strerror(errno));
    } else {
        const char *more_flags = strstr(version, "clang") ? clang_flags : "";
        uint64_t seed = hash_string(more_flags, hash_string(link_flags, hash_string(flags, 0)));
        seed = hash_string(prefix, hash_string(version, seed));
        module = checked_alloc(sizeof *module);
        module->count = count;
        module->objects = checked_alloc((size_t)(count + 1) * sizeof *module->objects);
        for (int i = 0; i < count; i++)
            name_object(&module->objects[i], whole_folder, sources[i], seed);
        compile_all(module->objects, sources, count, more_flags);
        bool all = true;
        for (int i = 0; i < count && all; i++)
            all = object_load(&module->objects[i]);
        if (!all) {
            emulator_unload(module);
            module = NULL;
        }
    }
    free(version);
    free(prefix);
    free(whole_folder);
    return module;
}

void emulator_unload(EmulatorModule *module) {
    if (!module)
        return;
    for (int i = 0; i < module->count; i++)
        object_unload(&module->objects[i]);
    free(module->objects);
    free(module);
}

EmulatorFunction emulator_function(const EmulatorModule *module, const char *name) {
    for (int i = 0; i < module->count; i++) {
        const Object *object = &module->objects[i];
        void *function = dlsym(object->handle, name); /* or one of the C library's */
        if ((uintptr_t)function >= object->begin && (uintptr_t)function < object->end)
            return function;
    }
    return NULL;
}

Object *object_of(const void *code) {
    for (Object *object = loaded; object; object = object->next)
        if ((uintptr_t)code >= object->begin && (uintptr_t)code < object->end)
            return object;
    return NULL;
}

/* ---- lines ---------------------------------------------------------------------------- */

/* What addr2line says of the call before a return address: FILE:LINE of the innermost function,
 * then of those that it is in line of.  To be freed; NULL. */
static char *place_of(const void *site, const Object *object) {
    if (!object)
        return NULL;
    char line[4096];
    Text command = {0}, place = {0};
    text_printf(&command, "addr2line -i -e '%s' 0x%" PRIxPTR " 2>/dev/null", object->path,
                (uintptr_t)site - 1 - object->begin);
    FILE *pipe = popen(command.data, "r");
    while (pipe && fgets(line, sizeof line, pipe)) {
        char *more = strstr(line, " (discriminator");
        text_printf(&place, "%.*s\n", (int)(more ? (size_t)(more - line) : strcspn(line, "\n")),
                    line);
    }
    if (pipe)
        pclose(pipe);
    text_free(&command);
    return place.data;
}

/* The number of the first line of the text in what place_of says; 0. */
static int line_of(const char *place, const Object *object) {
    const char *name = strrchr(object->text_path, '/') + 1;
    const char *found = place ? strstr(place, name) : NULL;
    return found && found[strlen(name)] == ':' ? atoi(found + strlen(name) + 1) : 0;
}

char *site_text(const void *site) {
    const Object *object = object_of(site);
    char *place = place_of(site, object);
    int number = object ? line_of(place, object) : 0;
    free(place);
    if (!number)
        return strdup("a line of the text that addr2line does not know");
    size_t length = 0;
    char *source = read_file(object->text_path, (size_t)1 << 30, &length);
    const char *line = source;
    for (int i = 1; line && i < number; i++) {
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    while (line && (*line == ' ' || *line == '\t'))
        line++;
    Text text = {0};
    text_printf(&text, "text line %d: %.*s", number, line ? (int)strcspn(line, "\n") : 0,
                line ? line : "");
    free(source);
    return text.data;
}

bool is_same_site(const void *a, const void *b) {
    static int next;
    if (a == b)
        return true;
    for (int i = 0; i < MAX_ANSWERS; i++)
        if (answers[i].a == a && answers[i].b == b)
            return answers[i].same;
    char *place_a = place_of(a, object_of(a)), *place_b = place_of(b, object_of(b));
    bool same = place_a && place_b && strcmp(place_a, place_b) == 0;
    free(place_a);
    free(place_b);
    answers[next++ % MAX_ANSWERS] = (struct Answer){a, b, same};
    return same;
}
