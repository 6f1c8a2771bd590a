// A register full of fp32 numbers, and what the kernels do with it: AVX-512 or AVX2, whichever this file is compiled for.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "types.h"

namespace headrace {

#if defined(__AVX512F__)

constexpr int LANES = 16;

struct Floats {
    __m512 v;
};

inline Floats zeros() { return {_mm512_setzero_ps()}; }
inline Floats every(float x) { return {_mm512_set1_ps(x)}; }
inline Floats load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline Floats load(const bfloat16 *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline Floats load(const float16 *p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))};
}
// As many bytes without a sign.
inline Floats load_bytes(const void *p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p))))};
}
// Two bfloat16 next to each other, each in every lane.
inline std::pair<Floats, Floats> every_of_two(const void *p) {
    int both;
    std::memcpy(&both, p, sizeof(both));
    __m512i all = _mm512_set1_epi32(both);
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(all, 16))},
            {_mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32(~0xffff)))}};
}
inline void store(float *p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline void store(float16 *p, Floats a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(bfloat16 *p, Floats a) {
    __m512i bits = _mm512_castps_si512(a.v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i nearest = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 is_number = _mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q);
    nearest = _mm512_mask_blend_epi32(is_number, _mm512_set1_epi32(0x7fc0), nearest);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(nearest));
}
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Of these two the second where either is no number.
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline float largest(Floats a) { return _mm512_reduce_max_ps(a.v); }
inline Floats rounded(Floats a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Floats times_power_of_two(Floats a, Floats exponent) { return {_mm512_scalef_ps(a.v, exponent.v)}; }
inline Floats magnitude(Floats a) { return {_mm512_abs_ps(a.v)}; }
// b where x < limit, else a.
inline Floats where_less(Floats x, Floats limit, Floats b, Floats a) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_LT_OQ), a.v, b.v)};
}
// `a` in lanes first <= lane < stop, and `other` elsewhere.
inline Floats between(int first, int stop, Floats a, float other) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 inside = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(first)) &
                       _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(stop));
    return {_mm512_mask_blend_ps(inside, _mm512_set1_ps(other), a.v)};
}

// The sums of LANES registers, each over its lanes in the same order, as one register.
inline Floats sums(const Floats *of) {
    __m512 pairs[8], fours[4], halves[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(of[2 * i].v, of[2 * i + 1].v),
                                 _mm512_unpackhi_ps(of[2 * i].v, of[2 * i + 1].v));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                                  _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
    return {_mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                          _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd))};
}

// Turns LANES registers of a square's rows into those of its columns.
inline void transpose(Floats *rows) {
    __m512 pairs[16], fours[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i].v, rows[2 * i + 1].v);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i].v, rows[2 * i + 1].v);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const int first = i / 2 * 4 + i % 2;
        __m512d a = _mm512_castps_pd(pairs[first]), b = _mm512_castps_pd(pairs[first + 2]);
        fours[2 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        fours[2 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
    // Now each quarter of fours[4 * g + c] is a column, 4 * quarter + c, of rows 4 * g to 4 * g + 3.
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512 even = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0x88);
        __m512 odd = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0xdd);
        __m512 even_below = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0x88);
        __m512 odd_below = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0xdd);
        rows[c] = {_mm512_shuffle_f32x4(even, even_below, 0x88)};
        rows[4 + c] = {_mm512_shuffle_f32x4(odd, odd_below, 0x88)};
        rows[8 + c] = {_mm512_shuffle_f32x4(even, even_below, 0xdd)};
        rows[12 + c] = {_mm512_shuffle_f32x4(odd, odd_below, 0xdd)};
    }
}

