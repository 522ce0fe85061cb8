"""The tensors of the file that will be written, and what each is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flux.config import FluxConfig
from ..flux.names import SWAPPED, linears, norms
from ..flux.weights import Weights
from ..gguf.writer import Layout, lay_out
from ..lora.merge import merged
from ..lora.read import Lora
from ..quant import PackedTensor
from .mixes import MIXES, WHERE_ROWS_DO_NOT_FIT

QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION


@dataclass(frozen=True)
class Piece:
    """One tensor. name: BFL's; parts: diffusers' names of what lies in it from top to bottom; swapped: their halves
    change places."""

    name: str
    qtype: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    swapped: bool = False

    def weights(self, source: Weights, loras: list[tuple[Lora, float]], n_weights: int) -> Iterator[Tensor]:
        """Its rows in order, as floats, some n_weights at a time, or a whole part where a LoRA changes it."""
        for name in self.parts:
            part = source[name]
            adapters = [
                (lora.adapters[linear], strength)
                for lora, strength in loras
                if (linear := name.removesuffix(".weight")) in lora.adapters
            ]
            if adapters:
                weight = base = part.decode()
                for adapter, strength in adapters:  # each as if it were the only one, as they run
                    weight = weight + (merged(base, adapter, strength) - base)
                part = PackedTensor(weight, "F32", part.shape)
            halves = [part.rows(len(part.data) // 2, len(part.data)), part.rows(0, len(part.data) // 2)]
            for piece in halves if self.swapped else [part]:
                step = max(1, n_weights // (piece.shape[1] if len(piece.shape) == 2 else 1))
                for start in range(0, piece.shape[0], step):
                    yield piece.rows(start, min(start + step, piece.shape[0])).as_floats()


@dataclass(frozen=True)
class Plan:
    """pieces: in the order of the file; layout: where they lie; as_f16: names stored as F16 for their odd rows."""

    qtype: str
    pieces: tuple[Piece, ...]
    layout: Layout
    as_f16: tuple[str, ...]

    @property
    def n_weights(self) -> int:
        """Of all tensors."""
        return sum(torch.Size(piece.shape).numel() for piece in self.pieces)


def make_plan(config: FluxConfig, shapes: dict[str, tuple[int, ...]], qtype: str) -> Plan:
    """The plan for a source with these shapes by diffusers' names. qtype: a key of MIXES."""
    mix = MIXES[qtype]

    def piece(name: str, parts: tuple[str, ...], swapped: bool) -> Piece:
        shape = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        return Piece(name, mix.qtype(name, shape), shape, parts, swapped)

    pieces = [
        piece(f"{bfl}.{kind}", tuple(f"{target}.{kind}" for target in targets), bfl == SWAPPED)
        for bfl, targets in linears(config)
        for kind in ("weight", "bias")
    ]
    pieces += [piece(f"{bfl}.scale", (f"{target}.weight",), False) for bfl, target in norms(config)]
    metadata: dict[str, str | int] = {
        "general.architecture": "flux",
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": mix.file_type,
    }
    layout = lay_out(metadata, ((each.name, each.qtype, each.shape) for each in pieces))
    odd = tuple(p.name for p in pieces if p.qtype == WHERE_ROWS_DO_NOT_FIT) if qtype != WHERE_ROWS_DO_NOT_FIT else ()
    return Plan(qtype, tuple(pieces), layout, odd)
