"""What the optimizer does to pictures: thresholds, extrapolation, presets and compiled blocks on the demo model.

    COMFYUI_PATH=... python benchmarks/optimize_quality.py [--tiny] [--edits N] [--minutes M] [--out FILE]
    python benchmarks/optimize_quality.py --plot [--out FILE]

Held-out edits through ComfyUI's sampler (28 steps, euler, simple), one at a time, because a cache decides once for all
pictures of a batch. SSIM is to the same edit with every step computed; success is judged as in demo_quality.py. A row
`<preset>.map` has in its note the steps that optimize_steps.py takes. --plot draws docs/optimize_frontier.png from the
result, without a model.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import report
import torch
from held_out import Settings
from single_edits import Made, SingleEdit, SingleEdits, judged, typical
from stages import Stages

THRESHOLDS = (0.03, 0.05, 0.08, 0.12, 0.17, 0.25, 0.35, 0.5, 0.8)
ORDERS = (1, 0, 2)  # the presets' own first
PRESETS = ("quality", "balanced", "fast")
GOALS = {"quality": 0.999, "balanced": 0.97}  # SSIM
SUCCESS_LOSS = 0.01  # of edits, at most
INTERVALS = (2, 4, 5, 7, 100)  # at which references are computed anew; 100: never again
MOST_SKIPS, STARTS = (2, 4, 8), (0.0, 0.1)  # at threshold 0.25, order 1
SHARE = 3  # of all edits, one in so many serves where there are many settings
TINY = {"kinds": ("recolor", "combine two", "combine three"), "thresholds": (0.12, 0.5), "steps": 5, "size": (128, 128)}
REFERENCES = {1: "one", 2: "two", 3: "three"}
MEASURES = ("computed_steps", "kept_steps", "ssim", "ssim_p5", "ssim_worst", "edit_success")


class Quality:
    """The rows, and the pictures behind them."""

    def __init__(self, stages: Stages, n_edits: int, tiny: bool):
        self.stages = stages
        if tiny:
            self.settings, self.thresholds = Settings(TINY["steps"], size=TINY["size"]), TINY["thresholds"]
            self.singles = SingleEdits(1, self.settings, TINY["kinds"])
        else:
            self.settings, self.thresholds = Settings(), THRESHOLDS
            self.singles = SingleEdits(n_edits, self.settings)
        self.edits = self.singles.edits
        self.few = self.edits[:: 1 if tiny else SHARE]
        self.full: Made | None = None  # every step of all edits computed

    def everything(self) -> None:
        """Stage by stage, the presets first."""
        from kontextkit.engine.cache.first_block import FirstBlockSettings
        from kontextkit.engine.cache.references import ReferenceSettings
        from kontextkit.engine.tiers.presets import Choices

        if not self.stages.run("every step computed", self.uncached, ("optimize.off.edit_success",), "share"):
            return
        for name in PRESETS:
            self.stages.run(f"preset {name}", lambda name=name: self.preset(name), (f"optimize.{name}.ssim",), "SSIM")
        self.stages.run("compiled blocks", self.compiled, ("optimize.compile.ssim",), "SSIM")
        for interval in INTERVALS:
            for name, cache in (("", None), (".t0_25", FirstBlockSettings(0.25))):
                kept = Choices(cache, references=ReferenceSettings(interval=interval))
                self.setting(f"references.every{interval}{name}", kept)
        for order in ORDERS:
            for threshold in self.thresholds:
                self.setting(f"cache.{words('t', threshold)}.o{order}", Choices(FirstBlockSettings(threshold, order)))
        for start in STARTS:
            for most in MOST_SKIPS:
                cache = FirstBlockSettings(0.25, 1, start, most_skips=most)
                self.setting(f"cache.t0_25.o1.skips{most}.{words('start', start)}", Choices(cache))

    def uncached(self) -> None:
        """The pictures that all others are compared with."""
        from kontextkit.engine.tiers.presets import Choices

        self.full = self.singles.make(Choices(), self.edits)
        self.add("off", self.edits, self.full, ("edit_success",))

    def preset(self, name: str) -> None:
        """All edits, those with so many references, and the map of computed steps."""
        from kontextkit.engine.tiers.presets import PRESETS as CHOICES

        made = self.singles.make(CHOICES[name], self.edits)
        goal = self.stages.rows["optimize.off.edit_success"]["measured"] - SUCCESS_LOSS
        self.add(name, self.edits, made, MEASURES, {"ssim": GOALS.get(name), "edit_success": goal})
        for n, word in REFERENCES.items():
            which = [i for i, edit in enumerate(self.edits) if edit.n_references == n]
            self.add(f"{name}.references_{word}", [self.edits[i] for i in which], made.part(which), MEASURES)
        chosen, times = typical(made.computed, self.settings.steps)
        note = (
            f"{list(chosen)}; of the maps of median length the most frequent: in {times} of {len(made.computed)} edits"
        )
        self.stages.add(report.row(f"optimize.{name}.map", len(chosen), "steps", note))

    def compiled(self) -> None:
        """Pictures with compiled blocks against those without, everything else the same."""
        from kontextkit.engine.metrics.ssim import ssim
        from kontextkit.engine.tiers.presets import PRESETS as CHOICES
        from kontextkit.engine.tiers.presets import Choices

        for name, cache in (("", None), ("balanced.", CHOICES["balanced"].cache)):
            eager = self.singles.make(Choices(cache), self.few)
            made = self.singles.make(Choices(cache, "default"), self.few)
            likeness = ssim(eager.pictures, made.pictures)
            same = sum(a == b for a, b in zip(eager.computed, made.computed, strict=True))
            note = f"compiled blocks against eager ones; the same steps computed in {same} of {len(self.few)} edits"
            stem = f"optimize.compile.{name}ssim"
            self.stages.add(report.row(stem, likeness.mean().item(), "SSIM", note, better="higher"))
            self.stages.add(report.row(f"{stem}_worst", likeness.min().item(), "SSIM", better="higher"))

    def setting(self, name: str, choices: Any) -> None:
        """Choices on few edits."""

        def work() -> None:
            self.add(name, self.few, self.singles.make(choices, self.few), MEASURES)

        self.stages.run(name, work, (f"optimize.{name}.ssim",), "SSIM")

    def add(
        self,
        name: str,
        edits: Sequence[SingleEdit],
        made: Made,
        measures: Sequence[str],
        goals: dict[str, float | None] | None = None,
    ) -> None:
        """Rows of these measures."""
        n_steps, n_computed = self.settings.steps, [len(steps) for steps in made.computed]
        assert self.full
        likeness, success = judged(edits, self.full.pictures[[edit.number for edit in edits]], made.pictures)
        values = {
            "computed_steps": (
                statistics.mean(n_computed),
                "steps",
                f"of {n_steps}, from {min(n_computed)} to {max(n_computed)}",
            ),
            "kept_steps": (statistics.mean(made.n_kept), "steps", "computed ones that kept the references"),
            "ssim": (likeness.mean().item(), "SSIM", "to every step computed, mean"),
            "ssim_p5": (likeness.quantile(0.05).item(), "SSIM", "5th percentile"),
            "ssim_worst": (likeness.min().item(), "SSIM", ""),
            "edit_success": (success, "share", ""),
        }
        for measure in measures:
            measured, unit, note = values[measure]
            note = ", ".join(filter(None, (note, f"{len(edits)} edits, one at a time")))
            if measure == "kept_steps" and not measured:
                continue
            better = "lower" if measure == "computed_steps" else "higher"
            goal = (goals or {}).get(measure)
            self.stages.add(report.row(f"optimize.{name}.{measure}", measured, unit, note, goal, better))


def words(name: str, number: float) -> str:
    """A number as a part of a row's name."""
    return f"{name}{number:g}".replace(".", "_")


