// What headrace_replay is called with; headrace/kernels/replay.py has the same structures.
#pragma once

#include <cstdint>

namespace headrace {

// An address within a call: `offset` bytes behind the first number of a source.
struct Move {
    const void **address;
    int64_t source, offset;
};

struct Step {
    void (*function)(const void *call);
    const void *call;
};

// Calls of this library's functions, in order, once their addresses are right; then those of `next`, if there are any.
struct Replay {
    const Step *steps;
    const Move *moves;
    int64_t num_steps, num_moves;
    const char *const *sources;
    const Replay *next;
};

}  // namespace headrace

extern "C" void headrace_replay(const headrace::Replay *replay);
