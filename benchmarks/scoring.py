"""Scoring beside the ways it is published, in one run, on the same synthetic games: CPU seconds as Markdown.

.venv/bin/python benchmarks/scoring.py [--only arena style length] [--models 40] [--rounds 100] [--repeat 1]

- arena: Arena-Hard v0.1, 500 questions, two games each, decisive verdicts three times: each model's win rate and its
  interval of 100 resamples. Ours from the verdicts, by the closed form; the reference way from the battles, a fit of
  scikit-learn's logistic regression without a penalty a resample. Both draw the same resamples.
- style: the style-controlled win rates of the same models, as v0.1 defines them: ours beside scikit-learn's fit of
  the same objective, once to convergence and once with its default tolerance, which is the published way.
- length: AlpacaEval's length-controlled win rates of 60 models, ours alone, over all cores. Needs the asset
  alpaca_eval/df_gamed.csv: in the cache, or below FUSEVAL_ASSETS.

CPU seconds are those of all threads and child processes; fix OMP_NUM_THREADS to compare. A section runs its ways in
turn, after each has run once on a small input. Of several repeats the medians are shown.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from platformdirs import user_cache_path
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parents[1]))

from evals import arena_published, arena_scores, length_control, style
from evals.assets import AssetError, find
from evals.benchmark import Evidence, Wanted
from evals.records import Question

QUESTIONS, INSTRUCTIONS, LEADERBOARD = 500, 805, 60
BASELINE = "baseline"
LABELS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])  # B>>A … A>>B
GAMED = "alpaca_eval/df_gamed.csv"


def main() -> None:
    """Run the sections and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {"arena": arena, "style": styled, "length": lc}
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections))
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=arena_published.ROUNDS)
    parser.add_argument("--repeat", type=int, default=1)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*failed to converge.*")  # the default tolerance and steps are measured
    for name in chosen.only:
        print("\n".join(sections[name](chosen)), flush=True)
        print(flush=True)


def cpu() -> float:
    """Return the CPU seconds so far of this process and of its children that ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def in_turn(ways: dict[str, Callable[[], Any]], repeat: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the median CPU seconds and the last result of each way."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    for turn in range(repeat):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            begun = cpu()
            found[name] = ways[name]()
            taken[name].append(cpu() - begun)
            print(f"# {name}: {taken[name][-1]:.3f} CPU s", file=sys.stderr, flush=True)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}, found


def verdicts(models: int, questions: int = QUESTIONS, seed: int = 0) -> pd.DataFrame:
    """Return two verdicts a question of models whose strengths are spread out, one in a hundred of them unreadable."""
    rng = np.random.default_rng(seed)
    shape = models, questions, 2
    taste = np.linspace(-1.6, 1.2, models)[:, None, None] + rng.normal(0, 0.9, (models, questions, 1))
    value = LABELS[np.clip(np.rint(2 + taste + rng.normal(0, 0.7, shape)), 0, 4).astype(int)]
    value[rng.random(shape) < 0.01] = np.nan
    model, question, game = (axis.ravel() for axis in np.indices(shape))
    return pd.DataFrame(
        {
            "model": np.array([f"m{m}" for m in range(models)], dtype=object)[model],
            "judge": "judge",
            "baseline": BASELINE,
            "question": np.array([f"q{q}" for q in range(questions)], dtype=object)[question],
            "turn": 1,
            "order": np.array(arena_scores.ORDERS, dtype=object)[game],
            "value": value.ravel(),
            "counts": True,
        }
    )


def evidence(table: pd.DataFrame) -> Evidence:
    """Return what our scoring is given."""
    questions = [Question("arena_hard", "v0.1", q, "arena-hard-v0.1", ("",)) for q in table["question"].unique()]
    ids = frozenset(q.id for q in questions)
    wanted = [Wanted(m, "judge", BASELINE, ids) for m in table["model"].unique()]
    return Evidence(questions, wanted, table, pd.DataFrame())


def battles(table: pd.DataFrame) -> pd.DataFrame:
    """Return the reference's table: one row a battle, the baseline as model_a, a decisive one three times."""
    table = table[table["value"].notna()]
    winner = np.select([table["value"] < 0.5, table["value"] > 0.5], ["model_a", "model_b"], "tie")
    rows = pd.DataFrame(
        {"question": table["question"], "model_a": BASELINE, "model_b": table["model"], "winner": winner}
    )
    return rows.loc[rows.index.repeat(np.where(table["value"].isin([0, 1]), 3, 1))].reset_index(drop=True)


