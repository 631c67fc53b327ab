"""Which prompts are for SFT and which for preference: by set, exactly by share, and never both.

FuseChat-3.0 splits each data set 4:6 (arXiv:2503.04222; the sizes of its chat sets are exactly that), WRPO 1:2
(arXiv:2412.03187). How FuseChat-3.0 split maths and code is not published, and their sizes are not 4:6
(OpenMathInstruct-2 40,188 and 11,615 of 58,546): a set's own share can be given in ``PairParams.set_shares``.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction

from fusion.conversations import ROLES
from fusion.errors import RecipeError, did_you_mean, listed
from fusion.preference_records import KINDS, PairParams, Prompt, one_of

SFT, PREFERENCE = "sft", "preference"


def split(prompts: Iterable[Prompt], params: PairParams) -> dict[str, str]:
    """Return each prompt's side, SFT or PREFERENCE, by its id: known before anything is sampled, as WRPO needs it.

    A hash of id and seed puts the prompts of each set in an order, of which the first floor(share · n) go to SFT. Equal
    prompts, but for whitespace, are on one side, counted in the first one's set; where they are more than there is
    room for, later ones in the order are taken. Kind "language" and what is equal to it goes to SFT.
    """
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in sorted(checked_prompts(prompts), key=operator.attrgetter("id")):
        groups[_normalised(prompt)].append(prompt)
    strata: dict[str, list[list[Prompt]]] = defaultdict(list)
    sides: dict[str, str] = {}
    names = {set_name(prompt) for group in groups.values() for prompt in group}
    for name in params.set_shares:
        if name not in names:
            raise RecipeError(f"set_shares names {name!r}; the sets are {listed(names)}.{did_you_mean(name, names)}")
    for group in groups.values():
        if any(prompt.kind == "language" for prompt in group):
            sides |= {prompt.id: SFT for prompt in group}
        else:
            strata[set_name(group[0])].append(group)
    for name, among in strata.items():
        share = Fraction(params.set_shares.get(name, params.sft_share)).limit_denominator(1_000_000)  # 1/3 is a third
        room = math.floor(share * sum(map(len, among)))
        for group in sorted(among, key=lambda group: min(_rank(prompt, params.seed) for prompt in group)):
            side = SFT if len(group) <= room else PREFERENCE
            room -= len(group) if side == SFT else 0
            sides |= {prompt.id: side for prompt in group}
    return sides


def set_name(prompt: Prompt) -> str:
    """Return the name of a prompt's set: its kind where it has none."""
    return prompt.set or prompt.kind


def checked_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts; RecipeError names the first that has no id of its own, no kind or no text to answer."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        if not is_unicode(prompt.id + prompt.set):
            raise RecipeError(f"prompt id {prompt.id!r} of set {prompt.set!r} holds half of a character; name it anew")
        if not prompt.id or prompt.id in found:
            why = "it stands twice" if prompt.id else "it is empty"
            raise RecipeError(f"prompt id {prompt.id!r}: {why}; give each prompt an id of its own")
        one_of(f"the kind of prompt {prompt.id!r}", prompt.kind, KINDS)
        for number, message in enumerate(prompt.messages, 1):
            role, content = message.get("role"), message.get("content")
            if role not in ROLES or not isinstance(content, str) or not is_unicode(content):
                why = f"role {role!r} and content of type {type(content).__name__}"
                raise RecipeError(
                    f"message {number} of prompt {prompt.id!r} has {why}; the role must be one of {', '.join(ROLES)}, "
                    "the content text without halves of characters"
                )
        if not prompt.messages or prompt.messages[-1]["role"] != "user":
            raise RecipeError(f"prompt {prompt.id!r} does not end with the user; leave off what comes after")
        found[prompt.id] = prompt
    return list(found.values())


def is_unicode(text: str) -> bool:
    """Tell whether a text has no halves of characters, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normalised(prompt: Prompt) -> str:
    return json.dumps([[message["role"], " ".join(message["content"].split())] for message in prompt.messages])


def _rank(prompt: Prompt, seed: int) -> bytes:
    return hashlib.sha256(json.dumps([prompt.id, seed]).encode()).digest()
