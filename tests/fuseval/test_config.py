from pathlib import Path

import pytest
import yaml

from fuseval.config import ConfigError, load_experiment, locate
from fuseval.experiment import Merge

SMALL = {
    "models": [{"name": "base", "path": "base"}, {"name": "tuned", "path": "tuned"}],
    "benchmarks": ["starter"],
}


@pytest.fixture
def write(tmp_path):
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    (tmp_path / "talk.jsonl").write_text("")

    def write(**changes):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))  # the order of globs counts
        return file

    return write


def merge(**changes):
    return {"merges": [{"name": "m", "method": "linear", "base": "base", "sources": ["tuned"], **changes}]}


def endpoint(**changes):
    return {"name": "x", "endpoint": {"model": "m", "base_url": "http://a/v1", **changes}}


def panel(**changes):
    return {"judges": [{"model": "base"}], "panels": [{"name": "jury", "judges": ["base"], **changes}]}


@pytest.mark.parametrize("given", ["20 USD", "$20", "20.0", 20, "20usd"])
def test_a_budget_is_written_as_people_write_dollars(write, given):
    assert load_experiment(write(budget=given)).budget == 20.0


def test_the_demo_file_is_valid_and_the_example_is_the_same_file():
    root = Path(__file__).parents[2]
    experiment = load_experiment(root / "examples" / "demo.yaml")
    assert [m.method for m in experiment.fusion.merges] == ["linear", "sce"]
    assert (root / "examples" / "demo.yaml").samefile(root / "fuseval" / "demo" / "demo.yaml")


