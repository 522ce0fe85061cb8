"""Encoders of the K-quants: 256 weights a block in groups of 16 or 32.

Inside, weights lie as (place in the group, group, block): then what is done to every group is done to long rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .c_float import divide, nearest_int, sqrt, sum_rows, to_half
from .encode import encodes
from .k_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from .search import Fit, make_q3_quants, make_qkx2_quants, make_qx_quants


def _groups(x: Tensor, size: int) -> Tensor:
    """Weights (n, 256) -> (size, 256 / size, n), contiguous."""
    return x.unflatten(1, (-1, size)).permute(2, 1, 0).contiguous()


def _flat(levels: Tensor) -> Tensor:
    """Levels (size, groups, n) of any integer dtype -> (n, 256) uint8, in the order of the weights."""
    return levels.to(torch.uint8).permute(2, 1, 0).flatten(1)


def _packed(q: Tensor, n_bits: int, run: int) -> Tensor:
    """Values (n, N) uint8 of n_bits each -> (n, N * n_bits / 8): the reverse of `blocks.planes`."""
    runs = q.unflatten(1, (-1, 8 // n_bits, run))
    packed = runs[:, :, 0].clone()
    for i in range(1, 8 // n_bits):
        packed |= runs[:, :, i] << i * n_bits
    return packed.flatten(1)


def _largest(values: Tensor) -> Tensor:
    """Of the groups' (groups, n) the largest that is no less than 0, and not NaN."""
    return values.nan_to_num(0, torch.inf, 0).amax(0).clamp_(min=0).add_(0.0)  # -0 + 0 is 0


def _with_sign(values: Tensor) -> Tensor:
    """Of the groups' (groups, n) the first that is largest without its sign; NaN never is."""
    largest = torch.zeros_like(values[0])
    for row in values:
        largest = torch.where(row.abs() > largest.abs(), row, largest)
    return largest


def _over(number: float, values: Tensor) -> Tensor:
    """number / values, and 0 where they are 0 or less."""
    return divide(number, values).masked_fill_(~(values > 0), 0)


def _final_levels(x: Tensor, d: Tensor, least: Tensor | None, fit: Fit, low: int, high: int) -> Tensor:
    """Levels 0 to high - low by the rounded scales d and minima (groups, n); where d is 0 those of the search."""
    shifted = x if least is None else x + least
    levels = nearest_int(divide(shifted, d)).clamp_(low, high).sub_(low)
    lost = d == 0
    if bool(lost.any()):
        levels = torch.where(lost, fit.levels().view_as(levels), levels)
    return levels


def _six_bit_form(x: Tensor, n_max: int, r_min: float, n_steps: int) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: the 16 bytes of all scales (n, 16), the levels (n, 256)."""
    groups = _groups(x, 32)
    rows = groups.flatten(1)
    weights = rows.abs() + sqrt(divide(sum_rows(rows * rows), 32.0))
    fit = make_qkx2_quants(rows, weights, n_max, r_min, n_steps, absolute=False)
    scales, mins = fit.scale.view(groups.shape[1:]), fit.minimum.view(groups.shape[1:])
    top, bottom = _largest(scales), _largest(mins)
    scale = (nearest_int(_over(63.0, top) * scales) & 255).clamp_(max=63)  # stored in a byte, then cut
    least = (nearest_int(_over(63.0, bottom) * mins) & 255).clamp_(max=63)
    d_bytes, d = to_half(divide(top, 63.0))
    least_bytes, d_least = to_half(divide(bottom, 63.0))
    levels = _final_levels(groups, d * scale, d_least * least, fit, 0, n_max)
    first, second = scale[:4] | scale[4:] >> 4 << 6, least[:4] | least[4:] >> 4 << 6
    six_bits = torch.cat((first, second, scale[4:] & 15 | (least[4:] & 15) << 4)).T.to(torch.uint8)
    return torch.cat((d_bytes, least_bytes, six_bits), dim=1), _flat(levels)


@encodes(Q4_K)
def encode_q4_k(x: Tensor) -> Tensor:
    """See `Encoder`."""
    scales, q = _six_bit_form(x, 15, -1.0, 20)
    return torch.cat((scales, _packed(q, 4, 32)), dim=1)


@encodes(Q5_K)
def encode_q5_k(x: Tensor) -> Tensor:
    """See `Encoder`."""
    scales, q = _six_bit_form(x, 31, -0.5, 15)
    return torch.cat((scales, _packed(q >> 4, 1, 32), _packed(q & 15, 4, 32)), dim=1)


@encodes(Q2_K)
def encode_q2_k(x: Tensor) -> Tensor:
    """See `Encoder`."""
    groups = _groups(x, 16)
    rows = groups.flatten(1)
    fit = make_qkx2_quants(rows, rows.abs(), 3, -0.5, 15, absolute=True)
    scales, mins = fit.scale.view(groups.shape[1:]), fit.minimum.view(groups.shape[1:])
    top, bottom = _largest(scales), _largest(mins)
    both = (nearest_int(_over(15.0, top) * scales) | nearest_int(_over(15.0, bottom) * mins) << 4) & 255
    d_bytes, d = to_half(divide(top, 15.0))
    least_bytes, d_least = to_half(divide(bottom, 15.0))
    levels = _final_levels(groups, d * (both & 15), d_least * (both >> 4), fit, 0, 3)
    return torch.cat((both.T.to(torch.uint8), _packed(_flat(levels), 2, 32), d_bytes, least_bytes), dim=1)


@encodes(Q3_K)
def encode_q3_k(x: Tensor) -> Tensor:
    """See `Encoder`."""
    groups = _groups(x, 16)
    fit = make_q3_quants(groups.flatten(1), 4)
    scales = fit.scale.view(groups.shape[1:])
    top = _with_sign(scales)
    empty = top == 0
    inverse = divide(-32.0, top)
    scale = nearest_int(inverse * scales).clamp_(-32, 31).masked_fill_(empty, -32)
    d_bytes, d = to_half(divide(1.0, inverse).masked_fill_(empty, 0))
    levels = _flat(_final_levels(groups, d * scale, None, fit, -4, 3))
    six_bits = (scale + 32).T.to(torch.uint8)  # (n, 16)
    parts = (
        _packed(levels >> 2, 1, 32),
        _packed(levels & 3, 2, 32),
        _packed(six_bits & 15, 4, 8),
        _packed(six_bits >> 4, 2, 4),
        d_bytes,
    )
    return torch.cat(parts, dim=1)


@encodes(Q6_K)
def encode_q6_k(x: Tensor) -> Tensor:
    """See `Encoder`."""
    groups = _groups(x, 16)
    fit = make_qx_quants(groups.flatten(1), 32)
    scales = fit.scale.view(groups.shape[1:])
    top = _with_sign(scales)
    empty = top.abs() < 1e-15
    inverse = divide(-128.0, top)
    scale = nearest_int(inverse * scales).clamp_(max=127)
    d_bytes, d = to_half(divide(1.0, inverse))
    levels = _flat(_final_levels(groups, d * scale, None, fit, -32, 31))
    parts = (
        _packed(levels & 15, 4, 64),
        _packed(levels >> 4, 2, 32),
        scale.T.to(torch.int8).view(torch.uint8),
        d_bytes,
    )
    return torch.cat(parts, dim=1).masked_fill_(empty[:, None], 0)
