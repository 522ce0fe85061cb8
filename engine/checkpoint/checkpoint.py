"""The table of packed tensors in a weights file, mapped, never copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..gguf import Header, TensorInfo, read_header
from ..quant import PackedTensor, block_type
from ..quant.packed import DENSE, supported_types
from .safetensors_file import read_safetensors
from .scales import check_blocks
from .sniff import sniff


@dataclass(frozen=True)
class Checkpoint:
    """file_name: for messages; tensors: by name, views of the mapped file."""

    file_name: str
    tensors: dict[str, PackedTensor]

    def require_supported(self, names: Iterable[str]) -> None:
        """Raise CheckpointError where one of these tensors is of a type without a decoder."""
        names = list(names)
        foreign = [name for name in names if self.tensors[name].qtype not in supported_types()]
        if foreign:
            raise CheckpointError(
                f"{self.file_name}: tensor {foreign[0]!r} is stored as {self.tensors[foreign[0]].qtype} "
                f"({len(foreign)} of {len(names)} tensors), which this loader cannot decode yet. "
                f"Use a file of one of these types: {', '.join(supported_types())}."
            )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Map the GGUF or safetensors file at `path`; no weight is read yet.

    Raises CheckpointError for a file that is missing, broken or not one of the two.
    """
    path = Path(path)
    with explained(path):
        if sniff(path) == "safetensors":
            return Checkpoint(path.name, read_safetensors(path))
        header = read_header(path)
        return Checkpoint(path.name, _map_gguf(path, header))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raises CheckpointError where the system refuses to read or map the file at `path`."""
    try:
        yield
    except RuntimeError as error:  # torch's and safetensors' word for a mapping that the system refused
        gigabytes = path.stat().st_size / 1e9
        raise CheckpointError(
            f"{path.name}: the system would not map this file of {gigabytes:.1f} GB ({error}). "
            "Close other programs, enlarge the swap file, or use a smaller quantization."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path.name}: the file cannot be read ({error.strerror or error}). It may have been moved or deleted "
            "since the list was made; press R in ComfyUI to refresh it and choose again."
        ) from error


def _map_gguf(path: Path, header: Header) -> dict[str, PackedTensor]:
    """Every tensor as a view of one private mapping of the file."""
    mapping = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    return {info.name: _view(path.name, mapping, info) for info in header.tensors}


def _view(file_name: str, mapping: Tensor, info: TensorInfo) -> PackedTensor:
    """Matrices as they lie in the file; a packed vector is decoded, for its blocks may not fall on its parts."""
    data = mapping[info.offset : info.offset + info.n_bytes]
    blocks = block_type(info.qtype)
    if info.qtype in DENSE:
        data = data.view(DENSE[info.qtype]).view(info.shape)
    elif blocks is not None and len(info.shape) == 1:
        check_blocks(file_name, info.name, blocks, data)
        return PackedTensor(blocks.decode(data), "F32", info.shape)
    elif blocks is not None:
        data = data.view(*info.shape[:-1], blocks.row_bytes(info.shape[-1]))
    return PackedTensor(data, info.qtype, info.shape)
