"""A loop that was written for transformers' `generate` (or FlexGen's), on Headrace: token ids in, token ids out.

python examples/transformers_spelling.py
python examples/transformers_spelling.py --model ./some-hf-dir
"""

from __future__ import annotations

import argparse

import headrace
from headrace import LLM

NOTES = ["two loaves of rye bread for Ann Miller on friday", "haircut for Omar Haddad tomorrow at 9:30"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Use Headrace with the arguments of transformers' generate.")
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()

    with LLM(arguments.model) as llm:
        prompts = [llm.tokenizer.encode_chat([{"role": "user", "content": note}]) for note in NOTES]
        sequences = headrace.compat.generate(llm, input_ids=prompts, do_sample=False, max_new_tokens=200)
        for prompt, sequence in zip(prompts, sequences, strict=True):
            answer = [int(token) for token in sequence[len(prompt) :]]
            print(llm.tokenizer.decode(answer, True))


if __name__ == "__main__":
    main()
