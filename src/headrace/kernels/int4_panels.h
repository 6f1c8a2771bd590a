// Panels of weights that are packed in four bits.
#pragma once

#include "packing.h"
#include "panels.h"

namespace headrace {

// Four bits in the highest places of a mantissa make 1 + code / 16.
template <int PLACE>
Floats sixteenths_above_one(const uint32_t *words);

#if defined(__AVX512F__)
template <int PLACE>
Floats sixteenths_above_one(const uint32_t *words) {
    __m512i word = _mm512_loadu_si512(words);
    word = PLACE < 5 ? _mm512_slli_epi32(word, 19 - 4 * PLACE) : _mm512_srli_epi32(word, 4 * PLACE - 19);
    const __m512i one = _mm512_set1_epi32(0x3f800000), places = _mm512_set1_epi32(0x00780000);
    return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(word, places, one, 0xea))};  // (word & places) | one
}
inline Floats load(const uint8_t *p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))))};
}
#else
template <int PLACE>
Floats sixteenths_above_one(const uint32_t *words) {
    __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(words));
    word = PLACE < 5 ? _mm256_slli_epi32(word, 19 - 4 * PLACE) : _mm256_srli_epi32(word, 4 * PLACE - 19);
    const __m256i one = _mm256_set1_epi32(0x3f800000), places = _mm256_set1_epi32(0x00780000);
    return {_mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(word, places), one))};
}
inline Floats load(const uint8_t *p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))))};
}
#endif

// Whole groups of inputs, from the first of `group` on, of the outputs at `offset` of a part.
inline void fill_panel_from_int4(const uint8_t *group, int offset, int num_groups, int group_inputs, float *panel) {
    for (int g = 0; g < num_groups; g++, group += int4_group_bytes(group_inputs)) {
        const uint32_t *codes = reinterpret_cast<const uint32_t *>(group);
        const float *scales = reinterpret_cast<const float *>(codes + group_inputs / 8 * PACKED_OUTPUTS);
        const uint8_t *zeros = reinterpret_cast<const uint8_t *>(scales + PACKED_OUTPUTS);
#pragma GCC unroll 4
        for (int j = 0; j < PANEL_VECTORS; j++) {
            const int n = offset + j * LANES;
            // Differences of sixteenths are exact, so that a weight is rounded once.
            const Floats scale = load(scales + n) * every(16.0f);
            const Floats zero = fma(load(zeros + n), every(1.0f / 16), every(1.0f));
            float *to = panel + g * group_inputs * PANEL_OUTPUTS + j * LANES;
            for (int word = 0; word < group_inputs / 8; word++, to += 8 * PANEL_OUTPUTS) {
                const uint32_t *from = codes + word * PACKED_OUTPUTS + n;
                _mm_prefetch(reinterpret_cast<const char *>(from) + int4_group_bytes(group_inputs), _MM_HINT_T1);
                store(to + 0 * PANEL_OUTPUTS, (sixteenths_above_one<0>(from) - zero) * scale);
                store(to + 1 * PANEL_OUTPUTS, (sixteenths_above_one<1>(from) - zero) * scale);
                store(to + 2 * PANEL_OUTPUTS, (sixteenths_above_one<2>(from) - zero) * scale);
                store(to + 3 * PANEL_OUTPUTS, (sixteenths_above_one<3>(from) - zero) * scale);
                store(to + 4 * PANEL_OUTPUTS, (sixteenths_above_one<4>(from) - zero) * scale);
                store(to + 5 * PANEL_OUTPUTS, (sixteenths_above_one<5>(from) - zero) * scale);
                store(to + 6 * PANEL_OUTPUTS, (sixteenths_above_one<6>(from) - zero) * scale);
                store(to + 7 * PANEL_OUTPUTS, (sixteenths_above_one<7>(from) - zero) * scale);
            }
        }
    }
}

}  // namespace headrace
