"""The guide's quality tables, measured on the demo model: each setting against the usual picture of the same noise.

    COMFYUI_PATH=... python benchmarks/quality_lab.py [--tiny] [--edits N] [--minutes M] [--times] [--out FILE]

Held-out edits one at a time, 28 steps, euler, simple, guidance 1. Every picture of an edit is made before the next edit
begins, so that whatever else the machine does meets all settings; after each edit the rows, and a plot of every
setting, are written. Goals are the guide's own figures.

--times measures speed instead, of the settings that change it, on one edit: seconds of the processor where there is no
card, which other work on the machine hardly moves (set OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import time
from typing import Any

import held_out
import report
import torch

CLAIMS = {  # the guide's, the lower end of each: SSIM to the usual picture, or to the context
    "precision": {"Q5_K_M": 0.965, "Q4_K_M": 0.95, "Q3_K_M": 0.935},
    "steps": {20: 0.92, 16: 0.88, 12: 0.82, 8: 0.70},
    "guidance": {2.0: 0.88, 3.5: 0.90, 5.0: 0.92, 7.0: 0.91, 9.0: 0.88},
}
CONTEXT_CLAIMS = {
    "denoise": {0.25: 0.95, 0.5: 0.92, 0.75: 0.90, 0.9: 0.88, 1.0: 0.85},
    "context weight": {0.0: 0.60, 0.3: 0.75, 0.6: 0.88, 0.9: 0.95},
}
SPEED_CLAIMS = {  # of settings that change the time
    "precision": {},
    "steps": {20: 1.33, 16: 1.75, 12: 2.33, 8: 3.5, 4: 7.0},
    "cache threshold": {0.05: 1.18, 0.12: 1.82, 0.25: 2.1},
}
TURNS = 2  # of --times
TINY = {"steps": (2,), "guidance": (2.0,), "denoise": (0.5,), "cache threshold": (0.5,), "context weight": (0.3,)}


class Lab:
    """The ways to make a picture, and what came of them."""

    def __init__(self, tiny: bool):
        from kontextkit.bridge.demo import TRANSFORMERS, load_demo
        from kontextkit.bridge.ways import CHANGES, Way
        from kontextkit.engine.lab.settings import SETTINGS

        model, self.clip, self.vae = load_demo("BF16")
        steps, self.size = (4, (64, 64)) if tiny else (28, (256, 256))
        self.way = Way(model, steps)
        values: dict[str, tuple[Any, ...]] = {name: SETTINGS[name].values for name in CHANGES} | (TINY if tiny else {})
        values["precision"] = tuple(name for name in TRANSFORMERS if name != "BF16")
        self.ways = {
            (name, value): change(self.way, value) for name, change in CHANGES.items() for value in values[name]
        }
        self.pictures: dict[str, list[Any]] = {name: [] for name in CHANGES}
        self.success: dict[tuple[str, Any], list[bool]] = {}

    def case(self, number: int, edit: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """An edit ready to be sampled, the picture to edit and the right one (1, 3, H, W)."""
        from kontextkit.bridge.quality_lab import edit_of

        right, references = held_out.truth([edit], self.size)
        right, *references = (picture.cpu() for picture in (right, *references))  # where ComfyUI has pictures
        shown = [picture.movedim(1, -1) for picture in references]
        case = edit_of(edit.prompt, shown, 1.0, self.clip, self.vae, f"{number}: {edit.prompt}", right)
        return case, references[0], right

    def times(self, edit: Any) -> list[dict[str, Any]]:
        """How many times as fast as the usual setting, the quickest of TURNS, all in turns."""
        from kontextkit.bridge.ways import sample

        case, _, _ = self.case(0, edit)
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        ways = {None: self.way} | {key: way for key, way in self.ways.items() if key[0] in SPEED_CLAIMS}
        seconds: dict[Any, list[float]] = {key: [] for key in ways}
        for _ in range(TURNS):
            for key, way in ways.items():
                begin = clock()
                sample(way, case, 0)
                seconds[key].append(clock() - begin)
        usual = min(seconds.pop(None))
        kind = "s" if torch.cuda.is_available() else "s of the processor"
        rows = [report.row("lab.usual.seconds", usual, kind, f"one edit, the quickest of {TURNS}")]
        for (name, value), some in seconds.items():
            speed, goal = usual / min(some), SPEED_CLAIMS[name].get(value)
            note = f"{min(some):.3g} {kind}, the quickest of {TURNS}"
            rows.append(report.row(f"lab.{words(name)}_{words(value)}.speed", speed, "times", note, goal, "higher"))
        return rows

    def edit(self, number: int, edit: Any) -> None:
        """Every picture of one edit."""
        from kontextkit.bridge.calibration import pictures
        from kontextkit.bridge.quality_lab import measured
        from kontextkit.bridge.ways import sample, usual
        from kontextkit.demo.training.judge import judge

        case, before, right = self.case(number, edit)

        def make(way: Any) -> tuple[torch.Tensor, float]:
            latents, seconds = sample(way, case, number)
            return pictures(self.vae, latents), seconds

        def note(name: str, value: Any, picture: torch.Tensor, seconds: float) -> None:
            self.pictures[name].append(measured(value, case, number, seconds, plain, picture))
            succeeded = bool(judge(before, right, picture).success)
            self.success.setdefault((name, value), []).append(succeeded)

        plain, plain_seconds = make(self.way)
        for name in self.pictures:
            note(name, usual(name, self.way, [case]), plain, plain_seconds)
        for (name, value), way in self.ways.items():
            note(name, value, *make(way))

    def sweeps(self) -> list[Any]:
        """One for each setting."""
        from kontextkit.engine.lab.sweep import Sweep

        return [Sweep(name, pictures[0].value, tuple(pictures)) for name, pictures in self.pictures.items()]

    def rows(self) -> list[dict[str, Any]]:
        """Of everything so far."""
        return [row for sweep in self.sweeps() for row in self.rows_of(sweep)]

    def rows_of(self, sweep: Any) -> list[dict[str, Any]]:
        """Mean, lowest, success; the baseline has success, seconds and the likeness to the context."""
        name, rows = sweep.setting, []
        for summary in sweep.summaries():
            value, is_usual = summary.value, summary.value == sweep.baseline
            stem = f"lab.{words(name)}_{words(value)}"
            out = "; ".join(f"{each.ssim:.3f} {each.prompt}" for each in summary.outliers) or "none"
            note = f"deviation {summary.std:.4f}, {summary.n} edits; outliers: {out}"
            made = {
                "ssim": (summary.mean, "SSIM", note, CLAIMS.get(name, {}).get(value)),
                "ssim_lowest": (summary.minimum, "SSIM", summary.worst.prompt, None),
            }
            if is_usual:
                made = {"seconds": (summary.seconds, "s", "median of sampling", None)}
            if name in CONTEXT_CLAIMS:
                context = summary.to["context"], "SSIM", "to the first reference", CONTEXT_CLAIMS[name].get(value)
                made["ssim_to_context"] = context
            succeeded = self.success[name, value]
            made["edit_success"] = (sum(succeeded) / len(succeeded), "share", f"{len(succeeded)} edits", None)
            for measure, (figure, unit, words_, goal) in made.items():
                better = "lower" if unit == "s" else "higher"
                rows.append(report.row(f"{stem}.{measure}", figure, unit, words_, goal, better))
        return rows


def words(value: Any) -> str:
    """As a part of a row's name."""
    text = value if isinstance(value, str) else f"{value:g}"
    return text.lower().replace(".", "_").replace(" ", "_")


