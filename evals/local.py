"""A checkpoint that chats, through vLLM in this process (GPU or CPU), with its weights swappable in place.

Starting an engine costs tens of seconds, putting other weights of the same shape into it about one; so the
pipeline keeps one :class:`LocalModel` and calls :meth:`LocalModel.load` for each candidate.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.endpoint_errors import one_line

WINDOW = 512  # requests handed to the engine at a time: enough to fill any batch, and memory stays flat

# What decides whether weights of one folder can run in an engine made for another.
SHAPE_IRRELEVANT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine runs; ``dtype`` "auto" is float32 on a CPU, where it is fastest, and the checkpoint's on a GPU.

    ``max_model_len`` bounds prompt and reply together, in tokens, and is lowered to what the model was made for.
    """

    max_model_len: int = 4096
    dtype: str = "auto"
    kv_cache_gib: float = 1.0  # CPU only; a GPU engine takes gpu_memory_utilization
    gpu_memory_utilization: float = 0.9
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class _Running:
    begun: float
    prompt_tokens: int
    max_tokens: int


class WeightSwap:
    """vLLM worker extension: reload the weights from a folder, packed copies included."""

    def swap_weights(self, folder: str) -> None:
        """Load ``folder``'s weights into the running model of this worker."""
        self.reload_weights(weights_path=folder)  # type: ignore[attr-defined]
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        head = getattr(model, "lm_head", None)
        if head is not None and next(model.parameters()).device.type == "cpu":
            # On a CPU a tied lm_head keeps a packed copy of the old weights, and reload_weights leaves it stale.
            from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

            dispatch_cpu_unquantized_gemm(head, remove_weight=False)


class LocalModel:
    """A ChatModel over a folder of safetensors, a tokenizer and its chat template."""

    def __init__(self, folder: Path, *, identity: str, settings: EngineSettings | None = None) -> None:
        """Start the engine; raises ChatError when vLLM or the checkpoint cannot be used."""
        self.folder = folder
        self.identity = identity
        self.settings = settings or EngineSettings()
        self._engine = _start_engine(folder, self.settings)
        self._set_tokenizer(folder)

    def fits(self, folder: Path) -> bool:
        """Say whether :meth:`load` can put ``folder``'s weights here: same architecture, vocabulary and stop tokens."""
        return self._engine is not None and _shape(folder) == _shape(self.folder)

    def load(self, folder: Path, *, identity: str) -> None:
        """Swap in the weights and the chat template of ``folder``, of the same shape, and forget what was cached."""
        if identity == self.identity:
            return
        if not self.fits(folder):
            raise ChatError(
                f"{folder} has another architecture, vocabulary or stop tokens than {self.folder}: start a new engine"
            )
        self._engine.collective_rpc("swap_weights", args=(str(folder),))
        self._engine.reset_prefix_cache()
        self.folder, self.identity = folder, identity
        self._set_tokenizer(folder)

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._engine = None
        gc.collect()

    def render(self, request: ChatRequest) -> list[int]:
        """Return the token ids of the prompt, by the tokenizer's own chat template."""
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return [int(i) for i in ids]

    def chat(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        """Yield what came of each request as the batch completes it; what the model cannot be asked is a NoReply."""
        running: dict[str, _Running] = {}  # by the engine's name of the request, which is its index
        waiting = iter(enumerate(requests))
        try:
            while True:
                while len(running) < WINDOW and (taken := next(waiting, None)) is not None:
                    index, request = taken
                    entered = self._enter(str(index), request)
                    if isinstance(entered, NoReply):
                        yield index, entered
                    else:
                        running[str(index)] = entered
                if not running:
                    return
                for output in self._step(running):
                    if output.finished:
                        yield int(output.request_id), self._reply(output.outputs[0], running.pop(output.request_id))
        finally:
            if running:
                self._core.abort_request(list(running))

    def _enter(self, name: str, request: ChatRequest) -> _Running | NoReply:
        """Hand a request to the engine, or say why it cannot be asked."""
        import jinja2

        begun = time.perf_counter()
        try:
            prompt = self.render(request)
        except (jinja2.TemplateError, ValueError) as error:
            said = one_line(str(error))
            return NoReply("bad_request", f"the chat template of {self.folder} refuses the messages: {said}", 1)
        if len(prompt) >= self._context:
            return NoReply("context_length", self._too_long(len(prompt)), 1)
        try:
            self._core.add_request(name, {"prompt_token_ids": prompt}, self._sampling_params(request))
        except Exception as error:
            if not _is_refusal(error):
                raise
            return NoReply("bad_request", f"vLLM refuses the request: {one_line(str(error))}", 1)
        return _Running(begun=begun, prompt_tokens=len(prompt), max_tokens=request.sampling.max_tokens)

    def _step(self, running: dict[str, _Running]) -> list[Any]:
        try:
            return list(self._core.step())
        except Exception as error:
            running.clear()  # there is nothing left to abort, and the next candidate needs a new engine
            self.close()
            raise ChatError(
                f"the engine stopped while {self.folder} was answering ({type(error).__name__}: "
                f"{one_line(str(error))}); run the same command again: what is stored is kept"
            ) from error

    @property
    def _core(self) -> Any:
        if self._engine is None:
            raise ChatError(f"the engine that held {self.folder} is stopped: start a new one")
        return self._engine.llm_engine

    def _set_tokenizer(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        if not self._tokenizer.chat_template:
            raise ChatError(
                f"{folder} has no chat template, so it cannot be asked in turns: "
                "add the chat_template.jinja that it was trained with, or give a chat model"
            )
        self._context = int(self._core.model_config.max_model_len)

    def _too_long(self, tokens: int) -> str:
        return (
            f"the prompt has {tokens} tokens and the engine holds {self._context}: raise engine.max_model_len "
            "if the model can take more, or leave the question out"
        )

    def _sampling_params(self, request: ChatRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        s = request.sampling
        wanted: dict[str, Any] = {"logprobs": request.top_logprobs or None}
        if request.choices:
            wanted = {"structured_outputs": StructuredOutputsParams(choice=list(request.choices))}
            if request.top_logprobs:
                wanted["logprob_token_ids"] = self._first_tokens(request.choices)
        return SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            repetition_penalty=s.repetition_penalty,
            max_tokens=s.max_tokens,
            stop=list(s.stop),
            seed=s.seed if s.temperature > 0 else None,
            **wanted,
        )

    def _first_tokens(self, choices: Sequence[str]) -> list[int]:
        first = [int(self._tokenizer.encode(choice, add_special_tokens=False)[0]) for choice in choices]
        if len(set(first)) < len(first):
            raise ChatError(f"choices {list(choices)} begin with the same token in {self.folder}: use distinct letters")
        return first

    def _reply(self, output: Any, asked: _Running) -> Reply | NoReply:
        if output.finish_reason not in ("stop", "length"):
            return NoReply("server", f"the engine ended the request with {output.finish_reason!r}", 1)
        tokens = len(output.token_ids)
        if output.finish_reason == "length" and tokens < asked.max_tokens:
            message = (
                f"the reply was cut after {tokens} of max_tokens {asked.max_tokens}: with the prompt's "
                f"{asked.prompt_tokens} it filled the {self._context} that the engine holds; raise engine.max_model_len"
            )
            return NoReply("context_length", message, 1)
        alternatives: tuple[tuple[str, float], ...] = ()
        if output.logprobs:
            found = ((self._tokenizer.decode([token]), entry.logprob) for token, entry in output.logprobs[0].items())
            alternatives = tuple(sorted(found, key=lambda pair: -pair[1]))
        return Reply(
            text=output.text,
            finish_reason=output.finish_reason,
            prompt_tokens=asked.prompt_tokens,
            output_tokens=tokens,
            seconds=time.perf_counter() - asked.begun,
            served_model=self.identity,
            top_logprobs=alternatives,
        )


def _start_engine(folder: Path, settings: EngineSettings) -> Any:
    # Read by vLLM when it is imported: quiet, no phoning home, and the engine in this process (half the start-up time).
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with _captured_stderr() as noise:
        try:
            from vllm import LLM

            return LLM(
                model=str(folder),
                max_model_len=min(settings.max_model_len, _trained_length(folder)),
                seed=0,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                worker_extension_cls="evals.local.WeightSwap",
                **_device_options(settings),
            )
        except ImportError as error:
            raise ChatError(f"vLLM cannot be imported ({error}); `fuseval doctor` says what to install") from error
        except Exception as error:
            raise ChatError(f"vLLM cannot run {folder}: {error}\n{_tail(noise)}".rstrip()) from error


def _is_refusal(error: Exception) -> bool:
    # By name: vLLM's own were ValueErrors once, and now have a family of their own.
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"ValueError", "VLLMClientError", "VLLMValidationError"})


