"""How well the demo model edits: held-out edits through ComfyUI against steps, guidance, precision, references.

    COMFYUI_PATH=... python benchmarks/demo_quality.py [--edits N] [--steps N] [--parts PART ...] [--out FILE]

An edit succeeds when what should change did, in color, texture, extent and place, and nothing else did: see
demo/training/judge.py. SSIM is Wang's (engine/metrics/ssim.py) against the picture that is right.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import held_out
import report
import torch
from held_out import Editor, Settings

STEPS = (4, 8, 12, 16, 20)
GUIDANCE = (1.0, 2.0, 2.5, 3.5, 5.0, 7.0, 9.0)
SIDES = (128, 384, 512)  # scenes are drawn square; other shapes are trained but not judged here
GOAL = 0.95


class Quality:
    """The rows, and the pictures behind them."""

    def __init__(self, n_edits: int, n_steps: int):
        self.settings = Settings(steps=n_steps)
        self.edits = held_out.held_out(n_edits)
        self.few = {kind: edits[: max(1, len(edits) // 5)] for kind, edits in self.edits.items()}
        self.rows: list[dict[str, Any]] = []
        self.editor = Editor()

    def row(self, name: str, measured: float, unit: str, note: str, goal: float | None = None) -> None:
        """One result."""
        better = "lower" if unit == "MB" else "higher"
        self.rows.append(report.row(f"demo.{name}", measured, unit, note, goal, better))

    def measure(
        self, name: str, edits: dict[str, list[Any]], settings: Settings, editor: Editor | None = None
    ) -> dict[str, tuple[list[bool], list[float]]]:
        """Two rows over all kinds; returns success and SSIM by kind."""
        by_kind = {}
        for kind, some in edits.items():
            success, likeness, _ = (editor or self.editor).judge(some, settings)
            by_kind[kind] = success, likeness
        self.summarize(name, by_kind)
        return by_kind

    def summarize(
        self, name: str, by_kind: dict[str, tuple[list[bool], list[float]]], goal: float | None = None
    ) -> None:
        """Success and SSIM of several kinds together."""
        success = [value for values, _ in by_kind.values() for value in values]
        likeness = [value for _, values in by_kind.values() for value in values]
        prefix = f"{name}." if name else ""
        self.row(f"{prefix}edit_success", statistics.mean(success), "share", f"{len(success)} edits", goal)
        spread = f"median {statistics.median(likeness):.4f}, worst {min(likeness):.4f}"
        self.row(f"{prefix}ssim_to_truth", statistics.mean(likeness), "SSIM", spread, goal)

    def ceiling(self, name: str, side: int = 256) -> None:
        """The right pictures through the autoencoder alone."""
        by_kind = {}
        from kontextkit.demo.training.judge import judge

        for kind, edits in self.few.items():
            right, references = held_out.truth(edits, (side, side))
            back = self.editor.decode(self.editor.vae.encode(right.movedim(1, -1)))
            verdict = judge(references[0], right, back)
            by_kind[kind] = verdict.success.tolist(), verdict.ssim.tolist()
        self.summarize(name, by_kind)

    def usual(self) -> None:
        """The headline, by kind and by number of references, beside what the autoencoder alone would lose."""
        by_kind = self.measure("", self.edits, self.settings)
        for row in self.rows:
            row["goal"] = GOAL
        for kind in by_kind:
            self.summarize(kind.replace(" ", "_"), {kind: by_kind[kind]})
        one = {kind: value for kind, value in by_kind.items() if not kind.startswith("combine")}
        for name, part in (("one", one), *((k.split()[1], {k: by_kind[k]}) for k in by_kind if k not in one)):
            self.summarize(f"references_{name}", part)
        self.ceiling("autoencoder")
        size = sum(path.stat().st_size for path in (report.ROOT / "demo").glob("kontext_demo_*")) / 1e6
        self.row("megabytes", size, "MB", "all files of the model in demo/", 40)

    def steps(self) -> None:
        """Fewer of them."""
        for steps in STEPS:
            self.measure(f"steps_{steps}", self.edits, replace(self.settings, steps=steps))

    def guidance(self) -> None:
        """More of it; 1 beside it, of the same edits."""
        for guidance in GUIDANCE:
            self.measure(
                f"guidance_{guidance:g}".replace(".", "_"), self.edits, replace(self.settings, guidance=guidance)
            )

    def precision(self) -> None:
        """The Q8_0 file that ships."""
        self.measure("q8_0", self.edits, self.settings, Editor("Q8_0"))

    def masked(self) -> None:
        """Changing only where something should change."""
        local = {kind: edits for kind, edits in self.edits.items() if kind != "background"}
        self.measure("masked", local, replace(self.settings, masked=True))

    def sizes(self) -> None:
        """Other sizes than most of training had."""
        for side in SIDES:
            self.measure(f"size_{side}", self.few, replace(self.settings, size=(side, side)))
            self.ceiling(f"autoencoder_{side}", side)


PARTS = ("usual", "steps", "guidance", "precision", "masked", "sizes")


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "demo_quality.json")
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    with torch.inference_mode():
        quality = Quality(options.edits, options.steps)
        for part in options.parts:
            getattr(quality, part)()
    how = ("--edits", str(options.edits), "--steps", str(options.steps), "--parts", *options.parts)
    report.write(options.out, quality.rows, "demo_quality.py", *how)


if __name__ == "__main__":
    main()
