// Ragged attention over paged keys and values, for prompts and decoding rows alike.
//
// TILE_KEYS keys at a time, counted from position 0, are scored against up to TILE_QUERIES queries that share a KV head, and
// their values are weighed into results that are rescaled when a larger score comes. What is computed for one query, and in
// which order, depends on its position alone: not on the queries or rows beside it, nor on how a prompt is cut into chunks,
// nor on whether its keys are read for others, too (parties.h). Arithmetic is in fp32.
#include "attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "ahead.h"
#include "codes.h"
#include "floats.h"
#include "parties.h"
#include "scratch.h"

namespace headrace {
namespace {

constexpr int QUERY_BLOCK = LANES / 4;  // with 4 keys, as many pairs as a register has lanes
constexpr int MANY_QUERIES = 8;  // from so many on a tile's keys are turned and its values widened, in memory of its own
constexpr float NEVER = -std::numeric_limits<float>::infinity();

int padded(int width) { return (width + LANES - 1) / LANES * LANES; }

// A thread's own tile. Rows are padded to whole registers; the padding is zero.
struct Tile {
    int key_width, value_width;  // padded
    Scratch<float> memory;
    float *queries, *keys, *turned_keys, *values, *results, *scores;
    Floats totals[TILE_QUERIES];  // each lane sums its own keys' weights
    // The largest score so far, and by what all that was added up before the last tile is to be multiplied.
    float most[TILE_QUERIES + LANES], factors[TILE_QUERIES + LANES];

    Tile(const Attention &call, int num_queries)
        : key_width(padded(call.key_width)), value_width(padded(call.value_width)) {
        const size_t of_queries = num_queries * (key_width + value_width + TILE_KEYS);
        const size_t size = of_queries + TILE_KEYS * (2 * key_width + value_width);
        memory = scratch<float>(size);
        std::fill_n(memory.get(), size, 0.0f);
        queries = memory.get();
        results = queries + num_queries * key_width;
        scores = results + num_queries * value_width;
        keys = scores + num_queries * TILE_KEYS;
        turned_keys = keys + TILE_KEYS * key_width;
        values = turned_keys + TILE_KEYS * key_width;
    }
};

// The queries of a party for heads first_head .. stop_head, which share a KV head: for each token, one for each head.
struct Work {
    const Party *party;
    int kv_head, first_head, stop_head;

    int heads() const { return stop_head - first_head; }
    int num_queries() const { return party->num_tokens() * heads(); }
};

// Some of them, one behind the other.
struct Queries {
    int first, stop;
};

// ---- queries in, results out ----------------------------------------------------------------------------------------

int64_t packed_row(const Attention &call, const Work &work, int query) {
    const Token &token = work.party->tokens[query / work.heads()];
    return token.place * call.num_heads + work.first_head + query % work.heads();
}

template <class Element>
void take_queries(const Attention &call, const Work &work, Tile &tile) {
    const Floats scale = every(call.scale);
    for (int q = 0; q < work.num_queries(); q++) {
        float *query = tile.queries + q * tile.key_width;
        const Element *from = static_cast<const Element *>(call.query) + packed_row(call, work, q) * call.key_width;
        widen_row(from, call.key_width, query);
        for (int d = 0; d < tile.key_width; d += LANES) store(query + d, load(query + d) * scale);
        tile.most[q] = NEVER;
        tile.totals[q] = zeros();
    }
    std::fill(tile.results, tile.results + work.num_queries() * tile.value_width, 0.0f);
}

template <class Element>
void give_results(const Attention &call, const Work &work, const Tile &tile) {
    for (int q = 0; q < work.num_queries(); q++) {
        float total = sum(tile.totals[q]), factor = 1.0f;
        if (call.sinks) {
            float sink = call.sinks[work.first_head + q % work.heads()], most = std::max(tile.most[q], sink);
            factor = std::exp(tile.most[q] - most);
            total = total * factor + std::exp(sink - most);
        }
        Floats share = every(factor / total);
        const float *result = tile.results + q * tile.value_width;
        Element *to = static_cast<Element *>(call.output) + packed_row(call, work, q) * call.value_width;
        int v = 0;
        for (; v + LANES <= call.value_width; v += LANES) store(to + v, load(result + v) * share);
        for (; v < call.value_width; v++) narrow(result[v] * (factor / total), to + v);
    }
}

// ---- keys and values of a tile --------------------------------------------------------------------------------------

// TILE_KEYS keys or values: where they lie in their page, or widened in a tile's own memory.
template <class Element>
struct Rows {
    const Element *first;
    int64_t stride;
    int width;

