import pytest

from fusion.errors import RecipeError
from fusion.methods import METHODS
from fusion.params import parameters
from fusion.settings import (
    check_method,
    check_settings,
    depth_of,
    interpolate,
    layer_of,
    matches,
    ordered,
    resolve,
    resolve_all,
)

KNOWN = {name: parameters(METHODS[name]) for name in ("linear", "ties", "slerp")}
MLP = "model.layers.3.mlp.up_proj.weight"
ATTENTION = "model.layers.12.self_attn.q_proj.weight"


def value(parameter, setting, *, name=MLP, depth=0.0, sources=2, method="ties"):
    return resolve(method, {parameter: setting}, name=name, depth=depth, sources=sources, known=KNOWN)[1][parameter]


def test_a_constant_is_itself_and_a_list_of_a_per_source_parameter_is_one_a_source():
    assert value("scale", 0.5) == 0.5
    assert value("weights", [1, 2]) == [1, 2]
    assert value("weights", 3) == 3


@pytest.mark.parametrize(
    ("depth", "expected"), [(0, 0.0), (0.125, 0.25), (0.25, 0.5), (0.375, 0.4), (0.5, 0.3), (0.75, 0.7), (1, 1.0)]
)
def test_a_gradient_is_linear_between_evenly_spaced_anchors(depth, expected):
    assert value("scale", [0, 0.5, 0.3, 0.7, 1], depth=depth) == pytest.approx(expected)


def test_the_first_glob_that_matches_counts_also_nested():
    setting = {"*.mlp.*": {"*.{0..2}.*": 1, "*": 2}, "*_proj.*": 3, "*": 4}
    assert value("scale", setting, name="model.layers.2.mlp.up_proj.weight") == 1
    assert value("scale", setting) == 2
    assert value("scale", setting, name=ATTENTION) == 3
    assert value("scale", setting, name="model.norm.weight") == 4


def test_an_entry_of_a_list_per_source_is_itself_a_setting():
    setting = [[0, 1], {"*.mlp.*": 0.25, "*": 0.75}]
    assert value("weights", setting, depth=0.5) == [0.5, 0.25]
    assert value("weights", {"*.mlp.*": setting, "*": [5, 6]}, name=ATTENTION) == [5, 6]


def test_what_no_glob_matches_is_a_mistake_that_says_what_to_add():
    with pytest.raises(RecipeError, match=r"'scale'.*model\.layers\.12.*'\*\.mlp\.\*'.*add '\*'"):
        value("scale", {"*.mlp.*": 1}, name=ATTENTION)


def test_methods_can_differ_and_each_gets_only_what_it_takes():
    method, params = {"*embed*": "linear", "*": "ties"}, {"weights": [1, 2], "density": 0.5}
    at = {"depth": 0.0, "sources": 2, "known": KNOWN}
    assert resolve(method, params, name="model.embed_tokens.weight", **at) == ("linear", {"weights": [1, 2]})
    assert resolve(method, params, name=MLP, **at) == ("ties", params)


def test_a_list_of_the_wrong_length_is_a_mistake_where_it_is_found():
    with pytest.raises(RecipeError, match="3 entries for 2 sources"):
        value("weights", {"*": [1, 2, 3]})


@pytest.mark.parametrize(
    ("glob", "name", "fits"),
    [
        ("model.layers.{0..11}.mlp.*", MLP, True),
        ("model.layers.{0..11}.*", ATTENTION, False),
        ("*.{2..12}.self_attn.*", ATTENTION, True),
        ("*.layers.{1..2}.*", ATTENTION, False),
        ("*{q,k,v}_proj*", ATTENTION, True),
        ("*{q,k,v}_proj.*", MLP, False),
        ("*.[1-9][0-9].*", ATTENTION, True),
        ("*.[!1]?.*", ATTENTION, False),
        ("mlp", MLP, False),
        ("*mlp*", MLP, True),
        ("*[{]*", "odd{name", True),
        ("*[[]*", "odd[name", True),
        ("model?layers*", "model.layers.0", True),
        ("*a.b*", "aXb", False),
    ],
)
def test_globs_are_a_shells_on_the_whole_name(glob, name, fits):
    assert matches(glob, name) is fits


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("*.{11..0}.*", r"goes down; write \{0..11\}"),
        ("*.{0..}.*", r"\{0..\}, which is no range"),
        ("*.{a..c}.*", r"\{a..c\}, which is no range"),
        ("*.{3}.*", r"\{3\}, which is no range"),
        ("*.{0..3.*", r"'\{' that is not closed"),
        ("*[ab", r"'\[' that is not closed"),
        ("*0..3}", r"'\}' that is not closed or not opened"),
    ],
)
def test_a_malformed_glob_is_a_mistake_before_any_tensor_is_named(glob, message):
    with pytest.raises(RecipeError, match=message):
        check_settings("ties", {"weights": 1, "density": {glob: 0.5, "*": 1}}, sources=2)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (MLP, 3),
        ("transformer.h.7.attn.c_attn.weight", 7),
        ("h.7.ln_1.weight", 7),
        ("transformer.blocks.0.norm.weight", 0),
        ("model.layers.5.mlp.experts.11.w1.weight", 5),
        ("model.norm.weight", None),
        ("model.embed_tokens.weight", None),
    ],
)
def test_a_tensors_layer_is_read_from_its_name(name, layer):
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("name", "layers", "depth"),
    [
        ("model.embed_tokens.weight", 4, 0.0),
        ("transformer.wte.weight", 4, 0.0),
        ("model.layers.0.mlp.up_proj.weight", 4, 0.0),
        ("model.layers.1.mlp.up_proj.weight", 4, 1 / 3),
        ("model.layers.3.mlp.up_proj.weight", 4, 1.0),
        ("model.layers.0.mlp.up_proj.weight", 1, 1.0),
        ("model.norm.weight", 4, 1.0),
        ("lm_head.weight", 4, 1.0),
        ("embed_out.weight", 4, 1.0),
    ],
)
def test_depth_runs_from_the_embeddings_to_what_follows_the_layers(name, layers, depth):
    assert depth_of(name, layers) == pytest.approx(depth)


