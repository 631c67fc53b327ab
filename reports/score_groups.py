"""The page's scores and differences in groups: one for each benchmark, metric, judge and baseline, with its figure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from evals.records import LOWER_IS_BETTER
from reports.claims import Statement
from reports.figure_svg import svg
from reports.figures import differences_figure, leaderboard_figure
from reports.marks import detectors, footnotes, marked_models
from reports.numbers import LOWER, points
from reports.overview import cited
from results.queries import PUBLISHED, LeaderboardRow


def score_groups(rows: Sequence[LeaderboardRow]) -> list[dict[str, Any]]:
    """Return the scores by benchmark, metric, judge and baseline; the most cited metric is ``first``, and drawn."""
    grouped: dict[tuple[str, str, str, str, str], list[LeaderboardRow]] = {}
    for row in rows:
        key = (row.benchmark, row.version, row.metric, row.judge_name, row.baseline_name or "")
        grouped.setdefault(key, []).append(row)
    groups, marked, first = [], marked_models(rows), _first(grouped)
    for place, ((benchmark, version, metric, judge, baseline), found) in enumerate(grouped.items()):
        against = f", against {baseline} (50 is even with it)" if baseline else ""
        leads = (benchmark, version, metric, judge, baseline) in first
        drawn = leads and any(row.value is not None for row in found)
        grey = _published(found) if drawn else ""
        names = marked[benchmark, version] & {row.name for row in found}
        of_names = [r for r in rows if r.name in names and (r.benchmark, r.version) == (benchmark, version)]
        groups.append(
            {
                "title": f"{benchmark} {version} · {metric}",
                "how": f"{_judged(judge)}{against}.{_lower(found[0].lower_is_better)}{grey}",
                "lower": found[0].lower_is_better,
                "benchmark": f"{benchmark} {version}",
                "judge": judge,
                "first": leads,
                "rows": found,
                "flagged": any(
                    flag != LOWER_IS_BETTER and not detectors([flag]) for row in found for flag in row.flags
                ),
                "unflagged": any(row.unflagged_n is not None for row in found),
                "marked": names,
                "footnotes": footnotes(of_names),
                "figure": svg(leaderboard_figure(found, name=f"leaderboard-{place}", marked=names)) if drawn else "",
            }
        )
    return groups


def difference_groups(
    statements: Sequence[Statement], marked: Mapping[tuple[str, str], Collection[str]]
) -> list[dict[str, Any]]:
    """Return the paired differences by what they compare; those in the most cited metric come ``first``."""
    grouped: dict[tuple[str, ...], list[Statement]] = {}
    for each in statements:
        row = each.difference
        key = (row.benchmark, row.version, row.metric, row.judge_name, row.other_name, row.baseline_name or "")
        grouped.setdefault(key, []).append(each)
    groups, first = [], _first((b, v, m, j, base) for b, v, m, j, _, base in grouped)
    for place, ((benchmark, version, metric, judge, other, baseline), found) in enumerate(grouped.items()):
        leads = (benchmark, version, metric, judge, baseline) in first
        drawn = leads and any(each.verdict != "missing" for each in found)
        figure = svg(differences_figure(found, name=f"differences-{place}")) if drawn else ""
        title = f"{benchmark} {version} · {metric}, minus {other}"
        both = f", both against {baseline}" if baseline not in ("", other) else ""
        shown: dict[str, Any] = {"rows": found, "figure": figure, "marked": marked.get((benchmark, version), ())}
        shown |= {"benchmark": f"{benchmark} {version}", "judge": judge, "first": leads}
        how = f"{_judged(judge)}{both}{'; in points' if points(metric) else ''}."
        lower = found[0].difference.lower_is_better
        groups.append({"title": title, "how": how + _lower(lower), "lower": lower, **shown})
    return groups


def _first(keys: Iterable[tuple[str, str, str, str, str]]) -> set[tuple[str, str, str, str, str]]:
    """Return, of keys that differ in their metric alone, the one with the metric that is cited most."""
    metrics: dict[tuple[str, str, str, str], list[str]] = {}
    for benchmark, version, metric, judge, baseline in keys:
        metrics.setdefault((benchmark, version, judge, baseline), []).append(metric)
    return {(b, v, cited(found), j, base) for (b, v, j, base), found in metrics.items()}


def _published(rows: Sequence[LeaderboardRow]) -> str:
    kinds = {row.kind == PUBLISHED for row in rows}
    return " Grey in the figure: published by others." if len(kinds) > 1 else ""


def _lower(lower_is_better: bool) -> str:
    return f" {LOWER.capitalize()}." if lower_is_better else ""


def _judged(judge: str) -> str:
    return "Scored by exact checks, without a judge" if judge == "check" else f"Judged by {judge}"
