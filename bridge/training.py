"""A LoRA from a folder of edits: ComfyUI's CLIP and VAE encode them once, then the transformer trains alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from ..engine.checkpoint import open_checkpoint
from ..engine.errors import TrainingDataError, listing
from ..engine.flux.build import build_transformer
from ..engine.flux.weights import read_weights
from ..engine.training.curve import draw_curve
from ..engine.training.distillation import Distillation
from ..engine.training.lora import Example, LoraTraining, Settings
from ..engine.training.lora_file import is_trained_so, save_lora
from ..engine.training.triples import FORMAT, Triple, find_triples, fingerprint, read_picture
from ..engine.whole_file import whole_file
from .demo import FOLDER, TRANSFORMERS, load_demo
from .lora import applied
from .model import KontextModel, read_through
from .paths import LORAS, NAME_RULE, new_name
from .progress import Progress
from .text_encoders import load_text_encoders

Encoders = Callable[[], tuple[Any, Any]]  # -> CLIP, VAE
OWN_STEPS = 32  # of the model's, which a distilled LoRA's few do as well
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

    Beside it come to lie its loss curve (NAME_loss.png) and, until it is finished, a checkpoint (NAME.checkpoint), from
    which the same call goes on; ComfyUI's Cancel writes one. A LoRA that is there already is not trained again. Raises
    TrainingDataError before anything is loaded or written where the edits or `out` will not do, CheckpointError for a
    model's file that will not do or a checkpoint of another training.
    """
    check_target(out, folder)
    triples = find_triples(folder)
    report(f"{len(triples)} edits in {folder.name}")
    edits, curve = fingerprint(triples), curve_of(out)
    if out.exists():
        if not is_trained_so(out, settings, model.name, edits):
            raise TrainingDataError(f"{out}: this file is there already. Choose another name, or move it away.")
        report(f"{out.name} is there already, trained on these edits with these settings: nothing to do")
        return
    transformer = load_transformer(model)
    examples = encode(triples, *encoders(), transformer.config)
    comfy.model_management.unload_all_models()
    _train(transformer, examples, out, curve, settings, {"base": model.name, "edits": edits}, report)


@torch.inference_mode(False)  # in which ComfyUI runs its nodes, and nothing learns
def _train(
    transformer: Any,
    examples: Sequence[Example],
    out: Path,
    curve: Path,
    settings: Settings,
    made_with: dict[str, str],
    report: Callable[[str], None],
) -> None:
    transformer.to(comfy.model_management.get_torch_device())
    if settings.distil:
        sigmas = own_sigmas(settings.distil)
        training: LoraTraining = Distillation(transformer, examples, settings, made_with, sigmas)
    else:
        training = LoraTraining(transformer, examples, settings, made_with)
    checkpoint, bar = out.with_suffix(".checkpoint"), Progress(settings.steps, "Training")
    stop_if_cancelled = comfy.model_management.throw_exception_if_processing_interrupted

    def tell(text: str) -> None:
        report(text)
        bar.words = text
        picture = draw_curve(training.losses, settings.steps)
        with whole_file(curve) as unfinished:
            picture.save(unfinished, "PNG")
        bar.bar.update_absolute(training.loop.step, preview=("JPEG", picture, max(picture.size)))

    out.parent.mkdir(parents=True, exist_ok=True)
    tell("training begins")
    before = training.measure(stop_if_cancelled)
    training.run(checkpoint, tell, bar.at)
    after = training.measure(stop_if_cancelled)
    save_lora(transformer, out, settings, **made_with)
    checkpoint.unlink(missing_ok=True)
    report(f"loss on these edits at the same noise: {before:.4f} without, {after:.4f} with the LoRA")


