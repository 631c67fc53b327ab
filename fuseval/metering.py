"""What a trial takes, in seconds and dollars, kept in the ledger while it goes on; and the caps that it counts for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evals.budget import usd
from evals.records import Trial
from fuseval.ablation_file import CapsSpec
from fuseval.config import ConfigError

EVERY = 2.0  # seconds between two notes of what a trial has taken: a kill loses no more


class CapReached(Exception):
    """The study stopped before its end, at a cap that the file sets; the message says which and how to go on."""


@dataclass(slots=True)
class Meter:
    """Counts for one trial, which ``store`` keeps; ``spent`` tells what was charged so far, whatever it was for."""

    trial: Trial
    store: Callable[[Trial], None]
    spent: Callable[[], float]
    every: float = EVERY

    @contextlib.contextmanager
    def during(self, what: Literal["making", "answering", "judging"]) -> Iterator[None]:
        """Count what happens inside as this, and keep it every so often, and whatever ends it."""
        before, begun, paid, over = self.trial, time.perf_counter(), self.spent(), threading.Event()

        def so_far() -> Trial:
            seconds = getattr(before, what) + time.perf_counter() - begun
            dollars = None if before.dollars is None else before.dollars + self.spent() - paid
            return replace(before, **{what: seconds, "dollars": dollars})

        def keep() -> None:
            while not over.wait(self.every):
                self.store(so_far())

        keeper = threading.Thread(target=keep, name="trial-meter", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()
            self.trial = so_far()
            self.store(self.trial)


def check_caps(caps: CapsSpec, trials: Sequence[Trial]) -> None:
    """Raise CapReached where the trials have taken as much as they may, ConfigError where nobody knows."""
    if caps.dollars is not None:
        if unknown := [trial.number for trial in trials if trial.dollars is None]:
            raise ConfigError(
                f"ablation.caps.dollars cannot hold: what trial {unknown[0]} cost is not known, for it was paid while "
                "a model had no price. Leave the cap out, or start a study of another seed"
            )
        dollars = sum(trial.dollars or 0.0 for trial in trials)
        if dollars >= caps.dollars:
            raise CapReached(_reached(trials, f"cost {usd(dollars)}", f"dollars is {caps.dollars:g}"))
    hours = sum(trial.making + trial.answering + trial.judging for trial in trials) / 3600
    if caps.hours is not None and hours >= caps.hours:
        raise CapReached(_reached(trials, f"took {hours:.2f} hours", f"hours is {caps.hours:g}"))


def _reached(trials: Sequence[Trial], took: str, cap: str) -> str:
    waiting = sum(trial.state == "running" for trial in trials)
    left = f" ({waiting} of them not ended)" if waiting else ""
    return f"{len(trials)} trials{left} {took}, and ablation.caps.{cap}: raise it to go on"
