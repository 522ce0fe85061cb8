"""LoRAs on our MODEL through ComfyUI's own sampling, against merged weights."""

import gc
import weakref

import pytest
import torch
from flux_files import write_gguf
from kontextkit.engine.lora.branch import attached
from kontextkit.engine.quant import QuantLinear
from loras import random
from oracle import DEVICE, error, inputs, k_sampler
from safetensors.torch import load_file, save_file

LIMIT = 1e-4  # of test_sampling.py: four steps in float32

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


def linears(model):
    transformer = model.model.diffusion_model.transformer
    return {name: layer for name, layer in transformer.named_modules() if isinstance(layer, QuantLinear)}


@pytest.fixture(scope="module")
def bases(twins, tmp_path_factory):
    """{qtype: path}"""
    packed = write_gguf(tmp_path_factory.mktemp("packed") / "packed.gguf", load_file(twins.path), "Q8_0")
    return {"F32": twins.path, "Q8_0": packed}


@pytest.fixture(params=["F32", "Q8_0"])
def model(bases, request):
    import comfy.model_management as management
    from kontextkit.bridge.model import load

    yield load(bases[request.param], "float32", disable_dynamic=True)
    management.unload_all_models()


@pytest.fixture(scope="module")
def files(bases, tmp_path_factory):
    """name -> a LoRA file on all Linears, of rank 4 to 6 and scale 0.5."""
    from kontextkit.bridge.model import load

    folder, layers = tmp_path_factory.mktemp("loras"), linears(load(bases["F32"], "float32"))

    def write(name):
        seed, tensors = ord(name), {}
        for i, (linear, layer) in enumerate(layers.items()):
            rank = 4 + i % 3
            tensors[f"transformer.{linear}.lora_A.weight"] = random(rank, layer.in_features, seed=seed + i) * 0.05
            tensors[f"transformer.{linear}.lora_B.weight"] = random(layer.out_features, rank, seed=seed - i) * 0.05
            tensors[f"transformer.{linear}.alpha"] = torch.tensor(rank / 2)
        save_file(tensors, folder / f"{name}.safetensors")
        return folder / f"{name}.safetensors"

    return {name: write(name) for name in "ab"}


def with_lora(model, path, strength=1.0):
    from kontextkit.bridge import lora

    return lora.apply(model, lora.read(path, model), strength)


def merged(model, tmp_path, *loras):
    """A MODEL of dense weights into which (path, strength) were merged."""
    from kontextkit.bridge import lora
    from kontextkit.bridge.model import load

    transformer = model.model.diffusion_model.transformer
    tensors = {name: tensor.cpu().clone() for name, tensor in transformer.state_dict().items()}
    for name, layer in linears(model).items():
        weight = layer.decode(layer.weight, torch.float32).cpu().clone()
        for path, strength in loras:
            weight += strength * lora.read(path, model).adapters[name].delta()
        tensors[f"{name}.weight"] = weight
    save_file(tensors, tmp_path / "merged.safetensors")
    return load(tmp_path / "merged.safetensors", "float32", disable_dynamic=True)


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_a_lora_samples_as_merged_weights_do(model, files, tmp_path, strength):
    ours = k_sampler(with_lora(model, files["a"], strength))
    assert error(ours, k_sampler(merged(model, tmp_path, (files["a"], strength)))) < LIMIT
    assert error(ours, k_sampler(model)) > 1e-2


def test_two_in_a_row_add_up_in_either_order(model, files, tmp_path):
    both = with_lora(with_lora(model, files["a"], 0.7), files["b"], 0.4)
    expected = k_sampler(merged(model, tmp_path, (files["a"], 0.7), (files["b"], 0.4)))
    assert error(k_sampler(both), expected) < LIMIT
    assert error(k_sampler(with_lora(with_lora(model, files["b"], 0.4), files["a"], 0.7)), expected) < LIMIT