    Floats load(int key, int d) const { return numbers(first + key * stride, width, d); }
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

// Keys or values of one KV head.
template <class Element>
struct Paged {
    const Element *pages;
    const int64_t *strides, *block_table;
    int64_t table_width;
    int block_tokens, width;
    int border;        // numbers of the first record; those behind it are another one
    int row_elements;  // of the pages

    Paged(const Attention &call, int kv_head, const void *pages, const int64_t *strides, int width, int border)
        : pages(static_cast<const Element *>(pages) + kv_head * strides[1]),
          strides(strides),
          block_table(call.block_table),
          table_width(call.table_width),
          block_tokens(call.block_tokens),
          width(width),
          border(border),
          row_elements(Stored<Element>::elements(border) + Stored<Element>::elements(width - border)) {}

    const Element *at(int row, int position) const {
        const int64_t block = block_table[row * table_width + position / block_tokens];
        return pages + block * strides[0] + position % block_tokens * strides[2];
    }
    // Whether a tile is one piece of a page.
    bool whole_tiles() const { return block_tokens % TILE_KEYS == 0; }
    // Whether its rows fill whole registers, and are one record each where they are codes.
    bool readable_in_place() const {
        return whole_tiles() && width % LANES == 0 && (border == width || !CODED<Element>);
    }
    Rows<Element> in_place(const Visit &visit) const { return {at(visit.row, visit.tile), strides[2], width}; }
    Ahead ahead(const Visit &visit) const {
        if (!whole_tiles()) return {};
        const int64_t size = sizeof(Element);
        const char *first = reinterpret_cast<const char *>(at(visit.row, visit.tile));
        return {first, strides[2] * size, static_cast<int>(row_elements * size)};
    }
    Rows<float> widened(const Visit &visit, float *to, int row_width) const {
        for (int key = visit.first; key < visit.stop; key++) {
            const Element *row = at(visit.row, visit.tile + key);
            float *target = to + key * row_width;
            widen_row(row, border, target);
            if (border < width) widen_row(row + Stored<Element>::elements(border), width - border, target + border);
        }
        return {to, row_width, width};
    }
};

// Writes the keys of a tile as (width, TILE_KEYS), and returns `to`.
template <class Element>
const float *turned(Rows<Element> keys, int width, float *to) {
    for (int k = 0; k < TILE_KEYS; k += LANES)
        for (int d = 0; d < width; d += LANES) {
            Floats square[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) square[i] = keys.load(k + i, d);
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(to + (d + i) * TILE_KEYS + k, square[i]);
        }
    return to;
}

// Gives `use` the keys or values of a visit: where they lie, or widened.
template <class Element, class Use>
void with_rows(const Paged<Element> &paged, const Visit &visit, bool in_place, float *to, int row_width, Use use) {
    if (in_place) return use(paged.in_place(visit));
    use(paged.widened(visit, to, row_width));
}

// ---- scores of few queries: a register has numbers of one key -------------------------------------------------------

// Products of QUERIES queries and KEYS keys, as many pairs as a register has lanes, in the order (query, key). On the way
// as many keys are asked for.
template <int QUERIES, int KEYS, class Element>
Floats products(const float *queries, int width, Rows<Element> keys, int k, Ahead ahead) {
    static_assert(QUERIES * KEYS == LANES, "as many pairs as lanes");
    Floats pairs[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) pairs[i] = zeros();
    for (int d = 0; d < width; d += LANES) {
        for (int i = d / LANES; i < KEYS; i += width / LANES) ahead.ask_for(k + i);
        Floats key[KEYS];
#pragma GCC unroll 16
        for (int i = 0; i < KEYS; i++) key[i] = keys.load(k + i, d);
#pragma GCC unroll 16
        for (int q = 0; q < QUERIES; q++) {
            Floats query = load(queries + q * width + d);
#pragma GCC unroll 16
            for (int i = 0; i < KEYS; i++) pairs[q * KEYS + i] = fma(query, key[i], pairs[q * KEYS + i]);
        }
    }
    return sums(pairs);
}

template <class Element>
void score(Tile &tile, Queries queries, Rows<Element> keys, Ahead ahead) {
    const int width = tile.key_width;
    int q = queries.first;
    for (; q + QUERY_BLOCK <= queries.stop; q += QUERY_BLOCK, ahead = {})
        for (int k = 0; k < TILE_KEYS; k += 4) {
            float scored[LANES];
            store(scored, products<QUERY_BLOCK, 4>(tile.queries + q * width, width, keys, k, ahead));
            for (int i = 0; i < QUERY_BLOCK; i++)
                std::memcpy(tile.scores + (q + i) * TILE_KEYS + k, scored + 4 * i, 4 * sizeof(float));
        }
    for (; q < queries.stop; q++, ahead = {})
        for (int k = 0; k < TILE_KEYS; k += LANES)
            store(tile.scores + q * TILE_KEYS + k, products<1, LANES>(tile.queries + q * width, width, keys, k, ahead));
}

// ---- scores of many queries: a register has one number of many keys -------------------------------------------------

// Scores, or parts of them, of QUERIES queries and two registers of keys.
template <int QUERIES>
struct Scores {
    Floats of[QUERIES][2];

