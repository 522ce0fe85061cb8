"""A picture of what the model sees: the result's plane, and each plane of references, at one scale."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..flux.positions import GRID
from .plan import Placed, Plan
from .sizes import Size

WIDTH = 1024  # of the picture, in pixels
MARGIN, LINE = 16, 22
PAPER, INK, EMPTY = (250, 250, 250), (40, 40, 40), (225, 225, 225)
MAX_ENLARGED = 2.0

Box = tuple[int, int, int, int]


def draw_layout(plan: Plan) -> Tensor:
    """(1, H, W, 3) in 0-1. Beside each other: the result, empty, and the references where their positions put them.

    What is not seen of a reference is veiled; the less it weighs, the paler it is.
    """
    planes: dict[int, list[Placed]] = {}
    for each in plan.placed:
        planes.setdefault(each.index, []).append(each)
    sizes = [plan.size, *(_extent(some) for some in planes.values())]
    room = WIDTH - MARGIN * (len(sizes) + 1)
    scale = min(MAX_ENLARGED, room / sum(width for width, _ in sizes))
    height = round(max(height for _, height in sizes) * scale) + 2 * MARGIN + LINE
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    left, top = MARGIN, MARGIN + LINE
    box = _scaled((0, 0, *plan.size), scale, left, top)
    draw.rectangle(box, EMPTY, INK)
    _label(draw, (left, MARGIN), f"result {plan.size[0]}x{plan.size[1]}, {plan.n_target} tokens")
    for (index, some), size in zip(planes.items(), sizes[1:], strict=True):
        left = box[2] + MARGIN
        box = _scaled((0, 0, *size), scale, left, top)
        draw.rectangle(box, None, EMPTY)
        _label(draw, (left, MARGIN), f"index {index}, {sum(each.n_seen for each in some)} tokens")
        for each in some:
            corner = _scaled((each.left, each.top, each.left + each.size[0], each.top + each.size[1]), scale, left, top)
            sheet.paste(_seen(each).resize((corner[2] - corner[0], corner[3] - corner[1])), corner[:2])
            draw.rectangle(corner, None, INK)
            number = 1 + next(i for i, other in enumerate(plan.placed) if other is each)
            weight = each.reference.weight
            _label(draw, (corner[0] + 3, corner[1] + 2), f"{number}" + ("" if weight == 1 else f": {weight:g}"), True)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


def _extent(placed: list[Placed]) -> Size:
    """Of a plane, from its origin to the farthest corner."""
    corners = [(each.left + each.size[0], each.top + each.size[1]) for each in placed]
    width, height = (max(sides) for sides in zip(*corners, strict=True))
    return width, height


def _scaled(box: Box, scale: float, left: int, top: int) -> Box:
    x0, y0, x1, y1 = (round(side * scale) for side in box)
    return left + x0, top + y0, left + max(x1, x0 + 1), top + max(y1, y0 + 1)


def _seen(each: Placed) -> Image.Image:
    """A reference, paled by the weights of its tokens."""
    width, height = (side // GRID for side in each.size)
    weights = np.broadcast_to(np.array(each.weights, dtype=np.float32), (width * height,)).reshape(height, width)
    shown = (0.25 + 0.75 * weights).repeat(GRID, 0).repeat(GRID, 1)[..., None]  # of weight 0 a shadow remains
    pixels = each.pixels[0].cpu().numpy() * shown + (1 - shown)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def _label(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, on_picture: bool = False) -> None:
    font = ImageFont.load_default(14)
    if on_picture:
        draw.rectangle(draw.textbbox(at, text, font=font), PAPER)
    draw.text(at, text, INK, font=font)
