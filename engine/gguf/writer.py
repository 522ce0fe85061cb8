"""What stands before the tensors of a GGUF file, and where each tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .header import MAGIC, TensorInfo

VERSION, ALIGNMENT = 3, 32
_UINT32, _STRING = 4, 8


@dataclass(frozen=True)
class Layout:
    """A file to be written: `head`, then each tensor's bytes and zeros up to the next multiple of ALIGNMENT.

    tensors: in the order of the file, without gaps but those zeros. n_bytes: of the whole file.
    """

    head: bytes
    tensors: tuple[TensorInfo, ...]
    n_bytes: int


def lay_out(metadata: Mapping[str, str | int], tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Layout:
    """The layout of a file with these notes, strings and 32-bit numbers, and tensors (name, qtype, shape rows first).

    Raises ValueError where a tensor's rows are not whole blocks of its type.
    """
    tensors = list(tensors)
    notes = b"".join(_string(key) + _value(value) for key, value in metadata.items())
    table, infos, offset = [], [], 0
    for name, qtype, shape in tensors:
        number, n_bytes = _size(name, qtype, shape)
        columns_first = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        table.append(_string(name) + columns_first + struct.pack("<IQ", number, offset))
        infos.append(TensorInfo(name, qtype, shape, offset, n_bytes))
        offset += n_bytes + padding(n_bytes)
    head = struct.pack("<4sIQQ", MAGIC, VERSION, len(tensors), len(metadata)) + notes + b"".join(table)
    head += bytes(padding(len(head)))
    placed = tuple(
        TensorInfo(info.name, info.qtype, info.shape, len(head) + info.offset, info.n_bytes) for info in infos
    )
    return Layout(head, placed, len(head) + offset)


def padding(n_bytes: int) -> int:
    """How many zeros follow `n_bytes`."""
    return -n_bytes % ALIGNMENT


def _size(name: str, qtype: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """The type's number in the format, the tensor's bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[qtype]
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block_size:
        raise ValueError(f"tensor {name!r} has {shape[-1]} columns, {qtype} needs a multiple of {block_size}")
    return int(kind), math.prod(shape) // block_size * block_bytes


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: str | int) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<II", _UINT32, value)
