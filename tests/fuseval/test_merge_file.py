import pytest
import yaml

from fuseval.config import ConfigError
from fuseval.merge_file import load_merge

OURS = {"method": "linear", "base": "base", "sources": ["one", "two"]}
THEIRS = {
    "models": [{"model": "base"}, {"model": "one"}, {"model": "two"}],
    "merge_method": "sce",
    "base_model": "base",
    "parameters": {"select_topk": 0.1},
    "dtype": "bfloat16",
    "tokenizer_source": "union",
}


@pytest.fixture
def load(tmp_path):
    for name in ("base", "one", "two", "one+two", "local"):
        (tmp_path / name).mkdir()
    (tmp_path / "quantised.gguf").write_text("")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")

    def load(recipe, *, whole=False):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        experiment, grid = load_merge(file, name="merged")
        return (experiment, grid) if whole else experiment

    return load


def models(experiment):
    """The models as (name, where from, adapter of)."""
    return [(m.name, m.path or f"{m.hub}@{m.revision}" if m.hub else m.path, m.adapter_of) for m in experiment.models]


def test_a_recipe_is_an_experiment_of_one_merge(load):
    experiment = load({**OURS, "params": {"weights": [3, 1]}, "dtype": "float32", "seed": 5, "tokenizer": "two"})
    assert models(experiment) == [("base", "base", None), ("one", "one", None), ("two", "two", None)]
    [merge] = experiment.fusion.merges
    assert (merge.name, merge.base, merge.sources) == ("merged", "base", ["one", "two"])
    assert (merge.method, merge.params, merge.dtype, merge.seed) == ("linear", {"weights": [3, 1]}, "float32", 5)
    assert (merge.tokenizer_of, experiment.notes) == ("2", [])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("one", [("one", "one", None)]),
        ("quantised.gguf", [("quantised", "quantised.gguf", None)]),
        ("org/name", [("name", "org/name@None", None)]),
        ("org/name-1.5B@v1.0", [("name-1.5B", "org/name-1.5B@v1.0", None)]),
        ("org/base", [("base-2", "org/base@None", None)]),
        ("org/merged", [("merged-2", "org/merged@None", None)]),
        ("package:fuseval/demo", [("demo", "package:fuseval/demo", None)]),
        ("lora", [("lora", "lora", "base")]),
        ("base+lora", [("lora", "lora", "base")]),
        ("one+lora", [("one", "one", None), ("lora", "lora", "one")]),
        ("org/a@x+org/b", [("a", "org/a@x", None), ("b", "org/b@None", "a")]),
        ("one+two", [("one+two", "one+two", None)]),  # a folder of this name is there
    ],
)
def test_a_model_may_be_a_path_a_package_file_a_hub_id_or_an_adapter(load, source, expected):
    assert models(load({**OURS, "sources": [source]}))[1:] == expected


def test_a_model_that_is_named_twice_is_one_model(load):
    experiment = load({**OURS, "sources": ["one", "base", "one+lora"]})
    assert models(experiment)[2:] == [("lora", "lora", "one")]
    assert experiment.fusion.merges[0].sources == ["one", "base", "lora"]


