/* runtime/files.c: files and folders that appear whole or not at all. */
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20 };

struct NewFile {
    char *path;      /* as it was given: what messages name */
    char *target;    /* where it goes: links followed */
    char *temporary; /* NULL: written in place */
    int descriptor;  /* -1: synced and closed */
    int error;       /* errno of the first failure */
    int64_t written; /* bytes handed over so far */
    size_t buffered;
    unsigned char *buffer;
};

static char *copy_string(const char *string) {
    char *copy = checked_alloc(strlen(string) + 1);
    return strcpy(copy, string);
}

/* A name in the target's own folder (a rename does not leave a file system), hidden, and not
 * used by another process or by an earlier file of this one. */
static char *temporary_name(const char *target) {
    static _Atomic int counter;
    const char *slash = strrchr(target, '/');
    int folder = slash ? (int)(slash - target) + 1 : 0;
    Text name = {0};
    text_printf(&name, "%.*s.%s.%ld-%d.tmp", folder, target, target + folder, (long)getpid(),
                counter++);
    return name.data;
}

static void report_open_failure(const char *path, int error, Diagnostics *diagnostics) {
    Diagnostic *d = error_in_file(diagnostics, path, "cannot be created: %s", strerror(error));
    if (error == ENOENT)
        help(d, "the folder that it would go to does not exist: create it first");
    else if (error == EISDIR)
        help(d, "this is a folder: name a file in it");
    else if (error == EACCES || error == EROFS)
        help(d, "write to a folder that you may write to");
    else if (error == ENOSPC || error == EDQUOT)
        help(d, "free some space, or write to another disk");
}

/* Opens the temporary file, or the path itself where it is no regular file.  errno, or 0. */
static int open_for_writing(NewFile *file) {
    struct stat status;
    if (stat(file->target, &status) == 0 && !S_ISREG(status.st_mode)) {
        if (S_ISDIR(status.st_mode))
            return EISDIR;
        file->descriptor = open(file->target, O_WRONLY | O_CLOEXEC);
    } else {
        file->temporary = temporary_name(file->target);
        file->descriptor =
            open(file->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    }
    return file->descriptor < 0 ? errno : 0;
}

NewFile *new_file_open(const char *path, Diagnostics *diagnostics) {
    /* A file-size limit is to be an error of write, with a sentence, not the end of the
     * process. */
    signal(SIGXFSZ, SIG_IGN);
    NewFile *file = checked_alloc(sizeof *file);
    file->path = copy_string(path);
    file->target = realpath(path, NULL);
    if (!file->target)
        file->target = copy_string(path);
    int error = open_for_writing(file);
    if (error) {
        report_open_failure(path, error, diagnostics);
        free(file->temporary);
        file->temporary = NULL;
        new_file_abandon(file);
        return NULL;
    }
    file->buffer = checked_alloc(BUFFER_BYTES);
    return file;
}

static void write_out(NewFile *file, const unsigned char *bytes, size_t length) {
    while (length && !file->error) {
        ssize_t done = write(file->descriptor, bytes, length);
        if (done < 0 && errno != EINTR)
            file->error = errno;
        if (done > 0) {
            bytes += done;
            length -= (size_t)done;
        }
    }
}

static void flush(NewFile *file) {
    write_out(file, file->buffer, file->buffered);
    file->buffered = 0;
}

void new_file_write(NewFile *file, const void *bytes, size_t length) {
    file->written += (int64_t)length;
    if (file->error)
        return;
    if (length > BUFFER_BYTES - file->buffered)
        flush(file);
    if (length > BUFFER_BYTES) {
        write_out(file, bytes, length);
        return;
    }
    if (length)
        memcpy(file->buffer + file->buffered, bytes, length);
    file->buffered += length;
}

void new_file_printf(NewFile *file, const char *format, ...) {
    Text text = {0};
    va_list args;
    va_start(args, format);
    text_vprintf(&text, format, args);
    va_end(args);
    new_file_write(file, text.data, text.length);
    text_free(&text);
}

void new_file_rewrite_start(NewFile *file, const void *bytes, size_t length) {
    INTERNAL_CHECK((int64_t)length <= file->written);
    flush(file);
    if (!file->error && pwrite(file->descriptor, bytes, length, 0) != (ssize_t)length)
        file->error = errno ? errno : EIO;
}

bool new_file_failed(const NewFile *file) {
    return file->error != 0;
}

static void report_write_failure(const NewFile *file, Diagnostics *diagnostics) {
    Diagnostic *d =
        error_in_file(diagnostics, file->path,
                      "cannot be written: %s (after at most %lld bytes); nothing is "
                      "left of it",
                      strerror(file->error), (long long)file->written);
    if (file->error == ENOSPC || file->error == EDQUOT)
        help(d, "free some space, or write to another disk");
    else if (file->error == EFBIG)
        help(d, "the file would be larger than the file system or `ulimit -f` allows");
}

bool new_file_sync(NewFile *file, Diagnostics *diagnostics) {
    if (file->descriptor >= 0) {
        flush(file);
        /* Pipes and terminals have nothing to sync: EINVAL. */
        if (!file->error && fsync(file->descriptor) && file->temporary)
            file->error = errno;
        if (close(file->descriptor) && !file->error)
            file->error = errno;
        file->descriptor = -1;
    }
    if (!file->error)
        return true;
    report_write_failure(file, diagnostics);
    return false;
}

/* Makes a rename in the folder of `path` durable.  Some file systems cannot; the rename holds.
 */
static void sync_folder_of(const char *path) {
    char *copy = copy_string(path);
    int folder = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    if (folder < 0)
        return;
    fsync(folder);
    close(folder);
}

bool new_file_publish(NewFile *file, Diagnostics *diagnostics) {
    bool good = new_file_sync(file, diagnostics);
    if (good && file->temporary) {
        if (rename(file->temporary, file->target)) {
            report_open_failure(file->path, errno, diagnostics);
            good = false;
        } else {
            free(file->temporary);
            file->temporary = NULL;
            sync_folder_of(file->target);
        }
    }
    new_file_abandon(file);
    return good;
}

void new_file_abandon(NewFile *file) {
    if (!file)
        return;
    if (file->descriptor >= 0)
        close(file->descriptor);
    if (file->temporary)
        unlink(file->temporary);
    free(file->temporary);
    free(file->target);
    free(file->path);
    free(file->buffer);
    free(file);
}

char *json_path(const char *path, Arena *arena) {
    char *copy = arena_strdup(arena, path);
    json_t *checked = json_string(path);
    for (char *p = copy; !checked && *p; p++)
        if ((unsigned char)*p > 127)
            *p = '?';
    json_decref(checked);
    return copy;
}

bool make_folder(const char *path, Diagnostics *diagnostics) {
    char *copy = copy_string(path);
    int error = 0;
    for (char *p = copy + 1; !error; p++) {
        if (*p && *p != '/')
            continue;
        char separator = *p;
        *p = 0;
        if (mkdir(copy, 0777) && errno != EEXIST)
            error = errno;
        *p = separator;
        if (!separator)
            break;
    }
    free(copy);
    struct stat status;
    if (!error && (stat(path, &status) || !S_ISDIR(status.st_mode)))
        error = ENOTDIR;
    if (error)
        help(error_in_file(diagnostics, path, "the folder cannot be created: %s",
                           strerror(error)),
             "name a folder in a place that exists and that you may write to");
    return !error;
}
