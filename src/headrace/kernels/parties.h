// Which tokens attend together, and over which keys: integers only.
//
// Keys are gone over in tiles, counted from position 0. Tokens of several rows are a party where their tables name the same
// blocks, as those of rows whose prompts begin alike do: a tile there is read once for all of them. Elsewhere the tokens of
// each row see it by themselves.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "attention.h"

namespace headrace {

constexpr int TILE_KEYS = 32;
constexpr int TILE_QUERIES = 128;
constexpr int MOST_HEADS = 32;

inline int tile_of(int position) { return position / TILE_KEYS * TILE_KEYS; }

// Sees the positions lowest .. newest of its row, of which the newest is its own.
struct Token {
    int64_t place;  // among the packed ones
    int lowest, newest;
};

// Neighbouring tokens of one row, which see the positions lowest .. newest.
struct Part {
    int row, first_token, num_tokens;
    int lowest, newest;
    int common_from = 0, common_stop = 0;  // between these both it and the part before see every tile, in the same blocks

    bool sees(int tile) const { return tile_of(lowest) <= tile && tile <= newest; }
    bool joins(int tile) const { return common_from <= tile && tile < common_stop; }
    bool ever_joins() const { return common_from < common_stop; }
};

// Tokens that are computed together, part by part.
struct Party {
    std::vector<Part> parts;
    std::vector<Token> tokens;

    int num_tokens() const { return static_cast<int>(tokens.size()); }
};

// Tokens first_token .. stop_token of a party see keys first .. stop, counted from position `tile`, in the blocks of `row`:
// the outermost of them at least one, each of the others one or none.
struct Visit {
    int tile, row, first, stop, first_token, stop_token;
};

// The visits of a party, tile by tile.
class Visits {
    const std::vector<Part> &parts;
    const std::vector<Token> &tokens;
    int tile = std::numeric_limits<int>::max(), newest = 0;
    size_t part = 0;
    int token = 0;

  public:
    explicit Visits(const Party &party) : parts(party.parts), tokens(party.tokens) {
        for (const Part &each : parts) {
            tile = std::min(tile, tile_of(each.lowest));
            newest = std::max(newest, each.newest);
        }
    }

    // Puts the next one into `visit`, if there is one more.
    bool next(Visit &visit) {
        for (; tile <= newest; tile += TILE_KEYS, part = 0, token = 0)
            while (part < parts.size()) {
                const Part &first = parts[part];
                visit = {tile, first.row, std::max(first.lowest - tile, 0), 0, token, token};
                do {
                    visit.stop = std::max(visit.stop, std::min(parts[part].newest + 1 - tile, TILE_KEYS));
                    visit.stop_token = token += parts[part].num_tokens;
                } while (++part < parts.size() && parts[part].joins(tile));
                if (!first.sees(tile)) continue;
                while (tokens[visit.first_token].newest < tile) visit.first_token++;
                while (tokens[visit.stop_token - 1].lowest >= tile + TILE_KEYS) visit.stop_token--;
                return true;
            }
        return false;
    }
};

inline const int64_t *table_of(const Attention &call, int row) { return call.block_table + row * call.table_width; }

inline int lowest_seen(const Attention &call, int position) {
    return call.window ? std::max(0, position - call.window + 1) : 0;
}

// Finds out over which tiles a part can join the one before it.
inline void compare(const Attention &call, const Part &before, Part &part) {
    const int both_newest = std::min(before.newest, part.newest), stop = tile_of(both_newest) + TILE_KEYS;
    const int from = tile_of(std::max(before.lowest, part.lowest) + TILE_KEYS - 1);
    const int64_t *blocks = table_of(call, part.row), *others = table_of(call, before.row);
    const int64_t size = call.block_tokens, end = std::min(call.table_width, (stop + size - 1) / size);
    int64_t block = from / size;
    while (block < end && blocks[block] == others[block]) block++;
    part.common_from = from;
    part.common_stop = block < end ? tile_of(static_cast<int>(block * size)) : stop;
}

// All tokens in parts of at most `most_tokens`; rows whose tables begin alike are neighbours.
inline std::vector<Part> all_parts(const Attention &call, int most_tokens) {
    std::vector<int> rows(call.num_rows);
    std::iota(rows.begin(), rows.end(), 0);
    std::stable_sort(rows.begin(), rows.end(), [&](int row, int other) {
        return std::memcmp(table_of(call, row), table_of(call, other), call.table_width * sizeof(int64_t)) < 0;
    });
    std::vector<Part> parts;
    for (int row : rows)
        for (int token = 0; token < call.lengths[row]; token += most_tokens) {
            const int num_tokens = std::min<int>(most_tokens, call.lengths[row] - token);
            const int position = static_cast<int>(call.starts[row]) + token;
            parts.push_back({row, token, num_tokens, lowest_seen(call, position), position + num_tokens - 1});
            if (parts.size() > 1) compare(call, parts[parts.size() - 2], parts.back());
        }
    return parts;
}

// How many heads of those that share a KV head are computed together.
inline int heads_together(const Attention &call) { return std::min(call.num_heads / call.num_kv_heads, MOST_HEADS); }

// All tokens in parties, a query of which is computed for each token and head: no larger than that every thread has one.
inline std::vector<Party> all_parties(const Attention &call) {
    const int64_t num_tokens = std::accumulate(call.lengths, call.lengths + call.num_rows, int64_t{0});
    const int64_t share = (num_tokens * call.num_kv_heads + call.num_threads - 1) / call.num_threads;
    const int most_tokens = static_cast<int>(std::min<int64_t>(TILE_QUERIES / heads_together(call), share));
    std::vector<Party> parties;
    for (const Part &part : all_parts(call, most_tokens)) {
        if (parties.empty() || !part.ever_joins() || parties.back().num_tokens() + part.num_tokens > most_tokens)
            parties.emplace_back();
        Party &party = parties.back();
        party.parts.push_back(part);
        for (int i = 0; i < part.num_tokens; i++) {
            const int newest = part.newest + 1 - part.num_tokens + i;
            const int64_t place = call.query_starts[part.row] + part.first_token + i;
            party.tokens.push_back({place, lowest_seen(call, newest), newest});
        }
    }
    return parties;
}

}  // namespace headrace
