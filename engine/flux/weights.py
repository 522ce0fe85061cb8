"""A checkpoint's FLUX tensors under diffusers' names, as views of the same memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, listing
from ..quant import PackedTensor
from .config import DIFFUSERS, FluxConfig, find_dialect, infer_config
from .names import SWAPPED, linears, norms

Weights = dict[str, PackedTensor]


def read_weights(checkpoint: Checkpoint) -> tuple[FluxConfig, Weights]:
    """(configuration, {diffusers name: tensor}) of a FLUX.1 checkpoint in BFL or diffusers names.

    Raises CheckpointError where the file is no FLUX.1, lacks tensors, has tensors of no use, or of a type without
    a decoder; names in messages are the file's own.
    """
    dialect, prefix = find_dialect(checkpoint)
    weights = {name[len(prefix) :]: t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}
    checkpoint.require_supported(prefix + name for name in weights)
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    config = infer_config(shapes, dialect, checkpoint.file_name)
    if dialect is not DIFFUSERS:
        weights = {_with_scale(name): tensor for name, tensor in weights.items()}
    expected = _diffusers_names(config) if dialect is DIFFUSERS else _bfl_names(config)
    _compare(checkpoint.file_name, expected, weights)
    _check_dimensions(checkpoint.file_name, weights)
    return config, weights if dialect is DIFFUSERS else _from_bfl(config, weights)


def _with_scale(name: str) -> str:
    """ComfyUI saves BFL's `query_norm.scale` as `query_norm.weight`; both are read under BFL's spelling."""
    return name[: -len("weight")] + "scale" if name.endswith("_norm.weight") else name


def _bfl_names(config: FluxConfig) -> list[str]:
    names = [f"{bfl}.{part}" for bfl, _ in linears(config) for part in ("weight", "bias")]
    return names + [f"{bfl}.scale" for bfl, _ in norms(config)]


def _diffusers_names(config: FluxConfig) -> list[str]:
    names = [f"{target}.{part}" for _, targets in linears(config) for target in targets for part in ("weight", "bias")]
    return names + [f"{target}.weight" for _, target in norms(config)]


def _compare(file_name: str, expected: Iterable[str], found: Iterable[str]) -> None:
    expected, found = dict.fromkeys(expected), dict.fromkeys(found)
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing:
        raise CheckpointError(
            f"{file_name}: {len(missing)} of {len(expected)} tensors of a FLUX.1 transformer are missing: "
            f"{listing(missing)}. The file is incomplete; download it again."
        )
    if extra:
        raise CheckpointError(
            f"{file_name}: {len(extra)} tensors belong to no FLUX.1 transformer: {listing(extra)}. "
            "This is another model or a patched one; choose a plain FLUX.1 Kontext file."
        )


def _check_dimensions(file_name: str, weights: Weights) -> None:
    """Linears have matrices, everything else vectors; whether the sizes fit is seen when the model is built."""
    for name, tensor in weights.items():
        is_vector = name.endswith((".bias", ".scale")) or ".norm_" in name
        if len(tensor.shape) != (1 if is_vector else 2):
            raise CheckpointError(
                f"{file_name}: tensor {name!r} has shape {list(tensor.shape)}, expected {1 if is_vector else 2} "
                "dimensions. The file is damaged or not a plain FLUX.1 model; download it again."
            )


def _from_bfl(config: FluxConfig, weights: Weights) -> Weights:
    named: Weights = {f"{target}.weight": weights[f"{bfl}.scale"] for bfl, target in norms(config)}
    for bfl, targets in linears(config):
        for part in ("weight", "bias"):
            tensor = weights[f"{bfl}.{part}"]
            if bfl == SWAPPED:
                tensor = _swap_halves(tensor)
            start = 0
            for target in targets:
                n_rows = tensor.shape[0] - start if target is targets[-1] else config.hidden_size
                named[f"{target}.{part}"] = tensor.rows(start, start + n_rows)
                start += n_rows
    return named


def _swap_halves(tensor: PackedTensor) -> PackedTensor:
    """The lower half of the rows first; the one copy this module makes."""
    return replace(tensor, data=torch.cat(tensor.data.chunk(2)[::-1]))
