"""References as pixels: checked, brought to a size, and the way back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flux.positions import GRID
from .sizes import MAX_RATIO, Fit, Size, frame

TOUCHED = 0.1  # of a scaled pixel; beside a straight edge the filter spills 0.08


def split(image: Tensor, name: str) -> list[Tensor]:
    """A batch (N, H, W, C) of grey, RGB or RGBA pictures -> N pictures (1, H, W, 3) float32 in 0-1, alpha left out.

    name: of the input, for the errors. Raises ValueError for what cannot be a reference.
    """
    if image.ndim != 4 or image.shape[3] not in (1, 3, 4) or not len(image):
        raise ValueError(
            f"{name}: got a tensor of shape {list(image.shape)}, expected pictures (N, height, width, 1, 3 or 4 "
            "channels). Connect an IMAGE."
        )
    height, width = image.shape[1:3]
    if min(height, width) < GRID or max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(
            f"{name}: the picture is {width}x{height} pixels; a reference has sides of at least {GRID} and is at most "
            f"{MAX_RATIO} times as long as wide. Crop it, or choose another."
        )
    image = image.float()
    if not image.isfinite().all():
        raise ValueError(f"{name}: the picture holds NaN or infinite values; look at the node that made it.")
    return list(image[..., :3].clamp(0, 1).expand(-1, -1, -1, 3).split(1))


def resize(image: Tensor, size: Size) -> Tensor:
    """(N, H, W, C) to `size`, bicubic, antialiased; untouched where it has the size."""
    width, height = size
    if tuple(image.shape[1:3]) == (height, width):
        return image
    scaled = F.interpolate(image.movedim(3, 1), (height, width), mode="bicubic", antialias=True)
    return scaled.movedim(1, 3).clamp(0, 1)


def bring_to(image: Tensor, size: Size, fit: Fit) -> Tensor:
    """(N, H, W, C) -> (N, height, width, C): padded with its border's colors, cropped, or stretched."""
    where = frame((image.shape[2], image.shape[1]), size, fit)
    if fit == "crop":
        scaled = resize(image, where.outer)
        return scaled[:, where.top : where.top + size[1], where.left : where.left + size[0]]
    scaled = resize(image, where.inner)
    right, bottom = size[0] - where.inner[0] - where.left, size[1] - where.inner[1] - where.top
    return F.pad(scaled.movedim(3, 1), (where.left, right, where.top, bottom), mode="replicate").movedim(1, 3)


def bring_back(image: Tensor, original: Tensor, fit: Fit) -> Tensor:
    """A result (N, H, W, C) of a picture that `bring_to` brought to its size -> the size of `original` (1, h, w, C).

    What crop cut off is the original's own.
    """
    height, width = original.shape[1:3]
    where = frame((width, height), (image.shape[2], image.shape[1]), fit)
    if fit != "crop":
        inner = image[:, where.top : where.top + where.inner[1], where.left : where.left + where.inner[0]]
        return resize(inner, (width, height))
    scale = where.outer[0] / width, where.outer[1] / height
    left, top = round(where.left / scale[0]), round(where.top / scale[1])
    size = min(width - left, round(where.inner[0] / scale[0])), min(height - top, round(where.inner[1] / scale[1]))
    whole = original.to(image).repeat(len(image), 1, 1, 1)
    whole[:, top : top + size[1], left : left + size[0]] = resize(image, size)
    return whole


def token_mask(mask: Tensor, size: Size, fit: Fit) -> Tensor:
    """A mask (H, W) of a picture -> which tokens of the picture brought to `size` it touches, (rows, columns) bool.

    A stroke that scaling wears away still counts, down to a fifth of a scaled pixel.
    """
    placed = bring_to((mask > 0.5)[None, ..., None].float(), size, fit)[0, ..., 0]
    return F.max_pool2d(placed[None, None], GRID)[0, 0] > TOUCHED


def stitch(pictures: list[Tensor], places: list[tuple[int, int]]) -> Tensor:
    """Pictures (1, h, w, 3) at (left, top) pixels on one gray canvas (1, H, W, 3) that just holds them."""
    corners = [(left + p.shape[2], top + p.shape[1]) for p, (left, top) in zip(pictures, places, strict=True)]
    width, height = (max(sides) for sides in zip(*corners, strict=True))
    canvas = torch.full((1, height, width, 3), 0.5)
    for picture, (left, top) in zip(pictures, places, strict=True):
        canvas[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return canvas


def check_weight(weight: float) -> None:
    """Raises ValueError for a weight outside 0-1, NaN among them."""
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight:g}, expected 0 to 1. A reference cannot count more than in full.")


def masks_for(mask: Tensor | None, pictures: list[Tensor]) -> list[Tensor | None]:
    """A mask (H, W) for each picture, from a batch of as many or of one. Raises ValueError where it does not fit."""
    if mask is None:
        return [None] * len(pictures)
    mask = (mask if mask.ndim == 3 else mask[None]).float()
    if len(mask) not in (1, len(pictures)):
        raise ValueError(f"mask: {len(mask)} masks for {len(pictures)} pictures; connect one, or one for each.")
    height, width = pictures[0].shape[1:3]
    if not mask.isfinite().all():
        raise ValueError("mask: it holds NaN or infinite values; look at the node that made it.")
    if not (mask > 0.5).any():
        raise ValueError(
            "mask: it is empty, so nothing of the picture would be seen. Paint what matters, or disconnect it (Load "
            "Image gives an empty mask for a picture without one)."
        )
    if abs(mask.shape[2] * height - mask.shape[1] * width) > max(height, width, *mask.shape[1:]):
        raise ValueError(
            f"mask: it is {mask.shape[2]}x{mask.shape[1]}, the picture {width}x{height}, of another shape. Connect the "
            "mask of this picture."
        )
    scaled = resize(mask[..., None], (width, height))[..., 0]
    return list(scaled.expand(len(pictures), -1, -1))
