"""The fastest threshold that keeps a picture alike enough."""

from __future__ import annotations

from collections.abc import Callable

THRESHOLDS = (0.02, 0.04, 0.06, 0.09, 0.12, 0.17, 0.25, 0.35, 0.5, 0.8)


def find_threshold(likeness: Callable[[float], float], target: float) -> tuple[float, float]:
    """(the largest of THRESHOLDS whose likeness is at least `target`, that likeness); (0, 1) where none is.

    likeness falls with the threshold; it is asked for a few of them, by halving.
    """
    found, low, high = (0.0, 1.0), 0, len(THRESHOLDS)
    while low < high:
        middle = (low + high) // 2
        measured = likeness(THRESHOLDS[middle])
        if measured >= target:
            found, low = (THRESHOLDS[middle], measured), middle + 1
        else:
            high = middle
    return found
