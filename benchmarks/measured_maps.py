"""Which steps the demo model's edits compute under a preset; with random weights a cache's own choice means nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import report

QUALITY = report.RESULTS / "optimize_quality.json"
NAME = re.compile(r"optimize\.(\w+)\.map")
STEPS = re.compile(r"\[([\d, ]+)\]")


def measured_maps(quality: Path = QUALITY) -> dict[str, tuple[int, ...]]:
    """{preset: computed steps, of 28} of optimize_quality.py's result; nothing where there is none."""
    maps = {}
    for row in json.loads(quality.read_text())["rows"] if quality.exists() else ():
        preset = NAME.fullmatch(row["name"])
        if preset and (steps := STEPS.search(row["note"])):
            maps[preset[1]] = tuple(map(int, steps[1].split(",")))
    return maps
