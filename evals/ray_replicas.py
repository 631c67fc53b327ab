"""Replicas as Ray actors, one vLLM engine each: Ray finds them a machine, carries what is said, and notices a death.

Ray carries Python objects between processes of one trusted cluster by pickling them; nothing of a model's output is
ever unpickled as anything but what a replica of ours made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evals.chat import ChatError
from evals.endpoint_errors import one_line
from evals.engine import EngineSettings
from evals.local import EngineStopped
from evals.replica import Replica
from evals.replicas import Lost

Laid = tuple[str, str, tuple[int, ...], Any]
"""A tensor in Ray's object store: its name, its dtype's, its shape, and the reference of its bytes."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How many engines there are on a Ray cluster, and what Ray sets aside for each.

    ``address`` is "local", "auto" or HOST:PORT (see fuseval.cluster). ``gpus`` None is as many as the engine's tensors
    are spread over; none where the address is "local" and this machine has none.
    """

    replicas: int = 1
    address: str = "auto"
    cpus: int = 1  # threads that an engine without GPU computes with
    gpus: int | None = None


class RayReplica(Replica):
    """The replica of an actor, which can fetch tensors that the driver laid out."""

    def stream_shared(self, laid: Sequence[Laid], like: str, identity: str) -> None:
        """Put these weights in, one tensor in memory at a time beside the engine's."""
        self.stream(_fetched(laid), like, identity)


class RayCrew:
    """Starts replicas on the cluster that ``ray``, the connected module, is joined to."""

    def __init__(self, ray: Any, settings: EngineSettings, spread: Spread) -> None:
        self._ray = ray
        self._settings = settings
        self._gpus = _gpus(ray, settings, spread)
        self._cpus = spread.cpus
        # Unbound threads, or the engines of one machine would all be bound to the same cores.
        bound = {"OMP_NUM_THREADS": str(spread.cpus), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self._actor = ray.remote(RayReplica).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_restarts=0,  # a lost one is replaced by the driver, which knows what it had
            max_task_retries=0,
            **({} if self._gpus else {"runtime_env": {"env_vars": bound}}),
        )

    def has_room(self, replicas: int) -> bool:
        """Tell whether so many could be started now."""
        free = self._ray.available_resources()
        return bool(free.get("CPU", 0) >= replicas * self._cpus and free.get("GPU", 0) >= replicas * self._gpus)

    def start(self) -> Any:
        """Ask Ray for an actor, which waits until there is room for it."""
        return self._actor.remote(self._settings)

    def call(self, replica: Any, method: str, *args: Any) -> Any:
        """Call a method of the actor; it does one call after the other."""
        return getattr(replica, method).remote(*args)

    def wait(self, tickets: Sequence[Any], *, seconds: float) -> list[Any]:
        """Wait for one call at least, and return all that have ended."""
        first, rest = self._ray.wait(list(tickets), num_returns=1, timeout=seconds, fetch_local=False)
        more = self._ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if rest else []
        return [*first, *more]

    def result(self, ticket: Any) -> Any:
        """Return what came of a call; Lost where the actor, its engine or its machine is gone."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(ticket)
        except RayTaskError as error:  # raised by the method
            cause = error.cause
            if isinstance(cause, ChatError) and not isinstance(cause, EngineStopped):
                raise cause from error
            raise Lost(f"{type(cause).__name__}: {one_line(str(cause))}") from error
        except RayError as error:
            # Behind ids and addresses, before guesses, where it has them.
            said = str(error).rpartition("Worker exit detail: ")[2].partition(" Some common causes")[0]
            raise Lost(f"{type(error).__name__}: {one_line(said)}") from error

    def share(self, tensors: Iterable[tuple[str, Any]]) -> list[Laid]:
        """Lay the tensors in the object store: one copy for each machine, on disk what its memory does not hold."""
        import torch

        return [
            (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape),
             self._ray.put(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
            for name, tensor in tensors
        ]  # fmt: skip

    def end(self, replica: Any) -> None:
        """Kill the actor's process, and with it the engine's."""
        self._ray.kill(replica)

    def shortage(self) -> str:
        """Say what a replica takes and what the cluster has."""
        there = self._ray.cluster_resources()
        return (
            f"each takes {self._cpus} CPU and {self._gpus} GPU on one machine, and the cluster has "
            f"{there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU in all: lower engine.replicas, "
            "engine.tensor_parallel, engine.gpus (0: on CPUs) or engine.cpus, or add machines"
        )


def _gpus(ray: Any, settings: EngineSettings, spread: Spread) -> int:
    """Return how many GPUs an engine gets; a cluster's machines may come when there is something to do."""
    if spread.gpus is not None:
        return spread.gpus
    if spread.address == "local" and not ray.cluster_resources().get("GPU"):
        return 0
    return settings.tensor_parallel


def _fetched(laid: Sequence[Laid]) -> Iterator[tuple[str, Any]]:
    import ray
    import torch

    for name, dtype, shape, place in laid:
        held = torch.from_numpy(ray.get(place).copy())  # what lies in the store cannot be written to
        yield name, held.view(getattr(torch, dtype)).reshape(shape)
