"""The base of all block-quantized types and their registry.

A quantized row is a run of equal blocks; a block holds `block_size` weights in `n_bytes` bytes. A subclass names
its layout and turns blocks into float32; this module owns reshaping and checks.
Layouts: ggml `src/ggml-common.h` (MIT), https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

CPU_PART = 1 << 20  # weights decoded at a time, so that what lies between stays in the cache

_REGISTRY: dict[str, type[BlockType]] = {}


class BlockType(ABC):
    """One block-quantized format, e.g. Q8_0."""

    qtype: ClassVar[str]  #: ggml's name
    block_size: ClassVar[int]  #: weights in a block
    n_bytes: ClassVar[int]  #: bytes in a block
    halves: ClassVar[tuple[int, ...]]  #: bytes at which a block's float16 scales begin

    def __init_subclass__(cls) -> None:
        _REGISTRY[cls.qtype] = cls

    @classmethod
    @abstractmethod
    def decode_blocks(cls, blocks: Tensor) -> Tensor:
        """Blocks (n, n_bytes) uint8 -> weights (n, block_size) float32, in ggml's own order and rounding."""

    @classmethod
    def row_bytes(cls, n_columns: int) -> int:
        """Bytes of one row of `n_columns` weights. Raises ValueError where the row is not whole blocks."""
        if n_columns % cls.block_size:
            raise ValueError(f"{cls.qtype} needs a multiple of {cls.block_size} columns, got {n_columns}")
        return n_columns // cls.block_size * cls.n_bytes

    @classmethod
    def decode(cls, packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Packed rows (..., row_bytes) uint8 -> weights (..., n_columns) of `dtype`, decoded through float32."""
        blocks = packed.reshape(-1, cls.n_bytes)
        if blocks.is_cuda:
            from .on_gpu import decode_on_gpu

            weights = decode_on_gpu(blocks, cls, dtype)
        elif torch.compiler.is_compiling():
            weights = cls.decode_blocks(blocks).to(dtype)
        else:
            weights = cls.decode_in_parts(blocks, dtype, CPU_PART)
        return weights.view(*packed.shape[:-1], packed.shape[-1] // cls.n_bytes * cls.block_size)

    @classmethod
    def decode_in_parts(cls, blocks: Tensor, dtype: torch.dtype, n_weights: int) -> Tensor:
        """Blocks (n, n_bytes) -> weights (n, block_size) of `dtype`, about n_weights at a time."""
        weights = torch.empty(blocks.shape[0], cls.block_size, dtype=dtype, device=blocks.device)
        n = n_weights // cls.block_size
        for part, target in zip(blocks.split(n), weights.split(n), strict=True):
            target.copy_(cls.decode_blocks(part))
        return weights


def block_type(qtype: str) -> type[BlockType] | None:
    """The decoder of `qtype`, or None where there is none (dense types and types not supported)."""
    return _REGISTRY.get(qtype)


def block_types() -> list[str]:
    """The names of all block types with a decoder."""
    return list(_REGISTRY)


def half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of every block, as float32 (n, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def planes(packed: Tensor, n_bits: int, run: int) -> Tensor:
    """Bytes (n, B) that hold 8 / n_bits values each -> the values (n, B * 8 / n_bits), uint8.

    ggml goes over the bytes in runs of `run`: first the lowest n_bits of a whole run, then the next ones.
    """
    shifts = torch.arange(0, 8, n_bits, dtype=torch.uint8, device=packed.device)[:, None]
    runs = packed.unflatten(1, (-1, 1, run))  # (n, B / run, 1, run)
    return (runs >> shifts & (1 << n_bits) - 1).flatten(1)
