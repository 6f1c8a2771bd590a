// A thread's own memory, on a border of cache lines: a register that lies across two of them is read in twice the time.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

namespace headrace {

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};

template <class Number>
using Scratch = std::unique_ptr<Number[], Free>;

template <class Number>
Scratch<Number> scratch(size_t count) {
    const size_t bytes = (count * sizeof(Number) + 63) / 64 * 64;
    void *memory = std::aligned_alloc(64, bytes);
    if (!memory && bytes) throw std::bad_alloc();
    return Scratch<Number>(static_cast<Number *>(memory));
}

}  // namespace headrace
