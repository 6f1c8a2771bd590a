// Products of tokens and weights in 8 bits: W8A8.
//
// A token is scaled by its own largest number. Its products are whole numbers, so that their sums are exact and do not
// depend on what runs beside it, nor on the processor.
#include <algorithm>
#include <vector>

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
constexpr int AHEAD_BYTES = 4096;
constexpr int64_t CACHED_BYTES = 512 * 1024;  // of weights, in the second cache

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

// Writes `width` numbers in 8 bits and, behind them up to `padded`, zeros; returns their scale: not a number where one of
// them is none.
template <class Element>
float narrow_token(const Element *from, int64_t width, int64_t padded, uint8_t *to) {
    const Scale scale = scale_to_bytes(from, width);
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES) store_bytes(to + k, load(from + k) * every(scale.factor), TOKEN_OFFSET);
    for (; k < padded; k++) {
        const float x = k < width ? widened(from[k]) * scale.factor : 0;
        to[k] = static_cast<uint8_t>(static_cast<int>(std::nearbyint(x)) + TOKEN_OFFSET);
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

// What comes of TOKENS tokens for PART_OUTPUTS outputs, `offset` of the part's on. Those that read weights first, from memory,
// ask for them ahead.
template <int TOKENS, bool FIRST>
void multiply_tile(const Part &part, int offset, const uint8_t *tokens, const float *token_scales, int64_t padded_inputs,
                   float *results) {
    Sums sums[TOKENS][PART_VECTORS];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
        for (int j = 0; j < PART_VECTORS; j++) sums[t][j] = no_sums();
    const int8_t *codes = part.codes + offset * 4;
    for (int64_t k = 0; k < padded_inputs; k += 4, codes += 4 * PACKED_OUTPUTS) {
        Weights weights[PART_VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < PART_VECTORS; j++) {
            weights[j] = load_weights(codes + j * 4 * LANES);
            if (FIRST) _mm_prefetch(reinterpret_cast<const char *>(codes + j * 4 * LANES + AHEAD_BYTES), _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
            const Numbers numbers = every_four(tokens + t * padded_inputs + k);
#pragma GCC unroll 4
            for (int j = 0; j < PART_VECTORS; j++) add(sums[t][j], numbers, weights[j]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
        for (int j = 0; j < PART_VECTORS; j++) {
            const int n = offset + j * LANES;
            const Floats exact = to_floats(minus(sums[t][j], part.sums + n, TOKEN_OFFSET));
            store(results + t * PACKED_OUTPUTS + n, exact * load(part.scales + n) * every(token_scales[t]));
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

template <bool FIRST>
void multiply_tokens(const Part &part, int count, const uint8_t *tokens, const float *token_scales, int64_t padded_inputs,
                     float *results) {
    for (int offset = 0; offset < PACKED_OUTPUTS; offset += PART_OUTPUTS)
        with_count<BYTE_TILE_TOKENS>(count, [&](auto constant) {
            multiply_tile<decltype(constant)::value, FIRST>(part, offset, tokens, token_scales, padded_inputs, results);
        });
}

template <class Element>
void multiply(const PackedLinear &call) {
    const int64_t padded_inputs = (call.num_inputs + 3) / 4 * 4;
    const int64_t num_parts = num_outputs_at_once<PACKED_OUTPUTS>(call);
    const int64_t most_together = std::max<int64_t>(1, CACHED_BYTES / int8_part_bytes(padded_inputs));
    const int64_t together = pieces_together(most_together, num_parts, call.num_tokens, call.num_threads);
    const int64_t num_tiles = (call.num_tokens + BYTE_TILE_TOKENS - 1) / BYTE_TILE_TOKENS;
    const Scratch<uint8_t> tokens = scratch<uint8_t>(call.num_tokens * padded_inputs);
    const Scratch<float> scales = scratch<float>(call.num_tokens);
    std::vector<std::vector<Outlier>> outliers(call.outliers > 0 ? call.num_tokens : 0);
#pragma omp parallel num_threads(call.num_threads)
    {
        std::vector<float> rest;
#pragma omp for
        for (int64_t t = 0; t < call.num_tokens; t++) {
            const Element *token = static_cast<const Element *>(call.input) + t * call.num_inputs;
            uint8_t *to = tokens.get() + t * padded_inputs;
            scales[t] = outliers.empty()
                            ? narrow_token(token, call.num_inputs, padded_inputs, to)
                            : narrow_token(without_outliers(token, call.num_inputs, call.outliers, outliers[t], rest),
                                           call.num_inputs, padded_inputs, to);
        }
        float results[BYTE_TILE_TOKENS * PACKED_OUTPUTS];
#pragma omp for schedule(dynamic)
        for (int64_t begin = 0; begin < num_parts; begin += together) {
            const int64_t stop = std::min(begin + together, num_parts);
            for (int64_t index = 0; index < num_tiles * (stop - begin); index++) {
                const Tile tile(call.num_tokens, num_tiles, index / (stop - begin));
                const auto outputs = outputs_at<PACKED_OUTPUTS>(call, begin + index % (stop - begin));
                const Part part(outputs.of.weight, outputs.first / PACKED_OUTPUTS, padded_inputs);
                const auto multiply_tile_tokens = tile.first == 0 ? multiply_tokens<true> : multiply_tokens<false>;
                multiply_tile_tokens(part, tile.count, tokens.get() + tile.first * padded_inputs, scales.get() + tile.first,
                                     padded_inputs, results);
                for (int t = 0; t < tile.count; t++) {
                    if (!outliers.empty()) add_outliers(part, outliers[tile.first + t], results + t * PACKED_OUTPUTS);
                    give<Element>(outputs, tile.first + t, results + t * PACKED_OUTPUTS);
                }
            }
        }
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_int8_linear(const headrace::PackedLinear *call) {
    headrace::with_type(call->type, [=](auto number) { headrace::multiply<decltype(number)>(*call); });
}
