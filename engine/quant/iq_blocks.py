"""The formats whose four-bit q stands for one of 16 uneven levels: IQ4_NL and IQ4_XS."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import BlockType, half, planes

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml's kvalues_iq4nl


def _levels(q: Tensor) -> Tensor:
    """q 0-15 -> levels, float32."""
    return torch.tensor(LEVELS, dtype=torch.float32, device=q.device)[q.int()]


class IQ4_NL(BlockType):
    """float16 scale d, 32 four-bit q: w = d * level(q)."""

    qtype, block_size, n_bytes = "IQ4_NL", 32, 18
    halves = (0,)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return half(blocks, 0) * _levels(planes(blocks[:, 2:], 4, 16))


class IQ4_XS(BlockType):
    """8 groups of 32: 6-bit scale each, its two high bits apart, four-bit q: w = d * (scale - 32) * level(q)."""

    qtype, block_size, n_bytes = "IQ4_XS", 256, 136
    halves = (0,)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=2).flatten(1)
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
        high = (blocks[:, 2:4, None] >> shifts & 3).flatten(1)
        scales = half(blocks, 0) * ((low | high << 4).to(torch.int8) - 32)
        q = planes(blocks[:, 8:], 4, 16).unflatten(1, (8, 32))
        return (scales[..., None] * _levels(q)).flatten(1)
