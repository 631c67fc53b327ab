"""Other projects' files as plain rows: each schema is recognised, read without loss, and written as it is read."""

import json
import os
import pathlib
import unicodedata

import pytest

from results.interchange import alpaca_eval, arena_hard, fastchat, likely_kind, read_rows
from results.interchange.rows import (
    FormatError,
    file_name,
    file_names,
    first_row,
    put,
    raw_rows,
    without,
    write_lines,
    write_list,
)

SINGLE = {
    **{"question_id": 81, "model": "m", "judge": ["j", "single-v1"], "user_prompt": "p", "judgment": "Rating: [[7]]"},
    **{"score": 7, "turn": 1, "tstamp": 1.5},
}
PAIR = {
    **{"question_id": 81, "model_1": "m", "model_2": "b", "g1_winner": "model_1", "g2_winner": "error", "turn": 2},
    **{"judge": ["j", "pair-v2"], "g1_judgment": "[[A]]", "g2_judgment": "?", "g1_user_prompt": "p"},
}
ANSWER = {"question_id": 81, "answer_id": "x", "model_id": "m", "choices": [{"index": 0, "turns": ["one", "two"]}]}
OLD_ANSWER = {"question_id": "q", "model_id": "m", "choices": [{"turns": [{"content": "one", "token_len": 1}]}]}
NEW_ANSWER = {
    **{"uid": "q", "ans_id": "x", "model": "m"},
    "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": {"answer": "one"}}],
}
OLD_GAMES = {
    **{"question_id": "q", "model": "m", "judge": "j"},
    "games": [
        {"user_prompt": "p", "judgment": "[[A>>B]]", "score": "A>>B"},
        {"user_prompt": "p", "judgment": "[[A>B]] [[A=B]]", "score": None},
    ],
}
NEW_GAMES = {
    **{"uid": "q", "category": "c", "judge": "j", "model": "m", "baseline": "b"},
    "games": [
        {
            "score": "A<B",
            "judgment": {"answer": "[[A<B]]"},
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        },
        None,
    ],
}
ANNOTATION = {
    **{"instruction": "i", "output_1": "theirs", "generator_1": "b", "output_2": "mine", "generator_2": "m"},
    **{"annotator": "weighted", "preference": 1.25},
}


def battles(*winners, question="q"):
    raws = [{"question_id": question, "model_a": "b", "model_b": "m", "winner": winner} for winner in winners]
    rows, _ = read_rows("arena_hard", raws)
    return [[(g.order, g.said, g.text.text) for g in row.games] for row in rows]


@pytest.mark.parametrize(
    ("kind", "raw", "schema"),
    [
        ("fastchat", ANSWER, fastchat.ANSWER),
        ("fastchat", SINGLE, fastchat.SINGLE),
        ("fastchat", PAIR, fastchat.PAIR),
        ("arena_hard", OLD_ANSWER, arena_hard.ANSWER_OLD),
        ("arena_hard", NEW_ANSWER, arena_hard.ANSWER),
        ("arena_hard", OLD_GAMES, arena_hard.JUDGMENT_OLD),
        ("arena_hard", NEW_GAMES, arena_hard.JUDGMENT),
        ("alpaca_eval", ANNOTATION, alpaca_eval.ANNOTATION),
        ("alpaca_eval", {"instruction": "i", "output": "o", "generator": "m"}, alpaca_eval.OUTPUT),
    ],
)
def test_a_row_is_recognised_by_its_content(kind, raw, schema):
    rows, faults = read_rows(kind, [raw])
    assert ([row.schema for row in rows], faults, likely_kind(raw)) == ([schema], [], kind)


def test_a_row_of_none_of_the_schemas_is_named_and_the_others_are_read():
    rows, faults = read_rows("fastchat", [{"a": 1}, ANSWER, {**ANSWER, "choices": [{"turns": [1]}]}])
    assert [row.model for row in rows] == ["m"]
    assert faults[0] == "row 1 is none of fastchat's (a)"


def test_a_name_that_is_no_text_is_a_fault():
    rows, faults = read_rows("fastchat", [{**SINGLE, "model": 7}, {**SINGLE, "judgment": None}])
    assert rows == []
    assert all("need a text" in fault for fault in faults)


