"""The Linear layer over a packed weight."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packed import PackedTensor, decode


class Branch(Protocol):
    """What runs beside a Linear and changes its result (a LoRA)."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The whole result (..., out_features) for x (..., in_features), decoded weight and bias."""


class QuantLinear(nn.Module):
    """y = x W^T + b with W kept as it lies in its file and decoded to x's dtype for each product.

    weight: parameter holding `PackedTensor.data`, never trained; bias: (out_features,) or None.
    branch: None, or what takes the product over. It belongs to a run, not to the layer, so it is no submodule.
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
        self.branch: Branch | None = None  # here and not on the class, where torch.compile guards the two differently

    def decode(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Packed `weight` -> (out_features, in_features) of `dtype` on the same device."""
        scale = None if self.scale is None else self.scale.to(weight.device, non_blocking=weight.is_cuda)
        return decode(weight, self.qtype, dtype, scale)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.multiply(x, self.decode(self.weight, x.dtype), bias)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in_features), weight (out_features, in_features) and bias of x's dtype -> (..., out_features)."""
        return F.linear(x, weight, bias) if self.branch is None else self.branch(x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.qtype}"
