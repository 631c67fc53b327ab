"""How the experiment's trainings are launched: accelerate's file read as far as identities depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fuseval.config import ConfigError, locate, read_mapping
from fuseval.experiment import Accelerate
from fusion.launch import Launch


def launch_of(given: Accelerate | None, *, beside: Path, target: Path) -> Launch | None:
    """Return what starts the processes that train the target of this folder, or None where one process does."""
    if given is None:
        return None
    return Launch(
        locate(given.config, beside=beside),
        target.with_name(f"{target.name}.launch"),
        tuple(given.arguments),
        tuple(given.through),
        processes_of(given, beside=beside),
    )


def processes_of(given: Accelerate | None, *, beside: Path) -> int:
    """Return how many processes train together, on all machines; ConfigError where nobody says that."""
    if given is None:
        return 1
    file = locate(given.config, beside=beside)
    told = _argument("num_processes", given.arguments)
    if told is None:
        told = read_mapping(file, "accelerate configuration").get("num_processes")
    if not str(told).isdecimal() or not int(str(told)):
        raise ConfigError(
            f"num_processes of {file} is {told!r}; it must be the number of processes on all machines together, which "
            "decides the size of a batch: write it there, or into accelerate.arguments: [--num_processes, '8']"
        )
    return int(str(told))


def _argument(name: str, arguments: Sequence[str]) -> str | None:
    """Return the value of an argument of accelerate launch, the last one's, with hyphens or underscores."""
    found = None
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:
            found = value if equals else next(iter(arguments[number + 1 :]), None)
    return found
