from __future__ import annotations

import math

import pytest

from headrace.errors import CorruptCheckpointError, RequestError
from headrace.sampling.parameters import MAX_LOGPROBS, GenerationDefaults, ResolvedSampling, SamplingParams


def resolve(params: SamplingParams, defaults: GenerationDefaults | None = None, room: int = 1000) -> ResolvedSampling:
    return params.resolve(defaults or GenerationDefaults(), default_max_tokens=100, room=room)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", None),
        ("n", True),
        ("n", 10**9),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("min_tokens", -1),
        ("min_tokens", None),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", 1e9),
        ("temperature", "hot"),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", math.inf),
        ("best_of", 0),
        ("prompt_logprobs", MAX_LOGPROBS + 1),
        ("typical_p", 0),
        ("typical_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", "high"),
        ("presence_penalty", 2.1),
        ("presence_penalty", None),
        ("frequency_penalty", -3),
        ("logit_bias", {5: 101}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"five": 1.0}),
        ("logit_bias", [5]),
        ("logit_bias", 5),
        ("logit_bias", {5: math.nan}),
        ("bad_words", [""]),
        ("bad_words", [[]]),
        ("bad_words", [[-1]]),
        ("bad_words", 3),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 3),
        ("stop_token_ids", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [True]),
        ("ignore_eos", 1),
        ("seed", 2**64),
        ("logprobs", MAX_LOGPROBS + 1),
        ("skip_special_tokens", None),
    ],
)
def test_a_value_that_cannot_be_is_an_error_of_the_request_that_names_the_field(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert (caught.value.code, caught.value.param) == ("invalid_value", name)


def test_min_tokens_above_max_tokens_is_an_error() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5; expected at most max_tokens, which is 4"):
        SamplingParams(min_tokens=5, max_tokens=4)


@pytest.mark.parametrize("stop", ["ab", ["ab"], ("ab",)])
def test_stop_is_one_string_or_several(stop: str | list[str]) -> None:
    assert SamplingParams(stop=stop).stop == ("ab",)


def test_parameters_can_be_keys_of_a_dict() -> None:
    assert len({SamplingParams(stop=["a"], stop_token_ids=[1]), SamplingParams(stop="a", stop_token_ids=(1,))}) == 1


def test_a_request_that_says_nothing_is_greedy() -> None:
    resolved = resolve(SamplingParams())
    assert resolved == ResolvedSampling(max_tokens=100)
    assert resolved.is_greedy


@pytest.mark.parametrize("said", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"typical_p": 0.9}, {"seed": 0}])
def test_a_request_with_limits_or_a_seed_samples_at_temperature_one(said: dict[str, float]) -> None:
    assert resolve(SamplingParams(**said)).temperature == 1.0


def test_a_model_that_samples_gives_its_temperature_and_limits() -> None:
    defaults = GenerationDefaults(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, min_p=0.05)
    resolved = resolve(SamplingParams(), defaults)
    assert (resolved.temperature, resolved.top_k, resolved.top_p, resolved.min_p) == (0.6, 20, 0.95, 0.05)


def test_a_model_that_samples_without_a_temperature_samples_at_one() -> None:
    assert resolve(SamplingParams(), GenerationDefaults(do_sample=True)).temperature == 1.0


def test_the_temperature_of_a_model_that_does_not_sample_is_not_used() -> None:
    defaults = GenerationDefaults(temperature=0.6, top_p=0.9)
    assert resolve(SamplingParams(), defaults).is_greedy
    resolved = resolve(SamplingParams(seed=1), defaults)
    assert (resolved.temperature, resolved.top_p) == (1.0, 0.9)


