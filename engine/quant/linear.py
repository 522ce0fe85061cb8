"""The Linear layer over a packed weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packed import PackedTensor, decode


class QuantLinear(nn.Module):
    """y = x W^T + b with W kept as it lies in its file and decoded to x's dtype for each product.

    weight: parameter holding `PackedTensor.data`, never trained; bias: (out_features,) or None.
    """

    scale: Tensor | None

    def __init__(self, weight: PackedTensor, bias: PackedTensor | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.qtype = weight.qtype
        self.is_dense = weight.is_dense
        self.weight = nn.Parameter(weight.data, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.as_floats(), requires_grad=False)
        self.register_buffer("scale", weight.scale)

    def decode(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Packed `weight` -> (out_features, in_features) of `dtype` on the same device."""
        scale = None if self.scale is None else self.scale.to(weight.device, non_blocking=weight.is_cuda)
        return decode(weight, self.qtype, dtype, scale)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.decode(self.weight, x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.qtype}"
