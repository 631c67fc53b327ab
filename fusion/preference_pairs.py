"""Preferences chosen from scored responses: SFT examples, preference pairs, WRPO's quadruples.

Yang et al. 2025, FuseChat-3.0 (arXiv:2503.04222, and the README of its repository): of each prompt the SFT split has
the response with the highest reward, the preference split the best and the worst response of one source. Yang et al.
2024, WRPO (arXiv:2412.03187): the best response of all sources, and the target's own best and worst.

Two things are not published, and are decided here:

- From which source a pair comes. The sizes of the chat sets are exactly 4:6 (UltraFeedback 20,439 and 30,659), so each
  prompt has one pair, and none was lost to the gap: it comes from a source whose pair lies within the gaps. Of several
  such, ``pairs="best"`` takes the one whose chosen response has the highest reward.
- Whether code pairs were filtered by their gap: only for chat and maths is it said, so ``gap_kinds`` has these.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal

from fusion.errors import RecipeError, did_you_mean
from fusion.language import main_script
from fusion.preference_records import (
    BLANK,
    EQUAL,
    GAPS,
    NO_RESPONSE,
    NO_SOURCE,
    NO_TARGET,
    NONE_CORRECT,
    NONE_COUNTS,
    NONE_WRONG,
    NOT_BOTH,
    NOT_CHOSEN,
    ONE_RESPONSE,
    OTHER_SCRIPT,
    REPEATED,
    SAME_PAIR,
    TOO_LARGE,
    TOO_SMALL,
    Built,
    Dropped,
    Example,
    Pair,
    PairParams,
    Prompt,
    Quadruple,
    Response,
    is_number,
)
from fusion.preference_split import SFT, checked_prompts, is_unicode, split


def build(prompts: Iterable[Prompt], responses: Iterable[Response], params: PairParams | None = None) -> Built:
    """Choose what to train on; the order of prompts and responses changes nothing.

    - SFT: the response with the highest reward of all sources; of maths and code, of the correct ones.
    - Pairs: best and worst reward of the same source; of maths and code, the best correct and the worst incorrect one.
    - Kind "language" is for SFT only; responses in another script than the prompt's do not count.
    - Quadruples, with a ``target``: the best of the sources as for SFT, best and worst of the target as for pairs.

    Blank responses, and those with the text of an earlier one of the same source (of any source, without
    ``same_source``), do not count. Of equal rewards the first source's lowest sample is taken. RecipeError names prompt
    and source where a reward is no finite number, or it is not known whether a response to maths or code is correct.
    """
    params = params or PairParams()
    asked = sorted(checked_prompts(prompts), key=operator.attrgetter("id"))
    by_prompt, order = _checked_responses(responses, asked, params)
    sides = split(asked, params)
    chooser = _Chooser(params, order)
    for prompt in asked:
        chooser.add(prompt, by_prompt.get(prompt.id, []), sides[prompt.id])
    told = tuple(response for prompt in asked for response in by_prompt.get(prompt.id, ()))
    return Built(
        params,
        tuple(asked),
        told,
        sides,
        tuple(chooser.sft),
        tuple(chooser.pairs),
        tuple(chooser.quadruples),
        tuple(chooser.dropped),
    )


class _Chooser:
    """Chooses prompt by prompt, and keeps account of what is dropped."""

    def __init__(self, params: PairParams, order: Sequence[str]) -> None:
        self.params, self.order = params, order
        self.sft: list[Example] = []
        self.pairs: list[Pair] = []
        self.quadruples: list[Quadruple] = []
        self.dropped: list[Dropped] = []

    def add(self, prompt: Prompt, responses: Sequence[Response], side: str) -> None:
        """Add what is kept of a prompt, or that it is dropped; ``responses`` are in the order that breaks ties."""
        found = self._counting(prompt, responses)
        pools = [[response for response in found if response.source == source] for source in self.order]
        of_sources = [response for response in found if response.source != self.params.target]
        if side == SFT:
            why = NO_SOURCE if found and not of_sources else self._example(prompt, of_sources)
        elif self.params.target is None:
            why = self._pair(prompt, [pool for pool in pools if pool] if self.params.same_source else [found])
        else:
            why = self._quadruple(prompt, of_sources, [r for r in found if r.source == self.params.target])
        if why:
            why = NONE_COUNTS if why == NO_RESPONSE and responses else why
            self.dropped.append(Dropped("prompt", why, prompt.id))

    def _counting(self, prompt: Prompt, responses: Sequence[Response]) -> list[Response]:
        """Return the responses that count."""
        script = None
        if prompt.kind == "language":
            script = main_script("\n".join(m["content"] for m in prompt.messages if m["role"] == "user"))
        kept, seen = [], set()
        for response in responses:
            text = response.text.strip()
            said = (response.source if self.params.same_source else None, text)
            why = BLANK if not text else REPEATED if said in seen else None
            if why is None and script is not None and main_script(text) not in (script, None):
                why = OTHER_SCRIPT
            seen.add(said)
            if why is None:
                kept.append(response)
            else:
                self.dropped.append(Dropped("response", why, prompt.id, response.source, response.sample))
        return kept

    def _example(self, prompt: Prompt, found: Sequence[Response]) -> str | None:
        """Add the best response, or return why there is none."""
        good = _good(prompt, found)
        if not good:
            return NONE_CORRECT if found else NO_RESPONSE
        self.sft.append(Example(prompt, _best(good)))
        return None

    def _pair(self, prompt: Prompt, pools: Sequence[Sequence[Response]]) -> str | None:
        """Add the pair of one pool of responses, or of each; or return why there is none."""
        if lacking := _lacking(prompt, [response for pool in pools for response in pool]):
            return lacking
        pairs, why = self._within(pair for pool in pools if (pair := _ends(prompt, pool)))
        if not pairs:
            return why or (NOT_BOTH if prompt.kind in ("math", "code") else ONE_RESPONSE)
        for pair, reason in self._chosen(pairs):
            if reason is None:
                self.pairs.append(pair)
            else:
                self._drop_pair(pair, reason)
        return None

    def _quadruple(self, prompt: Prompt, of_sources: Sequence[Response], own: Sequence[Response]) -> str | None:
        """Add a quadruple, or return why there is none."""
        good = _good(prompt, of_sources)
        if not own or not of_sources:
            return NO_TARGET if of_sources else NO_SOURCE if own else NO_RESPONSE
        if lacking := NONE_CORRECT if not good else _lacking(prompt, own):
            return lacking
        pair = _ends(prompt, own)
        pairs, why = self._within([pair] if pair else [])
        for pair in pairs:
            self.quadruples.append(Quadruple(prompt, _best(good), pair.chosen, pair.rejected, pair.gap))
        return None if pairs else why or ONE_RESPONSE

    def _within(self, pairs: Iterable[Pair]) -> tuple[list[Pair], str | None]:
        """Return the pairs whose gap will do, and where none does, why."""
        kept, reasons = [], set()
        for pair in pairs:
            if (why := self._unfit(pair)) is None:
                kept.append(pair)
            else:
                reasons.add(why)
                self._drop_pair(pair, why)
        return kept, None if kept or not reasons else reasons.pop() if len(reasons) == 1 else GAPS

    def _unfit(self, pair: Pair) -> str | None:
        if pair.prompt.kind in self.params.gap_kinds:
            if pair.gap < self.params.min_gap:
                return TOO_SMALL
            if pair.gap > self.params.max_gap:
                return TOO_LARGE
        return EQUAL if pair.prompt.kind == "chat" and pair.gap <= 0 else None

    def _chosen(self, pairs: Sequence[Pair]) -> list[tuple[Pair, str | None]]:
        """Return each pair with the reason for which it is not taken."""
        if self.params.pairs == "all":
            seen: dict[tuple[str, str], int] = {}
            texts = [(pair.chosen.text.strip(), pair.rejected.text.strip()) for pair in pairs]
            firsts = [seen.setdefault(text, number) for number, text in enumerate(texts)]
            return [(p, None if firsts[n] == n else SAME_PAIR) for n, p in enumerate(pairs)]
        widest = self.params.pairs == "widest"
        taken = max(pairs, key=lambda pair: pair.gap if widest else pair.chosen.reward)  # the first of equals
        return [(pair, None if pair is taken else NOT_CHOSEN) for pair in pairs]

    def _drop_pair(self, pair: Pair, why: str) -> None:
        self.dropped.append(Dropped("pair", why, pair.prompt.id, pair.chosen.source, pair.chosen.sample, pair.gap))


def _good(prompt: Prompt, responses: Sequence[Response]) -> list[Response]:
    """Return the responses that may be learnt: the correct ones of maths and code."""
    return [response for response in responses if prompt.kind not in ("math", "code") or response.correct]


def _lacking(prompt: Prompt, found: Sequence[Response]) -> str | None:
    """Return why no pair at all can be made of the responses."""
    if not found:
        return NO_RESPONSE
    if prompt.kind not in ("math", "code"):
        return None
    good = sum(bool(response.correct) for response in found)
    return NONE_CORRECT if good == 0 else NONE_WRONG if good == len(found) else None


def _ends(prompt: Prompt, pool: Sequence[Response]) -> Pair | None:
    """Return the best and the worst response of a pool, if it has both."""
    good, bad = _good(prompt, pool), list(pool)
    if prompt.kind in ("math", "code"):
        bad = [response for response in pool if not response.correct]
    if not good or not bad or (len(pool) == 1):
        return None
    chosen = _best(good)
    rejected = min((r for r in bad if r is not chosen), key=operator.attrgetter("reward"))
    # As decimals, so that 0.11 − 0.10 is not below 0.01.
    return Pair(prompt, chosen, rejected, float(Decimal(repr(chosen.reward)) - Decimal(repr(rejected.reward))))


def _best(responses: Sequence[Response]) -> Response:
    return max(responses, key=operator.attrgetter("reward"))  # the first of equals


def _checked_responses(
    responses: Iterable[Response], prompts: Sequence[Prompt], params: PairParams
) -> tuple[dict[str, list[Response]], list[str]]:
    """Return each prompt's responses in the order that breaks ties, and the sources in theirs."""
    kinds = {prompt.id: prompt.kind for prompt in prompts}
    found: dict[tuple[str, str, int], Response] = {}
    for response in responses:
        place = f"response {response.sample} of {response.source!r} to prompt {response.prompt!r}"
        if response.prompt not in kinds:
            raise RecipeError(f"{place}: there is no such prompt.{did_you_mean(response.prompt, kinds)}")
        if (key := (response.prompt, response.source, response.sample)) in found:
            raise RecipeError(f"{place} stands twice; number the samples")
        if not is_number(response.reward):
            raise RecipeError(f"{place} has reward {response.reward!r}; it must be a finite number: score it again")
        if response.correct not in (True, False, None):
            raise RecipeError(f"{place} is correct: {response.correct!r}; it must be true, false or unknown")
        if response.correct is None and kinds[response.prompt] in ("math", "code"):
            raise RecipeError(f"{place} is {kinds[response.prompt]}, but not known to be correct or not; grade it")
        if not is_unicode(response.text + response.source):
            raise RecipeError(f"{place} holds half of a character, which is no text; leave it out")
        exact = type(response.reward) is float
        found[key] = response if exact else replace(response, reward=float(response.reward))
    names = {source for _, source, _ in found}
    if params.sources and (lost := names - {*params.sources, params.target}):
        name = min(lost)
        raise RecipeError(f"sources lacks {name!r}, which responded.{did_you_mean(name, params.sources)}")
    order = [*params.sources, *sorted(names - set(params.sources))]
    by_prompt: dict[str, list[Response]] = defaultdict(list)
    for key in sorted(found, key=lambda key: (order.index(key[1]), key[2])):
        by_prompt[key[0]].append(found[key])
    return by_prompt, order
