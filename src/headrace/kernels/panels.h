// Products of tokens and a panel: the weights of PANEL_OUTPUTS outputs, all outputs of an input next to each other.
//
// Tokens and panels have words (words.h).
#pragma once

#include <algorithm>

#include "ahead.h"
#include "floats.h"
#include "tiles.h"
#include "words.h"

namespace headrace {

constexpr int PANEL_VECTORS = LANES / 4;  // with TILE_TOKENS tokens' sums, what the registers hold
constexpr int PANEL_OUTPUTS = PANEL_VECTORS * LANES;
constexpr int TILE_TOKENS = 6;

// Adds the products of tokens, `stride` words of `Number` apart, with `num_words` of a panel's to `sums`, PANEL_OUTPUTS of
// each token, in the order of the words: the same for any number of tokens, and wherever the inputs are cut.
template <class Number, class Next>
inline void add_products(const float *tokens, int64_t stride, int count, const float *panel, int num_words, float *sums, Next next) {
    with_count<TILE_TOKENS>(count, [&](auto constant) {
        constexpr int TOKENS = decltype(constant)::value;
        Floats added[TOKENS][PANEL_VECTORS];
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
            for (int j = 0; j < PANEL_VECTORS; j++) added[t][j] = load(sums + t * PANEL_OUTPUTS + j * LANES);
        for (int k = 0; k < num_words; k++) {
            next.ask_for(k);
            Floats weights[PANEL_VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < PANEL_VECTORS; j++) weights[j] = load(panel + k * PANEL_OUTPUTS + j * LANES);
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
                const Floats number = every(tokens[t * stride + k]);
#pragma GCC unroll 4
                for (int j = 0; j < PANEL_VECTORS; j++) added[t][j] = fma_of_words(number, weights[j], added[t][j], Number());
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
            for (int j = 0; j < PANEL_VECTORS; j++) store(sums + t * PANEL_OUTPUTS + j * LANES, added[t][j]);
    });
}

}  // namespace headrace
