"""What a sweep changes: a way to make pictures, how it is sampled, and each setting as a change of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.sample
import node_helpers
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..engine.cache.first_block import FirstBlockSettings
from ..engine.lab.settings import Value
from ..engine.tiers.presets import Choices
from . import lora, optimize, references
from .demo import FOLDER, STORED, TRANSFORMERS, missing, precisions, transformer_file
from .model import KontextModel, load
from .paths import MODELS
from .transformer import REFERENCE_WEIGHTS

Conditioning = list[Any]
KEY = "kontextkit.ways"
USUAL_GUIDANCE = 3.5  # of a conditioning that names none, as ComfyUI's FLUX has it


@dataclass(frozen=True)
class Edit:
    """A prompt to sample. latent: ComfyUI's LATENT of one picture; to: pictures (1, 3, H, W) to compare with."""

    prompt: str
    positive: Conditioning
    latent: Mapping[str, Any]
    to: Mapping[str, Tensor] = field(default_factory=dict)


def file_of(name: str) -> Path:
    """The file of a precision of the demo's, or of a name in ComfyUI's folders. Raises ValueError where none is."""
    if name in TRANSFORMERS:
        if gap := missing(name):
            raise ValueError(gap)
        return transformer_file(name)
    try:
        return MODELS.path(name)
    except FileNotFoundError:
        there = ", ".join((*precisions(), *MODELS.names()))
        raise ValueError(f"values has {name!r}, which is no model file here. There are {there}.") from None


@dataclass(frozen=True)
class Way:
    """How pictures are made, by KSampler's names and without a second guidance. find: a model's file by its name."""

    model: Any
    steps: int = 28
    sampler: str = "euler"
    scheduler: str = "simple"
    denoise: float = 1.0
    condition: Callable[[Conditioning], Conditioning] = lambda positive: positive
    find: Callable[[str], Path] = file_of


def _steps(way: Way, value: Any) -> Way:
    return replace(way, steps=value)


def _guidance(way: Way, value: Any) -> Way:
    return replace(way, condition=lambda positive: node_helpers.conditioning_set_values(positive, {"guidance": value}))


def _denoise(way: Way, value: Any) -> Way:
    return replace(way, denoise=value)


def _context_weight(way: Way, value: Any) -> Way:
    return replace(way, condition=lambda positive: references.weigh(positive, value))


def _threshold(way: Way, value: Any) -> Way:
    choices = choices_of(way.model)
    cache = replace(choices.cache or FirstBlockSettings(), threshold=value)
    return replace(way, model=optimize.apply(way.model, replace(choices, cache=cache, target_ssim=0.0))[0])


def _precision(way: Way, value: Any) -> Way:
    """The file instead of the MODEL's own, under the same LoRAs, optimizer's choices and patches of other nodes."""
    _, (_, compute_dtype) = way.model.cached_patcher_init
    model = load(way.find(value), compute_dtype)
    carry_over(way.model, model)
    for each in lora.applied(way.model):
        model = lora.apply(model, each.lora, each.strength)
    if choices_of(way.model) != Choices():
        model, _ = optimize.apply(model, choices_of(way.model))
    return replace(way, model=model)


def carry_over(patcher: Any, other: Any) -> None:
    """Puts what other nodes patched on one MODEL onto another; this pack's own parts are put there by it."""
    other.model_options = create_model_options_clone(patcher.model_options)
    other.object_patches = dict(patcher.object_patches)
    for theirs, ours in ((patcher.wrappers, other.wrappers), (patcher.callbacks, other.callbacks)):
        for kind, by_key in theirs.items():
            foreign = {key: list(some) for key, some in by_key.items() if not str(key).startswith("kontextkit")}
            ours.setdefault(kind, {}).update(foreign)


CHANGES: dict[str, Callable[[Way, Any], Way]] = {
    "precision": _precision,
    "steps": _steps,
    "guidance": _guidance,
    "denoise": _denoise,
    "context weight": _context_weight,
    "cache threshold": _threshold,
}


def usual(setting: str, way: Way, edits: Sequence[Edit]) -> Value:
    """What the setting is where nothing changes it: the baseline's value."""
    if setting == "precision":
        return name_of(way.model)
    if setting == "guidance":
        return float(edits[0].positive[0][1].get("guidance", USUAL_GUIDANCE))
    if setting == "cache threshold":
        cache = choices_of(way.model).cache
        return cache.threshold if cache else 0.0
    if setting == "context weight":
        given = edits[0].positive[0][1].get(REFERENCE_WEIGHTS, ())
        weights = {weight for some in given for weight in some if weight} or {1.0}
        return weights.pop() if len(weights) == 1 else "as wired"
    return {"steps": way.steps, "denoise": way.denoise}[setting]


def choices_of(model: Any) -> Choices:
    """The optimizer's, on a MODEL."""
    applied = model.get_attachment(optimize.KEY)
    return applied.choices if applied else Choices()


def name_of(model: Any) -> str:
    """Of the MODEL's file; a precision of the demo's. Raises ValueError where the MODEL is from another loader."""
    if not isinstance(model.model, KontextModel):
        raise ValueError(
            "The MODEL is from another loader; precision compares files that Load Kontext Model opens. Load the model "
            "with it or with Load Kontext Demo Model."
        )
    path = model.model.path
    shipped = {FOLDER / TRANSFORMERS[name]: name for name in STORED}
    made = [name for name in TRANSFORMERS if path.name.startswith(f"kontext_demo_{name.lower()}_")]
    return shipped.get(path) or (made or [path.name])[0]


def sample(way: Way, edit: Edit, seed: int, after_step: Callable[[], None] = lambda: None) -> tuple[Tensor, float]:
    """Latents and the seconds of the sampler itself, as ComfyUI's KSampler makes them with CFG 1."""
    scale = edit.latent.get("downscale_ratio_spacial")
    start = comfy.sample.fix_empty_latent_channels(way.model, edit.latent["samples"], scale)
    noise = comfy.sample.prepare_noise(start, seed)
    positive = way.condition(edit.positive)
    how = (way.steps, 1.0, way.sampler, way.scheduler, positive, positive, start)
    model, seconds = timed(way.model)
    latents = comfy.sample.sample(
        model,
        noise,
        *how,
        denoise=way.denoise,
        noise_mask=edit.latent.get("noise_mask"),
        callback=lambda *_: after_step(),
        disable_pbar=True,
        seed=seed,
    )
    return latents, sum(seconds)


def timed(model: Any) -> tuple[Any, list[float]]:
    """A clone of the MODEL, and a list to which its samplers will add their seconds, those of loading left out."""
    clone = model.clone()
    seconds: list[float] = []

    def around(sample: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        begin = time.perf_counter()
        made = sample(*arguments, **more)
        if model.load_device.type == "cuda":
            torch.cuda.synchronize(model.load_device)
        seconds.append(time.perf_counter() - begin)
        return made

    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, around)
    return clone, seconds
