"""Other projects' files through the ledger: nothing is lost, nothing is added twice, and published figures come out."""

import json
import os
import pathlib

import pytest

from evals.assets import AssetError, find
from evals.benchmark import judge_request, published_answer, published_model
from evals.mt_bench import load
from evals.records import Judgment, Message, Sampling
from fuseval import exchange
from fuseval.config import ConfigError
from fuseval.scoring import score
from judges.replies import verdict
from results.errors import LedgerError
from results.evidence import current_answers
from results.interchange import likely_kind
from results.interchange.export import NOT_THERE
from results.interchange.rows import raw_rows, write_lines, write_list
from results.store import Ledger

ASKED = {"81": ["Why?", "Still?"], "82": ["One and one?", "And twice?"]}
WINNERS = ["model_b", "model_b", "model_b", "tie", "model_a"]
FILES = {
    "mt_bench/question.jsonl": [
        {"question_id": 81, "category": "writing", "turns": ASKED["81"]},
        {"question_id": 82, "category": "math", "turns": ASKED["82"]},
    ],
    "mt_bench/reference_answer/gpt-4.jsonl": [{"question_id": 82, "choices": [{"turns": ["two", "four"]}]}],
    "mt_bench/reference_answer/gpt-4-0125-preview.jsonl": [{"question_id": 82, "choices": [{"turns": ["2", "4"]}]}],
    "arena_hard/v0.1/question.jsonl": [
        {"uid": "a1", "category": "arena-hard-v0.1", "cluster": "c", "prompt": "Why?"},
        {"uid": "a2", "category": "arena-hard-v0.1", "cluster": "c", "prompt": "How?"},
    ],
    "arena_hard/v0.1/model_answer/gpt-4-0314.jsonl": [
        {"uid": uid, "model": "gpt-4-0314", "messages": [{"role": "assistant", "content": {"answer": f"base {uid}"}}]}
        for uid in ("a1", "a2")
    ],
    "arena_hard/v2.0/question.jsonl": [
        {"uid": "b1", "category": "hard_prompt", "subcategory": "math", "prompt": "Prove."}
    ],
}
BASELINE = [
    {"dataset": "d", "instruction": text, "output": f"base {n}", "generator": "gpt4_1106_preview"}
    for n, text in enumerate(["Do.", "Say.", "Do."])
]


@pytest.fixture
def asset(tmp_path):
    folder = tmp_path / "assets"
    for name, rows in FILES.items():
        write_lines(folder / name, rows)
    write_list(folder / "alpaca_eval/alpaca_eval_gpt4_baseline.json", BASELINE)
    return lambda name: folder / name


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        yield opened


@pytest.fixture
def take(ledger, asset, tmp_path):
    """Import rows as one file of this kind; returns what is told of the file."""

    def imported(kind, *rows, model=None, name="rows.jsonl", asset=asset):
        write_lines(tmp_path / "in" / name, rows)
        [told] = exchange.import_files(
            ledger, kind, [tmp_path / "in" / name], asset=asset, model=model, watch=lambda *_: None
        )
        return told

    return imported


@pytest.fixture
def mirror():
    """The offline mirror: its folder, and its files by name."""
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    folder = pathlib.Path(os.environ["FUSEVAL_ASSETS"])
    return folder, lambda name: find(name, cache=pathlib.Path("no-such-cache"), mirror=folder)


def rating(answer="Because.", *, turn=1, value=7, question=81, model="m", time=1.0):
    asked = ASKED[str(question)]
    if turn == 1:
        prompt = (
            f"[Question]\n{asked[0]}\n\n[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
        )
    else:
        talk = "\n\n".join(
            f"### User:\n{q}\n\n### Assistant A:\n{a}" for q, a in zip(asked, ("Because.", answer), strict=True)
        )
        who = "Assistant A's Conversation with User|>"
        prompt = f"<|The Start of {who}\n\n{talk}\n\n<|The End of {who}"
    return {
        **{"question_id": question, "model": model, "judge": ["j", "single-v1"], "user_prompt": prompt},
        **{"judgment": f"So: [[{value}]]", "score": value, "turn": turn, "tstamp": time},
    }


