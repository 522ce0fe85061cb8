"""LoRAs computed beside the base weights, which they never touch.

What a Linear computes becomes y = (1 + g) * x W^T + b + sum of its adapters' products, g being DoRA's alone. The
adapters' part is made first and the base product is added onto it, in place: one pass over y less than the other way
round. Several LoRAs are independent of each other: each changes W as if it were the only one.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Adapter, Kronecker, LowRank
from .factors import Factors, dora_gain, factors_of, kronecker_product, low_rank_product, stack, stack_scales

Adapters = Mapping[str, Adapter]  # one LoRA: by the diffusers name of the Linear


class Part:
    """One pair of factors in a run. scales: see `Factors`; gain: (out,) of DoRA, or None."""

    def __init__(self, factors: nn.Module, scales: Tensor, gain: Tensor | None):
        self.factors, self.scales, self.gain = factors, scales, gain

    def __call__(self, x: Tensor, start: Tensor | None) -> Tensor:
        """x (N, in), start (out,) -> a new tensor (N, out)."""
        if self.gain is None:
            y: Tensor = self.factors(x, self.scales, start)
            return y
        y = self.factors(x, self.scales, None) * self.gain
        return y if start is None else y + start


class LoraBranch:
    """What runs beside one Linear during a run. excess: (out,), g of the module's docstring, or None for zero."""

    def __init__(self, parts: tuple[Part, ...], excess: Tensor | None):
        self.parts, self.excess = parts, excess

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in), weight (out, in), bias (out,) -> (..., out)."""
        flat = x.reshape(-1, x.shape[-1])
        y = self.parts[0](flat, bias)
        for part in self.parts[1:]:
            y = y + part(flat, None)
        if self.excess is None:
            y = add_product(y, flat, weight)
        else:
            base = F.linear(flat, weight)
            y = torch.addcmul(y + base, base, self.excess)
        return y.view(*x.shape[:-1], weight.shape[0])


def add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y + x weight^T, in the memory of y (N, out), a tensor that nobody else holds, unless gradients are recorded."""
    if torch.is_grad_enabled():
        return torch.addmm(y, x, weight.T)
    if torch.compiler.is_compiling():
        torch.ops.kontextkit.add_product_(y, x, weight)
        return y
    return y.addmm_(x, weight.T)


@torch.library.custom_op("kontextkit::add_product_", mutates_args=("y",))
def _add_product(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """In a compiled graph too the product lands on y; Inductor's own addmm would copy y first."""
    y.addmm_(x, weight.T)


@dataclass(frozen=True, eq=False)
class _Place:
    """Which Linear a pair of factors belongs to, and the adapters in it, each with the index of its LoRA."""

    linear: str
    members: tuple[tuple[int, Adapter], ...]


class LoraStack(nn.Module):
    """The factors of several LoRAs, in `dtype`, those of one Linear stacked into one pair where they can be.

    Strengths are given to each run, so that changing one moves no weights. make_factors: for a host that moves them.
    """

    def __init__(self, loras: Sequence[Adapters], dtype: torch.dtype, make_factors: type[Factors] = Factors):
        super().__init__()
        names = dict.fromkeys(name for lora in loras for name in lora)
        self.places = [place for name in names for place in _split(name, loras)]
        self.factors = nn.ModuleList(_make(place, dtype, make_factors) for place in self.places)
        self._gains: dict[_Place, Tensor] = {}
        self._gains_of: weakref.ref[nn.Module] | None = None

    def branches(
        self, transformer: Any, strengths: Sequence[float], device: torch.device, dtype: torch.dtype
    ) -> dict[str, LoraBranch]:
        """{Linear: its branch}, with one strength for each LoRA, for a run in `dtype` on `device`.

        transformer: whose Linears are `QuantLinear`s under the names in the adapters; DoRA alone looks at its weights.
        """
        if self._gains_of is None or self._gains_of() is not transformer:
            self._gains, self._gains_of = {}, weakref.ref(transformer)
        parts: dict[str, list[Part]] = {}
        excess: dict[str, Tensor] = {}
        for place, factors in zip(self.places, self.factors, strict=True):
            gain = None
            (index, first), *_ = place.members
            if _is_dora(first):
                gain = self._gain(place, transformer.get_submodule(place.linear), device)
                excess[place.linear] = excess.get(place.linear, 0) + strengths[index] * (gain - 1)
                gain = gain.to(dtype)
            scales = _scales(place, strengths).to(device, dtype)
            parts.setdefault(place.linear, []).append(Part(factors, scales, gain))
        return {
            name: LoraBranch(tuple(found), excess[name].to(dtype) if name in excess else None)
            for name, found in parts.items()
        }

    def _gain(self, place: _Place, linear: Any, device: torch.device) -> Tensor:
        """DoRA's gain on `device`, computed once for each base model."""
        if place not in self._gains:
            ((_, adapter),) = place.members
            with torch.no_grad():
                self._gains[place] = dora_gain(adapter, linear.decode(linear.weight.to(device), torch.float32))
        return self._gains[place].to(device)


@contextmanager
def attached(transformer: Any, branches: Mapping[str, LoraBranch]) -> Iterator[None]:
    """The branches are on the transformer's Linears; afterwards, whatever happens, what was there before."""
    linears = {name: transformer.get_submodule(name) for name in branches}
    before = {name: linear.branch for name, linear in linears.items()}
    try:
        for name, linear in linears.items():
            linear.branch = branches[name]
        yield
    finally:
        for name, linear in linears.items():
            linear.branch = before[name]


def _is_dora(adapter: Adapter) -> bool:
    return isinstance(adapter, LowRank) and adapter.magnitude is not None


def _split(name: str, loras: Sequence[Adapters]) -> Iterator[_Place]:
    """The places of one Linear: all plain low-rank adapters in one, every other adapter in its own."""
    members = [(i, lora[name]) for i, lora in enumerate(loras) if name in lora]
    plain = [(i, adapter) for i, adapter in members if isinstance(adapter, LowRank) and not _is_dora(adapter)]
    if plain:
        yield _Place(name, tuple(plain))
    for i, adapter in members:
        if isinstance(adapter, Kronecker) or _is_dora(adapter):
            yield _Place(name, ((i, adapter),))


def _make(place: _Place, dtype: torch.dtype, make_factors: type[Factors]) -> Factors:
    adapters = [adapter for _, adapter in place.members]
    if isinstance(adapters[0], Kronecker):
        return make_factors(kronecker_product, *factors_of(adapters[0], dtype))
    return make_factors(low_rank_product, *stack([a for a in adapters if isinstance(a, LowRank)], dtype))


def _scales(place: _Place, strengths: Sequence[float]) -> Tensor:
    (index, first), *_ = place.members
    if isinstance(first, Kronecker):
        return torch.tensor([strengths[index] * first.scale])
    low_rank = [(i, adapter) for i, adapter in place.members if isinstance(adapter, LowRank)]
    return stack_scales([adapter for _, adapter in low_rank], [strengths[i] for i, _ in low_rank])
