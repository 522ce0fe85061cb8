"""The blocks with Triton kernels between their products: plain torch's numbers; on the CPU by Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from kontextkit.engine.attention.fp8 import attend
from kontextkit.engine.cache.references import ReferenceCache, ReferenceSettings
from kontextkit.engine.flux.blocks import modulate, rms_norm, rotated, token_linears
from kontextkit.engine.flux.hooks import BlockHooks
from kontextkit.engine.flux.loop import predict_velocity
from kontextkit.engine.flux.rope import embed_positions
from kontextkit.engine.lora.branch import attached as loras_attached
from kontextkit.engine.lora.stack import LoraStack
from kontextkit.engine.quant import fp8, narrow
from kontextkit.engine.quant.fp8 import E4M3
from loras import error, linears, low_rank, random

pytest.importorskip("triton")
from kontextkit.engine.flux.fused import NARROW, PARTS
from kontextkit.engine.flux.triton_blocks import heads, join_gelu, norm, residual, residual_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # with a card nothing is interpreted
pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
IN_FP8, OF_FP8 = (5e-3, 0.04) if DEVICE == "cuda" else (0.03, 0.2)  # the interpreter rounds some numbers wrongly


def tensor(*shape, seed, dtype=torch.float32):
    return random(*shape, seed=seed).to(DEVICE, dtype)


def dequantized(rows, *shape):
    data, scales = rows
    return (data.float() * scales).view(*shape)


# each kernel, against the torch functions that it stands for


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("n_samples", [1, 2])
def test_residual_and_norm(dtype, n_samples):
    x, wide = tensor(2, 5, 96, seed=1, dtype=dtype), tensor(2, 8, 96, seed=2, dtype=dtype)
    y = wide[:, 3:]  # as a part of what attention gave: its samples lie apart
    gate, shift, scale = (tensor(n_samples, 1, 3 * 96, seed=3, dtype=dtype)).chunk(3, dim=-1)
    total, h = residual_norm(x, y, gate, shift, scale)
    expected = x.double() + gate.double() * y.double()
    assert error(total.double(), expected) < ROUNDING[dtype]
    assert error(h.double(), modulate(expected, shift.double(), scale.double())) < ROUNDING[dtype]
    assert torch.equal(residual(x, y, gate), total)
    h = norm(x, shift, scale)
    assert error(h.double(), modulate(x.double(), shift.double(), scale.double())) < ROUNDING[dtype]
    rows = norm(x, shift, scale, fp8=True)
    assert error(dequantized(rows, 2, 5, 96), modulate(x.float(), shift.float(), scale.float())) < OF_FP8


@pytest.mark.parametrize("dtype", ROUNDING)
def test_gelu_beside_attention_and_alone(dtype):
    wide, attended = tensor(2, 5, 320, seed=1, dtype=dtype), tensor(2, 9, 80, seed=2, dtype=dtype)[:, 4:]
    gelu = F.gelu(wide.double(), approximate="tanh")
    both = torch.cat((attended.double(), gelu), dim=2)
    assert error(join_gelu(wide).double(), gelu) < ROUNDING[dtype]
    assert error(join_gelu(wide, attended).double(), both) < ROUNDING[dtype]
    assert error(dequantized(join_gelu(wide, attended, fp8=True), 2, 5, 400), both.float()) < OF_FP8
    assert error(dequantized(join_gelu(wide, fp8=True), 2, 5, 320), gelu.float()) < OF_FP8


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("n_pe", [1, 2])
def test_heads_of_text_and_image(dtype, n_pe):
    ids = tensor(n_pe, 8, 3, seed=9).mul(5).round()
    pe = embed_positions(ids, (16, 56, 56))
    lengths = {"txt": 3, "img": 5}
    qkv = {n: [tensor(2, length, 3 * 128, seed=i, dtype=dtype) for i in range(3)] for n, length in lengths.items()}
    weights = {n: [tensor(128, seed=i, dtype=dtype) for i in (4, 5)] for n in lengths}
    joined = []
    for i in range(3):
        parts = []
        for name in lengths:
            x = qkv[name][i].double().unflatten(2, (3, 128)).transpose(1, 2)
            if i < 2:
                rms = torch.nn.RMSNorm(128, dtype=torch.float64, device=DEVICE)
                rms.weight.data = weights[name][i].double()
                x = rms_norm(x, rms)
            parts.append(x)
        joined.append(torch.cat(parts, dim=2))
    expected = rotated(*joined, pe)
    ours = heads([(qkv[name], *weights[name]) for name in lengths], pe, 128)
    for got, right in zip(ours, expected, strict=True):
        assert got.shape == (2, 3, 8, 128)
        assert error(got.double(), right.double()) < ROUNDING[dtype]


# the blocks


class Fused(BlockHooks):
    rotates = True
    parts = PARTS

    def __init__(self, references=None):
        self.references = references


def velocity(model, hooks=None, batch=1, dtype=torch.float32, sigma=0.6):
    call = {
        "img": random(batch, 12, 64, seed=1),
        "txt": random(batch, 5, 96, seed=3),
        "pooled": random(batch, 64, seed=4),
    }
    call = {name: each.to(DEVICE, dtype) for name, each in call.items()}
    ids = random(1, 12, 3, seed=2).round().abs().to(DEVICE)
    more = {"timestep": torch.full((batch,), sigma, device=DEVICE), "guidance": torch.tensor([2.5], device=DEVICE)}
    with torch.inference_mode():
        return predict_velocity(
            model, **call, img_ids=ids, txt_ids=torch.zeros(1, 5, 3, device=DEVICE), **more, n_target=8, hooks=hooks
        ).float()


@pytest.mark.parametrize(("qtype", "dtype"), [("F32", torch.float32), ("Q8_0", torch.float32), ("F32", torch.bfloat16)])
@pytest.mark.parametrize("batch", [1, 2])
def test_they_are_plain_torch_s_blocks(build, qtype, dtype, batch):
    model = build(qtype).to(DEVICE)
    expected = velocity(model, batch=batch, dtype=dtype)
    assert error(velocity(model, Fused(), batch, dtype), expected) < 2 * ROUNDING[dtype]


def test_without_rotation_they_are_the_plain_ones(build):
    model, hooks = build("F32").to(DEVICE), Fused()
    hooks.rotates = False
    assert error(velocity(model, hooks), velocity(model)) < 1e-5


def test_in_fp8_tokens_are_quantized_between_the_products(build):
    model = build("F32").to(DEVICE)
    loaded = velocity(model)
    with narrow.attached(fp8, token_linears(model).values(), torch.float32):
        expected, ours = velocity(model), velocity(model, Fused())
    assert error(ours, expected) < IN_FP8
    assert error(ours, loaded) < 0.06


@pytest.mark.parametrize("in_fp8", [False, True])
def test_loras_see_tokens_as_they_are(build, in_fp8):
    model = build("F32").to(DEVICE)
    lora = {name: low_rank(layer, 16) for name, layer in linears(model).items()}
    stack = LoraStack([lora], torch.float32).to(DEVICE)
    branches = stack.branches(model, [1.0], torch.device(DEVICE), torch.float32)
    plain = velocity(model)
    weights = token_linears(model).values() if in_fp8 else ()
    with narrow.attached(fp8, weights, torch.float32), loras_attached(model, branches):
        expected, ours = velocity(model), velocity(model, Fused())
    assert error(ours, expected) < (IN_FP8 if in_fp8 else 1e-5)
    assert error(ours, plain) > 0.05


def test_references_are_kept_with_a_token_s_heads_together(build):
    model = build("F32").to(DEVICE)
    hooks = Fused(ReferenceCache(ReferenceSettings(interval=9)))
    full = velocity(model, hooks)
    assert error(velocity(model, hooks), full) < 1e-5
    assert error(full, velocity(model)) < 1e-5
    for pair in hooks.references.kept.values():
        assert all(each.data.transpose(1, 2).is_contiguous() for each in pair)


class Narrow(Fused):
    """Attends in FP8, as a host with such attention does."""

    parts = NARROW

    def attend(self, place, q, k, v, pe, mask):
        assert q.dtype == k.dtype == v.dtype == E4M3
        return attend(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("batch", "in_fp8"), [(1, False), (2, True)])  # Triton's interpreter takes its time
def test_attention_in_fp8_takes_and_gives_it_without_scales(build, in_fp8, batch):
    model = build("F32").to(DEVICE)
    weights = token_linears(model).values() if in_fp8 else ()
    with narrow.attached(fp8, weights, torch.float32):
        expected = velocity(model, Fused(), batch)
        ours = velocity(model, Narrow(), batch)
        hooks = Narrow(ReferenceCache(ReferenceSettings(interval=9)))
        assert torch.equal(velocity(model, hooks, batch), ours)
        assert error(velocity(model, hooks, batch), ours) < IN_FP8
    assert 1e-4 < error(ours, expected) < OF_FP8


def test_the_first_block_may_be_computed_otherwise(build):
    class Both(Narrow):
        first, asked = PARTS, ()

        def attend(self, place, q, k, v, pe, mask):
            self.asked += ((place.kind, place.index, q.dtype),)
            return (super() if q.dtype == E4M3 else super(Fused, self)).attend(place, q, k, v, pe, mask)

    hooks = Both(ReferenceCache(ReferenceSettings(interval=9)))
    model = build("F32").to(DEVICE)
    full = velocity(model, hooks)
    assert [dtype for _, _, dtype in hooks.asked] == [torch.float32] + [E4M3] * (len(hooks.asked) - 1)
    assert hooks.asked[0][:2] == ("double", 0)
    assert error(velocity(model, hooks), full) < IN_FP8


def test_loras_see_what_attention_in_fp8_gives_in_the_compute_dtype(build):
    model = build("F32").to(DEVICE)
    lora = {name: low_rank(layer, 16) for name, layer in linears(model).items()}
    branches = LoraStack([lora], torch.float32).to(DEVICE).branches(model, [1.0], torch.device(DEVICE), torch.float32)
    with narrow.attached(fp8, token_linears(model).values(), torch.float32), loras_attached(model, branches):
        assert 1e-4 < error(velocity(model, Narrow()), velocity(model, Fused())) < OF_FP8


def test_heads_in_fp8_are_cut_off_at_its_largest_number():
    ids = torch.zeros(1, 5, 3, device=DEVICE)
    q, k, v = (tensor(1, 5, 128, seed=i) for i in range(3))
    v[0, 0, 0], v[0, 0, 1], weight = 1e4, -1e4, torch.full((128,), 300.0, device=DEVICE)
    made = heads([((q, k, v), weight, torch.ones_like(weight))], embed_positions(ids, (16, 56, 56)), 128, fp8=True)
    assert all(torch.isfinite(each.float()).all() for each in made)
    assert made[0].float().abs().max() == 448
    assert made[2].float()[0, 0, 0, :2].tolist() == [448, -448]
    assert error(made[1].float(), F.rms_norm(k, (128,))[:, None]) < OF_FP8
