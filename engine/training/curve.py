"""The curve of a training's losses as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, MARGIN = 720, 400, 48  # pixels
PAPER, INK, FAINT, LINE = "#ffffff", "#333333", "#cfd8e3", "#1f5fbf"


def draw_curve(losses: Sequence[float], n_steps: int) -> Any:
    """A PIL picture of the losses of steps 1, 2, ...: each faint, their running mean over n_steps / 20 strong."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = MARGIN, MARGIN // 2, WIDTH - MARGIN // 2, HEIGHT - MARGIN
    highest = max(losses, default=1.0) or 1.0

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        across, down = (right - left) / max(1, n_steps), (bottom - top) / highest
        return [(left + (i + 1) * across, bottom - value * down) for i, value in enumerate(values)]

    pen.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    if len(losses) > 1:
        pen.line(points(losses), fill=FAINT)
        pen.line(points(running_mean(losses, max(1, n_steps // 20))), fill=LINE, width=3)
    pen.text((4, top), f"{highest:.3g}", fill=INK)
    pen.text((4, bottom - 8), "0", fill=INK)
    pen.text((left, bottom + 8), "loss by step", fill=INK)
    pen.text((right, bottom + 8), str(n_steps), fill=INK, anchor="ra")
    return picture


def running_mean(values: Sequence[float], n: int) -> list[float]:
    """The mean of every value and up to n - 1 before it."""
    return [sum(values[max(0, i - n) : i]) / min(i, n) for i in range(1, len(values) + 1)]
