"""Everything that may meet in a run under Optimize Kontext, each with each and all at once."""

import re
from dataclasses import dataclass, field
from itertools import combinations

import pytest
import torch
from hosted_loras import with_lora
from kontextkit.engine.cache.references import ReferenceSettings
from optimized import SKIPS, optimized
from oracle import conditioning, error, k_sampler, latent, normal

STEPS = 6
REFERENCES = [(16, 12), (9, 7)]
LIMIT = 1e-4  # of test_sampling.py
EXACT = {"compile", "sliced"}
UNSEEN = EXACT | {"cache", "preview"}  # what changes the picture little or not at all

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


@dataclass
class Setup:
    """A run to be: its MODEL, what Optimize Kontext and the sampler are told, what its positive prompt carries."""

    model: object
    choices: dict = field(default_factory=dict)
    sampler: dict = field(default_factory=dict)
    prompt: dict = field(default_factory=dict)


@dataclass
class Made:
    latents: torch.Tensor
    report: str = ""
    passes: tuple = (0, 0)
    n_previews: int = 0


def residuals():
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy, *args):
            residual = normal(x_noisy.shape[0], 48, 256, seed=11).to(x_noisy)
            return {"input": [residual, residual], "output": [residual]}

        def copy(self):
            return Control()

    return {"control": Control(), "control_apply_to_uncond": True}


def halved():
    mask = torch.zeros(1, 1, 128, 96)
    mask[..., 40:90, 30:70] = 1
    return latent(noise_mask=mask)


def louder(model):
    """With a patch that does its work where q and k are not yet rotated, as ComfyUI's own FLUX gives them."""
    clone = model.clone()
    clone.set_model_attn1_patch(lambda q, k, v, pe=None, **more: {"v": v if pe is None else v * 1.5})
    return clone


FEATURES = {
    "cache": lambda setup, files: setup.choices.update(cache=SKIPS),
    "compile": lambda setup, files: setup.choices.update(compile="default"),
    "sliced": lambda setup, files: setup.choices.update(attention="sliced"),
    "lora": lambda setup, files: setattr(setup, "model", with_lora(setup.model, files["a"])),
    "control": lambda setup, files: setup.prompt.update(residuals()),
    "mask": lambda setup, files: setup.sampler.update(start=halved()),
    "preview": lambda setup, files: None,  # see `sample`
    "attn1_patch": lambda setup, files: setattr(setup, "model", louder(setup.model)),
    "references": lambda setup, files: setup.prompt.update(references=REFERENCES),
    "kept": lambda setup, files: (  # of two references, which it brings along
        setup.choices.update(references=ReferenceSettings(3)),
        setup.prompt.update(references=REFERENCES),
    ),
    "cfg": lambda setup, files: setup.sampler.update(cfg=2.0),
}


@pytest.fixture(scope="module", autouse=True)
def graphs_run_as_they_are():
    """On the CPU Inductor takes minutes for all of these; it is met in test_compiled.py and test_optimize.py."""
    from torch._dynamo.backends.debugging import aot_eager

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **_: aot_eager(graph, inputs))
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def base(twins):
    import comfy.model_management as management
    from kontextkit.bridge.model import load

    yield load(twins.path, "float32", disable_dynamic=True)
    management.unload_all_models()


@pytest.fixture(scope="module")
def made():
    """Runs that were made, by their features."""
    return {}


@pytest.fixture
def sample(base, lora_files, said, made, monkeypatch):
    """sample(features) -> Made; each is made once."""
    import comfy.cli_args
    import comfy.utils
    import latent_preview

    def sample(features):
        if features not in made:
            setup, previews = Setup(base), []
            for name in FEATURES:
                if name in features:
                    FEATURES[name](setup, lora_files)
            method = latent_preview.LatentPreviewMethod
            method = method.Latent2RGB if "preview" in features else method.NoPreviews
            monkeypatch.setattr(comfy.cli_args.args, "preview_method", method)
            monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: previews.append(args[2]))
            model = optimized(setup.model, **setup.choices) if setup.choices else setup.model
            latents = k_sampler(model, steps=STEPS, positive=conditioning(1, **setup.prompt), **setup.sampler)
            n_previews = sum(preview is not None for preview in previews)
            told = (said.texts[-1], said.passes()) if setup.choices else ()
            made[features] = (
                Made(latents, *told, n_previews=n_previews) if told else Made(latents, n_previews=n_previews)
            )
        return made[features]

    return sample


PAIRS = list(combinations(FEATURES, 2))
MANY = [[name for name in FEATURES if name != without] for without in ("attn1_patch", "compile")]


@pytest.mark.parametrize("names", PAIRS + MANY, ids=lambda names: " and ".join(names))
def test_what_meets_in_a_run_works_together(sample, names):
    features = frozenset(names)
    run = sample(features)
    assert torch.isfinite(run.latents).all()
    if features & EXACT:
        assert error(run.latents, sample(features - EXACT).latents) < LIMIT
    unseen = UNSEEN | ({"references"} if "kept" in features else set())
    for each in features - unseen if len(names) == 2 else ():
        assert error(run.latents, sample(features - {each}).latents) > 1e-3, f"{each} did nothing"
    if "cache" in features:
        assert sum(run.passes) in ((STEPS, 2 * STEPS) if "cfg" in features else (STEPS,))
        assert run.passes[1] > 0
    if "kept" in features:
        assert ("with kept references" in run.report) == ("attn1_patch" not in features)
    if "compile" in features:
        assert "Compiled: " in run.report
    if "sliced" in features:
        assert "Attention: sliced." in run.report
    assert run.n_previews == (STEPS if "preview" in features else 0)


def test_nothing_is_compiled_again_for_other_sizes_prompts_references_and_strengths(base, lora_files, said):
    def report(model=base, **more):
        k_sampler(optimized(model, compile="default"), steps=2, **more)
        return said.texts[-1]

    report()
    report(with_lora(base, lora_files["a"]))
    again = [
        report(),
        report(positive=conditioning(1)),
        report(positive=conditioning(1, references=[(10, 14)])),
        report(start={"samples": normal(1, 16, 20, 14, seed=7)}),
        report(with_lora(base, lora_files["a"], 0.3)),
        report(with_lora(base, lora_files["b"])),
    ]
    assert all("Compiled: nothing recompiled." in each for each in again)


def test_compiled_blocks_take_weights_left_on_the_host(base, said):
    import comfy.model_management as management

    expected = k_sampler(base)
    management.unload_all_models()
    ours = optimized(base, compile="default")
    grow, room = ours.partially_load, int(0.5 * ours.model_size())
    ours.partially_load = lambda device, extra=0, **more: grow(device, room, **more)
    assert error(k_sampler(ours), expected) < LIMIT
    assert ours.loaded_size() < ours.model_size()
    assert re.search("^(Compiled|Not compiled): ", said.texts[-1], re.MULTILINE)
    management.unload_all_models()
