import csv
import json
import math
import os
import pathlib

import numpy as np
import pandas as pd
import pytest

from evals.arena_hard import judge_settings, load, read_answers
from evals.arena_published import resampled_rates
from evals.assets import AssetError, find
from evals.benchmark import VERDICT_COLUMNS, Evidence, Wanted, published_answer
from evals.records import Judgment
from evals.stats import mean_scores
from judges.replies import verdict

NOT_READ = pathlib.Path("no-such-cache")
V0_1_CONFIG = r"""
temperature: 0
max_tokens: 77
system_prompt: "Be \"fair\"."
prompt_template: ["Q: {question_1}\n1: {answer_1}\n2: {answer_2}"]
"""
V2_0_CONFIG = 'temperature: 0.0\nmax_tokens: 88\nprompt_template: "Q: {QUESTION}\\nA: {ANSWER_A}\\nB: {ANSWER_B}"\n'
JUDGE_UTILS = """
import this_would_fail
OWN_ANSWER = "Answer first."
JUDGE_SETTINGS = {
    "hard_prompt": {"baseline": "o3-mini-2025-01-31", "system_prompt": OWN_ANSWER},
    "creative_writing": {"baseline": "gemini-2.0-flash-001", "system_prompt": "Judge \\"well\\"."},
}
raise SystemExit
"""
LABELS = {"A>>B": 1.0, "A>B": 0.75, "A=B": 0.5, "B>A": 0.25, "B>>A": 0.0}


def written(folder, name, text):
    path = folder / "arena_hard" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def spoken(uid, text):
    return {"uid": uid, "model": "x", "messages": [
        {"role": "user", "content": "?"}, {"role": "assistant", "content": {"answer": text}}
    ]}  # fmt: skip


@pytest.fixture
def asset(tmp_path):
    """Both versions with a few questions; a file that is not there raises AssetError."""
    written(tmp_path, "v0.1/question.jsonl", jsonl(
        {"uid": uid, "category": "arena-hard-v0.1", "cluster": "c", "prompt": f"Do\u2028{{{uid}}}!"} for uid in "abcd"
    ))  # fmt: skip
    written(tmp_path, "v0.1/judge_config.yaml", V0_1_CONFIG)
    written(tmp_path, "v0.1/model_answer/gpt-4-0314.jsonl", jsonl(spoken(uid, f"of {uid}") for uid in "abcd"))
    parts = {"a": "coding", "b": "math", "c": "coding", "d": "creative_writing"}
    written(tmp_path, "v2.0/question.jsonl", jsonl(
        {"uid": uid, "prompt": "Do!", "subcategory": part,
         "category": "creative_writing" if part == "creative_writing" else "hard_prompt"}
        for uid, part in parts.items()
    ))  # fmt: skip
    written(tmp_path, "v2.0/arena-hard-v2.0.yaml", V2_0_CONFIG)
    written(tmp_path, "v2.0/judge_utils.py", JUDGE_UTILS)
    written(tmp_path, "v2.0/model_answer/o3-mini-2025-01-31.jsonl", jsonl([spoken("a", "mini")]))

    def locate(name):
        if not (tmp_path / name).is_file():
            raise AssetError(f"{name} is missing")
        return tmp_path / name

    return locate


@pytest.fixture
def mirror():
    """The offline mirror's files by name."""
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    return lambda name: find(name, cache=NOT_READ, mirror=pathlib.Path(os.environ["FUSEVAL_ASSETS"]))


def said(question, order, value, *, model="m", baseline="gpt", counts=True):
    """One verdict; ``order`` is 1 for the first game (baseline first) and 2 for the second."""
    return (model, "j", baseline, question, 1, {1: "baseline_first", 2: "model_first"}[order], value, counts)


def evidence(benchmark, verdicts, *, models=("m",), baseline="gpt", asked=None, texts=()):
    questions = benchmark.questions()
    ids = frozenset(asked or (q.id for q in questions))
    frame = pd.DataFrame(verdicts, columns=list(VERDICT_COLUMNS))
    answers = pd.DataFrame(texts, columns=["model", "question", "turn", "text"])
    return Evidence(questions, [Wanted(m, "j", baseline, ids) for m in models], frame, answers)


