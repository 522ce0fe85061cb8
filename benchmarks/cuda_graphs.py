"""Passes replayed from a CUDA graph against passes as they are, at full size: times, and whether the numbers agree.

    PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync COMFYUI_PATH=... python benchmarks/cuda_graphs.py [--tiny]
        [--minutes M] [--rounds N] [--folder FOLDER] [--out FILE]

The variable makes torch allocate as ComfyUI has it, where a graph's memory is another thing than with torch's own way.
Random weights, everything on the card, 28 steps of euler, one picture and one reference of the same size, 512 text
tokens. `quality` computes every step, `balanced` those of measured_maps.py; a graph is recorded at the third computed
step where the host sets the pace (`engine.flux.graphs`). Without one: the same run with recording forbidden, in turns.
What a host can do differs from machine to machine. Without a card nothing is recorded.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import report
import torch
from fast_steps import FastBench, main, seconds
from random_files import COMPUTE, call
from timed_runs import Sample

SIDES = (512, 768, 1024)  # pixels


class GraphsBench(FastBench):
    """A table of sizes and presets."""

    def everything(self) -> None:
        """The smallest first, where the host counts most."""
        if not self.stages.run("weights, on the card", self.load):
            return
        balanced = self.choices("balanced", self.maps["balanced"])
        for side in SIDES:
            for name, choices in (
                ("quality", self.choices("quality")),
                ("quality_fp8", self.choices("quality", precision="fp8")),
                ("balanced", balanced),
            ):
                row = f"graphs.{side}.{name}"
                work = lambda side=side, choices=choices, row=row: self.compare(side, choices, row)  # noqa: E731
                self.stages.run(row, work, (f"{row}.speedup",), "times")

    def compare(self, side: int, choices: Any, row: str) -> None:
        """Rows of one size and preset."""
        one = call(side // (32 if self.options.tiny else 8), self.shapes, COMPUTE)
        values = {"pooled_output": one["y"], "guidance": 2.5, "reference_latents": one["ref_latents"]}
        sample = self.way(choices, [[one["context"], values]], noise=one["x"])
        runs = self.in_turns({"plain": without_graphs(sample), "graphs": sample}, self.n_steps)
        ours, plain = runs["graphs"], runs["plain"]
        graphs = self.last and self.last.graphs
        replayed = graphs.n_replayed if graphs else 0
        note = f"{replayed} passes replayed; {len(ours)} runs, {min(r.seconds for r in ours):.3f} s at best"
        self.stages.add(
            report.row(f"{row}.plain_seconds", seconds(plain), "s", f"{len(plain)} runs"),
            report.row(f"{row}.seconds", seconds(ours), "s", note),
            report.row(f"{row}.step_ms", median(ms for run in ours for ms in run.step_ms), "ms", "median of all steps"),
            report.row(f"{row}.speedup", seconds(plain) / seconds(ours), "times", note, better="higher"),
        )
        if not all(torch.equal(run.latents, plain[0].latents) for run in (*ours, *plain)):
            far = max((run.latents - plain[0].latents).abs().max().item() for run in ours)
            raise ValueError(f"{row}: a replayed run is not the same numbers, {far:.2g} apart at most")


def without_graphs(sample: Sample) -> Sample:
    """The same, recording forbidden."""

    def run(*arguments: Any) -> Any:
        from kontextkit.engine.flux import graphs

        usual, graphs.HOST_BOUND = graphs.HOST_BOUND, math.inf
        try:
            return sample(*arguments)
        finally:
            graphs.HOST_BOUND = usual

    return run


if __name__ == "__main__":
    main(GraphsBench, __doc__, "cuda_graphs", minutes=8.0)
