"""People's votes on pairs of MT-Bench answers, as verdicts that judges can be held against.

The dataset is lmsys/mt_bench_human_judgments (Zheng et al. 2023, arXiv:2306.05685; CC-BY-4.0): 3,355 votes by people
and, in a file of its own, 2,400 verdicts of GPT-4. It is a hub dataset and no plain file: download its parquet file, or
``human_judgments.json``, and give its path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmark import VERDICT_COLUMNS

if TYPE_CHECKING:
    from pandas import DataFrame

WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (inconsistent)": 0.5}
NEEDED = ("question_id", "model_a", "model_b", "winner", "judge", "turn")
EXPERTS = "expert"  # whom FastChat's agreement calls human; the dataset's other people are its authors


class VotesError(ValueError):
    """A file that holds no such votes; the message names the file, the row and what is wrong."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One person's verdict on two answers; ``value`` is 1 where ``model_a``'s is better, 0 where ``model_b``'s is.

    A tie is 0.5. ``judge`` is the person's name in the file, like "expert_12" or "author_3", or the judge model's and
    its prompt's.
    """

    question: str
    turn: int
    model_a: str
    model_b: str
    judge: str
    value: float


def read_votes(path: Path) -> list[Vote]:
    """Read votes from a parquet file, from JSON lines, or from a JSON list; VotesError where a row is none."""
    return [_vote(row, where=f"{path}, row {number}") for number, row in enumerate(_rows(path), start=1)]


def by_people(votes: Iterable[Vote], *, authors: bool = False) -> list[Vote]:
    """Return the votes of experts, as FastChat's agreement counts people, and with ``authors`` of the paper's too."""
    kinds = (EXPERTS, "author") if authors else (EXPERTS,)
    return [vote for vote in votes if vote.judge.startswith(kinds)]


def human_verdicts(votes: Sequence[Vote], identities: Mapping[str, str]) -> DataFrame:
    """Return votes as verdicts, with VERDICT_COLUMNS of :mod:`evals.benchmark`: every person is a judge.

    ``identities`` maps the models' names in the file to their identities; votes on models that it lacks are left out,
    as are those on a model beside itself. Who was shown first is not known: ``order`` is "unknown".
    """
    import pandas as pd

    rows = [
        (identities[v.model_a], v.judge, identities[v.model_b], v.question, v.turn, "unknown", v.value, True)
        for v in votes
        if v.model_a in identities and v.model_b in identities and v.model_a != v.model_b
    ]
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        lacking = [name for name in NEEDED if name not in file.schema_arrow.names]
        if lacking:
            raise VotesError(f"{path} has no column {lacking[0]!r}: votes have {', '.join(NEEDED)}")
        for batch in file.iter_batches(columns=list(NEEDED)):  # not the conversations, which are most of it
            yield from batch.to_pylist()
        return
    text = path.read_text(encoding="utf-8")
    lines = [text] if text.lstrip().startswith("[") else text.split("\n")  # a string may hold U+2028, no line's end
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError as error:
                raise VotesError(f"{path}, line {number}, is no JSON ({error}): download the file again") from error
            yield from found if isinstance(found, list) else [found]


def _vote(row: Mapping[str, Any], *, where: str) -> Vote:
    lacking = [name for name in NEEDED if name not in row] if isinstance(row, Mapping) else [*NEEDED]
    if lacking:
        raise VotesError(f"{where} has no {lacking[0]!r}: votes have {', '.join(NEEDED)}")
    if row["winner"] not in WINNERS:
        raise VotesError(f"{where} has the winner {row['winner']!r}; it is one of {', '.join(WINNERS)}")
    judge = row["judge"] if isinstance(row["judge"], str) else " ".join(map(str, row["judge"]))
    return Vote(
        question=str(row["question_id"]),
        turn=int(row["turn"]),
        model_a=str(row["model_a"]),
        model_b=str(row["model_b"]),
        judge=judge,
        value=WINNERS[row["winner"]],
    )
