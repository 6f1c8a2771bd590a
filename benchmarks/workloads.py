"""Rows to answer, the same for every system."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt, and how many tokens its answer has; answers never end earlier."""

    prompt_ids: tuple[int, ...]
    num_output_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A job."""

    name: str
    rows: tuple[Row, ...]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(row.prompt_ids) for row in self.rows)

    @property
    def num_output_tokens(self) -> int:
        return sum(row.num_output_tokens for row in self.rows)

    def sample(self, num_rows: int) -> Workload:
        """Returns evenly spaced rows, for trying settings."""
        step = max(1, len(self.rows) // num_rows)
        return Workload(name=f"{self.name}, sample", rows=self.rows[::step][:num_rows])


def mixed_text(data: Path, encode: Encode, *, num_rows: int, seed: int = 0) -> Workload:
    """Stretches of real text of very different lengths.

    Prompts of 8-128 and answers of 4-40 tokens, both spread evenly over the orders of magnitude and independent of
    each other; texts in turn from WikiText-2, Shakespeare and TinyStories.
    """
    files = ("wikitext-2/wiki.test.tokens", "tinyshakespeare/input.txt", "tinystories-val/tinystories_val.txt")
    texts = [encode((data / "text" / file).read_text(encoding="utf-8")[:400_000]) for file in files]
    draw = random.Random(seed)
    rows = []
    for index in range(num_rows):
        tokens = texts[index % len(texts)]
        length = _spread(draw, 8, 128)
        start = draw.randrange(len(tokens) - length)
        rows.append(Row(prompt_ids=tuple(tokens[start : start + length]), num_output_tokens=_spread(draw, 4, 40)))
    return Workload(name="mixed text", rows=tuple(rows))


def random_tokens(vocab_size: int, *, num_rows: int, prompt_tokens: int, new_tokens: int, seed: int) -> Workload:
    """Prompts of random tokens, all of one length."""
    draw = random.Random(seed)
    rows = (tuple(draw.randrange(vocab_size) for _ in range(prompt_tokens)) for _ in range(num_rows))
    return Workload(
        name=f"{prompt_tokens}/{new_tokens}",
        rows=tuple(Row(prompt_ids=row, num_output_tokens=new_tokens) for row in rows),
    )


def worked_examples(
    data: Path, encode: Encode, *, num_rows: int = 100, num_examples: int = 8, new_tokens: int = 32
) -> Workload:
    """Questions of GSM8K, before each of which stand the same worked examples."""
    file = data / "tasks" / "gsm8k" / "test.jsonl"
    tasks = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    examples = "".join(f"Question: {task['question']}\nAnswer: {task['answer']}\n\n" for task in tasks[:num_examples])
    return Workload(
        name="gsm8k",
        rows=tuple(
            Row(
                prompt_ids=tuple(encode(f"{examples}Question: {task['question']}\nAnswer:")),
                num_output_tokens=new_tokens,
            )
            for task in tasks[num_examples:][:num_rows]
        ),
    )


def _spread(draw: random.Random, low: int, high: int) -> int:
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))
