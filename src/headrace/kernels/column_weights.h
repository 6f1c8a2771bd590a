// Panels of weights that lie column by column, (inputs, outputs): an input's outputs next to each other, as in GPT-2's layers
// and gpt-oss's experts. Nothing is to be turned.
#pragma once

#include <algorithm>

#include "linear.h"
#include "panels.h"

namespace headrace {

// Some lines of each of the next panel's inputs.
struct NextColumns {
    const char *first;
    int64_t input_bytes;
    int count;

    [[gnu::always_inline]] void ask_for(int input) const { ask_for_lines(first + input * input_bytes, count); }
};

// Weights of a panel's outputs, from some input on.
template <class Element>
class ColumnWeights {
   public:
    ColumnWeights(const Outputs<PlainWeight> &outputs, int64_t input, int64_t)
        : stride_(outputs.of.stride),
          first_(static_cast<const Element *>(outputs.of.weight) + input * stride_ + outputs.first),
          num_outputs_(outputs.count) {}

    // What the panel has beyond the outputs is zeros. As many inputs behind these are asked for here, too: processors foresee
    // nothing where every input is far from the one before.
    void fill(float *panel, int num_inputs, bool) const {
        const NextColumns next = behind(num_inputs, 0, 1);
        for (int k = 0; k < num_inputs; k++) {
            next.ask_for(k);
            widen(first_ + k * stride_, num_outputs_, panel + k * PANEL_OUTPUTS);
            std::fill(panel + k * PANEL_OUTPUTS + num_outputs_, panel + (k + 1) * PANEL_OUTPUTS, 0.0f);
        }
    }
    // What tile `tile` of `num_tiles` is to ask for of as many inputs behind the first `num_inputs`.
    NextColumns behind(int num_inputs, int64_t tile, int64_t num_tiles) const {
        constexpr int64_t ALL = PANEL_OUTPUTS * sizeof(Element) / LINE_BYTES;
        const int64_t each = (ALL + num_tiles - 1) / num_tiles;
        return {reinterpret_cast<const char *>(first_ + num_inputs * stride_) + tile * each * LINE_BYTES,
                stride_ * static_cast<int64_t>(sizeof(Element)),
                static_cast<int>(std::clamp<int64_t>(ALL - tile * each, 0, each))};
    }

   private:
    int64_t stride_;
    const Element *first_;
    int num_outputs_;
};

}  // namespace headrace
