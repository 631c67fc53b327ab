"""How far judges agree with each other: shares, Cohen's κ, Krippendorff's α, and the order that they put models in.

Cohen 1960, doi:10.1177/001316446002000104, by scikit-learn; weighted κ (quadratic) for ratings: Cohen 1968,
doi:10.1037/h0026256. Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", by the package ``krippendorff``;
verdicts are ordinal (lost, tied, won), ratings an interval scale. Their intervals resample questions, for which both
are computed once more here, from sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations

import numpy as np

from judges.clustered import Array, Figure, Ints, ratio
from judges.verdict_table import Rows, Table, matched, taken

LEAST = 3  # models that an order is made of
SCALE = 20  # different ratings that agreement tells apart; of more, they are rounded to half points


def agreement(table: Table, *, not_raters: Collection[str] = ()) -> Iterator[Figure]:
    """Yield the agreement of every two judges, and α over all but ``not_raters`` (panels and repeated judges).

    Of comparisons ``judge_agreement``, ``cohen_kappa`` and ``model_spearman``, of ratings ``rating_agreement``,
    ``weighted_kappa`` and ``rating_spearman``; over all judges ``krippendorff_alpha`` and ``rating_alpha``, whose
    judge is "". Of two judges the first one by identity comes first.
    """
    for one, other in combinations(sorted(table.pairs), 2):
        yield from _two_comparers(one, other, table)
    for one, other in combinations(sorted(table.ratings), 2):
        yield from _two_raters(one, other, table)
    for measure, several, level in (
        ("krippendorff_alpha", {j: (p.place, p.verdict) for j, p in table.pairs.items()}, "ordinal"),
        ("rating_alpha", {j: (r.place, r.value) for j, r in table.ratings.items()}, "interval"),
    ):
        raters = [columns for judge, columns in several.items() if judge not in not_raters]
        if len(raters) > 1:
            yield from _alpha(measure, raters, table, level=level)


def kappa(sums: Array, *, weights: Array) -> Array:
    """Return Cohen's κ of tables of counts, (..., K · K) to (...,); ``weights`` (K, K) are those of disagreement."""
    counts = sums.reshape(*sums.shape[:-1], *weights.shape)
    expected = counts.sum(axis=-1)[..., :, None] * counts.sum(axis=-2)[..., None, :]
    seen = (counts * weights).sum(axis=(-2, -1)) * counts.sum(axis=(-2, -1))
    chance = (expected * weights).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(chance > 0, 1.0 - seen / chance, np.nan)
    return found


def confusion(question: Ints, one: Ints, other: Ints, *, kinds: int, questions: int) -> Array:
    """Return how often each two kinds of verdict met, question by question, (questions, kinds · kinds)."""
    place = (question * kinds + one) * kinds + other
    found: Array = np.bincount(place, minlength=questions * kinds * kinds).reshape(questions, -1).astype(float)
    return found


def alpha(sums: Array, *, values: Array, level: str) -> Array:
    """Return Krippendorff's α of coincidences between V values, (..., V · V) to (...,); "ordinal" or "interval"."""
    seen = sums.reshape(*sums.shape[:-1], len(values), len(values))
    count = seen.sum(axis=-1)  # (..., V)
    scale = np.cumsum(count, axis=-1) - count / 2 if level == "ordinal" else np.broadcast_to(values, count.shape)
    apart = (scale[..., :, None] - scale[..., None, :]) ** 2
    every = count.sum(axis=-1)
    chance = (count[..., :, None] * count[..., None, :] * apart).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(chance > 0, 1.0 - (every - 1) * (seen * apart).sum(axis=(-2, -1)) / chance, np.nan)
    return found


def _two_comparers(one: str, other: str, table: Table) -> Iterator[Figure]:
    mine, theirs = table.pairs[one], table.pairs[other]
    at, beside = matched(mine.place, theirs.place)
    known = np.isfinite(mine.verdict[at]) & np.isfinite(theirs.verdict[beside])
    at, beside = at[known], beside[known]
    if len(at):
        codes = [(2 * verdict).astype(np.int64) for verdict in (mine.verdict[at], theirs.verdict[beside])]
        weights = 1.0 - np.eye(3)
        names = ("judge_agreement", "cohen_kappa")
        yield from shares_and_kappa(one, other, mine.question[at], codes, weights=weights, table=table, names=names)
        values = mine.preference[at], theirs.preference[beside]
        yield from _spearman("model_spearman", (one, other), taken(mine, at), values, table)


def _two_raters(one: str, other: str, table: Table) -> Iterator[Figure]:
    mine, theirs = table.ratings[one], table.ratings[other]
    at, beside = matched(mine.place, theirs.place)
    known = np.isfinite(mine.value[at]) & np.isfinite(theirs.value[beside])
    at, beside = at[known], beside[known]
    if len(at):
        values, codes = _scale([mine.value[at], theirs.value[beside]])
        weights = (values[:, None] - values[None, :]) ** 2
        names = ("rating_agreement", "weighted_kappa")
        yield from shares_and_kappa(one, other, mine.question[at], codes, weights=weights, table=table, names=names)
        both = mine.value[at], theirs.value[beside]
        yield from _spearman("rating_spearman", (one, other), taken(mine, at), both, table)


