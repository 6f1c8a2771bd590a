// Puts keys and values of new tokens into pages, as numbers or in codes: byte for byte as compression/kv_codes.py does it.
//
// A value that is not finite is written as 0 and its key as NaN, as attention/ragged.py says it.
#include "kv_write.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "attention.h"
#include "codes.h"

namespace headrace {
namespace {

constexpr int ENOUGH_NUMBERS = 1 << 15;  // for more than one thread
constexpr float LEAST_SCALE = std::numeric_limits<float>::min();

// The next bfloat16 whose magnitude is not smaller, and the next one that is not larger.
bfloat16 away_from_zero(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<bfloat16>((bits + 0xffff) >> 16);
}
bfloat16 rounded_down(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return x < 0 ? away_from_zero(x) : static_cast<bfloat16>(bits >> 16);
}

inline void put(const float *codes, int count, Code<8> *to) {
    for (int d = 0; d < count; d++) to[d].byte = static_cast<uint8_t>(static_cast<int>(codes[d]));
}
inline void put(const float *codes, int count, Code<4> *to) {
    for (int d = 0; d + 1 < count; d += 2)
        to[d / 2].byte = static_cast<uint8_t>(static_cast<int>(codes[d]) + 16 * static_cast<int>(codes[d + 1]));
    if (count % 2) to[count / 2].byte = static_cast<uint8_t>(static_cast<int>(codes[count - 1]));
}

// Makes codes of `count` numbers, which are lost, and turned into them, together with as many as fill the last register.
template <int BITS>
void encode_group(float *numbers, int count, bool is_lost, Code<BITS> *codes, void *ends) {
    const int padded = (count + LANES - 1) / LANES * LANES;
    std::fill(numbers + count, numbers + padded, numbers[count - 1]);
    Floats low = load(numbers), high = low, nothing = zeros();  // the last: NaN where a number is not finite
    for (int d = 0; d < padded; d += LANES) {
        const Floats x = load(numbers + d);
        low = min(low, x);
        high = max(high, x);
        nothing = nothing + (x - x);
    }
    constexpr int LARGEST = (1 << BITS) - 1;
    bfloat16 pair[2];
    pair[1] = rounded_down(-largest(zeros() - low));
    const float minimum = widened(pair[1]), step = (largest(high) - minimum) / LARGEST;
    const bool is_number = !is_lost && sum(nothing) == 0 && step <= std::numeric_limits<float>::max();
    pair[0] = is_number ? away_from_zero(std::max(step, LEAST_SCALE)) : 0x7fc0;
    std::memcpy(ends, pair, sizeof(pair));
    const Floats scale = every(is_number ? widened(pair[0]) : 1.0f), most = every(LARGEST);
    for (int d = 0; d < padded; d += LANES) {
        const Floats code = rounded((load(numbers + d) - every(minimum)) / scale);
        store(numbers + d, is_number ? min(most, max(code, zeros())) : zeros());
    }
    put(numbers, count, codes);
}

// Writes what stands for `width` numbers of one head, or for their loss.
template <int BITS>
void put_record(float *numbers, int width, bool is_lost, Code<BITS> *record) {
    Code<BITS> *ends = record + code_bytes<BITS>(width);
    for (int d = 0; d < width; d += GROUP_NUMBERS, ends += ENDS_BYTES)
        encode_group(numbers + d, std::min(GROUP_NUMBERS, width - d), is_lost, record + d * BITS / 8, ends);
}

template <class Number>
void put_record(float *numbers, int width, bool is_lost, Number *record) {
    if (is_lost) std::fill(numbers, numbers + width, std::numeric_limits<float>::quiet_NaN());
    int d = 0;
    for (; d + LANES <= width; d += LANES) store(record + d, load(numbers + d));
    for (; d < width; d++) narrow(numbers[d], record + d);
}

// Makes 0 of what is not finite; returns whether there was such a number.
bool clean(float *numbers, int width) {
    Floats nothing = zeros();  // NaN where a number is not finite
    int d = 0;
    for (; d + LANES <= width; d += LANES) nothing = nothing + (load(numbers + d) - load(numbers + d));
    float rest = sum(nothing);
    for (; d < width; d++) rest += numbers[d] - numbers[d];
    if (rest == 0) return false;
    for (d = 0; d < width; d++)
        if (!std::isfinite(numbers[d])) numbers[d] = 0;
    return true;
}

template <class Page, class Element>
void write(const KVWrite &call, int token, float *numbers) {
    auto place = [&](void *pages, const int64_t *strides, int head) {
        return static_cast<Page *>(pages) + call.blocks[token] * strides[0] + head * strides[1] +
               call.slots[token] * strides[2];
    };
    auto numbers_of = [&](const void *all, const int64_t *strides, int head, int first, int width) {
        widen_row(static_cast<const Element *>(all) + token * strides[0] + head * strides[1] + first, width, numbers);
    };
    for (int head = 0; head < call.num_kv_heads; head++) {
        Page *key = place(call.key_pages, call.key_page_strides, head);
        const bool has_value = call.values;
        Page *value = has_value ? place(call.value_pages, call.value_page_strides, head) : key;
        numbers_of(has_value ? call.values : call.keys, has_value ? call.value_strides : call.key_strides, head, 0,
                   call.value_width);
        const bool is_lost = clean(numbers, call.value_width);
        put_record(numbers, call.value_width, false, value);
        const int first = has_value ? 0 : call.value_width;  // of the key's own numbers
        if (!has_value) key += Stored<Page>::elements(first);
        if (first == call.key_width) continue;
        numbers_of(call.keys, call.key_strides, head, first, call.key_width - first);
        put_record(numbers, call.key_width - first, is_lost, key);
    }
}

template <class Page, class Element>
void write_all(const KVWrite &call) {
    const int width = std::max(call.key_width, call.value_width);
    const int64_t work = static_cast<int64_t>(call.num_tokens) * call.num_kv_heads * width;
#pragma omp parallel num_threads(call.num_threads) if (work >= ENOUGH_NUMBERS)
    {
        std::vector<float> numbers(width + LANES);
#pragma omp for
        for (int token = 0; token < call.num_tokens; token++) write<Page, Element>(call, token, numbers.data());
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_write_kv(const headrace::KVWrite *call) {
    headrace::with_page_type(call->page_type, [=](auto element) {
        headrace::with_type(call->type, [=](auto number) {
            headrace::write_all<decltype(element), decltype(number)>(*call);
        });
    });
}
