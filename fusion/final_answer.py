r"""What a response gives as its answer, be it a gold answer's form, LaTeX or prose.

The answer of a response is what comes first of these, whatever stands before it:

1. what is in the last ``\boxed{…}`` or ``\fbox{…}`` that is closed;
2. what follows the last ``####``, GSM8K's form, where it begins with a number or maths and is not a heading: it holds
   no words, or it is the last line (then its first number or maths);
3. all of it, where it is one line without words;
4. what follows the last "answer is", "answer:" or "answer =" on its line: all of it where it holds no words, else the
   first maths in ``$…$``, ``\(…\)`` or ``\[…\]``, or the first number, after the last "=" if there is one;
5. the last such maths, or the last number, of the last 20,000 characters: whichever stands later.
"""

from __future__ import annotations

import re

TAIL = 20_000  # characters at a response's end in which an answer without any mark is looked for

DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?+|\.\d++"
"""A number without sign as a regular expression: 1,234.5 or .5."""

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_ANSWER = re.compile(r"\banswer\b(?:(?! is\b)[^.:=\n]){0,100}(?: is\b|:|=)[ \t:*_]*", re.IGNORECASE)
_MATHS = re.compile(
    r"\$\$([^$]{1,300})\$\$|\\\[(.{1,300}?)\\\]|\\\((.{1,300}?)\\\)|(?<![\\\w])\$(?=\S)([^$\n]{1,300})(?<=\S)\$(?!\d)",
    re.DOTALL,
)  # $…$ as pandoc reads it, so that $5 and $6 are prices
_NUMBER = re.compile(
    r"(?<![\w.,\\{^])(?:(?<!\S)|(?<=[=(\[:*$£€¥/>~]))?+[-+]?+[$£€¥]?+[-+]?+"
    rf"(?:{DIGITS})(?:[eE][-+]?\d{{1,3}})?+(?:\s?/\s?\d++(?![\w/])|[ ]\d++/\d++(?![\w/]))?+(?:\^\{{?\d++\}}?)?+"
    r"(?!(?:st|nd|rd|th|[a-exyzn])\b)(?:\s?(?:\\?%|percent\b|thousand\b|million\b|billion\b))?+"
)
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "\xa0": " ", "\u202f": " ", "\u2009": " "})


def final_answer(text: str) -> str | None:
    """Return what a response gives as its answer."""
    if (box := boxed(text)) is not None:
        return box
    below = text.rpartition("####")[2] if "####" in text else ""
    if match := re.match(r" *([-−+$£€¥\\(\d.][^\n]*)\s*", below):
        line = match[1].strip()
        if not _wordy(line) or match.end() == len(below):
            return line if not _wordy(line) else _first(line)
    tail = text[-TAIL:].translate(_SIGNS)
    if "\n" not in (line := text.strip()) and line and not _wordy(line):
        return line
    ends = [match.end() for match in _ANSWER.finditer(tail)]
    if ends and (line := tail[ends[-1] :].split("\n", 1)[0].strip()):
        if not _wordy(line):
            return line
        if (found := _first(line)) is not None:
            return found
    maths, numbers = _found(tail)
    last = max([*maths, *numbers], default=None)
    return last[1] if last else None


def _found(text: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return where maths and numbers begin, and what they are; numbers within maths are left out."""
    spans = [match for match in _MATHS.finditer(text) if not _wordy(match[match.lastindex or 0])]
    maths = [(match.start(), match[match.lastindex or 0]) for match in spans]
    outside = list(text)
    for match in spans:
        outside[match.start() : match.end()] = "\n" * (match.end() - match.start())
    return maths, [(match.start(), match[0]) for match in _NUMBER.finditer("".join(outside))]


def _first(line: str) -> str | None:
    """Return the first maths or number of a line, after its last "=" if one follows that."""
    for part in dict.fromkeys((line.rpartition("=")[2], line)):
        maths, numbers = _found(part)
        if maths or numbers:
            return min([*maths, *numbers])[1]
    return None


def boxed(text: str) -> str | None:
    """Return what is in the last box that is closed; None where there is none."""
    for match in reversed(list(_BOX.finditer(text))[-3:]):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[match.end() : place]
    return None


def cleaned(text: str) -> str:
    """Return an answer without the markup around and in it."""
    text = text.translate(_SIGNS).strip().strip("*_`").strip()
    text = re.sub(r"^(?:\$\$?|\\\(|\\\[)(.*?)(?:\$\$?|\\\)|\\\])[.]?$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|operatorname|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[,;:!]|\{,\}|\\(?:left|right|displaystyle)(?![a-z])", lambda m: "," * (m[0] == "{,}"), text)
    text = text.replace(r"\ ", " ").replace(r"\%", "%").replace(r"\$", "$").replace("~", " ")
    text = re.sub(r"\^\{?\\circ\}?", "°", text)
    return " ".join(text.split()).strip("*_` ").rstrip(".,;:!?*_` ") if text else ""


def _wordy(text: str) -> bool:
    """Tell whether there is prose in a text: words of two letters or more that are no LaTeX commands."""
    bare = re.sub(r"\\[a-zA-Z]+(?:\{[A-Za-z ]+\})?", " ", text)
    return re.search(r"[A-Za-z]{2}", re.sub(r"\b(?:sqrt|sin|cos|tan|log|ln|pi)\b", " ", bare)) is not None
