"""Our methods beside mergekit 0.1.5's, on real weights in float32: what is equal, and where and why something is not.

mergekit runs in an environment of its own, which pip makes once in the test cache; the tests are skipped where it
cannot. Its license is the LGPL's: it is called, and nothing of it is copied.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from string import Template

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from typer.testing import CliRunner

from fuseval.cli import app
from fusion.methods import METHODS

pytestmark = pytest.mark.slow
MERGEKIT = ("mergekit==0.1.5", "immutables")  # all else that it needs is ours too
NEAR = 1e-6
NOISE = {"half": 0.005, "one": 0.01, "two": 0.02}  # a fine-tune's distance, as a share of a tensor's deviation
LAYERS, HIDDEN, INNER, VOCAB = (0, 14, 29), 192, 384, 256


@dataclass
class Mergekit:
    """mergekit in a process that stays, since importing it takes ten seconds."""

    process: subprocess.Popen
    folder: Path
    number: count = field(default_factory=count)

    def order(self, **order: object) -> None:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        if (reply := self.process.stdout.readline().strip()) != "done":
            raise RuntimeError(reply or "mergekit's process ended")

    def merge(self, recipe: Path) -> Path:
        output = self.folder / f"merged-{next(self.number)}"
        self.order(recipe=str(recipe), output=str(output))
        return output

    def __call__(self, method: str, base: Tensor | None, tuned: list[Tensor], *, masks=(), **parameters) -> Tensor:
        """Merge one tensor; what is given per source is a list of one a source, and ``masks`` are what it draws."""
        given = self.folder / f"tensors-{next(self.number)}.safetensors"
        output = given.with_suffix(".merged")
        tensors = {
            f"{name}.{k}": t.clone() for name, ts in (("tuned", tuned), ("mask", masks)) for k, t in enumerate(ts)
        }
        save_file({"base": torch.zeros(1) if base is None else base, **tensors}, given)
        order = {"method": method, "parameters": parameters, "tensors": str(given), "output": str(output)}
        self.order(**order, with_base=base is not None)
        return load_file(output)["merged"]


@pytest.fixture(scope="module")
def mergekit(cache, tmp_path_factory):
    environment = cache / "mergekit-0.1.5"
    if not environment.exists():
        half = environment.with_suffix(".partial")
        shutil.rmtree(half, ignore_errors=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", half, *MERGEKIT]
        if (done := subprocess.run(install, capture_output=True, text=True)).returncode:
            line = f"pip install --no-deps --target {environment} {' '.join(MERGEKIT)}"
            pytest.skip(f"needs mergekit in a folder of its own, {line}; pip said: {done.stderr.strip()[-300:]}")
        half.rename(environment)
    folder = tmp_path_factory.mktemp("mergekit")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("mergekit_side.py")],
            env={**os.environ, "PYTHONPATH": str(environment), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:  # closes its input, at which it ends
            yield Mergekit(process, folder)


@pytest.fixture(scope="module")
def weights(smollm2) -> dict[str, Tensor]:
    """Three layers of SmolLM2-135M in float32, cropped: real values, small matrices."""
    cropped = {}
    with safe_open(smollm2 / "model.safetensors", "pt") as file:

        def crop(name: str, rows: int = HIDDEN, columns: int = HIDDEN, *, first: int = 0) -> Tensor:
            whole = file.get_slice(name)
            part = whole[first : first + rows, :columns] if len(whole.get_shape()) == 2 else whole[:rows]
            return part.float().contiguous()

        cropped["model.embed_tokens.weight"] = crop("model.embed_tokens.weight", VOCAB)
        for number, layer in enumerate(LAYERS):
            for name, rows, columns in (
                ("input_layernorm", HIDDEN, 0),
                ("self_attn.q_proj", HIDDEN, HIDDEN),
                ("self_attn.k_proj", 64, HIDDEN),
                ("self_attn.v_proj", 64, HIDDEN),
                ("self_attn.o_proj", HIDDEN, HIDDEN),
                ("post_attention_layernorm", HIDDEN, 0),
                ("mlp.up_proj", INNER, HIDDEN),
                ("mlp.gate_proj", INNER, HIDDEN),
                ("mlp.down_proj", HIDDEN, INNER),
            ):
                there = f"model.layers.{layer}.{name}.weight"
                cropped[f"model.layers.{number}.{name}.weight"] = crop(there, rows, columns)
        cropped["model.norm.weight"] = crop("model.norm.weight")
        cropped["lm_head.weight"] = crop("model.embed_tokens.weight", VOCAB, first=VOCAB)  # an untied model's
    return cropped


def tune(weights: dict[str, Tensor], share: float, seed: int) -> dict[str, Tensor]:
    """Return a fine-tune: a base with noise.  No two changes of a tensor are equally large, but zeros."""
    draw, tuned = torch.Generator().manual_seed(seed), {}
    for name, base in weights.items():
        changed = base + torch.randn(base.shape, generator=draw) * share * base.std()
        order = (changed - base).abs().flatten().sort()
        again = order.indices[1:][order.values.diff() == 0]
        changed.view(-1)[again] = base.view(-1)[again]
        tuned[name] = changed
    return tuned


@pytest.fixture(scope="module")
def folders(weights, tmp_path_factory) -> dict[str, Path]:
    """A base and three fine-tunes as checkpoint folders."""
    tuned = {name: tune(weights, share, seed) for seed, (name, share) in enumerate(NOISE.items())}
    folders = {}
    for name, tensors in {"base": weights, **tuned}.items():
        folder = folders[name] = tmp_path_factory.mktemp(name)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float32",
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": len(LAYERS),
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(config))
        words = {f"w{number}": number for number in range(VOCAB)}
        Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folders


MATRIX, NORM, EMBEDDING = "model.layers.1.mlp.down_proj.weight", "model.norm.weight", "model.embed_tokens.weight"


@pytest.fixture(params=[MATRIX, NORM, EMBEDDING])
def group(request, weights) -> tuple[Tensor, list[Tensor]]:
    """One tensor of the base and of three fine-tunes."""
    base = {request.param: weights[request.param]}
    return base[request.param], [tune(base, s, seed)[request.param] for seed, s in enumerate(NOISE.values())]


def distance(one: Tensor, other: Tensor) -> float:
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    return float((one.double() - other.double()).abs().max())


UNEQUAL = [0.5, 0.3, -0.4]

OURS = {"weight": "weights", "lambda": "scale"}  # what mergekit calls otherwise
SAME = [
    ("task_arithmetic", {"weight": UNEQUAL, "lambda": 0.7}),
    ("task_arithmetic", {"weight": [0.5, 0.3, 0.4]}),
    ("ties", {"weight": [0.2] * 3, "density": [0.6] * 3}),
    ("ties", {"weight": [0.5, 0.3, 0.4], "density": [0.1, 0.5, 1.0], "normalize": False, "lambda": 1.3}),
    ("ties", {"weight": UNEQUAL, "density": [0.33] * 3}),
    ("breadcrumbs", {"weight": UNEQUAL, "density": [0.7] * 3, "gamma": [0.05] * 3}),
    ("breadcrumbs", {"weight": [0.4] * 3, "density": [0.99] * 3, "gamma": [0.05] * 3}),
    ("breadcrumbs_ties", {"weight": [0.5, 0.3, 0.4], "density": [0.6] * 3, "gamma": [0.01] * 3}),
    ("multislerp", {"weight": [0.5, 0.3, 0.4]}),
    ("sce_mergekit", {"select_topk": 0.1}),
    ("sce_mergekit", {"select_topk": 0.6}),
    ("sce_mergekit", {}),
]


@pytest.mark.parametrize(("method", "parameters"), SAME)
def test_a_method_gives_what_mergekits_gives(mergekit, group, method, parameters):
    base, tuned = group
    ours = METHODS[method](base, tuned, **{OURS.get(name, name): value for name, value in parameters.items()})
    assert distance(ours, mergekit(method.partition("_merge")[0], base, tuned, **parameters)) <= NEAR


def test_with_all_selected_the_code_that_made_fusechat_gives_what_mergekit_gives(mergekit, weights):
    base = weights[MATRIX]  # changes large enough that mergekit does not weigh them equally
    tuned = [tune({MATRIX: base}, s, seed)[MATRIX] for seed, s in enumerate(NOISE.values())]
    ours = METHODS["sce_fusechat"](base, tuned, select_topk=1.0)
    assert distance(ours, mergekit("sce", base, tuned)) <= NEAR


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_gives_what_mergekits_gives(mergekit, group, normalize):
    base, tuned = group
    ours = METHODS["linear"](base, tuned, weights=UNEQUAL, normalize=normalize)
    assert distance(ours, mergekit("linear", None, tuned, weight=UNEQUAL, normalize=normalize)) <= NEAR


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_gives_what_mergekits_gives_for_near_and_for_far_models(mergekit, group, t):
    base, tuned = group
    for other in (tuned[2], base.flip(0), -base):
        assert distance(METHODS["slerp"](base, [other], t=t), mergekit("slerp", base, [other], t=t)) <= NEAR


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_gives_what_mergekits_gives(mergekit, group, filter_wise):
    base, tuned = group
    ours = METHODS["model_stock"](base, tuned, filter_wise=filter_wise)
    assert distance(ours, mergekit("model_stock", base, tuned, filter_wise=filter_wise)) <= NEAR


RANDOM = {
    "dare_linear": {"density": [0.6, 0.5, 0.9]},
    "dare_ties": {"density": [0.6, 0.5, 0.9]},
    "della_linear": {"density": [0.6, 0.5, 0.7], "epsilon": [0.2] * 3},
    "della": {"density": [0.6, 0.5, 0.7], "epsilon": [0.2] * 3},
}


def drawn(method: str, base: Tensor, tuned: list[Tensor], settings: dict) -> list[Tensor]:
    """Return the masks that a method draws: with a base of 0 and the weight of one source, what is merged is 1·mask."""
    deltas = [source - base for source in tuned]
    masks = []
    for k in range(len(tuned)):
        alone = [float(j == k) for j in range(len(tuned))]
        draw = torch.Generator().manual_seed(1)
        linear = {"dare_ties": "dare_linear", "della": "della_linear"}.get(method, method)
        merged = METHODS[linear](
            torch.zeros_like(base), deltas, weights=alone, **settings, rescale="none", generator=draw
        )
        masks.append(((merged != 0) | (deltas[k] == 0)).float())
    return masks


@pytest.mark.parametrize("method", RANDOM)
def test_a_method_that_draws_gives_what_mergekits_gives_for_the_same_draw(mergekit, group, method):
    base, tuned = group
    settings, weights = RANDOM[method], [0.5, 0.3, 0.4]
    masks = drawn(method, base, tuned, settings)
    draw = torch.Generator().manual_seed(1)
    ours = METHODS[method](base, tuned, weights=weights, **settings, rescale="l1", generator=draw)
    assert distance(ours, mergekit(method, base, tuned, masks=masks, weight=weights, **settings)) <= NEAR


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_a_method_that_draws_keeps_the_density(weights, method):
    base = weights[MATRIX]
    tuned = [tune({MATRIX: base}, 1.0, seed)[MATRIX] for seed in range(3)]  # so far that hardly two changes are equal
    masks = drawn(method, base, tuned, RANDOM[method])
    for mask, density in zip(masks, RANDOM[method]["density"], strict=True):
        assert abs(float(mask.mean()) - density) < 5 * (density * (1 - density) / mask.numel()) ** 0.5


def test_della_keeps_large_changes_more_often_by_twice_epsilon(weights):
    base = weights[MATRIX]
    tuned = [tune({MATRIX: base}, 1.0, seed)[MATRIX] for seed in range(3)]  # so far that hardly two changes are equal
    rows, columns = base.shape
    [mask, *_] = drawn("della_linear", base, tuned, RANDOM["della"])
    ranked = mask.gather(1, (tuned[0] - base).abs().argsort(dim=1))  # each row from its smallest change to its largest
    thirds = [float(part.mean()) for part in ranked.split(columns // 3, dim=1)]
    for third, chance in zip(thirds, (0.6 - 0.4 / 3, 0.6, 0.6 + 0.4 / 3), strict=True):
        assert abs(third - chance) < 5 * 0.5 / (rows * columns / 3) ** 0.5


RECIPES = {
    "linear with gradients, filters and a base that is one of the models": """
        merge_method: linear
        models:
          - {model: $base, parameters: {weight: 0.5}}
          - model: $one
            parameters:
              weight: [{filter: mlp, value: [0, 1]}, {filter: self_attn, value: [1, 0.2, 0.4]}, {value: 0.3}]
          - {model: $two, parameters: {weight: [{filter: layers.1., value: 2}, {filter: norm, value: -0.2}]}}
        parameters: {weight: [1, 3], normalize: true}
        dtype: float32
        """,
    "slerp by FuseChat's gradients": """
        merge_method: slerp
        base_model: $base
        slices:
          - sources: [{model: $base, layer_range: [0, 3]}, {model: $two, layer_range: [0, 3]}]
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - value: 0.5
        dtype: float32
        """,
    "task arithmetic with a base that is one of the models": """
        merge_method: task_arithmetic
        base_model: $base
        models:
          - {model: $one, parameters: {weight: 0.3}}
          - {model: $base, parameters: {weight: 5}}
          - {model: $two, parameters: {weight: [0.1, 0.6]}}
        parameters: {lambda: [0.5, 1.5], normalize: true}
        dtype: float32
        """,
    "ties with parameters of the model before those of the merge": """
        merge_method: ties
        base_model: $base
        models:
          - {model: $half, parameters: {density: [0.9, 0.2]}}
          - {model: $one, parameters: {weight: 0.7, density: [{filter: attn, value: 0.35}]}}
          - {model: $two}
        parameters: {weight: 0.4, density: [{filter: mlp, value: 0.55}, {filter: "*", value: 0.8}], int8_mask: true}
        dtype: float32
        """,
    "breadcrumbs": """
        merge_method: breadcrumbs_ties
        base_model: $base
        models:
          - {model: $one, parameters: {weight: 0.7, density: 0.8, gamma: 0.02}}
          - {model: $two, parameters: {weight: 0.4}}
        parameters: {density: 0.5}
        dtype: float32
        """,
    "multislerp": """
        merge_method: multislerp
        base_model: $base
        models: [{model: $half}, {model: $one}, {model: $two, parameters: {weight: 2}}]
        parameters: {weight: 1}
        dtype: float32
        """,
    "model stock": """
        merge_method: model_stock
        base_model: $base
        models: [{model: $half}, {model: $one}, {model: $two}]
        parameters: {filter_wise: true}
        dtype: float32
        """,
    "sce over depth": """
        merge_method: sce
        base_model: $base
        models: [{model: $half}, {model: $one}, {model: $two}]
        parameters: {select_topk: [0.1, 0.5, 0.9]}
        dtype: float32
        """,
    "layers of two models, one after another": """
        merge_method: passthrough
        slices:
          - sources: [{model: $one, layer_range: [0, 2]}]
          - sources:
              - model: $two
                layer_range: [1, 3]
                parameters: {scale: [{filter: o_proj, value: 0.5}, {filter: down_proj, value: 0.25}, {value: 1.0}]}
        dtype: float32
        """,
    "slices with parameters of their own": """
        merge_method: task_arithmetic
        base_model: $base
        slices:
          - sources:
              - {model: $base, layer_range: [0, 2]}
              - {model: $one, layer_range: [1, 3], parameters: {weight: [{filter: mlp, value: 0.9}]}}
            parameters: {weight: 0.2, lambda: 0.5}
          - sources:
              - {model: $base, layer_range: [2, 3]}
              - {model: $two, layer_range: [0, 1]}
        parameters: {weight: [0.6, 0.8]}
        dtype: float32
        """,
    "linear with a base_model that is averaged too": """
        merge_method: linear
        base_model: $base
        models: [{model: $one}, {model: $two, parameters: {weight: 3}}]
        parameters: {weight: 1}
        dtype: float32
        """,
    "dare that drops nothing by default": """
        merge_method: dare_ties
        base_model: $base
        models: [{model: $one}, {model: $two, parameters: {weight: -0.3}}]
        parameters: {weight: 0.6}
        dtype: float32
        """,
    "della that drops nothing by default": """
        merge_method: della
        base_model: $base
        models: [{model: $half}, {model: $one}, {model: $two}]
        parameters: {weight: 0.6, lambda: 1.1}
        dtype: float32
        """,
    "half precision out of single precision": """
        merge_method: task_arithmetic
        base_model: $base
        models: [{model: $one, parameters: {weight: 0.5}}, {model: $two, parameters: {weight: "5e-1"}}]
        dtype: float32
        out_dtype: bfloat16
        """,
}


def by_fuseval(recipe: Path, folder: Path) -> Path:
    output = folder / "ours"
    done = CliRunner(env={"FUSEVAL_CACHE": str(folder / "cache")}).invoke(
        app, ["merge", str(recipe), "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    return output


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_mergekits_own_recipe_gives_what_mergekit_gives(mergekit, folders, tmp_path, recipe):
    file = tmp_path / "recipe.yaml"
    file.write_text(Template(RECIPES[recipe]).substitute(folders))
    output = by_fuseval(file, tmp_path)
    ours, theirs = tensors(output), tensors(mergekit.merge(file))
    assert ours.keys() == theirs.keys()
    config = json.loads((output / "config.json").read_text())
    assert config["num_hidden_layers"] == len({name.split(".")[2] for name in ours if ".layers." in name})
    for name, tensor in ours.items():
        rounding = 2**-8 * float(tensor.abs().max()) if tensor.dtype == torch.bfloat16 else 0.0
        assert distance(tensor, theirs[name]) <= NEAR + rounding, name


def widened(folder: Path, into: Path, tokens: list[str], seed: int) -> Path:
    """Copy a checkpoint, with tokens added to its vocabulary."""
    shutil.copytree(folder, into)
    tokenizer = Tokenizer.from_file(str(into / "tokenizer.json"))
    tokenizer.add_tokens(tokens)
    tokenizer.save(str(into / "tokenizer.json"))
    weights, draw = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.randn(len(tokens), HIDDEN, generator=draw)])
    save_file(weights, into / "model.safetensors", {"format": "pt"})
    config = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**config, "vocab_size": VOCAB + len(tokens)}))
    return into


def test_a_union_of_vocabularies_gives_every_token_the_row_that_mergekit_gives_it(mergekit, folders, tmp_path):
    one = widened(folders["one"], tmp_path / "one", ["<a>", "<b>"], seed=1)
    two = widened(folders["two"], tmp_path / "two", ["<b>", "<c>"], seed=2)
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"{{merge_method: task_arithmetic, base_model: {folders['base']}, models: [{{model: {one}}}, {{model: {two}}}],"
        " parameters: {weight: 0.4}, dtype: float32, tokenizer_source: union}"
    )
    ours, theirs = by_fuseval(file, tmp_path), mergekit.merge(file)
    ids = [Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (ours, theirs)]
    assert ids[0].keys() == ids[1].keys() and {"<a>", "<b>", "<c>", "w7"} <= ids[0].keys()
    rows = [torch.tensor([known[token] for token in sorted(ids[0])]) for known in ids]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert distance(tensors(ours)[name][rows[0]], tensors(theirs)[name][rows[1]]) <= NEAR


# ---- Where mergekit differs, and why.


def test_bfloat16_mergekit_computes_in_bfloat16_and_we_round_once(mergekit, weights):
    base = weights[MATRIX].bfloat16()
    tuned = [tune({MATRIX: weights[MATRIX]}, s, seed)[MATRIX].bfloat16() for seed, s in enumerate(NOISE.values())]
    exact = base.double() + sum(w * (x.double() - base.double()) for w, x in zip(UNEQUAL, tuned, strict=True))
    ours = METHODS["task_arithmetic"](base, tuned, weights=UNEQUAL)
    theirs = mergekit("task_arithmetic", base, tuned, weight=UNEQUAL)
    assert float((ours == exact.bfloat16()).double().mean()) > 0.999
    assert float((theirs == exact.bfloat16()).double().mean()) < 0.999
    assert distance(ours, exact.to(ours)) <= distance(theirs, exact.to(theirs))


def test_light_fine_tunes_mergekits_sce_weighs_equally_and_the_papers_by_their_energy(mergekit, weights):
    base = 0.1 * weights[MATRIX]  # changes so small
    tuned = [tune({MATRIX: base}, s, seed)[MATRIX] for seed, s in enumerate(NOISE.values())]
    told = {}
    paper = METHODS["sce"](base, tuned, select_topk=0.1, tell=lambda name, values: told.setdefault(name, list(values)))
    equal = METHODS["sce_mergekit"](
        base, tuned, select_topk=0.1, tell=lambda name, values: told.setdefault(f"mergekit's {name}", list(values))
    )
    assert told["mergekit's eta"] == pytest.approx([1 / 3] * 3)
    assert all(one < other for one, other in pairwise(told["eta"])) and told["eta"][2] > 0.7
    assert distance(equal, mergekit("sce", base, tuned, select_topk=0.1)) <= NEAR
    assert distance(paper, mergekit("sce", base, tuned, select_topk=0.1)) > 10 * NEAR


def test_what_no_source_changed_keeps_its_bits_with_us_and_is_rounded_with_mergekit(mergekit, weights):
    base = weights[MATRIX]
    ours = METHODS["linear"](base, [base, base, base], weights=[0.2, 0.3, 0.6])
    theirs = mergekit("linear", None, [base, base, base], weight=[0.2, 0.3, 0.6])
    assert torch.equal(ours, base)
    assert not torch.equal(theirs, base) and distance(theirs, base) <= NEAR


def test_of_equal_changes_we_keep_the_first_and_mergekit_any(mergekit):
    base, changed = torch.zeros(4000), torch.ones(4000)
    ours = METHODS["ties"](base, [changed, changed], weights=[1.0, 1.0], density=0.25)
    theirs = mergekit("ties", base, [changed, changed], weight=[1.0, 1.0], density=[0.25, 0.25])
    assert ours.nonzero().flatten().tolist() == list(range(1000))
    assert int(theirs.count_nonzero()) == 1000


def test_small_changes_mergekits_model_stock_takes_for_orthogonal(mergekit):
    # It divides by at least 1e-6, and the product of two norms may be less: what is small looks as if unrelated.
    base, step = torch.zeros(100), torch.full((100,), 3e-5)
    assert distance(METHODS["model_stock"](base, [step, step]), step) <= 1e-9  # both changed alike: both are right
    assert float(mergekit("model_stock", base, [step, step]).max()) < 0.5 * float(step.max())
