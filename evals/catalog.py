"""The benchmarks that there are: one line each."""

from __future__ import annotations

import difflib
import importlib
from typing import cast

from evals.benchmark import Benchmark

BENCHMARKS = {
    "starter": "evals.starter",
}


class UnknownBenchmark(ValueError):
    """No benchmark has this name; the message names the nearest."""


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark called ``name`` (``name@version`` asks for that version); raises UnknownBenchmark."""
    plain, _, version = name.partition("@")
    if plain not in BENCHMARKS:
        near = difflib.get_close_matches(plain, BENCHMARKS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownBenchmark(f"no benchmark {plain!r}; there are {', '.join(BENCHMARKS)}.{hint}")
    found = cast(Benchmark, importlib.import_module(BENCHMARKS[plain]).BENCHMARK)
    if version and version != found.version:
        raise UnknownBenchmark(f"benchmark {plain!r} has version {found.version!r} here, not {version!r}")
    return found
