"""What lies between the matrix products of a block as Triton kernels: every token is read once and written once.

One program works on one token. Sums are taken in float32 and rounded once, so results differ from torch's own in the
last bit of the compute dtype. `fp8` asks for rows as `quant.fp8.quantize` gives them instead of the compute dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quant.fp8 import E4M3, Quantized
from ..quant.triton_launch import launch

LARGEST, LEAST = torch.finfo(E4M3).max, torch.finfo(torch.float32).tiny
MANY = 8192  # channels from which on a token gets more warps
EPS = 1e-6
Rows = Tensor | Quantized  # tokens (B, L, D) of the compute dtype, or (B * L, D) in FP8


@triton.jit
def _store_fp8(out, scales, row, h, columns, inside, largest, least):
    scale = tl.maximum(tl.max(tl.abs(h), axis=0) / largest, least)
    tl.store(scales + row, scale)
    tl.store(out + columns, (h / scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _residual_norm(
    x, y, gate, total, shift, scale, out, scales, n_rows, x_batch, y_batch, gate_batch, shift_batch,
    largest, least, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, NORMS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    to = batch * n_rows + row
    values = tl.load(x + batch * x_batch + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        more = tl.load(y + batch * y_batch + row * D + columns, mask=inside, other=0.0).to(tl.float32)
        values += tl.load(gate + batch * gate_batch + columns, mask=inside, other=0.0).to(tl.float32) * more
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + to * D + columns, rounded, mask=inside)
        values = rounded.to(tl.float32)
    if NORMS:
        values = tl.where(inside, values - tl.sum(values, axis=0) / D, 0.0)
        values *= tl.rsqrt(tl.sum(values * values, axis=0) / D + eps)
        at = batch * shift_batch + columns
        factor = 1.0 + tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
        h = values * factor + tl.load(shift + at, mask=inside, other=0.0).to(tl.float32)
        if FP8:
            _store_fp8(out + to * D, scales, to, h, columns, inside, largest, least)
        else:
            tl.store(out + to * D + columns, h.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _join_gelu(
    attended, wide, out, scales, n_rows, attended_batch, largest, least,
    D: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    to = batch * n_rows + row
    of_m = tl.arange(0, BLOCK_M)
    in_m = of_m < M
    x = tl.load(wide + to * M + of_m, mask=in_m, other=0.0).to(tl.float32)
    x *= tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # sqrt(8 / pi): the tanh form, as a sigmoid
    to_m = out + to * (D + M) + D + of_m
    if D > 0:
        of_d = tl.arange(0, BLOCK_D)
        in_d = of_d < D
        a = tl.load(attended + batch * attended_batch + row * D + of_d, mask=in_d, other=0.0)
        to_d = out + to * (D + M) + of_d
    if FP8:
        most = tl.max(tl.abs(x), axis=0)
        if D > 0:
            most = tl.maximum(most, tl.max(tl.abs(a.to(tl.float32)), axis=0))
        scale = tl.maximum(most / largest, least)
        tl.store(scales + to, scale)
        tl.store(to_m, (x / scale).to(out.dtype.element_ty), mask=in_m)
        if D > 0:
            tl.store(to_d, (a.to(tl.float32) / scale).to(out.dtype.element_ty), mask=in_d)
    else:
        tl.store(to_m, x.to(out.dtype.element_ty), mask=in_m)
        if D > 0:
            tl.store(to_d, a.to(out.dtype.element_ty), mask=in_d)


@triton.jit
def _rotated(x, weight, pe, at, inside, eps, H: tl.constexpr, C: tl.constexpr):
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values, axis=1) / C + eps)[:, None]
    values *= tl.load(weight + tl.arange(0, C)).to(tl.float32)[None, :]
    even, odd = tl.split(tl.reshape(values, (H, C // 2, 2)))
    of = pe + 4 * tl.arange(0, C // 2)  # of each pair a matrix of 2 x 2
    first = tl.load(of)[None, :] * even + tl.load(of + 1)[None, :] * odd
    second = tl.load(of + 2)[None, :] * even + tl.load(of + 3)[None, :] * odd
    return tl.reshape(tl.join(first, second), (H, C))


@triton.jit
def _store_cut(out, at, values, inside, most, CUTS: tl.constexpr):
    if CUTS:
        values = tl.minimum(tl.maximum(values, -most), most)
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _heads(
    q, k, v, q_weight, k_weight, pe, q_out, k_out, v_out, n_rows, n_out, begin, pe_batch, eps, most,
    N: tl.constexpr, H: tl.constexpr, C: tl.constexpr, COPIES: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head = tl.arange(0, H)[:, None]
    at = head * C + tl.arange(0, C)[None, :]
    inside = head < N
    origin, to = (batch * n_rows + row) * N * C, (batch * n_out + begin + row) * N * C
    turns = pe + batch * pe_batch + (begin + row) * 2 * C
    _store_cut(q_out, to + at, _rotated(q + origin, q_weight, turns, at, inside, eps, H, C), inside, most, FP8)
    _store_cut(k_out, to + at, _rotated(k + origin, k_weight, turns, at, inside, eps, H, C), inside, most, FP8)
    if COPIES:
        _store_cut(v_out, to + at, tl.load(v + origin + at, mask=inside, other=0.0).to(tl.float32), inside, most, FP8)


def residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate y; x, y: (B, L, D), gate: (B or 1, 1, D)."""
    return _sum_and_norm(x, (y, gate), None, fp8=False)[0]


