"""One position of an alignment as a reader sees it: the text around it, both models' tokens, and what each expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fusion.chats import Chat
    from fusion.pieces import Encoded, Pieces
    from fusion.project import Projection
    from fusion.teachers import TeacherRow

BEFORE = 80  # characters of the text that are shown
TOP = 5  # likeliest tokens that are shown
MOST = 8  # tokens of a piece of text that are shown


def example(
    chat: Chat,
    at: int,
    encoded: tuple[Encoded, Encoded],
    pieces: tuple[Pieces, Pieces],
    *,
    source_at: int,
    row: TeacherRow | None,
    part: Projection | None,
) -> dict[str, Any]:
    """Return what can be read of target position ``at``, as JSON values.

    ``encoded`` and ``pieces`` are the target's and the source's. "target" and "source" are the tokens of the text that
    comes next, up to where both end or the longer of both next tokens does; "expected" and "projected" are the
    likeliest next tokens before and after projection with their probabilities, None where nothing was heard.
    """
    target, source = encoded
    text = chat.text.encode("utf-8", "surrogatepass")
    begin = int(target.ends[at])
    end = int(target.ends[at + 1]) if at + 1 < len(target.ends) else begin
    inside = np.flatnonzero((source.ends > begin) & (source.starts < end))
    if len(inside):
        end = max(end, int(source.ends[inside[-1]]))
    tokens = [
        [_shown(text, one, number, names) for number in np.flatnonzero((one.ends > begin) & (one.starts < end))[:MOST]]
        for one, names in zip(encoded, pieces, strict=True)
    ]
    expected = projected = None
    if row is not None and part is not None:
        projected = _likeliest(part.sparse.ids[at], part.sparse.probs[at], pieces[0])
        if part.aligned[at]:
            expected = _likeliest(row.top_ids[source_at], np.exp(row.top_logprobs[source_at]), pieces[1])
    return {
        "chat": chat.id,
        "before": text[:begin].decode("utf-8", "replace")[-BEFORE:],
        "target": tokens[0],
        "source": tokens[1],
        "expected": expected,
        "projected": projected,
    }


def name_of(token: int, pieces: Pieces) -> str:
    """Return what a token is called: its text, its role where it is special, or its number."""
    role, text = pieces.special.get(token), pieces.text[token] if 0 <= token < pieces.size else None
    if role is not None:
        return f"<{role}>"
    return f"<{token}>" if text is None else text.decode("utf-8", "backslashreplace")


def _shown(text: bytes, encoded: Encoded, number: int, pieces: Pieces) -> str:
    covered = text[int(encoded.starts[number]) : int(encoded.ends[number])]
    return covered.decode("utf-8", "backslashreplace") if covered else name_of(int(encoded.ids[number]), pieces)


def _likeliest(ids: Any, probs: Any, pieces: Pieces) -> list[list[Any]]:
    order = np.argsort(-probs, kind="stable")[:TOP]
    return [[name_of(int(ids[i]), pieces), float(probs[i])] for i in order if ids[i] >= 0]
