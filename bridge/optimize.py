"""The optimizer's choices on a MODEL: data on its ModelPatcher, applied while a sampler runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..engine.attention import fp8
from ..engine.attention.backends import BACKENDS, why_not
from ..engine.flux.compile_cache import CompileCache
from ..engine.flux.compiled import n_graphs, triton_missing
from ..engine.flux.graphs import PassGraphs
from ..engine.quant.narrow import FORMATS
from ..engine.quant.on_gpu import has_triton
from ..engine.tiers.presets import AS_LOADED, AUTO, FP8, FUSED, OFF, Choices
from . import lora, runs
from .calibration import CHOICES, calibrated
from .model import KontextModel
from .notes import show
from .patcher import is_dynamic
from .precision import may_fit, products
from .run import KEY as RUN
from .run import OVERRIDE, SamplingRun

KEY = "kontextkit.optimize"


@dataclass(frozen=True)
class Applied:
    """Choices on a MODEL, and the node under which a run tells what it did."""

    choices: Choices
    node_id: str | None
    vae: Any = None


def apply(patcher: Any, choices: Choices, node_id: str | None = None, vae: Any = None) -> tuple[Any, str]:
    """A clone of the MODEL with these choices instead of those it had, and what becomes of them here, some lines.

    Raises ValueError where the MODEL is not this pack's, or a target lacks the VAE that shows the picture.
    """
    if not isinstance(patcher.model, KontextModel):
        raise ValueError(
            "The MODEL is from another loader; Optimize Kontext works on one from Load Kontext Model or Load Kontext "
            "Demo Model. Load the model with one of these, or take this node out."
        )
    if choices.target_ssim and vae is None:
        raise ValueError("target_ssim compares pictures; connect the VAE to Optimize Kontext, or set it to 0.")
    resolved, lines = resolve(choices, patcher.load_device)
    format = FORMATS.get(resolved.precision)
    narrow = format is not None and not format.why_not(patcher.load_device) and may_fit(patcher, format)
    whole = resolved.compile not in (OFF, FUSED) or narrow  # weights that come over inside a Linear are no use to these
    clone = patcher.get_non_dynamic_delegate() if whole and is_dynamic(patcher) else patcher.clone()
    clone.set_attachments(KEY, Applied(resolved, node_id, vae))
    clone.remove_additional_models(lora.KEY)  # an earlier run's factors, of dynamic VRAM perhaps
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, around_run), (WrappersMP.SAMPLER_SAMPLE, around_sampler)):
        clone.remove_wrappers_with_key(kind, KEY)
        if choices != Choices():
            clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone, "\n".join(lines)


def resolve(choices: Choices, device: torch.device) -> tuple[Choices, list[str]]:
    """What can be done on the device, without AUTO for compile, and what is done, a line each."""
    lines = []
    if choices.compile == AUTO:
        on_card = device.type == "cuda"
        choices = replace(choices, compile=FUSED if on_card else OFF)
    if choices.compile == FUSED and not (device.type == "cuda" and has_triton(device)):
        choices = replace(choices, compile=OFF)
        reason = triton_missing() if device.type == "cuda" else "they need an NVIDIA or AMD card"
        lines.append(f"No fused kernels: {reason}.")
    if choices.attention == FP8:
        reason = fp8.why_not(device) or ("" if choices.compile == FUSED else "in FP8 it needs the fused kernels")
        if reason:
            choices = replace(choices, attention=AUTO)
            lines.append(f"Attention is exact: {reason}.")
    if choices.attention == AUTO and device.type != "cuda":
        choices = replace(choices, attention="comfyui")
    if choices.attention in BACKENDS and (reason := why_not(choices.attention, device)):
        choices = replace(choices, attention="comfyui")
        lines.append(f"Attention is ComfyUI's: {reason}.")
    cache = choices.cache
    if cache is not None and cache.threshold > 0:
        words = f"Steps are skipped where the first block changes by less than {cache.threshold:g}"
        lines.append(f"{words}, at most {cache.most_skips} in a row; order {cache.order}.")
    else:
        lines.append("Every step is computed.")
    if choices.references and choices.references.interval > 1:
        lines.append(f"References are computed at the first of every {choices.references.interval} computed steps.")
    if choices.compile == FUSED:
        lines.append("Between the products of the blocks run fused kernels.")
    elif choices.compile != OFF:
        lines.append(f"The blocks are compiled ({choices.compile}); the first run takes longer.")
    if choices.attention != "comfyui":
        which = {AUTO: "the fastest exact one of this card", FP8: "in FP8"}
        lines.append(f"Attention: {which.get(choices.attention, choices.attention)}.")
    if choices.precision != AS_LOADED:
        name, reason = choices.precision.upper(), FORMATS[choices.precision].why_not(device)
        words = f"Products in the blocks are in {name}, by weights made at the start of each run."
        lines.append(f"Products run as loaded, not in {name}: {reason}." if reason else words)
    return choices, lines


def around_run(sample: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """The arguments are those of ComfyUI's `CFGGuider.outer_sample`; a calibration runs it more than once."""
    guider = sample.class_obj  # type: ignore[attr-defined]
    applied: Applied = guider.model_patcher.get_attachment(KEY)
    if not applied.choices.target_ssim:
        return sample(*arguments, **more)
    latents, words = calibrated(sample, guider, applied.choices, applied.vae, *arguments, **more)
    tell(words, applied.node_id)
    return latents


def around_sampler(
    sample: Callable[..., Any],
    guider: Any,
    sigmas: Any,
    extra_args: dict[str, Any],
    callback: Any,
    noise: Tensor,
    *rest: Any,
    **more: Any,
) -> Any:
    """The arguments are those of ComfyUI's `Sampler.sample`, after the sampler itself."""
    patcher = guider.model_patcher
    applied: Applied = patcher.get_attachment(KEY)
    options = extra_args["model_options"]["transformer_options"]  # this run's own
    choices = options.get(CHOICES, applied.choices)
    run = options[RUN] = SamplingRun(choices, sigmas.tolist(), patcher.load_device)
    if choices.attention != "comfyui":
        options.setdefault(OVERRIDE, run.attend)
    if patcher.load_device.type == "cuda" and choices.compile != OFF and not is_dynamic(patcher):
        run.graphs = PassGraphs(patcher.model.diffusion_model.transformer)
    if run.compiles:
        stored = compile_cache(choices.compile)
        if applied.node_id is not None and not n_graphs():
            show("Compiling the blocks: the first step takes longer.", applied.node_id)
    with run.going(), products(run, guider, noise.shape):
        result = sample(guider, sigmas, extra_args, run.after_step(callback), noise, *rest, **more)
    if run.compiles and run.n_graphs and not run.failed.reason:
        stored.save()
    tell(run.report(), applied.node_id)
    runs.note(**run.figures())
    return result


@cache
def compile_cache(mode: str) -> CompileCache:
    """The compiled blocks on disk, loaded the first time; in a folder that ComfyUI's server shows nobody."""
    stored = CompileCache(Path(folder_paths.get_system_user_directory("kontextkit"), "compiled"), mode)
    stored.load()
    return stored


def tell(report: str, node_id: str | None) -> None:
    """Under the node and in the log."""
    logging.info("KontextKit: %s", " ".join(report.splitlines()))
    if node_id is not None:
        show(report, node_id)
