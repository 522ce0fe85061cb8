"""Did an edit succeed? Judged on pictures alone, by what should have changed and what should not.

All but SSIM is judged on pictures blurred a little, so that an edge drawn half a pixel beside its place is no change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.metrics.ssim import ssim

BLUR = 0.01  # radius, in shorter sides
CHANGE = 0.12  # of a channel in 0-1, from which a pixel counts as changed
WRONG = 0.08  # of a channel, from which a pixel counts as unlike the right one
LEAST_OVERLAP = 0.75  # of the changed and the rightly changed area: intersection over union
LARGEST_SHIFT = 0.03  # of the changed area's middle, in shorter sides
LARGEST_COLOR_ERROR = 0.06  # of a channel's mean over the area that should change
MOST_WRONG_INSIDE = 0.15  # share of that area's pixels that differ from the right ones: a wrong texture is larger
MOST_WRONG = 0.015  # share of all the picture's pixels that do


@dataclass(frozen=True)
class Verdict:
    """One value (B,) a picture for each of five judgements, and its SSIM to the right picture.

    overlap, shift: presence and position of what changed. color_error, wrong_inside: its colors and texture.
    wrong: what is wrong anywhere.
    """

    overlap: Tensor
    shift: Tensor
    color_error: Tensor
    wrong_inside: Tensor
    wrong: Tensor
    ssim: Tensor

    @property
    def success(self) -> Tensor:
        """(B,) bool: all five within their limits."""
        return (
            (self.overlap >= LEAST_OVERLAP)
            & (self.shift <= LARGEST_SHIFT)
            & (self.color_error <= LARGEST_COLOR_ERROR)
            & (self.wrong_inside <= MOST_WRONG_INSIDE)
            & (self.wrong <= MOST_WRONG)
        )


def judge(before: Tensor, right: Tensor, result: Tensor) -> Verdict:
    """before: the first reference; right: the true picture; result: the model's. All (B, 3, H, W) in 0-1."""
    side = min(right.shape[-2:])
    likeness = ssim(right, result)
    before, right, result = (_blur(picture, round(BLUR * side)) for picture in (before, right, result))
    wrong = _changed(right, result, WRONG)  # (B, H, W)
    should = _changed(before, right)
    did = torch.where(wrong, _changed(before, result), should)  # a right pixel did what it should, however faint
    both, either = (should & did).sum((1, 2)), (should | did).sum((1, 2))
    overlap = torch.where(either > 0, both / either.clamp(min=1), 1.0)  # nothing should change and nothing did
    shift = (_middle(should) - _middle(did)).norm(dim=1) / side
    area = should[:, None].float()
    n_pixels = area.sum((2, 3)).clamp(min=1)  # (B, 1)
    color_error = (((result - right) * area).sum((2, 3)) / n_pixels).abs().amax(dim=1)
    wrong_inside = (wrong & should).sum((1, 2)) / n_pixels[:, 0]
    share = wrong.float().mean((1, 2))
    return Verdict(overlap, shift, color_error, wrong_inside, share, likeness)


def _blur(picture: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(picture, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)


def _changed(a: Tensor, b: Tensor, least: float = CHANGE) -> Tensor:
    return (a - b).abs().amax(dim=1) > least


def _middle(area: Tensor) -> Tensor:
    """Mean row and column (B, 2) of an area (B, H, W); far away where it is empty."""
    rows = torch.arange(area.shape[1], device=area.device, dtype=torch.float32)
    columns = torch.arange(area.shape[2], device=area.device, dtype=torch.float32)
    n = area.sum((1, 2))
    middle = torch.stack((area.sum(2).float() @ rows, area.sum(1).float() @ columns), dim=1) / n.clamp(min=1)[:, None]
    return torch.where(n[:, None] > 0, middle, torch.full_like(middle, -1e3))
