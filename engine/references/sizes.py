"""Sizes of the result and of the references: on the model's grid, in a picture's shape, within a budget.

A megapixel is 1024x1024 pixels here, as in ComfyUI; a token is GRID x GRID pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..flux.positions import GRID

MEGAPIXEL = 1024 * 1024
SLACK = 0.125  # share by which the result's area may differ from what was asked for, to keep the shape
MAX_RATIO = 16  # of a reference's sides
FITS = ("pad", "crop", "fit")

Size = tuple[int, int]  # width and height in pixels
Fit = Literal["pad", "crop", "fit"]


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in another of the size `outer`: `inner` of it from (left, top) on."""

    outer: Size
    inner: Size
    left: int
    top: int


def n_tokens(size: Size) -> int:
    """Of a picture on the grid."""
    return size[0] // GRID * (size[1] // GRID)


def size_on_grid(shape: Size, megapixels: float, below: bool = False) -> Size:
    """The size on the grid whose sides are nearest to the ratio of `shape`, of about so many megapixels.

    Areas within SLACK of what is asked for count as equal; below: only those not above it, down to twice SLACK.
    Among equal ratios the nearest area wins, so a shape on the grid keeps its ratio exactly.
    """
    ratio, area = shape[0] / shape[1], max(megapixels * MEGAPIXEL, GRID * GRID)
    low, high = (1 - 2 * SLACK, 1.0) if below else (1 - SLACK, 1 + SLACK)
    best, found = (math.inf, math.inf), (GRID, GRID)
    for rows in range(1, math.ceil(math.sqrt(high * area / ratio) / GRID) + 1):
        exact = rows * ratio
        for columns in {max(1, math.floor(exact)), max(1, math.ceil(exact))}:
            share = rows * columns * GRID * GRID / area
            outside = max(0.0, low - share, share - high)  # small or long pictures may have no size within
            if below and share > 1 and rows * columns > 1:
                continue
            score = (outside + abs(math.log(columns / rows / ratio)), abs(math.log(share)))
            if score < best:
                best, found = score, (columns * GRID, rows * GRID)
    return found


def deviation(shape: Size, size: Size) -> float:
    """By which share the ratio of the sides of `size` differs from that of `shape`."""
    return size[0] * shape[1] / (size[1] * shape[0]) - 1


def shares(wishes: Sequence[float], budget: float) -> list[float]:
    """Megapixels of each reference, from those wished for; together at most `budget`, unless that is 0."""
    total = sum(wishes)
    scale = min(1.0, budget / total) if budget and total else 1.0
    return [wish * scale for wish in wishes]


def frame(shape: Size, size: Size, fit: Fit) -> Frame:
    """How a picture of `shape` comes to `size`: the scaled picture, centred, is larger (crop), smaller (pad) or equal.

    For crop, `outer` is the scaled picture and `inner` what is seen of it; for pad the other way round.
    """
    if fit == "fit":
        return Frame(size, size, 0, 0)
    scales = size[0] / shape[0], size[1] / shape[1]
    scale = max(scales) if fit == "crop" else min(scales)
    width, height = (max(1, round(side * scale)) for side in shape)
    if fit == "crop":
        outer, inner = (max(width, size[0]), max(height, size[1])), size
    else:
        outer, inner = size, (min(width, size[0]), min(height, size[1]))
    return Frame(outer, inner, (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2)
