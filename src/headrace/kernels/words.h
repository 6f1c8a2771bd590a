// What is multiplied has words of 32 bits: a number in fp32, or a pair of bfloat16 where processors multiply those. Behind an
// odd number of them the second of a pair is zero.
#pragma once

#include <cstring>
#include <type_traits>

#include "floats.h"

namespace headrace {

template <class Number>
constexpr int numbers_per_word() { return 4 / sizeof(Number); }

// c plus the products of a's and b's words.
inline Floats fma_of_words(Floats a, Floats b, Floats c, float) { return fma(a, b, c); }
#if defined(__AVX512BF16__)
constexpr bool MULTIPLIES_PAIRS = true;
// Of the second numbers of pairs first.
inline Floats fma_of_words(Floats a, Floats b, Floats c, bfloat16) {
    return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
// As `store`, but for numbers that count as zero in pairs.
inline void store_for_pairs(bfloat16 *p, Floats a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}
#else
constexpr bool MULTIPLIES_PAIRS = false;
inline void store_for_pairs(bfloat16 *p, Floats a) { store(p, a); }
#endif

// What words have of numbers of two types.
template <class Element, class Other>
using Multiplied =
    std::conditional_t<MULTIPLIES_PAIRS && std::is_same_v<Element, bfloat16> && std::is_same_v<Other, bfloat16>, bfloat16, float>;

// Writes `count` numbers as words.
template <class Element>
void write_words(const Element *from, int count, float *to, float) {
    int k = 0;
    for (; k + LANES <= count; k += LANES) store(to + k, load(from + k));
    for (; k < count; k++) to[k] = widened(from[k]);
}
inline void write_words(const bfloat16 *from, int count, float *to, bfloat16) {
    if (count % 2) to[count / 2] = 0.0f;
    std::memcpy(to, from, count * sizeof(bfloat16));
}

}  // namespace headrace
