"""Masks of a batch measured, graded, cleaned and drawn, one after the other, and the report of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .comparison import size_of
from .mask_cleaning import Cleaning, clean
from .mask_grade import Quality, describe, judge
from .mask_measures import MaskMeasures, measure
from .mask_overlay import draw_overlay
from .pictures import ready_image, ready_mask

MOST_LINES = 300  # of masks in a report


@dataclass(frozen=True)
class CheckedMasks:
    """mask (B, H, W) float32: cleaned; overlay (B, H, W, 3); grade and score: of the worst mask that came in."""

    mask: Tensor
    grade: str
    score: float
    overlay: Tensor
    report: str
    summary: str


def check(
    mask: Tensor, image: Tensor | None, how: Cleaning, one_done: Callable[[], None] = lambda: None
) -> CheckedMasks:
    """Measures, grades and cleans every mask of a batch (B, H, W), or (H, W), or (B, 1, H, W).

    image: an IMAGE (B or 1, H, W, C) to lie under the overlay. one_done: called after each mask.
    Raises ValueError for other shapes, and for NaN or infinity.
    """
    said: list[str] = []
    masks = ready_mask(mask, said).cpu().numpy()
    pictures = _under(image, masks, said)
    cleaned, overlays = np.empty_like(masks), np.empty((*masks.shape, 3), np.float32)
    found, after = [], []
    for i, one in enumerate(masks):
        measures = measure(one)
        found.append((measures, judge(measures)))
        cleaned[i] = clean(one, how)
        if how != Cleaning():
            after.append(judge(measure(cleaned[i])))
        picture = None if pictures is None else pictures[i if len(pictures) > 1 else 0]
        overlays[i] = draw_overlay(one, measures, picture)
        one_done()
    worst = min(range(len(found)), key=lambda i: found[i][1].score)
    quality = found[worst][1]
    first = f"Grade: {quality.grade}, score {quality.score:.2f}."
    cleaned_to = [f"Cleaned: {_worst(after).grade}, score {_worst(after).score:.2f}."] if after else []
    if len(found) == 1:
        lines = [*said, describe(*found[0]), *cleaned_to]
    else:
        first = f"{len(found)} masks; the worst, index {worst}: {quality.grade}, score {quality.score:.2f}."
        each = [f"  {i}: {_line(*pair)}" for i, pair in enumerate(found[:MOST_LINES])]
        lines = [*said, first, *cleaned_to, f"Index {worst}:", describe(*found[worst]), "All:", *each]
    summary = "\n".join((*said, first, *(f"- {finding}" for finding in quality.findings), *cleaned_to))
    return CheckedMasks(
        torch.from_numpy(cleaned), quality.grade, quality.score, torch.from_numpy(overlays), "\n".join(lines), summary
    )


def _under(image: Tensor | None, masks: np.ndarray, said: list[str]) -> np.ndarray | None:
    """The pictures under the overlay (B or 1, H, W, 3); none where they do not fit, which is said."""
    if image is None:
        return None
    picture = ready_image(image, "image", said)
    if picture.shape[2:] != masks.shape[1:]:
        said.append(
            f"The mask has {masks.shape[2]}x{masks.shape[1]} pixels, the picture {size_of(picture)}: other nodes "
            "stretch or crop such a mask. Make it on the picture itself, or resize it."
        )
        return None
    if len(picture) not in (1, len(masks)):
        said.append(f"There are {len(masks)} masks and {len(picture)} pictures; the overlay shows the masks alone.")
        return None
    return picture.movedim(1, -1).float().cpu().numpy()


def _worst(qualities: list[Quality]) -> Quality:
    return min(qualities, key=lambda quality: quality.score)


def _line(m: MaskMeasures, quality: Quality) -> str:
    slips = f", {len(m.islands)} islands, {len(m.small_holes)} small holes" if m.islands or m.small_holes else ""
    return f"{quality.grade}, score {quality.score:.2f}, edge {m.feather_px:.1f} pixels, covers {m.coverage:.1%}{slips}"
