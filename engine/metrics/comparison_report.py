"""A comparison in words: a verdict, a line for each pair, the regions of the worst one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .comparison import Comparison, Scores, grade, regions

MOST_LINES = 100  # of pairs in a report; of more, the worst


def describe(
    found: Comparison,
    measured: str,
    threshold: float,
    perceptual: Sequence[tuple[str, Sequence[float] | str]] = (),
    by_region: bool = False,
    mask: Tensor | None = None,
) -> str:
    """The report of a comparison.

    measured: what SSIM was taken of, `RGB, whole picture`. perceptual: a metric's name and a value for each pair, or
    why there is none. by_region: a table of the worst pair, by the parts of its mask (B or 1, H, W) where there is one.
    """
    lines = [verdict(found, threshold), f"SSIM of {measured}."]
    if len(found.rows) > 1:
        values = [row.ssim for row in found.rows]
        order = sorted(range(len(values)), key=lambda i: values[i])[:MOST_LINES]
        lines += [f"{len(values)} pairs: mean {found.ssim:.4f}, minimum {min(values):.4f} (index {found.worst})."]
        lines += [f"The {MOST_LINES} least alike:"] if len(values) > MOST_LINES else []
        lines += [f"  {i}: {line(found.rows[i])}" for i in sorted(order)]
    for name, measures in perceptual:
        if isinstance(measures, str):
            lines.append(f"{name}: not computed, {measures}.")
        else:
            shown = ", ".join(f"{value:.4f}" for value in measures[:MOST_LINES])
            lines.append(f"{name}: {shown}." if len(measures) == 1 else f"{name} by index: {shown}.")
    if by_region:
        where = "by region" if len(found.rows) == 1 else f"by region of index {found.worst}, the worst"
        one = None if mask is None else mask[found.worst if len(mask) > 1 else 0]
        lines += [f"SSIM {where}:", *(f"  {name}: {value:.4f}" for name, value in regions(found.map[found.worst], one))]
    return "\n".join(lines)


def verdict(found: Comparison, threshold: float) -> str:
    """One sentence: the value, its grade, and whether every pair reaches the threshold."""
    worst = found.rows[found.worst].ssim
    if len(found.rows) == 1:
        return f"{line(found.rows[0])}. {'Passed' if worst >= threshold else 'Failed'}: the threshold is {threshold:g}."
    how = "Passed: every pair reaches" if worst >= threshold else f"Failed: index {found.worst} is below"
    return f"Mean SSIM {found.ssim:.4f} ({grade(found.ssim)}). {how} the threshold of {threshold:g}."


def line(row: Scores) -> str:
    """`SSIM 0.9731 (excellent), PSNR 34.2 dB, mean absolute difference 0.0081`."""
    psnr = "infinite (no pixel differs)" if math.isinf(row.psnr) else f"{row.psnr:.2f} dB"
    return f"SSIM {row.ssim:.4f} ({grade(row.ssim)}), PSNR {psnr}, mean absolute difference {row.difference:.4f}"
