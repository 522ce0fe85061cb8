"""Structural similarity (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861) and its form over scales.

The convention, everywhere in this pack: a Gaussian window of 11 taps and sigma 1.5, K 0.01 and 0.03, population
covariance, data range 1, no padding (5 pixels of each side are lost), channels apart and then their mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, RADIUS = 1.5, 5  # of the Gaussian window: 11 taps
WINDOW = 2 * RADIUS + 1
C1, C2 = 0.01**2, 0.03**2  # for pictures in 0-1
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the finest scale to the coarsest
SMALLEST_FOR_SCALES = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)  # pixels of a side
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
STRIP = 125_000  # pixels that the CPU works on at a time, so that what it needs again is in its cache


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM (B,) of pictures (B, C, H, W) in 0-1, sides at least 11; float64 on the CPU, else float32.

    scikit-image's `structural_similarity` with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1`. Can be learnt from.
    """
    return ssim_map(a, b).mean(dim=(1, 2, 3))


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of every window, (B, C, H - 10, W - 10): at [y, x] that of the window around pixel [y + 5, x + 5]."""
    return _map(a, b, luminance=True)


def multi_scale_ssim(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM (B,) of pictures (B, C, H, W) in 0-1, sides at least 176 pixels.

    Contrast and structure at five scales, luminance at the last, each scale the mean of 2x2 pixels of the one before,
    weighed as in Wang et al. 2003 (https://doi.org/10.1109/ACSSC.2003.1292216); a negative mean counts as 0.
    """
    value: Tensor | float = 1.0
    for i, weight in enumerate(SCALE_WEIGHTS):
        if i:
            a, b = F.avg_pool2d(_precise(a), 2), F.avg_pool2d(_precise(b), 2)
        means = _map(a, b, luminance=i == len(SCALE_WEIGHTS) - 1).mean(dim=(2, 3))
        value = value * means.clamp(min=0) ** weight
    return value.mean(dim=1)  # type: ignore[union-attr]


def luma(picture: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) of RGB pictures (B, 3, H, W): ITU-R BT.601 of the values as they are (gamma-coded)."""
    weights = torch.tensor(LUMA, dtype=_precise(picture[:0]).dtype, device=picture.device)
    return (_precise(picture) * weights[:, None, None]).sum(dim=1, keepdim=True)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.float64 if x.device.type == "cpu" else torch.float32)


def _map(a: Tensor, b: Tensor, luminance: bool) -> Tensor:
    """Contrast and structure of every window, times its luminance or without, (B, C, H - 10, W - 10)."""
    n, channels, height, width = a.shape
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    if a.device.type != "cpu":
        found = _windows(a, b, luminance)
    else:
        rows = max(16, STRIP // width)
        found = a.new_empty((len(a), height - 2 * RADIUS, width - 2 * RADIUS), dtype=torch.float64)
        for i in range(len(a)):
            for top in range(0, height - 2 * RADIUS, rows):
                strip = slice(top, top + rows + 2 * RADIUS)
                found[i, top : top + rows] = _windows(a[i, strip], b[i, strip], luminance)
    return found.unflatten(0, (n, channels))


def _windows(a: Tensor, b: Tensor, luminance: bool) -> Tensor:
    """(..., H, W) -> (..., H - 10, W - 10)."""
    a, b = _precise(a) - 0.5, _precise(b) - 0.5  # around 0, where squares lose fewer digits
    mean_a, mean_b, squares, product = _blur(torch.stack((a, b, a * a + b * b, a * b)))
    variances = squares - (mean_a * mean_a + mean_b * mean_b)
    covariance = product - mean_a * mean_b
    structure = (2 * covariance + C2) / (variances + C2)
    if not luminance:
        return structure
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    return structure * (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)


def _blur(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., H - 10, W - 10). Sums, since a card's convolution may round to TF32."""
    taps = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-(taps**2) / (2 * SIGMA**2))
    for dim in (-2, -1):
        n = x.shape[dim] - 2 * RADIUS
        blurred = torch.zeros_like(x.narrow(dim, 0, n))
        for i, weight in enumerate((weights / weights.sum()).tolist()):
            blurred.add_(x.narrow(dim, i, n), alpha=weight)
        x = blurred
    return x
