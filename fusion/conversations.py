"""Conversations to train on, read from files: JSON lines or one JSON list, in OpenAI's form or ShareGPT's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.errors import RecipeError

ROLES = ("system", "user", "assistant")
SHAREGPT = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}

Conversation = Sequence[Mapping[str, str]]
"""Messages, each with its ``role`` (one of ROLES) and ``content``; the last is the assistant's."""


def read_conversations(data: Path) -> list[Conversation]:
    """Read conversations; RecipeError names the file, the line and what is wrong with it.

    A line, or an item of a file that is one JSON list, is ``{"messages": [{"role", "content"}, …]}``, or ShareGPT's
    ``{"conversations": [{"from": "human" | "gpt" | "system", "value"}, …]}``, as FuseChat-Mixture has it. Of the
    latter, which were cut to a length, turns after the last one of the assistant's are left off.
    """
    conversations: list[Conversation] = []
    for place, value in read_items(data):
        messages = _messages(value)
        if problem := _malformed(messages):
            raise RecipeError(f'{place}: {problem}; a conversation is {{"messages": [{{"role", "content"}}, …]}}')
        conversations.append([{"role": m["role"], "content": m["content"]} for m in messages])
    if not conversations:
        raise RecipeError(f"{data} holds no conversations; write one to a line")
    return conversations


def read_items(data: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and value of each JSON line of a file, or of each item of one JSON list; raises RecipeError."""
    try:
        text = data.read_bytes()
    except FileNotFoundError:
        raise RecipeError(f"there is no training data {data}; check the path") from None
    if text.lstrip()[:1] == b"[":
        yield from ((f"{data}, item {number}", item) for number, item in enumerate(_parsed(text, str(data)), 1))
        return
    for number, line in enumerate(text.split(b"\n"), 1):  # a string may hold U+2028, no line's end
        if line.strip():
            yield f"{data}, line {number}", _parsed(line, f"{data}, line {number}")


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise RecipeError(f"{place} is not JSON: {error}") from None


def _messages(value: object) -> Any:
    if not isinstance(value, dict):
        return None
    said = value.get("conversations")
    if not isinstance(said, list) or "messages" in value:
        return value.get("messages")
    messages = [_message(turn) for turn in said]
    while len(messages) > 1 and isinstance(messages[-1], dict) and messages[-1]["role"] in ("user", "system"):
        messages.pop()
    return messages


def _message(turn: object) -> object:
    if not isinstance(turn, dict):
        return turn
    speaker = turn.get("from")
    return {"role": SHAREGPT.get(str(speaker), speaker), "content": turn.get("value")}


def _malformed(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "there is no list of messages"
    for place, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            return f"message {place} is no object"
        if message.get("role") not in ROLES:
            return f"message {place} has role {message.get('role')!r}, not one of {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str):
            return f"message {place} has content {message.get('content')!r}, which is no text"
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        return "the last message is not something that the assistant says, so there is nothing to learn"
    return None
