/* Lexer, grammar, loading, layout.  Trees are written as S-expressions and compared with ones
 * written by hand; errors are golden files, tests/golden/syntax/NAME.cola with NAME.expect,
 * which GOLDEN=write rewrites; mutated texts (COLAC_FUZZ of them) must give a tree or a place.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "frontend/frontend.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define GOLDEN_FOLDER "tests/golden/syntax/"
#define LAYOUT_FOLDER "tests/golden/layout/"

/* ---- trees as text ------------------------------------------------------------------ */

static const char *const operators[] = {
    [OPERATOR_NEGATE] = "neg",    [OPERATOR_NOT] = "not",      [OPERATOR_ADD] = "+",
    [OPERATOR_SUBTRACT] = "-",    [OPERATOR_MULTIPLY] = "*",   [OPERATOR_DIVIDE] = "/",
    [OPERATOR_MODULO] = "%",      [OPERATOR_POWER] = "^",      [OPERATOR_LESS] = "<",
    [OPERATOR_LESS_EQUAL] = "<=", [OPERATOR_GREATER] = ">",    [OPERATOR_GREATER_EQUAL] = ">=",
    [OPERATOR_EQUAL] = "==",      [OPERATOR_NOT_EQUAL] = "!=", [OPERATOR_AND] = "and",
    [OPERATOR_OR] = "or"};

static void print_expr(Text *out, const Expr *e);

/* " a b -> c": each with a space before it */
static void print_args(Text *out, const Expr *args, int arrow_at) {
    int index = 0;
    for (; args; args = args->next, index++) {
        text_puts(out, index == arrow_at ? " -> " : " ");
        print_expr(out, args);
    }
    if (arrow_at == index)
        text_puts(out, " ->");
}

static void print_names(Text *out, const Name *names, int count, bool list) {
    text_puts(out, list ? "(" : "");
    for (int i = 0; i < count; i++)
        text_printf(out, "%s%s", i ? "," : "", names[i].text);
    text_puts(out, list ? ")" : "");
}

static void print_index_item(Text *out, const IndexItem *item) {
    text_puts(out, " ");
    if (item->kind == ITEM_GATHER) {
        text_puts(out, "@");
        print_expr(out, item->value);
        return;
    }
    print_names(out, item->from, item->from_count, item->from_list);
    text_puts(out, item->kind == ITEM_AS ? ":" : "=");
    if (item->kind == ITEM_AS)
        print_names(out, item->to, item->to_count, item->to_list);
    else
        print_expr(out, item->value);
}

static void print_expr(Text *out, const Expr *e) {
    switch (e->kind) {
    case EXPR_NUMBER:
        text_puts(out, e->literal);
        return;
    case EXPR_BOOL:
        text_puts(out, e->number != 0 ? "true" : "false");
        return;
    case EXPR_NAME:
        text_puts(out, e->name.text);
        return;
    case EXPR_UNARY:
        text_printf(out, "(%s", operators[e->operator]);
        print_args(out, e->a, -1);
        break;
    case EXPR_BINARY:
        text_printf(out, "(%s ", operators[e->operator]);
        print_expr(out, e->a);
        text_puts(out, " ");
        print_expr(out, e->b);
        break;
    case EXPR_IF:
        text_puts(out, "(if ");
        print_expr(out, e->a);
        text_puts(out, " ");
        print_expr(out, e->b);
        text_puts(out, " ");
        print_expr(out, e->c);
        break;
    case EXPR_CALL:
        text_printf(out, "(%s", e->name.text);
        print_args(out, e->args, e->arrow_at);
        for (const ArgGroup *group = e->groups; group; group = group->next) {
            text_puts(out, " |");
            print_args(out, group->args, group->arrow_at);
        }
        break;
    case EXPR_INDEX:
        text_puts(out, "[");
        print_expr(out, e->a);
        for (const IndexItem *item = e->items; item; item = item->next)
            print_index_item(out, item);
        text_puts(out, "]");
        return;
    case EXPR_LABEL:
    case EXPR_NAMED:
        text_printf(out, "%s%s", e->name.text, e->kind == EXPR_LABEL ? ": " : "=");
        print_expr(out, e->a);
        return;
    case EXPR_LIST:
        text_puts(out, "(list");
        print_args(out, e->args, e->arrow_at);
        break;
    }
    text_puts(out, ")");
}

static void print_type(Text *out, const TypeExpr *type) {
    text_puts(out, type->is_int ? "int[" : "[");
    text_puts(out, type->open ? ".." : "");
    for (int i = 0; i <= type->axis_count; i++) {
        if (i == type->arrow_at)
            text_puts(out, ">");
        if (i < type->axis_count)
            text_printf(out, "%s%s", i || type->open ? "," : "", type->axes[i].text);
    }
    text_puts(out, "]");
    if (type->below) {
        text_puts(out, " below ");
        print_expr(out, type->below);
    }
    if (type->next_token) {
        text_puts(out, " next ");
        print_expr(out, type->next_token);
    }
}