def values(items, metric="win_rate", model="m"):
    """Question -> (value, weight) of a metric, rounded."""
    rows = items[(items["metric"] == metric) & (items["model"] == model)]
    return {q: (round(v, 4), w) for q, v, w in zip(rows["question"], rows["value"], rows["weight"], strict=True)}


def weighted_mean(items, metric="win_rate", model="m"):
    rows = items[(items["metric"] == metric) & (items["model"] == model) & (items["weight"] > 0)]
    return float(np.average(rows["value"], weights=rows["weight"]))


def texts_of(models, questions, seed=0):
    rng = np.random.default_rng(seed)
    return [(m, q, 1, "word " * rng.integers(1, 80) + "**b** " * rng.integers(0, 5)) for m in models for q in questions]


def test_a_version_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"arena_hard has no version 'v1'.*v0\.1, v2\.0"):
        load(pathlib.Path, version="v1")


def test_nothing_is_read_before_it_is_needed():
    def locate(name):
        raise AssertionError(name)

    for version in (None, "v2.0"):
        assert load(locate, version=version).against == "published"


def test_questions_keep_their_ids_categories_and_line_separators(asset):
    first = load(asset).questions()[0]
    assert (first.benchmark, first.version, first.id, first.category) == ("arena_hard", "v0.1", "a", "arena-hard-v0.1")
    assert first.turns == ("Do\u2028{a}!",)


def test_answers_are_drawn_greedily(asset):
    drawn = [(b := load(asset, version=v)).sampling(b.questions()[0]) for v in ("v0.1", "v2.0")]
    assert [(s.temperature, s.max_tokens) for s in drawn] == [(0.0, 4096), (0.0, 8196)]


def test_the_baselines_are_the_published_ones(asset):
    old, new = load(asset), load(asset, version="v2.0")
    assert {old.baseline(q) for q in old.questions()} == {"gpt-4-0314"}
    names = dict.fromkeys("abc", "o3-mini-2025-01-31") | {"d": "gemini-2.0-flash-001"}
    assert {q.id: new.baseline(q) for q in new.questions()} == names
    assert old.baseline_answers("gpt-4-0314")["b"] == ("of b",)


def test_a_baseline_that_is_not_at_hand_is_an_asset_error(asset):
    with pytest.raises(AssetError, match="gemini"):
        load(asset, version="v2.0").baseline_answers("gemini-2.0-flash-001")
    with pytest.raises(ValueError, match="no baseline 'gpt-5'; its baselines: gpt-4-0314"):
        load(asset).baseline_answers("gpt-5")


def test_both_published_forms_of_answers_are_read(tmp_path):
    old = {"question_id": "q", "model_id": "x", "choices": [{"index": 0, "turns": [{"content": "a\u2028b"}]}]}
    (tmp_path / "f").write_text(jsonl([old, spoken("r", "c")]), encoding="utf-8")
    assert read_answers(tmp_path / "f") == {"q": ("a\u2028b",), "r": ("c",)}


def asked(benchmark, question, *, model="mine {QUESTION} {answer_2}", baseline="theirs {", name="m"):
    mine = [published_answer(question, model=name, turn=1, text=model)]
    return benchmark.requests(question, mine, [published_answer(question, model="gpt", turn=1, text=baseline)], "j")


def test_the_baseline_is_assistant_a_in_the_first_game_and_b_in_the_second(asset):
    benchmark = load(asset)
    one, two = asked(benchmark, benchmark.questions()[0])
    assert (one.order, two.order) == ("baseline_first", "model_first")
    assert [m.role for m in one.messages] == ["system", "user"]
    assert one.messages[0].content == 'Be "fair".'
    assert one.messages[1].content == "Q: Do\u2028{a}!\n1: theirs {\n2: mine {QUESTION} {answer_2}"
    assert two.messages[1].content == "Q: Do\u2028{a}!\n1: mine {QUESTION} {answer_2}\n2: theirs {"
    assert {(r.reply, r.sampling.temperature, r.sampling.max_tokens) for r in (one, two)} == {("five_verdicts", 0, 77)}
    assert one.answers == two.answers


