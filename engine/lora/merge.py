"""An adapter merged into the weight it was made for."""

from __future__ import annotations

from torch import Tensor

from .adapters import Adapter, ColumnDoRA, LowRank
from .factors import dora_gain


def merged(weight: Tensor, adapter: Adapter, strength: float) -> Tensor:
    """The weight (out, in) float32 that `LoraBranch` computes with beside `weight`; a new tensor."""
    if isinstance(adapter, ColumnDoRA):
        changed = (weight + adapter.delta()) * dora_gain(adapter, weight)
    elif isinstance(adapter, LowRank) and adapter.magnitude is not None:
        changed = (weight + adapter.delta()) * dora_gain(adapter, weight)[:, None]
    else:
        return weight + adapter.delta().mul_(strength)
    return weight.lerp(changed, strength)
