"""LoRA files in every dialect over diffusers' names, against the weights that peft itself merges."""

import json
import re

import peft
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers
from kontextkit.engine.lora.read import read_lora
from lora_files import RANK, low_rank, merged_by_peft, shapes_of, tiny_flux, weights_of, worst_error
from safetensors.torch import save_file

LIMIT = 1e-5
ALPHA = 6
SHAPES = shapes_of(tiny_flux())


@pytest.fixture(scope="module")
def lora():
    return merged_by_peft(peft.LoraConfig(r=RANK, lora_alpha=ALPHA))


@pytest.fixture(scope="module")
def dora():
    return merged_by_peft(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True))


@pytest.fixture
def read(tmp_path):
    """{key: tensor} -> what `read_lora` makes of a file of them."""

    def save_and_read(tensors, metadata=None):
        save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / "lora.safetensors", metadata)
        return read_lora(tmp_path / "lora.safetensors", SHAPES)

    return save_and_read


def underscored(prefix):
    return lambda module: prefix + module.replace(".", "_")


KOHYA = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
OLD = {"lora_A.weight": "lora.down.weight", "lora_B.weight": "lora.up.weight"}
NAMED = {"lora_A.weight": "lora_A.default.weight", "lora_B.weight": "lora_B.default_0.weight"}
DIALECTS = {  # (dialect, module -> its name in the file, peft's part -> its name in the file)
    "diffusers": ("diffusers", "transformer.{}".format, {}),
    "diffusers, adapter named": ("diffusers", "transformer.{}".format, NAMED),
    "PEFT": ("PEFT", "base_model.model.{}".format, {}),
    "PEFT over a pipeline": ("PEFT", "base_model.model.transformer.{}".format, {}),
    "bare": ("bare diffusers names", str, {}),
    "old diffusers": ("diffusers", "transformer.{}".format, OLD),
    "old bare diffusers": ("bare diffusers names", str, OLD),
    "ComfyUI": ("ComfyUI over diffusers' names", "diffusion_model.{}".format, KOHYA),
    "kohya": ("kohya over diffusers' names", underscored("lora_unet_"), KOHYA),
    "kohya, a trailing _": ("kohya over diffusers' names", lambda m: underscored("lora_unet_")(m) + "_", KOHYA),
    "OneTrainer": ("OneTrainer", underscored("lora_transformer_"), KOHYA),
    "SimpleTuner": ("LyCORIS", underscored("lycoris_"), KOHYA),
}


def respelled(state, module_name, parts, alpha=None):
    """peft's state under other names, with an alpha for every module where one is given."""
    named = {}
    for key, tensor in state.items():
        module, part = re.fullmatch(r"base_model\.model\.(.+?)\.((?:lora_|lokr_|hada_).+)", key).groups()
        named[f"{module_name(module)}.{parts.get(part, part)}"] = tensor
        if alpha is not None:
            named[f"{module_name(module)}.alpha"] = torch.tensor(float(alpha))
    return named


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_over_diffusers_names_is_what_peft_merges(name, lora, read):
    before, state, after = lora
    dialect, module_name, parts = DIALECTS[name]
    ours = read(respelled(state, module_name, parts, ALPHA))
    assert worst_error(ours, before, after) < LIMIT
    assert ours.dialect == dialect
    assert ours.n_matched == ours.n_keys == 3 * len(SHAPES)
    assert (ours.matched_share, ours.skipped, ours.ranks) == (1.0, (), (RANK,))


def test_attention_processors_of_old_diffusers(lora, read):
    before, state, after = lora
    attention = {key: t for key, t in state.items() if ".attn." in key}
    after = {name: after[name] if ".attn." in name else weight for name, weight in before.items()}

    def processor(module):
        return re.sub(r"\.attn\.(\w+?)(\.0)?$", r".attn.processor.\1_lora", module)

    ours = read(respelled(attention, processor, {"lora_A.weight": "down.weight", "lora_B.weight": "up.weight"}, ALPHA))
    assert worst_error(ours, before, after) < LIMIT
    assert ours.dialect == "diffusers' attention processors"


