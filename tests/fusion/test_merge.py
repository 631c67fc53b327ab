from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor

import fusion.merge
from fusion.checkpoints import Checkpoint
from fusion.errors import CheckpointError, RecipeError
from fusion.merge import Coefficient, merge
from fusion.publish import merge_to_folder, merge_to_folders, read_coefficients
from fusion.quiet import quiet_libraries
from fusion.recipe import Grid, MergeRecipe, Slice

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def weights(value: float, *, dtype: torch.dtype = torch.float32, **more: Tensor) -> dict[str, Tensor]:
    return {EMBEDDING: torch.full((3, 2), value, dtype=dtype), "norm": torch.full((2,), 2 * value, dtype=dtype), **more}


def recipe(
    base: Path, *sources: Path, method: str = "linear", dtype: str | None = None, **params: object
) -> MergeRecipe:
    return MergeRecipe(method, base, sources, params, dtype)


def test_every_tensor_is_merged_and_counted(make_checkpoint):
    base, one, other = (make_checkpoint(str(i), weights(i)) for i in (0, 1, 3))
    heard: list[tuple[int, int]] = []
    merged = dict(merge(recipe(base, one, other), on_tensor=lambda *place: heard.append(place)))
    assert {name: tensor.unique().tolist() for name, tensor in merged.items()} == {EMBEDDING: [2.0], "norm": [4.0]}
    assert heard == [(1, 2), (2, 2)]


def test_shard_layouts_and_dtypes_may_differ_between_models(make_checkpoint):
    base = make_checkpoint("base", weights(0, dtype=torch.bfloat16))
    one = weights(1)
    source = make_checkpoint("one", {"norm": one["norm"]}, {EMBEDDING: one[EMBEDDING]})
    merged = dict(merge(recipe(base, source, source)))
    assert merged["norm"].tolist() == [2, 2]
    assert merged["norm"].dtype == torch.bfloat16


def test_a_wider_result_is_not_rounded_on_the_way(make_checkpoint):
    base, one, other = (make_checkpoint(str(x), weights(x, dtype=torch.bfloat16)) for x in (1.0, 1.0078125, 1.015625))
    merged = dict(merge(recipe(base, one, other, dtype="float32", weights=[0.25, 0.75])))
    assert merged["norm"].tolist() == [2.02734375, 2.02734375]


def test_a_stored_copy_of_a_tied_head_is_left_out(make_checkpoint):
    embedding = torch.ones(3, 2)
    base = make_checkpoint("base", weights(0), tie_word_embeddings=True)
    source = make_checkpoint("one", weights(1, **{HEAD: embedding}), tie_word_embeddings=True)
    assert HEAD not in dict(merge(recipe(base, source)))
    assert HEAD not in dict(merge(recipe(source, base)))


def test_a_tied_source_lends_its_embedding_as_the_head_of_an_untied_base(make_checkpoint):
    base = make_checkpoint("base", weights(0, **{HEAD: torch.zeros(3, 2)}), tie_word_embeddings=False)
    source = make_checkpoint("one", weights(1), tie_word_embeddings=True)
    assert dict(merge(recipe(base, source)))[HEAD].unique().tolist() == [1.0]


@pytest.mark.parametrize("stored", [True, False])
def test_a_head_that_a_tied_base_cannot_hold_is_refused(make_checkpoint, stored: bool):
    head = {HEAD: torch.zeros(3, 2)}
    base = make_checkpoint("base", weights(0, **(head if stored else {})), tie_word_embeddings=True)
    source = make_checkpoint("one", weights(1, **head), tie_word_embeddings=False)
    with pytest.raises(
        CheckpointError, match=r"has lm_head\.weight, which the base lacks \(its lm_head.weight is its own"
    ):
        merge(recipe(base, source))


def test_everything_that_does_not_fit_is_told_at_once(make_checkpoint):
    base = make_checkpoint("base", {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)})
    source = make_checkpoint("one", {"a": torch.ones(2), "b": torch.ones(3), "d": torch.ones(2)})
    with pytest.raises(CheckpointError) as error:
        merge(recipe(base, source))
    for part in ("one has b of shape (3,), not (2,)", "one lacks c", "one has d, which the base lacks"):
        assert part in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_told_with_its_tensor_and_file(make_checkpoint, value: float):
    broken = weights(1)
    broken["norm"][1] = value
    base, source = make_checkpoint("base", weights(0)), make_checkpoint("one", broken)
    with pytest.raises(CheckpointError, match=r"'norm' in .*one/model\.safetensors has 1 NaN or infinite of 2 numbers"):
        dict(merge(recipe(base, source)))


