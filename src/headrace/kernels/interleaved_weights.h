// Panels of weights that were interleaved: nothing is left to be turned, and memory is read from one end to the other,
// which processors foresee.
//
// Of INTERLEAVED_OUTPUTS outputs, which the number of outputs is a multiple of, the numbers of an input lie next to each
// other, in half precision those of two inputs: Element weight[N / 64][K / P][64][P], P of them in 32 bits.
#pragma once

#include "linear.h"
#include "panels.h"

namespace headrace {

constexpr int INTERLEAVED_OUTPUTS = 64;
static_assert(INTERLEAVED_OUTPUTS % PANEL_OUTPUTS == 0);

inline void widen_words(const float *words, float *panel, float) { store(panel, load(words)); }
template <class Half>
void widen_words(const float *words, float *panel, Half) {
    const Floats both = load(words);
    store(panel, evens(both, Half()));
    store(panel + PANEL_OUTPUTS, odds(both, Half()));
}

// Weights of a panel's outputs, from some input on.
template <class Number, class Element>
class InterleavedWeights {
    static constexpr int PER_WORD = numbers_per_word<Element>();
    static constexpr bool IS_PANEL = std::is_same_v<Number, Element> && PANEL_OUTPUTS == INTERLEAVED_OUTPUTS;

   public:
    static constexpr bool ARE_FORESEEN = IS_PANEL;  // by a processor that meets them once: asking takes a tenth longer

    InterleavedWeights(const Outputs<PlainWeight> &outputs, int64_t input, int64_t num_inputs) {
        const int64_t first = outputs.first % INTERLEAVED_OUTPUTS;
        first_ = static_cast<const Element *>(outputs.of.weight) + (outputs.first - first) * num_inputs +
                 input * INTERLEAVED_OUTPUTS + first * PER_WORD;
    }
    // Returns the panel: where it lies, or widened in `memory`.
    const float *panel(float *memory, int num_inputs, bool) const {
        const float *words = reinterpret_cast<const float *>(first_);
        if constexpr (IS_PANEL) return words;
        for (int k = 0; k < num_inputs; k += PER_WORD, words += INTERLEAVED_OUTPUTS)
#pragma GCC unroll 4
            for (int n = 0; n < PANEL_OUTPUTS; n += LANES)
                widen_words(words + n, memory + k * PANEL_OUTPUTS + n, Element());
        return memory;
    }
    // What tile `tile` of `num_tiles` is to ask for of as many inputs behind the first `num_inputs`.
    NextBytes behind(int num_inputs, int64_t tile, int64_t num_tiles) const {
        constexpr int64_t WORD_INPUTS = numbers_per_word<Number>(), BYTES = INTERLEAVED_OUTPUTS * sizeof(Element) * WORD_INPUTS;
        return share_of(first_ + num_inputs * INTERLEAVED_OUTPUTS, BYTES, num_inputs / WORD_INPUTS, tile, num_tiles,
                        IS_PANEL && ask_for_much(num_tiles));
    }

   private:
    const Element *first_;
};

}  // namespace headrace
