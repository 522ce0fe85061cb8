"""The factors of LoRAs as modules, so that a host can move them, and their products with tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Adapter, ColumnDoRA, Kronecker, LowRank

BUCKETS = (16, 32, 64, 128, 256, 512, 1024)  # ranks that compiled graphs see; beyond, multiples of the last

Product = Callable[[Tensor, Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


class Factors(nn.Module):
    """A pair of matrices and how x is multiplied by them; never trained.

    The pair is called `weight` and `bias` because a host that moves modules knows these names.
    product: `low_rank_product` or what `kronecker` gives; they say what the two are.
    """

    def __init__(self, product: Product, weight: Tensor, bias: Tensor):
        super().__init__()
        self.product = product
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor, scales: Tensor, start: Tensor | None) -> Tensor:
        """x (N, in) -> a new tensor (N, out) of x's dtype. scales: (R,) or (1,); start: (out,) to add, or None."""
        return self.product(x, scales, self.weight.to(x.dtype), self.bias.to(x.dtype), start)


def low_rank_product(x: Tensor, scales: Tensor, down: Tensor, up: Tensor, start: Tensor | None) -> Tensor:
    """start + ((x down^T) * scales) up^T for down (R, in), up (out, R), scales (R,)."""
    return F.linear(F.linear(x, down) * scales.to(x.dtype), up, start)


def kronecker_product(x: Tensor, scales: Tensor, right: Tensor, left: Tensor, start: Tensor | None) -> Tensor:
    """start + x kron(left, right)^T * scales for right (c, d), left (a, b), scales (1,), as two small products."""
    h = F.linear(x.unflatten(1, (left.shape[1], right.shape[1])), right)  # (N, b, c)
    y = F.linear(h.transpose(1, 2), left).transpose(1, 2).flatten(1) * scales.to(x.dtype)  # (N, a * c)
    return y if start is None else y + start


def bucket(rank: int) -> int:
    """The rank to which `rank` is filled up."""
    return next((size for size in BUCKETS if size >= rank), -(-rank // BUCKETS[-1]) * BUCKETS[-1])


def stack(adapters: Sequence[LowRank], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(down (R, in), up (out, R)) of all adapters, filled up with zeros; a lone one that fits is not copied."""
    downs, ups = [adapter.down.to(dtype) for adapter in adapters], [adapter.up.to(dtype) for adapter in adapters]
    rank = sum(adapter.rank for adapter in adapters)
    if room := bucket(rank) - rank:
        downs.append(downs[0].new_zeros(room, downs[0].shape[1]))
        ups.append(ups[0].new_zeros(ups[0].shape[0], room))
    return (downs[0], ups[0]) if len(downs) == 1 else (torch.cat(downs), torch.cat(ups, dim=1))


def stack_scales(adapters: Sequence[LowRank], strengths: Sequence[float]) -> Tensor:
    """(R,) float32: strength times scale for every row of the stacked downs, zero where it was filled up."""
    scales = torch.zeros(bucket(sum(adapter.rank for adapter in adapters)))
    start = 0
    for adapter, strength in zip(adapters, strengths, strict=True):
        scales[start : start + adapter.rank] = strength * adapter.scale
        start += adapter.rank
    return scales


def kronecker(adapter: Kronecker) -> Product:
    """`kronecker_product`, or where the adapter is some rows of the product, that and a cut."""
    if adapter.rows is None:
        return kronecker_product
    begin, end = adapter.rows

    def cut_product(x: Tensor, scales: Tensor, right: Tensor, left: Tensor, start: Tensor | None) -> Tensor:
        y = kronecker_product(x, scales, right, left, None)[:, begin:end]
        return y.contiguous() if start is None else y + start

    return cut_product


def dora_gain(adapter: Adapter, weight: Tensor) -> Tensor:
    """DoRA's magnitude / |V|, float32, V = weight + scale * up @ down, for the base weight (out, in) float32.

    (out,) from the norms of V's rows, as peft has it, or (in,) from those of its columns.
    https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/dora.py
    """
    low_rank = adapter.low_rank if isinstance(adapter, ColumnDoRA) else adapter
    assert isinstance(low_rank, LowRank)
    magnitude = adapter.magnitude if isinstance(adapter, ColumnDoRA) else low_rank.magnitude
    assert magnitude is not None
    merged = torch.addmm(weight, low_rank.up.to(weight), low_rank.down.to(weight), alpha=low_rank.scale)
    norms = merged.norm(dim=0 if isinstance(adapter, ColumnDoRA) else 1)
    return magnitude.to(weight) / norms.clamp_min(1e-12)  # a row of zeros stays one