def answers(*turns, model="m", question=81):
    return {"question_id": question, "answer_id": "x", "model_id": model, "choices": [{"index": 0, "turns": [*turns]}]}


def fought(*winners, question="a1", model="m"):
    return [{"question_id": question, "model_a": "gpt-4-0314", "model_b": model, "winner": w} for w in winners]


def annotation(instruction, preference, *, model="m", annotator="weighted_alpaca_eval_gpt4_turbo", output="mine"):
    return {
        **{"instruction": instruction, "output_1": "base", "generator_1": "gpt4_1106_preview", "output_2": output},
        **{"generator_2": model, "annotator": annotator, "preference": preference, "price_per_example": 0.5},
    }


def count(ledger):
    tables = ("models", "questions", "answers", "judge_requests", "judgments", "verdicts", "imported", "selections")
    return {table: ledger.sql(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def values(ledger):
    rows = ledger.sql("SELECT question, turn, value FROM verdicts ORDER BY ALL").fetchall()
    return [(question, turn, value) for question, turn, value in rows]


def metric(ledger, name, model="m"):
    query = "SELECT value FROM leaderboard WHERE metric = ? AND name = ?"
    return [value for (value,) in ledger.sql(query, name, model).fetchall()]


def current(ledger, benchmark, version, model="m"):
    frame = current_answers(ledger, benchmark=benchmark, version=version)
    mine = frame[frame["model"] == published_model(model).id]
    return dict(zip(zip(mine["question"], mine["turn"], strict=True), mine["text"], strict=True))


def test_a_file_imported_twice_adds_nothing(ledger, take):
    rows = [rating(), rating(turn=2), rating()]
    first = take("fastchat", *rows)
    before = count(ledger)
    second = take("fastchat", *rows, name="copy.jsonl")
    assert (first["new"], second["new"], count(ledger)) == (5, 0, before)


def test_a_repeated_judgment_is_kept_as_often_as_the_file_has_it(ledger, take):
    take("fastchat", rating(time=1.0), rating(time=2.0))
    assert values(ledger) == [("81", 1, 7.0), ("81", 1, 7.0)]


def test_of_a_longer_file_only_what_is_new_is_added(ledger, take):
    take("fastchat", rating())
    told = take("fastchat", rating(), rating(turn=2, answer="Yes."), rating(time=2.0))
    assert (told["judgments"], told["new"]) == (3, 3)  # two judgments, one answer
    assert len(values(ledger)) == 3


def test_answers_are_read_out_of_the_prompts(ledger, take):
    take("fastchat", rating("A\u2028B\n"), rating("Yes.", turn=2))
    assert {a.text for a in ledger.answers()} == {"A\u2028B\n", "Because.", "Yes."}


def test_a_turn_that_was_not_judged_is_stood_in_for_so_that_the_other_counts(ledger, take, asset):
    take("fastchat", rating(value=9))
    score(ledger, asset=asset)
    assert metric(ledger, "turn_1") == [9.0]
    assert [a.text.startswith(NOT_THERE) for a in ledger.answers()] == [False, True]


def test_the_real_answer_takes_a_stand_ins_place(ledger, take):
    take("fastchat", rating("Because."))
    take("fastchat", answers("Because.", "Yes."), name="answers.jsonl")
    assert current(ledger, "mt_bench", "1") == {("81", 1): "Because.", ("81", 2): "Yes."}


@pytest.mark.parametrize("answers_first", [True, False])
def test_judgments_of_answers_that_were_made_again_count_in_fastchats_average_only(ledger, take, asset, answers_first):
    stale = [rating("Old.", value=1), rating("Old!", turn=2, value=1)]
    fresh = [rating("Because.", value=8), rating("Yes.", turn=2, value=6)]
    if answers_first:
        take("fastchat", answers("Because.", "Yes."), name="answers.jsonl")
    take("fastchat", *stale, *fresh)
    if not answers_first:
        take("fastchat", answers("Because.", "Yes."), name="answers.jsonl")
    score(ledger, asset=asset)
    assert (metric(ledger, "average"), metric(ledger, "average:fastchat")) == ([7.0], [4.0])


def test_the_references_in_the_prompts_tell_the_version(ledger, take):
    def with_reference(text):
        row = rating("3", question=82)
        start = "[The Start of Assistant's"
        known = f"[The Start of Reference Answer]\n{text}\n[The End of Reference Answer]\n\n{start}"
        return {**row, "user_prompt": row["user_prompt"].replace(start, known)}

    def both(text):
        return {**with_reference(text), "model": "n"}

    assert take("fastchat", with_reference("two"))["versions"] == "1"
    assert take("fastchat", with_reference("2"), rating())["versions"] == "1-gpt-4-0125-preview"
    assert take("fastchat", with_reference("zwei"))["versions"] == "1"
    assert take("fastchat", with_reference("2"), both("two"))["versions"] == "1, 1-gpt-4-0125-preview"


def test_the_references_of_most_prompts_tell_the_version_where_sets_have_some_in_common(take, asset):
    file = asset("mt_bench/reference_answer/gpt-4-0125-preview.jsonl")
    write_lines(file, [{"question_id": 82, "choices": [{"turns": ["two", "vier"]}]}])
    first = rating("two", question=82)
    known = "[The Start of Reference Answer]\ntwo\n[The End of Reference Answer]\n\n[The Start of Assistant's"
    first["user_prompt"] = first["user_prompt"].replace("[The Start of Assistant's", known)
    second = rating("four", question=82, turn=2)
    said = "### Reference answer:"
    talk = f"### User:\n{ASKED['82'][0]}\n\n{said}\ntwo\n\n### User:\n{ASKED['82'][1]}\n\n{said}\nvier"
    block = f"<|The Start of Reference Answer|>\n\n{talk}\n\n<|The End of Reference Answer|>\n\n\n"
    second["user_prompt"] = block + second["user_prompt"]
    assert take("fastchat", first)["versions"] == "1"
    assert take("fastchat", first, second)["versions"] == "1-gpt-4-0125-preview"


def test_a_reference_that_only_the_answer_holds_tells_nothing(take):
    row = rating("2, not 4 [The Start of Reference Answer]\n2\n[The End of Reference Answer]", question=82)
    assert take("fastchat", row)["versions"] == "1"


def test_what_the_file_says_otherwise_than_our_reader_is_counted(take):
    told = take("fastchat", rating(), {**rating(question=82), "score": -1}, {**rating(turn=2), "judgment": "No."})
    assert (told["differ"], told["unreadable"]) == (2, 1)


def test_a_file_of_another_project_or_question_is_reported(take):
    told = take("fastchat", *fought("tie"))
    assert (told["recognised"], told["why"]) == (None, "looks like one of arena_hard's files: import it as that")
    assert take("fastchat", {**rating(), "question_id": 99})["why"] == "mt_bench has no question '99'"
    assert "no question 'Sing.'" in take("alpaca_eval", annotation("Sing.", 1.5), annotation("Do.", 1.5))["why"]


def test_a_broken_file_is_reported_and_the_others_are_imported(ledger, asset, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("{")
    write_lines(tmp_path / "in" / "b.jsonl", [rating()])
    told = exchange.import_files(ledger, "fastchat", [tmp_path / "in"], asset=asset, model=None, watch=lambda *_: None)
    assert [(row["recognised"], row["new"]) for row in told] == [(None, 0), ("fastchat single ratings", 2)]


BAD = {
    "binary.jsonl": b"\xff\xfe\x00\x01",
    "cut.jsonl": json.dumps(rating(question=82)).encode() + b'\n{"question_id": 8',
    "deep.jsonl": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n",
    "nearly.jsonl": json.dumps({**rating(), "extra": json.loads("[" * 600 + "]" * 600)}).encode(),
    "five.json": b"5",
    "none.jsonl": b"\n\n",
    "choices.jsonl": json.dumps(answers() | {"choices": 5}).encode(),
    "turns.jsonl": json.dumps(answers() | {"choices": [{"turns": None}]}).encode(),
    "score.jsonl": json.dumps(rating() | {"score": int("9" * 400)}).encode(),
    "turn.jsonl": json.dumps(rating() | {"turn": 10**30}).encode(),
}


def test_no_bad_file_keeps_a_folders_others_from_being_imported(ledger, asset, tmp_path):
    (tmp_path / "in").mkdir()
    for name, data in BAD.items():
        (tmp_path / "in" / name).write_bytes(data)
    write_lines(tmp_path / "in" / "z.jsonl", [rating()])
    told = exchange.import_files(ledger, "fastchat", [tmp_path / "in"], asset=asset, model=None, watch=lambda *_: None)
    by_name = {pathlib.Path(row["file"]).name: row for row in told}
    assert {name: (row["judgments"], row["skipped"]) for name, row in by_name.items()} == {
        **dict.fromkeys(BAD, (0, 1)), "none.jsonl": (0, 0), "cut.jsonl": (1, 1), "z.jsonl": (1, 0),
    }  # fmt: skip
    assert "line 2 of" in by_name["cut.jsonl"]["why"]
    assert "nested too deeply" in by_name["deep.jsonl"]["why"]
    assert values(ledger) == [("81", 1, 7.0), ("82", 1, 7.0)]


def test_a_turn_that_the_question_does_not_have_is_a_fault_of_that_row(ledger, take):
    turns = (0, -1, 3, 300_000, 10**30)
    rows = [{**rating(), "turn": turn} | prompt for turn in turns for prompt in ({}, {"user_prompt": None})]
    told = take("fastchat", *rows, rating(question=82))
    assert (told["judgments"], told["skipped"], len(ledger.answers())) == (1, 10, 2)
    assert told["why"].startswith("question 81 has 2 turns, the row says 0 (2 times); question 81 has")


def test_answers_beyond_a_questions_turns_are_left_out_and_counted(ledger, take):
    told = take("fastchat", answers("a", "b", "c", "d"))
    assert (told["answers"], told["skipped"]) == (2, 2)
    assert told["why"] == "question 81 has 2 turns, the row answers 4 (2 times)"
    assert [a.text for a in ledger.answers()] == ["a", "b"]


def test_an_unknown_question_is_a_fault_of_its_row_where_a_versions_questions_cannot_be_had(take, asset):
    def without_v2(name):
        if "v2.0" in name:
            raise AssetError(f"{name} is nowhere")
        return asset(name)

    rows = fought("tie") + fought("tie", question="zz")
    told = take("arena_hard", *rows, asset=without_v2)
    assert (told["judgments"], told["skipped"]) == (1, 1)
    why = "v2.0's questions cannot be had: arena_hard/v2.0/question.jsonl is nowhere"
    assert told["why"] == f"arena_hard has no question 'zz'; {why}"
    with pytest.raises(AssetError):
        take("arena_hard", *rows, asset=lambda name: without_v2(f"v2.0/{name}"), name="other.jsonl")


def test_a_name_that_no_terminal_can_show_is_made_one_that_it_can(ledger, take):
    row = {**rating(model="m\ud800"), "judge": ["j\ud800"]}
    told = take("fastchat", row)
    assert told["models"] == "m\ufffd"
    assert {m.name for m in ledger.models()} == {"m\ufffd", "j\ufffd"}
    assert take("fastchat", row, model="n\udc80", name="again.jsonl")["models"] == "n\ufffd"


def test_the_models_name_can_be_given_or_picked(ledger, take):
    assert take("fastchat", rating(), model="mine")["models"] == "mine"
    told = take("fastchat", rating(model="m"), rating(model="n"), model="n")
    assert (told["models"], told["skipped"]) == ("n", 1)
    unnamed = {"instruction": "Do.", "output": "mine"}
    assert take("alpaca_eval", unnamed)["why"] == "a row does not say whose it is: give --model NAME"
    assert take("alpaca_eval", unnamed, model="mine")["models"] == "mine"


def test_battles_become_verdicts_beside_the_published_baseline(ledger, take, asset):
    told = take("arena_hard", *fought(*WINNERS[:4]), *fought("model_a", "tie", question="a2"))
    assert (told["recognised"], told["judgments"]) == ("arena_hard battles", 4)
    assert sorted(value for _, _, value in values(ledger)) == [0.25, 0.5, 0.5, 1.0]
    score(ledger, asset=asset)
    assert metric(ledger, "win_rate") == [pytest.approx(100 * (3 * 1.0 + 0.5 + 0.0 + 0.5) / 6)]
    texts = {a.text for a in ledger.answers()}
    assert {"base a1", "base a2"} < texts and any(text.startswith(NOT_THERE) for text in texts)


def test_battles_are_about_the_answers_that_are_there(ledger, asset, tmp_path):
    said = {"uid": "a1", "model": "m", "messages": [{"role": "assistant", "content": {"answer": "mine"}}]}
    write_lines(tmp_path / "in" / "a.jsonl", fought("model_b", "tie"))
    write_lines(tmp_path / "in" / "b.jsonl", [said])
    exchange.import_files(ledger, "arena_hard", [tmp_path / "in"], asset=asset, model=None, watch=lambda *_: None)
    assert current(ledger, "arena_hard", "v0.1") == {("a1", 1): "mine"}
    assert not any(a.text.startswith(NOT_THERE) for a in ledger.answers())


def test_a_text_takes_a_stand_ins_place_whatever_was_judged(ledger, take, asset):
    said = {"uid": "a1", "model": "m", "messages": [{"role": "assistant", "content": {"answer": "mine"}}]}
    take("arena_hard", *fought("model_b", "tie"), name="battles.jsonl")
    assert current(ledger, "arena_hard", "v0.1")["a1", 1].startswith(NOT_THERE)
    take("arena_hard", said, name="answers.jsonl")
    assert current(ledger, "arena_hard", "v0.1") == {("a1", 1): "mine"}
    take("arena_hard", *fought("model_b", "tie"), name="battles.jsonl")
    assert current(ledger, "arena_hard", "v0.1") == {("a1", 1): "mine"}
    score(ledger, asset=asset)
    assert metric(ledger, "win_rate") == [pytest.approx(100 * (1.0 + 0.5) / 2)]  # said of the stand-in, and counts


@pytest.mark.parametrize("prompt", [None, "of another kind"])
def test_a_stand_in_never_takes_a_texts_place(ledger, take, prompt):
    take("fastchat", answers("Because.", "Yes."), name="answers.jsonl")
    take("fastchat", {**rating(), "user_prompt": prompt}, {**rating(turn=2), "user_prompt": prompt})
    assert current(ledger, "mt_bench", "1") == {("81", 1): "Because.", ("81", 2): "Yes."}


def test_of_texts_the_one_judged_last_counts_though_a_stand_in_was_judged_after_it(ledger, take):
    take("fastchat", rating("Old."), rating("New."), {**rating(), "user_prompt": "of another kind"})
    take("fastchat", answers("Old.", "Yes."), name="answers.jsonl")
    assert current(ledger, "mt_bench", "1") == {("81", 1): "New.", ("81", 2): "Yes."}


def test_version_2_is_told_by_the_questions(ledger, take):
    prompt = (
        "<|User Prompt|>\nProve.\n\n"
        "<|The Start of Assistant A's Answer|>\nbase\n<|The End of Assistant A's Answer|>\n\n"
        "<|The Start of Assistant B's Answer|>\nmine\n<|The End of Assistant B's Answer|>"
    )
    game = {"score": "B>>A", "judgment": {"answer": "[[B>>A]]"}, "prompt": [{"role": "user", "content": prompt}]}
    told = take(
        "arena_hard", {"uid": "b1", "model": "m", "judge": "j", "category": "hard_prompt", "games": [game, None]}
    )
    assert (told["versions"], told["unplayed"], told["differ"]) == ("v2.0", 1, 0)
    assert values(ledger) == [("b1", 1, 1.0)]
    assert current(ledger, "arena_hard", "v2.0") == {("b1", 1): "mine"}
    assert current(ledger, "arena_hard", "v2.0", "o3-mini-2025-01-31") == {("b1", 1): "base"}


def test_equal_instructions_are_told_apart_by_their_order(ledger, take):
    take("alpaca_eval", annotation("Do.", 1.25), annotation("Say.", 2.0), annotation("Do.", 1.5))
    assert values(ledger) == [("0", 1, 0.25), ("1", 1, 1.0), ("2", 1, 0.5)]


def test_another_annotator_is_another_version(ledger, take):
    told = take("alpaca_eval", annotation("Do.", 1.0, annotator="chatgpt_fn"), annotation("Say.", -1))
    assert (told["versions"], told["unreadable"]) == ("2.0, 2.0-chatgpt_fn", 1)


def test_annotations_of_an_annotator_that_is_not_in_the_package_are_imported_and_told(take):
    told = take("alpaca_eval", annotation("Do.", 1.25, annotator="mine"))
    assert (told["versions"], told["judgments"], told["skipped"]) == ("2.0-mine", 1, 0)
    assert told["why"].startswith("annotator 'mine' is none of the installed alpaca_eval package's")
    assert take("alpaca_eval", annotation("Do.", 1.25), name="other.jsonl")["why"] == ""


def test_annotations_beside_another_baseline_keep_whose_it_is(ledger, take):
    rows = [annotation("Do.", 1.25), {**annotation("Do.", 2.0), "generator_1": "text_davinci_003", "output_1": "x"}]
    take("alpaca_eval", *rows)
    said = ledger.sql("SELECT m.name, v.value FROM verdicts v JOIN models m ON m.id = v.baseline ORDER BY ALL")
    assert said.fetchall() == [("gpt4_1106_preview", 0.25), ("text_davinci_003", 1.0)]


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("fastchat", [rating(), rating(turn=2, answer="Yes." * 30), rating(), {**rating(), "extra": [1.10, None]}]),
        ("fastchat", [answers("Because. " * 20, "\ud800" * 80), answers("Because. " * 20, "\ud800" * 80)]),
        ("arena_hard", fought(*WINNERS[:4]) + fought("tie", "tie", question="a2") + fought("tie", model="n")),
        ("alpaca_eval", [annotation("Do.", 1.25, output="long " * 40), annotation("Say.", -1), annotation("Do.", 1.5)]),
    ],
)
def test_what_is_imported_is_exported_as_it_came(ledger, take, tmp_path, kind, rows):
    take(kind, *rows)
    files = exchange.export_files(ledger, kind, tmp_path / "out")
    assert rows in [raw_rows(file) for file in files]


def test_no_name_in_a_file_leads_an_export_out_of_its_folder(ledger, take, tmp_path):
    names = ["../../../x", "/x", "..", "C:\\x", "\x00"]
    game = {"score": "A>B", "judgment": "[[A>B]]", "user_prompt": "?"}
    take("alpaca_eval", *(annotation("Do.", 1.25, annotator=name, model=name) for name in names))
    take("fastchat", *(row for n in names for row in (answers("a", "b", model=n), {**rating(model=n), "judge": n})))
    take(
        "arena_hard",
        *({"uid": "a1", "model": n, "messages": [{"role": "assistant", "content": "a"}]} for n in names),
        *({"question_id": "a1", "model": n, "judge": n, "games": [game, game]} for n in names),
    )
    before = set(tmp_path.rglob("*"))
    for kind in ("alpaca_eval", "fastchat", "arena_hard"):
        assert exchange.export_files(ledger, kind, tmp_path / "a" / "b" / "out")
    assert all(path.is_relative_to(tmp_path / "a") for path in set(tmp_path.rglob("*")) - before)


def test_an_export_follows_no_link_out_of_its_folder(ledger, take, tmp_path):
    take("fastchat", answers("a", "b"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mt_bench").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="does not lie in"):
        exchange.export_files(ledger, "fastchat", tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()


def test_models_whose_names_make_the_same_path_have_a_file_each(ledger, take, tmp_path):
    names = ["a/b", "a__b", "A__b", "n" * 300, "n" * 301]
    take("fastchat", *(answers(name, name, model=name) for name in names))
    [whole, *_] = [exchange.export_files(ledger, "fastchat", tmp_path / each) for each in ("out", "again")]
    assert sorted(row["model_id"] for file in whole for row in raw_rows(file)) == sorted(names)
    assert len({file.name.casefold() for file in whole}) == len(names)
    assert max(len(file.name) for file in whole) < 130
    [alone] = exchange.export_files(ledger, "fastchat", tmp_path / "alone", models=["a/b"])
    assert alone.name in {file.name for file in whole}


def test_own_answers_and_ratings_become_fastchats_files(ledger, asset, tmp_path):
    benchmark = load(asset)
    question = benchmark.questions()[0]
    said = [published_answer(question, model="id", turn=n, text=f"answer {n}") for n in (1, 2)]
    asked = judge_request(
        question, judge="judge", answers=said[:1], order="single", messages=[Message("user", "Rate.")],
        sampling=Sampling(), reply="rating",
    )  # fmt: skip
    reply = Judgment(asked.judgment, "judge", "[[8]]", "stop", (), 0, 0, 0.0, "judge")
    ledger.add(*benchmark.questions(), *said, asked, reply, verdict(asked, reply))
    files = exchange.export_files(ledger, "fastchat", tmp_path / "out")
    [[answered], [rated]] = [raw_rows(file) for file in files]
    assert [file.relative_to(tmp_path / "out").as_posix() for file in files] == [
        "mt_bench/model_answer/id.jsonl",
        "mt_bench/model_judgment/judge_single.jsonl",
    ]
    assert (answered["question_id"], answered["choices"][0]["turns"]) == (81, ["answer 1", "answer 2"])
    assert (rated["judge"], rated["score"], rated["turn"]) == (["judge", "single-v1"], 8, 1)
    assert rated["user_prompt"] == "Rate."


@pytest.mark.parametrize("kind", ["arena_hard", "alpaca_eval"])
def test_own_judgments_are_read_back_as_the_same_verdicts(ledger, take, asset, tmp_path, kind):
    rows = fought(*WINNERS[:4]) if kind == "arena_hard" else [annotation("Do.", 1.25), annotation("Say.", 2.0)]
    take(kind, *rows)
    ledger.sql("DELETE FROM imported")  # as if these had been asked for by us
    files = exchange.export_files(ledger, kind, tmp_path / "out")
    [judged] = [file for file in files if file.parent.parent.name == "model_judgment" or file.stem == "annotations"]
    with Ledger.open(tmp_path / "other.duckdb") as other:
        exchange.import_files(other, kind, [judged], asset=asset, model=None, watch=lambda *_: None)
        assert values(other) == values(ledger)


def test_exports_hold_the_models_that_are_asked_for(ledger, take, tmp_path):
    take("fastchat", answers("a", "b", model="m"), answers("a", "b", model="n"))
    [file] = exchange.export_files(ledger, "fastchat", tmp_path / "out", models=["n"])
    assert file.name == "n.jsonl"
    with pytest.raises(ConfigError, match="Did you mean 'm'"):
        exchange.export_files(ledger, "fastchat", tmp_path / "out", models=["mm"])


def test_a_kind_or_path_that_there_is_not_is_an_error(ledger, asset, tmp_path):
    with pytest.raises(ConfigError, match="there are fastchat, alpaca_eval, arena_hard"):
        exchange.export_files(ledger, "mt_bench", tmp_path)
    with pytest.raises(ConfigError, match="nowhere"):
        exchange.import_files(
            ledger, "fastchat", [tmp_path / "nowhere"], asset=asset, model=None, watch=lambda *_: None
        )


PUBLISHED = [
    "published/mt_bench/model_answer/phi-3.jsonl",
    "published/mt_bench/model_judgment/phi-3-dpo.gpt-4_single.jsonl",
    "published/mt_bench/model_judgment/phi-3_vs_phi-3-dpo.gpt-4_pair.jsonl",
    "published/arena_hard/v0.1/Meta-Llama-3.1-8B-Instruct.judgment.jsonl",
    "published/arena_hard/v0.1/gpt-3.5-turbo-0125.battles.jsonl",
    "arena_hard/v0.1/model_answer/gpt-3.5-turbo-0125.jsonl",
    "arena_hard/v2.0/model_answer/o3-mini-2025-01-31.jsonl",
    "published/alpaca_eval/FuseChat-Llama-3.1-8B-Instruct/model_outputs.json",
    "published/alpaca_eval/FuseChat-Llama-3.1-8B-Instruct/annotations.json",
    "published/alpaca_eval/gemma-2b-it/annotations.json",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_go_through_unchanged_and_are_read_as_they_say(ledger, mirror, tmp_path, name):
    folder, asset = mirror
    raws = raw_rows(folder / name)
    kind = likely_kind(raws[0])
    [told] = exchange.import_files(ledger, kind, [folder / name], asset=asset, model=None, watch=lambda *_: None)
    assert (told["skipped"], told["differ"], told["unplayed"]) == (0, 0, 0)
    before = count(ledger)
    exchange.import_files(ledger, kind, [folder / name], asset=asset, model=None, watch=lambda *_: None)
    assert count(ledger) == before
    files = exchange.export_files(ledger, kind, tmp_path / "out")
    plain = [json.dumps(row) for row in raws]  # the order of keys, too
    assert plain in [[json.dumps(row) for row in raw_rows(file)] for file in files]


def test_published_ratings_with_the_other_references_are_of_the_other_version(ledger, mirror, tmp_path):
    folder, asset = mirror

    def blocks(name):
        rows = raw_rows(folder / f"mt_bench/reference_answer/{name}.jsonl")
        return {row["question_id"]: row["choices"][0]["turns"] for row in rows}

    old, new = blocks("gpt-4"), blocks("gpt-4-0125-preview")
    rows = raw_rows(folder / "published/mt_bench/model_judgment/phi-3-dpo.gpt-4_single.jsonl")
    for row in rows:
        before, mark, after = row["user_prompt"].partition("The Start of Reference Answer")
        for one, other in zip(old[row["question_id"]], new[row["question_id"]], strict=True) if mark else ():
            said, end, rest = after.partition("The End of Reference Answer")
            after = said.replace(one, other, 1) + end + rest
        row["user_prompt"] = before + mark + after
    write_lines(tmp_path / "rows.jsonl", rows)
    [told] = exchange.import_files(
        ledger, "fastchat", [tmp_path / "rows.jsonl"], asset=asset, model=None, watch=lambda *_: None
    )
    assert (told["versions"], told["judgments"], told["skipped"]) == ("1-gpt-4-0125-preview", 160, 0)
    texts = {(a.question, a.turn): a.text for a in ledger.answers()}
    assert len(texts) == 160 and not any(text.startswith(NOT_THERE) for text in texts.values())


@pytest.mark.slow
def test_published_figures_come_out_of_imported_files(ledger, mirror):
    folder, asset = mirror
    for kind, place in (
        ("fastchat", "published/mt_bench"),
        ("arena_hard", "published/arena_hard"),
        ("alpaca_eval", "published/alpaca_eval/FuseChat-Llama-3.1-8B-Instruct"),
    ):
        exchange.import_files(ledger, kind, [folder / place], asset=asset, model=None, watch=lambda *_: None)
    score(ledger, asset=asset)
    dpo, fused = "phi-3-dpo", "FuseChat-Llama-3.1-8B-Instruct"
    assert [metric(ledger, m, dpo) for m in ("average", "turn_1", "turn_2")] == [[8.2], [8.3625], [8.0375]]
    assert metric(ledger, "win_rate", "phi-3") == [pytest.approx(48.6301, abs=1e-4)]
    assert metric(ledger, "win_rate", "gpt-3.5-turbo-0125") == [pytest.approx(23.338, abs=1e-4)]
    assert metric(ledger, "win_rate", "Meta-Llama-3.1-8B-Instruct") == [pytest.approx(37.5)]
    assert metric(ledger, "win_rate", fused) == [pytest.approx(63.331583, abs=1e-6)]
    assert metric(ledger, "lc_win_rate", fused) == [pytest.approx(65.386231, abs=1e-6)]
