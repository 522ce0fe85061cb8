"""What can be measured of a mask without knowing what it should have been: its edge, its levels, its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..flux.positions import GRID

SOFT_LOW, SOFT_HIGH = 0.05, 0.95  # between them a pixel is soft
SMALL_SHARE = 0.02  # of the largest part, below which a part is an island, and of the mask, below which a hole is small
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
ANY_NEIGHBOR = np.ones((3, 3), bool)  # islands are connected through corners, holes are not


@dataclass(frozen=True)
class MaskMeasures:
    """One mask. Areas in pixels, largest first; a pixel is masked from 0.5 on.

    coverage: share of the picture that is masked. soft_fraction: share of what is above 0.05 that is below 0.95.
    feather_px: the width of the linear ramp with the same soft band, that is the band's area over the length of the 0.5
    contour, over 0.9; feather_by_distance_px: the same from the mean distance of soft pixels to the masked area's edge.
    contrast: mean above Otsu's threshold less mean below. separability: Otsu's, 1 where there are two levels only.
    gradients: change a pixel on the contour, 10th, 50th and 90th percentile; at most 0.5, that of a step.
    borders: sides of the picture that the mask touches. token_share: share of the masked pixels in tokens (16x16) that
    are masked wholly. box: left, top, right, bottom of the masked pixels, the last two not included.
    """

    width: int
    height: int
    coverage: float
    lowest: float
    highest: float
    soft_fraction: float
    feather_px: float
    feather_by_distance_px: float
    contrast: float
    separability: float
    gradients: tuple[float, float, float]
    parts: tuple[int, ...]
    holes: tuple[int, ...]
    borders: tuple[str, ...]
    border_share: float
    token_share: float
    box: tuple[int, int, int, int]

    @property
    def islands(self) -> tuple[int, ...]:
        """Parts so much smaller than the largest that they look like slips."""
        return tuple(area for area in self.parts[1:] if area < SMALL_SHARE * self.parts[0])

    @property
    def small_holes(self) -> tuple[int, ...]:
        """Holes so small that they look like slips."""
        return tuple(area for area in self.holes if area < SMALL_SHARE * sum(self.parts))

    @property
    def inverted_likely(self) -> bool:
        """More than half of the picture is masked, and more than half of its border."""
        return 0.5 < self.coverage < 1 and self.border_share > 0.5


def measure(mask: Floats) -> MaskMeasures:
    """Measures one mask (H, W) in 0-1."""
    height, width = mask.shape
    masked = mask >= 0.5
    contrast, separability = _levels(mask)
    edges = {"top": masked[0], "bottom": masked[-1], "left": masked[:, 0], "right": masked[:, -1]}
    rows, columns = (np.flatnonzero(masked.any(axis=axis)) for axis in (1, 0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
    area, by_distance = _feather(mask, masked)
    _, parts = label_parts(masked)
    _, holes = label_holes(~masked)
    above = np.count_nonzero(mask > SOFT_LOW)
    return MaskMeasures(
        width=width,
        height=height,
        coverage=float(masked.mean()),
        lowest=float(mask.min()),
        highest=float(mask.max()),
        soft_fraction=np.count_nonzero(soft_pixels(mask)) / above if above else 0.0,
        feather_px=area,
        feather_by_distance_px=by_distance,
        contrast=contrast,
        separability=separability,
        gradients=_gradients(mask, masked),
        parts=tuple(sorted(parts[parts > 0].tolist(), reverse=True)),
        holes=tuple(sorted(holes[holes > 0].tolist(), reverse=True)),
        borders=tuple(side for side, pixels in edges.items() if pixels.any()),
        border_share=float(np.concatenate(list(edges.values())).mean()),
        token_share=_token_share(masked),
        box=tuple(int(side) for side in box),  # type: ignore[arg-type]
    )


def soft_pixels(mask: Floats) -> Flags:
    """Neither off nor on."""
    return (mask > SOFT_LOW) & (mask < SOFT_HIGH)


def contour_pixels(masked: Flags) -> Flags:
    """The masked pixels beside one that is not, up, down, left or right; the picture's border is no edge."""
    inside = np.pad(masked, 1, mode="edge")
    return masked & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])


def label_parts(flags: Flags) -> tuple[NDArray[Any], NDArray[Any]]:
    """(H, W) numbers of the connected parts, through corners too, 0 where there is none; the area of each, [0] is 0."""
    from scipy import ndimage

    labels, n = ndimage.label(flags, structure=ANY_NEIGHBOR)
    areas = np.bincount(labels.ravel(), minlength=n + 1)
    areas[0] = 0
    return labels, areas


