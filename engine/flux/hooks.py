"""What a host may do around the block loop. The default does nothing and attends with torch's own attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

from .blocks import Parts, rotated


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


class Cache(Protocol):
    """Decides after the first block whether the others are computed, and keeps what they gave."""

    def predict(self, first: Tensor) -> Tensor | None:
        """What all other blocks would add to the target's tokens (B, n_target, D), or None: compute them.

        first: (B, n_target, D), what the first block added to them.
        """

    def keep(self, rest: Tensor) -> None:
        """rest: (B, n_target, D), what all other blocks added to the target's tokens."""


class References(Protocol):
    """Keeps what the references' tokens are to the others over several passes; needs `rotates`."""

    n_own: int  # text and target tokens of the pass

    def begin(self) -> bool:
        """Before a pass: whether the references are left out of it."""

    def computed(self) -> None:
        """After a pass that ran all blocks."""

    def keys_values(self, block: tuple[str, int], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v (B, heads, L, head_dim) of a block as they are to be attended to."""


class BlockHooks:
    """Subclass to add; one object serves one forward pass.

    parts: what computes the blocks. first: what computes the very first instead, by which a cache measures a change, or
    None. rotates: whether parts rotate q and k, so that `attend` gets no pe.
    cache: None, or what may spare all blocks but the first. references: None, or what may spare their tokens.
    """

    parts = Parts()
    first: Parts | None = None
    rotates = False
    cache: Cache | None = None
    references: References | None = None

    def embedded(
        self, img: Tensor, txt: Tensor, img_ids: Tensor, txt_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """After the input projections, before the first block."""
        return img, txt, img_ids, txt_ids

    def around(self, place: BlockPlace, run: Run, stream: Stream) -> tuple[Tensor, Tensor]:
        """Runs a block, or does otherwise; returns (img, txt)."""
        return run(stream)

    def rest(self, stream: Stream, run: Callable[[Stream], None]) -> None:
        """Runs all blocks but the first over the stream, or a record of them."""
        run(stream)

    def residual(self, place: BlockPlace) -> Tensor | None:
        """What is added to the first img tokens after the block (ControlNet), (B, <= L_img, D)."""
        return None

    def skipped(self) -> None:
        """After the first block, where the cache spares the others."""

    def attend(
        self, place: BlockPlace, q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """q, k, v (B, heads, L, head_dim) -> (B, L, heads * head_dim). pe: by which q and k are yet to be rotated."""
        x = F.scaled_dot_product_attention(*rotated(q, k, v, pe), attn_mask=mask)
        return x.transpose(1, 2).flatten(2)
