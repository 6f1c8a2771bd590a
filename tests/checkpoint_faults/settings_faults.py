"""Faults of everything that is not weights: configurations, tokenizer, chat template."""

from __future__ import annotations

import json
import os
from pathlib import Path

from headrace.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
    WeightMismatchError,
)
from tests.checkpoint_faults.fault import Corpus, change_json
from tests.tiny_models import write_tokenizer

SETTINGS_FAULTS = Corpus()
fault = SETTINGS_FAULTS.fault

CONFIG = "config.json"
GENERATION = "generation_config.json"
WORDS = "tokenizer.json"
WORDS_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
CODE_FILE = "made-by-the-model"
CORRECT = "download|copy|correct|put the value right"


def write_code(folder: Path) -> None:
    """Writes a module that leaves a trace when it is imported."""
    (folder / "evil.py").write_text(f"open({str(folder / CODE_FILE)!r}, 'w').close()\n")


@fault("single", CheckpointNotFoundError, CONFIG, "no config.json", "expected a Hugging Face checkpoint")
def no_configuration(folder: Path) -> None:
    (folder / CONFIG).unlink()


@fault("single", CorruptCheckpointError, CONFIG, "not JSON")
def an_empty_configuration(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"")


@fault("single", CorruptCheckpointError, CONFIG, "not JSON")
def a_configuration_that_is_cut_off(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text[: len(text) // 2])


@fault("single", CorruptCheckpointError, CONFIG, "not JSON.*utf-8")
def a_configuration_that_is_not_utf_8(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b'{"model_type": "llam\xe9"}')


@fault("single", CorruptCheckpointError, CONFIG, "not JSON")
def a_configuration_in_utf_16(folder: Path) -> None:
    (folder / CONFIG).write_text((folder / CONFIG).read_text(), encoding="utf-16")


@fault("single", CorruptCheckpointError, CONFIG, "not JSON.*recursion")
def a_configuration_that_is_nested_without_end(folder: Path) -> None:
    (folder / CONFIG).write_text('{"a": ' + "[" * 200_000)


@fault("single", CorruptCheckpointError, CONFIG, "expected a JSON object")
def a_configuration_that_is_a_list(folder: Path) -> None:
    (folder / CONFIG).write_text("[1, 2]")


@fault("single", CorruptCheckpointError, CONFIG, "larger than")
def a_configuration_of_a_hundred_gigabytes(folder: Path) -> None:
    with (folder / CONFIG).open("r+b") as stream:
        stream.truncate(100 * 10**9)


@fault("single", CorruptCheckpointError, CONFIG, "a folder")
def a_folder_in_place_of_the_configuration(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


@fault("single", CorruptCheckpointError, CONFIG, "pipe")
def a_pipe_in_place_of_the_configuration(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


@fault("single", UnsafeCheckpointError, CONFIG, "out of the checkpoint's folder", "copy the file")
def a_configuration_that_is_a_link_out_of_the_folder(folder: Path) -> None:
    (folder / CONFIG).rename(folder.with_name(f"{folder.name}-secret"))
    (folder / CONFIG).symlink_to(f"../{folder.name}-secret")


@fault("single", UnsupportedModelError, CONFIG, "no model_type", "transformers form")
def a_configuration_without_a_model_type(folder: Path) -> None:
    (folder / CONFIG).write_text("{}")


@fault("single", UnsupportedModelError, CONFIG, "'llama7' is unknown", "install a newer transformers")
def an_architecture_of_the_future(folder: Path) -> None:
    change_json(folder / CONFIG, model_type="llama7")


@fault("single", UnsupportedModelError, CONFIG, "brings its own code", "--trust-remote-code")
def an_architecture_that_brings_its_own_code(folder: Path) -> None:
    write_code(folder)
    change_json(folder / CONFIG, model_type="evil", auto_map={"AutoConfig": "evil.Config"})


@fault("single", UnsupportedModelError, CONFIG, "not a causal language model", "choose another model")
def an_architecture_that_generates_no_text(folder: Path) -> None:
    change_json(folder / CONFIG, model_type="vit")


@fault("single", UnsupportedCheckpointError, CONFIG, "quantized .gptq.", "original checkpoint")
def a_quantized_checkpoint(folder: Path) -> None:
    change_json(folder / CONFIG, quantization_config={"quant_method": "gptq", "bits": 4})


@fault("single", CorruptCheckpointError, CONFIG, "hidden_size", CORRECT)
def a_size_that_is_text(folder: Path) -> None:
    change_json(folder / CONFIG, hidden_size="sixty-four")


@fault("single", CorruptCheckpointError, CONFIG, "refuses it", CORRECT)
def no_attention_heads(folder: Path) -> None:
    change_json(folder / CONFIG, num_attention_heads=0)


@fault("single", CorruptCheckpointError, CONFIG, "cannot build this model.*-64", CORRECT)
def a_negative_hidden_size(folder: Path) -> None:
    change_json(folder / CONFIG, hidden_size=-64)


@fault("single", CorruptCheckpointError, CONFIG, "num_hidden_layers", CORRECT)
def a_billion_layers(folder: Path) -> None:
    change_json(folder / CONFIG, num_hidden_layers=10**9)


@fault("single", CorruptCheckpointError, CONFIG, "cannot build this model", CORRECT)
def a_vocabulary_beyond_every_integer(folder: Path) -> None:
    change_json(folder / CONFIG, vocab_size=10**30)


@fault("single", WeightMismatchError, CONFIG, r"shape .* in the checkpoint, \[\d{12,}", "config.json")
def a_vocabulary_of_a_trillion_words(folder: Path) -> None:
    change_json(folder / CONFIG, vocab_size=10**12)


@fault("single", WeightMismatchError, CONFIG, r"shape .* in the checkpoint, \[8000000000", "config.json")
def heads_as_wide_as_memory(folder: Path) -> None:
    change_json(folder / CONFIG, head_dim=2 * 10**9)


@fault("single", CorruptCheckpointError, CONFIG, "cannot build this model.*bleep", CORRECT)
def an_activation_that_does_not_exist(folder: Path) -> None:
    change_json(folder / CONFIG, hidden_act="bleep")


@fault("single", CorruptCheckpointError, CONFIG, "cannot build this model.*bleep", CORRECT)
def a_rotary_embedding_that_does_not_exist(folder: Path) -> None:
    change_json(folder / CONFIG, rope_parameters={"rope_type": "bleep", "rope_theta": 10000.0})


@fault("single", CorruptCheckpointError, CONFIG, "max_position_embeddings", CORRECT)
def a_context_of_no_tokens(folder: Path) -> None:
    change_json(folder / CONFIG, max_position_embeddings=0)


@fault("single", CorruptCheckpointError, CONFIG, "float31", CORRECT)
def a_dtype_that_does_not_exist(folder: Path) -> None:
    change_json(folder / CONFIG, dtype="float31")


@fault("single", WeightMismatchError, CONFIG, "missing: model.layers.3", "config.json")
def the_configuration_of_a_deeper_model(folder: Path) -> None:
    change_json(folder / CONFIG, num_hidden_layers=6)


@fault("single", CorruptCheckpointError, CONFIG, "eos_token_id", CORRECT)
def an_end_token_that_is_a_word(folder: Path) -> None:
    change_json(folder / CONFIG, eos_token_id="</s>")


@fault("single", CorruptCheckpointError, GENERATION, "not JSON")
def generation_defaults_that_are_cut_off(folder: Path) -> None:
    (folder / GENERATION).write_text('{"temperature": ')


@fault("single", CorruptCheckpointError, GENERATION, "expected a JSON object")
def generation_defaults_that_are_a_list(folder: Path) -> None:
    (folder / GENERATION).write_text("[]")


@fault("single", CorruptCheckpointError, GENERATION, "not JSON.*recursion")
def generation_defaults_that_are_nested_without_end(folder: Path) -> None:
    (folder / GENERATION).write_text("[" * 200_000)


@fault("single", CorruptCheckpointError, GENERATION, "temperature", CORRECT)
def a_temperature_that_is_a_word(folder: Path) -> None:
    (folder / GENERATION).write_text('{"do_sample": true, "temperature": "hot"}')


@fault("single", CorruptCheckpointError, GENERATION, "eos_token_id", CORRECT)
def an_end_token_beyond_every_vocabulary(folder: Path) -> None:
    (folder / GENERATION).write_text('{"eos_token_id": [2, -7]}')


@fault("single", CheckpointError, WORDS, "no tokenizer", "add it to the folder")
def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


@fault("single", CorruptCheckpointError, WORDS, "")
def an_empty_tokenizer(folder: Path) -> None:
    (folder / WORDS).write_bytes(b"")


@fault("single", CorruptCheckpointError, WORDS, "")
def a_tokenizer_that_is_cut_off(folder: Path) -> None:
    text = (folder / WORDS).read_text()
    (folder / WORDS).write_text(text[: len(text) // 2])


@fault("single", CorruptCheckpointError, WORDS, "")
def a_tokenizer_that_is_not_utf_8(folder: Path) -> None:
    (folder / WORDS).write_bytes((folder / WORDS).read_bytes().replace(b'"w1"', b'"\xff1"', 1))


@fault("single", CorruptCheckpointError, WORDS, "")
def a_tokenizer_of_an_unknown_kind(folder: Path) -> None:
    change_json(folder / WORDS, model={"type": "Bleep"})


@fault("single", CorruptCheckpointError, WORDS, "")
def a_tokenizer_that_is_a_list(folder: Path) -> None:
    (folder / WORDS).write_text("[]")


@fault("single", WeightMismatchError, WORDS, r"500.*97", "tokenizer of this model")
def a_tokenizer_with_a_larger_vocabulary_than_the_model(folder: Path) -> None:
    write_tokenizer(folder, 500)


@fault("single", UnsafeCheckpointError, WORDS, "out of the checkpoint's folder", "copy the file")
def a_tokenizer_that_is_a_link_out_of_the_folder(folder: Path) -> None:
    (folder / WORDS).rename(folder.with_name(f"{folder.name}-secret"))
    (folder / WORDS).symlink_to(f"../{folder.name}-secret")


@fault("single", CheckpointNotFoundError, WORDS, "link to .*gone.*not there")
def a_tokenizer_that_is_a_link_to_nothing(folder: Path) -> None:
    (folder / WORDS).unlink()
    (folder / WORDS).symlink_to("gone")


@fault("single", CorruptCheckpointError, WORDS_CONFIG, "")
def tokenizer_settings_that_are_cut_off(folder: Path) -> None:
    (folder / WORDS_CONFIG).write_text('{"tokenizer_class": ')


@fault("single", CorruptCheckpointError, WORDS_CONFIG, "")
def tokenizer_settings_that_are_a_list(folder: Path) -> None:
    (folder / WORDS_CONFIG).write_text("[]")


@fault("single", UnsupportedCheckpointError, WORDS_CONFIG, "brings its own code", "add a tokenizer.json")
def a_tokenizer_that_brings_its_own_code(folder: Path) -> None:
    write_code(folder)
    change_json(folder / WORDS_CONFIG, tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})


@fault("single", CorruptCheckpointError, TEMPLATE, "chat template")
def a_chat_template_that_does_not_compile(folder: Path) -> None:
    (folder / TEMPLATE).write_text("{% for message in messages %}{{ message.content }")


@fault("single", CorruptCheckpointError, TEMPLATE, "not a text in UTF-8")
def a_chat_template_that_is_not_utf_8(folder: Path) -> None:
    (folder / TEMPLATE).write_bytes(b"{{ messages }}\xff\xfe")


@fault("single", CorruptCheckpointError, "special_tokens_map.json", "")
def special_tokens_that_are_cut_off(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "w1"})[:-3])
