"""LoRAs on our MODEL through ComfyUI's own sampling, against merged weights."""

import pytest
import torch
from hosted_loras import linears, with_lora
from oracle import error, k_sampler
from safetensors.torch import save_file

LIMIT = 1e-4  # of test_sampling.py: four steps in float32

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


@pytest.fixture
def model(lora_base):
    return lora_base


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
def test_a_lora_samples_as_merged_weights_do(model, lora_files, tmp_path, strength):
    ours = k_sampler(with_lora(model, lora_files["a"], strength))
    assert error(ours, k_sampler(merged(model, tmp_path, (lora_files["a"], strength)))) < LIMIT
    assert error(ours, k_sampler(model)) > 1e-2


def test_two_in_a_row_add_up_in_either_order(model, lora_files, tmp_path):
    both = with_lora(with_lora(model, lora_files["a"], 0.7), lora_files["b"], 0.4)
    expected = k_sampler(merged(model, tmp_path, (lora_files["a"], 0.7), (lora_files["b"], 0.4)))
    assert error(k_sampler(both), expected) < LIMIT
    assert error(k_sampler(with_lora(with_lora(model, lora_files["b"], 0.4), lora_files["a"], 0.7)), expected) < LIMIT


def test_the_same_lora_twice_counts_twice(model, lora_files):
    twice = with_lora(with_lora(model, lora_files["a"], 0.5), lora_files["a"], 0.5)
    assert error(k_sampler(twice), k_sampler(with_lora(model, lora_files["a"], 1.0))) < LIMIT


def test_strength_zero_and_a_lora_taken_out_again_are_the_base_bit_for_bit(model, lora_files):
    base = k_sampler(model)
    assert torch.equal(k_sampler(with_lora(model, lora_files["a"], 0.0)), base)
    changed = k_sampler(with_lora(model, lora_files["a"]))
    assert torch.equal(k_sampler(model), base)
    assert torch.equal(k_sampler(with_lora(with_lora(model, lora_files["a"]), lora_files["b"], 0.0)), changed)


def test_branches_of_a_graph_do_not_hear_of_each_other(model, lora_files):
    a, b = with_lora(model, lora_files["a"]), with_lora(model, lora_files["b"], 0.5)
    both = with_lora(a, lora_files["b"], 0.5)
    pictures = [k_sampler(each) for each in (model, a, b, both)]
    assert all(error(x, y) > 1e-2 for i, x in enumerate(pictures) for y in pictures[:i])
    for each, picture in zip((both, a, model, b, a.clone()), [pictures[i] for i in (3, 1, 0, 2, 1)], strict=True):
        assert torch.equal(k_sampler(each), picture)


def test_nodes_after_it_keep_the_lora(model, lora_files):
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    shifted = ModelSamplingFlux().patch(with_lora(model, lora_files["a"]), 1.15, 0.5, 1024, 1024)[0]
    before = with_lora(ModelSamplingFlux().patch(model, 1.15, 0.5, 1024, 1024)[0], lora_files["a"])
    assert torch.equal(k_sampler(shifted), k_sampler(before))


def test_nothing_stays_on_the_layers_after_a_run_even_an_interrupted_one(model, lora_files):
    import comfy.model_management as management

    names = model.model.state_dict().keys()
    ours = with_lora(model, lora_files["a"])
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


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_patch_of_a_bias_and_a_lora_add_up(twins, lora_files, share):
    from kontextkit.bridge.model import load

    model = load(twins.path, "float32", disable_dynamic=True)
    key = "diffusion_model.transformer.single_transformer_blocks.0.proj_out.bias"
    patched = model.clone()
    patched.add_patches({key: ("diff", (torch.full((256,), 0.3),))})
    both = with_lora(patched, lora_files["a"])
    grow, room = both.partially_load, int(share * both.model_size())
    both.partially_load = lambda device, extra=0, **more: grow(device, max(1, room) if share < 1 else extra, **more)
    changed = load(twins.path, "float32", disable_dynamic=True)
    changed.model.diffusion_model.transformer.single_transformer_blocks[0].proj_out.bias += 0.3
    assert error(k_sampler(both), k_sampler(with_lora(changed, lora_files["a"]))) < LIMIT


def test_a_changed_file_is_read_again(model, lora_files, tmp_path):
    from kontextkit.bridge import lora

    path = tmp_path / "changing.safetensors"
    path.write_bytes(lora_files["a"].read_bytes())
    first = lora.read(path, model)
    assert lora.read(path, model) is first
    path.unlink()
    path.write_bytes(lora_files["b"].read_bytes())
    assert not torch.equal(lora.read(path, model).adapters["proj_out"].up, first.adapters["proj_out"].up)


def test_a_model_of_another_loader_is_refused_in_a_sentence(twins, lora_files):
    import comfy.sd

    core = comfy.sd.load_diffusion_model(str(twins.path), model_options={"dtype": torch.float32})
    with pytest.raises(ValueError, match=r"a\.safetensors: .* another loader; .*\. Use ComfyUI's LoraLoader"):
        with_lora(core, lora_files["a"])


def test_comfyui_s_own_lora_loader_says_what_to_use(model, lora_files, monkeypatch):
    import folder_paths

    import nodes

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(lora_files["a"].parent)], {".safetensors"}))
    with pytest.raises(ValueError, match=r"would change nothing\. For a LoRA use Load Kontext LoRA"):
        nodes.LoraLoaderModelOnly().load_lora_model_only(model, "a.safetensors", 1.0)


def test_a_lora_of_the_text_encoder_alone_passes_by_the_model(model):
    assert model.clone().add_patches({"clip_l.layer.weight": ("diff", (torch.ones(1),))}) == []


def test_patchers_keep_their_kind_when_cloned(model):
    clone = model.clone()
    assert type(clone) is type(model)
    with pytest.raises(ValueError, match="Load Kontext LoRA"):
        clone.add_patches({("diffusion_model.double_blocks.0.img_attn.qkv.weight", (0, 0, 256)): (None,)})
