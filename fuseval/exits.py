"""How a command ends: what the rooms raise becomes a message and a documented exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from fuseval.terminal import say


@contextlib.contextmanager
def errors() -> Iterator[None]:
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
        fail(str(error), code=2)
    except (ChatError, FusionError, LedgerError, AssetError, PublishError) as error:
        fail(str(error), code=1)
    except BudgetReached as error:
        fail(str(error), code=4)
    except OSError as error:
        fail(f"the system refused: {error}", code=1)
    except KeyboardInterrupt:
        fail("interrupted; everything that arrived is stored, the same command goes on from here", code=130)


def fail(message: str, *, code: int) -> None:
    """Say what is wrong, and end the command with this exit code."""
    say(message, style="bold red")
    raise typer.Exit(code)
