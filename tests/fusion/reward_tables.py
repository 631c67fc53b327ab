"""Prompts and scored responses for tests: tables made by hand, and any that hypothesis draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from fusion.preference_pairs import build
from fusion.preference_records import KINDS, PAIRS, Built, PairParams, Prompt, Response

ALL_SFT, NO_SFT = {"sft_share": 1.0}, {"sft_share": 0.0}


def prompt(name: str = "p", kind: str = "chat", text: str | None = None, set: str = "") -> Prompt:
    return Prompt(name, [{"role": "user", "content": text or f"question {name}"}], kind, set)


def said(table: Mapping[str, Sequence[Any]], of: str = "p") -> list[Response]:
    """Responses from {source: [reward or (reward, correct) or (reward, correct, text)]}."""
    found = []
    for source, samples in table.items():
        for number, sample in enumerate(samples):
            reward, correct, text = (*(sample if isinstance(sample, tuple) else (sample,)), None, None)[:3]
            found.append(Response(of, source, number, text or f"{source} {number}", reward, correct))
    return found


def built(table: Mapping[str, Sequence[Any]], kind: str = "chat", **params: Any) -> Built:
    return build([prompt(kind=kind)], said(table), PairParams(**params))


def mixed(**params: Any) -> Built:
    """One prompt of each side and set, and one that is dropped; hostile names."""
    prompts = [prompt(f"p{n}", set="x") for n in range(4)] + [prompt("none", set="y|\n# y")]
    tables = [{"a": [0.5, 0.45], "b|<b>": [0.52, 0.5, (0.1, None, "b|<b> 0")]}] * 4
    responses = [r for ask, table in zip(prompts, tables, strict=False) for r in said(table, ask.id)]
    return build(prompts, responses, PairParams(sft_share=0.5, **params))


@st.composite
def inputs(draw: Any) -> tuple[list[Prompt], list[Response], PairParams]:
    """Any prompts, responses and rules: prompts that are equal but for whitespace, repeated and blank responses."""
    kinds = st.sampled_from(KINDS)
    texts = st.sampled_from(["q", " q", "q  r", "q r\n", "s", "t", "u", "字"])
    asked = draw(st.lists(st.tuples(kinds, texts, st.sampled_from(["", "m", "n"])), max_size=12))
    prompts = [
        Prompt(f"p{n}", [{"role": "user", "content": text}], kind, name) for n, (kind, text, name) in enumerate(asked)
    ]
    sample = st.tuples(
        st.sampled_from([0.1, 0.105, 0.11, 0.15, 0.2, 0.3]), st.booleans(), st.sampled_from("xyz ") | st.none()
    )
    tables = st.dictionaries(st.sampled_from("abt"), st.lists(sample, max_size=4))
    responses = [response for ask in prompts for response in said(draw(tables), ask.id)]
    params = {"sft_share": draw(st.sampled_from([0.0, 0.4, 0.5, 1.0])), "seed": draw(st.integers(0, 3))}
    if draw(st.booleans()):
        return prompts, responses, PairParams.wrpo("t", **params)
    how = {"pairs": draw(st.sampled_from(PAIRS)), "same_source": draw(st.booleans())}
    return prompts, responses, PairParams(**params, **how)