def main() -> None:
    """Command line."""
    options = report.parser_of_edits(__doc__, "optimize_quality.json", 100).parse_args()
    report.tiny_variant(options)
    if options.plot:
        plot(options)
        return
    report.import_comfyui()
    report.import_pack()
    command = ("optimize_quality.py", *(["--tiny"] if options.tiny else ["--edits", str(options.edits)]))
    stages = Stages(lambda rows: report.save(options.out, rows, *command), options.minutes)
    with report.private_caches(cold=False), torch.inference_mode():
        Quality(stages, options.edits, options.tiny).everything()
    summarize(stages.rows)


def summarize(rows: dict[str, Any]) -> None:
    """A line for each setting, and what optimize_steps.py asks for."""
    print(f"{'':40}" + "".join(f"{measure:>15}" for measure in MEASURES))
    for stem in dict.fromkeys(name.rpartition(".")[0] for name in rows):
        measured = [rows.get(f"{stem}.{measure}", {}).get("measured") for measure in MEASURES]
        print(f"{stem:40}" + "".join(f"{'' if each is None else format(each, '.4g'):>15}" for each in measured))
    for name, row in rows.items():
        if name.endswith(".map"):
            print(name, row["note"])


def plot(options: argparse.Namespace) -> None:
    """docs/optimize_frontier.png, or beside a result that lies elsewhere."""
    from optimize_plot import draw_frontier

    usual = options.out.parent == report.RESULTS
    path = report.ROOT / "docs" / "optimize_frontier.png" if usual else options.out.with_suffix(".png")
    draw_frontier(options.out, path)
    print(path)


if __name__ == "__main__":
    main()
