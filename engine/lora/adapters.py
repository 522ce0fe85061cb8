"""What a LoRA file holds for one Linear, whatever dialect it was written in.

Every adapter changes a base weight W (out, in) to W + strength * delta. Shapes are torch's; tensors are as stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    def cut(self, start: int, stop: int) -> LowRank:
        """What it does to rows `start` to `stop` (exclusive) of its Linear.

        Some trainers keep q, k and v apart and store one matrix of blocks: those of other rows are zero and drop out.
        """
        magnitude = None if self.magnitude is None else self.magnitude[start:stop]
        down, up = self.down, self.up[start:stop]
        lowest, highest = (up.float() if up.dtype.itemsize == 1 else up).aminmax(dim=0)
        used = (lowest != 0) | (highest != 0)
        if 0 < used.sum() < self.rank:
            down, up = down[used], up[:, used]
        return LowRank(down, up, self.scale, magnitude)

    def with_halves_swapped(self) -> LowRank:
        """The lower half of its rows first."""
        magnitude = None if self.magnitude is None else torch.cat(self.magnitude.chunk(2)[::-1])
        return replace(self, up=torch.cat(self.up.chunk(2)[::-1]), magnitude=magnitude)


@dataclass(frozen=True)
class ColumnDoRA:
    """DoRA that measures columns, as OneTrainer trains it: new weight = magnitude * V / |V|, V = W + low_rank.delta().

    |V| is the norm of every column over all rows; magnitude: (in,).
    """

    low_rank: LowRank
    magnitude: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the Linear it belongs to."""
        return self.low_rank.shape

    @property
    def rank(self) -> int:
        """r."""
        return self.low_rank.rank

    def delta(self) -> Tensor:
        """(out, in) float32, without the magnitude."""
        return self.low_rank.delta()

    def with_halves_swapped(self) -> ColumnDoRA:
        """The lower half of its rows first."""
        return replace(self, low_rank=self.low_rank.with_halves_swapped())


@dataclass(frozen=True)
class Kronecker:
    """delta = scale * kron(left, right) (LoKr, https://arxiv.org/abs/2309.14859). left: (a, b); right: (c, d).

    rows: (start, stop) where delta is only these rows of the product, because the file fused several Linears into one
    whose seams fall inside `right`; None: all.
    """

    left: Tensor
    right: Tensor
    scale: float
    rows: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the Linear it belongs to: (a * c, b * d), or fewer rows."""
        (a, b), (c, d) = self.left.shape, self.right.shape
        start, stop = self.rows or (0, a * c)
        return stop - start, b * d

    def delta(self) -> Tensor:
        """(out, in) float32."""
        product = self.scale * torch.kron(self.left.float(), self.right.float())
        return product if self.rows is None else product[slice(*self.rows)]

    def cut(self, start: int, stop: int) -> Kronecker:
        """What it does to rows `start` to `stop` (exclusive) of its Linear, from the rows of left that touch them."""
        height = self.right.shape[0]
        offset = self.rows[0] if self.rows else 0
        first, last = (offset + start) // height, -(-(offset + stop) // height)
        begin = offset + start - first * height
        rows = None if stop - start == (last - first) * height else (begin, begin + stop - start)
        return replace(self, left=self.left[first:last], rows=rows)


Adapter: TypeAlias = LowRank | ColumnDoRA | Kronecker
