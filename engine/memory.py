"""A card's memory, taken at once."""

from __future__ import annotations

import torch


def reserve(n_bytes: int, device: torch.device) -> None:
    """So many bytes for torch's cache, in which what is made next finds room; does nothing off a card.

    A driver takes a third of a millisecond for each piece, however small. Raises torch.OutOfMemoryError.
    """
    if device.type == "cuda":
        torch.empty(n_bytes, dtype=torch.uint8, device=device)
