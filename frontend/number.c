/* frontend/number.c: compile-time numbers.  Integers stay exact: a division that is not, and a
 * result beyond 2^60, are errors rather than roundings. */
#include "frontend/expand.h"

#include <inttypes.h>
#include <math.h>

Number number_integer(int64_t integer) {
    return (Number){NUMBER_INTEGER, integer, (double)integer};
}

Number number_real(double real) {
    return (Number){NUMBER_REAL, 0, real};
}

Number number_bool(bool truth) {
    return (Number){NUMBER_BOOL, truth, truth};
}

const char *number_text(Expander *x, Number number) {
    switch (number.kind) {
    case NUMBER_POISON:
        return "?";
    case NUMBER_BOOL:
        return number.integer ? "true" : "false";
    case NUMBER_INTEGER:
        return arena_printf(x->arena, "%" PRId64, number.integer);
    case NUMBER_REAL:
        return arena_printf(x->arena, "%.10g", number.real);
    }
    return "?";
}

bool number_whole(Number number, int64_t *integer) {
    if (number.kind == NUMBER_INTEGER) {
        *integer = number.integer;
        return true;
    }
    if (number.kind != NUMBER_REAL || !(fabs(number.real) <= 9007199254740992.0) ||
        number.real != floor(number.real))
        return false;
    *integer = (int64_t)number.real;
    return true;
}

static Number bad_operand(Expander *x, Frame *f, const Expr *e, Number a, const char *wanted) {
    complain(x, f, e->span, "%s is %s, where %s is wanted", excerpt(x, e->span),
             number_text(x, a), wanted);
    return (Number){0};
}

Number number_unary(Expander *x, Frame *f, const Expr *e, Number a) {
    if (a.kind == NUMBER_POISON)
        return a;
    if (e->operator== OPERATOR_NOT)
        return a.kind == NUMBER_BOOL ? number_bool(!a.integer)
                                     : bad_operand(x, f, e->a, a, "true or false");
    if (a.kind == NUMBER_BOOL)
        return bad_operand(x, f, e->a, a, "a number");
    return a.kind == NUMBER_INTEGER ? number_integer(-a.integer) : number_real(-a.real);
}

/* Both sides of a failed operation, each with where its names were set. */
static void explain_operands(Expander *x, Frame *f, Diagnostic *d, const Expr *e) {
    explain_names(x, f, d, e->a);
    explain_names(x, f, d, e->b);
}

static Number overflow(Expander *x, Frame *f, const Expr *e, Number a, Number b) {
    Diagnostic *d = complain(x, f, e->span, "%s is beyond 2^60: the sides are %s and %s",
                             excerpt(x, e->span), number_text(x, a), number_text(x, b));
    explain_operands(x, f, d, e);
    return (Number){0};
}

static Number divide(Expander *x, Frame *f, const Expr *e, Number a, Number b) {
    if (b.real == 0) {
        Diagnostic *d = complain(x, f, e->span, "%s divides by zero", excerpt(x, e->span));
        explain_operands(x, f, d, e);
        return (Number){0};
    }
    if (a.kind != NUMBER_INTEGER || b.kind != NUMBER_INTEGER)
        return number_real(a.real / b.real);
    if (a.integer % b.integer == 0)
        return number_integer(a.integer / b.integer);
    Diagnostic *d = complain(x, f, e->span, "%s is not whole: %" PRId64 " / %" PRId64,
                             excerpt(x, e->span), a.integer, b.integer);
    explain_operands(x, f, d, e);
    help(d, "choose sizes that divide; where a fraction is meant, write one side with a point, "
            "as in `1.0 / 3`");
    return (Number){0};
}

static Number modulo(Expander *x, Frame *f, const Expr *e, Number a, Number b) {
    if (a.kind != NUMBER_INTEGER || b.kind != NUMBER_INTEGER)
        return bad_operand(x, f, a.kind != NUMBER_INTEGER ? e->a : e->b,
                           a.kind != NUMBER_INTEGER ? a : b, "a whole number");
    if (b.integer == 0)
        return divide(x, f, e, a, b);
    int64_t rest = a.integer % b.integer;
    return number_integer(rest != 0 && (rest < 0) != (b.integer < 0) ? rest + b.integer : rest);
}

