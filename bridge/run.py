"""One sampling run under `KontextOptimize`: what is computed, what is spared, how long it took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..engine.attention.backends import BACKENDS, fastest
from ..engine.cache.first_block import FirstBlockCache
from ..engine.flux.blocks import Parts
from ..engine.flux.compiled import CompileFailed, compiled_parts, n_graphs, recompiles_allowed
from ..engine.tiers.presets import AUTO, Choices

KEY = "kontextkit.run"  # in transformer_options
OVERRIDE = "optimized_attention_override"  # ComfyUI's name, in transformer_options


class SamplingRun:
    """Lives from a sampler's start to its end, in the transformer_options of that run alone."""

    def __init__(self, choices: Choices, sigmas: Sequence[float], device: torch.device):
        self.choices, self.sigmas, self.device = choices, sigmas, device
        self.step = 0
        self.caches: dict[tuple[object, ...], FirstBlockCache] = {}
        self.n_evaluations: Counter[tuple[object, ...]] = Counter()  # of each condition in this step
        self.failed = CompileFailed()
        self.parts = Parts() if choices.compile == "off" else compiled_parts(choices.compile, self.failed)
        self.attention_used = ""
        self.passes: list[tuple[bool, Callable[[], float]]] = []  # skipped?, its seconds, read at the end
        self.n_graphs = 0
        self.seconds, self.peak_bytes = 0.0, 0

    @property
    def compiles(self) -> bool:
        """Whether blocks run compiled."""
        return self.choices.compile != "off"

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
        begin, graphs = time.perf_counter(), n_graphs()
        try:
            with recompiles_allowed():
                yield
            if cuda:
                torch.cuda.synchronize(self.device)
                self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
        finally:
            self.caches.clear()
            self.seconds, self.n_graphs = time.perf_counter() - begin, n_graphs() - graphs

    def after_step(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The sampler's own callback, and the count of steps."""

        def count(step: int, *rest: Any) -> None:
            self.step = step + 1
            self.n_evaluations.clear()
            if callback is not None:
                callback(step, *rest)

        return count

    def cache(self, options: dict[str, Any], shapes: tuple[object, ...]) -> FirstBlockCache | None:
        """The cache of the condition that runs, known by its id, its place in the batch and all shapes.

        A sampler that asks for several velocities a step has a series for each.
        """
        settings = self.choices.cache
        if settings is None or (settings.threshold <= 0 and settings.computed is None):
            return None
        condition = (*options.get("uuids", ()), *options.get("cond_or_uncond", ()), *shapes)
        key = (self.n_evaluations[condition], *condition)
        self.n_evaluations[condition] += 1
        if key not in self.caches:
            self.caches[key] = FirstBlockCache(settings, self.n_steps)
        step = min(self.step, self.n_steps - 1)
        return self.caches[key].at(step, self.sigmas[step])

    @contextmanager
    def timed(self, cache: FirstBlockCache | None) -> Iterator[None]:
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
        self.passes.append((cache is not None and cache.n_skipped_in_a_row > 0, seconds))

    def attend(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Any, **more: Any) -> Any:
        """For OVERRIDE: FLUX's own attention goes to the chosen backend, any other to ComfyUI's."""
        plain = more.get("mask") is None and more.get("skip_reshape") and not more.get("skip_output_reshape")
        name = self.choices.attention
        if plain and name == AUTO:
            name = fastest(q, k, v) or ""
        if not plain or not name:
            return attention(q, k, v, *rest, **more)
        self.attention_used = name
        return BACKENDS[name](q, k, v).transpose(1, 2).flatten(2)

    def report(self) -> str:
        """What happened, some short lines."""
        computed = [seconds() for skipped, seconds in self.passes if not skipped]
        skipped = [seconds() for skipped, seconds in self.passes if skipped]
        if not computed:
            return "No step was computed."
        lines = [f"{len(computed)} passes computed, {len(skipped)} skipped, in {self.seconds:.2f} s."]
        if skipped:
            usual = median(computed)
            uncached = self.seconds + sum(usual - each for each in skipped)
            words = f"A computed pass takes {usual * 1e3:.0f} ms, a skipped one {median(skipped) * 1e3:.0f} ms"
            lines.append(
                f"{words}; without skipping about {uncached:.2f} s, {uncached / self.seconds:.2f} times as long."
            )
        else:
            lines.append(f"A pass takes {median(computed) * 1e3:.0f} ms.")
        if self.peak_bytes:
            lines.append(f"Peak memory {self.peak_bytes / 1e9:.1f} GB.")
        if self.choices.compile != "off":
            done = f"{self.n_graphs} graphs compiled" if self.n_graphs else "nothing recompiled"
            lines.append(f"Not compiled: {self.failed.reason}." if self.failed.reason else f"Compiled: {done}.")
        if self.attention_used:
            lines.append(f"Attention: {self.attention_used}.")
        return "\n".join(lines)
