"""Kontext Quality Lab: its pictures are ComfyUI's own, and it says what it did or what is wrong."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo(comfyui):
    """MODEL, CLIP, VAE and two edits of a 64x64 picture."""
    from kontextkit.bridge.demo import load_demo
    from kontextkit.bridge.quality_lab import edit_of

    with torch.inference_mode():
        model, clip, vae = load_demo("BF16")
        picture = torch.full((1, 64, 64, 3), 0.2)
        picture[:, 16:48, 16:48] = torch.tensor([0.9, 0.1, 0.1])
        prompts = "make the square green", "make the background white"
        return model, clip, vae, [edit_of(prompt, [picture], 1.0, clip, vae) for prompt in prompts]


def by_comfyui(setting, value, model, positive, latent):
    """The latents that ComfyUI's nodes make."""
    import node_helpers
    from kontextkit.bridge import optimize, references
    from kontextkit.bridge.demo import load_demo
    from kontextkit.engine.cache.first_block import FirstBlockSettings
    from kontextkit.engine.tiers.presets import Choices

    import nodes

    steps, denoise = (value if setting == "steps" else 3), (value if setting == "denoise" else 1.0)
    if setting == "precision":
        model = load_demo(value)[0]
    if setting == "guidance":
        positive = node_helpers.conditioning_set_values(positive, {"guidance": value})
    if setting == "context weight":
        positive = references.weigh(positive, value)
    if setting == "cache threshold":
        model, _ = optimize.apply(model, Choices(FirstBlockSettings(value)))
    how = (steps, 1.0, "euler", "simple", positive, positive, dict(latent))
    return nodes.common_ksampler(model, 5, *how, denoise=denoise)[0]["samples"]


CASES = [("steps", 2), ("guidance", 4.0), ("denoise", 0.5), ("precision", "Q8_0"), ("context weight", 0.4)]
CASES += [("cache threshold", 2.0)]


@pytest.mark.usefixtures("as_in_a_running_prompt")
@pytest.mark.parametrize(("setting", "value"), CASES)
def test_pictures_are_those_of_comfyui_s_nodes_and_so_is_their_likeness(demo, setting, value):
    from kontextkit.bridge.calibration import pictures
    from kontextkit.bridge.quality_lab import QualityLab
    from kontextkit.bridge.ways import CHANGES, Way, sample
    from kontextkit.engine.metrics.ssim import ssim

    model, _, vae, (edit, _) = demo
    way = Way(model, steps=3)
    usual, theirs = (by_comfyui(*what, model, edit.positive, edit.latent) for what in (("", 0), (setting, value)))
    ours, seconds = sample(CHANGES[setting](way, value), edit, 5)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, usual)
    assert seconds > 0
    lab = QualityLab(setting, (value,), way, [edit], [5], vae)
    baseline, changed = lab.run().summaries()
    assert baseline.mean == pytest.approx(1, abs=1e-9)
    assert changed.mean == pytest.approx(float(ssim(pictures(vae, usual), pictures(vae, theirs))), abs=1e-6)
    assert changed.to["context"] == pytest.approx(float(ssim(edit.to["context"], pictures(vae, theirs))), abs=1e-6)


@pytest.mark.usefixtures("as_in_a_running_prompt")
def test_the_baseline_is_what_is_wired_and_made_once(demo):
    from kontextkit.bridge import optimize
    from kontextkit.bridge.quality_lab import QualityLab
    from kontextkit.bridge.ways import CHANGES, Way, name_of
    from kontextkit.engine.cache.first_block import FirstBlockSettings
    from kontextkit.engine.tiers.presets import Choices

    model, _, vae, edits = demo
    cached, _ = optimize.apply(model, Choices(FirstBlockSettings(0.25)))
    for setting, way, values, expected in (
        ("steps", Way(model, 2), (2, 1), [2, 1]),
        ("guidance", Way(model, 2), (1.0,), [1.0]),
        ("precision", Way(model, 2), ("BF16", "Q8_0"), ["BF16", "Q8_0"]),
        ("cache threshold", Way(cached, 2), (0.25, 0.0), [0.25, 0.0]),
        ("context weight", Way(model, 2), (0.3,), [1.0, 0.3]),
    ):
        assert QualityLab(setting, values, way, edits, [0], vae).values == expected
    packed = CHANGES["precision"](Way(model), "Q4_K_M")
    assert (name_of(packed.model), packed.model.model.path.suffix) == ("Q4_K_M", ".gguf")
    lab = QualityLab("steps", (2, 1), Way(model, 2), edits, [0, 1], vae)
    assert lab.n_steps == 2 * 2 * (2 + 1)
    made = [(picture.value, picture.prompt, picture.seed) for picture in lab.run().pictures]
    assert made == [(value, edit.prompt, seed) for edit in edits for seed in (0, 1) for value in (2, 1)]


