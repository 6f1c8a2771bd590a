// Products of tokens and weights in 8 bits: W8A8.
//
// A token is scaled by its own largest number. Its products are whole numbers, so that their sums are exact and do not
// depend on what runs beside it, nor on the processor.
#include <algorithm>
#include <vector>

#include "ahead.h"
#include "blocks.h"
#include "bytes.h"
#include "packed_linear.h"
#include "packing.h"
#include "results.h"
#include "scratch.h"
#include "tiles.h"

namespace headrace {
namespace {

constexpr int PART_VECTORS = LANES == 16 ? 4 : 2;  // outputs at a time, in registers
constexpr int PART_OUTPUTS = PART_VECTORS * LANES;
// Inputs of a part that stay in the first cache with a tile's tokens and what comes next, with few tokens; with many in the
// second one, which is read fast enough.
constexpr int FEW_INPUTS = 128, MANY_INPUTS = 2048;

// ---- tokens ---------------------------------------------------------------------------------------------------------

struct Outlier {
    int64_t input;
    float number;
};

// A token without its outliers, which are noted, as fp32.
template <class Element>
const float *without_outliers(const Element *from, int64_t width, float threshold, std::vector<Outlier> &outliers,
                              std::vector<float> &rest) {
    rest.resize(width);
    for (int64_t k = 0; k < width; k++) {
        rest[k] = widened(from[k]);
        if (std::fabs(rest[k]) < threshold || !std::isfinite(rest[k])) continue;
        outliers.push_back({k, rest[k]});
        rest[k] = 0;
    }
    return rest.data();
}

// Writes `width` numbers in 8 bits and, behind them up to `padded`, zeros, AT_ONCE here and the next `stride` bytes on;
// returns their scale: not a number where one of them is none.
template <int AT_ONCE, class Element>
float narrow_token(const Element *from, int64_t width, int64_t padded, uint8_t *to, int64_t stride) {
    const Scale scale = scale_to_bytes(from, width);
    for (int64_t first = 0; first < padded; first += AT_ONCE, to += stride) {
        int64_t k = first;
        const int64_t stop = std::min(first + AT_ONCE, padded);
        for (; k + LANES <= std::min(stop, width); k += LANES)
            store_bytes(to + k - first, load(from + k) * every(scale.factor), TOKEN_OFFSET);
        for (; k < stop; k++) {
            const float x = k < width ? widened(from[k]) * scale.factor : 0;
            to[k - first] = static_cast<uint8_t>(static_cast<int>(std::nearbyint(x)) + TOKEN_OFFSET);
        }
    }
    return scale.step;
}

// ---- products -------------------------------------------------------------------------------------------------------

// One part of the packed weights.
struct Part {
    const int8_t *codes;
    const float *scales;
    const int32_t *sums;