def columns(rows: pd.DataFrame, names: pd.Index) -> np.ndarray:
    """Return the Bradley-Terry columns of battles: ln 10 for the one model, -ln 10 for the other."""
    found = np.zeros((len(rows), len(names)))
    found[np.arange(len(rows)), names.get_indexer(rows["model_a"])] = math.log(10)
    found[np.arange(len(rows)), names.get_indexer(rows["model_b"])] = -math.log(10)
    return found


def twice(rows: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return all battles two times and whether the first won: of a tie once so, once otherwise."""
    won = np.concatenate([rows["winner"].isin(["model_a", "tie"]), rows["winner"] == "model_a"])
    return pd.concat([rows, rows], ignore_index=True), won.astype(float)


def rates(coefficients: np.ndarray, names: pd.Index) -> pd.Series:
    """Return each model's expected win rate against the baseline, in per cent."""
    rating = 400 * coefficients[: len(names)]
    against = rating[names.get_loc(BASELINE)]
    return pd.Series(100 / (1 + 10 ** ((against - rating) / 400)), index=names)


def reference_rates(rows: pd.DataFrame, rounds: int) -> pd.DataFrame:
    """Return value, low and high of each model: a fit of all battles, and one of each resample."""

    def fit(sample: pd.DataFrame) -> pd.Series:
        names = pd.Index(pd.concat([sample["model_a"], sample["model_b"]]).unique())
        doubled, won = twice(sample)
        model = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-8)  # C=inf: no penalty
        return rates(model.fit(columns(doubled, names), won).coef_[0], names)

    drawn = np.random.RandomState(arena_published.SEED)
    resampled = pd.DataFrame([fit(rows.sample(frac=1.0, replace=True, random_state=drawn)) for _ in range(rounds)])
    odds = np.log(resampled / (100 - resampled))
    ends = {name: 100 / (1 + np.exp(-odds.quantile(tail))) for name, tail in (("low", 0.025), ("high", 0.975))}
    return pd.DataFrame({"value": fit(rows), **ends}).drop(index=BASELINE)


def our_rates(known: Evidence) -> pd.DataFrame:
    """Return the same of our scoring, which rounds to two decimals as the reference prints."""
    scores = arena_published.like_published(known, rules=arena_scores.V0_1)
    return pd.DataFrame({s.model: {"value": s.value, "low": s.low, "high": s.high} for s in scores}).T


