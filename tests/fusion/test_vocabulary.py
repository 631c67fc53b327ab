import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models

from fusion.checkpoints import Checkpoint
from fusion.errors import CheckpointError, RecipeError
from fusion.lora import Adapted
from fusion.methods import METHODS
from fusion.vocabulary import plan_vocabulary, vocabulary_names, write_tokenizer

EMBEDDING = "model.embed_tokens.weight"


def words(*regular, added=(), special=()):
    """A real tokenizer of whole words, numbered from 0."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(regular)}, unk_token=regular[0]))
    tokenizer.add_tokens(list(added))
    tokenizer.add_special_tokens(list(special))
    return tokenizer


@pytest.fixture
def model(make_checkpoint):
    """A checkpoint of an embedding, whose numbers are given a row each, and of a tokenizer."""

    def make(name, tokenizer, *rows, **config):
        embedding = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), -1)
        folder = make_checkpoint(name, {EMBEDDING: embedding}, vocab_size=len(rows), **config)
        if tokenizer is None:
            (folder / "tokenizer.json").unlink()
        elif isinstance(tokenizer, Tokenizer):
            tokenizer.save(str(folder / "tokenizer.json"))
        else:
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        return Checkpoint(folder)

    return make


def fitted(vocabulary, *checkpoints):
    """Return each model's rows of one number, over the result's vocabulary."""
    base, others = vocabulary.fit(
        checkpoints[0].tensor(EMBEDDING), [each.tensor(EMBEDDING) for each in checkpoints[1:]]
    )
    return [matrix.squeeze(1).tolist() for matrix in (base, *others)]


@pytest.mark.parametrize("policy", ["base", "union", "1"])
def test_models_that_share_a_vocabulary_need_nothing(model, policy):
    one, other = model("one", words("a", "b"), 1, 2), model("other", words("a", "b"), 3, 4)
    assert plan_vocabulary(one, [other, other], policy) is None
    file = other.folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text())))  # other bytes, the same tokens
    assert (plan_vocabulary(one, [other, other], policy) is None) == (policy != "1")


def test_equal_sizes_do_not_hide_tokens_on_other_ids(model):
    base, source = model("base", words("a", "b", "c"), 10, 11, 12), model("source", words("c", "a", "b"), 22, 20, 21)
    vocabulary = plan_vocabulary(base, [source])
    assert fitted(vocabulary, base, source) == [[10, 11, 12], [20, 21, 22]]
    assert vocabulary.told["sources"] == [{"by": "token", "matched": 3, "moved": 3, "lacking": 0, "left_out": 0}]


def test_with_the_bases_vocabulary_a_sources_other_tokens_are_left_out(model):
    base = model("base", words("a", "b", "x"), 10, 11, 12)
    source = model("source", words("a", "b", added=["<new>"]), 20, 21, 29)
    vocabulary = plan_vocabulary(base, [source], "base")
    assert (vocabulary.size, vocabulary.like, vocabulary.added) == (3, base.folder, ())
    assert fitted(vocabulary, base, source) == [[10, 11, 12], [20, 21, 12]]  # x: the base's row
    assert vocabulary.told["sources"] == [{"by": "token", "matched": 2, "moved": 0, "lacking": 1, "left_out": 1}]


def test_with_a_sources_vocabulary_the_base_gets_the_mean_of_the_rows_that_sources_have(model):
    base = model("base", words("a", "b"), 10, 11)
    one = model("one", words("b", "a", added=["<n>", "<m>"]), 21, 20, 22, 23)
    two = model("two", words("a", "b", added=["<n>"]), 30, 31, 34)
    vocabulary = plan_vocabulary(base, [one, two], "1")
    assert (vocabulary.size, vocabulary.like) == (4, one.folder)
    assert fitted(vocabulary, base, one, two) == [[11, 10, 28, 23], [21, 20, 22, 23], [31, 30, 34, 23]]
    assert vocabulary.told["base"] == {"by": "token", "matched": 2, "moved": 2, "lacking": 2, "left_out": 0}


def test_a_union_takes_padding_rows_first_and_then_grows_by_what_is_lacking(model):
    base = model("base", words("a", "b"), 10, 11, 0)  # one padding row
    one = model("one", words("a", "b", added=["<n>"]), 20, 21, 22)
    two = model("two", words("a", "b", added=["<m>"], special=["<n>"]), 30, 31, 32, 34)
    vocabulary = plan_vocabulary(base, [one, two], "union")
    assert (vocabulary.size, vocabulary.like) == (4, base.folder)
    assert [(token["content"], token["id"], token["special"]) for token in vocabulary.added] == [
        ("<n>", 2, False),
        ("<m>", 3, False),
    ]
    assert fitted(vocabulary, base, one, two) == [[10, 11, 28, 32], [20, 21, 22, 32], [30, 31, 34, 32]]


def test_a_union_that_fits_into_the_padding_keeps_the_size(model):
    base = model("base", words("a", "b"), 10, 11, 0, 7)
    source = model("source", words("a", "b", added=["<n>"]), 20, 21, 22)
    assert fitted(plan_vocabulary(base, [source], "union"), base, source) == [[10, 11, 22, 7], [20, 21, 22, 7]]


def test_padding_rows_go_by_position_and_never_to_a_token(model):
    base = model("base", words("a", "b"), 10, 11, 12, 13)
    source = model("source", words("a", "b", added=["<n>"]), 20, 21, 22, 23)
    assert fitted(plan_vocabulary(base, [source]), base, source) == [[10, 11, 12, 13], [20, 21, 12, 23]]


def test_a_token_without_a_row_is_no_token(model):
    base = model("base", words("a", "b"), 10, 11)
    source = model("source", words("b", "a", added=["<n>"]), 21, 20)
    assert fitted(plan_vocabulary(base, [source], "union"), base, source) == [[10, 11], [20, 21]]


@pytest.mark.parametrize("stub", [None, {"version": "1.0"}])
def test_without_tokenizers_rows_go_by_position(model, stub):
    base, source = model("base", stub, 10, 11, 12), model("source", stub, 20, 21)
    assert fitted(plan_vocabulary(base, [source]), base, source) == [[10, 11, 12], [20, 21, 12]]
    vocabulary = plan_vocabulary(base, [source], "1")
    assert fitted(vocabulary, base, source) == [[10, 11], [20, 21]]
    assert vocabulary.told["base"] == {"by": "position", "matched": 2, "lacking": 0, "left_out": 1}
    with pytest.raises(RecipeError, match=r"base has no tokenizer to add to; choose base or a source"):
        plan_vocabulary(base, [source], "union")


def test_biases_are_fitted_and_borrowed_rows_are_not_rounded(model):
    base = model("base", words("a", "b"), 10, 11)
    source = model("source", words("b", added=["<n>"]), 21, 22)
    start, [tuned] = plan_vocabulary(base, [source]).fit(
        torch.tensor([0.1, 0.2]), [torch.tensor([0.3, 0.4]).bfloat16()]
    )
    assert tuned.dtype == torch.float32 and tuned[0] == start[0]  # a: lacking, so its delta is zero
    assert tuned[1] == torch.tensor(0.3).bfloat16().float()


def test_sources_that_take_no_part_give_no_rows(model):
    base = model("base", words("a", "b"), 10, 12)
    one = model("one", words("b", "a", added=["<n>"]), 21, 20, 22)
    two = model("two", words("b", "a", added=["<m>"]), 31, 30, 32)
    vocabulary = plan_vocabulary(base, [one, two], "union")
    start, [tuned] = vocabulary.fit(base.tensor(EMBEDDING), [two.tensor(EMBEDDING)], sources=[1])
    assert start.tolist() == [[10], [12], [11], [32]]  # <n>: the mean of the base's own
    assert tuned.tolist() == [[30], [31], [11], [32]]


def test_what_does_not_move_is_not_copied(model):
    base, source = model("base", words("a", "b"), 10, 11), model("source", words("b", "a"), 21, 20)
    start = base.tensor(EMBEDDING)
    assert plan_vocabulary(base, [source]).fit(start, [source.tensor(EMBEDDING)])[0] is start


def test_an_adapter_without_a_tokenizer_has_the_bases_and_with_one_its_own(model, tmp_path):
    base = model("base", words("a", "b"), 10, 11, tie_word_embeddings=False)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    rows = {f"base_model.model.{EMBEDDING}": torch.tensor([[21.0], [20.0], [22.0]])}
    save_file(rows, folder / "adapter_model.safetensors")
    adapter = Adapted(folder, base)
    vocabulary = plan_vocabulary(base, [adapter], "1")
    assert (vocabulary.size, vocabulary.like) == (3, base.folder)
    assert fitted(vocabulary, base, adapter) == [[10, 11, 22], [21, 20, 22]]
    words("b", "a", added=["<n>"]).save(str(folder / "tokenizer.json"))
    vocabulary = plan_vocabulary(base, [adapter], "1")
    assert (vocabulary.size, vocabulary.like) == (3, folder)
    assert fitted(vocabulary, base, adapter) == [[11, 10, 22], [21, 20, 22]]
    result = shutil.copytree(base.folder, tmp_path / "result")
    write_tokenizer(vocabulary, result)
    assert (result / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (result / "adapter_config.json").exists()


@pytest.mark.parametrize("policy", ["bse", "0", "3", "-1"])
def test_a_policy_that_does_not_exist_is_named(model, policy):
    base = model("base", words("a"), 1)
    with pytest.raises(RecipeError, match=rf"'{policy}'; it must be base, union or a source's number, 1 to 2"):
        plan_vocabulary(base, [base, base], policy)


def test_a_union_of_regular_vocabularies_that_differ_is_refused(model):
    base, source = model("base", words("a", "b"), 1, 2), model("source", words("a", "z"), 1, 2)
    with pytest.raises(RecipeError, match=r"source has 1 regular tokens that the base lacks \('z', …\).*choose base"):
        plan_vocabulary(base, [source], "union")


def test_a_union_on_ids_with_gaps_is_refused(model):
    base = model("base", {"model": {"vocab": {"a": 0, "b": 5}}}, 1, 2, 3, 4, 5, 6)
    with pytest.raises(RecipeError, match=r"gaps: a token added to it would get the id 2, below the last"):
        plan_vocabulary(base, [model("source", words("a", "b", added=["<n>"]), 1, 2, 3)], "union")


def test_tokenizers_that_differ_over_no_known_embedding_are_refused(make_checkpoint):
    folders = [make_checkpoint(name, {"w": torch.ones(2)}) for name in ("base", "source")]
    words("a", "b").save(str(folders[0] / "tokenizer.json"))
    words("b", "a").save(str(folders[1] / "tokenizer.json"))
    base, source = map(Checkpoint, folders)
    with pytest.raises(CheckpointError, match="none of its tensors has a name of an embedding"):
        plan_vocabulary(base, [source])


def test_embeddings_of_two_sizes_in_one_model_are_refused_only_where_rows_would_move(make_checkpoint):
    tensors = {EMBEDDING: torch.ones(2, 1), "lm_head.weight": torch.ones(3, 1)}
    base, source = (Checkpoint(make_checkpoint(name, tensors)) for name in ("base", "source"))
    assert plan_vocabulary(base, [source]) is None
    words("b", "a").save(str(source.folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="base has embeddings of 2 and 3 rows"):
        plan_vocabulary(base, [source])


def test_only_whole_names_are_over_the_vocabulary(make_checkpoint):
    names = ["lm_head.bias", "lm_head.weight", EMBEDDING, "transformer.wte.weight"]
    others = ["transformer.wpe.weight", "x.lm_head.weight_scale", "my_embed_tokens.weight"]
    made = Checkpoint(make_checkpoint("m", {name: torch.ones(2) for name in names + others}))
    assert sorted(vocabulary_names(made)) == sorted(names)


def test_a_sources_tokenizer_brings_its_template_and_token_ids(model, tmp_path):
    base = model("base", words("a", "b"), 10, 11, eos_token_id=0, tie_word_embeddings=True)
    source = model("source", words("a", "b"), 20, 21, eos_token_id=[1], tie_word_embeddings=False)
    (base.folder / "special_tokens_map.json").write_text("{}")
    (source.folder / "chat_template.jinja").write_text("hello")
    assert plan_vocabulary(base, [source], "base") is None
    vocabulary = plan_vocabulary(base, [source], "1")
    assert fitted(vocabulary, base, source) == [[10, 11], [20, 21]]
    result = shutil.copytree(base.folder, tmp_path / "result")
    write_tokenizer(vocabulary, result)
    config = json.loads((result / "config.json").read_text())
    assert (config["eos_token_id"], config["vocab_size"], config["tie_word_embeddings"]) == ([1], 2, True)
    assert (result / "chat_template.jinja").read_text() == "hello"
    assert not (result / "special_tokens_map.json").exists() and (result / "README.md").exists()


# With the real tokenizer of SmolLM2: 49,152 tokens and as many rows.


@pytest.fixture
def smol(smollm2, make_checkpoint):
    """A checkpoint with SmolLM2's tokenizer, changed by ``change`` if given; row r of its embedding is (r, mark)."""

    def make(name, *, mark, rows=49152, change=None):
        weight = torch.stack([torch.arange(rows), torch.full((rows,), mark)], dim=1).float()
        folder = make_checkpoint(name, {EMBEDDING: weight}, vocab_size=rows)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(smollm2 / file, folder / file)
        if change:
            change(folder)
        return Checkpoint(folder)

    return make


