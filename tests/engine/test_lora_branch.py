"""LoRAs beside the base weights, against weights merged by hand in float32 and against peft."""

import pytest
import torch
from kontextkit.engine.lora.adapters import LowRank
from kontextkit.engine.lora.branch import attached
from kontextkit.engine.lora.factors import BUCKETS, bucket
from kontextkit.engine.lora.stack import LoraStack
from kontextkit.engine.quant import PackedTensor, QuantLinear
from loras import CPU, KINDS, error, linears, low_rank, merged, random, velocity, with_loras

LIMIT = 1e-5


def with_merged(transformer, loras, strengths):
    """The velocity of dense weights that hold the LoRAs, each taken from the base weight."""
    for name, layer in linears(transformer).items():
        base = layer.decode(layer.weight, torch.float32)
        weight = base.clone()
        for lora, strength in zip(loras, strengths, strict=True):
            if name in lora:
                weight += merged(base, lora[name], strength) - base
        bias = None if layer.bias is None else PackedTensor(layer.bias.data, "F32", tuple(layer.bias.shape))
        transformer.set_submodule(name, QuantLinear(PackedTensor(weight, "F32", tuple(weight.shape)), bias))
    return velocity(transformer)


@pytest.mark.parametrize("qtype", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("strength", [1.0, -0.6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_on_all_linears_is_the_merged_model(build, kind, strength, qtype):
    model = build(qtype)
    base = velocity(model)
    lora = {name: KINDS[kind](layer) for name, layer in linears(model).items()}
    ours = with_loras(model, [lora], [strength])
    assert error(ours, base) > 1e-2
    assert error(ours, with_merged(model, [lora], [strength])) < LIMIT


def test_several_loras_of_all_kinds_add_up(build):
    model = build("Q8_0")
    layers = linears(model)
    loras = [
        {name: make(layer, seed=seed) for name, layer in layers.items()} for seed, make in enumerate(KINDS.values())
    ]
    loras.append({name: low_rank(layer, rank=7, seed=9) for name, layer in list(layers.items())[::2]})
    strengths = [0.7, 0.5, 0.4, -1.0, 0.8, 1.3]
    assert error(with_loras(model, loras, strengths), with_merged(model, loras, strengths)) < LIMIT


def test_a_single_linear_in_k_quants():
    from packed_blocks import random_blocks

    packed = torch.from_numpy(random_blocks("Q4_K", 32, seed=3, spread=0.01).reshape(32, -1))
    layer = QuantLinear(PackedTensor(packed, "Q4_K", (32, 256)))
    x = random(3, 5, 256, seed=1)
    for make in KINDS.values():
        adapter = make(layer)
        model = torch.nn.Sequential(layer)
        expected = x @ merged(layer.decode(layer.weight, torch.float32), adapter, 0.8).T
        assert error(with_loras(model, [{"0": adapter}], [0.8], lambda model: model(x)), expected) < LIMIT


@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_computes_the_same(use_dora):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(48, 40))
    weight, bias = base[0].weight.detach().clone(), base[0].bias.detach().clone()
    config = peft.LoraConfig(r=6, lora_alpha=9, target_modules=["0"], use_dora=use_dora)
    theirs = peft.get_peft_model(base, config)
    layer = theirs.base_model.model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    magnitude = None
    if use_dora:
        magnitude = layer.lora_magnitude_vector["default"].weight.detach()
        magnitude.mul_(1 + 0.3 * torch.rand(40))
    adapter = LowRank(layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach(), 1.5, magnitude)
    ours = torch.nn.Sequential(
        QuantLinear(PackedTensor(weight, "F32", (40, 48)), PackedTensor(bias, "F32", (40,))),
    )
    x = random(7, 48, seed=1)
    expected = theirs(x).detach()
    assert error(with_loras(ours, [{"0": adapter}], [1.0], lambda model: model(x)), expected) < LIMIT


def test_afterwards_the_base_is_bit_exact_even_after_an_error(build):
    model = build("Q8_0")
    lora = {name: low_rank(layer) for name, layer in linears(model).items()}
    keys, base = model.state_dict().keys(), velocity(model)
    first = with_loras(model, [lora], [1.0])
    assert torch.equal(velocity(model), base)
    with pytest.raises(KeyError):
        with_loras(model, [lora], [1.0], lambda model: {}["no"])
    assert torch.equal(velocity(model), base)
    assert model.state_dict().keys() == keys
    assert torch.equal(with_loras(model, [lora], [1.0]), first)


def test_while_attached_the_model_s_own_modules_and_weights_are_the_same(build):
    model = build("F32")
    lora = {name: low_rank(layer) for name, layer in linears(model).items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def compare(model):
        velocity(model)
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    with_loras(model, [lora], [1.0], compare)


def test_one_may_be_attached_inside_another(build):
    model = build("F32")
    a, b = ({name: low_rank(layer, seed=seed) for name, layer in linears(model).items()} for seed in (1, 2))
    alone = with_loras(model, [a], [1.0])

    def inner_then_outer(model):
        with_loras(model, [b], [1.0])
        return velocity(model)

    assert torch.equal(with_loras(model, [a], [1.0], inner_then_outer), alone)


def test_ranks_are_filled_up_to_few_sizes_and_a_rank_that_fits_is_not_copied():
    assert [bucket(rank) for rank in (1, 16, 17, 64, 65, 1025, 2048)] == [16, 16, 32, 64, 128, 2048, 2048]
    assert all(bucket(size) == size for size in BUCKETS)
    adapter = LowRank(random(32, 48, seed=1), random(40, 32, seed=2), 1.0)
    (factors,) = LoraStack([{"0": adapter}], torch.float32).factors
    assert factors.weight.data_ptr() == adapter.down.data_ptr()
    assert factors.bias.data_ptr() == adapter.up.data_ptr()


def test_gradients_pass_to_the_input(build):
    layer = linears(build("F32"))["proj_out"]
    adapter = low_rank(layer)
    x = random(3, layer.in_features, seed=1).requires_grad_()
    with_loras(torch.nn.Sequential(layer), [{"0": adapter}], [1.0], lambda model: model(x).sum().backward())
    expected = merged(layer.weight, adapter, 1.0).sum(dim=0)
    assert error(x.grad, expected.expand_as(x.grad)) < LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_merged_weights_are(dtype):
    torch.manual_seed(0)
    weight, x = torch.randn(256, 512) / 20, torch.randn(64, 512)
    adapter = LowRank(torch.randn(16, 512) / 20, torch.randn(256, 16) / 10, 0.8)
    exact = x.to(dtype).double() @ merged(weight, adapter, 0.9).double().T
    model = torch.nn.Sequential(QuantLinear(PackedTensor(weight.to(dtype), "BF16", (256, 512))))
    stack = LoraStack([{"0": adapter}], dtype)
    with torch.no_grad(), attached(model, stack.branches(model, [0.9], CPU, dtype)):
        ours = model(x.to(dtype))
    theirs = x.to(dtype) @ merged(weight, adapter, 0.9).to(dtype).T
    assert ours.dtype == dtype
    assert error(ours, exact) < 1.5 * error(theirs, exact)