static void print_statements(Text *out, const Statement *list) {
    static const char *const words[] = {
        [STATEMENT_PARAM] = "param",       [STATEMENT_DIM] = "dim",
        [STATEMENT_FLAG] = "flag",         [STATEMENT_BIND] = "let",
        [STATEMENT_FOR] = "for",           [STATEMENT_IF] = "if",
        [STATEMENT_RETURN] = "return",     [STATEMENT_INPUT] = "input",
        [STATEMENT_MINIMIZE] = "minimize", [STATEMENT_OBSERVE] = "observe",
        [STATEMENT_STATE] = "state",       [STATEMENT_NEXT] = "next"};
    for (; list; list = list->next) {
        text_printf(out, "{%s ", words[list->kind]);
        print_names(out, list->names, list->name_count, false);
        if (list->type)
            print_type(out, list->type);
        for (int i = 0; i < 2; i++)
            if (i ? list->value2 : list->value) {
                text_puts(out, i ? " / " : " ");
                print_expr(out, i ? list->value2 : list->value);
            }
        print_statements(out, list->body);
        if (list->otherwise) {
            text_puts(out, " else ");
            print_statements(out, list->otherwise);
        }
        text_puts(out, "}");
    }
}

static void print_part_index(Text *out, const PartIndex *index) {
    text_puts(out, index->any ? "[*" : "[");
    for (const IndexRange *range = index->ranges; range; range = range->next) {
        print_expr(out, range->low);
        text_puts(out, range->high ? ".." : "");
        if (range->high)
            print_expr(out, range->high);
        text_puts(out, range->next ? "," : "");
    }
    text_puts(out, "]");
}

static void print_selectors(Text *out, const Selector *list) {
    for (const Selector *selector = list; selector; selector = selector->next) {
        text_puts(out, selector == list ? "" : ",");
        for (const SelectorPart *part = selector->parts; part; part = part->next) {
            static const char *const marks[] = {"", "*", "**", "{"};
            text_printf(out, "%s%s%s", part == selector->parts ? "" : ".", marks[part->kind],
                        part->kind == PART_NAME ? part->name.text : "");
            if (part->kind == PART_CHOICE) {
                print_selectors(out, part->choices);
                text_puts(out, "}");
            }
            for (const PartIndex *index = part->indices; index; index = index->next)
                print_part_index(out, index);
        }
    }
}

static void print_preset(Text *out, const Preset *preset) {
    text_printf(out, "{preset %s", preset->name.text);
    for (const Setting *setting = preset->settings; setting; setting = setting->next) {
        text_printf(out, " %s=", setting->name.text);
        print_expr(out, setting->value);
    }
    text_puts(out, "}");
}

static void print_directive(Text *out, const Directive *directive) {
    static const char *const words[] = {"dim",       "flag",      "preset", "set",
                                        "factorize", "recompute", "memory", "precision",
                                        "optimizer", "warmup",    "cosine", "linear",
                                        "clip",      "batch",     "steps",  "validate"};
    text_printf(out, "{%s", words[directive->kind]);
    if (directive->name.text)
        text_printf(out, " %s", directive->name.text);
    text_puts(out, directive->selectors ? " " : "");
    print_selectors(out, directive->selectors);
    if (directive->keep) {
        text_puts(out, " keep ");
        print_selectors(out, directive->keep);
    }
    const Expr *values[] = {directive->value, directive->call};
    for (int i = 0; i < COUNT_OF(values); i++)
        if (values[i]) {
            text_puts(out, " ");
            print_expr(out, values[i]);
        }
    for (const OptimizerUse *use = directive->optimizers; use; use = use->next) {
        text_puts(out, " ");
        print_expr(out, use->call);
        text_puts(out, use->on ? " on " : "");
        print_selectors(out, use->on);
    }
    if (directive->preset)
        print_preset(out, directive->preset);
    text_puts(out, "}");
}

static void print_parameters(Text *out, const Parameter *list) {
    for (const Parameter *p = list; p; p = p->next) {
        text_printf(out, " %d%s%s%s", p->group, p->group_has_arrow ? "~" : "",
                    p->after_arrow ? ">" : "", p->name.text);
        if (p->type)
            print_type(out, p->type);
        if (p->fallback) {
            text_puts(out, "=");
            print_expr(out, p->fallback);
        }
    }
}

static void print_items(Text *out, const Item *item) {
    static const char *const words[] = {"use",       "item",  "preset", "block", "fn",
                                        "optimizer", "model", "plan",   "recipe"};
    for (; item; item = item->next) {
        if (item->statement) {
            print_statements(out, item->statement);
            continue;
        }
        if (item->preset) {
            print_preset(out, item->preset);
            continue;
        }
        text_printf(out, "(%s %s", words[item->kind], item->name.text);
        print_parameters(out, item->parameters);
        text_puts(out, item->result ? " -> " : "");
        if (item->result)
            print_type(out, item->result);
        if (item->extends_count > 0) {
            text_puts(out, " extends ");
            print_names(out, item->extends, item->extends_count, false);
        }
        print_statements(out, item->body);
        for (const Directive *d = item->directives; d; d = d->next)
            print_directive(out, d);
        text_puts(out, ")");
    }
}

/* ---- helpers ------------------------------------------------------------------------ */

typedef struct Parsed {
    Arena *arena;
    Diagnostics *diagnostics;
    Source source;
    Item *items;
    int errors;
} Parsed;

static Parsed *parse_bytes(const char *name, const char *bytes, size_t length) {
    Parsed *parsed = checked_alloc(sizeof *parsed);
    parsed->arena = arena_new();
    parsed->diagnostics = diagnostics_new();
    parsed->source = (Source){name, bytes, length, NULL};
    parsed->items = parse_source(&parsed->source, parsed->arena, parsed->diagnostics);
    parsed->errors = diagnostics_errors(parsed->diagnostics);
    return parsed;
}

