// What headrace_linear is called with; headrace/kernels/linear.py has the same structure.
#pragma once

#include "types.h"

namespace headrace {

// output (T, N) = input (T, K) by the transpose of weight (N, K), plus bias (N).
struct Linear {
    const void *input;
    const void *weight;  // rows `weight_stride` numbers apart
    const void *bias;    // or null
    void *output;
    int64_t num_tokens, num_inputs, num_outputs, weight_stride;
    int32_t weight_type, type;  // the latter of input, bias and output
    int32_t num_threads;
};

}  // namespace headrace

extern "C" void headrace_linear(const headrace::Linear *call);
