"""The page in a real browser, opened from disk: what a reader does with it, and what hostile answers cannot do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from evals.records import Answer, Difference, JudgeRequest, Judgment, Message, Model, Question, Sampling, Score, Verdict
from reports.html import write_page
from results.store import Ledger

pytestmark = pytest.mark.slow

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
HOSTILE = {
    "script": "</script><script>window.hacked = 1</script>",
    "handler": "<img src=x onerror='window.hacked = 1'><b onclick=1>bold</b>",
    "svg": "<svg onload='window.hacked = 1'><style>body{display:none}</style></svg>",
    "css": "<style>* { display: none }</style><p style='position:fixed;inset:0'>covers</p>",
    "link": "[click](javascript:alert(1)) <a href='javascript:alert(1)'>x</a> <https://evil.example/>",
    "frame": "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe><base href='https://evil.example/'>",
    "order": "safe \u202egnp.exe\u202c \u200b hidden",
    "entity": "safe &#x202E;gnp.exe&#8203;",
    "invalid": "broken \ud800 half",
    "long": "x" * 1_000_000,
    "math": "\\href{javascript:alert(1)}{x} $\\href{javascript:alert(1)}{x}$ $$\\htmlData{a=b}{y}$$",
}
GOOD = "# A title\n\nSome **bold** words and\n\n```python\nprint('<b>')\n```\n\n- one\n- two\n\n$x^2 = 4$, $5 and $6."
BASE = Model("b0", "base", "checkpoint", "found")
TUNED = Model("t1", "tuned", "sft", "made", "b0")
OTHER = Model("o2", "other", "merge", "made", "b0")


def question(id_: str, category: str) -> Question:
    return Question("starter", "1", id_, category, (f"What of {id_}?",), None, ("4",), "number")


def answer(model: Model, id_: str, text: str) -> Answer:
    key = f"a-{model.id}-{id_}"
    return Answer(key, model.id, "starter", "1", id_, 1, text, "stop", 9, 3, 0.5, 7, Sampling())


def judged(model: Model, id_: str, order: str, value: float | None) -> list[Any]:
    about, name = ("starter", "1", id_, 1, model.id, BASE.id, order), f"{model.id}-{id_}-{order}"
    messages = (Message("user", "Which?"),)
    return [
        JudgeRequest(f"r-{name}", f"j-{name}", "judge", *about, (f"a-{model.id}-{id_}", f"a-b0-{id_}"), messages,
                     Sampling(), "ab"),
        Judgment(f"j-{name}", "judge", f"Because of {id_}. [[A]]", "stop", (), 9, 1, 0.1, "judge"),
        Verdict(f"r-{name}", "judge", *about, value),
    ]  # fmt: skip


def fill(ledger: Ledger) -> None:
    ids = {**{f"q{n}": "maths" if n % 2 else "writing" for n in range(6)}, **dict.fromkeys(HOSTILE, "hostile")}
    ledger.add(BASE, TUNED, OTHER, Model("judge", "judge", "endpoint", "x"))
    for place, (id_, category) in enumerate(ids.items()):
        ledger.add(question(id_, category))
        for model in (BASE, TUNED, OTHER):
            text = HOSTILE.get(id_) or (GOOD if model is TUNED else f"Plain answer {place} of {model.name}.")
            ledger.add(answer(model, id_, text))
        for order, value in (("model_first", 1.0), ("baseline_first", 1.0 if place % 2 else 0.0)):
            ledger.add(*judged(TUNED, id_, order, value))
    scored(ledger)


def scored(ledger: Ledger) -> None:
    rows, about = [], ("starter", "1", "check", None, "accuracy")
    ledger.add(BASE, TUNED, OTHER)
    for model, value in ((BASE, 40.0), (TUNED, 80.0), (OTHER, 60.0)):
        rows.append(Score(model.id, *about, value, value - 10, value + 10, 16, 1 if model is OTHER else 0))
    ledger.put_scores(rows, benchmark="starter", version="1", provenance={})
    gap = Difference(TUNED.id, BASE.id, *about[:3], None, "accuracy", 40.0, 20.0, 60.0, 0.001, 16, 0, 0.002, 20.0)
    ledger.add(gap, replace(gap, model=OTHER.id, value=20.0, low=-5.0, high=45.0, p=0.2, p_holm=0.2))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    with Ledger.open(folder / "fuseval.duckdb") as ledger:
        fill(ledger)
        write_page(ledger, folder / "report.html", title="A report", notes=["Mind this."])
        write_page(ledger, folder / "apart.html", title="In parts", inline=0)
    with Ledger.open(folder / "scores.duckdb") as ledger:
        scored(ledger)
        write_page(ledger, folder / "scores.html", title="Scores alone")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'fuseval[test]'")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium, or name one in the environment variable CHROMIUM")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


class Visit:
    """A page that was opened, and everything that it complained of."""

    def __init__(self, browser: Any, url: str, **how: Any) -> None:
        self.page, self.complaints, self.asked = browser.new_page(**how), [], []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        if self.page.locator("#answers-index").count():
            self.page.wait_for_selector("#question .column .text")


@pytest.fixture
def visit(browser, file) -> Iterator[Any]:
    visits = []

    def go(fragment: str = "", name: str = "report.html", **how: Any) -> Visit:
        visits.append(Visit(browser, f"{file.with_name(name).as_uri()}{fragment}", **how))
        return visits[-1]

    yield go
    for each in visits:
        each.page.close()
        assert each.complaints == []
        assert all(url.startswith("file:") for url in each.asked)


def names(page: Any) -> list[str]:
    return page.locator("table.overview tbody th bdi").all_inner_texts()


def link(id_: str, *models: str) -> str:
    return f"#answers?q={quote(f'starter 1/{id_}', safe='')}" + "".join(f"&m={model}" for model in models)


def test_the_leaderboard_sorts_by_its_headers_and_narrows_by_name(visit):
    page = visit().page
    assert names(page) == ["tuned", "other", "base"]
    header = page.locator("table.overview thead th").nth(1)
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    header.locator("button").click()
    assert names(page) == ["base", "other", "tuned"]
    page.fill("#narrow-name", "tun")
    assert page.locator("table.overview tbody tr:visible").count() == 1


def test_a_page_of_scores_without_answers_sorts_too(visit):
    page = visit(name="scores.html").page
    page.locator("table.overview thead th").nth(0).locator("button").click()
    assert names(page) == ["base", "other", "tuned"]


def test_a_difference_that_is_shown_is_said_and_one_that_is_not_is_not_claimed(visit):
    page = visit().page
    claims = page.locator("#section-differences > .claims li").all_inner_texts()
    assert len(claims) == 1 and claims[0].startswith("tuned beats base")


def test_questions_are_found_by_category_and_words_and_stepped_through(visit):
    page = visit().page
    page.select_option("#pick-category", label="maths")
    assert page.locator("#found li").count() == 3
    page.fill("#pick-words", "q3")
    assert page.locator("#found li").all_inner_texts()[0].startswith("q3")
    page.fill("#pick-words", "")
    page.locator("#found a").first.click()
    page.click("#next")
    page.locator("#question h3", has_text="q3").wait_for()
    page.select_option("#pick-disagreement", "orders")
    assert page.locator("#found li").count() == 0  # of maths, in every pair both orders agree


def test_a_link_opens_its_question_and_models_with_the_judges_reasons(visit):
    page = visit(link("q2", "other", "tuned")).page
    assert page.locator("#question h3").inner_text().startswith("q2")
    assert page.locator("#question .column h4 bdi").all_inner_texts() == ["other", "tuned"]
    page.wait_for_selector(".judgment")
    reasons = page.locator(".judgment").all_inner_texts()
    assert len(reasons) == 2 and all("Because of q2." in reason for reason in reasons)
    assert "this answer first" in " ".join(reasons) and "this answer second" in " ".join(reasons)


def test_markdown_code_and_formulas_are_set_and_prices_are_no_formula(visit):
    page = visit(link("q0", "tuned")).page
    shown = page.locator("#question .column .rich")
    assert shown.locator("strong").inner_text() == "bold"
    assert shown.locator("pre code").inner_text().strip() == "print('<b>')"
    assert shown.locator("math").count() == 1
    assert "$5 and $6" in shown.inner_text()
    page.check("#pick-written")
    assert "**bold**" in page.locator("#question .column .written").inner_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_text(visit, name):
    page = visit(link(name, "tuned")).page
    column = page.locator("#question .column")
    assert column.locator("script, img, svg, style, iframe, base, a, form, [onclick], [onerror], [style]").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.locator("h1").is_visible()
    shown = column.locator(".text").inner_text()
    expected = {
        "script": "<script>window.hacked = 1</script>", "handler": "onerror=", "svg": "<svg onload",
        "css": "<style>", "link": "javascript:alert(1)", "frame": "<iframe", "order": "⟨U+202E⟩gnp.exe",
        "entity": "⟨U+202E⟩gnp.exe⟨U+200B⟩",
        "invalid": "broken \ufffd half", "long": "Show all 1,000,000 characters", "math": "href",
    }  # fmt: skip
    assert expected[name] in shown


def test_texts_beside_the_page_are_read_from_disk_when_they_are_wanted(visit, file):
    opened = visit(link("q1", "base"), name="apart.html")
    assert "Plain answer 1 of base." in opened.page.locator("#question .column").inner_text()
    parts = [url for url in opened.asked if "apart.parts" in url]
    assert parts and all(Path(url.removeprefix("file://")).exists() for url in parts)
    assert file.stat().st_size > file.with_name("apart.html").stat().st_size


def test_everything_can_be_reached_and_used_by_keyboard(visit):
    page = visit().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#found a").nth(1).focus()
    page.keyboard.press("Enter")
    page.locator("#question h3", has_text="q1").wait_for()
    page.locator("table.overview thead button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("table.overview thead th").nth(1).get_attribute("aria-sort") == "descending"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_dark_mode_and_a_phone_show_all_of_it(visit):
    dark = visit(color_scheme="dark").page
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    phone = visit(viewport={"width": 380, "height": 800}).page
    assert phone.evaluate("document.documentElement.scrollWidth") <= 380


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = visit(link("q0", "tuned", "base"), color_scheme=scheme, bypass_csp=True).page
    found = axe.Axe().run(page).response["violations"]
    serious = {each["id"]: [node["html"][:120] for node in each["nodes"]] for each in found
               if each["impact"] in ("serious", "critical")}  # fmt: skip
    assert serious == {}
