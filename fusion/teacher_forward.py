"""The forward pass of a teacher: token sequences in, the k likeliest next tokens of every real position out.

The body of a model runs on batches, its head on a few positions at a time, so that logits over the whole vocabulary
never exist but for those few. Sequences are padded on the right, where a causal model does not look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fusion.crew import whole_weights
from fusion.errors import FusionError, RecipeError
from fusion.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
"""Float32 logits that exist at a time, by kind of device: as much as keeps it busy."""

BLOCK = 128  # columns: the k largest of a row lie in the k blocks of it with the largest maxima
PROBE = 8  # positions on which the split into body and head is checked against the whole model

IntArray = npt.NDArray[np.integer[Any]]
Body = Callable[["Tensor", "Tensor"], "Tensor"]
Head = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of one sequence of n tokens; row t is of token t + 1, given tokens 0 to t.

    ``next_logprob`` float32 (n,), NaN at the last; ``top_ids`` int32 (n, k) and ``top_logprobs`` float32 (n, k),
    likeliest first, normalised over the whole vocabulary.
    """

    next_logprob: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]


class Scorer(Protocol):
    """Something that says what a model makes of token sequences: the forward pass here, or a running engine."""

    name: str  # stands in the settings of the shards
    dtype: str  # of the model's numbers
    beyond: int  # positions of the model's context that it wants beyond a text

    def __call__(self, sequences: Sequence[IntArray]) -> Iterator[tuple[int, Scores]]:
        """Yield the scores of each sequence with its number, in any order."""
        ...


class ForwardScorer:
    """A checkpoint's forward pass through transformers; the model is loaded when the first sequences come.

    ``device`` as torch names it, None for a GPU where there is one; ``dtype`` "auto" is float32 on a CPU, where it is
    fastest, and the checkpoint's on a GPU. ``temperature`` divides the logits of the k likeliest, and of them alone.
    """

    name = "transformers"
    beyond = 0

    def __init__(
        self,
        folder: Path,
        *,
        k: int,
        batch_tokens: int,
        dtype: str = "auto",
        temperature: float = 1.0,
        device: str | None = None,
    ) -> None:
        import torch

        self.folder, self.k, self.batch_tokens, self.temperature = folder, k, batch_tokens, temperature
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = run_dtype(folder, dtype, self.device)
        self._stages: tuple[Body, Head] | None = None

    def __call__(self, sequences: Sequence[IntArray]) -> Iterator[tuple[int, Scores]]:
        """Yield the scores of each sequence with its number, longest first."""
        import torch

        for batch in batches([len(ids) for ids in sequences], self.batch_tokens):
            try:
                with torch.inference_mode():
                    scored = self._batch([sequences[number] for number in batch])
            except torch.cuda.OutOfMemoryError as error:
                raise FusionError(
                    f"{self.folder} does not fit the GPU's memory with batch_tokens {self.batch_tokens}; lower it"
                ) from error
            yield from zip(batch, scored, strict=True)

    def _batch(self, sequences: Sequence[IntArray]) -> list[Scores]:
        import torch

        body, head = self._loaded()
        lengths = torch.tensor([len(ids) for ids in sequences])
        real = torch.arange(int(lengths.max()))[None] < lengths[:, None]  # (B, T)
        ids = torch.zeros(real.shape, dtype=torch.int64)
        ids[real] = torch.from_numpy(np.concatenate(sequences).astype(np.int64))
        following = torch.cat([torch.from_numpy(np.append(part[1:], -1).astype(np.int64)) for part in sequences])
        on = real.to(self.device)
        states = body(ids.to(self.device), on)[on]  # (R, H), R the real positions of the batch
        rows = self._rows(head, states, following.to(self.device))
        parts = [np.split(column, np.cumsum(lengths.numpy())[:-1]) for column in rows]
        return [Scores(*scored) for scored in zip(*parts, strict=True)]

    def _rows(self, head: Head, states: Tensor, following: Tensor) -> tuple[Any, Any, Any]:
        """Return Scores' three columns for the positions of a batch, a few at a time through the head."""
        import torch

        found: list[tuple[Tensor, Tensor, Tensor]] = []
        step = max(1, CHUNK_BYTES.get(self.device.type, CHUNK_BYTES["cpu"]) // (4 * self._vocabulary))
        for first in range(0, len(states), step):
            states_part, next_part = states[first : first + step], following[first : first + step]
            logits = head(states_part).float()  # (C, V)
            total = logits.logsumexp(dim=1)
            said = logits.gather(1, next_part.clamp(min=0)[:, None])[:, 0] - total
            top, top_ids = largest(logits, self.k)
            if self.temperature != 1:
                top, total = top / self.temperature, (logits / self.temperature).logsumexp(dim=1)
            found.append((said.masked_fill(next_part < 0, torch.nan), top_ids.int(), top - total[:, None]))
        return tuple(torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))  # type: ignore[return-value]

    def _loaded(self) -> tuple[Body, Head]:
        if self._stages is None:
            import torch
            from transformers import AutoModelForCausalLM

            with quiet_libraries(), whole_weights():
                model = AutoModelForCausalLM.from_pretrained(
                    self.folder, dtype=getattr(torch, self.dtype), use_safetensors=True
                )
            model.to(self.device).eval()
            self._vocabulary = int(model.get_output_embeddings().weight.shape[0])
            if self.k > self._vocabulary:
                raise RecipeError(f"k is {self.k}, but {self.folder} has only {self._vocabulary} tokens; lower it")
            self._stages = _split(model, torch.arange(PROBE, device=self.device) % self._vocabulary)
        return self._stages


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group sequence numbers, longest first, so that a group padded to its longest holds at most ``budget`` tokens.

    A sequence longer than the budget stands alone.
    """
    groups: list[list[int]] = []
    room = 0
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if not groups or (len(groups[-1]) + 1) * room > budget:
            groups.append([])
            room = max(1, lengths[number])
        groups[-1].append(number)
    return groups


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row (R, V) and their columns, largest first: torch.topk, several times as fast.

    The k largest lie in the k blocks of columns with the largest maxima, so only those are searched.
    """
    import torch

    rows, columns = logits.shape
    whole = columns // BLOCK
    if whole <= 2 * k:
        top = logits.topk(k, dim=1)
        return top.values, top.indices
    blocks = logits[:, : whole * BLOCK].reshape(rows, whole, BLOCK)
    best = blocks.amax(dim=2).topk(k, dim=1).indices  # (R, k)
    searched = (best[:, :, None] * BLOCK + torch.arange(BLOCK, device=logits.device)).flatten(1)
    if columns % BLOCK:  # what is left at the end of a row is searched too
        rest = torch.arange(whole * BLOCK, columns, device=logits.device).expand(rows, -1)
        searched = torch.cat((searched, rest), dim=1)
    top = logits.gather(1, searched).topk(k, dim=1)
    return top.values, searched.gather(1, top.indices)


