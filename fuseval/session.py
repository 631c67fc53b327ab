"""What a command works with: the checked experiment, its open ledger and engines; caches and upstream files."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fuseval.terminal import stages

if TYPE_CHECKING:
    from evals.benchmark import Locate
    from fuseval.experiment import Experiment
    from fuseval.models import Candidate
    from fuseval.pipeline import Run
    from results.store import Ledger


@dataclass(frozen=True, slots=True)
class Choices:
    """What the command line says beside the experiment: how many questions, or which; what may be spent."""

    limit: int | None = None
    only: tuple[str, ...] = ()  # ids of questions
    budget: float | None = None  # US dollars; None: the experiment's
    retry_failed: bool = False

    @classmethod
    def of(
        cls, limit: int | None, questions: Sequence[str] | None, *, budget: float | None, retry_failed: bool
    ) -> Choices:
        """Read ids that are parted by commas."""
        ids = [part.strip() for text in questions or () for part in text.split(",")]
        return cls(limit, tuple(filter(None, ids)), budget, retry_failed)


@contextlib.contextmanager
def running(
    command: str,
    file: Path,
    ledger: Path | None,
    chosen: Choices = Choices(),
    *,
    dry_run: bool = False,
    load: Callable[[Path], Experiment] | None = None,
) -> Iterator[Run]:
    """Check everything that can be checked, then open the ledger and the engines, and close them whatever happens.

    A dry run stores nothing. ``load`` reads the file, where it is more than an experiment.
    """
    from evals.budget import Budget
    from fuseval.config import load_experiment, locate
    from fuseval.engines import Engines
    from fuseval.models import resolve
    from fuseval.pipeline import Run
    from fuseval.scoring import versions
    from results.evidence import spent
    from results.snapshot import answering_requests

    _refuse_launch()
    experiment = (load or load_experiment)(file)
    if chosen.budget is not None:
        experiment = experiment.model_copy(update={"budget": chosen.budget})
    models = resolve(experiment, beside=file.parent, cache=cache_folder())
    path = ledger or Path(experiment.ledger).expanduser()
    asset = locate_asset()
    with (
        open_or_pretend(path, read_only=dry_run) as opened,
        answering_requests(opened),
        stages() as watch,
    ):
        budget = Budget(experiment.budget, spent=spent(opened))
        prices, people = (
            locate(given, beside=file.parent) if given else None
            for given in (experiment.prices, experiment.audit.people)
        )
        how = experiment.engine
        engines = Engines(how.settings(), watch, os.environ, opened, budget, prices, how.spread())
        session = Run(
            experiment, models, opened, engines, watch, asset, chosen.limit, chosen.only, people, chosen.retry_failed,
        )  # fmt: skip
        if dry_run:
            yield session
            return
        run_id = opened.start_run(command=command, experiment=experiment.model_dump_json(), versions=versions())
        outcome = "failed"
        try:
            yield session
            outcome = "done"
        except KeyboardInterrupt:
            outcome = "interrupted"
            raise
        finally:
            engines.close()
            opened.end_run(run_id, outcome=outcome)


@contextlib.contextmanager
def storing_merges(experiment: Experiment, path: Path | None) -> Iterator[dict[str, Candidate]]:
    """Open the ledger before anything is merged, and store then the models put here and their coefficients."""
    models: dict[str, Candidate] = {}
    if path is None:  # and nothing of the ledger's is imported, which takes a tenth of a small merge's time
        yield models
        return
    from fuseval.models import merge_coefficients
    from fuseval.scoring import versions
    from results.store import Ledger

    with Ledger.open(path) as opened:
        run_id = opened.start_run(command="merge", experiment=experiment.model_dump_json(), versions=versions())
        outcome = "failed"
        try:
            yield models
            opened.add(*(candidate.model for candidate in models.values()))
            for candidate in models.values():
                opened.add(*merge_coefficients(candidate))
            outcome = "done"
        finally:
            opened.end_run(run_id, outcome=outcome)


def _refuse_launch() -> None:
    """Raise ConfigError in a process that `accelerate launch` started: each would ask, and pay, for itself."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    from fuseval.config import ConfigError

    raise ConfigError(
        "fuseval itself is not started by accelerate launch: write `accelerate: CONFIG.yaml` into the experiment, and "
        "it launches the trainings"
    )


@contextlib.contextmanager
def open_or_pretend(path: Path, *, read_only: bool) -> Iterator[Ledger]:
    """Open a ledger, made if need be; to look only at one that is not there, an empty one."""
    import tempfile

    from results.store import Ledger

    with tempfile.TemporaryDirectory() as folder:
        pretend = read_only and not path.exists()
        with Ledger.open(Path(folder) / "empty" if pretend else path, read_only=read_only and not pretend) as opened:
            yield opened


@contextlib.contextmanager
def open_ledger(path: Path, *, read_only: bool = False) -> Iterator[Ledger]:
    """Open a ledger that must be there; raises ConfigError where it is not."""
    from fuseval.config import ConfigError
    from results.store import Ledger

    if not path.exists():
        raise ConfigError(f"there is no ledger {path}: give --ledger, or make one with `fuseval run`")
    with Ledger.open(path, read_only=read_only) as opened:
        yield opened


def cache_folder() -> Path:
    """Return where downloads and converted models are kept: FUSEVAL_CACHE, or the user's cache folder."""
    given = os.environ.get("FUSEVAL_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("fuseval")


def locate_asset() -> Locate:
    """Return what finds upstream files: cached, mirrored, or downloaded."""
    from evals.assets import find

    return functools.partial(find, cache=cache_folder() / "assets", mirror=mirror_folder())


def mirror_folder() -> Path | None:
    """Return the folder that FUSEVAL_ASSETS names as the offline mirror, if it is set; raises ConfigError."""
    given = os.environ.get("FUSEVAL_ASSETS")
    if not given:
        return None
    from fuseval.config import ConfigError

    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"FUSEVAL_ASSETS names no folder: {folder}")
    return folder
