"""ggml's searches for the scale of a group of weights, for many groups at once.

Each follows the C function it is named after, operation for operation, so that the results are the same bits.
x: (n, m) float32, the n weights of m groups, finite. Levels are integers; a group is weight = scale * level (+ min).
https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c (MIT)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .c_float import EXACT_BELOW, divide, first_largest, nearest_int, sum_rows

_NOTHING = 1e-15  # ggml's GROUP_MAX_EPS: a group that is smaller counts as zero


@dataclass(frozen=True)
class Fit:
    """What a search found. scale (m,); minimum (m,), 0 or more, is subtracted; levels() (n, m) int32, from 0 on.

    The levels are a function, because a block computes its own from the rounded scales and asks for these only where
    a scale was rounded to zero.
    """

    scale: Tensor
    minimum: Tensor
    levels: Callable[[], Tensor]


def make_qkx2_quants(x: Tensor, w: Tensor, n_max: int, r_min: float, n_steps: int, absolute: bool) -> Fit:
    """Levels 0 to n_max with a minimum, by the least error weighted with w (n, m).

    r_min and n_steps: the scales tried are (n_max + r_min + 0.1 i) / range, i = 0 to n_steps, range and minimum
    those of the best fit so far. absolute: the error is the deviation, not its square.
    """
    level, t = torch.empty_like(x), torch.empty_like(x)
    lowest, high = x.amin(0).clamp_(max=0), x.amax(0)
    flat = high == lowest
    sum_w, sum_x = sum_rows(w), sum_rows(torch.mul(w, x, out=t))

    def span(low: Tensor) -> Tensor:
        return (high - low).masked_fill_(flat, 1)

    def fill_levels(low: Tensor, inverse: Tensor) -> None:
        torch.sub(x, low, out=level).mul_(inverse)
        reach = torch.maximum((high - low).abs_(), (lowest - low).abs_()).mul_(inverse.abs())
        if bool((reach < EXACT_BELOW).all()):
            level.round_().clamp_(0, n_max)
        else:
            level.copy_(nearest_int(level).clamp_(0, n_max))

    def error(scale: Tensor, low: Tensor) -> Tensor:
        torch.mul(level, scale, out=t).add_(low).sub_(x)
        if absolute:
            t.abs_()
        else:
            t.mul_(t)
        return sum_rows(t.mul_(w))

    low = lowest
    inverse = divide(float(n_max), span(low))
    scale = divide(1.0, inverse)
    fill_levels(low, inverse)
    least = error(scale, low)
    used_low, used_inverse = low, inverse
    for step in range(n_steps + 1):
        wide = float(np.float32(r_min) + np.float32(0.1) * np.float32(step) + np.float32(n_max))
        inverse = divide(wide, span(low))
        fill_levels(low, inverse)
        sum_l = sum_rows(torch.mul(w, level, out=t))
        sum_xl = sum_rows(t * x)
        sum_l2 = sum_rows(t.mul_(level))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = divide(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_low = divide(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        above = new_low > 0
        new_scale = torch.where(above, divide(sum_xl, sum_l2), new_scale)
        new_low.masked_fill_(above, 0)
        found = error(new_scale, new_low)
        better = (determinant > 0) & (found < least) & ~flat
        used_low, used_inverse = torch.where(better, low, used_low), torch.where(better, inverse, used_inverse)
        least = torch.where(better, found, least)
        scale, low = torch.where(better, new_scale, scale), torch.where(better, new_low, low)

    def levels() -> Tensor:
        fill_levels(used_low, used_inverse)
        return level.int().masked_fill_(flat, 0)

    return Fit(scale.masked_fill_(flat, 0), -low, levels)


def make_qx_quants(x: Tensor, n_max: int) -> Fit:
    """Levels -n_max to n_max - 1, given as 0 to 2 n_max - 1, without a minimum, weighted with x^2."""
    largest = first_largest(x)
    nothing = largest.abs() < _NOTHING
    largest = largest.masked_fill(nothing, 1)
    w = x * x
    wx = w * x
    level, t = torch.empty_like(x), torch.empty_like(x)

    def fill_levels(inverse: Tensor) -> None:  # never beyond n_max + 1
        torch.mul(x, inverse, out=level).round_().clamp_(-n_max, n_max - 1)

    def sums(inverse: Tensor) -> tuple[Tensor, Tensor]:
        fill_levels(inverse)
        sum_xl = sum_rows(torch.mul(wx, level, out=t))
        return sum_xl, sum_rows(torch.mul(w, level, out=t).mul_(level))

    inverse = divide(float(-n_max), largest)
    sum_xl, sum_l2 = sums(inverse)
    scale = divide(sum_xl, sum_l2).masked_fill_(sum_l2 == 0, 0)
    best = scale * sum_xl
    for step in (*range(-9, 0), *range(1, 10)):
        tried = divide(float(-(np.float32(n_max) + np.float32(0.1) * np.float32(step))), largest)
        sum_xl, sum_l2 = sums(tried)
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        new_scale = divide(sum_xl, sum_l2)
        inverse = torch.where(better, tried, inverse)
        best = torch.where(better, new_scale * sum_xl, best)
        scale = torch.where(better, new_scale, scale)

    def levels() -> Tensor:
        fill_levels(inverse)
        return (level.int() + n_max).masked_fill_(nothing, 0)

    return Fit(scale.masked_fill_(nothing, 0), torch.zeros_like(scale), levels)


def make_q3_quants(x: Tensor, n_max: int) -> Fit:
    """Levels -n_max to n_max - 1, given as 0 to 2 n_max - 1, each bettered five times with the others held."""
    largest = first_largest(x)
    nothing = largest.abs() < _NOTHING
    level = nearest_int(divide(float(-n_max), largest.masked_fill(nothing, 1)) * x).clamp_(-n_max, n_max - 1).float()
    w = x * x
    wx = w * x
    sum_xl, sum_l2 = sum_rows(wx * level), sum_rows(w * level * level)
    for _ in range(5):
        for value, weight, weighted, own in zip(x, w, wx, level, strict=True):
            rest_xl = sum_xl - weighted * own
            rest_l2 = sum_l2 - weight * own * own
            new = nearest_int(divide(value * rest_l2, rest_xl)).clamp_(-n_max, n_max - 1).float()
            new_xl = rest_xl + weighted * new
            new_l2 = rest_l2 + weight * new * new
            better = (rest_xl > 0) & (new != own) & (new_l2 > 0)
            better &= new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            own.copy_(torch.where(better, new, own))
            sum_xl, sum_l2 = torch.where(better, new_xl, sum_xl), torch.where(better, new_l2, sum_l2)
    scale = divide(sum_xl, sum_l2).masked_fill_((sum_l2 <= 0) | nothing, 0)
    return Fit(scale, torch.zeros_like(scale), lambda: (level.int() + n_max).masked_fill_(nothing, 0))
