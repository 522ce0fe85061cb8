"""ComfyUI's ways into the block loop: ControlNet residuals, block and attention patches, interrupt, prefetch.

The keys and arguments are those of `comfy/ldm/flux/model.py`, so that a patch made for ComfyUI's own FLUX works here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import comfy.ops
from comfy.ldm.flux.math import attention
from torch import Tensor

from ..engine.attention.backends import EXACT
from ..engine.attention.weighted import attend_in_runs
from ..engine.flux.blocks import rotated
from ..engine.flux.hooks import BlockHooks, BlockPlace, Run, Stream
from ..engine.quant.fp8 import E4M3
from ..engine.references.weights import Runs, bias, full_runs
from ..engine.tiers.presets import AUTO, FP8, OFF
from .prefetch import Prefetch
from .run import KEY as RUN
from .run import OVERRIDE, SamplingRun

_RESIDUALS = {"double": "input", "single": "output"}


class ComfyHooks(BlockHooks):
    """The patches in `transformer_options` and the residuals in `control` for one forward pass."""

    def __init__(
        self,
        transformer_options: dict[str, Any],
        control: dict[str, Any] | None,
        prefetch: Prefetch,
        shapes: tuple[object, ...] = (),
        kept_bytes: tuple[int, int, int] = (0, 0, 0),
        runs: Runs = (),
        masked: bool = False,
    ):
        """shapes: of everything that a pass depends on, by which an optimizer's run knows its caches.

        kept_bytes: what keys and values of its references take, as they are, in FP8, and in FP8 with those of all other
        tokens; 0 where they cannot be kept.
        runs: of its references' keys. masked: whether attention has a mask.
        """
        self.options = transformer_options.copy()
        self.shapes = shapes
        self.control = control or {}
        self.prefetch = prefetch
        self.runs = runs
        self.run: SamplingRun | None = transformer_options.get(RUN)
        if self.run is not None:
            self.parts, sizes = self.run.parts, kept_bytes[:2]
            if self.run.narrow and not masked and not runs and self._attends_alone():
                self.first = self.parts  # so that a cache does not take rounding for a change
                self.parts, sizes = self.run.narrow, (kept_bytes[2], kept_bytes[1])
            self.caches = self.run.cached(transformer_options, shapes, sizes)
            self.cache = self.caches.blocks
            if not self.patches("attn1_patch"):  # such a patch wants q and k as they are before rotation, of all tokens
                self.references = self.caches.references
                self.rotates = self.run.choices.compile != OFF or self.references is not None

    def timed(self) -> AbstractContextManager[None]:
        """Around the pass, for an optimizer's report."""
        return nullcontext() if self.run is None else self.run.timed(self.caches)

    def _attends_alone(self) -> bool:
        """Whether nobody else has a say in attention or stands around a block."""
        others = (
            *self.patches("attn1_patch"),
            *self.patches("attn1_output_patch"),
            self.options.get("patches_replace"),
        )
        return self.run is not None and self.options.get(OVERRIDE) == self.run.attend and not any(others)

    def _attend_in_runs(self, q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None) -> Tensor | None:
        """On a card, unless somebody chose an attention that must be asked; None elsewhere."""
        chosen = self.run.choices.attention if self.run else None
        if not q.is_cuda or (OVERRIDE in self.options and chosen not in (AUTO, FP8, *EXACT)):
            return None
        x = attend_in_runs(*rotated(q, k, v, pe), full_runs(self.runs, k.shape[2]))
        return None if x is None else x.transpose(1, 2).flatten(2)

    def _weighted(self, mask: Tensor | None, k: Tensor) -> Tensor | None:
        """The mask and the weights of the references' tokens, as what is added to the scores."""
        if not self.runs:
            return mask
        weighted = bias(full_runs(self.runs, k.shape[2]), k)
        if mask is None:
            return weighted
        return weighted + (mask if mask.is_floating_point() else mask.to(k.dtype).log())

    def patches(self, name: str) -> Iterable[Callable[..., Any]]:
        """The patches of one kind, as they are now: a patch may add others."""
        return self.options.get("patches", {}).get(name, ())

    def embedded(
        self, img: Tensor, txt: Tensor, img_ids: Tensor, txt_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = {"img": img, "txt": txt, "img_ids": img_ids, "txt_ids": txt_ids}
        for patch in self.patches("post_input"):
            out = patch({**out, "transformer_options": self.options})
        return out["img"], out["txt"], out["img_ids"], out["txt_ids"]

    def around(self, place: BlockPlace, run: Run, stream: Stream) -> tuple[Tensor, Tensor]:
        comfy.ops.run_every_op()  # interrupts, unless torch.compile is tracing
        self.prefetch.turn()
        n_joined = stream.img.shape[1] + (place.n_txt if place.kind == "double" else 0)
        self.options |= {
            "block_type": place.kind,
            "block_index": place.index,
            "total_blocks": place.n_blocks,
            "img_slice": [place.n_txt, n_joined],
        }
        replacements = self.options.get("patches_replace", {}).get("dit", {})
        replace = replacements.get((f"{place.kind}_block", place.index))
        if replace is None:
            return run(stream)

        def original(args: dict[str, Any]) -> dict[str, Tensor]:
            inner = Stream(args["img"], args.get("txt", stream.txt), args["vec"], args["pe"], args.get("attn_mask"))
            outer, self.options = self.options, args.get("transformer_options", self.options)
            try:
                img, txt = run(inner)
            finally:
                self.options = outer
            return {"img": img, "txt": txt} if place.kind == "double" else {"img": img}

        args = {
            "img": stream.img,
            "vec": stream.vec,
            "pe": stream.pe,
            "attn_mask": stream.mask,
            "transformer_options": self.options,
        }
        if place.kind == "double":
            args["txt"] = stream.txt
        out = replace(args, {"original_block": original})
        return out["img"], out.get("txt", stream.txt)

    def rest(self, stream: Stream, run: Callable[[Stream], None]) -> None:
        graphs = self.run.graphs if self.run and self._alone(stream) else None
        if graphs is None:
            run(stream)
        else:
            graphs.run(self.shapes, stream, run)

    def _alone(self, stream: Stream) -> bool:
        """Whether nobody but the blocks works on the stream, and nothing is kept of it on the way."""
        patches = (self.options.get(name) for name in ("patches", "patches_replace"))
        attends = self.options.get(OVERRIDE) in (None, self.run and self.run.attend)
        others = (self.control, *patches, self.runs, self.prefetch.queue, self.references)
        return attends and not any(others) and stream.mask is None

    def residual(self, place: BlockPlace) -> Tensor | None:
        residuals = self.control.get(_RESIDUALS[place.kind]) or ()
        return residuals[place.index] if place.index < len(residuals) else None

    def skipped(self) -> None:
        self.prefetch.stop()

    def attend(
        self, place: BlockPlace, q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if self.run and q.dtype == E4M3:
            return self.run.attend_in_fp8(q, k, v)
        for patch in self.patches("attn1_patch"):
            out = patch(q, k, v, pe=pe, attn_mask=mask, extra_options=self.options)
            q, k, v = out.get("q", q), out.get("k", k), out.get("v", v)
            pe, mask = out.get("pe", pe), out.get("attn_mask", mask)
        x = self._attend_in_runs(q, k, v, pe) if self.runs and mask is None else None
        if x is None:
            x = attention(q, k, v, pe=pe, mask=self._weighted(mask, k), transformer_options=self.options)
        for patch in self.patches("attn1_output_patch"):
            x = patch(x, self.options)
        return x
