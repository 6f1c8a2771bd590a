// Tokens are multiplied a few at a time, by code that is compiled for each number of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace headrace {

// Tokens that are multiplied together, all of nearly the same number.
struct Tile {
    int64_t first;
    int count;

    Tile(int64_t num_tokens, int64_t num_tiles, int64_t index)
        : first(num_tokens * index / num_tiles),
          count(static_cast<int>(num_tokens * (index + 1) / num_tiles - first)) {}
};

// Calls `use` with a tile's number of tokens, at most MOST, as a constant.
template <int MOST, class Use>
inline void with_count(int count, Use use) {
    switch (count) {
        case 1: return use(std::integral_constant<int, 1>());
        case 2: return use(std::integral_constant<int, 2>());
        case 3: return use(std::integral_constant<int, 3>());
        case 4: return use(std::integral_constant<int, 4>());
        case 5: return use(std::integral_constant<int, std::min(5, MOST)>());
        default: return use(std::integral_constant<int, MOST>());
    }
}

}  // namespace headrace
