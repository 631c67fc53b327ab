"""Options that several commands take, each with its help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to fuse, ask and judge.")]
LedgerOption = Annotated[Path | None, typer.Option("--ledger", help="DuckDB file; default: the experiment's own.")]
LedgerFile = Annotated[Path, typer.Option("--ledger", help="DuckDB file with answers and judgments.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many questions a benchmark, spread over categories.")]
Questions = Annotated[
    list[str] | None,
    typer.Option(
        "--questions", help="Only the questions of these ids, parted by commas; BENCHMARK:ID tells equal ones apart."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the rows as JSON on standard output.")]
Dollars = Annotated[
    float | None, typer.Option("--budget", min=0.0, help="US dollars to spend at most; default: the experiment's.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Ask again, too, what time does not mend (refused, filtered, too long).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be made and asked, and its price.")]


def read_size(text: str) -> int:
    """Return the bytes that a size such as 5GB, 500MB or 2GiB says."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B", text.strip(), flags=re.IGNORECASE)
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if not size:
        raise typer.BadParameter(f"{text!r} is no size: write it as 5GB, 500MB or 2GiB")
    return size


MaxShardSize = Annotated[
    int | None, typer.Option(parser=read_size, metavar="SIZE", help="Of a file of weights, as 2GB; default: 5GiB.")
]

DEFAULT_LEDGER = Path("fuseval.duckdb")
