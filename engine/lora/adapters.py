"""What a LoRA file holds for one Linear, whatever dialect it was written in.

Every adapter changes a base weight W (out, in) to W + strength * delta. Shapes are torch's; tensors are as stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """delta = scale * up @ down (LoRA, https://arxiv.org/abs/2106.09685).

    down: (r, in); up: (out, r); scale: alpha / r. magnitude: (out,) of DoRA (https://arxiv.org/abs/2402.09353), whose
    new weight is magnitude * V / |V| by rows, V = W + scale * up @ down; None for a plain LoRA.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the Linear it belongs to."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """(out, in) float32, without DoRA's magnitude."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Kronecker:
    """delta = scale * kron(left, right) (LoKr, https://arxiv.org/abs/2309.14859). left: (a, b); right: (c, d)."""

    left: Tensor
    right: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the Linear it belongs to: (a * c, b * d)."""
        (a, b), (c, d) = self.left.shape, self.right.shape
        return a * c, b * d

    def delta(self) -> Tensor:
        """(out, in) float32."""
        return self.scale * torch.kron(self.left.float(), self.right.float())


Adapter: TypeAlias = LowRank | Kronecker
