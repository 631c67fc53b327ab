"""Models of one number, and an engine that answers the better the nearer that number is to a planted optimum.

The checkpoints, merges, ledger and scores are real; only what stands in vLLM's place is played.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from evals import starter
from evals.chat import ChatRequest, NoReply, Reply
from evals.keys import content_key
from fuseval.ablate import ablate
from fuseval.ablation_file import load_ablation
from fuseval.engines import Engines
from fuseval.models import Candidate, resolve
from fuseval.pipeline import Run
from fuseval.study import plan_study
from fuseval.trials import Ablation
from results.store import Ledger

BEST = 2.0  # the weight whose model answers everything
MODELS = {"base": 0.0, "one": 1.0, "two": 3.0}
OBJECTIVE = {"scores": [{"benchmark": "starter", "metric": "accuracy"}]}
SPACE = {"params.weights.two": [0.0, 1.0, 3.0], "params.scale": [0.5, 1.0]}
CHECKED = [q for q in starter.questions() if q.check is not None]


def watch(*_: object) -> None:
    """Watch nothing."""


class PlantedEngines(Engines):
    """Engines without vLLM; ``stop_after`` answers, ``stop`` is called, and ``loads`` counts weights put in.

    Merges fail every fourth question with ``failing``, a kind of failure.
    """

    stop_after: int | None = None
    failing: str | None = None
    loads = 0
    planted: Any = None

    @staticmethod
    def stop() -> None:
        """End the process as `kill -9` does."""
        os.kill(os.getpid(), 9)

    def _loaded(self, candidate: Candidate) -> Any:
        if isinstance(self.planted, PlantedModel) and self.planted.identity == candidate.id:
            return self.planted
        tensors = _tensors(candidate)
        PlantedEngines.loads += 1
        fails = self.failing if candidate.merge else None
        weight = float(tensors["model.norm.weight"].float().mean())
        self.planted = PlantedModel(self, weight, candidate.id, fails)
        return self.planted


def _tensors(candidate: Candidate) -> dict[str, Any]:
    from safetensors.torch import load_file

    assert candidate.folder is not None
    if candidate.folder.exists():
        return load_file(candidate.folder / "model.safetensors")
    assert candidate.stream is not None
    return dict(candidate.stream.tensors())


class PlantedModel:
    """Answers a share of the questions rightly that is 1 at BEST and falls by a quarter for each unit from it."""

    def __init__(self, engines: PlantedEngines, weight: float, identity: str, fails: str | None) -> None:
        self.engines, self.identity, self.fails = engines, identity, fails
        share = max(0.0, 1 - abs(weight - BEST) / 4)
        ranked = sorted(CHECKED, key=lambda q: content_key("rank", q.id))
        self.right = {q.turns[-1]: q.reference[-1] for q in ranked[: round(share * len(ranked))]}

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        """Yield the replies in order."""
        for index, request in enumerate(requests):
            if self.engines.stop_after is not None:
                self.engines.stop_after -= 1
                if self.engines.stop_after < 0:
                    self.engines.ledger.flush()
                    self.engines.stop()
            if self.fails and index % 4 == 3:
                yield index, NoReply(self.fails, "planted", 1)
                continue
            said = request.messages[-1].content
            text = "A" if "Reply with one letter" in said else self.right.get(said, "I do not know.")
            yield index, Reply(text, "stop", 5, 1 + len(text.split()), 0.0, self.identity)


def ablation_yaml(folder: Path, *, judged: bool = False, **block: Any) -> Path:
    """Write the three models and an ablation of them; ``block`` is laid over its block ``ablation``."""
    import torch
    from safetensors.torch import save_file

    for name, weight in MODELS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file({"model.norm.weight": torch.full((2,), weight)}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
    given: dict[str, Any] = {
        "models": [{"name": name, "path": name} for name in MODELS],
        "benchmarks": ["starter"],
        "judges": [{"model": "base"}] if judged else [],
        "checkpoints": str(folder / "made"),
        "ablation": {
            "sources": ["one", "two"],
            "method": "task_arithmetic",
            "params": {"weights": [1.0, 1.0]},
            "search": {"kind": "grid"},
            "space": SPACE,
            "objective": OBJECTIVE,
            **block,
        },
    }
    given["ablation"]["params"] = {k: v for k, v in given["ablation"]["params"].items() if v is not None}
    file = folder / "ablation.yaml"
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    return file


def open_study(
    file: Path,
    ledger: Ledger,
    *,
    stop_after: int | None = None,
    failing: str | None = None,
    retry_failed: bool = False,
) -> Ablation:
    """Return a study as it stands."""
    read = load_ablation(file)
    models = resolve(read, beside=file.parent, cache=file.parent / "cache")
    engines = PlantedEngines(read.engine.settings(), watch, {}, ledger)
    engines.stop_after, engines.failing = stop_after, failing
    run = Run(read, models, ledger, engines, watch, Path, retry_failed=retry_failed)
    return Ablation(plan_study(read, run))


def done(file: Path, ledger: Ledger, **how: Any) -> Ablation:
    """Do what is left of a study."""
    return ablate(open_study(file, ledger, **how).plan)


if __name__ == "__main__":  # so that a study can be killed
    import sys

    with Ledger.open(sys.argv[2]) as opened:
        done(Path(sys.argv[1]), opened, stop_after=int(sys.argv[3]) if len(sys.argv) > 3 else None)
