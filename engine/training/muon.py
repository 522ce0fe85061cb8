"""Muon (https://kellerjordan.github.io/posts/muon/) over stacks of equal matrices.

`torch.optim.Muon` takes the matrices one by one, which for small ones is launches and no work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, from the page above
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """As `torch.optim.Muon` with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`; matrices only."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            if matrix.ndim != 2:
                raise ValueError(f"Muon takes matrices only, got a parameter of shape {list(matrix.shape)}")
            by_shape.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": stack} for stack in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            grads = [matrix.grad for matrix in matrices]
            momenta = [self.state[m].setdefault("momentum", torch.zeros_like(m)) for m in matrices]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
            updates = orthogonal(torch.stack(tuple(ahead))).to(matrices[0].dtype)
            scale = 0.2 * max(matrices[0].shape) ** 0.5  # so that an update is as large as AdamW's usually is
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, updates.unbind(), alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: (N, rows, columns) -> the same in bfloat16, singular values near 1."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
