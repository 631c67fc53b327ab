from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.preference_pairs import build
from fusion.preference_records import PairParams
from fusion.preference_split import SFT, split
from tests.fusion.reward_tables import NO_SFT, inputs, prompt, said


@pytest.mark.parametrize(
    ("total", "share", "sft", "preference"),
    [
        pytest.param(51098, 0.4, 20439, 30659, marks=pytest.mark.slow),  # UltraFeedback, in FuseChat-3.0's table
        pytest.param(20374, 0.4, 8149, 12225, marks=pytest.mark.slow),  # Magpie-Pro-DPO
        (9435, 0.4, 3774, 5661),  # HelpSteer2
        (300, 1 / 3, 100, 200),  # WRPO
        (100, 0.29, 29, 71),
    ],
)
def test_the_shares_are_exact_and_as_published(total, share, sft, preference):
    sides = split([prompt(f"p{number}") for number in range(total)], PairParams(sft_share=share))
    assert Counter(sides.values()) == {"sft": sft, "preference": preference}


def test_each_set_is_split_by_itself_and_the_seed_decides_how():
    prompts = [prompt(f"{name}{n}", set=name) for name in ("x", "y") for n in range(50)]
    sides = split(prompts, PairParams(set_shares={"y": 0.7}))
    assert Counter((name[0], side) for name, side in sides.items() if side == "sft") == {
        ("x", "sft"): 20,
        ("y", "sft"): 35,
    }
    assert sides != split(prompts, PairParams(set_shares={"y": 0.7}, seed=1))


@pytest.mark.parametrize("seed", range(8))
def test_equal_prompts_that_are_too_many_for_sft_leave_it_to_others(seed):
    prompts = [prompt(f"p{n}", text=" same" * (n < 3)) for n in range(10)]
    sides = split(prompts, PairParams(sft_share=0.2, seed=seed))
    assert list(sides.values()).count("sft") == 2 and {sides[f"p{n}"] for n in range(3)} == {"preference"}


def test_each_of_equal_prompts_takes_room():
    prompts = [prompt(f"p{n}", text=f"same {n // 2}") for n in range(10)]
    assert Counter(split(prompts, PairParams()).values()) == {"sft": 4, "preference": 6}


def test_the_split_does_not_depend_on_the_responses():
    prompts = [prompt(f"p{n}") for n in range(30)]
    early = build(prompts, said({"a": [0.5]}, "p3"), PairParams.wrpo("t"))
    later = build(prompts, said({"a": [0.5], "t": [0.1, 0.4]}, "p7"), PairParams.wrpo("t"))
    assert early.sides == later.sides == split(prompts, PairParams.wrpo("t"))


def test_what_equals_a_language_prompt_is_for_sft_too():
    prompts = [prompt("a", text="你好 吗"), prompt("b", "language", text=" 你好\n吗")]
    assert split(prompts, PairParams(**NO_SFT)) == {"a": "sft", "b": "sft"}


@given(inputs(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_no_text_is_on_both_sides_and_no_set_gives_more_than_its_share(given_, shuffler):
    prompts, _, params = given_
    sides = split(prompts, params)
    texts = {p.id: " ".join(p.messages[0]["content"].split()) for p in prompts}
    by_text = {(texts[name], side) for name, side in sides.items()}
    assert len(by_text) == len(set(texts.values())) and sides.keys() == texts.keys()
    languages = {texts[p.id] for p in prompts if p.kind == "language"}
    others = [name for name in texts if texts[name] not in languages]
    assert sum(sides[name] == SFT for name in others) <= params.sft_share * len(others)
    assert all(sides[name] == SFT for name in texts if name not in others)
    shuffler.shuffle(prompts)
    assert split(prompts, params) == sides
