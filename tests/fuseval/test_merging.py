import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fuseval.config import load_experiment
from fuseval.merge_file import load_merge
from fuseval.merging import mean_coefficients, merge_recipe
from fuseval.models import make, merge_coefficients, resolve

Q = "model.layers.0.q_proj.weight"


def watch(*_):
    """Watch nothing."""


@pytest.fixture
def place(tmp_path):
    """A folder with three checkpoints and a LoRA adapter that adds 8 to one tensor."""
    for name, value in (("base", 0.0), ("one", 1.0), ("two", 3.0)):
        (tmp_path / name).mkdir()
        tensors = {Q: torch.full((2, 2), value), "norm": torch.full((2,), value)}
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
    lora = tmp_path / "lora"
    lora.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    parts = {f"base_model.model.{Q.replace('weight', f'lora_{side}.weight')}": 2.0 for side in "AB"}
    shapes = {name: (1, 2) if "lora_A" in name else (2, 1) for name in parts}
    save_file({k: torch.full(shapes[k], v) for k, v in parts.items()}, lora / "adapter_model.safetensors")
    return tmp_path


def merge(place, recipe):
    """Merge what a recipe file says; return all models and those that were merged."""
    file = place / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    experiment, grid = load_merge(file, name="merged")
    models = merge_recipe(experiment, grid, place / "out", beside=place, cache=place / "cache", watch=watch)
    return models, [models[m.name] for m in experiment.fusion.merges]


def candidates(place, *merges, **changes):
    models = [{"name": name, "path": name} for name in ("base", "one", "two")]
    models.append({"name": "lora", "path": "lora", "adapter_of": "base"})
    given = {"models": models, "fusion": {"merges": list(merges)}, "benchmarks": ["starter"], **changes}
    file = place / "run.yaml"
    file.write_text(yaml.safe_dump({**given, "checkpoints": str(place / "made")}, sort_keys=False))
    return resolve(load_experiment(file), beside=place, cache=place / "cache")


def soup(**changes):
    return {"name": "m", "method": "linear", "base": "base", "sources": ["one", "two"], **changes}


def test_an_adapter_of_the_base_is_merged_as_it_is_and_one_of_another_model_is_laid_over_it_first(place):
    _, [merged] = merge(place, {"method": "linear", "base": "base", "sources": ["lora", "two+lora"]})
    found = load_file(merged.folder / "model.safetensors")
    assert found[Q].tolist() == [[(8 + 11) / 2] * 2] * 2
    assert found["norm"].tolist() == [1.5, 1.5]
    assert len(list((place / "cache" / "adapters").iterdir())) == 1


def test_an_adapter_that_is_evaluated_is_laid_over_its_base_once(place):
    models = candidates(place)
    make(models["lora"], models, watch=watch)
    assert load_file(models["lora"].folder / "model.safetensors")[Q].tolist() == [[8, 8], [8, 8]]
    assert json.loads((models["lora"].folder / "recipe.json").read_text())["method"] == "passthrough"


def test_the_means_of_a_merges_coefficients_are_over_its_tensors(place):
    _, merged = merge(place, {"method": "sce", "base": "base", "sources": ["one", "two"], "grid": {"select_topk": [1]}})
    rows = {(row["coefficient"], row["source"]): row["mean"] for row in mean_coefficients(merged)}
    assert rows == {("eta", "one"): 0.1, ("eta", "two"): 0.9, ("selected", "all together"): 1.0}
    assert {row["merge"] for row in mean_coefficients(merged)} == {"select_topk-1"}


def test_coefficients_are_records_of_the_merge_with_their_sources_identities(place):
    models, [merged] = merge(place, {"method": "varm", "base": "base", "sources": ["one", "two"]})
    found = {(c.model, c.tensor, c.source, c.name): c.value for c in merge_coefficients(merged)}
    assert found[merged.id, Q, models["two"].id, "weight"] == 0.9
    assert len(found) == 4
    assert merge_coefficients(models["one"]) == ()


def test_a_recipe_says_of_what_it_is_by_the_inputs_hashes_and_holds_no_path(place):
    models, [merged] = merge(place, {"method": "linear", "base": "base", "sources": ["one", "two"]})
    text = (merged.folder / "recipe.json").read_text()
    told = json.loads(text)
    assert told["base"] == {"base": models["base"].id}
    assert told["sources"] == {name: models[name].id for name in ("one", "two")}
    assert str(place) not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "varm"},
        {"params": {"weights": [1, 2]}},
        {"params": {"weights": {"*q*": 1, "*": 2}}},
        {"sources": ["two", "one"]},
        {"dtype": "bfloat16"},
        {"seed": 1},
        {"tokenizer": "union"},
        {"slices": [{"base": [0, 1], "sources": [[0, 1], [0, 1]]}]},
    ],
    ids=str,
)
def test_whatever_a_recipe_says_makes_another_model(place, changes):
    assert candidates(place, soup())["m"].id != candidates(place, soup(**changes))["m"].id


def test_the_order_of_globs_counts_and_the_name_does_not(place):
    first = {"params": {"weights": {"*q*": 1, "*.layers.*": 2, "*": 3}}}
    second = {"params": {"weights": {"*.layers.*": 2, "*q*": 1, "*": 3}}}
    assert candidates(place, soup(**first))["m"].id != candidates(place, soup(**second))["m"].id
    assert candidates(place, soup(**first))["m"].id == candidates(place, soup(**first, name="n"))["n"].id


def test_a_tokenizer_is_the_same_by_name_and_by_number(place):
    by_name, by_number = (candidates(place, soup(tokenizer=given))["m"].id for given in ("two", 2))
    assert by_name == by_number


@pytest.mark.parametrize("name", ["merge", "merge-grid"])
def test_the_examples_merge_models_that_are_where_they_say(place, name):
    for example, model in (("base", "base"), ("chat", "one"), ("math", "two")):
        shutil.copytree(place / model, place / "models" / example)
    recipe = (Path(__file__).parents[2] / "examples" / f"{name}.yaml").read_text(encoding="utf-8")
    _, merged = merge(place, yaml.safe_load(recipe))
    assert len(merged) == (4 if name == "merge-grid" else 1)
    assert all(mean_coefficients(merged))
