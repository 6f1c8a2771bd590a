// What headrace_attend is called with; headrace/kernels/attention.py has the same structure.
#pragma once

#include "types.h"

namespace headrace {

// T packed tokens of R rows, H heads of queries on K heads of keys (width D) and values (width V), pages of S tokens.
struct Attention {
    const void *query;   // (T, H, D)
    void *output;        // (T, H, V), of the query's type
    const void *keys;    // (blocks, K, S, D), or records of D numbers
    const void *values;  // (blocks, K, S, V), or records of V numbers
    int64_t key_strides[3], value_strides[3];              // of block, head and slot, in elements
    const int64_t *starts, *lengths, *query_starts;        // (R): position, number and place of a row's tokens
    const int64_t *block_table;                            // (R, table_width); -1 where no token is seen
    const float *bias;                                     // (H, bias_stride) added to scores by key position, or null
    const float *sinks;                                    // (H), or null
    int64_t table_width, bias_stride;                      // bias_stride: a multiple of 32
    int32_t query_type, kv_type;
    int32_t num_rows, num_heads, num_kv_heads, key_width, value_width, block_tokens;
    int32_t key_border;                                    // a key is a record of so many numbers, and one of the others
    int32_t window;                                        // 0: none
    int32_t num_threads;
    float scale, softcap;                                  // softcap 0: none
};

}  // namespace headrace

extern "C" void headrace_attend(const headrace::Attention *call);
