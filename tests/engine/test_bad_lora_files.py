"""What is wrong with a LoRA file is said in a sentence: the file, the place, got, expected, the next step."""

import gguf
import numpy as np
import pytest
import torch
from flux_files import write_packed
from kontextkit.engine.errors import LoraError
from kontextkit.engine.lora.read import read_lora
from lora_files import pair, shapes_of, tiny_flux
from safetensors.torch import save_file

SHAPES = shapes_of(tiny_flux())
TO_Q = "transformer.transformer_blocks.0.attn.to_q"
QKV = "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.fixture
def complaint(tmp_path):
    """{key: tensor} -> what `read_lora` says of a file of them."""

    def save_and_complain(tensors, metadata=None):
        save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / "lora.safetensors", metadata)
        with pytest.raises(LoraError) as caught:
            read_lora(tmp_path / "lora.safetensors", SHAPES)
        assert str(caught.value).startswith("lora.safetensors: ")
        assert str(caught.value).endswith(".")
        return str(caught.value)

    return save_and_complain


STRANGERS = {
    "Stable Diffusion": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    "Stable Diffusion (SD 1.5 or SDXL)": "unet.down_blocks.1.attentions.0.proj_in",
    "Stable Diffusion 3": "lora_unet_joint_blocks_0_x_block_attn_qkv",
    "Qwen-Image": "transformer_blocks.59.attn.to_q",
    "FLUX.2": "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    "Chroma": "diffusion_model.distilled_guidance_layer.in_proj",
    "HunyuanVideo": "diffusion_model.double_blocks.0.img_attn_qkv",
    "HiDream": "diffusion_model.double_stream_blocks.0.block.attn1.to_q",
    "Z-Image": "diffusion_model.layers.3.attention.to_q",
    "LTX-Video": "diffusion_model.transformer_blocks.0.attn1.to_k",
    "Wan": "diffusion_model.blocks.0.cross_attn.k",
}


