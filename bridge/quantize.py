"""Quantizes a model file of ComfyUI's folders into them, and compares pictures of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from ..engine.errors import QuantizeError
from ..engine.metrics.ssim import ssim
from ..engine.pace import Pace
from ..engine.quantizer.run import quantize
from ..engine.quantizer.source import find_parts, stem_of
from . import lora as loras
from .model import load
from .notes import show_here
from .paths import LORAS, MODELS, NAME_RULE, new_name

SEEDS, SAMPLER, SCHEDULER = (1, 2, 3), "euler", "simple"
ENOUGH = 0.95  # mean SSIM
ROOM_ON_CARD = 3 << 30  # bytes that encoding wants there


@dataclass(frozen=True)
class Check:
    """What to make pictures of: ComfyUI's CONDITIONING, VAE and LATENT, as KSampler and VAE Decode take them, steps."""

    positive: Any
    vae: Any
    latent: dict[str, Tensor]
    steps: int


def quantize_model(
    model_name: str, qtype: str, filename: str, lora_name: str | None, strength: float, check: Check | None
) -> tuple[str, str, Tensor | None]:
    """(the new file's name in models/diffusion_models, a report, the check's pictures side by side as an IMAGE).

    lora_name: of a LoRA to merge first, or None.

    Raises QuantizeError or CheckpointError where source, LoRA or name will not do; then, and when interrupted, nothing
    has changed.
    """
    source = MODELS.path(model_name)
    if check and find_parts(source) != [source]:
        raise QuantizeError(
            f"{model_name}: pictures can be compared with a source in one file only. Disconnect positive, vae and "
            "latent_image to quantize without."
        )
    target = target_of(filename, source, qtype)
    merging = ((LORAS.path(lora_name), strength),) if lora_name else ()
    device = comfy.model_management.get_torch_device()
    if device.type == "cuda":
        comfy.model_management.free_memory(ROOM_ON_CARD, device)
    else:
        device = torch.device("cpu")
    done = quantize(source, qtype, target, merging, _shown(qtype), device)
    report, pictures = done.report(), None
    if check:
        said, pictures = compare(source, target, merging, check)
        report += f"\n{said}"
    show_here(report)
    return target.name, report, pictures


def target_of(filename: str, source: Path, qtype: str) -> Path:
    """Where the result goes: into models/diffusion_models. Raises QuantizeError for a bad name."""
    name = new_name(filename if filename.strip() else f"{stem_of(source)}-{qtype}", ".gguf")
    if name is None:
        raise QuantizeError(
            f"filename is {filename!r}, expected the name of a new file, such as my_kontext-Q4_K_M: {NAME_RULE}."
        )
    folders = MODELS.directories()  # in ComfyUI models/unet is the first
    return Path(next((folder for folder in folders if Path(folder).name == "diffusion_models"), folders[0]), name)


def _shown(qtype: str) -> Callable[[int, int], None]:
    """A progress that ComfyUI shows and interrupts."""
    bar, pace = comfy.utils.ProgressBar(1), Pace(qtype)

    def progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)
        if text := pace.text(done, total):
            show_here(text)

    return progress


def compare(source: Path, result: Path, merged: tuple[tuple[Path, float], ...], check: Check) -> tuple[str, Tensor]:
    """Pictures made with one prompt and the same seeds by source, LoRAs merged, and result: their SSIM, and themselves.

    They lie side by side, (N, H, 2 W, 3) in 0-1.
    """
    show_here("comparing pictures")
    before, after = _pictures(source, merged, check), _pictures(result, (), check)
    likeness = ssim(before, after)
    mean = float(likeness.mean())
    each = ", ".join(f"{value:.4f}" for value in likeness.tolist())
    verdict = f"passes ({ENOUGH} or more)" if mean >= ENOUGH else f"does not pass ({ENOUGH}): choose a larger type"
    said = f"SSIM of {len(likeness)} pictures to the source's: {each}; mean {mean:.4f}, {verdict}."
    return said, torch.cat((before, after), dim=3).movedim(1, -1)


def _pictures(path: Path, merged: tuple[tuple[Path, float], ...], check: Check) -> Tensor:
    """(N, 3, H, W) in 0-1, one or a batch for every seed."""
    model = load(path)
    for file, strength in merged:
        model = loras.apply(model, loras.read(file, model), strength)
    latent = comfy.sample.fix_empty_latent_channels(model, check.latent["samples"])
    bar, pictures = comfy.utils.ProgressBar(len(SEEDS) * check.steps), []
    for seed in SEEDS:
        samples = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, seed),
            check.steps,
            1.0,
            SAMPLER,
            SCHEDULER,
            check.positive,
            check.positive,  # guidance 1 asks for no negative
            latent,
            callback=lambda *_: bar.update(1),
            disable_pbar=True,
            seed=seed,
        )
        pictures.append(check.vae.decode(samples).movedim(-1, 1).float().clamp(0, 1).cpu())
    return torch.cat(pictures)
