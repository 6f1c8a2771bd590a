// Ragged attention over paged keys and values, for prompts and decoding rows alike.
//
// TILE_KEYS keys at a time, counted from position 0, are scored against up to TILE_QUERIES queries that share a KV head, and
// their values are weighed into results that are rescaled when a larger score comes. What is computed for one query, and in
// which order, depends on its position alone: not on the queries or rows beside it, nor on how a prompt is cut into chunks,
// nor on whether its keys are read for others, too (parties.h). Arithmetic is in fp32; where queries, keys and values are in
// bfloat16 and pairs of it are multiplied (words.h), weights are rounded to it, too.
#include "attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "codes.h"
#include "floats.h"
#include "pages.h"
#include "parties.h"
#include "scratch.h"
#include "words.h"

namespace headrace {
namespace {

constexpr int QUERY_BLOCK = LANES / 4;  // with 4 keys, as many pairs as a register has lanes
constexpr int QUERIES_TOGETHER = 16;  // of a lone token, with several KV heads: a few would wait for each number
constexpr int MANY_QUERIES = 8;  // from so many on a tile's keys are turned and its values rewritten, in memory of its own
constexpr float NEVER = -std::numeric_limits<float>::infinity();

int padded(int width) { return (width + LANES - 1) / LANES * LANES; }

// A thread's own tile. Rows are padded to whole registers; the padding is zero.
struct Tile {
    int key_words, value_width;  // padded
    Scratch<float> memory;
    float *queries, *keys, *turned_keys, *values, *results, *scores;
    Floats totals[TILE_QUERIES];  // each lane sums its own keys' weights
    // The largest score so far, and by what all that was added up before the last tile is to be multiplied.
    float most[TILE_QUERIES + LANES], factors[TILE_QUERIES + LANES];

