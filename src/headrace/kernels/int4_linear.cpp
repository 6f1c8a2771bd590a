// Products of tokens in 8 bits and weights in 4: W4A8.
//
// Each group of a token's inputs is scaled by its own largest number. Its products are whole numbers, so that their sums
// are exact; groups are added in their order: nothing depends on what runs beside a token, nor on the processor.
#include <algorithm>

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
constexpr int WORD_INPUTS = 8;
constexpr int AHEAD_BYTES = 4096;
constexpr int64_t CACHED_BYTES = 512 * 1024;  // of wide codes, in the second cache

// ---- tokens ---------------------------------------------------------------------------------------------------------

// Tokens in 8 bits, the even inputs of a word before the odd ones; for each group its scale, and the sum of its numbers.
struct Tokens {
    const int64_t num_groups, group_inputs, stride;
    const Scratch<int8_t> numbers;
    const Scratch<float> scales, sums;

    Tokens(int64_t num_tokens, int64_t num_groups, int64_t group_inputs)
        : num_groups(num_groups), group_inputs(group_inputs), stride((num_groups * group_inputs + LANES + 63) / 64 * 64),
          numbers(scratch<int8_t>(num_tokens * stride)), scales(scratch<float>(num_tokens * num_groups)),
          sums(scratch<float>(num_tokens * num_groups)) {}

    const int8_t *group(int64_t token, int64_t index) const { return numbers.get() + token * stride + index * group_inputs; }

    // What is written beyond a group, to fill a register, the next one overwrites; behind the last there is room for it.
    template <class Element>
    void narrow(const Element *from, int64_t num_inputs, int64_t token) const {
        for (int64_t index = 0; index < num_groups; index++, from += group_inputs) {
            const int64_t count = std::min(group_inputs, num_inputs - index * group_inputs);
            const Scale scale = scale_to_bytes(from, count);
            int8_t *to = numbers.get() + token * stride + index * group_inputs;
            Floats total = zeros();
            for (int64_t k = 0; k < group_inputs; k += LANES) {
                const Floats whole = rounded(load_some(from + k, count - k) * every(scale.factor));
                store_evens_first(to + k, whole);
                total = total + whole;
            }
            scales[token * num_groups + index] = scale.step;
            sums[token * num_groups + index] = sum(total);
        }
    }
};

// ---- weights --------------------------------------------------------------------------------------------------------

// One part of the packed weights.
struct Part {
    const uint8_t *bytes;
    int64_t group_inputs;

    const uint8_t *group(int64_t index) const { return bytes + index * int4_group_bytes(group_inputs); }
    const float *scales(int64_t index) const {
        return reinterpret_cast<const float *>(group(index) + group_inputs / 2 * PACKED_OUTPUTS);
    }
    const uint8_t *zeros(int64_t index) const { return group(index) + (group_inputs / 2 + 4) * PACKED_OUTPUTS; }
};

// Codes as they are packed: those at even places of a word, ODD = 0, and those at odd ones.
struct PackedCodes {
    const Part &part;

    template <int ODD>
    Codes load(int64_t group, int64_t word, int output) const {
        const uint8_t *from = part.group(group) + (word * PACKED_OUTPUTS + output) * 4;
        _mm_prefetch(reinterpret_cast<const char *>(from + AHEAD_BYTES), _MM_HINT_T0);
        return nibbles<ODD>(load_codes(from));
    }
};

// The same, a byte for each code.
struct WideCodes {
    const uint8_t *codes;
    int64_t group_words;

    static constexpr int WORD_BYTES = WORD_INPUTS * PACKED_OUTPUTS;

    template <int ODD>
    Codes load(int64_t group, int64_t word, int output) const {
        return load_codes(codes + (group * group_words + word) * WORD_BYTES + ODD * WORD_BYTES / 2 + output * 4);
    }
};

void widen(const Part &part, int64_t num_groups, uint8_t *to) {
    const PackedCodes packed{part};
    for (int64_t group = 0; group < num_groups; group++)
        for (int64_t word = 0; word < part.group_inputs / WORD_INPUTS; word++, to += WideCodes::WORD_BYTES)
            for (int n = 0; n < PACKED_OUTPUTS; n += LANES) {
                store_codes(to + n * 4, packed.load<0>(group, word, n));
                store_codes(to + WideCodes::WORD_BYTES / 2 + n * 4, packed.load<1>(group, word, n));
            }
}

// ---- products -------------------------------------------------------------------------------------------------------

template <int TOKENS, int ODD, class Source>
inline __attribute__((always_inline)) void add_four(const Source &source, int64_t group, int64_t word, int offset,
                                                    const int8_t *tokens, int64_t stride, Sums (&sums)[TOKENS][PART_VECTORS]) {
    Codes codes[PART_VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < PART_VECTORS; j++) {
        codes[j] = source.template load<ODD>(group, word, offset + j * LANES);
        keep(codes[j]);
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) {
        const Codes numbers = every_four(tokens + t * stride + ODD * WORD_INPUTS / 2);
#pragma GCC unroll 4
        for (int j = 0; j < PART_VECTORS; j++) add_products(sums[t][j], codes[j], numbers);
    }
}

