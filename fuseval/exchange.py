"""Other projects' answers and judgments into the ledger, and the ledger's into their files.

Models and judges are known by the names that files give them. A judgment's key is made of what the file says (whose,
of what, the prompt, the reply) and of its number among equal ones: a file imported twice adds nothing, a longer one
what is new in it, and one that repeats a judgment keeps both. Replies are read by our own readers; where a file says
otherwise of its own replies, that is counted. Answers come from files of answers, else out of the judge's prompts,
which hold them exactly; where neither is at hand, a text that says so stands for the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from evals.benchmark import Locate
from fuseval.config import ConfigError, did_you_mean
from fuseval.importing import Batch, File
from fuseval.placing import Known, complete, notes, placing, strange_turn
from results.interchange import BENCHMARKS, FORMATS, export, likely_kind, read_rows
from results.interchange.kept import next_position
from results.interchange.rows import FormatError, Row, first_row, raw_rows
from results.queries import display_names
from results.store import Ledger
from results.tables import clean

Watch = Callable[[str, int, int], None]
"""Told of progress: what is done, how much of it, of how much."""

_BATCH = 10_000  # rows of a file that are stored together


def import_files(
    ledger: Ledger, kind: str, paths: Sequence[Path], *, asset: Locate, model: str | None, watch: Watch
) -> list[dict[str, object]]:
    """Store what ``kind``'s files hold and return a row a file: what it is, what was in it, what was left out and why.

    ``kind`` is fastchat, alpaca_eval or arena_hard; a folder stands for the .json and .jsonl files in it. Files of
    answers are read first, so that judgments without prompts find them. ``model`` gives the model of the files another
    name; of files about several, it picks the one of that name. Raises ConfigError for a ``kind`` or path that
    there is not, AssetError where the benchmark's own files cannot be had.
    """
    _check(kind)
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    known, touched = Known(kind, asset, ledger), dict[str, set[str]]()
    rows: dict[Path, dict[str, object]] = {}
    # Until it is closed: a batch is more than DuckDB's 16 MB, and would each time write the tables' last rows anew.
    ledger.sql("SET checkpoint_threshold = '1GB'")
    for done, path in enumerate(sorted(files, key=_after_answers(kind))):
        watch(f"import {path.name}", done, len(files))
        rows[path] = _import_file(known, path, model=model, touched=touched)
    for version, models in touched.items():
        complete(known, version, models)
    ledger.flush()
    watch("import", len(files), len(files))
    return [rows[path] for path in files]


def export_files(
    ledger: Ledger,
    kind: str,
    folder: Path,
    *,
    benchmark_version: str | None = None,
    models: Sequence[str] | None = None,
) -> list[Path]:
    """Write answers and judgments as ``kind``'s files below ``folder`` and return the files' paths.

    Imported rows are written as they came. ``models`` are names or identities; None means all. Raises ConfigError
    for a ``kind`` that there is not, and for a model or version of which the ledger holds nothing.
    """
    _check(kind)
    there = [version for name, version in ledger.benchmarks() if name == BENCHMARKS[kind]]
    if benchmark_version is not None and benchmark_version not in there:
        raise ConfigError(
            f"ledger {ledger.path} holds no {BENCHMARKS[kind]} {benchmark_version!r}; "
            f"it holds {', '.join(there) or 'none'}"
        )
    known = {name for m in ledger.models() for name in (m.id, m.name)} | set(display_names(ledger).values())
    for model in models or ():
        if model not in known:
            raise ConfigError(f"ledger {ledger.path} holds no model {model!r}.{did_you_mean(model, known)}")
    return export.export_files(ledger, kind, folder, version=benchmark_version, models=models)


def _import_file(known: Known, path: Path, *, model: str | None, touched: dict[str, set[str]]) -> dict[str, object]:
    file = File(path, rename=clean(model) if model else None)
    try:
        raws = raw_rows(path, faults=file.faults)
    except (FormatError, OSError) as error:
        file.faults.append(str(error))
        return file.summary(known.kind)
    rows, faults = read_rows(known.kind, raws)
    file.faults += faults
    if not rows and raws and (other := likely_kind(raws[0])) not in (None, known.kind):
        file.faults = [f"looks like one of {other}'s files: import it as that"]
    rows = _wanted(rows, file)
    question_of, position = placing(known, rows), next_position(known.ledger)
    known.forget_answers()
    for begun in range(0, len(rows), _BATCH):
        batch = Batch(known, file, position + begun)
        for row in rows[begun : begun + _BATCH]:
            question = question_of(row)
            if question is None:
                file.faults.append(f"{BENCHMARKS[known.kind]} has no question {row.question[:60]!r}")
            elif (turn := strange_turn(row, question)) is not None:
                file.faults.append(f"question {question.id} has {len(question.turns)} turns, the row says {turn}")
            else:
                batch.take(row, question)
        batch.store(touched)
    file.notes = notes(known, versions=file.versions, faulty=bool(file.faults))
    return file.summary(known.kind)


def _wanted(rows: list[Row], file: File) -> list[Row]:
    names = {row.model for row in rows}
    if file.rename is None:
        file.faults += ["a row does not say whose it is: give --model NAME"] * sum(not row.model for row in rows)
        return [row for row in rows if row.model]
    if len(names) <= 1:
        return rows
    others = [row.model for row in rows if row.model != file.rename]
    file.faults += [f"rows about {name!r}, not {file.rename!r}" for name in others]
    return [row for row in rows if row.model == file.rename]


def _check(kind: str) -> None:
    if kind not in FORMATS:
        raise ConfigError(f"there is no kind of file {kind!r}; there are {', '.join(FORMATS)}")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in (".json", ".jsonl") and p.is_file())
        if not found:
            raise ConfigError(f"there is no .json or .jsonl file in {path}")
        return found
    if not path.exists():
        raise ConfigError(f"there is no file or folder {path}")
    return [path]


def _after_answers(kind: str) -> Callable[[Path], bool]:
    def later(path: Path) -> bool:
        row = first_row(path)
        return row is None or "answer" not in (FORMATS[kind].schema(row) or "")

    return later
