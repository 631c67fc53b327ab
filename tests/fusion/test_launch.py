"""Work of several processes: what goes to them and comes back; trained together, a model is as if trained by one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusion.checkpoints import content_hash
from fusion.errors import CheckpointError, FusionError
from fusion.explicit import ExplicitParams, Progress, fuse_explicitly
from fusion.launch import Launch, decoded, encoded, together, told_type
from fusion.launched import FUNCTIONS, check_count
from fusion.prefer import PreferParams, PreferStep, prefer
from fusion.preference_records import Pair, Prompt, Quadruple, Response
from fusion.rewards import Rewarded, RewardParams, give_rewards
from fusion.sft import SftParams, Step, fine_tune
from tests.fusion.tiny_models import conversations, model_folder

TWO_CPUS = Path(__file__).parents[2] / "examples" / "accelerate" / "cpu.yaml"
QUICK = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, "warmup_ratio": 0.0, "dtype": "float32"}


def launch(folder: Path, *through: str) -> Launch:
    return Launch(TWO_CPUS, folder / "out.launch", through=through, processes=2)


def says(*lines: object, status: int = 0) -> tuple[str, ...]:
    """A command that stands for accelerate and its processes: it tells these lines, and ends."""
    told = "".join(json.dumps(line) + "\n" for line in lines)
    write = f"import pathlib, sys; pathlib.Path(sys.argv[-1]).with_name('told-0.jsonl').write_text({told!r})"
    return (sys.executable, "-c", f"{write}; print('the end'); sys.exit({status})")


def pair(number: int, *, rewards: tuple[float, float] = (1.0, 0.0)) -> Pair:
    texts = [chat[-1]["content"] for chat in conversations(40)]
    chosen, rejected = (Response(str(number), "s", n, texts[number + 10 * n], rewards[n]) for n in (0, 1))
    messages = [{"role": "user", "content": texts[number + 20]}]
    return Pair(Prompt(str(number), messages, "chat"), chosen, rejected, rewards[0] - rewards[1])


def chats(folder: Path) -> Path:
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": said}) + "\n" for said in conversations(8)), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fine_tune", {"base": Path("b"), "params": SftParams(seed=3), "recipe": {"a": [1, {"b": None}]}, "card": "é"}),
        ("fuse_explicitly", {"sources": {"x": Path("s")}, "params": ExplicitParams(k=3), "cache": Path("c")}),
        ("prefer", {"examples": [pair(1)], "params": PreferParams(kind="simpo", lora_targets=("q_proj",))}),
        ("prefer", {"examples": [Quadruple(*dataclasses.astuple(pair(1))[:0], pair(1).prompt, pair(1).chosen,
                                           pair(2).chosen, pair(1).rejected, 0.5)]}),
        ("give_rewards", {"conversations": conversations(2), "params": RewardParams(batch_size=2)}),
    ],
)  # fmt: skip
def test_arguments_arrive_as_they_were_sent(name, given):
    sent = json.loads(json.dumps(encoded(FUNCTIONS[name], given)))
    assert decoded(FUNCTIONS[name], sent) == given


def test_what_is_told_is_of_the_callbacks_type():
    found = [told_type(function) for function in (fine_tune, fuse_explicitly, prefer, give_rewards)]
    assert found == [Step, Progress, PreferStep, list[tuple[int, Rewarded]]]


def test_the_caller_hears_what_the_processes_tell_and_gets_the_result(tmp_path):
    step = Step(1, 2, 0.5, 1e-3, 7)
    heard: list[Step] = []
    through = says({"told": dataclasses.asdict(step)}, {"result": [dataclasses.asdict(step)]})
    tune = together(fine_tune, launch(tmp_path, *through))
    steps = tune(tmp_path, tmp_path, tmp_path / "out", SftParams(), on_step=heard.append, recipe={}, card="")
    assert steps == (step,) and heard == [step]
    assert not (tmp_path / "out.launch").exists()


def test_an_error_of_the_function_is_raised_as_if_it_ran_here(tmp_path):
    through = says({"error": "CheckpointError", "text": "out exists already"}, status=1)
    with pytest.raises(CheckpointError, match=r"^out exists already$"):
        together(give_rewards, launch(tmp_path, *through))(tmp_path, [], RewardParams(), on_batch=print)


def test_others_that_wait_for_one_that_failed_are_ended(tmp_path):
    python, c, failing = says({"error": "FusionError", "text": "no room"})
    waiting = failing.replace("print('the end')", "import time; time.sleep(600)")
    begun = time.monotonic()
    with pytest.raises(FusionError, match="no room"):
        together(give_rewards, launch(tmp_path, python, c, waiting))(tmp_path, [], RewardParams(), on_batch=print)
    assert time.monotonic() - begun < 60


def test_processes_that_end_without_a_result_are_told_of_with_their_last_words(tmp_path):
    with pytest.raises(FusionError, match=r"status 3 .*\nthe end$"):
        together(give_rewards, launch(tmp_path, *says(status=3)))(tmp_path, [], RewardParams(), on_batch=print)
    assert (tmp_path / "out.launch" / "output.txt").exists()
    with pytest.raises(FusionError, match="cannot start 'srunn': No such file"):
        together(give_rewards, launch(tmp_path, "srunn"))(tmp_path, [], RewardParams(), on_batch=print)


def test_a_process_that_comes_late_finds_no_job_of_the_launch_after_its_own(tmp_path):
    shows = (sys.executable, "-c", "import sys; print(sys.argv[-1]); sys.exit(1)")
    jobs = set()
    for _ in range(2):
        with pytest.raises(FusionError) as raised:
            together(give_rewards, launch(tmp_path, *shows))(tmp_path, [], RewardParams(), on_batch=print)
        jobs.add(str(raised.value).splitlines()[-1])
    assert len(jobs) == 2 and [Path(job).exists() for job in jobs].count(True) == 1


def test_other_than_the_promised_number_of_processes_is_refused_for_it_decides_the_batch():
    check_count(2, told=2)
    with pytest.raises(FusionError, match="started 1 of the 2 processes that num_processes promises"):
        check_count(1, told=2)


def test_without_a_launch_the_function_is_called_here():
    assert together(prefer, None) is prefer


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(tmp_path):
    base, data = model_folder(tmp_path / "base"), chats(tmp_path)
    one = fine_tune(base, data, tmp_path / "one", SftParams(**QUICK), on_step=None, recipe={}, card="")  # type: ignore[arg-type]
    heard: list[Step] = []
    half = SftParams(**{**QUICK, "batch_size": 2})  # type: ignore[arg-type]
    two = together(fine_tune, launch(tmp_path))(
        base, data, tmp_path / "two", half, on_step=heard.append, recipe={}, card=""
    )
    assert tuple(heard) == two
    assert [(step.step, step.tokens) for step in two] == [(step.step, step.tokens) for step in one]
    assert [step.loss for step in two] == pytest.approx([step.loss for step in one], rel=1e-5)
    assert not list(tmp_path.glob("*.work")) and not list(tmp_path.glob("*.launch"))


KILLED = """
import json, sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from tests.fusion.test_launch import preferred
preferred(Path({base!r}), Path({folder!r}), processes=2)
"""


def preferred(base: Path, folder: Path, *, processes: int) -> tuple[PreferStep, ...]:
    params = PreferParams(**{**QUICK, "epochs": 12, "batch_size": 4 // processes, "checkpoint_every": 1})  # type: ignore[arg-type]
    train = together(prefer, launch(folder) if processes > 1 else None)
    return train(base, [pair(number) for number in range(8)], folder / "out", params)


@pytest.mark.slow
def test_two_processes_learn_a_preference_as_one_does_and_go_on_where_they_were_killed(tmp_path):
    base, root = model_folder(tmp_path / "base"), str(Path(__file__).parents[2])
    one = preferred(base, tmp_path / "one", processes=1)
    (tmp_path / "two").mkdir()
    script = KILLED.format(root=root, base=str(base), folder=str(tmp_path / "two"))
    with subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root}) as process:
        while not list(tmp_path.glob("two/out.work/training/checkpoint-3/whole")):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "two" / "out").exists()
    two = preferred(base, tmp_path / "two", processes=2)
    assert [step.loss for step in two] == pytest.approx([step.loss for step in one], rel=1e-4)
    assert [step.margin for step in two] == pytest.approx([step.margin for step in one], rel=1e-3, abs=1e-5)
    assert (two[0].kl, two[0].step, two[-1].step) == (pytest.approx(0, abs=1e-5), 1, 24)
    assert content_hash(tmp_path / "two" / "out") != content_hash(base)
