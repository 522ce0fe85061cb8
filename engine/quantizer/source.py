"""The file that is quantized, in one piece or in several."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import QuantizeError
from ..flux.build import build_transformer
from ..flux.config import FluxConfig
from ..flux.weights import Weights, read_weights
from ..quant import block_type

INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_CHUNK = 1 << 24  # bytes hashed at a time


class Source:
    """A FLUX.1 model's weights, mapped anew as often as one asks, so that no page of a large file stays in memory.

    path: a .safetensors file, an index of several (.safetensors.index.json), one of several (-00001-of-00003), or the
    folder of an index. Raises CheckpointError or QuantizeError for what cannot be quantized.
    """

    def __init__(self, path: Path):
        self.parts = find_parts(path)
        self.name = path.name
        config, weights = self.open()
        packed = [tensor.qtype for tensor in weights.values() if block_type(tensor.qtype)]
        if packed:
            raise QuantizeError(
                f"{self.name}: this file is quantized already ({packed[0]}); quantizing it again would lose more. "
                "Choose the BF16, F16, F32 or fp8 safetensors file that it was made from."
            )
        build_transformer(config, weights, self.name)  # compares the shapes
        self.config: FluxConfig = config

    def open(self) -> tuple[FluxConfig, Weights]:
        """The weights by diffusers' names, mapped; dropping them lets the file go."""
        opened = [open_checkpoint(part) for part in self.parts]
        tensors = {name: tensor for each in opened for name, tensor in each.tensors.items()}
        if len(tensors) < sum(len(each.tensors) for each in opened):
            raise QuantizeError(
                f"{self.name}: a tensor stands in two of its {len(self.parts)} files. They belong to different models; "
                "download them again into an empty folder."
            )
        name = opened[0].file_name if len(opened) == 1 else self.name
        return read_weights(Checkpoint(name, tensors))


def find_parts(path: Path) -> list[Path]:
    """The files of weights behind `path`. Raises QuantizeError where one is missing."""
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX}"))
        if len(indices) != 1:
            raise QuantizeError(
                f"{path}: the folder holds {len(indices)} files *{INDEX}, expected one. Name the file itself."
            )
        (path,) = indices
    if path.name.endswith(INDEX):
        names = _names_in(path)
    elif shard := _SHARD.fullmatch(path.name):
        stem, count = shard.groups()
        names = [f"{stem}-{i + 1:05}-of-{count}.safetensors" for i in range(int(count))]
    else:
        return [path]
    parts = [path.with_name(name) for name in names]
    if gone := [part.name for part in parts if not part.is_file()]:
        raise QuantizeError(
            f"{path.name}: {len(gone)} of {len(parts)} files are missing, such as {gone[0]}. Download them into "
            "the same folder."
        )
    return parts


def _names_in(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        plain = bool(names) and all(Path(name).name == name for name in names)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        plain = False
    if not plain:
        raise QuantizeError(
            f"{index.name}: there is no weight_map with plain file names in it, expected safetensors' index of a model "
            "in several files. Download it again."
        )
    return names


def stem_of(path: Path) -> str:
    """A name for what is made of it."""
    if path.name.endswith(INDEX):
        return path.name.removesuffix(INDEX)
    shard = _SHARD.fullmatch(path.name)
    return shard[1] if shard else path.name if path.is_dir() else path.stem


def sha256_of(path: Path, go_on: Callable[[], bool] = lambda: True) -> str:
    """The file's SHA-256 in hexadecimal digits; of less than the file where `go_on` says no."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while go_on() and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
    return digest.hexdigest()
