"""Structural similarity (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, RADIUS = 1.5, 5  # of the Gaussian window: 11 taps
C1, C2 = 0.01**2, 0.03**2  # for pictures in 0-1


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM (B,) of pictures (B, C, H, W) in 0-1, sides at least 11.

    Gaussian window, population covariance, channels apart, no padding: scikit-image's `structural_similarity` with
    `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1`. Computed in float32.
    """
    a, b = a.float(), b.float()
    mean_a, mean_b, square_a, square_b, product = _blur(
        torch.stack((a, b, a * a, b * b, a * b)).flatten(0, 2)
    ).unflatten(0, (5, *a.shape[:2]))
    variances = square_a - mean_a**2 + square_b - mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).mean(dim=(1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """(N, H, W) -> (N, H - 10, W - 10)."""
    taps = torch.arange(-RADIUS, RADIUS + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-(taps**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    x = F.conv2d(x[:, None], weights[None, None, :, None])
    return F.conv2d(x, weights[None, None, None, :])[:, 0]
