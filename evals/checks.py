"""Checks: rules that say whether an answer is right without asking a judge; pure functions and the CHECKS table."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal

_FENCED = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)
# A sign counts only where no digit or letter stands before it: "7-5" holds 7 and 5.
_NUMBER = re.compile(r"(?:(?<![\w.])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_ANSWER_LINE = re.compile(r"^\s*Answer:(.*)$", re.MULTILINE)


def exact_text(answer: str, reference: str) -> bool:
    """Tell whether the answer is the reference, character for character.

    Both are compared in NFC, trimmed, without spaces at the ends of lines; one code fence around the whole
    text is removed. Case, punctuation and everything else count.
    """
    return _normal_text(answer) == _normal_text(reference)


def final_number(answer: str, reference: str) -> bool:
    """Tell whether the number that the answer ends on equals the reference's.

    It is the last number in the last line that starts with "Answer:", or, without such a line, the last number in
    the text. Thousands commas, a dollar sign and a final period are allowed; 12.50 equals 12.5. A last "Answer:"
    line that holds no number is wrong.
    """
    found, wanted = _final_number(answer), _final_number(reference)
    return found is not None and found == wanted


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "exact_text": exact_text,
    "final_number": final_number,
}


def _normal_text(text: str) -> str:
    text = unicodedata.normalize("NFC", text).strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _final_number(text: str) -> Decimal | None:
    lines: list[str] = _ANSWER_LINE.findall(text)
    numbers: list[str] = _NUMBER.findall(lines[-1] if lines else text)
    if not numbers:
        return None
    return Decimal(numbers[-1].replace(",", "").replace("$", ""))
