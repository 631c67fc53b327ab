"""Whether a judge favours answers of its own family.

Panickssery et al. 2024, arXiv:2404.13076; Zheng et al. 2023, arXiv:2306.05685, section 3.3. That a judge rates its own
family's answers highly proves nothing, for they may be good. What is measured is how much *more* it favours them than
other judges do, of the very same answers, and less than that by which it departs from them on everybody else's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from evals.records import Model
from judges.clustered import Array, Figure, Ints, ratio, summed
from judges.verdict_table import Comparisons, Ratings, Table

FAMILIES: Mapping[str, Sequence[str]] = {
    "OpenAI": ("gpt", "chatgpt", "o1", "o3", "o4", "davinci"),
    "Anthropic": ("claude",),
    "Google": ("gemini", "gemma", "palm", "bard"),
    "Llama": ("llama", "alpaca", "vicuna", "tulu"),
    "Mistral": ("mistral", "mixtral", "ministral", "zephyr"),
    "Qwen": ("qwen", "qwq"),
    "Phi": ("phi",),
    "DeepSeek": ("deepseek",),
    "Yi": ("yi",),
    "SmolLM": ("smollm",),
    "Falcon": ("falcon",),
    "Cohere": ("command", "aya"),
    "OLMo": ("olmo",),
}
"""Families of models by the words that their names are made of."""


def family(name: str) -> str | None:
    """Return the family that the name of a model speaks of, the one named first where it names several; else None.

    A word counts with digits behind it: "Qwen2.5-7B" is Qwen, "o1-mini" OpenAI's and "yield-7b" nobody's.
    """
    words = re.findall(r"[a-z]+\d*", name.lower())
    known = {word: title for title, several in FAMILIES.items() for word in several}
    return next((known[w] for word in words for w in (word, word.rstrip("0123456789")) if w in known), None)


def families(models: Iterable[Model], *, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the families of models by their identities; ``given`` ones, by name, hold over what names speak of."""
    of = {model.id: (given or {}).get(model.name, family(model.name)) for model in models}
    return {model: title for model, title in of.items() if title}


def self_preference(table: Table, *, families: Mapping[str, str], not_others: Collection[str] = ()) -> Iterator[Figure]:
    """Yield ``self_preference`` of judges that share a family with models (``rating_self_preference`` of ratings).

    On each pair, or each rated answer, that judges of other families judged as well (without ``not_others``: panels
    and repeated judges) the judge's preference less their mean. The measure is the mean of that over the pairs where
    one side is of the judge's family, for that side, less its mean over the other pairs, where there are any. Of
    ratings there must be others, for else a lenient judge could not be told from one that favours its own.
    """
    for kind, judged in (("", table.pairs), ("rating_", table.ratings)):
        for judge, rows in judged.items():
            others = [
                judged[other]
                for other in judged
                if judge in families and other not in not_others and families.get(other) != families[judge]
            ]
            if others:
                own = np.array([families.get(model) == families[judge] for model in table.names.models])
                side = own[rows.model].astype(float)
                if isinstance(rows, Comparisons):
                    side -= own[rows.baseline]
                gap = value(rows) - _mean_of(rows.place, others)
                yield from _figures(judge, f"{kind}self_preference", rows, side=side, gap=gap, table=table)


def value(rows: Comparisons | Ratings) -> Array:
    """Return the preferences for the model, or the ratings."""
    return rows.preference if isinstance(rows, Comparisons) else rows.value


def _mean_of(place: Ints, others: Sequence[Comparisons | Ratings]) -> Array:
    """Return the mean of the others' values at these places; NaN where nobody has one."""
    total, count = np.zeros(len(place)), np.zeros(len(place))
    for rows in others:
        _, mine, theirs = np.intersect1d(place, rows.place, assume_unique=True, return_indices=True)
        there = np.isfinite(value(rows)[theirs])
        total[mine[there]] += value(rows)[theirs[there]]
        count[mine[there]] += 1
    found: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def _figures(
    judge: str, measure: str, rows: Comparisons | Ratings, *, side: Array, gap: Array, table: Table
) -> Iterator[Figure]:
    """Yield the measure over all models of the family, and for each; ``side`` is 1, -1 or 0 for nobody's."""
    known = np.isfinite(gap)
    rest = known & (side == 0)
    if isinstance(rows, Ratings) and not rest.any():
        return
    questions = len(table.names.questions)
    mine = known & (side != 0)
    found: list[tuple[str, Array]] = [("", mine.astype(float))]
    found += [
        (table.names.models[model], (mine & (rows.model == model)).astype(float))
        for model in np.unique(rows.model[mine & (side > 0)])
    ]
    for other, chosen in found:
        if chosen.any():
            gaps = np.where(known, gap, 0.0)
            columns = chosen * side * gaps, chosen, chosen * side, rest * gaps, rest.astype(float)
            sums = summed(rows.question, *columns, questions=questions)
            yield Figure(judge, measure, other, int(chosen.sum()), sums, _excess if rest.any() else _alone)


def _alone(sums: Array) -> Array:
    return ratio(sums[..., :2])


def _excess(sums: Array) -> Array:
    """Return the mean of side · (gap - lean), where lean is the mean gap of nobody's pairs."""
    lean = ratio(sums[..., 3:])
    return ratio(np.stack([sums[..., 0] - lean * sums[..., 2], sums[..., 1]], axis=-1))
