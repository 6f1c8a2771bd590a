// What headrace_linear is called with; headrace/kernels/linear.py has the same structures.
#pragma once

#include "types.h"
#include "weights.h"

namespace headrace {

// How the numbers of weights (N, K) lie.
enum WeightLayout : int32_t {
    ROWS = 0,         // an output's next to each other
    COLUMNS = 1,      // an input's
    INTERLEAVED = 2,  // as interleaved_weights.h says
};

struct PlainWeight {
    const void *weight;
    const void *bias;  // or null
    void *output;
    int64_t num_outputs;
    int64_t stride;  // numbers from one row or column to the next, where it is not interleaved
};

// For each weight: output (T, N) = input (T, K) by the transpose of weight (N, K), plus bias (N).
struct Linear {
    const void *input;
    PlainWeight weights[MOST_WEIGHTS];
    int64_t num_tokens, num_inputs;
    int32_t num_weights, layout;
    int32_t weight_type, type;  // the latter of input, bias and output
    int32_t num_threads;
};

}  // namespace headrace

extern "C" void headrace_linear(const headrace::Linear *call);