static void parsed_free(Parsed *parsed) {
    diagnostics_free(parsed->diagnostics);
    arena_free(parsed->arena);
    free(parsed);
}

/* The diagnostics as printed, in malloc'ed memory. */
static char *printed(Diagnostics *diagnostics) {
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    diagnostics_print(diagnostics, stream);
    fclose(stream);
    return text;
}

/* The tree of a text that must parse, in malloc'ed memory. */
static char *tree_of(const char *text) {
    Parsed *parsed = parse_bytes("test.cola", text, strlen(text));
    if (parsed->errors > 0) {
        char *message = printed(parsed->diagnostics);
        print_error("%s\n%s", text, message);
        free(message);
    }
    assert_int_equal(parsed->errors, 0);
    Text out = {0};
    print_items(&out, parsed->items);
    parsed_free(parsed);
    char *tree = strdup(text_string(&out));
    text_free(&out);
    return tree;
}

static void expect_tree(const char *text, const char *expected) {
    char *tree = tree_of(text);
    assert_string_equal(tree, expected);
    free(tree);
}

/* As the value of a dim. */
static void expect_expr(const char *text, const char *expected) {
    char whole[2000], tree[2000];
    snprintf(whole, sizeof whole, "dim X = %s\n", text);
    snprintf(tree, sizeof tree, "{dim X %s}", expected);
    expect_tree(whole, tree);
}

/* All diagnostics of a text, which must have `errors` errors. */
static char *errors_of(const char *text, size_t length, int errors) {
    Parsed *parsed = parse_bytes("test.cola", text, length);
    assert_int_equal(parsed->errors, errors);
    char *message = printed(parsed->diagnostics);
    parsed_free(parsed);
    return message;
}

static void expect_error(const char *text, const char *part) {
    char *message = errors_of(text, strlen(text), 1);
    if (!strstr(message, part))
        fail_msg("`%s` is not in:\n%s", part, message);
    free(message);
}

/* ---- expressions -------------------------------------------------------------------- */

static void test_precedence(void **state) {
    (void)state;
    expect_expr("1 + 2 * 3", "(+ 1 (* 2 3))");
    expect_expr("(1 + 2) * 3", "(* (+ 1 2) 3)");
    expect_expr("1 - 2 - 3", "(- (- 1 2) 3)");
    expect_expr("8 / 4 * 2 % 3", "(% (* (/ 8 4) 2) 3)");
    expect_expr("-x^2", "(neg (^ x 2))");
    expect_expr("2^3^4", "(^ 2 (^ 3 4))");
    expect_expr("R^-0.25 * s", "(* (^ R (neg 0.25)) s)");
    expect_expr("R^-2^k", "(^ R (neg (^ 2 k)))");
    expect_expr("- - x", "(neg (neg x))");
    expect_expr("-x * y", "(* (neg x) y)");
    expect_expr("a + 1 < b * 2 and c or not d == e",
                "(or (and (< (+ a 1) (* b 2)) c) (not (== d e)))");
    expect_expr("a <= b", "(<= a b)");
    expect_expr("a != b or a >= b", "(or (!= a b) (>= a b))");
    expect_expr("if a < 1 then b else c + 1", "(if (< a 1) b (+ c 1))");
    expect_expr("1 + if a then b else c * 2", "(+ 1 (if a b (* c 2)))");
    expect_expr("if a then b else if c then d else e", "(if a b (if c d e))");
    expect_expr("-inf", "(neg inf)");
    expect_expr("true and false", "(and true false)");
}

static void test_calls(void **state) {
    (void)state;
    expect_expr("f()", "(f)");
    expect_expr("dot(x, w; D)", "(dot x w | D)");
    expect_expr("dot(a, b;)", "(dot a b |)");
    expect_expr("low(x; D -> H,K)", "(low x | D -> H K)");
    expect_expr("low(x; D ->)", "(low x | D ->)");
    expect_expr("low(x; -> D)", "(low x | -> D)");
    expect_expr("f(x;; y)", "(f x | | y)");
    expect_expr("adamw(lr = 6e-3, decay = 0.01)", "(adamw lr=6e-3 decay=0.01)");
    expect_expr("ffn(ffn_norm: rmsnorm(mid; D))", "(ffn ffn_norm: (rmsnorm mid | D))");
    expect_expr("x + (a: f(x))", "(+ x a: (f x))");
    expect_expr("stack(P: a * b, c)", "(stack P: (* a b) c)");
    expect_expr("f(x; (H, K) -> D; 3)", "(f x | (list H K) -> D | 3)");
    expect_expr("f(x; (H -> K))", "(f x | (list H -> K))");
    expect_expr("f((if a then b else c) * d)", "(f (* (if a b c) d))");
}

static void test_indices(void **state) {
    (void)state;
    expect_expr("x[S as T]", "[x S:T]");
    expect_expr("x[H as (J, G)]", "[x H:(J,G)]");
    expect_expr("x[(J, G) as H]", "[x (J,G):H]");
    expect_expr("x[(J) as (H)]", "[x (J):(H)]");
    expect_expr("y[P = 0]", "[y P=0]");
    expect_expr("embed[tokens]", "[embed @tokens]");
    expect_expr("t[V = tokens][S as T, K as M]", "[[t V=tokens] S:T K:M]");
    expect_expr("dot(p, v; T)[(J, G) as H]", "[(dot p v | T) (J,G):H]");
    expect_expr("-x[P = i % 2]", "(neg [x P=(% i 2)])");
}

