from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusion.errors import CheckpointError, RecipeError
from fusion.plan import Piece, plan
from fusion.recipe import Grid, MergeRecipe, Slice

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYERS = 4


def attention(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj.weight"


def mlp(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj.weight"


def llama(value: float = 0.0, *, layers: int = LAYERS) -> dict[str, Tensor]:
    names = [EMBEDDING, *(name(i) for i in range(layers) for name in (attention, mlp)), NORM, HEAD]
    return {name: torch.full((2, 2), float(value)) for name in names}


@pytest.fixture
def three(make_checkpoint) -> tuple[Path, Path, Path]:
    base, one, other = (make_checkpoint(str(i), llama(i), num_hidden_layers=LAYERS) for i in range(3))
    return base, one, other


def pieces(recipe: MergeRecipe, grid: Grid | None = None) -> dict[str, Piece]:
    return {piece.name: piece for piece in plan(recipe, grid).pieces}


def settled(three: tuple[Path, Path, Path], parameter: str, setting: object, *, method: object = "ties") -> dict:
    """Return what each tensor is given for one parameter."""
    base, *sources = three
    params = {parameter: setting} if parameter == "density" else {"density": 0.5, parameter: setting}
    found = pieces(MergeRecipe(method, base, tuple(sources), params))
    return {name: piece.params[0][parameter] for name, piece in found.items()}


def test_overrides_by_glob_and_layer_range_reach_their_tensors_and_no_others(three):
    found = settled(three, "density", {"*.mlp.*": 0.1, "*.layers.{0..1}.*": 0.2, "*": 0.9})
    assert {name for name, value in found.items() if value == 0.1} == {mlp(i) for i in range(LAYERS)}
    assert {name for name, value in found.items() if value == 0.2} == {attention(0), attention(1)}
    assert {name for name, value in found.items() if value == 0.9} == {
        EMBEDDING,
        attention(2),
        attention(3),
        NORM,
        HEAD,
    }


def test_a_gradient_runs_from_the_embeddings_over_the_layers_to_the_head(three):
    found = settled(three, "scale", [0, 3])
    assert [found[attention(i)] for i in range(LAYERS)] == [0, 1, 2, 3]
    assert (found[EMBEDDING], found[NORM], found[HEAD]) == (0, 3, 3)


def test_a_source_may_have_a_gradient_where_the_other_has_a_glob(three):
    found = settled(three, "weights", [[0, 3], {"*.mlp.*": 7, "*": 8}])
    assert [found[mlp(i)] for i in range(LAYERS)] == [[0, 7], [1, 7], [2, 7], [3, 7]]
    assert found[attention(1)] == [1, 8]


def test_every_module_may_have_a_method_of_its_own(three):
    base, one, _ = three
    recipe = MergeRecipe({"*embed*": "passthrough", "*": "linear"}, base, (one,), {"weights": 2})
    found = {name: (piece.method, dict(piece.params[0])) for name, piece in pieces(recipe).items()}
    assert found[EMBEDDING] == ("passthrough", {})
    assert found[NORM] == ("linear", {"weights": 2})


def test_a_method_for_one_source_is_refused_where_two_would_reach_a_tensor(three):
    base, *sources = three
    recipe = MergeRecipe({"*embed*": "passthrough", "*": "linear"}, base, tuple(sources))
    with pytest.raises(RecipeError, match="'passthrough' takes 1 source beside the base, and there are 2"):
        plan(recipe)


@pytest.mark.parametrize("where", ["method", "density"])
def test_a_tensor_that_no_glob_matches_is_named_with_what_to_add(three, where: str):
    nothing = {"*.experts.*": "ties" if where == "method" else 0.5}
    given = {"method": "ties", "density": 0.5, where: nothing}
    with pytest.raises(RecipeError, match=r"says nothing of tensor 'lm_head\.weight'.*add '\*' for the rest"):
        plan(MergeRecipe(given["method"], three[0], three[1:], {"density": given["density"]}))


def test_a_grid_makes_a_variant_a_value_of_every_tensor(three):
    base, *sources = three
    found = pieces(MergeRecipe("sce", base, tuple(sources)), Grid("select_topk", (0.1, 0.5)))
    assert [dict(params) for params in found[NORM].params] == [{"select_topk": 0.1}, {"select_topk": 0.5}]


def test_slices_number_the_layers_anew_and_say_how_many_there_are(three):
    base, one, other = three
    slices = (Slice((0, 3), ((0, 3), None)), Slice((1, 4), (None, (1, 4)), {"scale": 0.5}))
    planned = plan(MergeRecipe("passthrough", base, (one, other), slices=slices))
    assert planned.config == {"num_hidden_layers": 6}
    found = {piece.name: piece for piece in planned.pieces}
    taken = {i: (found[mlp(i)].base, found[mlp(i)].sources) for i in range(6)}
    assert taken[2] == (mlp(2), ((0, mlp(2)),))
    assert taken[3] == (mlp(1), ((1, mlp(1)),))
    assert taken[5] == (mlp(3), ((1, mlp(3)),))
    assert [found[mlp(i)].params[0].get("scale", 1) for i in range(6)] == [1, 1, 1, 0.5, 0.5, 0.5]
    # The first slice also decides about the embeddings, the last about what comes after the layers.
    assert (found[EMBEDDING].sources, found[HEAD].sources) == (((0, EMBEDDING),), ((1, HEAD),))
    assert len(found) == len(planned.pieces) == 2 * 6 + 3


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.wte.weight"])
def test_an_embedding_comes_from_the_first_slice_whatever_its_name(make_checkpoint, name: str):
    base = make_checkpoint("base", {name: torch.ones(2, 2), mlp(0): torch.ones(2, 2), NORM: torch.ones(2)})
    slices = (Slice((0, 1), ((0, 1), None)), Slice((0, 1), (None, (0, 1))))
    found = pieces(MergeRecipe("passthrough", base, (base, base), slices=slices))
    assert (found[name].sources, found[NORM].sources) == (((0, name),), ((1, NORM),))


def test_kinds_of_layers_go_where_their_layers_go(make_checkpoint):
    kinds = ["full", "sliding", "full", "sliding"]
    base = make_checkpoint("base", llama(), num_hidden_layers=LAYERS, layer_types=kinds)
    slices = (Slice((2, 4), ((2, 4),)), Slice((0, 1), ((0, 1),)))
    planned = plan(MergeRecipe("passthrough", base, (base,), slices=slices))
    assert planned.config == {"num_hidden_layers": 3, "layer_types": ["full", "sliding", "full"]}


def test_a_gradient_runs_over_each_slice_anew(three):
    base, one, _ = three
    recipe = MergeRecipe("passthrough", base, (one,), {"scale": [0, 1]}, slices=(Slice((1, 4), ((1, 4),)),) * 2)
    found = pieces(recipe)
    assert [found[mlp(i)].params[0]["scale"] for i in range(6)] == [0, 0.5, 1, 0, 0.5, 1]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Slice((0, 2), ((0, 2),)), "slice 1 speaks of 1 sources, and there are 2"),
        (Slice((0, 2), (None, None)), "slice 1 takes nothing from any source"),
        (Slice((0, 2), ((0, 3), None)), r"slice 1 takes layers \(0, 3\) of .* and \(0, 2\) of the base"),
        (Slice((3, 5), (None, (3, 5))), r"slice 1 takes layers \[3, 5\] of .*, which has 4"),
    ],
)
def test_a_slice_that_cannot_be_cut_is_refused(three, part: Slice, message: str):
    with pytest.raises(RecipeError, match=message):
        plan(MergeRecipe("linear", three[0], three[1:], slices=(part,)))


