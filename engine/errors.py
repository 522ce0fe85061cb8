"""What the pack raises for a file it will not load, and words for what others raise."""

from __future__ import annotations

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A weights file cannot be used; the text names the file, what was found, what was expected and the next step."""


class LoraError(CheckpointError):
    """The same of a LoRA file."""


class QuantizeError(ValueError):
    """A file cannot be quantized, or not to there; the text names files and tensors, what is wrong and what to do."""


class TrainingDataError(ValueError):
    """A folder of edits cannot be trained on; the text names the files, what is wrong and what was expected."""


def listing(names: Iterable[str], first: int = 5) -> str:
    """`a, b, c and 12 more`: the first few names and the count of the rest."""
    ordered = list(names)
    shown = ", ".join(ordered[:first])
    rest = len(ordered) - first
    return f"{shown} and {rest} more" if rest > 0 else shown


def first_line(error: BaseException) -> str:
    """Of what an error says, for a sentence; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
