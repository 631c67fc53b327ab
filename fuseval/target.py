"""Target: what an experiment file says of a model that is made by training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fuseval.strict import Name, Strict

Kind = Literal["chat", "math", "code", "language"]  # fusion.preference_records.KINDS
Weight = Annotated[float, Field(allow_inf_nan=False)]
SAMPLES = 5  # of each source, as FuseChat-3.0 and WRPO draw


class DrawSpec(Strict):
    """How a source answers the prompts; what is None is as published for the family of the model.

    A source may be drawn from in several ways, each under a ``name`` of its own, which then is a source of responses.
    ``source: self`` is WRPO's target after its fine-tuning.
    """

    source: str
    name: Name | None = None  # None: the source's
    samples: Annotated[int, Field(ge=1)] | dict[Kind, Annotated[int, Field(ge=0)]] = SAMPLES  # to each prompt, by kind
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 2048
    stop: list[str] = Field(default_factory=list)  # texts that end a response, and are left off

    @property
    def title(self) -> str:
        """What the responses are called by."""
        return self.name or self.source


class RewardSpec(Strict):
    """What tells how good a response is: a reward model, a judge, or both; without either, whether it is correct."""

    model: str | None = None  # one of the experiment's models, of which transformers makes a sequence classifier
    judge: str | None = None  # one of the experiment's models, which rates from 1 to 10, which is 0 to 1 as a reward
    weights: dict[Literal["model", "judge"], Weight] = Field(default_factory=dict)  # of both, whose weighted sum it is
    trust_remote_code: bool = False  # run the Python code that comes with the reward model, as ArmoRM needs
    batch_size: Annotated[int, Field(ge=1)] = 8  # of the reward model

    @model_validator(mode="after")
    def _weights_of_both(self) -> RewardSpec:
        if self.model and self.judge and set(self.weights) != {"model", "judge"}:
            raise ValueError("reward has a model and a judge: give the weights of both, {model: 1, judge: 0.5}")
        if self.weights and not (self.model and self.judge):
            raise ValueError("weights of reward are for a model and a judge together: give both, or leave them out")
        return self


SELF = "self"
"""The name under which a target's draws mean the target itself."""


class Target(Strict):
    """A model made by training ``base`` on ``data``.

    ``sft`` is supervised fine-tuning on conversations; ``explicit`` is FuseChat's explicit fusion, which teaches
    ``base`` the next-token distributions of the ``sources`` too, whatever their tokenizers; ``implicit`` is
    FuseChat-3.0's and WRPO's, which teaches it the sources' best responses to the prompts in ``data``.
    """

    name: Name
    kind: Literal["sft", "explicit", "implicit"]
    base: str
    sources: list[str] = Field(default_factory=list)  # of explicit and implicit
    data: str  # a file of conversations, or of prompts (fusion.prompts), or hub:ORG/NAME/FILE[@REVISION]
    params: dict[str, Any] = Field(default_factory=dict)  # of SftParams, ExplicitParams, ImplicitParams in fusion
    draws: list[DrawSpec] = Field(default_factory=list)  # of implicit; none: one of every source
    reward: RewardSpec = Field(default_factory=RewardSpec)  # of implicit
    evaluate: bool = True
    strip_thinking: bool = False  # as a model's

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Target:
        if self.kind == "sft" and self.sources:
            raise ValueError(f"target {self.name!r} is kind: sft, which has no sources: write kind: explicit")
        if self.kind != "sft" and not self.sources:
            raise ValueError(f"target {self.name!r} learns from sources: name at least one in sources")
        if len(set(self.sources)) < len(self.sources) or (self.base in self.sources and self.kind == "explicit"):
            raise ValueError(f"sources of target {self.name!r} must differ from one another and from the base")
        if self.kind != "implicit" and (self.draws or self.reward != RewardSpec()):
            raise ValueError(f"target {self.name!r} is kind: {self.kind}; draws and reward are for kind: implicit")
        return self

    @model_validator(mode="after")
    def _draws_of_sources(self) -> Target:
        if any(draw.source == SELF and draw.name for draw in self.draws):
            raise ValueError(f"the draw of target {self.name!r} from itself needs no name: leave it out")
        titles = [draw.title for draw in self.draws]
        if twice := next((title for title in titles if titles.count(title) > 1), None):
            raise ValueError(f"two draws of target {self.name!r} are called {twice!r}: give each a name of its own")
        drawn = {draw.source for draw in self.draws} - {SELF}
        if unknown := sorted(drawn - set(self.sources)):
            raise ValueError(f"target {self.name!r} draws from {unknown[0]!r}, which is not among its sources")
        if drawn and (idle := sorted(set(self.sources) - drawn)):
            raise ValueError(f"target {self.name!r} draws nothing from its source {idle[0]!r}: add it to draws")
        return self
