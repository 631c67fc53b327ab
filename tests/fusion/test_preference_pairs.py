"""What implicit fusion trains on: every rule on reward tables made by hand, and what holds of all inputs."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion import preference_records as data
from fusion.errors import RecipeError
from fusion.preference_pairs import build
from fusion.preference_records import PairParams, Prompt
from tests.fusion.reward_tables import ALL_SFT, NO_SFT, built, inputs, prompt, said


def ends(made):
    return [(pair.chosen.text, pair.rejected.text) for pair in made.pairs]


def why(made, what="prompt"):
    return [dropped.reason for dropped in made.dropped if dropped.what == what]


def test_the_defaults_are_fusechats():
    params = PairParams()
    assert (params.sft_share, params.min_gap, params.max_gap) == (0.4, 0.01, 0.1)
    assert (params.same_source, params.gap_kinds, params.pairs) == (True, ("chat", "math"), "best")
    assert (PairParams.wrpo("t").sft_share, PairParams.wrpo("t", seed=3).gap_kinds) == (1 / 3, ())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sft_share": 1.2}, "sft_share is 1.2; it must be a number from 0 to 1"),
        ({"sft_share": math.nan}, "sft_share is nan"),
        ({"set_shares": {"a": "x"}}, r"set_shares\['a'\] is 'x'"),
        ({"set_shares": [1]}, r"set_shares is \[1\]; it must give"),
        ({"min_gap": 0.2}, "min_gap is 0.2 and max_gap 0.1"),
        ({"max_gap": math.inf}, "max_gap is inf; it must be a finite number"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"same_source": 1}, "same_source is 1"),
        ({"pairs": "bets"}, "pairs is 'bets'; it must be one of best, widest, all. Did you mean 'best'"),
        ({"gap_kinds": ("maths",)}, "gap_kinds is 'maths'.*Did you mean 'math'"),
        ({"gap_kinds": "math"}, "gap_kinds is 'math'; it must be a list"),
        ({"sources": ("a", "a")}, "sources is .*different names"),
        ({"target": "t", "pairs": "all"}, "with a target there are quadruples"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_it_must_be(params, message):
    with pytest.raises(RecipeError, match=message):
        PairParams(**params)


def test_sft_learns_the_best_response_of_all_sources():
    made = built({"a": [0.1, 0.3], "b": [0.9, 0.2]}, **ALL_SFT)
    [example] = made.sft
    assert (example.best.text, example.best.source, example.best.reward) == ("b 0", "b", 0.9)
    assert not made.pairs and not made.dropped


def test_a_chat_pair_is_best_and_worst_of_one_source_within_the_gaps():
    made = built({"a": [0.50, 0.56, 0.53], "b": [0.1, 0.9]}, **NO_SFT)
    assert ends(made) == [("a 1", "a 0")]  # b's differ by 0.8
    assert made.pairs[0].gap == pytest.approx(0.06)
    assert (why(made), why(made, "pair")) == ([], [data.TOO_LARGE])


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([0.11, 0.10], None),  # in floats their difference is below 0.01
        ([0.3, 0.2], None),
        ([0.3, 0.291], data.TOO_SMALL),
        ([0.301, 0.2], data.TOO_LARGE),
        ([0.3], data.ONE_RESPONSE),
        ([], data.NO_RESPONSE),
    ],
)
def test_both_gaps_are_included(rewards, reason):
    made = built({"a": rewards}, **NO_SFT)
    assert (len(made.pairs), why(made)) == ((1, []) if reason is None else (0, [reason]))


def test_equal_rewards_prefer_nothing_and_mixed_gaps_are_told():
    assert why(built({"a": [0.3, 0.3]}, gap_kinds=(), **NO_SFT)) == [data.EQUAL]
    assert why(built({"a": [0.3, 0.3], "b": [0.1, 0.9]}, **NO_SFT)) == [data.GAPS]


def test_of_several_sources_pairs_one_is_taken_or_all():
    table = {"a": [0.10, 0.19], "b": [0.80, 0.85], "c": [0.4, 0.45]}
    assert ends(built(table, **NO_SFT)) == [("b 1", "b 0")]
    assert ends(built(table, pairs="widest", **NO_SFT)) == [("a 1", "a 0")]
    assert ends(built(table, pairs="all", **NO_SFT)) == [("a 1", "a 0"), ("b 1", "b 0"), ("c 1", "c 0")]
    assert why(built(table, **NO_SFT), "pair") == [data.NOT_CHOSEN] * 2


def test_all_pairs_has_no_two_of_the_same_texts():
    table = {"a": [(0.1, None, "x"), (0.15, None, "y")], "b": [(0.1, None, "x"), (0.15, None, "y ")]}
    made = built(table, pairs="all", **NO_SFT)
    assert (ends(made), why(made, "pair")) == ([("y", "x")], [data.SAME_PAIR])


def test_without_same_source_the_ends_are_of_all_responses():
    made = built({"a": [0.30, 0.32], "b": [0.35, 0.28]}, same_source=False, **NO_SFT)
    assert ends(made) == [("b 0", "b 1")]
    made = built({"a": [0.30], "b": [0.35]}, same_source=False, **NO_SFT)
    assert ends(made) == [("b 0", "a 0")]


def test_maths_learns_what_is_correct_and_prefers_it_to_what_is_not():
    table = {"a": [(0.50, True), (0.45, True), (0.60, False), (0.44, False)], "b": [(0.9, False), (0.7, True)]}
    [example] = built(table, "math", **ALL_SFT).sft
    assert example.best.text == "b 1"
    made = built(table, "math", **NO_SFT)
    assert ends(made) == [("a 0", "a 3")]
    assert why(made, "pair") == [data.TOO_SMALL]  # b's wrong answer has the higher reward


@pytest.mark.parametrize("kind", ["math", "code"])
def test_maths_and_code_without_right_or_wrong_answers_are_dropped(kind):
    wrong = {"a": [(0.3, False), (0.25, False)]}
    assert why(built(wrong, kind, **ALL_SFT)) == why(built(wrong, kind, **NO_SFT)) == [data.NONE_CORRECT]
    assert why(built({"a": [(0.3, True), (0.25, True)]}, kind, **NO_SFT)) == [data.NONE_WRONG]
    apart = {"a": [(0.3, True)], "b": [(0.25, False)]}
    assert why(built(apart, kind, **NO_SFT)) == [data.NOT_BOTH]
    assert ends(built(apart, kind, same_source=False, **NO_SFT)) == [("a 0", "b 0")]


def test_code_that_passes_is_preferred_at_any_gap():
    table = {"a": [(0.2, True), (0.3, True), (0.9, False), (0.8, False)]}
    assert ends(built(table, "code", **NO_SFT)) == [("a 1", "a 3")]
    assert why(built(table, "code", gap_kinds=("chat", "math", "code"), **NO_SFT)) == [data.TOO_SMALL]


def test_language_is_for_sft_only_and_in_the_prompts_script():
    ask = prompt(kind="language", text="请介绍一下北京的历史")
    answers = said({"q": [(0.9, None, "Beijing is old."), (0.5, None, "北京有三千多年的历史。"), (0.4, None, "1949")]})
    made = build([ask], answers, PairParams(**NO_SFT))
    assert [example.best.sample for example in made.sft] == [1]
    assert why(made, "response") == [data.OTHER_SCRIPT]
    assert why(build([ask], answers[:1], PairParams())) == [data.NONE_COUNTS]


def test_repeated_and_blank_responses_do_not_count():
    made = built({"a": [(0.5, None, "x"), (0.9, None, " x\n"), (0.6, None, "y"), (0.1, None, " ")]}, **NO_SFT)
    assert (ends(made), made.pairs[0].gap) == ([("y", "x")], pytest.approx(0.1))
    assert why(made, "response") == [data.REPEATED, data.BLANK]
    both = {"a": [(0.5, None, "x"), (0.45, None, "y")], "b": [(0.5, None, "x"), (0.45, None, "y")]}
    assert why(built(both, **NO_SFT), "response") == []  # each source has its own pair
    assert why(built(both, same_source=False, **NO_SFT), "response") == [data.REPEATED] * 2


def test_ties_go_to_the_first_source_and_its_lowest_sample():
    table = {"b": [0.5, 0.5], "a": [0.45, 0.5, 0.5, 0.45]}
    assert built(table, **ALL_SFT).sft[0].best.text == "a 1"
    assert built(table, sources=("b", "a"), **ALL_SFT).sft[0].best.text == "b 0"
    assert ends(built(table, **NO_SFT)) == [("a 1", "a 0")]


def test_wrpo_has_the_best_of_the_sources_and_both_ends_of_the_target():
    table = {"a": [0.7, 0.2], "b": [0.8], "t": [0.95, 0.1, 0.5]}
    [four] = build([prompt()], said(table), PairParams.wrpo("t", **NO_SFT)).quadruples
    assert (four.source_best.text, four.target_best.text, four.rejected.text) == ("b 0", "t 0", "t 1")
    assert four.gap == pytest.approx(0.85)
    [example] = build([prompt()], said(table), PairParams.wrpo("t", **ALL_SFT)).sft
    assert example.best.text == "b 0"  # the target's own are not sources'


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"a": [0.7]}, data.NO_TARGET),
        ({"t": [0.7, 0.1]}, data.NO_SOURCE),
        ({"a": [0.7], "t": [0.1]}, data.ONE_RESPONSE),
        ({"a": [0.7], "t": [0.1, 0.1]}, data.EQUAL),
        ({}, data.NO_RESPONSE),
    ],
)
def test_wrpo_drops_what_makes_no_quadruple(table, reason):
    made = build([prompt()], said(table), PairParams.wrpo("t", **NO_SFT))
    assert (made.quadruples, why(made)) == ((), [reason])


def test_what_only_the_target_said_is_not_learnt_in_sft():
    made = build([prompt()], said({"t": [0.7]}), PairParams.wrpo("t", **ALL_SFT))
    assert (made.sft, why(made)) == ((), [data.NO_SOURCE])


@pytest.mark.parametrize("reward", [math.nan, math.inf, None, "0.5", True])
def test_a_reward_that_is_no_number_is_an_error_with_its_place(reward):
    with pytest.raises(RecipeError, match="response 0 of 'a' to prompt 'p' has reward"):
        built({"a": [(reward, None, "x")]})


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([prompt(), prompt()], [], "prompt id 'p': it stands twice"),
        ([prompt("")], [], "prompt id '': it is empty"),
        ([prompt("\ud800")], [], "half of a character"),
        ([prompt(kind="maths")], [], "the kind of prompt 'p' is 'maths'.*Did you mean 'math'"),
        ([prompt(text="\ud800")], [], "message 1 of prompt 'p'"),
        ([Prompt("p", [{"role": "bot", "content": "x"}], "chat")], [], "message 1 of prompt 'p' has role 'bot'"),
        ([Prompt("p", [], "chat")], [], "does not end with the user"),
        ([prompt()], said({"a": [1.0]}, "q"), "to prompt 'q': there is no such prompt"),
        ([prompt()], said({"a": [1.0]}) * 2, "response 0 of 'a' to prompt 'p' stands twice"),
        ([prompt(kind="math")], said({"a": [1.0]}), "response 0 of 'a' to prompt 'p' is math, but not known"),
        ([prompt()], said({"a": [(1.0, None, "\udc00")]}), "half of a character"),
        ([prompt(kind="math")], said({"a": [(1.0, "no")]}), "is correct: 'no'; it must be true, false or unknown"),
    ],
)
def test_broken_input_is_named(prompts, responses, message):
    with pytest.raises(RecipeError, match=message):
        build(prompts, responses)


def test_unknown_names_in_the_parameters_are_refused():
    with pytest.raises(RecipeError, match=r"sources lacks 'gemma', which responded. Did you mean 'gema'"):
        built({"gemma": [0.1]}, sources=("gema",))
    with pytest.raises(RecipeError, match=r"set_shares names 'chta'; the sets are chat. Did you mean 'chat'"):
        built({"a": [0.1]}, set_shares={"chta": 0.5})


@given(inputs(), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_nothing_leaks_nothing_is_lost_and_order_does_not_matter(given_, shuffler: random.Random):
    prompts, responses, params = given_
    made = build(prompts, responses, params)
    texts = {p.id: " ".join(p.messages[0]["content"].split()) for p in prompts}
    learnt = {texts[e.prompt.id] for e in made.sft}
    compared = [e.prompt.id for e in (*made.pairs, *made.quadruples)]
    assert not learnt & {texts[name] for name in compared}
    assert len({(texts[name], side) for name, side in made.sides.items()}) == len(set(texts.values()))

    dropped = [d.prompt for d in made.dropped if d.what == "prompt"]
    kept = [e.prompt.id for e in made.sft] + sorted(set(compared))
    assert sorted(kept + dropped) == sorted(texts)
    assert len(compared) == len(set(compared)) or params.pairs == "all"
    assert all(d.reason for d in made.dropped)

    for pair in made.pairs:
        assert pair.chosen.text.strip() != pair.rejected.text.strip()
        assert pair.chosen.source == pair.rejected.source or not params.same_source
        assert 0.01 <= pair.gap <= 0.1 or pair.prompt.kind == "code"
        assert pair.prompt.kind != "language"

    shuffler.shuffle(prompts)
    shuffler.shuffle(responses)
    assert build(prompts, responses, params) == made


hundredths = st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=4)


@given(st.dictionaries(st.sampled_from("abc"), hundredths), st.sampled_from(["chat", "math", "code"]))
@settings(max_examples=80, deadline=None)
def test_the_pair_is_the_one_that_trying_all_finds(table, kind):
    graded = kind != "chat"
    fit = []
    for source, samples in sorted(table.items()):
        good = [n for n, (_, correct) in enumerate(samples) if correct or not graded]
        bad = [n for n, (_, correct) in enumerate(samples) if not (correct and graded)]
        if good and bad and len(samples) > 1:
            best = max(good, key=lambda n: (samples[n][0], -n))
            worst = min((n for n in bad if n != best), key=lambda n: (samples[n][0], n))
            gap = samples[best][0] - samples[worst][0]
            if 1 <= gap <= 10 or kind == "code":
                fit.append((samples[best][0], f"{source} {best}", f"{source} {worst}", gap))
    expected = max(fit, key=lambda pair: pair[0], default=None)
    made = built({name: [(n / 100, correct) for n, correct in found] for name, found in table.items()}, kind, **NO_SFT)
    found = [(round(100 * p.chosen.reward), p.chosen.text, p.rejected.text, round(100 * p.gap)) for p in made.pairs]
    assert found == ([expected] if expected else [])
    assert len(made.pairs) + len([d for d in made.dropped if d.what == "prompt"]) == 1
