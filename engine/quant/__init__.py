"""Packed weights: block layouts, their decoders, and the Linear that multiplies by them."""

from . import encode_k as encode_k  # each registers its encoders
from . import encode_legacy as encode_legacy
from . import iq_blocks as iq_blocks  # each registers its block types
from . import k_blocks as k_blocks
from . import legacy_blocks as legacy_blocks
from . import on_gpu as on_gpu  # registers the operator of compiled graphs
from .blocks import BlockType, block_type
from .linear import QuantLinear
from .packed import PackedTensor

__all__ = ["BlockType", "PackedTensor", "QuantLinear", "block_type"]
