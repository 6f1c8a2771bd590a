"""Many prompts at once: notes in, one JSON object per line out.

    python examples/batch.py                    # a few notes that stand in this file
    python examples/batch.py notes.txt          # one note per line
    python examples/batch.py notes.txt --model ./some-hf-dir

Prompts are pulled while the model runs, so the input may be longer than memory; answers come as they finish.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from headrace import LLM, GenerationRequest, SamplingParams

NOTES = [
    "hi, this is Ann Miller, could you send 3 loaves of rye bread and 2 apple pies on friday?",
    "Dentist appointment for Omar Haddad on 12 March at 9:30 please",
    "Please put down 10 cinnamon rolls for Grace Liu, pickup tomorrow.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn notes into JSON.")
    parser.add_argument("notes", nargs="?", type=Path, help="a file with one note per line")
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    notes = arguments.notes.read_text(encoding="utf-8").splitlines() if arguments.notes else NOTES

    answers: dict[int, str] = {}
    with LLM(arguments.model) as llm:
        for output in llm.run(requests(llm, notes)):
            answers[output.request_id] = f"error: {output.error}" if output.error else output.outputs[0].text
    for number, _ in enumerate(notes):
        print(answers[number])


def requests(llm: LLM, notes: Iterable[str]) -> Iterator[GenerationRequest]:
    params = SamplingParams(max_tokens=200, temperature=0)
    for number, note in enumerate(notes):
        tokens = llm.tokenizer.encode_chat([{"role": "user", "content": note}])
        yield GenerationRequest(request_id=number, prompt_token_ids=tuple(tokens), params=params)


if __name__ == "__main__":
    main()
