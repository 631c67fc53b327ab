"""Prompts of implicit fusion, read from files: what the sources answer, and what is known of the right answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.conversations import ROLES, read_items
from fusion.errors import RecipeError, did_you_mean, listed
from fusion.preference_records import KINDS, Prompt

_KEYS = ("id", "prompt", "messages", "kind", "set", "answer", "tests")
_FORM = (
    'a prompt is {"prompt": "…"} or {"messages": [{"role", "content"}, …]}, for maths with "answer", for code "tests"'
)


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, and what tells whether a response is correct: a gold answer to maths, or unit tests of code."""

    prompt: Prompt
    gold: str | None = None
    tests: str | None = None  # Python that is run after the response's code, and raises where that is wrong


def read_tasks(data: Path) -> list[Task]:
    """Read prompts from JSON lines or one JSON list; RecipeError names the file, the place and what is wrong.

    An item has ``prompt`` (what the user says) or ``messages`` (perhaps a system message, then the user's), and
    perhaps ``id`` (else a hash of the messages; equal prompts are read once), ``kind`` (one of
    ``fusion.preference_records.KINDS``; "math" where there is an ``answer``, "code" where there are ``tests``, else
    "chat"), ``set`` (the data set that it is from), ``answer`` (gold, see ``fusion.grading``) and ``tests``.
    """
    tasks: dict[str, Task] = {}
    for place, value in read_items(data):
        task = _task(value, place)
        known = tasks.setdefault(task.prompt.id, task)
        if known != task:
            raise RecipeError(f"{place}: another prompt has the id {task.prompt.id!r} too; give each one of its own")
    if not tasks:
        raise RecipeError(f"{data} holds no prompts; write one to a line: {_FORM}")
    return list(tasks.values())


def _task(value: Any, place: str) -> Task:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{place} is no object; {_FORM}")
    for key in value:
        if key not in _KEYS:
            raise RecipeError(f"{place} has {key!r}; it may have {', '.join(_KEYS)}.{did_you_mean(str(key), _KEYS)}")
    for key in ("id", "prompt", "kind", "set", "tests"):
        if not isinstance(value.get(key, ""), str):
            raise RecipeError(f"{place}: {key} is {value[key]!r}; it must be text")
    messages = _messages(value, place)
    gold = value.get("answer")
    if gold is not None and (isinstance(gold, bool) or not isinstance(gold, str | int | float)):
        raise RecipeError(f"{place}: answer is {gold!r}; it must be text or a number")
    kind = value.get("kind") or ("math" if gold is not None else "code" if "tests" in value else "chat")
    if kind not in KINDS:
        raise RecipeError(
            f"{place}: kind is {kind!r}; it must be one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}"
        )
    lacking = {"math": gold is None, "code": "tests" not in value}.get(kind, False)
    if lacking:
        what = "an answer" if kind == "math" else "tests"
        raise RecipeError(f"{place} is of kind {kind} without {what}, so nobody knows which responses are correct")
    name = value.get("id") or hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode()).hexdigest()[:16]
    prompt = Prompt(name, messages, kind, value.get("set", ""))
    return Task(prompt, None if gold is None else str(gold), value.get("tests"))


def _messages(value: Mapping[str, Any], place: str) -> list[dict[str, str]]:
    given = value.get("messages")
    if (given is None) == ("prompt" not in value):
        raise RecipeError(f"{place} needs exactly one of prompt and messages; {_FORM}")
    messages = [{"role": "user", "content": value["prompt"]}] if given is None else given
    if not isinstance(messages, list) or not all(
        isinstance(m, Mapping) and set(m) == {"role", "content"} for m in messages
    ):
        raise RecipeError(f"{place}: messages must be a list of objects with role and content")
    roles = [m["role"] for m in messages]
    for m in messages:
        if m["role"] not in ROLES or not isinstance(m["content"], str) or not m["content"].strip():
            raise RecipeError(f"{place}: message {dict(m)!r} needs one of the roles {listed(ROLES)}, and text")
        try:
            m["content"].encode()
        except UnicodeEncodeError:
            raise RecipeError(f"{place}: message {dict(m)!r} holds half of a character; mend it") from None
    if roles not in (["user"], ["system", "user"]):
        raise RecipeError(
            f"{place} has messages of {', '.join(map(str, roles))}; a prompt is what the user says, perhaps after one "
            "system message: leave out what comes before or after, or write it into the user's message"
        )
    return [{"role": m["role"], "content": m["content"]} for m in messages]
