"""The script that a text is mainly written in, by Unicode's names: a sign of its language that needs no model."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import groupby

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_KANA = ("HIRAGANA", "KATAKANA")
_JAPANESE = 0.1  # the share of kana from which Chinese characters are taken for Japanese
_UNSPACED = ("CJK", *_KANA, "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")  # no spaces between words


def main_script(text: str) -> str | None:
    """Return the script of most of the words, as Unicode's names begin: "LATIN", "CJK", "CYRILLIC"; None without any.

    Where words have no spaces between them each letter counts, elsewhere each run of letters; so a Chinese answer about
    ``pandas`` is Chinese. Markdown's code does not count. Kana beside Chinese characters is "JAPANESE". Simplified
    and traditional Chinese, or English and French, are not told apart. Of scripts with equally many words, the first
    in the alphabet.
    """
    words: Counter[str] = Counter()
    for script, run in groupby(unicodedata.normalize("NFKC", _CODE.sub(" ", text)), _script):
        words[script] += len(list(run)) if script in _UNSPACED else 1
    del words[""]
    kana = sum(words[script] for script in _KANA)
    if kana and kana >= _JAPANESE * (kana + words["CJK"]):
        words["JAPANESE"] = kana + words.pop("CJK", 0)
        for script in _KANA:
            del words[script]
    return min(words, key=lambda script: (-words[script], script), default=None)


@lru_cache(maxsize=1 << 14)
def _script(character: str) -> str:
    """Return the first word of a letter's name, and nothing for what is no letter."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    first = re.split("[ -]", unicodedata.name(character, ""), maxsplit=1)[0]
    return "CJK" if first == "IDEOGRAPHIC" else first