@pytest.mark.parametrize("model", STRANGERS)
def test_a_lora_for_another_model_is_named_with_shapes_of_both(model, complaint):
    said = complaint(pair(STRANGERS[model], 640, 2048) | pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj"))
    assert f"made for another model, {model}" in said
    assert f"by its keys: it has {STRANGERS[model]!r} (640 x 2048), which FLUX.1 has not" in said
    assert "this model's 'transformer_blocks.0.attn.to_q' is 128 x 128" in said
    assert "Choose a LoRA made for FLUX.1 dev or Kontext" in said


def test_another_model_whose_names_are_ours_is_found_out_by_the_rest(complaint):
    """Qwen-Image's attention has FLUX's names and widths, and sixty blocks."""
    tensors = pair(TO_Q) | pair("transformer.transformer_blocks.59.attn.to_q")
    assert "another model, Qwen-Image by its keys" in complaint(tensors)


def test_a_lora_of_another_width_is_refused_with_both_shapes(complaint):
    said = complaint(pair(TO_Q, 1536, 1536))
    assert f"{TO_Q!r} changes a Linear of 1536 x 1536, this model's is 128 x 128" in said
    assert "made for another model" in said


def test_a_fused_lora_of_another_height_is_refused_with_both_shapes(complaint):
    said = complaint(pair(QKV, 640, 128))
    assert "640 x 128, this model's is 384 x 128 (out x in, transformer_blocks.0.attn.to_q" in said


@pytest.mark.parametrize(("channels", "model"), [(384, "FLUX.1 Fill"), (128, "FLUX.1 Canny, Depth")])
@pytest.mark.parametrize("name", ["transformer.x_embedder", "img_in", "lora_unet_img_in"])
def test_a_lora_for_fill_canny_or_depth_is_named(name, channels, model, complaint):
    said = complaint(pair(TO_Q) | pair(name, 128, channels))
    assert f"changes a Linear of 128 x {channels}, this model's is 128 x 64 (out x in): it was made for {model}" in said


def test_keys_that_nobody_knows_are_shown(complaint):
    said = complaint(pair("wheel.0.axle"))
    assert "none of 2 keys matches this model: wheel.0.axle.lora_A.weight, wheel.0.axle.lora_B.weight" in said


def test_a_lora_for_text_encoders_alone_is_named(complaint):
    said = complaint(pair("text_encoder.text_model.encoder.layers.0.self_attn.q_proj"))
    assert "all 2 keys belong to text encoders" in said


def test_a_full_model_is_named(complaint):
    said = complaint({"double_blocks.0.img_attn.qkv.weight": torch.ones(384, 128), "img_in.bias": torch.ones(128)})
    assert "this is a full model of 2 tensors, not a LoRA. Load it with Load Kontext Model" in said


def test_a_file_of_something_else_is_named(complaint):
    assert "no LoRA in this file (it holds emb_params)" in complaint({"emb_params": torch.ones(2, 2)})
    assert "(it holds no tensors at all)" in complaint({})


def changed(**parts):
    """The good pair with parts replaced, or left out where they are None."""
    tensors = pair(TO_Q) | {f"{TO_Q}.{name.replace('__', '.')}": t for name, t in parts.items()}
    return {key: t for key, t in tensors.items() if t is not None}


def half(value, dtype):
    down = torch.ones(4, 128, dtype=dtype)
    down[3, 77] = value
    return changed(lora_A__weight=down)


DAMAGED = {
    "rank 0": (pair(TO_Q, rank=0), "has rank 0: 'down' is 0 x 128"),
    "no up": (changed(lora_B__weight=None), "has 'down' but no 'up'"),
    "no down": (changed(lora_A__weight=None), "has 'up' but no 'down'"),
    "ranks": (changed(lora_A__weight=torch.ones(3, 128)), "'down' of rank 3 (3 x 128) and 'up' of rank 4 (128 x 4)"),
    "two alphas": (changed(alpha=torch.ones(2)), "has an alpha of 2 numbers, expected one"),
    "no alpha": (changed(alpha=torch.ones(0)), "has an alpha of 0 numbers, expected one"),
    "alpha NaN": (changed(alpha=torch.tensor(torch.nan)), "has nan as its alpha"),
    "NaN": (half(torch.nan, torch.float32), "has NaN or infinity in 'down'"),
    "NaN in BF16": (half(torch.nan, torch.bfloat16), "has NaN or infinity in 'down'"),
    "infinity in F16": (half(-torch.inf, torch.float16), "has NaN or infinity in 'down'"),
    "NaN in fp8": (changed(lora_A__weight=torch.full((4, 128), torch.nan).to(torch.float8_e4m3fn)), "has NaN or"),
    "integers": (changed(lora_A__weight=torch.ones(4, 128).int()), "has 'down' as torch.int32, expected floats"),
    "a vector": (changed(lora_A__weight=torch.ones(128)), "has 'down' of shape [128], expected a matrix"),
    "magnitude": (changed(dora_scale=torch.ones(7, 1)), "a DoRA magnitude of shape [7, 1]; a Linear of 128 x 128 has"),
    "twice": (
        pair(TO_Q) | {f"{TO_Q}.lora_down.weight": torch.ones(4, 128)},
        f"'{TO_Q}.lora_down.weight' and '{TO_Q}.lora_A.weight' are one part",
    ),
    "split and fused": (
        pair("diffusion_model.transformer_blocks.0.attn.to_k") | pair(QKV, 384),
        "changes 'transformer_blocks.0.attn.to_k', which another key already does",
    ),
    "LoKr halved": (
        {f"{QKV}.lokr_w1": torch.ones(4, 4), f"{QKV}.lokr_w2_a": torch.ones(96, 2)},
        "has 'lokr_w2_a' but no 'lokr_w2_b'",
    ),
    "LoKr of one factor": ({f"{QKV}.lokr_w1": torch.ones(4, 4)}, "has a factor of LoKr but no 'lokr_w2'"),
    "LoKr with DoRA": (
        {
            f"{QKV}.lokr_w1": torch.ones(4, 4),
            f"{QKV}.lokr_w2": torch.ones(96, 32),
            f"{QKV}.dora_scale": torch.ones(384),
        },
        "is LoKr with DoRA's magnitude",
    ),
    "Tucker": ({f"{QKV}.lokr_w1": torch.ones(4, 4), f"{QKV}.lokr_t2": torch.ones(2, 2, 3, 3)}, "no convolutions"),
    "LoHa halved": ({f"{QKV}.hada_w1_a": torch.ones(384, 2)}, "has 'hada_w1_a' but no 'hada_w1_b'"),
    "LoHa of a huge rank": (
        {
            f"{QKV}.hada_w1_a": torch.ones(384, 20000),
            f"{QKV}.hada_w1_b": torch.ones(20000, 128),
            f"{QKV}.hada_w2_a": torch.ones(384, 20000),
            f"{QKV}.hada_w2_b": torch.ones(20000, 128),
        },
        "is LoHa of rank 20000 x 20000, more than a Linear of 384 x 128 has",
    ),
    "LoKr of a huge factor": (
        {
            f"{QKV}.lokr_w1_a": torch.ones(1 << 20, 1),
            f"{QKV}.lokr_w1_b": torch.ones(1, 1 << 20),
            f"{QKV}.lokr_w2": torch.ones(1, 1),
        },
        "changes a Linear of 1048576 x 1048576, this model's is 384 x 128",
    ),
    "LoHa of two shapes": (
        {
            f"{QKV}.hada_w1_a": torch.ones(384, 2),
            f"{QKV}.hada_w1_b": torch.ones(2, 128),
            f"{QKV}.hada_w2_a": torch.ones(384, 2),
            f"{QKV}.hada_w2_b": torch.ones(2, 64),
        },
        "multiplies 384 x 128 with 384 x 64",
    ),
    "DoRA on fused columns": (
        pair(QKV, 384) | {f"{QKV}.dora_scale": torch.ones(1, 128)},
        "norms run over q, k and v together",
    ),
    "LoKr in halves": (
        {
            "lora_unet_final_layer_adaLN_modulation_1.lokr_w1": torch.ones(1, 1),
            "lora_unet_final_layer_adaLN_modulation_1.lokr_w2": torch.ones(256, 128),
        },
        "is LoKr of 1 x 256 rows; its halves have to change places",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_parts_are_named_with_their_module(case, complaint):
    tensors, words = DAMAGED[case]
    said = complaint(tensors)
    assert words in said
    assert TO_Q in said or QKV in said or "final_layer" in said


NOTES = {
    "no JSON": ("{", "is no JSON"),
    "no object": ("[1]", "is no JSON object"),
    "a word": ('{"lora_alpha": "eight"}', "alpha 'eight' and rank 4, expected numbers"),
    "NaN": ('{"lora_alpha": NaN}', "alpha nan and rank 4, expected numbers"),
    "too large": ('{"lora_alpha": 1e400}', "alpha inf and rank 4, expected numbers"),
}


@pytest.mark.parametrize("case", NOTES)
def test_broken_settings_in_the_header_are_named(case, complaint):
    note, words = NOTES[case]
    assert words in complaint(pair(TO_Q), {"lora_adapter_metadata": note})


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file(pair(TO_Q), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoraError, match=r"^cut\.safetensors: broken safetensors header: .* download the file again\.$"):
        read_lora(path, SHAPES)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_not_opened_and_converting_is_explained(zipped, tmp_path):
    path = tmp_path / "lora.pt"
    torch.save(pair(TO_Q), path, _use_new_zipfile_serialization=zipped)
    words = r"^lora\.pt: this is a PyTorch pickle, .* Convert it with torch\.load\(\.\.\., weights_only=True\)"
    with pytest.raises(LoraError, match=words):
        read_lora(path, SHAPES)


def test_a_gguf_is_named(tmp_path):
    path = write_packed(tmp_path / "lora.gguf", {"a": (np.ones((2, 32), np.float32), "F32")})
    assert gguf.GGUFReader(path).tensors
    with pytest.raises(LoraError, match=r"^lora\.gguf: this is a GGUF file, expected \.safetensors"):
        read_lora(path, SHAPES)


def test_a_file_that_is_gone_or_empty_is_named(tmp_path):
    with pytest.raises(LoraError, match=r"gone\.safetensors: the file cannot be read .* press R"):
        read_lora(tmp_path / "gone.safetensors", SHAPES)
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(LoraError, match=r"empty\.safetensors: the file is empty"):
        read_lora(tmp_path / "empty.safetensors", SHAPES)
