"""The real vLLM with a real small model: what it says, what it weighs, and that swapped weights are really there."""

import functools
import math
from pathlib import Path

import pytest

from evals.chat import ChatRequest, NoReply, Reply
from evals.records import Message, Sampling

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # vLLM and xgrammar warn of themselves

PROMPTS = ("What is the capital of France?", "Write a haiku about rain.", "Name three fruits, separated by commas.")


def ask(text, *, max_tokens=12, temperature=0.0, seed=0, **how):
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    return ChatRequest((Message("user", text),), sampling, **how)


def replies(model, requests):
    found = dict(model.chat(requests))
    return [found[index] for index in range(len(requests))]


@pytest.fixture(scope="module")
def other(smollm2, tmp_path_factory):
    """The same model with every matrix nudged: another checkpoint of the same shape."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(smollm2, folder)
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * 0.05
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def engine(smollm2):
    from evals.local import EngineSettings, LocalModel

    model = LocalModel(smollm2, identity="base", settings=EngineSettings(max_model_len=512, kv_cache_gib=0.5))
    yield model
    model.close()


@functools.cache
def in_transformers(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference(folder: Path, prompt: list[int]) -> tuple[list[float], list[int]]:
    """Return transformers' log-probabilities of the next token, and its greedy continuation by 4 tokens."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([prompt])
        logprobs = in_transformers(folder)(ids).logits[0, -1].log_softmax(-1).tolist()
        said = in_transformers(folder).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
        )
    return logprobs, said[0, len(prompt) :].tolist()


def test_swapped_weights_speak_and_weigh_as_a_freshly_loaded_model_does(engine, smollm2, other):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for folder, name in ((other, "other"), (smollm2, "base"), (other, "other")):
        engine.load(folder, identity=name)
        requests = [ask(text, max_tokens=4, top_logprobs=5) for text in PROMPTS[:2]]
        for request, reply in zip(requests, replies(engine, requests), strict=True):
            logprobs, said = reference(folder, engine.render(request))
            by_text = {
                tokenizer.decode([i]): logprobs[i] for i in sorted(range(len(logprobs)), key=lambda i: logprobs[i])
            }
            for token, logprob in reply.top_logprobs:
                assert logprob == pytest.approx(by_text[token], abs=2e-3)
            assert reply.text == tokenizer.decode(said, skip_special_tokens=True)
            assert reply.served_model == name


def test_a_seed_gives_the_same_reply_in_any_batch_and_seeds_differ(engine):
    seeded = [ask(PROMPTS[1], temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    alone = replies(engine, seeded[:1])[0].text
    first, second, again = (reply.text for reply in replies(engine, seeded))
    assert first == again == alone
    assert first != second


def test_a_choice_bounds_the_reply_and_weighs_the_letters_as_the_model_does(engine, smollm2):
    engine.load(smollm2, identity="base")
    request = ask(
        "Which is a fruit? A: apple. B: brick. Reply with one letter: A or B.", choices=("A", "B"), top_logprobs=20
    )
    [reply] = replies(engine, [request])
    assert reply.text in ("A", "B")
    logprobs, _ = reference(smollm2, engine.render(request))
    letters = {letter: engine._first_tokens([letter])[0] for letter in "AB"}
    found = dict(reply.top_logprobs)  # normalised over what the choices allow; the preference is the models' own
    assert found["A"] - found["B"] == pytest.approx(logprobs[letters["A"]] - logprobs[letters["B"]], abs=2e-3)
    assert sum(math.exp(found[letter]) for letter in "AB") <= 1.0 + 1e-6


def test_a_prompt_too_long_is_a_no_reply_of_its_own_and_the_others_are_answered(engine):
    short, long = replies(engine, [ask(PROMPTS[0]), ask("word " * 600)])
    assert isinstance(short, Reply)
    assert isinstance(long, NoReply)
    assert (long.kind, "max_model_len" in long.message) == ("context_length", True)


def test_leaving_a_batch_early_leaves_the_engine_usable(engine):
    answers = engine.chat([ask(text, max_tokens=60) for text in PROMPTS])
    next(answers)
    answers.close()
    assert len(replies(engine, [ask(text) for text in PROMPTS])) == 3


def test_weights_of_another_shape_are_refused_before_they_are_loaded(engine, smollm2, tmp_path):
    import json

    from evals.chat import ChatError

    config = json.loads((smollm2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ChatError, match="start a new engine"):
        engine.load(tmp_path, identity="small")
    assert isinstance(replies(engine, [ask(PROMPTS[0])])[0], Reply)
