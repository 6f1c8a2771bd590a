// Keys and values, tile by tile: where they lie in their pages, or in a tile's own memory.
#pragma once

#include <type_traits>

#include "ahead.h"
#include "codes.h"
#include "parties.h"
#include "words.h"

namespace headrace {

// TILE_KEYS keys or values.
template <class Element>
struct Rows {
    const Element *first;
    int64_t stride;
    int width;

    // A register of numbers of a key from `d` on.
    Floats load(int key, int d) const { return numbers(first + key * stride, width, d); }
    // A register of its words from `w` on.
    template <class Number>
    Floats words(int key, int w) const {
        if constexpr (std::is_same_v<Number, Element>)
            return headrace::load(reinterpret_cast<const float *>(first + key * stride) + w);
        else
            return load(key, w);
    }
};

// Values of two keys in each word; those from `stop` on are none.
struct PairedRows {
    Rows<bfloat16> rows;
    int stop;

    Floats load(int pair, int v) const {
        const bfloat16 *value = rows.first + 2 * pair * rows.stride + v;
        return paired(value, 2 * pair + 1 < stop ? value + rows.stride : nullptr);
    }
};

// The lines of keys or values that the next visit needs, asked for row by row during the one before: memory takes longer to
// answer than half a visit does.
struct Ahead {
    const char *first = nullptr;
    int64_t stride = 0;
    int row_bytes = 0;

    // Inlined, as ask_for_lines is.
    [[gnu::always_inline]] void ask_for(int row) const {
        if (!first) return;
        for (int line = 0; line < row_bytes; line += LINE_BYTES) _mm_prefetch(first + row * stride + line, _MM_HINT_T1);
    }
    [[gnu::always_inline]] void ask_for_all() const {
        for (int row = 0; row < TILE_KEYS; row++) ask_for(row);
    }
};

// Keys or values: of the first KV head, or of the one that `of_head` was asked for.
template <class Element>
struct Paged {
    const Element *pages;
    const int64_t *strides, *block_table;
    int64_t table_width;
    int block_tokens, width;
    int border;        // numbers of the first record; those behind it are another one
    int row_elements;  // of the pages

    Paged(const Attention &call, const void *pages, const int64_t *strides, int width, int border)
        : pages(static_cast<const Element *>(pages)),
          strides(strides),
          block_table(call.block_table),
          table_width(call.table_width),
          block_tokens(call.block_tokens),
          width(width),
          border(border),
          row_elements(Stored<Element>::elements(border) + Stored<Element>::elements(width - border)) {}

    Paged of_head(int kv_head) const {
        Paged of = *this;
        of.pages += kv_head * strides[1];
        return of;
    }
    const Element *at(int row, int position) const {
        const int64_t block = block_table[row * table_width + position / block_tokens];
        return pages + block * strides[0] + position % block_tokens * strides[2];
    }
    // Whether a tile is one piece of a page.
    bool whole_tiles() const { return block_tokens % TILE_KEYS == 0; }
    // Whether its rows fill whole registers of so many numbers, and are one record each where they are codes.
    bool readable_in_place(int register_numbers) const {
        return whole_tiles() && width % register_numbers == 0 && (border == width || !CODED<Element>);
    }
    Rows<Element> in_place(const Visit &visit) const { return {at(visit.row, visit.tile), strides[2], width}; }
    Ahead ahead(const Visit &visit) const {
        if (!whole_tiles()) return {};
        const int64_t size = sizeof(Element);
        const char *first = reinterpret_cast<const char *>(at(visit.row, visit.tile));
        return {first, strides[2] * size, static_cast<int>(row_elements * size)};
    }
    // Written to memory with `row_words` for each row.
    template <class Number>
    Rows<Number> written(const Visit &visit, float *to, int row_words) const {
        for (int key = visit.first; key < visit.stop; key++) {
            const Element *row = at(visit.row, visit.tile + key);
            float *target = to + key * row_words;
            if constexpr (CODED<Element>) {
                widen_row(row, border, target);
                if (border < width) widen_row(row + Stored<Element>::elements(border), width - border, target + border);
            } else {
                write_words(row, width, target, Number());
            }
        }
        return {reinterpret_cast<const Number *>(to), row_words * numbers_per_word<Number>(), width};
    }
    // Gives `use` the rows of a visit: where they lie, or written to memory.
    template <class Number, class Use>
    void with_rows(const Visit &visit, bool where_they_lie, float *to, int row_words, Use use) const {
        if (where_they_lie) return use(in_place(visit));
        use(written<Number>(visit, to, row_words));
    }
};

// Writes the words of a tile's keys as (num_words, TILE_KEYS), and returns `to`.
template <class Number, class Element>
const float *turned(Rows<Element> keys, int num_words, float *to) {
    for (int k = 0; k < TILE_KEYS; k += LANES)
        for (int w = 0; w < num_words; w += LANES) {
            Floats square[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) square[i] = keys.template words<Number>(k + i, w);
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(to + (w + i) * TILE_KEYS + k, square[i]);
        }
    return to;
}

// Writes the pairs of a tile's values as (TILE_KEYS / 2, width), and returns them.
inline Rows<float> pairs_written(const PairedRows &values, int width, float *to) {
    for (int pair = 0; 2 * pair < values.stop; pair++)
        for (int v = 0; v < width; v += LANES) store(to + pair * width + v, values.load(pair, v));
    return {to, width, width};
}

}  // namespace headrace
