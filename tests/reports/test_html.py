import base64
import dataclasses
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from evals.records import (
    LOWER_IS_BETTER,
    Answer,
    AnswerFlag,
    Audit,
    Difference,
    Failure,
    JudgeRequest,
    Judgment,
    Message,
    Model,
    Question,
    Sampling,
    Score,
    TrainingPoint,
    Verdict,
)
from reports.html import page, write_page
from results.queries import LeaderboardRow
from results.store import Ledger

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)><!-- <svg onload=alert(1)>"
    "<a href='javascript:alert(1)'>x</a> \u202egnp.exe \u2028\u2029 &lt;b&gt; {{ 7 * 7 }} \x01"
)
BASE = Model("b0", "base", "checkpoint", "found")
SCE = Model("c1", f"sce {HOSTILE}", "merge", HOSTILE, "b0", json.dumps({"method": "sce", "sources": ["b0", HOSTILE]}))
QUESTION = Question("starter", "1", "sum", HOSTILE, (HOSTILE, "And then?"), None, ("4", HOSTILE), "number")


class Page(HTMLParser):
    """The elements, the text of each script and style, and the text shown."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.blocks, self.words = [], {"script": [], "style": []}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in self.blocks:
            self.blocks[tag].append("")

    def handle_data(self, data):
        tag = self.tags[-1][0] if self.tags else ""
        if tag in self.blocks and self.cdata_elem:
            self.blocks[tag][-1] += data
        else:
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def packed(self):
        """What is packed for the answer browser, by id."""
        ids = [attrs.get("id") for attrs in self.all("script")]
        pairs = zip(ids, self.blocks["script"], strict=True)
        return {id_: json.loads(gzip.decompress(base64.b64decode(text))) for id_, text in pairs if id_}

    @property
    def scripts(self):
        """The scripts that run."""
        ids = [attrs.get("id") for attrs in self.all("script")]
        return [text for id_, text in zip(ids, self.blocks["script"], strict=True) if not id_]

    def unpacked(self, kind):
        """The texts of the first question: its answers, or its replies."""
        question = self.packed["answers-index"]["questions"][0]
        part, place = question[kind]
        return self.packed[self.packed["answers-index"]["parts"][kind][part]][place]


def answer(model, turn, text):
    key = f"a-{model.id}-{turn}"
    return Answer(key, model.id, "starter", "1", "sum", turn, text, "stop", 9, 3, 0.5, 7, Sampling())


def fill(ledger):
    ledger.add(BASE, SCE, QUESTION, *(answer(model, turn, HOSTILE) for model in (BASE, SCE) for turn in (1, 2)))
    ledger.add(Verdict("a-c1-2", "check", "starter", "1", "sum", 2, SCE.id, None, "single", 1.0))
    for order, value in (("model_first", 0.9), ("baseline_first", 0.1)):
        about = (BASE.id, "starter", "1", "sum", 1, SCE.id, BASE.id, order)
        asked = (("a-c1-1", "a-b0-1"), (Message("user", "which?"),), Sampling(), "ab")
        logprobs = (("A", -0.1), (HOSTILE, float("-inf")))
        ledger.add(JudgeRequest(f"r-{order}", f"j-{order}", *about, *asked))
        ledger.add(Judgment(f"j-{order}", BASE.id, HOSTILE, "stop", logprobs, 9, 1, 0.1, "b0"))
        ledger.add(Verdict(f"r-{order}", *about, value))
    ledger.add(Failure("f", "answer", SCE.id, "starter", "sum", "server", HOSTILE, 3))
    ledger.add(*(TrainingPoint(SCE.id, step, 3.0 - step, 1e-4, 100 * step) for step in (1, 2)))
    scores = [
        Score(SCE.id, "starter", "1", "check", None, "accuracy", 75.0, 50.0, 100.0, 4, 0, (HOSTILE,)),
        Score(BASE.id, "starter", "1", "check", None, "accuracy", None, None, None, 0, 4),
    ]
    ledger.put_scores(scores, benchmark="starter", version="1", provenance={})
    ledger.add(Difference(SCE.id, BASE.id, "starter", "1", "check", None, "accuracy", 50.0, 20.0, 80.0, 0.01, 4, 1))
    run = ledger.start_run(command="fuseval demo", experiment=HOSTILE, versions={"duckdb": "2.0.0"})
    ledger.end_run(run, outcome="done")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    with Ledger.open(tmp_path_factory.mktemp("ledger") / "fuseval.duckdb") as opened:
        fill(opened)
        yield opened


@pytest.fixture(scope="module")
def html(ledger):
    return page(ledger, title=HOSTILE, notes=[f"Plumbing, not quality. {HOSTILE}"])


def test_hostile_text_makes_no_element_and_no_handler(html):
    found = Page(html)
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"img", "iframe", "object", "embed", "base", "form", "foreignobject", "image"}
    assert [attrs.get("type") for attrs in found.all("script")] == ["application/gzip"] * 3 + [None] * 4
    attributes = [(key, value or "") for _, attrs in found.tags for key, value in attrs.items()]
    assert not [key for key, _ in attributes if key.startswith("on") or key in ("style", "srcdoc", "src")]
    assert {value for key, value in attributes if key == "href" and not value.startswith("#")} == {"data:,"}


def test_hostile_text_reads_as_it_was_written(html):
    found = Page(html)
    assert found.text.count("<img src=x onerror=alert(1)>") >= 6
    assert {row["text"] for row in found.unpacked("answers")["answers"]} == {HOSTILE}
    assert {row["reply"] for row in found.unpacked("replies")} == {HOSTILE}
    assert all(re.fullmatch(r"[A-Za-z0-9+/=]+", text) for text in found.blocks["script"][:3])


def test_the_policy_allows_these_scripts_and_this_style_alone(html):
    found = Page(html)
    assert found.tags[3][1]["http-equiv"] == "Content-Security-Policy"  # html, head, charset, policy
    rules = dict(rule.split(maxsplit=1) for rule in found.tags[3][1]["content"].split("; "))

    def hashed(block):
        return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "script-src": " ".join(hashed(script) for script in found.scripts),
        "style-src": hashed(found.blocks["style"][0]),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "dompurify fuseval",
    }


def test_the_pages_own_script_reads_no_markup(html):
    script = Page(html).scripts[-1]
    assert "DOMPurify.sanitize(markdown().render(safe), ALLOWED)" in script
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", script)


def test_published_scores_stand_among_the_ledgers_and_are_marked_as_published(ledger, tmp_path):
    place = ("published:gpt", "gpt", "published", "starter", "1", "check", "check", None, "accuracy")
    row = LeaderboardRow(*place, 90.0, None, None, 80, 0, (f"published in {HOSTILE}",))
    write_page(ledger, tmp_path / "report.html", title="Demo", context=[row])
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    models = [attrs["data-model"] for tag, attrs in found.tags if tag == "tr" and "data-model" in attrs]
    assert models.index("gpt") < models.index("base", models.index("gpt"))
    assert "Grey in the figure: published by others." in found.text
    assert f"published in {HOSTILE[:20]}" in found.text and not found.all("img")


def test_a_metric_of_which_less_is_better_says_so_and_is_sorted_so(tmp_path):
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        opened.add(*(dataclasses.replace(BASE, id=name, name=name) for name in ("worse", "better")))
        for model, value in (("worse", 3.0), ("better", 2.0)):
            opened.add(Score(model, "lm_eval:x", "1", "check", None, "bits_per_byte", value, 1.0, 4.0, 9, 0,
                             (LOWER_IS_BETTER,)))  # fmt: skip
        found = Page(page(opened, title="Demo"))
    models = [attrs["data-model"] for tag, attrs in found.tags if tag == "tr" and "data-model" in attrs]
    assert models == ["better", "worse"] * 2  # the overview's, and the panel's
    assert [tag for tag, attrs in found.tags if "data-lower" in attrs] == ["th", "th"]
    assert "Lower is better." in found.text and LOWER_IS_BETTER not in found.text


def test_the_same_ledger_gives_the_same_bytes(ledger, tmp_path):
    for name in ("new/one.html", "two.html"):
        write_page(ledger, tmp_path / name, title="Demo")
    assert (tmp_path / "new/one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_notes_sentences_and_missing_scores_are_on_the_page(html):
    text = Page(html).text
    assert "Plumbing, not quality." in text
    assert re.search(r"sce .* beats base on starter accuracy by 50\.0 \[20\.0, 80\.0\] points \(p = 0\.010", text)
    assert re.search(r"base missing \[missing\] 0 4", text)


def test_a_judge_that_prefers_a_place_is_called_out(html):
    assert (
        "base mostly judges by place on starter 1: it kept its preference in 0% of the pairs when the answers changed "
        "places, and preferred the answer shown first in 100% of its judgments"
    ) in Page(html).text


def test_a_judge_that_prefers_an_answer_is_not(tmp_path):
    with Ledger.open(tmp_path / "fair.duckdb") as fair:
        for order in ("model_first", "baseline_first"):
            fair.add(Verdict(f"r-{order}", BASE.id, "starter", "1", "sum", 1, SCE.id, BASE.id, order, 0.9))
        text = Page(page(fair, title="Demo")).text
    assert "1 100% 50%" in text
    assert "judges by place" not in text


def test_the_browser_gets_turns_checks_and_both_orders(html):
    question, replies = Page(html).unpacked("answers"), Page(html).unpacked("replies")
    assert [(turn["turn"], turn["reference"]) for turn in question["turns"]] == [(1, "4"), (2, HOSTILE)]
    assert question["checks"] == [{"model": SCE.name, "turn": 2, "value": 1.0}]
    assert {row["order"] for row in replies} == {"model_first", "baseline_first"}
    assert replies[0]["top_logprobs"] == [["A", -0.1]]  # an impossible token has no finite logarithm


def test_the_notes_of_the_last_run_are_shown_where_none_are_given(tmp_path):
    with Ledger.open(tmp_path / "noted.duckdb") as noted:
        for notes in (["Forgotten."], ["Plumbing, not quality."]):
            noted.start_run(command="fuseval demo", experiment=json.dumps({"notes": notes}), versions={})
        text = Page(page(noted, title="Demo")).text.split("Provenance")[0]
        assert "Plumbing, not quality." in text
        assert "Forgotten." not in text
        assert (
            "Plumbing" not in Page(page(noted, title="Demo", notes=[])).text.split("The experiment of the last run")[0]
        )


def test_two_models_of_one_name_stay_two_in_every_table_and_in_the_browser(tmp_path):
    first, second = (dataclasses.replace(SCE, id=id_, name="sce") for id_ in ("8e5e00", "77aa00"))
    with Ledger.open(tmp_path / "twins.duckdb") as twins:
        twins.add(BASE, first, second, QUESTION, *(answer(model, 1, model.id) for model in (first, second)))
        twins.add(
            *(Score(m.id, "starter", "1", "check", None, "accuracy", 5.0, 1.0, 9.0, 4, 0) for m in (first, second))
        )
        found = Page(page(twins, title="Demo"))
    assert found.packed["answers-index"]["models"] == ["sce·77aa", "sce·8e5e"]
    shown = {row["model"]: row["text"] for row in found.unpacked("answers")["answers"]}
    assert shown == {"sce·8e5e": "8e5e00", "sce·77aa": "77aa00"}
    assert "2 models (sce·77aa, sce·8e5e) on starter 1" in found.text
    assert "77aa00 sce·77aa merge" in found.text


def test_win_rates_against_two_baselines_are_two_tables(tmp_path):
    with Ledger.open(tmp_path / "baselines.duckdb") as both:
        both.add(BASE, *(Model(name, name, "endpoint", "x") for name in ("o1", "o2")))
        about = (BASE.id, "arena", "1", "j")
        both.add(*(Score(*about, other, "win_rate", 5.0, 1.0, 9.0, 4, 0) for other in ("o1", "o2")))
        text = Page(page(both, title="Demo")).text
    assert "Judged by j, against o1 (50 is even with it)." in text
    assert "Judged by j, against o2 (50 is even with it)." in text


def test_an_empty_ledger_makes_a_page(tmp_path):
    with Ledger.open(tmp_path / "empty.duckdb") as empty:
        found = Page(page(empty, title="Nothing yet"))
    assert "No scores yet" in found.text
    assert len(found.all("script")) == 1


CONTROL = Model("k0", "constant answer", "control", "made")
ATTACKER = Model("e1", f"null {HOSTILE}", "endpoint", "found")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    about = ("starter", "1", "b0", None, "rating")
    with Ledger.open(tmp_path_factory.mktemp("audited") / "fuseval.duckdb") as ledger:
        ledger.add(BASE, ATTACKER, CONTROL, QUESTION, answer(BASE, 1, "Four."), answer(CONTROL, 1, "I cannot say."))
        ledger.add(dataclasses.replace(answer(ATTACKER, 1, HOSTILE), cost=0.25))
        ledger.start_run(command="fuseval run", experiment="{}", versions={})
        for number, served in enumerate((HOSTILE, "gpt-4")):
            ledger.add(Judgment(f"j{number}", "e1", "9", "stop", (), 9, 1, 0.1, served, cost=0.5))
        ledger.add(
            Score(ATTACKER.id, *about, 9.0, 8.0, 9.9, 4, 0, ("attack:planted_verdicts",)),
            Score(ATTACKER.id, *about[:4], "rating:unflagged", 2.0, 1.0, 3.0, 3, 1),
            Score(BASE.id, *about, 8.0, 7.0, 8.9, 4, 0),
            Score(CONTROL.id, *about, 1.0, 1.0, 1.0, 4, 0),
        )
        flags = [AnswerFlag("a-e1-1", "planted_verdicts", "e1", "starter", "1", "sum", HOSTILE)]
        ledger.put_audit(
            [
                Audit("e1", "starter", "1", "first_preferred", "", 0.56, 0.52, 0.6, 40),
                Audit("e1", "starter", "1", "null_control", "k0", 0.25, 0.1, 0.4, 8),
                Audit("e1", "starter", "1", "judge_agreement", "b0", 0.75, 0.7, 0.8, 40),
            ],
            flags,
            benchmark="starter",
            version="1",
        )
        yield page(ledger, title="Audit")


def test_the_audit_is_said_in_words_and_laid_out(audited):
    text = Page(audited).text
    assert "Prefers the answer shown first in 56 % [52, 60] of its judgments (50 % would be fair). n = 40" in text
    assert "can be won over by answers that say nothing: on starter 1 constant answer loses in 25 % [10, 40]" in text
    assert "base 75 % [70, 80]" in text
    assert "was served by several models or systems within one run" in text


def test_what_it_cost_stands_at_the_top_and_in_its_section(audited):
    text = Page(audited).text
    assert text.index("It cost $1.25 (answers $0.25, judgments $1.00).") < text.index("Leaderboard")
    assert "starter answers 1 0 1 9 3 0 $0.25" in text


def test_a_flagged_model_is_marked_and_its_score_stands_without_its_flagged_answers(audited):
    found = Page(audited)
    assert [link["href"] for link in found.all("a") if link.get("class") == "mark"] == ["#attacks"] * 2
    assert "† 9.00 [8.00, 9.90] 2.00 4 0" in found.text
    assert "base 8.00 [7.00, 8.90] – 4 0" in found.text
    assert "answers to starter 1 look like attacks on the judge (planted verdicts)." in found.text
    assert "1 of 1 answers hold a verdict in the words that judges are asked for." in found.text
    assert {row["model"]: row["flags"] for row in found.unpacked("answers")["answers"]} == {
        "base": [], ATTACKER.name: ["planted verdicts"]
    }  # fmt: skip


def test_flagged_text_makes_no_element_and_hides_nothing(audited):
    found = Page(audited)
    assert not {tag for tag, _ in found.tags} & {"img", "iframe", "object", "embed", "base", "form"}
    assert "⟨U+202E⟩gnp.exe" in found.text
    assert "\u202e" not in audited.split('id="section-judges"', 1)[1].split('id="section-costs"')[0]


def test_controls_are_on_no_leaderboard_and_in_no_browser(audited):
    found = Page(audited)
    assert "2 models (base, null" in found.text
    assert "constant answer" not in json.dumps(found.packed)


def test_nothing_is_said_of_how_others_drew_their_answers(tmp_path):
    with Ledger.open(tmp_path / "published.duckdb") as imported:
        imported.add(dataclasses.replace(BASE, kind="published"), QUESTION, answer(BASE, 1, "Four."))
        text = Page(page(imported, title="Demo")).text
    assert "Imported answers 1, drawn by others in ways not known here" in text
    assert "Temperature of answers" not in text and "Seeds of answers" not in text
