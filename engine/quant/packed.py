"""A weight as it lies in its file: dense, scaled fp8, or quantized blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .blocks import block_type, block_types

DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@dataclass(frozen=True)
class PackedTensor:
    """A weight and how to read it.

    data: dense and fp8 types: (*shape) of the type's own dtype; block types: (*shape[:-1], row_bytes) uint8.
        Usually a view of a mapped file, so holding one costs address space, not memory.
    qtype: ggml's or safetensors' name of the type.
    shape: logical shape, rows first.
    scale: the factor of a scaled fp8 weight, one float32, else None.
    """

    data: Tensor
    qtype: str
    shape: tuple[int, ...]
    scale: Tensor | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the data are plain floats that need no decoding."""
        return self.qtype in DENSE

    def rows(self, start: int, stop: int) -> PackedTensor:
        """Rows `start` to `stop` (exclusive) as a view of the same memory."""
        data = self.data[start:stop]
        return replace(self, data=data, shape=(data.shape[0], *self.shape[1:]))

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as floats (*shape) of `dtype`; a view where the type already is `dtype`."""
        return decode(self.data, self.qtype, dtype, self.scale)

    def as_floats(self) -> Tensor:
        """The weight (*shape): as it is where it is dense, else decoded to float32."""
        return self.data if self.is_dense else self.decode()


def decode(data: Tensor, qtype: str, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """What `PackedTensor.decode` does, on bare parts: `data` of `qtype` -> floats of `dtype`."""
    blocks = block_type(qtype)
    if blocks is not None:
        return blocks.decode(data, dtype)
    return data.to(dtype) if scale is None else (data.float() * scale).to(dtype)  # small scales vanish in float16


def supported_types() -> list[str]:
    """The names of all types that can be decoded, sorted."""
    return sorted([*DENSE, *FP8, *block_types()])
