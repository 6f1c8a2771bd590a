"""A model that was changed in memory, and never saved, answers through Headrace.

    python examples/wrap_model.py
    python examples/wrap_model.py --model ./some-hf-dir --memory 8GiB

Here the change is that every weight is rounded to a coarser number, to see what that does to the answers; yours may be
a fine-tuning or a merge. Where the weights do not fit into `--memory`, they are streamed from disk.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import headrace
from headrace import SamplingParams
from headrace.demo import demo_model_path

NOTES = ["two loaves of rye bread for Ann Miller on friday", "haircut for Omar Haddad tomorrow at 9:30"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a model that is in memory.")
    parser.add_argument("--model", default=demo_model_path())
    parser.add_argument("--memory")
    arguments = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())

    with headrace.wrap(model, tokenizer, memory=arguments.memory) as llm:
        for note in NOTES:
            output = llm.chat([{"role": "user", "content": note}], SamplingParams(max_tokens=200, temperature=0))
            print(output.outputs[0].text)


if __name__ == "__main__":
    main()
