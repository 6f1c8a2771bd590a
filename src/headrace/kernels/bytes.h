// Registers of 8-bit numbers whose products are summed by fours into 32 bits: exact, so the same on every processor.
#pragma once

#include "floats.h"

namespace headrace {

inline int32_t four_bytes(const void *p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return four;
}

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
inline void keep(__m512i &loaded) { asm volatile("" : "+v"(loaded)); }  // else GCC 12 loads it again for each token
inline Sums no_sums() { return _mm512_setzero_si512(); }
inline Weights load_weights(const int8_t *p) {
    Weights w{_mm512_loadu_si512(p)};
    keep(w.all);
    return w;
}
inline Numbers every_four(const uint8_t *p) {
    return {_mm512_set1_epi32(four_bytes(p))};
}
inline void add_products(Sums &sums, __m512i without_sign, __m512i with_sign) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(without_sign), "v"(with_sign));  // the intrinsic makes two more copies
}
inline void add(Sums &sums, Numbers x, Weights w) { add_products(sums, x.all, w.all); }

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
inline void keep(__m512i &) {}
inline Sums no_sums() { return _mm512_setzero_si512(); }
// Of numbers whose sums by twos fit in 16 bits.
inline void add_products(Sums &sums, __m512i without_sign, __m512i with_sign) {
    const __m512i pairs = _mm512_maddubs_epi16(without_sign, with_sign);
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
inline Weights load_weights(const int8_t *p) { return widened_bytes(_mm512_loadu_si512(p)); }
inline Numbers every_four(const uint8_t *p) {
    return widened_bytes(_mm512_set1_epi32(four_bytes(p)));
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
inline void keep(__m256i &) {}
inline Sums no_sums() { return _mm256_setzero_si256(); }
// Of numbers whose sums by twos fit in 16 bits.
inline void add_products(Sums &sums, __m256i without_sign, __m256i with_sign) {
    const __m256i pairs = _mm256_maddubs_epi16(without_sign, with_sign);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Weights load_weights(const int8_t *p) {
    return widened_bytes(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline Numbers every_four(const uint8_t *p) {
    return widened_bytes(_mm256_set1_epi32(four_bytes(p)));
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
inline Sums load_sums(const int32_t *p) { return _mm512_loadu_si512(p); }
inline void store_sums(int32_t *p, Sums sums) { _mm512_storeu_si512(p, sums); }
inline Floats to_floats(Sums sums) { return {_mm512_cvtepi32_ps(sums)}; }
inline Sums minus(Sums sums, const int32_t *p, int times) {
    return _mm512_sub_epi32(sums, _mm512_mullo_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(times)));
}
// The nearest whole numbers, which fit in a byte.
inline void store_bytes(uint8_t *p, Floats a, int plus) {
    __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(plus));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(whole));
}

// Codes of four bits, each in a byte, whose products with tokens' numbers are added by fours.
using Codes = __m512i;
inline Codes load_codes(const uint8_t *p) { return _mm512_loadu_si512(p); }
inline void store_codes(uint8_t *p, Codes codes) { _mm512_storeu_si512(p, codes); }
// Of the eight codes in each word those at even places, or those at odd ones.
template <int ODD>
Codes nibbles(Codes words) {
    return _mm512_and_si512(ODD ? _mm512_srli_epi32(words, 4) : words, _mm512_set1_epi8(15));
}
inline Codes every_four(const int8_t *p) {
    return _mm512_set1_epi32(four_bytes(p));
}
// Whole numbers, of each eight those at even places before the others.
inline void store_evens_first(int8_t *p, Floats whole) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole.v));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm_shuffle_epi8(bytes, order));
}
#else
// Of fours of bytes the one at `place`.
inline Sums byte_of(const int32_t *fours, int place) {
    __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(fours));
    return _mm256_srai_epi32(_mm256_sll_epi32(all, _mm_cvtsi32_si128(24 - 8 * place)), 24);
}
inline Sums load_sums(const int32_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
inline void store_sums(int32_t *p, Sums sums) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), sums); }
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

// Codes of four bits, each in a byte, whose products with tokens' numbers are added by fours.
using Codes = __m256i;
inline Codes load_codes(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
inline void store_codes(uint8_t *p, Codes codes) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), codes); }
// Of the eight codes in each word those at even places, or those at odd ones.
template <int ODD>
Codes nibbles(Codes words) {
    return _mm256_and_si256(ODD ? _mm256_srli_epi32(words, 4) : words, _mm256_set1_epi8(15));
}
inline Codes every_four(const int8_t *p) {
    return _mm256_set1_epi32(four_bytes(p));
}
// Whole numbers, of each eight those at even places before the others.
inline void store_evens_first(int8_t *p, Floats whole) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i numbers = _mm256_cvtps_epi32(whole.v);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_shuffle_epi8(_mm_packs_epi16(halves, halves), order));
}
#endif

// How numbers become bytes: by `factor`, and back by `step`, which is not a number where one of them is none.
struct Scale {
    float factor, step;
};

// The first `count` numbers of a register's, and zeros.
template <class Element>
Floats load_some(const Element *from, int64_t count) {
    if (count >= LANES) return load(from);
    float some[LANES] = {};
    for (int64_t k = 0; k < count; k++) some[k] = widened(from[k]);
    return load(some);
}

template <class Element>
Scale scale_to_bytes(const Element *from, int64_t count) {
    constexpr float LARGEST = 127;
    Floats most = zeros(), faults = zeros();
    for (int64_t k = 0; k < count; k += LANES) {
        const Floats x = load_some(from + k, count - k);
        most = max(magnitude(x), most);
        faults = faults + (x - x);
    }
    const float largest_one = largest(most), fault = sum(faults);
    return {largest_one > 0 && fault == 0 ? LARGEST / largest_one : 0, largest_one / LARGEST + fault};
}

}  // namespace headrace
