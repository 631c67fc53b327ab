"""Work in parts on a Ray cluster: each part a task, which Ray places, and does again where its worker is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from fusion.errors import FusionError
from fusion.parts import Workers

T = TypeVar("T")
R = TypeVar("R")


def over(ray: Any, *, count: int | None = None) -> Workers:
    """Return what runs parts on the cluster that ``ray`` is connected to, see fuseval.cluster.joined.

    A part uses all of a machine's cores that nobody holds, so there is about one at a time on each, or ``count`` in
    all, which share the cores out. What a part raises is raised here.
    """
    free = _free()
    share = cores_of_a_part(free, count=count)
    most = 2 * max(1, int(sum(free) // share))  # parts begun and not yielded: after an error there are few to end

    def workers(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        task, waiting = ray.remote(num_cpus=share, max_retries=3)(work), iter(items)
        running = deque(task.remote(item) for item in islice(waiting, most))
        for number in range(1, len(items) + 1):
            try:
                yield ray.get(running.popleft())
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise FusionError(
                    f"part {number} of {len(items)} was lost with its worker, again and again ({error}); look at the "
                    "cluster's memory and at Ray's logs (`ray logs`), and run again"
                ) from error
            running.extend(task.remote(item) for item in islice(waiting, 1))

    return workers


def cores_of_a_part(free: Sequence[float], *, count: int | None = None) -> int:
    """Return how many of its machine's cores a part is to take, of those ``free`` on each machine now.

    Engines hold cores as long as they are up, and a part that wants them too would wait for ever. A machine with less
    than half of what is free on another takes no part, rather than making the parts of all small.
    """
    most = max(free, default=1)
    least = min((cores for cores in free if cores >= most / 2), default=1)
    return max(1, int(min(least, sum(free) // count) if count else least))


def _free() -> list[float]:
    from ray._private.state import available_resources_per_node  # the public one adds the machines up

    return [there.get("CPU", 0) for there in available_resources_per_node().values()]
