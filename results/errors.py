"""What can go wrong with a ledger.

LedgerError            the ledger cannot be opened, read or written
├── LedgerBusy         another process (or this one) has it open
├── LedgerTooNew       a later fuseval wrote it
└── NotALedger         the file is something else
"""

from __future__ import annotations


class LedgerError(Exception):
    """A ledger cannot be opened, read or written; the message names the file and the next step."""


class LedgerBusy(LedgerError):
    """Somebody else has the ledger open; ``pid`` is the process that holds it, where that is known."""

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class LedgerTooNew(LedgerError):
    """The ledger was written by a later version of fuseval; nothing in it was touched."""


class NotALedger(LedgerError):
    """The file is no DuckDB database, or one that holds other things; nothing in it was touched."""
