"""The folder of what was chosen: real ``datasets`` read it, and training gets back what was written."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings

from fusion.errors import CheckpointError, FusionError, RecipeError
from fusion.preference_dataset import read_dataset, write_dataset
from fusion.preference_pairs import build
from fusion.preference_records import PairParams, Prompt
from fusion.preference_report import report
from tests.fusion.reward_tables import ALL_SFT, NO_SFT, built, inputs, mixed, prompt, said

HOSTILE = 'x\u2028"\\\x00\n---\n😀'


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def loaded(tmp_path):
    from datasets import load_dataset

    def load(folder, *name):
        return load_dataset(str(folder), *name, split="train", cache_dir=str(tmp_path / "cache"))

    return load


def quadruple():
    return build([prompt()], said({"a": [0.7], "t": [0.9, 0.1]}), PairParams.wrpo("t", **NO_SFT))


def test_the_folder_loads_as_a_dataset(tmp_path, loaded):
    prompts = [prompt(f"p{n}", text=f"{HOSTILE} {n}", set="1999-01-01") for n in range(4)]
    responses = [r for p in prompts for r in said({"a": [0.5, (0.45, None, HOSTILE)]}, p.id)]
    made = build(prompts, responses, PairParams(sft_share=0.5))
    write_dataset(made, tmp_path / "data", title=HOSTILE)
    sft, preference = (loaded(tmp_path / "data", name) for name in ("sft", "preference"))
    assert (len(sft), len(preference), len(loaded(tmp_path / "data"))) == (2, 2, 2)
    ask = {"role": "user", "content": made.pairs[0].prompt.messages[0]["content"]}
    assert preference[0] == {
        "id": made.pairs[0].prompt.id,
        "kind": "chat",
        "set": "1999-01-01",
        "prompt": [ask],
        "chosen": [{"role": "assistant", "content": "a 0"}],
        "rejected": [{"role": "assistant", "content": HOSTILE}],
        "chosen_by": "a",
        "chosen_sample": 0,
        "chosen_reward": 0.5,
        "chosen_correct": None,
        "rejected_by": "a",
        "rejected_sample": 1,
        "rejected_reward": 0.45,
        "rejected_correct": None,
        "gap": 0.05,
    }
    assert [message["role"] for message in sft[0]["messages"]] == ["user", "assistant"]


def test_quadruples_load_with_the_sources_best_beside_the_pair(tmp_path, loaded):
    write_dataset(quadruple(), tmp_path / "data")
    assert sorted(f.name for f in (tmp_path / "data").iterdir()) == ["README.md", "manifest.json", "wrpo.parquet"]
    [row] = loaded(tmp_path / "data", "wrpo")
    texts = [row[name][0]["content"] for name in ("prompt", "chosen", "rejected", "source")]
    assert texts == ["question p", "t 0", "t 1", "a 0"]
    assert (row["source_by"], row["source_reward"]) == ("a", 0.7)


@pytest.mark.slow  # importing trl takes seconds
def test_trl_takes_the_rows_as_its_conversational_form(tmp_path, loaded):
    from trl import is_conversational

    write_dataset(mixed(), tmp_path / "data")
    assert all(is_conversational(loaded(tmp_path / "data", name)[0]) for name in ("sft", "preference"))


@given(inputs())
@settings(max_examples=15, deadline=None)
def test_training_gets_back_what_was_written(given_):
    made = build(*given_)
    assume(made.sft or made.pairs or made.quadruples)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(made, Path(folder) / "data")
        back = read_dataset(Path(folder) / "data")
    assert (back.sft, back.pairs, back.quadruples) == (made.sft, made.pairs, made.quadruples)
    assert back.report == json.loads(json.dumps(report(made)))


def test_a_conversation_is_the_prompt_and_its_best_response(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    user = {"role": "user", "content": HOSTILE}
    made = build([Prompt("p", [system, user], "chat")], said({"a": [0.1, (0.5, None, HOSTILE)]}), PairParams(**ALL_SFT))
    write_dataset(made, tmp_path / "data")
    assert read_dataset(tmp_path / "data").conversations == [
        [system, user, {"role": "assistant", "content": HOSTILE}],
    ]


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(RecipeError, match="none of the 1 prompts was kept"):
        write_dataset(build([prompt()], []), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
    made = built({"a": [0.5]}, **ALL_SFT)
    write_dataset(made, tmp_path / "data")
    with pytest.raises(CheckpointError, match="exists already"):
        write_dataset(made, tmp_path / "data")


def test_what_is_damaged_missing_or_something_else_is_not_read(tmp_path):
    write_dataset(mixed(), tmp_path / "data")
    file = tmp_path / "data" / "sft.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(FusionError, match=r"sft\.parquet is damaged"):
        read_dataset(tmp_path / "data")
    file.unlink()
    with pytest.raises(FusionError, match=r"sft\.parquet is gone"):
        read_dataset(tmp_path / "data")
    with pytest.raises(FusionError, match="no folder of shards"):
        read_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text('{"settings": {"format": 1}, "shards": [], "told": {}}')
    with pytest.raises(RecipeError, match="holds no preferences"):
        read_dataset(tmp_path)


def test_equal_data_has_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_dataset(mixed(), tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    assert files == ["README.md", "manifest.json", "preference.parquet", "sft.parquet"]


def test_no_name_in_the_card_reaches_its_yaml(tmp_path):
    import yaml

    write_dataset(mixed(), tmp_path / "data", title="x\n---\nconfigs: []")
    card = (tmp_path / "data" / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    assert [config["config_name"] for config in yaml.safe_load(header)["configs"]] == ["sft", "preference"]
    assert text.startswith("\n# Preference data of `x\\n---\\nconfigs: []`\n")