    Scores operator+(const Scores &other) const {
        Scores both;
#pragma GCC unroll 8
        for (int q = 0; q < QUERIES; q++)
            both.of[q][0] = of[q][0] + other.of[q][0], both.of[q][1] = of[q][1] + other.of[q][1];
        return both;
    }
};

// What lane `lane` adds up in `products`: every LANES-th number from there on.
template <int QUERIES>
Scores<QUERIES> lane_products(const float *queries, const float *keys, int width, int lane) {
    Scores<QUERIES> sum;
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; q++) sum.of[q][0] = sum.of[q][1] = zeros();
    for (int d = lane; d < width; d += LANES) {
        const Floats key[2] = {load(keys + d * TILE_KEYS), load(keys + d * TILE_KEYS + LANES)};
#pragma GCC unroll 8
        for (int q = 0; q < QUERIES; q++) {
            const Floats query = every(queries[q * width + d]);
            sum.of[q][0] = fma(query, key[0], sum.of[q][0]);
            sum.of[q][1] = fma(query, key[1], sum.of[q][1]);
        }
    }
    return sum;
}

// The sum of NUMBER lanes, in the order of `sums`.
template <int QUERIES, int NUMBER>
[[gnu::always_inline]] inline Scores<QUERIES> lanes_products(const float *queries, const float *keys, int width, int lane) {
    if constexpr (NUMBER == 4) {
        const auto of = [=](int i) { return lane_products<QUERIES>(queries, keys, width, lane + i); };
        return (of(0) + of(2)) + (of(1) + of(3));
    } else {
        return lanes_products<QUERIES, NUMBER / 2>(queries, keys, width, lane) +
               lanes_products<QUERIES, NUMBER / 2>(queries, keys, width, lane + NUMBER / 2);
    }
}

template <int QUERIES>
void score_turned(Tile &tile, int q, const float *keys) {
    for (int k = 0; k < TILE_KEYS; k += 2 * LANES) {
        const float *queries = tile.queries + q * tile.key_width;
        const Scores<QUERIES> scores = lanes_products<QUERIES, LANES>(queries, keys + k, tile.key_width, 0);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; i++) {
            store(tile.scores + (q + i) * TILE_KEYS + k, scores.of[i][0]);
            store(tile.scores + (q + i) * TILE_KEYS + k + LANES, scores.of[i][1]);
        }
    }
}

void score_turned(Tile &tile, Queries queries, const float *keys) {
    int q = queries.first;
    for (; q + QUERY_BLOCK <= queries.stop; q += QUERY_BLOCK) score_turned<QUERY_BLOCK>(tile, q, keys);
    for (; q < queries.stop; q++) score_turned<1>(tile, q, keys);
}

// ---- weights --------------------------------------------------------------------------------------------------------

// The keys of a tile that a token sees.
struct Seen {
    int first, stop;

