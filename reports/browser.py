"""What the page's answer browser shows, packed: a small index of all questions, and their texts in compressed parts.

The page reads the index when it opens and a part when one of its questions is opened. A part is JSON, gzipped, in
base64, so nothing in it can be read as markup. What is too much for one page lies in files beside it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.audit import Flagged
from results.detail_queries import ItemRow
from results.queries import AnswerRow, CheckRow, JudgmentRow

PART = 400_000  # characters of JSON in one part: some questions of ten models, unpacked in a few milliseconds
INLINE = 12_000_000  # characters of base64 that a page may hold; with the index and the rest it stays under 15 MB
EXCERPT = 140  # characters of a prompt in the index
Key = tuple[str, str, str]  # benchmark, version, question


@dataclass(frozen=True, slots=True)
class Material:
    """Rows of the ledger that the browser shows; ``models`` are names in the order to show them in."""

    answers: Sequence[AnswerRow]
    judgments: Sequence[JudgmentRow]
    checks: Sequence[CheckRow]
    items: Sequence[ItemRow]
    models: Sequence[str]
    flagged: Sequence[Flagged]


@dataclass(frozen=True, slots=True)
class Packed:
    """The ``index`` and the parts by name, all base64 of gzipped JSON; those ``beside`` do not fit into the page."""

    index: str
    inline: Mapping[str, str]
    beside: Mapping[str, str]


def pack(material: Material, *, inline: int = INLINE) -> Packed:
    """Pack what the browser shows; at most ``inline`` characters of it stay in the page, answers before replies."""
    questions = _questions(material.answers)
    texts, replies = _texts(material, questions), _replies(material, questions)
    places = {"answers": _parts(texts), "replies": _parts(replies)}
    packed: dict[str, dict[int, str]] = {
        kind: {number: _zipped([chosen[key] for key in keys]) for number, keys in enumerate(places[kind])}
        for kind, chosen in (("answers", texts), ("replies", replies))
    }
    names = {kind: [_name(kind, text) for text in parts.values()] for kind, parts in packed.items()}
    index = _zipped({**_index(material, questions, places), "parts": names})
    kept: dict[str, str] = {}
    beside: dict[str, str] = {}
    room = inline - len(index)
    for kind in ("answers", "replies"):
        for name, text in zip(names[kind], packed[kind].values(), strict=True):
            (kept if len(text) <= room else beside)[name] = text
            room -= len(text) if name in kept else 0
    return Packed(index, kept, beside)


def _questions(answers: Iterable[AnswerRow]) -> list[Key]:
    return list(dict.fromkeys((row.benchmark, row.version, row.question) for row in answers))


def _texts(material: Material, questions: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """Return, by question, its turns, every answer and what the checks said of it."""
    flags = _flags(material.flagged)
    found: dict[Key, dict[str, Any]] = {key: {"turns": {}, "answers": [], "checks": []} for key in questions}
    names = ("turn", "text", "finish_reason", "output_tokens", "seconds", "temperature", "seed")
    for row in material.answers:
        question = found[row.benchmark, row.version, row.question]
        turn = {"turn": row.turn, "prompt": row.prompt, "reference": row.reference, "check": row.check}
        question["turns"].setdefault(row.turn, turn)
        values = {name: getattr(row, name) for name in names}
        question["answers"].append({"model": row.model_name, **values, "flags": flags.get(row.key, [])})
    for check in material.checks:
        if question := found.get((check.benchmark, check.version, check.question), {}):
            question["checks"].append({"model": check.model_name, "turn": check.turn, "value": check.value})
    for question in found.values():
        question["turns"] = [question["turns"][turn] for turn in sorted(question["turns"])]
    return found


def _replies(material: Material, questions: Sequence[Key]) -> dict[Key, list[dict[str, Any]]]:
    """Return, by question, what the judges replied, with the likeliest first tokens where they are known."""
    found: dict[Key, list[dict[str, Any]]] = {key: [] for key in questions}
    for row in material.judgments:
        if (replies := found.get((row.benchmark, row.version, row.question))) is not None:
            shown = {"model": row.model_name, "judge": row.judge_name, "baseline": row.baseline_name}
            likely = [pair for pair in row.top_logprobs if math.isfinite(pair[1])]  # JSON has no infinity
            said = {name: getattr(row, name) for name in ("turn", "order", "value", "reply")}
            replies.append({**shown, **said, "top_logprobs": likely})
    return {key: replies for key, replies in found.items() if replies}


def _index(
    material: Material, questions: Sequence[Key], places: Mapping[str, Sequence[Sequence[Key]]]
) -> dict[str, Any]:
    answering = dict.fromkeys(row.model_name for row in material.answers)
    models = list(dict.fromkeys([*(name for name in material.models if name in answering), *answering]))
    number = {name: place for place, name in enumerate(models)}
    sets = list(dict.fromkeys(key[:2] for key in questions))
    listed: dict[Key, dict[str, Any]] = {}
    flags = _flags(material.flagged)
    for row in material.answers:
        key = (row.benchmark, row.version, row.question)
        new = {"set": sets.index(key[:2]), "id": row.question, "category": row.category}
        entry = listed.setdefault(key, {**new, "prompt": _excerpt(row.prompt), "lengths": {}})
        lengths = entry["lengths"]
        lengths[number[row.model_name]] = lengths.get(number[row.model_name], 0) + len(row.text)
        if row.key in flags:
            entry.setdefault("attacks", []).append(number[row.model_name])
    for name, marked in _disagreements(material.judgments).items():
        for key, about in marked.items():
            if entry := listed.get(key, {}):
                entry[name] = sorted(number[model] for model in about if model in number)
    for kind, parts in places.items():
        for place, keys in enumerate(parts):
            for at, key in enumerate(keys):
                listed[key][kind] = [place, at]
    return {
        "models": models,
        "sets": [f"{benchmark} {version}" for benchmark, version in sets],
        "questions": list(listed.values()),
        "scores": _scores(material.items, sets=sets, listed=listed, number=number),
    }


def _scores(
    items: Iterable[ItemRow],
    *,
    sets: Sequence[tuple[str, str]],
    listed: Mapping[Key, Any],
    number: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Return each score's values by model, question by question as the index has them."""
    at = {key: place for place, key in enumerate(listed)}
    grouped: dict[tuple[str, str, str, str, str | None], dict[int, dict[int, float | None]]] = {}
    for row in items:
        place = at.get((row.benchmark, row.version, row.question))
        if place is not None and row.model_name in number:
            score = (row.benchmark, row.version, row.metric, row.judge_name, row.baseline_name)
            values = grouped.setdefault(score, {}).setdefault(number[row.model_name], {})
            values[place] = None if row.value is None or math.isnan(row.value) else round(row.value, 2)
    found = []
    for (benchmark, version, metric, judge, baseline), by_model in grouped.items():
        about = {"set": sets.index((benchmark, version)), "metric": metric, "judge": judge, "baseline": baseline}
        found.append({**about, "values": by_model})
    return found


