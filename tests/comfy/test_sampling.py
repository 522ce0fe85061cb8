"""ComfyUI's samplers over our MODEL, against the same samplers over ComfyUI's own."""

import pytest
import torch
from oracle import NEGATIVE, POSITIVE, conditioning, error, k_sampler, latent, normal
from safetensors.torch import load_file, save_file

LIMIT = 1e-4


@pytest.fixture(scope="module")
def models(twins):
    """(ours, core's) MODEL from the same file."""
    import comfy.sd
    from kontextkit.bridge.model import load

    return load(twins.path, "float32"), comfy.sd.load_diffusion_model(
        str(twins.path), model_options={"dtype": torch.float32}
    )


def both(models, sample, **more):
    ours, core = (sample(model, **more) for model in models)
    assert core.std() > 0.1
    return error(ours, core)


def test_k_sampler(models):
    assert both(models, k_sampler) < LIMIT


def test_k_sampler_with_guidance_by_cfg(models):
    assert both(models, k_sampler, cfg=3.0) < LIMIT


def test_k_sampler_without_guidance_embedding(twins_without_guidance):
    """Such a model has another schedule: ComfyUI takes it for FLUX.1 [schnell]."""
    import comfy.sd
    from kontextkit.bridge.model import load

    path = twins_without_guidance.path
    core = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
    assert both((load(path, "float32"), core), k_sampler) < LIMIT


def test_k_sampler_over_a_batch(models):
    assert both(models, k_sampler, start=latent(batch=3)) < LIMIT


def test_k_sampler_from_an_edited_latent(models):
    assert both(models, k_sampler, denoise=0.5) < LIMIT


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "lcm"])
def test_other_samplers(models, sampler):
    assert both(models, k_sampler, sampler_name=sampler) < LIMIT


@pytest.mark.parametrize("method", ["index", "uxo"])
def test_reference_placement_from_the_conditioning(models, method):
    positive = conditioning(1, references=[(16, 12), (9, 7)], reference_latents_method=method)
    assert both(models, k_sampler, positive=positive) < LIMIT


def test_k_sampler_advanced_in_two_halves(models):
    import nodes

    def sample(model):
        options = {"noise_seed": 3, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
        ends = {"positive": POSITIVE, "negative": NEGATIVE}
        half = nodes.KSamplerAdvanced().sample(
            model, "enable", **options, **ends, latent_image=latent(), start_at_step=0, end_at_step=2,
            return_with_leftover_noise="enable",
        )[0]  # fmt: skip
        return nodes.KSamplerAdvanced().sample(
            model, "disable", **options, **ends, latent_image=half, start_at_step=2, end_at_step=4,
            return_with_leftover_noise="disable",
        )[0]["samples"]  # fmt: skip

    assert both(models, sample) < LIMIT


@pytest.mark.parametrize("kind", ["BasicGuider", "CFGGuider"])
def test_sampler_custom_advanced(models, kind):
    import comfy.samplers
    from comfy_extras import nodes_custom_sampler as custom

    def sample(model):
        if kind == "BasicGuider":
            guider = custom.BasicGuider.execute(model, POSITIVE)[0]
        else:
            guider = custom.CFGGuider.execute(model, POSITIVE, NEGATIVE, 2.0)[0]
        sigmas = custom.BasicScheduler.execute(model, "simple", 4, 1.0)[0]
        noise, sampler = custom.Noise_RandomNoise(3), comfy.samplers.sampler_object("euler")
        return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent())[0]["samples"]

    assert both(models, sample) < LIMIT


def test_latent_noise_mask_keeps_what_it_covers(models):
    mask = torch.zeros(1, 1, 128, 96)
    mask[..., 40:90, 30:70] = 1
    start = latent(noise_mask=mask)
    assert both(models, k_sampler, start=start) < LIMIT
    kept = k_sampler(models[0], start=start)[..., :4, :3]
    assert torch.allclose(kept, start["samples"][..., :4, :3], atol=1e-4)


