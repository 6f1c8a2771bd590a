// What lies between products, each in one pass, rounded where transformers rounds it.
#include "pointwise.h"

#include <algorithm>

#include "floats.h"

namespace headrace {
namespace {

constexpr int64_t ENOUGH_NUMBERS = 1 << 15;  // for more than one thread
constexpr int64_t PIECE_NUMBERS = 1 << 12;
constexpr int SUMS = 4;  // that are added to in turn, so that none waits for itself

int threads_for(int64_t count, int num_threads) { return count < ENOUGH_NUMBERS ? 1 : num_threads; }

// What a number becomes when it is kept as an Element.
template <class Element>
Floats kept(Floats a) {
    Element numbers[LANES];
    store(numbers, a);
    return load(numbers);
}
template <>
Floats kept<float>(Floats a) {
    return a;
}

// Of a register's numbers the first `count`, behind which are zeros; in memory there may be no more.
template <class Element>
Floats load_first(const Element *from, int64_t count) {
    if (count >= LANES) return load(from);
    Element numbers[LANES] = {};
    std::memcpy(numbers, from, count * sizeof(Element));
    return load(numbers);
}
template <class Element>
void store_first(Element *to, Floats a, int64_t count) {
    if (count >= LANES) return store(to, a);
    Element numbers[LANES];
    store(numbers, a);
    std::memcpy(to, numbers, count * sizeof(Element));
}

template <class Element, class Function>
void combine(const Element *first, const Element *second, Element *output, int64_t count, Function function) {
    for (int64_t i = 0; i < count; i += LANES)
        store_first(output + i, function(load_first(first + i, count - i), load_first(second + i, count - i)), count - i);
}

// The same in pieces, for which there may be several threads.
template <class Element, class Function>
void combine_all(const Element *first, const Element *second, Element *output, int64_t count, int num_threads,
                 Function function) {
    const int64_t num_pieces = (count + PIECE_NUMBERS - 1) / PIECE_NUMBERS;
#pragma omp parallel for num_threads(threads_for(count, num_threads))
    for (int64_t piece = 0; piece < num_pieces; piece++) {
        const int64_t from = piece * PIECE_NUMBERS;
        combine(first + from, second + from, output + from, std::min(PIECE_NUMBERS, count - from), function);
    }
}

// ---- RMSNorm --------------------------------------------------------------------------------------------------------

template <class Element>
float mean_square(const Element *row, int64_t width) {
    Floats squares[SUMS] = {zeros(), zeros(), zeros(), zeros()};
    int64_t i = 0;
    for (; i + SUMS * LANES <= width; i += SUMS * LANES)
#pragma GCC unroll 4
        for (int j = 0; j < SUMS; j++) {
            const Floats x = load(row + i + j * LANES);
            squares[j] = fma(x, x, squares[j]);
        }
    float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (; i < width; i++) total += widened(row[i]) * widened(row[i]);
    return total / static_cast<float>(width);
}

template <class Element>
void normalise(const RmsNorm &call, const Element *row, Element *output) {
    const Element *weight = static_cast<const Element *>(call.weight);
    const Floats factor = every(1.0f / std::sqrt(mean_square(row, call.width) + call.epsilon));
    switch (call.form) {
        case WEIGHT_TIMES_ROUNDED:
            return combine(row, weight, output, call.width,
                                 [=](Floats x, Floats w) { return w * kept<Element>(x * factor); });
        case WEIGHT_TIMES_NUMBER:
            return combine(row, weight, output, call.width, [=](Floats x, Floats w) { return w * (x * factor); });
        case ONE_PLUS_WEIGHT:
            return combine(row, weight, output, call.width,
                                 [=](Floats x, Floats w) { return (every(1.0f) + w) * (x * factor); });
    }
}

template <class Element>
void normalise_all(const RmsNorm &call) {
    const int64_t num_rows = call.num_outer * call.num_inner;
#pragma omp parallel for num_threads(threads_for(num_rows * call.width, call.num_threads))
    for (int64_t row = 0; row < num_rows; row++) {
        const int64_t place = row / call.num_inner * call.outer_stride + row % call.num_inner * call.inner_stride;
        normalise(call, static_cast<const Element *>(call.input) + place,
                  static_cast<Element *>(call.output) + row * call.width);
    }
}

// ---- gates ----------------------------------------------------------------------------------------------------------

// x / (1 + exp(-y)), which is as good as zero where y is below -87
inline Floats times_sigmoid(Floats x, Floats y) {
    const Floats bounded = min(every(87.0f), zeros() - y);
    return where_less(y, every(-87.0f), zeros(), x / (every(1.0f) + exponential(bounded)));
}

inline Floats silu(Floats x) { return times_sigmoid(x, x); }

// x / 2 * (1 + tanh(y)) with y = sqrt(2 / pi) * (x + 0.044715 * x^3): a sigmoid of 2 * y, which loses nothing where tanh
// is near -1.
inline Floats gelu_tanh(Floats x) {
    return times_sigmoid(x, every(2 * 0.7978845608f) * fma(every(0.044715f) * x, x * x, x));
}

template <class Element, class Function>
void gate_all(const Gate &call, Function activation) {
    combine_all(static_cast<const Element *>(call.gate), static_cast<const Element *>(call.up),
                static_cast<Element *>(call.output), call.count, call.num_threads,
                [=](Floats gate, Floats up) { return kept<Element>(activation(gate)) * up; });
}

template <class Element>
void gate_with(const Gate &call) {
    switch (call.activation) {
        case SILU: return gate_all<Element>(call, silu);
        case GELU_TANH: return gate_all<Element>(call, gelu_tanh);
    }
}

// ---- rotations ------------------------------------------------------------------------------------------------------

template <class Element>
void rotate(const Element *from, const Element *cosines, const Element *sines, Element *to, int64_t width) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t count = half - i;
        const Floats x = load_first(from + i, count), y = load_first(from + half + i, count);
        const Floats x_turned = kept<Element>(x * load_first(cosines + i, count));
        const Floats y_turned = kept<Element>(y * load_first(cosines + half + i, count));
        store_first(to + i, x_turned - kept<Element>(y * load_first(sines + i, count)), count);
        store_first(to + half + i, y_turned + kept<Element>(x * load_first(sines + half + i, count)), count);
    }
}

