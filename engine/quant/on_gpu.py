"""Decoding on a GPU: by Triton where it runs, else by plain torch, said once."""

from __future__ import annotations

import logging
import sys
from functools import cache

import torch
from torch import Tensor

from ..errors import first_line
from .blocks import BlockType, block_type

GPU_PART = 1 << 24  # weights decoded at a time by plain torch, which takes some ten bytes for each
NO_TRITON = (
    "KontextKit: packed weights are unpacked by plain torch, many times slower than by Triton, which %s. "
    "To have it: pip install %s, then start ComfyUI again."
)


def decode_on_gpu(blocks: Tensor, layout: type[BlockType], dtype: torch.dtype) -> Tensor:
    """Blocks (n, n_bytes) uint8 on a GPU -> weights (n, block_size) of `dtype`."""
    if torch.compiler.is_compiling():
        weights: Tensor = torch.ops.kontextkit.decode_blocks(blocks, layout.qtype, dtype)
        return weights
    if has_triton(blocks.device):
        from .triton_form import decode_blocks

        return decode_blocks(layout, blocks.contiguous(), dtype)
    return layout.decode_in_parts(blocks, dtype, GPU_PART)


@cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton compiles and runs on this device; tried once, and where it does not, the log says what to do."""
    try:
        from .triton_form import decode_blocks

        layout = block_type("Q4_0")
        assert layout
        decode_blocks(layout, torch.zeros(1, layout.n_bytes, dtype=torch.uint8, device=device), torch.float32)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton fails in its own ways: no module, no C compiler, an old card
        reason = "is not installed" if isinstance(error, ImportError) else f"failed ({first_line(error)})"
        logging.warning(NO_TRITON, reason, "triton-windows" if sys.platform == "win32" else "triton")
        return False
    return True


@torch.library.custom_op("kontextkit::decode_blocks", mutates_args=())
def _decode_blocks(blocks: Tensor, qtype: str, dtype: torch.dtype) -> Tensor:
    """One node in a compiled graph, whatever decodes behind it."""
    layout = block_type(qtype)
    assert layout
    return decode_on_gpu(blocks, layout, dtype)


@_decode_blocks.register_fake
def _(blocks: Tensor, qtype: str, dtype: torch.dtype) -> Tensor:
    layout = block_type(qtype)
    assert layout
    return blocks.new_empty(blocks.shape[0], layout.block_size, dtype=dtype)
