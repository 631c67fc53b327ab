"""A real HTTP server on 127.0.0.1 that speaks OpenAI's Files and Batch APIs and misbehaves on request.

Standard library only. In a test: ``with FakeBatches(rows={"q1": expires()}) as server: ... server.base_url``.
As a process: ``python tests/fake_batches.py --port-file F [--looks N] [--log F]``; the port is written to F when it
listens, one line of JSON for each request worked on goes to the log; it ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import email.parser
import email.policy
import hashlib
import http.server
import json
import pathlib
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Behaviour = Callable[[Row], Row | bytes | None]  # of a request's row, the row that comes out; None: none comes


def completion(row: Row, text: str | None, *, finish: str = "stop", **changes: Any) -> Row:
    body = row["body"]
    words = sum(len(message["content"].split()) for message in body["messages"]), len((text or "").split())
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": words[0], "completion_tokens": words[1], "total_tokens": sum(words)},
    } | changes


def out(row: Row, status: int, body: object) -> Row:
    response = {"status_code": status, "request_id": "req_fake", "body": body}
    return {"id": "batch_req_fake", "custom_id": row["custom_id"], "response": response, "error": None}


def says(text: str | None, **changes: Any) -> Behaviour:
    return lambda row: out(row, 200, completion(row, text, **changes))


def default(row: Row) -> Row:
    """Reply with words made from a hash of the last message."""
    digest = hashlib.sha256(row["body"]["messages"][-1]["content"].encode("utf-8", "replace")).hexdigest()
    return out(row, 200, completion(row, f"reply {digest[:6]}"))


def error(status: int, message: str, *, code: str | None = None) -> Behaviour:
    return lambda row: out(row, status, {"error": {"message": message, "type": "error", "param": None, "code": code}})


def undone(code: str = "batch_expired") -> Behaviour:
    said = {"code": code, "message": "This request could not be executed before the completion window expired."}
    return lambda row: {"id": "batch_req_fake", "custom_id": row["custom_id"], "response": None, "error": said}


def vanishes() -> Behaviour:
    return lambda _: None


def malformed() -> Behaviour:
    return lambda row: b'{"custom_id": "' + row["custom_id"].encode() + b'", "response": {'


@dataclass
class Trip:
    """What goes wrong with one call: its connection is dropped before or after it is done, or it is a status."""

    operation: str  # upload, content, create, retrieve, list
    status: int | None = None  # None: the connection is dropped
    done: bool = False  # what was asked for is done all the same
    times: int = 1
    code: str | None = None
    cut: bool = False  # half of the body is sent before the drop


@dataclass
class FakeBatches:
    """The server, in threads of its own while the ``with`` block lasts.

    A batch ends at its ``looks``-th retrieval, as ``ends`` says. ``rows`` are what becomes of requests, by the last
    message's text; ``refuse`` (number of the batch, rows in) returns errors for which it fails as a whole. With
    ``room`` a batch that would put more requests than that into the queue fails as OpenAI's do. With ``key`` any other
    Authorization is a 401.
    """

    looks: int = 1
    ends: str = "completed"
    rows: Mapping[str, Behaviour] = field(default_factory=dict)
    refuse: Callable[[int, Sequence[Row]], list[dict[str, Any]]] = lambda _, __: []
    room: int | None = None
    trips: list[Trip] = field(default_factory=list)
    key: str | None = None
    log: pathlib.Path | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)  # in order of creation
    calls: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)  # custom id -> how often it was worked on
    bodies: list[dict[str, Any]] = field(default_factory=list)  # worked on
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> FakeBatches:
        self.start()
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def start(self) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def put(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def rows_of(self, batch: Mapping[str, Any]) -> list[Row]:
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "created_at": int(time.time()),
            "status": "validating",
            "looks": 0,
            **asked,
        }
        self.batches.append(batch)
        rows = self.rows_of(batch)
        errors = self.refuse(len(self.batches) - 1, rows)
        names = Counter(row["custom_id"] for row in rows)
        errors += [{"code": "duplicate_custom_id", "message": "duplicate"} for count in names.values() if count > 1]
        queue = sum(len(self.rows_of(b)) for b in self.batches if b["status"] in ("validating", "in_progress"))
        if self.room is not None and queue > self.room:
            said = "Enqueued token limit reached for fake-model. Please try again once some batches have completed."
            errors.append({"code": "token_limit_exceeded", "message": said, "line": None, "param": None})
        if errors:
            batch |= {"status": "failed", "errors": {"object": "list", "data": errors}}
            self.batches[-1] = batch
        return batch | {"status": "validating"}

    def retrieve(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["looks"] += 1
        if batch["status"] in ("validating", "in_progress"):
            batch["status"] = "in_progress"
            if batch["looks"] >= self.looks:
                self.work(batch)
        return batch

    def work(self, batch: dict[str, Any]) -> None:
        """End a batch: work on its rows, write its files."""
        good, bad = [], []
        rows = self.rows_of(batch)
        for row in rows:
            came = self.rows.get(row["body"]["messages"][-1]["content"], default)(row)
            if came is None:
                continue
            line = came if isinstance(came, bytes) else json.dumps(came, ensure_ascii=False).encode()
            fine = isinstance(came, bytes) or (came["response"] or {}).get("status_code") == 200
            (good if fine else bad).append(line)
            if fine:
                self.paid[row["custom_id"]] += 1
                self.bodies.append(row["body"])
                if self.log is not None:
                    with self.log.open("a") as log:
                        log.write(json.dumps(row) + "\n")
        batch["output_file_id"] = self.put(b"".join(line + b"\n" for line in good)) if good else None
        batch["error_file_id"] = self.put(b"".join(line + b"\n" for line in bad)) if bad else None
        batch["request_counts"] = {"total": len(rows), "completed": len(good), "failed": len(bad)}
        batch["status"] = self.ends


def _handler(fake: FakeBatches) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"] or 0)))

        def answer(self, content: bytes) -> None:
            path, _, query = self.path.removeprefix("/v1").partition("?")
            parts = [*path.strip("/").split("/"), "", ""]
            with fake.lock:
                operation = self.operation(parts)
                fake.calls[operation] += 1
                trip = next((t for t in fake.trips if t.operation == operation and t.times > 0), None)
                if fake.key is not None and self.headers["Authorization"] != f"Bearer {fake.key}":
                    self.send(401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
                    return
                if trip is not None:
                    trip.times -= 1
                if trip is None or trip.done or trip.cut:
                    status, body = self.serve(operation, parts, query, content)
            if trip is None:
                self.send(status, body)
            elif trip.cut:
                self.send(status, body, cut=True)
            elif trip.status is None:
                self.close_connection = True
            else:
                said = f"internal error {self.headers['Authorization']}"
                self.send(trip.status, {"error": {"message": said, "code": trip.code}})

        def operation(self, parts: list[str]) -> str:
            if parts[0] == "files":
                return "upload" if self.command == "POST" else "content"
            if parts[0] == "batches":
                return (
                    "cancel" if parts[2] else "retrieve" if parts[1] else "create" if self.command == "POST" else "list"
                )
            return "unknown"

        def serve(self, operation: str, parts: list[str], query: str, content: bytes) -> tuple[int, object]:
            if operation == "upload":
                name = fake.put(_file(self.headers["Content-Type"], content))
                return 200, {
                    "id": name,
                    "object": "file",
                    "bytes": 1,
                    "created_at": 0,
                    "filename": "f",
                    "purpose": "batch",
                }
            if operation == "content" and parts[1] in fake.files:
                return 200, fake.files[parts[1]]
            if operation == "create":
                return 200, fake.create(json.loads(content))
            if operation == "list":
                asked = urllib.parse.parse_qs(query)
                newest = fake.batches[::-1]
                after = asked.get("after", [""])[0]
                first = next((n + 1 for n, batch in enumerate(newest) if batch["id"] == after), 0)
                page = newest[first : first + int(asked.get("limit", ["20"])[0])]
                more = first + len(page) < len(newest)
                return 200, {"object": "list", "data": page, "has_more": more}
            batch = next((batch for batch in fake.batches if batch["id"] == parts[1]), None)
            if batch is not None and operation == "cancel":
                batch["status"] = "cancelled"
                return 200, batch
            if batch is not None and operation == "retrieve":
                return 200, fake.retrieve(batch)
            return 404, {"error": {"message": f"No such {operation}: {parts[1]}"}}

        def send(self, status: int, body: object, *, cut: bool = False) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if body is content else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _file(content_type: str, content: bytes) -> bytes:
    """Return the file of a multipart form."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
    [part] = [part for part in form.iter_parts() if part.get_filename()]
    return part.get_payload(decode=True)


def main() -> None:
    """Run as a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port-file", type=pathlib.Path, required=True)
    parser.add_argument("--looks", type=int, default=1)
    parser.add_argument("--log", type=pathlib.Path, default=None)
    options = parser.parse_args()
    fake = FakeBatches(looks=options.looks, log=options.log)
    fake.start()
    part = options.port_file.with_suffix(".part")
    part.write_text(str(fake.server.server_address[1]))
    part.replace(options.port_file)  # whoever sees the file sees the whole number
    fake.server.serve_forever()


if __name__ == "__main__":
    main()
