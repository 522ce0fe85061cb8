"""Names, shapes and the model built from them, against diffusers' own converter."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from flux_files import write_gguf, write_packed
from kontextkit.devtools.flux_shapes import bfl_shapes
from kontextkit.engine.checkpoint import Checkpoint, open_checkpoint
from kontextkit.engine.errors import CheckpointError
from kontextkit.engine.flux.build import build_transformer
from kontextkit.engine.flux.weights import read_weights
from kontextkit.engine.quant import PackedTensor
from safetensors.torch import save_file


@pytest.fixture
def save(tmp_path):
    """{name: tensor} -> an opened safetensors file."""

    def write(tensors, name="model.safetensors"):
        save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / name)
        return open_checkpoint(tmp_path / name)

    return write


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("norm", ["scale", "weight"])
def test_bfl_names_become_what_diffusers_converts_them_to(prefix, norm):
    """Full width, which diffusers' converter takes for granted; bytes as fp8 keep it light."""
    generator = torch.Generator().manual_seed(0)
    shapes = bfl_shapes(hidden=3072, text=64, pooled=32, depth=1, single=1)
    tensors = {
        name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).view(torch.float8_e4m3fn)
        for name, shape in shapes.items()
    }
    spelled = {prefix + name.replace("_norm.scale", f"_norm.{norm}"): t for name, t in tensors.items()}
    packed = {name: PackedTensor(t, "F8_E4M3", tuple(t.shape)) for name, t in spelled.items()}
    _, weights = read_weights(Checkpoint("model.safetensors", packed))
    expected = convert_flux_transformer_checkpoint_to_diffusers(tensors)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[n].data.view(torch.uint8), expected[n].view(torch.uint8)) for n in weights)


def test_diffusers_names_are_taken_as_they_are(save):
    dims = {"joint_attention_dim": 96, "pooled_projection_dim": 64, "guidance_embeds": True}
    theirs = FluxTransformer2DModel(num_layers=2, num_single_layers=3, num_attention_heads=1, **dims)
    checkpoint = save(theirs.state_dict())
    config, weights = read_weights(checkpoint)
    assert {key: theirs.config[key] for key in config.as_kwargs()} == config.as_kwargs()
    ours = build_transformer(config, weights, checkpoint.file_name)
    assert isinstance(ours, FluxTransformer2DModel)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in ours.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
def test_every_prefix_is_found_and_what_stands_beside_it_is_left_alone(prefix, bfl_tensors, save):
    beside = {"vae.decoder.conv_in.weight": torch.ones(4, 4)} if prefix else {}
    config, weights = read_weights(save({prefix + name: t for name, t in bfl_tensors.items()} | beside))
    assert (config.num_layers, config.num_single_layers) == (2, 3)
    assert torch.equal(weights["x_embedder.weight"].data, bfl_tensors["img_in.weight"])


def test_separate_q_k_v_are_views_of_the_fused_matrix(gguf_file):
    checkpoint = open_checkpoint(gguf_file("Q8_0"))
    _, weights = read_weights(checkpoint)
    fused = checkpoint.tensors["single_blocks.0.linear1.weight"].data
    parts = [weights[f"single_transformer_blocks.0.{n}.weight"].data for n in ("attn.to_q", "attn.to_v", "proj_mlp")]
    assert [p.data_ptr() - fused.data_ptr() for p in parts] == [0, 256 * fused.shape[1], 384 * fused.shape[1]]


def test_missing_tensors_are_counted_and_the_first_are_named(bfl_tensors, save):
    kept = {name: t for name, t in bfl_tensors.items() if not name.startswith("double_blocks.1.img_")}
    words = r"12 of 92 tensors .* double_blocks.1.img_mod.lin.weight, double_blocks.1.img_mod.lin.bias, .* and 7 more"
    with pytest.raises(CheckpointError, match=words):
        read_weights(save(kept))


def test_a_file_without_blocks_is_incomplete(bfl_tensors, save):
    kept = {name: t for name, t in bfl_tensors.items() if "_blocks." not in name}
    with pytest.raises(CheckpointError, match=r"0 double_blocks and 0 single_blocks; FLUX\.1 has both kinds"):
        read_weights(save(kept))