// Of 32 half-precision numbers in a register those at even places, and those at odd ones.
inline Floats evens(Floats halves, bfloat16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(halves.v), 16))};
}
inline Floats odds(Floats halves, bfloat16) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(halves.v), _mm512_set1_epi32(0xffff0000)))};
}
inline Floats evens(Floats halves, float16) {
    return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_castps_si512(halves.v)))};
}
inline Floats odds(Floats halves, float16) {
    return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(halves.v), 16)))};
}
// Pairs of LANES numbers each; the second ones are zero where they are null.
inline Floats paired(const bfloat16 *first, const bfloat16 *second) {
    const auto wide = [](const bfloat16 *p) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    };
    const __m512i seconds = second ? _mm512_slli_epi32(wide(second), 16) : _mm512_setzero_si512();
    return {_mm512_castsi512_ps(_mm512_or_si512(wide(first), seconds))};
}

#elif defined(__AVX2__)

constexpr int LANES = 8;

struct Floats {
    __m256 v;
};

inline Floats zeros() { return {_mm256_setzero_ps()}; }
inline Floats every(float x) { return {_mm256_set1_ps(x)}; }
inline Floats load(const float *p) { return {_mm256_loadu_ps(p)}; }
inline Floats load(const bfloat16 *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline Floats load(const float16 *p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))}; }
// As many bytes without a sign.
inline Floats load_bytes(const void *p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(p))))};
}
// Two bfloat16 next to each other, each in every lane.
inline std::pair<Floats, Floats> every_of_two(const void *p) {
    int both;
    std::memcpy(&both, p, sizeof(both));
    __m256i all = _mm256_set1_epi32(both);
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(all, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(all, _mm256_set1_epi32(~0xffff)))}};
}
inline void store(float *p, Floats a) { _mm256_storeu_ps(p, a.v); }
inline void store(float16 *p, Floats a) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(bfloat16 *p, Floats a) {
    __m256i bits = _mm256_castps_si256(a.v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i nearest = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i is_number = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_ORD_Q));
    nearest = _mm256_blendv_epi8(_mm256_set1_epi32(0x7fc0), nearest, is_number);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(nearest), _mm256_extracti128_si256(nearest, 1)));
}
inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// Of these two the second where either is no number.
inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
inline float largest(Floats a) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline Floats rounded(Floats a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Floats times_power_of_two(Floats a, Floats exponent) {
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent.v), _mm256_set1_epi32(127));
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)))};
}
inline Floats magnitude(Floats a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
// b where x < limit, else a.
inline Floats where_less(Floats x, Floats limit, Floats b, Floats a) {
    return {_mm256_blendv_ps(a.v, b.v, _mm256_cmp_ps(x.v, limit.v, _CMP_LT_OQ))};
}
// `a` in lanes first <= lane < stop, and `other` elsewhere.
inline Floats between(int first, int stop, Floats a, float other) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i outside = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                      _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(stop - 1)));
    return {_mm256_blendv_ps(a.v, _mm256_set1_ps(other), _mm256_castsi256_ps(outside))};
}

// The sums of LANES registers, each over its lanes in the same order, as one register.
inline Floats sums(const Floats *of) {
    __m256 pairs[4], fours[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        pairs[i] = _mm256_add_ps(_mm256_unpacklo_ps(of[2 * i].v, of[2 * i + 1].v),
                                 _mm256_unpackhi_ps(of[2 * i].v, of[2 * i + 1].v));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256d a = _mm256_castps_pd(pairs[2 * i]), b = _mm256_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return {_mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                          _mm256_permute2f128_ps(fours[0], fours[1], 0x31))};
}

// Turns LANES registers of a square's rows into those of its columns.
inline void transpose(Floats *rows) {
    __m256 pairs[8], fours[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i].v, rows[2 * i + 1].v);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i].v, rows[2 * i + 1].v);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const int first = i / 2 * 4 + i % 2;
        __m256d a = _mm256_castps_pd(pairs[first]), b = _mm256_castps_pd(pairs[first + 2]);
        fours[2 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
        fours[2 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
    // Now each half of fours[4 * g + c] is a column, 4 * half + c, of rows 4 * g to 4 * g + 3.
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        rows[c] = {_mm256_permute2f128_ps(fours[c], fours[4 + c], 0x20)};
        rows[4 + c] = {_mm256_permute2f128_ps(fours[c], fours[4 + c], 0x31)};
    }
}

