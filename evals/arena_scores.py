"""From Arena-Hard's verdicts to its figures: weighted means of questions, and style control.

See :mod:`evals.arena_hard` for the protocol, :mod:`evals.style` for the style-controlled fit, and
:mod:`evals.arena_published` for the published intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from evals.benchmark import ITEM_COLUMNS, Evidence, Scored, Wanted
from evals.records import Question, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import Categorical, DataFrame

    Array = NDArray[np.float64]

NAME = "arena_hard"
ORDERS = ("baseline_first", "model_first")  # game 1, game 2
DECISIVE = 3  # the weight of a >> verdict
GROUP = ("model", "judge", "baseline")


@dataclass(frozen=True, slots=True)
class Rules:
    """How a version is scored."""

    version: Literal["v0.1", "v2.0"]
    both: bool  # whether a question counts only when both games are readable
    categories: bool  # whether each category has a win rate
    parts: tuple[str, ...] = ()  # subcategories that have one


V0_1 = Rules("v0.1", both=False, categories=False)
V2_0 = Rules("v2.0", both=True, categories=True, parts=("coding", "math"))


def score(evidence: Evidence, *, rules: Rules, parts: Callable[[], Mapping[str, str]] = dict) -> Scored:
    """Return ``win_rate`` and ``bradley_terry`` (equal: see :mod:`evals.arena_hard`), its parts, and style control.

    A question's value is the weighted share of its readable games that the model won, a tie being half, in per cent,
    and its weight is theirs; ``parts`` maps question ids to subcategories. Of a model that was judged against several
    baselines, as v2.0's categories are, only the parts have names that tell them apart.
    """
    sums = _sums(evidence, rules)
    items = _items(sums, rules, parts)
    several = _several(sums.wanted)
    if several:
        rows = zip(items["metric"], items["model"], items["judge"], strict=True)
        items = items[[metric != "win_rate" or tuple(who) not in several for metric, *who in rows]]
    styled = told_apart(tuple(_style_scores(sums, evidence, rules)), sums.wanted, evidence.questions)
    flags = {(w.model, w.judge, w.baseline, metric): said for w, said in _lacking(sums) for metric in ("win_rate",)}
    return Scored(items=items, scores=styled, same={"bradley_terry": "win_rate"}, flags=flags)


def told_apart(scores: Sequence[Score], wanted: Sequence[Wanted], questions: Sequence[Question]) -> tuple[Score, ...]:
    """Return the scores, the metric followed by the category where a model has several baselines."""
    category, several = {q.id: q.category for q in questions}, _several(wanted)
    names = {
        (w.model, w.judge, w.baseline): ":" + "+".join(sorted({category[q] for q in w.questions if q in category}))
        for w in wanted
        if (w.model, w.judge) in several
    }
    return tuple(replace(s, metric=s.metric + names.get((s.model, s.judge, s.baseline), "")) for s in scores)


def _several(wanted: Sequence[Wanted]) -> set[tuple[str, str]]:
    """Return the models, with their judges, that are compared with several baselines."""
    baselines: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for w in wanted:
        baselines[w.model, w.judge].add(w.baseline)
    return {who for who, found in baselines.items() if len(found) > 1}


def _lacking(sums: _Sums) -> Iterator[tuple[Wanted, tuple[str, ...]]]:
    """Yield what to say of groups of which a question has one game that can be read and one that cannot."""
    for w, games in zip(sums.wanted, sums.games, strict=True):
        if lost := int((games == 1).sum()):
            yield w, (f"{lost} of {len(ORDERS) * int((games > 0).sum())} games missing",)


@dataclass(frozen=True, slots=True)
class _Sums:
    """The games of G groups (model, judge, baseline) on Q questions."""

    wanted: tuple[Wanted, ...]  # one a group
    questions: tuple[str, ...]
    categories: tuple[str, ...]  # one a question
    asked: NDArray[np.bool_]  # (G, Q)
    won: Array  # (G, Q), what of the weight
    weight: Array  # (G, Q)
    games: NDArray[np.int64]  # (G, Q), that count


def _sums(evidence: Evidence, rules: Rules) -> _Sums:
    import numpy as np

    placed = place_games(evidence, rules)
    shape, said = placed.asked.shape, placed.games
    place = placed.group * shape[1] + placed.question
    weights, outcomes = said["weight"].to_numpy(dtype=float), said["outcome"].to_numpy(dtype=float)
    weight: Array = np.bincount(place, weights, minlength=placed.asked.size).astype(float).reshape(shape)
    won: Array = np.bincount(place, weights * outcomes, minlength=placed.asked.size).astype(float).reshape(shape)
    categories = tuple(question.category for question in evidence.questions)
    games = np.bincount(place[weights > 0], minlength=placed.asked.size).reshape(shape)
    return _Sums(placed.wanted, placed.questions, categories, placed.asked, won, weight, games)


@dataclass(frozen=True, slots=True)
class Placed:
    """The last counting verdict of each game that is wanted, and the group and the question that each is of."""

    wanted: tuple[Wanted, ...]
    questions: tuple[str, ...]
    asked: NDArray[np.bool_]  # (G, Q)
    games: DataFrame
    group: NDArray[np.intp]  # (games,)
    question: NDArray[np.intp]  # (games,)


def place_games(evidence: Evidence, rules: Rules) -> Placed:
    """Return the games that are wanted, in the order of their verdicts."""
    import numpy as np
    import pandas as pd

    games, wanted = _games(evidence.verdicts, rules), _groups(evidence)
    ids = tuple(question.id for question in evidence.questions)
    asked = np.array([[q in want.questions for q in ids] for want in wanted], dtype=bool).reshape(-1, len(ids))
    group = np.full(len(games), -1)
    if wanted and len(games):
        groups = pd.MultiIndex.from_tuples([(w.model, w.judge, w.baseline) for w in wanted], names=GROUP)
        group = np.asarray(groups.get_indexer(pd.MultiIndex.from_frame(games[list(GROUP)])))
    question = np.asarray(pd.Index(ids).get_indexer(pd.Index(games["question"])))
    keep = (group >= 0) & (question >= 0)
    keep[keep] = asked[group[keep], question[keep]]
    return Placed(wanted, ids, asked, games[keep], group[keep], question[keep])


def _groups(evidence: Evidence) -> tuple[Wanted, ...]:
    """Return what is wanted, each group once; a model is never compared with itself."""
    merged: dict[tuple[str, str, str | None], Wanted] = {}
    for want in evidence.wanted:
        key = want.model, want.judge, want.baseline
        if want.model != want.baseline:
            old = merged.get(key, want)
            merged[key] = replace(want, questions=old.questions | want.questions)
    return tuple(merged.values())


def _games(verdicts: DataFrame, rules: Rules) -> DataFrame:
    """Return the last readable verdict of each game that counts, with its ``weight`` and ``outcome`` (1: won)."""
    import numpy as np

    games = verdicts[verdicts["counts"].astype(bool) & verdicts["order"].isin(ORDERS) & verdicts["baseline"].notna()]
    games = games[games["value"].notna()]
    games = games.drop_duplicates([*GROUP, "question", "order"], keep="last")
    value = games["value"].to_numpy(dtype=float)
    weight = np.where((value == 0) | (value == 1), float(DECISIVE), 1.0) * ~np.isnan(value)
    outcome = np.nan_to_num((np.sign(value - 0.5) + 1) / 2)
    if rules.both and len(games):
        readable = games.groupby([*GROUP, "question"], observed=True)["value"].transform("count").to_numpy()
        weight = weight * (readable == len(ORDERS))
    return games.assign(weight=weight, outcome=outcome)


def _items(sums: _Sums, rules: Rules, parts: Callable[[], Mapping[str, str]]) -> DataFrame:
    import numpy as np
    import pandas as pd

    subsets: list[tuple[str, Any]] = [("win_rate", True)]
    if rules.categories:
        category = np.array(sums.categories, dtype=object)
        subsets += [(f"win_rate:{name}", category == name) for name in dict.fromkeys(sums.categories)]
    if rules.parts:
        of = parts()
        part = np.array([of.get(question, "") for question in sums.questions], dtype=object)
        subsets += [(f"win_rate:{name}", part == name) for name in rules.parts if (part == name).any()]
    value = np.divide(100.0 * sums.won, sums.weight, out=np.full(sums.won.shape, np.nan), where=sums.weight > 0)
    frames = []
    for place, (_, subset) in enumerate(subsets):
        group, question = np.nonzero(sums.asked & subset)
        columns = [
            *(_categories([getattr(w, column) for w in sums.wanted], group) for column in GROUP),
            _categories([metric for metric, _ in subsets], np.full(len(group), place)),
            _categories(sums.questions, question),
            value[group, question],
            sums.weight[group, question],
        ]
        frames.append(pd.DataFrame(dict(zip(ITEM_COLUMNS, columns, strict=True))))
    return pd.concat(frames, ignore_index=True)


def _categories(names: Sequence[str | None], places: NDArray[np.intp]) -> Categorical:
    """Return the names at these places: as categories, which are numbers however often a name comes."""
    import numpy as np
    import pandas as pd

    codes, distinct = pd.factorize(np.array(names, dtype=object))
    return pd.Categorical.from_codes(codes[places], distinct)


def _style_scores(sums: _Sums, evidence: Evidence, rules: Rules) -> Iterator[Score]:
    """Yield style-controlled win rates, one fit a judge and baseline; none where no texts are known."""
    import numpy as np

    from evals import style

    control = {"v0.1": style.V0_1, "v2.0": style.V2_0}[rules.version]
    together: dict[tuple[str, str | None], list[int]] = {}
    for row, want in enumerate(sums.wanted):
        together.setdefault((want.judge, want.baseline), []).append(row)
    if not (sums.weight > 0).any():
        return
    models = sorted({name for w in sums.wanted for name in (w.model, w.baseline) if name is not None})
    counts = _style_counts(evidence.answers, models, sums.questions)
    place_of = {model: place for place, model in enumerate(models)}
    for (_, baseline), rows in together.items():
        if baseline is None:
            continue
        mine = counts[[place_of[sums.wanted[row].model] for row in rows]]  # (M, Q, 4)
        features = control.differences(mine, counts[place_of[baseline]])
        fit = style.fit(sums.won[rows], sums.weight[rows], features, control)
        if not fit.used.any():
            continue
        figures = {
            "win_rate:style": np.stack([fit.rate, fit.low, fit.high], axis=1),
            "win_rate:same_style": np.stack([fit.same, fit.same_low, fit.same_high], axis=1),
        }
        for metric, found in figures.items():
            for place, row in enumerate(rows):
                n = int(fit.used[place].sum())
                yield score_of(
                    sums.wanted[row],
                    metric,
                    100.0 * found[place],
                    rules=rules,
                    n=n,
                    missing=int(sums.asked[row].sum()) - n,
                    flags=("lengths in bytes",),
                )


def _style_counts(answers: DataFrame, models: Sequence[str], questions: Sequence[str]) -> Array:
    """Return the style counts of each model's answer to each question, (models, Q, 4), NaN where there is none."""
    import numpy as np
    import pandas as pd

    from evals.style import FEATURES, style_counts

    table = np.full((len(models), len(questions), len(FEATURES)), np.nan)
    if answers.empty:
        return table
    answers = answers[(answers["turn"] == 1) & answers["text"].notna()]
    model = pd.Index(models).get_indexer(pd.Index(answers["model"]))
    question = pd.Index(questions).get_indexer(pd.Index(answers["question"]))
    known = (model >= 0) & (question >= 0)
    table[model[known], question[known]] = style_counts(answers["text"].to_numpy(dtype=object)[known])
    return table


def score_of(
    want: Wanted, metric: str, figures: Array, *, rules: Rules, n: int, missing: int, flags: tuple[str, ...]
) -> Score:
    """Return the score whose ``figures`` are value, low and high; None of them where it rests on no question."""
    value, low, high = (float(f) if n else None for f in figures)
    return Score(
        want.model, NAME, rules.version, want.judge, want.baseline, metric, value, low, high, n, missing, flags
    )
