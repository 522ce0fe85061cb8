"""The demo model that ships in demo/ as ComfyUI's MODEL, CLIP and VAE."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import torch
from comfy.diffusers_convert import convert_vae_state_dict
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors import safe_open
from torch import Tensor

from ..engine.checkpoint import open_checkpoint
from ..engine.errors import CheckpointError, listing
from ..engine.quantizer.run import quantize
from ..engine.words.encoder import WordEncoder
from ..engine.words.vocabulary import Vocabulary
from .model import load
from .notes import show_here
from .words import make_clip

FOLDER = Path(__file__).resolve().parent.parent / "demo"
TRANSFORMERS = {  # by precision the file that it is, or is made of
    "BF16": "kontext_demo_bf16.safetensors",
    "Q8_0": "kontext_demo_q8_0.gguf",
    **dict.fromkeys(("Q5_K_M", "Q4_K_M", "Q3_K_M"), "kontext_demo_bf16.safetensors"),
}
STORED = ("BF16", "Q8_0")  # the others are made in seconds and kept until ComfyUI ends
WORDS, VAE = "kontext_demo_words.safetensors", "kontext_demo_vae.safetensors"
WIDTH = 256  # of a word's state
LATENT_CHANNELS = 16
VAE_PARAMS = {
    "ddconfig": {
        "double_z": True,
        "z_channels": LATENT_CHANNELS,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 64,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
    "embed_dim": LATENT_CHANNELS,
}
ENCODE_SHARE, DECODE_SHARE = 192 / 384, 193 / 648  # values a pixel alive at the peak, against those of FLUX's own VAE
RESTORE = (
    "The demo model ships with KontextKit: run `git checkout demo/` in the pack's folder, or install the pack again."
)


def precisions() -> list[str]:
    """The precisions whose file is there or can be made, the best first."""
    return [name for name, file_name in TRANSFORMERS.items() if (FOLDER / file_name).is_file()]


def missing(precision: str) -> str:
    """A sentence about the first file that this precision needs and lacks, or nothing."""
    for file_name in _file_names(precision):
        if not (FOLDER / file_name).is_file():
            return f"{file_name}: the file is missing from the pack's folder demo/. {RESTORE}"
    return ""


def fingerprint(precision: str) -> str:
    """Changes when one of the files does: a digest of their names, sizes and times of last change."""
    paths = [FOLDER / file_name for file_name in _file_names(precision)]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def load_demo(precision: str) -> tuple[Any, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE. Raises CheckpointError, naming the file, where one is missing or damaged."""
    if gap := missing(precision):
        raise CheckpointError(gap)
    try:
        vocabulary, words = read_words(FOLDER / WORDS)
        autoencoder = read_autoencoder(FOLDER / VAE)
        model = load(transformer_file(precision))
    except CheckpointError as error:
        raise CheckpointError(f"{error} {RESTORE}") from error
    return model, make_clip(vocabulary, words), _make_vae(autoencoder)


def transformer_file(precision: str) -> Path:
    """The file of the transformer; one that does not ship with the pack is made and kept in ComfyUI's temp folder."""
    source = FOLDER / TRANSFORMERS[precision]
    if precision in STORED:
        return source
    stat = source.stat()
    state = hashlib.sha256(f"{source}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    made = Path(folder_paths.get_temp_directory(), f"kontext_demo_{precision.lower()}_{state}.gguf")
    if not made.is_file():
        show_here(f"making {precision} of {source.name}")
        made.parent.mkdir(parents=True, exist_ok=True)
        quantize(source, precision, made)
    return made


def read_words(path: Path) -> tuple[Vocabulary, dict[str, Tensor]]:
    """The list of words in a file's metadata, and the state of their `WordEncoder`, float32."""
    tensors = _read(path)
    with safe_open(str(path), framework="pt") as file:
        written = (file.metadata() or {}).get("words", "")
    try:
        words = json.loads(written)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CheckpointError(
            f"{path.name}: the metadata has {written[:40]!r} under 'words', expected a JSON list of words."
        )
    with torch.device("meta"):
        expected = WordEncoder(len(words), WIDTH).state_dict()
    _compare(path.name, tensors, expected)
    return Vocabulary(words), tensors


def read_autoencoder(path: Path) -> dict[str, Tensor]:
    """diffusers' `AutoencoderKL` under ComfyUI's names, float32."""
    tensors = convert_vae_state_dict(_read(path))
    with torch.device("meta"):
        expected = AutoencoderKL(**VAE_PARAMS).state_dict()
    _compare(path.name, tensors, expected)
    return tensors


def _make_vae(tensors: dict[str, Tensor]) -> comfy.sd.VAE:
    """ComfyUI's estimates of memory are for FLUX's own VAE, several times as wide; ours are their share."""
    vae = comfy.sd.VAE(sd=tensors, config={"params": VAE_PARAMS})
    vae.latent_channels = LATENT_CHANNELS
    encode, decode = vae.memory_used_encode, vae.memory_used_decode
    vae.memory_used_encode = lambda shape, dtype: ENCODE_SHARE * encode(shape, dtype)
    vae.memory_used_decode = lambda shape, dtype: DECODE_SHARE * decode(shape, dtype)
    return vae


def _file_names(precision: str) -> tuple[str, str, str]:
    return TRANSFORMERS[precision], WORDS, VAE


def _read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file as float32."""
    checkpoint = open_checkpoint(path)
    checkpoint.require_supported(checkpoint.tensors)
    return {name: tensor.decode(torch.float32) for name, tensor in checkpoint.tensors.items()}


def _compare(file_name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where a tensor is missing, too many or of the wrong shape."""
    if absent := [name for name in expected if name not in found]:
        raise CheckpointError(f"{file_name}: {len(absent)} of {len(expected)} tensors are missing: {listing(absent)}.")
    if extra := [name for name in found if name not in expected]:
        raise CheckpointError(f"{file_name}: {len(extra)} tensors belong to no such model: {listing(extra)}.")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{file_name}: tensor {name!r} has shape {list(tensor.shape)}, expected {list(expected[name].shape)}."
            )
