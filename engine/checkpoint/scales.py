"""Reads the scales of all packed blocks once: one that is no number would turn the picture black, much later."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..quant import BlockType, PackedTensor, block_type

_EXPONENT = 0x7C00  # of a float16; all its bits are set in infinities and NaN alone
_AT_ONCE = 1 << 19  # blocks


def check_scales(file_name: str, tensors: Mapping[str, PackedTensor], progress: Callable[[int], None]) -> None:
    """Raises CheckpointError where a block's scale is NaN or infinite. progress: told every tensor's bytes."""
    for name, tensor in tensors.items():
        layout = block_type(tensor.qtype)
        if layout is not None:
            check_blocks(file_name, name, layout, tensor.data)
        progress(tensor.data.nbytes)


def check_blocks(file_name: str, name: str, layout: type[BlockType], packed: Tensor) -> None:
    """The same for packed rows (..., row_bytes) of one tensor."""
    blocks = packed.reshape(-1, layout.n_bytes)
    for first in range(0, len(blocks), _AT_ONCE):
        part = blocks[first : first + _AT_ONCE]
        for start in layout.halves:
            scales = part[:, start : start + 2].contiguous().view(torch.int16).squeeze(1)
            broken = (scales & _EXPONENT) == _EXPONENT
            if broken.any():
                number = int(broken.nonzero()[0])
                raise CheckpointError(
                    f"{file_name}: block {first + number} of tensor {name!r} has the scale "
                    f"{float(scales[number].view(torch.float16))}, expected a number. "
                    "The download is damaged; download the file again."
                )
