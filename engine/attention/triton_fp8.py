"""Attention in FP8 as Triton kernels, on NVIDIA cards that multiply in it: half the time of BF16 where it is long.

q and k are cast as they are: FLUX's have unit root mean square times a weight before they are rotated, well inside the
448 that float8_e4m3fn reaches; what lies beyond is cut off there. v has one scale for each head. The softmax is
FlashAttention's, over keys a block at a time (https://arxiv.org/abs/2205.14135).

Its exponentials would take a card as long as its products. They are never computed: the eight bits of a positive
float8_e4m3fn, read as a whole number, are 8 (log2 of it + 7) but for less than half of one, so the shares of the keys
are written down as those numbers. What that is off, at most 6 % of a share, is alike above and below the fraction bar.
The largest share of a block of rows is 448; what is less than a fifty-thousandth of it is zero.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

E4M3 = torch.float8_e4m3fn
MAGIC = 1.5 * 2.0**23  # floats from here on are whole numbers, which the last bits spell
EIGHTHS, ONE, TOP = 8, 56, 126  # codes of float8_e4m3fn to a factor of 2, that of 1 and that of the largest number
LARGEST, LEAST = torch.finfo(E4M3).max, torch.finfo(torch.float32).tiny
HEAD_DIMS = (64, 128, 256)
PACKED_AT_ONCE = 64  # tokens
ALIGNED = 16  # bytes between rows that a card's copy engine takes
HOPPER = {"BM": 64, "BN": 128, "num_warps": 4, "num_stages": 3}
OTHERS = {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 2}  # what the shared memory of Ada holds


@triton.jit
def _pack(
    x, out, largest, length, x_batch, x_head, x_row, out_head, out_row, most, least,
    H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, D)
    inside = (rows < length)[:, None]
    at = x + (head // H) * x_batch + (head % H) * x_head + rows.to(tl.int64)[:, None] * x_row + columns[None, :]
    values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if TURNS:
        values = tl.trans(values / tl.maximum(tl.load(largest + head).to(tl.float32) / most, least))
        to, inside = columns[:, None] * out_row + rows[None, :], (rows < length)[None, :]
    else:
        to = rows.to(tl.int64)[:, None] * out_row + columns[None, :]
    values = tl.minimum(tl.maximum(values, -most), most)
    tl.store(out + head * out_head + to, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _attend(
    q, k, v, largest, out, n_queries, n_keys, scale, most, least,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EIGHTHS: tl.constexpr, ONE: tl.constexpr, TOP: tl.constexpr, MAGIC: tl.constexpr,
):  # fmt: skip
    first, head = tl.program_id(0) * BM, tl.program_id(1)
    queries = q.load([head, first, 0]).reshape(BM, D)
    highest = tl.full((BM,), -1e30, tl.float32)
    total = tl.zeros((BM, 16), tl.float32)  # of so many columns, all alike, as a product has at least
    ones = tl.full((BN, 16), ONE, tl.uint8).to(tl.float8e4nv, bitcast=True)
    sums = tl.zeros((BM, D), tl.float32)
    for start in tl.range(0, n_keys, BN):
        scores = tl.dot(queries, k.load([head, start, 0]).reshape(BN, D).T)
        if start + BN > n_keys:
            scores = tl.where((start + tl.arange(0, BN) < n_keys)[None, :], scores, -1e30)
        higher = tl.maximum(highest, tl.ceil(tl.max(scores, 1) * scale))
        codes = tl.maximum(scores * scale + (MAGIC + TOP - higher)[:, None], MAGIC)
        shares = codes.to(tl.int32, bitcast=True).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
        less = tl.exp2((highest - higher) / EIGHTHS)[:, None]
        values = v.load([head, 0, start]).reshape(D, BN)
        total = tl.dot(shares, ones, total * less)
        sums = tl.dot(shares, values.T, sums * less)
        highest = higher
    v_scale = tl.maximum(tl.load(largest + head).to(tl.float32) / most, least)
    rows = first + tl.arange(0, BM)
    to = ((head // H).to(tl.int64) * n_queries + rows)[:, None] * (H * D) + (head % H) * D + tl.arange(0, D)[None, :]
    sums *= (v_scale / tl.max(total, 1))[:, None]
    tl.store(out + to, sums.to(out.dtype.element_ty), mask=(rows < n_queries)[:, None])


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, heads, L, head_dim), k and v (B, heads, n_keys, head_dim) -> as q, a token's heads together in memory."""
    batch, n_heads, n_queries, dim = q.shape
    n_keys, n_all = k.shape[2], batch * n_heads
    if dim not in HEAD_DIMS:
        raise RuntimeError(f"heads are {dim} wide; the kernel has {', '.join(map(str, HEAD_DIMS))}")
    largest = torch.linalg.vector_norm(v, float("inf"), dim=(2, 3))
    out = torch.empty(batch, n_queries, n_heads, dim, dtype=q.dtype, device=q.device)
    how = dict(HOPPER if q.is_cuda and torch.cuda.get_device_capability(q.device) >= (9, 0) else OTHERS)
    bm, bn = how["BM"], how["BN"]
    with torch.cuda.device_of(q):  # Triton launches on the current card
        q8, k8 = (pack(x, largest) for x in (q, k))
        v8 = pack(v, largest, turns=True)
        _attend[(triton.cdiv(n_queries, bm), n_all)](
            TensorDescriptor(q8, [n_all, n_queries, dim], list(q8.stride()), [1, bm, dim]),
            TensorDescriptor(k8, [n_all, n_keys, dim], list(k8.stride()), [1, bn, dim]),
            TensorDescriptor(v8, [n_all, dim, n_keys], list(v8.stride()), [1, dim, bn]),
            largest, out, n_queries, n_keys, EIGHTHS * math.log2(math.e) / math.sqrt(dim), LARGEST, LEAST,
            H=n_heads, D=dim, EIGHTHS=EIGHTHS, ONE=ONE, TOP=TOP, MAGIC=MAGIC, **how,
        )  # fmt: skip
    return out.transpose(1, 2)


def pack(x: Tensor, largest: Tensor, turns: bool = False) -> Tensor:
    """x (B, heads, L, head_dim) in FP8 (B * heads, L, head_dim); or over its heads' scales and with tokens last.

    largest: (B, heads), the greatest magnitude of each head.
    """
    batch, n_heads, length, dim = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    n_columns = triton.cdiv(length, ALIGNED) * ALIGNED
    shape = (batch * n_heads, dim, n_columns) if turns else (batch * n_heads, length, dim)
    out = torch.empty(shape, dtype=E4M3, device=x.device)
    _pack[(triton.cdiv(length, PACKED_AT_ONCE), batch * n_heads)](
        x, out, largest, length, *x.stride()[:3], *out.stride()[:2], LARGEST, LEAST,
        H=n_heads, D=dim, ROWS=PACKED_AT_ONCE, TURNS=turns,
    )  # fmt: skip
    return out