@pytest.mark.parametrize("name", ["fusechat-7b-v2", "fusellm"])
def test_recipes_of_published_models_are_valid(name):
    experiment = load_experiment(Path(__file__).parents[2] / "examples" / f"{name}.yaml")
    assert {target.kind for target in experiment.fusion.targets} == {"explicit"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmrks": ["starter"]}, "there is no 'benchmrks' here; .* Did you mean 'benchmarks'\\? \\(benchmrks in"),
        ({"benchmarks": ["startr"]}, "no benchmark 'startr'; .* Did you mean 'starter'\\? \\(benchmarks\\[0\\] in"),
        ({"benchmarks": [{"name": "starter", "limit": 0}]}, "equal to 1, not 0 \\(benchmarks\\[0\\].limit"),
        ({"seed": True}, "valid integer, not True \\(seed in"),
        ({"sampling": {"temperature": "5e-1"}}, "YAML reads 5e-1 as text, write 5.0e-1 \\(sampling.temperature in"),
        ({"benchmarks": ["starter", "starter@1"]}, "'starter@1' is used twice \\(benchmarks\\[1\\]"),
        ({"report": "."}, "'.' is a folder: name a file in it \\(report in"),
        ({"models": [{"name": "x", "endpoint": {"model": "m", "base_url": "localhost:8000"}}]}, "must begin with http"),
        ({"models": [{"name": "x", "pth": "base"}]}, "there is no 'pth' here; .*mean 'path'\\? \\(models\\[0\\].pth"),
        ({"seed": "soon"}, "valid integer.*, not 'soon' \\(seed in run.yaml\\)"),
        ({"models": [{"name": "x", "path": "nowhere"}]}, "no file or folder .*nowhere \\(models\\[0\\].path in"),
        ({"models": [{"name": "x"}]}, "model 'x' needs exactly one of path, hub and endpoint \\(models\\[0\\] in"),
        ({"models": [{"name": "../x", "path": "base"}]}, "not '../x' \\(models\\[0\\].name in run.yaml"),
        ({"models": [*SMALL["models"], SMALL["models"][0]]}, "'base' is used twice \\(models\\[2\\].name"),
        ({"budget": "20 EUR"}, "budget '20 EUR' is no sum of dollars: write 20 USD \\(budget in"),
        ({"budget": 0}, "greater than 0, not 0.0 \\(budget in"),
        ({"models": [endpoint(replicas=["host:8000"])]}, "replicas: 'host:8000' must begin with http"),
        ({"models": [endpoint(base_url=None, replicas=["http://b/v1"])]}, "give base_url too"),
        ({"models": [endpoint(replicas=["http://b/v1"], mode="batch")]}, "a batch goes to one server"),
        (panel(judges=["tuned"]), "no judge is called 'tuned' here; there are base. \\(panels\\[0\\] in"),
        (panel(name="base"), "the name 'base' is used twice \\(panels\\[0\\].name"),
        (panel(how="weighted"), "weights go with how='weighted', and only there \\(panels\\[0\\] in"),
        (panel(how="weighted", weights={"base": 0}), "each is a number above 0"),
        (panel(how="by_category"), "they go with how='by_category', only"),
        (panel(weights={"base": 1.0}), "weights go with how='weighted', and only there"),
        (panel(quorum=2), "quorum of 2: it is from 1 to 1"),
        ({"prices": "nowhere.yaml"}, "no file or folder .*nowhere.yaml \\(prices in"),
        ({"models": [endpoint(tokenizer="nowhere")]}, "no file .*tokenizer.json \\(models\\[0\\].endpoint.tokenizer"),
        ({"baseline": "bse"}, "no model is called 'bse' here; .* Did you mean 'base'\\? \\(baseline in"),
        ({"judges": [{"model": "gpt"}]}, "no model is called 'gpt'.*\\(judges\\[0\\].model"),
        ({"fusion": merge(method="tie")}, "tie.*\\(fusion.merges\\[0\\].* in run.yaml"),
        ({"fusion": merge(params={"wieghts": [1]})}, "'wieghts'.*mean 'weights'\\? \\(fusion.merges\\[0\\].params in"),
        ({"fusion": merge(params={"weights": [1, 2]})}, "weights.*\\(fusion.merges\\[0\\].params in"),
        ({"fusion": merge(sources=["tunde"])}, "Did you mean 'tuned'\\? \\(fusion.merges\\[0\\].sources\\[0\\]"),
        (
            {"fusion": {"targets": [{"name": "t", "kind": "sft", "base": "base", "data": "talk.jsonl",
                                     "params": {"learning_rat": 1}}]}},
            "takes no 'learning_rat'.*Did you mean 'learning_rate'\\? \\(fusion.targets\\[0\\].params in",
        ),
        (
            {"models": [{"name": "gpt", "endpoint": {"model": "g"}}], "fusion": merge(base="gpt", sources=["gpt"])},
            "'gpt' is an endpoint: its weights are not here",
        ),
        ({"fusion": merge(method={"*": "linaer"})}, "mean 'linear'\\? \\(fusion.merges\\[0\\].method in"),
        ({"fusion": merge(method="sce")}, "at least 2 sources.*\\(fusion.merges\\[0\\].sources in"),
        ({"fusion": merge(params={"weights": {"*.{3..1}.*": 1}})}, "goes down.*\\(fusion.merges\\[0\\].params in"),
        ({"fusion": merge(tokenizer="tunde")}, "'tunde'; .*mean 'tuned'\\? \\(fusion.merges\\[0\\].tokenizer in"),
        ({"fusion": merge(tokenizer=2)}, "there is no source 2; there are 1.*\\(fusion.merges\\[0\\].tokenizer in"),
        ({"fusion": merge(seed=-1)}, "0, not -1 \\(fusion.merges\\[0\\].seed in"),
        ({"fusion": merge(slices=[{"base": [0, 4], "sources": [[0, 3]]}])}, "same number of layers.*slices\\[0\\] in"),
        ({"fusion": merge(slices=[{"base": [4, 4], "sources": [[0, 0]]}])}, "like \\[0, 16\\].*slices\\[0\\] in"),
        ({"fusion": merge(slices=[{"base": [0, 4], "sources": [None]}])}, "that is not null.*slices\\[0\\] in"),
        ({"fusion": merge(slices=[{"base": [0], "sources": [[0]]}])}, "at least 2 items.*slices\\[0\\].base in"),
        ({"fusion": merge(slices=[{"base": [0, 1], "sources": [[0, 1], None]}])}, "null.*slices\\[0\\].sources in"),
        (
            {"fusion": merge(slices=[{"base": [0, 1], "sources": [[0, 1]], "params": {"wieghts": 1}}])},
            "'wieghts'.*\\(fusion.merges\\[0\\].slices\\[0\\].params in",
        ),
        ({"models": [{"name": "x", "path": "base", "adapter_of": "y"}]}, "none before it.*models\\[0\\].adapter_of"),
        (
            {"models": [*SMALL["models"], {"name": "x", "path": "tuned", "adapter_of": "base"}]},
            "tuned is no LoRA adapter's folder.*leave adapter_of out \\(models\\[2\\].adapter_of in",
        ),
        ({"models": [{"name": "x", "path": "lora"}]}, "is a LoRA adapter: say adapter_of.*models\\[0\\].path"),
        (
            {"models": [SMALL["models"][0], {"name": "x", "path": "lora", "adapter_of": "base"},
                        {"name": "y", "path": "lora", "adapter_of": "x"}]},
            "'x' is an adapter itself; name the model under it \\(models\\[2\\].adapter_of in",
        ),
        (
            {"models": [{"name": "x", "adapter_of": "y", "endpoint": {"model": "m"}}]},
            "'x' is an endpoint and cannot be an adapter",
        ),
        ({"models": [{"name": "x", "path": "package:no_pkg/f.gguf"}]}, "'no_pkg' .* not installed: pip install"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_value_its_place_and_the_next_step(write, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment(write(**changes))


@pytest.mark.parametrize(
    "endpoint",
    [
        {"model": "m", "api_key_env": "sk-proj-REAL"},
        {"model": "m", "base_url": "http://me:sk-proj-REAL@host/v1"},
    ],
)
def test_a_key_written_where_it_does_not_belong_is_refused_and_not_repeated(write, endpoint):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(models=[{"name": "x", "endpoint": endpoint}]))
    assert "environment variable" in str(caught.value)
    assert "REAL" not in str(caught.value)


def test_a_key_that_is_written_twice_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("judges: [{model: a}]\njudges: []\n")
    with pytest.raises(ConfigError, match="'judges' is written twice"):
        load_experiment(tmp_path / "x.yaml")


def test_every_mistake_is_named_at_once(write):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(baseline="x", benchmarks=["y"]))
    assert len(str(caught.value).splitlines()) == 2


def test_a_merge_may_only_use_what_stands_before_it(write):
    first = {"name": "a", "method": "linear", "base": "base", "sources": ["b"]}
    second = {"name": "b", "method": "linear", "base": "base", "sources": ["tuned"]}
    with pytest.raises(ConfigError, match="no model is called 'b'"):
        load_experiment(write(fusion={"merges": [first, second]}))


def test_a_file_that_is_missing_or_no_mapping_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no experiment file"):
        load_experiment(tmp_path / "no.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="no mapping"):
        load_experiment(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_experiment(tmp_path / "bad.yaml")


def test_yaml_cannot_make_python_objects(tmp_path):
    (tmp_path / "x.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_experiment(tmp_path / "x.yaml")


def test_a_package_file_is_found_without_importing_the_package(tmp_path):
    assert locate("package:fuseval/demo/demo.yaml", beside=tmp_path).is_file()


def test_a_merge_takes_settings_a_tokenizer_slices_and_a_seed(write):
    settings = {
        "method": {"*embed*": "linear", "*": "ties"},
        "params": {"weights": [[0, 1]], "density": {"*.layers.{0..3}.*": [[0.2, 0.8]], "*": 0.5}},
        "tokenizer": "tuned",
        "slices": [
            {"base": [0, 4], "sources": [[4, 8]], "params": {"scale": 0.5}},
            {"base": [4, 6], "sources": [[0, 2]]},
        ],
        "seed": 7,
    }
    [found] = load_experiment(write(fusion=merge(**settings))).fusion.merges
    assert found.model_dump(include={"method", "params", "tokenizer", "seed"}) == {
        key: settings[key] for key in ("method", "params", "tokenizer", "seed")
    }
    assert [(s.base, s.sources, s.params) for s in found.slices] == [
        ([0, 4], [[4, 8]], {"scale": 0.5}), ([4, 6], [[0, 2]], {}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "whose"),
    [("base", "base"), ("union", "union"), ("origin", "base"), ("b", "2"), (1, "1"), ("2", "2")],
)
def test_a_merges_tokenizer_is_the_bases_a_union_or_a_sources_by_name_or_number(given, whose):
    merge = {"name": "m", "method": "linear", "base": "origin", "sources": ["a", "b"], "tokenizer": given}
    assert Merge.model_validate(merge).tokenizer_of == whose


def test_an_adapter_is_a_model_of_the_experiment(write):
    models = [*SMALL["models"], {"name": "lora", "path": "lora", "adapter_of": "base"}]
    assert load_experiment(write(models=models, fusion=merge(sources=["lora"]))).models[2].adapter_of == "base"
