"""The Triton form of every decoder against gguf-py: interpreted on the CPU, compiled on a card."""

import importlib
import logging
import sys

import gguf
import numpy as np
import pytest
import torch
from kontextkit.engine.quant import PackedTensor, QuantLinear, block_type, fp8, on_gpu
from kontextkit.engine.quant.blocks import block_types
from packed_blocks import random_blocks, same_bits

FORM, TO_FP8 = "kontextkit.engine.quant.triton_form", "kontextkit.engine.quant.triton_fp8"


@pytest.fixture(scope="module", params=[FORM, TO_FP8])
def interpreted(request):
    """The module as Triton's interpreter runs it, without a card."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in (FORM, TO_FP8):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module(request.param)
    for name in (FORM, TO_FP8):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("interpreted", [FORM], indirect=True)
@pytest.mark.parametrize("qtype", block_types())
@pytest.mark.parametrize(
    "n_blocks", [1, 7, 64, 131]
)  # fewer than a program's, whole programs, a last one that overlaps
def test_the_formulas_are_gguf_py_s(interpreted, qtype, n_blocks):
    packed = random_blocks(qtype, n_blocks, seed=11)
    ours = interpreted.decode_blocks(block_type(qtype), torch.from_numpy(packed), torch.float32)
    assert same_bits(ours, gguf.dequantize(packed, gguf.GGMLQuantizationType[qtype]))


def rows_to_fp8(qtype, n_blocks):
    """Three packed rows, and what `fp8.quantize` makes of gguf-py's weights."""
    packed = random_blocks(qtype, 3 * n_blocks, seed=14).reshape(3, -1)
    packed[1] = 0
    return torch.from_numpy(packed), fp8.quantize(
        torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType[qtype]))
    )


@pytest.mark.parametrize("interpreted", [TO_FP8], indirect=True)
@pytest.mark.parametrize("qtype", block_types())
@pytest.mark.parametrize("many", [False, True])
def test_packed_rows_go_to_fp8_as_their_weights_do(interpreted, qtype, many):
    n_blocks = 2048 // block_type(qtype).block_size + 3 if many else 1  # more than are looked at together
    packed, (data, scales) = rows_to_fp8(qtype, n_blocks)
    ours, our_scales = interpreted.quantize_blocks(block_type(qtype), packed)
    assert torch.equal(our_scales, scales)
    wrong = ours.float() != data.float()
    assert wrong.float().mean() < 0.2  # the interpreter does not carry what it rounds up into the exponent
    torch.testing.assert_close(ours.float(), data.float(), rtol=0.5, atol=2**-9)


@pytest.mark.gpu
@pytest.mark.parametrize("qtype", block_types())
@pytest.mark.parametrize("n_blocks", [1, 12, 77])
def test_a_card_takes_packed_rows_to_fp8_bit_by_bit_alike(qtype, n_blocks):
    from kontextkit.engine.quant.triton_fp8 import quantize_blocks

    packed, expected = rows_to_fp8(qtype, n_blocks)
    ours = quantize_blocks(block_type(qtype), packed.cuda())
    assert all(torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8)) for a, b in zip(ours, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("qtype", block_types())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_card_decodes_as_gguf_py_does(qtype, dtype):
    assert on_gpu.has_triton(torch.device("cuda", 0))
    packed = random_blocks(qtype, 4099, seed=12)
    expected = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType[qtype])).to(dtype)
    ours = block_type(qtype).decode(torch.from_numpy(packed).cuda(), dtype).cpu()
    assert torch.equal(ours.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.gpu
def test_plain_torch_on_a_card_decodes_alike():
    for qtype in block_types():
        packed = torch.from_numpy(random_blocks(qtype, 4099, seed=13)).cuda()
        plain = block_type(qtype).decode_in_parts(packed, torch.bfloat16, on_gpu.GPU_PART)
        assert torch.equal(plain, block_type(qtype).decode(packed, torch.bfloat16)), qtype


@pytest.mark.gpu
def test_a_compiled_linear_is_one_graph_on_a_card():
    layer = layer_of("Q4_K").cuda()
    x = torch.randn(9, 512, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("qtype", block_types())
def test_a_compiled_linear_is_one_graph(qtype):
    layer, x = layer_of(qtype), torch.randn(9, 512, generator=torch.Generator().manual_seed(1))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def layer_of(qtype):
    packed = random_blocks(qtype, 48 * 512 // block_type(qtype).block_size, seed=3).reshape(48, -1)
    return QuantLinear(PackedTensor(torch.from_numpy(packed), qtype, (48, 512)))


def test_without_triton_plain_torch_decodes_and_the_log_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, FORM, None)  # importing it fails
    on_gpu.has_triton.cache_clear()
    packed = random_blocks("Q4_K", 5, seed=4)
    with caplog.at_level(logging.WARNING):
        ours = [on_gpu.decode_on_gpu(torch.from_numpy(packed), block_type("Q4_K"), torch.float32) for _ in range(2)]
    on_gpu.has_triton.cache_clear()
    assert same_bits(ours[1], gguf.dequantize(packed, gguf.GGMLQuantizationType.Q4_K))
    assert [r.message.count("pip install triton") for r in caplog.records] == [1]


def test_the_operator_of_compiled_graphs_is_sound(monkeypatch):
    monkeypatch.setattr(on_gpu, "has_triton", lambda device: False)
    blocks = torch.from_numpy(random_blocks("Q3_K", 6, seed=5))
    torch.library.opcheck(torch.ops.kontextkit.decode_blocks.default, (blocks, "Q3_K", torch.bfloat16))


@pytest.mark.parametrize("n_blocks", [1, 3000])
def test_decoding_in_parts_is_decoding(n_blocks):
    packed = random_blocks("Q6_K", n_blocks, seed=6)
    whole = block_type("Q6_K").decode_blocks(torch.from_numpy(packed))
    assert np.array_equal(block_type("Q6_K").decode(torch.from_numpy(packed)).numpy(), whole.numpy())
