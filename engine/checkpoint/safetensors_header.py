"""Looks a safetensors header over before the library maps the file: cheap, and nothing in it is believed.

Format: https://github.com/huggingface/safetensors#format: eight bytes of length, a JSON object, then the tensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

MAX_HEADER = 1 << 24  # bytes; LoRAs carry some megabytes of training notes
MAX_TENSORS = 1 << 16
MAX_COMMAS = 1 << 21
MAX_DIMENSIONS = 8
MAX_NAME = 1024  # letters; names go into messages
METADATA = "__metadata__"
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


def check_safetensors_header(path: Path) -> None:
    """Raises CheckpointError where the header cannot be true of a file of this size."""
    n_file = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(n_file - 8, MAX_HEADER):
            raise _broken(path, f"it says it is {length} bytes long, the file has {n_file}, {MAX_HEADER} are allowed")
        header = file.read(length)
    # every tensor is an object with two lists; counted before parsing, which would cost a hundred times the memory
    n_tensors, n_commas = max(header.count(b"{"), header.count(b"[") // 2) - 2, header.count(b",")
    if n_tensors > MAX_TENSORS or n_commas > MAX_COMMAS:
        raise _broken(
            path, f"some {n_tensors} tensors and {n_commas} entries; {MAX_TENSORS} and {MAX_COMMAS} are allowed"
        )
    try:
        table = json.loads(header, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(table, dict):
        raise _broken(path, "it is no JSON object")
    end = 0
    for begin, stop, name in sorted(_place(path, name, entry) for name, entry in table.items() if name != METADATA):
        if begin != end:
            raise _broken(path, f"tensor {name!r} begins at byte {begin}, the one before ends at {end}")
        end = stop
    if end != n_file - 8 - length:
        raise _broken(path, f"the tensors end at byte {end}, the file has {n_file - 8 - length} for them")


def _place(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor begins and stops, after the header."""
    if len(name) > MAX_NAME:
        raise _broken(path, f"tensor {name[:80]!r}... has a name of {len(name)} letters, {MAX_NAME} are allowed")
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(stop)]}:
            pass
        case _:
            raise _broken(path, f"tensor {name[:80]!r} lacks dtype, shape or data_offsets")
    if dtype not in BITS:
        raise _broken(path, f"tensor {name[:80]!r} is of the unknown type {dtype[:20]!r}")
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise _broken(path, f"tensor {name[:80]!r} has the shape {str(shape[:9])[:80]}")
    n_bits = math.prod(shape) * BITS[dtype]
    if begin < 0 or (stop - begin) * 8 != n_bits:
        raise _broken(path, f"tensor {name[:80]!r} of {n_bits / 8:g} bytes lies at {begin} to {stop}")
    return begin, stop, name


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name stands twice")
    return table


def _broken(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name}: broken safetensors header: {problem}. "
        "The download is damaged or incomplete; download the file again."
    )