def label_holes(flags: Flags) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same of parts that are not connected through corners; the area of those that touch the border is 0."""
    from scipy import ndimage

    labels, n = ndimage.label(flags)
    areas = np.bincount(labels.ravel(), minlength=n + 1)
    areas[np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1]))] = 0
    areas[0] = 0
    return labels, areas


def edge_distance(masked: Flags) -> Floats:
    """Signed distance in pixels (H, W) from the edge between masked pixels and others, positive inside; infinite where
    there is no edge."""
    from scipy import ndimage

    inside = ndimage.distance_transform_edt(masked) if not masked.all() else np.full(masked.shape, np.inf)
    outside = ndimage.distance_transform_edt(~masked) if masked.any() else np.full(masked.shape, np.inf)
    # between pixels' middles: the edge itself is half a pixel nearer
    return np.where(masked, inside - 0.5, 0.5 - outside).astype(np.float32)


def contour_length(mask: Floats, level: float = 0.5) -> float:
    """Length in pixels of the lines where the mask has a level, by marching squares between pixels' middles."""
    a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, 1:], mask[1:, :-1]  # around each square of four
    above = [corner >= level for corner in (a, b, c, d)]
    crossed = (above[0] != above[1]) | (above[1] != above[2]) | (above[2] != above[3])
    corners = np.stack([corner[crossed] for corner in (a, b, c, d)]).astype(np.float64) - level  # (4, n)
    following = np.roll(corners, -1, axis=0)
    crosses = (corners >= 0) != (following >= 0)  # (4, n): top, right, bottom, left
    with np.errstate(divide="ignore", invalid="ignore"):
        along = np.where(crosses, corners / (corners - following), 0)
    starts, steps = np.array([0, 1, 1 + 1j, 1j]), np.array([1, 1j, -1, -1j])
    points = starts[:, None] + along * steps[:, None]
    two = crosses.sum(axis=0) == 2
    ends = points.T[two][crosses.T[two]].reshape(-1, 2)
    top, right, bottom, left = points[:, ~two]  # two lines, each around a corner that is above
    around_a, around_b = abs(top - left) + abs(right - bottom), abs(top - right) + abs(bottom - left)
    saddles = np.where(corners[0, ~two] >= 0, around_a, around_b)
    return float(np.abs(ends[:, 0] - ends[:, 1]).sum() + saddles.sum())


def _feather(mask: Floats, masked: Flags) -> tuple[float, float]:
    """The width by area and by distance; 0 without soft pixels or without an edge."""
    soft = soft_pixels(mask)
    length = contour_length(mask) if soft.any() else 0.0
    if not length:
        return 0.0, 0.0
    band = SOFT_HIGH - SOFT_LOW  # a ramp of width w is soft over this share of it, its mean distance a quarter of that
    rows, columns = (np.flatnonzero((soft | contour_pixels(masked)).any(axis=axis)) for axis in (1, 0))
    near = slice(max(0, rows[0] - 1), rows[-1] + 2), slice(max(0, columns[0] - 1), columns[-1] + 2)
    distance = np.abs(edge_distance(masked[near])[soft[near]])
    return np.count_nonzero(soft) / length / band, 4 * float(distance.mean()) / band


def _levels(mask: Floats) -> tuple[float, float]:
    """Contrast and separability (Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076), of 256 levels."""
    counts = np.bincount((mask * 255).round().astype(np.uint8).ravel(), minlength=256).astype(np.float64)
    levels = np.arange(256) / 255
    total, mean = counts.sum(), (counts * levels).sum() / counts.sum()
    variance = (counts * (levels - mean) ** 2).sum() / total
    below, sum_below = np.cumsum(counts)[:-1], np.cumsum(counts * levels)[:-1]
    used = (below > 0) & (below < total)
    if not used.any():
        return 0.0, 0.0
    low = sum_below[used] / below[used]
    high = (mean * total - sum_below[used]) / (total - below[used])
    between = below[used] * (total - below[used]) / total**2 * (high - low) ** 2
    best = int(between.argmax())
    return float(high[best] - low[best]), float(min(1.0, between[best] / variance))


def _gradients(mask: Floats, masked: Flags) -> tuple[float, float, float]:
    on_contour = np.nonzero(contour_pixels(masked))
    if not len(on_contour[0]):
        return 0.0, 0.0, 0.0
    padded = np.pad(mask, 1, mode="edge")
    y, x = on_contour[0] + 1, on_contour[1] + 1
    slope = np.hypot(padded[y + 1, x] - padded[y - 1, x], padded[y, x + 1] - padded[y, x - 1]) / 2
    low, middle, high = np.percentile(np.minimum(slope, 0.5), (10, 50, 90))
    return float(low), float(middle), float(high)


def _token_share(masked: Flags) -> float:
    height, width = (side // GRID * GRID for side in masked.shape)
    tokens = masked[:height, :width].reshape(height // GRID, GRID, width // GRID, GRID).all(axis=(1, 3))
    n = np.count_nonzero(masked)
    return np.count_nonzero(tokens) * GRID**2 / n if n else 0.0
