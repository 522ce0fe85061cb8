"""BFL's names for FLUX's tensors and where diffusers keeps the same weights.

BFL fuses q, k, v (and a single block's MLP input) into one matrix whose row ranges are diffusers' separate Linears;
everything else is a renaming, except the last modulation: BFL has shift before scale, diffusers scale before shift.
https://github.com/black-forest-labs/flux/blob/main/src/flux/modules/layers.py
"""

from __future__ import annotations

from collections.abc import Iterator

from .config import FluxConfig

SWAPPED = "final_layer.adaLN_modulation.1"  # its two halves change places

_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    SWAPPED: "norm_out.linear",
}
_GUIDANCE = {
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
    "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE = {
    "modulation.lin": "norm.linear",
    "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
    "linear2": "proj_out",
}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}


def linears(config: FluxConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(BFL Linear, the diffusers Linears that are its rows from top to bottom), over the whole model."""
    yield from linears_of(config.num_layers, config.num_single_layers, config.guidance_embeds)


def linears_of(n_double: int, n_single: int, guidance: bool = True) -> Iterator[tuple[str, tuple[str, ...]]]:
    """`linears` of a model with so many blocks, with or without guidance embedding."""
    yield from _targets("", "", _EMBEDDERS | (_GUIDANCE if guidance else {}))
    for i in range(n_double):
        yield from _targets(f"double_blocks.{i}.", f"transformer_blocks.{i}.", _DOUBLE)
    for i in range(n_single):
        yield from _targets(f"single_blocks.{i}.", f"single_transformer_blocks.{i}.", _SINGLE)


def norms(config: FluxConfig) -> Iterator[tuple[str, str]]:
    """(BFL norm, diffusers norm); BFL calls its parameter `scale` (ComfyUI saves it as `weight`)."""
    for i in range(config.num_layers):
        for bfl, diffusers in _DOUBLE_NORMS.items():
            yield f"double_blocks.{i}.{bfl}", f"transformer_blocks.{i}.{diffusers}"
    for i in range(config.num_single_layers):
        for bfl, diffusers in _SINGLE_NORMS.items():
            yield f"single_blocks.{i}.{bfl}", f"single_transformer_blocks.{i}.{diffusers}"


def _targets(bfl_stem: str, diffusers_stem: str, table: dict[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for bfl, diffusers in table.items():
        yield bfl_stem + bfl, tuple(diffusers_stem + name for name in diffusers.split())
