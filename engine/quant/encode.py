"""Weights to blocks: the registry of encoders, and how they go over a tensor.

Every encoder gives the same bytes as ggml's reference in C (`ggml_quantize_chunk` without an importance matrix), where
that is compiled without fused multiply-add.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from .blocks import BlockType

Encoder = Callable[[Tensor], Tensor]  # weights (n, block_size) float32 -> blocks (n, n_bytes) uint8

CPU_PART = 1 << 17  # weights encoded at a time; larger and smaller ones are slower
GPU_PART = 1 << 25  # takes some forty bytes of the card for each

_ENCODERS: dict[str, Encoder] = {}


def encodes(layout: type[BlockType]) -> Callable[[Encoder], Encoder]:
    """Registers a function as the encoder of a block type."""

    def register(encoder: Encoder) -> Encoder:
        _ENCODERS[layout.qtype] = encoder
        return encoder

    return register


def encodable_types() -> list[str]:
    """The names of all block types with an encoder."""
    return list(_ENCODERS)


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Threads for `encode`, one for each core; inside them torch uses no others, afterwards as many as before."""
    n_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(n_threads)


def encode(weights: Tensor, layout: type[BlockType], pool: ThreadPoolExecutor | None = None) -> Tensor:
    """Finite weights (..., n_columns) of any float dtype -> packed rows (..., row_bytes) uint8 on the same device.

    pool: threads that share the work on a CPU. Raises ValueError where a row is not whole blocks.
    """
    row_bytes = layout.row_bytes(weights.shape[-1])
    encoder = _ENCODERS[layout.qtype]
    blocks = weights.reshape(-1, layout.block_size)
    packed = torch.empty(blocks.shape[0], layout.n_bytes, dtype=torch.uint8, device=weights.device)
    at_once = (GPU_PART if weights.is_cuda else CPU_PART) // layout.block_size
    parts = zip(blocks.split(at_once), packed.split(at_once), strict=True)
    encode_part = partial(_encode_part, encoder)
    for _ in pool.map(encode_part, parts) if pool and not weights.is_cuda else map(encode_part, parts):
        pass
    return packed.view(*weights.shape[:-1], row_bytes)


def _encode_part(encoder: Encoder, part: tuple[Tensor, Tensor]) -> None:
    blocks, packed = part
    with torch.inference_mode():  # each thread has a mode of its own; in this one every tensor may be written to
        packed.copy_(encoder(blocks.float()))
