// From fp32 sums to what a linear layer returns.
#pragma once

#include "ahead.h"
#include "floats.h"
#include "tiles.h"
#include "weights.h"

namespace headrace {

// Writes `count` sums plus their outputs' bias, which may be null, each rounded once.
template <class Element>
void give(const float *sums, const Element *bias, int count, Element *to) {
    int n = 0;
    for (; n + LANES <= count; n += LANES) store(to + n, bias ? load(sums + n) + load(bias + n) : load(sums + n));
    for (; n < count; n++) narrow(sums[n] + (bias ? widened(bias[n]) : 0.0f), to + n);
}

template <class Element, class Weight>
Element *place_of(const Outputs<Weight> &outputs, int64_t token) {
    return static_cast<Element *>(outputs.of.output) + token * outputs.of.num_outputs + outputs.first;
}

// The same for those of one token.
template <class Element, class Weight>
void give(const Outputs<Weight> &outputs, int64_t token, const float *sums) {
    const Element *bias = outputs.of.bias ? static_cast<const Element *>(outputs.of.bias) + outputs.first : nullptr;
    give(sums, bias, outputs.count, place_of<Element>(outputs, token));
}

// Asks for the places of a tile's results, each in lines of its own: a processor waits for lines that it writes to.
template <class Element, class Weight>
void ask_for_places(const Outputs<Weight> &outputs, const Tile &tile) {
    for (int t = 0; t < tile.count; t++) {
        const char *place = reinterpret_cast<const char *>(place_of<Element>(outputs, tile.first + t));
        for (size_t byte = 0; byte < outputs.count * sizeof(Element); byte += LINE_BYTES) __builtin_prefetch(place + byte, 1);
    }
}

}  // namespace headrace
