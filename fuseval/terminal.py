"""What the terminal shows: messages, tables, and a bar with an ETA for each stage (plain lines into a file)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_EVERY = 1.0  # seconds between two plain lines of one stage


def say(*lines: str, style: str = "") -> None:
    """Print lines to standard error, as they are."""
    from rich.console import Console

    console = Console(stderr=True)
    for line in lines:
        console.print(_plain(line, console.file), style=style, markup=False, highlight=False, soft_wrap=True)


def show(rows: Sequence[dict[str, Any]], *, as_json: bool, title: str) -> None:
    """Print rows to standard output, as a table or as JSON."""
    if as_json:
        text = json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n"
        sys.stdout.write(text if _writable(text, sys.stdout) == text else json.dumps(list(rows), indent=1) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=Text(_plain(title, console.file), style="table.title"), title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(Text(_plain(column, console.file)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(str(value), console.file)) for value in row.values()))
    console.print(table)


def show_pages(pages: Sequence[tuple[dict[str, Any], str]], *, as_json: bool) -> None:
    """Print pages of text to standard output, or what they say as JSON."""
    if as_json:
        show([told for told, _ in pages], as_json=True, title="")
        return
    for _, page in pages:
        sys.stdout.write(_plain(page, sys.stdout) + "\n")


def _plain(text: str, stream: IO[str]) -> str:
    """Return what of the text a terminal can be given.

    A server's or a file's words may be in it: no terminal escapes, no overrides of the reading direction, and nothing
    that ``stream`` cannot write.
    """
    return _writable("".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf")), stream)


def _writable(text: str, stream: IO[str]) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


@contextlib.contextmanager
def stages() -> Iterator[Stages]:
    """Show progress on a copy of standard error, which stays the terminal while an engine's start-up is captured."""
    from rich.console import Console

    with os.fdopen(os.dup(2), "w", encoding="utf-8") as stream:
        shown = Stages(Console(file=stream))
        try:
            yield shown
        finally:
            shown.stop()


class Stages:
    """Shows stages by name as they advance; calling it has the signature of :data:`fuseval.models.Watch`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._progress: Progress | None = _bars(console) if console.is_terminal else None

    def stop(self) -> None:
        """Leave the bars as they stand."""
        if self._progress:
            self._progress.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` parts of ``stage`` are there; a total of 0 is not known yet.

        The note (what it has cost so far) stands beside the numbers.
        """
        stage, note = (_plain(text, self._console.file) for text in (stage, note))
        if self._progress:
            if stage not in self._tasks:
                self._tasks[stage] = self._progress.add_task(stage, total=total or None, note="")
            self._progress.update(self._tasks[stage], completed=done, total=total or None, note=note)
            return
        now = time.monotonic()
        if stage not in self._said or done == total or now - self._said[stage] >= LINE_EVERY:
            self._said[stage] = now
            self._console.print(f"{stage}: {done}/{total or '?'}{note and f', {note}'}", markup=False, highlight=False)


def _bars(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rest = (TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False))
    progress = Progress(*columns, *rest, console=console)
    progress.start()
    return progress
