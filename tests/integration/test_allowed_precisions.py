"""`--allow`: of a model as it is and in fewer bits the fastest that fits into memory, or else the smallest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.cli.main import main
from headrace.compression.weight_codecs import WeightCodec
from headrace.engine import precision
from headrace.errors import OptionError
from tests.tiny_configs import VOCAB_SIZE
from tests.tiny_models import save_tiny, write_tokenizer

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
PROMPTS = [[5, 7, 9], [3] * 20]
RATES = {"none": 1.0, "int8": 4.0, "int4-64": 3.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_tiny("llama", tmp_path / "model")
    write_tokenizer(tmp_path / "model", VOCAB_SIZE)
    return tmp_path / "model"


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Gives every precision a rate of its own."""
    known = dict(RATES)

    def rate(device: torch.device, dtype: torch.dtype, codec: WeightCodec | None) -> float:
        return known["none" if codec is None else codec.label]

    monkeypatch.setattr(precision, "measure_matrix_rate", rate)
    return known


def tokens(model: Path, **options: object) -> tuple[str, list[tuple[int, ...]]]:
    with LLM(model, memory="4GiB", disk=model.parent / "copies", **options) as llm:  # type: ignore[arg-type]
        return llm.description, [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


def test_the_fastest_of_those_that_fit_is_taken(model: Path, rates: dict[str, float]) -> None:
    assert tokens(model, allow=("int8", "int4"))[1] == tokens(model, quantization="int8")[1]
    rates["int4-64"] = 5.0
    assert tokens(model, allow=("int8", "int4"))[1] == tokens(model, quantization="int4")[1]


def test_where_fewer_bits_bring_nothing_the_model_stays_as_it_is(model: Path, rates: dict[str, float]) -> None:
    rates.update(dict.fromkeys(rates, 1.0))
    description, found = tokens(model, allow=("int8", "int4"))
    assert ", float32 on" in description and found == tokens(model)[1]


def test_the_smallest_is_taken_where_none_fits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_too_large", lambda *_: True)
    assert ", int4-64 with float32" in tokens(model, allow=("int8", "int4"))[0]


def test_what_is_streamed_is_the_smallest(model: Path) -> None:
    description, found = tokens(model, allow=["int8", "int4"], weights_on_device=0.0)
    assert ", int4-64 with float32" in description
    assert found == tokens(model, quantization="int4", weights_on_device=0.0)[1]


def test_the_machine_s_own_rates_decide(model: Path) -> None:
    assert any(f", {name} " in tokens(model, allow=("int8",))[0] for name in ("float32", "int8 with float32"))


def test_wrong_names_and_two_wishes_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="allow is 'fp8'; expected one of int8, int8-outliers, int4"):
        LLM(model, allow=("fp8",))
    with pytest.raises(OptionError, match="give one of the two"):
        LLM(model, allow=("int8",), quantization="int4")
    rows = model.parent / "rows.jsonl"
    rows.write_text('{"prompt": "w5 w7"}\n')
    words = ["run", str(rows), "-o", str(model.parent / "out.jsonl"), "--model", str(model), "--allow", "int8,int3"]
    assert main(words) == 2
    assert "allow is 'int3'" in capsys.readouterr().err


def test_a_checkpoint_in_fewer_bits_leaves_nothing_to_choose(model: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    main(["quantize", str(model), "-o", str(packed), "--quantization", "int8", "--quiet"])
    with pytest.raises(OptionError, match="quantized already, to int8; leave it out"):
        LLM(packed, allow=("int4",))
