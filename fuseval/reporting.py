"""What `fuseval report` writes and prints: the page, tables, sentences, figures, a model card, a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fuseval.config import ConfigError, did_you_mean

if TYPE_CHECKING:
    from reports.compare import Comparison
    from results.queries import LeaderboardRow
    from results.store import Ledger

FORMATS = ("json", "csv", "markdown", "latex")
TOKEN_ENV = "HF_TOKEN"  # noqa: S105 (its name)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. Of ``formats`` there may be one; ``rows_of`` and ``context`` name published leaderboards."""

    output: Path | None = None
    title: str | None = None
    formats: Sequence[str] = ()
    differences: bool = False
    statements: bool = False
    context: Sequence[str] = ()  # NAME, or NAME=PATTERN of models
    rows_of: str | None = None
    figures: Path | None = None
    card_of: str | None = None  # a model
    publish: str | None = None  # a data set of the Hub
    answers: bool = False  # published too
    really: bool = False  # upload it
    token_env: str = TOKEN_ENV


@dataclass(slots=True)
class Made:
    """What goes to standard output, and what there is to say of it."""

    text: str = ""
    lines: list[str] = field(default_factory=list)


def report(ledger: Ledger, wanted: Wanted) -> Made:
    """Make what is wanted of the ledger; raises ConfigError where that does not go together."""
    _check(wanted)
    made = Made()
    if wanted.rows_of:
        made.text = _official_rows(ledger, wanted)
    elif wanted.formats or wanted.differences or wanted.statements or (wanted.context and not wanted.output):
        made.text = _tables(ledger, wanted)
    if wanted.figures:
        from reports.figure_files import write_figures

        paths = write_figures(ledger, wanted.figures)
        made.lines.append(f"figures: {len(paths)} files in {wanted.figures}")
    if wanted.card_of:
        made.lines += _write_card(ledger, wanted)
    elif wanted.publish:
        made.lines += _publish(ledger, wanted)
    elif wanted.output or not (made.text or wanted.figures or wanted.rows_of):
        from reports.html import write_page

        page = wanted.output or Path("report.html")
        write_page(ledger, page, title=wanted.title or ledger.path.stem, context=_context(wanted.context))
        made.lines.append(f"report: {page}")
    return made


def _check(wanted: Wanted) -> None:
    if len(wanted.formats) > 1:
        raise ConfigError("--json, --csv, --markdown and --latex exclude each other: give one")
    tables = {
        "--differences": wanted.differences,
        "--statements": wanted.statements,
        "--leaderboard-rows": wanted.rows_of,
        "--context": wanted.context and not wanted.rows_of,
    }
    if len(several := [name for name, given in tables.items() if given]) > 1:
        raise ConfigError(f"{' and '.join(several)} are different tables: give one")
    [*only] = wanted.formats
    if wanted.statements and not set(only) <= {"json"}:
        raise ConfigError(f"--statements prints sentences, not --{only[0]}: --differences has the table")
    if wanted.rows_of and not set(only) <= {"csv", "json"}:
        raise ConfigError(f"--leaderboard-rows prints the project's own CSV, not --{only[0]}")
    if wanted.card_of and wanted.publish:
        raise ConfigError("--model-card and --publish both take -o: give one")
    if (wanted.really or wanted.answers) and not wanted.publish:
        raise ConfigError(f"{'--yes' if wanted.really else '--with-answers'} goes with --publish ORGANISATION/NAME")


def _tables(ledger: Ledger, wanted: Wanted) -> str:
    from reports import compare, differences
    from reports.audit import visible
    from reports.marks import marked_models

    compared = compare.comparison(ledger)
    kind = wanted.formats[0] if wanted.formats else "markdown"
    if wanted.statements:
        sentences = "".join(f"{visible(' '.join(each.sentence.split()))}\n" for each in compared.statements)
        return differences.to_json(compared.statements) if kind == "json" else sentences
    if wanted.differences:
        if kind in ("json", "csv"):
            plain = {"json": differences.to_json, "csv": differences.to_csv}
            return plain[kind](compared.statements)
        marked = set().union(*marked_models(compared.rows).values())
        write = differences.to_markdown if kind == "markdown" else differences.to_latex
        return write(compared.statements, marked=marked)
    writers: Mapping[str, Callable[[Sequence[LeaderboardRow]], str]] = {
        "json": compare.to_json,
        "csv": compare.to_csv,
        "markdown": compare.to_markdown,
        "latex": compare.to_latex,
    }
    return writers[kind](compare.among(compared.rows, _context(wanted.context)))


