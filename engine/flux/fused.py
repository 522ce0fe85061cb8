"""The blocks with Triton kernels between the matrix products: `blocks`' own arithmetic in a fraction of the passes.

Nothing is traced and nothing compiled for a size: LoRAs, packed weights and those that a host streams work as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..quant.fp8 import E4M3, multiply_rows
from . import blocks
from .blocks import Kept, Module, Parts, Qkv, clamp_half, modulation, norm_weight, takes_fp8
from .triton_blocks import Rows, heads, join_gelu, norm, residual, residual_norm


def double_in(
    block: Module, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor | None, fp8: bool = False
) -> tuple[Qkv, Kept]:
    """See `blocks.double_in`. fp8: q, k, v are for `attention.fp8`."""
    if pe is None:
        return blocks.double_in(block, img, txt, vec, pe)
    attn = block.attn
    img_shift, img_scale, *img_kept = modulation(block.norm1.linear, vec, 6)
    txt_shift, txt_scale, *txt_kept = modulation(block.norm1_context.linear, vec, 6)
    img_qkv = products((attn.to_q, attn.to_k, attn.to_v), img, lambda fp8: norm(img, img_shift, img_scale, fp8))
    projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    txt_qkv = products(projections, txt, lambda fp8: norm(txt, txt_shift, txt_scale, fp8))
    of_txt = (txt_qkv, norm_weight(attn.norm_added_q, txt), norm_weight(attn.norm_added_k, txt))
    of_img = (img_qkv, norm_weight(attn.norm_q, img), norm_weight(attn.norm_k, img))
    return heads((of_txt, of_img), pe, attn.head_dim, fp8), (*img_kept, *txt_kept)


def double_out(block: Module, img: Tensor, txt: Tensor, attended: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """See `blocks.double_out`."""
    attn = block.attn
    txt_attn, img_attn = attended.split((txt.shape[1], img.shape[1]), dim=1)
    img = after_attention(img, project(attn.to_out[0], img_attn, img), kept[:4], block.ff)
    txt = after_attention(txt, project(attn.to_add_out, txt_attn, txt), kept[4:], block.ff_context)
    return img, clamp_half(txt)


def project(linear: Module, attended: Tensor, like: Tensor) -> Tensor:
    """What it gives for attended (B, L, D), in FP8 without scales or as `like`, whose dtype the result has."""
    if attended.dtype != E4M3:
        y: Tensor = linear(attended)
        return y
    n_rows, width = like.shape[0] * like.shape[1], attended.shape[2]

    def rows(fp8: bool) -> Rows:
        if not fp8:
            return attended.to(like.dtype)
        return attended.reshape(n_rows, width), torch.ones(n_rows, 1, device=like.device)

    return products((linear,), like, rows)[0]


def after_attention(x: Tensor, y: Tensor, kept: Kept, feed_forward: Module) -> Tensor:
    """x (B, L, D) after what attention gave, y, and the MLP."""
    gate1, shift, scale, gate2 = kept
    up, down = feed_forward.net[0].proj, feed_forward.net[2]
    x, h = residual_norm(x, y, gate1, shift, scale, takes_fp8(up))
    (wide,) = products((up,), x, lambda _: h)
    (y,) = products((down,), x, lambda fp8: join_gelu(wide, fp8=fp8))
    return residual(x, y, gate2)


def single_in(block: Module, x: Tensor, vec: Tensor, pe: Tensor | None, fp8: bool = False) -> tuple[Qkv, Kept]:
    """See `blocks.single_in`. fp8: q, k, v are for `attention.fp8`."""
    if pe is None:
        return blocks.single_in(block, x, vec, pe)
    attn = block.attn
    shift, scale, gate = modulation(block.norm.linear, vec, 3)
    projections = (attn.to_q, attn.to_k, attn.to_v)
    h = norm(x, shift, scale, takes_fp8(*projections, block.proj_mlp))
    qkv = products(projections, x, lambda _: h)
    weighted = (qkv, norm_weight(attn.norm_q, x), norm_weight(attn.norm_k, x))
    return heads([weighted], pe, attn.head_dim, fp8), (h, gate)


def single_out(block: Module, x: Tensor, attended: Tensor, kept: Kept) -> Tensor:
    """See `blocks.single_out`."""
    h, gate = kept
    (wide,) = products((block.proj_mlp,), x, lambda _: h)
    (y,) = products((block.proj_out,), x, lambda fp8: join_gelu(wide, attended, fp8))
    return clamp_half(residual(x, y, gate))


PARTS = Parts(double_in, double_out, single_in, single_out)
NARROW = replace(PARTS, double_in=partial(double_in, fp8=True), single_in=partial(single_in, fp8=True))  # attend in FP8


def products(linears: Sequence[Module], like: Tensor, rows: Callable[[bool], Rows]) -> list[Tensor]:
    """What each Linear gives, (B, L, out), for the rows; these are asked for in FP8 where all take them so.

    like: (B, L, any) of the compute dtype.
    """
    x = rows(takes_fp8(*linears))
    if isinstance(x, Tensor):
        return [linear(x) for linear in linears]
    made = multiply_rows(x, [linear.narrow for linear in linears], like.dtype)
    return [y.view(*like.shape[:2], y.shape[1]) for y in made]
