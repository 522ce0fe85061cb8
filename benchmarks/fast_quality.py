"""What each of the fast preset's means does to pictures, alone and together, on the demo model.

    COMFYUI_PATH=... python benchmarks/fast_quality.py [--tiny] [--edits N] [--only WORD ...] [--minutes M]
        [--out FILE]
    python benchmarks/fast_quality.py --plot [--out FILE]

Held-out edits with one, two and four references through ComfyUI's sampler (28 steps, euler, simple), one at a time.
SSIM is to the same edit with nothing spared; success is judged as in demo_quality.py. The demo model was trained with
up to three references: the fourth is another edit's picture, which no prompt names. How far kept references drift is
told by `ReferenceCache.drifts`, the most of a run. Products in formats that the machine has not are emulated, the same
numbers but for rounding; attention in FP8 is left out without a card. --only every: the intervals alone. --plot draws
js/docs/KontextOptimize_references.png from the result, without a model.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

import report
import torch
from held_out import Settings
from sampling import emulate_narrow
from single_edits import Made, SingleEdits, judged
from stages import Stages

ONE = ("recolor", "texture", "remove", "add", "move", "background")
KINDS = {1: (ONE, 0), 2: (("combine two",), 0), 4: (("combine three",), 1)}  # and how many references more
SHARES = {1: 1000 / 780, 2: 1000 / 120, 4: 1000 / 100}  # held-out edits of all kinds for one of these
INTERVALS = (2, 3, 4, 5, 7, 10, 100)
SSIM_GOAL, WORST_GOAL, SUCCESS_LOSS = 0.98, 0.90, 0.01
TINY = Settings(6, size=(128, 128))


class FastQuality:
    """The rows, and what they are compared with. full: pictures by number of references."""

    def __init__(self, stages: Stages, n_edits: int, tiny: bool):
        self.stages = stages
        self.edits = {
            n: SingleEdits(round(n_edits * SHARES[n]), TINY if tiny else Settings(), kinds, n_more)
            for n, (kinds, n_more) in KINDS.items()
        }
        self.full: dict[int, Made] = {}
        self.success: dict[int, float] = {}

    def everything(self, only: tuple[str, ...]) -> None:
        """The preset first, then its parts, then intervals; those alone whose names begin with `only`."""
        from kontextkit.engine.cache.references import ReferenceSettings
        from kontextkit.engine.tiers.presets import FP8, FUSED, PRESETS, Choices

        fast = PRESETS["fast"]
        references, cache = fast.references, fast.cache
        on_card = torch.cuda.is_available()
        ways = {"": fast if on_card else replace(fast, compile="off", attention="comfyui")}
        ways |= {"fp8_attention": Choices(compile=FUSED, attention=FP8)} if on_card else {}
        ways |= {
            "fp8": Choices(precision=FP8),
            "references": Choices(references=references),
            "cache": Choices(cache),
            "references_cache": Choices(cache, references=references),
            "fp8_cache": Choices(cache, precision=FP8),
            "fp8_references": Choices(references=references, precision=FP8),
            "mxfp8": Choices(precision="mxfp8"),
            "nvfp4": Choices(precision="nvfp4"),
        }
        ways |= {f"every_{i}": Choices(references=ReferenceSettings(interval=i)) for i in INTERVALS}
        for n in KINDS:
            self.stages.run(f"{n} references, nothing spared", lambda n=n: self.everything_computed(n))
        for name, choices in ways.items():
            for n in KINDS if (name or "fast").startswith(only) else ():
                title = f"{name or 'fast'}, {n} references"
                work = lambda name=name, choices=choices, n=n: self.compare(name, choices, n)  # noqa: E731
                self.stages.run(title, work, (row_name(name, "ssim", n),), "SSIM")

    def everything_computed(self, n: int) -> None:
        """The pictures that all others are compared with."""
        from kontextkit.engine.tiers.presets import Choices

        singles = self.edits[n]
        self.full[n] = singles.make(Choices(), singles.edits)
        _, self.success[n] = judged(singles.edits, self.full[n].pictures, self.full[n].pictures)
        note = f"nothing spared, {len(singles.edits)} edits"
        self.stages.add(report.row(row_name("off", "edit_success", n), self.success[n], "share", note, better="higher"))

    def compare(self, name: str, choices: Any, n: int) -> None:
        """Rows of one way."""
        edits = self.edits[n].edits
        made = self.edits[n].make(choices, edits)
        likeness, success = judged(edits, self.full[n].pictures, made.pictures)
        steps = statistics.mean(map(len, made.computed))
        kept = statistics.mean(made.n_kept)
        words = f"of {self.edits[n].settings.steps} steps {steps:.1f} computed, {kept:.1f} of them with kept references"
        note = f"{len(edits)} edits, {words}"
        values = {
            "ssim": (likeness.mean().item(), "SSIM", SSIM_GOAL),
            "ssim_worst": (likeness.min().item(), "SSIM", WORST_GOAL),
            "edit_success": (success, "share", self.success[n] - SUCCESS_LOSS),
        }
        for measure, (measured, unit, goal) in values.items():
            row = report.row(row_name(name, measure, n), measured, unit, note, None if name else goal, "higher")
            self.stages.add(row)
        if any(made.drifts):
            words = f"relative change, the most of a run; mean of {len(edits)} edits, the most {max(made.drifts):.3f}"
            self.stages.add(report.row(row_name(name, "drift", n), statistics.mean(made.drifts), "relative", words))


def row_name(way: str, measure: str, n: int) -> str:
    """fast.ssim.1 of the preset, fast.fp8.ssim.1 of a part."""
    return ".".join(filter(None, ("fast", way, measure, str(n))))


def main() -> None:
    """Command line."""
    parser = report.parser_of_edits(__doc__, "fast_quality.json", 60)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="with which names of ways begin")
    options = parser.parse_args()
    report.tiny_variant(options)
    if options.plot:
        plot(options)
        return
    report.import_comfyui()
    report.import_pack()
    emulate_narrow()
    command = ("fast_quality.py", *(["--tiny"] if options.tiny else ["--edits", str(options.edits)]))
    command += ("--only", *options.only) if any(options.only) else ()
    stages = Stages(lambda rows: report.save(options.out, rows, *command), options.minutes)
    with report.private_caches(cold=False), torch.inference_mode():
        FastQuality(stages, 3 if options.tiny else options.edits, options.tiny).everything(tuple(options.only))
    report.show(list(stages.rows.values()))


def plot(options: argparse.Namespace) -> None:
    """js/docs/KontextOptimize_references.png, or beside a result that lies elsewhere."""
    from fast_plot import draw_intervals

    usual = options.out.resolve().parent == report.RESULTS
    path = report.ROOT / "js" / "docs" / "KontextOptimize_references.png" if usual else options.out.with_suffix(".png")
    draw_intervals(options.out, path)
    print(path)


if __name__ == "__main__":
    main()
