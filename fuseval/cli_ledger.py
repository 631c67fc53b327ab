"""Commands on a ledger that ask no model: score, import, export, report; and ledgers united and exported."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuseval.exits import errors, fail
from fuseval.options import DEFAULT_LEDGER, AsJson, LedgerFile
from fuseval.session import locate_asset, open_ledger
from fuseval.terminal import say, show, stages

if TYPE_CHECKING:
    from evals.records import Score
    from results.store import Ledger

ledger_app = typer.Typer()
of_ledgers = typer.Typer(help="Unite ledgers, and write one as Parquet files.", no_args_is_help=True)
ledger_app.add_typer(of_ledgers, name="ledger")


@ledger_app.command()
def score(
    *,
    ledger: LedgerFile = DEFAULT_LEDGER,
    benchmark: Annotated[str | None, typer.Option(help="Only this benchmark.")] = None,
    model: Annotated[str | None, typer.Option(help="Show only this model, by name.")] = None,
    like_published: Annotated[
        bool, typer.Option("--like-published", help="Also print what the published way of scoring gives.")
    ] = False,
    people: Annotated[
        Path | None, typer.Option(exists=True, help="People's votes on MT-Bench answers, to audit judges with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score the ledger's answers and judgments again, and audit the judges; no model is asked."""
    with errors():
        from evals.catalog import find_benchmark
        from fuseval.config import ConfigError, did_you_mean
        from fuseval.scoring import published_figures
        from fuseval.scoring import score as score_ledger
        from results.queries import display_names

        asset = locate_asset()
        if benchmark and "@" not in benchmark:
            benchmark = find_benchmark(benchmark, asset=asset).name
        with open_ledger(ledger) as opened:
            names = display_names(opened)
            known = {name for m in opened.models() for name in (m.name, m.id)} | set(names.values())
            if model and model not in known:
                raise ConfigError(f"no model is called {model!r} in {ledger}.{did_you_mean(model, known)}")
            for name in score_ledger(opened, asset=asset, benchmark=benchmark, people=people):
                say(f"{name} is no benchmark of this fuseval: its judgments are stored and not scored", style="yellow")
            figures = published_figures(opened, asset=asset, benchmark=benchmark) if like_published else []
            show_leaderboard(opened, benchmark=benchmark, model=model, figures=figures, as_json=as_json)


