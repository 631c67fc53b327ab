"""FastChat's files (lm-sys/FastChat@0e6d3e4, ``fastchat/llm_judge``): answers, single ratings, pairwise games.

A pairwise row holds two games: in the first ``model_1`` is assistant A, in the second assistant B. Against a baseline,
FastChat makes ``model_1`` the model and ``model_2`` the baseline (``gen_judgment.make_match``), and so it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results.interchange.rows import Conversation, Game, Row, Target, Text

ANSWER, SINGLE, PAIR = "fastchat/model_answer", "fastchat/single", "fastchat/pair"
MEANINGS = {ANSWER: "answers", SINGLE: "single ratings", PAIR: "pairwise games"}

_NEEDED = {
    ANSWER: {"question_id", "model_id", "choices"},
    SINGLE: {"question_id", "model", "judge", "judgment", "score"},
    PAIR: {"question_id", "model_1", "model_2", "judge", "g1_judgment", "g2_judgment", "g1_winner", "g2_winner"},
}
_FOR_MODEL_1 = {"model_1": 1.0, "tie": 0.5, "model_2": 0.0}
_END = "\n[The End of Assistant{0} Answer]"
_START = "[The Start of Assistant{0} Answer]\n"


def schema(raw: dict[str, Any]) -> str | None:
    """Return which of FastChat's kinds of row this is, or None."""
    found = next((name for name, needed in _NEEDED.items() if needed <= raw.keys()), None)
    rated_pair = found == PAIR and "m1_score" in raw  # two ratings told apart by a margin: there is no game to read
    arena = found == ANSWER and any(isinstance(turn, dict) for turn in _told(raw))
    return None if rated_pair or arena else found


def read(raw: dict[str, Any]) -> Row:
    """Return the row read; LookupError, TypeError or ValueError where a value is not what its schema says."""
    return {ANSWER: _answer, SINGLE: _single, PAIR: _pair}[str(schema(raw))](raw)


def shown(prompt: str, turns: Sequence[str], *, turn: int, paired: bool) -> list[tuple[tuple[str, ...], ...]]:
    """Return the ways to read the answers out of a judge's prompt: A's turns, and B's where two were shown.

    ``turns`` are the question's. There is one way but for answers that quote the prompt's own marks, and none where
    the prompt is not FastChat's, or about another question.
    """
    if turn == 1:
        _, found, after = prompt.partition(f"]\n{turns[0]}\n\n[The Start of ")
        if not found:
            return []
        rest = "[The Start of " + after
        if not paired:
            return _between(rest, _START.format("'s"), _END.format("'s"))
        return _two(
            rest, _START.format(" A's"), _END.format(" A's") + "\n\n" + _START.format(" B's"), _END.format(" B's")
        )
    if turn != 2 or len(turns) != 2:
        return []
    if not paired:
        return _conversation(prompt, turns, "A")
    end = "\n\n<|The End of Assistant A's Conversation with User|>"
    middle = end + "\n\n\n<|The Start of Assistant B's Conversation with User|>"
    found_ways = []
    for cut in _positions(prompt, middle):
        first = _conversation(prompt[: cut + len(end)], turns, "A")
        second = _conversation(prompt[cut + len(end) :], turns, "B")
        found_ways += [a + b for a in first for b in second]
    return found_ways


def references(prompt: str, turns: Sequence[str], *, turn: int) -> tuple[str, ...]:
    """Return the reference answers that a judge's prompt shows, where FastChat's prompts show them; else nothing."""
    if turn == 1:
        _, found, after = prompt.partition(f"]\n{turns[0]}\n\n[The Start of Reference Answer]\n")
        text, end, _ = after.partition("\n[The End of Reference Answer]\n\n[The Start of Assistant")
        return (text,) if found and end else ()
    if turn != 2 or len(turns) != 2:
        return ()
    said = "\n\n### Reference answer:\n"
    _, found, after = prompt.partition(f"<|The Start of Reference Answer|>\n\n### User:\n{turns[0]}{said}")
    both, end, _ = after.partition("\n\n<|The End of Reference Answer|>")
    first, middle, second = both.partition(f"\n\n### User:\n{turns[1]}{said}")
    return (first, second) if found and end and middle else ()


def answer_row(*, question: str, model: str, turns: Sequence[str], key: str, time: float) -> dict[str, Any]:
    """Return a row of ``model_answer``."""
    return {
        "question_id": number(question),
        "answer_id": key[:22],
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": time,
    }


def single_row(
    *, question: str, model: str, judge: str, prompt_name: str, prompt: str, text: str, value: float | None,
    turn: int, time: float,
) -> dict[str, Any]:  # fmt: skip
    """Return a row of ``model_judgment`` with one rating; one that cannot be read is FastChat's -1."""
    score = -1 if value is None else int(value) if value == int(value) else value
    return {
        "question_id": number(question),
        "model": model,
        "judge": [judge, prompt_name],
        "user_prompt": prompt,
        "judgment": text,
        "score": score,
        "turn": turn,
        "tstamp": time,
    }


def pair_row(
    *, question: str, model: str, baseline: str, judge: str, prompt_name: str, prompts: tuple[str, str],
    texts: tuple[str, str], values: tuple[float | None, float | None], turn: int, time: float,
) -> dict[str, Any]:  # fmt: skip
    """Return a row of ``model_judgment`` with two games; ``values`` are the preferences for the model."""
    winners = {value: name for name, value in _FOR_MODEL_1.items()}
    first, second = ("error" if value is None else winners.get(value, "error") for value in values)
    return {
        "question_id": number(question),
        "model_1": model,
        "model_2": baseline,
        "g1_winner": first,
        "g2_winner": second,
        "judge": [judge, prompt_name],
        "g1_user_prompt": prompts[0],
        "g1_judgment": texts[0],
        "g2_user_prompt": prompts[1],
        "g2_judgment": texts[1],
        "turn": turn,
        "tstamp": time,
    }


