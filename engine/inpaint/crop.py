"""The part of a picture around a mask, at the size that the model works best in, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flux.positions import GRID

RING = 24  # pixels outside the mask, of the whole picture, by which colors are matched
FLAT = 0.02  # standard deviation of a ring, below which it says nothing about contrast
FURTHEST_GAIN = 1.25  # of contrast, or its inverse


@dataclass(frozen=True)
class Crop:
    """A picture (B, H, W, C), its masks (B or 1, H, W), and the box that was cut out: left, top, width, height.

    The box may reach beyond a picture that is smaller than the grid; there the border's pixels go on.
    """

    picture: Tensor
    mask: Tensor
    left: int
    top: int
    width: int
    height: int


def crop_to_mask(picture: Tensor, mask: Tensor, context: int, size: int) -> tuple[Tensor, Tensor, Crop]:
    """The part of pictures (B, H, W, C) around what any mask (B or 1, H, W) touches, scaled, with its masks.

    context: pixels added on each side. The box is snapped outwards to multiples of 16 and scaled to about size x size
    pixels in its own shape, sides again multiples of 16; size 0 leaves it. Raises ValueError where no mask touches, and
    for a mask that does not fit.
    """
    touched = (mask > 0).any(dim=0)
    if not touched.any():  # as Load Image's is where nothing was painted, of 64x64 pixels
        raise ValueError("mask is empty, so there is nothing to crop to; paint what should change.")
    if mask.shape[1:] != picture.shape[1:3] or len(mask) not in (1, len(picture)):
        raise ValueError(
            f"mask has the shape {list(mask.shape)} (batch, height, width), the picture {list(picture.shape[:3])}; "
            "bring them to one size, with one mask for all or one for each."
        )
    rows, columns = touched.any(dim=1).nonzero()[:, 0], touched.any(dim=0).nonzero()[:, 0]
    left, width = _snap(int(columns[0]) - context, int(columns[-1]) + 1 + context, mask.shape[2])
    top, height = _snap(int(rows[0]) - context, int(rows[-1]) + 1 + context, mask.shape[1])
    crop = Crop(picture, mask, left, top, width, height)
    part = _cut(picture.movedim(-1, 1), crop)
    part_mask = _cut(mask[:, None], crop)
    if size:
        scale = size / math.sqrt(width * height)
        shape = [max(GRID, round(side * scale / GRID) * GRID) for side in (height, width)]
        part, part_mask = _resize(part, shape), _resize(part_mask, shape)
    return part.movedim(1, -1), part_mask[:, 0], crop


def stitch(crop: Crop, edited: Tensor, feather: int, match_colors: bool) -> Tensor:
    """The whole picture (B, H, W, C), where the mask is not 0 replaced by the edited part (B, h, w, C or 3).

    One picture takes many parts, and many pictures one.

    feather: pixels inside the mask over which its edge is blended, so that nothing outside it changes, bit for bit.
    match_colors: brings the part's colors to those of the original in a ring outside the mask, by a gain and an offset
    a channel. Raises ValueError for another number of pictures.
    """
    picture = crop.picture.movedim(-1, 1)
    if 1 not in (len(edited), len(picture)) and len(edited) != len(picture):
        raise ValueError(
            f"image has {len(edited)} pictures, the crop was made of {len(picture)}; edit the whole batch, or one."
        )
    n = max(len(edited), len(picture))
    picture = picture.expand(n, -1, -1, -1)
    part = _resize(edited[..., :3].to(picture.device).movedim(-1, 1).float(), [crop.height, crop.width]).clamp(0, 1)
    part = part.expand(n, -1, -1, -1)
    mask = _cut(crop.mask[:, None], crop).expand(n, -1, -1, -1)
    original = _cut(picture[:, :3], crop).float()
    if match_colors:
        part = torch.stack([_match(*one) for one in zip(part, original, mask, strict=True)]).clamp(0, 1)
    weight = mask * _inwards(mask, feather, crop)
    blended = torch.where(weight > 0, torch.lerp(original, part, weight), original)
    top, left = max(0, crop.top), max(0, crop.left)
    bottom, right = min(picture.shape[2], crop.top + crop.height), min(picture.shape[3], crop.left + crop.width)
    inside = slice(top - crop.top, bottom - crop.top), slice(left - crop.left, right - crop.left)
    result = picture.clone()
    result[:, :3, top:bottom, left:right] = blended[:, :, inside[0], inside[1]].to(picture.dtype)
    return result.movedim(1, -1)


def _snap(first: int, end: int, side: int) -> tuple[int, int]:
    """Start and length of a stretch with first ... end in it, of a multiple of 16, within 0 ... side if it fits."""
    first, end = max(0, first), min(side, end)
    length = math.ceil((end - first) / GRID) * GRID
    start = (first + end - length) // 2  # what snapping adds lies on both sides
    return max(0, min(start, side - length)), length


def _cut(x: Tensor, crop: Crop) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width), the border's pixels repeated beyond the border."""
    rows = torch.arange(crop.top, crop.top + crop.height, device=x.device).clamp(0, x.shape[2] - 1)
    columns = torch.arange(crop.left, crop.left + crop.width, device=x.device).clamp(0, x.shape[3] - 1)
    return x[:, :, rows][:, :, :, columns]


def _resize(x: Tensor, shape: list[int]) -> Tensor:
    if list(x.shape[2:]) == shape:
        return x
    return F.interpolate(x.float(), size=shape, mode="bicubic", antialias=True).clamp(0, 1).to(x.dtype)


def _inwards(mask: Tensor, feather: int, crop: Crop) -> Tensor:
    """(B, 1, h, w): rises from the border of what the mask touches inwards to 1 over so many pixels.

    Where the picture ends is no border; where the box does, is one.
    """
    if feather <= 0:
        return torch.ones_like(mask)
    from scipy import ndimage

    height, width = crop.picture.shape[1:3]
    touched = F.pad((mask[:, 0] > 0).cpu(), (1, 1, 1, 1), value=False).numpy()
    touched[:, :, 0] |= crop.left <= 0
    touched[:, :, -1] |= crop.left + crop.width >= width
    touched[:, 0] |= crop.top <= 0
    touched[:, -1] |= crop.top + crop.height >= height
    depth = [ndimage.distance_transform_edt(one) if not one.all() else one * float(feather + 1) for one in touched]
    inside = torch.stack([torch.from_numpy(one)[1:-1, 1:-1] for one in depth])[:, None]
    return (inside / (feather + 1)).clamp(0, 1).to(mask)


def _match(part: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """One part (3, h, w) with the gain and offset that bring its ring nearest to the original's, by least squares."""
    from scipy import ndimage

    touched = (mask[0] > 0).cpu().numpy()
    ring = torch.from_numpy((ndimage.distance_transform_edt(~touched) <= RING) & ~touched).to(part.device)
    if not ring.any():  # the mask fills the box
        return part
    theirs, ours = original[:, ring], part[:, ring]  # (3, n)
    mean_theirs, mean_ours = theirs.mean(dim=1, keepdim=True), ours.mean(dim=1, keepdim=True)
    covariance = ((theirs - mean_theirs) * (ours - mean_ours)).mean(dim=1, keepdim=True)
    variance = (ours - mean_ours).square().mean(dim=1, keepdim=True)
    gain = ((covariance + FLAT**2) / (variance + FLAT**2)).clamp(1 / FURTHEST_GAIN, FURTHEST_GAIN)
    return (part - mean_ours[..., None]) * gain[..., None] + mean_theirs[..., None]