// Of 16 half-precision numbers in a register those at even places, and those at odd ones.
inline Floats evens(Floats halves, bfloat16) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(halves.v), 16))};
}
inline Floats odds(Floats halves, bfloat16) {
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(halves.v), _mm256_set1_epi32(0xffff0000)))};
}
inline Floats narrow_pairs(__m256i low_halves) {
    return {_mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low_halves), _mm256_extracti128_si256(low_halves, 1)))};
}
inline Floats evens(Floats halves, float16) {
    return narrow_pairs(_mm256_and_si256(_mm256_castps_si256(halves.v), _mm256_set1_epi32(0xffff)));
}
inline Floats odds(Floats halves, float16) {
    return narrow_pairs(_mm256_srli_epi32(_mm256_castps_si256(halves.v), 16));
}
// Pairs of LANES numbers each; the second ones are zero where they are null.
inline Floats paired(const bfloat16 *first, const bfloat16 *second) {
    const auto wide = [](const bfloat16 *p) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    };
    const __m256i seconds = second ? _mm256_slli_epi32(wide(second), 16) : _mm256_setzero_si256();
    return {_mm256_castsi256_ps(_mm256_or_si256(wide(first), seconds))};
}

#else
#error "compile for AVX2 with FMA and F16C, or for AVX-512"
#endif

inline float sum(Floats a) {
    float lanes[LANES], total = 0;
    store(lanes, a);
    for (int i = 0; i < LANES; i++) total += lanes[i];
    return total;
}

inline float widened(bfloat16 x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}
inline float widened(float16 x) { return _cvtsh_ss(x.bits); }
inline float widened(float x) { return x; }

// To the nearest, of two the even one; what is no number stays none.
inline bfloat16 to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return 0x7fc0;
    return static_cast<bfloat16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void narrow(float x, float *to) { *to = x; }
inline void narrow(float x, bfloat16 *to) { *to = to_bfloat16(x); }
inline void narrow(float x, float16 *to) { to->bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

// exp(x), within 2e-7 of it relatively for -87 < x < 88, and 1.6e-38 below: Cody and Waite's reduction, Cephes' polynomial.
inline Floats exponential(Floats x) {
    x = max(every(-87.0f), x);
    Floats n = rounded(x * every(1.44269504088896341f));
    Floats r = fma(n, every(-0.693359375f), x);
    r = fma(n, every(2.12194440e-4f), r);
    Floats p = every(1.9875691500e-4f);
    p = fma(p, r, every(1.3981999507e-3f));
    p = fma(p, r, every(8.3334519073e-3f));
    p = fma(p, r, every(4.1665795894e-2f));
    p = fma(p, r, every(1.6666665459e-1f));
    p = fma(p, r, every(5.0000001201e-1f));
    p = fma(p, r * r, r) + every(1.0f);
    return times_power_of_two(p, n);
}

// tanh(x): of small x by its series, whose next term is below 3e-7 of it, else by exp.
inline Floats hyperbolic_tangent(Floats x) {
    Floats square = x * x;
    Floats p = every(62.0f / 2835.0f);
    p = fma(p, square, every(-17.0f / 315.0f));
    p = fma(p, square, every(2.0f / 15.0f));
    p = fma(p, square, every(-1.0f / 3.0f));
    Floats near = fma(p * square, x, x);
    Floats bounded = max(every(-15.0f), min(every(15.0f), x));
    Floats far = every(1.0f) - every(2.0f) / (exponential(bounded + bounded) + every(1.0f));
    return where_less(magnitude(x), every(0.35f), near, far);
}

}  // namespace headrace
