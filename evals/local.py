"""A checkpoint that chats, through vLLM in this process (GPU or CPU), with its weights swappable in place.

Starting an engine costs tens of seconds, putting other weights of the same shape into it about one; so the
pipeline keeps one :class:`LocalModel` and calls :meth:`LocalModel.load` for each candidate.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.endpoint_errors import one_line
from evals.engine import EngineSettings, shape, start_engine


class EngineStopped(ChatError):
    """The engine broke off while it answered; another one may go on where it stopped."""


WINDOW = 512  # requests handed to the engine at a time: enough to fill any batch, and memory stays flat


@dataclass(frozen=True, slots=True)
class _Running:
    begun: float
    prompt_tokens: int
    max_tokens: int


class LocalModel:
    """A ChatModel over a folder of safetensors, a tokenizer and its chat template."""

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        settings: EngineSettings | None = None,
        start: Callable[[Path, EngineSettings], Any] = start_engine,
    ) -> None:
        """Start the engine; raises ChatError when vLLM or the checkpoint cannot be used."""
        self.folder = folder
        self.identity = identity
        self._engine = start(folder, settings or EngineSettings())
        self._shape = shape(folder)  # now: a merge's folder may be taken away when it has answered
        self._set_tokenizer(folder)

    def fits(self, folder: Path) -> bool:
        """Say whether :meth:`load` can put ``folder``'s weights here: same architecture, vocabulary and stop tokens."""
        return self._engine is not None and shape(folder) == self._shape

    def load(self, folder: Path, *, identity: str) -> None:
        """Swap in the weights and the chat template of ``folder``, of the same shape, and forget what was cached."""
        if identity == self.identity:
            return
        if not self.fits(folder):
            raise ChatError(
                f"{folder} has another architecture, vocabulary or stop tokens than {self.folder}: start a new engine"
            )
        self._swap("swap_weights", str(folder), what=f"of {folder}")
        self._become(folder, identity)

    def stream(self, tensors: Iterable[tuple[str, Any]], *, like: Path, identity: str) -> None:
        """Swap in weights that are nowhere on disk, tensor by tensor; the tokenizer and all else are ``like``'s.

        They must be named as in a checkpoint of that folder's shape, and rounded to what one would hold: then the
        engine answers as one does that loaded such a checkpoint. Where the stream breaks off, ChatError is raised and
        the model is not usable until other weights are in.
        """
        if not self.fits(like):
            raise ChatError(f"weights like {like}'s do not fit an engine made for {self.folder}: start a new engine")
        self._swap("swap_streamed_weights", tensors, what="that are merged in memory")
        self._become(like, identity)

    def _swap(self, method: str, weights: object, *, what: str) -> None:
        self.identity = ""  # half of the weights may be in, until all are
        try:
            self._engine.collective_rpc(method, args=(weights,))
            self._engine.reset_prefix_cache()
        except Exception as error:
            raise ChatError(f"the weights {what} cannot be loaded: {one_line(str(error))}") from error

    def _become(self, folder: Path, identity: str) -> None:
        if folder != self.folder:
            self._set_tokenizer(folder)
        self.folder, self.identity = folder, identity

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._engine = None
        gc.collect()

    def render(self, request: ChatRequest) -> list[int]:
        """Return the token ids of the prompt, by the tokenizer's own chat template."""
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return [int(i) for i in ids]

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the tokenizer makes of a text by itself."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        """Yield what came of each request as the batch completes it; what the model cannot be asked is a NoReply.

        Requests are taken as the engine has room for them, and an iterator that ended is looked at again as long as
        others run: it may have been filled. ``choices`` count before a ``schema``. EngineStopped, where the engine is.
        """
        running: dict[str, _Running] = {}  # by the engine's name of the request, which is its index
        waiting = iter(enumerate(requests))
        try:
            while True:
                while len(running) < WINDOW and (taken := next(waiting, None)) is not None:
                    index, request = taken
                    entered = self._enter(str(index), request)
                    if isinstance(entered, NoReply):
                        yield index, entered
                    else:
                        running[str(index)] = entered
                if not running:
                    return
                for output in self._step(running):
                    if output.finished:
                        yield int(output.request_id), self._reply(output.outputs[0], running.pop(output.request_id))
        finally:
            if running:
                self._core.abort_request(list(running))

    def complete(self, prompts: Iterable[tuple[list[int], Any]]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the prompt, vLLM's RequestOutput) as the batch completes each; chats are what chat is for.

        A prompt is token ids that the context holds, with vLLM's SamplingParams.
        """
        running: dict[str, _Running] = {}
        waiting = iter(enumerate(prompts))
        try:
            while True:
                while len(running) < WINDOW and (taken := next(waiting, None)) is not None:
                    number, (tokens, params) = taken
                    self._core.add_request(str(number), {"prompt_token_ids": tokens}, params)
                    running[str(number)] = _Running(time.perf_counter(), len(tokens), params.max_tokens)
                if not running:
                    return
                for output in self._step(running):
                    if output.finished:
                        running.pop(output.request_id)
                        yield int(output.request_id), output
        finally:
            if running:
                self._core.abort_request(list(running))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model whose weights are in."""
        return self._tokenizer

    @property
    def context(self) -> int:
        """How many tokens the engine holds of a prompt and its reply together."""
        return self._context

    @property
    def batch(self) -> int:
        """How many requests the engine works on at a time."""
        return int(self._engine.llm_engine.vllm_config.scheduler_config.max_num_seqs)

    def _enter(self, name: str, request: ChatRequest) -> _Running | NoReply:
        """Hand a request to the engine, or say why it cannot be asked."""
        import jinja2

        begun = time.perf_counter()
        try:
            prompt = self.render(request)
        except (jinja2.TemplateError, ValueError) as error:
            said = one_line(str(error))
            return NoReply("bad_request", f"the chat template of {self.folder} refuses the messages: {said}", 1)
        if len(prompt) >= self._context:
            return NoReply("context_length", self._too_long(len(prompt)), 1)
        try:
            self._core.add_request(name, {"prompt_token_ids": prompt}, self._sampling_params(request))
        except Exception as error:
            if not _is_refusal(error):
                raise
            return NoReply("bad_request", f"vLLM refuses the request: {one_line(str(error))}", 1)
        return _Running(begun=begun, prompt_tokens=len(prompt), max_tokens=request.sampling.max_tokens)

    def _step(self, running: dict[str, _Running]) -> list[Any]:
        try:
            return list(self._core.step())
        except Exception as error:
            running.clear()  # there is nothing left to abort, and the next candidate needs a new engine
            self.close()
            raise EngineStopped(
                f"the engine stopped while {self.folder} was answering ({type(error).__name__}: "
                f"{one_line(str(error))}); run the same command again: what is stored is kept"
            ) from error

    @property
    def _core(self) -> Any:
        if self._engine is None:
            raise ChatError(f"the engine that held {self.folder} is stopped: start a new one")
        if not self.identity:
            raise ChatError("the engine holds no whole model, for the last weights did not come in: load others")
        return self._engine.llm_engine

    def _set_tokenizer(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        if not self._tokenizer.chat_template:
            raise ChatError(
                f"{folder} has no chat template, so it cannot be asked in turns: "
                "add the chat_template.jinja that it was trained with, or give a chat model"
            )
        self._context = int(self._engine.llm_engine.model_config.max_model_len)

    def _too_long(self, tokens: int) -> str:
        return (
            f"the prompt has {tokens} tokens and the engine holds {self._context}: raise engine.max_model_len "
            "if the model can take more, or leave the question out"
        )

    def _sampling_params(self, request: ChatRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        s = request.sampling
        wanted: dict[str, Any] = {"logprobs": request.top_logprobs or None}
        if request.schema:
            wanted["structured_outputs"] = _held_to(request.schema)
        if request.choices:
            wanted = {"structured_outputs": StructuredOutputsParams(choice=list(request.choices))}
            if request.top_logprobs:
                wanted["logprob_token_ids"] = self._first_tokens(request.choices)
        return SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            repetition_penalty=s.repetition_penalty,
            max_tokens=s.max_tokens,
            stop=list(s.stop),
            seed=s.seed if s.temperature > 0 else None,
            **wanted,
        )

    def _first_tokens(self, choices: Sequence[str]) -> list[int]:
        first = [int(self._tokenizer.encode(choice, add_special_tokens=False)[0]) for choice in choices]
        if len(set(first)) < len(first):
            raise ChatError(f"choices {list(choices)} begin with the same token in {self.folder}: use distinct letters")
        return first

    def _reply(self, output: Any, asked: _Running) -> Reply | NoReply:
        if output.finish_reason not in ("stop", "length"):
            return NoReply("server", f"the engine ended the request with {output.finish_reason!r}", 1)
        tokens = len(output.token_ids)
        if output.finish_reason == "length" and tokens < asked.max_tokens:
            message = (
                f"the reply was cut after {tokens} of max_tokens {asked.max_tokens}: with the prompt's "
                f"{asked.prompt_tokens} it filled the {self._context} that the engine holds; raise engine.max_model_len"
            )
            return NoReply("context_length", message, 1)
        alternatives: tuple[tuple[str, float], ...] = ()
        if output.logprobs:
            found = ((self._tokenizer.decode([token]), entry.logprob) for token, entry in output.logprobs[0].items())
            alternatives = tuple(sorted(found, key=lambda pair: -pair[1]))
        return Reply(
            text=output.text,
            finish_reason=output.finish_reason,
            prompt_tokens=asked.prompt_tokens,
            output_tokens=tokens,
            seconds=time.perf_counter() - asked.begun,
            served_model=self.identity,
            top_logprobs=alternatives,
        )


def _held_to(schema: str) -> Any:
    """Return vLLM's parameters that hold a reply to a JSON schema, with one white-space character a place at most.

    Of more there is no end: small models at temperature 0 write line breaks up to max_tokens.
    """
    from vllm.sampling_params import StructuredOutputsParams
    from xgrammar.structural_tag import JSONSchemaFormat

    if "max_whitespace_cnt" not in JSONSchemaFormat.model_fields:  # before xgrammar 0.2.4
        return StructuredOutputsParams(json=schema)
    held = {"type": "json_schema", "json_schema": json.loads(schema), "max_whitespace_cnt": 1}
    return StructuredOutputsParams(structural_tag=json.dumps({"type": "structural_tag", "format": held}))


def _is_refusal(error: Exception) -> bool:
    # By name: vLLM's own were ValueErrors once, and now have a family of their own.
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"ValueError", "VLLMClientError", "VLLMValidationError"})
