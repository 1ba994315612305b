/* colac ir: the module after a pass.  colac opt: passes on IR text. */
#include "driver/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Writes to options->output, or to standard output.  False after reporting. */
static bool write_text(const Options *options, const Text *text, Diagnostics *diagnostics) {
    if (options->output) {
        NewFile *file = new_file_open(options->output, diagnostics);
        if (file)
            new_file_write(file, text_string(text), text->length);
        return file && new_file_publish(file, diagnostics);
    }
    if (fwrite(text_string(text), 1, text->length, stdout) == text->length && !fflush(stdout))
        return true;
    error_in_file(diagnostics, "standard output", "cannot be written: %s", strerror(errno));
    return false;
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

/* The module, or a drawing of one function. */
static void print_module(const Options *options, const Compiled *compiled, const char *last,
                         Stage stage) {
    const Module *module = compiled->compilation->module;
    const char *name = options->function ? options->function : "micro";
    const Function *function = module_find_function(module, name);
    Text text = {0};
    if (options->dot && !function) {
        error_in_file(compiled->diagnostics, options->request.path,
                      "the module has no function `%s` after `%s`", name, last);
        return;
    }
    if (options->dot)
        ir_print_dot(module, function, &text);
    else
        ir_print(module, stage, &text);
    write_text(options, &text, compiled->diagnostics);
    text_free(&text);
}

int run_ir_command(Options *options) {
    const char *last = options->stage ? options->stage : pass_list[pass_count - 1].name;
    Stage stage;
    if (options->function && !options->dot) {
        fprintf(stderr, "colac ir: `--function` says what is drawn, and needs `--dot`\n");
        return 2;
    }
    if (!stage_after(last, &stage))
        return 2;
    Compiled compiled;
    int code = 1;
    if (compile(&compiled, options, last, true)) {
        print_module(options, &compiled, last, stage);
        code = finish(compiled.diagnostics);
    }
    compiled_free(&compiled);
    return code;
}

/* Is a pass among `a,b,c`? */
static bool names_pass(const char *passes, const char *name) {
    for (const char *at = passes; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strcspn(at, ",") == strlen(name) && !strncmp(at, name, strlen(name)))
            return true;
    return false;
}

/* The model's texts, which speak of the parsed module from now on; the module is theirs then.
 * NULL after reporting. */
static Compilation *compile_for_module(const Options *options, const Request *request,
                                       Module *module, Diagnostics *diagnostics) {
    Compilation *compilation = compile_model(request, diagnostics);
    bool factorizes = names_pass(options->passes, "factorize");
    if (!compilation)
        module_free(module);
    else
        compilation_adopt(compilation, module, factorizes,
                          factorizes || names_pass(options->passes, "precision") ||
                              names_pass(options->passes, "recompute"));
    return compilation;
}

/* Runs the passes and writes what comes out.  Exit code. */
static int transform(const Options *options, Module *module, Compilation *compilation,
                     Stage stage, Diagnostics *diagnostics) {
    PassContext context = {.module = module,
                           .compilation = compilation,
                           .diagnostics = diagnostics,
                           .no_fuse = options->no_fuse,
                           .no_reuse = options->no_reuse,
                           .keep_gradients = options->keep_gradients,
                           .for_training = true};
    if (options->passes && !run_named_passes(&context, options->passes, &stage))
        return 1;
    Text text = {0};
    ir_print(context.module, stage, &text);
    bool written = write_text(options, &text, diagnostics);
    text_free(&text);
    return written ? 0 : 1;
}

/* What asks for a model's texts has no meaning without them. */
static bool model_is_given(const Options *options) {
    const Request *request = &options->request;
    const char *option = request->plan           ? "--plan"
                         : request->recipe       ? "--recipe"
                         : request->preset       ? "--preset"
                         : request->define_count ? "-D"
                                                 : NULL;
    if (options->model || !option)
        return true;
    fprintf(stderr, "colac opt: `%s` is about a model: name it with `--model FILE`\n", option);
    return false;
}

int run_opt_command(Options *options) {
    if (!model_is_given(options))
        return 2;
    Diagnostics *diagnostics = diagnostics_new();
    Source source = {.name = options->files[0]};
    Request request = options->request;
    request.path = options->model;
    char *bytes = read_file(source.name, (size_t)1 << 30, &source.length);
    Module *module = NULL;
    Stage stage;
    source.text = bytes;
    if (bytes)
        module = ir_parse(&source, diagnostics, &stage);
    else
        error_in_file(diagnostics, source.name, "cannot be read: %s", strerror(errno));
    Compilation *compilation = NULL;
    if (module && options->model)
        compilation = compile_for_module(options, &request, module, diagnostics);
    int code = 1;
    if (module && !diagnostics_errors(diagnostics))
        code = transform(options, module, compilation, stage, diagnostics);
    if (finish(diagnostics))
        code = 1;
    if (compilation)
        compilation_free(compilation);
    else if (module && !options->model)
        module_free(module);
    free(bytes);
    diagnostics_free(diagnostics);
    return code;
}