    Tile(const Attention &call, int num_queries, int per_word)
        : key_words(padded((call.key_width + per_word - 1) / per_word)), value_width(padded(call.value_width)) {
        const size_t of_queries = num_queries * (key_words + value_width + TILE_KEYS);
        const size_t size = of_queries + TILE_KEYS * (2 * key_words + value_width);
        memory = scratch<float>(size);
        std::fill_n(memory.get(), size, 0.0f);
        queries = memory.get();
        results = queries + num_queries * key_words;
        scores = results + num_queries * value_width;
        keys = scores + num_queries * TILE_KEYS;
        turned_keys = keys + TILE_KEYS * key_words;
        values = turned_keys + TILE_KEYS * key_words;
    }
};

// The queries of a party for heads first_head .. stop_head: for each token, one for each head. They share a KV head; those of
// a lone token may have several, one after another.
struct Work {
    const Party *party;
    int kv_head, num_kv_heads, first_head, stop_head;

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

template <class Element, class Number>
void take_queries(const Attention &call, const Work &work, Tile &tile) {
    for (int q = 0; q < work.num_queries(); q++) {
        const Element *from = static_cast<const Element *>(call.query) + packed_row(call, work, q) * call.key_width;
        write_words(from, call.key_width, tile.queries + q * tile.key_words, Number());
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

// ---- scores of few queries: a register has words of one key ---------------------------------------------------------

// Products of QUERIES queries and KEYS keys, as many pairs as a register has lanes, in the order (query, key). On the way
// as many keys are asked for.
template <int QUERIES, int KEYS, class Number, class Element>
Floats products(const float *queries, int num_words, Rows<Element> keys, int k, Ahead ahead) {
    static_assert(QUERIES * KEYS == LANES, "as many pairs as lanes");
    Floats pairs[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) pairs[i] = zeros();
    for (int w = 0; w < num_words; w += LANES) {
        for (int i = w / LANES; i < KEYS; i += num_words / LANES) ahead.ask_for(k + i);
        Floats key[KEYS];
#pragma GCC unroll 16
        for (int i = 0; i < KEYS; i++) key[i] = keys.template words<Number>(k + i, w);
#pragma GCC unroll 16
        for (int q = 0; q < QUERIES; q++) {
            Floats query = load(queries + q * num_words + w);
#pragma GCC unroll 16
            for (int i = 0; i < KEYS; i++) {
                Floats &sum = pairs[q * KEYS + i];
                sum = fma_of_words(query, key[i], sum, Number());
            }
        }
    }
    return sums(pairs);
}

template <class Number, class Element>
void score(Tile &tile, Queries queries, Rows<Element> keys, Ahead ahead) {
    const int num_words = tile.key_words;
    int q = queries.first;
    for (; q + QUERY_BLOCK <= queries.stop; q += QUERY_BLOCK, ahead = {})
        for (int k = 0; k < TILE_KEYS; k += 4) {
            float scored[LANES];
            store(scored, products<QUERY_BLOCK, 4, Number>(tile.queries + q * num_words, num_words, keys, k, ahead));
            for (int i = 0; i < QUERY_BLOCK; i++)
                std::memcpy(tile.scores + (q + i) * TILE_KEYS + k, scored + 4 * i, 4 * sizeof(float));
        }
    for (; q < queries.stop; q++, ahead = {})
        for (int k = 0; k < TILE_KEYS; k += LANES)
            store(tile.scores + q * TILE_KEYS + k,
                  products<1, LANES, Number>(tile.queries + q * num_words, num_words, keys, k, ahead));
}

// ---- scores of many queries: a register has one word of many keys ---------------------------------------------------

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

// What lane `lane` adds up in `products`: every LANES-th word from there on.
template <int QUERIES, class Number>
Scores<QUERIES> lane_products(const float *queries, const float *keys, int num_words, int lane) {
    Scores<QUERIES> sum;
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; q++) sum.of[q][0] = sum.of[q][1] = zeros();
    for (int w = lane; w < num_words; w += LANES) {
        const Floats key[2] = {load(keys + w * TILE_KEYS), load(keys + w * TILE_KEYS + LANES)};
#pragma GCC unroll 8
        for (int q = 0; q < QUERIES; q++) {
            const Floats query = every(queries[q * num_words + w]);
            sum.of[q][0] = fma_of_words(query, key[0], sum.of[q][0], Number());
            sum.of[q][1] = fma_of_words(query, key[1], sum.of[q][1], Number());
        }
    }
    return sum;
}

// The sum of COUNT lanes, in the order of `sums`.
template <int QUERIES, class Number, int COUNT>
[[gnu::always_inline]] inline Scores<QUERIES> lanes_products(const float *queries, const float *keys, int num_words, int lane) {
    if constexpr (COUNT == 4) {
        const auto of = [=](int i) { return lane_products<QUERIES, Number>(queries, keys, num_words, lane + i); };
        return (of(0) + of(2)) + (of(1) + of(3));
    } else {
        return lanes_products<QUERIES, Number, COUNT / 2>(queries, keys, num_words, lane) +
               lanes_products<QUERIES, Number, COUNT / 2>(queries, keys, num_words, lane + COUNT / 2);
    }
}

template <int QUERIES, class Number>
void score_turned(Tile &tile, int q, const float *keys) {
    for (int k = 0; k < TILE_KEYS; k += 2 * LANES) {
        const float *queries = tile.queries + q * tile.key_words;
        const Scores<QUERIES> scores = lanes_products<QUERIES, Number, LANES>(queries, keys + k, tile.key_words, 0);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; i++) {
            store(tile.scores + (q + i) * TILE_KEYS + k, scores.of[i][0]);
            store(tile.scores + (q + i) * TILE_KEYS + k + LANES, scores.of[i][1]);
        }
    }
}

template <class Number>
void score_turned(Tile &tile, Queries queries, const float *keys) {
    int q = queries.first;
    for (; q + QUERY_BLOCK <= queries.stop; q += QUERY_BLOCK) score_turned<QUERY_BLOCK, Number>(tile, q, keys);
    for (; q < queries.stop; q++) score_turned<1, Number>(tile, q, keys);
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
Floats by_rule(const Attention &call, Floats products, int head, int position) {
    Floats scores = products * every(call.scale);
    if (call.softcap > 0) scores = every(call.softcap) * hyperbolic_tangent(scores / every(call.softcap));
    if (call.bias) scores = scores + load(call.bias + head * call.bias_stride + position);
    return scores;
}

// Writes a register of weights for keys from `k` on.
inline void write_weights(Floats weights, float *of_query, int k, float) { store(of_query + k, weights); }
inline void write_weights(Floats weights, float *of_query, int k, bfloat16) {
    store_for_pairs(reinterpret_cast<bfloat16 *>(of_query) + k, weights);
}

// Turns products into the words of weights, and finds by what each query's earlier results are to be multiplied.
template <class Number>
void weigh(const Attention &call, const Work &work, const Visit &visit, Tile &tile, Queries queries) {
    float highest[TILE_QUERIES + LANES];  // of this tile, then of all so far
    std::fill(highest + queries.stop, highest + queries.stop + LANES, NEVER);
    for_queries(work, visit, [&](int q, int head, Seen seen) {
        float *scores = tile.scores + q * TILE_KEYS;
        for (int k = 0; k < TILE_KEYS; k += LANES) {
            const Floats by_keys = by_rule(call, load(scores + k), head, visit.tile + k);
            store(scores + k, seen.all() ? by_keys : seen.of(k, by_keys, NEVER));
        }
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
            write_weights(weights, scores, k, Number());
            total = total + weights;
        }
        tile.totals[q] = total;
    });
}

// ---- results --------------------------------------------------------------------------------------------------------

template <int QUERIES, int VECTORS, class Number, class Values>
void add_values(Tile &tile, Values values, int q, int v, int stop, Ahead ahead) {
    constexpr int PER_WORD = numbers_per_word<Number>();
    Floats results[QUERIES][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < QUERIES; i++)
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; j++)
            results[i][j] = load(tile.results + (q + i) * tile.value_width + v + j * LANES) * every(tile.factors[q + i]);
    for (int k = 0; k * PER_WORD < stop; k++) {
#pragma GCC unroll 2
        for (int i = 0; i < PER_WORD; i++) ahead.ask_for(k * PER_WORD + i);
        Floats value[VECTORS];
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; j++) value[j] = values.load(k, v + j * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < QUERIES; i++) {
            Floats weight = every(tile.scores[(q + i) * TILE_KEYS + k]);
#pragma GCC unroll 16
            for (int j = 0; j < VECTORS; j++) results[i][j] = fma_of_words(weight, value[j], results[i][j], Number());
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < QUERIES; i++)
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; j++)
            store(tile.results + (q + i) * tile.value_width + v + j * LANES, results[i][j]);
}

// As many registers at a time as there are accumulators for, then half as many: one after another their sums would wait.
template <int QUERIES, int VECTORS, class Number, class Values>
void add_values_of(Tile &tile, Values values, int q, int stop, Ahead ahead, int v = 0) {
    for (; v + VECTORS * LANES <= tile.value_width; v += VECTORS * LANES)
        add_values<QUERIES, VECTORS, Number>(tile, values, q, v, stop, v ? Ahead{} : ahead);
    if constexpr (VECTORS > 1)
        if (v < tile.value_width) add_values_of<QUERIES, VECTORS / 2, Number>(tile, values, q, stop, ahead, v);
}

template <class Number, class Values>
void add_all_values(Tile &tile, Queries queries, Values values, int stop, Ahead ahead) {
    int q = queries.first;
    for (; q + QUERY_BLOCK <= queries.stop; q += QUERY_BLOCK)
        add_values_of<QUERY_BLOCK, 4, Number>(tile, values, q, stop, q == queries.first ? ahead : Ahead{});
    for (; q < queries.stop; q++)
        add_values_of<1, 8, Number>(tile, values, q, stop, q == queries.first ? ahead : Ahead{});
}

// ---- one piece of work ----------------------------------------------------------------------------------------------

// How a visit's keys and values are read by queries that share a KV head.
struct Reading {
    Visit visit;
    Queries queries;
    bool many, in_place;
};

template <class Number, class Element>
void score_all(Tile &tile, const Reading &reading, const Paged<Element> &keys, Ahead ahead) {
    keys.template with_rows<Number>(reading.visit, reading.in_place, tile.keys, tile.key_words, [&](auto rows) {
        if (reading.many)
            score_turned<Number>(tile, reading.queries, turned<Number>(rows, tile.key_words, tile.turned_keys));
        else
            score<Number>(tile, reading.queries, rows, ahead);
    });
}

template <class Number, class Element>
void add_all(Tile &tile, const Reading &reading, const Paged<Element> &values, Ahead ahead) {
    const Visit &visit = reading.visit;
    const auto add = [&](auto rows) { add_all_values<Number>(tile, reading.queries, rows, visit.stop, ahead); };
    if constexpr (std::is_same_v<Number, bfloat16>) {
        float *pairs = tile.values, *own = pairs + TILE_KEYS / 2 * tile.value_width;
        const auto add_pairs = [&](Rows<bfloat16> rows) {
            const PairedRows paired{rows, visit.stop};
            reading.many ? add(pairs_written(paired, tile.value_width, pairs)) : add(paired);
        };
        values.template with_rows<Number>(visit, reading.in_place, own, tile.value_width / 2, add_pairs);
    } else {
        const bool in_place = reading.in_place && (!reading.many || sizeof(Element) == sizeof(float));
        values.template with_rows<Number>(visit, in_place, tile.values, tile.value_width, add);
    }
}

template <class Number, class Element>
void attend(const Attention &call, const Work &work, Tile &tile) {
    const Paged<Element> keys(call, call.keys, call.key_strides, call.key_width, call.key_border);
    const Paged<Element> values(call, call.values, call.value_strides, call.value_width, call.value_width);
    const bool in_place = keys.readable_in_place(LANES * numbers_per_word<Number>()) && values.readable_in_place(LANES);
    const int stop_kv_head = work.kv_head + work.num_kv_heads;
    Visits visits(*work.party);
    Visit visit, next;
    bool more = visits.next(visit);
    for (int head = work.kv_head; more && head < stop_kv_head; head++)
        keys.of_head(head).ahead(visit).ask_for_all(), values.of_head(head).ahead(visit).ask_for_all();
    for (; more; visit = next) {
        more = visits.next(next);
        const Queries queries{visit.first_token * work.heads(), visit.stop_token * work.heads()};
        const int of_kv_head = (queries.stop - queries.first) / work.num_kv_heads;
        const bool many = of_kv_head >= MANY_QUERIES;
        const auto reading = [&](int head) {
            const int first = queries.first + (head - work.kv_head) * of_kv_head;
            return Reading{visit, {first, first + of_kv_head}, many, in_place};
        };
        const auto next_of = [&](const Paged<Element> &pages, int head) {
            return more ? pages.of_head(head).ahead(next) : Ahead{};
        };
        for (int head = work.kv_head; head < stop_kv_head; head++)
            score_all<Number>(tile, reading(head), keys.of_head(head), next_of(keys, head));
        weigh<Number>(call, work, visit, tile, queries);
        for (int head = work.kv_head; head < stop_kv_head; head++)
            add_all<Number>(tile, reading(head), values.of_head(head), next_of(many ? keys : values, head));
    }
}

// Of how many KV heads a lone token's queries are computed together: few enough that every thread has some.
int kv_heads_together(const Attention &call, size_t num_parties) {
    const int share = static_cast<int>(num_parties * call.num_kv_heads / call.num_threads);
    return std::max(1, std::min(share, QUERIES_TOGETHER * call.num_kv_heads / call.num_heads));
}

// All queries. Pieces that read the same keys come one after another.
std::vector<Work> divided(const Attention &call, const std::vector<Party> &parties) {
    const int group = call.num_heads / call.num_kv_heads, heads = heads_together(call);
    std::vector<Work> all;
    for (size_t first = 0, stop; first < parties.size(); first = stop) {
        for (stop = first + 1; stop < parties.size() && parties[stop].parts[0].ever_joins();) stop++;
        const bool is_lone = stop == first + 1 && parties[first].num_tokens() == 1;
        const int together = is_lone ? kv_heads_together(call, parties.size()) : 1;
        for (int kv_head = 0, next; kv_head < call.num_kv_heads; kv_head = next) {
            next = std::min(kv_head + together, call.num_kv_heads);
            for (int head = 0; head < group; head += heads) {
                const int first_head = kv_head * group + head, stop_head = (next - 1) * group + std::min(head + heads, group);
                for (size_t i = first; i < stop; i++)
                    all.push_back({&parties[i], kv_head, next - kv_head, first_head, stop_head});
            }
        }
    }
    return all;
}

template <class Query, class Element>
void attend_all(const Attention &call) {
    using Number = Multiplied<Query, Element>;
    const std::vector<Party> parties = all_parties(call);
    const std::vector<Work> all = divided(call, parties);
    int most_queries = 0;
    for (const Work &work : all) most_queries = std::max(most_queries, work.num_queries());
#pragma omp parallel num_threads(call.num_threads)
    {
        Tile tile(call, most_queries, numbers_per_word<Number>());
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < all.size(); i++) {
            take_queries<Query, Number>(call, all[i], tile);
            attend<Number, Element>(call, all[i], tile);
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