def shares_and_kappa(
    one: str, other: str, question: Ints, codes: Sequence[Ints], *, weights: Array, table: Table, names: tuple[str, str]
) -> Iterator[Figure]:
    """Yield the share of equal ``codes`` (two of (n,)) and their κ with the ``weights`` (K, K), under these names."""
    questions = len(table.names.questions)
    counts = confusion(question, *codes, kinds=len(weights), questions=questions)
    equal = np.eye(len(weights), dtype=bool).ravel()
    shares = np.stack([counts[:, equal].sum(axis=1), counts.sum(axis=1)], axis=1)
    yield Figure(one, names[0], other, len(codes[0]), shares, ratio)
    yield Figure(one, names[1], other, len(codes[0]), counts, lambda sums: kappa(sums, weights=weights))


def _spearman(
    measure: str, judges: tuple[str, str], rows: Rows, values: tuple[Array, Array], table: Table
) -> Iterator[Figure]:
    """Yield the rank correlation of two judges' means of models (each against its baseline), over what both judged."""
    group = rows.model * (len(table.names.models) + 1) + rows.baseline
    names, which = np.unique(group, return_inverse=True)
    if len(names) < LEAST:
        return
    place, size = rows.question * len(names) + which, len(table.names.questions) * len(names)
    columns = (*values, np.ones(len(rows)))
    sums = [np.bincount(place, column, minlength=size).reshape(-1, len(names)) for column in columns]
    yield Figure(judges[0], measure, judges[1], len(names), np.concatenate(sums, axis=1), rank_correlation)


def rank_correlation(sums: Array) -> Array:
    """Return Spearman's ρ of two judges' means, of sums of both and of counts over G models, (..., 3G) to (...,)."""
    one, other, count = np.split(sums, 3, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = one / count, other / count
        ranks = [r - r.mean(axis=-1, keepdims=True) for r in map(ranks_of, means)]
        norms = [np.sqrt((r * r).sum(axis=-1)) for r in ranks]
        found: Array = (ranks[0] * ranks[1]).sum(axis=-1) / (norms[0] * norms[1])
    return found


def ranks_of(values: Array) -> Array:
    """Return the ranks along the last axis, from 1 for the lowest, equal ones sharing the mean of theirs; NaN stays."""
    # One column at a time, for there are as many rows as rounds; scipy's is the same and takes a second to import.
    ranks = [
        (values < values[..., [n]]).sum(axis=-1) + ((values == values[..., [n]]).sum(axis=-1) + 1) / 2
        for n in range(values.shape[-1])
    ]
    return np.where(np.isnan(values), np.nan, np.stack(ranks, axis=-1))


def _scale(several: Sequence[Array]) -> tuple[Array, list[Ints]]:
    """Return the different ratings, ascending, and each rating's place among them."""
    if len(np.unique(np.concatenate(several))) > SCALE:
        several = [np.round(2 * values) / 2 for values in several]
    known, places = np.unique(np.concatenate(several), return_inverse=True)
    return known, np.split(places.astype(np.int64), np.cumsum([len(values) for values in several])[:-1])


def _alpha(measure: str, raters: Sequence[tuple[Ints, Array]], table: Table, *, level: str) -> Iterator[Figure]:
    """Yield α of what raters said at places; a place that only one of them spoke of does not count."""
    import krippendorff  # type: ignore[import-untyped]

    known = [(place[there], value[there]) for place, value in raters for there in [np.isfinite(value)]]
    values, codes = _scale([value for _, value in known])
    units, unit = np.unique(np.concatenate([place for place, _ in known]), return_inverse=True)
    counts = np.zeros((len(units), len(values)), dtype=np.int64)
    np.add.at(counts, (unit, np.concatenate(codes)), 1)
    several = counts.sum(axis=1) > 1
    units, counts = units[several], counts[several]
    if not len(units) or np.count_nonzero(counts.sum(axis=0)) < 2:
        return
    used = counts.sum(axis=0) > 0
    counts, values = counts[:, used], values[used]
    value = krippendorff.alpha(value_counts=counts, value_domain=values, level_of_measurement=level)
    question = units // (table.names.turns + 1) % len(table.names.questions)
    sums = _coincidences(question, counts, len(table.names.questions))
    yield Figure(
        "", measure, "", len(units), sums, lambda drawn: alpha(drawn, values=values, level=level), known=float(value)
    )


def _coincidences(question: Ints, counts: Ints, questions: int) -> Array:
    """Return how often each two values meet in a unit, over its raters less one, question by question: (Q, V · V)."""
    met = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1], dtype=np.int64)
    found = np.zeros((questions, counts.shape[1] ** 2))
    np.add.at(found, question, met.reshape(len(counts), -1) / (counts.sum(axis=1) - 1.0)[:, None])
    return found
