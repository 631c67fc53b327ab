"""Ledgers of several people or machines made one, and written where others can take them up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fuseval.config import ConfigError
from fuseval.models import Watch
from fuseval.scoring import versions
from results.parquet import export_parquet
from results.places import add_place
from results.store import Ledger


def unite_ledgers(places: Sequence[str], into: Path, *, watch: Watch) -> list[dict[str, object]]:
    """Add what lies at each place, a ledger file or an exported ledger, to the ledger ``into``, made where missing.

    Returns a row a place and table that brought something. A place is taken wholly or not at all; raises ConfigError
    for the ledger itself among the places, LedgerError for what is no ledger, or has other questions.
    """
    for place in places:
        if Path(place).exists() and Path(place).resolve() == into.resolve():
            raise ConfigError(f"{place} is the ledger that is added to: leave it out, what it holds stays")
    rows: list[dict[str, object]] = []
    with Ledger.open(into) as ledger:
        run, outcome = ledger.start_run(command="ledger merge", experiment="", versions=versions()), "failed"
        try:
            for number, place in enumerate(places):
                watch("unite ledgers", number, len(places))
                rows += [
                    {
                        "from": place,
                        "table": each.table,
                        "rows": each.came,
                        "new": each.new,
                        "replaced": each.replaced,
                        "differing": each.differing,
                    }
                    for each in add_place(ledger, place)
                    if each.came
                ]
            watch("unite ledgers", len(places), len(places))
            outcome = "done"
        finally:
            ledger.end_run(run, outcome=outcome)
    return rows


def export_ledger(ledger: Ledger, place: str) -> list[dict[str, object]]:
    """Write the ledger as Parquet files to a folder or URL; return how many rows of each table. Raises LedgerError."""
    return [{"table": table, "rows": count} for table, count in export_parquet(ledger, place).items() if count]