def test_the_same_lora_twice_counts_twice(model, files):
    twice = with_lora(with_lora(model, files["a"], 0.5), files["a"], 0.5)
    assert error(k_sampler(twice), k_sampler(with_lora(model, files["a"], 1.0))) < LIMIT


def test_strength_zero_and_a_lora_taken_out_again_are_the_base_bit_for_bit(model, files):
    base = k_sampler(model)
    assert torch.equal(k_sampler(with_lora(model, files["a"], 0.0)), base)
    changed = k_sampler(with_lora(model, files["a"]))
    assert torch.equal(k_sampler(model), base)
    assert torch.equal(k_sampler(with_lora(with_lora(model, files["a"]), files["b"], 0.0)), changed)


def test_branches_of_a_graph_do_not_hear_of_each_other(model, files):
    a, b = with_lora(model, files["a"]), with_lora(model, files["b"], 0.5)
    both = with_lora(a, files["b"], 0.5)
    pictures = [k_sampler(each) for each in (model, a, b, both)]
    assert all(error(x, y) > 1e-2 for i, x in enumerate(pictures) for y in pictures[:i])
    for each, picture in zip((both, a, model, b, a.clone()), [pictures[i] for i in (3, 1, 0, 2, 1)], strict=True):
        assert torch.equal(k_sampler(each), picture)


def test_nodes_after_it_keep_the_lora(model, files):
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    shifted = ModelSamplingFlux().patch(with_lora(model, files["a"]), 1.15, 0.5, 1024, 1024)[0]
    before = with_lora(ModelSamplingFlux().patch(model, 1.15, 0.5, 1024, 1024)[0], files["a"])
    assert torch.equal(k_sampler(shifted), k_sampler(before))


def test_nothing_stays_on_the_layers_after_a_run_even_an_interrupted_one(model, files):
    import comfy.model_management as management

    names = model.model.state_dict().keys()
    ours = with_lora(model, files["a"])
    seen = []

    def stop(args, extra):
        seen.append(sum(layer.branch is not None for layer in linears(model).values()))
        seen.append(model.model.state_dict().keys() == names)
        management.interrupt_current_processing(True)
        return extra["original_block"](args)

    ours.set_model_patch_replace(stop, "dit", "double_block", 0)
    with pytest.raises(management.InterruptProcessingException):
        k_sampler(ours)
    assert seen == [len(linears(model)), True]
    assert all(layer.branch is None for layer in linears(model).values())


def test_comfyui_counts_and_unloads_the_factors(model, files):
    import comfy.model_management as management

    ours = with_lora(model, files["a"])
    expected = k_sampler(ours)
    stacks = [
        entry.model for entry in management.current_loaded_models if type(entry.model.model).__name__ == "LoraStack"
    ]
    n_parameters = sum(16 * (layer.in_features + layer.out_features) for layer in linears(model).values())
    assert [stack.model_size() for stack in stacks] == [4 * n_parameters]
    management.unload_all_models()
    assert not management.current_loaded_models
    assert torch.equal(k_sampler(ours), expected)


@pytest.fixture
def on_the_layers(files):
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
def test_factors_left_on_the_host_are_brought_over_for_each_product(model, files, share, on_the_layers):
    ours = with_lora(model, files["a"])
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


def test_matrices_from_the_host_come_one_module_at_a_time(model, files, on_the_layers, monkeypatch):
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

    ours = with_lora(with_lora(model, files["a"]), files["b"])
    k_sampler(ours)
    _, (transformer, branches) = on_the_layers(ours, 0.0)
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", hold)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", let_go)
    with attached(transformer, branches):
        ours.model.diffusion_model(**inputs())
    assert len(most) == 2 * len(linears(model))
    assert max(most) == 1
    assert not held


