"""The header of a GGUF file: metadata and the table of tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3; 2 is read alike). Nothing the file
says is believed before it is held against the file's size.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .cursor import Cursor

MAGIC = b"GGUF"
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 127  # llama.cpp's GGML_MAX_NAME is 64 with its NUL, image-model files use up to twice that


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. shape: rows first, as in torch; offset: bytes from the start of the file."""

    name: str
    qtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """metadata: scalar and string values by key (arrays are None); tensors in file order."""

    metadata: dict[str, object]
    tensors: tuple[TensorInfo, ...]


def read_header(path: str | Path) -> Header:
    """The header of the GGUF file at `path`. Raises CheckpointError where it is broken, OSError where unreadable."""
    path = Path(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        return _parse(Cursor(buffer, path.name))


def _parse(cursor: Cursor) -> Header:
    if cursor.buffer[cursor.skip(4) : 4] != MAGIC:
        raise cursor.fail(f"it begins with {cursor.buffer[:4]!r}, not {MAGIC!r}")
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise cursor.fail(f"version {version}; this loader reads 2 and 3, little-endian")
    n_tensors = cursor.rows(24, "tensors")
    n_pairs = cursor.rows(12, "metadata pairs")
    metadata: dict[str, object] = {}
    for _ in range(n_pairs):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} stands twice")
        metadata[key] = cursor.value(int(cursor.scalar("I")))
    entries = [_entry(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise cursor.fail(f"alignment {alignment!r} is not a power of two of at least 8")
    data_start = -(-cursor.position // alignment) * alignment
    return Header(metadata, _place(cursor, entries, data_start, alignment))


def _entry(cursor: Cursor) -> tuple[str, str, tuple[int, ...], int, int]:
    """One row of the tensor table: name, qtype, shape, relative offset, bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.string("a tensor name")
    if not name or len(name.encode()) > MAX_NAME_BYTES or "\0" in name or ".." in name:
        raise cursor.fail(f"tensor name {name[:40]!r} is not usable")
    n_dims = int(cursor.scalar("I"))
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name!r} has {n_dims} dimensions")
    columns_first = [int(cursor.scalar("Q")) for _ in range(n_dims)]
    type_id, offset = int(cursor.scalar("I")), int(cursor.scalar("Q"))
    try:
        qtype = GGMLQuantizationType(type_id)
        block_size, block_bytes = GGML_QUANT_SIZES[qtype]
    except (ValueError, KeyError):
        raise cursor.fail(f"tensor {name!r} is of the unknown type {type_id}") from None
    n_weights = math.prod(columns_first)
    if not n_weights or columns_first[0] % block_size:
        raise cursor.fail(f"tensor {name!r} of shape {columns_first[::-1]} has no whole {qtype.name} blocks")
    return name, qtype.name, tuple(reversed(columns_first)), offset, n_weights // block_size * block_bytes


def _place(
    cursor: Cursor, entries: list[tuple[str, str, tuple[int, ...], int, int]], data_start: int, alignment: int
) -> tuple[TensorInfo, ...]:
    """Absolute places, each inside the file, aligned, named once and overlapping no other."""
    n_file = len(cursor.buffer)
    infos = []
    for name, qtype, shape, offset, n_bytes in entries:
        begin = data_start + offset
        if offset % alignment:
            raise cursor.fail(f"tensor {name!r} begins at {offset}, not a multiple of {alignment}")
        if begin + n_bytes > n_file:
            raise cursor.fail(f"tensor {name!r} ends at byte {begin + n_bytes}, the file at {n_file}")
        infos.append(TensorInfo(name, qtype, shape, begin, n_bytes))
    if len({info.name for info in infos}) < len(infos):
        raise cursor.fail("a tensor name stands twice")
    in_order = sorted(infos, key=lambda info: info.offset)
    for before, after in pairwise(in_order):
        if before.offset + before.n_bytes > after.offset:
            raise cursor.fail(f"tensors {before.name!r} and {after.name!r} overlap")
    return tuple(infos)
