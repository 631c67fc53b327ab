import base64
import hashlib
import re
from datetime import UTC, datetime

from evals.records import Answer, Difference, Model, Question, Sampling, Score
from reports.live import live_page
from results.store import Ledger

ABOUT = ("starter", "1", "check", None, "accuracy")
HOSTILE = '<script>alert("x")</script>'


def page(tmp_path, *records, **changes):
    with Ledger.open(tmp_path / "ledger.duckdb") as ledger:
        ledger.add(*records)
        given = {"as_of": datetime(2026, 1, 2, tzinfo=UTC), "state": "while it is being filled", "every": 5}
        return live_page(ledger, title="fusions", **{**given, **changes})


def test_it_says_how_far_each_model_is_and_what_the_scores_show(tmp_path):
    made = page(
        tmp_path,
        *(Model(name, name, "merge", "made") for name in ("sce", "base")),
        Question("starter", "1", "q", "", ("?", "?")),
        Answer("k", "sce", "starter", "1", "q", 1, "text", "stop", 1, 1, 0.0, 0, Sampling()),
        Score("sce", *ABOUT, 60.0, 50.0, 70.0, 9, 1),
        Difference("sce", "base", *ABOUT, 20.0, 10.0, 30.0, 0.001, 9, 0),
    )
    assert '<th scope="row">starter 1</th><td>sce</td><td class="number">1</td><td class="number">2</td>' in made
    assert "60.0" in made
    assert "1 missing" in made
    assert "sce beats base on starter accuracy by 20.0" in made
    assert 'http-equiv="refresh" content="5"' in made


def test_an_empty_ledger_has_a_page_too(tmp_path):
    made = page(tmp_path, has_page=False)
    assert "No answer yet." in made
    assert "report.html" not in made


def test_hostile_names_are_text_and_the_policy_allows_the_style_sheet_alone(tmp_path):
    model = Model("sce", HOSTILE, "merge", "made")
    made = page(tmp_path, model, Score("sce", *ABOUT, 60.0, 50.0, 70.0, 9, 1), notes=[HOSTILE])
    assert "<script" not in made
    css = re.search(r"<style>(.*?)</style>", made, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"default-src &#39;none&#39;; style-src &#39;sha256-{digest}&#39;;" in made