def test_the_base_may_have_an_adapter_on_it(load):
    experiment = load({**OURS, "base": "one+lora", "sources": ["two"]})
    assert models(experiment)[:2] == [("one", "one", None), ("lora", "lora", "one")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "liner"}, r"Did you mean 'linear'\? \(method in recipe.yaml\)"),
        ({"params": {"wieghts": 1}}, r"takes no 'wieghts'.*\(params in recipe.yaml\)"),
        ({"dtyp": "float32"}, r"Did you mean 'dtype'\? \(dtyp in recipe.yaml\)"),
        ({"sources": ["one", "nowhere"]}, r"no file or folder .*nowhere \(sources\[1\] in recipe.yaml\)"),
        ({"sources": ["one", "local/two"]}, r"no file or folder .*two \(sources\[1\] in recipe.yaml\)"),
        ({"sources": ["org/one.gguf"]}, r"no file or folder .*one.gguf \(sources\[0\] in"),
        ({"sources": ["one+nowhere"]}, r"no file or folder .*nowhere \(sources\[0\] in"),
        ({"sources": ["one+lora+lora"]}, r"write it as model\+adapter \(sources\[0\] in recipe.yaml\)"),
        ({"sources": ["one+two+"]}, r"write it as model\+adapter \(sources\[0\] in"),
        ({"sources": ["base+two"]}, r"no LoRA adapter's folder.*\(sources\[0\] in"),
        ({"sources": ["package:no_pkg/f"]}, r"pip install.*\(sources\[0\] in"),
        ({"base": "lora"}, r"is a LoRA adapter: say adapter_of.*\(base in"),
        ({"base": "nowhere"}, r"nowhere \(base in recipe.yaml\)"),
        ({"sources": []}, r"at least 1 item.*\(sources in"),
        ({"method": "sce", "sources": ["one"]}, r"at least 2 sources.*\(sources in"),
        ({"tokenizer": "three"}, r"no tokenizer is called 'three'.*\(tokenizer in"),
        ({"slices": [{"base": [0, 2], "sources": [[0, 2]]}]}, r"of 1 sources for 2 sources.*\(slices\[0\].sources in"),
        ({"grid": {"weights": [1], "normalize": [True]}}, r"a grid is of one parameter, and here are 2.*\(grid in"),
        ({"grid": {"weights": [[1, 2]]}}, r"a grid's values are constants, not \[1, 2\].*\(grid in"),
        ({"grid": {"weights": [1, 1]}}, r"a value of 'weights' is written twice.*\(grid in"),
        ({"grid": {"weights": []}}, r"at least 1 item.*\(grid.weights in"),
        ({"grid": {"weights": [1]}, "params": {"weights": 2}}, r"'weights' is in params and in grid"),
        ({"grid": {"weights": [1, "x"]}}, r"'weights'.* is 'x'.*\(grid.weights\[1\] in"),
    ],
)
def test_a_mistake_is_named_in_the_recipes_own_places(load, changes, message):
    with pytest.raises(ConfigError, match=message):
        load({**OURS, **changes})


def test_a_mistake_that_every_value_of_a_grid_has_is_said_once(load):
    with pytest.raises(ConfigError) as caught:
        load({**OURS, "grid": {"weights": [1, 2]}, "params": {"nomralize": True}})
    assert len(str(caught.value).splitlines()) == 1


def test_a_grid_is_a_merge_a_value(load):
    experiment, grid = load({**OURS, "method": "sce", "grid": {"select_topk": [0.05, 0.1, 1]}}, whole=True)
    merges = experiment.fusion.merges
    assert [m.name for m in merges] == ["select_topk-0.05", "select_topk-0.1", "select_topk-1"]
    assert [m.params for m in merges] == [{"select_topk": value} for value in (0.05, 0.1, 1)]
    assert (grid.parameter, grid.values) == ("select_topk", (0.05, 0.1, 1))


def test_mergekits_yaml_is_read_with_what_there_is_to_say_of_it(load):
    experiment = load(THEIRS)
    [merge] = experiment.fusion.merges
    assert (merge.method, merge.base, merge.sources) == ("sce_mergekit", "base", ["one", "two"])
    assert (merge.params, merge.dtype, merge.tokenizer_of) == ({"select_topk": 0.1}, "bfloat16", "union")
    assert "sce_fusechat" in experiment.notes[0]


def test_mergekits_slices_and_adapters_are_read(load):
    recipe = {
        "slices": [
            {"sources": [{"model": "base", "layer_range": [0, 2]}]},
            {"sources": [{"model": "one+lora", "layer_range": [1, 3]}]},
        ],
        "merge_method": "passthrough",
        "tokenizer_source": "one+lora",
    }
    experiment = load(recipe)
    [merge] = experiment.fusion.merges
    assert merge.sources == ["base", "lora"]
    assert [(s.base, s.sources) for s in merge.slices] == [([0, 2], [[0, 2], None]), ([1, 3], [None, [1, 3]])]
    assert merge.tokenizer_of == "2"
    assert models(experiment)[1:] == [("one", "one", None), ("lora", "lora", "one")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"select_topk": 2}}, r"'select_topk' of .*'sce_mergekit' is 2.*\(parameters in recipe.yaml\)"),
        ({"base_model": "nowhere"}, r"nowhere \(base_model in recipe.yaml\)"),
        ({"models": [{"model": "one"}, {"model": "no"}]}, r"no \(models\[1\].model in recipe.yaml\)"),
        ({"models": [{"model": "one"}]}, r"at least 2 sources.*\(models in recipe.yaml\)"),
        ({"models": []}, r"exactly one of models and slices \(models in recipe.yaml\)"),
    ],
)
def test_a_mistake_in_mergekits_yaml_is_named_in_its_own_places(load, changes, message):
    with pytest.raises(ConfigError, match=message):
        load({**THEIRS, "tokenizer_source": "base", **changes})
