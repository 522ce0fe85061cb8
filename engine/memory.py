"""A card's memory, taken at once."""

from __future__ import annotations

from contextlib import suppress

import torch


def reserve(n_bytes: int, device: torch.device) -> None:
    """So many bytes for torch's cache, in which what is made next finds room; nothing off a card.

    A driver takes its time for each piece, however small. Where so much is not free in one piece, pieces may be.
    """
    if device.type == "cuda":
        with suppress(torch.OutOfMemoryError):
            torch.empty(n_bytes, dtype=torch.uint8, device=device)
