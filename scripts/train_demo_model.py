"""Trains the demo model from scratch and writes it into the package.

    python scripts/train_demo_model.py

Everything is seeded: data, initial weights, order of batches. One CPU thread is enough; docs/demo-model.md says how
long it takes, and what came out. Needs nothing but Headrace's own dependencies.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from headrace.demo import demo_model_path, words
from headrace.demo.notes import Note, Split, notes
from headrace.demo.patterns import all_words
from headrace.demo.scoring import exact_share

PAD, END, NOTE, JSON = "<|pad|>", "<|end|>", "<|note|>", "<|json|>"
CHAT_TEMPLATE = (
    "{%- for message in messages if message['role'] == 'user' -%}"
    "{%- if loop.last -%}<|note|>{{ message['content'] }}<|json|>{%- endif -%}"
    "{%- endfor -%}"
)
JSON_PIECES = (
    '{"type": "order", "customer": "',
    '", "items": [{"quantity": ',
    ', "product": "',
    '"}, {"quantity": ',
    '"}], "date": "',
    '"}], "date": null}',
    '{"type": "appointment", "customer": "',
    '", "service": "',
    '", "date": "',
    '", "time": "',
    '", "time": null}',
    '"}',
)
NUM_WORDS_WITH_SPACE = 160
VOCABULARY_SIZE = 768
PROGRESS = "progress.pt"


def train_tokenizer(sample: list[Note]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose pieces of a word do not depend on what stands before the word.

    So a value has the same tokens in the note and in the JSON, and copying is one operation. The commonest words of the
    sentence patterns, never the first of a value, take the space before them along.
    """
    value_words = {word.lower() for known in words.WORD_LISTS for word in known}
    pattern_words = all_words() - value_words
    counts = Counter(
        word for note in sample for word in re.findall(r"(?<= )[a-z]+", note.text) if word in pattern_words
    )
    spaced = "|".join(sorted(word for word, _ in counts.most_common(NUM_WORDS_WITH_SPACE)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf" (?:{spaced})(?!\p{{L}})|\p{{L}}+|."), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(JSON_PIECES),
        special_tokens=[PAD, END, NOTE, JSON],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((note.text for note in sample), trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in JSON_PIECES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[NOTE, JSON],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> LlamaForCausalLM:
    """Make a Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden_size // 32,
        num_key_value_heads=options.hidden_size // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.02,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, pool: list[Note]) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, answer) token ids of each note."""
    prompts = tokenizer([f"{NOTE}{note.text}{JSON}" for note in pool])["input_ids"]
    answers = tokenizer([f"{note.answer}{END}" for note in pool])["input_ids"]
    return list(zip(prompts, answers, strict=True))


def batches(tokenizer: PreTrainedTokenizerFast, *, seed: int, rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (tokens, labels), both (rows, length); labels are -100 but on answers. Like lengths go together."""
    rng = random.Random(seed)
    source = notes("train", seed=seed)
    while True:
        pool = sorted(
            encode(tokenizer, list(itertools.islice(source, rows * 64))), key=lambda pair: len(pair[0] + pair[1])
        )
        groups = [pool[start : start + rows] for start in range(0, len(pool), rows)]
        rng.shuffle(groups)
        for group in groups:
            length = max(len(prompt) + len(answer) for prompt, answer in group)
            tokens = torch.full((rows, length), tokenizer.pad_token_id)
            labels = torch.full((rows, length), -100)
            for row, (prompt, answer) in enumerate(group):
                end = len(prompt) + len(answer)
                tokens[row, :end] = torch.tensor(prompt + answer)
                labels[row, len(prompt) : end] = torch.tensor(answer)
            yield tokens, labels


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix is made orthogonal (Jordan 2024), matrices of one shape at a time.

    `torch.optim.Muon` computes in bfloat16, which is slow on CPUs without instructions for it; this is float32.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in by_shape.items():
                updates = []
                for matrix in matrices:
                    average = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    average.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(matrix.grad.lerp(average, group["momentum"]))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, update in zip(matrices, _orthogonal(torch.stack(updates)), strict=True):
                    matrix.mul_(1 - 0.05 * group["lr"]).sub_(update, alpha=scale)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Push the singular values of (N, rows, columns) towards 1 by five Newton-Schulz steps."""
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> None:
    """Train in place: Muon for the matrices, AdamW for embeddings and norms, warm-up, plateau and linear decay."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=options.matrix_rate),
        torch.optim.AdamW(others, lr=options.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [options.matrix_rate, options.other_rate]
    first_step = resume(model, optimizers, options.checkpoints) if options.resume else 1
    data = batches(tokenizer, seed=options.seed, rows=options.rows)
    started = time.monotonic()
    model.train()
    running = 0.0
    for step, (tokens, labels) in enumerate(itertools.islice(data, first_step - 1, options.steps), first_step):
        scale = min(1.0, step / 200, (options.steps - step + 1) / (options.decay_share * options.steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running += loss.item()
        if step % 100 == 0:
            print(f"step {step:6} loss {running / 100:.4f} {time.monotonic() - started:6.0f} s", flush=True)
            running = 0.0
        if step % options.check_every == 0:
            for split in ("unseen_values", "development_patterns"):
                print(f"  {split}: {measure(model, tokenizer, split, num_rows=200)[0]:.1%}", flush=True)
            if options.checkpoints:
                save(model, tokenizer, options.checkpoints)
                save_progress(model, optimizers, options.checkpoints, step=step)
            model.train()


@torch.inference_mode()
def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: Split, *, num_rows: int, seed: int = 1
) -> tuple[float, list[tuple[Note, str]]]:
    """Answer notes with transformers' greedy generate; return the share that is exactly right, and the others."""
    model.eval()
    wanted = sorted(itertools.islice(notes(split, seed=seed), num_rows), key=lambda note: len(note.text))
    got: list[str] = []
    for start in range(0, num_rows, 50):
        chats = [[{"role": "user", "content": note.text}] for note in wanted[start : start + 50]]
        inputs = tokenizer.apply_chat_template(
            chats, return_tensors="pt", padding=True, return_dict=True, tokenizer_kwargs={"padding_side": "left"}
        )
        produced = model.generate(**inputs, do_sample=False, max_new_tokens=160)
        got += tokenizer.batch_decode(produced[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    wrong = [
        (note, answer) for note, answer in zip(wanted, got, strict=True) if not exact_share([answer], [note.answer])
    ]
    return exact_share(got, [note.answer for note in wanted]), wrong


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    """Write the checkpoint in bfloat16, with tokenizer, chat template and greedy defaults."""
    target.mkdir(parents=True, exist_ok=True)
    halved = LlamaForCausalLM(model.config)
    halved.load_state_dict(model.state_dict())
    halved.to(torch.bfloat16)
    halved.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    halved.save_pretrained(target)
    tokenizer.save_pretrained(target)


def save_progress(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], folder: Path, *, step: int) -> None:
    """Write what `--resume` needs beside the checkpoint: float32 weights, momentum, the step."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"step": step, "model": model.state_dict(), "optimizers": states}, folder / PROGRESS)


def resume(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], folder: Path) -> int:
    """Take up what `save_progress` wrote; return the next step. The data go on where they were."""
    progress = torch.load(folder / PROGRESS)
    model.load_state_dict(progress["model"])
    for optimizer, state in zip(optimizers, progress["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return int(progress["step"]) + 1


def main() -> None:
    """Train, save, and print the accuracies of what was saved."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--out", type=Path, default=demo_model_path(), help="where the checkpoint goes; default: the package"
    )
    parser.add_argument("--steps", type=int, default=13000)
    parser.add_argument("--rows", type=int, default=32, help="rows per step")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--intermediate-size", type=int, default=384)
    parser.add_argument("--matrix-rate", type=float, default=0.02, help="peak learning rate of the matrices")
    parser.add_argument("--other-rate", type=float, default=0.003, help="peak learning rate of embeddings and norms")
    parser.add_argument("--decay-share", type=float, default=0.9, help="the last share of the steps, with falling rate")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check-every", type=int, default=1500, help="measure 200 rows every so many steps")
    parser.add_argument("--checkpoints", type=Path, help="also save at every check, here")
    parser.add_argument("--resume", action="store_true", help="go on from what --checkpoints holds")
    options = parser.parse_args()
    if options.resume and not options.checkpoints:
        parser.error("--resume needs --checkpoints FOLDER, where the training to resume was saved")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer(list(itertools.islice(notes("train", seed=0), 20_000)))
    model = build_model(tokenizer, options)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train(model, tokenizer, options)
    save(model, tokenizer, options.out)
    report(options.out)


def report(path: Path) -> None:
    """Print the accuracy of a saved checkpoint, in bfloat16, on 1,000 rows of each unseen split."""
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    for split in ("unseen_values", "development_patterns", "unseen_patterns"):
        share, _ = measure(model, tokenizer, split, num_rows=1000)
        print(f"{split} accuracy: {share:.1%}", flush=True)


if __name__ == "__main__":
    main()
