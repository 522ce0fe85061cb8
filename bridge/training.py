"""A LoRA from a folder of edits: ComfyUI's CLIP and VAE encode them once, then the transformer trains alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import nn

from ..engine.checkpoint import open_checkpoint
from ..engine.errors import TrainingDataError
from ..engine.flux.build import build_transformer
from ..engine.flux.weights import read_weights
from ..engine.training.curve import draw_curve
from ..engine.training.lora import Example, LoraTraining, Settings
from ..engine.training.lora_file import save_lora
from ..engine.training.triples import Triple, find_triples, fingerprint, read_picture
from .demo import FOLDER, TRANSFORMERS, load_demo
from .model import read_through
from .text_encoders import load_text_encoders

Encoders = Callable[[], tuple[Any, Any]]  # -> CLIP, VAE
DEMO = FOLDER / TRANSFORMERS["BF16"]


def demo_encoders() -> tuple[Any, Any]:
    """CLIP and VAE of the demo model."""
    _, clip, vae = load_demo("BF16")
    return clip, vae


def flux_encoders(clip_l: Path, t5xxl: Path, vae: Path) -> tuple[Any, Any]:
    """CLIP and VAE of FLUX.1 from three files. Raises CheckpointError where one is broken or of something else."""
    clip = load_text_encoders(clip_l, t5xxl)
    loaded = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(vae)))
    loaded.throw_exception_if_invalid()
    return clip, loaded


def train_lora(
    folder: Path, out: Path, model: Path, encoders: Encoders, settings: Settings, report: Callable[[str], None]
) -> None:
    """Trains a LoRA for the model's file on the edits in `folder` and writes it to `out`, a .safetensors.

    Beside it come to lie its loss curve (NAME_loss.png) and, until it is finished, a checkpoint (NAME.pt), from which
    the same call goes on. Raises TrainingDataError before anything is loaded or written where the edits or `out` will
    not do, CheckpointError for a model's file that will not do or a checkpoint of another training.
    """
    check_target(out, folder)
    triples = find_triples(folder)
    report(f"{len(triples)} edits in {folder.name}")
    transformer = load_transformer(model)
    examples = encode(triples, *encoders())
    comfy.model_management.unload_all_models()
    transformer.to(comfy.model_management.get_torch_device())
    made_with = {"base": model.name, "edits": fingerprint(triples)}
    training = LoraTraining(transformer, examples, settings, made_with)
    checkpoint, curve = out.with_suffix(".pt"), out.with_name(f"{out.stem}_loss.png")

    def tell(text: str) -> None:
        report(text)
        unfinished = curve.with_suffix(".part")
        draw_curve(training.losses, settings.steps).save(unfinished, "PNG")
        os.replace(unfinished, curve)

    before = training.measure()
    out.parent.mkdir(parents=True, exist_ok=True)
    training.run(checkpoint, tell)
    report(f"loss on these edits at the same noise: {before:.4f} without, {training.measure():.4f} with the LoRA")
    save_lora(transformer, out, settings, model.name)
    checkpoint.unlink(missing_ok=True)


def check_target(out: Path, folder: Path) -> None:
    """Raises TrainingDataError where the LoRA cannot be written under this name."""
    if out.suffix != ".safetensors":
        raise TrainingDataError(f"{out.name}: a LoRA is written as .safetensors. Choose a name that ends so.")
    if out.resolve().parent == folder.resolve():
        raise TrainingDataError(f"{out}: this is the folder of the edits. Write the LoRA into another one.")
    if out.exists():
        raise TrainingDataError(f"{out}: this file is there already. Choose another name, or move it away.")


def load_transformer(path: Path) -> nn.Module:
    """The transformer of any file that Load Kontext Model opens, its weights as they are stored, frozen."""
    checkpoint = open_checkpoint(path)
    config, weights = read_weights(checkpoint)
    read_through(checkpoint)
    return build_transformer(config, weights, checkpoint.file_name)


@torch.no_grad()
def encode(triples: Sequence[Triple], clip: Any, vae: Any) -> list[Example]:
    """Latents as FLUX sees them, and text states."""
    to_model = comfy.latent_formats.Flux().process_in
    texts = {}
    for instruction in dict.fromkeys(triple.instruction for triple in triples):
        context, pooled = clip.encode_from_tokens(clip.tokenize(instruction), return_pooled=True)
        texts[instruction] = context[0].float().cpu(), pooled[0].float().cpu()
    examples = []
    for triple in triples:
        pictures = torch.stack([read_picture(path) for path in (triple.result, *triple.references)])
        latents = to_model(vae.encode(pictures).float().cpu())
        examples.append(Example(latents, *texts[triple.instruction]))
    return examples
