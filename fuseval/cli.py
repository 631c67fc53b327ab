"""The command line: Typer commands, Rich progress and tables. The only file that prints or exits.

Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 finished but coverage below the experiment's threshold;
4 stopped at a budget; 130 interrupted (everything stored).
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuseval.options import (
    DEFAULT_LEDGER,
    AsJson,
    Dollars,
    DryRun,
    ExperimentFile,
    LedgerFile,
    LedgerOption,
    Limit,
    Questions,
    RetryFailed,
)
from fuseval.session import (
    Choices,
    cache_folder,
    locate_asset,
    mirror_folder,
    open_ledger,
    running,
    storing_merges,
)
from fuseval.terminal import say, show, show_pages, stages

if TYPE_CHECKING:
    from evals.records import Score
    from fuseval.experiment import Experiment
    from fuseval.pipeline import Coverage, Run
    from results.store import Ledger

app = typer.Typer(
    help="Fuse chat models, and prove what the fusion gained.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 coverage too low, "
    "4 stopped at the budget, 130 interrupted.",
)


@app.callback(invoke_without_command=True)
def _main(
    *, version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version and exit.")] = False
) -> None:
    if version:
        from fuseval import __version__

        sys.stdout.write(f"fuseval {__version__}\n")
        raise typer.Exit


@app.command()
def demo(*, as_json: AsJson = False) -> None:
    """Fuse, answer, judge and report with a real 135M model on this machine (about ten minutes on 2 cores)."""
    from importlib import resources

    with resources.as_file(resources.files("fuseval.demo").joinpath("demo.yaml")) as file:
        run(file, as_json=as_json)


@app.command()
def run(
    experiment: ExperimentFile,
    *,
    ledger: LedgerOption = None,
    limit: Limit = None,
    questions: Questions = None,
    budget: Dollars = None,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Do everything an experiment says: fuse, answer, judge, score, report; what is in the ledger is not done again."""
    chosen = Choices.of(limit, questions, budget=budget, retry_failed=retry_failed)
    with _errors(), running("run", experiment, ledger, chosen, dry_run=dry_run) as session:
        if dry_run:
            from fuseval.planning import plan

            show(plan(session), as_json=as_json, title="Still to do")
            return
        from fuseval.pipeline import run_all

        covered = run_all(session)
        if page := session.experiment.report:
            _write_page(session.ledger, Path(page).expanduser(), title=session.experiment.name)
        _leaderboard(session.ledger, as_json=as_json, models={c.id for c in session.candidates})
    say(*session.experiment.notes, style="yellow")
    say(*([f"report: {page}"] if page else []), f"ledger: {session.ledger.path}")
    _check_coverage(covered, session)


@app.command()
def fuse(
    experiment: ExperimentFile,
    *,
    ledger: LedgerOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report how the models' tokens align, and what fusing would cost.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what --dry-run reports as JSON.")] = False,
) -> None:
    """Make the experiment's targets and merges, and write them as checkpoints."""
    with _errors(), running("fuse", experiment, ledger, dry_run=dry_run) as session:
        if dry_run:
            from fuseval.planning import alignments

            show_pages(alignments(session), as_json=as_json)
            return
        from fuseval.pipeline import fuse as fuse_stage

        made = [c for c in session.models.values() if c.target or c.merge]
        fuse_stage(session, made)
    if not session.helps:
        say(*(f"{candidate.name}: {candidate.folder}" for candidate in made))


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Ours, or mergekit's YAML.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to; of a grid, one in it a value.")],
    ledger: Annotated[Path | None, typer.Option("--ledger", help="DuckDB file to store the coefficients in.")] = None,
    as_json: AsJson = False,
) -> None:
    """Merge checkpoints in weight space, and write them with recipe, coefficients and model card."""
    with _errors():
        from fuseval.config import ConfigError
        from fuseval.merge_file import load_merge
        from fuseval.merging import mean_coefficients, merge_recipe
        from fuseval.strict import NAME

        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise ConfigError(f"{output} is there already: name a new folder with -o, or remove it")
        experiment, grid = load_merge(recipe, name=output.name if NAME.fullmatch(output.name) else "merged")
        say(*experiment.notes, style="yellow")
        with storing_merges(experiment, ledger) as kept, stages() as watch:
            output = output.absolute()
            models = merge_recipe(experiment, grid, output, beside=recipe.parent, cache=cache_folder(), watch=watch)
            kept.update(models)
        made = [models[merged.name] for merged in experiment.fusion.merges]
    show(mean_coefficients(made), as_json=as_json, title="Mean over the tensors")
    say(*(f"checkpoint: {candidate.folder}" for candidate in made))


