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
constexpr int64_t TILES_AT_ONCE = 84;  // their numbers and sums stay in the second cache

// ---- where panels come from -----------------------------------------------------------------------------------------

template <class Element>
struct Rows {
    const Linear &call;

    int inputs_at_once(int wanted) const { return wanted; }
    void fill(int64_t output, int num_outputs, int64_t input, int num_inputs, float *panel) const {
        const Element *first = static_cast<const Element *>(call.weight) + output * call.weight_stride + input;
        fill_panel(first, call.weight_stride, num_outputs, num_inputs, panel);
    }
    void add(int64_t, int64_t, const float *tokens, int count, const float *panel, int num_inputs, float *sums) const {
        add_products(tokens, count, panel, num_inputs, sums);
    }
};

struct Int4Groups {
    const Linear &call;

    int64_t num_groups() const { return (call.num_inputs + call.group_inputs - 1) / call.group_inputs; }
    int inputs_at_once(int wanted) const { return std::max(1, wanted / call.group_inputs) * call.group_inputs; }
    Int4Group at(int64_t output, int64_t group) const {
        const int64_t index = output / PACKED_OUTPUTS * num_groups() + group;
        return {static_cast<const uint8_t *>(call.weight) + index * int4_group_bytes(call.group_inputs),
                static_cast<int>(output % PACKED_OUTPUTS), call.group_inputs};
    }
    // Calls `use` with each group from `input` on, and how many inputs are before it and in it.
    template <class Use>
    void each_group(int64_t output, int64_t input, int num_inputs, Use use) const {
        for (int before = 0; before < num_inputs; before += call.group_inputs)
            use(at(output, (input + before) / call.group_inputs), before, std::min(call.group_inputs, num_inputs - before));
    }
    void fill(int64_t output, int, int64_t input, int num_inputs, float *panel) const {
        each_group(output, input, num_inputs, [&](const Int4Group &group, int before, int) {
            fill_panel_from_int4(group, panel + before * PANEL_OUTPUTS);
        });
    }
    void add(int64_t output, int64_t input, const float *tokens, int count, const float *panel, int num_inputs,
             float *sums) const {
        each_group(output, input, num_inputs, [&](const Int4Group &group, int before, int inputs) {
            add_panel_products(tokens + before * count, count, panel + before * PANEL_OUTPUTS, inputs, group.scales, sums);
        });
    }
};

// ---- the product ----------------------------------------------------------------------------------------------------

template <class Element>
void give(const Linear &call, int64_t first_token, int64_t num_tokens, int64_t first_output, int num_outputs,
          const float *sums) {
    const Element *bias = call.bias ? static_cast<const Element *>(call.bias) + first_output : nullptr;
    for (int64_t t = 0; t < num_tokens; t++) {
        const float *from = sums + t * PANEL_OUTPUTS;
        Element *to = static_cast<Element *>(call.output) + (first_token + t) * call.num_outputs + first_output;
        int n = 0;
        for (; n + LANES <= num_outputs; n += LANES) store(to + n, bias ? load(from + n) + load(bias + n) : load(from + n));
        for (; n < num_outputs; n++) narrow(from[n] + (bias ? widened(bias[n]) : 0.0f), to + n);
    }
}

