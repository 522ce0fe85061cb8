"""How much each reference token counts: log(weight) is added to the scores of its key, so weight 0 leaves it out.

Tokens are put in order of falling weight once a pass, so that in every block equal weights are one run of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

Weights = tuple[float, ...]  # of one reference's tokens, row by row, 0-1; a single one counts for all; none: all are 1
Runs = tuple[tuple[int, float], ...]  # (number of keys, their weight), one after the other


@dataclass(frozen=True)
class Arrangement:
    """order: which reference tokens are computed, in which order, of all of them; runs: their weights."""

    order: Tensor
    runs: Runs


@lru_cache(maxsize=64)
def arrange(n_tokens: tuple[int, ...], weights: tuple[Weights, ...]) -> Arrangement | None:
    """n_tokens and weights: of each reference; those without weights count in full. None where all tokens do.

    Raises ValueError where weights are of another number of tokens than the reference has.
    """
    every: list[float] = []
    for number, n in enumerate(n_tokens):
        some = weights[number] if number < len(weights) else ()
        if len(some) not in (0, 1, n):
            raise ValueError(
                f"reference {number + 1} has {n} tokens and weights for {len(some)}: its latent was changed after "
                "Encode Kontext References; connect that node's CONDITIONING to the sampler's side directly."
            )
        every += some if len(some) == n else (*some, 1.0)[:1] * n
    if all(weight == 1 for weight in every):
        return None
    order = torch.tensor(every).argsort(descending=True, stable=True)
    order = order[torch.tensor(every)[order] > 0]
    fallen = (every[i] for i in order.tolist())
    return Arrangement(order, tuple((len(list(run)), weight) for weight, run in groupby(fallen)))


def full_runs(runs: Runs, n_keys: int) -> Runs:
    """The runs of all `n_keys` keys, of which the references' come last: text and target before them count in full."""
    n_own = n_keys - sum(n for n, _ in runs)
    if runs and runs[0][1] == 1:
        return (n_own + runs[0][0], 1.0), *runs[1:]
    return (n_own, 1.0), *runs


def bias(runs: Runs, like: Tensor) -> Tensor:
    """log(weight) of every key, (1, 1, 1, n_keys), in like's dtype and place."""
    lengths = torch.tensor([n for n, _ in runs])
    logs = torch.tensor([weight for _, weight in runs]).log().repeat_interleave(lengths)
    return logs.to(like)[None, None, None]
