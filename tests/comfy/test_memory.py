"""Our MODEL under ComfyUI's memory management."""

import gc
import inspect
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from flux_files import write_gguf
from kontextkit.devtools.flux_shapes import bfl_shapes
from oracle import DEVICE, error, inputs, k_sampler
from safetensors.torch import save_file

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture
def model(twins):
    from kontextkit.bridge.model import load

    return load(twins.path, "float32")


def test_unloading_and_loading_again_gives_the_same_picture(model):
    import comfy.model_management as management

    first = k_sampler(model)
    assert any(entry.model is not None and entry.model.is_clone(model) for entry in management.current_loaded_models)
    management.unload_all_models()
    assert not any(e.model is not None and e.model.is_clone(model) for e in management.current_loaded_models)
    assert torch.equal(k_sampler(model), first)


def test_a_model_that_nobody_holds_is_freed(twins):
    import comfy.model_management as management
    from kontextkit.bridge.model import load

    patcher = load(twins.path, "float32")
    k_sampler(patcher)
    transformer = weakref.ref(patcher.model.diffusion_model.transformer)
    management.unload_all_models()
    del patcher
    gc.collect()
    assert transformer() is None


def test_clones_share_weights_and_nothing_else(model):
    clone = model.clone()
    assert clone.model is model.model
    assert clone.is_clone(model)
    clone.set_model_patch_replace(
        lambda args, extra: {"img": args["img"] * 0, "txt": args["txt"]}, "dit", "double_block", 0
    )
    plain, changed = k_sampler(model), k_sampler(clone)
    assert error(changed, plain) > 1e-3
    assert torch.equal(k_sampler(model), plain)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_weights_left_on_the_host_are_brought_over_for_each_product(twins, share, gguf_twin):
    """ComfyUI's low-VRAM loading, which marks layers instead of moving them."""
    from kontextkit.bridge.model import load

    for path in (twins.path, gguf_twin):
        patcher = load(path, "float32", disable_dynamic=True)
        expected = k_sampler(patcher)
        patcher.detach()
        patcher.load(torch.device(DEVICE), lowvram_model_memory=max(1, int(patcher.model_size() * share)))
        linears = [m for m in patcher.model.modules() if hasattr(m, "qtype")]
        assert any(m.comfy_cast_weights for m in linears)
        x = torch.randn(3, linears[4].in_features, device=DEVICE)
        assert torch.isfinite(linears[4](x)).all()
        with torch.no_grad():
            call = inputs(references=[(8, 6)])
            offloaded = patcher.model.diffusion_model(**call)
            patcher.detach()
            patcher.model.to(DEVICE)
            assert error(offloaded, patcher.model.diffusion_model(**call)) < 1e-6
        patcher.model.to("cpu")
        assert torch.equal(k_sampler(patcher), expected)


@pytest.fixture
def gguf_twin(twins, tmp_path):
    """The twins' weights as Q8_0."""
    from safetensors.torch import load_file

    return write_gguf(tmp_path / "twin.gguf", load_file(twins.path), "Q8_0")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.newest
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_loading_maps_the_file_and_copies_next_to_nothing(comfyui, tmp_path, kind):
    """In a process of its own: memory that is not the mapped file, before and after."""
    tensors = {name: torch.zeros(shape).bfloat16() for name, shape in bfl_shapes(1024, 64, 64, 2, 4).items()}
    path = tmp_path / f"model.{kind}"
    save_file(tensors, path) if kind == "safetensors" else write_gguf(path, tensors, "BF16")
    del tensors
    script = f"""
import sys
sys.path[:0] = [{str(SUPPORT)!r}, {str(comfyui)!r}]
import memory_of_a_load
memory_of_a_load.main({str(path)!r})
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    copied = int(result.stdout.split()[-1])
    assert copied < 0.15 * path.stat().st_size


def test_the_size_that_comfyui_sees_is_that_of_the_packed_weights(gguf_twin, twins):
    from kontextkit.bridge.model import load

    packed, plain = load(gguf_twin).model_size(), load(twins.path).model_size()
    assert packed == pytest.approx(plain * 34 / 32 / 4, rel=0.02)


def test_q8_0_samples_near_the_full_weights(gguf_twin, model):
    from kontextkit.bridge.model import load

    assert error(k_sampler(load(gguf_twin, "float32")), k_sampler(model)) < 0.02


def test_a_patcher_without_dynamic_vram_can_be_made(model):
    make, arguments = model.cached_patcher_init
    made = make(*arguments, disable_dynamic=True)
    assert made.model.get_dtype_inference() == model.model.get_dtype_inference() == torch.float32
    assert torch.equal(k_sampler(made), k_sampler(model))


def test_patching_packed_weights_is_refused_in_a_sentence(gguf_twin):
    """A LoRA or merge aimed at packed weights would change bytes, not weights."""
    from kontextkit.bridge.model import load

    patcher = load(gguf_twin, "float32")
    key = "diffusion_model.transformer.single_transformer_blocks.0.proj_out.weight"
    assert patcher.add_patches({key: ("diff", (torch.ones(256, 1280),))}) == [key]
    with pytest.raises(ValueError, match=r"stored as Q8_0, which ComfyUI's patches cannot change\. Remove that node"):
        k_sampler(patcher)


def test_a_patch_that_dynamic_vram_attaches_to_packed_weights_is_refused_too(gguf_twin):
    from kontextkit.bridge.model import load

    layer = load(gguf_twin, "float32").model.diffusion_model.transformer.single_transformer_blocks[0].proj_out
    layer.comfy_cast_weights, layer.weight_lowvram_function = True, lambda weight: weight
    with pytest.raises(ValueError, match=r"stored as Q8_0, which ComfyUI's patches cannot change"):
        layer(torch.randn(2, 1280))


def test_patching_plain_weights_works_as_in_core(twins, model):
    key = "diffusion_model.transformer.single_transformer_blocks.0.proj_out.weight"
    patched = model.clone()
    patched.add_patches({key: ("diff", (torch.full((256, 1280), 0.01),))})
    before = k_sampler(model)
    assert error(k_sampler(patched), before) > 1e-3
    assert torch.equal(k_sampler(model), before)


def test_saving_the_model_is_refused_in_a_sentence(model):
    with pytest.raises(ValueError, match="is saved by no node"):
        model.state_dict_for_saving()


def test_moving_packed_weights_through_comfyui_s_patch_path_leaves_them_as_they_are(gguf_twin):
    """Dynamic VRAM moves tiny layers this way even where nothing patches them."""
    from kontextkit.bridge.model import load

    patcher = load(gguf_twin, "float32")
    key = "diffusion_model.transformer.proj_out.weight"
    before = patcher.model.diffusion_model.transformer.proj_out.weight.clone()
    force = {"force_cast": True} if "force_cast" in inspect.signature(patcher.patch_weight_to_device).parameters else {}
    patcher.patch_weight_to_device(key, torch.device(DEVICE), **force)
    after = patcher.model.diffusion_model.transformer.proj_out.weight
    assert after.dtype == torch.uint8
    assert torch.equal(after.cpu(), before)