def _device_options(settings: EngineSettings) -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        return {
            "dtype": settings.dtype,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "tensor_parallel_size": settings.tensor_parallel,
        }
    # Compilation costs minutes at start-up and gains nothing on a CPU; float32 is the fastest dtype there.
    return {
        "dtype": "float32" if settings.dtype == "auto" else settings.dtype,
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * (1 << 30)),
    }


@contextlib.contextmanager
def _captured_stderr() -> Iterator[IO[bytes]]:
    """Keep the start-up chatter of vLLM's Python and C++ parts off the terminal, unless its log level was asked for."""
    with tempfile.TemporaryFile() as noise, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if os.environ["VLLM_LOGGING_LEVEL"] != "ERROR":
            yield noise
            return
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(noise.fileno(), 2)
        try:
            yield noise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _tail(noise: IO[bytes]) -> str:
    noise.seek(max(0, noise.seek(0, os.SEEK_END) - 2000))
    return noise.read().decode("utf-8", "replace")


def _trained_length(folder: Path) -> int:
    config = _config(folder)
    text = config.get("text_config") or config
    return int(text.get("max_position_embeddings") or 1 << 30)


def _config(folder: Path) -> dict[str, Any]:
    config = _json_file(folder / "config.json")
    if config is None:
        raise ChatError(f"{folder} holds no config.json: give a folder in Hugging Face format")
    return config


def _json_file(file: Path) -> dict[str, Any] | None:
    """Return the object in the file, None where there is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ChatError(f"{file} is not JSON ({error}): fetch it again") from None
    if not isinstance(found, dict):
        raise ChatError(f"{file} is not a JSON object: it is no part of a model")
    return found


def _shape(folder: Path) -> tuple[str, bytes]:
    config = {k: v for k, v in _config(folder).items() if k not in SHAPE_IRRELEVANT}
    tokenizer = folder / "tokenizer.json"
    told = json.dumps([config, _stop_tokens(folder)], sort_keys=True)
    return told, tokenizer.read_bytes() if tokenizer.exists() else b""


def _stop_tokens(folder: Path) -> tuple[list[int], str | None]:
    """Return what ends a reply, which vLLM reads once, at its start: the generation's and the tokenizer's own."""
    generation = _json_file(folder / "generation_config.json")
    ids = (_config(folder) if generation is None else generation).get("eos_token_id")
    token = None
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = token or (_json_file(folder / name) or {}).get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return sorted({ids} if isinstance(ids, int) else set(ids or ())), text
