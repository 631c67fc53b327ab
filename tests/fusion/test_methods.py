"""What holds of every merge method; the formulas of each are tested in the files of their own."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from fusion.blocks import NotFinite
from fusion.errors import RecipeError
from fusion.methods import FEWEST_SOURCES, GRIDS, METHODS, MOST_SOURCES, RANDOM, check_params
from fusion.params import parameters

NEEDED: dict[str, dict[str, object]] = {
    "breadcrumbs": {"density": 0.6},
    "breadcrumbs_ties": {"density": 0.6},
    "dare_linear": {"density": 0.6},
    "dare_ties": {"density": 0.6},
    "della": {"density": 0.6},
    "della_linear": {"density": 0.6},
    "slerp": {"t": 0.25},
    "ties": {"density": 0.6},
}
SYMMETRIC = sorted(set(METHODS) - set(RANDOM) - set(MOST_SOURCES))  # a random mask is drawn for a place in the order
EACH = pytest.mark.parametrize("method", METHODS)


def tensors(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for _ in range(count)]


def sources(method: str) -> int:
    return min(2, MOST_SOURCES.get(method, 2))


def merged(method: str, base: Tensor, tuned: list[Tensor], **more: object) -> Tensor:
    return METHODS[method](base, tuned[: sources(method)], **{**NEEDED.get(method, {}), **more})


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merging_a_model_with_itself_changes_no_bit(method: str, dtype: torch.dtype):
    [model] = tensors(1, 5, 6, dtype=dtype)
    model[0, 0] = -0.0
    result = merged(method, model, [model.clone(), model.clone()])
    assert result.dtype == dtype
    assert result.view(torch.uint8).equal(model.view(torch.uint8))
    assert result.data_ptr() != model.data_ptr()


@pytest.mark.parametrize("method", SYMMETRIC)
def test_the_order_of_sources_does_not_matter(method: str):
    base, one, other = tensors(3, 5, 6)
    torch.testing.assert_close(
        merged(method, base, [one, other]), merged(method, base, [other, one]), rtol=0, atol=1e-6
    )


@EACH
def test_inputs_are_left_alone(method: str):
    base, one, other = tensors(3, 5, 6)
    before = [t.clone() for t in (base, one, other)]
    merged(method, base, [one, other])
    assert all(old.equal(new) for old, new in zip(before, (base, one, other), strict=True))


@EACH
def test_arithmetic_is_float32_whatever_the_storage(method: str):
    base, one, other = (t.bfloat16() for t in tensors(3, 50, 6))
    wide = merged(method, base.float(), [one.float(), other.float()])
    assert merged(method, base, [one, other]).equal(wide.bfloat16())


@EACH
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3, 4)])
def test_any_shape_will_do(method: str, shape: tuple[int, ...]):
    base, one, other = tensors(3, *shape)
    assert merged(method, base, [one, other]).shape == shape


@EACH
def test_sources_may_be_stored_otherwise_than_the_base_and_transposed(method: str):
    base = torch.randn(6, 5).bfloat16().T
    result = merged(method, base, [torch.randn(5, 6), torch.randn(5, 6).half()])
    assert (result.dtype, result.shape) == (torch.bfloat16, (5, 6))


@EACH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_merged(method: str, bad: float):
    base, one, other = tensors(3, 5, 6)
    one[2, 3] = bad
    with pytest.raises(NotFinite, match="source 1 holds"):
        merged(method, base, [one, other])


@EACH
def test_what_was_used_is_told_for_each_source_or_for_all(method: str):
    base, one, other = tensors(3, 5, 6)
    heard: dict[str, list[float]] = {}
    merged(method, base, [one, other], tell=lambda name, values: heard.update({name: list(values)}))
    assert heard
    assert {len(values) for values in heard.values()} <= {1, sources(method)}


@pytest.mark.parametrize("method", GRIDS)
def test_a_grid_is_its_single_merges(method: str):
    base, *tuned = tensors(3, 40, 50, dtype=torch.bfloat16)
    parameter, together = GRIDS[method]
    values = (0.05, 0.2, 0.7, 1.0)
    tells = [lambda name, values: None] * len(values)
    for value, result in zip(values, together(base, tuned, **{parameter: values}, tells=tells), strict=True):
        assert result.equal(merged(method, base, tuned, **{parameter: value}))


@pytest.mark.parametrize("method", RANDOM)
def test_what_is_drawn_depends_on_the_generator_alone(method: str):
    base, *tuned = tensors(3, 5, 6)

    def drawn(seed: int) -> Tensor:
        return merged(method, base, tuned, generator=torch.Generator().manual_seed(seed))

    assert drawn(1).equal(drawn(1))
    assert not drawn(1).equal(drawn(2))


@EACH
def test_a_method_says_its_formula_and_where_it_is_from(method: str):
    said = METHODS[method].__doc__ or ""
    assert "θ = " in said or "``ties``" in said  # composed of two that say theirs
    assert re.search(r"\d{4}\.\d{5}|mergekit|FuseO1|Shoemake|as it is", said), said


@EACH
def test_needed_parameters_pass_the_check_and_are_needed(method: str):
    given = NEEDED.get(method, {})
    check_params(method, given, sources=sources(method))
    assert {name for name, parameter in parameters(METHODS[method]).items() if parameter.required} == set(given)


@pytest.mark.parametrize(
    ("method", "params", "sources", "message"),
    [
        ("sec", {}, 2, "no merge method 'sec'; there are breadcrumbs, "),
        ("sec", {}, 2, "varm. Did you mean 'sce'?"),
        ("sce", {"select_top": 0.1}, 2, "takes no 'select_top'; it takes select_topk. Did you mean 'select_topk'?"),
        ("linear", {"base": 1}, 2, "takes no 'base'; it takes normalize, weights."),
        ("varm", {"energies": [1, 1]}, 2, "takes no 'energies'; it takes granularity."),
        ("ties", {}, 2, "needs 'density'; it takes density, normalize, scale, weights"),
        ("sce", {}, 1, "needs at least 2 sources, and there are 1"),
        ("slerp", {"t": 0.5}, 2, "takes 1 source beside the base, and there are 2"),
        ("sce", {"select_topk": 0}, 2, "is 0; it must be a number in (0, 1]"),
        ("sce", {"select_topk": 10}, 2, "is 10; it must be a number in (0, 1]"),
        ("sce", {"select_topk": True}, 2, "is True; it must be a number in (0, 1]"),
        ("sce", {"select_topk": "0.1"}, 2, "is '0.1'; it must be a number in (0, 1]"),
        ("linear", {"weights": [1, 2, 3]}, 2, "has 3 numbers for 2 sources; give one a source"),
        ("linear", {"weights": "1"}, 2, "is '1'; it must be a finite number, or a list of them, one a source"),
        ("linear", {"weights": [1, float("nan")]}, 2, "it must be a finite number, or a list of them"),
        ("task_arithmetic", {"weights": None}, 2, "is None; it must be a finite number"),
        ("linear", {"weights": [1, -1]}, 2, "sum to 0, by which normalize would divide"),
        (
            "task_arithmetic",
            {"weights": [0.3, -0.3], "normalize": True},
            2,
            "sum to 0, by which normalize would divide",
        ),
        ("linear", {"normalize": "no"}, 2, "is 'no'; it must be true or false"),
        ("varm", {"granularity": "tensor"}, 2, "is 'tensor'; it must be one of 'matrix', 'layer', 'model', 'element'"),
        ("della", {"density": 0.9, "epsilon": 0.2}, 2, "make epsilon smaller"),
        ("task_arithmetic", {"weights": [1, 1], "scale": "big"}, 2, "is 'big'; it must be a finite number"),
    ],
)
def test_a_wrong_recipe_is_told_what_would_be_right(method: str, params: dict[str, object], sources: int, message: str):
    with pytest.raises(RecipeError) as error:
        check_params(method, params, sources=sources)
    assert message in str(error.value)


def test_the_tables_speak_of_methods_that_there_are():
    assert {*FEWEST_SOURCES, *MOST_SOURCES, *GRIDS, *RANDOM} <= set(METHODS)
