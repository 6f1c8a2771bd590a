// What pages hold: numbers, or keys and values in codes, as compression/kv_codec.py describes them. The numbers of one head
// of a token are a record of bytes then: their codes of 8 or 4 bits, and a scale and a minimum, both bfloat16, for each 64.
#pragma once

#include "floats.h"

namespace headrace {

constexpr int GROUP_NUMBERS = 64;
constexpr int ENDS_BYTES = 4;

// A byte of a record.
template <int BITS>
struct Code {
    uint8_t byte;
};

template <class Element>
constexpr bool CODED = false;
template <int BITS>
constexpr bool CODED<Code<BITS>> = true;

template <int BITS>
int code_bytes(int width) {
    return (width * BITS + 7) / 8;
}

// How many elements of a page `width` numbers of one head take.
template <class Element>
struct Stored {
    static int elements(int width) { return width; }
};
template <int BITS>
struct Stored<Code<BITS>> {
    static int elements(int width) {
        return code_bytes<BITS>(width) + ENDS_BYTES * ((width + GROUP_NUMBERS - 1) / GROUP_NUMBERS);
    }
};

// Calls `use` with an element of pages of the type.
template <class Use>
void with_page_type(int32_t type, Use use) {
    switch (type) {
        case INT8: return use(Code<8>());
        case INT4: return use(Code<4>());
        default: return with_type(type, use);
    }
}

// A register full of codes.
inline Floats load(const Code<8> *p) { return load_bytes(p); }
#if defined(__AVX512F__)
inline Floats load(const Code<4> *p) {
    __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
    // Each byte's upper half goes to the upper 32 of its 64 bits.
    __m512i halves = _mm512_or_si512(bytes, _mm512_slli_epi64(bytes, 28));
    return {_mm512_cvtepi32_ps(_mm512_and_si512(halves, _mm512_set1_epi32(15)))};
}
#else
inline Floats load(const Code<4> *p) {
    int four;
    std::memcpy(&four, p, 4);
    __m256i bytes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
    __m256i halves = _mm256_or_si256(bytes, _mm256_slli_epi64(bytes, 28));
    return {_mm256_cvtepi32_ps(_mm256_and_si256(halves, _mm256_set1_epi32(15)))};
}
#endif

inline float code(const Code<8> *record, int d) { return record[d].byte; }
inline float code(const Code<4> *record, int d) { return record[d / 2].byte >> 4 * (d % 2) & 15; }

// Of `width` numbers as they lie in a page a register full from number `d` on, which LANES divides.
template <class Element>
Floats numbers(const Element *from, int, int d) {
    return load(from + d);
}
template <int BITS>
Floats numbers(const Code<BITS> *record, int width, int d) {
    static_assert(GROUP_NUMBERS % LANES == 0, "a register is of one group");
    const auto [scale, minimum] = every_of_two(record + code_bytes<BITS>(width) + d / GROUP_NUMBERS * ENDS_BYTES);
    return fma(load(record + d * BITS / 8), scale, minimum);
}

// A single one of them.
template <class Element>
float number(const Element *from, int, int d) {
    return widened(from[d]);
}
template <int BITS>
float number(const Code<BITS> *record, int width, int d) {
    bfloat16 ends[2];
    std::memcpy(ends, record + code_bytes<BITS>(width) + d / GROUP_NUMBERS * ENDS_BYTES, sizeof(ends));
    return std::fma(code(record, d), widened(ends[0]), widened(ends[1]));
}

// All of them, in fp32.
template <class Element>
void widen_row(const Element *from, int width, float *to) {
    int d = 0;
    for (; d + LANES <= width; d += LANES) store(to + d, numbers(from, width, d));
    for (; d < width; d++) to[d] = number(from, width, d);
}

}  // namespace headrace