def _context(given: Sequence[str]) -> list[LeaderboardRow]:
    from evals.assets import asset_table
    from fuseval.session import locate_asset
    from results.interchange.leaderboards import LEADERBOARDS, published_rows

    rows = []
    for text in given:
        kind, _, pattern = text.partition("=")
        board = LEADERBOARDS[_known_board(kind)]
        [asset] = [asset for asset in asset_table() if asset.name == board.asset]
        source = f"{asset.source.removeprefix('github.com/')}@{(asset.revision or '')[:7]}"
        rows += published_rows(kind, locate_asset()(board.asset), source=source, pattern=pattern or "*")
    return rows


def _known_board(kind: str) -> str:
    from results.interchange.leaderboards import LEADERBOARDS

    if kind not in LEADERBOARDS:
        names = ", ".join(LEADERBOARDS)
        raise ConfigError(f"no leaderboard is called {kind!r}; there are {names}.{did_you_mean(kind, LEADERBOARDS)}")
    return kind


def _official_rows(ledger: Ledger, wanted: Wanted) -> str:
    from fuseval.scoring import published_figures
    from fuseval.session import locate_asset
    from reports.formats import csv_text, json_text
    from results.evidence import mean_characters
    from results.interchange.leaderboards import LEADERBOARDS, alpaca_eval_rows, arena_hard_rows

    board = LEADERBOARDS[_known_board(wanted.rows_of or "")]
    if board.benchmark == "arena_hard":
        place = f"{board.benchmark}@{board.version}"
        rows = arena_hard_rows(ledger, published_figures(ledger, asset=locate_asset(), benchmark=place))
    else:
        lengths = mean_characters(ledger, benchmark=board.benchmark, version=board.version)
        rows = alpaca_eval_rows(ledger, judge=board.judge, lengths=lengths)
    if not rows:
        raise ConfigError(
            f"{ledger.path} has no scores of {board.benchmark} {board.version} that its leaderboard would take"
        )
    return json_text(rows) if "json" in wanted.formats else csv_text(board.columns, rows)


def _write_card(ledger: Ledger, wanted: Wanted) -> list[str]:
    from fuseval import __version__
    from reports.compare import comparison
    from reports.model_card import CardError, Results, updated_card
    from results.queries import display_names

    name = wanted.card_of or ""
    names = display_names(ledger)
    known = {known for m in ledger.models() for known in (m.id, m.name)} | set(names.values())
    if name not in known:
        raise ConfigError(f"no model is called {name!r} in {ledger.path}.{did_you_mean(name, known)}")
    compared = comparison(ledger, model=name)
    if len(shown := {row.name for row in compared.rows}) > 1:
        raise ConfigError(f"{name!r} names several models: give one of {', '.join(sorted(shown))}")
    if not compared.rows:
        raise ConfigError(f"{name!r} has no scores in {ledger.path}: `fuseval score --ledger {ledger.path}` makes them")
    compared = _of_model(compared)
    path = wanted.output or Path("README.md")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    title = wanted.title or compared.rows[0].name
    try:
        card = updated_card(before, Results(title, compared.rows, compared.statements, __version__))
    except CardError as error:
        raise ConfigError(f"{path} is not changed: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(card, encoding="utf-8", newline="")
    os.replace(part, path)  # so that what was there is never half written over
    return [f"model card: {path} ({'updated' if before else 'new'}, {len(compared.rows)} scores)"]


def _of_model(compared: Comparison) -> Comparison:
    """Keep the sentences whose subject the model is."""
    name = compared.rows[0].name
    return replace(compared, statements=tuple(s for s in compared.statements if s.difference.name == name))


def _publish(ledger: Ledger, wanted: Wanted) -> list[str]:
    from fuseval import __version__
    from fuseval.publishing import check_repo, upload
    from reports.dataset import LEADERBOARD, write_dataset

    repo = wanted.publish or ""
    check_repo(repo)
    folder = wanted.output or Path(repo.rpartition("/")[2])
    ours = (folder / "README.md").exists() and (folder / f"{LEADERBOARD}.jsonl").exists()
    if not ours and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds other things than a leaderboard: give a new folder with -o")
    title = wanted.title or f"Leaderboard of {ledger.path.stem}"
    files = write_dataset(ledger, folder, title=title, version=__version__, answers=wanted.answers)
    told = [f"  {file.name}, {file.stat().st_size:,} bytes" for file in files]
    if not wanted.really:
        return [f"would be uploaded to the data set {repo}, from {folder}:", *told, "nothing was sent; --yes sends it"]
    address = upload(folder, repo, files, token_env=wanted.token_env, environ=os.environ)
    return [f"uploaded to {address} (private, where it is new):", *told]
