"""The block decoders as one Triton kernel: packed bytes are read once, weights of the wanted dtype written once.

Each `_<qtype>` gives the weights of some blocks, float32 (blocks, groups, width), by the formula of the class of that
name. What a group shares is computed on (blocks, groups) from `block`, pointers to first bytes (blocks, 1), and `g`,
numbers of groups (1, groups). What each weight has of its own comes from `blocks`, the same pointers (blocks, 1, 1),
`gs` (1, groups, 1) and `j`, places in a group (1, 1, width).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import BlockType
from .iq_blocks import LEVELS
from .triton_launch import launch

FUSION = False  # products and sums are rounded as ggml rounds them
WEIGHTS = 2048  # of one program; with one warp each the fastest of 18 splits tried on an H200


@triton.jit
def _byte(pointer):
    return tl.load(pointer).to(tl.int32)


@triton.jit
def _signed(pointer):
    return tl.load(pointer.to(tl.pointer_type(tl.int8))).to(tl.float32)


@triton.jit
def _half(pointer):
    return tl.load(pointer.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def _nibble(blocks, gs, j):
    """Of 32 weights in two groups of 16: the low halves of 16 bytes, then the high ones."""
    return (_byte(blocks + j) >> 4 * gs) & 15


@triton.jit
def _fifth(blocks, gs, j):
    return ((_byte(blocks + 2 * gs + (j >> 3)) >> (j & 7)) & 1) << 4


@triton.jit
def _q4_0(block, g, blocks, gs, j, levels):
    return _half(block)[:, :, None] * (_nibble(blocks + 2, gs, j) - 8).to(tl.float32)


@triton.jit
def _q4_1(block, g, blocks, gs, j, levels):
    q = _nibble(blocks + 4, gs, j)
    return _half(block)[:, :, None] * q.to(tl.float32) + _half(block + 2)[:, :, None]


@triton.jit
def _q5_0(block, g, blocks, gs, j, levels):
    q = _nibble(blocks + 6, gs, j) | _fifth(blocks + 2, gs, j)
    return _half(block)[:, :, None] * (q - 16).to(tl.float32)


@triton.jit
def _q5_1(block, g, blocks, gs, j, levels):
    q = _nibble(blocks + 8, gs, j) | _fifth(blocks + 4, gs, j)
    return _half(block)[:, :, None] * q.to(tl.float32) + _half(block + 2)[:, :, None]


@triton.jit
def _q8_0(block, g, blocks, gs, j, levels):
    return _half(block)[:, :, None] * _signed(blocks + 2 + 16 * gs + j)


@triton.jit
def _iq4_nl(block, g, blocks, gs, j, levels):
    return _half(block)[:, :, None] * tl.load(levels + _nibble(blocks + 2, gs, j))


@triton.jit
def _iq4_xs(block, g, blocks, gs, j, levels):
    scale = (_byte(block + 4 + (g >> 1)) >> 4 * (g & 1)) & 15
    scale |= ((_byte(block + 2 + (g >> 2)) >> 2 * (g & 3)) & 3) << 4
    scale = _half(block) * (scale - 32).to(tl.float32)
    q = (_byte(blocks + 8 + 16 * gs + (j & 15)) >> 4 * (j >> 4)) & 15
    return scale[:, :, None] * tl.load(levels + q)


@triton.jit
def _q2_k(block, g, blocks, gs, j, levels):
    both = _byte(block + g)
    scale, least = _half(block + 80) * (both & 15).to(tl.float32), _half(block + 82) * (both >> 4).to(tl.float32)
    q = (_byte(blocks + 16 + _pair(gs) + j) >> (gs & 6)) & 3
    return scale[:, :, None] * q.to(tl.float32) - least[:, :, None]


@triton.jit
def _pair(gs):
    """Where the 2-bit values of group 0-15 begin: two groups to 32 bytes, four times over, then the next 32 bytes."""
    return ((gs >> 3) << 5) + ((gs & 1) << 4)


@triton.jit
def _q3_k(block, g, blocks, gs, j, levels):
    scale = (_byte(block + 96 + (g & 7)) >> 4 * (g >> 3)) & 15
    scale |= ((_byte(block + 104 + (g & 3)) >> 2 * (g >> 2)) & 3) << 4
    scale = _half(block + 108) * (scale - 32).to(tl.float32)
    q = (_byte(blocks + 32 + _pair(gs) + j) >> (gs & 6)) & 3
    q |= ((_byte(blocks + ((gs & 1) << 4) + j) >> (gs >> 1)) & 1) << 2
    return scale[:, :, None] * (q - 4).to(tl.float32)


@triton.jit
def _scale_and_min(block, g):
    """Of Q4_K and Q5_K; see `k_blocks._scales_and_mins`."""
    s, m, rest = _byte(block + 4 + (g & 3)), _byte(block + 8 + (g & 3)), _byte(block + 12 + (g & 3))
    scale = tl.where(g < 4, s & 63, (rest & 15) | ((s >> 2) & 48))
    least = tl.where(g < 4, m & 63, (rest >> 4) | ((m >> 2) & 48))
    return (_half(block) * scale.to(tl.float32))[:, :, None], (_half(block + 2) * least.to(tl.float32))[:, :, None]


@triton.jit
def _q4_k(block, g, blocks, gs, j, levels):
    scale, least = _scale_and_min(block, g)
    q = (_byte(blocks + 16 + 32 * (gs >> 1) + j) >> 4 * (gs & 1)) & 15
    return scale * q.to(tl.float32) - least


@triton.jit
def _q5_k(block, g, blocks, gs, j, levels):
    scale, least = _scale_and_min(block, g)
    q = (_byte(blocks + 48 + 32 * (gs >> 1) + j) >> 4 * (gs & 1)) & 15
    q |= ((_byte(blocks + 16 + j) >> gs) & 1) << 4
    return scale * q.to(tl.float32) - least


@triton.jit
def _q6_k(block, g, blocks, gs, j, levels):
    scale = _half(block + 208) * _signed(block + 192 + g)
    q = (_byte(blocks + 64 * (gs >> 3) + 16 * (gs & 3) + j) >> (gs & 4)) & 15
    q |= ((_byte(blocks + 128 + _pair(gs) + j) >> (gs & 6)) & 3) << 4
    return scale[:, :, None] * (q - 32).to(tl.float32)


@triton.jit
def some_blocks(
    packed,
    levels,
    start,
    n_blocks,
    formula: tl.constexpr,
    n_bytes: tl.constexpr,
    groups: tl.constexpr,
    width: tl.constexpr,
    blocks: tl.constexpr,
):
    """The weights (blocks, groups, width) of so many from `start` on, of n_blocks, and their places."""
    # the last ones begin earlier, so that no load needs a mask
    first = tl.minimum(start, tl.maximum(n_blocks - blocks, 0))
    i = first + tl.minimum(tl.arange(0, blocks), n_blocks - 1)[:, None]
    g = tl.arange(0, groups)[None, :]
    j = tl.arange(0, width)[None, None, :]
    block = packed + i * n_bytes
    values = formula(block, g, block[:, :, None], g[:, :, None], j, levels)
    return values, (i * (groups * width) + g * width)[:, :, None] + j


@triton.jit
def _decode(
    packed,
    weights,
    levels,
    n_blocks,
    formula: tl.constexpr,
    n_bytes: tl.constexpr,
    groups: tl.constexpr,
    width: tl.constexpr,
    blocks: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * blocks
    values, place = some_blocks(packed, levels, start, n_blocks, formula, n_bytes, groups, width, blocks)
    tl.store(weights + place, values.to(weights.dtype.element_ty))


_FORMULAS = {  # and the groups of a block
    "Q4_0": (_q4_0, 2),
    "Q4_1": (_q4_1, 2),
    "Q5_0": (_q5_0, 2),
    "Q5_1": (_q5_1, 2),
    "Q8_0": (_q8_0, 2),
    "IQ4_NL": (_iq4_nl, 2),
    "IQ4_XS": (_iq4_xs, 8),
    "Q2_K": (_q2_k, 16),
    "Q3_K": (_q3_k, 16),
    "Q4_K": (_q4_k, 8),
    "Q5_K": (_q5_k, 8),
    "Q6_K": (_q6_k, 16),
}

_LEVELS: dict[torch.device, Tensor] = {}


def decoder(layout: type[BlockType], device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    """What `some_blocks` calls levels on the device, and its constants for the layout, WEIGHTS at a time."""
    formula, groups = _FORMULAS[layout.qtype]
    size = layout.block_size
    sizes = {"groups": groups, "width": size // groups, "blocks": WEIGHTS // size}
    if device not in _LEVELS:
        _LEVELS[device] = torch.tensor(LEVELS, dtype=torch.float32, device=device)
    return _LEVELS[device], {"formula": formula, "n_bytes": layout.n_bytes, **sizes}


def decode_blocks(layout: type[BlockType], packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous blocks (n, n_bytes) uint8 -> weights (n, block_size) of `dtype`, rounded once, from float32."""
    n_blocks = packed.shape[0]
    weights = torch.empty(n_blocks, layout.block_size, dtype=dtype, device=packed.device)
    levels, constants = decoder(layout, packed.device)
    grid = (triton.cdiv(n_blocks, constants["blocks"]),)
    launch(_decode, grid, packed, weights, levels, n_blocks, **constants, num_warps=1, enable_fp_fusion=FUSION)
    return weights
