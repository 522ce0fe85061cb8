"""Blocks as a file may hold them."""

import numpy as np
import torch
from kontextkit.engine.quant import block_type


def random_blocks(qtype: str, n: int, seed: int, spread: float = 3.0) -> np.ndarray:
    """Arbitrary bytes with finite scales: every value a file can hold, not only those a quantizer writes."""
    layout = block_type(qtype)
    blocks = np.random.default_rng(seed).integers(0, 256, (n, layout.n_bytes), dtype=np.uint8)
    for start in layout.halves:
        scales = np.random.default_rng(seed + 1 + start).normal(0, spread, n).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(n, 2)
    return blocks


def same_bits(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return np.array_equal(ours.contiguous().numpy().view(np.uint32), np.ascontiguousarray(theirs).view(np.uint32))