@pytest.mark.usefixtures("as_in_a_running_prompt")
def test_another_precision_keeps_loras_and_choices(demo):
    from kontextkit.bridge import lora, optimize
    from kontextkit.bridge.ways import CHANGES, Way, choices_of
    from kontextkit.engine.cache.first_block import FirstBlockSettings
    from kontextkit.engine.tiers.presets import Choices

    model = demo[0]
    read = lora.read(ROOT / "demo" / "demo_lightning.safetensors", model)
    changed, _ = optimize.apply(lora.apply(model, read, 0.5), Choices(FirstBlockSettings(0.25)))
    other = CHANGES["precision"](Way(changed), "Q8_0").model
    assert other.model.path.suffix == ".gguf"
    assert [(each.lora.file_name, each.strength) for each in lora.applied(other)] == [
        ("demo_lightning.safetensors", 0.5)
    ]
    assert choices_of(other) == choices_of(changed)


@pytest.mark.usefixtures("as_in_a_running_prompt")
def test_another_precision_keeps_what_other_nodes_patched(demo):
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux
    from kontextkit.bridge.ways import CHANGES, Way, sample

    model, _, _, (edit, _) = demo
    (shifted,) = ModelSamplingFlux().patch(model, 3.0, 3.0, 1024, 1024)
    shifted.model_options["denoise_mask_function"] = lambda *given, **more: given[1]
    other = CHANGES["precision"](Way(shifted, 2), "BF16").model
    assert other.model is not model.model
    assert other.model_options["denoise_mask_function"] is shifted.model_options["denoise_mask_function"]
    ours, wired, plain = (sample(Way(each, 2), edit, 0)[0] for each in (other, shifted, model))
    assert torch.equal(ours, wired)
    assert not torch.equal(ours, plain)


@pytest.mark.usefixtures("as_in_a_running_prompt")
def test_a_model_is_warm_before_its_first_picture_is_timed(demo, monkeypatch):
    from kontextkit.bridge import quality_lab
    from kontextkit.bridge.ways import Way

    steps, sample = [], quality_lab.sample
    monkeypatch.setattr(quality_lab, "sample", lambda way, *rest: (steps.append(way.steps), sample(way, *rest))[1])
    model, _, vae, edits = demo
    quality_lab.QualityLab("steps", (3,), Way(model, 1), edits[:1], [0], vae).run()
    assert steps == [quality_lab.WARM_UP, 1, 3]
    quality_lab.QualityLab("precision", ("Q8_0",), Way(model, 1), edits[:1], [0, 1], vae).run()
    assert steps[3:] == [quality_lab.WARM_UP, 1, 1] * 2


def test_a_weight_for_all_leaves_masked_tokens_out():
    from kontextkit.bridge.references import LATENTS, weigh
    from kontextkit.bridge.transformer import REFERENCE_WEIGHTS

    latents = [torch.zeros(1, 16, 4, 4)] * 3
    given = [[torch.zeros(1, 1, 1), {LATENTS: latents, REFERENCE_WEIGHTS: ((1.0, 0.0, 1.0, 0.5), ())}]]
    ((_, values),) = weigh(given, 0.3)
    assert values[REFERENCE_WEIGHTS] == ((0.3, 0.0, 0.3, 0.3), (0.3,), (0.3,))


