"""A live report of a ledger that is being filled: on this machine only, read-only, made anew as the ledger grows.

The ledger itself is never held open: what is shown is a copy (see :mod:`results.snapshot`), which is scored here.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from fuseval.config import ConfigError

if TYPE_CHECKING:
    from evals.benchmark import Locate
    from results.snapshot import Stamp
    from results.store import Ledger

HOST = "127.0.0.1"
_PATIENCE = 30.0  # seconds that a run gets to give a snapshot
_KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".json": "application/json"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is served: the live page, and the folder with the whole report (None: there is none yet)."""

    live: bytes
    folder: Path | None


class Live:
    """The pages of one ledger. :meth:`refresh` makes them anew where the ledger has changed."""

    def __init__(self, ledger: Path, *, title: str, every: int, asset: Locate, work: Path) -> None:
        self._ledger, self._title, self._every, self._asset, self._work = ledger, title, every, asset, work
        self._seen: object = None  # what the ledger's files were like when they were copied
        self._copied: Stamp | None = None
        self._number = 0
        self._shown = _Shown(_waiting(title, every, "The first pages are being made."), None)

    @property
    def live(self) -> bytes:
        """The live page."""
        return self._shown.live

    def file(self, name: str) -> bytes | None:
        """Return a file of the whole report, or None where there is none of that name."""
        folder = self._shown.folder
        if folder is None or name not in {path.name for path in folder.iterdir() if path.is_file()}:
            return None
        return (folder / name).read_bytes()

    def refresh(self) -> None:
        """Copy the ledger, score the copy and make the pages of it; where that fails, the last ones stay."""
        from results.errors import LedgerError
        from results.snapshot import copy_ledger
        from results.store import Ledger

        stamp = self._stamp()
        if stamp == self._seen:
            return
        copy = self._work / "copy.duckdb"
        try:
            asked = copy_ledger(self._ledger, copy, seen=self._copied, wait=_PATIENCE)
            self._copied = asked
            as_of = datetime.now(UTC)
            with Ledger.open(copy) as opened:
                notes = self._score(opened)
                self._shown = self._made(opened, as_of, asked is not None, notes)
        except (LedgerError, OSError) as error:
            self.say(str(error))
            return
        self._seen = stamp

    def say(self, why: str) -> None:
        """Say why there are no pages, where there are none yet."""
        if self._shown.folder is None:
            self._shown = _Shown(_waiting(self._title, self._every, why), None)

    def _made(self, opened: Ledger, as_of: datetime, asked: bool, notes: list[str]) -> _Shown:
        from reports.html import write_page
        from reports.live import live_page

        self._number += 1
        folder = self._work / f"report-{self._number}"
        folder.mkdir()
        write_page(opened, folder / "report.html", title=self._title, inline=2**62)  # one file is served
        state = "while it is being filled" if asked else "nobody is filling it now"
        live = live_page(opened, title=self._title, as_of=as_of, state=state, every=self._every, notes=notes)
        shutil.rmtree(self._work / f"report-{self._number - 2}", ignore_errors=True)  # the last but one is not read now
        return _Shown(live.encode(), folder)

    def _score(self, opened: Ledger) -> list[str]:
        from evals.assets import AssetError
        from fuseval.scoring import score

        try:
            score(opened, asset=self._asset)
        except AssetError as error:
            return [f"The scores are those of the last run: {error}"]
        return []

    def _stamp(self) -> object:
        found = []
        for path in (self._ledger, Path(f"{self._ledger}.wal")):
            with contextlib.suppress(FileNotFoundError):
                told = path.stat()
                found.append((told.st_ino, told.st_mtime_ns, told.st_size))
        return tuple(found)


def serve(ledger: Path, *, title: str, port: int, asset: Locate, ready: Callable[[str], None], every: int = 5) -> None:
    """Serve the live report until interrupted; ``ready`` is told its address, ``port`` 0 takes any free one."""
    if not ledger.exists():
        raise ConfigError(f"there is no ledger {ledger}: give --ledger, or start the run that makes it")
    with serving(ledger, title=title, port=port, asset=asset, every=every) as address:
        ready(address)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextlib.contextmanager
def serving(ledger: Path, *, title: str, port: int, asset: Locate, every: int = 5) -> Iterator[str]:
    """Serve in threads of its own, and yield the address."""
    with tempfile.TemporaryDirectory(prefix="fuseval-live-") as folder:
        live = Live(ledger.absolute(), title=title, every=every, asset=asset, work=Path(folder))
        try:
            server = ThreadingHTTPServer((HOST, port), _handler(live))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be had ({error}): give another --port, or 0 for any") from error
        server.daemon_threads = True
        ended = threading.Event()
        threads = [
            threading.Thread(target=server.serve_forever, name="live-report", daemon=True),
            threading.Thread(target=_refresh_until, args=(live, ended, every), name="live-pages", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}/"
        finally:
            ended.set()
            server.shutdown()
            server.server_close()
            threads[1].join(timeout=2)  # it may wait for a snapshot; what it makes then is thrown away


def _refresh_until(live: Live, ended: threading.Event, every: float) -> None:
    while True:
        try:
            live.refresh()
        except Exception as error:  # half a ledger may be what no scoring expects; the next look may find it whole
            live.say(f"The pages cannot be made of what is there ({type(error).__name__}: {error}).")
        if ended.wait(every):
            return


def _handler(live: Live) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "fuseval", ""
        timeout = 30

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal is the run's."""

        def _answer(self, *, body: bool) -> None:
            if self.headers.get("Host") not in _hosts(self.connection.getsockname()[1]):
                # A page elsewhere whose name was made to lead here would read the ledger.
                self._send(421, "text/plain; charset=utf-8", b"This server answers to its own address only.\n", body)
                return
            name = self.path.split("?", 1)[0].removeprefix("/")
            found = live.live if name == "" else live.file(name)
            if found is None:
                self._send(404, "text/plain; charset=utf-8", b"There is no such page (yet).\n", body)
                return
            self._send(200, _KINDS.get(Path(name or "live.html").suffix, "application/octet-stream"), found, body)

        def _send(self, code: int, kind: str, text: bytes, body: bool) -> None:
            self.send_response(code)
            for header, value in {"Content-Type": kind, "Content-Length": str(len(text)), **_HEADERS}.items():
                self.send_header(header, value)
            self.end_headers()
            if body:
                self.wfile.write(text)

    return Handler


def _hosts(port: int) -> tuple[str, ...]:
    return (f"{HOST}:{port}", f"localhost:{port}")


def _waiting(title: str, every: int, why: str) -> bytes:
    from html import escape

    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{every}">'
        f"<title>{escape(title)}</title><h1>{escape(title)}</h1><p>{escape(why)}</p></html>\n"
    ).encode()
