"""Safetensors files, plain or scaled fp8, as packed tensors.

Scaled fp8 comes in two spellings, both one float a weight: `x.scale_weight` with a `scaled_fp8` marker, and
`x.weight_scale` with a `x.comfy_quant` JSON. Scales for activations are left aside: this pack multiplies in the
compute dtype. https://github.com/Comfy-Org/ComfyUI/blob/master/QUANTIZATION.md
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..quant import PackedTensor
from ..quant.packed import DENSE, FP8
from .safetensors_header import check_safetensors_header

_QTYPES = {dtype: qtype for qtype, dtype in (DENSE | FP8).items()}
_SCALES = (".scale_weight", ".weight_scale")
_IGNORED = (".scale_input", ".input_scale", ".comfy_quant")


def read_safetensors(path: Path) -> dict[str, PackedTensor]:
    """The tensors of the safetensors file at `path`; views of the library's mapping."""
    return _pack(map_safetensors(path)[0], path.name)


def map_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors as they are stored, the header's notes) of the safetensors file at `path`.

    Raises CheckpointError for a broken file, before the library sees it where the header tells.
    """
    check_safetensors_header(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path.name}: broken safetensors file ({error}). "
            "The download is damaged or incomplete; download the file again."
        ) from error


def _pack(tensors: dict[str, Tensor], file_name: str) -> dict[str, PackedTensor]:
    """Dense and fp8 tensors, each fp8 weight with its scale; markers and activation scales drop out."""
    scales = {_weight_of(name): name for name in tensors if name.endswith(_SCALES)}
    packed = {}
    for name, data in tensors.items():
        if name.endswith(_SCALES + _IGNORED) or name.rpartition(".")[2] == "scaled_fp8":
            continue
        qtype = _QTYPES.get(data.dtype, str(data.dtype).removeprefix("torch."))
        scale = _scale(tensors, scales[name], file_name) if name in scales else None
        packed[name] = PackedTensor(data, qtype, tuple(data.shape), scale)
    return packed


def _weight_of(scale_name: str) -> str:
    """The weight that a scale belongs to: `a.b.scale_weight` -> `a.b.weight`."""
    return scale_name.rpartition(".")[0] + ".weight"


def _scale(tensors: dict[str, Tensor], name: str, file_name: str) -> Tensor:
    scale = tensors[name]
    if scale.numel() != 1:
        raise CheckpointError(
            f"{file_name}: {name!r} holds {scale.numel()} scales; this loader applies one scale a weight. "
            "Use a file with per-tensor scales, a BF16 file or a GGUF."
        )
    return scale.reshape(()).to(torch.float32)