def test_large_numbers_are_not_taken_for_infinite(make_checkpoint):
    huge = {"a": torch.full((100,), 3e38)}
    base, source = make_checkpoint("base", huge), make_checkpoint("one", huge)
    assert dict(merge(recipe(base, source)))["a"].equal(huge["a"])


def test_whole_numbers_are_kept_where_all_agree_and_refused_where_not(make_checkpoint):
    base, same, other = (make_checkpoint(str(i), {"ids": torch.tensor([1, x])}) for i, x in enumerate((2, 2, 3)))
    assert dict(merge(recipe(base, same)))["ids"].tolist() == [1, 2]
    with pytest.raises(CheckpointError, match=r"'ids' is of torch\.int64 and differs in"):
        dict(merge(recipe(base, other)))


def test_a_quantised_model_is_refused(make_checkpoint):
    base = make_checkpoint("base", weights(0))
    source = make_checkpoint("one", weights(0), quantization_config={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match="one is quantised"):
        merge(recipe(base, source))


def test_a_wrong_recipe_is_refused_before_a_model_is_looked_for(tmp_path: Path):
    with pytest.raises(RecipeError, match="Did you mean 'sce'"):
        merge(recipe(tmp_path, tmp_path, method="see"))
    with pytest.raises(RecipeError, match="at least one source"):
        merge(recipe(tmp_path))
    with pytest.raises(RecipeError, match="dtype is 'int4'"):
        merge(recipe(tmp_path, tmp_path, dtype="int4"))


def layered(*values: tuple[float, float]) -> dict[str, Tensor]:
    """Two matrices a layer; the numbers of each."""
    return {
        f"model.layers.{i}.{name}": torch.full((2, 2), float(value))
        for i, pair in enumerate(values)
        for name, value in zip("ab", pair, strict=True)
    }


def told(recipe: MergeRecipe) -> dict[tuple[str, int | None, str], float]:
    heard: list[Coefficient] = []
    dict(merge(recipe, on_coefficient=heard.append))
    return {(one.tensor, one.source, one.name): one.value for one in heard}


def test_what_was_used_of_every_tensor_and_source_is_told(make_checkpoint):
    base, one, other = (make_checkpoint(str(i), weights(i)) for i in (0, 1, 3))
    found = told(recipe(base, one, other, method="sce", select_topk=0.5))
    assert found[EMBEDDING, 0, "eta"] == pytest.approx(0.1)  # 1² of 1² + 3²
    assert found[EMBEDDING, 1, "eta"] == pytest.approx(0.9)
    assert found["norm", None, "selected"] == 0.5
    assert {tensor for tensor, _, _ in found} == {EMBEDDING, "norm"}


def test_a_source_that_takes_no_part_has_no_coefficients_and_the_others_keep_their_numbers(make_checkpoint):
    base, one, other = (make_checkpoint(str(i), layered((i, i), (i, i))) for i in (0, 1, 3))
    slices = (Slice((0, 1), ((0, 1), None)), Slice((1, 2), (None, (1, 2))))
    found = told(MergeRecipe("linear", base, (one, other), slices=slices))
    assert {(tensor, source) for tensor, source, _ in found} == {
        (f"model.layers.{layer}.{name}", layer) for layer in (0, 1) for name in "ab"
    }


# δ of the sources in the two matrices of two layers, of as many elements each: Wₖ is the share of Σ δ² over the group.
MOVED = (((1.0, 3.0), (2.0, 2.0)), ((2.0, 1.0), (1.0, 0.0)))
SHARES = {
    "matrix": [1 / 5, 9 / 10, 4 / 5, 1.0],
    "layer": [10 / 15, 10 / 15, 8 / 9, 8 / 9],
    "model": [18 / 24] * 4,
}


@pytest.mark.parametrize("granularity", SHARES)
def test_varm_weighs_by_the_whole_group_and_its_weights_sum_to_one(make_checkpoint, granularity: str):
    base = make_checkpoint("base", layered((0, 0), (0, 0)))
    sources = [make_checkpoint(str(k), layered(*moved)) for k, moved in enumerate(MOVED)]
    found = told(recipe(base, *sources, method="varm", granularity=granularity))
    first = [value for (_, source, _), value in sorted(found.items()) if source == 0]
    second = [value for (_, source, _), value in sorted(found.items()) if source == 1]
    assert first == pytest.approx(SHARES[granularity])
    assert [a + b for a, b in zip(first, second, strict=True)] == pytest.approx([1] * 4)


def test_a_grid_of_varms_groups_weighs_each_by_its_own(make_checkpoint, tmp_path: Path):
    base = make_checkpoint("base", layered((0, 0), (0, 0)))
    sources = tuple(make_checkpoint(str(k), layered(*moved)) for k, moved in enumerate(MOVED))
    folders = {tmp_path / f"by-{granularity}": granularity for granularity in SHARES}
    merge_to_folders(MergeRecipe("varm", base, sources), folders, grid=Grid("granularity", tuple(SHARES)))
    for folder, granularity in folders.items():
        first = [value for _, source, _, value in sorted(read_coefficients(folder)) if source == "0"]
        assert first == pytest.approx(SHARES[granularity]), granularity


@pytest.mark.parametrize("at_once", [1, 4, 8, 9])
def test_of_a_large_tensor_only_some_variants_are_merged_at_a_time(
    make_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
):
    monkeypatch.setattr(fusion.merge, "_TOGETHER", at_once)  # elements; the matrices have 4
    base = make_checkpoint("base", layered((0, 0), (0, 0)))
    sources = tuple(make_checkpoint(str(k), layered(*moved)) for k, moved in enumerate(MOVED))
    for parameter, method, values in (("select_topk", "sce", (0.25, 0.5, 1.0)), ("granularity", "varm", tuple(SHARES))):
        recipe = MergeRecipe(method, base, sources)
        folders = {tmp_path / f"{value}": "m" for value in values}
        merge_to_folders(recipe, folders, grid=Grid(parameter, values))
        for folder, value in zip(folders, values, strict=True):
            heard: list[Coefficient] = []
            alone = replace(recipe, params={parameter: value})
            for name, tensor in merge(alone, on_coefficient=heard.append):
                assert Checkpoint(folder).tensor(name).equal(tensor)
            assert [row[3] for row in read_coefficients(folder)] == [one.value for one in heard]


@pytest.mark.parametrize("granularity", ["matrix", "layer", "model", "element"])
def test_varm_tells_what_is_not_finite_whatever_it_weighs_by(make_checkpoint, granularity: str):
    broken = layered((1, float("nan")))
    base, source = make_checkpoint("base", layered((0, 0))), make_checkpoint("one", broken)
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.b' in .*one/model\.safetensors has 4 NaN"):
        dict(merge(recipe(base, source, source, method="varm", granularity=granularity)))


def test_a_result_that_float16_cannot_hold_is_refused_and_bfloat16_holds_it(make_checkpoint):
    base, source = make_checkpoint("base", {"w": torch.zeros(2)}), make_checkpoint("one", {"w": torch.full((2,), 7e4)})
    with pytest.raises(CheckpointError, match=r"merged tensor 'w' does not fit into float16.*set dtype to bfloat16"):
        dict(merge(recipe(base, source, dtype="float16")))
    assert dict(merge(recipe(base, source, dtype="bfloat16")))["w"].isfinite().all()


def test_overrides_decide_what_the_tensors_become(make_checkpoint):
    base, source = (make_checkpoint(str(i), layered((i, i), (i, i), (i, i))) for i in (0, 1))
    setting = {"*.{1..2}.a": 5, "*.b": [0, 1], "*": 7}
    merged = dict(merge(recipe(base, source, method="task_arithmetic", scale=setting)))
    assert [merged[f"model.layers.{i}.a"][0, 0] for i in range(3)] == [7, 5, 5]
    assert [merged[f"model.layers.{i}.b"][0, 0] for i in range(3)] == [0, 0.5, 1]


@pytest.mark.slow
def test_an_adapter_over_the_base_merges_as_the_model_that_peft_makes_of_it(tmp_path: Path, make_checkpoint):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, tie_word_embeddings=False, **sizes))
    base = make_checkpoint("base", {name: tensor.clone() for name, tensor in model.state_dict().items()})
    other = make_checkpoint("other", {name: tensor + 0.1 for name, tensor in model.state_dict().items()})
    with quiet_libraries():
        adapted = get_peft_model(
            model, LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False)
        )
        adapted.save_pretrained(tmp_path / "adapter")
        whole = make_checkpoint(
            "whole", {k: v.contiguous() for k, v in adapted.merge_and_unload().state_dict().items()}
        )
    by_adapter = dict(merge(recipe(base, tmp_path / "adapter", other, method="ties", density=0.5)))
    by_model = dict(merge(recipe(base, whole, other, method="ties", density=0.5)))
    assert by_adapter.keys() == by_model.keys()
    for name, tensor in by_model.items():
        assert (by_adapter[name] - tensor).abs().max() <= 1e-6, name