def _split(model: Any, probe: Tensor) -> tuple[Body, Head]:
    """Return a causal language model as body and head; what lies between them stays the model's own code.

    The head is the model's own forward with its body replaced by one that hands on hidden states already computed, so
    that whatever a model does to its logits (a scale, a soft cap) is done. Where a model cannot be taken apart so, the
    body is the whole model, and the head does nothing.
    """
    import torch

    body = getattr(model, model.base_model_prefix, None)
    with torch.inference_mode():
        whole = model(input_ids=probe[None], use_cache=False).logits[0]

        def run_whole(ids: Tensor, real: Tensor) -> Tensor:
            logits: Tensor = model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
            return logits

        if body is None or body is model:
            return run_whole, lambda logits: logits
        kind = type(body(input_ids=probe[None], use_cache=False))

        class Handed(torch.nn.Module):
            """Stands for the body, and returns what it is given."""

            def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
                return kind(last_hidden_state=inputs_embeds)

        def run_body(ids: Tensor, real: Tensor) -> Tensor:
            states: Tensor = body(input_ids=ids, attention_mask=real.long(), use_cache=False).last_hidden_state
            return states

        def run_head(states: Tensor) -> Tensor:
            logits: Tensor = model(inputs_embeds=states[None], use_cache=False).logits[0]
            return logits

        setattr(model, model.base_model_prefix, Handed())
        try:
            parted = run_head(run_body(probe[None], torch.ones_like(probe)[None] > 0)[0])
            if parted.shape == whole.shape and torch.allclose(parted, whole, rtol=1e-2, atol=1e-2):
                return run_body, run_head
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
            pass  # a forward that wants more of its body: the model is then run whole
        setattr(model, model.base_model_prefix, body)
        return run_whole, lambda logits: logits


def run_dtype(folder: Path, wanted: str, device: torch.device) -> str:
    """Return the dtype to run a checkpoint in: for "auto", float32 on a CPU and its own on a GPU."""
    from transformers import AutoConfig

    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        return "float32"
    config = AutoConfig.from_pretrained(folder)
    return str(config.dtype or config.get_text_config().dtype or "bfloat16").removeprefix("torch.")
