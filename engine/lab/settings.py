"""What can be swept: the settings, their ranges, and the values that the user's guide has figures for."""

from __future__ import annotations

import re
from dataclasses import dataclass

Value = float | str


@dataclass(frozen=True)
class Setting:
    """values: tried by default. low, high: the range of numbers, both inside it; whole: numbers without a fraction.

    words: the values are names, of which any may be.
    """

    values: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    words: bool = False

    @property
    def range(self) -> str:
        """For a message."""
        if self.words:
            return "names of model files or precisions, with commas between them"
        kind = "whole numbers" if self.whole else "numbers"
        return f"{kind} from {self.low:g} to {self.high:g}, such as {listed(self.values)}"


SETTINGS = {
    "precision": Setting(words=True),
    "steps": Setting((4, 8, 12, 16, 20), 1, 200, whole=True),
    "guidance": Setting((2.0, 3.5, 5.0, 7.0, 9.0), 0, 30),
    "denoise": Setting((0.25, 0.5, 0.75, 0.9), 0.01, 1),
    "context weight": Setting((0.0, 0.3, 0.6, 0.9), 0, 1),
    "cache threshold": Setting((0.05, 0.12, 0.25, 0.5), 0, 2),
}


def parse_values(name: str, text: str) -> tuple[Value, ...]:
    """The values in a text, between commas or line ends, each once; those of the setting where it is empty.

    Raises ValueError where one is no number or out of range, or where nothing is said and nothing is usual.
    """
    if name not in SETTINGS:
        raise ValueError(f"setting is {name!r}, expected one of {', '.join(SETTINGS)}.")
    setting = SETTINGS[name]
    words = list(dict.fromkeys(word.strip() for word in re.split(r"[,\n]", text) if word.strip()))
    if not words and not setting.values:
        raise ValueError(f"values is empty; {name} takes {setting.range}.")
    if setting.words:
        return tuple(words)
    values = tuple(_number(name, word) for word in words) or setting.values
    return tuple(dict.fromkeys(values))


def _number(name: str, word: str) -> float:
    setting = SETTINGS[name]
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not setting.low <= value <= setting.high or (setting.whole and value != int(value)):
        raise ValueError(f"values has {word!r}; {name} takes {setting.range}.")
    return int(value) if setting.whole else value


def shown(value: Value) -> str:
    """As it stands in tables and plots."""
    return value if isinstance(value, str) else f"{value:g}"


def listed(values: tuple[float, ...]) -> str:
    """With commas between them."""
    return ", ".join(map(shown, values))
