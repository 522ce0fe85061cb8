"""First-block cache: where the first block does nearly what it did at the last computed step, so do the others.

After https://github.com/chengzeyi/ParaAttention, against which it is tested. Beyond it: the change is that of the
picture in a batch that changed most, and what the others would do is extrapolated over sigma (after TaylorSeer,
https://arxiv.org/abs/2503.06923, whose series runs over the number of the step).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

ORDERS = (0, 1, 2)


@dataclass(frozen=True)
class FirstBlockSettings:
    """threshold: relative change of the first block's work below which a step is skipped; 0 skips none.

    order: of the extrapolation; 0 reuses the last computed step as it is. start, end: shares of the run between which
    steps may be skipped. most_skips: steps skipped in a row at most. computed: the steps to compute, whatever
    changes, by their number from 0; None: the threshold decides.
    """

    threshold: float = 0.12
    order: int = 1
    start: float = 0.0
    end: float = 1.0
    most_skips: int = 4
    computed: Collection[int] | None = None

    @property
    def may_skip(self) -> bool:
        """Whether any step can be skipped."""
        return self.threshold > 0 or self.computed is not None


class FirstBlockCache:
    """What one condition's steps gave so far in one run. Memory: order + 2 times the target's tokens."""

    def __init__(self, settings: FirstBlockSettings, n_steps: int):
        self.settings, self.n_steps = settings, n_steps
        self.step, self.sigma = 0, 1.0
        self.n_skipped_in_a_row = 0
        self.first: Tensor | None = None
        self.pending: Tensor | None = None
        self.rests: list[tuple[float, Tensor]] = []  # (sigma, what the other blocks added), the newest first

    def at(self, step: int, sigma: float) -> FirstBlockCache:
        """Before each pass: which step of the run it belongs to, and its noise level."""
        self.step, self.sigma = step, sigma
        return self

    def predict(self, first: Tensor) -> Tensor | None:
        """See `engine.flux.hooks.Cache`."""
        if not self._may_skip() or not self._is_alike(first):
            self.pending, self.n_skipped_in_a_row = first, 0
            return None
        self.n_skipped_in_a_row += 1
        return extrapolate(self.rests, self.sigma)

    def keep(self, rest: Tensor) -> None:
        """See `engine.flux.hooks.Cache`."""
        self.first, self.pending = self.pending, None
        others = [point for point in self.rests if point[0] != self.sigma]  # a line needs two noise levels
        self.rests = [(self.sigma, rest), *others[: self.settings.order]]

    def _may_skip(self) -> bool:
        s = self.settings
        if self.first is None or self.n_skipped_in_a_row >= s.most_skips:
            return False
        if s.computed is not None:
            return self.step not in s.computed
        return s.threshold > 0 and s.start * self.n_steps <= self.step < s.end * self.n_steps

    def _is_alike(self, first: Tensor) -> bool:
        if self.settings.computed is not None:
            return True
        assert self.first is not None
        if first.shape != self.first.shape:
            return False
        return relative_change(first, self.first) < self.settings.threshold


def relative_change(new: Tensor, old: Tensor) -> float:
    """Mean |new - old| over mean |old| of the sample of a batch (B, L, D) where it is largest."""
    difference = (new - old).abs().mean(dim=(1, 2), dtype=torch.float32)
    return float((difference / old.abs().mean(dim=(1, 2), dtype=torch.float32)).max())


def extrapolate(points: list[tuple[float, Tensor]], sigma: float) -> Tensor:
    """The polynomial through the points (sigma, value), at another sigma (Lagrange's form)."""
    total: Tensor | None = None
    for i, (here, value) in enumerate(points):
        weight = 1.0
        for j, (other, _) in enumerate(points):
            if i != j:
                weight *= (sigma - other) / (here - other)
        part = value if len(points) == 1 else value.float() * weight
        total = part if total is None else total + part
    assert total is not None
    return total.to(points[0][1].dtype)
