"""The mark of models whose answers look like attacks on their judge, and the footnotes that say what it means.

A score's flags say it: ``attack:`` and the detector's name (see ``answer_flags`` in the ledger).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from results.queries import LeaderboardRow

MARK = "†"
ATTACK = "attack:"


def detectors(flags: Sequence[str]) -> list[str]:
    """Return the detectors that the flags of a score name."""
    return [flag.removeprefix(ATTACK) for flag in flags if flag.startswith(ATTACK)]


def marked_name(name: str, marked: Collection[str]) -> str:
    """Return the name, with the mark behind it where it is among the ``marked``."""
    return f"{name} {MARK}" if name in marked else name


def marked_models(rows: Sequence[LeaderboardRow]) -> dict[tuple[str, str], set[str]]:
    """Return, by benchmark and version, the names of the models that any of their scores there flags."""
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        names = found.setdefault((row.benchmark, row.version), set())
        if detectors(row.flags):
            names.add(row.name)
    return found


def footnotes(rows: Sequence[LeaderboardRow]) -> list[str]:
    """Return what the marks in a leaderboard mean, a sentence for each model and benchmark; of no mark, nothing."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        for detector in detectors(row.flags):
            found.setdefault((row.name, row.benchmark, row.version), {})[detector] = None
    return [
        f"{MARK} {name}: answers to {benchmark} {version} look like attacks on the judge "
        f"({', '.join(sorted(names)).replace('_', ' ')})."
        for (name, benchmark, version), names in sorted(found.items())
    ]
