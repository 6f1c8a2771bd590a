"""What `kernels/parties.h` makes of a micro-batch, as numbers that can be looked at."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from ctypes import c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.attention.ragged import RaggedLayout
from headrace.kernels.build import FOLDER, find_compiler

SOURCE = """
#include "parties.h"

extern "C" int64_t visits(const int64_t *starts, const int64_t *lengths, const int64_t *query_starts,
                          const int64_t *block_table, int64_t table_width, int32_t num_rows, int32_t block_tokens,
                          int32_t num_heads, int32_t num_kv_heads, int32_t window, int32_t num_threads, int64_t *into) {
    headrace::Attention call{};
    call.starts = starts, call.lengths = lengths, call.query_starts = query_starts, call.block_table = block_table;
    call.table_width = table_width, call.num_rows = num_rows, call.block_tokens = block_tokens;
    call.num_heads = num_heads, call.num_kv_heads = num_kv_heads, call.window = window, call.num_threads = num_threads;
    int64_t number = 0, *next = into;
    const std::vector<headrace::Party> parties = headrace::all_parties(call);
    for (size_t party = 0; party < parties.size(); party++) {
        headrace::Visits visits(parties[party]);
        for (headrace::Visit visit; visits.next(visit); number++)
            for (int i = visit.first_token; i < visit.stop_token; i++) {
                const headrace::Token &token = parties[party].tokens[i];
                for (int64_t each : {number, int64_t(party), token.place, int64_t(token.lowest), int64_t(token.newest),
                                     int64_t(visit.row), int64_t(visit.tile + visit.first),
                                     int64_t(visit.tile + visit.stop)})
                    *next++ = each;
            }
    }
    return (next - into) / 8;
}
"""


def visits(
    layout: RaggedLayout, *, num_heads: int, num_kv_heads: int, window: int | None = None, num_threads: int = 1
) -> npt.NDArray[np.int64]:
    """Returns (N, 8): for each visit, in order, and each token in it a row of numbers.

    They are the number of the visit, that of the party; the token's place in the micro-batch, the lowest and the newest
    position that it sees; the row whose blocks are read, the first position that is read, and the end.
    """
    most = int((layout.starts + layout.lengths).max()) // 32 + 1
    found = np.empty((int(layout.lengths.sum()) * most, 8), dtype=np.int64)
    starts, lengths, query_starts, block_table = (
        np.ascontiguousarray(numbers, dtype=np.int64)
        for numbers in (layout.starts, layout.lengths, layout.query_starts, layout.block_table)
    )
    number = _library().visits(
        *(c_void_p(numbers.ctypes.data) for numbers in (starts, lengths, query_starts, block_table)),
        c_int64(block_table.shape[1]),
        *(c_int32(n) for n in (len(starts), layout.block_tokens, num_heads, num_kv_heads, window or 0, num_threads)),
        c_void_p(found.ctypes.data),
    )
    return found[:number]


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "visits.cpp"), Path(folder, "visits.so")
        source.write_text(SOURCE, encoding="utf-8")
        command = [
            find_compiler(),
            "-std=c++17",
            "-O1",
            "-shared",
            "-fPIC",
            f"-I{FOLDER}",
            str(source),
            "-o",
            str(library),
        ]
        subprocess.run(command, check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.visits.restype = c_int64
    return loaded
