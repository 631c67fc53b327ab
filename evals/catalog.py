"""The benchmarks that there are: one line each."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, cast

from evals.benchmark import Benchmark, Locate

BENCHMARKS = {
    "mt_bench": "evals.mt_bench",
    "alpaca_eval": "evals.alpaca_eval",
    "arena_hard": "evals.arena_hard",
    "starter": "evals.starter",
}


class UnknownBenchmark(ValueError):
    """No benchmark has this name, version or option; the message names what there is."""


def find_benchmark(name: str, *, asset: Locate, options: Mapping[str, Any] | None = None) -> Benchmark:
    """Return the benchmark called ``name`` (``name@version`` asks for that version); raises UnknownBenchmark.

    ``asset`` finds upstream files, when they are first needed; ``options`` are the benchmark's own.
    """
    plain, _, version = name.partition("@")
    if plain not in BENCHMARKS:
        raise UnknownBenchmark(f"no benchmark {plain!r}; there are {', '.join(BENCHMARKS)}.{_nearest(plain)}")
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
    try:
        return find_benchmark(f"{name}@{version}", asset=asset)
    except UnknownBenchmark:
        return None


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
