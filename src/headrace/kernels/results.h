// From fp32 sums to what a linear layer returns.
#pragma once

#include "floats.h"

namespace headrace {

// Writes `count` sums plus their outputs' bias, which may be null, each rounded once.
template <class Element>
void give(const float *sums, const Element *bias, int count, Element *to) {
    int n = 0;
    for (; n + LANES <= count; n += LANES) store(to + n, bias ? load(sums + n) + load(bias + n) : load(sums + n));
    for (; n < count; n++) narrow(sums[n] + (bias ? widened(bias[n]) : 0.0f), to + n);
}

// The same for those of one token, from `output` on.
template <class Element, class Call>
void give(const Call &call, int64_t token, int64_t output, int count, const float *sums) {
    const Element *bias = call.bias ? static_cast<const Element *>(call.bias) + output : nullptr;
    give(sums, bias, count, static_cast<Element *>(call.output) + token * call.num_outputs + output);
}

}  // namespace headrace