DEEP = json.loads("[" * 500 + "]" * 500)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        *(("fastchat", {**ANSWER, "choices": choices}) for choices in (5, None, "x", ["x"], [5], {"a": 1}, [{}], DEEP)),
        *(
            ("fastchat", {**ANSWER, "choices": [{"turns": turns}]})
            for turns in (None, 5, "two", {"a": "b"}, [1], [None])
        ),
        *(("fastchat", {**SINGLE, "score": score}) for score in ("abc", [7], {}, int("9" * 400))),
        *(("fastchat", {**SINGLE, "turn": turn}) for turn in (None, "x", 1.5, float("inf"), float("nan"), [1])),
        *(("fastchat", {**SINGLE, "judge": judge}) for judge in (None, [], 5)),
        *(("fastchat", {**SINGLE, "model": model}) for model in (None, 5, ["m"], DEEP)),
        ("fastchat", {**SINGLE, "judgment": DEEP}),
        ("fastchat", {**PAIR, "g1_judgment": 5}),
        *(("arena_hard", {**OLD_GAMES, "games": games}) for games in (None, 5, ["x", "y"], [{"judgment": 5}])),
        *(("arena_hard", {**NEW_GAMES, "games": [{"score": score}]}) for score in ([1], {"a": 1})),
        *(("arena_hard", {**OLD_ANSWER, "choices": choices}) for choices in (5, [], [{"turns": [{"text": "x"}]}])),
        *(("arena_hard", {**NEW_ANSWER, "messages": messages}) for messages in (5, ["x"], [{"role": "assistant"}])),
        *(("alpaca_eval", {**ANNOTATION, "output_2": text}) for text in (5, None, DEEP)),
        ("alpaca_eval", {**ANNOTATION, "preference": int("9" * 400)}),
        ("alpaca_eval", {**ANNOTATION, "annotator": 5}),
    ],
)
def test_a_row_with_values_of_another_kind_is_a_fault_with_its_place_and_reason(kind, raw):
    good = {"fastchat": SINGLE, "arena_hard": OLD_GAMES, "alpaca_eval": ANNOTATION}[kind]
    rows, faults = read_rows(kind, [good, raw, good])
    assert (len(rows), len(faults)) == (2, 1)
    assert faults[0].startswith("row 2 is no")
    assert len(faults[0]) < 400
    likely_kind(raw)  # is no error either


@pytest.mark.parametrize("winner", ["", "error", "model_c", "Tie", "tie (both bad)"])
def test_a_winner_that_there_is_not_is_a_fault_and_no_tie(winner):
    raws = [{"question_id": "q", "model_a": "b", "model_b": "m", "winner": w} for w in ("model_a", winner, "tie")]
    rows, faults = read_rows("arena_hard", raws)
    assert [g.said for row in rows for g in row.games] == [0.25, 0.5]
    told = f"winner {winner!r} is none of model_a, model_b, tie, tie (bothbad)"
    assert faults == [f"row 2 is not as arena_hard/battles rows are (ValueError: {told})"]


def test_ties_are_written_in_two_ways():
    assert [g[0][1] for g in battles("tie", "tie (bothbad)")] == [0.5, 0.5]


def test_names_can_be_written_in_utf_8_whatever_the_file_holds():
    raw = {**ANNOTATION, "generator_1": "b\ud800", "generator_2": "m\ud800", "annotator": "j\ud800"}
    [row], _ = read_rows("alpaca_eval", [raw])
    [game] = row.games
    names = [row.model, game.model, game.baseline, game.judge, *(said.model for said in row.conversations)]
    assert names == ["m\ufffd", "m\ufffd", "b\ufffd", "j\ufffd", "m\ufffd", "b\ufffd"]
    assert row.raw == raw


def test_of_a_single_rating_minus_one_says_nothing():
    rows, _ = read_rows("fastchat", [SINGLE, {**SINGLE, "score": -1}])
    assert [(g.said, g.turn, g.order, g.judge) for row in rows for g in row.games] == [
        (7.0, 1, "single", "j"),
        (None, 1, "single", "j"),
    ]


