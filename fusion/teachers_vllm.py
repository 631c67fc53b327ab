"""Teachers run by vLLM: the log-probabilities of a prompt's tokens stand in for a forward pass of our own.

For teachers that need several GPUs, or where an engine runs already. A text is given as a prompt and one token is
asked for after it, so that the last position has its distribution too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusion.errors import FusionError, RecipeError
from fusion.teacher_forward import Scores, run_dtype
from fusion.teachers import TeacherParams

IntArray = npt.NDArray[np.integer[Any]]


class VllmScorer:
    """A vLLM engine as a scorer; ``start`` makes the ``vllm.LLM``, when the first sequences come."""

    name = "vllm"
    beyond = 1  # the token that is asked for after a text

    def __init__(self, start: Callable[[], Any], *, k: int, dtype: str) -> None:
        self.k, self.dtype = k, dtype
        self._start = start
        self._llm: Any = None

    def __call__(self, sequences: Sequence[IntArray]) -> Iterator[tuple[int, Scores]]:
        """Yield the scores of each sequence with its number, in order."""
        from vllm import SamplingParams

        if self._llm is None:
            self._llm = self._start()
        sampling = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=self.k, logprobs=self.k, flat_logprobs=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": ids.tolist()} for ids in sequences]
        try:
            outputs = self._llm.generate(prompts, sampling, use_tqdm=False)
        except ValueError as error:  # too long, or more log-probabilities than the engine was made for
            raise FusionError(
                f"vLLM refuses the texts: {error}; start it with max_model_len above max_length and with "
                f"max_logprobs {self.k} or more"
            ) from error
        for number, output in enumerate(outputs):
            yield number, self._scores(output, len(sequences[number]))

    def _scores(self, output: Any, length: int) -> Scores:
        """Read one prompt: vLLM gives a position's real token first, then the k likeliest, the likeliest first."""
        prompt, after = output.prompt_logprobs, output.outputs[0].logprobs
        wide = (length, self.k + 1)
        ids = np.array([*prompt.token_ids, *after.token_ids], dtype=np.int32).reshape(wide)
        logprobs = np.array([*prompt.logprobs, *after.logprobs], dtype=np.float32).reshape(wide)
        said = logprobs[:, 0].copy()
        said[-1] = np.nan  # of the token that was asked for, which no text holds
        return Scores(said, ids[:, 1:], logprobs[:, 1:])


def vllm_prompt_logprobs(
    folder: Path, params: TeacherParams, *, llm: Any = None, device: str | None = None, **options: Any
) -> VllmScorer:
    """Return a scorer for :func:`fusion.teachers.distributions` that runs the checkpoint ``folder`` in vLLM.

    ``llm`` is a running ``vllm.LLM`` of that checkpoint, made with ``max_logprobs`` of k or more and a context longer
    than ``max_length``; without one it is started when it is needed, with ``options`` (``tensor_parallel_size``,
    ``gpu_memory_utilization``, …) on top of what this work wants. RecipeError for a temperature other than 1, which
    vLLM's prompt log-probabilities do not know.
    """
    import torch

    if params.temperature != 1:
        raise RecipeError(
            f"temperature of the teachers is {params.temperature}, but vLLM gives the probabilities of a prompt at 1; "
            "leave it at 1, or run the teachers through transformers"
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if llm is not None:
        dtype = str(llm.llm_engine.model_config.dtype).removeprefix("torch.")
        return VllmScorer(lambda: llm, k=params.k, dtype=dtype)
    dtype = run_dtype(folder, params.dtype, where)
    return VllmScorer(lambda: _start(folder, params, where.type, {"dtype": dtype, **options}), k=params.k, dtype=dtype)


def _start(folder: Path, params: TeacherParams, device: str, options: dict[str, Any]) -> Any:
    # Read by vLLM when it is imported: quiet, no phoning home, and the engine in this process.
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "ERROR"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
    ):
        os.environ.setdefault(name, value)
    from transformers import AutoConfig

    context = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", None)
    length = min(params.max_length + 1, context or params.max_length + 1)
    wanted: dict[str, Any] = {
        "model": str(folder),
        "max_model_len": length,
        "max_logprobs": params.k,
        # The float32 logits of a whole text exist at once, so a step is no larger than it must be.
        "max_num_batched_tokens": max(params.batch_tokens, length),
        "enable_prefix_caching": False,  # a cached prefix has no logits
        "seed": 0,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if device == "cpu":
        wanted |= {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30, "enable_chunked_prefill": False}
    try:
        from vllm import LLM

        return LLM(**wanted | options)
    except ImportError as error:
        raise FusionError(f"vLLM cannot be imported ({error}); `fuseval doctor` says what to install") from error
    except Exception as error:
        raise FusionError(f"vLLM cannot run {folder}: {error}") from error
