"""MXFP8 and NVFP4 products: y = x W^T with a scale for every few numbers of a row, on tensor cores that have them.

MXFP8 (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf): numbers in float8_e4m3fn,
a power of two for every 32. NVFP4: numbers in 4 bits (e2m1), a float8_e4m3fn for every 16 and one float32 for all. The
kernels are comfy-kitchen's, which comes with ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .linear import QuantLinear

CAPABILITY = (10, 0)  # of the first NVIDIA cards with such tensor cores (Blackwell)
GRAIN = 32  # rows and columns of a weight must be a multiple
LARGEST_FP4 = 6.0 * 448.0  # of a number in e2m1 times that of its block's scale
WRONG = 0.01  # a kernel whose product is further off, relative, is not used


@dataclass(frozen=True)
class Quantized:
    """Rows as `BlockFormat.quantize` gives them. whole: NVFP4's one scale for all, else None."""

    data: Tensor
    scales: Tensor
    whole: Tensor | None


@dataclass(frozen=True, eq=False)
class BlockScaled:
    """A Linear's weight (out, in) for such products; bias: (out,) in the compute dtype, or None."""

    format: BlockFormat
    weight: Quantized
    bias: Tensor | None = None

    def multiply(self, x: Tensor, bias: bool = True) -> Tensor:
        """x (..., in) -> x W^T + b (..., out) in x's dtype. bias: whether it is added."""
        rows = x.reshape(-1, x.shape[-1])
        y = self.format.product(self.format.quantize(rows), self.weight, x.dtype)[: len(rows)]
        y = y if self.bias is None or not bias else y + self.bias
        return y.view(*x.shape[:-1], y.shape[1])


@dataclass(frozen=True)
class BlockFormat:
    """One of the two. n_bits: of a number with its share of the scales."""

    name: str
    n_bits: float

    def quantize(self, x: Tensor) -> Quantized:
        """x (N, in) of any float type, N padded to a multiple of GRAIN with rows of zeros."""
        x = x.to(torch.bfloat16)
        if self.name == "MXFP8":
            data, scales = _kitchen().quantize_mxfp8(x, True)
            return Quantized(data, scales, None)
        whole = (x.abs().amax().float() / LARGEST_FP4).clamp_min(torch.finfo(torch.float32).tiny)
        data, scales = _kitchen().quantize_nvfp4(x, whole, pad_16x=True)
        return Quantized(data, scales, whole)

    def dequantize(self, x: Quantized) -> Tensor:
        """The float32 numbers that the rows stand for."""
        if self.name == "MXFP8":
            made: Tensor = _kitchen().dequantize_mxfp8(x.data, x.scales, torch.float32)
        else:
            made = _kitchen().dequantize_nvfp4(x.data, x.whole, x.scales, torch.float32)
        return made

    def product(self, x: Quantized, weight: Quantized, dtype: torch.dtype) -> Tensor:
        """x W^T (N, out); off NVIDIA cards of the same numbers in float32, slowly: for tests."""
        if not x.data.is_cuda:
            return (self.dequantize(x) @ self.dequantize(weight).t()).to(dtype)
        if self.name == "MXFP8":
            made: Tensor = _kitchen().scaled_mm_mxfp8(x.data, weight.data, x.scales, weight.scales)
        else:
            scales = (x.whole, weight.whole, x.scales, weight.scales)
            made = _kitchen().scaled_mm_nvfp4(x.data, weight.data, *scales)
        return made.to(dtype)

    def convert(self, linear: QuantLinear, dtype: torch.dtype) -> BlockScaled:
        """A Linear's weight where it lies; its bias in the compute dtype `dtype`."""
        bias = None if linear.bias is None else linear.bias.to(dtype)
        return BlockScaled(self, self.quantize(linear.decode(linear.weight, torch.bfloat16)), bias)

    def n_bytes(self, linears: Iterable[QuantLinear]) -> int:
        """What their weights take beside those that they have."""
        return round(sum(linear.out_features * linear.in_features for linear in linears) * self.n_bits / 8)

    def fits(self, linear: QuantLinear) -> bool:
        """Whether the tensor cores take its shape."""
        return linear.out_features % GRAIN == 0 and linear.in_features % GRAIN == 0

    def why_not(self, device: torch.device) -> str:
        """Why there are no such products on this device, a sentence without its end, or nothing; tried once."""
        return _why_not(self, device)


MXFP8 = BlockFormat("MXFP8", 8 + 8 / 32)
NVFP4 = BlockFormat("NVFP4", 4 + 8 / 16)


def _kitchen() -> Any:
    import comfy_kitchen

    return comfy_kitchen


@cache
def _why_not(format: BlockFormat, device: torch.device) -> str:
    needs = f"{format.name} products need an NVIDIA card of the 50 series or another Blackwell"
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < CAPABILITY:
        return needs
    try:
        x, w = (torch.randn(128, 256, device=device, generator=_seeded(device)) for _ in range(2))
        rows, weight = format.quantize(x), format.quantize(w)
        right = format.dequantize(rows) @ format.dequantize(weight).t()
        off = ((format.product(rows, weight, torch.float32) - right).norm() / right.norm()).item()
    except torch.OutOfMemoryError:
        raise
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:  # no kernel here, or one that is older
        return f"torch or comfy-kitchen has no {format.name} products for this card ({first_line(error)})"
    return "" if off < WRONG else f"this card's {format.name} products are {off:.0%} off"


def _seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
