"""Packed weights: block layouts, their decoders, and the Linear that multiplies by them."""

from . import legacy_blocks as legacy_blocks  # registers its block types
from .blocks import BlockType, block_type
from .linear import QuantLinear
from .packed import PackedTensor

__all__ = ["BlockType", "PackedTensor", "QuantLinear", "block_type"]