def norm(x: Tensor, shift: Tensor, scale: Tensor, fp8: bool = False) -> Rows:
    """LayerNorm of x (B, L, D) without weights, times 1 + scale, plus shift, both (B or 1, 1, D)."""
    return _sum_and_norm(x, None, (shift, scale), fp8)[1]


def residual_norm(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, fp8: bool = False
) -> tuple[Tensor, Rows]:
    """`residual`, and `norm` of that."""
    return _sum_and_norm(x, (y, gate), (shift, scale), fp8)


def _sum_and_norm(
    x: Tensor, more: tuple[Tensor, Tensor] | None, affine: tuple[Tensor, Tensor] | None, fp8: bool
) -> tuple[Tensor, Rows]:
    """The sum with `more`, y and gate, where given, and its norm with `affine`, shift and scale, else the sum again."""
    batch, length, d = x.shape
    x = in_rows(x)
    y, gate = (in_rows(more[0]), more[1]) if more else (x, x[:1, :1])
    shift, scale = affine or (gate, gate)
    total = torch.empty_like(x, memory_format=torch.contiguous_format) if more else x
    out, scales = _empty(x, d, fp8) if affine else (total, None)
    if _step(shift) != _step(scale):
        raise ValueError("shift and scale are not of one batch")
    _launch(
        _residual_norm, length, batch, d,
        x, y, gate, total, shift, scale, out, scales, length, x.stride(0), y.stride(0), _step(gate), _step(shift),
        LARGEST, LEAST, EPS, D=d, BLOCK=triton.next_power_of_2(d),
        ADDS=more is not None, NORMS=affine is not None, FP8=fp8,
    )  # fmt: skip
    return total, out if scales is None else (out, scales)


def join_gelu(wide: Tensor, attended: Tensor | None = None, fp8: bool = False) -> Rows:
    """attended (B, L, D) and the GELU (tanh form) of wide (B, L, M), side by side (B, L, D + M)."""
    batch, length, m = wide.shape
    wide = wide.contiguous()
    attended = None if attended is None else in_rows(attended)
    d = 0 if attended is None else attended.shape[2]
    out, scales = _empty(wide, d + m, fp8)
    _launch(
        _join_gelu, length, batch, m,
        attended, wide, out, scales, length, 0 if attended is None else attended.stride(0), LARGEST, LEAST,
        D=d, M=m, BLOCK_D=triton.next_power_of_2(max(1, d)), BLOCK_M=triton.next_power_of_2(m), FP8=fp8,
    )  # fmt: skip
    return out if scales is None else (out, scales)


def heads(
    parts: Sequence[tuple[Sequence[Tensor], Tensor, Tensor]], pe: Tensor, head_dim: int, fp8: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, heads, L, head_dim), q and k of unit root mean square times their weight, then rotated by pe.

    parts: of text and image or of one, which are joined: their q, k, v (B, l, D) and the two weights (head_dim,).
    pe: (B or 1, 1, L, head_dim/2, 2, 2) float32. fp8: all in FP8 without scales, cut off at its largest number.
    In memory a token's heads lie together.
    """
    (first, *_), *_ = parts[0]
    batch, n_out, width = first.shape[0], sum(qkv[0].shape[1] for qkv, _, _ in parts), first.shape[2]
    n_heads, pe, begin = width // head_dim, pe.contiguous(), 0
    dtype, copies = E4M3 if fp8 else first.dtype, fp8 or len(parts) > 1
    q_out, k_out = (first.new_empty(batch, n_out, n_heads, head_dim, dtype=dtype) for _ in range(2))
    v_out = torch.empty_like(q_out) if copies else parts[0][0][2].unflatten(2, (n_heads, head_dim))
    for qkv, q_weight, k_weight in parts:
        length = qkv[0].shape[1]
        q, k, v = (each.contiguous() for each in qkv)
        _launch(
            _heads, length, batch, width,
            q, k, v, q_weight, k_weight, pe, q_out, k_out, v_out, length, n_out, begin, _step(pe), EPS,
            LARGEST, N=n_heads, H=triton.next_power_of_2(n_heads), C=head_dim, COPIES=copies, FP8=fp8,
        )  # fmt: skip
        begin += length
    return q_out.transpose(1, 2), k_out.transpose(1, 2), v_out.transpose(1, 2)


def in_rows(x: Tensor) -> Tensor:
    """x (B, L, D) with the rows of a sample one after the other, as it is where they already are."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _empty(like: Tensor, width: int, fp8: bool) -> tuple[Tensor, Tensor | None]:
    """Room for a result: (B, L, width), or (B * L, width) in FP8 and scales (B * L, 1)."""
    batch, length = like.shape[:2]
    if not fp8:
        return like.new_empty(batch, length, width), None
    data = like.new_empty(batch * length, width, dtype=E4M3)
    return data, like.new_empty(batch * length, 1, dtype=torch.float32)


def _step(x: Tensor) -> int:
    """From one sample of a batch to the next; 0 where there is one for all."""
    return 0 if x.shape[0] == 1 else x.stride(0)


def _launch(kernel, length: int, batch: int, width: int, *arguments, **constants) -> None:
    launch(kernel, (length, batch), *arguments, **constants, num_warps=16 if width >= MANY else 4)