OMI = {
    "transformer_blocks.0.attn.to_q": "double_blocks.0.img_attn.qkv.0",
    "transformer_blocks.0.attn.add_v_proj": "double_blocks.0.txt_attn.qkv.2",
    "transformer_blocks.0.ff_context.net.2": "double_blocks.0.txt_mlp.2",
    "single_transformer_blocks.1.attn.to_k": "single_blocks.1.linear1.1",
    "single_transformer_blocks.1.proj_mlp": "single_blocks.1.linear1.3",
    "single_transformer_blocks.1.proj_out": "single_blocks.1.linear2",
    "x_embedder": "img_in",
}


def test_omi_names_have_q_k_v_apart(lora, read):
    before, state, after = lora
    some = {key: t for key, t in state.items() if key.split(".lora")[0].removeprefix("base_model.model.") in OMI}
    ours = read(respelled(some, lambda module: f"transformer.{OMI[module]}", KOHYA, ALPHA))
    assert worst_error(ours, before, {n: after[n] if n in OMI else w for n, w in before.items()}) < LIMIT


@pytest.mark.parametrize(
    "spelling", ["lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight"]
)
def test_dora_as_peft_spells_it(spelling, dora, read):
    before, state, after = dora
    ours = read(respelled(state, "transformer.{}".format, {"lora_magnitude_vector": spelling}, ALPHA))
    assert worst_error(ours, before, after) < LIMIT


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("spelling", ["dora_scale", "magnitude"])
def test_dora_as_lycoris_and_ai_toolkit_spell_it(spelling, shape, dora, read):
    before, state, after = dora
    state = {key: t.reshape(shape) if "magnitude" in key else t for key, t in state.items()}
    named = respelled(state, underscored("lora_unet_"), KOHYA | {"lora_magnitude_vector": spelling}, ALPHA)
    assert worst_error(read(named), before, after) < LIMIT


def dora_of_one_linear(weight):
    """({peft's part: tensor}, the new weight) of a random DoRA over a Linear of this weight."""
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data = weight.clone()
    torch.manual_seed(3)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True, target_modules=["0"])
    wrapped = peft.get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter + 0.3 * torch.randn(parameter.shape)
    state = {key.split(".", 3)[3]: t.clone() for key, t in peft.get_peft_model_state_dict(wrapped).items()}
    return state, wrapped.merge_and_unload()[0].weight.detach()


def test_dora_on_columns_is_what_peft_does_to_the_transposed_weight(read):
    """OneTrainer's norm runs over a column, which is a row of the transposed Linear."""
    name = "transformer_blocks.0.ff.net.2"
    weight = weights_of(tiny_flux())[name]
    state, after = dora_of_one_linear(weight.T)
    stem = f"lora_transformer_{name.replace('.', '_')}"
    parts = {
        "lora_down.weight": state["lora_B.weight"].T,
        "lora_up.weight": state["lora_A.weight"].T,
        "dora_scale": state["lora_magnitude_vector"][None],
        "alpha": torch.tensor(float(ALPHA)),
    }
    ours = read({f"{stem}.{part}": t for part, t in parts.items()})
    assert worst_error(ours, {name: weight}, {name: after.T}) < LIMIT


