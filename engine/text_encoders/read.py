"""The tensors of an encoder from an opened file, once it is known to be that encoder."""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..quant import PackedTensor
from .kinds import CLIP_L, T5XXL, require_kind
from .names import stored_names


def read_clip_l(checkpoint: Checkpoint) -> dict[str, PackedTensor]:
    """CLIP-L, of which FLUX reads the pooled state: {Hugging Face's name: tensor}.

    Raises CheckpointError where the file is no CLIP-L or of a type without a decoder.
    """
    return _read(checkpoint, CLIP_L, ("text_model.", "text_projection."))


def read_t5xxl(checkpoint: Checkpoint) -> dict[str, PackedTensor]:
    """T5-XXL version 1.1, FLUX's context, without a decoder; as `read_clip_l`."""
    return _read(checkpoint, T5XXL, ("encoder.", "shared."))


def _read(checkpoint: Checkpoint, wanted: str, parts: tuple[str, ...]) -> dict[str, PackedTensor]:
    stored = stored_names(checkpoint.tensors)
    require_kind(checkpoint, {name: checkpoint.tensors[own] for name, own in stored.items()}, wanted)
    stored = {name: own for name, own in stored.items() if name.startswith(parts)}
    checkpoint.require_supported(stored.values())
    return {name: checkpoint.tensors[own] for name, own in stored.items()}
