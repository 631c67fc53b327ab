"""Arena-Hard's files (lmarena/arena-hard-auto): answers and judgments of both versions, and battles.

Up to @3071ef9 rows hold ``question_id``, ``choices`` and ``user_prompt``; from @196f6b8 on ``uid``, ``messages`` and
``prompt``. A judgment holds two games: in the first the baseline is assistant A, in the second the model is.
A battles file (``show_result.py``@3071ef9) says only who won: a decisive verdict (``>>``) stands there three times, a
slight one or a tie once, the first game before the second; the verdicts are read back from that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from results.interchange.rows import Conversation, Game, Place, Row, Target, Text

ANSWER, ANSWER_OLD = "arena_hard/answer", "arena_hard/answer_old"
JUDGMENT, JUDGMENT_OLD = "arena_hard/judgment", "arena_hard/judgment_old"
BATTLES = "arena_hard/battles"
MEANINGS = {
    ANSWER: "answers",
    ANSWER_OLD: "answers (old schema)",
    JUDGMENT: "judgments",
    JUDGMENT_OLD: "judgments (old schema)",
    BATTLES: "battles",
}
WINNERS = ("model_a", "model_b", "tie", "tie (bothbad)")
UNNAMED_JUDGE = "unnamed judge"  # battles do not say who judged

_NEEDED = {
    ANSWER: {"uid", "model", "messages"},
    ANSWER_OLD: {"question_id", "model_id", "choices"},
    JUDGMENT: {"uid", "model", "judge", "games"},
    JUDGMENT_OLD: {"question_id", "model", "judge", "games"},
    BATTLES: {"question_id", "model_a", "model_b", "winner"},
}
_FOR_A = {"A>>B": 1.0, "A>B": 0.75, "A=B": 0.5, "B>A": 0.25, "B>>A": 0.0}
_TURNED_ROUND = {"B<<A": 1.0, "B<A": 0.75, "B=A": 0.5, "A<B": 0.25, "A<<B": 0.0}
_ORDERS = ("baseline_first", "model_first")
_OLD = "old_schema/"
_WEIGHT = 3  # how often a decisive verdict stands in a battles file
_MIDDLE = "\n<|The End of Assistant A's Answer|>\n\n<|The Start of Assistant B's Answer|>\n"
_END = "\n<|The End of Assistant B's Answer|>"


def schema(raw: dict[str, Any]) -> str | None:
    """Return which of Arena-Hard's kinds of row this is, or None."""
    found = next((name for name, needed in _NEEDED.items() if needed <= raw.keys()), None)
    fought = found != BATTLES or all(isinstance(raw[key], str) for key in ("model_a", "model_b", "winner"))
    return found if fought else None


def read(raw: dict[str, Any]) -> Row:
    """Return the row read; LookupError, TypeError or ValueError where a value is not what its schema says.

    A row of battles says nothing by itself, see :func:`battles`: here it is an error.
    """
    return _READERS[str(schema(raw))](raw)


def battles(raws: Sequence[dict[str, Any]]) -> list[Row]:
    """Return the rows of a battles file; the first of those that one verdict was written as holds the game.

    Each row's winner must be one of WINNERS.
    """
    fought: dict[tuple[str, str, str], list[int]] = {}
    for n, raw in enumerate(raws):
        fought.setdefault((str(raw["question_id"]), raw["model_a"], raw["model_b"]), []).append(n)
    rows = [Row(BATTLES, raw, raw["model_b"], str(raw["question_id"])) for raw in raws]
    for numbers in fought.values():
        at = 0
        for n, weight in enumerate(_weights([raws[number]["winner"] for number in numbers])):
            row = rows[numbers[at]]
            rows[numbers[at]] = replace(row, games=(_battle(row.raw, _ORDERS[n % 2], weight),))
            at += weight
    return rows


def shown(prompt: str, turns: Sequence[str]) -> list[tuple[tuple[str, ...], ...]]:
    """Return the ways to read A's and B's answer out of a judge's prompt; see ``fastchat.shown``."""
    start = f"<|User Prompt|>\n{turns[0]}\n\n<|The Start of Assistant A's Answer|>\n"
    if not prompt.startswith(start) or not prompt.endswith(_END):
        return []
    both = prompt[len(start) : len(prompt) - len(_END)]
    found: list[tuple[tuple[str, ...], ...]] = []
    at = both.find(_MIDDLE)
    while at >= 0:
        found.append(((both[:at],), (both[at + len(_MIDDLE) :],)))
        at = both.find(_MIDDLE, at + 1)
    return found


def label(value: float | None, *, order: str) -> str | None:
    """Return the label whose preference for the model is ``value``; None where there is none."""
    if value is None:
        return None
    for_a = value if order == "model_first" else 1 - value
    return next((name for name, preference in _FOR_A.items() if preference == for_a), None)


def answer_row(*, question: str, prompt: str, model: str, text: str, key: str, time: float) -> dict[str, Any]:
    """Return a row of ``model_answer``, as version 2.0 of the project reads it."""
    return {
        "uid": question,
        "ans_id": key[:22],
        "model": model,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": text}}],
        "tstamp": time,
    }


def judgment_row(
    *, question: str, category: str, model: str, baseline: str, judge: str, games: Sequence[dict[str, Any] | None]
) -> dict[str, Any]:
    """Return a row of ``model_judgment``, as version 2.0 of the project reads it; see :func:`game`."""
    return {
        "uid": question,
        "category": category,
        "judge": judge,
        "model": model,
        "baseline": baseline,
        "games": list(games),
    }


