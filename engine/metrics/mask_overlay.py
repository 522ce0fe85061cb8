"""A mask drawn over its picture, what was found in it in colors."""

from __future__ import annotations

import numpy as np

from .mask_measures import ANY_NEIGHBOR, Floats, MaskMeasures, contour_pixels, label_holes, label_parts, soft_pixels

SOFT, CONTOUR, ISLAND, HOLE = (1.0, 0.85, 0.1), (0.1, 0.9, 0.9), (0.95, 0.15, 0.15), (0.2, 0.35, 1.0)
TINT, DIM = 0.35, 0.8  # how much white a masked pixel gets; the picture's share of its own brightness
LARGE = 700  # pixels a side, from which on lines are thicker, since such a picture is shown small


def draw_overlay(mask: Floats, measures: MaskMeasures, picture: Floats | None = None) -> Floats:
    """A mask (H, W) and its measures over its picture (H, W, 3), or over black, as a picture (H, W, 3).

    Masked pixels are lightened, soft ones yellow, the 0.5 contour cyan, islands red and small holes blue.
    """
    from scipy import ndimage

    masked = mask >= 0.5
    shown = np.zeros((*mask.shape, 3), np.float32) if picture is None else picture * np.float32(DIM)
    shown = shown + mask[..., None] * np.float32(TINT) * (1 - shown)
    soft = soft_pixels(mask)
    shown[soft] = 0.5 * shown[soft] + 0.5 * np.array(SOFT, np.float32)
    contour = contour_pixels(masked)
    shown[ndimage.binary_dilation(contour, ANY_NEIGHBOR) if min(mask.shape) > LARGE else contour] = CONTOUR
    if measures.islands:
        labels, areas = label_parts(masked)
        shown[((areas > 0) & (areas <= measures.islands[0]))[labels]] = ISLAND
    if measures.small_holes:
        labels, areas = label_holes(~masked)
        shown[((areas > 0) & (areas <= measures.small_holes[0]))[labels]] = HOLE
    return shown
