"""What references cost a step of FLUX.1 Kontext [dev], by count.

Work: 12.9 GFLOP a token in Linears, 0.70 MFLOP a pair of query and key (57 blocks, width 3072). Memory beside the
weights: 0.12 MB a token, from the peak of one step at 1024x1024 with one reference (benchmarks/results/full_size.json:
24.85 GB over 23.80 of weights, 8,704 tokens).
"""

from __future__ import annotations

import math

FLOP_A_TOKEN = 12.9e9
FLOP_A_PAIR = 0.70e6
BYTES_A_TOKEN = 0.12e6
N_TXT = 512  # tokens of a prompt


def flop(n_tokens: int) -> float:
    """Of one step over so many tokens, text included."""
    return n_tokens * FLOP_A_TOKEN + n_tokens**2 * FLOP_A_PAIR


def times_as_long(n_target: int, n_references: int, n_txt: int = N_TXT) -> float:
    """A step with the references against one without."""
    return flop(n_target + n_txt + n_references) / flop(n_target + n_txt)


def n_bytes(n_tokens: int) -> float:
    """Beside the weights, at the peak of a step."""
    return n_tokens * BYTES_A_TOKEN


def n_that_take(memory: float) -> int:
    """Tokens that take so much memory, at least."""
    return math.ceil(memory / BYTES_A_TOKEN)
