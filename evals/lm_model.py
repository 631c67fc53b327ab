"""Models as lm-eval asks them: the shared vLLM engine, transformers, and endpoints that chat.

Each is an ``lm_eval.api.model.LM``, so that lm-eval itself can run it, and besides yields each response as it comes.
Token handling of the engine follows lm_eval 0.4.13's own vLLM backend (``lm_eval/models/vllm_causallms.py``), by its
helpers: special tokens, stop sequences, truncation from the left, one token kept for the generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    maybe_truncate,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.chat import ChatError, NoReply
from evals.lm_options import MAX_GEN_TOKS, drawing
from evals.thinking import split_thinking

if TYPE_CHECKING:
    from evals.local import LocalModel
    from evals.replicas import Replicas

_SCORED = 64  # log-likelihoods that transformers are asked for at a time: so many are lost where a run is killed

Value = str | float | tuple[float, bool]
"""A text, a log-likelihood, or one and whether greedy decoding would have said the same."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a model gave for one request of lm-eval; token counts are 0 where nobody counted."""

    value: Value
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    output_tokens: int = 0
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """One request of lm-eval (an ``Instance``), and the seed of this very reply where it is drawn."""

    instance: Any
    seed: int


class Responder(Protocol):
    """What lm-eval's requests are put to."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the model reads it."""
        ...

    def respond(self, wishes: Sequence[Wish]) -> Iterator[tuple[int, Response | NoReply]]:
        """Yield (number of the wish, what came of it) as each arrives; ChatError where nothing can succeed."""
        ...


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Token ids for the engine: what is scored of them begins at ``scored``; a text ends at one of ``until``."""

    wish: int
    tokens: list[int]
    params: Any
    scored: int = 0
    until: tuple[str, ...] = ()


class EngineLM(TemplateLM):  # type: ignore[misc]
    """The model whose weights the shared engine, or its replicas, hold now."""

    def __init__(self, model: LocalModel | Replicas, *, strip_thinking: bool = False) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_length = model, model.tokenizer, model.context
        self._strip_thinking = strip_thinking
        ids = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        self._prefix = next((i for i in ids if i is not None), None)
        self._bos_text = None if self._prefix is None else self.tokenizer.decode(self._prefix)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        assert self._prefix is not None
        return int(self._prefix)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer, for lm-eval's caches."""
        return str(self.model.folder).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the model's chat template writes it, without a system turn where it refuses one."""
        import jinja2

        def written(turns: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        try:
            return written(chat_history)
        except jinja2.TemplateError:
            return written([turn for turn in chat_history if turn["role"] != "system"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids; a text that begins with the prefix token already gets no other special ones."""
        if not string:
            return []
        if has_bos_prefix(string, self._bos_text):
            add_special_tokens = False
        told = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return [int(i) for i in self.tokenizer(string, return_attention_mask=False, **told).input_ids]

    def respond(self, wishes: Sequence[Wish]) -> Iterator[tuple[int, Response | NoReply]]:
        """Yield what came of each request as the engine completes it."""
        parts: dict[int, list[Response]] = {}
        prompts: list[_Prompt] = []
        waiting: dict[int, int] = {}
        for number, wish in enumerate(wishes):
            mine = list(self._prompts(number, wish))
            refusals = [each for each in mine if isinstance(each, NoReply)]
            if refusals:
                yield number, refusals[0]
                continue
            if not mine:  # a text without tokens has no windows
                yield number, Response(0.0)
                continue
            prompts += [each for each in mine if isinstance(each, _Prompt)]
            waiting[number] = len(mine)
        for at, output in self._completed(prompts):
            number = prompts[at].wish
            parts.setdefault(number, []).append(self._response(prompts[at], output))
            if len(parts[number]) == waiting[number]:
                found = parts.pop(number)
                yield (
                    number,
                    _summed(found) if wishes[number].instance.request_type == "loglikelihood_rolling" else found[0],
                )

    def _completed(self, prompts: Sequence[_Prompt]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the prompt, vLLM's RequestOutput).

        What precedes a continuation is computed once for all that follow it; one of which the engine had a part at hand
        already, and so no log-probabilities, is asked for again.
        """
        again = []
        for at, output in self.model.complete((p.tokens, p.params) for p in prompts):
            if prompts[at].params.prompt_logprobs is not None and (output.num_cached_tokens or 0) >= prompts[at].scored:
                again.append(at)
            else:
                yield at, output
        whole = [(prompts[at].tokens, scored_params(reuse=False)) for at in again]
        for place, output in self.model.complete(whole):
            yield again[place], output

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """Return the texts that greedy or drawn decoding gives, each up to one of its stop sequences."""
        return [str(value) for value in self._all(requests)]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Return the log-likelihoods of whole texts, in windows where they are long."""
        return [value for value in self._all(requests) if isinstance(value, float)]

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return the log-likelihoods of continuations."""
        return [value for value in self._all(requests) if isinstance(value, tuple)]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("loglikelihood asks the engine itself")

    def _all(self, requests: Iterable[Any]) -> list[Value]:
        wishes = [Wish(request, seed=0) for request in requests]
        found = dict(self.respond(wishes))
        values: list[Value] = []
        for number in range(len(wishes)):
            response = found[number]
            if isinstance(response, NoReply):
                raise ValueError(response.message)
            values.append(response.value)
        return values

    def _prompts(self, number: int, wish: Wish) -> Iterator[_Prompt | NoReply]:
        asked = wish.instance
        if asked.request_type == "generate_until":
            yield self._generation(number, *asked.args, seed=wish.seed)
        elif asked.request_type == "loglikelihood":
            yield self._scoring(number, *self._pair(*asked.args))
        else:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(asked.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 2,  # one for the context, one for the generation
                context_len=1,
            )
            for context, scored in map(make_disjoint_window, windows):
                yield self._scoring(number, context, scored)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            before, after = self._encode_pair(context, continuation)
            return list(before), list(after)
        after = self.tok_encode(continuation, add_special_tokens=False)
        return ([self.prefix_token_id], after) if after[:1] != [self.prefix_token_id] else (after[:1], after[1:])

    def _scoring(self, number: int, context: list[int], scored: list[int]) -> _Prompt:
        most = self.max_length - 1  # the engine generates one token at least
        tokens = [*context, *scored]
        begun = max(1, len(context) - max(0, len(tokens) - most))
        return _Prompt(number, tokens[-most:], scored_params(reuse=True), scored=begun)

    def _generation(self, number: int, context: str, gen_kwargs: dict[str, Any], *, seed: int) -> _Prompt | NoReply:
        from vllm import SamplingParams

        told = dict(normalize_gen_kwargs(drawing(gen_kwargs), default_max_gen_toks=MAX_GEN_TOKS))
        end = self.tokenizer.decode(self.eot_token_id) or self.tokenizer.eos_token
        until, most = handle_stop_sequences(told.pop("until", None), eos=end), int(told.pop("max_gen_toks"))
        if not told.pop("do_sample", False):
            told["temperature"] = 0.0  # which lm-eval 0.4.13 leaves out here, and vLLM's default would draw
        if most >= self.max_length:
            message = (
                f"the task asks for replies of up to {most} tokens and this model holds {self.max_length} with the "
                "prompt: lower it by the task's gen_kwargs: {max_gen_toks: …}, or, if the model was made for more, "
                "raise engine.max_model_len and run again with --retry-failed"
            )
            return NoReply("context_length", message, 1)
        tokens, most = maybe_truncate(
            self.tok_encode(context), max_gen_toks=most, max_model_len=self.max_length, verbose=False
        )
        stops = [end] if self._strip_thinking else until  # which may stand in what is thought
        how: dict[str, Any] = {"skip_special_tokens": False, "spaces_between_special_tokens": False} | told
        if told.get("temperature", 1.0):
            how["seed"] = seed
        try:
            params = SamplingParams(max_tokens=most, stop=stops, **how)
        except (TypeError, ValueError) as error:
            raise ChatError(
                f"the engine cannot draw replies by {told}: {error}. Change it by the task's option gen_kwargs, or "
                "take backend: hf"
            ) from error
        return _Prompt(number, tokens, params, until=tuple(until))

    def _response(self, prompt: _Prompt, output: Any) -> Response:
        if prompt.params.prompt_logprobs is None:
            said = output.outputs[0]
            thinking, text = split_thinking(said.text) if self._strip_thinking else ("", said.text)
            text = postprocess_generated_text(text, list(prompt.until), None)
            finish = "length" if said.finish_reason == "length" else "stop"
            return Response(text, finish, len(prompt.tokens), len(said.token_ids), thinking)
        wanted = prompt.tokens[prompt.scored :]
        found_of = output.prompt_logprobs[-len(wanted) :] if wanted else []  # of what was at hand there may be none
        pairs = zip(wanted, found_of, strict=True)
        scored = [(token, {each: entry.logprob for each, entry in found.items()}) for token, found in pairs]
        total = float(sum(found[token] for token, found in scored))
        greedy = all(max(found, key=found.__getitem__) == token for token, found in scored)
        return Response((total, greedy), prompt_tokens=len(prompt.tokens))


def scored_params(*, reuse: bool) -> Any:
    """Return how the engine is told to score a prompt; with ``reuse``, less what it has at hand of its beginning."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False, skip_reading_prefix_cache=not reuse
    )


def _summed(windows: Sequence[Response]) -> Response:
    """Return the log-likelihood of a text of its windows'."""
    total = sum(window.value[0] for window in windows if isinstance(window.value, tuple))
    return Response(float(total), prompt_tokens=sum(window.prompt_tokens for window in windows))


class TransformersLM:
    """A checkpoint through lm-eval's own transformers backend."""

    def __init__(self, folder: Path, *, dtype: str = "auto", batch_size: int = 1) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM

        on_cpu = not torch.cuda.is_available()
        self._lm = HFLM(
            pretrained=str(folder),
            device="cpu" if on_cpu else "cuda",
            dtype="float32" if on_cpu and dtype == "auto" else dtype,
            batch_size=batch_size,
        )
        self._at_once = batch_size

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the model's chat template writes it."""
        return str(self._lm.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt))

    def respond(self, wishes: Sequence[Wish]) -> Iterator[tuple[int, Response | NoReply]]:
        """Yield the responses some at a time; of log-likelihoods many, since lm-eval computes a shared context once."""
        yield from in_batches(self._lm, wishes, at_once=self._at_once, scored_at_once=max(_SCORED, self._at_once))


def in_batches(
    lm: Any, wishes: Sequence[Wish], *, at_once: int, scored_at_once: int
) -> Iterator[tuple[int, Response | NoReply]]:
    """Yield what one of lm-eval's own models gives, some requests of a kind at a time.

    Raises ChatError where it cannot be asked so, as by a word of gen_kwargs that it does not know.
    """
    by_kind: dict[str, list[int]] = {}
    for number, wish in enumerate(wishes):
        by_kind.setdefault(wish.instance.request_type, []).append(number)
    for kind, numbers in by_kind.items():
        step = at_once if kind == "generate_until" else scored_at_once
        for begun in range(0, len(numbers), step):
            batch = numbers[begun : begun + step]
            try:
                values = getattr(lm, kind)([wishes[number].instance for number in batch], disable_tqdm=True)
            except (AssertionError, TypeError, ValueError) as error:
                raise ChatError(
                    f"lm-eval's {type(lm).__name__} cannot be asked so: {error}. See the task's option gen_kwargs"
                ) from error
            for number, value in zip(batch, values, strict=True):
                plain = (float(value[0]), bool(value[1])) if isinstance(value, tuple) else value
                yield number, Response(plain)
