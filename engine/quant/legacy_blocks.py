"""The formats with one scale for 32 weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import BlockType, half, planes


def _nibbles(packed: Tensor) -> Tensor:
    """16 bytes a block (n, 16) -> 32 values 0-15 (n, 32): all low halves, then all high halves."""
    return planes(packed, 4, 16)


def _fifths(packed: Tensor) -> Tensor:
    """4 bytes a block (n, 4) -> 32 values 0 or 16 (n, 32), bit i for weight i."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1) << 4


class Q4_0(BlockType):
    """float16 scale d, 32 four-bit q: w = d * (q - 8)."""

    qtype, block_size, n_bytes = "Q4_0", 32, 18
    halves = (0,)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return half(blocks, 0) * (_nibbles(blocks[:, 2:]).to(torch.int8) - 8)


class Q4_1(BlockType):
    """float16 scale d and offset m, 32 four-bit q: w = d * q + m."""

    qtype, block_size, n_bytes = "Q4_1", 32, 20
    halves = (0, 2)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return half(blocks, 0) * _nibbles(blocks[:, 4:]) + half(blocks, 2)


class Q5_0(BlockType):
    """float16 scale d, 32 fifth bits, 32 four-bit q: w = d * ((bit << 4 | q) - 16)."""

    qtype, block_size, n_bytes = "Q5_0", 32, 22
    halves = (0,)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifths(blocks[:, 2:6])).to(torch.int8) - 16)


class Q5_1(BlockType):
    """float16 scale d and offset m, 32 fifth bits, 32 four-bit q: w = d * (bit << 4 | q) + m."""

    qtype, block_size, n_bytes = "Q5_1", 32, 24
    halves = (0, 2)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifths(blocks[:, 4:8])) + half(blocks, 2)


class Q8_0(BlockType):
    """float16 scale d, 32 int8 q: w = d * q."""

    qtype, block_size, n_bytes = "Q8_0", 32, 34
    halves = (0,)

    @classmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        return half(blocks, 0) * blocks[:, 2:].view(torch.int8)
