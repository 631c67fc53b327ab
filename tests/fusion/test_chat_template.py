"""A chat template of the user's own: what is one, and a model under it."""

import re
from pathlib import Path

import pytest

from fusion.chat_template import FILE, read_template, with_template
from fusion.errors import CheckpointError, RecipeError
from fusion.hashes import content_hash
from fusion.sft import tokens_of
from tests.fusion.tiny_models import model_folder

PLAIN = "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}\n{% endfor %}{{ bos_token }}"
CHAT = [{"role": "user", "content": "a cat sees"}, {"role": "assistant", "content": "the sun"}]


def template(folder: Path, text: str) -> Path:
    file = folder / "chat.jinja"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for m in messages %}{{ m.content }}", r"chat\.jinja is no chat template .*endfor.*, line 1"),
        ("{{ raise_exception('no users here') }}", r"is no chat template .*\(no users here\)"),
        ("{{ messages.upper.lower() }}", "is no chat template that transformers can render"),
        ("{{ messages[0].content + 1 }}", "is no chat template that transformers can render"),
        ("Say something.", "leaves out what the user says: write the messages' content"),
    ],
)
def test_a_file_that_is_no_template_is_refused_with_what_to_do(tmp_path, text, said):
    with pytest.raises(RecipeError, match=said):
        read_template(template(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.jinja cannot be read"):
        read_template(tmp_path / "none.jinja")
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"bytes\.jinja cannot be read"):
        read_template(tmp_path / "bytes.jinja")


def test_a_template_can_run_no_code(tmp_path):
    escape = "{{ messages }}{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RecipeError, match="is no chat template"):
        read_template(template(tmp_path, escape))


def test_a_model_under_a_template_is_the_same_weights_and_is_written_to_by_it(tmp_path, model):
    from transformers import AutoTokenizer

    before = content_hash(model)
    with_template(model, read_template(template(tmp_path, PLAIN)), tmp_path / "made")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.apply_chat_template(CHAT[:1], tokenize=False) == "Q: a cat sees\n<s>"
    ids, start = tokens_of(CHAT, tokenizer)  # as trainings read a conversation
    assert tokenizer.decode(ids[start:]) == "A: the sun\n<s>"
    assert (tmp_path / "made/model.safetensors").samefile(model / "model.safetensors")
    assert content_hash(tmp_path / "made") != before == content_hash(model)


def test_a_template_in_the_tokenizers_configuration_gives_way(tmp_path, model):
    import json
    import shutil

    shutil.copytree(model, tmp_path / "old")
    (tmp_path / "old" / FILE).unlink()
    config = tmp_path / "old/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": "old"}))
    with_template(tmp_path / "old", PLAIN, tmp_path / "made")
    assert json.loads(config.read_text())["chat_template"] == "old"
    assert "chat_template" not in json.loads((tmp_path / "made/tokenizer_config.json").read_text())
    assert (tmp_path / "made" / FILE).read_text() == PLAIN


def test_what_is_under_a_template_must_be_whole_and_its_files_keep_their_rights(tmp_path, model):
    with pytest.raises(CheckpointError, match=re.escape(f"there is no checkpoint folder {tmp_path / 'none'}")):
        with_template(tmp_path / "none", PLAIN, tmp_path / "made")
    weights = model / "model.safetensors"
    weights.chmod(0o400)
    with_template(model, PLAIN, tmp_path / "made")
    assert weights.stat().st_mode & 0o777 == 0o400