static void test_lexemes(void **state) {
    (void)state;
    expect_expr("60m", "60m");
    expect_expr("1e-3 + 2e5 + 1.5 + 1.5e+2 + 1E3", "(+ (+ (+ (+ 1e-3 2e5) 1.5) 1.5e+2) 1E3)");
    expect_expr("2e5x", "2e5x");
    expect_expr("1e", "1e");
    expect_expr("1e+x", "(+ 1e x)");
    expect_expr("0x10", "0x10");
    expect_expr("_a1 +b", "(+ _a1 b)");
    Parsed *parsed = parse_bytes("t", "dim A = 1.5e-2, B = inf\n", 24);
    assert_true(parsed->items->statement->value->number == 1.5e-2);
    assert_true(parsed->items->next->statement->value->number > 1e308);
    parsed_free(parsed);
    expect_tree("\xef\xbb\xbf"
                "dim A = 1 # caf\xc3\xa9 \xff\r\ndim B = 2\r\n",
                "{dim A 1}{dim B 2}");
}

/* Every word that is not reserved is a name wherever a model may have one. */
static void test_words_are_names(void **state) {
    (void)state;
    static const char *const words[] = {
        "batch",   "below",     "clip", "cosine",    "extends",  "factorize", "flag",
        "input",   "int",       "keep", "linear",    "memory",   "minimize",  "next",
        "observe", "optimizer", "over", "precision", "preset",   "recompute", "set",
        "state",   "steps",     "to",   "use",       "validate", "warmup",    "with"};
    for (int i = 0; i < COUNT_OF(words); i++) {
        char text[1000], tree[1000];
        const char *w = words[i];
        snprintf(text, sizeof text,
                 "fn %s(%s: [%s]; k = %s) {\n%s = %s(%s; %s -> %s, %s = %s)[%s as %s]\n"
                 "%s: [%s] = %s: %s\nfor %s in %s { %s = %s + %s }\nreturn %s\n}\n"
                 "plan %s { dim %s = 2; set %s = %s; recompute %s.%s, %s keep %s }\n",
                 w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w,
                 w, w, w, w, w);
        snprintf(tree, sizeof tree,
                 "(fn %s 0%s[%s] 1k=%s{let %s [(%s %s | %s -> %s %s=%s) %s:%s]}"
                 "{let %s[%s] %s: %s}{for %s %s{let %s (+ %s %s)}}{return  %s})"
                 "(plan %s{dim %s 2}{set %s %s}{recompute %s.%s,%s keep %s})",
                 w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w, w,
                 w, w, w, w, w);
        expect_tree(text, tree);
    }
}

/* ---- statements and items ----------------------------------------------------------- */

static void test_newline_rule(void **state) {
    (void)state;
    expect_tree("dim A = 1 +\n 2\ndim B = 3", "{dim A (+ 1 2)}{dim B 3}");
    expect_tree("dim A =\n\n 1,\n # between\n B = 2", "{dim A 1}{dim B 2}");
    expect_tree("dim A = f(x\n, y\n ; D\n)[S\nas T]", "{dim A [(f x y | D) S:T]}");
    expect_tree("dim A = if a\n then b\n else c", "{dim A (if a b c)}");
    expect_tree("\n\n;;dim A = 1;dim B = 2;\n;", "{dim A 1}{dim B 2}");
    expect_tree("fn f(x) ->\n [D] { return x }", "(fn f 0x -> [D]{return  x})");
    expect_tree("fn f(x) {\n if a { y = 1 }\n\n else { y = 2 } ; return x }",
                "(fn f 0x{if  a{let y 1} else {let y 2}}{return  x})");
    expect_tree("fn f(x)\n# why\n{\nreturn x\n}\n", "(fn f 0x{return  x})");
    /* a star of a selector is no operator */
    expect_tree("recipe r {\n optimizer m() on layer[*].**\n warmup 1\n}"
                "\nplan p {\n recompute *\n recompute a.* keep *\n set A = b *\n 2\n}",
                "(recipe r{optimizer (m) on layer[*].**}{warmup 1})"
                "(plan p{recompute *}{recompute a.* keep *}{set A (* b 2)})");
    expect_tree("plan p { recompute {\n a, b\n}.c }", "(plan p{recompute {a,b}.c})");
    expect_error("dim A = 1\n + 2\n", "test.cola:2:2: error: expected a definition");
}