def test_what_does_not_fit_is_listed_in_one_error(make_checkpoint):
    base = make_checkpoint("base", llama())
    lacking = make_checkpoint("lacking", {name: tensor for name, tensor in llama().items() if name != NORM})
    turned = make_checkpoint("turned", {**llama(), HEAD: torch.ones(2, 3), "extra": torch.ones(1)})
    with pytest.raises(CheckpointError) as error:
        plan(MergeRecipe("linear", base, (lacking, turned)))
    for part in (
        f"lacking lacks {NORM}",
        f"turned has {HEAD} of shape (2, 3), not (2, 2)",
        "turned has extra, which the base lacks",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(("layers", "kind"), [(1, "lacks"), (20, "has")])
def test_a_source_of_other_depth_is_told_by_ten_of_its_tensors(make_checkpoint, layers: int, kind: str):
    base, source = make_checkpoint("base", llama(layers=8)), make_checkpoint("source", llama(layers=layers))
    with pytest.raises(CheckpointError) as error:
        plan(MergeRecipe("linear", base, (source,)))
    assert str(error.value).count(f"source {kind} model.layers.") == 10
    assert f"… and {2 * abs(layers - 8) - 10} more" in str(error.value)


def sparse(folder: Path, elements: dict[str, int]) -> Path:
    """Give a checkpoint a file of zeros, as large as it says but of no room on the disk."""
    header, end = {}, 0
    for name, count in elements.items():
        header[name] = {"dtype": "BF16", "shape": [count], "data_offsets": [end, end := end + 2 * count]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def test_two_large_tensors_are_merged_apart_and_small_ones_before_each(make_checkpoint):
    large, small = 1 << 26, 1 << 25
    elements = {HEAD: large, EMBEDDING: large, **{mlp(i): small for i in range(4)}}
    base = sparse(make_checkpoint("base", {"w": torch.ones(1)}, tie_word_embeddings=False), elements)
    found = [piece.name for piece in plan(MergeRecipe("linear", base, (base,))).pieces]
    assert found == [mlp(0), mlp(1), HEAD, mlp(2), mlp(3), EMBEDDING]
