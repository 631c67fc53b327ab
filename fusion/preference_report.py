"""A report on the preferences that were built: sizes, who won, rewards, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from fusion.alignment_markdown import code
from fusion.preference_records import Built, Pair, Quadruple, Response
from fusion.preference_split import PREFERENCE, SFT, set_name

_BINS = 20
_COUNTED = ("sft", "chosen", "rejected", "source_chosen")
_BAR = 30  # blocks of the longest bar


def report(built: Built) -> dict[str, Any]:
    """Return counts, shares, histograms and lengths as values that JSON can hold.

    ``sources`` have the share of SFT examples they won (of quadruples too, where y_ws is theirs), and how often they
    are chosen and rejected; ``set_sources`` count the same for each set. Histograms have ``edges`` and, between them,
    ``counts``; the last edge is included. Lengths are in characters. An empty list has None for mean and median.
    """
    parts = _parts(built)
    gaps = {
        "kept": [example.gap for example in _compared(built)],
        "dropped": [dropped.gap for dropped in built.dropped if dropped.gap is not None],
    }
    rewards = {"all": built.responses, **parts}
    return {
        "params": asdict(built.params),
        "prompts": len(built.prompts),
        "responses": len(built.responses),
        "sft": len(built.sft),
        "pairs": len(built.pairs),
        "quadruples": len(built.quadruples),
        "sets": _sets(built),
        "sources": _sources(built, parts),
        "set_sources": _set_sources(built, parts),
        "dropped": {
            what: dict(sorted(Counter(d.reason for d in built.dropped if d.what == what).items()))
            for what in ("prompt", "pair", "response")
        },
        "rewards": _histogram({name: [r.reward for r in found] for name, found in rewards.items()}),
        "gaps": _histogram(gaps),
        "lengths": {name: _lengths([len(r.text) for r in found]) for name, found in parts.items()},
        "chosen_longer": _mean(
            [len(chosen.text) > len(bad.text) for chosen, bad in zip(parts["chosen"], parts["rejected"], strict=True)]
        ),
    }


def as_markdown(report: Mapping[str, Any], *, of: str = "") -> str:
    """Return the report as GitHub's Markdown; ``of`` is what is fused, for the heading. Names stand in code spans."""
    kept = report["quadruples"], "quadruples"
    if report["params"]["target"] is None:
        kept = report["pairs"], "preference pairs"
    lines = [
        f"# Preference data of {code(of)}" if of else "# Preference data",
        "",
        f"{report['prompts']} prompts with {report['responses']} responses make {report['sft']} SFT examples and "
        f"{kept[0]} {kept[1]}.",
        "",
        *_table(
            ("set", "prompts", "for SFT", "SFT examples", "for preference", "with preference", kept[1]),
            [[code(name, table=True), *(str(n) for n in row.values())] for name, row in report["sets"].items()],
        ),
        "",
        *_table(
            ("source", "responses", "mean reward", "best for SFT", "share", "chosen", "rejected", "y_ws"),
            [[code(name, table=True), *_told(row)] for name, row in report["sources"].items()],
        ),
    ]
    by_set = [
        [code(name, table=True), code(source, table=True), *(str(row[key]) for key in _COUNTED)]
        for name, sources in report["set_sources"].items()
        for source, row in sources.items()
    ]
    lines += ["", *_table(("set", "source", "best for SFT", "chosen", "rejected", "y_ws"), by_set)]
    dropped = [(what, why, str(n)) for what, whys in report["dropped"].items() for why, n in whys.items()]
    if dropped:
        lines += ["", "## Dropped", "", *_table(("what", "why", "number"), dropped)]
    lengths = [[name.replace("_", " "), *map(_number, row.values())] for name, row in report["lengths"].items()]
    lines += ["", "## Lengths, in characters", "", *_table(("responses", "number", "mean", "median"), lengths)]
    if report["chosen_longer"] is not None:
        lines += ["", f"The chosen response is the longer one in {report['chosen_longer']:.1%} of the pairs."]
    return "\n".join([*lines, *_drawn("Rewards", report["rewards"]), *_drawn("Gaps", report["gaps"])]) + "\n"


def _compared(built: Built) -> list[Pair | Quadruple]:
    return [*built.pairs, *built.quadruples]


