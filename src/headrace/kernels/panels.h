// Products of tokens and a panel: the weights of PANEL_OUTPUTS outputs, all outputs of an input next to each other.
//
// Tokens and panels have words of 32 bits: a number in fp32, or a pair of bfloat16 where processors multiply those, of which
// the second is zero behind an odd number of inputs.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "ahead.h"
#include "floats.h"
#include "tiles.h"

namespace headrace {

constexpr int PANEL_VECTORS = LANES / 4;  // with TILE_TOKENS tokens' sums, what the registers hold
constexpr int PANEL_OUTPUTS = PANEL_VECTORS * LANES;
constexpr int TILE_TOKENS = 6;

template <class Element>
constexpr int inputs_per_word() { return 4 / sizeof(Element); }

#if defined(__AVX512BF16__)
constexpr bool MULTIPLIES_PAIRS = true;
inline Floats fma_of_words(Floats a, Floats b, Floats c, bfloat16) { return fma_of_pairs(a, b, c); }
#else
constexpr bool MULTIPLIES_PAIRS = false;
#endif
inline Floats fma_of_words(Floats a, Floats b, Floats c, float) { return fma(a, b, c); }

// What words have of tokens of one type and weights of another.
template <class Element, class Weight>
using Multiplied = std::conditional_t<
    MULTIPLIES_PAIRS && std::is_same_v<Element, bfloat16> && std::is_same_v<Weight, bfloat16>, bfloat16, float>;

// Writes `count` numbers as words.
template <class Element>
void write_words(const Element *from, int count, float *to, float) {
    int k = 0;
    for (; k + LANES <= count; k += LANES) store(to + k, load(from + k));
    for (; k < count; k++) to[k] = widened(from[k]);
}
inline void write_words(const bfloat16 *from, int count, float *to, bfloat16) {
    if (count % 2) to[count / 2] = 0.0f;
    std::memcpy(to, from, count * sizeof(bfloat16));
}

// Adds the products of tokens, AT_ONCE words of `Number` apart, with `num_words` of a panel's to `sums`, PANEL_OUTPUTS of
// each token, in the order of the words: the same for any number of tokens, and wherever the inputs are cut.
template <int AT_ONCE, class Number, class Next>
inline void add_products(const float *tokens, int count, const float *panel, int num_words, float *sums, Next next) {
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
                const Floats number = every(tokens[t * AT_ONCE + k]);
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
