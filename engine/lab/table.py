"""A sweep as a table for people (Markdown), for spreadsheets (CSV) and as raw data (JSON)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .settings import shown
from .sweep import Summary, Sweep


def markdown(sweep: Sweep) -> str:
    """A row for each value, the baseline first; below it the outliers, each by prompt and seed."""
    summaries = sweep.summaries()
    others = list(dict.fromkeys(name for summary in summaries for name in summary.to))
    head = [sweep.setting, "SSIM", "deviation", "lowest", *(f"SSIM to {name}" for name in others), "seconds", "speed"]
    rows = [head, *(_row(sweep, summary, others) for summary in summaries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    outliers = [
        f"- {sweep.setting} {shown(summary.value)}: {picture.ssim:.4f} at {picture.name}"
        for summary in summaries
        for picture in summary.outliers
    ]
    n = summaries[0].n
    lines += ["", f"SSIM is to the picture of {sweep.setting} {shown(sweep.baseline)}, {n} pictures each."]
    return "\n".join((*lines, *(("", "Outliers:", *outliers) if outliers else ("No outliers.",)))) + "\n"


def _row(sweep: Sweep, summary: Summary, others: list[str]) -> list[str]:
    name = shown(summary.value) + (" (baseline)" if summary.value == sweep.baseline else "")
    figures = [f"{each:.4f}" for each in (summary.mean, summary.std, summary.minimum)]
    figures += [f"{summary.to[other]:.4f}" if other in summary.to else "" for other in others]
    return [name, *figures, f"{summary.seconds:.3g}", f"{summary.speed:.2f}"]


def brief(sweep: Sweep) -> str:
    """A line for each value but the baseline."""
    return "\n".join(
        f"{sweep.setting} {shown(summary.value)}: SSIM {summary.mean:.4f}, {summary.speed:.2f} times as fast"
        for summary in sweep.summaries()
        if summary.value != sweep.baseline
    )


def comma_separated(sweep: Sweep) -> str:
    """A line for each picture."""
    others = list(dict.fromkeys(name for picture in sweep.pictures for name in picture.to))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([sweep.setting, "prompt", "seed", "seconds", "ssim", *(f"ssim_to_{name}" for name in others)])
    for picture in sweep.pictures:
        likeness = [picture.ssim, *(picture.to.get(name, "") for name in others)]
        writer.writerow([shown(picture.value), picture.prompt, picture.seed, picture.seconds, *likeness])
    return text.getvalue()


def raw(sweep: Sweep, made_with: Mapping[str, Any]) -> str:
    """JSON: everything measured, the statistics of each value, and made_with, how the pictures were made."""
    values = [asdict(summary) | {"worst": summary.worst.name} for summary in sweep.summaries()]
    for value in values:
        value["outliers"] = [{"prompt": p["prompt"], "seed": p["seed"], "ssim": p["ssim"]} for p in value["outliers"]]
    head = {"setting": sweep.setting, "baseline": sweep.baseline, "made_with": dict(made_with)}
    return json.dumps(head | {"values": values, "pictures": [asdict(each) for each in sweep.pictures]}, indent=1) + "\n"
