"""FP8 products against float64 arithmetic on the same rounded numbers; how they come onto the Linears and go."""

import pytest
import torch
from kontextkit.engine.flux.blocks import Parts, token_linears
from kontextkit.engine.flux.hooks import BlockHooks
from kontextkit.engine.lora.branch import attached as loras_attached
from kontextkit.engine.lora.stack import LoraStack
from kontextkit.engine.quant import PackedTensor, QuantLinear, fp8, narrow
from loras import CPU, KINDS, error, linears, low_rank, merged, random, velocity
from packed_blocks import random_blocks

KIND = torch.float8_e4m3fn
CARD = pytest.param("cuda", marks=pytest.mark.gpu)


def rounded(x):
    """Rows as the nearest of e4m3's numbers times their scale, in float64; by its definition, not torch's cast."""
    scale = x.double().abs().amax(dim=1, keepdim=True) / 448
    y = x.double() / scale.where(scale > 0, 1)
    step = torch.exp2(y.abs().clamp_min(2**-6).log2().floor() - 3)  # 3 bits of mantissa, subnormal below 2^-6
    return (y / step).round() * step * scale


def linear_of(qtype, n_out=48, n_in=256):
    bias = random(n_out, seed=5)
    packed_bias = PackedTensor(bias, "F32", (n_out,))
    if qtype == "BF16":
        return QuantLinear(PackedTensor(random(n_out, n_in, seed=1).bfloat16(), qtype, (n_out, n_in)), packed_bias)
    if qtype == "F8_E4M3":
        packed = PackedTensor(random(n_out, n_in, seed=1).to(KIND), qtype, (n_out, n_in), torch.tensor(0.03))
        return QuantLinear(packed, packed_bias)
    data = torch.from_numpy(random_blocks(qtype, n_out * n_in // 256, seed=3, spread=0.01).reshape(n_out, -1))
    return QuantLinear(PackedTensor(data, qtype, (n_out, n_in)), packed_bias)


@pytest.mark.parametrize("qtype", ["BF16", "F8_E4M3", "Q4_K"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", [fp8.PART, 5 * 256], ids=["whole", "in parts"])
def test_a_product_is_that_of_the_rounded_rows(qtype, dtype, part, monkeypatch):
    monkeypatch.setattr(fp8, "PART", part)
    linear, x = linear_of(qtype), random(2, 5, 256, seed=2).to(dtype)
    weight = linear.decode(linear.weight, torch.float32)
    right = weight.double() if qtype == "F8_E4M3" else rounded(weight)  # such a file's numbers are taken as they are
    expected = rounded(x.flatten(0, 1)) @ right.T + linear.bias.to(dtype).double()
    loaded = linear(x)
    with narrow.attached(fp8, [linear], dtype):
        ours = linear(x)
    assert ours.dtype == dtype
    assert ours.shape == (2, 5, 48)
    assert error(ours.flatten(0, 1).double(), expected) < (1e-6 if dtype == torch.float32 else 5e-3)
    assert 1e-3 < error(ours.float(), loaded.float()) < 0.05
    assert linear.narrow is None


@pytest.mark.parametrize("device", ["cpu", CARD])
def test_rows_of_zeros_large_and_small_numbers_lose_nothing(device):
    x = torch.diag(torch.tensor([0.0, 1e30, 1e-30, 448.0])).repeat_interleave(16, 1).to(device)
    data, scale = fp8.quantize(x)
    assert error(data.float() * scale, x) < 1e-6
    assert (data[0].float() == 0).all()
    assert torch.isfinite(scale).all()
    assert torch.isnan(fp8.quantize(torch.full((1, 16), float("nan"), device=device))[0].float()).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_card_gives_the_emulation_s_numbers(dtype, compiled):
    device = torch.device("cuda", 0)
    if reason := fp8.why_not(device):
        pytest.skip(reason)
    linear, x = linear_of("Q4_K", n_out=512), random(3, 77, 256, seed=2).to(dtype)
    with narrow.attached(fp8, [linear], dtype):
        expected = linear(x).float()
    ours = linear.to(device)
    with narrow.attached(fp8, [ours], dtype):
        run = torch.compile(ours, fullgraph=True, dynamic=True) if compiled else ours
        assert error(run(x.to(device)).float().cpu(), expected) < 5e-3


def test_without_such_a_card_a_sentence_says_so(monkeypatch):
    assert fp8.why_not(CPU) == "FP8 products need an NVIDIA card of the 40 series (Ada), Hopper or newer"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    old, new = torch.device("cuda", 5), torch.device("cuda", 6)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6) if device == old else (9, 0))
    assert fp8.why_not(old) == "FP8 products need a card of compute capability 8.9, this one has 8.6"

    def fail(*args, **more):
        raise RuntimeError("Rowwise scaling is not currently supported on your device\nmore")

    monkeypatch.setattr(torch, "ones", fail)  # the first thing that is done on the card
    expected = (
        "this torch has no FP8 products for this card (Rowwise scaling is not currently supported on your device)"
    )
    assert fp8.why_not(new) == expected
    fp8.why_not.cache_clear()


# in the model


@pytest.mark.parametrize("qtype", ["F32", "Q8_0"])
def test_a_forward_is_near_the_one_as_loaded_and_that_of_rounded_products(build, qtype):
    """The expected one by hooks on every token Linear, which round what comes in and multiply in float64."""
    model = build(qtype)
    loaded = velocity(model)
    chosen = token_linears(model)
    with narrow.attached(fp8, chosen.values(), torch.float32):
        ours = velocity(model)
    assert 1e-4 < error(ours, loaded) < 0.03
    assert torch.equal(velocity(model), loaded)

    def product(linear, x):
        weight = linear.decode(linear.weight, torch.float32)
        y = rounded(x.reshape(-1, x.shape[-1])) @ rounded(weight).T + linear.bias.double()
        return y.float().view(*x.shape[:-1], -1)

    handles = [each.register_forward_hook(lambda m, args, _: product(m, args[0])) for each in chosen.values()]
    expected = velocity(model)
    for handle in handles:
        handle.remove()
    assert error(ours, expected) < error(ours, loaded) / 10


def test_all_linears_of_tokens_and_no_others_are_in_fp8(build):
    model = build("F32")
    of_blocks = {name for name in linears(model) if "blocks." in name}
    assert {name.split(".")[2] for name in of_blocks - token_linears(model).keys()} == {
        "norm",
        "norm1",
        "norm1_context",
    }
    assert token_linears(model).keys() < of_blocks
    assert len(token_linears(model)) == 2 * 12 + 3 * 5


def test_the_forecast_is_what_is_made():
    for qtype in ("BF16", "F8_E4M3", "Q4_K"):
        linear = linear_of(qtype)
        with narrow.attached(fp8, [linear], torch.float32):
            made = 0 if linear.narrow.data.data_ptr() == linear.weight.data_ptr() else linear.narrow.data.nbytes
        assert fp8.n_bytes([linear]) == made == (0 if qtype == "F8_E4M3" else 48 * 256)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_beside_it_stays_in_the_compute_dtype(kind):
    """The base in FP8, scaled as DoRA scales it, and the adapter's own part exact."""
    model = torch.nn.Sequential(linear_of("BF16", n_out=128))
    linear, x = model[0], random(9, 256, seed=2)
    base = linear.weight.mul_(0.05).float()
    adapter = KINDS[kind](linear)
    stack = LoraStack([{"0": adapter}], torch.float32)
    expected = x @ merged(base, adapter, 1.0).T + linear.bias
    plain = x @ base.T + linear.bias
    for order in (0, 1):
        weights = narrow.attached(fp8, [linear], torch.float32)
        branches = loras_attached(model, stack.branches(model, [1.0], CPU, torch.float32))
        first, second = (weights, branches) if order else (branches, weights)
        with first, second:
            ours = model(x)
        assert error(ours, expected) < 0.05 < error(plain, expected)
        if kind == "low rank":  # nothing scales the base, so what is added to it can be told from it
            with narrow.attached(fp8, [linear], torch.float32):
                alone = model(x)
            assert error(ours - alone, expected - plain) < 1e-5
        assert linear.narrow is None
        assert linear.branch is None


def test_an_error_while_weights_are_made_leaves_none(monkeypatch):
    some, convert = [linear_of("BF16") for _ in range(3)], fp8.convert

    def fail_at_last(linear, dtype):
        if linear is some[2]:
            raise torch.OutOfMemoryError("full")
        return convert(linear, dtype)

    monkeypatch.setattr(fp8, "convert", fail_at_last)
    with pytest.raises(torch.OutOfMemoryError, match="full"), narrow.attached(fp8, some, torch.float32):
        pass
    assert [each.narrow for each in some] == [None] * 3


def test_one_within_another_leaves_the_outer_s_weights():
    linear = linear_of("BF16")
    with narrow.attached(fp8, [linear], torch.float32):
        kept = linear.narrow
        with narrow.attached(fp8, [linear], torch.float32):
            assert linear.narrow is kept
        assert linear.narrow is kept


class Counting(BlockHooks):
    """Compiles each piece in one graph with a backend that counts graphs and runs them as they are."""

    rotates = True

    def __init__(self):
        self.n_graphs = 0
        torch._dynamo.reset()
        options = {"backend": self.count, "dynamic": True, "fullgraph": True}
        self.parts = Parts(**{name: torch.compile(piece, **options) for name, piece in vars(Parts()).items()})

    def count(self, graph, inputs):
        self.n_graphs += 1
        return graph.forward


def test_runs_take_one_more_set_of_graphs_together_and_a_lora_another(build):
    model, hooks = build("Q8_0"), Counting()
    lora = {name: low_rank(layer, 16) for name, layer in linears(model).items()}

    def new_graphs(in_fp8, loras=()):
        before = hooks.n_graphs
        stack = LoraStack(list(loras), torch.float32)
        weights = token_linears(model).values() if in_fp8 else ()
        with (
            narrow.attached(fp8, weights, torch.float32),
            loras_attached(model, stack.branches(model, [1.0] * len(loras), CPU, torch.float32)),
        ):
            assert error(velocity(model, hooks), velocity(model)) < 2e-3
        return hooks.n_graphs - before

    assert new_graphs(False) == 4
    assert new_graphs(True) == 4
    assert [new_graphs(in_fp8) for in_fp8 in (True, False, True)] == [0, 0, 0]
    assert new_graphs(True, [lora]) <= 4
    assert [new_graphs(True, [lora]), new_graphs(True), new_graphs(False)] == [0, 0, 0]
    torch._dynamo.reset()
