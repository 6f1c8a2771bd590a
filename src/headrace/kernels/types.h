// Types of numbers in memory that belongs to tensors; headrace/kernels/types.py has the same numbers.
#pragma once

#include <cstdint>

namespace headrace {

enum Type : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };  // the last two: codes of pages

}  // namespace headrace
