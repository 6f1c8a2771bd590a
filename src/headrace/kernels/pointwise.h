// What the functions below are called with; headrace/kernels/pointwise.py has the same structures.
#pragma once

#include "types.h"

namespace headrace {

// How a normalised number becomes a result.
enum NormForm : int32_t {
    WEIGHT_TIMES_ROUNDED = 0,  // weight * number, the number being rounded before
    WEIGHT_TIMES_NUMBER = 1,   // weight * number, rounded once
    ONE_PLUS_WEIGHT = 2,       // (1 + weight) * number, rounded once
};

// output (A, B, W) = input (A, B, W), each row divided by the root of its mean square and `epsilon`, by weight (W).
struct RmsNorm {
    const void *input, *weight;
    void *output;
    int64_t num_outer, num_inner, width;
    int64_t outer_stride, inner_stride;  // of the input, in numbers
    int32_t type;  // of all three
    int32_t form;
    int32_t num_threads;
    float epsilon;
};

enum Activation : int32_t { SILU = 0, GELU_TANH = 1 };

// output = activation(gate) * up, number by number, the activation being rounded before.
struct Gate {
    const void *gate, *up;
    void *output;
    int64_t count;
    int32_t type;
    int32_t activation;
    int32_t num_threads;
};

// output (T, H, W) = input (T, H, W), whose first half of numbers are turned with the second: x cos - y sin and
// y cos + x sin, products and sums being rounded one by one.
struct Rotation {
    const void *input;
    const void *cosines, *sines;  // (T, W)
    void *output;
    int64_t token_stride, head_stride;  // of the input, in numbers
    int64_t num_tokens, num_heads, width;
    int32_t type;  // of all four
    int32_t num_threads;
};

// output = first + second, number by number.
struct Sum {
    const void *first, *second;
    void *output;
    int64_t count;
    int32_t type;  // of all three
    int32_t num_threads;
};

}  // namespace headrace

extern "C" void headrace_rms_norm(const headrace::RmsNorm *call);
extern "C" void headrace_gate(const headrace::Gate *call);
extern "C" void headrace_rotate(const headrace::Rotation *call);
extern "C" void headrace_add(const headrace::Sum *call);
