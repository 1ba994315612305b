/* colac fmt and colac data pack: what works on texts. */
#include "driver/driver.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Puts text in the place of a file: complete and synced, or not at all. */
static bool replace_file(const char *path, const Text *text, Diagnostics *diagnostics) {
    Text temporary = {0};
    text_printf(&temporary, "%s.new.%ld", path, (long)getpid());
    struct stat old;
    mode_t mode = stat(path, &old) == 0 ? old.st_mode & 0777 : 0644;
    int fd = open(text_string(&temporary), O_WRONLY | O_CREAT | O_EXCL, mode);
    bool done = fd >= 0;
    for (size_t at = 0; done && at < text->length;) {
        ssize_t wrote = write(fd, text->data + at, text->length - at);
        if (wrote < 0 && errno != EINTR)
            done = false;
        at += wrote > 0 ? (size_t)wrote : 0;
    }
    done = done && fsync(fd) == 0;
    int failure = errno;
    if (fd >= 0)
        close(fd);
    if (done && rename(text_string(&temporary), path)) {
        failure = errno;
        done = false;
    }
    if (!done) {
        error_in_file(diagnostics, path, "cannot be rewritten: %s", strerror(failure));
        if (fd >= 0)
            unlink(text_string(&temporary));
    }
    text_free(&temporary);
    return done;
}

/* One text of `colac fmt`.  `-` goes from standard input to standard output.  The exit code. */
static int format_file(const Options *options, const char *path, Diagnostics *diagnostics) {
    bool stream = !strcmp(path, "-");
    Source source = {.name = stream ? "standard input" : path};
    char *bytes = read_file(stream ? "/dev/stdin" : path, (size_t)100 << 20, &source.length);
    if (!bytes) {
        error_in_file(diagnostics, source.name, "cannot be read: %s", strerror(errno));
        return finish(diagnostics);
    }
    source.text = bytes;
    Text text = {0};
    if (format_source(&source, &text, diagnostics)) {
        bool same =
            text.length == source.length && !memcmp(text_string(&text), bytes, text.length);
        if (options->check_only && !same)
            help(error_in_file(diagnostics, source.name, "is not in canonical layout"),
                 "`colac fmt %s` rewrites it", path);
        else if (stream && !options->check_only)
            fwrite(text_string(&text), 1, text.length, stdout);
        else if (!same)
            replace_file(path, &text, diagnostics);
    }
    int code = finish(diagnostics); /* before the text that they point into goes */
    text_free(&text);
    free(bytes);
    return code;
}

int run_fmt_command(Options *options) {
    int code = 0;
    for (int i = 0; i < options->file_count; i++) {
        Diagnostics *diagnostics = diagnostics_new();
        code |= format_file(options, options->files[i], diagnostics);
        diagnostics_free(diagnostics);
    }
    return code;
}

int run_data_command(Options *options) {
    if (strcmp(options->files[0], "pack")) {
        fprintf(stderr, "colac data: there is no `%s`; the form is `colac data %s`\n",
                options->files[0], options->command->arguments);
        return 2;
    }
    if (!options->output) {
        fprintf(stderr, "colac data pack: `-o DIR` says where the shards go\n");
        return 2;
    }
    Diagnostics *diagnostics = diagnostics_new();
    PackReport report = {0};
    bool packed = data_pack(options->files + 1, options->file_count - 1, options->output,
                            &report, diagnostics);
    if (packed && options->json) {
        json_t *object = json_pack("{s:I, s:I, s:i}", "train_tokens",
                                   (json_int_t)report.train_tokens, "val_tokens",
                                   (json_int_t)report.validation_tokens, "files", report.files);
        INTERNAL_CHECK(object);
        json_dumpf(object, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(object);
    } else if (packed) {
        char train[32], validation[32];
        printf("%s: %s tokens to train on, %s held out for validation, in %d file%s\n",
               options->output, with_commas(report.train_tokens, train),
               with_commas(report.validation_tokens, validation), report.files,
               report.files == 1 ? "" : "s");
    }
    int code = finish(diagnostics);
    diagnostics_free(diagnostics);
    return packed ? code : 1;
}
