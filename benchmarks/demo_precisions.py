"""What quantization does to the demo model's pictures: SSIM to the BF16 picture of the same edit and seed.

    COMFYUI_PATH=... python benchmarks/demo_precisions.py [--edits N] [--out FILE]

Held-out edits of every kind through ComfyUI, in 8 steps, which this model does as well as 28; the goals are the lower
ends of the guide's ranges.
"""

from __future__ import annotations

import statistics
from typing import Any

import held_out
import report
import torch
from held_out import Editor, Settings

STEPS = 8
GOALS = {"Q8_0": None, "Q5_K_M": 0.965, "Q4_K_M": 0.95, "Q3_K_M": 0.935}


def pictures(precision: str, edits: list[Any]) -> tuple[list[bool], torch.Tensor]:
    """Of each edit whether it succeeded, and its picture (n, 3, H, W)."""
    success, _, made = Editor(precision).judge(edits, Settings(steps=STEPS))
    return success, made


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "demo_precisions.json")
    parser.add_argument("--edits", type=int, default=24)
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    from kontextkit.engine.metrics.ssim import ssim

    by_kind = held_out.held_out(options.edits).values()
    with torch.inference_mode():
        full = [pictures("BF16", edits) for edits in by_kind]
        rows = []
        for precision, goal in GOALS.items():
            made = [pictures(precision, edits) for edits in by_kind]
            likeness = torch.cat([ssim(own, right) for (_, own), (_, right) in zip(made, full, strict=True)]).tolist()
            both = [sum(success) for runs in (made, full) for success, _ in runs]
            note = (
                f"{len(likeness)} edits of {STEPS} steps; median {statistics.median(likeness):.4f}, "
                f"worst {min(likeness):.4f}; {sum(both[: len(made)])} succeed, {sum(both[len(made) :])} in BF16"
            )
            name = f"demo.{precision.lower()}.ssim_to_bf16"
            rows.append(report.row(name, statistics.mean(likeness), "SSIM", note, goal, "higher"))
            print(rows[-1], flush=True)
    report.write(options.out, rows, "demo_precisions.py", "--edits", str(options.edits))


if __name__ == "__main__":
    main()
