"""Processes that work together, as `accelerate launch` started them; without it, the only one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fusion.errors import need


@dataclass(frozen=True, slots=True)
class Crew:
    """This process among those that share the work."""

    number: int
    count: int
    wait: Callable[[], None]  # until all have come here
    device: str | None  # torch's name; None: nobody says, and a GPU is taken where there is one

    @property
    def main(self) -> bool:
        """Whether this is the first, which prepares, tells and writes."""
        return self.number == 0


def crew(device: str | None = None) -> Crew:
    """Return which of the processes of a launch this is; ``device`` is where it shall compute."""
    import torch

    distributed = torch.distributed
    launched = distributed.is_available() and (distributed.is_initialized() or distributed.is_torchelastic_launched())
    if not launched:
        return Crew(0, 1, lambda: None, device)
    need("accelerate", extra="train")
    from accelerate import PartialState  # type: ignore[import-untyped]

    state = PartialState(cpu=not torch.cuda.is_available())
    return Crew(state.process_index, state.num_processes, state.wait_for_everyone, device or str(state.device))


@contextmanager
def whole_weights() -> Iterator[None]:
    """Have transformers load whole models in every process inside the block.

    Where FSDP is to be used, it would load the weights in the first process of a machine only, and leave those of the
    others empty until they are shared out for training; a model that is only read is never shared out.
    """
    name = "ACCELERATE_USE_FSDP"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
