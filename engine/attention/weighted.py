"""Attention whose keys have weights, through fused kernels that know none: one call for each run of equal weights.

Each call gives its part's result and the logarithm of its denominator; the whole is the parts' mean, weighted by
denominator times weight. This is exact, and costs a few passes over the result where a bias would take the fast kernels
away (cuDNN's and FlashAttention's have no use for one of this form).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Part = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # q, k, v -> the result, log of the denominator


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Through cuDNN, on NVIDIA cards from Ampere on."""
    out, log_sum, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, log_sum


def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Through torch's FlashAttention 2, in half precision, or its form for the CPU."""
    ops = torch.ops.aten
    kernel = ops._scaled_dot_product_flash_attention if q.is_cuda else ops._scaled_dot_product_flash_attention_for_cpu
    out, log_sum, *_ = kernel(q, k, v)
    return out, log_sum


KERNELS: dict[str, Part] = {"cudnn": cudnn, "flash": flash}
_works: dict[tuple[str, torch.device, torch.dtype], bool] = {}


def attend_in_runs(
    q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, float]], kernels: Sequence[str] = tuple(KERNELS)
) -> Tensor | None:
    """q (B, heads, L, head_dim), k and v (B, heads, n_keys, head_dim) -> as q; None where no kernel runs here.

    runs: (number of keys, weight above 0) one after the other, n_keys in all.
    """
    for name in kernels:
        key = (name, q.device, q.dtype)
        if _works.get(key, True):
            try:
                return _merged(KERNELS[name], q, k, v, runs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # no kernel for this card or dtype
                _works[key] = False
    return None


def _merged(part: Part, q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, float]]) -> Tensor:
    results, logs, start = [], [], 0
    for n, weight in runs:
        keys = slice(start, start + n)
        out, log_sum = part(q, k[:, :, keys], v[:, :, keys])
        results.append(out)
        logs.append(log_sum.reshape(*q.shape[:2], -1)[:, :, : q.shape[2]] + torch.tensor(weight).log().item())
        start += n
    shares = torch.stack(logs).softmax(dim=0).to(q.dtype)[..., None]  # (runs, B, heads, L, 1)
    merged = results[0] * shares[0]
    for out, share in zip(results[1:], shares[1:], strict=True):
        merged.addcmul_(out, share)
    return merged
