// Registers of 8-bit numbers whose products are summed by fours into 32 bits: exact, so the same on every processor.
#pragma once

#include "floats.h"

namespace headrace {

#if defined(__AVX512VNNI__)

// Tokens' numbers are kept 128 too large, since the instruction wants those without a sign; a result is then
// 128 * (sum of its weights) too large.
constexpr int TOKEN_OFFSET = 128, BYTE_TILE_TOKENS = 6;

using Sums = __m512i;
struct Weights {
    __m512i all;
};
struct Numbers {
    __m512i all;
};
inline Sums no_sums() { return _mm512_setzero_si512(); }
inline Weights load_weights(const int8_t *p) {
    Weights w{_mm512_loadu_si512(p)};
    asm volatile("" : "+v"(w.all));  // else GCC 12 loads it again for each token
    return w;
}
inline Numbers every_four(const uint8_t *p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return {_mm512_set1_epi32(four)};
}
inline void add(Sums &sums, Numbers x, Weights w) {  // of the intrinsic GCC 12 makes two more copies
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x.all), "v"(w.all));
}

#elif defined(__AVX512F__)

constexpr int TOKEN_OFFSET = 0, BYTE_TILE_TOKENS = 4;

using Sums = __m512i;
struct Weights {
    __m512i even, odd;  // in 16 bits
};
using Numbers = Weights;
inline Weights widened_bytes(__m512i bytes) {
    return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
}
inline Sums no_sums() { return _mm512_setzero_si512(); }
inline Weights load_weights(const int8_t *p) { return widened_bytes(_mm512_loadu_si512(p)); }
inline Numbers every_four(const uint8_t *p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return widened_bytes(_mm512_set1_epi32(four));
}
inline void add(Sums &sums, Numbers x, Weights w) {
    sums = _mm512_add_epi32(sums, _mm512_add_epi32(_mm512_madd_epi16(x.even, w.even), _mm512_madd_epi16(x.odd, w.odd)));
}

#else

constexpr int TOKEN_OFFSET = 0, BYTE_TILE_TOKENS = 4;

using Sums = __m256i;
struct Weights {
    __m256i even, odd;  // in 16 bits
};
using Numbers = Weights;
inline Weights widened_bytes(__m256i bytes) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}
inline Sums no_sums() { return _mm256_setzero_si256(); }
inline Weights load_weights(const int8_t *p) {
    return widened_bytes(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline Numbers every_four(const uint8_t *p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return widened_bytes(_mm256_set1_epi32(four));
}
inline void add(Sums &sums, Numbers x, Weights w) {
    sums = _mm256_add_epi32(sums, _mm256_add_epi32(_mm256_madd_epi16(x.even, w.even), _mm256_madd_epi16(x.odd, w.odd)));
}

#endif

#if defined(__AVX512F__)
// Of fours of bytes the one at `place`.
inline Sums byte_of(const int32_t *fours, int place) {
    return _mm512_srai_epi32(_mm512_sll_epi32(_mm512_loadu_si512(fours), _mm_cvtsi32_si128(24 - 8 * place)), 24);
}
inline Floats to_floats(Sums sums) { return {_mm512_cvtepi32_ps(sums)}; }
inline Sums minus(Sums sums, const int32_t *p, int times) {
    return _mm512_sub_epi32(sums, _mm512_mullo_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(times)));
}
// The nearest whole numbers, which fit in a byte.
inline void store_bytes(uint8_t *p, Floats a, int plus) {
    __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(plus));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(whole));
}
#else
// Of fours of bytes the one at `place`.
inline Sums byte_of(const int32_t *fours, int place) {
    __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(fours));
    return _mm256_srai_epi32(_mm256_sll_epi32(all, _mm_cvtsi32_si128(24 - 8 * place)), 24);
}
inline Floats to_floats(Sums sums) { return {_mm256_cvtepi32_ps(sums)}; }
inline Sums minus(Sums sums, const int32_t *p, int times) {
    __m256i of = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return _mm256_sub_epi32(sums, _mm256_mullo_epi32(of, _mm256_set1_epi32(times)));
}
// The nearest whole numbers, which fit in a byte.
inline void store_bytes(uint8_t *p, Floats a, int plus) {
    __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(a.v), _mm256_set1_epi32(plus));
    __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(halves, halves));
}
#endif

}  // namespace headrace
