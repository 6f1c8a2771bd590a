// Products of tokens and a panel: the weights of PANEL_OUTPUTS outputs as fp32, all outputs of an input next to each other.
#pragma once

#include <algorithm>

#include "floats.h"
#include "tiles.h"

namespace headrace {

constexpr int PANEL_VECTORS = LANES / 4;  // with TILE_TOKENS tokens' sums, what the registers hold
constexpr int PANEL_OUTPUTS = PANEL_VECTORS * LANES;
constexpr int TILE_TOKENS = 6;

// Writes the numbers of a tile's tokens in fp32, those of an input next to each other.
template <class Element>
void interleave(const Element *tokens, int64_t num_inputs, int count, float *to) {
    for (int t = 0; t < count; t++)
        for (int64_t k = 0; k < num_inputs; k++) to[k * count + t] = widened(tokens[t * num_inputs + k]);
}

// Some lines of each row of the weights that make the next panel. They are asked for one after another while products are
// added, since memory would rest then, and only so many can be on their way at a time.
struct NextLines {
    static constexpr int LINE_BYTES = 64, MOST = 4;

    const char *first = nullptr;
    int64_t row_bytes = 0;
    int count = 0;

    NextLines() = default;
    // Those that are left to tile `index` of `number`.
    template <class Element>
    NextLines(const Element *rows, int64_t stride, int num_inputs, int64_t index, int64_t number)
        : row_bytes(stride * sizeof(Element)) {
        const int64_t all = num_inputs * sizeof(Element) / LINE_BYTES, each = std::min<int64_t>((all + number - 1) / number, MOST);
        first = reinterpret_cast<const char *>(rows) + index * each * LINE_BYTES;
        count = static_cast<int>(std::clamp<int64_t>(all - index * each, 0, each));
    }
    // GCC drops calls of what only prefetches, unless it is inlined.
    [[gnu::always_inline]] void ask_for(int row) const {
        const char *line = first + row * row_bytes;
        if (count > 0) _mm_prefetch(line, _MM_HINT_T1);
        if (count > 1) _mm_prefetch(line + LINE_BYTES, _MM_HINT_T1);
        if (count > 2) _mm_prefetch(line + 2 * LINE_BYTES, _MM_HINT_T1);
        if (count > 3) _mm_prefetch(line + 3 * LINE_BYTES, _MM_HINT_T1);
    }
};

// Adds the products of interleaved tokens with `num_inputs` inputs of a panel to `sums`, PANEL_OUTPUTS of each token, in
// the order of the inputs: the same for any number of tokens, and wherever the inputs are cut.
inline void add_products(const float *tokens, int count, const float *panel, int num_inputs, float *sums, NextLines next) {
    with_count<TILE_TOKENS>(count, [&](auto constant) {
        constexpr int TOKENS = decltype(constant)::value;
        Floats added[TOKENS][PANEL_VECTORS];
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
            for (int j = 0; j < PANEL_VECTORS; j++) added[t][j] = load(sums + t * PANEL_OUTPUTS + j * LANES);
        for (int k = 0; k < num_inputs; k++) {
            next.ask_for(k % PANEL_OUTPUTS);
            Floats weights[PANEL_VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < PANEL_VECTORS; j++) weights[j] = load(panel + k * PANEL_OUTPUTS + j * LANES);
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
                const Floats number = every(tokens[k * TOKENS + t]);
#pragma GCC unroll 4
                for (int j = 0; j < PANEL_VECTORS; j++) added[t][j] = fma(number, weights[j], added[t][j]);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
            for (int j = 0; j < PANEL_VECTORS; j++) store(sums + t * PANEL_OUTPUTS + j * LANES, added[t][j]);
    });
}

// Panels are made of weights that lie row by row, an output's inputs next to each other.

template <class Element>
constexpr int inputs_per_word() { return 4 / sizeof(Element); }

inline void spread(const Floats *columns, float *panel, float) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(panel + i * PANEL_OUTPUTS, columns[i]);
}
template <class Half>
void spread(const Floats *columns, float *panel, Half) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        store(panel + 2 * i * PANEL_OUTPUTS, evens(columns[i], Half()));
        store(panel + (2 * i + 1) * PANEL_OUTPUTS, odds(columns[i], Half()));
    }
}

// LANES outputs and as many words of inputs, read as if they were fp32 and turned.
template <class Element>
void turn(const Element *rows, int64_t stride, float *panel) {
    Floats words[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) words[i] = load(reinterpret_cast<const float *>(rows + i * stride));
    transpose(words);
    spread(words, panel, Element());
}

// Inputs first .. first + num_inputs of `num_outputs` rows; what the panel has beyond these is zeros. A panel has room for
// inputs up to a multiple of 2 * LANES. Where it `asks`, what lies behind these inputs is asked for, row by row.
template <class Element>
void fill_panel(const Element *rows, int64_t stride, int num_outputs, int num_inputs, float *panel, bool asks) {
    constexpr int STEP = LANES * inputs_per_word<Element>();
    for (int n = 0; n < PANEL_OUTPUTS; n += LANES) {
        const int outputs = std::max(0, std::min(LANES, num_outputs - n));
        for (int k = 0; k < num_inputs; k += STEP) {
            const int inputs = std::min(STEP, num_inputs - k);
            const Element *from = rows + n * stride + k;
            float *to = panel + k * PANEL_OUTPUTS + n;
            if (outputs == LANES && inputs == STEP) {
                turn(from, stride, to);
                if (asks)
                    for (int i = 0; i < LANES; i++)
                        _mm_prefetch(reinterpret_cast<const char *>(from + i * stride + num_inputs), _MM_HINT_T1);
                continue;
            }
            Element padded[LANES * STEP] = {};
            for (int i = 0; i < outputs; i++) std::memcpy(padded + i * STEP, from + i * stride, inputs * sizeof(Element));
            turn(padded, STEP, to);
        }
    }
}

}  // namespace headrace
