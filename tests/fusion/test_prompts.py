"""Prompt files: what is read from them, and what is said of those that make no sense."""

import json

import pytest

from fusion.errors import RecipeError
from fusion.prompts import read_tasks


def written(folder, *items, whole=False):
    file = folder / "prompts.jsonl"
    file.write_text(json.dumps(items) if whole else "".join(json.dumps(item) + "\n" for item in items))
    return file


def test_prompts_have_the_kind_that_their_answer_or_tests_say(tmp_path):
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    file = written(
        tmp_path,
        {"prompt": "What is 2 + 3?", "answer": 5, "set": "sums"},
        {"prompt": "Write f.", "tests": "assert f() == 1"},
        {"id": "hello", "messages": system},
        {"prompt": "你好", "kind": "language"},
    )
    tasks = read_tasks(file)
    assert [task.prompt.kind for task in tasks] == ["math", "code", "chat", "language"]
    assert [task.gold for task in tasks] == ["5", None, None, None]
    assert tasks[1].tests == "assert f() == 1"
    assert tasks[2].prompt.id == "hello" and tasks[2].prompt.messages == system
    assert tasks[0].prompt.set == "sums"
    assert (
        read_tasks(written(tmp_path, *[json.loads(line) for line in file.read_text().splitlines()], whole=True))
        == tasks
    )


def test_equal_prompts_are_read_once_and_two_of_one_id_are_refused(tmp_path):
    assert len(read_tasks(written(tmp_path, {"prompt": "Hi"}, {"prompt": "Hi"}))) == 1
    with pytest.raises(RecipeError, match="line 2: another prompt has the id 'x' too"):
        read_tasks(written(tmp_path, {"id": "x", "prompt": "Hi"}, {"id": "x", "prompt": "Ho"}))


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("Hi", "is no object"),
        ({"promt": "Hi"}, "has 'promt'.*Did you mean 'prompt'"),
        ({}, "needs exactly one of prompt and messages"),
        ({"prompt": "Hi", "messages": []}, "needs exactly one of prompt and messages"),
        ({"prompt": "  "}, "and text"),
        ({"prompt": 3}, "prompt is 3; it must be text"),
        ({"prompt": "Hi", "kind": "maths"}, "kind is 'maths'.*Did you mean 'math'"),
        ({"prompt": "Hi", "kind": "math"}, "of kind math without an answer"),
        ({"prompt": "Hi", "kind": "code"}, "of kind code without tests"),
        ({"prompt": "Hi", "answer": True}, "answer is True"),
        ({"prompt": "Hi", "tests": 1}, "tests is 1"),
        ({"prompt": "\ud800"}, "half of a character"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, "user, assistant"),
        ({"messages": [{"role": "user"}]}, "must be a list of objects with role and content"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "needs one of the roles"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_named_with_its_line(tmp_path, item, said):
    with pytest.raises(RecipeError, match=rf"prompts\.jsonl, line 2.*{said}"):
        read_tasks(written(tmp_path, {"prompt": "fine"}, item))


def test_a_file_without_prompts_says_how_one_looks(tmp_path):
    with pytest.raises(RecipeError, match="holds no prompts"):
        read_tasks(written(tmp_path))
