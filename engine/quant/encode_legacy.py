"""Encoders of the formats with one scale for 32 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .c_float import divide, first_largest, to_half
from .encode import encodes
from .legacy_blocks import Q4_0, Q5_0, Q8_0


def _inverse(d: Tensor) -> Tensor:
    """1 / d, and of 0 again 0."""
    return divide(1.0, d).masked_fill_(d == 0, 0)


def _truncated(values: Tensor) -> Tensor:
    """C's conversion to an integer; of what is no number (where d is so small that 1 / d is infinite) 0."""
    return values.nan_to_num_(0, 0, 0).to(torch.int32)


def _nibbles(q: Tensor) -> Tensor:
    """Values 0-15 (n, 32) -> 16 bytes (n, 16): the first half in the low halves."""
    return (q[:, :16] & 15 | (q[:, 16:] & 15) << 4).to(torch.uint8)


def _fifth_bits(q: Tensor) -> Tensor:
    """The fifth bit of each value (n, 32) -> 4 bytes (n, 4)."""
    shifts = torch.arange(8, dtype=torch.int32, device=q.device)
    return ((q >> 4 & 1).unflatten(1, (4, 8)) << shifts).sum(2).to(torch.uint8)


def _around_zero(x: Tensor, n_max: int) -> tuple[Tensor, Tensor]:
    """Of Q4_0 and Q5_0: the scale's bytes (n, 2), q 0 to 2 n_max - 1 (n, 32); the largest weight is -n_max."""
    d = divide(first_largest(x.T.contiguous()), float(-n_max))
    q = _truncated(x * _inverse(d)[:, None] + (n_max + 0.5))
    return to_half(d)[0], q.clamp_(max=2 * n_max - 1)


@encodes(Q4_0)
def encode_q4_0(x: Tensor) -> Tensor:
    """See `Encoder`."""
    d, q = _around_zero(x, 8)
    return torch.cat((d, _nibbles(q)), dim=1)


@encodes(Q5_0)
def encode_q5_0(x: Tensor) -> Tensor:
    """See `Encoder`."""
    d, q = _around_zero(x, 16)
    return torch.cat((d, _fifth_bits(q), _nibbles(q)), dim=1)


@encodes(Q8_0)
def encode_q8_0(x: Tensor) -> Tensor:
    """See `Encoder`."""
    d = divide(x.abs().amax(1), 127.0)
    scaled = x * _inverse(d)[:, None]
    size = scaled.abs()
    whole = size.floor()
    whole += size.sub_(whole) >= 0.5  # C's roundf: halves away from zero
    q = _truncated(whole.copysign_(scaled)).to(torch.int8)
    return torch.cat((to_half(d)[0], q.view(torch.uint8)), dim=1)
