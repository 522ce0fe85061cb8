"""Attention whose q, k, v and result are float8_e4m3fn, by cuDNN's kernel for Hopper and data-centre Blackwell.

Nothing has a scale, as in https://github.com/huggingface/flux-fast: q and k have unit root mean square times a weight
before they are rotated, values are of the order of 1, far inside the 448 that the format reaches, and a result lies
among its values. The kernel is reached through the package nvidia-cudnn-frontend, as torch has no way to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..errors import first_line
from ..quant.fp8 import E4M3

CAPABILITIES = (9, 10)  # major ones of the cards that have the kernel
PACKAGE = "nvidia-cudnn-frontend"
SHARE = 256.0  # of a key that counts most: shares reach down to its 2^17th part before they are zero
MOST_OFF = 0.05  # of the emulation, when it is tried
N_PLANS = 64  # shapes whose plan is kept
Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides


@dataclass(frozen=True)
class Plan:
    """cuDNN's graph for some shapes, its tensors by number: q, k, v, the result, and those that are always the same."""

    graph: Any
    numbers: tuple[int, ...]
    same: tuple[Tensor, ...]
    workspace: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """On the current stream of the tensors' card."""
        import cudnn

        handle, out = _handle(q.device), _empty(q)
        workspace = torch.empty(self.workspace, dtype=torch.uint8, device=q.device)
        cudnn.set_stream(handle, torch.cuda.current_stream(q.device).cuda_stream)
        self.graph.execute((q, k, v, out, *self.same), workspace, handle, tensor_uids=self.numbers)
        return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, heads, L, head_dim), k and v (B, heads, n_keys, head_dim) -> as q, a token's heads together in memory.

    All float8_e4m3fn. Off NVIDIA cards the same is computed in float32, slowly: for tests; `why_not` tells a host not
    to.
    """
    if not q.is_cuda:
        return _emulated(q, k, v)
    with torch.cuda.device_of(q):
        return _plan(q.device, *((tuple(x.shape), x.stride()) for x in (q, k, v))).attend(q, k, v)


@cache
def why_not(device: torch.device) -> str:
    """Why attention stays exact on this device, a sentence without its end, or nothing; tried once."""
    if device.type != "cuda" or torch.version.cuda is None:
        return "in FP8 it needs an NVIDIA card"
    major, minor = torch.cuda.get_device_capability(device)
    if major not in CAPABILITIES:
        return f"in FP8 it needs a Hopper or data-centre Blackwell card, this one is of capability {major}.{minor}"
    if find_spec("cudnn") is None:
        return f"in FP8 it needs a Python package, `pip install --no-deps {PACKAGE}` brings it"
    try:
        q = torch.linspace(-2, 2, 1 << 14, device=device).to(E4M3).view(1, 1, 128, 128)
        ours, right = attend(q, q, q).float().cpu(), _emulated(*[q.cpu()] * 3).float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever kind a foreign package raises
        return f"{PACKAGE} cannot attend in FP8 here ({first_line(error)})"
    off = ((ours - right).norm() / right.norm()).item()
    return "" if off < MOST_OFF else f"in FP8 this card's is {off:.0%} off"


def _empty(q: Tensor) -> Tensor:
    batch, n_heads, length, dim = q.shape
    return torch.empty(batch, length, n_heads, dim, dtype=E4M3, device=q.device).transpose(1, 2)


@cache
def _handle(device: torch.device) -> Any:
    import cudnn

    return cudnn.create_handle()


@cache
def _number(value: float, device: torch.device) -> Tensor:
    return torch.full((1, 1, 1, 1), value, device=device)


@lru_cache(N_PLANS)
def _plan(device: torch.device, q: Layout, k: Layout, v: Layout) -> Plan:
    import cudnn

    single, narrow = cudnn.data_type.FLOAT, cudnn.data_type.FP8_E4M3
    graph = cudnn.pygraph(
        io_data_type=narrow, intermediate_data_type=single, compute_data_type=single, handle=_handle(device)
    )
    tensors = [graph.tensor(dim=shape, stride=strides, data_type=narrow) for shape, strides in (q, k, v)]
    one = ("descale_q", "descale_k", "descale_v", "scale_o")
    scales = {name: _number(1.0, device) for name in one}
    scales |= {"scale_s": _number(SHARE, device), "descale_s": _number(1 / SHARE, device)}
    named = {name: graph.tensor(dim=(1,) * 4, stride=(1,) * 4, data_type=single) for name in scales}
    size = q[0][3] ** -0.5
    out, _, *largest = graph.sdpa_fp8(*tensors, **named, attn_scale=size, generate_stats=False)
    like = _empty(torch.empty(q[0], dtype=E4M3, device="meta"))
    out.set_output(True).set_dim(list(like.shape)).set_stride(list(like.stride())).set_data_type(narrow)
    for each in largest:
        each.set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(single)
    graph.build([cudnn.heur_mode.A])
    numbers = tuple(each.uid for each in (*tensors, out, *named.values(), *largest))
    same = (*scales.values(), *(torch.empty(1, 1, 1, 1, device=device) for _ in largest))
    return Plan(graph, numbers, same, max(1, graph.get_workspace_size()))


def _emulated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.float() @ k.float().transpose(2, 3) * q.shape[3] ** -0.5
    shares = (scores - scores.amax(dim=3, keepdim=True)).exp()
    total = shares.sum(dim=3, keepdim=True)
    out = _empty(q)
    return out.copy_((shares * SHARE).to(E4M3).float() @ v.float() / (SHARE * total))