def test_each_category_of_the_second_version_has_its_system_prompt(asset):
    benchmark = load(asset, version="v2.0")
    hard, creative = (asked(benchmark, benchmark.questions()[place])[0] for place in (0, 3))
    assert (hard.messages[0].content, creative.messages[0].content) == ("Answer first.", 'Judge "well".')
    assert hard.messages[1].content == "Q: Do!\nA: theirs {\nB: mine {QUESTION} {answer_2}"
    assert (hard.reply, hard.sampling.max_tokens) == ("five_verdicts_last", 88)


def test_a_model_is_never_judged_against_itself(asset):
    benchmark = load(asset)
    assert asked(benchmark, benchmark.questions()[0], name="gpt") == ()


def test_judge_settings_of_another_form_are_refused(tmp_path):
    path = tmp_path / "judge_utils.py"
    path.write_text("JUDGE_SETTINGS = read()", encoding="utf-8")
    with pytest.raises(AssetError, match="holds no JUDGE_SETTINGS"):
        judge_settings(path)


def test_decisive_verdicts_weigh_three_times_and_say_no_more(asset):
    games = [said("a", 1, 1.0), said("a", 2, 0.25), said("b", 1, 0.75), said("b", 2, 0.5)]
    benchmark = load(asset)
    items = benchmark.score(evidence(benchmark, games)).items
    found = values(items)
    assert (found["a"], found["b"]) == ((75.0, 4.0), (75.0, 2.0))  # (3·1 + 0) / 4, (1 + ½) / 2
    assert weighted_mean(items) == pytest.approx(75.0)


def test_what_was_not_judged_or_not_read_is_missing(asset):
    benchmark = load(asset)
    games = [said("a", 1, math.nan), said("a", 2, math.nan), said("b", 1, 0.75)]
    rows = benchmark.score(evidence(benchmark, games, asked="abc")).items
    rows = rows[rows["metric"] == "win_rate"]
    assert rows["question"].tolist() == ["a", "b", "c"]
    assert rows["value"].isna().tolist() == [True, False, True]
    assert rows["weight"].tolist() == [0, 1, 0]


def test_of_an_unreadable_game_the_other_counts_in_the_first_version_alone(asset):
    for version, weight in (("v0.1", 3.0), ("v2.0", 0.0)):
        benchmark = load(asset, version=version)
        found = values(benchmark.score(evidence(benchmark, [said("a", 1, math.nan), said("a", 2, 1.0)])).items)
        assert found["a"][1] == weight


def test_the_last_verdict_of_a_game_counts_and_stale_ones_do_not(asset):
    benchmark = load(asset)
    games = [said("a", 1, 0.0), said("a", 1, 0.75), said("a", 1, 0.25, counts=False)]
    assert values(benchmark.score(evidence(benchmark, games)).items)["a"] == (100.0, 1.0)


def test_games_of_a_model_with_itself_are_skipped(asset):
    benchmark = load(asset)
    games = [said("a", 1, 1.0, model="gpt"), said("a", 1, 0.5)]
    items = benchmark.score(evidence(benchmark, games, models=("gpt", "m"))).items
    assert set(items["model"]) == {"m"}


def test_other_baselines_and_judges_do_not_mix(asset):
    benchmark = load(asset)
    games = [said("a", 1, 0.75), said("a", 2, 0.0, baseline="other")]
    assert values(benchmark.score(evidence(benchmark, games)).items)["a"] == (100.0, 1.0)


def test_without_any_verdict_every_question_is_missing(asset):
    benchmark = load(asset)
    scored = benchmark.score(evidence(benchmark, []))
    assert scored.items["value"].isna().all()
    assert len(values(scored.items)) == 4
    assert tuple(scored.scores) == ()
    assert tuple(benchmark.like_published(evidence(benchmark, []))) == ()


def test_nothing_wanted_gives_nothing(asset):
    benchmark = load(asset)
    scored = benchmark.score(evidence(benchmark, [said("a", 1, 0.5)], models=()))
    assert scored.items.empty
    assert tuple(scored.scores) == ()


