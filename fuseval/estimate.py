"""What asking would cost, before anything is asked: requests, tokens, dollars, time.

Prompts are counted by the model's own tokenizer where it is at hand. How long replies will be nobody knows: where
enough of the same kind are stored, their mean tells; otherwise only the bound is known, max_tokens.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from evals.budget import most_output
from evals.prices import Price, token_cost
from evals.records import Message, Sampling

COUNTED = 100  # prompts that are all tokenized; of the next so many every second, then every third, …
MESSAGE = 4  # tokens around each message of a conversation, and
REPLY = 3  # before the reply, as OpenAI's models count them; chat templates of others are near
BYTES_PER_TOKEN = 4  # of English text, where no tokenizer is at hand
PATIENCE = 5.0  # seconds for an encoding that must be fetched


class Asked(Protocol):
    """What a model would be asked: a JudgeRequest or a ChatRequest."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How the reply is drawn; ``max_tokens`` bounds it."""
        ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """How tokens are counted; ``about`` is True where it is not the model's own tokenizer that counts."""

    count: Callable[[str], int]
    about: bool


@dataclass(frozen=True, slots=True)
class Usual:
    """How replies of one kind were so far: how many there are, and their mean ``output_tokens`` and ``seconds``."""

    replies: int
    output_tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What asking would take.

    ``about`` is True where the model's own tokenizer did not count all of ``prompt_tokens``. ``output_tokens`` is what
    to expect (None: nobody knows), ``most_output_tokens`` the bound. ``dollars`` is the range from what is to be
    expected (the prompts alone where nobody knows more) to the bound, None without a price. ``seconds`` is None where
    nobody knows how long a reply takes.
    """

    requests: int
    prompt_tokens: int
    about: bool
    output_tokens: int | None
    most_output_tokens: int
    dollars: tuple[float, float] | None
    seconds: float | None


def estimate(
    requests: Iterable[Asked],
    *,
    tokens: Tokens,
    price: Price | None = None,
    batch: bool = False,
    usual: Usual | None = None,
    extra_body: Mapping[str, object] | None = None,
) -> Estimate:
    """Return what it takes to ask these requests, which are gone through once and not kept; the time is not known yet.

    ``usual`` is how replies of this kind were; ``extra_body`` is the endpoint's, which may hold another limit of
    tokens. A tokenizer takes 10 ms for a long prompt: beyond COUNTED prompts it reads a part, within about 1 %.
    """
    n = output = framed = size = read = counted = 0
    for n, request in enumerate(requests, 1):
        allowed = request.sampling.max_tokens
        output += most_output(extra_body or {}, max_tokens=allowed) or allowed
        framed += MESSAGE * len(request.messages) + REPLY
        texts = [message.content for message in request.messages]
        length = sum(len(text.encode("utf-8", "replace")) for text in texts)
        size += length
        step = 1 + (n - 1) // COUNTED
        if n % step == 0:  # stands for so many
            read += step * length
            counted += step * sum(map(tokens.count, texts))
    prompt = framed + (round(counted * size / read) if read else 0)
    expected = None if usual is None else min(output, round(n * usual.output_tokens))
    dollars = None
    if price:
        least, most = (token_cost(price, prompt, written, batch=batch) for written in (expected or 0, output))
        dollars = least, most
    return Estimate(n, prompt, tokens.about or n > COUNTED, expected, output, dollars, None)


def timed(
    estimate: Estimate,
    *,
    seconds: float,
    concurrency: int,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> Estimate:
    """Return the estimate with its time: ``seconds`` a reply, ``concurrency`` in flight, limits of a minute kept."""
    n, expected = estimate.requests, estimate.output_tokens
    tokens = estimate.prompt_tokens + (estimate.most_output_tokens if expected is None else expected)
    bounds = (
        seconds * -(-n // concurrency),
        60 * n / requests_per_minute if requests_per_minute else 0.0,
        60 * tokens / tokens_per_minute if tokens_per_minute else 0.0,
    )
    return replace(estimate, seconds=max(bounds))


def total(estimates: Iterable[Estimate]) -> Estimate:
    """Return several estimates as one, asked one after the other; what one of them does not know, it does not know."""
    each = list(estimates)
    expected = [e.output_tokens for e in each]
    ranges = [e.dollars for e in each]
    times = [e.seconds for e in each]
    return Estimate(
        requests=sum(e.requests for e in each),
        prompt_tokens=sum(e.prompt_tokens for e in each),
        about=any(e.about for e in each),
        output_tokens=None if None in expected else sum(n for n in expected if n),
        most_output_tokens=sum(e.most_output_tokens for e in each),
        dollars=None if None in ranges else (sum(r[0] for r in ranges if r), sum(r[1] for r in ranges if r)),
        seconds=None if None in times else sum(t for t in times if t),
    )


def tokenizer_for(
    model: str,
    *,
    folder: Path | None = None,
    encoding: Callable[[str], Callable[[str], int]] | None = None,
    patience: float = PATIENCE,
) -> Tokens:
    """Return how to count the tokens of a model's prompts, from the best that is at hand.

    A ``folder`` with a tokenizer counts exactly; so does tiktoken for OpenAI's names, if it is installed and its
    encoding is cached or can be fetched within ``patience`` seconds. Otherwise tokens are counted about, as bytes.
    ``encoding`` makes the counter for the name of an encoding, in place of tiktoken.
    """
    if folder is not None and (counter := _local(folder)):
        return Tokens(counter, about=False)
    name = _encoding_name(model)
    if name and (counter := _within(patience, lambda: (encoding or _tiktoken)(name))):
        return Tokens(counter, about=False)
    return Tokens(_by_bytes, about=True)


def _by_bytes(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def _local(folder: Path) -> Callable[[str], int] | None:
    file = folder / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(file))
        return lambda text: len(fast.encode(text, add_special_tokens=False).ids)
    if not folder.is_dir():
        return None
    from transformers import AutoTokenizer  # seconds to import, and reads the older forms too

    try:
        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return None
    return lambda text: len(slow(text, add_special_tokens=False)["input_ids"])


def _encoding_name(model: str) -> str | None:
    """Return the name of an OpenAI model's encoding, or None for a model that tiktoken does not know."""
    if importlib.util.find_spec("tiktoken") is None:
        return None
    from tiktoken import encoding_name_for_model

    try:
        return encoding_name_for_model(model)
    except KeyError:
        return None


