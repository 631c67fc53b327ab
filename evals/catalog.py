"""The benchmarks that there are: one line each."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, cast

from evals.benchmark import Benchmark, Locate
from evals.lm_code import RunTests
from evals.lm_harness import load_task, stored_task
from evals.lm_options import PREFIX

BENCHMARKS = {
    "mt_bench": "evals.mt_bench",
    "alpaca_eval": "evals.alpaca_eval",
    "arena_hard": "evals.arena_hard",
    "starter": "evals.starter",
}


class UnknownBenchmark(ValueError):
    """No benchmark has this name, version or option; the message names what there is."""


def find_benchmark(
    name: str, *, asset: Locate, options: Mapping[str, Any] | None = None, run_tests: RunTests | None = None
) -> Benchmark:
    """Return the benchmark called ``name`` (``name@version`` asks for that version); raises UnknownBenchmark.

    ``asset`` finds upstream files, when they are first needed; ``options`` are the benchmark's own; ``run_tests`` runs
    programs that models wrote.
    """
    plain, _, version = name.partition("@")
    if plain.startswith(PREFIX):
        try:
            return load_task(plain.removeprefix(PREFIX), version=version or None, options=options, run_tests=run_tests)
        except ValueError as error:
            raise UnknownBenchmark(str(error)) from None
    if plain not in BENCHMARKS:
        there = f"{', '.join(BENCHMARKS)}, and {PREFIX}TASK"
        raise UnknownBenchmark(f"no benchmark {plain!r}; there are {there}.{_nearest(plain)}")
    load = importlib.import_module(BENCHMARKS[plain]).load
    known = [option for option in inspect.signature(load).parameters if option not in ("asset", "_asset", "version")]
    for option in options or {}:
        if option not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise UnknownBenchmark(f"benchmark {plain!r} has no option {option!r}; {there}")
    try:
        return cast(Benchmark, load(asset, version=version or None, **(options or {})))
    except ValueError as error:
        raise UnknownBenchmark(str(error)) from None


def stored_benchmark(name: str, version: str, *, asset: Locate) -> Benchmark | None:
    """Return the benchmark that a ledger calls ``name`` and ``version``; None where this fuseval has no such."""
    if name.startswith(PREFIX):
        return stored_task(name, version)
    try:
        return find_benchmark(f"{name}@{version}", asset=asset)
    except UnknownBenchmark:
        return None


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
