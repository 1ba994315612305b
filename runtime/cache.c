/* runtime/cache.c: compiled kernels, kept by content.
 *
 * An entry is a file CACHE/KEY.SUFFIX, where the key is a hash of all that decides its bytes.
 * A trailer after the entry's own bytes holds their count and hash, so that an entry which was
 * cut short or damaged is seen and made anew.  Entries are made in a folder of their own and
 * get their name by rename: two processes may make the same one, and the last to finish wins
 * with the same content.
 */
#include "runtime/runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- entries ------------------------------------------------------------------------- */
typedef struct Trailer { /* the last bytes of an entry */
    char magic[8];
    uint64_t bytes, hash; /* of what stands before */
} Trailer;
static const char trailer_magic[8] = {'c', 'o', 'l', 'a', 'c', 'j', 'i', 't'};
enum { MAX_ENTRY_BYTES = 1 << 30 };

/* Is the file whole?  A missing one is not. */
static bool entry_is_whole(const char *path) {
    size_t length = 0;
    char *bytes = read_file(path, MAX_ENTRY_BYTES, &length);
    Trailer trailer;
    bool whole = false;
    if (bytes && length > sizeof trailer) {
        size_t body = length - sizeof trailer;
        memcpy(&trailer, bytes + body, sizeof trailer);
        whole = memcmp(trailer.magic, trailer_magic, sizeof trailer_magic) == 0 &&
                trailer.bytes == body && trailer.hash == hash_bytes(bytes, body, 0);
    }
    free(bytes);
    return whole;
}

static bool write_all(int descriptor, const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t written = write(descriptor, bytes, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        bytes += written;
        length -= (size_t)written;
    }
    return true;
}

/* Appends the trailer to a finished object.  False with errno set. */
static bool entry_seal(const char *path) {
    size_t length = 0;
    char *bytes = read_file(path, MAX_ENTRY_BYTES, &length);
    if (!bytes)
        return false;
    Trailer trailer = {.bytes = length, .hash = hash_bytes(bytes, length, 0)};
    memcpy(trailer.magic, trailer_magic, sizeof trailer_magic);
    free(bytes);
    int descriptor = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (descriptor < 0)
        return false;
    bool good = write_all(descriptor, (const char *)&trailer, sizeof trailer);
    return (close(descriptor) == 0) && good;
}

void cache_key(const void *const *parts, const size_t *lengths, int count, char key[33]) {
    uint64_t half[2];
    for (int i = 0; i < 2; i++) {
        half[i] = (uint64_t)i;
        for (int part = 0; part < count; part++)
            half[i] = hash_bytes(parts[part], lengths[part], half[i]);
    }
    snprintf(key, 33, "%016" PRIx64 "%016" PRIx64, half[0], half[1]);
}

bool cache_look_up(const KernelCache *cache, const char *key, const char *suffix, char *entry) {
    int length = snprintf(entry, PATH_MAX, "%s/%s%s", cache->path, key, suffix);
    return cache->path[0] && length < PATH_MAX && entry_is_whole(entry);
}

char *cache_read(const char *entry, size_t *length) {
    char *bytes = read_file(entry, MAX_ENTRY_BYTES, length);
    if (bytes && *length >= sizeof(Trailer))
        *length -= sizeof(Trailer);
    return bytes;
}

bool cache_write(const KernelCache *cache, const char *path, const char *bytes, size_t length) {
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool good = descriptor >= 0 && write_all(descriptor, bytes, length);
    int failure = errno;
    if (descriptor >= 0 && close(descriptor) != 0) {
        failure = errno;
        good = false;
    }
    if (!good)
        help(error_in_file(cache->diagnostics, path, "cannot write a file for kernels: %s",
                           strerror(failure)),
             "free some space, or name another folder in `COLAC_CACHE`");
    return good;
}

bool cache_publish(const KernelCache *cache, const char *made, char *entry) {
    bool good = entry_seal(made);
    if (cache->temporary)
        snprintf(entry, PATH_MAX, "%s", made);
    else
        good = good && rename(made, entry) == 0;
    if (!good)
        help(error_in_file(cache->diagnostics, entry, "cannot write a compiled kernel: %s",
                           strerror(errno)),
             "free some space, or name another folder in `COLAC_CACHE`");
    return good;
}

/* ---- folders ----------------------------------------------------------------------- */
void cache_find(KernelCache *cache, Diagnostics *diagnostics) {
    const char *own = getenv("COLAC_CACHE"), *user = getenv("XDG_CACHE_HOME"),
               *home = getenv("HOME");
    *cache = (KernelCache){.diagnostics = diagnostics};
    if (own && *own)
        snprintf(cache->path, PATH_MAX, "%s", own);
    else if (user && user[0] == '/')
        snprintf(cache->path, PATH_MAX, "%s/colac", user);
    else if (home && *home)
        snprintf(cache->path, PATH_MAX, "%s/.cache/colac", home);
}

static bool make_folders(const char *path) {
    char part[PATH_MAX];
    size_t length = strlen(path);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        if (mkdir(part, 0700) != 0 && errno != EEXIST)
            return false;
    }
    return length > 0;
}

/* Removes a folder of files alone. */
static void remove_folder(int parent, const char *name) {
    int descriptor = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *folder = descriptor < 0 ? NULL : fdopendir(descriptor);
    struct dirent *entry;
    while (folder && (entry = readdir(folder)))
        unlinkat(descriptor, entry->d_name, 0);
    if (folder)
        closedir(folder);
    unlinkat(parent, name, AT_REMOVEDIR);
}

/* Folders of builds that were interrupted more than a day ago. */
static void remove_abandoned(const char *cache) {
    DIR *folder = opendir(cache);
    struct dirent *entry;
    struct stat info;
    while (folder && (entry = readdir(folder)))
        if (strncmp(entry->d_name, "build-", 6) == 0 &&
            fstatat(dirfd(folder), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISDIR(info.st_mode) && info.st_mtim.tv_sec < time(NULL) - 86400)
            remove_folder(dirfd(folder), entry->d_name);
    if (folder)
        closedir(folder);
}

bool cache_begin(KernelCache *cache) {
    const char *temporary = getenv("TMPDIR");
    int length = snprintf(cache->folder, PATH_MAX, "%s/build-XXXXXX", cache->path);
    errno = 0;
    if (length < PATH_MAX - 64 && make_folders(cache->path) && mkdtemp(cache->folder)) {
        remove_abandoned(cache->path);
        return true;
    }
    if (errno == ENOSPC) {
        help(error_in_file(cache->diagnostics, cache->path,
                           "no space left for compiled kernels"),
             "free some space, or name another folder in `COLAC_CACHE`");
        return false;
    }
    help(warning_in_file(cache->diagnostics, cache->path[0] ? cache->path : "~/.cache/colac",
                         "compiled kernels are not kept: this folder cannot be written%s%s",
                         errno ? ": " : "", errno ? strerror(errno) : ""),
         "name another in `COLAC_CACHE`");
    cache->temporary = true;
    snprintf(cache->folder, PATH_MAX, "%s/colac-XXXXXX",
             temporary && *temporary && strlen(temporary) < PATH_MAX - 64 ? temporary : "/tmp");
    if (mkdtemp(cache->folder))
        return true;
    error_in_file(cache->diagnostics, cache->folder, "cannot make a temporary folder: %s",
                  strerror(errno));
    return false;
}