def test_the_request_overrides_the_model() -> None:
    defaults = GenerationDefaults(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    resolved = resolve(SamplingParams(temperature=0, top_k=-1, top_p=1), defaults)
    assert (resolved.temperature, resolved.top_k, resolved.top_p) == (0.0, 0, 1.0)


def test_a_tiny_temperature_is_greedy() -> None:
    assert resolve(SamplingParams(temperature=9e-6)).is_greedy
    assert not resolve(SamplingParams(temperature=1e-5)).is_greedy


def test_max_tokens_is_cut_to_the_room() -> None:
    assert resolve(SamplingParams(max_tokens=50), room=7).max_tokens == 7
    assert resolve(SamplingParams(), room=7).max_tokens == 7


def test_min_tokens_raises_the_default_of_max_tokens_and_is_cut_to_the_room() -> None:
    assert resolve(SamplingParams(min_tokens=200)).max_tokens == 200
    assert resolve(SamplingParams(min_tokens=200), room=150).min_tokens == 150


def test_a_prompt_that_fills_the_context_is_an_error_of_the_request() -> None:
    with pytest.raises(RequestError, match="no room to generate") as caught:
        resolve(SamplingParams(), room=0)
    assert caught.value.code == "context_length_exceeded"


def test_ignore_eos_keeps_the_stop_ids_of_the_request() -> None:
    params = SamplingParams(stop_token_ids=[7], ignore_eos=True)
    resolved = resolve(params, GenerationDefaults(eos_token_ids=(1, 2)))
    assert (resolved.eos_token_ids, resolved.ending_token_ids) == (frozenset(), {7})


def test_all_ids_that_end_an_answer_are_the_models_and_the_requests() -> None:
    assert resolve(SamplingParams(stop_token_ids=[7]), GenerationDefaults(eos_token_ids=(1, 2))).ending_token_ids == {
        1,
        2,
        7,
    }


@pytest.mark.parametrize(("eos", "expected"), [(2, (2,)), ([2, 3], (2, 3)), (None, ())])
def test_a_generation_config_names_one_end_token_or_several(eos: object, expected: tuple[int, ...]) -> None:
    assert GenerationDefaults.from_json({"eos_token_id": eos}).eos_token_ids == expected


def test_a_generation_config_is_read() -> None:
    values = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": None, "eos_token_id": [5]}
    assert GenerationDefaults.from_json(values) == GenerationDefaults(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, eos_token_ids=(5,)
    )


def test_keys_of_a_generation_config_that_are_not_followed_are_named() -> None:
    values = {
        "num_beams": 1,
        "suppress_tokens": [],
        "no_repeat_ngram_size": 3,
        "forced_bos_token_id": 4,
    }
    assert GenerationDefaults.from_json(values).ignored == ("forced_bos_token_id", "no_repeat_ngram_size")


def test_penalties_of_a_generation_config_are_followed_unless_the_request_has_its_own() -> None:
    values = {"repetition_penalty": 1.05, "typical_p": 0.9, "bad_words_ids": [[1], [2, 3]]}
    defaults = GenerationDefaults.from_json(values)
    assert defaults.ignored == ()
    resolved = resolve(SamplingParams(), defaults)
    assert (resolved.repetition_penalty, resolved.typical_p, resolved.bad_words) == (1.05, 0.9, ((1,), (2, 3)))
    resolved = resolve(SamplingParams(repetition_penalty=1.0, bad_words=[[4]]), defaults)
    assert (resolved.repetition_penalty, resolved.bad_words) == (1.0, ((4,), (1,), (2, 3)))


@pytest.mark.parametrize("bias", [{5: 1, 2: -3.5}, {"5": 1.0, "2": -3.5}, [(5, 1.0), (2, -3.5)]])
def test_a_bias_is_given_by_ids_or_their_text(bias: dict[int, float]) -> None:
    assert SamplingParams(logit_bias=bias).logit_bias == ((2, -3.5), (5, 1.0))


def test_a_bad_word_is_ruled_out_in_every_form_that_it_may_come_in() -> None:
    resolved = SamplingParams(bad_words=["ab", [7, 8]]).resolve(
        GenerationDefaults(), default_max_tokens=9, room=9, word_forms=lambda word: [[ord(word[0])], [1, 2]]
    )
    assert resolved.bad_words == ((97,), (1, 2), (7, 8))


@pytest.mark.parametrize(("key", "value"), [("top_p", 3), ("eos_token_id", "x"), ("do_sample", "yes")])
def test_a_generation_config_with_a_value_that_cannot_be_is_a_corrupt_checkpoint(key: str, value: object) -> None:
    with pytest.raises(CorruptCheckpointError, match=f"generation_config.json: {key}"):
        GenerationDefaults.from_json({key: value})


def test_of_more_answers_the_best_are_given() -> None:
    resolved = resolve(SamplingParams(n=2, best_of=5, seed=0))
    assert (resolved.n, resolved.num_kept, resolved.needs_logprobs) == (5, 2, True)
    resolved = resolve(SamplingParams(n=2))
    assert (resolved.n, resolved.num_kept, resolved.needs_logprobs) == (2, 2, False)
    with pytest.raises(RequestError, match="best_of is 2; expected an integer from 3"):
        SamplingParams(n=3, best_of=2)
