"""Pictures as latents, kept by what they show, so that the same picture goes through a VAE once.

In memory for as long as ComfyUI runs; on disk where the user asks for it, for the next start. A latent is known by the
bytes of the picture as it was scaled, and by the VAE's weights.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import comfy.utils
import folder_paths
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..engine.whole_file import whole_file

IN_MEMORY, ON_DISK = 256 << 20, 512 << 20  # bytes; a 1024x1024 picture takes 1 MB
_vaes: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_kept: OrderedDict[str, Tensor] = OrderedDict()


def encode(vae: Any, picture: Tensor, on_disk: bool = False) -> tuple[Tensor, str]:
    """The latent (1, C, h, w) of a picture (1, H, W, 3), and where it came from: encoded, memory or disk.

    on_disk: look there too, and keep it there.
    """
    key = hashlib.sha256(f"{vae_digest(vae)} {tuple(picture.shape)}".encode() + _bytes(picture)).hexdigest()
    where = "memory"
    latent = _kept.get(key)
    if latent is None and on_disk and (latent := _read(key)) is not None:
        where = "disk"
    if latent is None:
        latent, where = vae.encode(picture), "encoded"
    _kept[key] = latent
    _kept.move_to_end(key)
    while sum(each.nbytes for each in _kept.values()) > IN_MEMORY:
        _kept.popitem(last=False)
    if on_disk:
        _write(key, latent)
    return latent.clone(), where


def forget() -> None:
    """All that is kept in memory."""
    _kept.clear()


def vae_digest(vae: Any) -> str:
    """Of a VAE's weights, read once for each VAE."""
    model = vae.first_stage_model
    if model not in _vaes:
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + _bytes(tensor))
        _vaes[model] = digest.hexdigest()
    return _vaes[model]


def folder() -> Path:
    """Where latents lie on disk: one that ComfyUI's server shows nobody."""
    return Path(folder_paths.get_system_user_directory("kontextkit"), "references")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _read(key: str) -> Tensor | None:
    path = folder() / f"{key}.safetensors"
    if not path.exists():
        return None
    try:
        latent: Tensor = comfy.utils.load_torch_file(str(path), safe_load=True)["latent"]
        path.touch()  # the latest used go last
    except Exception as error:  # a file cut short or of somebody else: encoded anew, and written over
        logging.warning("KontextKit: %s: not a kept latent (%s); it is made anew.", path.name, error)
        path.unlink(missing_ok=True)
        return None
    return latent


def _write(key: str, latent: Tensor) -> None:
    """Whole or not at all; the longest unused go where it gets too much. A full disk costs no run."""
    path = folder() / f"{key}.safetensors"
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            save_file({"latent": latent.contiguous()}, unfinished)
        oldest_first = sorted(path.parent.glob("*.safetensors"), key=lambda each: each.stat().st_mtime)
        excess = sum(each.stat().st_size for each in oldest_first) - ON_DISK
        for each in oldest_first:
            if excess <= 0:
                break
            excess -= each.stat().st_size
            each.unlink()
    except OSError as error:
        logging.warning("KontextKit: the encoded reference is not kept on disk: %s", error)
