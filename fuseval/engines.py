"""Who answers: a client for each endpoint, and one engine (or many over Ray) for one checkpoint after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from evals.answer import Cost, no_price
from evals.budget import Budget, Metered
from evals.chat import ChatModel
from evals.engine import EngineSettings
from evals.keys import content_key
from evals.local import LocalModel
from evals.prices import Price, cost
from evals.ray_replicas import RayCrew, Spread
from evals.records import Batch
from evals.replicas import Replicas
from evals.thinking import WithoutThinking
from fuseval.cluster import NO_RAY, joined
from fuseval.config import ConfigError
from fuseval.endpoint_spec import Endpoint
from fuseval.engine_spec import Engine
from fuseval.models import Candidate, Watch
from fuseval.prices import find_price, unpriced
from fusion.ahead import Ahead, in_stretches
from fusion.pool import cores
from results.store import Ledger

Local = LocalModel | Replicas
"""What holds checkpoints, one after the other: an engine in this process, or several over Ray."""

_PAID_REPLIES = 2  # that one request may bring: one that is no use, and the one after it


def missing_engines(
    candidates: Iterable[Candidate], default: Engine, *, find: Callable[[str], object] = find_spec
) -> list[str]:
    """Return what is not installed that it takes to ask these models."""
    kinds = {(c.engine or default).kind for c in candidates if not c.endpoint}
    missing = []
    if "local" in kinds and not find("vllm"):
        missing.append("vLLM is not installed; `fuseval doctor` says how to install it")
    if "ray" in kinds and not find("ray"):
        missing.append(NO_RAY)
    return missing


@dataclass(slots=True)
class Engines:
    """Hands out chat models; the weights of a checkpoint must have been made, or come as a stream.

    ``settings`` and ``spread`` (None: in this process) are of the engine of all models that have none of their own.
    What endpoints charge is counted in ``budget``; ``prices`` is the user's price table.
    """

    settings: EngineSettings
    watch: Watch
    environ: Mapping[str, str]
    ledger: Ledger
    budget: Budget = field(default_factory=Budget)
    prices: Path | None = None
    spread: Spread | None = None
    _held: dict[tuple[EngineSettings, Spread | None], Local] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)  # the cluster
    _ahead: Ahead = field(default_factory=Ahead)
    _asked: dict[str, ChatModel] = field(default_factory=dict)  # endpoints by identity: what is learned of pace stays

    def chat_model(self, candidate: Candidate) -> ChatModel:
        """Return the candidate ready to chat; what the last call returned for a checkpoint is not usable any more."""
        if candidate.endpoint:
            if candidate.id not in self._asked:
                price = self.price(candidate)
                if price is None and self.budget.limit is not None:
                    e = candidate.endpoint
                    raise ConfigError(unpriced(candidate.name, model=e.model, base_url=e.base_url))
                model = self._endpoint(candidate.endpoint, in_full=candidate.folder is not None)
                spoken: ChatModel = WithoutThinking(model) if candidate.strip_thinking else model
                metered = spoken if price is None else self._metered(spoken, candidate.endpoint, price)
                self._asked[candidate.id] = metered
            return self._asked[candidate.id]
        local = self._loaded(candidate)
        return WithoutThinking(local, local.count_tokens) if candidate.strip_thinking else local

    def local(self, candidate: Candidate) -> Local:
        """Return the engine with the candidate's weights in it, as :meth:`chat_model` does for chats."""
        return self._loaded(candidate)

    def prepare(self, candidate: Candidate) -> None:
        """Begin to merge a candidate that is merged into engines over Ray; the last one called for stays.

        An engine in this process has the GPU, which merges in less than a second, or all cores: on two of them,
        12 candidates took 77 s one thing after the other, and 105 s with one core for the engine and one for merges.
        """
        if candidate.stream is None or (candidate.folder is not None and candidate.folder.exists()):
            return
        spread = self._how(candidate)[1]
        held = self._held.get(self._how(candidate))
        if spread is not None and (held is None or held.identity != candidate.id):
            self._ahead.cores = max(1, cores() - spread.replicas * spread.cpus)
            self._ahead.begin(candidate.id, candidate.stream.tensors)

    def price(self, candidate: Candidate) -> Price | None:
        """Return what the candidate's endpoint charges, None where nobody knows or where it has none."""
        if not candidate.endpoint:
            return None
        e = candidate.endpoint
        own = e.price.model_dump(exclude_none=True) if e.price else None
        return find_price(e.model, base_url=e.base_url, own=own, file=self.prices)

    def cost_of(self, candidate: Candidate) -> Cost:
        """Return what prices the candidate's replies."""
        price = self.price(candidate)
        if price is None or candidate.endpoint is None:
            return no_price
        batch = candidate.endpoint.mode == "batch"
        return lambda reply: cost(price, reply, batch=batch)

    def close(self) -> None:
        """Stop the engines and whatever is merged in the background, and leave the cluster."""
        self._ahead.drop()
        for held in self._held.values():
            held.close()
        self._held = {}
        self._open.close()

    def _endpoint(self, e: Endpoint, *, in_full: bool) -> ChatModel:
        if e.mode == "batch":
            from evals.batch import BatchModel

            return BatchModel(
                base_url=e.base_url,
                model=e.model,
                api_key_env=e.api_key_env,
                extra_body=e.extra_body,
                known=self.ledger.batches,
                remember=self._remember,
                owner=content_key("ledger", str(self.ledger.path)),
                poll=e.poll,
                watch=lambda b: self.watch(f"batch {b.id}", b.completed + b.failed, b.total, b.state),
            )
        from evals.endpoint import EndpointModel

        return EndpointModel(
            base_url=e.base_url,
            model=e.model,
            api_key_env=e.api_key_env,
            replicas=e.replicas,
            concurrency=e.concurrency,
            requests_per_minute=e.requests_per_minute,
            tokens_per_minute=e.tokens_per_minute,
            timeout=e.timeout,
            max_attempts=e.max_attempts,
            extra_body=e.extra_body,
            in_full=in_full,
        )

    def _metered(self, model: ChatModel, e: Endpoint, price: Price) -> ChatModel:
        batch = e.mode == "batch"
        attempts = 1 if batch else min(e.max_attempts, _PAID_REPLIES)
        return Metered(model, price=price, budget=self.budget, batch=batch, attempts=attempts, extra_body=e.extra_body)

    def _remember(self, batch: Batch) -> None:
        self.ledger.add(batch)
        self.ledger.flush()  # it is paid for from now on, and the replies that were stored before it are safe

    def _loaded(self, candidate: Candidate) -> Local:
        folder, stream = candidate.folder, candidate.stream
        assert folder is not None
        if folder.exists():
            stream = None
        if stream is not None:
            folder = stream.like
        how = self._how(candidate)
        held = self._held.get(how)
        if held is not None and not held.fits(folder):
            self._held.pop(how).close()
            held = None
        if held is None:
            self.prepare(candidate)  # the engine takes its time to start
            first = candidate.id if stream is None else f"like {candidate.id}"
            held = self._held[how] = self._started(folder, first, *how)
        if stream is None:
            held.load(folder, identity=candidate.id)
        elif held.identity != candidate.id:
            tensors = self._ahead.take(candidate.id, stream.tensors)
            here = how[1] is None
            held.stream(in_stretches(tensors) if here else tensors, like=folder, identity=candidate.id)
        return held

    def _how(self, candidate: Candidate) -> tuple[EngineSettings, Spread | None]:
        own = candidate.engine
        return (own.settings(), own.spread()) if own else (self.settings, self.spread)

    def _started(self, folder: Path, identity: str, settings: EngineSettings, spread: Spread | None) -> Local:
        if spread is not None:
            return self._over_ray(folder, identity, settings, spread)
        for how in [each for each in self._held if each[1] is None]:  # two would not find room
            self._held.pop(how).close()
        self.watch("start vLLM", 0, 1)
        model = LocalModel(folder, identity=identity, settings=settings)
        self.watch("start vLLM", 1, 1)
        return model

    def _over_ray(self, folder: Path, identity: str, settings: EngineSettings, spread: Spread) -> Replicas:
        watch = self.watch
        return Replicas(
            folder, identity=identity, count=spread.replicas, crew=self._crew(settings, spread),
            hear=lambda done, total, note: watch("start vLLM over Ray", done, total, note),
        )  # fmt: skip

    def _crew(self, settings: EngineSettings, spread: Spread) -> RayCrew:
        """Join the cluster; a local one has room for these engines then, if need be in place of the others."""
        cpus = spread.cpus * spread.replicas
        ray = self._open.enter_context(joined(spread.address, cpus=cpus))
        crew = RayCrew(ray, settings, spread)
        if spread.address != "local" or crew.has_room(spread.replicas):
            return crew
        for how in [each for each in self._held if each[1] is not None]:
            self._held.pop(how).close()
        if ray.cluster_resources().get("CPU", 0) < cpus:  # begun for fewer engines: some would wait for ever
            self._open.close()
            ray = self._open.enter_context(joined(spread.address, cpus=cpus))
        return RayCrew(ray, settings, spread)
