/* passes/budget.c: `memory N`. */
#include "passes/passes.h"

bool budget_choose(PassContext *context, KeepChoice *choice, Arena *arena) {
    (void)choice;
    (void)arena;
    error_at(context->diagnostics, context->compilation->memory->span,
             "`memory` is not carried out yet");
    return false;
}
