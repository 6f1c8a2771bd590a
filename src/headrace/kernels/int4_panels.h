// Products with weights that are packed in four bits: each group of inputs is summed by itself, then scaled.
#pragma once

#include "packing.h"
#include "panels.h"

namespace headrace {

constexpr int CODES_PER_WORD = 8;

// Four bits in the highest places of a mantissa, below an exponent of 4, make 16 + code.
constexpr float CODE_OFFSET = 16;

#if defined(__AVX512F__)
using Words = __m512i;
inline Words load_words(const uint32_t *p) { return _mm512_loadu_si512(p); }
template <int PLACE>
Floats offset_code(Words word) {
    word = PLACE < 5 ? _mm512_slli_epi32(word, 19 - 4 * PLACE) : _mm512_srli_epi32(word, 4 * PLACE - 19);
    const __m512i sixteen = _mm512_set1_epi32(0x41800000), places = _mm512_set1_epi32(0x00780000);
    return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(word, places, sixteen, 0xea))};  // (word & places) | sixteen
}
inline Floats load(const uint8_t *p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))))};
}
#else
using Words = __m256i;
inline Words load_words(const uint32_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
template <int PLACE>
Floats offset_code(Words word) {
    word = PLACE < 5 ? _mm256_slli_epi32(word, 19 - 4 * PLACE) : _mm256_srli_epi32(word, 4 * PLACE - 19);
    const __m256i sixteen = _mm256_set1_epi32(0x41800000), places = _mm256_set1_epi32(0x00780000);
    return {_mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(word, places), sixteen))};
}
inline Floats load(const uint8_t *p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))))};
}
#endif

// Calls `use` with every place of a word, as a constant.
template <class Use>
inline void each_place(Use use) {
    use(std::integral_constant<int, 0>()), use(std::integral_constant<int, 1>()), use(std::integral_constant<int, 2>());
    use(std::integral_constant<int, 3>()), use(std::integral_constant<int, 4>()), use(std::integral_constant<int, 5>());
    use(std::integral_constant<int, 6>()), use(std::integral_constant<int, 7>());
}

// One group of inputs, of the PANEL_OUTPUTS outputs at `offset` of a part.
struct Int4Group {
    const uint32_t *codes;
    const float *scales;
    const uint8_t *zeros;
    int num_inputs;
    int64_t bytes;

    Int4Group(const uint8_t *group, int offset, int num_inputs)
        : num_inputs(num_inputs), bytes(int4_group_bytes(num_inputs)) {
        codes = reinterpret_cast<const uint32_t *>(group) + offset;
        scales = reinterpret_cast<const float *>(group + num_inputs / 2 * PACKED_OUTPUTS) + offset;
        zeros = group + (num_inputs / 2 + 4) * PACKED_OUTPUTS + offset;
    }

    // Gives `use` the numbers code - zero of all outputs, input by input in their order; they are exact.
    template <class Use>
    void each_input(Use use) const {
        Floats zero[PANEL_VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < PANEL_VECTORS; j++) zero[j] = load(zeros + j * LANES) + every(CODE_OFFSET);
        for (int word = 0; word < num_inputs / CODES_PER_WORD; word++) {
            Words words[PANEL_VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < PANEL_VECTORS; j++) {
                const uint32_t *from = codes + word * PACKED_OUTPUTS + j * LANES;
                words[j] = load_words(from);
                _mm_prefetch(reinterpret_cast<const char *>(from) + 2 * bytes, _MM_HINT_T0);
            }
            each_place([&](auto place) {
                Floats numbers[PANEL_VECTORS];
#pragma GCC unroll 4
                for (int j = 0; j < PANEL_VECTORS; j++) numbers[j] = offset_code<place>(words[j]) - zero[j];
                use(word * CODES_PER_WORD + place, numbers);
            });
        }
    }
};

// Starts and ends a group's sums: they begin at zero, and are added, scaled, to those of the groups before it.
inline void begin(Floats &sum, const float *, int) { sum = zeros(); }

struct Scaled {
    const float *scales;

    void operator()(const Floats &sum, float *to, int j) const { store(to, fma(sum, load(scales + j * LANES), load(to))); }
};

// ---- few tokens: numbers go from registers into products ------------------------------------------------------------

constexpr int INT4_FEW_TOKENS = 4;  // more would take more registers than there are

inline void add_group_products(const float *tokens, int count, const Int4Group &group, float *sums) {
    with_count<INT4_FEW_TOKENS>(count, [&](auto constant) {
        constexpr int TOKENS = decltype(constant)::value;
        TileSums<TOKENS> added;
        each_sum<TOKENS>(added, sums, begin);
        group.each_input([&](int k, const Floats *numbers) { add_input<TOKENS>(tokens, k, numbers, added); });
        each_sum<TOKENS>(added, sums, Scaled{group.scales});
    });
}

// ---- many tokens: numbers are kept in a panel -----------------------------------------------------------------------

inline void fill_panel_from_int4(const Int4Group &group, float *panel) {
    group.each_input([&](int k, const Floats *numbers) {
#pragma GCC unroll 4
        for (int j = 0; j < PANEL_VECTORS; j++) store(panel + k * PANEL_OUTPUTS + j * LANES, numbers[j]);
    });
}

inline void add_panel_products(const float *tokens, int count, const float *panel, int num_inputs, const float *scales,
                               float *sums) {
    with_count<TILE_TOKENS>(count, [&](auto constant) {
        constexpr int TOKENS = decltype(constant)::value;
        TileSums<TOKENS> added;
        each_sum<TOKENS>(added, sums, begin);
        add_inputs<TOKENS>(tokens, panel, num_inputs, added);
        each_sum<TOKENS>(added, sums, Scaled{scales});
    });
}

}  // namespace headrace
