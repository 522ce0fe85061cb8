"""Pictures and masks as they come from anywhere, made ready to be measured; what cannot be is refused in a sentence."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .comparison import size_of

REFUSE, RESIZE = "error", "resize image_b"


def ready_pair(a: Tensor, b: Tensor, sizes: str = REFUSE) -> tuple[Tensor, Tensor, list[str]]:
    """Two IMAGEs (B, H, W, C) as pictures (B, 3, H, W) of one size in 0-1, and a sentence for all that was changed.

    C is 1 (gray), 3, or 4, whose alpha is left out. One picture against many is compared with each. sizes: REFUSE, or
    RESIZE, which brings b to a's size. Raises ValueError for another shape, for other sizes, and for NaN or infinity.
    """
    said: list[str] = []
    a, b = ready_image(a, "image_a", said), ready_image(b.to(a.device), "image_b", said)
    if a.shape[2:] != b.shape[2:]:
        if sizes == REFUSE:
            raise ValueError(
                f"image_a has {size_of(a)} pixels, image_b {size_of(b)}; bring them to one size, or set size_mismatch "
                f"to {RESIZE!r}."
            )
        said.append(f"image_b was resized from {size_of(b)} to {size_of(a)}, which itself changes SSIM.")
        b = F.interpolate(b.float(), size=a.shape[2:], mode="bicubic", antialias=True).clamp(0, 1)
    n = max(len(a), len(b))
    if {len(a), len(b)} - {1, n}:
        raise ValueError(f"image_a has {len(a)} pictures, image_b {len(b)}; give as many, or one for all.")
    return a.expand(n, -1, -1, -1), b.expand(n, -1, -1, -1), said


def ready_mask(mask: Tensor, said: list[str], like: Tensor | None = None) -> Tensor:
    """A MASK (B, H, W), (H, W) or (B, 1, H, W) as (B, H, W) float32 in 0-1.

    like: pictures (B, 3, H, W) that it must fit, with one mask for all or one for each.
    Raises ValueError for another shape or size, for no mask at all, and for NaN or infinity.
    """
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"mask has the shape {list(mask.shape)}, expected (batch, height, width), none of them 0.")
    mask = _in_range(mask.float(), "mask", said)
    if like is not None:
        if mask.shape[1:] != like.shape[2:]:
            raise ValueError(f"mask has {size_of(mask)} pixels, the picture {size_of(like)}; bring them to one size.")
        if len(mask) not in (1, len(like)):
            raise ValueError(f"there are {len(mask)} masks for {len(like)} pictures; give one for all or one for each.")
    return mask


def ready_image(image: Tensor, name: str, said: list[str]) -> Tensor:
    """An IMAGE (B, H, W, C) as pictures (B, 3, H, W); see `ready_pair`."""
    if image.ndim != 4 or 0 in image.shape or image.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"{name} has the shape {list(image.shape)}, expected (batch, height, width, 1, 3 or 4 channels)."
        )
    if image.shape[3] == 4:
        said.append(f"{name} has an alpha channel, which is left out.")
        image = image[..., :3]
    picture = _in_range(image, name, said).movedim(-1, 1)
    return picture.expand(-1, 3, -1, -1)


def _in_range(values: Tensor, name: str, said: list[str]) -> Tensor:
    least, most = (edge.item() for edge in values.aminmax())
    if not (math.isfinite(least) and math.isfinite(most)):  # NaN is both its least and its most
        first = next(i for i, one in enumerate(values) if not one.isfinite().all())
        n = int((~values.isfinite()).sum())
        raise ValueError(
            f"{name}: {n} values are NaN or infinite, the first in number {first} (counted from 0); look at the node "
            "that made it, often a VAE in float16."
        )
    if least < 0 or most > 1:
        said.append(f"{name} goes from {least:.3g} to {most:.3g}; values outside 0-1 are cut off, as a file would.")
        return values.clamp(0, 1)
    return values
