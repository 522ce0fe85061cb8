"""MXFP8 and NVFP4 products: numbers of the formats' own definitions, and how they come onto the Linears and go."""

import pytest
import torch
from kontextkit.engine.flux.blocks import token_linears
from kontextkit.engine.lora.branch import attached as loras_attached
from kontextkit.engine.lora.stack import LoraStack
from kontextkit.engine.quant import PackedTensor, QuantLinear, block_scaled, narrow
from kontextkit.engine.quant.block_scaled import MXFP8, NVFP4
from loras import CPU, error, linears, low_rank, random, velocity

pytest.importorskip("comfy_kitchen")
FORMATS = [pytest.param(each, id=each.name) for each in (MXFP8, NVFP4)]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def nearest(x, numbers):
    """Of each of x the nearest number or its negative."""
    return numbers[(x.abs()[..., None] - numbers).abs().argmin(dim=-1)] * x.sign()


def in_steps(x, mantissa, least):
    """x rounded to so many bits of mantissa, evenly spaced below `least`."""
    step = torch.exp2(x.abs().clamp_min(least).log2().floor() - mantissa)
    return (x / step).round() * step


def as_mxfp8(x):
    """By the OCP specification: the largest number of 32 is brought below 448 by a power of two, rounded up."""
    blocks = x.double().unflatten(1, (-1, 32))
    scale = torch.exp2((blocks.abs().amax(dim=2, keepdim=True) / 448).log2().ceil())
    return (in_steps(blocks / scale, 3, 2**-6) * scale).flatten(1)


def as_nvfp4(x):
    """A scale in e4m3 for every 16, so that their largest is 6, over one for all."""
    whole = x.double().abs().max() / (6 * 448)
    blocks = x.double().unflatten(1, (-1, 16))
    scale = in_steps(blocks.abs().amax(dim=2, keepdim=True) / 6 / whole, 3, 2**-6) * whole
    return (nearest(blocks / scale, E2M1) * scale).flatten(1)


@pytest.mark.parametrize(("format", "by_definition"), [(MXFP8, as_mxfp8), (NVFP4, as_nvfp4)], ids=["MXFP8", "NVFP4"])
def test_rows_are_the_format_s_numbers(format, by_definition):
    x = random(32, 256, seed=1).bfloat16() * torch.logspace(-3, 3, 32)[:, None].bfloat16()
    ours, expected = format.dequantize(format.quantize(x)).double(), by_definition(x)
    alike = (ours - expected).abs() <= 1e-6 * expected.abs()
    assert alike.double().mean() > 0.995  # a number in the middle between two may go either way
    assert error(ours, expected) < 0.01


def linear_of(n_out=64, n_in=256):
    bias = PackedTensor(random(n_out, seed=5), "F32", (n_out,))
    return QuantLinear(PackedTensor(random(n_out, n_in, seed=1).bfloat16(), "BF16", (n_out, n_in)), bias)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("n_rows", [1, 37, 64])
def test_a_product_is_that_of_the_rounded_numbers(format, n_rows):
    linear, x = linear_of(), random(2, n_rows, 256, seed=2)
    exact = linear(x)
    with narrow.attached(format, [linear], torch.float32):
        y = linear(x)
    rows, weight = (format.dequantize(format.quantize(each)) for each in (x.flatten(0, 1), linear.weight))
    expected = rows[: 2 * n_rows] @ weight[:64].t() + linear.bias
    torch.testing.assert_close(y, expected.view(2, n_rows, 64), rtol=1e-4, atol=1e-4)
    assert error(y, exact) < {"MXFP8": 0.05, "NVFP4": 0.2}[format.name]
    assert linear.narrow is None
    assert torch.equal(linear(x), exact)


@pytest.mark.parametrize("format", FORMATS)
def test_a_lora_beside_it_stays_in_full(build, format):
    model = build("F32")
    some = {name: linear for name, linear in token_linears(model).items() if format.fits(linear)}
    assert len(some) > 10
    lora = {name: low_rank(linear) for name, linear in linears(model).items() if name in some}
    branches = LoraStack([lora], torch.float32).branches(model, [1.0], CPU, torch.float32)
    with loras_attached(model, branches):
        expected = velocity(model)
        with narrow.attached(format, some.values(), torch.float32):
            ours = velocity(model)
    assert 1e-4 < error(ours, expected) < {"MXFP8": 0.05, "NVFP4": 0.3}[format.name]


@pytest.mark.parametrize("format", FORMATS)
def test_forecast_bytes_are_those_made(format):
    linear = linear_of(128, 256)
    with narrow.attached(format, [linear], torch.float32):
        made = linear.narrow.weight
        n_bytes = made.data.nbytes + made.scales.nbytes
    assert format.n_bytes([linear]) == n_bytes


@pytest.mark.parametrize("format", FORMATS)
def test_cards_without_it_are_told_so(format, monkeypatch):
    words = f"{format.name} products need an NVIDIA card of the 50 series or another Blackwell"
    assert format.why_not(CPU) == words
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert format.why_not(torch.device("cuda", 7)) == words


@pytest.mark.parametrize("format", FORMATS)
def test_a_kernel_that_is_wrong_or_missing_is_not_used(format, monkeypatch):
    """The trial itself, on the CPU in the place of a card."""
    device = torch.device("cuda", 8)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    monkeypatch.setattr(block_scaled, "_seeded", lambda device: torch.Generator().manual_seed(0))
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device, generator: randn(*shape, generator=generator))
    assert block_scaled._why_not.__wrapped__(format, device) == ""
    product = type(format).product
    monkeypatch.setattr(type(format), "product", lambda self, *rest: product(self, *rest) * 1.1)
    assert block_scaled._why_not.__wrapped__(format, device) == f"this card's {format.name} products are 10% off"

    def missing(self, *rest):
        raise NotImplementedError("no kernel for sm_120\nand much more")

    monkeypatch.setattr(type(format), "product", missing)
    said = f"torch or comfy-kitchen has no {format.name} products for this card (no kernel for sm_120)"
    assert block_scaled._why_not.__wrapped__(format, device) == said
