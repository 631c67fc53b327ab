"""Who answers: a client for each endpoint, and one vLLM engine that holds one checkpoint after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evals.chat import ChatModel
from evals.engine import EngineSettings
from evals.local import LocalModel
from fuseval.models import Candidate, Watch


@dataclass(slots=True)
class Engines:
    """Hands out chat models; the weights of a checkpoint must have been made."""

    settings: EngineSettings
    watch: Watch
    environ: Mapping[str, str]
    _local: LocalModel | None = field(default=None)

    def chat_model(self, candidate: Candidate) -> ChatModel:
        """Return the candidate ready to chat; what the last call returned for a checkpoint is not usable any more."""
        if candidate.endpoint:
            from evals.endpoint import EndpointModel

            e = candidate.endpoint
            return EndpointModel(
                base_url=e.base_url,
                model=e.model,
                api_key_env=e.api_key_env,
                concurrency=e.concurrency,
                timeout=e.timeout,
                max_attempts=e.max_attempts,
                extra_body=e.extra_body,
            )
        assert candidate.folder is not None
        if self._local is not None and not self._local.fits(candidate.folder):
            self.close()
        if self._local is None:
            self.watch("start vLLM", 0, 1)
            self._local = LocalModel(candidate.folder, identity=candidate.id, settings=self.settings)
            self.watch("start vLLM", 1, 1)
        self._local.load(candidate.folder, identity=candidate.id)
        return self._local

    def close(self) -> None:
        """Stop the engine."""
        if self._local is not None:
            self._local.close()
            self._local = None