template <class Element>
void rotate_all(const Rotation &call) {
#pragma omp parallel for num_threads(threads_for(call.num_tokens * call.num_heads * call.width, call.num_threads))
    for (int64_t token = 0; token < call.num_tokens; token++)
        for (int64_t head = 0; head < call.num_heads; head++)
            rotate(static_cast<const Element *>(call.input) + token * call.token_stride + head * call.head_stride,
                   static_cast<const Element *>(call.cosines) + token * call.width,
                   static_cast<const Element *>(call.sines) + token * call.width,
                   static_cast<Element *>(call.output) + (token * call.num_heads + head) * call.width, call.width);
}

// ---- sums -----------------------------------------------------------------------------------------------------------

template <class Element>
void add_all(const Sum &call) {
    combine_all(static_cast<const Element *>(call.first), static_cast<const Element *>(call.second),
                static_cast<Element *>(call.output), call.count, call.num_threads,
                [](Floats a, Floats b) { return a + b; });
}

}  // namespace
}  // namespace headrace

extern "C" void headrace_rms_norm(const headrace::RmsNorm *call) {
    headrace::with_type(call->type, [=](auto number) { headrace::normalise_all<decltype(number)>(*call); });
}

extern "C" void headrace_gate(const headrace::Gate *call) {
    headrace::with_type(call->type, [=](auto number) { headrace::gate_with<decltype(number)>(*call); });
}

extern "C" void headrace_rotate(const headrace::Rotation *call) {
    headrace::with_type(call->type, [=](auto number) { headrace::rotate_all<decltype(number)>(*call); });
}

extern "C" void headrace_add(const headrace::Sum *call) {
    headrace::with_type(call->type, [=](auto number) { headrace::add_all<decltype(number)>(*call); });
}
