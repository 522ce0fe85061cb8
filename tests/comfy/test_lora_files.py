"""LoRA files over BFL's fused names, against the weights that ComfyUI's own `comfy.lora` makes of the same file."""

import pytest
import torch
from kontextkit.engine.checkpoint import Checkpoint
from kontextkit.engine.flux.weights import read_weights
from kontextkit.engine.lora.adapters import Kronecker
from kontextkit.engine.lora.read import read_lora
from kontextkit.engine.quant import PackedTensor
from lora_files import low_rank, worst_error
from safetensors.torch import load_file, save_file

LIMIT = 1e-5
PREFIX = "diffusion_model."


@pytest.fixture(scope="module")
def core(twins):
    """(ComfyUI's ModelPatcher of the twins' file, {BFL Linear: weight})."""
    import comfy.sd

    patcher = comfy.sd.load_diffusion_model(str(twins.path))
    weights = load_file(twins.path)
    return patcher, weights, [name[: -len(".weight")] for name, t in weights.items() if t.ndim == 2]


def split(weights):
    """BFL's weights as diffusers' Linears: {name: (out, in)}."""
    packed = {name: PackedTensor(t, "F32", tuple(t.shape)) for name, t in weights.items()}
    named = read_weights(Checkpoint("twin.safetensors", packed))[1]
    return {n.removesuffix(".weight"): t.data for n, t in named.items() if n.endswith(".weight") and t.data.ndim == 2}


@pytest.fixture
def compare(core, tmp_path):
    """(file for us, the same as ComfyUI reads it) -> our Lora, once both make the same weights."""
    import comfy.lora

    patcher, weights, _ = core

    def check(ours, theirs=None):
        keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
        fresh = patcher.clone()
        fresh.add_patches(comfy.lora.load_lora(dict(theirs or ours), keys, log_missing=False), 1.0)
        after = dict(weights)
        for key, patches in fresh.patches.items():
            name = key.removeprefix(PREFIX)
            after[name] = comfy.lora.calculate_weight(patches, weights[name].clone(), key)
        before, after = split(weights), split(after)
        save_file({key: t.contiguous() for key, t in ours.items()}, tmp_path / "lora.safetensors")
        lora = read_lora(tmp_path / "lora.safetensors", {name: tuple(w.shape) for name, w in before.items()})
        assert worst_error(lora, before, after) < LIMIT
        assert lora.n_matched == lora.n_keys
        return lora

    return check


def every_linear(core, make):
    """{BFL Linear: {part: tensor}} over the whole model; make: (out, in, seed) -> parts."""
    _, weights, linears = core
    return {name: make(*weights[f"{name}.weight"].shape, i) for i, name in enumerate(linears)}


def plain(down="lora_down.weight", up="lora_up.weight", alpha=True):
    def make(n_out, n_in, seed):
        parts = dict(zip((down, up), low_rank(n_out, n_in, rank=3 + seed % 3, seed=seed), strict=True))
        return parts | ({"alpha": torch.tensor(2.0 + seed)} if alpha else {})

    return make


def named(modules, prefix, join="."):
    return {f"{prefix}{m.replace('.', join)}.{part}": t for m, parts in modules.items() for part, t in parts.items()}


@pytest.mark.parametrize(
    "prefix", ["lora_unet_", "diffusion_model.", "model.diffusion_model.", "base_model.model.", ""]
)
@pytest.mark.parametrize("parts", [("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")])
def test_every_linear_under_bfl_s_names(parts, prefix, core, compare):
    modules = every_linear(core, plain(*parts))
    lora = compare(named(modules, prefix, "_" if prefix == "lora_unet_" else "."), named(modules, PREFIX))
    expected = {"lora_unet_": "kohya", "base_model.model.": "PEFT over BFL's names", "": "bare BFL names"}
    assert lora.dialect == expected.get(prefix, "ComfyUI")
    assert lora.ranks == (3, 4, 5)


def test_without_alpha(core, compare):
    compare(named(every_linear(core, plain(alpha=False)), PREFIX))


def test_q_k_v_share_one_down_and_views_of_one_up(core, compare):
    lora = compare(named(every_linear(core, plain()), "lora_unet_", "_"))
    q, v = (lora.adapters[f"single_transformer_blocks.2.attn.{name}"] for name in ("to_q", "to_v"))
    assert q.down is v.down
    assert q.up.untyped_storage().data_ptr() == v.up.untyped_storage().data_ptr()


def test_blocks_of_zeros_between_q_k_and_v_drop_out(core, compare):
    """sd-scripts' split_qkv trains three LoRAs and stores them as one of three times the rank."""
    downs, ups = zip(*(low_rank(256, 256, seed=i) for i in range(3)), strict=True)
    stem = "lora_unet_double_blocks_1_txt_attn_qkv"
    fused = {
        f"{stem}.lora_down.weight": torch.cat(downs),
        f"{stem}.lora_up.weight": torch.block_diag(*ups),
        f"{stem}.alpha": torch.tensor(5.0),
    }
    lora = compare(fused)
    assert lora.ranks == (4,)


def loha(n_out, n_in, seed):
    (b1, a1), (b2, a2) = low_rank(n_out, n_in, 2, seed), low_rank(n_out, n_in, 3, seed + 99)
    return {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.5)}


def lokr(n_left, decompose):
    """LoKr whose left factor is n_left high and 4 wide; the right one whole, or of rank 3."""

    def make(n_out, n_in, seed):
        right, left = low_rank(n_left, 4, 4, seed)
        left = left @ right
        down, up = low_rank(n_out // n_left, n_in // 4, 3, seed)
        parts = {"lokr_w1": left, "alpha": torch.tensor(1.5)}
        return parts | ({"lokr_w2_a": up, "lokr_w2_b": down} if decompose else {"lokr_w2": up @ down})

    return make


def test_loha_over_fused_names(core, compare):
    assert compare(named(every_linear(core, loha), "lora_unet_", "_")).ranks == (6,)


@pytest.mark.parametrize("decompose", [True, False])
@pytest.mark.parametrize("n_left", [4, 8, 16, 64])
def test_lokr_over_fused_names_is_cut_wherever_the_seams_fall(n_left, decompose, core, compare):
    lora = compare(named(every_linear(core, lokr(n_left, decompose)), "lora_unet_", "_"))
    cut = {name: a for name, a in lora.adapters.items() if a.rows}
    assert all(isinstance(adapter, Kronecker) for adapter in lora.adapters.values())
    assert ("transformer_blocks.0.attn.to_k" in cut) == (256 % (768 // n_left) > 0)


def test_both_factors_of_lokr_decomposed(core, compare):
    def make(n_out, n_in, seed):
        (b1, a1), (b2, a2) = low_rank(8, 4, 2, seed), low_rank(n_out // 8, n_in // 4, 3, seed)
        return {"lokr_w1_a": a1, "lokr_w1_b": b1, "lokr_w2_a": a2, "lokr_w2_b": b2, "alpha": torch.tensor(1.5)}

    compare(named(every_linear(core, make), PREFIX))
