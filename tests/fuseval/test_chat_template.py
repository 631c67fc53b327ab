"""`chat_template:` of a model in the experiment file."""

from pathlib import Path

import pytest
import yaml

from fuseval.config import ConfigError, load_experiment
from fuseval.models import Candidate, is_at_hand, make, resolve
from tests.fusion.tiny_models import model_folder

PLAIN = "{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


def models(folder: Path, *given: dict[str, object]) -> dict[str, Candidate]:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({"models": list(given), "benchmarks": ["starter"]}))
    return resolve(load_experiment(file), beside=folder, cache=folder / "cache")


def test_a_template_makes_another_model_of_it_and_leaves_the_others_as_they_were(tmp_path, tiny):
    (tmp_path / "plain.jinja").write_text(PLAIN)
    (tmp_path / "other.jinja").write_text(PLAIN + "\n")
    bare = {"name": "bare", "path": str(tiny)}
    plain = {"name": "plain", "path": str(tiny), "chat_template": "plain.jinja", "family": "Llama"}
    found = models(tmp_path, bare, plain, {**plain, "name": "other", "chat_template": "other.jinja"})
    assert len({candidate.id for candidate in found.values()}) == 3
    assert found["bare"].id == models(tmp_path, bare)["bare"].id
    assert found["plain"].model.source == f"{tiny} with plain.jinja" and found["plain"].family == "Llama"
    with pytest.raises(ConfigError, match="'twin' and 'plain' are the very same model"):
        models(tmp_path, plain, {**plain, "name": "twin"})


def test_the_model_is_made_once_and_is_asked_by_its_template(tmp_path, tiny):
    from transformers import AutoTokenizer

    (tmp_path / "plain.jinja").write_text(PLAIN)
    found = models(tmp_path, {"name": "plain", "path": str(tiny), "chat_template": "plain.jinja"})
    assert is_at_hand(found["plain"]) and not found["plain"].folder.exists()
    for _ in range(2):
        make(found["plain"], found, watch=lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(found["plain"].folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a cat"}], tokenize=False) == "Q: a cat\nA:"


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, r"cannot be read .* \(models\[0\]\.chat_template in run\.yaml\)"), ("{% if %}", "is no chat template")],
)
def test_a_file_that_is_missing_or_no_template_is_told_before_anything_starts(tmp_path, tiny, text, said):
    if text is not None:
        (tmp_path / "chat.jinja").write_text(text)
    with pytest.raises(ConfigError, match=said):
        models(tmp_path, {"name": "x", "path": str(tiny), "chat_template": "chat.jinja"})


def test_an_endpoint_writes_chats_itself(tmp_path):
    wire = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(ConfigError, match="whose server has the chat template: leave it out"):
        models(tmp_path, {"name": "x", "endpoint": wire, "chat_template": "chat.jinja"})
