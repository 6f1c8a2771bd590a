// While a processor computes, memory would rest: what comes next is asked for a little at a time, since only so many lines can
// be on their way.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace headrace {

constexpr int LINE_BYTES = 64;

// No more than four lines. GCC drops calls of what only prefetches, unless it is inlined: here and below.
[[gnu::always_inline]] inline void ask_for_lines(const char *line, int count) {
    if (count > 0) _mm_prefetch(line, _MM_HINT_T1);
    if (count > 1) _mm_prefetch(line + LINE_BYTES, _MM_HINT_T1);
    if (count > 2) _mm_prefetch(line + 2 * LINE_BYTES, _MM_HINT_T1);
    if (count > 3) _mm_prefetch(line + 3 * LINE_BYTES, _MM_HINT_T1);
}

struct Nothing {
    void ask_for(int64_t) const {}
};

// `step` bytes at each step, one after another: no more than four lines, into the first cache or the second one.
struct NextBytes {
    const char *first;
    int64_t step;
    bool into_second;

    [[gnu::always_inline]] void ask_for(int64_t index) const {
        const char *line = first + index * step;
        if (into_second) return ask_for_lines(line, static_cast<int>((step + LINE_BYTES - 1) / LINE_BYTES));
        _mm_prefetch(line, _MM_HINT_T0);
        if (step > LINE_BYTES) _mm_prefetch(line + LINE_BYTES, _MM_HINT_T0);
        if (step > 2 * LINE_BYTES) _mm_prefetch(line + 2 * LINE_BYTES, _MM_HINT_T0);
        if (step > 3 * LINE_BYTES) _mm_prefetch(line + 3 * LINE_BYTES, _MM_HINT_T0);
    }
};

// Whether the first cache would lose what tiles multiply again, since each of so few asks for much at a time.
constexpr bool ask_for_much(int64_t num_tiles) { return num_tiles == 2 || num_tiles == 3; }

// The share of one of `number` steps over `count` places, each of which takes `bytes` on.
inline NextBytes share_of(const void *first, int64_t bytes, int64_t count, int64_t index, int64_t number,
                          bool into_second = false) {
    const int64_t step = bytes / number;
    return {static_cast<const char *>(first) + index * count * step, step, into_second};
}

}  // namespace headrace
