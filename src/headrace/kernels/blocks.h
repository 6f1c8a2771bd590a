// Tokens and inputs, cut so that what is used again stays in caches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tiles.h"

namespace headrace {

constexpr int FEW_TOKENS = 96;  // up to here reading weights takes longest, or is to be hidden

// A tile of tokens at some inputs: the `index`th of `number` that come by.
struct Turn {
    Tile tile, next;  // the last is its own next
    int64_t index, number;
    int64_t first_token;  // of those whose sums are kept
};

// Inputs are cut by AT_ONCE. The weights of a cut stay in the first cache while tiles of tokens come by; the sums of no more
// tiles than stay in the second are kept while cuts do.
template <int TILE_TOKENS, int AT_ONCE>
struct Blocks {
    static constexpr int64_t MOST_TILES = 84;

    int64_t num_tokens, num_inputs;
    int64_t num_tiles = (num_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    int64_t num_cuts = (num_inputs + AT_ONCE - 1) / AT_ONCE;

    // Tokens' numbers lie cut by cut, AT_ONCE of each token: how many there is room for, and where some begin.
    int64_t num_numbers() const { return num_cuts * num_tokens * AT_ONCE; }
    int64_t place(int64_t token, int64_t cut) const { return (cut * num_tokens + token) * AT_ONCE; }
    int inputs_of(int64_t cut) const { return static_cast<int>(std::min<int64_t>(AT_ONCE, num_inputs - cut * AT_ONCE)); }
    // Of how many tokens sums are kept.
    int64_t num_kept() const { return std::min(num_tiles, MOST_TILES) * TILE_TOKENS; }

    // Calls `begin()`, then for each cut what `add_of(cut)` returns with the Turn of each tile, then `finish(first token,
    // stop)` of those that were summed; as often as it takes for all tokens.
    template <class Begin, class AddOf, class Finish>
    void visit(Begin begin, AddOf add_of, Finish finish) const {
        const int64_t num_rounds = (num_tiles + MOST_TILES - 1) / MOST_TILES;
        const auto tile = [&](int64_t index) { return Tile(num_tokens, num_tiles, index); };
        for (int64_t round = 0; round < num_rounds; round++) {
            const int64_t first = num_tiles * round / num_rounds, stop = num_tiles * (round + 1) / num_rounds;
            const int64_t first_token = tile(first).first;
            begin();
            for (int64_t cut = 0; cut < num_cuts; cut++) {
                const auto add = add_of(cut);
                for (int64_t t = first; t < stop; t++)
                    add(Turn{tile(t), tile(std::min(t + 1, stop - 1)), t - first, stop - first, first_token});
            }
            finish(first_token, tile(stop).first);
        }
    }
};

}  // namespace headrace
