// Panels of weights that lie row by row, as in checkpoints: an output's inputs next to each other.
#pragma once

#include <algorithm>
#include <cstring>

#include "linear.h"
#include "panels.h"

namespace headrace {

// Writes the words of LANES columns of `Element` to a panel with words of `Number`.
template <class Number, class Element>
void spread(const Floats *columns, float *panel) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        if constexpr (std::is_same_v<Number, Element>) {
            store(panel + i * PANEL_OUTPUTS, columns[i]);
        } else {
            store(panel + 2 * i * PANEL_OUTPUTS, evens(columns[i], Element()));
            store(panel + (2 * i + 1) * PANEL_OUTPUTS, odds(columns[i], Element()));
        }
    }
}

// LANES outputs and as many words of inputs, read as if they were fp32 and turned.
template <class Number, class Element>
void turn(const Element *rows, int64_t stride, float *panel) {
    Floats words[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) words[i] = load(reinterpret_cast<const float *>(rows + i * stride));
    transpose(words);
    spread<Number, Element>(words, panel);
}

// Some lines of each row of the next panel.
struct NextLines {
    static constexpr int MOST = 4;

    const char *first;
    int64_t row_bytes;
    int count;

    // Those that are left to tile `index` of `number`, of `num_inputs` of rows that lie `stride` numbers apart.
    template <class Element>
    NextLines(const Element *rows, int64_t stride, int num_inputs, int64_t index, int64_t number)
        : row_bytes(stride * sizeof(Element)) {
        const int64_t all = num_inputs * sizeof(Element) / LINE_BYTES;
        const int64_t each = std::min<int64_t>((all + number - 1) / number, MOST);
        first = reinterpret_cast<const char *>(rows) + index * each * LINE_BYTES;
        count = static_cast<int>(std::clamp<int64_t>(all - index * each, 0, each));
    }
    [[gnu::always_inline]] void ask_for(int word) const { ask_for_lines(first + word % PANEL_OUTPUTS * row_bytes, count); }
};

// Weights of a panel's outputs, from some input on.
template <class Number, class Element>
class RowWeights {
   public:
    static constexpr bool ARE_FORESEEN = false;

    RowWeights(const Outputs<PlainWeight> &outputs, int64_t input, int64_t)
        : stride_(outputs.of.stride),
          rows_(static_cast<const Element *>(outputs.of.weight) + outputs.first * stride_ + input),
          num_outputs_(outputs.count) {}

    // Writes a panel and returns it. What it has beyond `num_inputs` and the outputs is zeros; there is room for words up to
    // a multiple of 2 * LANES. Where it `asks`, what lies behind these inputs is asked for, row by row.
    const float *panel(float *memory, int num_inputs, bool asks) const {
        constexpr int STEP = LANES * numbers_per_word<Element>();
        for (int n = 0; n < PANEL_OUTPUTS; n += LANES) {
            const int outputs = std::max(0, std::min(LANES, num_outputs_ - n));
            for (int k = 0; k < num_inputs; k += STEP) {
                const int inputs = std::min(STEP, num_inputs - k);
                const Element *from = rows_ + n * stride_ + k;
                float *to = memory + k / numbers_per_word<Number>() * PANEL_OUTPUTS + n;
                if (outputs == LANES && inputs == STEP) {
                    turn<Number>(from, stride_, to);
                    if (asks)
                        for (int i = 0; i < LANES; i++)
                            _mm_prefetch(reinterpret_cast<const char *>(from + i * stride_ + num_inputs), _MM_HINT_T1);
                    continue;
                }
                Element padded[LANES * STEP] = {};
                for (int i = 0; i < outputs; i++) std::memcpy(padded + i * STEP, from + i * stride_, inputs * sizeof(Element));
                turn<Number>(padded, STEP, to);
            }
        }
        return memory;
    }
    // What tile `tile` of `num_tiles` is to ask for of as many inputs behind the first `num_inputs`.
    NextLines behind(int num_inputs, int64_t tile, int64_t num_tiles) const {
        return NextLines(rows_ + num_inputs, stride_, num_inputs, tile, num_tiles);
    }

   private:
    int64_t stride_;
    const Element *rows_;
    int num_outputs_;
};

}  // namespace headrace
