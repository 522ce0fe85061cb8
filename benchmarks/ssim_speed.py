"""How long SSIM and the mask checker take on a CPU: by the clock with all cores, and of one core's time.

    python benchmarks/ssim_speed.py [--shared] [--tiny] [--out FILE]

--shared: the machine has other work to do, so that the clock says nothing; one core's time alone is measured.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import report
import torch

GOAL = 1.0  # seconds of a 4K pair, all cores


def main() -> None:
    """Measure, write, and print the rows."""
    parser = report.parser(__doc__, "ssim_speed.json")
    parser.add_argument("--shared", action="store_true", help="measure no clock time")
    parser.add_argument("--tiny", action="store_true", help="small pictures, to see that it runs")
    options = parser.parse_args()
    report.tiny_variant(options)
    if "COMFYUI_PATH" in os.environ:
        report.import_comfyui()  # for its version in the result
    report.import_pack()
    rows = measure(200 if options.tiny else 2160, (128, 4) if options.tiny else (1024, 20), options.shared)
    report.write(options.out, rows, "ssim_speed.py", *(["--shared"] if options.shared else []))


def measure(height: int, masks: tuple[int, int], shared: bool) -> list[dict[str, Any]]:
    """Rows of a pair of 16:9 pictures and of masks, their side and number."""
    from kontextkit.engine.metrics.comparison import compare
    from kontextkit.engine.metrics.mask_batch import check
    from kontextkit.engine.metrics.mask_cleaning import Cleaning
    from kontextkit.engine.metrics.ssim import ssim

    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, height, height * 16 // 9, generator=generator)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    side, n = masks
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    circle = (0.5 + (side / 4 - torch.hypot(x - side / 2.0, y - side / 2.0)) / 10).clamp(0, 1)
    rows = [wall("ssim.4k.seconds", lambda: ssim(a, b), shared)]
    torch.set_num_threads(1)
    rows += [
        core_time("ssim.4k.core_seconds", lambda: ssim(a, b)),
        core_time("ssim.4k.luma_core_seconds", lambda: compare(a, b, luma_only=True)),
        core_time("mask.core_seconds", lambda: check(circle.expand(n, -1, -1), None, Cleaning()), n),
    ]
    return rows


def wall(name: str, work: Callable[[], Any], shared: bool) -> dict[str, Any]:
    """Seconds by the clock, on all cores."""
    if shared:
        return report.failed(name, "s", "not measured: the machine had other work", GOAL)
    torch.set_num_threads(os.cpu_count() or 1)
    (seconds,) = report.in_turns({name: work}, turns=5, warm_up=1).values()
    return report.row(name, statistics.median(seconds), "s", spread(seconds), GOAL)


def core_time(name: str, work: Callable[[], Any], n: int = 1) -> dict[str, Any]:
    """Seconds of one core's time, a piece of n."""
    seconds = []
    for turn in range(4):
        begin = time.process_time()
        work()
        seconds += [(time.process_time() - begin) / n] * (turn > 0)
    return report.row(name, statistics.median(seconds), "s", spread(seconds))


def spread(seconds: list[float]) -> str:
    """The fastest and the slowest."""
    return f"{len(seconds)} times, {min(seconds):.3g} to {max(seconds):.3g} s"


if __name__ == "__main__":
    main()
