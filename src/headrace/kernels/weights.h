// Several weights that the same tokens are multiplied with, as those of queries, keys and values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace headrace {

constexpr int MOST_WEIGHTS = 4;

// Some outputs of one weight.
template <class Weight>
struct Outputs {
    const Weight &of;
    int64_t first;
    int count;
};

// How many times WIDTH outputs there are, each time of one weight.
template <int WIDTH, class Call>
int64_t num_outputs_at_once(const Call &call) {
    int64_t number = 0;
    for (int i = 0; i < call.num_weights; i++) number += (call.weights[i].num_outputs + WIDTH - 1) / WIDTH;
    return number;
}

// How many pieces of outputs a thread takes together, so that tokens come by once for all of them: no more than `most`,
// and where tokens are few, which stay in caches, or pieces are, which all threads are to have some of, one.
inline int64_t pieces_together(int64_t most, int64_t num_pieces, int64_t num_tokens, int num_threads) {
    constexpr int64_t MANY_TOKENS = 96, TURNS = 4;
    return num_tokens < MANY_TOKENS ? 1 : std::clamp<int64_t>(num_pieces / (TURNS * num_threads), 1, most);
}

template <int WIDTH, class Call>
auto outputs_at(const Call &call, int64_t index) {
    const auto *weight = call.weights;
    for (int64_t own; index >= (own = (weight->num_outputs + WIDTH - 1) / WIDTH); weight++) index -= own;
    const int64_t first = index * WIDTH;
    return Outputs<std::decay_t<decltype(*weight)>>{
        *weight, first, static_cast<int>(std::min<int64_t>(WIDTH, weight->num_outputs - first))};
}

}  // namespace headrace
