"""The formats with one scale for 32 weights: Q4_0, Q5_0, Q8_0."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import BlockType, half


def _nibbles(packed: Tensor) -> Tensor:
    """16 bytes a block (n, 16) -> 32 values 0-15 (n, 32): all low halves, then all high halves."""
    return torch.cat((packed & 0x0F, packed >> 4), dim=1)


class Q4_0(BlockType):
    """float16 scale d, 32 four-bit q: w = d * (q - 8)."""

    qtype, block_size, n_bytes = "Q4_0", 32, 18

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return half(blocks, 0) * (_nibbles(blocks[:, 2:]).to(torch.int8) - 8)


class Q5_0(BlockType):
    """float16 scale d, 32 fifth bits, 32 four-bit q: w = d * ((bit << 4 | q) - 16)."""

    qtype, block_size, n_bytes = "Q5_0", 32, 22

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
        fifth = ((blocks[:, 2:6, None] >> shifts) & 1).flatten(1)  # (n, 32), bit i belongs to weight i
        return half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | (fifth << 4)).to(torch.int8) - 16)


class Q8_0(BlockType):
    """float16 scale d, 32 int8 q: w = d * q."""

    qtype, block_size, n_bytes = "Q8_0", 32, 34

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return half(blocks, 0) * blocks[:, 2:].view(torch.int8)
