import json

import pytest
from tokenizers import Tokenizer, models

from fusion.errors import CheckpointError
from fusion.lexicon import add_tokens, companions, has_lexicon, read_lexicon, same_lexicon

TOKEN = {"content": "<n>", "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


@pytest.fixture
def folder(tmp_path):
    """Write files, JSON or text, as a folder."""

    def make(name="model", **files):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name / file.replace("__", ".")).write_text(text)
        return tmp_path / name

    return make


def bpe(**vocab):
    return {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": []}


def test_added_tokens_are_told_from_the_others_and_may_lie_among_them(folder):
    written = {**bpe(a=0, b=1), "added_tokens": [{**TOKEN, "content": "b", "id": 1}, {**TOKEN, "id": 5}]}
    lexicon = read_lexicon(folder(tokenizer__json=written), rows=9)
    assert (lexicon.ids, set(lexicon.added), lexicon.next_id) == ({"a": 0, "b": 1, "<n>": 5}, {"b", "<n>"}, 6)


def test_the_pieces_of_a_unigram_are_numbered_in_their_order(folder):
    pieces = {"model": {"type": "Unigram", "vocab": [["c", 0.0], ["a", -1.0]]}}
    assert read_lexicon(folder(tokenizer__json=pieces), rows=2).ids == {"c": 0, "a": 1}


def test_tokens_that_only_tokenizer_config_adds_count(folder):
    decoder = {"added_tokens_decoder": {"2": TOKEN}}
    one = folder("one", tokenizer__json=bpe(a=0, b=1), tokenizer_config__json=decoder)
    other = folder("other", tokenizer__json=bpe(a=0, b=1))
    assert read_lexicon(one, rows=3).ids == {"a": 0, "b": 1, "<n>": 2}
    assert not same_lexicon(one, other)


def test_tokens_without_a_row_do_not_count(folder):
    assert read_lexicon(folder(tokenizer__json=bpe(a=0, b=1, c=2)), rows=2).ids == {"a": 0, "b": 1}


def test_without_tokenizer_json_transformers_is_asked(folder):
    settings = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "c", "bos_token": "c", "eos_token": "c"}
    vocab = {"c": 0, "a": 1, "b": 2}
    slow = folder(vocab__json=vocab, merges__txt="#version: 0.2\n", tokenizer_config__json=settings)
    assert has_lexicon(slow)
    assert read_lexicon(slow, rows=3).ids == vocab


@pytest.mark.parametrize("files", [{}, {"tokenizer__json": {"version": "1.0"}}], ids=["no file", "a stub"])
def test_a_folder_may_say_nothing_of_tokens(folder, files):
    assert read_lexicon(folder(**files), rows=3).ids is None


def test_broken_tokenizers_are_named(folder):
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not JSON .*; fetch it again"):
        read_lexicon(folder("one", tokenizer__json="{"), rows=3)
    with pytest.raises(CheckpointError, match=r"the tokenizer in \S*two cannot be read .*; save it as tokenizer.json"):
        read_lexicon(
            folder("two", vocab__json="{", tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer"}), rows=3
        )


def test_weights_and_configurations_are_no_companions_of_a_tokenizer(folder):
    given = ["tokenizer__json", "chat_template__jinja", "generation_config__json"]
    others = ["config__json", "adapter_config__json", "model__safetensors", "model__safetensors__index__json", "a__py"]
    made = folder(**dict.fromkeys([*given, *others], "{}"))
    assert companions(made) == ["chat_template.jinja", "generation_config.json", "tokenizer.json"]


def test_added_tokens_are_written_where_older_readers_look_too(folder):
    made = folder(tokenizer_config__json={"added_tokens_decoder": {"0": {**TOKEN, "content": "a"}}})
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(made / "tokenizer.json"))
    add_tokens(made, [{**TOKEN, "id": 1}])
    assert read_lexicon(made, rows=2).added["<n>"] == {**TOKEN, "id": 1}
    assert json.loads((made / "tokenizer_config.json").read_text())["added_tokens_decoder"]["1"] == TOKEN
    with pytest.raises(CheckpointError, match=r"gave the added tokens \['<m>'\] the ids \[2\], .* rows are \[7\]"):
        add_tokens(made, [{**TOKEN, "content": "<m>", "id": 7}])