def test_of_a_pair_the_first_model_is_the_model_and_plays_first():
    [row], _ = read_rows("fastchat", [PAIR])
    assert [(g.model, g.baseline, g.order, g.said) for g in row.games] == [
        ("m", "b", "model_first", 1.0),
        ("m", "b", "baseline_first", None),
    ]


def test_arena_hards_first_game_shows_the_baseline_first():
    [row], _ = read_rows("arena_hard", [OLD_GAMES])
    assert [(g.order, g.said, g.reply) for g in row.games] == [
        ("baseline_first", 0.0, "five_verdicts"),
        ("model_first", None, "five_verdicts"),
    ]


def test_of_version_2_a_game_that_failed_is_counted_and_the_prompts_are_known():
    [row], _ = read_rows("arena_hard", [NEW_GAMES])
    [game] = row.games
    assert (row.unread, game.baseline, game.said, game.reply) == (1, "b", 0.75, "five_verdicts_last")
    assert (game.system.text, game.prompt.text, game.prompt.place) == ("s", "p", ("games", 0, "prompt", 1, "content"))


def test_alpaca_evals_baseline_is_output_1_and_the_preference_goes_from_1_to_2():
    [row], _ = read_rows("alpaca_eval", [ANNOTATION])
    [game] = row.games
    assert (game.baseline, game.said, game.reply, game.text.text) == ("b", 0.25, "preference", "1.25")
    assert game.shown == ("mine", "theirs")


@pytest.mark.parametrize(("preference", "said"), [(-1, None), (None, None), (float("nan"), None), (0, 0.5), (2, 1.0)])
def test_alpaca_evals_ways_to_say_nothing_and_its_old_tie(preference, said):
    [row], _ = read_rows("alpaca_eval", [{**ANNOTATION, "preference": preference}])
    assert row.games[0].said == said


@pytest.mark.parametrize("instruction", ["a", "b", "c", "d", "e"])
def test_stored_log_probabilities_are_read_in_the_order_that_the_seed_says(instruction):
    first = alpaca_eval.switched(instruction)  # then m is the model's
    pairs = [{"token": "m" if first else "M", "logprob": -0.5}, {"token": "x", "logprob": -2.0}]
    raw = {"text": "m", "logprobs": {"content": [{"top_logprobs": pairs}]}}
    [row], _ = read_rows(
        "alpaca_eval", [{**ANNOTATION, "instruction": instruction, "preference": 2.0, "raw_completion": raw}]
    )
    [game] = row.games
    assert (game.reply, game.order) == ("m_or_M", "model_first" if first else "baseline_first")


def test_log_probabilities_that_contradict_the_preference_leave_the_preference():
    raw = {"text": "m", "logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": 0.0}]}]}}
    [row], _ = read_rows("alpaca_eval", [{**ANNOTATION, "raw_completion": raw}])
    assert (row.games[0].reply, row.games[0].text.text, row.games[0].said) == ("preference", "1.25", 0.25)


def test_a_decisive_verdict_stands_three_times_in_a_battles_file():
    assert battles("model_a", "model_b", "model_b", "model_b") == [
        [("baseline_first", 0.25, "[[A>B]]")],
        [("model_first", 1.0, "[[A>>B]]")],
        [],
        [],
    ]


