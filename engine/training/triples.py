"""The folder that a LoRA is trained on: pictures before and after an edit, and the words that ask for it.

An edit NAME is `NAME.txt`, the instruction, `NAME_ref.png`, the picture before, and `NAME.png`, the picture after; more
references are `NAME_ref2.png` to `NAME_ref9.png`. Pictures are .png, .jpg, .jpeg or .webp.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import TrainingDataError, listing
from ..flux.positions import GRID

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FORMAT = "An edit is NAME.txt (the instruction), NAME_ref.png (before; more: NAME_ref2.png ...) and NAME.png (after)."

_STEM = re.compile(r"(?P<name>.+?)(?:_ref(?P<number>[2-9]?))?")


@dataclass(frozen=True)
class Triple:
    """One edit. references: at least one picture's path, in order; all pictures are of one size."""

    name: str
    instruction: str
    references: tuple[Path, ...]
    result: Path


def find_triples(folder: Path) -> list[Triple]:
    """Every edit in the folder, by name; other kinds of file are left aside.

    Raises TrainingDataError, naming all files at fault, where something is missing, unreadable or empty, where the
    pictures of an edit differ in size, or where sides are no multiples of GRID.
    """
    if not folder.is_dir():
        raise TrainingDataError(f"{folder}: there is no such folder. Name the folder that holds the edits. {FORMAT}")
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    faults: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() == ".txt":
            name, role = path.stem, "instruction"
        elif path.suffix.lower() in PICTURES:
            match = _STEM.fullmatch(path.stem)
            assert match
            number = match["number"]
            name, role = match["name"], "result" if number is None else f"reference {number or 1}"
        else:
            continue
        if role in files[name]:
            faults.append(f"{path.name} and {files[name][role].name} are both the {role} of {name}; delete one")
        files[name][role] = path
    triples = [_triple(name, roles, faults) for name, roles in files.items()]
    if faults:
        raise TrainingDataError(f"{folder.name}: {listing(faults)}. {FORMAT}")
    if not triples:
        raise TrainingDataError(f"{folder.name}: there are no edits in this folder. {FORMAT}")
    return [triple for triple in triples if triple]


def _triple(name: str, roles: dict[str, Path], faults: list[str]) -> Triple | None:
    """The edit of these files; what is wrong with it is added to `faults`."""
    before = len(faults)
    gaps = {"instruction": f"{name}.txt", "reference 1": f"{name}_ref.png", "result": f"{name}.png"}
    if missing := [file_name for role, file_name in gaps.items() if role not in roles]:
        faults.append(f"{name} has {listing(p.name for p in roles.values())} but no {' and no '.join(missing)}")
        return None
    instruction = ""
    try:
        instruction = roles["instruction"].read_text(encoding="utf-8").strip()
        if not instruction:
            faults.append(f"{name}.txt is empty, expected an instruction")
    except UnicodeDecodeError:
        faults.append(f"{name}.txt is no UTF-8 text; save it as UTF-8")
    references = tuple(path for role, path in sorted(roles.items()) if role.startswith("reference"))
    sizes: dict[str, tuple[int, int]] = {}
    for path in (*references, roles["result"]):
        try:
            height, width, _ = read_picture(path).shape
            sizes[path.name] = width, height
        except OSError as error:
            faults.append(f"{path.name} cannot be read as a picture ({error})")
    says = ", ".join(f"{file_name} {width}x{height}" for file_name, (width, height) in sizes.items())
    if len(set(sizes.values())) > 1:
        faults.append(f"the pictures of {name} differ in size ({says}); scale or cut them to one")
    elif any(side % GRID for size in sizes.values() for side in size):
        faults.append(f"sides of {name} are no multiples of {GRID} pixels ({says}); scale or cut its pictures")
    return Triple(name, instruction, references, roles["result"]) if len(faults) == before else None


def read_picture(path: Path) -> Tensor:
    """(H, W, 3) float32 in 0-1, turned upright, without its alpha. Raises OSError where it is no picture."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), dtype=np.float32)
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL says of some broken files
        raise OSError(str(error)) from error
    return torch.from_numpy(pixels / 255)


def fingerprint(triples: Iterable[Triple]) -> str:
    """Changes when a file of an edit does: a digest of names and contents."""
    digest = hashlib.sha256()
    for triple in triples:
        digest.update(repr((triple.name, triple.instruction)).encode())
        for path in (*triple.references, triple.result):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
