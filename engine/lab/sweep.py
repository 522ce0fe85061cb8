"""What a sweep measured, picture by picture, and its statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .settings import Value

FENCE, FEWEST = 1.5, 4  # of Tukey's fence, in quartile ranges, and of the pictures that have quartiles


@dataclass(frozen=True)
class Picture:
    """One that was made. ssim: to the baseline's of the same prompt and seed; to: SSIM to other pictures, by name."""

    value: Value
    prompt: str
    seed: int
    seconds: float
    ssim: float
    to: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """By which a person finds it again."""
        return f"{self.prompt} (seed {self.seed})"


@dataclass(frozen=True)
class Summary:
    """Of one value. mean, std (of the sample, n - 1), minimum: of SSIM to the baseline; to: means by name.

    outliers: the pictures below Tukey's lower fence. seconds: the median. speed: the baseline's over it.
    """

    value: Value
    n: int
    mean: float
    std: float
    minimum: float
    worst: Picture
    outliers: tuple[Picture, ...]
    seconds: float
    speed: float
    to: Mapping[str, float]


@dataclass(frozen=True)
class Sweep:
    """All pictures of a setting; those of `baseline` are what the others are compared with."""

    setting: str
    baseline: Value
    pictures: tuple[Picture, ...]

    def summaries(self) -> list[Summary]:
        """One for each value, in their order, the baseline first."""
        values = dict.fromkeys((self.baseline, *(picture.value for picture in self.pictures)))
        by_value = {value: [each for each in self.pictures if each.value == value] for value in values}
        usual = median_seconds(by_value[self.baseline])
        return [summarize(pictures, usual) for pictures in by_value.values()]


def summarize(pictures: Sequence[Picture], usual_seconds: float) -> Summary:
    """Of the pictures of one value. usual_seconds: the baseline's."""
    likeness = np.array([picture.ssim for picture in pictures])
    seconds = median_seconds(pictures)
    names = dict.fromkeys(name for picture in pictures for name in picture.to)
    return Summary(
        value=pictures[0].value,
        n=len(pictures),
        mean=float(likeness.mean()),
        std=float(likeness.std(ddof=1)) if len(pictures) > 1 else 0.0,
        minimum=float(likeness.min()),
        worst=pictures[int(likeness.argmin())],
        outliers=tuple(pictures[i] for i in low_outliers(likeness.tolist())),
        seconds=seconds,
        speed=usual_seconds / seconds if seconds else 0.0,
        to={name: float(np.mean([picture.to[name] for picture in pictures if name in picture.to])) for name in names},
    )


def low_outliers(values: Sequence[float]) -> list[int]:
    """Indices of values more than FENCE quartile ranges below the lower quartile, the lowest first.

    Tukey, Exploratory Data Analysis (1977); quartiles by linear interpolation. Fewer than FEWEST values have none.
    """
    if len(values) < FEWEST:
        return []
    lower, upper = np.quantile(values, (0.25, 0.75))
    fence = lower - FENCE * (upper - lower)
    return sorted((i for i, value in enumerate(values) if value < fence), key=lambda i: values[i])


def median_seconds(pictures: Iterable[Picture]) -> float:
    """Of the sampling of a picture."""
    return float(np.median([picture.seconds for picture in pictures]))
