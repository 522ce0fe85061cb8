"""The frontier of the first-block cache, drawn from optimize_quality.py's result: threshold, hits, likeness, speed."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

NAME = re.compile(r"optimize\.cache\.t([\d_]+)\.o(\d)\.(\w+)")
LINES = {0: "last step's work again", 1: "line through two", 2: "parabola through three"}


def read_frontier(path: Path) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """{measure: {order: [(threshold, measured), ...]}} of a result, by rising threshold."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in json.loads(path.read_text())["rows"]:
        match = NAME.fullmatch(row["name"])
        if match and row["measured"] is not None:
            threshold, order, measure = match.groups()
            measured = {measure: row["measured"]}
            if measure == "computed_steps":
                n_steps = int(row["note"].split()[1].rstrip(","))  # of 28, from ...
                measured = {"hit_rate": 1 - row["measured"] / n_steps, "speed": n_steps / row["measured"]}
            for name, value in measured.items():
                found[name][int(order)].append((float(threshold.replace("_", ".")), value))
    return {measure: {order: sorted(points) for order, points in sorted(by.items())} for measure, by in found.items()}


def draw_frontier(result: Path, picture: Path) -> None:
    """Three panels over the threshold: share of steps skipped, SSIM, and steps over computed steps."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("drawing needs matplotlib: `pip install matplotlib`")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    measured = read_frontier(result)
    figure, (hits, likeness, speed) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for i, order in enumerate(measured["hit_rate"]):
        color, label = f"C{i}", LINES[order]
        hits.plot(*zip(*measured["hit_rate"][order], strict=True), "o-", color=color, label=label)
        likeness.plot(*zip(*measured["ssim"][order], strict=True), "o-", color=color, label=f"{label}, mean")
        likeness.plot(*zip(*measured["ssim_p5"][order], strict=True), ":", color=color, label="5th percentile")
        speed.plot(*zip(*measured["speed"][order], strict=True), "o-", color=color, label=label)
    titles = {
        hits: "share of steps skipped",
        likeness: "SSIM to every step computed",
        speed: "steps over computed steps",
    }
    for panel, title in titles.items():
        panel.set(xscale="log", xlabel="threshold", title=title)
        ticks = [threshold for threshold, _ in next(iter(measured["hit_rate"].values()))]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    hits.legend(title="a skipped step takes")
    likeness.legend(fontsize="small")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
