"""One answer as it comes, and how quickly it came.

python examples/stream.py "two coffees for Ann Miller on friday"
python examples/stream.py --model ./some-hf-dir "Why is the sky blue?"
"""

from __future__ import annotations

import argparse
import sys
import time

from headrace import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description="Print one answer as it comes.")
    parser.add_argument("prompt", nargs="?", default="two loaves of rye bread for Ann Miller on friday")
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()

    with LLM(arguments.model) as llm:
        start = time.perf_counter()
        num_tokens = 0
        for piece in llm.stream_chat(
            [{"role": "user", "content": arguments.prompt}], SamplingParams(max_tokens=200, temperature=0)
        ):
            print(piece.text, end="", flush=True)
            num_tokens += len(piece.token_ids)
        seconds = time.perf_counter() - start
    print()
    print(f"{num_tokens} tokens in {seconds:.2f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
