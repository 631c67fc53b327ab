"""The ``endpoint:`` block of a model: which servers it is asked at, how fast, and what it costs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fuseval.strict import Strict


class PriceSpec(Strict):
    """What an endpoint charges, in US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]
    cached_input: Annotated[float, Field(ge=0)] | None = None  # of prompt tokens that it has at hand; None: as input
    batch: Annotated[float, Field(ge=0)] = 0.5  # the factor on all of it in batch mode


class Endpoint(Strict):
    """A model behind an OpenAI-compatible server."""

    model: str  # as the server calls it
    base_url: str | None = None  # None: OpenAI's own
    replicas: list[str] = Field(default_factory=list)  # base URLs of more servers of the very same model
    api_key_env: str | None = None  # the NAME of the environment variable that holds the key
    extra_body: dict[str, Any] | None = None  # fields added to every request; null drops one that we would send
    concurrency: Annotated[int, Field(ge=1)] = 64  # requests in flight a server, at most; found by trying
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None  # None: found by trying, or told by the server
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds for one reply
    max_attempts: Annotated[int, Field(ge=1)] = 5
    mode: Literal["chat", "batch"] = "chat"  # batch: OpenAI's Batch API, at half the price, within a day
    poll: Annotated[float, Field(gt=0)] = 60.0  # seconds between two looks at a batch
    price: PriceSpec | None = None  # None: from the price table, which knows OpenAI's and a few others'
    tokenizer: str | None = None  # folder of a tokenizer, for --dry-run; None: OpenAI's own, or an estimate

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", given):
            raise ValueError("api_key_env is the NAME of an environment variable, never the key: export the key there")
        return given

    @field_validator("base_url", "replicas")
    @classmethod
    def _urls(cls, given: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        for url in [given] if isinstance(given, str) else given or ():
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{info.field_name}: {url!r} must begin with http:// or https:// and name a host")
            if set(parse_qs(parts.query)) - {"api-version"}:
                raise ValueError(f"{info.field_name} must hold nothing behind a ?: a key is named as api_key_env")
            if parts.username or parts.password:
                raise ValueError(
                    f"{info.field_name} must hold no user or password: name the key's environment variable as "
                    "api_key_env"
                )
        return given

    @model_validator(mode="after")
    def _replicas_of_a_url(self) -> Endpoint:
        if self.replicas and self.base_url is None:
            raise ValueError("replicas are servers beside the one at base_url: give base_url too")
        if self.replicas and self.mode == "batch":
            raise ValueError("a batch goes to one server: leave replicas out, or mode")
        return self