static void test_statements(void **state) {
    (void)state;
    expect_tree("block b(x: [B,S,D]) -> [B,S,D] {\n"
                "    param wq: [D -> H,K] ~ normal(0.02)\n"
                "    param wk, wv: [D -> J,K]\n"
                "    param gain: [D] ~ ones; param bias: [-> D] ~ zeros\n"
                "    dim P = 2, Q = size(K) / 2\n"
                "    s: [B,S] = dot(x, wq; D)\n"
                "    for i in L { x = layer(x) }\n"
                "    for i in 0..L - 1 { x = y: layer(x) }\n"
                "    if i % 2 == 0 { y = x } else if a { y = 2 } else { y = 3 }\n"
                "    observe norm = sum(x)\n"
                "    return out: x\n}",
                "(block b 0x[B,S,D] -> [B,S,D]{param wq[D>,H,K] (normal 0.02)}"
                "{param wk,wv[D>,J,K]}{param gain[D] ones}{param bias[>D] zeros}{dim P 2}"
                "{dim Q (/ (size K) 2)}{let s[B,S] (dot x wq | D)}{for i L{let x (layer x)}}"
                "{for i 0 / (- L 1){let x y: (layer x)}}"
                "{if  (== (% i 2) 0){let y x} else {if  a{let y 2} else {let y 3}}}"
                "{observe norm (sum x)}{return  out: x})");
    expect_tree("model m { input t: int[B,S] below V next 1; input f: [B,S]\n"
                "minimize sum(t) over sum(f)\nminimize mean(t) }",
                "(model m{input tint[B,S] below V next 1}{input f[B,S]}"
                "{minimize  (sum t) / (sum f)}{minimize  (mean t)})");
    expect_tree("optimizer adamw(p: [I -> O], g; lr = 1e-3, eps = 1e-8) {\n"
                "    state m, v ~ zeros\n    next m = m + g; next p = p - lr * m\n}",
                "(optimizer adamw 0p[I>,O] 0g 1lr=1e-3 1eps=1e-8{state m,v zeros}"
                "{next m (+ m g)}{next p (- p (* lr m))})");
    expect_tree("fn f(x: [.., I], m: int[..]; I, J -> O; R, e = 1) -> [.., O] { return x }",
                "(fn f 0x[..,I] 0mint[..] 1~I 1~J 1~>O 2R 2e=1 -> [..,O]{return  x})");
    expect_tree("optimizer f(x: [.., I -> O], y: []; ; k) { next x = y }",
                "(optimizer f 0x[..,I>,O] 0y[] 2k{next x y})");
}

static void test_plans(void **state) {
    (void)state;
    expect_tree(
        "use \"std.cola\"\nflag a = true, b = false\n"
        "preset 60m { D = 512, H = 8\n F = 3; G = 4, }\npreset none { }",
        "(use std.cola){flag a true}{flag b false}{preset 60m D=512 H=8 F=3 G=4}{preset none}");
    expect_tree(
        "plan c extends a, b { dim R = D / 4, Q = 2; flag f = true\n"
        "preset 130m { R = 256 }\nset gate = D < 1024, g = 1\n"
        "factorize layer[*].attn.{wq,wk}, layer[0..3, 5].ffn.{gate,a.up[1]},\n"
        "    **.x with cola(R)\n"
        "recompute layer[*] keep mid, **.low\n"
        "memory 2 GiB\nprecision bf16 }\n"
        "plan d { memory 1.5MiB }; plan d { memory 64KiB }; plan d { memory 77 }\n"
        "plan d { memory M GiB }",
        "(plan c extends a,b{dim R (/ D 4)}{dim Q 2}{flag f true}{preset{preset 130m R=256}}"
        "{set gate (< D 1024)}{set g 1}"
        "{factorize layer[*].attn.{wq,wk},layer[0..3,5].ffn.{gate,a.up[1]},**.x (cola R)}"
        "{recompute layer[*] keep mid,**.low}"
        "{memory 2 GiB}{precision bf16})(plan d{memory 1.5 MiB})(plan d{memory 64 KiB})"
        "(plan d{memory 77})(plan d{memory (* M GiB)})");
    expect_tree(
        "recipe r { preset 130m { lr = 3e-3, steps = 20000 }\n"
        "optimizer muon(lr = 1) on layer[*].**; adamw(decay = 0) on **.gain; sgd()\n"
        "warmup 2000; cosine to 0.1; clip 0.5; batch 512\n"
        "steps 10000\nvalidate 250 }\nrecipe l { linear to -0.5 * a }",
        "(recipe r{preset{preset 130m lr=3e-3 steps=20000}}"
        "{optimizer (muon lr=1) on layer[*].** (adamw decay=0) on **.gain (sgd)}{warmup 2000}"
        "{cosine 0.1}{clip 0.5}{batch 512}{steps 10000}{validate 250})"
        "(recipe l{linear (* (neg 0.5) a)})");
    static const char text[] = "plan p { memory 1.5 GiB }; plan q { memory 3KiB }";
    Parsed *parsed = parse_bytes("t", text, sizeof text - 1);
    const Item *p = parsed->items;
    assert_true(p->directives->value->number == 1610612736.0 &&
                p->next->directives->value->number == 3072.0);
    parsed_free(parsed);
}

static void test_spans(void **state) {
    (void)state;
    const char *text = "dim A = (b + 1) * f(x; D)[S as T]\nfn g(x) {\n  return x\n}\n";
    Parsed *parsed = parse_bytes("t", text, strlen(text));
    const Expr *product = parsed->items->statement->value;
    assert_int_equal(product->span.begin, 8);
    assert_int_equal(product->span.end, 33);
    assert_int_equal(product->a->span.begin, 8);
    assert_int_equal(product->a->span.end, 15);
    assert_int_equal(product->b->a->span.end, 25);
    assert_int_equal(product->b->items->span.begin, 26);
    assert_int_equal(product->depth, 4);
    assert_int_equal(parsed->items->next->span.end, strlen(text) - 1);
    parsed_free(parsed);
}

/* ---- limits ------------------------------------------------------------------------- */

static void repeat(Text *text, const char *part, int count) {
    for (int i = 0; i < count; i++)
        text_puts(text, part);
}

