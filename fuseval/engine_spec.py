"""The ``engine:`` block: where checkpoints answer. In this process, over a Ray cluster, or at servers that run."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from evals.engine import EngineSettings
from evals.ray_replicas import Spread
from fuseval.endpoint_spec import Endpoint, PriceSpec
from fuseval.strict import Strict

_OF_KIND = {
    "ray": ("replicas", "address", "cpus", "gpus"),
    "endpoints": ("urls", "model", "api_key_env", "extra_body", "concurrency", "timeout", "max_attempts"),
}


class Engine(Strict):
    """How checkpoints answer; see evals.engine.EngineSettings for what the fields of a vLLM engine mean."""

    kind: Literal["local", "ray", "endpoints"] = "local"
    max_model_len: Annotated[int, Field(ge=16)] = 4096
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    # of kind ray
    replicas: Annotated[int, Field(ge=1)] = 1  # engines
    address: str = "auto"  # of the cluster, see fuseval.cluster; local: processes started here
    cpus: Annotated[int, Field(ge=1)] = 1  # that an engine without GPU computes with
    gpus: Annotated[int, Field(ge=0)] | None = None  # of an engine; None: tensor_parallel (local: if there are GPUs)
    # of kind endpoints
    urls: list[str] = Field(default_factory=list)  # base URLs of servers of the model
    model: str | None = None  # as the servers call it; None: by its name here
    api_key_env: str | None = None
    extra_body: dict[str, Any] | None = None
    concurrency: Annotated[int, Field(ge=1)] = 64
    timeout: Annotated[float, Field(gt=0)] = 120.0
    max_attempts: Annotated[int, Field(ge=1)] = 5

    @model_validator(mode="after")
    def _of_its_kind(self) -> Engine:
        for kind, names in _OF_KIND.items():
            if kind != self.kind and (given := [name for name in names if name in self.model_fields_set]):
                raise ValueError(f"{', '.join(given)} can be said of kind {kind} only, and this engine is {self.kind}")
        if self.kind == "endpoints":
            if not self.urls:
                raise ValueError("an engine of kind endpoints needs urls: the base URLs of the servers")
            self.endpoint("checked")  # raises where a URL or the key's name is none
        return self

    @property
    def cluster(self) -> str | None:
        """The address of a Ray cluster of several machines, which merges too; None: this process does."""
        return self.address if self.kind == "ray" and self.address != "local" else None

    def settings(self) -> EngineSettings:
        """Return what each vLLM engine is started with."""
        return EngineSettings(**{f.name: getattr(self, f.name) for f in fields(EngineSettings)})

    def spread(self) -> Spread | None:
        """Return how engines are spread over a Ray cluster; None where one runs in this process."""
        return Spread(self.replicas, self.address, self.cpus, self.gpus) if self.kind == "ray" else None

    def endpoint(self, name: str, *, tokenizer: str | None = None) -> Endpoint:
        """Return the servers of the model of this name, with its tokenizer's folder."""
        return Endpoint(
            model=self.model or name,
            base_url=self.urls[0],
            replicas=self.urls[1:],
            api_key_env=self.api_key_env,
            extra_body=self.extra_body,
            concurrency=self.concurrency,
            timeout=self.timeout,
            max_attempts=self.max_attempts,
            price=PriceSpec(input=0.0, output=0.0),
            tokenizer=tokenizer,
        )
