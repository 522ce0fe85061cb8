"""QuantLinear under ComfyUI's memory management."""

from __future__ import annotations

import comfy.ops
import torch.nn.functional as F
from torch import Tensor

from ..engine.quant import QuantLinear


class HostedLinear(QuantLinear, comfy.ops.CastWeightBiasOp):
    """A QuantLinear that ComfyUI may leave on the host and bring over, packed, for each product.

    ComfyUI's loaders set `comfy_cast_weights` where they did not move the weight to the device, and
    `weight_function` or `bias_function` where a patch (a LoRA, a merge) must be applied on the way.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in x's dtype."""
        cast = self.comfy_cast_weights or self.weight_function or self.bias_function
        if self.narrow is not None or not cast:
            return super().forward(x)
        if self.weight_function or getattr(self, "weight_lowvram_function", None) is not None:
            self.refuse_patches()
        branch = self.branch
        begun = None if branch is None else branch.begin(x)  # its own matrices come over and are let go before ours
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self,
            dtype=x.dtype if self.is_dense else self.weight.dtype,
            device=x.device,
            bias_dtype=x.dtype,
            offloadable=True,
        )
        if branch is None or begun is None:
            y = F.linear(x, self.decode(weight, x.dtype), bias)
        else:
            y = branch.finish(begun, x, self.decode(weight, x.dtype))
            if self.bias_function or getattr(self, "bias_lowvram_function", None) is not None:
                y = y + (bias - branch.bias)  # a patch of the bias, which the branch does not know
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return y

    def convert_weight(self, weight: Tensor, **_: object) -> Tensor:
        """ComfyUI hands over the weight that it moves, or, cast to a float type, the weight that it will patch."""
        if weight.dtype != self.weight.dtype:
            self.refuse_patches()
        return weight

    def refuse_patches(self) -> None:
        """Raises ValueError where the weight is packed: arithmetic on its bytes would be nonsense."""
        if not self.is_dense:
            raise ValueError(
                "A node before the sampler (a LoRA loader or a model merge) changes weights of this model, but they "
                f"are stored as {self.qtype}, which ComfyUI's patches cannot change. "
                "Remove that node."
            )
