"""Models' programs with their unit tests, run in the sandbox and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

CODE_SECONDS = (
    10  # of CPU, and of wall time, for one program with its tests; evaluate's code_eval allows 3 of wall time
)


def run_tests(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Return for which (code, tests) the tests pass in the sandbox; FusionError where nothing can be isolated."""
    from fusion.sandbox import Limits, judge_all

    limits = Limits(cpu_seconds=CODE_SECONDS, wall_seconds=2.0 * CODE_SECONDS)
    return [outcome.status == "passed" for outcome in judge_all(pairs, limits=limits)]
