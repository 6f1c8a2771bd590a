// Calls that were noted once, made again without Python between them.
#include "replay.h"

namespace headrace {

static void make(const Replay &replay) {
    for (int64_t i = 0; i < replay.num_moves; i++) {
        const Move &move = replay.moves[i];
        *move.address = replay.sources[move.source] + move.offset;
    }
    for (int64_t i = 0; i < replay.num_steps; i++) replay.steps[i].function(replay.steps[i].call);
}

}  // namespace headrace

extern "C" void headrace_replay(const headrace::Replay *replay) {
    for (; replay != nullptr; replay = replay->next) headrace::make(*replay);
}