template <class Element, class Source>
void multiply(const Linear &call, const Source &source) {
    const int64_t num_tiles = (call.num_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    const int64_t num_turns = (num_tiles + TILES_AT_ONCE - 1) / TILES_AT_ONCE;
    const int64_t num_panels = (call.num_outputs + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS;
    const int at_once = source.inputs_at_once(call.num_tokens <= FEW_TOKENS ? FEW_INPUTS : MANY_INPUTS);
    const Scratch<float> tokens = scratch<float>(call.num_tokens * call.num_inputs);
#pragma omp parallel num_threads(call.num_threads)
    {
#pragma omp for
        for (int64_t i = 0; i < num_tiles; i++) {
            const Tile tile(call.num_tokens, num_tiles, i);
            interleave(static_cast<const Element *>(call.input) + tile.first * call.num_inputs, call.num_inputs, tile.count,
                       tokens.get() + tile.first * call.num_inputs);
        }
        const Scratch<float> panel = scratch<float>(at_once * PANEL_OUTPUTS);
        const Scratch<float> sums = scratch<float>(std::min(num_tiles, TILES_AT_ONCE) * TILE_TOKENS * PANEL_OUTPUTS);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < num_panels; i++) {
            const int64_t output = i * PANEL_OUTPUTS;
            const int num_outputs = static_cast<int>(std::min<int64_t>(PANEL_OUTPUTS, call.num_outputs - output));
            for (int64_t turn = 0; turn < num_turns; turn++) {
                const int64_t first = num_tiles * turn / num_turns, stop = num_tiles * (turn + 1) / num_turns;
                const int64_t first_token = Tile(call.num_tokens, num_tiles, first).first;
                const int64_t stop_token = Tile(call.num_tokens, num_tiles, stop).first;
                std::fill(sums.get(), sums.get() + (stop_token - first_token) * PANEL_OUTPUTS, 0.0f);
                for (int64_t input = 0; input < call.num_inputs; input += at_once) {
                    const int num_inputs = static_cast<int>(std::min<int64_t>(at_once, call.num_inputs - input));
                    source.fill(output, num_outputs, input, num_inputs, panel.get());
                    for (int64_t t = first; t < stop; t++) {
                        const Tile tile(call.num_tokens, num_tiles, t);
                        source.add(output, input, tokens.get() + tile.first * call.num_inputs + input * tile.count,
                                   tile.count, panel.get(), num_inputs,
                                   sums.get() + (tile.first - first_token) * PANEL_OUTPUTS);
                    }
                }
                give<Element>(call, first_token, stop_token - first_token, output, num_outputs, sums.get());
            }
        }
    }
}

// The same for one small tile of tokens, without panels.
template <class Element>
void multiply_few(const Linear &call, const Int4Groups &source) {
    const int count = static_cast<int>(call.num_tokens);
    const int64_t padded_inputs = source.num_groups() * call.group_inputs;
    const int64_t num_panels = (call.num_outputs + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS;
    const Scratch<float> tokens = scratch<float>(count * padded_inputs);
    interleave(static_cast<const Element *>(call.input), call.num_inputs, count, tokens.get());
    std::fill(tokens.get() + count * call.num_inputs, tokens.get() + count * padded_inputs, 0.0f);
#pragma omp parallel for num_threads(call.num_threads) schedule(dynamic)
    for (int64_t i = 0; i < num_panels; i++) {
        const int64_t output = i * PANEL_OUTPUTS;
        float sums[INT4_FEW_TOKENS * PANEL_OUTPUTS] = {};
        for (int64_t group = 0; group < source.num_groups(); group++)
            add_group_products(tokens.get() + group * call.group_inputs * count, count, source.at(output, group), sums);
        give<Element>(call, 0, count, output, static_cast<int>(std::min<int64_t>(PANEL_OUTPUTS, call.num_outputs - output)),
                      sums);
    }
}

template <class Element>
void multiply_int4(const Linear &call) {
    const Int4Groups source{call};
    return call.num_tokens <= INT4_FEW_TOKENS ? multiply_few<Element>(call, source) : multiply<Element>(call, source);
}

template <class Element>
void multiply_with(const Linear &call) {
    switch (call.weight_type) {
        case FLOAT32: return multiply<Element>(call, Rows<float>{call});
        case BFLOAT16: return multiply<Element>(call, Rows<bfloat16>{call});
        case FLOAT16: return multiply<Element>(call, Rows<float16>{call});
        case INT4: return multiply_int4<Element>(call);
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_linear(const headrace::Linear *call) {
    switch (call->type) {
        case headrace::FLOAT32: return headrace::multiply_with<float>(*call);
        case headrace::BFLOAT16: return headrace::multiply_with<headrace::bfloat16>(*call);
        case headrace::FLOAT16: return headrace::multiply_with<headrace::float16>(*call);
    }
}
