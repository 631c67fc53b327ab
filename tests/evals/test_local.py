"""The real vLLM with a real small model: what it says, what it weighs, and that swapped weights are really there.

What no real engine does when asked to (stop, run out of room at a given token) is played by a scripted one.
"""

import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.records import Message, Sampling


def real(test):
    """Mark a test that runs the real engine; vLLM and xgrammar warn of themselves."""
    return pytest.mark.slow(pytest.mark.filterwarnings("default")(test))


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
    from evals.engine import EngineSettings
    from evals.local import LocalModel

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


@real
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


@real
def test_a_checkpoint_under_another_template_is_asked_by_that(engine, smollm2, tmp_path):
    from fusion.chat_template import with_template

    with_template(smollm2, "{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}", tmp_path / "shown")
    engine.load(tmp_path / "shown", identity="shown")
    asked = ask("Is it warm?", max_tokens=4)
    assert engine._tokenizer.decode(engine.render(asked)) == "Q: Is it warm?\nA:"
    [reply] = replies(engine, [asked])
    engine.load(smollm2, identity="base")
    assert [reply] != replies(engine, [asked]) and reply.prompt_tokens < replies(engine, [asked])[0].prompt_tokens


@real
def test_a_seed_gives_the_same_reply_in_any_batch_and_seeds_differ(engine):
    seeded = [ask(PROMPTS[1], temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    alone = replies(engine, seeded[:1])[0].text
    first, second, again = (reply.text for reply in replies(engine, seeded))
    assert first == again == alone
    assert first != second


@real
def test_sampled_replies_to_more_prompts_than_a_step_holds_come_all(engine):
    prompts = [ask(f"{number} " + "word " * 440, temperature=1.0, seed=number, max_tokens=2) for number in range(11)]
    assert sum(len(engine.render(prompt)) for prompt in prompts) > 4096  # tokens of a step: the last would be cut
    assert {type(reply) for reply in replies(engine, prompts)} == {Reply}


@real
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


SCHEMA = {
    "type": "object",
    "properties": {"why": {"type": "string", "maxLength": 40}, "fruit": {"type": "string", "enum": ["apple", "brick"]}},
    "required": ["why", "fruit"],
    "additionalProperties": False,
}


@real
def test_a_schema_holds_the_reply_to_its_json_with_little_white_space(engine):
    asked = "Which is a fruit: apple or brick? Answer in JSON with many empty lines between the keys."
    requests = [
        ask(asked, schema=json.dumps(SCHEMA), max_tokens=200, temperature=heat, seed=seed)
        for heat, seed in ((0.0, 0), (1.0, 1), (1.5, 2), (2.0, 3))
    ]
    for reply in replies(engine, requests):
        found = json.loads(reply.text)
        assert (list(found), len(found["why"]) <= 40, found["fruit"] in ("apple", "brick")) == (
            list(SCHEMA["required"]),
            True,
            True,
        )
        assert reply.finish_reason == "stop"
        assert len(reply.text) <= len(json.dumps(found, ensure_ascii=False)) + 4  # one character a place


@real
def test_choices_count_before_a_schema(engine):
    [reply] = replies(engine, [ask("A or B?", choices=("A", "B"), schema=json.dumps(SCHEMA))])
    assert reply.text in ("A", "B")


@real
def test_a_schema_that_cannot_be_held_is_a_no_reply_of_its_own(engine):
    refused, fine = replies(engine, [ask("hi", schema='{"type": "nonsense"}'), ask(PROMPTS[0])])
    assert isinstance(refused, NoReply)
    assert (refused.kind, isinstance(fine, Reply)) == ("bad_request", True)


@real
def test_tokens_are_counted_as_the_tokenizer_has_them(engine, smollm2):
    from transformers import AutoTokenizer

    text = "Thinking, <think>aloud</think>…"
    assert engine.count_tokens(text) == len(AutoTokenizer.from_pretrained(smollm2)(text)["input_ids"])


@real
def test_a_prompt_too_long_is_a_no_reply_of_its_own_and_the_others_are_answered(engine):
    short, long = replies(engine, [ask(PROMPTS[0]), ask("word " * 600)])
    assert isinstance(short, Reply)
    assert isinstance(long, NoReply)
    assert (long.kind, "max_model_len" in long.message) == ("context_length", True)


@real
def test_a_reply_that_the_context_cut_is_none_and_one_that_its_own_limit_cut_is(engine):
    words = 1
    while len(engine.render(ask("word " * (words + 1)))) <= 510:
        words += 1
    longer = ("one two three four five six seven eight",)  # than the two tokens of room that the prompt leaves
    short, cut = replies(engine, [ask("word " * words, max_tokens=most, choices=longer) for most in (1, 400)])
    assert (short.finish_reason, short.output_tokens) == ("length", 1)
    assert isinstance(cut, NoReply)
    assert (cut.kind, "raise engine.max_model_len" in cut.message) == ("context_length", True)


@real
def test_sampling_that_vllm_refuses_is_a_no_reply_of_its_own(engine):
    refused, fine = replies(engine, [ask(PROMPTS[0], temperature=-1.0), ask(PROMPTS[0])])
    assert isinstance(refused, NoReply)
    assert (refused.kind, "temperature" in refused.message) == ("bad_request", True)
    assert isinstance(fine, Reply)


@real
def test_leaving_a_batch_early_leaves_the_engine_usable(engine):
    answers = engine.chat([ask(text, max_tokens=60) for text in PROMPTS])
    next(answers)
    answers.close()
    assert len(replies(engine, [ask(text) for text in PROMPTS])) == 3


@real
def test_weights_of_another_shape_are_refused_before_they_are_loaded(engine, smollm2, tmp_path):
    config = json.loads((smollm2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ChatError, match="start a new engine"):
        engine.load(tmp_path, identity="small")
    assert isinstance(replies(engine, [ask(PROMPTS[0])])[0], Reply)


class Core:
    """Plays vLLM's engine: each step finishes all requests, as ``ends`` says: (finish_reason, tokens)."""

    def __init__(self, *ends, refuse=None):
        self.ends, self.refuse, self.held, self.most = list(ends), refuse, [], 0

    def add_request(self, name, prompt, params):
        if name == self.refuse:
            raise ValueError("top_p must be in (0, 1], got\x1b[2J 7")
        self.held.append(name)
        self.most = max(self.most, len(self.held))

    def step(self):
        done, self.held = self.held, []
        if not self.ends:
            raise RuntimeError("CUDA error: out of memory")
        finish, tokens = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        output = SimpleNamespace(text="x", finish_reason=finish, token_ids=[1] * tokens, logprobs=None)
        return [SimpleNamespace(request_id=name, finished=True, outputs=[output]) for name in done]

    def abort_request(self, names):
        self.held = []


TEMPLATE = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}hello"


@pytest.fixture
def scripted(tmp_path):
    """Return LocalModel over a Core, with a real tokenizer whose template refuses a system message."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from evals.local import LocalModel

    class Scripted(LocalModel):
        def _sampling_params(self, _):
            """Do without vLLM's own class, whose import takes seconds."""

    words = Tokenizer(models.WordLevel({"hello": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")

    def make(core):
        core.model_config = SimpleNamespace(max_model_len=8)
        return Scripted(tmp_path, identity="m", start=lambda *_: SimpleNamespace(llm_engine=core))

    return make


@pytest.mark.slow
def test_messages_that_the_template_refuses_are_a_bad_request_in_its_words(scripted, tmp_path):
    refused = ChatRequest((Message("system", "be brief"), Message("user", "hi")), Sampling())
    first, second = replies(scripted(Core(("stop", 3))), [refused, ask("hi")])
    assert (first.kind, isinstance(second, Reply)) == ("bad_request", True)
    assert f"chat template of {tmp_path} refuses the messages: System role not supported" in first.message


@pytest.mark.slow
def test_a_request_that_the_engine_refuses_is_a_bad_request_and_the_others_are_answered(scripted):
    found = replies(scripted(Core(("stop", 3), refuse="1")), [ask("a"), ask("b"), ask("c")])
    assert [isinstance(each, Reply) for each in found] == [True, False, True]
    assert (found[1].kind, found[1].message.isprintable()) == ("bad_request", True)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "kind"), [(12, Reply), (7, NoReply)])
def test_a_reply_shorter_than_its_limit_was_cut_by_the_context(scripted, tokens, kind):
    [found] = replies(scripted(Core(("length", tokens))), [ask("a", max_tokens=12)])
    assert isinstance(found, kind)
    if kind is NoReply:
        assert found.kind == "context_length"
        assert "after 7 of max_tokens 12" in found.message
        assert "raise engine.max_model_len" in found.message


@pytest.mark.slow
def test_the_engine_never_holds_more_than_its_window(scripted):
    from evals.local import WINDOW

    core = Core(("stop", 1))
    assert len(replies(scripted(core), [ask("a")] * (2 * WINDOW + 5))) == 2 * WINDOW + 5
    assert core.most == WINDOW


@pytest.mark.slow
def test_requests_are_taken_as_the_engine_has_room(scripted):
    from evals.local import WINDOW

    taken = []

    def many():
        for number in range(3 * WINDOW):
            taken.append(number)
            yield ask("a")

    arriving = scripted(Core(("stop", 1))).chat(many())
    next(arriving)
    assert len(taken) == WINDOW
    assert 1 + sum(1 for _ in arriving) == 3 * WINDOW


@pytest.mark.slow
def test_an_engine_that_stops_says_that_what_is_stored_is_kept_and_fits_nothing_any_more(scripted, tmp_path):
    model = scripted(Core())
    with pytest.raises(ChatError, match=r"engine stopped.*out of memory.*run the same command again: what is stored"):
        list(model.chat([ask("a"), ask("b")]))
    assert not model.fits(tmp_path)
    with pytest.raises(ChatError, match="start a new one"):
        list(model.chat([ask("a")]))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("generation_config.json", {"eos_token_id": [2, 107]}),
        ("tokenizer_config.json", {"eos_token": "<end_of_turn>"}),
        ("special_tokens_map.json", {"eos_token": {"content": "<end_of_turn>"}}),
        ("config.json", {"eos_token_id": 2}),
    ],
)
def test_checkpoints_that_stop_at_other_tokens_do_not_share_an_engine(tmp_path, file, text):
    from evals.engine import shape

    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "config.json").write_text('{"eos_token_id": 1}')
    assert shape(one) == shape(two)
    (two / file).write_text(json.dumps(text))
    assert shape(one) != shape(two)


def test_the_same_stop_tokens_written_in_another_way_share_an_engine(tmp_path):
    from evals.engine import shape

    one, two = tmp_path / "one", tmp_path / "two"
    for folder, eos, token in ((one, 1, "</s>"), (two, [1], {"content": "</s>"})):
        folder.mkdir()
        (folder / "config.json").write_text('{"eos_token_id": 1}')
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "temperature": 0.6}))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    assert shape(one) == shape(two)
