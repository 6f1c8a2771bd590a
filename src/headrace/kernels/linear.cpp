// Products of tokens with weights as checkpoints hold them, in fp32.
//
// Weights are widened into panels, once for all tokens. A token's result is summed over the inputs one after another, so
// it is bitwise the same alone or among others.
#include "linear.h"

#include <algorithm>

#include "panels.h"
#include "results.h"
#include "scratch.h"

namespace headrace {
namespace {

// Inputs of a panel: with few tokens it stays in the first cache, with many it is to last for longer.
constexpr int FEW_TOKENS = 16, FEW_INPUTS = 64, MANY_INPUTS = 256;
constexpr int64_t TILES_AT_ONCE = 84, PANELS_TOGETHER = 4;  // panels and sums stay in the second cache

template <class Element, class Weight>
void multiply(const Linear &call) {
    const int64_t num_tiles = (call.num_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    const int64_t num_turns = (num_tiles + TILES_AT_ONCE - 1) / TILES_AT_ONCE;
    const int64_t num_panels = num_outputs_at_once<PANEL_OUTPUTS>(call);
    const int64_t together = pieces_together(PANELS_TOGETHER, num_panels, call.num_tokens, call.num_threads);
    const bool few = call.num_tokens <= FEW_TOKENS;
    const int at_once = few ? FEW_INPUTS : MANY_INPUTS;
    const Scratch<float> tokens = scratch<float>(call.num_tokens * call.num_inputs);
#pragma omp parallel num_threads(call.num_threads)
    {
#pragma omp for
        for (int64_t i = 0; i < num_tiles; i++) {
            const Tile tile(call.num_tokens, num_tiles, i);
            interleave(static_cast<const Element *>(call.input) + tile.first * call.num_inputs, call.num_inputs, tile.count,
                       tokens.get() + tile.first * call.num_inputs);
        }
        const int64_t panel_size = at_once * PANEL_OUTPUTS;
        const int64_t sums_size = std::min(num_tiles, TILES_AT_ONCE) * TILE_TOKENS * PANEL_OUTPUTS;
        const Scratch<float> panels = scratch<float>(together * panel_size), sums = scratch<float>(together * sums_size);
#pragma omp for schedule(dynamic)
        for (int64_t begin = 0; begin < num_panels; begin += together) {
            const int64_t count = std::min(together, num_panels - begin);
            for (int64_t turn = 0; turn < num_turns; turn++) {
                const int64_t first = num_tiles * turn / num_turns, stop = num_tiles * (turn + 1) / num_turns;
                const int64_t first_token = Tile(call.num_tokens, num_tiles, first).first;
                const int64_t stop_token = Tile(call.num_tokens, num_tiles, stop).first;
                std::fill(sums.get(), sums.get() + count * sums_size, 0.0f);
                for (int64_t input = 0; input < call.num_inputs; input += at_once) {
                    const int num_inputs = static_cast<int>(std::min<int64_t>(at_once, call.num_inputs - input));
                    const Weight *behind = nullptr;
                    int64_t stride = 0;
                    for (int64_t p = 0; p < count; p++) {
                        const auto outputs = outputs_at<PANEL_OUTPUTS>(call, begin + p);
                        stride = outputs.of.stride;
                        const Weight *rows = static_cast<const Weight *>(outputs.of.weight) + outputs.first * stride + input;
                        fill_panel(rows, stride, outputs.count, num_inputs, panels.get() + p * panel_size, !few);
                        behind = rows + num_inputs;
                    }
                    for (int64_t t = first; t < stop; t++) {
                        const Tile tile(call.num_tokens, num_tiles, t);
                        // Of few tokens one panel is multiplied at a time.
                        const NextLines next = few ? NextLines(behind, stride, at_once, t - first, stop - first) : NextLines();
                        const float *numbers = tokens.get() + tile.first * call.num_inputs + input * tile.count;
                        float *of_tile = sums.get() + (tile.first - first_token) * PANEL_OUTPUTS;
                        for (int64_t p = 0; p < count; p++)
                            add_products(numbers, tile.count, panels.get() + p * panel_size, num_inputs,
                                         of_tile + p * sums_size, next);
                    }
                }
                for (int64_t p = 0; p < count; p++) {
                    const auto outputs = outputs_at<PANEL_OUTPUTS>(call, begin + p);
                    for (int64_t t = first_token; t < stop_token; t++)
                        give<Element>(outputs, t, sums.get() + p * sums_size + (t - first_token) * PANEL_OUTPUTS);
                }
            }
        }
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_linear(const headrace::Linear *call) {
    headrace::with_type(call->type, [=](auto number) {
        headrace::with_type(call->weight_type, [=](auto weight) {
            headrace::multiply<decltype(number), decltype(weight)>(*call);
        });
    });
}
