import json
import pickle
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion.checkpoints import Checkpoint
from fusion.errors import CheckpointError
from fusion.lora import Adapted, is_adapter
from fusion.quiet import quiet_libraries

pytestmark = pytest.mark.slow  # peft takes long to import

Q = "model.layers.0.self_attn.q_proj"


def llama(**config):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, attention_bias=True, **sizes, **config))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8, **ids))


def save(folder, model=None, *, resize=None, **settings):
    """Save a base and an adapter with random weights, as peft does."""
    from peft import LoraConfig, get_peft_model

    model = model or llama()
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft tells what an adapter does to embeddings
        model.save_pretrained(folder / "base")
        if resize:
            model.resize_token_embeddings(resize)
            model.name_or_path = str(folder / "base")  # peft sees a resized embedding by comparing with this
        settings = {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 6, **settings}
        adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        adapted.save_pretrained(folder / "adapter")
    return adapted


def read(folder):
    return Adapted(folder / "adapter", Checkpoint(folder / "base"))


def merged(adapted):
    with quiet_libraries():
        return adapted.merge_and_unload().state_dict()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    save(folder)
    return folder


@pytest.fixture
def copy(plain, tmp_path):
    """A plain adapter and its base, to be spoilt."""
    return shutil.copytree(plain, tmp_path / "copy")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 9, "q_proj": 3}},
        {"rank_pattern": {r".*\.1\..*q_proj": 7}, "use_rslora": True},
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
        {"modules_to_save": ["lm_head", "norm", "embed_tokens"]},
        {"lora_bias": True, "target_modules": ["q_proj"]},
        {"bias": "all"},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_an_adapter_gives_the_weights_that_peft_merges(tmp_path, settings):
    theirs = merged(save(tmp_path, **settings))
    ours = read(tmp_path)
    assert set(ours.names) == set(theirs)
    for name in ours.names:
        assert (ours.tensor(name) - theirs[name]).abs().max() <= 1e-6 * max(1, theirs[name].abs().max()), name
        assert ours.shape(name) == theirs[name].shape


def test_weights_that_gpt2_stores_transposed_are_transposed_though_they_be_square(tmp_path):
    theirs = merged(save(tmp_path, gpt2(), target_modules=["c_attn", "attn.c_proj", "wpe"]))
    ours = read(tmp_path)
    for name in ours.names:
        assert (ours.tensor(name) - theirs[name]).abs().max() <= 1e-6 * max(1, theirs[name].abs().max()), name


def test_a_base_stored_without_its_outermost_name_is_found(tmp_path):
    save(tmp_path, gpt2(), target_modules=["c_attn"])
    whole = read(tmp_path).tensor("transformer.h.0.attn.c_attn.weight")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(bare, tmp_path / "base" / "model.safetensors")
    assert read(tmp_path).tensor("h.0.attn.c_attn.weight").equal(whole)


def test_a_tied_head_goes_with_its_embedding_as_in_the_forward_pass(tmp_path):
    adapted = save(tmp_path, llama(tie_word_embeddings=True), ensure_weight_tying=True, target_modules=["embed_tokens"])
    ours = read(tmp_path)
    embedding, before = (model.tensor("model.embed_tokens.weight") for model in (ours, Checkpoint(tmp_path / "base")))
    with torch.no_grad():
        rows = adapted.get_base_model().model.embed_tokens(torch.arange(32))
        columns = adapted.get_base_model().lm_head(torch.eye(16)).T
    assert "lm_head.weight" not in ours
    assert (embedding - rows).abs().max() <= 1e-5 and (embedding - columns).abs().max() <= 1e-5
    # peft's own merge adds the low-rank part twice to the one matrix that both are.
    twice = merged(adapted)["model.embed_tokens.weight"] - before
    assert (twice - 2 * (embedding - before)).abs().max() <= 1e-5


