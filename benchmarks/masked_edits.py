"""Masked edits of the demo model: what the mask's grade and the denoise do to them.

    COMFYUI_PATH=... python benchmarks/masked_edits.py [--edits N] [--tiny] [--out FILE]

Held-out local edits through ComfyUI. Masks are boxes around what should change. For the grades they are 2 pixels
wider: sharp (high), with a feather of 8 pixels (standard), with one of 40 and at most 0.7 (poor). For the denoise they
are 8 pixels wider, as one would paint them, and sharp. The mask is the sampler's noise mask, and afterwards puts the
result on the original, as the workflow kontext inpaint does. The grades are those that Check Mask gives; edge_error is
the mean absolute difference to the truth near the border of what should change. Grades take 5 steps, denoises 10.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import held_out
import report
import torch
from torch import Tensor

KINDS = ("recolor", "texture", "remove", "add", "move")
MARGIN, TIGHT = 8, 2  # pixels around what should change; held_out.change_mask has the first
FEATHERS = {"high": (0, 1.0), "standard": (8, 1.0), "poor": (40, 0.7)}  # pixels, largest value
GOALS = {"high": 0.96, "standard": 0.92, "poor": 0.85}  # the lower ends of the guide's ranges, SSIM to the truth
DENOISES = {0.25: 0.95, 0.5: 0.92, 0.75: 0.9, 0.9: 0.88, 1.0: 0.85}  # and their SSIM to the context
GRADE_STEPS, DENOISE_STEPS = 5, 10  # this model finds its picture early; of 10 steps every denoise takes another part
NEAR = 8  # pixels from the border of what should change


class MaskedEdits:
    """One way to edit after the other, on the same edits."""

    def __init__(self, n_edits: int):
        each = max(1, n_edits // len(KINDS))
        self.edits = [edit for kind in KINDS for edit in held_out.held_out(8 * each)[kind][:each]]
        self.n = len(self.edits)
        self.editor = held_out.Editor()
        self.rows: list[dict[str, Any]] = []

    def batches(self) -> list[tuple[int, list[Any], Tensor, Tensor]]:
        """Seed, edits, right pictures and pictures before (B, 3, H, W)."""
        size = self.editor.at_once
        parts = [(i, self.edits[i : i + size]) for i in range(0, self.n, size)]
        found = []
        for i, edits in parts:
            right, (before, *_) = held_out.truth(edits, held_out.Settings().size)
            found.append((i, edits, right, before))
        return found

    def edit(self, seed: int, edits: list[Any], before: Tensor, mask: Tensor, steps: int, denoise: float) -> Tensor:
        """(B, 3, H, W): sampled under the mask (B, H, W), then put on the original by it."""
        import nodes

        latents = self.editor.vae.encode(before.movedim(1, -1))
        positive = self.editor.conditions([edit.prompt for edit in edits], [latents], 1.0)
        start = {"samples": latents, "noise_mask": mask}
        how = (steps, 1.0, "euler", "simple", positive, self.editor.encode([""]), start)
        (made,) = nodes.common_ksampler(self.editor.model, seed, *how, denoise=denoise)
        return torch.lerp(before, self.editor.decode(made["samples"]), mask[:, None].to(before))

    def measure(self, masks: Callable[[Tensor], Tensor], steps: int, denoise: float = 1.0) -> dict[str, list[float]]:
        """Values of each edit by name; masks: from sharp ones (B, H, W)."""
        from kontextkit.demo.training.judge import judge
        from kontextkit.engine.metrics.comparison import INSIDE, compare
        from kontextkit.engine.metrics.mask_grade import judge as grade
        from kontextkit.engine.metrics.mask_measures import edge_distance, measure

        values: dict[str, list[float]] = {}

        def add(name: str, found: list[Any]) -> None:
            values.setdefault(name, []).extend(found)

        for seed, edits, right, before in self.batches():
            box = held_out.change_mask(before, right)
            mask = masks(box)
            made = self.edit(seed, edits, before, mask, steps, denoise)
            to_truth, to_context = compare(right, made), compare(before, made)
            add("ssim_to_truth", [row.ssim for row in to_truth.rows])
            add("ssim_to_context", [row.ssim for row in to_context.rows])
            add("ssim_inside", [row.ssim for row in compare(before, made, region=INSIDE, mask=box).rows])
            add("success", judge(before, right, made).success.tolist())
            add("grade", [grade(measure(one.cpu().numpy())).grade for one in mask])
            changes = (right - before).abs().amax(dim=1) > 0.05
            for one, area in zip((right - made).abs().mean(dim=1), changes, strict=True):
                seam = abs(torch.from_numpy(edge_distance(area.cpu().numpy()))) < NEAR
                add("edge_error", [one[seam.to(one.device)].mean().item()])
        return values

    def row(self, name: str, values: list[float], unit: str, goal: float | None = None, better: str = "higher") -> None:
        """A mean and its spread."""
        spread = f"{self.n} edits, standard deviation {statistics.pstdev(values):.4f}, "
        spread += f"worst {(min if better == 'higher' else max)(values):.4f}"
        self.rows.append(report.row(name, statistics.mean(values), unit, spread, goal, better))

    def by_grade(self) -> None:
        """The rows of masks of each grade."""
        found = {}
        for grade, (feather, highest) in FEATHERS.items():
            found[grade] = values = self.measure(lambda box, by=(feather, highest): soften(box, *by), GRADE_STEPS)
            self.row(f"mask.{grade}.ssim_to_truth", values["ssim_to_truth"], "SSIM", GOALS[grade])
            self.row(f"mask.{grade}.edge_error", values["edge_error"], "0-1", better="lower")
            self.row(f"mask.{grade}.edit_success", values["success"], "share")
            self.row(f"mask.{grade}.graded_so", [graded == grade for graded in values["grade"]], "share", 1.0)
        ordered = zip(*(found[grade]["ssim_to_truth"] for grade in FEATHERS), strict=True)
        self.row("mask.guides_order", [high >= middle >= poor for high, middle, poor in ordered], "share")

    def by_denoise(self) -> None:
        """The rows of the presets of denoise, all with sharp masks."""
        for denoise, goal in DENOISES.items():
            values = self.measure(lambda box: box, DENOISE_STEPS, denoise)
            name = f"denoise.{denoise:.2f}".replace("0.", "0_").replace("1.", "1_")
            self.row(f"{name}.ssim_to_context", values["ssim_to_context"], "SSIM", goal)
            self.row(f"{name}.ssim_inside", values["ssim_inside"], "SSIM")
            self.row(f"{name}.ssim_to_truth", values["ssim_to_truth"], "SSIM")
            self.row(f"{name}.edit_success", values["success"], "share")


def soften(box: Tensor, feather: float, highest: float) -> Tensor:
    """Sharp masks (B, H, W) tighter, with an edge so wide and values up to `highest`."""
    from kontextkit.engine.metrics.mask_cleaning import Cleaning, clean

    softened = [
        torch.from_numpy(clean(one.cpu().numpy(), Cleaning(grow=TIGHT - MARGIN, feather=feather))) for one in box
    ]
    return torch.stack(softened).to(box.device) * highest


def main() -> None:
    """Measure, write, and print the rows."""
    parser = report.parser(__doc__, "masked_edits.json")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="one edit of a kind, to see that it runs")
    options = parser.parse_args()
    report.tiny_variant(options)
    report.import_comfyui()
    report.import_pack()
    edits = MaskedEdits(5 if options.tiny else options.edits)
    with torch.inference_mode():
        edits.by_grade()
        edits.by_denoise()
    report.write(options.out, edits.rows, "masked_edits.py", f"--edits {edits.n}")


if __name__ == "__main__":
    main()
