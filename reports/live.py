"""The page of a ledger that is being filled: how far each model is, what it cost, the scores so far.

It holds no script; everything in it is escaped, and its own policy allows its style sheet and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reports.compare import comparison, grids
from reports.costs import cost_total
from reports.marks import footnotes
from results import audit_queries, progress
from results.store import Ledger

_HERE = Path(__file__).parent


def live_page(
    ledger: Ledger,
    *,
    title: str,
    as_of: datetime,
    state: str,
    every: int,
    has_page: bool = True,
    notes: Sequence[str] = (),
) -> str:
    """Return the page as HTML.

    ``as_of`` (in UTC) is when the ledger was copied, ``state`` whether somebody is filling it, ``every`` after how many
    seconds the page loads itself anew, ``has_page`` whether report.html lies beside it.
    """
    css = (_HERE / "live.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    compared = comparison(ledger)
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made = environment.get_template("live.html").render(
        title=title,
        as_of=f"{as_of:%Y-%m-%d %H:%M:%S}",
        state=state,
        every=every,
        has_page=has_page,
        notes=notes,
        css=css,
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        progress=progress.progress(ledger),
        cost=cost_total(audit_queries.costs(ledger)),
        tables=[(name, rows) for name, rows in grids(compared.rows).items() if rows],
        footnotes=footnotes(compared.rows),
        statements=[s.sentence for s in compared.statements if s.verdict in ("better", "worse")],
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", made) + "\n"
