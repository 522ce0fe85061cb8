"""FP8 products while a sampler runs: their weights are made at its start, beside those that ComfyUI loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import comfy.sampler_helpers
import torch

from ..engine.flux.blocks import token_linears
from ..engine.quant import fp8
from ..engine.tiers.presets import FP8
from .linear import HostedLinear
from .patcher import is_dynamic
from .run import SamplingRun

GB = 1e9


@contextmanager
def products(run: SamplingRun, guider: Any, noise_shape: Sequence[int]) -> Iterator[None]:
    """Around the sampler: the Linears of the blocks multiply as the run's choices say.

    Where FP8 cannot be they multiply as loaded, and the run's report says why.
    """
    if run.choices.precision != FP8:
        yield
        return
    model = guider.model_patcher.model
    linears = in_blocks(guider.model_patcher)
    reason = fp8.why_not(run.device) or why_not_loaded(guider, linears) or why_no_room(guider, linears, noise_shape)
    if reason:
        run.notes.append(f"Products ran as loaded, not in FP8: {reason}.")
        yield
        return
    begin = time.perf_counter()
    with fp8.attached(linears, model.get_dtype_inference()):
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        took = time.perf_counter() - begin
        run.notes.append(f"Products in FP8: {fp8.n_bytes(linears) / GB:.1f} GB of weights, made in {took:.2f} s.")
        yield


def in_blocks(patcher: Any) -> list[HostedLinear]:
    """Those Linears of a MODEL that FP8 takes."""
    linears = token_linears(patcher.model.diffusion_model.transformer).values()
    return [linear for linear in linears if fp8.fits(linear)]


def may_fit(patcher: Any) -> bool:
    """Whether the FP8 weights and the file's own would fit on the device, were no other model of ComfyUI's there."""
    device = patcher.load_device
    loaded = [each for each in management.current_loaded_models if each.model is not None and each.device == device]
    room = management.get_free_memory(device) + sum(each.model_loaded_memory() for each in loaded)
    fits: bool = patcher.model_size() + fp8.n_bytes(in_blocks(patcher)) < room
    return fits


def why_not_loaded(guider: Any, linears: Sequence[HostedLinear]) -> str:
    """Why the weights do not lie ready on one card, a sentence without its end, or nothing."""
    if len(guider.model_options.get("multigpu_clones", ())) > 1:
        return "they would be made on one GPU only"
    if is_dynamic(guider.model_patcher):
        if not may_fit(guider.model_patcher):
            return f"the card has no room for {fp8.n_bytes(linears) / GB:.1f} GB beside the file's own weights"
        return "dynamic VRAM brings weights over one by one"
    if any(linear.comfy_cast_weights or linear.weight_function or linear.bias_function for linear in linears):
        return "not all weights are on the card as they are"
    return ""


def why_no_room(guider: Any, linears: Sequence[HostedLinear], noise_shape: Sequence[int]) -> str:
    """Why they do not fit beside the model and a pass, a sentence without its end, or nothing.

    Models that this run does not use make room, as they do when a model is loaded.
    """
    patcher = guider.model_patcher
    device, n_bytes = patcher.load_device, fp8.n_bytes(linears)
    for_pass, _ = comfy.sampler_helpers.estimate_memory(patcher, noise_shape, guider.conds)
    if management.get_free_memory(device) < n_bytes + for_pass:
        used = {id(each.model) for each in (patcher, *guider.loaded_models)}
        keep = [each for each in management.current_loaded_models if id(getattr(each.model, "model", None)) in used]
        management.free_memory(n_bytes + for_pass, device, keep)
    free = management.get_free_memory(device)
    if free < n_bytes + for_pass:
        return f"its weights take {n_bytes / GB:.1f} GB and a pass {for_pass / GB:.1f}, {free / GB:.1f} are free"
    return ""
