"""SSIM of every place as a picture: dark where two pictures are alike, bright where not, with a bar of its colors."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .ssim import RADIUS

# SSIM and its color. Each of the guide's bands has as much of the bar as half of what is poor: maps lie there mostly.
STOPS = (
    (1.0, (0.05, 0.03, 0.20)),
    (0.95, (0.27, 0.07, 0.45)),
    (0.9, (0.52, 0.13, 0.47)),
    (0.85, (0.75, 0.22, 0.37)),
    (0.8, (0.91, 0.39, 0.22)),
    (0.5, (0.98, 0.66, 0.18)),
    (0.0, (0.99, 0.98, 0.72)),
)
BAR, GAP, FONT = 14, 6, 11  # pixels of the bar's width, between its parts, and of its letters, at a height of 256
LABELS = 30  # pixels for the numbers


def draw_heat_map(windows: Tensor) -> Tensor:
    """Maps (B, H - 10, W - 10) of `compare` as pictures (B, H, W + bar, 3) in 0-1 on the CPU, the bar on the right.

    The border that has no window of its own takes the nearest one's color.
    """
    padded = F.pad(windows[:, None].float(), (RADIUS,) * 4, mode="replicate")[:, 0].cpu()
    pictures = _color(padded)
    bar = _bar(pictures.shape[1])
    return torch.cat((pictures, bar.expand(len(pictures), -1, -1, -1)), dim=2)


def _color(values: Tensor) -> Tensor:
    """(...) -> (..., 3), the stops' colors and those between them."""
    edges = np.array([value for value, _ in STOPS][::-1])
    colors = np.array([color for _, color in STOPS][::-1])
    flat = values.clamp(0, 1).numpy()
    channels = [np.interp(flat, edges, colors[:, i]).astype(np.float32) for i in range(3)]
    return torch.from_numpy(np.stack(channels, axis=-1))


def _bar(height: int) -> Tensor:
    """(height, width, 3): from 1 at the top to 0 at the bottom, as far apart as the stops stand, with their numbers."""
    scale = max(1, round(height / 256))
    small = max(1, height // scale)
    image = Image.new("RGB", (GAP + BAR + GAP + LABELS, small), (255, 255, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default()
    top, bottom = min(FONT // 2, small // 4), small - 1 - min(FONT // 2, small // 4)
    places = np.linspace(top, bottom, len(STOPS))
    rows = np.arange(top, bottom + 1)
    values = np.interp(rows, places, [value for value, _ in STOPS])
    for row, color in zip(rows.tolist(), _color(torch.from_numpy(values)).tolist(), strict=True):
        pen.line((GAP, row, GAP + BAR - 1, row), fill=tuple(round(255 * part) for part in color))
    every = 1 if small > 2 * FONT * len(STOPS) // 2 else len(STOPS) - 1  # where there is no room, its ends alone
    for place, (value, _) in list(zip(places, STOPS, strict=True))[::every]:
        pen.text((GAP + BAR + GAP, round(place) - FONT // 2), f"{value:.2f}", fill=(0, 0, 0), font=font)
    picture = image.resize((image.width * scale, height), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture)).float() / 255