def test_categories_and_subcategories_have_win_rates_of_their_own(asset):
    benchmark = load(asset, version="v2.0")
    games = [
        said(q, order, value) for q, value in zip("abcd", (0.75, 0.25, 0.5, 0.75), strict=True) for order in (1, 2)
    ]
    items = benchmark.score(evidence(benchmark, games)).items
    found = {metric: weighted_mean(items, metric) for metric in items["metric"].unique()}
    assert found == pytest.approx({
        "win_rate": 62.5, "win_rate:hard_prompt": 50.0, "win_rate:creative_writing": 100.0,
        "win_rate:coding": 75.0, "win_rate:math": 0.0,
    })  # fmt: skip


def test_of_two_baselines_only_the_parts_are_told_apart(asset):
    benchmark = load(asset, version="v2.0")
    games = [said(q, order, 0.75, baseline="one" if q in "ab" else "other") for q in "abcd" for order in (1, 2)]
    wanted = [Wanted("m", "j", "one", frozenset("ab")), Wanted("m", "j", "other", frozenset("cd"))]
    known = evidence(benchmark, games)
    found = benchmark.score(Evidence(known.questions, wanted, known.verdicts, known.answers))
    assert "win_rate" not in set(found.items["metric"])
    published = benchmark.like_published(Evidence(known.questions, wanted, known.verdicts, known.answers))
    assert len({score.metric for score in published}) == 2


def test_an_unreadable_reply_after_a_readable_one_takes_nothing_away_and_a_lost_game_is_said(asset):
    benchmark = load(asset)
    games = [said("a", 1, 0.75), said("a", 1, math.nan), said("a", 2, math.nan), said("b", 1, 0.25), said("b", 2, 0.25)]
    found = benchmark.score(evidence(benchmark, games))
    assert weighted_mean(found.items, "win_rate") == pytest.approx(100 / 3)
    assert found.flags == {("m", "j", "gpt", "win_rate"): ("1 of 4 games missing",)}


def test_the_closed_form_of_the_star_is_the_full_fit(asset):
    from evals.bradley_terry import bradley_terry

    rng = np.random.default_rng(3)
    models = ("m", "n", "o")
    benchmark = load(asset)
    games = [said(q, o, rng.choice(list(LABELS.values())), model=m) for m in models for q in "abcd" for o in (1, 2)]
    items = benchmark.score(evidence(benchmark, games, models=models)).items
    value = np.array([g[6] for g in games])
    strengths = bradley_terry(
        [models.index(g[0]) for g in games], np.full(len(games), 3), (np.sign(value - 0.5) + 1) / 2,
        np.where((value == 0) | (value == 1), 3, 1), anchor=3,
    )  # fmt: skip
    rates = 100 / (1 + np.exp(-strengths[:3]))
    assert [weighted_mean(items, "win_rate", m) for m in models] == pytest.approx(rates.tolist(), abs=1e-6)


def test_style_control_is_reported_where_texts_are_known(asset):
    benchmark = load(asset)
    games = [said(q, o, v) for q, v in zip("abcd", (1.0, 0.25, 0.5, 0.75), strict=True) for o in (1, 2)]
    assert tuple(benchmark.score(evidence(benchmark, games)).scores) == ()
    scores = benchmark.score(evidence(benchmark, games, texts=texts_of(("m", "gpt"), "abc"))).scores
    assert [(s.metric, s.n, s.missing) for s in scores] == [("win_rate:style", 3, 1), ("win_rate:same_style", 3, 1)]
    assert all(0 < s.low < s.value < s.high < 100 for s in scores)


def test_style_control_of_a_model_without_texts_has_no_value(asset):
    benchmark = load(asset)
    games = [said(q, o, 0.75 if o == 1 else 0.25, model=m) for m in ("m", "n") for q in "abcd" for o in (1, 2)]
    known = evidence(benchmark, games, models=("m", "n"), texts=texts_of(("m", "gpt"), "abcd"))
    scores = {(s.model, s.metric): s for s in benchmark.score(known).scores}
    assert scores["m", "win_rate:style"].value == pytest.approx(50, abs=1)
    assert (scores["n", "win_rate:style"].value, scores["n", "win_rate:style"].missing) == (None, 4)


