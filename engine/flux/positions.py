"""Latents to tokens and back, and the position of every token.

A token's position has three axes: index (0 for the target, above for references), row and column. References of
FLUX.1 Kontext share index 1 and lie beside each other in the plane (`offset`); the `index` method counts them up
instead, `uxo` lays them on the target's diagonal (UXO / USO, https://arxiv.org/abs/2504.02160).
The arithmetic, rounding included, is that of ComfyUI's `comfy/ldm/flux/model.py`, against which it is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .rope import embed_positions

PATCH = 2  # latent pixels along the side of a token
GRID = 8 * PATCH  # pixels along it: the VAE makes eight one
METHODS = ("offset", "index", "uxo")
KEPT = 4  # layouts whose rotations are kept, 9 MB for target, reference and text of 1024x1024

Size = tuple[int, int]  # height and width in latent pixels


@dataclass(frozen=True)
class Place:
    """Where an image's first token stands: index on the first axis, row and column offsets in latent pixels."""

    index: float = 0
    row: int = 0
    column: int = 0


@dataclass(frozen=True)
class Rope:
    """Stretch and shift of all positions (ComfyUI's ScaleROPE); the default leaves them as they are."""

    scale_y: float = 1.0
    scale_x: float = 1.0
    shift_t: float = 0.0
    shift_y: float = 0.0
    shift_x: float = 0.0


def n_patches(pixels: int) -> int:
    """Tokens along a side of `pixels` latent pixels, an odd pixel rounded up."""
    return (pixels + PATCH // 2) // PATCH


def patchify(latent: Tensor) -> Tensor:
    """Latent (B, C, H, W) -> tokens (B, H/2 * W/2, 4C), odd sides wrapped around to even ones."""
    height, width = latent.shape[-2:]
    latent = F.pad(latent, (0, -width % PATCH, 0, -height % PATCH), mode="circular")
    return F.pixel_unshuffle(latent, PATCH).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, L, 4C) -> latent (B, C, height, width), padding cut off."""
    grid = tokens.transpose(1, 2).unflatten(2, (n_patches(height), n_patches(width)))
    return F.pixel_shuffle(grid, PATCH)[..., :height, :width]


def grid_ids(size: Size, place: Place, rope: Rope, device: torch.device) -> Tensor:
    """Positions (L, 3) float32 of the tokens of a latent, row by row."""
    n_rows, n_columns = map(n_patches, size)
    row = n_patches(place.row) + rope.shift_y
    column = n_patches(place.column) + rope.shift_x
    rows = torch.linspace(row, row + (n_rows - 1) * rope.scale_y, n_rows, device=device)
    columns = torch.linspace(column, column + (n_columns - 1) * rope.scale_x, n_columns, device=device)
    index = torch.full((), place.index + rope.shift_t, device=device)
    return torch.cartesian_prod(index[None], rows, columns)


def lay_out(latents: Sequence[Tensor], method: str, rope: Rope | None = None) -> tuple[list[Tensor], Tensor]:
    """Target and reference latents (B, C, h, w) -> tokens (B, L, 4C) of each, and img_ids (1, sum of L, 3)."""
    img_ids = image_ids(sizes_of(latents), method, rope or Rope(), latents[0].device)
    return [patchify(latent) for latent in latents], img_ids


def sizes_of(latents: Sequence[Tensor]) -> tuple[Size, ...]:
    """Of latents (B, C, h, w)."""
    return tuple((latent.shape[-2], latent.shape[-1]) for latent in latents)


def image_ids(sizes: Sequence[Size], method: str, rope: Rope, device: torch.device) -> Tensor:
    """Positions (1, sum of L, 3) of the tokens of target and references."""
    places = [Place(), *place_references(sizes[0], sizes[1:], method)]
    return torch.cat([grid_ids(size, at, rope, device) for size, at in zip(sizes, places, strict=True)])[None]


@lru_cache(KEPT)
def rotations(
    sizes: tuple[Size, ...], method: str, rope: Rope, n_txt: int, axes_dims: tuple[int, ...], device: torch.device
) -> Tensor:
    """pe (1, 1, n_txt + sum of L, head_dim/2, 2, 2) of text, target and references, for all steps and prompts alike."""
    with torch.inference_mode(False):  # a later run may train
        img_ids = image_ids(sizes, method, rope, device)
        return embed_positions(torch.cat((img_ids.new_zeros(1, n_txt, 3), img_ids), dim=1), axes_dims)


def place_references(target: Size, sizes: Sequence[Size], method: str) -> list[Place]:
    """Where each reference stands. Raises ValueError for an unknown method."""
    if sizes and method not in METHODS:
        raise ValueError(
            f"reference placement {method!r}: FLUX.1 Kontext was not trained for it. "
            f"Choose {', '.join(METHODS[:-1])} or {METHODS[-1]} in the node that sets the reference latents method."
        )
    places = []
    height = width = 0
    for number, (ref_height, ref_width) in enumerate(sizes, 1):
        if method == "index":
            place = Place(index=number)
        elif method == "uxo":
            place = Place(0, n_patches(target[0]) * PATCH + height, n_patches(target[1]) * PATCH + width)
            height, width = height + ref_height, width + ref_width
        else:  # on the side that keeps the whole nearest to a square
            right = ref_height + height > ref_width + width
            place = Place(1, 0, width) if right else Place(1, height, 0)
            height, width = max(height, ref_height + place.row), max(width, ref_width + place.column)
        places.append(place)
    return places
