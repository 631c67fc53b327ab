"""Conversations as every model of a fusion reads them: one text, written with the target's chat template.

FuseLLM and FuseChat let every model read the same text (arXiv:2402.16107), so that distributions at the same byte can
be compared. To another model's tokenizer the target's markers are plain text, unless it has them too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion.errors import RecipeError
from fusion.pieces import added_before, turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as text; ``supervised`` are the bytes (start, end) of its UTF-8 that the assistant says.

    Each span ends with the end-of-turn token, where the template has one. A bos that the tokenizer puts before every
    text anyway is not in the text.
    """

    id: str  # 32 hex digits, equal for equal text and spans
    text: str
    supervised: tuple[tuple[int, int], ...]


def render(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[Chat]:
    """Write conversations with the tokenizer's chat template, the target's, in the given order.

    RecipeError: there is no template, it refuses a conversation, nobody answers in one, or it writes an earlier answer
    otherwise once the talk goes on (as templates do that drop earlier reasoning), so that no one text shows them all.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError("the target has no chat template; add a chat_template.jinja to say how its chats are written")
    end = turn_end(tokenizer)
    writer = _Writer(tokenizer, end[1] if end else None, _bos(tokenizer))
    return [writer.chat(conversation, number) for number, conversation in enumerate(conversations, 1)]


class _Writer:
    """Renders conversations with one template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end: str | None, bos: str) -> None:
        self._tokenizer = tokenizer
        self._end = end
        self._bos = bos

    def chat(self, messages: Conversation, number: int) -> Chat:
        """Return one conversation as text; ``number`` names it in errors."""
        whole = self._written(messages, number)
        spans = [
            self._answer(messages, turn, whole, number)
            for turn, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        if not spans:
            raise RecipeError(f"nobody answers in conversation {number}, so there is nothing to learn; leave it out")
        cut = len(self._bos) if whole.startswith(self._bos) else 0
        supervised = tuple((_bytes(whole[cut:start], number), _bytes(whole[cut:stop], number)) for start, stop in spans)
        text = whole[cut:]
        told = json.dumps([text, supervised], ensure_ascii=False)
        return Chat(id=hashlib.sha256(told.encode()).hexdigest()[:32], text=text, supervised=supervised)

    def _answer(self, messages: Conversation, turn: int, whole: str, number: int) -> tuple[int, int]:
        """Return where in ``whole`` the assistant's turn begins and ends, in characters."""
        done = self._written(messages[: turn + 1], number) if turn + 1 < len(messages) else whole
        if turn:  # some prompts begin the answer otherwise than it is written: it starts where they part
            prompt = self._written(messages[:turn], number, prompt=True)
            start = len(os.path.commonprefix([prompt, done]))  # noqa: RUF071 (letters are meant)
        else:  # few templates write a prompt after nothing
            start = max(0, done.find(messages[turn]["content"].strip()))
        stop = len(done)
        if self._end and (found := done.rfind(self._end, start)) >= 0:
            stop = found + len(self._end)  # line breaks after it are the template's
        if whole[:stop] != done[:stop]:
            raise RecipeError(
                f"the chat template writes message {turn + 1} of conversation {number} otherwise once the talk goes "
                "on, as templates do that drop earlier reasoning; make each answer the end of a conversation of its own"
            )
        return start, stop

    def _written(self, messages: Conversation, number: int, *, prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise RecipeError(
                f"the chat template refuses conversation {number}: {error}; change the roles or the order of its "
                "messages to what the target knows"
            ) from error
        return str(text)


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the tokenizer puts before every text, as the template would write it."""
    return "".join(tokenizer.convert_ids_to_tokens(list(added_before(tokenizer))))


def _bytes(text: str, number: int) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"conversation {number} holds half of a character ({error.object[error.start]!r}), which is no text; "
            "mend or leave it out"
        ) from None
