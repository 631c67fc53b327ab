"""What the replies cost, for the page: the total, who was asked for what, and every evaluated model's part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from results.audit_queries import CostRow

_STAGES = {"answer": "answers", "judge": "judgments"}
_PRICED = frozenset({"endpoint", "retest", ""})  # kinds that may cost money; all others run on this machine


@dataclass(frozen=True, slots=True)
class Cost:
    """What was asked of one model for one benchmark (and, of a part, for one evaluated model), summed up.

    ``dollars`` is the text to show, ``known`` the sum of the known prices (None: none is known).
    """

    asked: str
    stage: str
    benchmark: str
    model: str
    requests: int
    failures: int
    replies: int
    prompt_tokens: int
    output_tokens: int
    thinking_tokens: int
    known: float | None
    dollars: str


def cost_total(rows: Sequence[CostRow]) -> str:
    """Return a sentence on what everything cost, by stage; "" where nothing was asked that may cost money."""
    paid = [row for row in rows if _costs_money(row)]
    known = _known(paid)
    unpriced = sum(row.unpriced for row in paid)
    if not paid:
        return ""
    lacking = ", ".join(sorted({row.asked_name for row in paid if row.unpriced}))
    if known is None:
        return f"What it cost is not known: there is no price for {lacking}."
    stages = [(said, _known([row for row in paid if row.stage == stage])) for stage, said in _STAGES.items()]
    parts = ", ".join(f"{said} {money(part)}" for said, part in stages if part is not None)
    text = f"It cost {money(known)} ({parts})"
    return f"{text}, and {unpriced:,} requests to {lacking} whose price is not known." if unpriced else f"{text}."


def cost_groups(rows: Sequence[CostRow]) -> list[Cost]:
    """Sum up what was asked of each model for each benchmark and stage; the dearest first."""
    grouped: dict[tuple[str, str, str], list[CostRow]] = {}
    for row in rows:
        grouped.setdefault((row.asked, row.stage, row.benchmark), []).append(row)
    return sorted((_sum(each, model="") for each in grouped.values()), key=_dearest)


def cost_parts(rows: Sequence[CostRow]) -> list[Cost]:
    """Sum up what was asked for each evaluated model and benchmark; the dearest first."""
    return sorted((_sum([row], model=row.model_name) for row in rows), key=_dearest)


def money(dollars: float | None) -> str:
    """Write US dollars for people: cents, or of less than a dollar the first two digits that are not 0."""
    if dollars is None:
        return "price not known"
    if not 0 < dollars < 1:
        return f"${dollars:,.2f}"
    places = max(2, 1 - math.floor(math.log10(dollars)))
    return f"${dollars:.{min(places, 6)}f}" if dollars >= 5e-7 else "under $0.000001"


def _costs_money(row: CostRow) -> bool:
    return row.asked_kind in _PRICED or row.dollars is not None


def _known(rows: Iterable[CostRow]) -> float | None:
    known = [row.dollars for row in rows if row.dollars is not None]
    return math.fsum(known) if known else None


def _sum(rows: Sequence[CostRow], *, model: str) -> Cost:
    first, known = rows[0], _known(rows)
    unpriced = sum(row.unpriced for row in rows)
    if not _costs_money(first) and known is None:
        dollars = "runs here"
    elif known is not None and unpriced:
        dollars = f"{money(known)} and {unpriced:,} of unknown price"
    else:
        dollars = money(known)
    return Cost(
        asked=first.asked_name,
        stage=_STAGES.get(first.stage, first.stage),
        benchmark=first.benchmark,
        model=model,
        requests=sum(row.requests for row in rows),
        failures=sum(row.failures for row in rows),
        replies=sum(row.replies for row in rows),
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        thinking_tokens=sum(row.thinking_tokens for row in rows),
        known=known,
        dollars=dollars,
    )


def _dearest(cost: Cost) -> tuple[float, str, str, str, str]:
    return (-(cost.known or 0.0), cost.benchmark, cost.stage, cost.asked, cost.model)


def model_costs(rows: Sequence[CostRow]) -> dict[str, Cost]:
    """Sum up, by the name of the evaluated model, what its answers and the judgments on them cost."""
    grouped: dict[str, list[CostRow]] = {}
    for row in sorted(rows, key=_costs_money, reverse=True):  # what costs money says how the sum is called
        if row.model_name:
            grouped.setdefault(row.model_name, []).append(row)
    return {name: _sum(each, model=name) for name, each in grouped.items()}