def test_extra_tensors_are_counted_and_named(bfl_tensors, save):
    extra = {"pulid_ca.0.weight": torch.ones(2, 2), "pulid_ca.0.bias": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"2 tensors belong to no FLUX.1 transformer: pulid_ca.0.bias"):
        read_weights(save(bfl_tensors | extra))


def test_a_tensor_of_another_shape_is_named(bfl_tensors, save):
    bfl_tensors["double_blocks.0.img_mlp.0.bias"] = torch.ones(7)
    checkpoint = save(bfl_tensors)
    with pytest.raises(CheckpointError, match=r"'transformer_blocks.0.ff.net.0.proj.bias' has shape \[7\], expected"):
        build_transformer(*read_weights(checkpoint), checkpoint.file_name)


def test_an_unsupported_quantization_is_named_with_its_tensor(tmp_path, bfl_tensors):
    packed = {
        name: (t.numpy().astype("int8"), "I8") if t.ndim == 2 else (t.numpy(), "F32") for name, t in bfl_tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"'img_in.weight' is stored as I8 \(39 of 92 tensors\)"):
        read_weights(open_checkpoint(write_packed(tmp_path / "i8.gguf", packed)))


STRANGERS = {
    "Stable Diffusion": "model.diffusion_model.input_blocks.0.0.weight",
    "a LoRA": "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    "T5": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "a VAE": "decoder.conv_in.weight",
    "something else": "layers.0.weight",
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_another_model_is_recognised(kind, save):
    tensors = {STRANGERS[kind]: torch.ones(4, 4), "position_ids": torch.arange(4)}
    with pytest.raises(CheckpointError, match=f"this is .*{kind}.*, not a FLUX.1 Kontext transformer"):
        read_weights(save(tensors))


@pytest.mark.parametrize(
    "cousin", ["distilled_guidance_layer.norms.0.scale", "double_stream_modulation_img.lin.weight"]
)
def test_models_that_look_like_flux_1_are_recognised(cousin, bfl_tensors, save):
    with pytest.raises(CheckpointError, match=r"this is a (Chroma|FLUX\.2) transformer"):
        read_weights(save(bfl_tensors | {cousin: torch.ones(4, 4)}))


def test_flux_fill_is_refused_with_its_channels(bfl_tensors, save):
    bfl_tensors["img_in.weight"] = torch.ones(128, 384)
    with pytest.raises(CheckpointError, match="takes 384 channels a token, Kontext takes 64"):
        read_weights(save(bfl_tensors))


def test_other_head_widths_are_refused(bfl_tensors, save):
    bfl_tensors["single_blocks.0.norm.query_norm.scale"] = torch.ones(64)
    with pytest.raises(CheckpointError, match=r"heads of \[64\]; FLUX\.1 has heads of 128"):
        read_weights(save(bfl_tensors))


ODD = {
    "img_in.weight": [128, 64, 1],
    "img_in.bias": [],
    "single_blocks.0.norm.query_norm.scale": [],
    "double_blocks.0.img_attn.norm.key_norm.scale": [2, 2],
    "double_blocks.0.img_attn.qkv.weight": [100, 128],
    "double_blocks.0.img_attn.qkv.bias": [],
    "single_blocks.1.linear1.weight": [200, 128],
    "final_layer.adaLN_modulation.1.weight": [3, 128],
    "final_layer.adaLN_modulation.1.bias": [],
}


@pytest.mark.parametrize("name", ODD)
def test_a_tensor_of_an_odd_shape_is_refused_wherever_it_stands(name, bfl_tensors, save):
    checkpoint = save(bfl_tensors | {name: torch.zeros(ODD[name])})
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: "):
        build_transformer(*read_weights(checkpoint), checkpoint.file_name)


def test_packed_vectors_are_decoded_and_split_like_any_other(bfl_tensors, tmp_path):
    """Some converters quantize biases too."""
    path = write_gguf(tmp_path / "all.gguf", bfl_tensors, "Q8_0", vectors="Q8_0")
    _, weights = read_weights(open_checkpoint(path))
    bias = weights["single_transformer_blocks.0.attn.to_k.bias"]
    expected = bfl_tensors["single_blocks.0.linear1.bias"][128:256]
    assert bias.shape == (128,)
    assert torch.allclose(bias.decode(), expected, atol=2e-3)
