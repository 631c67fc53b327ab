"""Conversations, in the two forms that people have them in."""

import json
from pathlib import Path

import pytest

from fusion.conversations import read_conversations
from fusion.errors import RecipeError


def messages(*turns: tuple[object, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


GOOD = messages(("user", "Hi"), ("assistant", "Hello"))


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
    return path


def test_a_conversation_may_hold_any_character_but_a_newline(tmp_path: Path):
    odd = messages(("user", "a\u2028b\x85c"), ("assistant", "naïve 你好 😀"))
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(odd, ensure_ascii=False) + "\r\n\n" + json.dumps(GOOD), encoding="utf-8")
    assert read_conversations(data) == [odd["messages"], GOOD["messages"]]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2 is not JSON"),
        ([], "line 2: there is no list of messages"),
        ({"messages": []}, "there is no list of messages"),
        ({"messages": ["Hi"]}, "message 1 is no object"),
        (messages(("user", "Hi"), ("gpt", "Hello")), "message 2 has role 'gpt', not one of system, user, assistant"),
        (messages(("user", None)), "message 1 has content None, which is no text"),
        (messages(("user", "Hi")), "the last message is not something that the assistant says"),
        (messages(("user", "Hi"), ("assistant", " ")), "the last message is not something that the assistant says"),
    ],
)
def test_a_bad_line_is_told_with_file_and_number(tmp_path: Path, line: object, problem: str):
    with pytest.raises(RecipeError) as error:
        read_conversations(lines(tmp_path / "data.jsonl", GOOD, line))
    assert problem in str(error.value)
    assert "data.jsonl, line 2" in str(error.value)


def test_no_data_is_an_error(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"no training data .*data\.jsonl"):
        read_conversations(tmp_path / "data.jsonl")
    with pytest.raises(RecipeError, match="holds no conversations"):
        read_conversations(lines(tmp_path / "data.jsonl"))


def test_sharegpts_form_is_read_and_what_follows_the_last_answer_is_left_off(tmp_path: Path):
    turns = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello"), ("human", "And")]
    shared = {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns]}
    expected = messages(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))["messages"]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([shared, GOOD], indent=1), encoding="utf-8")
    assert read_conversations(data) == [expected, GOOD["messages"]]
    assert read_conversations(lines(tmp_path / "data.jsonl", shared)) == [expected]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "item 1: the last message is not something"),
        ({"conversations": [{"from": ["x"], "value": "Hi"}]}, "item 1: message 1 has role ['x']"),
        ({"conversations": ["Hi"]}, "item 1: message 1 is no object"),
    ],
)
def test_a_bad_item_is_told_with_its_number(tmp_path: Path, item: object, problem: str):
    data = tmp_path / "data.json"
    data.write_text(json.dumps([item]), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        read_conversations(data)
    assert problem in str(error.value)