def test_a_tied_embedding_saved_whole_takes_the_head_along(tmp_path):
    model = llama(tie_word_embeddings=True)
    theirs = merged(save(tmp_path, model, ensure_weight_tying=True, modules_to_save=["embed_tokens"]))
    ours = read(tmp_path)
    assert "lm_head.weight" not in ours
    assert ours.tensor("model.embed_tokens.weight").equal(theirs["model.embed_tokens.weight"])


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_one_half_of_a_tied_pair_is_refused(tmp_path, module):
    save(tmp_path, llama(tie_word_embeddings=True), modules_to_save=[module])
    with pytest.raises(CheckpointError, match=rf"changes \S*{module}.weight, but .*ensure_weight_tying"):
        read(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_that_the_adapter_resized_has_the_adapters_size(tmp_path, tied):
    theirs = merged(save(tmp_path, llama(tie_word_embeddings=tied), resize=40))
    ours = read(tmp_path)
    assert ours.shape("model.embed_tokens.weight") == (40, 16)
    assert ours.tensor("model.embed_tokens.weight").equal(theirs["model.embed_tokens.weight"])


def test_what_the_adapter_does_not_touch_is_the_bases_own(tmp_path):
    save(tmp_path, llama().to(torch.bfloat16))
    ours, base = read(tmp_path), Checkpoint(tmp_path / "base")
    assert ours.config == base.config and is_adapter(ours.folder) and not is_adapter(base.folder)
    other = "model.layers.0.self_attn.k_proj.weight"
    assert ours.dtype(other) == torch.bfloat16 == ours.tensor(other).dtype
    assert ours.tensor(other).equal(base.tensor(other)) and ours.file(other) == base.file(other)
    assert ours.dtype(f"{Q}.weight") == torch.float32 == ours.tensor(f"{Q}.weight").dtype
    assert ours.file(f"{Q}.weight") == ours.folder / "adapter_model.safetensors"


def test_the_delta_on_a_bfloat16_base_is_not_rounded(tmp_path):
    save(tmp_path, llama().to(torch.bfloat16))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.{Q}.lora_{side}.weight"].double() for side in "AB")
    exact = Checkpoint(tmp_path / "base").tensor(f"{Q}.weight").double() + 6 / 4 * b @ a
    assert (read(tmp_path).tensor(f"{Q}.weight").double() - exact).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "LOHA"}, r"adapter_config.json: peft_type is 'LOHA'; only LORA is read: merge it with peft"),
        ({"use_dora": True}, r"use_dora is True, which is not plain LoRA; merge it with peft"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\]"),
        ({"init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4', which changed the base's own weights; convert"),
        ({"r": 8}, r"lora_A.weight has rank 4, where adapter_config.json says 8"),
        ({"r": "4"}, r"r and rank_pattern hold \['4'\]"),
        ({"bias": "all"}, r"q_proj.bias was trained \(bias='all' in adapter_config.json\) but is not stored"),
    ],
    ids=str,
)
def test_settings_that_mean_more_than_a_low_rank_sum_are_refused(copy, change, says):
    file = copy / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=says):
        read(copy)


@pytest.mark.parametrize(
    ("stored", "shape", "says"),
    [
        (f"{Q}x.lora_A.weight", (4, 16), r"belong to no weight of .*base: base_model.*q_projx.*use the base"),
        (f"{Q}.lora_magnitude_vector", (16,), r"belong to no weight"),
        (f"{Q}.lora_A.weight", (4, 17), r"and its lora_B make shape \(16, 17\), where the base's .* has \(16, 16\)"),
        (f"{Q}.lora_A.weight", (0,), r"which are not \(r, in\) and \(out, r\)"),
        ("model.layers.0.self_attn.k_proj.lora_A.weight", (4, 16), r"k_proj.weight has only one of lora_A and lora_B"),
        ("model.norm.weight", (17,), r"model.norm.weight has shape \(17,\), where the base's .* has \(16,\)"),
        ("model.embed_tokens.weight", (40, 15), r"has shape \(40, 15\)"),
    ],
)
def test_weights_that_do_not_fit_the_base_are_refused(copy, stored, shape, says):
    file = copy / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(file), f"base_model.model.{stored}": torch.zeros(shape)}, file)
    with pytest.raises(CheckpointError, match=says):
        read(copy)


def test_a_pickled_adapter_is_never_read(copy):
    (copy / "adapter" / "adapter_model.safetensors").unlink()
    (copy / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"only pickled weights \(adapter_model.bin\).*save_pretrained"):
        read(copy)


def test_nothing_of_the_weights_is_read_before_it_is_asked_for(copy):
    file = copy / "adapter" / "adapter_model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    file.write_bytes(whole[:header] + b"\xff" * (len(whole) - header))  # NaNs: only a reader would see them
    assert read(copy).tensor(f"{Q}.weight").isnan().any()