/* `head`, `count` times `part`, then `tail`. */
static char *deep(const char *head, const char *part, int count, const char *tail) {
    Text text = {0};
    text_puts(&text, head);
    repeat(&text, part, count);
    text_puts(&text, tail);
    return text.data;
}

static void test_depth(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"dim A = ", "(", "1"},
        {"dim A = ", "- ", "1"},
        {"dim A = ", "not ", "a"},
        {"dim A = 1", " + 1", "\n"},
        {"dim A = 1", " ^ 1", "\n"},
        {"dim A = ", "f(x; ", "1"},
        {"dim A = x", "[S as T]", "\n"},
        {"dim A = ", "if a then b else ", "c\n"},
        {"dim A = ", "if ", "c\n"},
        {"fn f(x) { if a { b = 1 }", " else if a { b = 1 }", "}\n"},
        {"fn f(x) { ", "for i in L { ", "x = 1"},
        {"plan p { recompute ", "{", "a"},
        {"plan p { recompute ", "a[", "1"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char *text = deep(cases[i][0], cases[i][1], 100000, cases[i][2]);
        expect_error(text, "nested more than 500 levels deep");
        free(text);
    }
    char *text = deep("dim A = 1", " + 1", MAX_NESTING - 1, "\n");
    free(tree_of(text));
    free(text);
}

static void test_many(void **state) {
    (void)state;
    /* lists are not nested: any number of them is fine */
    char *text = deep("dim A = f(1", ", 1", 100000, ")\n");
    free(tree_of(text));
    free(text);
    text = deep("", "dim A = 1\n", 100000, "");
    free(tree_of(text));
    free(text);
    text = deep("plan p { recompute a", ".a", 50000, "\n}");
    free(tree_of(text));
    free(text);
}

/* Texts that are none are refused at once, with few errors. */
static void test_garbage(void **state) {
    (void)state;
    static const char *const parts[] = {
        "(",   ")",    "}",        "{",          "[ ",   "a",   "a\n",           "7 ",
        "= ",  "\"",   "\"\n",     "\xff",       "?",    "? ",  "if ",           "{\n",
        "}\n", "fn\n", "plan x {", "use \"x\" ", "a = ", "# a", "\xe2\x82\xac\n"};
    for (int i = 0; i < COUNT_OF(parts); i++) {
        char *text = deep("", parts[i], 1 << 20, "");
        clock_t begin = clock();
        Parsed *parsed = parse_bytes("test.cola", text, strlen(text));
        assert_true((double)(clock() - begin) / CLOCKS_PER_SEC < 2);
        assert_in_range(parsed->errors, parts[i][0] == '#' ? 0 : 1, 51);
        assert_in_range(arena_bytes(parsed->arena), 0, 64 << 20);
        parsed_free(parsed);
        free(text);
    }
}

static void test_nul(void **state) {
    (void)state;
    static const char text[] = "dim A = 1\ndim B = \0 2\ndim C = = 3\n";
    char *message = errors_of(text, sizeof text - 1, 1);
    assert_non_null(strstr(message, "test.cola:2:9: error: a NUL byte"));
    free(message);
}

/* ---- golden files ------------------------------------------------------------------- */

static char *read_or_die(const char *path) {
    size_t length;
    char *text = read_file(path, 1 << 20, &length);
    if (!text)
        fail_msg("%s cannot be read", path);
    return text;
}

static void compare_golden(const char *path, const char *got) {
    const char *mode = getenv("GOLDEN");
    if (mode && !strcmp(mode, "write")) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(got, file);
        fclose(file);
        return;
    }
    char *expected = read_or_die(path);
    if (strcmp(expected, got))
        fail_msg("%s differs (GOLDEN=write rewrites it); got:\n%s", path, got);
    free(expected);
}

/* Calls `check` with each NAME.cola of a folder; `expect` is the path of its NAME.expect. */
static void each_golden(const char *folder,
                        void (*check)(const char *name, const char *text, const char *expect)) {
    DIR *listing = opendir(folder);
    assert_non_null(listing);
    int count = 0;
    for (const struct dirent *entry; (entry = readdir(listing));) {
        const char *dot = strrchr(entry->d_name, '.');
        if (!dot || strcmp(dot, ".cola"))
            continue;
        char path[600], expect[600];
        snprintf(path, sizeof path, "%s%s", folder, entry->d_name);
        snprintf(expect, sizeof expect, "%s%.*s.expect", folder, (int)(dot - entry->d_name),
                 entry->d_name);
        char *text = read_or_die(path);
        check(entry->d_name, text, expect);
        free(text);
        count++;
    }
    closedir(listing);
    assert_true(count > 0);
}

static void check_errors(const char *name, const char *text, const char *expect) {
    Parsed *parsed = parse_bytes(name, text, strlen(text));
    char *message = printed(parsed->diagnostics);
    compare_golden(expect, message);
    free(message);
    parsed_free(parsed);
}

static void test_golden_errors(void **state) {
    (void)state;
    each_golden(GOLDEN_FOLDER, check_errors);
}

/* ---- layout ------------------------------------------------------------------------- */

