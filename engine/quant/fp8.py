"""Row-wise scaled FP8 products, y = x W^T with both sides in float8_e4m3fn, on the tensor cores that have it.

Every row of W and every row (token) of x has a scale of its own, its largest magnitude over 448, as in
https://arxiv.org/abs/2209.05433; the sums are taken in float32, to which the scales and the bias are applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import first_line
from .blocks import block_type
from .on_gpu import has_triton

if TYPE_CHECKING:
    from .linear import QuantLinear

E4M3 = torch.float8_e4m3fn
CAPABILITY = (8, 9)  # of the first NVIDIA cards with FP8 tensor cores
GRAIN = 16  # rows and columns of a weight must be a multiple
PART = 1 << 24  # packed weights converted at a time, each through a float32
Quantized = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Fp8Weight:
    """A Linear's weight for FP8 products.

    data: (out, in) float8_e4m3fn; scale: (1, out) float32; bias: (out,) in the compute dtype, or None.
    """

    data: Tensor
    scale: Tensor
    bias: Tensor | None = None

    def multiply(self, x: Tensor, bias: bool = True) -> Tensor:
        """x (..., in) -> x W^T + b (..., out) in x's dtype. bias: whether it is added."""
        return multiply(x, self, bias=bias)[0]


def quantize(x: Tensor) -> Quantized:
    """x (N, in) of any float type -> its values float8_e4m3fn, and the rows' scales (N, 1) float32."""
    if (
        x.is_cuda and not torch.compiler.is_compiling() and has_triton(x.device)
    ):  # a compiler fuses it with what comes before
        from .triton_fp8 import quantize_rows

        return quantize_rows(x)
    largest = x.abs().amax(dim=1, keepdim=True).float()
    scale = (largest / torch.finfo(E4M3).max).clamp_min(torch.finfo(torch.float32).tiny)  # rows of zeros stay zeros
    return (x.float() / scale).to(E4M3), scale


def multiply(x: Tensor, *weights: Fp8Weight, bias: bool = True) -> list[Tensor]:
    """x (..., in) -> x W^T + b (..., out) in x's dtype for each weight; x is quantized once.

    bias: whether it is added.
    """
    products = multiply_rows(quantize(x.reshape(-1, x.shape[-1])), weights, x.dtype, bias)
    return [y.view(*x.shape[:-1], y.shape[1]) for y in products]


def multiply_rows(x: Quantized, weights: Sequence[Fp8Weight], dtype: torch.dtype, bias: bool = True) -> list[Tensor]:
    """Rows as `quantize` gives them -> x W^T + b (N, out) of `dtype` for each weight.

    Off NVIDIA cards the same numbers are computed in float32, slowly: for tests; `why_not` tells a host not to.
    """
    return [_product(x, weight, weight.bias if bias else None, dtype) for weight in weights]


def _product(x: Quantized, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    data, scale = x
    if not data.is_cuda:
        y = data.float() @ weight.data.float().t() * scale * weight.scale
        return (y if bias is None else y + bias.float()).to(dtype)
    early = bias if dtype == torch.bfloat16 else None  # with row-wise scales the kernel knows bfloat16 alone
    y = torch._scaled_mm(
        data, weight.data.t(), scale, weight.scale, bias=early, out_dtype=torch.bfloat16, use_fast_accum=True
    ).to(dtype)
    return y if bias is None or early is not None else y + bias


def convert(linear: QuantLinear, dtype: torch.dtype) -> Fp8Weight:
    """A Linear's weight where it lies; its bias in the compute dtype `dtype`.

    A scaled fp8 weight is taken as it is, with its one scale for every row.
    """
    bias = None if linear.bias is None else linear.bias.to(dtype)
    if linear.weight.dtype == E4M3:
        scale = torch.ones(1, linear.out_features, device=linear.weight.device)
        return Fp8Weight(linear.weight.data, scale if linear.scale is None else scale * linear.scale.to(scale), bias)
    data, scales = _quantized(linear)
    return Fp8Weight(data, scales.t(), bias)


def _quantized(linear: QuantLinear) -> Quantized:
    """What `quantize` makes of a weight in float32: packed blocks by one kernel where Triton runs, else in parts."""
    weight, layout = linear.weight, block_type(linear.qtype)
    if linear.is_dense:
        return quantize(weight)
    if layout is not None and weight.is_cuda and has_triton(weight.device):
        from .triton_fp8 import quantize_blocks

        return quantize_blocks(layout, weight.contiguous())
    data = torch.empty(linear.out_features, linear.in_features, dtype=E4M3, device=weight.device)
    scales = torch.empty(linear.out_features, 1, device=weight.device)
    n_rows = max(1, PART // linear.in_features)
    for start in range(0, linear.out_features, n_rows):
        part = slice(start, start + n_rows)
        data[part], scales[part] = quantize(linear.decode(weight[part], torch.float32))
    return data, scales


def n_bytes(linears: Iterable[QuantLinear]) -> int:
    """What their FP8 weights take beside those that they have."""
    return sum(linear.out_features * linear.in_features for linear in linears if linear.weight.dtype != E4M3)


def fits(linear: QuantLinear) -> bool:
    """Whether the tensor cores take its shape."""
    return linear.out_features % GRAIN == 0 and linear.in_features % GRAIN == 0


@cache
def why_not(device: torch.device) -> str:
    """Why there are no FP8 products on this device, a sentence without its end, or nothing; tried once."""
    if device.type != "cuda" or torch.version.cuda is None:
        return "FP8 products need an NVIDIA card of the 40 series (Ada), Hopper or newer"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        needed, own = (".".join(map(str, version)) for version in (CAPABILITY, capability))
        return f"FP8 products need a card of compute capability {needed}, this one has {own}"
    try:
        x = torch.ones(GRAIN, GRAIN, dtype=torch.bfloat16, device=device)
        data, scale = quantize(x)
        multiply(x, Fp8Weight(data, scale.t(), x[0]))[0].cpu()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:  # a torch built without this kernel, as on Windows
        return f"this torch has no FP8 products for this card ({first_line(error)})"
    return ""
