"""`LLM`: a loaded model that generates text."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from types import TracebackType

from headrace.engine.engine import Engine, failed_output
from headrace.engine.launch import Launched, launch
from headrace.engine.memory_options import Size, memory_options
from headrace.engine.model_work import ModelWork
from headrace.engine.options import EngineOptions
from headrace.engine.outputs import OutputPiece, RequestOutput
from headrace.engine.requests import GenerationRequest
from headrace.errors import HeadraceError, RequestError
from headrace.models.chat import ChatMessage, ChatOptions
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer
from headrace.sampling.parameters import GenerationDefaults, SamplingParams
from headrace.units import parse_rate

Prompt = str | Sequence[int]


class LLM:
    """A language model in memory; a context manager that frees it at the end.

        with LLM("path-or-hub-name", dtype="bfloat16") as llm:
            outputs = llm.generate(["Once upon a time"], SamplingParams(max_tokens=32))

    One thread at a time may use it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        quantization: str = "none",
        allow: Sequence[str] = (),
        device: str = "auto",
        memory: Size | None = None,
        gpu_memory: Size | None = None,
        disk: str | Path | None = None,
        max_memory: Mapping[int | str, Size] | None = None,
        offload_folder: str | Path | None = None,
        disk_bandwidth: str | float | None = None,
        load_format: str = "auto",
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        num_micro_batches: int = 1,
        seed: int = 0,
        enable_prefix_caching: bool = True,
        speculate: bool = True,
        trust_remote_code: bool = False,
        typical_row_tokens: int | None = None,
        expected_rows: int | None = None,
        weights_on_device: float | None = None,
        kv_on_device: float | None = None,
        weights_on_host: float | None = None,
        kv_on_host: float | None = None,
        activations_on_device: float | None = None,
        attend_on_host: bool | None = None,
        pin_memory: bool = True,
        chat_template: str | Path | None = None,
        trace: str | Path | None = None,
        overlap: bool = True,
    ) -> None:
        """Loads the model.

        Args:
            model: a local directory, a hub name (`org/name`, `org/name@revision`), or `demo`, the one in the package.
            revision: branch, tag or commit of a hub name.
            dtype: of weights, KV and arithmetic: `float32`, `bfloat16`, `float16`, or `auto`: the checkpoint's own, but
                float32 on a CPU without instructions for it, where memory is ample.
            quantization: of linear layers: `int8` (weights and, in products, tokens in 8 bits), `int8-outliers` (a
                token's large numbers as they are) or `int4` (weights in 4 bits, in groups of 64; tokens in 8);
                `none`: as `dtype`.
            allow: some of these, in place of `quantization`: the engine takes, of the model as it is and of them, what
                is fastest in memory; where nothing fits, the smallest.
            device: `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:N`, or, for tests,
                `simulated:2GiB,8GB/s`: host memory with a budget and a link of its own.
            memory: bytes, or a size such as `6GiB`, that the whole process may use; 80 % of what is free by default. A
                model that is larger is streamed from disk, sweep by sweep.
            gpu_memory: the same for the GPU's own memory.
            disk: a folder, or `folder:size`, for copies of weights that cannot be streamed as they are, and for KV that
                memory has no room for; by default `$HEADRACE_CACHE` or `~/.cache/headrace`.
            max_memory: transformers' spelling of the two: `{0: "10GiB", "cpu": "30GiB"}`.
            offload_folder: transformers' spelling of `disk`.
            disk_bandwidth: bytes per second, or a rate such as `1GB/s`, at which streamed weights are read at most.
            load_format: `auto`, or `dummy` for random weights from a configuration alone.
            kv_cache_dtype: how keys and values are kept: `auto`, in the model's dtype, or in codes of `int8` or `int4`,
                which take 53 % or 28 % of what bfloat16 takes in heads of 64 numbers, and change tokens.
            max_model_len: tokens of prompt and answer together; the model's own limit by default, or what fits.
            max_num_seqs: rows that run at a time.
            max_num_batched_tokens: tokens of one sweep.
            num_micro_batches: parts in which a sweep runs; more than one changes no token and needs less memory.
            seed: from which requests without a seed get theirs.
            trust_remote_code: run the code that comes with the checkpoint, of its architecture and its tokenizer, with
                all of this user's rights. Such an architecture is not verified to run exactly.
            enable_prefix_caching: share the KV of equal beginnings.
            speculate: where sweeps wait for weights, guess tokens from the row's own text and verify them in the same
                sweep; it changes no token.
            typical_row_tokens: what a row has at the end, prompt and answer, for the division of memory; no limit.
            expected_rows: how many there will be, where that is known, for the same; more are answered, too, but no
                more run at a time.
            weights_on_device: the share of the weights, from 0 to 1, that shall stay where the computing is, in memory
                on a CPU; by default the one that makes most rows advance per second.
            kv_on_device: the same for the KV of attention layers.
            weights_on_host, kv_on_host: of what is not on the GPU (or a simulated device), the shares in the host's
                memory; by default what fits. The rest is on disk.
            attend_on_host: whether the CPU attends over KV that lies in the memory of a GPU's (or simulated device's)
                host, rather than the GPU when the KV has been brought; by default where that is reckoned faster.
            activations_on_device: the share of a sweep's micro-batches whose activations stay on the GPU (or simulated
                device) while they wait for their turn; those of the others are sent to the host. By default all stay,
                unless sweeps would be small for it.
            pin_memory: pin the host memory that a GPU's weights and KV pass or lie in; False leaves it to the system
                to move, and copies take longer.
            chat_template: file with a Jinja template that replaces the checkpoint's own, or the name of one of these.
            overlap: whether micro-batches share the weights of a sweep; False is the plain serial schedule, to compare.
            trace: file to write what happened when to, for Perfetto or chrome://tracing.

        Raises:
            UsageError: the model, an option or the memory is not right; the message says what to do.
        """
        given = memory_options(max_memory, offload_folder, memory=memory, gpu_memory=gpu_memory, disk=disk)
        launched = launch(
            EngineOptions(
                model=str(model),
                revision=revision,
                dtype=dtype,
                quantization=quantization,
                allow=tuple(allow),
                device=device,
                memory_bytes=given["memory"],
                gpu_memory_bytes=given["gpu_memory"],
                disk=given["disk"],
                disk_bytes_per_second=parse_rate(disk_bandwidth) if isinstance(disk_bandwidth, str) else disk_bandwidth,
                load_format=load_format,
                kv_cache_dtype=kv_cache_dtype,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                num_micro_batches=num_micro_batches,
                seed=seed,
                enable_prefix_caching=enable_prefix_caching,
                speculate=speculate,
                trust_remote_code=trust_remote_code,
                typical_row_tokens=typical_row_tokens,
                expected_rows=expected_rows,
                weights_on_device=weights_on_device,
                kv_on_device=kv_on_device,
                weights_on_host=weights_on_host,
                kv_on_host=kv_on_host,
                activations_on_device=activations_on_device,
                attend_on_host=attend_on_host,
                pin_memory=pin_memory,
                chat_template=chat_template,
                trace=trace,
                overlap=overlap,
            )
        )
        self._hold(launched)

    @classmethod
    def holding(cls, launched: Launched) -> LLM:
        """Returns an LLM over an engine that is ready."""
        llm = cls.__new__(cls)
        llm._hold(launched)
        return llm

    def _hold(self, launched: Launched) -> None:
        self._engine: Engine | None = launched.engine
        self._close_weights = launched.close
        self._next_request = 0
        self.tokenizer: Tokenizer | WithoutTokenizer = launched.tokenizer
        self.model_name: str = launched.model_name
        self.description: str = launched.description
        self.work: ModelWork = launched.work
        self.max_model_len: int = launched.engine.max_model_len
        self.defaults: GenerationDefaults = launched.engine.defaults

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continues one or many prompts, as text or token ids; returns their outputs in the order of the prompts.

        Without `max_tokens` an answer may take the rest of the context.

        Raises:
            RequestError: a prompt cannot be served; none was run. Use `run` to have errors as outputs instead.
        """
        requests = self._requests(_as_list(prompts), params)
        for request in requests:
            self._require_engine().check(request)
        outputs = {output.request_id: output for output in self.run(requests)}
        for output in outputs.values():
            if output.error is not None:
                raise output.error
        return [outputs[request.request_id] for request in requests]

    def chat(
        self,
        messages: Sequence[ChatMessage],
        params: SamplingParams | None = None,
        options: ChatOptions | None = None,
    ) -> RequestOutput:
        """Answers a conversation, in the form that the model's chat template gives it.

        Raises:
            RequestError: there is no template, it refuses the messages, or they are too long.
        """
        return self.generate([self.tokenizer.encode_chat(messages, options)], params)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[OutputPiece, None, None]:
        """Yields the first answer to one prompt as it comes; closing the iterator cancels it.

        Raises:
            RequestError: the prompt cannot be served.
        """
        (request,) = self._requests([prompt], params)
        engine = self._require_engine()
        engine.check(request)
        return _stream(engine, request)

    def stream_chat(
        self,
        messages: Sequence[ChatMessage],
        params: SamplingParams | None = None,
        options: ChatOptions | None = None,
    ) -> Generator[OutputPiece, None, None]:
        """Yields the answer to a conversation as it comes; otherwise as `stream`."""
        return self.stream(self.tokenizer.encode_chat(messages, options), params)

    def run(self, requests: Iterable[GenerationRequest]) -> Generator[RequestOutput, None, None]:
        """Yields each request's output when it is finished; pulls requests as there is room for them.

        A request that cannot be served gives an output with an error; the others go on. Closing the iterator cancels
        what is unfinished. Request ids are the caller's, unique among those that run together.

        Raises:
            SweepError: a sweep failed; every request that was finished before has been yielded.
        """
        return _run(self._require_engine(), iter(requests))

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._engine = None
        self._close_weights()
        gc.collect()  # a model's modules refer to each other in circles

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise HeadraceError("this LLM is closed; make a new one")
        return self._engine

    def _requests(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[GenerationRequest]:
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise RequestError(
                f"{len(params)} sampling parameters for {len(prompts)} prompts; expected one, or one each",
                code="invalid_value",
                param="params",
            )
        first, self._next_request = self._next_request, self._next_request + len(prompts)
        return [
            GenerationRequest(
                request_id=first + index,
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=tuple(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt),
                params=own,
            )
            for index, (prompt, own) in enumerate(zip(prompts, params, strict=True))
        ]


def _run(engine: Engine, requests: Iterator[GenerationRequest]) -> Generator[RequestOutput, None, None]:
    tickets: set[int] = set()
    more = True
    try:
        while more or tickets:
            while more and engine.wants_more:
                request = next(requests, None)
                if request is None:
                    more = False
                    break
                try:
                    tickets.add(engine.add(request))
                except RequestError as error:
                    yield failed_output(request, error)
            engine.step()
            for ticket in sorted(tickets & engine.finished.keys()):
                tickets.remove(ticket)
                yield engine.finished.pop(ticket)
    finally:
        for ticket in tickets:
            engine.cancel(ticket)


def _stream(engine: Engine, request: GenerationRequest) -> Generator[OutputPiece, None, None]:
    ticket = engine.add(request)
    answer = engine.first_answer(ticket)
    try:
        while True:
            piece = answer.take_piece()  # others who use the engine make this answer grow, too
            if piece.token_ids:
                yield piece
                if piece.finish_reason is not None:
                    return
            elif ticket in engine.finished:
                error = engine.finished[ticket].error
                assert error is not None, "an answer ends with a token"
                raise error
            else:
                engine.step()
    finally:
        engine.cancel(ticket)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
