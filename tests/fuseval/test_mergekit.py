import pytest
import yaml

from fuseval.config import ConfigError
from fuseval.mergekit import translate
from fusion.methods import METHODS
from fusion.params import parameters
from fusion.recipe import Slice
from fusion.settings import check_settings, resolve


def read(text):
    return translate(yaml.safe_load(text), file="x.yaml")


def task(method, *, parameters="", own="", base="base_model: org/base"):
    """A file of two models, the base listed first, as most published ones are."""
    return f"""
models: [{{model: org/base}}, {{model: org/one{own}}}, {{model: org/two{own}}}]
merge_method: {method}
{base}
parameters: {{{parameters}}}
"""


def checked(recipe):
    """The recipe, which our own methods take."""
    for part in recipe.slices or (None,):
        taking = len(recipe.sources) if part is None else sum(one is not None for one in part.sources)
        check_settings(recipe.method, {**recipe.params, **(part.params if part else {})}, sources=taking)
    return recipe


# FuseChat's and FuseO1's published settings, in our own words.
FUSECHAT_V2 = {
    "linear": ("{weight: 0.2}", "", "linear", {"weights": [0.2] * 5, "normalize": True}),
    "task_arithmetic": (
        "{weight: 0.3}", "normalize: false", "task_arithmetic",
        {"weights": [0.3] * 5, "scale": 1.0, "normalize": False},
    ),
    "ties": (
        "{density: 0.6, weight: 0.2}", "normalize: true", "ties",
        {"weights": [0.2] * 5, "density": [0.6] * 5, "scale": 1.0, "normalize": True},
    ),
    "dare_linear": (
        "{density: 0.6, weight: 0.2}", "normalize: true", "dare_linear",
        {"weights": [0.2] * 5, "density": [0.6] * 5, "scale": 1.0, "normalize": True, "rescale": "l1"},
    ),
    "sce": ("{}", "select_topk: 0.1", "sce_mergekit", {"select_topk": 0.1}),
    "sce_fusechat": ("{}", "select_topk: 0.1", "sce_fusechat", {"select_topk": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("method", FUSECHAT_V2)
def test_fusechats_second_configs_load(method):
    each, shared, ours, params = FUSECHAT_V2[method]
    models = ["Mixtral", "SOLAR", "Starling", "InternLM", "Qwen"]
    listed = "\n".join(f"  - {{model: org/OpenChat-{name}, parameters: {each}}}" for name in models)
    base = "" if method == "linear" else "base_model: openchat/openchat_3.5"
    own = "" if method == "linear" else "  - model: openchat/openchat_3.5\n"
    recipe = checked(
        read(f"models:\n{own}{listed}\nmerge_method: {method}\n{base}\nparameters: {{{shared}}}\ndtype: bfloat16")
    )
    assert (recipe.method, recipe.params, recipe.dtype, recipe.tokenizer) == (ours, params, "bfloat16", "base")
    assert recipe.sources == tuple(f"org/OpenChat-{name}" for name in models)
    assert recipe.base == ("org/OpenChat-Mixtral" if method == "linear" else "openchat/openchat_3.5")


@pytest.mark.parametrize(
    ("base", "sources"),
    [
        ("Qwen/Qwen2.5-32B", ["Qwen/QwQ-32B-Preview", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"]),
        (
            "Qwen/Qwen2.5-32B",
            ["Qwen/QwQ-32B-Preview", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "NovaSky-AI/Sky-T1-32B-Flash"],
        ),
        (
            "Qwen/Qwen2.5-32B-Coder",
            ["Qwen/Qwen2.5-32B-Coder-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"],
        ),
    ],
)
def test_fuseo1s_configs_load_and_say_which_sce_they_were_made_by(base, sources):
    given = {
        "models": [{"model": name} for name in (base, *sources)],
        "merge_method": "sce",
        "base_model": base,
        "parameters": {"select_topk": 1.0},
        "dtype": "bfloat16",
    }
    recipe = checked(translate(given, file="x.yaml"))
    assert (recipe.method, recipe.base, recipe.sources) == ("sce_mergekit", base, tuple(sources))
    assert recipe.params == {"select_topk": 1.0}
    [notice] = recipe.notices
    assert "write merge_method: sce_fusechat" in notice
    recipe = translate({**given, "merge_method": "sce_fusechat"}, file="x.yaml")
    assert (recipe.method, recipe.notices) == ("sce_fusechat", ())


FUSECHAT_V1_SLERP = """
slices:
  - sources:
      - {model: org/openchat-mixtral, layer_range: [0, 32]}
      - {model: org/openchat-solar, layer_range: [0, 32]}
merge_method: slerp
base_model: org/openchat-mixtral
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: bfloat16
"""


def test_fusechats_first_slerp_loads_with_its_filters_and_gradients():
    recipe = checked(read(FUSECHAT_V1_SLERP))
    assert (recipe.method, recipe.base, recipe.sources) == ("slerp", "org/openchat-mixtral", ("org/openchat-solar",))
    assert recipe.slices == (Slice((0, 32), ((0, 32),)),)
    assert recipe.params == {
        "t": {"*self_attn*": [0, 0.5, 0.3, 0.7, 1], "*mlp*": [1, 0.5, 0.7, 0.3, 0], "*": 0.5},
    }


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear"])
def test_fusechats_first_configs_load(method):
    text = f"""
models:
  - {{model: org/pivot}}
  - {{model: org/mixtral, parameters: {{density: 0.5, weight: 0.25}}}}
  - {{model: org/solar, parameters: {{density: 0.5, weight: 0.5}}}}
merge_method: {method}
base_model: org/pivot
parameters: {{normalize: true, int8_mask: true}}
dtype: float16
"""
    recipe = checked(read(text))
    assert recipe.params["weights"] == [0.25, 0.5]
    assert recipe.params["normalize"] is True
    assert recipe.params.get("density", [0.5, 0.5]) == [0.5, 0.5]
    assert [note[:19] for note in recipe.notices] == (
        ["density is not used"] * 2 if method == "task_arithmetic" else []
    )


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("task_arithmetic", {"weights": [1, 1], "scale": 1.0, "normalize": False}),
        ("ties", {"weights": [1, 1], "density": [1.0, 1.0], "scale": 1.0, "normalize": True}),
        ("dare_ties", {"weights": [1, 1], "density": [1.0, 1.0], "scale": 1.0, "normalize": False, "rescale": "l1"}),
        (
            "della",
            {"weights": [1, 1], "density": [1.0, 1.0], "scale": 1.0, "normalize": True, "rescale": "l1",
             "epsilon": [0.15, 0.15]},
        ),
        (
            "breadcrumbs_ties",
            {"weights": [1, 1], "density": [1.0, 1.0], "scale": 1.0, "normalize": False, "gamma": [0.01, 0.01]},
        ),
        ("multislerp", {"weights": [1, 1], "normalize": True, "origin": "base"}),
        ("model_stock", {"filter_wise": False}),
        ("sce", {"select_topk": 1.0}),
        ("varm", {"granularity": "matrix"}),
    ],
)  # fmt: skip
def test_mergekits_defaults_are_written_out(method, params):
    weighted = "" if method in ("model_stock", "sce", "varm") else "weight: 1"
    assert read(task(method, parameters=weighted)).params == params


def test_names_and_values_are_ours():
    recipe = read(
        task("dare_ties", parameters="weight: 1, lambda: 0.5, rescale: false, normalize: true, density: '5e-1'")
    )
    assert recipe.params == {
        "weights": [1, 1], "scale": 0.5, "rescale": "none", "normalize": True, "density": [0.5, 0.5],
    }  # fmt: skip


def test_a_models_own_parameter_comes_before_the_global_one_and_filters_fall_through():
    text = """
models:
  - {model: a, parameters: {weight: [{filter: mlp, value: 1}]}}
  - {model: b, parameters: {weight: {filter: mlp, value: 2}}}
  - {model: c, parameters: {weight: []}}
merge_method: linear
parameters: {weight: [{filter: attn, value: 3}, {value: 4}, {filter: never, value: 5}]}
"""
    assert read(text).params["weights"] == [
        {"*mlp*": 1, "*attn*": 3, "*": 4},
        {"*mlp*": 2, "*attn*": 3, "*": 4},
        {"*attn*": 3, "*": 4},
    ]


def test_a_filter_without_a_match_ends_in_the_default_where_there_is_one():
    recipe = read(task("ties", parameters="weight: {filter: mlp, value: 1}, density: {filter: mlp, value: 0.5}"))
    assert recipe.params["density"] == [{"*mlp*": 0.5, "*": 1.0}] * 2
    assert recipe.params["weights"] == [{"*mlp*": 1}] * 2  # mergekit stops at other tensors, and so do we


def test_a_filter_is_plain_text():
    assert (
        read(task("ties", parameters="weight: [{filter: 'a[0]*', value: 1}, {value: 2}]")).params["weights"]
        == [{"*a[[]0][*]*": 1, "*": 2}] * 2
    )


def test_outside_the_layers_a_gradient_has_its_first_value_as_in_mergekit():
    recipe = checked(read(task("ties", parameters="weight: [0, 1], lambda: [1], density: [0.5, 0.5]")))
    known = {"ties": parameters(METHODS["ties"])}

    def weights(name, depth):
        return resolve("ties", recipe.params, name=name, depth=depth, sources=2, known=known)[1]["weights"]

    assert weights("model.layers.3.mlp.up_proj.weight", 0.25) == [0.25, 0.25]
    assert weights("model.norm.weight", 1.0) == weights("lm_head.weight", 1.0) == [0, 0]
    assert weights("model.embed_tokens.weight", 0.0) == [0, 0]
    assert recipe.params["scale"] == 1


def test_a_base_is_no_source_of_itself_wherever_it_is_listed():
    for listed in ("[{model: a}, {model: base}, {model: b}]", "[{model: a}, {model: b}]"):
        recipe = read(f"models: {listed}\nmerge_method: sce\nbase_model: base")
        assert (recipe.base, recipe.sources) == ("base", ("a", "b"))


def test_slerp_goes_from_the_base_whatever_the_order():
    for listed in ("[{model: a}, {model: base}]", "[{model: base}, {model: a}]", "[{model: a}]"):
        recipe = checked(read(f"models: {listed}\nmerge_method: slerp\nbase_model: base\nparameters: {{t: 0.25}}"))
        assert (recipe.base, recipe.sources, recipe.params) == ("base", ("a",), {"t": 0.25})


def test_linear_averages_its_base_in():
    recipe = read("models: [{model: a}]\nmerge_method: linear\nbase_model: base\nparameters: {weight: 1}")
    assert (recipe.base, recipe.sources, recipe.params["weights"]) == ("base", ("a", "base"), [1, 1])
    recipe = read("models: [{model: a, parameters: {weight: 2}}]\nmerge_method: linear")
    assert (recipe.base, recipe.sources) == ("a", ("a",))


def test_multislerp_without_a_base_is_around_zero():
    recipe = checked(read("models: [{model: a}, {model: b}]\nmerge_method: multislerp\nparameters: {weight: 1}"))
    assert (recipe.base, recipe.sources, recipe.params["origin"]) == ("a", ("a", "b"), "zero")


FRANKEN = """
slices:
  - sources: [{model: a, layer_range: [0, 16]}]
  - sources:
      - model: b
        layer_range: [8, 24]
        parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1}]}
merge_method: passthrough
"""


def test_slices_may_be_of_different_models():
    recipe = checked(read(FRANKEN))
    assert (recipe.base, recipe.sources, recipe.params) == ("a", ("a", "b"), {})
    assert recipe.slices == (
        Slice((0, 16), ((0, 16), None), {"scale": 1.0}),
        Slice((8, 24), (None, (8, 24)), {"scale": {"*o_proj*": 0.5, "*": 1}}),
    )


def test_slices_have_parameters_of_their_own_and_share_the_rest():
    text = """
slices:
  - sources: [{model: base, layer_range: [0, 4]}, {model: a, layer_range: [0, 4], parameters: {weight: 1}}]
    parameters: {lambda: [0, 1]}
  - sources: [{model: a, layer_range: [2, 6], parameters: {weight: 2}}, {model: base, layer_range: [4, 8]}]
merge_method: task_arithmetic
base_model: base
parameters: {lambda: 0.5}
"""
    recipe = checked(read(text))
    assert recipe.params == {"normalize": False}
    first, second = recipe.slices
    assert (first.base, first.sources, second.base, second.sources) == ((0, 4), ((0, 4),), (4, 8), ((2, 6),))
    assert second.params == {"weights": [2], "scale": 0.5}
    assert first.params == {"weights": [1], "scale": {"*{layer,layers,h,block,blocks}.[0-9]*": [0, 1], "*": 0}}


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("", "base"),
        ("tokenizer_source: base", "base"),
        ("tokenizer_source: union", "union"),
        ("tokenizer_source: org/two", "2"),
        ("tokenizer_source: org/base", "base"),
        ("tokenizer: {source: union}", "union"),
        ("tokenizer: {source: org/one}", "1"),
        ("tokenizer: {tokens: {}}", "union"),
        ("tokenizer: {pad_to_multiple_of: null}", "union"),
    ],
)
def test_the_tokenizers_source_is_read(written, read_as):
    assert read(task("sce") + written).tokenizer == read_as


@pytest.mark.parametrize(
    ("written", "dtype"),
    [
        ("", None),
        ("dtype: float16", "float16"),
        ("dtype: float32\nout_dtype: bfloat16", "bfloat16"),
        ("dtype: torch.bfloat16", "bfloat16"),
    ],
)
def test_the_dtype_that_is_written_is_out_dtype_or_dtype(written, dtype):
    assert read(task("sce") + written).dtype == dtype


def test_models_may_be_mappings():
    model = {"model": {"path": "org/a", "revision": "v1"}, "lora": {"path": "org/lora"}}
    given = {"models": [{"model": model}], "merge_method": "linear", "parameters": {"weight": 1}}
    assert translate(given, file="x.yaml").sources == ("org/a@v1+org/lora",)


def test_what_mergekit_does_not_use_and_we_do_not_apply_is_said():
    text = task("sce_mergekit", parameters="weight: 1, int8_mask: true", own=", parameters: {select_topk: 0.1}")
    template, *unused = read(text + "chat_template: chatml").notices
    assert "chat_template is not applied" in template
    assert unused == [
        "weight is not used by merge method sce_mergekit, in mergekit neither (parameters)",
        "select_topk is one for all models, and mergekit reads none under a single model (models[1].parameters)",
        "select_topk is one for all models, and mergekit reads none under a single model (models[2].parameters)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (task("karcher"), r"mergekit's 'karcher' is not among our methods, linear, .*\(merge_method in x.yaml\)"),
        (task("tie"), r"no merge method 'tie'; .*Did you mean 'ties'\? \(merge_method in"),
        (task("sce") + "modules: {}", r"modules are not read; .*\(modules in"),
        (task("sce") + "dytpe: float16", r"no 'dytpe' here; .*Did you mean 'dtype'\? \(dytpe in"),
        (task("sce") + "slices: [{}]", r"exactly one of models and slices \(models in"),
        (task("sce") + "dtype: float64", r"no dtype 'float64' here; there are float32, .*\(dtype in"),
        (task("sce", base=""), r"'sce' needs base_model.*\(base_model in"),
        (task("ties"), r"weight is missing.*\(models\[1\].parameters in"),
        (task("sce", parameters="topk: 1"), r"takes no 'topk'; it takes select_topk.*\(parameters.topk in"),
        (task("sce", parameters="select_topk: much"), r"'much' is not a number.*\(parameters.select_topk in"),
        (task("ties", parameters="weight: 1, rescale: true"), "'ties' has rescale false only, not true"),
        (task("ties", parameters="weight: 1, normalize: [true, false]"), r"a gradient is of numbers"),
        (task("ties", parameters="weight: [{value: 1, filtr: a}]"), r"keys filter and value.*\(parameters.weight\[0\]"),
        (task("slerp", parameters="t: 1"), r"'slerp' takes 1 model besides the base_model, and there are 2"),
        (task("slerp", parameters="", base="base_model: org/one"), "takes 1 model besides"),
        (task("sce", own=", weight: 1"), "no 'weight' here: what a model is given stands under its parameters"),
        ("models: [{model: a}, {model: a}]\nmerge_method: linear", r"'a' is listed twice.*\(models\[1\].model in"),
        ("models: [{model: base}]\nmerge_method: sce\nbase_model: base", "no model to merge onto the base_model"),
        (
            "models: [{model: a, parameters: {weight: 1}}]\nmerge_method: linear\nbase_model: base",
            r"averages the base_model in, and it has no weight; .* leave base_model out \(base_model in",
        ),
        ("models: [{model: a}]\nmerge_method: passthrough\nbase_model: b", "takes 1 model, the base_model counted"),
        ("base_model: a\ngate_mode: random\nexperts: []", r"recipe of mergekit-moe.*\(experts in"),
        (task("sce") + "tokenizer: {tokens: {x: {}}}", r"leave tokens out \(tokenizer.tokens in"),
        (task("sce") + "tokenizer: {pad_to_multiple_of: 64}", r"leave pad_to_multiple_of out"),
        (task("sce") + "tokenizer: {source: union}\ntokenizer_source: base", "not both"),
        (task("sce") + "tokenizer_source: org/three", r"'org/three' is none of the models; .*\(tokenizer_source in"),
        ("slices: [{sources: [{model: a, layer_range: [4, 2]}]}]\nmerge_method: passthrough", "layer_range is .4, 2"),
        ("slices: [{sources: [{model: a}]}]\nmerge_method: passthrough", r"layer_range is None.*\(slices\[0\].sources"),
        (
            "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]\n"
            "merge_method: sce\nbase_model: a",
            r"not the same number of layers.*\(slices\[0\] in",
        ),
        (
            "slices: [{sources: [{model: b, layer_range: [0, 3]}]}]\nmerge_method: sce\nbase_model: a",
            r"the base_model 'a' is not among its sources; add it \(slices\[0\] in",
        ),
        (
            "slices: [{sources: [{model: a, layer_range: [2, 4]}]}]\nmerge_method: passthrough\n"
            "parameters: {scale: [{filter: layers.3., value: 0}, {value: 1}]}",
            r"the filter 'layers.3.' of scale names a layer",
        ),
        ("models: [{model: {model: a, override_architecture: X}}]\nmerge_method: linear", "override_arch"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_key_its_place_and_the_next_step(text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)
