"""The Linear layer over a packed weight."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packed import PackedTensor, decode


class NarrowWeight(Protocol):
    """A weight in fewer bits than the run computes in, see `narrow`."""

    def multiply(self, x: Tensor, bias: bool = True) -> Tensor:
        """x (..., in_features) -> (..., out_features), in x's dtype. bias: whether the Linear's own is added."""


class Branch(Protocol):
    """What runs beside a Linear and takes its product over (a LoRA).

    In two steps, because a host has room for the matrices of one module at a time: the branch's own before the weight.
    """

    bias: Tensor | None  #: of the Linear, where and in what dtype the run needs it

    def begin(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (N, out_features): the branch's part, and the bias."""

    def finish(self, y: Tensor, x: Tensor, weight: Tensor | NarrowWeight) -> Tensor:
        """The whole result (..., out_features) from what `begin` gave and the weight, decoded or narrow."""


class QuantLinear(nn.Module):
    """y = x W^T + b with W kept as it lies in its file and decoded to x's dtype for each product.

    weight: parameter holding `PackedTensor.data`, never trained; bias: (out_features,) or None.
    branch: None, or what takes the product over. narrow: None, or the weight to multiply by instead. Both belong to a
        run, not to the layer, so they are no submodules.
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
        # here and not on the class, where torch.compile guards something and nothing differently
        self.branch: Branch | None = None
        self.narrow: NarrowWeight | None = None

    def decode(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Packed `weight` -> (out_features, in_features) of `dtype` on the same device."""
        scale = None if self.scale is None else self.scale.to(weight.device, non_blocking=weight.is_cuda)
        return decode(weight, self.qtype, dtype, scale)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in x's dtype."""
        if self.branch is not None:
            begun = self.branch.begin(x)
            weight = self.decode(self.weight, x.dtype) if self.narrow is None else self.narrow
            return self.branch.finish(begun, x, weight)
        if self.narrow is not None:
            return self.narrow.multiply(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.decode(self.weight, x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.qtype}"