def test_differential_diffusion(models):
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    ramp = torch.linspace(0, 1, 96).expand(1, 1, 128, 96)
    soft = [DifferentialDiffusion.execute(model)[0] for model in models]
    assert both(soft, k_sampler, start=latent(noise_mask=ramp)) < LIMIT


def test_controlnet_from_the_conditioning(models):
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, *args):
            residual = normal(x_noisy.shape[0], 48, 256, seed=11).to(x_noisy)
            return {"input": [residual], "output": [residual]}

        def copy(self):
            return Control()

    with_control = conditioning(1, references=[(16, 12)], control=Control(), control_apply_to_uncond=True)
    assert both(models, k_sampler, positive=with_control) < LIMIT
    without = k_sampler(models[0], positive=conditioning(1, references=[(16, 12)]))
    assert error(k_sampler(models[0], positive=with_control), without) > 1e-3


def test_model_sampling_flux_changes_the_schedule_as_in_core(models):
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    shifted = [ModelSamplingFlux().patch(model, 1.15, 0.5, 1024, 1024)[0] for model in models]
    assert both(shifted, k_sampler) < LIMIT


def test_preview_is_made_from_our_latents(models):
    import comfy.cli_args
    import latent_preview

    comfy.cli_args.args.preview_method = latent_preview.LatentPreviewMethod.Latent2RGB
    try:
        previewer = latent_preview.get_previewer(models[0].load_device, models[0].model.latent_format)
    finally:
        comfy.cli_args.args.preview_method = latent_preview.LatentPreviewMethod.NoPreviews
    assert previewer.decode_latent_to_preview(latent()["samples"]).size == (12, 16)


def test_interrupt_stops_in_the_middle_and_leaves_nothing_behind(models):
    import comfy.model_management as management

    model = models[0].clone()
    blocks = []

    def stop(args, extra):
        blocks.append(1)
        management.interrupt_current_processing(True)
        return extra["original_block"](args)

    model.set_model_patch_replace(stop, "dit", "double_block", 0)
    with pytest.raises(management.InterruptProcessingException):
        k_sampler(model)
    assert len(blocks) == 1
    assert both(models, k_sampler) < LIMIT


def test_wrappers_at_every_level_run(models):
    import comfy.patcher_extension as extension

    kinds = extension.WrappersMP
    calls = []
    model = models[0].clone()
    for kind in (kinds.OUTER_SAMPLE, kinds.APPLY_MODEL, kinds.DIFFUSION_MODEL):

        def wrapper(executor, *args, kind=kind, **kwargs):
            calls.append(kind)
            return executor(*args, **kwargs)

        model.add_wrapper(kind, wrapper)
    wrapped = k_sampler(model)
    assert [calls.count(kind) for kind in (kinds.OUTER_SAMPLE, kinds.APPLY_MODEL, kinds.DIFFUSION_MODEL)] == [1, 4, 4]
    assert torch.equal(wrapped, k_sampler(models[0]))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
def test_each_compute_dtype_samples_near_float32(models, twins, dtype):
    from kontextkit.bridge.model import COMPUTE_DTYPES, load

    model = load(twins.path, dtype)
    expected = torch.float32 if dtype == "auto" else COMPUTE_DTYPES[dtype]
    if dtype != "auto" or not torch.cuda.is_available():
        assert model.model.get_dtype_inference() == expected
    exact = conditioning(1, references=[(16, 12)], guidance=1.0)  # ComfyUI rounds 1000 * guidance to the dtype
    assert error(k_sampler(model, positive=exact), k_sampler(models[0], positive=exact)) < 0.02


def test_a_scaled_fp8_file_samples_as_comfyui_s_own_loader_does(twins, tmp_path):
    import comfy.sd
    from kontextkit.bridge.model import load

    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in load_file(twins.path).items():
        tensors[name] = tensor
        if tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
    path = tmp_path / "fp8.safetensors"
    save_file(tensors, path)
    ours, core = load(path, "float32"), comfy.sd.load_diffusion_model(str(path))
    core.set_model_compute_dtype(torch.float32)
    assert error(k_sampler(ours), k_sampler(core)) < LIMIT