/* The layout of a text that must parse, in malloc'ed memory. */
static char *formatted(const char *name, const char *text) {
    Source source = {name, text, strlen(text), NULL};
    Diagnostics *diagnostics = diagnostics_new();
    Text out = {0};
    if (!format_source(&source, &out, diagnostics)) {
        char *message = printed(diagnostics);
        fail_msg("%s", message);
    }
    diagnostics_free(diagnostics);
    char *result = strdup(text_string(&out));
    text_free(&out);
    return result;
}

/* Everything but white space, for comparison. */
static char *without_space(const char *text) {
    char *result = checked_alloc(strlen(text) + 1), *end = result;
    for (; *text; text++)
        if (!strchr(" \t\r\n\f", *text))
            *end++ = *text;
    return result;
}

/* Formatting keeps the tokens, comments and the tree, and is idempotent. */
static void check_format_of(const char *name, const char *text) {
    char *once = formatted(name, text), *twice = formatted(name, once);
    assert_string_equal(once, twice);
    char *before = without_space(text), *after = without_space(once);
    assert_string_equal(before, after);
    char *tree = tree_of(text), *tree_after = tree_of(once);
    assert_string_equal(tree, tree_after);
    char *all[] = {once, twice, before, after, tree, tree_after};
    for (int i = 0; i < COUNT_OF(all); i++)
        free(all[i]);
}

static void check_layout(const char *name, const char *text, const char *expect) {
    char *layout = formatted(name, text);
    compare_golden(expect, layout);
    check_format_of(name, text);
    free(layout);
}

static void test_golden_layout(void **state) {
    (void)state;
    each_golden(LAYOUT_FOLDER, check_layout);
}

static void test_format_refuses(void **state) {
    (void)state;
    Source source = {"t", "dim A = ", 8, NULL};
    Diagnostics *diagnostics = diagnostics_new();
    Text out = {0};
    assert_false(format_source(&source, &out, diagnostics));
    assert_int_equal(out.length, 0);
    assert_int_equal(diagnostics_errors(diagnostics), 1);
    diagnostics_free(diagnostics);
}

/* ---- loading ------------------------------------------------------------------------ */

static char folder[] = "/tmp/colac-syntax-XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) && chdir(folder) == 0 ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[200];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* The item names of a file and all it uses, or NULL; and what is said about it. */
static char *loaded_names(const char *path, char **message) {
    Diagnostics *diagnostics = diagnostics_new();
    Texts *texts = texts_load(path, diagnostics);
    Text names = {0};
    for (const Item *item = texts ? texts->items : NULL; item; item = item->next)
        if (item->kind != ITEM_USE)
            text_printf(&names, "%s ", item->name.text);
    *message = printed(diagnostics);
    char *result = texts ? strdup(text_string(&names)) : NULL;
    text_free(&names);
    texts_free(texts);
    diagnostics_free(diagnostics);
    return result;
}

static void expect_loaded(const char *path, const char *names, const char *const *parts) {
    char *message, *got = loaded_names(path, &message);
    if (names)
        assert_string_equal(got, names);
    else
        assert_null(got);
    for (; *parts; parts++)
        if (!strstr(message, *parts))
            fail_msg("`%s` is not in:\n%s", *parts, message);
    free(message);
    free(got);
}

static void test_loading(void **state) {
    (void)state;
    write_file("a.cola", "use \"b.cola\"\nuse \"c.cola\"\ndim A = 1\n");
    write_file("b.cola", "use \"c.cola\"\nuse \"a.cola\"\ndim B = 1\n");
    write_file("c.cola", "use \"./b.cola\"\ndim C = 1\n");
    expect_loaded("a.cola", "C B A ", (const char *const[]){"", NULL});
    assert_int_equal(system("mkdir sub"), 0);
    write_file("sub/d.cola", "use \"../c.cola\"\nuse \"e.cola\"\ndim D = 1\n");
    write_file("sub/e.cola", "dim E = 1\n");
    expect_loaded("sub/d.cola", "A B C E D ", (const char *const[]){"", NULL});
    write_file("std.cola", "dim MINE = 1\n");
    write_file("own.cola", "use \"std.cola\"\n");
    expect_loaded("own.cola", "MINE ", (const char *const[]){"", NULL});
}

static void test_loading_errors(void **state) {
    (void)state;
    write_file("llama.cola",
               "dim A = 1\nuse \"stb.cola\"\nuse \"lama.cola\"\nuse \"sub\"\ndim B = 2\n");
    assert_int_equal(system("mkdir -p sub"), 0);
    expect_loaded("llama.cola", "A B ",
                  (const char *const[]){
                      "llama.cola:2:5: error: cannot read `stb.cola`",
                      "built-in library: std.cola", "llama.cola:3:5: error",
                      "did you mean `llama.cola`?",
                      "llama.cola:4:5: error: cannot read `sub`: it is a directory", NULL});
    expect_loaded("llana.cola", NULL,
                  (const char *const[]){"llana.cola:1:1: error: ", "no such file",
                                        "did you mean `llama.cola`?", NULL});
    expect_loaded("sub", NULL,
                  (const char *const[]){"sub:1:1: error: ", "is a directory", NULL});
    expect_loaded("/nowhere/at/all", NULL, (const char *const[]){"no such file", NULL});
}

static void test_library(void **state) {
    (void)state;
    write_file("m.cola", "use \"std.cola\"\ndim A = 1\n");
    char *message, *names = loaded_names("m.cola", &message);
    assert_string_equal(message, "");
    static const char *const wanted[] = {"softmax ", "rmsnorm ", "rope ",
                                         "cola ",    "adamw ",   "A "};
    for (int i = 0; i < COUNT_OF(wanted); i++)
        assert_non_null(strstr(names, wanted[i]));
    free(names);
    free(message);
}

