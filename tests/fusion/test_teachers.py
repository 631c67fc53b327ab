from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from fusion.chats import Chat
from fusion.errors import FusionError, RecipeError
from fusion.hashes import content_hash
from fusion.quiet import quiet_libraries
from fusion.teacher_forward import ForwardScorer, Scores
from fusion.teachers import Teacher, TeacherParams, distributions, read

WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "你好",
    "said",
    "“naïve",
    "😀”",
    "to",
    "it",
    "in",
    "long",
    "evening",
)
PARAMS = TeacherParams(k=4, batch_tokens=64, shard_chats=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokenizer puts a bos before every text."""
    folder = tmp_path_factory.mktemp("tiny")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([" ".join(WORDS)] * 3, vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    backend = bpe._tokenizer
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=310, max_position_embeddings=80, initializer_range=0.5, **size)
    with quiet_libraries():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def chat(text: str, *, name: str | None = None) -> Chat:
    return Chat(name or hashlib.sha256(text.encode()).hexdigest()[:32], text, ((0, len(text.encode())),))


def chats(count: int, *, words: int = 12) -> list[Chat]:
    rng = np.random.default_rng(0)
    return [chat(" ".join([str(n), *rng.choice(WORDS, rng.integers(1, words))])) for n in range(count)]


def own_logprobs(folder: Path, ids: np.ndarray) -> torch.Tensor:
    with quiet_libraries(), torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model(torch.from_numpy(np.array(ids))[None].long()).logits[0].log_softmax(-1)


def assert_is_the_models_own(folder: Path, asked: Sequence[Chat], teacher: Teacher) -> None:
    """Compare what was read with the model alone on one text, without padding: within float16 rounding."""
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    for given, row in zip(asked, teacher, strict=True):
        assert row.chat == given.id
        assert row.ids.tolist() == tokenizer(given.text)["input_ids"]
        assert row.ends[-1] == len(given.text.encode())
        own = own_logprobs(folder, row.ids)
        top = own.topk(teacher.k, dim=1).values.numpy()
        np.testing.assert_allclose(row.top_logprobs, top, rtol=1.1 * 2**-11, atol=2e-4)
        picked = own.gather(1, torch.from_numpy(np.array(row.top_ids)).long())
        np.testing.assert_allclose(row.top_logprobs, picked, rtol=1.1 * 2**-11, atol=2e-4)
        said = own[torch.arange(len(row.ids) - 1), torch.from_numpy(np.array(row.ids[1:])).long()]
        np.testing.assert_allclose(row.next_logprob[:-1], said, rtol=1e-4, atol=1e-4)
        assert np.isnan(row.next_logprob[-1])
        assert (np.exp(row.top_logprobs.astype(np.float64)).sum(axis=1) <= 1 + 1e-6).all()


class Counting:
    """A scorer that notes what it is asked, and stops as a killed process does when it was asked enough."""

    name, dtype, beyond = "transformers", "float32", 0

    def __init__(self, folder: Path, *, stop_after: int | None = None) -> None:
        self.asked: list[list[int]] = []
        self._stop_after = stop_after
        self._scorer = ForwardScorer(folder, k=PARAMS.k, batch_tokens=PARAMS.batch_tokens, device="cpu")

    def __call__(self, sequences: Sequence[np.ndarray]) -> Iterator[tuple[int, Scores]]:
        for number, scores in self._scorer(sequences):
            if len(self.asked) == self._stop_after:
                raise KeyboardInterrupt
            self.asked.append(sequences[number].tolist())
            yield number, scores


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_read_back_is_the_models_own(tiny: Path, tmp_path: Path):
    asked = chats(8)
    teacher = distributions(tiny, asked, tmp_path / "t", PARAMS, device="cpu")
    assert_is_the_models_own(tiny, asked, teacher)
    assert teacher.tokens == sum(len(row.ids) for row in read(tmp_path / "t"))
    assert teacher.manifest.settings["model"] == content_hash(tiny)


def test_a_text_is_run_once_however_often_it_occurs(tiny: Path, tmp_path: Path):
    one, other = chats(2)
    asked = [one, other, one, chat(one.text, name="the same words, other spans")]
    scorer = Counting(tiny)
    teacher = distributions(tiny, asked, tmp_path / "t", PARAMS, engine=scorer)
    assert len(scorer.asked) == 2
    assert [row.chat for row in teacher] == [given.id for given in asked]
    assert_is_the_models_own(tiny, asked, teacher)


def test_a_killed_run_does_only_its_last_shard_again(tiny: Path, tmp_path: Path):
    asked = chats(8)
    with pytest.raises(KeyboardInterrupt):
        distributions(tiny, asked, tmp_path / "t", PARAMS, engine=Counting(tiny, stop_after=5))
    with pytest.raises(FusionError, match="is not finished"):
        read(tmp_path / "t")
    scorer, told = Counting(tiny), list[str]()
    distributions(tiny, asked, tmp_path / "t", PARAMS, engine=scorer, on_chat=told.append)
    assert len(scorer.asked) == 5  # of 8, the first three were kept
    assert sorted(told) == sorted(given.id for given in asked)
    distributions(tiny, asked, tmp_path / "whole", PARAMS, engine=Counting(tiny))
    assert files(tmp_path / "t") == files(tmp_path / "whole")


def test_what_is_finished_costs_nothing_and_chats_may_be_added(tiny: Path, tmp_path: Path):
    asked = chats(8)
    distributions(tiny, asked[:6], tmp_path / "t", PARAMS, engine=Counting(tiny))
    idle, adding = Counting(tiny), Counting(tiny)
    distributions(tiny, asked[:6], tmp_path / "t", PARAMS, engine=idle)
    teacher = distributions(tiny, asked, tmp_path / "t", PARAMS, engine=adding)
    assert (len(idle.asked), len(adding.asked)) == (0, 2)
    assert_is_the_models_own(tiny, asked, teacher)
    moved = Counting(tiny)
    teacher = distributions(tiny, asked[3:], tmp_path / "t", PARAMS, engine=moved)
    assert len(moved.asked) == 0
    assert_is_the_models_own(tiny, asked[3:], teacher)


def test_a_damaged_shard_is_named_and_made_again_when_asked(tiny: Path, tmp_path: Path):
    asked = chats(8)
    teacher = distributions(tiny, asked, tmp_path / "t", PARAMS, engine=Counting(tiny))
    whole = files(tmp_path / "t")
    name = teacher.manifest.shards[1].file
    (tmp_path / "t" / name).write_bytes(whole[name][:-9])
    assert teacher.row(asked[0].id).chat == asked[0].id
    with pytest.raises(FusionError, match=f"{name} is damaged"):
        list(read(tmp_path / "t"))
    with pytest.raises(FusionError, match=f"{name} is damaged"):
        distributions(tiny, asked, tmp_path / "t", PARAMS, engine=Counting(tiny))
    scorer = Counting(tiny)
    distributions(tiny, asked, tmp_path / "t", PARAMS, engine=scorer, repair=True)
    assert len(scorer.asked) == 3
    assert files(tmp_path / "t") == whole


def test_a_folder_of_another_model_or_other_parameters_is_refused(tiny: Path, tmp_path: Path):
    distributions(tiny, chats(2), tmp_path / "t", PARAMS, device="cpu")
    with pytest.raises(FusionError, match="begun with k 4, and now it is 5"):
        distributions(tiny, chats(2), tmp_path / "t", TeacherParams(k=5), device="cpu")
    with pytest.raises(FusionError, match=f"begun with model '{content_hash(tiny)}', and now it is 'other'"):
        distributions(tiny, chats(2), tmp_path / "t", PARAMS, device="cpu", identity="other")


def test_a_long_chat_is_cut_to_what_is_asked_and_to_what_the_model_was_made_for(tiny: Path, tmp_path: Path):
    asked = [chat(" ".join(WORDS * 9))]
    short = distributions(tiny, asked, tmp_path / "a", TeacherParams(k=4, max_length=7), device="cpu")
    made_for = distributions(tiny, asked, tmp_path / "b", PARAMS, device="cpu")
    assert [len(row.ids) for row in (*short, *made_for)] == [7, 80]
    assert [teacher.manifest.count("cut") for teacher in (short, made_for)] == [1, 1]
    np.testing.assert_array_equal(next(iter(short)).ids, next(iter(made_for)).ids[:7])


def test_what_cannot_be_asked_is_an_error(tiny: Path, tmp_path: Path):
    teacher = distributions(tiny, chats(2), tmp_path / "t", PARAMS, device="cpu")
    with pytest.raises(FusionError, match="holds nothing of chat 'x'"):
        teacher.row("x")
    with pytest.raises(RecipeError, match="no chats to ask"):
        distributions(tiny, [], tmp_path / "u", PARAMS, device="cpu")
    with pytest.raises(RecipeError, match="chat 'empty' has no text"):
        distributions(tiny, [chat("", name="empty")], tmp_path / "u", PARAMS, device="cpu")


def test_a_model_that_gives_no_numbers_is_an_error(tiny: Path, tmp_path: Path):
    class Broken(Counting):
        def __call__(self, sequences: Sequence[np.ndarray]) -> Iterator[tuple[int, Scores]]:
            for number, scores in super().__call__(sequences):
                yield number, Scores(scores.next_logprob, scores.top_ids, scores.top_logprobs * np.nan)

    with pytest.raises(FusionError, match=r"no numbers for chat .* in float32; try dtype float32 or bfloat16"):
        distributions(tiny, chats(2), tmp_path / "t", PARAMS, engine=Broken(tiny))


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("k", 0, "a whole number, 1 or more"),
        ("max_length", 2.0, "a whole number, 1 or more"),
        ("batch_tokens", True, "a whole number, 1 or more"),
        ("dtype", "int8", "one of auto, bfloat16, float16, float32"),
        ("temperature", 0, "a number above 0"),
        ("temperature", "1", "a number above 0"),
    ],
)
def test_a_wrong_parameter_is_told_what_it_must_be(field: str, value: object, wanted: str):
    with pytest.raises(RecipeError, match=rf"{field} of the teachers is .*{wanted}"):
        TeacherParams(**{field: value})  # type: ignore[arg-type]


RUN = """
import os, pathlib, signal, sys
sys.path[:0] = [{tests!r}]
from fusion.teachers import distributions
from test_teachers import PARAMS, chats
asked = []
def on_chat(chat):
    asked.append(chat)
    if len(asked) == {kill_after}:
        os.kill(os.getpid(), signal.SIGKILL)
distributions(pathlib.Path({tiny!r}), chats(8), pathlib.Path({folder!r}), PARAMS, on_chat=on_chat)
pathlib.Path({folder!r} + "-asked-" + os.environ.get("RANK", "0")).write_text(str(len(asked)))
"""


def run_elsewhere(tiny: Path, folder: Path, *launcher: str, kill_after: int = 0) -> int:
    """Ask the tiny model in a process of its own, or several, and return the exit status."""
    script, root = folder.with_suffix(".py"), Path(__file__).parents[2]
    script.write_text(
        RUN.format(tests=str(Path(__file__).parent), tiny=str(tiny), folder=str(folder), kill_after=kill_after)
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, *launcher, str(script)], cwd=root, env=environment).returncode


@pytest.mark.slow
def test_a_process_that_is_killed_loses_its_last_shard_and_no_more(tiny: Path, tmp_path: Path):
    assert run_elsewhere(tiny, tmp_path / "t", kill_after=5) == -9
    scorer = Counting(tiny)
    teacher = distributions(tiny, chats(8), tmp_path / "t", PARAMS, engine=scorer)
    assert len(scorer.asked) == 5
    assert_is_the_models_own(tiny, chats(8), teacher)


@pytest.mark.slow
def test_processes_that_are_launched_together_share_the_work(tiny: Path, tmp_path: Path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert run_elsewhere(tiny, tmp_path / "two", *launcher) == 0
    assert [(tmp_path / f"two-asked-{rank}").read_text() for rank in range(2)] == ["5", "3"]
    together = read(tmp_path / "two")
    assert_is_the_models_own(tiny, chats(8), together)  # not bytes: another process may sum in another order
    alone = distributions(tiny, chats(8), tmp_path / "one", PARAMS, device="cpu")
    assert [shard.file for shard in together.manifest.shards] == [shard.file for shard in alone.manifest.shards]
    assert together.manifest.settings == alone.manifest.settings
