// Products of tokens with weights that are not packed, summed in fp32.
//
// Weights are rewritten into panels, once for many tokens. A token's result is summed over the inputs one after another, of
// pairs (panels.h) over both at once, so it is bitwise the same alone or among others.
#include "linear.h"

#include <algorithm>

#include "blocks.h"
#include "column_weights.h"
#include "interleaved_weights.h"
#include "results.h"
#include "row_weights.h"
#include "scratch.h"

namespace headrace {
namespace {

// Words of an output in a panel, which stays in the first cache with a tile's tokens; with few tokens, what comes next does
// so, too. A panel of many pairs stays in the second one: processors that multiply them read it fast enough.
constexpr int FEW_WORDS = 64;
template <class Number>
constexpr int MANY_WORDS = std::is_same_v<Number, bfloat16> ? 1024 : 128;

// Where tokens' words lie: pairs where the tokens do, numbers in fp32 written cut by cut, so that a tile's are close together.
struct Words {
    const float *first;
    int64_t of_token, of_cut;  // from one to the next

    const float *at(int64_t token, int64_t cut) const { return first + token * of_token + cut * of_cut; }
};

template <int AT_ONCE, bool ARE_FEW, class Element, class Number, class Weights>
void multiply(const Linear &call) {
    constexpr int PER_WORD = numbers_per_word<Number>();
    const Blocks<TILE_TOKENS, AT_ONCE> blocks{call.num_tokens, (call.num_inputs + PER_WORD - 1) / PER_WORD};
    const auto first_input = [](int64_t cut) { return cut * AT_ONCE * PER_WORD; };
    const auto inputs_of = [&](int64_t cut) {
        return static_cast<int>(std::min<int64_t>(AT_ONCE * PER_WORD, call.num_inputs - first_input(cut)));
    };
    const Element *input = static_cast<const Element *>(call.input);
    const int64_t num_panels = num_outputs_at_once<PANEL_OUTPUTS>(call);
    const bool are_words = !ARE_FEW && PER_WORD > 1 && call.num_inputs % PER_WORD == 0;
    const Scratch<float> written = scratch<float>(are_words ? 0 : blocks.num_numbers());
    const Words words = are_words ? Words{reinterpret_cast<const float *>(input), call.num_inputs / PER_WORD, AT_ONCE}
                                  : Words{written.get(), AT_ONCE, AT_ONCE * call.num_tokens};
#pragma omp parallel num_threads(call.num_threads)
    {
        if (!are_words) {
#pragma omp for collapse(2)
            for (int64_t cut = 0; cut < blocks.num_cuts; cut++)
                for (int64_t t = 0; t < call.num_tokens; t++)
                    write_words(input + t * call.num_inputs + first_input(cut), inputs_of(cut),
                                written.get() + blocks.place(t, cut), Number());
        }
        const int64_t num_sums = call.num_tokens * PANEL_OUTPUTS;
        const Scratch<float> memory = scratch<float>(AT_ONCE * PANEL_OUTPUTS), sums = scratch<float>(num_sums);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < num_panels; index++) {
            const auto outputs = outputs_at<PANEL_OUTPUTS>(call, index);
            std::fill_n(sums.get(), num_sums, 0.0f);
            blocks.visit([&](int64_t cut) {
                const Weights weights(outputs, first_input(cut), call.num_inputs);
                const float *panel = weights.panel(memory.get(), inputs_of(cut), !ARE_FEW);
                return [&, weights, panel, cut](const Turn &turn) {
                    float *of_tile = sums.get() + turn.tile.first * PANEL_OUTPUTS;
                    const auto add = [&](auto next) {
                        add_products<Number>(words.at(turn.tile.first, cut), words.of_token, turn.tile.count, panel,
                                             blocks.inputs_of(cut), of_tile, next);
                    };
                    if ((ARE_FEW && Weights::ARE_FORESEEN && turn.number == 1) || (!ARE_FEW && PER_WORD > 1))
                        add(Nothing());
                    else if constexpr (ARE_FEW)
                        add(weights.behind(AT_ONCE * PER_WORD, turn.index, turn.number));
                    else
                        add(share_of(words.at(turn.next.first, cut), turn.next.count * sizeof(float), AT_ONCE, 0, 1));
                    if (cut + 1 < blocks.num_cuts) return;
                    ask_for_places<Element>(outputs, turn.next);
                    for (int t = 0; t < turn.tile.count; t++)
                        give<Element>(outputs, turn.tile.first + t, of_tile + t * PANEL_OUTPUTS);
                };
            });
        }
    }
}

template <class Element, class Number, class Weights>
void multiply(const Linear &call) {
    if (call.num_tokens <= FEW_TOKENS) return multiply<FEW_WORDS, true, Element, Number, Weights>(call);
    in_rounds<TILE_TOKENS, Element>(call, multiply<MANY_WORDS<Number>, false, Element, Number, Weights>);
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_linear(const headrace::Linear *call) {
    using namespace headrace;
    with_type(call->type, [=](auto number) {
        with_type(call->weight_type, [=](auto weight) {
            using Element = decltype(number);
            using Weight = decltype(weight);
            using Number = Multiplied<Element, Weight>;
            switch (call->layout) {
                case COLUMNS: return multiply<Element, Number, ColumnWeights<Number, Weight>>(*call);
                case INTERLEAVED: return multiply<Element, Number, InterleavedWeights<Number, Weight>>(*call);
                default: return multiply<Element, Number, RowWeights<Number, Weight>>(*call);
            }
        });
    });
}