def own_sigmas(distil: int) -> Tensor:
    """The noise levels of about OWN_STEPS steps by ComfyUI's schedule `simple`, as many for each of `distil` steps."""
    sampling = comfy.model_base.model_sampling(comfy.supported_models.Flux({}), comfy.model_base.ModelType.FLUX)
    sigmas: Tensor = comfy.samplers.calculate_sigmas(sampling, "simple", distil * -(-OWN_STEPS // distil))
    return sigmas


def curve_of(lora: Path) -> Path:
    """Where its loss curve lies."""
    return lora.with_name(f"{lora.stem}_loss.png")


def base_of(patcher: Any) -> Path:
    """The file of a MODEL. Raises ValueError where it is not this pack's, or has LoRAs on it."""
    if not isinstance(patcher.model, KontextModel):
        raise ValueError(
            "The MODEL is from another loader; a LoRA is trained on the file of one from Load Kontext Model or Load "
            "Kontext Demo Model. Load the model with one of these."
        )
    if on_it := [each.lora.file_name for each in applied(patcher)]:
        raise ValueError(
            f"The MODEL has a LoRA on it ({listing(on_it)}); a new one is trained on the model's file alone. Connect "
            "the loader's own MODEL."
        )
    return patcher.model.path


def new_lora(name: str) -> Path:
    """Where a LoRA of this name is written: into the first folder of LoRAs. Raises TrainingDataError for a bad name."""
    file_name = new_name(name, ".safetensors")
    if file_name is None:
        raise TrainingDataError(
            f"lora_name is {name!r}, expected the name of a new file, such as red_frame: {NAME_RULE}."
        )
    return Path(LORAS.directories()[0], file_name)


def edits_in(folder: str) -> Path:
    """A folder by its path, or by its name in ComfyUI's input directory. Raises TrainingDataError for no name."""
    if not folder.strip():
        raise TrainingDataError(
            f"folder is empty, expected that of the edits, or its name in ComfyUI's input. {FORMAT}"
        )
    return Path(folder_paths.get_input_directory(), folder.strip())


def last_changed(folder: str) -> str:
    """Changes when a file in the folder does: a digest of their names, sizes and times of last change."""
    path = edits_in(folder)
    files = path.iterdir() if path.is_dir() else ()
    stats = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    return hashlib.sha256(repr(sorted(stats)).encode()).hexdigest()


def check_target(out: Path, folder: Path) -> None:
    """Raises TrainingDataError where the LoRA cannot be written under this name."""
    if out.suffix != ".safetensors":
        raise TrainingDataError(f"{out.name}: a LoRA is written as .safetensors. Choose a name that ends so.")
    if out.resolve().parent == folder.resolve():
        raise TrainingDataError(f"{out}: this is the folder of the edits. Write the LoRA into another one.")


@torch.inference_mode(False)
def load_transformer(path: Path) -> nn.Module:
    """The transformer of any file that Load Kontext Model opens, its weights as they are stored, frozen."""
    checkpoint = open_checkpoint(path)
    config, weights = read_weights(checkpoint)
    read_through(checkpoint)
    return build_transformer(config, weights, checkpoint.file_name)


@torch.no_grad()
def encode(triples: Sequence[Triple], clip: Any, vae: Any, config: Any) -> list[Example]:
    """Latents as FLUX sees them, and text states. config: of the transformer that shall read them.

    Raises TrainingDataError where CLIP or VAE are of another model.
    """
    space = comfy.latent_formats.Flux()
    texts = {}
    for instruction in dict.fromkeys(triple.instruction for triple in triples):
        comfy.model_management.throw_exception_if_processing_interrupted()
        context, pooled = clip.encode_from_tokens(clip.tokenize(instruction), return_pooled=True)
        widths = context.shape[-1], 0 if pooled is None else pooled.shape[-1]
        _check("CLIP", "states of widths", widths, (config.joint_attention_dim, config.pooled_projection_dim))
        texts[instruction] = normal(context[0]), normal(pooled[0])
    examples = []
    for triple in triples:
        comfy.model_management.throw_exception_if_processing_interrupted()
        pictures = torch.stack([read_picture(path) for path in (triple.result, *triple.references)])
        latents, (height, width) = vae.encode(pictures), pictures.shape[1:3]
        _check("VAE", "latents of shape", latents.shape[1:], (space.latent_channels, height // 8, width // 8))
        examples.append(Example(normal(space.process_in(latents)), *texts[triple.instruction]))
    return examples


def _check(kind: str, what: str, got: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(got) != tuple(expected):
        raise TrainingDataError(
            f"The {kind} gives {what} {tuple(got)}, the model needs {tuple(expected)}. Connect the {kind} that "
            "belongs to the model."
        )


@torch.inference_mode(False)
def normal(tensor: Tensor) -> Tensor:
    """A copy on the host in float32; one that was made in inference mode may not be learnt from."""
    return tensor.to("cpu", torch.float32, copy=True)
