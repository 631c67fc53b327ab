"""An alignment report as Markdown, in which no text of a conversation, a vocabulary or a name can act as Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_RUNS = re.compile("`+")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def as_markdown(report: Mapping[str, Any], *, of: str = "") -> str:
    """Return the report as GitHub's Markdown; texts stand in code spans, with what cannot be seen written out.

    ``of`` is what the fusion makes, for the heading.
    """
    positions = report["positions"]
    lines = [
        f"# Alignment of {code(of)}" if of else "# Alignment",
        "",
        f"{report['conversations']} conversations, {positions['all']} positions of the target, of which "
        f"{positions['supervised']} expect a token that counts. Shares are of these.",
        "",
        *_models(report),
    ]
    for source in report["sources"]:
        lines += ["", f"## {code(source['name'])}", "", *_kinds(source), *_vocabulary(source), *_kept(source)]
        lines += _examples(source["examples"])
    return "\n".join(lines) + "\n"


def code(text: str, *, table: bool = False) -> str:
    """Return a text as a code span that holds nothing else, in one line and without hidden characters.

    Control, format and other unseen characters (Unicode's C, Zl and Zp) are written as escapes, spaces at either end as
    ␣, and the fence is longer than any run of backticks inside. In a ``table``, bars are escaped.
    """
    if not text:
        return "(nothing)"
    seen = "".join(_visible(character) for character in text)
    inside = seen.strip(" ")
    before, after = len(seen) - len(seen.lstrip(" ")), len(seen) - len(seen.rstrip(" "))
    seen = "␣" * before + inside + "␣" * (after if inside else 0)
    fence = "`" * (max((len(run) for run in _RUNS.findall(seen)), default=0) + 1)
    pad = " " if "`" in (seen[0], seen[-1]) else ""  # a span takes it off again
    return fence + pad + (seen.replace("|", "\\|") if table else seen) + pad + fence


def _visible(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
    return character


def _models(report: Mapping[str, Any]) -> list[str]:
    head = ("model", "role", "tokens", "nats a token", "bits a byte", f"{report['wins_are']} won", "bytes", "seconds")
    rows = [
        (
            code(model["name"], table=True),
            model["role"],
            str(model["tokens"]),
            _number(model["nats_a_token"]),
            _number(model["bits_a_byte"]),
            "–" if model["wins"] is None else f"{model['wins']} ({_share(model['share_won'])})",
            ("≤ " if model["bytes_are"] == "at most" else "") + str(model["bytes"]),
            _number(model["seconds"]),
        )
        for model in report["models"]
    ]
    costs = [
        f"A forward pass of {code(model['name'])} takes about {model['forward_flops']:.2e} floating-point operations."
        for model in report["models"]
        if model["forward_flops"] is not None
    ]
    return [*_table(head, rows), *(line for cost in costs for line in ("", cost))]


def _kinds(source: Mapping[str, Any]) -> list[str]:
    rows = [(name, str(n["all"]), str(n["supervised"]), _share(n["share"])) for name, n in source["kinds"].items()]
    return _table(("positions", "all", "that count", "share"), rows)


def _vocabulary(source: Mapping[str, Any]) -> list[str]:
    if not source["vocabulary"]:
        return []
    rows = [
        (name.replace("_", " "), str(n["tokens"]), _share(n["share"]), _share(n["mass"]))
        for name, n in source["vocabulary"].items()
    ]
    return ["", *_table(("mapped", "tokens", "of the vocabulary", "of what it expects"), rows)]


def _kept(source: Mapping[str, Any]) -> list[str]:
    if not source["kept"]["positions"]:
        return []
    names = tuple(source["kept"]["quantiles"])
    rows = [
        (what, _share(source[key]["mean"]), *(_share(value) for value in source[key]["quantiles"].values()))
        for what, key in (("of the source's likeliest tokens", "teacher"), ("kept on the target's", "kept"))
    ]
    return ["", *_table(("probability", "mean", *names), rows)]


def _examples(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for shown in examples:
        lines += ["", f"### {shown['kind'].capitalize()}", "", f"After {code(shown['before'])}:", ""]
        lines.append(f"- the target's next tokens: {_listed(shown['target'])}")
        lines.append(f"- the source's: {_listed(shown['source'])}")
        for key, what in (("expected", "the source expects"), ("projected", "in the target's tokens")):
            if shown[key] is not None:
                lines.append(f"- {what}: " + (", ".join(f"{code(t)} {p:.3f}" for t, p in shown[key]) or "nothing"))
    return lines


def _listed(texts: Iterable[str]) -> str:
    return " ".join(code(text) for text in texts) or "none"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
