"""Finds the first-block threshold that keeps a picture so alike, by making it several times in the user's own graph."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..engine.cache.calibration import THRESHOLDS, find_threshold
from ..engine.metrics.ssim import ssim
from ..engine.pace import time_left
from ..engine.tiers.presets import Choices
from .lora import applied as applied_loras
from .notes import show_here

CHOICES = "kontextkit.choices"  # in a run's transformer_options: what a trial does instead of the node's choices
N_KNOWN = 32
N_TRIALS = len(THRESHOLDS).bit_length()  # of a search by halving, at most
_known: OrderedDict[tuple[object, ...], tuple[float, float]] = OrderedDict()  # (threshold, SSIM) by kind of run

Sample = Callable[..., Tensor]


def calibrated(
    sample: Sample,
    guider: Any,
    choices: Choices,
    vae: Any,
    noise: Tensor,
    latent: Tensor,
    sampler: Any,
    sigmas: Tensor,
    *rest: Any,
    **more: Any,
) -> tuple[Tensor, str]:
    """The latents and what to say of them. sample and the arguments from noise on: ComfyUI's `CFGGuider.outer_sample`.

    The first run of a kind makes its picture in full, then with thresholds; later ones take what was found.
    """
    assert choices.cache
    cache = choices.cache
    conditions = {name: [dict(one) for one in some] for name, some in guider.conds.items()}

    def make(threshold: float) -> Tensor:
        guider.conds = {name: [dict(one) for one in some] for name, some in conditions.items()}
        trial = replace(choices, cache=replace(cache, threshold=threshold), target_ssim=0.0)
        guider.model_options["transformer_options"][CHOICES] = trial
        return sample(noise.clone(), latent.clone(), sampler, sigmas, *rest, **more)

    function = getattr(sampler, "sampler_function", type(sampler))
    key = (*kind_of_run(guider, choices, latent, sigmas), getattr(function, "__name__", ""))
    if key in _known:
        threshold, likeness = _known[key]
        return make(threshold), f"Threshold {threshold:g}, found before for this kind of run (SSIM {likeness:.4f})."
    begin = time.perf_counter()
    full = make(0.0)
    right = pictures(vae, full)
    made = {0.0: full}

    def likeness_at(threshold: float) -> float:
        left = (time.perf_counter() - begin) / len(made) * (N_TRIALS + 1 - len(made))
        show_here(f"Finding the threshold: picture {len(made) + 1} of {N_TRIALS + 1} at most, {time_left(left)}")
        made[threshold] = make(threshold)
        measured = float(ssim(right, pictures(vae, made[threshold])).min())
        logging.info("KontextKit: threshold %g keeps SSIM %.4f", threshold, measured)
        return measured

    threshold, likeness = _known[key] = find_threshold(likeness_at, choices.target_ssim)
    while len(_known) > N_KNOWN:
        _known.popitem(last=False)
    words = (
        f"Threshold {threshold:g} is the largest tried that keeps SSIM {choices.target_ssim:g} (it has {likeness:.4f})"
    )
    return made[threshold], f"{words}, found in {len(made)} runs; set it as threshold to spare them another time."


def kind_of_run(guider: Any, choices: Choices, latent: Tensor, sigmas: Tensor) -> tuple[object, ...]:
    """What a threshold was found for: model, LoRAs, choices, guidance (CFG), noise levels, sizes of picture and
    references."""
    patcher = guider.model_patcher
    loras = [(each.lora.file_name, each.strength) for each in applied_loras(patcher)]
    given = guider.conds.get("positive", ())
    references = [tuple(latent.shape) for one in given for latent in one.get("reference_latents", ())]
    sizes = (tuple(latent.shape), *references)
    return (str(patcher.model.path), *loras, choices, getattr(guider, "cfg", 1.0), *sigmas.tolist(), *sizes)


def pictures(vae: Any, latents: Tensor) -> Tensor:
    """(B, 3, H, W) in 0-1."""
    decoded: Tensor = vae.decode(latents)
    return decoded.movedim(-1, 1).float().clamp(0, 1)
