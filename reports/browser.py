"""What the page's answer browser shows: questions with their answers, judgments and checks, as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from reports.audit import Flagged
from results.queries import AnswerRow, CheckRow, JudgmentRow


def browser_data(
    answers: Sequence[AnswerRow],
    judgments: Sequence[JudgmentRow],
    checks: Sequence[CheckRow],
    *,
    models: Sequence[str],
    flagged: Sequence[Flagged],
) -> str:
    """Return what the answer browser shows, as JSON that no HTML parser can read as markup.

    ``models`` are names in the order to show them in.
    """
    flags: dict[str, list[str]] = {}
    for model in flagged:
        for each in model.found:
            for key in each.keys:
                flags.setdefault(key, []).append(each.detector)
    questions: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in answers:
        new = {"benchmark": row.benchmark, "version": row.version, "id": row.question, "category": row.category}
        rows: dict[str, Any] = {"turns": {}, "answers": [], "judgments": [], "checks": []}
        question = questions.setdefault((row.benchmark, row.version, row.question), {**new, **rows})
        turn = {"turn": row.turn, "prompt": row.prompt, "reference": row.reference, "check": row.check}
        question["turns"].setdefault(row.turn, turn)
        names = ("turn", "text", "finish_reason", "output_tokens", "seconds", "temperature", "seed")
        values = {name: getattr(row, name) for name in names}
        question["answers"].append({"model": row.model_name, **values, "flags": flags.get(row.key, [])})
    for judged in judgments:
        if question_ := questions.get((judged.benchmark, judged.version, judged.question)):
            shown = {"model": judged.model_name, "judge": judged.judge_name, "baseline": judged.baseline_name}
            likely = [pair for pair in judged.top_logprobs if math.isfinite(pair[1])]  # JSON has no infinity
            said = {name: getattr(judged, name) for name in ("turn", "order", "value", "reply")}
            question_["judgments"].append({**shown, **said, "top_logprobs": likely})
    for check in checks:
        if question_ := questions.get((check.benchmark, check.version, check.question)):
            question_["checks"].append({"model": check.model_name, "turn": check.turn, "value": check.value})
    for question in questions.values():
        question["turns"] = [question["turns"][turn] for turn in sorted(question["turns"])]
    answering = {row.model_name for row in answers}
    order = dict.fromkeys([*(name for name in models if name in answering), *(row.model_name for row in answers)])
    found = {"models": list(order), "questions": list(questions.values())}
    text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
