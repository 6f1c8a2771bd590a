// Products of tokens and weights in 8 bits: W8A8.
//
// A token is scaled by its own largest number. Its products are whole numbers, so that their sums are exact and do not
// depend on what runs beside it, nor on the processor.
#include "int8_linear.h"

#include <algorithm>
#include <vector>

#include "bytes.h"
#include "packing.h"
#include "scratch.h"

namespace headrace {
namespace {

constexpr int PART_VECTORS = LANES == 16 ? 4 : 2;  // outputs at a time, in registers
constexpr int PART_OUTPUTS = PART_VECTORS * LANES;
constexpr int AHEAD_BYTES = 4096;
constexpr float LARGEST = 127;

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
    Floats most = zeros(), faults = zeros();
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES) {
        const Floats x = load(from + k);
        most = max(magnitude(x), most);
        faults = faults + (x - x);
    }
    float largest_one = largest(most), fault = sum(faults);
    for (int64_t rest = k; rest < width; rest++) {
        const float x = widened(from[rest]);
        largest_one = std::max(largest_one, std::fabs(x));
        fault += x - x;
    }
    const float scale = largest_one / LARGEST, factor = largest_one > 0 && fault == 0 ? LARGEST / largest_one : 0;
    for (k = 0; k + LANES <= width; k += LANES) store_bytes(to + k, load(from + k) * every(factor), TOKEN_OFFSET);
    for (; k < padded; k++) {
        const float x = k < width ? widened(from[k]) * factor : 0;
        to[k] = static_cast<uint8_t>(static_cast<int>(std::nearbyint(x)) + TOKEN_OFFSET);
    }
    return scale + fault;
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

// What comes of TOKENS tokens for PART_OUTPUTS outputs, `offset` of the part's on.
template <int TOKENS>
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
            if (TOKENS <= 2) _mm_prefetch(reinterpret_cast<const char *>(codes + j * 4 * LANES + AHEAD_BYTES), _MM_HINT_T0);
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

void multiply_tokens(const Part &part, int count, const uint8_t *tokens, const float *token_scales, int64_t padded_inputs,
                     float *results) {
    for (int offset = 0; offset < PACKED_OUTPUTS; offset += PART_OUTPUTS) switch (count) {
            case 1: multiply_tile<1>(part, offset, tokens, token_scales, padded_inputs, results); break;
            case 2: multiply_tile<2>(part, offset, tokens, token_scales, padded_inputs, results); break;
            case 3: multiply_tile<3>(part, offset, tokens, token_scales, padded_inputs, results); break;
            case 4: multiply_tile<4>(part, offset, tokens, token_scales, padded_inputs, results); break;
            case 5: multiply_tile<std::min(5, BYTE_TILE_TOKENS)>(part, offset, tokens, token_scales, padded_inputs, results); break;
            default: multiply_tile<BYTE_TILE_TOKENS>(part, offset, tokens, token_scales, padded_inputs, results);
        }
}

template <class Element>
void give(const Int8Linear &call, int64_t token, int64_t first_output, const float *results) {
    const int num_outputs = static_cast<int>(std::min<int64_t>(PACKED_OUTPUTS, call.num_outputs - first_output));
    const Element *bias = call.bias ? static_cast<const Element *>(call.bias) + first_output : nullptr;
    Element *to = static_cast<Element *>(call.output) + token * call.num_outputs + first_output;
    int n = 0;
    for (; n + LANES <= num_outputs; n += LANES)
        store(to + n, bias ? load(results + n) + load(bias + n) : load(results + n));
    for (; n < num_outputs; n++) narrow(results[n] + (bias ? widened(bias[n]) : 0.0f), to + n);
}

template <class Element>
void multiply(const Int8Linear &call) {
    const int64_t padded_inputs = (call.num_inputs + 3) / 4 * 4;
    const int64_t num_parts = (call.num_outputs + PACKED_OUTPUTS - 1) / PACKED_OUTPUTS;
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
        for (int64_t i = 0; i < num_parts; i++) {
            const Part part(call.weight, i, padded_inputs);
            for (int64_t tile = 0; tile < num_tiles; tile++) {  // all of nearly the same size
                const int64_t first = call.num_tokens * tile / num_tiles;
                const int count = static_cast<int>(call.num_tokens * (tile + 1) / num_tiles - first);
                multiply_tokens(part, count, tokens.get() + first * padded_inputs, scales.get() + first, padded_inputs,
                                results);
                for (int t = 0; t < count; t++) {
                    if (!outliers.empty()) add_outliers(part, outliers[first + t], results + t * PACKED_OUTPUTS);
                    give<Element>(call, first + t, i * PACKED_OUTPUTS, results + t * PACKED_OUTPUTS);
                }
            }
        }
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_int8_linear(const headrace::Int8Linear *call) {
    switch (call->type) {
        case headrace::FLOAT32: return headrace::multiply<float>(*call);
        case headrace::BFLOAT16: return headrace::multiply<headrace::bfloat16>(*call);
        case headrace::FLOAT16: return headrace::multiply<headrace::float16>(*call);
    }
}
