"""A trained LoRA as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..lora.profiles import GUIDANCE, PROFILE, STEPS
from ..whole_file import whole_file
from .lora import Settings, lora_layers

PREFIX = "transformer."  # of diffusers' pipelines
TRAINING = "kontextkit.training"  # all that decides what a LoRA becomes


def save_lora(transformer: nn.Module, path: Path, settings: Settings, base: str, edits: str = "") -> None:
    """The LoRA that `lora.attach` put on the transformer, in diffusers' names, float32, moved into place when whole.

    The ups hold alpha / rank already: some loaders, ComfyUI's own among them, read alpha from no header.
    base: the name of the model's file. edits: their fingerprint.
    """
    layers, tensors = lora_layers(transformer), {}
    for name, (down, up, scale) in layers.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = down.detach().float().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = (scale * up.detach().float()).cpu().contiguous()
    metadata = _metadata(layers, path.stem, settings) | {TRAINING: _training(settings, base, edits)}
    with whole_file(path) as unfinished:
        save_file(tensors, unfinished, metadata)


def is_trained_so(path: Path, settings: Settings, base: str, edits: str) -> bool:
    """Whether the file at `path` is what `save_lora` wrote for the same settings, base and edits."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return False
    return metadata.get(TRAINING) == _training(settings, base, edits)


def _training(settings: Settings, base: str, edits: str) -> str:
    return json.dumps(asdict(settings) | {"base": base, "edits": edits})


def _metadata(layers: Mapping[str, object], title: str, settings: Settings) -> dict[str, str]:
    peft = {"r": settings.rank, "lora_alpha": settings.rank, "target_modules": list(layers)}
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"{PREFIX}{key}": value for key, value in peft.items()}),
        "modelspec.title": title,
        **_profile(settings),
    }


def _profile(settings: Settings) -> dict[str, str]:
    """What our loader tells the sampler: of an ordinary LoRA, the steps and guidance of its base."""
    if not settings.distil:
        return {PROFILE: "none"}
    return {PROFILE: "lightning", STEPS: str(settings.distil), GUIDANCE: str(settings.guidance)}
