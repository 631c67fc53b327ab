"""The command line: Typer commands, Rich progress and tables. The only file that prints or exits.

Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 finished but coverage below the experiment's threshold;
4 stopped at a budget; 130 interrupted (everything stored).
"""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuseval.cli_ledger import ledger_app, show_leaderboard
from fuseval.exits import errors, fail
from fuseval.options import (
    AsJson,
    Dollars,
    DryRun,
    ExperimentFile,
    LedgerOption,
    Limit,
    MaxShardSize,
    Questions,
    RetryFailed,
)
from fuseval.session import (
    Choices,
    cache_folder,
    mirror_folder,
    running,
    storing_merges,
)
from fuseval.terminal import say, show, show_pages, stages

if TYPE_CHECKING:
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
    with errors(), running("run", experiment, ledger, chosen, dry_run=dry_run) as session:
        if dry_run:
            from fuseval.planning import plan

            show(plan(session), as_json=as_json, title="Still to do")
            return
        from fuseval.pipeline import run_all

        covered = run_all(session)
        if page := session.experiment.report:
            _write_page(session.ledger, Path(page).expanduser(), title=session.experiment.name)
        show_leaderboard(session.ledger, as_json=as_json, models={c.id for c in session.candidates})
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
    with errors(), running("fuse", experiment, ledger, dry_run=dry_run) as session:
        if dry_run:
            from fuseval.planning import alignments

            show_pages(alignments(session), as_json=as_json)
            return
        from fuseval.pipeline import fuse as fuse_stage

        made = [c for c in session.models.values() if c.target or c.merge]
        fuse_stage(session, made)
    say(*(f"{candidate.name}: {candidate.folder}" for candidate in made))


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Ours, or mergekit's YAML.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to; of a grid, one in it a value.")],
    ledger: Annotated[Path | None, typer.Option("--ledger", help="DuckDB file to store the coefficients in.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Have a Ray cluster merge, a file a task: auto, HOST:PORT or local."),
    ] = None,
    max_shard_size: MaxShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Merge checkpoints in weight space, and write them with recipe, coefficients and model card."""
    with errors():
        from fuseval.config import ConfigError
        from fuseval.merge_file import load_merge
        from fuseval.merging import Where, mean_coefficients, merge_recipe
        from fuseval.strict import NAME

        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise ConfigError(f"{output} is there already: name a new folder with -o, or remove it")
        experiment, grid = load_merge(recipe, name=output.name if NAME.fullmatch(output.name) else "merged")
        say(*experiment.notes, style="yellow")
        with storing_merges(experiment, ledger) as kept, stages() as watch:
            output = output.absolute()
            models = merge_recipe(
                experiment,
                grid,
                output,
                beside=recipe.parent,
                cache=cache_folder(),
                watch=watch,
                where=Where(ray, max_shard_size),
            )
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
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Search for the best merge: propose, merge in memory, answer, judge, score, and propose again."""
    from fuseval.studying import Wanted, study

    chosen = Choices.of(limit, None, budget=budget, retry_failed=retry_failed)
    wanted = Wanted(suggest, promote, keep, leave_one_out, add, dry_run)
    with errors(), running("ablate", file, ledger, chosen, dry_run=wanted.only_looks, load=_load_ablation) as session:
        told = study(session, wanted)
        show(told.rows if as_json else told.table, as_json=as_json, title=told.title)
        if (page := session.experiment.report) and not wanted.only_looks:
            _write_page(session.ledger, Path(page).expanduser(), title=session.experiment.name)
            say(f"report: {page}")
    say(*told.sentences, f"ledger: {session.ledger.path}")
    if told.stopped:
        fail(told.stopped, code=4)
    if told.coverage < session.experiment.coverage:
        fail(
            f"coverage {told.coverage:.1%} is below {session.experiment.coverage:.1%}; the same command asks for what "
            "is missing, with --retry-failed also for what was refused, filtered or too long",
            code=3,
        )


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
    with errors(), running("answer", experiment, ledger, chosen) as session:
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
    with errors(), running("judge", experiment, ledger, chosen) as session:
        from fuseval.judging import judge_all
        from fuseval.pipeline import coverage, register

        register(session)
        judge_all(session)
        covered = coverage(session)
    say(f"ledger: {session.ledger.path}")
    _check_coverage(replace(covered, answers_wanted=0), session)


@app.command()
def assets(
    names: Annotated[list[str] | None, typer.Argument(help="Fetch these; default: none, only list.")] = None,
    *,
    fetch_all: Annotated[bool, typer.Option("--all", help="Fetch every asset.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the benchmarks' upstream files, and fetch and verify them (FUSEVAL_ASSETS: a folder as offline mirror)."""
    with errors():
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
            fail("\n".join(failed + corrupt), code=1)


@app.command()
def doctor(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXPERIMENT.yaml]", help="Also try its endpoints.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine can run, and how to mend what is missing."""
    with errors():
        from dataclasses import asdict

        from fuseval.config import load_experiment
        from fuseval.doctor import diagnose

        read = load_experiment(experiment) if experiment else None
        asked = [(m.name, read.endpoint_of(m)) for m in read.models] if read else []
        endpoints = [(name, e.base_url, e.model, e.api_key_env) for name, e in asked if e]
        found = diagnose(
            cache=cache_folder() / "assets", mirror=mirror_folder(), endpoints=endpoints, environ=os.environ
        )
        show([asdict(finding) for finding in found], as_json=as_json, title="This machine")


app.add_typer(ledger_app)


def main() -> None:
    """Run the command line."""
    gc.set_threshold(500_000, 50, 50)  # imports make many objects that stay: to look them through takes a tenth of them
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages, which the kernel clears sooner
    app()


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