def _parts(built: Built) -> dict[str, list[Response]]:
    """Return the responses by what they are for; those of one pair at the same place."""
    ends = [(p.chosen, p.rejected) for p in built.pairs] + [(q.target_best, q.rejected) for q in built.quadruples]
    parts = {
        "sft": [example.best for example in built.sft],
        "chosen": [chosen for chosen, _ in ends],
        "rejected": [rejected for _, rejected in ends],
    }
    return parts | ({"source_chosen": [q.source_best for q in built.quadruples]} if built.quadruples else {})


def _sets(built: Built) -> dict[str, dict[str, int]]:
    """Return the sizes of each set; of the kept, prompts and with several pairs a prompt, examples."""
    names = {prompt.id: set_name(prompt) for prompt in built.prompts}
    sides = Counter((names[prompt], side) for prompt, side in built.sides.items())
    sft = Counter(names[example.prompt.id] for example in built.sft)
    examples = Counter(names[example.prompt.id] for example in _compared(built))
    prompts = Counter(names[prompt] for prompt in {example.prompt.id for example in _compared(built)})
    return {
        name: {
            "prompts": sides[name, SFT] + sides[name, PREFERENCE],
            "sft_prompts": sides[name, SFT],
            "sft": sft[name],
            "preference_prompts": sides[name, PREFERENCE],
            "preference_kept": prompts[name],
            "preference": examples[name],
        }
        for name in sorted(set(names.values()))
    }


def _set_sources(built: Built, parts: Mapping[str, Sequence[Response]]) -> dict[str, dict[str, dict[str, int]]]:
    """Return set → source → how often it was taken for what."""
    names = {prompt.id: set_name(prompt) for prompt in built.prompts}
    counts = Counter((names[r.prompt], r.source, part) for part, found in parts.items() for r in found)
    told: dict[str, dict[str, dict[str, int]]] = {}
    for name, source in sorted({(name, source) for name, source, _ in counts}):
        told.setdefault(name, {})[source] = {part: counts[name, source, part] for part in _COUNTED}
    return told


def _sources(built: Built, parts: Mapping[str, Sequence[Response]]) -> dict[str, dict[str, Any]]:
    rewards: dict[str, list[float]] = {}
    for response in built.responses:
        rewards.setdefault(response.source, []).append(response.reward)
    counts = {part: Counter(response.source for response in found) for part, found in parts.items()}
    won = len(built.sft)
    return {
        name: {
            "responses": len(rewards[name]),
            "mean_reward": fmean(rewards[name]),
            "sft": counts["sft"][name],
            "sft_share": counts["sft"][name] / won if won else None,
            "chosen": counts["chosen"][name],
            "rejected": counts["rejected"][name],
            "source_chosen": counts["source_chosen"][name] if "source_chosen" in counts else 0,
        }
        for name in sorted(rewards)
    }


def _histogram(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return one histogram of several lists, in bins of equal width from the lowest to the highest of all."""
    everything = [value for found in values.values() for value in found]
    if not everything:
        return {"edges": [], "counts": {name: [] for name in values}}
    low, high = min(everything), max(everything)
    width = (high - low) / _BINS
    bins = _BINS if width > 0 else 1
    counts = {name: [0] * bins for name in values}
    for name, found in values.items():
        for value in found:
            counts[name][min(bins - 1, int((value - low) / width)) if width > 0 else 0] += 1
    return {"edges": [*(low + width * number for number in range(bins)), high], "counts": counts}


def _lengths(lengths: Sequence[int]) -> dict[str, Any]:
    return {"number": len(lengths), "mean": _mean(lengths), "median": median(lengths) if lengths else None}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _told(row: Mapping[str, Any]) -> list[str]:
    share = "–" if row["sft_share"] is None else f"{row['sft_share']:.1%}"
    return [
        str(row["responses"]),
        _number(row["mean_reward"]),
        str(row["sft"]),
        share,
        *(str(row[key]) for key in ("chosen", "rejected", "source_chosen")),
    ]


def _drawn(title: str, histogram: Mapping[str, Any]) -> list[str]:
    """Return a histogram's table, with a bar for what is in the first list."""
    edges, counts = histogram["edges"], histogram["counts"]
    if not edges:
        return []
    first = next(iter(counts.values()))
    rows = [
        [f"{edges[n]:.4g} to {edges[n + 1]:.4g}", *(str(found[n]) for found in counts.values()), _bar(first, n)]
        for n in range(len(edges) - 1)
    ]
    head = ["from, to", *(name.replace("_", " ") for name in counts), ""]
    return ["", f"## {title}", "", *_table(head, rows)]


def _bar(counts: Sequence[int], place: int) -> str:
    return "█" * -(-_BAR * counts[place] // max(1, *counts)) if counts else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
