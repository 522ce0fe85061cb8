"""Rows to FP8 as one Triton kernel, from floats or from packed blocks: its scale and its numbers are written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import BlockType
from .triton_form import FUSION, decoder, some_blocks
from .triton_launch import launch

_LIMITS = torch.finfo(torch.float8_e4m3fn).max, torch.finfo(torch.float32).tiny  # of numbers and of scales
MANY_COLUMNS = 4096  # from which on a row gets twice the warps


@triton.jit
def _quantize(x, data, scales, n_columns, stride, most, least, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(values), axis=0), most), least)
    tl.store(scales + row, scale)
    tl.store(data + row * n_columns + columns, tl.div_rn(values, scale).to(tl.float8e4nv), mask=inside)


@triton.jit
def _quantize_blocks(
    packed,
    data,
    scales,
    levels,
    n_blocks,
    most,
    least,
    formula: tl.constexpr,
    n_bytes: tl.constexpr,
    groups: tl.constexpr,
    width: tl.constexpr,
    blocks: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    packed += row * n_blocks * n_bytes
    data += row * n_blocks * (groups * width)
    largest = tl.zeros((blocks, groups, width), tl.float32)
    start = 0
    while start < n_blocks:  # Triton's interpreter knows no `range` of an argument
        values, place = some_blocks(packed, levels, start, n_blocks, formula, n_bytes, groups, width, blocks)
        largest = tl.maximum(largest, tl.abs(values))
        start += blocks
    scale = tl.maximum(tl.div_rn(tl.max(tl.ravel(largest), axis=0), most), least)
    tl.store(scales + row, scale)
    start = 0
    while start < n_blocks:  # read again, from the cache
        values, place = some_blocks(packed, levels, start, n_blocks, formula, n_bytes, groups, width, blocks)
        tl.store(data + place, tl.div_rn(values, scale).to(tl.float8e4nv))
        start += blocks


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `fp8.quantize` does, on a card with FP8 (compute capability 8.9)."""
    x = x if x.stride(1) == 1 else x.contiguous()
    n_rows, n_columns = x.shape
    data, scales = _empty(n_rows, n_columns, x.device)
    block, warps = triton.next_power_of_2(n_columns), 8 if n_columns > MANY_COLUMNS else 4
    launch(_quantize, (n_rows,), x, data, scales, n_columns, x.stride(0), *_LIMITS, BLOCK=block, num_warps=warps)
    return data, scales


def quantize_blocks(layout: type[BlockType], packed: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous packed rows (N, row_bytes) uint8 -> what `fp8.quantize` makes of their weights in float32."""
    n_rows, n_blocks = packed.shape[0], packed.shape[1] // layout.n_bytes
    data, scales = _empty(n_rows, n_blocks * layout.block_size, packed.device)
    levels, constants = decoder(layout, packed.device)
    arguments = (packed, data, scales, levels, n_blocks, *_LIMITS)
    launch(_quantize_blocks, (n_rows,), *arguments, **constants, num_warps=1, enable_fp_fusion=FUSION)
    return data, scales


def _empty(n_rows: int, n_columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For the numbers and the scales."""
    data = torch.empty(n_rows, n_columns, dtype=torch.float8_e4m3fn, device=device)
    return data, torch.empty(n_rows, 1, dtype=torch.float32, device=device)
