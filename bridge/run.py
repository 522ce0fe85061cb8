"""One sampling run under `KontextOptimize`: what is computed, what is spared, how long it took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.attention import fp8
from ..engine.attention.backends import BACKENDS, fastest
from ..engine.cache.first_block import FirstBlockCache
from ..engine.cache.references import ReferenceCache, ReferenceSettings
from ..engine.errors import first_line
from ..engine.flux.blocks import Parts
from ..engine.flux.compiled import CompileFailed, compiled_parts, guarded, n_graphs, recompiles_allowed
from ..engine.flux.graphs import PassGraphs
from ..engine.memory import reserve
from ..engine.tiers.presets import AUTO, FP8, FUSED, OFF, Choices

KINDS = {
    "computed": "passes computed",
    "without references": "with kept references",
    "skipped": "skipped",
}  # of passes, and how the report calls them
SHARE_OF_FREE = 0.5  # of the memory that kept references may take; the pass needs some too
KEY = "kontextkit.run"  # in transformer_options
OVERRIDE = "optimized_attention_override"  # ComfyUI's name, in transformer_options


@dataclass(frozen=True)
class Caches:
    """Of one condition; None for what is not chosen."""

    blocks: FirstBlockCache | None
    references: ReferenceCache | None

    def kind(self) -> str:
        """Of the pass that just ran, for the report: a key of KINDS."""
        if self.blocks and self.blocks.n_skipped_in_a_row > 0:
            return "skipped"
        return "without references" if self.references and self.references.reuses else "computed"


class SamplingRun:
    """Lives from a sampler's start to its end, in the transformer_options of that run alone."""

    def __init__(self, choices: Choices, sigmas: Sequence[float], device: torch.device):
        self.choices, self.sigmas, self.device = choices, sigmas, device
        self.step = 0
        self.caches: dict[tuple[object, ...], Caches] = {}
        self.n_evaluations: Counter[tuple[object, ...]] = Counter()  # of each condition in this step
        self.failed = CompileFailed()
        self.parts, self.narrow = self._parts()
        self.attention_used = ""
        self.notes: list[str] = []
        self.passes: list[tuple[str, Callable[[], float]]] = []  # kind, its seconds, read at the end
        self.graphs: PassGraphs | None = None  # where the host may set the pace
        self.n_graphs = 0
        self.seconds, self.peak_bytes = 0.0, 0
        self.drifts: list[float] = []  # of kept references, as `ReferenceCache.drifts`, of all conditions

    @property
    def compiles(self) -> bool:
        """Whether torch compiles the blocks."""
        return self.choices.compile not in (OFF, FUSED)

    def _parts(self) -> tuple[Parts, Parts | None]:
        """What computes the blocks, and what does where they may attend in FP8."""
        if self.compiles:
            return compiled_parts(self.choices.compile, self.failed), None
        if self.choices.compile == OFF:
            return Parts(), None
        from ..engine.flux.fused import NARROW, PARTS  # which needs Triton

        narrow = guarded(NARROW, self.failed) if self.choices.attention == FP8 else None
        return guarded(PARTS, self.failed), narrow

    @property
    def n_steps(self) -> int:
        """Of the sampler."""
        return max(1, len(self.sigmas) - 1)

    @contextmanager
    def going(self) -> Iterator[None]:
        """Around the sampler."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        begin, graphs = time.perf_counter(), self._n_graphs()
        try:
            with recompiles_allowed() if self.compiles else nullcontext():
                yield
            if cuda:
                torch.cuda.synchronize(self.device)
                self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
        finally:
            self.drifts = [
                drift for each in self.caches.values() if each.references for drift in each.references.drifts
            ]
            self.caches.clear()
            if self.graphs:
                self.graphs.clear()
            self.seconds, self.n_graphs = time.perf_counter() - begin, self._n_graphs() - graphs

    def _n_graphs(self) -> int:
        return n_graphs() if self.compiles else 0  # asking brings in torch's compiler, which takes seconds

    def after_step(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The sampler's own callback, and the count of steps."""

        def count(step: int, *rest: Any) -> None:
            self.step = step + 1
            self.n_evaluations.clear()
            if callback is not None:
                callback(step, *rest)

        return count

    def cached(
        self, options: dict[str, Any], shapes: tuple[object, ...], kept_bytes: tuple[int, int] = (0, 0)
    ) -> Caches:
        """The caches of the condition that runs, known by its id, its place in the batch and all shapes.

        A sampler that asks for several velocities a step has a series for each. kept_bytes: what keeping its references
        takes, as they come and in the fewest bytes; 0 where there is nothing to keep.
        """
        condition = (*options.get("uuids", ()), *options.get("cond_or_uncond", ()), *shapes)
        key = (self.n_evaluations[condition], *condition)
        self.n_evaluations[condition] += 1
        if key not in self.caches:
            c = self.choices
            blocks = FirstBlockCache(c.cache, self.n_steps) if c.cache and c.cache.may_skip else None
            kept = self.keeps(*kept_bytes) if c.references and c.references.interval > 1 else None
            self.caches[key] = Caches(blocks, ReferenceCache(kept) if kept else None)
        caches, step = self.caches[key], min(self.step, self.n_steps - 1)
        if caches.blocks:
            caches.blocks.at(step, self.sigmas[step])
        return caches

    def keeps(self, n_bytes: int, small_bytes: int) -> ReferenceSettings | None:
        """How a series' references are kept, by the memory that is free beside those already kept; None: not at all."""
        if not n_bytes or not self.choices.references:
            return None
        free = comfy.model_management.get_free_memory(self.device)
        fits = [size < SHARE_OF_FREE * free for size in (n_bytes, small_bytes)]
        if not fits[0]:
            way = f"are kept in FP8, in {small_bytes / 1e9:.1f} GB" if fits[1] else "are computed at every step"
            sizes = f"{n_bytes / 1e9:.1f} GB, {free / 1e9:.1f} are free"
            note = f"References {way}: as they come they would take {sizes}."
            self.notes = [*(each for each in self.notes if not each.startswith("References ")), note]
        if not any(fits):
            return None
        reserve(n_bytes if fits[0] else small_bytes, self.device)
        return replace(self.choices.references, small=not fits[0])

    @contextmanager
    def timed(self, caches: Caches) -> Iterator[None]:
        """Around one pass of the model; a card is not waited for."""
        if self.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            seconds = lambda: begin.elapsed_time(end) / 1e3  # noqa: E731
        else:
            start = time.perf_counter()
            yield
            took = time.perf_counter() - start
            seconds = lambda: took  # noqa: E731
        self.passes.append((caches.kind(), seconds))

    def attend(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Any, **more: Any) -> Any:
        """For OVERRIDE: FLUX's own attention goes to the chosen backend, any other to ComfyUI's."""
        plain = more.get("mask") is None and more.get("skip_reshape") and not more.get("skip_output_reshape")
        name = self.choices.attention
        if plain and name in (AUTO, FP8):
            name = fastest(q, k, v) or ""
        if not plain or name in ("", "comfyui"):
            return attention(q, k, v, *rest, **more)
        try:
            attended = BACKENDS[name](q, k, v)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError) as error:  # no kernel of this backend for such a card or dtype
            why = f"{name} does not run on {self.device} in {q.dtype} ({first_line(error)})"
            self.notes.append(f"Attention is ComfyUI's: {why}.")
            self.choices = replace(self.choices, attention="comfyui")
            return attention(q, k, v, *rest, **more)
        if self.attention_used != FP8:  # with which the first block attends exactly
            self.attention_used = name
        return attended.transpose(1, 2).flatten(2)

    def attend_in_fp8(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, heads, L, head_dim) -> (B, L, heads * head_dim), all float8_e4m3fn."""
        try:
            attended = fp8.attend(q, k, v) if self.narrow else exact_in_fp8(q, k, v)
            self.attention_used = FP8 if self.narrow else ""
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever kind a foreign package raises
            self.notes.append(f"Attention is exact: in FP8 it does not run on {self.device} ({first_line(error)}).")
            self.narrow = None  # from the next pass on
            attended = exact_in_fp8(q, k, v)
        return attended.transpose(1, 2).flatten(2)

    def figures(self) -> dict[str, float]:
        """What happened, in numbers: seconds, passes of each kind, and on a card peak_gb."""
        kinds = [kind for kind, _ in self.passes]
        counts = {"computed": kinds.count("computed"), "kept": kinds.count("without references")}
        peak = {"peak_gb": self.peak_bytes / 1e9} if self.peak_bytes else {}
        return {"seconds": self.seconds, **counts, "skipped": kinds.count("skipped"), **peak}

    def report(self) -> str:
        """What happened, some short lines."""
        seconds = {kind: [read() for each, read in self.passes if each == kind] for kind in KINDS}
        if not seconds["computed"]:
            return "No step was computed."
        told = [
            f"{len(some)} {KINDS[kind]} ({median(some) * 1e3:.0f} ms each)" for kind, some in seconds.items() if some
        ]
        lines = [f"{', '.join(told)}; {self.seconds:.2f} s in all."]
        usual = median(seconds["computed"])
        spared = sum(usual - each for kind, some in seconds.items() if kind != "computed" for each in some)
        if spared > 0:
            full = self.seconds + spared
            lines.append(f"With every step computed about {full:.2f} s, {full / self.seconds:.2f} times as long.")
        if self.drifts:
            least, most = min(self.drifts), max(self.drifts)
            lines.append(f"Kept references were {least:.0%} to {most:.0%} off when they were computed anew.")
        if self.peak_bytes:
            lines.append(f"Peak memory {self.peak_bytes / 1e9:.1f} GB.")
        if self.failed.reason:
            lines.append(f"Not compiled: {self.failed.reason}.")
        elif self.compiles:
            done = f"{self.n_graphs} graphs compiled" if self.n_graphs else "nothing recompiled"
            lines.append(f"Compiled: {done}.")
        if self.graphs and self.graphs.n_replayed:
            lines.append(
                f"{self.graphs.n_replayed} passes replayed from a CUDA graph: the host was slower than the card."
            )
        if self.graphs and self.graphs.failed:
            lines.append(f"The host was slower than the card, but there is no CUDA graph: {self.graphs.failed}.")
        if self.attention_used:
            lines.append(f"Attention: {self.attention_used}.")
        return "\n".join((*lines, *self.notes))


def exact_in_fp8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention for the rest of a pass whose blocks write and read FP8, where the kernel for it has failed."""
    return F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).to(q.dtype)
