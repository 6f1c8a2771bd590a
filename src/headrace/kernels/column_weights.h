// Panels of weights that lie column by column, (inputs, outputs): an input's outputs next to each other, as in GPT-2's layers
// and gpt-oss's experts. Nothing is to be turned.
#pragma once

#include <algorithm>

#include "linear.h"
#include "panels.h"

namespace headrace {

// Some lines of each of the next panel's inputs, PER_WORD inputs at a time.
template <int PER_WORD>
struct NextColumns {
    const char *first;
    int64_t input_bytes;
    int count;

    [[gnu::always_inline]] void ask_for(int word) const {
#pragma GCC unroll 2
        for (int i = 0; i < PER_WORD; i++) ask_for_lines(first + (word * PER_WORD + i) * input_bytes, count);
    }
};

// Writes `count` numbers of an input as words; of pairs the second ones are those of the next input, if there is one.
template <class Element>
void write_inputs(const Element *from, const Element *, int count, float *to, float) {
    write_words(from, count, to, float());
}
inline void write_inputs(const bfloat16 *from, const bfloat16 *next, int count, float *to, bfloat16) {
    int n = 0;
    for (; n + LANES <= count; n += LANES) store(to + n, paired(from + n, next ? next + n : nullptr));
    for (; n < count; n++) {
        const bfloat16 pair[2] = {from[n], next ? next[n] : bfloat16{0}};
        std::memcpy(to + n, pair, sizeof(pair));
    }
}

// Weights of a panel's outputs, from some input on.
template <class Number, class Element>
class ColumnWeights {
   public:
    static constexpr bool ARE_FORESEEN = false;

    static constexpr int PER_WORD = numbers_per_word<Number>();

    ColumnWeights(const Outputs<PlainWeight> &outputs, int64_t input, int64_t)
        : stride_(outputs.of.stride),
          first_(static_cast<const Element *>(outputs.of.weight) + input * stride_ + outputs.first),
          num_outputs_(outputs.count) {}

    // What the panel has beyond the outputs is zeros. As many inputs behind these are asked for here, too: processors foresee
    // nothing where every input is far from the one before.
    const float *panel(float *memory, int num_inputs, bool) const {
        const auto next = behind(num_inputs, 0, 1);
        for (int k = 0, word = 0; k < num_inputs; k += PER_WORD, word++) {
            next.ask_for(word);
            float *to = memory + word * PANEL_OUTPUTS;
            const Element *from = first_ + k * stride_;
            write_inputs(from, k + 1 < num_inputs ? from + stride_ : nullptr, num_outputs_, to, Number());
            std::fill(to + num_outputs_, to + PANEL_OUTPUTS, 0.0f);
        }
        return memory;
    }
    // What tile `tile` of `num_tiles` is to ask for of as many inputs behind the first `num_inputs`.
    NextColumns<PER_WORD> behind(int num_inputs, int64_t tile, int64_t num_tiles) const {
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