def adding(*tokens):
    def change(folder):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens(list(tokens))
        tokenizer.save(str(folder / "tokenizer.json"))

    return change


@pytest.mark.slow
def test_a_union_of_added_tokens_is_a_tokenizer_that_transformers_reads(smol, tmp_path):
    base, think = smol("base", mark=0), AddedToken("<|think|>", special=True)
    one = smol("one", mark=1, rows=49160, change=adding("<tool>", think))
    two = smol("two", mark=2, rows=49153, change=adding(think))
    vocabulary = plan_vocabulary(base, [one, two], "union")
    assert (vocabulary.size, vocabulary.told["added"]) == (49154, ["<tool>", "<|think|>"])
    start, [first, second] = vocabulary.fit(base.tensor(EMBEDDING), [m.tensor(EMBEDDING) for m in (one, two)])
    assert start[:49152].equal(base.tensor(EMBEDDING))
    assert start[49152:].tolist() == [[49152, 1], [49152.5, 1.5]]
    assert first[49152:].tolist() == [[49152, 1], [49153, 1]]
    assert second[49152:].tolist() == [[49152, 1], [49152, 2]]
    result = shutil.copytree(base.folder, tmp_path / "result")
    write_tokenizer(vocabulary, result)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(result)
    hello = Tokenizer.from_file(str(base.folder / "tokenizer.json")).encode("Hello there").ids
    assert tokenizer("Hello there<|think|><tool>")["input_ids"] == [*hello, 49153, 49152]
    assert tokenizer.decode([49153, 49152], skip_special_tokens=True) == "<tool>"
    assert tokenizer.chat_template == (base.folder / "chat_template.jinja").read_text()
    assert json.loads((result / "config.json").read_text())["vocab_size"] == 49154


@pytest.mark.slow
def test_a_permuted_vocabulary_merged_with_its_base_is_the_base_again(smol):
    order = torch.randperm(49152)  # old id → new id
    moved = order.tolist()

    def permute(folder):
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"] = {token: moved[number] for token, number in tokenizer["model"]["vocab"].items()}
        tokenizer["added_tokens"] = [{**token, "id": moved[token["id"]]} for token in tokenizer["added_tokens"]]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    base, source = smol("base", mark=0), smol("source", mark=0, change=permute)
    weight = base.tensor(EMBEDDING)
    start, tuned = plan_vocabulary(base, [source]).fit(weight, [weight[order.argsort()]])
    assert METHODS["linear"](start, tuned, weights=[1.0]).equal(weight)
