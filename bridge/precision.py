"""Products in fewer bits while a sampler runs: weights made at its start, beside those that ComfyUI loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import comfy.sampler_helpers
import torch

from ..engine.flux.blocks import token_linears
from ..engine.quant.narrow import FORMATS, Format, attached
from ..engine.tiers.presets import AS_LOADED
from .linear import HostedLinear
from .patcher import is_dynamic
from .run import SamplingRun

GB = 1e9


@contextmanager
def products(run: SamplingRun, guider: Any, noise_shape: Sequence[int]) -> Iterator[None]:
    """Around the sampler: the Linears of the blocks multiply as the run's choices say.

    Where the format cannot be they multiply as loaded, and the run's report says why.
    """
    name = run.choices.precision
    if name == AS_LOADED:
        yield
        return
    model, format = guider.model_patcher.model, FORMATS[name]
    linears = in_blocks(guider.model_patcher, format)
    n_bytes = format.n_bytes(linears)
    reason = format.why_not(run.device) or why_not_loaded(guider, format) or why_no_room(guider, n_bytes, noise_shape)
    if reason:
        run.notes.append(f"Products ran as loaded, not in {name.upper()}: {reason}.")
        yield
        return
    begin = time.perf_counter()
    with attached(format, linears, model.get_dtype_inference()):
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        took = time.perf_counter() - begin
        run.notes.append(f"Products in {name.upper()}: {n_bytes / GB:.1f} GB of weights, made in {took:.2f} s.")
        yield


def in_blocks(patcher: Any, format: Format) -> list[HostedLinear]:
    """Those Linears of a MODEL that the format takes."""
    linears = token_linears(patcher.model.diffusion_model.transformer).values()
    return [linear for linear in linears if format.fits(linear)]


def may_fit(patcher: Any, format: Format) -> bool:
    """Whether weights in the format and the file's own would fit on the device, no other model of ComfyUI's there."""
    device = patcher.load_device
    loaded = [each for each in management.current_loaded_models if each.model is not None and each.device == device]
    room = management.get_free_memory(device) + sum(each.model_loaded_memory() for each in loaded)
    fits: bool = patcher.model_size() + format.n_bytes(in_blocks(patcher, format)) < room
    return fits


def why_not_loaded(guider: Any, format: Format) -> str:
    """Why the weights do not lie ready on one card, a sentence without its end, or nothing."""
    if len(guider.model_options.get("multigpu_clones", ())) > 1:
        return "they would be made on one GPU only"
    linears = in_blocks(guider.model_patcher, format)
    if is_dynamic(guider.model_patcher):
        if not may_fit(guider.model_patcher, format):
            return f"the card has no room for {format.n_bytes(linears) / GB:.1f} GB beside the file's own weights"
        return "dynamic VRAM brings weights over one by one"
    if any(linear.comfy_cast_weights or linear.weight_function or linear.bias_function for linear in linears):
        return "not all weights are on the card as they are"
    return ""


def why_no_room(guider: Any, n_bytes: int, noise_shape: Sequence[int]) -> str:
    """Why so many bytes do not fit beside the model and a pass, a sentence without its end, or nothing.

    Models that this run does not use make room, as they do when a model is loaded.
    """
    patcher = guider.model_patcher
    device = patcher.load_device
    for_pass, _ = comfy.sampler_helpers.estimate_memory(patcher, noise_shape, guider.conds)
    if management.get_free_memory(device) < n_bytes + for_pass:
        used = {id(each.model) for each in (patcher, *guider.loaded_models)}
        keep = [each for each in management.current_loaded_models if id(getattr(each.model, "model", None)) in used]
        management.free_memory(n_bytes + for_pass, device, keep)
    free = management.get_free_memory(device)
    if free < n_bytes + for_pass:
        return f"its weights take {n_bytes / GB:.1f} GB and a pass {for_pass / GB:.1f}, {free / GB:.1f} are free"
    return ""
