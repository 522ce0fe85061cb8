"""What a host may do around the block loop. The default does nothing and attends with torch's own attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .blocks import double_block, single_block
from .rope import rotate


@dataclass
class Stream:
    """The tokens between two blocks and what every block reads.

    img: (B, L_img, D), target tokens first, then references; txt: (B, L_txt, D). vec: (B, D) timestep, guidance and
    pooled text. pe: rotations of txt and img tokens. mask: for attention, or None.
    """

    img: Tensor
    txt: Tensor
    vec: Tensor
    pe: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class BlockPlace:
    """Which block runs: kind, its index among `n_blocks` of that kind, and the number of text tokens before img."""

    kind: Literal["double", "single"]
    index: int
    n_blocks: int
    n_txt: int


Run = Callable[[Stream], tuple[Tensor, Tensor]]  # the block itself: (img, txt) after it


class BlockHooks:
    """Subclass to add; one object serves one forward pass.

    double_block, single_block: what runs a block, for hosts that compile them.
    """

    double_block = staticmethod(double_block)
    single_block = staticmethod(single_block)

    def embedded(
        self, img: Tensor, txt: Tensor, img_ids: Tensor, txt_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """After the input projections, before the first block."""
        return img, txt, img_ids, txt_ids

    def around(self, place: BlockPlace, run: Run, stream: Stream) -> tuple[Tensor, Tensor]:
        """Runs a block, or does otherwise; returns (img, txt)."""
        return run(stream)

    def residual(self, place: BlockPlace) -> Tensor | None:
        """What is added to the first img tokens after the block (ControlNet), (B, <= L_img, D)."""
        return None

    def attend(self, place: BlockPlace, q: Tensor, k: Tensor, v: Tensor, pe: Tensor, mask: Tensor | None) -> Tensor:
        """q, k, v (B, heads, L, head_dim), not yet rotated -> (B, L, heads * head_dim)."""
        x = F.scaled_dot_product_attention(rotate(q, pe), rotate(k, pe), v, attn_mask=mask)
        return x.transpose(1, 2).flatten(2)
