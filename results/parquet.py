"""A ledger as Parquet files, a folder a table and in it a folder a run, anywhere that fsspec reaches.

``PLACE/answers/run=20261201T…/rows-….parquet``, and ``PLACE/ledger.json`` with the schema's version. Several ledgers
may be exported to one place: each writes files of its own. Rows of a run that were since replaced or removed may
stay in an older file; uniting (:mod:`results.unite`) tells them apart.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from results.errors import LedgerError, LedgerTooNew, NotALedger
from results.schema import current_schema
from results.store import Ledger
from results.unite import Batches, rules

_MANIFEST = "ledger.json"
_FIRST = 5  # the version of the first ledgers that were exported


def export_parquet(ledger: Ledger, place: str) -> dict[str, int]:
    """Write the ledger's rows to ``place`` (a folder or URL), all files or none; return how many of each table.

    What scoring makes is left out. Raises LedgerError where the place cannot be written, or is not an export.
    """
    import pyarrow.parquet

    files, root = _filesystem(place)
    manifest, counts = f"{root}/{_MANIFEST}", dict.fromkeys((rule.table for rule in rules()), 0)
    try:
        if files.exists(root) and files.ls(root) and not files.exists(manifest):
            raise NotALedger(f"{place} holds other things than an exported ledger: name an empty or new place")
        [(own,)] = ledger.sql("SELECT hash(min(created)) FROM meta").fetchall()  # two ledgers may hold rows of one run
        with files.transaction:  # files appear when all are whole
            for table in counts:
                column = "id" if table == "runs" else "run"
                runs = ledger.sql(f"SELECT DISTINCT coalesce({column}, '') AS run FROM {table} ORDER BY run").fetchall()
                for (run,) in runs:
                    folder = f"{root}/{table}/run={quote(run, safe='') or 'none'}"
                    files.makedirs(folder, exist_ok=True)
                    batches = ledger.stream(table, run=run)
                    with (
                        files.open(f"{folder}/rows-{own:016x}.parquet", "wb") as sink,
                        pyarrow.parquet.ParquetWriter(sink, batches.schema, compression="zstd") as writer,
                    ):
                        for batch in batches:
                            writer.write_batch(batch)
                            counts[table] += batch.num_rows
            with files.open(manifest, "wb") as sink:
                sink.write(json.dumps({"ledger": current_schema().latest}).encode())
    except OSError as error:
        raise LedgerError(f"{place} cannot be written ({error}): look at its rights and space") from error
    return counts


def parquet_tables(place: str) -> Mapping[str, Callable[[], Batches]]:
    """Return what reads each table of a ledger that was exported to ``place``, for :meth:`Ledger.unite`.

    Raises NotALedger where none was, LedgerTooNew where a later fuseval did, LedgerError for what cannot be read.
    """
    files, root = _filesystem(place)
    try:
        if not files.exists(f"{root}/{_MANIFEST}"):
            raise NotALedger(
                f"{place} holds no exported ledger (no {_MANIFEST}): make one with `fuseval ledger export`"
            )
        version = _version(files.cat_file(f"{root}/{_MANIFEST}"), place)
        found = {
            rule.table: sorted(files.glob(f"{glob.escape(root)}/{rule.table}/run=*/*.parquet")) for rule in rules()
        }
    except OSError as error:
        raise LedgerError(f"{place} cannot be read ({error})") from error
    if version > current_schema().latest:
        latest = current_schema().latest
        raise LedgerTooNew(f"{place} has ledger version {version}, this fuseval knows up to {latest}: upgrade fuseval")
    return {table: partial(_reader, files, paths, place) for table, paths in found.items() if paths}


def _version(manifest: bytes, place: str) -> int:
    try:
        version = json.loads(manifest)["ledger"]
    except (ValueError, KeyError, TypeError):
        version = None
    if not isinstance(version, int) or version < _FIRST:
        raise NotALedger(f"{place}/{_MANIFEST} does not say which version its ledger has: export it again")
    return version


def _reader(files: Any, paths: list[str], place: str) -> Batches:
    import pyarrow
    import pyarrow.dataset
    import pyarrow.parquet

    try:
        schemas = []
        for path in paths:
            with files.open(path, "rb") as source:
                schemas.append(pyarrow.parquet.read_schema(source))
        schema = pyarrow.unify_schemas(schemas)  # files of an older version have fewer columns
        return pyarrow.dataset.dataset(paths, schema=schema, format="parquet", filesystem=files).scanner().to_reader()
    except (OSError, pyarrow.ArrowException) as error:
        raise LedgerError(f"{place} has a file that cannot be read ({error}): export its ledger again") from error


def _filesystem(place: str) -> tuple[Any, str]:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise LedgerError(
            f"{place} cannot be reached ({error}): install what it names, or give another place"
        ) from error
    return files, root.rstrip("/")
