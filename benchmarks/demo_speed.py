"""Seconds for one edit with the demo model: encode, 28 steps, decode; 256x256, one reference.

    COMFYUI_PATH=... python benchmarks/demo_speed.py [--out FILE]

Median of five after a warm-up, through ComfyUI's sampler, in one process, on the card if there is one, else the CPU.
"""

from __future__ import annotations

import statistics
from functools import partial
from itertools import count

import report
import torch
from held_out import Editor, Settings, held_out, truth


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "demo_speed.json")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    with torch.inference_mode():
        edit = held_out(8)["recolor"][0]
        right, references = truth([edit], (256, 256))
        for precision in ("BF16", "Q8_0"):
            editor = Editor(precision)
            seeds = count()
            edit_once = partial(editor.edit, [edit.prompt], references, Settings(), right=right)
            times = report.in_turns({"": lambda run=edit_once, s=seeds: run(seed=next(s))}, turns=5, warm_up=1)[""]
            note = f"28 steps, from {min(times):.2f} to {max(times):.2f}"
            name = f"demo.seconds_{device}" + ("" if precision == "BF16" else f".{precision.lower()}")
            rows.append(report.row(name, statistics.median(times), "s", note))
    report.write(options.out, rows, "demo_speed.py")


if __name__ == "__main__":
    main()
