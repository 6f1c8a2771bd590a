from __future__ import annotations

from headrace.scheduler.draft import SweepDraft
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.sequence import Sequence
from headrace.scheduler.sweep import Chunk

LIMITS = SweepLimits(max_num_seqs=8, max_num_batched_tokens=10, max_micro_batch_tokens=6)
DECODING, PREFILLING = (
    Sequence(sequence_id=sequence_id, request_id=0, prompt_ids=(1,) * 20, max_tokens=1) for sequence_id in (0, 1)
)


def make_chunk(sequence: Sequence, num_tokens: int) -> Chunk:
    return Chunk(sequence_id=sequence.sequence_id, start=0, token_ids=(1,) * num_tokens, block_tables=(), samples=False)


def test_tokens_of_those_that_decode_are_set_aside() -> None:
    draft = SweepDraft(LIMITS, decoding={DECODING: ()}, num_wanted=100)
    assert (draft.room_for(DECODING), draft.room_for(PREFILLING), draft.reach(PREFILLING, 0, 20)) == (1, 9, 5)


def test_room_shrinks_with_every_chunk() -> None:
    draft = SweepDraft(LIMITS, decoding={DECODING: ()}, num_wanted=100)
    draft.add(PREFILLING, make_chunk(PREFILLING, 5))
    assert (draft.room_for(PREFILLING), draft.reach(PREFILLING, 0, 20), draft.has_room_to_admit) == (4, 6, True)
    draft.add(PREFILLING, make_chunk(PREFILLING, 4))
    draft.add(DECODING, make_chunk(DECODING, 1))
    assert (draft.room_for(PREFILLING), draft.room_for(DECODING), draft.has_room_to_admit) == (0, 0, False)


def test_those_that_decode_come_first_whenever_they_are_added() -> None:
    draft = SweepDraft(LIMITS, decoding={DECODING: ()}, num_wanted=100)
    prefill, decode = make_chunk(PREFILLING, 5), make_chunk(DECODING, 1)
    draft.add(PREFILLING, prefill)
    draft.add(DECODING, decode)
    sweep = draft.build(7)
    assert sweep is not None and sweep.sweep_id == 7
    assert [micro_batch.chunks for micro_batch in sweep.micro_batches] == [(decode, prefill)]


def test_a_draft_without_chunks_is_no_sweep() -> None:
    assert SweepDraft(LIMITS, decoding={}, num_wanted=0).build(0) is None
