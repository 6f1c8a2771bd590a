// What headrace_linear is called with; headrace/kernels/linear.py has the same structures.
#pragma once

#include "types.h"
#include "weights.h"

namespace headrace {

struct PlainWeight {
    const void *weight;  // rows `stride` numbers apart
    const void *bias;    // or null
    void *output;
    int64_t num_outputs, stride;
};

// For each weight: output (T, N) = input (T, K) by the transpose of weight (N, K), plus bias (N).
struct Linear {
    const void *input;
    PlainWeight weights[MOST_WEIGHTS];
    int64_t num_tokens, num_inputs;
    int32_t num_weights;
    int32_t weight_type, type;  // the latter of input, bias and output
    int32_t num_threads;
};

}  // namespace headrace

extern "C" void headrace_linear(const headrace::Linear *call);