def in_turns(n: int) -> list[Any]:
    """About n held-out edits, one of each kind after another."""
    kinds = [list(edits) for edits in held_out.held_out(n).values()]
    return [edits[i] for i in range(max(map(len, kinds))) for edits in kinds if i < len(edits)]


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "quality_lab.json")
    parser.add_argument("--tiny", action="store_true", help="one edit of 64x64 pixels, to try the script")
    parser.add_argument("--edits", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no other edit is begun")
    parser.add_argument("--times", action="store_true", help="measure speed, not quality")
    options = parser.parse_args()
    report.variant(parser, options, *(["times"] if options.times else []))
    report.tiny_variant(options)
    report.import_comfyui()
    report.import_pack()
    from kontextkit.engine.lab.plot import draw_plot

    usual = options.out.parent == report.RESULTS
    plots, begin = report.ROOT / "docs" if usual else options.out.parent, time.perf_counter()
    with torch.inference_mode():
        lab = Lab(options.tiny)
        if options.times:
            report.write(options.out, lab.times(in_turns(1)[0]), "quality_lab.py", "--times")
            return
        for number, edit in enumerate(in_turns(options.edits)[: 1 if options.tiny else None]):
            if time.perf_counter() - begin > 60 * options.minutes:
                break
            lab.edit(number, edit)
            report.save(options.out, lab.rows(), "quality_lab.py", "--edits", str(options.edits))
            for sweep in lab.sweeps():
                draw_plot(sweep).save(plots / f"lab_{words(sweep.setting)}.png", optimize=True)
            print(f"[{time.perf_counter() - begin:6.1f} s] edit {number}: {edit.prompt}", flush=True)
    report.show(lab.rows())


if __name__ == "__main__":
    main()
