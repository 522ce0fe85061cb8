"""Model files in ComfyUI's folders."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import folder_paths

FOLDERS = ("diffusion_models", "unet", "unet_gguf")  # the last exists where ComfyUI-GGUF is installed
EXTENSIONS = (".gguf", ".safetensors", ".sft")


def model_folders() -> list[str]:
    """Every directory that may hold a diffusion model, without repeats, in ComfyUI's order."""
    directories = []
    for folder in FOLDERS:
        if folder_paths.map_legacy(folder) in folder_paths.folder_names_and_paths:
            directories += folder_paths.get_folder_paths(folder)
    return list(dict.fromkeys(directories))


def model_names() -> list[str]:
    """Names, relative to their folder, of all files with a model's extension, sorted."""
    names: set[str] = set()
    for directory in model_folders():
        found, _ = folder_paths.recursive_search(directory, excluded_dir_names=[".git"])
        names.update(folder_paths.filter_files_extensions(found, EXTENSIONS))
    return sorted(names)


def model_path(name: str) -> Path:
    """The file behind a name from `model_names`. Raises FileNotFoundError where it is gone, naming the folders."""
    inside = os.path.relpath(os.path.join("/", name), "/")  # `..` cannot climb out of a folder
    for directory in model_folders():
        path = Path(directory, inside)
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{name}: the file is gone from {', '.join(model_folders())}. It was there when the list was made; "
        "put it back, or press R to refresh the list and choose another."
    )


def fingerprint(name: str) -> str:
    """Changes when the file behind the name does: a digest of path, size and time of last change, or 'missing'.

    A digest, because ComfyUI writes it into every picture, and a path tells strangers who made the picture.
    """
    try:
        path = model_path(name)
    except FileNotFoundError:
        return "missing"
    stat = path.stat()
    return hashlib.sha256(f"{path}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
