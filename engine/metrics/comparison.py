"""Two batches of pictures compared: SSIM, PSNR and mean absolute difference, whole or on one side of a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .ssim import RADIUS, SMALLEST_FOR_SCALES, WINDOW, luma, multi_scale_ssim, ssim_map

BANDS = ((1.0, "identical"), (0.95, "excellent"), (0.9, "very good"), (0.85, "good"), (0.8, "acceptable"))
LOWEST_BAND = "poor"
WHOLE, INSIDE, OUTSIDE = "whole picture", "inside the mask", "outside the mask"
N_CELLS = 3  # along a side of the grid of `regions`
MOST_PARTS = 12  # of a mask that get a line of their own


def grade(ssim: float) -> str:
    """The guide's name for an SSIM: identical at 1, excellent from 0.95 on, down to poor below 0.8."""
    return next((name for least, name in BANDS if ssim >= least), LOWEST_BAND)


@dataclass(frozen=True)
class Scores:
    """One pair of pictures. psnr in dB, infinite where no pixel differs; difference: mean absolute, in 0-1."""

    ssim: float
    psnr: float
    difference: float


@dataclass(frozen=True)
class Comparison:
    """rows: one a pair; map: SSIM of every window (B, H - 10, W - 10), the mean of its channels."""

    rows: tuple[Scores, ...]
    map: Tensor

    @property
    def ssim(self) -> float:
        """Mean over the pairs."""
        return sum(row.ssim for row in self.rows) / len(self.rows)

    @property
    def worst(self) -> int:
        """Index of the pair with the lowest SSIM."""
        return min(range(len(self.rows)), key=lambda i: self.rows[i].ssim)


def compare(
    a: Tensor,
    b: Tensor,
    *,
    luma_only: bool = False,
    multi_scale: bool = False,
    region: str = WHOLE,
    mask: Tensor | None = None,
) -> Comparison:
    """Compares pictures (B, 3, H, W) in 0-1 pair by pair.

    region: WHOLE, or the pixels where the mask (B or 1, H, W) is at least 0.5 (INSIDE) or is 0 (OUTSIDE). SSIM then is
    the mean of the windows that lie wholly there, so that nothing beyond the region's border counts.
    Raises ValueError for sides that are too short, and where no window of a picture lies in its region.
    """
    least = SMALLEST_FOR_SCALES if multi_scale else WINDOW
    if min(a.shape[2:]) < least:
        what = "multi-scale SSIM" if multi_scale else "SSIM"
        raise ValueError(f"{what} needs at least {least} pixels a side, these pictures have {size_of(a)}.")
    if multi_scale and region != WHOLE:
        raise ValueError("multi-scale SSIM is of the whole picture; turn multi_scale off to compare by a mask.")
    if luma_only:
        a, b = luma(a), luma(b)
    windows = ssim_map(a, b).mean(dim=1)
    inside = _inside(a, region, mask)
    if multi_scale:
        values = multi_scale_ssim(a, b)
    elif inside is None:
        values = windows.mean(dim=(1, 2))
    else:
        whole = (1 - F.max_pool2d(1 - inside, WINDOW, stride=1)).to(windows.dtype)
        n_windows = whole.sum(dim=(1, 2))
        if empty := [i for i, n in enumerate(n_windows.tolist()) if n == 0]:
            raise ValueError(
                f"no window of {WINDOW}x{WINDOW} pixels of picture {empty[0]} lies {region}: take a "
                f"{'larger' if region == INSIDE else 'smaller'} mask, or compare the {WHOLE}."
            )
        values = (windows * whole).sum(dim=(1, 2)) / n_windows
    absolute, squared = _differences(a, b, inside)
    rows = zip(values.tolist(), squared.tolist(), absolute.tolist(), strict=True)
    return Comparison(tuple(Scores(value, psnr_of(square), mean) for value, square, mean in rows), windows)


def psnr_of(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared difference of pictures in 0-1; infinite for none."""
    return -10 * math.log10(mean_square) if mean_square > 0 else math.inf


def size_of(picture: Tensor) -> str:
    """`width x height` of (..., H, W)."""
    return f"{picture.shape[-1]}x{picture.shape[-2]}"


def regions(windows: Tensor, mask: Tensor | None = None) -> list[tuple[str, float]]:
    """Mean SSIM of each region, by name, of one picture's map (H - 10, W - 10); a window counts where its middle is.

    Without a mask: the cells of a 3x3 grid. With one (H, W): its connected parts, the largest first, and what is left.
    """
    height, width = windows.shape
    if mask is None:
        return [
            (f"row {y + 1}, column {x + 1}", cell.mean().item())
            for y, band in enumerate(windows.tensor_split(N_CELLS, dim=0))
            for x, cell in enumerate(band.tensor_split(N_CELLS, dim=1))
            if cell.numel()  # a picture of 11 pixels has one window
        ]
    from scipy import ndimage

    middle = mask[RADIUS : RADIUS + height, RADIUS : RADIUS + width].cpu() >= 0.5
    labels, n = ndimage.label(middle.numpy(), structure=[[1] * 3] * 3)
    labels = torch.from_numpy(labels).long().flatten()
    values = windows.flatten().cpu().double()
    areas = torch.zeros(n + 1, dtype=values.dtype).index_add_(0, labels, torch.ones_like(values))
    means = torch.zeros_like(areas).index_add_(0, labels, values) / areas.clamp(min=1)
    parts = sorted(range(1, n + 1), key=lambda i: -areas[i].item())[:MOST_PARTS]
    found = [(_part_name(labels.view_as(middle) == i), means[i].item()) for i in parts]
    return found + ([("the rest", means[0].item())] if areas[0] else [])


def _part_name(part: Tensor) -> str:
    rows, columns = part.nonzero().unbind(1)
    left, top = int(columns.min()) + RADIUS, int(rows.min()) + RADIUS
    return f"part at x {left}-{int(columns.max()) + RADIUS}, y {top}-{int(rows.max()) + RADIUS}"


def _inside(a: Tensor, region: str, mask: Tensor | None) -> Tensor | None:
    """(B, H, W) float: 1 in the region; None for the whole picture."""
    if region == WHOLE:
        return None
    if mask is None:
        raise ValueError(f"comparing {region} needs a mask; connect one, or compare the {WHOLE}.")
    inside = mask >= 0.5 if region == INSIDE else mask <= 0  # a soft edge belongs to neither
    return inside.to(a.device, torch.float32).expand(len(a), -1, -1)


def _differences(a: Tensor, b: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean absolute and mean squared difference (B,) of the region's pixels and all channels."""
    apart = (a.float() - b.float()).to(torch.float64 if a.device.type == "cpu" else torch.float32)
    if inside is None:
        return apart.abs().mean(dim=(1, 2, 3)), apart.square().mean(dim=(1, 2, 3))
    apart = apart * inside[:, None]
    n = inside.sum(dim=(1, 2)) * a.shape[1]
    return apart.abs().sum(dim=(1, 2, 3)) / n, apart.square().sum(dim=(1, 2, 3)) / n
