// Products of tokens with weights of any precision, in fp32.
//
// Weights are widened into panels, once for all tokens. A token's result is summed over the inputs one after another, so
// it is bitwise the same alone or among others.
#include "linear.h"

#include <algorithm>

#include "int4_panels.h"
#include "panels.h"
#include "scratch.h"

namespace headrace {
namespace {

// Inputs of a panel: with few tokens it stays in the first cache, with many it is to last for longer.
constexpr int FEW_TOKENS = 16, FEW_INPUTS = 64, MANY_INPUTS = 256;

// ---- where panels come from -----------------------------------------------------------------------------------------

template <class Element>
struct Rows {
    const Linear &call;

    int inputs_at_once(int wanted) const { return wanted; }
    void fill(int64_t output, int num_outputs, int64_t input, int num_inputs, float *panel) const {
        const Element *first = static_cast<const Element *>(call.weight) + output * call.weight_stride + input;
        fill_panel(first, call.weight_stride, num_outputs, num_inputs, panel);
    }
};

struct Int4Groups {
    const Linear &call;

    int inputs_at_once(int wanted) const { return std::max(1, wanted / call.group_inputs) * call.group_inputs; }
    void fill(int64_t output, int, int64_t input, int num_inputs, float *panel) const {
        const int64_t groups = (call.num_inputs + call.group_inputs - 1) / call.group_inputs;
        const int64_t group = output / PACKED_OUTPUTS * groups + input / call.group_inputs;
        fill_panel_from_int4(static_cast<const uint8_t *>(call.weight) + group * int4_group_bytes(call.group_inputs),
                             static_cast<int>(output % PACKED_OUTPUTS),
                             (num_inputs + call.group_inputs - 1) / call.group_inputs, call.group_inputs, panel);
    }
};

// ---- the product ----------------------------------------------------------------------------------------------------

template <class Output>
void give(const Linear &call, int64_t first_output, int num_outputs, const float *sums) {
    const Output *bias = call.bias ? static_cast<const Output *>(call.bias) + first_output : nullptr;
    for (int64_t t = 0; t < call.num_tokens; t++) {
        const float *from = sums + t * PANEL_OUTPUTS;
        Output *to = static_cast<Output *>(call.output) + t * call.num_outputs + first_output;
        int n = 0;
        for (; n + LANES <= num_outputs; n += LANES) store(to + n, bias ? load(from + n) + load(bias + n) : load(from + n));
        for (; n < num_outputs; n++) narrow(from[n] + (bias ? widened(bias[n]) : 0.0f), to + n);
    }
}

template <class Output, class Source>
void multiply(const Linear &call, const Source &source) {
    const int64_t num_panels = (call.num_outputs + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS;
    const int at_once = source.inputs_at_once(call.num_tokens <= FEW_TOKENS ? FEW_INPUTS : MANY_INPUTS);
#pragma omp parallel num_threads(call.num_threads)
    {
        const Scratch<float> panel = scratch<float>(at_once * PANEL_OUTPUTS);
        const Scratch<float> sums = scratch<float>(call.num_tokens * PANEL_OUTPUTS);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < num_panels; i++) {
            const int64_t output = i * PANEL_OUTPUTS;
            const int num_outputs = static_cast<int>(std::min<int64_t>(PANEL_OUTPUTS, call.num_outputs - output));
            std::fill(sums.get(), sums.get() + call.num_tokens * PANEL_OUTPUTS, 0.0f);
            for (int64_t input = 0; input < call.num_inputs; input += at_once) {
                const int num_inputs = static_cast<int>(std::min<int64_t>(at_once, call.num_inputs - input));
                source.fill(output, num_outputs, input, num_inputs, panel.get());
                add_products(call.input + input, call.num_inputs, call.num_tokens, panel.get(), num_inputs, sums.get());
            }
            give<Output>(call, output, num_outputs, sums.get());
        }
    }
}

template <class Output>
void multiply_into(const Linear &call) {
    switch (call.weight_type) {
        case FLOAT32: return multiply<Output>(call, Rows<float>{call});
        case BFLOAT16: return multiply<Output>(call, Rows<bfloat16>{call});
        case FLOAT16: return multiply<Output>(call, Rows<float16>{call});
        case INT4: return multiply<Output>(call, Int4Groups{call});
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_linear(const headrace::Linear *call) {
    switch (call->output_type) {
        case headrace::FLOAT32: return headrace::multiply_into<float>(*call);
        case headrace::BFLOAT16: return headrace::multiply_into<headrace::bfloat16>(*call);
        case headrace::FLOAT16: return headrace::multiply_into<headrace::float16>(*call);
    }
}
