"""float32 arithmetic as C does it, on tensors: every result is rounded once, every sum runs in order.

Plain torch does not promise either: its sums run in several lanes, on the CPU its square root and on a GPU its
division by a number are off by a bit now and then, and `number / tensor` is a product with a reciprocal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_MAGIC = 12582912.0  # 1.5 * 2^23: whoever is added to it has no fraction left
_MANTISSA, _MIDDLE = 0x7FFFFF, 0x400000
EXACT_BELOW = float(_MIDDLE)  # where `nearest_int` is plain rounding


def sum_rows(values: Tensor) -> Tensor:
    """(n, m) -> (m,): row after row. m must be 2 or more, or numpy would sum pairwise."""
    if values.device.type == "cpu":
        with np.errstate(over="ignore", invalid="ignore"):
            return torch.from_numpy(np.add.reduce(values.numpy(), axis=0))
    total = values[0].clone()
    for row in values[1:]:
        total += row
    return total


def sqrt(values: Tensor) -> Tensor:
    """The square root of each."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sqrt(values.numpy()))
    return values.sqrt()


def divide(numerator: Tensor | float, denominator: Tensor | float) -> Tensor:
    """A quotient of which one part at least is a tensor."""
    if isinstance(numerator, Tensor):
        like = numerator
    else:
        assert isinstance(denominator, Tensor)
        like = denominator
    parts = [each if isinstance(each, Tensor) else like.new_tensor(each) for each in (numerator, denominator)]
    return torch.div(*parts)


def nearest_int(values: Tensor) -> Tensor:
    """ggml's nearest_int, int32: the nearest integer, ties to even; beyond 2^22 the same nonsense, of NaN 0."""
    shifted = values + _MAGIC
    bits = (shifted.view(torch.int32) & _MANTISSA) - _MIDDLE
    return bits.masked_fill_(shifted.isnan(), 0)


def to_half(values: Tensor) -> tuple[Tensor, Tensor]:
    """(the two bytes (..., 2) of each as a float16, its value again in float32)."""
    halves = values.to(torch.float16)
    return halves[..., None].view(torch.uint8), halves.float()


def first_largest(values: Tensor) -> Tensor:
    """(n, m) -> (m,): of each column the value that is largest without its sign, of equals the first."""
    largest = torch.zeros_like(values[0])
    size = torch.zeros_like(largest)
    for row in values:
        larger = row.abs() > size
        largest = torch.where(larger, row, largest)
        size = largest.abs()
    return largest
