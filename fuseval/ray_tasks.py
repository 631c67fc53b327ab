"""Work in parts on a Ray cluster: each part a task, which Ray places, and does again where its worker is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from fusion.errors import FusionError
from fusion.parts import Workers

T = TypeVar("T")
R = TypeVar("R")


def over(ray: Any, *, count: int | None = None) -> Workers:
    """Return what runs parts on the cluster that ``ray`` is connected to, see fuseval.cluster.joined.

    A part uses all of a machine's cores, so there is one at a time on each, or ``count`` in all, which share the
    cores out. What a part raises is raised here.
    """
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    least = min((cpus for cpus in nodes if cpus), default=1)
    share = max(1, int(min(least, sum(nodes) // count))) if count else max(1, int(least))

    def workers(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        task = ray.remote(num_cpus=share, max_retries=3)(work)
        running = [task.remote(item) for item in items]  # after an error, leaving the cluster ends what is left
        for number, reference in enumerate(running, 1):
            try:
                yield ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise FusionError(
                    f"part {number} of {len(running)} was lost with its worker, again and again ({error}); look at "
                    "the cluster's memory and at Ray's logs (`ray logs`), and run again"
                ) from error

    return workers
