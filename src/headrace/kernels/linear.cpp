// Products of tokens with weights that are not packed, in fp32.
//
// Weights are widened into panels, once for many tokens. A token's result is summed over the inputs one after another, so
// it is bitwise the same alone or among others.
#include "linear.h"

#include <algorithm>

#include "interleaved_weights.h"
#include "results.h"
#include "row_weights.h"
#include "scratch.h"

namespace headrace {
namespace {

// Inputs of a panel, which stays in the first cache with a tile's tokens; with few tokens, what comes next does so, too.
constexpr int FEW_TOKENS = 32, FEW_INPUTS = 64, MANY_INPUTS = 128;
constexpr int64_t TILES_AT_ONCE = 84;  // their sums stay in the second cache

template <int AT_ONCE, bool ARE_FEW, class Element, class Weights>
void multiply(const Linear &call) {
    const int64_t num_tiles = (call.num_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    const int64_t num_turns = (num_tiles + TILES_AT_ONCE - 1) / TILES_AT_ONCE;
    const int64_t num_panels = num_outputs_at_once<PANEL_OUTPUTS>(call);
    const int64_t num_cuts = (call.num_inputs + AT_ONCE - 1) / AT_ONCE;
    const Scratch<float> tokens = scratch<float>(num_cuts * call.num_tokens * AT_ONCE);
    const auto numbers_of = [&](const Tile &tile, int64_t cut) {
        return tokens.get() + (cut * call.num_tokens + tile.first) * AT_ONCE;
    };
    const auto inputs_of = [&](int64_t cut) {
        return static_cast<int>(std::min<int64_t>(AT_ONCE, call.num_inputs - cut * AT_ONCE));
    };
#pragma omp parallel num_threads(call.num_threads)
    {
#pragma omp for collapse(2)
        for (int64_t cut = 0; cut < num_cuts; cut++)
            for (int64_t i = 0; i < num_tiles; i++) {
                const Tile tile(call.num_tokens, num_tiles, i);
                const Element *from = static_cast<const Element *>(call.input) + tile.first * call.num_inputs + cut * AT_ONCE;
                widen_tokens<AT_ONCE>(from, call.num_inputs, tile.count, inputs_of(cut), numbers_of(tile, cut));
            }
        const int64_t sums_size = std::min(num_tiles, TILES_AT_ONCE) * TILE_TOKENS * PANEL_OUTPUTS;
        const Scratch<float> panel = scratch<float>(AT_ONCE * PANEL_OUTPUTS), sums = scratch<float>(sums_size);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < num_panels; index++) {
            const auto outputs = outputs_at<PANEL_OUTPUTS>(call, index);
            for (int64_t turn = 0; turn < num_turns; turn++) {
                const int64_t first = num_tiles * turn / num_turns, stop = num_tiles * (turn + 1) / num_turns;
                const int64_t first_token = Tile(call.num_tokens, num_tiles, first).first;
                const int64_t stop_token = Tile(call.num_tokens, num_tiles, stop).first;
                std::fill_n(sums.get(), sums_size, 0.0f);
                for (int64_t cut = 0; cut < num_cuts; cut++) {
                    const Weights weights(outputs, cut * AT_ONCE, call.num_inputs);
                    weights.fill(panel.get(), inputs_of(cut), !ARE_FEW);
                    for (int64_t t = first; t < stop; t++) {
                        const Tile tile(call.num_tokens, num_tiles, t), next(call.num_tokens, num_tiles, std::min(t + 1, stop - 1));
                        float *of_tile = sums.get() + (tile.first - first_token) * PANEL_OUTPUTS;
                        const auto add = [&](auto behind) {
                            add_products<AT_ONCE>(numbers_of(tile, cut), tile.count, panel.get(), inputs_of(cut), of_tile, behind);
                        };
                        if constexpr (ARE_FEW)
                            add(weights.behind(AT_ONCE, t - first, stop - first));
                        else
                            add(share_of(numbers_of(next, cut), next.count * sizeof(float), AT_ONCE, 0, 1));
                    }
                }
                for (int64_t t = first_token; t < stop_token; t++)
                    give<Element>(outputs, t, sums.get() + (t - first_token) * PANEL_OUTPUTS);
            }
        }
    }
}

template <class Element, class Weights>
void multiply(const Linear &call) {
    call.num_tokens <= FEW_TOKENS ? multiply<FEW_INPUTS, true, Element, Weights>(call)
                                  : multiply<MANY_INPUTS, false, Element, Weights>(call);
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_linear(const headrace::Linear *call) {
    using namespace headrace;
    with_type(call->type, [=](auto number) {
        with_type(call->weight_type, [=](auto weight) {
            using Element = decltype(number);
            using Weight = decltype(weight);
            call->is_interleaved ? multiply<Element, InterleavedWeights<Weight>>(*call)
                                 : multiply<Element, RowWeights<Weight>>(*call);
        });
    });
}
