"""Tokens that are guessed, right or wrong, change no token of any row; right ones save sweeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.scheduler import guessing
from headrace.scheduler.sweep import Sweep
from tests.integration.streamed_models import save_sharded
from tests.parity.harness import Row, Shape, distinct_rows, generated, make_rig, sharing_rows, tiny_engine_model
from tests.tiny_configs import TINY_CONFIGS, VOCAB_SIZE

WITHOUT_STATES = sorted(TINY_CONFIGS.keys() - {"mamba2", "qwen3_next"})
SHAPE = Shape(block_tokens=32, guessing_tokens=200)
ROWS = {"distinct": distinct_rows, "sharing": sharing_rows}
Guesser = Callable[[Sequence[int], int], tuple[int, ...]]


def knowing(texts: Sequence[Sequence[int]], *, wrong_from: Callable[[int], int]) -> Guesser:
    """Returns what guesses the rest of any of `texts`; from the token on that `wrong_from` says, it is wrong."""

    def guess(token_ids: Sequence[int], most: int) -> tuple[int, ...]:
        known = len(token_ids)
        text = next(text for text in texts if list(text[:known]) == list(token_ids))
        right = text[known : known + most]
        return tuple(
            token if index < wrong_from(known) else (token + 1) % VOCAB_SIZE for index, token in enumerate(right)
        )

    return guess


def run(name: str, rows: list[Row], shape: Shape) -> tuple[list[list[int]], int]:
    """Returns the tokens of all rows, and in how many sweeps they came."""
    sweeps: list[Sweep] = []
    return make_rig(tiny_engine_model(name), shape).run(rows, watch=sweeps.append), len(sweeps)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", WITHOUT_STATES)
def test_guesses_change_no_token(name: str, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ROWS[rows](every=0)
    expected = [generated(name, row.prompt, row.num_new) for row in chosen for _ in range(row.num_samples)]
    texts = [[*row.prompt, *generated(name, row.prompt, row.num_new)] for row in chosen]
    slowly = run(name, chosen, replace(SHAPE, guessing_tokens=0))
    assert slowly[0] == expected
    for wrong_from in (lambda known: 100, lambda known: known % 4, lambda known: 0):
        monkeypatch.setattr(guessing, "look_up", knowing(texts, wrong_from=wrong_from))
        for shape in (SHAPE, replace(SHAPE, num_micro_batches=3, sweep_tokens=90)):
            found, num_sweeps = run(name, chosen, shape)
            assert found == expected
            assert num_sweeps <= slowly[1] + 2  # a micro-batch more, where a guess does not fit
        if wrong_from(0) == 100:
            assert num_sweeps < slowly[1]


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "n": 3}])
def test_a_streamed_model_says_the_same_with_and_without_guesses(
    params: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses: list[tuple[int, ...]] = []
    look_up = guessing.look_up

    def noted(token_ids: Sequence[int], most: int) -> tuple[int, ...]:
        guesses.append(look_up(token_ids, most))
        return guesses[-1]

    monkeypatch.setattr(guessing, "look_up", noted)
    save_sharded(tmp_path)
    prompts = [[5, 6, 7, 8] * 6, [9, 10, 11] * 5, [3, 4] * 9]
    sampling = SamplingParams(max_tokens=40, repetition_penalty=0.5, **params)  # type: ignore[arg-type]
    told = []
    for speculate in (True, False):
        guesses.clear()
        with LLM(tmp_path, weights_on_device=0, max_model_len=128, disk_bandwidth="50MB/s", speculate=speculate) as llm:
            outputs = llm.generate(prompts, sampling)
        told.append([[answer.token_ids for answer in output.outputs] for output in outputs])
        assert any(guesses) == speculate
    assert told[0] == told[1]
