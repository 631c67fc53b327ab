"""Who answers: a client for each endpoint, and one vLLM engine that holds one checkpoint after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evals.answer import Cost, no_price
from evals.budget import Budget, Metered
from evals.chat import ChatModel
from evals.engine import EngineSettings
from evals.keys import content_key
from evals.local import LocalModel
from evals.prices import Price, cost
from evals.records import Batch
from evals.thinking import WithoutThinking
from fuseval.config import ConfigError
from fuseval.experiment import Endpoint
from fuseval.models import Candidate, Watch
from fuseval.prices import find_price, unpriced
from results.store import Ledger

_PAID_REPLIES = 2  # that one request may bring: one that is no use, and the one after it


@dataclass(slots=True)
class Engines:
    """Hands out chat models; the weights of a checkpoint must have been made, or come as a stream.

    What endpoints charge is counted in ``budget``; ``prices`` is the user's price table.
    """

    settings: EngineSettings
    watch: Watch
    environ: Mapping[str, str]
    ledger: Ledger
    budget: Budget = field(default_factory=Budget)
    prices: Path | None = None
    _local: LocalModel | None = field(default=None)
    _asked: dict[str, ChatModel] = field(default_factory=dict)  # endpoints by identity: what is learned of pace stays

    def chat_model(self, candidate: Candidate) -> ChatModel:
        """Return the candidate ready to chat; what the last call returned for a checkpoint is not usable any more."""
        if candidate.endpoint:
            if candidate.id not in self._asked:
                price = self.price(candidate)
                if price is None and self.budget.limit is not None:
                    e = candidate.endpoint
                    raise ConfigError(unpriced(candidate.name, model=e.model, base_url=e.base_url))
                model = self._endpoint(candidate.endpoint)
                spoken: ChatModel = WithoutThinking(model) if candidate.strip_thinking else model
                metered = spoken if price is None else self._metered(spoken, candidate.endpoint, price)
                self._asked[candidate.id] = metered
            return self._asked[candidate.id]
        local = self._loaded(candidate)
        return WithoutThinking(local, local.count_tokens) if candidate.strip_thinking else local

    def local(self, candidate: Candidate) -> LocalModel:
        """Return the engine with the candidate's weights in it, as :meth:`chat_model` does for chats."""
        return self._loaded(candidate)

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
        """Stop the engine."""
        if self._local is not None:
            self._local.close()
            self._local = None

    def _endpoint(self, e: Endpoint) -> ChatModel:
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
        )

    def _metered(self, model: ChatModel, e: Endpoint, price: Price) -> ChatModel:
        batch = e.mode == "batch"
        attempts = 1 if batch else min(e.max_attempts, _PAID_REPLIES)
        return Metered(model, price=price, budget=self.budget, batch=batch, attempts=attempts, extra_body=e.extra_body)

    def _remember(self, batch: Batch) -> None:
        self.ledger.add(batch)
        self.ledger.flush()  # it is paid for from now on, and the replies that were stored before it are safe

    def _loaded(self, candidate: Candidate) -> LocalModel:
        folder, stream = candidate.folder, candidate.stream
        assert folder is not None
        if folder.exists():
            stream = None
        if stream is not None:
            folder = stream.like
        if self._local is not None and not self._local.fits(folder):
            self.close()
        if self._local is None:
            self.watch("start vLLM", 0, 1)
            first = candidate.id if stream is None else f"like {candidate.id}"
            self._local = LocalModel(folder, identity=first, settings=self.settings)
            self.watch("start vLLM", 1, 1)
        if stream is None:
            self._local.load(folder, identity=candidate.id)
        elif self._local.identity != candidate.id:
            self._local.stream(stream.tensors(), like=folder, identity=candidate.id)
        return self._local