def test_a_gradient_at_its_anchors_is_exactly_the_anchors():
    anchors = [0.1, 0.7, 0.2, 0.9]
    assert [interpolate(anchors, i / 3) for i in range(4)] == pytest.approx(anchors, abs=1e-15)
    assert interpolate(anchors, 1.0) == 0.9


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("tie", {}, "no merge method 'tie'; .* Did you mean 'ties'"),
        ({"*mlp*": "ties", "*": "liner"}, {}, "no merge method 'liner'; .* Did you mean 'linear'"),
        (3, {}, "'method' is 3; give a method's name"),
        ({}, {}, "'method' is an empty mapping"),
        ("ties", {"densty": 1}, "'ties' takes no 'densty'; it takes density, .*Did you mean 'density'"),
        ({"*mlp*": "ties", "*": "linear"}, {"t": 1}, "none of linear, ties takes 't'; they take density"),
        ("slerp", {}, "'slerp' needs 't'"),
        ({"*mlp*": "slerp", "*": "linear"}, {}, "'slerp' needs 't'"),
        ("ties", {"density": 0}, r"'density' of merge method 'ties' is 0; it must be a number in \(0, 1\]"),
        ("ties", {"density": {"*mlp*": 0.5, "*": 2}}, r"'density' of merge method 'ties' for '\*' is 2"),
        ("ties", {"density": [0.5, {"*": 2}]}, r"'density' of merge method 'ties' for source 2 for '\*' is 2"),
        ("ties", {"weights": [1, 2, 3]}, "3 .* for 2 sources; give one a source"),
        ("ties", {"weights": [[0, 1]]}, "1 entries for 2 sources"),
        ("ties", {"weights": [[0, "x"], 1]}, "for source 1 is 'x'; it must be a finite number"),
        ("ties", {"scale": [1]}, "a gradient over depth needs two numbers"),
        ("ties", {"scale": [1, "2"]}, "'scale'.* is '2'"),
        ("ties", {"scale": None}, "'scale'.* is None"),
        ("ties", {"normalize": [True, False]}, "'normalize'.*must be true or false"),
        ("ties", {"density": {"*": 1, "*mlp*": 0.5}}, r"'\*' before other globs, which are never reached"),
        ("ties", {"density": {3: 1}}, "has 3 where a glob on tensor names belongs"),
        ("linear", {"weights": [1, -1]}, "sum to 0"),
        ("dare_ties", {"density": 0.5, "rescale": "l2"}, "'rescale'.* is 'l2'; it must be one of"),
    ],
)
def test_a_mistake_is_found_before_the_tensors_are_known(method, params, message):
    given = {"weights": 1, "density": 0.5, **params} if method == "ties" else params
    with pytest.raises(RecipeError, match=message):
        check_settings(method, given, sources=2)


def test_what_is_right_passes():
    check_settings("ties", {"weights": [[0, 1], {"*mlp*": 1, "*": 0}], "density": {"*mlp*": 0.5, "*": 1}}, sources=2)
    check_settings({"*embed*": "linear", "*": "ties"}, {"weights": [1, 2], "density": 0.5}, sources=2)
    check_method({"*": {"*": "varm"}})


def test_every_tensors_combination_is_checked_and_the_tensor_named():
    depths = {MLP: 0.5, ATTENTION: 0.5}
    with pytest.raises(RecipeError, match=r"sum to 0.*\(at tensor 'model.layers.12.self_attn"):
        resolve_all("linear", {"weights": {"*mlp*": [1, 2], "*": [1, -1]}}, depths=depths, sources=2)
    found = resolve_all("linear", {"weights": {"*mlp*": [1, 2], "*": [[0, 1], 1]}}, depths=depths, sources=2)
    assert found == {MLP: ("linear", {"weights": [1, 2]}), ATTENTION: ("linear", {"weights": [0.5, 1]})}


def test_one_source_too_few_or_too_many_is_a_mistake():
    with pytest.raises(RecipeError, match="at least 2 sources"):
        check_settings("sce", {}, sources=1)
    with pytest.raises(RecipeError, match="takes 1 source"):
        check_settings("slerp", {"t": 0.5}, sources=2)


def test_the_order_of_globs_is_kept_where_keys_are_sorted():
    assert ordered({"*b*": 1, "*a*": [{"*": (1, 2)}, 3]}) == [["*b*", 1], ["*a*", [[["*", [1, 2]]], 3]]]
    assert ordered([0, 1]) == [0, 1]