def game(*, score: str | None, text: str, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Return one game of a row of ``model_judgment``."""
    return {"score": score, "judgment": {"answer": text}, "prompt": list(messages)}


def target(row: Row, *, model: str) -> Target:
    """Return the path, below a version's folder, of the file that Arena-Hard keeps such a row in."""
    if row.schema == BATTLES:
        return Target("arena_hard_battles.jsonl")
    old = row.schema in (ANSWER_OLD, JUDGMENT_OLD)
    if row.schema in (ANSWER, ANSWER_OLD):
        return answers_path(model, old=old)
    return judgments_path(model, str(row.raw["judge"]), old=old)


def answers_path(model: str, *, old: bool = False) -> Target:
    """Return the path of one model's answers, below a version's folder."""
    return Target(f"{_OLD if old else ''}model_answer/{{}}.jsonl", (model,))


def judgments_path(model: str, judge: str, *, old: bool = False) -> Target:
    """Return the path of one model's judgments by one judge, below a version's folder."""
    return Target(f"{_OLD if old else ''}model_judgment/{{}}/{{}}.jsonl", (judge, model))


def _answer(raw: dict[str, Any]) -> Row:
    turns: list[Text] = []
    for n, message in enumerate(raw["messages"]):
        if message["role"] == "assistant":
            turns.append(_content(message["content"], ("messages", n, "content")))
    said = Conversation(str(raw["uid"]), raw["model"], tuple(turns))
    return Row(ANSWER, raw, said.model, said.question, conversations=(said,))


def _answer_old(raw: dict[str, Any]) -> Row:
    turns = tuple(
        Text(turn, ("choices", 0, "turns", n))
        if isinstance(turn, str)
        else Text(turn["content"], ("choices", 0, "turns", n, "content"))
        for n, turn in enumerate(raw["choices"][0]["turns"])
    )
    said = Conversation(str(raw["question_id"]), raw["model_id"], turns)
    return Row(ANSWER_OLD, raw, said.model, said.question, conversations=(said,))


def _judgment(raw: dict[str, Any]) -> Row:
    old = "uid" not in raw
    games = [
        _game(raw, n, order, reply="five_verdicts" if old else "five_verdicts_last")
        for n, order in enumerate(_ORDERS)
        if n < len(raw["games"]) and raw["games"][n]
    ]
    name = JUDGMENT_OLD if old else JUDGMENT
    return Row(
        name,
        raw,
        raw["model"],
        str(raw["question_id"] if old else raw["uid"]),
        games=tuple(games),
        unread=len(_ORDERS) - len(games),
    )


def _game(raw: dict[str, Any], number: int, order: str, *, reply: str) -> Game:
    played: dict[str, Any] = raw["games"][number]
    here: Place = ("games", number)
    prompt, system = None, None
    if isinstance(played.get("user_prompt"), str):
        prompt = Text(played["user_prompt"], (*here, "user_prompt"))
    elif isinstance(played.get("prompt"), list):
        for n, message in enumerate(played["prompt"]):
            if isinstance(message.get("content"), str) and message.get("role") in ("system", "user"):
                found = Text(message["content"], (*here, "prompt", n, "content"))
                prompt, system = (found, system) if message["role"] == "user" else (prompt, found)
    for_a = (_FOR_A | _TURNED_ROUND).get(played.get("score") or "")
    said = None if for_a is None else for_a if order == "model_first" else 1 - for_a
    return Game(
        question=str(raw["uid"] if "uid" in raw else raw["question_id"]),
        turn=1,
        judge=str(raw["judge"]),
        model=raw["model"],
        baseline=raw.get("baseline"),
        order=order,
        reply=reply,
        text=_content(played.get("judgment") or "", (*here, "judgment")),
        said=said,
        prompt=prompt,
        system=system,
    )


def _no_battle(raw: dict[str, Any]) -> Row:
    raise ValueError(f"winner {raw['winner']!r} is none of {', '.join(WINNERS)}")


def _content(value: Any, place: Place) -> Text:
    if isinstance(value, dict):
        return Text(value["answer"] or "", (*place, "answer") if value["answer"] is not None else None)
    return Text(value, place if value else None)


_READERS: dict[str, Callable[[dict[str, Any]], Row]] = {
    ANSWER: _answer,
    ANSWER_OLD: _answer_old,
    JUDGMENT: _judgment,
    JUDGMENT_OLD: _judgment,
    BATTLES: _no_battle,
}


def _weights(winners: Sequence[str]) -> list[int]:
    """Return how many rows each verdict stands for: of two verdicts where that can be, else as few as can be."""
    for first in (1, _WEIGHT):
        rest = len(winners) - first
        if rest in (1, _WEIGHT) and _one(winners[:first]) and _one(winners[first:]):
            return [first, rest]
    found: list[int] = []
    while sum(found) < len(winners):
        left = winners[sum(found) :]
        found.append(_WEIGHT if len(left) >= _WEIGHT and _one(left[:_WEIGHT]) else 1)
    return found


def _one(winners: Sequence[str]) -> bool:
    """Tell whether these can be one verdict's rows; a tie is never decisive."""
    return len(winners) == 1 or (len(set(winners)) == 1 and winners[0].startswith("model_"))


def _battle(raw: dict[str, Any], order: str, weight: int) -> Game:
    winner = raw["winner"]
    if not winner.startswith("model_"):
        said = 0.5
    else:
        for_a = (1.0 if weight == _WEIGHT else 0.75) if winner == "model_a" else (0.0 if weight == _WEIGHT else 0.25)
        said = 1 - for_a  # model_a is the baseline, whichever answer was shown first
    return Game(
        question=str(raw["question_id"]),
        turn=1,
        judge=str(raw.get("judge") or UNNAMED_JUDGE),
        model=raw["model_b"],
        baseline=raw["model_a"],
        order=order,
        reply="five_verdicts",
        text=Text(f"[[{label(said, order=order)}]]"),
        said=said,
    )
