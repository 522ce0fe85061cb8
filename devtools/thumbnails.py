"""Draws the thumbnails of the described workflows: an edit by the demo model, before and after, under their title.

    python devtools/thumbnails.py

The edits are those of docs/demo_samples.jpg, whose grid is that of benchmarks/demo_samples.py.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "docs" / "demo_samples.jpg"
SIZE, SIDE, LINE, MOST = (480, 300), 160, 18, 3
SINGLE = [(row, half) for row in range(6) for half in range(2) if (row, half) != (2, 1)]  # that one failed
THREE = (7, 0)
Pictures = tuple[list[Image.Image], Image.Image]  # before, after


def main() -> None:
    """No arguments."""
    rooms = [str(ROOT)]
    spec = importlib.util.spec_from_file_location("kontextkit", ROOT / "__init__.py", submodule_search_locations=rooms)
    assert spec
    sys.modules["kontextkit"] = importlib.util.module_from_spec(spec)
    from kontextkit.engine.tiers.tiers import TIERS, USE_CASES

    sheet, places = Image.open(SAMPLES), cycle(SINGLE)
    titles = {f"tier_{tier.slug}": tier.name for tier in TIERS.values()}
    titles |= {case.slug: case.name.capitalize() for case in USE_CASES.values()}
    titles |= {"multi_reference": "Several pictures into one", "scheduler_study": "Half the steps by another sampler"}
    titles |= {"quantize": "Quantize a model"}
    for slug, title in titles.items():
        n, place = (MOST, THREE) if slug == "multi_reference" else (1, next(places))
        draw(title, *cut(sheet, place, n)).save(ROOT / "workflows" / f"kontext_{slug}.jpg", quality=85)


def cut(sheet: Image.Image, place: tuple[int, int], n: int) -> Pictures:
    """The n references and the result of the edit in a row and half of the sheet."""
    row, half = place
    left, top = half * ((MOST + 2) * SIDE + 20), row * (SIDE + LINE) + LINE
    columns = [*range(n), MOST]
    boxes = [(left + i * SIDE + 2, top, left + (i + 1) * SIDE - 2, top + SIDE - 4) for i in columns]
    *before, after = (sheet.crop(box) for box in boxes)
    return before, after


def draw(title: str, before: Sequence[Image.Image], after: Image.Image) -> Image.Image:
    """The title over the pictures in a row, an arrow before the one that was made."""
    canvas = Image.new("RGB", SIZE, (32, 33, 36))
    pen = ImageDraw.Draw(canvas)
    pen.text((SIZE[0] // 2, 36), title, (235, 235, 235), ImageFont.load_default(26), anchor="mm")
    n, gap, arrow = len(before) + 1, 10, 34
    side = min(200, (SIZE[0] - 2 * gap - arrow - (n - 2) * gap) // n)
    x, y = (SIZE[0] - n * side - (n - 2) * gap - arrow) // 2, 70 + (210 - side) // 2
    for picture in before:
        canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        x += side + gap
    middle = y + side // 2
    x += arrow - gap
    pen.polygon([(x - 24, middle - 9), (x - 24, middle + 9), (x - 9, middle)], (200, 200, 200))
    canvas.paste(after.resize((side, side), Image.Resampling.LANCZOS), (x, y))
    return canvas


if __name__ == "__main__":
    main()
