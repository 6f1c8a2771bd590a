// What headrace_write_kv is called with; headrace/kernels/kv_write.py has the same structure.
#pragma once

#include <cstdint>

namespace headrace {

// T new tokens with K heads of keys (width D) and values (width V), and the places in pages that they go to.
struct KVWrite {
    const void *keys;    // (T, K, D)
    const void *values;  // (T, K, V), or null where a value is the first V numbers of its key
    void *key_pages, *value_pages;                            // (blocks, K, slots, numbers or bytes)
    const int64_t *blocks, *slots;                            // (T)
    int64_t key_strides[2], value_strides[2];                 // of token and head, in elements
    int64_t key_page_strides[3], value_page_strides[3];       // of block, head and slot
    int32_t type, page_type;                                  // Type: of keys and values; of pages
    int32_t num_tokens, num_kv_heads, key_width, value_width;
    int32_t num_threads;
};

}  // namespace headrace

extern "C" void headrace_write_kv(const headrace::KVWrite *call);