@app.command()
def ablate(
    file: Annotated[Path, typer.Argument(metavar="ABLATION.yaml", help="An experiment with a block `ablation`.")],
    *,
    ledger: LedgerOption = None,
    limit: Limit = None,
    budget: Dollars = None,
    suggest: Annotated[int | None, typer.Option(min=1, help="Only say which so many recipes to try next.")] = None,
    promote: Annotated[
        Path | None, typer.Option(help="Write the best recipe as a checkpoint into this folder.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Which merges to write: best, all or none; default: the file's.")
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Try the best recipe without each of its sources.")
    ] = False,
    add: Annotated[str | None, typer.Option(help="Try the best recipe with this model as one source more.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Search for the best merge: propose, merge in memory, answer, judge, score, and propose again."""
    from fuseval.studying import Wanted, study

    chosen = Choices.of(limit, None, budget=budget, retry_failed=False)
    wanted = Wanted(suggest, promote, keep, leave_one_out, add, dry_run)
    with _errors(), running("ablate", file, ledger, chosen, dry_run=wanted.only_looks, load=_load_ablation) as session:
        told = study(session, wanted)
        show(told.rows if as_json else told.table, as_json=as_json, title=told.title)
        if (page := session.experiment.report) and not wanted.only_looks:
            _write_page(session.ledger, Path(page).expanduser(), title=session.experiment.name)
            say(f"report: {page}")
    say(*told.sentences, f"ledger: {session.ledger.path}")
    if told.stopped:
        _fail(told.stopped, code=4)
    if told.coverage < session.experiment.coverage:
        _fail(f"coverage {told.coverage:.1%} is below {session.experiment.coverage:.1%}", code=3)


@app.command()
def answer(
    experiment: ExperimentFile,
    *,
    ledger: LedgerOption = None,
    limit: Limit = None,
    questions: Questions = None,
    budget: Dollars = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Have the experiment's models answer what they have not answered yet (making them first)."""
    chosen = Choices.of(limit, questions, budget=budget, retry_failed=retry_failed)
    with _errors(), running("answer", experiment, ledger, chosen) as session:
        from fuseval.pipeline import answer_stage, coverage

        answer_stage(session)
        covered = coverage(session)
    say(f"ledger: {session.ledger.path}")
    _check_coverage(replace(covered, verdicts_wanted=0), session)


@app.command()
def judge(
    experiment: ExperimentFile,
    *,
    ledger: LedgerOption = None,
    limit: Limit = None,
    questions: Questions = None,
    budget: Dollars = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Have the experiment's judges judge the stored answers that they have not judged yet."""
    chosen = Choices.of(limit, questions, budget=budget, retry_failed=retry_failed)
    with _errors(), running("judge", experiment, ledger, chosen) as session:
        from fuseval.judging import judge_all
        from fuseval.pipeline import coverage, register

        register(session)
        judge_all(session)
        covered = coverage(session)
    say(f"ledger: {session.ledger.path}")
    _check_coverage(replace(covered, answers_wanted=0), session)


@app.command()
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
    with _errors():
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
            _leaderboard(opened, benchmark=benchmark, model=model, figures=figures, as_json=as_json)


@app.command(name="import")
def import_(
    kind: Annotated[str, typer.Argument(metavar="fastchat|alpaca_eval|arena_hard", help="Whose files these are.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files, or folders of files.")],
    *,
    ledger: LedgerFile = DEFAULT_LEDGER,
    model: Annotated[str | None, typer.Option(help="The model's name, where the files do not say it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store published or past answers and judgments; a file imported twice adds nothing."""
    with _errors():
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
            _fail("nothing was imported", code=1)
    say(f"ledger: {ledger}; `fuseval score --ledger {ledger}` scores it")


@app.command()
def export(
    kind: Annotated[str, typer.Argument(metavar="fastchat|alpaca_eval|arena_hard", help="For whose tools.")],
    *,
    ledger: LedgerFile = DEFAULT_LEDGER,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")],
    model: Annotated[list[str] | None, typer.Option(help="Only this model, by name; may be given again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the ledger's answers and judgments as the official tools' own files."""
    with _errors():
        from fuseval.exchange import export_files

        with open_ledger(ledger, read_only=True) as opened:
            files = export_files(opened, kind, output, models=model)
        show([{"file": str(file)} for file in files], as_json=as_json, title="Exported")


@app.command()
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
            help="Print a published leaderboard's models among the others: alpaca_eval, arena_hard, or only those that "
            "a pattern picks, as in alpaca_eval='*Llama-3*'.",
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
    with _errors():
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


@app.command()
def assets(
    names: Annotated[list[str] | None, typer.Argument(help="Fetch these; default: none, only list.")] = None,
    *,
    fetch_all: Annotated[bool, typer.Option("--all", help="Fetch every asset.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the benchmarks' upstream files, and fetch and verify them (FUSEVAL_ASSETS: a folder as offline mirror)."""
    with _errors():
        from evals import assets as table

        cache, mirror = cache_folder() / "assets", mirror_folder()
        wanted = [asset.name for asset in table.asset_table()] if fetch_all else names or []
        failed = []
        with stages() as watch:
            for number, name in enumerate(wanted, start=1):
                try:
                    table.find(name, cache=cache, mirror=mirror)
                except table.AssetError as error:  # the others may still be had
                    failed.append(str(error))
                watch("fetch assets", number, len(wanted))
        rows = [
            {
                "name": a.name,
                "state": table.state(a.name, cache=cache, mirror=mirror),
                "bytes": a.bytes,
                "licence": a.licence,
            }
            for a in table.asset_table()
        ]
        show(rows, as_json=as_json, title="Assets")
        corrupt = [f"{row['name']} is not what its hash says: remove it" for row in rows if row["state"] == "corrupt"]
        if failed or corrupt:
            _fail("\n".join(failed + corrupt), code=1)


@app.command()
def doctor(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXPERIMENT.yaml]", help="Also try its endpoints.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine can run, and how to mend what is missing."""
    with _errors():
        from dataclasses import asdict

        from fuseval.config import load_experiment
        from fuseval.doctor import diagnose

        models = load_experiment(experiment).models if experiment else []
        endpoints = [
            (m.name, m.endpoint.base_url, m.endpoint.model, m.endpoint.api_key_env) for m in models if m.endpoint
        ]
        found = diagnose(
            cache=cache_folder() / "assets", mirror=mirror_folder(), endpoints=endpoints, environ=os.environ
        )
        show([asdict(finding) for finding in found], as_json=as_json, title="This machine")


def main() -> None:
    """Run the command line."""
    gc.set_threshold(500_000, 50, 50)  # imports make many objects that stay: to look them through takes a tenth of them
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages, which the kernel clears sooner
    app()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn what the rooms raise into a message and an exit code."""
    from evals.assets import AssetError
    from evals.budget import BudgetReached
    from evals.catalog import UnknownBenchmark
    from evals.chat import ChatError
    from fuseval.config import ConfigError
    from fuseval.publishing import PublishError
    from fusion.errors import FusionError
    from results.errors import LedgerError

    try:
        yield
    except (ConfigError, UnknownBenchmark) as error:
        _fail(str(error), code=2)
    except (ChatError, FusionError, LedgerError, AssetError, PublishError) as error:
        _fail(str(error), code=1)
    except BudgetReached as error:
        _fail(str(error), code=4)
    except OSError as error:
        _fail(f"the system refused: {error}", code=1)
    except KeyboardInterrupt:
        _fail("interrupted; everything that arrived is stored, the same command goes on from here", code=130)


def _fail(message: str, *, code: int) -> None:
    say(message, style="bold red")
    raise typer.Exit(code)


def _leaderboard(
    ledger: Ledger,
    *,
    as_json: bool,
    benchmark: str | None = None,
    model: str | None = None,
    models: Collection[str] | None = None,
    figures: Sequence[Score] = (),
) -> None:
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


def _load_ablation(file: Path) -> Experiment:
    from fuseval.ablation_file import load_ablation

    return load_ablation(file)


def _write_page(ledger: Ledger, page: Path, *, title: str) -> None:
    from reports.html import write_page

    write_page(ledger, page, title=title)


def _check_coverage(covered: Coverage, session: Run) -> None:
    if covered.share >= session.experiment.coverage:
        return
    say(
        f"coverage {covered.share:.1%} is below {session.experiment.coverage:.1%}: {covered.answers} of "
        f"{covered.answers_wanted} questions answered, {covered.verdicts} of {covered.verdicts_wanted} verdicts read; "
        "the report lists the failures; the same command asks for what is missing, with --retry-failed also for what "
        "was refused, filtered or too long"
    )
    raise typer.Exit(3)
