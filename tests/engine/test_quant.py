"""Decoders and QuantLinear against gguf-py."""

import gguf
import numpy as np
import pytest
import torch
from kontextkit.engine.quant import PackedTensor, QuantLinear, block_type
from packed_blocks import random_blocks, same_bits

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]


@pytest.mark.parametrize("qtype", TYPES)
def test_random_blocks_decode_bit_for_bit_as_gguf_py_does(qtype):
    packed = random_blocks(qtype, 1024, seed=7).reshape(64, -1)
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType[qtype])
    assert same_bits(block_type(qtype).decode(torch.from_numpy(packed)), expected)


@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("scale", [0.0, -0.0, 65504.0, -65504.0, 6e-8, np.inf])
@pytest.mark.parametrize("fill", [0, 255, 128])
def test_extreme_blocks_decode_bit_for_bit_as_gguf_py_does(qtype, scale, fill):
    layout = block_type(qtype)
    packed = np.full((3, layout.n_bytes), fill, dtype=np.uint8)
    for start in layout.halves:
        packed[:, start : start + 2] = np.array([scale], np.float16).view(np.uint8)
    with np.errstate(invalid="ignore"):
        expected = gguf.dequantize(packed, gguf.GGMLQuantizationType[qtype])
    ours = block_type(qtype).decode(torch.from_numpy(packed))
    assert same_bits(torch.nan_to_num(ours, nan=7.0), np.nan_to_num(expected, nan=7.0, posinf=None, neginf=None)) or (
        np.array_equal(ours.numpy(), expected, equal_nan=True)
    )


@pytest.mark.parametrize("qtype", TYPES)
def test_layout_sizes_are_ggml_s(qtype):
    layout = block_type(qtype)
    assert (layout.block_size, layout.n_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[qtype]]


@pytest.mark.parametrize("qtype", TYPES)
def test_linear_multiplies_by_what_gguf_py_decodes(qtype):
    packed = random_blocks(qtype, 48 * 512 // block_type(qtype).block_size, seed=3).reshape(48, -1)
    weight = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType[qtype]))
    bias = torch.randn(48, generator=torch.Generator().manual_seed(0))
    layer = QuantLinear(PackedTensor(torch.from_numpy(packed), qtype, (48, 512)), PackedTensor(bias, "F32", (48,)))
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), torch.nn.functional.linear(x, weight, bias))
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_rows_are_views_of_the_same_memory():
    packed = torch.from_numpy(random_blocks("Q8_0", 30, seed=5).reshape(10, -1))
    whole = PackedTensor(packed, "Q8_0", (10, 96))
    part = whole.rows(4, 7)
    assert part.data.data_ptr() == packed[4].data_ptr()
    assert torch.equal(part.decode(), whole.decode()[4:7])


def test_a_row_that_is_not_whole_blocks_is_refused():
    with pytest.raises(ValueError, match="multiple of 32 columns, got 100"):
        block_type("Q4_0").row_bytes(100)