def arena(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the table of Arena-Hard v0.1."""
    small, table = verdicts(3, 40), verdicts(chosen.models)
    our_rates(evidence(small))
    reference_rates(battles(small), 2)
    known, rows = evidence(table), battles(table)
    arena_published.ROUNDS = chosen.rounds
    ways = {"ours": lambda: our_rates(known), "reference": lambda: reference_rates(rows, chosen.rounds)}
    seconds, found = in_turn(ways, chosen.repeat)
    apart = (found["ours"] - found["reference"].loc[found["ours"].index]).abs().max()
    yield f"Arena-Hard v0.1, {chosen.models} models, {len(rows):,} battles, {chosen.rounds} resamples\n"
    yield "| way | CPU s | times ours | largest difference of a score, of an interval's end (per cent) |"
    yield "|---|---|---|---|"
    yield f"| ours | {seconds['ours']:.3f} | 1 | |"
    ratio, ends = seconds["reference"] / seconds["ours"], max(apart["low"], apart["high"])
    yield f"| a fit a resample | {seconds['reference']:.1f} | {ratio:.0f} | {apart['value']:.4f}, {ends:.4f} |"


def styled(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the table of style control."""
    rng = np.random.default_rng(1)
    table = verdicts(chosen.models)
    known, rows = evidence(table), battles(table)
    limits = [4000, 8, 30, 25]
    counts = rng.integers(1, limits, size=(chosen.models, QUESTIONS, 4)).astype(float)
    base = rng.integers(1, limits, size=(QUESTIONS, 4)).astype(float)

    def ours() -> pd.Series:
        sums = arena_scores._sums(known, arena_scores.V0_1)
        found = style.fit(sums.won, sums.weight, style.relative(counts, base), style.V0_1)
        return pd.Series(100 * found.rate, index=[w.model for w in sums.wanted])

    def reference(**options: Any) -> pd.Series:
        names = pd.Index(pd.concat([rows["model_a"], rows["model_b"]]).unique())
        doubled, won = twice(rows)
        model, question = (doubled[c].str[1:].astype(int).to_numpy() for c in ("model_b", "question"))
        apart = style.relative(base[question], counts[model, question])
        features = (apart - apart.mean(axis=0)) / apart.std(axis=0)
        fitted = LogisticRegression(fit_intercept=False, **options).fit(
            np.hstack([columns(doubled, names), features]), won
        )
        return rates(fitted.coef_[0], names).drop(BASELINE)

    ours()
    ways = {"ours": ours, "converged": lambda: reference(tol=1e-8, max_iter=100_000), "published": reference}
    seconds, found = in_turn(ways, chosen.repeat)
    yield f"Style control, v0.1's objective, {chosen.models} models, {len(rows):,} battles\n"
    yield "| way | CPU s | times ours | largest difference of a score (per cent) |"
    yield "|---|---|---|---|"
    told = {"converged": "scikit-learn, converged (tol 1e-8)", "published": "scikit-learn, as published (defaults)"}
    yield f"| ours, with intervals | {seconds['ours']:.3f} | 1 | |"
    for name, title in told.items():
        apart = (found["ours"] - found[name].loc[found["ours"].index]).abs().max()
        yield f"| {title} | {seconds[name]:.2f} | {seconds[name] / seconds['ours']:.1f} | {apart:.5f} |"


def lc(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the table of length-controlled win rates."""
    given = os.environ.get("FUSEVAL_ASSETS")
    cache = Path(os.environ.get("FUSEVAL_CACHE") or user_cache_path("fuseval"))
    try:
        path = find(GAMED, cache=cache / "assets", mirror=Path(given) if given else None)
    except AssetError as error:
        yield f"Length-controlled win rates: left out, {error}"
        return
    gamed = length_control.read_gamed(path)
    rng = np.random.default_rng(2)
    questions = np.arange(INSTRUCTIONS)
    models = [
        length_control.Compared(
            questions, rng.beta(0.3 + m / 60, 0.6, INSTRUCTIONS), rng.normal(-10 * m, 800, INSTRUCTIONS)
        )
        for m in range(LEADERBOARD)
    ]
    rules = {"one fold rule": ("stable",), "both fold rules": ("stable", "introsort")}
    length_control.predict_all([(models[0], "stable")], gamed=gamed)
    ways = {
        name: lambda folds=folds: length_control.predict_all([(m, f) for m in models for f in folds], gamed=gamed)
        for name, folds in rules.items()
    }
    seconds, _ = in_turn(ways, chosen.repeat)
    yield f"Length-controlled win rates of {LEADERBOARD} models\n"
    yield "| what | CPU s |\n|---|---|"
    yield from (f"| {name} | {spent:.2f} |" for name, spent in seconds.items())


if __name__ == "__main__":
    main()
