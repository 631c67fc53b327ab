"""Endpoints as lm-eval asks them: chats by our client, log-likelihoods over a wire by lm-eval's own."""

import gc
import json
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evals.chat import ChatError, NoReply, Reply
from tests.fusion.tiny_models import tokenizer_folder

pytestmark = pytest.mark.filterwarnings("default")


def wish(kind, *arguments, seed=0):
    from lm_eval.api.instance import Instance

    from evals.lm_model import Wish

    return Wish(Instance(kind, {}, arguments, 0, ("t", 0, 1)), seed)


class Scripted:
    def __init__(self, *replies):
        self.replies = replies

    def chat(self, requests):
        self.asked = list(requests)
        yield from enumerate(self.replies)


def lm(chat, **how):
    from evals.lm_endpoint import EndpointLM

    return EndpointLM(chat, **how)


def test_a_chat_holds_the_tasks_turns_and_its_text_ends_at_every_stop_sequence():
    chat = Scripted(Reply("one\ntwo###three", "stop", 5, 3, 0.1, "m"), NoReply("server", "busy", 2))
    model = lm(chat)
    context = model.apply_chat_template([{"role": "user", "content": "Count."}])
    how = {"until": ["a", "b", "c", "d", "###"], "max_gen_toks": 7, "do_sample": True, "temperature": 0.5}
    found = dict(model.respond([wish("generate_until", context, how, seed=n) for n in (3, 4)]))
    assert (found[0].value, found[0].prompt_tokens) == ("one\ntwo", 5)
    assert found[1].kind == "server"
    sampling = chat.asked[0].sampling
    assert (sampling.stop, sampling.max_tokens, sampling.temperature, sampling.seed) == (
        ("a", "b", "c", "d"),
        7,
        0.5,
        3,
    )
    assert chat.asked[0].messages[0].content == "Count."


@pytest.mark.parametrize(
    ("context", "how", "said"),
    [("Count.", {}, "apply_chat_template: true"), ("[]", {"min_p": 0.1}, "draws by min_p")],
)
def test_what_an_endpoint_cannot_be_asked_is_said(context, how, said):
    with pytest.raises(ChatError, match=said):
        list(lm(Scripted()).respond([wish("generate_until", context, how)]))


def test_log_likelihoods_need_completions():
    with pytest.raises(ChatError, match="need its base_url and its tokenizer"):
        list(lm(Scripted()).respond([wish("loglikelihood", "the", " cat")]))


class Echo(BaseHTTPRequestHandler):
    """Completions that echo the prompt: token i has the log-probability -i/100, and is the best where i is even."""

    keys: list[str] = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.append(self.headers["Authorization"])
        [ids] = body["prompt"]
        own = [-i / 100 for i in [*ids, 0]]
        top = [{"x": value + (i % 2)} for i, value in zip([*ids, 0], own, strict=True)]
        choice = {"index": 0, "logprobs": {"token_logprobs": own, "top_logprobs": top}}
        said = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        return


def test_log_likelihoods_are_those_that_the_server_echoes_and_the_key_goes_along(tmp_path):
    from transformers import AutoTokenizer

    from evals.lm_endpoint import Completions

    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        folder = tokenizer_folder(tmp_path / "tokenizer", size=400)
        told = Completions(f"http://127.0.0.1:{server.server_port}/v1", "m", "sesame", str(folder), concurrency=2)
        pairs = [("the cat", " sees"), ("the", " red dog"), ("a", " big house")]
        found = dict(lm(Scripted(), completions=told).respond([wish("loglikelihood", *pair) for pair in pairs]))
    finally:
        server.shutdown()
        server.server_close()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for number, (context, continuation) in enumerate(pairs):
        before = tokenizer(context, add_special_tokens=False).input_ids
        after = tokenizer(context + continuation, add_special_tokens=False).input_ids[len(before) :]
        total, greedy = found[number].value
        assert total == pytest.approx(-sum(after) / 100)
        assert greedy == all(i % 2 == 0 for i in after)
    assert set(Echo.keys) == {"Bearer sesame"}


class Broken(Echo):
    """A server that has had enough."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_server_that_gives_no_log_likelihoods_is_told_of_without_the_key(tmp_path, capfd, caplog, concurrency):
    from evals.lm_endpoint import Completions

    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tokenizer_folder(tmp_path / "tokenizer", size=400)
    address = f"http://127.0.0.1:{server.server_port}/v1"
    told = Completions(address, "m", "sesame", str(folder), concurrency=concurrency, max_attempts=2)
    try:
        with pytest.raises(ChatError, match=r"gave no log-likelihoods in 2 attempts: .*500") as caught:
            list(lm(Scripted(), completions=told).respond([wish("loglikelihood", "the", word) for word in "ab"]))
    finally:
        server.shutdown()
        server.server_close()
    gc.collect()  # of tasks that nobody waited for, asyncio tells then
    said = "".join([*capfd.readouterr(), caplog.text, *traceback.format_exception(caught.value)])
    assert "sesame" not in said
