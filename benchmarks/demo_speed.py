"""Seconds for one edit with the demo model: encode, 28 steps, decode; 256x256, one reference.

    COMFYUI_PATH=... python benchmarks/demo_speed.py [--out FILE]

Median of five after a warm-up, through ComfyUI's sampler, in one process, on the card if there is one, else the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import report
import torch
from held_out import Editor, Settings, held_out, truth


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=report.RESULTS / "demo_speed.json")
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
            seconds = []
            for seed in range(6):
                begin = time.perf_counter()
                editor.edit([edit.prompt], references, Settings(), seed, right).sum().item()
                seconds.append(time.perf_counter() - begin)
            note = f"28 steps, from {min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}"
            name = f"demo.seconds_{device}" + ("" if precision == "BF16" else f".{precision.lower()}")
            row = {"name": name, "measured": round(statistics.median(seconds[1:]), 3), "goal": None, "unit": "s"}
            rows.append(row | {"better": "lower", "note": note})
    report.write(options.out, rows, "demo_speed.py")


if __name__ == "__main__":
    main()
