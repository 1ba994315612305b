/* passes/counts.c: what a module amounts to in FLOPs. */
#include "passes/passes.h"

double node_flops(const Function *function, const Node *node) {
    const Module *module = function->module;
    double elements = (double)type_elements(module, node->type);
    if (op_info[node->op].axis_rule == AXES_DOT || op_info[node->op].axis_rule == AXES_REDUCE)
        elements *= (double)axes_elements(module, node->attr.from, node->attr.from_count);
    if (op_info[node->op].axis_rule == AXES_SCATTER)
        elements = (double)type_elements(module, node_at(function, node->inputs[1])->type);
    return elements * op_info[node->op].flops;
}

FlopTable flop_table(const Module *module, int64_t tokens) {
    FlopTable table = {0};
    const Function *function = module_find_function(module, "micro");
    if (!function)
        function = module_find_function(module, "eval");
    if (!function || tokens < 1)
        return table;
    bool *forward = forward_part(function);
    for (int64_t id = 0; id < function->nodes.count; id++) {
        const Node *node = &function->nodes.data[id];
        double flops = node_flops(function, node) / (double)tokens;
        table.executed += flops;
        if (node->op != OP_DOT)
            continue;
        if (node->clone)
            table.recompute += flops;
        else if (node->scope == 0)
            table.head += flops;
        else if (forward[id])
            table.forward += flops;
        else
            table.backward += flops;
    }
    free(forward);
    return table;
}
