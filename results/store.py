"""The ledger: add records, find out what is missing, read records back. One process writes, at one time.

The file is plain DuckDB; the tables and views are described in ``schema.sql``. Text that UTF-8 cannot hold (lone
surrogates in a model's output) is stored with U+FFFD in their place; NUL characters are kept.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evals.records import Answer, AnswerFlag, Audit, Difference, Judgment, Question, Score, Verdict
from results.connect import connect
from results.errors import LedgerBusy, LedgerError
from results.reading import AMONG, Records, cleaned
from results.tables import TABLES, Record, clean
from results.unite import Batches, United, unite
from results.write import Row, transaction, write

if TYPE_CHECKING:
    from pandas import DataFrame

_COMMIT_EVERY = 0.25  # seconds; a record is promised to be committed within one
_POSITIONS = itertools.count(time.time_ns())  # so that a later process goes on where this one ended
_OPEN_FOR_WRITING: set[Path] = set()  # two writers in one process would share the file and conflict


class Ledger(Records):
    """An open ledger. Use :meth:`open`; every method may be called from any thread.

    ``add`` returns at once and a background thread commits, at the latest 0.25 s later; an error of that thread is
    raised by the next ``add``, ``flush`` or read. What could not be written, and what that ``add`` brought, is kept
    and tried again.
    """

    def __init__(self, path: Path, connection: Any, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._connection = connection
        self._idle = connection.cursor()  # cursors for reading come from it, whatever the committer is doing
        self._run: str | None = None
        self._pending: list[Row] = []
        self._pending_lock = threading.Lock()
        self._write_lock = threading.RLock()
        self._error: Exception | None = None
        self._closing = threading.Event()
        self._exiting = False
        self._committer = threading.Thread(target=self._commit_for_ever, name="ledger-committer", daemon=True)
        if not read_only:
            self._committer.start()
            atexit.register(self._close_at_exit)

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False) -> Self:
        """Open the ledger at ``path``; for writing, it and its folder are made and migrated as needed.

        Raises LedgerBusy, LedgerTooNew, NotALedger, or LedgerError for anything else.
        """
        path = Path(path).absolute()
        if read_only:
            return cls(path, connect(path, read_only=True), read_only=True)
        real = path.resolve()
        if real in _OPEN_FOR_WRITING:
            raise LedgerBusy(f"ledger {path} is already open for writing in this very process: use that Ledger")
        connection = connect(path, read_only=False)
        _OPEN_FOR_WRITING.add(real)
        return cls(path, connection, read_only=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is pending and close the file; a second call does nothing."""
        with self._write_lock:
            if self._closing.is_set():
                return
            self._closing.set()
        atexit.unregister(self._close_at_exit)
        try:
            if not self.read_only:
                self._committer.join()
                self._commit()
        finally:
            self._idle.close()
            self._connection.close()
            if not self.read_only:
                _OPEN_FOR_WRITING.discard(self.path.resolve())

    def _close_at_exit(self) -> None:
        self._exiting = True  # an interpreter that ends can no longer import what Arrow needs
        self.close()

    # Writing

    def add(self, *records: Record) -> None:
        """Store records, at the latest 0.25 s from now; a record stored twice is there once.

        Of answers, judgments, judge requests, questions and imported rows the first stored stays; of everything else
        the last.
        An answer or judgment removes the failure of its key, and a failure of one that is there is not stored.
        """
        self._enqueue([_row(record) for record in records])

    def put_scores(
        self,
        scores: Iterable[Score],
        *,
        benchmark: str,
        version: str,
        provenance: Mapping[str, Any],
        items: DataFrame | None = None,
        differences: Iterable[Difference] = (),
        models: Iterable[str] | None = None,
    ) -> None:
        """Replace a benchmark's scores, their items and differences, of all models or of these, now and in one step.

        ``items`` has the columns of ``item_scores`` that are not given here; ``provenance`` says what the scores rest
        on (see ``scores.provenance`` in ``schema.sql``).
        """
        text = clean(json.dumps(dict(provenance), ensure_ascii=False, allow_nan=False, sort_keys=True))
        rows = [*(_row(score, text) for score in scores), *(_row(difference) for difference in differences)]
        which, whose = ("", []) if models is None else (f"AND model IN {AMONG}", [cleaned(models)])
        with self._writing() as connection:
            for table in ("scores", "item_scores", "differences"):
                old = f"DELETE FROM {table} WHERE benchmark = ? AND version = ? {which}"
                connection.execute(old, [benchmark, version, *whose])
            if items is not None:
                connection.register("incoming_items", items)
                connection.execute(
                    "INSERT INTO item_scores BY NAME SELECT *, ?::VARCHAR AS benchmark, ?::VARCHAR AS version, "
                    "?::VARCHAR AS run, now() AS recorded_at FROM incoming_items",
                    [benchmark, version, self._run],
                )
                connection.unregister("incoming_items")
            write(connection, rows, run=self._run)

    def put_again(self, *judgments: Judgment) -> None:
        """Replace judgments by later ones of the same keys, now; what was read of the earlier ones is forgotten."""
        keys = [judgment.key for judgment in judgments]
        with self._writing() as connection:
            requests = f"SELECT key FROM judge_requests WHERE judgment IN {AMONG}"
            connection.execute(f"DELETE FROM verdicts WHERE request IN ({requests})", [keys])
            connection.execute(f"DELETE FROM judgments WHERE key IN {AMONG}", [keys])
            write(connection, [_row(judgment) for judgment in judgments], run=self._run)

    def put_audit(self, audits: Iterable[Audit], flags: Iterable[AnswerFlag], *, benchmark: str, version: str) -> None:
        """Replace what is known of a benchmark's judges and of suspicious answers to it, now and in one step."""
        rows = [*map(_row, audits), *map(_row, flags)]
        with self._writing() as connection:
            for table in ("audits", "answer_flags"):
                connection.execute(f"DELETE FROM {table} WHERE benchmark = ? AND version = ?", [benchmark, version])
            write(connection, rows, run=self._run)

    def unite(self, tables: Mapping[str, Callable[[], Batches]], *, place: str) -> list[United]:
        """Add another ledger's rows, all or none of them, and say what became of them; see results.unite.

        ``tables`` reads them by table, and ``place`` is what messages call them. Raises LedgerError.
        """
        with self._writing() as connection:
            return list(unite(connection, tables, place=place))

    def flush(self) -> None:
        """Commit everything added so far, now."""
        self._check_open()
        self._raise_background_error()
        self._commit()

    def start_run(self, *, command: str, experiment: str, versions: Mapping[str, str]) -> str:
        """Record that a run starts and return its id; what is added from now on carries it."""
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO runs (id, command, experiment, versions) VALUES (?, ?, ?, ?)",
                [run, clean(command), clean(experiment), clean(json.dumps(dict(versions)))],
            )
        self._run = run
        return run

    def end_run(self, run_id: str, *, outcome: str) -> None:
        """Record that a run ended and how; a run that was killed has neither."""
        with self._writing() as connection:
            connection.execute("UPDATE runs SET ended = now(), outcome = ? WHERE id = ?", [clean(outcome), run_id])
        if self._run == run_id:
            self._run = None

    # Committing

    def _cursor(self) -> Any:
        self._check_open()
        if not self.read_only:
            self.flush()
        return self._idle.cursor()  # its own transaction: a long read does not hold up the committer

    def _enqueue(self, rows: Sequence[Row]) -> None:
        self._check_writable()
        with self._pending_lock:
            self._pending.extend(rows)  # before an old error is raised: these rows may have been paid for
        self._raise_background_error()

    def _commit(self) -> None:
        with self._write_lock:
            with self._pending_lock:
                rows, self._pending = self._pending, []
            if not rows:
                return
            try:
                with transaction(self._connection, self.path):
                    write(self._connection, rows, run=self._run, bulk=not self._exiting)
            except BaseException:
                with self._pending_lock:
                    self._pending = rows + self._pending
                raise

    def _commit_for_ever(self) -> None:
        while not self._closing.wait(_COMMIT_EVERY):
            try:
                self._commit()
            except Exception as error:
                self._error = error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        self._check_writable()
        self.flush()
        with self._write_lock, transaction(self._connection, self.path):
            yield self._connection

    def _raise_background_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise LedgerError(f"ledger {self.path} is closed: open it again")

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise LedgerError(f"ledger {self.path} was opened read-only: open it for writing to add to it")


def _row(record: Record, provenance: str = "{}") -> Row:
    type_ = type(record)
    if type_ not in TABLES:
        names = ", ".join(sorted(known.__name__ for known in TABLES))
        raise TypeError(f"a ledger stores no {type_.__name__}: {record!r}; it stores {names}")
    extra: tuple[Any, ...] = ()
    if type_ in (Question, Answer, Judgment, Verdict):
        extra = (next(_POSITIONS),)
    elif type_ is Score:
        extra = (provenance, datetime.now(UTC))
    return Row(type_, TABLES[type_].row(record), extra)