def test_published_resamples_are_those_of_pandas_sample():
    halves = [np.array([0, 0, 2, 1, 2, 0]), np.array([2, 2, 1])]
    table = pd.DataFrame({"model": [0] * 6 + [1] * 3, "value": np.concatenate(halves) / 2})
    drawn = np.random.RandomState(7)
    theirs = [
        table.sample(frac=1.0, replace=True, random_state=drawn).groupby("model")["value"].mean().reindex([0, 1])
        for _ in range(50)
    ]
    assert resampled_rates(halves, rounds=50, seed=7) == pytest.approx(np.array(theirs), nan_ok=True)


def test_published_figures_of_the_second_version_rest_on_its_own_percentiles(asset):
    benchmark = load(asset, version="v2.0")
    games = [said(q, o, v) for q, v in zip("abcd", (1.0, 0.25, 0.5, 0.75), strict=True) for o in (1, 2)]
    [score] = benchmark.like_published(evidence(benchmark, games))
    assert (score.metric, score.n, score.missing) == ("win_rate:published", 4, 0)
    assert score.value == pytest.approx(100 * (6 + 0 + 1 + 2) / 12)
    assert score.low < score.value < score.high


def test_the_published_interval_has_the_references_order_of_games(asset):
    benchmark = load(asset)
    rng = np.random.default_rng(5)
    games = [said(q, o, rng.choice(list(LABELS.values())), model=m) for m in "mn" for q in "cabd" for o in (1, 2)]
    turned = [game for pair in zip(games[1::2], games[::2], strict=True) for game in pair]  # second games first
    one, two = (benchmark.like_published(evidence(benchmark, g, models=("n", "m"))) for g in (games, turned))
    assert [s.model for s in one] == ["m", "n"]  # as their verdicts came
    assert one == two