def test_dora_over_fused_q_k_v_is_cut_by_rows(read):
    weights = weights_of(tiny_flux())
    names = [f"single_transformer_blocks.1.{n}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    state, after = dora_of_one_linear(torch.cat([weights[name] for name in names]))
    parts = {
        "lora_down.weight": state["lora_A.weight"],
        "lora_up.weight": state["lora_B.weight"],
        "dora_scale": state["lora_magnitude_vector"][:, None],
        "alpha": torch.tensor(float(ALPHA)),
    }
    ours = read({f"lora_unet_single_blocks_1_linear1.{part}": t for part, t in parts.items()})
    after = dict(zip(names, after.split([len(weights[name]) for name in names]), strict=True))
    assert worst_error(ours, {name: weights[name] for name in names}, after) < LIMIT


FACTORED = {
    "LoHa": peft.LoHaConfig(r=RANK, alpha=ALPHA),
    "LoKr": peft.LoKrConfig(r=RANK, alpha=ALPHA),
    "LoKr, both decomposed": peft.LoKrConfig(r=2, alpha=ALPHA, decompose_both=True),
    "LoKr, factor 8": peft.LoKrConfig(r=RANK, alpha=ALPHA, decompose_factor=8),
}


@pytest.mark.parametrize(
    "module_name", ["base_model.model.{}".format, underscored("lycoris_")], ids=["PEFT", "LyCORIS"]
)
@pytest.mark.parametrize("kind", FACTORED)
def test_loha_and_lokr_are_what_peft_merges(kind, module_name, read):
    config = FACTORED[kind]
    before, state, after = merged_by_peft(config)
    ours = read(respelled(state, module_name, {}, ALPHA))
    assert worst_error(ours, before, after) < LIMIT
    assert ours.ranks == ((RANK**2,) if kind == "LoHa" else ())


def test_whole_lokr_factors_take_their_scale_from_peft_s_settings(read):
    before, state, after = merged_by_peft(peft.LoKrConfig(r=1000, alpha=300))
    assert not any("w2_a" in key for key in state)
    ours = read(state, {"lora_adapter_metadata": json.dumps({"r": 1000, "alpha": 300})})
    assert worst_error(ours, before, after) < LIMIT


def test_whole_lokr_factors_have_no_use_for_alpha(read):
    """AI-Toolkit writes one that is infinite in F16."""
    before, state, after = merged_by_peft(peft.LoKrConfig(r=1000, alpha=1000))
    ours = read(respelled(state, "diffusion_model.{}".format, {}, float("inf")))
    assert worst_error(ours, before, after) < LIMIT


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_alpha_is_read_from_the_header_where_no_key_has_it(prefix, read):
    name = "single_transformer_blocks.1.proj_mlp"
    patterns = {"alpha_pattern": {name: 2, "attn.to_k": 16}, "rank_pattern": {name: 3}}
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=True, **patterns)
    before, state, after = merged_by_peft(config)
    settings = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True, "use_dora": False, **patterns}
    header = {f"{prefix}{key}": value for key, value in settings.items()} | {"text_encoder.lora_alpha": 99}
    named = respelled(state, "transformer.{}".format, {})
    ours = read(named, {"lora_adapter_metadata": json.dumps(header)})
    assert worst_error(ours, before, after) < LIMIT
    assert ours.ranks == (3, RANK)
    assert ours.metadata.keys() == {"lora_adapter_metadata"}


def test_without_any_alpha_the_scale_is_one(read):
    before, state, after = merged_by_peft(peft.LoraConfig(r=RANK, lora_alpha=RANK))
    assert worst_error(read(state), before, after) < LIMIT


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_xlabs_names_are_what_diffusers_converts_them_to(prefix, read):
    named = {}
    for i, (stem, n_out, n_in) in enumerate(
        [
            ("double_blocks.0.processor.qkv_lora1", 384, 128),
            ("double_blocks.0.processor.qkv_lora2", 384, 128),
            ("double_blocks.0.processor.proj_lora1", 128, 128),
            ("double_blocks.0.processor.proj_lora2", 128, 128),
            ("single_blocks.1.processor.qkv_lora", 384, 128),
            ("single_blocks.1.processor.proj_lora", 128, 640),
        ]
    ):
        named[f"{prefix}{stem}.down.weight"], named[f"{prefix}{stem}.up.weight"] = low_rank(n_out, n_in, seed=i)
    theirs = _convert_xlabs_flux_lora_to_diffusers(dict(named))
    before = weights_of(tiny_flux())
    after = {
        name: weight + theirs[f"transformer.{name}.lora_B.weight"] @ theirs[f"transformer.{name}.lora_A.weight"]
        if f"transformer.{name}.lora_A.weight" in theirs
        else weight
        for name, weight in before.items()
    }
    ours = read(named)
    assert len(ours.adapters) == 12
    assert worst_error(ours, before, after) < LIMIT
    assert ours.dialect == "XLabs"
