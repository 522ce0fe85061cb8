"""How long SSIM and the mask checker take on this machine's CPU, all its cores.

python benchmarks/ssim_speed.py [--tiny] [--out FILE]
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import report
import torch


def main() -> None:
    """Measure, write, and print the rows."""
    parser = report.parser(__doc__, "ssim_speed.json")
    parser.add_argument("--tiny", action="store_true", help="small pictures, to see that it runs")
    options = parser.parse_args()
    report.tiny_variant(options)
    if "COMFYUI_PATH" in os.environ:
        report.import_comfyui()  # for its version in the result
    report.import_pack()
    torch.set_num_threads(os.cpu_count() or 1)
    rows = pictures(200 if options.tiny else 2160) + masks(128 if options.tiny else 1024, 4 if options.tiny else 200)
    report.write(options.out, rows, "ssim_speed.py")


def pictures(height: int) -> list[dict[str, Any]]:
    """Rows of a pair of 16:9 pictures."""
    from kontextkit.engine.metrics.comparison import compare
    from kontextkit.engine.metrics.ssim import ssim

    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, height, height * 16 // 9, generator=generator)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    ways = {"": lambda: ssim(a, b), ".luma": lambda: compare(a, b, luma_only=True), ".compare": lambda: compare(a, b)}
    found = report.in_turns(ways, turns=5, warm_up=1)
    return [
        report.row(f"ssim.4k{name}.seconds", statistics.median(seconds), "s", spread(seconds), None if name else 1.0)
        for name, seconds in found.items()
    ]


def masks(side: int, n: int) -> list[dict[str, Any]]:
    """The row of a long batch of feathered masks."""
    from kontextkit.engine.metrics.mask_batch import check
    from kontextkit.engine.metrics.mask_cleaning import Cleaning

    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    circle = (0.5 + (side / 4 - torch.hypot(x - side / 2.0, y - side / 2.0)) / 10).clamp(0, 1)
    many = circle.expand(n, -1, -1)
    seconds = report.in_turns({"": lambda: check(many, None, Cleaning())}, turns=1, warm_up=0)[""]
    return [report.row("mask.batch_200.seconds", seconds[0], "s", f"{n} masks of {side}x{side}, once")]


def spread(seconds: list[float]) -> str:
    """The fastest and the slowest."""
    return f"{len(seconds)} times, {min(seconds):.2f} to {max(seconds):.2f} s"


if __name__ == "__main__":
    main()
