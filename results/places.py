"""Where other ledgers lie: DuckDB files, or what was exported as Parquet, in folders and at URLs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from results.parquet import parquet_tables
from results.store import Ledger
from results.unite import United, rules


def add_place(ledger: Ledger, place: str) -> list[United]:
    """Add to the ledger what lies at ``place``, a ledger file or an exported ledger's folder or URL; see results.unite.

    All of it is taken or nothing. Raises LedgerError for what is no ledger, is open elsewhere or of another version.
    """
    if not Path(place).is_file():
        return ledger.unite(parquet_tables(place), place=place)
    with Ledger.open(place, read_only=True) as other:
        tables = {rule.table: partial(other.stream, rule.table) for rule in rules()}
        return ledger.unite(tables, place=place)