@pytest.mark.parametrize(
    ("winners", "said"),
    [
        (["tie", "tie"], [0.5, 0.5]),
        (["model_b"], [0.75]),
        (["model_b"] * 3, [1.0]),
        (["model_a"] * 2, [0.25, 0.25]),
        (["model_a"] * 3 + ["tie"], [0.0, 0.5]),
        (["model_a"] * 3 + ["model_b"] * 3, [0.0, 1.0]),
        (["tie"] * 4, [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_battles_are_read_back_into_two_verdicts_where_that_can_be(winners, said):
    assert [value for games in battles(*winners) for _, value, _ in games] == said


def test_one_models_battles_need_not_lie_together():
    raws = [
        {"question_id": q, "model_a": "b", "model_b": model, "winner": winner}
        for winner in ("model_a", "model_b")
        for model in ("m", "n")
        for q in ("1", "2")
    ]
    rows, _ = read_rows("arena_hard", raws)
    assert [[g.said for g in row.games] for row in rows] == [[0.25]] * 4 + [[0.75]] * 4


SINGLE_1 = (
    "[Instruction]\nJudge.\n\n[Question]\nWhy?\n\n"
    "[The Start of Assistant's Answer]\n{0}\n[The End of Assistant's Answer]"
)
REFERENCE_1 = SINGLE_1.replace(
    "Why?\n\n", "Why?\n\n[The Start of Reference Answer]\nr\n[The End of Reference Answer]\n\n"
)
PAIR_1 = (
    "[User Question]\nWhy?\n\n[The Start of Assistant A's Answer]\n{0}\n[The End of Assistant A's Answer]\n\n"
    "[The Start of Assistant B's Answer]\n{1}\n[The End of Assistant B's Answer]"
)
TALK = (
    "<|The Start of Assistant {0}'s Conversation with User|>\n\n### User:\nWhy?\n\n### Assistant {0}:\n{1}\n\n"
    "### User:\nStill?\n\n### Assistant {0}:\n{2}\n\n<|The End of Assistant {0}'s Conversation with User|>"
)
HARD = (
    "<|User Prompt|>\nWhy?\n\n<|The Start of Assistant A's Answer|>\n{0}\n<|The End of Assistant A's Answer|>\n\n"
    "<|The Start of Assistant B's Answer|>\n{1}\n<|The End of Assistant B's Answer|>"
)
ODD = [
    "Because.",
    "",
    "\n\n",
    "[[10]] {0} [The End of Assistant's Answer]\n",
    "\u2028 [The Start of Assistant's Answer]\n",
]


@pytest.mark.parametrize("answer", ODD)
@pytest.mark.parametrize("prompt", [SINGLE_1, REFERENCE_1])
def test_the_answer_is_read_out_of_fastchats_prompts(prompt, answer):
    found = fastchat.shown(prompt.replace("{0}", answer), ["Why?", "Still?"], turn=1, paired=False)
    assert found == [((answer,),)]


@pytest.mark.parametrize("answer", ODD)
def test_both_answers_are_read_out_of_a_pairs_prompt(answer):
    first = PAIR_1.replace("{0}", answer).replace("{1}", "No.")
    assert fastchat.shown(first, ["Why?"], turn=1, paired=True) == [((answer,), ("No.",))]
    both = TALK.format("A", answer, "2") + "\n\n\n" + TALK.format("B", "3", answer)
    assert fastchat.shown(both, ["Why?", "Still?"], turn=2, paired=True) == [((answer, "2"), ("3", answer))]
    alone = TALK.format("A", answer, "2")
    assert fastchat.shown("[The Start of Reference]\n" + alone, ["Why?", "Still?"], turn=2, paired=False) == [
        ((answer, "2"),)
    ]
    assert arena_hard.shown(HARD.replace("{0}", answer).replace("{1}", "b"), ["Why?"]) == [((answer,), ("b",))]


def test_an_answer_that_quotes_the_prompts_own_marks_leaves_several_ways_to_read_it():
    mark = "\n[The End of Assistant A's Answer]\n\n[The Start of Assistant B's Answer]\n"
    ways = fastchat.shown(PAIR_1.format(f"a{mark}b", "c"), ["Why?"], turn=1, paired=True)
    assert ways == [(("a",), (f"b{mark}c",)), ((f"a{mark}b",), ("c",))]


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("paired", [True, False])
def test_a_prompt_about_another_question_or_of_another_form_is_not_read(turn, paired):
    for prompt in (SINGLE_1, PAIR_1, TALK, "What?"):
        assert fastchat.shown(prompt, ["Who?", "Where?"], turn=turn, paired=paired) == []
    assert arena_hard.shown(HARD, ["Who?"]) == []


def test_texts_are_taken_out_of_a_copy_and_put_back():
    raw = {"a": [{"b": "x", "c": 1}, {"b": "y"}], "d": "z", "e": {"f": "w"}}
    before = json.loads(json.dumps(raw))
    places = [("a", 0, "b"), ("a", 1, "b"), ("d",)]
    less = without(raw, places)
    assert (less, raw) == ({"a": [{"b": None, "c": 1}, {"b": None}], "d": None, "e": {"f": "w"}}, before)
    for place, text in zip(places, ("x", "y", "z"), strict=True):
        put(less, place, text)
    assert less == raw


def test_json_lines_may_hold_line_separators_and_lone_surrogates(tmp_path):
    rows = [{"text": "a\u2028b\x85c"}, {"text": "\ud800"}]
    write_lines(tmp_path / "new" / "file.jsonl", rows)
    assert raw_rows(tmp_path / "new" / "file.jsonl") == rows
    write_list(tmp_path / "list.json", rows)
    assert raw_rows(tmp_path / "list.json") == rows == json.loads((tmp_path / "list.json").read_text())


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}\n3\n', "[{]"])
def test_what_is_no_rows_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(FormatError, match=r"rows\.jsonl"):
        raw_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe\x00\x01", b'{"a": "\xe9"}', b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b"[" * 200_000],
    ids=["binary", "latin-1", "deep object", "deep list"],
)
def test_a_file_that_is_no_utf_8_or_nested_too_deeply_is_an_error_that_names_it(tmp_path, data):
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(FormatError, match=r"rows\.jsonl"):
        raw_rows(tmp_path / "rows.jsonl")
    assert first_row(tmp_path / "rows.jsonl") is None


def test_lines_that_are_no_rows_can_be_left_out_and_told(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"b": ' + "9" * 5000 + '}\n[]\n{"c": 2}\n{"cut')
    faults = []
    assert raw_rows(tmp_path / "rows.jsonl", faults=faults) == [{"a": 1}, {"c": 2}]
    assert [fault.split(" of ")[0] for fault in faults] == ["line 2", "line 3", "line 5"]
    (tmp_path / "rows.json").write_text('[{"a": 1}, 5]')
    assert raw_rows(tmp_path / "rows.json", faults=faults) == [{"a": 1}]
    assert faults[3].endswith("is a JSON list, but not only of objects")


def test_a_file_without_any_row_is_one_error_however_many_lines_it_has(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"a": [1, 2]}, indent=1))
    with pytest.raises(FormatError, match="line 1 of"):
        raw_rows(tmp_path / "rows.json", faults=[])


def test_no_two_names_share_a_file_not_even_where_case_does_not_count():
    names = ["a/b", "a__b", "A__B", "plain", "n" * 300, "n" * 299, "e\u0301", "\xe9", "x.", "x", "\U0001f600" * 90, ""]
    names.append(file_names(names)["a/b"])  # and one that is called as a collision is told apart
    found = file_names(names)
    assert len({unicodedata.normalize("NFC", part).casefold() for part in found.values()}) == len(names)
    assert found["plain"] == "plain"
    assert found["a/b"].startswith("a__b-")
    assert max(len(part.encode()) for part in found.values()) < 130


@pytest.mark.parametrize("name", ["a/b", "..", "../../x", "C:\\x", "", "\x00", "." * 200, "/" * 99])
def test_a_models_name_cannot_leave_the_folder(name):
    assert pathlib.Path("folder", file_name(name)).parent == pathlib.Path("folder")
    assert file_name(name) not in ("", ".", "..")


PUBLISHED = [
    "published/mt_bench/model_judgment/phi-3-dpo.gpt-4_single.jsonl",
    "published/mt_bench/model_judgment/phi-3_vs_phi-3-dpo.gpt-4_pair.jsonl",
    "published/arena_hard/v0.1/Meta-Llama-3.1-8B-Instruct.judgment.jsonl",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_prompt_can_be_read(name):
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    mirror = pathlib.Path(os.environ["FUSEVAL_ASSETS"])
    questions = {str(q["question_id"]): q["turns"] for q in raw_rows(mirror / "mt_bench/question.jsonl")}
    questions |= {q["uid"]: [q["prompt"]] for q in raw_rows(mirror / "arena_hard/v0.1/question.jsonl")}
    raws = raw_rows(mirror / name)
    rows, faults = read_rows(str(likely_kind(raws[0])), raws)
    assert (len(rows), faults) == (len(raws), [])
    for game in (g for row in rows for g in row.games):
        turns = questions[game.question]
        if "arena" in name:
            ways = arena_hard.shown(game.prompt.text, turns)
        else:
            ways = fastchat.shown(game.prompt.text, turns, turn=game.turn, paired=game.order != "single")
        assert len(ways) == 1
