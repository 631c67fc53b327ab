"""A search space reads what people write, goes into JSON and back, and its points make merges."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from fuseval.ablation_file import AblationSpec
from fuseval.config import ConfigError
from fuseval.searching import Searcher
from fuseval.space import ParameterSpec, fits, from_json, points, rounded, to_json, values_of
from fuseval.variant import Variant, can_be, read_space, variant

SOURCES = ("math", "chat", "code")


def space(given, **shared):
    specs = {name: ParameterSpec.model_validate(spec) for name, spec in given.items()}
    return read_space(specs, sources=SOURCES, **shared)


def mistake(given, **shared):
    with pytest.raises(ConfigError) as caught:
        space(given, **shared)
    return str(caught.value)


MIXED = {
    "params.select_topk": {"low": 0.1, "high": 0.5, "step": 0.2},
    "method": ["sce", "ties", "linear"],
    "params.density": [0.2, 0.7],
    "params.weights.chat": [0.5, 1.0],
    "sources.chat": [True, False],
}


def test_a_space_survives_json():
    made = space({**MIXED, "params.scale": {"low": 0.01, "high": 1.0, "log": True}}, params={"normalize": False})
    assert from_json(to_json(made)) == made
    assert to_json(from_json(to_json(made))) == to_json(made)


def test_a_parameter_is_active_only_with_the_methods_that_take_it():
    by_method = {}
    for point in points(space(MIXED)):
        by_method.setdefault(point["method"], set()).update(point)
    assert by_method["sce"] == {"method", "sources.chat", "params.select_topk"}
    assert by_method["linear"] == {"method", "sources.chat", "params.weights.chat"}
    assert by_method["ties"] == by_method["linear"] | {"params.density"}


def test_a_source_that_takes_no_part_has_no_weight():
    without = [point for point in points(space(MIXED)) if not point["sources.chat"]]
    assert all("params.weights.chat" not in point for point in without)
    assert {variant(space(MIXED), point).sources for point in without} == {("math", "code")}


def test_a_grid_goes_through_every_combination_once():
    found = list(points(space(MIXED)))
    assert len(found) == 3 * 2 + 2 * 2 + 2 + 2 + 1  # sce, ties with and without chat, linear with and without
    assert len({str(sorted(point.items())) for point in found}) == len(found)


def test_a_step_reaches_the_upper_end_without_rounding_errors():
    [parameter] = space({"params.scale": {"low": 0.1, "high": 0.7, "step": 0.2}}, method="task_arithmetic").parameters
    assert values_of(parameter) == (0.1, 0.3, 0.5, 0.7)


def test_a_continuous_value_keeps_four_digits_and_its_bounds():
    [parameter] = space({"params.scale": {"low": 0.123456, "high": 1.0}}, method="task_arithmetic").parameters
    assert rounded(parameter, 0.31415926) == 0.3142
    assert rounded(parameter, 0.12341) == 0.123456


def test_a_source_s_weight_stands_in_its_place_beside_the_shared_ones():
    made = space({"params.weights.chat": [0.9]}, method="linear", params={"weights": [0.1, 0.2, 0.3]})
    assert variant(made, {"params.weights.chat": 0.9}) == Variant("linear", {"weights": [0.1, 0.9, 0.3]}, SOURCES)


def test_weights_of_sources_that_take_no_part_leave_the_list():
    made = space({"sources.math": [True, False]}, method="linear", params={"weights": [0.1, 0.2, 0.3]})
    assert variant(made, {"sources.math": False}) == Variant("linear", {"weights": [0.2, 0.3]}, ("chat", "code"))


def test_a_weight_that_nobody_gives_is_the_method_s_own():
    made = space({"params.weights.code": [0.5]}, method="linear")
    assert variant(made, {"params.weights.code": 0.5}).params == {"weights": [1.0, 1.0, 0.5]}


def test_globs_come_before_what_holds_for_all_tensors():
    made = space({"params.select_topk.*mlp*": [0.3]}, method="sce", params={"select_topk": 0.8})
    assert variant(made, {"params.select_topk.*mlp*": 0.3}).params == {"select_topk": {"*mlp*": 0.3, "*": 0.8}}


def test_a_source_s_weight_may_be_for_some_tensors_only():
    made = space({"params.weights.chat.*attn*": [0.2]}, method="linear")
    weights = variant(made, {"params.weights.chat.*attn*": 0.2}).params["weights"]
    assert weights == [1.0, {"*attn*": 0.2, "*": 1.0}, 1.0]


def test_methods_may_differ_by_glob():
    made = space({"method.*mlp*": ["ties", "linear"]}, method="sce", params={"density": 0.5})
    assert variant(made, {"method.*mlp*": "ties"}).method == {"*mlp*": "ties", "*": "sce"}


def test_shared_parameters_that_a_method_does_not_take_are_left_out():
    made = space({"method": ["sce", "ties"]}, params={"density": 0.5})
    assert variant(made, {"method": "sce"}).params == {}
    assert variant(made, {"method": "ties"}).params == {"density": 0.5}


def test_a_point_without_enough_sources_makes_no_merge():
    made = space({f"sources.{name}": [True, False] for name in SOURCES}, method="sce")
    assert not can_be(made, dict.fromkeys([f"sources.{name}" for name in SOURCES], False))
    assert not can_be(made, {"sources.math": True, "sources.chat": False, "sources.code": False})
    assert can_be(made, {"sources.math": True, "sources.chat": True, "sources.code": False})


def test_when_may_be_a_glob_on_a_choice():
    given = {
        "method": ["sce", "sce_fusechat", "ties"],
        "params.select_topk": {"values": [0.1], "when": {"method": "sce_*"}},
    }
    made = space(given, params={"density": 0.4})
    assert made.parameters[1].when == {"method": ("sce_fusechat",)}


def test_a_point_fits_only_with_every_active_parameter_and_allowed_values():
    made = space(MIXED)
    right = {"method": "sce", "sources.chat": True, "params.select_topk": 0.3}
    assert fits(made, right)
    assert not fits(made, {**right, "params.select_topk": 0.35})
    assert not fits(made, {**right, "params.density": 0.2})
    assert not fits(made, {"method": "sce", "sources.chat": 1, "params.select_topk": 0.3})


@pytest.mark.parametrize(
    ("given", "shared", "text"),
    [
        ({"params.densty": [0.5]}, {"method": "ties"}, "none of ties takes 'densty'; they take"),
        ({"params.densty": [0.5]}, {"method": "ties"}, "Did you mean 'density'? (ablation.space['params.densty'])"),
        ({"params.density": [0.5, 1.5]}, {"method": "ties"}, "'density' of merge method 'ties' is 1.5"),
        ({"params.select_topk": {"low": 0, "high": 1}}, {"method": "sce"}, "is 0.0; it must be a number in (0, 1]"),
        ({"method": ["sce", "tie"]}, {}, "there is no merge method 'tie'"),
        ({"method": ["sce", "ties"]}, {}, "merge method 'ties' needs 'density'; give it in params, or values in"),
        ({"sources.maths": [True, False]}, {"method": "sce"}, "'maths' is no source; there are chat, code, math."),
        ({"sources.math": [0, 1]}, {"method": "sce"}, "write sources.math: [true, false]"),
        ({"weights": [1.0]}, {"method": "linear"}, "there is nothing called 'weights' to search; write method,"),
        ({"params.select_topk.chat": [0.5]}, {"method": "sce"}, "is one for all sources; write params.select_topk"),
        ({"params.scale": [1.0]}, {"method": "linear", "params": {"scale": 1.0}}, "none of linear takes 'scale'"),
        ({"params.weights": [1.0]}, {"method": "linear", "params": {"weights": 1.0}}, "in params and in the space"),
        ({"params.weights": [1.0]}, {}, "which method?"),
        (
            {"method": ["sce"], "params.select_topk": {"values": [0.1], "when": {"metod": "sce"}}},
            {},
            "`when` names 'metod', which is no other parameter of the space; there are method. Did you mean 'method'?",
        ),
        (
            {"method": ["sce"], "params.select_topk": {"values": [0.1], "when": {"method": "ties"}}},
            {},
            "`when` wants 'method' to be 'ties', which is none of its values ['sce']",
        ),
    ],
)
def test_what_is_wrong_with_a_space_is_said_with_value_place_and_next_step(given, shared, text):
    assert text in mistake(given, **shared)


def test_what_is_given_per_source_under_globs_is_parted_among_the_sources_that_take_part():
    made = space({"sources.chat": [True, False]}, method="linear", params={"weights": {"*mlp*": [1, 2, 3], "*": 0.5}})
    every, without = (variant(made, {"sources.chat": part}).params["weights"] for part in (True, False))
    assert every == {"*mlp*": [1, 2, 3], "*": 0.5}
    assert without == [{"*mlp*": 1, "*": 0.5}, {"*mlp*": 3, "*": 0.5}]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"low": 1, "high": 0}, "low 1 is not below high 0"),
        ({"low": 0, "high": 1, "log": True}, "log needs a low above 0"),
        ({"low": 0}, "give values: [...], or low and high"),
        ([0.5, 0.5], "hold one twice"),
        ({"values": [1], "low": 0}, "values are a choice"),
        ({"low": 0, "high": 1.5, "kind": "int"}, "an int has a whole low, high and step"),
        ({"low": 0, "hihg": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_parameter_is_either_a_choice_or_a_range(given, text):
    with pytest.raises(ValidationError, match=text.replace("[", r"\[")):
        ParameterSpec.model_validate(given)


def test_a_grid_over_a_continuous_parameter_is_refused():
    with pytest.raises(ValueError, match=r"a grid needs every value of 'params\.scale': give values"):
        next(points(space({"params.scale": {"low": 0.1, "high": 1.0}}, method="task_arithmetic")))


def test_the_example_of_the_docs_makes_merges():
    text = (Path(__file__).parents[2] / "docs/ablating.md").read_text(encoding="utf-8")
    block = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    given = AblationSpec.model_validate(block["ablation"])
    made = read_space(given.space, sources=given.sources, method=given.method, params=given.params)
    assert can_be(made, Searcher(made, given.search.kind).ask([]))