def test_what_cannot_be_swept_is_refused_before_a_picture_is_made(demo):
    from kontextkit.bridge import optimize
    from kontextkit.bridge.quality_lab import QualityLab, edits_of
    from kontextkit.bridge.ways import Way
    from kontextkit.engine.cache.first_block import FirstBlockSettings
    from kontextkit.engine.tiers.presets import Choices

    model, _, vae, (edit, _) = demo
    empty = replace(edit, latent={"samples": torch.zeros_like(edit.latent["samples"])})
    bare = replace(edit, positive=[[edit.positive[0][0], {}]])
    for setting, value, case, words in (
        ("denoise", 0.5, empty, "latent_image is empty"),
        ("context weight", 0.5, bare, "positive has no references"),
        ("precision", "nowhere.gguf", edit, "values has 'nowhere.gguf', which is no model file here. There are BF16"),
        ("precision", "../x.gguf", edit, "no model file here"),
    ):
        with pytest.raises(ValueError, match=words):
            QualityLab(setting, (value,), Way(model), [case], [0], vae)
    calibrated, _ = optimize.apply(model, Choices(FirstBlockSettings(0.1), target_ssim=0.95), vae=vae)
    with pytest.raises(ValueError, match="calibrated for a target SSIM"):
        QualityLab("steps", (2,), Way(calibrated), [edit], [0], vae)
    foreign = SimpleNamespace(model=object(), get_attachment=lambda _: None)
    with pytest.raises(ValueError, match="from another loader, which knows no weight"):
        QualityLab("context weight", (0.5,), Way(foreign), [edit], [0], vae)
    two = {"samples": torch.zeros(2, 16, 8, 8)}
    with pytest.raises(ValueError, match="latent_image holds 2 pictures"):
        edits_of(edit.positive, two, vae)
    with pytest.raises(ValueError, match="no CLIP reads them"):
        edits_of(edit.positive, edit.latent, vae, None, "make it red")


@pytest.mark.usefixtures("as_in_a_running_prompt")
def test_prompts_take_the_place_of_words_and_keep_references_and_guidance(demo):
    from kontextkit.bridge.quality_lab import edits_of

    _, clip, vae, (edit, other) = demo
    made = edits_of(edit.positive, edit.latent, vae, clip, f"\n {other.prompt} \n\n{edit.prompt}\n{edit.prompt}")
    assert [each.prompt for each in made] == [other.prompt, edit.prompt]
    for each, right in zip(made, (other, edit), strict=True):
        (context, values), (expected, those) = each.positive[0], right.positive[0]
        assert torch.equal(context, expected)
        assert torch.equal(values["pooled_output"], those["pooled_output"])
        assert values["guidance"] == 1.0
        assert values["reference_latents"][0] is edit.positive[0][1]["reference_latents"][0]


def small_sweep(demo):
    from kontextkit.bridge.quality_lab import QualityLab
    from kontextkit.bridge.ways import Way

    model, _, vae, edits = demo
    lab = QualityLab("steps", (1,), Way(model, 2), edits[:1], [0], vae)
    lab.run()
    return lab


@pytest.mark.usefixtures("as_in_a_running_prompt")
def test_without_matplotlib_it_says_so_and_writes_the_rest(demo, tmp_path, monkeypatch):
    from kontextkit.bridge import quality_lab

    lab = small_sweep(demo)
    endings = [".csv", ".json", ".md", "_sheet.png"]
    assert sorted(path.name for path in lab.save(tmp_path / "with" / "a")) == [
        f"a{ending}" for ending in (*endings[:3], "_plot.png", endings[3])
    ]
    monkeypatch.setattr(quality_lab, "can_plot", lambda: False)
    lab.save(tmp_path / "without" / "a")
    assert sorted(path.name for path in (tmp_path / "without").iterdir()) == [f"a{ending}" for ending in endings]
    assert lab.plot().size[0] > 300  # a sentence


@pytest.mark.usefixtures("as_in_a_running_prompt")
def test_a_full_disk_leaves_no_half_file(demo, tmp_path, monkeypatch):
    def fails(path, *_, **__):
        path.touch()
        raise OSError("the disk is full")

    lab = small_sweep(demo)
    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(OSError, match="full"):
        lab.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
