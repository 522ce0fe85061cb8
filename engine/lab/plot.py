"""Quality against time of a sweep, drawn by matplotlib, and its pictures side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from .settings import Value, shown
from .sweep import Picture, Sweep

MISSING = "No plot: matplotlib is not installed. `pip install matplotlib` in ComfyUI's Python brings it."
TILE, MARGIN, HEAD, MOST_ROWS = 160, 6, 18, 6  # pixels; rows of the sheet
PAPER, INK = "#ffffff", "#333333"


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw_plot(sweep: Sweep) -> Any:
    """A PIL picture: SSIM to the baseline by value, each picture a point; the same by time; and SSIM to others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    summaries = sweep.summaries()
    if not any(isinstance(each.value, str) for each in summaries):
        summaries.sort(key=lambda each: float(each.value))
    others = list(dict.fromkeys(name for each in summaries for name in each.to))
    figure = Figure(figsize=(4.5 * (3 if others else 2), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    by_value, by_time, *rest = figure.subplots(1, 3 if others else 2)
    places, names = range(len(summaries)), [shown(each.value) for each in summaries]
    means, deviations = [each.mean for each in summaries], [each.std for each in summaries]
    for place, summary in enumerate(summaries):
        points = [picture.ssim for picture in sweep.pictures if picture.value == summary.value]
        by_value.plot([place] * len(points), points, ".", color="C0", alpha=0.4)
    by_value.errorbar(places, means, deviations, fmt="o", color="C1", capsize=3, label="mean and deviation")
    by_value.legend(fontsize="small")
    title = f"SSIM to the picture of {sweep.setting} {shown(sweep.baseline)}"
    by_value.set(title=title, xlabel=sweep.setting)
    by_time.errorbar([each.seconds for each in summaries], means, deviations, fmt="o", color="C1", capsize=3)
    for name, each in zip(names, summaries, strict=True):
        by_time.annotate(name, (each.seconds, each.mean), xytext=(5, 5), textcoords="offset points", fontsize="small")
    by_time.set(title="the same, by time", xlabel="seconds of sampling a picture")
    by_time.set_xlim(0, 1.15 * max(each.seconds for each in summaries))
    for panel in rest:
        for name in others:
            panel.plot(places, [each.to[name] for each in summaries], "o-", label=f"the {name}")
        panel.set(title="mean SSIM to other pictures", xlabel=sweep.setting)
        panel.legend(fontsize="small")
    for panel in (by_value, *rest):
        panel.set_xticks(places, names)
    for panel in (by_value, by_time, *rest):
        panel.margins(y=0.12)
        panel.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return Image.open(file).convert("RGB")


def draw_words(text: str) -> Any:
    """A PIL picture of a sentence, where a plot cannot be."""
    from PIL import Image, ImageDraw

    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, top, right, bottom = pen.textbbox((0, 0), text)
    picture = Image.new("RGB", (int(right - left) + 32, int(bottom - top) + 32), PAPER)
    ImageDraw.Draw(picture).text((16, 16), text, fill=INK)
    return picture


def draw_sheet(sweep: Sweep, tiles: Mapping[tuple[Value, str, int], Any]) -> Any:
    """A PIL picture: a column for each value, a row for each prompt and seed, those that changed most; SSIM above.

    tiles: PIL pictures by value, prompt and seed.
    """
    from PIL import Image, ImageDraw

    values = [summary.value for summary in sweep.summaries()]
    rows: dict[tuple[str, int], dict[Value, Picture]] = {}
    for picture in sweep.pictures:
        rows.setdefault((picture.prompt, picture.seed), {})[picture.value] = picture
    worst = sorted(rows.values(), key=lambda row: min(each.ssim for each in row.values()))[:MOST_ROWS]
    step = TILE + MARGIN
    height = HEAD + len(worst) * (step + 2 * HEAD)
    sheet = Image.new("RGB", (MARGIN + len(values) * step, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, value in enumerate(values):
        left = MARGIN + column * step
        pen.text((left, 3), f"{sweep.setting} {shown(value)}"[:26], fill=INK)
        for i, row in enumerate(worst):
            picture, top = row[value], HEAD + i * (step + 2 * HEAD)
            if column == 0:
                pen.text((left, top + 2), picture.name, fill=INK)
            words = "baseline" if value == sweep.baseline else f"SSIM {picture.ssim:.4f}"
            pen.text((left, top + HEAD), words, fill=INK)
            tile = tiles[value, picture.prompt, picture.seed]
            sheet.paste(tile, (left, top + 2 * HEAD))
    return sheet