    Part(const uint8_t *weight, int64_t part, int64_t padded_inputs) {
        codes = reinterpret_cast<const int8_t *>(weight + part * int8_part_bytes(padded_inputs));
        scales = reinterpret_cast<const float *>(codes + padded_inputs * PACKED_OUTPUTS);
        sums = reinterpret_cast<const int32_t *>(scales + PACKED_OUTPUTS);
    }
};

// Adds the products of TOKENS tokens, AT_ONCE numbers apart, with some inputs of PART_OUTPUTS outputs to their sums.
template <int AT_ONCE, int TOKENS, class Next>
void add_products(const int8_t *codes, const uint8_t *tokens, int num_inputs, int32_t *to, Next next) {
    Sums sums[TOKENS][PART_VECTORS];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
        for (int j = 0; j < PART_VECTORS; j++) sums[t][j] = load_sums(to + t * PACKED_OUTPUTS + j * LANES);
    for (int k = 0; k < num_inputs; k += 4, codes += 4 * PACKED_OUTPUTS) {
        next.ask_for(k / 4);
        Weights weights[PART_VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < PART_VECTORS; j++) weights[j] = load_weights(codes + j * 4 * LANES);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
            const Numbers numbers = every_four(tokens + t * AT_ONCE + k);
#pragma GCC unroll 4
            for (int j = 0; j < PART_VECTORS; j++) add(sums[t][j], numbers, weights[j]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
        for (int j = 0; j < PART_VECTORS; j++) store_sums(to + t * PACKED_OUTPUTS + j * LANES, sums[t][j]);
}

// The same for all outputs of a part and `count` tokens.
template <int AT_ONCE, class Next>
void add_products(const int8_t *codes, int count, const uint8_t *tokens, int num_inputs, int32_t *sums, Next next) {
    for (int offset = 0; offset < PACKED_OUTPUTS; offset += PART_OUTPUTS)
        with_count<BYTE_TILE_TOKENS>(count, [&](auto constant) {
            add_products<AT_ONCE, decltype(constant)::value>(codes + offset * 4, tokens, num_inputs, sums + offset, next);
        });
}

// What a token's sums stand for.
void scale_sums(const Part &part, const int32_t *sums, float token_scale, float *results) {
    for (int n = 0; n < PACKED_OUTPUTS; n += LANES) {
        const Floats exact = to_floats(minus(load_sums(sums + n), part.sums + n, TOKEN_OFFSET));
        store(results + n, exact * load(part.scales + n) * every(token_scale));
    }
}

// Adds the products with a token's outliers, one after another.
void add_outliers(const Part &part, const std::vector<Outlier> &outliers, float *results) {
    for (const Outlier &outlier : outliers) {
        const int32_t *quads = reinterpret_cast<const int32_t *>(part.codes) + outlier.input / 4 * PACKED_OUTPUTS;
        for (int n = 0; n < PACKED_OUTPUTS; n += LANES) {
            const Floats weights = to_floats(byte_of(quads + n, outlier.input % 4)) * load(part.scales + n);
            store(results + n, fma(every(outlier.number), weights, load(results + n)));
        }
    }
}

template <int AT_ONCE, bool ARE_FEW, class Element>
void multiply(const PackedLinear &call) {
    const int64_t padded_inputs = (call.num_inputs + 3) / 4 * 4;
    const Blocks<BYTE_TILE_TOKENS, AT_ONCE> blocks{call.num_tokens, padded_inputs};
    const int64_t num_parts = num_outputs_at_once<PACKED_OUTPUTS>(call);
    const Scratch<uint8_t> tokens = scratch<uint8_t>(blocks.num_numbers());
    const Scratch<float> scales = scratch<float>(call.num_tokens);
    std::vector<std::vector<Outlier>> outliers(call.outliers > 0 ? call.num_tokens : 0);
#pragma omp parallel num_threads(call.num_threads)
    {
        std::vector<float> rest;
#pragma omp for
        for (int64_t t = 0; t < call.num_tokens; t++) {
            const Element *token = static_cast<const Element *>(call.input) + t * call.num_inputs;
            const auto narrow = [&](const auto *numbers) {
                return narrow_token<AT_ONCE>(numbers, call.num_inputs, padded_inputs, tokens.get() + blocks.place(t, 0),
                                             blocks.place(0, 1));
            };
            scales[t] = outliers.empty()
                            ? narrow(token)
                            : narrow(without_outliers(token, call.num_inputs, call.outliers, outliers[t], rest));
        }
        const int64_t num_sums = call.num_tokens * PACKED_OUTPUTS;
        const Scratch<int32_t> sums = scratch<int32_t>(num_sums);
        float results[PACKED_OUTPUTS];
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < num_parts; index++) {
            const auto outputs = outputs_at<PACKED_OUTPUTS>(call, index);
            const Part part(outputs.of.weight, outputs.first / PACKED_OUTPUTS, padded_inputs);
            std::fill_n(sums.get(), num_sums, 0);
            blocks.visit([&](int64_t cut) {
                const int8_t *codes = part.codes + cut * AT_ONCE * PACKED_OUTPUTS;
                return [&, codes, cut](const Turn &turn) {
                    int32_t *of_tile = sums.get() + turn.tile.first * PACKED_OUTPUTS;
                    const auto add = [&](auto next) {
                        add_products<AT_ONCE>(codes, turn.tile.count, tokens.get() + blocks.place(turn.tile.first, cut),
                                              blocks.inputs_of(cut), of_tile, next);
                    };
                    if constexpr (ARE_FEW)
                        add(share_of(codes + AT_ONCE * PACKED_OUTPUTS, 4 * PACKED_OUTPUTS, AT_ONCE / 4, turn.index, turn.number,
                                     ask_for_much(turn.number)));
                    else
                        add(Nothing());
                    if (cut + 1 < blocks.num_cuts) return;
                    ask_for_places<Element>(outputs, turn.next);
                    for (int t = 0; t < turn.tile.count; t++) {
                        const int64_t token = turn.tile.first + t;
                        scale_sums(part, of_tile + t * PACKED_OUTPUTS, scales[token], results);
                        if (!outliers.empty()) add_outliers(part, outliers[token], results);
                        give<Element>(outputs, token, results);
                    }
                };
            });
        }
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_int8_linear(const headrace::PackedLinear *call) {
    using namespace headrace;
    with_type(call->type, [=](auto number) {
        using Element = decltype(number);
        if (call->num_tokens <= FEW_TOKENS) return multiply<FEW_INPUTS, true, Element>(*call);
        in_rounds<BYTE_TILE_TOKENS, Element>(*call, multiply<MANY_INPUTS, false, Element>);
    });
}