    bool all() const { return first <= 0 && TILE_KEYS <= stop; }
    // A register of keys from `k` on: what is not seen becomes `other`.
    Floats of(int k, Floats a, float other) const { return between(first - k, stop - k, a, other); }
};

// Calls `use` with each query of a visit, its head and what it sees.
template <class Use>
void for_queries(const Work &work, const Visit &visit, Use use) {
    int q = visit.first_token * work.heads();
    for (int i = visit.first_token; i < visit.stop_token; i++) {
        const Token &token = work.party->tokens[i];
        const Seen seen{token.lowest - visit.tile, token.newest + 1 - visit.tile};
        for (int head = work.first_head; head < work.stop_head; head++, q++) use(q, head, seen);
    }
}

// Of one register of keys from `position` on, as the model wants them.
Floats by_rule(const Attention &call, Floats scores, int head, int position) {
    if (call.softcap > 0) scores = every(call.softcap) * hyperbolic_tangent(scores / every(call.softcap));
    if (call.bias) scores = scores + load(call.bias + head * call.bias_stride + position);
    return scores;
}

// Turns scores into weights, and finds by what each query's earlier results are to be multiplied.
void weigh(const Attention &call, const Work &work, const Visit &visit, Tile &tile, Queries queries) {
    const bool as_they_are = call.softcap <= 0 && !call.bias;
    float highest[TILE_QUERIES + LANES];  // of this tile, then of all so far
    std::fill(highest + queries.stop, highest + queries.stop + LANES, NEVER);
    for_queries(work, visit, [&](int q, int head, Seen seen) {
        float *scores = tile.scores + q * TILE_KEYS;
        if (!as_they_are || !seen.all())
            for (int k = 0; k < TILE_KEYS; k += LANES)
                store(scores + k, seen.of(k, by_rule(call, load(scores + k), head, visit.tile + k), NEVER));
        Floats most = load(scores);
#pragma GCC unroll 4
        for (int k = LANES; k < TILE_KEYS; k += LANES) most = max(most, load(scores + k));
        highest[q] = largest(most);
    });
    for (int q = queries.first; q < queries.stop; q += LANES) {
        const Floats before = load(tile.most + q), most = max(before, load(highest + q));
        const Floats now = where_less(every(NEVER), most, most, zeros());  // zero: nothing is seen yet
        store(tile.factors + q, exponential(before - now));
        store(tile.most + q, most);
        store(highest + q, now);
    }
    for_queries(work, visit, [&](int q, int, Seen seen) {
        float *scores = tile.scores + q * TILE_KEYS;
        const Floats most = every(highest[q]);
        Floats total = tile.totals[q] * every(tile.factors[q]);
#pragma GCC unroll 4
        for (int k = 0; k < TILE_KEYS; k += LANES) {
            Floats weights = exponential(load(scores + k) - most);
            if (!seen.all()) weights = seen.of(k, weights, 0.0f);
            store(scores + k, weights);
            total = total + weights;
        }
        tile.totals[q] = total;
    });
}

// ---- results --------------------------------------------------------------------------------------------------------

template <int QUERIES, int VECTORS, class Element>
void add_values(Tile &tile, Rows<Element> values, int q, int v, int stop, Ahead ahead) {
    Floats results[QUERIES][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < QUERIES; i++)
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; j++)
            results[i][j] = load(tile.results + (q + i) * tile.value_width + v + j * LANES) * every(tile.factors[q + i]);
    for (int k = 0; k < stop; k++) {
        ahead.ask_for(k);
        Floats value[VECTORS];
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; j++) value[j] = values.load(k, v + j * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < QUERIES; i++) {
            Floats weight = every(tile.scores[(q + i) * TILE_KEYS + k]);
#pragma GCC unroll 16
            for (int j = 0; j < VECTORS; j++) results[i][j] = fma(weight, value[j], results[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < QUERIES; i++)
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; j++)
            store(tile.results + (q + i) * tile.value_width + v + j * LANES, results[i][j]);
}

// As many registers at a time as there are accumulators for, then half as many: one after another their sums would wait.
template <int QUERIES, int VECTORS, class Element>
void add_values_of(Tile &tile, Rows<Element> values, int q, int stop, Ahead ahead, int v = 0) {
    for (; v + VECTORS * LANES <= tile.value_width; v += VECTORS * LANES)
        add_values<QUERIES, VECTORS>(tile, values, q, v, stop, v ? Ahead{} : ahead);
    if constexpr (VECTORS > 1)
        if (v < tile.value_width) add_values_of<QUERIES, VECTORS / 2>(tile, values, q, stop, ahead, v);
}

template <class Element>
void add_all_values(Tile &tile, Queries queries, Rows<Element> values, int stop, Ahead ahead) {
    int q = queries.first;
    for (; q + QUERY_BLOCK <= queries.stop; q += QUERY_BLOCK)
        add_values_of<QUERY_BLOCK, 4>(tile, values, q, stop, q == queries.first ? ahead : Ahead{});
    for (; q < queries.stop; q++)
        add_values_of<1, 8>(tile, values, q, stop, q == queries.first ? ahead : Ahead{});
}

// ---- one piece of work ----------------------------------------------------------------------------------------------

template <class Element>
void attend(const Attention &call, const Work &work, Tile &tile) {
    const Paged<Element> keys(call, work.kv_head, call.keys, call.key_strides, call.key_width, call.key_border);
    const Paged<Element> values(call, work.kv_head, call.values, call.value_strides, call.value_width, call.value_width);
    const bool readable_in_place = keys.readable_in_place() && values.readable_in_place();
    Visits visits(*work.party);
    Visit visit, next;
    bool more = visits.next(visit);
    if (more) keys.ahead(visit).ask_for_all(), values.ahead(visit).ask_for_all();
    for (; more; visit = next) {
        more = visits.next(next);
        const Queries queries{visit.first_token * work.heads(), visit.stop_token * work.heads()};
        const bool many = queries.stop - queries.first >= MANY_QUERIES;
        with_rows(keys, visit, readable_in_place, tile.keys, tile.key_width, [&](auto rows) {
            if (many)
                score_turned(tile, queries, turned(rows, tile.key_width, tile.turned_keys));
            else
                score(tile, queries, rows, more ? keys.ahead(next) : Ahead{});
        });
        weigh(call, work, visit, tile, queries);
        const bool in_place = readable_in_place && (!many || sizeof(Element) == sizeof(float));
        with_rows(values, visit, in_place, tile.values, tile.value_width, [&](auto rows) {
            const Ahead ahead = !more ? Ahead{} : many ? keys.ahead(next) : values.ahead(next);
            add_all_values(tile, queries, rows, visit.stop, ahead);
        });
    }
}

// All queries. Pieces that read the same keys come one after another.
std::vector<Work> divided(const Attention &call, const std::vector<Party> &parties) {
    const int group = call.num_heads / call.num_kv_heads, heads = heads_together(call);
    std::vector<Work> all;
    for (size_t first = 0, stop; first < parties.size(); first = stop) {
        for (stop = first + 1; stop < parties.size() && parties[stop].parts[0].ever_joins();) stop++;
        for (int kv_head = 0; kv_head < call.num_kv_heads; kv_head++)
            for (int head = 0; head < group; head += heads)
                for (size_t i = first; i < stop; i++)
                    all.push_back({&parties[i], kv_head, kv_head * group + head,
                                   kv_head * group + std::min(head + heads, group)});
    }
    return all;
}

template <class Query, class Element>
void attend_all(const Attention &call) {
    const std::vector<Party> parties = all_parties(call);
    const std::vector<Work> all = divided(call, parties);
    int most_queries = 0;
    for (const Work &work : all) most_queries = std::max(most_queries, work.num_queries());
#pragma omp parallel num_threads(call.num_threads)
    {
        Tile tile(call, most_queries);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            take_queries<Query>(call, all[i], tile);
            attend<Element>(call, all[i], tile);
            give_results<Query>(call, all[i], tile);
        }
    }
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_attend(const headrace::Attention *call) {
    headrace::with_type(call->query_type, [=](auto number) {
        headrace::with_page_type(call->kv_type, [=](auto element) {
            headrace::attend_all<decltype(number), decltype(element)>(*call);
        });
    });
}
