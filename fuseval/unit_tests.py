"""Models' programs with their unit tests, run in the sandbox and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

CODE_SECONDS = (
    10  # of CPU, and of wall time, for one program with its tests; evaluate's code_eval allows 3 of wall time
)


def run_tests(programs: Sequence[str]) -> list[bool]:
    """Return which programs run to their end in the sandbox; raises FusionError where nothing can be isolated."""
    from fusion.grading import untold_ends
    from fusion.sandbox import Limits, run_all

    limits = Limits(cpu_seconds=CODE_SECONDS, wall_seconds=2.0 * CODE_SECONDS)
    return [why == "" for why in untold_ends(programs, lambda texts: run_all(texts, limits=limits))]
