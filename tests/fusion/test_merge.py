from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusion.errors import CheckpointError, RecipeError
from fusion.merge import merge
from fusion.recipe import MergeRecipe

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
