"""A trained LoRA as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from ..lora.profiles import GUIDANCE, PROFILE, STEPS
from .lora import Settings, lora_layers

PREFIX = "transformer."  # of diffusers' pipelines


def save_lora(transformer: nn.Module, path: Path, settings: Settings, base: str) -> None:
    """The LoRA that `lora.attach` put on the transformer, in diffusers' names, float32, moved into place when whole.

    The ups hold alpha / rank already: some loaders, ComfyUI's own among them, read alpha from no header.
    base: the name of the model's file, for people.
    """
    tensors = {}
    for name, (down, up, scale) in lora_layers(transformer).items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = down.detach().float().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = (scale * up.detach().float()).cpu().contiguous()
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, _metadata(lora_layers(transformer), path.stem, settings, base))
    os.replace(unfinished, path)


def _metadata(layers: Mapping[str, object], title: str, settings: Settings, base: str) -> dict[str, str]:
    peft = {"r": settings.rank, "lora_alpha": settings.rank, "target_modules": list(layers)}
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"{PREFIX}{key}": value for key, value in peft.items()}),
        "modelspec.title": title,
        **_profile(settings),
        "kontextkit.base": base,
        "kontextkit.rank": str(settings.rank),
        "kontextkit.alpha": str(settings.alpha),
        "kontextkit.steps_trained": str(settings.steps),
    }


def _profile(settings: Settings) -> dict[str, str]:
    """What our loader tells the sampler: of an ordinary LoRA, the steps and guidance of its base."""
    if not settings.distil:
        return {PROFILE: "none"}
    return {PROFILE: "lightning", STEPS: str(settings.distil), GUIDANCE: str(settings.guidance)}
