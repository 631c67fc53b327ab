"""What a reasoning model writes before its answer, told apart from the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from evals.chat import ChatModel, ChatRequest, NoReply, Reply

_OPENING = re.compile(r"\s*<(think|thinking|reasoning)>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)(?:think|thinking|reasoning)>", re.IGNORECASE)
# gpt-oss writes its channels between special tokens; a tokenizer that leaves those out leaves the bare names.
_CHANNELS = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>")
_CHANNEL = re.compile(
    r"<\|channel\|>([^<]*)<\|message\|>(.*?)(?=<\|(?:end|start|return|call|channel)\|>|\Z)", re.DOTALL
)
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z])(.*?)(?:assistantfinal(.*))?\Z", re.DOTALL)


def split_thinking(text: str) -> tuple[str, str]:
    """Return what stands before the answer and the answer, both stripped where there is thinking; ("", text) if none.

    Thinking is a leading ``<think>``, ``<thinking>`` or ``<reasoning>`` block (several in a row are one); what stands
    before a closing tag that no opening one precedes (some chat templates put that into the prompt); gpt-oss's channels
    but for the final one. Where it is not closed, all is thinking and the answer is "". Tags inside an answer are left
    alone.
    """
    if _CHANNELS.match(text):
        return _channels(text)
    if bare := _BARE_CHANNEL.match(text):
        return bare[1].strip(), (bare[2] or "").strip()
    thoughts: list[str] = []
    rest = text
    while opening := _OPENING.match(rest):
        inside = rest[opening.end() :]
        start, end = _close(inside, opening[1])
        thoughts.append(inside[:start].strip())
        rest = inside[end:]
    if not thoughts and (first := _TAG.search(text)) and first[1]:  # one after an opening tag is of an answer's own
        thoughts, rest = [text[: first.start()].strip()], text[first.end() :]
    if not thoughts:
        return "", text
    return "\n\n".join(filter(None, thoughts)), rest.strip()


def _close(text: str, tag: str) -> tuple[int, int]:
    """Return where the closing tag of a block stands whose inside ``text`` begins; its end twice if it has none.

    A block that speaks of its own tag holds others: then the one that closes as many as were opened, else the last.
    """
    depth, last = 1, (len(text), len(text))
    for found in re.finditer(rf"<(/?){tag}>", text, re.IGNORECASE):
        depth += -1 if found[1] else 1
        if found[1]:
            last = found.span()
        if depth == 0:
            break
    return last


def _channels(text: str) -> tuple[str, str]:
    parts = [(name.strip(), said.strip()) for name, said in _CHANNEL.findall(text)]
    thinking = "\n\n".join(said for name, said in parts if name != "final" and said)
    return thinking, "\n".join(said for name, said in parts if name == "final")


class WithoutThinking:
    """A ChatModel whose replies hold the answers of ``model``; what it thought before goes into ``Reply.thinking``.

    ``count`` returns the tokens of a text, as the model's tokenizer has it, for ``Reply.thinking_tokens`` where the
    model did not say so itself; without it they stay 0. Log-probabilities are those of the first token, so they go with
    thinking that was cut off here. A reply that ``max_tokens`` ended before the answer began is none ("truncated").
    """

    def __init__(self, model: ChatModel, count: Callable[[str], int] | None = None) -> None:
        self.model = model
        self.count = count

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        """Yield what comes of each request, as ``model`` does, the thinking told apart."""
        for index, reply in self.model.chat(requests):
            yield index, reply if isinstance(reply, NoReply) else self._split(reply)

    def _split(self, reply: Reply) -> Reply | NoReply:
        thinking, text = split_thinking(reply.text)
        logprobs = () if thinking or text != reply.text else reply.top_logprobs
        thinking = "\n\n".join(filter(None, (reply.thinking, thinking)))
        if thinking and not text and reply.finish_reason == "length":
            message = (
                f"max_tokens was spent on thinking ({reply.output_tokens} tokens) before the answer began: raise it"
            )
            (prompt, output), paid = reply.discarded, (reply.prompt_tokens, reply.output_tokens)
            return NoReply("truncated", message, 1, discarded=(prompt + paid[0], output + paid[1]))
        tokens = reply.thinking_tokens
        if thinking and not tokens and self.count is not None:
            tokens = min(self.count(thinking), reply.output_tokens)
        return replace(reply, text=text, thinking=thinking, thinking_tokens=tokens, top_logprobs=logprobs)