@pytest.mark.parametrize(
    ("policy", "tokens", "rows"),
    [
        ("base", {"a": 0, "b": 1}, [[20.0], [21.0]]),
        ("union", {"a": 0, "b": 1, "<n>": 2}, [[20.0], [21.0], [32.0]]),
        ("1", {"b": 0, "a": 1, "<n>": 2}, [[21.0], [20.0], [32.0]]),
    ],
)
def test_a_whole_merge_has_the_vocabulary_that_was_chosen(
    make_checkpoint, tmp_path: Path, policy: str, tokens: dict[str, int], rows: list[list[float]]
):
    def model(name: str, embedding: list[float], words: dict[str, int], added: list[str]) -> Path:
        matrix = torch.tensor(embedding, dtype=torch.float32).reshape(-1, 1)
        folder = make_checkpoint(name, {EMBEDDING: matrix, "norm": torch.ones(2)}, vocab_size=len(embedding))
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
        tokenizer.add_tokens(added)
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    base = model("base", [10, 11], {"a": 0, "b": 1}, [])
    source = model("source", [31, 30, 32], {"b": 0, "a": 1}, ["<n>"])
    out = tmp_path / "out"
    merge_to_folder(MergeRecipe("task_arithmetic", base, (source,), {"scale": 0.5}, tokenizer=policy), out, title="m")
    assert Checkpoint(out).tensor(EMBEDDING).tolist() == rows
    assert Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab() == tokens
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(tokens)
    assert json.loads((out / "recipe.json").read_text())["vocabulary"]["tokenizer"] == policy


