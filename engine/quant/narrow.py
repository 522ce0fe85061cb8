"""Products in fewer bits than a run computes in: the formats there are, and their weights for the time of one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from ..memory import reserve
from . import fp8
from .block_scaled import MXFP8, NVFP4
from .linear import NarrowWeight, QuantLinear


class Format(Protocol):
    """What the module `fp8` and a `block_scaled.BlockFormat` have in common; see there."""

    def why_not(self, device: torch.device) -> str:
        """Why there are no such products on this device, a sentence without its end, or nothing."""

    def fits(self, linear: QuantLinear) -> bool:
        """Whether the tensor cores take its shape."""

    def n_bytes(self, linears: Iterable[QuantLinear]) -> int:
        """What their weights take beside those that they have."""

    def convert(self, linear: QuantLinear, dtype: torch.dtype) -> NarrowWeight:
        """A Linear's weight where it lies; its bias in the compute dtype `dtype`."""


FORMATS: dict[str, Format] = {"fp8": fp8, "mxfp8": MXFP8, "nvfp4": NVFP4}


@contextmanager
def attached(format: Format, linears: Iterable[QuantLinear], dtype: torch.dtype) -> Iterator[None]:
    """These Linears multiply in a format, over x of `dtype`; afterwards, whatever happens, as they did."""
    changed = [linear for linear in linears if linear.narrow is None]
    try:
        if changed:
            reserve(format.n_bytes(changed), changed[0].weight.device)
        for linear in changed:
            linear.narrow = format.convert(linear, dtype)
        yield
    finally:
        for linear in changed:
            linear.narrow = None
