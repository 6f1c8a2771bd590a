// Types of numbers in memory that belongs to tensors; headrace/kernels/types.py has the same numbers.
#pragma once

#include <cstdint>

namespace headrace {

enum Type : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };  // the last two: codes of pages

using bfloat16 = uint16_t;
struct float16 {
    uint16_t bits;
};

// Calls `use` with a number of the type.
template <class Use>
void with_type(int32_t type, Use use) {
    switch (type) {
        case FLOAT32: return use(float());
        case BFLOAT16: return use(bfloat16());
        case FLOAT16: return use(float16());
    }
}

}  // namespace headrace
