"""Weights that dynamic VRAM left on the host, brought over a block at a time while the block before computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

try:
    from comfy.model_prefetch import make_prefetch_queue, prefetch_queue_pop
except ImportError:  # ComfyUI 0.18: each Linear brings its own weight
    make_prefetch_queue = prefetch_queue_pop = None


class Group:
    """A block and what runs beside its Linears, which ComfyUI asks for `modules` and brings over in one go.

    One by one, the factors of a LoRA would be written over the block's weights in ComfyUI's two buffers.
    """

    def __init__(self, block: nn.Module):
        self.block = block

    def modules(self) -> Iterator[nn.Module]:
        """Every module of the block, and every pair of factors beside one."""
        for module in self.block.modules():
            yield module
            for part in getattr(getattr(module, "branch", None), "parts", ()):
                yield part.factors


class Prefetch:
    """ComfyUI's prefetch queue for the blocks of one forward pass, in their order.

    It does nothing where `transformer_options` come from a model without dynamic VRAM: there each Linear's weight
    crosses on a stream of its own while the Linear before computes.
    """

    def __init__(self, blocks: Iterable[nn.Module], device: torch.device, transformer_options: dict[str, Any]):
        self.device = device
        self.queue = make_prefetch_queue and make_prefetch_queue(
            [Group(block) for block in blocks], device, transformer_options
        )

    def turn(self) -> None:
        """Call before each block and once after the last: asks for its weights, lets go of the block before."""
        if self.queue and len(self.queue) > 1:
            prefetch_queue_pop(self.queue, self.device, None)

    def stop(self) -> None:
        """Instead of further turns, where the blocks that are left do not run; lets go of the one asked for."""
        if self.queue and len(self.queue) > 1:
            self.queue[1:] = [None]
            self.turn()
