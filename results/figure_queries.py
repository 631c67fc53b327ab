"""Named SELECTs that figures are drawn from, as typed rows; as in :mod:`results.queries`, names are those shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from results.evidence import mean_characters
from results.queries import display_names, leaderboard

if TYPE_CHECKING:
    from results.store import Ledger


@dataclass(frozen=True, slots=True)
class CoefficientMean:
    """What a merge used, on average over the ``tensors`` of one layer and module.

    ``layer`` is None for tensors outside the layers, ``source_name`` for numbers of all sources together.
    """

    model_name: str
    name: str
    source_name: str | None
    layer: int | None
    module: str
    value: float
    tensors: int


@dataclass(frozen=True, slots=True)
class Meetings:
    """On how many questions ``name`` did better than ``other_name``, as well as it, or worse, in one metric.

    Where ``other_name`` is the baseline of a comparison, what counts is who was preferred.
    """

    name: str
    other_name: str
    benchmark: str
    version: str
    judge_name: str
    baseline_name: str | None
    metric: str
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True, slots=True)
class LengthRow:
    """A score beside the mean length, in characters, of the answers that it rests on."""

    name: str
    benchmark: str
    version: str
    judge_name: str
    baseline_name: str | None
    metric: str
    value: float
    low: float | None
    high: float | None
    characters: float
    baseline_characters: float | None  # of the baseline's answers, where those are known


def coefficient_means(ledger: Ledger, *, model: str | None = None) -> list[CoefficientMean]:
    """Return the coefficients of a merge, or of every one, by layer and module; experts of one layer are one module.

    Of all, merges that studies tried are left out: there are many, and a study's own report shows its best.
    """
    which = "model NOT IN (SELECT model FROM trials)" if model is None else "model = ?"
    query = rf"""
        SELECT model_name, name, source_name, layer,
               regexp_replace(regexp_replace(
                   coalesce(nullif(regexp_extract(tensor, '(?:^|\.)(?:layers?|h|blocks?)\.\d+\.(.+)$', 1), ''), tensor),
                   '\.weight$', ''), '\.\d+\.', '.*.', 'g') AS module,
               avg(value), count(*)
        FROM coefficients_wide
        WHERE {which}
        GROUP BY model, model_name, name, source, source_name, layer, module
        ORDER BY model_name, model, name, source_name NULLS FIRST, layer NULLS FIRST, module
    """
    return [CoefficientMean(*row) for row in ledger.sql(query, *([] if model is None else [model])).fetchall()]


def meetings(ledger: Ledger) -> list[Meetings]:
    """Return, for every two models of a benchmark, on how many questions one did better than the other."""
    query = """
        WITH ranked AS (
            SELECT i.*, list_position(['average', 'discrete_win_rate', 'win_rate', 'accuracy'], metric) AS place
            FROM item_scores i LEFT JOIN models m ON m.id = i.model
            WHERE value IS NOT NULL AND coalesce(m.kind, '') NOT IN ('panel', 'control', 'retest')
        ), items AS (
            SELECT * FROM ranked WHERE place IS NOT NULL
            QUALIFY place = min(place) OVER (PARTITION BY benchmark, version, judge, baseline)
        ), met AS (
            SELECT a.model, b.model AS other, a.benchmark, a.version, a.judge, a.baseline, a.metric,
                   a.value AS one, b.value AS two
            FROM items a JOIN items b
              ON a.benchmark = b.benchmark AND a.version = b.version AND a.judge = b.judge AND a.metric = b.metric
             AND a.question = b.question AND a.baseline IS NOT DISTINCT FROM b.baseline AND a.model <> b.model
            UNION ALL
            SELECT model, baseline, benchmark, version, judge, baseline, metric, value, 50.0
            FROM items WHERE baseline IS NOT NULL AND metric IN ('win_rate', 'discrete_win_rate')
        )
        SELECT coalesce(m.display, met.model) AS name, coalesce(o.display, other) AS other_name, benchmark, version,
               coalesce(j.display, judge) AS judge_name, coalesce(b.display, baseline) AS baseline_name, metric,
               count(*) FILTER (one > two), count(*) FILTER (one = two), count(*) FILTER (one < two)
        FROM met
        LEFT JOIN model_names m ON m.id = met.model
        LEFT JOIN model_names o ON o.id = met.other
        LEFT JOIN model_names j ON j.id = met.judge
        LEFT JOIN model_names b ON b.id = met.baseline
        GROUP BY met.model, m.display, other, o.display, benchmark, version, judge, j.display, baseline, b.display,
                 metric
        ORDER BY benchmark, version, judge_name, baseline_name, name, other_name
    """
    return [Meetings(*row) for row in ledger.sql(query).fetchall()]


def lengths(ledger: Ledger) -> list[LengthRow]:
    """Return every candidate's main scores beside how long its answers are."""
    names = display_names(ledger)
    found = []
    known: dict[tuple[str, str], dict[str, float]] = {}
    for row in leaderboard(ledger):
        if row.value is None or row.metric not in ("average", "win_rate", "lc_win_rate", "win_rate:style"):
            continue
        place = (row.benchmark, row.version)
        if place not in known:
            means = mean_characters(ledger, benchmark=row.benchmark, version=row.version)
            known[place] = {names.get(model, model): mean for model, mean in means.items()}
        if (characters := known[place].get(row.name)) is not None:
            beside = known[place].get(row.baseline_name or "")
            told = (row.name, row.benchmark, row.version, row.judge_name, row.baseline_name, row.metric)
            found.append(LengthRow(*told, row.value, row.low, row.high, characters, beside))
    return found