def _tiktoken(name: str) -> Callable[[str], int]:
    from tiktoken import get_encoding

    encoding = get_encoding(name)
    return lambda text: len(encoding.encode_ordinary(text))


def _within(seconds: float, make: Callable[[], Callable[[str], int]]) -> Callable[[str], int] | None:
    """Return what ``make`` returns, or None where it fails or takes longer: a download may hang for ever."""
    made: list[Callable[[str], int]] = []

    def run() -> None:
        try:
            made.append(make())
        except Exception:  # whatever the network or a broken cache throws: counting about is good enough
            return

    thread = threading.Thread(target=run, name="encoding", daemon=True)
    thread.start()
    thread.join(seconds)
    return made[0] if made else None


def described(estimate: Estimate) -> dict[str, str]:
    """Return an estimate's figures as people read them, by the names of their columns."""
    prompt, about = estimate.prompt_tokens, estimate.about
    expected = estimate.output_tokens
    low, high = estimate.dollars or (0.0, 0.0)
    return {
        "requests": f"{estimate.requests:,}",
        "prompt tokens": _about(prompt) if about else f"{prompt:,}",
        "output tokens": f"at most {estimate.most_output_tokens:,}" if expected is None else _about(expected),
        "US dollars": "price not known" if estimate.dollars is None else f"{'about ' * about}{_range(low, high)}",
        "time": "not known" if estimate.seconds is None else f"about {_duration(estimate.seconds)}",
    }


def _about(count: int) -> str:
    return f"about {float(f'{count:.3g}'):,.0f}"  # no more digits than are worth something


def _range(low: float, high: float) -> str:
    digits = 2 if high >= 0.1 or high == 0 else 4
    ends = f"{low:.{digits}f}", f"{high:.{digits}f}"
    return ends[0] if ends[0] == ends[1] else "–".join(ends)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds)) if seconds else 0} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
