"""Start a vLLM engine (GPU or CPU) whose weights can be swapped, and say which folders' weights it can hold."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from evals.chat import ChatError

# Keys of config.json that do not decide whether weights of one folder can run in an engine made for another.
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
    max_num_seqs: int | None = None  # conversations in one batch; None: vLLM's own default
    threads: int | None = None  # of a CPU engine, which keeps the number that it starts with; None: torch's default


class WeightSwap:
    """vLLM worker extension: reload the weights from a folder or a stream, packed copies included."""

    def swap_weights(self, folder: str) -> None:
        """Load ``folder``'s weights into the running model of this worker."""
        self._swap(weights_path=folder)

    def swap_streamed_weights(self, tensors: Iterable[tuple[str, Any]]) -> None:
        """Load weights by their names in a checkpoint, each tensor as it comes; only a worker in this process can."""
        self._swap(weights_iterator=iter(tensors))

    def _swap(self, **weights: object) -> None:
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        try:
            self.reload_weights(**weights)  # type: ignore[attr-defined]
        except BaseException:
            self._break_off(model)
            raise
        head = getattr(model, "lm_head", None)
        if head is not None and next(model.parameters()).device.type == "cpu":
            # On a CPU a tied lm_head keeps a packed copy of the old weights, and reload_weights leaves it stale.
            from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

            dispatch_cpu_unquantized_gemm(head, remove_weight=False)

    def _break_off(self, model: Any) -> None:
        """Give the layers that did not come their old weights back; else half a layer would wait for its other half."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for layer in model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                info.load_numel = 0
                info.loaded_weights.clear()
        finalize_layerwise_reload(model, self.model_runner.model_config)  # type: ignore[attr-defined]


def start_engine(folder: Path, settings: EngineSettings) -> Any:
    """Return a running ``vllm.LLM`` for the checkpoint; raises ChatError when vLLM or the checkpoint cannot be used."""
    # Read by vLLM when it is imported: quiet, no phoning home, and the engine in this process (half the start-up time).
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with _captured_stderr() as noise:
        import torch

        allowed = torch.set_num_threads
        try:
            from vllm import LLM

            if settings.threads is not None and not torch.cuda.is_available():
                torch.set_num_threads(settings.threads)
            length = min(settings.max_model_len, _trained_length(folder))
            return LLM(
                model=str(folder),
                max_model_len=length,
                seed=0,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                worker_extension_cls="evals.engine.WeightSwap",
                **({"max_num_seqs": settings.max_num_seqs} if settings.max_num_seqs else {}),
                **_device_options(settings, length=length),
            )
        except ImportError as error:
            raise ChatError(f"vLLM cannot be imported ({error}); `fuseval doctor` says what to install") from error
        except Exception as error:
            raise ChatError(f"vLLM cannot run {folder}: {error}\n{_tail(noise)}".rstrip()) from error
        finally:
            # A CPU engine forbids it to the whole process; the engine's number is this thread's, merges set their own.
            torch.set_num_threads = allowed


def _device_options(settings: EngineSettings, *, length: int) -> dict[str, Any]:
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
        # A prompt read in parts makes vLLM 0.32 turn back its seeded generator, which torch's CPU generator cannot:
        # the engine would stop. So prompts are read whole, and a step must hold the longest.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, length),
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


def shape(folder: Path) -> tuple[str, bytes]:
    """Return what must be equal for two folders to share an engine: configuration, vocabulary and stop tokens."""
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
