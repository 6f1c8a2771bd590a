// From fp32 sums to what a linear layer returns.
#pragma once

#include "floats.h"
#include "weights.h"

namespace headrace {

// Writes `count` sums plus their outputs' bias, which may be null, each rounded once.
template <class Element>
void give(const float *sums, const Element *bias, int count, Element *to) {
    int n = 0;
    for (; n + LANES <= count; n += LANES) store(to + n, bias ? load(sums + n) + load(bias + n) : load(sums + n));
    for (; n < count; n++) narrow(sums[n] + (bias ? widened(bias[n]) : 0.0f), to + n);
}

// The same for those of one token.
template <class Element, class Weight>
void give(const Outputs<Weight> &outputs, int64_t token, const float *sums) {
    const Weight &of = outputs.of;
    const Element *bias = of.bias ? static_cast<const Element *>(of.bias) + outputs.first : nullptr;
    give(sums, bias, outputs.count, static_cast<Element *>(of.output) + token * of.num_outputs + outputs.first);
}

}  // namespace headrace
