"""A mask cleaned: sharpened, its holes filled, its islands dropped, grown or shrunk, its edge as soft as wished."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .mask_measures import (
    SOFT_HIGH,
    SOFT_LOW,
    Flags,
    Floats,
    edge_distance,
    label_holes,
    label_parts,
)


@dataclass(frozen=True)
class Cleaning:
    """What to do, in this order; 0 leaves out. All in pixels but the threshold.

    threshold: 0-1, from which on a pixel is 1, else 0. fill_holes, drop_islands: the area below which a hole is filled,
    a part dropped. grow: by how much the 0.5 contour moves out, or in below 0. feather: the width of the linear ramp
    that takes the place of the edge, its middle on the contour.
    """

    threshold: float = 0.0
    fill_holes: int = 0
    drop_islands: int = 0
    grow: int = 0
    feather: float = 0.0


def clean(mask: Floats, how: Cleaning) -> Floats:
    """One mask (H, W) in 0-1, as a new one."""
    if how.threshold:
        mask = (mask >= how.threshold).astype(np.float32)
    if how.fill_holes:
        mask = np.where(_small(mask < SOFT_HIGH, mask < 0.5, how.fill_holes, holes=True), np.float32(1), mask)
    if how.drop_islands:
        mask = np.where(_small(mask > SOFT_LOW, mask >= 0.5, how.drop_islands, holes=False), np.float32(0), mask)
    if how.grow or how.feather:
        distance = edge_distance(mask >= 0.5) + how.grow
        ramp = 0.5 + distance / how.feather if how.feather else distance >= 0
        mask = np.clip(ramp, 0, 1).astype(np.float32)
    return mask


def _small(with_edge: Flags, core: Flags, area: int, holes: bool) -> Flags:
    """The parts or holes, their soft edges with them, whose core is smaller than an area."""
    labels, outer = label_holes(with_edge) if holes else label_parts(with_edge)
    cores = np.bincount(labels[core].ravel(), minlength=len(outer))
    return ((outer > 0) & (cores < area))[labels]
