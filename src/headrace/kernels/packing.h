// How packed weights lie in memory and in files: the same for every instruction set.
//
// Weights of PACKED_OUTPUTS outputs lie together, outputs and inputs padded with zeros; K counts padded inputs.
//
// int4, for each such part and each group of G inputs:
//   uint32 codes[G / 8][PACKED_OUTPUTS]   eight inputs in a word, the first in its lowest four bits
//   float  scales[PACKED_OUTPUTS]         weight = scale * (code - zero)
//   uint8  zeros[PACKED_OUTPUTS]
//
// int8, for each such part:
//   int8   codes[K / 4][PACKED_OUTPUTS][4]
//   float  scales[PACKED_OUTPUTS]         weight = scale * code
//   int32  sums[PACKED_OUTPUTS]           of an output's codes
#pragma once

#include <cstdint>

namespace headrace {

constexpr int PACKED_OUTPUTS = 64;

inline int64_t int4_group_bytes(int64_t group_inputs) { return PACKED_OUTPUTS * (group_inputs / 2 + 4 + 1); }
inline int64_t int8_part_bytes(int64_t padded_inputs) { return PACKED_OUTPUTS * (padded_inputs + 4 + 4); }

}  // namespace headrace