static Number power(Expander *x, Frame *f, const Expr *e, Number a, Number b) {
    if (a.kind == NUMBER_INTEGER && b.kind == NUMBER_INTEGER && b.integer >= 0) {
        int64_t base = a.integer, product = 1;
        if (base == 0 || base == 1)
            return number_integer(b.integer == 0 ? 1 : base);
        if (base == -1)
            return number_integer(b.integer % 2 ? -1 : 1);
        for (int64_t i = 0; i < b.integer; i++)
            if (__builtin_mul_overflow(product, base, &product) || product > MAX_INTEGER ||
                product < -MAX_INTEGER)
                return overflow(x, f, e, a, b);
        return number_integer(product);
    }
    double result = pow(a.real, b.real);
    if (isfinite(result) || !isfinite(a.real) || !isfinite(b.real))
        return number_real(result);
    Diagnostic *d = complain(x, f, e->span, "%s has no value: %s to the power %s",
                             excerpt(x, e->span), number_text(x, a), number_text(x, b));
    explain_operands(x, f, d, e);
    return (Number){0};
}

static Number compare(Operator operator, Number a, Number b) {
    bool whole = a.kind != NUMBER_REAL && b.kind != NUMBER_REAL;
    bool less = whole ? a.integer < b.integer : a.real < b.real;
    bool equal = whole ? a.integer == b.integer : a.real == b.real;
    switch (operator) {
    case OPERATOR_LESS:
        return number_bool(less);
    case OPERATOR_LESS_EQUAL:
        return number_bool(less || equal);
    case OPERATOR_GREATER:
        return number_bool(!less && !equal);
    case OPERATOR_GREATER_EQUAL:
        return number_bool(!less);
    case OPERATOR_EQUAL:
        return number_bool(equal);
    default:
        return number_bool(!equal);
    }
}

static Number logic(Expander *x, Frame *f, const Expr *e, Number a, Number b) {
    if (a.kind != NUMBER_BOOL)
        return bad_operand(x, f, e->a, a, "true or false");
    if (b.kind != NUMBER_BOOL)
        return bad_operand(x, f, e->b, b, "true or false");
    return number_bool(e->operator== OPERATOR_AND ? a.integer && b.integer
                                                  : a.integer || b.integer);
}

static Number arithmetic(Expander *x, Frame *f, const Expr *e, Number a, Number b) {
    bool whole = a.kind == NUMBER_INTEGER && b.kind == NUMBER_INTEGER, over;
    int64_t integer = 0;
    double real;
    switch (e->operator) {
    case OPERATOR_ADD:
        over = __builtin_add_overflow(a.integer, b.integer, &integer);
        real = a.real + b.real;
        break;
    case OPERATOR_SUBTRACT:
        over = __builtin_sub_overflow(a.integer, b.integer, &integer);
        real = a.real - b.real;
        break;
    default:
        INTERNAL_CHECK(e->operator== OPERATOR_MULTIPLY);
        over = __builtin_mul_overflow(a.integer, b.integer, &integer);
        real = a.real * b.real;
    }
    if (!whole)
        return number_real(real);
    if (over || integer > MAX_INTEGER || integer < -MAX_INTEGER)
        return overflow(x, f, e, a, b);
    return number_integer(integer);
}

Number number_binary(Expander *x, Frame *f, const Expr *e, Number a, Number b) {
    if (a.kind == NUMBER_POISON || b.kind == NUMBER_POISON)
        return (Number){0};
    if (e->operator== OPERATOR_AND || e->operator== OPERATOR_OR)
        return logic(x, f, e, a, b);
    if ((e->operator== OPERATOR_EQUAL || e->operator== OPERATOR_NOT_EQUAL) &&
        (a.kind == NUMBER_BOOL) == (b.kind == NUMBER_BOOL))
        return compare(e->operator, a, b);
    if (a.kind == NUMBER_BOOL)
        return bad_operand(x, f, e->a, a, "a number");
    if (b.kind == NUMBER_BOOL)
        return bad_operand(x, f, e->b, b, "a number");
    switch (e->operator) {
    case OPERATOR_DIVIDE:
        return divide(x, f, e, a, b);
    case OPERATOR_MODULO:
        return modulo(x, f, e, a, b);
    case OPERATOR_POWER:
        return power(x, f, e, a, b);
    case OPERATOR_ADD:
    case OPERATOR_SUBTRACT:
    case OPERATOR_MULTIPLY:
        return arithmetic(x, f, e, a, b);
    default:
        return compare(e->operator, a, b);
    }
}
