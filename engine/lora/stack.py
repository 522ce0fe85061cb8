"""Several LoRAs on one model, as few pairs of factors as can be.

The LoRAs are independent of each other: each changes W as if it were the only one, and the changes add up.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import Adapter, ColumnDoRA, Kronecker, LowRank
from .branch import Gain, LoraBranch, Part
from .factors import Factors, dora_gain, kronecker, low_rank_product, stack, stack_scales

Adapters = Mapping[str, Adapter]  # one LoRA: by the diffusers name of the Linear


class LoraStack(nn.Module):
    """The factors of several LoRAs, in `dtype`, the plain ones of each Linear stacked into one pair.

    Strengths are given to each run, so that changing one moves no weights. make_factors: for a host that moves them.
    """

    def __init__(self, loras: Sequence[Adapters], dtype: torch.dtype, make_factors: type[Factors] = Factors):
        super().__init__()
        names = dict.fromkeys(name for lora in loras for name in lora)
        self.places = [place for name in names for place in _places(name, loras)]
        self.factors = nn.ModuleList(place.make(dtype, make_factors) for place in self.places)
        self._gains: dict[_Place, Tensor] = {}
        self._gains_of: weakref.ref[nn.Module] | None = None

    def branches(
        self, transformer: Any, strengths: Sequence[float], device: torch.device, dtype: torch.dtype
    ) -> dict[str, LoraBranch]:
        """{Linear: its branch}, with one strength for each LoRA, for a run in `dtype` on `device`.

        transformer: whose Linears are `QuantLinear`s under the adapters' names; DoRA alone looks at its weights.
        """
        parts: dict[str, list[Part]] = {}
        excess: dict[str, dict[str, Tensor]] = {}
        for place, factors in zip(self.places, self.factors, strict=True):
            gain = Gain()
            if place.dora:
                exact = self._gain(place, transformer, device)
                gain = Gain(**{place.dora: exact.to(dtype)})
                sums = excess.setdefault(place.linear, {})
                sums[place.dora] = sums.get(place.dora, 0) + strengths[place.loras[0]] * (exact - 1)
            scales = place.scales([strengths[i] for i in place.loras]).to(device, dtype)
            parts.setdefault(place.linear, []).append(Part(factors, scales, gain))
        branches = {}
        for name, found in parts.items():
            bias = transformer.get_submodule(name).bias
            gain = Gain(**{side: sums.to(dtype) for side, sums in excess.get(name, {}).items()})
            branches[name] = LoraBranch(tuple(found), gain, None if bias is None else bias.to(device, dtype))
        return branches

    def _gain(self, place: _Place, transformer: Any, device: torch.device) -> Tensor:
        """DoRA's gain, float32 on `device`, computed once as long as the base model is the same."""
        if self._gains_of is None or self._gains_of() is not transformer:
            self._gains, self._gains_of = {}, weakref.ref(transformer)
        if place not in self._gains:
            linear = transformer.get_submodule(place.linear)
            with torch.no_grad():
                weight = linear.decode(linear.weight.to(device), torch.float32)
                self._gains[place] = dora_gain(place.adapters[0], weight)
        return self._gains[place].to(device)


@dataclass(frozen=True, eq=False)
class _Place:
    """One pair of factors: which Linear it is beside, which adapters are in it, and of which LoRA each is."""

    linear: str
    adapters: tuple[Adapter, ...]
    loras: tuple[int, ...]

    @property
    def dora(self) -> str:
        """The field of `Gain` by which DoRA scales here, or nothing."""
        (first, *_) = self.adapters
        if isinstance(first, ColumnDoRA):
            return "columns"
        return "rows" if isinstance(first, LowRank) and first.magnitude is not None else ""

    @property
    def low_rank(self) -> list[LowRank]:
        """The adapters, where they are no Kronecker products."""
        found = [a.low_rank if isinstance(a, ColumnDoRA) else a for a in self.adapters]
        return [a for a in found if isinstance(a, LowRank)]

    def make(self, dtype: torch.dtype, make_factors: type[Factors]) -> Factors:
        """The factors, without strengths."""
        (first, *_) = self.adapters
        if isinstance(first, Kronecker):
            return make_factors(kronecker(first), first.right.to(dtype), first.left.to(dtype))
        return make_factors(low_rank_product, *stack(self.low_rank, dtype))

    def scales(self, strengths: Sequence[float]) -> Tensor:
        """Strengths, one for each adapter, times scales, as the factors want them; float32."""
        (first, *_) = self.adapters
        if isinstance(first, Kronecker):
            return torch.tensor([strengths[0] * first.scale])
        return stack_scales(self.low_rank, strengths)


def _places(name: str, loras: Sequence[Adapters]) -> Iterator[_Place]:
    """Those of one Linear: one for all plain low-rank adapters, one for each other."""
    alone = [_Place(name, (lora[name],), (i,)) for i, lora in enumerate(loras) if name in lora]
    plain = [place for place in alone if isinstance(place.adapters[0], LowRank) and not place.dora]
    if plain:
        yield _Place(name, tuple(p.adapters[0] for p in plain), tuple(p.loras[0] for p in plain))
    yield from (place for place in alone if place not in plain)