@ledger_app.command(name="import")
def import_(
    kind: Annotated[str, typer.Argument(metavar="fastchat|alpaca_eval|arena_hard", help="Whose files these are.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files, or folders of files.")],
    *,
    ledger: LedgerFile = DEFAULT_LEDGER,
    model: Annotated[str | None, typer.Option(help="The model's name, where the files do not say it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store published or past answers and judgments; a file imported twice adds nothing."""
    with errors():
        from fuseval.exchange import import_files
        from fuseval.scoring import versions
        from results.store import Ledger

        asset = locate_asset()
        with Ledger.open(ledger) as opened, stages() as watch:
            run_id, outcome = opened.start_run(command="import", experiment="", versions=versions()), "failed"
            try:
                rows = import_files(opened, kind, paths, asset=asset, model=model, watch=watch)
                outcome = "done"
            finally:
                opened.end_run(run_id, outcome=outcome)
        brief = ("file", "recognised", "models", "answers", "judgments", "unreadable", "new", "skipped")
        shown = [{**{c: row[c] for c in brief}, "file": Path(str(row["file"])).name} for row in rows]
        shown = rows if as_json else shown
        show(shown, as_json=as_json, title="Imported")
        say(*(f"{row['file']}: {row['why']}" for row in rows if row["why"]), style="yellow")
        if not any(row["recognised"] for row in rows):
            fail("nothing was imported", code=1)
    say(f"ledger: {ledger}; `fuseval score --ledger {ledger}` scores it")


@ledger_app.command()
def export(
    kind: Annotated[str, typer.Argument(metavar="fastchat|alpaca_eval|arena_hard", help="For whose tools.")],
    *,
    ledger: LedgerFile = DEFAULT_LEDGER,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")],
    model: Annotated[list[str] | None, typer.Option(help="Only this model, by name; may be given again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the ledger's answers and judgments as the official tools' own files."""
    with errors():
        from fuseval.exchange import export_files

        with open_ledger(ledger, read_only=True) as opened:
            files = export_files(opened, kind, output, models=model)
        show([{"file": str(file)} for file in files], as_json=as_json, title="Exported")


@ledger_app.command()
def report(
    *,
    ledger: LedgerFile = DEFAULT_LEDGER,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write: the HTML page, the model card, the data set's folder."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The heading; default: the ledger's name.")] = None,
    as_json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the leaderboard as CSV.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the leaderboard as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the leaderboard as LaTeX (booktabs).")] = False,
    differences: Annotated[
        bool, typer.Option("--differences", help="Print the paired differences in place of the leaderboard.")
    ] = False,
    statements: Annotated[
        bool, typer.Option("--statements", help="Print a sentence for each paired difference: what it shows.")
    ] = False,
    context: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODELS]",
            help="Show a published leaderboard's models among the others, in a table or on the page -o: alpaca_eval, "
            "arena_hard, or only those that a pattern picks, as in alpaca_eval='*Llama-3*'.",
        ),
    ] = None,
    leaderboard_rows: Annotated[
        str | None,
        typer.Option(metavar="alpaca_eval|arena_hard", help="Print rows as that project's leaderboard has them."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write every figure as SVG, PNG, PDF and CSV.")
    ] = None,
    model_card: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Write the model's results into the card -o (README.md).")
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(metavar="ORGANISATION/NAME", help="Write the leaderboard as a data set of the Hub; see --yes."),
    ] = None,
    with_answers: Annotated[bool, typer.Option("--with-answers", help="Publish the answers too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really upload what --publish has written.")] = False,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the Hub's token; default: HF_TOKEN.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show a live report on this machine while the ledger is being filled.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where --serve listens; 0: any free port.")] = 8765,
) -> None:
    """Write the ledger's comparison as one HTML page, or print, draw or publish it in another form."""
    with errors():
        from fuseval import reporting

        if serve:
            from fuseval.serving import serve as serve_live

            def ready(address: str) -> None:
                say(f"live report: {address} (to this machine only; Ctrl+C ends it)")

            serve_live(ledger, title=title or ledger.stem, port=port, asset=locate_asset(), ready=ready)
            return
        given = zip(reporting.FORMATS, (as_json, csv, markdown, latex), strict=True)
        wanted = reporting.Wanted(
            output=output,
            title=title,
            formats=[name for name, flag in given if flag],
            differences=differences,
            statements=statements,
            context=context or (),
            rows_of=leaderboard_rows,
            figures=figures,
            card_of=model_card,
            publish=publish,
            answers=with_answers,
            really=yes,
            token_env=token_env or reporting.TOKEN_ENV,
        )
        with open_ledger(ledger, read_only=True) as opened:
            made = reporting.report(opened, wanted)
        sys.stdout.write(made.text)
        say(*made.lines)


@of_ledgers.command(name="merge")
def merge_ledgers(
    places: Annotated[
        list[str], typer.Argument(metavar="PLACE...", help="Ledger files, or folders or URLs of exported ones.")
    ],
    *,
    ledger: Annotated[Path, typer.Option("-o", "--output", help="The ledger to add to; made where it is missing.")],
    as_json: AsJson = False,
) -> None:
    """Add other ledgers' rows to one, by what they are: nothing is there twice, in whatever order they come."""
    with errors():
        from fuseval.uniting import unite_ledgers

        with stages() as watch:
            rows = unite_ledgers(places, ledger, watch=watch)
        show(rows, as_json=as_json, title="United")
        if differing := sum(int(str(row["differing"])) for row in rows):
            say(
                f"{differing} answers or judgments under one key have other texts here and there; of each the first "
                "stored stays",
                style="yellow",
            )
    say(f"ledger: {ledger}; `fuseval score --ledger {ledger}` scores it")


@of_ledgers.command(name="export")
def export_parquet(
    *,
    ledger: LedgerFile = DEFAULT_LEDGER,
    output: Annotated[str, typer.Option("-o", "--output", help="Folder, or URL that fsspec knows (s3://...).")],
    as_json: AsJson = False,
) -> None:
    """Write the ledger as Parquet files, by table and run, for `fuseval ledger merge` and other tools."""
    with errors():
        from fuseval.uniting import export_ledger

        with open_ledger(ledger, read_only=True) as opened:
            rows = export_ledger(opened, output)
        show(rows, as_json=as_json, title=f"Written to {output}")


def show_leaderboard(
    ledger: Ledger,
    *,
    as_json: bool,
    benchmark: str | None = None,
    model: str | None = None,
    models: Collection[str] | None = None,
    figures: Sequence[Score] = (),
) -> None:
    """Print the leaderboard, and what the paired differences show; ``models`` are the identities to keep."""
    from reports import compare, marks

    found = compare.comparison(ledger, benchmark=benchmark, model=model, models=models, figures=figures)
    if as_json:
        sys.stdout.write(compare.to_json(found.rows))
        return
    for title, table in compare.grids(found.rows).items():
        show(table, as_json=False, title=f"{title}: value, 95 % interval")
    say(*marks.footnotes(found.rows))
    claims = [s for s in found.statements if s.verdict in ("better", "worse")]
    if claims:
        say("What the paired differences show:", *(f"  {s.sentence}" for s in claims))
    if undecided := len(found.statements) - len(claims):
        say(f"No difference shown in {undecided} other comparisons; the report has them all.")
