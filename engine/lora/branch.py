"""What runs beside a Linear while LoRAs are attached; the base weight is read and never touched.

The adapters' part is made first and the base product is added onto it, in place: one pass over y less than the other
way round. DoRA scales the rows of W + BA, or its columns, so it has a part in the base product too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..quant.linear import NarrowWeight


@dataclass(frozen=True)
class Gain:
    """Vectors in the compute dtype by which a product is scaled, rows (out,) and columns (in,); None: it is not."""

    rows: Tensor | None = None
    columns: Tensor | None = None


class Part:
    """One pair of factors in a run. scales: see `Factors`."""

    def __init__(self, factors: nn.Module, scales: Tensor, gain: Gain):
        self.factors, self.scales, self.rows, self.columns = factors, scales, gain.rows, gain.columns

    def __call__(self, x: Tensor, start: Tensor | None) -> Tensor:
        """x (N, in), start (out,) -> a new tensor (N, out)."""
        if self.columns is not None:
            x = x * self.columns
        if self.rows is None:
            y: Tensor = self.factors(x, self.scales, start)
            return y
        y = self.factors(x, self.scales, None) * self.rows
        return y if start is None else y + start


class LoraBranch:
    """`Branch` of one Linear. excess: by how much the base product is scaled beyond one."""

    def __init__(self, parts: tuple[Part, ...], excess: Gain, bias: Tensor | None):
        self.parts, self.rows, self.columns, self.bias = parts, excess.rows, excess.columns, bias

    def begin(self, x: Tensor) -> Tensor:
        """x (..., in) -> (N, out): bias and all parts."""
        flat = x.reshape(-1, x.shape[-1])
        y = self.parts[0](flat, self.bias)
        for part in self.parts[1:]:
            y = y + part(flat, None)
        return y

    def finish(self, y: Tensor, x: Tensor, weight: Tensor | NarrowWeight) -> Tensor:
        """y (N, out), x (..., in), weight (out, in) -> (..., out); with a decoded weight in the memory of y."""
        flat = x.reshape(-1, x.shape[-1])
        if self.rows is not None:
            y = torch.addcmul(y, product(flat, weight), self.rows)
        if self.columns is not None:
            flat = torch.addcmul(flat, flat, self.columns)
        y = add_product(y, flat, weight) if isinstance(weight, Tensor) else y + product(flat, weight)
        return y.view(*x.shape[:-1], y.shape[1])


def product(x: Tensor, weight: Tensor | NarrowWeight) -> Tensor:
    """x (N, in) -> x weight^T (N, out)."""
    return F.linear(x, weight) if isinstance(weight, Tensor) else weight.multiply(x, bias=False)


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
