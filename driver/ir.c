/* colac ir: the module after a pass.  colac opt: passes on IR text. */
#include "driver/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Writes to options->output, or to standard output.  Exit code. */
static int write_text(const Options *options, const Text *text) {
    FILE *file = options->output ? fopen(options->output, "w") : stdout;
    if (file) {
        fwrite(text_string(text), 1, text->length, file);
        bool failed = ferror(file) != 0;
        if (!(options->output ? fclose(file) || failed : failed))
            return 0;
    }
    fprintf(stderr, "%s:1:1: error: cannot be written: %s\n",
            options->output ? options->output : "standard output", strerror(errno));
    return 1;
}

/* The stage that a pass leaves behind; false for an unknown name, after saying so. */
static bool stage_after(const char *name, Stage *stage) {
    *stage = STAGE_GRAPH;
    if (!strcmp(name, "expand"))
        return true;
    const char *names[64] = {"expand"};
    int count = 1;
    for (int i = 0; i < pass_count; i++) {
        if (!strcmp(pass_list[i].name, name)) {
            *stage = pass_list[i].gives;
            return true;
        }
        if (count < COUNT_OF(names))
            names[count++] = pass_list[i].name;
    }
    const char *near = nearest_name(name, names, count);
    fprintf(stderr, "colac ir: there is no pass `%s`", name);
    fprintf(stderr, near ? "; did you mean `%s`?\n" : "; passes:", near);
    for (int i = 0; !near && i < count; i++)
        fprintf(stderr, " %s%s", names[i], i + 1 < count ? "," : "\n");
    return false;
}

int run_ir_command(Options *options) {
    const char *last = options->stage ? options->stage : pass_list[pass_count - 1].name;
    Stage stage;
    if (!stage_after(last, &stage))
        return 2;
    Compiled compiled;
    int code = 1;
    if (compile(&compiled, options, last, true)) {
        const Module *module = compiled.compilation->module;
        const char *name = options->function ? options->function : "micro";
        const Function *function = module_find_function(module, name);
        Text text = {0};
        if (!options->dot) {
            ir_print(module, stage, &text);
            code = write_text(options, &text);
        } else if (function) {
            ir_print_dot(module, function, &text);
            code = write_text(options, &text);
        } else {
            fprintf(stderr, "%s:1:1: error: the module has no function `%s` after %s\n",
                    options->request.path, name, last);
        }
        text_free(&text);
    }
    compiled_free(&compiled);
    return code;
}

/* Passes that place a plan's blocks need the model's text: --plan FILE.cola:NAME gives both. */
static Compilation *compilation_for_passes(const Options *options, Diagnostics *diagnostics) {
    const char *plan = options->request.plan;
    const char *colon = plan ? strrchr(plan, ':') : NULL;
    if (!colon)
        return NULL;
    Text path = {0};
    text_append(&path, plan, (size_t)(colon - plan));
    Request request = options->request;
    request.path = text_string(&path);
    request.plan = colon + 1;
    Compilation *compilation = compile_model(&request, diagnostics);
    text_free(&path);
    return compilation;
}

int run_opt_command(Options *options) {
    Diagnostics *diagnostics = diagnostics_new();
    const char *path = options->request.path;
    Source source = {.name = path};
    char *bytes = read_file(path, (size_t)1 << 30, &source.length);
    int code = 1;
    if (!bytes) {
        error_in_file(diagnostics, path, "cannot be read: %s", strerror(errno));
        code = finish(diagnostics);
        diagnostics_free(diagnostics);
        return code;
    }
    source.text = bytes;
    Stage stage;
    Module *module = ir_parse(&source, diagnostics, &stage);
    Compilation *compilation =
        module && options->request.plan ? compilation_for_passes(options, diagnostics) : NULL;
    if (module && !diagnostics_errors(diagnostics)) {
        PassContext context = {.module = module,
                               .compilation = compilation,
                               .diagnostics = diagnostics,
                               .no_fuse = options->no_fuse,
                               .no_reuse = options->no_reuse,
                               .for_training = true};
        if (!options->passes || run_named_passes(&context, options->passes, &stage)) {
            Text text = {0};
            ir_print(context.module, stage, &text);
            code = write_text(options, &text);
            text_free(&text);
        }
        module = context.module;
    }
    if (finish(diagnostics))
        code = 1;
    if (compilation)
        compilation_free(compilation);
    if (module)
        module_free(module);
    free(bytes);
    diagnostics_free(diagnostics);
    return code;
}
