// Tokens and inputs, cut so that what is used again stays in caches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tiles.h"

namespace headrace {

constexpr int FEW_TOKENS = 96;  // up to here reading weights takes longest, or is to be hidden

// Calls `use` with the call for some of its tokens, until all have had their turn: for so many that their sums stay in the
// second cache, and that the memory they are rewritten in is not large, which the system would zero anew for each call.
template <int TILE_TOKENS, class Element, class Call, class Use>
void in_rounds(const Call &call, Use use) {
    constexpr int64_t MOST_TOKENS = 88 * TILE_TOKENS;
    const int64_t num_rounds = (call.num_tokens + MOST_TOKENS - 1) / MOST_TOKENS;
    for (int64_t round = 0; round < num_rounds; round++) {
        const Tile tokens(call.num_tokens, num_rounds, round);
        Call of_round = call;
        of_round.num_tokens = tokens.count;
        of_round.input = static_cast<const Element *>(call.input) + tokens.first * call.num_inputs;
        for (int i = 0; i < call.num_weights; i++)
            of_round.weights[i].output =
                static_cast<Element *>(call.weights[i].output) + tokens.first * call.weights[i].num_outputs;
        use(of_round);
    }
}

// A tile of tokens at some inputs: the `index`th of `number` that come by.
struct Turn {
    Tile tile, next;  // the last is its own next
    int64_t index, number;
};

// Inputs are cut by AT_ONCE: the weights of a cut stay in the first cache while tiles of tokens come by.
template <int TILE_TOKENS, int AT_ONCE>
struct Blocks {
    int64_t num_tokens, num_inputs;
    int64_t num_tiles = (num_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    int64_t num_cuts = (num_inputs + AT_ONCE - 1) / AT_ONCE;

    // Tokens' numbers lie cut by cut, AT_ONCE of each token: how many there is room for, and where some begin.
    int64_t num_numbers() const { return num_cuts * num_tokens * AT_ONCE; }
    int64_t place(int64_t token, int64_t cut) const { return (cut * num_tokens + token) * AT_ONCE; }
    int inputs_of(int64_t cut) const { return static_cast<int>(std::min<int64_t>(AT_ONCE, num_inputs - cut * AT_ONCE)); }

    // Calls for each cut what `add_of(cut)` returns with the Turn of each tile.
    template <class AddOf>
    void visit(AddOf add_of) const {
        const auto tile = [&](int64_t index) { return Tile(num_tokens, num_tiles, index); };
        for (int64_t cut = 0; cut < num_cuts; cut++) {
            const auto add = add_of(cut);
            for (int64_t t = 0; t < num_tiles; t++) add(Turn{tile(t), tile(std::min(t + 1, num_tiles - 1)), t, num_tiles});
        }
    }
};

}  // namespace headrace