def _disagreements(judgments: Iterable[JudgmentRow]) -> dict[str, dict[Key, set[str]]]:
    """Return, by question, the models on which one judge's two orders disagree, and on which two judges do."""
    sides: dict[tuple[Key, str, str | None, int], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in judgments:
        if row.value is not None and row.order != "single":
            about = ((row.benchmark, row.version, row.question), row.model_name, row.baseline_name, row.turn)
            sides[about][row.judge_name].add((row.value > 0.5) - (row.value < 0.5))
    found: dict[str, dict[Key, set[str]]] = {"orders": defaultdict(set), "judges": defaultdict(set)}
    for (key, model, _, _), by_judge in sides.items():
        if any(len(said) > 1 for said in by_judge.values()):
            found["orders"][key].add(model)
        sure = {next(iter(said)) for said in by_judge.values() if len(said) == 1}
        if len(sure) > 1:
            found["judges"][key].add(model)
    return found


def _flags(flagged: Iterable[Flagged]) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    for model in flagged:
        for each in model.found:
            for key in each.keys:
                flags.setdefault(key, []).append(each.detector)
    return flags


def _parts(chosen: Mapping[Key, Any]) -> list[list[Key]]:
    """Return which questions share a part: neighbours, until it is full."""
    parts: list[list[Key]] = []
    filled = PART
    for key, value in chosen.items():
        size = len(_json(value))
        if filled + size > PART:
            parts.append([])
            filled = 0
        parts[-1].append(key)
        filled += size
    return parts


def _excerpt(prompt: str) -> str:
    return " ".join(prompt[: 4 * EXCERPT].split())[:EXCERPT]


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()  # of lone surrogates, which no page can hold


def _zipped(value: object) -> str:
    return base64.b64encode(gzip.compress(_json(value).encode(), 9, mtime=0)).decode()


def _name(kind: str, text: str) -> str:
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
