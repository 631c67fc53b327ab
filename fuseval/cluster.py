"""A Ray cluster, for work that one process is too small for: joined or started when it is needed, left at the end.

Ray is an optional extra. Its workers import this very code: the packages are handed to them (2 MB, named by content),
whatever is installed on their machines, and before anything else that bears their names there. All else, vLLM above
all, must be installed on every machine, and checkpoints must lie under the same path on all of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuseval.config import ConfigError

ROOMS = ("fuseval", "fusion", "evals", "judges", "results", "reports")
_ATTEMPTS = 5  # at starting a cluster here: Ray gives itself 30 s, which a busy machine may exceed
NO_RAY = (
    "Ray is not installed, and `kind: ray` needs it: pip install 'fuseval[scale]', with the same version on every "
    "machine of the cluster"
)


@contextlib.contextmanager
def joined(address: str = "auto", *, cpus: int | None = None) -> Iterator[Any]:
    """Yield the module ``ray``, connected; where this process is connected already, that connection is used and stays.

    ``address`` is "local" (processes of this machine, started here and ended with the block), "auto" (the cluster
    that RAY_ADDRESS names, or that runs on this machine) or HOST:PORT. ``cpus`` is for a local one: how many it may
    share out, if not this machine's. Raises ConfigError, which says what to do, where there is no Ray or no cluster.
    """
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    with tempfile.TemporaryDirectory(prefix="fuseval-code-") as folder:
        _copy_code(Path(folder))
        _connect(ray, address, cpus=cpus, code=folder)
    try:
        yield ray
    finally:
        ray.shutdown()


def _ray() -> Any:
    # Read by Ray when it is imported or connects: no phoning home, and our code even in a job that was submitted with
    # a folder of its own.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default; else it warns
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a local cluster; by default whatever else runs goes before
    try:
        import ray
    except ImportError as error:
        raise ConfigError(NO_RAY) from error
    return ray


def _copy_code(folder: Path) -> None:
    home = Path(__file__).parent.parent
    for room in ROOMS:
        shutil.copytree(home / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))


def _connect(ray: Any, address: str, *, cpus: int | None, code: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"engine.address {address!r} is for Ray's client, which loses everything with its connection: start "
            "fuseval on a machine of the cluster (`ray job submit`) with address auto, or give HOST:6379"
        )
    _check_it_listens(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
    told: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _hushed():
                ray.init(
                    address=address,
                    runtime_env={"working_dir": code},
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **told,
                )
            return
        except Exception as error:  # a bare Exception: it timed out while starting
            ray.shutdown()
            if address != "local" and isinstance(error, ConnectionError | ValueError):
                raise ConfigError(_none_there(address, error)) from error
            if address != "local" or attempt == _ATTEMPTS:
                raise ConfigError(
                    f"Ray cannot start at {address!r}: {error}; its logs are under its session_latest/logs"
                ) from error
            time.sleep(attempt)


def _check_it_listens(address: str) -> None:
    """Raise ConfigError where nobody listens at HOST:PORT; Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(_none_there(address, error)) from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep what Ray says of its tokens off the terminal, before its own logging level counts."""
    logger = logging.getLogger("ray")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _none_there(address: str, error: Exception) -> str:
    where = "none runs on this machine, RAY_ADDRESS names none" if address == "auto" else f"none answers at {address}"
    return (
        f"no Ray cluster to join: {where} ({error}); start one with `ray start --head` here and "
        "`ray start --address=HOST:6379` on the others, or set engine.address to local for processes of this machine"
    )
