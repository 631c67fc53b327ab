"""The rows of a batch's files: one request a line going in, one reply or error a line coming out.

The form is that of OpenAI's Batch API, which other endpoints have taken over: a line in is
``{"custom_id", "method", "url", "body"}``, a line out ``{"custom_id", "response": {"status_code", "body"}, "error"}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal

from evals.chat import ChatRequest, Reply
from evals.chat_json import read_reply
from evals.endpoint_errors import Trouble, read_status
from evals.keys import content_key

PATH: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_UNDONE = {"batch_expired", "batch_cancelled"}  # codes of rows that the endpoint did not get to, and takes no money for


def custom_id(request: ChatRequest, *, body: Mapping[str, object], model: str) -> str:
    """Return the content key by which a request is found again in any batch, of any process.

    The seed is part of it even where ``body`` leaves it out: several replies to one question stay several.
    """
    return content_key("batch request", model, body, request.sampling.seed)


def write_row(name: str, *, body: Mapping[str, object], model: str) -> bytes:
    """Return the line of the input file for a request of this custom id."""
    row = {"custom_id": name, "method": "POST", "url": PATH, "body": {"model": model, **body}}
    return json.dumps(row).encode() + b"\n"  # in ASCII: not everybody ends lines at b"\n" alone


def read_name(line: bytes) -> str | None:
    """Return the custom id of a line of an input file; None where it has none."""
    row = _object(line)
    return str(row["custom_id"]) if "custom_id" in row else None


def read_row(line: bytes, *, sent: Iterable[str] = ()) -> tuple[str, Reply | Trouble] | None:
    """Read a line of an output or error file: the custom id and what came of it; None when it is no such line.

    ``Reply.seconds`` is 0.0, as nothing says how long a request of a batch took. ``sent`` are the fields of the
    requests, one of which an error may name.
    """
    row = _object(line)
    if "custom_id" not in row:
        return None
    response, error = row.get("response"), row.get("error")
    if isinstance(response, dict) and "status_code" in response:
        outcome = _read_response(response, sent=sent)
    else:
        code, said = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, error)
        kind = "expired" if code in _UNDONE else "server"
        outcome = Trouble(kind, f"{code}: {said}" if code else f"no reply in its row: {said}", retry=True)
    return str(row["custom_id"]), outcome


def _read_response(response: Mapping[str, object], *, sent: Iterable[str]) -> Reply | Trouble:
    status, body = response["status_code"], response.get("body")
    text = body if isinstance(body, str) else json.dumps(body)
    if status == 200:
        return read_reply(text.encode("utf-8", "replace"), seconds=0.0)
    return read_status(status if isinstance(status, int) else 500, text, headers={}, sent=sent)


def _object(line: bytes) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
