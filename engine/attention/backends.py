"""Attention without a mask through a backend by name, and the fastest of those that give the same numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (B, heads, L, head_dim) -> the same shape
SLICE_BYTES = 256 << 20  # of scores that a slice may hold
TURNS = 3
_fastest: dict[tuple[object, ...], str | None] = {}


def _through(backend: SDPBackend) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 3 (https://arxiv.org/abs/2407.08608), where the package flash_attn_interface is installed."""
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)))
    attended: Tensor = out[0] if isinstance(out, tuple) else out
    return attended.transpose(1, 2)


def sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SageAttention (https://arxiv.org/abs/2410.02367): in 8 bits, so not the same numbers; where it is installed."""
    from sageattention import sageattn

    attended: Tensor = sageattn(q, k, v, tensor_layout="HND", is_causal=False)
    return attended


def sliced(q: Tensor, k: Tensor, v: Tensor, n_bytes: int = SLICE_BYTES) -> Tensor:
    """Some queries at a time by plain products, so that their scores take `n_bytes` at most; runs on anything."""
    row = q.shape[0] * q.shape[1] * k.shape[2] * q.element_size()
    n = max(1, n_bytes // (3 * row))  # scores, their softmax and its working copy
    keys, out = k.transpose(2, 3) * q.shape[3] ** -0.5, torch.empty_like(q)
    for start in range(0, q.shape[2], n):
        part = slice(start, start + n)
        torch.matmul((q[:, :, part] @ keys).softmax(dim=-1), v, out=out[:, :, part])
    return out


BACKENDS: dict[str, Attention] = {
    "cudnn": _through(SDPBackend.CUDNN_ATTENTION),
    "flash3": flash3,
    "flash": _through(SDPBackend.FLASH_ATTENTION),
    "efficient": _through(SDPBackend.EFFICIENT_ATTENTION),
    "sage": sage,
    "sliced": sliced,
}
EXACT = ("cudnn", "flash3", "flash", "efficient")  # the same numbers but for rounding
_PACKAGES = {"flash3": "flash_attn_interface", "sage": "sageattention"}


def why_not(name: str, device: torch.device) -> str:
    """Why a backend of BACKENDS cannot run on the device, a sentence without its end, or nothing."""
    if name in _PACKAGES and find_spec(_PACKAGES[name]) is None:
        return f"{name} attention needs the Python package {_PACKAGES[name]}"
    if device.type != "cuda" and name in ("cudnn", "efficient", *_PACKAGES):
        return f"{name} attention needs an NVIDIA card"
    return ""


def fastest(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The name in EXACT that is fastest for such tensors on a card, timed once for each dtype and doubling of length.

    None where none runs.
    """
    key = (q.device, q.dtype, q.shape[0], q.shape[3], q.shape[2].bit_length(), k.shape[2].bit_length())
    if key not in _fastest:
        times = {name: seconds for name in EXACT if (seconds := _seconds(name, q, k, v)) is not None}
        _fastest[key] = min(times, key=lambda name: times[name]) if times else None
    return _fastest[key]


def _seconds(name: str, q: Tensor, k: Tensor, v: Tensor) -> float | None:
    """Of the quickest of some turns; None where it does not run."""
    if why_not(name, q.device):
        return None
    turns = []
    try:
        for _ in range(1 + TURNS):
            torch.cuda.synchronize(q.device)
            begin = time.perf_counter()
            BACKENDS[name](q, k, v)
            torch.cuda.synchronize(q.device)
            turns.append(time.perf_counter() - begin)
    except torch.OutOfMemoryError:
        raise
    except (
        RuntimeError,
        ImportError,
    ):  # no kernel of this backend for such tensors, or a package that does not fit torch
        return None
    return min(turns[1:])
