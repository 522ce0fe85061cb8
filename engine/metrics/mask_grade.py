"""A mask's grade, high, standard or poor as the guide has it, and what to do about each thing that lowers it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..flux.positions import GRID
from .mask_measures import MaskMeasures

HIGH, STANDARD, POOR = "high", "standard", "poor"
LEAST_HIGH, LEAST_STANDARD = 0.85, 0.6  # of the score
# A component and its score, linear in between. The guide calls a feather of 5-10 pixels standard; no source rates the
# others, so these are ours: where contrast and separability of feathered test masks end, and gray ones begin.
FEATHER = ((2, 1.0), (5, 0.85), (10, 0.65), (12, 0.6), (40, 0.0))  # pixels
CONTRAST = ((0.3, 0.0), (0.6, 0.5), (0.8, 0.7), (0.9, 1.0))
SEPARABILITY = ((0.6, 0.0), (0.8, 0.5), (0.9, 0.75), (0.95, 1.0))
SLIP = 0.05  # that the score loses for each kind of slip: islands, small holes
SHARPEN = "Set threshold to 0.5"


@dataclass(frozen=True)
class Quality:
    """score: 0-1; grade: from it; findings: a sentence each for what is wrong, with what to do about it."""

    score: float
    grade: str
    findings: tuple[str, ...]


def judge(m: MaskMeasures) -> Quality:
    """The score is that of the worst of edge, contrast and separability, less 0.05 for islands and for small holes.

    A mask that chooses nothing, or everything, scores 0.
    """
    if m.coverage in (0, 1):
        return Quality(0.0, POOR, (_choosing_nothing(m),))
    components = ((m.feather_px, FEATHER), (m.contrast, CONTRAST), (m.separability, SEPARABILITY))
    score = min(_score(value, curve) for value, curve in components)
    score = max(0.0, score - SLIP * bool(m.islands) - SLIP * bool(m.small_holes))
    grade = HIGH if score >= LEAST_HIGH else STANDARD if score >= LEAST_STANDARD else POOR
    return Quality(round(score, 3), grade, tuple(_findings(m)))


def _score(value: float, curve: tuple[tuple[float, float], ...]) -> float:
    return float(np.interp(value, [at for at, _ in curve], [score for _, score in curve]))


def _choosing_nothing(m: MaskMeasures) -> str:
    if m.coverage == 1:
        return "The mask covers the whole picture, so nothing is kept. Paint only what should change, or use no mask."
    if m.highest > 0:
        return (
            f"No value reaches 0.5, the highest is {m.highest:.2f}. Set threshold to {m.highest / 2:.2f}, or repaint."
        )
    return "The mask is empty, so that nothing would change. Paint what should change."


def _findings(m: MaskMeasures) -> list[str]:
    found = []
    if _gray_beside_the_edge(m):
        found.append(f"There is gray away from the edge, where the edit would be half kept. {SHARPEN}.")
    elif m.feather_px > FEATHER[2][0]:
        found.append(
            f"The edge fades over {m.feather_px:.0f} pixels, which blurs the seam. {SHARPEN} and feather to 4."
        )
    elif m.feather_px > FEATHER[1][0]:
        found.append(f"The edge fades over {m.feather_px:.0f} pixels, which blends well. {SHARPEN} for a sharp seam.")
    if m.contrast < CONTRAST[2][0]:
        found.append(
            f"Low contrast: on and off are {m.contrast:.2f} apart (values from {m.lowest:.2f} to {m.highest:.2f}); "
            f"even what is on changes only in part. {SHARPEN}."
        )
    if m.islands:
        found.append(f"{_count(m.islands, 'small island')} beside the rest. Set drop_islands to {m.islands[0] + 1}.")
    if m.small_holes:
        found.append(f"{_count(m.small_holes, 'small hole')} inside. Set fill_holes to {m.small_holes[0] + 1}.")
    if m.inverted_likely:
        found.append(
            f"{m.coverage:.0%} of the picture and most of its border are masked. Where white should be what is kept, "
            "invert the mask."
        )
    if m.token_share == 0:
        found.append(
            f"Nowhere does the mask cover one of the {GRID}x{GRID} squares that the model works in; so thin a "
            "change may not come. Grow it, or crop to it (Crop to Mask), which enlarges it."
        )
    if m.width % GRID or m.height % GRID:
        found.append(
            f"The sides ({m.width}x{m.height}) are no multiples of {GRID}, so mask and picture are rounded to the "
            "model's grid. Crop or resize both first; Crop to Mask does."
        )
    return found


def _gray_beside_the_edge(m: MaskMeasures) -> bool:
    """Whether more is soft than a ramp of the edge's slope could be, or lies farther from it."""
    ramp = 1 / max(m.gradients[1], 1e-3)
    return m.feather_px > 2 * ramp + 2 or m.feather_by_distance_px > 1.5 * m.feather_px + 2


def _count(areas: tuple[int, ...], name: str) -> str:
    if len(areas) == 1:
        return f"There is a {name} ({areas[0]} pixels)"
    return f"There are {len(areas)} {name}s (the largest of {areas[0]} pixels)"


def describe(m: MaskMeasures, quality: Quality) -> str:
    """The report of one mask: grade, findings, measures."""
    left, top, right, bottom = m.box
    holes = f", holes of {_areas(m.holes)} pixels" if m.holes else ", no holes"
    slopes = " / ".join(f"{slope:.2f}" for slope in m.gradients)
    touches = f"; touches the picture's {', '.join(m.borders)}" if m.borders else ""
    lines = [
        f"Grade: {quality.grade}, score {quality.score:.2f}.",
        *(f"- {finding}" for finding in quality.findings),
        f"Edge: fades over {m.feather_px:.1f} pixels (by distance {m.feather_by_distance_px:.1f}), "
        f"{m.soft_fraction:.0%} of the mask soft; slope a pixel {slopes} (10th, 50th, 90th percentile).",
        f"Levels: {m.lowest:.2f} to {m.highest:.2f}, contrast {m.contrast:.2f}, separability {m.separability:.2f}.",
        f"Parts: {len(m.parts)} of {_areas(m.parts)} pixels{holes}." if m.parts else "Parts: none.",
        f"Place: covers {m.coverage:.1%} of {m.width}x{m.height}, x {left}-{right}, y {top}-{bottom}{touches}; "
        f"{m.token_share:.0%} of it in whole {GRID}x{GRID} squares.",
    ]
    return "\n".join(lines)


def _areas(areas: tuple[int, ...], first: int = 6) -> str:
    shown = ", ".join(str(area) for area in areas[:first])
    return shown + (", ..." if len(areas) > first else "")
