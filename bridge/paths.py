"""Model files in ComfyUI's folders."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..engine.tiers.files import FILES

EXTENSIONS = (".gguf", ".safetensors", ".sft")
FORBIDDEN, LONGEST = set('/\\:*?"<>|'), 100  # in a new file's name: no folders, and what Windows allows
NAME_RULE = f"no folders, at most {LONGEST} characters, none of them {' '.join(sorted(FORBIDDEN))}, the first no dot"


@dataclass(frozen=True)
class Shelf:
    """All files of one kind. folders: ComfyUI's names for their places, some of which other packs add."""

    folders: tuple[str, ...]

    def directories(self) -> list[str]:
        """Every directory of the shelf, without repeats, in ComfyUI's order."""
        directories = []
        for folder in self.folders:
            if folder_paths.map_legacy(folder) in folder_paths.folder_names_and_paths:
                directories += folder_paths.get_folder_paths(folder)
        return list(dict.fromkeys(directories))

    def names(self) -> list[str]:
        """Names, relative to their directory, of all files with a model's extension, sorted."""
        names: set[str] = set()
        for directory in self.directories():
            found, _ = folder_paths.recursive_search(directory, excluded_dir_names=[".git"])
            names.update(folder_paths.filter_files_extensions(found, EXTENSIONS))
        return sorted(names)

    def missing(self, name: str | None) -> str:
        """Which file is not there, where it goes and where it is to be had; empty for a name from `names`, or none.

        For a node's `validate_inputs`, where ComfyUI alone would say that the value is not in the list.
        """
        if name is None or name in self.names():
            return ""
        directories, known = self.directories(), FILES.get(os.path.basename(name))
        first = next((each for each in directories if known and Path(each).name == known.directory), directories[0])
        get = f"{known.how_to_get}, put it into" if known else "Put it into"
        return f"{name} is not there. {get} {first}, press R and run again, or choose another file."

    def path(self, name: str) -> Path:
        """The file behind a name from `names`. Raises FileNotFoundError where it is gone, naming the directories."""
        inside = os.path.relpath(os.path.join("/", name), "/")  # `..` cannot climb out of a folder
        for directory in self.directories():
            path = Path(directory, inside)
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"{name}: the file is gone from {', '.join(self.directories())}. It was there when the list was made; "
            "put it back, or press R to refresh the list and choose another."
        )

    def fingerprint(self, name: str) -> str:
        """Changes when the file behind the name does: a digest of path, size and time of last change, or 'missing'.

        A digest, because ComfyUI writes it into every picture, and a path tells strangers who made the picture.
        """
        try:
            path = self.path(name)
        except FileNotFoundError:
            return "missing"
        stat = path.stat()
        return hashlib.sha256(f"{path}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()


def new_name(name: str, suffix: str) -> str | None:
    """The name of a new file that ends in `suffix`, which may be left out; None where it breaks NAME_RULE."""
    stem = name.strip().removesuffix(suffix)
    if not stem or stem.startswith(".") or not stem.isprintable() or FORBIDDEN & set(stem) or len(stem) > LONGEST:
        return None
    return stem + suffix


MODELS = Shelf(("diffusion_models", "unet", "unet_gguf"))  # the last exists where ComfyUI-GGUF is installed
LORAS = Shelf(("loras",))
ENCODERS = Shelf(("text_encoders", "clip", "clip_gguf"))
