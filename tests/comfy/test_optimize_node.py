"""The node Optimize Kontext: what it offers, refuses and shows, and the threshold it finds for a picture."""

import re
from dataclasses import replace

import pytest
import torch
from kontextkit.engine.attention.backends import BACKENDS
from kontextkit.engine.cache.calibration import THRESHOLDS
from kontextkit.engine.cache.first_block import FirstBlockSettings
from kontextkit.engine.metrics.ssim import ssim
from kontextkit.engine.tiers.presets import PRESETS, Choices
from optimized import NODE, mapped, optimized, patched
from oracle import conditioning, error, k_sampler
from server_notes import notes

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


# what it offers and refuses


def test_every_input_is_explained_and_its_default_is_the_preset_balanced(optimize_node):
    schema = optimize_node.define_schema()
    assert all(len(each.tooltip) > 30 for each in [*schema.inputs, *schema.outputs])
    inputs = {each.id: each for each in schema.inputs}
    assert list(inputs)[:2] == ["model", "preset"]
    assert inputs["preset"].options == [*PRESETS, "custom"]
    usual = FirstBlockSettings()
    for name in ("threshold", "start", "end", "most_skips"):
        assert inputs[name].default == getattr(usual, name)
    assert inputs["extrapolation"].default == str(usual.order)
    assert PRESETS["balanced"].cache == usual