def prompt_name(*, paired: bool, reference: bool, turn: int) -> str:
    """Return the name of the judge prompt that FastChat uses for such a question and turn."""
    stem = ("pair-math-v1" if reference else "pair-v2") if paired else ("single-math-v1" if reference else "single-v1")
    return stem + ("-multi-turn" if turn > 1 else "")


def target(row: Row, *, model: str) -> Target:
    """Return the path, below a benchmark's folder, of the file that FastChat keeps such a row in."""
    if row.schema == ANSWER:
        return answers_path(model)
    return judgments_path(row.games[0].judge, paired=row.schema == PAIR)


def answers_path(model: str) -> Target:
    """Return the path of a model's answers below a benchmark's folder."""
    return Target("model_answer/{}.jsonl", (model,))


def judgments_path(judge: str, *, paired: bool) -> Target:
    """Return the path of a judge's judgments below a benchmark's folder."""
    return Target(f"model_judgment/{{}}_{'pair' if paired else 'single'}.jsonl", (judge,))


def number(question: str) -> int | str:
    """Return a question's identifier as FastChat writes it."""
    return int(question) if question.isdecimal() else question


def _told(raw: dict[str, Any]) -> list[Any]:
    """Return the turns of a row of answers; nothing where there are none to find."""
    try:
        turns = raw["choices"][0]["turns"]
    except (LookupError, TypeError):
        return []
    return turns if isinstance(turns, list) else []


def _answer(raw: dict[str, Any]) -> Row:
    choices = raw["choices"]
    if not isinstance(choices, list) or (choices and not isinstance(choices[0]["turns"], list)):
        raise TypeError(f"need choices: [{{turns: [text, ...]}}], got {choices!r}")
    turns = tuple(Text(text, ("choices", 0, "turns", n)) for n, text in enumerate(_told(raw)))
    said = Conversation(str(raw["question_id"]), raw["model_id"], turns)
    return Row(ANSWER, raw, said.model, said.question, conversations=(said,))


def _judge(raw: dict[str, Any]) -> str:
    judge = raw["judge"]
    return str(judge if isinstance(judge, str) else judge[0])


def _turn(raw: dict[str, Any]) -> int:
    turn = raw.get("turn", 1)
    if isinstance(turn, float) and not turn.is_integer():
        raise ValueError(f"turn {turn!r} is no whole number")
    return int(turn)


def _prompt(raw: dict[str, Any], key: str) -> Text | None:
    return Text(raw[key], (key,)) if isinstance(raw.get(key), str) else None


def _single(raw: dict[str, Any]) -> Row:
    game = Game(
        question=str(raw["question_id"]),
        turn=_turn(raw),
        judge=_judge(raw),
        model=raw["model"],
        baseline=None,
        order="single",
        reply="rating",
        text=Text(raw["judgment"], ("judgment",)),
        said=None if raw["score"] in (-1, None) else float(raw["score"]),
        prompt=_prompt(raw, "user_prompt"),
    )
    return Row(SINGLE, raw, game.model, game.question, games=(game,))


def _pair(raw: dict[str, Any]) -> Row:
    games = tuple(
        Game(
            question=str(raw["question_id"]),
            turn=_turn(raw),
            judge=_judge(raw),
            model=raw["model_1"],
            baseline=raw["model_2"],
            order=order,
            reply="pair",
            text=Text(raw[f"{game}_judgment"], (f"{game}_judgment",)),
            said=_FOR_MODEL_1.get(raw[f"{game}_winner"]),
            prompt=_prompt(raw, f"{game}_user_prompt"),
        )
        for game, order in (("g1", "model_first"), ("g2", "baseline_first"))
    )
    return Row(PAIR, raw, raw["model_1"], str(raw["question_id"]), games=games)


def _positions(text: str, part: str) -> list[int]:
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found


def _between(text: str, start: str, end: str) -> list[tuple[tuple[str, ...], ...]]:
    at = text.find(start)
    if at < 0 or not text.endswith(end):
        return []
    return [((text[at + len(start) : len(text) - len(end)],),)]


def _two(text: str, start: str, middle: str, end: str) -> list[tuple[tuple[str, ...], ...]]:
    return [
        ((answer_a[0][0],), (text[cut + len(middle) : len(text) - len(end)],))
        for cut in _positions(text, middle)
        if text.endswith(end)
        for answer_a in _between(text[:cut] + end, start, end)
    ]


def _conversation(text: str, turns: Sequence[str], letter: str) -> list[tuple[tuple[str, ...], ...]]:
    said = f"\n\n### Assistant {letter}:\n"
    start = f"<|The Start of Assistant {letter}'s Conversation with User|>\n\n### User:\n{turns[0]}{said}"
    end = f"\n\n<|The End of Assistant {letter}'s Conversation with User|>"
    middle = f"\n\n### User:\n{turns[1]}{said}"
    at = text.find(start)
    if at < 0 or not text.endswith(end):
        return []
    both = text[at + len(start) : len(text) - len(end)]
    return [((both[:cut], both[cut + len(middle) :]),) for cut in _positions(both, middle)]
