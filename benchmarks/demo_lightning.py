"""What the demo's Lightning LoRA keeps of a 28-step picture in few steps, beside as many steps without it.

    COMFYUI_PATH=... python benchmarks/demo_lightning.py [LORA] [--edits N] [--out FILE]

Held-out edits through ComfyUI (euler, simple, guidance 1). SSIM (engine/metrics/ssim.py) is to the picture that the
model makes of the same noise in 28 steps without the LoRA; success is the judge's, as in demo_quality.py.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import held_out
import report
import torch
from held_out import Editor, Settings
from torch import Tensor

GOALS = {8: 0.95, 4: 0.92, 2: None, 1: None}


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "demo_lightning.json")
    parser.add_argument("lora", type=Path, nargs="?", default=report.ROOT / "demo" / "demo_lightning.safetensors")
    parser.add_argument("--edits", type=int, default=500)
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    from kontextkit.bridge import lora

    edits = held_out.held_out(options.edits)
    with torch.inference_mode():
        editor = Editor()
        _, slow = pictures(editor, edits, 28)
        rows = few_steps("demo.lightning.without", editor, edits, slow, dict.fromkeys(GOALS))
        editor.model = lora.apply(editor.model, lora.read(options.lora, editor.model), 1.0)
        rows += few_steps("lora.demo_lightning", editor, edits, slow, GOALS)
    report.write(options.out, rows, "demo_lightning.py", "--edits", str(options.edits))


def few_steps(
    name: str, editor: Editor, edits: dict[str, list[Any]], slow: Tensor, goals: dict[int, float | None]
) -> list[dict[str, Any]]:
    """Two rows for every number of steps."""
    from kontextkit.engine.metrics.ssim import ssim

    rows = []
    for steps, goal in goals.items():
        success, fast = pictures(editor, edits, steps)
        likeness = torch.cat([ssim(a, b) for a, b in zip(slow.split(50), fast.split(50), strict=True)])
        note = f"worst {likeness.min():.4f}, to the 28-step picture"
        rows.append(report.row(f"{name}.ssim.{steps}", likeness.mean().item(), "SSIM", note, goal, "higher"))
        share, n = statistics.mean(success), f"{len(success)} edits"
        rows.append(report.row(f"{name}.edit_success.{steps}", share, "share", n, better="higher"))
    return rows


def pictures(editor: Editor, edits: dict[str, list[Any]], steps: int) -> tuple[list[bool], Tensor]:
    """Success of each edit and the pictures (n, 3, H, W), of all kinds in turn."""
    judged = [editor.judge(some, Settings(steps=steps)) for some in edits.values()]
    return [one for success, _, _ in judged for one in success], torch.cat([made for _, _, made in judged])


if __name__ == "__main__":
    main()
