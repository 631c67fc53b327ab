"""The annotators of the installed alpaca_eval package: how each shows two answers to its judge, and reads the reply.

They are the folders of its ``evaluators_configs`` (alpaca_eval 0.6.6), read from its files without importing it, which
would take seconds. Those can be used whose prompt is a chat about one pair of answers and whose reply is text, or the
log-probabilities of its first token; no others (function calls, completion models, several questions a prompt).
"""

from __future__ import annotations

import difflib
import importlib.util
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from evals.records import Message, Sampling

PARSERS = ("regex_parser", "ranking_parser", "lmsys_parser", "logprob_parser")
PLACES = ("instruction", "output_1", "output_2")
MAX_TOKENS = ("max_tokens", "max_new_tokens", "max_tokens_to_sample")  # as each of its decoders calls it
UNSUPPORTED = ("tools", "tool_choice", "functions", "function_call", "tokens_to_favor", "tokens_to_avoid")


@dataclass(frozen=True, slots=True)
class Annotator:
    """One annotator: ``messages`` hold the places {instruction}, {output_1} and {output_2}, each once.

    ``judge`` is the model it was made for. ``parser`` is one of PARSERS and ``arguments`` what it is called with.
    ``switches``: whether a seeded coin, rather than nothing, decides which answer is output_1.
    """

    name: str
    judge: str
    messages: tuple[Message, ...]
    sampling: Sampling
    top_logprobs: int
    parser: str
    arguments: Mapping[str, Any]
    switches: bool

    def show(self, *, instruction: str, output_1: str, output_2: str) -> tuple[Message, ...]:
        """Return the messages with their places filled, all at once: what is filled in stays text, whatever it holds.

        Equal to the package's messages, stripping included, except where an answer holds ChatML or a place: there the
        package parses the answer as markup of its own.
        """
        texts = {"instruction": instruction, "output_1": output_1, "output_2": output_2}
        place = re.compile("{(" + "|".join(PLACES) + ")}")
        return tuple(
            Message(m.role, place.sub(lambda found: texts[found[1]], m.content).strip()) for m in self.messages
        )

    def shows_model_first(self, instruction: str) -> bool:
        """Return whether the model's answer is output_1: a coin seeded with the instruction, hence every model's."""
        seed = "is_switched_outputs" + instruction + "0"  # RandomSwitchTwoColumnsProcessor, with the annotators' seed 0
        return self.switches and random.Random(seed).choices([False, True], k=1)[0]  # noqa: S311


@cache
def annotator(name: str) -> Annotator:
    """Return the annotator called ``name``; raises ValueError, with those that can be used, for any other."""
    configurations = _configurations()
    if name not in configurations:
        near = difflib.get_close_matches(name, configurations, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"alpaca_eval has no annotator {name!r}; usable here are {', '.join(usable())}.{hint}")
    try:
        return _read(name, configurations[name])
    except _NotUsable as why:
        raise ValueError(f"annotator {name!r} {why}; usable here are {', '.join(usable())}") from None


@cache
def usable() -> tuple[str, ...]:
    """Return the names of the annotators that can be used."""
    found = []
    for name, file in _configurations().items():
        try:
            _read(name, file)
        except _NotUsable:
            continue
        found.append(name)
    return tuple(found)


class _NotUsable(Exception):
    """Why an annotator cannot be used."""


def _configurations() -> dict[str, Path]:
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("AlpacaEval's annotators are read from the package alpaca_eval: pip install alpaca_eval")
    folder = Path(spec.submodule_search_locations[0]) / "evaluators_configs"
    return {file.parent.name: file for file in sorted(folder.glob("*/configs.yaml"))}


def _read(name: str, file: Path) -> Annotator:
    # The package writes its configurations in YAML; ours are read in fuseval/config.py alone.
    import yaml

    configurations = yaml.safe_load(file.read_text(encoding="utf-8"))
    if len(configurations) != 1:
        raise _NotUsable("is a pool of several")
    [configuration] = configurations.values()
    asked = configuration.get("completions_kwargs", {})
    if odd := [key for key in UNSUPPORTED if key in asked]:
        raise _NotUsable(f"needs {' and '.join(odd)}")
    if configuration.get("batch_size", 1) != 1:
        raise _NotUsable("asks about several questions at once")
    parser, arguments = _parser(configuration, max_tokens=asked.get("max_tokens"))
    template = (file.parent.parent / configuration["prompt_template"]).read_text(encoding="utf-8")
    return Annotator(
        name=name,
        judge=asked["model_name"],
        messages=_messages(template),
        sampling=Sampling(  # the defaults of alpaca_eval's openai_completions
            temperature=float(asked.get("temperature", 0.7)),
            top_p=float(asked.get("top_p", 1.0)),
            max_tokens=next((int(asked[key]) for key in MAX_TOKENS if key in asked), 2048),
        ),
        top_logprobs=int(asked.get("top_logprobs", 0)),
        parser=parser,
        arguments=arguments,
        switches=bool(configuration.get("is_randomize_output_order", True)),
    )


def _parser(configuration: Mapping[str, Any], *, max_tokens: int | None) -> tuple[str, Mapping[str, Any]]:
    parser = configuration.get("fn_completion_parser", "regex_parser")
    arguments = configuration.get("completion_parser_kwargs") or {}
    if parser not in PARSERS:
        raise _NotUsable(f"has its reply read by {parser}")
    if parser == "logprob_parser" and arguments.get("log_prob_index", "batch") not in ("batch", 0) and max_tokens != 1:
        raise _NotUsable("reads the log-probabilities of another token than the first")
    return parser, arguments


def _messages(template: str) -> tuple[Message, ...]:
    """Split a template in ChatML, as the package's ``prompt_to_chatml`` splits what it has filled in."""
    start, end = "<|im_start|>", "<|im_end|>"
    template = template.strip()
    if not (template.startswith(start) and template.endswith(end)):
        raise _NotUsable("is for a completion model: its prompt is no chat")
    if Counter(re.findall(r"{([^ \s]+?)}", template)) != Counter(PLACES):
        raise _NotUsable(f"does not hold each of {', '.join(PLACES)} once")
    found = []
    for part in template.split(start)[1:]:
        role, content = part.split("\n", 1)
        if role.strip() not in ("system", "user", "assistant"):
            raise _NotUsable(f"has a message of the role {role.strip()!r}")
        found.append(Message(role.strip(), content.split(end, 1)[0]))
    return tuple(found)
