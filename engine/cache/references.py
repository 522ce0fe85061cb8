"""Keys and values of the references' tokens, kept over some steps.

In FLUX.1 Kontext references are modulated by the timestep and attend to the noisy picture, so their keys and values
drift: keeping them is an approximation, whose interval is chosen by what it does to pictures (benchmarks/). How far
they drift is measured and told, not acted on: it follows the noise level and hardly differs between edits, so that a
tolerance would only be another way to write the interval.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..quant.fp8 import E4M3

SAMPLE = 16  # of so many tokens one is looked at, to see how far they drifted


@dataclass(frozen=True)
class ReferenceSettings:
    """interval: of so many computed steps the first computes the references too. Interval 1 keeps nothing.

    small: they are kept in the fewest bytes: in FP8, and where attention is in FP8 without the place that the other
        tokens are written to, so that each pass joins both anew.
    """

    interval: int = 5
    small: bool = False


class Kept:
    """The references' keys or values, of x (B, heads, L, head_dim), which n_own others precede."""

    def __init__(self, x: Tensor, n_own: int):
        self.data = x[:, :, n_own:].clone()

    def to(self, dtype: torch.dtype) -> Tensor:
        """The references' alone, as they were but for rounding."""
        return self.data.to(dtype)

    def behind(self, own: Tensor) -> Tensor:
        """Own ones (B, heads, n_own, head_dim) and the references'."""
        return joined(own, self.to(own.dtype))


class InFp8(Kept):
    """In float8_e4m3fn, with a scale for each head."""

    def __init__(self, x: Tensor, n_own: int):
        x = x[:, :, n_own:]
        largest = x.abs().amax(dim=(2, 3), keepdim=True).float()
        self.scale = (largest / torch.finfo(E4M3).max).clamp_min(torch.finfo(torch.float32).tiny)
        self.data = (x / self.scale).to(E4M3)

    def to(self, dtype: torch.dtype) -> Tensor:
        """See `Kept`."""
        return (self.data.float() * self.scale).to(dtype)


class Whole(Kept):
    """The tensor itself, its own tokens included, which are written anew at each pass: the fewest bytes to move."""

    def __init__(self, x: Tensor, n_own: int):
        self.data, self.n_own = x, n_own

    def to(self, dtype: torch.dtype) -> Tensor:
        """See `Kept`."""
        return self.data[:, :, self.n_own :].to(dtype)

    def behind(self, own: Tensor) -> Tensor:
        """See `Kept`."""
        self.data[:, :, : self.n_own] = own
        return self.data


class ReferenceCache:
    """One condition's references in one run. Memory: see `n_bytes`.

    drifts: for each time that kept ones were computed anew, how far off they were: the root mean square of the change
    over that of the new ones, in the block where that is largest.
    """

    def __init__(self, settings: ReferenceSettings):
        self.settings = settings
        self.kept: dict[Hashable, tuple[Kept, ...]] = {}
        self.n_computed = 0
        self.drifts: list[float] = []
        self._drifts_of_blocks: list[Tensor] = []
        self.reuses = False
        self.n_own = 0  # text and target tokens of this pass, which come first

    def begin(self) -> bool:
        """Before a pass: whether it leaves the references out."""
        self._drifts_of_blocks.clear()  # of a pass that was skipped after its first block
        self.reuses = self.n_computed % self.settings.interval > 0
        return self.reuses

    def computed(self) -> None:
        """After a pass that ran all blocks."""
        if self._drifts_of_blocks:
            self.drifts.append(float(torch.stack(self._drifts_of_blocks).max()))
        self.n_computed += 1

    def keys_values(self, block: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated k and v (B, heads, L, head_dim) of a block, with the kept ones of the references where left out."""
        if self.reuses:
            k_kept, v_kept = self.kept[block]
            return k_kept.behind(k), v_kept.behind(v)
        if self.settings.interval > 1:
            if block in self.kept:
                new = tuple(each[:, :, self.n_own :] for each in (k, v))
                self._drifts_of_blocks.append(drift(self.kept[block], new))
            fast, small = (Whole, Kept) if k.dtype == E4M3 else (Kept, InFp8)
            keep = small if self.settings.small else fast
            self.kept[block] = (keep(k, self.n_own), keep(v, self.n_own))
        return k, v


def joined(own: Tensor, kept: Tensor) -> Tensor:
    """Tokens (B, heads, L, head_dim) behind each other, a token's heads together in memory where they come so."""
    if own.transpose(1, 2).is_contiguous():
        return torch.cat((own.transpose(1, 2), kept.transpose(1, 2)), dim=1).transpose(1, 2)
    return torch.cat((own, kept), dim=2)


def drift(kept: Sequence[Kept], new: Sequence[Tensor]) -> Tensor:
    """How far kept tensors (B, heads, L, head_dim) are off the new ones, the one furthest off."""
    far = []
    for old, now in zip(kept, new, strict=True):
        some = now[:, :, ::SAMPLE].float()
        far.append((old.to(torch.float32)[:, :, ::SAMPLE] - some).square().sum() / some.square().sum())
    return torch.stack(far).max().sqrt()


def n_bytes(n_tokens: int, batch: int, width: int, n_blocks: int, itemsize: int) -> int:
    """What keeping so many reference tokens takes, itemsize bytes a number: in FP8 one, the few scales left out."""
    return 2 * n_tokens * batch * width * n_blocks * itemsize