def test_custom_takes_every_input(optimize_node, model):
    from kontextkit.bridge.optimize import KEY

    changed, report = optimize_node.execute(
        model, "custom", 0.3, "2", 0.1, 0.9, 3, compile="default", attention="sliced"
    ).result
    expected = Choices(FirstBlockSettings(0.3, 2, 0.1, 0.9, 3), "default", "sliced")
    assert changed.get_attachment(KEY).choices == expected
    assert report.splitlines() == [
        "Steps are skipped where the first block changes by less than 0.3, at most 3 in a row; order 2.",
        "The blocks are compiled (default); the first run takes longer.",
        "Attention: sliced.",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_auto_is_neither_compiled_nor_attends_otherwise(optimize_node, model):
    _, report = optimize_node.execute(model, "quality").result
    assert report == "Every step is computed."
    _, report = optimize_node.execute(model, "custom", threshold=0.0, attention="cudnn").result
    assert report == "Attention is ComfyUI's: cudnn attention needs an NVIDIA card.\nEvery step is computed."


def test_a_model_of_another_loader_is_refused_in_a_sentence(optimize_node, twins):
    import comfy.sd

    core = comfy.sd.load_diffusion_model(str(twins.path), model_options={"dtype": torch.float32})
    with pytest.raises(ValueError, match=r"from another loader; .* Load the model with one of these, or take this"):
        optimize_node.execute(core, "balanced")


def test_a_target_without_a_vae_is_refused_in_a_sentence(optimize_node, model):
    with pytest.raises(ValueError, match="connect the VAE to Optimize Kontext, or set it to 0"):
        optimize_node.execute(model, "custom", target_ssim=0.9)


# attention


@pytest.mark.parametrize("name", ["sliced", "flash"])
def test_a_way_to_attend_is_used_and_gives_the_same_picture(model, said, name, monkeypatch):
    calls = []
    monkeypatch.setitem(BACKENDS, name, lambda *qkv, way=BACKENDS[name]: calls.append(1) or way(*qkv))
    for more in ({}, {"cfg": 2.0}):
        assert error(k_sampler(optimized(model, attention=name), **more), k_sampler(model, **more)) < 1e-4
    assert len(calls) == 5 * (4 + 8)  # blocks, passes
    assert said.texts[-1].endswith(f"Attention: {name}.")


def test_a_way_that_does_not_run_here_is_told_and_comfyui_s_takes_its_place(model, said, monkeypatch):
    def no_kernel(*qkv):
        raise RuntimeError("No viable backend for scaled_dot_product_attention was found.\nmore")

    monkeypatch.setitem(BACKENDS, "flash", no_kernel)
    assert torch.equal(k_sampler(optimized(model, attention="flash")), k_sampler(model))
    words = "Attention is ComfyUI's: flash does not run on cpu in torch.float32 (No viable backend for scaled_dot"
    assert said.texts[-1].count(words) == 1


def test_a_mask_or_another_node_s_attention_keeps_its_own_way(model, said):
    mask = torch.zeros(1, 7 + 48, 7 + 48)  # of 7 words and 8x6 tokens of the picture
    mask[..., 1:7] = -100
    masked = conditioning(1, attention_mask=mask, attention_mask_img_shape=(8, 6))
    expected = k_sampler(model, positive=masked)
    assert torch.equal(k_sampler(optimized(model, attention="sliced"), positive=masked), expected)
    assert error(expected, k_sampler(model, positive=conditioning(1))) > 1e-5
    other, calls = model.clone(), []

    def attend(attention, *rest, **more):
        calls.append(1)
        return attention(*rest, **more)

    other.model_options["transformer_options"]["optimized_attention_override"] = attend
    assert torch.equal(k_sampler(optimized(other, attention="sliced")), k_sampler(model))
    assert len(calls) == 4 * 5
    assert "Attention" not in said.texts[-1]


# what it shows


def test_the_report_s_passes_add_up_and_are_told_under_the_node_once_a_run(model, said):
    for computed, cfg in [((0,), 1.0), ((0, 1, 3), 1.0), (range(4), 2.0)]:
        said.texts.clear()
        k_sampler(mapped(model, *computed), cfg=cfg)
        n = 2 if cfg > 1 else 1
        assert said.passes() == (n * len(computed), n * (4 - len(computed)))
        assert len(said.texts) == 1
        assert ("With every step computed about" in said.texts[0]) == (len(computed) < 4)
    assert set(said.nodes) == {NODE}


def test_the_log_has_it_in_one_line(model, caplog):
    with caplog.at_level("INFO"):
        k_sampler(mapped(model, 0, 2))
    (line,) = [each.getMessage() for each in caplog.records if "passes computed" in each.getMessage()]
    assert re.match(r"KontextKit: 2 passes computed \(\d+ ms each\), 2 skipped \(\d+ ms each\); ", line)
    assert "\n" not in line


def workflow(seed, preset="custom"):
    sampler = {"seed": seed, "steps": 6, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["5", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    window = {"threshold": 2.0, "extrapolation": "1", "start": 0.0, "end": 1.0, "most_skips": 4, "target_ssim": 0.0}
    options = {"model": ["1", 0], "preset": preset, "compile": "off", "attention": "sliced"} | window
    return {
        "1": {"class_type": "KontextLoadDemo", "inputs": {"precision": "Q8_0"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red star"}},
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "KontextOptimize", "inputs": options},
        "6": {"class_type": "KSampler", "inputs": sampler | links},
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "optimized"}},
    }


def test_a_server_shows_each_run_under_the_node_also_where_the_node_itself_does_not_run_again(server):
    for seed in (1, 2):
        ((node, text),) = notes(server, workflow(seed))
        assert node == "5"
        assert re.match(r"2 passes computed \(\d+ ms each\), 4 skipped \(\d+ ms each\); ", text)
        assert text.endswith("Attention: sliced.")
    assert notes(server, workflow(3, preset="off")) == []


# a threshold for a picture


def test_compiled_blocks_get_a_model_without_dynamic_vram(optimize_node, model, monkeypatch):
    """Which no CPU has; ComfyUI keeps the delegate, so that the file is not loaded again each time."""
    asked, clone = [], model.clone()
    monkeypatch.setattr(clone, "is_dynamic", lambda: True, raising=False)
    monkeypatch.setattr(clone, "get_non_dynamic_delegate", lambda: asked.append(1) or model.clone(), raising=False)
    optimize_node.execute(clone, "custom", compile="off")
    assert asked == []
    changed, _ = optimize_node.execute(clone, "custom", compile="default").result
    assert asked == [1]
    assert changed.model is model.model


@pytest.fixture(scope="module")
def demo(comfyui):
    """sample(cache, target, ...) -> (latents, picture) of an edit with the demo model."""
    import node_helpers
    from kontextkit.bridge import calibration, optimize
    from kontextkit.bridge.demo import load_demo

    import nodes

    model, clip, vae = load_demo("Q8_0")
    drawn = torch.zeros(1, 128, 128, 3)
    drawn[:, 30:90, 40:80, 0] = 1
    with torch.inference_mode():
        start = nodes.VAEEncode().encode(vae, drawn)[0]
        positive = nodes.CLIPTextEncode().encode(clip, "a blue background")[0]
        positive = node_helpers.conditioning_set_values(positive, {"reference_latents": [start["samples"]]})

    def sample(cache, target=0.0, seed=1, steps=8, change=lambda model: model):
        ours = change(optimize.apply(model, Choices(cache, target_ssim=target), NODE, vae)[0])
        options = {"steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        latents = nodes.KSampler().sample(
            ours, seed, positive=positive, negative=positive, latent_image=start, **options
        )[0]["samples"]
        return latents, nodes.VAEDecode().decode(vae, {"samples": latents})[0].movedim(-1, 1)

    calibration._known.clear()
    yield sample
    calibration._known.clear()


USUAL = FirstBlockSettings(order=0, most_skips=7)


def test_the_threshold_found_keeps_the_picture_as_alike_as_wished(demo, said):
    target = 0.99
    _, right = demo(None)

    def by_hand(threshold):
        latents, picture = demo(replace(USUAL, threshold=threshold))
        return latents, ssim(right, picture).item()

    said.texts.clear()
    latents, _ = demo(USUAL, target)
    *trials, words = said.texts
    assert 2 <= len(trials) <= 5
    threshold = float(re.match(r"Threshold (\S+) is the largest tried that keeps SSIM", words)[1])
    expected, likeness = by_hand(threshold)
    assert torch.equal(latents, expected)
    assert target <= likeness < 1
    assert f"SSIM {target:g} (it has {likeness:.4f}), found in {len(trials)} runs" in words
    larger = [each for each in THRESHOLDS if each > threshold]
    assert not larger or by_hand(larger[0])[1] < target


def test_a_threshold_found_is_kept_for_runs_of_its_kind(demo, said):
    def n_runs(**more):
        said.texts.clear()
        latents, _ = demo(USUAL, 0.95, **more)
        return latents, sum("passes computed" in text for text in said.texts), said.texts[-1]

    first, n, _ = n_runs()
    assert n > 1
    again, n, words = n_runs()
    assert torch.equal(again, first)
    assert (n, words[:10]) == (1, "Threshold ")
    assert "found before for this kind of run" in words
    assert n_runs(seed=2)[1] == 1
    assert n_runs(steps=4)[1] > 1


def test_a_search_broken_off_is_begun_again(demo, said):
    passes = []

    def stop():
        passes.append(1)
        if len(passes) > 10:
            raise RuntimeError("a patch failed")

    with pytest.raises(RuntimeError, match="a patch failed"):
        demo(USUAL, 0.97, change=lambda model: patched(model, stop))
    demo(USUAL, 0.97)
    assert "found in" in said.texts[-1]


def test_clones_of_a_model_share_one_copy_without_dynamic_vram(model):
    """By ComfyUI's own method on a patcher that says it is dynamic, which no CPU has."""
    import comfy.model_patcher
    from kontextkit.bridge import patcher

    dynamic = getattr(comfy.model_patcher, "ModelPatcherDynamic", None)
    if dynamic is None:
        pytest.skip("this ComfyUI has no dynamic VRAM")
    loads, (make, given, *more) = [], model.cached_patcher_init
    own = {"is_dynamic": lambda _: True, "get_non_dynamic_delegate": dynamic.get_non_dynamic_delegate}
    base = type("Dynamic", (comfy.model_patcher.ModelPatcher,), own | {"non_dynamic_delegate_model": None})
    twin = model.clone()
    twin.__class__ = patcher._kontext_patcher(base)
    twin.cached_patcher_init = (lambda *words, **how: loads.append(1) or make(*words, **how), given, *more)
    made = [twin.clone().get_non_dynamic_delegate() for _ in range(3)]
    assert loads == [1]
    assert len({id(each.model) for each in made}) == 1
    assert made[0].model is not model.model
    with pytest.raises(ValueError, match="ComfyUI's own LoRA and merge nodes"):
        made[0].add_patches({"diffusion_model.double_blocks.0.img_attn.qkv.weight": (torch.zeros(1),)})
    del model.model.kontextkit_delegate