def test_dynamic_vram_is_asked_for_a_block_with_its_factors(model, files, on_the_layers):
    from kontextkit.bridge.prefetch import Group

    ours = with_lora(model, files["a"])
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


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_patch_of_a_bias_and_a_lora_add_up(twins, files, share):
    from kontextkit.bridge.model import load

    model = load(twins.path, "float32", disable_dynamic=True)
    key = "diffusion_model.transformer.single_transformer_blocks.0.proj_out.bias"
    patched = model.clone()
    patched.add_patches({key: ("diff", (torch.full((256,), 0.3),))})
    both = with_lora(patched, files["a"])
    grow, room = both.partially_load, int(share * both.model_size())
    both.partially_load = lambda device, extra=0, **more: grow(device, max(1, room) if share < 1 else extra, **more)
    changed = load(twins.path, "float32", disable_dynamic=True)
    changed.model.diffusion_model.transformer.single_transformer_blocks[0].proj_out.bias += 0.3
    assert error(k_sampler(both), k_sampler(with_lora(changed, files["a"]))) < LIMIT


def test_another_strength_and_the_lora_before_read_and_move_nothing(model, files, monkeypatch):
    from kontextkit.bridge import lora
    from kontextkit.engine.lora import stack

    a, b = with_lora(model, files["a"]), with_lora(model, files["b"])
    first = k_sampler(a)
    k_sampler(b)
    monkeypatch.setattr(lora, "read_lora", None)
    monkeypatch.setattr(stack, "stack", None)
    assert torch.equal(k_sampler(with_lora(model, files["a"])), first)
    assert error(k_sampler(with_lora(model, files["a"], 0.2)), first) > 1e-3


def test_what_nobody_holds_is_freed_but_for_the_last_two(model, files):
    import comfy.model_management as management
    from kontextkit.bridge import lora

    stacks = []
    for strength, name in ((1.0, "a"), (1.0, "b")):
        ours = with_lora(with_lora(model, files[name], strength), files["a"], 0.5)
        k_sampler(ours)
        (patcher,) = ours.get_additional_models()
        stacks.append(weakref.ref(patcher.model))
        del patcher, ours
    k_sampler(with_lora(model, files["a"]))
    management.unload_all_models()
    gc.collect()
    assert [stack() is None for stack in stacks] == [True, False]
    assert len(lora._stacks.kept) == lora.N_STACKS


def test_a_changed_file_is_read_again(model, files, tmp_path):
    from kontextkit.bridge import lora

    path = tmp_path / "changing.safetensors"
    path.write_bytes(files["a"].read_bytes())
    first = lora.read(path, model)
    assert lora.read(path, model) is first
    path.unlink()
    path.write_bytes(files["b"].read_bytes())
    assert not torch.equal(lora.read(path, model).adapters["proj_out"].up, first.adapters["proj_out"].up)


def test_a_model_of_another_loader_is_refused_in_a_sentence(twins, files):
    import comfy.sd

    core = comfy.sd.load_diffusion_model(str(twins.path), model_options={"dtype": torch.float32})
    with pytest.raises(ValueError, match=r"a\.safetensors: .* another loader; .*\. Use ComfyUI's LoraLoader"):
        with_lora(core, files["a"])


def test_comfyui_s_own_lora_loader_says_what_to_use(model, files, monkeypatch):
    import folder_paths

    import nodes

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(files["a"].parent)], {".safetensors"}))
    with pytest.raises(ValueError, match=r"would change nothing\. For a LoRA use Load Kontext LoRA"):
        nodes.LoraLoaderModelOnly().load_lora_model_only(model, "a.safetensors", 1.0)


def test_a_lora_of_the_text_encoder_alone_passes_by_the_model(model):
    assert model.clone().add_patches({"clip_l.layer.weight": ("diff", (torch.ones(1),))}) == []


def test_patchers_keep_their_kind_when_cloned(model):
    clone = model.clone()
    assert type(clone) is type(model)
    with pytest.raises(ValueError, match="Load Kontext LoRA"):
        clone.add_patches({("diffusion_model.double_blocks.0.img_attn.qkv.weight", (0, 0, 256)): (None,)})
