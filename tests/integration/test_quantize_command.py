"""`headrace quantize`: its checkpoint gives the tokens of `--quantization`, and holds what its format describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headrace import LLM, SamplingParams
from headrace.cli.main import main
from headrace.compression.weight_codecs import Int4Codec, Int8Codec
from headrace.errors import OptionError
from tests.parity.harness import make_prompt
from tests.tiny_configs import VOCAB_SIZE
from tests.tiny_models import save_tiny, write_tokenizer

PROMPTS = [list(make_prompt(length)) for length in (5, 40, 17)]
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_tiny("llama", tmp_path / "model", dtype=torch.bfloat16, max_shard_size=60_000)
    write_tokenizer(tmp_path / "model", VOCAB_SIZE)
    return tmp_path / "model"


def tokens(model: Path, **options: object) -> list[tuple[int, ...]]:
    with LLM(model, memory="4GiB", dtype="float32", **options) as llm:  # type: ignore[arg-type]
        return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("placed", [{}, {"weights_on_device": 0.0}], ids=["in memory", "streamed"])
def test_a_packed_checkpoint_gives_the_tokens_of_packing_while_loading(
    model: Path, quantization: str, placed: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed"
    assert main(["quantize", str(model), "-o", str(packed), "--quantization", quantization]) == 0
    assert "linear layers in int" in capsys.readouterr().out
    options = {"disk": tmp_path / "copies", "quantization": quantization, **placed}
    assert tokens(packed, **options) == tokens(model, **options)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_what_is_written_is_what_compressed_tensors_describes(model: Path, quantization: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    main(["quantize", str(model), "-o", str(packed), "--quantization", quantization, "--quiet"])
    before = {name: tensor for file in model.glob("*.safetensors") for name, tensor in load_file(file).items()}
    after = {name: tensor for file in packed.glob("*.safetensors") for name, tensor in load_file(file).items()}
    index = json.loads((packed / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(after)
    base = "model.layers.1.self_attn.q_proj"
    weight = before[f"{base}.weight"]
    if quantization == "int8":
        found = after[f"{base}.weight"].float() * after[f"{base}.weight_scale"].float()
        codec: Int8Codec | Int4Codec = Int8Codec()
    else:
        codes = torch.stack([after[f"{base}.weight_packed"] >> 4 * place & 15 for place in range(8)], dim=-1).flatten(1)
        points = after[f"{base}.weight_zero_point"]
        zeros = torch.stack([points >> 4 * place & 15 for place in range(8)], dim=1).flatten(0, 1)[: len(weight)]
        groups = codes.unflatten(1, (zeros.shape[1], -1)) - zeros[..., None]
        found = (groups * after[f"{base}.weight_scale"].float()[..., None]).flatten(1)[:, : weight.shape[1]]
        assert after[f"{base}.weight_shape"].tolist() == list(weight.shape)
        codec = Int4Codec()
    assert torch.equal(found, codec.decode(codec.encode(weight), *weight.shape))
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    config = json.loads((packed / "config.json").read_text())
    ignored = config["quantization_config"]["ignore"]
    assert ignored[-1] == "lm_head" and all(
        torch.equal(after[f"{name}.weight"], before[f"{name}.weight"]) for name in ignored
    )


def test_a_folder_that_is_there_is_left_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["quantize", str(model), "-o", str(tmp_path / "mine"), "--quantization", "int8"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())


def test_what_is_packed_is_not_packed_again(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "packed"
    main(["quantize", str(model), "-o", str(packed), "--quantization", "int8", "--quiet"])
    assert main(["quantize", str(packed), "-o", str(tmp_path / "again"), "--quantization", "int8"]) == 2
    assert "quantized already" in capsys.readouterr().err
    with pytest.raises(OptionError, match="quantized already, to int8; leave it out"):
        LLM(packed, quantization="int4")


def test_a_packed_checkpoint_keeps_its_head_unless_it_is_asked_for(model: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    main(["quantize", str(model), "-o", str(packed), "--quantization", "int8", "--quiet"])
    heads = []
    for options in ({}, {"quantization": "int8"}, {"quantization": "int8-outliers"}):
        with LLM(packed, memory="4GiB", **options) as llm:  # type: ignore[arg-type]
            head = llm._require_engine().executor.model.module.get_output_embeddings()  # type: ignore[no-untyped-call]
            heads.append(repr(vars(head)["real"]))
    assert heads[0].startswith("Linear(") and "int8" in heads[1] and "int8-outliers" in heads[2]


def test_a_group_size_is_for_int4(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(model), "-o", str(tmp_path / "x"), "--quantization", "int8", "--group-size", "64"]
    assert main(words) == 2
    assert "--group-size is for int4" in capsys.readouterr().err


def test_a_sample_is_answered_in_full_precision_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"w{row} w7"}) + "\n" for row in range(9)))
    words = ["run", str(rows), "-o", str(tmp_path / "out.jsonl"), "--model", str(model), "--max-tokens", "5"]
    assert main([*words, "--quantization", "int8", "--sample-quality", "3", "--ignore-eos"]) == 0
    told = capsys.readouterr().err
    assert "answering 3 rows in full precision first" in told
    assert "of 3 rows that were also answered in full precision" in told and "of their 15 tokens" in told
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 9
    assert main([*words, "--sample-quality", "3", "--overwrite"]) == 2
    assert "give --quantization" in capsys.readouterr().err
