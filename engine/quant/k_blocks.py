"""The K-quants: 256 weights a block in groups of 16 or 32, each group with a small integer scale of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import BlockType, half, planes


def _with_mins(blocks: Tensor, q: Tensor) -> Tensor:
    """What Q4_K and Q5_K do with their q (n, 256): w = d * scale * q - dmin * min."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    weights = half(blocks, 0)[..., None] * scales * q.unflatten(1, (8, 32)) - half(blocks, 2)[..., None] * mins
    return weights.flatten(1)


def _scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes (n, 12) of Q4_K and Q5_K -> eight 6-bit scales and eight 6-bit mins, float32 (n, 8, 1).

    Four scales and four mins lie in the low six bits of the first eight bytes. The other four have their low halves
    in the last four bytes, a scale and a min in each, and their top two bits over the first eight.
    """
    scales, mins, rest = packed.split(4, dim=1)
    scales = torch.cat((scales & 63, rest & 15 | (scales >> 2) & 48), dim=1)
    mins = torch.cat((mins & 63, rest >> 4 | (mins >> 2) & 48), dim=1)
    return scales.float()[..., None], mins.float()[..., None]


class Q2_K(BlockType):
    """16 groups of 16: 4-bit scale and min each, two-bit q: w = d * scale * q - dmin * min."""

    qtype, block_size, n_bytes = "Q2_K", 256, 84
    halves = (80, 82)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        scales = half(blocks, 80) * (blocks[:, :16] & 15)
        mins = half(blocks, 82) * (blocks[:, :16] >> 4)
        q = planes(blocks[:, 16:80], 2, 32).unflatten(1, (16, 16))
        return (scales[..., None] * q - mins[..., None]).flatten(1)


class Q3_K(BlockType):
    """16 groups of 16: 6-bit scale each, three-bit q, its high bit apart: w = d * (scale - 32) * (q - 4)."""

    qtype, block_size, n_bytes = "Q3_K", 256, 110
    halves = (108,)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        scales = planes(blocks[:, 96:104], 4, 8) | planes(blocks[:, 104:108], 2, 4) << 4
        scales = half(blocks, 108) * (scales.to(torch.int8) - 32)
        q = planes(blocks[:, 32:96], 2, 32) | planes(blocks[:, :32], 1, 32) << 2
        q = (q.to(torch.int8) - 4).unflatten(1, (16, 16))
        return (scales[..., None] * q).flatten(1)


class Q4_K(BlockType):
    """8 groups of 32: 6-bit scale and min each, four-bit q: w = d * scale * q - dmin * min."""

    qtype, block_size, n_bytes = "Q4_K", 256, 144
    halves = (0, 2)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return _with_mins(blocks, planes(blocks[:, 16:], 4, 32))


class Q5_K(BlockType):
    """8 groups of 32: 6-bit scale and min each, five-bit q, its high bit apart: w = d * scale * q - dmin * min."""

    qtype, block_size, n_bytes = "Q5_K", 256, 176
    halves = (0, 2)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return _with_mins(blocks, planes(blocks[:, 48:], 4, 32) | planes(blocks[:, 16:48], 1, 32) << 4)


class Q6_K(BlockType):
    """16 groups of 16: int8 scale each, six-bit q, its two high bits apart: w = d * scale * (q - 32)."""

    qtype, block_size, n_bytes = "Q6_K", 256, 210
    halves = (208,)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        scales = half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
        q = planes(blocks[:, :128], 4, 64) | planes(blocks[:, 128:192], 2, 32) << 4
        q = (q.to(torch.int8) - 32).unflatten(1, (16, 16))
        return (scales[..., None] * q).flatten(1)
