"""Keys and values of the references' tokens, kept over some steps.

In FLUX.1 Kontext references are modulated by the timestep and attend to the noisy picture, so their keys and values
drift: keeping them is an approximation, whose interval is chosen by what it does to pictures (benchmarks/).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReferenceSettings:
    """n_first: computed steps at the start of a run that compute the references too; interval: afterwards every
    so many computed steps they are computed anew. Interval 1 keeps nothing."""

    n_first: int = 2
    interval: int = 4


class ReferenceCache:
    """One condition's references in one run. Memory: 2 * blocks * references' tokens * width numbers."""

    def __init__(self, settings: ReferenceSettings):
        self.settings = settings
        self.kept: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self.n_computed = self.n_since_refresh = 0
        self.reuses = False
        self.n_own = 0

    def begin(self, n_own: int) -> bool:
        """Before a pass: whether it leaves the references out. n_own: text and target tokens, which come first."""
        s = self.settings
        self.n_own = n_own
        self.reuses = self.n_computed >= max(1, s.n_first) and self.n_since_refresh < s.interval - 1
        return self.reuses

    def computed(self) -> None:
        """After a pass that ran all blocks."""
        self.n_computed += 1
        self.n_since_refresh = self.n_since_refresh + 1 if self.reuses else 0

    def keys_values(self, block: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated k and v (B, heads, L, head_dim) of a block, with the kept ones of the references where left out."""
        if self.reuses:
            k_kept, v_kept = self.kept[block]
            return torch.cat((k, k_kept), dim=2), torch.cat((v, v_kept), dim=2)
        if self.settings.interval > 1:
            self.kept[block] = k[:, :, self.n_own :].clone(), v[:, :, self.n_own :].clone()
        return k, v


def n_bytes(n_tokens: int, batch: int, width: int, n_blocks: int, itemsize: int) -> int:
    """What keeping so many reference tokens takes."""
    return 2 * n_tokens * batch * width * n_blocks * itemsize
