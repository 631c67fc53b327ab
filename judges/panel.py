"""Several judges as one: a panel's verdict on every slot that its members were asked about.

Panels of smaller judges: Verga et al. 2024, arXiv:2404.18796. A panel is a judge like any other, with an identity of
its own: its verdicts are made of its members' and nobody is asked for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from evals.benchmark import VERDICT_COLUMNS
from evals.keys import content_key
from evals.records import Model, Question

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

    from judges.clustered import Array, Ints

    Bools = NDArray[np.bool_]

How = Literal["mean", "majority", "weighted", "by_category"]
_PARTS = ("members", "how", "weights", "categories", "quorum")  # of a panel's recipe
SLOT = ("model", "baseline", "question", "turn", "order")


class PanelError(ValueError):
    """A panel that cannot be; the message names the value and says what to do."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Judges that speak with one voice; ``id`` follows from all the rest but the name.

    ``members`` are identities. ``how`` is "mean", "majority" (of preferences: won, lost, or tied where as many say the
    one as the other; of ratings: the median), "weighted" (the mean by ``weights``), or "by_category": the mean of the
    members that ``categories`` names for the question's category, of all members where it names none. At least
    ``quorum`` of the members in question must have given a verdict, all of them where it is None.
    """

    id: str
    name: str
    members: tuple[str, ...]
    how: How = "mean"
    weights: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    quorum: int | None = None


def make_panel(
    name: str,
    members: Sequence[str],
    *,
    how: How = "mean",
    weights: Mapping[str, float] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
    quorum: int | None = None,
) -> Panel:
    """Return a panel with its identity; PanelError where its parts do not fit together."""
    weights = {judge: float(weight) for judge, weight in sorted((weights or {}).items())}
    named = {category: tuple(judges) for category, judges in sorted((categories or {}).items())}
    where = f"panel {name!r}"
    if how not in get_args(How):
        raise PanelError(f"{where} has how={how!r}; it is one of {', '.join(get_args(How))}")
    if len(set(members)) != len(members) or not members:
        raise PanelError(f"{where} needs members, each named once, not {list(members)}")
    if (how == "weighted") != bool(weights):
        raise PanelError(
            f"{where} has how={how!r} and weights {weights}: weights go with how='weighted', and only there"
        )
    if weights and set(weights) != set(members):
        raise PanelError(
            f"{where} has weights of {sorted(weights)}, and members {sorted(members)}: give each one weight"
        )
    if any(not math.isfinite(weight) or weight <= 0 for weight in weights.values()):
        raise PanelError(f"{where} has weights {weights}: each is a number above 0; leave out a judge that has no say")
    if (how == "by_category") != bool(named):
        raise PanelError(f"{where} has how={how!r} and categories {list(named)}: they go with how='by_category', only")
    for category, judges in named.items():
        if not judges or not set(judges) <= set(members):
            raise PanelError(
                f"{where} has {list(judges)} for category {category!r}: name some of its members {members}"
            )
    least = min([len(members), *map(len, named.values())])
    if quorum is not None and not 1 <= quorum <= least:
        raise PanelError(f"{where} has a quorum of {quorum}: it is from 1 to {least}, as many as may have to speak")
    alike = {category: sorted(judges) for category, judges in named.items()}
    key = content_key("panel", sorted(members), how, weights, alike, quorum)
    return Panel(key, name, tuple(members), how, weights, named, quorum)


def panel_verdicts(said: DataFrame, panel: Panel, questions: Sequence[Question]) -> DataFrame:
    """Return what the panel says, with the columns of ``said``: one row a slot that any of its members was asked about.

    A slot is a model's answer beside a baseline's (or alone) to one turn of one question in one order; of several
    verdicts of a member on it the last readable one that counts is taken. ``value`` is NaN where fewer members than the
    quorum gave one. Rows stand in the order in which the slots appear; all count.
    """
    import pandas as pd

    theirs = said[said["judge"].isin(list(panel.members)).to_numpy(dtype=bool) & said["counts"].to_numpy(dtype=bool)]
    theirs = theirs.reset_index(drop=True)
    slot = theirs.groupby(list(SLOT), observed=True, dropna=False, sort=False).ngroup().to_numpy()
    member = _numbers(theirs["judge"].tolist(), panel.members)
    values = np.full((int(slot.max(initial=-1)) + 1, len(panel.members)), np.nan)
    readable = np.flatnonzero(theirs["value"].notna().to_numpy(dtype=bool))
    # The verdicts come oldest first, and of a repeated index the last assignment stays.
    values[slot[readable], member[readable]] = theirs["value"].to_numpy(dtype=float)[readable]
    _, first = np.unique(slot, return_index=True)
    rows = theirs.loc[first, list(SLOT)].reset_index(drop=True)
    category = {q.id: q.category for q in questions}
    told = _told(panel, [category.get(question, "") for question in rows["question"].tolist()])
    alone = rows["baseline"].isna().to_numpy(dtype=bool)
    rows["judge"] = pd.Categorical.from_codes(np.zeros(len(rows), dtype=np.int8), [panel.id])
    rows["value"] = _joined(panel, np.where(told, values, np.nan), told, alone)
    rows["counts"] = True
    return rows[list(VERDICT_COLUMNS)]


def panel_model(panel: Panel) -> Model:
    """Return the panel as the ledger keeps it: a model of kind "panel", whose recipe is the panel's."""
    recipe = {each: getattr(panel, each) for each in _PARTS}
    text = json.dumps(recipe, sort_keys=True, ensure_ascii=False)
    return Model(id=panel.id, name=panel.name, kind="panel", source="panel", recipe=text)


def panel_of(model: Model) -> Panel:
    """Return the panel that :func:`panel_model` made a model of; PanelError where the model holds none."""
    try:
        recipe = json.loads(model.recipe)
        panel = make_panel(model.name, **{each: recipe[each] for each in _PARTS})
    except (ValueError, KeyError, TypeError) as error:
        raise PanelError(
            f"model {model.name!r} of kind {model.kind!r} holds no panel in its recipe ({error}): run the panel again"
        ) from error
    return panel


def _told(panel: Panel, categories: Sequence[str]) -> Bools:
    """Return who has a say on each slot, (slots, members)."""
    named = {
        category: np.array([member in judges for member in panel.members])
        for category, judges in panel.categories.items()
    }
    everybody = np.ones(len(panel.members), dtype=bool)
    return np.array([named.get(category, everybody) for category in categories], dtype=bool).reshape(
        -1, len(panel.members)
    )


def _joined(panel: Panel, values: Array, told: Bools, alone: Bools) -> Array:
    """Return the panel's value of each slot of ``values`` (slots, members), in which NaN has no say."""
    given = np.isfinite(values)
    enough = given.sum(axis=1) >= (told.sum(axis=1) if panel.quorum is None else panel.quorum)
    weights = np.array([panel.weights.get(member, 1.0) for member in panel.members]) * given
    filled = np.where(given, values, 0.0)
    if panel.how == "majority":
        votes = (np.sign(np.where(given, values, 0.5) - 0.5)).sum(axis=1)
        found = (np.sign(votes) + 1) / 2
        rated = alone & given.any(axis=1)
        found[rated] = np.nanmedian(values[rated], axis=1)
    else:
        found = (weights * filled).sum(axis=1) / np.maximum(weights.sum(axis=1), np.finfo(float).tiny)
    joined: Array = np.where(enough, found, np.nan)
    return joined


def _numbers(judges: Sequence[str], members: Sequence[str]) -> Ints:
    places = {member: place for place, member in enumerate(members)}
    return np.array([places[judge] for judge in judges], dtype=np.int64)
