"""References at full size: what 2, 4 and 6 cost against 1, each of full size and within a budget of two megapixels.

    COMFYUI_PATH=... python benchmarks/references_steps.py [--tiny] [--minutes M] [--folder FOLDER] [--quality FILE]
        [--out FILE]

Random weights, everything on the card, a 1024x1024 result, 512 text tokens. Three ways, in turns in one process for
each number of references: ComfyUI's own FLUX with its chain of ReferenceLatent and ours plain, FEW_STEPS steps each,
and ours under the preset fast, 28 steps of which those are computed that the demo model's edits compute
(measured_maps.py). The last row is a weight's price: a step with one reference of weight 0.5 against one of weight 1.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch
from measured_maps import QUALITY, measured_maps
from optimize_peers import ComfyUI
from optimize_steps import Bench, ours
from random_files import base_file
from stages import Stages
from timed_runs import GB, Sample, timed

NUMBERS = (1, 2, 4, 6)
BUDGET = 2.0  # megapixels of all references together
GOALS = {2: (1.05, 2.0), 4: (1.12, 4.0), 6: (1.18, 6.0)}  # the guide's: time over one reference, GB more than one's
FEW_STEPS = 5
N_RUNS, N_TURNS = 2, 3


class ReferenceBench(Bench):
    """Conditionings of several references, and the rows. seconds, gb: of each way and number, beside the weights."""

    def __init__(self, stages: Stages, options: argparse.Namespace, folder: Path):
        super().__init__(stages, options, folder, measured_maps(options.quality))
        self.seconds: dict[str, dict[int, float]] = {}
        self.gb: dict[str, dict[int, float]] = {}

    def everything(self) -> None:
        """The budget first, of which there are goals."""
        if not self.stages.run("weights, on the card", self.load_both):
            return
        for name, budget in (("budget", BUDGET), ("full", 0.0)):
            for n in NUMBERS:
                title = f"{n} references, {name}"
                missed = (f"references.{n}.seconds.{name}",)
                self.stages.run(title, lambda n=n, name=name, budget=budget: self.compare_ways(n, name, budget), missed)
        self.stages.run("a weight", self.weight, ("references.weight_step_ratio",), "times")

    def load_both(self) -> None:
        """Ours and ComfyUI's own, of one file."""
        import comfy.model_management as management
        import comfy.sd

        path = base_file(self.folder, self.shapes)
        self.ours = self.loaded(path)
        self.core = comfy.sd.load_diffusion_model(str(path))
        management.load_models_gpu([self.ours, self.core], force_full_load=True)

    def conditioned(self, n: int, budget: float = 0.0, weight: float = 1.0) -> list[list[Any]]:
        """n references as large as the result, or all together of `budget` of its sizes; random latents."""
        from kontextkit.bridge.references import weigh, with_references
        from kontextkit.engine.references.sizes import MEGAPIXEL, shares, size_on_grid

        height, width = (8 * side for side in self.noise.shape[2:])
        own = height * width / MEGAPIXEL
        sizes = [size_on_grid((width, height), share, share < own) for share in shares([own] * n, budget * own)]
        generator = torch.Generator().manual_seed(n)
        latents = [torch.randn(1, 16, h // 8, w // 8, generator=generator) for w, h in sizes]
        values = {"pooled_output": self.arguments["y"], "guidance": 2.5}
        given = with_references([[self.arguments["context"], values]], latents, [()] * n, "offset")
        return weigh(given, weight) if weight < 1 else given

    def compare_ways(self, n: int, name: str, budget: float) -> None:
        """Each way warmed up once, then the better of two runs."""
        from kontextkit.engine.tiers.presets import PRESETS

        given, few = self.conditioned(n, budget), min(FEW_STEPS, self.n_steps)
        fast = PRESETS["fast"]
        fast = replace(
            fast, cache=replace(fast.cache, computed=tuple(s for s in self.maps["fast"] if s < self.n_steps))
        )
        ways: dict[str, tuple[Sample, int]] = {
            "fast": (ours(self.ours, fast, self.noise, given)(), self.n_steps),
            "plain": (ours(self.ours, PRESETS["off"], self.noise, given)(), few),
            "comfyui": (ComfyUI(self.core, self.noise, given).plain(), few),
        }
        for way, (sample, n_steps) in ways.items():
            timed(sample, n_steps)
            run = min((timed(sample, n_steps) for _ in range(N_RUNS)), key=lambda run: run.seconds)
            self.seconds.setdefault(f"{way}.{name}", {})[n] = run.seconds
            self.gb.setdefault(f"{way}.{name}", {})[n] = run.n_bytes / GB
            self.stages.add(*self.rows(way, name, n, n_steps))

    def rows(self, way: str, name: str, n: int, n_steps: int) -> list[dict[str, Any]]:
        """Of the last run; the ways but fast carry their name."""
        prefix = f"references.{n}" if way == "fast" else f"references.{n}.{way}"
        seconds, gb = self.seconds[f"{way}.{name}"], self.gb[f"{way}.{name}"]
        has_goal = way == "fast" and name == "budget" and n in GOALS
        time_goal, gb_goal = GOALS[n] if has_goal else (None, None)
        note = f"{n_steps} steps, {'two megapixels in all' if name == 'budget' else 'each 1024x1024'}"
        rows = [report.row(f"{prefix}.seconds.{name}", seconds[n], "s", note)]
        rows += [report.row(f"{prefix}.peak_gb.{name}", gb[n], "GB", f"beside the weights; {note}")]
        if n > 1 and 1 in gb:
            more = gb[n] - gb[1]
            rows += [report.row(f"{prefix}.time_ratio.{name}", seconds[n] / seconds[1], "times", note, time_goal)]
            rows += [report.row(f"{prefix}.gb.{name}", more, "GB", f"over one reference; {note}", gb_goal)]
        return rows

    def weight(self) -> None:
        """One of 0.5 against one of 1, in turns, both by the fastest attention."""
        from kontextkit.engine.tiers.presets import PRESETS

        samples = {
            w: ours(self.ours, PRESETS["quality"], self.noise, self.conditioned(1, weight=w))() for w in (1.0, 0.5)
        }
        best = dict.fromkeys(samples, float("inf"))
        for turn in range(1 + N_TURNS):
            for weight, sample in samples.items():
                seconds = timed(sample, FEW_STEPS).seconds
                best[weight] = min(best[weight], seconds) if turn else best[weight]
        note = f"weight 0.5 over weight 1, in turns, the best of {N_TURNS} runs of {FEW_STEPS} steps each"
        self.stages.add(report.row("references.weight_step_ratio", best[0.5] / best[1.0], "times", note, 1.03))


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "references_steps.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which the rest is left out")
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    parser.add_argument("--quality", type=Path, default=QUALITY, help="optimize_quality.py's result, for the map")
    options = parser.parse_args()
    report.tiny_variant(options)
    report.import_comfyui()
    report.import_pack()
    command = ("references_steps.py", *["--tiny"] * options.tiny)
    stages = Stages(lambda rows: report.save(options.out, rows, *command), options.minutes)
    with report.private_caches(cold=False), report.folder(options) as folder, torch.inference_mode():
        ReferenceBench(stages, options, folder).everything()
    report.show(list(stages.rows.values()), notes=False)


if __name__ == "__main__":
    main()
