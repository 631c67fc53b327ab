"""lm-eval's tasks of code: what models wrote is run by a sandbox that is passed in, and never by the metric library.

The metric ``code_eval`` of the library evaluate executes programs in this process's rights. Tasks fetch it by
``evaluate.load`` when their code is imported; meanwhile that gives :class:`SandboxedCodeEval`, which computes the same
pass@k of what the sandbox says. A task that calls itself unsafe and runs code in another way is refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodWrapperType
from typing import Any

from evals.assets import AssetError

RunTests = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
"""Code with its tests → whether these ran to their end and passed. Raises where nothing can be isolated."""


class SandboxedCodeEval:
    """Stands where evaluate's ``code_eval`` is expected."""

    def __init__(self, run: RunTests) -> None:
        self._run = run

    def compute(
        self, *, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1, 10, 100)
    ) -> tuple[dict[str, float], dict[int, list[bool]]]:
        """Return pass@k over the tasks, for each ``k`` that there are candidates for, and which candidates passed."""
        pairs = [
            (candidate, tests)
            for tests, candidates in zip(references, predictions, strict=True)
            for candidate in candidates
        ]
        said = iter(self._run(pairs))
        passed = {task: [next(said) for _ in candidates] for task, candidates in enumerate(predictions)}
        least = min(map(len, predictions), default=0)
        found = {
            f"pass@{each}": sum(pass_at_k(len(runs), sum(runs), each) for runs in passed.values()) / len(passed)
            for each in k
            if each <= least
        }
        return found, passed


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the chance that one of ``k`` drawn from ``n`` candidates is correct: 1 − C(n−c, k) / C(n, k).

    Chen et al. 2021, arXiv:2107.03374, equation 1.
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


_TASKS = ("lm_eval.tasks.", "/")  # how the names begin that lm-eval gives modules of its tasks, and of files


@contextmanager
def code_in(run: RunTests) -> Iterator[None]:
    """Give tasks whose code is imported inside the block the sandbox instead of evaluate's ``code_eval``.

    Code that was imported with another sandbox before, which lm-eval would take again, is forgotten.
    """
    import evaluate

    for name in [name for name, module in sys.modules.items() if name.startswith(_TASKS) and _has_sandbox(module)]:
        del sys.modules[name]
    load = evaluate.load

    def sandboxed(path: str, *args: Any, **kwargs: Any) -> Any:
        return SandboxedCodeEval(run) if path == "code_eval" else load(path, *args, **kwargs)

    evaluate.load = sandboxed
    try:
        yield
    finally:
        evaluate.load = load


def check_contained(task: Any, name: str) -> None:
    """Raise AssetError unless all that an unsafe task runs goes through the sandbox."""
    if not getattr(task, "UNSAFE_CODE", False):
        return
    metrics = [metric for metric in task._metric_fn_list.values() if metric is not None]
    uncertain = callable(task.config.process_results) or not metrics
    if uncertain or not all(map(_is_contained, metrics)):
        raise AssetError(
            f"lm_eval:{name} runs models' code in a way of its own, outside the sandbox, and is refused: leave it out. "
            "Tasks that run it through the metric code_eval, like humaneval and mbpp, are run in the sandbox"
        )


def _is_contained(metric: Any) -> bool:
    """Tell whether a metric is the sandbox's, or a function of a module that fetched it; a task keeps its __call__."""
    while isinstance(metric, MethodWrapperType):
        metric = metric.__self__
    if isinstance(getattr(metric, "__self__", None), SandboxedCodeEval):
        return True
    return any(isinstance(value, SandboxedCodeEval) for value in getattr(metric, "__globals__", {}).values())


def _has_sandbox(module: Any) -> bool:
    return any(isinstance(value, SandboxedCodeEval) for value in vars(module).values())
