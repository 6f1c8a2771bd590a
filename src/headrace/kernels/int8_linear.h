// What headrace_int8_linear is called with; headrace/kernels/int8_linear.py has the same structure.
#pragma once

#include "types.h"

namespace headrace {

// output (T, N) = input (T, K), each token in 8 bits by a scale of its own, by the transpose of weight (N, K), plus
// bias (N). Numbers of a token from `outliers` on are left out of that and multiplied as they are (LLM.int8()).
struct Int8Linear {
    const void *input;
    const uint8_t *weight;  // packed as packing.h says
    const void *bias;       // or null
    void *output;
    int64_t num_tokens, num_inputs, num_outputs;
    int32_t type;           // of input, bias and output
    int32_t num_threads;
    float outliers;         // 0: none are
};

}  // namespace headrace

extern "C" void headrace_int8_linear(const headrace::Int8Linear *call);
