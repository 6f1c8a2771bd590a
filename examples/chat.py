"""A conversation in a loop of ten lines; `headrace chat` is the comfortable one.

    python examples/chat.py --model ./some-hf-dir

An empty line or the end of the input ends it.
"""

from __future__ import annotations

import argparse

from headrace import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description="Talk to a model.")
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()

    messages: list[dict[str, str]] = []
    with LLM(arguments.model) as llm:
        while text := ask():
            messages.append({"role": "user", "content": text})
            answer = ""
            # The conversation so far is found in the KV cache, so only the new turn is computed.
            for piece in llm.stream_chat(messages, SamplingParams(max_tokens=200)):
                print(piece.text, end="", flush=True)
                answer += piece.text
            print()
            messages.append({"role": "assistant", "content": answer})


def ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
