import pandas as pd
import pytest

from evals.records import Answer, Coefficient, Model, Question, Sampling, Score
from results.figure_queries import coefficient_means, lengths, meetings
from results.progress import progress
from results.store import Ledger


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        opened.add(*(Model(f"id-{name}", name, "merge", "made") for name in ("sce", "ties", "base", "gpt")))
        yield opened


def test_coefficients_are_means_by_layer_and_module(ledger):
    names = ["model.layers.0.mlp.experts.1.up.weight", "model.layers.0.mlp.experts.2.up.weight", "model.norm.weight"]
    ledger.add(
        *(Coefficient("id-sce", name, "id-ties", "eta", value) for name, value in zip(names, (1, 2, 5), strict=True))
    )
    found = [(row.layer, row.module, row.value, row.tensors, row.source_name) for row in coefficient_means(ledger)]
    assert found == [(None, "model.norm", 5.0, 1, "ties"), (0, "mlp.experts.*.up", 1.5, 2, "ties")]


def test_wins_are_counted_by_question_and_against_the_baseline_by_who_was_preferred(ledger):
    values = {"id-sce": (100.0, 50.0, 0.0), "id-ties": (0.0, 50.0, None)}
    items = pd.DataFrame(
        [
            (m, "id-gpt", "id-base", "win_rate", str(q), v, 1.0)
            for m, each in values.items()
            for q, v in enumerate(each)
        ],
        columns=["model", "judge", "baseline", "metric", "question", "value", "weight"],
    )
    ledger.put_scores([], benchmark="starter", version="1", provenance={}, items=items)
    found = {(row.name, row.other_name): (row.wins, row.ties, row.losses) for row in meetings(ledger)}
    assert found == {
        ("sce", "ties"): (1, 1, 0), ("ties", "sce"): (0, 1, 1), ("sce", "base"): (1, 1, 1), ("ties", "base"): (0, 1, 1)
    }  # fmt: skip


def answered(ledger, model, text, question="q", key=None):
    key = key or f"{model}-{question}"
    ledger.add(Answer(key, model, "starter", "1", question, 1, text, "stop", 1, 1, 0.0, 0, Sampling()))


def test_a_score_stands_beside_the_mean_length_of_the_answers(ledger):
    ledger.add(Question("starter", "1", "q", "", ("?",)), Question("starter", "1", "r", "", ("?",)))
    answered(ledger, "id-sce", "1234")
    answered(ledger, "id-sce", "12", "r")
    answered(ledger, "id-base", "[not in the imported file: turn 1 of base]")
    ledger.add(Score("id-sce", "starter", "1", "id-gpt", "id-base", "win_rate", 60.0, 50.0, 70.0, 2, 0))
    [row] = lengths(ledger)
    assert (row.name, row.characters, row.baseline_characters) == ("sce", 3.0, None)


def test_progress_counts_turns_once(ledger):
    ledger.add(Question("starter", "1", "q", "", ("?", "?")))
    for key in ("one", "again"):
        answered(ledger, "id-sce", "text", key=key)
    [row] = progress(ledger)
    assert (row.name, row.answers, row.turns, row.judgments, row.failures) == ("sce", 1, 2, 0, 0)
