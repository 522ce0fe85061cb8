"""Kept references, drawn from fast_quality.py's result: over the interval how far they drift, likeness and success."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

NAME = re.compile(r"fast\.every_(\d+)\.(\w+)\.(\d)")
TITLES = {
    "drift": "drift, the most of a run",
    "ssim": "SSIM to nothing kept",
    "edit_success": "share of edits that succeed",
}
WORDS = {"1": "one reference", "2": "two references", "4": "four references"}


def draw_intervals(result: Path, picture: Path) -> None:
    """Three panels over the interval, a line for each number of references; dotted the worst picture."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("drawing needs matplotlib: `pip install matplotlib`")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in json.loads(result.read_text())["rows"]:
        if (match := NAME.fullmatch(row["name"])) and row["measured"] is not None:
            interval, measure, n = match.groups()
            found[measure, n][int(interval)] = row["measured"]
    figure, panels = plt.subplots(1, len(TITLES), figsize=(12, 3.6), layout="constrained")
    for panel, (measure, title) in zip(panels, TITLES.items(), strict=True):
        for i, (n, words) in enumerate(WORDS.items()):
            panel.plot(*zip(*sorted(found[measure, n].items()), strict=True), "o-", color=f"C{i}", label=words)
            if measure == "ssim":
                panel.plot(*zip(*sorted(found["ssim_worst", n].items()), strict=True), ":", color=f"C{i}")
        panel.set(xscale="log", xlabel="references anew at every so many steps", title=title)
        ticks = sorted(found[measure, "1"])
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    panels[1].text(0.03, 0.05, "dotted: the worst picture", transform=panels[1].transAxes, fontsize="small")
    figure.savefig(picture, dpi=110)
