"""What a LoRA says of itself: matched and skipped keys, and why."""

import json

import pytest
import torch
from kontextkit.engine.lora.read import read_lora
from lora_files import pair, shapes_of, tiny_flux
from safetensors.torch import save_file

SHAPES = shapes_of(tiny_flux())
TO_Q = "transformer.transformer_blocks.0.attn.to_q"
QKV = "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.fixture
def read(tmp_path):
    def save_and_read(tensors, metadata=None, shapes=SHAPES):
        save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / "lora.safetensors", metadata)
        return read_lora(tmp_path / "lora.safetensors", shapes)

    return save_and_read


def test_what_is_skipped_is_counted_and_explained_in_few_lines(read):
    te = {f"lora_te1_text_model_encoder_layers_{i}_mlp_fc1.lora_down.weight": torch.ones(4, 64) for i in range(9)}
    lora = read(
        pair(TO_Q)
        | pair("transformer.transformer_blocks.7.attn.to_q")
        | te
        | {f"{TO_Q}.lora_B.bias": torch.ones(128), "transformer.x_embedder.alpha": torch.tensor(1.0)}
        | {
            "double_blocks.0.norm.scale": torch.ones(128),
            "transformer.proj_out.diff": torch.ones(64, 128),
        }
    )
    assert (lora.n_keys, lora.n_matched, len(lora.skipped)) == (17, 2, 15)
    assert lora.matched_share == pytest.approx(2 / 8)
    assert lora.report().splitlines() == [
        "lora.safetensors: diffusers names, rank 4, changes 1 Linear.",
        "2 of 17 keys matched (25% of the transformer's).",
        "Skipped 9: belongs to a text encoder (lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight, "
        "lora_te1_text_model_encoder_layers_1_mlp_fc1.lora_down.weight and 7 more).",
        "Skipped 2: names no Linear of this model (transformer.transformer_blocks.7.attn.to_q.lora_A.weight, "
        "transformer.transformer_blocks.7.attn.to_q.lora_B.weight).",
        "Skipped 1: replaces or changes a norm; only Linears are adapted (double_blocks.0.norm.scale).",
        "Skipped 1: is a full difference, not a low-rank one (transformer.proj_out.diff).",
        f"Skipped 1: changes a bias; only weights are adapted ({TO_Q}.lora_B.bias).",
        "Skipped 1: stands alone, without a low-rank pair (transformer.x_embedder.alpha).",
    ]


def test_linears_that_the_model_has_not_are_skipped(read):
    """A model without guidance embedding, of fewer blocks than the LoRA was made for."""
    tensors = pair("lora_unet_guidance_in_in_layer", 128, 256) | pair("lora_unet_double_blocks_3_img_mlp_0")
    lora = read(tensors | pair(QKV, 384), shapes={n: shape for n, shape in SHAPES.items() if "guidance" not in n})
    assert len(lora.adapters) == 3
    assert {why for _, why in lora.skipped} == {"names no Linear of this model"}
    assert lora.matched_share == pytest.approx(1 / 3)


def test_the_report_of_a_sound_file_is_two_lines(read):
    lora = read(pair(TO_Q), {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 4})})
    assert len(lora.report().splitlines()) == 2
