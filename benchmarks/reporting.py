"""The report's page: how large it is, how long it takes to write and to open, for many answers.

    python benchmarks/reporting.py [--models 10] [--benchmarks 3] [--questions 334]

Three benchmarks of 334 questions and ten models are 10,020 answers. Opening is measured in Chromium, from disk: until
the page is shown, and until its answer browser works.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from evals.records import Answer, JudgeRequest, Judgment, Message, Model, Question, Sampling, Score
from reports.html import INLINE, write_page
from results.store import Ledger

PARTS = (("con", "re", "tri", "pla", "o"), ("ver", "mo", "stan", "li"), ("ting", "al", "e", "ness", "s"))
WORDS = ["".join(parts) for parts in itertools.product(*PARTS)]


def text(rng: random.Random, words: int) -> str:
    """Return text that compresses about as a model's answers do."""
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def fill(ledger: Ledger, *, models: int, benchmarks: int, questions: int) -> int:
    """Add as many answers, each with one judgment, and return how many."""
    rng, judge = random.Random(0), Model("judge", "judge", "endpoint", "x")
    known = [Model(f"m{n}", f"model-{n}", "checkpoint", "x") for n in range(models)]
    ledger.add(judge, *known)
    for bench in range(benchmarks):
        name = f"bench_{bench}"
        for number in range(questions):
            id_ = f"q{number}"
            ledger.add(Question(name, "1", id_, f"category {number % 8}", (text(rng, 40),), None, (), None))
            for model in known:
                key = f"{name}-{id_}-{model.id}"
                ledger.add(
                    Answer(key, model.id, name, "1", id_, 1, "\n\n".join(text(rng, 60) for _ in range(4)), "stop", 60,
                           300, 1.0, 0, Sampling()),
                    JudgeRequest(f"r-{key}", f"j-{key}", judge.id, name, "1", id_, 1, model.id, None, "single", (key,),
                                 (Message("user", "Rate."),), Sampling(), "rating"),
                    Judgment(f"j-{key}", judge.id, f"{text(rng, 50)} [[7]]", "stop", (), 300, 60, 1.0, "judge"),
                )  # fmt: skip
        scores = [Score(m.id, name, "1", judge.id, None, "average", 7.0, 6.5, 7.5, questions, 0) for m in known]
        ledger.put_scores(scores, benchmark=name, version="1", provenance={})
    return models * benchmarks * questions


def opened(file: Path, *, times: int) -> tuple[float, float]:
    """Return the medians, in seconds, until the page is shown and until its answer browser works."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no Chromium here: apt-get install chromium")
    shown, ready = [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(times):
            page = browser.new_page()
            begun = time.perf_counter()
            page.goto(file.as_uri(), wait_until="domcontentloaded")
            shown.append(time.perf_counter() - begun)
            page.wait_for_selector("#question .column .text")
            ready.append(time.perf_counter() - begun)
            page.close()
        browser.close()
    return statistics.median(shown), statistics.median(ready)


def main() -> None:
    """Print one line a page: all in one file, and with what is too much for it beside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("models", 10), ("benchmarks", 3), ("questions", 334), ("times", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Ledger.open(folder / "fuseval.duckdb") as ledger:
            answers = fill(ledger, models=given.models, benchmarks=given.benchmarks, questions=given.questions)
            for title, inline in (("one file", INLINE), ("in parts", 1_000_000)):
                begun = time.perf_counter()
                files = write_page(ledger, folder / f"{title.replace(' ', '-')}.html", title=title, inline=inline)
                writing = time.perf_counter() - begun
                shown, ready = opened(files[0], times=given.times)
                size = files[0].stat().st_size / 1e6
                print(
                    f"{answers:,} answers, {title}: {size:.1f} MB in the page, {len(files) - 1} files beside it; "
                    f"written in {writing:.1f} s, shown after {shown:.2f} s, answers readable after {ready:.2f} s"
                )


if __name__ == "__main__":
    main()