ON_ONE_CORE = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from fusion.publish import merge_to_folder
from fusion.recipe import MergeRecipe
base, one, other, out = map(Path, sys.argv[1:])
merge_to_folder(MergeRecipe("dare_ties", base, (one, other), {"density": 0.5}, seed=3), out, title="m")
"""


@pytest.mark.slow
def test_one_core_writes_the_same_bytes_as_all(make_checkpoint, tmp_path: Path):
    def random(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(300, 500), (7,), (40, 40), (513, 257)] * 3  # the first and last of several blocks
        return {f"model.layers.{i}.w": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}

    base, one, other = (make_checkpoint(str(i), random(i)) for i in range(3))
    recipe = MergeRecipe("dare_ties", base, (one, other), {"density": 0.5}, seed=3)
    merge_to_folder(recipe, tmp_path / "many", title="m")
    command = [sys.executable, "-c", ON_ONE_CORE, base, one, other, tmp_path / "single"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    for file in ("model.safetensors", "recipe.json", "README.md"):
        assert (tmp_path / "single" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()
    assert read_coefficients(tmp_path / "single") == read_coefficients(tmp_path / "many")


def test_a_scale_that_takes_the_result_out_of_all_numbers_is_refused(make_checkpoint):
    base, source = make_checkpoint("base", {"w": torch.zeros(2)}), make_checkpoint("one", {"w": torch.full((2,), 7e4)})
    with pytest.raises(CheckpointError, match=r"does not fit into float32.*make weights and scale smaller"):
        dict(merge(recipe(base, source, method="task_arithmetic", scale=1e38)))
