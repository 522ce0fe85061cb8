"""How this pack's Triton kernels are launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Address(int):
    """A tensor's, as Triton takes it unasked.

    Of a tensor itself it asks the driver, which before a CUDA graph first runs knows no address that cudaMallocAsync,
    ComfyUI's choice, gave the graph.
    """

    dtype: torch.dtype

    def __new__(cls, tensor: Tensor) -> Address:
        """Of its first number."""
        self = super().__new__(cls, tensor.data_ptr())
        self.dtype = tensor.dtype
        return self

    def data_ptr(self) -> int:
        """What makes it a pointer for Triton."""
        return int(self)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Over the arguments, on the card of the tensors among them: Triton would take the current one."""
    tensor = next(each for each in arguments if isinstance(each, Tensor))
    with torch.cuda.device_of(tensor):
        if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            arguments = tuple(Address(each) if isinstance(each, Tensor) else each for each in arguments)
        kernel[grid](*arguments, **constants)