static void test_long_chain(void **state) {
    (void)state;
    for (int i = 0; i < 150; i++) {
        char name[40], text[80];
        snprintf(name, sizeof name, "chain%d.cola", i);
        snprintf(text, sizeof text, "use \"chain%d.cola\"\n", i + 1);
        write_file(name, text);
    }
    expect_loaded("chain0.cola", "", (const char *const[]){"100 levels deep", NULL});
}

/* ---- mutated texts ------------------------------------------------------------------ */

static uint64_t random_state = 0x9e3779b97f4a7c15u;
static size_t random_below(size_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return limit ? (size_t)(random_state % limit) : 0;
}

static void splice(Text *text, size_t begin, size_t end, const char *bytes, size_t length) {
    Text result = {0};
    text_append(&result, text_string(text), begin);
    text_append(&result, bytes, length);
    text_append(&result, text_string(text) + end, text->length - end);
    text_free(text);
    *text = result;
}

/* One edit: cut, double or move a stretch, put in a lexeme or a byte. */
static void mutate(Text *text) {
    static const char *const lexemes[] = {"(",           ")",        "[",
                                          "]",           "{",        "}",
                                          ",",           ";",        ":",
                                          "=",           "==",       "->",
                                          "..",          "**",       "*",
                                          "-",           "^",        ".",
                                          "\n",          "\n\n",     "#",
                                          "\"",          "~",        " if ",
                                          " then ",      " else ",   " for ",
                                          " in ",        " as ",     " on ",
                                          " block ",     " fn ",     "\nmodel ",
                                          "\nplan ",     "\nblock ", " param ",
                                          " dim ",       " return ", " keep ",
                                          " optimizer ", " 60m ",    " 1e-3 ",
                                          " inf ",       "\xc3\xa9", "\x01",
                                          " not ",       " state ",  " next ",
                                          " preset ",    " use ",    "\"std.cola\"",
                                          " int[",       "[..,"};
    size_t at = random_below(text->length + 1), length = random_below(30);
    size_t end = at + length < text->length ? at + length : text->length;
    size_t to = random_below(text->length + 1);
    const char *lexeme = lexemes[random_below(COUNT_OF(lexemes))];
    char byte = (char)(1 + random_below(255)), copy[30];
    memcpy(copy, text_string(text) + at, end - at);
    switch (random_below(5)) {
    case 0:
        splice(text, at, end, "", 0);
        break;
    case 1:
        splice(text, to, to, copy, end - at);
        break;
    case 2:
        splice(text, at, at, lexeme, strlen(lexeme));
        break;
    case 3:
        splice(text, at, at < text->length ? at + 1 : at, &byte, 1);
        break;
    default:
        splice(text, at, end, lexeme, strlen(lexeme));
    }
}

/* Does each error begin with a place in the text? */
static void check_places(const char *message, const char *text) {
    for (const char *line = message; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        const char *error = strstr(line, ": error: ");
        if (!error || (strchr(line, '\n') && error > strchr(line, '\n')))
            continue;
        int row = 0, column = 0;
        if (sscanf(line, "test.cola:%d:%d: error: ", &row, &column) != 2 || row < 1 ||
            column < 1)
            fail_msg("no place in `%s`\nof\n%s", line, text);
    }
}

static void check_mutant(const char *text) {
    Parsed *parsed = parse_bytes("test.cola", text, strlen(text));
    int errors = parsed->errors;
    char *message = printed(parsed->diagnostics);
    assert_true((errors > 0) == (strstr(message, ": error: ") != NULL));
    check_places(message, text);
    free(message);
    parsed_free(parsed);
    if (errors == 0)
        check_format_of("test.cola", text);
}

static void test_mutants(void **state) {
    (void)state;
    const char *wish = getenv("COLAC_FUZZ");
    int count = wish ? atoi(wish) : 1000;
    char *sample = read_or_die(GOLDEN_FOLDER "sample.cola");
    alarm((unsigned)(60 + count / 100));
    for (int i = 0; i < count; i++) {
        Text text = {0};
        text_puts(&text, sample);
        for (size_t edits = 1 + random_below(4); edits > 0; edits--)
            mutate(&text);
        check_mutant(text_string(&text));
        text_free(&text);
    }
    alarm(0);
    free(sample);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_indices),
        cmocka_unit_test(test_lexemes),
        cmocka_unit_test(test_words_are_names),
        cmocka_unit_test(test_newline_rule),
        cmocka_unit_test(test_statements),
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_spans),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_nul),
        cmocka_unit_test(test_golden_errors),
        cmocka_unit_test(test_golden_layout),
        cmocka_unit_test(test_format_refuses),
        cmocka_unit_test(test_mutants),
    };
    const struct CMUnitTest loading[] = {
        cmocka_unit_test(test_loading),
        cmocka_unit_test(test_loading_errors),
        cmocka_unit_test(test_long_chain),
    };
    const struct CMUnitTest library[] = {cmocka_unit_test(test_library)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += cmocka_run_group_tests(loading, make_folder, remove_folder);
    strcpy(strrchr(folder, '-') + 1, "XXXXXX");
    failed += cmocka_run_group_tests(library, make_folder, remove_folder);
    return failed;
}
