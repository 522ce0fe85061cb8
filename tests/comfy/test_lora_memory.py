"""The factors of LoRAs under ComfyUI's memory management."""

import gc
import weakref

import pytest
import torch
from hosted_loras import linears, with_lora
from kontextkit.engine.lora.branch import attached
from kontextkit.engine.lora.stack import LoraStack
from kontextkit.engine.quant import QuantLinear
from oracle import DEVICE, error, inputs, k_sampler

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


@pytest.fixture
def model(lora_base):
    return lora_base


def test_comfyui_counts_and_unloads_the_factors(model, lora_files):
    import comfy.model_management as management

    management.unload_all_models()
    ours = with_lora(model, lora_files["a"])
    expected = k_sampler(ours)
    stacks = [entry.model for entry in management.current_loaded_models if isinstance(entry.model.model, LoraStack)]
    n_parameters = sum(16 * (layer.in_features + layer.out_features) for layer in linears(model).values())
    assert [stack.model_size() for stack in stacks] == [4 * n_parameters]
    management.unload_all_models()
    assert not management.current_loaded_models
    assert torch.equal(k_sampler(ours), expected)


@pytest.fixture
def on_the_layers(lora_files):
    """MODEL, share -> its stack and what `attached` takes; of both, that share is moved and the rest is not."""
    from kontextkit.bridge.lora import applied

    def load(ours, share):
        (stack,) = ours.get_additional_models()
        for patcher in (stack, ours):
            patcher.detach()
            patcher.load(torch.device(DEVICE), lowvram_model_memory=max(1, int(patcher.model_size() * share)))
        transformer = ours.model.diffusion_model.transformer
        strengths = [each.strength for each in applied(ours)]
        branches = stack.model.branches(transformer, strengths, torch.device(DEVICE), torch.float32)
        return stack, (transformer, branches)

    return load


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_factors_left_on_the_host_are_brought_over_for_each_product(model, lora_files, share, on_the_layers):
    ours = with_lora(model, lora_files["a"])
    expected = k_sampler(ours)
    stack, (transformer, branches) = on_the_layers(ours, share)
    waiting = [factors.comfy_cast_weights for factors in stack.model.factors]
    assert any(waiting)
    assert all(waiting) == (share == 0)
    call = inputs(references=[(8, 6)])
    with attached(transformer, branches):
        offloaded = ours.model.diffusion_model(**call)
        for patcher in (stack, ours):
            patcher.detach()
            patcher.model.to(DEVICE)
        assert error(offloaded, ours.model.diffusion_model(**call)) < 1e-6
    for patcher in (stack, ours):
        patcher.model.to("cpu")
    assert torch.equal(k_sampler(ours), expected)


def test_matrices_from_the_host_come_one_module_at_a_time(model, lora_files, on_the_layers, monkeypatch):
    """ComfyUI has two buffers for them; a third module's would be written over the first one's."""
    import comfy.ops

    held, most = set(), []
    cast, uncast = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight

    def hold(module, *rest, **more):
        held.add(module)
        most.append(len(held))
        return cast(module, *rest, **more)

    def let_go(module, *rest):
        held.remove(module)
        return uncast(module, *rest)

    ours = with_lora(with_lora(model, lora_files["a"]), lora_files["b"])
    k_sampler(ours)
    _, (transformer, branches) = on_the_layers(ours, 0.0)
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", hold)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", let_go)
    with attached(transformer, branches):
        ours.model.diffusion_model(**inputs())
    assert len(most) == 2 * len(linears(model))
    assert max(most) == 1
    assert not held


def test_dynamic_vram_is_asked_for_a_block_with_its_factors(model, lora_files, on_the_layers):
    from kontextkit.bridge.prefetch import Group

    ours = with_lora(model, lora_files["a"])
    k_sampler(ours)
    stack, (transformer, branches) = on_the_layers(ours, 1.0)
    block = transformer.transformer_blocks[0]
    own = list(block.modules())
    assert list(Group(block).modules()) == own
    with attached(transformer, branches):
        asked = list(Group(block).modules())
    beside = [module for module in asked if module not in own]
    assert len(beside) == sum(isinstance(module, QuantLinear) for module in own)
    assert all(module in list(stack.model.factors) for module in beside)


def test_another_strength_and_the_lora_before_read_and_move_nothing(model, lora_files, monkeypatch):
    from kontextkit.bridge import lora
    from kontextkit.engine.lora import stack

    a, b = with_lora(model, lora_files["a"]), with_lora(model, lora_files["b"])
    first = k_sampler(a)
    k_sampler(b)
    monkeypatch.setattr(lora, "read_lora", None)
    monkeypatch.setattr(stack, "stack", None)
    assert torch.equal(k_sampler(with_lora(model, lora_files["a"])), first)
    assert error(k_sampler(with_lora(model, lora_files["a"], 0.2)), first) > 1e-3


def test_what_nobody_holds_is_freed_but_for_the_last_two(model, lora_files):
    import comfy.model_management as management
    from kontextkit.bridge import lora

    stacks = []
    for strength, name in ((1.0, "a"), (1.0, "b")):
        ours = with_lora(with_lora(model, lora_files[name], strength), lora_files["a"], 0.5)
        k_sampler(ours)
        (patcher,) = ours.get_additional_models()
        stacks.append(weakref.ref(patcher.model))
        del patcher, ours
    k_sampler(with_lora(model, lora_files["a"]))
    management.unload_all_models()
    gc.collect()
    assert [stack() is None for stack in stacks] == [True, False]
    assert len(lora._stacks.kept) == lora.N_STACKS
