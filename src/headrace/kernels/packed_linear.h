// What products with packed weights are called with; headrace/kernels/packed_linear.py has the same structures.
#pragma once

#include "types.h"
#include "weights.h"

namespace headrace {

struct PackedWeight {
    const uint8_t *weight;  // as packing.h says
    const void *bias;       // or null
    void *output;
    int64_t num_outputs;
};

// For each weight: output (T, N) = input (T, K), in 8 bits, by the transpose of weight (N, K), plus bias (N).
struct PackedLinear {
    const void *input;
    PackedWeight weights[MOST_WEIGHTS];
    int64_t num_tokens, num_inputs;
    int32_t num_weights;
    int32_t type;          // of input, bias and output
    int32_t num_threads;
    int32_t group_inputs;  // int4: inputs that share a scale, a multiple of 8
    float outliers;        // int8: numbers of a token from here on are multiplied as they are (LLM.int8()); 0: none
};

}  // namespace headrace

extern "C" void headrace_int8_linear(const headrace::PackedLinear *call);
extern "C" void headrace_int4_linear(const headrace::PackedLinear *call);
