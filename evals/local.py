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
        """Say whether :meth:`load` can put ``folder``'s weights here: same architecture, shapes and vocabulary."""
        return _shape(folder) == _shape(self.folder)

    def load(self, folder: Path, *, identity: str) -> None:
        """Swap in the weights and the chat template of ``folder``, of the same shape, and forget what was cached."""
        if identity == self.identity:
            return
        if not self.fits(folder):
            raise ChatError(f"{folder} has another architecture or vocabulary than {self.folder}: start a new engine")
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
        """Yield what came of each request as the batch completes it; a prompt that does not fit is a NoReply."""
        running: dict[
            str, tuple[float, int]
        ] = {}  # index as the engine's name of the request -> (begun, prompt tokens)
        waiting = iter(enumerate(requests))
        try:
            while True:
                for index, request in waiting:
                    prompt = self.render(request)
                    if len(prompt) >= self._context:
                        yield index, NoReply("context_length", self._too_long(len(prompt)), 1)
                        continue
                    running[str(index)] = (time.perf_counter(), len(prompt))
                    self._core.add_request(str(index), {"prompt_token_ids": prompt}, self._sampling_params(request))
                    if len(running) >= WINDOW:
                        break
                if not running:
                    return
                for output in self._core.step():
                    if output.finished:
                        begun, prompt_tokens = running.pop(output.request_id)
                        seconds = time.perf_counter() - begun
                        yield int(output.request_id), self._reply(output.outputs[0], prompt_tokens, seconds)
        finally:
            if running:
                self._core.abort_request(list(running))

    @property
    def _core(self) -> Any:
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

    def _reply(self, output: Any, prompt_tokens: int, seconds: float) -> Reply | NoReply:
        if output.finish_reason not in ("stop", "length"):
            return NoReply("server", f"the engine ended the request with {output.finish_reason!r}", 1)
        alternatives: tuple[tuple[str, float], ...] = ()
        if output.logprobs:
            found = ((self._tokenizer.decode([token]), entry.logprob) for token, entry in output.logprobs[0].items())
            alternatives = tuple(sorted(found, key=lambda pair: -pair[1]))
        return Reply(
            text=output.text,
            finish_reason=output.finish_reason,
            prompt_tokens=prompt_tokens,
            output_tokens=len(output.token_ids),
            seconds=seconds,
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
        except (ValueError, RuntimeError, OSError) as error:
            raise ChatError(f"vLLM cannot run {folder}: {error}\n{_tail(noise)}".rstrip()) from error


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
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ChatError(f"{folder} holds no config.json: give a folder in Hugging Face format") from None
    if not isinstance(found, dict):
        raise ChatError(f"{file} is not a JSON object: it is not a model's configuration")
    return found


def _shape(folder: Path) -> tuple[str, bytes]:
    config = {k: v for k, v in _config(folder).items() if k not in SHAPE_IRRELEVANT}
    tokenizer = folder / "tokenizer.json"
    return json.dumps(config, sort_keys=True), tokenizer.read_bytes() if tokenizer.exists() else b""