// Writes what comes of TOKENS tokens from `first` on, for PART_OUTPUTS outputs from `offset` of the part's on.
template <int TOKENS, class Source>
void multiply_tile(const Part &part, const Source &source, int offset, const Tokens &tokens, int64_t first, float *results) {
    for (int t = 0; t < TOKENS; t++) std::fill_n(results + t * PACKED_OUTPUTS + offset, PART_OUTPUTS, 0.0f);
    for (int64_t group = 0; group < tokens.num_groups; group++) {
        Sums sums[TOKENS][PART_VECTORS];
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
            for (int j = 0; j < PART_VECTORS; j++) sums[t][j] = no_sums();
        const int8_t *numbers = tokens.group(first, group);
        for (int64_t word = 0; word < part.group_inputs / WORD_INPUTS; word++, numbers += WORD_INPUTS) {
            add_four<TOKENS, 0>(source, group, word, offset, numbers, tokens.stride, sums);
            add_four<TOKENS, 1>(source, group, word, offset, numbers, tokens.stride, sums);
        }
        const float *scales = part.scales(group) + offset;
        const uint8_t *zeros = part.zeros(group) + offset;
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
            const int64_t index = (first + t) * tokens.num_groups + group;
            const Floats scale = every(tokens.scales[index]), minus_sum = every(-tokens.sums[index]);
#pragma GCC unroll 4
            for (int j = 0; j < PART_VECTORS; j++) {
                float *to = results + t * PACKED_OUTPUTS + offset + j * LANES;
                const Floats exact = fma(load_bytes(zeros + j * LANES), minus_sum, to_floats(sums[t][j]));
                store(to, fma(exact, scale * load(scales + j * LANES), load(to)));
            }
        }
    }
}

template <class Source>
void multiply_tokens(const Part &part, const Source &source, const Tokens &tokens, const Tile &tile, float *results) {
    for (int offset = 0; offset < PACKED_OUTPUTS; offset += PART_OUTPUTS)
        with_count<BYTE_TILE_TOKENS>(tile.count, [&](auto constant) {
            multiply_tile<decltype(constant)::value>(part, source, offset, tokens, tile.first, results);
        });
}

Part part_of(const PackedLinear &call, const Outputs<PackedWeight> &outputs, int64_t num_groups) {
    const int64_t part_bytes = num_groups * int4_group_bytes(call.group_inputs);
    return {outputs.of.weight + outputs.first / PACKED_OUTPUTS * part_bytes, call.group_inputs};
}

template <class Element>
void multiply(const PackedLinear &call) {
    const int64_t num_groups = (call.num_inputs + call.group_inputs - 1) / call.group_inputs;
    const int64_t num_parts = num_outputs_at_once<PACKED_OUTPUTS>(call);
    const int64_t num_tiles = (call.num_tokens + BYTE_TILE_TOKENS - 1) / BYTE_TILE_TOKENS;
    const int64_t most_together = std::max<int64_t>(1, CACHED_BYTES / (call.num_inputs * PACKED_OUTPUTS));
    const int64_t together = pieces_together(most_together, num_parts, call.num_tokens, call.num_threads);
    const Tokens tokens(call.num_tokens, num_groups, call.group_inputs);
#pragma omp parallel num_threads(call.num_threads)
    {
#pragma omp for
        for (int64_t t = 0; t < call.num_tokens; t++)
            tokens.narrow(static_cast<const Element *>(call.input) + t * call.num_inputs, call.num_inputs, t);
        const int64_t wide_bytes = tokens.stride * PACKED_OUTPUTS;
        const Scratch<uint8_t> wide = scratch<uint8_t>(num_tiles > 1 ? together * wide_bytes : 0);
        float results[BYTE_TILE_TOKENS * PACKED_OUTPUTS];
#pragma omp for schedule(dynamic)
        for (int64_t begin = 0; begin < num_parts; begin += together) {
            const int64_t count = std::min(together, num_parts - begin);
            for (int64_t p = 0; p < count && num_tiles > 1; p++)
                widen(part_of(call, outputs_at<PACKED_OUTPUTS>(call, begin + p), num_groups), num_groups,
                      wide.get() + p * wide_bytes);
            for (int64_t index = 0; index < num_tiles * count; index++) {
                const Tile tile(call.num_tokens, num_tiles, index / count);
                const int64_t p = index % count;
                const auto outputs = outputs_at<PACKED_OUTPUTS>(call, begin + p);
                const Part part = part_of(call, outputs, num_groups);
                const WideCodes wide_codes{wide.get() + p * wide_bytes, call.group_inputs / WORD_INPUTS};
                if (num_tiles == 1)
                    multiply_tokens(part, PackedCodes{part}, tokens, tile, results);
                else
                    multiply_tokens(part, wide_codes, tokens, tile, results);
                for (int t = 0; t < tile.count; t++)
                    give<Element>(outputs, tile.first + t, results + t * PACKED_OUTPUTS);
            }
        }
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_int4_linear(const headrace::PackedLinear *call) {
    headrace::with_type(call->type, [=](auto number) { headrace::multiply<decltype(number)>(*call); });
}
