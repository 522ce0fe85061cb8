"""FLUX's two kinds of block as functions over diffusers' modules.

The blocks follow https://github.com/black-forest-labs/flux/blob/main/src/flux/modules/layers.py; the modules are
diffusers' `FluxTransformerBlock` and `FluxSingleTransformerBlock`, of which only submodules are called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..quant.fp8 import Fp8Weight, multiply
from .rope import rotate

Module: TypeAlias = Any  # a diffusers module; nn.Module hides the types of what it holds
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (B, heads, L, head_dim) -> (B, L, D)
Qkv = tuple[Tensor, Tensor, Tensor]
Kept = tuple[Any, ...]  # what the second half of a block needs of the first


def double_in(block: Module, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor | None) -> tuple[Qkv, Kept]:
    """img (B, L_img, D) and txt (B, L_txt, D), each with weights of its own, up to the attention that joins them."""
    attn = block.attn
    img_shift, img_scale, *img_kept = modulation(block.norm1.linear, vec, 6)
    txt_shift, txt_scale, *txt_kept = modulation(block.norm1_context.linear, vec, 6)
    x = modulate(img, img_shift, img_scale)
    img_qkv = heads(attn, (attn.to_q, attn.to_k, attn.to_v), x, attn.norm_q, attn.norm_k)
    x = modulate(txt, txt_shift, txt_scale)
    projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    txt_qkv = heads(attn, projections, x, attn.norm_added_q, attn.norm_added_k)
    q, k, v = (torch.cat(pair, dim=2) for pair in zip(txt_qkv, img_qkv, strict=True))
    return rotated(q, k, v, pe), (*img_kept, *txt_kept)


def double_out(block: Module, img: Tensor, txt: Tensor, attended: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """img and txt after the block, from attended (B, L_txt + L_img, D)."""
    attn = block.attn
    img_gate1, img_shift, img_scale, img_gate2, txt_gate1, txt_shift, txt_scale, txt_gate2 = kept
    txt_attn, img_attn = attended.split((txt.shape[1], img.shape[1]), dim=1)
    img = torch.addcmul(img, img_gate1, attn.to_out[0](img_attn))
    img = torch.addcmul(img, img_gate2, mlp(block.ff, modulate(img, img_shift, img_scale)))
    txt = torch.addcmul(txt, txt_gate1, attn.to_add_out(txt_attn))
    txt = torch.addcmul(txt, txt_gate2, mlp(block.ff_context, modulate(txt, txt_shift, txt_scale)))
    return img, clamp_half(txt)


def single_in(block: Module, x: Tensor, vec: Tensor, pe: Tensor | None) -> tuple[Qkv, Kept]:
    """x (B, L, D): attention and MLP side by side, https://arxiv.org/abs/2302.05442, up to the attention."""
    attn = block.attn
    shift, scale, gate = modulation(block.norm.linear, vec, 3)
    h = modulate(x, shift, scale)
    return rotated(*heads(attn, (attn.to_q, attn.to_k, attn.to_v), h, attn.norm_q, attn.norm_k), pe), (h, gate)


def single_out(block: Module, x: Tensor, attended: Tensor, kept: Kept) -> Tensor:
    """x after the block, from attended (B, L, D)."""
    h, gate = kept
    wide = torch.cat((attended, F.gelu(block.proj_mlp(h), approximate="tanh")), dim=2)
    return clamp_half(torch.addcmul(x, gate, block.proj_out(wide)))


@dataclass(frozen=True)
class Parts:
    """The two kinds of block, each cut where its attention is; a host may compile the pieces."""

    double_in: Callable[..., tuple[Qkv, Kept]] = double_in
    double_out: Callable[..., tuple[Tensor, Tensor]] = double_out
    single_in: Callable[..., tuple[Qkv, Kept]] = single_in
    single_out: Callable[..., Tensor] = single_out

    def double_block(
        self, block: Module, img: Tensor, txt: Tensor, vec: Tensor, attend: Attend, pe: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """img (B, L_img, D) and txt (B, L_txt, D) after the block. pe: by which q and k are rotated before `attend`."""
        qkv, kept = self.double_in(block, img, txt, vec, pe)
        return self.double_out(block, img, txt, attend(*qkv), kept)

    def single_block(self, block: Module, x: Tensor, vec: Tensor, attend: Attend, pe: Tensor | None = None) -> Tensor:
        """x (B, L, D) after the block, text and image joined."""
        qkv, kept = self.single_in(block, x, vec, pe)
        return self.single_out(block, x, attend(*qkv), kept)


def token_linears(transformer: Module) -> dict[str, Module]:
    """The Linears that multiply tokens, by name: all of the blocks but modulations, which see one vector a step."""
    return {
        f"{kind}.{name}": module
        for kind in ("transformer_blocks", "single_transformer_blocks")
        for name, module in transformer.get_submodule(kind).named_modules()
        if hasattr(module, "in_features") and "norm" not in name
    }


def rotated(q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None) -> Qkv:
    """q, k, v, the first two rotated where there is something to rotate by."""
    return (q, k, v) if pe is None else (rotate(q, pe), rotate(k, pe), v)


def modulation(linear: Module, vec: Tensor, n_parts: int) -> tuple[Tensor, ...]:
    """vec (B, D) -> n_parts tensors (B, 1, D): shift, scale, gate, and once more for the MLP."""
    return linear(F.silu(vec)).unsqueeze(1).chunk(n_parts, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then scale and shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def heads(
    attn: Module, projections: tuple[Module, ...], x: Tensor, norm_q: Module, norm_k: Module
) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, L, D) -> q, k, v (B, heads, L, head_dim), q and k of unit root mean square times their weight."""
    q, k, v = (y.unflatten(2, (-1, attn.head_dim)).transpose(1, 2) for y in products(projections, x))
    return rms_norm(q, norm_q), rms_norm(k, norm_k), v


def products(linears: tuple[Module, ...], x: Tensor) -> list[Tensor]:
    """What each Linear gives for the one x, which FP8 quantizes once where no LoRA needs it as it is."""
    return (
        multiply(x, *(linear.narrow for linear in linears))
        if takes_fp8(*linears)
        else [linear(x) for linear in linears]
    )


def takes_fp8(*linears: Module) -> bool:
    """Whether all multiply rows in FP8, no LoRA needing them as they are."""
    return all(isinstance(getattr(linear, "narrow", None), Fp8Weight) and linear.branch is None for linear in linears)


def rms_norm(x: Tensor, norm: Module) -> Tensor:
    """`norm` in x's dtype and place."""
    return F.rms_norm(x, x.shape[-1:], norm_weight(norm, x), eps=1e-6)


def norm_weight(norm: Module, x: Tensor) -> Tensor:
    """Of an RMS norm, in x's dtype and place, wherever a host left it; a card is not made to wait for it."""
    weight: Tensor = norm.weight.to(x, non_blocking=x.is_cuda)
    return weight


def mlp(feed_forward: Module, x: Tensor) -> Tensor:
    """Linear, GELU (tanh form), Linear."""
    return feed_forward.net[2](F.gelu(feed_forward.net[0].proj(x), approximate="tanh"))


def clamp_half(x: Tensor) -> Tensor:
    """float16 overflows in FLUX's residual stream; other dtypes pass."""
    return x.nan_to_num(nan=0.0, posinf=65504, neginf=-65504) if x.dtype == torch.float16 else x
