"""AlpacaEval's files (tatsu-lab/alpaca_eval@cd543a1): model outputs and annotations.

A row names its question by the instruction alone. Of an annotation, ``output_1`` is the baseline's output and
``output_2`` the model's; ``preference`` goes from 1 (the first is better) to 2. What the judge was shown first is
not stored: it follows from the instruction (``processors.RandomSwitchTwoColumnsProcessor`` with its default seed).
"""

from __future__ import annotations

import math
import random
from typing import Any

from results.interchange.rows import Conversation, Game, Place, Row, Target, Text

OUTPUT, ANNOTATION = "alpaca_eval/outputs", "alpaca_eval/annotations"
MEANINGS = {OUTPUT: "outputs", ANNOTATION: "annotations"}

_NEEDED = {
    ANNOTATION: {"instruction", "output_1", "output_2", "preference"},
    OUTPUT: {"instruction", "output"},
}
_ROUNDED = 1e-6  # stored preferences are rounded to 10 decimals


def schema(raw: dict[str, Any]) -> str | None:
    """Return which of AlpacaEval's kinds of row this is, or None."""
    return next((name for name, needed in _NEEDED.items() if needed <= raw.keys()), None)


def read(raw: dict[str, Any]) -> Row:
    """Return the row read; LookupError, TypeError or ValueError where a value is not what its schema says."""
    return _annotation(raw) if schema(raw) == ANNOTATION else _output(raw)


def switched(instruction: str) -> bool:
    """Tell whether alpaca_eval shows the judge ``output_2`` first."""
    seeded = random.Random(f"is_switched_outputs{instruction}0")  # noqa: S311 (the published coin)
    return seeded.choices([False, True], k=1)[0]


def output_row(*, instruction: str, dataset: str, model: str, text: str) -> dict[str, Any]:
    """Return a row of ``model_outputs.json``."""
    return {"dataset": dataset, "instruction": instruction, "output": text, "generator": model}


def annotation_row(
    *, instruction: str, dataset: str, model: str, baseline: str, judge: str, outputs: tuple[str, str],
    value: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Return a row of ``annotations.json``; ``outputs``: the model's first; ``value``: the preference for it."""
    return {
        "instruction": instruction,
        "output_1": outputs[1],
        "generator_1": baseline,
        "dataset": dataset,
        "output_2": outputs[0],
        "generator_2": model,
        "annotator": judge,
        "preference": None if value is None else round(1 + value, 10),
    }


def target(row: Row, *, model: str) -> Target:
    """Return the path of the file that AlpacaEval keeps such a row in, below its folder of results."""
    if row.schema == OUTPUT:
        return answers_path(model)
    return annotations_path(model, row.games[0].judge)


def answers_path(model: str) -> Target:
    """Return the path of a model's outputs."""
    return Target("{}/model_outputs.json", (model,))


def annotations_path(model: str, judge: str) -> Target:
    """Return the path of one model's annotations by one annotator."""
    return Target("{}/{}/annotations.json", (model, judge))


def _output(raw: dict[str, Any]) -> Row:
    said = Conversation(raw["instruction"], raw.get("generator") or "", (Text(raw["output"], ("output",)),))
    return Row(OUTPUT, raw, said.model, said.question, conversations=(said,))


def _annotation(raw: dict[str, Any]) -> Row:
    instruction, judge = raw["instruction"], raw.get("annotator") or "unnamed annotator"
    model, baseline = raw.get("generator_2") or "", raw.get("generator_1") or "baseline"
    value = _number(raw["preference"])
    said = None if value is None else 0.5 if value == 0 else value - 1 if 1 <= value <= 2 else None  # 0: an old tie
    text, logprobs = _reply(raw.get("raw_completion"))
    order = "model_first" if switched(instruction) else "baseline_first"
    read_again = _preference(logprobs, order)
    if text is None or read_again is None or said is None or not abs(read_again - said) <= _ROUNDED:
        text, logprobs, reply, order = Text(repr(raw["preference"])), (), "preference", "baseline_first"
    else:
        reply = "m_or_M"
    shown = (raw["output_2"], raw["output_1"])
    game = Game(
        question=instruction, turn=1, judge=judge, model=model, baseline=baseline, order=order, reply=reply, text=text,
        said=said, top_logprobs=logprobs, shown=shown,
    )  # fmt: skip
    conversations = (
        Conversation(instruction, model, (Text(raw["output_2"], ("output_2",)),)),
        Conversation(instruction, baseline, (Text(raw["output_1"], ("output_1",)),)),
    )
    return Row(ANNOTATION, raw, model, instruction, conversations=conversations, games=(game,))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if math.isnan(value) else float(value)


def _reply(raw: object) -> tuple[Text | None, tuple[tuple[str, float], ...]]:
    """Return the reply's text and its first token's alternatives, where the completion is one of OpenAI's."""
    try:
        first = raw["logprobs"]["content"][0]["top_logprobs"]  # type: ignore[index]
        pairs = tuple((str(one["token"]), float(one["logprob"])) for one in first)
        place: Place = ("raw_completion", "text")
        return Text(raw["text"], place), pairs  # type: ignore[index]
    except (TypeError, LookupError, ValueError):
        return None, ()


def _preference(logprobs: tuple[tuple[str, float], ...], order: str) -> float | None:
    """Return the preference for ``output_2`` that the log-probabilities of m (shown first) and M say."""
    found = dict(logprobs)
    small, big = (math.exp(found[token]) if token in found else 0.0 for token in "mM")
    if small + big == 0:
        return None
    return (small if order == "model_first" else big) / (small + big)
