r"""Gold answers: whether a response to a maths problem gives the right answer, or a program passes its tests.

What the answer of a response is, :mod:`fusion.final_answer` says. A response without one is incorrect; so is one whose
answer has more than 300 characters. Of "x = 5", and of "3 · 6 = 18", the part after the last "=" counts where the gold
answer is a number.

Two answers are equal where they are the same text but for case, space and markup, or the same number. Numbers may have
a sign, thousands separators (1,234), a decimal point, an exponent (1e3), "thousand", "million" or "billion", a currency
sign before and a unit behind them; a/b, ``\frac{a}{b}`` and mixed numbers (3 1/2) are exact. 42.0 is 42. A decimal with
three places or more equals the fraction that it is rounded or cut off from, where that has no finite decimal (0.333 and
1/3); else numbers are equal only exactly. p % equals both p and p/100, as GSM8K's golds leave off the sign. A decimal
comma, times and ratios are not read as numbers. What is no plain number on one side is held against the other by
math-verify (https://github.com/huggingface/Math-Verify), which simplifies, and rounds to 6 decimals; what it cannot
decide within its limits is incorrect, and said in ``note``. A symbolic answer that is equal counts, simplified or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, Self

from fusion.errors import RecipeError
from fusion.final_answer import DIGITS, boxed, cleaned, final_answer
from fusion.math_process import CPU_SECONDS, MathProcess
from fusion.sandbox_judge import ENDED

LONGEST = 300  # characters of an answer
_PLAIN = re.compile(
    rf"(?P<sign>[-+]?)\s?[$£€¥]?(?P<sign2>[-+]?)(?:(?P<whole>\d+)[ ](?=\d+/))?(?P<number>{DIGITS})"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3}))?(?:\s?/\s?(?P<below>\d+))?"
    r"\s?(?P<scale>thousand\b|million\b|billion\b)?\s?(?P<percent>%|percent\b)?"
    r"(?:\s(?!pi\b|sqrt|sin|cos|tan|log|ln)[A-Za-z]{2}[A-Za-z²³/. -]*(?:\^[23])?|"
    r"\s?(?:[kcm]m|[km]g|ml|lbs?|oz|ft|mph|hrs?|min|sec|[ap]m|°[CF]?)(?:[²³]|\^[23])?)?",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"(\d?)\s*\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))")
_FENCED = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_DEFINES = re.compile(r"^\s*(?:async def|def|class)\s", re.MULTILINE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_LATEX = (("π", r"\pi "), ("∞", r"\infty "), ("²", "^2"), ("³", "^3"), ("½", r"\frac{1}{2}"), ("**", "^"))


@dataclass(frozen=True, slots=True)
class Grade:
    """Whether a response is correct; ``answer`` is what was found in it, ``note`` why it is incorrect, if not wrong."""

    correct: bool
    answer: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Number:
    value: Fraction
    places: int = 0  # decimals it was written with
    percent: bool = False


class Grader:
    """Grades responses; symbolic ones in a process of its own, which ends when the block is left.

    ``cpu_seconds`` is what one comparison may take there.
    """

    def __init__(self, *, cpu_seconds: float = CPU_SECONDS) -> None:
        self._process = MathProcess(cpu_seconds=cpu_seconds)
        self._golds: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def gold(self, gold: str) -> str:
        r"""Return the answer in a gold answer: after ``####``, in ``\boxed{}``, or all of it.

        RecipeError where it is no number, no word and nothing that math-verify can read.
        """
        if gold not in self._golds:
            told = (boxed(gold) or gold.rpartition("####")[2]).strip()
            known = cleaned(told) if len(told) <= LONGEST and "\n" not in told else ""
            if not known or not (_number(known) or _is_word(known) or self._process.readable(_latex(known))):
                shown = gold if len(gold) <= 80 else f"{gold[:80]}…"
                raise RecipeError(
                    f"gold answer {shown!r} cannot be read; it must be a number, a word or LaTeX, of at most {LONGEST} "
                    r"characters, perhaps after #### or in \boxed{}"
                )
            self._golds[gold] = known
        return self._golds[gold]

    def grade(self, text: str, gold: str) -> Grade:
        """Grade a response by the rules at the top of this file; RecipeError names a gold answer it cannot read."""
        known = self.gold(gold)
        found = final_answer(text)
        if found is None:
            return Grade(False, None, "no answer")
        if len(found) > LONGEST:
            return Grade(False, f"{found[:LONGEST]}…", f"an answer of more than {LONGEST} characters")
        return self._compared(known, cleaned(found))

    def _compared(self, known: str, found: str) -> Grade:
        if _folded(known) == _folded(found):
            return Grade(True, found)
        number = _number(known)
        if number is not None and not _is_word(found):
            found = found.rpartition("=")[2].strip() or found
            if (other := _number(found)) is not None:
                return Grade(_same(number, other), found)
        if _is_word(found) or (_is_word(known) and len(known) > 1):
            return Grade(False, found)
        equal = self._process.equal(_latex(known), _latex(found))
        return Grade(bool(equal), found, "not decided within the limits of math-verify" if equal is None else "")


class Outcome(Protocol):
    """How a program ended, as a sandbox tells it."""

    @property
    def status(self) -> str:
        """Return "passed" where it exited with 0, else another word."""

    @property
    def exit_code(self) -> int | None:
        """Return its status, None where it was killed."""


RunTests = Callable[[Sequence[tuple[str, str]]], Sequence[Outcome]]
"""Code with its tests → how the tests ended, such as fusion.sandbox.judge_all."""


def grade_all(pairs: Iterable[tuple[str, str]]) -> Iterator[Grade]:
    """Yield the grade of each (response, gold answer), in order."""
    with Grader() as grader:
        for text, gold in pairs:
            yield grader.grade(text, gold)


def code_of(response: str) -> str:
    """Return the code in a response.

    It is the last fenced block marked as Python (of blocks without any mark, where none is) that defines a
    function or class, else the last of these blocks; a block that is not closed ends with the response. Without a
    block, it is the whole response.
    """
    blocks = [(match[1].strip().lower(), match[2]) for match in _FENCED.finditer(response)]
    python = [code for mark, code in blocks if mark.split(" ")[0] in ("python", "py", "python3")]
    found = python or [code for mark, code in blocks if not mark]
    return next((code for code in reversed(found) if _DEFINES.search(code)), found[-1] if found else response)


def grade_code(pairs: Sequence[tuple[str, str]], run: RunTests) -> list[Grade]:
    """Return the grade of each (response, tests), in order: correct where the tests passed, else ``note`` says why."""
    outcomes = run([(code_of(response), tests) for response, tests in pairs])
    notes = ["ended before its tests" if outcome.exit_code == ENDED else outcome.status for outcome in outcomes]
    return [Grade(note == "passed", None, "" if note == "passed" else note) for note in notes]


def _number(text: str) -> _Number | None:
    """Return a plain number, as the top of this file says what one is; ``text`` is clean."""
    text = _FRACTION.sub(lambda m: f"{m[1]} {m[2] or m[4]}/{m[3] or m[5]}".strip(), text).strip()
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    match = _PLAIN.fullmatch(text.removeprefix("+"))
    if not match or len(text) > LONGEST or (match["sign"] and match["sign2"]):
        return None
    value = Fraction(match["number"].replace(",", "")) * Fraction(10) ** int(match["exponent"] or 0)
    if match["below"]:
        if not int(match["below"]):
            return None
        value = value / int(match["below"]) + int(match["whole"] or 0)
    value *= _SCALES.get((match["scale"] or "").lower(), 1)
    places = 0 if match["below"] else len(match["number"].partition(".")[2])
    return _Number(-value if "-" in match["sign"] + match["sign2"] else value, places, bool(match["percent"]))


def _same(gold: _Number, found: _Number) -> bool:
    if _equal(gold, found):
        return True
    if gold.percent == found.percent:
        return False
    share = gold if gold.percent else found
    as_part = _Number(share.value / 100, share.places + 2 * bool(share.places))
    return _equal(*((as_part, found) if share is gold else (gold, as_part)))


def _equal(one: _Number, other: _Number) -> bool:
    if one.value == other.value:
        return True
    exact, decimal = (one, other) if other.places else (other, one)
    below = exact.value.denominator
    while below % 2 == 0 or below % 5 == 0:
        below //= 2 if below % 2 == 0 else 5
    if below == 1 or decimal.places < 3:
        return False
    beyond = (abs(exact.value) - abs(decimal.value)) * 10**decimal.places
    return exact.value * decimal.value > 0 and Fraction(-1, 2) <= beyond < 1


def _folded(text: str) -> str:
    """Return a text for comparing, without space, case of words, and brackets around a choice such as (B)."""
    text = "".join(text.split())
    text = text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text
    return text.lower() if text.isalpha() and len(text) > 1 else text


def _is_word(text: str) -> bool:
    return bool(re.fullmatch(r"\(?[A-Za-z][A-Za-z'-]*(?: [A-Za-z'-]+)*\)?", text))


def _latex(text: str) -> str:
    for plain, latex in _LATEX:
        text = text.replace(plain, latex)
    text = re.sub(r"(?<!\\)\bsqrt\(([^()]*)\)|√\(?([\w.]+)\)?", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    text = re.sub(r"(?<!\\)\b(pi|sin|cos|tan|log|ln)\b", r"\\\1 ", text)
    return text.replace("$", "").replace("%", r"\%").replace("°", r"^\circ").replace("\n", " ")