def battles_as_verdicts(path, model="gpt-3.5-turbo-0125"):
    """The games of a battles file, where a decisive one stands three times."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    told = {}
    for row in rows:
        told.setdefault(row["question_id"], []).append({"model_a": 0.25, "tie": 0.5, "model_b": 0.75}[row["winner"]])
    games = []
    for question, all_of in told.items():  # 2, 4 or 6 rows: games of 1 or 3 each, the three alike
        three = len(all_of) == 6 or (len(all_of) == 4 and len(set(all_of[:3])) == 1)
        first, second = (all_of[:3], all_of[3:]) if three else (all_of[:1], all_of[1:])
        for order, copies in ((1, first), (2, second)):
            value = round(copies[0]) if len(copies) == 3 else copies[0]
            games.append(said(question, order, float(value), model=model, baseline="gpt-4-0314"))
    return games, rows


@pytest.fixture
def turbo(mirror):
    """The published battles of gpt-3.5-turbo-0125: benchmark, evidence, battles."""
    benchmark = load(mirror)
    games, rows = battles_as_verdicts(mirror("published/arena_hard/v0.1/gpt-3.5-turbo-0125.battles.jsonl"))
    return benchmark, evidence(benchmark, games, models=("gpt-3.5-turbo-0125",), baseline="gpt-4-0314"), rows


def test_a_published_score_is_reproduced(turbo, mirror):
    benchmark, known, rows = turbo
    items = benchmark.score(known).items
    items = items[items["metric"] == "win_rate"]
    assert len(rows) == 1414
    assert items["weight"].sum() == 1414
    assert (items["weight"] * items["value"] / 100).sum() == 258 + 144 / 2
    with mirror("arena_hard/v0.1/arena_hard_leaderboard_20240731.csv").open(encoding="utf-8") as file:
        [published] = [row for row in csv.DictReader(file) if row["model"] == "gpt-3.5-turbo-0125"]
    assert round(weighted_mean(items, "win_rate", "gpt-3.5-turbo-0125"), 4) == 23.3380
    assert [s.value for s in benchmark.like_published(known)] == [float(published["score"])] == [23.34]


def test_intervals_rest_on_questions(turbo):
    benchmark, known, _ = turbo
    scores = mean_scores(benchmark.score(known).items, benchmark="arena_hard", version="v0.1")
    [score] = [s for s in scores if s.metric == "win_rate"]
    assert (score.low - score.value, score.high - score.value) == pytest.approx((-3.25, 3.42), abs=0.05)
    assert (score.n, score.missing) == (500, 0)


def references_fit(table):
    """The rating of the model against its baseline as published: battles twice, a tie as one of each, no penalty."""
    from sklearn.linear_model import LogisticRegression

    twice = pd.concat([table, table], ignore_index=True)
    won = (twice["winner"] == "model_a").to_numpy(dtype=float)
    tied = (twice["winner"] == "tie").to_numpy()
    won[: len(table)][tied[: len(table)]] = 1.0
    rows = np.tile([math.log(10), -math.log(10)], (len(twice), 1))
    fitted = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-8).fit(rows, won)
    return 400 * (fitted.coef_[0][1] - fitted.coef_[0][0])


def test_the_published_interval_is_what_the_published_way_gives_on_these_battles(turbo):
    benchmark, known, rows = turbo
    table = pd.DataFrame(rows)
    drawn = np.random.RandomState(42)
    ratings = [references_fit(table.sample(frac=1.0, replace=True, random_state=drawn)) for _ in range(100)]
    low, high = 100 / (1 + 10 ** (-np.percentile(ratings, [2.5, 97.5]) / 400))
    [score] = benchmark.like_published(known)
    assert (score.low, score.high) == (round(low, 2), round(high, 2)) == (21.18, 25.06)
    # The leaderboard's -1.67, +1.93 come of the battles of its sixty models, which were resampled together.
    assert (score.low, score.high) == pytest.approx((23.34 - 1.67, 23.34 + 1.93), abs=0.5)
    assert 100 / (1 + 10 ** (-references_fit(table) / 400)) == pytest.approx(23.3380, abs=0.01)


@pytest.fixture
def llama(mirror):
    """The official judgment file of 82 questions, as rows."""
    path = mirror("published/arena_hard/v0.1/Meta-Llama-3.1-8B-Instruct.judgment.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def shown_as(assistant, prompt):
    start, end = (
        f"<|The Start of Assistant {assistant}'s Answer|>\n",
        f"\n<|The End of Assistant {assistant}'s Answer|>",
    )
    return prompt[prompt.rindex(start) + len(start) : prompt.rindex(end)]


def requests_of(benchmark, row, baseline):
    [question] = [q for q in benchmark.questions() if q.id == row["question_id"]]
    text = shown_as("B", row["games"][0]["user_prompt"])
    mine = [published_answer(question, model="llama", turn=1, text=text)]
    theirs = [published_answer(question, model="gpt-4-0314", turn=1, text=baseline[question.id][0])]
    return benchmark.requests(question, mine, theirs, "j")


def test_requests_are_the_published_ones_to_the_byte(llama, mirror):
    benchmark = load(mirror)
    baseline = benchmark.baseline_answers("gpt-4-0314")
    for row in llama:
        requests = requests_of(benchmark, row, baseline)
        assert [r.messages[1].content for r in requests] == [game["user_prompt"] for game in row["games"]]


def test_published_judgments_are_read_as_they_were_and_scored(llama, mirror):
    benchmark = load(mirror)
    baseline = benchmark.baseline_answers("gpt-4-0314")
    told = []
    for row in llama:
        for request, game in zip(requests_of(benchmark, row, baseline), row["games"], strict=True):
            read = verdict(request, Judgment("k", "j", game["judgment"], "stop", (), 0, 0, 0.0, "gpt-4-1106-preview"))
            first = LABELS.get(game["score"])  # of the answer shown first
            assert read.value == (first if first is None or read.order == "model_first" else 1 - first)
            told.append(said(read.question, 2 if read.order == "model_first" else 1, read.value))
    known = evidence(benchmark, told, asked=[row["question_id"] for row in llama])
    items = benchmark.score(known).items
    assert (len(told), sum(game[6] is None for game in told)) == (164, 2)
    assert round(weighted_mean(items), 2) == 37.50
    [score] = benchmark.like_published(known)
    assert score.value == 37.50


def test_the_second_versions_questions_are_all_there(mirror):
    benchmark = load(mirror, version="v2.0")
    questions = benchmark.questions()
    assert len(questions) == 750
    names = [benchmark.baseline(q) for q in questions]
    assert (names.count("o3-mini-2025-01-31"), names.count("gemini-2.0-flash-001")) == (500, 250)
    answers = benchmark.baseline_answers("o3-mini-2025-01-31")
    assert {q.id for q in questions if q.category == "hard_prompt"} <= answers.keys()
