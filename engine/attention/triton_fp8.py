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
def _tile(x, head, rows, length, x_batch, x_head, x_row, H: tl.constexpr, D: tl.constexpr):
    at = (head // H) * x_batch + (head % H) * x_head + rows.to(tl.int64)[:, None] * x_row + tl.arange(0, D)[None, :]
    return tl.load(x + at, mask=(rows < length)[:, None], other=0.0).to(tl.float32)


@triton.jit
def _cast(values, out, head, rows, length, most, D: tl.constexpr):
    to = (head * length + rows)[:, None] * D + tl.arange(0, D)[None, :]
    values = tl.minimum(tl.maximum(values, -most), most)
    tl.store(out + to, values.to(out.dtype.element_ty), mask=(rows < length)[:, None])


@triton.jit
def _pack(
    q, k, v, q_out, k_out, largest, n_queries, n_keys,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, most,
    H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1).to(tl.int64)
    _cast(_tile(q, head, rows, n_queries, q_batch, q_head, q_row, H, D), q_out, head, rows, n_queries, most, D)
    _cast(_tile(k, head, rows, n_keys, k_batch, k_head, k_row, H, D), k_out, head, rows, n_keys, most, D)
    values = tl.abs(_tile(v, head, rows, n_keys, v_batch, v_head, v_row, H, D))
    tl.atomic_max(largest + head, tl.max(tl.max(values, 1), 0))


@triton.jit
def _turn(
    v, out, largest, n_keys, v_batch, v_head, v_row, out_row, most, least,
    H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1).to(tl.int64)
    values = _tile(v, head, rows, n_keys, v_batch, v_head, v_row, H, D)
    values = tl.trans(values / tl.maximum(tl.load(largest + head) / most, least))
    to = (head * D + tl.arange(0, D))[:, None] * out_row + rows[None, :]
    tl.store(out + to, values.to(out.dtype.element_ty), mask=(rows < n_keys)[None, :])


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
    v_scale = tl.maximum(tl.load(largest + head) / most, least)
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
    out = torch.empty(batch, n_queries, n_heads, dim, dtype=q.dtype, device=q.device)
    how = HOPPER if q.is_cuda and torch.cuda.get_device_capability(q.device) >= (9, 0) else OTHERS
    bm, bn = how["BM"], how["BN"]
    with torch.cuda.device_of(q):  # Triton launches on the current card
        q8, k8, v8, largest = pack(q, k, v)
        _attend[(triton.cdiv(n_queries, bm), n_all)](
            TensorDescriptor.from_tensor(q8, [1, bm, dim]),
            TensorDescriptor.from_tensor(k8, [1, bn, dim]),
            TensorDescriptor.from_tensor(v8[:, :, :n_keys], [1, dim, bn]),
            largest, out, n_queries, n_keys, EIGHTHS * math.log2(math.e) / math.sqrt(dim), LARGEST, LEAST,
            H=n_heads, D=dim, EIGHTHS=EIGHTHS, ONE=ONE, TOP=TOP, MAGIC=MAGIC, **how,
        )  # fmt: skip
    return out.transpose(1, 2)


def pack(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In FP8: q and k (B * heads, L, head_dim), v over its heads' scales and with tokens last, padded to ALIGNED; and
    the greatest magnitudes of v's heads (B * heads,) float32, which their scales bring to the largest number."""
    batch, n_heads, n_queries, dim = q.shape
    n_keys, n_all = k.shape[2], batch * n_heads
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    q8, k8 = (q.new_empty(n_all, length, dim, dtype=E4M3) for length in (n_queries, n_keys))
    v8 = q.new_empty(n_all, dim, triton.cdiv(n_keys, ALIGNED) * ALIGNED, dtype=E4M3)
    largest = q.new_zeros(n_all, dtype=torch.float32)
    shape = {"H": n_heads, "D": dim, "ROWS": PACKED_AT_ONCE}
    _pack[(triton.cdiv(max(n_queries, n_keys), PACKED_AT_ONCE), n_all)](
        q, k, v, q8, k8, largest, n_queries, n_keys, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], LARGEST, **shape
    )
    _turn[(triton.cdiv(n_keys, PACKED_AT_ONCE), n_all)](
        v, v8, largest, n_keys, *v.stride()[:3], v8.stride(1), LARGEST, LEAST, **shape
    )
    return q8, k8, v8, largest
