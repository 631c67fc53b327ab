from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusion.checkpoints import Checkpoint, content_hash, from_gguf, whole_folder, write_checkpoints
from fusion.errors import CheckpointError, FusionError, RecipeError

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


def write(folder: Path, like: Path, *, max_shard_bytes: int = 5 << 30, tensors: dict[str, Tensor] = WEIGHTS) -> None:
    def complete(number: int, work: Path) -> None:
        (work / "README.md").write_text(f"# card {number}\n")

    stream = ((name, [tensor]) for name, tensor in tensors.items())
    write_checkpoints(stream, [folder], like=like, complete=complete, max_shard_bytes=max_shard_bytes)


def test_one_file_and_several_are_the_same_checkpoint(make_checkpoint):
    one = Checkpoint(make_checkpoint("one", WEIGHTS))
    several = Checkpoint(make_checkpoint("several", {"a": WEIGHTS["a"]}, {"b": WEIGHTS["b"]}))
    for checkpoint in (one, several):
        assert checkpoint.names == ("a", "b")
        assert checkpoint.tensor("a").equal(WEIGHTS["a"])
        assert (checkpoint.shape("a"), checkpoint.dtype("b")) == ((2, 3), torch.float32)
    assert several.file("b").name == "part1.safetensors"


@pytest.mark.parametrize(("most", "files"), [(1 << 30, 1), (24, 2), (1, 2)])
def test_what_is_written_is_read_back(make_checkpoint, tmp_path: Path, most: int, files: int):
    write(tmp_path / "out", make_checkpoint("like", WEIGHTS), max_shard_bytes=most)
    written = Checkpoint(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == files
    assert all(written.tensor(name).equal(tensor) for name, tensor in WEIGHTS.items())


def test_a_written_checkpoint_has_its_companions_and_what_the_caller_adds(make_checkpoint, tmp_path: Path):
    like = make_checkpoint("like", {"zzz": torch.ones(1)}, _name_or_path="/home/me/like")
    (like / "chat_template.jinja").write_text("{{ messages }}")
    (like / "secret.py").write_text("raise SystemExit")
    write(tmp_path / "out", like, tensors={"a": torch.ones(2, dtype=torch.bfloat16)})
    assert sorted(os.listdir(tmp_path / "out")) == [
        "README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"model_type": "llama", "dtype": "bfloat16"}
    assert (tmp_path / "out/README.md").read_text() == "# card 0\n"


def test_several_checkpoints_are_written_from_one_stream(make_checkpoint, tmp_path: Path):
    like, folders = make_checkpoint("like", WEIGHTS), [tmp_path / "one", tmp_path / "other"]
    stream = ((name, [tensor, tensor + 1]) for name, tensor in WEIGHTS.items())
    write_checkpoints(stream, folders, like=like, complete=lambda number, work: None)
    assert [Checkpoint(folder).tensor("b").tolist() for folder in folders] == [[1.0] * 4, [2.0] * 4]


def test_a_config_that_needs_no_change_keeps_its_bytes(make_checkpoint, tmp_path: Path):
    like = make_checkpoint("like", WEIGHTS)
    write(tmp_path / "out", like)
    assert (tmp_path / "out/config.json").read_bytes() == (like / "config.json").read_bytes()
    write(tmp_path / "again", like)
    assert content_hash(tmp_path / "out") == content_hash(tmp_path / "again")


def test_a_write_that_fails_leaves_nothing(make_checkpoint, tmp_path: Path):
    def failing() -> Iterator[tuple[str, list[Tensor]]]:
        yield "a", [torch.ones(1)] * 2
        raise ValueError("no more")

    before = sorted(os.listdir(tmp_path)), make_checkpoint("like", WEIGHTS)
    with pytest.raises(ValueError, match="no more"):
        write_checkpoints(
            failing(), [tmp_path / "out", tmp_path / "other"], like=before[1], complete=lambda number, work: None
        )
    assert sorted(os.listdir(tmp_path)) == ["like"]


KILLED = """
import sys, time
from pathlib import Path
from fusion.checkpoints import whole_folder
with whole_folder(Path(sys.argv[1])) as work:
    (work / "model.safetensors").write_bytes(b"half")
    print(work, flush=True)
    time.sleep(60)
"""


def test_a_killed_write_leaves_nothing_under_the_name_and_is_cleaned_up_by_the_next(make_checkpoint, tmp_path: Path):
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", KILLED, out], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        work = Path(process.stdout.readline().strip())
        with whole_folder(out) as other:  # a live process's folder is left alone
            assert work.is_dir()
            assert other != work
            (other / "x").touch()
        (out / "x").unlink()
        process.send_signal(signal.SIGKILL)
    assert work.is_dir()
    assert not any(out.iterdir())
    write(out, make_checkpoint("like", WEIGHTS))
    assert not work.exists()
    assert (out / "model.safetensors").exists()


def test_an_existing_checkpoint_is_never_overwritten(make_checkpoint, tmp_path: Path):
    like = make_checkpoint("like", WEIGHTS)
    with pytest.raises(CheckpointError, match="like exists already"):
        write(like, like)
    assert Checkpoint(like).names == ("a", "b")


def test_a_checkpoint_that_another_process_finished_first_stays_and_nothing_is_lost(tmp_path: Path):
    out = tmp_path / "out"
    with whole_folder(out) as work:
        (work / "model.safetensors").write_bytes(b"mine")
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"theirs")
    assert (out / "model.safetensors").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_of_something_else_that_came_meanwhile_is_an_error(tmp_path: Path):
    out = tmp_path / "out"

    def fill() -> None:
        with whole_folder(out) as work:
            (work / "model.safetensors").touch()
            out.mkdir()
            (out / "notes.txt").touch()

    with pytest.raises(CheckpointError, match=r"by something else meanwhile \(it lacks model\.safetensors\)"):
        fill()
    assert os.listdir(out) == ["notes.txt"]


def test_the_files_can_be_read_by_whom_the_folder_can_be(make_checkpoint, tmp_path: Path):
    write(tmp_path / "out", make_checkpoint("like", WEIGHTS))
    mode = (tmp_path / "out").stat().st_mode & 0o666
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {mode}


def test_pickled_weights_are_not_read(make_checkpoint):
    folder = make_checkpoint("model", WEIGHTS)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        Checkpoint(folder)


def test_a_missing_shard_is_named(make_checkpoint):
    folder = make_checkpoint("model", {"a": WEIGHTS["a"]}, {"b": WEIGHTS["b"]})
    (folder / "part1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks part1\.safetensors, which model\.safetensors\.index\.json names"):
        Checkpoint(folder)


def test_a_tensor_that_only_the_index_has_is_named(make_checkpoint):
    folder = make_checkpoint("model", {"a": WEIGHTS["a"]}, {"b": WEIGHTS["b"]})
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"b"', '"c"'))
    with pytest.raises(CheckpointError, match=r"part1\.safetensors lacks tensor 'c'"):
        Checkpoint(folder)


def test_a_missing_file_or_folder_is_named(make_checkpoint, tmp_path: Path):
    folder = make_checkpoint("model", WEIGHTS)
    with pytest.raises(CheckpointError, match="no tensor 'c' in"):
        Checkpoint(folder).tensor("c")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks config\.json"):
        Checkpoint(folder)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        Checkpoint(tmp_path / "nothing")


def test_what_is_no_gguf_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no GGUF file"):
        from_gguf(tmp_path / "none.gguf", tmp_path / "out")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        from_gguf(tmp_path / "text.gguf", tmp_path / "out")
    with pytest.raises(RecipeError, match="dtype is 'int4'; it must be one of bfloat16, float16, float32"):
        from_gguf(tmp_path / "text.gguf", tmp_path / "out", dtype="int4")


def gguf_file(path: Path) -> Path:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kept", [6, 40, 150, -100, None])
def test_a_gguf_that_is_cut_short_or_no_model_is_named(tmp_path: Path, kept: int | None):
    file = gguf_file(tmp_path / "cut.gguf")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.gguf cannot be read \(.*fetch it again"):
        from_gguf(file, tmp_path / "out")
    assert os.listdir(tmp_path) == ["cut.gguf"]


def test_a_missing_gguf_package_is_named_with_the_extra_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(FusionError, match=r"needs gguf.*pip install 'fuseval\[demo\]'"):
        from_gguf(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.slow
def test_a_gguf_becomes_a_checkpoint_that_transformers_runs(smollm2: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = Checkpoint(smollm2)
    assert len(checkpoint.names) == 272
    assert checkpoint.dtype("model.embed_tokens.weight") == torch.bfloat16
    assert "name_or_path" not in (smollm2 / "config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0])
    assert "Paris" in text
    assert "assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.slow
def test_a_conversion_is_silent(conversion: tuple[Path, str]):
    assert conversion[1] == ""
